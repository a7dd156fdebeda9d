"""Speed of Hessian-vector products, relative to plain torch with and without a retained graph.

    python -m benchmarks.products [--images 32 128] [--repeats 5]

Every line is from one run, its sides taking turns. "plain" keeps torch's own graph of the gradient,
"rebuild" runs the net anew for every product; both add up in float32. The CIFAR-10 images are drawn
at random where the data set is not there: the time does not depend on them.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import resid_theory as rt
from benchmarks.timing import line, medians


def images(count: int) -> tuple[Tensor, Tensor]:
    """CIFAR-10 as inputs and labels, or noise of that shape."""
    try:
        data = rt.load_images("cifar10", samples=count, progress=False)
    except FileNotFoundError:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count) % 10
    return data.inputs(data.pixels, torch.float32), data.labels


def perceptron() -> nn.Sequential:
    """Eight layers of width 128: P = 116,874."""
    hidden = [m for _ in range(7) for m in (nn.Linear(128, 128), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(128, 10))


def gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """With its graph, as a plain script has it."""
    loss = F.cross_entropy(net(x), y)
    parts = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    return torch.cat([part.reshape(-1) for part in parts])


def plain(net: nn.Module, kept: Tensor, vector: Tensor) -> Tensor:
    """One product on a retained graph."""
    parts = torch.autograd.grad(kept, list(net.parameters()), vector, retain_graph=True)
    return torch.cat([part.reshape(-1) for part in parts])


def compare(name: str, net: nn.Module, x: Tensor, y: Tensor, repeats: int) -> None:
    """Print how products of one net compare."""
    net.eval()
    generator = torch.Generator().manual_seed(0)
    ours = rt.curvature_operator(net, "cross_entropy", (x, y), engine="retained")
    anew = rt.curvature_operator(net, "cross_entropy", (x, y), engine="rebuilt")
    kept = gradient(net, x, y)
    vector = torch.randn(len(kept), generator=generator)
    block = torch.randn(len(kept), 4, generator=generator)
    tasks: dict[str, Callable[[], object]] = {
        "plain": lambda: plain(net, kept, vector),
        "rebuild": lambda: plain(net, gradient(net, x, y), vector),
        "ours": lambda: ours @ vector,
        "rebuilt": lambda: anew @ vector,
        "block": lambda: ours @ block,
    }
    # Processor time: with one thread it is the wall time of a machine that nobody else uses.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = medians(tasks, repeats, clock)
    far = (ours @ vector - plain(net, kept, vector)).norm() / (ours @ vector).norm()
    print(f"{name}: {times['ours']:.3f} s a product, chunk {ours.chunk}, differs by {far:.1e}")
    line("plain retained graph / ours", f"{times['plain'] / times['ours']:.2f}", "")
    line("rebuild per product / ours", f"{times['rebuild'] / times['ours']:.2f}", "")
    line("rebuild per product / ours rebuilt", f"{times['rebuild'] / times['rebuilt']:.2f}", "")
    line("4 products one by one / a block of 4", f"{4 * times['ours'] / times['block']:.2f}", "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--samples", type=int, nargs="+", default=[2048])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32")
    for count in arguments.samples:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(count, 128, generator=generator)
        compare(f"8-layer MLP, {count} samples", perceptron(), x, torch.arange(count) % 10,
                arguments.repeats)  # fmt: skip
    for count in arguments.images:
        compare(f"ResNet-20, {count} images", rt.full_net(20), *images(count), arguments.repeats)
