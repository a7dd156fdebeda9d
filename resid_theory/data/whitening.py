"""Whitened principal components of features and of image data sets."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from resid_theory._check import as_tensor, check_choice, check_finite, check_int
from resid_theory.data.datasets import IMAGE_SETS
from resid_theory.data.regression import Regression, one_hot

_ROWS = 1 << 13  # samples centred at a time: no second copy of the data is held


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
        name: ``"digits"`` (all 1,797 images of 8 x 8, which come with scikit-learn), or the
            training images of ``"mnist"`` (60,000 of 28 x 28, 10 MB) or ``"cifar10"`` (50,000 of
            3 x 32 x 32, 162 MB), found on the disk or downloaded once.
        components: Principal components to keep, d.
        samples: Number of images, the first ones, taken before whitening; None for all.
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
    chosen = IMAGE_SETS[check_choice("name", name, list(IMAGE_SETS))]
    train = chosen.load("train", samples, progress)
    parts = [train]
    if name == "digits":  # too few to hold back a test set
        parts.append(chosen.load("test", None, progress))
    available = sum(map(len, parts))
    count = available if samples is None else check_int("samples", samples)
    if count > available:
        raise ValueError(f"samples: got {count}, {name} has {available} images")
    pixels = torch.cat([part.pixels for part in parts])[:count].flatten(1)
    pixels = pixels.to(torch.float64).div_(train.brightest)
    labels = torch.cat([part.labels for part in parts])[:count]
    x, _ = whiten(pixels, components, rank=rank)
    return Regression(x=x, y=one_hot(labels, len(chosen.classes)))


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

    def __repr__(self) -> str:
        """The numbers of features and of components, and the rank."""
        features, kept = self.directions.shape
        return f"Whitening({features} features to {kept} components, rank {self.rank})"

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
    check_finite("x", x)
    # Two passes: subtracting m·mean·meanᵀ afterwards would cancel digits of small variances.
    mean = torch.stack([part.sum(0) for part in _parts(x)]).sum(0) / len(x)
    total = torch.zeros(*[len(mean)] * 2, dtype=torch.float64, device=x.device)
    for part in _parts(x):
        centred = part - mean
        total.addmm_(centred.mT, centred)
    values, vectors = torch.linalg.eigh(total / len(x))
    values, vectors = values.flip(0), vectors.flip(1)
    floor = max(x.shape) * torch.finfo(torch.float64).eps * values[0]
    # Not >=, or constant features (all eigenvalues zero) would have full rank.
    found = int((values > floor).sum())
    if found < components and (rank == "error" or found == 0):
        advice = f'ask for at most {found}, or pass rank="truncate"'
        raise ValueError(
            f"components: got {components}, but the {len(x)} centred samples of {x.shape[1]} "
            f"features have numerical rank {found} (eigenvalues of the covariance above "
            f"max(m, p) * eps * largest); {advice if found else 'needs data that vary'}"
        )
    kept = min(components, found)
    directions = vectors[:, :kept]
    largest = directions.abs().argmax(0, keepdim=True)
    whitening = Whitening(
        mean=mean,
        directions=directions * directions.gather(0, largest).sign(),
        scales=values[:kept].sqrt(),
        eigenvalues=values,
        rank=found,
    )
    return whitening.apply(x), whitening


def _parts(x: Tensor) -> Iterator[Tensor]:
    return (part.to(torch.float64) for part in x.split(_ROWS))
