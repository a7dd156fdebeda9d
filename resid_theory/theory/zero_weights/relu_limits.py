"""Limits of the Hessian along given weights, for activations with a kink at zero (ReLU).

On the way to zero along a ray every sample stays on one side of every unit's kink, so each unit
keeps its own slopes. Averaged over symmetric directions they give the least-squares line's slope,
1/2 for ReLU; a single direction does not.
"""

from typing import Any

import torch
from torch import Tensor

from resid_theory._check import check_choice
from resid_theory.theory.zero_weights.architecture import Architecture
from resid_theory.theory.zero_weights.zero_point_statistics import LossAtZero


def is_direction(kink: Any) -> bool:
    """Tell a net that gives a direction from the name of a rule."""
    if isinstance(kink, str):
        check_choice("kink", kink, ("line", "mean"))
        return False
    if not hasattr(kink, "layers"):
        raise ValueError(f"kink: got {type(kink).__name__}, needs 'line', 'mean' or a net")
    return True


def check_direction(kink: Any, net: Architecture, hidden: int, width: int) -> None:
    """Refuse a net of another architecture."""
    given = (kink.blocks, kink.shortcut_depth, kink.hidden, kink.width, kink.bias is not None)
    needed = (net.blocks, net.n, hidden, width, net.bias)
    if given != needed:
        raise ValueError(
            f"kink: the net has (blocks, shortcut_depth, hidden, width, bias) = {given}, "
            f"needs {needed}"
        )


def _by_side(z: Tensor, left: float, right: float) -> Tensor:
    """``right`` where z > 0, ``left`` elsewhere."""
    # Filled, not torch.where on two numbers: that gives torch's default dtype, usually float32.
    return torch.full_like(z, left).masked_fill(z > 0, right)


def _first_outputs(local: LossAtZero, net: Architecture, kink: Any) -> list[Tensor]:
    """Samples behind every block's first matrix and its bias, in float64."""
    weights = [w.to(local.features) for w in kink.layers()[:: net.n]]
    if kink.bias is not None:
        columns = kink.bias.to(local.features).unsqueeze(-1)
        weights = [torch.cat(pair, dim=1) for pair in zip(weights, columns, strict=True)]
    return [local.features @ weight.mT for weight in weights]


def own_correlations(local: LossAtZero, net: Architecture, kink: Any) -> Tensor:
    """M of every block and hidden unit, (R, h, d, q), n = 1: (R, d, q)."""
    # Each sample has the slopes of its side.
    if net.n == 1:
        slopes, _ = own_derivatives(local, net, kink)
        return torch.stack([(s * local.gradients).mT @ local.features / len(s) for s in slopes])
    own, seconds = [], kink.layers()[1::2]
    for z, second in zip(_first_outputs(local, net, kink), seconds, strict=True):
        inner = _by_side(z, net.mid.left, net.mid.right)
        written = (inner * z) @ second.to(z).mT
        outer = _by_side(written, net.post.left, net.post.right)
        weighted = (outer * local.gradients).unsqueeze(2) * local.features.unsqueeze(1)
        own.append((inner.mT @ weighted.flatten(1) / len(z)).view(-1, *local.correlation.shape))
    return torch.stack(own)


def own_derivatives(local: LossAtZero, net: Architecture, kink: Any) -> list[list[Tensor]]:
    """First and second derivatives of ``post`` in every block, of each sample and unit, n = 1."""
    post, outputs = net.post, _first_outputs(local, net, kink)
    sides = (post.left, post.right), (post.second_left, post.second_right)
    return [[_by_side(z, *side) for z in outputs] for side in sides]
