"""Measured curvature, for any module and any loss."""

from resid_theory.curvature.dense import (
    HessianCost,
    hessian,
    hessian_cost,
    hessian_spectrum,
)

__all__ = ["HessianCost", "hessian", "hessian_cost", "hessian_spectrum"]
