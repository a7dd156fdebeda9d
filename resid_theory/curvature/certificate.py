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
"""

import math
from dataclasses import dataclass

__all__ = ["Certificate"]


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a run from random vectors tells about the ends of a spectrum.

    Attributes:
        dimension: n, of the space the start was drawn from.
        degree: m - 1, of the polynomials at hand.
        draws: Independent random vectors in the start.
        low: Smallest Ritz value.
        high: Largest Ritz value.
        margin: How far the spectrum may reach beyond the Ritz values: norm of the last links.
        is_complete: Whether the space is invariant, so that it has seen every eigenvalue.
    """

    dimension: int
    degree: int
    draws: int
    low: float
    high: float
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
            >>> run = Certificate(dimension=10**5, degree=5, draws=1, low=-1.0, high=1.0,
            ...     margin=0.0, is_complete=False)
            >>> run.missed(10.0, 1) < 1e-3
            True
        """
        top, bottom = (self.high, self.low) if sign > 0 else (-self.low, -self.high)
        gap, spread = sign * edge - top, top - bottom + self.margin
        if self.is_complete and gap >= 0:
            return 0.0
        if gap <= 0:
            return 1.0
        if spread == 0:
            return 1.0
        angle = math.acosh(1 + 2 * gap / spread)
        log_chebyshev = self.degree * angle + math.log1p(math.exp(-2 * self.degree * angle))
        log_chebyshev -= math.log(2)
        log_small = 0.5 * math.log(2 * self.dimension / math.pi * spread / gap) - log_chebyshev
        return math.exp(min(0.0, self.draws * log_small))

    def limit(self, sign: int, doubt: float) -> float:
        """The least edge beyond which nothing was missed, but for a probability.

        Args:
            sign: 1 for the upper end, -1 for the lower one.
            doubt: The probability that is put up with.

        Returns:
            In units of the eigenvalues; infinite where no edge is far enough.
        """
        start = self.high if sign > 0 else self.low
        if self.is_complete:
            return start
        spread = self.high - self.low + self.margin
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
