"""Matrices known by their products with vectors."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from resid_theory._check import as_tensor
from resid_theory.eigen.matrix_error import MatrixError

NUMPY_DTYPES: dict[torch.dtype, Any] = {
    torch.float64: np.dtype(np.float64),
    torch.float32: np.dtype(np.float32),
}
_DENSE_STEP = 256  # columns of a dense matrix computed at a time

Shapes = Mapping[str, torch.Size]


class MatrixProducts(ABC):
    """A real matrix known by its products.

    ``A @ V`` multiplies, ``V @ A`` multiplies by the transpose.

    Attributes:
        shape: Numbers of rows and columns.
        dtype: Data type of the products.
        device: Device of the products.
        row_shapes: Parameters that the rows stand for, in order, with their shapes; None without
            names.
        column_shapes: The same of the columns.
        error: Difference from the matrix that it stands for; None where products are as exact as
            ``dtype``.
        lowest: A number that no eigenvalue is below, -inf where none is known.
    """

    error: MatrixError | None = None
    lowest: float = -math.inf
    # NumPy leaves operations with its arrays and numbers to this class.
    __array_ufunc__ = None

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        row_shapes: Shapes | None = None,
        column_shapes: Shapes | None = None,
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, torch.device(device)
        self.row_shapes, self.column_shapes = row_shapes, column_shapes

    @abstractmethod
    def _product(self, vectors: Tensor) -> Tensor:
        """The product, float64 or of its dtype, with vectors (columns, b) on this device."""

    @property
    @abstractmethod
    def T(self) -> "MatrixProducts":
        """The transpose."""

    def __matmul__(self, vectors: Any) -> Tensor:
        """The matrix times one vector or several.

        Args:
            vectors: (columns,) or (columns, b), any real dtype; moved to the operator's device.

        Returns:
            (rows,) or (rows, b), of the operator's dtype.

        Raises:
            ValueError: If the shape does not fit, or net or data changed meanwhile.
        """
        given = self._vectors(vectors).detach()
        columns = given.to(self.device)
        columns = columns.unsqueeze(1) if columns.dim() == 1 else columns
        return self._product(columns).to(self.dtype).view(self.shape[0], *given.shape[1:])

    def __rmatmul__(self, vectors: Any) -> Tensor:
        given = as_tensor("V", vectors)
        return (self.T @ given.mT).mT if given.dim() == 2 else self.T @ given

    def quadratic(self, vectors: Any) -> Tensor:
        """v^T A v.

        Args:
            vectors: (P,) or (P, b).

        Returns:
            A number as a tensor () or (b,), float64.

        Raises:
            ValueError: If the operator is not square, or the shape does not fit.
        """
        check_square(self)
        given = as_tensor("V", vectors).detach().to(self.device, torch.float64)
        return (given * (self @ given)).sum(0)

    def split(self, vectors: Any) -> dict[str, Tensor]:
        """Vectors by parameter, in PyTorch's shapes.

        Args:
            vectors: (columns,), or (columns, b) such as eigenvectors.

        Returns:
            For each name a view of the parameter's shape, or (b, *shape).

        Raises:
            ValueError: If the columns stand for no parameters, or the shape does not fit.
        """
        shapes, given = self._named_columns(), self._vectors(vectors)
        parts = given.split([shape.numel() for shape in shapes.values()])
        lead = given.shape[1:]
        return {
            name: part.movedim(-1, 0).reshape(*lead, *shape) if lead else part.view(shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }

    def join(self, parts: Mapping[str, Any]) -> Tensor:
        """The inverse of :meth:`split`.

        Args:
            parts: A tensor for each parameter of the columns, of its shape or (b, *shape).

        Returns:
            (columns,) or (columns, b).

        Raises:
            ValueError: If the columns stand for no parameters, or names or shapes differ.
        """
        shapes = self._named_columns()
        if not isinstance(parts, Mapping):
            raise ValueError(f"parts: got {type(parts).__name__}, needs a tensor for each name")
        if set(parts) != set(shapes):
            odd = sorted(map(str, set(parts) ^ set(shapes)))
            raise ValueError(f"parts: {', '.join(odd)} missing or unknown; needs {list(shapes)}")
        flat = []
        for name, shape in shapes.items():
            part = as_tensor(f"parts {name}", parts[name])
            lead = part.dim() - len(shape)
            if lead not in (0, 1) or part.shape[lead:] != shape:
                raise ValueError(
                    f"parts: {name} has shape {tuple(part.shape)}, needs {tuple(shape)} or one "
                    "more axis in front"
                )
            flat.append(part.reshape(-1) if lead == 0 else part.flatten(1).mT)
        if len({part.shape[1:] for part in flat}) > 1:
            raise ValueError("parts: some have an axis of several vectors, others none or another")
        return torch.cat(flat)

    def _vectors(self, given: Any) -> Tensor:
        vectors, columns = as_tensor("V", given), self.shape[1]
        if vectors.dim() not in (1, 2) or len(vectors) != columns:
            raise ValueError(
                f"V: got shape {tuple(vectors.shape)} for an operator of shape {self.shape}; needs "
                f"({columns},) or ({columns}, b)"
            )
        return vectors

    def _named_columns(self) -> Shapes:
        if self.column_shapes is None:
            raise ValueError("A: its columns have no names; needs the curvature of a net")
        return self.column_shapes

    def dense(self, *, progress: bool = False) -> Tensor:
        """The matrix itself, for a small operator only.

        Args:
            progress: Whether to show a progress bar on standard error.

        Returns:
            ``shape``, of the operator's dtype, from products with unit vectors.
        """
        rows, columns = self.shape
        matrix = torch.empty(rows, columns, dtype=self.dtype, device=self.device)
        with tqdm(total=columns, disable=not progress, desc="Matrix", unit="column") as bar:
            for start in range(0, columns, _DENSE_STEP):
                stop = min(start + _DENSE_STEP, columns)
                matrix[:, start:stop] = self @ unit_vectors(self, start, stop)
                bar.update(stop - start)
        return matrix

    def to_scipy(self) -> Any:
        """For ``scipy.sparse.linalg``, whose arrays are on the CPU.

        Returns:
            A LinearOperator with ``matmat`` for blocks of vectors, and the transpose.
        """
        from scipy.sparse import linalg  # a third of a second of import

        def product(operator: MatrixProducts) -> Callable[[Any], Any]:
            return lambda vectors: (operator @ np.asarray(vectors)).cpu().numpy()

        return linalg.LinearOperator(
            self.shape, dtype=NUMPY_DTYPES[self.dtype], matvec=product(self), matmat=product(self),
            rmatvec=product(self.T), rmatmat=product(self.T),
        )  # fmt: skip

    def __repr__(self) -> str:
        """One line."""
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"


def unit_vectors(operator: MatrixProducts, start: int, stop: int) -> Tensor:
    """Return some columns of the identity that an operator multiplies, (columns, stop - start)."""
    size = operator.shape[1], stop - start
    units = torch.zeros(size, dtype=torch.float64, device=operator.device)
    units[start:stop].fill_diagonal_(1.0)
    return units


def probe_vectors(*shape: int) -> Tensor:
    """Return normal numbers, float64 on the CPU, the same ones in every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def check_square(operator: MatrixProducts) -> int:
    """Return P of an operator (P, P)."""
    rows, columns = operator.shape
    if rows != columns:
        raise ValueError(f"A: got shape {operator.shape}, needs a square operator (P, P)")
    return rows
