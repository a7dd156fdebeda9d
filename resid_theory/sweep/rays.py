"""Cells as tasks of Ray: on the machines of a cluster, with shares of GPUs."""

import importlib
import os
from collections.abc import Iterator
from typing import Any

from resid_theory.sweep.results import Cell, Results
from resid_theory.sweep.work import Options, Report, attempt, lost

__all__ = ["run_in_ray"]


def run_in_ray(cells: list[Cell], results: Results, options: Options) -> Iterator[Report]:
    """Run cells as tasks of Ray Core.

    A connection that is there already, or the cluster that ``RAY_ADDRESS`` names, is used, and must
    see the sweep's folder; otherwise Ray is started on this machine, on the loopback address,
    without dashboard and usage statistics. Ray runs the cells of lost workers and machines again.

    Args:
        cells: The cells.
        results: Where.
        options: Number of workers, retries and shares of GPUs.

    Yields:
        A report for each cell, as they come.

    Raises:
        ModuleNotFoundError: If Ray is not installed.
    """
    ray = _ray()
    if not cells:
        return
    started = not ray.is_initialized()
    if started:
        _start(ray, options)
    try:
        yield from _reports(ray, cells, results, options)
    finally:
        if started:
            ray.shutdown()


def _ray() -> Any:
    if not os.environ.get("RAY_ADDRESS"):
        # Read at import. Despite its name it decides on every system whether 127.0.0.1 stays that
        # or becomes an address that others can reach.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "executor: 'ray' needs the package ray, which is not installed; "
            "pip install 'resid-theory[sweep]', or executor='process'"
        ) from error


def _start(ray: Any, options: Options) -> None:
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return
    ray.init(
        address="local",
        num_cpus=options.workers,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        **quiet,
    )


def _reports(ray: Any, cells: list[Cell], results: Results, options: Options) -> Iterator[Report]:
    settings = {"num_cpus": 1, "num_gpus": options.gpus, "max_retries": options.retries}
    task = ray.remote(**settings)(attempt)
    stored = ray.put(results)
    waiting, running = iter(cells), {}
    # Enough that no worker waits for the driver, few enough that a large grid fits in memory.
    ahead = 4 * max(options.workers, int(ray.cluster_resources().get("CPU", 1)))
    while True:
        for cell in waiting:
            running[task.remote(cell, stored, options.device)] = cell
            if len(running) >= ahead:
                break
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            cell = running.pop(reference)
            yield _report(ray, reference, cell, results, options)


def _report(ray: Any, reference: Any, cell: Cell, results: Results, options: Options) -> Report:
    try:
        report: Report = ray.get(reference)
        return report
    except ray.exceptions.RayError as error:
        if results.is_done(cell):
            return Report(cell=cell, error=None, ran=True, seconds=0.0)
        return lost(cell, results, options.retries + 1, type(error).__name__)
