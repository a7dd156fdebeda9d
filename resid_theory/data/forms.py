"""Forms of data: which object is a whole set, which a batch, and what is inputs and targets."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from resid_theory._check import as_tensor, check_finite
from resid_theory.data.image_set import Images
from resid_theory.nested import tensors_of

Triple = tuple[Any, Any, Any]
"""Inputs, targets, and what stands behind them: None, indices or weights."""

_WEIGHT = "sample_weight"
_ROWS = 256  # samples of a Dataset that are read together


def whole_set(data: Any) -> Triple | Images | Mapping[str, Any] | None:
    """The whole set, if the data are one pair or triple, or images; None for batches."""
    if isinstance(data, Images) or is_labelled(data):
        return data
    if isinstance(data, TensorDataset):
        return _as_images(_triple(data.tensors))
    by_name = _named(data)
    if by_name is not None:
        return _as_images(by_name)
    if not isinstance(data, (tuple, list)):
        return None
    # A list of two batches looks like a pair of arrays, except for its entries.
    if all(map(_is_batch, data)):
        return None
    if len(data) == 3 and not (isinstance(data, tuple) and all(map(is_array, data[1:]))):
        return None
    return _as_images(_triple(data))


def _as_images(found: Triple | None) -> Triple | Images | None:
    """Bytes (m, channels, height, width) as images, whose pixels are scaled to [0, 1]."""
    match found:
        case (Tensor() as x, Tensor() as y, None) if x.dtype == torch.uint8 and x.dim() == 4:
            if y.dim() > 0 and len(x) == len(y):
                return Images(pixels=x, labels=y if y.is_floating_point() else y.long())
    return found


def as_batches(data: Any) -> Any:
    """Anything that iterates over batches as it is, a data set of torch by a loader in order."""
    if isinstance(data, IterableDataset) or (
        isinstance(data, Dataset) and not hasattr(data, "__iter__")
    ):
        return DataLoader(data, batch_size=_ROWS)
    return data


def check_triple(item: Any) -> Triple:
    """Check a batch: inputs and targets as tensors or nests, and what is behind them or None."""
    found = _named(item)
    if found is None and isinstance(item, (tuple, list)):
        found = _triple(item)
    if found is None:
        kind = f"{type(item).__name__} of {len(item)}" if hasattr(item, "__len__") else repr(item)
        keys = f" with {', '.join(map(repr, item))}" if isinstance(item, Mapping) else ""
        remedy = (
            "; pass pairs (inputs, targets), inputs being a mapping where the net takes names, or "
            "targets as its entry 'labels', or mark a loss of (net, batch) by "
            'rt.Loss(loss, of="batch")'
        )
        raise ValueError(
            f"data: got a batch that is {kind}{keys}, needs a pair (x, y)"
            + (remedy if keys else "")
        )
    given_x, given_y, behind = found
    check_no_images(given_x)
    y = _nest("data y", given_y)
    size = batch_size(y)
    x = _nest("data x", given_x, size)
    if size is None or batch_size(x) != size:
        single = "; a single sample is (x[None], y[None]), a list of them is for a DataLoader"
        raise ValueError(
            f"data: x has shape {_shape(x)} and y {_shape(y)}; needs the same number of samples "
            f"along the first axis{single if size is None else ''}"
        )
    if size == 0:
        raise ValueError("data: got a batch without samples, needs at least one")
    for name, side in (("data x", x), ("data y", y)):
        for tensor in tensors_of(side):
            check_finite(name, tensor)
    return x, y, None if behind is None else as_tensor("data, behind (x, y)", behind)


def check_no_images(x: Any) -> None:
    """Raise ValueError for images in the place of inputs."""
    if isinstance(x, Images):
        raise ValueError("data x: got Images, which have targets of their own; pass them as data")


def has_weights(data: Any) -> bool:
    """True if an object or a mapping has ``sample_weight`` beside x and y."""
    named = _named(data)
    return named is not None and named[2] is not None


def is_labelled(data: Any) -> bool:
    """True for inputs by name with their ``labels`` among them, as transformers take both."""
    return isinstance(data, Mapping) and "labels" in data and len(data) > 1


def batch_size(content: Any) -> int | None:
    """Length of the first tensor; None if there is none, or it has no axis."""
    first = next(tensors_of(content), None)
    return None if first is None or first.dim() == 0 else len(first)


def _triple(parts: Any) -> Triple | None:
    if not 2 <= len(parts) <= 3:
        return None
    return parts[0], parts[1], parts[2] if len(parts) == 3 else None


def _named(data: Any) -> Triple | None:
    """Entries or attributes x and y, or labels, and sample_weight if there is one."""
    if is_labelled(data):
        rest = {name: part for name, part in data.items() if name not in ("labels", _WEIGHT)}
        return rest, data["labels"], data.get(_WEIGHT)
    if isinstance(data, Mapping):
        if not {"x", "y"} <= data.keys() <= {"x", "y", _WEIGHT}:
            return None
        return data["x"], data["y"], data.get(_WEIGHT)
    if isinstance(data, Tensor) or not (hasattr(data, "x") and hasattr(data, "y")):
        return None
    return data.x, data.y, getattr(data, _WEIGHT, None)


def is_array(value: Any) -> bool:
    """True for arrays, also tensors."""
    return hasattr(value, "__array__")


def is_nest(value: Any) -> bool:
    """True for what holds tensors or arrays and is none itself."""
    if is_array(value):
        return False
    parts = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, (Mapping, tuple, list)):
        return any(is_array(part) or is_nest(part) for part in parts)
    return any(True for _ in tensors_of(value))


def _is_batch(value: Any) -> bool:
    """True for a pair or triple of arrays, or of nests of arrays."""
    if _named(value) is not None:
        return True
    if not isinstance(value, (tuple, list)) or not 2 <= len(value) <= 3:
        return False
    return all(is_array(part) or is_nest(part) for part in value)


def _nest(argument: str, value: Any, size: int | None = None) -> Any:
    """An array as a tensor; several of them for a net or a loss of several as they stand."""
    if type(value) is dict:
        value = {
            key: as_tensor(argument, part) if is_array(part) else part
            for key, part in value.items()
        }
    if isinstance(value, Mapping) or not is_array(value) and hasattr(value, "__dict__"):
        if any(True for _ in tensors_of(value)):
            return value
    if isinstance(value, (tuple, list)) and value and all(map(is_array, value)):
        parts = [as_tensor(argument, part) for part in value]
        lengths = [len(part) if part.dim() else None for part in parts]
        alike = len({*lengths}) == 1 and lengths[0] is not None
        if lengths[0] == size or alike and size is None:  # others may belong to all samples
            return tuple(parts)
    return as_tensor(argument, value)


def _shape(content: Any) -> Any:
    if isinstance(content, Tensor):
        return tuple(content.shape)
    return [tuple(tensor.shape) for tensor in tensors_of(content)]
