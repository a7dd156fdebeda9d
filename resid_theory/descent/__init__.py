"""Full-batch gradient descent of many n-shortcut nets at once, and the curvature along it."""

from resid_theory.descent.path import Descent
from resid_theory.descent.stacked_descent import gradient_descent
from resid_theory.descent.trajectory import HessianTrajectory, at_loss, hessian_trajectory

__all__ = ["Descent", "HessianTrajectory", "at_loss", "gradient_descent", "hessian_trajectory"]
