"""Extreme eigenpairs of a symmetric operator by block Lanczos, with bounds and multiplicities."""

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from resid_theory._check import as_generator, check_int
from resid_theory.eigen.convergence import SearchState
from resid_theory.eigen.eigenpair_result import Eigenpairs, clusters
from resid_theory.eigen.krylov import Krylov, Locked, check_symmetric
from resid_theory.eigen.operator_log import Operator, OutOfProducts, RecordedOperator
from resid_theory.eigen.ritz_bounds import Goal, error_bounds

_MEMORY = 1 << 31  # bytes of vectors in memory, unless k needs more
_MOST = 300  # vectors in memory: beyond, orthogonalizing costs more than it saves
BLOCK = 3  # random vectors of the first run: one would not see that an eigenvalue is double
_MARGIN = 60  # products for verification, after the pairs of a run meet the tolerance
_PATIENCE = 0.25  # the same without verification, relative to the steps of the run so far
_APART = 0.1  # probability of a missed eigenvalue between those found at which such a run ends
_WIDEST = 4  # random vectors in the start of later runs


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
    missed: float = 1e-3,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Eigenpairs:
    """Extreme eigenvalues and eigenvectors of a symmetric operator, none missed, none twice.

    Block Lanczos with two Gram-Schmidt passes against all vectors and thick restarts. A run ends
    when the k pairs meet the tolerance and the probability, over its random start, that it missed
    an eigenvalue beyond the k-th, or a further copy of one, is at most ``missed``. A Krylov space
    holds as many copies of an eigenvalue as its start has vectors: where so many are found, they
    are set aside, and runs from new random vectors in their complement follow.

    Args:
        A: (P, P), symmetric: a tensor, or anything with ``@``, a shape, a dtype and a
            device. Sums over float32 vectors are float64.
        k: Number of pairs; at each end for ``which="both"``.
        which: ``largest``, ``smallest`` (most negative), ``both``, or ``magnitude`` (largest |λ|).
        block: Number of random vectors in the start of the first run; by default three, or one
            without ``verify``. One run counts fewer copies of an eigenvalue than that.
        tolerance: Error bound of each eigenvalue relative to its magnitude, or to a hundredth of
            the largest magnitude where that is more; never below what rounding allows.
        generator: For the random starts: a generator, or the seed of a new one.
        max_products: Largest number of products with one vector; pairs that have not converged by
            then are marked.
        capacity: Largest number of vectors in memory; by default up to 300 within 2 GiB, and as
            many as k needs.
        verify: Whether to verify that no pair and no copy is missing, with up to sixty products
            beyond those that the tolerance needs, or a further run. Without it, a run ends when
            another eigenvalue between those found is improbable; copies are not searched.
        missed: Probability of a missed pair or copy at which the verification ends.
        folder: Where to record the products, so that a killed call, made again, continues with
            bit-identical results.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The pairs. Fewer than k where P is smaller.

    Raises:
        ValueError: If A is not a symmetric operator, an argument is out of range, or the folder
            holds another run.

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
    with RecordedOperator(A, folder=folder, limit=max_products, progress=progress) as operator:
        goal = Goal(which=which, k=k, tolerance=tolerance, verify=verify, missed=missed)
        if block is None:
            block = BLOCK if verify else 1
            block = block if max_products is None else min(block, max_products)
        block = check_int("block", block)
        found, _ = search(operator, goal, block=block, generator=generator, capacity=capacity)
        return found.scaled(operator.unit)


def search(
    operator: RecordedOperator,
    goal: Goal,
    *,
    block: int,
    generator: torch.Generator,
    capacity: int | None = None,
) -> tuple[Eigenpairs, Locked]:
    """Run block Lanczos until a run finds nothing new; return the pairs and vectors to lock."""
    # All numbers are in units of ``operator.unit``.
    # Locked are the pairs' own vectors, followed by those of others that converged on the way.
    locked, width, size = Locked.none(operator), block, operator.size
    least = goal.total + 3 * max(block, _WIDEST) + 8
    if capacity is None:
        affordable = _MEMORY // (size * torch.finfo(operator.dtype).bits // 8)
        capacity = max(least, min(affordable, max(_MOST, 3 * least)))
    elif check_int("capacity", capacity) < min(least, size):
        raise ValueError(f"capacity: got {capacity}, needs at least {least} for these k and block")
    state: SearchState | None = None
    allowance: int | None = None  # steps of a run after the first
    while True:
        first = state is None
        krylov = Krylov(operator, locked, width=width, capacity=capacity, generator=generator)
        edges = {} if state is None else state.edges
        latest, in_budget = _run(krylov, goal, edges, allowance)
        if latest is not None:
            state = latest
        elif state is None:
            raise ValueError(f"max_products: got {operator.limit}, needs at least the block")
        else:  # not one product: nothing is known beside the locked vectors
            ritz = krylov.ritz()
            columns = goal.columns(ritz.values)
            state = replace(state, ritz=ritz, columns=columns, certificate=None)
        check_symmetric(operator, krylov.asymmetry, krylov.scale)
        complete = krylov.offset + krylov.multiplied == size
        enough = state.is_settled and (not goal.verify or state.is_verified)
        given_up = state.is_settled and not state.is_crowded
        if not in_budget or complete or not state.found or enough or given_up:
            break
        state = replace(state, edges=state.new_edges())
        locked = krylov.lock(state.ritz, state.to_lock)
        missing = goal.total - len(state.columns)
        width = missing if missing > 0 else 1 if first else min(2 * state.found, _WIDEST)
        width = min(width, max(_WIDEST, block))
        if first:
            allowance = krylov.steps + _MARGIN
    if not goal.verify:
        state = replace(state, certificate=None)
    return _result(krylov, state, complete), krylov.lock(state.ritz, state.to_lock)


def _run(
    krylov: Krylov, goal: Goal, edges: dict[int, float], allowance: int | None
) -> tuple[SearchState | None, bool]:
    """Grow a Krylov space until it has answered; return the last state, and if the budget held."""
    first, state = allowance is None, None  # the first run sets its own allowance of steps
    while True:
        try:
            product = krylov.operator @ krylov.block
        except OutOfProducts:
            return state, False
        if krylov.is_full:
            krylov.restart(_kept(krylov, goal))
        krylov.extend(product)
        state = SearchState.after(krylov, goal, edges, first=first)
        edges = state.edges
        if krylov.is_invariant:
            return state, True
        if state.is_settled:
            if allowance is None:
                more = _MARGIN / krylov.width if goal.verify else _PATIENCE * krylov.steps
                allowance = krylov.steps + math.ceil(more)
            if not goal.verify or krylov.width == 1 and state.found:
                sure = state.missed_apart <= _APART
            else:  # of a value with as many copies as the start has vectors, a new start shows more
                crowded = state.found > 0 and state.is_crowded
                sure = crowded or state.is_verified
            if krylov.restarts or krylov.steps >= allowance or sure:
                return state, True


def _kept(krylov: Krylov, goal: Goal) -> Tensor:
    """Ritz vectors for a restart: the wanted ones and half of the others, from the wanted ends."""
    count = krylov.multiplied
    keep = min((count + goal.total) // 2, count - 2 * krylov.waiting - 1)
    if goal.which == "largest":
        return torch.arange(count - keep, count)
    if goal.which == "smallest":
        return torch.arange(keep)
    low = keep // 2
    return torch.cat([torch.arange(low), torch.arange(count - (keep - low), count)])


def _result(krylov: Krylov, state: SearchState, complete: bool) -> Eigenpairs:
    """The pairs, with residuals and bounds that are computed instead of estimated."""
    goal, columns = state.goal, state.columns
    ritz = krylov.measure(state.ritz, goal.useful(state.ritz.values))
    state = replace(state, ritz=ritz)
    if complete:
        bounds, limits = ritz.residuals, (ritz.values[0].item(), ritz.values[-1].item())
        single = torch.ones(len(bounds), dtype=torch.bool)
    else:
        bounds, single, limits = state.certified(error_bounds(ritz, goal))
    known = torch.arange(len(bounds)) if complete else columns.sort().values
    numbers = clusters(ritz.values[known], bounds[known] + ritz.noise)
    others = torch.ones(len(bounds), dtype=torch.bool).index_fill(0, known, False)
    distances = (ritz.values[known, None] - ritz.values[others]).abs()
    near = (distances <= bounds[known, None] + ritz.residuals[others]).any(1)
    counts, open_ended = torch.bincount(numbers), torch.zeros(len(known), dtype=torch.bool)
    open_ended[numbers[near | ~single[known]]] = True
    mine = numbers[torch.searchsorted(known, columns)]
    return Eigenpairs(
        which=goal.which,
        values=ritz.values[columns],
        vectors=krylov.lock(ritz, columns).vectors,
        residuals=ritz.residuals[columns],
        bounds=bounds[columns],
        multiplicities=counts[mine],
        at_least=open_ended[mine],
        converged=bounds[columns] <= state.targets + ritz.noise,
        accepted_miss=goal.missed,
        missed_probability=0.0 if complete else state.missed,
        limits=limits,
        round_off=ritz.noise,
        products=krylov.operator.count,
    )
