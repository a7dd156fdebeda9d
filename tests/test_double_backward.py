"""Layers that are cheap to differentiate twice have the values and derivatives of torch's own."""

from contextlib import nullcontext
from functools import partial

import oracles
import pytest
import torch
import torch.nn.functional as F
from tolerances import HESSIAN, assert_same, relative_error
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import resid_theory as rt
from resid_theory.curvature.double_backward import CheapDoubleBackward

CONVOLUTIONS = {
    "plain": lambda x, w, b: F.conv2d(x, w),
    "bias": lambda x, w, b: F.conv2d(x, w, b),
    "stride-padding": lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding=(1, 0)),
    "one-number": lambda x, w, b: F.conv2d(x, w, b, stride=[2], padding=(1,)),
    "dilation": lambda x, w, b: F.conv2d(x, w, None, 1, 2, (1, 2)),
    "groups": lambda x, w, b: F.conv2d(x, w[:, :1], b, groups=2),
    "one-axis": lambda x, w, b: F.conv1d(x.flatten(2), w.flatten(2), b, stride=(2,)),
    "three-axes": lambda x, w, b: F.conv3d(x[..., None], w[..., None], b, padding=[1, 1, 0]),
    "by-keyword": lambda x, w, b: F.conv2d(input=x, weight=w, bias=b, padding=1),
    "named-padding": lambda x, w, b: F.conv2d(x, w, b, padding="same"),
    "no-batch-axis": lambda x, w, b: F.conv2d(x[0], w, b),
    "constant-input": lambda x, w, b: F.conv2d(x.detach(), w, b),
    "constant-kernel": lambda x, w, b: F.conv2d(x, w.detach(), b),
    "vmapped": lambda x, w, b: torch.vmap(lambda one: F.conv2d(one[None], w, b)[0])(x),
    "norm": lambda x, w, b: F.batch_norm(x, STATS[0], STATS[1], w[0, :, 0, 0], b[:2]),
    "norm-bare": lambda x, w, b: F.batch_norm(x, STATS[0], STATS[1], eps=0.1),
    "norm-no-bias": lambda x, w, b: F.batch_norm(x, STATS[0], STATS[1], w[0, :, 1, 1]),
    "norm-matrix": lambda x, w, b: F.batch_norm(x[:, :, 0, 0], *STATS, b[:2], b[:2]),
    "norm-vmapped": lambda x, w, b: torch.vmap(
        lambda one: F.batch_norm(one[None], *STATS, b[:2], b[2:])[0]
    )(x),
    "norm-batch": lambda x, w, b: F.batch_norm(
        x, STATS[0].clone(), STATS[1].clone(), b[:2], b[2:], training=True, eps=0.1
    ),
    "norm-without-statistics": lambda x, w, b: F.batch_norm(
        x, None, None, b[:2], b[2:], training=True, momentum=0.0
    ),
}
STATS = (torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.5, 2.0]).double())


def inputs(device):
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 2, 5, 5), (4, 2, 3, 3), (4,)
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(device).requires_grad_()
        for s in shapes
    ]


def derivatives(call, given, together):
    """Value, gradient and products by three vectors; also the third derivative's along one."""
    value = call(*given).pow(3).sum()
    grads = torch.autograd.grad(value, given, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.reshape(-1) for g in grads])
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(3, len(flat), generator=generator, dtype=torch.float64).to(flat)
    options = {"materialize_grads": True, "retain_graph": True}
    if together:
        seconds = torch.autograd.grad(flat, given, vectors, is_grads_batched=True, **options)
        pairs = zip(seconds, given, strict=True)  # zeros come without the leading axis
        rows = [second.expand(3, *g.shape).reshape(3, -1) for second, g in pairs]
        return value, flat, torch.cat(rows, dim=1)
    rows = []
    for vector in vectors:
        parts = torch.autograd.grad(flat, given, vector, create_graph=True, **options)
        third = torch.autograd.grad(sum(p.square().sum() for p in parts), given, **options)
        rows.append(torch.cat([p.reshape(-1) for p in (*parts, *third)]))
    return value, flat, torch.stack(rows)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("together", [False, True], ids=["one-by-one", "together"])
def test_derivatives_are_torchs(name, together, device):
    global STATS
    STATS = tuple(s.to(device) for s in STATS)
    given = inputs(device)
    expected = derivatives(CONVOLUTIONS[name], given, together)
    with CheapDoubleBackward():
        value = CONVOLUTIONS[name](*given)
    torch.testing.assert_close(value, CONVOLUTIONS[name](*given), rtol=1e-13, atol=1e-13)

    def call(*parts):
        with CheapDoubleBackward():
            return CONVOLUTIONS[name](*parts)

    for one, other in zip(derivatives(call, given, together), expected, strict=True):
        assert relative_error(one.detach(), other.detach()) <= HESSIAN


class Convolutions(TorchDispatchMode):
    """Calls of convolutions, and of their backward the gradients that it computes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.found.append("forward")
        if func is torch.ops.aten.convolution_backward.default:
            self.found.append(tuple(args[-1]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("frozen", "expected"), [
    ((), ["forward"] * 3 + [(True, True, False)] * 2 + [(False, True, False)]),
    ((0,), ["forward"] + [(False, True, False)]),
    ((2,), ["forward"] * 2 + [(True, False, False)] + [(False, True, False)]),
], ids=["none", "first", "last"])  # fmt: skip
def test_a_product_takes_no_convolution_that_nothing_reads(frozen, expected):
    """Two for each gradient of the first pass, one where the other factor is constant."""
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 2))
    for number in frozen:
        net[number].requires_grad_(False)
    weights = [p for p in net.parameters() if p.requires_grad]
    with CheapDoubleBackward():
        value = net(torch.randn(2, 2, 4, 4)).pow(3).sum()
    gradient = torch.autograd.grad(value, weights, create_graph=True)
    with Convolutions() as calls:
        torch.autograd.grad(gradient, weights, [torch.ones_like(g) for g in gradient])
    assert sorted(calls.found, key=str, reverse=True) == expected


KINDS = {1: (nn.Conv1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.BatchNorm2d),
         3: (nn.Conv3d, nn.BatchNorm3d)}  # fmt: skip


@pytest.mark.parametrize("axes", KINDS)
def test_torchs_slow_second_derivatives_are_gone(axes):
    convolution, norm = KINDS[axes]
    net = nn.Sequential(convolution(2, 2, 3), norm(2)).eval()
    with CheapDoubleBackward():
        out = net(torch.ones(1, 2, *[4] * axes))
    (grad,) = torch.autograd.grad(out.square().sum(), net[0].weight, create_graph=True)
    names, stack = set(), [grad.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in names:
            names.add(node)
            stack += [parent for parent, _ in node.next_functions]
    kinds = {node.name() for node in names}
    assert {"_ConvolutionBackBackward", "_AffineBackBackward"} <= kinds
    assert not any("NativeBatchNorm" in k or k.startswith("ConvolutionBackward") for k in kinds)


def test_what_is_not_covered_is_torchs():
    norm, x = (
        nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3)).float().eval(),
        torch.ones(1, 2, 3, 3),
    )
    with torch.autocast("cpu", torch.bfloat16):
        expected = norm(x.float())
        with CheapDoubleBackward():
            assert_same(norm(x.float()), expected)
    assert expected.dtype == torch.bfloat16
    for statistics in ((None, STATS[1]), (STATS[0], None)):
        with CheapDoubleBackward(), pytest.raises(RuntimeError, match="running_"):
            F.batch_norm(x, *statistics)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_step_in_place_overwrites_what_it_is_given(inplace):
    x = torch.linspace(-5, 5, 11).requires_grad_()
    with CheapDoubleBackward():
        given = 2 * x
        found = F.hardsigmoid(given, inplace)
    assert (found is given) == inplace
    torch.testing.assert_close(found, F.hardsigmoid(2 * x))
    (slopes,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(slopes, ((2 * x).abs() < 3) / 3.0)


def test_directions_times_lengths_are_of_the_first_axis_unless_told():
    v, g = torch.randn(2, 3, 2), torch.randn(2, 1, 1)
    with CheapDoubleBackward():
        found, turned = torch._weight_norm(v, g), torch._weight_norm(v.mT, g, dim=0)
    torch.testing.assert_close((found, turned), (torch._weight_norm(v, g), found.mT))


def test_words_that_fill_have_no_gradient():
    weight, words = torch.randn(4, 2, requires_grad=True), torch.tensor([0, 2, 2, 1])
    with CheapDoubleBackward():
        found = F.embedding(words, weight, padding_idx=1, sparse=True)
    (slopes,) = torch.autograd.grad(found.sum(), weight)
    assert_same(slopes, torch.tensor([1.0, 0.0, 2.0, 0.0])[:, None].expand(4, 2))


@pytest.mark.parametrize("dim", [0, 1, -1, -2, None])
def test_normalized_weights_have_torchs_values_and_gradients(dim):
    # Not its second derivatives, which are wrong.
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 2, 2).double(), dim=dim)
    given = list(layer.parametrizations.weight.parameters())
    wanted = torch.linspace(-1, 1, 24).double().view(2, 3, 2, 2)
    values = []
    for mode in (nullcontext(), CheapDoubleBackward()):
        with mode:
            weight = layer.weight
        values.append([weight, *torch.autograd.grad((weight - wanted).square().sum(), given)])
    for one, other in zip(*values, strict=True):
        assert relative_error(one, other) <= HESSIAN


def test_batch_statistics_leave_the_running_ones_alone():
    norm = nn.BatchNorm2d(2)
    with CheapDoubleBackward():
        out = norm(torch.randn(3, 2, 4, 4))
    assert not norm.running_mean.any() and float(out.detach().mean().abs()) <= 1e-12


RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN,
             "rnn_relu": partial(nn.RNN, nonlinearity="relu")}  # fmt: skip


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_run_without_cudnn(kind, before):
    """cuDNN's backward cannot be differentiated; the flag is read when a layer is called."""
    seen, net = [], RECURRENT[kind](2, 3)

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func.__name__ == kind:
                seen.append(torch.backends.cudnn.enabled)
                raise RuntimeError("out of memory")
            return func(*args, **(kwargs or {}))

    with torch.backends.cudnn.flags(enabled=before):
        with Watch(), CheapDoubleBackward(), pytest.raises(RuntimeError, match="out of memory"):
            net(torch.zeros(4, 1, 2))
        assert seen == [False] and torch.backends.cudnn.enabled == before


def test_recurrent_functions_take_keywords():
    net, x, h = nn.GRU(2, 3), torch.randn(4, 1, 2), torch.zeros(1, 1, 3)
    given = {"has_biases": True, "num_layers": 1, "dropout": 0.0, "train": False}
    given |= {"bidirectional": False, "batch_first": False}
    with CheapDoubleBackward():
        found = torch.gru(x, h, list(net.parameters()), **given)
    assert_same(found, net(x))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_products_of_recurrent_layers(kind, device):
    """On a GPU torch's own second derivative is that without cuDNN."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.top = kind(2, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x):
            return self.top(self.layer(x)[0][:, -1])

    torch.manual_seed(0)
    net = Last().double().to(device)
    x, y = torch.randn(5, 4, 2, dtype=torch.float64).to(device), torch.arange(5).to(device) % 2
    with torch.backends.cudnn.flags(enabled=False):
        exact = oracles.hessian_by_nested_gradients(
            F.cross_entropy(net(x), y), list(net.parameters())
        )
    assert (
        relative_error(rt.curvature_operator(net, "cross_entropy", (x, y)).dense(), exact) < HESSIAN
    )
