"""Tensors in nests of tuples, lists, mappings and objects, whose types and attributes survive."""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

_STEPS = 2e-6  # relative change that is let through: 16 float32 steps, inside a float64 net as well


def map_tensors(content: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor.

    Args:
        content: A tensor, or a tuple, list, mapping, dataclass or other object that holds tensors,
            at any depth. A leaf that is none of these stays as it is.
        function: From tensor to tensor; called in the order of :func:`tensors_of`.

    Returns:
        A nest of the same types with the same other attributes; the given one is not changed.
    """
    if isinstance(content, Tensor):
        return function(content)
    if isinstance(content, tuple):
        parts = [map_tensors(value, function) for value in content]
        # A named tuple takes its entries one by one.
        return type(content)(*parts) if hasattr(content, "_fields") else type(content)(parts)
    if isinstance(content, list):
        return [map_tensors(value, function) for value in content]
    if isinstance(content, Mapping):
        values = {key: map_tensors(value, function) for key, value in content.items()}
        if not isinstance(content, MutableMapping):
            return values
        # Filled like this a subclass keeps its attributes, as the encodings of transformers do.
        again = copy.copy(content)
        for key, value in values.items():
            again[key] = value
        return again
    if not _holds_tensors(content):
        return content
    again = copy.copy(content)
    for name in _names(content):
        object.__setattr__(again, name, map_tensors(getattr(content, name), function))
    return again


def tensors_of(content: Any) -> Iterator[Tensor]:
    """The tensors of a nest, in a fixed order."""
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, (Mapping, tuple, list)):
        for value in content.values() if isinstance(content, Mapping) else content:
            yield from tensors_of(value)
    elif _holds_tensors(content):
        for name in _names(content):
            yield from tensors_of(getattr(content, name))


def leaves_of(content: Any) -> Iterator[tuple[str, Any]]:
    """All that a nest holds, tensors and all else, by name.

    Args:
        content: As for :func:`map_tensors`; objects are taken apart wherever they are.

    Yields:
        Names such as ``logits`` or ``past[0].keys``, ``""`` for the content itself, and leaves. An
        object that holds itself is taken apart once.
    """
    open_objects: set[int] = set()

    def walk(name: str, part: Any) -> Iterator[tuple[str, Any]]:
        parts: list[tuple[str, Any]] | None = None
        if isinstance(part, Mapping):
            parts = [
                (f".{key}" if isinstance(key, str) else f"[{key!r}]", value)
                for key, value in part.items()
            ]
        elif isinstance(part, (tuple, list)):
            parts = [(f"[{number}]", value) for number, value in enumerate(part)]
        elif not isinstance(part, Tensor) and not callable(part):
            if is_dataclass(part) or hasattr(part, "__dict__"):
                parts = [(f".{key}", getattr(part, key)) for key in _names(part)]
        if parts is None:
            yield name.lstrip("."), part
        elif id(part) not in open_objects:
            open_objects.add(id(part))
            for key, value in parts:
                yield from walk(name + key, value)
            open_objects.remove(id(part))

    yield from walk("", content)


def rows_of(content: Any, rows: Any, samples: int) -> Any:
    """Some samples of a nest; a tensor with another number of rows belongs to all samples."""

    def some(tensor: Tensor) -> Tensor:
        return tensor[rows] if tensor.dim() and len(tensor) == samples else tensor

    return map_tensors(content, some)


def moved(before: Tensor, after: Tensor) -> bool:
    """Tell a change of a tensor from round-off."""
    before, after = before.detach(), after.detach()
    if not before.is_floating_point() or not before.numel():
        return False
    tolerance = max(_STEPS, torch.finfo(before.dtype).eps ** 0.5)
    scale = float(torch.maximum(before.abs().max(), after.abs().max()))
    return float((before - after).abs().max()) > tolerance * scale  # no NaN, which is told later


def _names(content: Any) -> list[str]:
    if is_dataclass(content):
        return [field.name for field in fields(content)]
    return list(vars(content))


def _holds_tensors(content: Any) -> bool:
    """True for an object, other than a module, with a tensor among its attributes."""
    if isinstance(content, (type, torch.nn.Module)) or not (
        is_dataclass(content) or hasattr(content, "__dict__")
    ):
        return False
    return any(isinstance(getattr(content, n, None), (Tensor, Mapping)) for n in _names(content))
