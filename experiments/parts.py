"""Independent parts of a claim, computed one by one or as an interruptible sweep.

A ``compute`` with a parameter ``each`` passes it all its parts at once and receives their arrays in
the same order; the default is ``in_turn``.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import resid_theory as rt
from resid_theory.sweep import Outcome, Task, grid_of
from resid_theory.sweep.results import Results

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Part(Task):
    """Settings that determine some arrays of a claim; one cell of a sweep."""

    def arrays(self, device: str) -> Arrays:
        """Compute the arrays of this part."""
        raise NotImplementedError

    def run(self, folder: Path, device: str) -> Outcome:
        """Compute the arrays as the result of a cell; ``folder`` is not used."""
        arrays = {name: torch.as_tensor(value) for name, value in self.arrays(device).items()}
        return Outcome(numbers={}, arrays=arrays)


Each = Callable[[Sequence[Part], str], list[Arrays]]


def in_turn(parts: Sequence[Part], device: str = "cpu") -> list[Arrays]:
    """Compute the arrays of all parts in this process."""
    return [part.arrays(device) for part in parts]


def by_name(
    parts: Mapping[str, Sequence[Part]], each: Each, device: str
) -> dict[str, list[Arrays]]:
    """Compute the arrays of named groups of parts in one call of ``each``."""
    found = iter(each([part for group in parts.values() for part in group], device))
    return {name: [next(found) for _ in group] for name, group in parts.items()}


class UnfinishedError(RuntimeError):
    """Some parts failed or belong to another shard."""

    def __init__(self, message: str, failed: int) -> None:
        super().__init__(message)
        self.failed = failed


class Swept:
    """Computes the arrays of all parts by a sweep; parts finished in its folder are not recomputed.

    ``options`` are those of ``rt.run_sweep``. After a call, ``count`` is the number of parts,
    ``work`` the seconds spent on all of them, in this and earlier calls, and ``waited`` the
    duration of this call.
    """

    def __init__(self, folder: str | Path, **options: Any) -> None:
        self.folder, self.options = Path(folder), options
        self.count, self.work, self.waited = 0, 0.0, 0.0

    def __call__(self, parts: Sequence[Part], device: str) -> list[Arrays]:
        started = time.perf_counter()
        cells = [
            {"task": f"{type(part).__module__}:{type(part).__qualname__}", **part.content()}
            for part in parts
        ]
        grid = {"grid": cells}
        report = rt.run_sweep(grid, self.folder, device=device, **self.options)
        found = [Results(self.folder).read(cell) for cell in grid_of(grid)]
        whole = [result for result in found if result is not None]
        if len(whole) < len(found):
            words = f"{len(whole)} of {len(found)} parts are done\n{report}"
            raise UnfinishedError(words, len(report.failed))
        self.count, self.waited = len(found), time.perf_counter() - started
        self.work = sum(about["seconds"] for _, about in whole)
        return [{name: t.numpy() for name, t in tensors.items()} for tensors, _ in whole]
