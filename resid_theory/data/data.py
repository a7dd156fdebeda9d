"""Data of any form: the one door through which samples enter, batch by batch."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resid_theory._check import as_tensor, check_finite
from resid_theory.data.batch import Batch, Place, join
from resid_theory.data.forms import (
    as_batches,
    batch_size,
    check_triple,
    has_weights,
    is_labelled,
    whole_set,
)
from resid_theory.data.image_set import Images
from resid_theory.data.model_labels import labels_are_next, next_labels
from resid_theory.data.net_arguments import inputs_of, taken_by, whole_inputs
from resid_theory.data.pass_record import PassRecord
from resid_theory.losses import IGNORED
from resid_theory.nested import tensors_of
from resid_theory.runtime.net_entry import inner_net


class Data:
    """The samples of a data set, batch by batch, the same in every pass or an error.

    Made by :meth:`of`. Iterating reads the data once.

    Attributes:
        ordered: Whether a result depends on which samples share a batch; set by who knows.
        shuffled: Whether a pass had another order than the first one.
        notes: What was done to the data on the way in.
    """

    def __init__(
        self,
        source: Any,
        net: nn.Module | None,
        *,
        pairs: bool,
        targets: bool | None,
        sample_weight: Any = None,
    ) -> None:
        net = None if net is None else inner_net(net)
        self._source, self._net, self._place = source, net, Place.of(net)
        self._pairs, self._targets, self._sample_weight = pairs, targets, sample_weight
        self._whole: Any = None  # a list of batches, images, or one triple
        self._first: PassRecord | None = None
        self._versions: list[int] | None = None  # of the tensors in memory
        self._checked: Batch | None = None  # a whole set, which is checked once
        # What reads no targets has no loss to weigh, one of (net, batch) weighs by itself.
        self._weighs = bool(pairs and targets)
        self._next: bool | None = None  # whether labels are those of the next token
        self.ordered = self.shuffled = False
        self.notes: list[str] = []

    @staticmethod
    def of(
        data: Any,
        *,
        like: nn.Module | None = None,
        pairs: bool = True,
        targets: bool | None = True,
        sample_weight: Any = None,
    ) -> "Data":
        """Take data of any form.

        Args:
            data: A pair (x, y) of tensors, arrays or lists, (m, ...) each; an object or a mapping
                with ``x`` and ``y``; images; a mapping of inputs by name with ``labels`` among
                them; a ``Dataset`` of torch; or a ``DataLoader``, a list or any other iterable of
                such batches. x is one tensor, a tuple of those for ``net(*x)``, or a mapping for
                ``net(**x)``. Integers behind (x, y) are indices, which are left out. Labels of
                tokens are moved to the logits that predict them if the model's own loss does so.
            like: A net that is to take them. Batches go to its device, floating-point numbers to
                its dtype, with a note; those of a net of several dtypes to that of its first
                parameter, which their targets keep off.
            pairs: Whether batches are pairs; else they are handed on as they are, for a loss of
                (net, batch).
            targets: Whether targets are needed; False for inputs whose targets are not read, None
                for targets that may be there. Inputs alone, or batches of these, are then data,
                too: a tensor, a tuple of as many tensors as the net needs, a mapping, an object.
            sample_weight: Weights of the samples, at least 0, (m,), for a whole set; True if they
                are what stands behind (x, y) in every batch. A sample of weight 2 counts as if it
                were there twice. Calls in which all samples count alike refuse them.

        Returns:
            The data; nothing is read yet.

        Raises:
            ValueError: If they have none of these forms. Reading them raises one, too, for batches
                without samples, numbers that are not finite, x and y of different lengths, or other
                samples than in the first pass; of arrays of NumPy, which share their memory,
                nothing tells whether they were written since.

        Example:
            >>> x, y = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
            >>> [batch.size for batch in rt.Data.of([(x[:3], y[:3]), (x[3:], y[3:])])]
            [3, 2]
        """
        weight, whole = sample_weight, None
        if isinstance(data, Data):
            whole = data._whole if data._pairs == pairs else None
            weight = data._sample_weight if weight is None else weight
            data = data._source
        made = Data(data, like, pairs=pairs, targets=targets, sample_weight=weight)
        if isinstance(whole, list) and sample_weight is None:  # batches that are held
            made._whole = whole
        elif pairs and targets:
            made._whole = whole_set(data)
            if made._whole is not None and weight is None and has_weights(data):
                made._sample_weight = True
            if isinstance(made._whole, Images) and not isinstance(data, Images):
                made._note("x is of bytes, taken for pixels of images, which are divided by 255")
        elif pairs:
            made._whole = whole_inputs(data)
            if isinstance(data, list) and isinstance(made._whole, tuple):
                made._note("a list of two tensors is taken for inputs and targets")
        if made._whole is None:
            one = not pairs and isinstance(data, Mapping)
            made._source = [data] if one else as_batches(data)
            made._check_iterable(data)
        return made

    def _check_iterable(self, data: Any) -> None:
        wanted = "(x, y), an object with .x and .y, or an iterable of such pairs"
        if not self._pairs:
            wanted = "a list of batches or a loader for a loss (net, batch)"
            bare = isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Tensor)
            if bare or isinstance(data, Tensor):
                kind = "a bare pair" if bare else "one Tensor"
                raise ValueError(f"data: got {kind}, needs {wanted}: pass [batch]")
        if self._pairs and isinstance(data, Mapping):
            keys = ", ".join(repr(key) for key in data)
            raise ValueError(
                f"data: got a mapping with {keys}, needs the entries 'x' and 'y', or inputs by "
                "name with their targets as the entry 'labels'"
            )
        if isinstance(data, str) or not hasattr(self._source, "__iter__"):
            raise ValueError(f"data: got {type(data).__name__}, needs {wanted}")
        if self._sample_weight is not None and self._sample_weight is not True:
            raise ValueError(
                "sample_weight: got numbers together with batches; needs True, and batches "
                "(x, y, weights)"
            )

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
            New data, or these if they are images, which stay bytes.
        """
        if isinstance(self._whole, Images):
            return self
        made = self._holding([replace(batch, content=batch.placed) for batch in self])
        made.notes = self.notes
        return made

    def _holding(self, batches: list[Batch]) -> "Data":
        made = Data(self._source, self._net, pairs=self._pairs, targets=self._targets)
        made._whole = batches
        return made

    def __iter__(self) -> Iterator[Batch]:
        """Read the batches; refuse none, and others than those of the first pass."""
        if self.in_memory:
            for batch in self._read():
                self._check_unwritten()
                yield batch
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

    def _check_unwritten(self) -> None:
        """Refuse tensors that were written in place since they were first read."""
        held = [t for t in tensors_of(self._whole) if not t.is_inference()]  # the others count none
        versions = [tensor._version for tensor in held]
        self._versions = self._versions or versions
        if versions != self._versions:
            raise ValueError(
                "data: tensors were written in place since they were first read, so that passes "
                "do not belong to one data set; pass copies (.clone()), or make new data"
            )

    def _read(self) -> Iterator[Batch]:
        if isinstance(self._whole, list):
            for batch in self._whole:
                self._check_weighs(batch.sample_weight)
                yield replace(batch, place=self._place)
            return
        if isinstance(self._whole, Images):
            if len(self._whole) == 0:
                raise ValueError("data: got images without samples, needs at least one")
            check_finite("data x", self._whole.pixels)
            check_finite("data y", self._whole.labels)
            weight = self._weights(self._sample_weight, len(self._whole))
            yield Batch(
                content=self._whole, size=len(self._whole), sample_weight=weight, place=self._place
            )
            return
        if self._checked is not None:
            yield self._checked
            return
        first = 0
        for content in self._source if self._whole is None else [self._whole]:
            batch = self._pair(content) if self._pairs else self._any(content)
            batch = replace(batch, first=first, place=self._place)
            self._checked = batch if self.in_memory else None
            yield batch
            first += batch.size

    def unweighted(self) -> "Data":
        """The same data, for a reader to whom all samples count alike.

        Returns:
            These data; reading samples with weights raises a ValueError from now on.
        """
        self._weighs = False
        return self

    def whole(self) -> Batch:
        """All samples in one batch, read now.

        Returns:
            A batch that shares memory with the data, if they are one.

        Raises:
            ValueError: If samples of different batches have different shapes.
        """
        return join(list(self))

    def only(self, batch: Batch) -> "Data":
        """Data of one batch alone, held, with its weights.

        Args:
            batch: A batch of these data, or some of its samples.

        Returns:
            New data.
        """
        return self._holding([replace(batch, first=0)])

    def chunks(self, size: int, title: str | None = None) -> Iterator[Batch]:
        """Read the batches, placed; those of a whole set in parts.

        Args:
            size: Most samples of a part; batches that the data come in stay as they are.
            title: Title of a progress bar on standard error; None shows none.

        Yields:
            Batches whose tensors are where the net is.
        """
        parted = self._whole is not None and not isinstance(self._whole, list)
        total = None
        if title is not None and self._whole is not None:
            total = sum(-(-b.size // size) if parted else 1 for b in self._read())
        elif title is not None and hasattr(self._source, "__len__"):
            total = len(self._source)
        with tqdm(total=total, disable=title is None, desc=title) as bar:
            for batch in self:
                step = size if parted else batch.size
                for start in range(0, batch.size, step):
                    part = batch.part(start, step)
                    yield replace(part, content=part.placed)
                    bar.update()

    def _pair(self, content: Any) -> Batch:
        if not self._targets:
            return self._inputs(content)
        x, y, behind = check_triple(content)
        if is_labelled(content) and self._net is not None:
            x, y = self._labelled(x, y)
        size = batch_size(y)
        assert size is not None
        given = self._sample_weight
        named = given is True or has_weights(content)
        if given is not None and given is not True:
            if behind is not None and behind.is_floating_point():
                raise ValueError("sample_weight: the data have weights of their own, too")
            behind = given
        elif behind is None and given is True:
            raise ValueError("sample_weight: got True for a pair (x, y), needs (x, y, weights)")
        elif behind is not None and not named:
            if behind.is_floating_point():
                raise ValueError(
                    "data: got (x, y) with floating-point numbers behind; weights of the samples "
                    "are named: rt.Data.of(data, sample_weight=True); leave them out else"
                )
            behind = None
            self._note("integers behind (x, y) are left out as indices")
        self._note_casts("x", x, self._place.inputs)
        self._note_casts("y", y, self._place.targets)
        return Batch(content=(x, y), size=size, sample_weight=self._weights(behind, size))

    def _labelled(self, x: Any, labels: Any) -> tuple[Any, Any]:
        """Inputs that the net takes, and labels at the places of the logits they belong to."""
        assert self._net is not None
        x, note = taken_by(self._net, x, labels)
        if note is not None:
            self._note(note)
        if self._next is None and bool((labels != IGNORED).any()):
            given = self._place.put(x, self._place.inputs), self._place.put(labels, None)
            self._next = labels_are_next(self._net, *given)
        if not self._next:
            return x, labels
        self._note("labels are those of the next token, as the model's own loss takes them")
        return x, next_labels(labels)

    def _inputs(self, content: Any) -> Batch:
        self._check_weighs(True if has_weights(content) else self._sample_weight)
        x, y, note = inputs_of(content, self._net)
        if note is not None:
            self._note(note)
        self._note_casts("x", x, self._place.inputs)
        if self._targets is None and y is not None:
            x, y, _ = check_triple((x, y))
            self._note_casts("y", y, self._place.targets)
        else:
            y = None
        size = batch_size(x)
        assert size is not None
        return Batch(content=(x, y), size=size)

    def _note_casts(self, name: str, side: Any, dtype: torch.dtype | None) -> None:
        for tensor in tensors_of(side):
            if dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype:
                self._note(f"{name} is cast from {tensor.dtype} to the net's {dtype}")

    def _any(self, content: Any) -> Batch:
        self._check_weighs(self._sample_weight)
        size = batch_size(content)
        if size is None:
            raise ValueError(
                f"data: got a batch that is {type(content).__name__} without a tensor whose first "
                "axis counts samples; the batch is weighted by it"
            )
        return Batch(content=content, size=size, is_pair=False)

    def _check_weighs(self, given: Any) -> None:
        if given is not None and not self._weighs:
            raise ValueError(
                "sample_weight: the data have weights of the samples, and here all count alike; "
                "needs data without them, such as samples that are repeated"
            )

    def _weights(self, given: Any, size: int) -> Tensor | None:
        self._check_weighs(given)
        if given is None:
            return None
        weights = as_tensor("sample_weight", given).double()
        wrong = weights[~((weights >= 0) & weights.isfinite())].tolist()
        if weights.shape != (size,) or wrong:
            shown = f" with {wrong[0]:g}" if wrong else ""
            raise ValueError(
                f"sample_weight: got shape {tuple(weights.shape)}{shown} for {size} samples, needs "
                "one finite number of at least 0 for each"
            )
        return weights

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
