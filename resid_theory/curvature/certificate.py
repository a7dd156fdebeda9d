r"""How surely a Lanczos run from a random start would have seen a more extreme eigenvalue.

Let q be uniform on the unit sphere of n dimensions, and let the largest Ritz value of its Krylov
space of m vectors be τ. Suppose that the operator has an eigenvalue λ > τ, with unit eigenvector u.
For every polynomial p of degree m - 1 the vector p(A) q is in the space, so its Rayleigh quotient
is at most τ: the sum of (λ_i - τ) p(λ_i)² c_i² over all eigenpairs is not positive. With p the
Chebyshev polynomial of [a, τ], where a is a lower bound of the spectrum, every λ_i up to τ gives at
least (a - τ) c_i² and every other one something positive, hence

    (λ - τ) T(x)² c² <= τ - a,   with c = <u, q>,  x = 1 + 2 (λ - τ) / (τ - a).

A random c is rarely so small: P(|c| <= y) <= y sqrt(2 n / π). What follows is the probability that
a run misses λ; it falls geometrically with every product where a gap separates λ from τ.

Where further outliers lie below λ the gap is wider past them. Let θ_1 >= θ_2 >= ... be the Ritz
values. A vector p(A) q of the space with p(θ_1) = ... = p(θ_j) = 0 is orthogonal to the first j
Ritz vectors, because their residuals are orthogonal to the space, so its Rayleigh quotient is at
most θ_{j+1}. With τ = θ_{j+1} and p the product of all (x - θ_i), i <= j, and of the Chebyshev
polynomial of degree m - 1 - j, the same steps give

    (λ - τ) T(x)² c² Π (λ - θ_i)² <= (τ - a) Π (θ_i - a)²,

which holds for every j; the smallest of these probabilities is taken.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Certificate"]

_PAST = 10  # Ritz values at an end that a polynomial may vanish at; more cost more than they gain


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a run from random vectors tells about the ends of a spectrum.

    Attributes:
        dimension: n, of the space the start was drawn from.
        degree: m - 1, of the polynomials at hand.
        draws: Independent random vectors in the start.
        values: Ritz values, ascending, at least one.
        margin: How far the spectrum may reach beyond the Ritz values: norm of the last links.
        is_complete: Whether the space is invariant, so that it has seen every eigenvalue.
    """

    dimension: int
    degree: int
    draws: int
    values: Sequence[float]
    margin: float
    is_complete: bool

    def missed(self, edge: float, sign: int) -> float:
        """Probability that an eigenvalue beyond an edge was missed.

        Args:
            edge: In units of the eigenvalues.
            sign: 1 for eigenvalues above the edge, -1 for those below.

        Returns:
            An upper bound, in [0, 1]; 1 where the run has found one itself.

        Example:
            >>> run = Certificate(dimension=10**5, degree=5, draws=1, values=(-1.0, 1.0),
            ...     margin=0.0, is_complete=False)
            >>> run.missed(10.0, 1) < 1e-3
            True
        """
        ends = self._from_the_end(sign)
        gap, spread = sign * edge - ends[0], ends[0] - ends[-1] + self.margin
        if self.is_complete and gap >= 0:
            return 0.0
        if gap <= 0 or spread == 0:
            return 1.0
        floor = ends[-1] - self.margin
        past = range(min(_PAST, self.degree, len(ends) - 1) + 1)
        log_small = min(self._log_chance(sign * edge, ends[: j + 1], floor) for j in past)
        return math.exp(min(0.0, self.draws * log_small))

    def _from_the_end(self, sign: int) -> list[float]:
        """Ritz values as seen from an end, descending."""
        return list(self.values[::-1]) if sign > 0 else [-value for value in self.values]

    def _log_chance(self, edge: float, ends: Sequence[float], floor: float) -> float:
        """Logarithm of the probability for one start, past all but the last of some Ritz values."""
        *zeros, top = ends
        if top <= floor:
            return 0.0  # nothing is left to bound the others by
        degree, ratio = self.degree - len(zeros), (edge - top) / (top - floor)
        angle = math.acosh(1 + 2 * ratio)
        log_chebyshev = degree * angle + math.log1p(math.exp(-2 * degree * angle)) - math.log(2)
        log_zeros = sum(math.log((zero - floor) / (edge - zero)) for zero in zeros)
        log_square = 0.5 * math.log(2 * self.dimension / math.pi / ratio)
        return log_square + log_zeros - log_chebyshev

    def limit(self, sign: int, doubt: float) -> float:
        """The least edge beyond which nothing was missed, but for a probability.

        Args:
            sign: 1 for the upper end, -1 for the lower one.
            doubt: The probability that is put up with.

        Returns:
            In units of the eigenvalues; infinite where no edge is far enough.
        """
        low, high = self.values[0], self.values[-1]
        start = high if sign > 0 else low
        if self.is_complete:
            return start
        spread = high - low + self.margin
        if self.degree == 0 or spread == 0:
            return sign * math.inf
        near, far = 0.0, 1.0
        while self.missed(start + sign * far * spread, sign) > doubt and far < 1e12:
            near, far = far, 2 * far
        for _ in range(40):
            middle = (near + far) / 2
            enough = self.missed(start + sign * middle * spread, sign) <= doubt
            near, far = (near, middle) if enough else (middle, far)
        return start + sign * far * spread
