"""Maps of the sphere that the columns of an interpolating net move on."""

import numpy as np
from matplotlib.axes import Axes

from resid_theory.plots.canvas import PREDICTED, SERIES, legend_above, open_axes
from resid_theory.plots.result_plots import refuse
from resid_theory.runtime.result import Result
from resid_theory.theory.interpolation.sphere_paths import PathChart


def interpolation_path(
    chart: PathChart, *, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """A column's path on a map of the sphere: the great arc, with detours around other columns.

    Args:
        chart: ``result.chart(sample)`` of ``rt.theory.interpolate``; arrays will do.
        ax: Axes to draw into; new ones by default.
        title: Title of the axes.

    Returns:
        The axes.

    Raises:
        ValueError: If a result is of another kind.

    Source:
        Li et al., arXiv:1611.01186, Figure 10 (there a schematic).
    """
    if isinstance(chart, Result) and not isinstance(chart, PathChart):
        refuse("chart", chart, "PathChart: result.chart(sample) of an Interpolation")
    ax = open_axes(ax)
    for number, circle in enumerate(np.asarray(chart.circles)):
        label = "kept clear of other columns" if number == 0 else None
        ax.fill(*circle.T, color="0.85", linewidth=0, label=label)
    arc, path, steps = (np.asarray(curve) for curve in (chart.arc, chart.path, chart.steps))
    ax.plot(*arc.T, "--", color="0.5", linewidth=1, label="great arc")
    ax.plot(*path.T, color=SERIES[0], label="path")
    label = f"{len(steps) - 1} units"
    ax.plot(*steps.T, "o", color=PREDICTED, markersize=3, label=label)
    ax.set(xlabel="along the great arc (radians)", ylabel="away from it (radians)")
    ax.set(title=title, aspect="equal")
    legend_above(ax)
    return ax
