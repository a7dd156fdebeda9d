"""Grids of sweep cells from a TOML file: each list is an axis, the grid is their product."""

import itertools
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resid_theory.sweep.registry import TASKS, task_of
from resid_theory.sweep.results import Cell

_MOST = 1_000_000


def grid_of(grid: str | Path | Mapping[str, Any]) -> list[Cell]:
    """The cells of a grid, each once, in a fixed order.

    Args:
        grid: A TOML file or its content: ``task``, a name in ``TASKS`` or ``module:Class``, and its
            settings. A list is an axis; the grid is the product of all axes. Tables ``[[grid]]``
            define several grids, each with the settings above them and its own.

    Returns:
        The cells, without duplicates.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is unknown, or a value does not fit or is there twice.

    Example:
        >>> cells = grid_of({"task": "hessian", "blocks": [1, 2], "seed": [0, 1, 2]})
        >>> len(cells), cells[0].settings.blocks
        (6, 1)
    """
    content, name = _content(grid)
    try:
        tables = _tables(content)
        count = sum(math.prod(map(len, axes.values())) for axes in tables)
        if count > _MOST:
            raise ValueError(f"grid: got {count:,} cells, needs at most {_MOST:,}")
        cells: dict[str, Cell] = {}
        for axes in tables:
            for values in itertools.product(*axes.values()):
                cell = Cell.of(dict(zip(axes, values, strict=True)))
                cells[cell.key] = cell
        for cell in cells.values():
            cell.settings.check()
    except ValueError as error:
        raise ValueError(f"{name}{error}") from error
    return list(cells.values())


def _content(grid: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    if isinstance(grid, Mapping):
        return grid, ""
    path = Path(grid).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"grid: there is no file {path}")
    try:
        return tomllib.loads(path.read_bytes().decode()), f"{path.name}: "
    except ValueError as error:
        raise ValueError(f"{path.name}: not valid TOML: {error}") from error


def _tables(content: Mapping[str, Any]) -> list[dict[str, list[Any]]]:
    """Axes of each grid, one value where the file has no list."""
    shared = {key: value for key, value in content.items() if key != "grid"}
    grids = content.get("grid", [{}])
    if not isinstance(grids, list) or not all(isinstance(table, Mapping) for table in grids):
        raise ValueError(f"grid: got {grids!r}, needs tables that begin with [[grid]]")
    found = [
        {key: value if isinstance(value, list) else [value] for key, value in table.items()}
        for table in ({**shared, **table} for table in grids)
    ]
    for axes in found:
        for key, values in axes.items():
            if not values:
                raise ValueError(f"{key}: got [], needs at least one value")
            if len(set(map(repr, values))) < len(values):
                raise ValueError(f"{key}: got {values}, needs every value once")
        if "task" not in axes:
            raise ValueError(f"task: is missing, needs one of {', '.join(TASKS)} or module:Class")
        for task in axes["task"]:
            task_of(task)
    return found
