"""Activations: their derivatives, what they do next to zero, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_same, round_off
from torch import nn

from resid_theory.activations import ACTIVATIONS, AtZero, activation, at_zero, derivatives

# s(0), s'(0-), s'(0+), s''(0-), s''(0+), by hand
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
AT_ZERO = {
    "relu": (0.0, 0.0, 1.0, 0.0, 0.0),
    "leaky_relu": (0.0, 0.01, 1.0, 0.0, 0.0),
    "elu": (0.0, 1.0, 1.0, 1.0, 0.0),
    "tanh": (0.0, 1.0, 1.0, 0.0, 0.0),
    "sin": (0.0, 1.0, 1.0, 0.0, 0.0),
    "silu": (0.0, 0.5, 0.5, 0.5, 0.5),
    "gelu": (0.0, 0.5, 0.5, SQRT_2_OVER_PI, SQRT_2_OVER_PI),
    "softplus": (math.log(2), 0.5, 0.5, 0.25, 0.25),
    "shifted_softplus": (0.0, 0.5, 0.5, 0.25, 0.25),
    "sigmoid": (0.5, 0.25, 0.25, 0.0, 0.0),
}


def numbers(at):
    return (at.value, at.left, at.right, at.second_left, at.second_right)


@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_behaviour_at_zero(name, default):
    torch.set_default_dtype(default)
    # a handful of roundings in each derivative
    assert numbers(at_zero(ACTIVATIONS[name])) == pytest.approx(
        AT_ZERO[name], rel=round_off(10), abs=round_off(10)
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_are_differences(name):
    z = torch.tensor([-2.0, -0.7, 0.3, 1.9])
    function, step = ACTIVATIONS[name], 1e-4
    first, second = derivatives(function, z)
    above, here, below = function(z + step), function(z), function(z - step)
    # truncation: step² s'''/6 <= 1e-8; cancellation in the second difference: 4 eps / step² = 1e-7
    torch.testing.assert_close(first, (above - below) / (2 * step), rtol=0, atol=1e-7)
    torch.testing.assert_close(second, (above - 2 * here + below) / step**2, rtol=0, atol=1e-6)


def test_a_slope_may_be_a_weight():
    slope = torch.tensor(3.0, requires_grad=True)
    z = torch.tensor([-1.0, 2.0])
    assert [d.tolist() for d in derivatives(lambda z: slope * z, z)] == [[3.0, 3.0], [0.0, 0.0]]


def test_the_identity_has_slope_one():
    assert activation("pre", None) is activation("pre", "identity") is None
    assert numbers(at_zero(None)) == (0.0, 1.0, 1.0, 0.0, 0.0)
    z = torch.tensor([-1.0, 2.0])
    assert [d.tolist() for d in derivatives(None, z)] == [[1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("function", "slope", "second", "kink"),
    [
        pytest.param(torch.relu, 0.5, 0.0, True, id="relu"),
        pytest.param(torch.abs, 0.0, 0.0, True, id="abs"),
        # the least-squares line has no curvature, whatever bends on either side
        pytest.param(lambda z: torch.where(z > 0, z + z * z, 0 * z), 0.5, 0.0, True, id="bent"),
        pytest.param(torch.square, 0.0, 2.0, False, id="square"),
        pytest.param(lambda z: z**3, 0.0, 0.0, False, id="cube"),
        pytest.param(lambda z: z * z.abs().sqrt(), 0.0, math.nan, False, id="bends"),
        pytest.param(F.elu, 1.0, math.nan, False, id="elu"),
        pytest.param(lambda z: 0 * z, 0.0, 0.0, False, id="flat"),
    ],
)
def test_what_stands_for_the_derivatives(function, slope, second, kink):
    at = at_zero(function)
    assert at.slope == slope
    assert at.second == pytest.approx(second, nan_ok=True)
    assert at.has_kink is kink


@pytest.mark.parametrize(
    ("slopes", "kink"),
    [((1, 1 + 5e-13), False), ((1 + 5e-13, 1), False), ((1, 1 + 2e-12), True),
     ((-8, -8 - 6e-12), False), ((0, 1e-290), True), ((0, 0), False)],
)  # fmt: skip
@pytest.mark.parametrize(
    ("seconds", "second"),
    [((0, 5e-10), 2.5e-10), ((0, 1e-9), 5e-10), ((0, 2e-9), math.nan), ((3, 3 + 2e-9), 3 + 1e-9),
     ((-6, -4), math.nan)],
)  # fmt: skip
def test_two_sides_are_one_up_to_round_off(slopes, kink, seconds, second):
    left, right = slopes
    at = AtZero(value=7.0, left=left, right=right, second_left=seconds[0], second_right=seconds[1])
    assert at.has_kink is kink and at.slope == pytest.approx((left + right) / 2, rel=1e-15)
    assert at.second == pytest.approx(0.0 if kink else second, rel=1e-15, nan_ok=True)


@pytest.mark.parametrize(("at", "step"), [(1e-3, 1e-9), (1.0, 1e-9), (-100.0, 1e-7)])
def test_curvatures_that_differ_by_round_off_have_a_mean(at, step):
    for near, far in ((at, at + 0.9 * step), (at + 0.9 * step, at)):
        found = AtZero(value=0.0, left=1.0, right=1.0, second_left=near, second_right=far).second
        assert found == pytest.approx(at + 0.45 * step, rel=1e-12)
    for near, far in ((at, at + 1.2 * step), (at + 1.2 * step, at)):
        found = AtZero(value=0.0, left=1.0, right=1.0, second_left=near, second_right=far).second
        assert math.isnan(found)


def test_slopes_that_settle_and_slopes_that_are_none():
    for off, settled in ((0.9e-9, True), (1.1e-9, False)):
        at = at_zero(lambda z, off=off: z * torch.where(z.abs() < 1e-120, 1 + off, 1.0))
        assert (at.left, at.right) == pytest.approx([1 + off if settled else math.nan] * 2,
                                                    rel=1e-15, nan_ok=True)  # fmt: skip
    assert at_zero(lambda z: 0.9e-60 * z).slope == 0.0
    assert at_zero(lambda z: 1.1e-60 * z).slope == 1.1e-60


@pytest.mark.parametrize(("off", "fits"), [(0.9, True), (1.1, False)])
@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_entries_are_their_own_but_for_round_off(kind, off, fits):
    def function(z):
        beside = z.numel() > 1
        return z * (1 + 1e-9 * off * beside) if kind == "relative" else 0 * z + 1e-12 * off * beside

    if fits:
        assert activation("mid", function) is function
        return
    with pytest.raises(ValueError, match="^mid: an entry of the callable's result depends on"):
        activation("mid", function)


@pytest.mark.parametrize(
    "function",
    [torch.sqrt, lambda z: z.sign() * z.abs().sqrt(), lambda z: z * (z.abs() + 1e-300).log()],
    ids=["sqrt", "odd-root", "z-log-z"],
)
def test_no_slope_at_zero(function):
    assert math.isnan(at_zero(function).slope)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no-grad", "infer"])
def test_derivatives_outside_gradient_mode(mode):
    with mode():
        inside = derivatives(torch.tanh, torch.ones(1))
    assert_same(inside, derivatives(torch.tanh, torch.ones(1)))
    assert not any(part.requires_grad for part in inside)
    assert inside[0].item() != 0.0 != inside[1].item()


@pytest.mark.parametrize(
    "given",
    [torch.tanh, nn.Tanh(), nn.ReLU(), nn.Hardtanh(), lambda z: z**3, F.selu, torch.sqrt],
)
def test_callables_are_taken_as_they_are(given):
    assert activation("mid", given) is given


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param("ReLU", "unknown name 'ReLU'; did you mean 'relu'", id="case"),
        pytest.param("tahn", "unknown name 'tahn'; did you mean 'tanh'", id="typo"),
        pytest.param(3, "unknown name 3", id="number"),
        pytest.param(lambda z: z.sum(1), r"\(2, 3\) into \(2,\), needs an elementwise", id="sum"),
        pytest.param(lambda z: z.sum(), r"into \(\), needs an elementwise", id="total"),
        pytest.param(lambda z: 0.0, "fails on a float64 tensor", id="number-out"),
        pytest.param(nn.Softmax(-1), "depends on other entries", id="softmax-rows"),
        pytest.param(nn.Softmax(0), "depends on other entries", id="softmax-columns"),
        pytest.param(lambda z: z - z.mean(), "depends on other entries", id="centred"),
        pytest.param(nn.Linear(3, 3), "has parameters", id="linear"),
        pytest.param(nn.PReLU(), "has parameters", id="prelu"),
        pytest.param(nn.ReLU(inplace=True), "overwrites its input", id="in-place"),
        pytest.param(lambda z: z @ z, "fails on a float64 tensor", id="product"),
    ],
)
def test_refused(given, message):
    with pytest.raises(ValueError, match=f"^mid: .*{message}"):
        activation("mid", given)
