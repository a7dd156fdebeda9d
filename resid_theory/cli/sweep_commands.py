"""The verb ``sweep``: a grid of configurations from a file, cell by cell."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from resid_theory.cli.output import Json, emit, shows_progress
from resid_theory.cli.sources import search_here


def sweep(
    grid: Annotated[Path, typer.Argument(help="TOML file: task and settings; a list is an axis.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; needed for a run.")
    ] = None,
    executor: Annotated[str, typer.Option(help="serial, process or ray.")] = "process",
    workers: Annotated[
        int | None, typer.Option(help="Processes at a time; as many as CPUs by default.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="One of N equal parts, I from 0.")
    ] = None,
    retries: Annotated[int, typer.Option(help="Of a cell whose worker was lost.")] = 3,
    device: Annotated[str, typer.Option(help="cpu, cuda (GPUs in turn) or cuda:1.")] = "cpu",
    gpus: Annotated[float, typer.Option(help="ray: share of a GPU of each cell.")] = 0.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file and count its cells.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure every cell of a grid that has no result yet; called again, it goes on.

    The file names a task (hessian, curvature, training, cushions, or module:Class, a task of your
    own, also from the current directory) and its settings. In Python, rt.sweep.load_results(FOLDER)
    gives the table. Exit code 1 if a cell failed.
    """
    search_here()  # for tasks of one's own
    if dry_run:
        from resid_theory.sweep import grid_of

        count = len(grid_of(grid))
        emit({"cells": count}, f"{count:,} cell{'s' * (count != 1)}.", as_json)
        return
    import resid_theory as rt

    if out is None:
        raise ValueError("--out: is missing, needs the folder of the results")
    try:
        report = rt.run_sweep(
            grid, out, executor=executor, workers=workers, shard=shard, retries=retries,
            device=device, gpus=gpus, progress=shows_progress(as_json),
        )  # fmt: skip
    except ModuleNotFoundError as error:
        raise ValueError(f"--{error}") from error
    content = asdict(report) | {
        "folder": str(report.folder),
        "failed": [
            {"key": key, "error": error, "config": dict(report.failed_configs[key])}
            for key, error in report.failed.items()
        ],
    }
    del content["failed_configs"]
    emit(content, f"{report}\nResults in {report.folder}.", as_json)
    if report.failed:
        raise typer.Exit(1)
