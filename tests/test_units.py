"""Hidden units that carry a linear map: functions kept, units counted, distances by brute force."""

from dataclasses import replace

import pytest
import torch
from scipy.optimize import lsq_linear
from tolerances import relative_error, round_off
from torch.nn import functional as F

from resid_theory.equivalence.units import (
    TwoLayers,
    UnitKind,
    _descended,
    _independent,
    nearest_set,
)

SAME = round_off(2000)
"""A few matrices of at most 20 rows, solved once."""

UNITS = {
    "leaky": lambda t: F.leaky_relu(t, 0.3), "turned": lambda t: F.relu(-t), "line": lambda t: t,
    "sum": lambda t: F.gelu(t) / 2 + 0.7 * t, "softplus": F.softplus, "ELU": F.elu,
    "squares": lambda t: 3 * F.relu(t / 3**0.5) ** 2,
}  # fmt: skip
KAPPA = {"leaky": 1.3, "turned": -1, "line": 2, "sum": 1.9, "softplus": 1}


@pytest.mark.parametrize(
    ("function", "kappa", "properties"),
    [(F.relu, 1, "keeps_positive nonnegative homogeneous zero"), (F.gelu, 1, "zero"),
     (F.silu, 1, "zero"), (F.elu, None, "keeps_positive zero"), (torch.tanh, None, "zero"),
     (lambda t: F.leaky_relu(t, 0.3), 1.3, "keeps_positive homogeneous zero"),
     (F.softplus, 1, "nonnegative"), (F.mish, None, "zero"), (F.hardswish, 1, "zero"),
     (F.relu6, None, "nonnegative zero"), (torch.square, None, "nonnegative flat zero"),
     (lambda t: F.relu(t) ** 2, None, "nonnegative squares flat zero"),
     (lambda t: F.relu(-t), -1, "nonnegative homogeneous zero"),
     (lambda t: F.relu(-t) ** 2, None, "nonnegative squares flat zero"),
     (lambda t: t, 2, "keeps_positive homogeneous zero"), (torch.exp, None, "nonnegative"),
     (lambda t: F.relu(t / 3) * 3, 1, "keeps_positive nonnegative homogeneous zero"),
     (lambda t: 3 * F.relu(t / 3**0.5) ** 2, None, "nonnegative squares flat zero"),
     (lambda t: t.clamp(-5e11, 5e11), None, "zero"),
     (lambda t: F.hardshrink(t, 5e-8), None, "flat zero"),
     (lambda t: F.hardshrink(t, 1e-10), None, "flat zero"),
     (lambda t: 1e-7 * t, 2e-7, "homogeneous zero"),
     (lambda t: t.abs(), None, "keeps_positive nonnegative homogeneous zero"),
     (lambda t: t.mul_(2), 4, "homogeneous zero"), (lambda t: t - 1, 2, "")],
)  # fmt: skip
def test_units_that_carry_a_line(function, kappa, properties):
    unit = UnitKind.of(function)
    assert {name for name, value in vars(unit).items() if value is True} == {*properties.split()}
    assert unit.kappa == (None if kappa is None else pytest.approx(kappa, rel=1e-12))


def made(name, up, bias, down, shortcut, offset=None, *, rounding=1e-15, positive=False):
    offset = torch.zeros(len(down)) if offset is None else offset
    return TwoLayers(
        up=up, bias=bias, down=down, offset=offset, shortcut=shortcut,
        unit=UnitKind.of(UNITS[name]), rounding=rounding, positive=positive,
    )  # fmt: skip


def value(block, x):
    """P x + V φ(W x + b) + c, sample by sample."""
    rows = []
    for each in x:
        hidden = block.unit.function(block.up @ each + block.bias)
        rows.append(block.shortcut @ each + block.down @ hidden + block.offset)
    return torch.stack(rows)


def random_units(name, *, rank=2):
    """Four units, and further ones that are dead, constant, parallel, opposite or cancel one."""
    torch.manual_seed(0)
    up, bias, down = torch.randn(4, 3), torch.randn(4), torch.randn(2, 4)
    factor = 2.0 if name in ("leaky", "turned", "line") else 1.0
    like = torch.tensor([3, 3, 0, 1, 2])
    signs = torch.tensor([1.0, 0.0, factor, -factor, factor])
    more_up, more_bias = signs[:, None] * up[like], signs * bias[like]
    more_bias[1], more_down, down[0, 3] = 0.8, torch.randn(2, 5), 0
    more_down[:, 0], more_down[:, 4] = 0, -down[:, 2] / factor
    shortcut = torch.randn(2, rank) @ torch.randn(rank, 3)
    return made(name, torch.cat([up, more_up]), torch.cat([bias, more_bias]),
                torch.cat([down, more_down], 1), shortcut, torch.randn(2))  # fmt: skip


@pytest.mark.parametrize("name", UNITS)
def test_every_step_keeps_the_function(name):
    block, x = random_units(name), torch.randn(6, 3)
    exact, kappa = value(block, x), KAPPA.get(name)
    least = block.merged()
    assert relative_error(value(least, x), exact) < SAME
    live = [0, 1, 3] + [7] * (kappa is None)  # the third one and its twin give nothing together
    assert torch.equal(least.up, block.up[live]) and torch.equal(least.bias, block.bias[live])
    assert torch.equal(least.shortcut, block.shortcut) is (kappa is None)
    if kappa is None and not block.unit.squares:
        return
    if kappa is not None:
        chosen = torch.tensor([True, False, True])
        turned = least.flipped(chosen)
        assert torch.equal(turned.up, torch.tensor([-1.0, 1, -1])[:, None] * least.up)
        assert relative_error(value(turned, x), exact) < SAME
        P = least.shortcut + kappa * sum(torch.outer(least.down[:, n], least.up[n]) for n in (0, 2))
        assert relative_error(turned.shortcut, P) < SAME
    new, distance = block.without_shortcut()
    assert not new.shortcut.any() and relative_error(value(new, x), exact) < SAME
    assert (distance is None) is (kappa is None)
    assert len(new.up) == (4 + 4 * 2 if kappa is None else 3 + 3)  # a unit for each direction read


@pytest.mark.parametrize("name", [*KAPPA, "squares"])
@pytest.mark.parametrize(("read", "rank"), [(0, 2), (1, 2), (4, 1), (2, 3), (4, 4), (3, 0)])
def test_the_fewest_units_for_a_rank(name, read, rank):
    torch.manual_seed(read + rank)
    up = torch.randn(5, read) @ torch.randn(read, 4)
    R = torch.randn(3, rank) @ torch.randn(rank, 4)
    block = made(name, up, torch.randn(5), torch.randn(3, 5), R)
    x, tolerance = torch.randn(6, 4), 1e-12
    new, rank = block.carried(tolerance), min(rank, 3)
    P = torch.linalg.pinv(up) @ up
    beside = int(torch.linalg.matrix_rank(R - R @ P, atol=tolerance))
    need = 4 * rank if name == "squares" else min(2 * rank, read + 2 * beside)
    assert len(new.up) == 5 + need * (rank > 0)
    assert not new.shortcut.any() and relative_error(value(new, x), value(block, x)) < SAME


@pytest.mark.parametrize("name", ["leaky", "ELU"])
def test_a_stream_that_is_positive_needs_a_unit_for_each_column(name):
    torch.manual_seed(0)
    R = torch.randn(3, 5)
    R[:, 1], R[:, 4] = 0, torch.tensor([0.0, 0.9e-3, 0.0])
    R[:, 3] = torch.tensor([0.0, 1.1e-3, 0.0])
    block = made(name, torch.zeros(0, 5), torch.zeros(0), torch.zeros(3, 0), R, positive=True)
    new, x = block.carried(1e-3), torch.rand(4, 5)
    assert torch.equal(new.up, torch.eye(5)[[0, 2, 3]]) and not new.bias.any()
    assert relative_error(value(new, x), x @ (R * torch.tensor([1.0, 1, 1, 1, 0])).T) < SAME
    if name == "leaky":
        assert len(replace(block, positive=False).carried(1e-3).up) == 6


@pytest.mark.parametrize(("name", "each"), [("sum", 2), ("turned", 2), ("squares", 4)])
def test_what_is_within_the_tolerance_is_carried_by_nobody(name, each):
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(4, 4))[0] for _ in range(2))
    R = left @ torch.diag(torch.tensor([1.0, 1.1e-2, 0.9e-2, 0.0])) @ right
    block = made(name, torch.zeros(0, 4), torch.zeros(0), torch.zeros(4, 0), R)
    assert len(block.carried(1e-2).up) == 2 * each
    small = replace(block, shortcut=R / float(R.norm()))
    assert [len(small.carried(t).up) for t in (0.99, 1.01)] == [each, 0]


def test_the_tolerance_is_ten_roundings_of_all_terms():
    torch.manual_seed(0)
    block = made("leaky", torch.randn(4, 3), torch.randn(4), torch.randn(2, 4), torch.randn(2, 3),
                 rounding=1e-3)  # fmt: skip
    terms = [float(block.shortcut.square().sum()) ** 0.5]
    for v, w in zip(block.down.T, block.up, strict=True):
        terms.append(float((v**2).sum() * (w**2).sum()) ** 0.5)
    assert block.tolerance == pytest.approx(10 * 1e-3 * sum(terms), rel=round_off(10))


@pytest.mark.parametrize(("name", "size"), [("softplus", 5.0), ("leaky", 5.0)])
@pytest.mark.parametrize("sign", [1, -1])
def test_units_are_parallel_within_a_hundred_roundings(name, size, sign):
    row, off = torch.tensor([size, 0.0, 0.0]), torch.tensor([0.0, 0.0, size])
    for roundings, count in ((60, 1), (160, 2)):
        up = torch.stack([row, sign * (row + roundings * 1e-9 * off)])
        block = made(name, up, torch.zeros(2), torch.ones(2, 2), torch.zeros(2, 3), rounding=1e-9)
        assert len(block.merged().up) == count


def test_rows_that_span_all_the_longest_first():
    rows = torch.tensor([[0.0, 2, 0], [3, 0, 0], [0, 0, 1e-11], [1, 1, 0]])
    assert _independent(rows) == [1, 0] and _independent(rows[:0]) == []
    assert _independent(1e-30 * rows[:2]) == [1, 0] and _independent(torch.zeros(2, 3)) == []


@pytest.mark.parametrize("seed", range(12))
def test_single_flips_go_down_as_far_as_any_does(seed):
    torch.manual_seed(seed)
    with torch.device("cpu"):
        root, c, s = torch.randn(7, 9), torch.randn(9), torch.randint(2, (9,)).double()
    G, best = (root.T @ root).double(), s

    def value(s):
        return float(s @ G @ s + 2 * c.double() @ s)

    while best is not None:
        end, flips = best, [torch.where(torch.arange(9) == n, 1 - best, best) for n in range(9)]
        best = min(flips, key=value)
        best = best if value(best) < value(end) else None
    assert torch.equal(_descended(s, G, c.double()), end)


# --- distances


def columns(block):
    """κ v_i w_iᵀ, each as a column."""
    each = [torch.outer(v, w).flatten() for v, w in zip(block.down.T, block.up, strict=True)]
    return block.unit.kappa * torch.stack(each, 1)


def over_all_sets(block):
    sets = (torch.arange(2 ** len(block.up))[:, None] >> torch.arange(len(block.up)) & 1).double()
    return (block.shortcut.flatten() + sets @ columns(block).T).norm(dim=1).min()


def over_the_box(block):
    found = lsq_linear(columns(block).numpy(), -block.shortcut.flatten().numpy(), (0, 1), tol=1e-15)
    return (2 * found.cost) ** 0.5


@pytest.mark.parametrize("name", KAPPA)
@pytest.mark.parametrize("seed", range(3))
def test_bounds_of_the_distance(name, seed):
    torch.manual_seed(seed)
    up, down = torch.randn(7, 4), torch.randn(3, 7)
    block = made(name, up, torch.randn(7), down, 2 * torch.randn(3, 4))
    torch.set_default_dtype(torch.float32)  # of which units in float64 take no notice
    found, exact = nearest_set(block), float(over_all_sets(block))
    assert found.low == pytest.approx(over_the_box(block), rel=1e-5)  # what 300 steps leave
    assert found.high == pytest.approx(exact, rel=SAME)  # these are no hard ones
    chosen = block.shortcut.flatten() + columns(block) @ found.chosen.double()
    assert found.high == pytest.approx(float(chosen.norm()), rel=SAME)
    assert found.decided and found.low > 0


@pytest.mark.parametrize(("apart", "seed"), [(0.03, 0), (0.03, 4), (0.01, 1)])
def test_a_planted_set_is_found_among_units_that_are_nearly_parallel(apart, seed):
    torch.manual_seed(seed)  # of those at which only least squares lead to it
    up, down = torch.randn(1, 4) + apart * torch.randn(12, 4), torch.randn(4, 12)
    chosen = torch.arange(12) % 3 != 1
    block = made("leaky", up, torch.randn(12), down, -1.3 * (down * chosen) @ up)
    found = nearest_set(block)
    assert torch.equal(found.chosen, chosen) and found.decided
    assert found.low <= found.high < block.tolerance


@pytest.mark.parametrize("seed", [2, 6, 15, 20])
def test_a_planted_set_is_found_among_more_units_than_entries(seed):
    torch.manual_seed(seed)  # of those at which only the best of the box leads to it
    up, down = torch.randn(14, 2), torch.randn(2, 14)
    chosen = torch.arange(14) % 3 != 1
    block = made("leaky", up, torch.randn(14), down, -1.3 * (down * chosen) @ up)
    found = nearest_set(block)
    assert torch.equal(found.chosen, chosen) and found.decided
    assert found.high == pytest.approx(float(over_all_sets(block)), abs=block.tolerance)


@pytest.mark.parametrize("seed", range(3))
def test_units_against_one_another(seed):
    torch.manual_seed(seed)
    up, down = torch.randn(4, 3), torch.randn(3, 4)
    up, down = (torch.cat([part, sign * part + 0.3 * torch.randn(part.shape)], axis)
                for part, sign, axis in ((up, 1, 0), (down, -1, 1)))  # fmt: skip
    block = made("sum", up, torch.zeros(8), down, 2 * torch.randn(3, 3))
    assert nearest_set(block).low == pytest.approx(over_the_box(block), rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_the_lower_bound_holds_before_the_steps_have_converged(seed):
    torch.manual_seed(seed)
    up, down = torch.randn(30, 5), torch.randn(4, 30)
    up, down = up * torch.logspace(0, 2, 5), down * torch.logspace(0, -3, 30)
    block = made("leaky", up, torch.zeros(30), down, 20 * torch.randn(4, 5))
    found, exact = nearest_set(block), over_the_box(block)
    assert 0 < found.low < exact * (1 + 1e-9)


def test_no_units_are_as_far_as_the_shortcut():
    P = torch.tensor([[3.0, 0.0, 4.0]])
    block = made("line", torch.zeros(0, 3), torch.zeros(0), torch.zeros(1, 0), P)
    found = nearest_set(block)
    assert (found.low, found.high, found.decided) == (5.0, 5.0, True)
    assert found.chosen.shape == (0,) and found.chosen.dtype == torch.bool


def dependent(size):
    """Four units v_i = -w_i, whose matrices are symmetric, so that one depends on the others."""
    angles = torch.arange(4) * torch.pi / 4
    up = size * torch.stack([angles.cos(), angles.sin()], 1)
    return made("softplus", up, torch.zeros(4), -up.T, torch.eye(2))


def test_least_squares_decide_only_where_they_have_one_solution():
    found = nearest_set(dependent(1.3**0.5))  # half of all is a solution, no set is
    assert found.low == 0 and found.high > 0.1 and not found.decided
    assert found.high == pytest.approx(float(over_all_sets(dependent(1.3**0.5))), rel=SAME)
    found = nearest_set(dependent(1.0))
    assert found.high < 1e-14 and found.decided and found.low == 0
    one = made("line", torch.ones(1, 1), torch.ones(1), torch.ones(1, 1), -torch.ones(1, 1))
    found = nearest_set(one)  # half of the unit
    assert (found.low, found.high, found.decided) == (0, 1, True)
    two = replace(one, up=torch.ones(2, 1), bias=torch.arange(2.0), down=torch.ones(1, 2))
    assert not nearest_set(two).decided


@pytest.mark.parametrize(("more", "decided"), [(0, True), (1, False)])
def test_least_squares_are_solved_up_to_a_size(more, decided):
    rows = torch.ones(2048 + more), torch.ones(2048)
    block = made("line", rows[1][None], torch.zeros(1), rows[0][:, None], -torch.outer(*rows))
    assert nearest_set(block).decided is decided
