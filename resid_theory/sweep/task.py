"""A task: frozen settings that can be run, and the outcome of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from resid_theory._check import check_seed
from resid_theory.runtime.result import Columns, Result
from resid_theory.sweep.config import Config

Number = float | int | str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome(Result):
    """Result of one grid cell.

    Attributes:
        numbers: A row of the table of results: float, int, str or None by column.
        arrays: Tensors by name.
    """

    numbers: Mapping[str, Number]
    arrays: Mapping[str, Tensor]

    headline = "outcome of a cell"

    def table(self) -> Columns:
        """One row: the numbers by name."""
        return {name: [value] for name, value in self.numbers.items()}


@dataclass(frozen=True, kw_only=True)
class Task(Config):
    """Settings that can be run.

    Attributes:
        imports: Modules that a run imports; worker processes load them before they start.
        seed: Seed of everything random.
    """

    imports: ClassVar[tuple[str, ...]] = ()
    seed: int = 0

    def check(self) -> None:
        """Raise a ValueError if the settings cannot be run."""
        check_seed("seed", self.seed)

    def run(self, folder: Path, device: str) -> Outcome:
        """Run the task.

        Args:
            folder: The cell's own folder, for files that a run after a kill continues from.
            device: A torch device.

        Returns:
            The result.

        Raises:
            NotImplementedError: In this base class.
        """
        raise NotImplementedError
