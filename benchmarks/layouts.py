"""Layouts at zero weights: predictions against double autograd, condition numbers against depth.

    python -m benchmarks.layouts [agreement] [depth] [isometry]

"agreement" draws random layouts and compares all eigenvalues with those of plain double autograd.
"depth" times predictions at 100,000 blocks. "isometry" compares singular values of one Jacobian of
width 300 with their limit, and edges of many narrower ones with Tracy and Widom's law: a density
like A √x / π at the limit's edge leaves the outermost of d values short of it by (A d)^(-2/3) times
a number of mean 1.2065 and deviation 1.268. Gain, condition numbers and singular values against
depth are claims, every_layout/*.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

import resid_theory as rt
from benchmarks.timing import line, run_parts
from resid_theory.networks import LayoutNet
from resid_theory.theory import Layout

WORST, LAYOUTS = 1e-12, 1000
PARTS = ("numbers", "maps", "norm at branch", "norm at stream", "norm at write")
LOSSES = {
    "square": lambda f, y: (f - y).square().sum() / (2 * len(y)),
    "cross_entropy": F.cross_entropy,
}


def exact(net: LayoutNet, loss: str, x: Tensor, y: Tensor) -> Tensor:
    """All eigenvalues, by a gradient of a gradient for every weight, side by side."""
    weights = [*net.weights, *net.biases, *net.last_biases]
    value = LOSSES[loss](net(x), y)
    first = torch.autograd.grad(value, weights, create_graph=True, materialize_grads=True)
    gradient = torch.cat([part.flatten() for part in first])
    if not gradient.requires_grad:
        return torch.zeros_like(gradient)
    rows = torch.autograd.grad(
        gradient, weights, torch.eye(len(gradient), dtype=torch.float64),
        is_grads_batched=True, materialize_grads=True,
    )  # fmt: skip
    return torch.linalg.eigvalsh(torch.cat([part.flatten(1) for part in rows], dim=1))


def random_maps(size: int, width: int, integer: Callable[[int, int], int], draws: torch.Generator):
    """Rectangular layers, projections, gains and missing links."""

    def entry(rows: int, columns: int, needed: bool) -> Tensor | None:
        if not needed and integer(0, 2) == 0:
            return None
        shape = (rows,) if rows == columns and integer(0, 1) else (rows, columns)
        return torch.randn(shape, generator=draws, dtype=torch.float64)

    inner, wide = ([integer(1, 4) for _ in range(size)] for _ in range(2))
    sources = [width, *wide]
    rows = [[entry(inner[k], sources[j], j == 0) for j in range(k + 1)] for k in range(size)]
    return rows, [entry(width, source, True) for source in sources]


def agreement() -> None:
    """Up to eight layers of width up to four, dense and sparse, of numbers and of matrices."""
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
        A, a = table[:blocks, :blocks], table[-1]
        x = torch.randn(10, width, generator=generator, dtype=torch.float64)
        y = torch.randn(10, width, generator=generator, dtype=torch.float64)
        y = F.one_hot(y.argmax(1), width).double() if loss == "cross_entropy" else y
        part = PARTS[seed % len(PARTS)]
        options: dict[str, object] = {}
        if part == "maps":
            A, a = random_maps(blocks, width, integer, generator)
        elif part != "numbers":
            place = part.split()[-1] if branch > 1 else "branch"
            norm = torch.nn.RMSNorm if place == "write" else torch.nn.LayerNorm
            if place == "stream":
                numbers = torch.randn(2, blocks, generator=generator, dtype=torch.float64)
                stream = Layout.scaled(blocks, skip=numbers[0], scale=numbers[1])
                A, a = stream.coefficients()
            options = {"norm": partial(norm, eps=1e-3), "norm_at": place, "bias": True,
                       "last_bias": branch > 1 and place == "branch"}  # fmt: skip
        layout = Layout(A, a, branch)
        hidden = width if branch == 1 else integer(1, 5)
        # A ReLU has slope 1/2 on the least-squares line; autograd takes 0 or 1 at its kink.
        act = (lambda z: z / 2) if mid == "relu" else mid
        net = LayoutNet(width, A, a, branch=branch, mid=act, hidden=hidden, **options)
        with torch.no_grad():
            for gain in net.norms.parameters():
                gain += 0.3 * torch.randn(gain.shape, generator=generator, dtype=torch.float64)
        if net.norms:
            options["norm"] = list(net.norms)
        point = rt.theory.zero_point(
            (x, y), layout=layout, loss=loss, mid=mid,
            hidden=hidden if branch > 1 else None, **options,
        )  # fmt: skip
        values = exact(net, loss, x, y)
        gap = float((point.spectrum.eigenvalues - values).abs().max())
        gap /= max(1.0, float(values.abs().max()))
        kind = f"blocks of {branch}, {part}, {loss}"
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


def depth() -> None:
    """Seconds of processor time at 100,000 blocks."""
    data, blocks = whitened(4), 100_000
    draws = torch.Generator().manual_seed(0)
    read, write = gates(blocks, draws)
    mix = torch.randn(blocks, 4, 4, generator=draws, dtype=torch.float64).exp()
    for _ in range(200):  # Sinkhorn's steps, to the end
        mix = mix / mix.sum(-1, keepdim=True)
        mix = mix / mix.sum(-2, keepdim=True)
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
    start = time.process_time()
    layout = Layout.hyper_connections(read, mix, write, branch=1)
    point = rt.theory.zero_point(data, layout=layout)
    ends = point.statistics.smallest, point.statistics.largest
    words = f"one layer, four streams: {ends[0]:.6g} to {ends[1]:.6g}, index {point.index:.5f}"
    line(words, f"{time.process_time() - start:.0f} s", "< 60 s")


def singular_values(
    width: int, variance: float, generator: torch.Generator, draws: int = 1, blocks: int = 1000
) -> Tensor:
    """Of draws of the Jacobian, (draws, width), ascending."""
    jacobian = torch.eye(width, dtype=torch.float64).repeat(draws, 1, 1)
    size = math.sqrt(variance / blocks / width)
    for _ in range(blocks):
        drawn = torch.randn(jacobian.shape, generator=generator, dtype=torch.float64)
        jacobian = torch.baddbmm(jacobian, drawn, jacobian, alpha=size)
    return torch.linalg.svdvals(jacobian).flip(1)


def isometry() -> None:
    """Edges and Kolmogorov distance of one draw of width 300; edges of several as widths grow."""
    width, generator = 300, torch.Generator().manual_seed(0)
    ranks = torch.arange(width + 1, dtype=torch.float64) / width
    for variance in (0.25, 1.0, 2.0):
        (found,) = singular_values(width, variance, generator)
        limit = rt.theory.isometry(variance)
        off = [abs(math.log(s / edge)) for s, edge in zip(found[[0, -1]], limit.edges, strict=True)]
        shares = limit.cdf(found)
        distance = float(torch.maximum(ranks[1:] - shares, shares - ranks[:-1]).max())
        line(f"variance {variance:g}: edges off by", f"{100 * max(off):.1f} %", "<= 3 %")
        line(f"variance {variance:g}: Kolmogorov distance", f"{distance:.4f}", "<= .02")
    sizes = (40, 48), (80, 24), (160, 10)
    for variance, (narrow, draws) in product((1.0, 2.0), sizes):
        ends = singular_values(narrow, variance, generator, draws)[:, [0, -1]].log()
        low, high = map(math.log, rt.theory.isometry(variance).edges)
        short = torch.cat([ends[:, 0] - low, high - ends[:, 1]])
        m = (math.sqrt(1 + 2 / variance) - 1) / 2  # the moments' generating function at the edge
        density = math.sqrt(2 / (1 / m**2 - 1 / (1 + m) ** 2))  # A of ln s²
        scale = (narrow * density) ** (-2 / 3) / 2
        mean, error = float(short.mean()), float(short.std()) / math.sqrt(2 * draws)
        words = f"variance {variance:g}, width {narrow}: edges short by, mean of {2 * draws}"
        measured = f"{100 * mean:.1f} +- {100 * error:.1f} %"
        line(words, measured, f"{100 * 1.2065 * scale:.1f} %")


if __name__ == "__main__":
    run_parts({"agreement": agreement, "depth": depth, "isometry": isometry}, __doc__)
