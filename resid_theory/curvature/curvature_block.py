"""Rows and columns of a symmetric curvature matrix, as a linear operator."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from resid_theory._check import as_tensor
from resid_theory.curvature.accumulation import BatchSum
from resid_theory.curvature.matvec_graphs import MatvecGraph
from resid_theory.eigen.operator_log import MatrixError
from resid_theory.runtime.process_group import ProcessGroup

__all__ = ["CurvatureBlock"]

_ARRAYS = {torch.float64: np.dtype(np.float64), torch.float32: np.dtype(np.float32)}
_DENSE_STEP = 256  # columns of a dense matrix computed at a time


class CurvatureBlock:
    """Rows and columns of a symmetric curvature matrix, as a linear operator.

    Made by :meth:`CurvatureOperator.block`; ``A @ V`` costs no more than the parts of the net
    between its rows and columns.

    Attributes:
        error: Difference of the whole matrix from that of the same weights in float64, measured on
            a few samples when the operator is made; None for a net in float64.
    """

    def __init__(
        self,
        sums: BatchSum,
        process_group: ProcessGroup,
        rows: Sequence[int],
        columns: Sequence[int],
        weight: float,
        dtype: torch.dtype,
        error: MatrixError | None,
    ) -> None:
        self._sums, self._process_group, self.error = sums, process_group, error
        self._rows, self._columns, self._weight, self._dtype = rows, columns, weight, dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        sizes = [parameter.numel() for parameter in self._sums.risk.parameters]
        return sum(sizes[k] for k in self._rows), sum(sizes[k] for k in self._columns)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of results: the precision in which chunks are added up."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """The device of the net and of the results."""
        return self._sums.risk.device

    def __matmul__(self, vectors: Any) -> Tensor:
        """The matrix times one vector or several.

        Args:
            vectors: (columns,) or (columns, b), any real dtype; moved to the operator's device.

        Returns:
            (rows,) or (rows, b), of the operator's dtype.

        Raises:
            ValueError: If the shape does not fit, or net or data changed meanwhile.
        """
        given = as_tensor("V", vectors).detach()
        if given.dim() not in (1, 2) or len(given) != self.shape[1]:
            raise ValueError(
                f"V: got shape {tuple(given.shape)} for an operator of shape {self.shape}; needs "
                f"({self.shape[1]},) or ({self.shape[1]}, b)"
            )
        columns = given.to(self.device, torch.float64)
        columns = columns.unsqueeze(1) if columns.dim() == 1 else columns
        # Products are linear: a power of two keeps vectors in float32's range without rounding.
        size = columns.abs().amax(0) if len(columns) else columns.new_ones(columns.shape[1])
        scale = torch.where(size > 0, torch.exp2(torch.floor(torch.log2(size))), 1.0)
        scaled = (columns / scale).mT
        total = torch.zeros(len(scaled), self.shape[0], dtype=self._dtype, device=self.device)
        if len(scaled):
            product = partial(
                MatvecGraph.product, vectors=scaled, rows=self._rows, columns=self._columns
            )
            self._sums.add_up(product, total)
        local = total.mT.double() * scale
        result = self._process_group.add_product(local, columns) / self._weight
        self._add_decay(result, columns)
        return result.to(self._dtype).view(self.shape[0], *given.shape[1:])

    def _add_decay(self, result: Tensor, vectors: Tensor) -> None:
        """Add the weight decay times the vectors, where rows and columns are the same parameter."""
        sizes = [parameter.numel() for parameter in self._sums.risk.parameters]
        places, start = {}, 0
        for k in self._columns:
            places[k], start = slice(start, start + sizes[k]), start + sizes[k]
        start = 0
        for k in self._rows if self._sums.risk.weight_decay else ():
            if k in places:
                decay = self._sums.risk.weight_decay
                result[start : start + sizes[k]].add_(vectors[places[k]], alpha=decay)
            start += sizes[k]

    def to_scipy(self) -> Any:
        """For ``scipy.sparse.linalg``, whose arrays are on the CPU.

        Returns:
            A LinearOperator with ``matmat`` for blocks of vectors, and the transpose.
        """
        from scipy.sparse.linalg import LinearOperator  # a third of a second of import

        mirror = CurvatureBlock(
            self._sums, self._process_group, self._columns, self._rows, self._weight, self._dtype,
            self.error,
        )  # fmt: skip

        def product(block: CurvatureBlock) -> Callable[[Any], Any]:
            return lambda vectors: (block @ np.asarray(vectors)).cpu().numpy()

        return LinearOperator(
            self.shape, dtype=_ARRAYS[self._dtype], matvec=product(self), matmat=product(self),
            rmatvec=product(mirror), rmatmat=product(mirror),
        )  # fmt: skip

    def dense(self, *, progress: bool = False) -> Tensor:
        """The matrix itself, for a small operator only.

        Args:
            progress: Whether to show a progress bar on standard error.

        Returns:
            ``shape``, of the operator's dtype, from products with unit vectors.
        """
        rows, columns = self.shape
        matrix = torch.empty(rows, columns, dtype=self._dtype, device=self.device)
        title = self._sums.risk.title
        with tqdm(total=columns, disable=not progress, desc=title, unit="column") as bar:
            for start in range(0, columns, _DENSE_STEP):
                count = min(_DENSE_STEP, columns - start)
                units = torch.zeros(columns, count, dtype=self._dtype, device=self.device)
                units[start + torch.arange(count), torch.arange(count)] = 1.0
                matrix[:, start : start + count] = self @ units
                bar.update(count)
        return matrix
