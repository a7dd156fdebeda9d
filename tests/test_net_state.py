"""State of a net: every bit is compared, what changed is named, and all is put back."""

import math

import pytest
import torch
from torch import nn

from resid_theory.runtime.net_state import NetAttributes, NetState, changeable_buffers, copied

F32, F64 = torch.float32, torch.float64
TENSORS = {
    "eight bytes": lambda: torch.zeros(3, dtype=F64),
    "pairs of four": lambda: torch.zeros(4, dtype=F32),
    "three of four": lambda: torch.zeros(3, dtype=F32),
    "three of two": lambda: torch.zeros(3, dtype=torch.bfloat16),
    "bytes": lambda: torch.zeros(3, dtype=torch.float8_e5m2),
    "turned": lambda: torch.zeros(2, 4, dtype=F32).T,
    "behind one": lambda: torch.zeros(5, dtype=F32)[1:],
    "behind nine": lambda: torch.zeros(13, dtype=F32)[9:],
    "complex": lambda: torch.zeros(3, dtype=torch.complex128),
    "conjugated": lambda: torch.zeros(3, dtype=torch.complex64).conj(),
    "integers": lambda: torch.zeros(3, dtype=torch.int16),
    "flags": lambda: torch.zeros(3, dtype=torch.bool),
    "nothing": lambda: torch.zeros(0, dtype=F32),
}


@pytest.mark.parametrize("kind", TENSORS)
@pytest.mark.parametrize("start", [0.0, math.nan])
def test_the_last_bit_of_a_tensor_counts(kind, start):
    net = nn.Module()
    net.register_buffer("x", TENSORS[kind]())
    if net.x.is_floating_point() or net.x.is_complex():
        net.x.fill_(start)
    state = NetState(net)
    assert state.change() == ""  # also where it is no number
    if not net.x.numel():
        return
    before, last = net.x.clone(), net.x.view(-1) if net.x.is_contiguous() else net.x.T.view(-1)
    if net.x.is_floating_point() and start == 0:
        last[-1] = -0.0  # equal as a number
    else:
        last[-1] = 1
    assert state.change() == "'x' has other values"
    state.put_back()
    assert state.change() == "" and net.x.dtype == before.dtype
    assert NetState(net).change() == ""


class Layer(nn.Module):
    constant_buffers = ("kernel",)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2))
        self.register_buffer("kernel", torch.ones(1))
        self.register_buffer("mean", torch.ones(2))
        self.count, self.scale, self.word, self.kept = 1, math.nan, "a", torch.ones(2)
        self.nothing, self.function = None, math.sin


def replace_weight(layer):
    layer.weight = nn.Parameter(layer.weight.detach().clone())


def kind_of(words):
    return "'{}weight' is " + words + " and was ((3, 2), torch.float64, cpu, trainable)"


CHANGES = {
    "parameter": (replace_weight, "'{}weight' is another object"),
    "buffer": (lambda m: setattr(m, "mean", torch.ones(2)), "'{}mean' is another object"),
    "gone": (lambda m: delattr(m, "mean"), "'{}mean' is another object"),
    "new": (lambda m: m.register_buffer("more", torch.ones(1)), "'{}more' is another object"),
    "shape": (lambda m: setattr(m.weight, "data", torch.ones(2, 2)),
              kind_of("((2, 2), torch.float64, cpu, trainable)")),
    "dtype": (lambda m: setattr(m.weight, "data", m.weight.data.float()),
              kind_of("((3, 2), torch.float32, cpu, trainable)")),
    "frozen": (lambda m: m.weight.requires_grad_(False),
               kind_of("((3, 2), torch.float64, cpu, not trainable)")),
    "values": (lambda m: m.weight.data.mul_(2), "'{}weight' has other values"),
    "mean": (lambda m: m.mean.mul_(2), "'{}mean' has other values"),
    "constant": (lambda m: m.kernel.mul_(2), ""),
    "number": (lambda m: setattr(m, "count", 2), "'{}count' is another value"),
    "equal number": (lambda m: setattr(m, "count", 1.0), "'{}count' is another value"),
    "flag": (lambda m: setattr(m, "count", True), "'{}count' is another value"),
    "word": (lambda m: setattr(m, "word", "b"), "'{}word' is another value"),
    "tensor": (lambda m: setattr(m, "kept", torch.ones(2)), "'{}kept' is another value"),
    "gone number": (lambda m: delattr(m, "count"), "'{}count' is another value"),
    "function": (lambda m: setattr(m, "function", math.cos), ""),
    "something": (lambda m: setattr(m, "nothing", 3), ""),
}  # fmt: skip


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_the_first_change_is_named(change, inside):
    layer, (call, says) = Layer(), CHANGES[change]
    state = NetState(nn.Sequential(nn.Identity(), layer) if inside else layer)
    assert state.change() == ""
    call(layer)
    assert state.change() == says.format("1." if inside else "")


def test_another_layer_is_another_object():
    net = nn.Sequential(nn.Tanh(), nn.Sequential(nn.Tanh()))
    state = NetState(net)
    net[1][0] = nn.Tanh()
    assert state.change() == "'1.0' is another object"


def test_overwritten_parameters_are_named_and_put_back_where_asked_for():
    net = nn.Sequential(Layer(), Layer())
    state = NetState(net)
    net[0].mean.mul_(3)
    assert state.overwritten() == ""
    net[1].weight.data.mul_(2)
    assert state.overwritten() == "1.weight"
    state.put_back(weights=False)
    assert (net[0].mean.sum(), net[1].weight.sum()) == (2, 12)
    state.put_back()
    assert net[1].weight.sum() == 6 and state.change() == state.overwritten() == ""
    net[1].weight.data = torch.zeros(5)
    state.put_back()
    assert torch.equal(net[1].weight, torch.ones(3, 2))


def test_attributes_come_back_in_the_same_containers():
    layer, other = Layer(), object()
    layer.cache, layer.rows = {"a": [torch.ones(1)], "n": {"b": 2}}, [other]
    layer.pair, layer.names = (torch.ones(1),), ["x"]
    cache, inner, pair, nested = layer.cache, layer.cache["a"], layer.pair, layer.cache["n"]
    rows, names, one = layer.rows, layer.names, inner[0]
    net = nn.Sequential(layer)
    attributes = NetAttributes(net)
    layer.cache["a"].append(torch.zeros(1))
    layer.cache["c"], layer.cache["n"]["b"] = torch.zeros(2), torch.zeros(3)
    layer.rows.append(torch.ones(2))
    layer.names.append("y")
    layer.pair, layer.count, layer.word = (torch.zeros(1),), 7, None
    layer.more, layer.plain, layer.nothing, layer.function = torch.ones(1), 3, other, math.cos
    attributes.put_back()
    assert layer.cache is cache and cache["a"] is inner and cache["n"] is nested
    assert list(cache) == ["a", "n"] and inner == [one] and nested == {"b": 2}
    assert layer.rows is rows and rows == [other] and layer.pair is pair
    assert (layer.count, layer.word) == (1, "a")
    assert not hasattr(layer, "more") and not hasattr(layer, "plain")
    # Objects that hold no tensors and no numbers stay as they are.
    assert layer.names is names and names == ["x", "y"]
    assert layer.nothing is other and layer.function is math.cos
    written = {"pair", "count", "word", "more", "plain", "nothing", "function"}
    assert attributes.written == {("0", name) for name in written}


def test_constant_buffers_are_left_out_by_their_full_names():
    assert list(changeable_buffers(Layer())) == ["mean"]
    nested = nn.Sequential(nn.Sequential(Layer()), Layer())
    assert list(changeable_buffers(nested)) == ["0.0.mean", "1.mean"]


def test_a_copy_has_no_graphs_wherever_the_net_keeps_them():
    layer = Layer()
    graph = layer.weight * 2
    layer.last, layer.cache = graph, {"a": [graph, layer.weight * 3]}
    layer.cache["self"] = layer.cache  # found once
    layer.plain = torch.zeros(2)
    copy = copied(nn.Sequential(layer))[0]
    assert copy.last.grad_fn is None and torch.equal(copy.last, graph)
    assert copy.cache["a"][0] is copy.last and copy.cache["self"] is copy.cache
    assert torch.equal(copy.cache["a"][1], 3 * layer.weight)
    assert copy.weight is not layer.weight and torch.equal(copy.weight, layer.weight)
    assert copy.plain is not layer.plain and layer.last is graph


def test_what_measuring_itself_writes_is_no_change():
    layer = Layer()
    state = NetState(layer)
    layer.count = 7
    state.attributes.put_back()
    assert (layer.count, state.change()) == (1, "")
    layer.count = 8
    assert state.change() == ""
