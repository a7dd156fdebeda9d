"""Shortcuts of nets: listed, absorbed, refused; verdicts against brute force."""

import contextlib
import itertools
import logging
import math
import random
import types
from dataclasses import replace
from functools import partial

import pytest
import torch
from tolerances import relative_error
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import resid_theory as rt
from benchmarks.absorption import (
    constructed_block,
    judged,
    random_block,
    refused,
    smallest_distance,
)
from benchmarks.shortcut_nets import (
    Apply,
    DiracLayer,
    RepVGG,
    Residual,
    Transformer,
    families,
    scattered,
)
from resid_theory.equivalence import NothingConverted, block_verdicts
from resid_theory.equivalence.shortcut_paths import paths_in
from resid_theory.equivalence.tracing import parts_of
from resid_theory.identity import AddIdentity, with_identity
from resid_theory.networks import Block

SAME = 1e-12
"""What folds and absorptions promise in float64."""

DOWN = torch.tensor([[0.0], [1.0], [0.0]])
FAMILIES = families()
REFUSED = refused()


def additions(net):
    """Additions of two values that depend on the input, counted by the plain tracer of torch."""
    nodes = fx.symbolic_trace(net).graph.nodes
    names = [getattr(n.target, "__name__", n.target) for n in nodes if len(n.all_input_nodes) > 1]
    return sum(name in ("add", "iadd", "add_") for name in names)


SINGLE = torch.float32
"""torch's own default, which no net in float64 may take notice of."""


@pytest.mark.parametrize("name", FAMILIES)
def test_shortcuts_enter_the_weights(name):
    torch.set_default_dtype(SINGLE)
    net, x = FAMILIES[name]
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    new = rt.absorb(net)
    assert additions(net) > 0 and additions(new) == 0
    assert not rt.conversion(new).left and not rt.shortcuts(new).modules
    for size in (x, x[:1], x[..., : x.shape[-1]]):
        assert relative_error(new(size), net(size)) < SAME
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
    gaps = [gap for gap in rt.shortcuts(net).gap if gap is not None]
    assert gaps and max(gaps) < SAME


@pytest.mark.filterwarnings("error::resid_theory.equivalence.NothingConverted")
@pytest.mark.parametrize("seed", range(20))
def test_random_blocks_are_judged_as_brute_force_says(seed):
    right, gap, _ = judged(random_block(seed))
    assert right and gap < SAME


@pytest.mark.filterwarnings("error::resid_theory.equivalence.NothingConverted")
@pytest.mark.parametrize("number", range(21))
def test_constructed_blocks_are_judged_as_they_were_built(number):
    _, answer, extra = case = constructed_block(number)
    torch.set_default_dtype(SINGLE)
    right, gap, said = judged(case)
    room = "flipped units leave no" if number % 7 == 0 else "dead or parallel units make room"
    how = room if answer == "same width" else f"{extra} hidden units carry the shortcut"
    assert right and gap < SAME and said.startswith(how)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_theorem_or_say_open(name):
    found = rt.shortcuts(REFUSED[name])
    theorem = {"ReLU²": "slope 0", "ReGLU": "slope 0", "SwiGLU": "slope 0", "GeGLU": "slope 0"}
    bounded = ("tanh", "pre-LN MLP", "pre-RMSNorm attention")
    expected = theorem.get(name, "bounded" if name in bounded else "")
    assert found.answers == (("never",) if expected else ("open",)) and expected in found.how[0]
    with pytest.warns(NothingConverted, match="absorb: nothing was converted"):
        assert rt.conversion(rt.absorb(REFUSED[name])).left


def squared_relu(t):
    return F.relu(t) ** 2


C, RELU, SQUARED = nn.Conv2d, nn.ReLU(), Apply(squared_relu)


class Gate(nn.Module):
    def __init__(self, gate, up):
        super().__init__()
        self.gate, self.up = gate, up

    def forward(self, x):
        return F.silu(self.gate(x)) * self.up(x)


RANKS = {
    "rank 1": (nn.GELU(), 1, 4, 2), "rank 3": (nn.GELU(), 3, 4, 4), "rank 0": (nn.GELU(), 0, 4, 0),
    "read along 2": (nn.GELU(), 4, 2, 2 * 4 - 2), "squares": (SQUARED, 1, 4, 4),
    "columns": (RELU, 2, 4, 3), "gate": (None, 2, 4, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", RANKS)
def test_units_for_the_rank_of_a_projection(name):
    torch.manual_seed(1)
    function, rank, read, extra = RANKS[name]
    with torch.device("cpu"):
        P = torch.randn(4, rank) @ torch.randn(rank, 4)
        P[:, :1] *= name not in ("columns", "gate")  # a column that is not read
        W = torch.randn(5, read) @ torch.randn(read, 4)
    stem = RELU if name == "columns" else nn.Identity()
    up = (nn.Linear(4, 5), function) if function else (Gate(nn.Linear(4, 5), nn.Linear(4, 5)),)
    shortcut = nn.Linear(4, 4)
    net = nn.Sequential(stem, Residual(*up, nn.Linear(5, 4), projection=shortcut)).double()
    shortcut.weight.data = P.double()
    if function:
        up[0].weight.data = W.double()
    x = torch.randn(6, 4)
    torch.set_default_dtype(SINGLE)
    found = rt.shortcuts(net)
    assert found.extra == (extra,) and found.answers == ("wider" if extra else "same width",)
    assert relative_error(rt.absorb(net)(x), net(x)) < 1e2 * SAME


class Turned(Gate):
    def forward(self, x):
        return self.up(x) * (F.silu(self.gate(x)) + 1)


def test_a_gate_may_stand_behind_what_it_lets_pass():
    torch.manual_seed(0)
    net, x = Residual(Turned(nn.Linear(3, 4), nn.Linear(3, 4)), nn.Linear(4, 3)), torch.randn(5, 3)
    assert rt.shortcuts(net).how == ("3 units with a constant gate carry the shortcut",)
    assert relative_error(rt.absorb(net)(x), net(x)) < SAME
    wide = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4, bias=False))
    net = Residual(Gate(wide, nn.Linear(3, 4)), nn.Linear(4, 2), projection=nn.Linear(3, 2))
    assert rt.shortcuts(net).extra == (3,)
    assert relative_error(rt.absorb(net)(x), net(x)) < SAME
    free = Residual(Turned(*(nn.Linear(3, 4, bias=False) for _ in "ab")), nn.Linear(4, 3))
    assert rt.shortcuts(free).extra == (3,)  # silu(0) + 1 is constant, too
    assert relative_error(rt.absorb(free)(x), free(x)) < SAME


@pytest.mark.parametrize(("side", "answer"), [(1, "wider"), (3, "open")])
def test_gates_of_convolutions(side, answer):
    torch.manual_seed(0)
    gate, up = (nn.Conv2d(3, 4, side, padding=side // 2) for _ in range(2))
    net, x = Residual(Gate(gate, up), nn.Conv2d(4, 3, 1)).double(), torch.randn(2, 3, 5, 4)
    assert rt.shortcuts(net).answers == (answer,)
    if answer == "wider":
        assert relative_error(rt.absorb(net)(x), net(x)) < SAME


@pytest.mark.parametrize(
    "function", [torch.relu, torch.abs, lambda t: t.clamp(-7, 7), lambda t: F.hardshrink(t, 5e-8)]
)
def test_a_gate_lets_no_line_pass_that_is_one_for_some_numbers_only(function):
    gate = Gate(nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 4), Apply(function)))
    assert rt.shortcuts(Residual(gate, nn.Linear(4, 3))).answers == ("open",)


def test_rounding_is_that_of_the_coarsest_weights():
    planted, _, _ = constructed_block(0)
    net = nn.Sequential(planted.float(), Apply(lambda x: x.double()), nn.Linear(2, 2).double())
    assert rt.shortcuts(net).answers == ("same width",)
    assert rt.shortcuts(planted.double()).answers == ("wider",)  # single precision is none
    beside = AddIdentity(nn.Linear(3, 3)).float()  # in single precision 1 + w would be rounded
    assert rt.shortcuts(nn.Sequential(beside)).gap[0] < SAME


class Named(nn.Module):
    """A layer that is given its input by name."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x_):
        return x_ + self.layer(input=x_)


def test_layers_are_linear_maps_with_weights_however_they_are_called():
    net, x = Named(), torch.randn(4, 3)
    assert relative_error(rt.absorb(net)(x), net(x)) < SAME
    by_itself = Apply(lambda x: torch.einsum("ni,ni->ni", x, x))
    assert not rt.shortcuts(Residual(by_itself)).modules
    assert rt.shortcuts(Residual(by_itself, nn.Linear(3, 3))).layers == (1,)


def test_one_unit_more():
    net = Residual(nn.Linear(2, 4), nn.GELU(), nn.Linear(4, 2))
    net.branch[2].weight.data[:, 0] = 0
    found = rt.shortcuts(net)
    assert found.extra == (1,) and found.answers == ("wider",) and "1 hidden unit" in found.how[0]
    net = nn.Sequential(nn.ReLU(), Residual(nn.Linear(2, 4), nn.Mish(), nn.Linear(4, 2)))
    assert "no φ(t) - φ(-t) = κ t" in rt.shortcuts(net).how[0]  # on a positive stream, too


@pytest.mark.parametrize(("seed", "decided"), [(0, False), (1, True), (5, True)])
def test_what_the_bounds_leave_open_is_said(seed, decided):
    torch.manual_seed(seed)
    net = Residual(nn.Linear(2, 9), nn.GELU(), nn.Linear(9, 2))
    W, V = (torch.nn.init.normal_(net.branch[n].weight).detach() for n in (0, 2))
    found, exact = rt.shortcuts(net), smallest_distance(W, V, 1)
    assert (
        found.how[0].endswith("is not decided") == (found.distance_low == (0.0,)) == (not decided)
    )
    assert found.distance_low[0] <= exact * (1 + SAME) and exact <= found.distance_high[0] * (
        1 + SAME
    )


def test_a_shortcut_is_found_wherever_its_identity_enters():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 3, padding=1)
    net = nn.Sequential(
        with_identity(nn.Conv2d(4, 4, 3, padding=1), "residual"), DiracLayer(4), AddIdentity(layer),
        RepVGG(4), Residual(layer, nn.Sigmoid()), Residual(layer, nn.ReLU(), layer),
    ).eval()  # fmt: skip
    found = rt.shortcuts(net)
    assert found.enters == (
        "in the weight", "in the weight", "identity", "normalized", "identity", "identity",
    )  # fmt: skip
    assert found.modules == ("0", "1", "2", "3", "4", "5")
    assert found.answers == ("folds",) * 4 + ("never", "wider")
    assert found.layers == (1, 1, 1, 2, 1, 2)
    x = torch.randn(2, 4, 7, 7)
    assert relative_error(rt.absorb(net)(x), net(x)) < SAME


class IdentityPlus(nn.Module):
    """A layer by a function whose weight is another one plus V."""

    def __init__(self, function, identity, join=torch.add):
        super().__init__()
        rows = 4 if len(identity) == 1 else len(identity)
        self.function, self.V = function, nn.Parameter(torch.randn(rows, *identity.shape[1:]))
        self.register_buffer("identity", identity)
        self.join = join

    def forward(self, x):
        return self.function(x, self.join(self.identity, self.V))


@pytest.mark.parametrize(
    ("function", "identity", "found"),
    [
        (F.linear, torch.eye(4), True),
        (F.linear, torch.eye(2), True),
        (F.linear, torch.ones(4, 4), False),
        (F.linear, 3 * torch.eye(4, 2), True),
        (F.linear, torch.eye(1, 4), False),
        (F.linear, torch.zeros(4, 4), False),
        (F.linear, torch.ones(4), False),
        (partial(F.conv2d, padding=(1, 0)), torch.eye(4)[..., None, None] * DOWN, True),
        (partial(F.conv2d, padding=(1, 0)), torch.eye(4)[..., None, None] * (DOWN + 1), False),
    ],
    ids=["matrix", "two rows", "no identity", "tall", "row", "zeros", "vector", "one tap", "taps"],
)
def test_an_identity_that_a_function_is_given_in_its_weight(function, identity, found):
    net = nn.Sequential(IdentityPlus(function, identity))
    assert rt.shortcuts(net).enters == ("in the weight",) * found
    assert rt.shortcuts(net.float()).answers == ("folds",) * found
    product = IdentityPlus(function, identity, torch.mul)
    assert not rt.shortcuts(nn.Sequential(product)).modules


class Highway(nn.Module):
    def __init__(self, width, function):
        super().__init__()
        self.function = function
        self.gate, self.layer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        gate = torch.sigmoid(self.gate(x))
        return gate * self.function(self.layer(x)) + (1 - gate) * x


class DenseFormer(nn.Module):
    """Every block reads and adds to a mean of all states so far."""

    def __init__(self, width, depth):
        super().__init__()
        self.blocks = nn.ModuleList(
            Residual(nn.Linear(width, 5), nn.GELU(), nn.Linear(5, width)) for _ in range(depth)
        )
        self.mix = nn.Parameter(torch.randn(depth, depth + 1))

    def forward(self, x):
        states = [x]
        for row, block in enumerate(self.blocks):
            states.append(block(states[-1]))
            states[-1] = sum(self.mix[row, n] * state for n, state in enumerate(states))
        return states[-1]


class GateOfLayer(nn.Module):
    """A stream that is multiplied by what a layer reads, too, or by what its norm is."""

    def __init__(self, normed):
        super().__init__()
        self.normed = normed
        self.gate, self.layer = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        gate = torch.sigmoid(self.gate(x))
        return gate * (F.layer_norm(x, (3,)) if self.normed else x) + self.layer(gate)


@pytest.mark.parametrize("normed", [False, True])
def test_a_gated_shortcut_begins_at_the_stream_and_not_at_its_gate(normed):
    found = rt.shortcuts(GateOfLayer(normed))
    assert (found.enters, found.around) == (("gated",), ("gate, layer",))


@pytest.mark.parametrize("function", [torch.relu, torch.tanh])
def test_the_stream_behind_a_gate_may_be_bounded_as_its_branch(function):
    found = rt.shortcuts(Highway(3, function))
    assert "gated" in found.enters and set(found.answers) == {"open"}
    normed = Residual(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), projection=nn.LayerNorm(3))
    assert rt.shortcuts(normed).how == ("the shortcut itself is normalized",)
    branch = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    half = Parallel(Parallel(nn.Identity(), nn.LayerNorm(3)), branch)
    assert rt.shortcuts(half).how == ("the shortcut itself is normalized",)


def test_words_of_lists_and_records():
    layers = nn.Linear(3, 4), nn.Linear(4, 3)
    blocks = (Residual(layers[0], f, layers[1]) for f in (nn.Tanh(), nn.GELU(), nn.Identity()))
    net = nn.Sequential(*blocks, Residual(nn.Linear(3, 3))).double()
    found, shown = rt.shortcuts(net), rt.shortcuts(net).shown()
    assert found.title == "4 shortcuts: 1 never, 1 wider, 2 folds"
    low, high = found.distance_low[1], found.distance_high[1]
    assert [*shown["distance"]] == ["", f"{low:.3g} to {high:.3g}", "", ""]
    assert [*shown][-2:] == ["distance", "how"] and "distance_low" not in shown
    assert found.around == ("0.branch.0, 0.branch.2",) * 3 + ("3.branch.0",)
    assert found.table() == {
        "module": ("0", "1", "2", "3"), "enters": ("identity",) * 4, "layers": (2, 2, 2, 1),
        "answer": ("never", "wider", "folds", "folds"), "extra": (None, 3, 0, 0),
        "distance_low": (None, low, None, None), "distance_high": (None, high, None, None),
        "gap": found.gap, "how": found.how,
    } and found.untraced == {}  # fmt: skip
    assert found.gap[0] is None and max(found.gap[1:]) < SAME
    folds = "folds: branches without a function between them are one layer"
    assert rt.conversion(rt.absorb(net)).converted == {
        "1": ("identity around 2 layers", f"wider: {found.how[1]}"),
        "2": ("identity around 2 layers", folds), "3": ("identity around 1 layer", folds),
    }  # fmt: skip
    assert rt.shortcuts(layers[0]).title == "no shortcuts"
    assert "distance" not in rt.shortcuts(net[3:]).shown()
    assert rt.shortcuts(rt.ShortcutNet(3, 1, 2)).title == "no shortcuts in what can be traced"
    assert rt.shortcuts(Picky(net), torch.ones(1, 3)).remarks()[0].startswith("the net itself: ")


def test_mixtures_are_named():
    net = DenseFormer(3, 2)
    found = rt.shortcuts(net)
    assert set(found.enters) == {"identity", "scaled"} and "wider" in found.answers
    x = torch.randn(4, 3)
    assert relative_error(rt.absorb(net)(x), net(x)) < SAME


def test_branches_that_only_look_bounded_or_read_mixtures():
    unbounded = Apply(lambda x: x / x.abs().mean(-1, keepdim=True).sqrt())  # grows as √x
    statistics = nn.InstanceNorm2d(4, track_running_stats=True)  # affine in eval mode
    hooked = prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)
    for branch in ((unbounded, nn.Linear(4, 4)), (statistics, nn.Conv2d(4, 4, 1)), (hooked,)):
        assert rt.shortcuts(Residual(*branch)).answers == ("open",)
    for norm in (lambda x: x / x.norm(dim=-1, keepdim=True), lambda x: F.layer_norm(x, (4,))):
        assert rt.shortcuts(Residual(Apply(norm), nn.Linear(4, 4))).answers == ("never",)
    mixed = Apply(lambda h: torch.einsum("mn,bnd->bmd", torch.ones(2, 2), h))
    mlp = nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 4)
    found = rt.shortcuts(Residual(*mlp, projection=mixed))
    assert found.enters == ("mixed",) and found.answers == ("open",)


def test_a_language_model_keeps_its_shortcuts():
    found = rt.shortcuts(Transformer(3, 8, 2, 11, 5))
    assert found.answers == ("never",) * 6
    assert found.modules == tuple(f"blocks.{n}" for n in range(6))


class Picky(nn.Module):
    """A forward that looks at values, which a tracer has none of."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, scale=None):
        if float(x.sum()) > 1e9:
            return x
        return self.block(x if scale is None else scale * x)


class Sized(Picky):
    def forward(self, x):
        if x.shape[-1] != 3:
            raise ValueError("needs width 3")
        return 2 * x + self.block(x)


class Cached(Sized):
    def forward(self, x):
        cache = types.SimpleNamespace(states=super().forward(x))
        return {"states": cache}


def test_what_cannot_be_traced_is_listed_and_its_parts_are_read():
    torch.manual_seed(0)
    branch = nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 3)
    net, x = Picky(Residual(*branch)), torch.randn(5, 3)
    found = rt.shortcuts(net)
    assert found.modules == ("block",) and "cannot be traced" in found.untraced[""]
    new = rt.absorb(net)
    assert type(new) is Picky and relative_error(new(x), net(x)) < SAME
    assert "cannot be traced" in rt.conversion(new).left[""]
    assert rt.shortcuts(net, blocks=["block"]).modules == ("block",)
    sized = Sized(nn.Sequential(*branch))
    assert not rt.shortcuts(sized).modules and rt.shortcuts(sized).untraced
    found = rt.shortcuts(sized, x)  # by torch.export
    assert found.answers == ("wider",) and found.enters == ("scaled",)
    assert relative_error(rt.absorb(sized, x)(torch.cat([x, x])), sized(torch.cat([x, x]))) < SAME
    cached = Cached(sized.block)  # torch.export does not know what it returns
    assert rt.shortcuts(cached, x).answers == ("wider",) and not rt.shortcuts(cached, x).untraced
    with pytest.raises(ValueError, match="blocks: unknown name 'blocks'"):
        rt.shortcuts(net, blocks=["blocks"])
    inside = nn.ModuleList([Residual(*branch), nn.ModuleDict({"a": Residual(*branch)})])
    found = rt.shortcuts(Picky(nn.Sequential(Picky(inside), Residual(*branch))))
    assert found.modules == ("block.0.block.0", "block.0.block.1.a", "block.1")
    assert [*found.untraced] == ["", "block", "block.0"]


class Routed(nn.Module):
    """Rows that samples choose, of whose number torch.export knows nothing."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        rows = (x.sum(-1) > 0).nonzero()[:, 0]
        return x.index_add(0, rows, self.layer(x[rows])) if len(rows) else x


def test_why_a_net_cannot_be_exported_is_told_once(capsys):
    records, log = [], logging.getLogger("torch._subclasses.fake_tensor")
    handler = logging.Handler()
    handler.emit = records.append
    log.addHandler(handler)
    try:
        found = rt.shortcuts(Cached(nn.Linear(4, 3)), torch.ones(5, 3))
        assert "must have same reduction dim" in found.untraced[""]
        found = rt.shortcuts(Routed(nn.Linear(3, 3)), torch.randn(5, 3))
        assert "data-dependent" in found.untraced[""]
    finally:
        log.removeHandler(handler)
    assert capsys.readouterr() == ("", "") and not records


class Raises(nn.Module):
    def __init__(self, error, inner=None):
        super().__init__()
        self.error, self.inner = error, inner

    def forward(self, x):
        raise self.error


def test_why_a_module_cannot_be_traced_is_its_first_sentence():
    found = rt.shortcuts(Raises(ValueError("one. two.\nthree"), Raises(KeyError())))
    assert found.untraced == {
        "": "cannot be traced: one. two; with a sample torch.export is tried, too",
        "inner": "cannot be traced: KeyError",
    }
    assert found.remarks() == [
        f"the net itself: {found.untraced['']}.", "inner: cannot be traced: KeyError."
    ]  # fmt: skip


class Scaled(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, scale=None):
        return self.block(x if scale is None else scale * x)


class ScaledAndSized(Scaled):
    def forward(self, x, scale=None):
        if x.shape[-1] != 3:
            raise ValueError("needs width 3")
        return super().forward(x, scale)


@pytest.mark.parametrize("kind", [Scaled, ScaledAndSized])
@pytest.mark.parametrize("scale", [(), (torch.tensor(3.0),), (torch.randn(5, 3),)])
def test_arguments_that_are_not_in_the_sample_keep_their_defaults(kind, scale):
    torch.manual_seed(0)
    net = kind(Residual(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 3)))
    sample = (torch.randn(5, 3), *(each.double() for each in scale))
    new = rt.absorb(net, sample)
    assert rt.shortcuts(net, sample).answers == ("wider",) and isinstance(new, fx.GraphModule)
    for xs in (sample, [torch.cat([each, each]) if each.dim() else each for each in sample]):
        assert relative_error(new(*xs), net(*xs)) < SAME


def test_an_argument_with_a_default_keeps_its_name():
    torch.manual_seed(0)
    net, x = Scaled(Residual(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 3))), torch.randn(5, 3)
    assert relative_error(rt.absorb(net)(x, scale=None), net(x)) < SAME


class Exported(Scaled):
    def __init__(self, block, join):
        super().__init__(block)
        self.join = join

    def forward(self, x):
        if x.shape[-1] != 3:
            raise ValueError("needs width 3")
        return self.join(x, self.block)


def added(x, block):
    total = block(x)
    total += x
    return total


def subtracted(x, block):
    total = block(x)
    total.sub_(x, alpha=2)
    return total


def written(x, block):
    stream = 2 * x
    stream.relu_()
    return stream + block(stream)


@pytest.mark.parametrize("join", [added, subtracted, written])
def test_writes_in_exported_nets(join):
    torch.manual_seed(0)
    branch = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    net, x = Exported(branch, join), torch.randn(5, 3)
    new = rt.absorb(net, x)
    assert rt.shortcuts(net, x).answers == ("wider",)
    assert relative_error(new(torch.cat([x, x])), net(torch.cat([x, x]))) < SAME
    assert not any(name.startswith("block") for name in new.state_dict())  # the old layers are gone
    assert new.training and not new.eval().training and new.train().training


class Several(Exported):
    def forward(self, *xs):
        return super().forward(xs[0]) + xs[1]


def test_a_net_of_any_number_of_inputs_is_exported_at_the_size_of_its_sample():
    torch.manual_seed(0)
    net, xs = Several(nn.Linear(3, 3), added), (torch.ones(1, 3), torch.ones(1, 3))
    graphs, refused = parts_of(net, xs)
    assert not refused and [path.form for path in paths_in(graphs[""])] == ["identity"]


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.Dropout(), nn.Dropout1d()])
def test_what_train_mode_or_each_batch_decides_is_left(layer):
    net = Residual(nn.Linear(3, 4), layer, nn.ReLU(), nn.Linear(4, 3))
    with pytest.warns(NothingConverted):
        left = rt.conversion(rt.absorb(net)).left
    assert left == {"add": "branch.1 is in train mode; call net.eval() first"}
    net.branch[1] = nn.BatchNorm1d(4, track_running_stats=False)
    how = "branch.1 uses the statistics of each batch, and has no others"
    assert rt.shortcuts(net).how == (how,) and rt.shortcuts(net.eval()).how == (how,)


def test_parts_keep_their_modes():
    torch.manual_seed(0)
    branch, x = (nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(5, 3)
    net = nn.Sequential(nn.BatchNorm1d(3).eval(), Residual(*branch), nn.Tanh())
    new = rt.absorb(net)
    assert relative_error(new(x), net(x)) < SAME
    assert [part.training for part in (new, *new)] == [True, False, True, True]
    block = Block(nn.Sequential(*branch), before=nn.Dropout().eval(), after=nn.ReLU())
    net = nn.Sequential(nn.ReLU(), block.train(False))
    net.training = block.training = block.after.training = True
    plain = rt.to_plain(net)
    assert relative_error(plain(x), net(x)) < SAME
    assert {key for key, part in plain.named_modules() if not part.training} == {
        "1.before", "1.relu1"
    }  # fmt: skip
    assert not any(part.training for part in rt.to_plain(net.eval()).modules())


def test_train_mode_and_hooks():
    net = RepVGG(4)
    with pytest.warns(NothingConverted):
        assert rt.conversion(rt.absorb(net)).left  # BatchNorm uses the statistics of each batch
    assert rt.shortcuts(net).answers == ("folds",) and net.training
    net.eval().register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="has hooks"):
        rt.absorb(net)
    kept = Residual(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    kept.register_forward_hook(lambda *_: None)
    with pytest.warns(NothingConverted):  # and nothing lost
        rt.absorb(kept)


def test_float32_and_values_in_place():
    with torch.device("cpu"):
        torch.manual_seed(0)
        branch = [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)]
        net = scattered(nn.Sequential(nn.Conv2d(4, 4, 1), Residual(nn.ReLU(inplace=True), *branch)))
    net, x = net.float(), torch.randn(2, 4, 6, 6, dtype=torch.float32)
    exact = net(x)  # the first ReLU writes into the stream before it is added
    assert rt.shortcuts(net).answers == ("wider",)
    new = rt.absorb(net)
    assert new(x).dtype == torch.float32 and relative_error(new(x), exact) < 1e-5


class Written(nn.Module):
    """Stems, a write into their output by a view of it or not, and a block."""

    def __init__(self, write):
        super().__init__()
        self.stem, self.alias, self.write = nn.Linear(3, 3), nn.Identity(), write
        self.block = Residual(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))

    def forward(self, x):
        h = self.stem(x)
        self.write(self, h)
        return self.block(h)


@pytest.mark.parametrize(
    "write",
    [lambda net, h: net.alias(h).relu_(), lambda _, h: h[:, :2].mul_(3), lambda _, h: h.view(-1)
     .relu_(), lambda _, h: F.relu(h.detach(), inplace=True), lambda _, h: h.mT.relu_(),
     lambda _, h: torch.relu_(input=h), lambda _, h: torch.mul(h, 3, out=h)],
)  # fmt: skip
def test_a_write_into_a_view_or_by_name_is_refused(write):
    torch.manual_seed(0)
    net, x = Written(write).requires_grad_(False), torch.randn(5, 3)
    found = rt.shortcuts(net)
    assert found.modules == ("block",) and "writes in place into memory" in found.untraced[""]
    assert relative_error(rt.absorb(net)(x), net(x)) < SAME


DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout")
VIEWS = [
    nn.Flatten(0), nn.Unflatten(1, (3, 1)), nn.Identity(), nn.Dropout(), torch.detach, torch.t,
    torch.squeeze, torch.flatten, lambda h: h.view_as(h), lambda h: h.unflatten(1, (3, 1)),
    lambda h: h.swapaxes(0, 1), lambda h: h.movedim(0, 1), lambda h: h.T, lambda h: h.mT,
    lambda h: h.data, lambda h: h.chunk(2)[0], lambda h: h.split(2)[0], lambda h: h.unbind()[0],
    lambda h: h.narrow(0, 0, 1), lambda h: h.select(0, 0), lambda h: h.diagonal(),
    lambda h: h.expand_as(h), lambda h: torch.ops.aten.slice.Tensor(h, 0, 0, 1), lambda h: h[0],
    lambda h: h.reshape(-1), lambda h: h.permute(1, 0), lambda h: h.transpose(0, 1),
    lambda h: h.unsqueeze(0), lambda h: h.expand(2, 5, 3), lambda h: h.contiguous(),
    lambda h: h.view(-1), lambda h: h.to(h.dtype), lambda h: h.type_as(h), torch.ops.aten.alias,
    nn.Dropout1d(), nn.Dropout2d(), nn.Dropout3d(), nn.AlphaDropout(), lambda h: h.float(),
    lambda h: h.double(), lambda h: h.half(), lambda h: h.bfloat16(),
    *(partial(getattr(F, name), training=False) for name in DROPOUTS),
    *(lambda h, name=name: getattr(torch, name)(h, 0.5, False)
      for name in ("dropout", "alpha_dropout", "feature_dropout")),
]  # fmt: skip


def written(view):
    net = Written(lambda net, h: (net.alias if isinstance(view, nn.Module) else view)(h).relu_())
    net.alias = view if isinstance(view, nn.Module) else net.alias
    return net


def test_views_of_every_name_are_known():
    for view in VIEWS:
        graphs, refused = parts_of(written(view), blocks=[""])
        assert "" not in graphs and "in place into memory that stem shares" in refused[""], view
    for copy in (torch.clone, torch.abs, torch.ops.aten._to_copy.default, nn.Linear(3, 3)):
        assert "" in parts_of(written(copy), blocks=[""])[0], copy


@pytest.mark.parametrize(
    "write",
    [lambda _, h: (h.shape[0], h.relu_()), lambda _, h: h.mul_(3), lambda _, h: torch.relu_(h),
     lambda _, h: F.relu(h, True), lambda _, h: F.relu(h, inplace=True), lambda _, h: F.elu_(h),
     lambda _, h: F.leaky_relu(h, 0.3, inplace=True), lambda net, h: h.add_(net.alias(h))],
)  # fmt: skip
def test_a_write_is_read_by_what_comes_behind(write):
    torch.manual_seed(0)
    net, x = Written(write), torch.randn(5, 3)
    found, new = rt.shortcuts(net), rt.absorb(net)
    assert found.answers == ("wider",) and not found.untraced and isinstance(new, fx.GraphModule)
    assert not any(node.kwargs.get("inplace") for node in new.graph.nodes)
    assert relative_error(new(x), net(x)) < SAME


def test_a_module_in_place_writes_into_nothing_once_absorbed():
    net, x = Residual(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)), torch.randn(5, 3)
    new = rt.absorb(net)
    flags = [[m.inplace for m in each.modules() if hasattr(m, "inplace")] for each in (net, new)]
    assert flags == [[True], [False]] and relative_error(new(x), net(x)) < SAME


def test_a_module_that_writes_into_what_its_caller_reads():
    torch.manual_seed(0)
    branch = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3))
    net, x = Picky(Residual(Residual(branch), nn.GELU(), nn.Linear(3, 3))), torch.randn(5, 3)
    with pytest.warns(NothingConverted):
        new = rt.absorb(net)
    assert torch.equal(new(x.clone()), net(x.clone()))
    assert "caller sees" in rt.conversion(new).left["block"]


@pytest.mark.parametrize(
    "function", [lambda t: t.clamp(0, 5e3), lambda t: F.hardtanh(t, -1e4, 1e4)]
)
def test_functions_that_end_far_away_carry_nothing(function):
    block = Residual(nn.Linear(3, 4), Apply(function), nn.Linear(4, 3))
    assert rt.shortcuts(block).answers[0] in ("open", "never")


def test_bounded_streams_and_poles_are_under_no_theorem():
    half = Residual(nn.Linear(3, 4), nn.Sigmoid(), Apply(torch.log), nn.Linear(4, 3))
    assert rt.shortcuts(half).answers == ("open",)  # log σ(t) - log σ(-t) = t
    inner = Residual(nn.Linear(3, 4), nn.ReLU6(), nn.Linear(4, 3))
    assert rt.shortcuts(inner).answers == ("never",)
    for first in (nn.ReLU6(), nn.LayerNorm(3)):  # ReLU6 is a line there, or may be made one
        assert rt.shortcuts(nn.Sequential(first, inner)).answers == ("open",)
    whole = Residual(nn.Linear(3, 4), Apply(lambda t: t.to(torch.int64).to(t.dtype)), nn.ReLU(),
                     nn.Linear(4, 3))  # fmt: skip
    assert rt.shortcuts(whole).answers == ("open",)


class Parallel(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return self.first(x) + self.second(x)


ONE, EACH = torch.tensor([1.702]).double(), torch.arange(1.0, 5.0).double()
OPEN, NEVER = ("open", "is no elementwise function"), ("never", "is bounded")
WIDER, ODD = ("wider", "hidden units carry"), ("open", "no φ(t) - φ(-t) = κ t")
INNER = {
    "pole behind a bound": (lambda t: 1 / t.tanh(), OPEN),
    "tan behind a bound": (lambda t: t.tanh().tan(), OPEN),
    "scaled bound": (lambda t: t.tanh() / 2, NEVER),
    "power -0.5": (lambda t: t.sigmoid() ** -0.5, ODD),
    "power 0": (lambda t: t.sigmoid() ** 0, NEVER),
    "power 0.5": (lambda t: t.sigmoid() ** 0.5, NEVER),
    "power by name": (lambda t: torch.pow(t.sigmoid(), exponent=-1), ODD),
    "power from a tensor": (lambda t: t.sigmoid() ** torch.tensor(-1.0), ODD),
    "root mean square": (lambda t: t * (t.pow(2).mean(-1, keepdim=True) + 0.1).rsqrt(), NEVER),
    "its inverse": (lambda t: t / (t.pow(2).mean(-1, keepdim=True) + 0.1).rsqrt(), OPEN),
    "norm by its vector": (lambda t: t.norm(dim=-1, keepdim=True) / t, OPEN),
    "times its norm": (lambda t: t * t.norm(dim=-1, keepdim=True), OPEN),
    "mean of logarithms": (lambda t: t / t.square().log1p().mean(-1, keepdim=True).sqrt(), OPEN),
    "times a mean of logarithms": (
        lambda t: t * t.square().log1p().mean(-1, keepdim=True).sqrt(),
        OPEN,
    ),
    "cube of its norm": (lambda t: t / t.norm(dim=-1, keepdim=True) ** torch.tensor(3.0), OPEN),
    "times the cube": (lambda t: t * t.norm(dim=-1, keepdim=True) ** torch.tensor(3.0), OPEN),
    "bound of a norm": (lambda t: (t / t.norm(dim=-1, keepdim=True)).exp(), NEVER),
    "pole of a norm": (lambda t: (t / t.norm(dim=-1, keepdim=True)).log(), OPEN),
    "swish with a number": (lambda t: t * torch.sigmoid(ONE * t), WIDER),
    "swish by channel": (lambda t: t * torch.sigmoid(EACH * t), ("wider", "a constant gate")),
    "GELU by channel": (lambda t: EACH * F.gelu(t), WIDER),
    "statistics": (lambda t: F.gelu(F.batch_norm(t, EACH, EACH)), WIDER),
    "own statistics": (lambda t: F.gelu(F.batch_norm(t, EACH, EACH, training=True)), OPEN),
    "training by place": (lambda t: F.gelu(F.batch_norm(t, EACH, EACH, None, None, True)), OPEN),
    "dropout": (lambda t: F.gelu(F.dropout(t)), OPEN),
    "dropout off": (lambda t: F.gelu(F.dropout(t, 0.5, False)), WIDER),
    "off by place": (lambda t: F.gelu(torch.dropout(t, 0.5, False)), WIDER),
    "integers by name": (lambda t: t.to(dtype=torch.int64).to(t.dtype).relu(), OPEN),
}


@pytest.mark.parametrize("name", INNER)
def test_what_a_function_between_two_layers_decides(name):
    torch.manual_seed(0)
    (function, (answer, words)), x = INNER[name], torch.randn(5, 3)
    net = Residual(nn.Linear(3, 4), Apply(function), nn.Linear(4, 3))
    found = rt.shortcuts(net)
    assert found.answers == (answer,) and words in found.how[0]
    if answer == "wider":
        assert relative_error(rt.absorb(net)(x), net(x)) < SAME


def test_a_product_with_itself_is_a_square():
    free = [Residual(nn.Linear(3, 4, False), Apply(function), nn.Linear(4, 3, False))
            for function in (lambda t: t * t, torch.square)]  # fmt: skip
    assert [rt.shortcuts(net).how[0].count("slope 0") for net in free] == [1, 1]
    squared = Residual(nn.Linear(3, 3), projection=Apply(lambda t: t * t))
    assert not rt.shortcuts(squared).modules  # no shortcut reads its stream by a square


DEPTHWISE = C(3, 4, 1), RELU, C(4, 4, 3, padding=1, groups=4), RELU, C(4, 3, 1)
TWO = C(3, 4, 3, padding=1), C(4, 3, 3, padding=1)
EVEN = C(3, 4, 4, padding=1), RELU, C(4, 3, 2, padding=1)
STRIDED = C(3, 4, 3, 2, 1), RELU, C(4, 3, 3, padding=1)
GROWN = C(3, 4, 2, padding=1), RELU, C(4, 3, 2)
POOL = nn.AvgPool2d(3, 1, 1)
CONVOLUTIONS = {
    "depthwise": (nn.Sequential(RELU, Residual(*DEPTHWISE)), 3, ">= 0, through 2 functions"),
    "signed": (Residual(*DEPTHWISE), 6, "both signs, through 2 functions"),
    "ELU behind ReLU": (nn.Sequential(RELU, Residual(TWO[0], nn.ELU(), TWO[1])), 3, ">= 0"),
    "pooled": (Residual(TWO[0], nn.GELU(), TWO[1], projection=POOL), 6, "1 function"),
    "one tap": (Residual(C(3, 4, 1), nn.GELU(), C(4, 3, 1)), 3, "3 hidden units"),
    "one tap of one axis": (Residual(nn.Conv1d(3, 4, 1), RELU, nn.Conv1d(4, 3, 1)), 3, "units"),
    "more units": (Residual(nn.Conv1d(3, 5, 1), RELU, nn.Conv1d(5, 3, 1)), 3, "3 hidden units"),
    "growing": (Residual(*GROWN), 6, "both signs"),
    "offsets": (Residual(TWO[0], SQUARED, TWO[1]), None, "offsets that borders would change"),
    "ELU": (Residual(TWO[0], nn.ELU(), TWO[1]), None, "no φ(t) - φ(-t)"),
    "stride": (Residual(*STRIDED), None, "has stride (1, 1), its branch (2, 2)"),
    "taps": (Residual(*STRIDED, projection=C(3, 3, 3, 2, 1)), None, "of several taps"),
    "taps in the middle": (
        Residual(C(3, 4, 1), RELU, C(4, 4, 3, 2, 1), RELU, C(4, 3, 1), projection=C(3, 3, 3, 2, 1)),
        None,
        "of several taps",
    ),
    "no tap": (Residual(C(3, 4, 1, padding=1), RELU, TWO[1]), None, "no tap at the output's own"),
    "between taps": (Residual(C(3, 4, 3, padding=1, dilation=2), RELU, TWO[1]), None, "no tap at"),
    "cut border": (Residual(*EVEN), None, "moves borders"),
    "cut border inside": (
        Residual(C(3, 4, 1), RELU, C(4, 4, 4, padding=1), RELU, C(4, 3, 2, padding=1)),
        None,
        "moves borders",
    ),
    "moved border": (Residual(*GROWN, projection=POOL), None, "moves borders"),
}


@pytest.mark.parametrize("name", ["depthwise", "signed", "pooled", "one tap", "folded", "gate"])
def test_the_gap_of_layers_twice_as_large_is_one(name):
    folded, gate = Residual(TWO[0].double(), C(4, 3, 1)), Gate(nn.Linear(3, 4), nn.Linear(3, 4))
    nets = {"folded": folded, "gate": Residual(gate, nn.Linear(4, 3))}
    graphs, _ = parts_of((nets.get(name) or CONVOLUTIONS[name][0]).double())
    verdict = block_verdicts.judged(next(paths_in(graphs[""])))
    *others, last = verdict.layers
    twice = replace(last, weight=2 * last.weight, bias=2 * last.bias)
    assert replace(verdict, layers=[*others, twice]).gap() == pytest.approx(1, abs=SAME)


def test_the_gap_of_a_sum_that_is_zero_is_absolute():
    layers = [C(3, 3, 3, padding=1).double() for _ in range(2)]
    for layer in layers:
        layer.weight.data.zero_(), layer.bias.data.zero_()
    graphs, _ = parts_of(Parallel(*layers))
    verdict = block_verdicts.judged(next(paths_in(graphs[""])))
    assert verdict.gap() == 0
    (layer,) = verdict.layers
    assert replace(verdict, layers=[replace(layer, bias=layer.bias - 3)]).gap() == 3


class ThreeSums(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(x + layer(x))
        return x


def test_several_sums_of_one_module_are_numbered():
    torch.manual_seed(0)
    net, x = nn.Sequential(ThreeSums()), torch.randn(5, 3)
    names, new = ("0", "0 (2)", "0 (3)"), rt.absorb(net)
    found = rt.shortcuts(net)
    assert found.modules == names == (*rt.conversion(new).converted,)
    assert found.around == ("0.layers.0", "0.layers.1", "0.layers.2")
    assert relative_error(new(x), net(x)) < SAME
    kept = nn.Sequential(ThreeSums(), nn.Tanh())
    kept[0].layers = nn.ModuleList(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(3))
    with pytest.warns(NothingConverted):
        assert (*rt.conversion(rt.absorb(kept)).left,) == names


POOLED = partial(F.avg_pool2d, kernel_size=2)
ENTERS = {
    "projection": (Parallel(C(3, 3, 1), TWO[0]), ("parallel",), (2,)),
    "pool": (Parallel(POOL, TWO[0]), ("parallel",), (1,)),
    "scaled": (Parallel(Apply(lambda t: 3 * t), C(3, 3, 1)), ("scaled",), (1,)),
    "norm": (Parallel(nn.BatchNorm2d(3), C(3, 3, 1)), ("normalized",), (1,)),
    "its function": (Parallel(Apply(lambda t: F.batch_norm(t, EACH[:3], EACH[:3])), C(3, 3, 1)),
                     ("normalized",), (1,)),
    "reshaped": (Parallel(Apply(lambda t: t.flatten(2)), nn.Sequential(C(3, 3, 1), Apply(
        lambda t: t.flatten(2)))), ("identity",), (1,)),
    "projected": (Residual(*STRIDED, projection=C(3, 3, 1, 2)), ("projection",), (2,)),
    "pooled": (Residual(*STRIDED, projection=nn.AvgPool2d(2)), ("subsampled",), (2,)),
    "pooled and projected": (Residual(*STRIDED, projection=nn.Sequential(nn.AvgPool2d(2), C(3, 3, 1)
                                                                         )), ("projection",), (2,)),
    "cropped": (Residual(C(3, 3, 2), projection=Apply(lambda t: t[:, :, 1:, 1:])), ("identity",),
                (1,)),
    "cut": (Residual(C(3, 3, 2), projection=Apply(lambda t: t[:, :, :3, :])), ("identity",), (1,)),
    "gated pool": (Parallel(Apply(lambda t: POOLED(t) * POOLED(t).sin()), C(3, 3, 1, 2)), (), ()),
    "no layers": (Parallel(nn.Identity(), nn.ReLU()), (), ()),
    "two streams": (Parallel(C(3, 3, 1), nn.Sequential(C(3, 3, 1), RELU)), ("projection",), (1,)),
}  # fmt: skip


@pytest.mark.parametrize("name", ENTERS)
def test_how_a_shortcut_enters(name):
    net, enters, layers = ENTERS[name]
    found = rt.shortcuts(net.double())
    assert (found.enters, found.layers) == (enters, layers)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_channels_beside_convolutions(name):
    net, extra, words = CONVOLUTIONS[name]
    net = net.double()
    found = rt.shortcuts(net)
    assert words in found.how[0] and found.extra == (extra,)
    if extra is None:
        assert found.answers == ("open",)
        return
    if "units" not in words:
        signs, count = "both signs" if extra == 6 else ">= 0", len(found.around[0].split(", ")) - 1
        ends = f"{signs}, through {count} function{'s' if count == 2 else ''}"
        assert found.how == (f"{extra} channels carry the stream, {ends}",)
    layers = [(key, old) for key, old in net.named_modules() if hasattr(old, "groups")]
    x = torch.randn(2, 3, *(8, 7)[: len(layers[0][1].stride)])
    torch.set_default_dtype(SINGLE)
    new = rt.absorb(net)
    assert relative_error(new(x), net(x)) < SAME and found.gap[0] < SAME
    for key, old in layers:
        layer, more = new.get_submodule(key), extra * (key != layers[-1][0])
        assert layer.out_channels == old.out_channels + more
        assert layer.groups == (old.groups + more if name == "depthwise" and old.groups > 1 else 1)


def test_a_stride_of_the_last_layer_leaves_room_for_a_kernel_beside_it():
    torch.manual_seed(0)
    branch = C(3, 4, 3, padding=1), RELU, C(4, 3, 3, 2, 1)
    net, x = Residual(*branch, projection=C(3, 3, 3, 2, 1)).double(), torch.randn(2, 3, 8, 7)
    assert rt.shortcuts(net).extra == (6,)
    assert relative_error(rt.absorb(net)(x), net(x)) < SAME


class Pooled(nn.Module):
    """A block whose argument has the name of an operation."""

    def forward(self, pooled):
        inner = torch.relu(F.conv2d(pooled, ONES, padding=(1, 0)))
        return pooled + F.conv2d(inner, ONES, padding=(1, 0))


ONES = torch.ones(3, 3, 3, 1).double()
STEMS = {
    "ReLU": (RELU, 3), "MaxPool": (nn.Sequential(RELU, nn.MaxPool2d(2)), 3),
    "AvgPool, dropout": (nn.Sequential(RELU, POOL, nn.Dropout()), 3),
    "sum": (nn.Sequential(RELU, Parallel(nn.Identity(), nn.Sigmoid())), 3),
    "signed sum": (nn.Sequential(RELU, Parallel(nn.Identity(), nn.Tanh())), 6),
    "shift": (nn.Sequential(RELU, Apply(lambda t: t - 1)), 6), "GELU": (nn.GELU(), 6),
    "pool": (POOL, 6), "PReLU": (nn.PReLU(3), 6), "convolution": (C(3, 3, 1), 6),
}  # fmt: skip


@pytest.mark.parametrize("name", STEMS)
def test_streams_that_are_known_to_be_positive_need_half_of_the_channels(name):
    stem, extra = STEMS[name]
    net, x = nn.Sequential(stem, Residual(TWO[0], RELU, TWO[1])), torch.randn(2, 3, 8, 6)
    net = net.double().eval()
    assert rt.shortcuts(net).extra == (extra,)
    assert relative_error(rt.absorb(net)(x), net(x)) < SAME


def test_the_name_of_an_argument_says_nothing_of_its_sign():
    assert rt.shortcuts(Pooled()).extra == (6,)


FOUR = torch.vander(EACH)[:, :3]
FREE = nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False)
SLOPES = {
    "two squares": ([FREE[0], SQUARED, Apply(torch.square), FREE[1]], "branch.1 (pow) has slope 0"),
    "two bounds": ([FREE[0], nn.Sigmoid(), nn.Tanh(), FREE[1]], "behind branch.1 (Sigmoid) a"),
    "offset behind it": ([FREE[0], SQUARED, nn.Linear(4, 3)], "no φ(t) - φ(-t)"),
    "offset before it": ([nn.Linear(3, 4), SQUARED, FREE[1]], "12 hidden units carry"),
    "functions": ([Apply(lambda t: F.linear(t, FOUR)), SQUARED, FREE[1]],
                  "branch.1 (pow) has slope 0"),
    "offset of a function": ([Apply(lambda t: F.linear(t, FOUR, EACH)), SQUARED, FREE[1]],
                             "12 hidden units carry"),
    "offset by name": ([Apply(lambda t: F.linear(t, FOUR, bias=EACH)), SQUARED, FREE[1]],
                       "12 hidden units carry"),
    "offset of a norm": ([FREE[0], nn.BatchNorm1d(4), Apply(torch.square), FREE[1]], "no φ(t)"),
    "offset by a sum": ([FREE[0], Apply(lambda t: (t + 1) ** 2), FREE[1]], "no φ(t) - φ(-t)"),
    "offset in a square": ([nn.Linear(3, 4), Apply(torch.square), FREE[1]], "no φ(t) - φ(-t)"),
    "not elementwise": ([FREE[0], Apply(lambda t: t.square().cumsum(1)), FREE[1]], "(cumsum)"),
    "value at 0": ([FREE[0], SQUARED, Apply(torch.exp), FREE[1]], "no φ(t) - φ(-t)"),
    "slopes by channel": ([FREE[0], SQUARED, nn.PReLU(4), FREE[1]], "channel to channel"),
    "factors": ([FREE[0], Apply(lambda t: t.sin() * t.cos() * t.relu()), FREE[1]], "no φ(t)"),
    "scaled": ([FREE[0], Apply(lambda t: 2 * t), SQUARED, FREE[1]], "branch.2 (pow) has slope 0"),
    "one flat of two": ([Parallel(nn.Sequential(FREE[0], SQUARED, FREE[1]), nn.Sequential(
        FREE[0], nn.ELU(), FREE[1]))], "its function has no φ(t) - φ(-t)"),
    "one bound of two": ([Parallel(nn.Sequential(FREE[0], nn.Tanh(), FREE[1]), nn.Sequential(
        FREE[0], nn.ELU(), FREE[1]))], "its function has no φ(t) - φ(-t)"),
    "gates": ([FREE[0], Apply(lambda t: (EACH * t).sin() * (t + EACH) * t), FREE[1]], "(mul)"),
}  # fmt: skip


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_at_zero(name):
    torch.manual_seed(0)
    branch, words = SLOPES[name]
    net = Residual(*branch).double().eval()
    found = rt.shortcuts(net)
    assert words in found.how[0]
    theorem = words.startswith(("branch", "behind"))
    assert found.answers == ("never" if theorem else "wider" if "carry" in words else "open",)


@pytest.mark.parametrize("bias", [True, False])
def test_an_offset_beside_an_identity_is_one(bias):
    layer = AddIdentity(nn.Linear(3, 3, bias=bias))
    net = Residual(layer, SQUARED, nn.Linear(3, 3, bias=False)).double()
    assert rt.shortcuts(net).answers == ("folds", "wider" if bias else "never")


class ReadTwice(nn.Module):
    """A sum of two layers that a longer sum and a product read."""

    def __init__(self, function):
        super().__init__()
        self.layers, self.function = nn.ModuleList(nn.Linear(3, 3) for _ in range(4)), function

    def forward(self, x):
        a, b, c, d = self.layers
        inner = a(x) + b(x)
        return (x + inner + d(self.function(c(x)))) * inner


def test_a_shortcut_folds_into_a_branch_without_a_function_beside_other_terms():
    torch.manual_seed(0)
    net, x = ReadTwice(torch.tanh), torch.randn(5, 3)
    found, new = rt.shortcuts(net), rt.absorb(net)
    assert found.answers == ("folds", "folds") and found.enters == ("parallel", "identity")
    assert max(found.gap) < SAME and relative_error(new(x), net(x)) < SAME


class Beside(Residual):
    def forward(self, x, other):
        return x + self.branch(x) + other


@pytest.mark.parametrize("product", [torch.matmul, torch.mm, torch.linalg.matmul])
def test_a_shortcut_folds_into_any_product(product):
    torch.manual_seed(0)
    weight, x = torch.randn(3, 3), torch.randn(5, 3)
    net = Residual(Apply(lambda t: product(t, weight)))
    assert rt.shortcuts(net, x).answers == ("folds",)
    torch.testing.assert_close(rt.absorb(net, x)(x), x + x @ weight)


def test_a_shortcut_folds_beside_another_input():
    net, xs = Beside(nn.Linear(3, 3)), (torch.randn(5, 3), torch.randn(5, 3))
    found, new = rt.shortcuts(net), rt.absorb(net)
    assert (found.answers, found.enters, found.layers) == (("folds",), ("identity",), (1,))
    assert relative_error(new(*xs), net(*xs)) < SAME


class Times(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, other):
        return self.block(x) * other


class Between(Times):
    def forward(self, x, other):
        return x + self.block[1](self.block[0](x) * other)


def test_a_stream_from_one_of_two_inputs_is_free():
    assert rt.shortcuts(Between(nn.ModuleList(FREE))).answers == ("open",)
    net = Times(Residual(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))
    assert rt.shortcuts(net).answers == ("never",)


def random_convolutions(seed):
    """A branch and a shortcut of any geometry, with inputs of the sizes at which they fit."""
    source = random.Random(seed)

    def convolution(inputs, outputs, axes):
        sides, dilation = ([source.choice(c) for _ in range(axes)] for c in ((1, 2, 3, 4), (1, 2)))
        half = [(side - 1) * step // 2 for side, step in zip(sides, dilation, strict=True)]
        padding = [source.choice((pad, pad, pad, 0, 1)) for pad in half]
        stride = [source.choice((1, 1, 1, 2)) for _ in range(axes)]
        groups = source.choice((1, 1, 2)) if inputs % 2 == outputs % 2 == 0 else 1
        mode = source.choice(("zeros", "zeros", "zeros", "circular", "reflect"))
        kind = getattr(nn, f"Conv{axes}d")
        return kind(inputs, outputs, sides, stride, padding, dilation, groups, padding_mode=mode)

    torch.manual_seed(seed)
    while True:
        axes, depth = source.choice((1, 1, 2)), source.choice((1, 2, 2, 3))
        widths = [4, *[source.choice((4, 5)) for _ in range(depth - 1)], 4]
        layers = [convolution(*pair, axes) for pair in itertools.pairwise(widths)]
        stride = [math.prod(steps) for steps in zip(*(e.stride for e in layers), strict=True)]
        kinds = nn.ReLU, nn.GELU, nn.ELU, nn.Softplus, lambda: Apply(squared_relu)
        branch = [part for layer in layers for part in (source.choice(kinds)(), layer)][1:]
        one_tap = getattr(nn, f"Conv{axes}d")(4, 4, 1, stride)
        pool = getattr(nn, f"AvgPool{axes}d")(3, 1, 1)
        shortcut = source.choice((nn.Identity(), convolution(4, 4, axes), one_tap, pool))
        block = Parallel(shortcut, nn.Sequential(*branch))
        fitting = []
        for size in range(4, 10):
            x = torch.randn(2, 4, *[size + 1, size][:axes])
            with contextlib.suppress(RuntimeError):  # of a padding by reflection, too
                fitting += [x] if block.first(x).shape == block.second(x).shape else []
        if fitting:
            return nn.Sequential(source.choice((nn.Identity, nn.ReLU))(), block), fitting


@pytest.mark.filterwarnings("ignore::resid_theory.equivalence.NothingConverted")
@pytest.mark.parametrize("seed", range(30))
def test_random_convolutions_are_the_same_wherever_they_fit(seed):
    net, fitting = random_convolutions(seed)
    torch.set_default_dtype(SINGLE)
    new, gap = rt.absorb(net), rt.shortcuts(net).gap
    assert all(relative_error(new(x), net(x)) < 10 * SAME for x in fitting)
    assert gap == (None,) or gap[0] < 10 * SAME


def test_strides_are_compared_at_every_rest_of_a_size():
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 3, 3, padding=1, bias=False))
    even = nn.Conv2d(3, 3, 2, stride=2, bias=False)
    wide = nn.Sequential(nn.AvgPool2d((1, 2)), pooled[1]), C(3, 3, (1, 2), (1, 2), bias=False)
    padded = [nn.Sequential(Apply(lambda x: F.pad(x, (0, 1, 0, 1))), nn.Conv2d(3, 3, 3, stride=2))
              for _ in range(2)]  # fmt: skip
    for net in (Parallel(even, pooled), Parallel(*wide), Parallel(*padded)):
        assert rt.shortcuts(net).answers == ("open",)


@pytest.mark.parametrize("half", [lambda t: t[:, :, ::2], lambda t: t[:, 0:, 0::2]])
def test_a_slice_is_a_layer_where_it_is_sure_to_take_positions(half):
    torch.manual_seed(0)
    layers = nn.Conv1d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv1d(4, 3, 1)
    net, x = Residual(*layers, projection=Apply(half)), torch.randn(2, 3, 7)
    assert rt.shortcuts(net).enters == ("subsampled",)
    assert relative_error(rt.absorb(net)(x), net(x)) < SAME
    # What is behind the samples may be tokens or what a matrix reads.
    half, layers = Apply(lambda t: t[:, ::2]), (nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4))
    found = rt.shortcuts(Residual(*layers, half, projection=half))
    assert (found.answers, found.enters) == (("open",), ("identity",))


@pytest.mark.parametrize(
    "join",
    [torch.subtract, lambda x, y: torch.rsub(y, x), lambda x, y: torch.rsub(y, x, alpha=3),
     lambda x, y: torch.lerp(x, y, 0.3), lambda x, y: torch.multiply(x, 2.0) + y,
     lambda x, y: torch.add(x, y, alpha=3),
     lambda x, y: torch.addcmul(x, y, torch.arange(1.0, 4.0), value=2),
     lambda x, y: torch.addcmul(x, y, torch.arange(1.0, 4.0)),
     lambda x, y: torch.sub(y, x, alpha=0.5), lambda x, y: x.sub(y, alpha=2),
     lambda x, y: torch.stack([x, y]).sum(0), lambda x, y: torch.stack((y, x), -1).mean(dim=-1),
     lambda x, y: torch.stack([x, y], 1).sum([1]), lambda x, y: torch.stack([x, y]).mean(axis=0),
     lambda x, y: torch.stack([x, y, x], dim=1).mean((1,))],
)  # fmt: skip
def test_sums_by_other_names(join):
    torch.manual_seed(0)
    branch = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 3))
    net, x = nn.Sequential(nn.Identity(), Joined(branch, join)), torch.randn(5, 3)
    found = rt.shortcuts(net)
    assert found.answers == ("wider",) and found.modules == ("1",)
    assert relative_error(rt.absorb(net)(x), net(x)) < SAME


@pytest.mark.parametrize("cast", [lambda t: t.double(), lambda t: t.to(torch.float64)])
def test_casts_between_layers_change_nothing(cast):
    torch.manual_seed(0)
    net, x = Residual(nn.Linear(3, 4), Apply(cast), nn.Linear(4, 3)), torch.randn(5, 3)
    assert rt.shortcuts(net).answers == ("folds",)
    assert relative_error(rt.absorb(net)(x), net(x)) < SAME


class Joined(nn.Module):
    def __init__(self, branch, join):
        super().__init__()
        self.branch, self.join = branch, join

    def forward(self, x):
        return self.join(x, self.branch(x))


def test_concatenations_and_encoders_of_torch_are_listed():
    torch.manual_seed(0)
    branch = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 3))
    dense = Joined(branch, lambda x, y: torch.cat([torch.cat([x, y], 1), y], 1))
    found = rt.shortcuts(dense)
    assert found.enters == ("concatenated",) and found.answers == ("open",)
    assert rt.shortcuts(Joined(branch, lambda x, y: sum([x, y]))).enters == ("identity",)
    normed = Joined(branch, lambda x, y: torch.cat([F.layer_norm(x, (3,)), y], 1))
    assert rt.shortcuts(normed).enters == ("concatenated",)
    half = Joined(C(3, 3, 2, 2), lambda x, y: torch.cat([F.avg_pool2d(x, 2), y], 1))
    assert not rt.shortcuts(half).modules  # positions of the stream are gone
    stacks = [
        lambda x, y: torch.stack([x, y]).sum(1), lambda x, y: torch.stack([x, y]).sum(0, True),
        lambda x, y: torch.stack([x, y], -1) @ torch.tensor([0.3, 0.7]),
    ]  # fmt: skip
    for join in stacks:
        assert rt.shortcuts(Joined(branch, join)).enters == ("concatenated",)
    for join in (lambda x, y: torch.cat([y, branch(x)]), lambda x, _: torch.cat([x, 2 * x])):
        assert not rt.shortcuts(Joined(branch, join)).modules
    both = Joined(branch, lambda x, y: 2 * x + F.layer_norm(x, (3,)) + y.tanh())
    assert rt.shortcuts(both).enters == ("normalized",)
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    net, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), torch.ones(2, 3, 4)
    assert rt.shortcuts(net).answers == ("open", "wider") * 2 and not rt.shortcuts(net).untraced
    assert relative_error(rt.absorb(net)(x), net(x)) < SAME


def test_wrapped_and_transposed_layers_are_read():
    branch = nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 3)
    assert rt.shortcuts(nn.DataParallel(Residual(*branch))).answers == ("wider",)
    decoder = nn.TransformerDecoderLayer(4, 2, 8, batch_first=True)
    assert len(rt.shortcuts(decoder).modules) == 3
    assert len(rt.shortcuts(Residual(nn.ConvTranspose2d(3, 3, 1))).modules) == 1
    by_einsum = Apply(lambda x: torch.einsum("od,nd->no", torch.ones(3, 3), x))
    assert len(rt.shortcuts(Residual(by_einsum)).modules) == 1
    with pytest.warns(DeprecationWarning):
        scripted = torch.jit.script(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="net: got a ScriptModule"):
        rt.shortcuts(scripted)


def test_a_net_that_runs_at_no_size_has_no_gap():
    found = rt.shortcuts(Residual(C(3, 4, 3), RELU, C(4, 3, 1)).double())
    assert found.answers == ("wider",) and found.gap == (None,) and "gap" in found.shown()


def test_the_new_net_keeps_dtypes_frozen_weights_and_names():
    branch = nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)
    net = Written(lambda *_: None)
    net.stem.bfloat16()
    net.alias = Apply(lambda h: h)
    net.write = lambda *_: None
    net.block = nn.Sequential(Apply(lambda h: h.double()), Residual(*branch).requires_grad_(False))
    net.unread = nn.Linear(3, 2)
    new, x = rt.absorb(net), torch.randn(5, 3, dtype=torch.bfloat16)
    assert relative_error(new(x), net(x)) < SAME
    assert {*rt.conversion(new).left} == {"unread.weight", "unread.bias"}
    assert {*new.state_dict()} == {*net.state_dict()} - {"unread.weight", "unread.bias"}
    assert not any(p.requires_grad for p in new.block.parameters())
    net = Residual(
        nn.BatchNorm1d(3), *branch, projection=Apply(lambda x: F.linear(x, EACH.diag()[:3, :3]))
    )
    net, x = net.double().eval(), torch.randn(5, 3)
    assert {*rt.absorb(net)._modules["branch"]._modules} == {"1", "2", "3"}  # layers, not the norm
    with pytest.raises(ValueError, match="got 3 axes"):
        rt.absorb(net)(x[None])
    again = nn.Sequential(
        rt.fold(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double().eval()), net
    )
    with pytest.raises(ValueError, match="got 3 axes"):
        rt.absorb(Residual(again[0][0]))(x[None])
    with pytest.raises(ValueError, match="got 3 axes"):
        rt.absorb(Residual(again[0][0], nn.Linear(3, 3)))(x[None])
    half = Residual(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3))
    for made in (half, Residual(Apply(lambda x: F.linear(x, EACH.diag()[:3, :3])))):
        assert all(p.requires_grad for p in rt.absorb(made.double()).parameters())
    relu = nn.ReLU()
    shared = nn.Sequential(
        nn.Sequential(relu, nn.Linear(3, 3)), Residual(nn.Linear(3, 4), relu, branch[2])
    )
    new = rt.absorb(shared.double())
    assert isinstance(new, nn.Sequential) and relative_error(new(x), shared(x)) < SAME
    assert [key for key, _ in new.named_modules(remove_duplicate=False) if "1." in key] == [
        "1.branch", "1.branch.0", "1.branch.0 (2)", "1.branch.2",
    ]  # fmt: skip
    noisy = Joined(nn.Sequential(*branch), lambda x, y: x + y + F.dropout(x, 0.5, noisy.training))
    with pytest.raises(ValueError, match="dropout would stay in train mode"):
        rt.absorb(noisy)
    assert not rt.absorb(noisy.eval()).training  # where a function is on whatever the mode is
    kept = Joined(noisy.branch, lambda x, y: x + F.dropout(y, 0.5, True))
    kept = nn.Sequential(kept, Residual(*branch)).eval()
    assert "0" in rt.conversion(rt.absorb(kept)).left


@pytest.mark.parametrize("between", [[], [nn.Tanh()]])
def test_a_block_that_runs_twice_is_absorbed_at_both_places(between):
    torch.manual_seed(0)
    block, x = Residual(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(5, 3)
    net = nn.Sequential(nn.ReLU(), block, *between, block)
    new = rt.absorb(net)
    assert len(rt.conversion(new).converted) == 2 and relative_error(new(x), net(x)) < SAME


def without_norms(net):
    return not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in net.modules())


def test_an_absorbed_chain_is_sequential_so_it_folds_and_is_measured():
    torch.manual_seed(0)
    relu, branch = nn.ReLU(), (nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))
    net = scattered(nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), relu, Block(nn.Sequential(*branch)), relu,
        nn.Linear(4, 2),
    ))  # fmt: skip
    new, x = rt.absorb(net), torch.randn(5, 3)
    folded, layers = rt.fold(new), ("0", "3.branch.0", "3.branch.3", "5")
    assert without_norms(folded) and relative_error(folded(x), net(x)) < SAME
    J = [torch.autograd.functional.jacobian(net, row[None])[0, :, 0] for row in x]
    exact = [(j @ row).norm() / j.norm() / row.norm() for j, row in zip(J, x, strict=True)]
    for chain in (new, folded):
        found = rt.interlayer_cushions(chain, x, start=0, kappa="none", method="exact")
        assert relative_error(found.values[0], torch.stack(exact)) < SAME
        noise = rt.stability.activation_noise(chain, x, levels=[0.1], draws=1, probes=2)
        assert noise.places == rt.layer_cushions(chain, x).layers == layers


def test_what_to_do_for_a_norm_that_does_not_fold():
    torch.manual_seed(0)
    kept = Block(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)))
    gone = Block(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    net = scattered(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), kept, gone))
    x = torch.randn(5, 4)
    for new in (rt.absorb(rt.fold(net)), rt.fold(rt.absorb(net))):
        assert without_norms(new) and relative_error(new(x), net(x)) < SAME
    with pytest.raises(ValueError, match="net: got GraphModule, .* blocks call modules only"):
        rt.stability.activation_noise(new, x)
    net = scattered(nn.Sequential(DiracLayer(4), nn.BatchNorm2d(4)))
    with pytest.raises(ValueError, match=r"rt.absorb\(net\) makes one of a layer of your own"):
        rt.fold(net)
    new, x = rt.fold(rt.absorb(net)), torch.randn(2, 4, 7, 7)
    assert without_norms(new) and relative_error(new(x), net(x)) < SAME


class Stem(nn.Module):
    """A block that reads sizes of the net's input."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = x.sin()
        return h + self.down(torch.relu(self.up(h)) * x.shape[0])


BIASED, PAD = (C(3, 3, 1), C(3, 3, 3, padding=1)), torch.ops.aten.pad.default
NO_LAYER = {
    "a bias in front of a padding": (Residual(*BIASED), "as a bias in front of a padding"),
    "small weights": (Parallel(C(3, 3, 1), nn.Sequential(*BIASED)), "a bias in front of a padding"),
    "axes": (Residual(nn.Conv1d(3, 3, 1), nn.Linear(7, 7)), "a matrix and a convolution follow"),
    "two axes": (Residual(nn.Linear(7, 7), RELU, nn.Conv1d(3, 3, 1)), "a convolution follow"),
    "shapes": (Residual(nn.Linear(3, 4), nn.Linear(5, 3)), "do not run alone: einsum()"),
    "padding by ones": (Residual(Apply(lambda t: F.pad(t, (1,) * 4, value=1.0)), C(3, 3, 3)),
                        "its padding is not by zeros"),
    "padding by values": (Residual(Apply(lambda t: F.pad(t, (1,) * 4, "reflect")), C(3, 3, 3)),
                          "its padding is not by zeros"),
    "even side": (Residual(C(3, 3, (2, 3), padding="same")), "its padding is not symmetric"),
    "padding of torch by ones": (Residual(Apply(lambda t: PAD(t, (1,) * 4, "constant", 1.0)),
                                          C(3, 3, 3)), "its padding is not by zeros"),
    "padding of torch by values": (Residual(Apply(lambda t: PAD(t, (1,) * 4, "reflect")),
                                            C(3, 3, 3)), "its padding is not by zeros"),
    "by position": (Residual(Apply(lambda t: t + EACH), C(3, 3, 1)), "one map for all positions"),
    "size of the input": (Stem(), "its sizes depend on the input 'x'"),
    "no layer": (Residual(Apply(lambda t: 2 * t), RELU, nn.Linear(3, 3)), "number of channels"),
    "broadcast": (Parallel(C(3, 1, 1), C(3, 4, 1)), "different strides or channels"),
    "one-sided": (Residual(Apply(lambda t: F.pad(t, (1, 0, 0, 1))), C(3, 3, 2)),
                  "no padding of one convolution gives its size (4, 4)"),
    "crop of rows": (Residual(C(3, 3, (3, 1)), projection=Apply(lambda t: F.pad(t, (0, 0, -1, -1))
                                                                )), "it crops its input"),
    "crop of columns": (Residual(C(3, 3, (1, 3)), projection=Apply(lambda t: F.pad(t, (-1, -1)))),
                        "it crops its input"),
    "vector": (Residual(Apply(lambda t: F.linear(t, EACH[:3]))), "number of channels"),
    "product with a vector": (Residual(Apply(lambda t: t @ EACH[:3])), "number of channels"),
    "vector behind a layer": (Residual(nn.Linear(3, 3), Apply(lambda t: t @ EACH[:3])),
                              "matmul is not one map for all positions"),
    "norm of a product": (Residual(nn.BatchNorm1d(3), Apply(lambda t: t @ EACH[:3])),
                          "matmul is not one map for all positions"),
    "many matrices": (Residual(Apply(lambda t: t @ torch.ones(4, 3, 3).double())), "different"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_LAYER)
def test_what_no_layer_is(name):
    torch.manual_seed(0)
    net, words = NO_LAYER[name]
    for weight in net.double().parameters() if name == "small weights" else ():
        weight.data.normal_().mul_(1e-8)
    found = rt.shortcuts(net)
    assert found.answers == ("open",) and words in found.how[0]


def sides(conv):
    return conv.kernel_size, conv.padding, conv.stride, conv.groups, conv.padding_mode


DIAGONAL = C(4, 4, 1, groups=2)
DIAGONAL.weight.data *= torch.eye(2).repeat(2, 1)[..., None, None]
ONE_LAYER = {
    "dilated": (Residual(C(4, 4, 3, padding=2, dilation=2)), (5, 5), (2, 2)),
    "groups": (Residual(C(4, 4, 3, padding=1, groups=2)), (3, 3), (1, 1), (1, 1), 2),
    "groups of more": (Parallel(DIAGONAL, C(4, 4, 1, groups=4)), (1, 1), (0, 0), (1, 1), 4),
    "groups inside": (Residual(C(4, 8, 1), C(8, 8, 1, groups=8), C(8, 4, 1)), (1, 1)),
    "groups of channels": (
        Parallel(nn.Sequential(C(4, 4, 1, groups=4), C(4, 6, 1)), C(4, 6, 1)), (1, 1)
    ),
    "groups of outputs": (
        Parallel(nn.Sequential(C(4, 3, 1), C(3, 3, 1, groups=3)), C(4, 3, 1)), (1, 1)
    ),
    "groups and none": (
        Parallel(C(4, 4, 3, padding=1, groups=2), C(4, 4, 3, padding=1)), (3, 3), (1, 1),
    ),
    "groups of two kinds": (
        Parallel(C(4, 4, 3, padding=1, groups=4), C(4, 4, (1, 3), padding=(0, 1), groups=2)),
        (3, 3), (1, 1), (1, 1), 2,
    ),
    "oblong": (Parallel(C(4, 5, (1, 3), padding=(0, 1)), C(4, 5, (5, 1), padding=(2, 0))), (5, 3),
               (2, 1)),
    "in turn": (
        Residual(C(4, 5, (3, 1), padding=(1, 0), bias=False), C(5, 4, (1, 5), padding=(0, 2))),
        (3, 5), (1, 2),
    ),
    "strides in turn": (
        Parallel(nn.Sequential(C(4, 5, 1, 2), C(5, 4, 1, (1, 3))), C(4, 4, 1, (2, 6))),
        (1, 1), (0, 0), (2, 6),
    ),
    "one size of two": (Parallel(C(4, 4, 1, 2), C(4, 4, 2, 2)), (2, 2), (0, 0), (2, 2)),
    "the other size": (Parallel(C(4, 4, 1, 2), C(4, 4, 2, 2, 1)), (2, 2), (1, 1), (2, 2)),
    "same": (Residual(C(4, 4, (3, 5), padding="same", dilation=(2, 1))), (5, 5), (2, 2)),
    "valid": (Parallel(C(4, 4, 3, padding="valid"), C(4, 4, 3)), (3, 3), (0, 0)),
    "circular": (
        Residual(C(4, 4, 3, padding=1, padding_mode="circular")),
        (3, 3), (1, 1), (1, 1), 1, "circular",
    ),
    "circular along an axis": (
        Residual(C(4, 4, (3, 1), padding=(1, 0), padding_mode="circular")),
        (3, 1), (1, 0), (1, 1), 1, "circular",
    ),
    "groups of two sides": (
        Parallel(C(4, 4, (1, 2), 2, groups=2), C(4, 4, 2, 2, groups=2)), (2, 2), (0, 0), (2, 2), 2,
    ),
    "pad": (Residual(Apply(lambda t: F.pad(t, (1, 1, 2, 2))), C(4, 4, (5, 3))), (5, 3), (2, 1)),
    "pool": (Parallel(nn.AvgPool2d((1, 2), (3, 2)), C(4, 4, 1, (3, 2))), (1, 2), (0, 0), (3, 2)),
    "pad an axis": (Residual(Apply(lambda t: F.pad(t, (1, 1))), C(4, 4, (1, 3))), (1, 3), (0, 1)),
    "padding of torch": (
        Residual(Apply(lambda t: PAD(t, (1, 1, 2, 2), "constant", 0.0)), C(4, 4, (5, 3))),
        (5, 3), (2, 1),
    ),
    "slice": (Parallel(Apply(lambda t: t[:, :, ::2, :]), C(4, 4, 1, (2, 1))), (1, 1), (0, 0),
              (2, 1)),
    "pool by a function": (
        Parallel(Apply(lambda t: F.avg_pool2d(t, (3, 2), 2, (1, 0))), C(4, 4, 1, 2)),
        (3, 2), (1, 0), (2, 2),
    ),
    "no options": (
        Parallel(Apply(lambda t: F.conv2d(t, FOURS, groups=2)), C(4, 4, (3, 1), groups=2)),
        (3, 1), (0, 0), (1, 1), 2,
    ),
    "norm": (Residual(nn.BatchNorm2d(4), C(4, 4, 1)), (1, 1)),
    "statistics": (Residual(Apply(lambda t: F.batch_norm(t, EACH, EACH)), C(4, 4, 1)), (1, 1)),
    "tensors": (
        Residual(Apply(lambda t: F.conv2d(t, FOURS, None, 1, (1, 0), 1, 2))),
        (3, 1), (1, 0), (1, 1), 2,
    ),
}  # fmt: skip
FOURS = torch.arange(24.0).view(4, 2, 3, 1).double()


@pytest.mark.parametrize("name", ONE_LAYER)
def test_what_one_convolution_is(name):
    torch.manual_seed(0)
    net, *shape = ONE_LAYER[name]
    side = {"the other size": 13}.get(name, 12)
    net, x = nn.Sequential(net).double().eval(), torch.randn(2, 4, side, side)
    torch.set_default_dtype(SINGLE)
    new = rt.absorb(net)
    (made,) = (part for part in new.modules() if isinstance(part, C))
    default = (made.padding, *sides(C(4, 4, 1))[2:])
    assert sides(made) == (*shape, *default[len(shape) - 1 :])
    found = rt.shortcuts(net)
    assert relative_error(new(x), net(x)) < SAME and found.gap[0] < SAME and found.extra == (0,)


def test_a_padding_of_three_axes():
    torch.manual_seed(0)
    pad = Apply(lambda t: F.pad(t, (1, 1, 0, 0, 2, 2)))
    net, x = Residual(pad, nn.Conv3d(3, 3, (5, 1, 3))).double(), torch.randn(2, 3, 6, 4, 5)
    assert rt.shortcuts(net).answers == ("folds",)
    assert relative_error(rt.absorb(net)(x), net(x)) < SAME


@pytest.mark.parametrize("axes", range(4))
@pytest.mark.parametrize("kind", ["module", "function"])
def test_a_norm_in_front_of_a_function(axes, kind):
    torch.manual_seed(0)
    norm = getattr(nn, f"BatchNorm{max(axes, 1)}d")(3)
    if kind == "function":
        norm = Apply(lambda t: F.batch_norm(t, EACH[:3], EACH[1:]))
    layer = getattr(nn, f"Conv{axes}d")(3, 3, 1) if axes else nn.Linear(3, 3)
    net = scattered(Residual(norm, nn.ReLU(), layer).double())
    x = torch.randn(4, 3, 5, 4, 3)[(..., *[0] * (3 - axes))]
    torch.set_default_dtype(SINGLE)
    assert rt.shortcuts(net).extra == (3,)
    assert relative_error(rt.absorb(net)(x), net(x)) < SAME


@pytest.mark.parametrize("kind", ["module", "function"])
@pytest.mark.parametrize("axes", range(4))
def test_a_norm_behind_a_function_with_no_layer_behind_it(axes, kind):
    torch.manual_seed(0)
    norm = getattr(nn, f"BatchNorm{max(axes, 1)}d")(3)
    if kind == "function":
        norm = Apply(lambda t: F.batch_norm(t, EACH[:3], EACH[1:]))
    layer = getattr(nn, f"Conv{axes}d")(3, 3, 1) if axes else nn.Linear(3, 3)
    net = scattered(Residual(layer, nn.ReLU(), norm).double())
    net = nn.Sequential(net, nn.Flatten(), nn.Linear(3 * (1, 5, 20, 60)[axes], 2))
    nn.init.orthogonal_(layer.weight.data.flatten(1))
    x, found = torch.randn(4, 3, 5, 4, 3)[(..., *[0] * (3 - axes))], rt.shortcuts(net)
    assert (found.answers, found.extra) == (("wider",), (3,))
    assert relative_error(rt.absorb(net)(x), net(x)) < SAME


def test_layers_that_no_convolution_is():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 5)
    reflected, circular = (nn.Conv2d(3, 3, 3, padding=1, padding_mode=mode)
                           for mode in ("reflect", "circular"))  # fmt: skip
    net, mixed = Residual(reflected), Residual(Parallel(reflected, circular))
    assert relative_error(rt.absorb(net)(x), net(x)) < SAME
    assert "by circular and by reflect" in rt.shortcuts(mixed).how[0]
    cropped = Residual(nn.Conv2d(3, 3, 3), projection=Apply(lambda t: F.pad(t, (-1,) * 4)))
    assert "it crops its input" in rt.shortcuts(cropped).how[0]
    slopes = Residual(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 3))
    assert "channel to channel" in rt.shortcuts(slopes).how[0]
    twice = Residual(nn.Linear(3, 4), Apply(lambda t: F.relu(t) + 1), nn.Linear(4, 3))
    x = torch.randn(4, 3)
    assert relative_error(rt.absorb(twice)(x), twice(x)) < SAME


@pytest.mark.parametrize("bias", [False, True])
def test_absorbed_layers_have_a_bias_where_one_was_trained(bias):
    layer = nn.Linear(3, 3, bias=bias)
    for zero in [layer.bias] if bias else []:
        nn.init.zeros_(zero)
    net = nn.Sequential(Block(layer), nn.ReLU())
    assert list(rt.absorb(net).state_dict()) == list(net.state_dict())
