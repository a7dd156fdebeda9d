"""Pre-activation residual nets on CIFAR-10: Figure 2 (weight norms) and Figure 9 (shortcut depth).

The available text says only that the learning rate falls from 0.1 by factors of ten at epochs 81
and 122 of 200; we chose batches of 128, momentum 0.9, weight decay 1e-4, flips and crops.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above, below
from experiments.demystifying_resnet.nets import PAPER
from experiments.parts import Each, in_turn
from experiments.trainings import Training, fits, spread
from resid_theory.training import NOISE_STABILITY_BN

RECIPE = NOISE_STABILITY_BN.change(milestones=(81, 122))
SHORTCUT_DEPTHS = (1, 2, 3, 4)


def _trainings(
    depth: int,
    shortcut_depth: int,
    *,
    seeds: Sequence[int],
    epochs: int,
    data: str = "cifar10",
    samples: int | None = None,
    tests: int | None = None,
    size: int = 32,
    batch: int = 128,
) -> list[Training]:
    """Trainings of nets that differ in their seeds."""
    # Digits must not be flipped, and images of 8 pixels are too small for a padding of 4.
    kept = {"augmentation": "none"} if data == "digits" else {"channels_last": True}
    recipe = RECIPE.scaled(epochs).change(batch=batch, precision="bf16", **kept)
    arguments = {"depth": depth, "shortcut_depth": shortcut_depth}
    return [
        Training(
            architecture={"builder": "preresnet", "arguments": {**arguments, "generator": seed}},
            recipe=recipe, seed=seed, data=data, samples=samples, tests=tests, size=size,
        )
        for seed in seeds
    ]  # fmt: skip


# -- Figure 2 --------------------------------------------------------------------------------------


def compute_figure_2(
    *,
    depths: Sequence[int],
    training: Mapping[str, Any],
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute the mean norm at the start and after every epoch, (depths, seeds, epochs + 1)."""
    nets = {depth: _trainings(depth, 2, **training) for depth in depths}
    rows = fits(nets, each, device).values()
    return {
        "depth": np.array(depths),
        "norm": np.array([[fit.log("mean_norm") for fit in row] for row in rows]),
        "loss": np.array([[fit.along("loss") for fit in row] for row in rows]),
    }


def judge_figure_2(a: Arrays) -> list[Criterion]:
    """Require smaller norms for deeper nets, at the end and during training."""
    rise = np.diff(a["norm"], axis=0)  # between neighbouring depths
    shown = ", ".join(
        f"depth {d}: {spread(rows[:, -1])}" for d, rows in zip(a["depth"], a["norm"], strict=True)
    )
    return [
        below(
            "mean norm at the end: that of a deeper net minus that of the next, largest difference",
            rise[:, :, -1].max(0),
            source="paper: deeper nets have smaller norms at the end",
            shown=shown,
        ),
        below(
            "the same, mean of all epochs from 1",
            rise[:, :, 1:].mean(-1).max(0),
            source="paper: and during training",
        ),
    ]


def draw_figure_2(figure: Figure, a: Arrays) -> None:
    """Plot the mean norm against epochs, one curve per depth."""
    ax = figure.subplots()
    for depth, rows in zip(a["depth"], a["norm"], strict=True):
        epoch = np.arange(rows.shape[1])
        ax.plot(epoch, rows.mean(0), ".-", label=f"depth {depth}")
        ax.fill_between(epoch, rows.min(0), rows.max(0), alpha=0.2)
    ax.set(xlabel="epoch", ylabel="mean Frobenius norm of the kernels")
    ax.legend()


# -- Figure 9 --------------------------------------------------------------------------------------


def compute_figure_9(
    *,
    depths: Sequence[int],
    training: Mapping[str, Any],
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute the final training loss without augmentation by shortcut depth, depth and seed."""
    nets = {(n, d): _trainings(d, n, **training) for n in SHORTCUT_DEPTHS for d in depths}
    found = fits(nets, each, device)
    rows = [[found[n, d] for d in depths] for n in SHORTCUT_DEPTHS]
    losses = [[[fit.number("loss") for fit in row] for row in of] for of in rows]
    counts = [[int(row[0].number("parameters")) for row in of] for of in rows]
    return {
        "depth": np.array(depths),
        "shortcut_depth": np.array(SHORTCUT_DEPTHS),
        "loss": np.array(losses),
        "parameters": np.array(counts),
    }


def judge_figure_9(a: Arrays) -> list[Criterion]:
    """Require that only shortcut depth 2 gains from depth, and is best at the largest depth."""
    depth, gain = a["depth"], np.log(a["loss"][:, -1] / a["loss"][:, 0])
    last = np.log(a["loss"][:, -1])
    rows = zip(a["shortcut_depth"], gain, a["loss"], strict=True)
    return [
        Criterion(
            "equal numbers of parameters at every shortcut depth",
            "equal",
            " ".join(str(count) for count in a["parameters"][0]),
            bool((a["parameters"] == a["parameters"][0]).all()),
        ),
        *(
            (below if n == 2 else above)(
                f"shortcut depth {n}: log of the ratio of final losses at depths {depth[-1]} and "
                f"{depth[0]}",
                sample,
                source="paper: only shortcut depth 2 gains from extreme depth",
                shown=f"{spread(losses[-1])} against {spread(losses[0])}",
            )
            for n, sample, losses in rows
        ),
        below(
            f"shortcut depth 2 over the best of 1, 3 and 4 at depth {depth[-1]}: log of the ratio",
            last[1] - np.delete(last, 1, axis=0).min(0),
            source="paper: shortcut depth 2 is best at extreme depth",
        ),
    ]


def draw_figure_9(figure: Figure, a: Arrays) -> None:
    """Plot the final loss against depth, one curve per shortcut depth, all seeds as dots."""
    ax = figure.subplots()
    for n, rows, marker in zip(a["shortcut_depth"], a["loss"], "Dosv", strict=True):
        (line,) = ax.plot(a["depth"], rows.mean(1), marker + "-", label=f"n = {n}")
        ax.plot(a["depth"], rows, ".", color=line.get_color(), alpha=0.4)
    ax.set(xlabel="depth", ylabel="final training loss", xticks=a["depth"], yscale="log")
    ax.legend(title="shortcut depth")


# -- the claims ------------------------------------------------------------------------------------

CLAIMS = [
    Claim(
        id="demystifying_resnet/figure_2",
        source=f"{PAPER}, Figure 2",
        says="Deeper pre-activation residual nets have smaller average Frobenius norms, during "
        "training and at the end.",
        settings={
            "short": {
                "depths": [10, 22, 40],
                # Two seeds of 5,000 images decided nothing.
                "training": {
                    "seeds": [0, 1, 2, 3, 4], "epochs": 10, "samples": 1000, "tests": 500,
                    "size": 16, "batch": 32,
                },
                "scaled": "1,000 images at 16 x 16, 10 of 200 epochs of batch 32, depth 10 to 40",
            },
            "single": {
                "depths": [10, 40],
                "training": {"seeds": [0], "epochs": 200},
                "scaled": "one seed, depths 10 and 40",
            },
            "paper": {"depths": [10, 40, 112], "training": {"seeds": [0, 1, 2], "epochs": 200}},
        },
        compute=compute_figure_2,
        judge=judge_figure_2,
        draw=draw_figure_2,
    ),
    Claim(
        id="demystifying_resnet/figure_9",
        source=f"{PAPER}, Figure 9",
        says="Of shortcut depths 1 to 4, at equal parameters, only 2 gains from extreme depth.",
        settings={
            "short": {
                "depths": [40, 112],
                "training": {
                    "seeds": [0, 1], "epochs": 12, "samples": 1000, "size": 16, "batch": 32
                },
                "scaled": "1,000 images at 16 x 16, 12 of 200 epochs, 2 of 10 seeds, two of the "
                "depths",
            },
            "single": {
                "depths": [40, 112],
                "training": {"seeds": [0], "epochs": 200},
                "scaled": "one seed, depths 40 and 112",
            },
            "paper": {
                "depths": [40, 76, 112],
                "training": {"seeds": list(range(10)), "epochs": 200},
            },
        },
        compute=compute_figure_9,
        judge=judge_figure_9,
        draw=draw_figure_9,
    ),
]  # fmt: skip
