"""Error bars by their definitions, on measures of three probes and runs whose numbers are known."""

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from test_lanczos import grown
from tolerances import EPS

import resid_theory as rt
from resid_theory.curvature.rounding import asymmetry
from resid_theory.eigen.certificate import Certificate
from resid_theory.eigen.convergence import SearchState
from resid_theory.eigen.density import Density
from resid_theory.eigen.eigenpair_result import clusters
from resid_theory.eigen.gauss_rules import radau_rule
from resid_theory.eigen.implicit_deflation import ProbeMeasure, without_resolved
from resid_theory.eigen.krylov import (
    _SURE,
    Ritz,
    check_symmetric,
    coefficient_noise,
    product_rounding,
)
from resid_theory.eigen.lanczos import _result
from resid_theory.eigen.matrix_error import MatrixError
from resid_theory.eigen.operator_log import RecordedOperator
from resid_theory.eigen.ritz_bounds import Goal, error_bounds
from resid_theory.eigen.spectrum_report import _condition_number, _verified

ROWS = [[-2.0, -0.5, 1.0, 4.0], [-1.8, -0.2, 1.5, 3.5], [-2.2, 0.4, 0.9, 4.2]]
MASSES = [[0.1, 0.4, 0.3, 0.2], [0.2, 0.3, 0.3, 0.2], [0.15, 0.35, 0.25, 0.25]]
NODES, WEIGHTS = (torch.tensor(rows, dtype=torch.float64) for rows in (ROWS, MASSES))
KNOWN, SIZE, SHARE = (6.0, -3.0), 20, 18 / 20
T = float(stats.t.ppf(0.975, 2))  # of three probes


def density(complete=True, known_error=0.01):
    """Two known eigenvalues of twenty, and three probes of four nodes for the others."""
    return Density(
        size=SIZE, nodes=NODES, weights=WEIGHTS, diagonals=NODES,
        links=torch.full((3, 4), 0.1).double(), complete=torch.full((3,), complete),
        known=torch.tensor(KNOWN).double(), known_residuals=torch.zeros(2).double(),
        known_error=known_error, round_off=0.0, products=12,
    )  # fmt: skip


def shares(place):
    """Share of each probe's measure up to a place."""
    return (WEIGHTS * (place >= NODES)).sum(1)


def test_the_kernel_is_as_wide_as_the_range_over_the_nodes():
    width = (6.0 + 3.0) / 4
    curve = density().smoothed()
    assert curve.width == pytest.approx(width)
    ends = torch.tensor([-3 - 3 * width, 6 + 3 * width], dtype=torch.float64)
    torch.testing.assert_close(curve.grid[[0, -1]], ends)
    assert len(curve.grid) == 1001
    kernel = torch.from_numpy(stats.norm.pdf((curve.grid[:, None, None] - NODES) / width) / width)
    by_probe = SHARE * (kernel * WEIGHTS).sum(2)
    known = stats.norm.pdf(curve.grid[:, None], list(KNOWN), width).sum(1) / SIZE
    torch.testing.assert_close(curve.values, by_probe.mean(1) + torch.from_numpy(known))
    torch.testing.assert_close(curve.standard_errors, by_probe.std(1) / math.sqrt(3))


@pytest.mark.parametrize(("level", "width"), [(2.0, 2.0), (-2.0, 2.0), (0.0, 1.0)])
def test_the_kernel_of_a_single_level_is_as_wide_as_its_magnitude(level, width, generator):
    basis = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64)).Q
    found = rt.spectral_density(level * basis @ basis.mT, probes=5)  # equal but for round-off
    curve = found.smoothed()
    assert curve.width == pytest.approx(width) and found.nodes.shape[1] == 1
    assert torch.trapezoid(curve.values, curve.grid).item() == pytest.approx(1.0, abs=0.01)


def test_the_wasserstein_error_has_three_parts():
    heights = [
        sum((max(a, b) + min(a, b) / 4) * float(gap)
            for a, b, gap in zip(w[:-1].tolist(), w[1:].tolist(), row.diff(), strict=True))
        for row, w in zip(NODES, WEIGHTS, strict=True)
    ]  # fmt: skip
    assert density(complete=False).quadrature_error == pytest.approx(SHARE * sum(heights) / 3)
    found, places = density(), sorted([*NODES.flatten().tolist(), *KNOWN])
    exact = 0.0
    for low, high in zip(places, places[1:], strict=False):
        exact += T * SHARE * float(shares((low + high) / 2).std()) / math.sqrt(3) * (high - low)
    assert (found.sampling_error, found.quadrature_error) == (pytest.approx(exact), 0.0)
    assert found.wasserstein_error == pytest.approx(exact + 0.01)


@pytest.mark.parametrize("place", [-1.0, 0.0, 1.2, 5.0])
def test_a_share_has_students_interval(place):
    found, below = density().share_below(place), sum(v <= place for v in KNOWN) / SIZE
    half = T * SHARE * float(shares(place).std()) / math.sqrt(3)
    value = SHARE * float(shares(place).mean()) + below
    assert found.value == pytest.approx(value)
    assert found.low == pytest.approx(max(value - half, below))
    assert found.high == pytest.approx(min(value + half, below + SHARE))


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.8])
def test_a_quantile_inverts_the_interval_of_the_share(share, magnitude):
    places = torch.cat([NODES.flatten(), torch.tensor(KNOWN)]).double()
    order = (places.abs() if magnitude else places).sort()
    weights = torch.cat([SHARE / 3 * WEIGHTS.flatten(), torch.full((2,), 1 / SIZE)]).double()
    totals = weights[order.indices].cumsum(0)

    def at(wanted):
        return float(order.values[(totals < wanted - 1e-9).sum().clamp(max=len(totals) - 1)])

    value = at(share)
    inside = NODES.abs() <= value if magnitude else value >= NODES
    half = T * SHARE * float((WEIGHTS * inside).sum(1).std()) / math.sqrt(3)
    found = density().quantile(share, magnitude=magnitude)
    assert (found.value, found.low, found.high) == (value, at(share - half), at(share + half))


@pytest.mark.parametrize("count", [7, 10, 49])
def test_a_share_on_the_edge_of_a_node_is_not_moved_by_rounding(count):
    nodes = torch.arange(count).double().view(1, -1) - 3
    found = replace(
        density(), size=count, nodes=nodes, weights=torch.full((1, count), 1 / count).double(),
        complete=torch.ones(1, dtype=torch.bool), known=torch.empty(0).double(),
        known_residuals=torch.empty(0).double(), links=0 * nodes,
    )  # fmt: skip
    for k in range(1, count + 1):
        assert found.quantile(k / count).value == k - 4
        by_size = nodes.abs().sort().values[0, k - 1]
        assert found.quantile(k / count, magnitude=True).value == by_size
        assert found.quantile((k - 0.01) / count).value == k - 4
    assert found.quantile(0.0).value == -3


def test_residuals_are_those_of_the_ritz_vectors():
    for diagonal, found in zip(NODES, density(complete=False)._residuals, strict=True):
        matrix = torch.diag(diagonal.double()) + torch.diag(torch.full((3,), 0.1).double(), 1)
        vectors = torch.linalg.eigh(matrix, UPLO="U").eigenvectors
        assert found.tolist() == pytest.approx((0.1 * vectors[-1].abs()).tolist(), rel=1e-6)


def test_a_single_probe_bounds_no_quantile():
    one = Density(
        size=SIZE, nodes=NODES[:1], weights=WEIGHTS[:1], diagonals=NODES[:1],
        links=torch.full((1, 4), 0.1).double(), complete=torch.ones(1, dtype=torch.bool),
        known=torch.tensor(KNOWN).double(), known_residuals=torch.zeros(2).double(),
        known_error=0.0, round_off=0.0, products=4,
    )  # fmt: skip
    found, places = one.quantile(0.5), [*NODES[0].tolist(), *KNOWN]
    assert (found.low, found.high) == (min(places), max(places))
    assert found.standard_error == one.sampling_error == one.wasserstein_error == math.inf


def test_the_resolution_is_half_the_gap_beside_the_node_at_zero():
    # Half of 1.5 around -0.5, of 1.6 around -0.2 and of 0.5 around 0.4.
    assert density(complete=False).resolution == pytest.approx(0.75)
    assert density().resolution == 0.0


def test_what_some_probe_has_not_resolved_is_in_no_measure_known():
    sketch = torch.randn(10, 52, generator=torch.Generator().manual_seed(0))

    def measure(outliers, seed):
        run = grown(torch.diag(torch.cat([torch.linspace(-1, 1, 50), outliers])), 1, 20, seed)
        links = torch.cat([run.symmetric.diagonal(1), run.links[:, -1]])
        inside = sketch @ run.multiplied_vectors
        return ProbeMeasure(
            diagonal=run.symmetric.diagonal(), links=links, sketch=inside, noise=1e-12
        )

    pairs = torch.tensor([5.0, 8.0]), torch.tensor([6.0, 8.0])
    rest, values, residuals = without_resolved([measure(p, k) for k, p in enumerate(pairs)])
    assert values == pytest.approx([8.0]) and len(residuals) == 1
    assert [float(m.nodes[-1]) for m in rest] == pytest.approx([5.0, 6.0])


def listed(**changes):
    """Two eigenpairs at each end."""
    found = rt.eigenpairs(torch.diag(torch.arange(1.0, 7.0)), 2, which="both")
    told = {"values": [9.0, 7.0, -5.0, -6.0], "bounds": [1e-3, 2e-3, 6e-3, 1e-3]}
    told = {name: torch.tensor(numbers).double() for name, numbers in told.items()}
    return replace(found, **{"missed_probability": 0.5, **told, **changes})


def test_a_search_missed_only_what_all_probes_missed_too():
    def probe(chances):
        return SimpleNamespace(
            values=torch.tensor([-5.0059, 0.0, 7.0069]).double(),
            missed_beyond=lambda edge, sign: chances[round(edge, 6), sign],
        )

    ends = (7.007, 1), (-5.006, -1)  # a thousandth, and the largest bound
    probes = [probe(dict(zip(ends, chances, strict=True))) for chances in ((0.1, 0.3), (0.2, 0.1))]
    found, notes = _verified(listed(), probes)
    assert found.missed_probability == pytest.approx(0.1 * 0.2 + 0.3 * 0.1) and notes == ()
    found, notes = _verified(listed(missed_probability=0.01), probes)
    assert found.missed_probability == 0.01


@pytest.mark.parametrize(
    ("seen", "converged", "note"),
    [
        ([-5.0, 7.008], True, "a probe found an eigenvalue above the largest listed; call again"),
        ([-5.007, 7.0], True, "a probe found an eigenvalue below the smallest listed; call again"),
        ([-5.0, 7.0], False, "not every extreme eigenvalue met the tolerance; see its bound"),
    ],
    ids=["above", "below", "coarse"],
)
def test_what_a_probe_finds_beyond_the_list_is_told(seen, converged, note):
    values = [torch.tensor(v).double() for v in ([-4.0, 6.0], seen, [-4.0, 6.0])]
    probes = [SimpleNamespace(values=v, missed_beyond=lambda edge, sign: 0.1) for v in values]
    every = torch.tensor([True, True, True, converged])
    found, notes = _verified(listed(converged=every), probes)
    assert found.missed_probability == 1.0 and len(notes) == 1 and notes[0].startswith(note)


@pytest.mark.parametrize("percentile", [10, 60, 75, 100])
@pytest.mark.parametrize("complete", [True, False])
def test_a_condition_number_is_the_largest_over_a_percentile(percentile, complete):
    seen, pairs = density(complete), listed()
    place = percentile / 100 * (SIZE - 1)
    ranks = (int(place) + 1, min(int(place) + 2, SIZE))
    low, high = (seen.quantile(rank / SIZE, magnitude=True) for rank in ranks)
    bottom = low.value + (place - int(place)) * (high.value - low.value)
    found, floor = _condition_number(pairs, seen, percentile), seen.resolution
    assert found.low == pytest.approx((9 - 1e-3) / max(high.high, floor))
    if bottom <= floor:
        assert found.value == found.standard_error == found.high == math.inf
    else:
        assert found.value == pytest.approx(9 / bottom)
        assert found.standard_error == pytest.approx(9 / bottom**2 * low.standard_error)
        assert found.high == pytest.approx((9 + 1e-3) / low.low if low.low > floor else math.inf)


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_the_probability_is_the_volume_of_the_ellipsoid(draws):
    run = grown(torch.diag(torch.linspace(-1, 1, 500)), draws, 6, 0).certificate()
    place = 1.5 * float(run.values[-1])
    axes = float(torch.linalg.svdvals(run.ellipsoid(place)).prod())
    volume = {1: 500**0.5 * (2 / math.pi) ** 0.5, 2: 250.0, 3: 250**1.5 * 4 / (3 * math.pi**0.5)}
    assert run.missed_at(place) == pytest.approx(axes * volume[draws] * draws**0.5, rel=1e-12)
    assert run.missed_at(place) < 1


def test_a_space_that_is_nearly_complete_excludes_nothing():
    run = grown(torch.diag(torch.linspace(-1, 1, 10)), 2, 4, 0).certificate()
    assert run.missed_at(100.0) == 1.0
    assert [run.edge(s, 1e-3, inner=0.0) for s in (1, -1)] == [math.inf, -math.inf]


def test_bounds_are_of_second_order_where_there_is_a_gap():
    levels = torch.cat([torch.linspace(-1, 1, 300), torch.tensor([6.0, 7.0])])
    found = rt.eigenpairs(torch.diag(levels), 2, tolerance=1e-3)
    assert bool((found.bounds < 0.2 * found.residuals).all())
    assert bool(((found.values - torch.tensor([7.0, 6.0])).abs() <= found.bounds).all())


@pytest.mark.parametrize("function", [rt.trace, rt.frobenius_norm], ids=["trace", "norm"])
@pytest.mark.parametrize("rank", [3, 60])
def test_a_power_of_two_scales_every_digit(function, rank):
    levels = torch.cat([torch.linspace(1, 3, rank), torch.zeros(400 - rank)])
    plain, tiny = (function(torch.diag(s * levels), budget=90) for s in (1.0, 2.0**-66))
    for name in ("value", "standard_error", "low", "high"):
        assert getattr(tiny, name) == 2.0**-66 * getattr(plain, name)


def test_a_power_of_two_scales_every_part_of_a_density():
    levels, found = torch.cat([torch.linspace(1, 2, 60), torch.tensor([-5.0, -6.0])]), []
    for A in (torch.diag(levels), torch.diag(2.0**-400 * levels)):
        pairs = rt.eigenpairs(A, 2, which="smallest", tolerance=1e-3)
        found.append(rt.spectral_density(A, probes=2, steps=8, deflate=pairs))
    plain, tiny = found
    assert bool((plain.known_residuals > 1e-9).all())
    for name in ("nodes", "diagonals", "links", "known", "known_residuals"):
        assert torch.equal(getattr(tiny, name), 2.0**-400 * getattr(plain, name)), name
    assert tiny.known_error == 2.0**-400 * plain.known_error
    assert tiny.round_off == 2.0**-400 * plain.round_off


def test_asymmetry_shows_the_length_of_the_errors_of_products(generator):
    """Errors of length 0.01 in each of four products, spread over fifty directions."""
    operator = SimpleNamespace(dtype=torch.float64, size=50)
    errors = 0.01 / 50**0.5 * torch.randn(2000, 4, 4, generator=generator, dtype=torch.float64)
    asymmetries = (errors - errors.mT).flatten(1).norm(dim=1) / 2
    found = [product_rounding(operator, 0.0, a, 4) for a in asymmetries.tolist()]
    mean = (torch.tensor(found) / _SURE).square().mean().item()
    assert mean == pytest.approx(1e-4, rel=4 * (2 / (6 * 2000)) ** 0.5)  # of six pairs


@pytest.mark.parametrize("share", [0.9, 1.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_are_symmetric_up_to_a_share_of_their_lengths(share, dtype, generator):
    lengths = torch.tensor([[2.0], [3.0], [2.5]])
    vectors = lengths * torch.randn(3, 40, generator=generator)
    drawn = torch.randn(40, 40, generator=generator)
    even, odd = vectors @ (drawn + drawn.T), vectors @ (drawn - drawn.T)
    pairs = [(i, j) for i in range(3) for j in range(3)]
    gap = max(abs(float(vectors[i] @ odd[j] - vectors[j] @ odd[i])) for i, j in pairs)
    longest = max(float(vectors[i].norm() * even[i].norm()) for i in range(3))
    limit = torch.finfo(dtype).eps ** 0.25 * 2 * longest / 40**0.5
    graph = SimpleNamespace(parameters=[torch.zeros(1, dtype=dtype)])
    found = asymmetry(graph, vectors, even + share * limit / gap * odd)
    assert found == pytest.approx(share * limit if share > 1 else 0.0)


@pytest.mark.parametrize("unit", [1.0, 2.0**-700, 2.0**700], ids=["1", "small", "large"])
@pytest.mark.parametrize("place", [-0.4, 0.3, 5.0])
def test_a_rule_with_a_given_node_has_twice_as_many_moments_as_steps(place, unit, generator):
    matrix, m = torch.randn(9, 9, generator=generator, dtype=torch.float64).tril(), 4
    matrix = torch.diag(matrix.diagonal()) + torch.diag(matrix.diagonal(-1).abs(), -1)
    matrix = matrix + matrix.tril(-1).mT
    links = matrix.diagonal(1)[:m]
    nodes, weights = radau_rule(unit * matrix.diagonal()[:m], unit * links, unit * place)
    nodes = nodes / unit
    assert len(nodes) == m + 1 and float((nodes - place).abs().min()) < 1e-12
    for degree in range(2 * m + 1):
        moment = float(torch.linalg.matrix_power(matrix, degree)[0, 0])
        assert float(weights @ nodes**degree) == pytest.approx(moment, rel=1e-9, abs=1e-12)


def test_neighbours_within_both_their_widths_are_one_cluster():
    values = torch.tensor([5.0, 4.5, 4.0, 1.0, -3.0])
    widths = torch.tensor([0.25, 0.25, 0.2, 1.0, 3.0])
    assert clusters(values, widths).tolist() == [0, 0, 1, 2, 2]
    assert clusters(values.flip(0), widths.flip(0)).tolist() == [0, 0, 1, 2, 2]
    assert clusters(values[:0], widths[:0]).tolist() == []


@pytest.mark.parametrize(
    ("values", "crowded"),
    [
        ([0.0, 0.0, 5.0], False),  # two are equal, but not wanted
        ([1.0, 4.996, 5.0], True),  # as far apart as the bounds of both
        ([1.0, 4.9959, 5.0], False),
        ([4.982, 4.982, 5.0], False),  # further inside than twice the edge is from the values
        ([4.984, 4.984, 5.0], True),
    ],
)
def test_a_run_is_crowded_where_as_many_are_equal_as_it_had_vectors(values, crowded):
    found = SimpleNamespace(values=torch.tensor(values).double(), draws=2)
    state = SearchState(
        goal=Goal(which="largest", k=1, tolerance=1e-3), ritz=None, columns=torch.tensor([0]),
        bounds=torch.tensor([2e-3]).double(), targets=torch.tensor([5e-3]).double(),
        edges={1: 4.993}, certificate=found, found=1,
    )  # fmt: skip
    assert state.is_crowded is crowded
    assert replace(state, certificate=None).is_crowded


def searched(which, columns, values, k=1, **changes):
    """A search that has found some of some Ritz values."""
    told = {"bounds": [0.1, 0.2], "targets": [0.3, 0.1]}
    told = {name: torch.tensor(numbers[: len(columns)]) for name, numbers in told.items()}
    ritz = SimpleNamespace(
        values=torch.tensor(values), noise=0.01, residuals=changes.pop("residuals", None)
    )
    return SearchState(
        goal=Goal(which=which, k=k, tolerance=1e-3), columns=torch.tensor(columns), ritz=ritz,
        **{**told, "edges": {}, "certificate": None, "found": 1, **changes},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("which", "k", "columns", "edges"),
    [
        ("largest", 2, [2, 1], {1: 1.2}),
        ("smallest", 2, [0, 1], {-1: 0.8}),
        ("both", 1, [2, 0], {1: 5.3, -1: -4.2}),
        ("magnitude", 2, [2, 0], {1: 4.2, -1: -4.2}),
        ("largest", 3, [2, 1], {}),
    ],
)
def test_edges_are_as_far_outside_the_last_values_as_these_are_known(which, k, columns, edges):
    assert searched(which, columns, [-4.0, 1.0, 5.0], k).new_edges() == pytest.approx(edges)


def test_pairs_that_move_no_edge_are_locked_beside_the_wanted_ones():
    values = [float((-1) ** k * k) for k in range(25)]  # the last is the largest
    residuals = torch.full((25,), 0.3 / 4)
    residuals[[20, 22]] = 0.076
    given = dict(which="largest", columns=[24], values=values, residuals=residuals)
    assert searched(**given).to_lock.tolist() == [24]
    found = searched(**given, edges={1: 9.0}).to_lock.tolist()
    assert found == [24, 23, 21, *range(19, 5, -1)]  # sixteen of them, by magnitude


def test_bounds_hold_where_a_copy_may_be_hidden(monkeypatch):
    monkeypatch.setattr(SearchState, "_innermost", lambda _, sign: {1: 5.5, -1: -9.0}[sign])
    residuals = torch.tensor([0.3, 0.0, 1.7, 0.0, 0.0])
    state = searched("largest", [4, 3], [-1.0, 0.0, 4.0, 5.0, 6.0], 2, residuals=residuals)
    bounds, single, limits = state.certified(torch.tensor([0.3, 0.0, 1.7, 0.02, 0.002]))
    assert bounds.tolist() == pytest.approx([0.3, 0.0, 1.7, 0.51, 0.01])
    assert single.tolist() == [False, False, False, False, True]
    assert limits == pytest.approx((-9.01, 5.7))
    state = searched("both", [4, 0], [-1.0, 0.0, 4.0, 5.0, 6.0], residuals=0 * residuals)
    bounds, single, limits = state.certified(torch.full((5,), 0.02))
    assert bounds.tolist() == pytest.approx([8.01, 0.02, 0.02, 0.02, 0.02])
    assert limits == pytest.approx((-9.01, 5.51))


def test_residuals_hold_where_both_their_parts_point_the_same_way():
    weights = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double() / 2**0.5
    one = torch.ones(1, 1).double()  # A u = v + e for the locked u, and A v = u + e
    ritz = Ritz(values=torch.zeros(2), weights=weights, gram=one, outside=one, noise=0.25)
    residual = 2**0.5  # (e + e) / sqrt(2)
    assert ritz.residual_gram(torch.tensor([0])).item() == pytest.approx(residual**2)
    assert ritz.residuals[0].item() == pytest.approx(residual + 0.25)


@pytest.mark.parametrize(
    ("largest", "unit"),
    [(1.5 * 2.0**150, 2.0**150), (2.0**-150, 2.0**-150), (1.9 * 2.0**100, 1.0), (0.0, 1.0),
     (2.0**101, 2.0**101)],
    ids=["large", "small", "near", "zero", "far"],
)  # fmt: skip
def test_units_are_powers_of_two_of_what_is_far_from_one(largest, unit):
    with RecordedOperator(torch.eye(3)) as operator:
        operator.choose_unit(largest)
        assert operator.unit == unit


def test_a_report_tells_what_its_probes_found(monkeypatch):
    told = ("a note",)
    monkeypatch.setattr("resid_theory.eigen.spectrum_report._verified", lambda p, _: (p, told))
    A = torch.diag(torch.linspace(-1, 1, 60, dtype=torch.float64))
    assert rt.eigen.spectral_estimates(A, 1, probes=2, steps=3).notes == told


def blurred():
    """The same where residuals, steps and rounding leave something open."""
    return replace(
        density(complete=False), known_residuals=torch.tensor([0.3, 0.02]).double(), round_off=0.05
    )


def around(place):
    """Least and most of each probe's measure up to a place, by rules with a node there."""
    ends = []
    for row in NODES:
        nodes, weights = radau_rule(row, torch.full((4,), 0.1).double(), place)
        ends.append([float(weights[nodes < place - 1e-9].sum()),
                     float(weights[nodes < place + 1e-9].sum())])  # fmt: skip
    return torch.tensor(ends).double().T


@pytest.mark.parametrize("place", [-3.04, -1.0, 0.0, 1.2, 5.7])
def test_an_interval_of_a_share_holds_what_errors_may_move(place):
    found, ends = blurred().share_below(place), (place - 0.05, place + 0.05)
    least, most = around(ends[0])[0], around(ends[1])[1]
    moved = list(zip(KNOWN, (0.3, 0.02), strict=True))
    below, above = sum(v + r <= ends[0] for v, r in moved), sum(v - r <= ends[1] for v, r in moved)
    value = SHARE * float((least + most).mean()) / 2 + sum(v <= place for v in KNOWN) / SIZE
    assert found.value == pytest.approx(value)
    low, high = (
        SHARE * (float(x.mean()) + s * T * float(x.std()) / math.sqrt(3)) + known / SIZE
        for x, s, known in ((least, -1, below), (most, 1, above))
    )
    assert found.low == pytest.approx(max(low, below / SIZE))
    assert found.high == pytest.approx(min(high, above / SIZE + SHARE))


def test_a_place_on_a_node_is_no_second_node():
    nodes, weights = radau_rule(torch.tensor([2.0]), torch.tensor([0.5]), 2.0)
    assert (nodes.tolist(), weights.tolist()) == ([2.0], [1.0])
    apart = torch.tensor([1.0, 4.0]), torch.tensor([0.0, 0.5])
    for place in (1.0, 4.0):  # of several it is one
        nodes, weights = radau_rule(*apart, place)
        assert (nodes.tolist(), weights.tolist()) == ([1.0, 4.0], [1.0, 0.0])


def test_links_of_very_different_sizes_do_not_overflow():
    """The square of the larger one over a distance of the size of the smaller one is 1e240."""
    links = torch.tensor([1e-80, 1e80])
    nodes, weights = radau_rule(torch.zeros(2), links, 0.5e-80)
    assert nodes.isfinite().all()
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0), rtol=0, atol=16 * EPS)


# -- the search for an edge, with chances that are told --------------------------------------------


class Told(Certificate):
    """A certificate with given chances, by position and Ritz value."""

    def missed_at(self, position, *, near=None):
        return self.chance(position, near)


def told(values, chance):
    values = torch.tensor(values).double()
    links = 12.0 * (values.abs() == 5)[None]  # with which the norm is 13
    ladder = torch.cat([torch.diag(values), links])
    found = Told(dimension=900, draws=1, ladder=ladder, noise=1e-6)
    object.__setattr__(found, "chance", chance)
    return found


RITZ = [-3.0, 1.0, 2.0, 5.0]


def edge_by_walking(threshold, inner):
    """From far outside past one Ritz value after another, then bisected to a 64th of a gap."""
    stops = [value for value in reversed(RITZ) if value > inner] + [inner]
    found, stop = next(x for k in range(9) if (x := 5 + 13 * 2**k) >= threshold), stops[0]
    for outer, next_one in pairwise(stops):
        if (outer + next_one) / 2 < threshold:
            break
        found, stop = (outer + next_one) / 2, next_one
    step = found - stop
    while step > 1e-6 and stop + step / 2 >= threshold:
        step /= 2
    if step <= 1e-6:
        return stop
    return min(x for k in range(33, 65) if (x := stop + step * k / 64) >= threshold)


@pytest.mark.parametrize("inner", [-math.inf, 0.0, 1.6])
@pytest.mark.parametrize("threshold", [30.1, 10.0, 7.3, 3.6, 3.4, 1.7, 0.3, -0.8, -1.1, -9.0])
def test_the_edge_is_as_far_inside_as_nothing_is_missed(threshold, inner):
    run = told(RITZ, lambda x, near: float(near is None and x < threshold) * 0.2)
    mirrored = told([-x for x in RITZ], lambda x, near: float(near is None and -x < threshold))
    if math.isinf(inner) and threshold < -1:
        inner = -7.0
    expected = edge_by_walking(threshold, inner)
    assert run.edge(1, 0.19, inner=inner) == pytest.approx(expected, rel=1e-12)
    assert mirrored.edge(-1, 0.19, inner=-inner) == pytest.approx(-expected, rel=1e-12)
    assert run.edge(1, 0.2, inner=0.5) == 0.5  # a chance that is accepted


@pytest.mark.parametrize(
    ("place", "near", "edge"),
    [(5.0, 3, 5.0), (2.0, 2, 2.0), (3.5, 3, 2.0), (3.5, 2, 2.0), (1.5, 1, 1.0), (1.5, 2, 1.0)],
)
def test_the_edge_passes_no_value_that_may_have_a_copy(place, near, edge):
    run = told(RITZ, lambda x, beside: float((x, beside) == (place, near)))
    assert run.edge(1, 0.5, inner=-2.0) == edge
    assert told(RITZ, lambda x, near: 0.0).edge(1, 0.5, inner=-2.0) == -2.0


@pytest.mark.parametrize("wide", [0.9, 1.1])
def test_an_edge_is_sought_up_to_half_a_billion_times_the_norm_outside(wide):
    run = told(RITZ, lambda x, near: float(x < wide * 13 * 2**29))
    assert math.isinf(run.edge(1, 0.5, inner=0.0)) == (wide > 1)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_or_a_copy_may_be_missed_at_ritz_values_and_between_them(sign):
    asked = {(sign * 0.5, None)} | {
        (sign * x, near if sign > 0 else 3 - near)
        for x, near in [(1, 1), (2, 2), (5, 3), (1.5, 1), (1.5, 2), (3.5, 2), (3.5, 3)]
    }
    for worst in asked:
        seen = set()

        def chance(x, near, worst=worst, seen=seen):
            seen.add((x, near))
            return 0.7 if (x, near) == worst else 0.1

        run = told([sign * x for x in RITZ], chance)
        assert run.missed_beyond(sign * 0.5, sign) == 0.7 and seen == asked


def test_the_innermost_edge_is_not_inside_what_was_found_or_sought(monkeypatch):
    asked = []

    def edge(sign, missed, *, inner):
        asked.append((sign, missed, inner))
        return sign * 4.5

    run = SimpleNamespace(edge=edge)
    monkeypatch.setattr(SearchState, "missed", 1e-3)
    state = searched("both", [3, 0], [-4.0, 1.0, 3.0, 5.0], edges={1: 4.2}, certificate=run)
    assert (state._innermost(1), state._innermost(-1)) == (4.2, -4.5)
    assert asked == [(1, 1e-3, 3.0), (-1, 1e-3, 1.0)]
    assert replace(state, edges={1: 4.7})._innermost(1) == 4.5
    assert replace(state, certificate=None)._innermost(1) == math.inf
    every = searched("both", [1, 0], [-4.0, 1.0], certificate=run)
    assert every._innermost(1) == 4.5 and asked[-1] == (1, 1e-3, -4.0)
    monkeypatch.setattr(SearchState, "missed", 1.1e-3)
    assert (state._innermost(1), state._innermost(-1)) == (math.inf, -math.inf)


def test_chances_at_both_ends_add_up_to_one_at_most():
    run = SimpleNamespace()
    state = searched("both", [1, 0], [-4.0, 1.0], edges={1: 2.0, -1: -5.0}, certificate=run)
    for large in (0.3, 0.8):
        chance = {(2.0, 1): large, (-5.0, -1): 0.4}
        found = state._total(lambda run, edge, sign, c=chance: c[edge, sign])
        assert found == pytest.approx(min(1.0, large + 0.4))
    assert replace(state, edges={}).missed == replace(state, certificate=None).missed_apart == 1.0


@pytest.mark.parametrize("chance", [5e-4, 5.1e-4])
def test_a_run_is_verified_up_to_the_chance_that_is_accepted(chance):
    asked = []
    run = told(RITZ, lambda x, near: asked.append((x, near)) or chance)
    state = searched("both", [1, 0], [-4.0, 1.0], edges={1: 3.0, -1: -1.0}, certificate=run)
    assert state.is_verified == (2 * chance <= state.goal.missed) == (chance == 5e-4)
    assert set(asked) == {(3.0, None), (5.0, 3), (-1.0, None), (-3.0, 0)}
    asked.clear()
    state = replace(state, goal=replace(state.goal, missed=4e-4))
    assert not state.is_verified and asked == [(3.0, None), (-1.0, None)]  # one is enough at an end


@pytest.mark.parametrize("kind", ["exact", "single", "asymmetric"])
def test_targets_are_relative_to_a_hundredth_of_the_largest_or_rounding(kind, generator):
    levels = torch.cat([torch.linspace(-0.004, 0.004, 60), torch.tensor([9.0, 0.05])])
    matrix = torch.diag(levels).to(torch.float32 if kind == "single" else torch.float64)
    if kind == "asymmetric":
        matrix = matrix + 1e-5 * torch.randn(62, 62, generator=generator).triu(1)
    krylov = grown(matrix, 3, 9, 0)
    for tolerance in (1e-2, 1e-15):
        goal = Goal(which="largest", k=3, tolerance=tolerance)
        state = SearchState.after(krylov, goal, {}, first=False)
        values = krylov.ritz().values.flip(0)[:3]
        floor = 3 * krylov.ritz().noise + 2 * krylov.asymmetry
        wanted = [max(tolerance * max(abs(x), 0.01 * krylov.scale), floor) for x in values.tolist()]
        assert state.targets.tolist() == pytest.approx(wanted, rel=1e-12)
        assert (state.found, state.edges, state.certificate) == (27, {}, None)
    assert state.targets[0] == floor
    above = SearchState.after(krylov, goal, {1: 0.04, -1: -0.5}, first=False)
    assert above.found == 2 and above.certificate.draws == 3
    assert SearchState.after(krylov, goal, {1: 0.04}, first=True).found == 27  # of the first, all


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 50), (torch.float32, 40_000)])
def test_rounding_of_a_product_is_that_of_its_sums_or_what_it_shows(dtype, size):
    A = SimpleNamespace(shape=(size, size), dtype=dtype, device="cpu")
    with RecordedOperator(A) as operator:
        usual = torch.finfo(dtype).eps * (10 + min(size**0.5, 100)) * 3.0
        assert product_rounding(operator, 3.0) == pytest.approx(usual, rel=1e-12)
        for count, pairs in ((0, 1), (1, 1), (2, 2), (5, 20)):
            shown = 10 * 0.2 * (2 * size / pairs) ** 0.5
            assert product_rounding(operator, 3.0, 0.2, count) == pytest.approx(shown, rel=1e-12)
        assert coefficient_noise(operator, 0.7) == pytest.approx(7 / size**0.5, rel=1e-12)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float64, 1e-4), (torch.float32, 1e-2)])
@pytest.mark.parametrize("frobenius", [0.0, 0.5])
def test_asymmetry_beyond_a_share_of_the_norm_and_the_error_is_refused(dtype, share, frobenius):
    error = MatrixError(spectral=9.0, frobenius=frobenius, trace=9.0)
    A = SimpleNamespace(shape=(9, 9), dtype=dtype, device="cpu", error=error)
    with RecordedOperator(A) as operator:
        limit = share * 30.0 + frobenius
        check_symmetric(operator, 0.999 * limit, 30.0)
        operator.unit = 4.0  # errors are told in it
        with pytest.raises(ValueError) as refused:
            check_symmetric(operator, 1.001 * limit, 30.0)
        assert str(refused.value) == (
            f"A: is not symmetric: <u, A v> and <v, A u> differ by {4.004 * limit:.2g}, A has norm "
            "1.2e+02; a product that changes from call to call (shuffled data, dropout, TF32) is "
            "the usual cause; needs a symmetric operator (trace and frobenius_norm take any)"
        )


def spread_density():
    """Three probes whose nodes stand for single levels here and for many there."""
    links = torch.tensor([[0.3, 0.9, 0.8, 0.7], [0.2, 0.1, 0.1, 1e-4], [1.0, 0.9, 1.1, 0.6]])
    return replace(density(complete=False), links=links.double())


def test_mass_between_nodes_that_stand_for_many_is_spread_evenly():
    found, grid = spread_density(), torch.tensor([-4.0, -3, -1.9, -1.2, 0.2, 0.95, 1.0, 3.9, 6, 7])
    grid, spreads = grid.double(), 0
    shares = []
    for k in range(3):
        row, weights, links = found.nodes[k].tolist(), WEIGHTS[k].tolist(), found.links[k].tolist()
        matrix = np.diag(NODES[k].numpy()) + np.diag(links[:3], 1) + np.diag(links[:3], -1)
        residuals = links[3] * abs(np.linalg.eigh(matrix)[1][-1])
        gaps = [math.inf, *np.diff(row), math.inf]
        many = [r > 0.05 * min(gaps[i : i + 2]) for i, r in enumerate(residuals)]
        share = sum(w * (row[i] <= grid) for i, w in enumerate(weights))
        for i in range(3):
            if many[i] and many[i + 1]:  # half of the lighter one's mass comes from either
                mass, spreads = min(weights[i : i + 2]), spreads + 1
                ramp = ((grid - row[i]) / (row[i + 1] - row[i])).clamp(0, 1)
                share = share + mass * (ramp - (row[i] <= grid) / 2 - (row[i + 1] <= grid) / 2)
        shares.append(share)
    assert 0 < spreads < 9
    shares = torch.stack(shares)
    known = sum((v <= grid) / SIZE for v in KNOWN)
    curve = found.cumulative(grid)
    torch.testing.assert_close(curve.values, SHARE * shares.mean(0) + known)
    torch.testing.assert_close(curve.standard_errors, SHARE * shares.std(0) / math.sqrt(3))
    assert curve.width == 0.0 and torch.equal(curve.grid, grid)
    turned = found.cumulative(grid.flip(0))
    assert torch.equal(turned.values.flip(0), curve.values)


def test_a_density_lists_nodes_and_known_values_with_their_shares():
    frame = density().frame()
    assert frame["probe"].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [-1] * 2
    assert frame["eigenvalue"].tolist() == [*NODES.flatten().tolist(), *KNOWN]
    wanted = [*(0.3 * WEIGHTS).flatten().tolist(), 0.05, 0.05]  # 18 of 20 by three probes
    assert frame["share"].tolist() == pytest.approx(wanted)
    assert str(density()).splitlines()[0] == (
        "Density of P = 20 eigenvalues: 3 probes of 4 nodes, 2 known ones, 12 products"
    )
    for level in (0.01, 0.1, 0.5, 0.9, 0.99):
        assert f"quantile {level:g}" in str(density())
        assert str(density().quantile(level)) in str(density())
    assert density().shown()["value"][-1] == str(density().negative_share)


@pytest.mark.parametrize(
    ("nodes", "weights", "half"),
    [
        ([[-4.0, -1.0, 9.0]], [[0.3, 0.3, 0.4]], 1.5),
        ([[1.0, 3.0, 9.0]], [[0.3, 0.3, 0.4]], 1.0),  # at either end one neighbour
        ([[-9.0, -3.0, -1.0]], [[0.3, 0.3, 0.4]], 1.0),
        ([[-4.0, 1.0, 9.0, 9.0]], [[0.5, 0.5, 0.0, 0.0]], 2.5),  # two nodes are none
        ([[2.0, 2.0]], [[1.0, 0.0]], 0.125),
        ([[-4.0, 1.0], [0.0, 1.0], [0.0, 3.0], [0.0, 2.0]], [[0.5, 0.5]] * 4, 1.5),  # of four
    ],
    ids=["inside", "first", "last", "fewer", "one", "probes"],
)
def test_the_resolution_is_the_median_over_probes(nodes, weights, half):
    nodes, weights = (torch.tensor(x, dtype=torch.float64) for x in (nodes, weights))
    found = replace(density(complete=False), nodes=nodes, weights=weights, round_off=0.125,
                    complete=torch.zeros(len(nodes), dtype=torch.bool))  # fmt: skip
    assert found.resolution == half
    assert replace(found, round_off=8.0).resolution == 8.0


def bounds_by_lehmann(values, residuals, gram, wanted, share, noise):
    """Of descending values at one end, of which the first are wanted: the best bound of each."""
    best = residuals.copy()
    for j in range(1, min(wanted + 8, len(values))):  # eight beyond the wanted ones
        gap = min(-np.diff(values[max(0, j - 2) : j + 1]))
        if j > wanted and residuals[j - 1] > share * gap:  # may stand for more than one
            break
        floor = values[j - 1] / 2 + (values[j] + residuals[j]) / 2  # of half of the gap
        if values[j - 1] - floor > math.sqrt(np.trace(gram[:j, :j])):
            root = np.diag((values[:j] - floor) ** -0.5)
            upper = np.linalg.eigvalsh(np.diag(values[:j]) + root @ gram[:j, :j] @ root)[::-1]
            best[:j] = np.minimum(best[:j], np.maximum(upper - values[:j], 0) + noise)
    return best


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_bounds_are_the_best_of_lehmanns_where_values_are_apart(which, verify):
    drawn, sharp = np.random.default_rng(3), 0
    for trial in range(40):
        count, share = int(drawn.integers(3, 16)), 0.03 if verify else 0.25
        gaps = drawn.uniform(0.5, 1.5, count)
        gaps[drawn.integers(0, count, 2)] = 40.0  # beyond which bounds are far better
        values = np.cumsum(gaps)
        lengths = drawn.uniform(0.2, 1.3, count) * share * np.minimum(gaps, np.roll(gaps, -1))
        lengths[-1:] = 0.3
        errors = drawn.normal(size=(20, count))
        errors *= lengths / np.linalg.norm(errors, axis=0)
        gram, noise = torch.from_numpy(errors.T @ errors), 1e-4
        ritz = SimpleNamespace(
            values=torch.from_numpy(values), residuals=torch.from_numpy(lengths + noise),
            noise=noise, residual_gram=lambda some, gram=gram: gram[some][:, some],
        )  # fmt: skip
        goal = Goal(which=which, k=int(drawn.integers(1, 3)), tolerance=1e-3, verify=verify)
        wanted = lengths + noise
        for sign in goal.signs:
            order = np.arange(count)[::-sign]
            found = bounds_by_lehmann(
                sign * values[order], lengths[order] + noise,
                gram.numpy()[np.ix_(order, order)], goal.k, share, noise,
            )  # fmt: skip
            wanted[order] = np.minimum(wanted[order], found)
        bounds = error_bounds(ritz, goal).numpy()
        # Of eigenvalues up to a hundred, whose rounding is in every bound.
        np.testing.assert_allclose(bounds, wanted, rtol=1e-9, atol=1e-11, err_msg=str(trial))
        sharp += int((bounds < 0.9 * (lengths + noise)).sum())
    assert sharp > 40


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(("residual", "near"), [(0.04, False), (0.07, True)])
def test_a_multiplicity_is_open_where_a_cluster_or_its_neighbour_is(
    complete, residual, near, monkeypatch
):
    values = torch.tensor([1.0, 4.9, 5.0, 5.05, 9.0]).double()
    residuals = torch.tensor([0.02, residual, 0.02, 0.02, 0.03]).double()
    bounds = torch.tensor([0.5, 0.1, 0.05, 0.01, 0.02]).double()
    ritz = SimpleNamespace(values=values, residuals=residuals, noise=0.01)
    state = replace(
        searched("largest", [4, 3, 2], values.tolist(), k=3), ritz=ritz,
        targets=torch.tensor([0.011, 0.011, 0.039]).double(),
    )  # fmt: skip
    alone = torch.tensor([False, False, True, True, False])
    monkeypatch.setattr(SearchState, "certified", lambda self, given: (given, alone, (-7.0, 8.0)))
    monkeypatch.setattr(SearchState, "missed", 0.25)
    monkeypatch.setattr("resid_theory.eigen.lanczos.error_bounds", lambda ritz, goal: bounds)
    measured = []
    krylov = SimpleNamespace(
        measure=lambda ritz, places: measured.append(places.tolist()) or ritz,
        lock=lambda ritz, places: SimpleNamespace(vectors=places),
        operator=SimpleNamespace(count=7),
    )  # fmt: skip
    found = _result(krylov, state, complete)
    assert measured == [[0, 1, 2, 3, 4]] and found.vectors.tolist() == [4, 3, 2]
    assert (found.which, found.products, found.round_off) == ("largest", 7, 0.01)
    assert found.values.tolist() == [9.0, 5.05, 5.0] and found.accepted_miss == 1e-3
    assert found.residuals.tolist() == [0.03, 0.02, 0.02]
    copies = 2 + (complete and near)  # 4.9, too
    assert found.multiplicities.tolist() == [1, copies, copies]
    if complete:  # all eigenvalues are known, to their residuals
        assert found.bounds.tolist() == [0.03, 0.02, 0.02] and not found.at_least.any()
        assert (found.missed_probability, found.limits) == (0.0, (1.0, 9.0))
        assert found.converged.tolist() == [False, True, True]
    else:
        assert found.bounds.tolist() == [0.02, 0.01, 0.05]
        assert found.at_least.tolist() == [True, near, near]
        assert (found.missed_probability, found.limits) == (0.25, (-7.0, 8.0))
        assert found.converged.tolist() == [True, True, False]
