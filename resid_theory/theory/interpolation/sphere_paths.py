r"""Paths on the unit sphere that keep their distance from obstacles (the paper's "Lemma 2").

From ``start`` to ``end`` along the shorter great arc; where the arc comes nearer than ``radius`` to
an obstacle, along the circle of that chordal radius around it. With obstacles at least twice
the radius apart the circles do not interact, and the path is at most :math:`\pi^2/2` long.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from resid_theory.runtime.result import Result
from resid_theory.runtime.storable import Storable

_TINY = math.sqrt(torch.finfo(torch.float64).eps)  # below, a difference has lost its direction
_BESIDE = 0.5  # radians around the great arc that a chart shows
_ROUND = 96  # points of a drawn circle


@dataclass(frozen=True, kw_only=True, eq=False)
class Arc(Result):
    r"""An arc of a circle, or a straight line, parametrized by its length.

    At length s: ``center`` + ``cosine`` cos(rate s) + ``tangent`` sin(rate s) / rate.

    Attributes:
        center: (d,).
        cosine: From the center to the start, (d,); zero for a straight line.
        tangent: Unit vector along which the arc starts, (d,).
        rate: One over the circle's radius; 0 for a straight line.
        length: Length of the arc.
    """

    center: Tensor
    cosine: Tensor
    tangent: Tensor
    rate: float
    length: float

    def at(self, s: float) -> Tensor:
        """The point (d,) at a length in [0, ``length``]."""
        along = math.sin(self.rate * s) / self.rate if self.rate else s
        return self.center + math.cos(self.rate * s) * self.cosine + along * self.tangent


def segment(start: Tensor, end: Tensor) -> Arc:
    """The straight line between two points, (d,) each, which differ."""
    length, cosine = float((end - start).norm()), torch.zeros_like(start)
    tangent = (end - start) / length
    return Arc(center=start, cosine=cosine, tangent=tangent, rate=0.0, length=length)


def unit(v: Tensor) -> Tensor:
    """Vectors scaled to length 1."""
    return v / v.norm(dim=-1, keepdim=True)


def _normal_to(*orthonormal: Tensor) -> Tensor:
    """A unit vector orthogonal to orthonormal ones: the projected axis farthest from them."""
    basis = torch.stack(orthonormal)
    axis = int(basis.square().sum(0).argmin())
    normal = -basis.mT @ basis[:, axis]
    normal[axis] += 1.0
    return unit(normal)


def _across(start: Tensor, end: Tensor, *orthogonal: Tensor) -> tuple[float, Tensor]:
    """Length and direction of a vector's part across a unit vector; any direction for none."""
    across = end - (start @ end) * start
    size = float(across.norm())
    return size, unit(across) if size > _TINY else _normal_to(start, *orthogonal)


def great_arc(start: Tensor, end: Tensor) -> Arc:
    """Shorter great arc between two points of the sphere; one of them between antipodes.

    Args:
        start: Unit vector, (d,).
        end: Unit vector, (d,).

    Returns:
        The arc, of length at most pi.

    Example:
        >>> arc = great_arc(torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0]))
        >>> round(arc.length / torch.pi, 12)
        0.5
    """
    start, end = unit(start.to(torch.float64)), unit(end.to(torch.float64))
    size, tangent = _across(start, end)
    angle, origin = math.atan2(size, float(start @ end)), torch.zeros_like(start)
    return Arc(center=origin, cosine=start, tangent=tangent, rate=1.0, length=angle)


def _detour(obstacle: Tensor, enter: Tensor, leave: Tensor, angle: float) -> Arc:
    """The shorter way along the circle at an angle around an obstacle."""
    first, last = (unit(p - (obstacle @ p) * obstacle) for p in (enter, leave))
    turn = 2 * math.atan2(float((last - first).norm()), float((last + first).norm()))
    # Through the middle of the obstacle both ways are equally long. This needs a third dimension.
    _, tangent = _across(first, last, obstacle)
    center, radius = math.cos(angle) * obstacle, math.sin(angle)
    cosine, length = radius * first, radius * turn
    return Arc(center=center, cosine=cosine, tangent=tangent, rate=1.0 / radius, length=length)


def path_around(
    start: Tensor, end: Tensor, obstacles: Tensor, radius: float, *, short_of: float = 0.0
) -> list[Arc]:
    r"""Path on the sphere whose points are all at least ``radius`` from all obstacles.

    Args:
        start: Unit vector, (d,), d at least 3.
        end: Unit vector, (d,).
        obstacles: Unit vectors, (k, d), ``2 * radius`` apart and ``radius`` from both ends.
        radius: Chordal distance to keep, below sqrt(2).
        short_of: Chordal distance from ``end`` at which the path stops.

    Returns:
        Arcs, end to end.

    Source:
        arXiv:1611.01186, proof of Theorem 1, which suggests the smallest distance of two points as
        radius; the way around one obstacle may then lead through another, half of it is enough.

    Example:
        >>> x, y, p = torch.eye(3).double()[0], torch.eye(3)[1], torch.ones(1, 3).double() / 3**0.5
        >>> pieces = path_around(x, y, p, 0.8)
        >>> len(pieces), sum(piece.length for piece in pieces) > torch.pi / 2
        (3, True)
        >>> round(float((pieces[1].at(0.1) - p).norm()), 12)
        0.8
    """
    obstacles = unit(obstacles.to(torch.float64))
    arc, angle = great_arc(start, end), 2 * math.asin(radius / 2)
    length = arc.length - 2 * math.asin(short_of / 2)
    cos, sin = obstacles @ arc.cosine, obstacles @ arc.tangent
    height, middle = torch.hypot(cos, sin), torch.atan2(sin, cos)
    # Both ends are outside the forbidden caps: a cap cuts the arc all inside it or not at all.
    blocked = ((height > math.cos(angle)) & (middle > 0) & (middle < length)).nonzero().squeeze(1)
    pieces, done = [], 0.0
    for index in blocked[middle[blocked].argsort()].tolist():
        half = math.acos(math.cos(angle) / float(height[index]))
        enter, leave = float(middle[index]) - half, float(middle[index]) + half
        pieces.append(_part(arc, done, enter))
        pieces.append(_detour(obstacles[index], arc.at(enter), arc.at(leave), angle))
        done = leave
    return [*pieces, _part(arc, done, length)]


def _part(arc: Arc, begin: float, end: float) -> Arc:
    """The part of a great arc between two lengths."""
    tangent = math.cos(begin) * arc.tangent - math.sin(begin) * arc.cosine
    start = arc.at(begin)
    return Arc(center=arc.center, cosine=start, tangent=tangent, rate=1.0, length=end - begin)


@dataclass(frozen=True, kw_only=True, eq=False)
class SpherePaths(Storable):
    """Several paths side by side, each a sequence of pieces.

    Attributes:
        vectors: Centers, cosines and tangents, (3, paths, pieces, d); shorter paths are padded with
            pieces that are never reached.
        rates: (paths, pieces).
        begins: Length at which each piece begins, (paths, pieces), inf for padding.
        lengths: Lengths of the whole paths, (paths,).
    """

    vectors: Tensor
    rates: Tensor
    begins: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, paths: Sequence[Sequence[Arc]]) -> "SpherePaths":
        """Paths from their pieces, at least one each."""
        like, names = paths[0][0].center, ("center", "cosine", "tangent")
        lengths = [like.new_tensor([piece.length for piece in path]) for path in paths]
        begins = [nn.functional.pad(part[:-1], (1, 0)).cumsum(0) for part in lengths]
        rates = [like.new_tensor([piece.rate for piece in path]) for path in paths]
        vectors = [
            pad_sequence([torch.stack([getattr(p, name) for p in path]) for path in paths], True)
            for name in names
        ]
        return cls(
            vectors=torch.stack(vectors),
            rates=pad_sequence(rates, True),
            begins=pad_sequence(begins, True, math.inf),
            lengths=like.new_tensor([sum(piece.length for piece in path) for path in paths]),
        )

    def at(self, rows: Tensor, s: Tensor) -> Tensor:
        """Points (n, d) of the paths ``rows``, (n,), at the lengths ``s``, (n,)."""
        begins = self.begins[rows]
        piece = (begins <= s.unsqueeze(1)).sum(1) - 1
        along = s.unsqueeze(1) - begins.gather(1, piece.unsqueeze(1))
        turned = self.rates[rows, piece].unsqueeze(1) * along
        center, cosine, tangent = self.vectors[:, rows, piece]
        # sin(rate s) / rate, also for rate 0
        return (
            center + turned.cos() * cosine + along * torch.special.sinc(turned / math.pi) * tangent
        )

    def trace(self, row: int, count: int) -> Tensor:
        """Equidistant points of one path, (count, d), both ends included."""
        s = torch.linspace(0.0, 1.0, count, dtype=self.lengths.dtype) * self.lengths[row]
        return self.at(torch.full((count,), row), s)


@dataclass(frozen=True, kw_only=True, eq=False)
class PathChart(Result):
    """A chart of the sphere around one path, in radians: along the great arc, and away from it.

    Beyond three dimensions it shows the section by the great arc and the direction in which the
    path leaves it most; other points are projected on it.

    Attributes:
        arc: The great arc from start to end, (k, 2).
        path: The path, (k, 2).
        steps: Positions of the column after each unit, (steps + 1, 2).
        circles: Boundaries of the forbidden caps around obstacles near the path,
            (obstacles, k, 2).
    """

    arc: Tensor
    path: Tensor
    steps: Tensor
    circles: Tensor

    headline = "chart of a path past {0.circles.shape[0]} obstacles, in radians"
    tabulated = {
        "along_the_arc": lambda chart: chart.steps[:, 0],
        "away_from_it": lambda chart: chart.steps[:, 1],
    }


def chart(path: Tensor, steps: Tensor, obstacles: Tensor, radius: float) -> PathChart:
    """The chart of a path (k, d), its steps (n, d) and obstacles (j, d) of a chordal radius."""
    arc = great_arc(path[0], path[-1])
    s = torch.linspace(0.0, arc.length, len(path), dtype=path.dtype).unsqueeze(1)
    straight = s.cos() * arc.cosine + s.sin() * arc.tangent
    # Longitudes are counted from the arc's middle, so that they do not jump near its ends.
    half = arc.length / 2
    # The third axis, orthogonal to the arc's plane: along it the path leaves the plane most.
    plane = torch.stack([arc.cosine, arc.tangent])
    off = path - path @ plane.mT @ plane
    _, leaving = _across(arc.cosine, off[int(off.norm(dim=1).argmax())], arc.tangent)
    frame = torch.stack([arc.at(half), arc.at(half + math.pi / 2), leaving])
    drawn = [_section(p, radius) for p in obstacles @ frame.mT]
    circles = []  # those beside the arc, and in one piece of the chart
    for circle in (_map(circle, half) for circle in drawn if circle is not None):
        low, high = circle.amin(0).tolist(), circle.amax(0).tolist()
        beside = low[0] < arc.length + _BESIDE and high[0] > -_BESIDE
        if beside and low[1] < _BESIDE and high[1] > -_BESIDE and high[0] - low[0] < math.pi:
            circles.append(circle)
    return PathChart(
        arc=_map(straight @ frame.mT, half),
        path=_map(path @ frame.mT, half),
        steps=_map(steps @ frame.mT, half),
        circles=torch.stack(circles) if circles else path.new_zeros(0, _ROUND, 2),
    )


def _map(points: Tensor, middle: float) -> Tensor:
    """Longitude and latitude; ``middle`` is the longitude of the first axis."""
    x, y, z = points.unbind(1)
    return torch.stack([torch.atan2(y, x) + middle, torch.atan2(z, torch.hypot(x, y))], 1)


def _section(obstacle: Tensor, radius: float) -> Tensor | None:
    """The circle around an obstacle in the section of the chart; None where they do not meet."""
    height, level = float(obstacle.norm()), 1 - radius**2 / 2
    if height <= level:
        return None
    cos, middle = level / height, obstacle / height
    first = _normal_to(middle)
    turn = torch.linspace(0, 2 * math.pi, _ROUND, dtype=obstacle.dtype).unsqueeze(1)
    around = turn.cos() * first + turn.sin() * torch.linalg.cross(middle, first)
    return cos * middle + math.sqrt(1 - cos * cos) * around
