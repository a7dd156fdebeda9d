"""Records of measurements of claims: arrays, criteria, and the run that made them."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.claim import SCALES, Arrays, Claim
from experiments.criteria import Criterion, decided
from experiments.digest import code_digest
from experiments.parts import Execution, Store, Stored, float32_by_default
from experiments.provenance import clocks, commit_of_code, run_information
from resid_theory._check import check_choice
from resid_theory.runtime import store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RECORDS = Path(__file__).resolve().parent / "records"
MANIFEST = "manifest.json"
RESULT = ("settings", "criteria", "judged", "arrays", "run")  # of a record: one result


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """Measurement of a claim at one scale.

    Attributes:
        claim: Id of the claim.
        scale: A name in ``SCALES``.
        settings: The settings of that scale at the time of the run, as read back from JSON.
        arrays: Result of ``compute``.
        criteria: Result of ``judge`` at the time of the run.
        run: Commit, digest of the code that ``compute`` runs through, device, hardware, threads,
            versions, seconds.
    """

    claim: str
    scale: str
    settings: Mapping[str, object]
    arrays: Arrays
    criteria: tuple[Criterion, ...]
    run: Mapping[str, Any]

    @property
    def outcome(self) -> str:
        """``"fails"`` if a criterion does, else ``"undecided"`` if one is, else ``"holds"``."""
        found = {criterion.outcome for criterion in self.criteria}
        return next(word for word in ("fails", "undecided", "holds") if word in found)

    def __repr__(self) -> str:
        """One line, because the arrays may be large."""
        held = sum(bool(criterion.holds) for criterion in self.criteria)
        return f"Record({self.claim!r}, {self.scale!r}: {held} of {len(self.criteria)} hold)"

    def _repr_markdown_(self) -> str:
        """The criteria as a table, for notebooks."""
        rows = [
            f"| {cell(v.criterion)} | {cell(v.expected)} | {cell(v.measured)} "
            f"| {v.outcome if v.holds else f'**{v.outcome}**'} |"
            for v in self.criteria
        ]
        head = ["| criterion | expected | measured | outcome |", "|---|---|---|---|"]
        return "\n".join([f"`{self.claim}`, {self.scale} scale", "", *head, *rows])


def cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def markdown_row(*cells: str) -> str:
    """Join cells to a row of a Markdown table."""
    return f"| {' | '.join(cell(text) for text in cells)} |"


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
    start = clocks()
    with float32_by_default():
        arrays = claim.compute(**given)
    spent, parts = clocks() - start, each.summary() if each is not None else []
    if each is not None:
        spent -= each.spent
    cost = [spent[0] + sum(group["seconds"] for group in parts)]
    if all(group["processor_seconds"] is not None for group in parts):
        cost.append(spent[1] + sum(group["processor_seconds"] for group in parts))
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    return Record(
        claim=claim.id,
        scale=scale,
        settings=settings,
        arrays=arrays,
        criteria=judged(claim, arrays),
        run={
            **run_information(device, *cost),
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
    earlier = _earlier(path)
    # Arrays first: after a crash in between, the old JSON has another checksum, which is noticed.
    sha256 = store.write_arrays(arrays, found.arrays)
    content = {
        "claim": claim.id,
        "scale": scale,
        "settings": found.settings,
        "criteria": [asdict(criterion) for criterion in found.criteria],
        "judged": _judging_run(claim),
        "arrays": {"file": arrays.name, "sha256": sha256},
        "run": found.run,
        "earlier": earlier,
    }
    store.write_json(path, content)
    return found


def judge_again(claim: Claim, scale: str, *, folder: str | Path = RECORDS) -> Record:
    """Judge the arrays of a record by today's criteria; the former result stays in it.

    Raises ValueError if the settings that computed the arrays have changed.
    """
    path = record_path(claim.id, scale, folder)
    found, settings = load(claim, scale, folder=folder), _as_json(claim.settings[scale])
    computed = [
        {k: v for k, v in each.items() if k != "scaled"} for each in (found.settings, settings)
    ]
    if computed[0] != computed[1]:
        raise ValueError(
            f"{path}: its settings were {computed[0]}, are {computed[1]}; run it again"
        )
    content = store.read_json(path)
    content |= {
        "earlier": _earlier(path),
        "settings": settings,
        "criteria": [asdict(criterion) for criterion in judged(claim, found.arrays)],
        "judged": _judging_run(claim),
    }
    store.write_json(path, content)
    return load(claim, scale, folder=folder)


def _earlier(path: Path) -> list[dict[str, Any]]:
    return results(store.read_json(path)) if path.exists() else []


def results(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All results of a record, the present one last: nothing that was found is forgotten."""
    return [*content.get("earlier", []), {name: content.get(name) for name in RESULT}]


def live(claim: Claim, scale: str = "quick", *, folder: str | Path | None = None) -> Record:
    """Measure now, or read the record of an earlier call if ``folder`` has one.

    ``folder`` defaults to ``$RESID_THEORY_LIVE``; with it, the tests of one session and the
    notebooks that they execute share records and parts. One process measures, others wait.
    """
    folder = folder or os.environ.get("RESID_THEORY_LIVE")
    if not folder:
        return measure(claim, scale)
    each = Stored(Store(Path(folder) / "parts"), Execution())
    with store.locked(record_path(claim.id, scale, folder).with_suffix(".lock")):
        if not record_path(claim.id, scale, folder).exists():
            record(claim, scale, folder=folder, each=each)
    return load(claim, scale, folder=folder)


def judged(claim: Claim, arrays: Arrays) -> tuple[Criterion, ...]:
    """Judge arrays by today's criteria; tests of samples are decided together."""
    criteria = tuple(claim.judge(arrays))
    if not criteria or not all(isinstance(criterion, Criterion) for criterion in criteria):
        raise ValueError(f"judge: {claim.id} returned {criteria!r}, needs at least one Criterion")
    return decided(criteria)


def judging(claim: Claim) -> Any:
    """What a claim's arrays are judged by, tests and their correction included: for its digest."""
    return partial(decided, claim.judge)


def _judging_run(claim: Claim) -> dict[str, Any]:
    commit, dirty = commit_of_code()
    return {"commit": commit, "dirty": dirty, "code": code_digest(judging(claim), own=True)}


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
            criteria=tuple(Criterion(**criterion) for criterion in content["criteria"]),
            run=content["run"],
        )
    except (KeyError, TypeError, FileNotFoundError) as error:
        raise ValueError(f"{path}: incomplete record ({error!r}); run the claim again") from error


def faults(claim: Claim, found: Record) -> list[str]:
    """Differences between a record and the current claim: id, settings or criteria."""
    wrong = []
    if (found.claim, found.scale) not in [(claim.id, scale) for scale in claim.settings]:
        return [f"is a record of {found.claim} at {found.scale} scale, which {claim.id} is not"]
    if found.settings != _as_json(claim.settings[found.scale]):
        wrong.append(f"settings were {found.settings}, are {claim.settings[found.scale]}")
    try:
        today = judged(claim, found.arrays)
    except Exception as error:  # a judge of other arrays may break in any way
        return [*wrong, f"today's criteria cannot judge its arrays ({error!r}); run it again"]
    if today != found.criteria:
        wrong.append(f"criteria were {found.criteria}, are {today}")
    return wrong


# Drawing -----------------------------------------------------------------------------------------


def picture(claim: Claim, found: Record, *, width: float = 7.0, height: float = 4.5) -> "Figure":
    """Draw the figure of a claim from a record; sizes in inches."""
    # Their import takes a second, which other calls do not need.
    from matplotlib import pyplot

    from resid_theory import plots

    with pyplot.rc_context(plots.style()):
        figure = pyplot.figure(figsize=(width, height), layout="constrained")
        claim.draw(figure, found.arrays)
        plots.finish(figure)
    pyplot.close(figure)  # a notebook shows the returned figure; an open one would appear twice
    return figure
