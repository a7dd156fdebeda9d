"""Constructed nets: the lemmas, the bounds of the theorem, and the effect of rounding."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from tolerances import EPS

import resid_theory as rt
from resid_theory.theory.interpolation import (
    error_correction,
    interpolation,
    schedule,
    sphere_paths,
)
from resid_theory.theory.interpolation.construction import exact_schedule, merging_schedule
from resid_theory.theory.interpolation.error_correction import with_braces
from resid_theory.theory.interpolation.norm_bounds import nearest
from resid_theory.theory.interpolation.single_move import widest_margin
from resid_theory.theory.interpolation.sphere_paths import (
    SpherePaths,
    great_arc,
    path_around,
    segment,
)

INTERPOLATION = 1e-9  # the documented distance of an output from its target
ROUNDED = 1e-12  # rounding of a thousand units that do not amplify one another's


@pytest.fixture(autouse=True)
def single_precision(float64):
    """torch's own default, which no number of a construction may take."""
    torch.set_default_dtype(torch.float32)


def sphere(generator, count, width):
    points = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return points / points.norm(dim=1, keepdim=True)


def classes(count, width):
    return torch.eye(width, dtype=torch.float64)[torch.arange(count) % width]


def unit(*entries):
    v = torch.tensor(entries, dtype=torch.float64)
    return v / v.norm()


# Lemma 1 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["column", "margin"])
@pytest.mark.parametrize("width", [3, 10])
def test_one_unit_moves_one_column(generator, direction, width):
    a, target = sphere(generator, 7, width), sphere(generator, 1, width)[0]
    w1, b, w2 = rt.theory.move_column(a, 3, target, direction=direction)
    moved = a + (a @ w1.mT + b).relu() @ w2.mT
    a[3] = target
    assert (moved - a).abs().max() <= ROUNDED
    assert (w1.norm() / w2.norm() - 1).abs() <= 4 * EPS
    assert torch.linalg.matrix_rank(w1) == 1 and torch.linalg.matrix_rank(w2) == 1


def nearest_in_hull(points):
    """Point of a convex hull in three dimensions nearest to the origin, by all of its faces."""
    found = []
    for count in (1, 2, 3):
        for base, *rest in combinations(points.numpy(), count):
            sides = np.stack([point - base for point in rest] or [0 * base], 1)
            weights = np.linalg.lstsq(sides, -base, rcond=None)[0]
            if weights.min() >= 0 and weights.sum() <= 1:
                found.append(base + sides @ weights)
    return min(found, key=np.linalg.norm)


@pytest.mark.parametrize("scale", [1.0, 2.0**-80], ids=["one", "tiny"])
@pytest.mark.parametrize("seed", range(3))
def test_the_widest_margin_looks_from_the_nearest_point_of_the_hull(scale, seed):
    a = sphere(torch.Generator().manual_seed(seed), 12, 3)
    looking = widest_margin(scale * a[0], scale * a[1:])
    away = -torch.from_numpy(nearest_in_hull(a[1:] - a[0]))
    assert (looking - away / away.norm()).abs().max() <= ROUNDED


@pytest.mark.parametrize("direction", ["column", "margin"])
def test_a_single_column_is_seen_from_its_antipode(direction):
    column, target = torch.tensor([[0.0, 3.0, 4.0]]), torch.tensor([0.0, 3.0, 5.0])
    w1, b, w2 = rt.theory.move_column(column, 0, target, direction=direction)
    assert w1.norm() ** 2 == pytest.approx(1 / 10, rel=1e-12)  # a step of 1, a gap of 2 * 5
    moved = column.double()[0] + w2 @ (w1 @ column.double()[0] + b).relu()
    assert (moved - target).abs().max() <= ROUNDED


@pytest.mark.parametrize(("others", "gap"), [
    ([[1, 0.1, 0], [-1, 0.1, 0], [0, 1.1, 0], [0, -0.9, 0]], "-1"), ([[0, 0.1, 0]], "0"),
    ([[0, 0.4, 0], [0, -0.1, 0]], "-0.3"),
])  # fmt: skip
def test_a_column_inside_the_hull_cannot_be_moved(others, gap):
    a = torch.tensor([[0, 0.1, 0], *others])
    message = rf"direction: along 'margin' column 0 does not stand out \(gap {gap}\), needs"
    with pytest.raises(ValueError, match=message):
        rt.theory.move_column(a, 0, a[1], direction="margin")


# Lemma 2 -----------------------------------------------------------------------------------------


def separated(generator, width, count):
    """Two ends and obstacles at least 0.25 from one another."""
    kept = sphere(generator, 1, width)
    while len(kept) < count:
        new = sphere(generator, 1, width)
        if (kept - new).norm(dim=1).min() > 0.25:
            kept = torch.cat([kept, new])
    return kept[0], kept[1], kept[2:]


@pytest.mark.parametrize("width", [3, 4, 8])
@pytest.mark.parametrize("seed", range(2))
def test_a_path_keeps_its_distance(width, seed):
    x, y, obstacles = separated(torch.Generator().manual_seed(seed), width, 40)
    pieces = path_around(x, y, obstacles, 0.125)
    paths = SpherePaths.of([pieces, pieces[:1]])
    points = paths.trace(0, 20_000)
    assert (points.norm(dim=1) - 1).abs().max() <= 1e-13
    assert torch.cdist(points, obstacles).min() >= 0.125 - 1e-7  # cdist's cancellation
    assert (points[0] - x).norm() <= 1e-13 and (points[-1] - y).norm() <= 1e-13
    length = float(paths.lengths[0])
    assert (points[1:] - points[:-1]).norm(dim=1).sum() == pytest.approx(length, rel=1e-5)
    arc = great_arc(x, y).length
    assert arc <= length <= math.pi / 2 * arc + 1e-12


def test_through_the_middle_of_an_obstacle():
    """Both ways round are equally long; any third dimension will do."""
    x, y = unit(1, 0, 0, 0), unit(0, 1, 0, 0)
    p = unit(1, 1, 0, 0)
    pieces = path_around(x, y, p.unsqueeze(0), 0.2)
    angle = 2 * math.asin(0.1)
    assert pieces[1].length == pytest.approx(math.pi * math.sin(angle), rel=1e-12)
    assert (SpherePaths.of([pieces]).trace(0, 999) - p).norm(dim=1).min() >= 0.2 - 1e-12


def test_a_straight_line_is_as_long_as_its_ends_are_apart():
    start, end = torch.tensor([[1.0, 2.0, 3.0], [3.0, 3.0, 1.0]]).double()
    line = segment(start, end)
    assert line.length == pytest.approx(3.0) and line.tangent.norm() == pytest.approx(1.0)
    assert (line.at(0.0) - start).norm() <= 4 * EPS and (line.at(3.0) - end).norm() <= 4 * EPS


@pytest.mark.parametrize(
    ("x", "y"),
    [(sign * point, -sign * point) for sign in (1, -1)
     for point in (unit(1, 0, 0), unit(0, 1, 0), unit(0, 0, 1), unit(1, 2, 3))],
)  # fmt: skip
def test_antipodes_have_a_path(x, y):
    pieces = path_around(x, y, torch.zeros(0, 3, dtype=torch.float64), 0.1)
    assert pieces[0].length == pytest.approx(math.pi) and len(pieces) == 1
    assert (pieces[0].at(math.pi) - y).norm() <= 1e-15


def test_detours_of_the_whole_separation_can_meet_another_obstacle():
    """With the paper's radius a way round one obstacle leads through another; half is enough."""
    rho = 0.3
    angle = 2 * math.asin(rho / 2)
    p, q = unit(1, 0, 0), unit(math.cos(angle), 0, math.sin(angle))
    assert (p - q).norm() == pytest.approx(rho)
    x, y = unit(math.cos(0.6), -math.sin(0.6), 0.02), unit(math.cos(0.6), math.sin(0.6), 0.02)
    everything = torch.stack([p, q, x, y])
    assert nearest(everything[:2], everything[2:], merging=True)[0] == pytest.approx(rho)
    wide = SpherePaths.of([path_around(x, y, p.unsqueeze(0), rho)]).trace(0, 4001)
    half = SpherePaths.of([path_around(x, y, torch.stack([p, q]), rho / 2)]).trace(0, 4001)
    assert (wide - q).norm(dim=1).min() < 1e-3
    assert torch.cdist(half, everything[:2]).min() >= rho / 2 - 1e-9


# Theorem 1 ---------------------------------------------------------------------------------------

VARIANTS = {
    "greedy": {},
    "uniform": {"allocation": "uniform"},
    "braced": {},  # with braces that rounding does not ask for
}


@pytest.fixture
def options(request, monkeypatch):
    """Arguments of a variant."""
    if request.param == "braced":
        monkeypatch.setattr(interpolation, "_ROUNDED", -1.0)
    return VARIANTS[request.param]


@pytest.mark.parametrize("options", VARIANTS, indirect=True)
@pytest.mark.parametrize(
    ("width", "count", "each"), [(3, 5, 2), (3, 12, 24), (5, 10, 4), (10, 8, 40)]
)
def test_inputs_reach_their_targets_within_both_bounds(device, options, width, count, each):
    generator = torch.Generator().manual_seed(width * count)
    x, y = (sphere(generator, count, width).to(device) for _ in range(2))
    found = rt.theory.interpolate(x, y, units=each * count, **options)
    assert found.net(x).device == x.device and found.units == each * count
    assert (found.net(x) - y).norm(dim=1).max() <= INTERPOLATION
    assert found.lower_bound <= found.largest_norm <= found.upper_bound
    rho, _ = nearest(x.cpu(), y.cpu())
    assert found.separation == rho
    spare = (each * count - count) * (1 - 1e-3)
    assert found.upper_bound == pytest.approx(2 * math.pi / rho * math.sqrt(count / spare))


@pytest.mark.parametrize("options", VARIANTS, indirect=True)
def test_norms_are_balanced_states_follow_the_paths_and_others_rest(generator, options):
    x, y = sphere(generator, 6, 4), sphere(generator, 6, 4)
    found = rt.theory.interpolate(x, y, units=60, **options)
    norms = found.net.norms[found.movers >= 0]
    assert (norms[:, 0] / norms[:, 1] - 1).abs().max() <= 1e-12
    assert found.largest_norm == found.net.weights.flatten(2).norm(dim=2).max()
    states = found.net.states(x)
    assert torch.equal(states[-1], found.net(x))
    for sample in range(6):
        own = (found.movers == sample).nonzero().flatten() + 1
        assert (states[own, sample] - found.path(sample)[1:]).abs().max() <= ROUNDED
        others = [k for k in range(1, 61) if k not in own.tolist()]
        still = states[others, sample] == states[[k - 1 for k in others], sample]
        assert still.all()


def test_norms_are_roots_of_steps_over_gaps(generator):
    x, y = sphere(generator, 3, 5), sphere(generator, 3, 5)
    x[1] = -x[0] + 0.1 * x[1]  # all others are behind the first one
    x[1], x[2] = x[1] / x[1].norm(), x[1] + 0.1 * x[2]
    x[2] /= x[2].norm()
    found, now, squares = rt.theory.interpolate(x, y, units=3, braces=False), x.clone(), []
    for k in range(3):
        gap = min(float((now[k] - now[j]) @ now[k]) for j in range(3) if j != k)
        squares.append(float((y[k] - x[k]).norm()) / gap / (1 - 1e-3))
        now[k] = y[k]
    for norms in found.net.norms.square().mT.tolist():
        assert norms == pytest.approx(squares, rel=1e-12)
    table = found.table()
    assert table["units"].tolist() == [1, 1, 1] and list(table["sample"]) == [0, 1, 2]
    assert torch.equal(table["from_input"], (found.output - x).norm(dim=1))
    assert table["from_target"].shape == (3,) and table["from_target"].max() == found.error


@pytest.mark.parametrize("exact", [False, True], ids=["rounded", "exact"])
@pytest.mark.parametrize("allocation", ["greedy", "uniform"])
def test_columns_that_change_their_length_alone_are_moved(generator, allocation, exact):
    x = torch.eye(4, dtype=torch.float64)[:3] if exact else sphere(generator, 3, 4)
    found = rt.theory.interpolate(x, (1 + 5e-7) * x, units=5, allocation=allocation)
    assert len(found.schedule.moving) == 3 and found.error <= ROUNDED


@pytest.mark.parametrize("units", [6, 7, 10])
def test_uniform_steps_are_as_short_as_their_number_allows(generator, units):
    x, y = sphere(generator, 3, 5), sphere(generator, 3, 5)
    found = rt.theory.interpolate(x, y, units=units, allocation="uniform", braces=False)
    arcs = ((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))).arccos()
    counts = torch.bincount(found.movers[found.movers >= 0], minlength=3)
    best = min(
        max(float(arc) / n for arc, n in zip(arcs, (i, j, units - i - j), strict=True))
        for i in range(1, units - 1)
        for j in range(1, units - i)
    )
    assert int(counts.sum()) == units
    assert float((arcs / counts).max()) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize(("seed", "units"), [(0, 1000), (1, 60), (2, 200)])
def test_greedy_steps_are_as_small_as_their_number_allows(seed, units, monkeypatch):
    generator, marches = torch.Generator().manual_seed(seed), []
    march = schedule.Schedule.march
    monkeypatch.setattr(
        schedule.Schedule, "march", lambda *given: marches.append(given) or march(*given)
    )
    x, y = sphere(generator, 10, 4), sphere(generator, 10, 4)
    found, equal = (
        rt.theory.interpolate(x, y, units=units, allocation=a, braces=False)
        for a in ("greedy", "uniform")
    )
    assert found.largest_norm < equal.largest_norm
    share = found.largest_norm**2 * (1 - 1e-3)
    assert len(marches) <= 8  # each takes as long as the steps themselves
    used = int((found.movers >= 0).sum())
    assert used >= 0.999 * units or found.schedule.march(share * (1 - 3e-3), units) is None


def test_rounding_grows_in_a_crowd_and_braces_stop_it():
    """Exact in exact arithmetic, the paper's unit loses all digits among 24 columns on S²."""
    generator = torch.Generator().manual_seed(0)
    x, y = sphere(generator, 24, 3), sphere(generator, 24, 3)
    plain, braced = (rt.theory.interpolate(x, y, units=24 * 24, braces=b) for b in (False, True))
    assert plain.error > 1e3 * ROUNDED
    assert braced.error <= ROUNDED
    assert braced.largest_norm <= math.sqrt(2.5) * plain.largest_norm * (1 + 1e-12)
    nudged = x + 1e-9 * sphere(generator, 24, 3)
    assert (braced.net(nudged) - y).norm(dim=1).max() <= 1e-8


@pytest.mark.parametrize("units", [5, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_as_many_units_as_samples_are_enough_and_float32_is_read(generator, units, dtype):
    x, y = (sphere(generator, 5, 6).to(dtype).requires_grad_() for _ in range(2))
    found = rt.theory.interpolate(x, y, units=units)
    assert found.x.dtype == torch.float64
    assert (found.output - y.double()).norm(dim=1).max() <= ROUNDED
    assert math.isinf(found.upper_bound) == (units == 5)


def test_a_single_sample_and_its_antipode():
    x = unit(1, 2, 2).unsqueeze(0)
    found = rt.theory.interpolate(x, -x, units=20)
    assert found.error <= ROUNDED and found.lower_bound == 0.0 and found.separation == 2.0
    assert found.largest_norm <= found.upper_bound


def test_samples_that_stay_need_no_unit(generator):
    x, y = sphere(generator, 6, 4), sphere(generator, 6, 4)
    y[2] = x[2]
    found = rt.theory.interpolate(x, y, units=5)
    assert len(found.schedule.moving) == 5 and found.error <= ROUNDED and len(found.path(2)) == 1
    nothing = rt.theory.interpolate(x, x, units=3)
    assert nothing.largest_norm == nothing.upper_bound == 0.0 and torch.equal(nothing.output, x)
    assert nothing.movers.tolist() == [-1] * 3
    steps = vars(nothing.schedule.steps(3, "greedy")).values()
    shapes = [(0,), (0, 4), (0, 4), (0, 1, 4), (0, 1), (0, 1)]
    assert [tuple(part.shape) for part in steps] == shapes
    assert nothing.table()["units"].tolist() == [0] * 6


def brace_cost(looking, tilt, start, others):
    """Squared norm of a braced unit over that of one without, by the module's description."""
    away = [start - other for other in others]
    gap = min(float(a @ looking) for a in away)
    v = tilt - (tilt @ looking) * looking
    v = v / v.norm()
    far = []
    for side in (v, -v):  # as far as a tenth of the gap is left, at most by 1
        limits = [(float(a @ looking) - 0.1 * gap) / -float(a @ side) for a in away if a @ side < 0]
        far.append(min([1.0, *limits]))
    rows = [looking + far[0] * v, looking - far[1] * v]
    gaps = [min(float(a @ row) for a in away) for row in rows]
    back = [far[1] / sum(far), far[0] / sum(far)]  # the three slopes add up to zero
    left = gap - sum(b * g for b, g in zip(back, gaps, strict=True))
    sizes = 1 + sum(b * float(row.norm()) for b, row in zip(back, rows, strict=True))
    return gap / left * sizes if left > 0 else math.inf


def brace_costs(paths, steps):
    """Squared norms of all units with the cheaper of two pairs of braces."""
    return [
        float(ratio) * min(
            brace_cost(looking[0], tilt, start, others)
            for tilt in (others[(others - start).norm(dim=1).argmin()] - start, end - start)
        )
        for ratio, looking, start, end, others in zip(
            steps.ratios, steps.directions, steps.starts, steps.ends,
            (paths.others(int(row)) for row in steps.rows), strict=True,
        )
    ]  # fmt: skip


@pytest.mark.parametrize("entries", [1 << 22, 100, 1], ids=["together", "in parts", "one by one"])
def test_braces_by_their_description(entries, monkeypatch):
    generator = torch.Generator().manual_seed(1)  # on a third of the moves the second tilt wins
    x, y = sphere(generator, 12, 3), sphere(generator, 12, 3)
    monkeypatch.setattr(error_correction, "_ENTRIES", entries)
    paths = exact_schedule(x, y)
    steps = paths.steps(60, "greedy")
    costs = brace_costs(paths, steps)
    budget = sum(sorted(costs)[45:47]) / 2
    found = with_braces(paths, steps, budget)
    braced = found.shares[:, 1:].any(1)
    assert braced.tolist() == [cost <= budget for cost in costs] and braced.sum() == 46
    squares = found.units(clearance=0.0)[0].square().sum((2, 3))
    expected = torch.where(braced, torch.tensor(costs).double(), steps.ratios)
    torch.testing.assert_close(squares, expected[:, None].expand(-1, 2), rtol=1e-6, atol=0)
    slopes = found.shares[:, :, None] * found.directions
    assert slopes[braced].sum(1).abs().max() <= ROUNDED  # a translation, whatever its error
    assert (found.directions[braced] @ steps.directions[braced].mT - 1).abs().max() <= ROUNDED
    for number, row in enumerate(steps.rows.tolist()):
        scores = found.directions[number] @ paths.others(row).mT
        assert (found.highest[number] - scores.amax(1)).abs().max() <= ROUNDED


def test_braces_go_as_far_as_the_bound_allows(monkeypatch):
    monkeypatch.setattr(interpolation, "_ROUNDED", -1.0)
    generator = torch.Generator().manual_seed(1)
    x, y = sphere(generator, 6, 3), sphere(generator, 6, 3)
    paths = exact_schedule(x, y)
    steps = paths.steps(18, "greedy")
    costs = brace_costs(paths, steps)
    usual = 2.5 * float(steps.ratios.max())  # what braces may multiply squared norms by
    below = sorted(cost for cost in costs if cost < usual)
    assert sum(usual < cost < 2 * usual for cost in costs) and len(below) > 4
    for budget in (math.inf, below[-2] * (1 + 1e-6), below[-2] * (1 - 1e-6)):
        bound = math.sqrt(budget / (1 - 1e-3))  # others stay below by a thousandth of each gap
        monkeypatch.setattr(schedule.Schedule, "norm_bound", lambda *_, bound=bound: bound)
        net = rt.theory.interpolate(x, y, units=18).net
        braced = net.weights[:, 0].norm(dim=2).count_nonzero(1) == 3
        assert braced.tolist() == [cost <= min(usual, budget) for cost in costs]


def test_braces_see_the_other_of_two_columns_wherever_it_is():
    x = torch.tensor([[1.0, 0, 0], [-0.8, 0.6, 0]], dtype=torch.float64)
    y = torch.tensor([[0.6, 0, 0.8], [0, 0, -1.0]], dtype=torch.float64)
    paths = exact_schedule(x, y)
    found = with_braces(paths, paths.steps(12, "uniform"), math.inf)
    others = torch.stack([x[1], y[0]])[found.rows]  # the first column is there when the other goes
    exact = (found.directions * others[:, None]).sum(2)
    torch.testing.assert_close(found.highest, exact, rtol=0, atol=8 * EPS)
    gaps = (found.directions * found.starts[:, None]).sum(2) - exact
    assert float(gaps[:, 1:].max()) > 1.5


@pytest.mark.parametrize("merging", [False, True])
def test_columns_pass_one_another_at_half_the_separation(merging):
    generator = torch.Generator().manual_seed(1)
    x, y = sphere(generator, 12, 3), sphere(generator, 12, 3)
    made = merging_schedule(x, y, tolerance=1e-3) if merging else exact_schedule(x, y)
    apart = []
    for row in range(12):
        s = made.approaches[row].clamp(max=float(made.paths.lengths[row]))
        points = made.paths.at(torch.full((4000,), row), torch.linspace(0, 1, 4000).double() * s)
        apart.append(torch.cdist(points, torch.cat([y[:row], x[row + 1 :]])).min().item())
    assert min(apart) == pytest.approx(made.separation / 2, abs=1e-5)


def test_products_are_compared_in_parts(generator, monkeypatch):
    x, y = sphere(generator, 6, 4), sphere(generator, 6, 4)
    whole = rt.theory.interpolate(x, y, units=60)
    monkeypatch.setattr(schedule, "_SCORES", 20)
    parts = rt.theory.interpolate(x, y, units=60)
    assert torch.equal(parts.movers, whole.movers)  # products of fewer rows may round otherwise
    assert (parts.net.weights - whole.net.weights).abs().max() <= ROUNDED


# Lower bound -------------------------------------------------------------------------------------


@pytest.mark.parametrize("near", [0, 1], ids=["stretched", "shrunk"])
@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_lower_bound_by_its_definition(generator, tolerance, near):
    x, y, units = sphere(generator, 6, 4), sphere(generator, 6, 4), 30
    y = x + 0.5 * (y[:1] - x) if near else y  # all distances halved, or some of them doubled
    w = rt.theory.least_norm(x, y, units=units, tolerance=tolerance)
    pairs = [((y[i] - y[j]).norm(), (x[i] - x[j]).norm()) for i in range(6) for j in range(i)]

    def fits(w):
        """Whether each quotient can be met where both targets may move by the tolerance."""
        return all((1 - w * w) ** units <= (after + 2 * tolerance) / before
                   and (after - 2 * tolerance) / before <= (1 + w * w) ** units
                   for after, before in pairs)  # fmt: skip

    assert fits(w * (1 + 1e-9)) and not fits(w * (1 - 1e-9))


def test_equal_targets_need_a_unit_of_norm_one(generator):
    x = sphere(generator, 2, 4)
    y = x[:1].repeat(2, 1)
    assert rt.theory.least_norm(x, y, units=10**9) == 1.0
    near = rt.theory.least_norm(x, y, units=1000, tolerance=1e-3)
    assert 0 < near < 1


@pytest.mark.parametrize("shape", [(3, 4), (2, 3), (4,)])
def test_points_of_other_shapes_have_no_lower_bound(shape):
    x = torch.ones(4) if len(shape) == 1 else torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"^x, y: got shapes .*, needs \(m, d\)"):
        rt.theory.least_norm(x, torch.ones(shape), units=3)


def test_equal_inputs_need_equal_targets(generator):
    x, y = sphere(generator, 2, 4), sphere(generator, 2, 4)
    twice = torch.tensor([0, 0, 1])
    bound = rt.theory.least_norm(x.clone().requires_grad_(), y, units=30)
    assert rt.theory.least_norm(x[twice], y[twice], units=30) == bound
    assert rt.theory.least_norm(x[twice], sphere(generator, 3, 4), units=30) == math.inf


# Perturbed and merged targets --------------------------------------------------------------------


def test_perturbed_targets(generator):
    x, y = sphere(generator, 9, 4), classes(9, 4)
    found = rt.theory.interpolate(x, y, units=400, mode="perturbed", noise=0.2, generator=3)
    again = torch.Generator().manual_seed(3)
    same = rt.theory.interpolate(x, y, units=400, mode="perturbed", noise=0.2, generator=again)
    assert torch.equal(same.targets, found.targets)
    assert (found.output - found.targets).norm(dim=1).max() <= INTERPOLATION
    assert found.lower_bound <= found.largest_norm <= found.upper_bound
    assert found.lower_bound == rt.theory.least_norm(x, found.targets, units=400)
    expected = 0.5 * (found.targets - y).square().sum(1).mean()
    assert found.loss == pytest.approx(float(expected), rel=1e-9)
    assert 0 < found.loss < 0.2**2


def test_of_some_perturbations_the_widest_apart_is_taken(generator):
    x, y, drawn = sphere(generator, 6, 4), classes(6, 4), []
    source = torch.Generator().manual_seed(3)
    for _ in range(5):
        moved = y + 0.3 / 4**0.5 * torch.randn(6, 4, generator=source, dtype=torch.float64)
        moved = moved / moved.norm(dim=1, keepdim=True)
        pairs = [(i, j) for j in range(6) for i in range(j)]
        apart = [float((p[i] - q[j]).norm()) for i, j in pairs
                 for p, q in ((x, x), (moved, moved), (moved, x))]  # fmt: skip
        drawn.append((min(apart), moved))
    best = max(drawn, key=lambda pair: pair[0])
    assert best is not drawn[0] and best is not drawn[-1]
    found = rt.theory.interpolate(x, y, units=60, mode="perturbed", noise=0.3, draws=5, generator=3)
    assert found.separation == pytest.approx(best[0], rel=1e-12)
    assert (found.targets - best[1]).abs().max() <= 4 * EPS


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
@pytest.mark.parametrize("width", [3, 6])
def test_merged_targets(generator, tolerance, width):
    x, y = sphere(generator, 12, width), classes(12, width)
    found = rt.theory.interpolate(x, y, units=120, mode="merge", tolerance=tolerance)
    assert (found.output - y).norm(dim=1).max() <= tolerance + ROUNDED
    assert found.error <= INTERPOLATION
    assert found.lower_bound <= found.largest_norm <= found.upper_bound
    assert found.lower_bound == rt.theory.least_norm(x, y, units=120, tolerance=tolerance)
    rho, together = found.separation, 12 / min(width, 12)
    shrinking = 19 + 5.3 * math.log(together * rho / (4 * tolerance))
    cost = 12 * (8 * math.pi**2 / rho**2 + shrinking / rho) / (120 - 36) / (1 - 1e-3)
    assert found.upper_bound == pytest.approx(math.sqrt(cost))
    bounds = [found.schedule.norm_bound(units) for units in (36, 37)]  # three each, and one more
    assert math.isinf(bounds[0]) and math.isfinite(bounds[1])


@pytest.mark.parametrize(
    ("mode", "usual"), [("merge", {"tolerance": 1e-3}), ("perturbed", {"noise": 0.1})]
)
def test_targets_are_moved_by_the_documented_lengths_unless_told(generator, mode, usual):
    x, y = sphere(generator, 4, 3), classes(4, 3)
    found, told = (
        rt.theory.interpolate(x, y, units=80, mode=mode, **given) for given in ({}, usual)
    )
    assert torch.equal(found.targets, told.targets)


def test_the_tolerance_is_at_most_an_eighth_of_the_separation(generator):
    x, y = sphere(generator, 4, 3), classes(4, 3)
    found = rt.theory.interpolate(x, y, units=80, mode="merge", tolerance=2.0)
    assert found.tolerance == pytest.approx(found.separation / 8)
    assert (found.output - y).norm(dim=1).max() <= found.tolerance + ROUNDED


def test_merging_costs_the_logarithm_of_the_tolerance(generator):
    x, y = sphere(generator, 8, 6), classes(8, 6)
    options = {"units": 200, "mode": "merge", "braces": False}
    found = [rt.theory.interpolate(x, y, tolerance=t, **options) for t in (1e-2, 1e-4, 1e-6)]
    first, second, third = (net.largest_norm**2 for net in found)
    assert third - second == pytest.approx(second - first, rel=0.2)


@pytest.mark.parametrize(("share", "fits"), [(0.98, False), (1.02, True)])
def test_points_are_kept_apart_where_gaps_are_above_round_off(share, fits):
    # A thousandth of the least gap, an eighth of a squared distance, is to exceed the rounding of
    # both products behind it, 16 * 3 EPS each.
    apart = share * math.sqrt(8 * 2 * 16 * 3 * EPS / 1e-3)
    x = torch.eye(3, dtype=torch.float64)[:2]
    y = torch.stack([unit(0, 1, apart), unit(-1, 0, 0)])
    if fits:
        assert exact_schedule(x, y).separation == pytest.approx(apart, rel=1e-9)
        return
    with pytest.raises(ValueError, match="x.1. are 1.28e-05 apart, needs more than 1.31e-05"):
        exact_schedule(x, y)


def test_columns_from_one_side_merge_because_they_stop_in_turn():
    """Twelve columns of one class on one great circle: stopping all alike would leave no gaps."""
    angle = torch.linspace(0.6, 1.7, 12, dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin(), 0 * angle], 1)
    y = classes(1, 3).repeat(12, 1)
    found = rt.theory.interpolate(x, y, units=300, mode="merge", tolerance=1e-4)
    left = (found.output - y).norm(dim=1)
    assert (left / 1e-4 * 12 - torch.arange(1, 13)).abs().max() <= 1e-6
    assert found.largest_norm <= found.upper_bound


def test_a_column_arrives_from_the_side_of_another_target():
    """The first column rests short of its target, beyond the target of the second one."""
    angle = torch.tensor([[-0.8, 1.4], [0.4, 0.0]], dtype=torch.float64)
    x, y = torch.stack([angle.cos(), angle.sin(), 0 * angle], 2)
    schedule = merging_schedule(x, y, tolerance=0.04)
    row, s = torch.tensor([1]), schedule.approaches[1:]
    point = schedule.paths.at(row, s)
    # Where it leaves the sphere the other columns are at three quarters of the separation.
    assert (point - y[1]).norm().item() == pytest.approx(schedule.separation / 4)
    direction = schedule.look(row, s, point)
    assert (direction * point).sum() > schedule.highest(row, direction)
    # A point at a chord c is not beyond it if its slope is at least 2 / c.
    sine = (direction * y[1]).sum()
    slope = sine / (1 - sine.square()).sqrt()
    assert slope.item() == pytest.approx(2 / (0.75 * schedule.separation))


# The module --------------------------------------------------------------------------------------


def test_the_net_is_a_shortcut_net(generator):
    x, y = sphere(generator, 5, 4), sphere(generator, 5, 4)
    found = rt.theory.interpolate(x, y, units=30)
    assert isinstance(found.net, rt.ShortcutNet) and found.net.shortcut_depth == 2
    same = rt.ShortcutNet(4, 30, 2, mid="relu", bias=True, dtype=torch.float64)
    same.load_state_dict(found.net.state_dict())
    assert (same(x) - found.net(x)).abs().max() <= ROUNDED


def test_training_goes_on(generator):
    x, y = sphere(generator, 5, 4), classes(5, 4)
    found = rt.theory.interpolate(x, y, units=60, mode="perturbed", generator=generator)
    before = found.loss
    for _ in range(5):
        loss = 0.5 * (found.net(x) - y).square().sum(1).mean()
        steps = torch.autograd.grad(loss, list(found.net.parameters()))
        with torch.no_grad():
            for parameter, step in zip(found.net.parameters(), steps, strict=True):
                parameter -= 1e-3 * step
    assert 0 < found.loss < before


def test_the_section_of_an_obstacle_is_a_circle_of_its_distance():
    obstacle, radius = torch.tensor([0.2, -0.5, 0.6]).double(), 0.7
    circle = sphere_paths._section(obstacle, radius)
    one = torch.ones(len(circle)).double()
    torch.testing.assert_close(circle.norm(dim=1), one)
    torch.testing.assert_close(circle @ obstacle, (1 - radius**2 / 2) * one)
    assert torch.linalg.matrix_rank(circle - circle[0]) == 2
    assert sphere_paths._section(0.1 * obstacle, radius) is None


def globe(chart):
    """Points of the sphere from their longitudes and latitudes."""
    longitude, latitude = chart.unbind(1)
    level = latitude.cos()
    return torch.stack([level * longitude.cos(), level * longitude.sin(), latitude.sin()], 1)


def on_globe(*places):
    return globe(torch.tensor(places, dtype=torch.float64))


def test_a_chart_shows_longitudes_from_the_start_and_the_obstacles_beside_the_arc():
    s = torch.linspace(0, 1.2, 41, dtype=torch.float64)
    path = torch.stack([s, 0.1 * (math.pi * s / 1.2).sin()], 1)
    shown = [(0.1, 0.0), (-0.6, 0.0), (1.8, 0.1), (0.5, 0.6), (0.7, -0.6)]
    hidden = [(-0.8, 0.0), (2.0, 0.0), (0.5, 0.8), (0.6, -0.8), (0.6 + math.pi, 0.0)]
    mixed = [place for pair in zip(shown, hidden, strict=True) for place in pair]
    chart = sphere_paths.chart(globe(path), globe(path[::4]), on_globe(*mixed), 2 * math.sin(0.1))
    for found, exact in ((chart.path, path), (chart.steps, path[::4]), (chart.arc[:, 0], s)):
        assert (found - exact).abs().max() <= ROUNDED
    assert chart.arc[:, 1].abs().max() <= ROUNDED
    middles = torch.stack([globe(circle[:-1]).mean(0) for circle in chart.circles])
    middles = middles / middles.norm(dim=1, keepdim=True)
    assert (middles - on_globe(*shown)).abs().max() <= ROUNDED
    polar = sphere_paths.chart(globe(path), globe(path), on_globe((0.5, 1.5)), 2 * math.sin(0.55))
    assert polar.circles.shape == (0, chart.circles.shape[1], 2)  # around the pole, in no piece


def test_a_path_is_drawn(generator):
    x, y, obstacles = separated(generator, 3, 30)
    found = rt.theory.interpolate(
        torch.cat([x.unsqueeze(0), obstacles]), torch.cat([y.unsqueeze(0), obstacles]), units=30
    )
    chart = found.chart(0)
    assert (chart.arc[:, 1]).abs().max() <= 1e-12 and chart.arc[0].norm() <= 1e-12
    assert chart.arc[-1, 0].item() == pytest.approx(great_arc(x, y).length)
    # Longitudes and latitudes: angles between points are those on the sphere.
    trace = found.schedule.paths.trace(0, len(chart.path))
    for charted, points in ((chart.path, trace), (chart.steps, found.path(0))):
        on_sphere = globe(charted)
        assert (on_sphere @ on_sphere.T - points @ points.T).abs().max() <= 1e-12
    assert len(chart.circles) > 0
    assert torch.equal(found.schedule.others(1), torch.cat([y[None], obstacles[1:]]))
    for circle in map(globe, chart.circles):  # of a chordal radius of half the separation
        middle = circle[:-1].mean(0)  # the last point is the first one
        cosines = circle @ middle / middle.norm()
        assert (cosines - (1 - (found.separation / 2) ** 2 / 2)).abs().max() <= 1e-12
    ax = rt.plots.interpolation_path(chart, ax=rt.plots.figure().axes[0], title="column 0")
    assert ax.get_title() == "column 0"
    assert ax.lines[-1].get_xydata().tolist() == chart.steps.tolist()


# Bad input ---------------------------------------------------------------------------------------

X = torch.eye(4, dtype=torch.float64)[:3]
Y = torch.eye(4, dtype=torch.float64)[[1, 2, 3]]
Z = torch.stack([unit(1, 1, 1, 1), unit(1, -1, 1, 1), unit(1, 1, -1, 1)])
NEAR = torch.stack([unit(1, 1, 1, 1), unit(1.008, 1, 1, 1), unit(1, 1, -1, 1)])


@pytest.mark.parametrize(
    ("x", "y", "keywords", "message"),
    [
        (X, torch.tensor([[1], [2], [1]]) * Z, {}, "y: sample 1 has norm 2, needs 1 to 1e-06"),
        (X, (1 + 1.5e-6) * Z, {}, "y: sample 0 has norm 1, needs 1"),
        (torch.tensor([[1], [1], [0.5]]) * X, Z, {}, "x: sample 2 has norm 0.5, needs 1 to 1e-06"),
        (X[:, :2], X[:, :2], {}, r"x: got shape \(3, 2\), needs \(m, d\).*d >= 3"),
        (X, Z[:2], {}, r"y: got shape \(2, 4\), needs that of x, \(3, 4\)"),
        (X * math.nan, Z, {}, "x: entry.*finite"),
        (X[[0, 1, 0]], Z, {}, "x: samples 0 and 2 are equal, needs distinct inputs"),
        (Y[[0, 1, 1, 0]], torch.eye(4), {}, "x: samples 1 and 2 are equal, needs distinct inputs"),
        (X, Z[[0, 1, 1]], {}, "y: samples 1 and 2 have one target.*'merge'"),
        (X, Y, {}, r"x, y: y\[0\] and x\[1\] are 0 apart, needs more than 1.51e-05"),
        (torch.tensor([[1], [1 + 8e-7], [1]]) * X, NEAR, {}, "0.00346 apart.*more than 0.00517"),
        (X, (1 + 8e-7) * NEAR, {}, r"y\[0\] and y\[1\] are 0.00346 apart, needs more than 0.00506"),
        ((1 - 8e-7) * X, NEAR, {}, r"y\[0\] and y\[1\] are 0.00346 apart, needs more than 0.00506"),
        (X, Z, {"units": 2}, "units: got 2, needs at least 3"),
        (X, Z, {"units": 2.5}, "units: got 2.5, needs a whole number"),
        (X, Z, {"mode": "merged"}, "mode: unknown name 'merged'; did you mean 'merge'"),
        (X, Z, {"allocation": "even"}, "allocation: unknown name"),
        (X, Z, {"tolerance": 0.1}, "tolerance: got 0.1, needs mode 'merge'"),
        (X, Z, {"noise": 0.1}, "noise: got 0.1, needs mode 'perturbed'"),
        (X, Z, {"mode": "perturbed", "generator": None}, "generator: got None"),
        (X, Z, {"generator": torch.Generator()}, "generator: got one, needs mode 'perturbed'"),
        (X, Z, {"mode": "merge", "allocation": "uniform"}, "allocation: got 'uniform'"),
    ],
)
def test_bad_input_is_named(x, y, keywords, message):
    with pytest.raises(ValueError, match=message):
        rt.theory.interpolate(x, y, **{"units": 12, **keywords})


@pytest.mark.parametrize(
    ("call", "sample", "message"),
    [
        ("path", 3, "sample: got 3, needs a number below 3"),
        ("path", -1, "sample: got -1, needs at least 0"),
        ("chart", 3, "sample: got 3, needs a number below 3"),
        ("chart", 0, "sample: got 0, needs one that moves"),
    ],
)
def test_a_sample_that_is_not_there_or_rests(call, sample, message):
    found = rt.theory.interpolate(X, torch.cat([X[:1], Z[1:]]), units=6)
    with pytest.raises(ValueError, match=message):
        getattr(found, call)(sample)
