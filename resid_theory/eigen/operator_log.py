"""Products with a symmetric operator: counted, limited, shown, recorded and replayed."""

import hashlib
import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from resid_theory._check import check_finite
from resid_theory.eigen.linear_operator import as_operator
from resid_theory.eigen.matrix_error import MatrixError
from resid_theory.runtime.store import path_of, read_checkpoint, write_checkpoint

_FAR = 100  # powers of two beyond which products are scaled


class Operator(Protocol):
    """A symmetric operator: anything that multiplies a (P, b) tensor, such as a square tensor.

    If it has an attribute ``error``, a :class:`MatrixError`, error bars include that; else its
    products are taken to be as exact as its dtype, or as the asymmetry that they show.
    """

    @property
    def shape(self) -> Any:
        """(P, P)."""

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the vectors that it takes and returns."""

    @property
    def device(self) -> torch.device:
        """Device of the vectors."""

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        """The product with (P, b) vectors."""


class OutOfProducts(Exception):
    """The budget of products is used up."""


class RecordedOperator:
    """An operator whose products are counted and, if a folder is given, recorded there.

    All methods here are deterministic given their generator and the products. So the record of a
    killed run is the list of its products: the same call, made again, asks for the same products
    and reads the recorded ones until the record ends, bit for bit. It is an error if the vectors
    differ from the recorded ones, or if the operator gives another first product.

    ``limit`` is the largest number of products with one vector, ``expected`` the number at which
    the progress bar is full.

    Attributes:
        unit: The power of two by which very large or small products are divided, so that squares
            neither overflow nor underflow; known after the first product that is not zero. Results
            are multiplied by it at the end.
    """

    def __init__(
        self,
        matrix: Operator,
        *,
        folder: str | Path | None = None,
        limit: int | None = None,
        progress: bool = False,
        label: str = "Lanczos",
        expected: int | None = None,
        square: bool = True,
    ) -> None:
        if not isinstance(matrix, Tensor) and not isinstance(
            getattr(matrix, "dtype", None), torch.dtype
        ):
            matrix = as_operator(matrix)
        shape = tuple(matrix.shape)
        if len(shape) != 2 or min(shape) < 1 or square and shape[0] != shape[1]:
            needed = "a square operator (P, P)" if square else "an operator (rows, columns)"
            raise ValueError(f"A: got shape {shape}, needs {needed}")
        if matrix.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"A: got dtype {matrix.dtype}, needs float32 or float64")
        self.matrix, self.rows, self.size = matrix, int(shape[0]), int(shape[1])
        self.dtype, self.device = matrix.dtype, torch.device(matrix.device)
        self.count, self.limit, self.unit = 0, limit, 1.0
        self._folder = None if folder is None else path_of(folder, "folder")
        self._calls, self._scaled = 0, False
        total = expected or limit
        self._bar = tqdm(disable=not progress, desc=label, unit="product", total=total)

    def __enter__(self) -> "RecordedOperator":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @property
    def error(self) -> MatrixError:
        """The operator's error in units of ``unit``; zero where it has none of its own."""
        own = getattr(self.matrix, "error", None)
        return MatrixError() if own is None else own.scaled(1 / self.unit)

    @property
    def no_vectors(self) -> Tensor:
        """An empty (P, 0) block of vectors of this operator."""
        return torch.empty(self.size, 0, dtype=self.dtype, device=self.device)

    def choose_unit(self, largest: float) -> None:
        """Take the unit by a number of the size of the products, once it is not zero."""
        if largest > 0:
            exponent = math.frexp(largest)[1] - 1
            self.unit = 2.0**exponent if abs(exponent) > _FAR else 1.0
            self._scaled = True

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The product with (P, b) vectors; it uses b products of the budget."""
        if self.limit is not None and self.count + vectors.shape[1] > self.limit:
            raise OutOfProducts
        path = None if self._folder is None else self._folder / f"product_{self._calls:06d}.json"
        result = self._recorded(path, vectors) if path is not None and path.exists() else None
        fresh = self._fresh(vectors) if result is None or self._calls == 0 else None
        answer = fresh if result is None else result
        assert answer is not None
        if result is None and path is not None:
            about = {"question": _digest(vectors), "parameters": self.size}
            write_checkpoint(path, {"answer": answer}, about)
        if not self._scaled:
            self.choose_unit(float(answer.abs().max()))
        answer.div_(self.unit)
        if result is not None and fresh is not None:
            # Half the digits: a product may round differently after a restart, a wrong net may not.
            loose = torch.finfo(self.dtype).eps ** 0.5 * float(answer.norm())
            loose += 2 * self.error.spectral * float(vectors.norm())
            if float((fresh.div_(self.unit) - answer).norm()) > loose:
                raise ValueError(
                    f"folder: {path} was recorded with another operator: other weights, data or "
                    "loss; restore these, or give an empty folder"
                )
        self._calls += 1
        self.count += vectors.shape[1]
        self._bar.update(vectors.shape[1])
        return answer

    @torch.no_grad()
    def _fresh(self, vectors: Tensor) -> Tensor:
        product = self.matrix @ vectors
        if product.shape != (self.rows, vectors.shape[1]):
            raise ValueError(
                f"A: gives shape {tuple(product.shape)} for vectors of shape "
                f"{tuple(vectors.shape)}; needs {(self.rows, vectors.shape[1])}"
            )
        return self._copied(check_finite("A @ vectors", product))

    def _copied(self, result: Tensor) -> Tensor:
        """A copy in which every vector is contiguous, on this device, in this dtype."""
        # Products with the columns of another layout round differently, and a resumed run would
        # ask for other products than the one that was killed.
        shape = result.shape[::-1]
        rows = torch.empty(shape, dtype=self.dtype, device=self.device)
        return rows.copy_(result.mT).mT

    def _recorded(self, path: Path, vectors: Tensor) -> Tensor:
        tensors, about = read_checkpoint(path)
        if about["question"] != _digest(vectors):
            raise ValueError(
                f"folder: {path} belongs to another run: other settings, another seed, or a "
                "machine that rounds otherwise; give the arguments of that run, or an empty folder"
            )
        return self._copied(tensors["answer"])


def _digest(vectors: Tensor) -> str:
    content = vectors.cpu().contiguous().numpy()
    return hashlib.sha256(content.data).hexdigest()
