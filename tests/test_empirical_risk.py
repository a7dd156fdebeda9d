"""One loss by every route: whatever it divides by, however data are batched, whatever nets take."""

from collections import UserDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from tolerances import HESSIAN, relative_error
from torch import nn
from torch.distributions import Independent, Normal
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import resid_theory as rt
from resid_theory.curvature.empirical_risk import EmpiricalRisk

M, K = 8, 3
SIZES = (4, 1, 3)
FACTORS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


class Net(nn.Module):
    """A function of two linear layers."""

    def __init__(self, forward, features=4):
        super().__init__()
        self.a, self.b = nn.Linear(features, 3), nn.Linear(3, K)
        self.function = forward

    def forward(self, *inputs, **named):
        return self.function(self, *inputs, **named)

    def logits(self, x):
        return self.b(torch.tanh(self.a(x)))


def mlp():
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, K))


@dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor


def fields(net, x):
    return Output(net.logits(x), net.a(x))


def square_of_both(output, target):
    """A sum over the fields of an output."""
    error = (output.logits - target).square().sum() + output.hidden.square().sum()
    return error / (2 * len(target))


def flat(function):
    return lambda o, t: function(o.flatten(0, 1), t.flatten())


def numbers(*shape, seed=0):
    return oracles.noise(*shape, seed=seed).double()


LABELS = torch.tensor([0, 2, 1, 1, 0, 0, 2, 0])
PADDED = torch.tensor([0, 2, -100, 1, -100, 0, -100, 2])  # a batch of ignored labels alone
TOKENS = torch.randint(K, (M, 2), generator=torch.Generator().manual_seed(1))
HOLED = torch.where(
    torch.tensor([[True, False]]) & (torch.arange(M) % 3 == 0)[:, None], -100, TOKENS
)
VALUES, VECTORS, TIMES = numbers(M, K, seed=2), numbers(M, 4), numbers(M, 2, 4, seed=3)

# A net, its inputs, a loss, targets, and the weights of the samples ("sum": ones, and no mean).
ONES = torch.ones(M, dtype=torch.float64)
RISKS = {
    "class weights": (
        mlp, VECTORS, lambda o, t: F.cross_entropy(o, t, FACTORS), LABELS, FACTORS[LABELS],
    ),
    "class weights of torch": (
        mlp, VECTORS, nn.CrossEntropyLoss(FACTORS, label_smoothing=0.1), LABELS, FACTORS[LABELS],
    ),
    "ignored labels": (mlp, VECTORS, nn.CrossEntropyLoss(), PADDED, (PADDED >= 0).double()),
    "ignored labels, measured": (
        mlp, VECTORS, lambda o, t: F.cross_entropy(o, t), PADDED, (PADDED >= 0).double(),
    ),
    "sum": (mlp, VECTORS, nn.CrossEntropyLoss(reduction="sum"), LABELS, "sum"),
    "sum, measured": (mlp, VECTORS, lambda o, t: (o - t).cosh().sum(), VALUES, "sum"),
    "tokens": (lambda: Net(Net.logits), TIMES, "cross_entropy", TOKENS, ONES),
    "tokens with padding": (
        lambda: Net(Net.logits), TIMES, "cross_entropy", HOLED, (HOLED >= 0).sum(1).double(),
    ),
    "flattened tokens": (
        lambda: Net(lambda net, x: net.logits(x).flatten(0, 1)), TIMES,
        lambda o, t: F.cross_entropy(o, t.flatten()), HOLED, (HOLED >= 0).sum(1).double(),
    ),
    "time first": (
        lambda: Net(lambda net, x: net.logits(x).transpose(0, 1)), TIMES,
        lambda o, t: F.cross_entropy(o.flatten(0, 1), t.T.flatten()), TOKENS, ONES,
    ),
    "dict": (
        lambda: Net(lambda net, x: {"logits": net.logits(x), "temperature": 2.0}), VECTORS,
        lambda o, t: F.cross_entropy(o["logits"] / o["temperature"], t), LABELS, ONES,
    ),
    "dataclass": (lambda: Net(fields), VECTORS, square_of_both, VALUES, ONES),
    "two inputs": (
        lambda: Net(lambda net, x, scale: net.logits(x) * scale), (VECTORS, numbers(M, 1, seed=4)),
        "square", VALUES, ONES,
    ),
    "named inputs": (
        lambda: Net(lambda net, *, x, scale: net.logits(x) * scale),
        {"scale": numbers(M, 1, seed=4), "x": VECTORS}, "square", VALUES, ONES,
    ),
}  # fmt: skip


def called(net, x):
    if isinstance(x, dict):
        return net(**x)
    return net(*x) if isinstance(x, tuple) else net(x)


def rows(x, part):
    if isinstance(x, dict):
        return {key: value[part] for key, value in x.items()}
    return tuple(value[part] for value in x) if isinstance(x, tuple) else x[part]


def function_of(loss):
    """The same in torch's own functions."""
    if loss == "square":
        return oracles.square_loss
    if loss == "cross_entropy":
        return lambda o, t: F.cross_entropy(o.flatten(0, -2), t.flatten())
    return loss


def batched(x, y, order=None):
    order = torch.arange(M) if order is None else order
    return [(rows(x, part), y[part]) for part in order.split(SIZES)]


@pytest.mark.parametrize("name", RISKS)
def test_every_route_gives_the_loss_of_the_whole_set(name):
    make, x, loss, y, _ = RISKS[name]
    net, function = make(), function_of(loss)
    parameters = list(net.parameters())
    value = function(called(net, x), y)
    exact = oracles.hessian_by_nested_gradients(value, parameters)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters)])
    by_label = y.reshape(M, -1)[:, 0].argsort(stable=True)
    for order, engine, chunk in ((None, "retained", None), (by_label, "rebuilt", 2)):
        data = batched(x, y, order)
        assert relative_error(rt.hessian(net, loss, data), exact) <= HESSIAN
        made = rt.curvature_operator(net, loss, data, engine=engine, chunk=chunk)
        assert made.loss == pytest.approx(value.item(), rel=1e-13)
        assert relative_error(made.gradient, gradient) <= HESSIAN
        assert relative_error(made.dense(), exact) <= HESSIAN


@pytest.mark.parametrize("name", RISKS)
def test_gauss_newton_and_fisher_of_the_whole_set(name):
    make, x, loss, y, weights = RISKS[name]
    net, function = make(), function_of(loss)
    parameters = list(net.parameters())
    data = batched(x, y)
    if name not in ("dict", "dataclass"):
        exact = oracles.gauss_newton_by_jacobians(
            called(net, x), lambda z: function(z, y), parameters
        )
        made = rt.curvature_operator(net, loss, data, matrix="gauss_newton", chunk=3)
        assert relative_error(made.dense(), exact) <= HESSIAN
    total = 0.0
    for i in range(M):
        one = torch.tensor([i])
        if isinstance(weights, str) or weights[i]:
            own = oracles.fisher_by_samples(
                [function(called(net, rows(x, one)), y[one])], parameters
            )
            total = total + (own if isinstance(weights, str) else weights[i] / weights.sum() * own)
    made = rt.curvature_operator(net, loss, data, matrix="empirical_fisher", chunk=3)
    assert relative_error(made.dense(), total) <= HESSIAN


@pytest.mark.parametrize("method", ["auto", "columns"])
def test_batches_of_several_shapes(method):
    net, data = Net(Net.logits), [(TIMES, HOLED), (numbers(1, 5, 4, seed=5), TOKENS[:5, :1].T)]
    losses = [F.cross_entropy(net(x).flatten(0, 1), y.flatten(), reduction="sum") for x, y in data]
    value = sum(losses) / sum(int((y >= 0).sum()) for _, y in data)
    exact = oracles.hessian_by_nested_gradients(value, list(net.parameters()))
    assert relative_error(rt.hessian(net, "cross_entropy", data, method=method), exact) <= HESSIAN
    wrong = [data[0], (data[1][0], TOKENS[:2, :1].T)]
    with pytest.raises(ValueError, match=r"^data y: got labels of shape \(1, 2\), needs"):
        rt.hessian(net, "cross_entropy", wrong, method=method)


# -- weights of the caller -------------------------------------------------------------------------

COPIES = torch.tensor([1, 2, 0, 3, 1, 1, 2, 1])
WEIGHTED = {
    "object": lambda x, y: SimpleNamespace(x=x, y=y, sample_weight=COPIES),
    "whole": lambda x, y: rt.Data.of((x, y), sample_weight=COPIES),
    "triples": lambda x, y: rt.Data.of(
        DataLoader(TensorDataset(x, y, COPIES.double()), batch_size=3), sample_weight=True
    ),
}


@pytest.mark.parametrize("turn", range(3))
def test_a_sample_of_weight_two_counts_like_two(turn):
    make, x, loss, y, _ = RISKS[("class weights", "ignored labels", "sum")[turn]]
    net, twice = make(), (x.repeat_interleave(COPIES, 0), y.repeat_interleave(COPIES, 0))
    # Each call takes each form of weights, with one of the losses.
    given = [give(x, y) for give in WEIGHTED.values()]
    given = given[turn:] + given[:turn]
    exact = rt.hessian(net, loss, twice, method="columns")
    for data, method in zip(given, ("layer_pairs", "columns"), strict=False):
        assert relative_error(rt.hessian(net, loss, data, method=method), exact) <= HESSIAN, method
    for data, matrix in zip(given, ("hessian", "gauss_newton", "empirical_fisher"), strict=True):
        expected = rt.curvature_operator(net, loss, twice, matrix=matrix)
        made = rt.curvature_operator(net, loss, data, matrix=matrix)
        assert made.loss == pytest.approx(expected.loss, rel=1e-13), matrix
        assert relative_error(made.dense(), expected.dense()) <= HESSIAN, matrix


@pytest.mark.parametrize("name", ["class weights", "sum"])
def test_a_batch_may_weigh_nothing(name):
    make, x, loss, y, _ = RISKS[name]
    net, some = make(), torch.tensor([0.0, 0.0, 0.0, 1.0, 0.5, 0.0, 2.0, 0.0])
    rows = some > 0
    exact = rt.hessian(net, loss, rt.Data.of((x[rows], y[rows]), sample_weight=some[rows]))
    data = rt.Data.of(
        [(x[part], y[part], some[part]) for part in torch.arange(M).split([3, 5])],
        sample_weight=True,
    )
    for method in ("layer_pairs", "columns"):
        assert relative_error(rt.hessian(net, loss, data, method=method), exact) <= HESSIAN
    measured = rt.curvature_operator(net, loss, data, engine="rebuilt", chunk=1)
    assert relative_error(measured.dense(), exact) <= HESSIAN


# -- what the loss reaches -------------------------------------------------------------------------


def test_weight_decay_in_the_loss_is_kept_by_every_route():
    net, data = mlp(), batched(VECTORS, LABELS)

    def decayed(output, target):
        return F.cross_entropy(output, target, FACTORS) + 0.05 * sum(
            p.square().sum() for p in net.parameters()
        )

    plain = RISKS["class weights"][2]
    eye = 0.1 * torch.eye(27)
    assert (
        relative_error(rt.hessian(net, decayed, data), rt.hessian(net, plain, data) + eye)
        <= HESSIAN
    )
    for matrix in ("hessian", "gauss_newton"):
        made = rt.curvature_operator(net, decayed, data, matrix=matrix, chunk=2)
        exact = rt.curvature_operator(net, plain, data, matrix=matrix)
        assert relative_error(made.dense(), exact.dense() + eye) <= HESSIAN
    with pytest.raises(ValueError, match="^matrix: 'empirical_fisher' needs gradients .*weight"):
        rt.curvature_operator(net, decayed, data, matrix="empirical_fisher")
    with pytest.raises(ValueError, match="^method: 'layer_pairs' needs .* sees outputs only"):
        rt.hessian(net, decayed, data, method="layer_pairs")


def test_a_net_that_is_cut_off_leaves_the_part_beside_it():
    net = mlp()

    def decayed(output, target):
        return (output - target).square().mean() + net[0].weight.pow(4).sum()

    net.register_forward_hook(lambda module, inputs, output: output.detach())
    made = rt.curvature_operator(
        net, decayed, (VECTORS, VALUES), matrix="gauss_newton", parameters="0.weight"
    )
    exact = 12 * net[0].weight.detach().square().flatten()
    assert relative_error(made.dense(), exact.diag()) <= HESSIAN
    with pytest.raises(ValueError, match="^net: the loss depends on '0.bias', '2.weight'"):
        rt.curvature_operator(net, decayed, (VECTORS, VALUES), matrix="gauss_newton")


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_weight_decay_in_a_sum_counts_once(matrix):
    net, data = mlp(), batched(VECTORS, VALUES)

    def decayed(output, target):
        return (output - target.sin()).pow(4).sum() + 0.05 * sum(
            p.square().sum() for p in net.parameters()
        )

    value = decayed(net(VECTORS), VALUES)
    eye, parameters = 0.1 * torch.eye(27), list(net.parameters())
    exact = oracles.hessian_by_nested_gradients(value, parameters)
    if matrix == "gauss_newton":
        exact = eye + oracles.gauss_newton_by_jacobians(
            net(VECTORS), lambda z: (z - VALUES.sin()).pow(4).sum(), parameters
        )
    for chunk in (None, 2):
        made = rt.curvature_operator(net, decayed, data, matrix=matrix, chunk=chunk)
        assert relative_error(made.dense(), exact) <= HESSIAN
        assert made.loss == pytest.approx(value.item(), rel=1e-13)
    weighted = rt.Data.of((VECTORS, VALUES), sample_weight=COPIES)
    with pytest.raises(ValueError, match="^sample_weight: the loss is a sum with a part that it"):
        rt.curvature_operator(net, decayed, weighted, matrix=matrix)


@pytest.mark.parametrize("gap", [1e-4, 1e-9])
def test_a_sum_is_one_where_the_net_fits(gap):
    net = mlp()
    target = net(VECTORS).detach() + gap

    def squares(output, target):
        return (output - target).square().sum()

    exact = oracles.hessian_by_nested_gradients(
        squares(net(VECTORS), target), list(net.parameters())
    )
    for data in ((VECTORS, target), batched(VECTORS, target)):
        assert relative_error(rt.curvature_operator(net, squares, data).dense(), exact) <= HESSIAN


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton", "empirical_fisher"])
def test_weight_decay_adds_to_the_diagonal(matrix):
    net, data = mlp(), batched(VECTORS, LABELS)
    plain = rt.curvature_operator(net, "cross_entropy", data, matrix=matrix, parameters="0.*")
    made = rt.curvature_operator(
        net, "cross_entropy", data, matrix=matrix, parameters="0.*", weight_decay=0.3
    )
    point = torch.cat([net[0].weight.reshape(-1), net[0].bias]).detach()
    assert relative_error(made.dense(), plain.dense() + 0.3 * torch.eye(15)) <= HESSIAN
    assert relative_error(made.gradient, plain.gradient + 0.3 * point) <= HESSIAN
    assert made.loss == pytest.approx(plain.loss + 0.15 * float(point @ point), rel=1e-13)
    block = made.block("0.weight", "0.*").dense()
    assert relative_error(block, made.dense()[:12]) <= HESSIAN
    report = rt.spectrum(net, "cross_entropy", data, k=1, matrix=matrix, weight_decay=0.3)
    bare = rt.spectrum(net, "cross_entropy", data, k=1, matrix=matrix)
    assert report.matrix == matrix
    assert report.largest[0].value == pytest.approx(bare.largest[0].value + 0.3, rel=1e-12)


@pytest.mark.parametrize("method", ["closed_form", "layer_pairs", "columns"])
def test_weight_decay_of_dense_hessians(method):
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, K, bias=False))
    data = batched(VECTORS, VALUES)
    found = rt.hessian(net, "square", data, method=method, weight_decay=0.3)
    exact = rt.hessian(net, "square", data, method=method) + 0.3 * torch.eye(21)
    assert relative_error(found, exact) <= HESSIAN
    lifted = rt.hessian_spectrum(net, "square", data, method=method, weight_decay=0.3)
    assert lifted.largest == pytest.approx(float(torch.linalg.eigvalsh(exact)[-1]), rel=1e-12)


def test_a_loss_that_is_linear_in_the_outputs_is_told_of():
    net = nn.Sequential(mlp(), nn.LogSoftmax(1))
    report = rt.spectrum(net, nn.NLLLoss(), (VECTORS, LABELS), k=1, matrix="gauss_newton")
    assert report.largest[0].value == 0.0 and "linear in the outputs" in str(report)


# -- samples that know each other ------------------------------------------------------------------


def normed():
    norm = nn.BatchNorm1d(3, track_running_stats=False)
    return nn.Sequential(nn.Linear(4, 3), norm, nn.Tanh(), nn.Linear(3, K))


def contrast(output, target):
    same = (target[:, None] == target[None]).to(output.dtype)
    return -((output @ output.T).log_softmax(1) * same).sum() / same.sum()


def running(net, x):
    """Every sample sees those before it."""
    return torch.tanh(net.a(x)).cumsum(0) @ net.b.weight.T


def centred(net, x):
    return torch.tanh(net.logits(x) - 2e-4 * net.logits(x).mean(0))  # little, far from round-off


COUPLED = {
    "net, centred": (lambda: Net(centred), F.cross_entropy, "^net: its samples know each other"),
    "net, one way": (lambda: Net(running), F.cross_entropy, "^net: its samples know each other"),
    "net": (normed, F.cross_entropy, "^net: its samples know each other"),
    "one number": (
        lambda: Net(lambda net, x: torch.tanh(net.logits(x)).mean()),
        lambda output, _: output.exp(), "^loss: needs a mean, a weighted mean or a sum",
    ),
    "own weight": (
        lambda: Net(lambda net, x: net.b.bias),
        lambda output, _: output.exp().sum(),
        "^loss: needs a mean, a weighted mean or a sum",
    ),
    "loss": (mlp, contrast, "^loss: needs a mean, a weighted mean or a sum"),
}  # fmt: skip


@pytest.mark.parametrize("kind", COUPLED)
def test_samples_that_know_each_other_stay_together(kind):
    make, loss, message = COUPLED[kind]
    net, x, y = make(), VECTORS, LABELS
    value = loss(net(x), y)
    exact = oracles.hessian_by_nested_gradients(value, list(net.parameters()))
    newton = oracles.gauss_newton_by_jacobians(net(x), lambda z: loss(z, y), list(net.parameters()))
    made = rt.curvature_operator(net, loss, (x, y))
    assert made.loss == pytest.approx(value.item(), rel=1e-13) and made.chunk is None
    assert relative_error(rt.hessian(net, loss, (x, y)), exact) <= HESSIAN
    assert relative_error(made.dense(), exact) <= HESSIAN
    made = rt.curvature_operator(net, loss, (x, y), matrix="gauss_newton", engine="rebuilt")
    assert relative_error(made.dense(), newton) <= HESSIAN
    for call in (rt.hessian, rt.hessian_spectrum, rt.spectrum, rt.curvature_operator):
        for sizes in ([4, 1, 3], [1] * M, [2, 2, 2, 2]):
            parts = list(zip(x.split(sizes), y.split(sizes), strict=True))
            with pytest.raises(ValueError, match=f'{message}.*pass all in one batch .*of="batch"'):
                call(net, loss, parts)
    with pytest.raises(ValueError, match=f"{message}.*pass all in one batch"):
        rt.evaluate(net, parts, loss=loss)
    with pytest.raises(ValueError, match="^chunk: got 3, but a batch of 8 samples cannot be split"):
        rt.curvature_operator(net, loss, (x, y), chunk=3)
    with pytest.raises(
        ValueError, match="^matrix: 'empirical_fisher' needs a net and a loss that treat every"
    ):
        rt.curvature_operator(net, loss, (x, y), matrix="empirical_fisher")
    assert rt.curvature_operator(net, loss, (x, y), chunk=M).chunk is None
    with pytest.raises(ValueError, match="^sample_weight: needs a net and a loss that treat every"):
        rt.hessian(net, loss, rt.Data.of((x, y), sample_weight=COPIES))


def late(output, target):
    """Compares samples, but only where a rare label is there: 16 samples may not show it."""
    both = output.mean(0).square().sum() if (target == 2).any() else 0.0
    return F.cross_entropy(output, target) + both


@pytest.mark.parametrize("kind", ["edges", "sparse"])
def test_nodes_of_a_graph_stay_together(kind, left_alone):
    ends = torch.arange(M), torch.arange(M).flip(0)  # an edge from each node to another one
    adjacency = torch.sparse_coo_tensor(torch.stack(ends), ONES, check_invariants=True)

    def forward(net, x, edges=None):
        hidden = torch.tanh(net.a(x))
        return net.b(torch.sparse.mm(net.adjacency, hidden) if edges is None else hidden[edges[1]])

    net = Net(forward)
    net.register_buffer("adjacency", adjacency)
    x = VECTORS if kind == "sparse" else (VECTORS, torch.stack(ends))
    parameters = list(net.parameters())
    output = net.b(torch.tanh(net.a(VECTORS)).flip(0))
    exact = oracles.hessian_by_nested_gradients(F.cross_entropy(output, LABELS), parameters)
    with left_alone(net):
        assert relative_error(rt.hessian(net, "cross_entropy", (x, LABELS)), exact) <= HESSIAN
        found = rt.evaluate(net, (x, LABELS))
    assert found.loss == pytest.approx(F.cross_entropy(output, LABELS).item(), rel=1e-13)
    assert found.wrong[1] == int((output.argmax(1) != LABELS).sum())
    for call in (rt.hessian, rt.curvature_operator):
        with pytest.raises(
            ValueError, match="^net: takes the samples of a batch only all together"
        ):
            call(net, "cross_entropy", [(x, LABELS)] * 2)
    with pytest.raises(ValueError, match="^data x: the net does not take samples of shape"):
        rt.curvature_operator(net, "cross_entropy", (x, LABELS), wrt="a")


def test_outputs_that_all_samples_share_are_part_of_a_mean():
    net = Net(lambda net, x: (net.logits(x), net.a.bias.square().sum()))

    def loss(output, target):
        return F.cross_entropy(output[0] * output[1].exp(), target) + output[1]

    value = loss(net(VECTORS), LABELS)
    exact = oracles.hessian_by_nested_gradients(value, list(net.parameters()))
    parts = [(VECTORS[:3], LABELS[:3]), (VECTORS[3:], LABELS[3:])]
    assert relative_error(rt.hessian(net, loss, parts), exact) <= HESSIAN
    assert rt.evaluate(net, parts, loss=loss).loss == pytest.approx(value.item(), rel=1e-13)
    with pytest.raises(ValueError, match="^matrix: 'empirical_fisher' needs .* all samples share"):
        rt.curvature_operator(net, loss, parts, matrix="empirical_fisher")
    balanced = Net(lambda net, x: (net.logits(x), net.logits(x).softmax(1).mean(0).square().sum()))
    for call in (rt.hessian, rt.evaluate):
        with pytest.raises(ValueError, match="^net: gives all samples of a batch an output that d"):
            call(balanced, data=parts, loss=loss)


def test_a_loss_that_compares_samples_later_on():
    net = mlp()
    x, y = numbers(40, 4), torch.arange(40) % 2
    y[3] = 2  # not among those that are looked at first
    value = late(net(x), y)
    exact = oracles.hessian_by_nested_gradients(value, list(net.parameters()))
    assert relative_error(rt.hessian(net, late, (x, y)), exact) <= HESSIAN
    made = rt.curvature_operator(net, late, (x, y))
    assert relative_error(made.dense(), exact) <= HESSIAN and made.chunk is None
    assert made.loss == pytest.approx(value.item(), rel=1e-13) and made.samples == 40
    for data, options in (((x, y), {"chunk": 8}), ([(x[:2], y[:2]), (x[2:], y[2:])], {})):
        with pytest.raises(ValueError, match="^loss: needs a mean"):
            rt.curvature_operator(net, late, data, **options)


def score(net, x):
    return torch.func.vmap(torch.func.grad(lambda row: net.logits(row)[0].sin()))(x)[:, :K]


def slope(net, x):
    return torch.func.jvp(lambda x: net.logits(x), (x,), (torch.ones_like(x),))[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in its jvp
@pytest.mark.parametrize("forward", [score, slope])
def test_derivatives_by_torch_func_inside_a_net(forward):
    """It lets no hooks count what a graph holds, or hands tensors without storage to them."""
    net = Net(forward)
    exact = oracles.hessian_by_nested_gradients(
        F.cross_entropy(net(VECTORS), LABELS), list(net.parameters())
    )
    found = rt.curvature_operator(net, F.cross_entropy, (VECTORS, LABELS)).dense()
    assert relative_error(found, exact) <= HESSIAN


def trimmed(net, x):
    return net.logits(x[:, : int((x != 0).any(2).sum(1).max())])


def test_ends_of_a_batch_may_have_less_padding():
    net, x, y = Net(trimmed), numbers(6, 3, 4), torch.arange(18).view(6, 3) % K
    x[[3, 5], 1:], y[[3, 5], 1:] = 0.0, -100
    exact = oracles.hessian_by_nested_gradients(
        F.cross_entropy(net(x).flatten(0, 1), y.flatten()), list(net.parameters())
    )

    def loss(output, target):
        return F.cross_entropy(output.flatten(0, 1), target[:, : output.shape[1]].flatten())

    parts = [(x[:3], y[:3]), (x[3:], y[3:])]
    assert relative_error(rt.curvature_operator(net, loss, parts).dense(), exact) <= HESSIAN
    assert rt.evaluate(net, parts, loss=loss).samples == 6


def limited(net, x):
    """An expert that takes the first 20 samples: few do not show it."""
    return net.logits(x).index_add(0, torch.arange(len(x))[:20], net.logits(x[:20]).tanh())


@pytest.mark.parametrize("kind", ["net", "loss"])
def test_what_few_samples_do_not_show_is_no_part_of_a_mean(kind):
    net = Net(limited) if kind == "net" else mlp()
    weight = torch.tensor([1.0, 2.0, 0.0]).double()  # smoothed labels of class 2 have a loss over 0
    loss = F.cross_entropy if kind == "net" else nn.CrossEntropyLoss(weight, label_smoothing=0.2)
    x, y = numbers(40, 4), torch.arange(40) % 3
    y[30:] = 2
    value = loss(net(x), y)
    exact = oracles.hessian_by_nested_gradients(value, list(net.parameters()))
    made = rt.curvature_operator(net, loss, (x, y))
    assert relative_error(made.dense(), exact) <= HESSIAN
    assert rt.evaluate(net, (x, y), loss=loss).loss == pytest.approx(value.item(), rel=1e-13)
    if kind == "net":  # of which chunks of 10 do not show it, either
        with pytest.raises(ValueError, match="^net: its samples know each"):
            rt.curvature_operator(net, loss, (x, y), chunk=10)
    parts = [(x[:30], y[:30]), (x[30:], y[30:])]
    for call in (rt.hessian, rt.curvature_operator, rt.evaluate):
        with pytest.raises(ValueError, match=f"^{kind}: (its samples know each|needs a mean)"):
            call(net, data=parts, loss=loss)


class Gate(nn.Module):
    """A step in float32."""

    def forward(self, z):
        return torch.sigmoid(z.float()).double()


@pytest.mark.parametrize("seed", range(5))
def test_steps_in_single_precision_are_no_reason_to_keep_samples_together(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 5), Gate(), nn.Linear(5, 3))
    data = numbers(9, 7, 5, seed=seed), torch.arange(63).view(9, 7) % 3
    made = rt.curvature_operator(net, "cross_entropy", data, matrix="empirical_fisher", chunk=2)
    assert made.chunk == 2


def test_a_batch_of_one_has_no_statistics():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, K))
    loader = DataLoader(TensorDataset(VECTORS, LABELS), batch_size=7)
    with pytest.raises(ValueError, match="^data: a batch has one sample.*drop_last"):
        rt.curvature_operator(net, "cross_entropy", loader, batchnorm="batch")


# -- data and nets of other types ------------------------------------------------------------------


class Rows(Dataset):
    def __len__(self):
        return M

    def __getitem__(self, i):
        return VECTORS[i], LABELS[i]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(VECTORS, LABELS, strict=True))


FORMS = {
    "stream": Stream(),
    "dataset": Rows(),
    "tensor dataset": TensorDataset(VECTORS, LABELS),
    "indices behind": DataLoader(TensorDataset(VECTORS, LABELS, torch.arange(M)), batch_size=3),
    "named": [{"x": VECTORS[:3], "y": LABELS[:3]}, {"x": VECTORS[3:], "y": LABELS[3:]}],
    "arrays": (VECTORS.numpy(), LABELS.numpy().astype(np.int32)),
    "single precision": (VECTORS.float(), LABELS),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_data(form):
    net = mlp()
    x = VECTORS.float().double() if form == "single precision" else VECTORS
    exact = rt.hessian(net, "cross_entropy", (x, LABELS))
    assert relative_error(rt.hessian(net, "cross_entropy", FORMS[form]), exact) <= HESSIAN
    made = rt.curvature_operator(net, "cross_entropy", FORMS[form])
    assert relative_error(made.dense(), exact) <= HESSIAN
    notes = {"single precision": "cast from torch.float32", "indices behind": "left out as indices"}
    assert notes.get(form, "") in made.describe()
    assert len(made.notes) == (form in notes)


def test_a_net_of_two_dtypes():
    net = nn.Sequential(nn.Linear(4, 3).float(), nn.Tanh(), Double(), nn.Linear(3, K))
    for y in (VALUES, VALUES.float()):
        made = rt.curvature_operator(net, "square", (VECTORS, y))
        exact = oracles.square_loss(net(VECTORS.float()), y)
        assert made.loss == pytest.approx(exact.item(), rel=1e-6)


class Double(nn.Module):
    def forward(self, z):
        return z.double()


class Encoding(UserDict):
    """As the encodings of transformers: entries as attributes."""

    def __getattr__(self, key):
        return self.data[key]


Pair = namedtuple("Pair", "x y")


@dataclass(frozen=True)
class Item:
    x: torch.Tensor
    y: torch.Tensor
    name: str = "item"


@pytest.mark.parametrize("kind", [Encoding, Pair, Item, SimpleNamespace])
def test_batches_of_a_loss_of_net_and_batch_keep_their_type(kind):
    net, seen = mlp(), []

    def loss(net, batch):
        seen.append(type(batch))
        return F.cross_entropy(net(batch.x), batch.y)

    batches = [kind(x=VECTORS[:5].float(), y=LABELS[:5]), kind(x=VECTORS[5:].float(), y=LABELS[5:])]
    marked = rt.Loss(loss, of="batch")
    exact = rt.hessian(net, "cross_entropy", (VECTORS.float(), LABELS))
    assert relative_error(rt.hessian(net, marked, batches), exact) <= HESSIAN
    largest = rt.spectrum(net, marked, batches, k=1).largest[0].value
    assert largest == pytest.approx(float(torch.linalg.eigvalsh(exact)[-1]), rel=1e-12)
    assert rt.curvature.hessian_cost(net, marked, batches).method == "columns"
    assert set(seen) == {kind}


def test_batches_of_complex_numbers():
    net = mlp()
    loss = rt.Loss(lambda net, batch: net(batch["z"].real).square().mean(), of="batch")
    batches = [{"z": torch.complex(VECTORS, VECTORS)}]
    exact = oracles.hessian_by_nested_gradients(net(VECTORS).square().mean(), [*net.parameters()])
    measured = rt.curvature_operator(net, loss, batches, engine="rebuilt")
    assert relative_error(measured.dense(), exact) <= HESSIAN


def test_a_loss_of_net_and_batch_may_bring_its_weights():
    net, batches = mlp(), [Pair(VECTORS[:5], PADDED[:5]), Pair(VECTORS[5:], PADDED[5:])]
    loss = rt.Loss(
        lambda net, batch: F.cross_entropy(net(batch.x), batch.y),
        of="batch",
        weights=lambda batch: (batch.y >= 0).sum(),
    )
    exact = rt.hessian(net, nn.CrossEntropyLoss(), (VECTORS, PADDED))
    assert relative_error(rt.hessian(net, loss, batches), exact) <= HESSIAN


def test_batches_that_do_not_tell_what_they_count_cause_a_warning():
    batches = [{"size": torch.tensor([4, 4]), "x": x} for x in (VECTORS[:5], VECTORS[5:])]
    loss = rt.Loss(lambda net, batch: net(batch["x"]).square().mean(), of="batch")
    with pytest.warns(UserWarning, match="^data: batches count by the lengths of their first"):
        rt.hessian(mlp(), loss, batches)
    rt.hessian(mlp(), loss, [{**batch, "size": torch.ones(5)} for batch in batches[:1] * 2])
    pairs = [(x, x.repeat(2, 1)) for x in (VECTORS[:5], VECTORS[5:])]  # two rows for each sample
    loss = rt.Loss(lambda net, batch: net(torch.cat(batch)).square().mean(), of="batch")
    rt.hessian(mlp(), loss, pairs)


MARKED = rt.Loss(lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]), of="batch")
REFUSED = {
    "bare pair": ({"loss": MARKED}, r"^data: got a bare pair, needs a list of batches"),
    "no mark": (
        {"loss": lambda net, batch: F.cross_entropy(net(batch[0]), batch[1])},
        r"^loss: .* does not take .*; a loss of \(net, batch\) is marked by rt.Loss",
    ),
    "decay": ({"weight_decay": -1.0}, "^weight_decay: got -1.0, needs"),
    "weights": (
        {"data": rt.Data.of((VECTORS, LABELS), sample_weight=-ONES)}, "^sample_weight: got shape",
    ),
    "weights unnamed": (
        {"data": [(VECTORS, LABELS, ONES)]}, "^data: got .* floating-point numbers behind",
    ),
    "weights of batches": (
        {"data": (VECTORS, LABELS, ONES)}, "^data: got .* floating-point numbers behind",
    ),
    "all ignored": (
        {"data": (VECTORS, torch.full((M,), -100))}, "^loss: is not a number .*no label counts",
    ),
    "shapes": (
        {
            "net": Net(Net.logits), "loss": flat(lambda o, t: F.cross_entropy(o, t)),
            "data": [(TIMES, TOKENS), (TIMES[:, :1], TOKENS[:, :1])],
        },
        r"^loss: batches have samples of shapes \(2, 3\) and \(1, 3\)",
    ),
    "distribution": (
        {"net": Net(lambda net, x: (net.a(x), Independent(Normal(net.logits(x), 1.0), 1))),
         "loss": lambda output, y: -output[1].log_prob(y[:, None].expand(-1, K)).mean()},
        "^net: gives Independent, a distribution, which cannot be split into samples; give its",
    ),
    "complex": (
        {"net": Net(lambda net, x: (net.a(x), torch.polar(net.logits(x).exp(), net.logits(x)))),
         "loss": lambda output, y: (output[1].sum(1) - y).abs().mean() + output[0].mean(),
         "matrix": "empirical_fisher"},
        "^net: gives complex numbers, of which there is no empirical Fisher matrix; give torch.vie",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    change, message = REFUSED[name]
    given = {"net": mlp(), "loss": "cross_entropy", "data": (VECTORS, LABELS), **change}
    with pytest.raises(ValueError, match=message):
        rt.curvature_operator(given.pop("net"), given.pop("loss"), given.pop("data"), **given)


def test_a_copy_in_float64_keeps_every_choice():
    norm = nn.BatchNorm1d(3)
    net = nn.Sequential(nn.Linear(4, 3), norm, nn.Tanh(), nn.Linear(3, K)).float()
    loss = nn.MSELoss(reduction="sum")
    options = {"matrix": "fisher", "parameters": ["3.bias", "0.weight"], "batchnorm": "eval",
               "weight_decay": 0.3, "seed": 5, "draws": 3}  # fmt: skip
    risk = EmpiricalRisk(net, loss, (VECTORS.float(), VALUES.float()), **options)
    wide = risk.widened()
    assert wide is not risk and wide.net is not net
    assert (wide.names, wide.matrix, wide.title) == (risk.names, "fisher", risk.title)
    assert (wide.batchnorm, wide.weight_decay, wide.seed, wide.draws) == ("eval", 0.3, 5, 3)
    assert wide.loss.name == risk.loss.name and not wide.is_low and risk.is_low
    for name, own, other in zip(risk.names, risk.parameters, wide.parameters, strict=True):
        assert other is wide.net.get_parameter(name) and torch.equal(other, own.double())
    assert len(wide.names) == 2 and next(net.parameters()).dtype == torch.float32
    assert EmpiricalRisk(net, loss, (VECTORS, VALUES), batchnorm="batch").widened().batchnorm == (
        "batch"
    )
    assert wide.widened() is wide
