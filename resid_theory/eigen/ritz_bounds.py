"""The goal of a search for eigenvalues, and bounds on their distance from Ritz values."""

from dataclasses import dataclass

import torch
from torch import Tensor

from resid_theory._check import check_choice, check_int, check_positive, check_within
from resid_theory.eigen.krylov import Ritz

_ENDS = ("largest", "smallest", "both", "magnitude")
_BEYOND = 8  # values beyond the wanted ones that may show a gap
# A value beyond the wanted ones counts as a single eigenvalue while its residual is at most this
# share of its distance to the next one; with and without verification. Of spectra whose middle is
# half known, bounds of one in 200 were 20 % too small by 0.25, of one in 1,200 by 0.03.
_RESOLVED = {True: 0.03, False: 0.25}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The wanted eigenpairs, and their selection from sorted Ritz values."""

    which: str  # one of ``_ENDS``
    k: int  # number of pairs; at each end for ``both``
    tolerance: float  # relative error at which a pair has converged
    verify: bool = True  # whether to verify that none is missed
    missed: float = 1e-3  # probability of a missed one at which a search ends

    def __post_init__(self) -> None:
        check_choice("which", self.which, _ENDS)
        check_int("k", self.k)
        check_positive("tolerance", self.tolerance)
        check_within("missed", self.missed, 0, 1, "()")

    @property
    def total(self) -> int:
        """Number of wanted values."""
        return 2 * self.k if self.which == "both" else self.k

    @property
    def signs(self) -> tuple[int, ...]:
        """The ends concerned: 1 above, -1 below."""
        return {"largest": (1,), "smallest": (-1,)}.get(self.which, (1, -1))

    def columns(self, values: Tensor) -> Tensor:
        """Positions in an ascending list, in the order of the result."""
        count = len(values)
        descending = torch.arange(count - 1, -1, -1)
        if self.which == "largest" or self.total >= count and self.which == "both":
            return descending[: self.total]
        if self.which == "smallest":
            return torch.arange(min(self.k, count))
        if self.which == "both":
            return torch.cat([descending[: self.k], descending[-self.k :]])
        return descending[values[descending].abs().argsort(descending=True)][: self.k]

    def useful(self, values: Tensor) -> Tensor:
        """Positions of the values on which the bounds of the wanted ones rest."""
        count = len(values)
        most = min(self.k + _BEYOND, count)
        ends = [
            torch.arange(count - most, count) if s > 0 else torch.arange(most) for s in self.signs
        ]
        return torch.cat(ends).unique()

    def edge(self, values: Tensor, sign: int) -> int:
        """Position, in the values of the result, of the last one at an end."""
        if self.which == "both":
            return min(self.k, len(values)) - 1 if sign > 0 else max(0, len(values) - self.k)
        return len(values) - 1


def error_bounds(ritz: Ritz, goal: Goal) -> Tensor:
    """Error bound of every Ritz value, rounding included; sharp only for the wanted ones."""
    # At most the residuals: Lehmann's bounds from the 1, 2, ... outermost Ritz values at an end,
    # where they are apart (for one value Temple's inequality). Without verification, they assume
    # that none is missed.
    best, columns = ritz.residuals.clone(), goal.columns(ritz.values)
    for sign in goal.signs:
        total = len(best)
        order = torch.arange(total - 1, -1, -1) if sign > 0 else torch.arange(total)
        count = int(torch.isin(order[: goal.k], columns).cumprod(0).sum())
        most = min(count + _BEYOND, total) - 1
        values, residuals = sign * ritz.values[order], ritz.residuals[order].tolist()
        gram = ritz.residual_gram(order[:most])
        spread, gaps = gram.diagonal().cumsum(0).sqrt().tolist(), (-values.diff()).tolist()
        # Numbers: operations on single entries would take most of the time.
        places = values.tolist()
        for j in range(1, most + 1):
            last, gap = places[j - 1], min(gaps[max(0, j - 2) : j])
            if j > count and residuals[j - 1] > _RESOLVED[goal.verify] * gap:
                break  # a Ritz value in the middle of many may stand for more than one eigenvalue
            # The next eigenvalue is assumed to be at most the next Ritz value plus its residual.
            # This may not have converged, so only half of the gap is used: it doubles the bounds
            # at most.
            floor = (last + places[j] + residuals[j]) / 2
            if last - floor > spread[j - 1]:
                shifts = lehmann(values[:j], gram[:j, :j], floor) - values[:j]
                # Rounding in a product is that of a matrix that differs by the noise.
                sharp = shifts.clamp_min(0) + ritz.noise
                best[order[:j]] = torch.minimum(best[order[:j]], sharp)
    return best


def lehmann(values: Tensor, gram: Tensor, floor: float) -> Tensor:
    """Upper bounds on the j eigenvalues above a floor μ, from j Ritz values θ, both descending."""
    # The eigenvalues of θ + (θ - μ)^-½ Eᵀ E (θ - μ)^-½, where E are the residuals of the Ritz
    # vectors (Lehmann 1963): the i-th eigenvalue lies between θ_i and the i-th of these.
    scales = (values - floor).rsqrt()
    return torch.linalg.eigvalsh(torch.diag(values) + scales[:, None] * gram * scales).flip(0)
