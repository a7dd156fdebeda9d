"""Checks of a net before it is measured, each by itself against what it promises."""

import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import noise
from tolerances import assert_same
from torch import nn

from resid_theory.curvature.forward_checks import (
    NoSecondDerivative,
    WatchCuts,
    check_cuts,
    check_reached,
    check_repeatable,
    check_twice,
    gains_from_channels_last,
    leaves_of,
    unwritten_statistics,
)
from resid_theory.runtime.net_state import NetState


class Values:
    """A function that gives one value after another, then the last one again."""

    def __init__(self, *values, draw=lambda: None):
        self.values, self.calls, self.draw = list(values), 0, draw

    def __call__(self):
        self.calls += 1
        self.draw()
        return self.values[min(self.calls, len(self.values)) - 1]


@pytest.mark.parametrize(
    ("again", "same"),
    [
        ([1.0, 0.0], True),
        ([1.0, 2e-6], True),  # the largest change that is let through, relative to the larger
        ([1.0, 2.01e-6], False),
        ([[1.0, 0.0]], False),
        ([1.0, 0.0, 0.0], False),
    ],
)
def test_values_repeat_up_to_round_off(again, same):
    notes, run = (
        [],
        Values([torch.zeros(2), torch.tensor([1.0, 0.0])], [torch.zeros(2), torch.tensor(again)]),
    )
    if not same:
        with pytest.raises(ValueError, match="^what: gives other values at every call on the"):
            check_repeatable("what", nn.Identity(), run, notes.append)
        assert run.calls == 3  # once more, to name the layer
    else:
        found = check_repeatable("what", nn.Identity(), run, notes.append)
        assert found is run.values[0] and run.calls == 2
    assert not notes


def draw_a_block():
    np.random.random_sample(312)  # noqa: NPY002 - 624 words, all that the generator holds


DRAWS = {
    "torch": lambda: torch.rand(1),
    "python": random.random,
    "numpy": lambda: np.random.random_sample(),  # noqa: NPY002 - what nets may draw from
    "all of numpy's words": draw_a_block,
}


@pytest.mark.parametrize("source", DRAWS)
def test_a_draw_is_repeated_thirty_times(source):
    np.random.seed(0)  # noqa: NPY002
    DRAWS[source]()
    notes, run = [], Values(torch.ones(1), draw=DRAWS[source])
    settled = lambda found: True  # noqa: E731
    assert check_repeatable("net", nn.Identity(), run, notes.append, settled=settled).item() == 1
    assert run.calls == 31
    assert notes == ["net draws random numbers, which had no effect in 30 runs"]
    late = Values(*[torch.ones(1)] * 30, torch.zeros(1), draw=DRAWS[source])
    with pytest.raises(ValueError, match="^net: gives other values at every call"):
        check_repeatable("net", nn.Identity(), late, notes.append)


def test_values_without_numbers_repeat():
    check_repeatable("net", nn.Identity(), Values("words", "other words"), print)


def test_one_run_is_enough_where_it_is_settled():
    for answer, calls in ((True, 1), (False, 2)):
        run, asked = Values(torch.ones(1)), []

        def settled(found, answer=answer, asked=asked):
            asked.append(found)
            return answer

        assert check_repeatable("net", nn.Identity(), run, print, settled=settled) is run.values[0]
        assert run.calls == calls and asked == [run.values[0]]


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand(())


class Around(nn.Module):
    def __init__(self, inner, own):
        super().__init__()
        self.before, self.inner, self.own = nn.Linear(1, 1), inner, own

    def forward(self, x):
        return self.inner(self.before(x)) + (torch.rand(()) if self.own else 0.0)


@pytest.mark.parametrize(
    ("inner", "own", "words"),
    [
        (nn.Sequential(nn.Identity(), Noisy()), False, ", in layer 'inner.1'"),
        (nn.Sequential(nn.Identity(), Noisy()), True, ", in layer 'inner.1'"),
        (nn.Identity(), True, ", in its own forward"),
    ],
)
def test_the_layer_that_draws_is_named(inner, own, words, left_alone):
    net = Around(inner, own)
    x = torch.ones(1, 1)
    with pytest.raises(ValueError) as caught:
        check_repeatable("net", net, lambda: net(x), print)
    assert str(caught.value) == (
        "net: gives other values at every call on the same samples; it draws random numbers in "
        f"eval mode{words} (F.dropout without training=self.training does), so no loss has these "
        "derivatives; switch them off"
    )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


# -- gradients that reach parameters ---------------------------------------------------------------


def reached(net, unreached, value):
    return check_reached(net, NetState(net), unreached, value)


def test_parameters_that_the_loss_depends_on_are_moved_and_put_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.Tanh())).eval()
    net[1].train()
    names = [f"p{number}" for number in range(5)]
    weights = [nn.Parameter(noise(2, seed=number)) for number in range(5)]
    seen = []

    def value():
        seen.append([p.detach().clone() for p in weights])
        assert [m.training for m in net.modules()] == [False, False, True, False, False]
        return torch.tensor(torch.nan)

    for count, words in (
        (1, "'p0'"), (3, "'p0', 'p1', 'p2'"), (4, "'p0', 'p1', 'p2' and 1 more"),
        (5, "'p0', 'p1', 'p2' and 2 more"),
    ):  # fmt: skip
        seen.clear()
        found = reached(net, dict(zip(names[:count], weights, strict=False)), value)
        assert found == (
            f"no gradient reaches {words}, and the loss does not depend on them: rows of zeros"
        )
        for number, (before, moved) in enumerate(zip(*seen, strict=True)):
            away = 1.1 * before + 0.1 if number < count else before
            torch.testing.assert_close(moved, away, rtol=1e-15, atol=1e-15)
        assert_same([p.detach() for p in weights], seen[0])
    step = Values(torch.ones(()), torch.tensor(1 + 2.0**-52))
    with pytest.raises(ValueError) as caught:
        reached(net, {"p0": weights[0], "p1": weights[1]}, step)
    assert str(caught.value) == (
        "net: the loss depends on 'p0', 'p1', which no gradient reaches (torch.no_grad or detach "
        "in forward, or a cache kept in eval mode, which net.train() empties); hold them fixed by "
        "requires_grad_(False), or leave them out by parameters="
    )


class Caching(nn.Module):
    """Keeps a product, as `cached` says: until the mode changes, or until it is taken away."""

    def __init__(self, emptied):
        super().__init__()
        self.w, self.kept, self.emptied = nn.Parameter(torch.ones(1)), None, emptied

    def train(self, mode=True):
        super().train(mode)
        if mode and self.emptied:
            self.kept = None
        return self

    def forward(self):
        if self.kept is None:
            self.kept = 2 * self.w.detach()
        return self.kept


@pytest.mark.parametrize("emptied", [True, False])
def test_caches_are_emptied_before_and_after(emptied):
    net = Caching(emptied).eval()
    state = NetState(net)
    with pytest.raises(ValueError, match="^net: the loss depends on 'w', which no gradient"):
        check_reached(net, state, {"w": net.w}, lambda: net().sum())
    assert net.kept is None and not net.training


# -- values that are cut from the graph ------------------------------------------------------------


def quadratic(weights):
    return sum((p**2).sum() for p in weights)


CUTS = {
    "detach": lambda p: p.detach() * 2,
    "torch.detach": lambda p: torch.detach(p) * 2,
    "data": lambda p: p.data * 2,
    "no_grad": torch.no_grad()(lambda p: p * 2),
    "padding": lambda p: F.embedding(torch.arange(2), p[:, None], padding_idx=0),
    "hook": lambda p: (p * 2).register_hook(lambda g: -g),
}
KEPT = {
    "a table": lambda p: F.embedding(torch.arange(2), p[:, None]),
    "a product": lambda p: p * 2,
    "an order": lambda p: p.detach().argmax() if p.dim() == 9 else p.argmax(),
    "no gradient": lambda p: torch.ones(2).detach(),
    "no gradient inside": torch.no_grad()(lambda p: torch.ones(2) * 2),
}


@pytest.mark.parametrize("name", [*CUTS, *KEPT])
def test_cuts_are_seen(name):
    p = torch.ones(2, requires_grad=True)
    watch = WatchCuts()
    with watch:
        (CUTS | KEPT)[name](p)
    assert watch.seen == (name in CUTS)
    with watch:
        p * 2  # what was seen stays
    assert watch.seen == (name in CUTS)


STEP = 1e-8


def sided(slope, plus, minus):
    """A loss with a slope along the move, and given values on both sides."""
    p, seen = nn.Parameter(torch.tensor(0.5)), []
    move = torch.randn((), generator=torch.Generator().manual_seed(0))
    values = iter([(p * (slope / move)) + 0.0, torch.tensor(plus), torch.tensor(minus)])

    def value():
        seen.append(p.detach().clone())
        return next(values)

    found = check_cuts([p], value)
    assert p.item() == 0.5
    away = [0.5, 0.5 + STEP * move.item(), 0.5 - STEP * move.item()]
    assert torch.stack(seen).tolist() == pytest.approx(away, rel=1e-15)
    return found


CUT = (
    "the loss has another slope than its gradient, of which detach, torch.no_grad, padding_idx or "
    "a backward or hook of the net's own cut or change parts; derivatives are those of the "
    "gradient, as trainings take it"
)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("turned", [False, True])
def test_a_slope_is_compared_up_to_round_off_and_curvature(sign, turned):
    # Of no slope: 64 roundings of the larger side over the step, and 2^-13 of what is measured.
    for gap, words in ((128, ""), (129, CUT)):
        sides = sign, sign * (1 - gap * 2.0**-52)
        assert sided(0.0, *(sides[::-1] if turned else sides)) == words
    # Of a slope s, measured as s (1 + r): r against 2^-13 (2 + r), and next to no rounding.
    for r, words in ((2.43e-4, ""), (2.46e-4, CUT), (-2.43e-4, ""), (-2.46e-4, CUT), (-2.0, CUT)):
        half = sign * 3.0 * (1 + r) * STEP
        assert sided(sign * 3.0, half, -half) == words


def test_slopes_of_several_parameters_add_up():
    weights = [nn.Parameter(noise(3, seed=1)), nn.Parameter(noise(2, 2, seed=2))]
    assert check_cuts(weights, lambda: quadratic(weights)) == ""
    assert check_cuts(weights, lambda: quadratic(weights[:1])) == ""
    assert check_cuts(weights, lambda: quadratic(weights) + weights[1].data.sum()) == CUT
    assert check_cuts(weights, lambda: quadratic(weights) + weights[0].data.sum()) == CUT
    single = [nn.Parameter(p.detach().float()) for p in weights]
    assert check_cuts(single, lambda: quadratic(single)) == ""
    assert check_cuts(single, lambda: quadratic(single) + single[1].data.sum()) == CUT


# -- second derivatives ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "function", "remedy"),
    [
        ("derivative for aten::_cdist_backward is not implemented", "cdist",
         "take (a.unsqueeze(-2) - b.unsqueeze(-3)).norm(dim=-1)"),
        ("the derivative for '_scaled_dot_product_flash_attention_backward' is not implemented.",
         "scaled_dot_product_flash_attention",
         "call F.scaled_dot_product_attention without choosing a kernel"),
        ("derivative for aten::_embedding_bag_dense_backward is not implemented",
         "embedding_bag_dense", "take F.embedding and a sum or mean over each bag"),
        ("derivative for aten::my_embedding_bag is not implemented", "my_embedding_bag",
         "write it by other functions"),
    ],
)  # fmt: skip
def test_functions_without_a_second_derivative_are_named(words, function, remedy):
    with pytest.raises(NoSecondDerivative) as caught, check_twice([], []):
        raise RuntimeError(f"before, {words}")
    assert str(caught.value) == (
        f"net: torch has no second derivative of {function} in net or loss; {remedy}, or take "
        "matrix='empirical_fisher', which needs first derivatives only"
    )


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="^derivative for x was never$"), check_twice([], []):
        raise RuntimeError("derivative for x was never")


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class Also(Once):
    pass


def test_functions_marked_as_differentiable_once_are_named_once_each():
    p = torch.ones(2, requires_grad=True)
    value = (Twice.apply(Once.apply(p) * Once.apply(p)) * Also.apply(p)).sum()
    first = torch.autograd.grad(value, p, create_graph=True)
    with pytest.raises(NoSecondDerivative) as caught, check_twice([value], first):
        pass
    found = re.match(
        "net: torch has no second derivative of (.*) in net or loss; (.*), or", str(caught.value)
    )
    assert set(found[1].split(", ")) == {"Once.apply", "Also.apply"} and found[1].count(",") == 1
    assert found[2] == "write its backward without once_differentiable"
    with pytest.raises(NoSecondDerivative, match="derivative of a function in net or loss; write"):
        with check_twice([], first):
            pass
    fine = torch.autograd.grad(Twice.apply(p).square().sum(), p, create_graph=True)
    with check_twice([value], fine):
        pass


def test_leaves_are_the_tensors_with_gradients():
    a, b, c, d = (torch.ones(2, requires_grad=True) for _ in range(4))
    value = (a * b + (c.detach() * b).exp() * torch.ones(2)).sum()
    found = list(leaves_of(value))
    assert len(found) == 2 and {id(leaf) for leaf in found} == {id(a), id(b)}
    assert list(leaves_of(torch.ones(()))) == []
    assert [id(leaf) for leaf in leaves_of(d.sum())] == [id(d)]


# -- nets made by others ---------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
def test_statistics_of_traced_parts_must_stay(inside):
    plain = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    traced = torch.fx.symbolic_trace(plain)
    net = nn.Sequential(nn.BatchNorm1d(2), traced) if inside else traced
    norm = traced.get_submodule("0")
    with unwritten_statistics(net):
        norm.num_batches_tracked.add_(1)
        if inside:
            net[0].running_mean.add_(1)  # of a module that has an eval mode
    with pytest.raises(ValueError) as caught, unwritten_statistics(net):
        norm.running_var[1] += 2.0**-52
    name = "1.0.running_var" if inside else "0.running_var"
    assert str(caught.value) == (
        f"net: writes {name!r} in eval mode, as BatchNorm does that was traced or exported in "
        "train mode; call eval() on the module before it is traced or exported"
    )


class Seeing(nn.Module):
    def __init__(self, error=None):
        super().__init__()
        self.conv, self.seen, self.error = nn.Conv2d(2, 3, 1).float(), [], error

    def forward(self, x):
        self.seen.append((x, torch.is_grad_enabled()))
        if self.error:
            raise self.error
        return self.conv(x)


def test_where_channels_last_gain():
    images = noise(2, 2, 3, 4).float()
    net = Seeing()
    assert gains_from_channels_last(net, images)
    ((x, graded),) = net.seen
    assert graded and x.is_contiguous(memory_format=torch.channels_last)
    assert_same(x.contiguous(), images)
    net = Seeing()
    for other in (images.double(), images[0], images[..., None], [images], None, images.half()):
        assert not gains_from_channels_last(net, other)
    assert not gains_from_channels_last(nn.Conv1d(2, 3, 1), images) and not net.seen
    assert not gains_from_channels_last(Seeing(RuntimeError("view")), images)
    with pytest.raises(TypeError, match="^other$"):
        gains_from_channels_last(Seeing(TypeError("other")), images)
