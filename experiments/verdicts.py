"""Verdicts of claims, by the record of their largest scale."""

from dataclasses import dataclass
from pathlib import Path

from experiments.claim import SCALES, Claim
from experiments.records import RECORDS, Record, load, record_path

# By outcome of the record: at the paper's scale, and below it.
WORDS = {
    "holds": ("reproduced", "holds so far"),
    "fails": ("refuted", "fails so far"),
    "undecided": ("inconclusive", "inconclusive"),
}
OWN_WORDS = {**WORDS, "holds": ("holds", "holds so far")}  # of what no paper says
NOT_RUN = "not run"
ORDER = ("reproduced", "holds", "refuted", "inconclusive", "holds so far", "fails so far", NOT_RUN)


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """Verdict of a claim.

    Attributes:
        word: ``"reproduced"`` (of a paper's claim; ``"holds"`` of others) or ``"refuted"`` at the
            paper's scale, ``"holds so far"`` or ``"fails so far"`` below it, ``"inconclusive"`` if
            a sample decides neither, ``"not run"``.
        detail: Difference from the paper's scale, or the data that it needs; else empty.
        record: The record that decides; None if there is none.
    """

    word: str
    detail: str
    record: Record | None


def verdict(claim: Claim, *, folder: str | Path = RECORDS) -> Verdict:
    """Verdict of a claim by the record of its largest scale; a quick scale has none."""
    scales = [
        scale
        for scale in SCALES
        if scale != "quick"
        and scale in claim.settings
        and record_path(claim.id, scale, folder).exists()
    ]
    if not scales:
        return Verdict(word=NOT_RUN, detail=_pending(claim) if claim.needs else "", record=None)
    found = load(claim, scales[-1], folder=folder)
    detail = _shortfall(claim, found)
    words = WORDS if claim.kind == "paper" else OWN_WORDS
    return Verdict(word=words[found.outcome][bool(detail)], detail=detail, record=found)


def _shortfall(claim: Claim, found: Record) -> str:
    parts = [str(found.settings["scaled"])] if "scaled" in found.settings else []
    if found.scale != "paper":
        parts.append(_pending(claim) if "paper" in claim.settings else f"{found.scale} scale only")
    return "; ".join(parts)


def _pending(claim: Claim) -> str:
    what = f": needs {claim.needs['paper'].what}" if "paper" in claim.needs else " yet"
    return f"paper scale not run{what}"
