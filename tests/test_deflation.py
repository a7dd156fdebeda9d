"""Implicit deflation: measures of runs without the eigenvalues that all of them have resolved."""

import math

import pytest
import torch
from tolerances import EPS

from resid_theory.eigen.gauss_rules import nearest
from resid_theory.eigen.implicit_deflation import ProbeMeasure, without_resolved


def measure(nodes, *, weights=None, directions=None, link=0.0, noise=0.0):
    """A measure with these nodes, weights and directions of the sketch, by textbook Lanczos."""
    nodes = torch.tensor(nodes)
    weights = torch.ones(len(nodes)) if weights is None else torch.tensor(weights)
    basis, links = [(weights / weights.sum()).sqrt()], []
    while len(basis) < len(nodes):
        vector = nodes * basis[-1]
        for own in (*basis, *basis):
            vector = vector - own * (own @ vector)
        links.append(float(vector.norm()))
        basis.append(vector / links[-1])
    turn = torch.stack(basis, 1)  # Ritz vectors, which are unit vectors here, on the Lanczos basis
    sketch = 2 * torch.eye(len(nodes)) if directions is None else torch.tensor(directions).T
    return ProbeMeasure(
        diagonal=((turn * nodes[:, None]) * turn).sum(0), links=torch.tensor([*links, link]),
        sketch=sketch @ turn, noise=noise,
    )  # fmt: skip


def near(value):
    return pytest.approx(value, rel=1e-9, abs=1e-12)


def test_a_measure_shows_nodes_weights_residuals_and_directions():
    found = measure([-2.0, 1.0, 4.0], weights=[1.0, 2.0, 5.0], link=0.5, noise=0.03125)
    assert found.nodes.tolist() == near([-2, 1, 4])
    assert found.weights.tolist() == near([0.125, 0.25, 0.625])
    matrix = torch.diag(found.diagonal) + sum(
        torch.diag(found.links[:2], offset) for offset in (1, -1)
    )
    last = torch.linalg.eigh(matrix).eigenvectors[-1].abs()
    residuals = (0.5 * last + 0.03125).tolist()
    assert found.residuals.tolist() == near(residuals)
    assert found.sharpness.tolist() == near([r / 3 for r in residuals])
    vectors = torch.stack([found.vector(k) for k in range(3)])
    torch.testing.assert_close(vectors.abs(), torch.eye(3))
    assert found.without([]) is found


def test_distances_to_the_nearest_node_of_each_row():
    rows = torch.tensor([[-2.0, 1.0, 1.5, 4.0], [0.0, 3.0, 5.0, 6.0]])
    assert nearest(rows).tolist() == [[3, 0.5, 0.5, 2.5], [3, 2, 1, 1]]
    assert nearest(torch.tensor([7.0])).tolist() == [math.inf]


@pytest.mark.parametrize("places", [[0], [3, 1], [0, 1, 2, 4]])
def test_the_rest_of_a_measure_has_its_nodes_with_mass_one(places):
    nodes, weights = [-3.0, -1.0, 0.5, 2.0, 2.5], [1.0, 4.0, 2.0, 8.0, 1.0]
    directions = torch.linalg.qr(torch.randn(7, 5)).Q.T.tolist()
    whole = measure(nodes, weights=weights, directions=directions, link=0.75, noise=1e-9)
    rest, kept = whole.without(places), [k for k in range(5) if k not in places]
    total = sum(weights[k] for k in kept)
    assert rest.nodes.tolist() == near([nodes[k] for k in kept]) and rest.noise == 1e-9
    assert rest.weights.tolist() == near([weights[k] / total for k in kept])
    for place, k in enumerate(kept):
        assert abs(float(rest.vector(place) @ torch.tensor(directions[k]))) == near(1.0)
    out = math.hypot(*(float(whole.residuals[k]) - 1e-9 for k in kept))  # of all its vectors
    assert len(rest.links) == len(kept) and float(rest.links[-1]) == near(out)


def test_the_rest_of_a_measure_ends_where_rounding_begins():
    """A node of hardly any weight behind the others, as far as a link is more than noise."""
    whole = measure([-1.0, 1.0, 2.0, 9.0], weights=[1.0, 1.0, 1e-14, 1.0], link=0.5)
    for noise, count in ((1e-12, 3), (1e-5, 2)):
        given = {name: getattr(whole, name) for name in ("diagonal", "links", "sketch")}
        rest = ProbeMeasure(**given, noise=noise).without([3])
        assert len(rest.nodes) == len(rest.links) == rest.sketch.shape[1] == count
        assert rest.nodes[:2].tolist() == pytest.approx([-1, 1], abs=1e-6)
        inside = rest.sketch.T @ rest.sketch / 4  # its basis is orthonormal, however short a link
        torch.testing.assert_close(inside, torch.eye(count), rtol=0, atol=1e-13)


def test_a_long_measure_is_taken_apart_to_rounding():
    drawn = torch.Generator().manual_seed(0)
    nodes = torch.cat([torch.linspace(-1, 1, 60), torch.tensor([30.0, 40.0])]).tolist()
    weights = (10 ** (-9 * torch.rand(62, generator=drawn))).tolist()
    rest = measure(nodes, weights=weights).without([61])
    assert float((rest.nodes - torch.tensor(nodes[:61])).abs().max()) <= 100 * 30 * EPS
    share = torch.tensor(weights[:61]) / sum(weights[:61])
    torch.testing.assert_close(rest.weights, share, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(("weight", "stays"), [(1.2e-20, True), (0.8e-20, False)])
def test_copies_that_rounding_brings_are_left_out(weight, stays):
    link = 3 * weight**0.5  # of a node three apart
    probe = ProbeMeasure(
        diagonal=torch.tensor([1.0, 4.0]), links=torch.tensor([link, 2.0]),
        sketch=torch.eye(2), noise=0.0,
    )  # fmt: skip
    assert float(probe.weights[1]) == pytest.approx(weight, rel=1e-6)
    (rest,), values, residuals = without_resolved([probe])
    assert len(rest.nodes) == 1 + stays and (values, residuals) == ([], [])


def pair(angle, noise, other=5.0):
    """Two runs that resolved an eigenvalue, with an angle between their Ritz vectors."""
    first = [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    second = [[math.cos(angle), math.sin(angle), 0.0], [0.0, 0.0, 1.0]]
    return [
        measure([value, bulk], directions=d if value > bulk else d, noise=noise)
        for value, bulk, d in ((5.0, 9.0, first), (other, 8.5, second))
    ]


@pytest.mark.parametrize(("noise", "share"), [(1e-9, 1e-6), (0.07, 4 * 0.07 / 3.5)])
@pytest.mark.parametrize("wide", [0.97, 1.03])
def test_vectors_span_two_dimensions_beyond_four_errors_of_their_direction(noise, share, wide):
    # Of two unit vectors the smaller singular value is the root of two times the sine of half the
    # angle; the blunter of the two is 3.5 from its neighbour.
    angle = 2 * math.asin(wide * share)
    rest, values, residuals = without_resolved(pair(angle, noise))
    if wide > 1:  # two copies or more, of which two runs see two
        assert (values, residuals) == ([], []) and [len(m.nodes) for m in rest] == [2, 2]
    else:
        assert values == near([5.0]) and residuals == near([noise])
        assert [m.nodes.tolist() for m in rest] == [near([9.0]), near([8.5])]


@pytest.mark.parametrize(("apart", "known"), [(0.199, True), (-0.199, True), (0.201, False)])
def test_a_value_is_the_same_within_the_residuals_of_both(apart, known):
    rest, values, residuals = without_resolved(pair(0.0, 0.1, 5.0 + apart))
    assert values == (near([5.0 + apart / 2]) if known else [])
    assert residuals == (near([0.1]) if known else [])
    assert [len(m.nodes) for m in rest] == ([1, 1] if known else [2, 2])


@pytest.mark.parametrize(("noise", "known"), [(0.174, 1), (0.176, 0)])
def test_a_value_is_resolved_within_a_twentieth_of_the_way_to_the_next(noise, known):
    assert len(without_resolved(pair(0.0, noise))[1]) == known  # 3.5 in the second run


def test_as_many_copies_are_known_as_dimensions_are_spanned():
    """Of three runs, whose vectors of one value are in a plane and of another are in a line."""
    turned = [[1.0, 0, 0, 0], [0.6, 0.8, 0, 0], [-0.8, 0.6, 0, 0]]
    runs = [
        measure(
            [2.0 + shift, 4.0 - shift, bulk], directions=[own, [0.0, 0, 1, 0], [0.0, 0, 0, 1]],
            noise=noise,
        )
        for own, shift, bulk, noise in zip(
            turned, (0.0, 0.001, 0.002), (7.0, 8.0, 9.0), (0.002, 0.004, 0.003), strict=True
        )
    ]  # fmt: skip
    rest, values, residuals = without_resolved(runs)
    assert values == near([2.001, 2.001, 3.999])
    assert residuals == near([0.004] * 3)
    assert [m.nodes.tolist() for m in rest] == [near([7.0]), near([8.0]), near([9.0])]


def test_something_carries_the_rest_of_the_shortest_run():
    units = torch.eye(3).tolist()
    long, short = (
        measure([1.0, 3.0, 6.0], directions=units, noise=1e-9),
        measure([1.0, 3.0], directions=units[:2], noise=1e-9),
    )
    for runs, kept in (([long, short], [[3, 6], [3]]), ([short, long], [[3], [3, 6]])):
        rest, values, _ = without_resolved(runs)
        assert values == near([1.0])
        assert [m.nodes.tolist() for m in rest] == [near(nodes) for nodes in kept]
    single = measure([3.0], directions=[units[1]], noise=1e-9)
    assert without_resolved([short, single])[1] == without_resolved([single, short])[1] == []
