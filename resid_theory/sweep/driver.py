"""The driver of a sweep: it runs the missing cells by the chosen executor."""

import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from resid_theory._check import check_choice, check_int, check_within
from resid_theory.runtime import store
from resid_theory.runtime.resources import check_device
from resid_theory.runtime.result import Columns, Result
from resid_theory.sweep.grid import grid_of
from resid_theory.sweep.processes import run_in_processes
from resid_theory.sweep.ray_executor import run_in_ray
from resid_theory.sweep.results import Cell, Results
from resid_theory.sweep.worker import Executor, Options, Report, run_serially

# A new executor is a row here.
EXECUTORS: Mapping[str, Executor] = {
    "serial": run_serially,
    "process": run_in_processes,
    "ray": run_in_ray,
}


@dataclass(frozen=True, kw_only=True)
class SweepReport(Result):
    """Outcome of a sweep.

    Attributes:
        folder: Folder of the results, for ``load_results``.
        cells: Number of cells of the grid, or of the shard.
        found: Number of cells that were done before.
        done: Number of cells done by this call.
        failed: One-line error of each other cell, by key.
        failed_configs: Task and settings of each failed cell, by key.
        seconds: Wall-clock time of the call.
        work: Seconds within the tasks, summed over all workers.
    """

    folder: Path
    cells: int
    found: int
    done: int
    failed: Mapping[str, str]
    failed_configs: Mapping[str, Mapping[str, Any]]
    seconds: float
    work: float

    @property
    def title(self) -> str:
        """Numbers of cells."""
        done = self.found + self.done
        return f"{done} of {self.cells} cells done, {self.found} of them before"

    def table(self) -> Columns:
        """One row for each failed cell; :func:`load_results` is the table of the others."""
        cells = [Cell.of(config) for config in self.failed_configs.values()]
        return {
            "key": list(self.failed),
            "cell": list(map(str, cells)),
            "error": list(self.failed.values()),
        }


def run_sweep(
    grid: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    executor: str = "process",
    workers: int | None = None,
    shard: str | None = None,
    retries: int = 3,
    device: str = "cpu",
    gpus: float = 0.0,
    progress: bool = True,
    on_report: Callable[[Report], object] | None = None,
) -> SweepReport:
    """Measure every cell of a grid that has no result yet.

    The key of a cell is the hash of its configuration and of a schema number; a cell is done if and
    only if its result is in the folder and verifies. A sweep can therefore be killed, repeated,
    extended, or split among jobs; only missing cells run. A failed cell is listed, does not stop
    the others, and runs again in the next call.

    Args:
        grid: A TOML file or its content; see ``grid_of``. All of it is checked before any run.
        out: Folder of the results.
        executor: ``serial`` (this process), ``process`` (workers on this machine; the cell of a
            killed worker runs again) or ``ray`` (tasks of Ray Core).
        workers: Number of processes; by default the number of CPUs.
        shard: ``i/n`` with i from 0: only the cells i, i + n, i + 2n, ..., for job arrays.
        retries: Number of further runs of a cell whose worker was lost.
        device: ``cpu``, ``cuda`` (GPUs in turn) or one GPU, such as ``cuda:1``.
        gpus: Share of a GPU that each cell takes, for Ray.
        progress: Whether to show a progress bar on standard error.
        on_report: Function that is called with each cell's report.

    Returns:
        Counts, and the errors of the failed cells.

    Raises:
        ValueError: If the grid or an argument does not fit, or another driver works on the same
            shard.
        FileNotFoundError: If there is no such file.
        ModuleNotFoundError: If the executor's package is not installed.

    Example:
        >>> import tempfile
        >>> grid = {"task": "hessian", "blocks": [1, 2], "init": "zero"}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = rt.run_sweep(grid, folder, executor="serial", progress=False)
        ...     table = rt.sweep.load_results(folder)
        >>> report.done, table.condition_number.round(2).unique().tolist()
        (2, [1.68])
    """
    started = time.perf_counter()
    run = EXECUTORS[check_choice("executor", executor, list(EXECUTORS))]
    count = os.cpu_count() or 1 if workers is None else check_int("workers", workers)
    check_within("gpus", gpus, 0, math.inf, "[)")
    options = Options(
        workers=count,
        retries=check_int("retries", retries, 0),
        device=str(check_device("device", device, here=executor != "ray")),
        gpus=float(gpus),
    )
    cells, results = _shard(grid_of(grid), shard), Results(out)
    lock = results.folder / f".lock.{(shard or 'all').replace('/', '-of-')}"
    failed: dict[str, Report] = {}
    work, done = 0.0, 0
    with store.locked(lock, f"out: another driver runs the same cells in {results.folder}"):
        missing = [cell for cell in cells if not results.is_done(cell)]
        found = len(cells) - len(missing)
        with tqdm(total=len(cells), initial=found, unit="cell", disable=not progress) as bar:
            for report in run(missing, results, options):
                work += report.seconds
                done += report.error is None
                if report.error is not None:
                    failed[report.cell.key] = report
                    bar.set_postfix(failed=len(failed))
                bar.update()
                if on_report is not None:
                    on_report(report)
    return SweepReport(
        folder=results.folder,
        cells=len(cells),
        found=found,
        done=done,
        failed={key: str(report.error) for key, report in failed.items()},
        failed_configs={key: dict(report.cell.config) for key, report in failed.items()},
        seconds=time.perf_counter() - started,
        work=work,
    )


def _shard(cells: list[Cell], shard: str | None) -> list[Cell]:
    if shard is None:
        return cells
    found = re.fullmatch(r"(\d+)/(\d+)", str(shard))
    if found is None or int(found[1]) >= int(found[2]):
        raise ValueError(f"shard: got {shard!r}, needs i/n with i from 0 to n - 1, such as 0/4")
    return cells[int(found[1]) :: int(found[2])]
