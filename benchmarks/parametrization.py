"""Cost of the Dirac parametrization in training: python -m benchmarks.parametrization.

Ratios of process time in one run. The claim diracnets/fold measures the cost of folded nets.
"""

import time
from collections.abc import Callable

import torch

import resid_theory as rt
from benchmarks.timing import line, medians, run_parts

DEPTHS = (34, 100)
BATCH = 32


def step(net: torch.nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """Forward and backward pass of a training step."""

    def task() -> None:
        net.zero_grad()
        net(x).square().mean().backward()

    return task


def main() -> None:
    """Print the time of a step, relative to the plain net of the same shape."""
    x = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for depth in DEPTHS:
        tasks = {
            kind: step(rt.diracnet(depth, identity=kind).train(), x) for kind in ("plain", "dirac")
        }
        times = medians(tasks, 7, clock=time.process_time)
        label = f"depth {depth}, batch {BATCH}: a step of the plain net, s"
        line(label, f"{times['plain']:.3f}", "")
        line("    DiracNet over it", f"{times['dirac'] / times['plain']:.3f}", "reported")


if __name__ == "__main__":
    run_parts({"step": main}, __doc__)
