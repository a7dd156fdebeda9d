"""All eigenvalues of a symmetric operator, with multiplicities."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import as_tensor, check_finite, check_int
from resid_theory.eigen.spectral_statistics import SpectralStatistics
from resid_theory.runtime.result import Columns, Result

_EXPAND_LIMIT = 1 << 27  # eigenvalues, 1 GiB in float64


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum(SpectralStatistics, Result):
    r"""All eigenvalues of a symmetric operator, equal ones stored once with their multiplicity.

    A closed form knows its multiplicities, so that ten numbers can represent millions of
    eigenvalues; a measured spectrum has multiplicities of one. All statistics hold for both.

    Attributes:
        levels: Eigenvalues, (k,), float64, ascending, on the CPU; in units of loss per weight².
        multiplicities: Number of occurrences of each, (k,), int64, at least 1.
        resolution: |λ| up to this share of the largest counts as zero. None: P times float64's
            epsilon, the error of a dense solver; the levels of a closed form are more exact.

    Raises:
        ValueError: If shapes differ, an eigenvalue is not finite or a multiplicity is below 1.

    Example:
        >>> spectrum = Spectrum.of([-2.0, 1.0, 4.0])
        >>> spectrum.condition_number
        4.0
    """

    levels: Tensor
    multiplicities: Tensor
    resolution: float | None = None

    def __post_init__(self) -> None:
        if self.levels.dim() != 1 or self.levels.shape != self.multiplicities.shape:
            raise ValueError(
                f"levels: got shape {tuple(self.levels.shape)} with multiplicities of shape "
                f"{tuple(self.multiplicities.shape)}, needs two vectors of one length"
            )
        if len(self.levels) == 0:
            raise ValueError("eigenvalues: got 0 of them, needs at least one")
        if int(self.multiplicities.min()) < 1:
            least = int(self.multiplicities.min())
            raise ValueError(f"multiplicities: got {least}, needs each at least once")
        check_finite("levels", self.levels)
        if bool((self.levels.diff() < 0).any()):
            raise ValueError("levels: not in ascending order; Spectrum.of takes any order")

    @classmethod
    def of(
        cls,
        eigenvalues: Any,
        multiplicities: Any = None,
        *,
        resolution: float | None = None,
        error: float = 0.0,
    ) -> "Spectrum":
        """A spectrum from eigenvalues in any order.

        Args:
            eigenvalues: (k,), numbers in any order.
            multiplicities: (k,), whole numbers; one each by default, zeros are dropped.
            resolution: |λ| up to this share of the largest counts as zero.
            error: Largest error of an eigenvalue, in their units; that of a dense solver is added
                to it, and the sum taken for the resolution.

        Returns:
            The spectrum, sorted.

        Raises:
            ValueError: If shapes differ, an eigenvalue is not finite or a multiplicity is negative
                or not whole.
        """
        levels = as_tensor("eigenvalues", eigenvalues).detach().to("cpu", torch.float64)
        counts = torch.ones(levels.shape, dtype=torch.int64)
        if multiplicities is not None:
            given = as_tensor("multiplicities", multiplicities).to("cpu")
            counts = given.to(torch.int64)
            if not torch.equal(counts.to(given.dtype), given):
                raise ValueError(f"multiplicities: got {given.tolist()}, needs whole numbers")
        if counts.shape == levels.shape and levels.dim() == 1:  # a mask would flatten a matrix
            levels, counts = levels[counts != 0], counts[counts != 0]
            order = levels.argsort()
            levels, counts = levels[order], counts[order]
        made = cls(levels=levels, multiplicities=counts, resolution=resolution)
        if error > 0 and made.max_magnitude > 0:
            share = (error + made.zero_threshold) / made.max_magnitude
            return replace(made, resolution=share)
        return made

    headline = (
        "Spectrum, P = {0.size}: λ in [{0.smallest:.4g}, {0.largest:.4g}], rank "
        "{0.rank}, condition number {0.condition_number:.4g}, share below zero {0.index:.4g}"
    )
    tabulated = {"eigenvalue": "levels", "multiplicity": "multiplicities"}

    def shown(self) -> Columns:
        """One row for eigenvalues that are equal but for round-off."""
        return self.distinct().table()

    @property
    def size(self) -> int:
        """Number of eigenvalues P, multiplicities counted."""
        return int(self.multiplicities.sum())

    @property
    def eigenvalues(self) -> Tensor:
        """All eigenvalues, (P,), ascending, equal ones repeated.

        Raises:
            ValueError: If P is above 2^27 (1 GiB); ``levels`` and ``multiplicities`` hold the same.
        """
        if self.size > _EXPAND_LIMIT:
            raise ValueError(
                f"eigenvalues: {self.size} of them need {8 * self.size / 2**30:.1f} GiB; "
                "use levels and multiplicities, which hold the same"
            )
        return self.levels.repeat_interleave(self.multiplicities)

    @property
    def largest(self) -> float:
        """Largest eigenvalue (signed)."""
        return self.levels[-1].item()

    @property
    def smallest(self) -> float:
        """Smallest eigenvalue (signed)."""
        return self.levels[0].item()

    @property
    def zero_threshold(self) -> float:
        """|λ| up to this counts as zero: ``resolution`` times the largest |λ|."""
        if self.resolution is None:
            return super().zero_threshold
        return self.resolution * self.max_magnitude

    @cached_property
    def _magnitudes(self) -> tuple[Tensor, Tensor]:
        """|λ| ascending and the number of eigenvalues up to and including each."""
        magnitudes, order = self.levels.abs().sort()
        return magnitudes, self.multiplicities[order].cumsum(0)

    def magnitude(self, rank: int) -> float:
        """The |λ| of a rank in [0, P), ascending; as computed, without a threshold for zero."""
        if check_int("rank", rank, 0) >= self.size:
            raise ValueError(f"rank: got {rank}, needs a rank below {self.size}, their number")
        magnitudes, counts = self._magnitudes
        return magnitudes[torch.searchsorted(counts, rank, right=True)].item()

    def count_within(self, threshold: float) -> int:
        """Number of eigenvalues with |λ| up to a threshold, multiplicities included."""
        return int(self.multiplicities[self.levels.abs() <= threshold].sum())

    def count_below(self, threshold: float) -> int:
        """Number of eigenvalues below a threshold, multiplicities included."""
        return int(self.multiplicities[self.levels < threshold].sum())

    @property
    def trace(self) -> float:
        """Sum of the eigenvalues."""
        return (self.levels * self.multiplicities).sum().item()

    @property
    def frobenius_norm(self) -> float:
        """Square root of the sum of squared eigenvalues."""
        scale = self.max_magnitude or 1.0  # squares of a near-zero Hessian would underflow
        squares = (self.levels / scale).square() * self.multiplicities
        return scale * squares.sum().sqrt().item()

    def distinct(self, tolerance: float = 1e-9) -> "Spectrum":
        """Merge neighbouring levels that differ by at most ``tolerance`` times the largest |λ|.

        Args:
            tolerance: Relative to the largest |λ|.

        Returns:
            One level per cluster, its mean, with the sum of the multiplicities.
        """
        gaps = self.levels.diff() > tolerance * self.max_magnitude
        cluster = torch.cat([torch.zeros(1, dtype=torch.int64), gaps.cumsum(0)])
        count = int(cluster[-1]) + 1
        weights = self.multiplicities.to(torch.float64)
        mass = torch.zeros(count, dtype=torch.float64).index_add_(0, cluster, weights)
        # As first level plus mean offset: exact for equal levels, so that the order stays.
        first = self.levels[torch.cat([torch.ones(1, dtype=torch.bool), gaps])]
        offsets = torch.zeros(count, dtype=torch.float64).index_add_(
            0, cluster, weights * (self.levels - first[cluster])
        )
        merged = torch.zeros(count, dtype=torch.int64)
        merged.index_add_(0, cluster, self.multiplicities)
        return Spectrum(
            levels=first + offsets / mass, multiplicities=merged, resolution=self.resolution
        )

    def distance(self, other: "Spectrum") -> float:
        """Largest difference between eigenvalues of equal rank, over the larger of the two max|λ|.

        By Weyl's inequality it is at most the operator norm of the difference of the two operators,
        over the same scale.

        Args:
            other: A spectrum of the same size P.

        Returns:
            A relative error, dimensionless; 0 for two zero operators.

        Raises:
            ValueError: If the sizes differ.
        """
        difference, _ = self._differences(other)
        scale = max(self.max_magnitude, other.max_magnitude)
        return difference.max().item() / scale if scale else 0.0

    def wasserstein_distance(self, other: "Spectrum") -> float:
        """Mean difference between eigenvalues of equal rank, in units of the eigenvalues.

        Args:
            other: A spectrum of the same size P.

        Returns:
            The 1-Wasserstein distance between the two eigenvalue distributions.

        Raises:
            ValueError: If the sizes differ.
        """
        difference, counts = self._differences(other)
        return (difference * counts).sum().item() / self.size

    def _differences(self, other: "Spectrum") -> tuple[Tensor, Tensor]:
        """|λ_i - μ_i| on the runs of ranks where both are constant, and the runs' lengths."""
        if not isinstance(other, Spectrum):
            raise ValueError(
                f"other: got {type(other).__name__}, needs a Spectrum; see Spectrum.of"
            )
        if self.size != other.size:
            raise ValueError(
                f"other: has {other.size} eigenvalues, this spectrum {self.size}; needs equal sizes"
            )
        mine, theirs = self.multiplicities.cumsum(0), other.multiplicities.cumsum(0)
        ends = torch.cat([mine, theirs]).unique()
        a = self.levels[torch.searchsorted(mine, ends)]
        b = other.levels[torch.searchsorted(theirs, ends)]
        return (a - b).abs(), ends.diff(prepend=ends.new_zeros(1))
