"""Training data on the device: any rows as inputs, targets and labels."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resid_theory.data import Images
from resid_theory.losses import LOSSES, check_outputs
from resid_theory.runtime.preserve import preserved
from resid_theory.training.checkpoint import digest
from resid_theory.training.recipe import Recipe
from resid_theory.training.step import DTYPES, Batch

__all__ = ["DeviceDataset"]


class DeviceDataset:
    """A data set as a recipe uses it, all of it on the device.

    Attributes:
        labelled: Whether targets are classes, so that errors can be counted.
        digest: sha256 of pixels and labels.

    Args:
        argument: Name of the argument, for messages.
        data: Data in any form that ``train`` takes.
        net: The net that they must fit.
        recipe: Loss, precision and augmentation.
        device: Where to keep them.

    Raises:
        ValueError: If the data are empty or ragged, or do not fit net or recipe.
    """

    def __init__(
        self, argument: str, data: Any, net: nn.Module, recipe: Recipe, device: torch.device
    ) -> None:
        images = Images.of(data)
        shape, crops = tuple(images.pixels.shape), recipe.augmentation != "none"
        if argument == "data" and recipe.batch > len(images):
            raise ValueError(
                f"batch: got {recipe.batch} for {len(images)} samples; needs at most {len(images)}"
            )
        needs = [f"augmentation={recipe.augmentation!r}"] * crops
        needs += ["channels_last=True"] * recipe.channels_last
        if needs and len(shape) != 4:
            raise ValueError(
                f"{argument}: got inputs of shape {shape}; {needs[0]} needs images (m, channels, "
                "height, width)"
            )
        if crops and recipe.padding == "reflect" and recipe.pad >= min(shape[2:]):
            raise ValueError(
                f"pad: got {recipe.pad}, images of {shape[2:]} cannot be reflected so far"
            )
        self.labelled = not images.labels.is_floating_point()
        constants = [*images.mean, *images.std, images.brightest]
        constants_tensor = torch.tensor(constants, dtype=torch.float64)
        self.digest = digest([constants_tensor, images.pixels, images.labels])
        self._images, self._dtype = images.to(device), DTYPES[recipe.precision]
        self._channels_last = recipe.channels_last
        self._targets = self._images.labels
        self._targets = self._fitting(argument, net, recipe)

    def __len__(self) -> int:
        return len(self._images)

    def _fitting(self, argument: str, net: nn.Module, recipe: Recipe) -> Tensor:
        """Targets as the loss takes them, after a forward pass has shown the net's outputs."""
        x = self.batch(slice(2))[0]
        try:
            with preserved(net), torch.no_grad():
                output = net(x)
        except RuntimeError as error:
            raise ValueError(
                f"{argument}: the net does not take inputs of shape {tuple(x.shape)}: {error}"
            ) from error
        output, labels = check_outputs(output, len(x)), self._images.labels
        # The net's width, all labels: only the number of rows is made to fit.
        loss = LOSSES["cross_entropy" if self.labelled else recipe.loss]
        loss.check_target(output[:1].expand(len(labels), -1), labels)
        if not self.labelled:
            return labels.to(self._dtype)
        if recipe.loss == "square":
            return F.one_hot(labels, output.shape[1]).to(self._dtype)
        return labels

    def batch(
        self, rows: Tensor | slice, change: Callable[[Tensor], Tensor] | None = None
    ) -> Batch:
        """Some of the samples, by index or slice; ``change`` is applied to their pixels."""
        pixels = self._images.pixels[rows]
        x = self._images.inputs(pixels if change is None else change(pixels), self._dtype)
        if self._channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, self._targets[rows], self._images.labels[rows] if self.labelled else None
