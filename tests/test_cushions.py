"""Layer cushions against explicit matrices, on our nets and on anybody's."""

import itertools
import warnings
from decimal import Decimal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import noise
from scipy import stats
from tolerances import relative_error
from torch import nn

import resid_theory as rt
from resid_theory.identity import AddIdentity, with_identity
from resid_theory.stability.linear_uses import LinearUse
from resid_theory.stability.map_observer import MapObserver
from resid_theory.stability.norms import operator_frobenius, row_norms

EXACT = 1e-12  # what exact paths promise

# torch's word on 'same' padding of even kernels: it copies its input
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def matrix(layer, x):
    """The dense linear map of a layer on inputs of x's size, column by column."""
    zero = torch.zeros_like(x[:1])
    offset = layer(zero).flatten()
    columns = []
    for entry in range(zero.numel()):
        unit = zero.clone().flatten()
        unit[entry] = 1
        columns.append(layer(unit.view_as(zero)).flatten() - offset)
    return torch.stack(columns, dim=1).detach()


LAYERS = {
    "linear": (lambda: nn.Linear(5, 3), (5,)),
    "tokens": (lambda: nn.Linear(4, 3), (2, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, padding=1), (2, 5)),
    "even side": (lambda: nn.Conv1d(2, 3, 4, padding="same"), (2, 6)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 4, 5)),
    "valid": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 4)),
    "valid by name": (lambda: nn.Conv2d(2, 3, (3, 2), padding="valid"), (2, 5, 4)),
    "same, dilated": (lambda: nn.Conv2d(2, 3, (3, 2), padding="same", dilation=(2, 3)), (2, 5, 6)),
    "strided": (lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 5, 6)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), (4, 3, 3)),
    "depthwise": (lambda: nn.Conv2d(3, 3, (3, 1), padding=(1, 0), groups=3), (3, 4, 2)),
    "dilated": (lambda: nn.Conv2d(2, 2, 3, padding=2, dilation=2), (2, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 2, (3, 1, 3), padding=(1, 0, 1)), (2, 3, 2, 3)),
    **{
        f"{mode} {stride}": (
            lambda mode=mode, stride=stride: nn.Conv2d(
                2, 3, 3, stride=stride, padding=2, dilation=2, padding_mode=mode
            ),
            (2, 4, 3),
        )
        for mode, stride in itertools.product(("circular", "reflect", "replicate"), (1, 2))
    },
}


class Added(nn.Module):
    """A layer whose input its forward adds in a way of its own."""

    def __init__(self, add, layer):
        super().__init__()
        self.add, self.layer = add, layer

    def forward(self, x):
        return self.add(self.layer(x), x)


@pytest.mark.parametrize("add", [lambda y, x: x + y, lambda y, x: y.add_(x), torch.add])
def test_an_identity_that_a_forward_adds_is_noted_and_converted(add):
    net = nn.Sequential(nn.Linear(4, 3), Added(add, nn.Linear(3, 3)), nn.Linear(3, 2))
    x, v = torch.randn(5, 4), net[1].layer.weight
    (note,) = rt.layer_cushions(net, x).notes
    assert note.startswith("a forward adds to the output of 1.layer its input")
    found = rt.layer_cushions(rt.to_residual(rt.absorb(net)), x, layers=["1.layer"])
    z = net[0](x)
    expected = (z @ v.T + z).norm(dim=1) / (v.norm() * z.norm(dim=1))
    assert relative_error(found.values[0], expected.detach()) < EXACT and not found.notes


def test_sums_of_other_things_are_no_identity_beside_a_layer():
    for add in (lambda y, x: y + y, lambda y, x: y + x.relu(), lambda y, x: torch.relu(y) + x):
        assert not rt.layer_cushions(Added(add, nn.Linear(3, 3)), torch.randn(4, 3)).notes
    assert not rt.layer_cushions(AddIdentity(nn.Linear(3, 3)), torch.randn(4, 3)).notes


@pytest.mark.parametrize("make, shape", LAYERS.values(), ids=LAYERS)
def test_cushions_are_those_of_the_dense_matrix(make, shape, device):
    layer = make().to(device)
    x = noise(3, *shape, device=device)
    dense = matrix(layer, x)
    above = (x.flatten(1) @ dense.T).norm(dim=1)
    for norm, size in (("operator", dense.norm()), ("kernel", layer.weight.norm())):
        cushions = rt.layer_cushions(nn.Sequential(layer), x, norm=norm)
        expected = (above / size / x.flatten(1).norm(dim=1)).detach().cpu()
        assert cushions.layers == ("0",)
        assert relative_error(cushions.values[0], expected) < EXACT


@pytest.mark.parametrize("make, shape", LAYERS.values(), ids=LAYERS)
def test_the_operator_norm_needs_no_matrix(make, shape):
    layer = make()
    if isinstance(layer, nn.Linear):
        shape = shape[-1:]
    uses = []
    with MapObserver(layer).watching(uses.append), torch.no_grad():
        layer(noise(1, *shape))
    weight, geometry = uses[0].weight, uses[0].geometry
    norm = operator_frobenius(weight, geometry, shape[1:])
    assert abs(norm - matrix(layer, noise(1, *shape)).norm()) < EXACT * norm
    tiny = operator_frobenius(1e-200 * weight, geometry, shape[1:])
    assert abs(1e200 * tiny - norm) < EXACT * norm


@pytest.mark.parametrize("make, shape", LAYERS.values(), ids=LAYERS)
def test_a_bias_that_hides_the_output_costs_no_digits(make, shape):
    layer = make()
    x = noise(4, *shape)
    expected = rt.layer_cushions(nn.Sequential(layer), x).values
    if layer.bias is not None:
        nn.init.constant_(layer.bias, 1e12)
    assert relative_error(rt.layer_cushions(nn.Sequential(layer), x).values, expected) < EXACT


class Padding(nn.Module):
    """A convolution of what it pads itself, on either side otherwise."""

    def __init__(self, pads, mode, **options):
        super().__init__()
        self.weight, self.options = nn.Parameter(noise(3, 2, 2, 3, seed=1)), options
        self.pads, self.mode = pads, mode

    def forward(self, x):
        x = F.pad(x, self.pads, mode=self.mode) if sum(self.pads) % 2 else F.pad(
            pad=self.pads, mode=self.mode, input=x)  # fmt: skip
        return F.conv2d(x, self.weight, **self.options)


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize("pads", [(2, 1, 0, 1), (0, 2, 2, 1)], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"stride": [2]}, {"stride": (1, 2), "padding": (0, 1)}, {"padding": (1, 0)}],
    ids=str,
)  # fmt: skip
def test_what_a_net_pads_itself_belongs_to_the_map(mode, pads, options):
    """But not where the convolution pads that with zeros: then it reads what was padded."""
    net, x = Padding(pads, mode, **options), noise(3, 2, 4, 5)
    function, z = net, x
    if "padding" in options:
        z = F.pad(x, pads, mode=mode)
        function = lambda part: F.conv2d(part, net.weight, **options)  # noqa: E731
    dense = matrix(function, z)
    above, below = net(x).flatten(1).norm(dim=1), z.flatten(1).norm(dim=1)
    found = rt.layer_cushions(net, x, norm="operator").values[0]
    assert relative_error(found, (above / dense.norm() / below).detach()) < EXACT


class Waves(nn.Module):
    """A convolution of complex numbers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 3, stride=2, padding=1, dtype=torch.complex128)

    def forward(self, x):
        return torch.view_as_real(self.conv(torch.complex(x, x.flip(2)))).flatten(1)


@pytest.mark.parametrize("scale", [1, 1e-200])
@pytest.mark.parametrize("norm", ["kernel", "operator"])
def test_complex_kernels_have_complex_norms(norm, scale):
    net, x = Waves(), noise(4, 2, 6)
    z = torch.complex(x, x.flip(2))
    dense = matrix(net.conv, z)
    size = net.conv.weight.norm() if norm == "kernel" else dense.norm()
    exact = (z.flatten(1) @ dense.T).norm(dim=1) / z.flatten(1).norm(dim=1) / size
    found = rt.layer_cushions(net, scale * x, norm=norm)
    assert found.layers == ("conv",) and relative_error(found.values[0], exact.detach()) < EXACT


@pytest.mark.parametrize("make, x, tap", [
    (lambda: nn.Linear(1, 1), [[1.0], [0.0]], (0, 0)),
    (lambda: nn.Conv1d(1, 1, 2), [[[1.0, 0, 0]], [[0.0, 0, 0]]], (0, 0, 0)),
], ids=["matrix", "kernel"])  # fmt: skip
def test_a_second_product_is_taken_where_the_bias_hides_two_digits(make, x, tap, monkeypatch):
    """Of y = w x + b from its norm and y·b, where w² is above a hundredth of |y|² + |b|²."""
    layer, x, calls = make(), torch.tensor(x), []
    places = x.shape[-1] - 1 or 1
    apply = LinearUse.apply
    monkeypatch.setattr(LinearUse, "apply", lambda *given: calls.append(1) or apply(*given))
    for weight, bias, expected in ((1.0, 6.0, 0), (1.0, 8.0, 1), (-1.0, 7.0, 0), (-1.0, 8.0, 1)):
        with torch.no_grad():
            layer.weight.zero_()[tap] = weight
            layer.bias.fill_(bias / places**0.5)
        calls.clear()
        found = rt.layer_cushions(nn.Sequential(layer), x).values
        assert len(calls) == expected, (weight, bias)
        assert found[0].isnan().tolist() == [False, True] and abs(found[0, 0] - 1) < 1e-13


@pytest.mark.parametrize("scale", [1e-250, 1e-3, 1e250], ids=str)
def test_scaling_the_input_changes_nothing(scale):
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(),
                        nn.Linear(48, 5, bias=False))  # fmt: skip
    x = noise(4, 2, 4, 4)
    one, other = rt.layer_cushions(net, x).values, rt.layer_cushions(net, scale * x).values
    assert relative_error(other, one) < EXACT


@pytest.mark.parametrize(
    "layer, shape", [(nn.Linear(3, 2), (3,)), (nn.Conv2d(3, 7, 3, padding=1), (3, 5, 5))], ids=str
)
def test_inputs_of_zero_have_no_cushion_and_are_counted(layer, shape):
    x = noise(4, *shape)
    x[1] = 0
    cushions = rt.layer_cushions(nn.Sequential(layer.double()), x)
    assert cushions.undefined.tolist() == [1]
    assert cushions.values.isnan().tolist() == [[False, True, False, False]]
    biased = rt.layer_cushions(nn.Sequential(layer), x, include_bias=True)
    assert biased.values.isnan().tolist() == [[False, True, False, False]]
    known = cushions.values[0, [0, 2, 3]]
    assert cushions.minimum.item() == known.min()
    assert cushions.median.item() == known.median()
    assert "undefined" in str(cushions)


# -- the identity ----------------------------------------------------------------------------------


def identities():
    conv = lambda: nn.Conv2d(2, 4, 3, padding=1, stride=2)  # noqa: E731
    yield "residual", with_identity(conv(), "residual")
    yield "dirac", with_identity(nn.Conv2d(3, 3, 3, padding=1), "dirac")
    yield "added", AddIdentity(conv())
    yield "added to linear", AddIdentity(nn.Linear(3, 6))
    yield "linear", with_identity(nn.Linear(3, 6), "residual")


@pytest.mark.parametrize("norm", ["kernel", "operator"])
@pytest.mark.parametrize("layer", [pytest.param(m, id=name) for name, m in identities()])
def test_numerator_has_the_identity_and_both_norms_are_reported(layer, norm):
    layer.double()
    inner = layer.layer if isinstance(layer, AddIdentity) else layer
    shape = (3,) if isinstance(inner, nn.Linear) else (inner.in_channels, 5, 5)
    x = noise(3, *shape)
    dense = matrix(layer, x)
    removed = dense - matrix(lambda z: identity_part(layer, inner, z), x)
    cushions = rt.layer_cushions(nn.Sequential(layer), x, norm=norm)
    above = (x.flatten(1) @ dense.T).norm(dim=1) / x.flatten(1).norm(dim=1)
    sizes = removed.norm(), dense.norm()
    if norm == "kernel":
        sizes = free_norm(layer), with_ones(layer, inner).norm()
    for values, size in zip((cushions.identity_removed, cushions.effective), sizes, strict=True):
        assert relative_error(values[0], (above / size).detach()) < EXACT
    assert torch.equal(cushions.under("effective").values, cushions.effective)
    assert cushions.layers == ("0",)


def free_norm(layer):
    """||R||: of V, or of b where V is normalized."""
    if isinstance(layer, AddIdentity):
        return layer.layer.weight.norm()
    inside = layer.parametrizations.weight
    return inside[0].b.norm() if hasattr(inside[0], "b") else inside.original.norm()


def with_ones(layer, inner):
    """The effective kernel, entry by entry."""
    weight = inner.weight.detach().clone()
    if isinstance(layer, AddIdentity):
        for o in range(len(weight)):
            weight[(o, o % weight.shape[1], *[1] * (weight.dim() - 2))] += 1
    return weight


def identity_part(layer, inner, z):
    """a Id(x), from the shortcut's definition."""
    outputs = inner.weight.shape[0]
    stride = 1 if isinstance(inner, nn.Linear) else inner.stride[0]
    shortcut = torch.cat([z[(..., *[slice(None, None, stride)] * (z.dim() - 2))]] * 8, dim=1)
    shortcut = shortcut[:, :outputs]
    parametrized = getattr(layer, "parametrizations", None)
    a = getattr(parametrized.weight[0], "a", None) if parametrized else None
    return shortcut if a is None else shortcut * a.view(1, -1, 1, 1)


def test_the_residual_net_and_its_explicit_form_have_the_same_cushions():
    x = noise(4, 3, 16, 16)
    one, other = (
        rt.layer_cushions(rt.simplified_net(8, identity=kind), x)
        for kind in ("residual", "explicit")
    )
    assert one.layers == other.layers
    assert relative_error(one.identity_removed, other.identity_removed) < EXACT
    assert relative_error(one.effective, other.effective) < EXACT
    plain = rt.layer_cushions(rt.simplified_net(8), x)  # has one convention only
    assert torch.equal(plain.identity_removed, plain.effective)


def test_expectations_at_random_weights():
    """E mu^2 of the interior is known: 1 / (s^2 c_in) for kernels, 1 / n for linear layers."""
    x = noise(16, 16, 24, 24)
    source = torch.Generator().manual_seed(1)
    for stride, outputs in ((1, 64), (2, 64)):
        layer = nn.Conv2d(16, outputs, 3, stride=stride, bias=False)
        layer.weight.data.normal_(generator=source)
        square = rt.layer_cushions(nn.Sequential(layer), x).values.square().mean().item()
        places = (22 // stride) ** 2 * 9 / (9 * 24**2)  # each input is seen by that many taps
        assert square == pytest.approx(places / 16, rel=4 * (2 / (16 * 9 * outputs)) ** 0.5)
    layer = nn.Linear(100, 400, bias=False)
    layer.weight.data.normal_(generator=source)
    square = rt.layer_cushions(nn.Sequential(layer), noise(50, 100)).values.square().mean().item()
    assert square == pytest.approx(1 / 100, rel=4 * (2 / 400) ** 0.5)


def test_residual_nets_start_near_three_with_the_identity_removed():
    """||K + E|| / ||K|| is about 3 at the Hardt-Ma start, with k = 3, for square and doubling."""
    net = rt.simplified_net(20, identity="residual")
    cushions = rt.layer_cushions(
        net, noise(8, 3, 32, 32), layers=[f"conv{i}" for i in range(1, 19)]
    )
    assert ((cushions.median > 2.6) & (cushions.median < 3.2)).all()
    widths = torch.tensor([16] * 7 + [32] * 6 + [64] * 5).sqrt()
    # Doubling layers have stride 2 and half as many inputs: 1 / (2 sqrt(c)).
    widths[[6, 12]] = torch.tensor([2 * 4, 2 * 32**0.5])
    effective = cushions.under("effective").median * widths
    assert ((effective > 0.9) & (effective < 1.1)).all()


# -- foreign modules ------------------------------------------------------------------------


class Reused(nn.Module):
    """One layer three times, an in-place activation on each side of it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        for _ in range(3):
            x = self.inner(self.act(x))
            x.mul_(2.0)
        return self.act(x)


class Tokens(nn.Module):
    """Attention between transposes or merged axes, a class token, an embedding of positions."""

    def __init__(self, layout, heads=2):
        super().__init__()
        self.layout = layout
        self.embed = nn.Linear(5, 8)
        self.position = nn.Parameter(torch.randn(4, 8))
        self.attention = nn.MultiheadAttention(8, heads, batch_first=layout != "second")
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.query = nn.Parameter(torch.randn(3, 8))
        self.memory = nn.Linear(8, 8)

    def forward(self, x):
        x = self.embed(x) + self.position
        memory = self.memory(self.query)  # the same for all samples
        if self.layout == "second":
            x = x.transpose(0, 1)
        x = x + self.attention(x, x, value=self.norm(x), need_weights=False)[0]
        if self.layout == "merged":
            x = self.mlp(x.flatten(0, 1)).unflatten(0, (-1, 4))
        elif self.layout == "token-major":
            x = self.mlp(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (4, -1)).transpose(0, 1)
        else:
            x = self.mlp(x)
        return x.mean(0 if self.layout == "second" else 1) + memory.mean(0)


class Functional(nn.Module):
    """Uses one layer's weight by hand, never calls another, has a weight of its own."""

    def __init__(self):
        super().__init__()
        self.by_hand, self.idle, self.called = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.own = nn.Parameter(torch.randn(4, 4))
        self.table = nn.Embedding(3, 4)
        self.up = nn.ConvTranspose1d(4, 4, 3, padding=1)
        self.recurrent = nn.GRU(4, 4, batch_first=True)

    def forward(self, x):
        x = F.linear(x, self.by_hand.weight) @ self.own + self.table.weight.sum(0)
        x = self.up(self.called(x)[..., None]).squeeze(-1)
        return self.recurrent(x[:, None])[0]


def cnn(source, dimension):
    """A small random CNN: kernels, groups, padding modes, in-place activations, pools."""
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimension - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimension - 1]

    def pick(*options):
        return options[int(torch.randint(len(options), (), generator=source))]

    parts, channels = [], 2
    for _ in range(pick(1, 2, 3)):
        outputs, dilation = pick(2, 4, 6), pick(1, 2)
        mode = pick("zeros", "circular", "reflect", "replicate")
        if dimension == 3 and mode == "reflect":
            mode = "zeros"
        parts.append(convolution(channels, outputs, 3, stride=pick(1, 2), padding=dilation,
                                 dilation=dilation, groups=pick(1, 2), bias=pick(True, False),
                                 padding_mode=mode))  # fmt: skip
        if pick(True, False):
            parts.append(norm(outputs))
        parts.append(pick(nn.ReLU(inplace=True), nn.ReLU(), nn.Tanh(), nn.SiLU(inplace=True)))
        channels = outputs
    parts += [nn.Flatten(), nn.LazyLinear(3)]
    return nn.Sequential(*parts), (2, *[8] * dimension)


def mlp(source):
    widths = torch.randint(2, 9, (4,), generator=source).tolist()
    parts = []
    for inputs, outputs in itertools.pairwise(widths):
        parts += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True), nn.Dropout(0.5)]
    return nn.Sequential(*parts), (widths[0],)


def foreign():
    source = torch.Generator().manual_seed(0)
    for number in range(4):
        for dimension in (1, 2, 3):
            yield f"cnn{dimension}d-{number}", *cnn(source, dimension)
    for number in range(4):
        yield f"mlp-{number}", *mlp(source)
    for layout in ("first", "second", "merged", "token-major"):
        yield f"attention-{layout}", Tokens(layout), (4, 5)
        yield f"attention-{layout}-4", Tokens(layout, heads=4), (4, 5)
    yield "reused", Reused(), (6,)
    yield "reused-deeper", nn.Sequential(nn.Linear(3, 6), Reused(), Reused()), (3,)
    yield "functional", Functional(), (4,)
    shared = nn.Linear(4, 4)
    yield "shared", nn.Sequential(shared, nn.ReLU(inplace=True), shared), (4,)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    yield "encoder", nn.TransformerEncoder(layer, 2), (4, 8)
    yield "decoder", Decoder(), (4, 8)
    yield "forces", Forces(), (3,)


class Decoder(nn.Module):
    """Cross attention with keys and values of other widths, called by keywords."""

    def __init__(self):
        super().__init__()
        self.memory = nn.Conv1d(4, 4, 3, padding=1)
        self.cross = nn.MultiheadAttention(8, 2, kdim=8, vdim=5, batch_first=True, bias=False)

    def forward(self, x):
        memory = self.memory(input=x)
        return self.cross(query=x, key=memory, value=memory[..., :5], average_attn_weights=False)[0]


class Forces(nn.Module):
    """Derivatives in its inputs, whatever the caller takes."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 2))

    @torch.enable_grad()
    def forward(self, x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


FOREIGN = list(foreign())


def by_single_samples(net, x):
    """Cushions of each call from hooks that clone, with one sample in each pass."""
    rows = {}
    for sample in x:
        found = {}
        handles = []
        for name, module in net.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):

                def keep(module, args, kwargs, name=name, found=found):
                    z = (args[0] if args else kwargs["input"]).clone()
                    found.setdefault(name, []).append(z)

                handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        with torch.no_grad():
            net.eval()
            net(sample[None].clone())
        for handle in handles:
            handle.remove()
        for name, inputs in found.items():
            layer = net.get_submodule(name)
            for number, z in enumerate(inputs, start=1):
                above = (layer(z) - layer(torch.zeros_like(z))).norm()
                value = above / layer.weight.norm() / z.norm()
                rows.setdefault((name, number), []).append(value.detach())
    return {key: torch.stack(values) for key, values in rows.items()}


@pytest.mark.parametrize(
    "net, shape", [pytest.param(net, shape, id=name) for name, net, shape in FOREIGN]
)
def test_no_layer_of_a_foreign_module_is_skipped(net, shape, left_alone):
    net.double()
    x = noise(5, *shape, seed=3)
    net(x.clone())  # lazy layers take their shape
    with left_alone(net):
        cushions = rt.layer_cushions(net, x, batch=3)
    known = {row.partition("#")[0] for row in cushions.layers} | set(cushions.not_covered)
    for name, module in net.named_modules():
        attention = isinstance(module, nn.MultiheadAttention)
        roles = {f"{name}.{role}_proj" for role in ("q", "k", "v", "out")}
        for key, _ in module.named_parameters(recurse=False):
            assert {name, f"{name}.{key}".lstrip(".")} & known or attention and roles <= known
    for (name, number), values in by_single_samples(net, x).items():
        if name in cushions.not_covered:
            continue
        row = cushions.layers.index(name if name in cushions.layers else f"{name}#{number}")
        torch.testing.assert_close(cushions.values[row], values, rtol=1e-9, atol=0, equal_nan=True)


def test_reasons_of_what_is_not_covered():
    found = rt.layer_cushions(Functional(), noise(4, 4))
    assert found.layers == ("by_hand", "own", "called")
    missing = found.not_covered
    assert set(missing) == {"by_hand.bias", "idle", "table", "up", "recurrent"}
    assert "no function of torch was seen" in missing["by_hand.bias"] == missing["idle"]
    assert "is added" in missing["table"] and "transposed" in missing["up"]
    assert "recurrence" in missing["recurrent"]


@pytest.mark.parametrize("layout", ["first", "second", "merged", "token-major"])
def test_all_layers_have_rows_for_any_axis_of_samples(layout):
    cushions = rt.layer_cushions(Tokens(layout), noise(4, 4, 5))
    assert set(cushions.not_covered) == {"position", "query", "norm"}
    assert "positions" in cushions.not_covered["position"]
    assert "input of a map" in cushions.not_covered["query"]
    assert {"embed", "mlp.0", "mlp.2", "attention.out_proj", "memory"} < set(cushions.layers)


class Shared(nn.Module):
    """Layers whose inputs have one shape for any number of samples."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.linspace(-1, 1, 14).view(7, 2))
        self.picture = nn.Parameter(torch.linspace(-1, 1, 18).view(1, 2, 3, 3))
        self.table, self.conv = nn.Linear(2, 5), nn.Conv2d(2, 5, 3, padding=1)
        self.mean, self.first, self.single = (nn.Linear(5, 5) for _ in range(3))
        self.unbatched = nn.Conv2d(2, 5, 1)

    def forward(self, x):
        table, picture = self.table(self.places), self.conv(self.picture).mean((2, 3))
        mean, first = self.mean(x.mean(0)), self.first(x[:1])
        unbatched = self.unbatched(self.picture[0]).mean((1, 2))
        return self.single(x) + table.mean(0) + picture + mean.sum() + first.sum() + unbatched


@pytest.mark.parametrize("norm", ["kernel", "operator"])
def test_an_input_that_follows_no_sample_belongs_to_each_of_them(norm):
    net = Shared()
    found = rt.layer_cushions(net, noise(9, 5), norm=norm, weight="effective", batch=4)
    assert set(found.layers) == {"table", "conv", "single"}
    for layer, z in ((net.table, net.places), (net.conv, net.picture)):
        above = (layer(z) - layer(torch.zeros_like(z))).norm()
        size = layer.weight.norm()
        if norm == "operator":  # the dense map, column by column
            basis = torch.eye(z.numel()).view(-1, *z.shape)
            linear = layer(basis.flatten(0, 1)) - layer(torch.zeros_like(basis.flatten(0, 1)))
            size = linear.norm()
        row = found.values[found.layers.index("table" if z is net.places else "conv")]
        expected = (above / size / z.norm()).detach()
        torch.testing.assert_close(row, expected.expand(9), rtol=1e-12, atol=0)
    for name in ("mean", "first"):
        assert "any number of samples, and other values" in found.not_covered[name]
    assert "any number of samples" in found.not_covered["unbatched"]


class Experts(nn.Module):
    """Experts take the rows that are routed to them."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(6, 3, bias=False)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        flat = x.flatten(0, 1)
        pick = self.gate(flat).argmax(-1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            rows = (pick == number).nonzero()[:, 0]
            out = out.index_add(0, rows, expert(flat[rows]))
        return out.view_as(x)


def test_an_expert_that_no_sample_reaches_is_listed():
    torch.manual_seed(0)
    net, x = Experts(), noise(12, 3, 6)
    with torch.no_grad():
        net.gate.weight[1] = 0.0
        net.gate.weight[2] = -net.gate.weight[0]  # one of them is above 0
    found = rt.layer_cushions(net, x)
    assert found.layers == ("gate", "experts.0", "experts.2")
    assert found.not_covered["experts.1"] == "no sample has a row in its input"


@pytest.mark.parametrize("seed", range(12))
def test_rows_that_are_routed_are_right(seed):
    torch.manual_seed(seed)
    net, x = Experts(), noise(12, 3, 6, seed=seed)
    found = rt.layer_cushions(net, x, batch=5, weight="effective")
    assert found.layers == ("gate", "experts.0", "experts.1", "experts.2")
    for (name, _), values in by_single_samples(net, x).items():
        row = found.values[found.layers.index(name)]
        torch.testing.assert_close(row, values, rtol=1e-9, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_routed_rows_behind_a_layer_of_few_digits_keep_their_samples(dtype):
    """Other sizes of a batch round otherwise, by steps of the net's precision."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 6), Experts()), noise(40, 3, 6)
    exact = rt.layer_cushions(net, x, batch=32, weight="effective")
    found = rt.layer_cushions(net.to(dtype), x.to(dtype), batch=32, weight="effective")
    assert found.layers == exact.layers and len(found.layers) == 5 and not found.not_covered
    share = (found.values / exact.values - 1).abs().nan_to_num(0) < 10 * torch.finfo(dtype).eps
    assert share.double().mean() > 0.9  # a token may be routed elsewhere by a rounding


def test_statistics_of_a_batch_have_no_rows_of_single_samples():
    torch.manual_seed(0)
    found = rt.layer_cushions(Experts(), noise(12, 3, 6), batchnorm="batch")
    assert found.layers == ("gate",)
    reason = "the rows of its input are not those of the samples in turn, as those routed to exp"
    assert [why.startswith(reason) for why in found.not_covered.values()] == [True] * 3


class Half(nn.Module):
    """A step in float32 inside a float64 net, on the tokens of all samples as rows."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x):
        return self.b(torch.sigmoid(self.a(x).float()).double().flatten(0, 1)).view_as(x)


@pytest.mark.parametrize("seed", range(12))
def test_a_step_in_float32_is_no_coupling(seed):
    """Any warning is an error here; float32 rounds otherwise at another batch size."""
    torch.manual_seed(seed)
    assert rt.layer_cushions(Half(), noise(5, 7, 5, seed=seed)).layers == ("a", "b")


@pytest.mark.parametrize("norm", ["kernel", "operator"])
@pytest.mark.parametrize("layer, shape", [(nn.Linear(4, 3), (4,)), (nn.Conv1d(4, 3, 2), (4, 5))])
def test_a_weight_of_zeros_has_no_cushion(layer, shape, norm):
    nn.init.zeros_(layer.weight)
    assert rt.layer_cushions(nn.Sequential(layer), noise(3, *shape), norm=norm).values.isnan().all()


@pytest.mark.parametrize("norm", ["kernel", "operator"])
def test_batches_of_samples_of_several_lengths(norm):
    """Tokens of all samples in one axis, whose number differs from batch to batch."""
    net, data = Half().double(), [noise(4, length, 5, seed=length) for length in (7, 3, 7)]
    found = rt.layer_cushions(net, data, norm=norm, weight="effective").values[1]
    expected = []
    for x in data:
        z = torch.sigmoid(net.a(x).float()).double().detach()
        above = (z @ net.b.weight.T).flatten(1).norm(dim=1)
        places = x.shape[1] if norm == "operator" else 1
        below = z.flatten(1).norm(dim=1) * places**0.5 * net.b.weight.norm()
        expected.append((above / below).detach())
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-6, atol=0)


def test_a_forward_of_its_own_hides_no_map():
    class Odd(nn.Linear):
        def forward(self, x):
            return super().forward(x).square()

    class Same(nn.Linear):
        pass

    net, x = nn.Sequential(Odd(3, 3), Same(3, 3)), noise(2, 3)
    cushions = rt.layer_cushions(net, x)
    assert cushions.layers == ("0", "1")
    above = (x @ net[0].weight.T).norm(dim=1) / net[0].weight.norm() / x.norm(dim=1)
    assert relative_error(cushions.values[0], above.detach()) < EXACT


@pytest.mark.parametrize("batch_first", [True, False], ids=["batch-first", "batch-second"])
@pytest.mark.parametrize("mask", [None, "causal"], ids=["all", "causal"])
@pytest.mark.parametrize("include_bias", [False, True], ids=["linear", "biased"])
def test_projections_of_attention(batch_first, mask, include_bias):
    attention = nn.MultiheadAttention(6, 2, batch_first=batch_first)
    attention.in_proj_bias.data.normal_()
    attention.out_proj.bias.data.normal_()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            z = x if batch_first else x.transpose(0, 1)
            allowed = None if mask is None else nn.Transformer.generate_square_subsequent_mask(4)
            out = self.attention(z, z, z, attn_mask=allowed)[0]
            return out if batch_first else out.transpose(0, 1)

    x = noise(3, 4, 6)
    cushions = rt.layer_cushions(Net(), x, include_bias=include_bias)
    weights = attention.in_proj_weight.chunk(3)
    biases = attention.in_proj_bias.chunk(3)
    q, k, v = (F.linear(x, w, b).unflatten(2, (2, 3)).transpose(1, 2)
               for w, b in zip(weights, biases, strict=True))  # fmt: skip
    scores = q @ k.mT / 3**0.5
    if mask:
        scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    context = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    parts = [(x, *pair) for pair in zip(weights, biases, strict=True)]
    parts.append((context, attention.out_proj.weight, attention.out_proj.bias))
    assert [n.split(".")[1] for n in cushions.layers] == ["q_proj", "k_proj", "v_proj", "out_proj"]
    for row, (z, w, b) in zip(cushions.values, parts, strict=True):
        above = (z @ w.T + b * include_bias).flatten(1).norm(dim=1)
        assert relative_error(row, (above / w.norm() / z.flatten(1).norm(dim=1)).detach()) < EXACT


def test_the_fused_path_of_attention_is_off_only_inside():
    assert torch.backends.mha.get_fastpath_enabled()
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    assert "self_attn.out_proj" in rt.layer_cushions(net, noise(2, 3, 8)).layers
    assert torch.backends.mha.get_fastpath_enabled()


class Coupled(nn.Module):
    """Samples know little of each other, but more than round-off makes."""

    def forward(self, x):
        return x + 2e-5 * x.mean(0)


def test_inputs_of_zeros_do_not_depend_on_other_samples():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
    nn.init.zeros_(net[0].weight)
    values = rt.layer_cushions(net, noise(5, 4, seed=1)).values  # a warning would be an error
    assert values.shape == (2, 5) and bool(values.isnan().all())


@pytest.mark.parametrize(
    "middle",
    [lambda: nn.BatchNorm1d(4, track_running_stats=False), Coupled],
    ids=["norm", "little"],
)
def test_samples_that_depend_on_one_another_cause_a_warning(middle):
    net = nn.Sequential(
        nn.Linear(3, 4), middle(), nn.Linear(4, 4), middle(), nn.Linear(4, 2)
    )  # fmt: skip
    for call in (rt.layer_cushions, rt.stability.weight_noise):
        with pytest.warns(
            UserWarning, match="'2' and 1 more layers .* on the other samples"
        ) as caught:
            call(net, noise(5, 3))
        assert caught[0].filename == __file__


def test_a_layer_called_for_some_batches_only_is_listed():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            x = self.first(x)
            return self.second(x) if len(x) < 5 else x

    cushions = rt.layer_cushions(Sometimes(), noise(8, 3), batch=5)
    assert cushions.layers == ("first",)
    assert "depends on the samples" in cushions.not_covered["second"]


# -- data, devices, policies -----------------------------------------------------------------------


def test_data_are_not_overwritten_by_a_net_that_starts_in_place():
    x = noise(4, 3)
    kept = x.clone()
    rt.layer_cushions(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)), x)
    assert torch.equal(x, kept)


def test_a_layer_whose_input_is_overwritten_behind_it_is_seen_as_it_was():
    class Reusing(nn.Module):
        def __init__(self):
            super().__init__()
            self.work, self.layer = torch.zeros(9, 3), nn.Linear(3, 2)

        def forward(self, x):
            held = self.work[: len(x)].copy_(x)
            return self.layer(held)

    net, x = Reusing(), noise(4, 3).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rt.layer_cushions(net, x).values
    assert torch.equal(found, rt.layer_cushions(nn.Sequential(net.layer), x).values)


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_batch_statistics_are_those_of_each_batch_and_leave_no_trace(mode, left_alone):
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4)
    )
    net[1].running_mean.fill_(0.3)
    x, weight = noise(5, 2, 4, 4), net[3].weight.detach()
    with left_alone(net):
        found = rt.layer_cushions(net, x, batch=3, batchnorm=mode)
    assert found.batchnorm == mode and found.layers == ("0", "3")
    for part, values in zip(x.split(3), found.values.split(3, dim=1), strict=True):
        z = net[0](part).detach()
        mean, variance = torch.full((3, 1, 1), 0.3), torch.ones(3, 1, 1)
        if mode == "batch":
            variance, mean = torch.var_mean(z, (0, 2, 3), correction=0, keepdim=True)
        z = ((z - mean) / (variance + 1e-5).sqrt()).flatten(1)
        exact = (z @ weight.T).norm(dim=1) / weight.norm() / z.norm(dim=1)
        torch.testing.assert_close(values[1], exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lower_precision_is_measured_in_float64(dtype):
    net = rt.simplified_net(8)
    x = noise(3, 3, 16, 16)
    expected = rt.layer_cushions(net, x)
    measured = rt.layer_cushions(net.to(dtype), x.to(dtype))
    assert measured.values.dtype == torch.float64
    assert relative_error(measured.values, expected.values) < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_another_device_takes_a_copy(device):
    net, x = rt.simplified_net(8, identity="residual"), noise(4, 3, 16, 16)
    one, other = rt.layer_cushions(net, x), rt.layer_cushions(net, x, device=device)
    assert relative_error(other.values, one.values) < EXACT
    assert next(net.parameters()).device.type == "cpu"


def test_layers_by_name_in_the_order_of_the_net():
    net = rt.simplified_net(8)
    cushions = rt.layer_cushions(net, noise(2, 3, 16, 16), layers=["fc", "conv0"])
    assert cushions.layers == ("conv0", "fc")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "kernels"}, "norm: unknown name 'kernels'; did you mean 'kernel'"),
        ({"weight": "removed"}, "weight: unknown name"),
        ({"layers": ["conv9"]}, "layers: unknown name 'conv9'"),
        ({"batch": 0}, "batch: got 0"),
        ({"data": torch.zeros(0, 3, 16, 16)}, "data: got a batch without samples"),
        ({"data": torch.full((2, 3, 16, 16), torch.nan).double()}, "data x: entry"),
        ({"data": torch.zeros(2, 3, 16, 16).byte()}, "data x: the net does not take .* rt.Images"),
        ({"data": 3}, "data: got int"),
        ({"net": 3}, "net: got int, needs a torch.nn.Module"),
        ({"net": nn.LayerNorm(16).double()}, "net: LayerNorm has no linear layer to measure"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:14],
)
def test_refusals(arguments, message):
    settings = {"net": rt.simplified_net(8), "data": noise(2, 3, 16, 16)} | arguments
    with pytest.raises(ValueError, match=f"^{message}"):
        rt.layer_cushions(settings.pop("net"), settings.pop("data"), **settings)


def test_a_layer_without_a_row_is_named_with_the_reason():
    net, x = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), noise(2, 4)
    (name, why), *_ = rt.layer_cushions(net, x).not_covered.items()
    with pytest.raises(ValueError) as caught:
        rt.layer_cushions(net, x, layers=[name])
    assert str(caught.value) == f"layers: {name!r} has no row: {why}"


def test_an_overflow_inside_the_net_names_the_layer():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[0].weight.data.fill_(1e308)
    with pytest.raises(ValueError, match="^net: the input of layer '1' is not finite"):
        rt.layer_cushions(net, torch.full((2, 3), 1e10))


# -- summaries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_intervals_of_quantiles_are_the_tightest_order_statistics(level, confidence):
    """By the binomial law of the number of samples below a quantile, from both sides."""
    layer, x = nn.Linear(2, 1, bias=False), noise(200, 2)
    x[:3] = 0.0  # have no value, and count nowhere
    cushions = rt.layer_cushions(nn.Sequential(layer), x, batch=64)
    known = cushions.values[0][3:].sort().values
    expected = np.quantile(known.numpy(), level)
    assert cushions.quantile(level).item() == pytest.approx(expected, rel=1e-12)
    low, high = (int((known == end).nonzero()) for end in
                 cushions.quantile_interval(level, confidence)[0])  # fmt: skip
    below, tail = stats.binom(len(known), level), (1 - confidence) / 2
    assert below.cdf(low) <= tail < below.cdf(low + 1)  # of at most so many below the quantile
    assert below.sf(high) <= tail < below.sf(high - 1)


def test_too_few_samples_leave_an_end_open():
    cushions = rt.layer_cushions(nn.Sequential(nn.Linear(3, 2)), noise(4, 3))
    assert cushions.quantile_interval(0.01)[0, 0] == 0
    assert cushions.quantile_interval(0.99)[0, 1] == torch.inf


def test_columns_of_the_frame_are_what_they_are_called():
    found = rt.layer_cushions(rt.simplified_net(8), noise(90, 3, 8, 8))
    frame, values = found.frame(), found.values.numpy()
    assert list(frame["layer"]) == [*(f"conv{i}" for i in range(7)), "fc"]
    assert (frame["samples"] == 90).all() and (frame["undefined"] == 0).all()
    for name, level in {
        "minimum": 0,
        "q01": 0.01,
        "q05": 0.05,
        "median": 0.5,
        "maximum": 1,
    }.items():
        expected = np.quantile(values, level, axis=1)
        assert frame[name].tolist() == pytest.approx(expected.tolist(), rel=1e-12), name
        if 0 < level < 1:
            low, high = found.quantile_interval(level, 0.95).unbind(1)
            assert frame[f"{name}_low"].tolist() == low.tolist()
            assert frame[f"{name}_high"].tolist() == high.tolist()


def test_statistics_leave_out_samples_without_a_value():
    """Ends of intervals by the binomial law of six samples and of four, with 0 and inf beyond."""
    values = torch.tensor([
        [4.0, 3, 1, 5, 2, 6], [torch.nan] * 6, [torch.nan, 1e-12, 3e-12, 2e-12, torch.nan, 5e-12],
    ])  # fmt: skip
    found = rt.stability.Cushions(
        layers=("one", "two", "three"), identity_removed=2 * values, effective=values,
        weight="effective", norm="operator", include_bias=True, batchnorm="batch",
        not_covered={"w": "is added"}, notes=("cast",),
    )  # fmt: skip
    assert found.quantile_interval(0.5, 0.5)[1].isnan().all()
    assert [" ".join(line.split()) for line in str(found).splitlines()] == [
        "layer cushions of 6 samples: operator norm, effective, BatchNorm batch, include_bias=True",
        "layer undefined minimum q01 q05 median maximum median identity removed",
        "one 0 1 1.05 [0, 2] 1.25 [0, 3] 3.5 [1, 6] 6 7",
        "two 6 nan nan [nan, nan] nan [nan, nan] nan [nan, nan] nan nan",
        "three 2 1e-12 1.03e-12 [0, 2e-12] 1.15e-12 [0, 2e-12] 2.5e-12 [0, inf] 5e-12 5e-12",
        "Not covered: w: is added.",
        "Note: cast.",
    ]


@pytest.mark.parametrize("given", [-0.01, 0.0, 1.0, 1.01], ids=str)
def test_probabilities_are_refused_at_their_ends(given):
    found = rt.layer_cushions(nn.Sequential(nn.Linear(2, 1)), noise(3, 2))
    between = rt.interlayer_cushions(nn.Sequential(nn.Linear(2, 1)), noise(3, 2), start=0)
    calls = {
        "level": [lambda: found.quantile_interval(given)],
        "confidence": [lambda: found.quantile_interval(0.5, given),
                       lambda: between.intervals(given),
                       lambda: rt.compare_cushions(found, found, confidence=given)],
        "delta": [lambda: rt.stability.Smoothness(ratios=torch.ones(2, 2)).rho(given)],
    }  # fmt: skip
    if given not in (0, 1):
        calls["level"].append(lambda: found.quantile(given))
    for name, each in calls.items():
        for call in each:
            with pytest.raises(ValueError, match=f"^{name}: got {given}, needs a number in"):
                call()


@pytest.mark.parametrize(
    ("dtype", "exponents"),
    [(torch.float64, (-300, 301, 9)), (torch.float32, (-30, 31, 3)), (torch.bfloat16, (-30, 31, 3)),
     (torch.float16, (-4, 4, 1))],
    ids=str,
)  # fmt: skip
def test_rows_have_norms_at_every_scale(dtype, exponents):
    """In decimal numbers of 28 digits; rows of other scales stand beside each."""
    scales = torch.tensor([10.0**n for n in range(*exponents)]).to(dtype)
    x = torch.tensor([[2.0, -3.0, 6.0, 0.0], [0.0, -2.0, -3.0, -6.0]])
    x = (x.to(dtype) * scales[:, None, None]).flatten(0, 1)
    exact = [float(sum(Decimal(v) ** 2 for v in row).sqrt()) for row in x.tolist()]
    eps = torch.finfo(dtype if dtype == torch.float64 else torch.float32).eps  # of the squares
    torch.testing.assert_close(row_norms(x), torch.tensor(exact), rtol=4 * eps, atol=0)
    zeros = torch.zeros(2, 3, dtype=dtype)
    for some in (zeros, zeros[:, :0]):
        torch.testing.assert_close(row_norms(some), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("measure", [
    lambda net, x, device: rt.layer_cushions(net, x, batch=3, device=device).values,
    lambda net, x, device: rt.stability.weight_noise(
        net, x, levels=[0.1], draws=1, batch=3, device=device
    ).at_output,
    lambda net, x, device: rt.interlayer_cushions(
        net, x, start=0, method="probes", probes=2, batch=3, device=device
    ).values,
], ids=["layers", "noise", "interlayer"])  # fmt: skip
def test_numbers_of_a_gpu_come_back(measure, cuda):
    """Up to the rounding of other kernels, of whatever is summed in another order."""
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    x = noise(5, 2, 3, 3)
    found, expected = (measure(net, x, device) for device in (cuda, "cpu"))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
