"""Mixing of streams and over depth: gain, closure, and the condition number at zero weights."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above
from resid_theory.theory import Layout

STREAMS, WIDTH = 4, 4
SAME = 1e-9  # relative: exact laws in float64
KINDS = ("free", "orthogonal", "doubly stochastic")


def whitened_moments(seed: int = 0) -> rt.Moments:
    """Whitened inputs and one draw of targets."""
    generator = torch.Generator().manual_seed(seed)
    eye = torch.eye(WIDTH, dtype=torch.float64)
    mixed = 0.3 * torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    return rt.Moments(sxx=eye, syx=mixed, syy=mixed @ mixed.mT + eye, count=100)


def condition(layout: Layout, data: rt.Moments) -> float:
    """Condition number over nonzero eigenvalues."""
    return rt.theory.zero_point(data, layout=layout).nonzero_condition_number


def sinkhorn(logits: Tensor, steps: int = 200) -> Tensor:
    """Doubly stochastic matrices, to within what the steps leave."""
    mix = logits.exp()
    for _ in range(steps):
        mix = mix / mix.sum(-1, keepdim=True)
        mix = mix / mix.sum(-2, keepdim=True)
    return mix


def mixing(kind: str, blocks: int, draws: torch.Generator) -> Tensor:
    """Mixings of the streams, one for each block."""
    drawn = torch.randn(blocks, STREAMS, STREAMS, generator=draws, dtype=torch.float64)
    if kind == "free":
        return torch.eye(STREAMS, dtype=torch.float64) + 0.3 * drawn
    return torch.linalg.qr(drawn).Q if kind == "orthogonal" else sinkhorn(drawn)


def gates(blocks: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Reads that sum to one, and writes that sum to the number of streams."""
    read = torch.randn(blocks, STREAMS, generator=draws, dtype=torch.float64).softmax(-1)
    write = torch.rand(blocks, STREAMS, generator=draws, dtype=torch.float64)
    return read, STREAMS * write / write.sum(-1, keepdim=True)


# -- gain and condition number of hyper-connections ------------------------------------------------


def compute_gain(*, depths: Sequence[int], draws: int, seed: int) -> dict[str, np.ndarray]:
    """Compute gain of the product of mixings and condition number, (depths, draws) by kind."""
    data, arrays = whitened_moments(), {"depth": np.array(depths)}
    arrays["residual"] = np.array(condition(Layout.shortcut(1), data))
    for number, kind in enumerate(KINDS):
        generator = torch.Generator().manual_seed(seed + number)
        found = np.empty((2, len(depths), draws))
        for row, blocks in enumerate(depths):
            for column in range(draws):
                read, write = gates(blocks, generator)
                mix = mixing(kind, blocks, generator)
                total = torch.eye(STREAMS, dtype=torch.float64)
                for step in mix:
                    total = step @ total
                layout = Layout.hyper_connections(read, mix, write)
                found[0, row, column] = float(torch.linalg.matrix_norm(total, 2))
                found[1, row, column] = condition(layout, data)
        arrays |= {f"{kind}.gain": found[0], f"{kind}.condition": found[1]}
    return arrays


def judge_gain(a: Arrays) -> list[Criterion]:
    """Require growth of both for free mixing, of one for orthogonal, of none for stochastic."""
    last, one = a["depth"][-1], float(a["residual"])
    exact = {kind: np.abs(a[f"{kind}.gain"] - 1).max() for kind in KINDS[1:]}
    off = np.abs(a["doubly stochastic.condition"] / one - 1).max()
    return [
        above(f"free mixing: log gain at {last} blocks", np.log(a["free.gain"][-1]), np.log(10),
              source="more than tenfold; ours", of="median"),
        *(
            above(f"{kind} mixing: log of the condition number at {last} blocks over the residual "
                  "net's", np.log(a[f"{kind}.condition"][-1] / one), np.log(10),
                  source="more than tenfold; ours", of="median")
            for kind in KINDS[:2]
        ),
        *(
            Criterion(f"{kind} mixing: gain at every depth and draw", f"1 to {SAME:g} (theorem)",
                      f"off by {gap:.1e}", gap <= SAME)
            for kind, gap in exact.items()
        ),
        Criterion("doubly stochastic mixing, gates of constant sums: condition number over the "
                  "residual net's", f"1 to {SAME:g} (theorem)", f"off by {off:.1e}", off <= SAME),
    ]  # fmt: skip


def draw_gain(figure: Figure, a: Arrays) -> None:
    """Plot medians and quartiles of both against depth."""
    for ax, key, label in zip(figure.subplots(1, 2), ("gain", "condition"),
                              ("gain of the product of mixings", "condition number at zero"),
                              strict=True):  # fmt: skip
        for kind in KINDS:
            values = a[f"{kind}.{key}"]
            (line,) = ax.plot(a["depth"], np.median(values, 1), "o-", label=kind)
            low, high = np.quantile(values, [0.25, 0.75], axis=1)
            ax.fill_between(a["depth"], low, high, color=line.get_color(), alpha=0.2, lw=0)
        ax.set(xscale="log", yscale="log", xlabel="blocks", ylabel=label)
    ax.legend()


# -- doubly stochastic mixing ----------------------------------------------------------------------

EQUAL = {
    "constant sums, mean": True,
    "rows sum to one, equal writes": True,
    "columns sum to one, equal reads": True,
    "random gates, mean": False,
    "constant sums, sum": False,
}


def constrained(name: str, blocks: int, draws: torch.Generator) -> Layout:
    """A layout whose condition number is the residual net's, or is not."""
    read, write = gates(blocks, draws)
    mix = mixing("doubly stochastic", blocks, draws)
    ones = torch.ones(blocks, STREAMS, dtype=torch.float64)
    if name.startswith("rows"):
        mix = torch.rand(mix.shape, generator=draws, dtype=torch.float64)
        return Layout.hyper_connections(read, mix / mix.sum(-1, keepdim=True), ones)
    if name.startswith("columns"):
        mix = torch.rand(mix.shape, generator=draws, dtype=torch.float64)
        mix = mix / mix.sum(-2, keepdim=True)
        return Layout.hyper_connections(ones / STREAMS, mix, write)
    if name.startswith("random"):
        write = torch.rand(blocks, STREAMS, generator=draws, dtype=torch.float64)
    return Layout.hyper_connections(read, mix, write, readout=name.split(", ")[1])


def compute_constrained(*, depths: Sequence[int], draws: int, seed: int) -> dict[str, np.ndarray]:
    """Compute sums of products of mixings, and condition numbers over the residual net's."""
    data, arrays = whitened_moments(), {"depth": np.array(depths)}
    one = condition(Layout.shortcut(1), data)
    generator = torch.Generator().manual_seed(seed)
    closure = np.empty((len(depths), draws))
    drifted = np.empty((len(depths), draws))
    for row, blocks in enumerate(depths):
        for column in range(draws):
            total = torch.eye(STREAMS, dtype=torch.float64)
            for step in mixing("doubly stochastic", blocks, generator):
                total = step @ total
            sums = torch.cat([total.sum(0), total.sum(1)])
            closure[row, column] = float((sums - 1).abs().max()) + float((-total).clamp(0).max())
            logits = 4 * torch.randn(blocks, STREAMS, STREAMS, generator=generator).double()
            read, write = gates(blocks, generator)
            layout = Layout.hyper_connections(read, sinkhorn(logits, 20), write)
            drifted[row, column] = condition(layout, data) / one
    arrays |= {"closure": closure, "twenty steps": drifted}
    for name in EQUAL:
        arrays[name] = np.array([
            [condition(constrained(name, blocks, generator), data) / one for _ in range(draws)]
            for blocks in depths
        ])  # fmt: skip
    return arrays


def judge_constrained(a: Arrays) -> list[Criterion]:
    """Require closure and equality, and inequality where a condition is missing."""
    deep = a["depth"] > 1
    found = [
        Criterion("products of doubly stochastic mixings: sums of rows and columns off one",
                  "at most 1e-12 (closure, trivial)", f"{a['closure'].max():.1e}",
                  a["closure"].max() <= 1e-12),
    ]  # fmt: skip
    for name, equal in EQUAL.items():
        ratio = a[name] if equal else a[name][deep]
        gap = np.abs(ratio - 1)
        words = f"{name}: condition number over the residual net's"
        if equal:
            found.append(Criterion(words, f"1 to {SAME:g} at every depth (theorem)",
                                   f"off by {gap.max():.1e}", gap.max() <= SAME))  # fmt: skip
        else:
            least = gap.min()
            found.append(Criterion(words, "off 1 by more than 1 % in every draw (ours)",
                                   f"least difference {least:.1%}", least > 0.01))  # fmt: skip
    found.append(
        above(f"logits times four and 20 Sinkhorn steps: log of the same at {a['depth'][-1]} "
              "blocks", np.log(a["twenty steps"][-1]), 0.01,
              source="drift of more than 1 %; ours", of="median")
    )  # fmt: skip
    return found


def draw_constrained(figure: Figure, a: Arrays) -> None:
    """Plot medians of the ratio against depth."""
    ax = figure.subplots()
    for number, name in enumerate((*EQUAL, "twenty steps")):
        # Markers of falling size: equal curves are seen inside one another.
        size = dict(mfc="none", ms=14 - 2 * number)
        ax.plot(a["depth"], np.median(a[name], 1), "o-", label=name, **size)
    ax.set(xscale="log", yscale="log", xlabel="blocks",
           ylabel="condition number over the residual net's")  # fmt: skip
    ax.legend(fontsize="small")


# -- static mixings over depth ---------------------------------------------------------------------

KEEP = {
    "shortcut": True, "DenseFormer at its start": True, "doubly stochastic, equal gates": True,
    "attention over depth, zero queries": False, "softmax weights over blocks": False,
    "DenseFormer, drawn": False, "skips of 0.9": False,
}  # fmt: skip


def static(name: str, blocks: int, draws: torch.Generator) -> Layout:
    """A mixing with coefficients that the data do not change."""
    if name == "shortcut":
        return Layout.shortcut(blocks)
    if name.startswith("DenseFormer"):
        weights = torch.eye(blocks + 1, dtype=torch.float64)
        if name.endswith("drawn"):
            drawn = torch.randn(weights.shape, generator=draws, dtype=torch.float64)
            weights = weights + 0.2 * drawn.tril()
        return Layout.dense(weights)
    if name.startswith("doubly"):
        mix = mixing("doubly stochastic", blocks, draws)
        ones = torch.ones(blocks, STREAMS, dtype=torch.float64)
        return Layout.hyper_connections(ones / STREAMS, mix, ones)
    if name.startswith("attention"):
        return Layout.averaged(blocks)
    if name.startswith("softmax"):
        size = blocks + 1
        logits = torch.randn(size, size, generator=draws, dtype=torch.float64)
        later = torch.ones(size, size).triu(1).bool()
        table = logits.masked_fill(later, -torch.inf).softmax(-1)
        return Layout(table[:-1, :-1], table[-1], 2)
    return Layout.scaled(blocks, skip=0.9)


def compute_static(*, depths: Sequence[int], draws: int, seed: int) -> dict[str, np.ndarray]:
    """Compute spread of p q, a_0, and the condition number against its factors."""
    data, arrays = whitened_moments(), {"depth": np.array(depths)}
    for number, name in enumerate(KEEP):
        generator = torch.Generator().manual_seed(seed + number)
        found = np.empty((4, len(depths), draws))
        for row, blocks in enumerate(depths):
            for column in range(draws):
                layout = static(name, blocks, generator)
                inner = layout.direct * data.sxx - data.syx
                found[:, row, column] = (
                    layout.spread, layout.direct, condition(layout, data),
                    layout.spread * float(torch.linalg.cond(inner)),
                )  # fmt: skip
        for key, part in zip(("spread", "direct", "condition", "factors"), found, strict=True):
            arrays[f"{name}.{key}"] = part
    return arrays


def judge_static(a: Arrays) -> list[Criterion]:
    """Require the product formula for all, constancy for some, and change for the others."""
    gap = max(float(np.abs(a[f"{name}.condition"] / a[f"{name}.factors"] - 1).max())
              for name in KEEP)  # fmt: skip
    found = [
        Criterion("condition number over max|pq| / min|pq| times that of a_0 S - Syx, all mixings",
                  "1 to 1e-6 (theorem; digits are lost in a singular value)", f"off by {gap:.1e}",
                  gap <= 1e-6),
    ]  # fmt: skip
    for name, keeps in KEEP.items():
        change = np.maximum(
            np.log(a[f"{name}.spread"]), np.abs(np.log(np.abs(a[f"{name}.direct"])))
        )[-1]
        words = f"{name}: log of the larger of spread and |a_0|^±1 at {a['depth'][-1]} blocks"
        if keeps:
            found.append(Criterion(words, f"0 to {SAME:g} (theorem)", f"{change.max():.1e}",
                                   change.max() <= SAME))  # fmt: skip
        else:
            found.append(Criterion(words, "above 0.1 in every draw (ours)", f"{change.min():.2f}",
                                   change.min() > 0.1))  # fmt: skip
    return found


def draw_static(figure: Figure, a: Arrays) -> None:
    """Plot condition numbers against depth."""
    ax = figure.subplots()
    for number, name in enumerate(KEEP):
        values, size = np.median(a[f"{name}.condition"], 1), dict(mfc="none", ms=16 - 2 * number)
        ax.plot(a["depth"], values, "o-", label=name, **size)
    ax.set(xscale="log", yscale="log", xlabel="blocks", ylabel="condition number at zero")
    ax.legend(fontsize="small")


DEPTHS = dict(depths=[1, 4, 16, 64], seed=0)
CLAIMS = [
    Claim(
        id="every_layout/mixing_gain",
        kind="law",
        source="ours, on hyper-connections (Zhu et al., arXiv:2409.19606; not read for this)",
        says="Gain of the mixings and condition number at zero weights are two things: free mixing "
        "of streams lets both grow with depth, orthogonal mixing has gain one and a condition "
        "number that grows, doubly stochastic mixing with gates of constant sums has neither.",
        settings={"quick": dict(depths=[1, 4], draws=10, seed=0), "paper": dict(DEPTHS, draws=400)},
        compute=compute_gain,
        judge=judge_gain,
        draw=draw_gain,
    ),
    Claim(
        id="every_layout/doubly_stochastic",
        kind="law",
        source="mHC, arXiv:2512.24880 (read at second hand only: closure under products); the "
        "equality of condition numbers is ours",
        says="Products of doubly stochastic mixings keep sums of one. Hyper-connections then have "
        "the residual net's condition number at zero weights at every depth exactly where sums of "
        "gates are constant and the read-out is the mean; half of the constraint suffices with "
        "equal writes or equal reads.",
        settings={"quick": dict(depths=[1, 4], draws=5, seed=0), "paper": dict(DEPTHS, draws=100)},
        compute=compute_constrained,
        judge=judge_constrained,
        draw=draw_constrained,
    ),
    Claim(
        id="every_layout/static_mixings",
        kind="law",
        source="ours; wirings after arXiv:2402.02622 (DenseFormer), arXiv:2602.09009 (ANCRe) and "
        "arXiv:2603.15031 (attention residuals), of which abstracts could be read",
        says="Of static mixings over depth those keep the condition number at zero weights that "
        "keep the input's share in the output and what a block reads times what it writes: "
        "shortcuts, DenseFormer at its start, doubly stochastic streams. Attention over depth with "
        "zero queries, softmax weights over blocks, drawn DenseFormer weights and scaled skips "
        "do not.",
        settings={"quick": dict(depths=[1, 4], draws=3, seed=0), "paper": dict(DEPTHS, draws=20)},
        compute=compute_static,
        judge=judge_static,
        draw=draw_static,
    ),
]
