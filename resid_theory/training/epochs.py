"""Order of the samples and their augmentation in an epoch."""

import hashlib
import math

import torch
from torch import Tensor

from resid_theory.data import Crops, augment, draw_crops
from resid_theory.runtime.resources import available_bytes
from resid_theory.training.device_dataset import DeviceDataset
from resid_theory.training.recipe import Recipe
from resid_theory.training.step import StepBatch

_CHUNK = 4096  # images that are augmented together
_SHARE = 8  # of free memory, of which one may hold the images of an epoch


def seed_from(*parts: int) -> int:
    """A seed of 63 bits that mixes several numbers."""
    mixed = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:8]
    return int.from_bytes(mixed, "big") >> 1


class Epochs:
    """All epochs of a training: functions of seed and number, so that a resume repeats them."""

    def __init__(self, data: DeviceDataset, recipe: Recipe, device: torch.device) -> None:
        self.data, self.recipe, self.device = data, recipe, device
        self.steps = math.ceil(len(data) / recipe.batch)

    def draw(self, seed: int, number: int) -> "Epoch":
        """Order and crops of one epoch."""
        generator = torch.Generator().manual_seed(seed_from(seed, number))
        order = torch.randperm(len(self.data), generator=generator).to(self.device)
        if self.recipe.augmentation == "none":
            return Epoch(self, order, None)
        crops = draw_crops(len(self.data), pad=self.recipe.pad, generator=generator)
        return Epoch(self, order, crops.to(self.device))


class Epoch:
    """One epoch for one seed.

    On a GPU, where each operation takes as long to launch as many images take to crop, all images
    are augmented at the start if they fit; elsewhere those of a batch when it is asked for.
    """

    def __init__(self, epochs: Epochs, order: Tensor, crops: Crops | None) -> None:
        self.order, self._crops, self._images = order, crops, None
        self._data, self._recipe = epochs.data, epochs.recipe
        if crops is None or epochs.device.type == "cpu":
            return
        one = self._augmented(slice(1))
        if len(order) * one.nbytes < available_bytes(epochs.device) // _SHARE:
            self._images = one.new_empty(len(order), *one.shape[1:])
            for start in range(0, len(order), _CHUNK):
                rows = slice(start, start + _CHUNK)
                self._images[rows] = self._augmented(rows)

    def _augmented(self, rows: Tensor | slice) -> Tensor:
        assert self._crops is not None
        images = self._data.stored(self.order[rows])
        pad, padding = self._recipe.pad, self._recipe.padding
        return augment(images, self._crops[rows], pad=pad, padding=padding)

    def become(self, other: "Epoch") -> None:
        """Take over another epoch in the same memory, where a CUDA graph looks for it."""
        ours, theirs = self._tensors(), other._tensors()
        for mine, its in zip(ours, theirs, strict=True):
            mine.copy_(its)

    def _tensors(self) -> list[Tensor]:
        crops = self._crops
        cut = [] if crops is None else [crops.top, crops.left, crops.flip]
        return [self.order, *cut, *([] if self._images is None else [self._images])]

    def weight(self, rows: Tensor | slice) -> float | Tensor:
        """Weight of the samples at some places in the order, in the loss of all."""
        return self._data.weight(self.order[rows])

    def batch(self, rows: Tensor | slice) -> StepBatch:
        """The samples at some places in the order, augmented."""
        if self._crops is None:
            return self._data.batch(self.order[rows])
        images = self._augmented(rows) if self._images is None else self._images[rows]
        return self._data.batch(self.order[rows], images)
