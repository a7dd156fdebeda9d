"""Eigenvalues level by level: a spectrum over its rank, a report of the zero point."""

import math
from itertools import accumulate

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resid_theory.eigen.spectrum import Spectrum
from resid_theory.eigen.spectrum_report import SpectrumReport
from resid_theory.plots.canvas import MEASURED, PREDICTED, UNIT, figure, legend_above, open_axes
from resid_theory.plots.result_plots import refuse
from resid_theory.theory import ZeroPoint

_LABELLED = 12  # levels; the multiplicities of more would cover the curve


def spectrum(
    measured: Spectrum | SpectrumReport | ZeroPoint,
    *,
    predicted: Spectrum | ZeroPoint | None = None,
    label: str | None = None,
    color: str | None = None,
    unit: str = UNIT,
    ax: Axes | None = None,
) -> Axes:
    """Eigenvalues in ascending order over their rank, a level of multiplicity k being k ranks wide.

    The rank is a share of P, so that nets of different size compare. The axis of eigenvalues is
    symmetric-logarithmic when half of those that are not zero are below 1 % of the largest.

    Args:
        measured: All eigenvalues, as a spectrum or in a report; drawn as a broad line.
        predicted: Drawn as a thin line on top, its multiplicities in the legend, and beside the
            levels where these are few.
        label: Name of ``measured`` in the legend; a zero point is called predicted by default.
        color: Colour of ``measured``.
        unit: Unit of the eigenvalues; with ``wrt="inputs"`` it is ``"loss / input²"``.
        ax: Axes to draw into; new ones by default.

    Returns:
        The axes.

    Raises:
        ValueError: If a result is of another kind or does not list its eigenvalues.
    """
    theirs = ("predicted", PREDICTED) if isinstance(measured, ZeroPoint) else ("measured", MEASURED)
    label, color = label or theirs[0], color or theirs[1]
    measured = _eigenvalues("measured", measured)
    predicted = None if predicted is None else _eigenvalues("predicted", predicted)
    ax = open_axes(ax)
    _stairs(ax, measured, color=color, linewidth=4, label=f"{label}, P = {measured.size}")
    if predicted is not None:
        _stairs(ax, predicted, color=PREDICTED, linewidth=1.2, label=_counted(predicted))
        _label_levels(ax, predicted)
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(xlim=(0, 1), xlabel="rank, as a share of P", ylabel=f"eigenvalue ({unit})")
    _scale(ax, measured)
    legend_above(ax)
    return ax


def zero_point(point: ZeroPoint, *, drawing: Figure | None = None) -> Figure:
    """Singular values of M beside the predicted eigenvalues.

    Args:
        point: The zero point. Where its eigenvalues are not listed (n = 1 at great depth), only
            the singular values are drawn.
        drawing: Empty figure to fill; a new one by default, for files.

    Returns:
        The figure.

    Raises:
        ValueError: If the result is of another kind.
    """
    if not isinstance(point, ZeroPoint):
        refuse("point", point, "ZeroPoint")
    panels = 2 if point.is_listed else 1
    drawing = figure(1, panels) if drawing is None else drawing
    axes = drawing.axes or list(np.atleast_1d(drawing.subplots(1, panels)))
    values = point.singular_values
    axes[0].bar(range(1, len(values) + 1), values, color=MEASURED)
    axes[0].set(xlabel="rank", ylabel="singular value of M", title=point.verdict)
    if point.is_listed:
        spectrum(point, ax=axes[1])
        _label_levels(axes[1], point.spectrum)
    return drawing


def _eigenvalues(argument: str, given: Spectrum | SpectrumReport | ZeroPoint) -> Spectrum:
    """The eigenvalues that a result lists."""
    if isinstance(given, (SpectrumReport, ZeroPoint)):
        found = given.spectrum
        if found is None:
            raise ValueError(
                f"{argument}: this report lists no eigenvalues; rt.plots.spectral_density draws "
                "what it has, and method='dense' lists them"
            )
        return found
    if not isinstance(given, Spectrum):
        refuse(argument, given, "Spectrum", "SpectrumReport", "ZeroPoint")
    return given


def _stairs(ax: Axes, spectrum: Spectrum, *, color: str, linewidth: float, label: str) -> None:
    ends = spectrum.multiplicities.cumsum(0).to(torch.float64) / spectrum.size
    edges = torch.cat([ends.new_zeros(1), ends]).numpy()
    levels = spectrum.levels.numpy()
    ax.stairs(levels, edges, baseline=None, color=color, linewidth=linewidth, label=label)


def _counted(predicted: Spectrum) -> str:
    """Legend of a prediction: how many levels, how often each."""
    counts, levels = predicted.multiplicities, len(predicted.levels)
    low, high = int(counts.min()), int(counts.max())
    if high == 1:
        return "predicted"
    often = f"{low}" if low == high else f"{low} to {high}"
    return f"predicted, {levels} level{'s' * (levels > 1)} × {often}"


def _label_levels(ax: Axes, predicted: Spectrum) -> None:
    """Write each multiplicity beside its level, while there are few and some occur repeatedly."""
    if len(predicted.levels) > _LABELLED or int(predicted.multiplicities.max()) == 1:
        return
    levels, counts = predicted.levels.tolist(), predicted.multiplicities.tolist()
    for level, count, end in zip(levels, counts, accumulate(counts), strict=True):
        middle = (end - count / 2) / predicted.size
        ax.annotate(f"× {count}", (middle, level), (0, 3), textcoords="offset points", ha="center")


def _scale(ax: Axes, spectrum: Spectrum) -> None:
    """A symmetric-logarithmic axis where a linear one would show a flat line and two spikes."""
    top = spectrum.max_magnitude
    if spectrum.rank and spectrum.magnitude(spectrum.size - 1 - spectrum.rank // 2) < 0.01 * top:
        smallest = max(spectrum.magnitude_percentile(10), 1e-8 * top)
        ax.set_yscale("symlog", linthresh=10 ** math.floor(math.log10(smallest)))
