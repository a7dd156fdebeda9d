"""Figure 9 by a surrogate: fully connected instead of convolutional nets, shortcut depth 1 to 4."""

from functools import partial

import numpy as np
from matplotlib.figure import Figure

from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above, below
from experiments.demystifying_resnet.final_losses import at_best, final_losses
from experiments.demystifying_resnet.nets import LIMIT, PAPER, at_depth, listed

SHORTCUT_DEPTHS = (1, 2, 3, 4)
compute_figure_9 = partial(
    final_losses,
    {f"n{n}": dict(n=n, shortcut=True, init="near_zero") for n in SHORTCUT_DEPTHS},
    pre="relu",
    mid="relu",
)


def judge_figure_9(a: Arrays) -> list[Criterion]:
    """Judge final losses at the best learning rates, at N = 48 and at N = 12."""
    loss = {n: at_best(a, f"n{n}")[0].clip(max=LIMIT) for n in SHORTCUT_DEPTHS}
    first, last = ({n: at_depth(a["depth"], of, at) for n, of in loss.items()} for at in (12, 48))
    others = np.min([last[n] for n in (1, 3, 4)], axis=0)

    def medians(n: int) -> str:
        return f"medians by depth {listed(np.median(loss[n], -1))}"

    return [
        below(
            "shortcut depth 2: log of the ratio of final losses at N = 48 and at N = 12",
            np.log(last[2] / first[2]),
            source="paper: shortcut depth 2 gains from extreme depth",
            shown=medians(2),
        ),
        *(
            above(
                f"shortcut depth {n}: log of the ratio of final losses at N = 48 and at N = 12",
                np.log(last[n] / first[n]),
                np.log(0.95),
                source="paper: only depth 2 gains; ours, no gain of 5 %",
                shown=medians(n),
            )
            for n in (1, 3, 4)
        ),
        below(
            "shortcut depth 2 over the best of 1, 3 and 4 at N = 48: log of the ratio of losses",
            np.log(last[2] / others),
            source="paper: shortcut depth 2 is best at extreme depth",
        ),
    ]


def draw_figure_9(figure: Figure, a: Arrays) -> None:
    """Plot final loss against depth, one curve per shortcut depth: median and all seeds."""
    ax = figure.subplots()
    for n, marker in zip(SHORTCUT_DEPTHS, "Dosv", strict=True):
        losses, _ = at_best(a, f"n{n}")
        (line,) = ax.plot(a["depth"], np.median(losses, -1), marker + "-", label=f"n = {n}")
        ax.plot(a["depth"], losses, ".", color=line.get_color(), alpha=0.4)
    ax.set(yscale="log", xlabel="weight layers N", ylabel="final loss at the best learning rate")
    ax.set_xticks(a["depth"])
    ax.legend(title="shortcut depth")


# -- the claims ------------------------------------------------------------------------------------

_FIGURE_9 = dict(depths=[12, 24, 48], rates=[-2.0, 0.5, 0.5], epochs=400, scale=0.1)
_FIGURE_9 |= dict(seed=10, seeds=20)  # seeds 0 to 4 decided nothing: these are others

CLAIMS = [
    *(
        Claim(
            id=f"demystifying_resnet/figure_9_surrogate_{dataset}",
            kind="extension",
            source=f"{PAPER}, Figure 9, by nets of width 10 on {dataset.replace('mnist', 'MNIST')}",
            says="Of shortcut depths 1 to 4, only 2 gains from extreme depth.",
            settings={
                "short": dict(
                    **_FIGURE_9,
                    dataset=dataset,
                    samples=500,
                    scaled="fully connected nets of width 10 on 500 samples in place of "
                    "convolutional ones on CIFAR-10",
                )
            },
            compute=compute_figure_9,
            judge=judge_figure_9,
            draw=draw_figure_9,
        )
        for dataset in ("digits", "mnist")
    ),
]
