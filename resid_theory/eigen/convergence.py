"""What a search for extreme eigenvalues knows after each step, and what may still hide from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from resid_theory.eigen.certificate import Certificate
from resid_theory.eigen.krylov import Krylov, Ritz
from resid_theory.eigen.ritz_bounds import Wanted, error_bounds

__all__ = ["DOUBT", "SearchState"]

DOUBT = 1e-3  # probability of a missed eigenvalue at which looking for one ends
_SMALL = 1e-2  # of the largest magnitude: smaller eigenvalues are held to an absolute tolerance
# Of spectra whose middle is half known, bounds of one in 200 were 20 % too small by 0.25, of one in
# 1,200 by 0.03.
_RESOLVED = {True: 0.03, False: 0.25}
_MOST_EXTRA = 16  # vectors that are set aside beside those asked for


@dataclass(kw_only=True)
class SearchState:
    """What the search knows between two steps.

    Attributes:
        wanted: Which pairs.
        tolerance: As in ``eigenpairs``.
        verify: As there.
        ritz: Of the last product.
        columns: Positions of the pairs asked for among its values.
        bounds: Of these values.
        targets: Errors that are good enough.
        edges: Beyond which nothing may be missed, by sign; none until the pairs met the tolerance.
        certificate: Of the last run, unless it was restarted.
        found: What the last run found beyond the edges; all of it in the first run.
        allowance: Steps at which the run gives up to be sure.
        slack: How far the edges are from the last pairs.
        later: Whether this is not the first run.
    """

    wanted: Wanted
    tolerance: float
    verify: bool = True
    ritz: Ritz | None = None
    columns: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    bounds: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    targets: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    edges: dict[int, float] = field(default_factory=dict)
    certificate: Certificate | None = None
    found: int = 0
    allowance: int | None = None
    slack: float = math.inf
    later: bool = False

    def read(self, krylov: Krylov) -> None:
        """Take in what the last product told."""
        ritz = krylov.ritz()
        self.ritz, self.columns = ritz, self.wanted.columns(ritz.values)
        self.bounds = self.bounds_of(ritz)[self.columns]
        values = ritz.values[self.columns].abs()
        floor = 3 * ritz.noise + 2 * krylov.asymmetry
        relative = values.clamp_min(_SMALL * krylov.scale)
        self.targets = (self.tolerance * relative).clamp_min(floor)
        self.found, self.certificate = krylov.multiplied, None
        if not self.later and self.is_settled:
            self.set_edges()
        if self.edges and krylov.restarts == 0:
            self.certificate = krylov.certificate()
        if self.later and self.edges:
            own = krylov.own_values
            self.found = int(sum((s * own > s * edge).sum() for s, edge in self.edges.items()))

    def bounds_of(self, ritz: Ritz) -> Tensor:
        """Error bounds of all its values; those that are not verified assume that none was missed.

        Args:
            ritz: Values with their residuals.

        Returns:
            (l + m,), as in :func:`error_bounds`.
        """
        return error_bounds(ritz, self.wanted, resolved=_RESOLVED[self.verify])

    @property
    def is_settled(self) -> bool:
        """Whether as many as are wanted meet the tolerance."""
        enough = len(self.columns) >= self.wanted.total
        return enough and bool((self.bounds <= self.targets).all())

    @property
    def missed(self) -> float:
        """Probability that the last run missed an eigenvalue, or a copy, beyond the edges."""
        return self._total(Certificate.missed)

    @property
    def room(self) -> float:
        """Probability that it missed one that is apart from those found."""
        return self._total(Certificate.apart)

    def _total(self, chance: Callable[[Certificate, float, int], float]) -> float:
        if not self.edges or self.certificate is None:
            return 1.0
        run = self.certificate
        return min(1.0, sum(chance(run, edge, sign) for sign, edge in self.edges.items()))

    @property
    def is_crowded(self) -> bool:
        """Whether a value was found as often as the run's start has vectors, or it is not known."""
        if self.certificate is None:
            return True
        values = self.certificate.values
        near = values[[i for sign in self.edges for i in self.listed(sign)]]
        together = (near[:, None] - near).abs() <= 2 * float(self.bounds.max())
        return bool((together.sum(1) >= self.certificate.draws).any())

    @property
    def reach(self) -> float:
        """How far apart two values may be and still be one, in units of the eigenvalues."""
        return float(torch.maximum(self.bounds, self.targets).max())

    def listed(self, sign: int) -> list[int]:
        """Numbers of the last run's own Ritz values at an end that are asked for."""
        if self.certificate is None or sign not in self.edges:
            return []
        inside = sign * self.certificate.values > sign * self.edges[sign] - 2 * self.reach
        return inside.nonzero()[:, 0].tolist()

    @property
    def others(self) -> Tensor:
        """Positions of the Ritz values that were not asked for."""
        assert self.ritz is not None
        rest = torch.ones(len(self.ritz.values), dtype=torch.bool)
        rest[self.columns] = False
        return rest.nonzero()[:, 0]

    @property
    def locked(self) -> Tensor:
        """Positions to set aside: those asked for, and others that do not move the edges."""
        assert self.ritz is not None
        if not self.edges:
            return self.columns
        others = self.others
        residuals = self.ritz.residuals[others]
        # By Weyl's inequality their coupling moves no eigenvalue further than the edges allow for.
        close = others[residuals <= self.slack / _MOST_EXTRA**0.5]
        outermost = self.ritz.values[close].abs().argsort(descending=True, stable=True)
        return torch.cat([self.columns, close[outermost][:_MOST_EXTRA]])

    def set_edges(self) -> None:
        """Beyond which values the next run looks for more."""
        assert self.ritz is not None
        if len(self.columns) < self.wanted.total:
            self.edges = {}
            return
        values, self.slack = self.ritz.values[self.columns], math.inf
        slack = torch.maximum(self.bounds, self.targets)
        for sign in self.wanted.signs:
            position = self.wanted.edge(values, sign)
            last = values[position].item()
            outermost = abs(last) if self.wanted.which == "magnitude" else sign * last
            self.edges[sign] = sign * (outermost + slack[position].item())
            self.slack = min(self.slack, slack[position].item())

    def limits(self, complete: bool) -> tuple[float, float]:
        """Between which two numbers all other eigenvalues are.

        Args:
            complete: Whether all eigenvalues are known.

        Returns:
            As the attribute of ``Eigenpairs``.
        """
        assert self.ritz is not None
        if complete:
            return self.ritz.values[0].item(), self.ritz.values[-1].item()
        if self.certificate is None or not self.edges:
            return -math.inf, math.inf
        others = self.others
        above = self.ritz.values[others] + self.ritz.residuals[others]
        below = self.ritz.values[others] - self.ritz.residuals[others]
        low, high = (
            self.certificate.limit(sign, DOUBT, listed=len(self.listed(sign))) for sign in (-1, 1)
        )
        return min([low, *below.tolist()]), max([high, *above.tolist()])

    def overlooked(self, values: Tensor, bounds: Tensor) -> Tensor:
        """Probability, for each value, that the last run missed a further copy of it.

        Args:
            values: Of the result.
            bounds: Their errors.

        Returns:
            1 where the list ends within a cluster.
        """
        chances = torch.ones(len(values), dtype=torch.float64)
        if self.certificate is None or not self.edges:
            return chances
        assert self.ritz is not None
        others = self.others
        seen, reach = self.ritz.values[others], self.ritz.residuals[others]
        pairs = zip(values.tolist(), bounds.tolist(), strict=True)
        for position, (value, bound) in enumerate(pairs):
            if bool(((seen - value).abs() <= reach + bound).any()):
                continue  # the list ends within a cluster
            chances[position] = self.certificate.copies(value - 2 * bound, value + 2 * bound)
        return chances
