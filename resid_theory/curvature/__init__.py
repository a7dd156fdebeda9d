"""Measured curvature, for any module and any loss."""

from resid_theory.curvature.along import curvature_callback
from resid_theory.curvature.dense import (
    HessianCost,
    hessian,
    hessian_cost,
    hessian_spectrum,
)
from resid_theory.curvature.lanczos import eigenpairs
from resid_theory.curvature.measured import spectrum
from resid_theory.curvature.operator import (
    CurvatureBlock,
    CurvatureOperator,
    curvature_operator,
)
from resid_theory.curvature.quadrature import spectral_density
from resid_theory.curvature.recorded import Operator
from resid_theory.curvature.report import SpectrumReport, spectral_estimates
from resid_theory.curvature.traces import frobenius_norm, trace

__all__ = [
    "CurvatureBlock",
    "CurvatureOperator",
    "HessianCost",
    "Operator",
    "SpectrumReport",
    "curvature_callback",
    "curvature_operator",
    "eigenpairs",
    "frobenius_norm",
    "hessian",
    "hessian_cost",
    "hessian_spectrum",
    "spectral_density",
    "spectral_estimates",
    "spectrum",
    "trace",
]
