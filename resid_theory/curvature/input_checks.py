"""Checks that data, net and loss fit one another, made before the work starts."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import check_finite
from resid_theory.curvature.parameter_selection import trainable_by_name
from resid_theory.data import Batch
from resid_theory.losses import Loss

__all__ = ["NOT_SYMMETRIC", "check_batches", "check_inputs", "check_net", "trainable"]

NOT_SYMMETRIC = (
    "so they cannot come from a twice differentiable loss; the usual causes are a gradient written "
    "by hand and an operation that torch differentiates correctly only once (torch.nn.utils "
    "weight_norm is one)"
)


def check_net(net: nn.Module) -> None:
    """Refuse anything but a ``torch.nn.Module``."""
    if not isinstance(net, nn.Module):
        raise ValueError(f"net: got {type(net).__name__}, needs a torch.nn.Module")


def check_inputs(net: nn.Module, batches: Iterable[Batch]) -> None:
    """Refuse weights that are not finite, and data of another dtype than theirs."""
    for key, weight in net.named_parameters():
        check_finite(f"net {key}", weight)
    dtype = trainable(net)[0].dtype
    for batch in batches:
        for name, value in zip("xy", batch.pair, strict=True) if batch.is_pair else ():
            if value.is_floating_point() and value.dtype != dtype:
                raise ValueError(
                    f"data {name}: has dtype {value.dtype}, the net {dtype}; needs one "
                    f"dtype, e.g. {name}.to({dtype}) or net.to({value.dtype})"
                )


def check_batches(net: nn.Module, loss: Loss, batches: Iterable[Batch]) -> None:
    """Run two samples of every shape, and check targets and loss against the output."""
    outputs: dict[Any, Any] = {}
    with torch.no_grad():
        for batch in batches:
            if not batch.is_pair:
                continue
            x, y = batch.pair
            key = (x.shape[1:], x.dtype)
            if key not in outputs:
                outputs[key] = _checked_output(net, loss, batch.part(0, 2))
            if loss.targets != "any":
                one = outputs[key][:1]
                loss.check_target(one.expand(len(y), *one.shape[1:]), y)


def _checked_output(net: nn.Module, loss: Loss, batch: Batch) -> Any:
    """Run a few samples; refuse outputs that the loss does not take."""
    x, y = batch.pair
    try:
        output = batch.call(net)
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(
            f"data x: the net does not take samples of shape {tuple(x.shape[1:])} and dtype "
            f"{x.dtype}: {error}"
        ) from error
    if loss.targets == "any":
        if isinstance(output, Tensor) and len(output) == len(x):
            loss.check_mean(output, y)
    elif not isinstance(output, Tensor) or output.dim() == 0 or len(output) != len(x):
        given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else repr(type(output))
        raise ValueError(
            f"net: gives {given} for {len(x)} samples; the loss {loss.name!r} needs a tensor with "
            "one output for each sample along its first axis"
        )
    return output


def trainable(net: nn.Module) -> list[Tensor]:
    """The parameters that require a gradient, at least one, in the net's order."""
    return list(trainable_by_name(net).values())
