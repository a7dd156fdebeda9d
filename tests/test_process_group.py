"""Data-parallel products: worlds of one, two and three processes against the whole data at once."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import interrupted
import pytest
import torch
import torch.distributed as dist
from tolerances import HESSIAN, assert_same, relative_error
from torch import nn
from trials import complaint

import resid_theory as rt
from resid_theory.curvature import operator as operator_module
from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.runtime import process_group
from resid_theory.runtime.process_group import ProcessGroup

M, D, K = 11, 3, 2
PATIENCE = timedelta(minutes=2)  # for processes that have ended


MATRICES = ("hessian", "fisher", "empirical_fisher")


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, K)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x, y = (torch.randn(M, d, generator=generator, dtype=torch.float64) for d in (D, K))
    return net, x, y, torch.randn(26, 3, generator=generator, dtype=torch.float64)


def measured(group, rank, count, matrix):
    net, x, y, vectors = problem()
    a = rt.curvature_operator(  # shards of unequal size
        net, "square", (x[rank::count], y[rank::count]), matrix=matrix, process_group=group, chunk=2
    )
    return {
        "product": a @ vectors,
        "block": a.block("0.*", "2.*") @ vectors[:10],
        "loss": torch.tensor(a.loss, dtype=torch.float64),
        "gradient": a.gradient,
        "samples": torch.tensor(a.samples),
    }


def differing(group, rank):
    net, x, y, _ = problem(seed=0)
    with torch.no_grad():
        net[2].weight[0, 0] += 1e-15 * rank  # the last bit
    return rt.curvature_operator(net, "square", (x, y), process_group=group)


def failing(group, rank):
    net, x, y, _ = problem()
    return rt.curvature_operator(net, "square", (x, y[:, : K - rank]), process_group=group)


def unequal(group, rank):
    net, x, y, vectors = problem()
    return rt.curvature_operator(net, "square", (x, y), process_group=group) @ (vectors + rank)


def alone(group, rank):
    """Rank 0 asks for the error, for which the others do not wait."""
    net, x, y, _ = problem()
    found = rt.curvature_operator(net.float(), "square", (x, y), process_group=group)
    return rank > 0 or found.error is not None


def work(rank, folder):
    """What one of three processes does; the first so many of them are the smaller worlds."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3, timeout=PATIENCE
    )
    groups = {count: dist.new_group(list(range(count))) for count in (1, 2)}
    groups[3] = "world"
    found = {}
    for count, group in groups.items():
        if rank < count:
            found[count] = {m: measured(group, rank, count, m) for m in MATRICES}
    if rank < 2:
        for name, call in {"weights": differing, "failure": failing, "V": unequal}.items():
            found[name] = complaint(lambda call=call: call(groups[2], rank))
        found["alone"] = alone(groups[2], rank)
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory, server):
    """Results of every process, by rank."""
    folder = tmp_path_factory.mktemp("process_group")
    interrupted.server()
    torch.multiprocessing.start_processes(work, (str(folder),), nprocs=3, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]


@pytest.mark.reliability(
    "shards of unequal size on 1, 2 and 3 processes",
    "bit-identical on all of them, and to 1e-12 what one process computes",
)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("what", ["product", "block", "loss", "gradient", "samples"])
def test_worlds_agree(found, count, matrix, what):
    net, x, y, vectors = problem()
    whole = rt.curvature_operator(net, "square", (x, y), matrix=matrix)
    exact = {
        "product": whole @ vectors,
        "block": whole.block("0.*", "2.*") @ vectors[:10],
        "loss": torch.tensor(whole.loss, dtype=torch.float64),
        "gradient": whole.gradient,
        "samples": torch.tensor(M),
    }[what]
    results = [found[rank][count][matrix][what] for rank in range(count)]
    assert all(torch.equal(result, results[0]) for result in results)
    assert relative_error(results[0], exact) <= HESSIAN


def test_one_rank_may_ask_for_the_error(found):
    assert found[0]["alone"] and found[1]["alone"]


COMPLAINTS = {
    "weights": ["ValueError: net: parameter 2 differs between ranks"] * 2,
    "failure": [
        "RuntimeError: process_group: 1 other ranks failed",
        "ValueError: data y: got shape",
    ],
    "V": ["ValueError: V: the vectors differ between ranks"] * 2,
}


@pytest.mark.parametrize("name", COMPLAINTS)
@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_stop_together(found, name, rank):
    assert found[rank][name].startswith(COMPLAINTS[name][rank])


def test_without_a_group_nothing_is_exchanged():
    alone = ProcessGroup()
    tensor = torch.ones(2)
    assert (alone.count, alone.rank) == (1, 0) and alone.add(tensor) is tensor


class Threads:
    """As much of torch.distributed as a process group asks for, among threads of this process."""

    group = SimpleNamespace(WORLD="all of them")
    is_available = is_initialized = staticmethod(lambda: True)

    def __init__(self, count, device="cpu"):
        self.count, self.parts, self.own, self.device = count, {}, threading.local(), device
        self.barrier = threading.Barrier(count, timeout=10)

    def run(self, call):
        """What a call gives each rank, or its complaint."""

        def rank(number):
            self.own.rank, found = number, []
            said = complaint(lambda: found.append(call(ProcessGroup("world"))))
            return found[0] if found else said

        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(rank, range(self.count)))

    def exchange(self, part, group):
        assert group == self.group.WORLD
        self.parts[self.own.rank] = part
        self.barrier.wait()
        parts = [self.parts[rank] for rank in range(self.count)]
        self.barrier.wait()
        return parts

    def get_world_size(self, group):
        return self.count

    def get_rank(self, group):
        return self.own.rank

    def get_global_rank(self, group, rank):
        return 10 + rank

    def all_reduce(self, tensor, group):
        assert tensor.device.type == self.device
        tensor.copy_(sum(self.exchange(tensor.clone(), group)))

    def broadcast_object_list(self, objects, source, group, device):
        assert source == 10
        objects[:] = self.exchange(list(objects), group)[0]


@pytest.fixture
def three(monkeypatch):
    """Three ranks that make a call; with torch's own default dtype, which nothing may take."""
    torch.set_default_dtype(torch.float32)
    world = Threads(3)
    monkeypatch.setattr(process_group, "dist", world)
    return world.run


CPU = torch.device("cpu")


def test_products_of_all_ranks_are_added(three):
    vectors = -torch.rand(4, 2)
    total = (100 * vectors).round()
    for found in three(lambda g: g.add_product((g.rank + 1) * total, vectors)):
        assert_same(found, 6 * total.double())
    assert three(lambda g: g.add_product(0 * total, 0 * vectors).sum().item()) == [0.0] * 3


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize(("row", "apart"), [(0, 1e-3), (3, 1e-3), (0, 1e-9)])
def test_vectors_of_all_ranks_are_compared(three, row, apart, size):
    vectors = torch.zeros(4, 100).double()
    vectors[row] = size
    says = "ValueError: V: the vectors differ between ranks"
    for found in three(lambda g: g.add_product(vectors, vectors * (1 + apart * (g.rank == 1)))):
        assert str(found).startswith(says) == (apart > 1e-6)


@pytest.mark.parametrize(("part", "refused"), [(0.99, False), (1.01, True)])
def test_vectors_may_differ_by_round_off_and_no_more(three, part, refused):
    """In one row of 4 equal columns, of which one rank has (1 + a) times the others': the sketches
    are 4, 4 and 4 (1 + a), so 3 sums of squares less the squared sum are 32 a^2."""
    norms = 12  # to first order in a
    apart = part * (1e-8 * 3 * norms / 32) ** 0.5
    vectors = torch.zeros(2, 4).double()
    vectors[0] = 1
    said = three(lambda g: g.add_product(vectors, vectors * (1 + apart * (g.rank == 2))))
    assert [isinstance(each, str) for each in said] == [refused] * 3


def test_a_failure_of_some_ranks_reaches_all(three):
    assert three(lambda g: g.together(None, CPU)) == [None] * 3
    failure = OSError("mine")
    others = "RuntimeError: process_group: 2 other ranks failed, each with its own error"
    found = three(lambda g: g.together(failure if g.rank else None, CPU))
    assert found == [others, "OSError: mine", "OSError: mine"]


def test_rank_0_alone_makes_a_call_and_all_have_its_answer(three):
    calls = []
    found = three(lambda g: g.from_first(lambda: calls.append(g.rank) or "done", CPU))
    assert (found, calls) == (["done"] * 3, [0])
    failed = "RuntimeError: process_group: rank 0 failed with KeyError: 0"
    found = three(lambda g: g.from_first(lambda: {1: 1}[g.rank], CPU))
    assert found == ["KeyError: 0", failed, failed]


def test_the_first_value_that_differs_is_named(three):
    assert three(lambda g: g.check_equal({"a": 1, "b": 2}, CPU)) == [None] * 3
    found = three(lambda g: g.check_equal({"a": 1, "b": g.rank, "c": g.rank}, CPU))
    assert found[0].startswith("RuntimeError: process_group: 2 other ranks failed")
    assert found[2] == (
        "ValueError: process_group: b is 2 on rank 2 and 0 on rank 0, needs the same everywhere"
    )


@pytest.mark.parametrize(
    ("differing", "what"),
    [(set(), None), ({0, 2}, "parameter 0"), ({2}, "parameter 2"), ({1, 3}, "parameter 1"),
     ({3}, "the arguments")],
)  # fmt: skip
def test_the_first_parameter_that_differs_is_named(three, differing, what):
    def check(group):
        kinds = torch.float64, torch.bfloat16, torch.complex128
        tensors = [nn.Parameter(torch.ones(3, 2, dtype=kind).mT) for kind in kinds]
        with torch.no_grad():
            for number in differing & {0, 1, 2} if group.rank == 1 else ():
                tensors[number][1, 2] = 1.0625
        return group.check_same(tensors, "21" if 3 in differing and group.rank == 2 else "12")

    for found in three(check):
        assert found is None if what is None else found.startswith(f"ValueError: net: {what} diff")


def test_the_only_parameter_is_compared(three):
    says = "ValueError: net: parameter 0 differs between ranks, needs the same net and arguments "
    for found in three(lambda g: g.check_same([torch.tensor([g.rank])], "")):
        assert found.startswith(says)


def test_one_rank_on_a_gpu(cuda, monkeypatch):
    world = Threads(1, cuda.type)
    monkeypatch.setattr(process_group, "dist", world)
    world.own.rank = 0
    group, vectors = ProcessGroup("world"), torch.ones(3, 2, device=cuda)
    assert_same(group.add_product(vectors, vectors), vectors)
    group.check_same([vectors, vectors], "")
    group.together(None, cuda)


@pytest.mark.parametrize("lacks", ["is_available", "is_initialized"])
def test_without_processes_there_is_no_world(three, monkeypatch, lacks):
    monkeypatch.setattr(Threads, lacks, staticmethod(lambda: False))
    says = (
        "ValueError: process_group: got 'world', but torch.distributed is not initialized; call "
        "torch.distributed.init_process_group in every process first"
    )
    assert three(lambda _: ProcessGroup("world")) == [says] * 3


@pytest.mark.parametrize("group", ["worlds", "all"])
def test_other_names_of_groups_are_refused(three, group):
    says = f"ValueError: process_group: got {group!r}, needs None, 'world' or a process group"
    assert three(lambda _: ProcessGroup(group)) == [says] * 3


class Twins:
    """The second of two processes that have the same data."""

    count, rank = 2, 1

    def __init__(self, given):
        self.given, self.told, self.same = given, [], []

    def add(self, tensor):
        return tensor.mul_(2)

    def add_product(self, total, vectors):
        return 2 * total

    def together(self, failure, device):
        self.told.append((failure, device.type))
        if failure is not None:
            raise failure

    def check_same(self, tensors, settings):
        self.same.append((tensors, settings))


@pytest.fixture
def twins(monkeypatch):
    """The groups that operators make."""
    made = []

    def group(given=None):
        if given is None:
            return ProcessGroup()
        made.append(Twins(given))
        return made[-1]

    monkeypatch.setattr(operator_module, "ProcessGroup", group)
    return made


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equal_shards_make_the_mean_of_one_or_the_sum_of_all(reduction, twins):
    net, x, y, vectors = problem()
    net, x, y = net.float(), x.float(), y.float()
    loss, factor = nn.MSELoss(reduction=reduction), 2 if reduction == "sum" else 1
    alone = operator_module.operator_of(EmpiricalRisk(net, loss, (x, y)))
    A = rt.curvature_operator(net, loss, (x, y), process_group="world")
    assert "error" in vars(A) and (A.samples, A.processes) == (2 * M, 2)
    assert A.loss == pytest.approx(factor * alone.loss, rel=1e-14)
    assert relative_error(A.gradient, factor * alone.gradient) <= HESSIAN
    assert relative_error(A @ vectors, factor * (alone @ vectors)) <= HESSIAN
    error = alone.error.scaled(factor)
    for name in ("spectral", "frobenius", "trace"):
        assert getattr(A.error, name) == pytest.approx(getattr(error, name), rel=1e-12)
    average = "sum" if reduction == "sum" else "mean"
    assert f"P = 26, {average} over 22 samples on 2 ranks\n" in str(A)
    (group,) = twins
    assert group.given == "world" and group.told == [(None, "cpu")]
    ((tensors, settings),) = group.same
    assert all(a is b for a, b in zip(tensors, net.parameters(), strict=True))
    assert settings == "hessian 26 retained ['0.weight', '0.bias', '2.weight', '2.bias']"
    drawn = rt.curvature_operator(
        net, "square", (x, y), matrix="fisher_mc", process_group="world", generator=3
    )
    assert drawn.risk.seed == 3 + 2**64


def test_errors_of_one_process_are_told_the_others(twins):
    net, x, y, _ = problem()
    weights = torch.tensor([1.0, 3.0]).double()

    def measured(output, target):
        return nn.functional.cross_entropy(output, target, weights)

    unknown = "loss: its weights are measured in units of a sample"
    cases = (measured, torch.arange(M) % 2, unknown), ("square", y[:, :1], "data y: got shape")
    for loss, target, says in cases:
        with pytest.raises(ValueError, match=f"^{says}"):
            rt.curvature_operator(net, loss, (x, target), process_group="world")
        ((failure, _),) = twins.pop().told
        assert isinstance(failure, ValueError)


COMPARABLE = {
    "mean": (lambda o, t, net: nn.functional.mse_loss(o, t), True),
    "weighted": (lambda o, t, net: ((o - t).square().sum(1) * t[:, 0].exp()).sum()
                 / t[:, 0].exp().sum(), False),
    "sum": (lambda o, t, net: nn.functional.mse_loss(o, t, reduction="sum"), True),
    "mean and decay": (lambda o, t, net: nn.functional.mse_loss(o, t)
                       + net[0].weight.square().sum(), True),
    "sum and decay": (lambda o, t, net: nn.functional.mse_loss(o, t, reduction="sum")
                      + net[0].weight.square().sum(), False),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPARABLE)
def test_weights_that_processes_can_compare(name):
    (loss, expected), (net, x, y, _) = COMPARABLE[name], problem()
    A = rt.curvature_operator(net, lambda o, t: loss(o, t, net), (x, y))
    assert A.risk.compares == expected
