"""Theorems on the identity: minimizers near it, descent from it, singular units, Jacobians."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import linalg
from torch import Tensor

from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above, below, near
from experiments.every_layout.starting_points import drawn

RANK = 1e-9  # relative: singular values below it are zero

# -- Hardt & Ma: minimizers near the identity ------------------------------------------------------


def compute_near_minimizer(
    *, width: int, depths: Sequence[int], products: int, seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """Factor R of positive determinant into I + A_l by its polar decomposition."""
    norms, gaps = np.empty((2, len(seeds), len(depths)))
    negative = 0
    for row, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        R = drawn(generator, width, width).numpy()
        R[0] *= np.sign(np.linalg.det(R))
        logs = [linalg.logm(part).real for part in linalg.polar(R)]
        for column, depth in enumerate(depths):
            factors = [linalg.expm(2 / depth * log) for log in logs]
            powers = [np.linalg.matrix_power(factor, depth // 2) for factor in factors]
            gaps[row, column] = np.linalg.norm(powers[0] @ powers[1] - R) / np.linalg.norm(R)
            norms[row, column] = max(np.linalg.norm(f - np.eye(width), 2) for f in factors)
        A = drawn(generator, products, width, width)
        A *= 0.99 / torch.linalg.matrix_norm(A, 2)[:, None, None]
        negative += int((torch.linalg.det(torch.eye(width) + A) <= 0).sum())
    return {"depth": np.array(depths), "norm": norms, "gap": gaps, "negative": np.array(negative)}


def judge_near_minimizer(a: Arrays) -> list[Criterion]:
    """Require a product that is R, of layers whose distances from the identity are as 1 / L."""
    exponents = np.polyfit(np.log(a["depth"]), np.log(a["norm"]).T, 1)[0]
    return [
        Criterion("product of the layers off R, relative", "at most 1e-9 (a minimizer)",
                  f"{a['gap'].max():.1e}", a["gap"].max() <= 1e-9),
        near("exponent over depth of the largest norm of a layer less the identity", exponents,
             -1.0, margin=0.05, source="O(1/L)"),
        Criterion("layers with a norm below 1 beside the identity and determinant <= 0",
                  "0 (theorem; ours: why the determinant must be positive)",
                  int(a["negative"]), a["negative"] == 0),
    ]  # fmt: skip


def draw_near_minimizer(figure: Figure, a: Arrays) -> None:
    """Plot norms against depth."""
    ax = figure.subplots()
    ax.plot(a["depth"], a["norm"].T, color="C0", lw=0.7)
    ax.set(xscale="log", yscale="log", xlabel="layers", ylabel="largest norm beside the identity")


# -- Bartlett, Helmbold & Long: descent from the identity ------------------------------------------


def targets(kind: str, width: int, seed: int) -> Tensor:
    """A symmetric positive definite target, one with a negative eigenvalue, or a rotation."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(drawn(generator, width, width))[0]
    values = 0.3 + 2 * torch.rand(width, generator=generator, dtype=torch.float64)
    if kind == "rotation":
        turned = torch.eye(width, dtype=torch.float64)
        cos, sin = np.cos(2.5), np.sin(2.5)
        turned[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]])
        return basis @ turned @ basis.mT
    values[0] *= -1 if kind == "negative" else 1
    return basis @ torch.diag(values) @ basis.mT


def compute_identity_descent(
    *, width: int, layers: int, rate: float, steps: int, seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """Descend on half the squared distance of a product of layers from its target."""
    arrays = {}
    for kind in ("positive", "negative", "rotation"):
        target = torch.stack([targets(kind, width, seed) for seed in seeds])
        factors = [torch.eye(width).double().repeat(len(seeds), 1, 1) for _ in range(layers)]
        for _ in range(steps):
            below_, above_ = [torch.eye(width).double()], [torch.eye(width).double()]
            for factor in factors[:-1]:
                below_.append(factor @ below_[-1])
            for factor in factors[:0:-1]:
                above_.append(above_[-1] @ factor)
            error = factors[-1] @ below_[-1] - target
            factors = [factor - rate * up.mT @ error @ down.mT for factor, up, down in
                       zip(factors, above_[::-1], below_, strict=True)]  # fmt: skip
        arrays[kind] = 0.5 * error.square().sum((1, 2)).numpy()
        if kind == "negative":
            values = torch.linalg.eigvalsh(target)
            arrays["floor"] = 0.5 * values.clamp(max=0).square().sum(1).numpy()
            arrays["nearest singular"] = 0.5 * values.square().amin(1).numpy()
            kept = torch.ones_like(values)  # without rounding all layers keep these eigenvalues
            for _ in range(steps):
                kept = kept - rate * kept ** (layers - 1) * (kept**layers - values)
            arrays["exact"] = 0.5 * (kept**layers - values).square().sum(1).numpy()
    return arrays


def judge_identity_descent(a: Arrays) -> list[Criterion]:
    """Require convergence, and the part of the loss that negative eigenvalues keep."""
    words = {"positive": "symmetric positive definite targets: largest final loss",
             "rotation": "rotations by 2.5 rad: largest final loss"}  # fmt: skip
    source = {"positive": "converges", "rotation": "converges; ours"}
    off = np.abs(a["exact"] / a["floor"] - 1).max()
    share = a["negative"] / a["nearest singular"]
    left = int((a["negative"] < 0.99 * a["floor"]).sum())
    return [
        *(Criterion(words[key], f"at most 1e-12 ({source[key]})", f"{a[key].max():.1e}",
                    a[key].max() <= 1e-12) for key in words),
        Criterion("one negative eigenvalue λ, layers diagonal in the basis of the target: final "
                  "loss off λ²/2, relative", "at most 0.01 (fails to converge; the value is ours)",
                  f"{off:.1e}", off <= 0.01),
        Criterion("the same in float64, whose rounding leaves that basis: final loss over that of "
                  "the nearest singular matrix",
                  "at least 0.999 (determinants stay positive; ours)",
                  f"{share.min():.4g} at least; below 0.99 λ²/2 in {left} of {len(share)}",
                  share.min() >= 0.999),
    ]  # fmt: skip


def draw_identity_descent(figure: Figure, a: Arrays) -> None:
    """Plot final losses."""
    ax = figure.subplots()
    for place, kind in enumerate(("positive", "rotation", "negative")):
        ax.plot([place] * len(a[kind]), a[kind].clip(1e-32), "o", label=kind)
    ax.set(yscale="log", ylabel="final loss", xticks=range(3),
           xticklabels=("positive definite", "rotation", "negative eigenvalue"))  # fmt: skip


# -- Orhan & Pitkow: singular units ----------------------------------------------------------------

UNITS = {"dead incoming": (4, 1, 4), "duplicated": (4, 0, 4), "dead outgoing": (4, 4, 4)}
NETS = ("without a skip", "skip around the layer", "inside a branch of two layers")


def compute_singular_units(
    *, width: int, samples: int, seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """Count zero eigenvalues of the Gauss-Newton matrix of V tanh(W x) with a singular unit."""
    found = np.empty((len(seeds), len(UNITS), len(NETS)))
    smallest = np.empty_like(found)
    for row, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        x, y = drawn(generator, samples, width), drawn(generator, samples, width)
        for column, kind in enumerate(UNITS):
            W, V = drawn(generator, width, width), drawn(generator, width, width)
            if kind == "dead incoming":
                W[0] = 0
            elif kind == "duplicated":
                W[0] = W[1]
            else:
                V[:, 0] = 0

            def output(flat: Tensor, net: str, given: Tensor = x) -> Tensor:
                up, down = flat.view(2, width, width)
                hidden = (given @ up.mT).tanh()
                if net == NETS[1]:
                    hidden = hidden + given
                return hidden @ down.mT + (given if net == NETS[2] else 0)

            def loss(flat: Tensor, net: str, wanted: Tensor = y) -> Tensor:
                return (output(flat, net) - wanted).square().sum() / (2 * samples)

            flat = torch.stack([W, V]).flatten()
            for place, net in enumerate(NETS):
                jacobian = torch.autograd.functional.jacobian(
                    lambda w, net=net: output(w, net).flatten(), flat
                )
                sizes = torch.linalg.svdvals(jacobian)
                found[row, column, place] = int((sizes <= RANK * sizes[0]).sum())
                values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(
                    lambda w, net=net: loss(w, net), flat)).abs()  # fmt: skip
                smallest[row, column, place] = float(values.min() / values.max())
    return {"nullity": found, "smallest": smallest}


def judge_singular_units(a: Arrays) -> list[Criterion]:
    """Compare counts of zero eigenvalues; all are exact."""
    rows = []
    for column, (kind, counts) in enumerate(UNITS.items()):
        measured = [sorted({int(n) for n in a["nullity"][:, column, k]}) for k in range(len(NETS))]
        holds = measured == [[count] for count in counts]
        words = ", ".join(f"{count} {net}" for count, net in zip(counts, NETS, strict=True))
        rows.append(Criterion(f"{kind} unit: zero eigenvalues of the Gauss-Newton matrix",
                              f"{words} (theorem; ours)", measured, holds))  # fmt: skip
    least = a["smallest"][:, :, :2].min()
    return [
        *rows,
        Criterion("smallest over largest eigenvalue, in size, of the full Hessian with and without "
                  "a skip around the layer", "above 1e-9: regular where the loss is not 0 (ours)",
                  f"{least:.1e}", least > RANK),
    ]  # fmt: skip


def draw_singular_units(figure: Figure, a: Arrays) -> None:
    """Plot counts by kind of unit."""
    ax = figure.subplots()
    for place, net in enumerate(NETS):
        at = np.arange(len(UNITS)) + 0.25 * (place - 1)
        ax.bar(at, a["nullity"][:, :, place].mean(0), 0.22, label=net)
    ax.set(xticks=range(len(UNITS)), xticklabels=list(UNITS), ylabel="zero eigenvalues")
    ax.legend()


# -- Yang & Schoenholz: growth over depth ----------------------------------------------------------


def compute_growth(
    *, width: int, depths: Sequence[int], std: float, tangents: int, seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """Measure the mean square of singular values of Jacobians, and the length of the stream."""
    arrays = {"depth": np.array(depths)}
    for name in ("plain", "residual"):
        growth, length = np.empty((2, len(seeds), len(depths)))
        for row, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            h, moved = drawn(generator, width), drawn(generator, width, tangents)
            start = moved.square().sum()
            for layer in range(1, depths[-1] + 1):
                W = std / width**0.5 * drawn(generator, width, width)
                z = (W @ h).tanh()
                slopes = (1 - z.square())[:, None] * (W @ moved)
                if name == "residual":
                    V = std / width**0.5 * drawn(generator, width, width)
                    z, slopes = h + V @ z, moved + V @ slopes
                h, moved = z, slopes
                if layer in depths:
                    place = list(depths).index(layer)
                    growth[row, place] = float((moved.square().sum() / start).log())
                    length[row, place] = float(h.square().sum().log())
        arrays[name], arrays[f"length {name}"] = growth, length
    return arrays


def judge_growth(a: Arrays) -> list[Criterion]:
    """Tell an exponential, whose logarithm doubles with depth, from slower growth."""
    steps = {name: np.diff(a[name]) for name in ("plain", "residual")}
    ratio = {name: step[:, 1] / step[:, 0] for name, step in steps.items()}
    lengths = np.polyfit(np.log(a["depth"]), a["length residual"].T, 1)[0]
    words = "growth of log of the mean square singular value from 2L to 4L over that from L to 2L"
    return [
        near(f"plain tanh net: {words}", ratio["plain"], 2.0, margin=0.2, source="exponential"),
        below(f"residual tanh net: {words}", ratio["residual"], 1.7,
              source="subexponential: 2 is an exponential, √2 one of √L"),
        near("residual tanh net: exponent over depth of the squared length of the stream", lengths,
             1.0, margin=0.1, source="polynomial; the exponent by our mean field"),
    ]  # fmt: skip


def draw_growth(figure: Figure, a: Arrays) -> None:
    """Plot growth against depth."""
    ax = figure.subplots()
    for name in ("plain", "residual"):
        ax.errorbar(a["depth"], a[name].mean(0), a[name].std(0), marker="o", label=name)
    ax.set(xlabel="layers", ylabel="log of mean square singular value")
    ax.legend()


# -- Jacobians of blocks without their skip --------------------------------------------------------

BLOCKS = ("attention", "MLP", "attention behind LayerNorm")


def compute_skipless(
    *, tokens: int, width: int, hidden: int, seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """Measure condition numbers of Jacobians of blocks with and without their skip."""
    found = np.empty((2, len(BLOCKS), len(seeds)))
    for column, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        x = drawn(generator, tokens, width)
        Q, K, V, out = drawn(generator, 4, width, width) / width**0.5
        up = drawn(generator, hidden, width) / width**0.5
        down = drawn(generator, width, hidden) / hidden**0.5

        def attention(h: Tensor, given: Sequence[Tensor] = (Q, K, V, out)) -> Tensor:
            q, k, v = (h @ w.mT for w in given[:3])
            return (q @ k.mT / width**0.5).softmax(-1) @ v @ given[3].mT

        def mlp(h: Tensor, given: Sequence[Tensor] = (up, down)) -> Tensor:
            return torch.nn.functional.gelu(h @ given[0].mT) @ given[1].mT

        def normed(h: Tensor, inner=attention) -> Tensor:
            return inner(torch.nn.functional.layer_norm(h, (width,)))

        for row, block in enumerate((attention, mlp, normed)):
            jacobian = torch.autograd.functional.jacobian(block, x).reshape(2 * (x.numel(),))
            # LayerNorm loses two directions of every token.
            rank = tokens * (width - 2) if block is normed else x.numel()
            for place, matrix in enumerate((jacobian, jacobian + torch.eye(x.numel()))):
                sizes = torch.linalg.svdvals(matrix)
                last = sizes[rank - 1] if place == 0 else sizes[-1]
                found[place, row, column] = float((sizes[0] / last).log10())
    return {"without": found[0], "with": found[1]}


def judge_skipless(a: Arrays) -> list[Criterion]:
    """Test that the block without its skip is worse conditioned."""
    return [
        above(f"{block}: log10 of the condition number without a skip less that with it",
              a["without"][row] - a["with"][row], source="skips improve conditioning", of="median")
        for row, block in enumerate(BLOCKS)
    ]  # fmt: skip


def draw_skipless(figure: Figure, a: Arrays) -> None:
    """Plot condition numbers with and without a skip."""
    ax = figure.subplots()
    for row, block in enumerate(BLOCKS):
        ax.plot(a["with"][row], a["without"][row], "o", ms=3, label=block)
    ends = [float(min(a["with"].min(), a["without"].min())), float(a["without"].max())]
    ax.plot(ends, ends, "k:")
    ax.set(xlabel="log10 of the condition number with a skip", ylabel="without a skip")
    ax.legend()


SEEDS = list(range(20))
CLAIMS = [
    Claim(
        id="every_layout/near_minimizer",
        source="Hardt & Ma, arXiv:1611.04231v3 (abstract and introduction read; the construction "
        "is ours)",
        says="A linear residual net of L layers has a global minimizer whose layers are O(1/L) "
        "from the identity, if the determinant of the target is positive.",
        settings={
            "quick": dict(width=3, depths=[64, 256], products=10, seeds=[0, 1]),
            "paper": dict(width=8, depths=[64, 256, 1024, 4096], products=1000, seeds=SEEDS),
        },
        compute=compute_near_minimizer, judge=judge_near_minimizer, draw=draw_near_minimizer,
    ),
    Claim(
        id="every_layout/identity_descent",
        source="Bartlett, Helmbold & Long, arXiv:1802.06093 (abstract read), isotropic inputs",
        says="Gradient descent of a deep linear net from the identity finds a symmetric positive "
        "definite target, and fails for a symmetric one with a negative eigenvalue.",
        settings={
            "quick": dict(width=2, layers=3, rate=0.02, steps=20, seeds=[0]),
            "paper": dict(width=4, layers=4, rate=0.02, steps=20_000, seeds=list(range(20, 40))),
        },
        compute=compute_identity_descent, judge=judge_identity_descent,
        draw=draw_identity_descent,
    ),
    Claim(
        id="every_layout/singular_units",
        source="Orhan & Pitkow, arXiv:1701.09175v8 (abstract read); the counts are ours",
        says="Skip connections eliminate singularities of dead and duplicated units: those of the "
        "layer that they go around, not of units with dead outgoing weights nor of units inside a "
        "branch.",
        settings={
            "quick": dict(width=4, samples=20, seeds=[0]),
            "paper": dict(width=4, samples=200, seeds=SEEDS),
        },
        compute=compute_singular_units, judge=judge_singular_units, draw=draw_singular_units,
    ),
    Claim(
        id="every_layout/growth_over_depth",
        source="Yang & Schoenholz, arXiv:1712.08969 (abstract read)",
        says="Gradients of random tanh nets grow exponentially with depth, those of residual ones "
        "subexponentially, and the length of their stream is a polynomial of depth.",
        settings={
            "quick": dict(width=16, depths=[2, 4, 8], std=1.5, tangents=2, seeds=[0, 1]),
            "paper": dict(width=256, depths=[64, 128, 256], std=1.5, tangents=8, seeds=SEEDS),
        },
        compute=compute_growth, judge=judge_growth, draw=draw_growth,
    ),
    Claim(
        id="every_layout/skipless",
        source="Ji et al., arXiv:2510.00345v1 (abstract read); normal weights of variance one over "
        "their inputs",
        says="The Jacobian of a transformer's block without its skip is worse conditioned than "
        "that of the block with it, also on the range of a LayerNorm in front.",
        settings={
            "quick": dict(tokens=3, width=4, hidden=8, seeds=[0]),
            "paper": dict(tokens=8, width=16, hidden=64, seeds=SEEDS),
        },
        compute=compute_skipless, judge=judge_skipless, draw=draw_skipless,
    ),
]  # fmt: skip
