"""Networks with small weights that interpolate, built by hand ("Theorem 1")."""

from resid_theory.theory.interpolation.columns import move_column, widest_margin
from resid_theory.theory.interpolation.interpolation import (
    Interpolation,
    InterpolationNet,
    interpolate,
)
from resid_theory.theory.interpolation.separation import least_norm
from resid_theory.theory.interpolation.sphere import PathChart, great_arc, path_around

__all__ = [
    "Interpolation",
    "InterpolationNet",
    "PathChart",
    "great_arc",
    "interpolate",
    "least_norm",
    "move_column",
    "path_around",
    "widest_margin",
]
