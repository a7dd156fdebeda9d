"""What faults do to the library, counted: python -m benchmarks.reliability [--quick].

Writes docs/reliability.md. Every row is a fault, the promise that must hold nevertheless, how often
it was tried and how often the promise was broken. ``--quick`` prints a part that takes seconds and
writes nothing; the tests run that part.
"""

import argparse
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import damage, hostile, poison, untouched, worlds, wrong_calls
from benchmarks.outcome import Outcome

# A module with `rows(quick)` joins the table by its name here.
PARTS = (damage, poison, hostile, untouched, worlds, wrong_calls)
PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"


def measured(quick: bool = False, show: bool = False) -> list[Outcome]:
    """The rows of all parts."""
    found: list[Outcome] = []
    for part in PARTS:
        begun = time.perf_counter()
        rows = part.rows(quick)
        found += rows
        for row in rows if show else ():
            print(f"{row.trials:5d} trials, {len(row.lost)} lost: {row.fault}", flush=True)
            print(*(f"      {wrong}" for wrong in row.lost), sep="\n", end="", flush=True)
        if show:
            print(f"      ({part.__name__}: {time.perf_counter() - begun:.0f} s)", flush=True)
    return found


def page(rows: Sequence[Outcome], seconds: float) -> str:
    """The table as Markdown."""
    lines = [
        "# Reliability",
        "",
        "Written by `python -m benchmarks.reliability`; not to be edited. A trial is lost when the",
        "promise beside it was broken.",
        "",
        "| what was done | what must hold | trials | lost |",
        "|---|---|---|---|",
    ]
    lines += [f"| {row.fault} | {row.promise} | {row.trials:,} | {len(row.lost)} |" for row in rows]
    notes = [f"- {row.fault}: {row.note}." for row in rows if row.note]
    lost = [f"- {row.fault}: {wrong}" for row in rows for wrong in row.lost]
    lines += ["", *notes] if notes else []
    lines += ["", "Lost:", "", *lost] if lost else []
    total = sum(row.trials for row in rows)
    lines += [
        "",
        f"{total:,} trials in {seconds / 60:.0f} minutes on {platform.machine()}, "
        f"{torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run, print, write; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    begun = time.perf_counter()
    rows = measured(quick, show=True)
    if not quick:
        PAGE.write_text(page(rows, time.perf_counter() - begun), encoding="utf-8")
        print(f"{PAGE} written.")
    return int(any(row.lost for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
