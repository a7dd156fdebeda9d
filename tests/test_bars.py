"""Error bars hold the truth from both sides: clusters, low precisions, any scale, no symmetry."""

import math

import pytest
import torch
from test_lanczos import Wrapped, rotated
from tolerances import EPS, round_off

import resid_theory as rt
from resid_theory.eigen.matrix_error import MatrixError


class Single(Wrapped):
    """An operator for float64 vectors that computes in float32 without a word."""

    def __matmul__(self, vectors):
        return (self.matrix.float() @ vectors.float()).double()


def clustered(gap, seed):
    """Six copies of 2, six that are a gap below, a bulk; and the same below zero."""
    g = torch.Generator().manual_seed(seed)
    top = torch.cat([torch.full((6,), 2.0), torch.full((6,), 2 - gap)])
    levels = torch.cat([top, 2 * torch.rand(40, generator=g) - 1, -0.7 * top])
    return rotated(levels, g)


def misses(estimates, exact, slack):
    """Number of intervals that do not hold the eigenvalue of their place."""
    pairs = zip(estimates, exact.tolist(), strict=True)
    return sum(not e.low - slack <= truth <= e.high + slack for e, truth in pairs)


@pytest.mark.parametrize("wrap", [lambda m: m, torch.Tensor.float, Single], ids=["64", "32", "?"])
@pytest.mark.parametrize("gap", [1e-2, 6e-4, 1e-6, 1e-9])
def test_the_ith_interval_holds_the_ith_eigenvalue(gap, wrap):
    matrix = clustered(gap, 0)
    operator = wrap(matrix)
    if operator is not matrix:
        matrix = matrix.float().double()
    exact, slack = torch.linalg.eigvalsh(matrix), 100 * EPS
    report = rt.eigen.spectral_estimates(operator, 5, density=False)
    assert misses(report.largest, exact.flip(0)[:5], slack) == 0
    assert misses(report.smallest, exact[:5], slack) == 0
    # No wider than the tolerance, on either side.
    assert float(report.pairs.bounds.max()) <= 1e-3 * 2 * 1.01
    found = rt.eigenpairs(operator, 8, tolerance=1e-8)
    assert misses(found.estimates(1), exact.flip(0)[:8], slack) == 0


def test_values_apart_have_sharp_bounds(generator):
    levels = torch.cat([torch.linspace(-1, 1, 200), torch.tensor([9.0, 8.0, 6.0])])
    matrix = rotated(levels, generator)
    found = rt.eigenpairs(matrix, 3, tolerance=1e-8, generator=generator)
    assert not found.at_least.any()
    assert bool((found.bounds <= found.residuals**2 + 1e-13).all())


@pytest.mark.parametrize("kind", ["own", "shown"])
def test_the_error_of_the_products_is_in_every_bar(kind, generator):
    matrix = rotated(torch.linspace(-1, 3, 90), generator)
    shift = 1e-4 * torch.eye(90)
    operator = Single(matrix) if kind == "shown" else Wrapped(matrix + shift)
    error = MatrixError(spectral=1e-4, frobenius=1e-3, trace=9e-3)
    if kind == "own":
        operator.error = error
    exact, slack = torch.linalg.eigvalsh(matrix), 100 * EPS
    for budget in (30, 90):
        assert rt.trace(operator, budget=budget).covers(exact.sum().item())
        assert rt.frobenius_norm(operator, budget=budget).covers(exact.norm().item())
    report = rt.eigen.spectral_estimates(operator, 2, tolerance=1e-9)
    assert misses(report.largest, exact.flip(0)[:2], slack) == 0
    assert report.density.round_off >= (1e-4 if kind == "own" else 1e-8)
    width = report.largest[0].high - report.largest[0].low
    assert width <= (1e-3 if kind == "own" else 1e-4)


def test_an_error_that_is_seen_widens_the_one_that_is_told():
    error = MatrixError(spectral=1.0, frobenius=5.0, trace=2.0)
    assert error.at_least(3.0) == MatrixError(spectral=3.0, frobenius=5.0, trace=3.0)
    assert error.at_least(0.5) == error
    assert error.at_least(7.0) == MatrixError(spectral=7.0, frobenius=7.0, trace=7.0)
    assert error.scaled(2.0) == MatrixError(spectral=2.0, frobenius=10.0, trace=4.0)


@pytest.mark.parametrize("scale", [1e-305, 1e-160, 1e154, 1e300])
def test_any_scale(scale, generator):
    levels = torch.linspace(-1, 1, 60) ** 3 + 0.1
    matrix, exact = scale * rotated(levels, generator), rt.Spectrum.of(scale * levels)
    report = rt.eigen.spectral_estimates(matrix, 2, probes=4, steps=20)
    plain = rt.eigen.spectral_estimates(matrix / scale, 2, probes=4, steps=20)
    assert report.largest[0].covers(exact.largest) and report.smallest[0].covers(exact.smallest)
    for name in ("trace", "frobenius_norm"):
        assert getattr(report, name).value == pytest.approx(
            scale * getattr(plain, name).value, rel=1e-6
        )
    assert rt.trace(matrix, budget=60).covers(exact.trace)
    assert rt.frobenius_norm(matrix, budget=60).covers(exact.frobenius_norm)
    assert report.density.wasserstein_distance(exact) <= report.density.wasserstein_error


def test_what_is_not_symmetric_has_a_norm_and_a_trace(generator):
    matrix = torch.randn(40, 40, generator=generator)
    for budget in (20, 40):
        assert rt.trace(matrix, budget=budget).covers(matrix.trace().item())
        assert rt.frobenius_norm(matrix, budget=budget).covers(matrix.norm().item())
    whole = rt.trace(matrix, budget=40)  # what is not symmetric in a matrix is no rounding
    assert whole.high - whole.low <= 40 * round_off(1) * float(matrix.norm())
    wide = matrix[:15]
    norm = rt.frobenius_norm(wide, budget=40)
    assert norm.covers(wide.norm().item())
    assert norm.high - norm.low <= 40 * round_off(1) * norm.value
    assert rt.frobenius_norm(wide, budget=20).covers(wide.norm().item())
    for call in (rt.eigenpairs, rt.spectral_density, rt.eigen.spectral_estimates):
        with pytest.raises(ValueError, match="A: is not symmetric"):
            call(matrix)
    with pytest.raises(ValueError, match=r"A: got shape \(15, 40\), needs a square operator"):
        rt.trace(wide)


def test_a_space_that_holds_everything_counts_all_copies():
    found = rt.eigenpairs(torch.diag(torch.tensor([7.0, 7, 7, 2, 1, -9])), 2, tolerance=1e-9)
    assert found.multiplicities.tolist() == [3, 3] and not found.at_least.any()


def test_shares_and_quantiles_at_an_eigenvalue():
    density = rt.spectral_density(torch.diag(torch.tensor([-1.0] * 30 + [2.0] * 70)), probes=20)
    assert density.share_below(-1.0).covers(0.3) and density.share_below(2.0).covers(1.0)
    assert rt.spectral_density(torch.eye(50)).quantile(0.5).covers(1.0)
    # Nodes come close to the zeros and to the end, and reach neither.
    levels = torch.cat([torch.zeros(40), torch.linspace(0.2, 1, 60), torch.full((3,), 1 + 1e-4)])
    density = rt.spectral_density(torch.diag(levels), probes=8, steps=12)
    low, high = density.quantile(0.2, magnitude=True), density.quantile(1.0)
    assert low.value > 1e-14 and high.value < 1 + 1e-4 - 1e-14
    assert low.covers(0.0) and high.covers(1 + 1e-4)


def test_a_dense_report_has_the_bars_of_its_matrix():
    spectrum = rt.Spectrum.of([-1.0, 1e-4, 2.0, 4.0], error=1e-3)
    report = rt.eigen.SpectrumReport.of(spectrum, 1, percentile=0)
    assert report.largest[0].high == pytest.approx(4.001)
    assert spectrum.rank == 3 and math.isinf(report.condition_number.high)
    assert report.condition_number.low == pytest.approx(3.999 / 1.1e-3, rel=1e-3)
