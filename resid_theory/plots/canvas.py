"""What every drawing starts from: figures, files of them, axes, colours."""

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
    """An empty figure with a grid of axes, for files: it belongs to no window.

    Args:
        rows: Panels from top to bottom.
        columns: Panels from left to right.
        panel: Width and height of one panel, inches.

    Returns:
        The figure; ``figure.axes`` are its panels, row by row.
    """
    size = (panel[0] * check_int("columns", columns), panel[1] * check_int("rows", rows))
    drawing = Figure(figsize=size, layout="constrained")
    drawing.subplots(rows, columns)
    return drawing


def png(drawing: Figure, *, dpi: float = 150) -> bytes:
    """A figure as the bytes of a PNG file, equal for equal drawings.

    Args:
        drawing: The figure.
        dpi: Dots an inch.

    Returns:
        The file's content.
    """
    buffer = io.BytesIO()
    # matplotlib would stamp its version into the file; the bytes should tell only the drawing.
    drawing.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def open_axes(ax: Axes | None) -> Axes:
    """The axes that were given, or new ones in a figure that a notebook shows.

    Args:
        ax: Axes, or None.

    Returns:
        Axes to draw into.
    """
    if ax is not None:
        return ax
    # Only here: pyplot chooses a backend for the whole process when it is imported.
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def headroom(ax: Axes, share: float) -> None:
    """Make room for the legend above all data, whatever the scale of the axis.

    Args:
        ax: Axes with everything drawn.
        share: Height of the room, as a share of the range that the data take.
    """
    ax.autoscale(axis="y")  # anew: another curve may have been drawn, and given room, before
    transform = ax.yaxis.get_transform()
    low, high = transform.transform(np.array(ax.get_ylim()))
    (top,) = transform.inverted().transform(np.array([high + share * (high - low)]))
    ax.set_ylim(top=top)
