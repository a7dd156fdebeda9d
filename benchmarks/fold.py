"""Cost of a DiracNet: at inference, folded and not; in training, of its parametrization.

python -m benchmarks.fold [inference] [training]. Ratios of process time in one run.
"""

import time
from collections.abc import Callable

import torch

import resid_theory as rt
from benchmarks.timing import line, medians, run_parts

DEPTHS = (34, 100)
BATCH = 32


def images() -> torch.Tensor:
    """A batch of CIFAR-10's shape."""
    return torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def forward(net: torch.nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A forward pass without a graph."""

    def task() -> torch.Tensor:
        with torch.no_grad():
            return net(x)

    return task


def chain(folded: torch.nn.Sequential) -> torch.nn.Sequential:
    """A new net of convolutions with bias, ReLU and pools, the shape of the folded net."""
    made = torch.nn.Sequential()
    for name, layer in folded.named_children():
        if isinstance(layer, torch.nn.Conv2d):
            layer = torch.nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
        elif isinstance(layer, torch.nn.Linear):
            layer = torch.nn.Linear(layer.in_features, layer.out_features)
        made.add_module(name, layer)
    return made.eval()


def inference_cost() -> None:
    """Time of the folded net, the trained net and a plain net, relative to a chain without BN."""
    x = images()
    for depth in DEPTHS:
        net = rt.diracnet(depth).eval()
        folded = rt.fold(net)
        tasks = {
            "chain": forward(chain(folded), x),
            "folded": forward(folded, x),
            "dirac": forward(net, x),
            "plain": forward(rt.diracnet(depth, identity="plain").eval(), x),
        }
        times = medians(tasks, 21, clock=time.process_time)
        line(f"depth {depth}, batch {BATCH}: conv-ReLU chain, s", f"{times['chain']:.4f}", "")
        ratios = {name: seconds / times["chain"] for name, seconds in times.items()}
        line("    folded DiracNet over it", f"{ratios['folded']:.3f}", "1 +- 0.05")
        line("    DiracNet in eval mode, not folded, over it", f"{ratios['dirac']:.2f}", "")
        line("    plain net with BatchNorm, not folded, over it", f"{ratios['plain']:.2f}", "")


def step(net: torch.nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Forward and backward pass of a training step."""

    def task() -> None:
        net.zero_grad()
        net(x).square().mean().backward()

    return task


def training_cost() -> None:
    """Time of a step with the parametrization, relative to the plain net of the same shape."""
    x = images()
    for depth in DEPTHS:
        tasks = {
            kind: step(rt.diracnet(depth, identity=kind).train(), x) for kind in ("plain", "dirac")
        }
        times = medians(tasks, 7, clock=time.process_time)
        line(
            f"depth {depth}, batch {BATCH}: a step of the plain net, s", f"{times['plain']:.3f}", ""
        )
        line("    DiracNet over it", f"{times['dirac'] / times['plain']:.3f}", "reported")


if __name__ == "__main__":
    run_parts({"inference": inference_cost, "training": training_cost}, __doc__)
