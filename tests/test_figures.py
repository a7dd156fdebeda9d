"""Figures of fully connected nets with other losses and activations than the papers'."""

import functools
import math

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.criteria import decided
from experiments.demystifying_resnet import (
    conditioning,
    curvature,
    final_losses,
    hessians_along,
    nets,
    norms,
    shortcut_depths,
    zero_point,
)
from resid_theory.activations import ACTIVATIONS
from resid_theory.theory.zero_weights import toeplitz

FEW = dict(dataset="digits", samples=40)
CLOSE = 1e-12  # eigenvalues of matrices of order one
USUAL = dict(loss="square", pre="identity", mid="identity", post="identity")

figure_3 = functools.partial(
    norms.compute_figure_3, **FEW, depths=[4], rate=0.3, epochs=3, scale=0.01, seed=0, seeds=2
)
figure_4 = functools.partial(conditioning.compute_figure_4, **FEW, depths=[2, 4], seeds=1)
figures_5_and_6 = functools.partial(
    curvature.compute_curvature,
    **FEW,
    depth=2,
    rates={"xavier": 0.02, "orthogonal": 0.02, "two_shortcut": 0.1},
    epochs=3,
    lead=0,
    checkpoints=3,
    early=2,
    scale=0.01,
    seeds=2,
)
figure_7 = functools.partial(
    final_losses.compute_figure_7, **FEW, depths=[6], rates=[-1, 0, 1], seeds=2, epochs=3
)
figure_8 = functools.partial(
    final_losses.compute_figure_8, **FEW, depths=[6], rates=[-1, 0, 1], seeds=2, epochs=3
)


@pytest.fixture(autouse=True)
def few_angles(monkeypatch):
    """No test here looks at the bulk of many blocks, which test_toeplitz does."""
    monkeypatch.setattr(toeplitz, "_ANGLES", 4)


def forty():
    return nets.whitened(FEW["dataset"], FEW["samples"])


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def by_hand(model, weights, loss, data):
    """Value and gradient, and a function for the Hessian, by automatic differentiation alone."""

    def value(flat):
        output = torch.func.functional_call(model, {"weights": flat.view_as(weights)}, (data.x,))
        return loss(output, data.y)

    flat = weights.reshape(-1)
    gradient, found = torch.func.grad_and_value(value)(flat)
    return found, gradient, lambda: torch.func.jacrev(torch.func.grad(value))(flat)


def read(hessian):
    """Statistics that the figures show, from a matrix."""
    values = np.linalg.eigvalsh(hessian.numpy())
    sizes = np.abs(values)
    return {
        "max": sizes.max(),
        "p10": np.percentile(sizes, 10),
        "index": (values < -1e-10 * sizes.max()).mean(),  # far from all thresholds here
    }


# -- Figures 4 to 7: the usual settings given by name ----------------------------------------------


@pytest.mark.parametrize("figure", ["4", "5", "7"])
def test_identity_and_square_are_the_figures_own(figure):
    compute = {
        "4": functools.partial(figure_4, depths=[2], scale=0.01),
        "5": figures_5_and_6,
        "7": functools.partial(figure_7, scale=0.01),
    }[figure]
    assert same(compute(), compute(**USUAL))


# -- Figure 4 --------------------------------------------------------------------------------------


def test_figure_4_with_cross_entropy_is_brute_force():
    arrays, data = figure_4(scale=0.1, loss="cross_entropy", depths=[4]), forty()
    for number, (name, net) in enumerate(nets.NETS.items()):
        if 4 % net["n"]:
            continue
        model = nets.build(4, net)
        generator = nets.generator_of(number, 4, 0)
        rt.initialize(model, net["init"], generator=generator, scale=0.1)
        *_, hessian = by_hand(model, model.weights.detach(), F.cross_entropy, data)
        for key, exact in read(hessian()).items():
            assert arrays[f"{name}.{key}"][-1, 0] == pytest.approx(exact, rel=1e-9, abs=CLOSE), (
                name,
                key,
            )


@pytest.fixture
def once(monkeypatch):
    """The identity as an activation that nobody takes for one: its nets go the general way."""
    monkeypatch.setitem(ACTIVATIONS, "once", lambda z: 1.0 * z)
    return "once"


def test_figure_4_with_tanh_is_linear_to_first_order(once):
    def apart(scale):
        linear = figure_4(scale=scale, mid=once)
        bent = figure_4(scale=scale, mid="tanh")
        ratios = [bent[f"two_shortcut.{k}"] / linear[f"two_shortcut.{k}"] for k in ("max", "p10")]
        return np.abs(np.array(ratios) - 1)

    far, near = apart(1e-2), apart(1e-3)
    assert ((near > 0) & (near < 0.05 * far)).all()  # of second order: a hundredth


def test_figure_4_without_moments_is_figure_4(once):
    linear, general = figure_4(scale=0.1), figure_4(scale=0.1, mid=once)
    for key in ("max", "p10", "min", "index", "predicted"):
        left, right = (arrays[f"two_shortcut.{key}"] for arrays in (linear, general))
        assert left == pytest.approx(right, rel=1e-9)


def test_figure_4_with_activations_compares_nets_that_have_equally_many():
    arrays = figure_4(scale=0.01, mid="tanh")
    assert {key.split(".")[0] for key in arrays} == set(nets.PLAIN_AND_TWO)
    data, model = forty(), nets.build(4, {"n": 2, "shortcut": False}, mid="tanh")
    rt.initialize(model, "xavier", generator=nets.generator_of(0, 4, 0))
    *_, hessian = by_hand(model, model.weights.detach(), oracles.square_loss, data)
    for key, exact in read(hessian()).items():
        assert arrays[f"xavier.{key}"][-1, 0] == pytest.approx(exact, rel=1e-9, abs=CLOSE)


# -- Figures 5 and 6 -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"loss": "cross_entropy"}, {"mid": "tanh"}], ids=["cross_entropy", "tanh"]
)
def test_figures_5_and_6_are_descent_and_hessian_by_hand(change):
    arrays, data = figures_5_and_6(**change), forty()
    loss = F.cross_entropy if "loss" in change else oracles.square_loss
    acts = {"mid": change["mid"]} if "mid" in change else {}
    for number, name in enumerate(nets.PLAIN_AND_TWO):
        net = nets.compared(**acts)[name]
        model = nets.build(2, net, **acts)
        rate = figures_5_and_6.keywords["rates"][name]
        for seed, weights in enumerate(
            nets.initial_weights(model, net["init"], 2, 0.01, number, 2)
        ):
            of_seed = arrays[f"{name}.seed"] == seed
            for epoch in range(4):
                value, gradient, hessian = by_hand(model, weights, loss, data)
                if name == "two_shortcut":
                    found = arrays[f"{name}.gradient"][seed, epoch]
                    assert found == pytest.approx(float(gradient.norm()))
                for key, exact in {"loss": float(value), **read(hessian())}.items():
                    for found in arrays[f"{name}.{key}"][
                        of_seed & (arrays[f"{name}.epoch"] == epoch)
                    ]:
                        near = pytest.approx(exact, rel=1e-9, abs=CLOSE)
                        assert found == near, (name, key, epoch)
                weights = weights - rate * gradient.view_as(weights)


def test_a_descent_with_a_lead_goes_on_from_its_last_weights():
    part = functools.partial(hessians_along.HessiansAlong, **FEW, net="orthogonal", checkpoints=99)
    slow, whole = part(rate=0.1 / 30, epochs=4), part(rate=0.1, epochs=3, lead=4)
    first, both = (each.arrays("cpu") for each in (slow, whole))
    assert np.array_equal(both["gradient"][:, :5], first["gradient"])
    assert both["gradient"].shape == (1, 8) and both["loss"][-1] < first["loss"][-1]


def test_a_rate_that_diverges_is_named():
    rates = {**figures_5_and_6.keywords["rates"], "orthogonal": 50.0}
    with pytest.raises(ValueError, match="rates: got 50 for orthogonal.*needs a smaller one"):
        figures_5_and_6(rates=rates)


# -- Figures 7 and 8 -------------------------------------------------------------------------------


def test_figure_7_with_relu_between_layers_is_figure_8():
    relu = figure_7(scale=0.1, mid="relu")
    assert relu.pop("optimum") == 0
    assert same(relu, figure_8(scale=0.1))


def test_figure_7_with_cross_entropy_is_descent_by_hand():
    arrays, data = figure_7(scale=0.1, loss="cross_entropy"), forty()
    model = nets.build(6, nets.NETS["three_shortcut"])
    weights = nets.initial_weights(model, "near_zero", 2, 0.1, 4, 6)[1]
    for _ in range(3):
        _, gradient, _ = by_hand(model, weights, F.cross_entropy, data)
        weights = weights - gradient.view_as(weights)  # at the second rate, 1
    value, *_ = by_hand(model, weights, F.cross_entropy, data)
    assert arrays["three_shortcut.loss"][0, 1, 1] == pytest.approx(float(value), rel=1e-12)


@pytest.mark.parametrize("share", [2 / 3, 1.0])
def test_least_cross_entropy_is_the_entropy_that_inputs_leave(share):
    # ten inputs that a linear map can treat one by one, two thirds of each in a class of its own
    x, own = torch.eye(10).repeat(3, 1), torch.arange(10)
    last = own if share == 1 else (own + 1) % 10
    data = rt.Regression(x, F.one_hot(torch.cat([own, own, last]), 10).double())
    entropy = 0.0 if share == 1 else math.log(3) - share * math.log(2)
    found = nets.least_loss(data, "cross_entropy", linear=True)
    assert 0 <= found - entropy <= 1e-8


def test_what_no_net_can_reach_bounds_what_all_reach():
    arrays = figure_7(scale=0.1, loss="cross_entropy")
    assert all((arrays[f"{name}.loss"] > arrays["optimum"]).all() for name in nets.NETS)


# -- Figure 11 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"loss": "cross_entropy"}, {"pre": "relu", "mid": "tanh", "post": "sin"}],
    ids=["cross_entropy", "activations"],
)
def test_figure_11_has_its_pattern_for_other_losses_and_activations(change):
    usual = zero_point.compute_figure_11(**FEW, blocks=2)
    other = zero_point.compute_figure_11(**FEW, blocks=2, **change)
    assert not np.allclose(usual["n2.matrix_a"], other["n2.matrix_a"], atol=0.01)
    assert all(verdict.holds for verdict in zero_point.judge_figure_11(other))


# -- judges and drawings ---------------------------------------------------------------------------


def test_figures_of_nonlinear_nets_are_drawn_without_an_optimum():
    trained, final = (
        figures_5_and_6(mid="tanh", epochs=200, checkpoints=6),
        figure_7(scale=0.01, mid="tanh"),
    )
    labels = []
    for draw, arrays in (
        (curvature.draw_figure_5, trained),
        (curvature.draw_figure_6, trained),
        (final_losses.draw_figure_7, final),
    ):
        figure = Figure()
        draw(figure, arrays)
        labels += [ax.get_xlabel() + ax.get_ylabel() for ax in figure.axes]
    assert any("loss" in label for label in labels)
    assert not any("optimum" in label for label in labels)
    assert len(figure.axes[1].lines) == len(nets.PLAIN_AND_TWO)


def followed(index, cond=(10.0, 10.0, 10.0), unsure=0.0, seeds=8):
    """Arrays of one net whose seeds are alike, up to a drift that is no tie."""
    drift, same = 1e-4 * np.repeat(np.arange(seeds), 3), np.ones(3 * seeds)
    return {
        "seed": np.repeat(np.arange(seeds), 3),
        "epoch": np.tile([0, 1, 2], seeds),
        "loss": np.tile([4.0, 2.5, 1.6], seeds),
        "index": np.tile(index, seeds) + drift,
        "unsure": unsure * same,
        "negative": (np.tile(index, seeds) + drift)[:, None] * np.ones(5),
        "max": np.tile(cond, seeds) + drift,
        "p10": same,
        "gradient": np.tile([1.0, 2.0, 1.0], (seeds, 1)),
    }


def compared_along(two, orthogonal, xavier):
    groups = {"two_shortcut": two, "orthogonal": orthogonal, "xavier": xavier}
    return {"optimum": np.array(0.5), **nets.nested(groups)}


@pytest.mark.parametrize("other", ["orthogonal", "xavier"])
def test_figure_6_is_judged_against_both_plain_nets(other):
    plain = {
        name: followed([0.4] * 3 if name == other else [0.6] * 3)
        for name in ("orthogonal", "xavier")
    }
    found = decided(curvature.judge_figure_6(compared_along(followed([0.5, 0.5, 0.45]), **plain)))
    assert [c.criterion for c in found if c.holds is False] == [
        f"2-shortcut minus {nets.LABELS[other]}: largest difference of the index at equal loss"
    ]
    assert [c.holds for c in found].count(True) == 3


@pytest.mark.parametrize(
    ("two", "plain", "unsure", "holds"),
    [
        ([0.5, 0.5, 0.45], [0.6] * 3, 0.0, True),
        ([0.5, 0.5, 0.45], [0.6] * 3, 0.2, None),  # more are within the solver's error
        ([0.5, 0.5, 0.45], [0.6, 0.4, 0.6], 0.0, False),  # larger at some losses
        ([0.5, 0.5, 0.45], [0.6, 0.4, 0.6], 0.2, None),
    ],
)
def test_figure_6_is_decided_whatever_the_signs_within_the_error(two, plain, unsure, holds):
    nets_of = followed(two, unsure=unsure), followed(plain, unsure=unsure), followed([0.9] * 3)
    assert decided(curvature.judge_figure_6(compared_along(*nets_of)))[0].holds is holds


@pytest.mark.parametrize(
    ("two", "expected"),
    [
        ([1, 3, 9], [True, True, True, True, True]),  # nearer at small losses, near at the end
        ([1, 3, 11], [False, True, True, True, True]),  # above orthogonal at the smallest loss
        ([9, 3, 1], [True, False, True, False, True]),  # smaller where the loss is small
        ([1, 3, 200], [False, True, False, True, False]),  # far above at the end
    ],
)
def test_figure_5_is_judged_by_its_three_sentences(two, expected):
    arrays = compared_along(
        followed([0.5] * 3, cond=two), followed([0.5] * 3), followed([0.5] * 3, cond=[50.0] * 3)
    )
    assert [c.holds for c in decided(curvature.judge_figure_5(arrays))] == expected


@pytest.mark.parametrize(
    ("ratios", "holds"), [([0.2, 0.3, 0.5], True), ([0.2, 0.3, -4.0], None), ([2.0] * 3, False)]
)
def test_an_end_that_the_paper_does_not_name_is_decided_where_all_ends_agree(ratios, holds):
    levels = np.array([0.05, 0.01, 0.001])
    pairs = [(levels, np.array(ratios) + 0.01 * seed) for seed in range(5)]
    assert curvature.judge_end("log10 of the ratio", pairs).holds is holds


def test_losses_between_distant_epochs_are_not_measured():
    jump, steps = np.array([8.0, 1.5, 1.2, 1.1]), np.array([9.0, 5.0, 3.0, 2.0, 1.5, 1.2, 1.15])
    found = curvature.common_losses(1.0, jump, steps)
    assert found[0] == 8.0 and found[1] < 1.2 and found[-1] == pytest.approx(1.15)
    with pytest.raises(ValueError, match="2-shortcut and orthogonal nets of seed 0 have none"):
        low = followed([0.5] * 3) | {"loss": np.tile([1.0, 0.9, 0.8], 8)}
        curvature.judge_figure_5(compared_along(low, followed([0.5] * 3), followed([0.5] * 3)))


RATIOS = np.array([-1.1, -1.0, -0.9, -1.05, -0.95, -1.02, -0.98, -1.0])


def ended(depths, **losses):
    """Arrays of nets with one rate; each net's losses by depth, with the spread of eight seeds."""
    arrays = {"depth": np.array(depths), "rates": np.array([0.1]), "optimum": np.array(0.0)}
    for name, of in losses.items():
        arrays[f"{name}.loss"] = np.array(of)[:, None, None] * (1 + 0.01 * RATIOS)
    return arrays


def holding(judge, arrays):
    return [criterion.holds for criterion in decided(judge(arrays))]


@pytest.mark.parametrize(
    ("two", "holds"),
    [([1e-6, 1e-5], [True, True]), ([1e-6, 1e-3], [False, True]), ([1e-6, 0.5], [False, False])],
)
def test_figure_7_asks_for_good_ends_at_all_depths(two, holds):
    others = {name: [0.1, 0.2] for name in nets.NETS if name != "two_shortcut"}
    arrays = ended([6, 12], two_shortcut=two, **others)
    assert holding(final_losses.judge_figure_7, arrays) == [*holds, None, None, None, None]


def test_figure_7_compares_the_best_rates_of_seeds():
    rates, far = np.array([0.01, 0.1, 1.0]), np.ones((2, 3, 8))
    best = {"two_shortcut": 2, "xavier": 1, "orthogonal": 2, "one_shortcut": 0}
    arrays = {"depth": np.array([6, 96]), "rates": rates, "optimum": np.array(0.0)}
    for name, which in best.items():
        arrays[f"{name}.loss"] = far.copy()
        arrays[f"{name}.loss"][:, which] = 1e-5
    arrays["xavier.loss"][1] = arrays["two_shortcut.loss"][1]  # at 96 layers: not compared
    assert holding(final_losses.judge_figure_7, arrays)[2:] == [True, None, True]


def test_rates_count_from_those_of_each_net_and_depth():
    whole = figure_7(scale=0.1)
    best = {name: [0.5] for name in nets.NETS} | {"xavier": [0.0]}
    moved = figure_7(scale=0.1, rates=[-0.5, 0.5, 0.5], near=best)
    assert np.allclose(moved["orthogonal.rates"], [[1.0, 10**0.5, 10.0]])
    assert np.allclose(moved["xavier.rates"], [[10**-0.5, 1.0, 10**0.5]])
    assert np.array_equal(moved["orthogonal.loss"][:, 0], whole["orthogonal.loss"][:, 1])
    assert np.array_equal(moved["xavier.loss"][:, 1], whole["xavier.loss"][:, 1])


@pytest.mark.parametrize(
    ("two", "holds"),
    [
        ([0.3, 0.01], [False] * 2 + [True] * 4),  # best at its best depth
        ([0.02, 0.6], [True] * 2 + [False] * 2 + [True] * 2),
        ([0.3, 0.4], [False] * 2 + [True] * 2 + [False] * 2),
    ],
)
def test_figure_8_asks_for_better_optima(two, holds):
    arrays = ended([4, 32], xavier=[0.1, 0.5], orthogonal=[0.1, 0.5], two_shortcut=two)
    assert holding(final_losses.judge_figure_8, arrays) == holds


@pytest.mark.parametrize(
    ("losses", "holds"),
    [
        ([[0.4, 0.4], [0.5, 0.3], [1.0, 1.0], [4.0, 4.0]], [True] * 5),
        ([[0.4, 0.4], [0.5, 0.6], [1.0, 1.0], [4.0, 4.0]], [False, True, True, True, False]),
        ([[0.4, 0.2], [0.5, 0.3], [1.0, 0.9], [4.0, 4.0]], [True, False, False, True, False]),
    ],
)
def test_figure_9_asks_that_only_shortcut_depth_2_gains(losses, holds):
    arrays = ended([12, 48], **{f"n{n}": of for n, of in enumerate(losses, start=1)})
    assert holding(shortcut_depths.judge_figure_9, arrays) == holds


@pytest.mark.parametrize(
    ("ends", "holds"),
    [([[3.0, 3.0], [2.0, 2.0]], [True, True]), ([[3.0, 3.0], [4.0, 2.0]], [True, False]),
     ([[3.0, 3.0], [2.0, 4.0]], [False, False])],
)  # fmt: skip
def test_figure_3_asks_for_smaller_norms_at_the_end_and_before(ends, holds):
    late, last = np.array(ends).T[:, :, None]
    norm = np.concatenate([np.repeat(late[:, None], 60, 2), last[:, None]], axis=2)
    arrays = {"depth": np.array([4, 8]), "norm": norm + 0.01 * RATIOS[:, None]}
    assert holding(norms.judge_figure_3, arrays) == holds
    short = {**arrays, "norm": arrays["norm"][:, 0, -3:]}  # of one seed, before late epochs
    assert holding(norms.judge_figure_3, short) == [None]


def initial(xavier, orthogonal, two):
    depth, seeds = np.array([2, 4, 8]), 1 + 0.01 * RATIOS
    logs = {"xavier": xavier, "orthogonal": orthogonal, "two_shortcut": two}
    arrays = {}
    for name, log in logs.items():
        arrays[f"{name}.depth"] = depth
        arrays[f"{name}.max"] = 10.0 ** np.array(log)[:, None] * seeds
        arrays[f"{name}.p10"] = np.ones((3, 8))
    return arrays


@pytest.mark.parametrize(
    ("spectra", "holds"),
    [
        (initial([2, 4, 8], [1, 2, 3], [0.2, 0.2, 0.2]), [True] * 4),
        (initial([2, 4, 8], [1, 2, 3], [0.2, 0.3, 0.2]), [False, True, True, True]),
        (initial([1, 2, 3], [2, 4, 8], [0.2, 0.2, 0.2]), [True, True, True, False]),
        (initial([2, 4, 8], [3, 2, 1], [0.2, 0.2, 0.2]), [True, False, True, True]),
    ],
)
def test_figure_4_is_judged_by_the_papers_sentences(spectra, holds):
    assert holding(conditioning.judge_figure_4, spectra) == holds


def test_a_depth_that_a_criterion_needs_is_named():
    with pytest.raises(ValueError, match=r"depths: got \[12\], needs 48"):
        shortcut_depths.judge_figure_9(ended([12], n1=[1.0], n2=[1.0], n3=[1.0], n4=[1.0]))
    arrays = figure_4(scale=0.1, depths=[2, 6])
    with pytest.raises(ValueError, match=r"depths: got \[2, 6\], needs one and its double"):
        conditioning.judge_initial_spectra(arrays)
