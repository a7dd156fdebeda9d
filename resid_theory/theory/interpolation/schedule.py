"""Whole itineraries of columns: every column along its own path, in steps of one unit each."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from resid_theory.theory.interpolation.single_move import Steps, widest_margin
from resid_theory.theory.interpolation.sphere_paths import SpherePaths

__all__ = ["DIRECTIONS", "Itinerary"]

DIRECTIONS = ("column", "margin")
_SCORES = 1 << 22  # products u·a_j held at a time
_STATIONS = 64  # of a path, where its cost is estimated
_TRIALS = 24  # of the search for the smallest share; each takes as long as the steps themselves
_CLOSE = 1e-3  # share of the units left idle, or of the step size, at which it ends


@dataclass(frozen=True, kw_only=True, eq=False)
class Itinerary:
    """Columns that travel one after the other, each by its own path.

    Attributes:
        starts: (n, d).
        ends: (n, d).
        paths: One for each column.
        moving: Which columns travel, (k,), ascending; the others are where they end.
        approaches: Length from which a column looks along its own fixed direction, (n,); inf for
            never.
        fixed: These directions, (n, d).
        direction: One of ``DIRECTIONS``.
    """

    starts: Tensor
    ends: Tensor
    paths: SpherePaths
    moving: Tensor
    approaches: Tensor
    fixed: Tensor
    direction: str

    def others(self, row: int) -> Tensor:
        """All other columns while one travels."""
        return torch.cat([self.ends[:row], self.starts[row + 1 :]])

    def highest(self, rows: Tensor, directions: Tensor) -> Tensor:
        """Largest product of directions with another column; at least -1, for a single column."""
        count = len(self.starts)
        numbers = torch.arange(count)
        found = []
        for row, look in zip(
            *(part.split(max(1, _SCORES // count)) for part in (rows, directions)), strict=True
        ):
            arrived = numbers < row.unsqueeze(1)
            scores = torch.where(arrived, look @ self.ends.mT, look @ self.starts.mT)
            scores[torch.arange(len(row)), row] = -1.0
            found.append(scores.amax(1))
        return torch.cat(found).clamp_min(-1.0)

    def look(self, rows: Tensor, s: Tensor, points: Tensor) -> Tensor:
        """Directions for columns at lengths of their paths."""
        if self.direction == "margin":
            pairs = zip(rows.tolist(), points, strict=True)
            return torch.stack([widest_margin(point, self.others(row)) for row, point in pairs])
        own = points / points.norm(dim=1, keepdim=True)
        return torch.where((s >= self.approaches[rows]).unsqueeze(1), self.fixed[rows], own)

    def march(self, share: float, most: int) -> Steps | None:
        """Steps of at most ``share`` times the gap; None if they are more than ``most``."""
        rows, points = self.moving, self.starts[self.moving]
        s, count = torch.zeros(len(rows), dtype=torch.float64), 0
        parts = []
        while len(rows):
            count += len(rows)
            if count > most:
                return None
            looking = self.look(rows, s, points)
            highest = self.highest(rows, looking)
            s = s + share * ((looking * points).sum(1) - highest).clamp_min(0.0)
            left = s < self.paths.lengths[rows]
            ends = self.ends[rows]
            ends[left] = self.paths.at(rows[left], s[left])
            parts.append((rows, points, ends, looking, highest))
            rows, s, points = rows[left], s[left], ends[left]
        return _in_order(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def equal_steps(self, units: int) -> Steps:
        """As many steps as units, none longer than all paths over (units - moving columns)."""
        counts = _shared_out(self.paths.lengths[self.moving], units)
        rows = torch.repeat_interleave(self.moving, counts)
        steps = torch.repeat_interleave(counts, counts)
        number = torch.arange(units) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        s = self.paths.lengths[rows] * number / steps
        points = self.paths.at(rows, s)
        points[number == 0] = self.starts[self.moving]
        ends = points.roll(-1, 0)
        ends[number == steps - 1] = self.ends[self.moving]
        looking = self.look(rows, s, points)
        highest = self.highest(rows, looking)
        return Steps(rows=rows, starts=points, ends=ends, directions=looking, highest=highest)

    def greedy_steps(self, units: int) -> Steps:
        """At most ``units`` steps whose largest ratio of length to gap is as small as possible."""
        high, low, half = self._one_step_share(), 0.0, len(self.moving) / 2
        best = self.march(high, units)
        assert best is not None
        share = min(0.9 * high, self._cost() / (units - half))
        for _ in range(_TRIALS):
            if len(best.rows) >= units * (1 - _CLOSE) or high <= low * (1 + _CLOSE):
                break
            found = self.march(share, 2 * units)
            taken = len(found.rows) if found is not None else 4 * units
            if found is not None and taken <= units:
                best, high = found, share
            else:
                low = share
            # Steps are about (integral of 1 / gap) / share, and half a step a column.
            used = max(half, taken - half)
            share *= used / (units * (1 - _CLOSE / 2) - half)
            if not low < share < high:
                share = (low * high) ** 0.5 if low else high / 2
        return best

    def _cost(self) -> float:
        """Integral of 1 / gap over all paths, by the midpoint rule."""
        number = (torch.arange(_STATIONS, dtype=torch.float64) + 0.5) / _STATIONS
        rows = self.moving.repeat_interleave(_STATIONS)
        s = number.repeat(len(self.moving)) * self.paths.lengths[rows]
        points = self.paths.at(rows, s)
        looking = points / points.norm(dim=1, keepdim=True)
        if self.approaches.isfinite().any():
            looking = self.look(rows, s, points)
        gaps = (looking * points).sum(1) - self.highest(rows, looking)
        return float((self.paths.lengths[rows] / gaps).sum()) / _STATIONS

    def _one_step_share(self) -> float:
        """A share with which every column arrives in one step."""
        points = self.starts[self.moving]
        looking = self.look(self.moving, torch.zeros(len(points), dtype=torch.float64), points)
        gaps = (looking * points).sum(1) - self.highest(self.moving, looking)
        return float((self.paths.lengths[self.moving] / gaps).max()) * (1 + 1e-12)

    def offsets(self, steps: Steps) -> Tensor:
        """From every other column to the moving one, (n, m, d); nan for itself."""
        numbers, rows = torch.arange(len(self.starts)), steps.rows.unsqueeze(1)
        others = torch.where((numbers < rows).unsqueeze(2), self.ends, self.starts)
        offsets = steps.starts.unsqueeze(1) - others
        return offsets.masked_fill((numbers == rows).unsqueeze(2), math.nan)


def _in_order(
    rows: Tensor, starts: Tensor, ends: Tensor, looking: Tensor, highest: Tensor
) -> Steps:
    """Steps sorted by column; within one they come in order already."""
    order = rows.argsort(stable=True)
    return Steps(
        rows=rows[order],
        starts=starts[order],
        ends=ends[order],
        directions=looking[order],
        highest=highest[order],
    )


def _shared_out(lengths: Tensor, units: int) -> Tensor:
    """Steps for each path: one at least, none longer than all lengths over (units - paths)."""
    spare = units - len(lengths)
    counts = (spare * lengths / lengths.sum().clamp_min(1e-300)).floor().to(torch.long) + 1
    for _ in range(units - int(counts.sum())):
        counts[int((lengths / counts).argmax())] += 1
    return counts
