"""MNIST from its official IDX files."""

import gzip
import math
from pathlib import Path

import torch
from torch import Tensor

from resid_theory._check import check_choice
from resid_theory.data.download import find_or_download
from resid_theory.runtime import store

# The official files: name (without .gz) and sha256 of the compressed bytes.
_SHA256 = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)


def load_mnist(split: str = "train", *, progress: bool = True) -> tuple[Tensor, Tensor]:
    """MNIST from its official files, checked by sha256 at every reading.

    The files are looked for in ``$RESID_THEORY_DATA/mnist``, ``$RESID_THEORY_DATA`` and the
    platform's cache folder; what is in none of them is downloaded into the cache.

    Args:
        split: ``"train"`` (60,000 images) or ``"test"`` (10,000).
        progress: Whether a download shows its progress on stderr.

    Returns:
        Images, (m, 28, 28), uint8 in 0..255, and labels, (m,), int64 in 0..9.

    Raises:
        FileNotFoundError: If a file is in no folder and no mirror delivers it.
        ValueError: If a file is damaged: its sha256 is not the official one.
    """
    prefix = {"train": "train", "test": "t10k"}[check_choice("split", split, ["train", "test"])]
    remedy = "delete the file and load again, which downloads a new one, or copy it anew"
    parts = []
    for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        sha256 = _SHA256[name]
        path = find_or_download(f"{name}.gz", sha256, _MIRRORS, data_set="mnist", progress=progress)
        packed = store.read_bytes(path, sha256=sha256, remedy=remedy)
        parts.append(_parse_idx(gzip.decompress(packed), path))
    return parts[0], parts[1].long()


def _parse_idx(content: bytes, path: Path) -> Tensor:
    # Bytes 0 and 1 are zero, byte 2 says uint8 (8), byte 3 the number of axes; then their sizes.
    axes = 3 if "idx3" in path.name else 1
    magic = bytes([0, 0, 8, axes])
    if content[:4] != magic:
        raise ValueError(
            f"{path}: begins with {content[:4]!r}, an IDX file of bytes with {magic!r}"
        )
    start = 4 + 4 * axes
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if len(content) != start + math.prod(sizes):
        raise ValueError(f"{path}: holds {len(content) - start} values, its header says {sizes}")
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).reshape(sizes)
