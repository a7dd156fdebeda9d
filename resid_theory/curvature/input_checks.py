"""Whether data, net and loss fit one another, asked before the work starts."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import check_finite
from resid_theory.data import Images
from resid_theory.losses import Loss, check_mean, check_target

__all__ = [
    "check_batches",
    "check_inputs",
    "check_net",
    "check_output",
    "pixels_as_inputs",
    "trainable",
]


def check_net(net: nn.Module) -> None:
    """Refuse what is no module.

    Args:
        net: What the caller passed.

    Raises:
        ValueError: If it is not a ``torch.nn.Module``.
    """
    if not isinstance(net, nn.Module):
        raise ValueError(f"net: got {type(net).__name__}, needs a torch.nn.Module")


def check_inputs(net: nn.Module, parts: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Refuse weights that are not finite, and data of another dtype than theirs.

    Args:
        net: The module.
        parts: Batches (x, y).

    Raises:
        ValueError: If one of these is so, or nothing is trainable.
    """
    for key, weight in net.named_parameters():
        check_finite(f"net {key}", weight)
    parameter = trainable(net)[0]
    for x, y in parts:
        for name, value in (("x", x), ("y", y)):
            if value.is_floating_point() and value.dtype != parameter.dtype:
                raise ValueError(
                    f"data {name}: has dtype {value.dtype}, the net {parameter.dtype}; needs one "
                    f"dtype, e.g. {name}.to({parameter.dtype}) or net.to({value.dtype})"
                )


def check_batches(net: nn.Module, loss: str | Loss, parts: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Run two samples of every shape, and hold the loss against what comes out.

    Args:
        net: The module, in the mode that it is to be measured in.
        loss: As in ``losses.loss_function``.
        parts: Batches (x, y).

    Raises:
        ValueError: If the net does not take the samples, or the targets or the loss do not fit.
    """
    outputs: dict[Any, Any] = {}
    with torch.no_grad():
        for x, y in parts:
            key = (x.shape[1:], x.dtype)
            if key not in outputs:
                outputs[key] = check_output(net, loss, x[:2], y[:2])
            if not callable(loss):
                one = outputs[key][:1]
                check_target(loss, one.expand(len(y), *one.shape[1:]), y)


def check_output(net: nn.Module, loss: str | Loss, x: Tensor, y: Tensor) -> Any:
    """Run a few samples, and hold the loss against what comes out.

    Args:
        net: The module.
        loss: As in ``losses.loss_function``.
        x: Some samples.
        y: Their targets.

    Returns:
        What the net gives.

    Raises:
        ValueError: If the net does not take them, or its output is not one a sample.
    """
    try:
        output = net(x.clone())  # cloned: a net that starts in place would overwrite the data
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(
            f"data x: the net does not take samples of shape {tuple(x.shape[1:])} and dtype "
            f"{x.dtype}: {error}"
        ) from error
    if callable(loss):
        if isinstance(output, Tensor) and len(output) == len(x):
            check_mean(loss, output, y)
    elif not isinstance(output, Tensor) or output.dim() == 0 or len(output) != len(x):
        given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else repr(type(output))
        raise ValueError(
            f"net: gives {given} for {len(x)} samples; the loss {loss!r} needs a tensor with one "
            "output a sample along its first axis"
        )
    return output


def trainable(net: nn.Module) -> list[Tensor]:
    """The parameters that a Hessian has rows for.

    Args:
        net: The module.

    Returns:
        Those that require a gradient, in the net's order.

    Raises:
        ValueError: If there is none.
    """
    parameters: list[Tensor] = [p for p in net.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("net: has no trainable parameters, needs at least one requires_grad=True")
    return parameters


def pixels_as_inputs(data: Any, net: nn.Module) -> Any:
    """Images as the pair (x, y) that a dense Hessian reads; other data as they are.

    Args:
        data: What the caller passed.
        net: Whose dtype and device the inputs take.

    Returns:
        (inputs, labels) for :class:`Images`, which are normalized at once; else ``data``.
    """
    if not isinstance(data, Images):
        return data
    like = next(net.parameters())
    labels = data.labels.to(like.device)
    return data.inputs(data.pixels.to(like.device), like.dtype), labels
