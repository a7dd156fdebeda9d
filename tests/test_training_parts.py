"""Parts of a training by themselves: files, digests, chunks, numbers that are not finite."""

import hashlib
import math
import os
from dataclasses import replace

import pytest
import torch
from small_trainings import RECIPE, Greedy, Poison, conv_net, difference, fit, images
from torch import nn

import resid_theory as rt
from resid_theory.cli import sources
from resid_theory.losses import LOSSES, Loss
from resid_theory.runtime import store
from resid_theory.training import DivergenceError, Recipe, checkpoint, epochs, step_graphs
from resid_theory.training.device_dataset import DeviceDataset
from resid_theory.training.step import NetGroup, optimizer_of, set_rate
from resid_theory.training.step_graphs import StepGraphs

PLAIN = RECIPE.change(augmentation="none")
CPU = torch.device("cpu")


# -- files -----------------------------------------------------------------------------------------


def test_the_digest_is_that_of_types_shapes_and_bytes_in_their_order():
    tensors = [
        torch.arange(6.0).requires_grad_().view(2, 3).T,
        torch.zeros(0, 2),
        torch.tensor([1, -1]).int(),
    ]
    content = b"torch.float64 (3, 2)" + tensors[0].detach().contiguous().numpy().tobytes()
    content += b"torch.float64 (0, 2)torch.int32 (2,)" + tensors[2].numpy().tobytes()
    assert checkpoint.digest(tensors) == hashlib.sha256(content).hexdigest()


def test_metrics_reach_the_disk_before_the_checkpoint_that_counts_them(tmp_path, monkeypatch):
    folder, synced = checkpoint.Folder(tmp_path), []
    folder.append({"step": 3, "loss": 0.5})
    folder.append({"step": 4})
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.append({"step": 5, "several": [math.nan]})
    content = b'{"step": 3, "loss": 0.5}\n{"step": 4}\n'
    assert folder.metrics.read_bytes() == content
    sha256 = hashlib.sha256(content).hexdigest()
    assert folder.metrics_now() == {"bytes": len(content), "sha256": sha256}
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    folder.save({"x": torch.ones(2)}, {"metrics": folder.metrics_now()})
    assert synced.index(folder.metrics.stat().st_ino) == 0 and len(synced) > 1
    assert folder.rewind(folder.load()[1]) == [{"step": 3, "loss": 0.5}, {"step": 4}]


@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_what_a_thread_writes_is_a_copy(cuda, place):
    given = torch.arange(3, dtype=torch.int32, device=place)
    copy = checkpoint._pinned(given)
    given.zero_()
    assert (copy.device.type, copy.dtype, copy.tolist()) == ("cpu", torch.int32, [0, 1, 2])


def test_metrics_that_cannot_be_written_say_all(tmp_path):
    folder = checkpoint.Folder(tmp_path / "gone")
    with pytest.raises(OSError) as caught:
        folder.append({"step": 3})
    assert caught.value.errno == 2 and caught.value.strerror == (
        f"{tmp_path / 'gone' / 'metrics.jsonl'}: not written (No such file or directory); the "
        "previous checkpoint is intact; make room, then run again to continue"
    )


def test_metrics_that_are_not_those_of_the_checkpoint_are_told(tmp_path):
    folder = checkpoint.Folder(tmp_path)
    folder.append({"step": 3})
    about = {"metrics": folder.metrics_now()}
    folder.metrics.unlink()
    with pytest.raises(ValueError) as caught:
        folder.rewind(about)
    assert str(caught.value) == (
        f"{folder.metrics}: damaged: its first 12 bytes are not those that {folder.checkpoint} "
        "records; restore it from its source, or train anew elsewhere"
    )


def test_a_correction_may_keep_what_is_no_tensor(tmp_path):
    def noting(optimizer, net):
        for parameter in net.parameters():
            optimizer.state[parameter]["note"] = "a word"

    run = fit(conv_net(), out=tmp_path, correction=noting)
    saved, _ = store.read_checkpoint(tmp_path / "checkpoint.json")
    names = {f"optimizer.momentum_buffer.0.{name}" for name, _ in run.net.named_parameters()}
    assert {name for name in saved if name.startswith("optimizer.")} == names


def test_another_training_is_told_with_the_values_of_both(tmp_path):
    recipe = {"lr": 0.1, "loss": "square"}
    there = {"recipe": recipe, "seeds": [0], "data": "a", "test": None, "initial": "b",
             "correction": None}  # fmt: skip
    here = {**there, "ranks": 1}
    folder = checkpoint.Folder(tmp_path)
    checkpoint.check_same(folder, there, {**here, "initial": "unknown"})
    changes = {
        "recipe": ({**recipe, "lr": 0.2}, "recipe.lr is 0.1 there, 0.2"),
        "seeds": ([1], "seed is [0] there, [1]"),
        "ranks": (2, "the number of processes is 1 there, 2"),
        "data": ("c", "data (by their sha256) is 'a' there, 'c'"),
        "test": ("d", "test data (by their sha256) is None there, 'd'"),
        "initial": ("e", "the initial weights (by their sha256) is 'b' there, 'e'"),
        "correction": ("F", "correction is None there, 'F'"),
    }  # fmt: skip
    for name, (value, says) in changes.items():
        with pytest.raises(ValueError) as caught:
            checkpoint.check_same(folder, there, {**here, name: value})
        assert str(caught.value) == (
            f"out: {tmp_path} holds another training: {says} here; choose another folder, delete "
            "this one, or go on with resume(out, data)"
        )


@pytest.mark.parametrize("missing", ["architectures", "correction", "recipe", "seeds"])
def test_what_a_checkpoint_lacks_is_named(tmp_path, missing):
    about = {"architectures": [], "correction": None, "recipe": {}, "seeds": []}
    del about[missing]
    store.write_checkpoint(tmp_path / "checkpoint.json", {}, about)
    with pytest.raises(ValueError, match=f"checkpoint.json is not of a training: has no {missing}"):
        rt.resume(tmp_path, images(), progress=False)


def test_a_checkpoint_without_a_loss_is_of_cross_entropy(tmp_path):
    """As versions before there were others have written it."""
    fit(conv_net(), out=tmp_path, stop=lambda step: step == 2)
    tensors, about = store.read_checkpoint(tmp_path / "checkpoint.json")
    assert about["recipe"].pop("loss") == "cross_entropy"
    store.write_checkpoint(tmp_path / "checkpoint.json", tensors, about)
    net, straight = conv_net(), conv_net()
    rt.resume(tmp_path, images(), net=net, device="cpu", progress=False)
    fit(straight)
    assert difference(net, straight) == 0


# -- arguments -------------------------------------------------------------------------------------

NETS = {
    "number": ([conv_net(), 3], {}, "net: got [Sequential, int], needs a module, or a list of "
               "modules that are not the same"),
    "frozen": ([conv_net(), nn.Flatten()], {}, "net: net 1 has no parameter that requires a "
               "gradient and is not empty"),
    "word": (conv_net(), {"seed": "12"}, "seed: got '12', needs a whole number of at least "
             "0"),
    "negative": ([conv_net(), conv_net()], {"seed": [0, -1]}, "seed: got -1, needs at least 0"),
    "resumed": (conv_net(), {"save_seconds": float("nan")}, "save_seconds: got nan, needs a "
                "number in [0, inf]"),
}  # fmt: skip


@pytest.mark.parametrize("slip", NETS)
def test_slips_are_told_in_full(slip):
    net, settings, says = NETS[slip]
    with pytest.raises(ValueError) as caught:
        fit(net, **settings)
    assert str(caught.value) == says


def test_nets_are_built_without_a_look_at_the_random_numbers_of_a_gpu(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_rng_state", pytest.fail)
    rt.training.build_net({"builder": "simplified_net", "arguments": {"depth": 5}})
    sources.model_net("torch.nn:Flatten", 0)


def test_a_gpu_is_taken_where_there_is_one(cuda):
    net = conv_net()
    fit(net, recipe=PLAIN.change(precision="float32"), device="auto")
    assert {tensor.device.type for tensor in net.state_dict().values()} == {"cuda"}


class Complex(nn.Module):
    """All of its parameters are complex."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10, dtype=torch.complex128)

    def forward(self, x):
        return self.layer(x.flatten(1).to(self.layer.weight.dtype)).abs()


def test_a_complex_net_keeps_its_imaginary_parts():
    net, other, data = Complex(), Complex(), images(32)
    other.load_state_dict(net.state_dict())
    recipe = PLAIN.change(epochs=1, batch=32, momentum=0.0, weight_decay=0.0, warmup=0)
    run = fit(net, data, recipe)
    loss = nn.functional.cross_entropy(other(data.inputs(data.pixels, torch.float64)), data.labels)
    gradient = torch.autograd.grad(loss, other.layer.weight)[0]
    expected = other.layer.weight.detach() - 0.05 * gradient
    torch.testing.assert_close(net.layer.weight.detach(), expected, rtol=1e-12, atol=1e-14)
    assert run.notes == ()


def test_casts_of_net_and_data_are_both_told():
    x, y = torch.randn(40, 64, dtype=torch.float32), torch.arange(40) % 10
    run = fit(nn.Linear(64, 10).half(), (x, y), PLAIN, test=(x, y))
    assert run.notes == (
        "the net is cast from torch.float16 to the recipe's torch.float64",
        "x is cast from torch.float32 to the net's torch.float64",
    )


def test_gradients_are_on_in_a_training():
    net, straight = conv_net(), conv_net()
    with torch.no_grad():
        fit(net)
        assert not torch.is_grad_enabled()
    fit(straight)
    assert difference(net, straight) == 0


def test_draws_of_several_nets_are_those_of_the_first_seed():
    seen, nets = set(), [conv_net(0), conv_net(1)]
    nets[1].register_forward_pre_hook(
        lambda module, given: module.training and seen.add(torch.initial_seed()) or None
    )
    fit(nets, recipe=RECIPE.change(epochs=1), seed=[3, 4])
    assert seen == {3}


# -- chunks ----------------------------------------------------------------------------------------


def test_a_net_is_tried_on_samples_from_all_over_the_data():
    x, y, seen = torch.arange(22.0)[:, None], torch.arange(22) % 3, []
    net = nn.Linear(1, 3)
    net.register_forward_pre_hook(lambda module, given: seen.append(given[0][:, 0].tolist()))
    DeviceDataset("data", (x, y), net, PLAIN.change(batch=22))
    every = [float(i * 22 // 16) for i in range(16)]
    assert seen[-1] == every and set(seen[0]) < set(every)


def test_test_data_are_measured_four_batches_at_a_time():
    sizes, net = [], conv_net()

    def note(module, given):
        if not module.training:
            sizes.append(len(given[0]))

    net.register_forward_pre_hook(note)
    fit(net, recipe=RECIPE.change(batch=20), test=images(170))
    assert sizes[-3:] == [80, 80, 10]


def test_weights_of_many_samples_are_added_in_float64(monkeypatch):
    weights = torch.tensor([0.1, 3e3, 0.7], dtype=torch.float32)

    def loss(output, target):
        return nn.functional.cross_entropy(output, target, weights.to(output))

    row = Loss(loss, targets="labels", weights=lambda target: weights[target])
    monkeypatch.setitem(LOSSES, "weighted", row)
    x, y = torch.randn(3000, 2), torch.arange(3000) % 3
    samples = DeviceDataset("data", (x, y), nn.Linear(2, 3), PLAIN.change(loss="weighted"))
    assert samples.total == pytest.approx(1000 * weights.double().sum().item(), rel=1e-14)
    assert float(samples.weight(slice(1, 4))) == weights.double().sum().item()


@pytest.mark.parametrize("places", [(), (2,)], ids=["samples", "tokens"])
def test_labels_that_count_are_counted(places):
    x, y = torch.ones(40, *places, 3), torch.arange(40) % 18
    y[3] = y[5] = -100
    y = y.view(40, *[1] * len(places)).expand(40, *places)
    samples = DeviceDataset("data", (x, y), nn.Linear(3, 18), PLAIN.change(batch=8))
    assert samples.labels == y.numel() * 38 // 40


def test_the_digest_of_images_is_that_of_their_constants_in_float64():
    data, digests = replace(images(40), mean=(0.1,), std=(0.3,)), set()
    for kind in (torch.float64, torch.float32):
        torch.set_default_dtype(kind)
        digests.add(DeviceDataset("data", data, conv_net().double(), PLAIN).digest)
    assert len(digests) == 1


def test_targets_are_checked_4096_at_a_time():
    sizes = []

    def loss(output, target):
        sizes.append(len(output))
        return nn.functional.mse_loss(output, target)

    x = torch.ones(8200, 1)
    DeviceDataset("data", (x, x), nn.Linear(1, 1), PLAIN.change(loss=loss))
    first = sizes.index(4096)
    assert max(sizes) == 4096 and sizes[first : first + 3] == [4096, 4096, 8]


def test_images_are_augmented_4096_at_a_time(cuda, monkeypatch):
    sizes, augment = [], epochs.augment

    def noted(given, crops, **how):
        sizes.append(len(given))
        return augment(given, crops, **how)

    monkeypatch.setattr(epochs, "augment", noted)
    data = rt.Images(
        pixels=torch.zeros(8200, 1, 2, 2, dtype=torch.uint8), labels=torch.arange(8200) % 2
    )
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).to(cuda)
    samples = DeviceDataset("data", data, net, RECIPE)
    epochs.Epochs(samples, RECIPE, cuda).draw(0, 0)
    assert sizes == [1, 4096, 4096, 8]


# -- numbers that are not finite -------------------------------------------------------------------


def diverging(net, *, loss="cross_entropy", data=None, recipe=(), **settings):
    """Step, net and tensor of the error; nothing is left on the nets."""
    nets, recipe = net if isinstance(net, list) else [net], dict(recipe)
    with pytest.raises(DivergenceError) as caught:
        fit(nets, data, PLAIN.change(loss=loss, **recipe), **settings)
    assert not any(module._forward_hooks for net in nets for module in net.modules())
    found = caught.value
    assert str(found) == (
        f"step {found.step}, net {found.net}: {found.tensor} is not finite; the usual cause is a "
        "learning rate too large for this net: lower lr, or raise warmup"
    )
    return found.step, found.net, found.tensor


class Both(nn.Module):
    """A layer with two outputs, of which the next one takes the first."""

    def forward(self, x):
        return x, x


class First(nn.Module):
    def forward(self, pair):
        return pair[0]


def test_the_layer_is_found_behind_others_that_give_several_tensors():
    inside = nn.Sequential(nn.Flatten(), Both(), First(), Poison(torch.nan, 3), nn.Linear(64, 10))
    assert diverging(nn.Sequential(inside)) == (3, 0, "the output of layer '0.3'")


def test_a_loss_that_is_not_finite_by_itself_is_named():
    calls = []

    def loss(output, target):
        calls.append(output.requires_grad)
        value = nn.functional.mse_loss(output, target)
        return value + (torch.inf if sum(calls) > 5 and len(output) == 32 else 0.0)

    x = torch.randn(100, 3)
    step, net, tensor = diverging(nn.Linear(3, 3), loss=loss, data=(x, x))
    assert (net, tensor) == (0, "the loss")


def test_inputs_are_those_of_the_nets_own_batch():
    x, y = torch.ones(12, 3), torch.arange(12) % 3
    x[7] = 1e300  # beyond float32
    nets = [nn.Linear(3, 3), nn.Linear(3, 3)]
    recipe = {"batch": 4, "precision": "float32"}
    samples = DeviceDataset("data", (torch.ones(12, 3), y), nets[0], PLAIN.change(batch=4))
    order = epochs.Epochs(samples, PLAIN.change(batch=4), CPU)
    steps = {seed: order.draw(seed, 0).order.tolist().index(7) // 4 for seed in range(20)}
    seeds = [next(s for s in steps if steps[s] == 2), next(s for s in steps if steps[s] == 0)]
    assert diverging(nets, data=(x, y), recipe=recipe, seed=seeds) == (1, 1, "the input")


# -- steps on a GPU --------------------------------------------------------------------------------


def test_several_nets_stand_beside_each_other_while_a_graph_is_recorded(monkeypatch):
    waits, made = [], []

    class Stream:
        def __init__(self, name=None):
            self.name = name or f"beside {len(made)}"
            made.append(self)

        def wait_stream(self, other):
            waits.append((self.name, other.name))

    main = Stream("main")
    made.clear()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    entered = []
    monkeypatch.setattr(torch.cuda, "stream", lambda s: entered.append(s.name) or _nothing())
    nets = [conv_net(seed) for seed in range(3)]
    group = NetGroup(nets, RECIPE, torch.device("cuda"))
    batch = torch.randn(4, 1, 8, 8), torch.arange(4), torch.arange(4), None
    losses, wrong = group.gradients([batch] * 3)
    names = ["beside 0", "beside 1", "beside 2"]
    assert waits == [(n, "main") for n in names] + [("main", n) for n in names]
    assert entered == names
    alone = NetGroup(nets[2:], RECIPE, torch.device("cuda"))
    again, errors = alone.gradients([batch])
    assert entered == names and again == losses[2:] and errors == wrong[2:]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    group.gradients([batch] * 3)
    assert entered == names


class _nothing:
    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass


def test_outputs_in_bfloat16_are_widened_before_the_loss():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10, dtype=torch.float32)

        def forward(self, x):
            return {"logits": self.layer(x), "rows": torch.arange(len(x))}

    x, target = torch.randn(4, 64, dtype=torch.float32), torch.arange(4)

    def loss(output, target):
        return nn.functional.cross_entropy(output["logits"], target)

    net, recipe = Several(), PLAIN.change(precision="bf16", loss=loss)
    output = NetGroup([net], recipe, CPU).output(net, x)
    assert (output["logits"].dtype, output["rows"].dtype) == (torch.float32, torch.int64)
    assert torch.equal(output["logits"], output["logits"].bfloat16().float())
    whole = NetGroup([net], PLAIN.change(precision="float32", loss=loss), CPU)
    assert not torch.equal(whole.output(net, x)["logits"], output["logits"])
    assert whole.gradients([(x, target, None, None)])[1].tolist() == [0.0]


@pytest.mark.parametrize(
    ("place", "dtype", "fused"),
    [("cuda", torch.float32, True), ("cuda", torch.float64, None), ("cpu", torch.float32, None)],
)
def test_steps_are_one_operation_in_float32_on_a_gpu(cuda, place, dtype, fused):
    net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2)).to(place, dtype)
    recipe = PLAIN.change(lr=0.25, nesterov=True, momentum=0.5, decay="multi_axis")
    optimizer = optimizer_of(NetGroup([net], recipe, torch.device(place)), recipe)
    assert (optimizer.defaults["fused"], optimizer.defaults["nesterov"]) == (fused, True)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]
    for rate in (0.25, 0.125):
        for group in optimizer.param_groups:
            assert float(group["lr"]) == rate
            assert isinstance(group["lr"], torch.Tensor) == bool(fused)
        set_rate(optimizer, 0.125)


class Recorded:
    """A step of one parameter whose losses are numbers that the test gives."""

    def __init__(self, losses, momentum=0.9):
        self.losses, self.calls = iter(losses), []
        net = nn.Linear(2, 2)
        self.group = NetGroup([net], PLAIN, CPU)
        rate = torch.tensor(0.1)
        self.optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=momentum)
        self.graphs = StepGraphs(
            self.group, self.optimizer, {"loss": torch.zeros(1, dtype=torch.float64)}, self.step
        )

    def step(self, place, samples):
        self.calls.append((int(place), samples))
        with torch.no_grad():
            self.group.nets[0].weight += 1.0
        return torch.tensor([next(self.losses)], dtype=torch.float64)


@pytest.mark.parametrize("loss", [4.0, -4.0])
@pytest.mark.parametrize(("gap", "taken"), [(0.9e-5, True), (1.1e-5, False), (float("nan"), False)])
def test_replays_are_to_have_the_losses_of_steps(cuda, gap, taken, loss):
    # The pretended graph executes the step once more, and then repeats that last loss.
    made = Recorded([loss, loss, loss, loss * (1 + gap)])
    before = made.group.nets[0].weight.clone()
    assert made.graphs.replay(5, 32, 9) == taken
    assert made.calls == [(5, 32), (6, 32), (7, 32), (5, 32)]
    if taken:
        assert made.graphs.fault is None
    else:
        says = f"RuntimeError: the losses of replayed steps differ by {gap:.1g}"
        assert made.graphs.fault == says
    # One replay, where it was recorded; all trials are undone.
    torch.testing.assert_close(made.group.nets[0].weight, before + float(taken))


def test_equal_losses_are_equal_enough(cuda, monkeypatch):
    monkeypatch.setattr(step_graphs, "_EQUAL", 0.0)
    assert Recorded([4.0] * 4).graphs.replay(0, 32, 2)
    assert Recorded([0.0] * 4).graphs.replay(0, 32, 2)


@pytest.mark.parametrize(("last", "trials"), [(5, 1), (6, 2), (7, 3), (30, 3)])
def test_no_more_steps_are_tried_than_there_are(cuda, last, trials):
    made = Recorded([1.0] * 20)
    assert made.graphs.replay(5, 32, last)
    assert made.calls == [(5 + k, 32) for k in range(trials)] + [(5, 32)]
    assert made.graphs.replay(5, 32, last) and len(made.calls) == trials + 1  # recorded before
    assert made.graphs.replay(9, 16, 9) and made.calls[trials + 1 :] == [(9, 16)] * 2


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momenta_are_there_before_a_step_is_recorded(cuda, momentum):
    made = Recorded([1.0] * 9, momentum)
    made.graphs.replay(0, 4, 0)
    states = [dict(made.optimizer.state[p]) for p in made.group.parameters.values()]
    assert [list(state) for state in states] == [["momentum_buffer"] * bool(momentum)] * 2
    assert all(not buffer.any() for state in states for buffer in state.values())


@pytest.mark.parametrize("words", ["not permitted", ""])
def test_of_an_error_in_a_step_the_first_line_is_told(cuda, words):
    made = Recorded([])

    def failing(place, samples):
        raise NotImplementedError(f" {words}\nSee more.\n" if words else "")

    made.graphs._step = failing
    assert not made.graphs.replay(0, 4, 0)
    assert made.graphs.fault == f"NotImplementedError: {words}"


def test_steps_with_a_rate_on_the_host_are_not_recorded(cuda):
    made = Recorded([])
    made.optimizer.param_groups[0]["lr"] = 0.1
    assert not made.graphs.replay(0, 4, 0)
    assert made.graphs.fault == "needs parameters in float32 and dense gradients"


def test_where_memory_lacks_on_a_gpu_it_is_given_back(cuda, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    error = torch.OutOfMemoryError("CUDA out of memory.\nMore words")
    greedy = nn.Sequential(Greedy(9, error), nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(MemoryError) as caught:
        fit(greedy, recipe=PLAIN.change(precision="float32"), device=cuda)
    assert str(caught.value) == (
        "batch: a step with 32 samples ran out of memory (CUDA out of memory.); a batch of 8 fits"
    )
    assert len(emptied) == 2  # after 32 and 16


def test_draws_on_a_gpu_are_those_of_the_seed_and_leave_no_trace(cuda):
    found = []
    for before in (1, 2):
        net = conv_net(noise=0.5)
        torch.cuda.manual_seed(before)
        state = torch.cuda.get_rng_state(cuda)
        fit(net, recipe=RECIPE.change(precision="float32", epochs=1), device=cuda)
        assert torch.equal(torch.cuda.get_rng_state(cuda), state)
        found.append(net)
    assert difference(*found) == 0


def test_a_training_moves_from_the_cpu_to_a_gpu(cuda, tmp_path):
    recipe = RECIPE.change(precision="float32", epochs=1)
    fit(conv_net(), recipe=recipe, out=tmp_path, stop=lambda step: step == 2)
    run = fit(conv_net(), recipe=recipe, out=tmp_path, device=cuda)
    assert run.finished and len(run.metrics) == 2
    about = store.read_checkpoint(tmp_path / "checkpoint.json")[1]
    now = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    assert about["environments"] == [{**now, "device": name} for name in ("cpu", "cuda")]
    straight = conv_net()
    fit(straight, recipe=recipe)
    assert difference(run.net.to("cpu"), straight) < 1e-5


# -- results and records ---------------------------------------------------------------------------


def test_a_run_says_seeds_epochs_and_seconds():
    run = replace(fit(conv_net(), seed=4, stop=lambda step: step == 9), seconds=12.345)
    assert run.title == "training of seeds (4,) to 3 epochs, finished: False, 12.3 s"
    assert run.table() == {
        name: [line.get(name) for line in run.metrics]
        for name in ("epoch", "step", "net", "penalty", "lr", "loss", "error")
    }
    assert len(run.column("lr")) == 2
    for wrong, told in ((("los",), "name: unknown name 'los'"), (("lr", 1), "net: got 1, needs")):
        with pytest.raises(ValueError, match=f"^{told}"):
            run.column(*wrong)


class Callable:
    def __call__(self, output, target):
        return nn.functional.mse_loss(output, target)


def test_a_loss_is_described_by_name_module_or_settings():
    def own(output, target):
        return output.sum()

    module = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]), label_smoothing=0.25).eval()
    digits = hashlib.sha256(torch.tensor([1.0, 2.0]).numpy().tobytes()).hexdigest()[:8]
    where = f"{__name__}.test_a_loss_is_described_by_name_module_or_settings.<locals>.own"
    expected = {
        "square": "square", own: where, Callable(): f"{__name__}.Callable",
        module: "CrossEntropyLoss({'reduction': 'mean', 'ignore_index': -100, 'label_smoothing': "
                f"0.25}}, {digits})",
    }  # fmt: skip
    for loss, said in expected.items():
        assert Recipe(loss=loss).content()["loss"] == said
    assert set(Recipe().content()) == set(vars(Recipe()))
