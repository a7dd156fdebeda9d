"""Theorem 1: interpolation with small weights.

Inputs and targets are random, uniform on the sphere. The available text does not give the constants
of equation (6); those here are derived for detours of half the smallest distance, because detours
of the whole distance may pass through another column.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion
from experiments.demystifying_resnet.nets import PAPER, columns, generator_of

EXACT = 1e-9  # distance of outputs from targets: round-off of thousands of units in float64
VARIANTS = {"uniform": "equal steps", "greedy": "greedy steps"}


def sphere(generator: torch.Generator, count: int, width: int) -> torch.Tensor:
    points = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return points / points.norm(dim=1, keepdim=True)


# -- Theorem 1 -------------------------------------------------------------------------------------


def compute_theorem_1(
    *, widths: Sequence[int], samples: Sequence[int], each: Sequence[int], seed: int
) -> dict[str, np.ndarray]:
    """Construct a net for every random problem and number of units."""
    rows = [
        _theorem_1_row(width, count, units, seed)
        for width, count, units in itertools.product(widths, samples, each)
    ]
    x, y = sphere(generator_of(seed), 2, 10), torch.eye(10)[:1].repeat(2, 1)
    return {
        **columns(rows),
        "one_class": np.array(rt.theory.least_norm(x, y, units=10**6)),
    }


def _theorem_1_row(width: int, count: int, each: int, seed: int) -> dict[str, float]:
    generator = generator_of(seed, width, count)  # the same points for every number of units
    x, y = sphere(generator, count, width), sphere(generator, count, width)
    row: dict[str, float] = {"width": width, "samples": count, "each": each}
    for variant in VARIANTS:
        same = dict(units=each * count, allocation=variant)
        plain = found = rt.theory.interpolate(x, y, **same, braces=False)
        if not plain.error <= 1e-12:  # otherwise the default construction has no braces either
            found = rt.theory.interpolate(x, y, **same)
        for name, net in ((variant, found), (f"{variant}_plain", plain)):
            row |= {f"{name}.error": net.error, f"{name}.norm": net.largest_norm}
    rho = found.separation
    row |= {
        "separation": rho,
        "upper": 2 * math.pi / rho * math.sqrt(1 / (each - 1)),
        "lower": found.lower_bound,
    }
    return row


def judge_theorem_1(a: Arrays) -> list[Criterion]:
    """Judge interpolation, both bounds on the norms, and their rate."""
    count = len(a["upper"])
    norms = np.stack([a[f"{v}.norm"] for v in VARIANTS])
    errors = np.stack([a[f"{v}.error"] for v in VARIANTS])
    above, below = (norms / a["upper"]).max(), (norms / a["lower"]).min()
    return [
        Criterion(
            f"every input reaches its target, {count} problems, equal and greedy steps",
            f"distance ≤ {EXACT:g} (exact in exact arithmetic)",
            f"{errors.max():.1e}",
            bool(errors.max() <= EXACT),
        ),
        Criterion(
            "norms within the theorem's bound",
            "norm / ((2π/ρ) √(m/(L - m))) ≤ 1 in every problem",
            f"{(norms / a['upper']).min():.3f} to {above:.3f}",
            bool(above <= 1),
        ),
        Criterion(
            "norms above what any net of as many units needs",
            "norm / lower bound ≥ 1 in every problem",
            f"{below:.2f} to {(norms / a['lower']).max():.3g}",
            bool(below >= 1),
        ),
        _judge_rate(a),
        Criterion(
            "two samples of one class, one-hot, 10^6 units: small weights cannot meet both",
            "lower bound 1: the theorem needs Assumption 2",
            float(a["one_class"]),
            float(a["one_class"]) == 1.0,
        ),
    ]


def _judge_rate(a: Arrays) -> Criterion:
    each = np.unique(a["each"])
    last, before = (a["each"] == each[-1]), (a["each"] == each[-2])
    norms = a["greedy_plain.norm"]
    ratio = norms[last] * math.sqrt(each[-1]) / (norms[before] * math.sqrt(each[-2])) - 1
    small = norms[before] < 1
    worst = float(np.abs(ratio[small]).max())
    return Criterion(
        f"norm √L constant from {each[-2]} to {each[-1]} units a sample (greedy, one row a unit)",
        "within 2 % where norms are below 1, so that steps are below the gap",
        f"{100 * worst:.1f} % in {int(small.sum())} of {len(small)} problems; "
        f"in all: {100 * np.abs(ratio).max():.0f} %",
        worst <= 0.02,
    )


def draw_theorem_1(figure: Figure, a: Arrays) -> None:
    """Plot norms with their bounds, and errors with and without braces."""
    left, right = figure.subplots(1, 2)
    for color, marker, (variant, label) in zip(("C0", "C3"), "os", VARIANTS.items(), strict=True):
        style = dict(color=color, marker=marker, linestyle="none", markersize=4)
        left.plot(a["upper"], a[f"{variant}.norm"], label=label, **style)
        right.plot(a["separation"], a[f"{variant}.error"], **style)
        # From rounding to the diameter of the sphere, so that every error is on the axis.
        errors = np.clip(np.nan_to_num(a[f"{variant}_plain.error"], nan=2.0), 1e-17, 2.0)
        right.plot(a["separation"], errors, mfc="none", **style)
    left.plot(a["upper"], a["lower"], "k_", label="lower bound")
    ends = np.array([a["upper"].min(), a["upper"].max()])
    left.plot(ends, ends, "k--", linewidth=1, label="upper bound")
    right.axhline(EXACT, color="black", linestyle="--", linewidth=1)
    left.set(
        xscale="log",
        yscale="log",
        xlabel="upper bound of the norm",
        ylabel="largest norm of a weight",
    )
    right.set(
        xscale="log", yscale="log", xlabel="smallest distance ρ", ylabel="distance from the target"
    )
    right.set_title("open: steps uncorrected; dashed: criterion", fontsize="medium")
    left.legend()


# -- Theorem 1 with one-hot targets ----------------------------------------------------------------


def compute_theorem_1_merge(
    *, width: int, samples: int, each: Sequence[int], tolerances: Sequence[float], seed: int
) -> dict[str, np.ndarray]:
    """Compute norms by number of units and tolerance, with and without braces."""
    x = sphere(generator_of(seed, width, samples), samples, width)
    y = torch.eye(width, dtype=torch.float64)[torch.arange(samples) % width]
    arrays: dict[str, np.ndarray] = {}
    for braces in ("never", "auto"):
        table = [
            [_merged(x, y, count * samples, tol, braces == "auto") for tol in tolerances]
            for count in each
        ]
        for key in table[0][0]:
            arrays[f"{braces}.{key}"] = np.array([[cell[key] for cell in row] for row in table])
    noisy = rt.theory.interpolate(
        x, y, units=each[0] * samples, mode="perturbed", generator=generator_of(seed, 1)
    )
    return {
        **arrays,
        "units": np.array(each) * samples,
        "tolerance": np.array(tolerances),
        "perturbed": np.array([noisy.loss, noisy.largest_norm, noisy.upper_bound, noisy.error]),
    }


def _merged(
    x: torch.Tensor, y: torch.Tensor, units: int, tolerance: float, braces: bool
) -> dict[str, float]:
    found = rt.theory.interpolate(
        x, y, units=units, mode="merge", tolerance=tolerance, braces=braces
    )
    return {
        "distance": float((found.output - y).norm(dim=1).max()),
        "norm": found.largest_norm,
        "upper": found.upper_bound,
        "lower": found.lower_bound,
    }


def judge_theorem_1_merge(a: Arrays) -> list[Criterion]:
    """Require one-hot targets to be met within a tolerance, at a logarithmic cost."""
    reached = max(float((a[f"{b}.distance"] / a["tolerance"]).max()) for b in ("never", "auto"))
    above = max(float((a[f"{b}.norm"] / a[f"{b}.upper"]).max()) for b in ("never", "auto"))
    below = min(float((a[f"{b}.norm"] / a[f"{b}.lower"]).min()) for b in ("never", "auto"))
    cost = a["never.norm"] ** 2 * a["units"][:, None]
    drift = float(np.abs(cost[-1] / cost[-2] - 1).max())
    growth = np.diff(cost[-1]) / -np.diff(np.log(a["tolerance"]))
    uneven = float(growth.max() / growth.min() - 1) if len(growth) > 1 else 0.0
    loss, norm, upper, error = a["perturbed"]
    return [
        Criterion(
            "every output within the tolerance of its one-hot target",
            "distance / tolerance ≤ 1 (to 1e-6 of it)",
            f"{reached:.7f}",
            reached <= 1 + 1e-6,
        ),
        Criterion(
            "norms within the bound m (8π²/ρ² + (19 + 5.3 log(Kρ/4ε))/ρ) / (L - 3m)",
            "norm / bound ≤ 1 in every case",
            f"{above:.3f}",
            above <= 1,
        ),
        Criterion(
            "norms above what any net of as many units needs",
            "norm / lower bound ≥ 1 in every case",
            f"{below:.2f}",
            below >= 1,
        ),
        Criterion(
            "w² L constant in the number of units",
            "within 5 % from the last but one number of units to the last",
            f"{100 * drift:.1f} %; w² L = " + ", ".join(f"{c:.0f}" for c in cost[-1]),
            drift <= 0.05,
        ),
        Criterion(
            "w² L grows with log(1/tolerance), not with a power",
            "equal growth for equal factors of the tolerance, within 10 %",
            f"{100 * uneven:.1f} %",
            uneven <= 0.10,
        ),
        Criterion(
            "perturbed targets (the paper's small noise): interpolated within the bound",
            f"distance ≤ {EXACT:g}, norm / bound ≤ 1",
            f"{error:.1e}, {norm / upper:.3f}; remaining loss {loss:.1e}",
            bool(error <= EXACT and norm <= upper),
        ),
    ]


def draw_theorem_1_merge(figure: Figure, a: Arrays) -> None:
    """Plot w² L against the tolerance for every number of units."""
    ax = figure.subplots()
    for marker, units, norms in zip("osD^v", a["units"], a["never.norm"], strict=False):
        label = f"{units} units"
        ax.plot(a["tolerance"], norms**2 * units, marker + "-", label=label, mfc="none")
    ax.set(xscale="log", xlabel="tolerance", ylabel="largest norm² × units", ylim=(0, None))
    ax.invert_xaxis()
    ax.legend()


# -- the claims ------------------------------------------------------------------------------------

CLAIMS = [
    Claim(
        id="demystifying_resnet/theorem_1",
        source=f"{PAPER}, Theorem 1, equations (6) and (7), with constants derived here",
        says="For any inputs and targets on the sphere at distance ρ there is a net of L two-layer "
        "units with ReLU and identity shortcuts that interpolates with all norms O(1/√L).",
        settings={
            "quick": dict(widths=[3, 10], samples=[5], each=[4, 24, 72], seed=0),
            "paper": dict(
                widths=[3, 4, 5, 7, 10], samples=[5, 10, 20, 40], each=[4, 24, 144], seed=1
            ),
        },
        compute=compute_theorem_1,
        judge=judge_theorem_1,
        draw=draw_theorem_1,
    ),
    Claim(
        id="demystifying_resnet/theorem_1_merge",
        kind="law",
        source=f"{PAPER}, Theorem 1, extended here to one-hot targets, which Assumption 2 excludes",
        says="One-hot targets, which no net with small weights meets exactly, are met to any "
        "tolerance with norms O(√(log(1/tolerance) / L)).",
        settings={
            "quick": dict(width=4, samples=6, each=[24, 72], tolerances=[1e-2, 1e-3, 1e-4], seed=0),
            "paper": dict(
                width=10, samples=30, each=[24, 72, 216], tolerances=[1e-2, 1e-4, 1e-6], seed=1
            ),
        },
        compute=compute_theorem_1_merge,
        judge=judge_theorem_1_merge,
        draw=draw_theorem_1_merge,
    ),
]
