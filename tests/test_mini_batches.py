"""Largest eigenvalues over mini-batches, against dense Hessians of each."""

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from oracles import noise
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import resid_theory as rt

M, TIGHT = 11, 1e-8
WEIGHTS = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 1.0, 0.0, 1.0, 2.0, 1.0])


def problem():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return net, noise(M, 3), torch.arange(M) % 3


def exact(net, x, y, weights, kind="hessian"):
    def value(z):
        return (weights * F.cross_entropy(z, y, reduction="none")).sum() / weights.sum()

    parameters = list(net.parameters())
    if kind == "hessian":
        matrix = oracles.hessian_by_nested_gradients(value(net(x)), parameters)
    else:
        matrix = oracles.gauss_newton_by_jacobians(net(x), value, parameters)
    return float(torch.linalg.eigvalsh(matrix)[-1])


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_every_batch_and_all_data(kind):
    net, x, y = problem()
    rows = list(zip(*(part.split([4, 2, 5]) for part in (x, y, WEIGHTS)), strict=True))
    found = rt.curvature.batch_spectra(
        net, "cross_entropy", rt.Data.of(rows, sample_weight=True), matrix=kind, tolerance=TIGHT
    )
    right = torch.tensor([exact(net, *row, kind) for row in rows])
    torch.testing.assert_close(found.values, right, rtol=TIGHT, atol=0)
    whole = exact(net, x, y, WEIGHTS, kind)
    assert abs(found.whole.value - whole) <= TIGHT * whole
    assert found.sizes == (4, 2, 5) and found.count == 3
    assert found.median == pytest.approx(sorted(right.tolist())[1], rel=TIGHT)
    assert found.quantile(1.0) == pytest.approx(float(right.max()), rel=TIGHT)
    for number, percent in ((found.low, 10), (found.median, 50), (found.high, 90)):
        assert number == pytest.approx(np.percentile(right.numpy(), percent), rel=TIGHT)
    assert f"median of 3 mini-batches {found.median:.4g}" in str(found)
    shares = torch.tensor([float(row[2].sum()) for row in rows])
    assert found.whole.value <= float((shares * found.values).sum() / shares.sum())


def test_drawn_batches_are_a_partition():
    net, x, y = problem()
    data = rt.Data.of((x, y), sample_weight=WEIGHTS)
    found = rt.curvature.batch_spectra(
        net, "cross_entropy", data, batch=4, generator=3, parameters="0.*", tolerance=TIGHT
    )
    order = torch.randperm(M, generator=torch.Generator().manual_seed(3))
    frozen = [p.requires_grad_(False) for p in net[2].parameters()]
    net_of_first = nn.Sequential(net[0], net[1], net[2])
    parameters = list(net[0].parameters())
    right = []
    for rows in order.split(4):
        each = F.cross_entropy(net_of_first(x[rows]), y[rows], reduction="none")
        value = (WEIGHTS[rows] * each).sum() / WEIGHTS[rows].sum()
        hessian = oracles.hessian_by_nested_gradients(value, parameters)
        right.append(float(torch.linalg.eigvalsh(hessian)[-1]))
    assert found.sizes == (4, 4, 3) and len(frozen) == 2
    torch.testing.assert_close(found.values, torch.tensor(right), rtol=TIGHT, atol=0)


def test_a_row_for_each_batch_and_starts_from_the_generator():
    net, x, y = problem()
    rows, draws = [(x[:4], y[:4]), (x[4:], y[4:])], torch.Generator().manual_seed(5)
    before = draws.get_state()
    found = rt.curvature.batch_spectra(net, "cross_entropy", rows, generator=draws, tolerance=0.3)
    assert not torch.equal(draws.get_state(), before)
    table, ends = found.table(), [(e.low, e.high) for e in found.largest]
    assert list(table) == ["batch", "samples", "largest", "largest_low", "largest_high"]
    assert [*table["batch"]] == [1, 2] and table["samples"] == (4, 7)
    assert table["largest"].tolist() == [e.value for e in found.largest]
    assert [*zip(table["largest_low"], table["largest_high"], strict=True)] == ends
    assert all(low < high for low, high in ends)


def test_batches_of_a_random_matrix_have_draws_of_their_own(monkeypatch):
    net, x, y = problem()
    made, product = [], rt.curvature.CurvatureBlock._product
    monkeypatch.setattr(
        rt.curvature.CurvatureBlock, "_product",
        lambda block, v: made.append(v.shape[1]) or product(block, v),
    )  # fmt: skip
    found = rt.curvature.batch_spectra(
        net, "cross_entropy", (x, y), batch=4, matrix="fisher_mc", generator=3, tolerance=TIGHT
    )
    assert found.products == sum(made) and found.matrix.startswith("Monte-Carlo Fisher")
    order = torch.randperm(M, generator=torch.Generator().manual_seed(3))
    for number, rows in enumerate([torch.arange(M), *order.split(4)]):
        exact = rt.curvature_operator(
            net, "cross_entropy", (x[rows], y[rows]), matrix="fisher_mc", generator=3 + number
        )
        largest = float(torch.linalg.eigvalsh(exact.dense())[-1])
        value = found.largest[number - 1].value if number else found.whole.value
        assert value == pytest.approx(largest, rel=TIGHT)


def test_each_batch_may_have_its_own_statistics():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    x, y = noise(M, 3), torch.arange(M) % 3
    found = rt.curvature.batch_spectra(
        net, "cross_entropy", DataLoader(TensorDataset(x, y), 6), batchnorm="batch", tolerance=TIGHT
    )
    net.train()
    right = [exact(net, a, b, torch.ones(len(a))) for a, b in zip(x.split(6), y.split(6),
                                                                 strict=True)]  # fmt: skip
    torch.testing.assert_close(found.values, torch.tensor(right), rtol=TIGHT, atol=0)


def test_what_is_refused():
    net, x, y = problem()
    with pytest.raises(
        ValueError, match="^batch: got .*, which leaves the data in one batch of 11 samples"
    ):
        rt.curvature.batch_spectra(net, "cross_entropy", (x, y))
    loss = rt.Loss(lambda n, b: n(b).square().mean(), of="batch")
    with pytest.raises(ValueError, match=r"^batch: got a size with a loss of \(net, batch\)"):
        rt.curvature.batch_spectra(net, loss, [x[:4], x[4:]], batch=2)
    assert rt.curvature.batch_spectra(net, loss, [x[:4], x[4:]]).sizes == (4, 7)
    found = rt.curvature.batch_spectra(net, "cross_entropy", (x, y), batch=8)
    with pytest.raises(ValueError, match="^q: got 2"):
        found.quantile(2)
