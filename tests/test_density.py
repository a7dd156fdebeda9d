"""Densities by their definitions: quantiles, thresholds, rounding of sums, and how probes run."""

import math
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from test_estimates import LEVELS, probe
from test_lanczos import empty, rotated
from test_stated_errors import KNOWN, SHARE, SIZE, T, blurred, density

import resid_theory as rt
from resid_theory.eigen import quadrature
from resid_theory.eigen.density import _place
from resid_theory.eigen.gauss_rules import radau_rule
from resid_theory.eigen.krylov import Krylov
from resid_theory.eigen.matrix_error import MatrixError


@pytest.mark.parametrize("magnitude", [False, True])
def test_an_interval_of_a_quantile_holds_what_errors_may_move(magnitude):
    drawn = torch.Generator().manual_seed(0)
    nodes = torch.randn(3, 60, generator=drawn).sort(1).values
    masses = torch.rand(3, 60, generator=drawn)
    masses, links = masses / masses.sum(1, keepdim=True), torch.full((3, 60), 2.0)
    found = replace(blurred(), nodes=nodes, weights=masses, diagonals=nodes, links=links)
    places = np.array([*nodes.flatten().tolist(), *KNOWN])
    places = abs(places) if magnitude else places
    weights = np.array([*(SHARE / 3 * masses).flatten().tolist(), 1 / SIZE, 1 / SIZE])
    reach = np.array([*found._residuals.flatten().tolist(), 0.3, 0.02]) + 0.05

    def at(moved, wanted):
        order = np.argsort(moved)
        reached = np.nonzero(weights[order].cumsum() >= wanted - 1e-12)[0]
        return moved[order][reached[0] if len(reached) else -1]

    def around(place):
        """Least and most of each probe's measure up to a place, by rules with a node there."""
        rules = [radau_rule(row, links[0], place) for row in nodes]
        ends = [[float(w[x < place + s * 1e-9].sum()) for s in (-1, 1)] for x, w in rules]
        return torch.tensor(ends).T

    for share in (k / 24 for k in range(25)):
        value = at(places, share)
        least, most = around(value)
        if magnitude:  # those up to it, without those below its negative
            below = around(-value)
            least, most = least - below[1], most - below[0]
        spread = float(((least + most) / 2).std()) / math.sqrt(3)
        half = SHARE * (T * spread + float((most - least).mean()) / 2)
        low, high = at(places - reach, share - half), at(places + reach, share + half)
        made = found.quantile(share, magnitude=magnitude)
        assert made.value == value, share
        assert made.low == pytest.approx(max(low, 0.0) if magnitude else low), share
        assert made.high == pytest.approx(high), share
        assert made.standard_error == pytest.approx((made.high - made.low) / (2 * T)), share


def test_a_node_at_the_negative_of_a_quantile_is_among_its_magnitudes():
    found = whole([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]], nodes=[-2.0, 1.0, 2.0])
    made = found.quantile(0.9, magnitude=True)  # in both probes all are up to 2: no spread
    assert (made.low, made.value, made.high, made.standard_error) == (2.0, 2.0, 2.0, 0.0)


def test_mass_is_not_spread_between_nodes_at_one_place():
    found = whole([[0.5, 0.25, 0.25]] * 2, nodes=[1.0, 1.0, 2.0])
    found = replace(found, complete=torch.tensor([False, False]), links=found.links + 0.5)
    assert found.cumulative([0.9, 1.0, 2.0]).values.tolist()[::2] == pytest.approx([0, 1])


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_share_is_reached_but_for_four_roundings_of_each_term(share):
    atoms = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5])
    eps = 2.0**-52
    assert _place(atoms, share + 7 * eps) == 1.0
    assert _place(atoms, share + 9 * eps) == (2.0 if share else 1.0)
    assert _place(atoms, 1.5) == 2.0


@pytest.mark.parametrize("place", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("complete", [False, True])
def test_a_place_that_is_no_number_is_refused(complete, place):
    found = density(complete=complete)
    for curve in (found.cumulative, found.smoothed):
        with pytest.raises(ValueError, match=rf"^grid: entry \(1,\) is {place} \(1 of 2"):
            curve([0.5, place])
    with pytest.raises(ValueError) as refused:
        found.share_below(place)
    assert str(refused.value) == f"threshold: got {place!r}, needs a number in (-inf, inf)"


def whole(weights, known=(), nodes=(1.0, 2.0)):
    """Complete probes of equal nodes, and known values."""
    count = len(weights)
    rows = torch.tensor([nodes] * count)
    return replace(
        density(), size=4, nodes=rows, diagonals=rows, links=0 * rows, known_error=0.0,
        weights=torch.tensor(weights), complete=torch.ones(count, dtype=torch.bool),
        known=torch.tensor(known), known_residuals=torch.zeros(len(known)),
    )  # fmt: skip


def test_a_share_is_at_most_one_whatever_sums_are_rounded_to():
    found = whole([[0.5, 0.5 + 2.0**-52]] * 2)
    for made in (found.share_below(2.0), found.share_below(9.0)):
        assert made.low <= 1.0 == made.high and made.covers(1.0)
    assert found.share_below(1.0).low == found.share_below(1.0).high == 0.5


def test_an_eigenvalue_at_the_threshold_is_not_negative():
    found = replace(whole([[0.5, 0.5]] * 2, known=[-0.25, -0.75]), round_off=0.25)
    assert found.resolution == 0.25
    share = found.negative_share
    assert (share.value, share.low, share.high) == (0.25, 0.25, 0.5)


@pytest.mark.parametrize(("gap", "width"), [(1.9, 1.0), (2.1, 1.05)])
def test_levels_within_twice_the_rounding_are_one(gap, width):
    rows = torch.tensor([[2 - gap, 2.0]] * 2)
    found = replace(whole([[0.5, 0.5]] * 2), nodes=rows, round_off=1.0)
    assert found.smoothed().width == pytest.approx(width)


def test_a_single_probe_shows_no_errors_of_its_curve():
    found = whole([[0.25, 0.75]])
    for curve in (found.cumulative([1.5, 3.0]), found.smoothed([1.5, 3.0], width=1.0)):
        assert curve.standard_errors.isnan().all() and curve.grid.tolist() == [1.5, 3.0]
    assert found.cumulative([1.5, 3.0]).values.tolist() == [0.25, 1.0]


def test_between_two_nodes_the_share_is_off_by_the_weight_of_either():
    """And by a quarter of the lesser one, which is spread between them; 0 where all is seen."""
    found = whole([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6], [0.2, 0.3, 0.5]], nodes=[0.0, 1.0, 3.0])
    found = replace(found, complete=torch.tensor([False, False, True]), known=torch.ones(2),
                    known_residuals=torch.zeros(2))  # fmt: skip
    areas = [(0.5 + 0.3 / 4) * 1 + (0.3 + 0.2 / 4) * 2, (0.3 + 0.1 / 4) * 1 + (0.6 + 0.3 / 4) * 2]
    share = 2 / 4  # of four eigenvalues two are known
    assert found.quadrature_error == pytest.approx(share * sum(areas) / 3, rel=1e-14)


def test_a_single_level_has_no_error():
    found = whole([[1.0]] * 2, nodes=[2.0], known=[2.0])
    assert found.sampling_error == found.wasserstein_error == 0.0
    assert found.wasserstein_distance(rt.Spectrum.of([3.0], [4])) == 1.0


def test_every_probe_begins_a_run_and_as_many_run_together_as_fit(monkeypatch):
    begun = []

    class Begun(Exception):
        pass

    class Run:
        is_invariant = False

        def __init__(self, operator, locked, **given):
            begun.append((given.pop("generator").initial_seed(), given))

        @property
        def block(self):
            raise Begun

    monkeypatch.setattr(quadrature, "Krylov", Run)
    monkeypatch.setattr(quadrature, "available_bytes", lambda: 1 << 40)
    one = 10_000 * 1_001 * 8
    for probes in (2, 50):
        begun.clear()
        with pytest.raises(Begun):
            rt.spectral_density(empty(10_000), probes=probes, steps=1_000, generator=7)
        assert begun == [(7, {"width": 1, "capacity": 1_001})] * min(probes, (1 << 30) // one)


@pytest.mark.parametrize("kind", ["plain", "error", "invariant"])
def test_each_run_shows_its_measure(kind, generator, monkeypatch):
    levels = torch.tensor([-2.0, 1.0, 3.0] * 20) if kind == "invariant" else LEVELS
    A, given = rotated(levels, generator), []
    held = type("Held", (), {"shape": (60, 60), "dtype": A.dtype, "device": A.device,
                             "__matmul__": lambda self, v: A @ v})()  # fmt: skip
    if kind == "error":
        held.error = MatrixError(spectral=0.5, frobenius=0.25, trace=9.0)

    def spied(measures):
        given.extend(measures)
        # The second without a node: rows of unequal length.
        return [measures[0], measures[1].without([0])], [4.0, 5.0], [0.125, 0.25]

    monkeypatch.setattr(quadrature, "without_resolved", spied)
    drawn = torch.Generator().manual_seed(7)
    found = rt.spectral_density(held, probes=2, steps=6, generator=7)
    sketch = torch.randn(60, 10, generator=torch.Generator().manual_seed(0))
    runs = []
    for _ in range(2):
        start = torch.randn(60, 1, generator=drawn)[:, 0]
        basis = [start / start.norm()]
        for _ in range(2 if kind == "invariant" else 5):
            vector = A @ basis[-1]
            for own in (*basis, *basis):
                vector = vector - own * (own @ vector)
            basis.append(vector / vector.norm())
        runs.append(torch.stack(basis, 1))
    for run, measure in zip(runs, given, strict=True):
        inside = run.T @ A @ run
        torch.testing.assert_close(measure.diagonal, inside.diagonal(), rtol=0, atol=1e-12)
        torch.testing.assert_close(measure.links[:-1], inside.diagonal(1), rtol=0, atol=1e-12)
        out = float((A @ run - run @ inside).norm())
        assert float(measure.links[-1]) == pytest.approx(out, rel=1e-10, abs=1e-12)
        shown = sketch.T @ run
        shown = shown * (shown[0, 0] * measure.sketch[0, 0]).sign()  # of the first vector
        torch.testing.assert_close(measure.sketch, shown, rtol=0, atol=1e-11)
    assert found.complete.tolist() == [kind == "invariant"] * 2
    nodes, short = given[0].nodes, given[1].nodes[1:]
    torch.testing.assert_close(found.nodes, torch.stack([nodes, torch.cat([short, short[-1:]])]))
    assert found.weights[1, -1] == found.links[1, -1] == found.diagonals[1, -1] == 0
    assert found.weights.sum(1).tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(found.diagonals[0], given[0].diagonal)
    torch.testing.assert_close(found.links[0], given[0].links)
    assert found.known.tolist() == [4.0, 5.0] and found.known_residuals.tolist() == [0.125, 0.25]
    assert (found.size, found.products, found.probes) == (60, 2 * len(runs[0].T), 2)
    rounding = given[0].noise / 60**0.5, given[1].noise / 60**0.5
    own = 0.25 / 60**0.5 if kind == "error" else 0.0
    assert found.known_error == pytest.approx(0.75 / 60 + max(rounding) + own, rel=1e-9)
    shift = 0.5 if kind == "error" else max(given[0].noise, given[1].noise)
    assert found.round_off == pytest.approx(shift, rel=1e-9)


def test_the_noise_of_a_measure_is_that_of_all_directions(generator, monkeypatch):
    seen = []

    class Spied(Krylov):
        def certificate(self):
            seen.append(60**0.5 * self.round_off)
            return super().certificate()

    find = quadrature.without_resolved
    monkeypatch.setattr(quadrature, "Krylov", Spied)
    monkeypatch.setattr(
        quadrature, "without_resolved", lambda m: (seen.append([x.noise for x in m]), find(m))[1]
    )
    rt.spectral_density(rotated(LEVELS, generator), probes=3, steps=5)
    assert seen[-1] == seen[:3] and len(seen) == 4


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_run_is_textbook_lanczos_at_any_length(steps, generator):
    matrix = rotated(LEVELS, generator)
    found = rt.spectral_density(matrix, probes=1, steps=steps, generator=7)
    nodes, weights = oracles.lanczos_quadrature(matrix, probe(), steps)
    torch.testing.assert_close(found.nodes[0], nodes, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.weights[0], weights, rtol=0, atol=1e-11)
