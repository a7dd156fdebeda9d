"""Numbers with their error bars, and eigenpairs with their residual bounds."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Eigenpairs", "Estimate", "clusters", "mean_estimate", "positive_mean", "student"]


def student(degrees: float, confidence: float = 0.95) -> float:
    """Half-width of a two-sided interval in standard errors, by Student's distribution.

    Args:
        degrees: Degrees of freedom, draws less one; inf for the normal distribution.
        confidence: In (0, 1).

    Returns:
        1.96 for many draws at 95 %, 12.7 for two; inf without degrees of freedom.
    """
    if degrees < 1:
        return math.inf
    from scipy.special import ndtri, stdtrit  # half a second of import that few calls need

    tail = (1 + confidence) / 2
    return float(ndtri(tail) if math.isinf(degrees) else stdtrit(degrees, tail))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number, its standard error, and the ends of its 95 % interval.

    Attributes:
        value: The estimate.
        standard_error: Of the value, from the spread of independent draws; 0 where none is random.
        low: Lower end of the 95 % interval, what is known of errors that are not random included.
        high: Upper end; inf where the method can only bound the number from below.

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
            bound: How far the truth can lie from it.

        Returns:
            The estimate; its interval is the value give or take the bound.
        """
        value = float(value)
        return cls(value=value, standard_error=0.0, low=value - bound, high=value + bound)

    def covers(self, truth: float) -> bool:
        """Whether a number lies in the 95 % interval.

        Args:
            truth: The number.

        Returns:
            True on the ends, too.
        """
        return self.low <= truth <= self.high

    def __str__(self) -> str:
        """The value with half the width of its interval, or the interval where it is lopsided."""
        below, above = self.value - self.low, self.high - self.value
        if below == above == 0 or math.isnan(self.value):
            return f"{self.value:.6g} (exact)"
        if math.isinf(self.high) or not 0.5 <= (above / below if below else math.inf) <= 2:
            return f"{self.value:.4g} in [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.6g} ± {max(below, above):.2g}"


def mean_estimate(
    draws: Tensor, *, scale: float = 1.0, offset: float = 0.0, bound: float = 0.0
) -> Estimate:
    """``offset`` plus ``scale`` times the mean of independent draws, with Student's interval.

    Args:
        draws: (draws,), independent and of one distribution.
        scale: Factor of the mean.
        offset: What is known without drawing.
        bound: Error that is not random, added to both ends.

    Returns:
        The estimate; with a single draw its interval is infinite.
    """
    count = len(draws)
    value = offset + scale * draws.mean().item()
    if count < 2:
        return Estimate(value=value, standard_error=math.inf, low=-math.inf, high=math.inf)
    error = abs(scale) * draws.std().item() / math.sqrt(count)
    half = student(count - 1) * error + bound
    return Estimate(value=value, standard_error=error, low=value - half, high=value + half)


def positive_mean(draws: Tensor, *, scale: float, offset: float) -> Estimate:
    """As :func:`mean_estimate` for draws above zero, with an interval even on a logarithmic axis.

    Squares are skewed: a mean that came out low has a spread that came out low, so that an even
    interval misses the truth above it too often.

    Args:
        draws: (draws,), none negative.
        scale: Factor of the mean, not negative.
        offset: What is known without drawing.

    Returns:
        The estimate.
    """
    even = mean_estimate(draws, scale=scale, offset=offset)
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Eigenpairs:
    """Extreme eigenpairs of a symmetric operator, each with a bound on its error.

    Attributes:
        which: ``largest``, ``smallest``, ``both`` or ``magnitude``.
        values: (k,), float64, on the CPU. Descending; the most negative first for ``smallest``, by
            descending magnitude for ``magnitude``.
        vectors: (P, k), orthonormal, in the dtype and on the device of the operator.
        residuals: (k,), norms of A u - λ u. An eigenvalue lies within each of its value, without
            any assumption.
        bounds: (k,), error of each value: at most its residual, and as small as its square over the
            gap where the values are apart. The sharper one assumes that none is missed.
        multiplicities: (k,), how many of the values are equal to each within their bounds.
        at_least: (k,), whether a multiplicity may be larger: the cluster at which the list ends.
        converged: (k,), whether a bound met the tolerance; false where products ran out.
        missed_probability: Probability, over the random start of the last run, that this run
            overlooked an eigenvalue beyond the last value by more than its tolerance: at most this.
            1 where it was not checked, 0 where all eigenvalues were seen.
        limits: An eigenvalue that is not among the values lies between these two, but for a
            probability of 1e-3 at each end; infinite where it was not checked.
        round_off: What each bound holds for rounding, in units of the eigenvalues.
        products: Products of the operator with one vector that were used.

    Source:
        Bounds: Li & Li 2005, "A note on eigenvalues of perturbed Hermitian matrices", Theorem 2.
        Probability: by the Christoffel function of the run's own moments (Akhiezer 1965, "The
        classical moment problem", section 2.5), for blocks and random starts as derived in
        ``curvature.certificate``; after Kuczynski & Wozniakowski 1992, "Estimating the largest
        eigenvalue by the power and Lanczos algorithms with a random start".
    """

    which: str
    values: Tensor
    vectors: Tensor
    residuals: Tensor
    bounds: Tensor
    multiplicities: Tensor
    at_least: Tensor
    converged: Tensor
    missed_probability: float
    limits: tuple[float, float]
    round_off: float
    products: int

    @property
    def largest(self) -> Estimate:
        """The largest of the values, exact to its bound."""
        return self._estimate(int(self.values.argmax()))

    @property
    def smallest(self) -> Estimate:
        """The smallest (most negative) of the values, exact to its bound."""
        return self._estimate(int(self.values.argmin()))

    def _estimate(self, position: int) -> Estimate:
        return Estimate.exact(self.values[position].item(), self.bounds[position].item())

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.values)

    def __str__(self) -> str:
        """A table: value, bound, residual, multiplicity."""
        lines = ["        eigenvalue        bound     residual  multiplicity"]
        for number in range(len(self)):
            more = "≥ " if bool(self.at_least[number]) else ""
            mark = "" if bool(self.converged[number]) else "  not converged"
            lines.append(
                f"{self.values[number].item():18.10g} {self.bounds[number].item():12.2e} "
                f"{self.residuals[number].item():12.2e} "
                f"{more + str(int(self.multiplicities[number])):>13}{mark}"
            )
        low, high = self.limits
        lines.append(
            f"{self.products} products; missed one beyond these with probability ≤ "
            f"{self.missed_probability:.1g}, one outside [{low:.4g}, {high:.4g}] with ≤ 0.001"
        )
        return "\n".join(lines)


def clusters(values: Tensor, widths: Tensor) -> Tensor:
    """Number of each sorted value's cluster: neighbours within both their widths are one."""
    apart = values.diff().abs() > widths[1:] + widths[:-1]
    return torch.cat([torch.zeros(min(1, len(values)), dtype=torch.int64), apart.cumsum(0)])
