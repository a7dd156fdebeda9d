"""Li, Jiao, Han & Weissman, "Demystifying ResNet" (arXiv:1611.01186): Theorem 1 and its figures.

Every problem is generated: inputs and targets uniform on the sphere. The paper's constants in
equation (6) are not in the text that survives; those here are derived for detours of half the
smallest distance, since detours of the whole distance may lead through another column.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import resid_theory as rt
from experiments.claim import Arrays, Claim, Verdict
from experiments.demystifying_resnet import PAPER, _columns, _generator

EXACT = 1e-9  # distance of an output from its target: double precision through thousands of units
VARIANTS = {"uniform": "equal steps", "greedy": "greedy steps"}


def _sphere(generator: torch.Generator, count: int, width: int) -> torch.Tensor:
    points = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return points / points.norm(dim=1, keepdim=True)


# -- Theorem 1 -------------------------------------------------------------------------------------


def compute_theorem_1(
    *, widths: Sequence[int], samples: Sequence[int], each: Sequence[int], seed: int
) -> dict[str, np.ndarray]:
    """One row for every generated problem and number of units."""
    rows = [
        _theorem_1_row(width, count, units, seed)
        for width, count, units in itertools.product(widths, samples, each)
    ]
    x, y = _sphere(_generator(seed), 2, 10), torch.eye(10)[:1].repeat(2, 1)
    return {
        **_columns(rows),
        "one_class": np.array(rt.theory.least_norm(x, y, units=10**6)),
    }


def _theorem_1_row(width: int, count: int, each: int, seed: int) -> dict[str, float]:
    generator = _generator(seed, width, count)  # the same points for every number of units
    x, y = _sphere(generator, count, width), _sphere(generator, count, width)
    row: dict[str, float] = {"width": width, "samples": count, "each": each}
    for variant in VARIANTS:
        same = dict(units=each * count, allocation=variant)
        plain = found = rt.theory.interpolate(x, y, **same, braces="never")
        if not plain.error <= 1e-12:  # otherwise the default net has no braces either
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


def judge_theorem_1(a: Arrays) -> list[Verdict]:
    """Interpolation, both bounds, and the rate."""
    count = len(a["upper"])
    norms = np.stack([a[f"{v}.norm"] for v in VARIANTS])
    errors = np.stack([a[f"{v}.error"] for v in VARIANTS])
    above, below = (norms / a["upper"]).max(), (norms / a["lower"]).min()
    return [
        Verdict(
            f"every input reaches its target, {count} problems, equal and greedy steps",
            f"distance ≤ {EXACT:g} (exact in exact arithmetic)",
            f"{errors.max():.1e}",
            bool(errors.max() <= EXACT),
        ),
        Verdict(
            "norms within the theorem's bound",
            "norm / ((2π/ρ) √(m/(L - m))) ≤ 1 in every problem",
            f"{(norms / a['upper']).min():.3f} to {above:.3f}",
            bool(above <= 1),
        ),
        Verdict(
            "norms above what any net of as many units needs",
            "norm / lower bound ≥ 1 in every problem",
            f"{below:.2f} to {(norms / a['lower']).max():.3g}",
            bool(below >= 1),
        ),
        _judge_rate(a),
        Verdict(
            "two samples of one class, one-hot, 10^6 units: small weights cannot meet both",
            "lower bound 1: the theorem needs Assumption 2",
            float(a["one_class"]),
            float(a["one_class"]) == 1.0,
        ),
    ]


def _judge_rate(a: Arrays) -> Verdict:
    each = np.unique(a["each"])
    last, before = (a["each"] == each[-1]), (a["each"] == each[-2])
    norms = a["greedy_plain.norm"]
    ratio = norms[last] * math.sqrt(each[-1]) / (norms[before] * math.sqrt(each[-2])) - 1
    small = norms[before] < 1
    worst = float(np.abs(ratio[small]).max())
    return Verdict(
        f"norm √L constant from {each[-2]} to {each[-1]} units a sample (greedy, one row a unit)",
        "within 2 % where norms are below 1, so that steps are below the gap",
        f"{100 * worst:.1f} % in {int(small.sum())} problems; "
        f"in all: {100 * np.abs(ratio).max():.0f} %",
        worst <= 0.02,
    )


def draw_theorem_1(figure: Figure, a: Arrays) -> None:
    """Norms between their bounds; errors with and without braces."""
    left, right = figure.subplots(1, 2)
    for color, marker, (variant, label) in zip(
        ("#0072B2", "#D55E00"), "os", VARIANTS.items(), strict=True
    ):
        style = dict(color=color, marker=marker, linestyle="none", markersize=4)
        left.plot(a["upper"], a[f"{variant}.norm"], label=label, **style)
        right.plot(a["separation"], a[f"{variant}.error"], label=f"{label}, braced", **style)
        right.plot(
            a["separation"], _shown(a[f"{variant}_plain.error"]), label=label, mfc="none", **style
        )
    left.plot(a["upper"], a["lower"], "k_", label="lower bound")
    ends = np.array([a["upper"].min(), a["upper"].max()])
    left.plot(ends, ends, "k--", linewidth=1, label="upper bound")
    right.axhline(EXACT, color="black", linestyle="--", linewidth=1, label="criterion")
    left.set(xscale="log", yscale="log", xlabel="upper bound", ylabel="largest norm")
    right.set(xscale="log", yscale="log", xlabel="smallest distance ρ", ylabel="distance from y")
    left.legend(fontsize="small")
    right.legend(fontsize="small")


def _shown(errors: np.ndarray) -> np.ndarray:
    """Errors with a place on the axis: from rounding to as far as a sphere is wide."""
    return np.clip(np.nan_to_num(errors, nan=2.0), 1e-17, 2.0)


# -- Theorem 1 with one-hot targets ----------------------------------------------------------------


def compute_theorem_1_merge(
    *, width: int, samples: int, each: Sequence[int], tolerances: Sequence[float], seed: int
) -> dict[str, np.ndarray]:
    """Norms by units a sample and tolerance, (units, tolerances), one row a unit and braced."""
    x = _sphere(_generator(seed, width, samples), samples, width)
    y = torch.eye(width, dtype=torch.float64)[torch.arange(samples) % width]
    arrays: dict[str, np.ndarray] = {}
    for braces in ("never", "auto"):
        table = [
            [_merged(x, y, count * samples, tolerance, braces) for tolerance in tolerances]
            for count in each
        ]
        for key in table[0][0]:
            arrays[f"{braces}.{key}"] = np.array([[cell[key] for cell in row] for row in table])
    noisy = rt.theory.interpolate(
        x, y, units=each[0] * samples, mode="perturbed", generator=_generator(seed, 1)
    )
    return {
        **arrays,
        "units": np.array(each) * samples,
        "tolerance": np.array(tolerances),
        "perturbed": np.array([noisy.loss, noisy.largest_norm, noisy.upper_bound, noisy.error]),
    }


def _merged(
    x: torch.Tensor, y: torch.Tensor, units: int, tolerance: float, braces: str
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


def judge_theorem_1_merge(a: Arrays) -> list[Verdict]:
    """One-hot targets are met to a tolerance, at the logarithm of its cost."""
    reached = max(float((a[f"{b}.distance"] / a["tolerance"]).max()) for b in ("never", "auto"))
    above = max(float((a[f"{b}.norm"] / a[f"{b}.upper"]).max()) for b in ("never", "auto"))
    below = min(float((a[f"{b}.norm"] / a[f"{b}.lower"]).min()) for b in ("never", "auto"))
    cost = a["never.norm"] ** 2 * a["units"][:, None]
    drift = float(np.abs(cost[-1] / cost[-2] - 1).max())
    growth = np.diff(cost[-1]) / -np.diff(np.log(a["tolerance"]))
    uneven = float(growth.max() / growth.min() - 1) if len(growth) > 1 else 0.0
    loss, norm, upper, error = a["perturbed"]
    return [
        Verdict(
            "every output within the tolerance of its one-hot target",
            "distance / tolerance ≤ 1 (to 1e-6 of it)",
            f"{reached:.7f}",
            reached <= 1 + 1e-6,
        ),
        Verdict(
            "norms within the bound m (8π²/ρ² + (19 + 5.3 log(Kρ/4ε))/ρ) / (L - 3m)",
            "norm / bound ≤ 1 in every case",
            f"{above:.3f}",
            above <= 1,
        ),
        Verdict(
            "norms above what any net of as many units needs",
            "norm / lower bound ≥ 1 in every case",
            f"{below:.2f}",
            below >= 1,
        ),
        Verdict(
            "w² L constant in the number of units",
            "within 5 % from the last but one number of units to the last",
            f"{100 * drift:.1f} %; w² L = " + ", ".join(f"{c:.0f}" for c in cost[-1]),
            drift <= 0.05,
        ),
        Verdict(
            "w² L grows with log(1/tolerance), not with a power",
            "equal growth for equal factors of the tolerance, within 10 %",
            f"{100 * uneven:.1f} %",
            uneven <= 0.10,
        ),
        Verdict(
            "perturbed targets (the paper's small noise): interpolated within the bound",
            f"distance ≤ {EXACT:g}, norm / bound ≤ 1",
            f"{error:.1e}, {norm / upper:.3f}; remaining loss {loss:.1e}",
            bool(error <= EXACT and norm <= upper),
        ),
    ]


def draw_theorem_1_merge(figure: Figure, a: Arrays) -> None:
    """w² L against the tolerance, for every number of units."""
    ax = figure.subplots()
    for marker, units, norms in zip("osD^v", a["units"], a["never.norm"], strict=False):
        label = f"{units} units"
        ax.plot(a["tolerance"], norms**2 * units, marker + "-", label=label, mfc="none")
    ax.set(xscale="log", xlabel="tolerance", ylabel="largest norm² × units", ylim=(0, None))
    ax.invert_xaxis()
    ax.legend()


# -- Figure 10 -------------------------------------------------------------------------------------


def compute_figure_10(
    *, width: int, samples: int, units: int, points: int, seed: int
) -> dict[str, np.ndarray]:
    """Every path of one problem, and a map around the one with the longest detours."""
    generator = _generator(seed, width, samples)
    x, y = _sphere(generator, samples, width), _sphere(generator, samples, width)
    found = rt.theory.interpolate(x, y, units=units)
    itinerary, states = found.itinerary, found.net.states(x)
    rows = []
    for sample in range(samples):
        path = itinerary.paths.trace(sample, points)
        offsets = path.unsqueeze(1) - itinerary.others(sample)
        own = (found.movers == sample).nonzero().flatten() + 1
        rows.append(
            {
                "off_sphere": float((path.norm(dim=1) - 1).abs().max()),
                "nearest": float(offsets.norm(dim=2).min()) / found.separation,
                "length": float(itinerary.paths.lengths[sample]),
                "arc": rt.theory.great_arc(x[sample], y[sample]).length,
                "gap": float((states[own, sample] - found.path(sample)[1:]).norm(dim=1).max()),
            }
        )
    table = _columns(rows)
    chart = found.chart(int((table["length"] - table["arc"]).argmax()))
    drawn = {
        f"chart.{name}": getattr(chart, name).numpy()
        for name in ("arc", "path", "steps", "circles")
    }
    return {**table, **drawn, "separation": np.array(found.separation)}


def judge_figure_10(a: Arrays) -> list[Verdict]:
    """Paths on the sphere, clear of all other columns, not much longer than the arcs."""
    off, nearest = float(a["off_sphere"].max()), float(a["nearest"].min())
    ratio, longest = float((a["length"] / a["arc"]).max()), float(a["length"].max())
    return [
        Verdict("paths stay on the sphere", "to 1e-12", f"{off:.1e}", off <= 1e-12),
        Verdict(
            "no path comes nearer than half the smallest distance ρ to a column",
            "≥ 0.5 ρ (to 1e-9; the paper's detours of ρ may meet another column)",
            f"{nearest:.6f} ρ",
            nearest >= 0.5 - 1e-9,
        ),
        Verdict(
            "paths shorter than 2π (paper)",
            f"≤ π²/2 = {math.pi**2 / 2:.3f} < 2π",
            f"{longest:.3f}",
            longest <= math.pi**2 / 2,
        ),
        Verdict(
            "detours lengthen a path little",
            "path / great arc ≤ π/2",
            f"{ratio:.4f}",
            ratio <= math.pi / 2 + 1e-12,
        ),
        Verdict(
            "the net's own states follow the paths",
            f"distance ≤ {EXACT:g} after every unit",
            f"{a['gap'].max():.1e}",
            bool(a["gap"].max() <= EXACT),
        ),
    ]


def draw_figure_10(figure: Figure, a: Arrays) -> None:
    """The path with the longest detours."""
    chart = rt.theory.PathChart(
        arc=a["chart.arc"],
        path=a["chart.path"],
        steps=a["chart.steps"],
        circles=a["chart.circles"],
    )
    rt.plots.interpolation_path(chart, ax=figure.subplots())


# -- Figure 1 --------------------------------------------------------------------------------------

POSITIONS = {"pre": "relu", "mid": "tanh", "post": "silu"}
FUNCTIONS = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "silu": lambda z: z / (1 + np.exp(-z)),
}


def compute_figure_1(*, width: int, blocks: int, samples: int, seed: int) -> dict[str, np.ndarray]:
    """2-shortcut nets against the figure written out, for all 8 sets of positions."""
    x = torch.randn(samples, width, generator=_generator(seed), dtype=torch.float64)
    gaps, outputs = [], []
    for chosen in itertools.product((False, True), repeat=3):
        acts = {p: act for (p, act), on in zip(POSITIONS.items(), chosen, strict=True) if on}
        net = rt.ShortcutNet(width, blocks, 2, **acts, dtype=torch.float64)
        rt.initialize(net, "xavier", generator=_generator(seed, 1))
        with torch.no_grad():
            output = net(x).numpy()
        weights = net.weights.detach().numpy()
        gaps.append(np.abs(output - _written_out(x.numpy(), weights, acts)).max())
        outputs.append(output)
    apart = [
        np.abs(a - b).max() for a, b in itertools.combinations(outputs, 2)
    ]  # every position is a different net
    return {"gap": np.array(gaps), "apart": np.array(apart), "scale": np.abs(outputs[0]).max()}


def _written_out(z: np.ndarray, weights: np.ndarray, acts: dict[str, str]) -> np.ndarray:
    """The figure: pre before the first matrix, mid between, post after the second, then + z."""
    act = {p: FUNCTIONS[acts[p]] if p in acts else (lambda v: v) for p in POSITIONS}
    for first, second in weights:
        z = z + act["post"](act["mid"](act["pre"](z) @ first.T) @ second.T)
    return z


def judge_figure_1(a: Arrays) -> list[Verdict]:
    """The three positions are where the figure has them."""
    gap, apart = float(a["gap"].max() / a["scale"]), float(a["apart"].min() / a["scale"])
    return [
        Verdict(
            "nets with activations at any of the three positions are the figure written out",
            "equal to 1e-13 of the largest output, all 8 sets of positions",
            f"{gap:.1e}",
            gap <= 1e-13,
        ),
        Verdict(
            "no two sets of positions are the same net",
            "outputs differ by more than 1e-3 of the largest",
            f"{apart:.2g}",
            apart > 1e-3,
        ),
    ]


def draw_figure_1(figure: Figure, a: Arrays) -> None:
    """One 2-shortcut unit with its three positions for activations."""
    ax = figure.subplots()
    labels = ["$z_{r-1}$", "pre", "$W^{r,1}$", "mid", "$W^{r,2}$", "post", "+", "$z_r$"]
    for place, label in enumerate(labels):
        color = {"p": "#E69F00", "m": "#E69F00", "$W": "#56B4E9"}.get(
            label[:2] if label[:2] == "$W" else label[0], "white"
        )
        box = FancyBboxPatch(
            (place - 0.3, -0.2), 0.6, 0.4, boxstyle="round,pad=0.02", facecolor=color
        )
        ax.add_patch(box)
        ax.text(place, 0, label, ha="center", va="center")
        if place:
            ax.add_patch(
                FancyArrowPatch(
                    (place - 0.72, 0), (place - 0.28, 0), arrowstyle="->", mutation_scale=9
                )
            )
    curve = "arc3,rad=-0.35"
    ax.add_patch(
        FancyArrowPatch(
            (0, 0.3), (6, 0.3), connectionstyle=curve, arrowstyle="->", mutation_scale=12
        )
    )
    ax.text(3, 1.45, "identity shortcut", ha="center")
    ax.set(xlim=(-0.6, 7.6), ylim=(-0.6, 1.8), aspect="equal")
    ax.set_title(f"net against figure: {float(a['gap'].max()):.0e}")
    ax.axis("off")


# -- the claims ------------------------------------------------------------------------------------

CLAIMS = [
    Claim(
        id="demystifying_resnet/theorem_1",
        source=f"{PAPER}, Theorem 1, equations (6) and (7), with constants derived here",
        says="For any inputs and targets on the sphere at distance ρ there is a net of L two-layer "
        "units with ReLU and identity shortcuts that interpolates with all norms O(1/√L).",
        settings={
            "quick": dict(widths=[3, 10], samples=[6], each=[4, 24, 72], seed=0),
            "paper": dict(
                widths=[3, 4, 5, 7, 10], samples=[5, 10, 20, 40], each=[4, 24, 144], seed=0
            ),
        },
        compute=compute_theorem_1,
        judge=judge_theorem_1,
        draw=draw_theorem_1,
    ),
    Claim(
        id="demystifying_resnet/theorem_1_merge",
        source=f"{PAPER}, Theorem 1, extended here to one-hot targets, which Assumption 2 excludes",
        says="One-hot targets, which no net with small weights meets exactly, are met to any "
        "tolerance with norms O(√(log(1/tolerance) / L)).",
        settings={
            "quick": dict(
                width=4, samples=6, each=[36, 108], tolerances=[1e-2, 1e-4, 1e-6], seed=0
            ),
            "paper": dict(
                width=10, samples=30, each=[24, 72, 216], tolerances=[1e-2, 1e-4, 1e-6], seed=0
            ),
        },
        compute=compute_theorem_1_merge,
        judge=judge_theorem_1_merge,
        draw=draw_theorem_1_merge,
    ),
    Claim(
        id="demystifying_resnet/figure_1",
        source=f"{PAPER}, Figure 1",
        says="A 2-shortcut unit has three positions for activations, before, between and after its "
        "two weight matrices, and none on the shortcut.",
        settings={
            "quick": dict(width=10, blocks=3, samples=50, seed=0),
            "paper": dict(width=10, blocks=8, samples=1000, seed=0),
        },
        compute=compute_figure_1,
        judge=judge_figure_1,
        draw=draw_figure_1,
    ),
    Claim(
        id="demystifying_resnet/figure_10",
        source=f"{PAPER}, Figure 10 and the proof of Theorem 1",
        says="A column travels along a great arc with circular detours around other columns, on a "
        "path shorter than 2π.",
        settings={
            "quick": dict(width=3, samples=12, units=240, points=1000, seed=0),
            "paper": dict(width=3, samples=10, units=300, points=10_000, seed=0),
        },
        compute=compute_figure_10,
        judge=judge_figure_10,
        draw=draw_figure_10,
    ),
]
