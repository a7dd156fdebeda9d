"""Trace and Frobenius norm: bars of all products, killed calls, and the space that they share."""

import math

import pytest
import torch
from test_estimates import LEVELS, few
from test_lanczos import Wrapped, rotated

import resid_theory as rt
from resid_theory.eigen import traces
from resid_theory.eigen.matrix_error import MatrixError
from resid_theory.eigen.orthogonalization import random_orthonormal

CALLS = {
    "trace": rt.trace,
    "norm": rt.frobenius_norm,
    "density": lambda A, budget, **given: rt.spectral_density(A, probes=3, steps=8, **given),
}


@pytest.mark.parametrize("kind", CALLS)
def test_a_killed_estimate_continues_bit_for_bit(kind, generator, tmp_path):
    matrix, call = rotated(LEVELS, generator), CALLS[kind]
    whole, counted = call(matrix, budget=24).to_json(), Wrapped(matrix)
    call(counted, budget=24)
    for files in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            call(Wrapped(matrix, 2), budget=24, folder=tmp_path)  # the first one is checked again
        assert len(list(tmp_path.glob("product_*.json"))) == files
    again = Wrapped(matrix)
    assert call(again, budget=24, folder=tmp_path).to_json() == whole
    assert again.calls == counted.calls - 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.0055, 0.0097, 0.0103, 0.0195])
@pytest.mark.parametrize("rows", [40, 25])
def test_bars_of_all_products_are_their_rounding(rows, share, dtype, generator):
    """An asymmetry of up to a hundredth of the norm is rounding, beyond that it is the matrix's."""
    even = rotated(torch.linspace(-1, 3, 40), generator)
    odd = torch.randn(40, 40, generator=generator)
    odd = odd - odd.T
    whole = even + share / float(odd.norm()) * float(even.norm()) * odd
    A = Wrapped(whole[:rows].to(dtype))
    A.error = MatrixError(spectral=9.0, frobenius=0.25, trace=0.5)
    vectors = random_orthonormal(
        40, torch.empty(40, 0, dtype=dtype), torch.Generator().manual_seed(0)
    )
    images = (A.matrix @ vectors).double()
    value, norm = (
        float((vectors.double() * images).sum()) if rows == 40 else 0.0,
        float(images.norm()),
    )
    rounding = torch.finfo(dtype).eps * (10 + 40**0.5) * norm
    if rows == 40 and share <= 0.01:
        within = vectors.double().T @ images
        shown = float((within - within.T).norm()) / 2
        rounding = max(rounding, 10 * shown * (2 * 40 / (40 * 39)) ** 0.5)
    found = [rt.frobenius_norm(A, budget=60), *([rt.trace(A, budget=40)] if rows == 40 else [])]
    for made, exact, own in zip(found, (norm, value), (0.25, 0.5), strict=False):
        assert made.value == pytest.approx(exact, rel=1e-12, abs=1e-12) and not made.standard_error
        for half in (made.high - made.value, made.value - made.low):
            assert half == pytest.approx(rounding + own, rel=1e-6)


class Counted(Wrapped):
    """Keeps the number of vectors of each product."""

    def __init__(self, matrix):
        super().__init__(matrix)
        self.widths = []

    def __matmul__(self, vectors):
        self.widths.append(vectors.shape[1])
        return super().__matmul__(vectors)


@pytest.mark.parametrize(("budget", "first"), [(6, 3), (41, 5), (42, 6), (50, 6), (54, 7)])
def test_a_twelfth_of_the_products_and_two_or_three_more_are_random_at_first(budget, first):
    for call in (rt.trace, rt.frobenius_norm):
        A = Counted(torch.diag(LEVELS))
        call(A, budget=budget)
        assert A.widths[0] == first


@pytest.mark.parametrize(("budget", "room"), [(11, 11), (60, 60), (90, 60)])
def test_no_more_vectors_are_held_than_there_are(budget, room, monkeypatch):
    drawn, held = traces._Drawn, []

    def spied(operator, most):
        held.append(most)
        return drawn(operator, most)

    monkeypatch.setattr(traces, "_Drawn", spied)
    rt.trace(torch.diag(LEVELS), budget=budget)
    assert held == [room]


@pytest.mark.parametrize("direction", [[1.0, 1e-9, 0], [-1.0, 0, 1e-9], [0.6, 0, -0.8], [0, 1, 0]])
def test_a_complement_is_orthonormal_wherever_its_direction_points(direction):
    direction = torch.tensor(direction).double()[:, None]
    direction = direction / direction.norm()
    both = torch.cat([direction, traces._complement(direction)], 1)
    torch.testing.assert_close(both.T @ both, torch.eye(3), rtol=0, atol=1e-14)


def test_how_few_vectors_carry_most_is_a_mean_of_squared_cosines(generator):
    vectors = torch.randn(9, 4, generator=generator)
    gram = vectors.T @ vectors
    assert traces._concentration(gram) == pytest.approx(few(gram), rel=1e-12)
    assert traces._concentration(torch.outer(vectors[0], vectors[0])) == pytest.approx(1.0)
    assert traces._concentration(torch.zeros(3, 3)) == traces._concentration(torch.ones(1, 1)) == 1
    assert math.isclose(traces._concentration(torch.eye(3)), 0.0)


@pytest.mark.parametrize(("power", "limit"), [(1, 0.7 / 20), (2, (1.4 / 20) ** 2)])
@pytest.mark.parametrize("wide", [0.97, 1.03])
def test_a_space_pays_where_its_share_of_the_rest_exceeds_seven_tenths(
    power, limit, wide, monkeypatch
):
    """After four of 24 products; of squared cosines for the trace, of their roots for the norm."""
    begun = []
    monkeypatch.setattr(traces, "_concentration", lambda gram: wide * limit)
    monkeypatch.setattr(traces, "_extend", lambda drawn, *rest: begun.append((drawn.count, *rest)))
    (rt.trace, rt.frobenius_norm)[power - 1](torch.diag(LEVELS), budget=24)
    assert begun[:1] == ([(4, 24, power)] if wide > 1 else [])


def test_no_product_with_nothing_is_asked_for(generator):
    matrix = torch.randn(60, 60, generator=generator)
    matrix += matrix.clone().T  # in which no few directions carry most

    for call in (rt.trace, rt.frobenius_norm):
        A = Counted(matrix)
        call(A, budget=20)
        assert 0 not in A.widths and sum(A.widths) == 20


@pytest.mark.parametrize("seed", range(3))
def test_bars_do_not_depend_on_a_multiple_of_the_identity(seed, generator):
    """The variance of zᵀ A z does not; as a difference of squares of 1e8 it would be rounding."""
    values = torch.randn(100, generator=generator)
    shifted = rotated(1e8 + values, generator)
    spread = 100 * float(values.var(unbiased=False)) ** 0.5 * (2 / 102) ** 0.5
    exact = float(shifted.trace())
    report = rt.eigen.spectral_estimates(shifted, 1, probes=10, steps=4, generator=seed)
    for found, count in ((rt.trace(shifted, budget=20, generator=seed), 20), (report.trace, 10)):
        assert 0.5 < found.standard_error / (spread / count**0.5) < 1.5
        assert abs(found.value - exact) <= 5 * found.standard_error
    norm = report.frobenius_norm  # nearly the trace over the root of P
    assert 0.5 < norm.standard_error / (spread / 10**0.5 / 100**0.5) < 1.5
    assert abs(norm.value - float(shifted.norm())) <= 5 * norm.standard_error
