"""An image data set in memory, as bytes."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from resid_theory._check import check_int


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """An image data set with the normalization that makes inputs of its pixels.

    Attributes:
        pixels: (m, channels, height, width), uint8; or inputs of any shape (m, ...), floating
            point, which are not normalized.
        labels: Class numbers, (m,), int64; or targets, (m, k), floating point.
        mean: Mean subtracted from each channel, in units of ``brightest``.
        std: Standard deviation that divides each channel after that, in the same units.
        brightest: Pixel value of full brightness.
        classes: Names of the classes; empty if unknown.

    Raises:
        ValueError: If the numbers of images and labels differ.
    """

    pixels: Tensor
    labels: Tensor
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    brightest: float = 255.0
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.labels):
            raise ValueError(
                f"labels: got {len(self.labels)} for {len(self.pixels)} images, needs the same "
                "number of samples"
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        """Their number, their shape, and what the labels are."""
        shape, kind = tuple(self.pixels.shape[1:]), self.pixels.dtype
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return f"Images({len(self)} of shape {shape}, {kind}{classes})"

    def to(self, device: torch.device | str) -> "Images":
        """The same set on another device.

        Args:
            device: Device of the result.

        Returns:
            A new set.
        """
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))

    def first(self, samples: int) -> "Images":
        """The first images of the set.

        Args:
            samples: Number of images.

        Returns:
            A new set that shares memory with this one.

        Raises:
            ValueError: If the set is smaller.
        """
        if check_int("samples", samples) > len(self):
            raise ValueError(f"samples: got {samples}, the set has {len(self)} images")
        return replace(self, pixels=self.pixels[:samples], labels=self.labels[:samples])

    def inputs(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Normalize pixels to inputs of a net.

        Args:
            pixels: Some of the set's pixels, (b, channels, height, width), cropped or not.
            dtype: Type of the result.

        Returns:
            (b, channels, height, width), dimensionless; floating-point pixels unchanged.
        """
        if pixels.is_floating_point():
            return pixels.to(dtype)
        mean, std = _constants(self.mean, self.std, dtype, pixels.device, pixels.dim() - 2)
        return (pixels.to(dtype) / self.brightest).sub_(mean).div_(std)


@lru_cache(maxsize=32)
def _constants(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: torch.dtype,
    device: torch.device,
    axes: int,
) -> tuple[Tensor, Tensor]:
    # Kept: a copy from the host in every step would stop a GPU each time.
    shape = (1, -1) + (1,) * axes
    return (
        torch.tensor(mean, dtype=dtype, device=device).view(shape),
        torch.tensor(std, dtype=dtype, device=device).view(shape),
    )
