"""Speed of exact Hessians: every number is a ratio of two things timed in one run.

    python -m benchmarks.hessian [--eigenvalues]

``--eigenvalues`` adds the step to all 10,000 eigenvalues (some minutes).
"""

import argparse

import torch

import resid_theory as rt
from benchmarks.timing import line, medians, once


def linear_problem() -> tuple[rt.ShortcutNet, rt.Regression]:
    """d = 10, 100 layers, 10,000 samples: P = 10,000."""
    generator = torch.Generator().manual_seed(0)
    net = rt.initialize(rt.ShortcutNet(10, 50, 2), "near_zero", generator=generator, scale=0.3)
    x, y = torch.randn(2, 10_000, 10, generator=generator, dtype=torch.float64)
    return net, rt.Regression(x, y)


def closed_form() -> None:
    """The closed form against writing memory."""
    net, data = linear_problem()
    size = net.weights.numel()
    times = medians(
        {
            "fill": lambda: torch.empty(size, size, dtype=torch.float64).fill_(1.0),
            "hessian": lambda: rt.hessian(net, "square", data),
            "matrix": lambda: rt.theory.linear_hessian(net, data.moments),
        },
        9,
    )
    print(f"P = {size}, 10,000 samples: {times['hessian']:.3f} s, fill_ {times['fill']:.3f} s")
    for name, what in (("hessian", "rt.hessian on the data"), ("matrix", "from the moments")):
        ratio = times[name] / times["fill"]
        line(f"{what} / fill_ of new memory", f"{ratio:.2f}", "<= 2")


def layer_pairs(act: str) -> None:
    """Products of layer pairs against columns, the route of any other net."""
    generator = torch.Generator().manual_seed(0)
    net = rt.initialize(rt.ShortcutNet(10, 10, 2, mid=act), "xavier", generator=generator)
    x, y = torch.randn(2, 2000, 10, generator=generator, dtype=torch.float64)
    data = rt.Regression(x, y)
    times = medians(
        {
            "pairs": lambda: rt.hessian(net, "square", data, method="layer_pairs"),
            "columns": lambda: rt.hessian(net, "square", data, method="columns"),
        },
        3,
    )
    ratio, pairs = times["columns"] / times["pairs"], times["pairs"]
    line(f"{act}, 20 layers: columns / layer pairs", f"{ratio:.1f}", f"pairs: {pairs:.2f} s")


def eigenvalues() -> None:
    """All eigenvalues against the solver alone."""
    net, data = linear_problem()
    matrix = [rt.hessian(net, "square", data)]
    solver = once(lambda: torch.linalg.eigvalsh(matrix.pop()))  # popped: its memory is needed
    whole = once(lambda: rt.hessian_spectrum(net, "square", data))
    what = "rt.hessian_spectrum / torch.linalg.eigvalsh, P = 10,000"
    line(what, f"{whole / solver:.3f}", f"<= 1.05 (eigvalsh: {solver:.0f} s)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--eigenvalues", action="store_true")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    closed_form()
    layer_pairs("relu")
    layer_pairs("tanh")
    if arguments.eigenvalues:
        eigenvalues()
