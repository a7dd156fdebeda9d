"""Which Ritz values are asked for, and how far they can be from eigenvalues."""

from dataclasses import dataclass

import torch
from torch import Tensor

from resid_theory.eigen.krylov import Ritz

__all__ = ["ENDS", "Wanted", "error_bounds", "lehmann"]

ENDS = ("largest", "smallest", "both", "magnitude")
_BEYOND = 8  # values beyond those asked for that may show a gap


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


def error_bounds(ritz: Ritz, wanted: Wanted, *, resolved: float) -> Tensor:
    """Error bound of every Ritz value, rounding included; sharp only for those asked for.

    Args:
        ritz: Values with their residuals.
        wanted: Which are asked for.
        resolved: Values beyond them count as one eigenvalue each while their residuals are at most
            this share of the distance to the next one.

    Returns:
        (l + m,), at most the residuals.

    Source:
        Lehmann 1963, "Optimale Eigenwerteinschließungen"; for one value Temple's inequality.
    """
    best, columns = ritz.residuals.clone(), wanted.columns(ritz.values)
    for sign in wanted.signs:
        total = len(best)
        order = torch.arange(total - 1, -1, -1) if sign > 0 else torch.arange(total)
        count = int(torch.isin(order[: wanted.k], columns).cumprod(0).sum())
        _sharpen(best, ritz, order, count, sign, resolved)
    return best


def lehmann(values: Tensor, gram: Tensor, floor: float) -> Tensor:
    """Upper ends for the j largest eigenvalues of a matrix that has j eigenvalues above a floor.

    Args:
        values: Ritz values θ above the floor, descending, (j,).
        gram: Eᵀ E for the residuals E of their vectors, (j, j).
        floor: μ, in units of the eigenvalues.

    Returns:
        The eigenvalues of θ + (θ - μ)^-½ Eᵀ E (θ - μ)^-½, descending, (j,): the i-th eigenvalue
        lies between θ_i and the i-th of them.
    """
    scales = (values - floor).rsqrt()
    return torch.linalg.eigvalsh(torch.diag(values) + scales[:, None] * gram * scales).flip(0)


def _sharpen(
    best: Tensor, ritz: Ritz, order: Tensor, count: int, sign: int, resolved: float
) -> None:
    """Lehmann's bounds from the 1, 2, ... outermost Ritz values at an end, where they are apart."""
    most = min(count + _BEYOND, len(order)) - 1
    if most < 1:
        return
    values, residuals = sign * ritz.values[order], ritz.residuals[order]
    gram = ritz.residual_gram(order[:most])
    spread = gram.diagonal().cumsum(0).sqrt()
    gaps = -values.diff()
    for j in range(1, most + 1):
        last, gap = values[j - 1], gaps[max(0, j - 2) : j].min()
        if j > count and residuals[j - 1] > resolved * gap:
            break  # a Ritz value in the middle of many may stand for more than one eigenvalue
        # That the next eigenvalue is up to the next Ritz value plus its residual, which may not
        # have converged, is taken for half of the gap only: this doubles the bounds at most.
        floor = (last + values[j] + residuals[j]) / 2
        if last - floor > spread[j - 1]:
            shifts = lehmann(values[:j], gram[:j, :j], float(floor)) - values[:j]
            # Rounding in a product is that of a matrix that differs by the noise.
            sharp = shifts.clamp_min(0) + ritz.noise
            best[order[:j]] = torch.minimum(best[order[:j]], sharp)
