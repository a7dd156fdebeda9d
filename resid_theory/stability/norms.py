"""Norms of linear layers as operators: exact, for every padding mode, without the matrix."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resid_theory.stability.linear_maps import CONVOLUTIONS

__all__ = ["operator_frobenius", "row_norms"]


def operator_frobenius(layer: nn.Module, weight: Tensor, size: Sequence[int]) -> Tensor:
    r"""Frobenius norm of a layer's dense linear map on inputs of a given size.

    Each axis has its own table: how many outputs read one input through the taps t and t'. The
    product of the tables weighs the products of kernel entries:

    .. math:: \|A\|_F^2 = \sum_{t, t'} \Big(\sum_{o, i} K_{oit} K_{oit'}\Big) \prod_a C_a(t_a, t'_a)

    With zero padding two taps never meet, and what is left is the count of valid outputs of each
    tap; circular, reflected and replicated borders add the taps that meet there.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d``, ``2d``, ``3d``: stride, padding, dilation, groups.
        weight: (out, in / groups, *kernel); the layer's own or one of its shape.
        size: Spatial size of the input, one number for each axis of the kernel; for ``nn.Linear``
            empty.

    Returns:
        A scalar, float64.

    Source:
        Derived here; for zero padding the count of valid positions is elementary.

    Example:
        >>> layer = torch.nn.Conv1d(1, 1, 3, padding=1)
        >>> round(operator_frobenius(layer, torch.ones(1, 1, 3), [4]).item() ** 2, 12)
        10.0
    """
    weight = weight.detach().to(torch.float64)
    if not isinstance(layer, CONVOLUTIONS):
        return row_norms(weight.reshape(1, -1))[0]
    tables = [_table(layer, axis, length) for axis, length in enumerate(size)]
    scale = weight.abs().max()
    if scale == 0:
        return scale
    weight = weight / scale  # squares of weights near zero would underflow
    if all(bool((table == table.diagonal().diag()).all()) for table in tables):
        squares = weight.square().sum((0, 1))
        for axis, table in enumerate(tables):
            shape = [-1 if a == axis else 1 for a in range(len(tables))]
            squares = squares * table.diagonal().view(shape).to(squares)
        return scale * squares.sum().sqrt()
    flat = weight.flatten(2).flatten(0, 1)
    counts = tables[0]
    for table in tables[1:]:
        counts = torch.kron(counts, table)
    return scale * (flat.T @ flat * counts.to(flat)).sum().sqrt()


def _table(layer: nn.Module, axis: int, length: int) -> Tensor:
    """C(t, t'): outputs along one axis that read the same input through the taps t and t'."""
    assert isinstance(layer, CONVOLUTIONS)
    side, step, stride = layer.kernel_size[axis], layer.dilation[axis], layer.stride[axis]
    # The reversed list ends with the first axis: (left, right) of the last axis come first.
    pads = layer._reversed_padding_repeated_twice
    left, right = pads[-2 * axis - 2], pads[-2 * axis - 1]
    outputs = (length + left + right - step * (side - 1) - 1) // stride + 1
    position = stride * torch.arange(outputs) + step * torch.arange(side)[:, None] - left
    source = _source(position, length, layer.padding_mode)
    same = (source[:, None] == source[None]) & (source[:, None] >= 0)
    return same.sum(2).to(torch.float64)


def _source(position: Tensor, length: int, mode: str) -> Tensor:
    """Which input stands at a padded position; -1 for none."""
    if mode == "circular":
        return position % length
    if mode == "replicate":
        return position.clamp(0, length - 1)
    if mode == "reflect":
        mirrored = position.abs()
        return torch.where(mirrored >= length, 2 * (length - 1) - mirrored, mirrored)
    return torch.where((position < 0) | (position >= length), -1, position)


def row_norms(x: Tensor) -> Tensor:
    """Euclidean norm of every row, without over- or underflow.

    Args:
        x: (rows, n).

    Returns:
        (rows,), float64, on x's device.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    norms = torch.linalg.vector_norm(x, dim=1)
    low = math.sqrt(torch.finfo(x.dtype).tiny / torch.finfo(x.dtype).eps)
    # A square below `low` lost digits, one above the largest number is inf: scale those rows.
    odd = ~((norms > low) & (norms < torch.inf))
    norms = norms.to(torch.float64)
    if bool(odd.any()):
        rows = x[odd].to(torch.float64)
        scale = rows.abs().amax(1, keepdim=True)
        safe = torch.where(scale > 0, scale, 1.0)
        norms[odd] = safe[:, 0] * torch.linalg.vector_norm(rows / safe, dim=1)
    return norms
