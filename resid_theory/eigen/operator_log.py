"""Products with a symmetric operator: counted, limited, shown, recorded and replayed."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from resid_theory._check import check_finite
from resid_theory.runtime.store import read_checkpoint, write_checkpoint

__all__ = ["MatrixError", "Operator", "OutOfProducts", "RecordedOperator"]


@dataclass(frozen=True, kw_only=True)
class MatrixError:
    """Difference E of the matrix that an operator multiplies by from the one it stands for.

    Attributes:
        spectral: Largest shift of an eigenvalue, the spectral norm of E; in units of the
            eigenvalues, as all three.
        frobenius: Frobenius norm of E.
        trace: Magnitude of the trace of E.
    """

    spectral: float
    frobenius: float
    trace: float


class Operator(Protocol):
    """A symmetric operator: anything that multiplies a (P, b) tensor, such as a square tensor."""

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
    the progress bar is full, ``precision`` that of the operator, if it is lower than its dtype.
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
        precision: torch.dtype | None = None,
    ) -> None:
        shape = tuple(matrix.shape)
        if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
            raise ValueError(f"A: got shape {shape}, needs a square symmetric operator (P, P)")
        if matrix.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"A: got dtype {matrix.dtype}, needs float32 or float64")
        self.matrix, self.size = matrix, int(shape[0])
        self.dtype, self.device = matrix.dtype, torch.device(matrix.device)
        self.precision = self.dtype if precision is None else precision
        if self.precision not in (torch.float32, torch.float64):
            raise ValueError(f"precision: got {precision!r}, needs torch.float32 or torch.float64")
        self.count, self.limit = 0, limit
        self._folder = None if folder is None else Path(folder)
        self._calls = 0
        total = expected or limit
        self._bar = tqdm(disable=not progress, desc=label, unit="product", total=total)

    def __enter__(self) -> "RecordedOperator":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @property
    def no_vectors(self) -> Tensor:
        """An empty (P, 0) block of vectors of this operator."""
        return torch.empty(self.size, 0, dtype=self.dtype, device=self.device)

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The product with (P, b) vectors; it uses b products of the budget."""
        if self.limit is not None and self.count + vectors.shape[1] > self.limit:
            raise OutOfProducts
        path = None if self._folder is None else self._folder / f"product_{self._calls:06d}.json"
        result = self._recorded(path, vectors) if path is not None and path.exists() else None
        if result is None or self._calls == 0:
            with torch.no_grad():
                fresh = self.matrix @ vectors
            if fresh.shape != vectors.shape:
                raise ValueError(
                    f"A: gives shape {tuple(fresh.shape)} for vectors of shape "
                    f"{tuple(vectors.shape)}; needs equal shapes"
                )
            fresh = self._copied(check_finite("A @ vectors", fresh.detach()))
            # Half the digits: a product may round differently after a restart, a wrong net may not.
            loose = torch.finfo(self.precision).eps ** 0.5
            if result is None:
                result = fresh
                if path is not None:
                    about = {"question": _digest(vectors), "parameters": self.size}
                    write_checkpoint(path, {"answer": result}, about)
            elif float((fresh - result).norm()) > loose * float(result.norm()):
                raise ValueError(
                    f"folder: {path} was recorded with another operator: other weights, data or "
                    "loss; restore these, or give an empty folder"
                )
        self._calls += 1
        self.count += vectors.shape[1]
        self._bar.update(vectors.shape[1])
        return result

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
    content = vectors.detach().cpu().contiguous().numpy()
    return hashlib.sha256(content.data).hexdigest()
