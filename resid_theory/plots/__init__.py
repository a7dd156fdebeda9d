"""Plots of results. Nothing is computed here except bins.

Every function draws into ``ax`` and returns it; without ``ax`` it opens a pyplot figure, which a
notebook shows. :func:`figure` and :func:`png` need no display and open no window.
"""

from resid_theory.plots.canvas import figure, finish, png, style, svg
from resid_theory.plots.curves import by_depth, flow_curve
from resid_theory.plots.cushion_plots import cushion_histogram, cushion_violins
from resid_theory.plots.density_plots import spectral_density
from resid_theory.plots.matrices import folded_filters, hessian_pattern
from resid_theory.plots.result_plots import curve
from resid_theory.plots.spectrum_plots import spectrum, zero_point
from resid_theory.plots.sphere_plots import interpolation_path

__all__ = [
    "by_depth",
    "curve",
    "cushion_histogram",
    "cushion_violins",
    "figure",
    "finish",
    "flow_curve",
    "folded_filters",
    "hessian_pattern",
    "interpolation_path",
    "png",
    "spectral_density",
    "spectrum",
    "style",
    "svg",
    "zero_point",
]
