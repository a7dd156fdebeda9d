"""Assembly of the Hessian of a linear net, at the speed of writing a matrix."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resid_theory.theory.linear.linear_nets import forward, prepare, residual

_SLAB = 1 << 15  # entries written at a time: torch runs so few on one thread, and they stay cached


def linear_hessian(net: Any, data: Any) -> Tensor:
    r"""Exact Hessian of :func:`linear_loss` at any weights, in closed form.

    With :math:`C_{k'k}` the map from the output of layer k to the input of a later layer k', entry
    (i, j) of layer k' against entry (p, q) of layer k is

    .. math:: (L_{k'}^T L_k)_{ip} (R_{k'} S_{xx} R_k^T)_{jq}
        + (L_{k'}^T \Gamma R_k^T)_{iq} (C_{k'k})_{jp},

    the second term for k earlier than k' and mirrored otherwise. The cost is that of writing it.

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
    units, maps, moments = prepare(net, data)
    gamma, layers = residual(maps, moments), maps.layers
    # All layers side by side: R_k one above the other (all inputs, d), L_k (k, all outputs).
    before, after = torch.cat(maps.before), torch.cat(maps.after, 1)
    # C of every pair of layers, (all inputs, all outputs): zero unless the column's is earlier.
    own = torch.eye(after.shape[1]).to(after).split([len(w) for w in layers])
    responses = torch.cat(forward(units, after.new_zeros(before.shape[1], after.shape[1]), own)[0])
    parameters = _slices([w.numel() for w in layers])
    inputs, outputs = _slices([w.shape[1] for w in layers]), _slices([w.shape[0] for w in layers])
    grids = [
        torch.meshgrid(
            torch.arange(rows.start, rows.stop).to(before.device),
            torch.arange(columns.start, columns.stop).to(before.device),
            indexing="ij",
        )
        for rows, columns in zip(outputs, inputs, strict=True)
    ]
    # Input and output of every parameter, (P,).
    input_of = torch.cat([columns.reshape(-1) for _, columns in grids])
    output_of = torch.cat([rows.reshape(-1) for rows, _ in grids])
    size = len(input_of)

    def write(layer: int) -> None:
        """Write the rows of one layer."""
        rows, columns = inputs[layer], outputs[layer]
        left, right = maps.after[layer].mT, maps.before[layer]
        # Layers before this one bring the curvature term through their own C, layers after it
        # through this one's.
        crossed = left @ gamma @ before.mT
        crossed[:, rows.start :] = responses[rows.start :, columns].mT
        reached = right @ gamma.mT @ after
        reached[:, : columns.start] = responses[rows, : columns.start]
        # strip[i, j] = a[i] * b[j] + c[i] * d[j], vectors of length P, a few rows at a time.
        a, b = (left @ after)[:, output_of], (right @ moments.sxx @ before.mT)[:, input_of]
        c, d = crossed[:, input_of], reached[:, output_of]
        strip = hessian[parameters[layer]].view(*layers[layer].shape, size)
        step = max(1, _SLAB // size)
        for i, part in enumerate(strip):
            for j in range(0, len(part), step):
                slab = part[j : j + step]
                torch.mul(a[i], b[j : j + step], out=slab)
                slab.addcmul_(c[i], d[j : j + step])

    if before.device.type != "cpu":
        hessian = torch.empty(size, size, dtype=torch.float64, device=before.device)
        for layer in range(len(layers)):
            write(layer)
        return hessian
    # NumPy asks the kernel for huge pages and torch does not: touching new memory, which is most
    # of the cost here, is then three times faster.
    hessian = torch.from_numpy(np.empty((size, size)))
    # Threads of Python, each with operations too small for torch to split: threads inside every
    # operation would meet some thousand times, and wait for each other on a busy machine.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(write, range(len(layers))))
    return hessian


def _slices(sizes: list[int]) -> list[slice]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
