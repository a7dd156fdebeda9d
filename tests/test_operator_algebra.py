"""Sums, multiples, shifts, diagonals and solutions, against dense matrices by plain autograd."""

import copy
import math

import numpy as np
import oracles
import pytest
import scipy.sparse
import scipy.stats
import torch
from scipy.sparse.linalg import aslinearoperator
from tolerances import HESSIAN, relative_error
from torch import nn

import resid_theory as rt
from resid_theory.eigen.linear_operator import WrappedOperator, _restricted
from resid_theory.eigen.matrix_error import MatrixError
from resid_theory.eigen.products import unit_vectors

EPS = torch.finfo(torch.float64).eps


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    parameters = list(net.parameters())
    hessian = oracles.hessian_by_nested_gradients(oracles.square_loss(net(x), y), parameters)
    output = net(x)
    newton = oracles.gauss_newton_by_jacobians(
        output, lambda z: oracles.square_loss(z, y), parameters
    )
    H = rt.curvature_operator(net, "square", (x, y))
    G = rt.curvature_operator(net, "square", (x, y), matrix="gauss_newton")
    return H, G, hessian.detach(), newton.detach(), generator


def close(found, expected):
    return float((found - expected).norm()) <= HESSIAN * max(1.0, float(expected.norm()))


EYE = torch.eye(26, dtype=torch.float64)
SUMS = [
    (lambda H, G: 2 * (H - G), lambda h, g: 2 * h - 2 * g),
    (lambda H, G: sum([H, G]), lambda h, g: h + g),
    (lambda H, G: (H + G) / 3, lambda h, g: (h + g) / 3),
    (lambda H, G: -H + np.float64(0.5) * G, lambda h, g: 0.5 * g - h),
    (lambda H, G: H * torch.tensor(0.25) - G * 4, lambda h, g: 0.25 * h - 4 * g),
    (lambda H, G: H.shift(0.1) + G.T, lambda h, g: h + 0.1 * EYE + g),
    (lambda H, G: H + 0.1 * EYE, lambda h, g: h + 0.1 * EYE),
    (lambda H, G: 0.1 * EYE - H, lambda h, g: 0.1 * EYE - h),
    (lambda H, G: EYE.numpy() + H, lambda h, g: h + EYE),
    (lambda H, G: H - scipy.sparse.csr_array(EYE.numpy()), lambda h, g: h - EYE),
    (lambda H, G: H + aslinearoperator(EYE.numpy()) - G, lambda h, g: h + EYE - g),
]


@pytest.mark.parametrize(("calculate", "densely"), SUMS)
def test_sums_are_those_of_the_matrices(problem, calculate, densely):
    H, G, hessian, newton, generator = problem
    made, expected = calculate(H, G), densely(hessian, newton)
    vectors = torch.randn(26, 3, generator=generator, dtype=torch.float64)
    assert repr(made) == "OperatorSum(shape=(26, 26), dtype=torch.float64)"
    assert close(made.dense(), expected)
    assert close(made @ vectors[:, 0], expected @ vectors[:, 0])
    assert close(vectors.mT @ made, vectors.mT @ expected)
    assert close(made.quadratic(vectors), torch.einsum("pb,pq,qb->b", vectors, expected, vectors))
    values = rt.eigenpairs(made, 2, tolerance=1e-10).values
    assert float((values - torch.linalg.eigvalsh(expected).flip(0)[:2]).abs().max()) <= 1e-9


def test_a_block_of_a_sum_is_the_sum_of_blocks(problem):
    H, G, hessian, newton, _ = problem
    weights = torch.arange(26.0, dtype=torch.float64)
    made = (H - 2 * G + torch.diag(weights)).shift(0.5).block("2.*", ["2.bias", "0.bias"])
    expected = hessian - 2 * newton + torch.diag(weights + 0.5)
    assert list(made.row_shapes) == ["2.weight", "2.bias"]
    assert list(made.column_shapes) == ["0.bias", "2.bias"]
    assert close(made.dense(), expected[16:26][:, [12, 13, 14, 15, 24, 25]])
    assert close(made.T.dense(), expected[16:26][:, [12, 13, 14, 15, 24, 25]].mT)
    again = H.block(["0.*", "2.bias"], "2.*").block("0.bias", "2.bias")
    assert close(again.dense(), hessian[12:16, 24:26])


def test_what_cancels_is_within_the_bars():
    # With one linear layer the Gauss-Newton matrix is the Hessian: the difference is rounding.
    generator = torch.Generator().manual_seed(1)
    net = nn.Linear(30, 5).double()
    data = 1e3 * torch.randn(40, 30, generator=generator).double(), torch.arange(40) % 5
    H = rt.curvature_operator(net, "cross_entropy", data)
    G = rt.curvature_operator(net, "cross_entropy", data, matrix="gauss_newton")
    D = H - G
    largest = rt.eigenpairs(D, 1, which="magnitude").largest
    assert largest.low <= 0 <= largest.high
    assert 0 < D.error.spectral <= 1e-9 * float(rt.eigenpairs(H, 1).values)


def test_a_sum_has_the_errors_of_its_terms_and_of_what_cancelled(generator):
    matrices = torch.randn(2, 20, 20, generator=generator, dtype=torch.float64)
    terms = [rt.eigen.as_operator(matrix) for matrix in matrices]
    terms[0].error = MatrixError(spectral=1.0, frobenius=2.0, trace=3.0)
    made = 2 * terms[0] - 3 * terms[1]
    assert made.error == MatrixError(spectral=2.0, frobenius=4.0, trace=6.0)
    vectors = torch.randn(20, 3, generator=generator, dtype=torch.float64) * torch.tensor([1, 9, 0])
    made @ vectors
    lengths = sum(f * (m @ vectors).norm(dim=0) for f, m in zip((2, 3), matrices, strict=True))
    rounding = 16 * EPS * float((lengths / vectors.norm(dim=0))[:2].max())
    made @ torch.zeros(20, dtype=torch.float64)  # the largest so far stays
    cancelled = [getattr(made.error, n) - e for n, e in
                 (("spectral", 2), ("frobenius", 4), ("trace", 6))]  # fmt: skip
    spread = rounding * 20**0.5
    assert cancelled == pytest.approx([rounding, spread, spread], abs=4 * EPS * 6)


def test_exact_terms_leave_the_rounding_of_what_they_cancel(generator):
    matrices = torch.randn(2, 12, 20, generator=generator, dtype=torch.float64)
    for dtype, eps in ((torch.float64, EPS), (torch.float32, 2.0**-23)):
        last = matrices[1].to(dtype)
        made = 2 * rt.eigen.as_operator(matrices[0]) - 3 * rt.eigen.as_operator(last)
        v = torch.randn(20, 1, generator=generator, dtype=torch.float64)
        made @ v
        lengths = [float((m.double() @ v).norm() / v.norm()) for m in (matrices[0], last)]
        rounding = 16 * (2 * EPS * lengths[0] + 3 * eps * lengths[1])
        assert made.error.spectral == pytest.approx(rounding, rel=1e-6)
        assert made.error.trace == made.error.frobenius == made.error.spectral * 20**0.5


def test_some_rows_and_columns_of_a_wide_matrix(generator):
    matrix = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    A = WrappedOperator(matrix, torch.tensor([2, 0]), torch.tensor([4, 1, 0]))
    assert torch.equal(A.dense(), matrix[[2, 0]][:, [4, 1, 0]])
    assert torch.equal(A.T.dense(), A.dense().mT)
    for count in (1, 4):
        v = torch.randn(3, count, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(A @ v, A.dense() @ v)


def test_a_block_of_the_identity_is_one_of_its_kind():
    rows, given = torch.arange(2), {"dtype": torch.float32, "device": torch.device("meta")}
    part = _restricted(rt.eigen.Identity(5, **given), rows, rows)
    assert isinstance(part, rt.eigen.Identity) and part.shape == (2, 2)
    assert {name: getattr(part, name) for name in given} == given
    torch.set_default_dtype(torch.float32)
    units = unit_vectors(part, 1, 2)
    about = units.shape, units.device, units.dtype
    assert about == ((2, 1), given["device"], torch.float64)


def test_products_with_the_identity_are_no_views():
    unit, v = rt.eigen.Identity(3), torch.ones(3, 2, dtype=torch.float64)
    (unit @ v).zero_()
    assert v.all() and (unit @ v.float()).dtype == torch.float64 and unit.T is unit


def test_vectors_by_parameter(problem):
    H, _, hessian, _, _ = problem
    pairs = rt.eigenpairs(H, 3, tolerance=1e-10)
    parts = (2 * H).split(pairs.vectors)
    assert {name: part.shape for name, part in parts.items()} == {
        "0.weight": (3, 4, 3), "0.bias": (3, 4), "2.weight": (3, 2, 4), "2.bias": (3, 2),
    }  # fmt: skip
    assert torch.equal(H.join(parts), pairs.vectors)
    single = H.split(pairs.vectors[:, 1])
    assert torch.equal(single["2.weight"], parts["2.weight"][1])
    assert torch.equal(H.join(single), pairs.vectors[:, 1])


def test_diagonals_are_exact_by_columns_and_have_bars_else(problem):
    H, _, hessian, _, _ = problem
    exact = H.diagonal()
    assert exact.is_exact and exact.products == 26 and close(exact.values, hessian.diagonal())
    assert not exact.standard_errors.any() and not exact.half_widths.any()
    assert str(exact).endswith(", exact")
    inside, far = 0, []
    for seed in range(60):
        found = H.diagonal(budget=12, generator=seed)
        assert found.products == 12 and not found.is_exact
        gaps = (found.values - hessian.diagonal()).abs()
        inside += int((gaps <= found.half_widths).sum())
        far.append(found.values - hessian.diagonal())
    # 95 % of 1,560 entries, of which those of one draw depend on one another.
    assert 0.91 <= inside / (60 * 26) <= 0.985
    spread = torch.stack(far).square().mean(0)
    off = (hessian - torch.diag(hessian.diagonal())).square().sum(1) / 12
    assert torch.allclose(spread, off, rtol=0.8)


class Recorded:
    """A matrix that keeps the vectors it was multiplied by."""

    def __init__(self, matrix):
        self.matrix, self.shape, self.dtype, self.vectors = matrix, matrix.shape, matrix.dtype, []

    def __matmul__(self, vectors):
        self.vectors.append(vectors)
        return self.matrix @ vectors


def test_an_estimated_diagonal_is_the_mean_of_its_samples(generator):
    matrix = torch.randn(150, 150, generator=generator, dtype=torch.float64)
    matrix, budget = matrix + matrix.mT, 100
    recorded = Recorded(matrix)
    found = rt.eigen.as_operator(recorded).diagonal(budget=budget)
    signs = torch.cat(recorded.vectors, 1)
    assert signs.shape == (150, budget) and bool((signs.abs() == 1).all())
    samples = signs * (matrix @ signs)
    torch.testing.assert_close(found.values, samples.mean(1))
    torch.testing.assert_close(found.standard_errors, samples.std(1) / budget**0.5)
    ratio = found.half_widths / found.standard_errors
    assert bool((ratio >= scipy.stats.t.ppf(0.975, budget - 1) - 1e-9).all())
    assert bool((ratio <= 1.05 * scipy.stats.t.ppf(0.975, budget - 1)).all())
    low, high, half = (float(v) for v in (*found.values.aminmax(), found.half_widths.median()))
    assert str(found) == f"150 entries from {low:.4g} to {high:.4g}, ± {half:.2g} (median)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bars_include_the_precision_of_the_net(dtype):
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    x, y = torch.randn(30, 6, generator=generator).to(dtype), torch.arange(30) % 3
    net, wide = net.to(dtype), copy.deepcopy(net.to(dtype)).double()
    exact = rt.curvature_operator(wide, "cross_entropy", (x.double(), y)).dense()
    H = rt.curvature_operator(net, "cross_entropy", (x, y))
    found = H.diagonal()
    assert found.is_exact and "exact" not in str(found)
    assert bool(((found.values - exact.diagonal()).abs() <= found.half_widths).all())
    table, start = rt.curvature.layer_table(H, probes=64), 0
    for k, shape in enumerate(H.column_shapes.values()):
        rows = slice(start, start + shape.numel())
        block, start = exact[rows, rows], rows.stop
        outside = float((exact[rows].square().sum() - block.square().sum()).sqrt())
        assert table.traces[k].covers(float(block.trace()))
        assert table.norms[k].covers(float(block.norm())) and table.couplings[k].covers(outside)
    G = rt.curvature_operator(net, "cross_entropy", (x, y), matrix="gauss_newton")
    newton = rt.curvature_operator(
        wide, "cross_entropy", (x.double(), y), matrix="gauss_newton"
    ).dense()
    v = torch.randn(83, generator=generator, dtype=torch.float64)
    solution = G.solve(v, damping=0.1, tolerance=1e-9)
    gap = (solution.values - torch.linalg.solve(newton + 0.1 * torch.eye(83), v)).norm()
    assert float(gap) <= float(solution.error_bounds) <= 1e5 * float(gap)


@pytest.mark.parametrize("signs", [6, 7, 8, 11, 13, 60])
def test_bars_hold_where_one_entry_is_large(signs):
    # Samples are then 3 or -1, and equal in a pair of rows; Student's t misses up to 12 %.
    A = rt.eigen.as_operator(torch.block_diag(*[torch.tensor([[1.0, 2.0], [2.0, 1.0]])] * 400))
    found = [A.diagonal(budget=signs, generator=seed) for seed in range(10)]
    missed = sum(int(((d.values - 1).abs() > d.half_widths)[::2].sum()) for d in found)
    assert missed <= 4000 * 0.05 + 4 * (4000 * 0.05 * 0.95) ** 0.5


@pytest.mark.parametrize("count", [6, 7, 8, 13, 60, 90])
def test_bars_hold_95_percent_of_normal_samples_and_of_signs(count, generator):
    A = torch.randn(100, 100, generator=generator, dtype=torch.float64)
    found = rt.eigen.as_operator(A).diagonal(budget=count)
    # How many of the signs agree in all but one case of forty, and Student's statistic of these.
    chances = [math.comb(count, k) / 2**count for k in range(count + 1)]
    agree = next(k for k in range(count + 1) if sum(chances[k + 1 :]) <= 0.025)
    mean = 2 * agree / count - 1
    signs = mean / ((1 - mean**2) / (count - 1)) ** 0.5 * (1 + 1e-6)
    half = max(signs, scipy.stats.t.ppf(0.975, count - 1))
    torch.testing.assert_close(found.half_widths, half * found.standard_errors, rtol=1e-9, atol=0)


@pytest.mark.parametrize("error", [None, 0.5])
def test_columns_give_the_diagonal_a_block_at_a_time(error, generator):
    matrix = Recorded(torch.randn(150, 150, generator=generator, dtype=torch.float64))
    if error:
        matrix.error = MatrixError(spectral=error, frobenius=9.0, trace=9.0)
    found = rt.eigen.as_operator(matrix).diagonal(budget=150)
    assert [vectors.shape[1] for vectors in matrix.vectors] == [64, 64, 22]
    assert torch.equal(found.values, matrix.matrix.diagonal())
    assert (found.is_exact, found.products) == (True, 150) and not found.standard_errors.any()
    assert found.half_widths.tolist() == [error or 0.0] * 150
    with pytest.raises(ValueError, match="^budget: got 1, needs at least 2$"):
        rt.eigen.as_operator(matrix).diagonal(budget=1)


def test_few_signs_give_no_interval(problem):
    # Five of them agree in one case of sixteen, and show no spread then.
    for A in (problem[0], rt.eigen.as_operator(torch.eye(9))):
        assert bool(A.diagonal(budget=5).half_widths.isinf().all())


@pytest.mark.parametrize("entry", [3.0, 1e200])  # whose square is too large
def test_the_columns_of_a_single_entry_and_of_large_ones_are_exact(entry):
    for size in (1, 2):
        found = rt.eigen.as_operator(entry * torch.eye(size)).diagonal()
        assert found.values.tolist() == [entry] * size
        assert found.standard_errors.tolist() == found.half_widths.tolist() == [0.0] * size


@pytest.mark.parametrize("definite", [False, True])
def test_solutions(problem, definite):
    H, G, hessian, newton, generator = problem
    A, dense, method = (G, newton, "cg") if definite else (H, hessian, "minres")
    v = torch.randn(26, 2, generator=generator, dtype=torch.float64)
    found = A.solve(v, damping=0.3, tolerance=1e-10)
    exact = torch.linalg.solve(dense + 0.3 * EYE, v)
    gaps = (found.values - exact).norm(dim=0)
    assert found.converged and found.method == method
    bound = f"at most {float(found.error_bounds.max()):.2g}" if definite else "unknown"
    worst = float(found.residuals.max())
    assert str(found) == (
        f"{method}: residual {worst:.2g}, converged, error {bound}, {found.products} products"
    )
    assert float(gaps.max()) <= 1e-8 * float(exact.norm())
    residuals = (dense @ found.values + 0.3 * found.values - v).norm(dim=0) / v.norm(dim=0)
    assert torch.allclose(found.residuals, residuals, atol=1e-13, rtol=1e-2)
    if definite:  # lowest eigenvalue at least the damping
        assert bool((gaps <= found.error_bounds * (1 + 1e-6) + 1e-14).all())
        assert float(found.error_bounds.max()) <= 1e-10 * float(v.norm()) / 0.3
    else:
        assert bool(torch.isinf(found.error_bounds).all())
    short = A.solve(v[:, 0], damping=1e-6, max_products=4)
    assert not short.converged and short.products <= 4 and short.values.shape == (26,)
    assert "not converged" in str(short)


class Known(rt.eigen.LinearOperator):
    """A matrix with a known error, of which no eigenvalue is below a number."""

    def __init__(self, matrix, lowest):
        super().__init__(tuple(matrix.shape), matrix.dtype, "cpu")
        self.matrix, self.lowest = matrix, lowest
        self.error = MatrixError(spectral=0.5, frobenius=99.0, trace=99.0)

    T = property(lambda self: self)

    def _product(self, vectors):
        return self.matrix @ vectors


@pytest.mark.parametrize(("lowest", "method"), [(2.0, "cg"), (0.5, "minres")])
def test_bounds_of_solutions_are_over_the_smallest_eigenvalue(lowest, method):
    levels = torch.tensor([2.0, 3, 4, 8], dtype=torch.float64)
    v = torch.tensor([[1.0, 2, 0, -1], [0, 0, 0, 0], [5, 0, -3, 1]], dtype=torch.float64).T
    found = Known(torch.diag(levels), lowest).solve(v, damping=-0.5, tolerance=1e-11)
    exact = v / (levels - 0.5)[:, None]
    torch.testing.assert_close(found.values, exact, rtol=0, atol=1e-10)
    bounds = 0.5 * exact.norm(dim=0) / 1.5 if method == "cg" else torch.tensor([math.inf, 0.0, 1])
    assert found.method == method and found.converged and found.error_bounds[1] == 0
    for k in (0, 2):
        expected = float(bounds[k]) if method == "cg" else math.inf
        assert float(found.error_bounds[k]) == pytest.approx(expected, rel=1e-8)
    frame = found.frame()
    assert frame["residual"].tolist() == found.residuals.tolist() and len(frame) == 3


@pytest.mark.parametrize("columns", [256, 600])
def test_a_matrix_is_made_from_blocks_of_columns(columns, capsys):
    recorded = Recorded(torch.arange(3.0 * columns, dtype=torch.float64).view(3, columns))
    found = rt.eigen.as_operator(recorded).dense(progress=columns > 256)
    assert torch.equal(found, recorded.matrix)
    widths = [vectors.shape[1] for vectors in recorded.vectors]
    assert widths == ([256] if columns == 256 else [256, 256, 88])
    shown = capsys.readouterr().err
    assert ("Matrix: 100%" in shown and " 600/600 [" in shown) == (columns > 256)
    assert ("column/s]" in shown) == (columns > 256)


def test_a_solution_of_nothing_costs_nothing_and_has_no_error(problem):
    found = problem[0].solve(torch.zeros(26, 2))
    assert found.converged and not found.values.any() and found.values.shape == (26, 2)
    assert found.residuals.tolist() == found.error_bounds.tolist() == [0, 0]
    assert found.products == 0


@pytest.mark.parametrize(
    ("removed", "most", "tolerance", "aims", "limits", "left"),
    [
        # Accepted while it is less; ten times as sharp where less than a tenth was removed.
        ([0.5, 0.05, -1, 0.5, 1], 50, 1e-3, [5e-4, 1e-3, 5e-5 / 0.475, 5e-6 / 0.475, 5e-6 / 0.2375],
         [49, 45, 41, 37, 33], 0),
        ([0.11, 0.09, 0.5, 1], 50, 1e-3, [5e-4, 5e-4 / 0.89, 5e-5 / 0.8099, 5e-5 / 0.40495],
         [49, 45, 41, 37], 0),
        ([0, 0, 0, 0], 50, 1e-3, [5e-4, 5e-5, 5e-6, 5e-7], [49, 45, 41, 37], 1),
        ([0, 1], 50, 1e-13, [5e-14, 1e-14], [49, 45], 0),  # no sharper than rounding
        ([0.5, 0.5], 9, 1e-3, [5e-4, 1e-3], [8, 4], 0.25),  # one product is too few
        ([0.5, 0.5, 0.5], 10, 1e-3, [5e-4, 1e-3, 2e-3], [9, 5, 1], 0.125),
        ([], 1, 1e-3, [], [], 1),
        ([0.9995], 50, 1e-3, [5e-4], [49], 0.0005),
    ],
    ids=["turns", "tenth", "nothing", "rounding", "spent", "last", "none", "near"],
)  # fmt: skip
def test_a_system_is_solved_again_from_what_is_left(
    removed, most, tolerance, aims, limits, left, monkeypatch
):
    calls, steps = [], iter(removed)

    def minres(operator, rest, *, rtol, maxiter):
        for _ in range(3 if maxiter > 1 else 1):
            assert np.array_equal(operator.matvec(rest), 2.5 * rest)
        calls.append((rtol, maxiter))
        return next(steps) * rest / 2.5, 0

    monkeypatch.setattr(scipy.sparse.linalg, "minres", minres)
    A = rt.eigen.as_operator(2 * torch.eye(4, dtype=torch.float64))
    v = torch.tensor([3.0, 0, -4, 0])
    found = A.solve(v, damping=0.5, tolerance=tolerance, max_products=most)
    assert [aim for aim, _ in calls] == pytest.approx(aims, rel=1e-9)
    assert [limit for _, limit in calls] == limits and next(steps, None) is None
    assert found.residuals.item() == pytest.approx(left, rel=1e-9, abs=1e-15)
    spent = sum(4 if limit > 1 else 2 for limit in limits)
    assert found.products == spent <= most and found.converged == (left <= tolerance)


def test_a_singular_matrix_leaves_what_is_not_in_its_range():
    A = rt.eigen.as_operator(torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)))
    found = A.solve(torch.ones(3))
    assert not found.converged and found.products < 100  # it ends where nothing more is gained
    assert found.residuals.item() == pytest.approx(3**-0.5)
    assert found.values[:2].tolist() == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize("most", [6, 10, 20])
def test_columns_share_the_products(problem, most, generator):
    v = torch.randn(26, 3, generator=generator, dtype=torch.float64)
    found = problem[0].solve(v, damping=1e-6, max_products=most)
    assert most - 3 <= found.products <= most and not found.converged
    residuals = (problem[2] @ found.values + 1e-6 * found.values - v).norm(dim=0) / v.norm(dim=0)
    torch.testing.assert_close(found.residuals, residuals)
    assert bool((found.residuals <= 1).all())


def test_known_lower_bounds(problem):
    H, G, _, newton, _ = problem
    assert H.lowest == -np.inf and (H - G).lowest == -np.inf and (-G).lowest == -np.inf
    assert G.lowest == 0 and (2 * G).shift(0.5).lowest == 0.5 and (G.shift(-1)).lowest == -1
    assert G.block("0.*").lowest == 0 and G.block("0.*", "2.*").lowest == -np.inf
    damped = (0 * H + 2 * G).shift(0.5)  # what does not count bounds nothing
    assert damped.lowest == damped.block("0.*").lowest == 0.5
    assert damped.block("0.*", "2.*").lowest == (damped - 1e-9 * G).lowest == -np.inf


@pytest.mark.parametrize("wide", [False, True])
def test_a_sum_is_as_wide_as_its_widest_term(wide):
    single = rt.eigen.as_operator(torch.eye(3, dtype=torch.float32))
    made = 3 * single + torch.eye(3, dtype=torch.float64 if wide else torch.float32)
    assert made.dtype == made.T.dtype == (torch.float64 if wide else torch.float32)
    assert made.shift(1).dtype == made.dtype and (made @ torch.ones(3)).dtype == made.dtype
    assert made.to_scipy().dtype == np.dtype("float64" if wide else "float32")


def test_scipy_multiplies_by_an_operator_and_its_transpose(generator):
    matrix = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    asked, left, right = [], np.eye(3)[:, 1:], np.eye(5)[:, 2:]

    class Noted(WrappedOperator):
        T = property(lambda self: Noted(self._matrix.mT))

        def _product(self, vectors):
            asked.append(vectors.shape[1])
            return super()._product(vectors)

    A = Noted(matrix).to_scipy()
    assert A.shape == (3, 5) and A.dtype == np.float64
    for found, wanted in (
        (A @ right, matrix[:, 2:]), (A @ right[:, 0], matrix[:, 2]), (A.H @ left, matrix.T[:, 1:]),
        (A.H @ left[:, 0], matrix.T[:, 1]),
    ):  # fmt: skip
        np.testing.assert_array_equal(found, wanted.numpy())
    assert asked == [3, 1, 2, 1]  # several at a time


def test_a_multiple_is_as_exact_as_its_matrix():
    assert (2 * rt.eigen.as_operator(torch.eye(3))).error is None


def renamed(H):
    """The same with other names."""
    other = copy.copy(H)
    other.row_shapes = {f"a.{name}": shape for name, shape in H.row_shapes.items()}
    return other


@pytest.mark.parametrize(
    ("calculate", "words"),
    [
        (lambda H: H + 1.0, "B: got float"),
        (lambda H: H * "2", "c: got str"),
        (lambda H: H * float("nan"), "c: got nan"),
        (lambda H: H / 0, "c: got 0"),
        (lambda H: H - torch.eye(3), r"B: got shape \(3, 3\)"),
        (lambda H: H + torch.eye(26, device="meta"), r"B: got shape \(26, 26\) on meta, needs"),
        (lambda H: H - H.block("0.*"), r"B: got shape \(16, 16\)"),
        (lambda H: H.block("0.*", "2.*").shift(1), "A: got shape"),
        (lambda H: H.block("0.*", "2.*").diagonal(), "A: got shape"),
        (lambda H: H.solve(torch.ones(3)), r"V: got shape \(3,\)"),
        (lambda H: H @ torch.ones(3), r"V: got shape \(3,\)"),
        (lambda H: H.join(None), "parts: got NoneType"),
        (lambda H: H.solve(torch.ones(26), damping=None), "damping: got None"),
        (lambda H: H.solve(torch.ones(26, 0)), r"V: got shape \(26, 0\)"),
        (lambda H: H.join({"0.weight": torch.ones(4, 3)}), "parts: 0.bias"),
        (
            lambda H: H.join({**H.split(torch.ones(26)), "2.bias": torch.ones(3)}),
            "parts: 2.bias has",
        ),
        (lambda H: H.join({**H.split(torch.ones(26)), "2.bias": torch.ones(2, 2)}), "parts: some"),
        (lambda H: H + renamed(H), r"B: stands for \['a.0.weight', .*, needs \['0.weight', "),
        (lambda H: rt.eigen.as_operator(torch.eye(2)).split(torch.ones(2)), "A: its columns"),
        (lambda H: rt.eigen.as_operator(torch.eye(2)).block("a"), "A: its rows have no names"),
        (lambda H: rt.eigen.as_operator(torch.eye(2)).shift(1).block("a"), "A: .* in the sum$"),
        (lambda H: rt.eigenpairs("A"), "A: got str"),
        (lambda H: rt.eigenpairs(np.eye(2) * 1j), "A: got dtype complex128"),
    ],
)
def test_wrong_calls(problem, calculate, words):
    with pytest.raises(ValueError, match=words):
        calculate(problem[0])


@pytest.mark.parametrize(
    "given",
    [
        np.diag(np.arange(40.0)), np.diag(np.arange(40)), scipy.sparse.diags_array(np.arange(40.0)),
        aslinearoperator(np.diag(np.arange(40.0))),
        np.diag(np.arange(40.0, dtype=np.float32)),
        torch.arange(40, dtype=torch.bfloat16).diag(),
    ],
)  # fmt: skip
def test_matrices_of_other_libraries(given):
    given = rt.eigen.as_operator(given) if isinstance(given, torch.Tensor) else given
    assert rt.eigenpairs(given, 2, tolerance=1e-6).values.tolist() == pytest.approx([39, 38])
    assert rt.trace(given, budget=40).covers(780)
    A = rt.eigen.as_operator(given)
    assert A.shift(1).diagonal().values.tolist() == list(range(1, 41))
    for dtype in (torch.float64, torch.bfloat16):
        third = torch.full((40,), 1 / 3, dtype=dtype)
        gap = (A @ third - torch.arange(40) * third.double()).abs().max()
        assert float(gap) <= 40 * torch.finfo(A.dtype).eps  # of vectors in the matrix's precision


def test_vectors_in_float32_are_multiplied_in_float64():
    far, one, v = 2.0**30, rt.eigen.Identity(1), torch.ones(66, dtype=torch.float32)
    assert (far * one + one - far * one) @ v[:1] == 1
    assert rt.eigen.as_operator(np.array([[far, *[1] * 64, -far]], np.float32)) @ v == 64


def test_scipys_operator_is_made_without_a_product():
    A = rt.eigen.as_operator(torch.eye(2, dtype=torch.float32))
    A._product = None
    assert A.to_scipy().dtype == np.float32


def test_the_identity_knows_its_lowest_eigenvalue():
    v = torch.arange(1.0, 6.0)
    assert rt.eigen.Identity(5).lowest == 1
    found = rt.eigen.Identity(5).solve(v, damping=-0.7)  # 0.3 times the identity is definite
    assert found.method == "cg" and found.products == 2
    assert relative_error(found.values, v / 0.3) < 4 * EPS
    assert bool((found.error_bounds < 1e-12).all())
