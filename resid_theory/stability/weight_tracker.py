"""Tensors that hold the entries of parameters, followed while a net runs."""

import math
import weakref
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from resid_theory.stability.linear_uses import READERS

_NUMBERS = ("tolist", "item", "numpy", "__int__", "__index__")
"""Functions that hand numbers to Python."""
_PICKS = ("__getitem__", "index_select", "gather", "take", "take_along_dim", "masked_select")
_SCATTERS = ("__setitem__", "index_add", "index_add_", "index_put", "index_put_", "index_copy",
             "index_copy_", "scatter", "scatter_", "scatter_add", "scatter_add_", "masked_scatter",
             "masked_scatter_")  # fmt: skip


class Label(NamedTuple):
    """A parameter, by module and tensor, and the part of it that a tensor holds."""

    module: str
    tensor: str
    part: str = ""

    @classmethod
    def of(cls, name: str) -> "Label":
        """That of a parameter; what a weight is computed from is called as that weight."""
        module, inside, rest = f".{name}".partition(".parametrizations.")
        if inside:
            return cls(module[1:], rest.partition(".")[0])
        module, _, tensor = name.rpartition(".")
        old_style = tensor in ("weight_g", "weight_v", "weight_orig")
        return cls(module, "weight" if old_style else tensor)

    @property
    def name(self) -> str:
        """Name of the parameter and its part."""
        return f"{self.module}.{self.tensor}{self.part}".lstrip(".")


class _Constant(NamedTuple):
    """A tensor that no sample has a part in."""

    alive: "weakref.ref[Tensor]"
    origins: frozenset[Label]
    label: Label | None  # where its entries are those of a parameter, changed one by one


class WeightTracker:
    """Follower of tensors that no sample has a part in, and of rows that samples choose.

    Attributes:
        owners: Labels of every parameter, several of a tied one.
        met: Names of the functions in which a parameter, or what is made from it, meets samples.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self.owners: dict[Tensor, list[Label]] = defaultdict(list)
        self.met: dict[Label, set[str]] = defaultdict(set)
        for name, module in modules.items():
            for tensor, parameter in module.named_parameters(recurse=False):
                self.owners[parameter].append(Label.of(f"{name}.{tensor}".lstrip(".")))

    def start(self) -> None:
        """Take the parameters and other tensors of the modules as they are before a pass."""
        self._known: dict[int, _Constant] = {}
        self._routed: dict[int, weakref.ref[Tensor]] = {}
        self._storages: dict[int, list[Tensor]] = defaultdict(list)
        self._picks: dict[Label, int] = defaultdict(int)
        self._read: set[str] = set()  # how Python got numbers of samples, with which it may index
        for module in self._modules.values():
            for tensor in _tensors([*module._buffers.values(), *vars(module).values()]):
                self.keep(tensor, frozenset(), None)
        for parameter, (first, *_) in self.owners.items():
            self.keep(parameter, frozenset([first]), first)
            self._storages[_storage(parameter)].append(parameter)

    def follow(self, name: str, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Find out whether a function's result is made from parameters alone, or meets a sample."""
        given = [*_tensors(args), *_tensors(kwargs.values())]
        known = [self.constant(tensor) for tensor in given]
        if all(known):
            constants = list(zip(given, [one for one in known if one], strict=True))
            origins: frozenset[Label] = frozenset().union(*(one.origins for _, one in constants))
            for made in _tensors([result]):
                self.keep(made, origins, self._carried(name, constants, made))
            return
        for one in filter(None, known):
            for origin in one.origins:
                self.met[origin].add(name)

    def follow_writes(self, name: str, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Find out whether a function writes samples into constants, which are none any more."""
        given = [*_tensors(args), *_tensors(kwargs.values())]
        if all(map(self.constant, given)):
            return
        inside = name == "__setitem__" or name.endswith("_") and result is given[0]
        for written in (given[0],) if inside else _tensors([kwargs.get("out")]):
            if self.constant(written) is None:
                continue
            pointer = _storage(written)  # no longer a constant, nor are its views
            self._known = {
                key: one for key, one in self._known.items()
                if (tensor := one.alive()) is None or _storage(tensor) != pointer
            }  # fmt: skip

    def follow_rows(self, name: str, args: Any, result: Any) -> None:
        """Find out whether samples choose the rows of a result, or of what it is made from."""
        routed = name not in _SCATTERS and any(map(self.is_routed, _tensors(args)))
        if name in _NUMBERS and not self.constant(args[0]):
            self._read.add(name)
        if name in ("__getitem__", "index_select", "masked_select") and not self.label(args[0]):
            index = args[1] if name == "__getitem__" else args[-1]
            first = index[0] if isinstance(index, tuple) and index else index
            chosen = isinstance(first, Tensor) and not self.constant(first)
            routed |= chosen or "tolist" in self._read and isinstance(first, (list, Tensor))
        if routed:
            self._routed |= {id(made): weakref.ref(made) for made in _tensors([result])}

    def is_routed(self, tensor: Tensor) -> bool:
        """True if samples chose its rows."""
        known = self._routed.get(id(tensor))
        return known is not None and known() is tensor

    def _carried(
        self, name: str, constants: list[tuple[Tensor, _Constant]], made: Tensor
    ) -> Label | None:
        """The parameter from whose entries alone a new constant is made, if there is one."""
        for tensor, one in constants:
            if one.label and _storage(tensor) == _storage(made):
                return self.label_of_part(one.label, tensor, made)
        first = constants[0][1].label if constants else None
        if name in READERS or name.startswith("embedding"):
            return None
        if name in _PICKS and first:
            if self._read:
                return None
            self._picks[first] += 1
            return first._replace(part=f"{first.part}[pick {self._picks[first]}]")
        for tensor, one in constants:
            if one.label and tensor.numel() == made.numel():
                return one.label
        labels = {one.label and one.label._replace(part="") for _, one in constants if one.origins}
        return labels.pop() if len(labels) == 1 else None

    def keep(self, tensor: Tensor, origins: frozenset[Label], label: Label | None) -> None:
        """Take a tensor for a constant, made from the given parameters or, with a label, of one."""
        self._known[id(tensor)] = _Constant(weakref.ref(tensor), origins, label)

    def constant(self, tensor: Tensor) -> _Constant | None:
        """Origins of a tensor that no sample has a part in; None for another one."""
        known = self._known.get(id(tensor))
        return known if known and known.alive() is tensor else None

    def origins(self, tensor: Tensor) -> frozenset[Label]:
        """The parameters that a tensor is made from, if no sample has a part in it."""
        known, label = self.constant(tensor), self.label(tensor)
        if known:
            return known.origins
        return frozenset() if label is None else frozenset([label._replace(part="")])

    def label(self, tensor: Tensor) -> Label | None:
        """The parameter that a tensor is, is a part of, or is made from entry by entry."""
        if known := self.constant(tensor):
            return known.label
        return self._inside(tensor)

    def _inside(self, tensor: Tensor) -> Label | None:
        for parameter in self._storages.get(_storage(tensor), ()):
            first = parameter.storage_offset()
            if first <= tensor.storage_offset() < first + parameter.numel():
                return self.owners[parameter][0]._replace(part=_part(parameter, tensor))
        return None

    def label_of_part(self, label: Label, whole: Tensor, part: Tensor) -> Label:
        """The label of a part of a weight."""
        inside = self._inside(part)
        return inside or label._replace(part=label.part + _part(whole, part))


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Tensors among the arguments or results of a function, in lists and tuples, too."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += [part for part in value if isinstance(part, Tensor)]
    return found


def _storage(tensor: Tensor) -> int:
    """Address of a tensor's numbers; 0 for one without any of its own."""
    return 0 if has_no_values(tensor) or tensor.is_sparse else tensor.untyped_storage().data_ptr()


def has_no_values(tensor: Tensor) -> bool:
    """True inside torch.vmap and other transforms, where a tensor has no values of its own."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _part(whole: Tensor, part: Tensor) -> str:
    """Indices of a view in the tensor that it is a view of, as in ``[0, 2:4]``; "" for all."""
    size = math.prod(n for n, step in zip(part.shape, part.stride(), strict=True) if step)
    # The others are expanded, or have one index and the step of another axis.
    axes = [axis for axis, n in enumerate(whole.shape) if n > 1 and whole.stride(axis)]
    if size == math.prod(whole.shape[axis] for axis in axes):
        return ""
    first = part.storage_offset() - whole.storage_offset()
    last = first + sum((n - 1) * s for n, s in zip(part.shape, part.stride(), strict=True))
    sides = [(0, n - 1) for n in whole.shape]
    for axis in sorted(axes, key=whole.stride, reverse=True):
        step = whole.stride(axis)
        sides[axis] = first // step, last // step
        first, last = first % step, last % step
    if math.prod(sides[axis][1] - sides[axis][0] + 1 for axis in axes) != size:
        return f"[{part.storage_offset() - whole.storage_offset()}::]"
    names = [
        str(a) if a == b else ":" if b - a + 1 == n else f"{a}:{b + 1}"
        for (a, b), n in zip(sides, whole.shape, strict=True)
    ]
    while names[-1] == ":":
        names.pop()
    return f"[{', '.join(names)}]"
