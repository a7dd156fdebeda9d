"""Closed forms: what the papers predict, computed without a measurement."""

from resid_theory.theory.assembly import linear_hessian
from resid_theory.theory.flow import TrivialFlow
from resid_theory.theory.gaussian import exceedance, exceedance_integral, logistic
from resid_theory.theory.linear import (
    Unit,
    definition5_order,
    linear_gradient,
    linear_hvp,
    linear_loss,
    linear_optimum,
    rotated_moments,
)
from resid_theory.theory.origin import ZeroPoint, zero_point
from resid_theory.theory.toeplitz import BlockToeplitz

__all__ = [
    "BlockToeplitz",
    "TrivialFlow",
    "Unit",
    "ZeroPoint",
    "definition5_order",
    "exceedance",
    "exceedance_integral",
    "linear_gradient",
    "linear_hessian",
    "linear_hvp",
    "linear_loss",
    "linear_optimum",
    "logistic",
    "rotated_moments",
    "zero_point",
]
