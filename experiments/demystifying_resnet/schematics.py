"""Figures 1 and 10: the 2-shortcut unit, and the path of a column on the sphere."""

import functools
import itertools
import math

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion
from experiments.demystifying_resnet.interpolation import EXACT, sphere
from experiments.demystifying_resnet.nets import PAPER, columns, generator_of

# -- Figure 1 --------------------------------------------------------------------------------------

POSITIONS = {"pre": "relu", "mid": "tanh", "post": "silu"}
FUNCTIONS = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "silu": lambda z: z / (1 + np.exp(-z)),
}


def compute_figure_1(*, width: int, blocks: int, samples: int, seed: int) -> dict[str, np.ndarray]:
    """Compare 2-shortcut nets with an explicit implementation for all 8 sets of positions.

    Their outputs at the zero input stand beside those of nets with the bias of equation (3).
    """
    x = torch.randn(samples, width, generator=generator_of(seed), dtype=torch.float64)
    gaps, outputs, at_zero = [], [], []
    for chosen in itertools.product((False, True), repeat=3):
        acts = {p: act for (p, act), on in zip(POSITIONS.items(), chosen, strict=True) if on}
        net = rt.ShortcutNet(width, blocks, 2, **acts, dtype=torch.float64)
        rt.initialize(net, "xavier", generator=generator_of(seed, 1))
        with torch.no_grad():
            output = net(x).numpy()
        weights = net.weights.detach().numpy()
        gaps.append(np.abs(output - _written_out(x.numpy(), weights, acts)).max())
        outputs.append(output)
        biased = rt.ShortcutNet(width, blocks, 2, **acts, bias=True, dtype=torch.float64)
        rt.initialize(biased, "xavier", generator=generator_of(seed, 1))
        torch.nn.init.normal_(biased.bias, generator=generator_of(seed, 2))
        with torch.no_grad():
            origin = torch.zeros_like(x[:1])
            at_zero.append([float(each(origin).abs().max()) for each in (net, biased)])
    apart = [np.abs(a - b).max() for a, b in itertools.combinations(outputs, 2)]
    return {
        "gap": np.array(gaps),
        "apart": np.array(apart),
        "scale": np.abs(outputs[0]).max(),
        "at_zero": np.array(at_zero),
    }


def _written_out(z: np.ndarray, weights: np.ndarray, acts: dict[str, str]) -> np.ndarray:
    """Explicit forward pass: pre, first matrix, mid, second matrix, post, then + z."""
    act = {p: FUNCTIONS[acts[p]] if p in acts else (lambda v: v) for p in POSITIONS}
    for first, second in weights:
        z = z + act["post"](act["mid"](act["pre"](z) @ first.T) @ second.T)
    return z


def judge_figure_1(a: Arrays) -> list[Criterion]:
    """Require the three positions of the figure."""
    gap, apart = float(a["gap"].max() / a["scale"]), float(a["apart"].min() / a["scale"])
    without, biased = a["at_zero"].T
    return [
        Criterion(
            "nets with activations at any of the three positions are the figure written out",
            "equal to 1e-13 of the largest output, all 8 sets of positions",
            f"{gap:.1e}",
            gap <= 1e-13,
        ),
        Criterion(
            "no two sets of positions are the same net",
            "outputs differ by more than 1e-3 of the largest",
            f"{apart:.2g}",
            apart > 1e-3,
        ),
        Criterion(
            "outputs at the zero input: n-shortcut nets, and nets with the bias of (3)",
            "0, as activations are 0 at 0; above 0: no n-shortcut net computes this",
            f"{without.max():g}; {biased.min():.2g} at least",
            bool((without == 0).all() and (biased > 0).all()),
        ),
    ]


def draw_figure_1(figure: Figure, a: Arrays) -> None:
    """Draw one 2-shortcut unit with its three positions for activations."""
    ax = figure.subplots()
    orange, blue = "#E69F00", "#56B4E9"
    boxes = {
        "$z_{r-1}$": "white", "pre": orange, "$W^{r,1}$": blue, "mid": orange,
        "$W^{r,2}$": blue, "post": orange, "+": "white", "$z_r$": "white",
    }  # fmt: skip
    for place, (label, color) in enumerate(boxes.items()):
        box = FancyBboxPatch(
            (place - 0.3, -0.2), 0.6, 0.4, boxstyle="round,pad=0.02", facecolor=color
        )
        ax.add_patch(box)
        ax.text(place, 0, label, ha="center", va="center")
    arrow = functools.partial(FancyArrowPatch, arrowstyle="->")
    for place in range(1, len(boxes)):
        ax.add_patch(arrow((place - 0.72, 0), (place - 0.28, 0), mutation_scale=9))
    ax.add_patch(arrow((0, 0.3), (6, 0.3), connectionstyle="arc3,rad=-0.35", mutation_scale=12))
    ax.text(3, 1.45, "identity shortcut", ha="center")
    ax.set(xlim=(-0.6, 7.6), ylim=(-0.6, 1.8), aspect="equal")
    ax.set_title(f"largest difference of our nets from this drawing: {float(a['gap'].max()):.0e}")
    ax.axis("off")


# -- Figure 10 -------------------------------------------------------------------------------------


def compute_figure_10(
    *, width: int, samples: int, units: int, points: int, seed: int
) -> dict[str, np.ndarray]:
    """Compute all paths of one problem, and a chart around the one with the longest detours."""
    generator = generator_of(seed, width, samples)
    x, y = sphere(generator, samples, width), sphere(generator, samples, width)
    found = rt.theory.interpolate(x, y, units=units)
    schedule, states = found.schedule, found.net.states(x)
    rows = []
    for sample in range(samples):
        path = schedule.paths.trace(sample, points)
        offsets = path.unsqueeze(1) - schedule.others(sample)
        own = (found.movers == sample).nonzero().flatten() + 1
        rows.append(
            {
                "off_sphere": float((path.norm(dim=1) - 1).abs().max()),
                "nearest": float(offsets.norm(dim=2).min()) / found.separation,
                "length": float(schedule.paths.lengths[sample]),
                "arc": rt.theory.great_arc(x[sample], y[sample]).length,
                "gap": float((states[own, sample] - found.path(sample)[1:]).norm(dim=1).max()),
            }
        )
    table = columns(rows)
    chart = found.chart(int((table["length"] - table["arc"]).argmax()))
    drawn = {
        f"chart.{name}": getattr(chart, name).numpy()
        for name in ("arc", "path", "steps", "circles")
    }
    return {**table, **drawn, "separation": np.array(found.separation)}


def judge_figure_10(a: Arrays) -> list[Criterion]:
    """Require short paths on the sphere that keep a distance from all other columns."""
    off, nearest = float(a["off_sphere"].max()), float(a["nearest"].min())
    ratio, longest = float((a["length"] / a["arc"]).max()), float(a["length"].max())
    return [
        Criterion("paths stay on the sphere", "to 1e-12", f"{off:.1e}", off <= 1e-12),
        Criterion(
            "no path comes nearer than half the smallest distance ρ to a column",
            "≥ 0.5 ρ (to 1e-9; the paper's detours of ρ may meet another column)",
            f"{nearest:.6f} ρ",
            nearest >= 0.5 - 1e-9,
        ),
        Criterion(
            "paths shorter than 2π (paper)",
            f"≤ π²/2 = {math.pi**2 / 2:.3f} < 2π",
            f"{longest:.3f}",
            longest <= math.pi**2 / 2,
        ),
        Criterion(
            "detours lengthen a path little",
            "path / great arc ≤ π/2",
            f"{ratio:.4f}",
            ratio <= math.pi / 2 + 1e-12,
        ),
        Criterion(
            "the net's own states follow the paths",
            f"distance ≤ {EXACT:g} after every unit",
            f"{a['gap'].max():.1e}",
            bool(a["gap"].max() <= EXACT),
        ),
    ]


def draw_figure_10(figure: Figure, a: Arrays) -> None:
    """Plot the path with the longest detours."""
    chart = rt.theory.PathChart(
        arc=a["chart.arc"],
        path=a["chart.path"],
        steps=a["chart.steps"],
        circles=a["chart.circles"],
    )
    rt.plots.interpolation_path(chart, ax=figure.subplots())


# -- the claims ------------------------------------------------------------------------------------

CLAIMS = [
    Claim(
        id="demystifying_resnet/figure_1",
        source=f"{PAPER}, Figure 1",
        says="A 2-shortcut unit has three positions for activations, before, between and after its "
        "two weight matrices, and none on the shortcut.",
        settings={
            "quick": dict(width=10, blocks=3, samples=50, seed=0),
            "paper": dict(width=10, blocks=8, samples=1000, seed=1),
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
