"""Densities of eigenvalues, with their error bars and beside exact ones."""

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from resid_theory._check import check_choice
from resid_theory.eigen.density import Density
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.eigen.spectrum_report import SpectrumReport
from resid_theory.plots.canvas import MEASURED, PREDICTED, UNIT, legend_above, open_axes
from resid_theory.plots.result_plots import refuse


def spectral_density(
    estimate: SpectrumReport | Density | Spectrum,
    *,
    exact: Spectrum | None = None,
    scale: str = "linear",
    width: float | None = None,
    unit: str = UNIT,
    ax: Axes | None = None,
) -> Axes:
    """Density of the eigenvalues, with two standard errors around it and the extremes marked.

    Args:
        estimate: A report, a density or a spectrum; eigenvalues are drawn as their histogram.
        exact: All eigenvalues, where they are known, drawn behind by the same kernel, alone as a
            histogram; those of a dense report by default.
        scale: ``linear`` or ``symlog``: of the eigenvalues. The density is per unit of eigenvalue
            on both.
        width: Standard deviation of the kernel, in units of the eigenvalues; what the quadrature
            resolves by default.
        unit: Unit of the eigenvalues; with ``wrt="inputs"`` it is ``"loss / input²"``.
        ax: Axes to draw into; new ones by default.

    Returns:
        The axes; the density is on a logarithmic axis.

    Raises:
        ValueError: If the result is of another kind, if a report holds neither eigenvalues nor a
            density, or if a name is unknown.
    """
    check_choice("scale", scale, ("linear", "symlog"))
    density, known, marks = _parts(estimate)
    exact = known if exact is None else exact
    if density is None and exact is None:
        raise ValueError(
            "estimate: this report has no density and no eigenvalues; ask for it by density=True"
        )
    ax = open_axes(ax)
    low, high, near = _extent(density, exact)
    places = _places(low, high, near, scale)
    if density is not None:
        kernel = _band(ax, density, places, width)
    if exact is not None and density is not None:
        _smoothed(ax, exact, places, kernel)
    elif exact is not None:
        _histogram(ax, exact, places)
    for mark in marks:
        ax.axvline(mark, ymax=0.06, color=PREDICTED, linewidth=1.5)
    if scale == "symlog":
        ax.set_xscale("symlog", linthresh=near)
    ax.set(yscale="log", xlabel=f"eigenvalue ({unit})", ylabel="density (1 / eigenvalue)")
    size = density.size if density is not None else exact.size if exact is not None else 0
    bottom = 0.1 / (size * (high - low or abs(high) or 1.0))
    ax.set_ylim(bottom=bottom)
    legend_above(ax, title=f"P = {size}")
    return ax


def _parts(
    estimate: SpectrumReport | Density | Spectrum,
) -> tuple[Density | None, Spectrum | None, list[float]]:
    """Density, eigenvalues and extremes of what was given."""
    if isinstance(estimate, Density):
        return estimate, None, estimate.known.tolist()
    if isinstance(estimate, Spectrum):
        return None, estimate, [estimate.largest, estimate.smallest]
    if not isinstance(estimate, SpectrumReport):
        refuse("estimate", estimate, "SpectrumReport", "Density", "Spectrum")
    extremes = [end.value for end in (*estimate.largest, *estimate.smallest)]
    return estimate.density, estimate.spectrum, extremes


def _extent(density: Density | None, exact: Spectrum | None) -> tuple[float, float, float]:
    """Ends of what is drawn, and the |λ| below which a symlog axis is linear."""
    ends = [e for e in (density, exact) if e is not None]
    low, high = min(e.smallest for e in ends), max(e.largest for e in ends)
    top = max(abs(low), abs(high)) or 1.0
    if high - low <= 1e-9 * top:  # equal but for round-off
        low = high
    near = max(0.0 if density is None else density.resolution, 1e-4 * top)
    return low, high, 10 ** math.floor(math.log10(near))


def _places(low: float, high: float, near: float, scale: str) -> Tensor:
    """Places to draw at, even on the axis."""
    slack = 0.05 * (high - low) or abs(high) or 1.0
    low, high = low - slack, high + slack
    if scale == "linear":
        return torch.linspace(low, high, 501, dtype=torch.float64)
    ends = torch.tensor([low, high], dtype=torch.float64) / near
    first, last = (ends / 2).asinh().tolist()
    return 2 * near * torch.linspace(first, last, 501, dtype=torch.float64).sinh()


def _histogram(ax: Axes, exact: Spectrum, places: Tensor) -> None:
    edges = places[::5].contiguous()
    counts = torch.zeros(len(edges) - 1, dtype=torch.float64)
    bins = torch.searchsorted(edges, exact.levels) - 1
    counts.index_add_(0, bins, exact.multiplicities.double())
    heights = counts / exact.size / edges.diff()
    ax.stairs(heights.numpy(), edges.numpy(), fill=True, color=MEASURED, label="exact")


def _smoothed(ax: Axes, exact: Spectrum, places: Tensor, width: float) -> None:
    """The density of known eigenvalues, by the kernel of the estimate that stands beside it."""
    apart = (places[:, None] - exact.levels) / width
    heights = torch.exp(-0.5 * apart.square()) @ exact.multiplicities.double()
    heights /= exact.size * width * math.sqrt(2 * math.pi)
    ax.fill_between(places.numpy(), heights.numpy(), color=MEASURED, linewidth=0, label="exact")


def _band(ax: Axes, density: Density, places: Tensor, width: float | None) -> float:
    """The estimate with its errors; returns the width of its kernel."""
    curve = density.smoothed(places, width=width)
    values, errors = curve.values.numpy(), curve.standard_errors.numpy()
    label = f"{density.probes} probes, kernel {curve.width:.2g}"
    ax.plot(places.numpy(), values, color="black", linewidth=1.2, label=label)
    lower = np.maximum(values - 2 * errors, 0)
    ax.fill_between(places.numpy(), lower, values + 2 * errors, color="black", alpha=0.25)
    return curve.width
