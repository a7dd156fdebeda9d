"""Hessian products with freed memory kept or given back: python -m benchmarks.allocator [ROW ...].

Milliseconds of processor time a product, in user and kernel mode, and the peak of memory, of one
process each. Rows are those of ``benchmarks.products`` and of a block of columns of a dense Hessian
in float64.
"""

import argparse
import resource
import subprocess
import sys

import torch

import resid_theory as rt
from benchmarks.products import ROWS, images
from resid_theory.runtime.allocator import keep_freed_memory

BLOCK = "block"


def measure(row: str, keeps: bool, repeats: int) -> None:
    """Print user and kernel milliseconds a product, and the peak in MB."""
    if keeps:
        keep_freed_memory()
    torch.set_num_threads(1)
    if row == BLOCK:
        x, y = images(200)
        net, data = rt.simplified_net(5, generator=0).double(), (x.double(), y)
        count = 32
    else:
        _, make, draw = ROWS[row]
        net, data, count = make(), draw(), 1
    operator = rt.curvature_operator(net.eval(), "cross_entropy", data)
    vectors = torch.eye(operator.shape[0], count, dtype=operator.dtype)
    operator @ vectors
    start = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(repeats):
        operator @ vectors
    end = resource.getrusage(resource.RUSAGE_SELF)
    products = 1e-3 * repeats * count
    user, kernel = end.ru_utime - start.ru_utime, end.ru_stime - start.ru_stime
    print(f"{user / products:.1f} {kernel / products:.1f} {end.ru_maxrss / 1024:.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=[*ROWS, BLOCK], choices=[*ROWS, BLOCK, []])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keeps", type=int, choices=(0, 1), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.keeps is not None:
        measure(arguments.rows[0], bool(arguments.keeps), arguments.repeats)
        sys.exit()
    print(f"{'':10}  given back: user kernel    MB   kept: user kernel    MB   ratio")
    for name in arguments.rows:
        words = [sys.executable, "-m", "benchmarks.allocator", name]
        words += ["--repeats", str(arguments.repeats), "--keeps"]
        back, kept = (
            [float(each) for each in subprocess.check_output([*words, k], text=True).split()]
            for k in ("0", "1")
        )
        shown = "   ".join(f"{u:14.1f} {k:6.1f} {m:5.0f}" for u, k, m in (back, kept))
        print(f"{name:10}  {shown}   {(back[0] + back[1]) / (kept[0] + kept[1]):5.2f}", flush=True)
