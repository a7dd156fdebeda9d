"""Norms of linear layers as operators: exact, for every padding mode, without the matrix."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from resid_theory.stability.linear_uses import Geometry


def operator_frobenius(
    weight: Tensor, geometry: Geometry | None = None, size: Sequence[int] = ()
) -> Tensor:
    r"""Frobenius norm of a layer's dense linear map on inputs of a given size.

    Each axis has its own table: how many outputs read one input through the taps t and t'. The
    product of the tables weighs the products of kernel entries:

    .. math:: \|A\|_F^2
        = \sum_{t, t'} \Big(\sum_{o, i} \bar K_{oit} K_{oit'}\Big) \prod_a C_a(t_a, t'_a)

    With zero padding two taps never meet, and what is left is the count of valid outputs of each
    tap; circular, reflected and replicated borders add the taps that meet there.

    Args:
        weight: (out, in), or (out, in / groups, *kernel), float64 or complex128, on the CPU.
        geometry: How a convolution moves; None for a matrix.
        size: Spatial size of the input, one number for each axis of the kernel.

    Returns:
        A scalar, float64.

    Source:
        Derived here; for zero padding the count of valid positions is elementary.

    Example:
        >>> same = Geometry(stride=(1,), padding=((1, 1),), dilation=(1,), groups=1)
        >>> round(operator_frobenius(torch.ones(1, 1, 3), same, [4]).item() ** 2, 12)
        10.0
    """
    if geometry is None:
        return row_norms(weight.reshape(1, -1)).squeeze()
    tables = [
        _table(geometry, weight.shape[2 + axis], axis, length) for axis, length in enumerate(size)
    ]
    scale = weight.abs().max()
    if scale == 0:
        return scale
    weight = weight / scale  # squares of weights near zero would underflow
    counts = functools.reduce(torch.kron, tables)
    flat = weight.reshape(-1, len(counts))
    return scale * (flat.mH @ flat * counts).sum().real.sqrt()


@functools.lru_cache  # most layers of a net have the geometry of others
def _table(geometry: Geometry, side: int, axis: int, length: int) -> Tensor:
    """C(t, t'): number of outputs along one axis that read one input through taps t and t'."""
    step, stride = geometry.dilation[axis], geometry.stride[axis]
    left, right = geometry.padding[axis]
    outputs = (length + left + right - step * (side - 1) - 1) // stride + 1
    at = stride * torch.arange(outputs) + step * torch.arange(side)[:, None] - left
    if geometry.mode == "circular":
        source = at % length
    elif geometry.mode == "replicate":
        source = at.clamp(0, length - 1)
    elif geometry.mode == "reflect":
        source = torch.where(at >= length, 2 * (length - 1) - at, at.abs())
    else:  # a zero is no input
        source = torch.where(at < length, at, -1)
    same = (source[:, None] == source[None]) & (source[:, None] >= 0)
    return same.sum(2).to(torch.float64)


def row_norms(x: Tensor) -> Tensor:
    """Euclidean norms of the rows of a matrix, float64, without over- or underflow."""
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if x.is_complex():
        x = torch.view_as_real(x).flatten(1)
    norms = torch.linalg.vector_norm(x, dim=1)
    low = math.sqrt(torch.finfo(x.dtype).tiny / torch.finfo(x.dtype).eps)
    # A square below `low` lost digits, one above the largest number is inf: scale those rows.
    odd = ~((norms > low) & (norms < torch.inf))
    norms = norms.to(torch.float64)
    if x.shape[1] and bool(odd.any()):
        rows = x[odd].to(torch.float64)
        scale = rows.abs().amax(1, keepdim=True)
        safe = torch.where(scale > 0, scale, 1.0)
        norms[odd] = safe[:, 0] * torch.linalg.vector_norm(rows / safe, dim=1)
    return norms


NORMS: dict[str, Callable[[Tensor, Geometry | None, Sequence[int], int], Tensor]] = {
    "kernel": lambda weight, geometry, size, places: operator_frobenius(weight),
    "operator": lambda weight, geometry, size, places: (
        places**0.5 * operator_frobenius(weight, geometry, size)
    ),
}
"""Norms that a layer cushion can divide by: name to function of a float64 weight on the CPU, how a
convolution moves (None for a matrix), the spatial size of the input, and the number of places where
the map is applied."""
