"""Images from one folder per class, cropped to one size and normalized by their own statistics."""

from pathlib import Path

import torch
from torch import Tensor

from resid_theory._check import check_int
from resid_theory.data.image_set import Images
from resid_theory.runtime.store import path_of

_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def load_image_folder(
    path: str | Path, *, size: int | None = None, shorter: int | None = None
) -> Images:
    """Load images from one folder per class, the layout of ImageNet and many other sets.

    The whole set is held in memory: 3·size² bytes per image.

    Args:
        path: Folder whose subfolders are the classes, sorted by name; images may lie deeper.
        size: Number of pixels to which the shorter side is scaled before the middle square is cut
            out; None takes images as they are, which must then have one size.
        shorter: Number of pixels to which the shorter side is scaled instead, at least ``size``,
            before the square of ``size`` is cut out; 256 with size 224 is ImageNet's single crop.

    Returns:
        Pixels (m, 3, height, width), uint8, red-green-blue, sorted by class and name, with the
        set's own mean and standard deviation per channel.

    Raises:
        FileNotFoundError: If the folder has no subfolder with an image.
        ImportError: If Pillow is not installed.
        ValueError: If an image cannot be read, or its size differs from the first while ``size`` is
            None; or if ``shorter`` is given without ``size`` or is less.
    """
    path = path_of(path, "path")
    classes = sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    found = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((path / name).rglob("*"))
        if file.suffix.lower() in _ENDINGS
    ]
    if not found:
        lacks = "has no images in subfolders" if path.is_dir() else "is no folder"
        raise FileNotFoundError(
            f"path: {path} {lacks}; needs one folder per class, with files "
            f"ending in {', '.join(sorted(_ENDINGS))}"
        )
    if size is not None:
        check_int("size", size)
    if shorter is not None and (size is None or check_int("shorter", shorter) < size):
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


def _picture(file: Path, size: int | None, margin: float) -> Tensor:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("load_image_folder needs Pillow: pip install pillow") from error
    try:
        with Image.open(file) as picture:
            colours = picture.convert("RGB")
    # Pillow raises many errors at damaged files: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise ValueError(f"{file}: not an image that Pillow reads ({error})") from error
    if size is not None:
        colours = ImageOps.fit(colours, (size, size), bleed=margin)
    width, height = colours.size
    flat = torch.frombuffer(bytearray(colours.tobytes()), dtype=torch.uint8)
    return flat.view(height, width, 3).permute(2, 0, 1).contiguous()


def _channel_statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # By counts of the 256 values: exact, and no copy of the set in floating point.
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack(
        [torch.bincount(channel.flatten().long(), minlength=256) for channel in pixels.unbind(1)]
    ).double()
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    variance = (share * (values - mean[:, None]).square()).sum(1)
    # A constant channel has nothing to scale.
    std = torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance))
    return tuple(mean.tolist()), tuple(std.tolist())
