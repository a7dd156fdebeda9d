"""What nets and callers do beside computing outputs: write, keep, replace, draw, cut off."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import hessian_by_nested_gradients
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.checkpoint import checkpoint

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


# -- hooks on gradients ----------------------------------------------------------------------------


def _hooked(net, seen):
    """Hooks that change gradients, of every kind that torch has."""

    def doubled(_, given, *__):
        seen.append(given)
        return tuple(None if part is None else 2 * part for part in given)

    net[0].weight.register_hook(lambda given: given.clamp(-1e-3, 1e-3))
    net[0].register_full_backward_pre_hook(doubled)
    net[2].register_full_backward_hook(doubled)
    return torch.nn.modules.module.register_module_full_backward_hook(doubled)


@pytest.mark.parametrize("engine", ENGINES)
def test_backward_hooks_step_aside(engine, data, left_alone):
    net, (x, y), seen = made(Scaled), data, []
    exact = hessian_by_nested_gradients(F.cross_entropy(net(x), y), list(net.parameters()))
    slope = torch.autograd.grad(F.cross_entropy(net(x), y), net[0].weight)[0]
    handle = _hooked(net, seen)
    try:
        with left_alone(net):
            operator = rt.curvature_operator(net, "cross_entropy", data, engine=engine)
            found = operator.dense(), rt.hessian(net, "cross_entropy", data)
        assert not seen
        for matrix in found:
            torch.testing.assert_close(matrix, exact)
        torch.testing.assert_close(operator.gradient[: slope.numel()], slope.flatten())
        F.cross_entropy(net(x.clone().requires_grad_()), y).backward()
    finally:
        handle.remove()
    assert len(seen) > 3 and net[0].weight.grad.abs().max() <= 1e-3


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
    "exchanged": lambda net: net[0].weight.data.copy_(net[0].weight.data.flip(0)),
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
    net.log = ["begun"]
    operator = rt.curvature_operator(net, "cross_entropy", data, engine=engine)
    vector = torch.ones(43)
    product = operator @ vector
    net(data[0]).sum().backward()  # neither gradients nor modes and logs change the net
    net.train()
    net.log = ["another"]
    assert torch.equal(operator @ vector, product)
    CHANGES[change](net)
    for use in (lambda: operator @ vector, operator.dense, lambda: rt.spectrum(operator)):
        with pytest.raises(ValueError, match="^net: changed after the operator was made"):
            use()


def test_a_frozen_parameter_is_told_in_words(data):
    net = made(Scaled)
    operator = rt.curvature_operator(net, "cross_entropy", data)
    net[0].requires_grad_(False)
    kind = r"\(\(5, 4\), torch.float64, cpu, %strainable\)"
    with pytest.raises(ValueError, match=f"'0.weight' is {kind % 'not '} and was {kind % ''}"):
        operator @ torch.ones(43)


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


# -- random numbers --------------------------------------------------------------------------------


class Drawing(nn.Module):
    """Draws random numbers in eval mode."""

    def __init__(self, draw):
        super().__init__()
        self.a, self.noise, self.b = nn.Linear(4, 20), Draw(draw), nn.Linear(20, 3)

    def forward(self, x):
        return self.b(self.noise(self.a(x).tanh()))


class Draw(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return self.draw(x)


OWN = torch.Generator().manual_seed(0)
DRAWS = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "a path dropped": lambda x: x * (torch.rand(()) > 0.5),
    "numpy": lambda x: x * np.random.rand(),  # noqa: NPY002
    "own generator": lambda x: x + torch.rand(x.shape, generator=OWN),
}
ROUTES = {
    "dense": rt.hessian,
    "spectrum": rt.spectrum,
    "rebuilt": lambda *given: rt.curvature_operator(*given, engine="rebuilt"),
    "empirical_fisher": lambda *given: rt.curvature_operator(*given, matrix="empirical_fisher"),
    "batch statistics": lambda *given: rt.curvature_operator(*given, batchnorm="batch"),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_random_numbers_in_forward_are_refused(draw, data):
    layer = "" if draw == "own generator" else ", in layer 'noise'"
    for route in ROUTES.values():
        with pytest.raises(ValueError, match=f"^net: gives other values .*eval mode{layer}"):
            route(Drawing(DRAWS[draw]).double(), "cross_entropy", data)


def test_random_numbers_in_losses_are_refused(data):
    net = made(Scaled)

    def noisy(output, target):
        return F.cross_entropy(F.dropout(output), target)

    def noisy_batch(net, batch):
        return noisy(net(batch[0]), batch[1])

    for loss in (noisy, rt.Loss(noisy_batch, of="batch")):
        with pytest.raises(ValueError, match="^loss: gives other values at every call"):
            rt.curvature_operator(net, loss, [data])


def test_random_numbers_without_effect_are_told(data):
    net = Drawing(lambda x: x + 0.0 * torch.rand_like(x)).double()
    (note,) = rt.curvature_operator(net, "cross_entropy", data).notes
    assert note == "net draws random numbers, which had no effect in 30 runs"


# -- gradients that do not arrive ------------------------------------------------------------------


class CutOff(nn.Module):
    """A trunk without gradients, and a layer that is not used."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head, self.unused = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(2, 2)

    def forward(self, x):
        with torch.no_grad():
            hidden = torch.tanh(self.trunk(x))
        return self.head(hidden)


@pytest.mark.parametrize("route", ROUTES)
def test_parameters_that_no_gradient_reaches_are_named(route, data, left_alone):
    net = made(CutOff)
    words = "depends on 'trunk.weight', 'trunk.bias', 'unused.weight' and 1 more, which no gradient"
    with left_alone(net), pytest.raises(ValueError, match=f"^net: the loss {words}"):
        ROUTES[route](net, "cross_entropy", data)
    net.trunk.requires_grad_(False)
    found = ROUTES[route](net, "cross_entropy", data)
    if hasattr(found, "notes"):  # a matrix has none, and its zeros are right
        words = (
            "'unused.weight', 'unused.bias', and the loss does not depend on them: rows of zeros"
        )
        assert found.notes[0] == f"no gradient reaches {words}"


def test_stale_caches_are_named(data):
    net = made(Cached).eval()
    with torch.no_grad():
        net(data[0])
    with pytest.raises(ValueError, match="^net: the loss depends on 'bias', .* cache"):
        rt.hessian(net, "cross_entropy", data)
    net.train()
    rt.hessian(net, "cross_entropy", data)


def test_parameters_that_some_batches_reach_are_reached(data):
    """An expert that the first batch does not ask."""

    class Routed(CutOff):
        def forward(self, x):
            hidden = self.trunk(x)
            return (
                self.head(hidden) if x[0, 0] > 0 else self.unused(hidden[:, :2]).repeat(1, 2)[:, :3]
            )

    x = torch.cat([-data[0].abs(), data[0].abs()])
    batches = [(x[:6], data[1]), (x[6:], data[1])]
    operator = rt.curvature_operator(made(Routed), "cross_entropy", batches)
    assert operator.notes == ()
    assert bool((operator.dense().diagonal() != 0).any())


# -- functions that are differentiated once --------------------------------------------------------


class Once(torch.autograd.Function):
    """A square of which torch takes the second derivative for zero."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z * z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class Detached(torch.autograd.Function):
    """A cube whose backward hides from torch that it depends on the input."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * grad


class Whole(Detached):
    """The same with all derivatives."""

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class Between(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function):
        super().__init__()
        self.a, self.function, self.b = nn.Linear(4, 5), function, nn.Linear(5, 3)

    def forward(self, x):
        return self.b(self.function(self.a(x)))


def _bags(z):
    rows = torch.arange(len(z) * 5).view(len(z), 5)
    return F.embedding_bag(rows, z.reshape(-1, 1).expand(-1, 5), mode="sum")


ONCE = {
    "Once.apply": (Once.apply, lambda z: z * z, "without once_differentiable"),
    "cdist": (
        lambda z: torch.cdist(z[:, None], torch.eye(5, dtype=z.dtype)[None])[:, 0],
        lambda z: (z[:, None] - torch.eye(5, dtype=z.dtype)).norm(dim=-1),
        r"take \(a.unsqueeze",
    ),
    "embedding_bag": (
        _bags, lambda z: z.sum(1, keepdim=True).expand(-1, 5), "F.embedding and a sum",
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_backward_that_detaches_is_refused_where_it_is_differentiated(dtype, data):
    net, plain = (made(lambda f=f: Between(f)).to(dtype) for f in (Detached.apply, lambda z: z**3))
    for call in (rt.curvature_operator, rt.hessian, rt.spectrum):
        with pytest.raises(ValueError, match=r"^net: .* derivative of Detached.apply .*; write"):
            call(net, "cross_entropy", data)
    found, exact = (
        rt.curvature_operator(n, "cross_entropy", data, matrix="gauss_newton").dense()
        for n in (net, plain)
    )
    torch.testing.assert_close(found, exact)


class Masked(nn.Module):
    """A ReLU by a mask that is detached, of which nothing depends on weights but by jumps."""

    def forward(self, z):
        return z * (z.detach() > 0)


class Called(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function.apply(z)


class Rounded(torch.autograd.Function):
    """Rounding with the gradient of the identity, as in trainings of quantized nets."""

    @staticmethod
    def forward(ctx, z):
        return (8 * z).round() / 8

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("last", ["linear", "rounded"])
def test_kinks_are_no_cuts(last, dtype):
    torch.manual_seed(2)
    layers = [(nn.Conv2d(8 if n else 3, 8, 3, padding=1), Masked()) for n in range(3)]
    end = nn.Linear(8, 4) if last == "linear" else nn.Sequential(nn.Linear(8, 4), Called(Rounded))
    net = nn.Sequential(*sum(layers, ()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), end).to(dtype)
    x, y = torch.randn(4, 3, 12, 12).to(dtype), torch.arange(4) % 3
    notes = rt.curvature_operator(net, "cross_entropy", (x, y)).notes
    assert ["another slope" in note for note in notes] == [True] * (last != "linear")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_backward_with_all_derivatives_is_taken(dtype, data):
    net = made(lambda: nn.Sequential(Between(Whole.apply), nn.ReLU(), nn.Linear(3, 3))).to(dtype)
    wide, (x, y) = copy.deepcopy(net).double(), data
    x = x.to(dtype).double()
    exact = hessian_by_nested_gradients(F.cross_entropy(wide(x), y), list(wide.parameters()))
    found = rt.curvature_operator(net, "cross_entropy", data).dense()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found, exact, rtol=0, atol=100 * eps * float(exact.abs().max()))


@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss(reduction="sum")])
@pytest.mark.parametrize("name", ONCE)
def test_functions_without_a_second_derivative_are_named(name, loss, data):
    once, twice, remedy = ONCE[name]
    net, plain = made(lambda: Between(once)), made(lambda: Between(twice))
    for matrix in ("hessian", "gauss_newton"):
        with pytest.raises(ValueError, match=f"^net: .* second derivative of {name} .*{remedy}"):
            rt.curvature_operator(net, loss, data, matrix=matrix)
    with pytest.raises(ValueError, match="second derivative of .* matrix='empirical_fisher'"):
        rt.hessian(net, loss, data)
    weighted = (*data, torch.arange(6).double())
    for given in (data, rt.Data.of(weighted[:2], sample_weight=weighted[2])):
        for engine in ENGINES:
            found, exact = (
                rt.curvature_operator(n, loss, given, matrix="empirical_fisher", engine=engine)
                for n in (net, plain)
            )
            torch.testing.assert_close(found.gradient, exact.gradient)
            torch.testing.assert_close(found.dense(), exact.dense())
            torch.testing.assert_close(found.block("a.*", "b.*").dense(), exact.dense()[:25, 25:])


@pytest.mark.parametrize("method", ["layer_pairs", "columns"])
@pytest.mark.parametrize("name", ONCE)
def test_functions_behind_the_only_layer_are_named(name, method, data):
    net = made(lambda: Between(ONCE[name][0]))
    net.b = nn.Identity()
    with pytest.raises(ValueError, match=f"^net: .* second derivative of {name} "):
        rt.hessian(net, "cross_entropy", data, method=method)


def test_losses_without_a_second_derivative_are_named(data):
    def loss(output, target):
        rows = output.log_softmax(1)[:, None].expand(-1, 4, -1).movedim(0, 1)
        lengths = torch.full((len(target),), 4), torch.full((len(target),), 1)
        return F.ctc_loss(rows, target[:, None] % 2 + 1, *lengths, reduction="sum") / len(target)

    loss = rt.Loss(loss, weights=lambda target: torch.ones(len(target)))
    with pytest.raises(ValueError, match="second derivative of ctc_loss in net or loss"):
        rt.hessian(made(Scaled), loss, data)
    fisher = rt.curvature_operator(made(Scaled), loss, data, matrix="empirical_fisher")
    assert fisher.dense().trace() > 0


def test_hardsigmoid_is_differentiated(data):
    net = nn.Sequential(nn.Linear(4, 5), nn.Hardsigmoid(), nn.Linear(5, 3)).double()
    plain = made(lambda: Between(lambda z: F.relu6(z + 3) / 6))
    plain.load_state_dict(dict(zip(plain.state_dict(), net.state_dict().values(), strict=True)))
    exact = rt.hessian(plain, "cross_entropy", data)
    torch.testing.assert_close(rt.hessian(net, "cross_entropy", data), exact)


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton", "empirical_fisher"])
def test_sparse_gradients_are_a_format_only(matrix):
    def measured(sparse):
        net = made(
            lambda: nn.Sequential(nn.Embedding(7, 4, sparse=sparse), nn.Flatten(), nn.Linear(8, 3))
        )
        data = torch.arange(12).view(6, 2) % 7, torch.arange(6) % 3
        return rt.curvature_operator(net, "cross_entropy", data, matrix=matrix).dense()

    assert torch.equal(measured(True), measured(False))


def test_sparse_gradients_decay_and_have_momentum_as_dense_ones(tmp_path):
    def trained(sparse):
        net = made(
            lambda: nn.Sequential(nn.Embedding(7, 4, sparse=sparse), nn.Flatten(), nn.Linear(8, 3))
        )
        net.register_buffer("table", torch.eye(3).to_sparse())
        data = torch.arange(12).view(6, 2) % 7, torch.arange(6) % 3
        recipe = rt.Recipe(epochs=2, batch=3, milestones=(), augmentation="none", weight_decay=0.1)
        assert rt.check_equivalence(net, net, data, loss="cross_entropy").gradients == 0
        rt.train(net, data, recipe, seed=0, progress=False)
        with pytest.raises(
            ValueError, match="^out: files hold dense tensors only, and buffer 'tab"
        ):
            rt.train(net, data, recipe, seed=0, progress=False, out=tmp_path)
        return net[0].weight

    assert torch.equal(trained(True), trained(False))


@pytest.mark.parametrize("of", ["output", "batch"])
def test_a_loss_that_reads_the_net_is_not_measured_on_a_copy(of, data):
    net = made(Scaled).float()

    def loss(given, beside):
        output, target = (given, beside) if of == "output" else (given(beside[0]), beside[1])
        return F.cross_entropy(output, target) + sum(p.square().sum() for p in net.parameters())

    found = rt.hessian(net, rt.Loss(loss, of=of), [(data[0].float(), data[1])])
    plain = rt.hessian(made(Scaled).float(), "cross_entropy", data)
    torch.testing.assert_close(found, plain + 2 * torch.eye(43), rtol=1e-5, atol=1e-5)


class Rotated(nn.Module):
    """Weights that are read as complex numbers, behind an odd number of others."""

    def __init__(self):
        super().__init__()
        self.scale, self.pairs = nn.Parameter(torch.ones(1)), nn.Parameter(torch.randn(2, 2))

    def forward(self, x):
        turned = torch.view_as_complex(x.view(-1, 2, 2)) * torch.view_as_complex(self.pairs)
        return torch.view_as_real(turned * self.scale).flatten(1)


def test_real_weights_may_be_read_as_complex(data):
    net, x = made(Rotated), data[0]
    found = rt.curvature_operator(net, nn.MSELoss(), (x, x)).dense()
    turn = torch.view_as_complex(net.pairs.detach())
    z = torch.view_as_complex(x.view(-1, 2, 2))
    # |s p z - z|^2 / 4 m, with s = 1: second derivatives by s, and by both parts of each p.
    moment = z.abs().square().mean(0) / 2
    torch.testing.assert_close(found[0, 0], (moment * turn.abs().square()).sum())
    torch.testing.assert_close(found[1:, 1:], moment.repeat_interleave(2).diag())


class Cut(Scaled):
    """A perceptron with a shortcut whose gradient is none, for the loss or for nothing."""

    def __init__(self, cut, used):
        super().__init__()
        self.cut, self.used = cut, used

    def forward(self, x):
        hidden = self[0](x)
        beside = self.cut(hidden)[:, :3]
        output = super().forward(x)
        return output + beside if self.used else output


class Reversed(torch.autograd.Function):
    """The gradient reversal of domain adaptation."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad


def _without_graph(hidden):
    with torch.no_grad():
        return hidden.sin()


CUTS = {
    "detach": lambda hidden: hidden.detach(),
    "data": lambda hidden: hidden.data,
    "no_grad": _without_graph,
    "reversed": Reversed.apply,
}


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CUTS)
def test_a_path_that_is_cut_is_named(name, dtype, used, data):
    net, data = made(lambda: Cut(CUTS[name], used)).to(dtype), (data[0].to(dtype), data[1])
    weights = copy.deepcopy(net.state_dict())
    notes = rt.curvature_operator(net, "cross_entropy", data).notes
    assert any("another slope than its gradient" in note for note in notes) == used
    assert all(torch.equal(weights[key], value) for key, value in net.state_dict().items())
    whole = rt.Loss(lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]), of="batch")
    assert rt.curvature_operator(net, whole, [data]).notes == notes
    loss = F.cross_entropy if used else lambda o, t: F.cross_entropy(o - 0.5 * o.detach(), t)
    notes = rt.curvature_operator(made(Scaled).to(dtype), loss, data).notes
    assert any("another slope than its gradient" in note for note in notes) != used


@pytest.mark.parametrize(("scale", "more"), [(1e-9, 0.0), (1e9, 0.0), (1.0, 1e10)])
@pytest.mark.parametrize("used", [True, False])
def test_what_is_cut_does_not_depend_on_the_size_of_the_loss(used, scale, more, data):
    net = made(lambda: Cut(CUTS["detach"], used)).double()
    notes = rt.curvature_operator(
        net, lambda o, t: scale * F.cross_entropy(o, t) + more, (data[0].double(), data[1])
    ).notes
    seen = used and not more  # beside a large number differences are round-off
    assert any("another slope than its gradient" in note for note in notes) == seen


class Angry(torch.autograd.Function):
    """A gradient whose derivative fails in its own words."""

    @staticmethod
    def forward(ctx, z):
        return z.clone()

    @staticmethod
    def backward(ctx, grad):
        return AngryBack.apply(grad)


class AngryBack(Angry):
    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("on purpose")


def test_other_errors_of_second_derivatives_are_left_as_they_are(data):
    with pytest.raises(RuntimeError, match="^on purpose"):
        rt.curvature_operator(made(lambda: Between(Angry.apply)), "cross_entropy", data)


@pytest.mark.parametrize("beside", [lambda x, _: x.detach(), lambda _, h: torch.zeros_like(h)])
def test_data_that_is_detached_and_new_values_cut_nothing(beside, data):
    """A path that may be cut costs runs of the net, to measure the slope of the loss."""
    net, calls = made(Scaled), []
    run = net.forward
    for extra in (lambda x, _: x, beside):
        net.forward = lambda x, extra=extra: calls.append(extra(x, net[0](x))) or run(x)
        rt.curvature_operator(net, "cross_entropy", data)
        calls.append(None)
    assert calls.index(None) == len(calls) // 2 - 1


class Recomputing(nn.Module):
    """Gradient checkpointing of a layer."""

    def __init__(self, inner, run):
        super().__init__()
        self.a, self.inner, self.c, self.run = nn.Linear(4, 8), inner, nn.Linear(8, 3), run

    def forward(self, x):
        return self.c(self.run(self.inner, self.a(x)))


class Attention(nn.Module):
    def forward(self, z):
        z = z.view(len(z), 1, 4, 2)
        return F.scaled_dot_product_attention(z, z, z).reshape(len(z), 8)


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, z):
        return torch.tanh(self.layer(z.view(len(z), 2, 4))).flatten(1)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("inner", [Attention, lambda: nn.BatchNorm1d(8), Convolution])
def test_checkpointed_nets_have_products_like_others(data, inner, reentrant):
    again = partial(checkpoint, use_reentrant=reentrant)
    nets = [made(lambda r=r: Recomputing(inner(), r)) for r in (again, lambda f, z: f(z))]
    found, exact = (rt.curvature_operator(net, "cross_entropy", data) for net in nets)
    torch.testing.assert_close(found.dense(), exact.dense())
    torch.testing.assert_close(rt.hessian(nets[0], "cross_entropy", data), exact.dense())
    if reentrant:  # on again behind the call
        with pytest.raises(RuntimeError, match="compatible with .grad"):
            torch.autograd.grad(nets[0](data[0]).sum(), nets[0].a.weight)
