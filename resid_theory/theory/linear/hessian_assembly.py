"""Assembly of the Hessian of a linear net, at the speed of writing a matrix."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resid_theory.data.moments import Moments
from resid_theory.theory.linear.linear_nets import LayerMaps, Unit, prepare, residual

__all__ = ["linear_hessian"]

_SLAB = 1 << 15  # entries written at a time: torch runs so few on one thread, and they stay cached


def linear_hessian(net: Any, data: Any) -> Tensor:
    r"""Exact Hessian of :func:`linear_loss` at any weights, in closed form.

    With :math:`C_{k'k}` the map from the output of layer k to the input of a later layer k', entry
    (i, j) of layer k' against entry (p, q) of layer k is

    .. math:: (L_{k'}^T L_k)_{ip} (R_{k'} S_{xx} R_k^T)_{jq}
        + (L_{k'}^T \Gamma R_k^T)_{iq} (C_{k'k})_{jp},

    the second term for k earlier than k' and mirrored otherwise. The cost is that of writing the
    matrix: for every row of a weight two products of vectors of length P.

    Args:
        net: A linear ``ShortcutNet``, a sequence of :class:`Unit`, or of matrices (a plain net).
        data: Moments, or data whose moments are taken.

    Returns:
        (P, P), float64, in the order of ``parameters_to_vector``.

    Raises:
        ValueError: If the net is not linear or the widths do not fit.

    Source:
        Derived here for any weights; at zero weights it is Theorem 2 of arXiv:1611.01186.
    """
    factors = _Factors.of(*prepare(net, data))
    size, count = len(factors.input_of), len(factors.maps.layers)
    device = factors.before.device
    if device.type != "cpu":
        hessian = torch.empty(size, size, dtype=torch.float64, device=device)
        for layer in range(count):
            factors.write(layer, hessian)
        return hessian
    # NumPy asks the kernel for huge pages and torch does not: touching new memory, which is most
    # of the cost here, is then three times faster.
    hessian = torch.from_numpy(np.empty((size, size)))
    # Threads of Python, each with operations too small for torch to split: threads inside every
    # operation would meet some thousand times, and wait for each other on a busy machine.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(lambda layer: factors.write(layer, hessian), range(count)):
            pass
    return hessian


@dataclass(frozen=True, kw_only=True, eq=False)
class _Factors:
    """The factors of every pair of layers, all layers side by side."""

    maps: LayerMaps
    moments: Moments
    gamma: Tensor
    before: Tensor  # R_k one above the other, (all inputs, d)
    after: Tensor  # L_k side by side, (k, all outputs)
    responses: Tensor  # C, (all inputs, all outputs)
    # Rows of the Hessian, inputs and outputs of every layer among those of all layers.
    parameters: list[slice]
    inputs: list[slice]
    outputs: list[slice]
    # Input and output of every parameter, (P,).
    input_of: Tensor
    output_of: Tensor

    @classmethod
    def of(cls, units: list[Unit], maps: LayerMaps, moments: Moments) -> "_Factors":
        before, after = torch.cat(maps.before, -2), torch.cat(maps.after, -1)
        inputs = _slices([w.shape[1] for w in maps.layers])
        outputs = _slices([w.shape[0] for w in maps.layers])
        grids = [
            torch.meshgrid(
                torch.arange(rows.start, rows.stop, device=before.device),
                torch.arange(columns.start, columns.stop, device=before.device),
                indexing="ij",
            )
            for rows, columns in zip(outputs, inputs, strict=True)
        ]
        return cls(
            maps=maps,
            moments=moments,
            gamma=residual(maps, moments),
            before=before,
            after=after,
            responses=_responses(units, before.shape[0], after.shape[1]),
            parameters=_slices([w.numel() for w in maps.layers]),
            inputs=inputs,
            outputs=outputs,
            input_of=torch.cat([columns.reshape(-1) for _, columns in grids]),
            output_of=torch.cat([rows.reshape(-1) for rows, _ in grids]),
        )

    def write(self, layer: int, hessian: Tensor) -> None:
        """Write the rows of one layer."""
        rows, columns = self.inputs[layer], self.outputs[layer]
        left, right = self.maps.after[layer].mT, self.maps.before[layer]
        # Layers before this one bring the curvature term through their own C, layers after it
        # through this one's.
        crossed = left @ self.gamma @ self.before.mT
        crossed[:, rows.start :] = self.responses[rows.start :, columns].mT
        reached = right @ self.gamma.mT @ self.after
        reached[:, : columns.start] = self.responses[rows, : columns.start]
        own = hessian[self.parameters[layer]]
        _write_strip(
            own.view(*self.maps.layers[layer].shape, len(hessian)),
            (left @ self.after)[:, self.output_of],
            (right @ self.moments.sxx @ self.before.mT)[:, self.input_of],
            crossed[:, self.input_of],
            reached[:, self.output_of],
        )


def _write_strip(strip: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> None:
    """strip[i, j] = a[i] * b[j] + c[i] * d[j], vectors of length P, a few rows at a time."""
    step = max(1, _SLAB // strip.shape[2])
    for i, rows in enumerate(strip):
        for j in range(0, len(rows), step):
            slab = rows[j : j + step]
            torch.mul(a[i], b[j : j + step], out=slab)
            slab.addcmul_(c[i], d[j : j + step])


def _responses(units: list[Unit], inputs: int, outputs: int) -> Tensor:
    """C of every pair of layers, (all inputs, all outputs): zero unless the column's is earlier."""
    like = units[0].weights[0]
    responses = like.new_zeros(inputs, outputs)
    forward = like.new_zeros(like.shape[-1], outputs)
    row = column = 0
    for unit in units:
        inner = forward
        for weight in unit.weights:
            out, width = weight.shape
            responses[row : row + width] = inner
            inner = weight @ inner
            inner[:, column : column + out].diagonal().add_(1.0)
            row, column = row + width, column + out
        forward = inner if unit.shortcut is None else inner + unit.shortcut @ forward
    return responses


def _slices(sizes: list[int]) -> list[slice]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
