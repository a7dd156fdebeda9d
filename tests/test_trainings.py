"""Nets that claims train: one folder for each training, taken up again, and their measure."""

import pytest
import torch
import torch.nn.functional as F

import resid_theory as rt
from experiments import trainings

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
