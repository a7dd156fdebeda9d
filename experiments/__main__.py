"""Run, check and report the claims of the papers: python -m experiments VERB."""

import argparse
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from experiments import part_verbs
from experiments.claim import SCALES, Claim
from experiments.coverage import coverage_page, coverage_table, nodes, papers, unnamed
from experiments.history_page import history_page
from experiments.lease import lease_verbs
from experiments.manifest import changes, unlisted, wordings, write_manifest
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
from experiments.recompute import Item, items, recompute
from experiments.record_checks import (
    OLDER,
    TODAY,
    UNKNOWN,
    ages,
    all_faults,
    is_valid,
    judging_ages,
    notes,
    record_faults,
)
from experiments.records import MANIFEST, RECORDS, Record, judge_again, picture, record, record_path
from experiments.registry import CLAIMS, select
from experiments.report import counts, readme_with, results_page
from experiments.verdicts import verdict
from resid_theory.cli.output import run_until_unread, spell_out
from resid_theory.runtime import store
from resid_theory.runtime.allocator import keep_freed_memory

RESULTS = ROOT / "experiments" / "RESULTS.md"
HISTORY = ROOT / "experiments" / "HISTORY.md"
COVERAGE = ROOT / "experiments" / "COVERAGE.md"
README = ROOT / "README.md"


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
        chosen = [c for c in chosen if not is_valid(c, options.scale, options.records)]
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
    except BrokenPipeError:  # nobody reads on
        raise
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
    """Judge records by today's criteria where they, the criteria or the tests have changed."""
    ages_of = judging_ages(CLAIMS, options.records)
    for claim in select(options.claims):
        for scale in claim.settings:
            path = record_path(claim.id, scale, options.records)
            if path.exists() and (
                ages_of[path] != TODAY or record_faults(CLAIMS, options.records, path)
            ):
                print(f"{claim.id} ({scale})")
                _show(judge_again(claim, scale, folder=options.records))
    return 0


def _check(options: argparse.Namespace) -> int:
    folder = options.records
    wrong = all_faults(CLAIMS, folder)
    for path, fault in unlisted(CLAIMS, folder).items():
        wrong.setdefault(path, []).append(fault)
    _tell(wrong)
    if not wrong:
        counted = {}
        for verb, found in (
            ("computed", ages(CLAIMS, folder)),
            ("judged", judging_ages(CLAIMS, folder)),
        ):
            for path, age in found.items():
                if age != TODAY:
                    print(f"{path}: {verb} by {age}")
            count = Counter(found.values())
            counted[verb] = ", ".join(f"{count[age]} by {age}" for age in (TODAY, OLDER, UNKNOWN))
        every = items(CLAIMS, folder)
        beyond = [item for item in every if item.reason]
        for item in beyond:
            print(f"{item.name}: is not computed again here: {item.reason}")
        print("records are valid; " + "; ".join(f"{v}: {told}" for v, told in counted.items()))
        print(f"{len(every) - len(beyond)} of {len(every)} records and parts can be checked here")
        wrong = _recomputed(every, options) if options.recompute else {}
    return int(bool(wrong))


def _recomputed(every: Sequence[Item], options: argparse.Namespace) -> dict[str, str]:
    """Compute a random sample of records and parts again; what differs, by name."""
    seed = int(time.time()) if options.seed is None else options.seed
    print(f"computing a sample again, --seed {seed}", flush=True)
    wrong = {}
    for item, fault, told in recompute(every, minutes=options.recompute, seed=seed):
        print(f"{item.name}, {item.seconds:.3g} s: {fault or told}", flush=True)
        if fault:
            wrong[item.name] = fault
    return wrong


def _tell(wrong: Mapping[Path, Sequence[str]]) -> None:
    for path, reasons in wrong.items():
        print(f"{path}: {'; '.join(reasons)}")


def _draw(options: argparse.Namespace) -> int:
    """Draw the largest record of each claim into a file, which describes itself by the claim."""
    options.out.mkdir(parents=True, exist_ok=True)
    for claim in select(options.claims):
        found = verdict(claim, folder=options.records).record
        if found is None:
            print(f"{claim.id}: no record to draw")
            continue
        path = options.out / f"{claim.id.replace('/', '_')}.{options.format}"
        title = "Subject" if options.format == "pdf" else "Description"
        about = {title: f"{claim.says} ({claim.source}; {found.scale} scale)"}
        picture(claim, found, width=8).savefig(path, dpi=150, metadata=about)
        print(path)
    return 0


def _coverage(options: argparse.Namespace) -> int:
    """Print how the sentences of each paper come out, and the rest; fail if a claim is unnamed."""
    contents = papers(CLAIMS)
    found = {paper: nodes(paper, of, CLAIMS, options.records) for paper, of in contents.items()}
    print(coverage_table(found))
    for paper, of in found.items():
        for node in (node for node in of if node.way == "open"):
            print(f"{paper}, {node.at}: {node.says} Uncovered: {node.told}")
    left = [claim_id for paper, of in found.items() for claim_id in unnamed(paper, of, CLAIMS)]
    print(*(f"{claim_id}: no sentence names it" for claim_id in left), sep="\n", end="")
    return int(bool(left))


def _report(options: argparse.Namespace) -> int:
    folder = options.records
    wrong = all_faults(CLAIMS, folder)
    wrong.pop(folder / MANIFEST, None)  # it is written here
    if wrong:
        _tell(wrong)
        print("no report written: git has the former records; changed claims are run again")
        return 1
    write_manifest(CLAIMS, folder)
    pages = {
        RESULTS: results_page(CLAIMS, folder, notes(CLAIMS, folder)),
        HISTORY: history_page(CLAIMS, folder, changes(), wordings(folder)),
        COVERAGE: coverage_page(CLAIMS, folder),
    }
    if README.exists():
        pages[README] = readme_with(README.read_text(encoding="utf-8"), counts(CLAIMS, folder))
    for path, text in pages.items():
        store.write_bytes(path, text.encode())
    print(f"wrote {MANIFEST}, {', '.join(path.name for path in pages)}")
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
    verb.add_argument(
        "--recompute",
        type=float,
        metavar="MINUTES",
        help="then compute a random sample of records and parts again, and compare",
    )
    verb.add_argument("--seed", type=int, help="of the sample; default: from the clock, printed")
    verb.set_defaults(call=_check)
    verb = verbs.add_parser("draw", help="draw records into files")
    verb.add_argument("claims", nargs="*", help="ids or prefixes of ids; default: all")
    verb.add_argument("--format", choices=("png", "svg", "pdf"), default="png")
    verb.add_argument("--out", type=Path, default=ROOT / "out" / "figures", help="folder")
    verb.set_defaults(call=_draw)
    verb = verbs.add_parser("coverage", help="print how the sentences of the papers come out")
    verb.set_defaults(call=_coverage)
    verb = verbs.add_parser("report", help="write the pages and the counts in the README")
    verb.set_defaults(call=_report)
    part_verbs.add_verbs(verbs)
    lease_verbs.add_verbs(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    keep_freed_memory()
    spell_out(sys.stdout, sys.stderr)
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return run_until_unread(lambda: options.call(options))
    except ValueError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
