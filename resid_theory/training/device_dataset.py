"""Training data on the device: any rows as inputs, targets and labels."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resid_theory.data import Images
from resid_theory.losses import check_target
from resid_theory.runtime.preserve import preserved
from resid_theory.training.checkpoint import digest
from resid_theory.training.recipe import Recipe
from resid_theory.training.step import DTYPES, Batch

__all__ = ["DeviceDataset"]


class DeviceDataset:
    """A data set as a recipe uses it; whole on the device.

    Attributes:
        labelled: Whether targets are classes, so that errors can be counted.
        digest: sha256 of pixels and labels.

    Args:
        argument: Its name, for messages.
        data: As ``train`` takes it.
        net: That it shall fit.
        recipe: Loss, precision and augmentation.
        device: Where to keep it.

    Raises:
        ValueError: If the data are empty or ragged, or do not fit net or recipe.
    """

    def __init__(
        self, argument: str, data: Any, net: nn.Module, recipe: Recipe, device: torch.device
    ) -> None:
        images = Images.of(data)
        _check_images(argument, images, recipe)
        self.labelled = not images.labels.is_floating_point()
        self.digest = _digest(images)
        self._images, self._dtype = images.to(device), DTYPES[recipe.precision]
        self._channels_last = recipe.channels_last
        self._targets = self._images.labels
        self._targets = self._fitting(argument, net, recipe)

    def __len__(self) -> int:
        return len(self._images)

    def _fitting(self, argument: str, net: nn.Module, recipe: Recipe) -> Tensor:
        """Targets as the loss takes them, once a forward pass has shown what the net gives."""
        x = self.batch(slice(2))[0]
        try:
            with preserved(net), torch.no_grad():
                output = net(x)
        except RuntimeError as error:
            raise ValueError(
                f"{argument}: the net does not take inputs of shape {tuple(x.shape)}: {error}"
            ) from error
        if not isinstance(output, Tensor) or output.dim() != 2:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"net: gives {got} for {len(x)} samples, needs (batch, classes)")
        labels = self._images.labels
        if self.labelled:
            # The net's width, all labels: only the number of rows is made to fit.
            check_target("cross_entropy", output[:1].expand(len(labels), -1), labels)
            if recipe.loss == "square":
                return F.one_hot(labels, output.shape[1]).to(self._dtype)
            return labels
        check_target(recipe.loss, output[:1].expand(len(labels), -1), labels)
        return labels.to(self._dtype)

    def batch(
        self, rows: Tensor | slice, change: Callable[[Tensor], Tensor] | None = None
    ) -> Batch:
        """Some of the samples.

        Args:
            rows: Which; indices or a slice.
            change: Applied to their pixels.

        Returns:
            Inputs in the recipe's precision and memory format, targets, and labels or None.
        """
        pixels = self._images.pixels[rows]
        x = self._images.inputs(pixels if change is None else change(pixels), self._dtype)
        if self._channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, self._targets[rows], self._images.labels[rows] if self.labelled else None


def _check_images(argument: str, images: Images, recipe: Recipe) -> None:
    shape = tuple(images.pixels.shape)
    if argument == "data" and recipe.batch > len(images):
        raise ValueError(
            f"batch: got {recipe.batch} for {len(images)} samples; needs at most {len(images)}"
        )
    needs = [f"augmentation={recipe.augmentation!r}"] * (recipe.augmentation != "none")
    needs += ["channels_last=True"] * recipe.channels_last
    if needs and len(shape) != 4:
        raise ValueError(
            f"{argument}: got inputs of shape {shape}; {needs[0]} needs images (m, channels, "
            "height, width)"
        )
    if (
        recipe.augmentation != "none"
        and recipe.padding == "reflect"
        and recipe.pad >= min(shape[2:])
    ):
        raise ValueError(f"pad: got {recipe.pad}, images of {shape[2:]} cannot be reflected so far")


def _digest(images: Images) -> str:
    constants = torch.tensor([*images.mean, *images.std, images.brightest], dtype=torch.float64)
    return digest([constants, images.pixels, images.labels])
