"""Crops and flips that depend on nothing but their generator, so that a resume repeats them."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resid_theory._check import check_choice

__all__ = ["Crops", "augment", "draw_crops"]

_PADDINGS = ("zeros", "reflect")


@dataclass(frozen=True, kw_only=True, eq=False)
class Crops:
    """Where each image is cut and whether it is mirrored.

    Attributes:
        top: First row in the padded image, (m,), int64 in 0..2·pad.
        left: First column, same.
        flip: Whether left and right change places, (m,), bool.
    """

    top: Tensor
    left: Tensor
    flip: Tensor

    def __getitem__(self, index: Any) -> "Crops":
        return Crops(top=self.top[index], left=self.left[index], flip=self.flip[index])

    def to(self, device: torch.device | str) -> "Crops":
        """The same crops on another device.

        Args:
            device: Where they shall lie.

        Returns:
            New crops.
        """
        return Crops(top=self.top.to(device), left=self.left.to(device), flip=self.flip.to(device))


def draw_crops(count: int, *, pad: int = 4, generator: torch.Generator) -> Crops:
    """Draw a crop and a coin for every image.

    Args:
        count: Number of images, m.
        pad: Pixels added on each side before the cut.
        generator: Source of randomness, on the CPU: equal seeds crop alike on every device.

    Returns:
        Offsets uniform in 0..2·pad and flips with probability one half, on the CPU.
    """
    top, left = torch.randint(2 * pad + 1, (2, count), generator=generator)
    return Crops(top=top, left=left, flip=torch.rand(count, generator=generator) < 0.5)


def augment(pixels: Tensor, crops: Crops, *, pad: int = 4, padding: str = "zeros") -> Tensor:
    """Pad every side, cut a window of the old size, and mirror some of the images.

    Args:
        pixels: (m, channels, height, width), any dtype.
        crops: One for each image, on the same device.
        pad: Pixels added on each side.
        padding: ``"zeros"`` adds black pixels (zero before centring); ``"reflect"`` mirrors the
            image at its border without repeating the border.

    Returns:
        The shape, dtype and device of ``pixels``.

    Raises:
        ValueError: If the padding is unknown or wider than an image can be reflected.

    Source:
        Zagoruyko & Komodakis, "DiracNets", arXiv:1706.00388v2, section 3 and the authors' code:
        reflect-pad 4, horizontal flip, random 32 x 32 crop.
    """
    padded = _pad(pixels, pad, check_choice("padding", padding, _PADDINGS))
    # All windows of an image as a view; only the chosen ones are copied.
    windows = padded.unfold(2, pixels.shape[2], 1).unfold(3, pixels.shape[3], 1)
    row = torch.arange(len(pixels), device=pixels.device)
    cut = windows[row, :, crops.top, crops.left]
    return torch.where(crops.flip[:, None, None, None], cut.flip(3), cut)


def _pad(pixels: Tensor, pad: int, padding: str) -> Tensor:
    if padding == "zeros":
        return F.pad(pixels, (pad, pad, pad, pad))
    if pad >= min(pixels.shape[2:]):
        raise ValueError(
            f"pad: got {pad} for images of {tuple(pixels.shape[2:])}; reflection needs less than "
            "the shorter side"
        )
    rows, columns = (_reflected(size, pad, pixels.device) for size in pixels.shape[2:])
    return pixels[:, :, rows][..., columns]  # F.pad cannot reflect bytes


def _reflected(size: int, pad: int, device: torch.device) -> Tensor:
    index = torch.arange(-pad, size + pad, device=device).abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
