"""DiracNets: initial weights, section 3.4.

The nets are pre-activation residual nets with convolutions I + V. "All-zero" is interpreted as
V = 0, the limit of small sigma.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.claim import Arrays, Claim, Verdict
from experiments.diracnets.nets import (
    CHANCE,
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
from experiments.trainings import fits


def compute_section_3_4(
    *,
    depth: int,
    stds: Sequence[float],
    gains: Sequence[float],
    training: Mapping[str, Any],
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute final risk and test error by sigma of a normal and gain of an orthogonal V."""
    normal = {
        ("std", std): trainings_of("identity_inside", training, depth=depth, std=std)
        for std in stds
    }
    orthogonal = {
        ("gain", gain): trainings_of("orthogonal", training, depth=depth, gain=gain)
        for gain in gains
    }
    found = fits({**normal, **orthogonal}, each, device)

    def both(groups: Mapping[tuple[str, float], Any], name: str) -> dict[str, np.ndarray]:
        rows = [found[group] for group in groups]
        risks = [[fit.along("loss")[-1] for fit in row] for row in rows]
        errors = [each_seed(row, "test_error") for row in rows]
        return {f"{name}_risk": np.array(risks), f"{name}_error": np.array(errors)}

    return {
        "depth": np.array(depth), "std": np.array(stds, dtype=float),
        "gain": np.array(gains, dtype=float), **both(normal, "std"), **both(orthogonal, "gain"),
    }  # fmt: skip


def judge_section_3_4(a: Arrays) -> list[Verdict]:
    """Require that the initialization does not matter unless V is large or zero."""
    small = (a["std"] > 0) & (a["std"] <= 0.1)
    found = [
        _alike("sigma", a["std"][small], a["std_error"][small], "normal V, sigma from 1e-8 to 0.1"),
        _alike("gain", a["gain"], a["gain_error"], "orthogonal V, all gains"),
    ]
    if 1.0 in a["std"]:
        one = a["std_error"][a["std"] == 1.0].mean()
        less = 100 * (a["std_error"][small].mean() - one)
        found.append(
            Verdict(
                "normal V: accuracy at sigma 1 less that at smaller ones, points",
                "< 0 (section 3.4: slightly worse near 1)",
                f"{less:+.2f}",
                less < 0,
            )
        )
    nothing = a["std_risk"][a["std"] == 0].ravel()
    found.append(
        Verdict(
            "V = 0: risk of the last epoch",
            f"every seed > ln 10 - {LEARNT} = {CHANCE - LEARNT:.3f} "
            "(section 3.4: all-zero does not converge)",
            f"{nothing.min():.3f} to {nothing.max():.3f} (n = {len(nothing)})",
            bool((nothing > CHANCE - LEARNT).all()),
        )
    )
    return found


def _alike(name: str, values: np.ndarray, error: np.ndarray, where: str) -> Verdict:
    """Require means to differ by no more than seeds."""
    accuracy = 100 * (1 - error)
    means = accuracy.mean(1)
    between, within = np.ptp(means), np.ptp(accuracy, axis=1).max()
    shown = "; ".join(
        f"{name} {value:g}: {percent(row / 100)}"
        for value, row in zip(values, accuracy, strict=True)
    )
    return Verdict(
        f"{where}: range of the mean test accuracies, points",
        "≤ the largest range over seeds at one value (section 3.4: the same accuracy)",
        f"{between:.2f}, over seeds {within:.2f}; {shown}",
        bool(between <= within),
    )


def draw_section_3_4(figure: Figure, a: Arrays) -> None:
    """Plot accuracy against sigma and gain; sigma 0 is at the left end."""
    ax = figure.subplots()
    least = min(a["std"][a["std"] > 0].min(), a["gain"].min())
    for name, color in (("std", "tab:orange"), ("gain", "tab:purple")):
        at = np.where(a[name] > 0, a[name], least / 100)
        accuracy = 100 * (1 - a[f"{name}_error"])
        label = "normal, sigma" if name == "std" else "orthogonal, gain"
        order = np.argsort(at)
        ax.plot(at[order], accuracy.mean(1)[order], "-", color=color, label=label)
        ax.plot(at, accuracy, ".", color=color)
    ax.set(xscale="log", xlabel=f"sigma or gain of V ({least / 100:.0e}: zero)")
    ax.set(ylabel="test accuracy, %")
    ax.legend()


# -- the norm of V ---------------------------------------------------------------------------------

INITS = {"normal": "N(0, 1) (paper)", "kaiming": "He's law (authors' code)"}


def compute_first_scale(
    *, depth: int, training: Mapping[str, Any], device: str = "cpu", each: Each = in_turn
) -> dict[str, np.ndarray]:
    """Compute risk by epoch and final test error of DiracNets by initialization of V."""
    nets = {init: trainings_of("dirac", training, depth=depth, init=init) for init in INITS}
    arrays: dict[str, np.ndarray] = {"depth": np.array(depth)}
    for init, fitted in fits(nets, each, device).items():
        arrays[f"{init}_risk"] = np.array([fit.along("loss") for fit in fitted])
        arrays[f"{init}_error"] = each_seed(fitted, "test_error")
    return arrays


def judge_first_scale(a: Arrays) -> list[Verdict]:
    """Require no effect of the norm of V, which the effective weight does not depend on."""
    gain = 100 * (a["normal_error"] - a["kaiming_error"])
    mean, low, high = interval(gain)
    shown = "; ".join(f"{label}: {percent(1 - a[f'{d}_error'])}" for d, label in INITS.items())
    return [
        Verdict(
            "test accuracy, He's law less N(0, 1) with the same seed, points",
            "95 % interval around 0 (only the direction of V counts in the weight)",
            f"{mean:.1f}, interval {low:.1f} to {high:.1f} (n = {len(gain)}); {shown}",
            low <= 0 <= high,
        )
    ]


def draw_first_scale(figure: Figure, a: Arrays) -> None:
    """Plot training risk by epoch, one curve per seed."""
    ax = figure.subplots()
    for (init, label), color in zip(INITS.items(), ("tab:olive", "tab:green"), strict=True):
        for number, risk in enumerate(a[f"{init}_risk"]):
            ax.plot(np.arange(1, len(risk) + 1), risk, ".-", color=color,
                    label=None if number else label)  # fmt: skip
    ax.set(xlabel="epoch", ylabel="training risk")
    ax.legend()


CLAIMS = [
    Claim(
        id="diracnets/first_scale",
        source=f"{PAPER}, section 2 (V ~ N(0, 1)), against the authors' code (He's law)",
        says="The law that V is drawn from does not matter: only its direction is in the weight.",
        settings={
            "short": {"depth": 16, "training": SHORT, "scaled": f"{SHORT_SCALED}, depth 16"},
            "paper": {"depth": 34, "training": {**FULL, "seeds": [0, 1, 2]}},
        },
        compute=compute_first_scale,
        judge=judge_first_scale,
        draw=draw_first_scale,
    ),
    Claim(
        id="diracnets/section_3_4",
        source=f"{PAPER}, section 3.4",
        says="Residual nets whose weights hold the identity reach the same accuracy from any small "
        "V, of sigma 1e-8 to nearly 1 or orthogonal; only from zero they do not converge.",
        settings={
            "quick": {
                "depth": 10, "stds": [0.0, 1e-8, 0.01, 1.0], "gains": [1e-8, 1.0],
                "training": DIGITS,
                "scaled": f"{DIGITS_SCALED}, depth 10, four sigmas and two gains",
            },
            "short": {
                "depth": 10, "stds": [0.0, 1e-8, 1e-4, 0.01, 0.1, 1.0], "gains": [1e-8, 0.01, 1.0],
                "training": SHORT,
                "scaled": f"{SHORT_SCALED}, depth 10",
            },
            "paper": {
                "depth": 28,
                "stds": [0.0, *(10.0**power for power in range(-8, 1))],
                "gains": [10.0**power for power in range(-8, 1)],
                "training": FULL,
            },
        },
        compute=compute_section_3_4,
        judge=judge_section_3_4,
        draw=draw_section_3_4,
    ),
]  # fmt: skip
