"""Run, check and report the claims of the papers: python -m experiments VERB."""

import argparse
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from experiments import part_verbs
from experiments.claim import SCALES, Claim
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
from experiments.records import RECORDS, Record, faults, judge_again, load, record, record_path
from experiments.registry import CLAIMS, select
from experiments.report import Claims, readme_with, results_page, table
from experiments.verdicts import verdict
from resid_theory.runtime import store

RESULTS = ROOT / "experiments" / "RESULTS.md"
README = ROOT / "README.md"


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
