"""Speed of exact Hessians: every number is a ratio of two things timed in one run.

    python -m benchmarks.hessian [--eigenvalues]

``--eigenvalues`` adds the step to all 10,000 eigenvalues (some minutes).
"""

import argparse

import torch

import resid_theory as rt
from benchmarks.timing import line, medians, once
from resid_theory.losses import square


def linear_problem() -> tuple[rt.ShortcutNet, rt.Regression]:
    """d = 10, 100 layers, 10,000 samples: P = 10,000."""
    generator = torch.Generator().manual_seed(0)
    net = rt.initialize(rt.ShortcutNet(10, 50, 2), "near_zero", generator=generator, scale=0.3)
    x, y = torch.randn(2, 10_000, 10, generator=generator, dtype=torch.float64)
    return net, rt.Regression(x, y)


def seconds_per_column_of_autograd(net: rt.ShortcutNet, data: rt.Regression) -> float:
    """Of torch.autograd.functional.hessian, from the difference of two column counts."""
    flat = net.weights.detach().reshape(-1)

    def hessian(columns: int) -> object:
        def loss(head: torch.Tensor) -> torch.Tensor:
            weights = torch.cat([head, flat[columns:]]).view_as(net.weights)
            output = torch.func.functional_call(net, {"weights": weights}, (data.x,))
            return square(output, data.y)

        return torch.autograd.functional.hessian(loss, flat[:columns])

    few, many = 3, 23
    times = medians({"few": lambda: hessian(few), "many": lambda: hessian(many)}, 3)
    return (times["many"] - times["few"]) / (many - few)


def closed_form() -> None:
    """The closed form against writing memory, autograd and LAPACK."""
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
    column = seconds_per_column_of_autograd(net, data)
    line(
        "torch.autograd.functional.hessian (extrapolated) / rt.hessian",
        f"{column * size / times['hessian']:,.0f}",
        ">= 1,000",
    )


def layer_pairs(act: str) -> None:
    """Products of layer pairs against retained-graph columns."""
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
    single = once(lambda: one_at_a_time(net, data, 100)) * net.weights.numel() / 100
    line(
        f"{act}, 20 layers: retained-graph columns / layer pairs",
        f"{single / times['pairs']:.1f}",
        f">= 10 (layer pairs: {times['pairs']:.2f} s)",
    )
    line(
        f"{act}, 20 layers: columns in vmapped groups / layer pairs",
        f"{times['columns'] / times['pairs']:.1f}",
        "the library's own fallback",
    )


def one_at_a_time(net: rt.ShortcutNet, data: rt.Regression, count: int) -> None:
    """The first columns, one backward pass each on a retained graph."""
    operator = rt.curvature_operator(net, "square", data, engine="retained")
    for unit in torch.eye(operator.shape[0], dtype=torch.float64)[:count]:
        operator @ unit


def solver_seconds(net: rt.ShortcutNet, data: rt.Regression) -> float:
    """Of LAPACK alone; the matrix is gone when this returns."""
    matrix = rt.hessian(net, "square", data)
    return once(lambda: torch.linalg.eigvalsh(matrix))


def eigenvalues() -> None:
    """What all eigenvalues cost beyond the solver."""
    net, data = linear_problem()
    solver = solver_seconds(net, data)
    whole = once(lambda: rt.hessian_spectrum(net, "square", data))
    line(
        "rt.hessian_spectrum / torch.linalg.eigvalsh, P = 10,000",
        f"{whole / solver:.3f}",
        f"<= 1.05 (eigvalsh: {solver:.0f} s)",
    )


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
