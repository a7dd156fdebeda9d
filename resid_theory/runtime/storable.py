"""Objects as JSON and tensors: what names data and never code, and is read without loss.

- A number that JSON lacks is ``{"float": "inf"}``, ``"-inf"`` or ``"nan"``; among the values of a
  tensor it is the string alone.
- An array is a tuple; ``{"list": [...]}``, ``{"mapping": {...}}``, ``{"pairs": [...]}`` (a mapping
  whose keys are not all strings) and ``{"path": ...}`` are the other containers.
- A tensor is ``{"tensor": values, "dtype": ..., "shape": ...}``, its values in one array; in a file
  it is ``{"tensor": name}``, and its values stand in the file beside.
- An object is ``{"kind": "eigen.Spectrum", "fields": {...}}``. Its kind is looked up among the
  classes that derive from :class:`Storable`.
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from inspect import signature
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

_KINDS: dict[str, type["Storable"]] = {}


class Storable:
    """A class whose instances JSON and tensors can hold.

    Its constructor takes by name what its instances have as attributes of the same names.

    Attributes:
        unsaved: Arguments that are left out, with the values that they have after loading.
    """

    unsaved: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _KINDS[_kind(cls)] = cls


def _kind(cls: type) -> str:
    """Room and name of a class."""
    return f"{cls.__module__.removeprefix('resid_theory.').partition('.')[0]}.{cls.__name__}"


def _saved(cls: type[Storable]) -> list[str]:
    # Of a dataclass its fields: its signature may be that of its own ``__new__``.
    names = [f.name for f in fields(cls)] if is_dataclass(cls) else signature(cls).parameters
    return [name for name in names if name not in cls.unsaved]


def encoded(value: Any, where: str, tensor: Callable[[Tensor], Any]) -> Any:
    """JSON of a value, by a function for tensors; ``where`` names the value in an error."""

    def each(content: Mapping[Any, Any]) -> dict[Any, Any]:
        return {key: encoded(part, f"{where}.{key}", tensor) for key, part in content.items()}

    if isinstance(value, Storable):
        names = _saved(type(value))
        content = each({name: getattr(value, name) for name in names})
        return {"kind": _kind(type(value)), "fields": content}
    if isinstance(value, Tensor):
        return tensor(value.cpu())
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, (tuple, list)):
        parts = list(each(dict(enumerate(value))).values())
        return parts if isinstance(value, tuple) else {"list": parts}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {"mapping": each(value)}
        return {"pairs": [list(pair) for pair in each(value).items()]}
    raise ValueError(
        f"{where}: got a {type(value).__name__}, which cannot be saved; needs numbers, strings, "
        "tensors, tuples, lists, mappings, paths or None"
    )


def decoded(node: Any, where: str, tensor: Callable[[Mapping[str, Any]], Tensor]) -> Any:
    """The value that :func:`encoded` wrote; ``where`` names the source in an error."""

    def each(content: Mapping[Any, Any]) -> dict[Any, Any]:
        return {key: decoded(part, where, tensor) for key, part in content.items()}

    match node:
        case list():
            return tuple(each(dict(enumerate(node))).values())
        case {"kind": str(kind), "fields": dict(content)}:
            getattr(sys.modules["resid_theory"], kind.partition(".")[0], None)  # imports its room
            cls = _KINDS.get(kind)
            if cls is None:
                raise ValueError(f"{where}: holds a {kind!r:.80}, which this version does not know")
            odd = sorted(set(content) ^ set(_saved(cls)))
            if odd:
                raise ValueError(f"{where}: the fields of its {kind} differ from ours in {odd}")
            hints: Mapping[str, Any] = get_type_hints(cls) if is_dataclass(cls) else {}
            given = each(content)
            for name, value in given.items():
                if not _fits(value, hints.get(name, Any)):
                    raise ValueError(f"{where}: {kind} has a {type(value).__name__} as {name!r}")
            return cls(**given, **cls.unsaved)
        case {"tensor": _}:
            return tensor(node)
        case {"float": str(number)}:
            return float(number)
        case {"path": str(path)}:
            return Path(path)
        case {"list": list(parts)}:
            return list(each(dict(enumerate(parts))).values())
        case {"mapping": dict(content)}:
            return each(content)
        case {"pairs": list(pairs)}:
            return each(dict(pairs))
        case dict():
            raise ValueError(f"{where}: holds an object of unknown form, {sorted(node)!r:.80}")
    return node


def _fits(value: Any, hint: Any) -> bool:
    """True unless a value is not of a type."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple and isinstance(value, tuple) and parts:
        every = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(every) == len(value) and all(map(_fits, value, every))
    if isinstance(value, Mapping) and len(parts) == 2:
        return all(_fits(part, parts[1]) for part in value.values())
    kind = origin or hint
    if kind is float:
        kind = (int, float)
    number = hint in (int, float) and isinstance(value, bool)
    free = kind is Any or not isinstance(kind, (type, tuple))
    return not number and (free or isinstance(value, kind))


def inline(tensor: Tensor) -> dict[str, Any]:
    """JSON of a tensor with its values."""
    values = tensor.flatten().tolist()
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        values = [value if math.isfinite(value) else str(value) for value in values]
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"tensor": values, "dtype": dtype, "shape": list(tensor.shape)}


def read_inline(node: Mapping[str, Any]) -> Tensor:
    """The tensor that :func:`inline` wrote."""
    values = [float(value) if isinstance(value, str) else value for value in node["tensor"]]
    return torch.tensor(values, dtype=getattr(torch, node["dtype"])).reshape(node["shape"])
