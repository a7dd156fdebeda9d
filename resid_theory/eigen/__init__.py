"""Eigenvalues of a symmetric operator: anything with ``@``, a shape, a dtype and a device."""

from resid_theory.eigen.density import Density
from resid_theory.eigen.diagonal import Diagonal
from resid_theory.eigen.eigenpair_result import Eigenpairs
from resid_theory.eigen.estimate import Estimate
from resid_theory.eigen.lanczos import eigenpairs
from resid_theory.eigen.linear_operator import (
    Identity,
    LinearOperator,
    OperatorSum,
    as_operator,
)
from resid_theory.eigen.operator_log import Operator
from resid_theory.eigen.quadrature import spectral_density
from resid_theory.eigen.solve import Solution
from resid_theory.eigen.spectral_statistics import SpectralStatistics
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.eigen.spectrum_report import SpectrumReport, spectral_estimates
from resid_theory.eigen.traces import frobenius_norm, trace

__all__ = [
    "Density",
    "Diagonal",
    "Eigenpairs",
    "Estimate",
    "Identity",
    "LinearOperator",
    "Operator",
    "OperatorSum",
    "Solution",
    "SpectralStatistics",
    "Spectrum",
    "SpectrumReport",
    "as_operator",
    "eigenpairs",
    "frobenius_norm",
    "spectral_density",
    "spectral_estimates",
    "trace",
]
