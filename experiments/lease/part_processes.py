"""Parts in processes of their own, some at a time, until a moment in time or a signal.

An error on a GPU can spoil its whole process; here it touches one part.
"""

import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from experiments.lease.carried import steps_done
from experiments.lease.time_table import label, steps
from experiments.parts import BusyError, Execution, Request, StoppedError, Store

FINISHED, FAILED, STOPPED = 0, 1, 3


def context() -> Any:
    """Processes that begin with everything imported and with no GPU in use."""
    return get_context("forkserver")


def prepare_processes() -> None:
    """Begin to import, in the server that later processes are forked from."""
    context().set_forkserver_preload(["experiments.lease.forked"])
    forkserver.ensure_running()


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where parts are computed.

    Attributes:
        parts: Folder of the parts.
        device: A torch device.
        rehearsal: Whether only the way is tried: few steps in checks.
        inside: Makes the context in which a process computes; tests pretend a device with it.
    """

    parts: Path
    device: str = "cuda"
    rehearsal: bool = False
    inside: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(kw_only=True)
class Attempt:
    """One process that computes a part.

    Attributes:
        key: Key of the part.
        label: The part in a few words.
        how: Changes of the recipe that decide speed.
        counted: Estimated seconds.
        begun: Steps done before.
        ended: Steps done after it.
        seconds: Its duration.
        outcome: ``"finished"``, ``"stopped"``, ``"failed"`` or ``"running"``.
    """

    key: str
    label: str
    how: Mapping[str, Any]
    counted: float
    begun: int
    ended: int = 0
    seconds: float = 0.0
    outcome: str = "running"

    @property
    def milliseconds(self) -> float:
        """Duration of a step, everything included; NaN if none was taken."""
        done = self.ended - self.begun
        return 1e3 * self.seconds / done if done > 0 else float("nan")


def _compute(request: Request, how: Mapping[str, Any], machine: Machine, until: float) -> None:
    """Compute one part in this process, which ends with a status that says what became of it."""
    log = os.open(machine.parts / f"{request.part.key}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, which every process gets
    execution = Execution(
        device=machine.device, stop=lambda _: asked or time.time() >= until, **how
    )
    status = FINISHED
    try:
        with machine.inside():
            Store(machine.parts).compute(request.part, execution)
    except (BusyError, StoppedError) as reason:
        print(reason)
        status = STOPPED
    except BaseException:
        traceback.print_exc()
        status = FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # what a broken GPU does at the end of a process does not matter


@dataclass(kw_only=True)
class PartQueue:
    """Open parts in order, and the processes that compute them.

    Attributes:
        requests: Open parts, the most wanted first.
        machine: Where they are computed.
        until: Moment at which they stop, in seconds since the epoch.
        slots: Number of processes at a time.
        seconds: Estimated duration of a request beside as many others.
        how: Changes of its recipe that decide speed.
        plain: Changes with which a part that failed is tried once more, after all others.
        stopped: Asked in between; True stops all parts.
        patience: Seconds after ``until`` after which a part that has not saved is killed.
        each: Called after each part and each half minute, to pack what there is.
    """

    requests: Sequence[Request]
    machine: Machine
    until: float
    slots: int
    seconds: Callable[[Request], float]
    how: Callable[[Request], Mapping[str, Any]]
    plain: Mapping[str, Any]
    stopped: Callable[[], bool] = lambda: False
    patience: float = math.inf
    each: Callable[[], object] = lambda: None
    attempts: list[Attempt] = field(default_factory=list)

    def run(self) -> None:
        """Compute parts until none is left or time is over."""
        waiting = list(self.requests)
        running: dict[int, tuple[BaseProcess, Attempt, Request, float]] = {}
        again: list[Request] = []
        packed = time.time()
        while waiting or again or running:
            over = self.stopped() or time.time() >= self.until
            while not over and (waiting or again) and len(running) < self.slots:
                queue = waiting or again
                request = queue.pop(self._next(queue))
                how = self.how(request) if queue is waiting else self.plain
                process, attempt = self._start(request, how)
                running[process.pid or 0] = process, attempt, request, time.time()
            if over and not running:
                break
            for process, *_ in running.values() if self.stopped() else ():
                process.terminate()
            late = time.time() > self.until + self.patience
            for process, *_ in running.values() if late else ():
                process.kill()
            time.sleep(0.05)
            ended = [entry for entry in running.values() if entry[0].exitcode is not None]
            for process, attempt, request, began in ended:
                running.pop(process.pid or 0)
                self._end(process, attempt, request, time.time() - began)
                if attempt.outcome == "failed" and attempt.how != self.plain:
                    again.append(request)
            if ended or time.time() - packed > 30:
                self.each()
                packed = time.time()

    def _next(self, queue: Sequence[Request]) -> int:
        """The first part that can end in time; else the first, which can be resumed."""
        left = self.until - time.time()
        fits = (i for i, request in enumerate(queue) if self.seconds(request) <= left)
        return next(fits, 0)

    def _start(self, request: Request, how: Mapping[str, Any]) -> tuple[BaseProcess, Attempt]:
        place = self.machine.parts / "cells" / request.part.key
        attempt = Attempt(
            key=request.part.key,
            label=label(request.part),
            how=dict(how),
            counted=self.seconds(request),
            begun=steps_done(place),
        )
        self.attempts.append(attempt)
        process = context().Process(
            target=_compute, args=(request, how, self.machine, self.until), daemon=True
        )
        process.start()
        print(f"begun    {attempt.label}, {attempt.counted:.0f} s counted, {dict(how)}", flush=True)
        return process, attempt

    def _end(
        self, process: BaseProcess, attempt: Attempt, request: Request, seconds: float
    ) -> None:
        words = {FINISHED: "finished", STOPPED: "stopped"}
        attempt.outcome = words.get(process.exitcode, "failed")
        place = self.machine.parts / "cells" / attempt.key
        done = attempt.outcome == "finished"
        attempt.ended = steps(request.part) if done else steps_done(place)
        attempt.seconds = seconds
        print(
            f"{attempt.outcome:8} {attempt.label}: step {attempt.ended}, {seconds:.0f} s, "
            f"{attempt.milliseconds:.2f} ms a step, exit {process.exitcode}",
            flush=True,
        )


def as_json(attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """Attempts as a file holds them."""
    return [asdict(attempt) for attempt in attempts]
