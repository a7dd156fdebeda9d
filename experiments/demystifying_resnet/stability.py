"""Stability of training: the abstract's word, read as tolerance of the learning rate.

The available text names stability once, without a number. We ask at how many decades of learning
rates a net trains, seed by seed: to within a hundredth of what there is to gain.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above
from experiments.demystifying_resnet.final_losses import final_losses
from experiments.demystifying_resnet.nets import (
    LABELS,
    MARKERS,
    PAPER,
    PLAIN_AND_TWO,
    least_loss,
    listed,
    whitened,
)
from experiments.parts import Each, in_turn

TRAINED = 0.01  # of the loss of the zero map above the optimum; ours


def compute_stability(
    *,
    dataset: str,
    depths: Sequence[int],
    rates: Sequence[float],
    seeds: int,
    epochs: int,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute final losses of linear nets on a grid of rates; the optimum and the zero map's."""
    losses = final_losses(
        PLAIN_AND_TWO, dataset=dataset, samples=None, depths=depths, rates=rates, seeds=seeds,
        epochs=epochs, scale=0.01, device=device, each=each,
    )  # fmt: skip
    data = whitened(dataset, None)
    zero = 0.5 * float(data.y.square().sum() / len(data.y))
    return {"optimum": np.array(least_loss(data, "square", linear=True)), "zero": zero, **losses}


def _decades(a: Arrays, name: str) -> np.ndarray:
    """Decades of learning rates at which a net trains, (depths, seeds)."""
    top = a["optimum"] + TRAINED * (a["zero"] - a["optimum"])
    return (a[f"{name}.loss"] <= top).sum(1) * float(np.diff(np.log10(a["rates"][:2]))[0])


def judge_stability(a: Arrays) -> list[Criterion]:
    """Test by seeds that 2-shortcut nets train at more rates, at every depth."""
    decades = {name: _decades(a, name) for name in PLAIN_AND_TWO}
    return [
        above(
            f"2-shortcut less {LABELS[name]}: decades of learning rates that train, the least "
            "difference of the depths",
            (decades["two_shortcut"] - decades[name]).min(0),
            of="median",
            source="abstract: better stability; its measure is ours",
            shown=f"by depth {listed(decades['two_shortcut'].mean(1))} against "
            f"{listed(decades[name].mean(1))}",
        )
        for name in ("xavier", "orthogonal")
    ]


def draw_stability(figure: Figure, a: Arrays) -> None:
    """Plot decades of rates that train against depth, means and all seeds."""
    ax = figure.subplots()
    for number, name in enumerate(PLAIN_AND_TWO):
        decades = _decades(a, name)
        style = dict(color=f"C{number}", mfc="none", label=LABELS[name])
        ax.plot(a["depth"], decades.mean(1), MARKERS[name] + "-", **style)
        ax.plot(a["depth"], decades, ".", color=style["color"], alpha=0.3)
    ax.set(
        xscale="log", xlabel="weight layers N", ylabel="learning rates that train (decades), mean"
    )
    ax.set_xticks(a["depth"], [str(depth) for depth in a["depth"]])
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    ax.legend()


_GRID = dict(rates=[-3.0, 1.25, 0.25], epochs=1000)

CLAIMS = [
    Claim(
        id="demystifying_resnet/stability",
        source=f"{PAPER}, abstract",
        says="2-shortcut nets from small weights train more stably than Xavier and orthogonal "
        "nets: at more learning rates, at every depth.",
        settings={
            "quick": dict(
                dataset="digits", depths=[6, 12], rates=[-2.0, 1.0, 0.5], seeds=2, epochs=100
            ),
            "paper": dict(**_GRID, dataset="mnist", depths=[6, 12, 24, 48], seeds=10),
        },
        compute=compute_stability,
        judge=judge_stability,
        draw=draw_stability,
    ),
]
