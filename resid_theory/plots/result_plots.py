"""Pictures of results: what draws which, and columns of tables as curves with their intervals."""

from typing import Any, NamedTuple, NoReturn

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from resid_theory._check import check_choice
from resid_theory.plots.canvas import MARKERS, SERIES, UNIT, legend_above, open_axes
from resid_theory.runtime.result import Result


class Curves(NamedTuple):
    """Columns that a kind of result is drawn by: places, numbers, what tells curves apart, law."""

    x: str
    y: str
    of: str | None = None
    law: str | None = None
    scale: str = "linear"
    label: str = ""  # of y, whose name says enough where there is none


# A new result with curves is a row here.
AXES = {
    "BatchSpectra": Curves("batch", "largest", label=f"largest eigenvalue ({UNIT})"),
    "Comparison": Curves("layer", "difference", label="difference of medians"),
    "CompressionBound": Curves("layer", "term", scale="log"),
    "Curve": Curves("eigenvalue", "value"),
    "Descent": Curves("epoch", "loss", "row", scale="log"),
    "Flows": Curves("layer", "share", label="share of dominant flows"),
    "HessianTrajectory": Curves("epoch", "largest", label=f"largest eigenvalue ({UNIT})"),
    "Isometry": Curves("singular_value", "density"),
    "LayerTable": Curves("parameter", "norm", scale="log", label="Frobenius norm of the block"),
    "LossAlong": Curves("distance", "loss", "direction", "quadratic"),
    "NoiseCurves": Curves("level", "measured", "place", "predicted", "log", "relative error"),
    "Run": Curves("epoch", "loss", "net"),
}
PICTURES = {
    **dict.fromkeys(AXES, ("curve",)),
    **dict.fromkeys(("Cushions", "InterlayerCushions"), ("cushion_violins", "cushion_histogram")),
    "Density": ("spectral_density",),
    "PathChart": ("interpolation_path",),
    "Spectrum": ("spectrum", "spectral_density"),
    "SpectrumReport": ("spectrum", "spectral_density"),
    "ZeroPoint": ("zero_point", "spectrum"),
}
_MARKED = 50  # points; more are a line in a band of bars


def refuse(argument: str, given: Any, *kinds: str) -> NoReturn:
    """Raise a ValueError that names the results that are taken, and what draws the given one."""
    kind = type(given).__name__
    others = " or ".join(f"rt.plots.{name}" for name in PICTURES.get(kind, ()))
    hint = f"; {others} draws {kind}" if others else ""
    raise ValueError(f"{argument}: got {kind}, needs {' or '.join(kinds)}{hint}")


def curve(found: Result, column: str | None = None, *, ax: Axes | None = None) -> Axes:
    """One column of a result against layers, epochs, levels of noise or eigenvalues.

    Intervals, quartiles and standard errors of the table are bars. There is a curve for each net,
    row or layer; noise stands beside the law that predicts it.

    Args:
        found: A Comparison, CompressionBound, Curve, Descent, Flows, HessianTrajectory, Isometry,
            LayerTable, LossAlong, NoiseCurves or Run.
        column: A column of ``found.frame()``; by default the one that the result is about.
        ax: Axes to draw into; new ones by default.

    Returns:
        The axes.

    Raises:
        ValueError: If the result is of another kind, or has no such column of numbers.
    """
    axis = AXES.get(type(found).__name__) or refuse("found", found, *AXES)
    table = found.frame()
    name = axis.y if column is None else column
    check_choice("column", name, list(table.select_dtypes("number")))
    ax, law = open_axes(ax), axis.law if name == axis.y else None
    parts = table.groupby(axis.of, sort=False) if axis.of else [(None, table)]
    for number, (kind, rows) in enumerate(parts):
        color, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
        bars = rows.get(f"{name}_error")
        for low, high in (("low", "high"), ("q25", "q75")):
            if f"{name}_{low}" in rows:
                bars = [rows[name] - rows[f"{name}_{low}"], rows[f"{name}_{high}"] - rows[name]]
        label = axis.of and f"{axis.of} {kind}"
        marker = marker if len(rows) <= _MARKED else ""
        form = marker if law else f"{marker}-"
        ax.errorbar(rows[axis.x], rows[name], bars, fmt=form, color=color, mfc="none", label=label)
        if law:
            ax.plot(rows[axis.x], rows[law], color=color)
    ax.set(xlabel=axis.x.replace("_", " "), ylabel=name.replace("_", " "))
    if name == axis.y:
        ax.set(yscale=axis.scale, ylabel=axis.label or ax.get_ylabel())
    if axis.x in ("layer", "parameter"):
        ax.tick_params(axis="x", rotation=90)
    elif axis.x == "level":
        ax.set_xscale("log")
    elif axis.x == "epoch":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif axis.x == "eigenvalue":
        ax.set_xlabel(f"{axis.x} ({UNIT})")
    ax.grid(alpha=0.3)
    if axis.of and len(parts) <= len(SERIES):  # a longer legend would cover the curves
        title = "markers measured, lines predicted" if law else None
        legend_above(ax, title=title)
    return ax
