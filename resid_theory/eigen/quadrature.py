"""Stochastic Lanczos quadrature: independent Lanczos runs, a block of probes at a time."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from resid_theory._check import as_generator, check_int
from resid_theory.eigen.certificate import Certificate
from resid_theory.eigen.density import Density
from resid_theory.eigen.eigenpair_result import Eigenpairs
from resid_theory.eigen.estimate import (
    Cumulants,
    Estimate,
    about_mean,
    root,
    sphere_mean,
    squares_mean,
)
from resid_theory.eigen.gauss_rules import RESOLVED
from resid_theory.eigen.implicit_deflation import ProbeMeasure, without_resolved
from resid_theory.eigen.krylov import Krylov, Locked, check_symmetric
from resid_theory.eigen.operator_log import Operator, RecordedOperator
from resid_theory.eigen.orthogonalization import dots
from resid_theory.runtime.resources import available_bytes, readable_bytes

_MEMORY = 1 << 30  # bytes of Lanczos vectors for probes that run side by side
_EXACT = 4  # nodes of a rule that is exact for the sixth power
_SKETCH = 8  # random vectors beside one for each probe, by which dimensions are counted


@dataclass(frozen=True, kw_only=True, eq=False)
class Quadrature:
    """Results of independent Lanczos runs in the complement of known eigenvectors U."""

    density: Density  # the quadratures of all runs, with the known eigenvalues
    trace: Estimate  # of the operator, as the norm
    frobenius_norm: Estimate
    # One for each probe, of the operator on the complement, in units of its ``unit``.
    certificates: list[Certificate]


def spectral_density(
    A: Operator,
    *,
    probes: int = 10,
    steps: int = 100,
    deflate: Eigenpairs | None = None,
    generator: torch.Generator | int = 0,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Density:
    """Distribution of the eigenvalues of a symmetric operator, with error bars over the probes.

    Stochastic Lanczos quadrature with two Gram-Schmidt passes, so that no eigenvalue is counted
    twice by a ghost copy. Probes run side by side as one block, as many as fit into 1 GiB.

    Args:
        A: (P, P), symmetric: a tensor, or anything with ``@``, a shape, a dtype and a device.
        probes: Number of independent random vectors; at least two for an error bar.
        steps: Number of Lanczos steps per probe.
        deflate: Known eigenpairs, e.g. the outliers: they are counted exactly, and the probes stay
            in their complement.
        generator: For the probes: a generator, or the seed of a new one.
        folder: Where to record the products, so that a killed call, made again, continues.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The distribution.

    Raises:
        ValueError: If A is not a symmetric operator or a count is below 1.
        MemoryError: If the vectors of a single probe do not fit.

    Example:
        >>> A = torch.diag(torch.tensor([-1.0] * 30 + [2.0] * 70))
        >>> found = rt.spectral_density(A, probes=20)
        >>> found.negative_share.covers(0.3)
        True
    """
    generator = as_generator(generator)
    if not isinstance(deflate, Eigenpairs | None):
        kind = type(deflate).__name__
        raise ValueError(f"deflate: got {kind}, needs the result of eigenpairs")
    total = check_int("probes", probes) * check_int("steps", steps)
    label = "Lanczos quadrature"
    with RecordedOperator(
        A, folder=folder, progress=progress, label=label, expected=total
    ) as operator:
        locked, residuals = Locked.none(operator), torch.empty(0)
        # All vectors of a space would leave nothing to probe.
        if deflate is not None and len(deflate) != operator.size:
            if deflate.vectors.shape[0] != operator.size:
                raise ValueError(
                    f"deflate: has vectors of {deflate.vectors.shape[0]} entries, A has "
                    f"{operator.size}"
                )
            operator.choose_unit(float(deflate.values.abs().max()))
            vectors = deflate.vectors.to(operator.device, operator.dtype)
            locked = Locked(
                vectors=vectors,
                values=deflate.values / operator.unit,
                errors=vectors.new_zeros(1, 1).expand(vectors.shape),
            )
            residuals = deflate.residuals / operator.unit
        return lanczos_quadrature(
            operator, locked, residuals, probes=probes, steps=steps, generator=generator
        ).density


def lanczos_quadrature(
    operator: RecordedOperator,
    locked: Locked,
    residuals: Tensor,
    *,
    probes: int,
    steps: int,
    generator: torch.Generator,
) -> Quadrature:
    """Run Lanczos from random vectors in the complement of locked ones, fewer than P."""
    size, count = operator.size, locked.vectors.shape[1]
    steps = min(steps, size - count)
    one = size * (count + steps + 1) * torch.finfo(operator.dtype).bits // 8
    if operator.device.type == "cpu" and one > available_bytes():
        raise MemoryError(
            f"steps: {steps} vectors of {size} entries need {readable_bytes(one)}, "
            f"{readable_bytes(available_bytes())} are available; ask for fewer steps"
        )
    at_once = max(1, _MEMORY // one)
    # Spans of vectors are told by their products with a few random ones, of a stream of its own.
    own = torch.Generator().manual_seed(0)
    sketch = torch.randn(size, probes + _SKETCH, generator=own).to(locked.vectors)
    measures: list[ProbeMeasure] = []
    certificates: list[Certificate] = []
    complete: list[bool] = []
    asymmetry = scale = rounding = 0.0
    for begin in range(0, probes, at_once):
        runs = [
            Krylov(operator, locked, width=1, capacity=steps + 1, generator=generator)
            for _ in range(min(at_once, probes - begin))
        ]
        for _ in range(steps):
            active = [run for run in runs if not run.is_invariant]
            if not active:
                break
            block = operator @ torch.cat([run.block for run in active], 1)
            for run, product in zip(active, block.split(1, dim=1), strict=True):
                run.extend(product)
        for run in runs:
            link = run.links[:, -1] if run.waiting else torch.zeros(1)
            measures.append(
                ProbeMeasure(
                    diagonal=run.symmetric.diagonal(),
                    links=torch.cat([run.symmetric.diagonal(1), link]),
                    sketch=dots(sketch, run.multiplied_vectors).cpu(),
                    noise=size**0.5 * run.round_off,
                )
            )
            certificates.append(run.certificate())
            complete.append(run.is_invariant)
            asymmetry, scale = max(asymmetry, run.asymmetry), max(scale, run.scale)
            rounding = max(rounding, run.round_off)
        del runs, run, active  # the vectors are large, and no longer needed
    check_symmetric(operator, asymmetry, scale)
    measures, values, spread = without_resolved(measures)
    known = torch.cat([locked.values, torch.tensor(values, dtype=torch.float64)])
    # A Ritz value is off by at most the square of its residual over the distance to the next.
    slip = size**0.5 * rounding + RESOLVED * sum(spread)
    total, norm = _totals(operator, measures, known, residuals, slip)
    residuals = torch.cat([residuals, torch.tensor(spread, dtype=torch.float64)])
    # The nuclear norm is at most the sum of the columns' norms, or sqrt(P) Frobenius norms.
    known_error = 2 * residuals.sum().item() / size + rounding
    known_error += operator.error.frobenius / size**0.5
    shift = max(size**0.5 * rounding, operator.error.spectral)  # of an eigenvalue, at most
    unit = operator.unit
    nodes = _padded([m.nodes for m in measures], math.inf)
    density = Density(
        size=size,
        nodes=nodes.minimum(torch.stack([m.nodes[-1:] for m in measures])) * unit,
        weights=_padded([m.weights for m in measures]),
        diagonals=_padded([m.diagonal for m in measures]) * unit,
        links=_padded([m.links for m in measures]) * unit,
        complete=torch.tensor(complete),
        known=known * unit,
        known_residuals=residuals * unit,
        known_error=known_error * unit,
        round_off=shift * unit,
        products=operator.count,
    )
    return Quadrature(density=density, trace=total, frobenius_norm=norm, certificates=certificates)


def _totals(
    operator: RecordedOperator,
    measures: list[ProbeMeasure],
    known: Tensor,
    residuals: Tensor,
    slip: float,
) -> tuple[Estimate, Estimate]:
    """Trace and Frobenius norm: sums over the known eigenvalues, and means over the probes."""
    rest, count = operator.size - len(known), len(measures)
    forms = torch.stack([m.diagonal[0] for m in measures])
    form, beside = forms.mean(), torch.stack([m.links[0] ** 2 for m in measures])
    cumulants = Cumulants.of_samples(forms**2 + beside)
    mean = cumulants.first
    if mean > 0 and min(len(m.nodes) for m in measures) >= _EXACT:
        fourth, sixth = (
            sum(float(m.weights @ (m.nodes / mean**0.5) ** power) for m in measures) / count
            for power in (4, 6)
        )
        cumulants = Cumulants.of(mean, (fourth - 1) / rest, sixth / rest**2)
    apart = (forms - form) ** 2 + beside
    total = sphere_mean(
        form.item(),
        apart.mean().item(),
        cumulants,
        count=count,
        dimension=rest,
        offset=known.sum().item(),
    )
    # Twice: in the columns of the known vectors and in their rows.
    inside = known.square().sum().item() + 2 * residuals.square().sum().item()
    flat = bool(form**2 > apart.mean())  # nearly equal eigenvalues, of which |A z|² hardly varies
    around = Cumulants.of_samples(apart) if flat else cumulants
    square = squares_mean(around, count=count, scale=rest, offset=inside)
    if flat:
        square = about_mean(total, square, form=form.item(), dimension=rest)
    norm = root(square)
    error, unit = operator.error, operator.unit
    return (
        total.widened(slip + error.trace).scaled(unit),
        norm.widened(slip + error.frobenius).scaled(unit),
    )


def _padded(rows: list[Tensor], end: float = 0.0) -> Tensor:
    """Rows of one length, (probes, m): shorter ones go on with some number."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=end)
