"""Settings of a training beside its recipe, and its result."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from resid_theory._check import check_choice
from resid_theory.runtime.process_group import ProcessGroup
from resid_theory.runtime.result import Columns, Result
from resid_theory.training.checkpoint import Folder
from resid_theory.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Progress:
    """State of a training at the time of a measurement.

    Attributes:
        step: Number of steps done.
        epoch: Number of whole epochs done.
        net: Number of the net.
    """

    step: int
    epoch: int
    net: int


Callback = Callable[[nn.Module, Progress], Mapping[str, float] | None]
Stop = Callable[[int], bool]
Correction = Callable[[torch.optim.Optimizer, nn.Module], Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Run(Result):
    """A training that is finished or was stopped.

    Its nets are not saved with it: :func:`save_checkpoint` keeps a net. A recipe whose loss is a
    function cannot be saved.

    Attributes:
        nets: The trained modules, which are those that were given, without wrappers, in train
            mode.
        recipe: How they were trained.
        seeds: Seed of each net.
        metrics: One dict for each net and epoch, epoch 0 before the first step: ``epoch``,
            ``step``, ``net``, ``lr`` of the epoch's last step, ``loss`` and ``error`` (mean loss
            and share of errors in [0, 1] over the epoch's batches, augmented and in train mode),
            ``penalty`` (½λ‖θ‖² of the tensors that decay), ``test_loss`` and ``test_error`` in eval
            mode, and what callbacks returned. A number that is not finite is None.
        first_losses: Mean loss of each net on the batches of the first 50 steps, before each step,
            (nets, steps), float64, on the CPU; what a replay of the training is compared with.
            (nets, 0) after a resume from a checkpoint of an earlier version, which has none.
        notes: What was done to the data on the way into the nets, and why steps were not replayed
            as a CUDA graph if the recipe asked for it.
        finished: Whether all steps were taken; False if ``stop`` said so.
        seconds: Duration over all resumed parts, measurements included.
        out: The folder of the checkpoint, or None.
    """

    unsaved: ClassVar[Mapping[str, Any]] = {"nets": ()}

    nets: tuple[nn.Module, ...]
    recipe: Recipe
    seeds: tuple[int, ...]
    metrics: list[dict[str, Any]]
    first_losses: Tensor
    notes: tuple[str, ...]
    finished: bool
    seconds: float
    out: Path | None

    @property
    def net(self) -> nn.Module:
        """The net; a ValueError if there are several, or none because the run was loaded."""
        if not self.nets:
            raise ValueError("net: a loaded run has no nets; load_checkpoint loads a saved one")
        if len(self.nets) > 1:
            raise ValueError(f"net: {len(self.nets)} nets were trained, needs one; see nets")
        (net,) = self.nets
        return net

    headline = (
        "training of seeds {0.seeds} to {0.recipe.epochs} epochs, finished: {0.finished}, "
        "{0.seconds:.3g} s"
    )

    def table(self) -> Columns:
        """One row for each net and epoch: all metrics; None where a line has none."""
        names = list(dict.fromkeys(name for line in self.metrics for name in line))
        return {name: [line.get(name) for line in self.metrics] for name in names}

    def column(self, name: str, net: int = 0) -> list[Any]:
        """Values of one metric along training.

        Args:
            name: Key of a metrics line.
            net: Number of the net.

        Returns:
            Its values in the order of the lines that have it.

        Raises:
            ValueError: If no line has such a key, or there is no net of this number.
        """
        check_choice("name", name, list(self.table()))
        if net not in range(len(self.seeds)):
            raise ValueError(f"net: got {net}, needs a number below {len(self.seeds)}")
        return [line[name] for line in self.metrics if line["net"] == net and name in line]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Arguments of ``train`` beside nets, data, recipe and seeds."""

    device: torch.device
    folder: Folder | None = None
    callbacks: tuple[Callback, ...] = ()
    every: int | None = None
    correction: Correction | None = None
    save_seconds: float = 60.0
    stop: Stop | None = None
    progress: bool
    process_group: ProcessGroup
