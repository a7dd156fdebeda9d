"""Construction of schedules from samples: paths of the columns and the distances they keep."""

import math
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import as_tensor, check_finite
from resid_theory.theory.interpolation.norm_bounds import CLEARANCE, Nearest, nearest
from resid_theory.theory.interpolation.schedule import Schedule
from resid_theory.theory.interpolation.sphere_paths import (
    SpherePaths,
    great_arc,
    path_around,
    segment,
    unit,
)

_ON_SPHERE = 1e-6  # inputs normalised in float32 miss the sphere by a few 1e-7
_ROUNDINGS = 16  # of a product of unit vectors, times their dimension


def sphere_points(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Samples on the sphere, checked, (m, d) each, float64, on the CPU."""
    x, y = (_points(name, given) for name, given in (("x", x), ("y", y)))
    if x.shape != y.shape:
        raise ValueError(
            f"y: got shape {tuple(y.shape)}, needs that of x, {tuple(x.shape)}: one target per "
            "sample, in the same space"
        )
    if pair := _equal_pair(x):
        raise ValueError(f"x: samples {pair[0]} and {pair[1]} are equal, needs distinct inputs")
    return x, y


def _points(argument: str, given: Any) -> Tensor:
    points = as_tensor(argument, given).detach().to("cpu", torch.float64, copy=True)
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
    first = torch.full((len(points),), len(points))
    first.scatter_reduce_(0, group, torch.arange(len(points)), "amin")
    return first[group]


def _equal_pair(points: Tensor) -> tuple[int, int] | None:
    """Numbers of two equal points."""
    first = _first_equal(points)
    rows = (first != torch.arange(len(points))).nonzero().flatten()
    return (int(first[rows[0]]), int(rows[0])) if len(rows) else None


def exact_schedule(x: Tensor, y: Tensor) -> Schedule:
    """Every column to its own target."""
    if pair := _equal_pair(y):
        raise ValueError(
            f"y: samples {pair[0]} and {pair[1]} have one target, which no net with all norms "
            "below 1 gives to both; needs distinct targets, or mode='perturbed' or 'merge'"
        )
    separation = _separation(nearest(x, y), x, y)
    paths = [
        path_around(x[row], y[row], unit(torch.cat([y[:row], x[row + 1 :]])), separation / 2)
        for row in range(len(x))
    ]
    return Schedule(
        starts=x, ends=y, paths=SpherePaths.of(paths), fixed=x, separation=separation,
        moving=(x != y).any(1).nonzero().flatten(),
        approaches=x.new_full((len(x),), math.inf),
    )  # fmt: skip


def merging_schedule(x: Tensor, y: Tensor, *, tolerance: float) -> Schedule:
    """Every column to within a tolerance of its target, which others may share."""
    # On the sphere to a quarter of the separation from the target, then straight towards it.
    separation = _separation(nearest(x, y, merging=True), x, y)
    tolerance = min(tolerance, separation / 8)
    label = _first_equal(y)
    mates = label.unsqueeze(1) == label
    # Of K columns with one target the k-th stops at k/K of the tolerance: stopping all alike
    # would leave ever smaller gaps to columns that come the same way.
    stops = tolerance * mates.double().tril().sum(1) / mates.sum(1)
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
    return Schedule(
        starts=x,
        ends=torch.stack([pieces[-1].at(pieces[-1].length) for pieces in paths]),
        paths=SpherePaths.of(paths),
        moving=torch.arange(len(x)),
        approaches=x.new_tensor([sum(p.length for p in pieces[:-1]) for pieces in paths]),
        fixed=torch.stack(fixed),
        separation=separation,
        tolerance=tolerance,
        together=int(mates.sum(1).max()),
    )


def _separation(apart: Nearest, x: Tensor, y: Tensor) -> float:
    """The smallest distance, unless the gap, at least rho²/8, is lost in rounding of products."""
    off = max(float((points.norm(dim=1) - 1).abs().max()) for points in (x, y))
    lost = 2 * off + _ROUNDINGS * x.shape[1] * torch.finfo(torch.float64).eps / CLEARANCE
    needed = math.sqrt(16 * lost)
    if apart[0] <= needed:
        raise ValueError(
            f"x, y: {apart[1]} are {apart[0]:.3g} apart, needs more than {needed:.3g} to be kept "
            "apart in float64"
        )
    return apart[0]
