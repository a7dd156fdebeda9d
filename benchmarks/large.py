"""Time and memory of 100 products for extremes and density of a large net's Hessian.

    python -m benchmarks.large [--depth 34] [--width 1] [--images 500] [--device cpu]
    python -m benchmarks.large --imagenet --images 8    # 22 million weights

The net is a DiracNet at its initial weights, the loss cross-entropy on CIFAR-10, or on noise of its
shape where the data set is not there; the net for ImageNet sees the images at 64 x 64. Memory is
what the process (on a GPU: the allocator) holds after each stage, so growth from product to product
would show beside the vectors that are kept.
"""

import argparse
import time
from pathlib import Path

import torch
from torch.nn.functional import interpolate

import resid_theory as rt
from benchmarks.products import images
from benchmarks.timing import line

EXTREMES, PROBES, STEPS = 60, 4, 10  # products for extremes, and for the density


def held(device: torch.device) -> int:
    """Bytes of memory in use."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


class Watched:
    """An operator that notes the memory after every product."""

    def __init__(self, operator: rt.curvature.CurvatureOperator) -> None:
        self.operator, self.memory, self.products = operator, list[int](), 0
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device

    def __matmul__(self, vectors: torch.Tensor) -> torch.Tensor:
        product = self.operator @ vectors
        self.products += vectors.shape[1]
        self.memory.append(held(self.device))
        return product


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=34)
    parser.add_argument("--width", type=int, default=1)
    parser.add_argument("--imagenet", action="store_true", help="the wider net of 1,000 classes")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", default="auto", choices=("auto", "retained", "rebuilt"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    x, y = (tensor.to(device) for tensor in images(arguments.images))
    if arguments.imagenet:
        net, x = rt.diracnet_imagenet(arguments.depth, generator=0), interpolate(x, (64, 64))
    else:
        net = rt.diracnet(arguments.depth, width=arguments.width, generator=0)
    net = net.eval().to(device)
    start = time.perf_counter()
    operator = rt.curvature_operator(
        net, "cross_entropy", (x, y), engine=arguments.engine, accumulate="float32"
    )
    watched = Watched(operator)
    print(
        f"DiracNet-{arguments.depth}, P = {operator.shape[0]:,}, {len(x)} images of "
        f"{x.shape[-1]} x {x.shape[-1]}, {operator.engine} graphs of {operator.chunk} samples, "
        f"{torch.get_num_threads()} threads, {device}"
    )
    line("making the operator, s", f"{time.perf_counter() - start:.1f}", "")
    line("memory then, MiB", f"{held(device) / 2**20:.0f}", "")
    start = time.perf_counter()
    pairs = rt.eigenpairs(watched, 3, which="both", max_products=EXTREMES, progress=True)
    print(pairs)
    density = rt.spectral_density(watched, probes=PROBES, steps=STEPS, deflate=pairs, progress=True)
    seconds = time.perf_counter() - start
    line("products", f"{watched.products}", "")
    line("seconds a product", f"{seconds / watched.products:.2f}", "")
    middle = len(watched.memory) // 2
    vectors = EXTREMES * operator.shape[0] * 4 / 2**20
    line("memory after the first block, MiB", f"{watched.memory[0] / 2**20:.0f}", "")
    line("after half of them, MiB", f"{watched.memory[middle] / 2**20:.0f}", "")
    line("after all, MiB", f"{watched.memory[-1] / 2**20:.0f}", f"vectors: {vectors:.0f}")
    share = density.negative_share
    line(
        f"share of eigenvalues below -{density.resolution:.2g}",
        f"{share.value:.4f}",
        f"95 %: {share.low:.4f} to {share.high:.4f}",
    )


if __name__ == "__main__":
    main()
