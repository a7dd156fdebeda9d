"""Extreme eigenpairs of a symmetric operator by block Lanczos, with bounds and multiplicities."""

import math
from pathlib import Path

import torch
from torch import Tensor

from resid_theory._check import as_generator, check_choice, check_int, check_positive
from resid_theory.eigen.convergence import DOUBT, SearchState
from resid_theory.eigen.estimates import Eigenpairs, clusters
from resid_theory.eigen.krylov import Krylov, Locked
from resid_theory.eigen.operator_log import Operator, OutOfProducts, RecordedOperator
from resid_theory.eigen.ritz_bounds import ENDS, Wanted

__all__ = ["BLOCK", "eigenpairs", "search"]

_ASYMMETRY = {torch.float64: 1e-6, torch.float32: 1e-2}  # relative; above, A is not symmetric
_MEMORY = 1 << 31  # bytes of vectors that are held, unless k needs more
_MOST = 300  # vectors that are held: beyond, orthogonalizing costs more than it saves
BLOCK = 3  # random vectors of the first run: one would not see that an eigenvalue is double
_MARGIN = 60  # products that a run goes on for to be sure, after its pairs meet the tolerance
_PATIENCE = 0.25  # the same where nothing is verified, relative to what the run took so far
_ROOM = 0.1  # probability of one missed between those found at which such a run ends
_WIDEST = 4  # of later runs' starts


def eigenpairs(
    A: Operator,
    k: int = 5,
    *,
    which: str = "largest",
    block: int | None = None,
    tolerance: float = 1e-3,
    generator: torch.Generator | int = 0,
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
        block: Random vectors that the first run starts from; by default three, or one without
            ``verify``. Fewer than as many copies of an eigenvalue are counted in one run.
        tolerance: Error bound of each eigenvalue relative to its magnitude, or to a hundredth of
            the largest magnitude where that is more; never below what rounding allows.
        generator: For the random starts: a generator, or the seed of a new one.
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
    generator = as_generator(generator)
    if max_products is not None:
        check_int("max_products", max_products)
    with RecordedOperator(
        A, folder=folder, limit=max_products, progress=progress, precision=precision
    ) as products:
        found, _ = search(
            products,
            Wanted(check_choice("which", which, ENDS), check_int("k", k)),
            block=_width(block, max_products, verify),
            tolerance=check_positive("tolerance", tolerance),
            generator=generator,
            capacity=capacity,
            verify=verify,
        )
    return found


def _width(block: int | None, limit: int | None, verify: bool) -> int:
    if block is not None:
        return check_int("block", block)
    usual = BLOCK if verify else 1
    return usual if limit is None else min(usual, limit)


def search(
    products: RecordedOperator,
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
    state = SearchState(wanted=wanted, tolerance=tolerance, verify=verify)
    locked, width, size = Locked.nothing(products), min(block, products.size), products.size
    room = _capacity(products, wanted, block, capacity)
    while True:
        krylov = Krylov(products, locked, width=width, capacity=room, generator=generator)
        in_budget = _run(krylov, state)
        _check_symmetric(krylov)
        assert state.ritz is not None
        complete = krylov.offset + krylov.multiplied == size and krylov.restarts == 0
        enough = state.is_settled and (not verify or state.missed <= DOUBT)
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


def _run(krylov: Krylov, state: SearchState) -> bool:
    """Grow one Krylov space until it has answered; False when the products ran out."""
    try:
        while True:
            if krylov.is_full:
                krylov.restart(_kept(krylov, state.wanted))
            krylov.extend()
            state.read(krylov)
            if krylov.is_invariant or (state.is_settled and _is_sure(krylov, state)):
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


def _is_sure(krylov: Krylov, state: SearchState) -> bool:
    """Whether a run whose pairs meet the tolerance has nothing left to find, or should give up."""
    if state.allowance is None:
        more = _MARGIN / krylov.width if state.verify else _PATIENCE * krylov.steps
        state.allowance = krylov.steps + math.ceil(more)
    if krylov.restarts or krylov.steps >= state.allowance:
        return True
    if not state.verify or krylov.width == 1 and state.found:
        return state.room <= _ROOM
    # Of a value with as many copies as the start has vectors, fresh ones show more.
    return state.missed <= DOUBT or (state.found > 0 and state.is_crowded)


def _capacity(products: RecordedOperator, wanted: Wanted, block: int, given: int | None) -> int:
    least = wanted.total + 3 * max(block, _WIDEST) + 8
    if given is not None:
        if check_int("capacity", given) < min(least, products.size):
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


def _result(krylov: Krylov, state: SearchState, missed: float, complete: bool) -> Eigenpairs:
    assert state.ritz is not None
    ritz, columns = (
        krylov.measure(state.ritz, state.wanted.useful(state.ritz.values)),
        state.columns,
    )
    values, bounds = ritz.values[columns], state.bounds_of(ritz)[columns]
    order = values.argsort(stable=True)
    numbers = torch.empty(len(order), dtype=torch.int64)
    numbers[order] = clusters(values[order], bounds[order] + ritz.noise)
    counts = torch.bincount(numbers)
    open_ended = torch.zeros(len(counts), dtype=torch.bool)
    if not complete:
        chances = state.overlooked(values, bounds + ritz.noise)
        open_ended[numbers[chances > DOUBT]] = True
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
        limits=state.limits(complete),
        round_off=ritz.noise,
        products=krylov.products.count,
    )
