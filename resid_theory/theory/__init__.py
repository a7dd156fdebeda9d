"""Closed forms: what the papers predict, computed without a measurement."""

from resid_theory.theory.assembly import linear_hessian
from resid_theory.theory.escape import (
    escape_start,
    escape_steps,
    escape_time,
    learning_rate_scale,
    linear_escape,
)
from resid_theory.theory.initial import isometry_edges, lyapunov_exponents, output_growth
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
from resid_theory.theory.report import ZeroPointReport, zero_point_report
from resid_theory.theory.toeplitz import BlockToeplitz

__all__ = [
    "BlockToeplitz",
    "Unit",
    "ZeroPoint",
    "ZeroPointReport",
    "definition5_order",
    "escape_start",
    "escape_steps",
    "escape_time",
    "isometry_edges",
    "learning_rate_scale",
    "linear_escape",
    "linear_gradient",
    "linear_hessian",
    "linear_hvp",
    "linear_loss",
    "linear_optimum",
    "lyapunov_exponents",
    "output_growth",
    "rotated_moments",
    "zero_point",
    "zero_point_report",
]
