"""The work that every executor does for one cell."""

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from resid_theory.sweep.results import Cell, Results


@dataclass(frozen=True, kw_only=True)
class Report:
    """Outcome of one grid cell: error (None if done), whether it ran now, and its seconds."""

    cell: Cell
    error: str | None
    ran: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Options:
    """Worker processes, retries after a lost worker, device, and GPUs per cell (Ray)."""

    workers: int
    retries: int
    device: str
    gpus: float


Executor = Callable[[list[Cell], Results, Options], Iterator[Report]]


def attempt(cell: Cell, results: Results, device: str) -> Report:
    """Run a cell unless it is done, and keep its result or error; only an interrupt is raised."""
    if results.is_done(cell):  # by a worker that was killed before it could report
        return Report(cell=cell, error=None, ran=False, seconds=0.0)
    started = time.perf_counter()
    try:
        outcome = cell.settings.run(results.place(cell.key), device)
        seconds = time.perf_counter() - started
        results.write(cell, outcome, seconds)
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        results.fail(cell, words, traceback.format_exc())
        return Report(cell=cell, error=words, ran=True, seconds=time.perf_counter() - started)
    return Report(cell=cell, error=None, ran=True, seconds=seconds)


def lost(cell: Cell, results: Results, times: int, how: str) -> Report:
    """Report of a cell whose workers were lost too often."""
    if results.is_done(cell):  # the last one was killed before it could report
        return Report(cell=cell, error=None, ran=True, seconds=0.0)
    words = f"its worker was lost {times} times ({how}); the usual cause is lack of memory"
    results.fail(cell, words)
    return Report(cell=cell, error=words, ran=True, seconds=0.0)


def run_serially(cells: list[Cell], results: Results, options: Options) -> Iterator[Report]:
    """Run cells one after another in this process."""
    for cell in cells:
        yield attempt(cell, results, options.device)
