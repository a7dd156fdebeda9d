"""ID entries, parametrizations, first draws, and weight decay that leaves the identity alone."""

import math

import oracles
import pytest
import torch
from tolerances import assert_same, round_off
from torch import nn
from torch.nn.utils import parametrize, prune

import resid_theory as rt
from resid_theory.identity import (
    AddIdentity,
    DiracWeights,
    IdDecay,
    ResidualWeight,
    id_entries,
    id_mask,
    id_rule,
    identity_kernel,
    identity_map,
    identity_of,
    identity_removed,
    initialize_layer,
    shifted,
    trained_weight,
    undecayed,
    with_identity,
)

KINDS = ("residual", "dirac", "dominant")


def layer(kind="conv2d", inputs=3, outputs=3, **settings):
    """A layer drawn from a seed of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if kind == "linear":
            return nn.Linear(inputs, outputs)
        cls = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}[kind]
        return cls(inputs, outputs, **{"kernel_size": 3, "padding": 1, **settings})


# --- kernels


@pytest.mark.parametrize(
    ("shape", "geometry", "taps"),
    [
        pytest.param((4, 4), {}, (), id="matrix"),
        pytest.param((6, 3), {}, (), id="tall matrix"),
        pytest.param((4, 2, 3), {}, (1,), id="conv1d"),
        pytest.param((4, 4, 3, 5), {}, (1, 2), id="oblong"),
        pytest.param((4, 4, 3, 5), {"padding": (0, 4), "dilation": (1, 2)}, (0, 2), id="each axis"),
        pytest.param((6, 2, 3, 3), {"padding": 2, "dilation": 2}, (1, 1), id="dilated"),
        pytest.param((3, 3, 5), {"padding": 1}, (1,), id="off centre"),
        pytest.param((3, 3, 5), {"padding": "valid"}, (0,), id="valid"),
        pytest.param((2, 2, 1, 1), {"padding": 0}, (0, 0), id="1x1"),
        pytest.param((2, 2, 3, 3, 3), {}, (1, 1, 1), id="conv3d"),
        pytest.param((8, 2, 3), {"groups": 2}, (1,), id="groups"),
        pytest.param((6, 1, 3), {"groups": 6}, (1,), id="depthwise"),
    ],
)
@pytest.mark.parametrize("rule", ["repeat", "truncate"])
def test_kernel_by_three_loops(shape, geometry, taps, rule):
    groups = geometry.get("groups", 1)
    expected = oracles.identity_kernel_by_loops(shape, rule=rule, taps=taps, groups=groups)
    assert_same(identity_kernel(shape, rule=rule, **geometry), expected)


@pytest.mark.parametrize("shape", [(3, 5, 3), (5, 3, 3, 3), (4, 4, 5), (2, 7, 1, 3, 3)], ids=str)
def test_truncate_is_dirac_of_torch(shape):
    assert_same(identity_kernel(shape, rule="truncate"), nn.init.dirac_(torch.empty(shape)))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("outputs", [3, 6, 9])
def test_the_kernel_s_convolution_is_the_shortcut(generator, stride, outputs):
    x = torch.randn(2, 3, 7, 8, generator=generator)
    kernel = identity_kernel((outputs, 3, 3, 3))
    expected = oracles.identity_shortcut(x, outputs, stride)
    found = torch.conv2d(x, kernel, stride=stride, padding=1)
    assert_same(found, expected)
    assert_same(identity_map(x, outputs, stride=stride), expected)


def test_channels_that_do_not_divide():
    with pytest.raises(ValueError, match="^channels: got 3 for 2 inputs; rule='repeat' needs a"):
        identity_map(torch.zeros(1, 2, 4), 3)


def test_an_identity_of_no_rule_has_none():
    given = nn.Linear(3, 3)
    parametrize.register_parametrization(given, "weight", ResidualWeight(torch.eye(3).flip(0)))
    assert id_rule(given) is None


def test_option_a_pads_and_cuts_channels():
    x = torch.arange(1.0, 9.0).view(1, 2, 4)
    wide = identity_map(x, 3, stride=2, rule="truncate")
    assert wide.tolist() == [[[1.0, 3.0], [5.0, 7.0], [0.0, 0.0]]]
    assert identity_map(x, 1, rule="truncate").tolist() == [[[1.0, 2.0, 3.0, 4.0]]]


OFF_GRID = (
    "padding: got {} for a kernel side of 3 with dilation {}, which has no tap at the output's own "
    "position; the identity needs a multiple of the dilation below {}, as padding={}"
)


@pytest.mark.parametrize(
    ("shape", "geometry", "says"),
    [
        ((3, 3, 2, 3), {}, "shape: got a kernel side of 2, which has no centre; the identity needs "
         "odd sides"),
        ((3, 3, 3), {"padding": 1, "dilation": 2}, OFF_GRID.format(1, 2, 6, 2)),
        ((3, 3, 3), {"padding": 3}, OFF_GRID.format(3, 1, 3, 1)),
        ((3, 3, 3), {"padding": -1}, OFF_GRID.format(-1, 1, 3, 1)),
        ((5, 3, 3), {}, "shape: got 5 outputs for 3 inputs; rule='repeat' needs outputs that are a "
         "multiple of the inputs, rule='truncate' takes any"),
        ((10, 3, 3), {"groups": 2}, "shape: got 5 outputs for 3 inputs in each of 2 groups; "
         "rule='repeat' needs outputs that are a multiple of the inputs, rule='truncate' takes "
         "any"),
        ((6, 2, 3), {"groups": 4}, "groups: got 4, which does not divide 6 outputs"),
        ((3, 3, 3), {"padding": "sam"}, "padding: unknown name 'sam'; did you mean 'same'? "
         "choose from 'same', 'valid'"),
        ((3, 3, 3), {"padding": (1, 1)}, "padding: got (1, 1), needs a number for each of 1 axes"),
        ((3, 3, 3), {"dilation": [2, 1]}, "dilation: got (2, 1), needs a number for each of 1 "
         "axes"),
        ((3,), {}, "shape: got (3,), needs (out, in, *kernel)"),
        ((3, 3), {"rule": "repaet"}, "rule: unknown name 'repaet'; did you mean 'repeat'? "
         "choose from 'repeat', 'truncate'"),
    ],
    ids=str,
)  # fmt: skip
def test_kernels_without_an_identity(shape, geometry, says):
    with pytest.raises(ValueError) as refusal:
        id_entries(shape, **geometry)
    assert str(refusal.value) == says


def test_where_kernels_and_entries_are():
    with torch.device("meta"):  # which has no positions
        assert {index.device.type for index in id_entries((4, 2, 3))} == {"cpu"}
        assert identity_kernel((4, 2, 3)).is_meta
        here = identity_kernel((4, 2, 3), device="cpu", dtype=torch.float32)
    assert here.device.type == "cpu" and here.dtype == torch.float32 and int(here.sum()) == 4
    kernel = identity_of(layer(outputs=6).to("meta", torch.float16))
    assert kernel.is_meta and kernel.dtype == torch.float16 and kernel.shape == (6, 3, 3, 3)
    x = torch.arange(24.0).view(1, 2, 3, 4)
    assert_same(identity_map(x, 4, stride=(2, 3)), torch.cat([x[:, :, ::2, ::3]] * 2, 1))
    with pytest.raises(ValueError, match=r"^stride: got \(2,\), needs a number for each of 2 axes"):
        identity_map(x, 2, stride=(2,))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        pytest.param(nn.ReLU(), "got ReLU, needs nn.Linear", id="relu"),
        pytest.param(nn.ConvTranspose2d(3, 3, 3), "got ConvTranspose2d", id="transposed"),
        pytest.param(nn.LazyConv2d(3, 3), "lazy layer", id="lazy"),
        pytest.param(layer(padding=3), "padding: got 3", id="padding"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_layers_without_an_identity(given, says):
    with pytest.raises(ValueError, match=says):
        identity_of(given)


# --- parametrizations


@pytest.mark.parametrize("where", ["linear", "conv1d", "conv2d", "conv3d"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_effective_weight_stays(where, kind):
    one = layer(where)
    if kind == "dominant":  # refused where its zeros are not
        with torch.no_grad():
            one.weight *= torch.eye(3).view(3, 3, *[1] * (one.weight.dim() - 2))
    before = one.weight.detach().clone()
    with_identity(one, kind)
    # I removed and added again, and a normalization: a few roundings of numbers up to 2
    torch.testing.assert_close(one.weight.detach(), before, rtol=0, atol=round_off(4))


def test_residual_adds_one_at_the_id_entries():
    one = with_identity(layer(outputs=6), "residual")
    v = trained_weight(one)
    expected = v + oracles.identity_kernel_by_loops((6, 3, 3, 3), rule="repeat", taps=(1, 1))
    assert_same(one.weight, expected)
    assert_same(identity_removed(one), v)


@pytest.mark.parametrize("normalize", [True, False], ids=["eq5", "eq4"])
@pytest.mark.parametrize("channels", [(3, 3), (3, 5), (5, 3)], ids=str)
def test_dirac_weight_filter_by_filter(generator, normalize, channels):
    one = layer(inputs=channels[0], outputs=channels[1])
    with_identity(one, "dirac", rule="truncate", normalize=normalize)
    inside = one.parametrizations.weight[0]
    new = dict(type(inside)(inside.identity, normalize=normalize).named_parameters())
    assert torch.equal(new["a"], torch.ones(channels[1]))
    assert not normalize or torch.equal(new["b"], torch.full((channels[1],), 0.1))
    with torch.no_grad():
        for p in inside.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    v = one.parametrizations.weight.original
    expected = oracles.dirac_weight(v, inside.a, inside.b)
    torch.testing.assert_close(one.weight, expected, rtol=round_off(30), atol=round_off(4))
    removed = expected - inside.a.view(-1, 1, 1, 1) * inside.identity
    torch.testing.assert_close(identity_removed(one), removed, rtol=0, atol=round_off(10))
    assert (inside.b is None) is not normalize


class Doubled(nn.Module):
    """A parametrization that follows another one."""

    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("form", ["as_is", "channels_last", "eq4"])
def test_weights_of_all_dirac_layers_at_once_are_those_of_each(form):
    kinds = [("conv2d", 3, 3)] * 3 + [("conv2d", 3, 5), ("linear", 4, 4), ("conv1d", 3, 3)]
    net = nn.Sequential(*(layer(*kind) for kind in kinds), nn.Conv2d(3, 3, 1))
    for one, rule in zip(net, [*["repeat", "truncate"] * 3, "repeat"], strict=True):
        with_identity(one, "dirac", rule=rule, normalize=form != "eq4")
    torch.nn.utils.parametrize.register_parametrization(net[2], "weight", Doubled())
    with torch.no_grad():
        net[0].parametrizations.weight.original[1] = 0
    if form == "channels_last":
        net[:4].to(memory_format=torch.channels_last)

    def weights_and_gradients():
        weights = [one.weight for one in net]
        total = sum((w * w.detach().cos()).sum() for w in weights)
        scales = [p for name, p in net.named_parameters() if "weight" in name]
        return weights, torch.autograd.grad(total, scales)

    with DiracWeights(net).ready():
        weights, gradients = weights_and_gradients()
    expected = weights_and_gradients()
    torch.testing.assert_close(weights, expected[0], rtol=round_off(30), atol=0)
    torch.testing.assert_close(gradients, expected[1], rtol=round_off(30), atol=round_off(30))
    assert all(a.stride() == b.stride() for a, b in zip(weights, expected[0], strict=True))
    trained_weight(net[1]).data.neg_()
    assert not torch.equal(net[1].weight, weights[1])  # computed anew


def test_a_filter_of_zeros_has_no_direction():
    one = with_identity(nn.Linear(2, 2), "dirac")
    nn.init.zeros_(trained_weight(one))
    assert one.weight.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    one(torch.ones(1, 2)).sum().backward()
    assert one.parametrizations.weight[0].a.grad.tolist() == [1.0, 1.0]  # a is trained


@pytest.mark.parametrize("where", ["linear", "conv1d", "conv2d", "conv3d"])
@pytest.mark.parametrize("dense", [0, 1, 2, 4])
def test_dense_outputs_beside_dominant_ones(where, dense):
    one = layer(where, 2, 4)
    with torch.no_grad():
        for o in range(4 - dense):
            one.weight[o, 1 - o % 2] = 0
    before = one.weight.detach().clone()
    with_identity(one, "dominant", **({"dense": dense} if dense else {}))
    inside, v = one.parametrizations.weight[0], trained_weight(one).detach()
    assert v.shape == ((4 - dense) + 2 * dense, 1, *before.shape[2:])
    taps = (1,) * (before.dim() - 2)
    expected = oracles.identity_kernel_by_loops(before.shape, rule="repeat", taps=taps)
    free = 0
    for o in range(4):
        for i in range(2):
            if o >= 4 - dense or i == o % 2:
                expected[o, i] += v[free, 0]
                free += 1
    assert free == len(v)
    assert dense or rt.identity.DominantWeight(inside.identity).dense == 0
    assert_same(one.weight.detach(), expected)
    torch.testing.assert_close(one.weight.detach(), before, rtol=0, atol=round_off(4))
    mask = inside.mask()  # the ID entries are where they act
    assert mask.shape == v.shape and int(mask.sum()) == 4
    assert_same(inside.branch(mask.to(v.dtype)), inside.identity)


def test_dominant_refuses_other_weights():
    with pytest.raises(ValueError, match="not zero off the dominant paths"):
        with_identity(layer(), "dominant")
    with pytest.raises(ValueError, match="not zero off the dominant paths"):
        with_identity(layer(outputs=6), "dominant", dense=3)
    with pytest.raises(ValueError, match="output without an entry"):
        with_identity(layer(outputs=4), "dominant", rule="truncate")


@pytest.mark.parametrize(
    ("kind", "dense", "says"),
    [
        pytest.param("dominant", 7, "got 7, needs at most the 6 outputs", id="many"),
        pytest.param("dominant", -1, "got -1, needs at least 0", id="negative"),
        pytest.param("dominant", 1.0, "got 1.0, needs a whole number", id="fraction"),
        pytest.param("residual", 3, "got 3 for kind 'residual', needs kind 'dominant'", id="kind"),
    ],
)
def test_numbers_of_dense_outputs(kind, dense, says):
    one = layer(outputs=6)
    with pytest.raises(ValueError, match=f"dense: {says}"):
        with_identity(one, kind, dense=dense)
    assert not nn.utils.parametrize.is_parametrized(one) and id_rule(one) is None


def test_the_identity_goes_in_once():
    one = with_identity(layer(), "residual")
    with pytest.raises(ValueError, match="parametrized already"):
        with_identity(one, "dirac")
    with pytest.raises(ValueError, match="did you mean 'dirac'"):
        with_identity(layer(), "diract")


def test_dense_outputs_are_shown():
    parts = [rt.identity.DominantWeight(torch.eye(3), dense=dense) for dense in (0, 2)]
    shown = [str(part) for part in parts]
    assert shown == ["DominantWeight()", "DominantWeight(dense=2)"]


def test_state_dicts_hold_what_is_trained():
    one, inner = with_identity(layer(), "dirac"), "parametrizations.weight"
    assert set(one.state_dict()) == {"bias", f"{inner}.original", f"{inner}.0.a", f"{inner}.0.b"}
    assert one.to(torch.float32).weight.dtype == torch.float32  # the identity moves, too


@pytest.mark.parametrize("axes", [0, 1, 3])
def test_add_identity_is_three_terms(generator, axes):
    geometry = {"stride": 2, "padding": 1} if axes else {}
    inner = layer(f"conv{axes}d" if axes else "linear", 2, 4, **geometry)
    x = torch.randn(3, 2, *[5] * axes, generator=generator)
    expected = oracles.residual_layer(x, inner.weight, inner.bias, **geometry)
    torch.testing.assert_close(AddIdentity(inner)(x), expected, rtol=0, atol=round_off(60))
    if not axes:  # many tokens
        assert_same(AddIdentity(inner)(x[:, None]), AddIdentity(inner)(x)[:, None])
    half = x[(..., *[slice(None, None, 2)] * axes)] if axes else x
    expected[:, 2:] -= half  # the first two outputs alone have an identity
    found = AddIdentity(inner, "truncate")(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=round_off(60))


# --- draws


@pytest.mark.parametrize(
    ("kind", "std"),
    [
        pytest.param("kaiming", math.sqrt(2 / (20 * 9)), id="kaiming"),
        pytest.param("hardt_ma", 1 / (9 * 40), id="hardt_ma"),
        pytest.param("normal", 0.3, id="normal"),
    ],
)
def test_draws_have_their_deviation(generator, kind, std):
    one = layer(inputs=20, outputs=40)
    drawn = initialize_layer(one, kind, generator=generator, std=0.3).weight.detach()
    # a sample deviation of n normals has standard error std / sqrt(2n); four of them
    assert abs(float(drawn.std()) - std) < 4 * std / math.sqrt(2 * drawn.numel())
    assert abs(float(drawn.mean())) < 4 * std / math.sqrt(drawn.numel())


@pytest.mark.parametrize("kind", ["plain", *KINDS])
def test_a_layer_is_drawn_where_it_is_trained(generator, kind):
    one = layer()
    nn.init.zeros_(one.weight)
    with_identity(one, kind)
    nn.init.ones_(one.bias)
    initialize_layer(one, "hardt_ma", generator=generator)
    assert one.bias.abs().max() == 0
    if kind == "dirac":
        inside = one.parametrizations.weight[0]
        assert inside.a.tolist() == [1.0] * 3 and inside.b.tolist() == [0.1] * 3
    # V of a dominant layer is a part of the weight, whose fan-in counts.
    for init, std in (("hardt_ma", 1 / (9 * 3)), ("kaiming", math.sqrt(2 / 27))):
        initialize_layer(one, init, generator=0)
        trained = (one.weight if kind == "plain" else trained_weight(one)).detach()
        normal = torch.randn(trained.shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(trained, std * normal, rtol=round_off(1), atol=0)


def test_bad_draws(generator):
    with pytest.raises(ValueError, match="did you mean 'kaiming'"):
        initialize_layer(layer(), "kaimng", generator=generator)
    with pytest.raises(ValueError, match="std: got -1"):
        initialize_layer(layer(), "normal", generator=generator, std=-1)
    with pytest.raises(ValueError, match="generator: got 'a'"):
        initialize_layer(layer(), "normal", generator="a")


# --- masks


def test_masks_of_every_form_lie_in_the_same_place():
    forms = ("plain", "residual", "explicit")
    masks = [id_mask(rt.simplified_net(8, identity=form)) for form in forms]
    for one, other in zip(masks, masks[1:], strict=False):
        assert all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))
    assert [next(iter(mask)) for mask in masks] == [
        "conv1.weight", "conv1.parametrizations.weight.original", "conv1.layer.weight",
    ]  # fmt: skip


def test_only_fixed_identities_are_shifted():
    counts = {
        form: sum(int(mask.sum()) for _, mask in shifted(rt.simplified_net(8, identity=form)))
        for form in ("plain", "residual", "explicit", "dominant", "dominant_half", "dominant_upper")
    }
    assert counts == {**dict.fromkeys(counts, 224), "plain": 0}
    assert list(shifted(rt.diracnet(10))) == []


def test_a_and_b_are_found():
    net = rt.diracnet(10)
    found = undecayed(net)
    # 2N layers a group of 16, 32 and 64 channels; one a and one b a channel
    assert sum(p.numel() for p in found) == 2 * 2 * (16 + 32 + 64)
    assert all(name.endswith((".a", ".b")) for name, p in net.named_parameters()
               if any(p is q for q in found))  # fmt: skip
    assert len(undecayed(rt.diracnet(10, normalize=False))) == 6
    assert undecayed(rt.diracnet(10, identity="plain")) == []


# --- decay


def residual_linear():
    """A layer, its V with a gradient of zeros, and the value of V."""
    one = with_identity(layer("linear"), "residual")
    v = trained_weight(one)
    v.grad = torch.zeros(3, 3)
    return one, v, v.detach().clone()


@pytest.mark.parametrize("maximize", [False, True], ids=["min", "max"])
def test_one_step_of_sgd_by_hand(maximize):
    one, v, start = residual_linear()
    v.grad = (grad := torch.full((3, 3), 0.25)).clone()
    optimizer = torch.optim.SGD([v], lr=0.5, weight_decay=0.1, maximize=maximize)
    with IdDecay(optimizer, one):
        optimizer.step()
    sign = -1 if maximize else 1
    expected = start - 0.5 * (sign * grad + 0.1 * (start + torch.eye(3)))
    torch.testing.assert_close(v.detach(), expected, rtol=0, atol=round_off(5))
    assert_same(v.grad, grad)


def test_decoupled_decay_uses_the_step_s_learning_rate():
    one, v, start = residual_linear()
    optimizer = torch.optim.AdamW([v], lr=0.5, weight_decay=0.1)
    IdDecay(optimizer, one)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 9.0
    expected = start - 0.05 * (start + torch.eye(3))
    torch.testing.assert_close(v.detach(), expected, rtol=0, atol=round_off(5))


def test_each_group_has_its_own_decay():
    net = nn.Sequential(*[with_identity(layer("linear"), "residual") for _ in range(2)])
    first, second = (one.parametrizations.weight.original for one in net)
    before = [p.detach().clone() for p in (first, second)]
    first.grad, second.grad = torch.zeros(3, 3), torch.zeros(3, 3)
    groups = [{"params": [first], "weight_decay": 0.2}, {"params": [second], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    IdDecay(optimizer, net)
    optimizer.step()
    expected = before[0] - 0.2 * (before[0] + torch.eye(3))
    torch.testing.assert_close(first.detach(), expected, rtol=0, atol=round_off(5))
    assert_same(second.detach(), before[1])


@pytest.mark.parametrize("by_name", [False, True], ids=["by place", "by name"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.LBFGS])
def test_a_closure_is_corrected_after_it_ran(kind, by_name):
    one, v, start = residual_linear()
    sgd = kind is torch.optim.SGD
    optimizer = kind([v], lr=1.0, **({"weight_decay": 0.1} if sgd else {}))
    IdDecay(optimizer, one)

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * (one.weight**2).sum()
        loss.backward()
        return loss

    value = 0.5 * float((start + torch.eye(3)).square().sum())
    given = ((), {"closure": closure}) if by_name else ((closure,), {})
    assert float(optimizer.step(*given[0], **given[1]).detach()) == pytest.approx(value)
    expected = start - (1.1 if sgd else 1.0) * (start + torch.eye(3))  # L-BFGS: the minimum
    atol = round_off(5) if sgd else 1e-6  # its own tolerance on changes
    torch.testing.assert_close(v.detach(), expected, rtol=0, atol=atol)


def test_a_removed_correction_corrects_nothing():
    one, v, start = residual_linear()
    optimizer = torch.optim.SGD([v], lr=1.0, weight_decay=0.1)
    with IdDecay(optimizer, one):
        pass
    optimizer.step()
    torch.testing.assert_close(v.detach(), 0.9 * start, rtol=round_off(2), atol=0)


@pytest.mark.parametrize("identity", ["plain", "dirac"])
def test_other_nets_are_left_alone(identity):
    net = with_identity(nn.Linear(2, 2), identity)  # made here, in float64
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    twin = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.ASGD(net.parameters(), lr=0.5, lambd=0.0, weight_decay=0.1)
    IdDecay(optimizer, net)
    optimizer.step()
    for p, before in zip(net.parameters(), twin, strict=True):
        expected = before - 0.5 * (1 + 0.1 * before)
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=round_off(5))


class Lars(torch.optim.SGD):
    """Steps as long as the weights, by gradients that are scaled before."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad *= p.detach().norm() / p.grad.norm()
        return super().step(closure)


def test_optimizers_that_are_refused():
    one, v, _ = residual_linear()
    with pytest.raises(ValueError, match="got Lars, whose steps may depend on where the weights"):
        IdDecay(Lars([v], lr=0.5), one)
    IdDecay(Lars([v], lr=0.5), one, decoupled=False).remove()
    IdDecay(type("Named", (torch.optim.AdamW,), {})([v]), one).remove()
    with pytest.raises(ValueError, match="optimizer: got str, needs a torch.optim.Optimizer"):
        IdDecay("sgd", one)
    with pytest.raises(ValueError, match="got ASGD, whose steps may depend on where the weights"):
        IdDecay(torch.optim.ASGD([v]), one)
    with pytest.raises(ValueError, match="holds none of the net's parameters"):
        IdDecay(torch.optim.SGD(nn.Linear(1, 1).parameters()), one)
    with pytest.raises(ValueError, match="net: got Linear, .*that a forward adds is not seen"):
        IdDecay(torch.optim.SGD([v]), nn.Linear(2, 2))
    IdDecay(optimizer := torch.optim.ASGD([v]), one, decoupled=False)
    optimizer.grad_scale = torch.tensor(2.0)
    with pytest.raises(ValueError, match="scaler.unscale_"):
        optimizer.step()
    plain = with_identity(nn.Linear(2, 2), "plain")
    IdDecay(optimizer := torch.optim.ASGD(plain.parameters()), plain)
    optimizer.grad_scale = torch.tensor(2.0)
    optimizer.step()  # nothing to correct


# --- parts of a weight


def made_by(*steps):
    one = layer("linear")
    for step in steps:
        step(one)
    return one


def doubled(one):
    parametrize.register_parametrization(one, "weight", Doubled())


def residual(one):
    with_identity(one, "residual")


def cut(one):
    held = getattr(one, "parametrizations", None)
    prune.identity(*((one, "weight") if held is None else (held.weight, "original")))


MADE = {
    "hooks": [cut], "Doubled": [doubled], "Doubled, then Doubled": [doubled, doubled],
    "ResidualWeight, then Doubled": [residual, doubled],
    "hooks, then ResidualWeight": [residual, cut],
}  # fmt: skip


@pytest.mark.parametrize("words", MADE)
def test_weights_that_are_not_trained_say_what_makes_them(words):
    for name, where in (("", "layer: its weight"), ("a.b", "net: the weight of layer 'a.b'")):
        with pytest.raises(ValueError) as refusal:
            trained_weight(made_by(*MADE[words]), name)
        assert str(refusal.value) == (
            f"{where} is made by {words}; needs a parameter, or an identity and nothing else: "
            "to_plain makes one of it, parametrizations that follow the weight can be added later"
        )


class Nearly(nn.Module):
    """Scales filters, and mixes a little of the others in."""

    def __init__(self, mixed):
        super().__init__()
        self.mixed = mixed

    def forward(self, weight):
        some = 1.0 if self.mixed else 0.0
        scale = torch.tensor([[-2.0] * 3, [some] * 3, [3.0, 3 * some, 3.0]])
        return scale * weight + self.mixed * weight.flip(1)


@pytest.mark.parametrize("mixed", [0.0, 1e-13])
def test_what_follows_an_identity_may_scale_filters_and_no_more(mixed):
    one = made_by(residual)
    trained_weight(one).data.abs_().add_(2).neg_()  # beside a zero the largest is no magnitude
    parametrize.register_parametrization(one, "weight", Nearly(mixed))
    if mixed:
        with pytest.raises(ValueError) as refusal:
            identity_removed(one)
        assert str(refusal.value) == (
            "layer: its weight is made by ResidualWeight, then Nearly; what follows the identity "
            "mixes entries, needs parametrizations that scale filters or set entries to zero"
        )
        return
    v = one.parametrizations.weight.original.detach()
    expected = torch.tensor([[-2.0] * 3, [0.0] * 3, [3.0, 0.0, 3.0]]) * v
    torch.testing.assert_close(identity_removed(one), expected, rtol=round_off(2), atol=0)


def test_a_weight_is_read_in_eval_mode_and_nothing_of_it_changes():
    one = made_by(residual, nn.utils.parametrizations.spectral_norm).train()
    norm = one.parametrizations.weight[1].eval()
    one.parametrizations.weight[0].train()
    weight, v = one.weight.detach(), one.parametrizations.weight.original.detach()
    norm.train()
    state = {name: value.clone() for name, value in one.state_dict().items()}
    removed, factor = identity_removed(one), weight[0, 1] / v[0, 1]
    torch.testing.assert_close(removed, v * factor, rtol=round_off(50), atol=0)
    assert_same(dict(one.state_dict()), state)
    assert all(module.training for module in one.modules())
    assert not removed.requires_grad and not one.parametrizations.weight[0]._forward_hooks


@pytest.mark.parametrize(
    ("init", "std", "says"),
    [("normal", math.inf, "std: got inf"), ("normal", math.nan, "std: got nan"), ("normal", 0, "")],
)
def test_deviations_are_finite_and_may_be_zero(init, std, says):
    one = layer()
    if says:
        with pytest.raises(ValueError, match=says):
            initialize_layer(one, init, std=std)
    else:
        initialize_layer(one, init, std=std)
        assert not one.weight.any() and not one.bias.any()
