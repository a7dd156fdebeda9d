"""Dominant gradient flow in closed form."""

from resid_theory.theory.flow.gaussian import exceedance, exceedance_integral, logistic
from resid_theory.theory.flow.pointwise_flow import TrivialFlow

__all__ = [
    "TrivialFlow",
    "exceedance",
    "exceedance_integral",
    "logistic",
]
