"""Training data on the device: any rows as inputs, targets and labels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory.data import Batch, Data, Images
from resid_theory.data.sample_look import (
    EXAMPLES,
    check_numbers,
    examples as few_and_more,
    naming_loss,
)
from resid_theory.losses import (
    KnownWeighting,
    Loss,
    NoWeighting,
    SampleAxes,
    Weighting,
    check_scalar,
)
from resid_theory.losses.formulas import IGNORED, names_class
from resid_theory.nested import map_tensors, rows_of, tensors_of
from resid_theory.runtime.preserve import preserved
from resid_theory.runtime.resources import is_out_of_memory
from resid_theory.training.checkpoint import digest
from resid_theory.training.recipe import Recipe
from resid_theory.training.step import DTYPES, StepBatch

_CHUNK = 4096  # targets that are checked together


class DeviceDataset:
    """A data set as a recipe uses it, all of it on the device.

    Attributes:
        notes: What was done to the data on the way in.
        labels: Number of class labels that count; None if targets are no classes, so that there
            are no errors to count.
        weighting: How the losses of parts make that of the whole; None for a loss that compares
            samples.
        total: Sum of the weights of all samples in the loss.
        digest: sha256 of inputs and targets.
    """

    def __init__(
        self, argument: str, data: Any, net: nn.Module, recipe: Recipe,
        others: Sequence[nn.Module] = (),
    ) -> None:  # fmt: skip
        device = next(net.parameters()).device
        loss = Loss.of(recipe.loss).to(device, DTYPES[recipe.precision])
        found = Data.of(data, like=net)
        whole = found.whole()
        _check_shapes(argument, whole, recipe)
        self.notes, self._size, self._place = tuple(found.notes), whole.size, whole.place
        self.digest = _digest(whole.content, whole.sample_weight)
        self._channels_last = recipe.channels_last
        images = isinstance(whole.content, Images)
        self._images = whole.content.to(device) if images else None
        self._inputs = None if images else whole.inputs
        few, examples = few_and_more([whole], EXAMPLES)
        layout = torch.channels_last if recipe.channels_last else torch.preserve_format
        with preserved(net):
            small, output = (loss.reads(some.try_call(net, layout)) for some in (few, examples))
            check_numbers(output)
            axes = SampleAxes.between(small, output, (few.size, examples.size))
            for other in others:
                with preserved(other):
                    few.try_call(other, layout)
            self._targets, self._labels, target = whole.target, None, examples.target
            if loss.targets != "any" or axes is None or axes.is_first:
                self._targets, self._labels = loss.targets_of(output, whole.target)
                target, _ = loss.targets_of(output, target)
            self.weighting = _weighting(loss, axes, output, target, examples.size)
        if self.weighting is None:
            self.notes += (
                f"{loss.name} compares samples or is no mean or sum over them: in the metrics, "
                "loss is the mean over batches",
            )
        if loss.targets == "any" and axes is not None:
            _check_all(loss, axes, output, self._targets, self._size)
        self._weights: Tensor | None = None  # where they differ
        self.total = float(self._size)
        weights = torch.ones(self._size, dtype=torch.float64)
        if loss.weights is not None:
            weights = loss.weights(self._targets).double().cpu()
        elif axes is not None and self.weighting is not None and not self.weighting.sums:
            weights = self._measured(axes, output)
        if whole.sample_weight is not None:
            self._check_mean(argument, loss)
            if axes is None or not axes.is_first:
                raise ValueError(
                    f"{argument}: got weights of the samples, which a training takes for a net "
                    "whose outputs have one entry a sample along their first axis"
                )
            weights = weights * whole.sample_weight.cpu()
        if float(weights.sum()) == 0:
            raise ValueError(
                f"{argument} y: no sample counts, such as where all labels are {IGNORED}"
            )
        if self.weighting is not None and self.weighting.sums:
            self.total = 1.0
        elif whole.sample_weight is not None or bool(weights.min() != weights.max()):
            self._weights, self.total = weights.to(device), float(weights.sum())
        self._given = None if whole.sample_weight is None else self._weights
        self.labels = None
        if self._labels is not None:
            wide = output[:1].expand(self._size, *output.shape[1:])
            self.labels = int(names_class(wide, self._labels).sum())

    @torch.no_grad()
    def _measured(self, axes: SampleAxes, output: Any) -> Tensor:
        """Weights of all samples in the loss, at the output of one of them."""
        assert self.weighting is not None
        parts = []
        for start in range(0, self._size, _CHUNK):
            count = min(_CHUNK, self._size - start)
            targets = rows_of(self._targets, slice(start, start + count), self._size)
            wide = _widened(axes, output, count)
            parts.append(self.weighting.of_samples(wide, targets, count))
        return torch.cat(parts)

    def _check_mean(self, argument: str, loss: Loss) -> None:
        """Refuse weights of samples beside a loss that has no weights of samples."""
        if self.weighting is None or self.weighting.sums:
            raise ValueError(
                f"{argument}: got weights of the samples, which a training takes with a loss that "
                f"is a mean over samples; {loss.name} is none"
            )

    def __len__(self) -> int:
        return self._size

    @property
    def is_even(self) -> bool:
        """True if the loss is the mean over samples, all of which count alike."""
        known = self.weighting
        return known is not None and not known.sums and known.counts and self._weights is None

    def weight(self, rows: Tensor | slice) -> float | Tensor:
        """Weight of some samples in the loss of all."""
        if self.weighting is not None and self.weighting.sums:
            return 1.0
        if self._weights is not None:
            return self._weights[rows].sum()
        return float(len(range(self._size)[rows] if isinstance(rows, slice) else rows))

    def stored(self, rows: Tensor | slice) -> Any:
        """Pixels or inputs of some samples, as they lie on the device."""
        if self._images is None:
            return rows_of(self._inputs, rows, self._size)
        return self._images.pixels[rows]

    def batch(self, rows: Tensor | slice, stored: Any = None) -> StepBatch:
        """Some of the samples, by index or slice; with ``stored`` in place of what is stored."""
        x = self._x(self.stored(rows) if stored is None else stored)
        target = rows_of(self._targets, rows, self._size)
        labels = None if self._labels is None else self._labels[rows]
        weights = None if self._given is None else self._given[rows]
        return x, target, labels, weights

    def _x(self, stored: Any) -> Any:
        """Inputs of the net."""
        x = stored
        if self._images is not None:
            dtype = self._place.inputs or torch.get_default_dtype()
            x = self._images.inputs(stored, dtype)
        if self._channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x


def _check_shapes(argument: str, whole: Batch, recipe: Recipe) -> None:
    """Refuse a batch larger than the set, and inputs that are no images where they must be."""
    if argument == "data" and recipe.batch > whole.size:
        raise ValueError(
            f"batch: got {recipe.batch} for {whole.size} samples; needs at most {whole.size}"
        )
    crops = recipe.augmentation != "none"
    needs = [f"augmentation={recipe.augmentation!r}"] * crops
    needs += ["channels_last=True"] * recipe.channels_last
    x = whole.content.pixels if isinstance(whole.content, Images) else whole.content[0]
    if not needs:
        return
    shape = tuple(x.shape) if isinstance(x, Tensor) else ()
    if len(shape) != 4:
        got = f"inputs of shape {shape}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"{argument}: got {got}; {needs[0]} needs images (m, channels, height, width)"
        )
    if crops and recipe.padding == "reflect" and recipe.pad >= min(shape[2:]):
        raise ValueError(f"pad: got {recipe.pad}, images of {shape[2:]} cannot be reflected so far")


def _digest(content: Any, weights: Tensor | None) -> str:
    """sha256 of images with their normalization, or of inputs and targets; of weights, too."""
    empty = torch.empty(0)
    images = content if isinstance(content, Images) else Images(pixels=empty, labels=empty)
    x, y = (images.pixels, images.labels) if content is images else content
    constants = [*images.mean, *images.std, images.brightest]
    # Integers of any size are the same labels.
    labels = (t if t.is_floating_point() else t.long() for t in tensors_of(y))
    numbers = [torch.tensor(constants, dtype=torch.float64), *tensors_of(x), *labels]
    return digest(numbers if weights is None else [*numbers, weights])


def _weighting(
    loss: Loss, axes: SampleAxes | None, output: Any, target: Any, size: int
) -> Weighting | None:
    """Learn on a few samples how the loss averages; None if it compares samples."""
    with naming_loss(loss):
        value = loss(output, target)
    check_scalar(value)
    if loss.is_known:
        return KnownWeighting(loss)
    weighting = Weighting(loss, axes)
    try:
        with naming_loss(loss):
            weighting.learn(output, target, size)
    except NoWeighting:
        return None
    return None if weighting.once or weighting.reads_shared else weighting


@torch.no_grad()
def _check_all(loss: Loss, axes: SampleAxes, output: Any, targets: Any, size: int) -> None:
    """Refuse targets that a function of the caller's would stop at in the middle of a training."""
    # On the CPU: a GPU would not say what is wrong, and compute no more.
    output = map_tensors(output, Tensor.cpu)
    dtype = next((t.dtype for t in tensors_of(output) if t.is_floating_point()), torch.float64)
    here = loss.to(torch.device("cpu"), dtype)
    for start in range(0, size, _CHUNK):
        some = map_tensors(rows_of(targets, slice(start, start + _CHUNK), size), Tensor.cpu)
        count = min(_CHUNK, size - start)
        try:
            here(_widened(axes, output, count), some)
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(f"data y: the loss {loss.name} does not take it: {error}") from error


def _widened(axes: SampleAxes, output: Any, count: int) -> Any:
    """The output of the first sample, once for each of some samples."""
    return axes.gather([t[:1].expand(count, *t.shape[1:]) for t in axes.spread(output)], output)
