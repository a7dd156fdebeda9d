"""The Hessian of transformers at zero branches: flat queries and keys, and depth: our laws."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above

TOKENS, WIDTH, HEADS, HIDDEN, CLASSES = 10, 6, 2, 8, 10
GAINS = ("ones", "drawn once for all layers", "drawn for each layer")
STEPS = (0.1, 0.03, 0.01, 0.003)  # ε
ORDERS = {"QK": 2, "QV": 2, "QO": 2, "KV": 2, "KO": 2, "QQ": 4, "KK": 4}
OFF = 0.005  # of an order that rounds to 2.00 or 4.00
CHANGED = 1.1  # factor of a condition number that depends on depth


class Pooled(nn.Module):
    """Means over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """Average the second axis."""
        return x.mean(1)


def transformer(layers: int, gains: str, seed: int) -> nn.Sequential:
    """Pre-LN layers of torch without biases, between a projection and a read-out."""
    torch.manual_seed(seed)
    ends = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)  # first: equal at every depth
    blocks = [
        nn.TransformerEncoderLayer(
            WIDTH, HEADS, HIDDEN, 0.0, "gelu", batch_first=True, norm_first=True, bias=False
        )
        for _ in range(layers)
    ]
    net = nn.Sequential(ends[0], *blocks, nn.LayerNorm(WIDTH), Pooled(), ends[1])
    draws = torch.Generator().manual_seed(seed)
    for block in blocks:
        if gains == GAINS[1]:
            draws.manual_seed(seed)
        for norm in (block.norm1, block.norm2):
            drawn = 0.5 + torch.rand(WIDTH, generator=draws)
            norm.weight.data.copy_(drawn if gains != GAINS[0] else torch.ones(WIDTH))
    return net.double().eval()


def at(net: nn.Sequential, names: Sequence[str], scale: float) -> None:
    """Scale the weights of branches."""
    for name, weight in net.named_parameters():
        if name in names:
            weight.data.mul_(scale)


def block_norms(net: nn.Sequential, data: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Frobenius norms of blocks of the first attention's Hessian."""
    names = ["1.self_attn.in_proj_weight", "1.self_attn.out_proj.weight"]
    matrix = rt.curvature_operator(net, "square", data, parameters=names).dense()
    part = dict(zip("QKVO", matrix.split(WIDTH**2), strict=True))
    return {
        pair: float(part[pair[0]].split(WIDTH**2, dim=1)["QKVO".index(pair[1])].norm())
        for pair in ORDERS
    }


def compute(
    *, samples: int, depths: Sequence[int], measured: int, draws: int
) -> dict[str, np.ndarray]:
    """Compute norms of blocks, (draws, ε), and condition numbers, (gains, draws, depths)."""
    digits = rt.load_whitened("digits", components=TOKENS * WIDTH)
    data = digits.x[:samples].view(-1, TOKENS, WIDTH), digits.y[:samples]
    norms = {pair: np.empty((draws, len(STEPS))) for pair in ORDERS}
    condition = np.empty((len(GAINS), draws, len(depths)))
    flat = np.zeros((draws, len(depths)))
    negative, error = np.zeros_like(flat), np.full(len(depths), np.nan)
    for draw in range(draws):
        for row, gains in enumerate(GAINS):
            for column, depth in enumerate(depths):
                net = transformer(depth, gains, draw)
                point = rt.curvature.zero_point_of_net(net, "square", data)
                condition[row, draw, column] = point.condition_number
                if row < 2:
                    continue
                flat[draw, column] = sum(sum(b.flat.values()) for b in point.branches)
                negative[draw, column] = point.spectrum.count_below(0.0) / point.spectrum.rank
                if draw == 0 and depth <= measured:
                    at(net, point.zeroed, 0.0)
                    matrix = rt.curvature_operator(
                        net, "square", data, parameters=point.parameters
                    ).dense()
                    found = rt.Spectrum.of(torch.linalg.eigvalsh((matrix + matrix.mT) / 2))
                    error[column] = found.distance(point.spectrum) / len(matrix)
        for column, step in enumerate(STEPS):
            net = transformer(1, GAINS[2], draw)
            at(net, point.zeroed, step)
            for pair, norm in block_norms(net, data).items():
                norms[pair][draw, column] = norm
    return {
        "depth": np.array(depths), "condition": condition, "error": error, "negative": negative,
        "flat": flat, **norms,
    }  # fmt: skip


def orders(a: Arrays, pair: str) -> np.ndarray:
    """Exponents between the two smallest ε."""
    last, before = np.log(a[pair][:, -1]), np.log(a[pair][:, -2])
    return np.asarray((last - before) / np.log(STEPS[-1] / STEPS[-2]))


def judge(a: Arrays) -> list[Criterion]:
    """Compare orders, shares and growth with the law."""
    off = float(np.nanmax(a["error"])) / np.finfo(float).eps
    share = float(np.abs(a["negative"] - 0.5).max())
    growth = np.log(a["condition"][:, :, -1] / a["condition"][:, :, 0])
    words = f"condition number at {a['depth'][-1]} layers over that at one"
    # Queries, keys and the gains of two norms.
    rows = a["depth"] * (2 * WIDTH**2 + 2 * WIDTH)
    return [
        Criterion(
            "predicted against measured eigenvalues, in P eps of the largest",
            "at most 1 (theorem)",
            f"{off:.2g}",
            off <= 1,
        ),
        Criterion(
            "rows of queries, keys and gains that are zero",
            "all (theorem)",
            "all" if (a["flat"] == rows).all() else "others",
            (a["flat"] == rows).all(),
        ),
        Criterion(
            "share of negative ones among nonzero eigenvalues",
            "1/2 (theorem)",
            f"1/2 {share:+.1e}",
            share == 0,
        ),
        *(
            Criterion(
                f"block {pair} at weights εW: exponent of ε, the one furthest off",
                f"{order}.00 (ours)",
                f"{found:.4f}",
                abs(found - order) <= OFF,
            )
            for pair, order in ORDERS.items()
            for found in [max(orders(a, pair), key=lambda x, o=order: abs(x - o))]
        ),
        *(
            Criterion(
                f"gains {GAINS[row]}: {words}",
                "1 to 1e-9 (theorem)",
                f"1 {np.exp(growth[row][np.abs(growth[row]).argmax()]) - 1:+.1e}",
                bool((np.abs(np.exp(growth[row]) - 1) <= 1e-9).all()),
            )
            for row in (0, 1)
        ),
        above(
            f"gains {GAINS[2]}: log of the {words}",
            growth[2],
            float(np.log(CHANGED)),
            of="median",
            source=f"more than {CHANGED} times; ours",
        ),
    ]


def draw(figure: Figure, a: Arrays) -> None:
    """Plot norms of blocks against ε, and condition numbers against depth."""
    left, right = figure.subplots(1, 2)
    for number, pair in enumerate(ORDERS):
        left.plot(STEPS, np.median(a[pair], 0), "o-", color=f"C{number}", label=pair)
    for order, style in ((2, ":"), (4, "--")):
        left.plot(
            STEPS,
            np.array(STEPS) ** order,
            style,
            color="black",
            label=f"ε{'²' if order == 2 else '⁴'}",
        )
    left.set(xscale="log", yscale="log", xlabel="ε", ylabel="norm of a block of the Hessian at εW")
    left.legend(fontsize="x-small", ncols=2)
    for row, gains in enumerate(GAINS):
        low, middle, high = np.quantile(a["condition"][row], [0.25, 0.5, 0.75], axis=0)
        # Side by side: three bands would hide one another.
        at, bars = a["depth"] * 1.05 ** (row - 1), (middle - low, high - middle)
        right.errorbar(at, middle, bars, fmt="o-", color=f"C{row}", label=gains)
    right.set(
        xscale="log", yscale="log", xlabel="layers", ylabel="condition number at zero, quartiles"
    )
    right.set_xticks(a["depth"], [str(depth) for depth in a["depth"]])
    right.minorticks_off()
    right.legend(title="gains of norms", fontsize="x-small")


CLAIMS = [
    Claim(
        id="demystifying_resnet/transformers",
        kind="law",
        source="ours, after arXiv:1611.01186, Theorem 2",
        says="At zero branches queries, keys and the gains of norms are exactly flat, and half of "
        "the nonzero eigenvalues of a pre-LN transformer without biases are negative. Its "
        "condition number depends on depth only through the gains of its norms: with equal gains "
        "in all layers it is free of depth. At weights εW the Hessian's blocks of queries with "
        "keys, and of either with values and outputs, are of order ε², those of queries or keys "
        "with themselves of order ε⁴.",
        settings={
            "quick": dict(samples=12, depths=[1, 2], measured=1, draws=1),
            "paper": dict(samples=200, depths=[1, 2, 4, 8], measured=2, draws=12),
        },
        compute=compute,
        judge=judge,
        draw=draw,
    ),
]
