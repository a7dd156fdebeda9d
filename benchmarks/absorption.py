"""Shortcuts that enter the weights: gaps, verdicts against brute force, refusals, times.

    python -m benchmarks.absorption [families] [verdicts] [refusals] [times]

"families" absorbs the shortcuts of nets in plain PyTorch and compares outputs. "verdicts" compares
the answers for random and constructed blocks of two layers with all 2^h sets of units, with counts
of units, and with growth and slopes measured on the branch. "refusals" prints the theorem of each.
"times" lists the shortcuts of ResNet-50, of a transformer of 24 layers and of an encoder of torch.
"""

import warnings
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import resid_theory as rt
from benchmarks.shortcut_nets import (
    Apply,
    Attention,
    Gated,
    Residual,
    ResNet,
    RMSNorm,
    Transformer,
    families,
)
from benchmarks.timing import line, rounds, run_parts

EXACT, RANDOM, CONSTRUCTED = 1e-12, 200, 50
Case = tuple[nn.Module, str, int | None]
"""A block, the true answer, and the true number of further units."""

CARRY = {
    "relu": (F.relu, 1.0), "gelu": (F.gelu, 1.0), "silu": (F.silu, 1.0),
    "leaky_relu": (lambda t: F.leaky_relu(t, 0.2), 1.2), "hardswish": (F.hardswish, 1.0),
    "quick_gelu": (lambda t: t * torch.sigmoid(1.702 * t), 1.0),
}  # fmt: skip
BOUNDED = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu6": F.relu6}
OTHER = {"elu": F.elu, "mish": F.mish, "relu_squared": lambda t: F.relu(t) ** 2}


def block(up: Tensor, down: Tensor, function, *, bias: bool, source: torch.Generator) -> Residual:
    """x + V φ(W x + b) + c with given V and W."""
    layers = [nn.Linear(*w.shape[::-1], bias=bias).double() for w in (up, down)]
    for layer, weight in zip(layers, (up, down), strict=True):
        layer.weight.data = weight
        if bias:
            layer.bias.data.normal_(generator=source)
    return Residual(layers[0], Apply(function), layers[1])


def normal(source: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=source, dtype=torch.float64)


def planted(source: torch.Generator, d: int, h: int, kappa: float) -> tuple[Tensor, Tensor]:
    """W and V with κ V[:, S] W[S, :] = -I for a set S of d or more units."""
    up, down = normal(source, h, d), normal(source, d, h)
    count = int(torch.randint(d, h + 1, (), generator=source))
    chosen = torch.randperm(h, generator=source)[:count]
    rest = torch.eye(d).double() / kappa + down[:, chosen] @ up[chosen]
    down[:, chosen] -= rest @ torch.linalg.pinv(up[chosen])
    return up, down


def smallest_distance(up: Tensor, down: Tensor, kappa: float) -> float:
    """min over all S of ‖I + κ V[:, S] W[S, :]‖."""
    h = len(up)
    subsets = ((torch.arange(2**h)[:, None] >> torch.arange(h)) & 1).double()
    sums = torch.einsum("sk,ik,kj->sij", subsets, down, up)
    return float((torch.eye(up.shape[1]).double() + kappa * sums).norm(dim=(1, 2)).min())


def random_block(seed: int) -> Case:
    """A block with random weights, and what brute force says about it."""
    source = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=source))

    d, bias, kind = integer(2, 4), bool(integer(0, 1)), integer(0, 9)
    if kind < 6:
        function, kappa = list(CARRY.values())[kind]
        h = integer(1, 9)
        up, down = normal(source, h, d), normal(source, d, h)
        if h >= d and integer(0, 2) == 0:
            up, down = planted(source, d, h, kappa)
        net = block(up, down, function, bias=bias, source=source)
        found = smallest_distance(up, down, kappa) < 1e-10
        return (net, "same width", 0) if found else (net, "wider", max(d, 2 * d - h))
    h = integer(2, 9)
    if kind == 6:
        function = list(BOUNDED.values())[integer(0, 2)]
        net = block(normal(source, h, d), normal(source, d, h), function, bias=bias, source=source)
    elif kind == 7:
        number = integer(0, 2)
        function = list(OTHER.values())[number]
        net = block(normal(source, h, d), normal(source, d, h), function, bias=bias, source=source)
        if bias and number == 2:
            return net, "wider", 4 * d
    elif kind == 8:
        number = integer(0, 3)
        gate = [F.silu, F.relu, F.gelu, torch.sigmoid][number]
        net = Residual(Gated(d, h, gate, bias=bias).double())
        if bias or number == 3:  # units whose gate is a constant
            return net, "wider", d
    else:
        norm = nn.LayerNorm(d) if bias else RMSNorm(d)
        net = Residual(norm, *Residual(nn.Linear(d, h), nn.ReLU(), nn.Linear(h, d)).branch).double()
    return net, ("never" if forbidden(net, d, bias, source) else "open"), None


def forbidden(net: Residual, d: int, bias: bool, source: torch.Generator) -> bool:
    """Whether the branch stays bounded, or has no slope at zero without any bias: measured."""
    rays = normal(source, 50, d)
    with torch.no_grad():
        far = [float(net.branch(size * rays).norm()) for size in (1e4, 1e8)]
    slopes = torch.autograd.functional.jacobian(net.branch, torch.zeros(d).double())
    flat = not bias and float(slopes.norm()) < 1e-12
    return far[1] < 1.1 * far[0] + 1e-9 or flat


def constructed_block(number: int) -> Case:
    """A block built so that its answer is known."""
    source = torch.Generator().manual_seed(number)
    kinds = list(CARRY.values())
    function, kappa = kinds[number % len(kinds)]
    d, kind = 2 + number % 3, number % 7
    h = 2 * d + 2
    up, down = normal(source, h, d), normal(source, d, h)
    if kind == 0:
        up, down = planted(source, d, h, kappa)
        return block(up, down, function, bias=True, source=source), "same width", 0
    live = h
    if kind == 1:  # all dead: pairs of new directions fit
        down.zero_()
        live = 0
    elif kind == 2:  # some dead
        live = d + number % 2
        down[:, live:] = 0
    elif kind == 3:  # constant units
        live = h - d
        up[live:] = 0
    net = block(up, down, function, bias=True, source=source)
    W, b = net.branch[0].weight.data, net.branch[0].bias.data
    if kind in (4, 5):  # parallel, or opposite
        live = h - d
        factor = 2.0 if kinds[number % len(kinds)] in (CARRY["relu"], CARRY["leaky_relu"]) else 1.0
        factor = factor if kind == 4 else -factor
        W[live:], b[live:] = factor * W[:d], factor * b[:d]
    need = max(d, 2 * d - live)
    if kind == 6:  # a stream that is >= 0 through ReLU: d channels, whatever the width
        h = live = 1 + number % d
        net = block(up[:h], down[:, :h], F.relu, bias=True, source=source)
        net, need = nn.Sequential(nn.ReLU(), net), d
    extra = max(0, live + need - h)
    return net, ("wider" if extra else "same width"), extra


def judged(case: Case) -> tuple[bool, float, str]:
    """Whether the verdict is the true one, the gap of the absorbed block, and the construction."""
    net, answer, extra = case
    found = rt.shortcuts(net)
    right = (found.answers, found.extra) == ((answer,), (extra,))
    gap = 0.0
    if answer in ("same width", "wider"):
        x = torch.randn(40, next(net.parameters()).shape[1], dtype=torch.float64)
        gap = rt.check_equivalence(net, rt.absorb(net), x).outputs
    return right, gap, found.how[0]


def part_families() -> None:
    """Outputs of nets with and without their shortcuts."""
    for name, (net, x) in families().items():
        new = rt.absorb(net)
        gap = rt.check_equivalence(net, new, x).outputs
        answers = Counter(rt.shortcuts(net).answers)
        words = ", ".join(f"{count} {word}" for word, count in answers.items())
        line(f"{name}: {words}; left: {len(rt.shortcuts(new).modules)}", f"{gap:.1e}",
             f"<= {EXACT}")  # fmt: skip


def part_verdicts() -> None:
    """Random and constructed blocks of two layers."""
    for words, cases in (
        ("random", [random_block(seed) for seed in range(RANDOM)]),
        ("constructed", [constructed_block(number) for number in range(CONSTRUCTED)]),
    ):
        results = [judged(case) for case in cases]
        counts = Counter(answer for _, answer, _ in cases)
        line(f"{words}: {dict(counts)}", f"{sum(not right for right, *_ in results)} wrong", "0")
        line(f"{words}: largest gap", f"{max(gap for _, gap, _ in results):.1e}", f"<= {EXACT}")


def refused() -> dict[str, nn.Module]:
    """Blocks whose shortcut cannot enter the weights."""
    linear = nn.Linear
    return {
        "ReLU²": Residual(linear(4, 9, False), Apply(OTHER["relu_squared"]), linear(9, 4, False)),
        "ReGLU": Residual(Gated(4, 9, F.relu)), "SwiGLU": Residual(Gated(4, 9, F.silu)),
        "GeGLU": Residual(Gated(4, 9, F.gelu)),
        "tanh": Residual(linear(4, 9), nn.Tanh(), linear(9, 4)),
        "ELU": Residual(linear(4, 9), nn.ELU(), linear(9, 4)),
        "pre-LN MLP": Residual(nn.LayerNorm(4), linear(4, 9), nn.GELU(), linear(9, 4)),
        "pre-RMSNorm attention": Residual(RMSNorm(4), Attention(4, 2)),
        "attention": Residual(Attention(4, 2)),
        "u + φ(V u)": Residual(linear(4, 4), nn.ReLU()),
        "u + V φ(u)": Residual(nn.ReLU(), linear(4, 4)),
    }  # fmt: skip


def part_refusals() -> None:
    """The theorem or the reason for each."""
    for name, net in refused().items():
        found = rt.shortcuts(net)
        line(f"{name}: {found.answers[0]}", "", found.how[0])


def part_times() -> None:
    """Processor seconds of one call."""
    nets = {"ResNet-50": ResNet(), "transformer, 24 layers, width 768": Transformer(
        24, 768, 12, 50257, 1024)}  # fmt: skip
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    nets["nn.TransformerEncoder, 6 layers, post-LN"] = nn.TransformerEncoder(
        layer, 6, enable_nested_tensor=False
    )
    for name, net in nets.items():
        results, seconds = rounds({name: lambda net=net: rt.shortcuts(net)}, 1)
        line(f"{name}: {results[name].title}", f"{seconds[name][0]:.1f} s", "")


if __name__ == "__main__":
    warnings.simplefilter("ignore", rt.equivalence.NothingConverted)
    run_parts(
        {"families": part_families, "verdicts": part_verdicts, "refusals": part_refusals,
         "times": part_times}, __doc__,
    )  # fmt: skip
