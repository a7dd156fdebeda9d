"""Loss and gradient of a batch of networks, from moments or from samples."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from resid_theory.data.moments import Moments
from resid_theory.data.regression import Regression, gather
from resid_theory.losses import Loss
from resid_theory.networks.shortcut import ShortcutNet
from resid_theory.runtime.resources import available_bytes
from resid_theory.theory.linear.stacked_nets import StackedChains

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Weights (layers, rows, d, d) to losses (rows,) and gradients, shaped like the weights."""

_CHUNK = 1 << 26  # bytes of activations at a time on a CPU: more leave its caches, and gain nothing


def objective_of(net: ShortcutNet, loss: Loss, data: Any, like: Tensor) -> Objective:
    """The objective of stacked copies of a net, in dtype and on device of ``like``."""
    dtype, device = like.dtype, like.device
    if net.is_linear and loss.identity and dtype == torch.float64:
        moments = Moments.of(data).to(device)
        _check_widths(net, len(moments.sxx), len(moments.syy))
        return StackedChains(moments, net.shortcut_depth, shortcut=net.shortcut)
    if isinstance(data, Moments):
        raise ValueError(
            f"data: got Moments, which suffice for linear nets with the square loss in float64; "
            f"{net} with the loss {loss.name!r} in {dtype} needs the samples (x, y)"
        )
    samples = gather(data).to(device, dtype)
    _check_widths(net, samples.x.shape[1], samples.y.shape[1])
    return SampledNets(net, loss, samples)


def _check_widths(net: ShortcutNet, inputs: int, targets: int) -> None:
    if (inputs, targets) != (net.width, net.width):
        raise ValueError(
            f"data: has {inputs} inputs and {targets} targets, the net maps {net.width} to "
            f"{net.width}; needs equal widths"
        )


class SampledNets:
    """Loss and gradient of stacked n-shortcut nets on all samples, by autograd.

    The nets are evaluated in chunks whose activations fit in memory. A loss that is a callable must
    work under ``torch.vmap``.
    """

    def __init__(self, net: ShortcutNet, loss: Loss, data: Regression) -> None:
        self._net, self._data = net, data
        self._loss = torch.vmap(lambda output: loss(output, data.y))

    def __call__(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (rows,) and gradients of all rows, for weights (layers, rows, d, d)."""
        # Bytes of a row's activations, which are kept for the backward pass.
        row = 3 * len(weights) * self._data.x.numel() * self._data.x.element_size()
        on_gpu = weights.device.type == "cuda"
        limit = available_bytes(weights.device) // 2 if on_gpu else _CHUNK
        chunks = weights.split(max(1, limit // row), dim=1)
        losses, gradients = zip(*map(self._evaluate, chunks), strict=True)
        return torch.cat(losses), torch.cat(gradients, dim=1)

    def _evaluate(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            point = weights.clone().requires_grad_()
            blocks = point.unflatten(0, (self._net.blocks, self._net.shortcut_depth))
            stacked = blocks.permute(2, 0, 1, 3, 4)  # rows first: what the net broadcasts over
            output = torch.func.functional_call(self._net, {"weights": stacked}, (self._data.x,))
            losses = self._loss(output)
            (gradient,) = torch.autograd.grad(losses.sum(), point)
        return losses.detach(), gradient
