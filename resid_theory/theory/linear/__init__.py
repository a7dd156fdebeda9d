"""Linear networks at any weights, from the moments of the data."""

from resid_theory.theory.linear.hessian_assembly import linear_hessian
from resid_theory.theory.linear.linear_nets import (
    Unit,
    definition5_order,
    linear_gradient,
    linear_hvp,
    linear_loss,
    linear_optimum,
    rotated_moments,
)

__all__ = [
    "Unit",
    "definition5_order",
    "linear_gradient",
    "linear_hessian",
    "linear_hvp",
    "linear_loss",
    "linear_optimum",
    "rotated_moments",
]
