"""The spectrum of any model's curvature in one call: dense where cheap, else matrix-free."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import (
    as_generator,
    check_choice,
)
from resid_theory.curvature.dense import HessianPlan
from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.curvature.operator import CurvatureOperator, operator_of
from resid_theory.curvature.parameter_selection import trainable_by_name
from resid_theory.eigen.eigenpair_result import Eigenpairs, clusters
from resid_theory.eigen.lanczos import eigenpairs
from resid_theory.eigen.matrix_error import MatrixError
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.eigen.spectrum_report import SpectrumReport, goal_of_report, spectral_estimates
from resid_theory.losses import LossLike
from resid_theory.runtime.net_entry import check_net
from resid_theory.runtime.resources import allowed_bytes

_SMALL = 1000  # parameters up to which all eigenvalues take seconds, by any route
_MEDIUM = 5000  # parameters up to which LAPACK takes less than a minute
_VECTORS = 1e-6  # tolerance of eigenpairs of a matrix at hand, whose products cost little
_COPIES = 4  # of a dense matrix: itself, LAPACK's, the eigenvectors, workspace


def spectrum(
    net: nn.Module | CurvatureOperator,
    loss: LossLike | None = None,
    data: Any = None,
    *,
    matrix: str | None = None,
    weight_decay: float = 0.0,
    k: int = 5,
    density: bool = False,
    method: str = "auto",
    percentile: float = 10.0,
    tolerance: float = 1e-3,
    missed: float = 1e-3,
    probes: int = 10,
    steps: int = 100,
    generator: torch.Generator | int = 0,
    folder: str | Path | None = None,
    progress: bool = False,
) -> SpectrumReport:
    """Spectrum of a model's curvature: extremes, trace, norm, index, density, condition number.

    Up to 1,000 parameters, and up to 5,000 where a closed form or products of layer pairs give the
    Hessian, every eigenvalue is computed and every number exact. Beyond, all come from
    matrix-vector products, with error bars. The report says which method was used, and why.

    A part of the parameters, BatchNorm's batch statistics, and all that concerns
    how products are computed (chunks, engine, memory, processes) are options of
    `curvature_operator`, whose operator is then the only argument.

    Args:
        net: Any module, measured in eval mode and left as it was; or an operator.
        loss: ``"square"``, ``"cross_entropy"``, or a callable, as `curvature_operator` takes it.
            Left out for an operator, which has its own, as it has data.
        data: A pair (x, y), an object with ``.x`` and ``.y``, images, a loader or a list of pairs.
        matrix: ``"hessian"`` by default, ``"gauss_newton"``, ``"fisher"``, ``"fisher_mc"`` or
            ``"empirical_fisher"``.
        weight_decay: λ of a penalty λ/2 |θ|², which adds λ to every eigenvalue.
        k: Number of eigenvalues at each end.
        density: Whether to estimate the density, the index and the condition number where they are
            not exact; that takes ``probes * steps`` products instead of ``probes``.
        method: ``"dense"``, ``"matrix-free"``, or ``"auto"``.
        percentile: Percentile of |λ|, in [0, 100], in the condition number.
        tolerance: Largest distance of an extreme eigenvalue from its estimate, relative to |λ|.
        missed: Probability of a missed extreme eigenvalue at which their search ends.
        probes: Number of random vectors for trace, norm and density.
        steps: Lanczos steps of each probe for the density.
        generator: A generator for all random vectors, or the seed of a new one.
        folder: Folder for the products of the matrix-free method, so that a killed call goes on.
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
        >>> rt.spectrum(net, "square", data, k=1, matrix="empirical_fisher").trace.value
        1.0
    """
    check_choice("method", method, ("auto", "dense", "matrix-free"))
    goal_of_report(k, percentile, tolerance, missed, probes, steps)
    operator, limit = None, None
    if isinstance(net, CurvatureOperator):
        if loss is not None or data is not None or matrix is not None or weight_decay:
            raise ValueError(
                "loss, data, matrix, weight_decay: got an operator together with these, which "
                "belong to it; call spectrum(operator), or spectrum(net, loss, data)"
            )
        operator, limit, risk = net, net.memory_limit, net.risk
        operator.check_unchanged()
    else:
        net = check_net(net, finite=False)
        if loss is None:
            raise ValueError(
                "loss: is missing; call spectrum(net, loss, data) or spectrum(operator)"
            )
        risk = EmpiricalRisk(
            net, loss, data, matrix=matrix or "hessian", weight_decay=weight_decay,
            seed=as_generator(generator).initial_seed(),
        )  # fmt: skip
    size = sum(weight.numel() for weight in trainable_by_name(risk.net).values())
    # The dense routes take the Hessian with respect to all parameters, in one process.
    plain = risk.matrix == "hessian" and sum(p.numel() for p in risk.parameters) == size
    plain = plain and (operator is None or operator.processes == 1)
    small = method == "dense" or method == "auto" and _fits(size, _SMALL, limit, risk.device)
    if plain and (small or method == "auto" and _fits(size, _MEDIUM, limit, risk.device)):
        # Inside, because a loader draws from the global RNG even when it does not shuffle.
        with risk.measuring():
            plan = HessianPlan.of(risk)
            cheap = small or plan.method != "columns"
            exact = plan.matrix(memory_limit=limit, progress=progress) if cheap else None
        if exact is not None:
            found, error = exact
            reason = (
                f"P is at most {_SMALL}"
                if small
                else f"the Hessian is cheap here, by {plan.method}"
            )
            reason = "asked for" if method == "dense" else reason
            return _dense(found, error, k, percentile, plan.risk, plan.samples, reason)
        risk = plan.risk if operator is None else risk  # read once, by the plan
    if operator is None:
        risk.data.check_rewindable("every product")
        operator = operator_of(risk)
    size = operator.shape[0]
    if method == "dense" or (
        method == "auto" and not plain and _fits(size, _SMALL, limit, operator.device)
    ):
        reason = "asked for" if method == "dense" else f"P is at most {_SMALL}"
        found, error = operator.dense(), operator.error or MatrixError()
        error = error.at_least(float(found.norm()) * torch.finfo(found.dtype).eps)
        return _dense(found, error, k, percentile, risk, operator.samples, reason)
    report = spectral_estimates(
        operator,
        k,
        density=density,
        percentile=percentile,
        tolerance=tolerance,
        missed=missed,
        probes=probes,
        steps=steps,
        generator=generator,
        matrix=operator.matrix,
        samples=operator.samples,
        reason="asked for" if method == "matrix-free" else "cheaper than all eigenvalues",
        folder=folder,
        progress=progress,
    )
    return _with_notes(report, risk)


def _fits(size: int, most: int, limit: int | None, device: torch.device) -> bool:
    return size <= most and _COPIES * 8 * size**2 <= allowed_bytes(limit, device)


def _dense(
    found: Tensor,
    error: MatrixError,
    k: int,
    percentile: float,
    risk: EmpiricalRisk,
    samples: int,
    reason: str,
) -> SpectrumReport:
    half = found.double() / 2
    symmetric = half + half.T
    # What was not symmetric shows steps of a lower precision than the result's.
    error = error.at_least(float((half - half.T).norm()))
    if len(symmetric) <= _SMALL:
        values, vectors = torch.linalg.eigh(symmetric)
        every, values = Spectrum.of(values, error=error.spectral), values.cpu()
        # The outermost pairs of all, bounded by LAPACK's backward error and the matrix's own.
        count, bound = len(values), every.zero_threshold
        order = torch.arange(count - 1, -1, -1)
        columns = torch.cat([order[:k], order[max(k, count - k) :]])
        numbers = clusters(values, torch.full_like(values, bound))
        chosen = vectors[:, columns.to(vectors.device)]
        gaps = symmetric @ chosen - chosen * values[columns].to(chosen)
        pairs = Eigenpairs(
            which="both",
            values=values[columns],
            vectors=chosen,
            residuals=gaps.norm(dim=0).cpu() + bound,
            bounds=torch.full((len(columns),), bound, dtype=torch.float64),
            multiplicities=torch.bincount(numbers)[numbers][columns],
            at_least=torch.zeros(len(columns), dtype=torch.bool),
            converged=torch.ones(len(columns), dtype=torch.bool),
            missed_probability=0.0,
            limits=(values[0].item(), values[-1].item()),
            round_off=bound,
            products=0,
        )
    else:  # a few vectors by Lanczos take a hundredth of the time of all
        every = Spectrum.of(torch.linalg.eigvalsh(symmetric), error=error.spectral)
        pairs = eigenpairs(symmetric, k, which="both", tolerance=_VECTORS)
        pairs = replace(
            pairs,
            bounds=pairs.bounds + error.spectral,
            residuals=pairs.residuals + error.spectral,
            round_off=pairs.round_off + error.spectral,
            products=0,
        )
    report = SpectrumReport.of(
        every,
        k,
        percentile=percentile,
        matrix=risk.matrix,
        samples=samples,
        reason=reason,
        pairs=pairs,
        error=error,
    )
    return _with_notes(report, risk)


def _with_notes(report: SpectrumReport, risk: EmpiricalRisk) -> SpectrumReport:
    return replace(report, notes=(*report.notes, *risk.data.notes, *risk.notes))
