"""The folder of a sweep: a checksummed result for each finished cell, an error for each other."""

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resid_theory.runtime import store
from resid_theory.runtime.storable import decoded, encoded, inline, read_inline
from resid_theory.sweep.config import SCHEMA, key_of
from resid_theory.sweep.registry import task_of
from resid_theory.sweep.task import Outcome, Task

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Cell:
    """One configuration of a sweep; its key is a hash of task, settings and schema."""

    task: str
    settings: Task
    key: str = field(init=False)
    config: Mapping[str, Any] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        key, config = key_of(self.task, self.settings)
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "config", config)

    def __str__(self) -> str:
        """The task and the settings that differ from their defaults."""
        usual = {f.name: f.default for f in fields(self.settings)}
        others = [f"{k}={v!r}" for k, v in self.config.items() if k in usual and v != usual[k]]
        return " ".join([self.task, *others])

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Cell":
        """A cell from ``task`` and fields of its class; omitted ones are at their default."""
        settings = {name: value for name, value in values.items() if name != "task"}
        return cls(values["task"], task_of(values["task"]).of(settings))


class Results:
    """Results and errors of cells, below one folder.

    A cell is done if and only if its manifest and tensors exist and verify. Writes do not wait for
    the disk: a result that a power cut damages does not verify, and the cell runs again.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = store.path_of(folder, "folder")

    def place(self, key: str) -> Path:
        """The folder of a cell."""
        return self.folder / "cells" / key

    def read(self, cell: Cell) -> tuple[Mapping[str, Tensor], Mapping[str, Any]] | None:
        """Arrays and description of a result; None unless every byte verifies."""
        path = self.place(cell.key) / "result.json"
        try:
            tensors, about = store.read_checkpoint(path)
        except (OSError, ValueError):
            return None
        return (tensors, about) if _is_result(about, cell.key) else None

    def is_done(self, cell: Cell) -> bool:
        """True if a cell has a result that verifies."""
        return self.read(cell) is not None

    def write(self, cell: Cell, outcome: Outcome, seconds: float) -> None:
        """Write a result completely or not at all."""
        about = {
            "kind": "cell",
            "schema": SCHEMA,
            "key": cell.key,
            "config": dict(cell.config),
            "numbers": {n: encoded(number, n, inline) for n, number in outcome.numbers.items()},
            "seconds": seconds,
            "torch": torch.__version__,
        }
        path = self.place(cell.key) / "result.json"
        store.write_checkpoint(path, outcome.arrays, about, flush=False)
        self._error(cell.key).unlink(missing_ok=True)

    def fail(self, cell: Cell, error: str, trace: str = "") -> None:
        """Record why a cell has no result, unless the disk is full."""
        content = {"key": cell.key, "config": dict(cell.config), "error": error, "trace": trace}
        with suppress(OSError):
            store.write_json(self._error(cell.key), content)

    def _error(self, key: str) -> Path:
        return self.folder / "failed" / f"{key}.json"


def _is_result(about: Any, key: str) -> bool:
    wanted = {"kind": "cell", "schema": SCHEMA, "key": key}
    return isinstance(about, Mapping) and wanted.items() <= about.items()


def load_results(folder: str | Path, *, arrays: bool = False) -> "pandas.DataFrame":
    """Table of the results of a sweep; every byte is verified.

    Args:
        folder: The ``out`` of ``run_sweep``.
        arrays: Whether to add a column of numpy arrays for each stored array.

    Returns:
        One row for each finished cell, indexed by ``key`` in the order of keys: task, settings,
        numbers (with inf and nan) and ``seconds``. A number with the name of a setting is in the
        column ``result_<name>``. Columns of other tasks are empty. Damaged results and results of
        other cells are left out with a warning that names them.

    Raises:
        FileNotFoundError: If the folder contains no sweep.
    """
    import pandas

    results = Results(folder)
    if not (results.folder / "cells").is_dir():
        raise FileNotFoundError(f"folder: {folder} has no results of a sweep")
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted((results.folder / "cells").glob("*/result.json")):
        key = path.parent.name
        try:
            tensors, about = store.read_checkpoint(path)
        except (OSError, ValueError) as error:
            warnings.warn(f"{error}; run the sweep again", stacklevel=2)
            continue
        if not _is_result(about, key):
            warnings.warn(f"{path}: is the result of another cell", stacklevel=2)
            continue
        row = rows[key] = dict(about["config"])
        for name, value in about["numbers"].items():
            number = decoded(value, str(path), read_inline)
            row[f"result_{name}" if name in row else name] = number
        row["seconds"] = about["seconds"]
        row.update({n: t.numpy() for n, t in tensors.items()} if arrays else {})
    return pandas.DataFrame(list(rows.values()), index=pandas.Index(list(rows), name="key"))
