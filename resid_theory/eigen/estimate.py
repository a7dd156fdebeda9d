"""Numbers with their error bars."""

import math
from dataclasses import asdict, dataclass, replace

from torch import Tensor

from resid_theory.runtime.result import Result

__all__ = [
    "Estimate",
    "mean_estimate",
    "positive_mean",
    "root",
    "sphere_mean",
    "squares_mean",
    "student",
]

_FLAT = 1e-9  # share of few eigenvalues below which a distribution is normal
_FEW = 8  # samples whose angles or lengths may hide their spread


def student(degrees: float) -> float:
    """Half-width of Student's two-sided 95 % interval in standard errors; inf without freedom."""
    if degrees < 1:
        return math.inf
    from scipy.special import ndtri, stdtrit  # half a second of import that few calls need

    tail = (1 + 0.95) / 2
    return float(ndtri(tail) if math.isinf(degrees) else stdtrit(degrees, tail))


@dataclass(frozen=True, kw_only=True)
class Estimate(Result):
    """A number, its standard error, and the ends of its 95 % interval.

    Attributes:
        value: The estimate.
        standard_error: Of the value, from the spread of independent samples; 0 without randomness.
        low: Lower end of the 95 % interval; it includes the bounds of errors that are not random.
        high: Upper end; inf where the method bounds the number only from below.

    Example:
        >>> print(Estimate.exact(2.0))
        2 (exact)
    """

    value: float
    standard_error: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float, bound: float = 0.0) -> "Estimate":
        """A number without random error.

        Args:
            value: The number.
            bound: Largest distance from the truth.

        Returns:
            The estimate; its interval is the value plus or minus the bound.
        """
        value = float(value)
        return cls(value=value, standard_error=0.0, low=value - bound, high=value + bound)

    def scaled(self, unit: float) -> "Estimate":
        """The estimate of a positive multiple of the number."""
        return Estimate(**{name: unit * part for name, part in asdict(self).items()})

    def widened(self, bound: float) -> "Estimate":
        """The same with room for an error that is not random."""
        return replace(self, low=self.low - bound, high=self.high + bound)

    def joined(self, value: float, error: float) -> "Estimate":
        """Mean with a value of an uncorrelated standard error, weighted by inverse variances."""
        both = math.hypot(self.standard_error, error)
        weight = (self.standard_error / both) ** 2 if both else 0.0
        shrunk = error / both if both else 1.0
        mean = self.value + weight * (value - self.value)
        return Estimate(
            value=mean,
            standard_error=shrunk * self.standard_error,
            low=mean - shrunk * (self.value - self.low),
            high=mean + shrunk * (self.high - self.value),
        )

    def covers(self, truth: float) -> bool:
        """Return whether a number lies in the 95 % interval, ends included."""
        return self.low <= truth <= self.high

    headline = "{0!s} (95 % interval)"

    def __repr__(self) -> str:
        """One line, since estimates stand in other results."""
        return f"Estimate({self})"

    def __str__(self) -> str:
        """The value with half the width of its interval, or the interval where it is lopsided."""
        below, above = self.value - self.low, self.high - self.value
        if below == above == 0 or math.isnan(self.value):
            return f"{self.value:.6g} (exact)"
        if math.isinf(self.high) or not 0.5 <= (above / below if below else math.inf) <= 2:
            return f"{self.value:.4g} in [{self.low:.4g}, {self.high:.4g}]"
        half = max(below, above)
        # As many digits as the interval is worth: to its second one.
        digits = 2 + _magnitude(self.value) - _magnitude(half)
        return f"{self.value:.{min(max(digits, 1), 6)}g} ± {half:.2g}"


def _magnitude(value: float) -> int:
    """Power of ten of the first digit."""
    return math.floor(math.log10(abs(value))) if value else -400


def mean_estimate(
    samples: Tensor, *, scale: float = 1.0, offset: float = 0.0, bound: float = 0.0
) -> Estimate:
    """``offset`` plus ``scale`` times a mean, with Student's interval widened by a ``bound``."""
    count = len(samples)
    value = offset + scale * samples.mean().item()
    if count < 2:
        return Estimate(value=value, standard_error=math.inf, low=-math.inf, high=math.inf)
    error = abs(scale) * samples.std().item() / math.sqrt(count)
    half = student(count - 1) * error + bound
    return Estimate(value=value, standard_error=error, low=value - half, high=value + half)


def positive_mean(samples: Tensor, *, scale: float, offset: float) -> Estimate:
    """The same for positive samples, with an interval that is even on a logarithmic axis."""
    # Squares are skewed: where their mean is too low, their spread is too low as well, so that an
    # even interval misses the truth above it too often.
    even = mean_estimate(samples, scale=scale, offset=offset)
    mean = even.value - offset
    if mean <= 0 or math.isinf(even.standard_error):
        return even
    ratio = math.exp(min(700.0, (even.high - even.value) / mean))
    return Estimate(
        value=even.value,
        standard_error=even.standard_error,
        low=offset + mean / ratio,
        high=offset + mean * ratio,
    )


def sphere_mean(
    samples: Tensor, squares: Tensor, *, dimension: int, share: float, offset: float, part: float
) -> Estimate:
    """``offset`` plus a trace, from zᵀ A z and |A z|² of unit vectors z, uniform on a sphere."""
    # The variance for one z is 2 / (N + 2) (|A|² / N - (tr A / N)²); for n of them it is one n-th
    # of a ``part`` of it. The relative variance of |A z|² is twice the ``share`` of few
    # eigenvalues, Σ λ⁴ / (Σ λ²)².
    count, mean = len(samples), samples.mean().item()
    spread = max(0.0, squares.mean().item() - mean**2) * 2 / (dimension + 2)
    error = dimension * math.sqrt(spread * part / count)
    half = student(count / max(share, _FLAT)) * error if error else 0.0
    value = offset + dimension * mean
    return Estimate(value=value, standard_error=error, low=value - half, high=value + half)


def squares_mean(squares: Tensor, *, scale: float, share: float, offset: float) -> Estimate:
    """``offset`` plus ``scale`` times the mean of |A z|²; the ``share`` as for the trace."""
    # Like a sum of squares of normal numbers, with the degrees of freedom of its variance. Angles,
    # of which there are count / 2 for each length, show it best; but few samples may hide it in
    # their angles or in their lengths, hardly in both.
    count, mean = len(squares), squares.mean().item()
    if mean == 0:
        return Estimate.exact(offset)
    if count > 1:
        spread = squares.var().item() / mean**2 / 2
        pooled = (count / 2 * share + spread) / (count / 2 + 1)
        share = max(share, spread) if count < _FEW else pooled
    from scipy.special import chdtri

    degrees = count / max(share, _FLAT)
    tail = (1 - 0.95) / 2
    low, high = (scale * mean * degrees / float(chdtri(degrees, t)) for t in (tail, 1 - tail))
    error = scale * mean * math.sqrt(2 / degrees)
    value = offset + scale * mean
    return Estimate(value=value, standard_error=error, low=offset + low, high=offset + high)


def root(square: Estimate) -> Estimate:
    """Square root of an estimate that cannot be negative; the standard error to first order."""
    value = math.sqrt(max(0.0, square.value))
    error = square.standard_error / (2 * value) if value else math.sqrt(square.standard_error)
    low, high = (math.sqrt(max(0.0, end)) for end in (square.low, square.high))
    return Estimate(value=value, standard_error=error, low=low, high=high)
