"""Data of any form: the one door through which samples enter, batch by batch."""

import warnings
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from resid_theory._check import check_pair
from resid_theory.data.batch import Batch, tensors_of
from resid_theory.data.image_set import Images
from resid_theory.data.pass_record import PassRecord

__all__ = ["Data"]


class Data:
    """The samples of a data set, batch by batch, the same in every pass or an error.

    Made by :meth:`of`. Iterating reads the data once.

    Attributes:
        ordered: Whether a result depends on which samples share a batch; set by who knows.
        shuffled: Whether a pass had another order than the first one.
        notes: What was done to the data on the way in, one sentence each.
    """

    def __init__(self, source: Any, whole: Any, like: Tensor | None, pairs: bool) -> None:
        self._source, self._whole, self._like, self._pairs = source, whole, like, pairs
        self._first: PassRecord | None = None
        self.ordered = self.shuffled = False
        self.notes: list[str] = []

    @staticmethod
    def of(data: Any, *, like: nn.Module | None = None, pairs: bool = True) -> "Data":
        """Take data of any form.

        Args:
            data: A pair (x, y) of tensors or arrays (one batch), an object with ``.x`` and ``.y``,
                images, or an iterable of pairs such as a ``DataLoader``.
            like: A net that is to take them: batches go to its device, images to its dtype.
            pairs: Whether batches are pairs; else they are handed on as they are, for a loss of
                (net, batch).

        Returns:
            The data; nothing is read yet.

        Raises:
            ValueError: If they have none of these forms.
        """
        parameter = None if like is None else next(like.parameters(), None)
        if isinstance(data, Data):
            return Data(data._source, data._whole, parameter, pairs)
        whole = _whole(data) if pairs else None
        if whole is None and not hasattr(data, "__iter__"):
            wanted = "(x, y), an object with .x and .y, or an iterable of such pairs"
            if not pairs:
                wanted = "a list of batches or a loader for a loss (net, batch)"
            raise ValueError(f"data: got {type(data).__name__}, needs {wanted}")
        return Data(data, whole, parameter, pairs)

    @property
    def in_memory(self) -> bool:
        """True if the data are tensors, the same in every pass."""
        return self._whole is not None

    @property
    def kind(self) -> str:
        """The type of what was given, for messages."""
        return type(self._source).__name__

    def check_rewindable(self, why: str) -> None:
        """Raise ValueError if the data can be read only once.

        Args:
            why: Reader that comes back, such as ``every product``.

        Raises:
            ValueError: If the data are an iterator.
        """
        if isinstance(self._source, Iterator) and not self.in_memory:
            raise ValueError(
                f"data: got {self.kind}, which can be read only once, but {why} reads the data "
                "again; pass list(data), a DataLoader or the tensors themselves"
            )

    def held(self) -> "Data":
        """The same batches, read now and held in memory on the net's device.

        Returns:
            New data, or these if they are tensors already.
        """
        if self.in_memory and (self._like is None or isinstance(self._whole, Images)):
            return self
        parts = [
            Batch(content=b.placed, size=b.size, first=b.first, is_pair=b.is_pair, like=self._like)
            for b in self
        ]
        return Data(self._source, parts, self._like, self._pairs)

    def __iter__(self) -> Iterator[Batch]:
        """Read the batches; refuse none, and others than those of the first pass."""
        if self.in_memory:
            yield from self._read()
            return
        record = PassRecord()
        for batch in self._read():
            record.add(batch)
            yield batch
        if not record.sizes:
            raise ValueError(
                "data: got no batch, needs at least one; an exhausted iterator is the usual cause"
            )
        if self._first is None:
            self._first = record
        difference = self._first.difference(record)
        if difference == "samples":
            raise ValueError(
                f"data: {self.kind} gives other samples in every pass, so products do not belong "
                "to one matrix; the usual causes are random augmentation and drop_last with "
                "shuffle: pass list(data), or a loader that repeats itself"
            )
        if difference == "order" and self.ordered:
            raise ValueError(
                f"data: {self.kind} shuffles between passes, and here the loss depends on which "
                "samples share a batch; needs shuffle=False, or list(data) to keep one order"
            )
        if difference == "order" and not self.shuffled:
            self.shuffled = True
            warnings.warn(
                f"data: {self.kind} shuffles between passes; a mean over samples has no order, so "
                "products agree to round-off, with shuffle=False to the bit",
                stacklevel=2,
            )

    def _read(self) -> Iterator[Batch]:
        if isinstance(self._whole, list):
            yield from self._whole
            return
        if isinstance(self._whole, Images):
            yield Batch(content=self._whole, size=len(self._whole), like=self._like)
            return
        first = 0
        for content in self._source if self._whole is None else [self._whole]:
            content = check_pair(content) if self._pairs else content
            size = _count(content)
            yield Batch(
                content=content, size=size, first=first, is_pair=self._pairs, like=self._like
            )
            first += size


def _whole(data: Any) -> Any:
    """The whole set where it is one pair or images; None for batches."""
    if isinstance(data, Images):
        return data
    if hasattr(data, "x") and hasattr(data, "y"):
        return data.x, data.y
    if isinstance(data, (tuple, list)) and len(data) == 2:
        # A list of two batches looks like a pair of arrays, except for its first entry.
        first = data[0]
        is_batch = isinstance(first, (tuple, list)) and len(first) == 2
        if not is_batch or not all(hasattr(part, "__array__") for part in first):
            return tuple(data)
    return None


def _count(content: Any) -> int:
    first = next(tensors_of(content), None)
    if first is None or first.dim() == 0:
        raise ValueError(
            f"data: got a batch that is {type(content).__name__} without a tensor whose first axis "
            "counts samples; the batch is weighted by it"
        )
    return len(first)
