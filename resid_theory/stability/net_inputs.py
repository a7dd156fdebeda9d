"""Inputs of a net, batch by batch, from whatever form the data have."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import as_tensor, check_finite, check_int, check_pair
from resid_theory.data import Images

__all__ = ["checked_net", "count_batches", "first_inputs", "input_batches", "placed"]


def checked_net(net: nn.Module) -> nn.Module:
    """The net itself, if it is a module with finite parameters.

    Args:
        net: Any module.

    Returns:
        ``net``.

    Raises:
        ValueError: If it is no module, or a parameter is not finite.
    """
    if not isinstance(net, nn.Module):
        raise ValueError(f"net: got {type(net).__name__}, needs a torch.nn.Module")
    for name, parameter in net.named_parameters():
        if not isinstance(parameter, nn.parameter.UninitializedParameter):
            check_finite(f"net {name}", parameter)
    return net


def placed(net: nn.Module, device: torch.device | str | None) -> nn.Module:
    """The net where it shall be measured: itself, or a copy on another device.

    Args:
        net: Any module.
        device: None for where the net lies.

    Returns:
        ``net`` or a copy, so that the caller's parameters stay where they are.
    """
    first = next(net.parameters(), None)
    if device is None or first is None or torch.device(device) == first.device:
        return net
    return copy.deepcopy(net).to(device)


def input_batches(data: Any, batch: int, net: nn.Module) -> Iterator[Tensor]:
    """The inputs in ``data``, as batches on the net's device that the net may overwrite.

    Args:
        data: Inputs (m, ...); ``Images``, an object with ``.x``, a pair (x, y); or a loader of
            inputs or of tuples that begin with them, whose batches stay as they are.
        batch: Samples taken at once from data that are not a loader.
        net: The module that they are for.

    Yields:
        (b, ...), floating point of the net's dtype, or integers as they are.

    Raises:
        ValueError: If there are no data, an entry is not finite, or the dtype is not the net's.
    """
    check_int("batch", batch)
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    empty = True
    for part in _parts(data, batch, like):
        empty = False
        if part.is_floating_point() and part.dtype != like.dtype:
            raise ValueError(
                f"data x: has dtype {part.dtype}, the net {like.dtype}; needs one dtype, e.g. "
                f"x.to({like.dtype}) or net.to({part.dtype})"
            )
        check_finite("data x", part)
        # Cloned: a net that starts in place would overwrite the caller's data.
        yield part.detach().to(like.device, copy=True)
    if empty:
        raise ValueError("data: got no sample, needs at least one")


def first_inputs(data: Any, net: nn.Module) -> Tensor | None:
    """A few inputs for a look at shapes; None if that would use up an iterator.

    Args:
        data: As in :func:`input_batches`.
        net: The module that they are for.

    Returns:
        Three inputs, repeated where there are fewer.
    """
    if iter_once(data):
        return None
    return three(next(input_batches(data, 3, net)))


def three(x: Tensor) -> Tensor:
    """The first three samples, again and again where there are fewer."""
    return torch.cat([x[:3]] * 3)[:3].clone()


def iter_once(data: Any) -> bool:
    """Whether data can be read only once."""
    return hasattr(data, "__next__")


def count_batches(data: Any, batch: int) -> int | None:
    """How many batches there will be, for a progress bar; None if nobody knows."""
    x = _whole_set(data)
    if x is not None:
        return -(-len(x) // check_int("batch", batch))
    return len(data) if hasattr(data, "__len__") else None


def _parts(data: Any, batch: int, like: Tensor) -> Iterator[Tensor]:
    x = _whole_set(data)
    if x is None:
        yield from _loaded(data)
        return
    if x.dim() == 0:
        raise ValueError("data x: got a number, needs samples along the first axis")
    for part in x.split(batch) if len(x) else ():
        yield data.inputs(part, like.dtype) if isinstance(data, Images) else part


def _whole_set(data: Any) -> Tensor | None:
    """All inputs at once, or None for a loader."""
    if isinstance(data, Images):
        return data.pixels
    if isinstance(data, Tensor) or hasattr(data, "__array__"):
        return as_tensor("data x", data)
    if hasattr(data, "x"):
        return as_tensor("data x", data.x)
    if isinstance(data, (tuple, list)) and len(data) == 2 and _are_arrays(data):
        return check_pair(data)[0]
    return None


def _are_arrays(items: Any) -> bool:
    return all(isinstance(item, Tensor) or hasattr(item, "__array__") for item in items)


def _loaded(data: Any) -> Iterator[Tensor]:
    if not hasattr(data, "__iter__"):
        raise ValueError(
            f"data: got {type(data).__name__}, needs inputs, (x, y), an object with .x, or a loader"
        )
    for item in data:
        x = item[0] if isinstance(item, (tuple, list)) and item else item
        tensor = as_tensor("data x", x)
        if tensor.dim() and len(tensor):
            yield tensor
