"""Schedules of moves: every column travels along its own path, in steps of one unit each."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from resid_theory.runtime.storable import Storable
from resid_theory.theory.interpolation.norm_bounds import CLEARANCE
from resid_theory.theory.interpolation.single_move import Steps
from resid_theory.theory.interpolation.sphere_paths import SpherePaths

_SCORES = 1 << 22  # products u·a_j held at a time
_STATIONS = 64  # points of a path at which its cost is estimated
_TRIALS = 24  # of the search for the smallest share; each takes as long as the steps themselves
_CLOSE = 1e-3  # share of the units left idle, or of the step size, at which the search ends


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule(Storable):
    """Columns that travel one after the other, each along its own path.

    Attributes:
        starts: (n, d).
        ends: (n, d).
        paths: One for each column.
        moving: Columns that travel, (k,), ascending; the others are where they end.
        approaches: Length of the path from which a unit looks along a column's own fixed direction,
            (n,); inf for never.
        fixed: These directions, (n, d).
        separation: rho, the distance that columns keep from one another.
        tolerance: Largest distance of the ends from the targets; 0 unless columns merge.
        together: Largest number of columns with one target.
    """

    starts: Tensor
    ends: Tensor
    paths: SpherePaths
    moving: Tensor
    approaches: Tensor
    fixed: Tensor
    separation: float
    tolerance: float = 0.0
    together: int = 1

    def norm_bound(self, units: int) -> float:
        """Upper bound of all norms with so many units; inf for too few units."""
        m, rho = len(self.moving), self.separation
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
        return math.sqrt(m * cost / (spare * (1 - CLEARANCE))) if spare > 0 else math.inf

    def others(self, row: int) -> Tensor:
        """All other columns while one travels: those before it have arrived."""
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
        return torch.cat(found)

    def look(self, rows: Tensor, s: Tensor, points: Tensor) -> Tensor:
        """Directions of the units for columns at lengths s of their paths."""
        own = points / points.norm(dim=1, keepdim=True)
        return torch.where((s >= self.approaches[rows]).unsqueeze(1), self.fixed[rows], own)

    def march(self, share: float, most: int) -> Steps | None:
        """Steps of at most ``share`` times the gap; None if they are more than ``most``."""
        rows, points = self.moving, self.starts[self.moving]
        s, count = points.new_zeros(len(rows)), 0
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
        joined = [torch.cat(part) for part in zip(*parts, strict=True)]
        order = joined[0].argsort(stable=True)  # by column; within one they come in order already
        return Steps.along(*(part[order] for part in joined))

    def steps(self, units: int, allocation: str) -> Steps:
        """Moves of all columns to their ends, at most ``units``, ``"uniform"`` or ``"greedy"``."""
        if units < len(self.moving):
            raise ValueError(
                f"units: got {units}, needs at least {len(self.moving)}, one for each sample that "
                "moves"
            )
        if not len(self.moving):
            none, lengths = self.starts[self.moving], self.paths.lengths[self.moving]
            return Steps.along(self.moving, none, none, none, lengths)
        return (self._equal_steps if allocation == "uniform" else self._greedy_steps)(units)

    def _equal_steps(self, units: int) -> Steps:
        """As many steps as units, none longer than all paths over (units - moving columns)."""
        lengths = self.paths.lengths[self.moving]
        spare = units - len(lengths)
        counts = (spare * lengths / lengths.sum()).nan_to_num().floor().to(torch.long) + 1
        for _ in range(units - int(counts.sum())):
            counts[int((lengths / counts).argmax())] += 1
        rows = torch.repeat_interleave(self.moving, counts)
        steps = torch.repeat_interleave(counts, counts)
        number = torch.cat([torch.arange(count) for count in counts.tolist()])
        s = self.paths.lengths[rows] * number / steps
        points = self.paths.at(rows, s)
        points[number == 0] = self.starts[self.moving]
        ends = points.roll(-1, 0)
        ends[number == steps - 1] = self.ends[self.moving]
        looking = self.look(rows, s, points)
        return Steps.along(rows, points, ends, looking, self.highest(rows, looking))

    def _greedy_steps(self, units: int) -> Steps:
        """At most ``units`` steps whose largest ratio of length to gap is as small as possible."""
        rows, half = self.moving, len(self.moving) / 2
        # With this share every column arrives in one step.
        gaps = self._gaps(rows, self.starts.new_zeros(len(rows)), self.starts[rows])
        high, low = float((self.paths.lengths[rows] / gaps).max()) * (1 + 1e-12), 0.0
        best = self.march(high, units)
        assert best is not None
        # The integral of 1 / gap over all paths, by the midpoint rule.
        number = (torch.arange(_STATIONS) + 0.5) / _STATIONS  # exact in any dtype
        stations = rows.repeat_interleave(_STATIONS)
        s = number.repeat(len(rows)) * self.paths.lengths[stations]
        gaps = self._gaps(stations, s, self.paths.at(stations, s))
        cost = float((self.paths.lengths[stations] / gaps).sum()) / _STATIONS
        share = min(0.9 * high, cost / (units - half))
        for _ in range(_TRIALS):
            if len(best.rows) >= units * (1 - _CLOSE) or high <= low * (1 + _CLOSE):
                break
            found = self.march(share, 2 * units)
            taken = len(found.rows) if found is not None else 4 * units
            if found is not None and taken <= units:
                best, high = found, share
            else:
                low = share
            # Steps are about cost / share, and half a step a column.
            share *= (taken - half) / (units * (1 - _CLOSE / 2) - half)
            if not low < share < high:
                share = (low * high) ** 0.5 if low else high / 2
        return best

    def _gaps(self, rows: Tensor, s: Tensor, points: Tensor) -> Tensor:
        """Distances by which columns at points of their paths stand out from all others."""
        looking = self.look(rows, s, points)
        return (looking * points).sum(1) - self.highest(rows, looking)

    def offsets(self, steps: Steps) -> Tensor:
        """From every other column to the moving one, (n, m, d); nan for itself."""
        numbers, rows = torch.arange(len(self.starts)), steps.rows.unsqueeze(1)
        others = torch.where((numbers < rows).unsqueeze(2), self.ends, self.starts)
        offsets = steps.starts.unsqueeze(1) - others
        return offsets.masked_fill((numbers == rows).unsqueeze(2), math.nan)
