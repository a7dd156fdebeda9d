"""Run, check and report the claims of the papers: python -m experiments VERB."""

import argparse
import sys
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments import part_verbs
from experiments.claim import KINDS, SCALES, Claim
from experiments.criteria import Criterion
from experiments.digest import code_digest
from experiments.lease import lease_verbs
from experiments.parts import (
    PARTS,
    BusyError,
    Execution,
    StoppedError,
    Store,
    Stored,
    UnfinishedError,
)
from experiments.provenance import ROOT
from experiments.records import (
    RECORDS,
    Record,
    cell,
    faults,
    judge_again,
    load,
    record,
    record_path,
)
from experiments.registry import CLAIMS, select
from experiments.verdicts import ORDER, verdict
from resid_theory.runtime import store

RESULTS = ROOT / "experiments" / "RESULTS.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- claims:begin -->", "<!-- claims:end -->"
Claims = Mapping[str, Claim]


# Checking ----------------------------------------------------------------------------------------


def all_faults(claims: Claims, folder: Path) -> dict[str, list[str]]:
    """Faults of every invalid record under a folder, by path."""
    found = {path: _faults_of(claims, folder, path) for path in sorted(folder.rglob("*.json"))}
    for arrays in sorted(folder.rglob("*.npz")):
        if not arrays.with_suffix(".json").exists():
            found[arrays] = ["has no .json beside it"]
    return {str(path): wrong for path, wrong in found.items() if wrong}


def _faults_of(claims: Claims, folder: Path, path: Path) -> list[str]:
    claim_id, _, scale = path.relative_to(folder).with_suffix("").as_posix().rpartition(".")
    if claim_id not in claims:
        return [f"no claim is named {claim_id!r}"]
    try:
        return faults(claims[claim_id], load(claim_id, scale, folder=folder))
    except ValueError as error:
        return [str(error)]


def _is_valid(claim: Claim, scale: str, folder: Path) -> bool:
    try:
        return not faults(claim, load(claim, scale, folder=folder))
    except (FileNotFoundError, ValueError):
        return False


# Reporting ---------------------------------------------------------------------------------------


def table(claims: Claims, folder: Path, *, base: str = "experiments/records") -> str:
    """Table of the claims in Markdown; ``base`` is the prefix of links to records.

    A claim whose criteria all hold has one row with its first criterion; any other claim has a row
    for every criterion that fails.
    """
    head = [
        "| claim | source | criterion | expected | ours | verdict | scale, hardware |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = [row for claim in claims.values() for row in _rows(claim, folder, base)]
    return "\n".join(head + rows)


def _rows(claim: Claim, folder: Path, base: str) -> list[str]:
    stands = verdict(claim, folder=folder)
    if stands.record is None:
        return [_row(claim.id, claim.source, claim.says, "", "", stands.word, stands.detail)]
    scale, run, criteria = stands.record.scale, stands.record.run, stands.record.criteria
    link = f"[{claim.id}]({base}/{claim.id}.{scale}.json)"
    note = f" ({stands.detail})" if stands.detail else ""
    place = f"{run['threads']} threads" if run["device"] == "cpu" else str(run["device"])
    where = f"{scale}{note}, {run['hardware']}, {place}"
    failing = [v for v in criteria if not v.holds]
    held = f"{stands.word}, {len(criteria) - len(failing)} of {len(criteria)} criteria hold"
    held = f"**{held}**" if failing else held
    first, *others = [(v.criterion, v.expected, v.measured) for v in failing or criteria[:1]]
    return [_row(link, claim.source, *first, held, where)] + [
        _row("", "", *row, "", "") for row in others
    ]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell(text) for text in cells)} |"


def results_page(claims: Claims, folder: Path) -> str:
    """Contents of RESULTS.md: counts by status, then every claim with all its records."""
    parts = [
        "# Results",
        "Written by `python -m experiments report` from the records; not to be edited.",
        counts(claims, folder),
        *(_section(claim, folder) for claim in claims.values()),
    ]
    return "\n\n".join(parts) + "\n"


def counts(claims: Claims, folder: Path) -> str:
    """Table of the number of claims by kind and verdict."""
    kinds = {"paper": "claims of the papers", "extension": "extensions", "law": "laws of our own"}
    found = Counter((c.kind, verdict(c, folder=folder).word) for c in claims.values())
    words = [word for word in ORDER if any(found[kind, word] for kind in KINDS)]
    head = ["| | " + " | ".join(words) + " | all |", "|---" * (len(words) + 2) + "|"]
    rows = [
        _row(kinds[kind], *(str(found[kind, word]) for word in words), str(total))
        for kind in KINDS
        if (total := sum(found[kind, word] for word in words))
    ]
    return "\n".join(head + rows)


def _section(claim: Claim, folder: Path) -> str:
    stands = verdict(claim, folder=folder)
    detail = f" ({stands.detail})" if stands.detail else ""
    at = f", {stands.record.scale} scale" if stands.record else ""
    parts = [f"## {claim.id}: {stands.word}{at}{detail}", f"{claim.says} ({claim.source})"]
    for scale in reversed(SCALES):
        if scale in claim.settings and record_path(claim.id, scale, folder).exists():
            parts.append(_evidence(load(claim, scale, folder=folder)))
    return "\n\n".join(parts)


def _evidence(found: Record) -> str:
    run = found.run
    code = run["commit"][:12] if run["commit"] else "unknown commit"
    changed = " with uncommitted changes" if run["dirty"] else ""
    link = f"[record](records/{found.claim}.{found.scale}.json)"
    here = (run["hardware"], run["commit"])
    elsewhere = [g for g in run.get("parts", ()) if (g["hardware"], g["commit"]) != here]
    lines = [
        f"**{found.scale} scale**: {link}, {run['seconds']:.3g} s on {run['device']} "
        f"({run['hardware']}, {run['threads']} threads), torch {run['torch']}, {code}{changed}."
        + "".join(f" {_parts(group)}." for group in elsewhere),
        "",
        "| criterion | expected | ours | outcome |",
        "|---|---|---|---|",
    ]
    return "\n".join(
        lines + [_row(v.criterion, v.expected, v.measured, _outcome(v)) for v in found.criteria]
    )


def _outcome(criterion: Criterion) -> str:
    """Outcome with what the test could see, and the size that would decide."""
    word = criterion.outcome if criterion.holds else f"**{criterion.outcome}**"
    test = criterion.test
    if test is None:
        return word
    seen = f"sees {test.seen:.3g}" if test.seen is not None else "sees nothing"
    more = f"; n = {test.decides} would decide" if test.decides else ""
    return f"{word} ({seen} with power 0.8{more})"


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


# Verbs -------------------------------------------------------------------------------------------


def _list(options: argparse.Namespace) -> int:
    for claim in select(options.claims):
        stands = verdict(claim, folder=options.records)
        print(f"{claim.id:44} {stands.word:15} {', '.join(claim.settings):20} {claim.source}")
        for scale in claim.settings:
            if claim.missing(scale):
                print(f"    {scale}: {claim.missing(scale)}")
    return 0


def _run(options: argparse.Namespace) -> int:
    """Run the selected claims; an error in one does not stop the others."""
    chosen = [claim for claim in select(options.claims) if options.scale in claim.settings]
    if options.pending:
        chosen = [c for c in chosen if not _is_valid(c, options.scale, options.records)]
    broken = []
    with part_verbs.Ending(options.minutes) as ending, TemporaryDirectory() as scratch:
        # Quick claims are computed anew: they test today's code.
        own = Store(scratch if options.scale == "quick" else options.parts)
        execution = None if options.only_ready else Execution(device=options.device, stop=ending)
        for number, claim in enumerate(chosen):
            if ending():
                print(f"the time is over; {len(chosen) - number} claims not begun")
                break
            if claim.missing(options.scale):
                print(f"{claim.id} ({options.scale}): skipped, {claim.missing(options.scale)}")
            elif not _recorded(claim, options, Stored(own, execution)):
                broken.append(claim.id)
    print(f"failed: {', '.join(broken)}" if broken else "done")
    return int(bool(broken))


def _recorded(claim: Claim, options: argparse.Namespace, each: Stored) -> bool:
    """Record a claim whose parts are there, or can be computed; False if it breaks."""
    print(f"{claim.id} ({options.scale}) ...", flush=True)
    try:
        given = dict(folder=options.records, device=options.device, each=each)
        _show(record(claim, options.scale, **given))
    except (BusyError, StoppedError, UnfinishedError) as error:
        print(f"no record is written: {error}")
    except Exception:
        traceback.print_exc()
        return False
    return True


def _show(found: Record) -> None:
    for criterion in found.criteria:
        mark = {"holds": "  ok  ", "fails": "  FAIL"}.get(criterion.outcome, "  ??  ")
        print(f"{mark} {criterion.criterion}: {criterion.measured} (expected {criterion.expected})")
    print(f"       {found.run['seconds']:.3g} s on {found.run['hardware']}", flush=True)


def _judge(options: argparse.Namespace) -> int:
    """Judge records by today's criteria where they or the criteria have changed."""
    for claim in select(options.claims):
        for scale in claim.settings:
            path = record_path(claim.id, scale, options.records)
            if path.exists() and _faults_of(CLAIMS, options.records, path):
                print(f"{claim.id} ({scale})")
                _show(judge_again(claim, scale, folder=options.records))
    return 0


def _check(options: argparse.Namespace) -> int:
    wrong = all_faults(CLAIMS, options.records)
    for path, reasons in wrong.items():
        print(f"{path}: {'; '.join(reasons)}")
    if not wrong:
        count = Counter(_age(path) for path in options.records.rglob("*.json"))
        ages = ", ".join(f"{count[age]} {age}" for age in ("today's", "older", "unknown"))
        print(f"{count.total()} records are valid; the code that computed them: {ages}")
    return int(bool(wrong))


def _age(path: Path) -> str:
    """Whether the code of a valid record is that of today."""
    content = store.read_json(path)
    code, today = content["run"].get("code"), code_digest(CLAIMS[content["claim"]].compute)
    return "unknown" if None in (code, today) else "today's" if code == today else "older"


def _report(options: argparse.Namespace) -> int:
    if _check(options):
        print("no report written: run these claims again, or delete their records")
        return 1
    store.write_bytes(RESULTS, results_page(CLAIMS, options.records).encode())
    if README.exists():
        text = readme_with(README.read_text(encoding="utf-8"), table(CLAIMS, options.records))
        store.write_bytes(README, text.encode())
    print(f"wrote {RESULTS.name}" + (f" and {README.name}" if README.exists() else ""))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the records")
    verbs = parser.add_subparsers(required=True, metavar="verb")
    verb = verbs.add_parser("list", help="list all claims with their status")
    verb.add_argument("claims", nargs="*", help="ids or prefixes of ids; default: all")
    verb.set_defaults(call=_list)
    verb = verbs.add_parser("run", help="compute, judge and record claims")
    verb.add_argument("claims", nargs="*", help="ids or prefixes of ids; default: all")
    verb.add_argument("--scale", choices=SCALES, default="quick")
    verb.add_argument("--pending", action="store_true", help="only claims without a valid record")
    verb.add_argument("--minutes", type=float, help="stop after so many minutes; parts save")
    verb.add_argument("--device", default="cpu", help="device, for claims that can use it")
    verb.add_argument("--parts", type=Path, default=PARTS, help="folder of the parts")
    verb.add_argument("--only-ready", action="store_true", help="only claims whose parts are done")
    verb.set_defaults(call=_run)
    verb = verbs.add_parser("judge", help="judge records by today's criteria; keep their history")
    verb.add_argument("claims", nargs="*", help="ids or prefixes of ids; default: all")
    verb.set_defaults(call=_judge)
    verb = verbs.add_parser("check", help="judge all records again; fail if one is not valid")
    verb.set_defaults(call=_check)
    verb = verbs.add_parser("report", help="write RESULTS.md and the table of the README")
    verb.set_defaults(call=_report)
    part_verbs.add_verbs(verbs)
    lease_verbs.add_verbs(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        status: int = options.call(options)
    except ValueError as error:
        parser.error(str(error))
    return status


if __name__ == "__main__":
    sys.exit(main())
