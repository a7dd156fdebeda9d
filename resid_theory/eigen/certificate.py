r"""Probability that a block Lanczos run from random vectors missed an eigenvalue.

Let V be a basis of the Krylov space of w random orthonormal vectors, its first columns, and Q the
vectors that wait to be multiplied, so that A V = V T + Q L. A unit eigenvector u with eigenvalue λ
has the coefficients g = [V, Q]ᵀ u, and uᵀ A V = λ uᵀ V says

    gᵀ M(λ) = 0   with   M(λ) = [T - λ; L],   |g| <= 1.

Its first w coefficients c = (start)ᵀ u are therefore in an ellipsoid, the image of the unit ball of
the left null space of M(λ). For w = 1 the half axis is the square root of the Christoffel function,
1 / sqrt(Σ p_j(λ)²), the largest mass at λ that the known moments admit. With T = Y Θ Yᵀ
and R = L Y the null space is h_i = <R_i, s> / (λ - θ_i), s free, so that c = Y_1 h.

For a random start c is not so small: its density is at most (n / 2π)^(w/2) in n dimensions, so

    P(c in the ellipsoid) <= Π (half axes) (n / 2)^(w/2) / Γ(w/2 + 1),

times sqrt(w) where c is the shortest of the images of a whole eigenspace: the smallest singular
value of a normal (w, w) matrix is below ε with a probability of at most ε sqrt(w) (Edelman 1988,
"Eigenvalues and condition numbers of random matrices"), for one entry it is ε sqrt(2 / π).

Beyond all Ritz values this falls as λ moves outwards: with D = (T - λ)⁻¹ the derivatives of
log|det c(s)| and of the normalization are -Σ 1/|λ - θ_i| and at most +Σ 1/|λ - θ_i|. At a Ritz
value one axis is as long as the eigenvector's own coefficients: a single random vector says nothing
about a second copy. With w vectors the other axes are short, so up to w - 1 copies are counted
surely. Near θ_i its h_i is taken to be free, which makes the ellipsoid larger and hides no λ.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

_DOUBLINGS = 30
_BISECTIONS = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Certificate:
    """Upper bounds on the probability that a run from random vectors missed an eigenvalue."""

    dimension: int  # n, of the space from which the start was drawn
    draws: int  # w, number of independent random vectors in the start
    # (m + q, m), T above L, in a basis whose first w vectors are the start; q = 0 where the Krylov
    # space is invariant, so that it holds every distinct eigenvalue.
    ladder: Tensor
    noise: float  # rounding of a product along one eigenvector, positive
    # Bounds known so far: questions to one run concern the same positions again.
    _known: dict[tuple[float, int | None], float] = field(init=False, default_factory=dict)

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values θ, ascending, their vectors' first coefficients Y_1 and residuals R."""
        steps = self.ladder.shape[1]
        inside = self.ladder[:steps]
        values, vectors = torch.linalg.eigh((inside + inside.T) / 2)
        return values, vectors[: self.draws], self.ladder[steps:] @ vectors

    @property
    def values(self) -> Tensor:
        """Ritz values, ascending."""
        return self._parts[0]

    def _beyond(self, edge: float, sign: int) -> tuple[list[int], list[tuple[float, int, int]]]:
        """Numbers of the Ritz values beyond an edge; the middles of neighbours, with theirs."""
        numbers = (sign * self.values > sign * edge).nonzero().flatten().tolist()
        middles = (self.values[numbers][1:] + self.values[numbers][:-1]) / 2
        return numbers, list(zip(middles.tolist(), numbers, numbers[1:], strict=False))

    def missed_beyond(self, edge: float, sign: int, *, enough: float = 1.0) -> float:
        """Bound for an eigenvalue, or a copy, above an edge (``sign`` 1) or below it (-1)."""
        # A bound above ``enough`` is not the largest: one position shows that it is too large.
        worst = 0.0
        for position, near in self._doubtful(edge, sign):
            worst = max(worst, self.missed_at(position, near=near))
            if worst > enough:
                break
        return worst

    def _doubtful(self, edge: float, sign: int) -> Iterator[tuple[float, int | None]]:
        """Positions beyond an edge with the largest bounds, with Ritz values that are free."""
        yield edge, None
        numbers, middles = self._beyond(edge, sign)
        for i in numbers[::sign]:  # from the edge, where most is missed, outwards
            yield self.values[i].item(), i
        for x, *pair in middles[::sign]:
            yield from ((x, i) for i in pair)

    def missed_apart(self, edge: float, sign: int) -> float:
        """Bound for an eigenvalue beyond an edge that is far from all Ritz values."""
        # The largest over the edge, the middles between the Ritz values beyond it, and a point as
        # far outside as the last two are apart.
        numbers, middles = self._beyond(edge, sign)
        points = [edge, *(x for x, _, _ in middles)]
        if len(numbers) > 1:
            ends = self.values[numbers[-2:][::-1] if sign > 0 else numbers[:2]]
            points.append((2 * ends[0] - ends[1]).item())
        return max(self.missed_at(x) for x in points)

    def missed_at(self, position: float, *, near: int | None = None) -> float:
        """Bound for an eigenvalue at a position; the Ritz value ``near`` has a free coefficient."""
        if (position, near) not in self._known:
            self._known[position, near] = self._missed_at(position, near)
        return self._known[position, near]

    def _missed_at(self, position: float, near: int | None) -> float:
        rows, columns = self.ladder.shape
        if rows == columns:  # every eigenvalue is seen, as often as there are random vectors
            together = (self.values - position).abs() <= self.noise * self.dimension**0.5
            return float(near is not None and int(together.sum()) >= self.draws)
        if rows < columns + self.draws or rows + self.draws > self.dimension:
            # The space is about to be complete: the next block would be smaller. Its ellipsoids are
            # flat, but λ is not given, and those of all λ together are not.
            return 1.0
        # The probability that a random c is in the image of the unit ball.
        halves, draws = torch.linalg.svdvals(self.ellipsoid(position, near=near)), self.draws
        factor = draws / 2 * math.log(self.dimension / 2) - math.lgamma(draws / 2 + 1)
        factor += math.log(draws) / 2
        return math.exp(min(0.0, float(halves.log().sum()) + factor))

    def ellipsoid(self, position: float, *, near: int | None = None) -> Tensor:
        """A map (w, q + m) of a ball onto the possible c of an eigenvector with this eigenvalue."""
        values, start, residuals = self._parts
        gaps = position - values
        if near is not None:
            gaps[near] = 0.0
        gaps.masked_fill_(gaps.abs() < self.noise, self.noise)
        pulled = (residuals / gaps).T
        if near is not None:
            pulled[near] = 0.0
        # The square root of (I + BᵀB)⁻¹ up to a rotation, which is the unit ball's metric.
        _, upper = torch.linalg.qr(torch.cat([torch.eye(pulled.shape[1]), pulled]))
        # Whatever rounding adds to one coefficient; at a Ritz value it is any.
        blurred = self.noise * start / gaps
        inside = torch.linalg.solve_triangular(upper, start @ pulled, upper=True, left=False)
        return torch.cat([inside, blurred], 1)

    def edge(self, sign: int, missed: float, *, inner: float) -> float:
        """The innermost number, not inside ``inner``, beyond which so improbably one is missed."""
        # Inwards past one Ritz value after another, to the middle of the gaps between them; then as
        # far into the last gap as possible. Infinite where nothing is excluded.
        order = torch.arange(len(self.values))
        order = order.flip(0) if sign > 0 else order
        places = [int(i) for i in order if sign * self.values[i] > sign * inner]
        stops = [*self.values[places].tolist(), inner]
        reach = float(torch.linalg.matrix_norm(self.ladder, 2)) or 1.0
        outermost = self.values[order[0]].item()
        tried = (outermost + sign * reach * 2**i for i in range(_DOUBLINGS))
        found = next((x for x in tried if self.missed_at(x) <= missed), sign * math.inf)
        if math.isinf(found):
            return found
        passed = 0
        for number, place in enumerate(places):
            inside = (stops[number] + stops[number + 1]) / 2
            doubtful = [(inside, None), (stops[number], place)]
            if number > 0:
                doubtful += [(found, i) for i in (places[number - 1], place)]
            if any(self.missed_at(x, near=i) > missed for x, i in doubtful):
                break
            found, passed = inside, number + 1
        stop, step = stops[passed], found - stops[passed]
        while abs(step) > self.noise and self.missed_at(stop + step / 2) <= missed:
            step /= 2
        if abs(step) <= self.noise:
            return stop
        less = step / 2
        for _ in range(_BISECTIONS):
            middle = (less + step) / 2
            enough = self.missed_at(stop + middle) <= missed
            less, step = (less, middle) if enough else (middle, step)
        return stop + step
