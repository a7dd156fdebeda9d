"""Extreme eigenpairs of a symmetric operator by block Lanczos, with bounds and multiplicities."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from resid_theory._check import choose, positive, whole
from resid_theory.curvature.certificate import Certificate
from resid_theory.curvature.ends import ENDS, Wanted, error_bounds
from resid_theory.curvature.krylov import Krylov, Locked, Ritz
from resid_theory.curvature.recorded import Operator, OutOfProducts, Products
from resid_theory.estimates import Eigenpairs, clusters

__all__ = ["BLOCK", "eigenpairs", "search"]

_DOUBT = 1e-3  # probability of a missed eigenvalue at which looking for one ends
_ASYMMETRY = {torch.float64: 1e-6, torch.float32: 1e-2}  # relative; above, A is not symmetric
_MEMORY = 1 << 31  # bytes of vectors that are held, unless k needs more
_MOST = 300  # vectors that are held: beyond, orthogonalizing costs more than it saves
BLOCK = 3  # random vectors of the first run: one would not see that an eigenvalue is double
_MARGIN = 60  # products that a run goes on for to be sure, after its pairs meet the tolerance
_PATIENCE = 0.25  # the same where nothing is verified, relative to what the run took so far
_ROOM = 0.1  # probability of one missed between those found at which such a run ends
_SMALL = 1e-2  # of the largest magnitude: smaller eigenvalues are held to an absolute tolerance
_MOST_EXTRA = 16  # vectors that are set aside beside those asked for
_WIDEST = 4  # of later runs' starts


def eigenpairs(
    A: Operator,
    k: int = 5,
    *,
    which: str = "largest",
    block: int | None = None,
    tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
    max_products: int | None = None,
    capacity: int | None = None,
    verify: bool = True,
    precision: torch.dtype | None = None,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Eigenpairs:
    """Extreme eigenvalues and eigenvectors of a symmetric operator, none missed, none twice.

    Block Lanczos with two Gram-Schmidt passes against all vectors and thick restarts. A run ends
    when the k pairs meet the tolerance and another eigenvalue beyond the k-th, a further copy of
    one included, would have had to hide from its random start with a probability of 1e-3 at most.
    A Krylov space holds as many copies of an eigenvalue as its start has vectors: where so many are
    found they are set aside, and runs from fresh random vectors in their complement follow.

    Args:
        A: (P, P), symmetric: a tensor, or anything with ``A @ vectors`` for (P, b) vectors, a
            shape, a dtype and a device. float32 products are orthogonalized with float64 sums.
        k: Pairs to find; at both ends each for ``which="both"``.
        which: ``largest``, ``smallest`` (most negative), ``both``, or ``magnitude`` (largest |λ|).
        block: Random vectors that the first run starts from; by default two, or one without
            ``verify``. Fewer than as many copies of an eigenvalue are counted in one run.
        tolerance: Error bound of each eigenvalue relative to its magnitude, or to a hundredth of
            the largest magnitude where that is more; never below what rounding allows.
        generator: Of the random starts; by default one with seed 0.
        max_products: Products with one vector to spend at most; pairs that did not converge by then
            say so.
        capacity: Vectors held at once; by default up to 300 within 2 GiB, and as many as k needs.
        verify: Whether to make sure that no pair and no copy is missing, with up to sixty products
            beyond those that the tolerance needs, or a run of its own. Without it a run ends when
            there is hardly room for another eigenvalue between those found; copies are not looked
            for.
        precision: In which A computes its products, where that is less than its dtype: that of a
            float32 net whose products are added up in float64. Bounds allow for its rounding.
        folder: Where to keep the products, so that a killed call continues when it is made again,
            with bit-identical results; one file a product. None for nowhere.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The pairs. Fewer than k where P is smaller.

    Raises:
        ValueError: If A is no symmetric operator, an argument is out of range, or the folder holds
            another run.

    Source:
        Wu & Simon 2000, "Thick-restart Lanczos method for large symmetric eigenvalue problems";
        Golub & Underwood 1977, "The block Lanczos method for computing eigenvalues".

    Example:
        >>> A = torch.diag(torch.tensor([7.0, 7.0, 7.0, 2.0, 1.0, -9.0]))
        >>> found = rt.eigenpairs(A, k=3, tolerance=1e-9)
        >>> found.values.round(decimals=6).tolist()
        [7.0, 7.0, 7.0]
    """
    generator = generator or torch.Generator().manual_seed(0)
    if max_products is not None:
        whole("max_products", max_products)
    with Products(
        A, folder=folder, limit=max_products, progress=progress, precision=precision
    ) as products:
        found, _ = search(
            products,
            Wanted(choose("which", which, ENDS), whole("k", k)),
            block=_width(block, max_products, verify),
            tolerance=positive("tolerance", tolerance),
            generator=generator,
            capacity=capacity,
            verify=verify,
        )
    return found


def _width(block: int | None, limit: int | None, verify: bool) -> int:
    if block is not None:
        return whole("block", block)
    usual = BLOCK if verify else 1
    return usual if limit is None else min(usual, limit)


@dataclass(kw_only=True)
class _State:
    """What the search knows between two steps."""

    wanted: Wanted
    tolerance: float
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
        self.bounds = error_bounds(ritz, self.wanted)[self.columns]
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

    @property
    def is_settled(self) -> bool:
        """Whether as many as are wanted meet the tolerance."""
        enough = len(self.columns) >= self.wanted.total
        return enough and bool((self.bounds <= self.targets).all())

    @property
    def missed(self) -> float:
        """Probability that the last run missed an eigenvalue, or a copy, beyond the edges."""
        return self._chance("missed")

    @property
    def room(self) -> float:
        """Probability that it missed one that is apart from those found."""
        return self._chance("apart")

    def _chance(self, which: str) -> float:
        if not self.edges or self.certificate is None:
            return 1.0
        ask = getattr(self.certificate, which)
        return min(1.0, sum(ask(edge, sign) for sign, edge in self.edges.items()))

    @property
    def is_crowded(self) -> bool:
        """Whether as many copies were found as the run's start has vectors: there may be more."""
        if self.certificate is None or not self.found:
            return self.certificate is None
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


def search(
    products: Products,
    wanted: Wanted,
    *,
    block: int,
    tolerance: float,
    generator: torch.Generator,
    capacity: int | None = None,
    verify: bool = True,
) -> tuple[Eigenpairs, Locked]:
    """Runs of block Lanczos until one finds nothing new.

    Args:
        products: The operator; its count goes on.
        wanted: Which pairs.
        block: Width of the first start.
        tolerance: As in :func:`eigenpairs`.
        generator: Of the starts.
        capacity: As in :func:`eigenpairs`.
        verify: As in :func:`eigenpairs`.

    Returns:
        The pairs, and locked vectors for further runs in their complement: the pairs' own, followed
        by those of others that converged on the way.
    """
    state = _State(wanted=wanted, tolerance=tolerance)
    locked, width, size = Locked.nothing(products), min(block, products.size), products.size
    room = _capacity(products, wanted, block, capacity)
    while True:
        krylov = Krylov(products, locked, width=width, capacity=room, generator=generator)
        in_budget = _run(krylov, state, verify)
        _check_symmetric(krylov)
        assert state.ritz is not None
        complete = krylov.offset + krylov.multiplied == size and krylov.restarts == 0
        enough = state.is_settled and (not verify or state.missed <= _DOUBT)
        given_up = state.is_settled and not krylov.is_invariant and not state.is_crowded
        if not in_budget or complete or not state.found or enough or given_up:
            break
        state.set_edges()
        locked = krylov.lock(state.ritz, state.locked)
        missing = wanted.total - len(state.columns)
        width = missing if missing > 0 else min(2 * state.found, _WIDEST) if state.later else 1
        width = max(1, min(width, size - len(state.columns), max(_WIDEST, block)))
        if not state.later:
            state.later, state.allowance = True, krylov.steps + _MARGIN
    if not verify:
        state.certificate = None
    missed = 0.0 if complete else state.missed
    return _result(krylov, state, missed, complete), krylov.lock(state.ritz, state.locked)


def _run(krylov: Krylov, state: _State, verify: bool) -> bool:
    """Grow one Krylov space until it has answered; False when the products ran out."""
    try:
        while True:
            if krylov.is_full:
                krylov.restart(_kept(krylov, state.wanted))
            krylov.extend()
            state.read(krylov)
            if krylov.is_invariant or (state.is_settled and _is_sure(krylov, state, verify)):
                return True
    except OutOfProducts:
        if state.ritz is None:
            limit = krylov.products.limit
            raise ValueError(f"max_products: got {limit}, needs at least the block") from None
        if krylov.multiplied == 0:
            state.found = 0
            state.certificate = None
            state.ritz = krylov.ritz()
            state.columns = state.wanted.columns(state.ritz.values)
        return False


def _is_sure(krylov: Krylov, state: _State, verify: bool) -> bool:
    """Whether a run whose pairs meet the tolerance has nothing left to find, or should give up."""
    if state.allowance is None:
        more = _MARGIN / krylov.width if verify else _PATIENCE * krylov.steps
        state.allowance = krylov.steps + math.ceil(more)
    if krylov.restarts or krylov.steps >= state.allowance:
        return True
    if not verify or krylov.width == 1 and state.found:
        return state.room <= _ROOM
    # Of a value with as many copies as the start has vectors, fresh ones show more.
    return state.missed <= _DOUBT or (state.found > 0 and state.is_crowded)


def _capacity(products: Products, wanted: Wanted, block: int, given: int | None) -> int:
    least = wanted.total + 3 * max(block, _WIDEST) + 8
    if given is not None:
        if whole("capacity", given) < min(least, products.size):
            raise ValueError(f"capacity: got {given}, needs at least {least} for these k and block")
        return given
    affordable = _MEMORY // (products.size * torch.finfo(products.dtype).bits // 8)
    return max(least, min(affordable, max(_MOST, 3 * least)))


def _kept(krylov: Krylov, wanted: Wanted) -> Tensor:
    """Ritz vectors to restart with: the wanted ones and half of the others, from the ends asked."""
    count = krylov.multiplied
    keep = min((count + wanted.total) // 2, count - 2 * krylov.waiting - 1)
    if wanted.which == "largest":
        return torch.arange(count - keep, count)
    if wanted.which == "smallest":
        return torch.arange(keep)
    low = keep // 2
    return torch.cat([torch.arange(low), torch.arange(count - (keep - low), count)])


def _check_symmetric(krylov: Krylov) -> None:
    limit = _ASYMMETRY[krylov.products.precision] * krylov.scale
    if krylov.asymmetry > limit:
        raise ValueError(
            f"A: is not symmetric: <u, A v> and <v, A u> differ by {krylov.asymmetry:.2g}, "
            f"A has norm {krylov.scale:.2g}; a product that changes from call to call "
            "(shuffled data, dropout, TF32) is the usual cause; needs a symmetric operator"
        )


def _result(krylov: Krylov, state: _State, missed: float, complete: bool) -> Eigenpairs:
    assert state.ritz is not None
    ritz, columns = (
        krylov.measure(state.ritz, state.wanted.useful(state.ritz.values)),
        state.columns,
    )
    values, bounds = ritz.values[columns], error_bounds(ritz, state.wanted)[columns]
    order = values.argsort(stable=True)
    numbers = torch.empty(len(order), dtype=torch.int64)
    numbers[order] = clusters(values[order], bounds[order] + ritz.noise)
    counts = torch.bincount(numbers)
    open_ended = torch.zeros(len(counts), dtype=torch.bool)
    if not complete:
        chances = _overlooked(state, values, bounds + ritz.noise)
        open_ended[numbers[chances > _DOUBT]] = True
    return Eigenpairs(
        which=state.wanted.which,
        values=values,
        vectors=krylov.lock(ritz, columns).vectors,
        residuals=ritz.residuals[columns],
        bounds=bounds,
        multiplicities=counts[numbers],
        at_least=open_ended[numbers],
        converged=bounds <= state.targets if len(state.targets) == len(bounds) else bounds < 0,
        missed_probability=missed,
        limits=_limits(state, complete),
        round_off=ritz.noise,
        products=krylov.products.count,
    )


def _limits(state: _State, complete: bool) -> tuple[float, float]:
    assert state.ritz is not None
    if complete:
        return state.ritz.values[0].item(), state.ritz.values[-1].item()
    if state.certificate is None or not state.edges:
        return -math.inf, math.inf
    others = state.others
    above = state.ritz.values[others] + state.ritz.residuals[others]
    below = state.ritz.values[others] - state.ritz.residuals[others]
    low, high = (
        state.certificate.limit(sign, _DOUBT, listed=len(state.listed(sign))) for sign in (-1, 1)
    )
    return min([low, *below.tolist()]), max([high, *above.tolist()])


def _overlooked(state: _State, values: Tensor, bounds: Tensor) -> Tensor:
    """Probability, for each value, that the last run missed a further copy of it."""
    chances = torch.ones(len(values), dtype=torch.float64)
    if state.certificate is None or not state.edges:
        return chances
    assert state.ritz is not None
    others = state.others
    seen, reach = state.ritz.values[others], state.ritz.residuals[others]
    for position, (value, bound) in enumerate(zip(values.tolist(), bounds.tolist(), strict=True)):
        if bool(((seen - value).abs() <= reach + bound).any()):
            continue  # the list ends within a cluster
        chances[position] = state.certificate.copies(value - 2 * bound, value + 2 * bound)
    return chances
