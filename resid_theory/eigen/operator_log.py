"""Products with a symmetric operator: counted, limited, shown, recorded and replayed."""

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from resid_theory._check import check_finite
from resid_theory.runtime.store import read_checkpoint, write_checkpoint

__all__ = ["Operator", "OutOfProducts", "RecordedOperator"]


class Operator(Protocol):
    """A symmetric operator: anything that multiplies a (P, b) tensor; a square tensor is one."""

    @property
    def shape(self) -> Any:
        """(P, P)."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors it takes and gives."""

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        """The product with (P, b) vectors."""


class OutOfProducts(Exception):
    """The budget of products is used up."""


class RecordedOperator:
    """An operator whose products are counted, and kept in a folder where one is given.

    The methods here are deterministic given their generator and what the products give. So the
    record of a killed run is the list of its products: called again, a method asks the same
    questions and hears the recorded answers until the record ends, bit for bit. A question that
    differs from the recorded one is an error, and so is an operator that answers the first one
    differently.

    Args:
        matrix: The operator.
        folder: Where products are kept, one checksummed file each; None for nowhere.
        limit: Products with one vector that may be used; None for any number.
        progress: Whether to show a progress bar on standard error.
        label: What the bar is called.
        expected: Products that the bar should reach, where that is known.
        precision: In which products are computed, where that is less than their dtype.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """The product with (P, b) vectors, b of the budget.

        Args:
            vectors: (P, b).

        Returns:
            (P, b).

        Raises:
            OutOfProducts: If the budget does not reach.
            ValueError: If the operator gives another shape or something not finite.
        """
        if self.limit is not None and self.count + vectors.shape[1] > self.limit:
            raise OutOfProducts
        result = self._recorded(vectors)
        if result is None:
            result = self._fresh(vectors)
            self._record(vectors, result)
        self._calls += 1
        self.count += vectors.shape[1]
        self._bar.update(vectors.shape[1])
        return result

    def _fresh(self, vectors: Tensor) -> Tensor:
        with torch.no_grad():
            result = self.matrix @ vectors
        if result.shape != vectors.shape:
            raise ValueError(
                f"A: gives shape {tuple(result.shape)} for vectors of shape "
                f"{tuple(vectors.shape)}; needs equal shapes"
            )
        return self._laid_out(check_finite("A @ vectors", result.detach()))

    def _laid_out(self, result: Tensor) -> Tensor:
        """A copy of which every vector is contiguous, on this device, in this dtype."""
        # Products with the columns of another layout round otherwise, and a run that is resumed
        # would ask for other products than the one that was killed.
        shape = result.shape[::-1]
        rows = torch.empty(shape, dtype=self.dtype, device=self.device)
        return rows.copy_(result.mT).mT

    # -- the record --------------------------------------------------------------------------------

    def _path(self, folder: Path) -> Path:
        return folder / f"product_{self._calls:06d}.json"

    def _record(self, vectors: Tensor, result: Tensor) -> None:
        if self._folder is not None:
            about = {"question": _digest(vectors), "parameters": self.size}
            write_checkpoint(self._path(self._folder), {"answer": result}, about)

    def _recorded(self, vectors: Tensor) -> Tensor | None:
        """The answer on file, None where the record ends."""
        if self._folder is None or not self._path(self._folder).exists():
            return None
        tensors, about = read_checkpoint(self._path(self._folder))
        if about["question"] != _digest(vectors):
            raise ValueError(
                f"folder: {self._path(self._folder)} belongs to another run: other settings, "
                "another seed, or a machine that rounds otherwise; give the arguments of that run, "
                "or an empty folder"
            )
        answer = self._laid_out(tensors["answer"])
        if self._calls == 0:
            self._check_same(vectors, answer)
        return answer

    def _check_same(self, vectors: Tensor, answer: Tensor) -> None:
        again = self._fresh(vectors)
        # Half the digits: a product may round differently after a restart, a wrong net may not.
        loose = torch.finfo(self.precision).eps ** 0.5
        if float((again - answer).norm()) > loose * float(answer.norm()):
            raise ValueError(
                f"folder: {self._path(self._folder or Path())} was recorded with another operator: "
                "other weights, data or loss; restore these, or give an empty folder"
            )


def _digest(vectors: Tensor) -> str:
    content = vectors.detach().cpu().contiguous().numpy()
    return hashlib.sha256(content.data).hexdigest()
