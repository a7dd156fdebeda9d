"""Cost of cushions in forward passes.

python -m benchmarks.cushions [layers] [memory] [interlayer]. Compare ratios, not
seconds, between runs.
"""

import subprocess
import sys
import time

import torch

import resid_theory as rt
from benchmarks.timing import line, medians, run_parts

BATCH = 256


def nets() -> dict[str, tuple[torch.nn.Module, torch.Tensor]]:
    """Networks of depth 20 at CIFAR-10's size, and a transformer of 12 layers; with inputs."""
    source = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32, generator=source)
    layer = torch.nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 12, enable_nested_tensor=False).eval()
    return {
        "simplified_net(20, residual)": (rt.simplified_net(20, identity="residual").eval(), images),
        "full_net(20)": (rt.full_net(20).eval(), images),
        "encoder, 12 layers": (encoder, torch.randn(BATCH, 32, 256, generator=source)),
    }


def forward(net: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """One pass without a graph."""
    with torch.no_grad():
        return net(x)


def layer_cost() -> None:
    """Time of all layer cushions over that of one forward pass."""
    torch.backends.mha.set_fastpath_enabled(False)  # the forward pass that cushions watch
    for name, (net, x) in nets().items():
        times = medians(
            {
                "forward": lambda net=net, x=x: forward(net, x),
                "in the batches of cushions": lambda net=net, x=x: [
                    forward(net, part) for part in x.split(128)
                ],
                "kernel": lambda net=net, x=x: rt.layer_cushions(net, x),
                "operator": lambda net=net, x=x: rt.layer_cushions(net, x, norm="operator"),
            },
            5,
            time.process_time,
        )
        line(f"{name}, {BATCH} samples: one forward pass, s", f"{times['forward']:.3f}", "")
        ratio = times["in the batches of cushions"] / times["forward"]
        line("    the pass in the batches of cushions, over it", f"{ratio:.2f}", "")
        for norm in ("kernel", "operator"):
            ratio = times[norm] / times["forward"]
            line(f"    all layer cushions, {norm} norm, over it", f"{ratio:.2f}", "<= 1.3")


PEAK = """
import resource, sys, torch, resid_theory as rt
net = getattr(rt, sys.argv[2])(20).eval()
x = torch.randn(256, 3, 32, 32)
with torch.no_grad():
    net(x[:2])
rt.layer_cushions(net, x[:4])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[1] == "forward":
    with torch.no_grad():
        net(x)
else:
    rt.layer_cushions(net, x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def memory_cost() -> None:
    """Increase of peak resident memory, measured in separate processes."""
    for name in ("simplified_net", "full_net"):
        peaks = {}
        for task in ("forward", "cushions"):
            done = subprocess.run(
                [sys.executable, "-c", PEAK, task, name], capture_output=True, text=True, check=True
            )
            peaks[task] = int(done.stdout) / 1024
        line(f"{name}(20): peak of a forward pass, MiB", f"{peaks['forward']:.0f}", "")
        ratio = peaks["cushions"] / peaks["forward"]
        line("    of all layer cushions over it", f"{ratio:.2f}", "<= 2")


def interlayer_cost() -> None:
    """Time of the interlayer cushions of every block, in forward passes on the same samples."""
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    net = rt.full_net(20).eval()
    times = medians(
        {
            "forward": lambda: forward(net, x),
            "blocks": lambda: rt.stability.block_cushions(
                net, x, probes=10, method="probes", batch=64
            ),
        },
        2,
    )
    passes = times["blocks"] / times["forward"]
    line("full_net(20): nine blocks, 10 probes each, in forward passes", f"{passes:.0f}", "")
    found = rt.stability.block_cushions(net, x[:8], probes=10, method="probes")
    relative = (found.standard_errors / found.values).mean()
    line("    relative standard error of one sample's cushion", f"{float(relative):.4f}", "")


if __name__ == "__main__":
    run_parts(
        {
            "layers": layer_cost,
            "memory": memory_cost,
            "interlayer": interlayer_cost,
        },
        __doc__,
    )
