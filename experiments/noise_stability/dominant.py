"""Nets that consist of their dominant paths only, Appendix D.3.

The available text does not give, and we chose, learning rate, momentum and schedule
(``training.NOISE_STABILITY``). It also leaves open the meaning of the dense lower halves. Elsewhere
in D.3 halves are those of the two kernels that double the channels: new channels read all inputs,
the others only their own. Another interpretation is the lower half of the net, its first
convolutions. We train both.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above, below
from experiments.noise_stability.nets import (
    DIGITS,
    EVERY_DEPTH,
    FULL,
    ONE,
    PAPER,
    SMALL,
    SMALL_SCALED,
    number_of_each,
    trainings_of,
)
from experiments.parts import Each, in_turn
from experiments.trainings import fits

KINDS = {"residual": "residual", "dominant": "dominant paths only"}
DENSE = {
    "dominant_half": "dense lower halves of kernels",
    "dominant_upper": "dense lower half of the net",
}
COLORS = {kind: f"C{number}" for number, kind in enumerate((*KINDS, *DENSE))}


PRINTED = {"residual": (0.1131, 0.1143, 0.1182), "dominant": (0.3152, 0.3119, 0.3183)}
CHANCE = 0.1  # accuracy of a net that knows nothing


def compute_table_5(
    *,
    depths: Sequence[int],
    training: Mapping[str, Any],
    kinds: Sequence[str] = tuple(KINDS),
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Train nets of several kinds; arrays are (depths, seeds), curves (depths, seeds, epochs)."""
    found = fits(trainings_of(kinds, depths, training), each, device)
    arrays = {"depth": np.array(depths)}
    for key, name in (("loss", "loss"), ("error", "test_error"), ("parameters", "parameters")):
        table = number_of_each(found, depths, lambda fit, name=name: fit.number(name))
        arrays |= {f"{kind}.{key}": table[row] for row, kind in enumerate(kinds)}
    curves = number_of_each(found, depths, lambda fit: fit.along("loss"))
    return arrays | {f"{kind}.curve": curves[row] for row, kind in enumerate(kinds)}


def judge_table_5(a: Arrays) -> list[Criterion]:
    """Test by paired seeds that dominant paths keep most of the accuracy, whatever the depth."""
    errors = a["residual.error"], a["dominant.error"]
    residual, dominant = (1 - CHANCE - error for error in errors)
    sizes = (a["dominant.parameters"] / a["residual.parameters"]).max()
    rises = [error[-1] - error[0] for error in errors]
    ratio = a["dominant.loss"][-1] / a["dominant.loss"][0]
    depths = f"depth {a['depth'][0]} to {a['depth'][-1]}"
    return [
        above(
            "accuracy above chance of dominant-path nets less 0.7 of that of residual nets, at the "
            "worst depth of each seed",
            (dominant - 0.7 * residual).min(0),
            source="Table 5: .74 of it; 0.7 as before",
            shown=f"{100 * sizes:.1f} % of the parameters or fewer; test errors "
            f"{_spread(errors[1])} against {_spread(errors[0])}",
        ),
        below(
            f"rise of the test error from {depths}, dominant-path nets less residual nets",
            rises[1] - rises[0],
            0.02,
            source="Table 5: .003 against .005 from depth 20 to 44; two points as margin",
            shown=f"{rises[1].mean():+.4f} against {rises[0].mean():+.4f}",
        ),
        below(
            f"training loss of dominant-path nets, ratio from {depths}",
            ratio,
            1.1,
            source="Table 5: 1.00; a tenth as margin",
            shown=_spread(a["dominant.loss"]),
        ),
    ]


def judge_table_5_dense(a: Arrays) -> list[Criterion]:
    """Test by paired seeds that dense lower halves, of kernels or of the net, lower the error."""
    criteria = []
    for kind, label in DENSE.items():
        change = a[f"{kind}.error"] - a["dominant.error"]
        sizes = (a[f"{kind}.parameters"] / a["dominant.parameters"]).mean(1)
        criteria.append(
            below(
                f"{label}: test error less that of dominant-path nets, at the worst depth of each "
                "seed",
                change.max(0),
                source="Appendix D.3: lower; by how much is lost",
                shown=f"test errors {_spread(a[f'{kind}.error'])} against "
                f"{_spread(a['dominant.error'])} with {', '.join(f'{s:.1f}' for s in sizes)} "
                "times the parameters",
            )
        )
    return criteria


def _spread(cells: np.ndarray) -> str:
    """Format mean and standard deviation over seeds for every depth."""
    many = cells.shape[1] > 1
    return ", ".join(f"{c.mean():.3f}" + (f" ± {c.std(ddof=1):.3f}" if many else "") for c in cells)


def draw_table_5(figure: Figure, a: Arrays) -> None:
    """Plot the loss during training and the test error against depth, for all seeds."""
    left, right = figure.subplots(1, 2)
    for kind, label in {**KINDS, **DENSE}.items():
        if f"{kind}.error" not in a:
            continue
        color = COLORS[kind]
        for row, (depth, style) in enumerate(zip(a["depth"], ("-", "--", ":"), strict=False)):
            curves = a[f"{kind}.curve"][row]
            epochs = np.arange(1, curves.shape[1] + 1)
            left.plot(epochs, curves.mean(0), color + style, label=f"{label}, depth {depth}")
            left.fill_between(epochs, curves.min(0), curves.max(0), color=color, alpha=0.15)
        error = a[f"{kind}.error"]
        right.plot(a["depth"], error.mean(1), color + "-", label=label)
        right.plot(a["depth"], error, color + "o", mfc="none")
    left.set(xlabel="epoch", ylabel="training loss (nats, augmented images)")
    for kind, printed in PRINTED.items():
        if f"{kind}.error" in a:
            told = f"{KINDS[kind]}, Table {5 if kind == 'dominant' else 1}"
            right.plot(EVERY_DEPTH, printed, COLORS[kind] + "x", ms=7, label=told)
    ticks = sorted({*EVERY_DEPTH, *a["depth"].tolist()})
    right.set(xlabel="depth (layers)", ylabel="test error", xticks=ticks, ylim=(0, None))
    left.legend(fontsize="small")
    right.legend(fontsize="small")


# -- the claims ------------------------------------------------------------------------------------

_SCALES = {
    "quick": {"depths": [5, 8], "training": DIGITS, "scaled": "64 digits, 3 epochs"},
    "short": {
        "depths": [8, 20], "training": SMALL, "scaled": f"{SMALL_SCALED}, depths 8 and 20"
    },
    "single": {"depths": [20, 44], "training": ONE, "scaled": "one seed, depths 20 and 44"},
    "paper": {"depths": EVERY_DEPTH, "training": FULL},
}  # fmt: skip

CLAIMS = [
    Claim(
        id="noise_stability/table_5",
        source=f"{PAPER}, Table 5 and Appendix D.3",
        says="Residual nets reduced to their dominant paths, a few per cent of the weights, keep "
        "most of the accuracy and do not degrade with depth (Table 5).",
        settings=_SCALES,
        compute=compute_table_5,
        judge=judge_table_5,
        draw=draw_table_5,
    ),
    Claim(
        id="noise_stability/table_5_dense",
        source=f"{PAPER}, Appendix D.3",
        says="Dense lower halves lower the test error of dominant-path nets (Appendix D.3).",
        settings={
            **_SCALES,
            # Seeds 0 to 4 decided nothing and asked for 15: these are others.
            "short": {
                "depths": [8], "training": {**SMALL, "seeds": list(range(5, 25))},
                "scaled": f"{SMALL_SCALED}, depth 8, 20 seeds",
            },
        },
        compute=partial(compute_table_5, kinds=("dominant", *DENSE)),
        judge=judge_table_5_dense,
        draw=draw_table_5,
    ),
]  # fmt: skip
