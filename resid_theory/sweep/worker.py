"""What every executor does with one cell."""

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from resid_theory.sweep.results import Cell, Results

__all__ = [
    "Executor",
    "Options",
    "Report",
    "attempt",
    "device_of_worker",
    "lost",
    "run_serially",
]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a cell.

    Attributes:
        cell: The cell.
        error: In one line; None if it is done.
        ran: Whether it was run: not where a result was found.
        seconds: Of the task itself.
    """

    cell: Cell
    error: str | None
    ran: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Options:
    """How cells are run.

    Attributes:
        workers: Processes at a time.
        retries: How often a cell is run again whose worker was lost.
        device: ``cpu`` or ``cuda``.
        gpus: Of each cell, for Ray; may be a fraction.
    """

    workers: int
    retries: int
    device: str
    gpus: float


Executor = Callable[[list[Cell], Results, Options], Iterator[Report]]


def attempt(cell: Cell, results: Results, device: str) -> Report:
    """Run a cell, unless it is done, and keep result or error.

    Args:
        cell: The cell.
        results: Where.
        device: As torch calls it.

    Returns:
        What became of it. An error of the task is part of it, an interrupt is raised.
    """
    if results.is_done(cell):  # by a worker that was killed before it could say so
        return Report(cell=cell, error=None, ran=False, seconds=0.0)
    results.clear(cell)
    started = time.perf_counter()
    try:
        outcome = cell.settings.run(results.place(cell.key), device)
        seconds = time.perf_counter() - started
        results.write(cell, outcome, seconds)
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        _note(results, cell, words, traceback.format_exc())
        return Report(cell=cell, error=words, ran=True, seconds=time.perf_counter() - started)
    return Report(cell=cell, error=None, ran=True, seconds=seconds)


def lost(cell: Cell, results: Results, times: int, how: str) -> Report:
    """What becomes of a cell whose workers were lost too often.

    Args:
        cell: The cell.
        results: Where.
        times: How often.
        how: They ended.

    Returns:
        A report with an error.
    """
    words = f"its worker was lost {times} times ({how}); the usual cause is lack of memory"
    _note(results, cell, words, "")
    return Report(cell=cell, error=words, ran=True, seconds=0.0)


def _note(results: Results, cell: Cell, words: str, trace: str) -> None:
    try:
        results.fail(cell, words, trace)
    except OSError:
        pass  # a full disk: the report still tells


def run_serially(cells: list[Cell], results: Results, options: Options) -> Iterator[Report]:
    """Run cells one after the other in this process.

    Args:
        cells: The cells.
        results: Where.
        options: The device counts.

    Yields:
        A report for each.
    """
    for cell in cells:
        yield attempt(cell, results, options.device)


def device_of_worker(device: str, number: int) -> Any:
    """The device of one of several workers: GPUs in turn.

    Args:
        device: ``cpu``, ``cuda`` or a certain GPU.
        number: Of the worker.

    Returns:
        As torch calls it.
    """
    import torch

    return f"cuda:{number % torch.cuda.device_count()}" if device == "cuda" else device
