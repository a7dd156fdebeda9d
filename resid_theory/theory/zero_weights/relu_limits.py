"""Limits of the Hessian along given weights, for activations with a kink at zero (ReLU).

On the way to zero along a ray every sample stays on one side of every unit's kink, so each unit
keeps its own slopes. Averaged over symmetric directions they give the least-squares line's slope,
1/2 for ReLU; a single direction does not.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import check_choice
from resid_theory.theory.zero_weights.architecture import Architecture
from resid_theory.theory.zero_weights.zero_point_statistics import (
    FromSamples,
    add_chain,
    by_columns,
)

__all__ = ["check_direction", "directed_hessian", "is_direction", "own_correlations"]


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


def _first_layers(net: Architecture, kink: Any) -> list[Tensor]:
    """Every block's first matrix, with the bias as last column, in float64."""
    firsts = [w.detach().to(torch.float64) for w in kink.layers()[:: net.n]]
    if kink.bias is None:
        return firsts
    columns = kink.bias.detach().to(torch.float64).unsqueeze(-1)
    return [torch.cat([w, column], dim=1) for w, column in zip(firsts, columns, strict=True)]


def own_correlations(local: FromSamples, net: Architecture, kink: Any) -> Tensor:
    """M of every block and hidden unit, (R, h, d, q): each sample has the slopes of its side."""
    m, (width, inputs) = len(local.features), local.correlation.shape
    seconds = [w.detach().to(torch.float64) for w in kink.layers()[1::2]]
    own = []
    for first, second in zip(_first_layers(net, kink), seconds, strict=True):
        z = local.features @ first.mT
        inner = _by_side(z, net.mid.left, net.mid.right)
        outer = _by_side((inner * z) @ second.mT, net.post.left, net.post.right)
        weighted = (outer * local.gradients).unsqueeze(2) * local.features.unsqueeze(1)
        own.append((inner.mT @ weighted.flatten(1) / m).view(-1, width, inputs))
    return torch.stack(own)


def directed_hessian(local: FromSamples, net: Architecture, kink: Any) -> Tensor:
    """The n = 1 Hessian with every block's own slopes, dense, in the paper's order."""
    post, firsts = net.post, _first_layers(net, kink)
    outputs = [local.features @ first.mT for first in firsts]
    slopes = [_by_side(z, post.left, post.right) for z in outputs]
    ones = torch.ones(local.width, local.width, dtype=outputs[0].dtype, device=outputs[0].device)
    rows: list[list[Tensor]] = [[] for _ in slopes]
    for later, own in enumerate(slopes):
        for earlier in range(later + 1):
            masked = own.unsqueeze(2) * local.curvatures * slopes[earlier].unsqueeze(1)
            entries = replace(local, curvatures=masked).pair_moment(ones)
            if earlier < later:
                passed = replace(local, gradients=own * local.gradients)
                add_chain(entries, passed.chain_moment(slopes[earlier]))
            else:
                bends = _by_side(outputs[later], post.second_left, post.second_right)
                if bool(bends.any()):
                    curved = replace(local, gradients=bends * local.gradients).gradient_moment()
                    entries.diagonal(dim1=0, dim2=2).add_(curved.permute(1, 2, 0))
            rows[later].append(by_columns(entries))
    for row, later_rows in enumerate(rows):
        rows[row] = later_rows + [rows[k][row].mT for k in range(row + 1, len(rows))]
    return torch.cat([torch.cat(row, dim=1) for row in rows])
