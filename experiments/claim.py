"""A claim of a paper as data, and the record of a measurement of it."""

import inspect
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.digest import code_digest
from experiments.external_data import Need
from experiments.parts import Execution, Store, Stored, float32_by_default
from experiments.provenance import run_information
from resid_theory._check import check_choice
from resid_theory.runtime import store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECORDS = Path(__file__).resolve().parent / "records"
SCALES = ("quick", "short", "single", "paper")
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Verdict:
    """One criterion of a claim, with the expected and the measured value.

    Attributes:
        criterion: The compared quantity, in words or a formula.
        expected: The threshold and its origin; a number is converted to text.
        measured: The measured number, with spread and count where there are several; likewise.
        passed: True if the criterion holds.
    """

    criterion: str
    expected: str
    measured: str
    passed: bool

    def __post_init__(self) -> None:
        # Text, because a verdict is compared with the stored one and JSON has no infinity.
        for name in ("expected", "measured"):
            object.__setattr__(self, name, _text(getattr(self, name)))
        object.__setattr__(self, "passed", bool(self.passed))


def _text(value: object) -> str:
    return f"{float(value):.6g}" if isinstance(value, (float, np.floating)) else str(value)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One figure, table or theorem of a paper.

    Attributes:
        id: ``"<paper>/<claim>"``, lower case with underscores.
        source: Authors, version read, theorem, equation or figure.
        says: The assertion of the paper, in one sentence.
        settings: Keyword arguments of ``compute`` by scale: ``"quick"`` (CPU, at most 4 s),
            ``"short"`` (CPU, at most 1 h), ``"single"`` (the paper's recipe with one seed and the
            fewest depths that carry the sentence), ``"paper"``. The reserved key ``"scaled"``
            describes how far a scale falls short of the paper; it is not passed to ``compute``.
        compute: Computes named arrays from settings; pure, with seeds in the settings. A parameter
            ``device`` receives the device of the run; with a parameter ``each``, its parts can be
            cells of a sweep.
        judge: Computes verdicts from the arrays.
        draw: Draws the arrays in an empty figure; computes nothing.
        needs: Data without which a scale is skipped, by scale.
    """

    id: str
    source: str
    says: str
    settings: Mapping[str, Mapping[str, object]]
    compute: Callable[..., Arrays]
    judge: Callable[[Arrays], Sequence[Verdict]]
    draw: Callable[["Figure", Arrays], None]
    needs: Mapping[str, Need] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+/[a-z0-9_]+", self.id):
            raise ValueError(f"id: got {self.id!r}, needs '<paper>/<claim>' in lower case")
        if not self.settings:
            raise ValueError(f"settings: {self.id} has none, needs a scale among {SCALES}")
        for scale in (*self.settings, *self.needs):
            check_choice("scale", scale, SCALES if scale in self.settings else list(self.settings))

    def takes(self, argument: str) -> bool:
        """True if ``compute`` has a parameter of this name that is no setting."""
        known = argument in inspect.signature(self.compute).parameters
        return known and not any(argument in given for given in self.settings.values())

    def missing(self, scale: str) -> str:
        """Reason why a scale cannot be run here; empty if it can."""
        return self.needs[scale].missing() if scale in self.needs else ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """Measurement of a claim at one scale.

    Attributes:
        claim: Id of the claim.
        scale: A name in ``SCALES``.
        settings: The settings of that scale at the time of the run, as read back from JSON.
        arrays: Result of ``compute``.
        verdicts: Result of ``judge`` at the time of the run.
        run: Commit, digest of the code that ``compute`` runs through, device, hardware, threads,
            versions, seconds.
    """

    claim: str
    scale: str
    settings: Mapping[str, object]
    arrays: Arrays
    verdicts: tuple[Verdict, ...]
    run: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """True if every criterion holds."""
        return all(verdict.passed for verdict in self.verdicts)

    def __repr__(self) -> str:
        """One line, because the arrays may be large."""
        held = sum(verdict.passed for verdict in self.verdicts)
        return f"Record({self.claim!r}, {self.scale!r}: {held} of {len(self.verdicts)} hold)"

    def _repr_markdown_(self) -> str:
        """The verdicts as a table, for notebooks."""
        rows = [
            f"| {cell(v.criterion)} | {cell(v.expected)} | {cell(v.measured)} "
            f"| {'yes' if v.passed else '**no**'} |"
            for v in self.verdicts
        ]
        head = ["| criterion | expected | measured | holds |", "|---|---|---|---|"]
        return "\n".join([f"`{self.claim}`, {self.scale} scale", "", *head, *rows])


def cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


# Running -----------------------------------------------------------------------------------------


def measure(claim: Claim, scale: str, *, device: str = "cpu", each: Stored | None = None) -> Record:
    """Compute and judge a claim at one scale; nothing is written.

    ``each`` gives the parts of a claim that has parts; the recorded seconds are then those spent
    on all parts, wherever and whenever they were computed. By default committed parts are read and
    the others computed here.
    """
    given = dict(claim.settings[check_choice("scale", scale, list(claim.settings))])
    settings = _as_json(given)
    given.pop("scaled", None)
    device = device if claim.takes("device") else "cpu"
    given |= {"device": device} if claim.takes("device") else {}
    if claim.takes("each"):
        each = each or Stored(Store(None), Execution(device=device))
        given["each"] = each
    code = code_digest(claim.compute)  # before it runs: sources may be edited meanwhile
    start = time.perf_counter()
    with float32_by_default():
        arrays = claim.compute(**given)
    seconds, parts = time.perf_counter() - start, each.summary() if each is not None else []
    if each is not None:
        seconds += sum(group["seconds"] for group in parts) - each.seconds
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    return Record(
        claim=claim.id,
        scale=scale,
        settings=settings,
        arrays=arrays,
        verdicts=_judged(claim, arrays),
        run={
            **run_information(device, seconds),
            "code": code,
            **({"parts": parts} if parts else {}),
        },
    )


def record(
    claim: Claim,
    scale: str,
    *,
    folder: str | Path = RECORDS,
    device: str = "cpu",
    each: Stored | None = None,
) -> Record:
    """Compute and judge a claim at one scale and write the record under ``folder``."""
    found = measure(claim, scale, device=device, each=each)
    path = record_path(claim.id, scale, folder)
    arrays = path.with_suffix(".npz")
    # Arrays first: after a crash in between, the old JSON has another checksum, which is noticed.
    sha256 = store.write_arrays(arrays, found.arrays)
    content = {
        "claim": claim.id,
        "scale": scale,
        "settings": found.settings,
        "verdicts": [asdict(verdict) for verdict in found.verdicts],
        "arrays": {"file": arrays.name, "sha256": sha256},
        "run": found.run,
    }
    store.write_json(path, content)
    return found


def live(claim: Claim, scale: str = "quick", *, folder: str | Path | None = None) -> Record:
    """Measure now, or read the record of an earlier call if ``folder`` has one.

    ``folder`` defaults to ``$RESID_THEORY_LIVE``; with it, the tests of one session and the
    notebooks that they execute share their runs.
    """
    folder = folder or os.environ.get("RESID_THEORY_LIVE")
    if not folder:
        return measure(claim, scale)
    if not record_path(claim.id, scale, folder).exists():
        record(claim, scale, folder=folder)
    return load(claim, scale, folder=folder)


def _judged(claim: Claim, arrays: Arrays) -> tuple[Verdict, ...]:
    verdicts = tuple(claim.judge(arrays))
    if not verdicts or not all(isinstance(verdict, Verdict) for verdict in verdicts):
        raise ValueError(f"judge: {claim.id} returned {verdicts!r}, needs at least one Verdict")
    return verdicts


def _as_json(settings: Mapping[str, object]) -> Any:
    return json.loads(json.dumps(settings))


# Reading -----------------------------------------------------------------------------------------


def record_path(claim_id: str, scale: str, folder: str | Path = RECORDS) -> Path:
    """Path of the JSON file of a record; its arrays are beside it as ``.npz``."""
    return Path(folder) / f"{claim_id}.{scale}.json"


def load(claim: Claim | str, scale: str, *, folder: str | Path = RECORDS) -> Record:
    """Read a record and verify the checksum of its arrays.

    Raises FileNotFoundError if there is no record, ValueError if a file is damaged.
    """
    claim_id = claim if isinstance(claim, str) else claim.id
    path = record_path(claim_id, check_choice("scale", scale, SCALES), folder)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no {scale} record of {claim_id}; "
            f"make one with: python -m experiments run {claim_id} --scale {scale}"
        )
    content = store.read_json(path)
    try:
        return Record(
            claim=content["claim"],
            scale=content["scale"],
            settings=content["settings"],
            arrays=store.read_arrays(
                path.with_name(content["arrays"]["file"]), sha256=content["arrays"]["sha256"]
            ),
            verdicts=tuple(Verdict(**verdict) for verdict in content["verdicts"]),
            run=content["run"],
        )
    except (KeyError, TypeError, FileNotFoundError) as error:
        raise ValueError(f"{path}: incomplete record ({error!r}); run the claim again") from error


def faults(claim: Claim, found: Record) -> list[str]:
    """Differences between a record and the current claim: id, settings or verdicts."""
    wrong = []
    if (found.claim, found.scale) not in [(claim.id, scale) for scale in claim.settings]:
        return [f"is a record of {found.claim} at {found.scale} scale, which {claim.id} is not"]
    if found.settings != _as_json(claim.settings[found.scale]):
        wrong.append(f"settings were {found.settings}, are {claim.settings[found.scale]}")
    today = _judged(claim, found.arrays)
    if today != found.verdicts:
        wrong.append(f"verdicts were {found.verdicts}, are {today}")
    return wrong


@dataclass(frozen=True, kw_only=True, eq=False)
class Standing:
    """Status of a claim.

    Attributes:
        word: ``"reproduced"``, ``"not reproduced"``, ``"scaled down"`` or ``"pending"``.
        detail: Difference from the paper if scaled down, missing data if pending; else empty.
        record: The record of the largest scale that was run; None if there is none.
    """

    word: str
    detail: str
    record: Record | None


def standing(claim: Claim, *, folder: str | Path = RECORDS) -> Standing:
    """Status of a claim, from the record of its largest scale."""
    scales = [
        s for s in SCALES if s in claim.settings and record_path(claim.id, s, folder).exists()
    ]
    if not scales:
        return Standing(word="pending", detail=_pending(claim) if claim.needs else "", record=None)
    found = load(claim, scales[-1], folder=folder)
    detail = _shortfall(claim, found)
    if not found.passed:
        return Standing(word="not reproduced", detail=detail, record=found)
    return Standing(word="scaled down" if detail else "reproduced", detail=detail, record=found)


def _shortfall(claim: Claim, found: Record) -> str:
    parts = [str(found.settings["scaled"])] if "scaled" in found.settings else []
    if found.scale != "paper":
        parts.append(_pending(claim) if "paper" in claim.settings else f"{found.scale} scale only")
    return "; ".join(parts)


def _pending(claim: Claim) -> str:
    what = f": needs {claim.needs['paper'].what}" if "paper" in claim.needs else " yet"
    return f"paper scale not run{what}"


# Drawing -----------------------------------------------------------------------------------------


def picture(claim: Claim, found: Record, *, width: float = 7.0, height: float = 4.5) -> "Figure":
    """Draw the figure of a claim from a record; sizes in inches."""
    from matplotlib import pyplot  # its import takes a second, which other calls do not need

    figure = pyplot.figure(figsize=(width, height), layout="constrained")
    claim.draw(figure, found.arrays)
    pyplot.close(figure)  # a notebook shows the returned figure; an open one would appear twice
    return figure
