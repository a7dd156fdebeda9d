"""A dense symmetric matrix from products with unit vectors, at half the price of all columns."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from resid_theory.curvature.operator import CurvatureOperator
from resid_theory.curvature.rounding import NOT_SYMMETRIC
from resid_theory.eigen.operator_log import RecordedOperator
from resid_theory.eigen.products import unit_vectors
from resid_theory.runtime.store import path_of

__all__ = ["PANEL", "columns_of"]

PANEL = 256  # columns computed together, and rows symmetrized together


def columns_of(
    operator: CurvatureOperator, *, folder: str | Path | None = None, progress: bool = False
) -> tuple[Tensor, float]:
    """The matrix of an operator, float64, and the Frobenius norm of what was not symmetric."""
    # Columns of some parameters are computed in the rows of these and later parameters only: what
    # is differentiated is then the part of a net behind them. The rest is their mirror image.
    size = operator.shape[0]
    # NumPy asks for huge pages.
    matrix = torch.from_numpy(np.zeros((size, size))).to(operator.device)
    names, groups = operator.names, list(_groups(operator))
    with tqdm(total=size, disable=not progress, desc=operator.risk.title, unit="column") as bar:
        for number, (first, last, start, stop) in enumerate(groups):
            block = operator.block(names[first:], names[first:last])
            own = None if folder is None else path_of(folder, "folder") / f"columns_{number:03d}"
            with RecordedOperator(block, folder=own, square=False) as record:
                for left in range(start, stop, PANEL):
                    right = min(left + PANEL, stop)
                    columns = record @ unit_vectors(block, left - start, right - start)
                    matrix[start:, left:right] = columns.mul_(record.unit)
                    bar.update(right - left)
    return matrix, _symmetrize(matrix, operator, groups)


def _groups(operator: CurvatureOperator) -> Iterator[tuple[int, int, int, int]]:
    """Consecutive parameters with a panel of columns or more: numbers of these and of columns."""
    sizes = [parameter.numel() for parameter in operator.risk.parameters]
    first = start = stop = 0
    for last, size in enumerate(sizes, 1):
        stop += size
        if stop - start >= PANEL or last == len(sizes):
            yield first, last, start, stop
            first, start = last, stop


def _symmetrize(
    matrix: Tensor, operator: CurvatureOperator, groups: Sequence[tuple[int, int, int, int]]
) -> float:
    """Fill the upper triangle; return the norm of what was not symmetric."""
    eps = torch.finfo(operator.risk.parameters[0].dtype).eps
    for _, _, start, stop in groups:
        matrix[start:stop, stop:] = matrix[stop:, start:stop].mT
    low, high = torch.aminmax(matrix)
    gap, scale = 0.0, max(-low.item(), high.item()) or 1.0
    squares = 0.0
    for _, _, left, right in groups:
        for start in range(left, right, PANEL):  # panel by panel
            stop = min(start + PANEL, right)
            rows, columns = matrix[start:stop, start:right], matrix[start:right, start:stop]
            apart = (rows - columns.mT) / scale
            gap, squares = max(gap, apart.abs().max().item()), squares + apart.square().sum().item()
            mean = rows / 2 + columns.mT / 2
            rows.copy_(mean)
            columns.copy_(mean.mT)
    norm = squares**0.5
    if len(groups) > 1:  # what was mirrored, as three products see it
        drawn = torch.randn(
            len(matrix), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        ).to(matrix.device)
        found = operator @ drawn
        apart = (found - matrix @ drawn) / scale
        gap = max(gap, float(apart.norm() / (found.norm() / scale).clamp_min(eps)))
        norm = max(norm, float(apart.norm()) / 3**0.5)
    # Round-off stays far below the fourth root of the precision, a wrong derivative far above.
    if gap > eps**0.25:
        raise ValueError(
            f"net: its second derivatives are not symmetric (by {gap * scale:.2g}), {NOT_SYMMETRIC}"
        )
    return scale * norm
