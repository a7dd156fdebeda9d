"""A task: frozen settings that can be run, and what a run gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from resid_theory._check import check_int
from resid_theory.sweep.config import Config

__all__ = ["Number", "Outcome", "Task"]

Number = float | int | str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a cell found.

    Attributes:
        numbers: A row of the table of results; float, int, str or None by column.
        arrays: Tensors that belong to it.
    """

    numbers: Mapping[str, Number]
    arrays: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Task(Config):
    """Settings that can be run.

    Attributes:
        imports: Modules that are imported in the work, for workers to have before they start.
        seed: Of all that is random.
    """

    imports: ClassVar[tuple[str, ...]] = ()
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot be run.

        Raises:
            ValueError: Names the field, what was given and what is needed.
        """
        check_int("seed", self.seed, 0)

    def run(self, folder: Path, device: str) -> Outcome:
        """Do the work.

        Args:
            folder: The cell's own, for what a killed worker should find again.
            device: As torch calls it.

        Returns:
            What was found.

        Raises:
            NotImplementedError: Here; each task has its own.
        """
        raise NotImplementedError
