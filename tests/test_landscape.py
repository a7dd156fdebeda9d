"""The loss along directions: against evaluations of changed nets."""

import copy
import itertools
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import resid_theory as rt
from resid_theory.curvature import filter_directions, loss_along


@pytest.fixture
def problem(conv_net, generator):
    x = torch.randn(7, 1, 3, 3, generator=generator, dtype=torch.float64)
    return conv_net, x, torch.tensor([0, 2, 1, 1, 0, 2, 2])


@pytest.mark.parametrize("options", [{}, {"chunk": 2, "engine": "rebuilt"}, {"weight_decay": 0.3}])
@pytest.mark.parametrize("parameters", [None, ["0.weight", "4.*"]])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_are_those_of_moved_nets(problem, options, parameters, reduction):
    net, x, y = problem
    y = y.clone()
    y[:2] = -100  # a batch without a label, whose own mean is no number
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    A = rt.curvature_operator(
        net, nn.CrossEntropyLoss(reduction=reduction), batches, parameters=parameters, **options
    )
    lines, steps = filter_directions(A, 2, generator=3), torch.tensor([-0.7, 0.0, 1.3])
    before = A @ lines
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    found = loss_along(A, lines, steps)
    assert all(torch.equal(kept[name], value) for name, value in net.state_dict().items())
    assert torch.equal(A @ lines, before)  # its graphs survive
    for row, parts in enumerate(zip(*A.split(lines).values(), strict=True)):
        for column, t in enumerate(steps.tolist()):
            moved = copy.deepcopy(net).eval()
            known = dict(moved.named_parameters())
            with torch.no_grad():
                for name, part in zip(A.names, parts, strict=True):
                    known[name] += t * part
                loss = F.cross_entropy(moved(x), y, reduction=reduction)
                decay = options.get("weight_decay", 0.0) / 2
                loss += decay * sum(known[name].square().sum() for name in A.names)
            assert found.losses[row, column].item() == pytest.approx(loss.item(), rel=1e-13)
    near = loss_along(A, lines, torch.tensor([1e-3]))
    gap = (near.losses - near.quadratic).abs().max()
    assert float(gap) <= 1e-5 < float((near.losses - near.loss).abs().min())


def test_a_row_for_each_direction_and_distance(problem):
    net, x, y = problem
    A = rt.curvature_operator(net, "cross_entropy", (x, y))
    lines, steps = filter_directions(A, 2), torch.tensor([-1.0, 0.5, 2.0])
    found = loss_along(A, lines, steps)
    matrix = A.dense()
    slopes, curvatures = A.gradient @ lines, (lines * (matrix @ lines)).sum(0)
    rows = [(k, t, found.losses[k, n], A.loss + slopes[k] * t + curvatures[k] * t * t / 2)
            for k in range(2) for n, t in enumerate(steps.tolist())]  # fmt: skip
    table = found.table()
    assert list(table) == ["direction", "distance", "loss", "quadratic"]
    for column, exact in zip(table.values(), zip(*rows, strict=True), strict=True):
        assert column.tolist() == pytest.approx([float(number) for number in exact], rel=1e-12)


def test_parameters_may_be_called_inputs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inputs = nn.Parameter(torch.randn(3, 2))

        def forward(self, x):
            return x @ self.inputs

    A = rt.curvature_operator(Net(), "square", (torch.randn(4, 3), torch.randn(4, 2)))
    assert filter_directions(A).shape == (6, 1)


def test_a_net_in_float32_moves_by_float64(problem):
    net, x, y = problem
    net, x = net.float(), x.float()
    A = rt.curvature_operator(net, "cross_entropy", (x, y), weight_decay=0.3)
    line, t = torch.linspace(0.3, 1.0, A.shape[0]).float(), 0.1
    found = loss_along(A, line, torch.tensor([t]).float())
    kept = torch.cat([p.detach().flatten() for p in net.parameters()])
    place = (kept.double() + float(torch.tensor(t).float()) * line.double()).float()
    torch.nn.utils.vector_to_parameters(place, net.parameters())
    moved = rt.curvature_operator(net, "cross_entropy", (x, y))
    # Sums in float64 that differ in order; those in float32 are the same.
    assert found.losses.item() == pytest.approx(moved.loss + 0.15 * float(
        place.double() @ place.double()), rel=1e-14)  # fmt: skip
    assert found.loss == pytest.approx(A.loss, rel=0)
    assert found.distances.dtype == torch.float64
    plain = 0.15 * float(kept.double() @ kept.double())
    torch.nn.utils.vector_to_parameters(kept, net.parameters())
    bare = rt.curvature_operator(net, "cross_entropy", (x, y))
    assert A.loss == pytest.approx(bare.loss + plain, rel=1e-15)
    torch.testing.assert_close(A.gradient, bare.gradient + 0.3 * kept.double(), rtol=1e-14, atol=0)


def test_filters_keep_their_lengths(problem):
    net, x, y = problem
    A = rt.curvature_operator(net, "cross_entropy", (x, y))
    parts, source = A.split(filter_directions(A, 4)), torch.Generator().manual_seed(0)
    for name, weight in net.named_parameters():
        drawn = torch.randn(4, *weight.shape, generator=source)
        if weight.dim() < 2:
            drawn.zero_()
        else:
            for direction, row in itertools.product(range(4), range(len(weight))):
                drawn[direction, row] *= weight[row].norm() / drawn[direction, row].norm()
        torch.testing.assert_close(parts[name], drawn.detach(), rtol=1e-14, atol=0)
    one = rt.curvature_operator(net, "cross_entropy", (x, y), parameters="4.weight")
    found, weight = filter_directions(one), dict(net.named_parameters())["4.weight"]
    assert found.shape == (weight.numel(), 1)
    assert torch.allclose(found.view(weight.shape).norm(dim=1), weight.norm(dim=1))
    again = filter_directions(A, 4, generator=1)
    assert not torch.equal(A.split(again)["4.weight"], parts["4.weight"])


def test_losses_of_nets_and_batches(problem):
    net, x, y = problem
    loss = rt.Loss(lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]), of="batch")
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    A, B = (rt.curvature_operator(net, of, batches) for of in (loss, "cross_entropy"))
    line, steps = torch.ones(A.shape[0], dtype=torch.float64), torch.tensor([0.1, 2.0])
    found, expected = (loss_along(operator, line, steps).losses for operator in (A, B))
    assert torch.allclose(found, expected, rtol=1e-13)


def test_wrong_calls(problem):
    net, x, y = problem
    A = rt.curvature_operator(net, "cross_entropy", (x, y))
    size = A.shape[0]
    for shape in ((3,), (size, 1, 1), (size, 0), ()):
        with pytest.raises(ValueError, match=re.escape(f"directions: got shape {shape}, needs (")):
            loss_along(A, torch.ones(shape), torch.ones(1))
    for shape in ((), (0,), (1, 1)):
        with pytest.raises(ValueError, match=re.escape(f"distances: got shape {shape}, needs (")):
            loss_along(A, torch.ones(size), torch.ones(shape))
    for place in (torch.inf, torch.nan):
        with pytest.raises(ValueError, match="^directions: "):
            loss_along(A, torch.full((size,), place), torch.ones(1))
        with pytest.raises(ValueError, match="^distances: "):
            loss_along(A, torch.ones(size), torch.full((1,), place))
    for call in (lambda B: loss_along(B, torch.ones(1), torch.ones(1)), filter_directions):
        with pytest.raises(ValueError, match="^A: got OperatorSum"):
            call(A.shift(1.0))
    biases = rt.curvature_operator(net, "cross_entropy", (x, y), parameters="*.bias")
    with pytest.raises(ValueError, match="^A: none of its parameters has filters"):
        filter_directions(biases)
    inputs = rt.curvature_operator(net, "cross_entropy", (x, y), wrt="inputs")
    with pytest.raises(ValueError, match="^A: stands for inputs"):
        filter_directions(inputs)
    with torch.no_grad():
        net[0].weight += 1
    with pytest.raises(ValueError, match="^net: changed after the operator was made"):
        loss_along(A, torch.ones(A.shape[0]), torch.ones(1))
