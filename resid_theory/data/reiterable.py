"""Data sets that are read several times: the same samples in every pass, or an error."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from resid_theory.data import Images
from resid_theory.data.batching import batches

__all__ = ["Batch", "Passes", "map_tensors"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Samples that are read together.

    Attributes:
        content: A pair (x, y), images, or for a loss of (net, batch) a batch of any kind.
        size: Number of samples, the batch's weight in the mean.
        first: Number of samples before it in the pass.
        splits: Whether it can be split.
    """

    content: Any
    size: int
    first: int = 0
    splits: bool = True

    def part(self, start: int, count: int, like: Tensor) -> Any:
        """``count`` samples on the device of the parameter ``like``; of images, in its dtype."""
        rows = slice(start, start + count)
        if isinstance(self.content, Images):
            pixels = self.content.pixels[rows].to(like.device)
            labels = self.content.labels[rows].to(like.device)
            return self.content.inputs(pixels, like.dtype), labels
        if self.splits:
            return tuple(part[rows].to(like.device) for part in self.content)
        return map_tensors(self.content, lambda tensor: tensor.to(like.device))


def map_tensors(content: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A nest of mappings, tuples and lists with the function applied to its tensors."""
    if isinstance(content, Tensor):
        return function(content)
    if isinstance(content, Mapping):
        return {key: map_tensors(value, function) for key, value in content.items()}
    if type(content) in (tuple, list):
        return type(content)(map_tensors(value, function) for value in content)
    return content


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, (Mapping, tuple, list)):
        for value in content.values() if isinstance(content, Mapping) else content:
            yield from _tensors(value)


@dataclass(eq=False)
class _Record:
    """The sizes of the batches of one pass, and a checksum of every sample, in order."""

    sizes: list[int] = field(default_factory=list)
    marks: list[Tensor] = field(default_factory=list)

    def add(self, batch: Batch) -> None:
        """Append a batch."""
        self.sizes.append(batch.size)
        parts = [part for part in _tensors(batch.content) if part.dim() and part.numel()]
        rows = [_marks(part) for part in parts if len(part) == batch.size]
        others = [_marks(part).sum() for part in parts if len(part) != batch.size]
        # Unlike factors, so that exchanging x and y does not go unseen.
        mark = torch.zeros(batch.size, dtype=torch.int64)
        for number, part in enumerate(rows + others):
            mark += (2 * number + 1) * part
        self.marks.append(mark)

    def difference(self, other: "_Record") -> str:
        """``none``; ``order`` for the same samples in another order or batches; or ``samples``."""
        mine, theirs = torch.cat(self.marks), torch.cat(other.marks)
        if self.sizes == other.sizes and torch.equal(mine, theirs):
            return "none"
        same = len(mine) == len(theirs) and torch.equal(mine.sort().values, theirs.sort().values)
        return "order" if same else "samples"


def _marks(part: Tensor) -> Tensor:
    """A checksum of every row: its bit patterns times fixed odd numbers, modulo 2^64."""
    rows = part.detach().cpu().reshape(len(part), -1)
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = rows.contiguous().view(kind[rows.element_size()]).to(torch.int64)
    # Steele, Lea & Flood's golden gamma: its multiples are spread over all 64 bits.
    odd = (torch.arange(bits.shape[1]) * -7046029254386353131) | 1
    return (bits * odd).sum(1)


class Passes:
    """The batches of a data set, compared with the first pass whenever they are read again.

    Args:
        data: The data as ``curvature_operator`` takes them.
        closure: Whether the loss takes batches of any kind, which then do not split.
        ordered: Whether the result depends on which samples share a batch.

    Attributes:
        shuffled: Whether a pass had another order than the first one.

    Raises:
        ValueError: If the data can be read only once.
    """

    def __init__(self, data: Any, *, closure: bool, ordered: bool) -> None:
        if isinstance(data, Iterator):
            raise ValueError(
                f"data: got {type(data).__name__}, which can be read only once, but every product "
                "reads the data again; pass list(data), a DataLoader or the tensors themselves"
            )
        if closure and not hasattr(data, "__iter__"):
            raise ValueError(
                f"data: got {type(data).__name__}, needs a list of batches or a loader for a loss "
                "(net, batch)"
            )
        self._data, self._closure, self._ordered = data, closure, ordered
        self._first: _Record | None = None
        self.shuffled = False

    @property
    def in_memory(self) -> bool:
        """True if the data are tensors, the same in every pass."""
        known = isinstance(self._data, (Images, tuple)) or hasattr(self._data, "x")
        return known and not self._closure

    def __iter__(self) -> Iterator[Batch]:
        """Read the batches; refuse none, and others than those of the first pass."""
        if self.in_memory:
            yield from self._read()
            return
        record = _Record()
        for batch in self._read():
            record.add(batch)
            yield batch
        if not record.sizes:
            raise ValueError("data: got no batch, needs at least one")
        if self._first is None:
            self._first = record
        difference = self._first.difference(record)
        kind = type(self._data).__name__
        if difference == "samples":
            raise ValueError(
                f"data: {kind} gives other samples in every pass, so products do not belong to one "
                "matrix; the usual causes are random augmentation and drop_last with shuffle: "
                "pass list(data), or a loader that repeats itself"
            )
        if difference == "order" and self._ordered:
            raise ValueError(
                f"data: {kind} shuffles between passes, and here the loss depends on which samples "
                "share a batch; needs shuffle=False, or list(data) to keep one order"
            )
        if difference == "order" and not self.shuffled:
            self.shuffled = True
            warnings.warn(
                f"data: {kind} shuffles between passes; a mean over samples has no order, so "
                "products agree to round-off, with shuffle=False to the bit",
                stacklevel=2,
            )

    def _read(self) -> Iterator[Batch]:
        if isinstance(self._data, Images):
            yield Batch(content=self._data, size=len(self._data))
            return
        first = 0
        for content in self._data if self._closure else batches(self._data):
            size = _weight(content) if self._closure else len(content[0])
            yield Batch(content=content, size=size, first=first, splits=not self._closure)
            first += size


def _weight(content: Any) -> int:
    first = next(_tensors(content), None)
    if first is None or first.dim() == 0:
        raise ValueError(
            f"data: got a batch that is {type(content).__name__} without a tensor whose first axis "
            "counts samples; the batch is weighted by it"
        )
    return len(first)
