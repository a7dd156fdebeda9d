"""Cost of a zero-point prediction at any depth: python -m benchmarks.zero_point."""

import argparse
import tracemalloc

import torch

import resid_theory as rt
from benchmarks.timing import line, medians, once


def moments(width: int) -> rt.Moments:
    """Moments of random data, not whitened."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1000, width, generator=generator, dtype=torch.float64)
    return rt.Moments.of((x, y + x))


def peak(task) -> int:
    """Bytes of Python and NumPy memory at the peak, and of tensors that live at the end."""
    tracemalloc.start()
    task()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def everything(data: rt.Moments, blocks: int, n: int) -> object:
    """A prediction with all its numbers; n = 1: what is known without an exact eigenvalue."""
    point = rt.theory.zero_point(data, blocks=blocks, shortcut_depth=n)
    if n > 1:
        return point.summary()
    return point.growth_rate, point.statistics.bulk_percentile(10), point.verdict


def main() -> None:
    """Print the report."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    data = moments(10)
    for n in (1, 2, 3):
        times = medians(
            {
                "deep": lambda n=n: everything(data, 100_000, n),
                "shallow": lambda n=n: everything(data, 10, n),
            },
            5,
        )
        line(f"n = {n}, d = 10, 100,000 blocks, seconds", f"{times['deep']:.4f}", "< 1")
        line("    over 10 blocks", f"{times['deep'] / times['shallow']:.2f}", "1: no dependence")
        deep, shallow = (peak(lambda b=b, n=n: everything(data, b, n)) for b in (100_000, 10))
        line("    peak of traced memory over that of 10 blocks", f"{deep / shallow:.2f}", "1")
    point = rt.theory.zero_point(moments(3), blocks=1000, shortcut_depth=1)
    statistics = point.statistics
    line("n = 1, d = 3, depth 1000: largest |λ|, s", f"{once(lambda: statistics.largest):.1f}", "s")
    ratio = statistics.largest / (1000 * statistics.growth_rate)
    line("    over κ R", f"{ratio:.5f}", "1 + O(1/R)")
    seconds = once(lambda: statistics.magnitude_percentile(10))
    line("    10th percentile of |λ| by counts, s", f"{seconds:.1f}", "seconds")
    line("    index by counts, s", f"{once(lambda: statistics.index):.1f}", "seconds")


if __name__ == "__main__":
    main()
