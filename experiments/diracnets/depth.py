"""DiracNets: accuracy by depth and width, sections 3.1 and 3.2 and Figure 1.

BatchNorm weights are initialized to one, as in torch; the authors' code draws them from U(0, 1).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.claim import Arrays, Claim, Verdict
from experiments.diracnets.nets import (
    CHANCE,
    COLORS,
    DIGITS,
    DIGITS_SCALED,
    FULL,
    LEARNT,
    PAPER,
    SHORT,
    SHORT_SCALED,
    each_seed,
    interval,
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


def judge_section_3_1(a: Arrays) -> list[Verdict]:
    """Require a gap from 34 layers on, and a plain net of 100 layers that does not train."""
    gaps = 100 * (a["test_error"][0] - a["test_error"][1])  # points, (depths, seeds)
    found = []
    for depth, gap in zip(a["depth"], gaps, strict=True):
        mean, low, high = interval(gap)
        if depth >= 34:
            found.append(
                Verdict(
                    f"test accuracy at depth {depth}, Dirac less plain with the same seed, points",
                    "95 % interval above 0 (Figure 1: about 4 points at 52, 52 at 100)",
                    f"{mean:.1f}, interval {low:.1f} to {high:.1f} (n = {len(gap)})",
                    low > 0,
                )
            )
    if 100 in a["depth"]:
        plain, dirac = a["risk"][:, list(a["depth"]).index(100), :, -1]
        found += [
            Verdict(
                "plain, depth 100: risk of the last epoch",
                f"every seed > ln 10 - {LEARNT} = {CHANCE - LEARNT:.3f}, stuck at chance "
                "(Figure 1: does not converge)",
                f"{plain.min():.4f} to {plain.max():.4f} (n = {len(plain)})",
                bool((plain > CHANCE - LEARNT).all()),
            ),
            Verdict(
                "Dirac, depth 100: risk of the last epoch",
                f"every seed < ln 10 - {LEARNT} = {CHANCE - LEARNT:.3f}, not stuck "
                "(Figure 1: 92.4 % accuracy)",
                f"{dirac.min():.4f} to {dirac.max():.4f} (n = {len(dirac)})",
                bool((dirac < CHANCE - LEARNT).all()),
            ),
        ]
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
        accuracy = 100 * (1 - errors)
        right.plot(a["depth"], accuracy.mean(1), "-", color=COLORS[kind], label=kind)
        right.plot(a["depth"], accuracy, ".", color=COLORS[kind])
    left.axhline(CHANCE, color="0.7", linewidth=1)
    left.set(xlabel="epoch", ylabel="training risk")
    right.set(xlabel="depth", ylabel="test accuracy, %", xticks=a["depth"])
    left.legend(fontsize="small")
    right.legend()


# -- Figure 1 --------------------------------------------------------------------------------------

FAMILIES = ("plain", "dirac", "residual")


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


def _medians(a: Arrays, kind: str, width: int = 1) -> dict[int, float]:
    """Median test accuracy over seeds in percent, by depth."""
    rows = np.flatnonzero((a["kind"] == FAMILIES.index(kind)) & (a["width"] == width))
    return {int(a["depth"][i]): float(100 * (1 - np.median(a["test_error"][i]))) for i in rows}


def judge_figure_1(a: Arrays) -> list[Verdict]:
    """Require Dirac above plain; for full trainings also the paper's degradation with depth."""
    plain, dirac = _medians(a, "plain"), _medians(a, "dirac")
    common = [depth for depth in plain if depth in dirac]
    enough = [dirac[d] > plain[d] if d >= 34 else dirac[d] >= plain[d] - 0.5 for d in common]
    found = [
        Verdict(
            "median test accuracy by depth, Dirac against plain, width 1",
            "Dirac ≥ plain - 0.5 points below depth 34, > plain from there on (Figure 1)",
            "; ".join(f"depth {d}: {dirac[d]:.1f} against {plain[d]:.1f} %" for d in common)
            + f" (n = {a['test_error'].shape[1]})",
            all(enough),
        )
    ]
    return found + (_judge_in_full(plain, dirac) if a["epochs"] >= FULL_EPOCHS else [])


def _judge_in_full(plain: Mapping[int, float], dirac: Mapping[int, float]) -> list[Verdict]:
    rising = [dirac[d] for d in sorted(dirac) if d <= 34]
    return [
        Verdict(
            "Dirac, width 1: median accuracy from depth 10 to 34",
            "increasing (Figure 1, to 92.8 %)",
            " ".join(f"{value:.2f}" for value in rising),
            rising == sorted(rising),
        ),
        Verdict(
            "Dirac: accuracy at depth 34 less that at 100, points",
            "within 1 (Figure 1: 92.8 and 92.4 %)",
            dirac[34] - dirac[100],
            abs(dirac[34] - dirac[100]) <= 1,
        ),
        Verdict(
            "plain: accuracy at depth 34 less that at 52, points",
            "> 3 (Figure 1: 91.2 and 88 %)",
            plain[34] - plain[52],
            plain[34] - plain[52] > 3,
        ),
        Verdict(
            "plain: accuracy at depth 100, %", "< 60 (Figure 1: 40)", plain[100], plain[100] < 60
        ),
    ]


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
    ax.set(xlabel="depth", ylabel="test accuracy, %, median over seeds")
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


def judge_section_3_2(a: Arrays) -> list[Verdict]:
    """Require no degradation with width."""
    accuracy = 1 - a["test_error"]
    return [
        Verdict(
            f"test accuracy of Dirac-{a['depth']} by width, mean over seeds",
            "non-decreasing (section 3.2: no degradation with width)",
            "; ".join(
                f"width {w}: {percent(row)}" for w, row in zip(a["width"], accuracy, strict=True)
            ),
            bool((np.diff(accuracy.mean(1)) >= 0).all()),
        )
    ]


def draw_section_3_2(figure: Figure, a: Arrays) -> None:
    """Plot accuracy against width, one dot per seed."""
    accuracy = 100 * (1 - a["test_error"])
    ax = figure.subplots()
    ax.plot(a["width"], accuracy.mean(1), "-", color=COLORS["dirac"])
    ax.plot(a["width"], accuracy, ".", color=COLORS["dirac"])
    ax.set(xlabel="width", ylabel="test accuracy, %", xticks=a["width"])


# -- the claims ------------------------------------------------------------------------------------

CLAIMS = [
    Claim(
        id="diracnets/section_3_1",
        source=f"{PAPER}, section 3.1",
        says="DiracNets of 52 and of 100 layers train; plain nets of their shape lag from 34 "
        "layers on, and at 100 do not start.",
        settings={
            "quick": {
                "depths": [52], "training": DIGITS, "scaled": f"{DIGITS_SCALED}, depth 52 only",
            },
            "short": {"depths": [10, 52, 100], "training": SHORT, "scaled": SHORT_SCALED},
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
                "nets": [["plain", 10, 1], ["plain", 52, 1], ["dirac", 10, 1], ["dirac", 52, 1],
                         ["dirac", 10, 2], ["residual", 10, 1]],
                "training": DIGITS,
                "scaled": f"{DIGITS_SCALED}, depths 10 and 52, widths 1 and 2",
            },
            "short": {
                "nets": [["plain", 10, 1], ["plain", 34, 1], ["plain", 52, 1], ["plain", 100, 1],
                         ["dirac", 10, 1], ["dirac", 34, 1], ["dirac", 52, 1], ["dirac", 100, 1],
                         ["dirac", 10, 2], ["residual", 10, 1], ["residual", 34, 1]],
                "training": SHORT,
                "scaled": f"{SHORT_SCALED}, width 1 and Dirac-10 of width 2",
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
                "depth": 10, "widths": [1, 2], "training": DIGITS,
                "scaled": f"{DIGITS_SCALED}, depth 10, widths 1 and 2",
            },
            "short": {
                "depth": 10, "widths": [1, 2, 4], "training": SHORT,
                "scaled": f"{SHORT_SCALED}, depth 10",
            },
            "paper": {"depth": 34, "widths": [1, 2, 3, 4], "training": FULL},
        },
        compute=compute_section_3_2,
        judge=judge_section_3_2,
        draw=draw_section_3_2,
    ),
]  # fmt: skip
