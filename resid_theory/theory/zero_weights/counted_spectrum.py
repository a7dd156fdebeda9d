"""Spectra of structured matrices that can count their eigenvalues below any number."""

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from resid_theory.eigen.spectral_statistics import SpectralStatistics
from resid_theory.eigen.spectrum import Spectrum

_EPS = torch.finfo(torch.float64).eps
# Near an eigenvalue of a diagonal block or where the matrix is singular a pivot s is small while
# its neighbours S are not, and S s⁻¹ S carries errors of eps |S|² / s: counts resolve no more than
# s = √eps |S|.
RESOLUTION = _EPS**0.5
_DENSE = 3000  # rows up to which one dense solve, of seconds, beats counting


def is_small(size: int) -> bool:
    """True where one dense solve for so many rows is the faster way."""
    return size <= _DENSE


def solved(matrix: Tensor) -> Spectrum:
    """All eigenvalues of a matrix by a dense solver."""
    # Sums over data made its entries: few rows are less exact than the solver.
    values = torch.linalg.eigvalsh(matrix)
    return Spectrum.of(values, resolution=max(len(matrix), 16) * _EPS)


def inverted(pivots: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvectors of pivots, (t, b, b), 1 / eigenvalues, (t, 1, b), and negative ones, (t,)."""
    # Far below the scale (t,) of the first pivots an eigenvalue is moved away from zero: the count
    # is then that of a matrix at this distance. Inverses stay factors, as behind a small pivot the
    # next ones have eigenvalues, and neighbours, of very different sizes.
    values, vectors = np.linalg.eigh(pivots)
    sizes = np.abs(values)
    round_off = 4 * values.shape[1] * _EPS * sizes.max(1) + 1e-300
    least = np.maximum(RESOLUTION / 16 * scale, round_off)[:, None]
    values = np.where(sizes < least, least, values)
    return vectors, 1 / values[:, None], (values < 0).sum(1)


class CountedSpectrum(SpectralStatistics):
    """Eigenvalues by inertia counts, by a dense solver where that is faster."""

    @property
    @abstractmethod
    def block_size(self) -> int:
        """Rows of a pivot."""

    @property
    @abstractmethod
    def radius(self) -> float:
        """A bound of all |eigenvalues|."""

    @property
    @abstractmethod
    def spectrum(self) -> Spectrum:
        """All eigenvalues by a dense solver."""

    @abstractmethod
    def counts_below(self, points: Tensor) -> Tensor:
        """Numbers of eigenvalues below points (t,), float64."""

    @cached_property
    def _small(self) -> Spectrum | None:
        """The dense spectrum where that is faster than counting."""
        return self.spectrum if is_small(self.size) else None

    def _search(self, reached: Callable[[Tensor], Tensor], *, signed: bool) -> float:
        """Smallest point at which a monotone condition on eigenvalues or magnitudes turns true."""
        high = self.radius
        low, least = -high if signed else 0.0, 4 * _EPS * high
        # Points counted together: many while calls dominate the cost, few for large blocks.
        sections = max(1, min(32, 4096 // self.block_size**2))
        while high - low > least:
            points = torch.linspace(low, high, sections + 2, dtype=torch.float64)
            first = [*reached(points[1:-1]).tolist(), True].index(True)
            low, high = points[first : first + 2].tolist()
        return 0.5 * (low + high)

    def eigenvalue(self, rank: int) -> float:
        """The eigenvalue of a given rank by inertia counts; error below 1.5e-8 of the largest."""
        return self._search(lambda t: self.counts_below(t) > rank, signed=True)

    def magnitude(self, rank: int) -> float:
        """The |λ| of a given rank; error below 1.5e-8 of the largest (round-off while dense)."""
        if self._small:
            return self._small.magnitude(rank)
        if rank in self._found:
            return self._found[rank]

        def reached(t: Tensor) -> Tensor:
            counts = self.counts_below(torch.cat([t, -t]))
            return counts[: len(t)] - counts[len(t) :] > rank

        return self._found.setdefault(rank, self._search(reached, signed=False))

    @cached_property
    def _found(self) -> dict[int, float]:
        """The |λ| that were searched for, by rank; several statistics ask for the same ones."""
        return {}

    def _end(self, rank: int) -> float:
        """The smallest or the largest eigenvalue by counts."""
        return self.eigenvalue(rank)

    @cached_property
    def largest(self) -> float:
        """Largest eigenvalue."""
        return self._small.largest if self._small else self._end(self.size - 1)

    @cached_property
    def smallest(self) -> float:
        """Smallest eigenvalue (signed)."""
        return self._small.smallest if self._small else self._end(0)

    def count_within(self, threshold: float) -> int:
        """Number of eigenvalues with |λ| up to a threshold."""
        if self._small:
            return self._small.count_within(threshold)
        above = math.nextafter(threshold, math.inf)
        high, low = self.counts_below(torch.tensor([above, -threshold], dtype=torch.float64))
        return max(0, int(high - low))  # round-off may order two counts the wrong way

    @property
    def zero_threshold(self) -> float:
        """|λ| up to this counts as zero; beyond the dense size it is the resolution of counts."""
        return self._small.zero_threshold if self._small else RESOLUTION * self.max_magnitude

    def count_below(self, threshold: float) -> int:
        """Number of eigenvalues below a threshold."""
        if self._small:
            return self._small.count_below(threshold)
        return int(self.counts_below(torch.tensor([threshold], dtype=torch.float64)))
