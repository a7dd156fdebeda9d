"""DiracNets: no extra cost at inference, abstract and section 2.

Times are of ``time.process_time``; the nets take turns, and times of one turn are compared.
"""

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, near
from experiments.diracnets.nets import PAPER, parameters_of

EQUAL = {"float64": 1e-12, "float32": 1e-4}  # round-off of a few hundred layers at depth 100
LAYERS = (nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear)


def compute_fold(
    *, depths: Sequence[int], images: int, size: int, repeats: int, seed: int
) -> dict[str, np.ndarray]:
    """Compare folded nets with the DiracNets, and with newly built chains of equal shape."""
    rows = [_folded(depth, images, size, repeats, seed) for depth in depths]
    return {"depth": np.array(depths)} | {
        name: np.array([row[name] for row in rows]) for name in rows[0]
    }


def _folded(depth: int, images: int, size: int, repeats: int, seed: int) -> dict[str, object]:
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(images, 3, size, size, generator=source, dtype=torch.float64)
    net = _perturbed(rt.diracnet(depth, generator=seed), source, x)
    folded = rt.fold(net)
    chain = _chain(folded, source)
    gaps = {}
    for dtype, kind in ((torch.float64, "float64"), (torch.float32, "float32")):
        gaps[f"gap_{kind}"] = _gap(net.to(dtype), rt.fold(net), x.to(dtype))
    nets = {"dirac": net, "folded": folded.float(), "chain": chain.float()}
    seconds = _seconds(nets, x.float(), repeats)
    return {
        **gaps,
        "other_layers": sum(not isinstance(layer, LAYERS) for layer in folded),
        "parameters": [parameters_of(folded), parameters_of(chain)],
        "products": [_multiplications(folded, size), _multiplications(chain, size)],
        "seconds": seconds,
    }


@torch.no_grad()
def _perturbed(net: nn.Module, source: torch.Generator, x: Tensor) -> nn.Module:
    """The net in float64 and eval mode, with random scales and the running statistics of x."""
    net.double()
    for name, parameter in net.named_parameters():
        if name.endswith((".a", ".b")) or parameter.dim() == 1:
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=source).double())
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of one batch, without the initial ones
    net.train()(x)
    return net.eval()


@torch.no_grad()
def _gap(net: nn.Module, folded: nn.Module, x: Tensor) -> float:
    """Largest difference of outputs, relative to the largest output."""
    wanted = net(x)
    return float((folded(x) - wanted).abs().max() / wanted.abs().max())


def _chain(folded: nn.Sequential, source: torch.Generator) -> nn.Sequential:
    """A newly built chain of convolutions with bias, ReLU and pooling of the same shape."""
    made = nn.Sequential()
    for name, layer in folded.named_children():
        if isinstance(layer, nn.Conv2d):
            layer = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
        elif isinstance(layer, nn.Linear):
            layer = nn.Linear(layer.in_features, layer.out_features)
        made.add_module(name, layer)
    for parameter in made.parameters():
        drawn = torch.randn(parameter.shape, generator=source)
        fan = max(parameter[0].numel(), 1) if parameter.dim() > 1 else 100
        parameter.data.copy_(drawn * (2 / fan) ** 0.5)
    return made.eval()


def _multiplications(net: nn.Sequential, size: int) -> int:
    """Number of multiplications in convolutions and linear layers for one image."""
    x, total = torch.zeros(1, 3, size, size, dtype=next(net.parameters()).dtype), 0
    with torch.no_grad():
        for layer in net:
            x = layer(x)
            if isinstance(layer, nn.Conv2d | nn.Linear):
                total += layer.weight.numel() * x[0, 0].numel()
    return total


@torch.no_grad()
def _seconds(nets: Mapping[str, nn.Module], x: Tensor, repeats: int) -> np.ndarray:
    """Seconds of a forward pass, (nets, turns), after a warm-up; every other turn is backwards."""
    order, spent = list(enumerate(nets.values())), np.zeros((len(nets), repeats + 1))
    for turn in range(repeats + 1):
        for number, net in order if turn % 2 else reversed(order):
            start = time.process_time()
            net(x)
            spent[number, turn] = time.process_time() - start
    return spent[:, 1:]


def judge_fold(a: Arrays) -> list[Criterion]:
    """Require the same function by a plain chain, and equal cost; times only if measured."""
    same = (a["parameters"] == a["parameters"][:, 1:]).all() and (
        a["products"] == a["products"][:, 1:]
    ).all()
    shown = ", ".join(f"depth {d}" for d in a["depth"])
    found = [
        *(
            Criterion(
                f"folded net against the original, {kind}, largest relative difference, {shown}",
                f"≤ {EQUAL[kind]:g} (round-off)",
                f"{a[f'gap_{kind}'].max():.1e}",
                bool((a[f"gap_{kind}"] <= EQUAL[kind]).all()),
            )
            for kind in EQUAL
        ),
        Criterion(
            "layers of the folded net that are no convolution, ReLU, pool or classifier",
            "0 (abstract: a simple chain of convolution-ReLU pairs)",
            str(a["other_layers"].sum()),
            bool((a["other_layers"] == 0).all()),
        ),
        Criterion(
            "parameters and multiplications, folded against a chain made anew",
            "equal (abstract: no cost at all at inference)",
            "; ".join(
                f"depth {d}: {m[0]:,} against {m[1]:,} multiplications"
                for d, m in zip(a["depth"], a["products"], strict=True)
            ),
            bool(same),
        ),
    ]
    if not a["seconds"].shape[2]:
        return found
    return found + [
        near(
            f"depth {depth}: time of a pass, folded over a chain made anew, by turn",
            folded / chain,
            1.0,
            margin=0.05,
            source="abstract: no cost at all at inference",
            shown=f"not folded, in eval mode: {np.median(dirac / chain):.2f} in the median",
        )
        for depth, (dirac, folded, chain) in zip(a["depth"], a["seconds"], strict=True)
    ]


def draw_fold(figure: Figure, a: Arrays) -> None:
    """Plot differences by depth, and times if measured."""
    timed = a["seconds"].shape[2] > 0
    left, *more = np.ravel(figure.subplots(1, 2 if timed else 1))
    for kind in EQUAL:
        left.semilogy(a["depth"], np.maximum(a[f"gap_{kind}"], 1e-17), "o", label=kind)
        left.axhline(EQUAL[kind], color="0.7", linewidth=1)
    left.set_title("grey: criteria", fontsize="medium")
    left.set(xlabel="depth (layers)", ylabel="largest relative difference", xticks=a["depth"])
    left.legend()
    for right in more:
        medians = np.median(a["seconds"], axis=2).T
        for name, times in zip(("not folded", "folded", "made anew"), medians, strict=True):
            right.plot(a["depth"], 1e3 * times, "o-", label=name)
        right.set(xlabel="depth (layers)", ylabel="milliseconds a pass", xticks=a["depth"])
        right.legend()


CLAIMS = [
    Claim(
        id="diracnets/fold",
        source=f"{PAPER}, abstract and section 2",
        says="At inference a DiracNet is a chain of convolution-ReLU pairs and costs no more.",
        settings={
            "quick": {
                "depths": [34], "images": 8, "size": 16, "repeats": 0, "seed": 0,
                "scaled": "depth 34, images of 16 x 16, not timed",
            },
            "paper": {"depths": [34, 100], "images": 32, "size": 32, "repeats": 30, "seed": 1},
        },
        compute=compute_fold,
        judge=judge_fold,
        draw=draw_fold,
    )
]  # fmt: skip
