"""What nets and callers do beside computing outputs: write, keep, replace, draw, cut off."""

import pytest
import torch
import torch.nn.functional as F
from oracles import hessian_by_nested_gradients
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import resid_theory as rt

ENGINES = ("retained", "rebuilt")


class Scaled(nn.Sequential):
    """A perceptron whose output has a factor and a shift that are no parameters."""

    def __init__(self):
        super().__init__(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        self.register_buffer("shift", torch.zeros(3))
        self.factor = 2.0

    def forward(self, x):
        return self.factor * super().forward(x) + self.shift


@pytest.fixture
def data(generator):
    x = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    return x, torch.arange(6) % 3


def made(net):
    """A net in float64 with weights of one seed."""
    torch.manual_seed(0)
    return net().double()


# -- changes between products ----------------------------------------------------------------------


def _double(net):
    vector_to_parameters(2 * parameters_to_vector(net.parameters()), net.parameters())


def _replace(net):
    net[2] = nn.Linear(5, 3).double()


def _set(name, value):
    def change(net):
        *path, last = name.split(".")
        setattr(net.get_submodule(".".join(path)), last, value)

    return change


CHANGES = {
    "replaced data": _double,
    "scaled data": lambda net: net[0].weight.data.mul_(2),
    "negated": lambda net: net[0].weight.data.neg_(),
    "stepped": lambda net: net[0].bias.data.add_(1),
    "cast": lambda net: net.float(),
    "frozen": lambda net: net[0].requires_grad_(False),
    "another layer": _replace,
    "another activation": lambda net: net.__setitem__(1, nn.Sigmoid()),
    "buffer": lambda net: net.shift.add_(1),
    "another parameter": _set("0.bias", nn.Parameter(torch.zeros(5, dtype=torch.float64))),
    "number": _set("factor", 3.0),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_net_are_noticed(change, engine, data):
    net = made(Scaled)
    operator = rt.curvature_operator(net, "cross_entropy", data, engine=engine)
    vector = torch.ones(43)
    product = operator @ vector
    net(data[0]).sum().backward()  # neither gradients nor a change of mode change the net
    net.train()
    assert torch.equal(operator @ vector, product)
    CHANGES[change](net)
    for use in (lambda: operator @ vector, operator.dense, lambda: rt.spectrum(operator)):
        with pytest.raises(ValueError, match="^net: changed after the operator was made"):
            use()


# -- what forward writes and keeps -----------------------------------------------------------------


class Cached(nn.Module):
    """Keeps in eval mode what it computes from a parameter, as LeViT and EfficientViT do."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)
        self.bias, self.cache = nn.Parameter(torch.ones(5)), {}

    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def forward(self, x):
        if self.training:
            return self.b(torch.tanh(self.a(x)) * self.bias.exp())
        if "cpu" not in self.cache:
            self.cache["cpu"] = self.bias.exp()
        return self.b(torch.tanh(self.a(x)) * self.cache["cpu"])


@pytest.mark.parametrize("engine", ENGINES)
def test_caches_of_parameters_are_differentiated_and_emptied(engine, data):
    net = made(Cached)
    loss = F.cross_entropy(net.train()(data[0]), data[1])
    exact = hessian_by_nested_gradients(loss, list(net.parameters()))
    torch.testing.assert_close(rt.hessian(net, "cross_entropy", data), exact)
    operator = rt.curvature_operator(net, "cross_entropy", data, engine=engine, chunk=4)
    assert net.cache == {}
    with torch.no_grad():
        net.eval()(data[0])  # fills the cache with a constant
    torch.testing.assert_close(operator.dense(), exact)


class Renormalized(nn.Module):
    """Renormalizes its table in forward."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(7, 4, max_norm=0.5), nn.Linear(4, 3)

    def forward(self, ids):
        return self.out(self.table(ids).mean(1))


@pytest.mark.parametrize("call", [rt.hessian, rt.spectrum, rt.curvature_operator])
def test_weights_that_forward_writes_are_refused_and_put_back(call, left_alone):
    net = made(Renormalized)
    ids = torch.arange(30).view(6, 5) % 7
    with left_alone(net), pytest.raises(ValueError, match=r"^net: .* writes .* 'table.weight'"):
        call(net, "cross_entropy", (ids, torch.arange(6) % 3))
    net.eval()(ids)  # now they are normalized
    net.table.weight.data.mul_(0.9)
    call(net, "cross_entropy", (ids, torch.arange(6) % 3))


@pytest.mark.parametrize("call", [rt.hessian, rt.spectrum, rt.curvature_operator])
def test_layers_without_shapes_are_named(call, data):
    net = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="^net: layer '0' has no shape yet; call the net once"):
        call(net, "cross_entropy", data)
