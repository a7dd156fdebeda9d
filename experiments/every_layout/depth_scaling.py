"""Multipliers of branches against depth: curvature at zero, along descent, stable rates."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above, below, near
from experiments.demystifying_resnet.nets import WIDTH, whitened
from resid_theory.theory import Layout

EXPONENTS = (0.0, 0.5, 1.0)
FREE = {1: 0.5, 2: 0.0}  # multiplier K^-γ with λ_max(0) free of depth, by matrices in a block
CEILING = 64.0  # largest rate tried, in units of 1 / λ_max(0) of one block
START = 0.01  # of Xavier's weights


def output(weights: Tensor, scale: float) -> Tensor:
    """Product map of blocks (K, n, d, d) on the unit vectors: whitened data need no more."""
    h = torch.eye(weights.shape[-1], dtype=torch.float64)
    for block in weights:
        z = h
        for w in block:
            z = w @ z
        h = h + scale * z
    return h


def descend(
    weights: Tensor, scale: float, target: Tensor, rate: float, steps: int
) -> Tensor | None:
    """Weights after full-batch descent; None if the loss ever exceeds ten times its start."""
    w, limit = weights.clone().requires_grad_(), None
    for _ in range(steps):
        loss = (output(w, scale) - target).square().sum() / 2
        limit = 10 * loss.item() if limit is None else limit
        if not loss.item() <= limit:
            return None
        (g,) = torch.autograd.grad(loss, w)
        w = (w - rate * g).detach().requires_grad_()
    return w.detach()


def sharpness(weights: Tensor, scale: float, target: Tensor, seed: int, products: int) -> float:
    """Largest eigenvalue of the Hessian: power iteration on its square, from below."""
    w = weights.clone().requires_grad_()
    loss = (output(w, scale) - target).square().sum() / 2
    (g,) = torch.autograd.grad(loss, w, create_graph=True)
    v = torch.randn(w.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = 0.0
    for _ in range(products):
        v = v / v.norm()
        (v,) = torch.autograd.grad(g, w, v, retain_graph=True)
        size = float(v.norm())
    return size


def largest_rate(
    weights: Tensor, scale: float, target: Tensor, top: float, steps: int, halvings: int
) -> float:
    """Largest learning rate of a stable descent, by bisection in its logarithm."""
    low, high = np.log(1e-4 / top), np.log(CEILING / top)
    for _ in range(halvings):
        middle = (low + high) / 2
        stable = descend(weights, scale, target, float(np.exp(middle)), steps) is not None
        low, high = (middle, high) if stable else (low, middle)
    return float(np.exp(low))


def compute(
    *, dataset: str, samples: int | None, exact: Sequence[int], depths: Sequence[int], steps: int,
    halvings: int, products: int, seeds: Sequence[int],
) -> dict[str, np.ndarray]:  # fmt: skip
    """Compute λ_max(0), and stable rates and curvature of descent, (exponents, depths, seeds)."""
    data = whitened(dataset, samples).moments
    # Square loss of whitened data: |map - target|² / 2 and a constant.
    target = data.syx
    arrays = {"exact": np.array(exact), "depth": np.array(depths)}
    for n in (1, 2):
        zero = np.empty((len(EXPONENTS), len(exact)))
        for row, power in enumerate(EXPONENTS):
            for column, blocks in enumerate(exact):
                layout = Layout.scaled(blocks, scale=blocks**-power, branch=n)
                zero[row, column] = rt.theory.zero_point(data, layout=layout).spectrum.max_magnitude
        arrays[f"{n}.zero"] = zero
        shape = (len(EXPONENTS), len(depths), len(seeds))
        rates, after = np.empty(shape), np.empty(shape)
        top = float(zero[0, 0]) / (exact[0] if n == 1 else 1)  # of one block, about
        for row, power in enumerate(EXPONENTS):
            for column, blocks in enumerate(depths):
                for place, seed in enumerate(seeds):
                    generator = torch.Generator().manual_seed(seed)
                    drawn = torch.randn(
                        blocks, n, WIDTH, WIDTH, generator=generator, dtype=torch.float64
                    )
                    start = START * drawn / WIDTH**0.5
                    scale = blocks**-power
                    rate = largest_rate(start, scale, target, top, steps, halvings)
                    end = descend(start, scale, target, rate / 2, steps)
                    rates[row, column, place] = rate
                    after[row, column, place] = (
                        np.nan if end is None else sharpness(end, scale, target, seed, products)
                    )
        arrays |= {f"{n}.rate": rates, f"{n}.sharpness": after}
    return arrays


def judge(a: Arrays) -> list[Criterion]:
    """Fit exponents, and compare the deepest with the shallowest net along descent."""
    found, deep = [], np.log(a["depth"][-1] / a["depth"][0])
    for n in (1, 2):
        log, zero = np.log(a["exact"]), np.log(a[f"{n}.zero"])
        for row, power in enumerate(EXPONENTS):
            slope = float((zero[row, -1] - zero[row, -2]) / (log[-1] - log[-2]))
            expected = 1 - 2 * power if n == 1 else -power
            margin = 0.05 if n == 1 else 1e-9
            found.append(
                Criterion(f"blocks of {n}, multiplier K^-{power:g}: exponent of λ_max(0) over K, "
                          "the two deepest", f"{expected:g} to {margin:g} (theorem)",
                          f"{slope:.4g}", abs(slope - expected) <= margin)
            )  # fmt: skip
        for row, power in enumerate(EXPONENTS):
            rates = np.log(a[f"{n}.rate"][row])
            change = (rates[-1] - rates[0]) / deep
            words = f"blocks of {n}, K^-{power:g}: exponent of the largest stable rate over K"
            if power == FREE[n]:
                found.append(near(words, change, 0.0, margin=0.25,
                                  source="free of depth where λ_max(0) is; ours"))  # fmt: skip
            elif n == 1 and power < 0.5:
                found.append(below(words, change, -0.25, source="falls; ours"))
            else:
                found.append(above(words, change, 0.25, source="rises; ours"))
    return found


def draw(figure: Figure, a: Arrays) -> None:
    """Plot all three against depth, one row for each order of branch."""
    axes = figure.subplots(2, 3, sharex="col")
    for n, row in zip((1, 2), axes, strict=True):
        for number, power in enumerate(EXPONENTS):
            label = f"$K^{{-{power:g}}}$"
            row[0].plot(a["exact"], a[f"{n}.zero"][number], "o-", label=label)
            for ax, key in zip(row[1:], ("sharpness", "rate"), strict=True):
                values = a[f"{n}.{key}"][number]
                ax.errorbar(a["depth"], values.mean(1), values.std(1), marker="o", label=label)
        for ax, words in zip(row, ("largest λ at zero", "largest |λ| later", "largest stable rate"),
                             strict=True):  # fmt: skip
            ax.set(
                xscale="log",
                yscale="log",
                ylabel=words,
                title=f"blocks of {n} layer{'s' * (n > 1)}",
            )
        row[0].legend(title="scale of the branches")
    for ax in axes[1]:
        ax.set(xlabel="blocks K")


CLAIMS = [
    Claim(
        id="every_layout/depth_scaling",
        kind="law",
        source="ours; multipliers after CompleteP (arXiv:2505.01618) and depth-μP "
        "(arXiv:2310.02244), not read for this",
        says="With a multiplier K^-γ on the branches of K blocks the largest eigenvalue at zero "
        "weights does not depend on depth at γ = 1/2 for blocks of one layer and at γ = 0 for "
        "those of two; there the largest stable learning rate of a descent from small weights "
        "does not depend on depth either, and elsewhere it does.",
        settings={
            "quick": dict(dataset="digits", samples=None, exact=[2, 4], depths=[2, 4], steps=3,
                          halvings=2, products=2, seeds=[0]),
            "paper": dict(dataset="digits", samples=None, exact=[4, 8, 16, 28],
                          depths=[4, 16, 64], steps=60, halvings=9, products=40,
                          seeds=[0, 1, 2, 3, 4]),
        },
        compute=compute,
        judge=judge,
        draw=draw,
    ),
]  # fmt: skip
