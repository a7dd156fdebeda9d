"""Parts of the prediction from hidden units, each against sums written out."""

from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from oracles import noise
from tolerances import HESSIAN, assert_same, relative_error
from torch import nn

from resid_theory.curvature import hidden_units
from resid_theory.curvature.hidden_units import (
    HiddenUnits,
    PredictedLoss,
    UnitGroup,
    compare_product,
    inputs_of,
    pushed,
)


def use_of(name, shape, *, start=0, bias=""):
    """A use of a matrix (out, in), and of a bias, that lie in parameters from an entry on."""
    entries = start + torch.arange(shape[0] * shape[1]).view(shape).T
    return SimpleNamespace(
        name=name, entries=entries, bias=bias, bias_entries=1 + torch.arange(shape[0])[None]
    )


@pytest.mark.parametrize("alike", [True, False])
def test_the_form_is_a_sum_over_units_and_slots(alike):
    # Readers (4, 3) and (2, 2), writers (2, 4) and (3, 4); one lies behind two other entries.
    uses = {
        ("up",): use_of("up", (4, 3), bias="up.bias"), ("side",): use_of("side", (2, 2)),
        ("down",): use_of("both", (2, 4), start=2), ("out",): use_of("out", (3, 4)),
    }  # fmt: skip
    first = UnitGroup(
        reader=("up",), units=torch.tensor([3, 1]),
        slots=[(("down",), torch.tensor([0, 2])), (("out",), torch.tensor([1, 3]))],
        blocks=[noise(2, 4, seed=1), noise(3, 4, seed=2)],
    )  # fmt: skip
    second = UnitGroup(
        reader=("side",), units=torch.tensor([0]), slots=[(("out",), torch.tensor([2]))],
        blocks=[noise(3, 2, seed=3)],
    )  # fmt: skip
    assert_same(first.correlation, torch.cat(first.blocks))
    names, sizes = ("c", "d"), (5, 5) if alike else (5, 3)
    shift = noise(5, 5, seed=4) if alike else noise(8, 8, seed=4)
    units = SimpleNamespace(groups=[first, second])
    moves = {
        "up": noise(4, 3, seed=5), "side": noise(2, 2, seed=6), "both": noise(12, seed=7),
        "out": noise(3, 4, seed=8), "c": noise(sizes[0], seed=9), "d": noise(sizes[1], seed=10),
        "up.bias": noise(6, seed=11),
    }  # fmt: skip
    bare = PredictedLoss(uses, units, 2.5, (), None)
    assert bare.total == 2.5 and bare.uses is uses
    down, up = moves["both"][2:10].view(2, 4), (moves["up"], moves["up.bias"][1:5, None])
    up = torch.cat(up, dim=1)
    terms = [
        down[:, 0] @ first.blocks[0] @ up[3],
        down[:, 2] @ first.blocks[0] @ up[1],
        moves["out"][:, 1] @ first.blocks[1] @ up[3],
        moves["out"][:, 3] @ first.blocks[1] @ up[1],
        moves["out"][:, 2] @ second.blocks[0] @ moves["side"][0],
    ]
    right = torch.stack(terms).sum() / 2.5
    assert relative_error(bare(moves), right) <= HESSIAN
    moved = moves["c"] + moves["d"] if alike else torch.cat([moves["c"], moves["d"]])
    right = right + moved @ shift @ moved / 2
    assert relative_error(PredictedLoss(uses, units, 2.5, names, shift)(moves), right) <= HESSIAN
    none = PredictedLoss(uses, SimpleNamespace(groups=[]), 1.0, (), None)
    assert none(moves) == 0 and none(moves).requires_grad


def test_inputs_have_a_column_for_a_bias():
    x = noise(2, 3, 4).requires_grad_()
    assert_same(inputs_of(SimpleNamespace(input=x, bias="")), x.detach())
    found = inputs_of(SimpleNamespace(input=x, bias="b"))
    assert_same(found, torch.cat([x.detach(), torch.ones(2, 3, 1)], dim=2))
    assert not found.requires_grad


def test_columns_are_counted_round_and_round():
    use = SimpleNamespace(input=noise(2, 5, 3), bias="b", weight=torch.zeros(2, 3, 2))
    found, x = hidden_units._column(use, torch.tensor([1, 3, 4, 11])), inputs_of(use)
    assert found.shape == (2, 5, 2)
    for part, columns in enumerate([(1, 3), (0, 3)]):
        for unit, column in enumerate(columns):
            assert_same(found[part, :, unit], x[part, :, column])


def clusters(rows):
    return [alike.tolist() for alike in islice(hidden_units._clusters(rows), len(rows) + 1)]


def test_rows_that_differ_by_round_off_are_alike():
    # The first row has the length of all, but for next to nothing.
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.99e-8], [1.0, 1.01e-8], [0.0, 0.0]])
    rows[0] *= 2.0**20
    rows[2:4] *= 2.0**20
    rows[2:4, 1] *= 3**0.5  # three rows have this length
    assert clusters(rows) == [[0, 2], [1, 4], [3]]
    assert clusters(0 * rows[:2]) == [[0, 1]]
    assert clusters(rows[:0]) == []


def paired(responses, *, exact):
    """Groups of hidden units (4) and (2), of responses to equal changes and their scales."""
    units = HiddenUnits.__new__(HiddenUnits)
    units._exact, units.groups = exact, []
    units._scales = {"up": torch.tensor([1.75, 1.0, 1.5, 1.25]), "side": torch.tensor([2.5, 2.0])}
    units._outputs = {"down": 5, "out": 7, ("down", 5): 5}
    units._columns = {"up": 3, "side": 6}
    units._pair({
        writer: torch.stack([one, one * torch.tensor(scales)[:, None] + other])
        for writer, (one, scales, other) in responses.items()
    })  # fmt: skip
    for group in units.groups:
        assert not any(block.any() for block in group.blocks)
    return [
        (group.reader, group.units.tolist(), [(key, at.tolist()) for key, at in group.slots],
         [tuple(block.shape) for block in group.blocks])
        for group in units.groups
    ]  # fmt: skip


def test_units_that_respond_alike_in_all_slots_are_a_group():
    # The longest response is 1000; a thousandth of it is zero, where sides of a kink are averaged.
    unit, other = torch.eye(6)[0], torch.eye(6)[1]
    down = torch.stack([unit, 1000 * other, unit, unit, 0 * unit, 0.999 * unit, 1.001 * unit])
    out = torch.stack([2 * other, 2 * other, 3 * other])
    responses = {
        "down": (down, [1.0, 2.0, 1.75, 1.25, 9.0, 1.5, 2.5], 0.0),
        "out": (out, [1.75, 1.0, 1.25], 0.0),
    }
    both, only = [(5, 3), (7, 3)], [(5, 6)]
    expected = [
        ("up", [1, 0], [("down", [0, 2]), ("out", [1, 0])], both),
        ("up", [3], [("down", [3]), ("out", [2])], both),
        ("up", [2], [("down", [5])], both[:1]),
        ("side", [1], [("down", [1])], only), ("side", [0], [("down", [6])], only),
    ]  # fmt: skip
    assert paired(responses, exact=True) == expected
    down[[0, 2, 3]] *= 1.001
    del expected[2]
    assert paired(responses, exact=False) == expected


@pytest.mark.parametrize(("scale", "apart", "fits"), [
    (1.25 + 0.99 / 40, 0.0, True), (1.5 - 0.99 / 40, 0.0, True), (2.0 - 0.99 / 20, 0.0, True),
    (1.25 + 1.01 / 40, 0.0, False), (1.75 + 1.01 / 40, 0.0, False), (2.5 + 1.01 / 20, 0.0, False),
    (1.25, 0.99e-6, True), (1.25, 1.01e-6, False),
])  # fmt: skip
def test_a_column_has_the_scale_of_a_unit_in_all_its_response(scale, apart, fits):
    # Beside a long response, half as far from a unit's as is let through.
    unit = torch.tensor([[2.0, 0.0], [2000.0, 0.0]])
    other = torch.tensor([[0.0, apart * 2.5], [0.0, 0.5e-6 * 2000.0]])
    responses = {("down", 5): (unit, [scale, 1.0], other)}
    if fits:
        assert len(paired(responses, exact=True)) == 2
        return
    with pytest.raises(ValueError) as caught:
        paired(responses, exact=True)
    assert str(caught.value) == (
        "net: a column of 'down' reads several hidden units of its branch, or units that are not "
        "moved by linear maps alone; needs one hidden unit for each column"
    )


def test_responses_of_sides_are_averaged():
    given = {7: noise(1)}
    responses = [{0: noise(2, seed=1), 1: noise(3, seed=2)}, {0: noise(2, seed=3)},
                 {1: noise(3, seed=4), 2: noise(1, seed=5)}]  # fmt: skip
    seen = []
    sides = [
        SimpleNamespace(push=lambda moves, found=found: seen.append(moves) or found)
        for found in responses
    ]
    found = pushed(sides, given)
    assert list(found) == [0, 1, 2] and all(moves is given for moves in seen)
    right = {0: responses[0][0] + responses[1][0], 1: responses[0][1] + responses[2][1]}
    for number, total in (right | {2: responses[2][2]}).items():
        assert relative_error(found[number], total / 3) <= HESSIAN


class Form:
    """Half a quadratic form of some parameters."""

    def __init__(self, matrices, total):
        self.matrices, self.total = matrices, total

    def __call__(self, moves):
        return sum(
            (moves[n].flatten() @ m @ moves[n].flatten()) / 2 for n, m in self.matrices.items()
        )


def graph_of(own, matrices, weight):
    return SimpleNamespace(loss=Form(matrices, None)(own), weight=weight)


def symmetric(size, seed):
    a = noise(size, size, seed=seed)
    return a + a.T


def test_products_are_compared_over_batches_and_sides():
    own = {"w": nn.Parameter(noise(2, 3)), "v": nn.Parameter(noise(4, seed=1)),
           "idle": nn.Parameter(noise(2, seed=2))}  # fmt: skip
    each = [[(symmetric(6, s), symmetric(4, s + 1)) for s in pair] for pair in ((3, 5), (7, 9))]
    weights = (0.5, 2.0)

    def batches():
        for weight, sides in zip(weights, each, strict=True):
            yield [graph_of(own, {"w": w, "v": v}, weight) for w, v in sides]

    mean = [
        sum(weight * (one[place] + other[place]) / 2
            for weight, (one, other) in zip(weights, each, strict=True)) / 2.5
        for place in (0, 1)
    ]  # fmt: skip
    right = {"w": mean[0], "v": mean[1]}
    compare_product(batches, own, Form(right, 2.5), bound=HESSIAN)
    for name in ("w", "v"):
        changed = Form(right | {name: 1.01 * right[name]}, 2.5)
        with pytest.raises(ValueError) as caught:
            compare_product(batches, own, changed, bound=1e-3)
        assert str(caught.value) == (
            f"net: {name!r} has curvature at zero weights that is neither that of a first layer "
            "with a last one nor that of a bias on the stream; not covered are products of two "
            "layers without a third, parameters of zero in front of a last layer, gated biases"
        )
    with pytest.raises(ValueError, match="^net: 'w' has curvature at zero weights"):
        compare_product(
            batches, own, Form({"w": torch.nan * mean[0], "v": mean[1]}, 2.5), bound=1.0
        )


@pytest.mark.parametrize(("part", "fits"), [(0.99, True), (1.01, False)])
def test_the_bound_is_relative_to_the_largest_product(part, fits):
    own = {"w": nn.Parameter(noise(3)), "v": nn.Parameter(noise(3, seed=1))}
    draws, eye = torch.Generator().manual_seed(3), torch.eye(3)
    w, v = (float(torch.randn(3, generator=draws).norm()) for _ in own)
    predicted = Form({"w": (1 + part * 1e-3 * 10 * v / w) * eye, "v": 10 * eye}, 1.0)

    def batches():
        yield [graph_of(own, {"w": eye, "v": 10 * eye}, 1.0)]

    if fits:
        compare_product(batches, own, predicted, bound=1e-3)
    else:
        with pytest.raises(ValueError, match="^net: 'w' has curvature"):
            compare_product(batches, own, predicted, bound=1e-3)
