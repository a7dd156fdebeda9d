"""Pages made from the records: RESULTS.md and the counts in the README."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.claim import SCALES, Claim
from experiments.criteria import Criterion
from experiments.evidence import POWER
from experiments.records import Record, load, markdown_row, record_path
from experiments.verdicts import ORDER, Verdict, verdict

BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"
PAPERS = {
    "demystifying_resnet": "Demystifying ResNet (1611.01186)",
    "noise_stability": "Identity Connections in Residual Nets Improve Noise Stability (1905.10944)",
    "diracnets": "DiracNets (1706.00388)",
    "every_layout": "Later papers on residual streams",
}
KIND_NAMES = {
    "paper": "claims of the papers",
    "extension": "extensions",
    "law": "laws of our own",
}
Claims = Mapping[str, Claim]


def results_page(claims: Claims, folder: Path, notes: Mapping[Path, str]) -> str:
    """Contents of RESULTS.md: counts by verdict, then every claim with all its records.

    ``notes`` tells of each record how old its criterion and its code are.
    """
    stand = _verdicts(claims, folder)
    parts = [
        "# Results",
        "Written by `python -m experiments report` from the records; not to be edited. "
        "[History](HISTORY.md) lists what changed after a result was known. The tests of one claim "
        "share an error of 5 % in each direction; all claims together do not.",
        _counted(claims, stand),
        _orders(stand, folder, notes),
        *(_section(claim, stand[claim.id], folder, notes) for claim in claims.values()),
    ]
    return "\n\n".join(parts) + "\n"


def counts(claims: Claims, folder: Path) -> str:
    """Table of the number of claims by verdict: of each paper and of all, extensions, laws."""
    return _counted(claims, _verdicts(claims, folder))


def _verdicts(claims: Claims, folder: Path) -> dict[str, Verdict]:
    """Verdicts by id; each reads a record with its arrays."""
    return {claim.id: verdict(claim, folder=folder) for claim in claims.values()}


def _counted(claims: Claims, stand: Mapping[str, Verdict]) -> str:
    of_papers = [claim.id for claim in claims.values() if claim.kind == "paper"]
    groups = {
        PAPERS.get(paper, paper): [c for c in of_papers if c.startswith(f"{paper}/")]
        for paper in dict.fromkeys(claim_id.split("/")[0] for claim_id in of_papers)
    }
    for kind, name in KIND_NAMES.items():
        groups[name] = [claim.id for claim in claims.values() if claim.kind == kind]
    words = Counter(each.word for each in stand.values())
    shown = [word for word in ORDER if word in words]
    head = ["| | " + " | ".join(shown) + " | all |", "|---" * (len(shown) + 2) + "|"]
    rows = []
    for name, group in groups.items():
        found = Counter(stand[claim_id].word for claim_id in group)
        if group:
            rows.append(markdown_row(name, *(str(found[word]) for word in shown), str(len(group))))
    return "\n".join(head + rows)


def _orders(stand: Mapping[str, Verdict], folder: Path, notes: Mapping[Path, str]) -> str:
    """Order of criterion and run of what is reproduced."""
    found = Counter(
        notes[record_path(each.record.claim, each.record.scale, folder)].split(";")[0]
        for each in stand.values()
        if each.record is not None and each.word == "reproduced"
    )
    told = "; ".join(f"{when}: {count}" for when, count in found.most_common())
    return f"Of what is reproduced, {told or 'nothing yet'}."


def _section(claim: Claim, stands: Verdict, folder: Path, notes: Mapping[Path, str]) -> str:
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
    cost = run.get("processor_seconds")
    processor = "" if cost is None else f" ({cost:.3g} s of a processor)"
    link = f"[record](records/{found.claim}.{found.scale}.json)"
    here = (run["hardware"], run["commit"])
    elsewhere = [g for g in run.get("parts", ()) if (g["hardware"], g["commit"]) != here]
    lines = [
        f"**{found.scale} scale**: {link}, {run['seconds']:.3g} s{processor} on {run['device']} "
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
    if test.seen is None:
        seen = "no power"
    elif test.kind == "sign":  # seen is a share beyond one half
        seen = f"sees {0.5 + test.seen:.0%} of the seeds on one side with power {POWER}"
    else:
        seen = f"sees {test.seen:.3g} with power {POWER}"
    more = f"; n = {test.decides} would decide" if test.decides else ""
    return f"{word} ({seen}{more})"


def _parts(group: Mapping[str, Any]) -> str:
    """Where and by what code some parts were computed."""
    count = f"{group['parts']} part{'s' if group['parts'] > 1 else ''}"
    where = group["hardware"] or group["device"]
    code = group["commit"][:12] if group["commit"] else "unknown commit"
    told = [group["precision"], f"torch {group['torch']}", code, group["age"]]
    return f"{count} on {where} ({', '.join(word for word in told if word)})"


def readme_with(readme: str, counted: str) -> str:
    """Replace the counts between the two markers of the README."""
    if (
        readme.count(BEGIN) != 1
        or readme.count(END) != 1
        or readme.index(BEGIN) > readme.index(END)
    ):
        raise ValueError(f"README.md: needs the lines {BEGIN} and {END}, once each, in this order")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{counted}\n\n{END}{rest.split(END)[1]}"
