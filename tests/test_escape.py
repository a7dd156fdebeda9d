"""The escape from zero and signals through initial weights: closed forms against measured paths."""

import math

import pytest
import torch
from tolerances import relative_error, round_off

import resid_theory as rt
from resid_theory import theory
from resid_theory.initializations import INITIALIZATIONS

WITHIN = 0.01  # the jet's next order, |W|^n / s_1, and a step of gradient descent


def problem(width, device, generator):
    x = torch.randn(200, width, generator=generator)
    y = torch.randn(200, width, generator=generator) - x
    return rt.Moments.of((x.to(device), y.to(device)))


def path_from(net, moments, weights, rate, epochs):
    return rt.gradient_descent(
        net, "square", moments, weights=weights, learning_rate=rate, epochs=epochs
    )


def crossing(norms, level):
    """Fractional epoch at which a growing norm reaches a level, linear in its logarithm."""
    after = int((norms < level).sum())
    low, high = norms[after - 1].log(), norms[after].log()
    return after - 1 + ((math.log(level) - low) / (high - low)).item()


@pytest.mark.parametrize(
    ("n", "start", "stop", "rate"),
    [(2, 1e-3, 0.03, 0.01), (3, 0.02, 0.08, 0.02), (4, 0.07, 0.15, 0.05)],
    ids=lambda value: str(value),
)
def test_predicted_escape_is_measured(n, start, stop, rate, generator, device):
    moments = problem(5, device, generator)
    net = rt.ShortcutNet(5, 3, n)
    point = theory.zero_point(moments, blocks=3, shortcut_depth=n)
    block = torch.stack(theory.escape_start(point, start))
    weights = block.expand(3, n, 5, 5)
    time = theory.escape_time(point, start=start, stop=stop)
    steps = theory.escape_steps(point, start=start, stop=stop, learning_rate=rate)
    path = path_from(net, moments, weights, rate, math.ceil(1.2 * steps))
    measured = crossing(path.weight_norms[:, 0].cpu(), stop)
    assert measured == pytest.approx(steps, rel=WITHIN)
    # a step of gradient descent for n = 2 falls behind gradient flow by half the growth it makes
    slack = 0.5 * rate * torch.linalg.matrix_norm(point.correlation, 2).item() if n == 2 else 0.0
    assert rate * measured == pytest.approx(time, rel=WITHIN + slack)
    spread = path.weight_norms[: int(measured)].cpu()
    assert relative_error(spread, spread[:, :1].expand_as(spread)) <= WITHIN  # still balanced


def test_the_start_is_the_steepest_balanced_one(generator):
    moments = problem(4, "cpu", generator)
    for n in (2, 3):
        point = theory.zero_point(moments, blocks=1, shortcut_depth=n)
        best = theory.escape_start(point, 0.1)
        assert all(abs(w.norm().item() - 0.1) < 1e-14 for w in best)
        top = torch.linalg.matrix_norm(point.correlation, 2).item()
        assert point.leading_jet(best).item() == pytest.approx(-(0.1**n) * top, rel=1e-12)
        for _ in range(20):
            other = [torch.randn(4, 4, generator=generator) for _ in range(n)]
            other = [0.1 * w / w.norm() for w in other]
            assert point.leading_jet(other) >= point.leading_jet(best)


def test_a_negative_slope_turns_the_start(generator):
    moments = problem(3, "cpu", generator)
    data = (torch.randn(50, 3, generator=generator), torch.randn(50, 3, generator=generator))
    down = theory.zero_point(data, blocks=1, shortcut_depth=2, mid=lambda z: -z)
    up = theory.zero_point(data, blocks=1, shortcut_depth=2)
    assert torch.equal(theory.escape_start(down, 1.0)[1], -theory.escape_start(up, 1.0)[1])
    times = [theory.escape_time(p, start=0.1, stop=0.2) for p in (up, down)]
    assert times[0] == pytest.approx(times[1], rel=1e-12)
    assert theory.escape_time(
        theory.zero_point(moments, blocks=1, shortcut_depth=2), start=0.1, stop=0.1
    ) == pytest.approx(0.0)


def test_the_learning_rate_scale_follows_depth(generator):
    moments = problem(4, "cpu", generator)
    at = {
        (n, blocks): theory.zero_point(moments, blocks=blocks, shortcut_depth=n).learning_rate_scale
        for n in (1, 2, 3)
        for blocks in (50, 100)
    }
    assert at[2, 50] == at[2, 100]
    assert at[3, 50] == math.inf
    for blocks in (1, 2000):  # listed, and in the limit, where the error is O(1 / blocks)
        point = theory.zero_point(moments, blocks=blocks, shortcut_depth=1)
        largest = max(point.statistics.largest, -point.statistics.smallest)
        slack = 1e-12 if point.is_listed else 2 / blocks
        assert point.learning_rate_scale * largest == pytest.approx(1, rel=slack)


def test_a_flat_zero_point_is_never_left():
    eye = torch.eye(3)
    data = rt.Moments(sxx=eye, syx=eye, syy=eye, count=1)
    point = theory.zero_point(data, blocks=2, shortcut_depth=2)
    assert theory.escape_time(point, start=0.1, stop=1.0) == math.inf
    assert theory.escape_steps(point, start=0.1, stop=1.0, learning_rate=0.1) == math.inf
    assert point.learning_rate_scale == math.inf


def test_wrong_input_is_named(generator):
    moments = problem(3, "cpu", generator)
    one, two = (theory.zero_point(moments, blocks=1, shortcut_depth=n) for n in (1, 2))
    with pytest.raises(ValueError, match="not stationary"):
        theory.escape_time(one, start=0.1, stop=1.0)
    pushed = theory.zero_point(
        (torch.randn(9, 3, generator=generator), torch.ones(9, 3)),
        blocks=1, shortcut_depth=2, last_bias=True,
    )  # fmt: skip
    assert pushed.escape_time == pushed.escape_steps == one.escape_steps == 0
    assert "escape_time" in two.summary() and "escape_time" not in pushed.summary()
    with pytest.raises(ValueError, match="not stationary, the last biases have a gradient"):
        theory.escape_time(pushed, start=0.1, stop=1.0)
    with pytest.raises(ValueError, match="stop: got 0.1, needs at least start = 1.0"):
        theory.escape_time(two, start=1.0, stop=0.1)
    with pytest.raises(ValueError, match="init: unknown name 'msra'"):
        theory.output_growth("msra", 2)
    with pytest.raises(ValueError, match="blocks: got 0"):
        theory.isometry_edges(0, 2, scale=0.1)


# -- signals through initial weights ---------------------------------------------------------------

GAINS = [name for name, row in INITIALIZATIONS.items() if row.gain]


@pytest.mark.parametrize("mid", [None, "relu"], ids=["linear", "relu"])
@pytest.mark.parametrize("shortcut", [True, False], ids=["shortcut", "plain"])
@pytest.mark.parametrize("init", ["xavier", "kaiming", "orthogonal", "near_zero"])
def test_output_growth_is_measured_within_its_error_bar(init, shortcut, mid, generator, device):
    blocks, n, draws, scale = 3, 2, 10_000, 0.7
    weights = rt.networks.draw_weights(
        init, (draws, blocks, n, 4, 4), generator=generator, scale=scale
    )
    x = torch.eye(4)[:1].expand(draws, 1, 4).to(device)
    net = rt.ShortcutNet(4, blocks, n, shortcut=shortcut, mid=mid, device=device)
    with torch.no_grad():
        output = torch.func.functional_call(net, {"weights": weights.to(device)}, (x,))
    squares = output.square().sum((-2, -1))
    expected = theory.output_growth(init, n, shortcut=shortcut, mid=mid, scale=scale) ** blocks
    error = squares.std().item() / draws**0.5
    assert abs(squares.mean().item() - expected) <= 4 * error + round_off(100) * expected


def test_zero_weights_pass_signals_unchanged():
    assert theory.output_growth("zero", 2) == 1.0
    assert theory.output_growth("zero", 2, shortcut=False) == 0.0


def test_small_weights_are_a_hundredth_of_xaviers():
    assert theory.output_growth("near_zero", 1, shortcut=False) == pytest.approx(1e-4)


@pytest.mark.parametrize("init", ["zero", "hardt_ma", "normal"])
def test_what_is_not_of_normal_entries_or_orthogonal_has_no_exponents(init):
    with pytest.raises(ValueError, match=f"^init: unknown name '{init}'"):
        theory.lyapunov_exponents(5, init=init)


@pytest.mark.parametrize("init", ["xavier", "kaiming", "near_zero", "orthogonal"])
def test_lyapunov_exponents_are_measured_by_qr(init, generator, device):
    d, layers, chains, scale = 5, 300, 64, 0.3
    frame = torch.eye(d, device=device).expand(chains, d, d)
    logs = []
    for _ in range(layers):
        w = rt.networks.draw_weights(init, (chains, d, d), generator=generator, scale=scale).to(
            device
        )
        frame, upper = torch.linalg.qr(w @ frame)
        logs.append(upper.diagonal(dim1=-2, dim2=-1).abs().log())
    logs = torch.stack(logs).flatten(0, 1).cpu()
    error = logs.std(0) / len(logs) ** 0.5
    exact = theory.lyapunov_exponents(d, init=init, scale=scale)
    assert bool(((logs.mean(0) - exact).abs() <= 4 * error + round_off(100)).all())


def test_jacobians_near_zero_are_nearly_isometries(generator, device):
    """At width 40 within the fluctuation d^(-2/3) of an edge."""
    width, blocks, scale = 40, 30, 0.1
    weights = rt.networks.draw_weights(
        "near_zero", (10, blocks, 2, width, width), generator=generator, scale=scale
    ).to(device)
    total = torch.eye(width, device=device).expand(10, width, width)
    for block in weights.unbind(1):
        total = total + block[:, 1] @ block[:, 0] @ total
    values = torch.linalg.svdvals(total)
    low, high = theory.isometry_edges(blocks, 2, scale=scale)
    edge = 2 * width ** (-2 / 3) * (high - 1)
    assert abs(values.max(-1).values.mean().item() - high) <= edge
    assert abs(values.min(-1).values.mean().item() - low) <= edge
