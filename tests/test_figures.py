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
from experiments.demystifying_resnet import (
    conditioning,
    curvature,
    final_losses,
    nets,
    norms,
    shortcut_depths,
    zero_point,
)
from resid_theory.activations import ACTIVATIONS

FEW = dict(dataset="digits", samples=40)
CLOSE = 1e-12  # eigenvalues of matrices of order one
USUAL = dict(loss="square", pre="identity", mid="identity", post="identity")

figure_3 = functools.partial(
    norms.compute_figure_3, **FEW, depths=[4], rate=0.3, epochs=3, scale=0.01, seed=0
)
figure_4 = functools.partial(conditioning.compute_figure_4, **FEW, depths=[2, 4], seeds=1)
figures_5_and_6 = functools.partial(
    curvature.compute_curvature,
    **FEW,
    depth=2,
    rates={"xavier": 0.02, "orthogonal": 0.02, "two_shortcut": 0.1},
    epochs=3,
    checkpoints=3,
    early=2,
    scale=0.01,
    seed=0,
)
figure_7 = functools.partial(
    final_losses.compute_figure_7, **FEW, depths=[6], rates=[-1, 0, 1], seeds=2, epochs=3
)
figure_8 = functools.partial(
    final_losses.compute_figure_8, **FEW, depths=[6], rates=[-1, 0, 1], seeds=2, epochs=3
)


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
        "index": (values < -1e-10 * sizes.max()).mean(),
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
    arrays, data = figure_4(scale=0.1, loss="cross_entropy"), forty()
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
        (weights,) = nets.initial_weights(model, net["init"], 1, 0.01, number, 2, 0)
        rate = figures_5_and_6.keywords["rates"][name]
        for epoch in range(4):
            value, gradient, hessian = by_hand(model, weights, loss, data)
            assert arrays[f"{name}.gradient"][epoch] == pytest.approx(float(gradient.norm()))
            for key, exact in {"loss": float(value), **read(hessian())}.items():
                for found in arrays[f"{name}.{key}"][arrays[f"{name}.epoch"] == epoch]:
                    assert found == pytest.approx(exact, rel=1e-9, abs=CLOSE), (name, key, epoch)
            weights = weights - rate * gradient.view_as(weights)


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
    assert all(each.holds for each in zero_point.judge_figure_11(other))


# -- judges and drawings ---------------------------------------------------------------------------


def test_figures_of_nonlinear_nets_are_drawn_without_an_optimum():
    trained, final = figures_5_and_6(mid="tanh"), figure_7(scale=0.01, mid="tanh")
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
    assert len(figure.axes[0].lines) == len(nets.PLAIN_AND_TWO)


def followed(name, index, gradient=(1.0, 2.0, 1.0)):
    return {
        f"{name}.loss": np.array([4.0, 2.0, 1.0]),
        f"{name}.index": np.array(index),
        f"{name}.epoch": np.array([0, 1, 2]),
        f"{name}.gradient": np.array(gradient),
    }


@pytest.mark.parametrize("other", ["orthogonal", "xavier"])
def test_figure_6_is_judged_against_both_plain_nets(other):
    above, below = [0.6, 0.6, 0.6], [0.4, 0.4, 0.4]
    arrays = {"optimum": np.array(0.5), **followed("two_shortcut", [0.5, 0.5, 0.45])}
    for name in ("orthogonal", "xavier"):
        arrays |= followed(name, below if name == other else above)
    held = {v.criterion: v.holds for v in curvature.judge_figure_6(arrays)}
    failed = f"2-shortcut: index below {nets.LABELS[other]}'s at equal loss"
    assert [criterion for criterion, passed in held.items() if not passed] == [failed]


def test_what_was_not_measured_does_not_hold():
    arrays = {"optimum": np.array(5.0)}  # above all losses: none in common
    for name in nets.PLAIN_AND_TWO:
        arrays |= followed(name, [0.5, 0.5, 0.4], gradient=[0.0] * 50 + [1.0])
    start, *rest = curvature.judge_figure_6(arrays)
    assert start.holds and not any(each.holds for each in rest)
    late = norms.judge_figure_3({"depth": np.array([4, 8]), "norm": np.array([[2.0], [1.0]])})[1]
    assert (late.measured, late.holds) == ("no such epoch", False)
    shallow = {"depth": np.array([3, 6]), "rates": np.array([0.1, 1.0]), "optimum": np.array(0.0)}
    shallow |= {f"{name}.loss": np.ones((2, 2, 1)) for name in nets.NETS}
    named = [v for v in final_losses.judge_figure_7(shallow) if "N ≥" in v.criterion]
    assert len(named) == 2 and not any(each.holds for each in named)


def test_a_depth_that_a_criterion_needs_is_named():
    with pytest.raises(ValueError, match=r"depths: got \[6\], needs 8"):
        final_losses.judge_figure_8(figure_8(scale=0.1))
    arrays = figure_4(scale=0.1, depths=[2, 6])
    with pytest.raises(ValueError, match=r"depths: got \[2, 6\], needs one and its double"):
        conditioning.judge_figure_4(arrays)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compute", "given", "message"),
    [
        (figure_4, {"scale": 0.01, "mid": "softplus"}, "mid: .*needs 0 there.*shifted_softplus"),
        (figure_4, {"scale": 0.01, "post": "tan"}, "post: unknown name 'tan'.*tanh"),
        (figure_4, {"scale": 0.01, "loss": "hinge"}, "loss: unknown name 'hinge'.*'square'"),
        (figures_5_and_6, {"loss": "hinge"}, "loss: unknown name 'hinge'.*'square'"),
        (figures_5_and_6, {"depth": 3}, "depth: got 3, needs a multiple of the block's 2"),
        (figure_7, {"scale": 0.01, "loss": "hinge"}, "loss: unknown name 'hinge'.*'square'"),
        (figure_7, {"scale": 0.01, "depths": [4]}, "depth: got 4, needs a multiple of .* 3"),
    ],
)
def test_what_no_figure_can_show_is_refused(compute, given, message):
    with pytest.raises(ValueError, match=message):
        compute(**given)


# -- Figures 3, 8 and 9 ----------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"loss": "cross_entropy"}, {"mid": "tanh"}])
def test_figures_3_and_8_take_other_losses_and_activations(change):
    assert (figure_3()["norm"] != figure_3(**change)["norm"])[:, -1].all()
    usual, other = figure_8(scale=0.1), figure_8(scale=0.1, **change)
    for name in ("xavier.loss", "two_shortcut.loss"):
        assert np.isfinite(other[name]).all() and (usual[name] != other[name]).all()


def test_figure_9_takes_another_activation():
    given = dict(**FEW, depths=[12], rates=[-2, -2, 1], seeds=1, epochs=3, scale=0.1)
    arrays = shortcut_depths.compute_figure_9(**given, pre="tanh", mid="tanh", loss="cross_entropy")
    assert all(np.isfinite(arrays[f"n{n}.loss"]).all() for n in (1, 2, 3, 4))
