"""Measured curvature, for any module and any loss."""

from resid_theory.curvature.dense import (
    HessianCost,
    hessian,
    hessian_cost,
    hessian_spectrum,
)
from resid_theory.curvature.operator import (
    CurvatureBlock,
    CurvatureOperator,
    curvature_operator,
)

__all__ = [
    "CurvatureBlock",
    "CurvatureOperator",
    "HessianCost",
    "curvature_operator",
    "hessian",
    "hessian_cost",
    "hessian_spectrum",
]
