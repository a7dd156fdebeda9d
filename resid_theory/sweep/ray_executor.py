"""Cells as Ray tasks: on the machines of a cluster, with shares of GPUs."""

import importlib
import os
from collections import deque
from collections.abc import Iterator
from typing import Any

from resid_theory.sweep.results import Cell, Results
from resid_theory.sweep.worker import Options, Report, attempt, lost


def run_in_ray(cells: list[Cell], results: Results, options: Options) -> Iterator[Report]:
    """Run cells as tasks of Ray Core, which runs those of lost workers and machines again."""
    # A connection or the cluster of ``RAY_ADDRESS`` is used, and must see the folder of the sweep;
    # otherwise Ray starts here, on the loopback address, without dashboard and usage statistics.
    ray = _ray()
    if not cells:
        return
    started = not ray.is_initialized()
    if started:
        here: dict[str, Any] = {
            "address": "local",
            "num_cpus": options.workers,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
        cluster = {} if os.environ.get("RAY_ADDRESS") else here
        ray.init(logging_level="ERROR", log_to_driver=False, **cluster)
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
            "pip install ray, or executor='process'"
        ) from error


def _reports(ray: Any, cells: list[Cell], results: Results, options: Options) -> Iterator[Report]:
    settings = {"num_cpus": 1, "num_gpus": options.gpus, "max_retries": options.retries}
    task = ray.remote(**settings)(_attempt_all)
    stored = ray.put(results)
    workers = max(options.workers, int(ray.cluster_resources().get("CPU", options.workers)))
    waiting, alone, size = deque(cells), deque[Cell](), 1
    running: dict[Any, list[Cell]] = {}
    while waiting or alone or running:
        # Enough that no worker waits for the driver, few enough for a large grid to fit in memory.
        while (waiting or alone) and len(running) < 2 * workers:
            source, count = (alone, 1) if alone else (waiting, min(size, len(waiting)))
            part = [source.popleft() for _ in range(count)]
            running[task.remote(part, stored, options.device)] = part
        (reference,), _ = ray.wait(list(running))
        part = running.pop(reference)
        try:
            reports = ray.get(reference)
        except ray.exceptions.RayError as error:
            if len(part) > 1:  # one of them is to blame: run each alone; finished ones are found
                alone.extend(part)
                continue
            how = type(error).__name__
            reports = [lost(cell, results, options.retries + 1, how) for cell in part]
        # For about half a second of work, as a task costs several milliseconds; 64 cells at most.
        mean = sum(report.seconds for report in reports) / len(reports)
        size = max(1, min(len(waiting) // (4 * workers), int(0.5 / max(mean, 1 / 128))))
        yield from reports


def _attempt_all(cells: list[Cell], results: Results, device: str) -> list[Report]:
    return [attempt(cell, results, device) for cell in cells]
