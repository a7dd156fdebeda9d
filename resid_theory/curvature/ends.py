"""Which Ritz values are asked for, and how far they can be from eigenvalues."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from resid_theory.curvature.krylov import Ritz

__all__ = ["ENDS", "Wanted", "error_bounds"]

ENDS = ("largest", "smallest", "both", "magnitude")
_TINY = torch.finfo(torch.float64).tiny  # a denominator where nothing is left to divide
_BEYOND = 3  # values beyond those asked for that may show a gap


@dataclass(frozen=True)
class Wanted:
    """Which of a sorted list of Ritz values are asked for."""

    which: str
    k: int

    @property
    def total(self) -> int:
        """How many."""
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
        return descending[values[descending].abs().argsort(descending=True, stable=True)][: self.k]

    def useful(self, values: Tensor) -> Tensor:
        """Positions of the values that the bounds of those asked for rest on."""
        count = len(values)
        most = min(self.k + _BEYOND, count)
        ends = [
            torch.arange(count - most, count) if s > 0 else torch.arange(most) for s in self.signs
        ]
        return torch.cat(ends).unique()

    def edge(self, values: Tensor, sign: int) -> int:
        """Position, in the values of the result, of the one that is last on an end."""
        if self.which == "both":
            return min(self.k, len(values)) - 1 if sign > 0 else max(0, len(values) - self.k)
        return len(values) - 1


def error_bounds(ritz: Ritz, wanted: Wanted) -> Tensor:
    """Error bound of every Ritz value, rounding included; sharp only for those asked for.

    Args:
        ritz: Values with their residuals.
        wanted: Which are asked for.

    Returns:
        (l + m,), at most the residuals.

    Source:
        Li & Li 2005, "A note on eigenvalues of perturbed Hermitian matrices", Theorem 2.
    """
    best = ritz.residuals.clone()
    for sign in wanted.signs:
        best = torch.minimum(best, _from_one_end(ritz, wanted.k, sign))
    return best


def _from_one_end(ritz: Ritz, count: int, sign: int) -> Tensor:
    """Li and Li's bound with the j outermost values against all others, for every useful j."""
    # For eigenvalues of a symmetric matrix with blocks H₁, E, Eᵀ, H₂ and those of its diagonal
    # blocks |λ_i - θ_i| <= 2 |E|² / (η_i + sqrt(η_i² + 4 |E|²)), η_i the distance from θ_i to the
    # eigenvalues of H₂. These lie up to the next Ritz value plus its residual, if none is missed.
    total, best = len(ritz.values), torch.full_like(ritz.values, math.inf)
    order = torch.arange(total - 1, -1, -1) if sign > 0 else torch.arange(total)
    most = min(count + _BEYOND, total) - 1
    if most < 1:
        return best
    ordered, lead = sign * ritz.values[order], order[:most]
    errors = ritz.leading_norms(lead)[:, None]  # of the first 1, 2, ... values: a row for each j
    beyond = ordered[1 : most + 1] + ritz.residuals[order[1 : most + 1]]
    gaps = ordered[:most] - beyond[:, None]
    sharp = 2 * errors**2 / (gaps + (gaps**2 + 4 * errors**2).sqrt()).clamp_min(_TINY)
    valid = (gaps > 0) & torch.ones(most, most, dtype=torch.bool).tril()
    best[lead] = torch.where(valid, sharp + ritz.noise, math.inf).amin(0)
    return best
