"""Training: the papers' descent step by step, several nets at once, kills, and clear refusals."""

import errno
import hashlib
import json
import os
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from all_pairs import all_pairs
from small_trainings import (
    RECIPE,
    Greedy,
    Interrupted,
    Poison,
    conv_net,
    difference,
    fit,
    images,
    interrupt_at,
    left,
)
from torch import nn

import resid_theory as rt
from benchmarks.training import Operations
from resid_theory import training
from resid_theory.runtime import resources, store
from resid_theory.training import DivergenceError, Recipe, loop


def by_hand(net, recipe, seed, data):
    """The papers' descent from its formula: v := μv + g + λθ, θ := θ − ηv (Nesterov: η(g + μv))."""
    # The loop's own batches, taken before training: what is tested is what is done with them.
    epochs = make_epochs(net, recipe, data)
    velocity = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for step in range(recipe.epochs * epochs.steps):
        epoch, position = divmod(step, epochs.steps)
        rows = slice(position * recipe.batch, (position + 1) * recipe.batch)
        x, y, *_ = epochs.draw(seed, epoch).batch(rows)
        loss = nn.functional.cross_entropy(net(x), y)
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        rate = recipe.lr * recipe.factor ** sum(epoch >= at for at in recipe.milestones)
        if step < recipe.warmup * epochs.steps:
            rate *= (step + 1) / (recipe.warmup * epochs.steps)
        with torch.no_grad():
            for (name, p), g in zip(net.named_parameters(), gradients, strict=True):
                decays = recipe.decay == "all" or p.dim() > 1
                g = g + recipe.weight_decay * p * decays
                velocity[name] = recipe.momentum * velocity[name] + g
                v = velocity[name]
                p -= rate * (g + recipe.momentum * v if recipe.nesterov else v)
    return net


def make_epochs(net, recipe, data):
    device = torch.device("cpu")
    samples = training.device_dataset.DeviceDataset("data", data, net, recipe)
    return training.epochs.Epochs(samples, recipe, device)


class Scale(nn.Module):
    """A parameter without an axis."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.factor * x


@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": 0.0}, {"nesterov": True}, {"weight_decay": 0.1},
     {"weight_decay": 0.1, "decay": "multi_axis"}, {"augmentation": "none"},
     {"padding": "reflect", "factor": 0.2, "milestones": (1, 2), "warmup": 0}],
    ids=["momentum", "plain", "nesterov", "decay", "multi_axis", "as_is", "dirac"],
)  # fmt: skip
def test_training_is_the_descent_of_its_formula(settings):
    recipe = RECIPE.change(**settings)
    nets = [nn.Sequential(*conv_net(), Scale()) for _ in range(2)]
    fit(nets[0], recipe=recipe, seed=5)
    assert difference(nets[0], by_hand(nets[1], recipe, 5, images())) < 1e-13


def test_dirac_weights_cost_as_much_in_any_depth():
    def passes(depth, identity):
        net = rt.diracnet(depth, identity=identity)
        group = training.step.NetGroup([net], RECIPE, torch.device("cpu"))
        with Operations() as found:
            group.gradients([(torch.ones(2, 3, 8, 8), torch.tensor([0, 1]), None, None)])
        return found.count

    extra = [passes(depth, "dirac") - passes(depth, "plain") for depth in (10, 16)]
    assert extra[0] == extra[1] < 5 * 50  # five shapes


def test_every_image_is_seen_once_an_epoch_and_orders_differ():
    epochs = make_epochs(conv_net(), RECIPE, images())
    orders = [epochs.draw(*which).order for which in [(0, 0), (0, 1), (1, 0), (0, 0)]]
    assert all(sorted(order.tolist()) == list(range(100)) for order in orders)
    assert torch.equal(orders[0], orders[3])
    assert len({tuple(order.tolist()) for order in orders}) == 3
    plain = make_epochs(conv_net(), RECIPE.change(augmentation="none"), images())
    assert torch.equal(plain.draw(0, 0).order, orders[0])  # no matter how they are augmented


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_order_and_crops_are_those_of_the_seed_that_mixes_seed_and_epoch(padding):
    recipe, data = RECIPE.change(pad=2, padding=padding), images()
    seed = int.from_bytes(hashlib.sha256(b"3 2").digest()[:8], "big") // 2
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(100, generator=generator)
    crops = rt.data.draw_crops(100, pad=2, generator=generator)
    cut = rt.data.augment(data.pixels[order], crops, pad=2, padding=padding)
    rows = slice(32, 64)
    x, y, *_ = make_epochs(conv_net(), recipe, data).draw(3, 2).batch(rows)
    assert torch.equal(x, data.inputs(cut[rows], torch.float64))
    assert torch.equal(y, data.labels[order[rows]])


def test_the_digest_of_data_is_that_of_all_that_they_hold():
    def digest(data):
        return make_epochs(conv_net(), RECIPE.change(augmentation="none"), data).data.digest

    data = images()
    x, y = data.inputs(data.pixels, torch.float64), data.labels
    usual = [digest(data), digest((x, y))]
    assert digest(replace(data, labels=y.int())) == usual[0] and digest((x, y.int())) == usual[1]
    others = [replace(data, mean=(0.6,)), replace(data, std=(0.4,)), (x + 1, y), (x, y.roll(1))]
    others += [rt.data.Data.of((x, y), sample_weight=torch.arange(100) + k) for k in (1, 2)]
    assert len({*usual, *map(digest, others)}) == 8


@pytest.mark.parametrize(
    ("recipe", "step", "expected"),
    [(training.NOISE_STABILITY, 99, 0.02), (training.NOISE_STABILITY, 100, 0.002),
     (training.NOISE_STABILITY_BN, 150, 0.001), (training.DIRACNETS, 59, 0.1),
     (training.DIRACNETS, 60, 0.02), (training.DIRACNETS, 160, 0.0008),
     (training.DIRACNETS_IMAGENET, 90, 1e-4), (RECIPE, 0, 0.05)],
    ids=str,
)  # fmt: skip
def test_rates_of_the_papers(recipe, step, expected):
    assert recipe.rate(step, 1) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("recipe", "epochs", "batch", "decay", "what"),
    [(training.NOISE_STABILITY, 200, 128, 1e-4, "all"),
     (training.NOISE_STABILITY_BN, 200, 128, 1e-4, "all"),
     (training.DIRACNETS, 200, 128, 5e-4, "multi_axis"),
     (training.DIRACNETS_IMAGENET, 100, 256, 1e-4, "multi_axis")],
    ids=["noise", "noise_bn", "dirac", "imagenet"],
)  # fmt: skip
def test_settings_of_the_papers(recipe, epochs, batch, decay, what):
    assert (recipe.epochs, recipe.batch, recipe.weight_decay) == (epochs, batch, decay)
    assert (recipe.momentum, recipe.nesterov, recipe.warmup) == (0.9, False, 0)
    assert (recipe.decay, recipe.augmentation, recipe.pad) == (what, "crop_flip", 4)
    assert (recipe.precision, recipe.channels_last, recipe.compile) == ("float32", False, "none")


@pytest.mark.parametrize(
    ("epochs", "milestones", "warmup"),
    [(20, (6, 12, 16), 3), (2, (1, 1, 2), 0), (1, (1, 1, 1), 0), (400, (120, 240, 320), 60)],
)
def test_a_scaled_schedule_keeps_its_shares(epochs, milestones, warmup):
    scaled = training.DIRACNETS.change(warmup=30).scaled(epochs)
    assert (scaled.epochs, scaled.milestones, scaled.warmup) == (epochs, milestones, warmup)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "unknown name 'epoch'; did you mean 'epochs'"),
        ({"epochs": 0}, "epochs: got 0, needs at least 1"),
        ({"batch": 1.5}, "batch: got 1.5, needs a whole number"),
        ({"lr": 0}, "lr: got 0, needs a finite number above 0"),
        ({"momentum": 1.0}, r"momentum: got 1.0, needs a number in \[0, 1\)"),
        ({"nesterov": 1}, "nesterov: got 1, needs True or False"),
        ({"nesterov": True, "momentum": 0}, "needs momentum above 0"),
        ({"weight_decay": -1}, "weight_decay: got -1"),
        ({"decay": "multi-axis"}, "did you mean 'multi_axis'"),
        ({"milestones": (3, 2)}, "needs ascending epochs"),
        ({"milestones": 3}, "milestones: got 3, needs ascending epochs"),
        ({"momentum": "much"}, "momentum: got 'much', needs a number"),
        ({"weight_decay": "small"}, "weight_decay: got 'small', needs a number in"),
        ({"factor": 2}, r"factor: got 2, needs a number in \(0, 1\]"),
        ({"precision": "float16"}, "did you mean 'float"),
        ({"augmentation": "flip"}, "did you mean 'crop_flip'"),
        ({"compile": "yes"}, "compile: unknown name 'yes'"),
        ({"loss": "entropy"}, "did you mean 'cross_entropy'"),
        ({"pad": -1}, "pad: got -1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_recipes_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


def bad_calls():
    net, data, vectors = conv_net(), images(), (torch.randn(40, 5), torch.zeros(40).long())
    flat = nn.Linear(5, 3)
    small = RECIPE.change(augmentation="none")
    narrow = RECIPE.change(pad=6, padding="reflect")
    return {
        "recipe": (lambda: fit(net, recipe={"epochs": 2}), "recipe: got dict, needs a Recipe"),
        "no_net": (lambda: fit([]), "needs a module, or a list"),
        "twice": (lambda: fit([net, net]), "not the same"),
        "frozen": (lambda: fit(nn.Flatten()), "no parameter that requires a gradient"),
        "nothing": (
            lambda: fit(nn.ParameterList([torch.zeros(0)])),
            "net: net 0 has no parameter that requires a gradient and is not empty",
        ),
        "seed": (lambda: fit(net, seed=-1), "seed: got -1"),
        "seeds": (lambda: fit([net, conv_net()], seed=[1]), "got 1 seeds for 2 nets"),
        "device": (lambda: fit(net, device="cuda:99"), "device: got 'cuda:99', which torch cannot"),
        "no_device": (lambda: fit(net, device="gpu"), "device: got 'gpu', which torch cannot use"),
        "empty": (lambda: fit(net, (torch.zeros(0, 1, 8, 8), torch.zeros(0))), "without samples"),
        "ragged": (lambda: fit(net, (torch.zeros(9, 1, 8, 8), torch.zeros(8))), "same number"),
        "batch": (lambda: fit(net, recipe=RECIPE.change(batch=101)), "batch: got 101 for 100"),
        "channels": (lambda: fit(net, rt.load_images("digits")), "does not take samples of shape"),
        "second": (
            lambda: fit([net, flat]),
            r"data x: the net does not take samples of shape .1, 8",
        ),
        "labels": (lambda: fit(net, images(classes=12)), "class labels from 0 to 11 for 10"),
        "vectors": (lambda: fit(flat, vectors), "needs images"),
        "innermost": (
            lambda: fit(flat, vectors, small.change(channels_last=True)),
            r"data: got inputs of shape \(40, 5\); channels_last=True needs images",
        ),
        "narrow": (
            lambda: fit(net, replace(data, pixels=data.pixels[..., :6]), narrow),
            r"pad: got 6, images of \(8, 6\) cannot be reflected so far",
        ),
        "reflect": (lambda: fit(net, recipe=RECIPE.change(pad=8, padding="reflect")), "reflected"),
        "maps": (lambda: fit(net[:2], data), r"labels of shape \(100,\), needs those of"),
        "targets": (lambda: fit(flat, (vectors[0], torch.randn(40, 2)), small), "shape"),
        "test": (lambda: fit(net, test=images(classes=12)), "class labels from 0 to 11"),
        "every": (lambda: fit(net, every=0), "every: got 0"),
        "save": (lambda: fit(net, save_seconds=-1), "save_seconds: got -1"),
    }


@pytest.mark.parametrize("name", bad_calls())
def test_one_clear_error_before_any_training(name):
    call, message = bad_calls()[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_metrics_are_means_over_the_epoch():
    recipe = RECIPE.change(epochs=1, augmentation="none", lr=1e-12, momentum=0.0, milestones=())
    net = conv_net(norm=False)
    run = fit(net, recipe=recipe, test=images())
    x, y = images().inputs(images().pixels, torch.float64), images().labels
    output = net(x).detach()
    (first, last) = run.metrics
    assert "loss" not in first and first["test_loss"] == pytest.approx(last["test_loss"], rel=1e-9)
    for name in ("loss", "test_loss"):
        assert last[name] == pytest.approx(float(nn.functional.cross_entropy(output, y)), rel=1e-9)
        error = name.replace("loss", "error")
        assert last[error] == float((output.argmax(1) != y).double().mean())
    penalty = 0.5 * 1e-4 * sum(float(p.detach().square().sum()) for p in net.parameters())
    assert last["penalty"] == pytest.approx(penalty, rel=1e-12)


def test_the_square_loss_of_labels_is_that_of_one_hot_rows():
    recipe = RECIPE.change(loss="square", augmentation="none")
    data = images()
    rows = nn.functional.one_hot(data.labels, 10).double()
    first, second = (
        fit(conv_net(), data, recipe),
        fit(conv_net(), replace(data, labels=rows), recipe),
    )
    assert difference(first.net, second.net) == 0
    assert "error" in first.metrics[-1]


def test_regression_needs_no_images(generator):
    x, y = torch.randn(2, 64, 5, generator=generator)
    recipe = RECIPE.change(loss="square", augmentation="none", epochs=30, milestones=())
    run = fit(nn.Linear(5, 5), (x, y), recipe)
    assert "error" not in run.metrics[-1]
    assert run.column("loss")[-1] < 0.8 * run.column("loss")[0]


def test_what_is_learnt_is_what_the_labels_say():
    data = rt.load_images("digits", size=None, channels=None)
    test = rt.load_images("digits", "test", size=None, channels=None)
    recipe = RECIPE.change(epochs=4, milestones=(3,), augmentation="none", precision="float32")
    run = fit(conv_net(), data, recipe, test=test)
    assert run.column("test_error")[-1] < 0.12
    assert run.column("epoch") == list(range(5))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["plain", "channels_last"])
def test_precisions_follow_float64(precision, channels_last):
    exact, rough = conv_net(), conv_net()
    fit(exact)
    fit(rough, recipe=RECIPE.change(precision=precision, channels_last=channels_last))
    assert next(rough.parameters()).dtype == torch.float32
    # bf16 keeps eight binary digits; the steps add up some of their errors.
    assert 0 < difference(exact, rough.double()) < {"float32": 1e-5, "bf16": 2e-2}[precision]


def test_an_autocast_around_a_training_keeps_no_old_casts():
    recipe = RECIPE.change(precision="bf16")
    alone, inside = conv_net(), conv_net()
    fit(alone, recipe=recipe)
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        fit(inside, recipe=recipe)
    assert difference(alone, inside) == 0


@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_come_last_if_asked_for(channels_last):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 10))
    seen = []

    def note(module, inputs):
        tensors = (*inputs, module.weight)
        seen.extend(t.is_contiguous(memory_format=torch.channels_last) for t in tensors)

    net[0].register_forward_pre_hook(note)
    recipe = RECIPE.change(channels_last=channels_last, epochs=1)
    fit(net, rt.load_images("digits", samples=64), recipe)
    assert set(seen) == {channels_last}


SEEDS = {"shared": (3, 3, 3), "own": (3, 4, 5), "two": (3, 4, 3)}
DECAYING = RECIPE.change(weight_decay=0.01, decay="multi_axis")


@cache
def alone(i, norm, seed, device):
    net = conv_net(i, norm)
    return fit(net, recipe=DECAYING, seed=seed, test=images(30), device=device)


@pytest.mark.parametrize("seeds", SEEDS.values(), ids=SEEDS)
@pytest.mark.parametrize("norm", [True, False], ids=["batchnorm", "bare"])
def test_several_nets_train_as_each_alone(device, seeds, norm):
    together = [conv_net(i, norm) for i in range(3)]
    run = fit(together, recipe=DECAYING, seed=seeds, test=images(30), device=device)
    for i, seed in enumerate(seeds):
        single = alone(i, norm, seed, device)
        assert difference(single.nets[0], together[i]) == 0
        for name in ("loss", "error", "penalty", "test_loss", "test_error"):
            assert run.column(name, i) == single.column(name)


def linear_net(*behind):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), *behind)


def test_of_several_nets_none_is_the_only_one():
    run = fit([conv_net(0), conv_net(1)])
    assert run.column("epoch", 1) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="2 nets were trained"):
        _ = run.net


def test_callbacks_see_nets_that_are_up_to_date_and_leave_no_trace():
    seen = []

    def measure(net, moment):
        torch.rand(3)  # draws, and moves the running statistics
        net.train()(torch.randn(4, 1, 8, 8))
        seen.append(moment.step)
        return {"norm": net[0].weight.detach().norm(), "bad": float("nan")}

    watched, alone = conv_net(noise=0.5), conv_net(noise=0.5)
    run = fit([watched, conv_net(1, noise=0.5)], callbacks=[measure], every=3)
    fit([alone, conv_net(1, noise=0.5)])
    assert difference(watched, alone) == 0
    assert seen[::2] == [0, 3, 4, 6, 8, 9, 12]
    last = run.metrics[-2]
    assert last["norm"] == float(watched[0].weight.detach().norm())
    assert last["bad"] is None
    assert [line["step"] for line in run.metrics if "epoch" not in line][::2] == [3, 6, 9]


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.__setitem__(1, nn.Tanh()),
        lambda net: setattr(net[0], "stride", (2, 2)),
        lambda net: net[1].register_forward_hook(lambda *call: call[2].tanh()),
        lambda net: setattr(net[1], "forward", torch.tanh),
    ],
    ids=["layer", "stride", "hook", "forward"],
)
def test_a_callback_leaves_the_layers_as_they_are(change):
    with pytest.raises(ValueError, match="^callbacks: <function .* changed the net"):
        fit(conv_net(norm=False), callbacks=[lambda net, _: change(net)])


def test_the_random_state_is_left_as_found():
    state, net = torch.get_rng_state(), conv_net(noise=0.3)
    torch.set_rng_state(state)
    fit(net)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("how", ["float32", "tf32", "float32 graph", "tf32 graph"])
@pytest.mark.parametrize("before", [(False, True, True), (True, False, False)], ids=str)
def test_kernels_repeat_during_training_only(before, how, kernel_settings):
    seen, net = set(), conv_net()

    def note(net, _):
        if net.training:  # samples are tried before, in eval mode and always in full precision
            seen.add(kernel_settings())

    net.register_forward_pre_hook(note)
    kernel_settings(*before, before[2])
    precision, _, graph = how.partition(" ")
    fit(net, recipe=RECIPE.change(precision=precision, compile=graph or "none"))
    coarse = precision == "tf32"
    assert seen == {(True, how == "tf32 graph", coarse, coarse)}
    assert kernel_settings() == (*before, before[2])


@pytest.mark.parametrize("several", [1, 2], ids=["one", "two"])
def test_a_correction_of_the_decay_acts_on_every_net(several):
    recipe = RECIPE.change(weight_decay=0.1, epochs=1, batch=16, milestones=())
    data = rt.load_images("digits", samples=32, size=8)

    def nets(identity):
        return [
            rt.simplified_net(8, identity=identity, init="hardt_ma", generator=seed)
            for seed in range(several)
        ]

    plain, residual = [rt.to_plain(net) for net in nets("residual")], nets("residual")
    fit(plain, data, recipe)
    fit(residual, data, recipe, correction=rt.IdDecay)
    for one, other in zip(plain, residual, strict=True):
        assert difference(one, rt.to_plain(other)) < 1e-12


def with_nesterov(count, out, callback=lambda net, moment: None, **settings):
    nets = [conv_net(i, noise=0.2) for i in range(count)]
    return fit(
        nets, recipe=RECIPE.change(nesterov=True), out=out, every=1, callbacks=[callback],
        test=images(20), seed=range(count), **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def straight_runs(tmp_path_factory):
    """Runs that nothing interrupted, by the number of nets, and what they left."""

    @cache
    def run(count):
        folder = tmp_path_factory.mktemp("straight")
        return with_nesterov(count, folder), left(folder)

    return run


@pytest.mark.parametrize(
    ("stops", "save_seconds", "count"),
    all_pairs([(1,), (4,), (5, 6), (3, 4, 8, 11)], [0.0, 1e9], [1, 2]),
    ids=str,
)
def test_resumed_is_bit_identical(tmp_path, straight_runs, stops, save_seconds, count):
    for stop in stops:
        with pytest.raises(Interrupted):
            with_nesterov(count, tmp_path, interrupt_at(stop), save_seconds=save_seconds)
    stopped = with_nesterov(count, tmp_path, save_seconds=save_seconds)
    straight, of_straight = straight_runs(count)
    assert left(tmp_path) == of_straight
    assert stopped.metrics == straight.metrics
    assert max(map(difference, stopped.nets, straight.nets)) == 0


@pytest.mark.parametrize("count", [1, 2], ids=["one", "two"])
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, count):
    asked = []

    def go(name, steps=None):
        def stop(step):
            asked.append(step)
            return step == steps

        nets = [conv_net(i, noise=0.2) for i in range(count)]
        return fit(
            nets, out=name and tmp_path / name, every=3, save_seconds=1e9,
            test=images(20), seed=range(count), stop=stop,
        )  # fmt: skip

    straight, kept = go("straight"), [0.0]
    assert straight.finished and asked == list(range(12))
    for steps in (0, 5, 8):
        stopped = go("stopped", steps)
        kept.append(store.read_checkpoint(tmp_path / "stopped" / "checkpoint.json")[1]["seconds"])
        assert kept[-2] < kept[-1] <= stopped.seconds  # of all parts together
        assert not stopped.finished and not list((tmp_path / "stopped").glob("net*"))
        assert stopped.metrics == [line for line in straight.metrics if line["step"] <= steps]
        assert torch.equal(stopped.first_losses, straight.first_losses[:, :steps])
        kept_nowhere = go(None, steps)
        assert max(map(difference, stopped.nets, kept_nowhere.nets)) == 0
    asked.clear()
    last = go("stopped")
    assert last.finished and asked == list(range(8, 12))
    assert kept[-1] < last.seconds < 3600
    assert left(tmp_path / "stopped") == left(tmp_path / "straight")
    assert last.metrics == straight.metrics
    assert torch.equal(last.first_losses, straight.first_losses)


@pytest.mark.parametrize(
    ("given", "duration", "saved"),
    [({"save_seconds": 0}, 1, list(range(13))), ({"save_seconds": 3}, 1, [0, 10, 12]),
     ({"save_seconds": 11}, 1, [0, 11, 12]), ({}, 20, [0, 3, 6, 9, 12]),
     (None, 20, [3, 6, 9, 12]), (None, 59, [2, 4, 6, 8, 10, 12])], ids=str,
)  # fmt: skip
def test_checkpoints_cost_a_twentieth_of_the_time(tmp_path, monkeypatch, given, duration, saved):
    clock, steps, save = [0.0], [], training.checkpoint.Folder.save
    if given is None:  # resumed
        fit(conv_net(), out=tmp_path, stop=lambda _: True)

    def slow(folder, tensors, about):
        save(folder, tensors, about)
        steps.append(about["step"])
        clock[0] += 0.5

    def stop(_):
        clock[0] += duration

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(training.checkpoint.Folder, "save", slow)
    if given is None:
        rt.resume(tmp_path, images(), net=conv_net(), stop=stop, device="cpu", progress=False)
    else:
        fit(conv_net(), out=tmp_path, stop=stop, **given)
    assert steps == saved


def test_the_first_losses_are_those_of_the_first_50_steps():
    recipe = RECIPE.change(epochs=15, precision="float32")
    run = fit([conv_net(0), conv_net(1)], recipe=recipe, seed=[3, 4])
    assert run.first_losses.dtype == torch.float64 and run.first_losses.shape == (2, 50)
    sizes = torch.tensor([32.0, 32, 32, 4]) / 100
    for net, losses in enumerate(run.first_losses[:, :48]):
        means = (losses.view(12, 4) * sizes).sum(1)
        assert run.column("loss", net)[:12] == pytest.approx(means.tolist(), rel=1e-13)


@pytest.mark.parametrize("count", [1, 2], ids=["one", "two"])
def test_a_checkpoint_of_an_earlier_version_resumes(tmp_path, count, monkeypatch):
    data, recipe = rt.load_images("digits", samples=16, size=8), RECIPE.change(epochs=1, batch=4)

    def dirac(seed):
        torch.manual_seed(seed)
        convs = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(2)]
        layers = [rt.identity.with_identity(conv, "dirac") for conv in convs]
        return nn.Sequential(*layers, nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 10))

    def go(name, **settings):
        nets = [dirac(seed) for seed in range(count)]
        return fit(nets, data, recipe, out=tmp_path / name, **settings)

    straight, stopped = go("straight"), go("stopped", stop=lambda step: step == 2)
    tensors, about = store.read_checkpoint(tmp_path / "stopped" / "checkpoint.json")
    identities = {
        f"net.{i}.{name}": buffer
        for i, net in enumerate(stopped.nets)
        for name, buffer in net.named_buffers()
        if name.endswith("identity")
    }
    # Those versions kept constant buffers, and no first losses and number of processes. Random
    # numbers of a GPU are of no use here.
    del about["ranks"]
    tensors["rng.cuda"] = torch.zeros(16, dtype=torch.uint8)
    assert len(identities) == 2 * count and not identities.keys() & tensors.keys()
    del tensors["first_losses"]
    store.write_checkpoint(tmp_path / "stopped" / "checkpoint.json", tensors | identities, about)
    monkeypatch.setattr(torch.cuda, "set_rng_state", pytest.fail)
    run = go("stopped")
    assert max(map(difference, run.nets, straight.nets)) == 0
    assert run.first_losses.shape == (count, 0)


def test_identity_kernels_are_no_state_of_a_training():
    nets = [rt.diracnet(10, generator=seed) for seed in range(2)]
    group = training.step.NetGroup(nets, RECIPE, torch.device("cpu"))
    running = [b for net in nets for name, b in net.named_buffers() if "identity" not in name]
    assert sum(b.numel() for b in group.buffers()) == sum(b.numel() for b in running)
    assert not any("identity" in name for name in group.tensors())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished training, to be read and damaged."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    folder = tmp_path_factory.mktemp("finished")
    fit(conv_net(), out=folder)
    torch.set_default_dtype(before)
    return folder


def only_reads(path, mode="r"):
    if mode not in ("r", "rb"):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return open(path, mode)


def test_a_finished_training_returns_at_once(finished, monkeypatch):
    monkeypatch.setattr(loop.Session, "_advance", None)
    monkeypatch.setattr(loop.Session, "_save", None)
    monkeypatch.setattr(os, "truncate", None)  # it may lie where nothing can be written
    monkeypatch.setattr(store, "open", only_reads, raising=False)
    net = conv_net()
    run = fit(net, out=finished)
    assert len(run.metrics) == 4 and run.out == finished
    saved = rt.load_checkpoint(finished, net=conv_net(7))
    assert difference(net, saved) == 0


OTHER = {
    "recipe": ({"recipe": RECIPE.change(lr=0.06)}, "recipe.lr is 0.05 there, 0.06 here"),
    "seed": ({"seed": 1}, "seed is .0. there, .1. here"),
    "data": ({"data": images(seed=1)}, "data .* is"),
    "test": ({"test": images()}, "test data"),
    "weights": ({"net": conv_net(1)}, "initial weights"),
    "correction": ({"correction": lambda optimizer, net: None}, "correction is None there"),
}


@pytest.mark.parametrize("name", OTHER)
def test_a_folder_of_another_training_is_refused(finished, name):
    change, message = OTHER[name]
    with pytest.raises(ValueError, match=f"holds another training: .*{message}"):
        fit(**{"net": conv_net(), "out": finished, **change})


@pytest.mark.parametrize("more", [b"", b" "], ids=["cut", "changed"])
@pytest.mark.parametrize("name", ["checkpoint.json", "checkpoint.*.safetensors", "metrics.jsonl"])
def test_a_damaged_file_is_named(finished, name, more):
    (path,) = finished.glob(name)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + more)
    with pytest.raises(ValueError, match=path.name):
        fit(conv_net(), out=finished)
    path.write_bytes(content)


def test_what_a_kill_left_half_done_is_removed(finished):
    metrics = finished / "metrics.jsonl"
    content, names = metrics.read_bytes(), sorted(path.name for path in finished.iterdir())
    metrics.write_bytes(content + b'{"half": ')
    (finished / f"checkpoint.{'0' * 16}.safetensors").write_bytes(b"never named")
    fit(conv_net(), out=finished)
    assert metrics.read_bytes() == content
    assert sorted(path.name for path in finished.iterdir()) == names


def test_a_full_disk_leaves_the_checkpoint_and_says_so(tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        fit(conv_net(), out=tmp_path, every=1, save_seconds=0, callbacks=[interrupt_at(3)])
    before = left(tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left.*previous checkpoint is intact"):
            fit(conv_net(), out=tmp_path, save_seconds=0)
    assert left(tmp_path)[:2] == before[:2]
    fit(conv_net(), out=tmp_path)
    straight = conv_net()
    fit(straight)
    assert difference(straight, rt.load_checkpoint(tmp_path, net=conv_net(1))) == 0


def test_a_checkpoint_of_something_else_is_not_resumed(finished, tmp_path):
    rt.save_checkpoint(tmp_path / "checkpoint.json", conv_net())
    with pytest.raises(ValueError, match="is not of a training: has no architectures"):
        rt.resume(tmp_path, images(), progress=False)
    for net in (linear_net(), conv_net(norm=False), nn.Sequential(*conv_net(), nn.Linear(10, 10))):
        with pytest.raises(ValueError, match="the checkpoint is that of another net: .*'0."):
            rt.resume(finished, images(), net=net, progress=False)


def test_two_processes_do_not_share_a_folder(tmp_path):
    if os.name != "posix":
        pytest.skip("nothing is locked here")
    with (
        training.checkpoint.Folder(tmp_path).locked(),
        pytest.raises(ValueError, match="another process trains in"),
    ):
        fit(conv_net(), out=tmp_path)


RECORD = {"builder": "simplified_net", "arguments": {"depth": 8, "generator": 3}}


def test_resume_needs_the_folder_alone(tmp_path):
    data = rt.load_images("digits", samples=32, size=8)
    recipe = RECIPE.change(batch=16)
    with pytest.raises(Interrupted):
        fit(
            rt.training.build_net(RECORD), data, recipe, out=tmp_path, seed=2, every=1,
            save_seconds=0, callbacks=[interrupt_at(3)],
        )  # fmt: skip
    run = rt.resume(tmp_path, data, device="cpu", progress=False)
    straight = rt.training.build_net(RECORD)
    fit(straight, data, recipe, seed=2)
    assert run.recipe == recipe and run.seeds == (2,)
    assert difference(straight, run.net) == 0
    assert difference(straight, rt.load_checkpoint(tmp_path)) == 0


def test_resume_takes_several_nets_and_refuses_corrections(tmp_path):
    nets = [conv_net(0), conv_net(1)]
    run = fit(nets, out=tmp_path / "two", seed=[3, 4])
    for i in range(2):
        about = store.read_checkpoint(tmp_path / "two" / f"net.{i}.json")[1]["about"]
        recipe = json.loads(json.dumps(run.recipe.content()))
        assert about == {"recipe": recipe, "seed": 3 + i, "last": run.metrics[-2 + i]}
    again = [conv_net(2), conv_net(3)]
    rt.resume(tmp_path / "two", images(), net=again, device="cpu", progress=False)
    assert max(map(difference, nets, again)) == 0
    fit(conv_net(), out=tmp_path / "corrected", correction=lambda optimizer, net: None)
    with pytest.raises(ValueError, match="with the correction .*lambda.*; call train with it"):
        rt.resume(tmp_path / "corrected", images(), net=conv_net(), device="cpu")


def test_resume_says_what_it_lacks(finished, tmp_path):
    given = {"device": "cpu", "progress": False}
    with pytest.raises(FileNotFoundError, match="start with train"):
        rt.resume(tmp_path, images(), **given)
    with pytest.raises(ValueError, match="no architecture record; pass the module as net="):
        rt.resume(finished, images(), **given)
    assert rt.resume(finished, images(), net=conv_net(3), **given).seeds == (0,)


@pytest.mark.parametrize("where", ["path", "manifest", "folder", "variable", "checkout"])
def test_a_net_comes_back_by_path_or_name(tmp_path, monkeypatch, where):
    net = rt.training.build_net(RECORD)
    rt.save_checkpoint(tmp_path / "small.json", net, about={"seed": 1})
    rt.save_checkpoint(tmp_path / "run" / "net.json", net)
    monkeypatch.delenv("RESID_THEORY_CHECKPOINTS", raising=False)
    if where == "variable":
        monkeypatch.setenv("RESID_THEORY_CHECKPOINTS", str(tmp_path))
    if where == "checkout":
        monkeypatch.setattr(training.saved_nets, "_CHECKOUT", tmp_path)
    name = {"path": tmp_path / "small", "manifest": tmp_path / "small.json",
            "folder": tmp_path / "run"}.get(where, "small")  # fmt: skip
    loaded = rt.load_checkpoint(name)
    assert not loaded.training and type(loaded) is type(net) and difference(net, loaded) == 0


@pytest.mark.parametrize("given", [None, "somewhere"], ids=["unset", "set"])
def test_a_checkpoint_that_is_nowhere_names_both_places(tmp_path, monkeypatch, given):
    monkeypatch.delenv("RESID_THEORY_CHECKPOINTS", raising=False)
    if given:
        monkeypatch.setenv("RESID_THEORY_CHECKPOINTS", str(tmp_path / given))
    with pytest.raises(FileNotFoundError, match="no checkpoint 'plain_20'") as caught:
        rt.load_checkpoint("plain_20")
    for part in (given or "RESID_THEORY_CHECKPOINTS", "experiments"):
        assert part in str(caught.value)


def test_the_type_of_a_loaded_net_is_that_of_the_file(tmp_path):
    rt.save_checkpoint(tmp_path / "a.json", rt.training.build_net(RECORD).float())
    assert next(rt.load_checkpoint(tmp_path / "a").parameters()).dtype == torch.float32


def test_what_is_no_checkpoint_of_the_net_is_named(finished):
    with pytest.raises(ValueError, match="does not fit the net: missing: '0.bias', '3.weight'"):
        rt.load_checkpoint(finished, net=conv_net(norm=False))
    with pytest.raises(ValueError, match="not the checkpoint of a net but a training"):
        rt.load_checkpoint(finished / "checkpoint.json")


def test_a_converted_net_does_not_keep_a_wrong_record(tmp_path):
    net = rt.training.build_net(RECORD)
    converted = rt.to_residual(net)
    converted.architecture = net.architecture
    rt.save_checkpoint(tmp_path / "a.json", converted)
    with pytest.raises(ValueError, match="no architecture record"):
        rt.load_checkpoint(tmp_path / "a")
    assert difference(converted, rt.load_checkpoint(tmp_path / "a", net=rt.to_residual(net))) == 0
    with pytest.raises(ValueError, match="builds another net"):
        rt.save_checkpoint(tmp_path / "a.json", converted, architecture=RECORD)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"builder": "os.system"}, "no public name"),
        ({"builder": "Recipe"}, "no public name of resid_theory that builds a net"),
        ({"builder": "initialize"}, "no public name of resid_theory that builds a net"),
        ({"builder": "load_whitened", "arguments": {"name": "mnist"}}, "that builds a net"),
        ({"builder": "diracnet", "arguments": {"deep": 28}}, "does not take arguments"),
        ({"builder": "diracnet", "arguments": 28}, "does not take arguments 28"),
    ],
    ids=["private", "no_net", "no_builder", "download", "arguments", "number"],
)
def test_builders_are_public_names_that_build_nets(record, message):
    with pytest.raises(ValueError, match=message):
        rt.training.build_net(record)


def test_nan_names_the_net():
    nets = [conv_net(i, norm=False) for i in range(3)]
    with torch.no_grad():
        nets[1][0].bias[2] = torch.nan
    with pytest.raises(DivergenceError) as caught:
        fit(nets)
    found = caught.value.step, caught.value.net, caught.value.tensor
    assert found == (1, 1, "the parameter '0.bias'")


@pytest.mark.parametrize(
    ("value", "at", "backward", "tensor"),
    [(torch.nan, 6, False, "the output of layer '2'"),
     (torch.inf, 2, False, "the output of layer '2'"),
     (torch.nan, 3, True, "the gradient of '1.weight'")],
    ids=["nan", "inf", "gradient"],
)  # fmt: skip
def test_a_number_that_is_not_finite_is_named_where_it_arises(value, at, backward, tensor):
    poison = Poison(value, at, backward=backward)
    poisoned = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), poison, nn.Identity())
    with pytest.raises(DivergenceError) as caught:
        fit([linear_net(), poisoned], seed=[0, 1])
    assert (caught.value.step, caught.value.net, caught.value.tensor) == (at, 1, tensor)


def test_inputs_that_the_precision_cannot_hold_are_named():
    x, y = 1e300 * torch.randn(9, 4), torch.arange(9) % 3
    recipe = RECIPE.change(batch=9, precision="float32", augmentation="none")
    with pytest.raises(DivergenceError, match="^step 1, net 0: the input is not finite"):
        fit(nn.Linear(4, 3), (x, y), recipe)


LACKS = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:124] can't allocate memory: 9 bytes"),
    "python": MemoryError("no memory"),
    "without words": MemoryError(),
}


@pytest.mark.parametrize("error", LACKS.values(), ids=LACKS)
@pytest.mark.parametrize(("most", "advice"), [(17, "a batch of 16 fits"), (0, "not even a batch")])
def test_out_of_memory_names_the_batch_that_would_fit(error, most, advice):
    with pytest.raises(MemoryError, match=f"batch: a step with 32 samples .*{advice}"):
        fit(nn.Sequential(Greedy(most, error), linear_net()))


def test_real_lack_of_memory_is_recognised_and_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="my own"):
        fit(nn.Sequential(Greedy(10, RuntimeError("my own")), linear_net()))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 56)
    assert resources.is_out_of_memory(caught.value)


MESSAGES = {
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED": "always",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate`": "always",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": "always",
    "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate`": "full",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`": "full",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR": "full",
    "GET was unable to find an engine to execute this computation": "full",
    "CUDA error: an illegal memory access was encountered": "never",
}


@pytest.mark.parametrize("message", MESSAGES)
def test_lack_of_memory_in_the_libraries_of_a_gpu(monkeypatch, message):
    def lasting_error():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    for free, expected in (
        (lambda: (1 << 30, 1 << 36), ["always"]),
        (lambda: ((1 << 30) - 1, 1 << 36), ["always", "full"]),
        (lasting_error, ["always"]),
    ):
        monkeypatch.setattr(torch.cuda, "mem_get_info", free)
        assert resources.is_out_of_memory(RuntimeError(message)) == (MESSAGES[message] in expected)


def test_progress_shows_unless_asked_otherwise(capsys, tmp_path):
    call = {"device": "cpu", "stop": lambda step: step == 5}
    rt.train(conv_net(), images(), RECIPE, seed=0, out=tmp_path, **call)
    said = capsys.readouterr().err
    assert " 5/12 " in said and "step" in said
    rt.resume(tmp_path, images(), net=conv_net(), device="cpu")
    said = capsys.readouterr().err
    assert " 5/12 " in said and " 12/12 " in said
    fit(conv_net())
    assert capsys.readouterr().err == ""
