"""Worker processes that may be killed at any time: their cells run again, the others continue."""

import multiprocessing
import os
import queue
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from resid_theory.sweep.results import Cell, Results
from resid_theory.sweep.worker import Options, Report, attempt, lost

_READY = "ready"
_SHORT = 0.1  # seconds; far longer than the driver takes to answer
# Workers in a row that may end before their first cell: by their own error, or by a signal.
_MOST_FAILED_STARTS, _MOST_KILLED_STARTS = 3, 50


def run_in_processes(cells: list[Cell], results: Results, options: Options) -> Iterator[Report]:
    """Run cells in worker processes, which end when the driver ends."""
    # concurrent.futures would give up the whole pool when one worker is killed.
    pool = _Pool(cells, results, options)
    try:
        yield from pool.run()
    finally:
        pool.end()


class _Worker:
    """A process at the other end of a pipe."""

    def __init__(self, context: Any, number: int, results: Results, options: Options) -> None:
        self.number, self.ready = number, False
        self.cells: deque[Cell] = deque()  # the first is under way
        self.pipe, other = context.Pipe()
        threads = max(1, torch.get_num_threads() // options.workers)
        device = options.device
        if device == "cuda":  # GPUs in turn
            device = f"cuda:{number % torch.cuda.device_count()}"
        arguments = (other, results, device, threads)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        other.close()  # only the worker's copy is left, so that its end closes the pipe

    def give(self, cell: Cell) -> None:
        """Send a cell; if the worker has ended, the pipe will report it."""
        self.cells.append(cell)
        try:
            self.pipe.send(cell)
        except OSError:
            pass

    def end(self) -> str:
        """Wait for the process to end and say how it ended."""
        self.pipe.close()
        self.process.join()
        code = self.process.exitcode or 0
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class _Pool:
    """Waiting cells, and workers with one or two cells each."""

    def __init__(self, cells: list[Cell], results: Results, options: Options) -> None:
        self.results, self.options = results, options
        self.waiting, self.losses = deque(cells), Counter[str]()
        self.left, self.failed_starts = len(cells), 0
        # A fork server that has imported torch starts a worker in milliseconds.
        served = "forkserver" in multiprocessing.get_all_start_methods()
        self.context: Any = multiprocessing.get_context("forkserver" if served else "spawn")
        if served:
            needed = dict.fromkeys(name for cell in cells for name in cell.settings.imports)
            self.context.set_forkserver_preload(["resid_theory.sweep.registry", *needed])
        count = min(options.workers, len(cells))
        self.workers = [self._worker(number) for number in range(count)]

    def _worker(self, number: int) -> _Worker:
        return _Worker(self.context, number, self.results, self.options)

    def run(self) -> Iterator[Report]:
        """Reports, in the order in which cells finish."""
        while self.left:
            by_pipe = {worker.pipe: worker for worker in self.workers}
            for pipe in wait(list(by_pipe)):
                assert isinstance(pipe, Connection)
                report = self._hear(by_pipe[pipe])
                if report is not None:
                    self.left -= 1
                    yield report

    def _hear(self, worker: _Worker) -> Report | None:
        """Receive a message from a worker, or notice that it ended; send it the next cell."""
        try:
            said = worker.pipe.recv()
        except (EOFError, OSError):
            return self._replace(worker)
        worker.ready, self.failed_starts = True, 0
        report = None if said == _READY else said
        ahead = 1
        if report is not None:
            worker.cells.popleft()
            # The worker of a short cell gets the next one in advance, so that it need not wait.
            short = report.seconds < _SHORT and len(self.waiting) > len(self.workers)
            ahead += short
        while self.waiting and len(worker.cells) < ahead:
            worker.give(self.waiting.popleft())
        return report

    def _replace(self, worker: _Worker) -> Report | None:
        how, cells = worker.end(), worker.cells
        self.failed_starts += not worker.ready
        # A signal comes from outside: kills every few seconds may hit many workers as they start.
        if self.failed_starts > (
            _MOST_KILLED_STARTS if how.startswith("signal") else _MOST_FAILED_STARTS
        ):
            raise RuntimeError(
                f"workers end before their first cell ({how}); a script that starts a sweep needs "
                'if __name__ == "__main__": around it'
            )
        self.workers[self.workers.index(worker)] = self._worker(worker.number)
        if not cells:
            return None
        cell = cells.popleft()
        self.waiting.extendleft(cells)
        self.losses[cell.key] += 1
        if self.losses[cell.key] > self.options.retries:
            return lost(cell, self.results, self.losses[cell.key], how)
        self.waiting.append(cell)
        return None

    def end(self) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.pipe.close()
        for worker in self.workers:
            worker.process.join(1.0)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


# -- in the worker ---------------------------------------------------------------------------------


def _serve(pipe: Connection, results: Results, device: str, threads: int) -> None:
    """Run cells as they come, until the driver is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver handles it
    torch.set_num_threads(threads)
    cells: queue.SimpleQueue[Cell] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, cells), daemon=True).start()
    pipe.send(_READY)
    while True:
        pipe.send(attempt(cells.get(), results, device))


def _listen(pipe: Connection, cells: "queue.SimpleQueue[Cell]") -> None:
    try:
        while True:
            cells.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(0)  # in the middle of a cell, too: another driver may run it by now
