"""Speed and result of the training of plain and residual nets: Table 1, Figures 8 and 9."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.claim import Arrays, Claim, Verdict
from experiments.noise_stability.nets import (
    COLORS,
    DIGITS,
    EVERY_DEPTH,
    FULL,
    KINDS,
    PAPER,
    SECOND_SEED,
    SHORT,
    number_of_each,
    pairs,
    trainings_of,
)
from experiments.parts import Each, in_turn
from experiments.trainings import fits

# -- Table 1 ---------------------------------------------------------------------------------------


def compute_table_1(
    *,
    depths: Sequence[int],
    training: Mapping[str, Any] | None = None,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute training loss and test error of plain (KWI) and residual nets (HMWI)."""
    found = fits(trainings_of(KINDS, depths, training), each, device)
    return {
        "depth": np.array(depths),
        "loss": number_of_each(found, depths, lambda fit: fit.number("loss")),
        "penalty": number_of_each(found, depths, lambda fit: fit.along("penalty")[-1]),
        "test_error": number_of_each(found, depths, lambda fit: fit.along("test_error")[-1]),
    }


def judge_table_1(a: Arrays) -> list[Verdict]:
    """Require residual nets with lower loss and error, and plain nets that degrade with depth."""
    loss, error, depth = a["loss"].mean(2), a["test_error"].mean(2), a["depth"]
    found = [
        Verdict(
            "training loss: residual < plain at every depth",
            "shape only (Table 1: .0723 .1225 .4950 against .0429 .0485 .0740)",
            pairs(a["loss"], depth),
            bool((loss[1] < loss[0]).all()),
        ),
        Verdict(
            "test error: residual < plain at every depth",
            "shape only (Table 1: .1263 .1349 .2213 against .1131 .1143 .1182)",
            pairs(a["test_error"], depth),
            bool((error[1] < error[0]).all()),
        ),
    ]
    if set(depth) >= {20, 44}:
        shallow, deep = list(depth).index(20), list(depth).index(44)
        growth = loss[:, deep] / loss[:, shallow]
        more = error[:, deep] - error[:, shallow]
        found += [
            Verdict(
                "loss at depth 44 over loss at depth 20: plain ≥ 1.5 times residual",
                "Table 1: 6.85 against 1.73",
                f"{growth[0]:.3g} against {growth[1]:.3g}",
                bool(growth[0] >= 1.5 * growth[1]),
            ),
            Verdict(
                "test error at depth 44 less that at depth 20",
                "plain > .02, residual < .02 (Table 1: .095 against .005)",
                f"{more[0]:.4f} against {more[1]:.4f}",
                bool(more[0] > 0.02 > more[1]),
            ),
        ]
    return found


def draw_table_1(figure: Figure, a: Arrays) -> None:
    """Plot loss and test error against depth."""
    axes = figure.subplots(1, 2)
    for ax, key, label in zip(
        axes, ("loss", "test_error"), ("training loss", "test error"), strict=True
    ):
        for kind, rows in zip(KINDS, a[key], strict=True):
            ax.plot(a["depth"], rows.mean(1), "o-", color=COLORS[kind], label=kind)
        ax.set(xlabel="depth", ylabel=label, xticks=a["depth"])
    axes[0].legend()


# -- Figure 8 --------------------------------------------------------------------------------------

LEVELS = (1.0, 0.5, 0.2)


def compute_figure_8(
    *,
    depths: Sequence[int],
    training: Mapping[str, Any] | None = None,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute training risk and test error by epoch, mean over seeds."""
    found = fits(trainings_of(KINDS, depths, training), each, device)

    def along(name: str) -> np.ndarray:
        rows = [[np.mean([f.along(name) for f in found[k, d]], 0) for d in depths] for k in KINDS]
        return np.array(rows)

    risk, error = along("loss"), along("test_error")
    return {"depth": np.array(depths), "risk": risk, "test_error": error}


def _epochs_to(level: float, risk: np.ndarray) -> float:
    reached = np.flatnonzero(risk <= level)
    return float(reached[0] + 1) if len(reached) else np.inf


def _error_at(loss: np.ndarray, risk: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Test error at given training losses, interpolated linearly between epochs."""
    order = np.argsort(risk)
    return np.interp(loss, risk[order], error[order])


def judge_figure_8(a: Arrays) -> list[Verdict]:
    """Require residual nets to fit no later, with no greater test error at equal training loss."""
    times = np.array([[[_epochs_to(v, r) for v in LEVELS] for r in rows] for rows in a["risk"]])
    reached = np.isfinite(times).any(0)  # a level that neither net reaches is not compared
    shown = "; ".join(
        f"depth {d}: " + ", ".join(f"{v:g} after {p:g} against {r:g}" for v, p, r in row)
        for d, row in zip(
            a["depth"],
            (zip(LEVELS, p, r, strict=True) for p, r in zip(*times, strict=True)),
            strict=True,
        )
    )
    gaps = []
    for (plain, residual), (error_p, error_r) in zip(
        np.swapaxes(a["risk"], 0, 1), np.swapaxes(a["test_error"], 0, 1), strict=True
    ):
        low, high = max(plain.min(), residual.min()), min(plain.max(), residual.max())
        common = np.linspace(low, high, 101)
        gap = _error_at(common, residual, error_r) - _error_at(common, plain, error_p)
        gaps.append(float(gap.mean()) if low < high else np.nan)
    return [
        Verdict(
            "epochs to training risk 1, .5, .2: residual no later than plain",
            "shape only, at every level that one of them reaches (Figure 8 a)",
            shown,
            bool((times[1] <= times[0])[reached].all() and reached.any()),
        ),
        Verdict(
            "test error at equal training loss, residual less plain, mean over common losses",
            "≤ .005 (Figure 8 b)",
            ", ".join(f"depth {d}: {gap:+.4f}" for d, gap in zip(a["depth"], gaps, strict=True)),
            bool(np.nanmax(gaps) <= 0.005),
        ),
    ]


def draw_figure_8(figure: Figure, a: Arrays) -> None:
    """Plot risk against epochs and test error against training loss."""
    left, right = figure.subplots(1, 2)
    for kind, risks, errors in zip(KINDS, a["risk"], a["test_error"], strict=True):
        for depth, risk, error, style in zip(
            a["depth"], risks, errors, ("-", "--", ":"), strict=False
        ):
            label = f"{kind} {depth}"
            left.semilogy(np.arange(1, len(risk) + 1), risk, style, color=COLORS[kind], label=label)
            right.semilogx(risk, error, style, marker=".", color=COLORS[kind])
    left.set(xlabel="epoch", ylabel="training risk")
    right.set(xlabel="training risk", ylabel="test error")
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
    starts = ("plain", "transferred")
    found = fits(trainings_of(starts, depths, training), each, device)
    risk = [[[fit.along("loss") for fit in found[k, d]] for d in depths] for k in starts]
    return {"depth": np.array(depths), "risk": np.array(risk)}


def judge_figure_9(a: Arrays) -> list[Verdict]:
    """Require a lower risk from the identity after epoch 2, and less degradation with depth."""
    risk = a["risk"].mean(2)  # (starts, depths, epochs)
    gap = risk[0] - risk[1]
    late = gap[:, 2:]
    epochs = risk.shape[2]
    peak = gap.argmax(1) + 1
    last = a["risk"][..., -1]
    degradation = risk[:, -1, -1] - risk[:, 0, -1]
    return [
        Verdict(
            "risk from KWI less risk from transferred HMWI, mean over seeds, after epoch 2",
            "> 0 at every later epoch and depth (Figure 9 b)",
            f"least {late.min():.4f}, greatest {late.max():.4f}",
            bool((late > 0).all()),
        ),
        Verdict(
            "final risk at the greater depth less that at the smaller one: plain > transferred",
            "shape only (Figure 9 a: .13 to .46 against .055 to .083)",
            f"{degradation[0]:.4f} against {degradation[1]:.4f}; final risks "
            + pairs(last, a["depth"]),
            bool(degradation[0] > degradation[1]),
        ),
        Verdict(
            "epoch of the largest gap",
            "in the first 15 % of training (Figure 9 b: about epoch 15 of 200)",
            ", ".join(f"depth {d}: {p} of {epochs}" for d, p in zip(a["depth"], peak, strict=True)),
            bool((peak <= np.ceil(0.15 * epochs)).all()),
        ),
    ]


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
    left.set(xlabel="epoch", ylabel="training risk", yscale="log")
    right.set(xlabel="epoch", ylabel="risk gap")
    left.legend()


# -- the claims ------------------------------------------------------------------------------------

_PAIRS = {
    "quick": {
        "depths": [20], "training": DIGITS,
        "scaled": "480 digits at 8 x 8, depth 20, 7 epochs, two seeds",
    },
    "short": {"depths": [20, 32], "scaled": f"{SHORT}, depths 20 and 32; {SECOND_SEED}"},
    "paper": {"depths": EVERY_DEPTH, "training": FULL},
}  # fmt: skip

CLAIMS = [
    Claim(
        id="noise_stability/table_1",
        source=f"{PAPER}, Table 1",
        says="Residual nets reach lower training loss and test error than plain nets of equal "
        "depth, and lose less by depth.",
        settings=_PAIRS,
        compute=compute_table_1,
        judge=judge_table_1,
        draw=draw_table_1,
    ),
    Claim(
        id="noise_stability/figure_8",
        source=f"{PAPER}, Figure 8",
        says="Residual nets fit faster than plain nets, and at equal training loss test no worse.",
        settings=_PAIRS,
        compute=compute_figure_8,
        judge=judge_figure_8,
        draw=draw_figure_8,
    ),
    Claim(
        id="noise_stability/figure_9",
        source=f"{PAPER}, Figure 9",
        says="A plain net started at transferred weights fits better than one started by KWI, from "
        "the first epochs on and more so at greater depth.",
        settings={
            "quick": {
                "depths": [14, 20], "training": DIGITS,
                "scaled": "480 digits at 8 x 8, depth 14 and 20, 7 epochs, two seeds",
            },
            "short": {
                "depths": [32, 44],
                "training": {"seeds": [0, 1, 2], "epochs": 14, "samples": 6000, "size": 16},
                "scaled": "6,000 images at 16 x 16, 14 epochs, 3 seeds",
            },
            "paper": {"depths": [32, 44], "training": {"seeds": list(range(10)), "epochs": 200}},
        },
        compute=compute_figure_9,
        judge=judge_figure_9,
        draw=draw_figure_9,
    ),
]  # fmt: skip
