"""Curvature in inputs and in a layer's outputs, against nested gradients."""

import oracles
import pytest
import torch
from tolerances import HESSIAN
from torch import nn

import resid_theory as rt


@pytest.fixture
def problem(conv_net, generator):
    x = torch.randn(5, 1, 3, 3, generator=generator, dtype=torch.float64)
    return conv_net.train(), x, torch.tensor([0, 2, 1, 1, 0])


def exact(net, x, y, layer, weights=None):
    """Hessian of the weighted mean at the inputs (layer 0) or at the outputs before ``layer``."""
    net.eval()
    point = net[:layer](x).detach().requires_grad_()
    losses = nn.functional.cross_entropy(net[layer:](point), y, reduction="none")
    weights = torch.ones(len(y), dtype=torch.float64) if weights is None else weights
    return oracles.hessian_by_nested_gradients((weights * losses).sum() / weights.sum(), [point])


@pytest.mark.parametrize(("wrt", "layer"), [("inputs", 0), ("0", 1), ("2", 3)])
@pytest.mark.parametrize("engine", ["retained", "rebuilt"])
def test_hessians_in_activations(problem, wrt, layer, engine):
    net, x, y = problem
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    net[-1].eval()
    modes = [part.training for part in net.modules()]
    A = rt.curvature_operator(net, "cross_entropy", batches, wrt=wrt, engine=engine, chunk=2)
    assert [part.training for part in net.modules()] == modes
    assert all(torch.equal(kept[n], v) for n, v in net.state_dict().items())
    expected = exact(net, x, y, layer)
    assert A.shape == expected.shape
    assert float((A.dense() - expected).norm()) <= HESSIAN * float(expected.norm())
    x.mul_(2)  # the operator keeps the inputs that it was made for
    assert float((A.dense() - expected).norm()) <= HESSIAN * float(expected.norm())
    name = "inputs" if wrt == "inputs" else "activations"
    assert A.split(A.gradient)[name].shape == net[:layer](x).shape


def test_weights_of_samples_and_other_matrices(problem):
    net, x, y = problem
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    data = rt.Data.of((x, y), sample_weight=weights)
    A = rt.curvature_operator(net, "cross_entropy", data, wrt="inputs")
    expected = exact(net, x, y, 0, weights)
    assert float((A.dense() - expected).norm()) <= HESSIAN * float(expected.norm())
    with torch.inference_mode():
        newton = rt.curvature_operator(net, "cross_entropy", (x, y), wrt="2", matrix="gauss_newton")
    expected = exact(net, x, y, 3)  # behind the last activation the net is linear
    assert float((newton.dense() - expected).norm()) <= HESSIAN * float(expected.norm())


def test_wrong_calls(problem):
    net, x, y = problem
    tokens = nn.Sequential(nn.Embedding(4, 2), nn.Flatten(), nn.Linear(6, 3)).double()
    ids = torch.tensor([[0, 1, 2], [3, 3, 1]])
    shared = nn.Linear(2, 2)
    rows = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 9)), nn.Linear(9, 3)).double()
    for call, words in (
        (lambda: rt.curvature_operator(net, "cross_entropy", (x, y), wrt="7"), "wrt: unknown"),
        (
            lambda: rt.curvature_operator(net, "cross_entropy", (x, y), wrt="0", weight_decay=1.0),
            "wrt: got '0' together",
        ),
        (
            lambda: rt.curvature_operator(tokens, "cross_entropy", (ids, y[:2]), wrt="inputs"),
            "data x: has 0 floating-point",
        ),
        (
            lambda: rt.curvature_operator(
                nn.Sequential(shared, shared), "square", (x[:, 0, :2, 0], x[:, 0, :2, 0]), wrt="0"
            ),
            "wrt: module '0' runs 2 times",
        ),
        (
            lambda: rt.curvature_operator(rows, "cross_entropy", (x, y), wrt="0"),
            "wrt: module '0' gives shape",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    embedded = rt.curvature_operator(tokens, "cross_entropy", (ids, y[:2]), wrt="0")
    assert embedded.shape == (12, 12)


class Beside(nn.Module):
    """A net with a module whose outputs nothing reads."""

    def __init__(self, function):
        super().__init__()
        self.odd, self.layer = nn.Module(), nn.Linear(4, 3)
        self.odd.forward = function

    def forward(self, x, *_more):
        self.odd(x)
        return self.layer(x)


ODD = {
    "two": (lambda x: (x, x), "tuple"), "none": (lambda x: x.sum(), "shape ()"),
    "whole numbers": (lambda x: x.long(), "shape (2, 4)"), "one": (lambda x: x[:1], "shape (1, 4)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_outputs_that_are_no_rows_of_samples_are_refused(name, generator):
    function, given = ODD[name]
    x, y = torch.randn(5, 4, generator=generator), torch.zeros(5, 3)
    with pytest.raises(ValueError) as caught:
        rt.curvature_operator(Beside(function), "square", (x, y), wrt="odd")
    needed = "one floating-point tensor with a row for each sample"
    assert str(caught.value) == f"wrt: module 'odd' gives {given} for 2 samples, needs {needed}"
    with pytest.raises(ValueError, match=f"^data x: has 2 floating-point tensors, needs {needed}"):
        rt.curvature_operator(Beside(function), "square", ((x, x), y), wrt="inputs")
    for options in ({"parameters": "layer.*"}, {"weight_decay": 0.1}):
        with pytest.raises(ValueError, match="^wrt: got 'inputs' together with parameters or wei"):
            rt.curvature_operator(Beside(function), "square", (x, y), wrt="inputs", **options)
