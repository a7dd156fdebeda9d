"""Figures, axes and colours shared by all plots."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resid_theory._check import check_int

__all__ = [
    "MARKERS",
    "MEASURED",
    "PREDICTED",
    "SERIES",
    "UNIT",
    "figure",
    "headroom",
    "open_axes",
    "png",
]

# Okabe and Ito's palette, told apart by colour-blind readers; Wong, Nature Methods 8, 441 (2011).
MEASURED, PREDICTED = "#56B4E9", "#D55E00"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P")
UNIT = "loss / weight²"


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
    buffer = io.BytesIO()
    # matplotlib would write its version into the file; the bytes should depend on the drawing only.
    drawing.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def open_axes(ax: Axes | None) -> Axes:
    """The given axes, or new ones in a figure that a notebook shows."""
    if ax is not None:
        return ax
    # Imported here, since pyplot chooses a backend for the whole process.
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def headroom(ax: Axes, share: float) -> None:
    """Make room for the legend above all data, on any scale of the axis."""
    ax.autoscale(axis="y")  # again: an earlier curve may have made room already
    transform = ax.yaxis.get_transform()
    low, high = transform.transform(np.array(ax.get_ylim()))
    (top,) = transform.inverted().transform(np.array([high + share * (high - low)]))
    ax.set_ylim(top=top)
