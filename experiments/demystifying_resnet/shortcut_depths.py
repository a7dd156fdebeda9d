"""Figure 9 by a surrogate: fully connected instead of convolutional nets, shortcut depth 1 to 4."""

from functools import partial

import numpy as np
from matplotlib.figure import Figure

from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion
from experiments.demystifying_resnet.final_losses import at_best, final_losses
from experiments.demystifying_resnet.nets import PAPER, at_depth

SHORTCUT_DEPTHS = (1, 2, 3, 4)
compute_figure_9 = partial(
    final_losses,
    {f"n{n}": dict(n=n, shortcut=True, init="near_zero") for n in SHORTCUT_DEPTHS},
    pre="relu",
    mid="relu",
)


def judge_figure_9(a: Arrays) -> list[Criterion]:
    """Judge medians over seeds at N = 48 and N = 12."""
    depth, seeds = a["depth"], a["n1.loss"].shape[-1]
    loss = {n: at_best(a, f"n{n}", np.median)[0] for n in SHORTCUT_DEPTHS}
    first, last = {}, {}
    for n, values in loss.items():
        first[n], last[n] = (at_depth(depth, values, at) for at in (12, 48))
    others = min(last[n] for n in (1, 3, 4))
    of = f"median of {seeds} seeds"
    return [
        Criterion(
            "shortcut depth 2: smallest final loss at N = 48",
            f"below shortcut depths 1, 3 and 4, {of}",
            " ".join(f"n={n}: {value:.3f}" for n, value in last.items()),
            last[2] < others,
        ),
        Criterion(
            "shortcut depth 2: gains from depth",
            f"loss at N = 48 below that at N = 12, {of}",
            f"{last[2]:.3f} against {first[2]:.3f}",
            last[2] < first[2],
        ),
        Criterion(
            "shortcut depth 4: does not train at N = 48",
            f"loss > 5 times that of shortcut depth 2, {of}",
            f"{last[4] / last[2]:.2f} times",
            last[4] > 5 * last[2],
        ),
        Criterion(
            "shortcut depth 1: does not gain from depth",
            f"loss at N = 48 ≥ 0.95 of that at N = 12, {of}",
            f"{last[1] / first[1]:.3f}",
            last[1] >= 0.95 * first[1],
        ),
    ]


def draw_figure_9(figure: Figure, a: Arrays) -> None:
    """Plot final loss against depth, one curve per shortcut depth: median and all seeds."""
    ax = figure.subplots()
    for n, marker in zip(SHORTCUT_DEPTHS, "Dosv", strict=True):
        losses = a[f"n{n}.loss"]
        best = np.median(losses, axis=-1).argmin(-1)
        lowest = losses[np.arange(len(best)), best]
        (line,) = ax.plot(a["depth"], np.median(lowest, axis=-1), marker + "-", label=f"n = {n}")
        ax.plot(a["depth"], lowest, ".", color=line.get_color(), alpha=0.4)
    ax.set(yscale="log", xlabel="weight layers N", ylabel="final loss at the best learning rate")
    ax.set_xticks(a["depth"])
    ax.legend(title="shortcut depth")


# -- the claims ------------------------------------------------------------------------------------

_FIGURE_9 = dict(depths=[12, 24, 48], rates=[-2.0, 0.5, 0.5], seeds=5, epochs=400, scale=0.1)

CLAIMS = [
    *(
        Claim(
            id=f"demystifying_resnet/figure_9_surrogate_{dataset}",
            source=f"{PAPER}, Figure 9, on {dataset.replace('mnist', 'MNIST')}",
            says="Of shortcut depths 1 to 4 only 2 gains from great depth; 4 does not train.",
            settings={
                "short": dict(
                    **_FIGURE_9,
                    dataset=dataset,
                    samples=500,
                    scaled="fully connected nets of width 10 on 500 samples in place of "
                    "convolutional ones on CIFAR-10, 5 of 10 runs",
                )
            },
            compute=compute_figure_9,
            judge=judge_figure_9,
            draw=draw_figure_9,
        )
        for dataset in ("digits", "mnist")
    ),
]
