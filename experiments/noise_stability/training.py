"""Speed and result of the training of plain and residual nets: Table 1, Figures 8 and 9."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above, below
from experiments.noise_stability.nets import (
    COLORS,
    DIGITS,
    EVERY_DEPTH,
    FULL,
    KINDS,
    ONE,
    PAPER,
    SMALL,
    SMALL_SCALED,
    STARTED,
    means,
    number_of_each,
    starts,
    trainings_of,
)
from experiments.parts import Each, in_turn
from experiments.trainings import FULL_EPOCHS, fits

# -- Table 1 ---------------------------------------------------------------------------------------


def compute_table_1(
    *,
    depths: Sequence[int],
    training: Mapping[str, Any],
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute training loss and test error of plain (KWI) and residual nets (HMWI)."""
    found = fits(trainings_of(KINDS, depths, training), each, device)
    return {
        "depth": np.array(depths),
        "loss": number_of_each(found, depths, lambda fit: fit.number("loss")),
        "test_error": number_of_each(found, depths, lambda fit: fit.along("test_error")[-1]),
    }


PRINTED_1 = {  # Table 1, plain and residual nets
    "loss": ([0.0723, 0.1225, 0.4950], [0.0429, 0.0485, 0.0740]),
    "test_error": ([0.1263, 0.1349, 0.2213], [0.1131, 0.1143, 0.1182]),
}
TABLE_1 = {  # of depth 20, 32 and 44, plain and residual
    "loss": (".0723 .1225 .4950 against .0429 .0485 .0740", ".423 against .031"),
    "test_error": (".1263 .1349 .2213 against .1131 .1143 .1182", ".095 against .005"),
}


def judge_table_1(a: Arrays) -> list[Criterion]:
    """Test by paired seeds that residual nets end lower, and rise less with depth."""
    found = []
    for key, (printed, rises) in TABLE_1.items():
        table, name, depth = a[key], key.replace("_", " "), a["depth"]
        found.append(
            below(
                f"{name}, residual less plain, at the worst depth of each seed",
                (table[1] - table[0]).max(0),
                source=f"Table 1, lower at every depth: {printed}",
                shown=f"{means(table, depth)}; plain nets: {starts(a['loss'][0])}",
            )
        )
        if len(depth) > 1:
            rise = table[:, -1] - table[:, 0]
            found.append(
                above(
                    f"rise of the {name} from depth {depth[0]} to {depth[-1]}, plain less residual",
                    rise[0] - rise[1],
                    source=f"Table 1: {rises} from depth 20 to 44",
                    shown=f"{rise[0].mean():.4g} against {rise[1].mean():.4g}",
                )
            )
    return found


def draw_table_1(figure: Figure, a: Arrays) -> None:
    """Plot loss and test error against depth."""
    axes = figure.subplots(1, 2)
    for ax, key, label in zip(
        axes, ("loss", "test_error"), ("training loss", "test error"), strict=True
    ):
        for kind, rows, printed in zip(KINDS, a[key], PRINTED_1[key], strict=True):
            ax.plot(a["depth"], rows.mean(1), "o-", color=COLORS[kind], label=kind)
            ax.plot(a["depth"], rows, ".", color=COLORS[kind], alpha=0.4)
            told = f"{kind}, Table 1 (200 epochs)"
            ax.plot(EVERY_DEPTH, printed, "x--", color=COLORS[kind], label=told)
        ticks = sorted({*EVERY_DEPTH, *a["depth"].tolist()})
        ax.set(xlabel="depth (layers)", ylabel=label, xticks=ticks, yscale="log")
    axes[0].legend()


# -- Figure 8 --------------------------------------------------------------------------------------

LEVELS = (2.0, 1.0, 0.5, 0.2)


def compute_figure_8(
    *,
    depths: Sequence[int],
    training: Mapping[str, Any],
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute training risk and test error by epoch, (kinds, depths, seeds, epochs)."""
    found = fits(trainings_of(KINDS, depths, training), each, device)
    return {
        "depth": np.array(depths),
        "risk": number_of_each(found, depths, lambda fit: fit.along("loss")),
        "test_error": number_of_each(found, depths, lambda fit: fit.along("test_error")),
    }


def _levels(risk: np.ndarray) -> str:
    """Format how many nets of each kind reach a level, and after how many epochs."""
    told = []
    for level in LEVELS:
        below_it = risk <= level
        reached = below_it.any(-1)
        if reached.any():
            epochs = [
                f"{kind} {int(got.sum())} of {got.size}"
                + (f" after {np.mean(rows.argmax(-1)[got] + 1):.3g} epochs" if got.any() else "")
                for kind, got, rows in zip(KINDS, reached, below_it, strict=True)
            ]
            told.append(f"risk {level:g}: {', '.join(epochs)}")
    return "; ".join(told) or f"no net reaches a risk of {LEVELS[0]:g}"


def _gap_at_equal_risk(risk: np.ndarray, error: np.ndarray) -> float:
    """Mean over common risks of the test error, residual less plain; nan if none is common."""
    low, high = risk.min(1).max(), risk.max(1).min()
    if low >= high:
        return float("nan")
    common = np.linspace(low, high, 101)
    plain, residual = (
        np.interp(common, r[order], e[order])  # linear between epochs
        for r, e, order in zip(risk, error, risk.argsort(1), strict=True)
    )
    return float((residual - plain).mean())


def judge_figure_8(a: Arrays) -> list[Criterion]:
    """Test by paired seeds that residual nets fit faster, and test no worse at equal risk."""
    risk, error = a["risk"], a["test_error"]
    slower = np.log(risk[1] / risk[0])  # (depths, seeds, epochs)
    gaps = np.array(
        [
            [_gap_at_equal_risk(risk[:, d, s], error[:, d, s]) for s in range(risk.shape[2])]
            for d in range(risk.shape[1])
        ]
    )
    common = np.isfinite(gaps).all(0)
    found = [
        below(
            "log of the training risk, residual less plain, mean over epochs, at the worst depth "
            "of each seed",
            slower.mean(2).max(0),
            source="Figure 8 a: the residual curves are the lower ones",
            shown=f"lower in {np.mean(slower < 0):.0%} of the epochs; {_levels(risk)}",
        )
    ]
    name = "test error at equal training risk, residual less plain, at the worst depth of each seed"
    if not common.any():
        shown = "no training risk is common to the nets of any seed"
        return [*found, Criterion(name, "mean < 0.005 (Figure 8 b)", shown, None)]
    return [
        *found,
        below(
            name,
            gaps[:, common].max(0),
            0.005,
            source="Figure 8 b, no worse; half a point as margin",
            shown=", ".join(
                f"depth {d}: {g:+.4f}"
                for d, g in zip(a["depth"], gaps[:, common].mean(1), strict=True)
            )
            + f"; {int(common.sum())} of {len(common)} seeds have risks in common",
        ),
    ]


def draw_figure_8(figure: Figure, a: Arrays) -> None:
    """Plot risk against epochs and test error against risk, means and range of the seeds."""
    left, right = figure.subplots(1, 2)
    for kind, risks, errors in zip(KINDS, a["risk"], a["test_error"], strict=True):
        for depth, risk, error, style in zip(
            a["depth"], risks, errors.mean(1), ("-", "--", ":"), strict=False
        ):
            epoch, color = np.arange(1, risk.shape[1] + 1), COLORS[kind]
            left.plot(epoch, risk.mean(0), style, color=color, label=f"{kind} {depth}")
            left.fill_between(epoch, risk.min(0), risk.max(0), color=color, alpha=0.1)
            right.plot(risk.mean(0), error, style, marker=".", color=color)
    left.set(xlabel="epoch", ylabel="training risk (nats)", yscale="log")
    right.set(xlabel="training risk (nats)", ylabel="test error", xscale="log")
    left.legend()


# -- Figure 9 --------------------------------------------------------------------------------------


def compute_figure_9(
    *,
    depths: Sequence[int],
    training: Mapping[str, Any],
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute the training risk of plain nets from KWI and from transferred HMWI, all seeds."""
    found = fits(trainings_of(("plain", "transferred"), depths, training), each, device)
    risk = number_of_each(found, depths, lambda fit: fit.along("loss"))
    return {"depth": np.array(depths), "risk": risk}


LATEST_PEAK = 30  # epochs of the paper's 200


def judge_figure_9(a: Arrays) -> list[Criterion]:
    """Test by paired seeds that the transferred start is ahead, and more so at greater depth.

    A net that never starts cannot degrade further: then nothing is said about depth. The epoch of
    the largest gap is judged where the training is as long as the paper's.
    """
    risk, depth = a["risk"], a["depth"]  # (starts, depths, seeds, epochs)
    gap, last = risk[0] - risk[1], risk[..., -1]
    rise = last[:, -1] - last[:, 0]
    peaks = gap.argmax(-1) + 1
    shown = f"final risks {means(last, depth)}; plain nets of depth {depth[-1]}: " + starts(
        last[0, -1]
    )
    degradation = (
        f"rise of the final risk from depth {depth[0]} to {depth[-1]}, plain less transferred"
    )
    figure_9a = "Figure 9 a: .13 to .46 against .055 to .083 from depth 32 to 44"
    found = [
        above(
            "risk from KWI less risk from transferred HMWI, the least after epoch 2 at any depth",
            gap[..., 2:].min((0, 2)),
            source="Figure 9 b: greater at every epoch",
            shown=f"greater at {np.mean(gap > 0):.0%} of the epochs",
        ),
        above(degradation, rise[0] - rise[1], source=figure_9a, shown=shown)
        if (last[0, -1] < STARTED).all()
        else Criterion(
            degradation,
            f"mean > 0 ({figure_9a})",
            f"not to be judged, as a net at chance cannot rise; {shown}",
            None,
        ),
    ]
    if risk.shape[-1] >= FULL_EPOCHS:
        found.append(
            below(
                "epoch of the largest gap, the latest of both depths",
                peaks.max(0),
                LATEST_PEAK,
                source="Figure 9 b: about epoch 15 of 200; twice that",
                shown=", ".join(
                    f"depth {d}: {p}" for d, p in zip(depth, peaks.tolist(), strict=True)
                ),
            )
        )
    return found


def draw_figure_9(figure: Figure, a: Arrays) -> None:
    """Plot risk and risk gap against epochs; the smaller depth is solid, the greater dotted."""
    left, right = figure.subplots(1, 2)
    epoch = np.arange(1, a["risk"].shape[-1] + 1)
    for i, (depth, style) in enumerate(zip(a["depth"], ("-", ":"), strict=True)):
        for kind, runs in zip(KINDS, a["risk"][:, i], strict=True):
            label = f"{'plain, KWI' if kind == 'plain' else 'transferred HMWI'}, {depth}"
            left.plot(epoch, runs.mean(0), style, color=COLORS[kind], label=label)
            left.fill_between(epoch, runs.min(0), runs.max(0), color=COLORS[kind], alpha=0.15)
        right.plot(epoch, np.diff(a["risk"][::-1, i].mean(1), axis=0)[0], style, color="k")
    left.set(xlabel="epoch", ylabel="training risk (nats)", yscale="log")
    left.set_title("ends in the paper, depth 32, 44:\nKWI .13, .46; HMWI .055, .083")
    right.set(xlabel="epoch", ylabel="risk gap, KWI - HMWI (nats)")
    left.legend()


# -- the claims ------------------------------------------------------------------------------------

_PAIRS = {
    "quick": {"depths": [5, 8], "training": DIGITS, "scaled": "64 digits, 3 epochs"},
    "short": {
        "depths": [8, 20], "training": SMALL,
        "scaled": f"{SMALL_SCALED}, depths 8 and 20: a deeper plain net does not start so soon",
    },
    "single": {"depths": [20], "training": ONE, "scaled": "one seed, depth 20"},
    "paper": {"depths": EVERY_DEPTH, "training": FULL},
}  # fmt: skip

CLAIMS = [
    Claim(
        id="noise_stability/table_1",
        source=f"{PAPER}, Table 1",
        says="Residual nets have lower training losses and test errors than plain nets of equal "
        "depth, and degrade less with depth (Table 1).",
        settings=_PAIRS,
        compute=compute_table_1,
        judge=judge_table_1,
        draw=draw_table_1,
    ),
    Claim(
        id="noise_stability/figure_8",
        source=f"{PAPER}, Figure 8",
        says="Residual nets fit faster than plain nets, and at equal training loss their test "
        "error is no greater (Figure 8).",
        settings=_PAIRS,
        compute=compute_figure_8,
        judge=judge_figure_8,
        draw=draw_figure_8,
    ),
    Claim(
        id="noise_stability/figure_9",
        source=f"{PAPER}, Figure 9 and Appendix D.1",
        says="A plain net fits better from transferred HMWI weights than from KWI, at every "
        "epoch, and degrades less with depth; in 200 epochs, and judged only there, the gap is "
        "largest early (Figure 9).",
        settings={
            **_PAIRS,
            "single": {"depths": [20, 44], "training": ONE, "scaled": "one seed, depths 20 and 44"},
            "paper": {"depths": [32, 44], "training": {**FULL, "seeds": list(range(10))}},
        },
        compute=compute_figure_9,
        judge=judge_figure_9,
        draw=draw_figure_9,
    ),
]  # fmt: skip
