"""A batch of samples, on its way to a net."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory.data.image_set import Images
from resid_theory.data.net_arguments import call_net, naming_inputs
from resid_theory.nested import map_tensors, rows_of, tensors_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """Device and dtypes that a net takes.

    Attributes:
        device: Where its first parameter is; None leaves tensors where they are.
        inputs: Dtype of floating-point inputs; None keeps theirs.
        targets: Dtype of floating-point targets and of all else; None keeps theirs.
    """

    device: torch.device | None = None
    inputs: torch.dtype | None = None
    targets: torch.dtype | None = None

    @staticmethod
    def of(net: nn.Module | None) -> "Place":
        """That of a net: its dtype, if it has one; else that of its first layer, for inputs."""
        if net is None:
            return Place()
        parameters = [p for p in net.parameters() if not nn.parameter.is_lazy(p)]
        dtypes = dict.fromkeys(p.dtype for p in parameters if p.is_floating_point())
        first = next(iter(dtypes), None)
        return Place(
            device=next((p.device for p in parameters), None),
            inputs=first,
            targets=first if len(dtypes) == 1 else None,
        )

    def put(self, content: Any, dtype: torch.dtype | None) -> Any:
        """The tensors of a nest on the device, floating-point ones in a dtype."""
        if self.device is None:
            return content

        def moved(tensor: Tensor) -> Tensor:
            tensor = tensor.to(self.device, dtype if tensor.is_floating_point() else None)
            return tensor.clone() if tensor.is_inference() else tensor  # to be differentiated

        return map_tensors(content, moved)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Samples that are read together.

    Attributes:
        content: As the data have it: a pair (x, y), images, or for a loss of (net, batch) a batch
            of any kind.
        size: Number of samples.
        first: Number of samples before it in the pass.
        is_pair: Whether it has inputs and targets, and can be split.
        sample_weight: The caller's weights of the samples, (size,), None for equal ones.
        place: Device and dtypes of the net that is to take it.
    """

    content: Any
    size: int
    first: int = 0
    is_pair: bool = True
    sample_weight: Tensor | None = None
    place: Place = field(default_factory=Place)

    def part(self, start: int, count: int) -> "Batch":
        """Consecutive samples.

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
        return replace(self.rows(slice(start, start + count)), first=self.first + start)

    def spread(self, count: int) -> "Batch":
        """A few samples from all over the batch.

        Args:
            count: Most samples.

        Returns:
            The first one and others at equal distances; all if they are no more.
        """
        if count >= self.size:
            return self
        return self.rows(torch.arange(count) * self.size // count)

    def joined(self, other: "Batch") -> "Batch | None":
        """The samples of two batches in one.

        Args:
            other: Another batch of the data.

        Returns:
            A batch; None if their samples have different shapes or structures.
        """
        try:
            return replace(join([self, other]), sample_weight=None)
        except ValueError:
            return None

    def ends(self) -> "Batch":
        """The last sample and the first one, in this order; of one sample that one."""
        return self.rows(torch.tensor([-1, 0][: self.size]))

    def rows(self, rows: slice | Tensor) -> "Batch":
        """Some of the samples.

        Args:
            rows: Their numbers, also repeated ones.

        Returns:
            A batch of these.
        """
        if isinstance(self.content, Images):
            images = self.content
            some: Any = replace(images, pixels=images.pixels[rows], labels=images.labels[rows])
        else:
            some = tuple(rows_of(side, rows, self.size) for side in self.content)
        weight = None if self.sample_weight is None else self.sample_weight[rows]
        size = len(rows) if isinstance(rows, Tensor) else len(range(*rows.indices(self.size)))
        return replace(self, content=some, size=size, sample_weight=weight)

    @property
    def placed(self) -> Any:
        """The content on the net's device and in its dtypes; images as (inputs, labels)."""
        if not self.is_pair:
            return self.place.put(self.content, self.place.targets)
        return self.pair

    @property
    def pair(self) -> tuple[Any, Any]:
        """Inputs and targets on the net's device and in its dtypes."""
        return self.inputs, self.target

    @property
    def inputs(self) -> Any:
        """The inputs alone."""
        if isinstance(images := self.content, Images):
            dtype = self.place.inputs or torch.get_default_dtype()
            return images.inputs(images.pixels.to(self.place.device), dtype)
        return self.place.put(self.content[0], self.place.inputs)

    @property
    def target(self) -> Any:
        """The targets alone."""
        images = isinstance(self.content, Images)
        return self.place.put(
            self.content.labels if images else self.content[1], self.place.targets
        )

    def cycled(self, count: int) -> "Batch":
        """The first samples, from the beginning again where there are too few.

        Args:
            count: Number of samples.

        Returns:
            So many samples.
        """
        return self.rows(torch.arange(count) % self.size)

    def call(
        self, net: nn.Module, memory_format: torch.memory_format = torch.preserve_format
    ) -> Any:
        """The net's output on the inputs: ``net(x)``, ``net(*x)`` of a tuple, ``net(**x)``.

        Args:
            net: A net that takes such inputs; it may overwrite its copy of them.
            memory_format: That of the copy.

        Returns:
            Its output.
        """
        x = map_tensors(self.inputs, lambda tensor: tensor.clone(memory_format=memory_format))
        return call_net(net, x)

    def try_call(
        self, net: nn.Module, memory_format: torch.memory_format = torch.preserve_format
    ) -> Any:
        """As :meth:`call`; a ValueError with the net's own words if it does not take the inputs."""
        with naming_inputs(self.inputs):
            return self.call(net, memory_format)


def join(batches: Sequence[Batch]) -> Batch:
    """All samples of several batches in one, at least one; a single one is returned."""
    first = batches[0]
    if len(batches) == 1:
        return first
    leaves = [list(tensors_of(batch.content)) for batch in batches]
    shapes = {tuple(tuple(leaf.shape[1:]) for leaf in each) for each in leaves}
    if len(shapes) > 1:
        kinds = ", others of ".join(" and ".join(map(str, shape)) for shape in sorted(shapes))
        raise ValueError(
            f"data: samples of different shapes in x and y: some of {kinds}; needs one shape"
        )
    joined = iter(
        torch.cat(parts) if parts[0].dim() and len(parts[0]) == first.size else parts[0]
        for parts in zip(*leaves, strict=True)
    )
    weights = [b.sample_weight for b in batches if b.sample_weight is not None]
    return replace(
        first,
        content=map_tensors(first.content, lambda _: next(joined)),
        size=sum(batch.size for batch in batches),
        sample_weight=torch.cat(weights) if weights else None,
    )
