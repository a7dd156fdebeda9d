"""DiracNets, section 2: equations (6) and (7), and the cost of the parametrization in training.

Cost is counted in operations and not in seconds: those of convolutions and of matrix products, and
one for each element that any other kernel reads or writes, forward and backward.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion
from experiments.diracnets.nets import PAPER
from resid_theory.identity import with_identity

EXACT = 1e-12  # relative; round-off of one convolution in float64

# -- equations (6) and (7) -------------------------------------------------------------------------


def compute_equations(*, channels: int, size: int, seeds: Sequence[int]) -> dict[str, np.ndarray]:
    """Compare ReLU of a layer I + W, (6), with a residual block around a layer W, (7)."""
    rows = [_orders(channels, size, seed) for seed in seeds]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@torch.no_grad()
def _orders(channels: int, size: int, seed: int) -> dict[str, Any]:
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(4, channels, size, size, generator=source, dtype=torch.float64)
    w = torch.randn(channels, channels, 3, 3, generator=source, dtype=torch.float64)
    w /= 3 * channels**0.5
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, dtype=torch.float64)
    layer = with_identity(layer, "residual")
    trained = layer.parametrizations.weight.original
    trained.zero_()
    off_identity = float((layer(x) - x).abs().max())
    trained.copy_(w)

    def convolved(z: Tensor) -> Tensor:
        return F.conv2d(z, w, padding=1)

    sixth = F.relu(x + convolved(x))
    seventh = x + F.relu(convolved(x))
    positive = x.abs()  # as after a ReLU, but for exact zeros, where both are alike
    product = convolved(positive)
    gap = positive + F.relu(product) - F.relu(positive + product)
    scale = float(sixth.abs().max())
    agree = product >= 0
    return {
        "identity": off_identity,
        "written_out": float((F.relu(layer(x)) - sixth).abs().max()) / scale,
        "least": float(seventh.min()),
        "equal": float(gap[agree].abs().max()) / scale,
        "excess": float(gap[~agree].min()) / scale,
        "sixth": sixth.flatten()[:400].numpy(),
        "seventh": seventh.flatten()[:400].numpy(),
    }


def judge_equations(a: Arrays) -> list[Criterion]:
    """Require that (6) is a plain layer with the identity in its weight, and (7) none."""
    return [
        Criterion(
            "(6) with W = 0 before the ReLU: the input itself",
            "exactly (equations 1 and 2)",
            f"{a['identity'].max():g}",
            bool((a["identity"] == 0).all()),
        ),
        Criterion(
            "ReLU of a layer with the identity in its weight: ReLU(x + W x)",
            f"≤ {EXACT:g}, relative (equation 6)",
            f"{a['written_out'].max():.1e}",
            bool((a["written_out"] <= EXACT).all()),
        ),
        Criterion(
            "(7) on inputs of both signs: least output, which no layer and ReLU has",
            "< 0 in every draw (equation 7)",
            f"{a['least'].max():.3g} at most",
            bool((a["least"] < 0).all()),
        ),
        Criterion(
            "after a ReLU: (7) less (6)",
            "0 where W x ≥ 0, above 0 elsewhere (the order of identity and nonlinearity)",
            f"{a['equal'].max():.1e}; {a['excess'].min():.1e} at least",
            bool((a["equal"] <= EXACT).all() and (a["excess"] > 0).all()),
        ),
    ]


def draw_equations(figure: Figure, a: Arrays) -> None:
    """Plot (7) against (6), output by output, of the first draw."""
    ax = figure.subplots()
    ax.plot(a["sixth"][0], a["seventh"][0], ".", alpha=0.6, label="one output each")
    top = float(a["sixth"][0].max())
    ax.plot([0, top], [0, top], color="0.5", label="equal")
    ax.set(xlabel="(6): ReLU(x + W x)", ylabel="(7): x + ReLU(W x)")
    ax.legend()


# -- cost in training ------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Number of operations of all kernels that run in it."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        counted = flop_registry.get(func.overloadpacket)
        if counted is not None:
            self.total += counted(*args, **kwargs, out_val=out)
        elif not func.is_view:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.total += max((t.numel() for t in tensors), default=0)
        return out


def compute_training_cost(
    *, nets: Sequence[Sequence[int]], batches: Sequence[int]
) -> dict[str, np.ndarray]:
    """Count operations of one step, (identities, nets, batches), on tensors without storage."""
    kinds = ("plain", "dirac")
    rows = [[[_step(k, d, w, batch) for batch in batches] for d, w in nets] for k in kinds]
    weights = [
        sum(
            p.numel() for p in rt.diracnet(d, width=w, identity="plain").parameters() if p.ndim == 4
        )
        for d, w in nets
    ]
    return {
        "net": np.array(nets),
        "batch": np.array(batches),
        "operations": np.array(rows, dtype=float),
        "weights": np.array(weights),
    }


def _step(identity: str, depth: int, width: int, batch: int) -> int:
    """Operations of loss and gradients of one batch of 32 x 32 images."""
    net = rt.diracnet(depth, width=width, identity=identity, generator=0).to("meta")
    x = torch.empty(batch, 3, 32, 32, device="meta")
    labels = torch.empty(batch, dtype=torch.long, device="meta")
    with Operations() as counted:
        F.cross_entropy(net(x), labels).backward()
    return counted.total


def judge_training_cost(a: Arrays) -> list[Criterion]:
    """Require a small share of a step, and an amount that the batch does not change."""
    plain, dirac = a["operations"]
    extra = dirac - plain
    share = extra / plain
    names = [f"{depth}-{width}" for depth, width in a["net"]]
    each = extra[:, 0] / a["weights"]
    return [
        Criterion(
            f"one training step of {a['batch'][-1]} images: operations of a DiracNet over those of "
            "the plain net, less 1",
            "< 0.01 in every net (abstract: minor; the number is ours)",
            ", ".join(f"{n}: {s:.2e}" for n, s in zip(names, share[:, -1], strict=True)),
            bool((share[:, -1] < 0.01).all()),
        ),
        Criterion(
            "the parametrization: operations of a step by the batch "
            + ", ".join(str(b) for b in a["batch"]),
            "equal (it works on weights and not on images)",
            ", ".join(f"{n}: {e:.3g} a weight" for n, e in zip(names, each, strict=True)),
            bool((extra == extra[:, :1]).all()),
        ),
    ]


def draw_training_cost(figure: Figure, a: Arrays) -> None:
    """Plot the extra share of operations against the batch."""
    ax = figure.subplots()
    plain, dirac = a["operations"]
    for (depth, width), share in zip(a["net"], dirac / plain - 1, strict=True):
        ax.loglog(a["batch"], 100 * share, "o-", label=f"DiracNet-{depth}-{width}")
    ax.axhline(1, color="0.6", linestyle=":", label="1 %")
    ax.set(xlabel="images in a batch", ylabel="more operations than plain (%)")
    ax.set_xticks(a["batch"], [str(batch) for batch in a["batch"]], minor=False)
    ax.legend()


CLAIMS = [
    Claim(
        id="diracnets/equations_6_and_7",
        source=f"{PAPER}, section 2, equations (1) to (3), (6) and (7)",
        says="A plain layer with the identity in its weight computes ReLU(x + W x), (6); a "
        "residual block computes x + ReLU(W x), (7), which is another function.",
        settings={
            "quick": {"channels": 4, "size": 8, "seeds": [0, 1, 2]},
            "paper": {"channels": 16, "size": 16, "seeds": list(range(10))},
        },
        compute=compute_equations,
        judge=judge_equations,
        draw=draw_equations,
    ),
    Claim(
        id="diracnets/training_cost",
        source=f"{PAPER}, abstract and section 2",
        says="The parametrization has a minor computational cost in training (operations are "
        "counted, no time is measured).",
        settings={
            "quick": {"nets": [[10, 1]], "batches": [1, 128], "scaled": "depth 10"},
            "paper": {
                "nets": [[34, 1], [100, 1], [28, 5], [28, 10], [10, 1]],
                "batches": [1, 8, 32, 128],
            },
        },
        compute=compute_training_cost,
        judge=judge_training_cost,
        draw=draw_training_cost,
    ),
]  # fmt: skip
