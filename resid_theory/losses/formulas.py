"""Divisors of the losses of torch, and the axis of their classes."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100
"""The label that counts for nothing, as in ``torch.nn.CrossEntropyLoss``."""

# Means over all elements of targets that have the output's shape.
_ELEMENTWISE = {
    nn.MSELoss: F.mse_loss,
    nn.L1Loss: F.l1_loss,
    nn.SmoothL1Loss: F.smooth_l1_loss,
    nn.HuberLoss: F.huber_loss,
    nn.BCELoss: F.binary_cross_entropy,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.SoftMarginLoss: F.soft_margin_loss,
    nn.PoissonNLLLoss: F.poisson_nll_loss,
}
_LABELLED = {nn.CrossEntropyLoss: F.cross_entropy, nn.NLLLoss: F.nll_loss}


def formula_of(function: Any) -> dict[str, Any]:
    """Keywords of ``Loss`` for a module or function of torch; none for any other callable."""
    sums = getattr(function, "reduction", "mean") == "sum"
    if type(function) in _ELEMENTWISE or function in _ELEMENTWISE.values():
        return {"targets": "shape", "weights": _elements, "sums": sums}
    if type(function) in _LABELLED:
        weight = function.weight
        if getattr(function, "label_smoothing", 0.0) and weight is not None and not weight.all():
            return {"weights": None, "sums": sums}  # labels that weigh nothing have a loss, too
        return {"weights": _label_weights(weight, function.ignore_index), "sums": sums}
    if function in _LABELLED.values():
        return {"weights": _label_weights(None, IGNORED)}
    return {}


def class_axis(output: Tensor, target: Tensor) -> int | None:
    """The axis of logits that their labels do not have, the last one of three; None without."""
    last = output.dim() - 1
    for axis in (last, 1) if output.dim() == 3 else (1, last):
        without = [*output.shape[:axis], *output.shape[axis + 1 :]]
        if last > 0 and tuple(target.shape) in (tuple(output.shape), tuple(without)):
            return axis
    return None


def names_class(output: Tensor, labels: Tensor) -> Tensor:
    """Labels that are classes of the outputs; others, such as -100 or 255, count for nothing."""
    axis = class_axis(output, labels)
    return (labels >= 0) & (labels < output.shape[1 if axis is None else axis])


def valid_labels(target: Tensor) -> Tensor:
    """Number of labels of each sample that count, or of its distributions, (m,)."""
    if target.is_floating_point():
        axis = class_axis(target, target)
        assert axis is not None
        return torch.full((len(target),), target[:1].numel() / target.shape[axis])
    return (target.long() != IGNORED).reshape(len(target), -1).sum(1)


def _elements(target: Tensor) -> Tensor:
    return torch.full((len(target),), float(target[:1].numel()))


def _label_weights(weight: Tensor | None, ignored: int) -> Callable[[Tensor], Tensor]:
    """The divisor of ``CrossEntropyLoss`` and ``NLLLoss``: class weights of labels that count."""

    def weights(target: Tensor) -> Tensor:
        if target.is_floating_point():  # probabilities, classes along the second axis
            if target.dim() < 2:
                shape = tuple(target.shape)
                raise ValueError(f"data y: got probabilities of shape {shape}, needs (m, k, ...)")
            return torch.full((len(target),), target[:1].numel() / target.shape[1])
        valid = target.long() != ignored
        each = valid.double()
        if weight is not None:
            each = each * weight.to(target.device)[valid * target.long()]
        return each.reshape(len(target), -1).sum(1)

    return weights
