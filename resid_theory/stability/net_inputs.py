"""Inputs of a net, batch by batch, from data in any form."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import as_tensor, check_finite, check_int, check_pair
from resid_theory.data import Images

__all__ = [
    "checked_net", "count_batches", "first_inputs", "input_batches", "is_iterator", "placed",
    "three_samples",
]  # fmt: skip


def checked_net(net: nn.Module) -> nn.Module:
    """The net itself; a ValueError if it is no module or a parameter is not finite."""
    if not isinstance(net, nn.Module):
        raise ValueError(f"net: got {type(net).__name__}, needs a torch.nn.Module")
    for name, parameter in net.named_parameters():
        if not isinstance(parameter, nn.parameter.UninitializedParameter):
            check_finite(f"net {name}", parameter)
    return net


def placed(net: nn.Module, device: torch.device | str | None) -> nn.Module:
    """The net itself, or a copy if another device than its own is asked for."""
    first = next(net.parameters(), None)
    if device is None or first is None or torch.device(device) == first.device:
        return net
    return copy.deepcopy(net).to(device)


def input_batches(data: Any, batch: int, net: nn.Module) -> Iterator[Tensor]:
    """Inputs in batches on the net's device, which the net may overwrite."""
    check_int("batch", batch)
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    empty = True
    for part in _parts(data, batch, like.dtype):
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


def _parts(data: Any, batch: int, dtype: torch.dtype) -> Iterator[Tensor]:
    x = _whole_set(data)
    if x is not None:
        if x.dim() == 0:
            raise ValueError("data x: got a number, needs samples along the first axis")
        for part in x.split(batch) if len(x) else ():
            yield data.inputs(part, dtype) if isinstance(data, Images) else part
        return
    if not hasattr(data, "__iter__"):
        raise ValueError(
            f"data: got {type(data).__name__}, needs inputs, (x, y), an object with .x, or a loader"
        )
    for item in data:
        tensor = as_tensor("data x", item[0] if isinstance(item, (tuple, list)) and item else item)
        if tensor.dim() and len(tensor):
            yield tensor


def _whole_set(data: Any) -> Tensor | None:
    """All inputs at once; None for a loader."""
    if isinstance(data, Images):
        return data.pixels
    if isinstance(data, Tensor) or hasattr(data, "__array__"):
        return as_tensor("data x", data)
    if hasattr(data, "x"):
        return as_tensor("data x", data.x)
    is_pair = isinstance(data, (tuple, list)) and len(data) == 2
    if is_pair and all(isinstance(item, Tensor) or hasattr(item, "__array__") for item in data):
        return check_pair(data)[0]
    return None


def first_inputs(data: Any, net: nn.Module) -> Tensor | None:
    """Three inputs for a look at shapes; None for an iterator, which that would consume."""
    return None if is_iterator(data) else three_samples(next(input_batches(data, 3, net)))


def three_samples(x: Tensor) -> Tensor:
    """The first three samples, repeated where there are fewer."""
    return torch.cat([x[:3]] * 3)[:3].clone()


def is_iterator(data: Any) -> bool:
    """True if data can be read only once."""
    return hasattr(data, "__next__")


def count_batches(data: Any, batch: int) -> int | None:
    """Number of batches, for a progress bar; None where it is unknown."""
    if is_iterator(data):
        return None
    x = _whole_set(data)
    if x is not None:
        return -(-len(x) // check_int("batch", batch))
    return len(data) if hasattr(data, "__len__") else None
