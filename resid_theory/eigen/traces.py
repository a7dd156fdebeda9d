"""Trace and Frobenius norm by Hutch++: a sketch of the range, and random probes for the rest."""

from pathlib import Path

import torch
from torch import Tensor

from resid_theory._check import as_generator, check_int
from resid_theory.eigen.estimate import Estimate, mean_estimate, positive_mean, root
from resid_theory.eigen.krylov import rank_threshold
from resid_theory.eigen.operator_log import Operator, RecordedOperator
from resid_theory.eigen.orthogonalization import dots, orthonormal, random_orthonormal

__all__ = ["frobenius_norm", "trace"]


def trace(
    A: Operator,
    *,
    budget: int = 60,
    generator: torch.Generator | int = 0,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Estimate:
    """Trace of a symmetric operator, by Hutch++, with an error bar.

    A third of the products sketches the range, a third makes its part of the trace exact, a third
    probes the complement. The probes are uniform on the complement's sphere instead of Gaussian:
    their length carries no information, so that a fixed length lowers the variance.

    Args:
        A: (P, P), symmetric: a tensor, or anything with ``A @ vectors`` for (P, b) vectors, a
            shape, a dtype and a device.
        budget: Largest number of products with one vector, at least 6. From 2 P on the trace is
            exact.
        generator: For sketch and probes: a generator, or the seed of a new one.
        folder: Folder in which to record the products, so that a killed call, made again, continues
            from there. None for no record.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The trace, in units of the eigenvalues; its interval is Student's over the probes.

    Raises:
        ValueError: If A is not a symmetric operator or the budget is too small.

    Source:
        Meyer, Musco, Musco & Woodruff 2021, "Hutch++: Optimal stochastic trace estimation",
        Algorithm 1.

    Example:
        >>> A = torch.diag(torch.arange(1.0, 101.0))
        >>> rt.trace(A).covers(5050.0)
        True
    """
    return _hutch_plus_plus(A, budget, generator, folder, progress, "trace")[0]


def frobenius_norm(
    A: Operator,
    *,
    budget: int = 60,
    generator: torch.Generator | int = 0,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Estimate:
    """Frobenius norm of a symmetric operator, from the same products as :func:`trace`.

    Args:
        A: (P, P), symmetric: a tensor, or anything with ``A @ vectors`` for (P, b) vectors, a
            shape, a dtype and a device.
        budget: Largest number of products with one vector, at least 6. From 2 P on the norm is
            exact.
        generator: For sketch and probes: a generator, or the seed of a new one.
        folder: Folder in which to record the products, so that a killed call, made again, continues
            from there. None for no record.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The norm, in units of the eigenvalues; the ends of its interval are roots of those of the
        square.

    Raises:
        ValueError: If A is not a symmetric operator or the budget is too small.

    Example:
        >>> A = torch.diag(torch.arange(1.0, 101.0))
        >>> rt.frobenius_norm(A).covers(A.norm().item())
        True
    """
    return root(_hutch_plus_plus(A, budget, generator, folder, progress, "Frobenius norm")[1])


def _hutch_plus_plus(
    A: Operator,
    budget: int,
    generator: torch.Generator | int,
    folder: str | Path | None,
    progress: bool,
    label: str,
) -> tuple[Estimate, Estimate]:
    """Trace and squared Frobenius norm."""
    budget, generator = check_int("budget", budget, 6), as_generator(generator)
    with RecordedOperator(
        A, folder=folder, progress=progress, label=label, expected=budget
    ) as operator:
        width = min(budget // 3, operator.size)
        image = operator @ random_orthonormal(width, operator.no_vectors, generator)
        scale = float(dots(image, image).diagonal().max().sqrt())
        basis, _ = orthonormal(image, rank_threshold(operator) * scale)
        onto = operator @ basis if basis.shape[1] else basis
        rest = operator.size - basis.shape[1]
        known = dots(basis, onto).trace().item(), _inner(onto, onto).sum().item()
        if rest == 0:
            return Estimate.exact(known[0]), Estimate.exact(known[1])
        count = budget - width - basis.shape[1]
        probes = torch.cat([random_orthonormal(1, basis, generator) for _ in range(count)], 1)
        images = operator @ probes
        return (
            mean_estimate(_inner(probes, images), scale=rest, offset=known[0]),
            positive_mean(_inner(images, images), scale=rest, offset=known[1]),
        )


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Inner product of each column pair, float64."""
    return (left.double() * right.double()).sum(0).cpu()
