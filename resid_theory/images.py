"""Image data sets held whole as bytes on the device; crops and flips that depend on nothing else.

One floor above ``data``: a set of pixels for a convolution trunk is more than the tensors that the
whitened components are made from, and ``data`` has no room left for it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resid_theory._check import as_tensor, choose, pair, whole
from resid_theory.cifar import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, load_cifar10
from resid_theory.data import load_digits_raw, load_mnist

__all__ = ["Crops", "Images", "augment", "draw_crops", "load_image_folder", "load_images"]

_PADDINGS = ("zeros", "reflect")
_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """A data set as it is stored, and how its pixels become inputs.

    Attributes:
        pixels: (m, channels, height, width), uint8; or inputs of any shape (m, ...), floating
            point, which are taken as they are.
        labels: Class numbers, (m,), int64; or targets, (m, k), floating point.
        mean: Subtracted from each channel, in units of ``brightest``.
        std: Divides each channel after that, same units.
        brightest: Pixel value of full brightness.
        classes: Names of the classes; empty if unknown.
    """

    pixels: Tensor
    labels: Tensor
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    brightest: float = 255.0
    classes: tuple[str, ...] = ()

    @staticmethod
    def of(data: Any) -> "Images":
        """Data in any form that training takes.

        Args:
            data: Images, an object with ``.x`` and ``.y``, or a pair (x, y).

        Returns:
            The same data; floating-point inputs stay as they are.

        Raises:
            ValueError: If it is none of these, is empty, or the numbers of samples differ.
        """
        if isinstance(data, Images):
            pair((data.pixels, data.labels))
            return data
        x, y = pair((data.x, data.y) if hasattr(data, "x") and hasattr(data, "y") else data)
        return Images(pixels=x, labels=y if y.is_floating_point() else y.long())

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device | str) -> "Images":
        """The same set on another device.

        Args:
            device: Where all pixels and labels shall lie.

        Returns:
            A new set.
        """
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))

    def first(self, samples: int) -> "Images":
        """The first images of the set.

        Args:
            samples: How many.

        Returns:
            A new set that shares memory with this one.

        Raises:
            ValueError: If there are not so many.
        """
        if whole("samples", samples) > len(self):
            raise ValueError(f"samples: got {samples}, the set has {len(self)} images")
        return replace(self, pixels=self.pixels[:samples], labels=self.labels[:samples])

    def inputs(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """Pixels as inputs of a net: in units of the brightest, centred and scaled.

        Args:
            pixels: Some of the set's pixels, (b, channels, height, width), cropped or not.
            dtype: Of the result.

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
    padded = _pad(pixels, pad, choose("padding", padding, _PADDINGS))
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


def load_images(
    name: str = "digits",
    split: str = "train",
    *,
    samples: int | None = None,
    size: int | None = 32,
    channels: int | None = 3,
    progress: bool = True,
) -> Images:
    """An image data set, in the shape that the library's convolution trunks take.

    Args:
        name: ``"digits"`` (8 x 8, comes with scikit-learn; the first 1,437 images train, the last
            360 test), ``"mnist"`` or ``"cifar10"`` (found on the disk or downloaded once).
        split: ``"train"`` or ``"test"``.
        samples: Keep the first so many; None for all.
        size: Height and width of the result: smaller images are enlarged by the greatest whole
            factor that fits, each pixel repeated, then padded with black; larger ones are shrunk by
            the smallest that fits, each square of pixels averaged and rounded to the nearest whole
            number, halves up, then padded likewise. None keeps the size.
        channels: Grey images are repeated so often. None keeps the channels.
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
    load = _SETS[choose("name", name, list(_SETS))]
    images = load(choose("split", split, ["train", "test"]), samples, progress)
    if samples is not None:
        images = images.first(samples)
    return replace(images, pixels=_fit(images.pixels, size, channels))


def _fit(pixels: Tensor, size: int | None, channels: int | None) -> Tensor:
    height, width = pixels.shape[2:]
    if size is not None and (height, width) != (size, size):
        if max(height, width) > whole("size", size):
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
        pixels = pixels.repeat(1, whole("channels", channels), 1, 1)
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
    total = squares.sum((3, 5), dtype=torch.int32)
    return ((total + factor**2 // 2) // factor**2).to(pixels.dtype)


def _digits(split: str, samples: int | None, progress: bool) -> Images:
    pixels, labels = load_digits_raw()
    # The set is ordered by writers: a cut, unlike a draw, keeps most of a writer on one side.
    part = slice(None, 1437) if split == "train" else slice(1437, None)
    return Images(
        pixels=pixels[part, None],
        labels=labels[part],
        mean=(0.3054,),
        std=(0.3755,),
        brightest=16.0,
        classes=tuple("0123456789"),
    )


def _mnist(split: str, samples: int | None, progress: bool) -> Images:
    pixels, labels = load_mnist(split, progress=progress)
    return Images(
        pixels=pixels[:, None],
        labels=labels,
        mean=(0.1307,),
        std=(0.3081,),
        classes=tuple("0123456789"),
    )


def _cifar10(split: str, samples: int | None, progress: bool) -> Images:
    pixels, labels = load_cifar10(split, samples=samples, progress=progress)
    return Images(
        pixels=pixels, labels=labels, mean=CIFAR10_MEAN, std=CIFAR10_STD, classes=CIFAR10_CLASSES
    )


# A new data set is a row here: (split, samples or None, progress) -> at least those images.
_SETS: dict[str, Callable[[str, int | None, bool], Images]] = {
    "digits": _digits,
    "mnist": _mnist,
    "cifar10": _cifar10,
}


def load_image_folder(
    path: str | Path, *, size: int | None = None, shorter: int | None = None
) -> Images:
    """Images in one folder a class, as ImageNet and many others come.

    The whole set is held in memory as bytes: 3·size² of them an image.

    Args:
        path: Folder whose subfolders are the classes, sorted by name; images may lie deeper.
        size: The shorter side is scaled to so many pixels and the middle square is cut out;
            None takes images as they are, which must then have one size.
        shorter: Scales the shorter side to so many pixels instead, at least ``size``, before the
            square of ``size`` is cut; 256 with size 224 is ImageNet's single crop.

    Returns:
        Pixels (m, 3, height, width), uint8, red-green-blue, sorted by class and name, with the
        set's own mean and standard deviation per channel.

    Raises:
        FileNotFoundError: If the folder has no subfolder with an image.
        ImportError: If Pillow is not installed.
        ValueError: If an image cannot be read, or without ``size`` has another size than the first;
            or if ``shorter`` is given without ``size`` or is less.
    """
    path = Path(path)
    classes = sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    found = [(file, label) for label, name in enumerate(classes) for file in _files(path / name)]
    if not found:
        raise FileNotFoundError(
            f"path: {path} has no images in subfolders; needs one folder a class, with files "
            f"ending in {', '.join(sorted(_ENDINGS))}"
        )
    if size is not None:
        whole("size", size)
    if shorter is not None and (size is None or whole("shorter", shorter) < size):
        raise ValueError(f"shorter: got {shorter} with size {size}, needs a size, and not more")
    margin = 0.0 if shorter is None or size is None else (1 - size / shorter) / 2
    pictures = [_picture(file, size, margin) for file, _ in found]
    for (file, _), picture in zip(found, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            raise ValueError(
                f"{file}: has {tuple(picture.shape[1:])} pixels, {found[0][0]} has "
                f"{tuple(pictures[0].shape[1:])}; needs one size, or pass size="
            )
    pixels = torch.stack(pictures)
    mean, std = _channel_statistics(pixels)
    labels = torch.tensor([label for _, label in found])
    return Images(pixels=pixels, labels=labels, mean=mean, std=std, classes=tuple(classes))


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in _ENDINGS)


def _picture(file: Path, size: int | None, margin: float) -> Tensor:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("load_image_folder needs Pillow: pip install pillow") from error
    try:
        with Image.open(file) as picture:
            colours = picture.convert("RGB")
    except OSError as error:
        raise ValueError(f"{file}: not an image that Pillow reads ({error})") from error
    if size is not None:
        colours = ImageOps.fit(colours, (size, size), bleed=margin)
    width, height = colours.size
    flat = torch.frombuffer(bytearray(colours.tobytes()), dtype=torch.uint8)
    return flat.view(height, width, 3).permute(2, 0, 1).contiguous()


def _channel_statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # By counts of the 256 values: exact, and no copy of the set in floating point.
    values = torch.arange(256, dtype=torch.float64) / 255
    channels = range(pixels.shape[1])
    counts = torch.stack([_counts(pixels[:, channel]) for channel in channels])
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    variance = (share * (values - mean[:, None]).square()).sum(1)
    # A constant channel has nothing to scale.
    std = torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance))
    return tuple(mean.tolist()), tuple(std.tolist())


def _counts(pixels: Tensor) -> Tensor:
    return torch.bincount(as_tensor("pixels", pixels).flatten().long(), minlength=256).double()
