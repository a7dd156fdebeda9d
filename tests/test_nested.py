"""Nests of tensors: what is in them, by which names, and what a function makes of them."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resid_theory.nested import leaves_of, map_tensors, moved, rows_of, tensors_of

Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Held:
    x: Tensor
    note: str = "as it was"


@dataclass(slots=True)
class Slots:
    """An object without a ``__dict__``."""

    x: Tensor
    note: str = "as it was"


class Encoding(dict):
    """A mapping with an attribute, as those of transformers."""

    def __init__(self, *given):
        super().__init__(*given)
        self.kind = "words"


def t(number):
    return torch.full((2,), float(number))


NESTS = {
    "tensor": (t(1), [1]),
    "tuple": ((t(1), "a", (t(2),)), [1, 2]),
    "named tuple": (Pair(t(1), [t(2), None]), [1, 2]),
    "list": ([t(1), 3.0, t(2)], [1, 2]),
    "mapping": (Encoding({"b": t(1), "a": t(2), "n": 5}), [1, 2]),
    "ordered": (OrderedDict(b=t(1), a={"deep": t(2)}), [1, 2]),
    "immutable": (MappingProxyType({"b": t(1), "a": t(2)}), [1, 2]),
    "dataclass": (Held(t(1)), [1]),
    "slots": (Slots(t(1)), [1]),
    "object": (SimpleNamespace(inner={"a": t(1)}, x=t(2), name="n"), [1, 2]),
    "object without tensors": (SimpleNamespace(x=1), []),
    "module": (nn.Linear(1, 1), []),
    "class": (Held, []),
}


def numbers(content):
    return [float(tensor[0]) for tensor in tensors_of(content)]


@pytest.mark.parametrize("kind", NESTS)
def test_a_function_of_every_tensor_leaves_types_attributes_and_the_given_nest(kind):
    content, held = NESTS[kind]
    assert numbers(content) == held
    made = map_tensors(content, lambda tensor: 10 * tensor)
    assert numbers(made) == [10 * number for number in held] and numbers(content) == held
    assert type(made) is (dict if kind == "immutable" else type(content))
    assert (made is content) == (not held)
    if kind == "mapping":
        assert (made.kind, made["n"], list(made)) == ("words", 5, ["b", "a", "n"])
    if kind in ("dataclass", "slots", "object"):
        assert getattr(made, "note", "as it was") == "as it was"
        assert getattr(made, "name", "n") == "n"


class Node:
    def __init__(self, value: Any):
        self.value, self.itself = value, self


def test_leaves_have_the_names_by_which_they_are_reached():
    twice, function = [t(1)], t
    content = {
        "logits": t(0), 3: "c", "past": (Held(t(2)), [4]), "node": Node(twice), "again": twice,
        "slots": Slots(t(5)), "net": nn.Identity(), "kind": Held, "call": function,
    }  # fmt: skip
    found = dict(leaves_of(content))
    assert list(found) == [
        "logits", "[3]", "past[0].x", "past[0].note", "past[1][0]", "node.value[0]", "again[0]",
        "slots.x", "slots.note", "net", "kind", "call",
    ]  # fmt: skip
    assert found["past[1][0]"] == 4 and found["call"] is function and found["kind"] is Held
    assert list(leaves_of(5.0)) == [("", 5.0)]


def test_rows_of_the_samples_alone_are_taken():
    content = {"x": torch.arange(6).view(3, 2), "scale": torch.ones(2), "one": torch.tensor(7)}
    found = rows_of(content, slice(1, 3), 3)
    assert found["x"].tolist() == [[2, 3], [4, 5]]
    assert (found["scale"].tolist(), found["one"].item()) == ([1, 1], 7)
    assert rows_of(content, torch.tensor([2, 0]), 3)["x"].tolist() == [[4, 5], [0, 1]]


@pytest.mark.parametrize(
    ("dtype", "step"),
    [(torch.float64, 2e-6), (torch.float32, torch.finfo(torch.float32).eps ** 0.5)],
)
def test_a_change_is_told_by_the_largest_number(dtype, step):
    one, less, more = (
        torch.tensor([-8.0, part * 8 * step], dtype=dtype) for part in (0.0, 0.999, 1.001)
    )
    assert moved(one, more) and moved(more, one) and moved(-more, one)
    for before, after in (
        (one, one), (one, less), (less, one), (0 * one, 0 * one), (one[:0], more[:0]),
        (one.long(), -one.long()), (one, one * torch.inf), (one, one * torch.nan),
    ):  # fmt: skip
        assert not moved(before, after)


def test_a_class_with_a_tensor_and_an_object_with_an_unset_field_stay_as_they_are():
    class Constants:
        scale = torch.ones(2)

    @dataclass
    class Late:
        value: int = 1
        found: int = field(init=False)

    for content in (Constants, Late()):
        assert map_tensors(content, torch.neg) is content and not list(tensors_of(content))


def test_an_object_with_a_mapping_is_taken_apart():
    content = SimpleNamespace(state={"a": torch.ones(2)}, note="x")
    found = map_tensors(content, torch.neg)
    assert found.note == "x" and torch.equal(found.state["a"], -torch.ones(2))
    assert list(tensors_of(content)) == [content.state["a"]]
