"""Extreme eigenpairs with their error bounds, and clusters of equal eigenvalues."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from resid_theory.eigen.estimate import Estimate
from resid_theory.runtime.result import Columns, Result


@dataclass(frozen=True, kw_only=True, eq=False)
class Eigenpairs(Result):
    """Extreme eigenpairs of a symmetric operator, each with a bound on its error.

    Attributes:
        which: ``largest``, ``smallest``, ``both`` or ``magnitude``.
        values: (k,), float64, on the CPU. Descending; the most negative first for ``smallest``, by
            descending magnitude for ``magnitude``.
        vectors: (P, k), orthonormal, in the dtype and on the device of the operator.
        residuals: (k,), norms of A u - λ u. An eigenvalue lies within each of its value, without
            any assumption.
        bounds: (k,), largest distance of the i-th eigenvalue from the i-th value: the square of its
            residual over the gap where the values are apart, and the width of the cluster where
            hidden copies may take its place. They assume that no eigenvalue is missed beyond the
            edge that ``missed_probability`` is about.
        multiplicities: (k,), number of the values that are equal to each within their bounds; where
            all P eigenvalues are known, of those.
        at_least: (k,), whether a multiplicity may be larger: a cluster that was not resolved
            further, or at which the list ends.
        converged: (k,), whether a bound met the tolerance; false where the budget of products
            ended first.
        missed_probability: Upper bound on the probability, over the random start of the last run,
            that this run missed an eigenvalue beyond the last value by more than its tolerance.
            1 where it was not checked, 0 where all eigenvalues were seen.
        limits: Every eigenvalue that is not among the values lies between these two, except with
            probability ``accepted_miss`` at each end; infinite where it was not checked.
        accepted_miss: Probability of a missed eigenvalue at which the verification was to end.
        round_off: Part of each bound that covers rounding, in units of the eigenvalues.
        products: Number of products of the operator with one vector.

    Source:
        Bounds: Lehmann 1963, "Optimale Eigenwerteinschließungen".
        Probability: by the Christoffel function of the run's own moments (Akhiezer 1965, "The
        classical moment problem", section 2.5), for blocks and random starts as derived in
        ``eigen.certificate``; after Kuczynski & Wozniakowski 1992, "Estimating the largest
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
    accepted_miss: float = 1e-3

    def scaled(self, unit: float) -> "Eigenpairs":
        """The eigenpairs of the operator times a positive number."""
        names = ("values", "residuals", "bounds", "round_off")
        low, high = self.limits
        return replace(
            self, limits=(low * unit, high * unit), **{n: getattr(self, n) * unit for n in names}
        )

    def estimates(self, sign: int) -> tuple[Estimate, ...]:
        """The values with their bounds, descending for ``sign`` 1, ascending for -1."""
        order = self.values.argsort(descending=sign > 0)
        ends = zip(self.values[order].tolist(), self.bounds[order].tolist(), strict=True)
        return tuple(Estimate.exact(value, bound) for value, bound in ends)

    @property
    def largest(self) -> Estimate:
        """The largest of the values, exact to its bound."""
        return self.estimates(1)[0]

    @property
    def smallest(self) -> Estimate:
        """The smallest (most negative) of the values, exact to its bound."""
        return self.estimates(-1)[0]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.values)

    headline = (
        "Eigenpairs, {0.which}, {0.products} products; missed one beyond these with probability ≤ "
        "{0.missed_probability:.1g}, one outside [{0.limits[0]:.4g}, {0.limits[1]:.4g}] with ≤ "
        "{0.accepted_miss:.1g}"
    )
    tabulated = {
        "eigenvalue": "values",
        "bound": "bounds",
        "residual": "residuals",
        "multiplicity": "multiplicities",
        "at_least": "at_least",
        "converged": "converged",
    }

    def shown(self) -> Columns:
        """The pairs, their values in ten digits."""
        columns, counts = dict(self.table()), self.multiplicities.tolist()
        more = columns.pop("at_least").tolist()  # type: ignore[union-attr]
        return columns | {
            "eigenvalue": [f"{value:.10g}" for value in self.values.tolist()],
            "multiplicity": ["≥ " * m + str(count) for m, count in zip(more, counts, strict=True)],
        }


def clusters(values: Tensor, widths: Tensor) -> Tensor:
    """Cluster number of each sorted value: neighbours within both their widths are one."""
    apart = values.diff().abs() > widths[1:] + widths[:-1]
    return torch.cat([torch.zeros(min(1, len(values)), dtype=torch.int64), apart.cumsum(0)])
