"""Parts of claims: settings that determine some arrays, and the stores of finished parts.

A ``compute`` with a parameter ``each`` passes it all its parts in one call and receives their
arrays in the same order; the default is ``in_turn``. Claims that ask for equal parts share them.
"""

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from experiments.digest import code_digest
from experiments.provenance import ROOT, run_information
from resid_theory.runtime import store
from resid_theory.sweep import Outcome, Task
from resid_theory.sweep.results import Cell, Results

PARTS = ROOT / "out" / "parts"
COMMITTED = ROOT / "experiments" / "finished"
CHECKPOINTS = ROOT / "experiments" / "checkpoints"
WEIGHTS = "net."  # begins the names of arrays that are weights
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How to run a part; its result depends on it by round-off only.

    Attributes:
        device: A torch device.
        precision: Of a training, no coarser than its recipe allows. None takes the recipe's on a
            GPU and float32 on a CPU.
        stop: Asked with the number of steps done; True stops a part that can resume.
    """

    device: str = "cpu"
    precision: str | None = None
    stop: Callable[[int], bool] | None = None


class StoppedError(RuntimeError):
    """A part was stopped and can be resumed."""


@dataclass(frozen=True, kw_only=True)
class Part(Task):
    """Settings that determine some arrays of claims, on whatever machine they are computed.

    Attributes:
        VERSION: Raised by hand when equal settings determine other arrays than before.
    """

    VERSION: ClassVar[int] = 1

    @property
    def cell(self) -> Cell:
        """The cell of a store that holds this part."""
        return Cell(type(self).__name__, self)

    @property
    def key(self) -> str:
        """Hash of class, version and settings; neither of device nor of code."""
        return self.cell.key

    def content(self) -> dict[str, Any]:
        """The settings and the version."""
        return {**super().content(), "version": self.VERSION}

    def arrays(self, device: str) -> Arrays:
        """Compute the arrays of this part."""
        raise NotImplementedError

    def compute(self, execution: Execution, folder: Path | None = None) -> Arrays:
        """Compute the arrays; ``folder`` is for files that a stopped part resumes from."""
        return self.arrays(execution.device)

    def means(self, execution: Execution) -> dict[str, Any]:
        """What of the machine's freedom is used, for the record."""
        return {}

    def run(self, folder: Path, device: str) -> Outcome:
        """Compute the arrays as the result of a cell of a sweep."""
        arrays = self.compute(Execution(device=device), folder)
        return Outcome(numbers={}, arrays=_tensors(arrays))


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Compute as with torch's own default dtype: the caller's would change the numbers."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(value) for name, value in arrays.items()}


# Stores ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """A finished part.

    Attributes:
        arrays: Its arrays, with the weights if they were asked for.
        record: Device, hardware, versions, commit, digest of the code, seconds.
    """

    arrays: Arrays
    record: Mapping[str, Any]


class Store:
    """Finished parts: those of a folder, which is written to, and the committed ones.

    A part is a folder ``cells/<key>`` with ``result.json`` and the tensors that it names, and
    ``weights.json`` in the form of ``load_checkpoint`` if it has weights; those of a shipped net
    are in ``checkpoints/``, under the name that its record gives.

    Args:
        folder: None keeps nothing that is computed.
        committed: A second folder, which is only read.
    """

    def __init__(self, folder: str | Path | None = PARTS, committed: Path = COMMITTED) -> None:
        self.own = None if folder is None else Results(folder)
        self.committed = Results(committed)

    def find(self, part: Part, *, weights: bool = False) -> Finished | None:
        """A finished part, every byte verified; None if it is not there, or without weights."""
        for results in (self.own, self.committed):
            found = results and results.read(part.cell)
            if not results or not found:
                continue
            tensors, about = found
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            record = {**about["numbers"], "seconds": about["seconds"]}
            if weights:
                path = results.place(part.key) / "weights.json"
                if "checkpoint" in record:
                    path = CHECKPOINTS / f"{record['checkpoint']}.json"
                if not path.is_file():
                    continue
                held, _ = store.read_checkpoint(path)
                arrays |= {f"{WEIGHTS}{name}": tensor.numpy() for name, tensor in held.items()}
            return Finished(arrays=arrays, record=record)
        return None

    def compute(self, part: Part, execution: Execution) -> Finished:
        """Compute a part and keep it; a ValueError if another process computes it."""
        if self.own is None:
            return _computed(part, execution, None)
        place = self.own.place(part.key)
        with store.locked(place / ".lock", f"parts: another process computes {part.cell}"):
            done = _computed(part, execution, place)
            self.write(part, done)
        return done

    def write(self, part: Part, done: Finished) -> None:
        """Keep a finished part."""
        if self.own is None:
            raise ValueError("folder: this store has none, needs one to write to")
        weights = {
            name.removeprefix(WEIGHTS): array
            for name, array in done.arrays.items()
            if name.startswith(WEIGHTS)
        }
        if weights:
            about = {
                "kind": "net",
                "architecture": part.content().get("architecture"),
                "about": {"part": part.key},
            }
            path = self.own.place(part.key) / "weights.json"
            store.write_checkpoint(path, _tensors(weights), about)
        numbers = {name: value for name, value in done.record.items() if name != "seconds"}
        others = {n: a for n, a in done.arrays.items() if not n.startswith(WEIGHTS)}
        outcome = Outcome(numbers=numbers, arrays=_tensors(others))
        self.own.write(part.cell, outcome, done.record["seconds"])

    def fail(self, part: Part, error: Exception) -> None:
        """Keep why a part has no result."""
        if self.own is not None:
            self.own.fail(part.cell, f"{type(error).__name__}: {error}", traceback.format_exc())


def _computed(part: Part, execution: Execution, folder: Path | None) -> Finished:
    # The code before it runs, because sources may be edited meanwhile.
    code, started = code_digest(type(part)), time.perf_counter()
    arrays = part.compute(execution, folder)
    run = run_information(execution.device, time.perf_counter() - started)
    return Finished(arrays=arrays, record={**run, **part.means(execution), "code": code})


# Requests ----------------------------------------------------------------------------------------


class Each(Protocol):
    """Gives the arrays of parts, in order; with ``weights`` also those of trained nets."""

    def __call__(
        self, parts: Sequence[Any], device: str, *, weights: bool = False
    ) -> list[Arrays]: ...


class Stored:
    """Gives the arrays of parts from a store; those that are missing are computed.

    Attributes:
        records: Records of the parts given so far, by key.
        seconds: Spent in calls.

    Args:
        store: Where they are kept.
        execution: How to compute missing parts; None refuses to.
    """

    def __init__(self, store: Store, execution: Execution | None = None) -> None:
        self.store, self.execution = store, execution
        self.records: dict[str, Mapping[str, Any]] = {}
        self.seconds = 0.0

    def __call__(
        self, parts: Sequence[Part], device: str, *, weights: bool = False
    ) -> list[Arrays]:
        started = time.perf_counter()
        found = {}
        for key, part in {part.key: part for part in parts}.items():
            ready = self.store.find(part, weights=weights)
            if ready is None and self.execution is not None:
                ready = self.store.compute(part, self.execution)
            if ready is not None:
                found[key] = ready
        self.seconds += time.perf_counter() - started
        wanted = {part.key for part in parts}
        if len(found) < len(wanted):
            raise UnfinishedError(f"{len(found)} of {len(wanted)} parts are done")
        self.records |= {key: ready.record for key, ready in found.items()}
        return [found[part.key].arrays for part in parts]

    def summary(self) -> list[dict[str, Any]]:
        """Counts of the parts given so far, by where they were computed and by what code."""
        names = ("hardware", "device", "torch", "commit", "dirty", "code")
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for record in self.records.values():
            told = {name: record.get(name) for name in names}
            group = groups.setdefault(tuple(told.values()), {**told, "parts": 0, "seconds": 0.0})
            group["parts"] += 1
            group["seconds"] = round(group["seconds"] + record["seconds"], 3)
        return list(groups.values())


def in_turn(parts: Sequence[Part], device: str = "cpu", *, weights: bool = False) -> list[Arrays]:
    """Read committed parts, compute the others in this process, and keep nothing."""
    each = Stored(Store(None), Execution(device=device))
    return each(parts, device, weights=weights)


class UnfinishedError(RuntimeError):
    """Some parts are not there."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A part that a claim asks for at one scale, with its weights or without."""

    part: Part
    claim: str
    scale: str
    weights: bool


class _Noted(BaseException):
    """Ends a ``compute`` at its call of ``each``; no Exception, so that no claim catches it."""


def requests_of(claim: Any, scale: str) -> list[Request]:
    """The parts that a claim asks for at a scale; nothing is computed."""
    if not claim.takes("each"):
        return []
    noted: list[Request] = []

    def each(parts: Sequence[Part], device: str, *, weights: bool = False) -> list[Arrays]:
        noted.extend(Request(part=p, claim=claim.id, scale=scale, weights=weights) for p in parts)
        raise _Noted

    given = {k: v for k, v in claim.settings[scale].items() if k != "scaled"}
    try:
        claim.compute(**given, each=each)
    except _Noted:
        pass
    return noted


def by_name(
    parts: Mapping[Any, Sequence[Part]], each: Each, device: str, *, weights: bool = False
) -> dict[Any, list[Arrays]]:
    """Compute the arrays of named groups of parts in one call of ``each``."""
    found = iter(
        each([part for group in parts.values() for part in group], device, weights=weights)
    )
    return {name: [next(found) for _ in group] for name, group in parts.items()}
