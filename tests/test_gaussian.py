"""Which of two normal numbers is greater, and the trivial case of dominant flows built on it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from tolerances import round_off
from torch.testing import assert_close

from resid_theory.theory import TrivialFlow, exceedance, exceedance_integral, logistic
from resid_theory.theory.flow import pointwise_flow
from resid_theory.theory.flow.gaussian import EXPONENTS, half_normal_mean

RATIOS = torch.logspace(-8, 8, 161, dtype=torch.float64)


def arcsine(ratio, r):
    """The correlated case as it is usually written; it loses digits at small ratios."""
    square = ratio**2
    inside = (square - 1) / ((square + 1) ** 2 - 4 * r**2 * square).sqrt()
    return 0.5 + inside.asin() / math.pi


# exceedance --------------------------------------------------------------------------------------


def test_exceedance_is_an_arctangent_and_the_papers_integral(cuda):
    ratio = RATIOS.to(cuda)
    # To relative accuracy even where the probability is 1e-8.
    assert_close(exceedance(ratio), 2 / math.pi * ratio.atan(), rtol=round_off(4), atol=0)
    assert_close(exceedance_integral(ratio), exceedance(ratio), rtol=round_off(16), atol=0)


@pytest.mark.parametrize("r", [-0.9, 0.0, 0.3, 0.99])
def test_exceedance_of_correlated_numbers_is_an_arcsine(r):
    ratio = torch.logspace(-1, 1, 21)
    found = exceedance(ratio, correlation=r)
    assert_close(found, arcsine(ratio, r), rtol=0, atol=1e-14)  # asin is steep at its ends


@pytest.mark.parametrize("r", [0.0, 0.5])
def test_what_does_not_exceed_is_exceeded(r):
    both = exceedance(RATIOS, correlation=r) + exceedance(1 / RATIOS, correlation=r)
    assert_close(both, torch.ones_like(RATIOS), rtol=0, atol=round_off(1))


def test_ends_of_the_exceedance():
    assert exceedance([0.0, 1.0, math.inf]).tolist() == [0.0, 0.5, 1.0]
    for r in (-1.0, 1.0):  # equal numbers do not exceed each other
        assert exceedance([0.5, 1.0, 2.0], correlation=r).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "gap"), [("slope", 0.0130), ("least_squares", 0.0071), ("minimax", 0.0063)]
)
def test_gap_of_the_logistic(name, gap):
    ratio = torch.logspace(-2, 2, 4001)
    found = (logistic(ratio, name) - exceedance(ratio)).abs().max().item()
    assert round(found, 4) == gap


def test_no_exponent_does_better_than_minimax():
    ratio = torch.logspace(-2, 2, 4001)
    exact = exceedance(ratio)
    gaps = [
        (logistic(ratio, EXPONENTS["minimax"] + by) - exact).abs().max() for by in (-1e-3, 0, 1e-3)
    ]
    assert gaps[1] < min(gaps[0], gaps[2])


def test_slope_exponent_has_the_slope_at_one():
    step = 1e-4
    around = torch.tensor([math.exp(-step), math.exp(step)])
    exact, found = (
        f(around).diff().item() / (2 * step) for f in (exceedance, lambda x: logistic(x, "slope"))
    )
    assert abs(exact - found) < step**2


@pytest.mark.parametrize("power", [0, 1, 2, 4])
def test_moments_of_the_half_normal(power):
    exact = 2 ** (power / 2) * math.gamma((power + 1) / 2) / math.sqrt(math.pi)
    found = half_normal_mean(lambda v: v**power).item()
    assert abs(found / exact - 1) <= round_off(300)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exceedance([2.0, -1.0, -3.0]), "ratio: got -1.0"),
        (lambda: exceedance([math.nan]), "ratio: got nan"),
        (lambda: exceedance(1.0, correlation=1.5), "correlation: got 1.5"),
        (lambda: exceedance(1.0, correlation=-1.1), "correlation: got -1.1"),
        (lambda: exceedance_integral([math.inf]), "exceedance takes infinity"),
        (lambda: logistic([1.0, 0.009]), "use exceedance, which is exact"),
        (lambda: logistic([1.0], "minmax"), "did you mean 'minimax'"),
        (lambda: logistic([1.0], 0.0), "exponent: got 0.0"),
    ],
    ids=["negative", "nan", "above", "below", "infinity", "tail", "name", "exponent"],
)
def test_what_has_no_probability_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The trivial case --------------------------------------------------------------------------------

BASE = TrivialFlow(channels=32, layers=12, deviation=0.02, open_share=0.9)


@pytest.mark.parametrize("identity", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("persistent", [True, False], ids=["one mask", "many masks"])
def test_rows_are_the_shares_of_single_nets(identity, persistent, monkeypatch):
    n, layers, deviation, p = 3, 4, 0.7, 0.6
    monkeypatch.setattr(pointwise_flow, "_WORKSPACE", 2 * 8 * n**2)  # two nets at a time
    case = TrivialFlow(channels=n, layers=layers, deviation=deviation, open_share=p, signal=3.0,
                       identity=identity, persistent=persistent)  # fmt: skip
    source, expected = torch.Generator().manual_seed(5), []
    for count in (2, 2, 1):
        flows = torch.diag_embed(3.0 * torch.randn(count, n, generator=source))
        shares = []
        for layer in range(layers + 1):
            if layer and (layer == 1 or not persistent):
                masks = torch.rand(count, n, generator=source) < p
            if layer:
                noise = deviation * torch.randn(count, n, n, generator=source)
                weights = noise + identity * torch.eye(n)
                flows = torch.stack([
                    weight @ torch.diag(mask.double()) @ flow
                    for weight, mask, flow in zip(weights, masks, flows, strict=True)
                ])  # fmt: skip
            shares.append([
                sum(abs(flow[j, j]) > abs(sum(flow[j]) - flow[j, j]) for j in range(n)).item() / n
                for flow in flows
            ])  # fmt: skip
        expected.append(torch.tensor(shares).T)
    assert_close(
        case.simulate(draws=5, generator=5), torch.cat(expected), rtol=round_off(3), atol=0
    )


CASES = {
    "base": {},
    "all open": {"open_share": 1.0},
    "shut": {"open_share": 0.0},
    "wide": {"channels": 100},
    "plain": {"identity": False},
    "persistent": {"persistent": True, "open_share": 0.5},
    "persistent, plain": {"persistent": True, "identity": False},
    "large weights": {"deviation": 0.1},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=list(CASES))
def test_refined_recursion_is_near_the_simulation(device, changes, request):
    if request.config.getoption("--device") == "pretended":
        pytest.skip("a pretended GPU has no generators")
    case = replace(BASE, **changes)
    source = torch.Generator(device).manual_seed(0)
    shares = case.simulate(draws=200, generator=source).cpu()
    error = shares.std(0) / 200**0.5
    # 0.02 is what the recursion promises about n = 64; the rest is the simulation's error.
    assert bool(((shares.mean(0) - case.refined()).abs() <= 0.02 + 3 * error).all())


def test_known_failure_of_both_formulas(generator):
    case = TrivialFlow(channels=4, layers=18, deviation=0.003, open_share=0.7)
    simulated = float(case.simulate(draws=2000, generator=generator)[:, -1].mean())
    assert abs(simulated - 0.218) < 0.02
    assert round(float(case.refined()[-1]), 3) == 0.006
    assert round(float(case.approximation()[-1]), 3) == 0.002


def test_without_masks_the_approximation_is_eq_14():
    case = replace(BASE, open_share=1.0)
    m, variance = 5, BASE.deviation**2
    ratio = math.sqrt((1 + m * variance) / ((BASE.channels - 1) * m * variance))
    assert_close(case.approximation()[m], exceedance(ratio), rtol=round_off(20), atol=0)
    assert_close(replace(case, persistent=True).refined(), case.refined(), rtol=1e-13, atol=0)


def test_open_channels_are_a_net_of_their_own():
    n, p = 5, 0.6
    case = TrivialFlow(channels=n, layers=4, deviation=0.3, open_share=p, persistent=True)
    expected = torch.zeros(5)
    for others in range(n):  # open beside a channel
        open_net = replace(case, channels=max(2, others + 1), open_share=1.0, persistent=False)
        chance = math.comb(n - 1, others) * p**others * (1 - p) ** (n - 1 - others)
        expected += p * chance * (open_net.refined() if others else torch.ones(5))
    expected[0] = 1
    assert_close(case.refined(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("m", [1, 2, 4])
def test_refined_formula_by_scalars(m):
    n, p, variance = 5, 0.6, 0.3**2

    def moments(q):
        a, b = 1.0, 0.0
        for _ in range(m):
            total = a + (n - 1) * b
            a, b = q * (a + variance * total), p * (b + variance * total)
        return a, b

    def chance(a, b):
        return 2 / math.pi * math.atan(math.sqrt(a / ((n - 1) * b)))

    given, mean, always = moments(1.0), moments(p), p**m
    expected = always * chance(*given)
    # Of a channel that is shut in some layer the own flow is not zero if it is open in the last.
    if share := p - always:
        a, b = (whole - always * part for whole, part in zip(mean, given, strict=True))
        expected += share * chance(a / share, b / (1 - always))
    case = TrivialFlow(channels=n, layers=4, deviation=0.3, open_share=p)
    assert case.refined()[m].item() == pytest.approx(expected, rel=1e-12)


def test_formulas_agree_to_first_order():
    case = replace(BASE, deviation=1e-5)  # of which the first order is 4e-5
    assert_close(case.approximation(), case.refined(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("route", ["approximation", "refined"])
def test_formulas_do_not_know_the_signal(route):
    loud = replace(BASE, signal=100.0)
    assert torch.equal(getattr(loud, route)(), getattr(BASE, route)())


@pytest.mark.parametrize("route", ["approximation", "refined"])
@pytest.mark.parametrize("identity", [True, False], ids=["residual", "plain"])
def test_the_top_layer_is_all_dominant(route, identity):
    shares = getattr(replace(BASE, identity=identity), route)()
    assert shares[0] == 1 and bool((shares[1:] < 1).all())
    if identity:
        assert bool((shares.diff() < 0).all())


def test_plain_formulas_are_the_same_at_any_depth():
    n, p = 5, 0.7
    case = TrivialFlow(channels=n, layers=3, deviation=0.5, open_share=p, identity=False)
    width = math.sqrt(p * (n - 1))

    def weighted(z):
        return (
            p * 2 / math.pi * math.atan(z / width) * math.sqrt(2 / math.pi) * math.exp(-z * z / 2)
        )

    exact = [1.0] + 3 * [p * 2 / math.pi * math.atan(1 / width)]
    assert case.approximation().tolist() == pytest.approx(exact, rel=1e-14)
    exact = [1.0] + 3 * [quad(weighted, 0, math.inf, epsabs=0, epsrel=1e-12)[0]]
    assert case.refined().tolist() == pytest.approx(exact, rel=1e-11)


def test_normal_flow_in_plain_nets_misses_the_simulation(generator):
    case = TrivialFlow(channels=64, layers=6, deviation=0.01, open_share=0.97, identity=False)
    shares = case.simulate(draws=300, generator=generator)[:, -1]
    error = float(shares.std()) / 300**0.5
    assert round(float(case.approximation()[-1]), 4) == 0.0786
    assert abs(float(shares.mean() - case.refined()[-1])) <= 4 * error
    assert float(case.approximation()[-1] - shares.mean()) > 4 * error


@pytest.mark.parametrize("changes", [{}, {"persistent": True}, {"identity": False}], ids=str)
@pytest.mark.parametrize(("room", "parts"), [(7, [7, 7, 2]), (0, [1] * 16)], ids=str)
def test_nets_are_simulated_as_many_at_a_time_as_memory_holds(changes, room, parts, monkeypatch):
    case = replace(BASE, **changes)
    given = torch.Generator().manual_seed(0)
    assert torch.equal(case.simulate(draws=2), case.simulate(draws=2, generator=given))
    source = torch.Generator().manual_seed(1)
    expected = torch.cat([case.simulate(draws=part, generator=source) for part in parts])
    room = room * 8 * 32**2 + 8  # bytes of so many products of 32 x 32, and not of one more
    monkeypatch.setattr("resid_theory.theory.flow.pointwise_flow._WORKSPACE", room)
    assert torch.equal(case.simulate(draws=16, generator=1), expected)


def test_numbers_of_a_case_are_those_of_python():
    case = TrivialFlow(channels=np.int64(3), layers=np.int32(2), deviation=np.float32(0.5),
                       open_share=0.5, signal=torch.tensor(2.0))  # fmt: skip
    found = (case.channels, case.layers, case.deviation, case.signal)
    assert found == (3, 2, 0.5, 2.0) and [type(v) for v in found] == [int, int, float, float]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 1}, "channels: got 1, needs at least 2"),
        ({"layers": 0}, "layers: got 0"),
        ({"deviation": 0.0}, "deviation: got 0.0"),
        ({"signal": -1.0}, "signal: got -1.0"),
        ({"open_share": 1.1}, "open_share: got 1.1"),
        ({"open_share": -0.1}, "open_share: got -0.1"),
    ],
    ids=["channels", "layers", "deviation", "signal", "more than all", "less than none"],
)
def test_impossible_cases_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(BASE, **changes)
