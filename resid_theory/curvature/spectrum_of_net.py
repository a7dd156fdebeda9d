"""The spectrum of any model's curvature in one call: dense where cheap, else by products."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import check_choice, check_int
from resid_theory.curvature.dense import hessian, hessian_cost
from resid_theory.curvature.input_checks import pixels_as_inputs, trainable
from resid_theory.curvature.operator import curvature_operator
from resid_theory.data.batching import batches
from resid_theory.eigen.estimates import Eigenpairs, clusters
from resid_theory.eigen.lanczos import eigenpairs
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.eigen.spectrum_report import SpectrumReport, spectral_estimates
from resid_theory.losses import Loss
from resid_theory.runtime.preserve import preserved
from resid_theory.runtime.resources import available_bytes

__all__ = ["spectrum"]

_SMALL = 1000  # parameters up to which all eigenvalues take seconds, by any route
_MEDIUM = 5000  # parameters up to which LAPACK takes less than a minute
_VECTORS = 1e-6  # tolerance of eigenpairs of a matrix at hand, whose products cost little
_COPIES = 4  # of a dense matrix: itself, LAPACK's, the eigenvectors, workspace


def spectrum(
    net: nn.Module,
    loss: str | Loss,
    data: Any,
    *,
    k: int = 5,
    density: bool = False,
    method: str = "auto",
    matrix: str = "hessian",
    parameters: Any = None,
    batchnorm: str = "eval",
    chunk: int | None = None,
    accumulate: str = "float64",
    engine: str = "auto",
    memory_limit: int | None = None,
    process_group: Any = None,
    percentile: float = 10.0,
    tolerance: float = 1e-3,
    probes: int = 10,
    steps: int = 100,
    generator: torch.Generator | int = 0,
    folder: str | Path | None = None,
    progress: bool = False,
) -> SpectrumReport:
    """What can be known of a model's curvature: extremes, trace, norm, index, density, condition.

    Up to 1,000 parameters, and up to 5,000 where a closed form or products of layer pairs give the
    Hessian, every eigenvalue is computed and every number exact. Beyond, all come from products of
    the operator, with error bars. The report says which, and why.

    Args:
        net: Any module; measured in eval mode and left as it was.
        loss: As in ``curvature_operator``.
        data: As in ``curvature_operator``.
        k: Eigenvalues to find at each end.
        density: Whether to estimate the density, the index and the condition number where they are
            not exact; that takes ``probes * steps`` products instead of ``probes``.
        method: ``dense``, ``matrix-free``, or ``auto``.
        matrix: ``hessian``, ``gauss_newton`` or ``fisher``.
        parameters: As in ``curvature_operator``: names or patterns; None for all trainable ones.
        batchnorm: ``"eval"`` uses running statistics, ``"batch"`` each batch's own.
        chunk: As in ``curvature_operator``.
        accumulate: As in ``curvature_operator``.
        engine: As in ``curvature_operator``.
        memory_limit: Bytes that may be used; by default what the machine has free.
        process_group: As in ``curvature_operator``; all processes draw the same
            vectors.
        percentile: Of |λ|, in [0, 100], for the condition number.
        tolerance: As in :func:`eigenpairs`.
        probes: As in :func:`spectral_density`.
        steps: As in :func:`spectral_density`.
        generator: For all random vectors: a generator, or the seed of a new one.
        folder: As in :func:`eigenpairs`, for the matrix-free method.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The report.

    Raises:
        ValueError: If data do not fit the net or a name is unknown.
        MemoryError: If ``method="dense"`` does not fit.

    Example:
        >>> net = rt.ShortcutNet(2, blocks=1, shortcut_depth=1)
        >>> data = torch.eye(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
        >>> report = rt.spectrum(net, "square", data, k=1)
        >>> report.method, report.trace.value
        ('dense', 2.0)
    """
    check_choice("method", method, ("auto", "dense", "matrix-free"))
    check_int("k", k)
    plain = (
        matrix == "hessian"
        and parameters is None
        and process_group is None
        and isinstance(loss, str)
    )
    options = {"matrix": matrix, "parameters": parameters, "batchnorm": batchnorm, "chunk": chunk}
    options |= {"accumulate": accumulate, "engine": engine, "memory_limit": memory_limit}
    options |= {} if process_group is None else {"process_group": process_group}
    if plain and method != "matrix-free":
        reason = _why_dense(net, loss, data, method, batchnorm, memory_limit)
        if reason is not None:
            exact = hessian(
                net, loss, data, batchnorm=batchnorm, memory_limit=memory_limit, progress=progress
            )
            samples = _samples(net, data)
            return _dense(exact, k, percentile, matrix, samples, reason)
    operator = curvature_operator(net, loss, data, **options)
    size = int(operator.shape[0])
    if (
        method == "dense"
        or method == "auto"
        and not plain
        and _fits(size, _SMALL, memory_limit, operator.device)
    ):
        reason = "asked for" if method == "dense" else f"P is at most {_SMALL}"
        return _dense(operator.dense(), k, percentile, matrix, operator.samples, reason)
    return spectral_estimates(
        operator,
        k,
        density=density,
        percentile=percentile,
        tolerance=tolerance,
        probes=probes,
        steps=steps,
        generator=generator,
        precision=trainable(net)[0].dtype,
        matrix=matrix,
        samples=operator.samples,
        reason="asked for" if method == "matrix-free" else "cheaper than all eigenvalues",
        folder=folder,
        progress=progress,
    )


def _fits(size: int, most: int, limit: int | None, device: torch.device) -> bool:
    available = available_bytes(device) if limit is None else limit
    return size <= most and _COPIES * 8 * size**2 <= available


def _why_dense(
    net: nn.Module, loss: str | Loss, data: Any, method: str, batchnorm: str, limit: int | None
) -> str | None:
    """The reason for all eigenvalues, None where products are better."""
    if method == "dense":
        return "asked for"
    weights = trainable(net)
    size, device = sum(weight.numel() for weight in weights), weights[0].device
    if _fits(size, _SMALL, limit, device):
        return f"P is at most {_SMALL}"
    if not _fits(size, _MEDIUM, limit, device):
        return None
    route = hessian_cost(net, loss, data, batchnorm=batchnorm).method
    return None if route == "columns" else f"the Hessian is cheap here, by {route}"


def _samples(net: nn.Module, data: Any) -> int:
    with preserved(net):  # a loader draws from the global RNG
        return sum(len(x) for x, _ in batches(pixels_as_inputs(data, net)))


def _dense(
    exact: Tensor, k: int, percentile: float, matrix: str, samples: int, reason: str
) -> SpectrumReport:
    symmetric = (exact.double() + exact.double().T) / 2
    if len(symmetric) <= _SMALL:
        values, vectors = torch.linalg.eigh(symmetric)
        every = Spectrum.of(values)
        pairs = _pairs(symmetric, values.cpu(), vectors, k, every.zero_threshold)
    else:  # a few vectors by Lanczos take a hundredth of the time of all
        every = Spectrum.of(torch.linalg.eigvalsh(symmetric))
        pairs = eigenpairs(symmetric, k, which="both", tolerance=_VECTORS)
    return SpectrumReport.of(
        every,
        k,
        percentile=percentile,
        matrix=matrix,
        samples=samples,
        reason=reason,
        pairs=replace(pairs, products=0),
    )


def _pairs(exact: Tensor, values: Tensor, vectors: Tensor, k: int, bound: float) -> Eigenpairs:
    """The outermost pairs of all, bounded by LAPACK's backward error."""
    count = len(values)
    order = torch.arange(count - 1, -1, -1)
    columns = order if 2 * k >= count else torch.cat([order[:k], order[-k:]])
    numbers = clusters(values, torch.full_like(values, bound))
    chosen = vectors[:, columns.to(vectors.device)]
    image = exact.double() @ chosen
    residuals = (image - chosen * values[columns].to(image)).norm(dim=0).cpu() + bound
    return Eigenpairs(
        which="both",
        values=values[columns],
        vectors=chosen,
        residuals=residuals,
        bounds=torch.full((len(columns),), bound, dtype=torch.float64),
        multiplicities=torch.bincount(numbers)[numbers][columns],
        at_least=torch.zeros(len(columns), dtype=torch.bool),
        converged=torch.ones(len(columns), dtype=torch.bool),
        missed_probability=0.0,
        limits=(values[0].item(), values[-1].item()),
        round_off=bound,
        products=0,
    )
