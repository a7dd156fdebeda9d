"""The pretended GPU refuses what a GPU refuses, and the library gets along with it."""

import copy

import pytest
import torch
from fake_cuda import REPLACED, pretended
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
    assert rt.check_equivalence(net, rt.to_plain(net), data[0].to("cuda")).largest < 1e-12


@pytest.mark.parametrize("count", [1, 2], ids=["one", "stacked"])
def test_training(count, generator):
    images = rt.load_images("digits", samples=24, size=8, progress=False)
    nets = [rt.diracnet(10, generator=seed) for seed in range(count)]
    recipe = rt.training.DIRACNETS.scaled(1).change(batch=8, augmentation="none")
    run = rt.train(
        nets, images, recipe, seed=list(range(count)), device="cuda", test=images, progress=False
    )
    folded = rt.fold(run.nets[0].eval())
    assert all(p.is_cuda for p in folded.parameters())
    assert 0 <= rt.evaluate(folded, images).error(1) <= 1
