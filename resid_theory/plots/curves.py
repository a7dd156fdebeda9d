"""Curves of one number of several nets: against depth, or over layers."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from resid_theory._check import check_choice
from resid_theory.plots.canvas import MARKERS, SERIES, legend_above, log_ticks, open_axes


def by_depth(
    layers: Sequence[int],
    measured: Mapping[str, Sequence[float]],
    *,
    predicted: Mapping[str, Sequence[float]] | None = None,
    ylabel: str,
    ax: Axes | None = None,
) -> Axes:
    """One quantity of several nets against depth, on logarithmic axes.

    Args:
        layers: Numbers of weight layers, the same for all curves.
        measured: Values by net, drawn as markers; values that are not positive are omitted.
        predicted: Values by net, drawn as lines in the color of the net's markers.
        ylabel: Name of the quantity with its unit.
        ax: Axes to draw into; new ones by default.

    Returns:
        The axes.

    Raises:
        ValueError: If a curve has another number of values than there are layers, or a prediction
            another name.
    """
    lines = predicted or {}
    _check_curves(len(layers), measured=measured, predicted=lines)
    ax = open_axes(ax)
    for number, (net, values) in enumerate(measured.items()):
        color, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
        ax.plot(layers, _drawable(values), marker, color=color, markersize=7, label=net)
        if net in lines:
            ax.plot(layers, _drawable(lines[net]), color=color)
    ax.set(xscale="log", yscale="log", xlabel="weight layers", ylabel=ylabel)
    ax.set_xticks(list(layers), [str(count) for count in layers])
    ax.minorticks_off()
    log_ticks(ax.yaxis)
    ax.grid(alpha=0.3)
    title = "markers measured, lines predicted" if lines else None
    legend_above(ax, title=title)
    return ax


def flow_curve(
    positions: Sequence[float],
    shares: Mapping[str, Sequence[float]],
    *,
    errors: Mapping[str, Sequence[float]] | None = None,
    predicted: Mapping[str, Sequence[float]] | None = None,
    xlabel: str = "layer",
    ax: Axes | None = None,
) -> Axes:
    """Shares of dominant flows over layers, or over another varied quantity.

    Args:
        positions: Horizontal positions of all curves.
        shares: Shares in [0, 1] by net, drawn as markers.
        errors: Standard errors by net, drawn as bars of one standard error to each side.
        predicted: Shares by net, drawn as lines in the color of the net's markers; without them
            lines join the markers.
        xlabel: Name of the positions with their unit.
        ax: Axes to draw into; new ones by default.

    Returns:
        The axes.

    Raises:
        ValueError: If a curve has another number of values than there are positions, or an error or
            a prediction another name.

    Source:
        Yu & Tomasi, arXiv:1905.10944, Figures 11 and 12.
    """
    lines = predicted or {}
    _check_curves(len(positions), shares=shares, errors=errors or {}, predicted=lines)
    ax = open_axes(ax)
    for number, (net, values) in enumerate(shares.items()):
        color, marker = SERIES[number % len(SERIES)], MARKERS[number % len(MARKERS)]
        bars = (errors or {}).get(net)
        style = marker if net in lines else marker + "-"
        ax.errorbar(positions, values, bars, fmt=style, color=color, mfc="none", label=net)
        if net in lines:
            ax.plot(positions, lines[net], color=color)
    ax.set(xlabel=xlabel, ylabel="share of dominant flows", ylim=(-0.03, 1.03))
    title = "markers measured, lines predicted" if lines else None
    legend_above(ax, title=title)
    return ax


def _check_curves(count: int, **curves: Mapping[str, Sequence[float]]) -> None:
    """Raise a ValueError unless curves have ``count`` values, and the first ones all names."""
    names: list[str] = []
    for argument, given in curves.items():
        if not isinstance(given, Mapping):
            kind = type(given).__name__
            raise ValueError(f"{argument}: got {kind}, needs values by name of the net")
        names = names or list(given)
        for net, values in given.items():
            check_choice(argument, net, names)
            if len(values) != count:
                raise ValueError(
                    f"{argument}: got {len(values)} values of {net!r} for {count} places, needs "
                    "one for each"
                )


def _drawable(values: Sequence[float]) -> list[float]:
    """The positive finite numbers, with a gap for the others."""
    return [value if 0 < value < math.inf else math.nan for value in values]
