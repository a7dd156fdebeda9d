"""Figures, axes and colours shared by all plots."""

import io
import math
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
import seaborn
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import Collection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.rcsetup import cycler
from matplotlib.ticker import AutoLocator, FixedLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation
from PIL import Image

from resid_theory._check import check_int

# After Okabe and Ito's palette, told apart by colour-blind readers, but for its pale yellow.
_PALETTE = seaborn.color_palette("colorblind").as_hex()
SERIES = (*_PALETTE[:8], "#332288", _PALETTE[9])
MEASURED, PREDICTED = SERIES[9], SERIES[3]
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
UNIT = "loss / weight²"
_TITLE = 18  # points
_LABELS = 0.7  # inches that an axis and its numbers take on the left
_DIGITS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))


def style() -> dict[Any, Any]:
    """Settings of matplotlib that all figures share; use them by ``matplotlib.rc_context``."""
    return {
        **seaborn.axes_style("ticks"),
        **seaborn.plotting_context("paper", font_scale=1.1),
        "axes.prop_cycle": cycler(color=SERIES),
        "axes.spines.right": False,
        "axes.spines.top": False,
        # Comes with matplotlib: text has the same size everywhere.
        "font.sans-serif": ["DejaVu Sans"],
        "legend.frameon": False,
        "lines.markersize": 5,
        # seaborn's white edges would hide boxes and arrows.
        "patch.edgecolor": "black",
        "patch.force_edgecolor": False,
        "savefig.dpi": 150,
        "svg.fonttype": "none",
    }


def figure(rows: int = 1, columns: int = 1, *, panel: tuple[float, float] = (4.8, 3.9)) -> Figure:
    """An empty figure with a grid of axes, for files; it opens no window.

    Args:
        rows: Number of rows of panels.
        columns: Number of columns of panels.
        panel: Width and height of one panel in inches.

    Returns:
        The figure; ``figure.axes`` are its panels, row by row.

    Raises:
        ValueError: If a number of panels is not a whole number of at least 1.
    """
    size = (panel[0] * check_int("columns", columns), panel[1] * check_int("rows", rows))
    with matplotlib.rc_context(style()):
        drawing = Figure(figsize=size, layout="constrained")
        drawing.subplots(rows, columns)
    return drawing


def png(drawing: Figure, *, dpi: float = 150) -> bytes:
    """Content of a PNG file of a figure; equal drawings give equal bytes.

    Args:
        drawing: The figure.
        dpi: Dots per inch.

    Returns:
        The bytes.
    """
    before, dots = drawing.canvas, drawing.dpi
    # Not savefig, which draws twice: once to lay out.
    canvas = FigureCanvasAgg(drawing)
    try:
        drawing.dpi = dpi
        canvas.draw()
    finally:
        drawing.dpi = dots
        drawing.set_canvas(before)
    # A palette makes a third of the bytes; chosen in this way it keeps the colours of thin lines.
    image, small = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), io.BytesIO()
    image.quantize(method=Image.Quantize.MAXCOVERAGE).save(small, format="png", optimize=True)
    return small.getvalue()


def svg(drawing: Figure) -> bytes:
    """Content of an SVG file of a figure, whose text stays text.

    Args:
        drawing: The figure.

    Returns:
        The bytes.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "resid_theory"}):
        drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def open_axes(ax: Axes | None) -> Axes:
    """The given axes, or new ones in a figure that a notebook shows."""
    if ax is not None:
        return ax
    # Imported here, since pyplot chooses a backend for the whole process.
    from matplotlib import pyplot

    with matplotlib.rc_context(style()):
        return pyplot.subplots(layout="constrained")[1]


def legend_above(ax: Axes, **given: Any) -> None:
    """A legend above the axes, where it hides no curve, with room for a title between."""
    labels = given.get("labels", ax.get_legend_handles_labels()[1])
    spec = ax.get_subplotspec()
    width = ax.figure.bbox.width / ax.figure.dpi / (spec.get_gridspec().ncols if spec else 1)
    above = ax.transAxes + ScaledTranslation(0, _TITLE / 72, ax.figure.dpi_scale_trans)
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "bbox_transform": above}
    ax.legend(
        ncols=_columns(labels, width - _LABELS),
        frameon=False,
        alignment="left",
        borderaxespad=0,
        **place,
        **given,
    )


def _columns(labels: list[str], width: float) -> int:
    """Columns of a legend that fit into a width in inches."""
    longest = max(map(len, labels), default=0) + 7  # a handle and its gaps
    return min(max(1, int(11 * width / longest)), max(1, len(labels)))


def finish(drawing: Figure) -> None:
    """Make a drawn figure fit to print.

    Legends move out of the axes, where they hide no curve; equal ones become one. Logarithmic axes
    of few decades get several ticks with plain numbers, linear ones at least three ticks, at whole
    numbers below counts; chosen ticks stay. Colours of the cycle become those of :func:`style`,
    for whoever saves the figure later.

    Args:
        drawing: The figure, drawn within ``matplotlib.rc_context(style())``.
    """
    for ax in drawing.axes:
        legend = ax.get_legend()
        for drawn in [*ax.get_children(), *(legend.legend_handles if legend else ())]:
            if isinstance(drawn, Line2D):
                drawn.set_color(to_hex(drawn.get_color(), keep_alpha=True))
            elif isinstance(drawn, Collection) and drawn.get_array() is None:
                # The edges of others follow their numbers when drawn.
                drawn.set(facecolor=drawn.get_facecolor(), edgecolor=drawn.get_edgecolor())
        # Numbers, also where the axis has names.
        data = [np.asarray(line.get_xdata(orig=False)) for line in ax.lines]
        counts = bool(data) and all(np.all(values == np.round(values)) for values in data)
        for axis, whole in ((ax.xaxis, counts), (ax.yaxis, False)):
            if isinstance(locator := axis.get_major_locator(), AutoLocator):
                locator.set_params(integer=whole, min_n_ticks=2 if whole else 3)
    for axis in (axis for ax in drawing.axes for axis in (ax.xaxis, ax.yaxis)):
        if axis.get_scale() == "log" and not isinstance(axis.get_major_locator(), FixedLocator):
            log_ticks(axis)
    _legends_beside(drawing)


def _legends_beside(drawing: Figure) -> None:
    legends = {ax: legend for ax in drawing.axes if (legend := ax.get_legend()) is not None}
    texts = {ax: [text.get_text() for text in legends[ax].get_texts()] for ax in legends}
    one = len({tuple(labels) for labels in texts.values()}) == 1
    panels = len({ax.get_subplotspec() for ax in drawing.axes if ax.get_subplotspec()})
    for number, (ax, legend) in enumerate(legends.items()):
        handles, found = ax.get_legend_handles_labels()
        labels = texts[ax]
        given: dict[str, Any] = {
            "handles": handles if found == labels else legend.legend_handles,
            "labels": labels,
            "title": fill(legend.get_title().get_text(), 30 if panels == 1 else 60) or None,
        }
        legend.remove()
        if not one:
            legend_above(ax, **given)
        elif number == 0:
            columns = _columns(labels, drawing.get_figwidth())
            if panels == 1 and (max(map(len, labels)) <= 20 or len(labels) > 3 * columns):
                drawing.legend(loc="outside right upper", **given)
            else:
                drawing.legend(loc="outside upper center", ncols=columns, **given)


def log_ticks(axis: Axis) -> None:
    """Give a logarithmic axis of few decades several ticks with plain numbers."""
    low, high = sorted(math.log10(end) for end in axis.get_view_interval())
    if math.floor(high) - math.ceil(low) < 2:  # fewer than three powers of ten
        ticks = round_numbers(low, high)
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_minor_formatter(NullFormatter())


def round_numbers(low: float, high: float) -> list[float]:
    """Round numbers with logarithms in an interval: the coarsest set with at least three."""
    powers = range(math.floor(low), math.floor(high) + 1)
    sets = [[digit * 10.0**k for k in powers for digit in digits] for digits in _DIGITS]
    even = MaxNLocator(6, steps=[1, 2, 5, 10], min_n_ticks=3).tick_values(10**low, 10**high)
    sets.append([tick for tick in even if tick > 0])
    inside = [[tick for tick in ticks if low <= math.log10(tick) <= high] for ticks in sets]
    return next((ticks for ticks in inside if len(ticks) >= 3), inside[-1])
