"""Data-parallel products: worlds of one, two and three processes against the whole data at once."""

import os
from datetime import timedelta

import interrupted
import pytest
import torch
import torch.distributed as dist
from tolerances import HESSIAN, relative_error
from torch import nn
from trials import complaint

import resid_theory as rt
from resid_theory.runtime.process_group import ProcessGroup, _mark

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
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
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


def test_marks_of_different_tensors_differ():
    drawn = torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    marks = [_mark(row).item() for row in drawn]
    # Of 300 numbers below 2^20, 0.04 pairs agree on average.
    assert len(set(marks)) == 300 and 0 <= min(marks) and max(marks) < 1 << 20


def test_without_a_group_nothing_is_exchanged():
    alone = ProcessGroup()
    tensor = torch.ones(2)
    assert alone.count == 1 and alone.add(tensor) is tensor
