"""Differences of two nets whose outputs are nests: each leaf, gradients, and what is round-off."""

import copy
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tolerances import round_off
from torch import Tensor, nn
from torch.nn.utils import parametrize

import resid_theory as rt
from resid_theory.equivalence import Gap

WIDTH = 3


class Cache:
    """An object that holds tensors in a list, and itself."""

    def __init__(self, tensors):
        self.layers, self.me = list(tensors), [self]


@dataclass
class Output:
    many: list[Tensor]
    name: str = "an output"


class ModelOutput(OrderedDict):
    """A mapping with attributes, as transformers have it."""


FORMS = {
    "tensor": (lambda y: y, ""),
    "tuple": (lambda y: (y.detach().sign(), None, y), "[2]"),
    "nested": (lambda y: {"a": [y.argmax(1), {"b": (y,)}], "n": 3}, "a[1].b[0]"),
    "dataclass": (lambda y: Output([y, 2 * y]), "many[0]"),
    "model output": (lambda y: ModelOutput(logits=y, past=Cache([y])), "past.layers[0]"),
    "complex": (lambda y: {"z": torch.complex(torch.zeros_like(y), y)}, "z"),
    "double and half": (lambda y: {"h": y.half() * 0, "y": y}, "y"),
    "number": (lambda y: {"loss": y.sum(), "value": float(y.detach()[0, 0])}, "value"),
    "array": (lambda y: [y, np.asarray(y.detach())], "[1]"),
    "masked": (lambda y: {"m": y.masked_fill(torch.eye(4, WIDTH) > 0, -torch.inf)}, "m"),
}


class Net(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.body, self.form = nn.Linear(WIDTH, WIDTH), form

    def forward(self, x):
        return self.form(self.body(x))


def pair(form, change):
    """Two nets that differ by a factor at every entry of the output."""
    torch.manual_seed(0)
    one = Net(form)
    other = copy.deepcopy(one)
    with torch.no_grad():
        for p in other.parameters():
            p *= 1 + change
    return one, other, torch.randn(4, WIDTH)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("change", [0.0, 1e-9, 0.5])
def test_every_leaf_is_compared(name, change):
    form, leaf = FORMS[name]
    one, other, x = pair(form, change)
    gap = rt.check_equivalence(one, other, x, loss=lambda output, _: output.sum())
    assert leaf in gap.by_output
    assert abs(gap.by_output[leaf] - change) <= round_off(100)
    assert abs(gap.outputs - change) <= round_off(100) and not gap.notes
    assert set(gap.by_parameter) == {"body.weight", "body.bias"}


@pytest.mark.parametrize("batches", ["dict", "dicts"])
def test_batches_of_dicts(batches):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.map = nn.Embedding(5, WIDTH), nn.Linear(WIDTH, 5)

        def forward(self, ids, mask=None):
            return {"logits": self.map(self.table(ids)) * mask[..., None], "hidden": None}

    one = Named()
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.map.bias[2] += 1.0
    ids = torch.arange(8).view(4, 2) % 5
    whole = {"ids": ids, "mask": torch.ones(4, 2)}
    data = whole if batches == "dict" else [
        {key: value[some] for key, value in whole.items()} for some in (slice(3), slice(3, None))
    ]  # fmt: skip
    assert rt.check_equivalence(one, one, data).largest == 0
    gap, at_once = (rt.check_equivalence(one, other, each) for each in (data, whole))
    assert gap.by_parameter == pytest.approx(at_once.by_parameter)  # batches of 3 and 1
    assert 0 < gap.gradients == max(gap.by_parameter.values())
    assert set(gap.by_output) == {"logits", "hidden"} and gap.by_output["hidden"] == 0
    logits = one(**whole)["logits"].detach()
    assert gap.by_output["logits"] == pytest.approx(1 / float(logits.abs().max()))
    assert f"outputs         {gap.outputs:.4g}" in repr(gap) and "logits" in repr(gap)


@pytest.mark.parametrize("leaf", ["a", torch.float32, None, True])
def test_leaves_without_numbers(leaf):
    one, _, x = pair(lambda y: (y, leaf), 0.0)
    other = copy.deepcopy(one)
    assert rt.check_equivalence(one, other, x).largest == 0
    other.form = lambda y: (y, {"a": "b", torch.float32: torch.half, True: False}.get(leaf, "a"))
    if leaf is None:
        with pytest.raises(ValueError, match="gives str as output '\\[1\\]', needs NoneType"):
            rt.check_equivalence(one, other, x)
    else:
        assert rt.check_equivalence(one, other, x).by_output["[1]"] >= 1


def test_leaves_that_cannot_be_compared_are_noted():
    one, other, x = pair(lambda y: [y, {1, 2}], 0.0)
    assert rt.check_equivalence(one, other, x).notes == ("output '[1]' is not compared",)
    other.form = lambda y: [y]
    with pytest.raises(ValueError, match="gives nothing as output '\\[1\\]', needs set"):
        rt.check_equivalence(one, other, x)


@pytest.mark.parametrize("form", [lambda y: iter([y]), lambda y: []])
def test_outputs_of_which_nothing_is_compared_are_refused(form):
    one, other, x = pair(form, 1.0)
    with pytest.raises(ValueError, match="^net_a: gives .*, needs an output that can be compared"):
        rt.check_equivalence(one, other, x)


def test_a_loss_of_tensors_does_not_take_other_outputs():
    one, other, x = pair(FORMS["nested"][0], 1.0)
    with pytest.raises(ValueError, match="net_a: gives dict; the loss 'square' needs a tensor"):
        rt.check_equivalence(one, other, (x, x), loss="square")


def test_a_part_without_entries_is_equal():
    one, other, x = pair(lambda y: (y, y[:0]), 0.5)
    assert rt.check_equivalence(one, other, x).by_output == {"[0]": 0.5, "[1]": 0.0}


def test_outputs_without_gradients():
    one, other, x = pair(lambda y: y.argmax(1), 0.5)
    gap = rt.check_equivalence(one, other, x)
    assert gap.largest == 0 and gap.gradients == 0
    with pytest.raises(ValueError, match="steps: got 1, but no output has a gradient"):
        rt.check_equivalence(one, other, x, steps=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    cut = copy.deepcopy(one)
    one.form, cut.form = lambda y: y, lambda y: y.detach()
    assert rt.check_equivalence(one, cut, x).gradients == 1  # all of it


def test_round_off_of_a_gradient_that_cancels_is_no_difference():
    """A bias in front of BatchNorm has the gradient 0: what is left of it is round-off."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, 50), nn.BatchNorm1d(50), nn.Tanh(), nn.Linear(50, 1))
    turned = copy.deepcopy(net)
    with torch.no_grad():  # the same function with the units in another order
        for tensor in (turned[0].weight, turned[0].bias):
            tensor.copy_(tensor.flip(0))
        turned[3].weight.copy_(turned[3].weight.flip(1))
        turned[0].bias += 1.0  # which BatchNorm takes away again
    x = torch.randn(64, WIDTH)
    gap = rt.check_equivalence(net, turned, x)
    assert gap.outputs < 1e-12 and gap.by_parameter["0.bias"] < 1e-12
    assert gap.by_parameter["0.weight"] > 0.1  # in another order


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_relu_that_round_off_switches_is_noted(dtype):
    net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1)).to(dtype)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -1.0]]))
    moved = copy.deepcopy(net)
    with torch.no_grad():
        moved[0].weight[0, 0] += 1e-6
    x = torch.ones(3, 2, dtype=dtype)  # the unit is at its kink
    gap = rt.check_equivalence(net, moved, x)
    assert gap.input_gradient >= 1
    noted = any("may switch ReLUs" in note for note in gap.notes)
    assert noted == (dtype == torch.float32)


def test_inputs_that_a_net_does_not_take_are_refused():
    net, other = nn.Linear(WIDTH, 2), nn.Linear(WIDTH + 1, 2)
    with pytest.raises(ValueError, match=r"^data x: net_b does not take samples of shape \(3,\)"):
        rt.check_equivalence(net, other, torch.ones(3, WIDTH))
    with pytest.raises(ValueError, match="^data x: net_a does not take a mapping with 'image'"):
        rt.check_equivalence(net, net, {"image": torch.ones(3, WIDTH)})


def test_a_gap_hides_no_nan():
    net = nn.Linear(2, 2)
    broken = copy.deepcopy(net)
    with torch.no_grad():
        broken.bias[0] = torch.nan
    assert rt.check_equivalence(net, broken, torch.ones(1, 2)).largest == float("inf")


class Symmetric(nn.Module):
    def forward(self, w):
        return w.triu() + w.triu(1).T


def test_equal_nets_have_no_gap_whatever_they_draw_and_train():
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(), nn.Linear(WIDTH, WIDTH)).train()
    parametrize.register_parametrization(net[2], "weight", Symmetric())
    x, settings = torch.randn(4, WIDTH), {"steps": 2, "optimizer": torch.optim.Adam}
    assert rt.check_equivalence(net, copy.deepcopy(net), x, **settings).largest == 0
    gap = rt.check_equivalence(net, rt.fold(net), x)
    # The optimizer sees another tensor: its gradient is no difference of the nets.
    assert gap.gradients is None and gap.largest == 0


def test_the_largest_of_a_gap():
    gap = Gap(outputs=1.0, input_gradient=2.0, gradients=None, steps=torch.tensor([0.5, 3.0]))
    assert gap.largest == 3.0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no-grad", "infer"])
def test_the_gap_is_the_same_wherever_the_caller_stands(mode):
    net, x = rt.simplified_net(8, identity="residual"), torch.ones(1, 3, 8, 8)
    plain = rt.to_plain(net)
    outside = rt.check_equivalence(net, plain, x)
    with mode():
        assert rt.check_equivalence(net, plain, x).largest == outside.largest
