"""Figure 3: weight norms of 2-shortcut nets during gradient descent."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, below
from experiments.demystifying_resnet.nets import (
    LIMIT,
    NETS,
    PAPER,
    build,
    initial_weights,
    listed,
    whitened,
)

SEEDS = 5
LATE = 50  # epochs, after the plateau near zero weights


def compute_figure_3(
    *,
    dataset: str,
    samples: int | None,
    depths: Sequence[int],
    rate: float,
    epochs: int,
    scale: float,
    seed: int,
    seeds: int = 1,
    mid: str | None = None,
    loss: str = "square",
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """Compute the mean Frobenius norm of the weights of 2-shortcut nets at every epoch.

    Seeds count from ``seed`` on; the norms are (depths, seeds, epochs + 1).
    """
    data = whitened(dataset, samples).to(device)
    norms = []
    for depth in depths:
        model = build(depth, NETS["two_shortcut"], mid=mid)
        starts = [
            initial_weights(model, "near_zero", 1, scale, depth, each)[0]
            for each in range(seed, seed + seeds)
        ]
        path = rt.gradient_descent(
            model,
            loss,
            data,
            weights=torch.stack(starts).to(device),
            learning_rate=rate,
            epochs=epochs,
            limit=LIMIT,
        )
        norms.append(path.mean_weight_norm.mT.cpu().numpy())
    return {"depth": np.array(depths), "norm": np.stack(norms)}


def _norms(a: Arrays) -> np.ndarray:
    """The norms, (depths, seeds, epochs + 1); a record of one seed may have no axis for it."""
    return a["norm"].reshape(len(a["depth"]), -1, a["norm"].shape[-1])


def judge_figure_3(a: Arrays) -> list[Criterion]:
    """Judge Figure 3 over the depths of the record."""
    norm = _norms(a)
    ratio = np.log(norm[1:] / norm[:-1])  # of neighbouring depths
    shown = "norms by depth " + listed(norm[:, :, -1].mean(1))
    criteria = [
        below(
            "log of the ratio of mean norms at the end, a deeper net's over the next, largest",
            ratio[:, :, -1].max(0),
            source="paper: deeper nets have smaller norms at the end",
            shown=shown,
        )
    ]
    if norm.shape[-1] > LATE:
        criteria.append(
            below(
                f"the same, largest of all epochs from {LATE}",
                ratio[:, :, LATE:].max((0, 2)),
                source="paper: and during training",
            )
        )
    return criteria


def draw_figure_3(figure: Figure, a: Arrays) -> None:
    """Plot the mean norm against epochs, one curve per depth and seed."""
    ax = figure.subplots()
    for i, (depth, norms) in enumerate(zip(a["depth"], _norms(a), strict=True)):
        lines = ax.plot(norms.T, color=f"C{i}", linewidth=1)
        lines[0].set_label(str(depth))
    ax.set(xscale="symlog", xlabel="epoch", ylabel="mean over layers\nof ‖W‖ (Frobenius)", ylim=0)
    ax.set_xlim(0, a["norm"].shape[-1] - 1)
    ax.legend(title="weight layers")


# -- the claims ------------------------------------------------------------------------------------

_FIGURE_3 = dict(epochs=1000, rate=0.3, scale=0.01, seed=0)
_ON_MNIST = dict(**_FIGURE_3, dataset="mnist", depths=[4, 8, 16, 32, 64, 96])
# One seed, 0, decided nothing: these are others.
_RELU = {**_ON_MNIST, "mid": "relu", "seed": 1}

CLAIMS = [
    Claim(
        id="demystifying_resnet/figure_3",
        source=f"{PAPER}, Figure 3, left",
        says="Deeper 2-shortcut linear nets have smaller average Frobenius norms, during training "
        "and at the end.",
        settings={
            "quick": {
                **_FIGURE_3,
                **dict(dataset="digits", samples=None, depths=[4, 16, 64], epochs=100),
            },
            "paper": dict(**_ON_MNIST, samples=None, seeds=SEEDS),
        },
        compute=compute_figure_3,
        judge=judge_figure_3,
        draw=draw_figure_3,
    ),
    Claim(
        id="demystifying_resnet/figure_3_relu",
        source=f"{PAPER}, Figure 3, right",
        says="The same with ReLUs in mid positions.",
        settings={
            "quick": {
                **_FIGURE_3,
                **dict(dataset="digits", samples=200, depths=[4, 8, 16], epochs=50, mid="relu"),
            },
            "short": dict(**_RELU, samples=600, seeds=SEEDS, scaled="600 of the 60,000 samples"),
            "paper": dict(**_RELU, samples=None, seeds=3),
        },
        compute=compute_figure_3,
        judge=judge_figure_3,
        draw=draw_figure_3,
    ),
]
CLAIMS.insert(
    1,
    replace(
        CLAIMS[0],
        id="demystifying_resnet/figure_3_digits",
        kind="extension",
        source=f"{PAPER}, Figure 3, left, on digits",
        settings={"paper": {**CLAIMS[0].settings["paper"], "dataset": "digits"}},
    ),
)
