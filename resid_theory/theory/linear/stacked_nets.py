r"""Loss and gradient of many linear nets at once, from the moments of the data alone.

With the notation of :mod:`resid_theory.theory.linear.linear_nets`, a forward pass gives every
:math:`R_k`, and a backward pass carries :math:`L_k^T \Gamma` from output to input: three products a
layer for all gradients :math:`L_k^T \Gamma R_k^T`, for any number of samples.
"""

import torch
from torch import Tensor

from resid_theory.data.moments import Moments

__all__ = ["stacked_gradient"]


def stacked_gradient(
    weights: Tensor, moments: Moments, shortcut_depth: int, *, shortcut: bool = True
) -> tuple[Tensor, Tensor]:
    r"""Square loss of stacked plain or n-shortcut linear nets, and its gradient, in closed form.

    Args:
        weights: (layers, rows, d, d), float64, one net a row.
        moments: Moments of data with as many targets as inputs.
        shortcut_depth: Layers n under one shortcut.
        shortcut: Whether the identity is added to each block.

    Returns:
        Losses, (rows,), and gradients, shaped like the weights.

    Example:
        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> moments = rt.Moments(sxx=eye, syx=0 * eye, syy=eye, count=1)
        >>> loss, gradient = stacked_gradient(0 * eye.expand(4, 3, 2, 2), moments, 2)
        >>> loss.tolist(), gradient.abs().max().item()  # 3 nets at zero: the identity, a saddle
        ([2.0, 2.0, 2.0], 0.0)
    """
    n, before, gradient = shortcut_depth, [], torch.empty_like(weights)
    total = torch.eye(weights.shape[-1]).to(weights).expand(weights.shape[1:])
    for start in range(0, len(weights), n):
        inner = total
        for weight in weights[start : start + n]:
            before.append(inner)
            inner = torch.bmm(weight, inner)
        total = total + inner if shortcut else inner
    gamma = total @ moments.sxx - moments.syx
    # <W, Gamma - Syx> / 2 is the quadratic term less the linear one.
    loss = 0.5 * (total * (gamma - moments.syx)).sum((-2, -1)) + 0.5 * moments.syy.trace()
    backward = gamma
    for start in range(len(weights) - n, -1, -n):
        inner = backward
        for layer in range(start + n - 1, start - 1, -1):
            torch.bmm(inner, before[layer].mT, out=gradient[layer])
            inner = torch.bmm(weights[layer].mT, inner)
        backward = backward + inner if shortcut else inner
    return loss, gradient
