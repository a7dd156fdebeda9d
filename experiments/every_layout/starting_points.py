"""Starting points of ReZero and Fixup, and one-layer blocks at zero weights."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, near
from resid_theory.theory import Layout

EXACT = 1e-12  # relative: closed forms against double autograd


def drawn(generator: torch.Generator, *shape: int) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# -- ReZero ----------------------------------------------------------------------------------------


def compute_rezero(
    *, blocks: int, width: int, hidden: int, samples: int, seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """Compare the Hessian in (W, α) of x + Σ α_k W2 tanh(W1 h) at α = 0 with an arrow."""
    names = ("output", "jacobian", "weights", "column", "corner", "extra rank", "gradient")
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        weights = [(drawn(generator, hidden, width) / width**0.5).requires_grad_()
                   if n % 2 == 0 else (drawn(generator, width, hidden) / hidden**0.5)
                   .requires_grad_() for n in range(2 * blocks)]  # fmt: skip
        scales = [torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(blocks)]
        x, y = drawn(generator, samples, width), drawn(generator, samples, width)

        def branch(k: int, h: Tensor, given: Sequence[Tensor] = weights) -> Tensor:
            return (h @ given[2 * k].mT).tanh() @ given[2 * k + 1].mT

        def net(h: Tensor, given: Sequence[Tensor] = scales) -> Tensor:
            for k in range(blocks):
                h = h + given[k] * branch(k, h)
            return h

        free = [*weights, *scales]
        loss = (net(x) - y).square().sum() / (2 * samples)
        first = torch.autograd.grad(loss, free, create_graph=True)
        flat = torch.cat([part.flatten() for part in first])
        hessian = torch.stack([
            torch.cat([part.flatten() for part in
                       torch.autograd.grad(e, free, retain_graph=True, materialize_grads=True)])
            for e in flat
        ])  # fmt: skip
        size = sum(w.numel() for w in weights)
        g = (x - y).detach()  # gradient of a sample's loss in the output x
        written = [branch(k, x) for k in range(blocks)]
        column = torch.stack([
            torch.cat([part.flatten() for part in torch.autograd.grad(
                (g * f).sum() / samples, weights, retain_graph=True, materialize_grads=True)])
            for f in written
        ], dim=1)  # fmt: skip
        corner = torch.zeros(blocks, blocks, dtype=torch.float64)
        for k in range(blocks):
            for j in range(blocks):
                corner[k, j] = (written[k] * written[j]).sum() / samples
                if k != j:  # the later block sees what the earlier one writes
                    early, late = min(k, j), max(k, j)
                    _, moved = torch.autograd.functional.jvp(
                        lambda h, late=late: branch(late, h), x, written[early].detach()
                    )
                    corner[k, j] += (g * moved).sum() / samples
        scale = float(hessian.abs().max())
        jacobian = torch.autograd.functional.jacobian(net, x[0]).detach()
        values = torch.linalg.eigvalsh(hessian).abs()
        rows.append([
            float((net(x) - x).detach().abs().max()),
            float((jacobian - torch.eye(width)).abs().max()),
            float(hessian[:size, :size].abs().max()) / scale,
            float((hessian[:size, size:] - column).detach().abs().max()) / scale,
            float((hessian[size:, size:] - corner).detach().abs().max()) / scale,
            float((values > len(values) * 2.2e-16 * values.max()).sum()) - 2 * blocks,
            float(flat[size:].detach().norm()),
        ])  # fmt: skip
    return dict(zip(names, np.array(rows).T, strict=True))


def judge_rezero(a: Arrays) -> list[Criterion]:
    """Require the identity, and the arrow to round-off."""
    exact = {
        "output": "the function off the identity",
        "jacobian": "its Jacobian off the identity (all singular values are one)",
        "weights": "block of the weights, over the largest entry",
        "column": "weights against scales, off the gradient of <g, F_k> (ours)",
        "corner": "scales against scales, off its formula (ours)",
    }
    found = [
        Criterion(f"at α = 0: {words}", f"at most {EXACT:g} (theorem)", f"{a[key].max():.1e}",
                  a[key].max() <= EXACT)
        for key, words in exact.items()
    ]  # fmt: skip
    return [
        *found,
        Criterion("rank less twice the number of blocks", "at most 0 (theorem; ours)",
                  f"{a['extra rank'].max():.0f}", a["extra rank"].max() <= 0),
        Criterion("norm of the gradient in the scales", "above 0: not stationary (ours)",
                  f"{a['gradient'].min():.3g} at least", a["gradient"].min() > 1e-3),
    ]  # fmt: skip


def draw_rezero(figure: Figure, a: Arrays) -> None:
    """Plot the differences."""
    ax = figure.subplots()
    names = ("output", "jacobian", "weights", "column", "corner")
    ax.bar(names, [max(float(a[name].max()), 1e-18) for name in names])
    ax.axhline(EXACT, color="k", ls=":")
    ax.set_title("dotted: criterion; 1e-18: none", fontsize="medium")
    ax.set(yscale="log", ylabel="largest difference")


# -- Fixup -----------------------------------------------------------------------------------------


def compute_fixup(
    *, depths: Sequence[int], width: int, samples: int, rate: float, matrices: int,
    seeds: Sequence[int],
) -> dict[str, np.ndarray]:  # fmt: skip
    """Compute the change of the function by one step of descent over the learning rate."""
    arrays = {"depth": np.array(depths)}
    for name in ("Fixup", "without its scale"):
        found = np.empty((len(depths), len(seeds)))
        for row, blocks in enumerate(depths):
            for column, seed in enumerate(seeds):
                generator = torch.Generator().manual_seed(seed)
                x, y = drawn(generator, samples, width), drawn(generator, samples, width)
                factor = blocks ** (-1 / (2 * matrices - 2)) if name == "Fixup" else 1.0
                weights = []
                for _ in range(blocks):
                    for place in range(matrices):
                        w = factor * (2 / width) ** 0.5 * drawn(generator, width, width)
                        weights.append(0 * w if place == matrices - 1 else w)

                def net(given: Sequence[Tensor], h: Tensor = x, count: int = blocks) -> Tensor:
                    for k in range(count):
                        z = h
                        for place in range(matrices):
                            z = z @ given[matrices * k + place].mT
                            z = z.relu() if place < matrices - 1 else z
                        h = h + z
                    return h

                free = [w.requires_grad_() for w in weights]
                before = net(free)
                slopes = torch.autograd.grad((before - y).square().sum() / (2 * samples), free)
                with torch.no_grad():
                    after = net([w - rate * s for w, s in zip(free, slopes, strict=True)])
                found[row, column] = float((after - before).detach().norm()) / rate / samples**0.5
        arrays[name] = found
    return arrays


def judge_fixup(a: Arrays) -> list[Criterion]:
    """Test exponents over depth."""
    log = np.log(a["depth"])
    slopes = {name: np.polyfit(log, np.log(a[name]), 1)[0] for name in a if name != "depth"}
    return [
        near("exponent over depth of the change of the function by one step, Fixup",
             slopes["Fixup"], 0.0, margin=0.1, source="Θ(η) per step, independent of depth"),
        near("the same without the depth scale of initial weights (last matrices zero)",
             slopes["without its scale"], 1.0, margin=0.1, source="a sum over blocks; ours"),
    ]  # fmt: skip


def draw_fixup(figure: Figure, a: Arrays) -> None:
    """Plot changes against depth."""
    ax = figure.subplots()
    for name in a:
        if name != "depth":
            ax.errorbar(a["depth"], a[name].mean(1), a[name].std(1), marker="o", label=name)
    ax.set(xscale="log", yscale="log", xlabel="blocks", ylabel="change of the function / η")
    ax.legend()


# -- one-layer blocks ------------------------------------------------------------------------------


def compute_one_layer(
    *, width: int, depths: Sequence[int], ranks: Sequence[int], longest: int, seed: int
) -> dict[str, np.ndarray]:
    """Compute zeros and condition numbers of one-layer blocks, and the order of longer ones."""
    generator = torch.Generator().manual_seed(seed)
    eye = torch.eye(width, dtype=torch.float64)
    zeros = np.empty((len(ranks), len(depths)))
    for row, rank in enumerate(ranks):
        low = drawn(generator, width, rank) @ drawn(generator, rank, width)
        data = rt.Moments(sxx=eye, syx=eye - low, syy=20 * width * eye, count=9)
        for column, depth in enumerate(depths):
            layout = Layout.shortcut(depth, branch=1)
            zeros[row, column] = rt.theory.zero_point(data, layout=layout).spectrum.nullity
    mixed = 0.3 * drawn(generator, width, width)
    data = rt.Moments(sxx=eye, syx=mixed, syy=mixed @ mixed.mT + eye, count=100)
    one, two = (
        np.array([
            rt.theory.zero_point(data, layout=Layout.shortcut(depth, branch=n))
            .nonzero_condition_number for depth in depths
        ]) for n in (1, 2)
    )  # fmt: skip
    sizes, slopes = np.array([0.02, 0.01]), []  # small, but above round-off
    for n in range(2, longest + 1):
        net = rt.ShortcutNet(width, 2, n)
        x, y = drawn(generator, 30, width), drawn(generator, 30, width)
        start = [drawn(generator, *w.shape) for w in net.layers()]
        changes = []
        for size in sizes:
            h = x
            for k in range(2):
                z = h
                for w in start[n * k : n * (k + 1)]:
                    z = z @ (size * w).mT
                h = h + z
            before, after = ((out - y).square().sum() / 60 for out in (x, h))
            changes.append(abs(float(after - before)))
        slopes.append(np.diff(np.log(changes))[0] / np.diff(np.log(sizes))[0])
    return {
        "depth": np.array(depths), "rank": np.array(ranks), "width": np.array(width),
        "zeros": zeros, "one": one, "two": two, "slopes": np.array(slopes),
    }  # fmt: skip


def judge_one_layer(a: Arrays) -> list[Criterion]:
    """Compare with counts and orders."""
    expected = np.outer((float(a["width"]) - a["rank"]) ** 2, a["depth"] - 1)
    exact = np.array_equal(a["zeros"], expected)
    orders = np.arange(2, 2 + len(a["slopes"]))
    off = float(np.abs(a["slopes"] - orders).max())
    growth = np.diff(np.log(a["one"]))
    spread = float(np.ptp(a["two"]) / a["two"][0])
    return [
        Criterion("blocks of one layer: zero eigenvalues at every depth and rank r of G",
                  "(L - 1)(d - r)² (theorem)", "equal" if exact else f"{a['zeros'].tolist()}",
                  exact),
        Criterion("blocks of one layer: condition number from each depth to the next",
                  "grows (ours)", f"{np.array2string(a['one'], precision=4)}", (growth > 0).all()),
        Criterion("blocks of two layers: spread of condition numbers over depth",
                  "0 to 1e-9 (theorem)", f"{spread:.1e}", spread <= 1e-9),
        Criterion("blocks of n layers: order of the change of the loss in the size of weights",
                  "n to 0.1 (theorem)", f"{np.array2string(a['slopes'], precision=3)}",
                  off <= 0.1),
    ]  # fmt: skip


def draw_one_layer(figure: Figure, a: Arrays) -> None:
    """Plot condition numbers against depth."""
    ax = figure.subplots()
    for key, label in (("one", "blocks of one layer"), ("two", "blocks of two layers")):
        ax.plot(a["depth"], a[key], "o-", label=label)
    ax.set(xscale="log", yscale="log", xlabel="blocks", ylabel="condition number at zero")
    ax.legend()


CLAIMS = [
    Claim(
        id="every_layout/rezero",
        kind="extension",
        source="Bachlechner et al., ReZero, arXiv:2003.04887 (abstract and introduction read); "
        "the arrow is ours",
        says="With residual weights at zero a net is the identity and all singular values of its "
        "Jacobian are one. Its Hessian in weights and residual weights is an arrow there: weights "
        "have no curvature among themselves, its rank is at most twice the number of blocks, and "
        "the point is not stationary.",
        settings={
            "quick": dict(blocks=2, width=2, hidden=2, samples=5, seeds=[0]),
            "paper": dict(blocks=4, width=4, hidden=5, samples=20, seeds=[0, 1, 2, 3, 4]),
        },
        compute=compute_rezero,
        judge=judge_rezero,
        draw=draw_rezero,
    ),
    Claim(
        id="every_layout/fixup",
        source="Zhang, Dauphin & Ma, Fixup, arXiv:1901.09321 (abstract and introduction read, not "
        "the conditions of its theorem); fully connected blocks of m matrices",
        says="At Fixup's initial weights, L^(-1/(2m-2)) times He's with last matrices of zero, one "
        "step of gradient descent changes the function by Θ(η), whatever the depth.",
        settings={
            "quick": dict(depths=[2, 8], width=8, samples=8, rate=1e-4, matrices=2, seeds=[0]),
            "paper": dict(depths=[4, 8, 16, 32, 64, 128], width=32, samples=32, rate=1e-5,
                          matrices=2, seeds=list(range(10))),
        },
        compute=compute_fixup,
        judge=judge_fixup,
        draw=draw_fixup,
    ),
    Claim(
        id="every_layout/one_layer",
        kind="law",
        source="ours, after arXiv:1611.01186, Theorem 2",
        says="At zero weights blocks of one layer under shortcuts have (L - 1)(d - r)² zero "
        "eigenvalues for a G of rank r, and a condition number that grows with depth, while that "
        "of two layers does not; the loss near zero moves with the power n of the weights for "
        "blocks of n layers.",
        settings={
            "quick": dict(width=3, depths=[1, 2, 4], ranks=[1, 3], longest=3, seed=0),
            "paper": dict(width=4, depths=[1, 2, 4, 8, 16, 32], ranks=[0, 1, 2, 3, 4], longest=4,
                          seed=0),
        },
        compute=compute_one_layer,
        judge=judge_one_layer,
        draw=draw_one_layer,
    ),
]  # fmt: skip
