"""Tests of the claims on DiracNets and of their crossings: judges from both sides, equal starts."""

import numpy as np
import pytest
import torch
from torch import nn

from experiments.criteria import decided
from experiments.crossings import noise, precision
from experiments.diracnets import depth, nets, scales, start, tables
from experiments.parts import requests_of
from experiments.registry import CLAIMS
from resid_theory.identity import layer_identity, trained_weight

SEEDS = np.linspace(-0.2, 0.2, 6)  # points that seeds differ by


def outcomes(criteria):
    return [criterion.outcome for criterion in decided(criteria)]


def errors(*accuracies, spread=1.0):
    """Test errors (nets, seeds) around accuracies in points; nets differ by seed differently."""
    noise_ = [np.roll(SEEDS, row) * spread for row in range(len(accuracies))]
    return 1 - (np.array(accuracies)[:, None] + np.array(noise_)) / 100


# Initial weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["normal", "orthogonal"])
def test_a_law_of_all_weights_spares_none(law):
    (made,) = nets.trainings_of(
        "identity_inside",
        {**nets.QUICK, "seeds": [3]},
        depth=10,
        initial={"law": law, "scale": 0.01},
    )
    layers = [m for m in made.start().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert {layer_identity(layer) is None for layer in layers} == {True, False}
    for layer in layers:
        v = trained_weight(layer).detach().flatten(1).double()
        if law == "orthogonal":
            values = torch.linalg.svdvals(v)
            torch.testing.assert_close(values, torch.full_like(values, 0.01), rtol=1e-4, atol=0.0)
        else:  # five standard errors
            assert abs(v.std().item() / 0.01 - 1) < 5 / (2 * v.numel()) ** 0.5


def test_equation_4_starts_from_the_weights_of_equation_5():
    given = {**nets.QUICK, "seeds": [3]}
    alike = {"law": "filters", "scale": scales.BRANCH}
    (five,) = nets.trainings_of("dirac", given, depth=10)
    (four,) = nets.trainings_of("equation_4", given, depth=10, initial=alike)
    layers = [dict(made.start().named_modules()) for made in (five, four)]
    assert "b" in dict(layer_identity(layers[0]["conv1"]).named_parameters())
    assert "b" not in dict(layer_identity(layers[1]["conv1"]).named_parameters())
    for name, layer in layers[0].items():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            torch.testing.assert_close(layers[1][name].weight, layer.weight, rtol=1e-5, atol=1e-7)


# Judges ------------------------------------------------------------------------------------------


def section_3_4(*, small=0.0, one=-5.0, orthogonal=0.0, zero=2.3026):
    stds, gains = [0.0, 1e-8, start.REFERENCE, 1.0], [1.0]
    return {
        "std": np.array(stds),
        "gain": np.array(gains),
        "std_error": errors(10.0, 95 + small, 95.0, 95 + one),
        "gain_error": errors(95 + orthogonal),
        "std_risk": np.array([[zero] * 6] + [[0.1] * 6] * 3),
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "holds holds holds holds holds"),
        ({"small": -3.0}, "fails holds holds holds holds"),
        ({"small": -1.0}, "undecided holds holds holds holds"),
        ({"one": 0.5}, "holds holds fails fails holds"),
        ({"orthogonal": -6.0}, "holds fails holds fails holds"),
        ({"zero": 1.6}, "holds holds holds holds fails"),
    ],
    ids=str,
)
def test_section_3_4_is_judged_by_equivalence(changes, expected):
    assert outcomes(start.judge_section_3_4(section_3_4(**changes))) == expected.split()


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ((0.0, 0.0, 0.3), "holds holds holds"),
        ((1e-15, 1e-12, 0.3), "fails holds holds"),
        ((0.0, 1e-3, 1e-3), "holds fails holds"),
        ((0.0, 0.0, 0.0), "holds holds fails"),
    ],
)
def test_the_norm_of_v_is_judged_as_a_size_of_steps(gaps, expected):
    arrays = {
        "losses": np.ones((1, 4, 2)),
        "gaps": np.array([[0.0, *gaps]]),
        "first_gaps": np.array([[0.0, 0.0, 1e-16, 1e-16]]),
    }
    assert outcomes(start.judge_first_scale(arrays)) == ["holds", *expected.split()]


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [((0.0, 1e-15, 1e-15), "holds"), ((1e-16, 0, 0), "fails"), ((0, 1e-9, 0), "fails"),
     ((0, 0, 1e-9), "fails")],
)  # fmt: skip
def test_first_weights_do_not_depend_on_the_scale_of_v(gaps, expected):
    arrays = {"losses": np.ones((1, 4, 2)), "gaps": np.zeros((1, 4))}
    arrays["first_gaps"] = np.array([[0.0, *gaps]])
    assert outcomes(start.judge_first_scale(arrays))[0] == expected


@pytest.mark.parametrize(
    ("worse", "expected"), [(0.0, "holds"), (-5.0, "holds"), (1.0, "undecided"), (5.0, "fails")]
)
def test_a_shallow_net_without_normalization_may_be_worse_by_a_point(worse, expected):
    noise = np.array([-1.0, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0])
    errors = np.stack([np.full(12, 5.0), 5 + worse + noise]) / 100
    arrays = {"depth": np.array(10), "test_error": errors, "risk": np.ones((2, 12, 8))}
    (found,) = scales.judge_section_2_shallow(arrays)
    assert outcomes([found]) == [expected]


def figure_1(plain, dirac, residual, wide):
    depths = (10, 34, 52, 100)
    rows = [(0, d, 1) for d in depths] + [(1, d, 1) for d in depths]
    rows += [(2, 10, 1), (2, 34, 1), (1, 10, 2)]
    kind, depth_, width = np.array(rows).T
    found = errors(*plain, *dirac, *residual, wide)
    return {
        "kind": kind, "depth": depth_, "width": width, "test_error": found, "epochs": np.array(200)
    }  # fmt: skip


def test_figure_1_holds_for_the_papers_numbers_and_fails_where_accuracy_falls_with_depth():
    paper = figure_1((90, 91.2, 87, 40), (90, 92.8, 92.7, 92.4), (91, 93), 92)
    assert set(outcomes(depth.judge_figure_1(paper))) == {"holds"}
    ours = figure_1((37.6, 18.9, 11.2, 10), (39, 33, 28, 22), (36, 34), 41)
    fails = [c.criterion for c in decided(depth.judge_figure_1(ours)) if c.outcome == "fails"]
    assert fails == [
        "Dirac: test accuracy at depth 34 less that at 10, points",
        "residual: test accuracy at depth 34 less that at 10, points",
        "Dirac: test accuracy at depth 34 less that at 100, points",
        "loss of test accuracy from depth 34 to 100, plain less Dirac, points",
    ]


@pytest.mark.parametrize(
    ("plain", "dirac", "expected"),
    [
        (2.3, 1.5, "holds holds holds"),
        (2.3, 2.3, "holds holds fails"),
        (1.5, 1.5, "holds fails holds"),
        (2.2, 2.2, "holds undecided undecided"),
    ],
)
def test_section_3_1_asks_which_nets_start(plain, dirac, expected):
    risk = np.array([plain, dirac])[:, None, None, None] + SEEDS[:, None] / 10
    arrays = {"depth": np.array([100]), "risk": risk, "test_error": errors(10, 50)[:, None]}
    assert outcomes(depth.judge_section_3_1(arrays)) == expected.split()


@pytest.mark.parametrize(
    ("judge", "arrays", "expected"),
    [
        (depth.judge_section_3_2, {"depth": 10, "width": np.array([1, 2]),
                                   "test_error": errors(90, 91)}, "holds"),
        (depth.judge_section_3_2, {"depth": 10, "width": np.array([1, 2]),
                                   "test_error": errors(90, 89)}, "fails"),
        (scales.judge_section_2, {"depth": 34, "test_error": errors(70, 50),
                                  "risk": errors(70, 50)[..., None]}, "holds holds"),
        (scales.judge_section_2, {"depth": 34, "test_error": errors(50, 70),
                                  "risk": errors(50, 70)[..., None]}, "fails fails"),
        (scales.judge_section_2, {"depth": 34, "test_error": errors(50, 50),
                                  "risk": errors(50, 50)[..., None]}, "undecided undecided"),
        (tables.judge_table_2, {"data": "cifar10", "width": np.array([5, 10]),
                                "test_error": 1 - errors(5.1, 4.8)}, "holds holds holds"),
        (tables.judge_table_2, {"data": "cifar10", "width": np.array([5, 10]),
                                "test_error": 1 - errors(6.1, 6.8)}, "fails fails fails"),
    ],
)  # fmt: skip
def test_paired_seeds_decide(judge, arrays, expected):
    assert outcomes(judge(arrays)) == expected.split()


def test_scales_are_judged_by_layer_and_by_plane():
    # (seeds, a or b, planes of two layers)
    whole = np.full((6, 2, 200), 0.5) + SEEDS[:, None, None] / 10
    few, layer = whole.copy(), whole.copy()
    few[:, 1, [0, 199]] = 0.001
    layer[:, 0, :100] = 0.001 + SEEDS[:, None] / 1000
    for found, expected in (
        (whole, "holds holds"),
        (few, "holds holds"),
        (layer, "fails fails"),
        (whole[:1], "undecided undecided"),  # one net, however many layers
    ):
        arrays = {"scales": found, "planes": np.array([100, 100])}
        assert outcomes(scales.judge_section_3_3(arrays)) == expected.split()


@pytest.mark.parametrize(
    ("groups", "within", "epochs", "expected"),
    [
        ((1.0, 1.5, 2.0), 0.1, 200, "holds"),
        ((2.0, 1.5, 1.0), 0.1, 200, "holds"),
        ((1.0, 1.0, 1.0), 0.1, 200, "fails"),
        ((1.0, 1.5, 2.0), 0.1, 6, "undecided"),
    ],
)
def test_groups_differ_by_more_than_their_layers(groups, within, epochs, expected):
    layers = np.repeat(np.log(groups), 4) + within * np.tile([-1, 1, 1, -1], 3)
    ratio = np.exp(layers * (1 + SEEDS[:, None]) + 1e-2 * np.sin(np.arange(72).reshape(6, 12)))
    sizes = np.stack([ratio, np.ones_like(ratio)], 1)
    arrays = {"sizes": sizes, "means": np.zeros((6, 2, 12, epochs + 1))}
    assert outcomes(scales.judge_figure_2(arrays)) == [expected]
    one = {name: a[:1] for name, a in arrays.items()}
    assert outcomes(scales.judge_figure_2(one)) == ["undecided"]


@pytest.mark.parametrize(("sign", "outcome"), [(1, "holds"), (-1, "fails")])
def test_noise_is_judged_over_nets(sign, outcome):
    arrays, source = {"samples": np.array(8)}, np.random.default_rng(0)
    for name in noise.CHAINS:
        cushion = source.uniform(0.1, 1.0, 20)
        predicted = (1 / cushion) * np.exp(0.1 * source.standard_normal(20))
        arrays |= {
            f"trained.{name}.layer": cushion,
            f"trained.{name}.interlayer": cushion,
            f"trained.{name}.terms": cushion**-4,
            f"trained.{name}.contraction": np.array(1.0),
            f"trained.{name}.weight_error": predicted**sign,
            f"trained.{name}.output_error": predicted[:-1] ** sign,
            f"trained.{name}.smoothness": np.ones(19),
        }
    assert outcomes(noise.judge_noise(arrays))[:3] == [outcome] * 3
    before = {key.replace("trained", "initial"): a for key, a in arrays.items()}
    assert noise.judge_noise(before | arrays) == noise.judge_noise(arrays)


# Precision of trainings --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gap", "same", "expected"),
    [(0.2, 0, ["holds", "holds"]), (3.0, 0, ["fails", "holds"]), (-3.0, 0, ["fails", "holds"]),
     (0.0, 1, ["holds", "undecided"])],
)  # fmt: skip
def test_precisions_are_compared_where_they_differ(gap, same, expected):
    found = errors(90.0 - gap, 90.0, spread=0.5)[:, :, None]
    arrays = {"dirac.test_error": found, "dirac.same": np.arange(len(SEEDS)) < same}
    assert outcomes(precision.judge_precision(arrays)) == expected


@pytest.mark.parametrize("scale", ["single", "paper"])
def test_controls_of_the_precision_differ_from_trainings_of_other_claims_in_it_alone(scale):
    asked = [request.part for request in requests_of(CLAIMS["crossings/precision"], scale)]
    coarse = [part for part in asked if part.recipe.precision != "float32"]
    controls = [part for part in asked if part.recipe.precision == "float32"]
    assert {part.recipe.precision for part in coarse} == {"tf32", "bf16"}
    assert [part.recipe.change(precision="float32") for part in coarse] == [
        part.recipe for part in controls
    ]
    assert [part.architecture for part in coarse] == [part.architecture for part in controls]
    others = [
        claim for claim in CLAIMS.values() if claim.compute is not precision.compute_precision
    ]
    known = {r.part.key for o in others if "paper" in o.settings for r in requests_of(o, "paper")}
    assert {part.key for part in coarse if part.seed == 0} <= known
