"""Order of the samples and their augmentation in an epoch."""

import hashlib
import math

import torch
from torch import Tensor

from resid_theory.data import Crops, augment, draw_crops
from resid_theory.training.device_dataset import DeviceDataset
from resid_theory.training.recipe import Recipe
from resid_theory.training.step import StepBatch

__all__ = ["Epoch", "Epochs", "seed_from"]


def seed_from(*parts: int) -> int:
    """A seed of 63 bits that mixes several numbers."""
    mixed = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:8]
    return int.from_bytes(mixed, "big") >> 1


class Epochs:
    """All epochs of a training: functions of seed and number, so that a resume repeats them.

    Attributes:
        steps: Number of steps in an epoch.
    """

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
    """One epoch for one seed."""

    def __init__(self, epochs: Epochs, order: Tensor, crops: Crops | None) -> None:
        self.order, self._crops = order, crops
        self._data, self._recipe = epochs.data, epochs.recipe

    def weight(self, rows: slice) -> float | Tensor:
        """Weight of the samples at some places in the order, in the loss of all."""
        return self._data.weight(self.order[rows])

    def batch(self, rows: slice) -> StepBatch:
        """The samples at some places in the order, augmented."""
        crops, recipe = self._crops, self._recipe
        if crops is None:
            return self._data.batch(self.order[rows])
        cut = crops[rows]
        return self._data.batch(
            self.order[rows], lambda p: augment(p, cut, pad=recipe.pad, padding=recipe.padding)
        )
