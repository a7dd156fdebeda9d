"""Cells of n-shortcut nets: the exact Hessian at the start."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch

from resid_theory._check import choose
from resid_theory.curvature import hessian_spectrum
from resid_theory.data import load_whitened
from resid_theory.losses import LOSSES
from resid_theory.shortcut import INITIALIZATIONS, ShortcutNet, initialize
from resid_theory.sweep.task import Outcome, Task

__all__ = ["Hessian"]


@dataclass(frozen=True, kw_only=True)
class Hessian(Task):
    """All eigenvalues of the Hessian of an n-shortcut net at its start.

    Attributes:
        seed: Of the weights.
        data: ``digits`` or ``mnist``, whitened.
        components: Principal components kept, the net's width d.
        blocks: Number of blocks R.
        shortcut_depth: Layers n under one shortcut.
        plain: Whether the shortcuts are left out.
        hidden: Width inside a block.
        bias: Whether each block's first layer has a bias.
        pre: Activation before a block.
        mid: Activation between the layers of a block.
        post: Activation after a block's last layer.
        init: One of ``rt.initialize``'s kinds.
        scale: Factor of ``near_zero``.
        loss: ``square`` or ``cross_entropy``.
    """

    imports: ClassVar[tuple[str, ...]] = ("sklearn.datasets",)
    data: str = "digits"
    components: int = 10
    blocks: int = 4
    shortcut_depth: int = 2
    plain: bool = False
    hidden: int | None = None
    bias: bool = False
    pre: str | None = None
    mid: str | None = None
    post: str | None = None
    init: str = "near_zero"
    scale: float = 0.01
    loss: str = "square"

    def check(self) -> None:
        """Refuse what cannot be run.

        Raises:
            ValueError: Names the field, what was given and what is needed.
        """
        super().check()
        choose("data", self.data, ("digits", "mnist"))
        choose("init", self.init, INITIALIZATIONS)
        choose("loss", self.loss, tuple(LOSSES))
        replace(self, blocks=min(self.blocks, 1)).net()
        if self.components != 10:
            raise ValueError(
                f"components: got {self.components}, needs 10: the net has as many outputs as "
                f"inputs, {self.data} has 10 targets"
            )

    def net(self) -> ShortcutNet:
        """The net with its first weights.

        Returns:
            A new net.
        """
        net = ShortcutNet(
            self.components,
            self.blocks,
            self.shortcut_depth,
            shortcut=not self.plain,
            hidden=self.hidden,
            bias=self.bias,
            pre=self.pre,
            mid=self.mid,
            post=self.post,
        )
        generator = torch.Generator().manual_seed(self.seed)
        return initialize(net, self.init, generator=generator, scale=self.scale)

    def run(self, folder: Path, device: str) -> Outcome:
        """Compute the eigenvalues.

        Args:
            folder: Nothing is kept there.
            device: Theory is done on the CPU.

        Returns:
            The numbers of ``rt.Spectrum`` and the eigenvalues.
        """
        found = hessian_spectrum(self.net(), self.loss, _whitened(self.data, self.components))
        numbers = {"max_magnitude": found.max_magnitude, **found.summary()}
        return Outcome(numbers=numbers, arrays={"eigenvalues": found.eigenvalues})


@lru_cache(maxsize=2)
def _whitened(data: str, components: int) -> Any:
    return load_whitened(data, components, progress=False)
