"""State of a net: layers, parameters, buffers and attributes, to compare and to put back."""

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes of every module: hooks, flags, tables."""

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_NUMBERS = (bool, int, float, complex, str)
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class NetAttributes:
    """Attributes of the modules of a net, and the contents of their lists and mappings.

    Attributes:
        held: Every module and its attributes, by its name.
        written: Names of modules and of attributes that measuring itself writes.
    """

    def __init__(self, net: nn.Module) -> None:
        self.held = {name: (module, _attributes(module)) for name, module in net.named_modules()}
        self.written: set[tuple[str, str]] = set()
        self._containers = list(_containers(own for _, own in self.held.values()))

    def put_back(self) -> None:
        """Take out what the net has kept for its next call: a cached product and its flag."""
        for name, (module, before) in self.held.items():
            now = _attributes(module)
            for key in before.keys() | now.keys():
                old, new = before.get(key), now.get(key)
                if old is new:
                    continue
                self.written.add((name, key))
                if not any(isinstance(v, _NUMBERS) or _holds_tensors(v) for v in (old, new)):
                    continue
                if key in before:
                    vars(module)[key] = old
                else:
                    del vars(module)[key]
        for container, before in self._containers:
            if not _identical(container, before) and _holds_tensors([container, before]):
                container.clear()
                container.update(before) if isinstance(before, dict) else container.extend(before)


class NetState:
    """A net at one moment.

    Versions of tensors do not show all changes (``p.data.mul_(2)`` counts in none), so contents are
    kept. A look costs less than adding up one Hessian-vector product in float64.

    Attributes:
        net: The net.
        attributes: Its attributes.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._tensors = _tensors(net)
        self._tables = [(name, table, dict(table.items())) for name, table in _tables(net)]
        self._kinds = {name: _kind(tensor) for name, tensor in self._tensors.items()}
        with torch.no_grad():
            self._copies = {id(tensor): tensor.clone() for tensor in self._tensors.values()}
        self.attributes = NetAttributes(net)

    def change(self) -> str:
        """The first thing that is not as it was, in a few words; empty if all is."""
        for name, table, was in self._tables:
            here = dict(table.items())
            if not _identical(here, was):
                key = next(key for key in was | here if was.get(key) is not here.get(key))
                if isinstance(key, int):
                    return f"hooks of {name or 'the net itself'!r}"
                return f"{f'{name}.{key}'.lstrip('.')!r} is another object"
        for name, tensor in self._tensors.items():
            if (kind := _kind(tensor)) != self._kinds[name]:
                return f"{name!r} is {_in_words(kind)} and was {_in_words(self._kinds[name])}"
        if not self._same(self._tensors.values()):
            name = next(name for name, tensor in self._tensors.items() if not self._same([tensor]))
            return f"{name!r} has other values"
        for name, (module, before) in self.attributes.held.items():
            if vars(module).get("forward") is not before.get("forward"):
                return f"{f'{name}.forward'.lstrip('.')!r} is another object"
            for key, value in before.items():
                if (name, key) not in self.attributes.written and _differ(
                    value, vars(module).get(key)
                ):
                    return f"{f'{name}.{key}'.lstrip('.')!r} is another value"
        return ""

    def overwritten(self) -> str:
        """Name of the first parameter with other values than it had; empty if there is none."""
        parameters = {n: t for n, t in self._tensors.items() if isinstance(t, nn.Parameter)}
        if self._same(parameters.values()):
            return ""
        return next(name for name, tensor in parameters.items() if not self._same([tensor]))

    def put_back(self, *, weights: bool = True) -> None:
        """Put values and attributes back where changed; parameters unless told not to."""
        self.attributes.put_back()
        tensors = self._tensors.values()
        compared = [t for t in tensors if weights or not isinstance(t, nn.Parameter)]
        if self._same(compared):
            return
        for tensor in compared:
            if not self._same([tensor]):
                copy = self._copies[id(tensor)]
                if (tensor.shape, tensor.dtype) != (copy.shape, copy.dtype):
                    tensor.data = torch.empty_like(copy)
                with torch.no_grad():
                    tensor.copy_(copy)

    def _same(self, tensors: Iterable[Tensor]) -> bool:
        """True if tensors have the bits that they had."""
        differences: dict[torch.device, list[Tensor]] = defaultdict(list)
        for tensor in tensors:
            copy = self._copies[id(tensor)]
            if (tensor.shape, tensor.dtype, tensor.device) != (copy.shape, copy.dtype, copy.device):
                return False
            now, before = _bits(tensor, copy)
            if now.device.type == "cuda":  # answers are awaited together
                differences[now.device].append((now != before).any())
            elif not (now.is_meta or torch.equal(now, before)):
                return False
        return not any(bool(torch.stack(group).any()) for group in differences.values())


def changeable_buffers(net: nn.Module) -> dict[str, Tensor]:
    """Buffers by name, without those that a module declares constant, such as identity kernels."""
    constant = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in net.named_modules()
        for name in getattr(module, "constant_buffers", ())
    }
    return {name: buffer for name, buffer in net.named_buffers() if name not in constant}


def copied(net: nn.Module) -> nn.Module:
    """A copy of a net, also of one that keeps what it computed in its last call."""
    # Pruning and the older forms of weight and spectral normalization do, and torch copies no
    # tensor that has a graph.
    owns = [vars(module) for module in net.modules()]
    nests = [*owns, *(container for container, _ in _containers(owns))]
    values = (v for nest in nests for v in (nest.values() if isinstance(nest, dict) else nest))
    computed = [v for v in values if isinstance(v, Tensor) and v.grad_fn is not None]
    return copy.deepcopy(net, {id(tensor): tensor.detach().clone() for tensor in computed})


def _tables(net: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """The modules' own layers, parameters, buffers and hooks, with the modules' names."""
    for name, module in net.named_modules():
        hooks = (vars(module)[key] for key in _HOOKS)
        for table in (module._modules, module._parameters, module._buffers, *hooks):
            yield name, table


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    """Parameters, and the buffers that may change."""
    found = {**dict(net.named_parameters()), **changeable_buffers(net)}
    return {name: t for name, t in found.items() if not nn.parameter.is_lazy(t)}


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad


def _in_words(kind: tuple[Any, ...]) -> str:
    return f"({kind[0]}, {kind[1]}, {kind[2]}, {'' if kind[3] else 'not '}trainable)"


def _bits(*tensors: Tensor) -> list[Tensor]:
    """Memory of tensors of one shape as integers, in which nan is equal to itself."""
    plain = [t if t.layout == torch.strided else _entries(t) for t in tensors]
    plain = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in plain]
    if not plain[0].is_floating_point():
        return plain
    size = plain[0].element_size()
    # Integers of 8 bytes are compared two to three times as fast as those of 4.
    if all(
        t.is_contiguous() and not (t.numel() * size % 8 or t.storage_offset() * size % 8)
        for t in plain
    ):
        return [t.view(-1).view(torch.int64) for t in plain]
    return [t.view(_INTEGERS[size]) for t in plain]


def _entries(sparse: Tensor) -> Tensor:
    """Places and values of a sparse tensor."""
    sparse = sparse.to_sparse_coo().coalesce()
    return torch.cat([sparse.indices().flatten().double(), sparse.values().flatten()])


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key not in _OF_TORCH}


def _containers(given: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """All dictionaries and lists inside others, and what they contain."""
    waiting, seen = list(given), set()
    while waiting:
        values = waiting.pop()
        for value in values.values() if isinstance(values, dict) else values:
            if isinstance(value, (dict, list)) and id(value) not in seen:
                seen.add(id(value))
                waiting.append(value)
                yield value, value.copy()


def _identical(now: Any, before: Any) -> bool:
    if isinstance(now, dict):
        return now.keys() == before.keys() and all(now[key] is before[key] for key in before)
    return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, (dict, list, tuple)):
        return any(map(_holds_tensors, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Tensor)


def _differ(before: Any, now: Any) -> bool:
    """True for another tensor or another number; objects of other kinds are not compared."""
    if isinstance(before, _NUMBERS):
        return type(now) is not type(before) or (now is not before and now != before)
    return isinstance(before, Tensor) and now is not before
