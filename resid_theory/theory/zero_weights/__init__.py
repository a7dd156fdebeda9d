"""The Hessian of n-shortcut networks at zero weights, and gradient descent near that point."""

from resid_theory.theory.zero_weights.escape import (
    escape_start,
    escape_steps,
    escape_time,
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

__all__ = [
    "BlockToeplitz",
    "ZeroPoint",
    "escape_start",
    "escape_steps",
    "escape_time",
    "isometry_edges",
    "linear_escape",
    "lyapunov_exponents",
    "output_growth",
    "zero_point",
]
