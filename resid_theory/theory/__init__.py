"""Closed forms: what the papers predict, computed without a measurement."""

from resid_theory.theory.assembly import linear_hessian
from resid_theory.theory.columns import move_column, widest_margin
from resid_theory.theory.flow import TrivialFlow
from resid_theory.theory.gaussian import exceedance, exceedance_integral, logistic
from resid_theory.theory.interpolation import Interpolation, InterpolationNet, interpolate
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
from resid_theory.theory.separation import least_norm
from resid_theory.theory.sphere import PathChart, great_arc, path_around
from resid_theory.theory.toeplitz import BlockToeplitz

__all__ = [
    "BlockToeplitz",
    "Interpolation",
    "InterpolationNet",
    "PathChart",
    "Unit",
    "ZeroPoint",
    "definition5_order",
    "great_arc",
    "interpolate",
    "least_norm",
    "TrivialFlow",
    "exceedance",
    "exceedance_integral",
    "linear_gradient",
    "linear_hessian",
    "linear_hvp",
    "linear_loss",
    "linear_optimum",
    "move_column",
    "path_around",
    "logistic",
    "rotated_moments",
    "widest_margin",
    "zero_point",
]
