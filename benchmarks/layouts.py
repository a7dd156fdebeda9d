"""Layouts at zero weights: predictions against double autograd, condition numbers against depth.

    python -m benchmarks.layouts [agreement] [depth] [gain] [isometry]

"agreement" draws random layouts and compares all eigenvalues with those of plain double autograd.
"depth" times predictions at 100,000 blocks. "gain" draws hyper-connections and shows how their gain
and their condition number grow with depth. "isometry" compares the singular values of random
Jacobians with their limit.
"""

import math
import time

import torch
from torch import Tensor
from torch.nn import functional as F

import resid_theory as rt
from benchmarks.timing import line, run_parts
from resid_theory.networks import LayoutNet
from resid_theory.theory import Layout

WORST, LAYOUTS, DRAWS = 1e-12, 1000, 400
LOSSES = {
    "square": lambda f, y: (f - y).square().sum() / (2 * len(y)),
    "cross_entropy": F.cross_entropy,
}


def exact(net: LayoutNet, loss: str, x: Tensor, y: Tensor) -> Tensor:
    """All eigenvalues, by a gradient of a gradient for every weight."""
    weights = list(net.parameters())
    first = torch.autograd.grad(LOSSES[loss](net(x), y), weights, create_graph=True)
    rows = [
        torch.autograd.grad(entry, weights, retain_graph=True, materialize_grads=True)
        for entry in torch.cat([part.flatten() for part in first])
        if entry.requires_grad
    ]
    matrix = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    return torch.linalg.eigvalsh(matrix)


def agreement() -> None:
    """Up to eight layers of width up to four, dense and sparse."""
    worst: dict[str, float] = {}
    for seed in range(LAYOUTS):
        generator = torch.Generator().manual_seed(seed)

        def integer(low: int, high: int, source: torch.Generator = generator) -> int:
            return int(torch.randint(low, high + 1, (), generator=source))

        branch, width = integer(1, 3), integer(2, 4)
        blocks = integer(1, 8 // branch)
        kinds = [None] if branch == 1 else [None, "tanh", "relu", "gelu"]
        mid, loss = kinds[integer(0, len(kinds) - 1)], list(LOSSES)[integer(0, 1)]
        table = torch.randn(blocks + 1, blocks + 1, generator=generator, dtype=torch.float64).tril()
        if seed % 2:
            table *= torch.rand(table.shape, generator=generator) < 0.6
        x = torch.randn(10, width, generator=generator, dtype=torch.float64)
        y = torch.randn(10, width, generator=generator, dtype=torch.float64)
        y = F.one_hot(y.argmax(1), width).double() if loss == "cross_entropy" else y
        layout = Layout(table[:blocks, :blocks], table[-1], branch)
        hidden = width if branch == 1 else integer(1, 5)
        point = rt.theory.zero_point((x, y), layout=layout, loss=loss, mid=mid, hidden=hidden)
        # A ReLU has slope 1/2 on the least-squares line; autograd takes 0 or 1 at its kink.
        act = (lambda z: z / 2) if mid == "relu" else mid
        net = LayoutNet(width, table[:blocks, :blocks], table[-1], branch=branch, mid=act,
                        hidden=hidden)  # fmt: skip
        values = exact(net, loss, x, y)
        gap = float((point.spectrum.eigenvalues - values).abs().max())
        gap /= max(1.0, float(values.abs().max()))
        kind = f"blocks of {branch}, {mid or 'linear'}, {loss}"
        worst[kind] = max(worst.get(kind, 0.0), gap)
    for kind, gap in sorted(worst.items()):
        line(kind, f"{gap:.1e}", f"<= {WORST:.0e}")
    line(f"{LAYOUTS} random layouts, worst", f"{max(worst.values()):.1e}", f"<= {WORST:.0e}")


def whitened(width: int) -> rt.Moments:
    """Whitened inputs and one draw of targets."""
    generator = torch.Generator().manual_seed(0)
    eye = torch.eye(width, dtype=torch.float64)
    mixed = 0.3 * torch.randn(width, width, generator=generator, dtype=torch.float64)
    return rt.Moments(sxx=eye, syx=mixed, syy=mixed @ mixed.mT + eye, count=100)


def gates(blocks: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Reads that sum to one and writes that sum to the number of streams."""
    read = torch.softmax(torch.randn(blocks, 4, generator=draws, dtype=torch.float64), -1)
    write = torch.rand(blocks, 4, generator=draws, dtype=torch.float64)
    return read, 4 * write / write.sum(-1, keepdim=True)


def mixing(kind: str, blocks: int, draws: torch.Generator) -> Tensor:
    """Mixings of four streams."""
    drawn = torch.randn(blocks, 4, 4, generator=draws, dtype=torch.float64)
    if kind == "free":
        return torch.eye(4, dtype=torch.float64) + 0.3 * drawn
    if kind == "orthogonal":
        return torch.linalg.qr(drawn).Q
    mix = drawn.exp()  # Sinkhorn's steps, to the end
    for _ in range(200):
        mix = mix / mix.sum(-1, keepdim=True)
        mix = mix / mix.sum(-2, keepdim=True)
    return mix


def depth() -> None:
    """Seconds of processor time at 100,000 blocks."""
    data, blocks = whitened(4), 100_000
    draws = torch.Generator().manual_seed(0)
    read, write = gates(blocks, draws)
    mix = mixing("doubly stochastic", blocks, draws)
    for name, make in (
        ("shortcuts", lambda: Layout.shortcut(blocks)),
        ("averaged over depth", lambda: Layout.averaged(blocks)),
        ("four streams", lambda: Layout.hyper_connections(read, mix, write)),
    ):
        start = time.process_time()
        point = rt.theory.zero_point(data, layout=make())
        spent = time.process_time() - start
        line(f"{name}, {blocks} blocks: condition {point.condition_number:.4g}",
             f"{spent:.2f} s", "< 1 s")  # fmt: skip


def gain() -> None:
    """Medians and quartiles over draws: condition number, and gain of the mixings alone."""
    data, places = whitened(4), (1, 4, 16, 64)
    one = rt.theory.zero_point(data, layout=Layout.shortcut(1)).condition_number
    line("shortcuts, at every depth", f"{one:.4g}", "")
    for kind in ("free", "orthogonal", "doubly stochastic"):
        draws = torch.Generator().manual_seed(1)
        for blocks in places:
            found, gains = [], []
            for _ in range(DRAWS):
                read, write = gates(blocks, draws)
                mix = mixing(kind, blocks, draws)
                layout = Layout.hyper_connections(read, mix, write)
                found.append(rt.theory.zero_point(data, layout=layout).condition_number)
                total = torch.eye(4, dtype=torch.float64)
                for step in mix:
                    total = step @ total
                gains.append(float(torch.linalg.matrix_norm(total, 2)))
            low, middle, high = torch.tensor(found).quantile(torch.tensor([0.25, 0.5, 0.75]))
            amount = torch.tensor(gains).median()
            line(f"{kind}, {blocks} blocks: gain {amount:.3g}",
                 f"{middle:.4g} [{low:.4g}, {high:.4g}]", "condition number")  # fmt: skip
    for blocks in places:
        averaged = rt.theory.zero_point(data, layout=Layout.averaged(blocks)).condition_number
        inner = data.sxx / (blocks + 1) - data.syx
        by_hand = blocks * float(torch.linalg.cond(inner))
        line(f"averaged, {blocks} blocks", f"{averaged:.4g}", f"K κ(S/(K+1) - Syx) = {by_hand:.4g}")


def isometry() -> None:
    """Kolmogorov distance and edges of one draw of width 300 and depth 300."""
    width = depth = 300
    for c in (0.25, 1.0, 2.0):
        draws = torch.Generator().manual_seed(0)
        total = torch.eye(width, dtype=torch.float64)
        for _ in range(depth):
            noise = torch.randn(width, width, generator=draws, dtype=torch.float64)
            total = total + math.sqrt(c / depth / width) * noise @ total
        values, limit = torch.linalg.svdvals(total).flip(0), rt.theory.isometry(c)
        apart = float((limit.cdf(values) - torch.arange(1, width + 1) / width).abs().max())
        ends = [float(v / e - 1) for v, e in zip(values[[0, -1]], limit.edges, strict=True)]
        line(
            f"variance {c}: edges off by {ends[0]:+.1%} and {ends[1]:+.1%}",
            f"{apart:.4f}",
            "<= .02",
        )


if __name__ == "__main__":
    run_parts({"agreement": agreement, "depth": depth, "gain": gain, "isometry": isometry}, __doc__)
