"""Distributions of masses at points and spread evenly over intervals, and their distance."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Masses:
    """A measure on the line.

    Attributes:
        places: (a,), of its atoms, in any order.
        weights: (a,), of these.
        starts: (b,), where intervals begin over which mass is spread evenly.
        ends: (b,), where they end; beyond the starts.
        spread: (b,), their masses.
    """

    places: Tensor
    weights: Tensor
    starts: Tensor
    ends: Tensor
    spread: Tensor

    @classmethod
    def sum(
        cls, measures: Sequence["Masses"], factor: float, places: Tensor, weights: Tensor
    ) -> "Masses":
        """Sum of measures, each times a factor, and of further atoms."""
        return cls(
            places=torch.cat([*(m.places for m in measures), places]),
            weights=torch.cat([*(factor * m.weights for m in measures), weights]),
            starts=torch.cat([m.starts for m in measures]),
            ends=torch.cat([m.ends for m in measures]),
            spread=torch.cat([factor * m.spread for m in measures]),
        )

    def below(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Mass up to and including some points, and mass per length behind each, (n,)."""
        # All breaks of the cumulative mass, and the points, in one sorted list.
        breaks = torch.cat([points, self.places, self.starts, self.ends]).unique()
        heights = self.spread / (self.ends - self.starts)
        slopes, jumps = torch.zeros_like(breaks), torch.zeros_like(breaks)
        slopes.index_add_(0, torch.searchsorted(breaks, self.starts), heights)
        slopes.index_add_(0, torch.searchsorted(breaks, self.ends), -heights)
        jumps.index_add_(0, torch.searchsorted(breaks, self.places), self.weights)
        slopes = slopes.cumsum(0)
        total = jumps.cumsum(0)
        total[1:] += (slopes[:-1] * breaks.diff()).cumsum(0)
        at = torch.searchsorted(breaks, points)
        return total[at], slopes[at]

    def distance(self, places: Tensor, weights: Tensor) -> float:
        """1-Wasserstein distance from atoms of the same total mass, in units of the line."""
        points = torch.cat([self.places, self.starts, self.ends, places]).unique()
        own, slopes = self.below(points)
        jumps = torch.zeros_like(points)
        other = jumps.index_add_(0, torch.searchsorted(points, places), weights).cumsum(0)
        # Between two points the difference of the cumulative masses is a straight line.
        widths, first = points.diff(), (own - other)[:-1]
        last = first + slopes[:-1] * widths
        sizes = first.abs() + last.abs()
        crossed = (first.square() + last.square()) / sizes
        return (widths * torch.where(first * last < 0, crossed, sizes)).sum().item() / 2
