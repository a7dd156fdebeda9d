"""Nets as users have them: wrapped, compiled, pruned, normalized, shared, scripted, unfinished."""

import itertools
import os
from types import SimpleNamespace

import oracles
import pytest
import torch
import torch.nn.functional as F
from fake_cuda import pretended
from tolerances import HESSIAN, assert_same, relative_error
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import resid_theory as rt
from resid_theory import stability
from resid_theory.runtime.net_entry import layered_net

X, Y = oracles.noise(8, 3).double(), torch.arange(8) % 3
RECIPE = rt.Recipe(
    epochs=1, batch=4, lr=0.1, momentum=0.0, weight_decay=0.0, augmentation="none", milestones=(),
    precision="float64",
)  # fmt: skip
MOMENT = SimpleNamespace(step=3)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))


def hessian_of(net, *, parameters=None):
    """The exact Hessian of the net's cross-entropy, in eval mode, by nested gradients."""
    modes = [module.training for module in net.modules()]
    with torch.compiler.set_stance("force_eager"):
        loss = F.cross_entropy(net.eval()(X), Y)
    for module, mode in zip(net.modules(), modes, strict=True):
        module.training = mode
    return oracles.hessian_by_nested_gradients(loss, list(parameters or net.parameters()))


# -- wrappers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """A process group of this process alone, for DistributedDataParallel."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(net):
    return torch.compile(net, backend="aot_eager")


def compiled_in_place(net):
    net.compile(backend="aot_eager")
    return net


def compiled_inside(net):
    net[2] = compiled(net[2])
    return net


def parallel_inside(net):
    net[2] = nn.parallel.DistributedDataParallel(nn.DataParallel(net[2]))
    return net


WRAPPERS = {
    "compiled in place": compiled_in_place,
    "compiled inside": compiled_inside,
    "data parallel": nn.DataParallel,
    "distributed": nn.parallel.DistributedDataParallel,
    "parallel inside": parallel_inside,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "one in another": lambda net: compiled(nn.DataParallel(net)),
}


def trained(net):
    run = rt.train(net, (X, Y), RECIPE, seed=0, device="cpu", progress=False)
    return torch.cat([p.detach().flatten() for p in run.nets[0].parameters()])


CALLS = {
    "operator": lambda net: rt.curvature_operator(net, "cross_entropy", (X, Y)).dense(),
    "rebuilt": lambda net: rt.curvature_operator(
        net, "cross_entropy", (X, Y), engine="rebuilt"
    ).dense(),
    "hessian": lambda net: rt.hessian(net, "cross_entropy", (X, Y)),
    "callback": lambda net: torch.tensor(
        list(rt.curvature_callback("cross_entropy", (X, Y), dense=0)(net, MOMENT).values())
    ),
    "cushions": lambda net: rt.layer_cushions(net, X).values,
    "interlayer": lambda net, start=2: rt.interlayer_cushions(net, X, start=start).values,
    "noise": lambda net: stability.weight_noise(net, X, levels=[0.1], draws=2).measured,
    "noise below": lambda net: stability.activation_noise(net, X, levels=[0.1], draws=2).measured,
    "evaluate": lambda net: torch.tensor(rt.evaluate(net, (X, Y)).loss),
    "equivalence": lambda net: torch.tensor(rt.check_equivalence(mlp(), net, X).largest),
    "train": trained,
}


# Parts that are compiled are trained so, of which torch's compiler warns.
COMPILED = [("compiled in place", "train"), ("compiled inside", "train")]
MEASURED = [pair for pair in itertools.product(WRAPPERS, CALLS) if pair not in COMPILED]


class Sharded(nn.Module):
    """Named as what torch's older FSDP makes of a net."""

    def __init__(self):
        super().__init__()
        self._fsdp_wrapped_module = nn.Linear(2, 2)


def distributed():
    net = nn.Linear(2, 2)
    net.bias.placements = ()  # as a DTensor has
    return net


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (lambda: nn.Linear(2, 2, device="meta"), "^net: 'weight' is on the meta device, needs val"),
        (lambda: nn.Sequential(nn.LazyLinear(2)), "^net: layer '0' has no shape yet; call the net"),
        (Sharded, "^net: its parameters are distributed over processes .fully sharded.; needs"),
        (distributed, "^net: its parameters are distributed over processes"),
    ],
)
def test_nets_without_their_values_here_are_refused(net, message):
    with pytest.raises(ValueError, match=message):
        rt.layer_cushions(net(), X)


@pytest.mark.parametrize(("wrapper", "call"), MEASURED)
def test_a_wrapped_net_is_measured_as_the_net_inside(wrapper, call, left_alone):
    net = WRAPPERS[wrapper](mlp())
    net.train()
    if call == "train":
        found = CALLS[call](net)
    else:
        attributes = [dict(vars(module)) for module in net.modules()]
        with left_alone(net):
            found = CALLS[call](net)
        assert [dict(vars(module)) for module in net.modules()] == attributes
    # Not to the bit: the net inside may take another route to its Hessian.
    assert relative_error(found, CALLS[call](mlp())) < 10 * HESSIAN


@pytest.mark.parametrize(
    "wrapper", sorted(WRAPPERS.keys() - {"compiled inside", "parallel inside"})
)
def test_names_are_those_of_the_net_inside(wrapper, tmp_path):
    net = WRAPPERS[wrapper](mlp())
    operator = rt.curvature_operator(net, "cross_entropy", (X, Y), parameters="2.*")
    assert operator.names == ["2.weight", "2.bias"]
    assert rt.layer_cushions(net, X, layers=["4"]).layers == ("4",)
    rt.save_checkpoint(tmp_path / "net.json", net)
    assert_same(
        rt.load_checkpoint(tmp_path / "net.json", net=mlp()).state_dict(), mlp().state_dict()
    )
    residual = WRAPPERS[wrapper](
        nn.Sequential(rt.identity.with_identity(nn.Linear(3, 3), "residual"))
    )
    assert list(rt.id_mask(residual)) == ["0.parametrizations.weight.original"]
    optimizer = torch.optim.SGD(residual.parameters(), lr=0.1, weight_decay=0.1)
    rt.IdDecay(optimizer, residual)
    assert list(rt.to_plain(residual).state_dict()) == ["0.weight", "0.bias"]


def test_a_net_is_copied_only_onto_another_device():
    net = mlp()
    assert layered_net(net) is layered_net(nn.DataParallel(net), "cpu") is net
    with pretended():
        copy = layered_net(net, "cuda")
        assert [next(each.parameters()).device.type for each in (net, copy)] == ["cpu", "cuda"]


def test_dominant_flows_of_a_wrapped_net():
    net, data = (
        rt.simplified_net(5, identity="dominant"),
        rt.load_images("digits", samples=2, size=8),
    )
    found, plain = (rt.dominant_flows(each, data) for each in (nn.DataParallel(net), net))
    assert found.layers == plain.layers
    assert_same(found.all_shares, plain.all_shares)


def test_wrappers_that_do_more_than_call_are_kept_or_refused():
    hooked = nn.DataParallel(mlp())
    hooked.register_forward_hook(lambda module, given, output: 2 * output)
    with pytest.raises(ValueError, match="^net: DataParallel has hooks of its own"):
        rt.hessian(hooked, "cross_entropy", (X, Y))

    class Doubled(nn.DataParallel):
        def forward(self, x):
            return 2 * super().forward(x)

    operator = rt.curvature_operator(Doubled(mlp()), "cross_entropy", (X, Y))
    assert operator.names[0] == "module.0.weight"
    assert relative_error(operator.dense(), hessian_of(Doubled(mlp()))) < HESSIAN


def test_training_does_not_replace_several_processes_by_one(monkeypatch):
    net = nn.parallel.DistributedDataParallel(mlp())
    monkeypatch.setattr(net, "process_group", SimpleNamespace(size=lambda: 2))
    with pytest.raises(ValueError, match="^net: got DistributedDataParallel of several processes"):
        rt.train(net, (X, Y), RECIPE, seed=0, device="cpu", progress=False)


def test_sharded_parameters_are_refused():
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    net = torch.distributed.tensor.distribute_module(mlp(), mesh)
    with pytest.raises(ValueError, match="^net: its parameters are distributed over processes"):
        rt.hessian(net, "cross_entropy", (X, Y))


# -- weights that are made from others -------------------------------------------------------------


class Times(nn.Module):
    def forward(self, weight):
        return 1.5 * weight


def scaled_and_spectral(layer):
    parametrize.register_parametrization(layer, "weight", Times())
    parametrizations.spectral_norm(layer)


MADE = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice": lambda layer: (
        [prune.random_unstructured(layer, "weight", 0.3)] * 2
        and prune.l1_unstructured(layer, "bias", 0.3)
    ),
    "weight norm": parametrizations.weight_norm,
    "weight norm, old": nn.utils.weight_norm,
    "weight norm, old, of all": lambda layer: nn.utils.weight_norm(layer, dim=None),
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm, old": nn.utils.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "two": scaled_and_spectral,
}


def made(kind):
    """A net after a step of training, in train mode, whose layers hold what that step computed."""
    net = mlp()
    for layer in net[::2]:
        MADE[kind](layer)
    net(X).sum().backward()
    return net


def by_hand(v, g, dim=0):
    """Weight normalization in operations whose second derivatives torch has."""
    axes = [axis for axis in range(v.dim()) if axis != dim]
    return v * (g / v.square().sum(axes, keepdim=dim != -1).sqrt())


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", MADE)
def test_nets_whose_weights_are_made_from_others(kind, left_alone, monkeypatch):
    net = made(kind)
    held = [vars(layer).get("weight") for layer in net]
    with left_alone(net):
        found = rt.hessian(net, "cross_entropy", (X, Y))
        numbers = rt.curvature_callback("cross_entropy", (X, Y))(net, MOMENT)
        assert rt.check_equivalence(net.eval(), net, X).largest == 0.0
        net.train()
        cushions = rt.layer_cushions(net, X)
        part = rt.curvature_operator(net, "cross_entropy", (X, Y), parameters="*.weight")
    assert [vars(layer).get("weight") for layer in net] == held
    assert cushions.layers == ("0", "2", "4")
    for module in (torch, __import__("sys").modules["torch.nn.utils.weight_norm"]):
        monkeypatch.setattr(module, "_weight_norm", by_hand)
    net = made(kind)
    exact = hessian_of(net)
    assert relative_error(found, exact) < HESSIAN
    largest = torch.linalg.eigvalsh(exact)[-1]
    assert numbers["hessian_largest"] == pytest.approx(float(largest), rel=1e-9)
    rows, start = [], 0
    for name, parameter in net.named_parameters():
        rows += [torch.arange(start, start + parameter.numel())] * ("bias" not in name)
        start += parameter.numel()
    rows = torch.cat(rows)
    assert relative_error(part.dense(), exact[rows][:, rows]) < HESSIAN
    with torch.no_grad():
        net.eval()(X)
        for row, layer, x in zip(
            cushions.values, net[::2], (X, net[:2](X), net[:4](X)), strict=True
        ):
            expected = (x @ layer.weight.mT).norm(dim=1) / layer.weight.norm() / x.norm(dim=1)
            assert relative_error(row, expected) < HESSIAN


class Shared(nn.Module):
    """A weight of two layers, and a layer with two names."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (
            nn.Linear(n, m) for n, m in ((3, 4), (4, 4), (4, 4), (4, 3))
        )
        self.c.weight, self.e = self.b.weight, self.d

    def forward(self, x):
        return self.e(torch.tanh(self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))))


@pytest.mark.parametrize("name", ["b.weight", "c.weight", "c.w*", "b.twin"])
def test_every_name_of_a_shared_parameter_chooses_it(name):
    net, others = Shared(), "'c.weight'"
    if name == "b.twin":
        net.b.twin, others = net.b.weight, "'b.twin', 'c.weight'"
    operator = rt.curvature_operator(net, "cross_entropy", (X, Y), parameters=name)
    assert relative_error(operator.dense(), hessian_of(net, parameters=[net.b.weight])) < HESSIAN
    assert operator.notes == (f"'b.weight' is also {others}: one parameter, whose rows come once",)
    whole = rt.curvature_operator(net, "cross_entropy", (X, Y))
    assert_same(whole.block(name, "e.bias").dense(), whole.block("b.weight", "d.bias").dense())
    assert rt.layer_cushions(net, X, layers=["e"]).layers == ("d",)


# -- forward passes of other kinds -----------------------------------------------------------------


class Checkpointed(nn.Sequential):
    reentrant = True

    def forward(self, x):
        def inner(z):
            return self[3](self[2](self[1](z)))

        return self[4](checkpoint(inner, self[0](x), use_reentrant=self.reentrant))


@pytest.mark.parametrize("call", ["operator", "rebuilt", "cushions", "interlayer", "equivalence"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_change_nothing(reentrant, call):
    net = Checkpointed(*mlp())
    net.reentrant = reentrant
    start = {"start": "2"} if call == "interlayer" else {}  # parts of it are not maps of their own
    assert relative_error(CALLS[call](net, **start), CALLS[call](mlp())) < 10 * HESSIAN


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
@pytest.mark.parametrize("call", CALLS)
def test_layers_without_shapes_are_refused_and_left_without(call):
    net = nn.DataParallel(nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 3)))
    with pytest.raises(
        ValueError, match=r"^net(_b)?: layer '0' has no shape yet; call the net once"
    ):
        CALLS[call](net)
    assert isinstance(net.module[0], nn.LazyLinear)


class Spectral(nn.Module):
    """A layer in the Fourier domain, with complex weights or with pairs of real ones."""

    def __init__(self, read=None):
        super().__init__()
        torch.manual_seed(0)
        self.out, pairs = nn.Linear(4, 3), oracles.noise(3, 3, 2).double()
        self.weight = nn.Parameter(pairs if read else torch.view_as_complex(pairs))
        self.read = read

    def forward(self, x):
        weight = self.read(self.weight) if self.read else self.weight
        return self.out(torch.fft.irfft(torch.fft.fft(torch.tanh(x)) @ weight.mT, n=4))


def test_complex_parameters_train_and_have_no_curvature_but_pairs_of_real_ones_have(tmp_path):
    exact = hessian_of(Spectral(lambda pairs: torch.complex(pairs[..., 0], pairs[..., 1])))
    net, twin = Spectral(torch.view_as_complex), Spectral()
    assert relative_error(rt.hessian(net, "cross_entropy", (X, Y)), exact) < HESSIAN
    with pytest.raises(
        ValueError, match="^parameters: 'weight' is complex, and curvature is taken"
    ):
        rt.spectrum(twin, "cross_entropy", (X, Y))
    operator = rt.curvature_operator(twin, "cross_entropy", (X, Y), parameters="out.*")
    assert relative_error(operator.dense(), exact[18:, 18:]) < HESSIAN
    found, expected = trained(twin), trained(net)
    pairs = torch.cat([torch.view_as_real(found[:9]).flatten(), found[9:].real])
    assert relative_error(pairs, expected) < HESSIAN
    with pytest.raises(ValueError, match="^tensors: torch.complex128 has no place in the safe"):
        rt.save_checkpoint(tmp_path / "net.json", twin)


SCRIPTED = {
    "scripted": torch.jit.script,
    "traced": lambda net: torch.jit.trace(net, torch.ones(2, next(net.parameters()).shape[1])),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", SCRIPTED)
def test_scripted_nets_have_curvature_and_no_layers(kind):
    net = SCRIPTED[kind](mlp())
    for call in ("operator", "rebuilt", "hessian"):
        for _ in range(3):  # scripts are optimized after some runs
            assert relative_error(CALLS[call](net), hessian_of(mlp())) < HESSIAN
    assert_same(CALLS["evaluate"](net), CALLS["evaluate"](mlp()))
    for call in ("cushions", "interlayer", "noise"):
        with pytest.raises(
            ValueError, match=r"^net: \w+ is scripted or traced, so nothing is seen"
        ):
            CALLS[call](net)
    inside = mlp()
    inside[2] = SCRIPTED[kind](nn.Linear(4, 4))
    assert "runs it scripted" in rt.layer_cushions(inside, X).not_covered["2.weight"]


@pytest.mark.filterwarnings("ignore")  # torch's own, of tracing
def test_batch_statistics_that_are_fixed_in_a_graph_are_refused():
    traced = torch.jit.trace(nn.BatchNorm1d(3).double().train(), X)
    with pytest.raises(ValueError, match=r"^net: writes '0.running_mean' in eval mode, as BatchN"):
        rt.hessian(nn.Sequential(traced, nn.Linear(3, 3)), "cross_entropy", (X, Y))


def test_modules_that_come_twice_in_a_sequential_stay_in_the_chain():
    act, names = nn.Tanh(), ("0", "1", "2", "3", "4")
    net, plain = mlp(), mlp()
    net[1] = net[3] = act
    assert_same(
        stability.interlayer_smoothness(net, X, draws=2).ratios,
        stability.interlayer_smoothness(plain, X, draws=2).ratios,
    )
    for name in names:
        found, expected = (rt.interlayer_cushions(each, X, start=name) for each in (net, plain))
        assert_same(found.values, expected.values)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def test_parts_of_a_sequential_that_does_more_are_no_maps():
    net = Residual(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="^net: got Residual, needs an nn.Sequential"):
        stability.activation_noise(net, X, levels=[0.1])
    with pytest.raises(ValueError, match="^start: got 2 for Residual; needs the name of a module"):
        rt.interlayer_cushions(net, X, start=2)
    z = torch.tanh(net[0](X)).detach()
    jacobian = net[2].weight
    expected = (z @ jacobian.mT).norm(dim=1) / jacobian.norm() / z.norm(dim=1)
    found = rt.interlayer_cushions(net, X, start="2", kappa="none", method="exact").values[0]
    assert relative_error(found, expected) < HESSIAN


def test_exported_nets_are_measured_as_the_module():
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(mlp(), (X,), dynamic_shapes=({0: batch},)).module()
    for call in ("hessian", "cushions", "evaluate"):
        assert relative_error(CALLS[call](exported), CALLS[call](mlp())) < 10 * HESSIAN
