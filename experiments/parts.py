"""Parts of claims: settings that determine some arrays, and the stores of finished parts.

A ``compute`` with a parameter ``each`` passes it all its parts in one call and receives their
arrays in the same order; the default is ``in_turn``. Claims that ask for equal parts share them.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from experiments.digest import code_digest
from experiments.provenance import ROOT, clocks, run_information
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
        channels_last: Of a training; None takes its recipe's, on a GPU True in bfloat16.
        compile: Of a training; None takes its recipe's, on a GPU ``"graph"``.
        stop: Asked with the number of steps done; True stops a part that can resume.
    """

    device: str = "cpu"
    precision: str | None = None
    channels_last: bool | None = None
    compile: str | None = None
    stop: Callable[[int], bool] | None = None


class StoppedError(RuntimeError):
    """A part was stopped and can be resumed."""


class BusyError(RuntimeError):
    """Another process computes the part."""


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

    def means(self, execution: Execution, folder: Path | None = None) -> dict[str, Any]:
        """What of the machine's freedom is used, for the record."""
        return {}

    def spent(self, folder: Path | None) -> float:
        """Seconds of earlier, stopped computations in a folder."""
        return 0.0

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
        confirmed: Digest of the code that a replay agreed with.
    """

    arrays: Arrays
    record: Mapping[str, Any]
    confirmed: str | None = None

    def age(self, part: Part) -> str:
        """``"today's code"``, ``"older code, confirmed"`` or ``"older code"``."""
        today = code_digest(type(part))
        if today is not None and self.record.get("code") == today:
            return "today's code"
        known = today is not None and self.confirmed == today
        return "older code, confirmed" if known else "older code"


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
            note = results.place(part.key) / "confirmed.json"
            confirmed = store.read_json(note)["code"] if note.is_file() else None
            return Finished(arrays=arrays, record=record, confirmed=confirmed)
        return None

    def confirm(self, part: Part, note: Mapping[str, Any]) -> None:
        """Keep the answer of a replay beside the part, wherever it is."""
        for results in (self.own, self.committed):
            if results and results.is_done(part.cell):
                store.write_json(results.place(part.key) / "confirmed.json", note)
                return

    def compute(self, part: Part, execution: Execution) -> Finished:
        """Compute a part and keep it; a BusyError if another process computes it."""
        if self.own is None:
            return _computed(part, execution, None)
        with ExitStack() as stack:
            try:
                words = f"another process computes {part.cell}"
                stack.enter_context(store.locked(self.own.place(part.key) / ".lock", words))
            except ValueError as error:
                raise BusyError(str(error)) from error
            return self._kept(part, execution)

    def find_or_compute(self, part: Part, execution: Execution, *, weights: bool) -> Finished:
        """The part; waits for another process that computes it."""
        found = self.find(part, weights=weights)
        if found is not None or self.own is None:
            return found or self.compute(part, execution)
        with store.locked(self.own.place(part.key) / ".lock"):
            return self.find(part, weights=weights) or self._kept(part, execution)

    def _kept(self, part: Part, execution: Execution) -> Finished:
        assert self.own is not None
        place = self.own.place(part.key)
        done = _computed(part, execution, place)
        self.write(part, done)
        for path in place.iterdir():  # what only a stopped part needs
            if path.is_dir():
                rmtree(path)
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
    code, means = code_digest(type(part)), part.means(execution, folder)
    earlier, started = part.spent(folder), clocks()
    arrays = part.compute(execution, folder)
    seconds, processor = clocks() - started
    run = run_information(execution.device, earlier + seconds, None if earlier else processor)
    return Finished(arrays=arrays, record={**run, **means, "code": code})


# Requests ----------------------------------------------------------------------------------------


class Each(Protocol):
    """Gives the arrays of parts, in order; with ``weights`` also those of trained nets."""

    def __call__(
        self, parts: Sequence[Any], device: str, *, weights: bool = False
    ) -> list[Arrays]: ...


class Stored:
    """Gives the arrays of parts from a store; those that are missing are computed.

    Attributes:
        given: Parts given so far, by key.
        spent: Seconds spent in calls, by both clocks.

    Args:
        store: Where they are kept.
        execution: How to compute missing parts; None refuses to.
    """

    def __init__(self, store: Store, execution: Execution | None = None) -> None:
        self.store, self.execution = store, execution
        self.given: dict[str, tuple[Part, Finished]] = {}
        self.spent = np.zeros(2)

    def __call__(
        self, parts: Sequence[Part], device: str, *, weights: bool = False
    ) -> list[Arrays]:
        started = clocks()
        found = {}
        wanted = {part.key: part for part in parts}
        for key, part in wanted.items():
            if self.execution is None:
                ready = self.store.find(part, weights=weights)
            else:
                ready = self.store.find_or_compute(part, self.execution, weights=weights)
            if ready is not None:
                found[key] = ready
        self.spent += clocks() - started
        if len(found) < len(wanted):
            words = " with their weights" if weights else ""
            raise UnfinishedError(f"{len(found)} of {len(wanted)} parts are done{words}")
        self.given |= {key: (part, found[key]) for key, part in wanted.items()}
        return [found[part.key].arrays for part in parts]

    def summary(self) -> list[dict[str, Any]]:
        """Counts of the parts given so far, by where they were computed and by what code."""
        names = ("hardware", "device", "torch", "precision", "commit", "dirty", "code")
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for part, done in self.given.values():
            record = done.record
            told = {name: record.get(name) for name in names} | {"age": done.age(part)}
            none = {"parts": 0, "seconds": 0.0, "processor_seconds": 0.0}
            group = groups.setdefault(tuple(told.values()), {**told, **none})
            group["parts"] += 1
            for clock in ("seconds", "processor_seconds"):
                both = (group[clock], record.get(clock))
                group[clock] = None if None in both else round(sum(both), 3)
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
        return noted
    raise ValueError(f"compute: {claim.id} has a parameter each, needs to call it")


def by_name(
    parts: Mapping[Any, Sequence[Part]], each: Each, device: str, *, weights: bool = False
) -> dict[Any, list[Arrays]]:
    """Compute the arrays of named groups of parts in one call of ``each``."""
    found = iter(
        each([part for group in parts.values() for part in group], device, weights=weights)
    )
    return {name: [next(found) for _ in group] for name, group in parts.items()}
