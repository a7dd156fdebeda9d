"""The Hessian of n-shortcut networks at zero weights, and what surrounds that point."""

from resid_theory.theory.zero_weights.escape import (
    escape_start,
    escape_steps,
    escape_time,
    learning_rate_scale,
    linear_escape,
)
from resid_theory.theory.zero_weights.origin import zero_point
from resid_theory.theory.zero_weights.prediction import ZeroPoint
from resid_theory.theory.zero_weights.signal_propagation import (
    isometry_edges,
    lyapunov_exponents,
    output_growth,
)
from resid_theory.theory.zero_weights.toeplitz import BlockToeplitz
from resid_theory.theory.zero_weights.zero_point_report import ZeroPointReport, zero_point_report

__all__ = [
    "BlockToeplitz",
    "ZeroPoint",
    "ZeroPointReport",
    "escape_start",
    "escape_steps",
    "escape_time",
    "isometry_edges",
    "learning_rate_scale",
    "linear_escape",
    "lyapunov_exponents",
    "output_growth",
    "zero_point",
    "zero_point_report",
]
