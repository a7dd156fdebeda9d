"""Operators with which one calculates: sums, multiples, shifts, solutions, the diagonal."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resid_theory._check import as_tensor
from resid_theory.eigen.diagonal import Diagonal, diagonal
from resid_theory.eigen.matrix_error import MatrixError
from resid_theory.eigen.products import NUMPY_DTYPES, MatrixProducts, Shapes, check_square
from resid_theory.eigen.solve import Solution, solve

_ROUNDING = 16  # eps of a term's product: it is itself a sum over samples and layers


class LinearOperator(MatrixProducts):
    """A real matrix known by its products, with which one calculates without building it.

    ``A + B``, ``A - B``, ``c * A``, ``A / c``, ``-A`` and :meth:`shift` are operators again, and so
    is the sum with any matrix that `as_operator` takes.
    """

    @property
    @abstractmethod
    def T(self) -> "LinearOperator":
        """The transpose."""

    def __add__(self, other: Any) -> "LinearOperator":
        if isinstance(other, int) and other == 0:  # where ``sum`` begins
            return self
        return OperatorSum([(1.0, self), (1.0, other)])

    __radd__ = __add__

    def __sub__(self, other: Any) -> "LinearOperator":
        return OperatorSum([(1.0, self), (-1.0, other)])

    def __rsub__(self, other: Any) -> "LinearOperator":
        return OperatorSum([(-1.0, self), (1.0, other)])

    def __mul__(self, factor: Any) -> "LinearOperator":
        return OperatorSum([(_number("c", factor), self)])

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> "LinearOperator":
        number = _number("c", factor)
        if number == 0:
            raise ValueError("c: got 0, needs a number to divide by")
        return OperatorSum([(1 / number, self)])

    def __neg__(self) -> "LinearOperator":
        return OperatorSum([(-1.0, self)])

    def shift(self, by: Any) -> "LinearOperator":
        """``A + by I``, as damping does it.

        Args:
            by: What is added to the diagonal.

        Returns:
            The operator.

        Raises:
            ValueError: If it is no finite number, or the operator is not square.
        """
        number, size = _number("by", by), check_square(self)
        unit = Identity(size, dtype=self.dtype, device=self.device)
        return OperatorSum([(1.0, self), (number, unit)])

    def solve(
        self,
        vectors: Any,
        *,
        damping: float = 0.0,
        tolerance: float = 1e-6,
        max_products: int = 1000,
    ) -> Solution:
        """Solve (A + damping I) x = v for a symmetric A by products.

        Conjugate gradients where it is known that every eigenvalue is positive, else MINRES, which
        takes indefinite matrices; both restart from the true residual until that meets the
        tolerance.

        Args:
            vectors: v, (P,) or (P, b).
            damping: Added to the diagonal.
            tolerance: Residual relative to |v| at which a solution is accepted.
            max_products: Largest number of products with one vector.

        Returns:
            The solutions; those that the products did not suffice for are marked.

        Raises:
            ValueError: If the operator is not square, or an argument does not fit.

        Source:
            Paige & Saunders 1975, "Solution of sparse indefinite systems of linear equations".
        """
        return solve(self, vectors, damping=damping, tolerance=tolerance, max_products=max_products)

    def diagonal(self, *, budget: int = 256, generator: torch.Generator | int = 0) -> Diagonal:
        r"""The diagonal, exact where the budget suffices for all columns.

        Else the mean of :math:`z \odot A z` over random signs z: unbiased, with the variance
        :math:`\sum_{j \ne i} A_{ij}^2` of a sample of entry i.

        Args:
            budget: Largest number of products with one vector.
            generator: For the signs: a generator, or the seed of a new one.

        Returns:
            The diagonal, with error bars.

        Raises:
            ValueError: If the operator is not square, or an argument is out of range.

        Source:
            Bekas, Kokiopoulou & Saad 2007, "An estimator for the diagonal of a matrix".
        """
        return diagonal(self, budget=budget, generator=generator)

    def block(self, rows: Any, columns: Any = None) -> "LinearOperator":
        """A block by names, which only the curvature of a net has."""
        raise ValueError("A: its rows have no names; needs the curvature of a net")


def _number(argument: str, given: Any) -> float:
    single = isinstance(given, Real) or isinstance(given, (Tensor, np.ndarray)) and not given.shape
    if not single or isinstance(given, bool) or not math.isfinite(number := float(given)):
        kind = given if single else type(given).__name__
        raise ValueError(f"{argument}: got {kind}, needs a finite real number")
    return number


class Identity(LinearOperator):
    """The identity matrix."""

    lowest = 1.0

    def __init__(
        self,
        size: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__((size, size), dtype, device)

    @property
    def T(self) -> LinearOperator:
        """The identity."""
        return self

    def _product(self, vectors: Tensor) -> Tensor:
        return vectors.clone()


class WrappedOperator(LinearOperator):
    """Some rows and columns of anything that multiplies; all of them by default."""

    def __init__(
        self, matrix: Any, rows: Tensor | None = None, columns: Tensor | None = None
    ) -> None:
        if isinstance(matrix, Tensor) and matrix.dtype not in NUMPY_DTYPES:
            matrix = as_tensor("A", matrix).to(torch.float64)
        self._matrix, self._rows, self._columns = matrix, rows, columns
        own = str(matrix.dtype).split(".")[-1]
        self._torch = isinstance(matrix.dtype, torch.dtype)
        if own[:7] in ("complex", "object") or self._torch and matrix.dtype not in NUMPY_DTYPES:
            raise ValueError(f"A: got dtype {matrix.dtype}, needs real numbers, float32 or float64")
        self.error = getattr(matrix, "error", None)
        sides = zip(matrix.shape, (rows, columns), strict=True)
        height, width = (int(size) if some is None else len(some) for size, some in sides)
        super().__init__(
            (height, width),
            torch.float32 if own == "float32" else torch.float64,
            getattr(matrix, "device", "cpu") if self._torch else "cpu",
        )

    @property
    def T(self) -> LinearOperator:
        """The transpose."""
        turned = self._matrix.mT if isinstance(self._matrix, Tensor) else self._matrix.T
        return WrappedOperator(turned, self._columns, self._rows)

    def _product(self, vectors: Tensor) -> Tensor:
        if self._columns is not None:
            whole = vectors.new_zeros(int(self._matrix.shape[1]), vectors.shape[1])
            whole[self._columns] = vectors
            vectors = whole
        if self._torch:
            product = self._matrix @ vectors.to(self._matrix.dtype)
        else:
            product = as_tensor("A @ V", self._matrix @ vectors.double().numpy())
        product = product.detach().to(vectors.device, torch.float64)
        return product if self._rows is None else product[self._rows]


def _places(every: Shapes | None, chosen: Shapes | None) -> Tensor:
    """Places of some parameters' entries among those of all."""
    assert every is not None
    assert chosen is not None
    ends = torch.tensor([shape.numel() for shape in every.values()]).cumsum(0).tolist()
    spans = dict(zip(every, zip([0, *ends], ends, strict=False), strict=True))
    return torch.cat([torch.arange(*spans[name]) for name in chosen])


def _restricted(term: LinearOperator, rows: Tensor, columns: Tensor) -> LinearOperator:
    if isinstance(term, Identity) and torch.equal(rows, columns):
        return Identity(len(rows), dtype=term.dtype, device=term.device)
    return WrappedOperator(term, rows, columns)


def as_operator(given: Any, argument: str = "A") -> LinearOperator:
    """Return anything that multiplies as an operator.

    Args:
        given: A `LinearOperator`; a tensor or array (rows, columns); a sparse array or a
            ``LinearOperator`` of SciPy; or anything else with ``@``, ``shape`` and ``dtype``, be
            they NumPy's or torch's.
        argument: Its name in the message.

    Returns:
        The operator; what is one already is returned as it is.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(given, LinearOperator):
        return given
    shape = getattr(given, "shape", None)
    multiplies = hasattr(type(given), "__matmul__") and hasattr(given, "dtype")
    if shape is None or not multiplies or len(shape) != 2:
        kind = type(given).__name__
        size = "" if shape is None else f" of shape {tuple(shape)}"
        raise ValueError(
            f"{argument}: got {kind}{size}, needs a matrix: a tensor, an array, or anything with "
            "A @ V, a shape (rows, columns) and a dtype of torch or NumPy; of a net, "
            "rt.curvature_operator(net, loss, data)"
        )
    return WrappedOperator(given)


class OperatorSum(LinearOperator):
    """A sum of multiples of operators of one shape; made by their ``+``, ``-`` and ``*``."""

    def __init__(self, terms: Sequence[tuple[float, Any]]) -> None:
        flat: list[tuple[float, LinearOperator]] = []  # without sums inside
        for factor, given in terms:
            operator = as_operator(given, "B")
            inner = operator.terms if isinstance(operator, OperatorSum) else ((1.0, operator),)
            flat += [(factor * own, term) for own, term in inner]
        self.terms: tuple[tuple[float, LinearOperator], ...] = tuple(flat)
        first = flat[0][1]
        self._rounding = 0.0  # largest seen so far, relative to a vector
        for _, other in flat[1:]:
            if other.shape != first.shape or other.device != first.device:
                raise ValueError(
                    f"B: got shape {other.shape} on {other.device}, needs {first.shape} on "
                    f"{first.device}"
                )
        names: list[Shapes | None] = []
        for side in ("row_shapes", "column_shapes"):
            named = [getattr(term, side) for _, term in flat if getattr(term, side) is not None]
            odd = next((shapes for shapes in named if dict(shapes) != dict(named[0])), None)
            if odd is not None:
                raise ValueError(f"B: stands for {list(odd)}, needs {list(named[0])}")
            names.append(named[0] if named else None)
        wide = any(term.dtype == torch.float64 for _, term in flat)
        super().__init__(
            first.shape,
            torch.float64 if wide else torch.float32,
            first.device,
            row_shapes=names[0],
            column_shapes=names[1],
        )

    @property
    def T(self) -> LinearOperator:
        """The sum of the transposes."""
        return OperatorSum([(factor, term.T) for factor, term in self.terms])

    @property
    def lowest(self) -> float:  # type: ignore[override]
        """The sum of the terms' own."""
        bounds = [
            factor if isinstance(term, Identity) else factor * term.lowest
            for factor, term in self.terms
            if factor
        ]
        fits = all(f >= 0 or isinstance(term, Identity) for f, term in self.terms)
        return sum(bounds) if fits else -math.inf

    @property
    def error(self) -> MatrixError | None:  # type: ignore[override]
        """The terms' errors together, and what the sum may have cancelled."""
        known = [t.error.scaled(abs(f)) for f, t in self.terms if t.error is not None]
        if not known and len(self.terms) == 1:
            return None
        spread = self._rounding * self.shape[1] ** 0.5  # rounding has no pattern
        return MatrixError(
            spectral=sum(error.spectral for error in known) + self._rounding,
            frobenius=sum(error.frobenius for error in known) + spread,
            trace=sum(error.trace for error in known) + spread,
        )

    def block(self, rows: Any, columns: Any = None) -> LinearOperator:
        """A diagonal block, or the block of some rows and some columns; as of any operator."""
        # The product of a net's own block costs less than that of the whole.
        own = {i: t.block(rows, columns) for i, (_, t) in enumerate(self.terms) if t.row_shapes}
        if not own:
            raise ValueError("A: its rows have no names; needs the curvature of a net in the sum")
        whole, part = self.terms[next(iter(own))][1], next(iter(own.values()))
        across, down = (
            _places(every, chosen)
            for every, chosen in (
                (whole.row_shapes, part.row_shapes), (whole.column_shapes, part.column_shapes),
            )
        )  # fmt: skip
        return OperatorSum([
            (factor, own[i] if i in own else _restricted(term, across, down))
            for i, (factor, term) in enumerate(self.terms)
        ])  # fmt: skip

    def _product(self, vectors: Tensor) -> Tensor:
        vectors = vectors.double()
        total = vectors.new_zeros(self.shape[0], vectors.shape[1])
        size = vectors.new_zeros(vectors.shape[1])
        for factor, term in self.terms:
            product = term._product(vectors)
            total.add_(product, alpha=factor)
            size += abs(factor) * torch.finfo(term.dtype).eps * product.norm(dim=0)
        if len(self.terms) > 1 and vectors.numel():
            # Terms that cancel leave an error of their own size, whatever the size of the sum.
            ratio = size / vectors.norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
            self._rounding = max(self._rounding, _ROUNDING * float(ratio.max()))
        return total
