"""Figures 5 and 6: Hessians during training, by default of linear nets.

Percentiles are interpolated linearly; eigenvalues below -1e-10 of the largest magnitude count as
negative; between epochs, numbers are interpolated in the logarithm of the loss.
"""

import functools
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion
from experiments.demystifying_resnet.nets import (
    LABELS,
    LIMIT,
    MARKERS,
    PAPER,
    PLAIN_AND_TWO,
    build,
    compared,
    every,
    initial_weights,
    is_linear,
    least_loss,
    whitened,
)


def compute_curvature(
    *,
    dataset: str,
    samples: int | None,
    depth: int,
    rates: Mapping[str, float],
    epochs: int,
    checkpoints: int,
    early: int,
    scale: float,
    seed: int,
    loss: str = "square",
    pre: str | None = None,
    mid: str | None = None,
    post: str | None = None,
) -> dict[str, np.ndarray]:
    """Compute exact Hessians at epochs spaced evenly in log(epoch) and in log(loss).

    For the 2-shortcut net the first ``early`` epochs are added. Linear nets with the square loss
    need moments only, others the samples. With an activation plain nets have blocks of two layers,
    and ``optimum`` is the lower bound 0.
    """
    activations = dict(pre=pre, mid=mid, post=post)
    data, nets = whitened(dataset, samples), compared(**activations)
    optimum = least_loss(data, loss, linear=is_linear(**activations))
    arrays = {"optimum": np.array(optimum)}
    spaced = np.geomspace(1, epochs, checkpoints - 1).round().astype(int).tolist()
    for number, name in enumerate(PLAIN_AND_TWO):
        model = build(depth, nets[name], **activations)
        (start,) = initial_weights(model, nets[name]["init"], 1, scale, number, depth, seed)
        descend = functools.partial(
            rt.gradient_descent, model, loss, data,
            weights=start, learning_rate=rates[name], epochs=epochs, limit=LIMIT,
        )  # fmt: skip
        first = descend()
        if bool(first.diverged):
            raise ValueError(
                f"rates: got {rates[name]:g} for {name}, whose loss is above {LIMIT:g} after "
                f"{int(first.diverged_at)} epochs; needs a smaller one"
            )
        by_loss = _even_in_loss(first.loss.numpy() - optimum, checkpoints)
        first_ones = range(early) if name == "two_shortcut" else ()
        path = descend(keep={0, *spaced, *by_loss, *first_ones})
        found = rt.descent.hessian_trajectory(model, loss, data, path)
        arrays |= {
            f"{name}.epoch": found.epochs.numpy(),
            f"{name}.loss": found.loss.numpy(),
            f"{name}.max": found.each(lambda s: s.max_magnitude).numpy(),
            f"{name}.p10": found.each(lambda s: s.magnitude_percentile(10.0)).numpy(),
            f"{name}.index": found.each(lambda s: s.index).numpy(),
            f"{name}.gradient": path.gradient_norm.numpy(),
        }
    return arrays


def _even_in_loss(excess: np.ndarray, count: int) -> list[int]:
    """Epochs at which the loss first reaches levels that are spaced evenly in its logarithm."""
    levels = np.geomspace(excess[0], excess[-1], count)
    passed = [np.flatnonzero(excess <= level) for level in levels]
    return [int(epochs[0]) for epochs in passed if len(epochs)]


def _levels(a: Arrays, *names: str, low: float, high: float = np.inf) -> np.ndarray:
    """Losses that all these nets reach, within bounds: 200 levels, or none."""
    bottom = max(low, *(a[f"{name}.loss"].min() for name in names))
    top = min(high, *(a[f"{name}.loss"][0] for name in names))
    return np.geomspace(bottom, top, 200) if bottom < top else np.empty(0)


def judge_figure_5(a: Arrays) -> list[Criterion]:
    """Judge the ratios of condition numbers (max/10th percentile) at equal loss."""
    optimum = float(a["optimum"])
    rows = [
        ("orthogonal", "at every common loss ≥ 1", 1.0, np.inf, "< 1/5", 0.0, 0.2),
        ("orthogonal", "at every common loss ≥ optimum + 0.1", optimum + 0.1, np.inf, "< 1", 0, 1),
        ("xavier", "at every common loss ≥ optimum + 0.05", optimum + 0.05, np.inf, "< 1e-3", 0,
         1e-3),
        ("orthogonal", "near the end, optimum + 0.005 to + 0.05", optimum + 0.005, optimum + 0.05,
         "in [1/30, 30] (paper: roughly the same)", 1 / 30, 30.0),
    ]  # fmt: skip
    criteria = []
    for other, where, low, high, expected, least, most in rows:
        levels = _levels(a, "two_shortcut", other, low=low, high=high)
        cond10 = {name: a[f"{name}.max"] / a[f"{name}.p10"] for name in ("two_shortcut", other)}
        two, others = (
            rt.descent.at_loss(a[f"{name}.loss"], values, levels).numpy()
            for name, values in cond10.items()
        )
        ratio = two / others
        measured = f"{ratio.min():.3g} to {ratio.max():.3g}" if len(ratio) else "no common loss"
        holds = every((ratio > least) & (ratio < most))
        criteria.append(
            Criterion(f"2-shortcut over {LABELS[other]}, {where}", expected, measured, holds)
        )
    return criteria


def draw_figure_5(figure: Figure, a: Arrays) -> None:
    """Plot the largest |λ| and its 10th percentile against the loss above the optimum."""
    ax, optimum = figure.subplots(), float(a["optimum"])
    for name in PLAIN_AND_TWO:
        excess = a[f"{name}.loss"] - optimum
        (line,) = ax.plot(excess, a[f"{name}.max"], MARKERS[name] + "-", label=LABELS[name])
        ax.plot(excess, a[f"{name}.p10"], MARKERS[name] + "--", color=line.get_color(), mfc="none")
    below = " - optimum" if optimum else ""
    ax.set(xscale="log", yscale="log", xlabel=f"loss{below} (training goes to the right)")
    ax.set_ylabel("max |λ| (filled), 10th percentile of |λ| (open)")
    ax.invert_xaxis()
    ax.legend()


def judge_figure_6(a: Arrays) -> list[Criterion]:
    """Judge the share of negative eigenvalues."""
    start = float(a["two_shortcut.index"][0])
    steepest = int(a["two_shortcut.gradient"].argmax())
    index = a["two_shortcut.index"][np.abs(a["two_shortcut.epoch"] - steepest) <= 5]
    drop = float(index[0] - index[-1]) if index.size else float("nan")
    return [
        Criterion(
            "2-shortcut: index at the start",
            "1/2 ± 0.005 (Theorem 2)",
            start,
            abs(start - 0.5) <= 0.005,
        ),
        _judge_index(a, "orthogonal"),
        _judge_index(a, "xavier"),
        Criterion(
            f"2-shortcut: index drops where the gradient is largest (epoch {steepest} ± 5)",
            "by 0.02 or more",
            f"{drop:.3f}",
            drop >= 0.02,
        ),
    ]


def _judge_index(a: Arrays, other: str) -> Criterion:
    """Compare the index of the 2-shortcut net with that of another at their common losses."""
    first = min(a[f"{name}.loss"][0] for name in ("two_shortcut", other))
    low = float(a["optimum"]) + 0.01
    levels = _levels(a, "two_shortcut", other, low=low, high=0.9 * first)
    two, others = (
        rt.descent.at_loss(a[f"{name}.loss"], a[f"{name}.index"], levels, logarithmic=False).numpy()
        for name in ("two_shortcut", other)
    )
    return Criterion(
        f"2-shortcut: index below {LABELS[other]}'s at equal loss",
        "from optimum + 0.01 to 0.9 of the first loss (paper: always smaller)",
        f"at {100 * (two < others).mean():.0f} % of the losses, difference "
        f"{(two - others).min():.3f} to {(two - others).max():.3f}"
        if levels.size
        else "no common loss",
        every(two < others),
    )


def draw_figure_6(figure: Figure, a: Arrays) -> None:
    """Plot the index against the loss, and index and gradient norm of the 2-shortcut net."""
    left, right = figure.subplots(1, 2)
    optimum = float(a["optimum"])
    for name in PLAIN_AND_TWO:
        excess = a[f"{name}.loss"] - optimum
        left.plot(excess, a[f"{name}.index"], MARKERS[name] + "-", label=LABELS[name], mfc="none")
    below = " - optimum" if optimum else ""
    left.set(xscale="log", xlabel=f"loss{below}", ylabel="index (share of negative λ)")
    left.invert_xaxis()
    left.legend()
    early = a["two_shortcut.epoch"] <= 60
    right.plot(a["two_shortcut.epoch"][early], a["two_shortcut.index"][early], "k.-")
    right.set(xlabel="epoch", ylabel="index, 2-shortcut (black)")
    twin = right.twinx()
    twin.plot(a["two_shortcut.gradient"][:61], color="#D55E00")
    twin.set_ylabel("gradient norm (red)")


# -- the claims ------------------------------------------------------------------------------------

_SAYS = {
    "5": "At equal loss the condition number of a 2-shortcut net is always smaller than those of "
    "plain nets, especially when the loss is large; orthogonal and 2-shortcut nets end alike.",
    "6": "A 2-shortcut net has fewer negative eigenvalues than plain nets at every loss; their "
    "share drops dramatically at the beginning, where the gradient is largest.",
}
_CURVATURE = dict(
    samples=None,
    depth=16,
    rates={"two_shortcut": 0.3, "orthogonal": 0.1, "xavier": 0.01},
    epochs=1000,
    checkpoints=24,
    scale=0.01,
    seed=0,
)
_SMALL = dict(depth=4, checkpoints=5, epochs=300, early=22)


def _curvature(figure: str, judge, draw, small: Mapping[str, int] | None = None) -> list[Claim]:
    """Claims of one figure; at paper scale both figures have the same settings."""
    return [
        Claim(
            id=f"demystifying_resnet/figure_{figure}_{dataset}",
            source=f"{PAPER}, Figure {figure}, on {dataset.replace('mnist', 'MNIST')}",
            says=_SAYS[figure],
            settings={
                **({"quick": {**_CURVATURE, "dataset": dataset, **small}} if small else {}),
                "paper": dict(**_CURVATURE, dataset=dataset, early=0),
            },
            compute=compute_curvature,
            judge=judge,
            draw=draw,
        )
        for dataset, small in (("digits", small), ("mnist", None))
    ]


CLAIMS = [
    # The criteria of Figure 5 need deep nets, whose Hessians take too long for a quick run.
    *_curvature("5", judge_figure_5, draw_figure_5),
    *_curvature("6", judge_figure_6, draw_figure_6, small=_SMALL),
]
