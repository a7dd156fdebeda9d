"""Image data sets by name, in the shape that convolutional networks take."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resid_theory._check import check_choice, check_int
from resid_theory.data.cifar import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, load_cifar10
from resid_theory.data.image_set import Images
from resid_theory.data.mnist import load_mnist

_DIGITS = tuple("0123456789")


def load_images(
    name: str = "digits",
    split: str = "train",
    *,
    samples: int | None = None,
    size: int | None = 32,
    channels: int | None = 3,
    progress: bool = True,
) -> Images:
    """An image data set, in the shape that the library's convolutional networks take.

    Args:
        name: ``"digits"`` (8 x 8, comes with scikit-learn; the first 1,437 images train, the last
            360 test), ``"mnist"`` or ``"cifar10"`` (found on the disk or downloaded once).
        split: ``"train"`` or ``"test"``.
        samples: Number of images, the first ones; None for all.
        size: Height and width of the result: smaller images are enlarged by the greatest whole
            factor that fits, each pixel repeated, then padded with black; larger ones are shrunk by
            the smallest that fits, each square of pixels averaged and rounded to the nearest whole
            number, halves up, then padded likewise. None keeps the size.
        channels: Number of channels that grey images are repeated to. None keeps the channels.
        progress: Whether a download shows its progress on stderr.

    Returns:
        Pixels (m, channels, size, size), uint8, with the constants of normalization: those of the
        CIFAR-10 training set; for digits and MNIST mean and standard deviation of the unpadded
        training pixels.

    Raises:
        ValueError: If a name is unknown, the set is smaller than ``samples``, the factor that
            larger images are shrunk by does not divide their sides, or a file is damaged.
        FileNotFoundError: If the data are in no folder and no mirror delivers them.

    Example:
        >>> tuple(load_images("digits", samples=5).pixels.shape)
        (5, 3, 32, 32)
    """
    chosen = IMAGE_SETS[check_choice("name", name, list(IMAGE_SETS))]
    images = chosen.load(check_choice("split", split, ["train", "test"]), samples, progress)
    if samples is not None:
        images = images.first(samples)
    pixels = _fit(images.pixels, size, channels)
    return replace(images, pixels=pixels, classes=chosen.classes)


def _fit(pixels: Tensor, size: int | None, channels: int | None) -> Tensor:
    """Pixels enlarged or shrunk, then padded, to a size and a number of channels."""
    height, width = pixels.shape[2:]
    if size is not None and (height, width) != (size, size):
        if max(height, width) > check_int("size", size):
            pixels = _shrunk(pixels, size)
        else:
            factor = size // max(height, width)
            pixels = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        above, left = (size - pixels.shape[2]) // 2, (size - pixels.shape[3]) // 2
        below, right = size - pixels.shape[2] - above, size - pixels.shape[3] - left
        pixels = F.pad(pixels, (left, right, above, below))
    if channels is not None and pixels.shape[1] != channels:
        if pixels.shape[1] != 1:
            raise ValueError(
                f"channels: got {channels} for images of {pixels.shape[1]}; only grey is repeated"
            )
        pixels = pixels.repeat(1, check_int("channels", channels), 1, 1)
    return pixels


def _shrunk(pixels: Tensor, size: int) -> Tensor:
    """Averages over squares, by integers: a mean in floating point could round either way."""
    count, channels, height, width = pixels.shape
    factor = -(-max(height, width) // size)
    if height % factor or width % factor:
        raise ValueError(
            f"size: got {size} for images of {height} x {width} pixels, which would be shrunk by "
            f"{factor}; needs a factor that divides both sides"
        )
    squares = pixels.reshape(count, channels, height // factor, factor, width // factor, factor)
    total = squares.sum((3, 5))
    return ((total + factor**2 // 2) // factor**2).to(pixels.dtype)


@functools.cache  # a copy of what is read goes to each caller
def _all_digits() -> tuple[Tensor, Tensor]:
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        table = np.loadtxt(path, delimiter=",")
    else:  # another version of scikit-learn, whose import takes a second
        from sklearn.datasets import load_digits

        table = np.column_stack(load_digits(return_X_y=True))
    pixels, labels = torch.from_numpy(table).to(torch.uint8).split([64, 1], dim=1)
    return pixels.reshape(-1, 1, 8, 8), labels[:, 0].long()


def _digits(split: str, samples: int | None, progress: bool) -> Images:
    pixels, labels = _all_digits()
    # Ordered by writers: a cut, unlike a random split, keeps most of a writer on one side.
    part = slice(None, 1437) if split == "train" else slice(1437, None)
    return Images(
        pixels=pixels[part].clone(),
        labels=labels[part].clone(),
        mean=(0.3054,),
        std=(0.3755,),
        brightest=16.0,
    )


def _mnist(split: str, samples: int | None, progress: bool) -> Images:
    pixels, labels = load_mnist(split, progress=progress)
    return Images(pixels=pixels[:, None], labels=labels, mean=(0.1307,), std=(0.3081,))


def _cifar10(split: str, samples: int | None, progress: bool) -> Images:
    pixels, labels = load_cifar10(split, samples=samples, progress=progress)
    return Images(pixels=pixels, labels=labels, mean=CIFAR10_MEAN, std=CIFAR10_STD)


@dataclass(frozen=True)
class ImageSet:
    """A data set: its classes, and a function (split, samples or None, progress) -> images."""

    classes: tuple[str, ...]
    load: Callable[[str, int | None, bool], Images]


# A new data set is one row here.
IMAGE_SETS = {
    "digits": ImageSet(_DIGITS, _digits),
    "mnist": ImageSet(_DIGITS, _mnist),
    "cifar10": ImageSet(CIFAR10_CLASSES, _cifar10),
}
