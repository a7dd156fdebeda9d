"""Rows and columns of a symmetric curvature matrix, as a linear operator."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from resid_theory.curvature.accumulation import BatchSum
from resid_theory.curvature.matvec_graphs import MatvecGraph
from resid_theory.curvature.parameter_selection import select_parameters
from resid_theory.eigen.linear_operator import LinearOperator
from resid_theory.eigen.matrix_error import MatrixError
from resid_theory.eigen.products import Shapes
from resid_theory.runtime.process_group import ProcessGroup

__all__ = ["CurvatureBlock"]


class CurvatureBlock(LinearOperator):
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
    def row_shapes(self) -> Shapes:
        """Names and shapes of the parameters that rows stand for."""
        return self._shapes(self._rows)

    @property
    def column_shapes(self) -> Shapes:
        """Names and shapes of the parameters that columns stand for."""
        return self._shapes(self._columns)

    def _shapes(self, places: Sequence[int]) -> Shapes:
        risk = self._sums.risk
        return {risk.names[k]: risk.parameters[k].shape for k in places}

    @property
    def lowest(self) -> float:  # type: ignore[override]
        """The weight decay, where the matrix is positive semidefinite without it."""
        risk, square = self._sums.risk, list(self._rows) == list(self._columns)
        return risk.weight_decay if square and risk.is_semidefinite else -math.inf

    @property
    def T(self) -> "CurvatureBlock":
        """The block on the other side of the diagonal."""
        return CurvatureBlock(
            self._sums, self._process_group, self._columns, self._rows, self._weight, self._dtype,
            self.error,
        )  # fmt: skip

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of results: the precision in which chunks are added up."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """The device of the net and of the results."""
        return self._sums.risk.device

    def block(self, rows: Any, columns: Any = None) -> "CurvatureBlock":
        """A diagonal block, or the block of some rows and some columns.

        Args:
            rows: Names, patterns or parameters among the operator's own, as ``parameters`` of
                `curvature_operator`.
            columns: The same; None takes the rows.

        Returns:
            The operator of that block, in the order of ``names`` whatever the order given.

        Raises:
            ValueError: If a name chooses nothing.
        """
        across = self._chosen("rows", rows, self._rows)
        down = across
        if columns is not None or list(self._rows) != list(self._columns):
            down = self._chosen("columns", rows if columns is None else columns, self._columns)
        return CurvatureBlock(
            self._sums, self._process_group, across, down, self._weight, self._dtype, self.error
        )

    def _chosen(self, argument: str, given: Any, among: Sequence[int]) -> list[int]:
        risk = self._sums.risk
        place = {risk.names[k]: k for k in among}
        known = {name: risk.parameters[k] for name, k in place.items()}
        return [place[name] for name in select_parameters(argument, given, known, risk.net)]

    def _product(self, columns: Tensor) -> Tensor:
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
        return result

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
