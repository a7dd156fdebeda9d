"""Trainings on a GPU: the real one with ``--device cuda``, otherwise the pretended one."""

import warnings
from contextlib import contextmanager

import pytest
import torch
from fake_cuda import host_waits
from small_trainings import RECIPE, Interrupted, conv_net, difference, fit, images, left

import resid_theory as rt
from resid_theory.runtime import store
from resid_theory.training import DivergenceError, loop

SINGLE, TF32 = RECIPE.change(precision="float32"), RECIPE.change(precision="tf32")
HALF = RECIPE.change(precision="bf16", channels_last=True)


def on_images(count, noise, recipe, **settings):
    nets = [conv_net(seed, noise=noise) for seed in range(count)]
    return fit(nets, images(), recipe, seed=range(3, 3 + count), test=images(20), **settings)


def on_digits(net, recipe, **settings):
    digits = rt.load_images("digits", samples=100, size=8)
    return fit(net(generator=0), digits, recipe, test=digits.first(20), **settings)


def residual(generator):
    return rt.simplified_net(5, identity="residual", generator=generator)


def dirac(generator):
    return rt.diracnet(10, generator=generator)


TRAININGS = {
    "half": lambda **how: on_images(1, 0.2, HALF, **how),
    "stacked": lambda **how: on_images(2, 0.2, TF32, **how),
    "turns": lambda **how: on_images(2, 0.2, SINGLE, stacked=False, **how),
    "dirac": lambda **how: on_digits(dirac, HALF, **how),
    "decay": lambda **how: on_digits(residual, SINGLE, correction=rt.IdDecay, **how),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_resumed_is_bit_identical(tmp_path, cuda, name):
    def go(folder, stop=None):
        return TRAININGS[name](device=cuda, out=tmp_path / folder, stop=stop)

    def kill(step):
        if step == 8:
            raise Interrupted

    straight = go("straight")
    assert straight.unstacked is None and straight.column("test_error")[-1] < 1
    assert all(tensor.is_cuda for net in straight.nets for tensor in net.state_dict().values())
    assert not go("stopped", lambda step: step == 5).finished
    with pytest.raises(Interrupted):
        go("stopped", kill)
    assert not go("stopped", lambda step: step == 7).finished
    stopped = go("stopped")
    assert left(tmp_path / "stopped") == left(tmp_path / "straight")
    assert stopped.metrics == straight.metrics
    assert torch.equal(stopped.first_losses, straight.first_losses)
    assert max(map(difference, stopped.nets, straight.nets)) == 0


@pytest.mark.parametrize(
    # About ten times the spacing of numbers: twelve steps add up some of their errors.
    ("recipe", "bound"),
    [(SINGLE, 1e-5), (TF32, 1e-2), (HALF, 2e-2)],
    ids=["float32", "tf32", "half"],
)
def test_the_training_is_that_of_the_cpu(cuda, recipe, bound):
    (there,), (here,) = on_images(1, 0.0, recipe, device=cuda).nets, on_images(1, 0.0, RECIPE).nets
    assert next(there.parameters()).dtype == torch.float32
    assert difference(there.to("cpu").double(), here) < bound


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "turns"])
def test_a_number_that_is_not_finite_is_found_with_its_step_and_net(cuda, tmp_path, stacked):
    nets = [conv_net(seed, norm=False) for seed in range(3)]
    with torch.no_grad():
        nets[1][0].bias[2] = torch.nan
    with pytest.raises(DivergenceError) as caught:
        fit(nets, recipe=SINGLE, device=cuda, stacked=stacked, out=tmp_path)
    found = caught.value.step, caught.value.net, caught.value.tensor
    assert found == (1, 1, "the loss")  # the GPU has gone on since
    assert store.read_checkpoint(tmp_path / "checkpoint.json")[1]["step"] == 0


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
def test_a_step_never_waits_for_the_gpu(cuda, monkeypatch, name):
    waits, advance = [], loop.Session._advance

    def counting(session, plans, position):
        with counted_waits(cuda) as found:
            advance(session, plans, position)
        waits.append(found)

    monkeypatch.setattr(loop.Session, "_advance", counting)
    TRAININGS[name](device=cuda)
    assert waits == [[]] * 12
