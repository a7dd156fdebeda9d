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
from resid_theory.identity import AddIdentity, with_identity

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


@pytest.mark.parametrize(
    ("form", "kind"),
    [(lambda y: iter([y]), "list_iterator"), (lambda y: [], "nothing"),
     (lambda y: [iter([y]), {1}], "list_iterator, set")],
)  # fmt: skip
def test_outputs_of_which_nothing_is_compared_are_refused(form, kind):
    one, other, x = pair(form, 1.0)
    with pytest.raises(ValueError, match=f"^net_a: gives {kind}, needs an output that can be comp"):
        rt.check_equivalence(one, other, x)


def test_a_loss_of_tensors_does_not_take_other_outputs():
    one, other, x = pair(FORMS["nested"][0], 1.0)
    with pytest.raises(ValueError, match="net_a: gives dict; the loss 'square' needs a tensor"):
        rt.check_equivalence(one, other, (x, x), loss="square")


def test_a_part_without_entries_is_equal():
    one, other, x = pair(lambda y: (1e-20 * y, y[:0]), 0.5)
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


def test_training_is_not_compared_where_an_identity_is_added_in_forward():
    """V and V + I are one function with one gradient; their difference is no drift."""

    class Added(nn.Linear):
        def forward(self, x):
            return x + super().forward(x)

    net, x = Added(WIDTH, WIDTH), torch.randn(4, WIDTH)
    plain = nn.Linear(WIDTH, WIDTH)
    plain.load_state_dict({"weight": net.weight + torch.eye(WIDTH), "bias": net.bias})
    assert rt.check_equivalence(net, plain, x).largest < round_off(100)
    with pytest.raises(ValueError, match="steps: got 1, but 'weight' starts .* apart"):
        rt.check_equivalence(net, plain, x, steps=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))


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


class AtKink(nn.Module):
    """A ReLU at its kink in one dtype, and a factor in another."""

    def __init__(self, dtype, other, shift=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1 + shift, -1.0]], dtype=dtype))
        self.factor = nn.Parameter(torch.ones(1, dtype=other))
        self.number = nn.Parameter(torch.ones(1, dtype=torch.int64), requires_grad=False)

    def forward(self, x):
        return 1 + (x.to(self.weight.dtype) @ self.weight.T).relu() * self.factor


SINGLE, DOUBLE = torch.float32, torch.float64


@pytest.mark.parametrize(
    ("dtypes", "shift", "noted"),
    [((SINGLE, SINGLE), 1.1e-4, True), ((SINGLE, SINGLE), 1.4e-4, False),
     ((SINGLE, DOUBLE), 1e-6, True), ((DOUBLE, SINGLE), 1e-6, True),
     ((DOUBLE, DOUBLE), 1e-14, False), ((DOUBLE, DOUBLE), 1e-6, False)],
    ids=str,
)  # fmt: skip
def test_a_relu_that_round_off_switches_is_noted(dtypes, shift, noted):
    gap = rt.check_equivalence(AtKink(*dtypes), AtKink(*dtypes, shift), torch.ones(3, 2).float())
    assert gap.input_gradient >= 1 and gap.outputs == pytest.approx(shift, rel=0.1)
    words = (
        "outputs agree within round-off of torch.float32, which may switch ReLUs and so change "
        "gradients; nets in float64 (.double()) tell that from a difference"
    )
    assert [note for note in gap.notes if "switch" in note] == [words] * noted
    same = rt.check_equivalence(AtKink(*dtypes), AtKink(*dtypes), torch.ones(3, 2))
    assert not any("switch" in note for note in same.notes)


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
    for pair in ((net, broken), (broken, net)):
        assert rt.check_equivalence(*pair, torch.ones(1, 2)).largest == float("inf")


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


def test_frozen_parameters_of_one_net_alone_do_not_matter():
    net = nn.Linear(WIDTH, WIDTH)
    other, settings = copy.deepcopy(net), {"steps": 2, "optimizer": torch.optim.Adam}
    net.more = nn.Parameter(torch.ones(2), requires_grad=False)
    for pair in ((net, other), (other, net)):
        assert rt.check_equivalence(*pair, torch.randn(4, WIDTH), **settings).largest == 0


def test_the_largest_of_a_gap():
    gap = Gap(outputs=1.0, input_gradient=2.0, gradients=None, steps=torch.tensor([0.5, 3.0]))
    assert gap.largest == 3.0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no-grad", "infer"])
def test_the_gap_is_the_same_wherever_the_caller_stands(mode):
    net, x = rt.simplified_net(8, identity="residual"), torch.ones(1, 3, 8, 8)
    plain = rt.to_plain(net)
    outside = rt.check_equivalence(net, plain, x)
    with mode():
        for given in (x, torch.ones(1, 3, 8, 8)):
            assert rt.check_equivalence(net, plain, given).largest == outside.largest


class Chain(nn.Module):
    """Two layers, the first in a form, and their output beside its square."""

    def __init__(self, form, factor=1.0):
        super().__init__()
        first, self.last, self.unread = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(1, 1)
        for number, p in enumerate((first.weight, *self.last.parameters(), first.bias)):
            nn.init.normal_(p, 0, 0.5, generator=torch.Generator().manual_seed(number))
            p.data *= factor
        forms = {"residual": lambda m: with_identity(m, "residual"), "plain": lambda m: m}
        self.first = {"explicit": AddIdentity, **forms}[form](first)
        if form == "explicit":
            self.first.layer.weight.data -= torch.eye(4)

    def forward(self, x):
        y = self.last(self.first(x).tanh_())
        return {"y": y, "square": [y.square(), None]}


def summed(output, target):
    return ((output["y"] - target) ** 2).sum(1).mean() + output["square"][0].mean()


def by_hand(factor, x, y):
    """The two outputs of a chain of that factor, the gradients of its loss, at x and the rest."""
    net = Chain("plain", factor)
    tensors = {name: p.detach() for name, p in net.named_parameters() if "unread" not in name}
    return derived(tensors, x, y)


def derived(tensors, x, y):
    leaves = [t.clone().requires_grad_() for t in (x, *tensors.values())]
    V, c, W, b = leaves[1:]
    out = (leaves[0] @ W.T + b).tanh() @ V.T + c
    loss = ((out - y) ** 2).sum() / len(x) + (out**2).sum() / out.numel()
    at_x, *rest = torch.autograd.grad(loss, leaves)
    return [out.detach(), out.detach() ** 2], at_x, dict(zip(tensors, rest, strict=True))


def stepped(factor, batches, steps, pull):
    """Weights after each step of SGD, whose decay pulls the first layer to a multiple of I."""
    tensors, found = dict(Chain("plain", factor).named_parameters()), []
    tensors = {name: t.detach().clone() for name, t in tensors.items()}
    read = {name: t for name, t in tensors.items() if "unread" not in name}
    for step in range(steps):
        _, _, gradients = derived(read, *batches[step % len(batches)])
        for name, gradient in gradients.items():
            aim = pull * torch.eye(4) if name == "first.weight" else 0
            read[name] -= 0.1 * (gradient + 0.3 * (read[name] - aim))
        found.append(torch.cat([t.flatten() for t in read.values()]))
    return found


@pytest.mark.parametrize("correct", [True, False], ids=["corrected", "free"])
@pytest.mark.parametrize("form", ["plain", "residual", "explicit"])
def test_all_numbers_of_a_gap_by_hand(form, correct):
    sizes, steps, factor = (3, 1, 2), 4, 1.25
    batches = [(torch.randn(n, 4) * n, torch.randn(n, 2)) for n in sizes]
    nets = [Chain(form), Chain("plain", factor)]
    nets[1].unread.load_state_dict(nets[0].unread.state_dict())
    gap = rt.check_equivalence(
        *nets, batches, loss=summed, steps=steps, correct=correct,
        optimizer=lambda p: torch.optim.SGD([q for q in p if q.numel() > 1], 0.1, weight_decay=0.3),
    )  # fmt: skip
    one, other = ([by_hand(each, *batch) for batch in batches] for each in (1.0, factor))

    def relative(pairs):
        pairs = [*pairs]
        return max(float((a - b).abs().max()) for a, b in pairs) / max(
            float(a.abs().max()) for a, _ in pairs
        )

    both = [*zip(one, other, strict=True)]
    outputs = {name: relative((a[0][n], b[0][n]) for a, b in both)
               for n, name in enumerate(("y", "square[0]"))}  # fmt: skip
    sums = [{name: sum(n * each[2][name] for n, each in zip(sizes, some, strict=True))
             for name in some[0][2]} for some in (one, other)]  # fmt: skip
    gradients = {name: relative([(sums[0][name], sums[1][name])]) for name in sums[0]}
    pulls = [0.0 if correct or form == "plain" else 1.0, 0.0]
    paths = [stepped(each, batches, steps, pull)
             for each, pull in zip((1.0, factor), pulls, strict=True)]  # fmt: skip
    unread = float(max(p.detach().abs().max() for p in nets[0].unread.parameters()))
    drift = [float((a - b).abs().max()) / max(unread, float(a.abs().max()))
             for a, b in zip(*paths, strict=True)]  # fmt: skip
    rows = {
        **{("outputs", name): value for name, value in outputs.items()},
        ("outputs", "square[1]"): 0.0,
        ("input gradient", ""): relative((a[1], b[1]) for a, b in both),
        **{("gradients", name): value for name, value in gradients.items()},
        **{("gradients", f"unread.{word}"): 0.0 for word in ("weight", "bias")},
        **{("weights", f"step {n}"): value for n, value in enumerate(drift, 1)},
    }
    table = gap.table()
    found = {(q, at): d for q, at, d in zip(*table.values(), strict=True)}
    assert [*table] == ["quantity", "at", "difference"]
    assert found == pytest.approx(rows, rel=round_off(1000)) and len(table["at"]) == len(rows)
    assert gap.outputs == max(gap.by_output.values()) == max(found["outputs", n] for n in outputs)
    assert gap.gradients == max(gap.by_parameter.values()) and gap.steps.dtype == torch.float64
    largest = {}
    for (quantity, at), value in sorted(found.items(), key=lambda item: item[1]):
        largest[quantity] = at, value
    kinds = ["outputs", "input gradient", "gradients", "weights"]
    assert gap.shown() == {
        "quantity": kinds, "largest": [largest[kind][1] for kind in kinds],
        "at": [largest[kind][0] for kind in kinds],
    }  # fmt: skip
    assert gap.largest == max(found.values()) and gap.notes == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("roundings", [0.9e3, 1.1e3])
def test_a_thousand_roundings_of_the_largest_number_are_no_difference(dtype, roundings):
    apart = roundings * torch.finfo(dtype).eps
    one, other, x = pair(lambda y: {"small": 0 * y[0] + 1e-20, "large": y * 0 + 4}, 0.0)
    one, other, x = one.to(dtype), other.to(dtype), x.to(dtype)
    other.form = lambda y: {"small": 0 * y[0] + 4 * apart, "large": y * 0 + 4}
    gap = rt.check_equivalence(one, other, x, loss=lambda output, _: output.sum())
    expected = apart if roundings < 1e3 else apart * 4e20
    assert gap.by_output == {"small": pytest.approx(expected, rel=1e-6), "large": 0.0}
    other.form = lambda y: {"small": 0 * y[0] + 1e-20, "large": (y * 0 + 4).double()}
    gap = rt.check_equivalence(one, other, x, loss=lambda output, _: output.sum())
    assert gap.largest == 0
    one.form, other.form = lambda y: 0 * y, lambda y: 0 * y + 1e-3
    assert rt.check_equivalence(one, other, x).outputs == float("inf")  # of nothing


def test_precision_of_nets_of_two_dtypes_and_of_data():
    torch.manual_seed(0)
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(WIDTH, 2))
    x = torch.randn(5, WIDTH)
    before = x.clone()
    gap = rt.check_equivalence(net, copy.deepcopy(net).float(), x)
    # Sums of 3 products in float32; the targets are zeros and the gradients of the inputs alike.
    assert 0 < gap.largest < 20 * torch.finfo(torch.float32).eps and torch.equal(x, before)
    given = rt.check_equivalence(net, net, x.float().requires_grad_())
    assert given.largest == 0 and len(given.notes) == 1 and "float32" in given.notes[0]
