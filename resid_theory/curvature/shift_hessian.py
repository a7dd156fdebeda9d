"""The Hessian in biases that move a stream, taken once where all of them move it alike."""

import torch
from torch import Tensor

from resid_theory.curvature.operator import CurvatureOperator

__all__ = ["shift_hessian"]

_SAME = 1e-9  # relative difference of numbers that are equal but for round-off
_WHOLE = 5000  # entries of biases whose Hessian is taken as a whole


def shift_hessian(A: CurvatureOperator) -> tuple[Tensor, int]:
    """M, (d, d), and the number of biases that each move all as the others do; or the whole, 1."""
    sizes = [p.numel() for p in A.risk.parameters]
    size, count = sum(sizes), len(sizes)
    probe = torch.randn(1, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if len(set(sizes)) == 1:
        rows = torch.eye(sizes[0], size, dtype=torch.float64)
        found = (A @ torch.cat([rows, probe]).mT).mT.cpu()
        rows, tried = found[:-1], found[-1].view(count, -1)
        M = rows[:, : sizes[0]]
        off = (
            (rows - M.repeat(1, count)).abs().max(),
            (tried - M @ probe.view(count, -1).sum(0)).abs().max(),
        )
        if off[0] <= _SAME * M.abs().max() and off[1] <= _SAME * tried.abs().max():
            return M, count
    if size > _WHOLE:
        raise ValueError(
            f"net: branches add {size} biases to a stream on which they act in different ways; "
            f"their Hessian is taken as a whole, up to {_WHOLE}"
        )
    return A.dense().cpu(), 1
