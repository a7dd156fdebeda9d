"""How exact Hessians and predictions are: the worst relative error over all nets of the tests.

PYTHONPATH=. python benchmarks/exactness.py
"""

import sys
from pathlib import Path

import torch
from timing import line

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import oracles
import test_agreement as nets
from tolerances import relative_error

import resid_theory as rt


def worst_route() -> dict[str, float]:
    """Every route against nested gradients, over ragged batches."""
    worst = dict.fromkeys(("auto", "layer_pairs", "columns"), 0.0)
    for case in nets.NETS:
        n, acts, shape, loss = case.values
        net, x, y = nets.make(n, acts, shape, torch.Generator().manual_seed(0))
        value = nets.LOSSES[loss](nets.oracle_output(net, x), y)
        exact = oracles.hessian_by_nested_gradients(value, list(net.parameters()))
        for method in worst:
            measured = rt.hessian(net, loss, [(x[:2], y[:2]), (x[2:], y[2:])], method=method)
            worst[method] = max(worst[method], relative_error(measured, exact))
    return worst


def worst_prediction() -> float:
    """Zero-point predictions against measured Hessians, in the paper's order."""
    worst = 0.0
    for case in nets.ZEROS:
        n, blocks, acts, shape, loss = case.values
        generator = torch.Generator().manual_seed(0)
        pre, mid, post = nets.SMOOTH[acts]
        options = {"pre": pre, "mid": mid, "post": post, **nets.ZERO_SHAPES[shape]}
        net = rt.ShortcutNet(4, blocks, n, **options)
        x, y = torch.randn(9, 4, generator=generator), nets.probabilities(9, 4, generator)
        point = rt.theory.zero_point((x, y), blocks=blocks, shortcut_depth=n, loss=loss, **options)
        order = net.definition5_order()
        measured = rt.hessian(net, loss, (x, y))[order][:, order]
        worst = max(worst, relative_error(point.hessian(), measured))
    return worst


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    for method, error in worst_route().items():
        line(
            f"{len(nets.NETS)} nets, {method} against nested gradients", f"{error:.1e}", "<= 1e-12"
        )
    line(f"{len(nets.ZEROS)} zero points against measured", f"{worst_prediction():.1e}", "<= 1e-12")
