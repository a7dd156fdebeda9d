"""Closed forms of what the papers predict, computed without measurement."""

from resid_theory.theory.flow.gaussian import exceedance, exceedance_integral, logistic
from resid_theory.theory.flow.pointwise_flow import TrivialFlow
from resid_theory.theory.interpolation.interpolation import (
    Interpolation,
    InterpolationNet,
    interpolate,
)
from resid_theory.theory.interpolation.norm_bounds import least_norm
from resid_theory.theory.interpolation.single_move import move_column, widest_margin
from resid_theory.theory.interpolation.sphere_paths import PathChart, great_arc, path_around
from resid_theory.theory.linear.hessian_assembly import linear_hessian
from resid_theory.theory.linear.linear_nets import (
    Unit,
    linear_gradient,
    linear_hvp,
    linear_loss,
    linear_optimum,
)
from resid_theory.theory.zero_weights.escape import escape_start, escape_steps, escape_time
from resid_theory.theory.zero_weights.isometry import (
    Isometry,
    effective_variance,
    isometry,
    isometry_edges,
)
from resid_theory.theory.zero_weights.layout import Layout
from resid_theory.theory.zero_weights.origin import zero_point
from resid_theory.theory.zero_weights.prediction import ZeroPoint
from resid_theory.theory.zero_weights.semiseparable import Semiseparable
from resid_theory.theory.zero_weights.signal_propagation import (
    lyapunov_exponents,
    output_growth,
)
from resid_theory.theory.zero_weights.toeplitz import BlockToeplitz
from resid_theory.theory.zero_weights.transformer_point import (
    Branch,
    TransformerPoint,
    transformer_zero_point,
)

__all__ = [
    "BlockToeplitz",
    "Branch",
    "Interpolation",
    "InterpolationNet",
    "Isometry",
    "Layout",
    "PathChart",
    "Semiseparable",
    "TransformerPoint",
    "TrivialFlow",
    "Unit",
    "ZeroPoint",
    "effective_variance",
    "escape_start",
    "escape_steps",
    "escape_time",
    "exceedance",
    "exceedance_integral",
    "great_arc",
    "interpolate",
    "isometry",
    "isometry_edges",
    "least_norm",
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
    "transformer_zero_point",
    "widest_margin",
    "zero_point",
]
