"""Judges of the noise-stability claims on constructed arrays: what holds, fails or is undecided."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from experiments.criteria import decided
from experiments.crossings import curvature
from experiments.noise_stability import (
    cushions,
    dominant,
    equality,
    flow_speed,
    flows,
    gaussian,
    nets as trained_nets,
    training,
    weights as weight_claims,
)
from experiments.shipped import shipped_training

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
SEEDS = 1e-3 * np.array([-2, -1, 0, 1, 2])  # five seeds that differ by little


def little(*shape):
    """Differences between seeds, of which no two are equal."""
    return 1e-3 * np.random.default_rng(0).normal(size=shape)


def outcomes(judge, arrays):
    return [criterion.outcome for criterion in decided(judge(arrays))]


def table(*rows):
    """Means of kinds at every depth, as (kinds, depths, five seeds)."""
    means = np.array(rows, dtype=float)[..., None]
    return means + little(*means.shape[:-1], 5)


def one_seed(arrays):
    return {name: a[..., :1] if a.ndim > 2 else a for name, a in arrays.items()}


@pytest.mark.parametrize(
    "kind", ["simplified_plain", "simplified_residual", *trained_nets.FULL_KINDS]
)
def test_a_shipped_net_counts_as_the_first_seed(kind):
    ours = trained_nets.training_of(kind.removeprefix("simplified_"), 20, 0, epochs=200)
    assert ours.key == shipped_training(f"{kind}_20", 200).key


def test_nets_come_by_kind_state_and_seed():
    asked = {"seeds": [0, 1], "epochs": 1, "name": "digits", "samples": 8, "size": 8}
    found = trained_nets.nets_of(("plain",), 5, ("initial",), asked, lambda *_, **__: [], "cpu")
    first, second = found["plain", "initial"]
    again = trained_nets.start_net("plain", 5, 1)
    assert torch.equal(second.conv0.weight, again.conv0.weight.to(second.conv0.weight))
    assert not torch.equal(first.conv0.weight, second.conv0.weight) and not first.training


# Table 1, Figures 8 and 9 ------------------------------------------------------------------------


def test_table_1_asks_for_lower_at_every_depth_and_for_a_smaller_rise():
    better, depth = table([0.5, 0.9], [0.4, 0.5]), np.array([8, 20])
    arrays = {"depth": depth, "loss": better, "test_error": better}
    assert outcomes(training.judge_table_1, arrays) == [HOLDS] * 4
    assert outcomes(training.judge_table_1, one_seed(arrays)) == [UNDECIDED] * 4
    for wrong in (table([0.5, 0.4], [0.4, 0.5]), table([0.4, 0.9], [0.5, 0.5])):
        assert FAILS in outcomes(training.judge_table_1, {**arrays, "loss": wrong})[:2]


def curves(*ends):
    """Risks that fall from 2.3 to an end, (kinds, depths, seeds, 10 epochs)."""
    fall = np.linspace(0, 1, 11)[1:]
    return 2.3 - (2.3 - table(*ends)[..., None]) * fall


def test_figure_8_compares_risks_by_epoch_and_errors_at_equal_risk():
    risk = curves([1.0, 1.5], [0.5, 0.8])
    arrays = {"depth": np.array([8, 20]), "risk": risk, "test_error": risk / 3}
    assert outcomes(training.judge_figure_8, arrays) == [HOLDS, HOLDS]
    worse = risk[::-1] / 3 + np.array([0, 0.02])[:, None, None, None]
    slower = {**arrays, "risk": risk[::-1], "test_error": worse}
    assert outcomes(training.judge_figure_8, slower) == [FAILS, FAILS]
    apart = {**arrays, "risk": np.stack([risk[0] + 3, risk[1]])}
    assert outcomes(training.judge_figure_8, apart) == [HOLDS, UNDECIDED]


@pytest.mark.parametrize(
    ("ends", "found"),
    [
        (([1.0, 1.5], [0.5, 0.6]), [HOLDS, HOLDS]),
        (([1.0, 1.2], [0.5, 1.0]), [HOLDS, FAILS]),
        (([0.5, 0.6], [1.0, 1.5]), [FAILS, FAILS]),
        (([1.0, 2.3], [0.5, 1.9]), [HOLDS, UNDECIDED]),  # a plain net at chance cannot rise
    ],
)
def test_figure_9_says_nothing_of_depth_where_nets_do_not_start(ends, found):
    arrays = {"depth": np.array([8, 20]), "risk": curves(*ends)}
    assert outcomes(training.judge_figure_9, arrays) == found


@pytest.mark.parametrize(("peak", "found"), [(15, HOLDS), (60, FAILS)])
def test_the_peak_of_figure_9_is_judged_in_trainings_of_full_length(peak, found):
    epochs = np.arange(200)
    gap = 0.5 - 0.4 * np.abs(epochs - peak + 1) / 200
    risk = np.stack([1 + gap, np.ones(200)])[:, None, None] + np.zeros((2, 2, 5, 1))
    risk[0, :, ::2] = np.roll(risk[0, :, ::2], 1, axis=-1)  # seeds differ
    arrays = {"depth": np.array([32, 44]), "risk": risk}
    *_, last = decided(training.judge_figure_9(arrays))
    assert (last.criterion.split(",")[0], last.outcome) == ("epoch of the largest gap", found)
    assert len(training.judge_figure_9({**arrays, "risk": risk[..., :100]})) == 2


# Weights -----------------------------------------------------------------------------------------


def test_full_trainings_of_equivalent_nets_are_compared_as_equivalent():
    steps = np.array([[0, 0, 0, 0], [1, 1e-16, 1e-17, 0], [2, 2e-16, 1e-17, 0.0]])
    arrays = {"float64": steps, "uncorrected": steps * 1e10, "depth": np.array([20, 32])}
    same = {"loss": table([0.1, 0.1], [0.1, 0.1]), "test_error": table([0.1, 0.1], [0.1, 0.1])}
    assert outcomes(equality.judge_table_2, {**arrays, **same}) == [HOLDS] * 5
    worse = {**same, "test_error": table([0.13, 0.13], [0.1, 0.1])}
    assert outcomes(equality.judge_table_2, {**arrays, **worse})[3] == FAILS


@pytest.mark.parametrize(("factor", "found"), [(1.0, HOLDS), (1.03, FAILS)])
def test_initial_weights_are_the_papers(factor, found):
    depths = np.array(list(weight_claims.TABLE_4))
    plain = factor * np.array(list(weight_claims.TABLE_4.values()))[:, None] * (1 + SEEDS)
    mass = np.array([[67.0], [1120.0]]) * factor * (1 + SEEDS)
    arrays = {
        "depth": depths,
        "penalty": np.stack([plain, plain / 268 / factor * (1 - SEEDS)]),
        "mass": mass,
        "beyond": (1 if factor == 1 else 30) + 10 * SEEDS,
    }
    assert outcomes(weight_claims.judge_initial_weights, arrays) == [found] * 7
    few = {name: a[..., :4] for name, a in arrays.items()}
    assert outcomes(weight_claims.judge_initial_weights, few) == [UNDECIDED] * 7


def test_a_draw_counts_as_what_it_rounds_to():
    draws = 260 + np.array([-4.0, -2.0, 0.0, 2.0, 4.0])  # a further one: within 9.6 of 260
    for printed, found in ((269, True), (270, True), (271, False), (250, True), (249, False)):
        assert weight_claims.one_draw("ratio", draws, printed, 1, "Table").holds is found
    assert weight_claims.one_draw("ratio", draws + 0.4, 271, 1, "Table").holds is False  # 270.02


def test_table_3_asks_net_by_net_and_passes_over_layers_without_large_weights():
    share = np.stack([np.full((5, 12), 0.1), np.full((5, 12), 0.9)]) + SEEDS[:, None]
    share = share + np.linspace(0, 0.05, 12)
    share[0, 0, 0] = np.nan
    arrays = {"share": share, "median": np.stack([share[0] * 0, share[1]])}
    assert outcomes(weight_claims.judge_table_3, arrays) == [HOLDS] * 3
    assert (
        outcomes(weight_claims.judge_table_3, {**arrays, "share": share[::-1]})[:2] == [FAILS] * 2
    )
    one_net = {name: a[:, :1] for name, a in arrays.items()}
    assert outcomes(weight_claims.judge_table_3, one_net) == [UNDECIDED] * 3
    none = {**arrays, "share": np.stack([share[0] * np.nan, share[1]])}
    assert outcomes(weight_claims.judge_table_3, none)[1] == HOLDS


def test_table_4_asks_of_residual_nets_in_both_coordinates():
    after, moved = table([4.0, 5.0], [1.0, 1.0]), table([4.0, 5.0], [3.0, 3.0])
    arrays = {"depth": np.array([20, 32]), "after": after, "transferred": moved}
    arrays["loss"] = 100 * after
    assert outcomes(weight_claims.judge_table_4, arrays) == [HOLDS] * 3
    assert outcomes(weight_claims.judge_table_4, one_seed(arrays)) == [UNDECIDED] * 3
    heavier = {**arrays, "transferred": 2 * moved, "loss": 1 + after}
    assert outcomes(weight_claims.judge_table_4, heavier) == [HOLDS, FAILS, FAILS]


# Cushions and flows ------------------------------------------------------------------------------


def figure_3(residual, seeds=5):
    medians = np.zeros((seeds, 20, 2))
    medians[..., 1] = 1
    medians[:, :residual, 0] = 2
    medians += 1 + little(seeds, 20, 2)
    both = {f"trained.{norm}.median": medians for norm in cushions.NORMS}
    delta = (0.5 if residual > 10 else -0.5) + SEEDS[:seeds]
    names = np.array([f"conv{i}" for i in range(20)])
    return {
        **both, "layers": names, "layer": np.array("conv10"), "samples": np.array(7),
        "trained.identity_removed.delta": delta,
    }  # fmt: skip


def test_figure_3_allows_two_layers_and_one_pair_of_nets_decides_nothing():
    assert outcomes(cushions.judge_figure_3, figure_3(18)) == [HOLDS, HOLDS]
    assert outcomes(cushions.judge_figure_3, figure_3(10)) == [FAILS, FAILS]
    assert outcomes(cushions.judge_figure_3, figure_3(20, seeds=1)) == [UNDECIDED, UNDECIDED]


@pytest.mark.parametrize(("effective", "found"), [(1.05, HOLDS), (2.0, FAILS)])
def test_the_norm_makes_the_difference_at_initial_weights(effective, found):
    removed = np.array([3.0, 0.2]) + np.zeros((5, 4, 2)) + SEEDS[:, None, None]
    both = np.array([effective, 1.0]) * 0.2 + np.zeros((5, 4, 2)) + SEEDS[:, None, None] / 100
    arrays = {
        "initial.identity_removed.median": removed, "initial.effective.median": both,
        "layers": np.array(["conv0", "conv1", "conv2", "fc"]),
        "not_square": np.array(["conv0", "fc"]),
    }  # fmt: skip
    assert outcomes(cushions.judge_initial_cushions, arrays) == [HOLDS, found]


@pytest.mark.parametrize(("factor", "found"), [(0.8, FAILS), (1.2, HOLDS)])
def test_section_5_is_judged_over_seeds_by_running_statistics(factor, found):
    plain = np.full((5, 9), 0.2) + SEEDS[:, None]
    arrays = {"trained.eval": np.stack([plain, factor * plain]) + little(2, 5, 9)}
    arrays["trained.batch"] = np.stack([1e-6 * plain, plain])
    assert outcomes(cushions.judge_section_5, arrays) == [found]
    single = {name: a[:, :1] for name, a in arrays.items()}
    assert outcomes(cushions.judge_section_5, single) == [UNDECIDED]


@pytest.mark.parametrize(("kurtosis", "found"), [(3.5, HOLDS), (8.0, FAILS)])
def test_figure_10_asks_for_the_kurtosis_of_a_normal_law(kurtosis, found):
    spread = np.repeat(SEEDS, flows.GROUPS)
    moments = np.stack([spread, kurtosis + spread], 1)
    arrays = {"plain.trained.moments": moments, "samples": np.array(20)}
    assert outcomes(flows.judge_figure_10, arrays) == [HOLDS, found]
    one_net = {**arrays, "plain.trained.moments": moments[: flows.GROUPS]}
    assert outcomes(flows.judge_figure_10, one_net) == [UNDECIDED] * 2


def shares(early, late):
    """f_l of five seeds and 18 layers with three statistics."""
    layers, seeds = np.array([early] * 9 + [late] * 9), 1 + (early - late) * SEEDS[:, None]
    return (layers * seeds + little(5, 18) * early)[..., None] * np.ones(3)


def test_figure_12_simplified_asks_for_deep_layers_and_less_after_training():
    arrays = {"samples": np.array(2), "plain.initial": shares(0.2, 0.2)}
    arrays |= {"identity.initial": shares(0.3, 0.9), "plain.trained": shares(0.1, 0.1)}
    arrays["identity.trained"] = shares(0.12, 0.4)
    assert outcomes(flows.judge_figure_12_simplified, arrays) == [HOLDS] * 7
    turned = {**arrays, "identity.trained": shares(0.9, 0.5)}
    assert outcomes(flows.judge_figure_12_simplified, turned)[3:] == [HOLDS, HOLDS, FAILS, FAILS]
    fewer = {**arrays, "identity.trained": shares(0.05, 0.4)}
    assert outcomes(flows.judge_figure_12_simplified, fewer)[3:5] == [HOLDS, FAILS]


@pytest.mark.parametrize(
    ("early", "late", "found"),
    [(0.2, 0.6, [HOLDS, HOLDS]), (0.6, 0.6, [HOLDS, FAILS]), (0.2, 0.1, [FAILS, HOLDS])],
)
def test_figure_12_full_asks_that_early_layers_are_equal(early, late, found):
    arrays = {"samples": np.array(2), "plain.initial": shares(0.2, 0.2)}
    arrays["identity.initial"] = shares(early, late)
    assert outcomes(flows.judge_figure_12_deep, arrays) == found


@pytest.mark.parametrize(
    ("gap", "found"), [(0.0, HOLDS), (0.025, UNDECIDED), (-0.04, FAILS)], ids=str
)
def test_a_simulation_decides_beyond_its_errors(gap, found):
    made = gaussian._all_within("c", np.array([0.0, gap]), np.full(2, 0.004), 30, 0.03, source="s")
    (criterion,) = decided([made])
    assert criterion.holds is {HOLDS: True, FAILS: False, UNDECIDED: None}[found]


@pytest.mark.parametrize("ties", [False, True])
def test_permutations_test_a_rank_correlation_exactly(ties):
    x, y = np.random.default_rng(0).normal(size=(2, 7))
    if ties:
        x[1] = x[0]

    found, *p_values = flow_speed.permuted_rank_test(x, y)
    exact = stats.spearmanr(x, y).statistic
    assert found == pytest.approx(exact, abs=1e-12)
    ranks, *others = (each - each.mean() for each in map(stats.rankdata, (x, y)))
    every = np.array(list(itertools.permutations(*others))) @ ranks
    every *= exact / (others[0] @ ranks)  # all have one scale
    for p, side in zip(p_values, (1, -1), strict=True):
        share = (side * every >= side * exact - 1e-12).mean()
        error = (share * (1 - share) / flow_speed.PERMUTATIONS) ** 0.5
        assert abs(p - share) <= 4 * error + 1 / flow_speed.PERMUTATIONS


def test_power_of_a_rank_correlation_is_that_of_drawn_samples():
    rho, n, drawn = flow_speed.NAMED, 30, 2000
    pearson = 2 * np.sin(np.pi * rho / 6)  # of normal numbers with this rank correlation
    x, noise = np.random.default_rng(0).normal(size=(2, drawn, n))
    ranks = [
        values.argsort(1).argsort(1) - (n - 1) / 2
        for values in (x, pearson * x + (1 - pearson**2) ** 0.5 * noise)
    ]
    found = (ranks[0] * ranks[1]).sum(1) * 12 / (n**3 - n)
    p = stats.t.sf(found * np.sqrt((n - 2) / (1 - found**2)), n - 2)
    hit = (p <= flow_speed.LEVEL).mean()
    # Four standard errors of the draws, and two points for the normal laws of both formulas.
    assert flow_speed.power(n, rho, flow_speed.LEVEL) == pytest.approx(hit, abs=0.032 + 0.02)


@pytest.mark.parametrize(("sign", "found"), [(1, HOLDS), (-1, FAILS), (0, UNDECIDED)])
def test_nets_with_more_dominant_flows_should_learn_faster(sign, found):
    generator = np.random.default_rng(1)
    speed, noise = generator.normal(size=(2, 2, 30))
    share = sign * speed + 0.3 * noise
    risk = np.exp(-speed)[..., None] * np.ones(8)
    arrays = {"depth": np.array(8), "risk": risk, "initial": share, "trained": -share}
    other = {HOLDS: FAILS, FAILS: HOLDS, UNDECIDED: UNDECIDED}[found]
    assert outcomes(flow_speed.judge_flow_speed, arrays) == [found] * 3 + [other] * 3
    few = {name: a[:, :2] if a.ndim else a for name, a in arrays.items()}
    assert outcomes(flow_speed.judge_flow_speed, few) == [UNDECIDED] * 6


# Table 5 -----------------------------------------------------------------------------------------


def dominant_arrays(residual, paths):
    depth = np.array([8, 20])
    arrays = {"depth": depth}
    for kind, errors in (("residual", residual), ("dominant", paths)):
        rows = table(errors, errors)[int(kind == "dominant")]
        arrays |= {f"{kind}.error": rows, f"{kind}.loss": 1 + rows}
        arrays[f"{kind}.parameters"] = np.full((2, 5), 10)
    return arrays


@pytest.mark.parametrize(
    ("residual", "paths", "found"),
    [
        ([0.2, 0.2], [0.3, 0.3], [HOLDS, HOLDS, HOLDS]),
        ([0.2, 0.25], [0.3, 0.35], [HOLDS, HOLDS, HOLDS]),  # both degrade
        ([0.2, 0.2], [0.3, 0.6], [FAILS, FAILS, FAILS]),
        ([0.8, 0.8], [0.87, 0.87], [FAILS, HOLDS, HOLDS]),  # mostly chance
    ],
)
def test_table_5_compares_accuracy_above_chance_and_degradation(residual, paths, found):
    assert outcomes(dominant.judge_table_5, dominant_arrays(residual, paths)) == found


def test_table_5_dense_asks_of_both_readings():
    arrays = dominant_arrays([0.2, 0.2], [0.3, 0.3])
    for kind, errors in (("dominant_half", [0.2, 0.25]), ("dominant_upper", [0.2, 0.35])):
        arrays |= {f"{kind}.error": table(errors, errors)[0], f"{kind}.parameters": np.ones((2, 5))}
    assert outcomes(dominant.judge_table_5_dense, arrays) == [HOLDS, FAILS]


# Spectra of nets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gap", "norm", "found"), [(0.8, 5.0, [HOLDS, HOLDS]), (4.0, 2.0, [FAILS, FAILS])]
)
def test_estimates_of_spectra_are_tested_over_nets(gap, norm, found):
    arrays = {}
    for number in range(6):
        away, here = gap * (1 + number / 10), norm + number / 10
        net = {"values": [3.0, -1.0], "bounds": [0.0, 0.0], "converged": True, "missed": 1e-9}
        net |= {"size": 10, "frobenius": [here, here + 1]}
        net["intervals"] = [[0.0, -1.0, 1.0], [away, away - 1, away + 1], [0.1, 0.0, 0.2]]
        arrays |= {f"{number}.{name}": np.array(value) for name, value in net.items()}
    assert outcomes(curvature._judge_spectra, arrays)[-2:] == found
    one = {name: a for name, a in arrays.items() if name.startswith("0.")}
    assert outcomes(curvature._judge_spectra, one) == [HOLDS, UNDECIDED, UNDECIDED]


def test_the_first_order_of_a_trivial_flow_is_n_m_sigma_squared():
    case = gaussian.TrivialFlow(channels=5, layers=3, deviation=0.1, open_share=0.5)
    table = gaussian._flow_table(case, 2, torch.Generator().manual_seed(0))
    found = dict(zip(gaussian.COLUMNS, table.T, strict=True))["first_order"]
    assert found.tolist() == pytest.approx([0, 0.05, 0.1, 0.15], rel=1e-14)
