"""Decisions of a search for eigenpairs, one at a time, on spaces and states that are told."""

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from test_lanczos import grown, rotated

import resid_theory as rt
from resid_theory.eigen import krylov as krylov_module, lanczos
from resid_theory.eigen.certificate import Certificate
from resid_theory.eigen.convergence import SearchState
from resid_theory.eigen.krylov import Krylov, Locked
from resid_theory.eigen.operator_log import OutOfProducts, RecordedOperator
from resid_theory.eigen.orthogonalization import orthonormal, random_orthonormal
from resid_theory.eigen.ritz_bounds import Goal


class Space:
    """A Krylov space of one step after another, of which only the numbers are known."""

    def __init__(self, *, width=3, budget=99, invariant=99, full=99, restarts=0):
        self.budget, self.invariant, self.full = budget, invariant, full
        self.operator, self.block, self.width, self.steps = self, None, width, 0
        self.waiting, self.multiplied, self.restarts = 1, 20, restarts

    is_full = property(lambda self: self.steps >= self.full)
    is_invariant = property(lambda self: self.steps >= self.invariant)

    def __matmul__(self, block):
        if self.steps >= self.budget:
            raise OutOfProducts
        return "product"

    def extend(self, product):
        assert product == "product"
        self.steps += 1

    def restart(self, keep):
        self.restarts, self.full = self.restarts + 1, 99


def told(monkeypatch, **changes):
    """States of a search: settled after four steps, then as told."""
    seen = []

    def after(krylov, goal, edges, *, first):
        now = {name: x(krylov.steps) if callable(x) else x for name, x in changes.items()}
        seen.append((edges, first))
        given = {"is_verified": False, "missed_apart": 1.0, "is_crowded": False, "found": 1}
        return SimpleNamespace(
            **{**given, "is_settled": krylov.steps >= 4, "edges": {1: krylov.steps}, **now}
        )

    monkeypatch.setattr(SearchState, "after", after)
    return seen


RUNS = {
    # Sixty products more, as many steps as these take; or a quarter more without verification.
    "first of three": ({}, {}, None, True, 24),
    "first of one": ({"width": 1}, {}, None, True, 64),
    "first of seven": ({"width": 7}, {}, None, True, 13),
    "first without": ({}, {}, None, False, 5),
    # A later run ends with its allowance, as soon as its pairs are settled.
    "later": ({}, {}, 30, True, 30),
    "later, settled behind it": ({}, {"is_settled": lambda n: n >= 33}, 30, True, 33),
    "invariant": ({"invariant": 7}, {"is_settled": False}, None, True, 7),
    "restarted": ({"full": 2}, {"is_settled": lambda n: n >= 6}, None, True, 6),
    # Nothing is missed any more.
    "sure": ({}, {"is_verified": lambda n: n >= 9}, None, True, 9),
    # As many equal values as vectors in the start: only a new start shows more.
    "crowded": ({}, {"is_crowded": lambda n: n >= 8}, None, True, 8),
    "crowded by none": ({}, {"is_crowded": True, "found": 0}, 20, True, 20),
    "sure of none": ({}, {"is_verified": True, "found": 0}, 20, True, 4),
    # One vector says nothing about copies; it ends where a value apart is improbable.
    "apart": ({"width": 1}, {"missed_apart": lambda n: 0.1 if n >= 9 else 0.11}, None, True, 9),
    "apart in later ones": ({"width": 1}, {"missed_apart": 0.1}, 20, True, 4),
    "apart of three": ({}, {"missed_apart": 0.1}, 20, True, 20),
    "apart of none": ({"width": 1}, {"missed_apart": 0.1, "found": 0}, 20, True, 20),
    "crowded one": ({"width": 1}, {"is_crowded": True}, 20, True, 20),
    "apart without": ({}, {"missed_apart": 0.1}, 20, False, 4),
    "sure without": ({}, {"is_verified": True, "is_crowded": True}, 20, False, 20),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_run_ends_where_it_has_answered(case, monkeypatch):
    space, states, allowance, verify, steps = RUNS[case]
    seen, krylov = told(monkeypatch, **states), Space(**space)
    goal = Goal(which="largest", k=2, tolerance=1e-3, verify=verify)
    state, in_budget = lanczos._run(krylov, goal, {1: 0}, allowance)
    assert in_budget and krylov.steps == len(seen) == steps and state.edges == {1: steps}
    # Each state begins at the edges of the one before.
    assert seen == [({1: n}, allowance is None) for n in range(steps)]
    assert krylov.restarts == ("full" in space)


@pytest.mark.parametrize("budget", [0, 3])
def test_a_run_out_of_products_tells_its_last_state(budget, monkeypatch):
    told(monkeypatch)
    goal = Goal(which="largest", k=2, tolerance=1e-3)
    state, in_budget = lanczos._run(Space(budget=budget), goal, {}, None)
    assert not in_budget and (state.edges if budget else state) == ({1: 3} if budget else None)


def test_later_runs_may_take_sixty_steps_more_than_the_first(monkeypatch):
    run, given = lanczos._run, []

    def spied(krylov, goal, edges, allowance):
        found = run(krylov, goal, edges, allowance)
        given.append((dict(edges), allowance, krylov.steps, found[0].new_edges()))
        return found

    monkeypatch.setattr(lanczos, "_run", spied)
    levels = torch.cat([torch.tensor([5.0] * 9 + [4.0, 3.0]), torch.linspace(-1, 1, 95)])
    rt.eigenpairs(torch.diag(levels), 10)
    assert len(given) > 2 and given[0][:2] == ({}, None)
    assert {allowance for _, allowance, _, _ in given[1:]} == {given[0][2] + 60}
    # Each looks beyond what those before it have found.
    for (*_, found), (edges, *_) in pairwise(given):
        assert edges == found
    assert len({edges[1] for edges, *_ in given[1:]}) > 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_rounding_of_the_part_outside_makes_no_bound_smaller(seed, dtype):
    """In a space that holds everything, nothing of the locked errors is outside."""
    generator = torch.Generator().manual_seed(seed)
    A = rotated(torch.randn(40, generator=generator), generator)
    U = torch.linalg.qr(torch.randn(40, 6, generator=generator))[0]
    turn = torch.linalg.eigh(U.T @ A @ U).eigenvectors
    U = U @ turn
    values = (U * (A @ U)).sum(0)
    errors = (A @ U - U * values).to(dtype)
    locked = Locked(vectors=U.to(dtype), values=values, errors=errors)
    with RecordedOperator(A.to(dtype)) as products:
        krylov = Krylov(products, locked, width=2, capacity=40, generator=generator)
        while not krylov.is_invariant:
            krylov.extend(products @ krylov.block)
    assert krylov.multiplied == 34 and bool((krylov.ritz().residuals > 0).all())
    least, most = torch.linalg.eigvalsh(krylov.ritz().gram)[[0, -1]].tolist()
    lost = 40 * 2.0**-52 * float(locked.errors.square().sum())
    assert dtype == torch.float32 or 0 < least <= most <= 2 * lost


@pytest.mark.parametrize("steps", [0, 1])
def test_the_part_outside_may_have_lost_a_rounding_of_each_vector(steps):
    U, D = torch.eye(9)[:, :2], torch.eye(9)[:, 2:4]
    locked = Locked(vectors=U, values=torch.zeros(2), errors=D)
    with RecordedOperator(torch.zeros(9, 9)) as products:
        krylov = Krylov(products, locked, width=1, capacity=9, generator=torch.Generator())
        if steps:
            krylov.extend(products @ krylov.block)
    exact = (1 + 2 * (2 + steps) * 2.0**-52) * torch.eye(2)  # two, by a trace of two
    assert torch.equal(krylov.ritz().gram, exact)


def test_random_vectors_that_fill_a_complement_are_orthogonal_to_rounding():
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(300, 200, generator=generator))[0]
    found = random_orthonormal(100, basis, generator)
    assert float((basis.T @ found).abs().max()) < 1e-15  # of one round 6e-14
    assert float((found.T @ found - torch.eye(100)).abs().max()) < 1e-14


def test_coefficients_of_a_space_are_those_of_its_two_passes():
    matrix = torch.diag(torch.linspace(-1, 2, 50))
    krylov = grown(matrix, 2, 5, 0)
    assert krylov.certificate().noise == pytest.approx(10 * krylov.round_off / 50**0.5)
    assert grown(torch.zeros(9, 9), 1, 1, 0).certificate().noise == torch.finfo(torch.double).tiny
    assert math.isclose(krylov.scale, float((matrix @ krylov.multiplied_vectors).norm(dim=0).max()))
    large = grown(1e25 * matrix.float(), 2, 5, 0)  # squares would overflow in its precision
    longest = float((matrix @ large.multiplied_vectors.double()).norm(dim=0).max())
    assert large.scale == pytest.approx(1e25 * longest, rel=1e-6)


def test_a_space_beside_locked_vectors_begins_at_their_scale(monkeypatch):
    seen, project = [], krylov_module.project_out

    def spied(vectors, basis, *, roughly=False):
        seen.append(roughly)
        return project(vectors, basis, roughly=roughly)

    monkeypatch.setattr(krylov_module, "project_out", spied)
    U = torch.eye(9)[:, :2]
    locked = Locked(vectors=U, values=torch.tensor([-5.0, 3.0]), errors=0 * U)
    with RecordedOperator(torch.eye(9)) as products:
        for width, capacity, count in ((2, 4, 2), (8, 9, 7)):
            krylov = Krylov(
                products, locked, width=width, capacity=capacity, generator=torch.Generator()
            )
            assert krylov.scale == 5.0 and krylov.waiting == krylov.width == count
            assert krylov._columns.shape == (9, min(9, 2 + capacity))
        krylov = Krylov(products, locked, width=1, capacity=3, generator=torch.Generator())
        krylov.extend(torch.randn(9, 1))
    assert seen == [True, False, False]  # of the first two passes the first may be rough


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_a_goal_selects_from_sorted_values(which, k):
    for count in (1, 4, 6, 40):
        values = torch.randn(count, generator=torch.Generator().manual_seed(count)).sort().values
        goal, places = Goal(which=which, k=k, tolerance=1e-3), range(count)
        down, most = [*reversed(places)], min(k + 8, count)
        wanted = {
            "largest": down[:k], "smallest": [*places][:k],
            "both": down if 2 * k >= count else down[:k] + down[-k:],
            "magnitude": sorted(places, key=lambda i: -abs(float(values[i])))[:k],
        }[which]  # fmt: skip
        assert goal.columns(values).tolist() == wanted, count
        ends = {"largest": down[:most], "smallest": [*places][:most]}
        useful = sorted(ends.get(which, {*ends["largest"], *ends["smallest"]}))
        assert goal.useful(values).tolist() == useful, count
        # Where the last value of each end is in the result.
        upper = lower = len(wanted) - 1
        if which == "both":
            upper, lower = min(k - 1, upper), max(0, len(wanted) - k)
        edges = [goal.edge(torch.tensor(wanted), sign) for sign in (1, -1)]
        assert edges == [upper, lower], count
        assert goal.total == k * (1 + (which == "both"))
        assert goal.signs == {"largest": (1,), "smallest": (-1,)}.get(which, (1, -1))


@pytest.mark.parametrize(
    ("draws", "waiting", "dimension", "open_"),
    [(1, 1, 6, False), (1, 1, 5, True), (2, 2, 8, False), (2, 2, 7, True), (2, 1, 99, True)],
)
def test_a_space_of_which_the_next_block_is_smaller_excludes_nothing(
    draws, waiting, dimension, open_
):
    ladder = torch.cat([torch.diag(torch.arange(4.0)), torch.eye(4)[4 - waiting :]])
    run = Certificate(dimension=dimension, draws=draws, ladder=ladder, noise=1e-9)
    assert (run.missed_at(1e4) == 1.0) is open_


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize(
    ("near", "offset"), [(None, 0.37), (None, 0.3e-3), (None, -1.1e-3), (2, 0.0), (3, 0.37)]
)
def test_an_ellipsoid_is_the_image_of_a_null_space(near, offset, draws):
    """Of M(λ), λ at some offset from the third Ritz value; and what rounding adds."""
    drawn, noise = torch.Generator().manual_seed(draws), 1e-3
    own, links = torch.randn(7, 7, generator=drawn), torch.randn(draws, 7, generator=drawn)
    values, vectors = torch.linalg.eigh(own + own.T)
    run = Certificate(
        dimension=99, draws=draws, ladder=torch.cat([own + own.T, links]), noise=noise
    )
    gaps, residuals = values[2] + offset - values, links @ vectors
    gaps[gaps.abs() < noise] = noise  # no nearer than that
    if near is not None:  # of which nothing is known
        gaps[near], residuals[:, near] = noise, 0.0
    normal = torch.cat([-gaps * vectors, residuals])  # M Y, to which g is orthogonal
    start, inside = vectors[:draws], torch.linalg.svd(normal).U[:draws, 7:]
    exact = inside @ inside.T + noise**2 * start / gaps**2 @ start.T
    found = run.ellipsoid(values[2].item() + offset, near=near)
    torch.testing.assert_close(found @ found.T, exact, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("draws", "near", "chance"), [(2, 0, 1.0), (3, 0, 0.0), (2, None, 0.0)])
def test_an_invariant_space_hides_copies_of_what_it_saw_as_often_as_it_had_vectors(
    draws, near, chance
):
    ladder = torch.diag(torch.tensor([1.0, 1.5, 2.25]))
    run = Certificate(dimension=4, draws=draws, ladder=ladder, noise=0.25)
    assert run.missed_at(1.0, near=near) == chance  # equal within noise in four directions
    assert replace(run, noise=0.24).missed_at(1.0, near=near) == 0.0


def test_a_single_column_is_divided_by_its_length():
    column = torch.tensor([[3.0], [0.0], [-4.0]])
    basis, length = orthonormal(column, 4.9)
    assert torch.equal(basis, column / 5) and length.tolist() == [[5.0]]


@pytest.mark.parametrize("power", [300, -300, 90])
def test_a_unit_is_chosen_by_the_first_product_that_is_not_zero(power):
    matrix = torch.diag(torch.tensor([-(2.0**power), 0.0, 2.0 ** (power - 250)]))
    with RecordedOperator(matrix) as products:
        assert not (products @ torch.eye(3)[:, 1:2]).any() and products.unit == 1.0
        found = products @ torch.ones(3, 1)
        unit = 1.0 if power == 90 else 2.0**power
        assert products.unit == unit and found[0, 0] == -(2.0**power) / unit
        assert torch.equal(products @ torch.eye(3)[:, 2:], matrix[:, 2:] / unit)
        assert products.unit == unit and products.count == 3
