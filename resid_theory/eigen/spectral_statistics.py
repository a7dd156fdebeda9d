"""Statistics shared by all representations of a spectrum."""

from abc import ABC, abstractmethod

import torch

from resid_theory._check import check_within

_EPS = torch.finfo(torch.float64).eps


class SpectralStatistics(ABC):
    """Statistics of the eigenvalues of a symmetric operator, shared by all representations.

    A list of eigenvalues (:class:`Spectrum`) and a structured matrix that can only count them
    (``BlockToeplitz``) each define the six abstract members; everything else follows from them, so
    that every statistic has one threshold everywhere.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of eigenvalues P, multiplicities counted."""

    @property
    @abstractmethod
    def largest(self) -> float:
        """Largest eigenvalue (signed)."""

    @property
    @abstractmethod
    def smallest(self) -> float:
        """Smallest eigenvalue (signed)."""

    @abstractmethod
    def magnitude(self, rank: int) -> float:
        """The |λ| of a rank in [0, P), ascending; as computed, without a threshold for zero."""

    @abstractmethod
    def count_within(self, threshold: float) -> int:
        """Number of eigenvalues with |λ| up to a threshold, multiplicities included."""

    @abstractmethod
    def count_below(self, threshold: float) -> int:
        """Number of eigenvalues below a threshold, multiplicities included."""

    @property
    def max_magnitude(self) -> float:
        """Largest |λ|."""
        return max(abs(self.largest), abs(self.smallest))

    @property
    def min_magnitude(self) -> float:
        """Smallest |λ|, as computed, without a threshold for zero."""
        return self.magnitude(0)

    @property
    def zero_threshold(self) -> float:
        """|λ| up to this counts as zero: P times float64's epsilon times the largest |λ|.

        The backward error of a dense symmetric eigensolver; the rule of
        ``numpy.linalg.matrix_rank``.
        """
        return self.size * _EPS * self.max_magnitude

    def magnitude_percentile(self, percent: float) -> float:
        """A percentile of |λ|, linearly interpolated between neighbours.

        The rule is that of ``numpy.percentile(..., method="linear")``. On a multiplicity boundary
        it lies between two levels, as the 10th percentile does at zero weights with d = 10.

        Args:
            percent: In [0, 100].

        Returns:
            The percentile, in units of the eigenvalues.

        Raises:
            ValueError: If ``percent`` is outside [0, 100].
        """
        position = check_within("percent", percent, 0, 100) / 100 * (self.size - 1)
        low = int(position)
        below = self.magnitude(low)
        if position == low:
            return below
        return below + (position - low) * (self.magnitude(low + 1) - below)

    @property
    def condition_number(self) -> float:
        """max|λ| / min|λ|, dimensionless; inf when the rank is below P (``zero_threshold``)."""
        return self._over(self.min_magnitude)

    def percentile_condition_number(self, percent: float = 10.0) -> float:
        """max|λ| over a percentile of |λ|, dimensionless; inf when this counts as zero.

        Args:
            percent: In [0, 100]; 10 is the choice of the paper's experiments.

        Returns:
            The ratio.

        Source:
            Li et al., arXiv:1611.01186, Appendix B.
        """
        return self._over(self.magnitude_percentile(percent))

    @property
    def nonzero_condition_number(self) -> float:
        """max|λ| / smallest |λ| that does not count as zero; nan for a zero operator."""
        if self.rank == 0:
            return float("nan")
        return self.max_magnitude / self.magnitude(self.nullity)

    def _over(self, denominator: float) -> float:
        if self.max_magnitude == 0.0:
            return float("nan")
        singular = denominator <= self.zero_threshold
        return float("inf") if singular else self.max_magnitude / denominator

    @property
    def index(self) -> float:
        """Share of negative eigenvalues, in [0, 1]; negative: below -1e-10 times the largest |λ|.

        Source:
            Li et al., arXiv:1611.01186, Appendix B: "index" is a share there, not a count.
        """
        return self.count_below(-1e-10 * self.max_magnitude) / self.size

    @property
    def nullity(self) -> int:
        """Size of the null space: eigenvalues with |λ| up to ``zero_threshold``."""
        return self.count_within(self.zero_threshold)

    @property
    def rank(self) -> int:
        """Number of eigenvalues with |λ| above ``zero_threshold``."""
        return self.size - self.nullity

    def summary(self) -> dict[str, float | int]:
        """Size, extremes, condition numbers, index and rank by name, as JSON takes them."""
        return {
            "parameters": self.size,
            "largest": self.largest,
            "smallest": self.smallest,
            "min_magnitude": self.min_magnitude,
            "magnitude_percentile_10": self.magnitude_percentile(10),
            "condition_number": self.condition_number,
            "condition_number_10": self.percentile_condition_number(10),
            "condition_number_nonzero": self.nonzero_condition_number,
            "index": self.index,
            "rank": self.rank,
            "nullity": self.nullity,
            "zero_threshold": self.zero_threshold,
        }
