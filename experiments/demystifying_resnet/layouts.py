"""Condition numbers at zero weights against depth, for ten wirings of the same blocks: our law."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above
from experiments.demystifying_resnet.nets import WIDTH, whitened
from resid_theory.theory import Layout

STREAMS = 4
CHANGED = 1.1  # factor of a condition number that depends on depth
FREE = ("shortcut", "branches over √K", "doubly stochastic, equal gates")
FIXED = ("skip 0.9", "skip 1.1", "mean of all before")
DRAWN = (
    "doubly stochastic, random gates", "free mixing", "orthogonal mixing", "dense, softmax weights",
)  # fmt: skip


def wiring(name: str, blocks: int, draws: torch.Generator) -> Layout:
    """One of the ten, a draw where it is random."""
    if name in FREE[:2]:
        return Layout.scaled(blocks, scale=1.0 if name == "shortcut" else blocks**-0.5)
    if name in FIXED[:2]:
        return Layout.scaled(blocks, skip=float(name.split()[1]))
    if name == FIXED[2]:
        return Layout.averaged(blocks)
    if name == DRAWN[3]:
        logits = torch.randn(blocks + 1, blocks + 1, generator=draws, dtype=torch.float64)
        above_it = torch.ones_like(logits).triu(1).bool()
        return Layout.dense(logits.masked_fill(above_it, -torch.inf).softmax(-1))
    shape = (blocks, STREAMS)
    read = torch.full(shape, 1 / STREAMS, dtype=torch.float64)
    write = torch.ones(shape, dtype=torch.float64)
    if name != FREE[2]:
        read = torch.randn(shape, generator=draws, dtype=torch.float64).softmax(-1)
        write = torch.rand(shape, generator=draws, dtype=torch.float64)
    return Layout.hyper_connections(read, _mixing(name, blocks, draws), write)


def _mixing(name: str, blocks: int, draws: torch.Generator) -> Tensor:
    drawn = torch.randn(blocks, STREAMS, STREAMS, generator=draws, dtype=torch.float64)
    if name == "free mixing":
        return torch.eye(STREAMS, dtype=torch.float64) + 0.3 * drawn
    if name == "orthogonal mixing":
        return torch.linalg.qr(drawn).Q
    mix = drawn.exp()
    for _ in range(200):  # Sinkhorn's steps, to the end
        mix = mix / mix.sum(-1, keepdim=True)
        mix = mix / mix.sum(-2, keepdim=True)
    return mix


def compute(
    *, dataset: str, samples: int | None, depths: Sequence[int], draws: int, measured: int
) -> dict[str, np.ndarray]:
    """Compute condition numbers, (depths, draws), predicted and at small depths measured, too."""
    data = whitened(dataset, samples)
    arrays = {"depth": np.array(depths)}
    for number, name in enumerate((*FREE, *FIXED, *DRAWN)):
        source = torch.Generator().manual_seed(number)
        found = np.empty((len(depths), draws if name in DRAWN else 1))
        real = np.full(len(depths), np.nan)
        for row, depth in enumerate(depths):
            for column in range(found.shape[1]):
                layout = wiring(name, depth, source)
                point = rt.theory.zero_point(data.moments, layout=layout)
                found[row, column] = point.condition_number
                if column == 0 and depth <= measured:
                    net = rt.networks.LayoutNet(WIDTH, *layout.coefficients(), branch=layout.branch)
                    spectrum = rt.hessian_spectrum(net, "square", data)
                    real[row] = spectrum.nonzero_condition_number
        arrays |= {f"{name}.predicted": found, f"{name}.measured": real}
    return arrays


def judge(a: Arrays) -> list[Criterion]:
    """Compare with measured Hessians, and the deepest with the shallowest."""
    depth, off = a["depth"], 0.0
    for name in (*FREE, *FIXED, *DRAWN):
        found = a[f"{name}.predicted"][:, 0]
        # An eigenvalue of a dense solver is exact to P eps of the largest one.
        bound = found * 2 * WIDTH**2 * depth * np.finfo(float).eps
        off = max(off, float(np.nanmax(np.abs(a[f"{name}.measured"] / found - 1) / bound)))
    growth = {
        name: np.log(a[f"{name}.predicted"][-1] / a[f"{name}.predicted"][0])
        for name in (*FREE, *FIXED, *DRAWN)
    }
    words = f"condition number at {depth[-1]} blocks over that at {depth[0]}"
    return [
        Criterion(
            "predicted against measured, all ten layouts, in error bounds of the dense solver",
            "at most 1 (theorem)",
            f"{off:.2g}",
            off <= 1,
        ),
        *(
            Criterion(
                f"{name}: {words}",
                "1 to 1e-9 (theorem)",
                f"1 {np.exp(growth[name][0]) - 1:+.1e}",
                abs(np.exp(growth[name][0]) - 1) <= 1e-9,
            )
            for name in FREE
        ),
        *(
            Criterion(
                f"{name}: {words}",
                f"off 1 by a factor of {CHANGED} or more (ours)",
                f"{np.exp(growth[name][0]):.4g}",
                abs(growth[name][0]) >= np.log(CHANGED),
            )
            for name in FIXED
        ),
        *(
            above(
                f"{name}: log of the {words}",
                growth[name],
                float(np.log(CHANGED)),
                of="median",
                source=f"more than {CHANGED} times; ours",
            )
            for name in DRAWN
        ),
    ]


def draw(figure: Figure, a: Arrays) -> None:
    """Plot medians against depth, with quartiles, and measured Hessians as dots."""
    ax = figure.subplots()
    for number, name in enumerate((*FREE, *FIXED, *DRAWN)):
        found, color = a[f"{name}.predicted"], f"C{number}"
        # Lines on top of one another: the later ones are dashed.
        dashes = (number, (4, 2)) if name in FREE else "-"
        ax.plot(a["depth"], np.median(found, 1), ls=dashes, color=color, label=name)
        if found.shape[1] > 1:
            low, high = np.quantile(found, [0.25, 0.75], axis=1)
            ax.fill_between(a["depth"], low, high, color=color, alpha=0.1, lw=0)
        # Those of the first draw.
        ax.plot(a["depth"], a[f"{name}.measured"], "o", color=color, mfc="none")
    ax.set(xscale="log", yscale="log", xlabel="blocks of two layers",
           ylabel="condition number of the Hessian at zero")  # fmt: skip
    ax.set_xticks(a["depth"], [str(depth) for depth in a["depth"]])
    ax.minorticks_off()
    ax.legend(title="lines: predicted, medians; dots: measured, one draw", fontsize="x-small")


CLAIMS = [
    Claim(
        id="demystifying_resnet/layouts",
        kind="law",
        source="ours, after arXiv:1611.01186, Theorem 2",
        says="At zero weights the condition number of two-layer blocks is free of depth exactly "
        "where the input's share in the output, and what a block reads of the input times what "
        "the output reads of the block, do not depend on it: with shortcuts, and with "
        "hyper-connections of doubly stochastic mixing and equal gates. It depends on depth with "
        "scaled skips, and grows with random gates, free or orthogonal mixing, dense mixing and "
        "means over depth.",
        settings={
            "quick": dict(dataset="digits", samples=300, depths=[1, 2, 8], draws=10, measured=1),
            "paper": dict(
                dataset="mnist", samples=None, depths=[1, 2, 4, 16, 64], draws=400, measured=4
            ),
        },
        compute=compute,
        judge=judge,
        draw=draw,
    ),
]
