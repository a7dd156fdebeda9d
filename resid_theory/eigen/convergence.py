"""Convergence of a search for extreme eigenvalues, and the probability that it missed one."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from resid_theory.eigen.certificate import Certificate
from resid_theory.eigen.krylov import Krylov, Ritz
from resid_theory.eigen.ritz_bounds import Goal, error_bounds

_SMALL = 1e-2  # of the largest magnitude: smaller eigenvalues are held to an absolute tolerance
_MOST_EXTRA = 16  # vectors that are locked beside the wanted ones


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchState:
    """Result of one step of a search."""

    goal: Goal
    ritz: Ritz
    columns: Tensor  # positions of the wanted Ritz values
    bounds: Tensor  # error bounds of these
    targets: Tensor  # errors that are small enough
    # Numbers beyond which nothing may be missed, at the upper end (1) and the lower one (-1); none
    # until all pairs converged.
    edges: dict[int, float]
    certificate: Certificate | None  # of this run; None after a restart, or without edges
    found: int  # number of values that this run found beyond the edges; all in the first run

    @classmethod
    def after(
        cls, krylov: Krylov, goal: Goal, edges: dict[int, float], *, first: bool
    ) -> "SearchState":
        """The state after a step; in the first run the edges follow the pairs that converged."""
        ritz = krylov.ritz()
        columns = goal.columns(ritz.values)
        relative = ritz.values[columns].abs().clamp_min(_SMALL * krylov.scale)
        floor = 3 * ritz.noise + 2 * krylov.asymmetry
        state = cls(
            goal=goal,
            ritz=ritz,
            columns=columns,
            bounds=error_bounds(ritz, goal)[columns],
            targets=(goal.tolerance * relative).clamp_min(floor),
            edges=edges,
            certificate=None,
            found=krylov.multiplied,
        )
        if first and state.is_settled:
            state = replace(state, edges=state.new_edges())
        if state.edges and krylov.restarts == 0:
            state = replace(state, certificate=krylov.certificate())
        if state.edges and not first:
            own = torch.linalg.eigvalsh(krylov.symmetric)
            found = int(sum((s * own > s * edge).sum() for s, edge in state.edges.items()))
            state = replace(state, found=found)
        return state

    @property
    def is_settled(self) -> bool:
        """True if as many as are wanted meet the tolerance."""
        enough = len(self.columns) >= self.goal.total
        return enough and bool((self.bounds <= self.targets).all())

    @property
    def missed(self) -> float:
        """Probability that the run missed an eigenvalue, or a copy of one, beyond the edges."""
        return self._total(Certificate.missed_beyond)

    @property
    def is_verified(self) -> bool:
        """True if this probability is as small as was asked for."""
        enough = self.goal.missed
        return self._total(partial(Certificate.missed_beyond, enough=enough)) <= enough

    @property
    def missed_apart(self) -> float:
        """Probability that the run missed an eigenvalue that is apart from those found."""
        return self._total(Certificate.missed_apart)

    def _total(self, chance: Callable[[Certificate, float, int], float]) -> float:
        if not self.edges or self.certificate is None:
            return 1.0
        run = self.certificate
        return min(1.0, sum(chance(run, edge, sign) for sign, edge in self.edges.items()))

    @property
    def is_crowded(self) -> bool:
        """True if a value may have more copies: as many were found as the start has vectors."""
        if self.certificate is None:
            return True
        # The run's own values among the wanted ones; two that are closer than the reach may be one.
        values, reach = self.certificate.values, 2 * float(self._slack.max())
        near = torch.cat([values[s * values > s * x - reach] for s, x in self.edges.items()])
        together = (near[:, None] - near).abs() <= 2 * float(self.bounds.max())
        return bool((together.sum(1) >= self.certificate.draws).any())

    @property
    def _slack(self) -> Tensor:
        """Distance of an edge from each wanted value."""
        return torch.maximum(self.bounds, self.targets)

    @property
    def _others(self) -> Tensor:
        """Positions of the Ritz values that are not wanted."""
        rest = torch.ones(len(self.ritz.values))
        rest[self.columns] = 0.0
        return rest.nonzero().flatten()

    @property
    def to_lock(self) -> Tensor:
        """Positions to lock: the wanted ones, and others that do not move the edges."""
        if not self.edges:
            return self.columns
        others = self._others
        residuals = self.ritz.residuals[others]
        # By Weyl's inequality their coupling moves no eigenvalue further than the edges allow for.
        slack = min(float(self._slack[place]) for place in self._last.values())
        close = others[residuals <= slack / _MOST_EXTRA**0.5]
        outermost = self.ritz.values[close].abs().argsort(descending=True)
        return torch.cat([self.columns, close[outermost][:_MOST_EXTRA]])

    @property
    def _last(self) -> dict[int, int]:
        """Position of the last wanted value at each end."""
        return {sign: self.goal.edge(self.columns, sign) for sign in self.goal.signs}

    def new_edges(self) -> dict[int, float]:
        """Numbers beyond which the next run looks for more."""
        edges: dict[int, float] = {}
        if len(self.columns) < self.goal.total:
            return edges
        for sign, place in self._last.items():
            last = self.ritz.values[self.columns[place]].item()
            outermost = abs(last) if self.goal.which == "magnitude" else sign * last
            edges[sign] = sign * (outermost + self._slack[place].item())
        return edges

    def certified(self, bounds: Tensor) -> tuple[Tensor, Tensor, tuple[float, float]]:
        """Bounds that hold where copies are hidden, which values have none, limits of the rest."""
        # Beyond an edge there are as many eigenvalues as Ritz values, so that the i-th is that of
        # the i-th; inside of it, the i-th may be a hidden copy, which is at most at the edge.
        values, noise, wanted = self.ritz.values, self.ritz.noise, torch.zeros_like(bounds)
        wanted[self.columns] = 1.0
        hidden, limits = torch.full_like(bounds, math.inf), []
        for sign in (-1, 1):
            edge, order = self._innermost(sign), (sign * values).argsort(descending=True)
            listed = (
                order[wanted[order].cumprod(0).bool()] if sign in self.goal.signs else order[:0]
            )
            hidden[listed] = torch.minimum(hidden[listed], sign * (edge - values[listed]))
            others = (sign * values + self.ritz.residuals)[wanted == 0].tolist()
            limits.append(sign * max([sign * edge + noise, *others]))
        wide = torch.maximum(bounds, hidden.clamp_min(0) + noise)
        held = torch.where(hidden.isfinite(), wide, bounds)
        return held, hidden < 0, (limits[0], limits[1])

    def _innermost(self, sign: int) -> float:
        """The innermost number at an end beyond which hardly an eigenvalue is missed, or inf."""
        if self.certificate is None or self.missed > self.goal.missed:
            return sign * math.inf
        others = self.ritz.values[self._others]
        inner = (others if len(others) else -sign * self.ritz.values.abs().max()[None]) * sign
        found = sign * self.certificate.edge(
            sign, self.goal.missed, inner=sign * inner.max().item()
        )
        return sign * min(found, sign * self.edges.get(sign, sign * math.inf))
