"""Pages made from the records: RESULTS.md and the table of the README."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.claim import KINDS, SCALES, Claim
from experiments.criteria import Criterion
from experiments.evidence import POWER
from experiments.records import Record, load, markdown_row, record_path
from experiments.verdicts import ORDER, verdict

BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"
Claims = Mapping[str, Claim]


def table(claims: Claims, folder: Path, *, base: str = "experiments/records") -> str:
    """Counts and table of the claims in Markdown; ``base`` is the prefix of links to records.

    A claim whose criteria all hold has one row with its first criterion; any other claim has a row
    for every criterion that does not hold.
    """
    head = [
        "| claim | source | criterion | expected | ours | verdict | scale, hardware |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = [row for claim in claims.values() for row in _rows(claim, folder, base)]
    return "\n".join([counts(claims, folder), "", *head, *rows])


def _rows(claim: Claim, folder: Path, base: str) -> list[str]:
    stands = verdict(claim, folder=folder)
    if stands.record is None:
        return [
            markdown_row(claim.id, claim.source, claim.says, "", "", stands.word, stands.detail)
        ]
    scale, run, criteria = stands.record.scale, stands.record.run, stands.record.criteria
    link = f"[{claim.id}]({base}/{claim.id}.{scale}.json)"
    note = f" ({stands.detail})" if stands.detail else ""
    place = f"{run['threads']} threads" if run["device"] == "cpu" else str(run["device"])
    where = f"{scale}{note}, {run['hardware']}, {place}"
    failing = [v for v in criteria if not v.holds]
    held = f"{stands.word}, {len(criteria) - len(failing)} of {len(criteria)} criteria hold"
    held = f"**{held}**" if failing else held
    first, *others = [(v.criterion, v.expected, v.measured) for v in failing or criteria[:1]]
    return [markdown_row(link, claim.source, *first, held, where)] + [
        markdown_row("", "", *row, "", "") for row in others
    ]


def results_page(claims: Claims, folder: Path, notes: Mapping[Path, str]) -> str:
    """Contents of RESULTS.md: counts by verdict, then every claim with all its records.

    ``notes`` tells of each record how old its criterion and its code are.
    """
    parts = [
        "# Results",
        "Written by `python -m experiments report` from the records; not to be edited. "
        "[History](HISTORY.md) lists what changed after a result was known.",
        counts(claims, folder),
        *(_section(claim, folder, notes) for claim in claims.values()),
    ]
    return "\n\n".join(parts) + "\n"


def counts(claims: Claims, folder: Path) -> str:
    """Table of the number of claims by kind and verdict."""
    kinds = {"paper": "claims of the papers", "extension": "extensions", "law": "laws of our own"}
    found = Counter((c.kind, verdict(c, folder=folder).word) for c in claims.values())
    words = [word for word in ORDER if any(found[kind, word] for kind in KINDS)]
    head = ["| | " + " | ".join(words) + " | all |", "|---" * (len(words) + 2) + "|"]
    rows = [
        markdown_row(kinds[kind], *(str(found[kind, word]) for word in words), str(total))
        for kind in KINDS
        if (total := sum(found[kind, word] for word in words))
    ]
    return "\n".join(head + rows)


def _section(claim: Claim, folder: Path, notes: Mapping[Path, str]) -> str:
    stands = verdict(claim, folder=folder)
    detail = f" ({stands.detail})" if stands.detail else ""
    at = f", {stands.record.scale} scale" if stands.record else ""
    parts = [f"## {claim.id}: {stands.word}{at}{detail}", f"{claim.says} ({claim.source})"]
    for scale in reversed(SCALES):
        path = record_path(claim.id, scale, folder)
        if scale in claim.settings and path.exists():
            parts.append(_evidence(load(claim, scale, folder=folder), notes[path]))
    return "\n\n".join(parts)


def _evidence(found: Record, note: str) -> str:
    run = found.run
    code = run["commit"][:12] if run["commit"] else "unknown commit"
    changed = " with uncommitted changes" if run["dirty"] else ""
    link = f"[record](records/{found.claim}.{found.scale}.json)"
    here = (run["hardware"], run["commit"])
    elsewhere = [g for g in run.get("parts", ()) if (g["hardware"], g["commit"]) != here]
    lines = [
        f"**{found.scale} scale**: {link}, {run['seconds']:.3g} s on {run['device']} "
        f"({run['hardware']}, {run['threads']} threads), torch {run['torch']}, {code}{changed}."
        + "".join(f" {_parts(group)}." for group in elsewhere)
        + f" {note[0].upper()}{note[1:]}.",
        "",
        "| criterion | expected | ours | outcome |",
        "|---|---|---|---|",
    ]
    return "\n".join(
        lines
        + [markdown_row(v.criterion, v.expected, v.measured, _outcome(v)) for v in found.criteria]
    )


def _outcome(criterion: Criterion) -> str:
    """Outcome with what the test could see, and the size that would decide."""
    word = criterion.outcome if criterion.holds else f"**{criterion.outcome}**"
    test = criterion.test
    if test is None:
        return word
    seen = "no power" if test.seen is None else f"sees {test.seen:.3g} with power {POWER}"
    more = f"; n = {test.decides} would decide" if test.decides else ""
    return f"{word} ({seen}{more})"


def _parts(group: Mapping[str, Any]) -> str:
    """Where and by what code some parts were computed."""
    count = f"{group['parts']} part{'s' if group['parts'] > 1 else ''}"
    where = group["hardware"] or group["device"]
    code = group["commit"][:12] if group["commit"] else "unknown commit"
    told = [group["precision"], f"torch {group['torch']}", code, group["age"]]
    return f"{count} on {where} ({', '.join(word for word in told if word)})"


def readme_with(readme: str, claims_table: str) -> str:
    """Replace the table between the two markers of the README."""
    if (
        readme.count(BEGIN) != 1
        or readme.count(END) != 1
        or readme.index(BEGIN) > readme.index(END)
    ):
        raise ValueError(f"README.md: needs the lines {BEGIN} and {END}, once each, in this order")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{claims_table}\n\n{END}{rest.split(END)[1]}"
