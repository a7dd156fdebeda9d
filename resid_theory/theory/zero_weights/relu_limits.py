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
from resid_theory.activations import AtZero, derivatives
from resid_theory.theory.zero_weights.zero_point_statistics import (
    Architecture,
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


def _one_sided(at: AtZero, z: Tensor) -> Tensor:
    """Slope at zero on the side from which z approaches it."""
    return _by_side(z, at.left, at.right)


def _by_side(z: Tensor, left: float, right: float) -> Tensor:
    # Filled, not torch.where on two numbers: that gives torch's default dtype, usually float32.
    return torch.full_like(z, left).masked_fill(z > 0, right)


def _first_layers(local: FromSamples, net: Architecture, kink: Any) -> list[Tensor]:
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
    for first, second in zip(_first_layers(local, net, kink), seconds, strict=True):
        z = local.features @ first.mT
        inner = _one_sided(net.mid, z)
        outer = _one_sided(net.post, (inner * z) @ second.mT)
        weighted = (outer * local.gradients).unsqueeze(2) * local.features.unsqueeze(1)
        own.append((inner.mT @ weighted.flatten(1) / m).view(-1, width, inputs))
    return torch.stack(own)


def directed_hessian(local: FromSamples, net: Architecture, kink: Any) -> Tensor:
    """The n = 1 Hessian with every block's own slopes, dense, in the paper's order."""
    firsts = _first_layers(local, net, kink)
    sides = [_one_sided(net.post, local.features @ first.mT) for first in firsts]
    rows: list[list[Tensor]] = [[] for _ in sides]
    for later, own in enumerate(sides):
        for earlier in range(later + 1):
            entries = _directed_pair(local, own, sides[earlier], chained=earlier < later)
            if earlier == later:
                _add_bend(entries, local, net, firsts[later])
            rows[later].append(by_columns(entries))
    for row, later_rows in enumerate(rows):
        rows[row] = later_rows + [rows[k][row].mT for k in range(row + 1, len(rows))]
    return torch.cat([torch.cat(row, dim=1) for row in rows])


def _add_bend(entries: Tensor, local: FromSamples, net: Architecture, first: Tensor) -> None:
    """Add the mean of g[s] s_post''[s] s s^T, with the second derivative on each sample's side."""
    bends = _by_side(local.features @ first.mT, net.post.second_left, net.post.second_right)
    if bool(bends.any()):
        curved = replace(local, gradients=bends * local.gradients).gradient_moment()
        entries.diagonal(dim1=0, dim2=2).add_(curved.permute(1, 2, 0))


def _directed_pair(local: FromSamples, later: Tensor, earlier: Tensor, *, chained: bool) -> Tensor:
    """Entries (s, q', p, q) of a pair of blocks, whose slopes are (m, d) each."""
    masked = later.unsqueeze(2) * local.curvatures * earlier.unsqueeze(1)
    ones = torch.ones(local.width, local.width, dtype=masked.dtype, device=masked.device)
    entries = replace(local, curvatures=masked).pair_moment(ones)
    if chained:
        slopes, _ = derivatives(local.pre, local.inputs)
        products = (later * local.gradients).unsqueeze(2) * (slopes * earlier).unsqueeze(1)
        chain = products.flatten(1).mT @ local.features / len(slopes)
        add_chain(entries, chain.view(local.width, slopes.shape[1], -1))
    return entries
