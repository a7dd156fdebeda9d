"""Data-parallel training: two processes against one, on the same batches."""

import copy
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import interrupted
import pytest
import torch
import torch.distributed as dist
from small_trainings import conv_net, images
from tolerances import relative_error
from trials import complaint

import resid_theory as rt
from resid_theory.runtime import process_group
from resid_theory.training import Recipe, checkpoint
from resid_theory.training.loop import Session
from resid_theory.training.parallel import Parallel
from resid_theory.training.run import RunSettings
from resid_theory.training.step import NetGroup

# 67 samples: batches of 33, 33 and 1; parts of 17 and 16, and one that leaves the second process
# nothing.
PATIENCE = timedelta(minutes=2)  # for processes that have ended
RECIPE = Recipe(epochs=3, batch=33, lr=0.05, milestones=(2,), pad=1, precision="float64", warmup=1)
# Round-off of sums in another order, times the growth over nine steps: far below a wrong weight of
# a part, which shows in the third digit.
ROUND_OFF = 1e-12


def several(count=2):
    return [conv_net(seed, norm=False) for seed in range(count)]


def fit(net, recipe=RECIPE, *, samples=67, seed=0, **settings):
    settings = {"device": "cpu", "progress": False, "test": images(150, seed=1), **settings}
    return rt.train(net, images(samples), recipe, seed=seed, **settings)


ONE_STEP = RECIPE.change(epochs=1, batch=64, milestones=())
TRAININGS = {
    "one": lambda **k: fit(conv_net(norm=False), **k),
    "two": lambda **k: fit(several(), seed=[3, 4], **k),
    "norm": lambda **k: fit(conv_net(), ONE_STEP, samples=64, **k),
    "noise": lambda **k: fit(conv_net(noise=0.5), **k),
}


class Stop(Exception):
    pass


def stopping(net, moment):
    if moment.epoch == 2:
        raise Stop


def resumed(folder):
    """Stopped in the second epoch after a step that no checkpoint holds, then called again."""
    keywords = {"process_group": "world", "out": folder, "save_seconds": 0.0}
    # The second process alone says so.
    stop = {"stop": lambda step: step == 2 and dist.get_rank() == 1}
    assert not fit(conv_net(noise=0.5), **keywords, **stop).finished
    with pytest.raises(Stop):
        fit(conv_net(noise=0.5), callbacks=[stopping], **keywords)
    return fit(conv_net(noise=0.5), **keywords)


def work(rank, folder):
    """What each of two processes does."""
    torch.set_default_dtype(torch.float64)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=PATIENCE
    )
    found = {name: content(call(process_group="world")) for name, call in TRAININGS.items()}
    found["resumed"] = content(resumed(os.path.join(folder, "resumed")))
    again = rt.resume(
        os.path.join(folder, "resumed"), images(67), net=conv_net(noise=0.5),
        test=images(150, seed=1), device="cpu", process_group="world", progress=False,
    )  # fmt: skip
    found["again"] = content(again)
    alone = os.path.join(folder, "alone")
    if rank == 0:
        fit(conv_net(norm=False), out=alone)
    dist.barrier()
    found["complaints"] = {
        "recipe": complaint(
            lambda: fit(conv_net(norm=False), RECIPE.change(lr=0.1 + rank), process_group="world")
        ),
        "weights": complaint(lambda: fit(conv_net(rank, norm=False), process_group="world")),
        "alone": complaint(lambda: fit(conv_net(norm=False), process_group="world", out=alone)),
        "locked": complaint(lambda: locked(os.path.join(folder, "locked"), rank)),
        "diverges": complaint(
            lambda: fit(conv_net(norm=False), RECIPE.change(lr=1e200), process_group="world")
        ),
    }
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def locked(folder, rank):
    with checkpoint.Folder(folder).locked() if rank == 0 else torch.no_grad():
        fit(conv_net(norm=False), process_group="world", out=folder)


def content(run):
    return {"nets": [dict(net.state_dict()) for net in run.nets], "metrics": run.metrics}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def found(folder, server):
    """Results of both processes, by rank."""
    interrupted.server()
    torch.multiprocessing.start_processes(work, (str(folder),), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", ["one", "two"])
def test_weights_and_metrics_are_those_of_one_process(found, name):
    one = TRAININGS[name]()
    for net, state in zip(one.nets, found[0][name]["nets"], strict=True):
        for key, tensor in net.state_dict().items():
            assert relative_error(state[key], tensor) <= ROUND_OFF
    for line, other in zip(one.metrics, found[0][name]["metrics"], strict=True):
        assert line.keys() == other.keys()
        for key in line:
            assert other[key] == pytest.approx(line[key], rel=ROUND_OFF, abs=0)


@pytest.mark.parametrize("name", [*TRAININGS, "resumed"])
def test_all_processes_have_the_same_bits(found, name):
    first, second = (one[name] for one in found)
    assert first["metrics"] == second["metrics"]
    for state, other in zip(first["nets"], second["nets"], strict=True):
        assert all(torch.equal(state[key], other[key]) for key in state)


def test_running_statistics_are_averaged_over_the_processes(found):
    """One step on 64 images in random order: each process normalizes its 32 by themselves."""
    net, batches = conv_net(), []
    hook = net[1].register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0].detach()))
    fit(net, ONE_STEP, samples=64)
    hook.remove()
    x = next(batch for batch in batches if len(batch) == 64)  # in the order of the step
    parts = x[0::2], x[1::2]
    state = found[0]["norm"]["nets"][0]
    mean = sum(part.mean((0, 2, 3)) for part in parts) / 2
    spread = sum(part.var((0, 2, 3)) for part in parts) / 2
    assert relative_error(state["1.running_mean"], 0.1 * mean) <= ROUND_OFF
    assert relative_error(state["1.running_var"], 0.9 + 0.1 * spread) <= ROUND_OFF
    assert (
        state["1.num_batches_tracked"] == 1 and state["1.num_batches_tracked"].dtype == torch.int64
    )


@pytest.mark.parametrize("name", ["resumed", "again"])
def test_a_resumed_training_is_bit_identical(found, name):
    undisturbed, resumed = found[0]["noise"], found[0][name]
    assert resumed["metrics"] == undisturbed["metrics"]
    state, other = undisturbed["nets"][0], resumed["nets"][0]
    assert all(torch.equal(state[key], other[key]) for key in state)


def test_the_first_process_writes(found, folder):
    lines = (folder / "resumed" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(found[0]["noise"]["metrics"])
    net = rt.load_checkpoint(folder / "resumed", net=conv_net(noise=0.5))
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, found[1]["noise"]["nets"][0][key])


COMPLAINTS = {
    "recipe": [
        "RuntimeError: process_group: 1 other ranks failed",
        "ValueError: process_group: recipe is",
    ],
    "weights": [
        "RuntimeError: process_group: 1 other ranks failed",
        "ValueError: process_group: initial is",
    ],
    "alone": [
        "ValueError: out: {folder}/alone holds another training: the number of processes is 1",
        "RuntimeError: process_group: rank 0 failed with ValueError: out: {folder}/alone holds "
        "another",
    ],
    "locked": [
        "ValueError: out: another process trains in {folder}/locked",
        "RuntimeError: process_group: rank 0 failed with ValueError: out: another process trains",
    ],
    "diverges": ["DivergenceError: step "] * 2,
}


@pytest.mark.parametrize("name", COMPLAINTS)
@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_stop_together(found, folder, name, rank):
    says = COMPLAINTS[name][rank].format(folder=folder)
    assert found[rank]["complaints"][name].startswith(says)


class Member:
    """One of several threads that sum tensors as processes do."""

    def __init__(self, rank, given, barrier):
        self.rank, self.count, self._given, self._barrier = rank, len(given), given, barrier

    def add(self, tensor):
        self._given[self.rank] = tensor.clone()
        self._barrier.wait()
        total = sum(self._given)
        self._barrier.wait()
        return tensor.copy_(total)


@pytest.mark.parametrize("norm", [False, True], ids=["bare", "batchnorm"])
@pytest.mark.parametrize(("start", "stop"), [(0, 7), (2, 7), (5, 7)])
def test_a_step_is_shared_by_three_threads(start, stop, norm):
    """Parts of unequal size, and with two samples none for the third."""
    net, every = conv_net(norm=norm), range(start, stop)
    x, y = torch.randn(7, 1, 8, 8), torch.arange(7)
    before = dict(net.state_dict())
    change = {name: torch.zeros_like(t) for name, t in net.named_buffers() if "running" in name}
    gradient, loss, wrong = [torch.zeros_like(p) for p in net.parameters()], 0.0, 0
    for part in filter(len, (every[rank::3] for rank in range(3))):
        one, rows, share = copy.deepcopy(net), list(part), len(part) / len(every)
        output = one(x[rows])
        value = torch.nn.functional.cross_entropy(output, y[rows])
        for total, g in zip(gradient, torch.autograd.grad(value, one.parameters()), strict=True):
            total += share * g
        for name, total in change.items():
            total += share * (one.state_dict()[name] - before[name])
        loss += share * value.item()
        wrong += int((output.argmax(1) != y[rows]).sum())
    given, barrier = [None] * 3, threading.Barrier(3, timeout=60)
    nets = [copy.deepcopy(net) for _ in range(3)]

    def work(rank):
        group = NetGroup([nets[rank]], RECIPE, torch.device("cpu"))
        parallel = Parallel(Member(rank, given, barrier), group, 0)
        assert not parallel.alone
        rows, share = parallel.part(start, stop)
        parallel.begin(0)
        losses, errors = group.gradients([(x[rows], y[rows], y[rows], None)])
        return parallel.join(losses, errors, share), share

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(work, range(3)))
    assert sum(share for _, share in found) == pytest.approx(1)
    for one, ((losses, errors), _) in zip(nets, found, strict=True):
        assert losses.tolist() == [pytest.approx(loss)] and errors.tolist() == [wrong]
        for p, total in zip(one.parameters(), gradient, strict=True):
            assert relative_error(p.grad, total) <= ROUND_OFF
        for name, total in change.items():
            assert relative_error(one.state_dict()[name], before[name] + total) <= ROUND_OFF
        if norm:
            tracked = one.state_dict()["1.num_batches_tracked"]
            assert tracked == before["1.num_batches_tracked"] + 1 and tracked.dtype == torch.int64


def test_draws_of_a_net_differ_between_processes_and_steps():
    group, draws = NetGroup([conv_net()], RECIPE, torch.device("cpu")), []
    for rank, seed, step in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)):
        Parallel(Member(rank, [None] * 2, None), group, seed).begin(step)
        draws.append(torch.rand(1).item())
    assert len(set(draws)) == 4 and draws[0] == draws[-1]


def test_one_process_changes_nothing():
    group = NetGroup([conv_net()], RECIPE, torch.device("cpu"))
    parallel, state = Parallel(Member(0, [None], None), group, 0), torch.get_rng_state()
    parallel.begin(3)
    losses, wrong = torch.ones(1), torch.tensor([2])
    assert parallel.alone and parallel.join(losses, wrong, 1.0) == (losses, wrong)
    assert parallel.part(3, 9) == (slice(3, 9, 1), 1.0)
    assert torch.equal(torch.get_rng_state(), state)


class Twins:
    """torch.distributed of two processes that hold the same; the first one goes first."""

    group = SimpleNamespace(WORLD="both")
    is_available = is_initialized = staticmethod(lambda: True)

    def __init__(self):
        self.rank, self.sent = 0, []

    def get_world_size(self, group):
        return 2

    def get_rank(self, group):
        return self.rank

    def get_global_rank(self, group, rank):
        return rank

    def all_reduce(self, tensor, group):
        tensor.mul_(2)

    def broadcast_object_list(self, objects, source, group, device):
        if self.rank == 0:
            self.sent.append(copy.deepcopy(objects))
        else:
            objects[:] = self.sent.pop(0)


@pytest.fixture
def twins(monkeypatch):
    world = Twins()
    monkeypatch.setattr(process_group, "dist", world)
    return world


def test_each_of_two_twins_trains_as_one_alone(tmp_path, twins, capsys):
    """All samples are the same, so that the parts of a batch are alike."""
    alike = rt.Images(
        pixels=images(1).pixels.expand(128, -1, -1, -1), labels=torch.ones(128).long()
    )
    data = alike.first(64)
    recipe = RECIPE.change(batch=16, augmentation="none")

    def train(name, steps=None, **settings):
        net = conv_net(norm=False)
        settings |= {"stop": lambda step: step == steps, "test": alike, "out": tmp_path / name}
        return net, rt.train(net, data, recipe, seed=0, device="cpu", **settings)

    for steps in (5, None):
        alone, run = train("alone", steps)
        assert run.finished == (steps is None)
        for rank in (0, 1):
            twins.rank = rank
            capsys.readouterr()
            net, shared = train(str(rank), steps, process_group="world")
            assert (capsys.readouterr().err == "") == bool(rank)
            assert shared.finished == run.finished and shared.first_losses.shape == (1, steps or 12)
            for name, tensor in alone.state_dict().items():
                assert relative_error(net.state_dict()[name], tensor) <= ROUND_OFF
            for line, other in zip(run.metrics, shared.metrics, strict=True):
                assert other == pytest.approx(line, rel=ROUND_OFF)
    assert (tmp_path / "0" / "net.json").exists() and not (tmp_path / "1").exists()
    assert not twins.sent


def test_whether_to_stop_is_asked_on_the_device(twins, cuda):
    seen = []
    twins.all_reduce = lambda tensor, group: seen.append(tensor.device.type)
    session = object.__new__(Session)
    session.step, session.settings = 3, RunSettings(
        device=cuda, progress=False, stop=lambda step: step == 2,
        process_group=process_group.ProcessGroup("world"),
    )  # fmt: skip
    assert not session._stops() and seen == ["cuda"]


def test_processes_do_not_share_a_loss_whose_samples_count_differently(twins):
    loss = torch.nn.CrossEntropyLoss(torch.arange(10) + 1.0)
    with pytest.raises(ValueError) as caught:
        fit(conv_net(norm=False), RECIPE.change(loss=loss), process_group="world")
    assert str(caught.value) == (
        "process_group: the loss CrossEntropyLoss of a batch is not the mean over its samples, so "
        "processes cannot share one; needs one process"
    )


def test_ranks_need_a_process_group():
    with pytest.raises(
        ValueError, match="process_group: got 'world', but torch.distributed is not init"
    ):
        fit(conv_net(norm=False), process_group="world")
