r"""Loss and gradient of many linear nets at once, from the moments of the data alone.

With the notation of :mod:`resid_theory.theory.linear.linear_nets`, a forward pass gives every
:math:`R_k`, and a backward pass carries :math:`L_k^T \Gamma` from output to input: three products a
layer for all gradients :math:`L_k^T \Gamma R_k^T`, for any number of samples.
"""

import torch
from torch import Tensor

from resid_theory.data.moments import Moments


class StackedChains:
    r"""Square loss of stacked plain or n-shortcut linear nets, with gradients in closed form.

    Buffers are kept between calls, so **the gradient is overwritten by the next call**.

    Args:
        moments: Moments of data with as many targets as inputs.
        shortcut_depth: Layers n under one shortcut.
        shortcut: Whether the identity is added to each block.

    Example:
        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> chains = StackedChains(rt.Moments(sxx=eye, syx=0 * eye, syy=eye, count=1), 2)
        >>> loss, gradient = chains(torch.zeros(4, 3, 2, 2, dtype=torch.float64))  # 3 nets at zero
        >>> loss.tolist(), gradient.abs().max().item()  # the identity maps x to x; a saddle
        ([2.0, 2.0, 2.0], 0.0)
    """

    def __init__(self, moments: Moments, shortcut_depth: int, *, shortcut: bool = True) -> None:
        self.moments, self.shortcut_depth, self.shortcut = moments, shortcut_depth, shortcut
        self._before = self._gradient = torch.empty(0)

    def __call__(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (rows,) and gradients of weights (layers, rows, d, d), float64, one net a row."""
        if self._before.shape != weights.shape:
            self._before, self._gradient = torch.empty_like(weights), torch.empty_like(weights)
        n, bmm = self.shortcut_depth, torch.bmm
        forward = torch.eye(weights.shape[-1]).to(weights).expand(weights.shape[1:])
        for start in range(0, len(weights), n):
            inner = forward
            for layer in range(start, start + n):
                self._before[layer] = inner
                inner = bmm(weights[layer], inner)
            forward = forward + inner if self.shortcut else inner
        gamma = forward @ self.moments.sxx - self.moments.syx
        # <W, Gamma - Syx> / 2 is the quadratic term less the linear one.
        loss = 0.5 * (forward * (gamma - self.moments.syx)).sum((-2, -1))
        backward = gamma
        for start in range(len(weights) - n, -1, -n):
            inner = backward
            for layer in range(start + n - 1, start - 1, -1):
                bmm(inner, self._before[layer].mT, out=self._gradient[layer])
                inner = bmm(weights[layer].mT, inner)
            backward = backward + inner if self.shortcut else inner
        return loss + 0.5 * self.moments.syy.trace(), self._gradient
