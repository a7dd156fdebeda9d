"""Extreme eigenpairs: against LAPACK on degenerate spectra; bounds, certificates, resumed runs."""

import contextlib
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import torch
from tolerances import EPS
from torch import nn

import resid_theory as rt
from resid_theory.eigen import lanczos, ritz_bounds
from resid_theory.eigen.eigenpair_result import Eigenpairs
from resid_theory.eigen.krylov import Krylov, Locked
from resid_theory.eigen.matrix_error import MatrixError
from resid_theory.eigen.operator_log import RecordedOperator
from resid_theory.eigen.orthogonalization import (
    dots,
    orthonormal,
    project_out,
    random_orthonormal,
    slices,
)
from resid_theory.eigen.ritz_bounds import Goal, lehmann

WHICH = ["largest", "smallest", "both", "magnitude"]


class Wrapped:
    """An operator that has nothing but its products, and that fails after some of them."""

    def __init__(self, matrix, kill_after=None):
        self.matrix, self.kill_after, self.calls = matrix, kill_after, 0
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, vectors):
        if self.kill_after is not None and self.calls >= self.kill_after:
            raise KeyboardInterrupt
        self.calls += 1
        return self.matrix @ vectors


def rotated(levels, generator):
    """A symmetric matrix with these eigenvalues, exact to rounding."""
    size = len(levels)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
    matrix = (basis * levels) @ basis.T
    return (matrix + matrix.T) / 2


def simple(size, g):
    return torch.randn(size, generator=g)


def repeated(size, g):
    """About ten copies of each level."""
    levels = torch.randn(max(1, size // 10), generator=g)
    return levels[torch.randint(len(levels), (size,), generator=g)]


def both_signs(size, g):
    """The Hessian of 2-shortcut nets at zero: few levels, each with both signs, P/2 times or so."""
    half = torch.rand(max(1, size // 12), generator=g).repeat(size)[: size // 2]
    return torch.cat([half, -half, torch.zeros(size - 2 * len(half))])


def low_rank(size, g):
    levels = torch.zeros(size)
    levels[: size // 8] = torch.randn(size // 8, generator=g).round(decimals=1)
    return levels


def half_at_the_top(size, g):
    levels = 0.01 * torch.randn(size, generator=g)
    levels[: max(1, size // 2)] = 3.0
    return levels


FAMILIES = [simple, repeated, both_signs, low_rank, half_at_the_top]


def exact_values(matrix, k, which):
    """The oracle: the wanted ones of all eigenvalues by LAPACK."""
    values = torch.linalg.eigvalsh(matrix).flip(0)
    if which == "smallest":
        return values.flip(0)[:k]
    if which == "magnitude":
        return values[values.abs().argsort(descending=True, stable=True)][:k]
    if which == "both" and 2 * k < len(values):
        return torch.cat([values[:k], values[-k:]])
    return values if which == "both" else values[:k]


def assert_right(matrix, found, which, k, tolerance):
    """The right set of values, each within its bound, with vectors that fit the residuals."""
    exact = exact_values(matrix, k, which)
    scale = float(torch.linalg.matrix_norm(matrix, 2))
    lapack = len(matrix) * EPS * scale
    assert found.values.shape == exact.shape
    order = found.values.argsort(stable=True)
    if which == "magnitude":  # of two signs of one magnitude either may be first
        error = (found.values.abs() - exact.abs()).abs()
    else:
        error = (found.values[order] - exact.sort().values).abs()[order.argsort()]
    assert bool((error <= found.bounds + lapack).all())
    assert bool(found.converged.all())
    floor = (tolerance * found.values.abs().clamp_min(0.01 * scale)).clamp_min(100 * lapack)
    assert bool((found.bounds <= floor).all())
    assert_residuals_hold(matrix, found, lapack)
    products = found.vectors.T @ found.vectors
    assert float((products - torch.eye(len(found))).abs().max()) < 1e-12


# Multiplicities up to P / 2.
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", range(6))  # each tolerance at each scale
def test_no_wrong_set_on_degenerate_spectra(seed, family, which):
    g = torch.Generator().manual_seed(1000 * seed + WHICH.index(which))
    size = int(torch.randint(2, 41, (1,), generator=g))
    k = int(torch.randint(1, 6, (1,), generator=g))
    tolerance, scale = (1e-3, 1e-8)[seed % 2], (1.0, 1e8, 1e-8)[seed % 3]
    matrix = scale * rotated(family(size, g), g)
    found = rt.eigenpairs(Wrapped(matrix), k, which=which, tolerance=tolerance, generator=g)
    assert_right(matrix, found, which, k, tolerance)


def test_no_copy_is_missed_where_the_space_is_almost_full(generator):
    matrix = rotated(torch.tensor([-1.0, 0.3, -0.8]).repeat(100), generator)
    for seed in range(12):
        found = rt.eigenpairs(matrix, 5, which="magnitude", generator=seed)
        assert found.values.tolist() == pytest.approx([-1.0] * 5, abs=1e-9)


@pytest.mark.parametrize(
    ("seed", "family", "which"),
    [
        # 9 products in 13 and 14 dimensions: the block of three could not grow a fifth time.
        (1030, half_at_the_top, "smallest"),
        (1066, half_at_the_top, "smallest"),
        # Ritz values in the middle, each of which represents several eigenvalues, show no gap.
        (1032, both_signs, "magnitude"),
        (5606, half_at_the_top, "smallest"),
        (5862, half_at_the_top, "both"),
    ],
)
def test_spectra_that_were_once_wrong(seed, family, which):
    test_no_wrong_set_on_degenerate_spectra(seed, family, which)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_lehmanns_bounds(count, generator):
    """Against his own form, a generalized eigenvalue problem, and against the eigenvalues."""
    levels = torch.cat([torch.tensor([9.0, 8.0, 7.5, 6.0, 4.0]), torch.rand(25)])
    matrix = rotated(levels, generator)
    top = torch.linalg.eigh(matrix).eigenvectors.flip(1)[:, :count]
    trial, _ = torch.linalg.qr(top + 0.03 * torch.randn(top.shape, generator=generator))
    values, turn = torch.linalg.eigh(trial.T @ matrix @ trial)
    values, vectors = values.flip(0), trial @ turn.flip(1)
    residuals = matrix @ vectors - vectors * values
    floor = levels[count].item()
    assert float(values.min()) > floor
    found = lehmann(values, residuals.T @ residuals, floor)

    shifted = (matrix - floor * torch.eye(30)) @ vectors
    tau = scipy.linalg.eigh((vectors.T @ shifted).numpy(), (shifted.T @ shifted).numpy())[0]
    torch.testing.assert_close(found, floor + 1 / torch.from_numpy(tau), rtol=1e-12, atol=0.0)
    exact = levels[:count]
    assert bool((values <= exact + 1e-13).all()) and bool((exact <= found + 1e-13).all())
    # By Weyl's inequality the shifts are at most the norm of the matrix added to the Ritz values.
    largest = float(torch.linalg.matrix_norm(residuals, 2)) ** 2 / float(values[-1] - floor)
    assert float((found - values).max()) <= largest * (1 + 1e-12)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("init", ["zero", "near_zero"])
@pytest.mark.parametrize("shortcut_depth", [1, 2])
def test_hessians_of_nets_at_zero(depth, init, shortcut_depth, generator):
    net = rt.ShortcutNet(4, blocks=depth, shortcut_depth=shortcut_depth)
    rt.initialize(net, init, generator=generator)
    x = torch.randn(20, 4, generator=generator)
    hessian = rt.hessian(net, "square", (x, torch.tanh(x)))
    found = rt.eigenpairs(hessian, 5, which="both", tolerance=1e-6)
    assert_right(hessian, found, "both", 5, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_larger_with_a_bulk(dtype, generator, device):
    levels = 0.1 * torch.randn(800, generator=generator)
    levels[:7] = torch.tensor([30.0, 20.0, 20.0, 12.0, 10.0, 8.0, -40.0])
    matrix = rotated(levels, generator).to(dtype)
    found = rt.eigenpairs(matrix.to(device), 5, generator=generator)
    assert found.values.device.type == "cpu" and found.vectors.device.type == device.type
    assert found.values.dtype == torch.float64 and found.vectors.dtype == dtype
    exact = exact_values(matrix.double(), 5, "largest")
    assert bool(((found.values - exact).abs() <= found.bounds).all())
    assert found.multiplicities.tolist() == [1, 2, 2, 1, 1]
    assert not found.at_least.any()
    assert found.missed_probability <= 1e-3
    assert found.products < 40


def test_a_smaller_probability_at_stake_takes_more_products(generator):
    levels = torch.cat([0.3 * torch.randn(500, generator=generator), torch.tensor([9.0, 7, 5, 4])])
    found = [rt.eigenpairs(torch.diag(levels), 3, missed=at) for at in (1e-2, 1e-9, 1e-12)]
    products, widest = [f.products for f in found], [f.limits[1] for f in found]
    assert products == sorted(products) and products[0] < products[-1]
    assert all(f.missed_probability <= f.accepted_miss for f in found)
    assert widest[0] < 4.1 and widest == sorted(widest)  # the fourth is 4
    for missed in (0, 1, -0.5):
        with pytest.raises(ValueError, match=f"missed: got {missed}, needs a number in"):
            rt.eigenpairs(torch.diag(levels), 3, missed=missed)


@pytest.mark.parametrize("which", WHICH)
def test_thick_restart(which, generator):
    levels = torch.cat([torch.linspace(-1, 1, 396), torch.tensor([1.1, 1.2, -1.1, -1.3])])
    matrix = rotated(levels, generator)
    found = rt.eigenpairs(matrix, 2, which=which, capacity=24, tolerance=1e-7, generator=generator)
    assert found.products > 24
    assert_right(matrix, found, which, 2, 1e-7)


@pytest.mark.parametrize(
    ("which", "waiting", "kept"),
    [
        ("largest", 1, range(9, 20)),
        ("smallest", 1, range(11)),
        ("both", 1, [*range(6), *range(14, 20)]),
        ("magnitude", 1, [*range(5), *range(14, 20)]),
        ("largest", 6, range(13, 20)),  # with room for two blocks
    ],
)
def test_a_restart_keeps_the_wanted_vectors_and_half_of_the_others(which, waiting, kept):
    goal = Goal(which=which, k=2, tolerance=1e-3)  # both: two at each end
    found = lanczos._kept(SimpleNamespace(multiplied=20, waiting=waiting), goal)
    assert found.tolist() == [*kept]


@pytest.mark.parametrize(("capacity", "steps"), [(9, 3), (10, 4), (11, 4), (30, None)])
def test_a_space_is_full_where_another_block_may_not_fit(capacity, steps):
    matrix, generator = torch.diag(torch.linspace(-1, 1, 30)), torch.Generator().manual_seed(0)
    with RecordedOperator(matrix) as products:
        krylov = Krylov(
            products, Locked.none(products), width=2, capacity=capacity, generator=generator
        )
        for step in range(8):
            assert krylov.is_full is (steps is not None and step >= steps)
            if krylov.is_full:
                break
            krylov.extend(products @ krylov.block)


@pytest.mark.parametrize("which", ["largest", "both"])
def test_a_multiplicity_that_k_splits_is_at_least(which, generator):
    levels = torch.tensor([4.0] * 60 + [-4.0] * 60)
    found = rt.eigenpairs(rotated(levels, generator), 5, which=which, generator=generator)
    torch.testing.assert_close(found.values.abs(), torch.full((len(found),), 4.0))
    assert found.converged.all() and found.at_least.all()
    assert set(found.multiplicities.tolist()) == {5}
    assert "≥ 5" in str(found)


@pytest.mark.parametrize(
    ("matrix", "k", "expected"),
    [
        (torch.zeros(7, 7), 3, [0.0] * 3),
        (torch.zeros(200, 200), 3, [0.0] * 3),
        (torch.eye(300), 5, [1.0] * 5),
        (torch.ones(6, 6), 3, [6.0, 0.0, 0.0]),
        (torch.full((1, 1), -2.0), 5, [-2.0]),
        (torch.diag(torch.tensor([3.0, 1.0])), 5, [3.0, 1.0]),
    ],
    ids=["zero", "large zero", "identity", "rank one", "one parameter", "fewer than k"],
)
@pytest.mark.parametrize("block", [1, 4])
def test_spaces_that_end_early(matrix, k, expected, block):
    matrix = matrix.double()
    found = rt.eigenpairs(matrix, k, block=block, tolerance=1e-10)
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-13)
    assert found.converged.all()
    assert found.missed_probability == 0.0
    assert found.products <= 5 * k * block


def grown(matrix, width, steps, seed):
    """A Krylov space."""
    generator = torch.Generator().manual_seed(seed)
    with RecordedOperator(matrix) as products:
        room, none = len(matrix), Locked.none(products)
        krylov = Krylov(products, none, width=width, capacity=room, generator=generator)
        for _ in range(steps):
            krylov.extend(products @ krylov.block)
    return krylov


def test_no_ghost_in_300_steps(generator):
    levels = torch.cat([1e-5 * torch.randn(1000, generator=generator), torch.tensor([30.0, 20.0])])
    krylov = grown(torch.diag(levels), 1, 300, 0)
    assert int((krylov.ritz().values > 1).sum()) == 2
    columns = krylov._columns[:, :301]
    assert float((columns.T @ columns - torch.eye(301)).abs().max()) < 1e-13


@pytest.mark.parametrize("factor", [2.0**27, 2.0**-100], ids=["1e8", "1e-30"])
def test_scaling_scales_every_bit(factor, generator):
    matrix = rotated(both_signs(60, generator), generator)
    plain = rt.eigenpairs(matrix, 4, which="both")
    scaled = rt.eigenpairs(factor * matrix, 4, which="both")
    assert torch.equal(factor * plain.values, scaled.values)
    torch.testing.assert_close(factor * plain.bounds, scaled.bounds, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(factor * plain.residuals, scaled.residuals, rtol=1e-9, atol=0.0)
    assert scaled.round_off == factor * plain.round_off
    assert scaled.limits == pytest.approx([factor * end for end in plain.limits], rel=1e-12)
    assert plain.products == scaled.products


def assert_residuals_hold(matrix, found, slack=1e-13):
    actual = (matrix @ found.vectors - found.vectors * found.values).norm(dim=0)
    assert bool((actual <= found.residuals * (1 + 1e-6) + slack).all())


@pytest.mark.parametrize("budget", range(1, 20))
def test_every_budget_is_honest(budget, generator):
    matrix = rotated(torch.tensor([5.0] * 4 + [2.0, 1.0, 0.5] * 8), generator)
    found = rt.eigenpairs(matrix, 3, max_products=budget, generator=generator)
    assert found.products <= budget and len(found) <= 3
    assert_residuals_hold(matrix, found)
    if found.missed_probability <= 1e-3 and len(found) == 3:
        torch.testing.assert_close(found.values, torch.full((3,), 5.0))


@pytest.mark.parametrize("budget", [12, *range(24, 40)])
def test_a_budget_may_end_at_a_restart(budget):
    matrix = torch.diag(torch.linspace(-1, 1, 200))
    found = rt.eigenpairs(matrix, 2, max_products=budget, capacity=24, tolerance=1e-12)
    assert found.products <= budget and not found.converged.any()
    assert " no" in str(found)
    assert_residuals_hold(matrix, found)


def test_a_budget_may_end_between_two_runs(monkeypatch):  # of four copies a run sees three
    matrix = torch.diag(torch.cat([torch.tensor([5.0] * 4 + [4.0]), torch.linspace(-1, 1, 95)]))
    run, spent = lanczos._run, []
    monkeypatch.setattr(
        lanczos, "_run", lambda k, *rest: (run(k, *rest), spent.append(k.operator.count))[0]
    )
    rt.eigenpairs(matrix, 2)
    found = rt.eigenpairs(matrix, 2, max_products=spent[0])
    assert spent[0] < spent[1] and spent[2:] == [spent[0]] * 2 and found.products == spent[0]
    assert found.missed_probability == 1.0 and found.limits == (-math.inf, math.inf)
    assert found.multiplicities.tolist() == [2, 2] and found.at_least.all()
    assert bool(((found.values - 5.0).abs() <= found.bounds).all()) and found.converged.all()
    assert_residuals_hold(matrix, found)


@pytest.mark.parametrize("block", [1, 3])
def test_without_verification_nothing_is_promised(block, generator):
    matrix = torch.diag(torch.cat([torch.tensor([9.0, 9.0, 5.0]), torch.linspace(-1, 1, 97)]))
    found = rt.eigenpairs(matrix, 2, verify=False, block=block, generator=generator)
    assert found.missed_probability == 1.0 and found.at_least.all()
    assert found.limits == (-math.inf, math.inf)


def test_random_starts_come_from_the_generator_alone(generator):
    before = torch.get_rng_state()
    matrix = rotated(simple(30, generator), generator)
    first, second = (rt.eigenpairs(matrix, 2, generator=3) for _ in range(2))
    assert torch.equal(first.vectors, second.vectors)
    assert torch.equal(before, torch.get_rng_state())


# -- the certificate -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3])
def test_every_eigenvector_starts_inside_its_ellipsoid(width, generator):
    matrix = rotated(torch.randn(40, generator=generator), generator)
    krylov = grown(matrix, width, 6, 1)
    run = krylov.certificate()
    start = krylov._columns[:, :width]
    values, vectors = torch.linalg.eigh(matrix)
    for value, vector in zip(values, vectors.T, strict=True):
        coefficients = start.T @ vector
        # The shortest preimage of the coefficients under the map of the ball.
        length = (torch.linalg.pinv(run.ellipsoid(value.item())) @ coefficients).norm()
        assert float(length) <= 1 + 1e-9


def test_one_vector_gives_the_christoffel_function(generator):
    levels = torch.randn(300, generator=generator)
    run = grown(torch.diag(levels), 1, 8, 2).certificate()
    diagonal, links = run.ladder.diagonal(), run.ladder.diagonal(-1)
    for position in (levels.max().item() + 0.5, 0.3, levels.min().item() - 4):
        polynomials = [1.0, (position - diagonal[0].item()) / links[0].item()]
        for j in range(1, 8):
            ahead = (position - diagonal[j]) * polynomials[j] - links[j - 1] * polynomials[j - 1]
            polynomials.append((ahead / links[j]).item())
        largest = 1 / math.sqrt(sum(p * p for p in polynomials))
        expected = min(1.0, largest * math.sqrt(2 * 300 / math.pi))
        assert run.missed_at(position) == pytest.approx(expected, rel=1e-9)


# A run may miss an outlier, one among others, a second copy of one, a third.
HIDDEN = {
    "alone": (1, [2.0]),
    "among others": (1, [1.5, 1.7, 1.9, 2.0]),
    "among others, two vectors": (2, [1.5, 1.7, 1.9, 2.0]),
    "second copy": (2, [1.5, 2.0, 2.0]),
    "third copy": (3, [2.0, 2.0, 2.0]),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_certificate_is_right_as_often_as_it_says(case):
    width, outliers = HIDDEN[case]
    levels = torch.linspace(-1, 1, 300)
    levels[: len(outliers)] = torch.tensor(outliers)
    matrix, copies, trials = torch.diag(levels), sum(x == 2.0 for x in outliers), 100
    chances = {3: [], 6: []}  # by steps, where a copy is hidden
    for seed in range(trials):
        krylov = grown(matrix, width, 3, seed)
        for steps, told in chances.items():
            while krylov.steps < steps:
                krylov.extend(krylov.operator @ krylov.block)
            run = krylov.certificate()
            reach = run.ladder[-width:] @ torch.linalg.eigh(run.ladder[:-width]).eigenvectors
            seen = int(((run.values - 2.0).abs() <= reach.norm(dim=0) + 0.02).sum())
            if seen < copies:
                told.append(run.missed_beyond(1.98, 1))
    for steps, told in chances.items():
        for accepted in (0.05, 0.1, 0.2, 0.4):
            wrong = sum(chance <= accepted for chance in told)
            bar = accepted + 4 * math.sqrt(accepted * (1 - accepted) / trials)
            assert wrong / trials <= bar, (steps, accepted)


@pytest.mark.parametrize("width", [1, 2])
def test_the_coefficient_of_a_near_ritz_value_is_free(width, generator):
    """Of any vector that is an eigenvector but for one Ritz vector's part in it."""
    run = grown(rotated(torch.randn(40, generator=generator), generator), width, 6, 1).certificate()
    first, last = run.values[-1].item(), run.values[-2].item()
    place, near = (first + last) / 2, len(run.values) - 1
    _, start, _ = run._parts
    free = run.ellipsoid(place, near=near)[:, near - len(run.values)]
    torch.testing.assert_close(free, start[:, near], rtol=1e-12, atol=0)
    assert run.missed_at(place, near=near) > run.missed_at(place)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_probability_falls_outwards(width):
    run = grown(torch.diag(torch.linspace(-1, 1, 500)), width, 7, 0).certificate()
    chances = torch.tensor([run.missed_at(x) for x in torch.linspace(1.1, 3, 40).tolist()])
    assert 0 < float(chances[-1]) < float(chances[0])
    assert bool((chances.diff() <= 0).all())
    assert bool((chances[chances < 1].diff() < 0).all())


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("sign", [1, -1])
def test_beyond_the_limits_hardly_an_eigenvalue_is_missed(which, sign, monkeypatch):
    result, runs = lanczos._result, []
    monkeypatch.setattr(
        lanczos,
        "_result",
        lambda k, state, c: (runs.append(state.certificate), result(k, state, c))[1],
    )
    levels = sign * torch.cat([torch.tensor([9.0]), torch.linspace(-2, -1, 300)])
    found = rt.eigenpairs(torch.diag(levels), 1, which=which)
    chances = [runs[0].missed_at(limit) for limit in found.limits]
    assert max(chances) <= found.accepted_miss
    rest = [x for x in levels.tolist() if float((found.values - x).abs().min()) > 1e-3]
    assert found.limits[0] <= min(rest) and max(rest) <= found.limits[1]


def test_one_vector_says_nothing_about_copies_and_two_do():
    levels = torch.cat([torch.linspace(-1, 1, 2000), torch.tensor([9.0, 9.5])])
    one, two = (grown(torch.diag(levels), w, 12, 0).certificate() for w in (1, 2))
    assert one.missed_beyond(9.2, 1) > 0.05 and one.missed_apart(9.2, 1) < 1e-6
    assert two.missed_beyond(9.2, 1) < 1e-6


@pytest.mark.parametrize("sign", [1, -1])
def test_an_eigenvalue_apart_is_sought_as_far_outside_as_the_last_two_are_apart(sign, monkeypatch):
    found = grown(torch.diag(torch.linspace(-1, 1, 50)), 1, 6, 0).certificate()
    seen, (last, before) = [], (found.values.flip(0) if sign > 0 else found.values)[:2].tolist()
    monkeypatch.setattr(type(found), "missed_at", lambda _, x: float(seen.append(x) or len(seen)))
    edge = before - sign * 1e-3  # two Ritz values lie beyond
    assert found.missed_apart(edge, sign) == 3.0
    assert seen == pytest.approx([edge, (last + before) / 2, 2 * last - before])


def test_certificate_has_two_mirrored_ends(generator):
    matrix = torch.diag(torch.randn(200, generator=generator))
    run, mirrored = (grown(m, 2, 6, 3).certificate() for m in (matrix, -matrix))
    edge = 1.2 * float(run.values.abs().max())
    assert run.missed_beyond(edge, 1) == pytest.approx(mirrored.missed_beyond(-edge, -1), rel=1e-9)
    top = float(run.values[-1])
    outer, deepest = run.edge(1, 1e-3, inner=top), run.edge(1, 1e-3, inner=-math.inf)
    assert deepest <= outer and run.missed_beyond(outer, 1) <= 1e-3
    assert run.missed_beyond(top + 0.9 * (outer - top), 1) > 1e-3
    assert outer == pytest.approx(-mirrored.edge(-1, 1e-3, inner=-top), rel=1e-9)


def test_edge_inside_of_what_is_seen():
    levels = torch.cat([torch.linspace(-1, 1, 2000), torch.tensor([9.0, 9.5])])
    one, two = (grown(torch.diag(levels), w, 12, 0).certificate() for w in (1, 2))
    assert 1 < two.edge(1, 1e-3, inner=-math.inf) < 5 < two.edge(1, 1e-3, inner=8.0) < 9.0
    assert 9.5 < one.edge(1, 1e-3, inner=-math.inf)


# -- killed and called again -----------------------------------------------------------------------


def same(a, b):
    names = ("values", "vectors", "residuals", "bounds", "multiplicities")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.mark.parametrize("kill_after", [0, 1, 5])
def test_a_killed_run_continues_bit_for_bit(kill_after, generator, tmp_path):
    matrix = torch.diag(torch.linspace(-1, 1, 80))  # no gap: more than ten products on any machine
    whole = rt.eigenpairs(matrix, 3)
    with pytest.raises(KeyboardInterrupt):
        rt.eigenpairs(Wrapped(matrix, kill_after), 3, folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):  # a resumed run is killed, too
        rt.eigenpairs(Wrapped(matrix, 2), 3, folder=tmp_path)
    resumed = rt.eigenpairs(matrix, 3, folder=tmp_path)
    assert same(whole, resumed) and resumed.products == whole.products
    again = Wrapped(matrix)
    assert same(whole, rt.eigenpairs(again, 3, folder=tmp_path))
    assert again.calls == 1  # the check that it is the same operator


@pytest.mark.parametrize("accumulate", ["float32", "float64"])
def test_a_killed_run_on_a_net_continues_bit_for_bit(accumulate, generator, tmp_path):
    # Products of a net lie in memory in another order than what is read from a file.
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Flatten(),
        nn.Linear(288, 10),
    ).float()  # fmt: skip
    x = torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float32)
    y = torch.arange(6) % 10
    operator = rt.curvature_operator(net, "cross_entropy", (x, y), accumulate=accumulate)
    given = {"max_products": 24}
    whole = rt.eigenpairs(operator, 3, **given)
    for count in (4, 3):
        with pytest.raises(KeyboardInterrupt):
            rt.eigenpairs(Wrapped(operator, count), 3, folder=tmp_path, **given)
    assert same(whole, rt.eigenpairs(operator, 3, folder=tmp_path, **given))


def test_products_that_are_zero_are_those_of_the_same_operator(tmp_path):
    first, second = (rt.eigenpairs(torch.zeros(9, 9), 2, folder=tmp_path) for _ in range(2))
    assert same(first, second)


def test_a_folder_of_another_run_is_refused(generator, tmp_path):
    matrix = rotated(simple(20, generator), generator)
    rt.eigenpairs(matrix, 2, folder=tmp_path)
    with pytest.raises(ValueError, match="another operator"):
        rt.eigenpairs(1.1 * matrix, 2, folder=tmp_path)
    with pytest.raises(ValueError, match="belongs to another run"):
        rt.eigenpairs(matrix, 2, folder=tmp_path, generator=1)
    file = sorted(tmp_path.glob("*.safetensors"))[2]
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="damaged"):
        rt.eigenpairs(matrix, 2, folder=tmp_path)


PROGRESS = {
    "Lanczos": lambda A: rt.eigenpairs(A, 2, progress=True, max_products=20),
    "trace": lambda A: rt.trace(A, budget=20, progress=True),
    "Frobenius norm": lambda A: rt.frobenius_norm(A, budget=20, progress=True),
    "Lanczos quadrature": lambda A: rt.spectral_density(A, probes=4, steps=5, progress=True),
    "spectrum": lambda A: rt.eigen.spectral_estimates(A, 2, progress=True),
}


@pytest.mark.parametrize("label", PROGRESS)
def test_progress_is_shown_on_standard_error(label, generator, capsys):
    PROGRESS[label](rotated(simple(30, generator), generator))
    shown = capsys.readouterr()
    assert f"{label}: " in shown.err and shown.out == ""
    assert ("/20 [" in shown.err) == (label != "spectrum") and "product/s]" in shown.err
    assert (" 20/20 [" in shown.err) == (label in ("trace", "Frobenius norm", "Lanczos quadrature"))


# -- bad input -------------------------------------------------------------------------------------


class Wrong(Wrapped):
    def __matmul__(self, vectors):
        return super().__matmul__(vectors)[:-1]


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (torch.zeros(3, 4), r"A: got shape \(3, 4\)"),
        (torch.zeros(0, 0), "A: got shape"),
        (torch.zeros(3, 3, dtype=torch.float16), "A: got dtype torch.float16"),
        (Wrong(torch.eye(4)), "A: gives shape"),
        (torch.full((3, 3), math.nan), "needs finite numbers"),
        (torch.eye(30) + torch.ones(30, 30).triu(), "A: is not symmetric"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_operators_that_are_none(operator, message):
    with pytest.raises(ValueError, match=message):
        rt.eigenpairs(operator, 2)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"k": 0}, "k: got 0"),
        ({"which": "biggest"}, "which: unknown name 'biggest'"),
        ({"tolerance": 0.0}, "tolerance: got 0.0"),
        ({"block": 0}, "block: got 0"),
        ({"capacity": 3}, "capacity: got 3, needs at least"),
        ({"max_products": 0}, "max_products: got 0"),
        ({"max_products": 2, "block": 3}, "max_products: got 2"),
    ],
    ids=str,
)
def test_arguments_out_of_range(keywords, message):
    with pytest.raises(ValueError, match=message):
        rt.eigenpairs(torch.eye(100), **keywords)


def test_no_bound_is_negative_when_residuals_are_rounding(generator):
    values = 10 * torch.randn(8, generator=generator).sort().values
    residuals = 1e-12 * torch.randn(20, 8, generator=generator)
    gram = residuals.mT @ residuals
    ritz = SimpleNamespace(values=values, residuals=residuals.norm(dim=0), noise=0.0,
                           residual_gram=lambda some: gram[some][:, some])  # fmt: skip
    goal = SimpleNamespace(signs=(1,), k=5, verify=True, columns=lambda _: torch.arange(3, 8))
    assert (ritz_bounds.error_bounds(ritz, goal) >= 0).all()


# -- how a search goes on --------------------------------------------------------------------------


class Begun(Exception):
    """The search would begin now."""


def empty(size, dtype=torch.float64):
    return SimpleNamespace(shape=(size, size), dtype=dtype, device="cpu")


@pytest.mark.parametrize(
    ("size", "dtype", "given", "width", "capacity"),
    [
        (1000, torch.float64, {}, 3, 300),
        (1000, torch.float64, {"k": 100}, 3, 3 * 120),  # as many as a restart needs, three times
        (1000, torch.float64, {"k": 100, "which": "both"}, 3, 3 * 220),
        (1000, torch.float64, {"block": 6}, 6, 300),
        (1000, torch.float64, {"verify": False}, 1, 300),
        (1000, torch.float64, {"max_products": 2}, 2, 300),
        (1000, torch.float64, {"max_products": 7}, 3, 300),
        (1000, torch.float64, {"capacity": 25}, 3, 25),
        (1000, torch.float64, {"capacity": 31, "block": 6}, 6, 31),
        (10, torch.float64, {"capacity": 10}, 3, 10),
        (10**7, torch.float64, {}, 3, 26),  # in 2 GiB
        (10**7, torch.float32, {}, 3, 53),
        (10**8, torch.float64, {}, 3, 25),  # as many as k needs
    ],
    ids=str,
)
def test_a_search_begins_with_as_many_vectors(size, dtype, given, width, capacity, monkeypatch):
    begun = []

    def krylov(operator, locked, **given):
        begun.append(given)
        raise Begun

    monkeypatch.setattr(lanczos, "Krylov", krylov)
    with pytest.raises(Begun):
        rt.eigenpairs(empty(size, dtype), **given, generator=7)
    (begun,) = begun
    assert begun.pop("generator").initial_seed() == 7
    assert begun == {"width": width, "capacity": capacity}


@pytest.mark.parametrize(
    ("given", "least"), [({}, 25), ({"k": 2, "which": "both"}, 24), ({"k": 9, "block": 7}, 38)]
)
def test_a_capacity_without_room_for_a_restart_is_refused(given, least):
    with pytest.raises(ValueError) as refused:
        rt.eigenpairs(torch.eye(100), capacity=least - 1, **given)
    assert str(refused.value) == (
        f"capacity: got {least - 1}, needs at least {least} for these k and block"
    )


def steps_of(monkeypatch, matrix, **given):
    """Of each step of the first run, whether the pairs were settled; and the result."""
    after, settled = lanczos.SearchState.after, []

    def spied(krylov, goal, edges, *, first):
        state = after(krylov, goal, edges, first=first)
        if first:
            settled.append(state.is_settled)
        return state

    monkeypatch.setattr(lanczos.SearchState, "after", spied)
    return settled, rt.eigenpairs(matrix, 3, generator=0, **given)


OUTLIERS = torch.cat([torch.linspace(-1, 1, 500), torch.tensor([9.0, 7.0, 5.0])]).double()


@pytest.mark.parametrize(("block", "more"), [(2, 30), (3, 20), (7, 9)])
def test_a_verification_has_sixty_products_more(block, more, monkeypatch):
    given = {"missed": 1e-300, "block": block}  # so improbable is nothing
    settled, found = steps_of(monkeypatch, torch.diag(OUTLIERS), **given)
    assert len(settled) == settled.index(True) + 1 + more and all(settled[-more:])
    assert found.products == block * len(settled)


@pytest.mark.parametrize(("chance", "goes_on"), [(0.1, False), (0.101, True)])
def test_without_verification_a_run_ends_where_another_value_is_improbable(
    chance, goes_on, monkeypatch
):
    monkeypatch.setattr(lanczos.SearchState, "missed_apart", chance)
    settled, found = steps_of(monkeypatch, torch.diag(OUTLIERS), verify=False, tolerance=1e-9)
    needed = settled.index(True) + 1
    assert needed >= 9 and needed % 4  # a quarter more, rounded up
    assert len(settled) == found.products == needed + goes_on * math.ceil(needed / 4)


@pytest.mark.parametrize("which", WHICH)
def test_eigenpairs_are_printed_with_their_bounds(which):
    found = Eigenpairs(
        which=which, values=torch.tensor([12.3456789012345, 2.0, 2.0]).double(),
        vectors=torch.eye(3), residuals=torch.tensor([0.5, 0.25, 0.125]),
        bounds=torch.tensor([0.0123, 0.25, 0.5]), multiplicities=torch.tensor([1, 2, 2]),
        at_least=torch.tensor([False, True, False]), converged=torch.tensor([True, False, True]),
        missed_probability=0.00123, limits=(-3.25, 2.125), round_off=1e-9, products=77,
        accepted_miss=0.015,
    )  # fmt: skip
    lines = [line.split() for line in str(found).splitlines()]
    assert " ".join(lines[0]) == (
        f"Eigenpairs, {which}, 77 products; missed one beyond these with probability ≤ 0.001, one "
        "outside [-3.25, 2.125] with ≤ 0.01"
    )
    assert lines[1] == ["eigenvalue", "bound", "residual", "multiplicity", "converged"]
    assert lines[-3:] == [
        ["12.3456789", "0.0123", "0.5", "1", "yes"], ["2", "0.25", "0.25", "≥", "2", "no"],
        ["2", "0.5", "0.125", "2", "yes"],
    ]  # fmt: skip
    frame = found.frame()
    assert list(frame) == [*lines[1][:4], "at_least", "converged"]
    assert frame["at_least"].tolist() == [False, True, False] and len(found) == 3
    ends = [end for e in found.estimates(-1) for end in (e.value, e.low, e.high)]
    wanted = [2, 1.75, 2.25, 2, 1.5, 2.5, 12.3456789012345, 12.3333789012345, 12.3579789012345]
    assert ends == pytest.approx(wanted, rel=1e-8)  # bounds are float32 here
    assert (found.largest, found.smallest) == (found.estimates(1)[0], found.estimates(-1)[0])
    large = found.scaled(8.0)
    for name in ("values", "residuals", "bounds"):
        assert torch.equal(getattr(large, name), 8 * getattr(found, name))
    assert (large.limits, large.round_off) == ((-26.0, 17.0), 8e-9)
    assert torch.equal(large.vectors, found.vectors) and large.products == 77


# -- sums in float64 of vectors in float32 ---------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_long_vectors_are_summed_in_float64(dtype, generator):
    size = 2 * 65_536 + 100  # several slices, the last one shorter
    assert [(rows.start, rows.stop) for rows in slices(size)] == [
        (0, 65_536), (65_536, 131_072), (131_072, 196_608),
    ]  # fmt: skip
    left, right = (torch.randn(size, n, generator=generator).to(dtype) for n in (2, 3))
    exact = left.double().numpy().T @ right.double().numpy()
    found = dots(left, right)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), exact, rtol=0, atol=size * EPS * 10)
    basis, rest = torch.linalg.qr(left)[0], right.clone()
    inside = project_out(rest, basis)
    roughly = project_out(right.clone(), basis, roughly=True)
    exact = basis.double().numpy().T @ right.double().numpy()
    np.testing.assert_allclose(inside.numpy(), exact, rtol=0, atol=1e-11)
    assert (inside.dtype, roughly.dtype) == (torch.float64, dtype)
    single = dtype == torch.float32
    np.testing.assert_allclose(roughly.numpy(), exact, rtol=0, atol=1e-3 if single else 1e-11)
    assert single == bool(abs(roughly.numpy() - exact).max() > 1e-11)  # it is the faster way
    gone = right.double() - basis.double() @ torch.from_numpy(exact)
    torch.testing.assert_close(rest.double(), gone, rtol=0, atol=1e-5 if single else 1e-11)


@pytest.mark.parametrize("shape", [(9, 1), (9, 4), (3, 5)], ids=str)
@pytest.mark.parametrize("threshold", [1e-9, 0.24, 0.26, 0.6, 4.1])
def test_an_orthonormal_basis_leaves_out_what_is_short(shape, threshold, generator):
    rows, columns = shape
    singular = torch.tensor([4.0, 0.5, 0.25])[:columns].double()
    left, right = (
        torch.linalg.qr(torch.randn(n, min(n, 3), generator=generator).double())[0][:, :columns]
        for n in shape
    )
    kept = singular > threshold
    basis, coefficients = orthonormal(left @ torch.diag(singular) @ right.T, threshold)
    assert basis.shape == (rows, int(kept.sum()))
    torch.testing.assert_close(basis.T @ basis, torch.eye(int(kept.sum())).double())
    coefficients = coefficients.view(int(kept.sum()), columns)
    torch.testing.assert_close(basis @ coefficients, left @ torch.diag(singular * kept) @ right.T)
    column = 0.5 * torch.eye(rows).double()[:, 1:2]
    assert orthonormal(column, 0.5)[0].shape == (rows, 0)
    assert torch.equal(orthonormal(column, 0.49)[0], 2 * column)


@pytest.mark.parametrize(("count", "known"), [(3, 4), (5, 4), (9, 8), (0, 2)])
def test_random_vectors_are_orthonormal_beside_a_basis(count, known, generator):
    basis = torch.linalg.qr(torch.randn(9, known, generator=generator))[0].float()
    found = random_orthonormal(count, basis, torch.Generator().manual_seed(3))
    assert found.dtype == torch.float32 and found.shape == (9, min(count, 9 - known))
    both = torch.cat([basis, found], 1).double()
    torch.testing.assert_close(both.T @ both, torch.eye(both.shape[1]).double(), rtol=0, atol=1e-6)


# -- another operator in a folder ------------------------------------------------------------------


@pytest.mark.parametrize(("change", "error"), [(1.4e-8, 0), (1.6e-8, 0), (0.9, 5.0), (1.1, 5.0)])
def test_half_of_the_digits_tell_another_operator(change, error, tmp_path):
    """Products may differ by the root of epsilon, and by twice the error of the operator."""
    A = Wrapped(torch.diag(torch.tensor([8.0, 4, 2, 1]).double()))
    if error:
        A.error = MatrixError(spectral=error, frobenius=99.0, trace=99.0)
    with RecordedOperator(A, folder=tmp_path) as first:
        first @ (3 * torch.eye(4)[:, :1].double())
    A.matrix = A.matrix * (1 + change * (2 * error / 8 if error else 1))
    too_far = change > (1.0 if error else EPS**0.5)
    with RecordedOperator(A, folder=tmp_path) as again:
        with pytest.raises(ValueError, match="^folder: .* was recorded with another operator: other"
                           ) if too_far else contextlib.nullcontext():  # fmt: skip
            assert (again @ (3 * torch.eye(4)[:, :1].double()))[0] == 24.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("count", [0, 2], ids=["alone", "beside locked"])
def test_a_space_holds_what_the_matrix_makes_of_it(count, dtype, generator):
    """A V = [U, V, Q] H before and after a restart, and what follows from it."""
    A = rotated(torch.randn(60, generator=generator), generator).to(dtype)
    near = torch.linalg.eigh(A.double()).eigenvectors[:, 60 - count :]
    start = torch.linalg.qr(near + 0.01 * torch.randn(60, count, generator=generator))[0]
    turn = torch.linalg.eigh(start.T @ A.double() @ start).eigenvectors
    U = (start @ turn).to(dtype)
    values = (U * (A @ U)).double().sum(0)
    errors = (A.double() @ U.double() - U.double() * values).to(dtype)
    small = 1e-12 if dtype == torch.float64 else 1e-4
    with RecordedOperator(A) as products:
        locked = Locked(vectors=U, values=values, errors=errors, noise=0.125)
        krylov = Krylov(products, locked, width=2, capacity=20, generator=generator)
        for step in range(8):
            if step == 6:
                kept = torch.tensor([0, 3, 7, 10, 11])
                ritz = torch.linalg.eigh(krylov.symmetric)
                wanted = krylov.multiplied_vectors.double() @ ritz.eigenvectors[:, kept]
                krylov.restart(kept)
                found = krylov.multiplied_vectors.double()
                torch.testing.assert_close(
                    (found.T @ wanted).abs(), torch.eye(5).double(), rtol=0, atol=small
                )
                torch.testing.assert_close(
                    krylov.symmetric, torch.diag(ritz.eigenvalues[kept]), rtol=0, atol=small
                )
            krylov.extend(products @ krylov.block)
    assert (krylov.steps, krylov.restarts, krylov.multiplied, krylov.waiting) == (8, 1, 9, 2)
    V, Q, whole = krylov.multiplied_vectors.double(), krylov.block.double(), A.double()
    every = torch.cat([U.double(), V, Q], 1)
    torch.testing.assert_close(every.T @ every, torch.eye(11 + count).double(), rtol=0, atol=small)
    image = whole @ V
    torch.testing.assert_close(image, every @ (every.T @ image), rtol=0, atol=small)
    torch.testing.assert_close(krylov.symmetric, V.T @ image, rtol=0, atol=small)
    torch.testing.assert_close(krylov.links, Q.T @ image, rtol=0, atol=small)
    assert krylov.scale <= float(torch.linalg.matrix_norm(whole, 2)) * (1 + small)
    inside = every[:, : 9 + count]
    exact, ritz = torch.linalg.eigvalsh(inside.T @ whole @ inside), krylov.ritz()
    torch.testing.assert_close(ritz.values, exact, rtol=0, atol=small)
    assert ritz.noise == pytest.approx(0.125 + krylov.round_off, rel=1e-6)
    vectors = inside @ ritz.weights
    gaps = whole @ vectors - vectors * ritz.values
    # What is outside of [U, V] of A U and of A V, as they add up in each vector.
    parts = errors.double() - V @ (V.T @ errors.double()), Q @ (Q.T @ image)
    parts = parts[0] @ ritz.weights[:count], parts[1] @ ritz.weights[count:]
    lengths = sum(part.norm(dim=0) for part in parts)
    torch.testing.assert_close(ritz.residuals, lengths + ritz.noise, rtol=0, atol=small)
    assert bool((gaps.norm(dim=0) <= lengths + small).all())
    order = torch.tensor([8, 0, 5])
    grams = sum(part[:, order].T @ part[:, order] for part in parts)
    grams = 2 * grams if count else grams  # an upper bound where there are two parts
    torch.testing.assert_close(ritz.residual_gram(order), grams, rtol=0, atol=small)
    above = grams - gaps[:, order].T @ gaps[:, order]
    assert float(torch.linalg.eigvalsh(above).min()) >= -small
    measured = krylov.measure(ritz, torch.tensor([0, 2, 5, 8]))
    torch.testing.assert_close(
        measured.residual_gram(order), gaps[:, order].T @ gaps[:, order], rtol=0, atol=small
    )
    lengths = gaps[:, order].norm(dim=0) + ritz.noise
    torch.testing.assert_close(measured.residuals[order], lengths, rtol=0, atol=small)
    assert torch.equal(measured.residuals[[1, 3]], ritz.residuals[[1, 3]])
    again = krylov.lock(ritz, order)
    assert torch.equal(again.values, ritz.values[order]) and again.vectors.dtype == dtype
    torch.testing.assert_close(again.vectors.double(), vectors[:, order], rtol=0, atol=small)
    torch.testing.assert_close(again.errors.double(), gaps[:, order], rtol=0, atol=small)
    assert again.noise == pytest.approx(0.125 + krylov.round_off, rel=1e-6)


def test_what_restarts_drop_is_in_every_residual(generator):
    """Where coefficients are not symmetric, kept vectors are no eigenvectors of them."""
    A = rotated(torch.randn(40, generator=generator), generator)
    krylov, dropped = grown(A + 1e-6 * torch.randn(40, 40, generator=generator), 2, 7, 0), []
    for kept in ([0, 2, 9, 13], [1, 3]):
        V = krylov.multiplied_vectors.clone()
        own = V.T @ krylov.operator.matrix @ V
        chosen = torch.linalg.eigh((own + own.T) / 2).eigenvectors[:, kept]
        assert krylov.asymmetry == pytest.approx(float((own - own.T).norm()) / 2)
        dropped.append(float((own @ chosen - chosen @ (chosen.T @ own @ chosen)).norm()))
        krylov.restart(torch.tensor(kept))
        assert krylov.ritz().noise - krylov.round_off == pytest.approx(math.hypot(*dropped))


@pytest.mark.parametrize(
    ("levels", "given", "widths"),
    [
        ([5.0] * 2, {}, [3]),  # fewer than the start has vectors
        ([5.0] * 3, {}, [3, 1]),
        ([5.0] * 4, {}, [3, 1, 2]),  # twice as many as the run before found
        ([5.0] * 2, {"block": 1}, [1, 1, 2]),
        ([5.0] * 4, {"verify": False}, [1]),
        ([0.0] * 50, {"k": 20}, [3, 4]),  # as many as are missing, at most four
        ([0.0] * 50, {"k": 20, "block": 6}, [6, 6]),  # or those of the first run
        ([0.0] * 50, {"k": 5}, [3, 2]),
        ([0.0] * 50, {"k": 20, "verify": False}, [1, 4]),  # without them nothing is settled
        ([0.0] * 4, {"k": 5}, [3, 1]),  # of as many as there are
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else f"{len(value)} of {value[0]}",
)
def test_runs_in_the_complement_begin_with_as_many_vectors(levels, given, widths, monkeypatch):
    begun = []

    def krylov(*given, **more):
        space = Krylov(*given, **more)
        begun.append(space.width)
        return space

    monkeypatch.setattr(lanczos, "Krylov", krylov)
    rest = torch.cat([torch.tensor([4.0, 3, 2.5, 2]), torch.linspace(-1, 1, 95)])
    every = torch.cat([torch.tensor(levels), rest]) if levels[0] else torch.tensor(levels)
    rt.eigenpairs(torch.diag(every), **{"k": len(levels) + 2, **given})
    assert (begun if levels[0] else begun[:2]) == widths


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bases_are_made_where_the_vectors_are(dtype, cuda, generator):
    """Coefficients and norms, too: their sums are float64 on the vectors' device."""
    near = torch.randn(70, 5, generator=generator).to(dtype)
    far, wide = near.to(cuda), near.double()
    products = dots(far[:, :2], far[:, 2:])
    basis, lengths = orthonormal(far[:, :1], 0.0)
    inside = [project_out(far[:, 1:].clone(), basis, roughly=roughly) for roughly in (True, False)]
    drawn = random_orthonormal(2, basis, generator)
    assert {x.device for x in (products, basis, lengths, *inside, drawn)} == {far.device}
    assert basis.dtype == drawn.dtype == dtype and products.dtype == torch.float64
    exact = wide[:, :2].T @ wide[:, 2:]
    torch.testing.assert_close(products.cpu(), exact, rtol=0, atol=70 * EPS * 25)
