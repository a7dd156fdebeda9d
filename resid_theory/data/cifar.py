"""CIFAR-10 from lossless pieces or from the official binary archive; nothing is unpickled."""

import hashlib
import io
import lzma
import math
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resid_theory._check import check_choice, check_int
from resid_theory.data.whitened import download, places
from resid_theory.runtime import store

__all__ = ["CIFAR10_CLASSES", "CIFAR10_MEAN", "CIFAR10_STD", "load_cifar10"]

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
# Piece: its official batch, the md5 of that batch, and the sha256 of the piece.
_BATCHES = {
    "train_1": (
        "data_batch_1.bin",
        "5dd7e06a14cb22eb9f671a540d1b7c25",
        "116bdb44b71665aaf9986cfbe476705be4ac8c7b5c9fa171a3e807f20e87137f",
    ),
    "train_2": (
        "data_batch_2.bin",
        "5ea93a67294ea407fff1d09f752e9692",
        "da42048d201fb9354f28bbb832a663e63020a7b16a2b9884ad29b369d10a689d",
    ),
    "train_3": (
        "data_batch_3.bin",
        "942cd6a4bcdd0dd3c604fbe906cb4421",
        "307c2aff05efc20484490c2358a524601ec3456e74579c0e36edd2e872c02710",
    ),
    "train_4": (
        "data_batch_4.bin",
        "ae636b3ba5c66a11e91e8cb52e771fcb",
        "049eda5272fcc738c7efed435acfe1a99e62f99cf3b6081d260ae3590cc58715",
    ),
    "train_5": (
        "data_batch_5.bin",
        "53f37980c15c3d472c316c40844f3f0d",
        "40d169dcdd0df22b2118ff01c41b26ae852d1f1e6cf373a77e4dc2bf6fec9417",
    ),
    "test": (
        "test_batch.bin",
        "803d5f7f4d78ea53de84dbe85f74fb6d",
        "395f88b01ebb241899dfb682b7ae43ee0639dc8669fc1dcb9c527d3d29d15e81",
    ),
}
_UNREADABLE = (ValueError, KeyError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
_REMEDY = "delete the file and load again, or copy it anew"


def load_cifar10(
    split: str = "train", *, samples: int | None = None, progress: bool = True
) -> tuple[Tensor, Tensor]:
    """CIFAR-10 in the official order; what is decoded is checked against the official md5.

    In ``$RESID_THEORY_DATA/cifar10``, ``$RESID_THEORY_DATA`` and the platform's cache folder, two
    forms are looked for: the pieces ``train_1.npz`` .. ``train_5.npz`` and ``test.npz`` (residuals
    of a lossless integer transform), then the official ``cifar-10-binary.tar.gz``, which is
    downloaded into the cache (162 MB) if nothing is there.

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
    names = [name for name in _BATCHES if name.startswith(split)]
    if samples is not None:  # a batch takes a second to decode
        names = names[: math.ceil(check_int("samples", samples) / 10_000)]
    read = _from_pieces(names) or _from_archive(names, progress)
    records = np.concatenate(read)[:samples]
    pixels = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy())
    return pixels, torch.from_numpy(records[:, 0].astype(np.int64))


def _from_pieces(names: list[str]) -> list[np.ndarray] | None:
    """Records (10000, 3073) of every piece; None if no folder has them all."""
    for folder in places("cifar10"):
        paths = [folder / f"{name}.npz" for name in names]
        if all(path.is_file() for path in paths):
            return [_piece(path) for path in paths]
    return None


def _piece(path: Path) -> np.ndarray:
    _, md5, sha256 = _BATCHES[path.stem]
    content = store.read_bytes(path, sha256=sha256, remedy=_REMEDY)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as piece:
            pixels, labels = _decode(piece["residual"]), piece["labels"]
    except (
        ValueError,
        KeyError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
    ) as error:
        raise ValueError(f"{path}: not a piece of CIFAR-10 ({error}); {_REMEDY}") from error
    return _official(np.concatenate([labels[:, None], pixels.reshape(-1, 3072)], 1), md5, path)


def _decode(residual: np.ndarray) -> np.ndarray:
    """Undo zigzag code, differences along rows and columns, and differences to green."""
    # All on uint8, which wraps at 256 on purpose: a wider type would not come back.
    pixels = (residual >> 1) ^ np.negative(residual & 1)
    pixels = np.cumsum(pixels, axis=2, dtype=np.uint8)
    pixels = np.cumsum(pixels, axis=3, dtype=np.uint8)
    pixels[:, 0] += pixels[:, 1]
    pixels[:, 2] += pixels[:, 1]
    return pixels


def _from_archive(names: list[str], progress: bool) -> list[np.ndarray]:
    looked = [folder / _ARCHIVE for folder in places("cifar10")]
    path = next((place for place in looked if place.is_file()), None)
    if path is None:
        path = download(
            looked,
            _MIRRORS,
            _ARCHIVE_SHA256,
            what="CIFAR-10",
            folder="cifar10",
            progress=progress,
        )
    packed = store.read_bytes(path, sha256=_ARCHIVE_SHA256, remedy=_REMEDY)
    # Members are read in memory by their names: nothing is ever extracted to the disk.
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        return [_member(archive, name, path) for name in names]


def _member(archive: tarfile.TarFile, name: str, path: Path) -> np.ndarray:
    batch, md5, _ = _BATCHES[name]
    archive.extraction_filter = tarfile.data_filter
    file = archive.extractfile(f"cifar-10-batches-bin/{batch}")
    if file is None:
        raise ValueError(f"{path}: {batch} is no file in it; {_REMEDY}")
    records = np.frombuffer(file.read(), np.uint8).reshape(-1, 3073)
    return _official(records, md5, f"{path}, {batch}")


def _official(records: np.ndarray, md5: str, where: Path | str) -> np.ndarray:
    found = hashlib.md5(records.tobytes(), usedforsecurity=False).hexdigest()
    if found != md5:
        raise ValueError(
            f"{where}: does not decode to the official images: md5 {found}, expected {md5}; "
            f"{_REMEDY}"
        )
    return records
