"""Data sets as tensors: digits, MNIST, whitened principal components, one-hot targets."""

import gzip
import math
import os
import socket
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import as_tensor, check_choice, check_finite, check_int
from resid_theory.data.regression import Regression
from resid_theory.runtime import store

__all__ = [
    "Whitening",
    "download",
    "load_digits_raw",
    "load_mnist",
    "load_whitened",
    "one_hot",
    "places",
    "whiten",
]

# The official files: name (without .gz) and sha256 of the compressed bytes.
_MNIST = {
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
_ROWS = 1 << 13  # samples centred at a time: no second copy of the data is held
_SECONDS = 20.0  # without an answer for this long, a mirror counts as dead


def load_whitened(
    name: str,
    components: int = 10,
    *,
    samples: int | None = None,
    rank: str = "error",
    progress: bool = True,
) -> Regression:
    r"""Whitened principal components of an image data set, with one-hot targets.

    Pixels are scaled to [0, 1] and centred, projected on the directions of greatest variance and
    divided by their standard deviations, so that :math:`\tfrac1m X^T X = I` and each column has
    mean zero, to round-off. Nothing is random; targets are not centred.

    Args:
        name: ``"digits"`` (1797 images of 8 x 8, comes with scikit-learn) or ``"mnist"`` (the
            60,000 training images of 28 x 28; found on the disk or downloaded once, 10 MB).
        components: Principal components to keep, d.
        samples: Use the first so many images, taken before whitening; None for all.
        rank: What to do if the centred pixels have fewer than ``components`` dimensions; see
            :func:`whiten`.
        progress: Whether a download shows its progress on stderr.

    Returns:
        x (m, d) dimensionless and y (m, 10) of zeros and ones, float64, in the official order.

    Raises:
        ValueError: If a name or a count is out of range, the rank is too low, or a data file is
            damaged.

    Source:
        Li, Jiao, Han & Weissman, "Demystifying ResNet", arXiv:1611.01186, Appendix B (MNIST, the
        10 greatest principal components). Centring and the 1/m covariance are our choices.

    Example:
        >>> data = load_whitened("digits", 10, samples=500)
        >>> bool((data.x.T @ data.x / 500 - torch.eye(10)).abs().max() < 1e-12)
        True
    """
    load, brightest = _SETS[check_choice("name", name, list(_SETS))]
    images, labels = load(progress)
    count = len(images) if samples is None else check_int("samples", samples)
    if count > len(images):
        raise ValueError(f"samples: got {count}, {name} has {len(images)} images")
    pixels = images[:count].flatten(1).to(torch.float64).div_(brightest)
    x, _ = whiten(pixels, components, rank=rank)
    return Regression(x=x, y=one_hot(labels[:count], 10))


@dataclass(frozen=True, kw_only=True, eq=False)
class Whitening:
    """The affine map from p features to k whitened principal components.

    Attributes:
        mean: Mean of the features, (p,).
        directions: Orthonormal principal directions as columns, (p, k), greatest variance first.
            Of each column's entries the one of largest magnitude is positive, as in scikit-learn's
            PCA. A convention, but not without effect: targets do not turn with x, so the
            singular values of I - Syx (though not of Syx) change with these signs.
        scales: Standard deviation along each direction (1/m convention), (k,), in feature units.
        eigenvalues: All eigenvalues of the 1/m covariance, (p,), descending, in squared units.
        rank: Numerical rank of the centred features: eigenvalues above max(m, p) · eps · largest.
    """

    mean: Tensor
    directions: Tensor
    scales: Tensor
    eigenvalues: Tensor
    rank: int

    def apply(self, x: Tensor) -> Tensor:
        """Whiten samples with the stored mean and directions, for example a test set.

        Args:
            x: Samples, (m, p), in the units of the features that were fitted.

        Returns:
            Whitened components, (m, k), float64.
        """
        projected = [(part - self.mean) @ self.directions for part in _parts(x)]
        return torch.cat(projected) / self.scales


def whiten(x: Tensor, components: int, *, rank: str = "error") -> tuple[Tensor, Whitening]:
    """Project on the principal components of greatest variance and scale each to variance one.

    Args:
        x: Samples, (m, p); converted to float64 a few thousand rows at a time.
        components: Principal components to keep, k, at least 1.
        rank: ``"error"`` refuses more components than the numerical rank of the centred samples;
            ``"truncate"`` returns as many as the rank.

    Returns:
        The whitened samples, (m, k), float64, and the map that made them.

    Raises:
        ValueError: If x is not a finite matrix, or the rank is below ``components`` (or zero).
    """
    check_choice("rank", rank, ["error", "truncate"])
    check_int("components", components)
    x = as_tensor("x", x)
    if x.dim() != 2 or x.numel() == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}, needs a matrix (samples, features)")
    mean, covariance = _mean_and_covariance(check_finite("x", x))
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0), vectors.flip(1)
    found = _numerical_rank(values, len(x))
    if found < components and (rank == "error" or found == 0):
        raise ValueError(_rank_message(found, components, tuple(x.shape)))
    kept = min(components, found)
    whitening = Whitening(
        mean=mean,
        directions=_fix_signs(vectors[:, :kept]),
        scales=values[:kept].sqrt(),
        eigenvalues=values,
        rank=found,
    )
    return whitening.apply(x), whitening


def _parts(x: Tensor) -> Iterator[Tensor]:
    return (part.to(torch.float64) for part in x.split(_ROWS))


def _mean_and_covariance(x: Tensor) -> tuple[Tensor, Tensor]:
    # Two passes: subtracting m·mean·meanᵀ afterwards would cancel digits of small variances.
    mean = torch.stack([part.sum(0) for part in _parts(x)]).sum(0) / len(x)
    total = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=x.device)
    for part in _parts(x):
        centred = part - mean
        total.addmm_(centred.mT, centred)
    return mean, total / len(x)


def _numerical_rank(eigenvalues: Tensor, samples: int) -> int:
    eps = torch.finfo(torch.float64).eps
    floor = max(samples, len(eigenvalues)) * eps * eigenvalues[0]
    # Not >=, or constant features (all eigenvalues zero) would have full rank.
    return int((eigenvalues > floor).sum())


def _rank_message(found: int, wanted: int, shape: tuple[int, ...]) -> str:
    advice = (
        f'ask for at most {found}, or pass rank="truncate"' if found else "needs data that vary"
    )
    return (
        f"components: got {wanted}, but the {shape[0]} centred samples of {shape[1]} features have "
        f"numerical rank {found} (eigenvalues of the covariance above "
        f"max(m, p) * eps * largest); {advice}"
    )


def _fix_signs(directions: Tensor) -> Tensor:
    largest = directions.abs().argmax(0, keepdim=True)
    return directions * directions.gather(0, largest).sign()


def one_hot(labels: Any, classes: int) -> Tensor:
    """Class labels as rows of the identity matrix.

    Args:
        labels: Whole numbers in [0, classes), (m,); integers or floats without a fraction.
        classes: Number of classes, at least 1.

    Returns:
        Zeros and ones, (m, classes), float64, on the labels' device.

    Raises:
        ValueError: If the labels are not a vector, or one is not a whole number in range.

    Example:
        >>> one_hot([2, 0], 3).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    labels = as_tensor("labels", labels)
    check_int("classes", classes)
    if labels.dim() != 1 or labels.is_complex():
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)} and dtype {labels.dtype}, needs a vector of "
            "class numbers (m,)"
        )
    index = torch.nan_to_num(labels.to(torch.float64), nan=-1.0)
    wrong = ((index != index.floor()) | (index < 0) | (index >= classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"labels: label {labels[first].item()} at position {first} is not a whole number in "
            f"[0, {classes}) ({len(wrong)} of {len(labels)} are not)"
        )
    return torch.eye(classes, dtype=torch.float64, device=labels.device)[index.long()]


def load_digits_raw() -> tuple[Tensor, Tensor]:
    """The handwritten digits that come with scikit-learn.

    Returns:
        Images, (1797, 8, 8), uint8 in 0..16, and labels, (1797,), int64 in 0..9.
    """
    from sklearn.datasets import (
        load_digits,
    )  # a second of import that other users need not wait for

    digits = load_digits()
    return torch.from_numpy(digits.images).to(torch.uint8), torch.from_numpy(digits.target).long()


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
    images = _mnist_array(f"{prefix}-images-idx3-ubyte", progress)
    return images, _mnist_array(f"{prefix}-labels-idx1-ubyte", progress).long()


_Loader = Callable[[bool], tuple[Tensor, Tensor]]
# A new data set is a row here: how to load (progress) -> (images, labels), and its brightest pixel.
_SETS: dict[str, tuple[_Loader, float]] = {
    "digits": (lambda progress: load_digits_raw(), 16.0),
    "mnist": (lambda progress: load_mnist("train", progress=progress), 255.0),
}


def _mnist_array(name: str, progress: bool) -> Tensor:
    looked = [folder / f"{name}.gz" for folder in _folders()]
    path = next((place for place in looked if place.is_file()), None)
    if path is None:
        path = _download(name, looked, progress)
    remedy = "delete the file and load again, which downloads a new one, or copy it anew"
    packed = store.read_bytes(path, sha256=_MNIST[name], remedy=remedy)
    return _parse_idx(gzip.decompress(packed), path)


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


def _folders() -> list[Path]:
    return places("mnist")


def places(name: str) -> list[Path]:
    """Where the files of a data set may lie, in the order of looking.

    Args:
        name: Folder of the data set, such as ``"mnist"``.

    Returns:
        ``$RESID_THEORY_DATA/name`` and ``$RESID_THEORY_DATA`` if that is set, and the folder of the
        platform's cache, which a download writes to.
    """
    given = os.environ.get("RESID_THEORY_DATA")
    named = [Path(given).expanduser() / name, Path(given).expanduser()] if given else []
    return [*named, _cache_folder() / name]


def _cache_folder(platform: str = sys.platform) -> Path:
    home = Path.home()
    variable, usual = {
        "win32": ("LOCALAPPDATA", home / "AppData" / "Local"),
        "darwin": ("XDG_CACHE_HOME", home / "Library" / "Caches"),
    }.get(platform, ("XDG_CACHE_HOME", home / ".cache"))
    return Path(os.environ.get(variable) or usual) / "resid_theory"


def _download(name: str, looked: list[Path], progress: bool) -> Path:
    return download(looked, _MIRRORS, _MNIST[name], what="MNIST", folder="mnist", progress=progress)


def download(
    looked: Sequence[Path],
    mirrors: Sequence[str],
    sha256: str,
    *,
    what: str,
    folder: str,
    progress: bool,
) -> Path:
    """Fetch a file from the first mirror that delivers it undamaged.

    Args:
        looked: Where it was looked for, as full paths; the last one is written.
        mirrors: Addresses that the file's name is appended to, in the order of trying.
        sha256: Of the file.
        what: Name of the data set, for the message.
        folder: Its folder in ``$RESID_THEORY_DATA``, for the message.
        progress: Whether a bar shows on stderr.

    Returns:
        Where the file is now.

    Raises:
        FileNotFoundError: If no mirror delivers it; names every place and every mirror's fault.
    """
    path, faults = looked[-1], []
    for mirror in mirrors:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _time_limit(_SECONDS):
                torch.hub.download_url_to_file(mirror + path.name, str(path), sha256, progress)
            return path
        except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: the sha256 differs
            faults.append(f"{mirror}: {error}")
    raise FileNotFoundError(
        f"{what} file {path.name} was not found ({', '.join(map(str, looked))}) and not downloaded "
        f"({'; '.join(faults)}): set RESID_THEORY_DATA to a folder that holds it, "
        f"directly or in a subfolder {folder}"
    )


@contextmanager
def _time_limit(seconds: float) -> Generator[None, None, None]:
    # torch.hub sets none, and a network that swallows packets would hang for minutes.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
