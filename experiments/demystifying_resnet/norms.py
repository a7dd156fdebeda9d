"""Figure 3: weight norms of 2-shortcut nets during gradient descent."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion
from experiments.demystifying_resnet.nets import (
    LIMIT,
    NETS,
    PAPER,
    build,
    every,
    initial_weights,
    listed,
    slope,
    whitened,
)


def compute_figure_3(
    *,
    dataset: str,
    samples: int | None,
    depths: Sequence[int],
    rate: float,
    epochs: int,
    scale: float,
    seed: int,
    mid: str | None = None,
    loss: str = "square",
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """Compute the mean Frobenius norm of the weights of 2-shortcut nets at every epoch."""
    data = whitened(dataset, samples).to(device)
    norms = []
    for depth in depths:
        model = build(depth, NETS["two_shortcut"], mid=mid)
        (start,) = initial_weights(model, "near_zero", 1, scale, depth, seed).to(device)
        path = rt.gradient_descent(
            model, loss, data, weights=start, learning_rate=rate, epochs=epochs, limit=LIMIT
        )
        norms.append(path.mean_weight_norm.cpu().numpy())
    return {"depth": np.array(depths), "norm": np.stack(norms)}


def judge_figure_3(a: Arrays) -> list[Criterion]:
    """Judge Figure 3 over the depths of the record."""
    depth, norm = a["depth"], a["norm"]
    final, late = norm[:, -1], norm[:, 50:]
    power = slope(depth, final)
    falls = (np.diff(late, axis=0) < 0).all(0)
    criteria = [
        Criterion(
            "mean norm at the end falls with depth",
            "strictly decreasing (paper: deeper means smaller)",
            listed(final),
            every(np.diff(final) < 0),
        ),
        Criterion(
            "the same at every epoch from 50",
            "strictly decreasing",
            f"at {100 * falls.mean():.1f} % of the epochs" if falls.size else "no such epoch",
            every(falls),
        ),
        Criterion(
            "mean norm as a power of depth",
            "log-log slope in [-0.55, -0.25] (-1/2 for balanced factors of a fixed map)",
            f"{power:.3f}",
            -0.55 <= power <= -0.25,
        ),
    ]
    if 4 in depth and 96 in depth:
        ratio = float(final[depth == 96][0] / final[depth == 4][0])
        criteria.append(
            Criterion("norm at N = 96 over that at N = 4", "≤ 0.4", f"{ratio:.3f}", ratio <= 0.4)
        )
    return criteria


def draw_figure_3(figure: Figure, a: Arrays) -> None:
    """Plot the mean norm against epochs, one curve per depth."""
    ax = figure.subplots()
    for depth, norm in zip(a["depth"], a["norm"], strict=True):
        ax.plot(norm, label=f"N = {depth}")
    ax.set(xscale="symlog", xlabel="epoch", ylabel="mean over layers of ‖W‖ (Frobenius)", ylim=0)
    ax.set_xlim(0, len(norm) - 1)
    ax.legend(fontsize="small")


# -- the claims ------------------------------------------------------------------------------------

_FIGURE_3 = dict(epochs=1000, rate=0.3, scale=0.01, seed=0)
_ON_MNIST = dict(**_FIGURE_3, dataset="mnist", depths=[4, 8, 16, 32, 64, 96])

CLAIMS = [
    Claim(
        id="demystifying_resnet/figure_3",
        source=f"{PAPER}, Figure 3, left",
        says="Deeper 2-shortcut linear nets have smaller average Frobenius norms, during training "
        "and at the end.",
        settings={
            "quick": {
                **_FIGURE_3,
                **dict(dataset="digits", samples=None, depths=[4, 16, 64], epochs=300),
            },
            "paper": dict(**_ON_MNIST, samples=None),
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
                **dict(dataset="digits", samples=200, depths=[4, 8, 16], epochs=100, mid="relu"),
            },
            "short": dict(**_ON_MNIST, samples=600, mid="relu", scaled="600 of the 60,000 samples"),
            "paper": dict(**_ON_MNIST, samples=None, mid="relu"),
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
        source=f"{PAPER}, Figure 3, left, on digits",
        settings={"paper": {**CLAIMS[0].settings["paper"], "dataset": "digits"}},
    ),
)
