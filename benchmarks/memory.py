"""Memory of exact Hessians: the peak of a process against what `hessian_cost` says before.

    python -m benchmarks.memory [closed_form] [layer_pairs] [columns] [--size 80] [--samples 64]

Each row is a process of its own; what it holds before the Hessian (torch, the data) does not count.
"""

import argparse
import subprocess
import sys

import torch
from torch import nn

import resid_theory as rt
from benchmarks.timing import line
from resid_theory.runtime.resources import peak_bytes

METHODS = ("closed_form", "layer_pairs", "columns")


def problem(
    method: str, size: int, samples: int
) -> tuple[nn.Module, str, tuple[torch.Tensor, torch.Tensor]]:
    """A net of about size² weights that takes the route, its loss, and data."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, samples, size, generator=generator, dtype=torch.float64)
    if method == "closed_form":
        return nn.Sequential(nn.Linear(size, size, bias=False)).double(), "square", (x, y)
    middle = nn.Tanh() if method == "layer_pairs" else nn.LayerNorm(size // 2)
    net = nn.Sequential(nn.Linear(size, size // 2), middle, nn.Linear(size // 2, size))
    return net.double(), "square", (x, y)


def measure(method: str, size: int, samples: int) -> None:
    """Print estimate and peak, in bytes, and P."""
    net, loss, data = problem(method, size, samples)
    small = problem(method, 8, 8)
    rt.hessian(*small, method=method)  # what is loaded and made once
    rt.curvature.hessian_cost(*small, method=method)
    before, cpu = peak_bytes(torch.device("cpu")), torch.device("cpu")
    found = rt.hessian(net, loss, data, method=method)
    peak = peak_bytes(cpu) - before
    cost = rt.curvature.hessian_cost(net, loss, data, method=method)
    print(cost.bytes, peak, len(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--size", type=int, default=80)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measure(arguments.methods[0], arguments.size, arguments.samples)
        sys.exit()
    for method in arguments.methods:
        command = [sys.executable, "-m", "benchmarks.memory", method, "--child"]
        told = subprocess.run(
            [*command, "--size", str(arguments.size), "--samples", str(arguments.samples)],
            check=True,
            capture_output=True,
            text=True,
        )
        estimate, peak, count = map(int, told.stdout.split())
        line(f"{method}, P = {count}: peak / estimate", f"{peak / estimate:.2f}",
             f"{peak / 2**20:.0f} of {estimate / 2**20:.0f} MiB; goal 0.9 to 1.1")  # fmt: skip
