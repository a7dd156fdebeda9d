"""Drawings of results: the only matplotlib in the library. Nothing is computed here but bins.

Every function draws into ``ax`` and returns it; without one it opens a figure by pyplot, so that a
notebook shows it. :func:`figure` and :func:`png` need no display and leave no window behind.
"""

from resid_theory.plots.canvas import figure, png
from resid_theory.plots.curves import by_depth, flow_curve
from resid_theory.plots.cushion_plots import cushion_histogram, cushion_violins
from resid_theory.plots.density_plots import spectral_density
from resid_theory.plots.matrices import folded_filters, hessian_pattern
from resid_theory.plots.spectrum_plots import spectrum, zero_point
from resid_theory.plots.sphere_plots import interpolation_path

__all__ = [
    "by_depth",
    "cushion_histogram",
    "cushion_violins",
    "figure",
    "flow_curve",
    "folded_filters",
    "hessian_pattern",
    "interpolation_path",
    "png",
    "spectral_density",
    "spectrum",
    "zero_point",
]
