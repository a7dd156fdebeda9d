"""Lemmas 3 and 4: the nonzero derivatives at zero weights, on random problems."""

import numpy as np
import torch
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion
from experiments.demystifying_resnet.nets import EXACT, PAPER, generator_of


def compute_lemmas(*, width: int, blocks: int, seed: int) -> dict[str, np.ndarray]:
    """Compute derivatives up to order three at zero for a smooth activation."""
    generator = generator_of(17, seed)
    x, y = torch.randn(2, 20, width, generator=generator, dtype=torch.float64)
    arrays = {}
    for n in (2, 3):
        net = rt.ShortcutNet(width, 2, n, mid=torch.expm1, post=torch.expm1)
        for order, derivative in enumerate(_derivatives(net, x, y, 3), start=1):
            whole = _holds_whole_unit(net, order)
            inside = derivative[whole].abs()
            outside = derivative[~whole].abs()
            arrays[f"lemma3.n{n}.order{order}"] = np.array(
                [
                    outside.max().item() if len(outside) else 0.0,
                    inside.max().item() if len(inside) else 0.0,
                ]
            )
    net = rt.ShortcutNet(width, blocks, 1, post=torch.expm1)
    _, hessian = _derivatives(net, x, y, 2)
    arrays["lemma4.hessian"] = hessian.numpy()
    arrays["lemma4.blocks"] = np.array(blocks)
    return arrays


def _derivatives(net: rt.ShortcutNet, x: torch.Tensor, y: torch.Tensor, orders: int) -> list:
    """Derivatives of the loss at zero weights up to an order, by repeated differentiation."""

    def loss(flat: torch.Tensor) -> torch.Tensor:
        weights = flat.view(net.weights.shape)
        output = torch.func.functional_call(net, {"weights": weights}, (x,))
        return 0.5 * (output - y).square().sum() / len(x)

    point = torch.zeros(net.weights.numel(), dtype=torch.float64)
    found, derivative = [], loss
    for _ in range(orders):
        derivative = torch.func.jacrev(derivative)
        found.append(derivative(point).detach())
    return found


def _holds_whole_unit(net: rt.ShortcutNet, order: int) -> torch.Tensor:
    """Mask of the partial derivatives whose variables contain all n matrices of some unit."""
    n, entries = net.shortcut_depth, net.width**2
    size = net.blocks * n * entries
    layer = torch.arange(size) // entries
    held = torch.zeros([size] * order, dtype=torch.bool)
    for block in range(net.blocks):
        every = torch.ones_like(held)
        for matrix in range(block * n, block * n + n):
            some = torch.zeros_like(held)
            for axis in range(order):
                shape = [1] * order
                shape[axis] = size
                some |= (layer == matrix).view(shape)
            every &= some
        held |= every
    return held


def judge_lemmas(a: Arrays) -> list[Criterion]:
    """Judge Lemma 3 for every computed order, Lemma 4 for every pair of units."""
    criteria = []
    for n in (2, 3):
        pairs = [a[f"lemma3.n{n}.order{order}"] for order in (1, 2, 3)]
        outside = max(float(pair[0]) for pair in pairs)
        inside = float(pairs[n - 1][1])
        criteria.append(
            Criterion(
                f"Lemma 3, n = {n}, orders 1 to 3: partials without a whole unit",
                "exactly 0, while one of order n with it is not",
                f"{outside:g}; largest with it {inside:.3g}",
                outside == 0.0 and inside > 0.0,
            )
        )
    blocks = int(a["lemma4.blocks"])
    size = len(a["lemma4.hessian"]) // blocks
    tiles = a["lemma4.hessian"].reshape(blocks, size, blocks, size).transpose(0, 2, 1, 3)
    scale = np.abs(tiles).max()
    later = [tiles[r, c] for r in range(blocks) for c in range(r)]
    gap = max(np.abs(tile - later[0]).max() for tile in later) / scale
    gap = max(gap, *(np.abs(tiles[r, r] - tiles[0, 0]).max() / scale for r in range(blocks)))
    apart = float(np.abs(later[0] - later[0].T).max() / scale)
    criteria.append(
        Criterion(
            f"Lemma 4, n = 1, {blocks} units: second derivatives of all pairs in one order",
            "equal to 1e-12 of the largest, the two orders being different",
            f"{gap:.1e}; orders differ by {apart:.2g}",
            bool(gap <= EXACT and apart > EXACT),
        )
    )
    return criteria


def draw_lemmas(figure: Figure, a: Arrays) -> None:
    """Plot the Hessian of the 1-shortcut net and the largest partial derivatives by order."""
    left, right = figure.subplots(1, 2)
    hessian = a["lemma4.hessian"]
    block = len(hessian) // int(a["lemma4.blocks"])
    rt.plots.hessian_pattern(hessian, block=block, ax=left, title="Lemma 4")
    for n, marker in ((2, "o"), (3, "D")):
        pairs = np.array([a[f"lemma3.n{n}.order{order}"] for order in (1, 2, 3)])
        (line,) = right.plot([1, 2, 3], pairs[:, 1], marker, label=f"n = {n}, with a whole unit")
        right.plot(
            [1, 2, 3], pairs[:, 0], marker, color=line.get_color(), mfc="none", label="without"
        )
    right.set(xlabel="order", ylabel="largest partial derivative at zero", title="Lemma 3")
    right.set_xticks([1, 2, 3])
    right.legend(fontsize="small", loc="center")


# -- the claims ------------------------------------------------------------------------------------

CLAIMS = [
    Claim(
        id="demystifying_resnet/lemmas_3_and_4",
        source=f"{PAPER}, Lemmas 3 and 4",
        says="At zero a partial derivative is nonzero only if its variables contain all n matrices "
        "of a unit; second derivatives between two units depend on their order, not on their "
        "positions.",
        settings={
            "quick": dict(width=2, blocks=4, seed=0),
            "paper": dict(width=2, blocks=8, seed=1),
        },
        compute=compute_lemmas,
        judge=judge_lemmas,
        draw=draw_lemmas,
    ),
]
