"""Plain and residual nets of arXiv:1905.10944 and their trainings, shared by several claims.

The data are CIFAR-10. The available text does not give, and we chose, learning rate, momentum,
schedule and augmentation (``training.NOISE_STABILITY``). Losses of final weights are taken on the
training images without augmentation; the risk during training is the mean over the augmented
batches of an epoch.

Scale ``short`` has two kinds of trainings. Comparisons of nets need seeds: they rest on five small
trainings of each net. What is said of one trained net is measured on the shipped ones, which saw
all images for 15 epochs, one seed each; there a comparison of nets stays undecided.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

import resid_theory as rt
from experiments.parts import Each
from experiments.shipped import shipped_training
from experiments.trainings import FULL_EPOCHS, Fit, Training, fits
from resid_theory.equivalence import to_plain
from resid_theory.training import NOISE_STABILITY, NOISE_STABILITY_BN

PAPER = "Yu & Tomasi 2019, arXiv:1905.10944"
KINDS = ("plain", "residual")
FULL_KINDS = ("full_plain", "full_residual")  # with BatchNorm and two convolutions a block
COLORS = {"plain": "C0", "residual": "C1"}
DECAY, BATCH = 1e-4, 128  # the paper logs ½λ‖θ‖² divided by the batch
SHIPPED = (
    "15 of 200 epochs, one seed; of plain nets of depth 32 one of two seeds starts (exact 95 % "
    "interval .01 to .99), the other stays at chance for 10 epochs"
)
DIGITS = {
    "seeds": [0, 1], "epochs": 3, "batch": 32, "name": "digits", "samples": 64, "tests": 64,
    "size": 8,
}  # fmt: skip
SMALL = {
    "seeds": [0, 1, 2, 3, 4], "epochs": 8, "batch": 32, "samples": 2000, "tests": 2000, "size": 8,
}  # fmt: skip
SMALL_SCALED = "2,000 images at 8 x 8, 8 epochs of batch 32"
# Of FULL_KINDS, which begin to learn at once. Seeds 0 to 4 decided too little: these are others.
SMALL_FULL = {**SMALL, "seeds": list(range(5, 20)), "epochs": 4}
SMALL_FULL_SCALED = "2,000 images at 8 x 8, 4 epochs of batch 32, 15 seeds"
FULL = {"seeds": [0, 1, 2], "epochs": FULL_EPOCHS}
ONE = {**FULL, "seeds": [0]}
EVERY_DEPTH = [20, 32, 44]
STARTED = 0.99 * math.log(10)  # a net that knows nothing has the loss ln 10


def start_net(kind: str, depth: int, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """An untrained net; ``"transferred"`` is the plain net equivalent to the residual one."""
    identity = "residual" if kind == "transferred" else kind
    net = rt.simplified_net(depth, identity=identity, generator=seed).to(dtype)
    return to_plain(net) if kind == "transferred" else net


def training_of(
    kind: str,
    depth: int,
    seed: int,
    *,
    epochs: int,
    name: str = "cifar10",
    samples: int | None = None,
    tests: int | None = None,
    size: int = 32,
    batch: int = BATCH,
) -> Training:
    """The training of the net of :func:`start_net`, or of ``FULL_KINDS``, by the paper's recipe."""
    architecture: dict[str, Any]
    if kind in FULL_KINDS:
        arguments = {"depth": depth, "shortcut": kind == "full_residual", "generator": seed}
        architecture = {"builder": "full_net", "arguments": arguments}
        recipe = NOISE_STABILITY_BN.change(precision="bf16")
    else:
        identity = "residual" if kind == "transferred" else kind
        arguments = {"depth": depth, "identity": identity, "generator": seed}
        architecture = {"builder": "simplified_net", "arguments": arguments}
        recipe = NOISE_STABILITY.change(precision="tf32")
    if kind == "transferred":
        architecture["then"] = ["to_plain"]
    # Digits must not be flipped; the usual padding is 4 for 32 pixels.
    kept: dict[str, Any] = {"channels_last": True, "pad": size // 8}
    if name == "digits":
        kept = {"augmentation": "none"}
    recipe = recipe.scaled(epochs).change(batch=batch, **kept)
    return Training(
        architecture=architecture, recipe=recipe, seed=seed, data=name, samples=samples,
        tests=tests, size=size,
    )  # fmt: skip


def trainings_of(
    kinds: Sequence[str], depths: Sequence[int], training: Mapping[str, Any] | None
) -> dict[tuple[str, int], list[Training]]:
    """Trainings of every kind and depth, one per seed; without settings those of shipped nets."""
    if training is None:
        names = {k: k if k in FULL_KINDS else f"simplified_{k}" for k in kinds}
        return {(k, d): [shipped_training(f"{names[k]}_{d}")] for k in kinds for d in depths}
    seeds, given = training["seeds"], {k: v for k, v in training.items() if k != "seeds"}
    return {
        (k, d): [training_of(k, d, seed, **given) for seed in seeds] for k in kinds for d in depths
    }


def nets_of(
    kinds: Sequence[str],
    depth: int,
    states: Sequence[str],
    training: Mapping[str, Any] | None,
    each: Each,
    device: str,
) -> dict[tuple[str, str], list[nn.Module]]:
    """Nets of every kind and state, ``"initial"`` or ``"trained"``, one per seed, in eval mode."""
    wanted = trainings_of(kinds, [depth], training)
    found = fits(wanted if "trained" in states else {}, each, device, weights=True)
    return {
        (kind, state): [
            net.to(device)
            for net in (
                [fit.net for fit in found[kind, depth]]
                if state == "trained"
                else [made.start().eval() for made in wanted[kind, depth]]
            )
        ]
        for kind in kinds
        for state in states
    }


def number_of_each(
    fits: Mapping[tuple[str, int], list[Fit]], depths: Sequence[int], read: Any
) -> Any:
    """Read one number from each net, (kinds, depths, seeds), or one row, (..., epochs)."""
    kinds = list(dict.fromkeys(kind for kind, _ in fits))
    return np.array([[[read(fit) for fit in fits[k, d]] for d in depths] for k in kinds])


def means(table: np.ndarray, depths: np.ndarray) -> str:
    """Format means over seeds of the first kind against the second, depth by depth."""
    return "; ".join(
        f"depth {d}: {first:.4g} against {second:.4g}"
        for d, first, second in zip(depths, *table.mean(2), strict=True)
    )


def starts(risk: np.ndarray) -> str:
    """Format how many nets have left chance, with the exact 95 % interval of their rate."""
    count, n = int((risk < STARTED).sum()), risk.size
    ends = stats.binomtest(count, n).proportion_ci()
    return f"{count} of {n} start (rate {ends.low:.2f} to {ends.high:.2f})"
