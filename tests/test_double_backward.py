"""Layers that are cheap to differentiate twice have the values and derivatives of torch's own."""

from contextlib import nullcontext

import oracles
import pytest
import torch
import torch.nn.functional as F
from tolerances import HESSIAN, relative_error
from torch import nn
from torch.overrides import TorchFunctionMode

import resid_theory as rt
from resid_theory.curvature.double_backward import CheapDoubleBackward

CONVOLUTIONS = {
    "plain": lambda x, w, b: F.conv2d(x, w),
    "bias": lambda x, w, b: F.conv2d(x, w, b),
    "stride-padding": lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=(1, 0)),
    "dilation": lambda x, w, b: F.conv2d(x, w, None, 1, 2, 2),
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
    "norm-batch": lambda x, w, b: F.batch_norm(
        x, STATS[0].clone(), STATS[1].clone(), b[:2], b[2:], training=True
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


def test_torchs_slow_second_derivatives_are_gone():
    net = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)).eval()
    with CheapDoubleBackward():
        out = net(torch.ones(1, 2, 4, 4))
    (grad,) = torch.autograd.grad(out.square().sum(), net[0].weight, create_graph=True)
    names, stack = set(), [grad.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in names:
            names.add(node)
            stack += [parent for parent, _ in node.next_functions]
    kinds = {node.name() for node in names}
    assert "_ConvolutionBackBackward" in kinds
    assert not any("NativeBatchNorm" in k or k.startswith("ConvolutionBackward") for k in kinds)


@pytest.mark.parametrize("dim", [0, 1, -1, None])
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


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_run_without_cudnn(kind):
    """cuDNN's backward cannot be differentiated; the flag is read when a layer is called."""
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func.__name__ in ("lstm", "gru", "rnn_tanh"):
                seen.append(torch.backends.cudnn.enabled)
            return func(*args, **(kwargs or {}))

    with Watch(), CheapDoubleBackward():
        kind(2, 3)(torch.zeros(4, 1, 2))
    assert seen == [False] and torch.backends.cudnn.enabled


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
