"""Constructed networks with small weights that interpolate ("Theorem 1")."""

from resid_theory.theory.interpolation.interpolation import (
    Interpolation,
    InterpolationNet,
    interpolate,
)
from resid_theory.theory.interpolation.norm_bounds import least_norm
from resid_theory.theory.interpolation.single_move import move_column, widest_margin
from resid_theory.theory.interpolation.sphere_paths import PathChart, great_arc, path_around

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
