"""Plain and residual nets of arXiv:1905.10944 and their trainings, shared by several claims.

The data are CIFAR-10. The available text does not give, and we chose, learning rate, momentum,
schedule and augmentation (``training.NOISE_STABILITY``), and 15 epochs instead of 200 at scale
``short``. Losses of final weights are taken on the training images without augmentation; the risk
during training is the mean over the augmented batches of an epoch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

import resid_theory as rt
from experiments.shipped import shipped_training
from experiments.trainings import Fit, Training, spread
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
ONE = {**FULL, "seeds": [0]}
EVERY_DEPTH = [20, 32, 44]


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
    size: int = 32,
    batch: int = BATCH,
) -> Training:
    """The training of the net of :func:`start_net` by the paper's recipe."""
    identity = "residual" if kind == "transferred" else kind
    arguments = {"depth": depth, "identity": identity, "generator": seed}
    architecture: dict[str, Any] = {"builder": "simplified_net", "arguments": arguments}
    if kind == "transferred":
        architecture["then"] = ["to_plain"]
    # Digits must not be flipped, and images of 8 pixels are too small for a padding of 4.
    kept = {"augmentation": "none"} if name == "digits" else {"channels_last": True}
    recipe = NOISE_STABILITY.scaled(epochs).change(batch=batch, precision="tf32", **kept)
    return Training(
        architecture=architecture, recipe=recipe, seed=seed, data=name, samples=samples, size=size
    )


def trainings_of(
    kinds: Sequence[str], depths: Sequence[int], training: Mapping[str, Any] | None
) -> dict[tuple[str, int], list[Training]]:
    """Trainings of every kind and depth, one per seed; without settings those of shipped nets."""
    if training is None:
        return {(k, d): [shipped_training(f"simplified_{k}_{d}")] for k in kinds for d in depths}
    seeds, given = training["seeds"], {k: v for k, v in training.items() if k != "seeds"}
    return {
        (k, d): [training_of(k, d, seed, **given) for seed in seeds] for k in kinds for d in depths
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
