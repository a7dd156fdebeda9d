"""Closed forms: what the papers predict, computed without a measurement."""

from resid_theory.theory.assembly import linear_hessian
from resid_theory.theory.columns import move_column, widest_margin
from resid_theory.theory.escape import (
    escape_start,
    escape_steps,
    escape_time,
    learning_rate_scale,
    linear_escape,
)
from resid_theory.theory.flow import TrivialFlow
from resid_theory.theory.gaussian import exceedance, exceedance_integral, logistic
from resid_theory.theory.initial import isometry_edges, lyapunov_exponents, output_growth
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
from resid_theory.theory.origin import zero_point
from resid_theory.theory.point import ZeroPoint
from resid_theory.theory.report import ZeroPointReport, zero_point_report
from resid_theory.theory.separation import least_norm
from resid_theory.theory.sphere import PathChart, great_arc, path_around
from resid_theory.theory.toeplitz import BlockToeplitz

__all__ = [
    "BlockToeplitz",
    "Interpolation",
    "InterpolationNet",
    "PathChart",
    "TrivialFlow",
    "Unit",
    "ZeroPoint",
    "ZeroPointReport",
    "definition5_order",
    "escape_start",
    "escape_steps",
    "escape_time",
    "exceedance",
    "exceedance_integral",
    "great_arc",
    "interpolate",
    "isometry_edges",
    "learning_rate_scale",
    "least_norm",
    "linear_escape",
    "linear_gradient",
    "linear_hessian",
    "linear_hvp",
    "linear_loss",
    "linear_optimum",
    "logistic",
    "lyapunov_exponents",
    "move_column",
    "output_growth",
    "path_around",
    "rotated_moments",
    "widest_margin",
    "zero_point",
    "zero_point_report",
]
