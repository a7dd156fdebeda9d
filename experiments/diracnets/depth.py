"""DiracNets: accuracy by depth and width, sections 3.1 and 3.2 and Figure 1.

BatchNorm weights are initialized to one, as in torch; the authors' code draws them from U(0, 1).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above, below, near
from experiments.diracnets.nets import (
    CHANCE,
    COLORS,
    FULL,
    LEARNT,
    ONE,
    ONE_SEED,
    PAPER,
    QUICK,
    QUICK_SCALED,
    SHORT,
    SHORT_SCALED,
    each_seed,
    percent,
    trainings_of,
)
from experiments.parts import Each, in_turn
from experiments.trainings import FULL_EPOCHS, fits

# -- section 3.1 -----------------------------------------------------------------------------------

KINDS = ("plain", "dirac")


def compute_section_3_1(
    *,
    depths: Sequence[int],
    training: Mapping[str, Any],
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute risk by epoch and final test error of plain and Dirac nets, all seeds."""
    nets = {(k, d): trainings_of(k, training, depth=d) for k in KINDS for d in depths}
    found = fits(nets, each, device)
    risk = [[[fit.along("loss") for fit in found[k, d]] for d in depths] for k in KINDS]
    error = [[each_seed(found[k, d], "test_error") for d in depths] for k in KINDS]
    return {"depth": np.array(depths), "risk": np.array(risk), "test_error": np.array(error)}


def judge_section_3_1(a: Arrays) -> list[Criterion]:
    """Require a gap from 34 layers on, and that of 100 layers only Dirac nets start.

    A net starts if its risk ends ``LEARNT`` below chance. Seeds that start are counted beside the
    tests, which are of the risk: counts of fewer than six seeds decide nothing among other tests.
    """
    gaps = 100 * (a["test_error"][0] - a["test_error"][1])  # points, (depths, seeds)
    found = [
        above(
            f"test accuracy at depth {depth}, Dirac less plain with the same seed, points",
            gap,
            source="Figure 1: 1.6 points at 34, about 4 at 52, 52 at 100",
        )
        for depth, gap in zip(a["depth"], gaps, strict=True)
        if depth >= 34
    ]
    if 100 in a["depth"]:
        bound = CHANCE - LEARNT
        for kind, test, words, risks in zip(
            KINDS,
            (above, below),
            ("do not converge", "converge"),
            a["risk"][:, list(a["depth"]).index(100), :, -1],
            strict=True,
        ):
            started = int((risks < bound).sum())
            found.append(
                test(
                    f"{kind}, depth 100: risk of the last epoch",
                    risks,
                    bound,
                    source=f"section 3.1: {words}; a net starts {LEARNT} below ln 10",
                    shown=f"{started} of {len(risks)} seeds start, {risks.min():.3f} to "
                    f"{risks.max():.3f}",
                )
            )
    return found


def draw_section_3_1(figure: Figure, a: Arrays) -> None:
    """Plot risk by epoch, darker with depth, and final test accuracy against depth."""
    left, right = figure.subplots(1, 2)
    epoch = np.arange(1, a["risk"].shape[-1] + 1)
    for kind, risks, errors in zip(KINDS, a["risk"], a["test_error"], strict=True):
        for number, (depth, risk) in enumerate(zip(a["depth"], risks, strict=True), start=1):
            left.plot(
                epoch, risk.mean(0), color=COLORS[kind], alpha=number / len(risks),
                label=f"{kind} {depth}",
            )  # fmt: skip
            left.fill_between(epoch, risk.min(0), risk.max(0), color=COLORS[kind], alpha=0.1)
        accuracy = 100 * (1 - errors)
        right.plot(a["depth"], accuracy.mean(1), "-", color=COLORS[kind], label=kind)
        right.plot(a["depth"], accuracy, ".", color=COLORS[kind])
    left.axhline(CHANCE, color="0.7", linewidth=1)
    left.set(xlabel="epoch", ylabel="training risk (nats)")
    _draw_printed(right)
    ticks = sorted({*a["depth"].tolist(), 34})
    right.set(xlabel="depth (layers)", ylabel="test accuracy (%)", xticks=ticks)
    left.legend(fontsize="small")
    right.legend()


# -- Figure 1 --------------------------------------------------------------------------------------

FAMILIES = ("plain", "dirac", "residual")
PRINTED = {"plain": {34: 91.2, 52: 88.0, 100: 40.0}, "dirac": {34: 92.8, 100: 92.4}}  # %, Figure 1


def _draw_printed(ax: Axes) -> None:
    """Plot the accuracies that the paper's text gives as crosses."""
    for kind, points in PRINTED.items():
        told = f"{kind}, paper (200 epochs)"
        ax.plot(list(points), list(points.values()), "x", color=COLORS[kind], ms=7, label=told)


def compute_figure_1(
    *,
    nets: Sequence[Sequence[Any]],
    training: Mapping[str, Any],
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute test error and number of parameters of nets given as kind, depth and width."""
    groups = {
        (kind, depth, width): trainings_of(kind, training, depth=depth, width=width)
        for kind, depth, width in nets
    }
    rows = list(fits(groups, each, device).values())
    return {
        "kind": np.array([FAMILIES.index(kind) for kind, _, _ in nets]),
        "depth": np.array([depth for _, depth, _ in nets]),
        "width": np.array([width for _, _, width in nets]),
        "parameters": np.array([int(row[0].number("parameters")) for row in rows]),
        "test_error": np.array([each_seed(row, "test_error") for row in rows]),
        "epochs": np.array(training["epochs"]),
    }


def _accuracies(a: Arrays, kind: str, width: int = 1) -> dict[int, np.ndarray]:
    """Test accuracy of all seeds in points, by depth."""
    rows = np.flatnonzero((a["kind"] == FAMILIES.index(kind)) & (a["width"] == width))
    return {int(a["depth"][i]): 100 * (1 - a["test_error"][i]) for i in rows}


def judge_figure_1(a: Arrays) -> list[Criterion]:
    """Require growth with depth and width up to 40 layers, and collapse of plain nets only.

    The paper plots medians over 5 seeds, too few for a test of medians: tests are of means.
    """
    plain, dirac, residual = (_accuracies(a, kind) for kind in FAMILIES)
    found = []
    for kind, rows in (("Dirac", dirac), ("residual", residual)):
        depths = sorted(depth for depth in rows if depth <= 34)
        if len(depths) > 1:
            found.append(_less(rows, kind, depths[-1], depths[0], "grows with depth, to 92.8 %"))
    if {34, 100} <= set(dirac):
        found.append(
            near(
                "Dirac: test accuracy at depth 34 less that at 100, points",
                dirac[34] - dirac[100],
                margin=1.0,
                source="Figure 1: 92.8 and 92.4 %",
                shown=f"{percent(dirac[34] / 100)} and {percent(dirac[100] / 100)}",
            )
        )
    for depth, wide in _accuracies(a, "dirac", 2).items():
        if depth in dirac:
            found.append(
                above(
                    f"Dirac, depth {depth}: test accuracy at width 2 less that at 1, points",
                    wide - dirac[depth],
                    source="Figure 1: grows with width",
                )
            )
    for depth in plain:
        if depth in dirac:
            # Shallow nets are about equal in Figure 1.
            least = 0.0 if depth >= 34 else -0.5
            found.append(
                above(
                    f"test accuracy at depth {depth}, Dirac less plain, points",
                    dirac[depth] - plain[depth],
                    least,
                    source="Figure 1, half a point for shallow nets, which are about equal",
                    shown=f"{percent(dirac[depth] / 100)} and {percent(plain[depth] / 100)}",
                )
            )
    return found + _judge_collapse(plain, dirac, bool(a["epochs"] >= FULL_EPOCHS))


def _less(
    rows: Mapping[int, np.ndarray], kind: str, deep: int, shallow: int, source: str
) -> Criterion:
    return above(
        f"{kind}: test accuracy at depth {deep} less that at {shallow}, points",
        rows[deep] - rows[shallow],
        source=f"Figure 1: {source}",
        shown=f"{percent(rows[deep] / 100)} and {percent(rows[shallow] / 100)}",
    )


def _judge_collapse(
    plain: Mapping[int, np.ndarray], dirac: Mapping[int, np.ndarray], full: bool
) -> list[Criterion]:
    found = []
    if {34, 52} <= set(plain):
        found.append(
            above(
                "plain: test accuracy at depth 34 less that at 52, points",
                plain[34] - plain[52],
                3.0,
                source="Figure 1: 91.2 and 88 %",
            )
        )
    if {34, 100} <= set(plain) & set(dirac):
        found.append(
            above(
                "loss of test accuracy from depth 34 to 100, plain less Dirac, points",
                (plain[34] - plain[100]) - (dirac[34] - dirac[100]),
                source="Figure 1: plain 51 points, Dirac 0.4",
            )
        )
    if full and 100 in plain:
        found.append(
            below("plain: test accuracy at depth 100, %", plain[100], 60.0, source="Figure 1: 40 %")
        )
    return found


def draw_figure_1(figure: Figure, a: Arrays) -> None:
    """Plot median accuracy against depth by kind and width; areas show parameters."""
    ax = figure.subplots()
    for kind in FAMILIES:
        for width, style in zip((1, 2, 3, 4), ("-", "--", "-.", ":"), strict=True):
            rows = np.flatnonzero((a["kind"] == FAMILIES.index(kind)) & (a["width"] == width))
            if not len(rows):
                continue
            accuracy = 100 * (1 - np.median(a["test_error"][rows], axis=1))
            label = f"{kind}, width {width}"
            ax.plot(a["depth"][rows], accuracy, style, color=COLORS[kind], label=label)
            area = 20 * a["parameters"][rows] / a["parameters"].min()
            ax.scatter(a["depth"][rows], accuracy, area, color=COLORS[kind], alpha=0.5)
        # Every seed, to show the spread.
        rows = np.flatnonzero(a["kind"] == FAMILIES.index(kind))
        every = 100 * (1 - a["test_error"][rows])
        ax.plot(a["depth"][rows], every, "_", color=COLORS[kind], alpha=0.7)
    _draw_printed(ax)
    ax.set(xlabel="depth (layers)", ylabel="test accuracy (%), median over seeds")
    ax.legend()


# -- section 3.2 -----------------------------------------------------------------------------------


def compute_section_3_2(
    *,
    depth: int,
    widths: Sequence[int],
    training: Mapping[str, Any],
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute the final test error of DiracNets by width, all seeds."""
    nets = {width: trainings_of("dirac", training, depth=depth, width=width) for width in widths}
    rows = fits(nets, each, device).values()
    return {
        "depth": np.array(depth),
        "width": np.array(widths),
        "test_error": np.array([each_seed(row, "test_error") for row in rows]),
    }


def judge_section_3_2(a: Arrays) -> list[Criterion]:
    """Require no degradation from each width to the next."""
    accuracy = 100 * (1 - a["test_error"])
    return [
        above(
            f"test accuracy of Dirac-{a['depth']} at width {wide} less that at {narrow}, points",
            accuracy[number + 1] - accuracy[number],
            source="section 3.2: no degradation with width",
            shown=f"{percent(accuracy[number + 1] / 100)} and {percent(accuracy[number] / 100)}",
        )
        for number, (narrow, wide) in enumerate(pairwise(a["width"].tolist()))
    ]


def draw_section_3_2(figure: Figure, a: Arrays) -> None:
    """Plot accuracy against width, one dot per seed."""
    accuracy = 100 * (1 - a["test_error"])
    ax = figure.subplots()
    ax.plot(a["width"], accuracy.mean(1), "-", color=COLORS["dirac"])
    ax.plot(a["width"], accuracy, ".", color=COLORS["dirac"])
    ax.set(xlabel="width k", ylabel="test accuracy (%)", xticks=a["width"])


# -- the claims ------------------------------------------------------------------------------------

CLAIMS = [
    Claim(
        id="diracnets/section_3_1",
        source=f"{PAPER}, section 3.1",
        says="Deep plain nets lag behind DiracNets of their shape; at 100 layers they do not "
        "start, and DiracNets do.",
        settings={
            "quick": {
                "depths": [34], "training": QUICK, "scaled": f"{QUICK_SCALED}, depth 34 only",
            },
            "short": {"depths": [10, 52, 100], "training": SHORT, "scaled": SHORT_SCALED},
            "single": {
                "depths": [34, 52, 100], "training": ONE,
                "scaled": f"depths 34, 52 and 100, {ONE_SEED}",
            },
            "paper": {"depths": [10, 16, 22, 28, 34, 40, 52, 100], "training": FULL},
        },
        compute=compute_section_3_1,
        judge=judge_section_3_1,
        draw=draw_section_3_1,
    ),
    Claim(
        id="diracnets/figure_1",
        source=f"{PAPER}, Figure 1",
        says="Accuracy of DiracNets grows with depth and width and hardly falls at 100 layers, as "
        "that of residual nets; that of plain nets collapses.",
        settings={
            "quick": {
                "nets": [["plain", 10, 1], ["dirac", 10, 1], ["dirac", 10, 2],
                         ["residual", 10, 1]],
                "training": QUICK,
                "scaled": f"{QUICK_SCALED}, depth 10, widths 1 and 2",
            },
            "short": {
                "nets": [["plain", 10, 1], ["plain", 34, 1], ["plain", 52, 1], ["plain", 100, 1],
                         ["dirac", 10, 1], ["dirac", 34, 1], ["dirac", 52, 1], ["dirac", 100, 1],
                         ["dirac", 10, 2], ["residual", 10, 1], ["residual", 34, 1]],
                "training": SHORT,
                "scaled": f"{SHORT_SCALED}, width 1 and Dirac-10 of width 2",
            },
            "single": {
                "nets": [
                    *(["plain", depth, 1] for depth in (34, 52, 100)),
                    *(["dirac", depth, 1] for depth in (28, 34, 52, 100)),
                ],
                "training": ONE,
                "scaled": f"depths from 28 on, width 1, no residual nets, {ONE_SEED}",
            },
            "paper": {
                "nets": [
                    *(["plain", depth, 1] for depth in (10, 16, 22, 28, 34, 40, 52, 100)),
                    *([kind, depth, width] for kind in ("dirac", "residual")
                      for width in (1, 2, 3, 4) for depth in (10, 16, 22, 28, 34, 40)),
                    *([kind, depth, 1] for kind in ("dirac", "residual") for depth in (52, 100)),
                ],
                "training": FULL,
            },
        },
        compute=compute_figure_1,
        judge=judge_figure_1,
        draw=draw_figure_1,
    ),
    Claim(
        id="diracnets/section_3_2",
        source=f"{PAPER}, section 3.2",
        says="DiracNets do not degrade with width.",
        settings={
            "quick": {
                "depth": 10, "widths": [1, 2], "training": QUICK,
                "scaled": f"{QUICK_SCALED}, depth 10, widths 1 and 2",
            },
            "short": {
                "depth": 10, "widths": [1, 2, 4], "training": SHORT,
                "scaled": f"{SHORT_SCALED}, depth 10",
            },
            "single": {
                "depth": 34, "widths": [1, 2], "training": ONE,
                "scaled": f"widths 1 and 2, {ONE_SEED}",
            },
            "paper": {"depth": 34, "widths": [1, 2, 3, 4], "training": FULL},
        },
        compute=compute_section_3_2,
        judge=judge_section_3_2,
        draw=draw_section_3_2,
    ),
]  # fmt: skip
