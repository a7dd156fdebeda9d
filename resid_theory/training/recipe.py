"""Recipes: hyperparameters of a training as data, and those of the papers."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import nn

from resid_theory._check import check_choice, check_int, check_positive, check_within
from resid_theory.losses import LOSSES, Loss, LossLike
from resid_theory.runtime.storable import Storable
from resid_theory.runtime.store import digest

GRAPH = "graph"
_CHOICES = {
    "decay": ("all", "multi_axis"),
    "augmentation": ("none", "crop_flip"),
    "padding": ("zeros", "reflect"),
    "precision": ("float64", "float32", "tf32", "bf16"),
    "compile": ("none", GRAPH),
}


@dataclass(frozen=True, kw_only=True)
class Recipe(Storable):
    """Hyperparameters of stochastic gradient descent with its schedule and augmentation.

    Attributes:
        epochs: Number of passes over the data, at least 1.
        batch: Number of samples in a step; the last step of an epoch takes the rest.
        lr: Learning rate of the first epochs.
        momentum: Momentum in [0, 1); 0 for plain gradient descent.
        nesterov: Whether to use Nesterov momentum.
        weight_decay: λ; each step adds λθ, the gradient of ½λ‖θ‖², to the gradient of θ,
            where there is one: tensors that the loss does not reach stay as they are.
        decay: Tensors that decay: ``"all"``, or ``"multi_axis"``, those with two axes or more.
        milestones: Epochs, ascending, after which the rate is multiplied by ``factor``.
        factor: Factor of the rate, in (0, 1].
        warmup: Number of epochs in which the rate rises linearly, step by step.
        augmentation: ``"none"``, or ``"crop_flip"``: pad, crop at random, mirror half of them.
        pad: Pixels of padding on each side.
        padding: ``"zeros"`` or ``"reflect"``.
        precision: ``"float64"``, ``"float32"``, ``"tf32"`` (float32 whose products a GPU may round
            to 10 bits), or ``"bf16"`` (float32 weights, with bfloat16 in the operations that
            autocast chooses).
        channels_last: Whether images and kernels are stored with the channels innermost.
        compile: ``"none"``; on a GPU ``"graph"``, which records a whole step as a CUDA graph and
            replays it, after a proof that the first losses are the same.
        loss: A name in ``rt.losses.LOSSES``, such as ``"cross_entropy"`` of labels or ``"square"``,
            ½‖f(x) − y‖² summed over outputs; or a loss of ``torch.nn`` or a function
            ``(output, target) -> scalar``. Labels become one-hot rows where it needs values of the
            output's shape.

    Raises:
        ValueError: If a name is no field, or a value is out of range; names the field, what was
            given and what is needed.

    Example:
        >>> Recipe(epochs=10, lr=0.02, milestones=(5, 8)).rate(step=600, steps=100)
        0.002
    """

    epochs: int = 200
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay: str = "all"
    milestones: tuple[int, ...] = (100, 150)
    factor: float = 0.1
    warmup: int = 0
    augmentation: str = "crop_flip"
    pad: int = 4
    padding: str = "zeros"
    precision: str = "float32"
    channels_last: bool = False
    compile: str = "none"
    loss: LossLike = "cross_entropy"

    def __new__(cls, **settings: Any) -> "Recipe":
        """Refuse unknown fields and name the nearest one, which Python's own TypeError does not."""
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                check_choice("recipe", name, known)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        scored = Loss.of(self.loss)
        if scored.takes_batches:
            raise ValueError("loss: got one of (net, batch), a training needs (output, target)")
        if isinstance(scored.function, nn.Module) and any(scored.function.parameters()):
            raise ValueError(
                f"loss: {scored.name} has parameters of its own, which would not be trained; make "
                "them a part of the net"
            )
        for name, least in (("epochs", 1), ("batch", 1), ("warmup", 0), ("pad", 0)):
            object.__setattr__(self, name, check_int(name, getattr(self, name), least))
        for name in ("nesterov", "channels_last"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, needs True or False")
        object.__setattr__(self, "lr", check_positive("lr", self.lr))
        object.__setattr__(self, "momentum", check_within("momentum", self.momentum, 0, 1, "[)"))
        object.__setattr__(self, "factor", check_within("factor", self.factor, 0, 1, "(]"))
        decay = check_within("weight_decay", self.weight_decay, 0, math.inf, "[)")
        object.__setattr__(self, "weight_decay", decay)
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: got True with momentum 0; needs momentum above 0")
        try:
            milestones = [check_int("milestones", at) for at in self.milestones]
            ascend = milestones == sorted(milestones)
        except TypeError:
            ascend = False  # no sequence
        if not ascend:
            raise ValueError(f"milestones: got {self.milestones!r}, needs ascending epochs")
        object.__setattr__(self, "milestones", tuple(milestones))

    def change(self, **settings: Any) -> "Recipe":
        """The same recipe with some fields changed.

        Args:
            **settings: Fields by name.

        Returns:
            A new recipe.

        Raises:
            ValueError: If a name is no field, with the nearest one; or a value is out of range.
        """
        return Recipe(**{**asdict(self), **settings})

    def content(self) -> dict[str, Any]:
        """Fields by name for a record, with a description in place of a loss without a name."""
        return {**asdict(self), "loss": _description(self.loss)}

    def scaled(self, epochs: int) -> "Recipe":
        """Stretch the schedule to more or fewer epochs: milestones and warm-up keep their shares.

        Args:
            epochs: Number of epochs of the new recipe.

        Returns:
            A new recipe; milestones that coincide are all kept.
        """
        share = check_int("epochs", epochs) / self.epochs
        milestones = tuple(max(1, round(at * share)) for at in self.milestones)
        return replace(
            self, epochs=epochs, milestones=milestones, warmup=round(self.warmup * share)
        )

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of one step.

        Args:
            step: Number of the step, from 0.
            steps: Number of steps in an epoch.

        Returns:
            The rate: constant within an epoch, except in the warm-up.
        """
        drops = sum(step >= at * steps for at in self.milestones)
        # Divided, not multiplied: 0.02 falls to 0.002, not to 0.0020000000000000005.
        rate = self.lr / (1 / self.factor) ** drops
        return rate * min(1.0, (step + 1) / (self.warmup * steps)) if self.warmup else rate


def _description(loss: LossLike) -> str:
    """The loss's name; of a module its settings and a digest of its tensors, too."""
    given = Loss.of(loss)
    named = next((name for name, row in LOSSES.items() if row is given), None)
    if named is not None:
        return named
    function = given.function
    if not isinstance(function, nn.Module):
        module, name = (getattr(function, key, "") for key in ("__module__", "__qualname__"))
        return f"{module}.{name or type(function).__qualname__}"
    kept = {key: value for key, value in vars(function).items()
            if isinstance(value, (bool, float, int, str)) and key != "training"}  # fmt: skip
    tensors = b"".join(t.numpy(force=True).tobytes() for t in function.state_dict().values())
    return f"{type(function).__name__}({kept}, {digest(tensors)[:8]})"


NOISE_STABILITY = Recipe(lr=0.02)
"""Nets without BatchNorm. Source: "Identity connections in residual nets improve noise stability",
section 5: CIFAR-10, 200 epochs, batch 128, λ = 1e-4. Rate, momentum, schedule and augmentation
are not given there; ours are 0.02 (these nets stall or diverge from 0.05 on), 0.9, a factor 0.1
after a half and three quarters, flips and crops."""
NOISE_STABILITY_BN = NOISE_STABILITY.change(lr=0.1)
"""The same for nets with BatchNorm, which tolerate the usual rate."""
DIRACNETS = Recipe(
    weight_decay=5e-4,
    decay="multi_axis",
    milestones=(60, 120, 160),
    factor=0.2,
    padding="reflect",
)
"""Source: Zagoruyko & Komodakis, "DiracNets", arXiv:1706.00388v2, section 3, and the authors' code
(which tensors decay, reflection)."""
DIRACNETS_IMAGENET = DIRACNETS.change(
    epochs=100, batch=256, weight_decay=1e-4, milestones=(30, 60, 90), factor=0.1
)
"""Same source, ImageNet."""
