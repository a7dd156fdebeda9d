"""The papers' networks: counts, shapes and outputs against independent implementations."""

import json
import math
from pathlib import Path

import oracles
import pytest
import torch
from tolerances import assert_same, relative_error, round_off
from torch import nn

import resid_theory as rt
from resid_theory.identity import id_mask, id_rule, identity_removed
from resid_theory.networks import Block, IdentityShortcut, resnet_imagenet

# A deep net's outputs: some thousand rounded terms a layer, passed through at most 34 layers whose
# sensitivities stay near 1.
NET = round_off(1000)


def count(net):
    return sum(p.numel() for p in net.parameters())


def images(generator, size=32, batch=2):
    return torch.randn(batch, 3, size, size, generator=generator)


def scatter_statistics(net, generator):
    """BatchNorm with statistics, weights and biases that differ from channel to channel."""
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.3, generator=generator)
        norm.running_var.uniform_(0.5, 2.0, generator=generator)
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.normal_(0, 0.3, generator=generator)
    return net.eval()


# --- counts, from the papers' tables and the authors' code


@pytest.mark.parametrize(
    ("depth", "parameters", "entries", "dominant"),
    [
        pytest.param(20, 269034, 672, 7818, id="20"),
        pytest.param(32, 463018, 1120, 12298, id="32"),
        pytest.param(44, 657002, 1568, 16778, id="44"),
    ],
)
@pytest.mark.parametrize(
    "identity", ["plain", "residual", "explicit", "dominant", "dominant_half", "dominant_upper"]
)
def test_simplified_counts(depth, parameters, entries, dominant, identity):
    net = rt.simplified_net(depth, identity=identity)
    n = (depth - 2) // 3  # even at these depths, so the lower half ends inside the second group
    # off-path filters of 9 taps: o outputs that read i inputs instead of one have o (i - 1) more
    half = 9 * (16 * 15 + 32 * 31)
    lower = 9 * (n * 16 * 15 + 32 * 15 + (n // 2 - 1) * 32 * 31)
    expected = {"dominant": 0, "dominant_half": half, "dominant_upper": lower}.get(identity)
    assert count(net) == (parameters if expected is None else dominant + expected)
    assert sum(int(mask.sum()) for mask in id_mask(net).values()) == entries


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({"depth": 10}, 75738),
        ({"depth": 28}, 368730),
        ({"depth": 34}, 466394),
        ({"depth": 100}, 1540698),
        ({"depth": 34, "width": 2}, 1854378),
        ({"depth": 28, "width": 5}, 9124250),
        ({"depth": 28, "width": 10}, 36450090),
        ({"depth": 28, "width": 10, "classes": 100}, 36507780),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "-".join(map(str, value.values())),
)
def test_dirac_counts(settings, parameters):
    with torch.device("meta"):  # shapes without draws: the widest net has 36 million weights
        net = rt.diracnet(**settings)
    assert count(net) == parameters and all(t.is_meta for t in net.state_dict().values())


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        pytest.param(lambda: rt.diracnet_imagenet(18), 11523368, id="dirac-18"),
        pytest.param(lambda: rt.diracnet_imagenet(34), 21638952, id="dirac-34"),
        # no a and b, or no b, of four layers each of 64, 128, 256 and 512 channels
        pytest.param(
            lambda: rt.diracnet_imagenet(18, identity="plain"),
            11523368 - 2 * 4 * 960,
            id="plain-18",
        ),
        pytest.param(
            lambda: rt.diracnet_imagenet(18, normalize=False), 11523368 - 4 * 960, id="eq4-18"
        ),
        # He et al.'s nets as torchvision builds them; WRN-28-10 as its authors print it, 36.5M
        pytest.param(lambda: resnet_imagenet(18), 11689512, id="resnet-18"),
        pytest.param(lambda: resnet_imagenet(34), 21797672, id="resnet-34"),
        pytest.param(lambda: rt.preresnet(28, width=10), 36479194, id="wrn-28-10"),
        pytest.param(lambda: rt.full_net(20), 269722, id="full-20"),
        pytest.param(lambda: rt.full_net(20, shortcut=False), 269722, id="full-plain-20"),
        pytest.param(lambda: rt.full_net(20, doubling="dup"), 269722, id="full-dup-20"),
        # two 1x1 convolutions with BatchNorm more: 16*32 + 2*32 + 32*64 + 2*64
        pytest.param(lambda: rt.full_net(20, doubling="proj"), 272474, id="full-proj-20"),
        # no a and b: 2 * 4 * 2 * (16 + 32 + 64) fewer than 368 730
        pytest.param(lambda: rt.diracnet(28, identity="plain"), 366938, id="plain-28"),
        pytest.param(lambda: rt.diracnet(28, normalize=False), 367834, id="eq4-28"),
    ],
)
def test_counts_of_other_nets(make, parameters):
    with torch.device("meta"):
        net = make()
    assert count(net) == parameters and all(t.is_meta for t in net.state_dict().values())


@pytest.mark.parametrize("identity", ["plain", "residual"])
@pytest.mark.parametrize("width", [1, 2])
def test_shortcut_depth_costs_no_parameters(identity, width):
    with torch.device("meta"):
        nets = [
            rt.preresnet(28, width=width, shortcut_depth=n, identity=identity) for n in (1, 2, 4, 8)
        ]
    assert len({count(net) for net in nets}) == 1
    assert [sum(isinstance(m, Block) for m in net) for net in nets] == [24, 12, 6, 3]


# --- shapes


CIFAR_NETS = {
    "plain": lambda: rt.simplified_net(8),
    "residual": lambda: rt.simplified_net(8, identity="residual"),
    "explicit": lambda: rt.simplified_net(8, identity="explicit"),
    "dominant": lambda: rt.simplified_net(8, identity="dominant"),
    "dominant-half": lambda: rt.simplified_net(8, identity="dominant_half"),
    "dominant-upper": lambda: rt.simplified_net(8, identity="dominant_upper"),
    "full": lambda: rt.full_net(8),
    "full-dup": lambda: rt.full_net(8, doubling="dup"),
    "full-proj": lambda: rt.full_net(8, doubling="proj"),
    "full-plain": lambda: rt.full_net(8, shortcut=False),
    "dirac": lambda: rt.diracnet(10),
    "dirac-eq4": lambda: rt.diracnet(10, normalize=False, init="kaiming"),
    "dirac-plain": lambda: rt.diracnet(10, identity="plain"),
    "dirac-wide": lambda: rt.diracnet(10, width=2),
    "preresnet": lambda: rt.preresnet(10),
    "preresnet-1": lambda: rt.preresnet(10, shortcut_depth=1),
    "preresnet-wide": lambda: rt.preresnet(10, width=2),
    "preresnet-residual": lambda: rt.preresnet(10, identity="residual"),
    "preresnet-dirac": lambda: rt.preresnet(10, identity="dirac"),
}


def test_pools_have_the_number_of_their_group():
    parts = rt.diracnet(10).named_children()
    assert [name for name, part in parts if isinstance(part, nn.MaxPool2d)] == ["pool1", "pool2"]


@pytest.mark.parametrize("name", CIFAR_NETS)
def test_a_slice_is_the_map_between_layers(generator, name):
    net, x = CIFAR_NETS[name]().eval(), images(generator)
    for cut in (1, len(net) // 2, len(net) - 1):
        assert_same(net[cut:](net[:cut](x)), net(x))
    assert net(x).shape == (2, 10)
    assert not hasattr(net[:4], "architecture")  # a slice does not pass for the whole


@pytest.mark.parametrize("classes", [2, 100])
def test_classes(generator, classes):
    nets = [
        rt.simplified_net(5, classes=classes), rt.full_net(8, classes=classes),
        rt.diracnet(10, classes=classes), rt.preresnet(10, classes=classes),
    ]  # fmt: skip
    assert {net(images(generator)).shape for net in nets} == {(2, classes)}


# --- first weights


@pytest.mark.parametrize("name", CIFAR_NETS)
def test_a_net_draws_from_its_seed_only(name):
    state = torch.get_rng_state()
    one, other = CIFAR_NETS[name](), CIFAR_NETS[name]()
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(one.state_dict(), other.state_dict())
    assert all(bool(torch.isfinite(p).all()) for p in one.parameters())
    assert (type(one[0]), type(one[-1])) == (nn.Conv2d, nn.Linear)  # as torch makes them


def test_seeds_differ_and_generators_move_on(generator):
    first = rt.simplified_net(5, generator=generator)
    second = rt.simplified_net(5, generator=generator)
    assert torch.equal(first.conv1.weight, rt.simplified_net(5, generator=0).conv1.weight)
    assert not torch.equal(first.conv1.weight, second.conv1.weight)
    assert not torch.equal(first.conv1.weight, rt.simplified_net(5, generator=1).conv1.weight)


@pytest.mark.parametrize(
    ("depth", "penalty"), [(20, 5.388e-4), (32, 8.888e-4), (44, 1.2388e-3)], ids=str
)
def test_penalties_before_training(depth, penalty):
    plain, residual = (
        sum(float(p.detach().square().sum()) for p in net.parameters())
        for net in (rt.simplified_net(depth), rt.simplified_net(depth, identity="residual"))
    )
    # relative spread of a sum of n squares is sqrt(2/n) = 0.3 % at the smallest; four of them
    assert 1e-4 / 2 / 128 * plain == pytest.approx(penalty, rel=0.012)
    assert depth > 20 or 240 < plain / residual < 290  # Table 4: 268


DRAWN = {  # builder, arguments, laws of weights without an identity and with one, std of N(0, std²)
    "plain": (rt.simplified_net, {"depth": 5}, "kaiming", None, 1.0),
    "small": (rt.simplified_net, {"depth": 5, "init": "hardt_ma"}, "hardt_ma", None, 1.0),
    "residual": (rt.simplified_net, {"depth": 5, "identity": "residual"},
                 "hardt_ma", "hardt_ma", 1.0),
    "half": (rt.simplified_net, {"depth": 5, "identity": "dominant_half", "init": "kaiming"},
             "kaiming", "kaiming", 1.0),
    "full": (rt.full_net, {"depth": 8, "doubling": "proj"}, "kaiming", None, 1.0),
    "dirac": (rt.diracnet, {"depth": 10}, "kaiming", "kaiming", 1.0),
    "Dirac's paper": (rt.diracnet, {"depth": 10, "init": "normal", "bn_init": "uniform"},
                      "kaiming", "normal", 1.0),
    "plain Dirac": (rt.diracnet, {"depth": 10, "identity": "plain", "init": "normal"},
                    "kaiming", "normal", 1.0),
    "ImageNet": (rt.diracnet_imagenet, {"depth": 18, "init": "normal", "bn_init": "uniform"},
                 "kaiming", "normal", 1.0),
    "pre-activation": (rt.preresnet, {"depth": 10, "std": 0.3}, "kaiming", None, 1.0),
    "W = V + I": (rt.preresnet, {"depth": 10, "identity": "residual", "std": 0.3}, "kaiming",
                  "normal", 0.3),
    "Dirac blocks": (rt.preresnet, {"depth": 10, "identity": "dirac", "std": 0.3}, "kaiming",
                     "kaiming", 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_first_weights_are_drawn_from_one_stream_layer_by_layer(name):
    make, arguments, outside, inside, std = DRAWN[name]
    torch.set_default_dtype(torch.float32)  # numbers are drawn in float64 all the same
    net = make(**arguments, generator=3)
    how = {"generator": torch.Generator().manual_seed(3), "dtype": torch.float64}
    found = dict(net.named_parameters())
    first = {"bias": 0.0, "b": 0.1}  # ones in BatchNorm, and a
    expected = {key: torch.full_like(p, first.get(key.rpartition(".")[2], 1.0))
                for key, p in found.items()}  # fmt: skip
    for layer, part in net.named_modules():
        key = f"{layer}.weight"
        if isinstance(part, nn.Conv2d):
            law, taps = outside, math.prod(part.kernel_size)
            if hasattr(part, "parametrizations"):
                law, key = inside, f"{layer}.parametrizations.weight.original"
            scale = {"kaiming": math.sqrt(2 / part.in_channels / taps), "normal": std,
                     "hardt_ma": 1 / taps / part.out_channels}[law]  # fmt: skip
            expected[key] = scale * torch.randn(found[key].shape, **how)
        elif isinstance(part, nn.Linear):
            for key in (f"{layer}.weight", f"{layer}.bias"):
                drawn = torch.rand(found[key].shape, **how)
                expected[key] = (2 * drawn - 1) / part.in_features**0.5
        elif isinstance(part, nn.BatchNorm2d) and arguments.get("bn_init") == "uniform":
            expected[key] = torch.rand(found[key].shape, **how)
    rules = {id_rule(part) for part in net.modules() if isinstance(part, nn.Conv2d)}
    own = {rt.simplified_net: {"repeat"}, rt.full_net: set()}.get(make, {"truncate"})
    assert rules == {None} | own  # the stem has no identity
    expected = {key: value.float() for key, value in expected.items()}
    torch.testing.assert_close(found, expected, rtol=2**-22, atol=2**-23)


@pytest.mark.parametrize("std", [0.0, 1e-8, 1.0], ids=str)
def test_resnet_28_with_identity_weights(std):
    net = rt.preresnet(28, identity="residual", std=std)
    convs = [m for b in net if isinstance(b, Block) for m in b.branch if isinstance(m, nn.Conv2d)]
    assert len(convs) == 24
    v = torch.cat([identity_removed(conv).flatten() for conv in convs]).detach()
    assert abs(float(v.std()) - std) <= 4 * std / math.sqrt(2 * len(v))
    assert abs(float(convs[0].weight[3, 3, 1, 1].detach()) - 1) <= 5 * std


# --- outputs


@pytest.mark.parametrize("identity", ["residual", "explicit"])
@pytest.mark.parametrize("depth", [8, 20])
def test_simplified_residual_nets_block_by_block(generator, depth, identity):
    net = rt.simplified_net(depth, identity=identity, init="kaiming")
    pairs = []
    for number in range(1, depth - 1):
        layer = net.get_submodule(f"conv{number}")
        plain = layer.layer if identity == "explicit" else layer
        nn.init.normal_(plain.bias, std=0.1, generator=generator)
        pairs.append((identity_removed(plain), plain.bias))
    x = images(generator)
    expected = oracles.simplified_residual_net(
        x, (net.conv0.weight, net.conv0.bias), pairs, (net.fc.weight, net.fc.bias)
    )
    assert relative_error(net(x), expected) < NET


def norm_tensors(norm):
    return norm.weight, norm.bias, norm.running_mean, norm.running_var


def dirac_groups(net, sizes):
    groups, number = [], 0
    for size in sizes:
        group = []
        for _ in range(size):
            number += 1
            conv, norm = net.get_submodule(f"conv{number}"), net.get_submodule(f"bn{number}")
            if hasattr(conv, "parametrizations"):
                inside = conv.parametrizations.weight
                parts = (inside.original, inside[0].a, inside[0].b)
            else:
                parts = (conv.weight, None, None)
            group.append((*parts, norm_tensors(norm)))
        groups.append(group)
    return groups


@pytest.mark.parametrize(
    ("depth", "settings"),
    [
        pytest.param(16, {}, id="eq5"),
        pytest.param(10, {"normalize": False, "init": "kaiming"}, id="eq4"),
        pytest.param(16, {"identity": "plain"}, id="plain"),
        pytest.param(10, {"width": 2}, id="wide"),
    ],
)
def test_diracnets_filter_by_filter(generator, depth, settings):
    """Those for ImageNet in test_exchange, under the authors' names."""
    net = scatter_statistics(rt.diracnet(depth, **settings), generator)
    for p in (p for name, p in net.named_parameters() if name.endswith((".a", ".b"))):
        nn.init.uniform_(p, 0.2, 1.2, generator=generator)
    x = images(generator, size=16, batch=1)
    groups = [(depth - 4) // 3] * 3
    expected = oracles.diracnet(
        x, (net.conv0.weight, norm_tensors(net.bn0)), dirac_groups(net, groups),
        (net.fc.weight, net.fc.bias),
    )  # fmt: skip
    assert relative_error(net(x), expected) < NET


def conv(inputs, outputs, side=3, stride=1):
    return nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)


def units(inputs, outputs, stride=1):
    """conv1, bn1, relu1, conv2, bn2 under a shortcut."""
    norms = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
    layers = conv(inputs, outputs, 3, stride), norms[0], nn.ReLU(), conv(outputs, outputs), norms[1]
    return zip(("conv1", "bn1", "relu1", "conv2", "bn2"), layers, strict=True)


def ended(features, classes):
    return {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(),
            "fc": nn.Linear(features, classes)}  # fmt: skip


def residual_net(stem, widths, shortcut, classes):
    """Blocks with two convolutions; the shortcut of one that changes channels by its names."""
    parts, inputs = dict(stem), widths[0]
    for number, outputs in enumerate(widths, 1):
        block, stride = f"block{number}", outputs // inputs
        layers = units(inputs, outputs, stride)
        if shortcut is None:
            parts |= {f"{block}.{name}": layer for name, layer in layers}
            parts[f"{block}.relu2"] = nn.ReLU()
        else:
            parts[f"{block}.before"] = nn.Identity()
            parts |= {f"{block}.branch.{name}": layer for name, layer in layers}
            own = {"": nn.Identity()} if stride == 1 else shortcut(inputs, outputs)
            parts |= {f"{block}.shortcut{name}": layer for name, layer in own.items()}
            parts[f"{block}.after"] = nn.ReLU()
        inputs = outputs
    return parts | ended(inputs, classes)


def projection(inputs, outputs):
    return {".conv": conv(inputs, outputs, 1, 2), ".bn": nn.BatchNorm2d(outputs)}


SMALL = {"conv0": conv(3, 16), "bn0": nn.BatchNorm2d(16), "relu0": nn.ReLU()}
LARGE = {"conv0": conv(3, 64, 7, 2), "bn0": nn.BatchNorm2d(64), "relu0": nn.ReLU(),
         "pool0": nn.MaxPool2d(3, 2, 1)}  # fmt: skip
WIDE = [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3
OWN = {
    "pad": lambda inputs, outputs: {"": IdentityShortcut(outputs, 2, "truncate")},
    "dup": lambda inputs, outputs: {"": IdentityShortcut(outputs, 2, "repeat")},
    "proj": projection,
}


def pre_activation(width, count):
    """preresnet(10): two layers in each group, ``count`` of them in a block."""
    parts, inputs, widths = {"conv0": conv(3, 16)}, 16, [16 * width * k for k in (1, 2, 4)]
    for number, outputs in enumerate([w for w in widths for _ in range(2 // count)], 1):
        block, changes = f"block{number}", inputs != outputs
        stride = 2 if changes and number > 2 // count else 1
        first = {"bn1": nn.BatchNorm2d(inputs), "relu1": nn.ReLU()}
        branch = {"conv1": conv(inputs, outputs, 3, stride)}
        if count == 2:
            branch |= {"bn2": nn.BatchNorm2d(outputs), "relu2": nn.ReLU()}
            branch["conv2"] = conv(outputs, outputs)
        before = {"": nn.Identity()}
        if changes:
            before = {f".{name}": part for name, part in first.items()}
        branch = branch if changes else first | branch
        shortcut = conv(inputs, outputs, 1, stride) if changes else nn.Identity()
        parts |= {f"{block}.before{name}": part for name, part in before.items()}
        parts |= {f"{block}.branch.{name}": part for name, part in branch.items()}
        parts |= {f"{block}.shortcut": shortcut, f"{block}.after": nn.Identity()}
        inputs = outputs
    return parts | {"bn": nn.BatchNorm2d(inputs), "relu": nn.ReLU()} | ended(inputs, 7)


LAYERS = {
    "plain": (lambda: rt.full_net(14, shortcut=False),
              lambda: residual_net(SMALL, [16, 16, 32, 32, 64, 64], None, 10)),
    **{name: (lambda name=name: rt.full_net(8, doubling=name, classes=3),
              lambda name=name: residual_net(SMALL, [16, 32, 64], OWN[name], 3)) for name in OWN},
    "ImageNet 18": (lambda: resnet_imagenet(18), lambda: residual_net(
        LARGE, [64] * 2 + [128] * 2 + [256] * 2 + [512] * 2, projection, 1000)),
    "ImageNet 34": (lambda: resnet_imagenet(34, classes=9),
                    lambda: residual_net(LARGE, WIDE, projection, 9)),
    **{f"pre-activation, {width} wide, {count} a block": (
        lambda width=width, count=count: rt.preresnet(10, width=width, shortcut_depth=count,
                                                      classes=7),
        lambda width=width, count=count: pre_activation(width, count))
       for width in (1, 2) for count in (1, 2)},
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_of_a_net(name):
    make, expected = LAYERS[name]
    with torch.device("meta"):
        net, layers = make(), expected()
    found = {key: str(part) for key, part in net.named_modules() if not [*part.children()]}
    assert [*found.items()] == [(key, str(part)) for key, part in layers.items()]


@pytest.mark.parametrize("doubling", ["pad", "dup", "proj"])
def test_a_full_block(generator, doubling):
    net = scatter_statistics(rt.full_net(8, doubling=doubling), generator)
    block = net.block2
    x = torch.relu(torch.randn(2, 16, 8, 8, generator=generator))
    inner = oracles.batch_norm(
        torch.conv2d(x, block.branch.conv1.weight, stride=2, padding=1),
        *norm_tensors(block.branch.bn1),
    )
    inner = torch.conv2d(torch.relu(inner), block.branch.conv2.weight, padding=1)
    inner = oracles.batch_norm(inner, *norm_tensors(block.branch.bn2))
    if doubling == "proj":
        shortcut = torch.conv2d(x, block.shortcut.conv.weight, stride=2)
        shortcut = oracles.batch_norm(shortcut, *norm_tensors(block.shortcut.bn))
    else:
        small = x[:, :, ::2, ::2]
        shortcut = torch.cat([small, small if doubling == "dup" else 0 * small], dim=1)
    assert relative_error(block(x), torch.relu(inner + shortcut)) < NET


@pytest.mark.parametrize("number", [1, 2], ids=["identity", "projection"])
def test_a_pre_activation_block(generator, number):
    net = scatter_statistics(rt.preresnet(10), generator)
    block = net.get_submodule(f"block{number}")
    x = torch.randn(2, 16, 8, 8, generator=generator)
    first = block.branch.bn1 if number == 1 else block.before.bn1
    active = torch.relu(oracles.batch_norm(x, *norm_tensors(first)))
    inner = torch.conv2d(active, block.branch.conv1.weight, stride=number, padding=1)
    inner = torch.relu(oracles.batch_norm(inner, *norm_tensors(block.branch.bn2)))
    inner = torch.conv2d(inner, block.branch.conv2.weight, padding=1)
    shortcut = x if number == 1 else torch.conv2d(active, block.shortcut.weight, stride=2)
    assert relative_error(block(x), inner + shortcut) < NET


def reached(part, x, channel):
    """The input channels that a channel of the output sees."""
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(part(x)[:, channel].sum(), x)
    return (grad.abs().sum((0, 2, 3)) > 0).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("identity", "part", "own", "mixed"),
    [
        ("dominant", slice(2, 14), (0, 17, 63), ()),  # conv1 to relu6
        # 17 is new in the second group, 33 and 63 in the third
        ("dominant_half", slice(2, 14), (0, 15), (17, 33, 63)),
        ("dominant_half", slice(2, 6), (5,), ()),  # no kernel of the first group doubles
        ("dominant_upper", slice(2, 14), (), (0, 17, 63)),
        ("dominant_upper", slice(8, 14), (0, 17, 63), ()),  # conv4 to relu6
    ],
)
def test_off_dominant_paths_nothing_flows(generator, identity, part, own, mixed):
    net = rt.simplified_net(8, identity=identity)[part]
    width = net[0].in_channels
    x = torch.rand(1, width, 8, 8, generator=generator)
    assert all(reached(net, x, channel) == [channel % width] for channel in own)
    assert all(reached(net, x, channel) == list(range(width)) for channel in mixed)


@pytest.mark.parametrize("depth", [5, 8, 20])
def test_the_lower_half_is_that_of_the_residual_net(depth):
    own, residual = (
        dict(rt.simplified_net(depth, identity=identity).named_parameters())
        for identity in ("dominant_upper", "residual")
    )
    last = 3 * ((depth - 2) // 3) // 2  # rounded down: one of three convolutions, three of six
    lower = [f"conv{layer}." for layer in range(last + 1)]
    for name, value in own.items():
        if any(name.startswith(start) for start in lower):
            assert torch.equal(value, residual[name]), name
        elif name.endswith("original"):
            assert value.shape[1] == 1, name
    assert own.keys() == residual.keys()


@pytest.mark.parametrize("identity", ["dominant", "dominant_half", "dominant_upper"])
@pytest.mark.parametrize("depth", [5, 8])
def test_dominant_nets_are_residual_nets_with_zeros(generator, depth, identity):
    net = rt.simplified_net(depth, identity=identity)
    blocks, n = [], (depth - 2) // 3
    for layer in range(1, 3 * n + 1):
        conv = net.get_submodule(f"conv{layer}")
        kernel = identity_removed(conv).detach()
        outputs, inputs = kernel.shape[:2]
        full = {
            "dominant": (),
            "dominant_half": range(inputs, outputs),
            "dominant_upper": range(outputs) if layer <= 3 * n // 2 else (),
        }[identity]
        for o in range(outputs):
            for i in range(inputs):
                free = o in full or o % inputs == i
                assert bool((kernel[o, i] != 0).all()) if free else not kernel[o, i].any()
        nn.init.uniform_(conv.bias, -0.1, 0.1, generator=generator)
        blocks.append((kernel, conv.bias))
    x = images(generator, size=16)
    ends = [(layer.weight, layer.bias) for layer in (net.conv0, net.fc)]
    expected = oracles.simplified_residual_net(x, ends[0], blocks, ends[1])
    assert relative_error(net(x), expected) < NET


# --- bad input


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: rt.simplified_net(21), "3n \\+ 2 with n >= 1; the nearest are 20 and 23"),
        (lambda: rt.simplified_net(2), "the nearest are 5 and 8"),
        (lambda: rt.simplified_net(20.0), "needs a whole number"),
        (lambda: rt.full_net(18), "the nearest are 14 and 20"),
        (lambda: rt.diracnet(30), "the nearest are 28 and 34"),
        (lambda: rt.preresnet(50), "the nearest are 46 and 52"),
        (lambda: rt.diracnet_imagenet(50), "depth: got 50, needs 18 or 34"),
        (lambda: rt.preresnet(28, shortcut_depth=3), "needs one of 1, 2, 4, 8"),
        (lambda: rt.preresnet(28, shortcut_depth=0), "shortcut_depth: got 0"),
        (lambda: rt.preresnet(10, identity="residual", std=-1.0), "std: got -1"),
        (lambda: rt.simplified_net(20, identity="residal"), "did you mean 'residual'"),
        (lambda: rt.simplified_net(20, identity="dominant_hlaf"), "did you mean 'dominant_half'"),
        (lambda: rt.simplified_net(20, init="normal"), "init: unknown name 'normal'"),
        (lambda: rt.full_net(20, doubling="padd"), "did you mean 'pad'"),
        (lambda: rt.diracnet(28, identity="driac"), "did you mean 'dirac'"),
        (lambda: rt.diracnet(28, init="norml"), "did you mean 'normal'"),
        (lambda: rt.diracnet(28, bn_init="one"), "did you mean 'ones'"),
        (lambda: rt.diracnet(28, width=0), "width: got 0"),
        (lambda: rt.preresnet(10, identity="plane"), "did you mean 'plain'"),
        (lambda: rt.simplified_net(20, classes=0), "classes: got 0"),
        (lambda: rt.simplified_net(20, generator=None), "generator: got None"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_layers_show_their_settings():
    assert repr(IdentityShortcut(32, 2, "repeat")).endswith("(32, stride=2, rule='repeat')")


BUILDERS = {
    "simplified_net": {"depth": 8, "identity": "residual", "generator": 3},
    "full_net": {"depth": 8, "shortcut": False, "generator": 3},
    "diracnet": {"depth": 10, "normalize": False, "generator": 3},
    "diracnet_imagenet": {"depth": 18, "classes": 4, "generator": 3},
    "resnet_imagenet": {"depth": 18, "classes": 4, "generator": 3},
    "preresnet": {"depth": 10, "shortcut_depth": 1, "generator": 3},
    "ShortcutNet": {"width": 3, "blocks": 2, "shortcut_depth": 2, "mid": "tanh", "hidden": 4},
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_net_carries_the_call_that_builds_it(name):
    with torch.device("meta" if "imagenet" in name else "cpu"):  # eleven million weights
        net = getattr(rt, name)(**BUILDERS[name])
        again = rt.training.build_net(net.architecture)
    assert net.architecture["builder"] == name and str(again) == str(net)
    if "imagenet" in name:
        assert net.architecture["arguments"].items() >= BUILDERS[name].items()
    else:
        assert_same(again.state_dict(), net.state_dict())


def test_a_generator_is_no_part_of_the_record(generator):
    net = rt.full_net(8, generator=generator)
    assert set(net.architecture["arguments"]) == {"depth", "shortcut", "doubling", "classes"}


def test_a_net_that_was_changed_is_saved_without_its_record(tmp_path):
    net = rt.simplified_net(8)
    net[1] = torch.nn.Tanh()
    rt.save_checkpoint(tmp_path / "a.json", net)
    with pytest.raises(ValueError, match="no architecture record"):
        rt.load_checkpoint(tmp_path / "a")


@pytest.mark.parametrize("identity", ["dominant_half", "dominant_upper"])
def test_partly_dense_nets_come_back_from_disk(tmp_path, identity):
    net = rt.simplified_net(5, identity=identity, generator=3)
    with torch.no_grad():
        net.conv2.parametrizations.weight.original += 0.1
    rt.save_checkpoint(tmp_path / "a.json", net)
    again = rt.load_checkpoint(tmp_path / "a")
    assert str(again) == str(net) != str(rt.simplified_net(5, identity="dominant"))
    assert_same(again.state_dict(), net.state_dict())


SAVED = Path(__file__).parent / "saved_nets"


def test_a_net_that_older_code_saved_loads_and_computes_the_same():
    net = rt.load_checkpoint(SAVED / "net")
    assert net.architecture["arguments"]["init"] == "kaiming"
    expected = torch.tensor(json.loads((SAVED / "outputs.json").read_text()), dtype=torch.float32)
    x = torch.linspace(-1, 1, 384, dtype=torch.float32).view(2, 3, 8, 8)
    torch.testing.assert_close(net(x).detach(), expected, rtol=1e-4, atol=1e-5)  # float32


def test_older_records_build_the_same_net():
    record = {"builder": "diracnet", "arguments": {"depth": 10, "draw": "normal", "generator": 3}}
    expected = rt.diracnet(10, init="normal", generator=3)
    assert_same(rt.training.build_net(record).state_dict(), expected.state_dict())
