"""Trace and Frobenius norm by Hutch++: a sketch of the range, and random probes for the rest."""

from pathlib import Path

import torch
from torch import Tensor

from resid_theory._check import as_generator, check_int
from resid_theory.eigen.estimate import Estimate, mean_estimate, positive_mean, root
from resid_theory.eigen.krylov import product_rounding
from resid_theory.eigen.operator_log import Operator, RecordedOperator
from resid_theory.eigen.orthogonalization import dots, orthonormal, random_orthonormal

__all__ = ["frobenius_norm", "trace"]

_NOISE = 1e-2  # relative; an asymmetry up to this is taken for rounding


def trace(
    A: Operator,
    *,
    budget: int = 60,
    generator: torch.Generator | int = 0,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Estimate:
    """Trace of a square operator, by Hutch++, with an error bar.

    A third of the products sketches the range, a third makes its part of the trace exact, a third
    probes the complement. The probes are uniform on the complement's sphere instead of Gaussian:
    their length carries no information, so that a fixed length lowers the variance.

    Args:
        A: (P, P): a tensor, or anything with ``A @ vectors`` for (P, b) vectors, a shape, a dtype
            and a device. It need not be symmetric; if it is, the sketch is best.
        budget: Largest number of products with one vector, at least 6. From P on, P products give
            the trace without a random error.
        generator: For sketch and probes: a generator, or the seed of a new one.
        folder: Folder in which to record the products, so that a killed call, made again, continues
            from there. None for no record.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The trace, in units of the eigenvalues; its interval is Student's over the probes, widened
        by the rounding of the products.

    Raises:
        ValueError: If A is not a square operator or the budget is too small.

    Source:
        Meyer, Musco, Musco & Woodruff 2021, "Hutch++: Optimal stochastic trace estimation",
        Algorithm 1.

    Example:
        >>> A = torch.diag(torch.arange(1.0, 101.0))
        >>> rt.trace(A).covers(5050.0)
        True
    """
    with RecordedOperator(
        A, folder=folder, progress=progress, label="trace", expected=budget
    ) as operator:
        return _hutch_plus_plus(operator, budget, generator)[0].scaled(operator.unit)


def frobenius_norm(
    A: Operator,
    *,
    budget: int = 60,
    generator: torch.Generator | int = 0,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Estimate:
    """Frobenius norm of an operator, from the same products as :func:`trace`.

    Args:
        A: (P, P), or the block (rows, P) of a matrix: a tensor, or anything with ``A @ vectors``
            for (P, b) vectors, a shape, a dtype and a device. It need not be symmetric.
        budget: Largest number of products with one vector, at least 6. From P on, P products give
            the norm without a random error.
        generator: For sketch and probes: a generator, or the seed of a new one.
        folder: Folder in which to record the products, so that a killed call, made again, continues
            from there. None for no record.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The norm, in units of the entries; the ends of its interval are roots of those of the
        square, widened by the rounding of the products.

    Raises:
        ValueError: If A is not an operator or the budget is too small.

    Example:
        >>> A = torch.diag(torch.arange(1.0, 101.0))
        >>> rt.frobenius_norm(A).covers(A.norm().item())
        True
    """
    with RecordedOperator(
        A,
        folder=folder,
        progress=progress,
        label="Frobenius norm",
        expected=budget,
        square=False,
    ) as operator:
        return _hutch_plus_plus(operator, budget, generator)[1].scaled(operator.unit)


def _hutch_plus_plus(
    operator: RecordedOperator, budget: int, generator: torch.Generator | int
) -> tuple[Estimate, Estimate]:
    """Trace, of no meaning for a block that is not square, and Frobenius norm, in its units."""
    budget, generator = check_int("budget", budget, 6), as_generator(generator)
    size, square = operator.size, operator.rows == operator.size
    basis, spent = operator.no_vectors, 0
    if budget >= size:
        # Not unit vectors, whose products may be exact where others are rounded.
        basis = random_orthonormal(size, basis, generator)
    elif square:  # the range of another block is in another space
        image = operator @ random_orthonormal(budget // 3, basis, generator)
        scale, spent = float(dots(image, image).diagonal().max().sqrt()), budget // 3
        basis, _ = orthonormal(image, product_rounding(operator, scale))
    onto = operator @ basis if basis.shape[1] else basis
    known, rest = basis.shape[1], size - basis.shape[1]
    within = dots(basis, onto).cpu() if square else torch.zeros(1, 1, dtype=torch.float64)
    inside = _inner(onto, onto).sum().item()
    diagonal, squares = Estimate.exact(within.trace().item()), Estimate.exact(inside)
    if rest:
        count = budget - spent - known
        probes = torch.cat([random_orthonormal(1, basis, generator) for _ in range(count)], 1)
        images = operator @ probes
        squares = positive_mean(_inner(images, images), scale=rest, offset=inside)
        if square:
            diagonal = mean_estimate(_inner(probes, images), scale=rest, offset=diagonal.value)
    norm, asymmetry = root(squares), float((within - within.T).norm()) / 2
    if asymmetry > _NOISE * float(within.norm()):
        asymmetry = 0.0  # of the matrix, and no sign of rounding
    # Errors of single products are independent: their squares add up, as those of the columns do.
    rounding = product_rounding(operator, norm.value, asymmetry, known)
    return (
        diagonal.widened(rounding + operator.error.trace),
        norm.widened(rounding + operator.error.frobenius),
    )


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Inner product of each column pair, float64."""
    return (left.double() * right.double()).sum(0).cpu()
