"""Records of conversions, several parametrizations of one weight, subclasses, and tied weights."""

import copy

import pytest
import torch
from tolerances import relative_error, round_off
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import resid_theory as rt
from resid_theory.equivalence import NothingConverted
from resid_theory.identity import (
    AddIdentity,
    DiracWeight,
    DominantWeight,
    IdDecay,
    ResidualWeight,
    identity_removed,
    with_identity,
)
from resid_theory.stability.paths import subactivation_paths

WIDTH = 4

TOLERANCE = round_off(200)
"""Norms and quotients of a few dozen terms, in a net of three layers."""

# --- two parametrizations of one weight


class Mask(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


def mask():
    kept = torch.ones(WIDTH, WIDTH)
    kept[0, 0] = kept[1, 3] = kept[2, 1] = 0
    return kept


def ours(layer, kind):
    eye = torch.eye(WIDTH)
    inside = {
        "residual": lambda: ResidualWeight(eye),
        "dominant": lambda: DominantWeight(eye, dense=WIDTH),
        "dirac": lambda: DiracWeight(eye),
        "eq4": lambda: DiracWeight(eye, normalize=False),
    }[kind]()
    parametrize.register_parametrization(layer, "weight", inside)
    for p in inside.parameters():
        nn.init.uniform_(p, 0.5, 1.5)


def pruned(layer):
    inner = layer.parametrizations.weight
    prune.custom_from_mask(inner, "original", mask().view_as(inner.original))


THEIRS = {
    "spectral": parametrizations.spectral_norm,
    "orthogonal": lambda layer: parametrizations.orthogonal(layer, use_trivialization=False),
    "weight": parametrizations.weight_norm,
    "mask": lambda layer: parametrize.register_parametrization(layer, "weight", Mask(mask())),
    "prune": pruned,
}
PAIRS = [
    (kind, other, order)
    for kind in ("residual", "dominant", "dirac", "eq4")
    for other in THEIRS
    for order in ("ours first", "theirs first")
    # torch refuses to prune what is no parameter, and a second V of another shape than the weight
    if order == "ours first" or other != "prune" and kind != "dominant"
]


def paired(kind, other, order):
    """A layer whose weight is made in two steps, and its net."""
    torch.manual_seed(3)
    layer = nn.Linear(WIDTH, WIDTH)
    steps = [lambda: ours(layer, kind), lambda: THEIRS[other](layer)]
    for step in steps if order == "ours first" else reversed(steps):
        step()
    ends = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    return layer, nn.Sequential(ends[0], nn.ReLU(), layer, nn.ReLU(), ends[1]).eval()


def step_of(other, part, weight):
    """One parametrization of torch, in eval mode, written out."""
    if other == "spectral":
        return weight / (part._u @ weight @ part._v)
    if other == "orthogonal":
        return torch.linalg.qr(weight)[0]
    return weight * mask()


def rest_by_hand(layer, kind, other, order):
    """W and W - a I, from the tensors that are trained."""
    parts = layer.parametrizations.weight
    identity = next(part for part in parts if isinstance(part, ResidualWeight))
    theirs = next((part for part in parts if part is not identity), None)

    def inside(v):
        v = v.reshape(WIDTH, WIDTH)
        if kind == "dirac":
            v = identity.b[:, None] * v / v.norm(dim=1, keepdim=True)
        a = identity.a[:, None] if kind in ("dirac", "eq4") else 1
        return v, a * torch.eye(WIDTH)

    if other == "weight":
        g, v = parts.original0, parts.original1
        r, a = inside(g * v / v.norm(dim=1, keepdim=True))
    elif other == "prune":
        r, a = inside(parts.original_orig.reshape(WIDTH, WIDTH) * mask())
    elif order == "theirs first":
        if other == "orthogonal":  # the signs of its columns are torch's business
            r, a = inside(theirs(parts.original))
        else:
            r, a = inside(step_of(other, theirs, parts.original))
    else:
        r, a = inside(parts.original)
        scale = step_of(other, theirs, r + a) / (r + a)
        r, a = r * scale, a * scale
    return (r + a).detach(), r.detach()


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


def test_factors_of_filters_of_zeros_and_of_entries_up_to_minus_one_are_read():
    layer = nn.Linear(2, 3, bias=False)
    inside = torch.tensor([[-1.0, 0.5], [0.5, 2.0], [0.0, 0.0]])  # the last has no identity
    with torch.no_grad():
        layer.weight.copy_(inside)
    with_identity(layer, "residual", rule="truncate")
    parametrize.register_parametrization(layer, "weight", Half())
    assert torch.equal(identity_removed(layer), (inside - torch.eye(3, 2)) / 2)


@pytest.mark.parametrize(("kind", "other", "order"), PAIRS, ids=str)
def test_a_second_parametrization_hides_no_identity(kind, other, order):
    layer, net = paired(kind, other, order)
    x = torch.randn(6, WIDTH)
    if (other, order) == ("weight", "ours first"):  # torch builds it and cannot compute it
        for call in (rt.to_plain, rt.fold, identity_removed):
            with pytest.raises(ValueError, match="WeightNorm, cannot be computed"):
                call(net if call is not identity_removed else layer)
        return
    refuse = [rt.id_mask, lambda net: rt.to_residual(net, ["2"])]
    if kind in ("residual", "dominant"):  # the decay of a Dirac layer needs no correction
        refuse.append(lambda net: IdDecay(torch.optim.SGD(net.parameters()), net))
    for call in refuse:
        with pytest.raises(ValueError, match="layer '2' (is made by|has a D)"):
            call(net)
    for convert in (rt.to_plain, rt.fold):
        new = convert(net)
        assert type(new[2]) is nn.Linear and list(rt.conversion(new).converted) == ["2"]
        assert relative_error(new(x), net(x)) < TOLERANCE
    cushions = rt.layer_cushions(net, x)
    if (other, order) == ("orthogonal", "ours first"):
        with pytest.raises(ValueError, match="mixes entries"):
            identity_removed(layer)
        assert "2" not in cushions.layers
        return
    weight, rest = rest_by_hand(layer, kind, other, order)
    assert relative_error(identity_removed(layer), rest) < TOLERANCE
    assert relative_error(rt.to_plain(net)[2].weight, weight) < TOLERANCE
    if "2" in cushions.layers:
        below = torch.relu(net[0](x)).detach()
        norms = (below @ weight.T).norm(dim=1) / below.norm(dim=1)
        row = list(cushions.layers).index("2")
        for found, expected in ((cushions.effective, weight), (cushions.identity_removed, rest)):
            assert relative_error(found[row], norms / expected.norm()) < TOLERANCE
    else:
        assert any(name.startswith("2") for name in cushions.not_covered)


class Product(nn.Module):
    """A layer of a class that is not torch's."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x):
        return x @ self.weight.mT


def test_an_identity_appears_once():
    layer = with_identity(nn.Linear(WIDTH, WIDTH), "residual")
    net = nn.Sequential(AddIdentity(layer))
    assert relative_error(rt.to_plain(net)[0].weight, layer.weight + torch.eye(WIDTH)) == 0
    for call in (rt.to_residual, lambda net: IdDecay(torch.optim.SGD(net.parameters()), net)):
        with pytest.raises(ValueError, match="'0' has its identity twice"):
            call(net)
    parametrize.register_parametrization(layer, "weight", DiracWeight(torch.eye(WIDTH)))
    for call in (rt.id_mask, identity_removed):
        with pytest.raises(ValueError, match="ResidualWeight and DiracWeight, needs one identity"):
            call(layer)
    for call in (rt.to_plain, rt.fold, lambda net: rt.layer_cushions(net, torch.ones(2, WIDTH))):
        with pytest.raises(ValueError, match="^net: layer '1': got a weight with ResidualWeight"):
            call(nn.Sequential(nn.ReLU(), layer))
    made = Product()
    parametrize.register_parametrization(made, "weight", ResidualWeight(torch.eye(WIDTH)))
    with pytest.raises(ValueError, match="^net: '1': got ParametrizedProduct, needs nn.Linear"):
        rt.layer_cushions(nn.Sequential(nn.ReLU(), made), torch.ones(2, WIDTH))


@pytest.mark.parametrize("pruned_entry", [False, True])
def test_flows_follow_an_identity_that_was_not_marked(pruned_entry):
    net = rt.simplified_net(8, generator=1)
    marked = rt.to_residual(net)
    layer = net.conv3
    del layer.__dict__["id_rule"]
    identity = marked.conv3.parametrizations.weight[0]
    parametrize.register_parametrization(layer, "weight", ResidualWeight(identity.identity))
    kept = torch.ones_like(layer.weight)
    if pruned_entry:
        kept[0, 0, 1, 1] = 0
    parametrize.register_parametrization(layer, "weight", Mask(kept))
    found, expected = subactivation_paths(net), subactivation_paths(marked)
    assert found.names == expected.names
    below = {name: at.tolist() for name, at in zip(found.names, found.channels, strict=True)}
    ended = [at for name in list(below)[:2] for at in below[name] if at < 0]
    assert bool(ended) is pruned_entry
    if not pruned_entry:
        assert all(map(torch.equal, found.channels, expected.channels))


# --- records


class Own(nn.Linear):
    """A subclass with a forward and an attribute of its own."""

    def __init__(self, width, factor):
        super().__init__(width, width)
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return self.factor * super().forward(x)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return self.factor * x


class Adds(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_a_record_names_every_layer():
    residual = with_identity(Own(WIDTH, 3.0), "residual")
    normed = parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
    net = nn.Sequential(Own(WIDTH, 2.0), Adds(residual, nn.Linear(WIDTH, WIDTH)), normed,
                        nn.LayerNorm(WIDTH), Scale())  # fmt: skip
    net[1].attention = nn.MultiheadAttention(WIDTH, 1)  # not called
    x = torch.randn(5, WIDTH)
    plain = rt.to_plain(net)
    assert torch.equal(plain(x), net(x))
    assert type(plain[0]) is Own and plain[0].factor == 2.0
    assert type(plain[1].layers[0]) is Own and plain[1].layers[0].factor == 3.0
    record = rt.conversion(copy.deepcopy(plain))
    assert dict(record.converted) == {"1.layers.0": ("Own with ResidualWeight", "Own")}
    assert dict(record.left) == {
        "0": "carries no identity",
        "1": "a Adds, in whose forward additions are not seen",
        "1.layers.1": "carries no identity",
        "1.attention": "a MultiheadAttention, in whose forward additions are not seen",
        "1.attention.out_proj": "carries no identity",
        "4": "a Scale, in whose forward additions are not seen",
        "2": "carries no identity; its weight is made by _WeightNorm",
    }
    assert repr(record).splitlines()[0] == "to_plain: 1 converted, 7 left"
    folded = rt.fold(net)
    assert list(rt.conversion(folded).converted) == ["1.layers.0", "2"]
    assert relative_error(folded(x), net(x)) < TOLERANCE


@pytest.mark.parametrize("convert", [rt.to_plain, rt.fold, rt.to_residual])
def test_a_copy_comes_with_a_warning(convert):
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2), nn.Linear(2, 3))
    with pytest.warns(NothingConverted, match=f"{convert.__name__}: nothing was conv") as caught:
        new = convert(net)
    assert [warning.filename for warning in caught] == [__file__]
    record = rt.conversion(new)
    assert not record.converted and set(record.left) == {"0", "1", "2"}
    if convert is rt.to_residual:
        assert "2 outputs for 3 inputs" in record.left["1"]
    with pytest.raises(ValueError, match="Sequential without a record"):
        rt.conversion(net)


PLAIN_CONV, NO_NORM = "carries no identity", "has an ordinary weight and no BatchNorm behind it"
RESIDUAL, BESIDE = ("Conv2d", "Conv2d with ResidualWeight"), "is not under a shortcut"
RECORDS = {
    "fold": (
        lambda: rt.fold(rt.diracnet(10).eval()),
        {"conv0": ("Conv2d, BatchNorm2d", "Conv2d"),
         **{f"conv{n}": ("Conv2d with DiracWeight, BatchNorm2d", "Conv2d") for n in range(1, 7)}},
        {"fc": NO_NORM}, ["fold"],
    ),
    "fold plain": (
        lambda: rt.fold(rt.to_plain(rt.diracnet(10).eval())),
        {f"conv{n}": ("Conv2d, BatchNorm2d", "Conv2d") for n in range(7)}, {"fc": NO_NORM},
        ["to_plain", "fold"],
    ),
    "to_plain": (
        lambda: rt.to_plain(rt.full_net(8).eval()),
        {f"block{n}": ("Block", "Sequential") for n in (1, 2, 3)},
        {"conv0": PLAIN_CONV, "fc": PLAIN_CONV}, ["to_plain"],
    ),
    "to_residual": (
        lambda: rt.to_residual(rt.to_residual(rt.simplified_net(5), ["conv1"])),
        {"conv2": RESIDUAL, "conv3": RESIDUAL},
        {"conv1": "is residual already", "conv0": BESIDE, "fc": BESIDE}, None,
    ),
    "to_residual beside": (
        lambda: rt.to_residual(rt.simplified_net(5), explicit=True),
        {f"conv{n}": ("Conv2d", "AddIdentity of Conv2d") for n in (1, 2, 3)},
        {"conv0": BESIDE, "fc": BESIDE}, None,
    ),
    "to_residual own": (
        lambda: rt.to_residual(nn.Sequential(*(nn.Linear(n, n) for n in (3, 3, 3, 3)))),
        {n: ("Linear", "Linear with ResidualWeight") for n in "12"},
        {n: "is the first or last layer" for n in "03"}, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_complete(name):
    make, converted, left, then = RECORDS[name]
    net = make()
    record = rt.conversion(net)
    assert (record.call, record.converted, record.left) == (name.split()[0], converted, left)
    assert getattr(net, "architecture", {}).get("then") == then
    title = f"{record.call}: {len(converted)} converted, {len(left)} left"
    rows, kinds = [*converted.values()], [*dict.fromkeys(converted.values())]
    assert record.title == title and record.table() == {
        "module": [*converted], "was": tuple(was for was, _ in rows),
        "became": tuple(became for _, became in rows),
    }  # fmt: skip
    assert record.shown() == {
        "modules": [rows.count(kind) for kind in kinds], "was": tuple(was for was, _ in kinds),
        "became": tuple(became for _, became in kinds),
    }  # fmt: skip


def test_a_record_of_nothing():
    with pytest.warns(NothingConverted):
        record = rt.conversion(rt.to_plain(nn.Linear(2, 2)))
    assert record.title == "to_plain: 0 converted, 1 left" and record.left == {"": PLAIN_CONV}
    assert record.table() == {"module": [], "was": (), "became": ()}
    assert record.shown() == {"modules": [], "was": (), "became": ()}


def test_other_rules_give_the_same_function():
    layer = with_identity(nn.Conv2d(2, 4, 3, padding=1), "residual", rule="repeat")
    x = torch.randn(2, 2, 5, 5)
    for net in (layer, AddIdentity(rt.to_plain(layer))):
        new = rt.to_residual(nn.Sequential(net), ["0"], rule="truncate")
        assert relative_error(new(x), net(x)) < TOLERANCE


# --- ties


def unique(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("convert", [rt.to_plain, rt.fold])
def test_tied_layers_stay_tied(convert):
    first, second, other = (with_identity(nn.Linear(WIDTH, WIDTH), "residual") for _ in range(3))
    v = first.parametrizations.weight.original
    second.parametrizations.weight.original = v
    second.bias = other.bias = first.bias
    net = nn.Sequential(first, second, nn.Tanh(), other, first)
    new = convert(net)
    assert new[0] is new[4] and new[0] is not new[1]
    assert new[0].weight is new[1].weight and new[0].bias is new[3].bias
    assert unique(new) == unique(net)
    assert [key.replace("parametrizations.weight.original", "weight") for key in
            sorted(net.state_dict())] == sorted(new.state_dict())  # fmt: skip
    back = rt.to_residual(new, ["0", "1", "3"])
    assert unique(back) == unique(net) and sorted(back.state_dict()) == sorted(net.state_dict())
    x = torch.randn(3, WIDTH)
    assert max(relative_error(each(x), net(x)) for each in (new, back)) < TOLERANCE


def test_one_layer_beside_two_identities_is_one_weight():
    one, x = nn.Linear(WIDTH, WIDTH), torch.randn(3, WIDTH)
    net = nn.Sequential(AddIdentity(one), nn.Tanh(), AddIdentity(one))
    new, inner = rt.to_plain(net), (one(x) + x).tanh()
    assert relative_error(new(x), one(inner) + inner) < TOLERANCE
    assert new[0].weight is new[2].weight


def test_ties_that_no_plain_net_can_keep():
    residual, plain = with_identity(nn.Linear(WIDTH, WIDTH), "residual"), nn.Linear(WIDTH, WIDTH)
    plain.weight = residual.parametrizations.weight.original
    net = nn.Sequential(residual, plain)
    with pytest.raises(ValueError, match="layer '0' shares a parameter with a module that is not"):
        rt.to_plain(net)
    words = "Linear, no longer tied to a module that is not converted"
    assert rt.conversion(rt.fold(net)).converted == {"0": ("Linear with ResidualWeight", words)}


@pytest.mark.parametrize("same", [True, False], ids=["one norm", "two norms"])
def test_a_convolution_behind_two_norms(same):
    conv = nn.Conv2d(2, 2, 3, padding=1)
    norms = [nn.BatchNorm2d(2) for _ in range(3)]
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(1, 2)
    net = nn.Sequential(conv, norms[0], nn.ReLU(), conv, norms[0 if same else 1]).eval()
    if not same:
        net.extend([conv, norms[2].eval()])
    new, x = rt.fold(net), torch.randn(2, 2, 5, 5)
    assert relative_error(new(x), net(x)) < TOLERANCE
    assert (new[0] is new[2]) is same
    first, words = ("Conv2d, BatchNorm2d", "Conv2d"), "Conv2d, no longer tied to layer '0'"
    second = {} if same else {"3": (first[0], words), "5": (first[0], words)}
    assert rt.conversion(new).converted == {"0": first, **second}


@pytest.mark.parametrize("frozen", ["conv", "norm", "both"])
def test_a_folded_layer_is_frozen_if_all_that_it_is_made_of_is(frozen):
    conv, norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
    for name, module in (("conv", conv), ("norm", norm)):
        module.requires_grad_(frozen not in (name, "both"))
    new = rt.fold(nn.Sequential(conv, norm).eval())
    assert [p.requires_grad for p in new.parameters()] == [frozen != "both"] * 2


class Doubled(AddIdentity):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(module):
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("convert", "net", "says"),
    [
        (rt.to_plain, Doubled(nn.Linear(2, 2)), "is a Doubled with a forward of its own"),
        (rt.to_plain, AddIdentity(hooked(nn.Linear(2, 2))), "'0.layer' has hooks"),
        (rt.fold, hooked(nn.Linear(2, 2)), "'0' has hooks"),
    ],
    ids=["own forward", "beside an identity", "in front of BatchNorm"],
)
def test_what_would_get_lost_is_refused(convert, net, says):
    with pytest.raises(ValueError, match=says):
        convert(nn.Sequential(net, nn.BatchNorm1d(2)).eval())


def test_hooks_of_a_converted_layer_stay():
    layer, seen = with_identity(nn.Linear(2, 2), "residual"), []
    layer.register_forward_hook(lambda module, given, made: seen.append(type(module)))
    rt.to_plain(nn.Sequential(layer))(torch.ones(1, 2))
    assert seen == [nn.Linear]


def test_a_reason_of_a_layer_speaks_of_it_alone():
    layers = [nn.Linear(3, 3) for _ in range(3)]
    nn.utils.parametrizations.weight_norm(layers[1])
    with pytest.warns(NothingConverted):
        left = rt.conversion(rt.to_residual(nn.Sequential(*layers))).left
    assert left["1"].startswith("the weight of layer '1' is made by _WeightNorm; needs")


@pytest.mark.parametrize("explicit", [False, True])
def test_rounding_of_a_residual_weight_is_told(explicit):
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(3)]
    net = nn.Sequential(*layers).bfloat16()
    w = net[1].weight.detach().double()
    moved = float(((w - torch.eye(WIDTH)).bfloat16().double() + torch.eye(WIDTH) - w).abs().max())
    with pytest.warns(UserWarning, match=f"weights moved by up to {moved:.2g}; convert net.float"):
        rt.to_residual(net, explicit=explicit)
    net[1].weight.data.copy_(torch.eye(WIDTH))
    rt.to_residual(net, explicit=explicit)  # exact
