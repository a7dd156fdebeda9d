"""Measured curvature, for any module and any loss."""

from resid_theory.curvature.callback import curvature_callback
from resid_theory.curvature.curvature_block import CurvatureBlock
from resid_theory.curvature.dense import HessianCost, hessian, hessian_cost, hessian_spectrum
from resid_theory.curvature.matvec_graphs import MATRICES
from resid_theory.curvature.operator import CurvatureOperator, curvature_operator
from resid_theory.curvature.spectrum_of_net import spectrum

__all__ = [
    "MATRICES",
    "CurvatureBlock",
    "CurvatureOperator",
    "HessianCost",
    "curvature_callback",
    "curvature_operator",
    "hessian",
    "hessian_cost",
    "hessian_spectrum",
    "spectrum",
]
