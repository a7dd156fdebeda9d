"""Dominant gradient flow in closed form."""

from resid_theory.theory.flow.flow import TrivialFlow
from resid_theory.theory.flow.gaussian import exceedance, exceedance_integral, logistic

__all__ = [
    "TrivialFlow",
    "exceedance",
    "exceedance_integral",
    "logistic",
]
