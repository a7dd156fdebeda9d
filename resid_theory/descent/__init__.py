"""Full-batch gradient descent of many n-shortcut nets at once, and the curvature along it."""

from resid_theory.descent.hessian_trajectory import SpectraAlong, at_loss, spectra_along
from resid_theory.descent.path import Descent
from resid_theory.descent.stacked_descent import gradient_descent

__all__ = ["Descent", "SpectraAlong", "at_loss", "gradient_descent", "spectra_along"]
