"""What faults do to the library, counted: python -m benchmarks.reliability [PART ...] [--quick].

Every row is a fault, the promise that must hold nevertheless, how often it was tried and how often
the promise was broken. Rows are kept in docs/reliability.json; parts that are named are measured
again, the others stay, and docs/reliability.md is written from all. ``--quick`` prints what takes
seconds and writes nothing; the tests run that.
"""

import argparse
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import damage, hostile, kills, poison, untouched, worlds, wrong_calls
from benchmarks.outcome import Outcome
from resid_theory.runtime import store

# A module with `rows(quick)` joins the table by its name here.
PARTS = {
    part.__name__.rpartition(".")[2]: part
    for part in (kills, damage, poison, hostile, untouched, worlds, wrong_calls)
}
PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
KEPT = PAGE.with_suffix(".json")


def show(rows: Sequence[Outcome]) -> None:
    """Print rows, and what was lost."""
    for row in rows:
        print(f"{row.trials:5d} trials, {len(row.lost)} lost: {row.fault} {row.note}", flush=True)
        for wrong in row.lost:
            print(f"      {wrong}", flush=True)


def measured(name: str) -> dict[str, Any]:
    """The rows of a part, and where and how long they were measured."""
    begun = time.perf_counter()
    rows = PARTS[name].rows()
    show(rows)
    where = f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    seconds = round(time.perf_counter() - begun)
    return {"rows": [asdict(row) for row in rows], "seconds": seconds, "where": where}


def page(kept: Mapping[str, Any]) -> str:
    """The table as Markdown."""
    rows = [Outcome(**row) for name in PARTS for row in kept.get(name, {"rows": []})["rows"]]
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
    total, seconds = sum(row.trials for row in rows), sum(part["seconds"] for part in kept.values())
    where = sorted({part["where"] for part in kept.values()})
    lines += ["", f"{total:,} trials in {seconds / 60:.0f} minutes; {'; '.join(where)}."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run, print, write; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kills", type=int, default=kills.TRIALS, help="trials of each kind")
    given = parser.parse_args()
    unknown = sorted(set(given.parts) - set(PARTS))
    if unknown:
        parser.error(f"PART: unknown {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    names = given.parts or list(PARTS)
    if given.quick:
        rows = [row for name in names for row in PARTS[name].rows(quick=True)]
        show(rows)
        return int(any(row.lost for row in rows))
    kills.TRIALS = given.kills
    kept: dict[str, Any] = store.read_json(KEPT) if KEPT.exists() else {}
    for name in names:
        kept[name] = measured(name)
        store.write_json(KEPT, kept)
        store.write_bytes(PAGE, page(kept).encode())
    return int(any(row["lost"] for part in kept.values() for row in part["rows"]))


if __name__ == "__main__":
    raise SystemExit(main())
