"""Norms that are written out, layers that are given by names, and what a graph knows of nodes."""

import pytest
import torch
from tolerances import relative_error, round_off
from torch import nn
from torch.nn import functional as F

import resid_theory as rt
from benchmarks.shortcut_nets import Apply, Residual
from resid_theory.equivalence.tracing import parts_of


def graph_of(net):
    graphs, refused = parts_of(net)
    assert not refused
    return graphs[""]


def mean(t):
    return t.mean(-1, keepdim=True)


def length(t):
    return t.norm(dim=-1, keepdim=True)


NORMS = {
    "root mean square": lambda t: t / (mean(t**2) + 1e-6).sqrt(),
    "its inverse": lambda t: t * torch.rsqrt(mean(t.square()) + 1e-6),
    "turned": lambda t: torch.rsqrt(mean(t.pow(2))) * t,
    "half a power": lambda t: t / mean(t.pow(2)) ** 0.5,
    "power by name": lambda t: t * torch.pow(mean(t**2), exponent=-0.5),
    "length": lambda t: t / length(t),
    "vector norm": lambda t: t / torch.linalg.vector_norm(t, dim=-1, keepdim=True),
    "sum": lambda t: t / (t**2).sum(-1).sqrt().unsqueeze(-1),
    "in double precision": lambda t: t * torch.rsqrt(mean(t.double().pow(2)) + 1e-6).to(t.dtype),
    "expanded": lambda t: t / t.norm(dim=-1).unsqueeze(-1).expand(5, 3),
    "function": lambda t: F.normalize(t, dim=-1),
    "layer": lambda t: F.layer_norm(t, (3,)),
}
UNBOUNDED = {
    "root of the length": lambda t: t / length(t).sqrt(),
    "root of a root": lambda t: t / mean(t**2).sqrt().sqrt(),
    "inverse root of the length": lambda t: t * length(t).rsqrt(),
    "mean square": lambda t: t * mean(t**2).sqrt(),
    "by its inverse": lambda t: t / torch.rsqrt(mean(t**2)),
    "times its length": lambda t: length(t) * t,
    "mean alone": lambda t: t / (mean(t).square() + 1e-6).sqrt(),
    "of the mean's sign": lambda t: t * torch.rsqrt(mean(t) ** 2),
    "inverse square": lambda t: t * torch.rsqrt(mean(t**-2)),
    "first power": lambda t: t / mean(t.pow(1)),
    "a function": lambda t: t / mean(t.exp()).sqrt(),
    "by its square": lambda t: t / mean(t**2),
    "fourth power": lambda t: t * torch.rsqrt(mean(t**4)),
    "by the stream": lambda t: length(t) / t,
    "square by the length": lambda t: t * length(t) ** -2,
}


def largest(function):
    """The largest value on small and on large inputs, also of mean 0, or of which one is 0."""
    x = torch.randn(5, 3)
    x[1] -= x[1].mean()
    x[2], x[3] = torch.tensor([0.0, 1.0, -1e-4]), -x[3].abs()
    return max(float(function(size * x).abs().max()) for size in (1e-8, 1e-4, 1, 1e4, 1e8))


@pytest.mark.parametrize("name", NORMS)
def test_norms_are_bounded(name):
    graph = graph_of(Apply(NORMS[name]))
    assert largest(NORMS[name]) < 2
    (end,) = (node for node in graph.bit if graph.kinds[node] == "norm")
    assert graph.is_bounded(end) and not graph.has_pole(end)
    assert rt.shortcuts(Residual(Apply(NORMS[name]), nn.Linear(3, 3))).answers == ("never",)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_what_only_looks_like_a_norm(name):
    function = UNBOUNDED[name]
    assert not largest(function) < 10
    assert "norm" not in graph_of(Apply(function)).kinds.values()
    assert rt.shortcuts(Residual(Apply(function), nn.Linear(3, 3))).answers == ("open",)


B = torch.tensor([1.0, -2.0, 3.0]).double()
W, K = torch.vander(B), torch.stack([torch.vander(B), torch.vander(2 * B), torch.vander(B - 1)])
NAMED = {
    "linear": lambda t: F.linear(input=t, weight=W, bias=B),
    "in another order": lambda t: F.linear(bias=B, weight=W, input=t),
    "half by name": lambda t: F.linear(t, bias=B, weight=W),
    "matmul": lambda t: torch.matmul(input=t, other=W),
    "mm": lambda t: torch.mm(t, mat2=W),
    "conv1d": lambda t: F.conv1d(
        groups=1, input=t, bias=B, padding=2, weight=K, dilation=2
    ),
    "places": lambda t: F.conv1d(t, K, B, 1, 2, 2, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_arguments_of_layers_by_place_and_by_name(name):
    net = nn.Sequential(Residual(Apply(NAMED[name])))
    x = torch.randn(5, 3, 7) if name in ("conv1d", "places") else torch.randn(5, 3)
    assert rt.shortcuts(net).answers == ("folds",)
    new = rt.absorb(net)
    assert isinstance(new[0], nn.Linear if x.dim() == 2 else nn.Conv1d)
    assert relative_error(new(x), net(x)) < round_off(50)


@pytest.mark.parametrize("turned", [lambda t: W @ t, lambda t: F.linear(W, t),
                                    lambda t: F.linear(input=W, weight=t)])  # fmt: skip
def test_a_product_with_the_stream_behind_is_no_layer(turned):
    assert rt.shortcuts(Residual(nn.Linear(3, 3), Apply(turned))).answers == ("open",)


@pytest.mark.parametrize("size", [lambda t: t.shape[0], lambda t: t.size(1), lambda t: t.dim()])
def test_a_factor_that_is_a_size_is_no_weight(size):
    net = Residual(nn.Linear(3, 3), Apply(lambda t: t * size(t)))
    assert rt.shortcuts(net).how == ("its function depends on sizes",)
    axes = Residual(nn.Conv1d(3, 3, 1), Apply(lambda t: t * t.shape[1]))  # always its channels
    assert rt.shortcuts(axes).answers == ("folds",)
