"""Dominant flows of real nets: against single gradients and the definition."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tolerances import round_off
from torch import nn
from torch.testing import assert_close

import resid_theory as rt
from resid_theory.data import Data
from resid_theory.losses import LOSSES
from resid_theory.stability import (
    MODES,
    STATISTICS,
    feature_gradients,
    flows as room,
    subactivation_paths,
)
from resid_theory.stability.flow_statistics import Sums

FLOW = 1e-14
"""What a flow promises, relative to the largest: products of a few dozen rounded sums."""


def build(name, generator):
    """A small net with weights far enough from their draw that everything flows."""
    net = {
        "plain": lambda: rt.simplified_net(8),
        "residual": lambda: rt.simplified_net(8, identity="residual"),
        "explicit": lambda: rt.simplified_net(8, identity="explicit"),
        "dominant": lambda: rt.simplified_net(8, identity="dominant"),
        "dominant_half": lambda: rt.simplified_net(8, identity="dominant_half"),
        "dominant_upper": lambda: rt.simplified_net(8, identity="dominant_upper"),
        "dirac": lambda: rt.diracnet(10),
        "plain dirac": lambda: rt.diracnet(10, identity="plain"),
        "full": lambda: rt.full_net(8),
        "full, repeated": lambda: rt.full_net(8, doubling="dup"),
        "full, projected": lambda: rt.full_net(14, doubling="proj"),
        "full, plain": lambda: rt.full_net(8, shortcut=False),
        "pre-activation": lambda: rt.preresnet(16),
        "pre-activation, one": lambda: rt.preresnet(10, shortcut_depth=1, identity="residual"),
    }[name]()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return net


RULES = {"full, plain": "truncate"}
NAMES = (
    "plain", "residual", "explicit", "dominant", "dirac", "plain dirac", "full", "full, repeated",
    "full, projected", "full, plain", "pre-activation", "pre-activation, one",
)  # fmt: skip
every_net = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def data(generator, device):
    x = torch.randn(2, 3, 8, 8, generator=generator)
    return x.to(device), torch.tensor([3, 7], device=device)


def shares_by_the_definition(flows, channels, mode):
    """f_l of each statistic from all flows of a sample, (K, C, M): loops and the paper's words."""
    features, width = flows.shape[:2]
    path = channels.tolist()
    if mode == "sub":
        pairs = [(j, [k for k in range(features) if path[k] == j]) for j in range(width)]
    else:
        last = width if mode == "first" else features
        pairs = [(path[k], [k]) for k in range(last) if path[k] >= 0]
    dominant = dict.fromkeys(STATISTICS, 0)
    for j, own in pairs:
        mine = sum((flows[k, j] for k in own), torch.zeros(flows.shape[2]))
        others = sum(
            (flows[k, j] for k in range(features) if k not in own), torch.zeros(flows.shape[2])
        )
        a, b = mine.abs().tolist(), others.abs().tolist()
        ratios = [
            0.0 if p == 0 else math.inf if q == 0 else p / q for p, q in zip(a, b, strict=True)
        ]
        dominant["mean"] += sum(ratios) / len(ratios) > 1
        dominant["ratio_of_means"] += sum(a) > sum(b)
        dominant["median"] += sum(r > 1 for r in ratios) > len(ratios) / 2
    return [dominant[statistic] / len(pairs) for statistic in STATISTICS]


# Shares ------------------------------------------------------------------------------------------


@every_net
def test_shares_are_those_of_single_gradients(name, generator, device, data):
    net = build(name, generator).to(device).eval()
    rule = RULES.get(name)
    flows = rt.dominant_flows(net, data, rule=rule)
    paths = subactivation_paths(net, rule=rule)
    x, y = data
    layer = len(paths.names) // 2
    end, channels = paths.ends[layer], paths.channels[layer]
    below = net[:end](x[:1]).detach().requires_grad_()
    features = net[: paths.top](x[:1]).detach().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(net[paths.top :](features), y[:1]), features)
    above = net[end : paths.top](below)[0]
    table = torch.stack(
        [
            g[0, k] * torch.autograd.grad(above[k], below, retain_graph=True)[0][0].flatten(1)
            for k in range(len(above))
        ]
    ).cpu()
    for row, mode in enumerate(MODES):
        for column, exact in enumerate(shares_by_the_definition(table, channels, mode)):
            assert abs(float(flows.all_shares[0, layer, row, column]) - exact) < round_off(64)
    mass, total = table.abs().sum(2), float(table.abs().sum())
    own = sum(float(mass[k, channel]) for k, channel in enumerate(channels) if channel >= 0)
    assert abs(float(flows.off_path[0, layer]) - (1 - own / total)) < round_off(table.numel())


@every_net
def test_flows_of_all_features_are_the_gradient(name, generator, device, data):
    net = build(name, generator).to(device).eval()
    x, y = data
    paths = subactivation_paths(net, rule=RULES.get(name))
    ladder = room._ladder(net, Data.of(x, targets=False).whole(), paths)
    g = room._gradients(net[paths.top :], ladder[-1][1], y, LOSSES["cross_entropy"])
    for layer, flow in room._flows(ladder, g, torch.arange(g.shape[1], device=device)):
        below = ladder[layer][0].detach().requires_grad_()
        loss = len(x) * F.cross_entropy(net[paths.ends[layer] :](below), y)
        (exact,) = torch.autograd.grad(loss, below)
        scale = float(exact.abs().max())
        assert_close(flow.sum(0), exact.flatten(2), rtol=0, atol=10 * FLOW * scale)


def test_off_path_flow_of_dominant_path_nets_is_exactly_zero(generator, data):
    net = build("dominant", generator)
    flows = rt.dominant_flows(net, data)
    assert bool((flows.off_path == 0).all())
    # Against nothing at all every flow is dominant.
    assert bool((flows.under(mode="sub", statistic="mean").shares > 0.5).all())


@pytest.mark.parametrize("name", ["plain", "residual", "dirac", "full"])
def test_other_nets_flow_off_their_paths(name, generator, data):
    off = rt.dominant_flows(build(name, generator), data).off_path
    assert bool((off > 0).all()) and bool((off < 1).all())


@pytest.mark.parametrize(("name", "top"), [("dominant_half", 5), ("dominant_upper", 3)])
def test_flow_leaves_the_paths_below_the_last_dense_layer(name, top, generator, data):
    off = rt.dominant_flows(build(name, generator), data).off_path
    assert bool((off[:, :top] > 0).all()) and bool((off[:, top:] == 0).all())


def test_one_dense_kernel_lets_flow_off_the_paths_below_it(generator, data):
    net = build("dominant", generator)
    torch.nn.utils.parametrize.remove_parametrizations(net.conv4, "weight")
    with torch.no_grad():
        net.conv4.weight += 0.01 * torch.randn(net.conv4.weight.shape, generator=generator)
    off = rt.dominant_flows(net, data).off_path
    assert bool((off[:, :4] > 0).all()) and bool((off[:, 4:] == 0).all())


def test_a_gpu_finds_the_same(generator, data, cuda):
    net = build("dirac", generator)  # whose paths end
    expected, there = rt.dominant_flows(net, data), copy.deepcopy(net).to(cuda)
    found = rt.dominant_flows(there, tuple(part.to(cuda) for part in data))
    for name in ("all_shares", "off_path", "gradients"):
        assert_close(getattr(found, name).cpu(), getattr(expected, name).cpu())


def test_a_module_that_works_in_place_behind_a_layer_changes_nothing(data):
    def net(inplace):
        parts = dict(rt.simplified_net(5).named_children())
        block = rt.networks.Block(rt.identity.with_identity(nn.Conv2d(16, 16, 1), "plain"))
        parts |= {"conv1": block, "relu1": nn.ReLU(inplace=inplace)}
        return nn.Sequential(*parts.values())

    one, other = net(True), net(False)
    other.load_state_dict(one.state_dict())
    found, expected = (rt.dominant_flows(each, data) for each in (one, other))
    for name in ("all_shares", "off_path", "gradients"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


# Counting ----------------------------------------------------------------------------------------


def counted(flow, channels):
    """Shares by mode and statistic of hand-made flows (K, 1, C, M)."""
    sums = Sums.zero(flow[0], torch.tensor(channels))
    sums.add(flow, torch.arange(len(flow)))
    return sums.shares()[0]


def test_zeros_count_as_the_paper_says():
    # Two features, two channels, one position: 1/0, then 0/0.
    flow = torch.tensor([[[[1.0], [0.0]]], [[[0.0], [0.0]]]])
    assert counted(flow, [0, 1])[0].tolist() == [0.5, 0.5, 0.5]


def test_where_nothing_flows_the_ratio_is_zero_and_half_the_positions_are_no_median():
    """Ratios 0/0 and 3/1, whose mean is 1.5; one of the two is above one."""
    own, others = torch.tensor([0.0, 3.0]), torch.tensor([0.0, 1.0])
    flow = torch.stack([own, others])[:, None, None]
    assert counted(flow, [0, -1])[0].tolist() == [1.0, 1.0, 0.0]


def test_equal_flows_are_not_dominant():
    assert not counted(torch.ones(2, 1, 1, 3), [0, -1]).any()


def test_statistics_differ_where_one_position_stands_out():
    # Ratios 10, 0.1, 0.1: their mean is 3.4, the ratio of means 0.57, the median 0.1.
    own, others = torch.tensor([1.0, 0.1, 0.1]), torch.tensor([0.1, 1.0, 1.0])
    flow = torch.stack([torch.stack([own, own]), torch.stack([others, 0 * own])]).unsqueeze(1)
    assert counted(flow, [0, -1])[0].tolist() == [1.0, 0.0, 0.0]


def test_paths_that_share_a_channel_compete_by_path_and_add_up_by_channel():
    # One channel, features 2, 2 and 3: no path outweighs the others, both own together do.
    flow = torch.tensor([2.0, 2.0, 3.0]).view(3, 1, 1, 1)
    shares = counted(flow, [0, 0, -1])
    assert shares[:, 0].tolist() == [0.0, 0.0, 1.0]


def test_ratio_of_normal_numbers_grows_with_the_map(generator):
    """The warning of the docstring: equal distributions at every position, other shares."""
    shares = []
    for positions in (1, 256):
        own = 0.5 * torch.randn(1, 2000, 1, positions, generator=generator)
        others = torch.randn(1, 2000, 1, positions, generator=generator)
        sums = Sums.zero(own[0], torch.tensor([0, -1]))  # 2,000 samples of one channel
        sums.add(torch.cat([own, others]), torch.arange(2))
        shares.append(float(sums.shares()[:, 0, 0].mean()))
    exact = rt.theory.exceedance(0.5).item()
    assert abs(shares[0] - exact) < 4 * math.sqrt(exact * (1 - exact) / 2000)
    assert shares[1] > 0.95


@pytest.mark.parametrize("batch", [1, 2, None])
def test_batches_do_not_matter(generator, data, batch):
    net = build("residual", generator)
    whole = rt.dominant_flows(net, data, batch=2)
    loader = [(data[0][:1], data[1][:1]), (data[0][1:], data[1][1:])]
    parts = rt.dominant_flows(net, loader, batch=batch)
    assert torch.equal(whole.all_shares, parts.all_shares)
    assert_close(whole.gradients, parts.gradients)


def test_a_bar_counts_samples(generator, data, capsys):
    net = build("residual", generator)
    rt.dominant_flows(net, data)
    assert capsys.readouterr() == ("", "")
    rt.dominant_flows(net, data, progress=True)
    assert "flows: 2sample" in capsys.readouterr().err


def test_features_in_groups_give_the_same(generator, data, monkeypatch):
    net = build("full, repeated", generator)
    whole = rt.dominant_flows(net, data, batch=2)
    monkeypatch.setattr(room, "_WORKSPACE", 1 << 16)
    parts = rt.dominant_flows(net, data, batch=2)
    assert torch.equal(whole.all_shares, parts.all_shares)
    assert_close(whole.off_path, parts.off_path, rtol=round_off(64), atol=0)


def test_a_quarter_of_a_gigabyte_holds_the_flows_of_a_layer_and_five_more():
    """Of layers with 60 and 36 numbers for each of two samples: the larger one counts."""
    ladder = [(torch.zeros(2, *shape), torch.zeros(2, 1)) for shape in ((3, 4, 5), (4, 9))]
    assert room._at_once(ladder) == 2**28 // (6 * 60 * 8) == room._at_once(ladder[::-1])
    assert room._at_once([(a.float(), b) for a, b in ladder]) == 2**28 // (6 * 60 * 4)


@pytest.mark.parametrize(
    ("flows", "expected"),
    [(0, [(1, 1)] * 128), (40, [(1, 40), (1, 24)] * 2), (63, [(1, 63), (1, 1)] * 2),
     (128, [(2, 64)])],
)  # fmt: skip
def test_as_many_samples_and_features_as_memory_allows(flows, expected, data, monkeypatch):
    """Of two samples and 64 features; the largest layer has 16 x 8 x 8 numbers of 8 bytes."""
    seen, flows_of = [], room._flows

    def kept(ladder, gradients, chosen):
        seen.append((len(gradients), len(chosen)))
        return flows_of(ladder, gradients, chosen)

    monkeypatch.setattr(room, "_flows", kept)
    monkeypatch.setattr(room, "_WORKSPACE", 6 * 1024 * 8 * flows)
    rt.dominant_flows(rt.simplified_net(5), data)
    assert seen == expected


def test_scale_of_the_loss_does_not_matter(generator, data):
    net = build("residual", generator)
    tenfold = rt.dominant_flows(net, data, loss=lambda out, y: 10 * F.cross_entropy(out, y))
    assert torch.equal(tenfold.all_shares, rt.dominant_flows(net, data).all_shares)


def test_explicit_identities_give_the_flows_of_residual_weights(data):
    nets = [rt.simplified_net(8, identity=kind) for kind in ("residual", "explicit")]
    one, other = (rt.dominant_flows(net, data) for net in nets)
    assert_close(one.off_path, other.off_path)
    assert_close(one.all_shares, other.all_shares)


# The result --------------------------------------------------------------------------------------


def test_error_bars_are_over_samples(generator, data):
    flows = rt.dominant_flows(build("plain", generator), data, mode="sub", statistic="median")
    assert torch.equal(flows.shares, flows.all_shares[:, :, 2, 2])
    other = flows.under(mode="first", statistic="ratio_of_means")
    assert torch.equal(other.shares, flows.all_shares[:, :, 1, 1])
    assert_close(flows.mean, flows.shares.mean(0))
    half = (flows.shares[0] - flows.shares[1]).abs() / 2  # of two samples
    assert_close(flows.standard_error, half)


def test_feature_gradients_are_those_of_each_samples_own_loss(generator, data, device):
    net = build("residual", generator).eval().to(device)
    x, y = data
    features = net[:-1](x)
    chance = net[-1](features).softmax(1) - F.one_hot(y, 10)
    exact = (chance @ net[-1].weight).detach()
    assert_close(feature_gradients(net, data), exact)
    assert_close(feature_gradients(net, data, batch=1), exact)
    assert_close(rt.dominant_flows(net, data).gradients, exact)
    y[1], exact[1] = -100, 0.0  # a label that the loss ignores
    assert_close(feature_gradients(net, (x, y)), exact)
    assert not rt.dominant_flows(net, (x, y)).off_path[1].any()  # 0 where nothing flows


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("name", ["sum", "weights"])
def test_gradients_do_not_depend_on_the_weights_of_a_loss(name, batch, generator):
    net = build("plain", generator).eval()
    x, y = torch.randn(3, 3, 8, 8, generator=generator), torch.tensor([3, 0, 7])
    exact = ((net(x).softmax(1) - F.one_hot(y, 10)) @ net[-1].weight).detach()
    more = {"reduction": "sum"} if name == "sum" else {"weight": torch.arange(1.0, 11)}
    found = feature_gradients(net, (x, y), loss=nn.CrossEntropyLoss(**more), batch=batch)
    assert_close(found, exact)


def test_targets_of_a_square_loss_are_one_hot(generator):
    net = build("plain", generator).eval()
    x, y = torch.randn(5, 3, 8, 8, generator=generator), torch.tensor([3, 0, 7, 7, 1])
    exact = ((net(x) - F.one_hot(y, 10)) @ net[-1].weight).detach()
    assert_close(rt.dominant_flows(net, (x, y), loss="square").gradients, exact)
    assert_close(feature_gradients(net, (x, y), loss="square"), exact)


@pytest.mark.parametrize("name", ["residual", "full", "dirac"])
def test_nothing_of_the_net_changes(name, generator, data, left_alone):
    net = build(name, generator).train()
    net.get_submodule("conv0").eval()
    next(net.parameters()).grad = torch.ones_like(next(net.parameters()))
    with left_alone(net):
        rt.dominant_flows(net, data)
        feature_gradients(net, data)


def test_flows_without_gradients_around(generator, data):
    net = build("residual", generator)
    with torch.no_grad():
        inside = rt.dominant_flows(net, data)
    assert torch.equal(inside.all_shares, rt.dominant_flows(net, data).all_shares)


# Paths -------------------------------------------------------------------------------------------


def test_paths_of_the_paper():
    """SAP k runs through channel k mod C_l; the last layer, where nothing is mixed, is left out."""
    paths = subactivation_paths(rt.simplified_net(20))
    assert paths.names == tuple(f"relu{layer}" for layer in range(18))
    for layer, channels in enumerate(paths.channels):
        width = (16, 32, 64)[max(0, layer - 1) // 6]
        assert channels.tolist() == [k % width for k in range(64)]


def test_paths_of_diracnets_end_where_their_identity_does():
    paths = subactivation_paths(rt.diracnet(10))
    widths = [16, 16, 16, 32, 32, 64]
    for width, channels in zip(widths, paths.channels, strict=True):
        assert channels.tolist() == [k if k < width else -1 for k in range(64)]


@pytest.mark.parametrize(
    ("doubling", "upper", "first"),
    [("pad", [-1] * 32, [-1] * 16), ("dup", list(range(32)), list(range(16)))],
)
def test_paths_of_blocks_follow_their_shortcut(doubling, upper, first):
    paths = subactivation_paths(rt.full_net(8, doubling=doubling))
    assert paths.names == ("relu0", "block1", "block2")
    assert paths.channels[2].tolist() == [*range(32), *upper]
    assert paths.channels[0].tolist()[:32] == [*range(16), *first]


def test_paths_do_not_depend_on_the_default_device():
    net = rt.diracnet(10)
    expected = subactivation_paths(net)
    with torch.device("meta"):  # whose tensors hold no numbers
        found = subactivation_paths(net)
    assert all(torch.equal(a, b) for a, b in zip(found.channels, expected.channels, strict=True))


def test_a_rule_stands_in_where_the_design_has_no_identity():
    twin = subactivation_paths(rt.full_net(8))
    plain = subactivation_paths(rt.full_net(8, shortcut=False), rule="truncate")
    assert plain.names == twin.names
    assert all(torch.equal(a, b) for a, b in zip(plain.channels, twin.channels, strict=True))


def test_layers_without_a_path_are_listed():
    paths = subactivation_paths(rt.full_net(20, doubling="proj"))
    assert paths.names == ("block7", "block8")
    assert set(paths.unmeasured) == {"relu0", *(f"block{i}" for i in range(1, 7))}
    assert "at block7: its shortcut is a projection" in paths.unmeasured["block3"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(4, 4), "needs an nn.Sequential that ends in"),
        (lambda: rt.simplified_net(5)[:-1], "needs an nn.Sequential that ends in"),
        (lambda: rt.full_net(8, shortcut=False), "rule='repeat' or 'truncate' follows"),
        (lambda: rt.full_net(8, doubling="proj"), "its shortcut is a projection"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *end(1)), "nothing is mixed"),
        (lambda: nn.Sequential(nn.ReLU(), *end(2)), "pools to 2"),
        (lambda: nn.Sequential(nn.ReLU(), *end((2, 1))), r"pools to \(2, 1\)"),
        (lambda: nn.Sequential(nn.ReLU(), *end((1, 2))), r"pools to \(1, 2\)"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *end((1, 1))), "nothing is mixed"),
        (lambda: nn.Sequential(nn.AvgPool2d(2), *end(1)[1:]), "needs an nn.Sequential that ends"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), *end(1)), "path; the paths end above it, at 0:"),
    ],
    ids=["linear", "no classifier", "no identity", "projection", "one layer", "wide pool",
         "high pool", "broad pool", "one layer and a pair", "another pool", "no layer"],
)  # fmt: skip
def test_nets_without_paths_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        subactivation_paths(make())


def end(side):
    return nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(4, 2)


class Reversed(nn.Module):
    def forward(self, weight):
        return weight.flip(0)


def test_an_identity_that_is_mixed_ends_the_paths():
    net = rt.simplified_net(5, identity="residual")
    nn.utils.parametrize.register_parametrization(net.conv2, "weight", Reversed(), unsafe=True)
    paths = subactivation_paths(net)
    assert paths.names == ("relu2",) and set(paths.unmeasured) == {"relu0", "relu1"}
    assert (
        "at conv2: layer: its weight is made by ResidualWeight, then Reversed"
        in (paths.unmeasured["relu0"])
    )


def test_an_identity_of_which_nothing_is_left_ends_the_paths_through_its_channel():
    """But one that no other parametrization follows is there, whatever digits hold beside R."""
    net = rt.diracnet(10)
    with torch.no_grad():
        net.conv2.parametrizations.weight[0].a[3] = 0
        net.conv3.parametrizations.weight[0].a.fill_(1e-300)
    nn.utils.parametrize.register_parametrization(net.conv2, "weight", nn.Identity())
    *upper, _, bottom = reversed(subactivation_paths(net).channels)
    assert all(channels[3] == 3 for channels in upper)
    assert bottom.tolist() == [k if k < 16 and k != 3 else -1 for k in range(64)]


def test_an_unknown_module_ends_the_paths():
    net = rt.simplified_net(5)
    paths = subactivation_paths(nn.Sequential(*net[:3], nn.Softshrink(), *net[3:]))
    assert paths.names == ("4", "6")
    assert paths.unmeasured["1"].endswith(
        "Softshrink is not a layer whose channels can be followed"
    )


def test_an_identity_that_a_forward_adds_is_followed_in_the_weight():
    class Added(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return x + self.conv(x)

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Added(), nn.ReLU(), *end(1))
    with pytest.raises(ValueError, match=r"followed; .*rt\.to_residual\(rt\.absorb\(net\)\)"):
        subactivation_paths(net)
    paths = subactivation_paths(rt.to_residual(rt.absorb(net)))
    assert [channels.tolist() for channels in paths.channels] == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"labels": (3, 70)}, "class labels from 3 to 70"),
        ({"mode": "saps"}, "mode: unknown name 'saps'"),
        ({"statistic": "medium"}, "did you mean 'median'"),
        ({"rule": "repeats"}, "did you mean 'repeat'"),
        ({"batch": 0}, "batch: got 0"),
        ({"loss": "entropy"}, "loss: unknown name"),
        ({"loss": lambda out, y: out.mean(0).square().sum()}, "needs a mean, a weighted mean"),
    ],
    ids=["labels", "mode", "statistic", "rule", "batch", "loss", "coupled"],
)
def test_wrong_arguments_are_refused(keywords, message, data):
    labels = torch.tensor(keywords.get("labels", (3, 7)))
    settings = {name: value for name, value in keywords.items() if name != "labels"}
    with pytest.raises(ValueError, match=message):
        rt.dominant_flows(rt.simplified_net(5), (data[0], labels), **settings)
