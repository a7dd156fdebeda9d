"""Images in folders: data that can be neither shipped nor downloaded, and generated ones."""

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import resid_theory as rt

STRIPES = "stripes"  # two classes of generated images, to run what needs folders of images


@dataclass(frozen=True, kw_only=True)
class Need:
    """Images in one folder per class, under a folder named by an environment variable.

    Attributes:
        what: Description of the data.
        variable: The environment variable.
        parts: Subfolders that must exist, each with one folder per class.
    """

    what: str
    variable: str
    parts: tuple[str, ...]

    def folder(self) -> Path:
        """Folder of the data; raises FileNotFoundError with what is missing."""
        if self.missing():
            raise FileNotFoundError(self.missing())
        return Path(os.environ[self.variable])

    def missing(self) -> str:
        """Reason why the data cannot be read here; empty if they can."""
        given = os.environ.get(self.variable)
        wanted = f"needs {self.what}: ${self.variable}/{{{','.join(self.parts)}}}/<class>/<image>"
        if not given:
            return f"{wanted}; ${self.variable} is not set"
        absent = [part for part in self.parts if not (Path(given) / part).is_dir()]
        return f"{wanted}; {given} has no {' and no '.join(absent)}" if absent else ""


CIFAR100 = Need(
    what="CIFAR-100 written as images", variable="RESID_THEORY_CIFAR100", parts=("train", "test")
)
IMAGENET = Need(
    what="ImageNet (ILSVRC 2012)", variable="RESID_THEORY_IMAGENET", parts=("train", "val")
)
NEEDS = {"cifar100": CIFAR100, "imagenet": IMAGENET}


def folder_images(name: str, split: str, size: int) -> rt.Images:
    """Images of a set of ``NEEDS``, or of ``STRIPES``, normalized as the training images are."""
    if name != STRIPES:
        return _images(NEEDS[name].folder(), NEEDS[name].parts, split, size)
    with tempfile.TemporaryDirectory() as scratch:
        return _images(_stripes(Path(scratch)), IMAGENET.parts, split, size)


def _images(folder: Path, parts: tuple[str, ...], split: str, size: int) -> rt.Images:
    train, test = parts
    data = rt.load_image_folder(folder / train, size=size)
    if split == "train":
        return data
    # Test images of ImageNet are the middle of larger ones.
    wider = {"shorter": size * 256 // 224} if test == "val" else {}
    return replace(
        rt.load_image_folder(folder / test, size=size, **wider), mean=data.mean, std=data.std
    )


def _stripes(folder: Path) -> Path:
    """Write folders train and val of striped PPM images, one wavelength per class."""
    source = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2)):
        for label in range(2):
            (folder / part / f"class{label}").mkdir(parents=True)
            wave = 127 * (1 + np.sin(np.arange(64) * 2 * np.pi / (4 + 4 * label)))
            for number in range(count):
                pixels = np.clip(wave[:, None] + source.normal(0, 20, (64, 64, 3)), 0, 255)
                content = b"P6 64 64 255\n" + pixels.astype(np.uint8).tobytes()
                (folder / part / f"class{label}" / f"{number}.ppm").write_bytes(content)
    return folder
