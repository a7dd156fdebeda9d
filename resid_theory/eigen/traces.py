"""Trace and Frobenius norm from a sketch that is exact and probes for the rest."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from resid_theory._check import as_generator, check_int
from resid_theory.eigen.estimates import Estimate, mean_estimate, positive_mean
from resid_theory.eigen.krylov import rank_threshold
from resid_theory.eigen.operator_log import Operator, RecordedOperator
from resid_theory.eigen.orthogonalization import dots, draw, orthonormal

__all__ = ["frobenius_norm", "root", "trace"]


def trace(
    A: Operator,
    *,
    budget: int = 60,
    generator: torch.Generator | int = 0,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Estimate:
    """Trace of a symmetric operator, by Hutch++, with an error bar.

    A third of the products draws a sketch of the range, a third makes its part of the trace exact,
    a third probes the complement. The probes are uniform on the complement's sphere instead of
    Gaussian: their length carries no information, so that leaving it out lowers the variance.

    Args:
        A: As in :func:`eigenpairs`.
        budget: Products with one vector to spend at most, at least 6. From 2 P on the trace is
            exact.
        generator: For sketch and probes: a generator, or the seed of a new one.
        folder: As in :func:`eigenpairs`.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The trace, in units of the eigenvalues; its interval is Student's over the probes.

    Raises:
        ValueError: If A is no symmetric operator or the budget is too small.

    Source:
        Meyer, Musco, Musco & Woodruff 2021, "Hutch++: Optimal stochastic trace estimation",
        Algorithm 1.

    Example:
        >>> A = torch.diag(torch.arange(1.0, 101.0))
        >>> rt.trace(A).covers(5050.0)
        True
    """
    found = _sketch(A, budget, generator, folder, progress, "trace")
    return found.trace


def frobenius_norm(
    A: Operator,
    *,
    budget: int = 60,
    generator: torch.Generator | int = 0,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Estimate:
    """Frobenius norm of a symmetric operator from the products of :func:`trace`.

    Args:
        A: As in :func:`eigenpairs`.
        budget: As in :func:`trace`.
        generator: As in :func:`trace`.
        folder: As in :func:`eigenpairs`.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The norm, in units of the eigenvalues; the ends of its interval are roots of those of the
        square.

    Raises:
        ValueError: As for :func:`trace`.

    Example:
        >>> A = torch.diag(torch.arange(1.0, 101.0))
        >>> rt.frobenius_norm(A).covers(A.norm().item())
        True
    """
    found = _sketch(A, budget, generator, folder, progress, "Frobenius norm")
    return root(found.squared_norm)


def root(square: Estimate) -> Estimate:
    """Square root of an estimate that cannot be negative.

    Args:
        square: The estimate of the square.

    Returns:
        The root; the ends of its interval are the roots of the ends, its standard error is that of
        the square over twice the root.
    """
    value = math.sqrt(max(0.0, square.value))
    error = square.standard_error / (2 * value) if value else math.sqrt(square.standard_error)
    low, high = (math.sqrt(max(0.0, end)) for end in (square.low, square.high))
    return Estimate(value=value, standard_error=error, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class _Sketched:
    trace: Estimate
    squared_norm: Estimate


def _sketch(
    A: Operator,
    budget: int,
    generator: torch.Generator | int,
    folder: str | Path | None,
    progress: bool,
    label: str,
) -> _Sketched:
    budget, generator = (
        check_int("budget", budget, 6),
        as_generator(generator),
    )
    with RecordedOperator(
        A, folder=folder, progress=progress, label=label, expected=budget
    ) as products:
        width = min(budget // 3, products.size)
        nothing = torch.empty(products.size, 0, dtype=products.dtype, device=products.device)
        image = products @ draw(products.size, width, nothing, generator)
        scale = float(dots(image, image).diagonal().max().sqrt())
        threshold = rank_threshold(products.precision, products.size) * scale
        basis, _ = orthonormal(image, threshold)
        onto = products @ basis if basis.shape[1] else basis
        rest = products.size - basis.shape[1]
        known = dots(basis, onto).trace().item(), _squares(onto).sum().item()
        if rest == 0:
            return _Sketched(trace=Estimate.exact(known[0]), squared_norm=Estimate.exact(known[1]))
        count = budget - width - basis.shape[1]
        probes = torch.cat([draw(products.size, 1, basis, generator) for _ in range(count)], 1)
        images = products @ probes
        return _Sketched(
            trace=mean_estimate(_inner(probes, images), scale=rest, offset=known[0]),
            squared_norm=positive_mean(_squares(images), scale=rest, offset=known[1]),
        )


def _inner(left: Tensor, right: Tensor) -> Tensor:
    return (left.double() * right.double()).sum(0).cpu()


def _squares(vectors: Tensor) -> Tensor:
    return _inner(vectors, vectors)
