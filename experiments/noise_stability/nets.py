"""Plain and residual nets of arXiv:1905.10944 and their trainings, shared by several claims.

The data are CIFAR-10. The available text does not give, and we chose, learning rate, momentum,
schedule and augmentation (``training.NOISE_STABILITY``), and 15 epochs instead of 200 at scale
``short``. Losses of final weights are taken on the training images without augmentation; the risk
during training is the mean over the augmented batches of an epoch.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

import resid_theory as rt
from experiments.shipped import shipped
from experiments.trainings import Fit, evaluated, image_set, once, spread, trained_together
from resid_theory.equivalence import to_plain
from resid_theory.training import NOISE_STABILITY

PAPER = "Yu & Tomasi 2019, arXiv:1905.10944"
KINDS = ("plain", "residual")
COLORS = {"plain": "tab:blue", "residual": "tab:orange"}
DECAY, BATCH = 1e-4, 128  # the paper logs ½λ‖θ‖² divided by the batch
SHORT = "15 of 200 epochs, one seed"
SECOND_SEED = "plain-32 from seed 1, as from seed 0 it stayed at chance for 10 epochs"
DIGITS = {"seeds": [0, 1], "epochs": 7, "batch": 16, "name": "digits", "samples": 480, "size": 8}
FULL = {"seeds": [0, 1, 2], "epochs": 200}
EVERY_DEPTH = [20, 32, 44]


def start_net(kind: str, depth: int, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """An untrained net; ``"transferred"`` is the plain net equivalent to the residual one."""
    identity = "residual" if kind == "transferred" else kind
    net = rt.simplified_net(depth, identity=identity, generator=seed).to(dtype)
    return to_plain(net) if kind == "transferred" else net


@lru_cache(maxsize=64)
def shipped_fit(kind: str, depth: int) -> Fit:
    made = shipped(f"simplified_{kind}_{depth}")
    return Fit(net=made.net, lines=made.lines, **made.about["train"])


def trained_fits(kind: str, depth: int, *, device: str, **given: Any) -> list[Fit]:
    """Train nets of one kind and depth together, one per seed; equal calls share one training."""
    return once(_train, kind, depth, device=device, **given)


def _train(
    kind: str,
    depth: int,
    *,
    seeds: Sequence[int],
    epochs: int,
    device: str,
    name: str = "cifar10",
    samples: int | None = None,
    size: int = 32,
    batch: int = BATCH,
) -> list[Fit]:
    data = image_set(name, "train", samples, size)
    # Digits must not be flipped, and images of 8 pixels are too small for a padding of 4.
    kept = {"augmentation": "none"} if name == "digits" else {"channels_last": True}
    run = trained_together(
        [start_net(kind, depth, seed) for seed in seeds],
        NOISE_STABILITY.scaled(epochs).change(batch=batch, **kept),
        seeds,
        name={"net": f"simplified_{kind}_{depth}", "data": [name, samples, size]},
        data=data,
        test=image_set(name, "test", None, size),
        device=device,
        keep=name != "digits",  # it takes seconds, and a test must not read an old result
    )
    fits = []
    for number, net in enumerate(run.nets):
        loss, error = evaluated(net, data)
        lines = [line for line in run.metrics if line["net"] == number]
        fits.append(Fit(net=net.cpu(), lines=lines, loss=loss, error=error))
    return fits


def pair_fits(
    depths: Sequence[int], training: Mapping[str, Any] | None, device: str
) -> dict[tuple[str, int], list[Fit]]:
    """Both kinds at every depth: the shipped nets, or nets trained by the settings ``training``."""
    return {
        (kind, depth): (
            [shipped_fit(kind, depth)]
            if training is None
            else trained_fits(kind, depth, device=device, **training)
        )
        for kind in KINDS
        for depth in depths
    }


def number_of_each(
    fits: Mapping[tuple[str, int], list[Fit]], depths: Sequence[int], read: Any
) -> Any:
    """Read one number from each net, (kinds, depths, seeds)."""
    return np.array([[[read(fit) for fit in fits[k, d]] for d in depths] for k in KINDS])


def pairs(table: np.ndarray, depths: np.ndarray) -> str:
    """Format plain against residual, depth by depth."""
    return "; ".join(
        f"depth {d}: {spread(table[0, i])} against {spread(table[1, i])}"
        for i, d in enumerate(depths)
    )
