"""Cost of a sweep beyond its work: python -m benchmarks.sweep [--executor ...].

The grid has 1,000 small Hessians. The cost is the wall time less the seconds inside the tasks,
divided by the number of workers, per cell; checking the grid, looking for results and starting the
workers are part of it, and are also given apart. On a machine that others use, everything takes
longer by about the factor of wall to processor time in the tasks; processor time does not depend on
others.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.timing import line
from resid_theory import run_sweep
from resid_theory.sweep import SweepReport, grid_of
from resid_theory.sweep.worker import Report

GOALS = {"serial": "no goal", "process": "5 ms asked", "ray": "10 ms asked"}
SMALL = {"task": "hessian", "blocks": 1, "init": ["near_zero", "xavier"]}


def per_cell(seconds: float, cells: int) -> str:
    return f"{1e3 * seconds / cells:.2f} ms"


def overhead(executor: str, cells: int, workers: int) -> None:
    """Print what an executor adds to each cell."""
    grid = {**SMALL, "seed": list(range(cells // 2))}
    used = workers if executor != "serial" else 1
    arrivals: list[float] = []
    works: list[float] = []

    processor: list[float] = []

    def hear(report: Report) -> None:
        arrivals.append(time.perf_counter())
        works.append(report.seconds)
        if len(works) in (used, cells):
            processor.append(processor_of_all())

    with tempfile.TemporaryDirectory() as out:
        began = time.perf_counter()
        report = sweep(grid, out, executor, workers, hear)
        assert report.done == cells, str(report)[:2000]
        started = time.perf_counter()
        again = sweep(grid, out, executor, workers, lambda _: None)
        found = time.perf_counter() - started
        assert again.found == cells and again.done == 0
    # The first cell of a worker reads the data.
    steady = arrivals[-1] - arrivals[used - 1] - sum(works[used:]) / used
    beyond = report.seconds - report.work / used
    alone = processor_of_work()
    own = processor[-1] - processor[0] - alone * (cells - used)
    slower = statistics.median(works) / alone
    print(f"{executor}, {used} workers, {cells} cells")
    line("  work of a cell, processor time", per_cell(alone, 1), "")
    line("  work of a cell, wall time over processor time", f"{slower:.1f}", "1 if undisturbed")
    line("  beyond the work, all included, wall time", per_cell(beyond, cells), GOALS[executor])
    line("  beyond the work once workers run, wall time", per_cell(steady, cells), "")
    if executor != "ray":  # whose workers are not ours to ask
        line("  the same in processor time", per_cell(own, cells), GOALS[executor])
    line("  until the first result", f"{arrivals[0] - began:.2f} s", "")
    line("  called again, nothing to do", per_cell(found, cells), "")


def processor_of_work() -> float:
    """Processor seconds of the work of a cell."""
    (cell,) = grid_of({**SMALL, "init": "xavier"})
    cell.settings.run(Path(), "cpu")
    start = time.process_time()
    for _ in range(100):
        cell.settings.run(Path(), "cpu")
    return (time.process_time() - start) / 100


def processor_of_all() -> float:
    """Processor seconds of this process and its workers so far."""
    pids = [os.getpid(), *(process.pid for process in multiprocessing.active_children())]
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def sweep(grid, out: str, executor: str, workers: int, heard) -> SweepReport:
    return run_sweep(grid, out, executor=executor, workers=workers, progress=False, on_report=heard)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executor", choices=list(GOALS), action="append")
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    for executor in options.executor or ["serial", "process"]:
        overhead(executor, options.cells, options.workers)


if __name__ == "__main__":
    main()
