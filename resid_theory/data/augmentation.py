"""Random crops and flips that depend on their generator alone, so that a resume repeats them."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resid_theory._check import check_choice


@dataclass(frozen=True, kw_only=True, eq=False)
class Crops:
    """Position of the crop of each image, and whether it is mirrored.

    Attributes:
        top: First row in the padded image, (m,), int64 in 0..2·pad.
        left: First column, (m,), int64 in 0..2·pad.
        flip: Whether left and right are exchanged, (m,), bool.
    """

    top: Tensor
    left: Tensor
    flip: Tensor

    def __getitem__(self, index: Any) -> "Crops":
        return Crops(top=self.top[index], left=self.left[index], flip=self.flip[index])

    def to(self, device: torch.device | str) -> "Crops":
        """The same crops on another device.

        Args:
            device: Device of the result.

        Returns:
            New crops.
        """
        return Crops(top=self.top.to(device), left=self.left.to(device), flip=self.flip.to(device))


def draw_crops(count: int, *, pad: int = 4, generator: torch.Generator) -> Crops:
    """Draw a random crop and a random flip for every image.

    Args:
        count: Number of images, m.
        pad: Pixels added on each side before the crop.
        generator: Source of randomness, on the CPU, so that all devices crop alike.

    Returns:
        Offsets uniform in 0..2·pad and flips with probability one half, on the CPU.
    """
    top, left = torch.randint(2 * pad + 1, (2, count), generator=generator)
    chances = torch.rand(count, dtype=torch.float32, generator=generator)
    return Crops(top=top, left=left, flip=chances < 0.5)


def augment(pixels: Tensor, crops: Crops, *, pad: int = 4, padding: str = "zeros") -> Tensor:
    """Pad each image on every side, crop it to its size, and mirror some of them.

    Args:
        pixels: (m, channels, height, width), any dtype.
        crops: A crop for each image, on the same device.
        pad: Pixels added on each side.
        padding: ``"zeros"`` adds black pixels (zero before centring); ``"reflect"`` mirrors the
            image at its border without repeating the border pixels.

    Returns:
        The shape, dtype and device of ``pixels``.

    Raises:
        ValueError: If the padding is unknown, or too wide for a reflection.

    Source:
        Zagoruyko & Komodakis, "DiracNets", arXiv:1706.00388v2, section 3 and the authors' code:
        reflect-pad 4, horizontal flip, random 32 x 32 crop.
    """
    if check_choice("padding", padding, ("zeros", "reflect")) == "zeros":
        padded = F.pad(pixels, (pad, pad, pad, pad))
    elif pad >= min(pixels.shape[2:]):
        raise ValueError(
            f"pad: got {pad} for images of {tuple(pixels.shape[2:])}; reflection needs less than "
            "the shorter side"
        )
    else:  # F.pad cannot reflect bytes
        places = (torch.arange(-pad, s + pad, device=pixels.device) for s in pixels.shape[2:])
        rows, columns = (
            torch.where(at >= s, 2 * (s - 1) - at, at.abs())
            for at, s in zip(places, pixels.shape[2:], strict=True)
        )
        padded = pixels[:, :, rows][..., columns]
    # All windows of an image as a view; only the chosen ones are copied.
    windows = padded.unfold(2, pixels.shape[2], 1).unfold(3, pixels.shape[3], 1)
    row = torch.arange(len(pixels), device=pixels.device)
    cut = windows[row, :, crops.top, crops.left]
    return torch.where(crops.flip[:, None, None, None], cut.flip(3), cut)
