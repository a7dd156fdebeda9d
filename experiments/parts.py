"""Parts of claims: what can be computed apart, here one by one or as a sweep that may be killed.

A ``compute`` with a parameter ``each`` hands it all its parts at once and gets their arrays, in
order; ``in_turn`` is its default.
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

__all__ = ["Each", "Part", "Swept", "UnfinishedError", "by_name", "in_turn"]

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Part(Task):
    """Settings from which some arrays of a claim follow; a cell of a sweep."""

    def arrays(self, device: str) -> Arrays:
        """What this part contributes."""
        raise NotImplementedError

    def run(self, folder: Path, device: str) -> Outcome:
        """The same for a sweep; a part that keeps something on the way has its own place."""
        arrays = {name: torch.as_tensor(value) for name, value in self.arrays(device).items()}
        return Outcome(numbers={}, arrays=arrays)


Each = Callable[[Sequence[Part], str], list[Arrays]]


def in_turn(parts: Sequence[Part], device: str = "cpu") -> list[Arrays]:
    """The arrays of all parts, computed here."""
    return [part.arrays(device) for part in parts]


def by_name(
    parts: Mapping[str, Sequence[Part]], each: Each, device: str
) -> dict[str, list[Arrays]]:
    """The arrays of groups of parts, all asked for at once."""
    found = iter(each([part for group in parts.values() for part in group], device))
    return {name: [next(found) for _ in group] for name, group in parts.items()}


class UnfinishedError(RuntimeError):
    """Parts are missing: they failed, or are another shard's."""

    def __init__(self, message: str, failed: int) -> None:
        super().__init__(message)
        self.failed = failed


class Swept:
    """The arrays of all parts, by a sweep: what its folder has is not computed again.

    ``options`` are those of ``rt.run_sweep``. After a call, ``count`` is the number of parts,
    ``work`` the seconds spent within them, whenever that was, and ``waited`` those of the call.
    """

    def __init__(self, folder: str | Path, **options: Any) -> None:
        self.folder, self.options = Path(folder), options
        self.count, self.work, self.waited = 0, 0.0, 0.0

    def __call__(self, parts: Sequence[Part], device: str) -> list[Arrays]:
        started = time.perf_counter()
        grid = {"grid": [{"task": _name(part), **part.content()} for part in parts]}
        report = rt.run_sweep(grid, self.folder, device=device, **self.options)
        found = [Results(self.folder).read(cell) for cell in grid_of(grid)]
        whole = [result for result in found if result is not None]
        if len(whole) < len(found):
            words = f"{len(whole)} of {len(found)} parts are done\n{report}"
            raise UnfinishedError(words, len(report.failed))
        self.count, self.waited = len(found), time.perf_counter() - started
        self.work = sum(about["seconds"] for _, about in whole)
        return [{name: t.numpy() for name, t in tensors.items()} for tensors, _ in whole]


def _name(part: Part) -> str:
    return f"{type(part).__module__}:{type(part).__qualname__}"
