"""From samples to itineraries: which column goes where, by which path, kept away from what."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import as_tensor, check_finite
from resid_theory.theory.interpolation.norm_bounds import (
    Nearest,
    merged_norm_bound,
    nearest_of_paths,
    nearest_of_points,
    norm_bound,
    perturbed,
)
from resid_theory.theory.interpolation.schedule import Itinerary
from resid_theory.theory.interpolation.sphere_paths import (
    Arc,
    SpherePaths,
    great_arc,
    path_around,
    segment,
)

__all__ = ["Plan", "SpherePoints"]

_ON_SPHERE = 1e-6  # inputs normalised in float32 miss the sphere by a few 1e-7
_ROUNDINGS = 16  # of a product of unit vectors, times their dimension


@dataclass(frozen=True, kw_only=True, eq=False)
class SpherePoints:
    """Distinct samples on the sphere, checked.

    Attributes:
        x: (n, d), float64, on the CPU.
        y: (n, d).
        numbers: Each one's number among the samples given, (n,): of equal ones the first.
        first: For each sample given the first one equal to it, (m,).
    """

    x: Tensor
    y: Tensor
    numbers: Tensor
    first: Tensor

    @classmethod
    def of(cls, x: Any, y: Any) -> "SpherePoints":
        """Samples from arrays.

        Args:
            x: (m, d).
            y: (m, d).

        Returns:
            The distinct ones, in order.

        Raises:
            ValueError: If shapes differ, d < 3, points are not on the sphere, or equal inputs have
                different targets.
        """
        x, y = (_points(name, given) for name, given in (("x", x), ("y", y)))
        if x.shape != y.shape:
            raise ValueError(
                f"y: got shape {tuple(y.shape)}, needs that of x, {tuple(x.shape)}: one target a "
                "sample, in the same space"
            )
        first = _first_equal(torch.cat([x, y], 1))
        numbers = first.unique()
        clash = _first_equal(x[numbers])
        for row in (clash != torch.arange(len(numbers))).nonzero().flatten().tolist()[:1]:
            a, b = int(numbers[clash[row]]), int(numbers[row])
            raise ValueError(
                f"x: samples {a} and {b} are equal and have different targets, needs one target "
                "for each input"
            )
        return cls(x=x[numbers], y=y[numbers], numbers=numbers, first=first)

    def moved_apart(
        self, *, noise: float, draws: int, generator: torch.Generator
    ) -> "SpherePoints":
        """The same with perturbed targets."""
        moved = perturbed(self.x, self.y, noise=noise, draws=draws, generator=generator)
        return replace(self, y=moved)


def _points(argument: str, given: Any) -> Tensor:
    points = as_tensor(argument, given).detach().to("cpu", torch.float64)
    if points.dim() != 2 or not len(points) or points.shape[1] < 3:
        raise ValueError(
            f"{argument}: got shape {tuple(points.shape)}, needs (m, d) with at least one sample "
            "and d >= 3: on a circle a column cannot pass another"
        )
    off = (check_finite(argument, points).norm(dim=1) - 1).abs()
    if float(off.max()) > _ON_SPHERE:
        row = int(off.argmax())
        raise ValueError(
            f"{argument}: sample {row} has norm {float(points[row].norm()):.6g}, needs 1 to "
            f"{_ON_SPHERE:g}: points on the unit sphere, {argument} / "
            f"{argument}.norm(dim=1, keepdim=True)"
        )
    return points


def _first_equal(points: Tensor) -> Tensor:
    """For each row the first row equal to it."""
    _, group = torch.unique(points, dim=0, return_inverse=True)
    first = torch.full((len(points),), len(points), dtype=torch.long)
    first.scatter_reduce_(0, group, torch.arange(len(points)), "amin")
    return first[group]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """An itinerary and how far it keeps columns apart.

    Attributes:
        itinerary: Of the distinct samples.
        separation: rho.
        tolerance: Largest distance of the ends from the targets; 0 unless columns merge.
        together: Largest number of columns with one target.
        clearance: Share of each gap left free.
    """

    itinerary: Itinerary
    separation: float
    tolerance: float
    together: int
    clearance: float

    def norm_bound(self, units: int) -> float:
        """What all norms stay below with so many units.

        Args:
            units: Number of units L.

        Returns:
            The bound; inf for too few units.
        """
        columns = len(self.itinerary.moving)
        if not columns:
            return 0.0
        if not self.tolerance:
            return norm_bound(columns, units, self.separation, clearance=self.clearance)
        return merged_norm_bound(
            columns,
            units,
            self.separation,
            self.tolerance,
            self.together,
            clearance=self.clearance,
        )

    @classmethod
    def exact(cls, samples: SpherePoints, *, direction: str, clearance: float) -> "Plan":
        """Every column to its own target.

        Args:
            samples: With distinct targets.
            direction: Of the units.
            clearance: Share of the gap left free.

        Returns:
            The plan.

        Raises:
            ValueError: If two targets are equal or points are too near.
        """
        x, y = samples.x, samples.y
        _check_distinct(samples)
        nearest = nearest_of_paths(x, y)
        _check_apart(nearest, x, y, samples, clearance)
        radius = nearest[0] / 2
        paths = [
            path_around(x[row], y[row], _unit(torch.cat([y[:row], x[row + 1 :]])), radius)
            for row in range(len(x))
        ]
        itinerary = Itinerary(
            starts=x,
            ends=y,
            paths=SpherePaths.of(paths),
            moving=(x != y).any(1).nonzero().flatten(),
            approaches=x.new_full((len(x),), math.inf),
            fixed=x,
            direction=direction,
        )
        return cls(
            itinerary=itinerary,
            separation=nearest[0],
            tolerance=0.0,
            together=1,
            clearance=clearance,
        )

    @classmethod
    def merging(
        cls, samples: SpherePoints, *, direction: str, clearance: float, tolerance: float
    ) -> "Plan":
        """Every column to within a tolerance of its target, which others may share.

        On the sphere to a quarter of the separation from the target, then straight towards it. Of K
        columns with one target the k-th stops at k/K of the tolerance: stopping all alike would
        leave ever smaller gaps to columns that come the same way.

        Args:
            samples: Targets may be equal.
            direction: Of the units on the sphere.
            clearance: Share of the gap left free.
            tolerance: Distance from the target, at most an eighth of the separation.

        Returns:
            The plan.

        Raises:
            ValueError: If points are too near.
        """
        x, y = samples.x, samples.y
        nearest = nearest_of_points(x, y)
        _check_apart(nearest, x, y, samples, clearance)
        separation = nearest[0]
        tolerance = min(tolerance, separation / 8)
        label = _first_equal(y)
        mates = label.unsqueeze(1) == label
        stops = tolerance * mates.tril().sum(1) / mates.sum(1)
        routes = [
            _merging_path(row, samples, label, separation, float(stops[row]))
            for row in range(len(x))
        ]
        itinerary = Itinerary(
            starts=x,
            ends=torch.stack([pieces[-1].at(pieces[-1].length) for pieces in routes]),
            paths=SpherePaths.of(routes),
            moving=torch.arange(len(x)),
            approaches=x.new_tensor([sum(p.length for p in pieces[:-1]) for pieces in routes]),
            fixed=torch.stack(
                [_approach(p[-1].center, y[row], separation) for row, p in enumerate(routes)]
            ),
            direction=direction,
        )
        return cls(
            itinerary=itinerary,
            separation=separation,
            tolerance=tolerance,
            together=int(mates.sum(1).max()),
            clearance=clearance,
        )


def _merging_path(
    row: int, samples: SpherePoints, label: Tensor, separation: float, stop: float
) -> list[Arc]:
    """On the sphere to a quarter of the separation from the target, then straight to ``stop``."""
    x, y = samples.x, samples.y
    foreign = y[:row][label[:row] != label[row]].unique(dim=0)
    obstacles = _unit(torch.cat([foreign, x[row + 1 :]]))
    arcs = path_around(x[row], y[row], obstacles, separation / 2, short_of=separation / 4)
    gate = arcs[-1].at(arcs[-1].length)
    end = y[row] + stop * (gate - y[row]) / (gate - y[row]).norm()
    return [*arcs, segment(gate, end)]


def _approach(gate: Tensor, target: Tensor, separation: float) -> Tensor:
    """The direction in which only columns near the target are beyond it."""
    # A point of the sphere at chord c from the target is not beyond it if the slope is at least
    # 2 / c; columns at other targets, and what they carry there, are at 3/4 of the separation.
    return _unit(great_arc(target, gate).tangent + 8 / (3 * separation) * _unit(target))


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=-1, keepdim=True)


def _check_distinct(samples: SpherePoints) -> None:
    equal = _first_equal(samples.y)
    for row in (equal != torch.arange(len(equal))).nonzero().flatten().tolist()[:1]:
        a, b = int(samples.numbers[equal[row]]), int(samples.numbers[row])
        raise ValueError(
            f"y: samples {a} and {b} have one target, which no net with all norms below 1 gives to "
            "both; needs distinct targets, or mode='perturbed' or 'merge'"
        )


def _check_apart(
    nearest: Nearest, x: Tensor, y: Tensor, samples: SpherePoints, clearance: float
) -> None:
    """Refuse points whose gap, at least rho²/8, drowns in the rounding of products."""
    off = max(float((points.norm(dim=1) - 1).abs().max()) for points in (x, y))
    lost = 2 * off + _ROUNDINGS * x.shape[1] * torch.finfo(torch.float64).eps / clearance
    needed = math.sqrt(16 * lost)
    if nearest[0] <= needed:
        names = nearest[1]
        among = "" if len(samples.numbers) == len(samples.first) else " (of the distinct samples)"
        raise ValueError(
            f"x, y: {names}{among} are {nearest[0]:.3g} apart, needs more than {needed:.1g} to be "
            "kept apart in float64"
        )
