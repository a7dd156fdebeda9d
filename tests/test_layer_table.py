"""Blocks of a Hessian by parameter, against the dense matrix."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import resid_theory as rt
from resid_theory.curvature import layer_table


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (20,), generator=generator)
    A = rt.curvature_operator(net, "cross_entropy", (x, y))
    return A, A.dense()


def exact(matrix, sizes):
    blocks = [list(rows.split(sizes, 1)) for rows in matrix.split(sizes)]
    norms = torch.tensor([[float(block.norm()) for block in row] for row in blocks])
    return {
        "traces": [float(blocks[k][k].trace()) for k in range(len(sizes))],
        "largest": [float(torch.linalg.eigvalsh(blocks[k][k])[-1]) for k in range(len(sizes))],
        "norms": norms.diagonal().tolist(),
        "couplings": (norms.square().sum(0) - norms.diagonal() ** 2).sqrt().tolist(),
        "block_norms": norms,
    }


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_with_all_columns_the_numbers_are_exact(problem, shift):
    A, dense = problem
    A = A.shift(shift) if shift else A
    expected = exact(dense + shift * torch.eye(75), [40, 8, 24, 3])
    found = layer_table(A, probes=20)
    assert found.products == 75
    for kind in ("traces", "norms", "couplings", "largest"):
        values = [estimate.value for estimate in getattr(found, kind)]
        assert values == pytest.approx(expected[kind], rel=1e-8), kind
        if kind != "largest":
            # Those of a sum have the rounding of its terms.
            assert all(0 <= e.high - e.low <= shift * 1e-11 for e in getattr(found, kind))
    assert torch.allclose(found.block_norms, expected["block_norms"].double(), rtol=1e-6)


def test_all_numbers_follow_from_the_signs(problem, monkeypatch):
    """Of 75 columns those of two layers are drawn, eight times; the others are all known."""
    (A, dense), Estimate = problem, rt.eigen.Estimate
    found = SimpleNamespace(largest=Estimate.exact(7.0), products=5)
    module = sys.modules["resid_theory.curvature.layer_table"]
    monkeypatch.setattr(module, "eigenpairs", lambda *_, **options: found)
    table, draws = layer_table(A, probes=8, generator=3), torch.Generator().manual_seed(3)
    sizes, names = [40, 8, 24, 3], ("0.weight", "0.bias", "2.weight", "2.bias")
    mean = torch.zeros(4, 4)
    for k, size in enumerate(sizes):
        columns = dense.split(sizes, 1)[k]
        z = torch.eye(size)
        if size > 8:
            z = 2.0 * torch.randint(2, (size, 8), generator=draws) - 1
        parts = (columns @ z).split(sizes)
        squares = torch.stack([part.square().sum(0) for part in parts])
        mean[:, k] = squares.sum(1) if size <= 8 else squares.mean(1)
        forms = (z * parts[k]).sum(0)
        own, others = squares[k], squares.sum(0) - squares[k]
        for kind, samples in (("traces", forms), ("norms", own), ("couplings", others)):
            estimate = getattr(table, kind)[k]
            if size <= 8:
                value = float(samples.sum())
                value = value if kind == "traces" else value**0.5
                assert estimate.low == estimate.high and estimate.standard_error == 0
            else:
                value, error = float(samples.mean()), float(samples.std()) / 8**0.5
                value, error = (
                    (value, error) if kind == "traces" else (value**0.5, error / value**0.5 / 2)
                )
                assert estimate.standard_error == pytest.approx(error, rel=1e-9)
            assert estimate.value == pytest.approx(value, rel=1e-9)
    mean = ((mean + mean.mT) / 2).sqrt()
    torch.testing.assert_close(table.block_norms, mean, rtol=1e-9, atol=0)
    assert (table.names, table.products) == (names, 8 + 8 + 8 + 3 + 2 * 5)
    columns = {"parameter": list(names)}
    for kind, name in (("traces", "trace"), ("largest", "largest"), ("norms", "norm"),
                       ("couplings", "coupling")):  # fmt: skip
        for end, field in (("", "value"), ("_low", "low"), ("_high", "high")):
            columns[name + end] = [getattr(e, field) for e in getattr(table, kind)]
    assert table.table() == columns and list(table.table()) == list(columns)


def test_intervals_hold_the_truth(problem, monkeypatch):
    largest = SimpleNamespace(largest=rt.eigen.Estimate.exact(7.0), products=5)  # no matter here
    module = sys.modules["resid_theory.curvature.layer_table"]
    monkeypatch.setattr(module, "eigenpairs", lambda *_, **options: largest)
    A, dense = problem
    expected, missed, drawn = exact(dense, [40, 8, 24, 3]), 0, 0
    for seed in range(40):
        found = layer_table(A, probes=8, generator=seed)
        for kind in ("traces", "norms", "couplings"):
            for estimate, truth in zip(getattr(found, kind), expected[kind], strict=True):
                drawn += estimate.standard_error > 0
                missed += not estimate.low * (1 - 1e-12) <= truth <= estimate.high * (1 + 1e-12)
    # Two layers have random numbers: 240 intervals at 95 %, those of a draw not independent.
    assert drawn == 240 and 0 < missed <= 28
    assert len(found.frame()) == 4 and found.frame()["parameter"][2] == "2.weight"


def test_bars_hold_the_error_of_a_low_precision(problem, monkeypatch):
    A, _ = problem
    net, (x, y) = copy.deepcopy(A.risk.net).float(), next(iter(A.risk.data)).pair
    A = rt.curvature_operator(net, "cross_entropy", (x.float(), y))
    made, product = [], rt.curvature.CurvatureBlock._product
    monkeypatch.setattr(
        rt.curvature.CurvatureBlock, "_product",
        lambda block, v: made.append(v.shape[1]) or product(block, v),
    )  # fmt: skip
    found, error = layer_table(A, probes=40, tolerance=0.1), A.error
    assert found.products == sum(made) and min(error.trace, error.frobenius) > 0
    for kind, bound in (("traces", error.trace), ("norms", error.frobenius),
                        ("couplings", error.frobenius)):  # fmt: skip
        for e in getattr(found, kind):
            assert (e.low, e.high) == (e.value - bound, e.value + bound), kind
    assert all(e.value - e.low >= error.spectral for e in found.largest)


def test_wrong_calls(problem):
    A, dense = problem
    with pytest.raises(ValueError, match="^A: its rows and columns are no parameters"):
        layer_table(rt.eigen.as_operator(dense))
    with pytest.raises(ValueError, match="^A: its rows and columns are no parameters"):
        layer_table(dense)
    with pytest.raises(ValueError, match="^A: its rows and columns are no parameters"):
        layer_table(A.block("0.*", "2.*"))
    with pytest.raises(ValueError, match="^probes: got 3"):
        layer_table(A, probes=3)
