"""Losses by name. All are means over samples, as in the theory of the papers."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resid_theory._check import check_choice

__all__ = [
    "LOSSES",
    "Loss",
    "check_mean",
    "check_outputs",
    "check_scalar",
    "check_target",
    "loss_function",
    "output_derivatives",
]

Loss = Callable[[Tensor, Tensor], Tensor]


def square(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared error of outputs (m, ...), summed over outputs, mean over samples."""
    # F.mse_loss is 2/k times it for k outputs. Not flatten(1): an output (m,) has no such axis.
    return 0.5 * (output - target).square().sum() / len(output)


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits (m, k) and labels (m,) or probabilities (m, k), mean, in nats."""
    # torch takes int64 and uint8 labels only; NumPy often gives int32.
    return F.cross_entropy(output, target if target.is_floating_point() else target.long())


LOSSES: dict[str, Loss] = {"square": square, "cross_entropy": cross_entropy}


def loss_function(loss: str | Loss) -> Loss:
    """Return a key of ``LOSSES`` as its callable, and a callable as it is."""
    return loss if callable(loss) else LOSSES[check_choice("loss", loss, list(LOSSES))]


def check_target(loss: str | Loss, output: Tensor, target: Tensor) -> None:
    """Raise ValueError for targets that do not fit a named loss, before broadcasting hides it."""
    if loss == "cross_entropy" and not target.is_floating_point():
        classes = output.shape[1] if output.dim() > 1 else 0
        if target.dim() != 1:
            raise ValueError(f"data y: got labels of shape {tuple(target.shape)}, needs (m,)")
        labels = target.long()  # bool has no minimum
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"data y: got class labels from {low} to {high} for {classes} outputs, "
                f"needs labels in 0..{classes - 1}"
            )
    elif loss in ("square", "cross_entropy") and output.shape != target.shape:
        raise ValueError(
            f"data y: got shape {tuple(target.shape)} for outputs of shape {tuple(output.shape)}; "
            f"the loss {loss!r} needs equal shapes"
            + (" or class indices (m,) of an integer dtype" if loss == "cross_entropy" else "")
        )
    elif loss == "square" and not target.is_floating_point():
        raise ValueError(f"data y: got dtype {target.dtype}, the square loss needs floating point")


def check_outputs(output: Any, samples: int) -> Tensor:
    """Return a net's outputs (batch, classes); a ValueError says which others it gave."""
    if isinstance(output, Tensor) and output.dim() == 2:
        return output
    got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(f"net: gives {got} for {samples} samples, needs (batch, classes)")


def output_derivatives(loss: str | Loss, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    r"""Gradient and Hessian of every sample's loss with respect to its own output.

    Args:
        loss: A name or a callable ``(output, target) -> scalar``, a mean over samples.
        output: Network outputs, (m, k).
        target: Targets in the form that the loss needs.

    Returns:
        :math:`g_\mu = \nabla \ell_\mu`, (m, k), and :math:`H_\mu = \nabla^2 \ell_\mu`, (m, k, k),
        without the 1/m of the mean.

    Raises:
        ValueError: If the targets do not fit, or the loss is not a mean over samples.
    """
    check_target(loss, output, target)
    m, k = output.shape
    if loss == "square":
        eye = torch.eye(k, dtype=output.dtype, device=output.device)
        return output - target, eye.expand(m, k, k)
    function = loss_function(loss)
    check_mean(function, output, target)
    with torch.inference_mode(False), torch.enable_grad():
        point = output.detach().clone().requires_grad_()
        value = check_scalar(m * function(point, target))
        (grad,) = torch.autograd.grad(value, point, create_graph=True)
        hessians = torch.zeros(m, k, k, dtype=output.dtype, device=output.device)
        for j in range(k if grad.requires_grad else 0):  # a linear loss has a constant gradient
            (hessians[:, j],) = torch.autograd.grad(
                grad[:, j].sum(), point,
                retain_graph=True, allow_unused=True, materialize_grads=True,
            )  # fmt: skip
    return grad.detach(), hessians


def check_scalar(value: Tensor) -> Tensor:
    """Return the value of a loss; ValueError if it is no scalar or has no gradient."""
    if not isinstance(value, Tensor) or value.dim() != 0:
        kind = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(type(value))
        raise ValueError(f"loss: returned {kind}, needs a scalar tensor, the mean over samples")
    if not value.requires_grad:
        raise ValueError(
            "loss: its value carries no gradient, needs one computed from the outputs by "
            "differentiable operations (without detach or item)"
        )
    return value


def check_mean(function: Loss, output: Tensor, target: Tensor) -> None:
    """Raise ValueError if a loss on all samples is not the mean of the losses on two parts."""
    # A sum, or a loss that couples samples, would silently give wrong Hessians.
    if len(output) < 2:
        return
    with torch.no_grad():
        value = function(output, target)
        if not isinstance(value, Tensor) or value.dim() != 0:
            check_scalar(value)
        whole = float(value)
        first = float(function(output[:1], target[:1]))
        rest = float(function(output[1:], target[1:]))
    mean = (first + (len(output) - 1) * rest) / len(output)
    # Both are sums of m rounded terms; the square root of the precision is far above round-off.
    tolerance = torch.finfo(output.dtype).eps ** 0.5 * max(abs(whole), abs(mean), abs(first))
    if abs(whole - mean) > tolerance:
        raise ValueError(
            f"loss: {whole:.6g} on all {len(output)} samples, but {mean:.6g} as the mean of "
            "its parts; needs a mean over samples (a sum: divide it by the number of samples)"
        )
