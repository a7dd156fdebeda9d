"""Run, check and report the claims of the papers: python -m experiments VERB."""

import argparse
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments import part_verbs
from experiments.claim import (
    RECORDS,
    SCALES,
    Claim,
    Record,
    cell,
    faults,
    load,
    record,
    record_path,
    standing,
)
from experiments.digest import code_digest
from experiments.parts import PARTS, Execution, Store, Stored, UnfinishedError
from experiments.provenance import ROOT
from experiments.registry import CLAIMS, select
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
    stands = standing(claim, folder=folder)
    if stands.record is None:
        return [_row(claim.id, claim.source, claim.says, "", "", stands.word, stands.detail)]
    scale, run, verdicts = stands.record.scale, stands.record.run, stands.record.verdicts
    link = f"[{claim.id}]({base}/{claim.id}.{scale}.json)"
    note = f" ({stands.detail})" if stands.detail else ""
    place = f"{run['threads']} threads" if run["device"] == "cpu" else str(run["device"])
    where = f"{scale}{note}, {run['hardware']}, {place}"
    failing = [v for v in verdicts if not v.passed]
    held = f"{stands.word}, {len(verdicts) - len(failing)} of {len(verdicts)} criteria hold"
    held = f"**{held}**" if failing else held
    first, *others = [(v.criterion, v.expected, v.measured) for v in failing or verdicts[:1]]
    return [_row(link, claim.source, *first, held, where)] + [
        _row("", "", *row, "", "") for row in others
    ]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell(text) for text in cells)} |"


def results_page(claims: Claims, folder: Path) -> str:
    """Contents of RESULTS.md: counts by status, then every claim with all its records."""
    words = Counter(standing(claim, folder=folder).word for claim in claims.values())
    order = ("reproduced", "not reproduced", "scaled down", "pending")
    count = ", ".join(f"{words[word]} {word}" for word in order if words[word])
    parts = [
        "# Results",
        "Written by `python -m experiments report` from the records; not to be edited.",
        f"{len(claims)} claims: {count}.",
        *(_section(claim, folder) for claim in claims.values()),
    ]
    return "\n\n".join(parts) + "\n"


def _section(claim: Claim, folder: Path) -> str:
    stands = standing(claim, folder=folder)
    detail = f" ({stands.detail})" if stands.detail else ""
    parts = [f"## {claim.id}: {stands.word}{detail}", f"{claim.says} ({claim.source})"]
    for scale in reversed(SCALES):
        if scale in claim.settings and record_path(claim.id, scale, folder).exists():
            parts.append(_evidence(load(claim, scale, folder=folder)))
    return "\n\n".join(parts)


def _evidence(found: Record) -> str:
    run = found.run
    code = run["commit"][:12] if run["commit"] else "unknown commit"
    changed = " with uncommitted changes" if run["dirty"] else ""
    link = f"[record](records/{found.claim}.{found.scale}.json)"
    lines = [
        f"**{found.scale} scale**: {link}, {run['seconds']:.3g} s on {run['device']} "
        f"({run['hardware']}, {run['threads']} threads), torch {run['torch']}, {code}{changed}.",
        "",
        "| criterion | expected | ours | holds |",
        "|---|---|---|---|",
    ]
    holds = ("**no**", "yes")
    return "\n".join(
        lines + [_row(v.criterion, v.expected, v.measured, holds[v.passed]) for v in found.verdicts]
    )


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
        stands = standing(claim, folder=options.records)
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
    broken, start = [], time.monotonic()
    for number, claim in enumerate(chosen):
        if options.minutes is not None and time.monotonic() - start >= 60 * options.minutes:
            print(f"{options.minutes:g} minutes are over; {len(chosen) - number} claims not begun")
            break
        if claim.missing(options.scale):
            print(f"{claim.id} ({options.scale}): skipped, {claim.missing(options.scale)}")
            continue
        print(f"{claim.id} ({options.scale}) ...", flush=True)
        try:
            with _at_most(options.minutes, start):
                _show(_record(claim, options))
        except UnfinishedError as error:
            print(f"{error}: the claim is judged once all are")
        except Exception:
            traceback.print_exc()
            broken.append(claim.id)
        except _TimeIsOverError:
            print(f"{options.minutes:g} minutes are over during {claim.id}: no record is written")
            print("run it again to resume its trainings from their last checkpoints")
            break
    print(f"failed: {', '.join(broken)}" if broken else "done")
    return int(bool(broken))


def _record(claim: Claim, options: argparse.Namespace) -> Record:
    # Quick claims are computed anew: they test today's code.
    keeps = Store(None) if options.scale == "quick" else Store(options.parts)
    each = Stored(keeps, None if options.only_ready else Execution(device=options.device))
    return record(claim, options.scale, folder=options.records, device=options.device, each=each)


class _TimeIsOverError(BaseException):
    """Raised when the time is over; no Exception, so that no claim catches it."""


@contextmanager
def _at_most(minutes: float | None, start: float) -> Generator[None, None, None]:
    """Interrupt the block once the minutes since ``start`` are over, if the system has timers."""
    if minutes is None or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise _TimeIsOverError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(60 * minutes - (time.monotonic() - start), 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _show(found: Record) -> None:
    for verdict in found.verdicts:
        mark = "  ok  " if verdict.passed else "  FAIL"
        print(f"{mark} {verdict.criterion}: {verdict.measured} (expected {verdict.expected})")
    print(f"       {found.run['seconds']:.3g} s on {found.run['hardware']}", flush=True)


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
    verb.add_argument("--minutes", type=float, help="stop after this many minutes")
    verb.add_argument("--device", default="cpu", help="device, for claims that can use it")
    verb.add_argument("--parts", type=Path, default=PARTS, help="folder of the parts")
    verb.add_argument("--only-ready", action="store_true", help="only claims whose parts are done")
    verb.set_defaults(call=_run)
    verb = verbs.add_parser("check", help="judge all records again; fail if one is not valid")
    verb.set_defaults(call=_check)
    verb = verbs.add_parser("report", help="write RESULTS.md and the table of the README")
    verb.set_defaults(call=_report)
    part_verbs.add_verbs(verbs)
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
