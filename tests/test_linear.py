"""Linear nets from moments: against autograd, least squares and each other."""

import copy

import oracles
import pytest
import torch
from tolerances import HESSIAN, relative_error, round_off
from torch import nn

import resid_theory as rt
from resid_theory.theory import (
    Unit,
    linear_gradient,
    linear_hessian,
    linear_hvp,
    linear_loss,
    linear_optimum,
)

NETS = {
    "plain-1": (1, 1, False),
    "plain-6": (6, 1, False),
    "one": (4, 1, True),
    "single": (1, 1, True),
    "two": (3, 2, True),
    "three": (2, 3, True),
}


@pytest.fixture
def data(generator):
    return torch.randn(9, 3, generator=generator), torch.randn(9, 3, generator=generator)


def make(name, generator):
    blocks, n, shortcut = NETS[name]
    net = rt.ShortcutNet(3, blocks, n, shortcut=shortcut)
    return rt.initialize(net, "xavier", generator=generator)


@pytest.mark.parametrize("name", NETS)
def test_loss_and_derivatives_against_autograd(name, generator, data):
    net = make(name, generator)
    loss = oracles.square_loss(net(data[0]), data[1])
    (gradient,) = torch.autograd.grad(loss, net.weights, create_graph=True)
    exact = oracles.hessian_by_nested_gradients(loss, [net.weights])
    vectors = torch.randn(2, 4, len(exact), generator=generator)
    assert abs(linear_loss(net, data) - loss).item() <= round_off(20) * loss.item()
    assert relative_error(linear_gradient(net, data), gradient.flatten().detach()) <= 1e-13
    assert relative_error(linear_hessian(net, data), exact) <= HESSIAN
    assert relative_error(linear_hvp(net, data, vectors), vectors @ exact) <= HESSIAN


@pytest.mark.parametrize("form", ["net", "units", "matrices"])
def test_every_form_of_a_plain_net(form, generator, data):
    net = make("plain-6", generator)
    layers = net.layers()
    forms = {"net": net, "units": [Unit(tuple(layers[:2])), Unit(tuple(layers[2:]))]}
    given = forms.get(form, layers)
    assert torch.equal(linear_gradient(given, data), linear_gradient(net, data))


def test_float32_nets_are_taken_exactly_under_any_default(generator, data):
    net = make("two", generator).float()
    expected = linear_hessian(copy.deepcopy(net).double(), data)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(linear_hessian(net, data), expected)


def test_a_gpu_finds_the_same(cuda, generator, data):
    net = make("two", generator)
    there = copy.deepcopy(net).to(cuda)
    torch.set_default_dtype(torch.float32)
    assert abs(linear_loss(there, data).cpu() - linear_loss(net, data)) <= round_off(100)
    for found in (linear_gradient, linear_hessian):
        measured = found(there, data)
        assert measured.device.type == "cuda"
        assert relative_error(measured.cpu(), found(net, data)) <= HESSIAN


@pytest.mark.parametrize("slab", [1, 7, 1 << 17])
def test_the_hessian_does_not_depend_on_the_slab(slab, generator, data, monkeypatch):
    net = make("three", generator)
    expected = linear_hessian(net, data)
    monkeypatch.setattr("resid_theory.theory.linear.hessian_assembly._SLAB", slab)
    assert torch.equal(linear_hessian(net, data), expected)


@pytest.mark.parametrize("rank", [1, 3])
def test_optimum_is_the_residual_of_least_squares(rank, generator, data):
    x, y = data
    x = x[:, :rank] @ torch.randn(rank, 3, generator=generator)
    solution = torch.linalg.lstsq(x, y, driver="gelsd").solution
    expected = oracles.square_loss(x @ solution, y).item()
    # sums of squares cancel: relative to the loss of the zero map, not to the residual
    scale = oracles.square_loss(torch.zeros_like(y), y).item()
    for sizes in (torch.ones(3), torch.tensor([1e9, 1.0, 1e-9])):  # of inputs, in any units
        assert abs(linear_optimum((sizes * x, y)) - expected) <= round_off(100) * scale


def test_no_net_beats_the_optimum(generator, data):
    net = make("one", generator)
    assert linear_loss(net, data).item() > linear_optimum(data)
    best = torch.linalg.lstsq(*data).solution.T
    assert linear_loss([best], data).item() == pytest.approx(linear_optimum(data), rel=1e-12)


E = torch.eye(3, dtype=torch.float64)
W = torch.ones(2, 3, dtype=torch.float64)
REFUSED = {
    "empty": (lambda x, y: Unit(()), r"^weights: got shapes \[\]"),
    "unchained": (lambda x, y: Unit((W, W)), r"^weights: got shapes \[\(2, 3\), \(2, 3\)\]"),
    "axis": (lambda x, y: Unit((E[0],)), r"^weights: got shapes \[\(3,\)\]"),
    "batch": (lambda x, y: Unit((E[None],)), r"^weights: got shapes \[\(1, 3, 3\)\]"),
    "shortcut": (lambda x, y: Unit((W,), E), r"^shortcut: got shape \(3, 3\), needs \(2, 3\)"),
    "vector": (lambda x, y: linear_hvp([E], (x, y), E[0, :2]), r"^vector: .*needs \(..., 9\)"),
}  # fmt: skip
NO_NETS = {
    "activation": (rt.ShortcutNet(3, 1, 2, mid="relu"), "^net: .* has activations or a bias"),
    "bias": (rt.ShortcutNet(3, 1, 2, bias=True), "^net: .* has activations or a bias"),
    "module": (nn.Linear(3, 3), "^net: got Linear, needs a ShortcutNet"),
    "empty": ([], "^net: got list, needs"),
    "arrays": ([E.numpy()], "^net: got list, needs"),
    "unit first": ([Unit((E,)), E], "^net: got list, needs"),
    "matrix first": ([E, Unit((E,))], "^net: got list, needs"),
    "units": ([Unit((W,)), Unit((W,))], "^net: a unit gives width 2, the next one takes 3"),
    "width": (rt.ShortcutNet(2, 1, 2), "^data: has 3 targets and 3 inputs, the net maps 2 inputs"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=list(REFUSED))
def test_refusals(call, message, data):
    with pytest.raises(ValueError, match=message):
        call(*data)


@pytest.mark.parametrize("function", [linear_loss, linear_gradient, linear_hessian])
@pytest.mark.parametrize(("net", "message"), NO_NETS.values(), ids=list(NO_NETS))
def test_not_a_linear_net(net, message, function, data):
    with pytest.raises(ValueError, match=message):
        function(net, data)
