"""Nets that claims train: one folder for each training, taken up again, and their measure."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

import resid_theory as rt
from experiments import trainings
from experiments.demystifying_resnet import preactivation
from experiments.demystifying_resnet.preactivation import mean_norm

ARCHITECTURE = {"builder": "simplified_net", "arguments": {"depth": 5, "generator": 0}}
RECIPE = rt.Recipe(epochs=1, batch=8, lr=0.01, milestones=(), augmentation="none")
DATA = {"data": "digits", "samples": 16, "pooled": 4}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "TRAININGS", tmp_path)
    return tmp_path


def test_a_finished_training_is_not_done_again(folder, monkeypatch):
    first = trainings.trained(ARCHITECTURE, RECIPE, 0, **DATA)
    # A step would fail now.
    monkeypatch.setattr(torch.optim.SGD, "step", None)
    again = trainings.trained(ARCHITECTURE, RECIPE, 0, **DATA)
    assert again.metrics == first.metrics
    for one, other in zip(first.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"recipe": RECIPE.change(lr=0.02)},
        {"architecture": {"builder": "simplified_net", "arguments": {"depth": 5, "generator": 1}}},
        {"samples": 8},
        {"pooled": 8},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_training_has_another_folder(folder, changes):
    usual = {"architecture": ARCHITECTURE, "recipe": RECIPE, "seed": 0, **DATA}
    for given in (usual, {**usual, **changes}):
        trainings.trained(**given)
    assert len(list(folder.iterdir())) == 2


def test_nothing_is_kept_if_not_asked_for(folder):
    run = trainings.trained(ARCHITECTURE, RECIPE, 0, **DATA, keep=False)
    assert run.out is None and not list(folder.iterdir())


def test_evaluation_is_that_of_the_whole_set(generator):
    net = rt.full_net(8).train()
    pixels = torch.randint(256, (7, 3, 4, 4), generator=generator, dtype=torch.uint8)
    images = rt.Images(pixels=pixels, labels=torch.tensor([0, 1, 2, 3, 4, 5, 6]))
    loss, error = trainings.evaluated(net, images, batch=3)
    output = net.eval()(images.inputs(pixels, torch.float64))
    assert abs(loss - F.cross_entropy(output, images.labels).item()) < 1e-12
    assert error == (output.argmax(1) != images.labels).double().mean().item()


# -- pre-activation nets on images -----------------------------------------------------------------

TINY = {"seeds": [0], "epochs": 1, "data": "digits", "samples": 32, "size": 8, "batch": 16}


def test_mean_norm_is_that_of_the_kernels_inside_blocks():
    net = rt.preresnet(10, generator=0)
    kernels = [p for n, p in net.named_parameters() if n.endswith("weight") and "branch" in n]
    norms = [p.detach().norm() for p in kernels if p.dim() == 4 and p.shape[-1] == 3]
    assert len(norms) == 6
    assert mean_norm(net)["mean_norm"] == pytest.approx(float(sum(norms) / 6), rel=1e-6)


def test_figures_of_pre_activation_nets_run_end_to_end():
    norms = preactivation.compute_figure_2(depths=[10, 16], training=TINY)
    assert norms["norm"].shape == (2, 1, 2) and norms["loss"].shape == (2, 1, 1)
    assert (norms["norm"][..., 0] != norms["norm"][..., 1]).all()
    losses = preactivation.compute_figure_9(depths=[40], training=TINY)
    assert losses["loss"].shape == (4, 1, 1) and np.isfinite(losses["loss"]).all()
    for arrays, figure in ((norms, "2"), (losses, "9")):
        drawn = Figure()
        getattr(preactivation, f"draw_figure_{figure}")(drawn, arrays)
        assert drawn.axes
        assert getattr(preactivation, f"judge_figure_{figure}")(arrays)


def test_figure_2_is_judged_by_the_end_and_by_four_fifths_of_the_epochs():
    falling = np.array([[[8.0] + [8.0] * 5], [[8.0] + [7.0] * 5]])
    once, twice = falling.copy(), falling.copy()
    once[1, 0, 1] = twice[1, 0, 1:3] = 9.0
    answers = [
        [v.passed for v in preactivation.judge_figure_2({"depth": [10, 22], "norm": a})]
        for a in (falling, once, twice, falling[::-1])
    ]
    assert answers == [[True, True], [True, True], [True, False], [False, False]]


@pytest.mark.parametrize(
    ("loss", "passed"),
    [
        ([[3, 3], [2, 1], [3, 3], [4, 4]], [True, True, True]),
        ([[3, 3], [2, 2], [3, 3], [4, 4]], [False, True, True]),
        ([[3, 2], [2, 1], [3, 3], [4, 4]], [True, False, True]),
        ([[0.5, 0.5], [2, 1], [3, 3], [4, 4]], [True, True, False]),
    ],
)
def test_figure_9_asks_that_only_shortcut_depth_2_gains(loss, passed):
    arrays = {
        "depth": np.array([40, 112]),
        "shortcut_depth": np.arange(1, 5),
        "loss": np.array(loss, dtype=float)[..., None],
        "parameters": np.full((4, 2), 7),
    }
    assert [v.passed for v in preactivation.judge_figure_9(arrays)] == [True, *passed]
