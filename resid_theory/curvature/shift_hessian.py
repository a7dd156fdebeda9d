"""The Hessian in biases that move a stream, taken once where all of them move it alike."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from resid_theory.curvature.zero_pass import ZeroPass

__all__ = ["shift_hessian"]

_SAME = 1e-9  # relative difference of numbers that are equal but for round-off
_WHOLE = 5000  # entries of biases whose Hessian is taken as a whole


def shift_hessian(
    passes: Callable[[], Iterable[ZeroPass]], parameters: Sequence[Tensor], total: float
) -> tuple[Tensor, int, float]:
    """The Hessian of a loss in biases of branches.

    Args:
        passes: Graphs of all batches.
        parameters: The biases, and what multiplies them.
        total: Sum of the batches' weights.

    Returns:
        M, (d, d), the number of biases of which each moves all as the others do, and the norm of
        the gradient in all; or the whole matrix, 1, and that norm.

    Raises:
        ValueError: If they act in different ways, and there are more than 5000 entries.
    """
    sizes = [p.numel() for p in parameters]
    size, count = sum(sizes), len(sizes)
    draws = torch.Generator().manual_seed(0)
    probe = torch.randn(1, size, generator=draws, dtype=torch.float64)
    eye = torch.eye(size, dtype=torch.float64)
    if len(set(sizes)) == 1:
        found, gradient = _products(passes, parameters, torch.cat([eye[: sizes[0]], probe]), total)
        rows, tried = found[:-1], found[-1].view(count, -1)
        M = rows[:, : sizes[0]]
        off = (
            (rows - M.repeat(1, count)).abs().max(),
            (tried - M @ probe.view(count, -1).sum(0)).abs(),
        )
        if off[0] <= _SAME * M.abs().max() and off[1].max() <= _SAME * tried.abs().max():
            return M, count, gradient
    if size > _WHOLE:
        raise ValueError(
            f"net: branches add {size} biases to a stream on which they act in different ways; "
            f"their Hessian is taken as a whole, up to {_WHOLE}"
        )
    whole, gradient = _products(passes, parameters, eye, total)
    return whole, 1, gradient


def _products(
    passes: Callable[[], Iterable[ZeroPass]], at: Sequence[Tensor], vectors: Tensor, total: float
) -> tuple[Tensor, float]:
    """Products with the rows of a matrix, and the norm of the gradient."""
    sums, gradient = torch.zeros_like(vectors), torch.zeros_like(vectors[0])
    for each in passes():
        slopes = torch.autograd.grad(
            each.loss, at, create_graph=True, allow_unused=True, materialize_grads=True
        )
        flat, weight = torch.cat([slope.flatten() for slope in slopes]), each.weight / total
        gradient.add_(flat.detach().cpu(), alpha=weight)
        for row, vector in zip(sums, vectors.to(flat), strict=True):
            if flat.requires_grad:
                parts = torch.autograd.grad(
                    flat, at, vector, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                row.add_(torch.cat([part.flatten() for part in parts]).cpu(), alpha=weight)
    return sums, float(gradient.norm())
