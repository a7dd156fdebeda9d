"""Fisher matrices of the model's own targets: against a sum over all targets, one by one."""

import copy
import itertools
from functools import cache, partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import gauss_newton_by_jacobians, noise
from scipy.stats import norm, t
from tolerances import HESSIAN, assert_same, relative_error
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import resid_theory as rt

M, T, K = 5, 3, 3


class LastAxisToOne(nn.Module):
    def forward(self, x):
        return x.movedim(-1, 1)


def net(*heads, outputs=K):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, outputs), *heads).double()


# Each yields (weight in the loss, probability, loss) of every target of every prediction.


def categorical(z, valid, total, log=F.log_softmax):
    """Logits (m, ..., k); ``valid`` holds the weights of the places."""
    for place in itertools.product(*map(range, z.shape[:-1])):
        values = log(z[place], -1)
        for k in range(K):
            yield valid[place] / total, values[k].detach().exp(), -values[k]


def bernoulli(z, w, total=None):
    for i, k, y in itertools.product(range(M), range(z.shape[1]), (0.0, 1.0)):
        p = z[i, k].sigmoid()
        share = w[i] / (w.sum() * z.shape[1] if total is None else total)
        yield share, (p if y else 1 - p).detach(), -(p if y else 1 - p).log()


def gaussian(z, w, scale, variance):
    """Two targets a standard deviation off have the mean and the variance of all."""
    for place in itertools.product(*map(range, z.shape)):
        for sign in (-1, 1):
            target = z[place].detach() + sign * variance**0.5
            value = (z[place] - target) ** 2 / (2 * variance)
            yield w[place[0]] / w.sum() * scale, 0.5, value


LABELS = torch.tensor([[0, 2, 1], [2, -100, 0], [-100, -100, 1], [-100] * 3, [-100, 1, 0]])
VALID = (LABELS != -100).double()
ONES, UNEQUAL = torch.ones(M).double(), torch.tensor([1.0, 0.0, 2.5, 1.0, 0.5]).double()
POINTS, SEQUENCES = noise(M, 2, seed=1).double(), noise(M, T, 2, seed=2).double()
# Net, loss, inputs, targets, weights of samples, and the sum over targets.
CASES = {
    "labels": (net(), "cross_entropy", POINTS, LABELS[:, 2].clamp(0), UNEQUAL,
               lambda z: categorical(z, UNEQUAL, UNEQUAL.sum())),
    "tokens": (net(), "cross_entropy", SEQUENCES, LABELS, UNEQUAL, lambda z: categorical(
        z, VALID * UNEQUAL[:, None], (VALID * UNEQUAL[:, None]).sum())),
    "pixels, summed": (net(LastAxisToOne()), nn.CrossEntropyLoss(reduction="sum"), SEQUENCES,
                       LABELS, ONES, lambda z: categorical(z.movedim(1, -1), VALID, 1.0)),
    "pixels, another ignored label": (
        net(LastAxisToOne()), nn.CrossEntropyLoss(reduction="sum", ignore_index=1), SEQUENCES,
        LABELS.clamp(0), ONES, lambda z: categorical(
            z.movedim(1, -1), (LABELS.clamp(0) != 1).double(), 1.0)),
    "another ignored label": (net(), nn.CrossEntropyLoss(ignore_index=1), POINTS,
                              torch.tensor([0, 1, 2, 0, 1]), ONES, lambda z: categorical(
                                  z, torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0]), 3.0)),
    "probabilities": (net(), "cross_entropy", POINTS, noise(M, K, seed=3).double().softmax(1), ONES,
                      lambda z: categorical(z, ONES, M)),
    "log-probabilities": (net(nn.LogSoftmax(1)), F.nll_loss, POINTS, LABELS[:, 2].clamp(0), ONES,
                          lambda z: categorical(z, ONES, M, log=lambda row, axis: row)),
    "log-probabilities, summed": (
        net(LastAxisToOne(), nn.LogSoftmax(1)), nn.NLLLoss(reduction="sum", ignore_index=1),
        SEQUENCES, LABELS.clamp(0), ONES, lambda z: categorical(
            z.movedim(1, -1), (LABELS.clamp(0) != 1).double(), 1.0, log=lambda row, axis: row)),
    "a function": (net(), rt.Loss(lambda z, y: F.cross_entropy(z, y),
                                  likelihood=rt.losses.Categorical),
                   POINTS, LABELS[:, 2].clamp(0), ONES, lambda z: categorical(z, ONES, M)),
    "bernoulli": (net(), nn.BCEWithLogitsLoss(), POINTS,
                  noise(M, K, seed=4).double().sigmoid(), UNEQUAL, lambda z: bernoulli(z, UNEQUAL)),
    "bernoulli, summed": (
        net(), nn.BCEWithLogitsLoss(reduction="sum"), POINTS, noise(M, K).double().sigmoid(), ONES,
        lambda z: bernoulli(z, ONES, 1.0)),
    "bernoulli, one logit": (
        net(outputs=1), nn.BCEWithLogitsLoss(), POINTS, noise(M, 1).double().sigmoid(), ONES,
        lambda z: bernoulli(z, ONES)),
    "mse, one number": (net(outputs=1), F.mse_loss, POINTS, noise(M, 1).double(), ONES,
                        lambda z: gaussian(z, ONES, 1.0, 0.5)),
    "mse, summed": (net(), nn.MSELoss(reduction="sum"), SEQUENCES, noise(M, T, K).double(), ONES,
                    lambda z: gaussian(z, ONES, M, 0.5)),
    "square": (net(), "square", SEQUENCES, noise(M, T, K, seed=5).double(), UNEQUAL,
               lambda z: gaussian(z, UNEQUAL, 1.0, 1.0)),
    "mse": (net(), nn.MSELoss(), SEQUENCES, noise(M, T, K, seed=5).double(), ONES,
            lambda z: gaussian(z, ONES, 1 / (T * K), 0.5)),
}  # fmt: skip


@cache
def brute_force(name):
    model, _, x, _, _, terms = CASES[name]
    parameters = list(model.parameters())
    total = 0.0
    for weight, probability, value in terms(model(x)):
        parts = torch.autograd.grad(value, parameters, retain_graph=True)
        g = torch.cat([part.reshape(-1) for part in parts])
        total = total + weight * probability * torch.outer(g, g)
    return total


def measured(name, matrix="fisher", cut=None, **options):
    model, loss, x, y, weights, _ = CASES[name]
    if cut is None:
        data = rt.Data.of((x, y), sample_weight=weights)
    else:
        rows = zip(*(part.split([cut, M - cut]) for part in (x, y, weights)), strict=True)
        data = rt.Data.of(list(rows), sample_weight=True)
    data = data if loss in ("square", "cross_entropy") or name == "bernoulli" else (
        (x, y) if cut is None else [(x[:cut], y[:cut]), (x[cut:], y[cut:])])  # fmt: skip
    return rt.curvature_operator(model, loss, data, matrix=matrix, **options)


@pytest.mark.parametrize("name", CASES)
def test_the_fisher_matrix_is_the_sum_over_all_targets(name):
    exact = brute_force(name)
    assert relative_error(measured(name).dense(), exact) <= HESSIAN
    parts = measured(name, cut=2, chunk=2, engine="rebuilt")
    assert relative_error(parts.dense(), exact) <= HESSIAN
    assert parts.describe().startswith("Fisher matrix of the model's own targets, P = ")
    assert parts.lowest == 0.0
    if "log" not in name.partition(",")[0]:  # whose Gauss-Newton matrix is zero
        assert relative_error(measured(name, "gauss_newton").dense(), exact) <= HESSIAN


@pytest.mark.parametrize("matrix", ["fisher", "fisher_mc"])
def test_one_class_leaves_nothing_to_learn(matrix):
    data = POINTS, torch.zeros(M, dtype=torch.long)
    A = rt.curvature_operator(net(outputs=1), "cross_entropy", data, matrix=matrix)
    assert not A.dense().any()


@pytest.mark.parametrize("name", CASES)
def test_the_mean_of_monte_carlo_fisher_matrices_is_the_fisher_matrix(name):
    exact = brute_force(name)
    v = noise(len(exact), 3, seed=6)
    drawn = [measured(name, "fisher_mc", generator=seed, draws=20) for seed in range(10)]
    forms = torch.stack([operator.quadratic(v) for operator in drawn])
    error = forms.std(0) / len(forms) ** 0.5
    gap = (forms.mean(0) - (v * (exact @ v)).sum(0)).abs()
    bar = float(t.isf(1e-4, len(forms) - 1))  # a spread of few is rough itself
    assert (gap <= bar * error + HESSIAN * exact.abs().max()).all()
    matrix = drawn[0].dense()
    assert relative_error(matrix, matrix.mT) <= HESSIAN
    assert torch.linalg.eigvalsh(matrix)[0] >= -HESSIAN * matrix.abs().max()
    assert (forms.std(0) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_targets_are_drawn_by_their_ranks(dtype):
    """Quantiles of the distributions, at the outermost ranks and around the ends of classes."""
    z = 2 * noise(K, seed=8).to(dtype)
    p = z.softmax(0)
    ends = p.double().cumsum(0)[:-1]
    ranks = [torch.linspace(0.001, 0.999, 997), ends * (1 - 1e-12), ends * (1 + 1e-12)]
    ranks = torch.cat([*ranks, torch.tensor([2.0**-54, 1 - 2.0**-53])])
    labels = torch.zeros(len(ranks), dtype=torch.int64)
    drawn = (ranks[:, None] >= ends).sum(1)
    many, each = z.expand(len(ranks), K), ranks[:, None].expand(len(ranks), K)
    slopes = rt.losses.Categorical(many, labels).drawn(ranks)
    assert_same(slopes, p - F.one_hot(drawn, K).to(dtype))
    logs = rt.losses.Categorical(many.log_softmax(1), labels, logits=False)
    few = slice(997)  # others are nearer to ends than round-off
    assert_same(logs.drawn(ranks)[few], -F.one_hot(drawn, K).to(dtype)[few])
    yes = rt.losses.Bernoulli(many, many).drawn(each)
    p = z.sigmoid()
    assert_same(yes, p - (each < p).to(dtype))
    normal = rt.losses.Gaussian(many, many, precision=4.0).drawn(each)
    exact = torch.from_numpy(2 * norm.ppf(each.numpy()))
    # One rounding in the net's precision; near one half as many digits as ranks have.
    torch.testing.assert_close(normal, exact.to(dtype), rtol=1e-6, atol=1e-12)


class Outermost:
    """Draws the least number, or the largest one, that a generator may."""

    def __init__(self, number):
        self.number = number

    def random(self, shape):
        return np.full(shape, self.number)


@pytest.mark.parametrize("number", [0.0, 1 - 2.0**-53])
@pytest.mark.parametrize("name", ["square", "labels", "bernoulli"])
def test_no_draw_is_infinitely_far(name, number, monkeypatch):
    monkeypatch.setattr(np.random, "Generator", lambda _: Outermost(number))
    assert measured(name, "fisher_mc").dense().isfinite().all()


@pytest.mark.parametrize("name", ["tokens", "square"])
def test_draws_belong_to_a_sample_whatever_its_batch(name, device):
    whole = measured(name, "fisher_mc", draws=3, generator=7).dense()
    for options in ({"chunk": 1}, {"cut": 2, "chunk": 2, "engine": "rebuilt"}, {"cut": 4}):
        other = measured(name, "fisher_mc", draws=3, generator=7, **options).dense()
        assert relative_error(other, whole) <= HESSIAN
    model, loss, x, y, weights, _ = CASES[name]
    there = rt.Data.of((x.to(device), y.to(device)), sample_weight=weights.to(device))
    elsewhere = rt.curvature_operator(
        copy.deepcopy(model).to(device), loss, there, matrix="fisher_mc", draws=3, generator=7
    )
    assert relative_error(elsewhere.dense().cpu(), whole) <= HESSIAN
    assert relative_error(measured(name, "fisher_mc", draws=3).dense(), whole) > 0.01
    many = measured(name, "fisher_mc", draws=2000).dense()
    assert relative_error(many, measured(name).dense()) < 0.1  # a draw's own spread is about 1


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: F.cross_entropy(z, y), nn.CrossEntropyLoss(weight=torch.ones(K).double()),
        nn.CrossEntropyLoss(label_smoothing=0.1), nn.MultiMarginLoss(),
    ],
    ids=["a function", "class weights", "smoothed labels", "margins"],
)  # fmt: skip
@pytest.mark.parametrize("matrix", ["fisher", "fisher_mc"])
def test_losses_that_are_the_likelihood_of_nothing_known_are_refused(loss, matrix):
    data = POINTS, LABELS[:, 2].clamp(0)
    with pytest.raises(ValueError, match=f"^matrix: '{matrix}' takes targets from the model, and"):
        rt.curvature_operator(net(), loss, data, matrix=matrix)


def test_outputs_of_nll_loss_are_logarithms_of_probabilities():
    z, move = noise(4, 3), noise(4, 3, seed=1)
    for given in (nn.NLLLoss(), F.nll_loss):
        found = rt.Loss.of(given).likelihood(z, torch.tensor([0, 2, 1, 1])).curve(move)
        assert_same(found, z.exp() * move)


@pytest.mark.parametrize("draws", [2, 3])
@pytest.mark.parametrize("make", [rt.curvature_operator, rt.curvature.kfac])
def test_as_many_targets_are_drawn_as_are_asked_for(make, draws):
    drawn = []

    class Counted(rt.losses.Gaussian):
        def drawn(self, ranks):
            drawn.append(ranks)
            return super().drawn(ranks)

    net, data = nn.Linear(3, 6).double(), (noise(1, 3), noise(1, 6, seed=1))
    loss, counts = rt.Loss(nn.MSELoss(), likelihood=partial(Counted, precision=2.0)), []
    for number in (1, draws):  # of each pass of the data one for every draw
        drawn.clear()
        A = make(net, loss, data, matrix="fisher_mc", draws=number, generator=0)
        counts.append(len(drawn))
    assert counts[1] == draws * counts[0] > 0
    if make is rt.curvature.kfac:  # slopes of six outputs are independent
        sizes = torch.linalg.svdvals(A.dense())
        assert int((sizes > 1e-9 * sizes[0]).sum()) == draws  # far above round-off


def by_token(z, y):
    return F.cross_entropy(z.flatten(0, -2), y.flatten())


def summed(z, y):
    return (z - y).square().sum() / len(z)


LABELLED = rt.losses.Categorical
CLAIMS = {
    "axis": (by_token, LABELLED, "^likelihood: Categorical has other second derivatives"),
    "shape": (by_token, LABELLED, "^likelihood: targets .* are no labels of outputs"),
    "weights": (lambda z, y: F.cross_entropy(z.mT, y, torch.tensor([1.0, 2.0, 0.5]).double()),
                partial(LABELLED, axis=-1), "^likelihood: Categorical has other"),
    "total": (summed, partial(rt.losses.Gaussian, precision=2.0), "^likelihood: Gaussian has othe"),
    "precision": (F.mse_loss, rt.losses.Gaussian, "^likelihood: Gaussian has other"),
    "classes last": (by_token, partial(LABELLED, axis=-1), ""),
    "smoothed": (lambda z, y: F.cross_entropy(z.mT, y, label_smoothing=0.2),
                 partial(LABELLED, axis=None), ""),
    "right": (summed, partial(rt.losses.Gaussian, precision=2.0, total=True), ""),
}  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_likelihood_has_the_second_derivatives_of_its_loss(claim):
    """These do not depend on the targets, so that the Fisher matrix is the Gauss-Newton matrix."""
    loss, likelihood, message = CLAIMS[claim]
    given = rt.Loss(loss, likelihood=likelihood)
    x, y = SEQUENCES, LABELS.clamp(0)
    if claim in ("total", "precision", "right"):
        y = noise(M, T, K, seed=5).double()
    elif claim == "shape":
        x, y = x[:, :2], y[:, :2]
    if message:
        for call in (rt.curvature_operator, rt.curvature.kfac):
            with pytest.raises(ValueError, match=message):
                call(net(), given, (x, y), matrix="fisher")
    else:
        model = net()
        parameters = list(model.parameters())
        exact = gauss_newton_by_jacobians(model(x), lambda z: loss(z, y), parameters)
        found = rt.curvature_operator(model, given, (x, y), matrix="fisher").dense()
        assert relative_error(found, exact) <= HESSIAN


def test_drawn_targets_need_the_order_of_the_first_pass():
    data = TensorDataset(SEQUENCES, LABELS)
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(data, batch_size=2, shuffle=True, generator=order)
    operator = rt.curvature_operator(
        net(), "cross_entropy", loader, matrix="fisher_mc", engine="rebuilt"
    )
    with pytest.raises(ValueError, match="order"):
        operator @ torch.ones(operator.shape[0])
    with pytest.raises(ValueError, match="^draws"):
        rt.curvature_operator(net(), "square", (POINTS, POINTS), matrix="fisher_mc", draws=0)
