"""Trainings on a GPU: the real one with ``--device cuda``, otherwise the pretended one."""

import warnings
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from fake_cuda import host_waits
from small_trainings import RECIPE, Interrupted, Poison, conv_net, difference, fit, images, left
from torch import nn

import resid_theory as rt
from resid_theory.runtime import store
from resid_theory.training import DivergenceError, epochs, loop
from resid_theory.training.checkpoint import Folder
from resid_theory.training.device_dataset import DeviceDataset

SINGLE, TF32 = RECIPE.change(precision="float32"), RECIPE.change(precision="tf32")
HALF = RECIPE.change(precision="bf16", channels_last=True)
GRAPH = HALF.change(compile="graph")


def on_images(count, noise, recipe, **settings):
    nets = [conv_net(seed, noise=noise) for seed in range(count)]
    return fit(nets, images(), recipe, seed=range(3, 3 + count), test=images(20), **settings)


def on_digits(net, recipe, **settings):
    digits = rt.load_images("digits", samples=100, size=8)
    return fit(net(generator=0), digits, recipe, test=digits.first(20), **settings)


def residual(generator):
    return rt.simplified_net(5, identity="residual", generator=generator)


def dirac():
    torch.manual_seed(0)
    inside = [rt.identity.with_identity(nn.Conv2d(6, 6, 3, padding=1), "dirac") for _ in range(2)]
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), *inside, *conv_net()[1:])


TRAININGS = {
    "half": lambda **how: on_images(1, 0.2, HALF, **how),
    "turns": lambda **how: on_images(2, 0.2, TF32, **how),
    "decay": lambda **how: on_digits(residual, SINGLE, correction=rt.IdDecay, **how),
    "graph": lambda **how: on_images(2, 0.2, GRAPH, **how),
    "graph of dirac": lambda **how: fit(
        dirac(), images(), GRAPH.change(padding="reflect"), test=images(20), **how
    ),
}


def test_an_epoch_is_cropped_at_once_where_an_eighth_of_the_memory_holds_it(cuda, monkeypatch):
    samples = DeviceDataset("data", images(), conv_net().to(cuda), RECIPE)
    bytes_of_all, found = 100 * 8 * 8, []
    for free, at_once in ((8 * bytes_of_all + 8, True), (8 * bytes_of_all, False)):
        monkeypatch.setattr(epochs, "available_bytes", lambda _, free=free: free)
        epoch = epochs.Epochs(samples, RECIPE, cuda).draw(0, 0)
        assert (epoch._images is not None) == at_once
        found.append(epoch.batch(slice(90, 100)))
    assert all(torch.equal(one, other) for one, other in zip(*(f[:3] for f in found), strict=True))


@contextmanager
def counted_waits(device):
    """A list, filled at the end with what waits for the GPU inside."""
    if torch.cuda.get_device_name(device) == "pretended":
        with host_waits() as found:
            yield found
        return
    found = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found += [str(one.message) for one in caught if "synchroniz" in str(one.message)]


@pytest.mark.parametrize("name", TRAININGS)
def test_no_step_waits_and_resumed_is_bit_identical(tmp_path, cuda, monkeypatch, name):
    waits, advance = [], loop.Session._advance

    def counting(session, position):
        with counted_waits(cuda) as found:
            advance(session, position)
        waits.append(found)

    def go(folder, stop=None):
        often = 0 if name == "graph" else 1e9
        how = {"device": cuda, "out": tmp_path / folder, "save_seconds": often}
        return TRAININGS[name](**how, stop=stop)

    def kill(step):
        if step == 8:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(loop.Session, "_advance", counting)
        straight = go("straight")
    recorded = (0, 3) if "graph" in name else ()  # of a batch, and of the smaller last one
    assert [bool(found) for found in waits] == [step in recorded for step in range(12)]
    assert straight.column("test_error")[-1] < 1
    assert all(tensor.is_cuda for net in straight.nets for tensor in net.state_dict().values())
    assert not go("stopped", lambda step: step >= 5).finished
    with pytest.raises(Interrupted):
        go("stopped", kill)
    stopped = go("stopped")
    assert not [note for run in (straight, stopped) for note in run.notes if "graph" in note]
    assert left(tmp_path / "stopped") == left(tmp_path / "straight")
    assert stopped.metrics == straight.metrics
    assert torch.equal(stopped.first_losses, straight.first_losses)
    assert max(map(difference, stopped.nets, straight.nets)) == 0


@cache
def on_the_cpu():
    return on_images(1, 0.0, RECIPE).nets[0]


@pytest.mark.parametrize(
    # About ten times the spacing of numbers: twelve steps add up some of their errors.
    ("recipe", "bound"),
    [(SINGLE, 1e-5), (TF32, 1e-2), (HALF, 2e-2)],
    ids=["float32", "tf32", "half"],
)
def test_the_training_is_that_of_the_cpu(cuda, recipe, bound):
    (there,), here = on_images(1, 0.0, recipe, device=cuda).nets, on_the_cpu()
    assert next(there.parameters()).dtype == torch.float32
    assert difference(there.to("cpu").double(), here) < bound


@pytest.mark.parametrize("compile", ["none", "graph"])
def test_a_number_that_is_not_finite_is_found_with_its_step_and_net(cuda, tmp_path, compile):
    nets = [conv_net(seed, norm=False) for seed in range(3)]
    with torch.no_grad():
        nets[1][0].bias[2] = torch.nan
    recipe = SINGLE.change(compile=compile)
    with pytest.raises(DivergenceError) as caught:
        fit(nets, recipe=recipe, device=cuda, out=tmp_path)
    found = caught.value.step, caught.value.net, caught.value.tensor
    assert found == (1, 1, "the loss")  # the GPU has gone on since
    assert store.read_checkpoint(tmp_path / "checkpoint.json")[1]["step"] == 0


@pytest.mark.parametrize(("save_seconds", "saved"), [(0, 5), (1e9, 0)], ids=["often", "rarely"])
def test_losses_are_looked_at_once_an_epoch_and_before_they_are_saved(
    cuda, tmp_path, save_seconds, saved
):
    net = nn.Sequential(nn.Flatten(), Poison(torch.nan, 6), nn.Linear(64, 10))
    with pytest.raises(DivergenceError) as caught:
        fit(net, recipe=SINGLE, device=cuda, out=tmp_path, save_seconds=save_seconds)
    assert (caught.value.step, caught.value.tensor) == (6, "the loss")
    assert store.read_checkpoint(tmp_path / "checkpoint.json")[1]["step"] == saved


def test_a_checkpoint_that_a_thread_cannot_write_ends_the_training(cuda, tmp_path, monkeypatch):
    def full(folder, tensors, about):
        raise OSError(28, "no space")

    monkeypatch.setattr(Folder, "save", full)
    with pytest.raises(OSError, match="no space"):
        fit(conv_net(), recipe=SINGLE, device=cuda, out=tmp_path)


class Moody(nn.Module):
    """Computes with what the host knows of the GPU, or of its calls."""

    calls = 0

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        self.calls += 1
        return x * (float(x.sum()) if self.kind == "waits" else self.calls)


@pytest.mark.parametrize(
    ("kind", "says"), [("waits", "RuntimeError: "), ("counts", "losses of replayed steps differ")]
)
def test_a_step_that_cannot_be_replayed_is_taken_as_it_is_and_said(cuda, kind, says):
    net = nn.Sequential(nn.Flatten(), Moody(kind), nn.Linear(64, 10))
    run = fit(net, recipe=SINGLE.change(compile="graph", lr=1e-9), device=cuda)
    assert run.finished and "are not replayed as a CUDA graph" in run.notes[-1]
    assert says in run.notes[-1]


def test_a_replayed_training_is_that_of_its_steps(cuda):
    # Rates that change, two sizes of batches, dropout, running statistics, momentum.
    runs = [on_images(2, 0.2, recipe, device=cuda) for recipe in (HALF, GRAPH)]
    assert runs[0].metrics == runs[1].metrics
    assert max(map(difference, runs[0].nets, runs[1].nets)) == 0
