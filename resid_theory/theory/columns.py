r"""One column moved by one small unit (the paper's "Lemma 1"), and whole itineraries of columns.

A unit :math:`z \mapsto z + W_2 \mathrm{ReLU}(W_1 z + b)` whose only nonzero row is along u acts on
the half space beyond a threshold. With nothing but :math:`a_i` there, by

.. math:: \mathrm{gap} = u \cdot a_i - \max_{j \ne i} u \cdot a_j > 0,

it carries :math:`a_i` to any :math:`a'` and leaves the other columns as they are, with weights of
norm :math:`\sqrt{\|a' - a_i\| / \mathrm{gap}}`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from resid_theory.theory.sphere import Paths

__all__ = ["DIRECTIONS", "Itinerary", "Steps", "move_column", "widest_margin"]

DIRECTIONS = ("column", "margin")
_SCORES = 1 << 22  # products u·a_j held at a time
_TRIALS = 24  # of the search for the smallest share; each takes as long as the steps themselves
_CLOSE = 1e-4  # relative width at which it ends; norms are the share's square root

# Rows and positions of moving columns -> unit vectors to look along.
Look = Callable[[Tensor, Tensor, Tensor], Tensor]


def move_column(
    columns: Tensor, index: int, target: Tensor, *, direction: str = "column"
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The smallest unit that moves one column along a direction and leaves all others.

    Args:
        columns: Points, (m, d).
        index: Which one to move.
        target: Where to, (d,).
        direction: ``"column"``: along the column itself, the paper's choice, for points of the
            sphere; ``"margin"``: along the direction of largest gap, which works for any
            column outside the convex hull of the others.

    Returns:
        ``(W1, b, W2)``, (d, d), (d,), (d, d), with equal Frobenius norms of W1 and W2; one row and
        one column of them are not zero.

    Raises:
        ValueError: If the gap is not positive, so that no such unit exists along the direction.

    Source:
        Li, Jiao, Han & Weissman, "Demystifying ResNet", arXiv:1611.01186, Lemma 1, equations
        (11)-(14); constants re-derived.

    Example:
        >>> a = torch.eye(3, dtype=torch.float64)
        >>> w1, b, w2 = rt.theory.move_column(a, 0, torch.tensor([1.0, 0.5, 0.0]).double())
        >>> (a + (a @ w1.mT + b).relu() @ w2.mT).tolist()
        [[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
        >>> round(float(w1.norm() ** 2), 12)  # the step's length over the gap, 1
        0.5
    """
    columns, target = columns.to(torch.float64), target.to(torch.float64)
    others = torch.cat([columns[:index], columns[index + 1 :]])
    column = columns[index]
    looking = widest_margin(column, others) if direction == "margin" else column / column.norm()
    highest = (others @ looking).max() if len(others) else -column.norm()
    steps = Steps(
        rows=torch.zeros(1, dtype=torch.long),
        starts=column.unsqueeze(0),
        ends=target.unsqueeze(0),
        directions=looking.unsqueeze(0),
        highest=highest.unsqueeze(0),
    )
    if not float(steps.gaps) > 0:
        raise ValueError(
            f"direction: along {direction!r} column {index} does not stand out (gap "
            f"{float(steps.gaps):.3g}), needs a gap above 0; 'margin' finds one where it exists"
        )
    weights, bias = steps.units(clearance=0.0)
    return weights[0, 0], bias[0], weights[0, 1]


def widest_margin(point: Tensor, others: Tensor) -> Tensor:
    """The direction in which a point stands out most from others.

    Args:
        point: (d,).
        others: (k, d).

    Returns:
        Unit vector, (d,), from the nearest point of the others' convex hull to ``point``: the gap
        along it is the distance from the hull. Without others, or inside the hull: the point's own
        direction.

    Source:
        Nearest point by nonnegative least squares: the solution of min |P w|² + (sum w - 1)²,
        w >= 0, is proportional to the hull's weights (Lawson & Hanson 1974, chapter 23).
    """
    from scipy.optimize import nnls  # a third of a second to import

    if len(others):
        offsets = (others - point).numpy()
        system = np.vstack([offsets.T, np.ones(len(offsets))])
        wanted = np.zeros(len(system))
        wanted[-1] = 1.0
        weights, _ = nnls(system, wanted)
        away = -torch.from_numpy(offsets.T @ weights) / weights.sum()
        size = float(away.norm())
        if size > 64 * torch.finfo(torch.float64).eps:
            return away / size
    return point / point.norm()


@dataclass(frozen=True, kw_only=True, eq=False)
class Steps:
    """Moves of single columns, one unit each, in the order of the units.

    Attributes:
        rows: Which column each moves, (n,).
        starts: From where, (n, d).
        ends: To where, (n, d).
        directions: Unit vectors u along which the column stands out, (n, d).
        highest: Largest product of u with another column, (n,).
    """

    rows: Tensor
    starts: Tensor
    ends: Tensor
    directions: Tensor
    highest: Tensor

    @property
    def gaps(self) -> Tensor:
        """How far each column stands out, (n,)."""
        return (self.directions * self.starts).sum(1) - self.highest

    def units(self, *, clearance: float) -> tuple[Tensor, Tensor]:
        """Weights that make the moves.

        Args:
            clearance: Share of each gap by which the other columns stay below the threshold; the
                norms grow by 1 / sqrt(1 - clearance).

        Returns:
            Matrices (n, 2, d, d) and biases (n, d).
        """
        moves, open_gaps = self.ends - self.starts, (1 - clearance) * self.gaps
        sizes = (moves.norm(dim=1) / open_gaps).sqrt()
        count, width = moves.shape
        weights, bias = moves.new_zeros(count, 2, width, width), moves.new_zeros(count, width)
        weights[:, 0, 0] = sizes.unsqueeze(1) * self.directions
        weights[:, 1, :, 0] = moves / (sizes * open_gaps).clamp_min(1e-300).unsqueeze(1)
        bias[:, 0] = -sizes * (self.highest + clearance * self.gaps)
        return weights, bias


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
    paths: Paths
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
        s, parts, count = torch.zeros(len(rows), dtype=torch.float64), [], 0
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
        high = self._one_step_share()
        best = self.march(high, units)
        assert best is not None
        count = len(self.moving)
        low, guess = 0.0, high * count / units
        for _ in range(_TRIALS):
            if len(best.rows) == units or high <= low * (1 + _CLOSE):
                break
            found = self.march(guess, units)
            low, high = (guess, high) if found is None else (low, guess)
            best = best if found is None else found
            # Steps are about (integral of 1 / gap) / share, and half a step a column.
            used = max(len(best.rows) - count / 2, count / 2)
            guess = high * used / (units - count / 2)
            if not low < guess < high:
                guess = (low * high) ** 0.5 if low else high / 2
        return best

    def _one_step_share(self) -> float:
        """A share with which every column arrives in one step."""
        points = self.starts[self.moving]
        looking = self.look(self.moving, torch.zeros(len(points), dtype=torch.float64), points)
        gaps = (looking * points).sum(1) - self.highest(self.moving, looking)
        return float((self.paths.lengths[self.moving] / gaps).max()) * (1 + 1e-12)


def _in_order(rows: Tensor, starts: Tensor, ends: Tensor, looking: Tensor, highest: Tensor) -> Steps:
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
