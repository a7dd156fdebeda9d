"""The axes of a net's output along which the samples are, found by experiment."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resid_theory.nested import map_tensors, tensors_of


@dataclass(frozen=True)
class SampleAxes:
    """The samples' places in the tensors of an output.

    Attributes:
        axes: For each tensor the axis that grows with the samples and the entries of one sample
            along it; None for a tensor that all samples share.
        interleaved: For each tensor whether a sample's entries are as far apart as there are
            samples, instead of side by side.
    """

    axes: tuple[tuple[int, int] | None, ...]
    interleaved: tuple[bool, ...]

    @staticmethod
    def first(content: Any, samples: int) -> "SampleAxes":
        """The first axis of every tensor that has that many entries along it."""
        starts = (tensor.shape[:1] for tensor in tensors_of(content))
        axes = tuple((0, 1) if start == (samples,) else None for start in starts)
        return SampleAxes(axes, (False,) * len(axes))

    @staticmethod
    def between(few: Any, more: Any, counts: tuple[int, int]) -> "SampleAxes | None":
        """Compare the outputs of a few samples with those of more.

        Args:
            few: Output of ``counts[0]`` samples, at least 1; the last one is the first of ``more``.
            more: Output of ``counts[1]`` samples, more than that.
            counts: Both numbers.

        Returns:
            The axes; None if the outputs have different tensors, or one grows in another way.
        """
        axes: list[tuple[int, int] | None] = []
        interleaved = []
        pairs = list(tensors_of(few)), list(tensors_of(more))
        if len(pairs[0]) != len(pairs[1]):
            return None
        for small, large in zip(*pairs, strict=True):
            if small.dim() != large.dim():
                return None
            shapes = list(zip(small.shape, large.shape, strict=True))
            grown = [axis for axis, (s, m) in enumerate(shapes) if s != m]
            if not grown:
                axes.append(None)
                interleaved.append(False)
                continue
            axis, *others = grown
            each = small.shape[axis] // counts[0]
            if others or shapes[axis] != (each * counts[0], each * counts[1]):
                return None
            axes.append((axis, each))
            # One sample's entries tell side by side from interleaved.
            both = [t.to(torch.complex128) for t in (small, large)]  # masks have no minus
            ways = ([_spread(t, axis, each, way) for t in both] for way in (False, True))
            beside, apart = ((s[-1] - m[0]).norm() for s, m in ways)
            interleaved.append(bool(apart < beside))
        return SampleAxes(tuple(axes), tuple(interleaved))

    @property
    def is_first(self) -> bool:
        """True if every tensor has one entry a sample along its first axis."""
        return all(axis == (0, 1) for axis in self.axes)

    def spread(self, output: Any) -> list[Tensor]:
        """The tensors that have samples, (samples, ...) each."""
        return [
            _spread(tensor, *axis, interleaved)
            for tensor, axis, interleaved in self._each(output)
            if axis is not None
        ]

    def gather(self, leaves: Sequence[Tensor], like: Any) -> Any:
        """An output made of tensors (samples, ...), and of what all samples share in another."""
        parts = iter(leaves)
        places = iter(zip(self.axes, self.interleaved, strict=True))

        def joined(tensor: Tensor) -> Tensor:
            axis, interleaved = next(places)
            return tensor if axis is None else _join(next(parts), *axis, interleaved)

        return map_tensors(like, joined)

    def floating(self, output: Any) -> "SampleAxes":
        """The same for a list of the floating-point tensors of such an output."""
        kept = [tensor.is_floating_point() for tensor in tensors_of(output)]
        axes = tuple(axis for axis, keep in zip(self.axes, kept, strict=True) if keep)
        ways = tuple(way for way, keep in zip(self.interleaved, kept, strict=True) if keep)
        return SampleAxes(axes, ways)

    def shared(self, output: Any) -> list[Tensor]:
        """The tensors that all samples share."""
        return [tensor for tensor, axis, _ in self._each(output) if axis is None]

    def _each(self, output: Any) -> Iterator[tuple[Tensor, tuple[int, int] | None, bool]]:
        yield from zip(tensors_of(output), self.axes, self.interleaved, strict=True)


def _spread(tensor: Tensor, axis: int, each: int, interleaved: bool) -> Tensor:
    """(..., samples * each, ...) as (samples, each, ...), or (samples, ...) for one entry each."""
    moved = tensor.movedim(axis, 0)
    if each == 1:
        return moved
    if interleaved:
        return moved.unflatten(0, (each, -1)).transpose(0, 1)
    return moved.unflatten(0, (-1, each))


def _join(part: Tensor, axis: int, each: int, interleaved: bool) -> Tensor:
    """Undo ``_spread``."""
    if each > 1:
        part = (part.transpose(0, 1) if interleaved else part).flatten(0, 1)
    return part.movedim(0, axis)
