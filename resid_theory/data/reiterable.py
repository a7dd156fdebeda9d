"""A data set that is read again for every product: the same samples each time, or an error."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from resid_theory.data import Images
from resid_theory.data.batching import batches

__all__ = ["Batch", "Passes", "Seen"]

_PIECE = 1024  # samples looked at together


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Samples that come together.

    Attributes:
        content: A pair (x, y), images, or for a closure whatever its data hold.
        size: Number of samples, the batch's weight in the mean.
        first: Number of samples before it in the pass.
        splits: Whether it can be taken apart.
    """

    content: Any
    size: int
    first: int = 0
    splits: bool = True

    def part(self, start: int, count: int, like: Tensor) -> Any:
        """Some of the samples, on the device of the net.

        Args:
            start: The first of them.
            count: How many; of a batch that does not split, all are taken.
            like: A parameter of the net: images are made in its dtype.

        Returns:
            A pair (x, y), or the content of a closure's batch.
        """
        rows = slice(start, start + count)
        if isinstance(self.content, Images):
            pixels = self.content.pixels[rows].to(like.device)
            labels = self.content.labels[rows].to(like.device)
            return self.content.inputs(pixels, like.dtype), labels
        if self.splits:
            return tuple(part[rows].to(like.device) for part in self.content)
        return _moved(self.content, like.device)


def _moved(content: Any, device: torch.device) -> Any:
    if isinstance(content, Tensor):
        return content.to(device)
    if isinstance(content, Mapping):
        return {key: _moved(value, device) for key, value in content.items()}
    if type(content) in (tuple, list):
        return type(content)(_moved(value, device) for value in content)
    return content


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, (Mapping, tuple, list)):
        for value in content.values() if isinstance(content, Mapping) else content:
            yield from _tensors(value)


@dataclass(eq=False)
class Seen:
    """What one pass gave: a checksum for every sample, in order.

    Attributes:
        sizes: Samples of each batch.
        marks: One checksum a sample, int64, batch by batch.
    """

    sizes: list[int] = field(default_factory=list)
    marks: list[Tensor] = field(default_factory=list)

    def add(self, batch: Batch) -> None:
        """Note a batch.

        Args:
            batch: It.
        """
        self.sizes.append(batch.size)
        parts = [part for part in _tensors(batch.content) if part.dim() and part.numel()]
        rows = [_marks(part) for part in parts if len(part) == batch.size]
        others = [_marks(part).sum() for part in parts if len(part) != batch.size]
        # Unlike factors, so that exchanging x and y does not go unseen.
        mark = torch.zeros(batch.size, dtype=torch.int64)
        for number, part in enumerate(rows + others):
            mark += (2 * number + 1) * part
        self.marks.append(mark)

    def difference(self, other: "Seen") -> str:
        """How another pass differs.

        Args:
            other: The other pass.

        Returns:
            ``"none"``; ``"order"`` if the same samples came in another order or in other batches;
            else ``"samples"``.
        """
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
    """The batches of a data set, as often as they are needed.

    Args:
        data: As ``curvature_operator`` takes it.
        closure: Whether the loss takes batches of any kind, which then do not split.
        ordered: Whether the result depends on which samples come together.

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
        self._first: Seen | None = None
        self.shuffled = False

    @property
    def in_memory(self) -> bool:
        """Whether the data are tensors, which no pass can change."""
        known = isinstance(self._data, (Images, tuple)) or hasattr(self._data, "x")
        return known and not self._closure

    def __iter__(self) -> Iterator[Batch]:
        """One pass.

        Yields:
            The batches.

        Raises:
            ValueError: If there is none, or they differ from those of the first pass.
        """
        if self.in_memory:
            yield from self._read()
            return
        seen = Seen()
        for batch in self._read():
            seen.add(batch)
            yield batch
        if not seen.sizes:
            raise ValueError("data: got no batch, needs at least one")
        if self._first is None:
            self._first = seen
        else:
            self._compare(self._first.difference(seen))

    def _read(self) -> Iterator[Batch]:
        if isinstance(self._data, Images):
            yield Batch(content=self._data, size=len(self._data))
            return
        first = 0
        for content in self._data if self._closure else batches(self._data):
            size = _weight(content) if self._closure else len(content[0])
            yield Batch(content=content, size=size, first=first, splits=not self._closure)
            first += size

    def _compare(self, difference: str) -> None:
        kind = type(self._data).__name__
        if difference == "samples":
            raise ValueError(
                f"data: {kind} gives other samples in every pass, so products belong to no one "
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


def _weight(content: Any) -> int:
    first = next(_tensors(content), None)
    if first is None or first.dim() == 0:
        raise ValueError(
            f"data: got a batch that is {type(content).__name__} without a tensor whose first axis "
            "counts samples; the batch is weighted by it"
        )
    return len(first)
