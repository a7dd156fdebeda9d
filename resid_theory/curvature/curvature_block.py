"""Rows and columns of a symmetric curvature matrix, as a linear operator."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resid_theory.curvature.accumulation import BatchSum
from resid_theory.curvature.parameter_selection import select_parameters
from resid_theory.eigen.linear_operator import LinearOperator
from resid_theory.eigen.matrix_error import MatrixError
from resid_theory.eigen.products import NUMPY_DTYPES
from resid_theory.runtime.process_group import ProcessGroup

__all__ = ["CurvatureBlock"]


class CurvatureBlock(LinearOperator):
    """Rows and columns of a symmetric curvature matrix, as a linear operator.

    Made by :meth:`CurvatureOperator.block`; ``A @ V`` costs no more than the parts of the net
    between its rows and columns.

    """

    def __init__(
        self,
        sums: BatchSum,
        process_group: ProcessGroup,
        rows: Sequence[int],
        columns: Sequence[int],
        weight: float,
        dtype: torch.dtype,
        whole: "CurvatureBlock | None" = None,
    ) -> None:
        self._sums, self._process_group, self._whole = sums, process_group, whole
        self._rows, self._columns, self._weight, risk = rows, columns, weight, sums.risk
        across, down = (
            {risk.names[k]: risk.parameters[k].shape for k in side} for side in (rows, columns)
        )
        height, width = (sum(s.numel() for s in side.values()) for side in (across, down))
        super().__init__((height, width), dtype, risk.device, row_shapes=across, column_shapes=down)
        if list(rows) == list(columns) and risk.is_semidefinite:
            self.lowest = risk.weight_decay

    @property
    def T(self) -> "CurvatureBlock":
        """The block on the other side of the diagonal."""
        return self._part(self._columns, self._rows)

    def _part(self, rows: Sequence[int], columns: Sequence[int]) -> "CurvatureBlock":
        return CurvatureBlock(
            self._sums, self._process_group, rows, columns, self._weight, self.dtype,
            self._whole or self,
        )  # fmt: skip

    @cached_property
    def error(self) -> MatrixError | None:  # type: ignore[override]
        """Difference of the whole matrix from that of the same weights in float64.

        Measured on a few samples when it is first asked for; None for a net in float64.
        """
        if self._whole is not None:
            return self._whole.error
        error, group = self._sums.error(), self._process_group
        if error is None:
            return None
        # Those of the processes add up as their matrices do.
        own = asdict(error)
        parts = torch.tensor(list(own.values()), dtype=torch.float64, device=self.device)
        mean = group.add(parts * self._sums.weight) / self._weight
        return MatrixError(**dict(zip(own, mean.tolist(), strict=True)))

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
        return self._part(across, down)

    def _chosen(self, argument: str, given: Any, among: Sequence[int]) -> list[int]:
        risk = self._sums.risk
        place = {risk.names[k]: k for k in among}
        known = {name: risk.parameters[k] for name, k in place.items()}
        return [place[name] for name in select_parameters(argument, given, known, risk.net)]

    def _product(self, columns: Tensor) -> Tensor:
        count = columns.shape[1]
        # NumPy asks for huge pages: filling a large array for the first time is most of its cost.
        zeros = np.zeros((count, self.shape[0]), NUMPY_DTYPES[self.dtype])
        total = torch.from_numpy(zeros).to(self.device)
        if count:
            self._sums.add_products(
                total, vectors=columns.mT, rows=self._rows, columns=self._columns
            )
        result = self._process_group.add_product(total.mT, columns).div_(self._weight)
        if decay := self._sums.risk.weight_decay:
            given = self._by_number(columns, self._columns)
            for k, part in self._by_number(result, self._rows).items():
                if k in given:
                    part.add_(given[k], alpha=decay)
        return result

    def _by_number(self, vectors: Tensor, numbers: Sequence[int]) -> dict[int, Tensor]:
        sizes = [self._sums.risk.parameters[k].numel() for k in numbers]
        return dict(zip(numbers, vectors.split(sizes), strict=True))
