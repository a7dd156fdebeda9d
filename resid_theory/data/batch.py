"""A batch of samples, and its tensors wherever its structure keeps them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory.data.image_set import Images

__all__ = ["Batch", "map_tensors", "tensors_of"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Samples that are read together.

    Attributes:
        content: A pair (x, y), images, or for a loss of (net, batch) a batch of any kind.
        size: Number of samples.
        first: Number of samples before it in the pass.
        is_pair: Whether it has inputs and targets, and can be split.
        like: A parameter of the net that is to take it; None leaves device and dtype alone.
    """

    content: Any
    size: int
    first: int = 0
    is_pair: bool = True
    like: Tensor | None = None

    def part(self, start: int, count: int) -> "Batch":
        """Some of its samples.

        Args:
            start: Number of samples before them.
            count: Most samples.

        Returns:
            A batch that shares memory with this one.

        Raises:
            ValueError: If it is no pair and these are not all of its samples.
        """
        if start == 0 and count >= self.size:
            return self
        if not self.is_pair:
            raise ValueError("data: a batch for a loss of (net, batch) cannot be split")
        rows = slice(start, start + count)
        if isinstance(self.content, Images):
            images = self.content
            some: Any = replace(images, pixels=images.pixels[rows], labels=images.labels[rows])
        else:
            some = tuple(part[rows] for part in self.content)
        size = len(range(*rows.indices(self.size)))
        return replace(self, content=some, size=size, first=self.first + start)

    @property
    def placed(self) -> Any:
        """The content on the net's device; images as (inputs, labels) in its dtype."""
        content = self.content
        if isinstance(content, Images):
            like = content.pixels.new_empty(0, dtype=torch.get_default_dtype())
            like = like if self.like is None else self.like
            pixels, labels = content.pixels.to(like.device), content.labels.to(like.device)
            return content.inputs(pixels, like.dtype), labels
        if self.like is None:
            return content
        device = self.like.device
        return map_tensors(content, lambda tensor: tensor.to(device))

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets on the net's device."""
        x, y = self.placed
        return x, y

    def call(self, net: nn.Module) -> Any:
        """The net's output on the batch's inputs, which it may overwrite.

        Args:
            net: A net that takes such inputs.

        Returns:
            Its output.
        """
        return net(self.pair[0].clone())


def map_tensors(content: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A nest of mappings, tuples and lists with the function applied to its tensors."""
    if isinstance(content, Tensor):
        return function(content)
    if isinstance(content, Mapping):
        return {key: map_tensors(value, function) for key, value in content.items()}
    if type(content) in (tuple, list):
        return type(content)(map_tensors(value, function) for value in content)
    return content


def tensors_of(content: Any) -> Iterator[Tensor]:
    """The tensors of a nest of mappings, tuples and lists."""
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, (Mapping, tuple, list)):
        for value in content.values() if isinstance(content, Mapping) else content:
            yield from tensors_of(value)
