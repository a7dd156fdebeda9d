"""The pretended GPU refuses what a GPU refuses, and the library gets along with it."""

import copy
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from fake_cuda import REPLACED, host_waits, pretended
from tolerances import HESSIAN, relative_error
from torch import nn

import resid_theory as rt


@pytest.fixture(autouse=True)
def gpu():
    before = {name: getattr(torch.cuda, name) for name in REPLACED}
    with pretended():
        assert torch.cuda.is_available()
        yield
    assert before == {name: getattr(torch.cuda, name) for name in REPLACED}


def on_gpu(*shape):
    return torch.ones(*shape, device="cuda")


REFUSED = {
    "sum": lambda: on_gpu(2) + torch.ones(2),
    "product": lambda: on_gpu(2, 2) @ torch.ones(2, 2),
    "in place": lambda: torch.ones(2).add_(on_gpu(2)),
    "index": lambda: torch.ones(2)[torch.zeros(1, dtype=torch.int64, device="cuda")],
    "values": lambda: on_gpu(3).index_put_((torch.tensor([0, 1]),), torch.ones(2)),
    "equal": lambda: torch.equal(on_gpu(2), torch.ones(2)),
    "module": lambda: nn.Linear(2, 2).to("cuda")(torch.ones(1, 2)),
    "array": lambda: on_gpu(2).numpy(),
    "generator": lambda: torch.randn(2, device="cuda", generator=torch.Generator()),
    "draw in place": lambda: on_gpu(2).normal_(generator=torch.Generator()),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_mixing_is_refused(kind):
    with pytest.raises((RuntimeError, TypeError), match="device|numpy"):
        REFUSED[kind]()


def test_where_tensors_are():
    x = on_gpu(4)
    parameter = nn.Parameter(x.clone())
    (2 * parameter * x).sum().backward()
    there = [x, x[1:], x + 1.0, x * torch.tensor(2.0), copy.deepcopy(x), parameter, parameter.grad]
    there += [torch.ones(4).to(x), x.new_zeros(3), torch.zeros_like(x), x[torch.tensor([0, 2])]]
    assert all(tensor.is_cuda and tensor.device == torch.device("cuda", 0) for tensor in there)
    back = x.cpu()
    here = [back, torch.ones(4), torch.as_tensor(back), x.to("cpu"), torch.tensor(x.tolist())]
    assert not any(tensor.is_cuda or tensor.device.type != "cpu" for tensor in here)
    back[0] = 5.0
    assert x[0] == 1.0


@pytest.mark.parametrize(
    ("options", "names"),
    [({"--device": "cpu"}, "abcd"), ({"--device": "pretended"}, "acd"),
     ({"--device": "cuda", "--only-device": True}, "acd")],
    ids=["cpu", "pretended", "only_device"],
)  # fmt: skip
def test_tests_that_choose_a_device_are_selected(request, options, names):
    def item(name, marks=(), **given):
        return SimpleNamespace(
            path=Path("gpu/test_some.py"), name=name, keywords=("gpu",), add_marker=Mock(),
            get_closest_marker={mark: mark for mark in marks}.get, **given,
        )  # fmt: skip

    items = [
        item("a", fixturenames=["device"]), item("b"),  # a doctest
        item("c", fixturenames=["cuda"]), item("d", ["gpu"], fixturenames=[]),
    ]  # fmt: skip
    skipped = items[3].add_marker
    conftest = request.config.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    conftest.pytest_collection_modifyitems(Mock(getoption=options.get), items)
    assert "".join(item.name for item in items) == names
    assert skipped.called == (options["--device"] != "cuda")
    assert not any(item.add_marker.called for item in items if item.name != "d")


WAITING = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "bool": lambda x: bool(x.sum() > 1),
    "list": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: torch.ones(2).to(x),
    "tensor": lambda x: torch.tensor([1.0], device=x.device),
    "like": lambda x: x.new_tensor([1.0]),
    "copy": lambda x: torch.zeros(2).copy_(x),
    "equal": lambda x: torch.equal(x, x),
    "close": lambda x: torch.allclose(x, x),
    "mask": lambda x: x[x > 0],
    "index": lambda x: x[torch.tensor([0])],
    "nonzero": lambda x: x.nonzero(),
    "synchronize": lambda x: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("kind", WAITING)
def test_what_waits_for_the_gpu_is_noted(kind):
    x = on_gpu(2)
    with host_waits() as waits:
        WAITING[kind](x)
    assert len(waits) == 1


def test_what_the_gpu_does_alone_is_not_noted():
    x = on_gpu(4).requires_grad_()
    with host_waits() as waits:
        loss = (x[1:] * torch.tensor(2.0)).square().mean() + torch.zeros(2, device="cuda").sum()
        loss.backward()
        torch.where(x > 0, x, 0.0)[torch.tensor(1)]
        torch.ones(3).to("cuda", non_blocking=True)
        assert float(torch.ones(1)) == 1
    assert not waits


def test_the_gpu_draws_its_own_numbers():
    here = torch.get_rng_state()
    draws = []
    for _ in range(2):
        torch.cuda.manual_seed(3)
        state = torch.cuda.get_rng_state()
        drop = nn.functional.dropout(on_gpu(9), 0.5)
        draws.append(torch.stack([torch.randn(9, device="cuda"), drop, on_gpu(9).normal_()]))
        assert not torch.equal(torch.cuda.get_rng_state(), state)
    assert torch.equal(*draws) and torch.equal(torch.get_rng_state(), here)
    torch.rand(3)
    with torch.random.fork_rng(devices=[0]):
        state = torch.cuda.get_rng_state()
        torch.rand(3, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_autocast_rounds():
    with torch.autocast("cuda", torch.bfloat16):
        assert (on_gpu(2, 2).float() @ on_gpu(2, 2).float()).dtype == torch.bfloat16


@pytest.fixture
def net(generator):
    return rt.simplified_net(5, generator=generator).double().eval().to("cuda")


@pytest.fixture
def data(generator):
    """On the CPU: data follow the net."""
    return torch.randn(4, 3, 8, 8, generator=generator), torch.arange(4)


def test_curvature(net, data, tmp_path):
    operator = rt.curvature_operator(net, "cross_entropy", data)
    v = torch.ones(operator.shape[0], device="cuda")
    assert (operator @ v).is_cuda
    report = rt.spectrum(
        net, "cross_entropy", data, k=1, density=True, probes=2, steps=5, folder=tmp_path
    )
    assert report.pairs.vectors.is_cuda and not report.pairs.values.is_cuda
    small = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).to("cuda")
    x, y = data[0], data[1] % 2
    found = rt.hessian(small, "cross_entropy", (x, y))
    assert found.is_cuda
    exact = rt.hessian(copy.deepcopy(small).to("cpu"), "cross_entropy", (x, y))
    assert relative_error(found.cpu(), exact) <= HESSIAN


def test_stability(net, data):
    assert rt.layer_cushions(net, data).identity_removed.shape == (5, 4)
    assert rt.dominant_flows(net, data).shares.shape[0] == 4
    assert rt.check_equivalence(net, rt.to_residual(net), data[0].to("cuda")).largest < 1e-12


def test_a_trained_net_folds_and_is_evaluated_there():
    images = rt.load_images("digits", samples=24, size=8, progress=False)
    recipe = rt.training.DIRACNETS.scaled(1).change(batch=8, augmentation="none")
    net = rt.diracnet(10, generator=0)
    rt.train(net, images, recipe, seed=0, device="cuda", test=images, progress=False)
    folded = rt.fold(net.eval())
    assert all(p.is_cuda for p in folded.parameters())
    assert 0 <= rt.evaluate(folded, images).error(1) <= 1
