"""Construction of schedules from samples: paths of the columns and the distances they keep."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import as_tensor, check_finite
from resid_theory.theory.interpolation.norm_bounds import (
    CLEARANCE,
    Nearest,
    nearest_of_paths,
    nearest_of_points,
)
from resid_theory.theory.interpolation.schedule import Schedule
from resid_theory.theory.interpolation.sphere_paths import (
    SpherePaths,
    great_arc,
    path_around,
    segment,
    unit,
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
        numbers: Number of each among the samples given, (n,): of equal ones the first.
        first: For each sample given the first one equal to it, (m,).
    """

    x: Tensor
    y: Tensor
    numbers: Tensor
    first: Tensor

    @classmethod
    def of(cls, x: Any, y: Any) -> "SpherePoints":
        """The distinct samples of arrays x and y, (m, d) each, in order."""
        x, y = (_points(name, given) for name, given in (("x", x), ("y", y)))
        if x.shape != y.shape:
            raise ValueError(
                f"y: got shape {tuple(y.shape)}, needs that of x, {tuple(x.shape)}: one target per "
                "sample, in the same space"
            )
        first = _first_equal(torch.cat([x, y], 1))
        numbers = first.unique()
        if pair := _equal_pair(x[numbers], numbers):
            raise ValueError(
                f"x: samples {pair[0]} and {pair[1]} are equal and have different targets, needs "
                "one target for each input"
            )
        return cls(x=x[numbers], y=y[numbers], numbers=numbers, first=first)


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


def _equal_pair(points: Tensor, numbers: Tensor) -> tuple[int, int] | None:
    """Numbers of two equal points."""
    first = _first_equal(points)
    rows = (first != torch.arange(len(points))).nonzero().flatten()
    return (int(numbers[first[rows[0]]]), int(numbers[rows[0]])) if len(rows) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A schedule and the distance that it keeps between columns.

    Attributes:
        schedule: Of the distinct samples.
        separation: rho.
        tolerance: Largest distance of the ends from the targets; 0 unless columns merge.
        together: Largest number of columns with one target.
    """

    schedule: Schedule
    separation: float
    tolerance: float
    together: int

    def norm_bound(self, units: int) -> float:
        """Upper bound of all norms with so many units; inf for too few units."""
        m, rho = len(self.schedule.moving), self.separation
        if not self.tolerance:
            # Equations (6) and (7) of the paper, with constants derived here: paths are at most
            # pi²/2 long, and on them the gap is at least rho²/8.
            spare, cost = units - m, 4 * math.pi**2 / rho**2
        else:
            # w² (L - 3m) <= m (8 pi² / rho² + (19 + 5.3 log(K rho / 4 epsilon)) / rho). On the
            # sphere the gap is at least rho²/16, and rho²/64 on the last arc, of length below
            # 0.29 rho; on the straight rest the distance shrinks geometrically, by a factor
            # 1 - w² rho / 5.3 or better a unit.
            shrinking = 19 + 5.3 * math.log(self.together * rho / (4 * self.tolerance))
            spare, cost = units - 3 * m, 8 * math.pi**2 / rho**2 + shrinking / rho
        if not m:
            return 0.0
        return math.sqrt(m * cost / (spare * (1 - CLEARANCE))) if spare > 0 else math.inf

    @classmethod
    def exact(cls, samples: SpherePoints) -> "Plan":
        """Every column to its own target."""
        x, y = samples.x, samples.y
        if pair := _equal_pair(y, samples.numbers):
            raise ValueError(
                f"y: samples {pair[0]} and {pair[1]} have one target, which no net with all norms "
                "below 1 gives to both; needs distinct targets, or mode='perturbed' or 'merge'"
            )
        nearest = nearest_of_paths(x, y)
        _check_apart(nearest, samples)
        radius = nearest[0] / 2
        paths = [
            path_around(x[row], y[row], unit(torch.cat([y[:row], x[row + 1 :]])), radius)
            for row in range(len(x))
        ]
        schedule = Schedule(
            starts=x, ends=y, paths=SpherePaths.of(paths), fixed=x,
            moving=(x != y).any(1).nonzero().flatten(),
            approaches=x.new_full((len(x),), math.inf),
        )  # fmt: skip
        return cls(schedule=schedule, separation=nearest[0], tolerance=0.0, together=1)

    @classmethod
    def merging(cls, samples: SpherePoints, *, tolerance: float) -> "Plan":
        """Every column to within a tolerance of its target, which others may share."""
        # On the sphere to a quarter of the separation from the target, then straight towards it.
        x, y = samples.x, samples.y
        nearest = nearest_of_points(x, y)
        _check_apart(nearest, samples)
        separation = nearest[0]
        tolerance = min(tolerance, separation / 8)
        label = _first_equal(y)
        mates = label.unsqueeze(1) == label
        # Of K columns with one target the k-th stops at k/K of the tolerance: stopping all alike
        # would leave ever smaller gaps to columns that come the same way.
        stops = tolerance * mates.tril().sum(1) / mates.sum(1)
        paths, fixed = [], []
        for row in range(len(x)):
            foreign = y[:row][label[:row] != label[row]].unique(dim=0)
            obstacles = unit(torch.cat([foreign, x[row + 1 :]]))
            arcs = path_around(x[row], y[row], obstacles, separation / 2, short_of=separation / 4)
            gate = arcs[-1].at(arcs[-1].length)
            end = y[row] + float(stops[row]) * (gate - y[row]) / (gate - y[row]).norm()
            paths.append([*arcs, segment(gate, end)])
            # Along this direction only columns near the target are beyond it: a point of the sphere
            # at chord c is not if the slope is at least 2 / c; columns at other targets, and those
            # on their way there, are at 3/4 of the separation.
            tangent = great_arc(y[row], gate).tangent
            fixed.append(unit(tangent + 8 / (3 * separation) * unit(y[row])))
        schedule = Schedule(
            starts=x,
            ends=torch.stack([pieces[-1].at(pieces[-1].length) for pieces in paths]),
            paths=SpherePaths.of(paths),
            moving=torch.arange(len(x)),
            approaches=x.new_tensor([sum(p.length for p in pieces[:-1]) for pieces in paths]),
            fixed=torch.stack(fixed),
        )
        together = int(mates.sum(1).max())
        return cls(schedule=schedule, separation=separation, tolerance=tolerance, together=together)


def _check_apart(nearest: Nearest, samples: SpherePoints) -> None:
    """Refuse points whose gap, at least rho²/8, is lost in the rounding of products."""
    x, y = samples.x, samples.y
    off = max(float((points.norm(dim=1) - 1).abs().max()) for points in (x, y))
    lost = 2 * off + _ROUNDINGS * x.shape[1] * torch.finfo(torch.float64).eps / CLEARANCE
    needed = math.sqrt(16 * lost)
    if nearest[0] <= needed:
        names = nearest[1]
        among = "" if len(samples.numbers) == len(samples.first) else " (of the distinct samples)"
        raise ValueError(
            f"x, y: {names}{among} are {nearest[0]:.3g} apart, needs more than {needed:.1g} to be "
            "kept apart in float64"
        )
