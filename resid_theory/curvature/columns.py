"""A dense symmetric matrix from products with unit vectors, at half the price of all columns."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from resid_theory.curvature.operator import CurvatureOperator
from resid_theory.curvature.rounding import NOT_SYMMETRIC
from resid_theory.eigen.operator_log import RecordedOperator
from resid_theory.eigen.products import probe_vectors, unit_vectors
from resid_theory.runtime.store import path_of

PANEL = 256  # columns computed together, and rows symmetrized together


def columns_of(
    operator: CurvatureOperator, *, folder: str | Path | None = None, progress: bool = False
) -> tuple[Tensor, float]:
    """The matrix of an operator, float64, and the Frobenius norm of what was not symmetric."""
    matrix = lower_columns(operator, folder=folder, progress=progress)
    return matrix, _symmetrize(matrix, operator, _groups(operator))


def lower_columns(
    operator: CurvatureOperator, *, known: str = "", folder: str | Path | None = None,
    progress: bool = False,
) -> Tensor:  # fmt: skip
    """Columns of a matrix, on and below the diagonal; none of a parameter whose block is known."""
    # Columns of some parameters are computed in the rows of these, of later ones and of the known
    # one only: what is differentiated is then the part of a net behind them.
    names, groups = [name for name in operator.names if name != known], _groups(operator, known)
    size, count = operator.shape[0], sum(stop - start for *_, start, stop in groups)
    # NumPy asks for huge pages.
    matrix = torch.from_numpy(np.zeros((size, count))).to(operator.device)
    sizes = [parameter.numel() for parameter in operator.risk.parameters]
    rows = dict(zip(operator.names, matrix.split(sizes), strict=True))
    with tqdm(total=count, disable=not progress, desc=operator.risk.title, unit="column") as bar:
        for number, (first, last, start, stop) in enumerate(groups):
            below = [name for name in operator.names if name in (*names[first:], known)]
            block = operator.block(below, names[first:last])
            own = None if folder is None else path_of(folder, "folder") / f"columns_{number:03d}"
            with RecordedOperator(block, folder=own, square=False) as record:
                for left in range(start, stop, PANEL):
                    right = min(left + PANEL, stop)
                    columns = record @ unit_vectors(block, left - start, right - start)
                    parts = columns.mul_(record.unit).split([len(rows[name]) for name in below])
                    for name, part in zip(below, parts, strict=True):
                        rows[name][:, left:right] = part
                    bar.update(right - left)
    return matrix


def _groups(operator: CurvatureOperator, known: str = "") -> list[tuple[int, int, int, int]]:
    """Consecutive parameters with a panel of columns or more: numbers of these and of columns."""
    pairs = zip(operator.names, operator.risk.parameters, strict=True)
    sizes = [parameter.numel() for name, parameter in pairs if name != known]
    found, first, start, stop = [], 0, 0, 0
    for last, size in enumerate(sizes, 1):
        stop += size
        if stop - start >= PANEL or last == len(sizes):
            found.append((first, last, start, stop))
            first, start = last, stop
    return found


def _symmetrize(
    matrix: Tensor, operator: CurvatureOperator, groups: Sequence[tuple[int, int, int, int]]
) -> float:
    """Fill the upper triangle; return the norm of what was not symmetric."""
    eps = torch.finfo(operator.risk.parameters[0].dtype).eps
    for _, _, start, stop in groups:
        matrix[start:stop, stop:] = matrix[stop:, start:stop].mT
    low, high = torch.aminmax(matrix)
    scale = max(-low.item(), high.item()) or 1.0
    gap = squares = 0.0
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
        drawn = probe_vectors(len(matrix), 3).to(matrix.device)
        found = operator @ drawn
        apart = (found - matrix @ drawn) / scale
        gap = max(gap, float(apart.norm() / (found.norm() / scale)))  # not NaN, of zeros
        norm = max(norm, float(apart.norm()) / 3**0.5)
    # Round-off stays far below the fourth root of the precision, a wrong derivative far above.
    if gap > eps**0.25 and not ((error := operator.error) and scale <= error.spectral):
        raise ValueError(
            f"net: its second derivatives are not symmetric (by {gap * scale:.2g}), {NOT_SYMMETRIC}"
        )
    return scale * norm
