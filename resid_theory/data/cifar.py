"""CIFAR-10 from its official binary batches; nothing is unpickled."""

import hashlib
import io
import math
import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resid_theory._check import check_choice, check_int
from resid_theory.data.download import find_or_download, search_folders
from resid_theory.runtime import store

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR10_MEAN = (0.49140, 0.48216, 0.44653)
"""Mean of the training pixels per channel (red, green, blue), in units of the brightest."""
CIFAR10_STD = (0.24703, 0.24349, 0.26159)
"""Their standard deviations, in the same units."""

_ARCHIVE = "cifar-10-binary.tar.gz"
_ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
# The original host comes last: it is throttled.
_MIRRORS = (
    "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/",
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/",
    "https://www.cs.toronto.edu/~kriz/",
)
_FOLDER = "cifar-10-batches-bin"
_MD5 = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
_REMEDY = "delete the file and load again, or copy it anew"


def load_cifar10(
    split: str = "train", *, samples: int | None = None, progress: bool = True
) -> tuple[Tensor, Tensor]:
    """CIFAR-10 in the official order, each batch checked by its official md5.

    In ``$RESID_THEORY_DATA/cifar10``, ``$RESID_THEORY_DATA`` and the platform's cache folder, the
    unpacked folder ``cifar-10-batches-bin`` is looked for, then ``cifar-10-binary.tar.gz``, which
    is downloaded into the cache (162 MB) if neither is there. What was read stays in memory.

    Args:
        split: ``"train"`` (50,000 images) or ``"test"`` (10,000).
        samples: Read only the first so many; None for all.
        progress: Whether a download shows its progress on stderr.

    Returns:
        Images, (m, 3, 32, 32), uint8 in 0..255, red-green-blue, and labels, (m,), int64 in 0..9.

    Raises:
        FileNotFoundError: If the data are in no folder and no mirror delivers them.
        ValueError: If a file is damaged, or holds other images than the official ones.

    Source:
        A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    check_choice("split", split, ["train", "test"])
    batches = [name for name in _MD5 if name.startswith("test") == (split == "test")]
    if samples is not None:
        batches = batches[: math.ceil(check_int("samples", samples) / 10_000)]
    records = _records(tuple(search_folders("cifar10")), tuple(batches), progress)[:samples]
    pixels = torch.from_numpy(records[:, 1:].reshape(len(records), 3, 32, 32).copy())
    return pixels, torch.from_numpy(records[:, 0].astype(np.int64))


@lru_cache(maxsize=2)
def _records(folders: tuple[Path, ...], batches: tuple[str, ...], progress: bool) -> np.ndarray:
    """Labels and pixels, (10,000 x batches, 3,073), of unpacked batches or of the archive."""
    for folder in folders:
        paths = [folder / _FOLDER / name for name in batches]
        if all(path.is_file() for path in paths):
            return np.concatenate([_checked(path.read_bytes(), path) for path in paths])
    path = find_or_download(
        _ARCHIVE, _ARCHIVE_SHA256, _MIRRORS, data_set="cifar10", progress=progress
    )
    packed = store.read_bytes(path, sha256=_ARCHIVE_SHA256, remedy=_REMEDY)
    # Members are read in memory by their names: nothing is ever extracted to the disk.
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        files = [archive.extractfile(f"{_FOLDER}/{name}") for name in batches]
        contents = [b"" if file is None else file.read() for file in files]
    pairs = zip(contents, batches, strict=True)
    return np.concatenate([_checked(content, path / name) for content, name in pairs])


def _checked(content: bytes, path: Path) -> np.ndarray:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != _MD5[path.name]:
        raise ValueError(
            f"{path}: does not hold the official images: md5 {found}, expected "
            f"{_MD5[path.name]}; {_REMEDY}"
        )
    return np.frombuffer(content, np.dtype((np.uint8, 3073)))
