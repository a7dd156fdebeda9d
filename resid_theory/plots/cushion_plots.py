"""Cushions over samples: histograms of one layer, violins of all layers."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from resid_theory.plots.canvas import SERIES, legend_above, log_ticks, open_axes, round_numbers
from resid_theory.plots.result_plots import refuse
from resid_theory.stability.sample_statistics import Summaries


def cushion_histogram(
    measured: Summaries | Mapping[str, Summaries],
    layer: str,
    *,
    bins: int = 40,
    ax: Axes | None = None,
) -> Axes:
    """Histograms of one layer's cushions over the samples, several nets in the same bins.

    The axis of cushions is logarithmic if the largest exceeds 20 times the smallest. A dashed line
    marks the median of each net; the legend gives it and the number of samples.

    Args:
        measured: Layer or interlayer cushions, of one net or by name of the net.
        layer: Name of a layer that all nets have.
        bins: Number of bins over the common range.
        ax: Axes to draw into; new ones by default.

    Returns:
        The axes.

    Raises:
        ValueError: If a result is of another kind, or a net has no such layer or no finite cushion
            in it.

    Source:
        Yu & Tomasi, arXiv:1905.10944, Figure 3.
    """
    measured, ax = _nets(measured), open_axes(ax)
    rows = {net: _finite_row(net, found, layer) for net, found in measured.items()}
    low, high = (min(map(np.min, rows.values())), max(map(np.max, rows.values())))
    wide = 0 < 20 * low < high
    edges = np.geomspace(low, high, bins + 1) if wide else np.linspace(low, high, bins + 1)
    if low == high:
        edges = np.array([0.5, 1.5]) * low if low else np.array([-0.5, 0.5])
    for number, (net, values) in enumerate(rows.items()):
        color, median = SERIES[number % len(SERIES)], float(np.median(values))
        label = f"{net}, median {median:.3g}, |S| = {len(values)}"
        ax.hist(values, edges.tolist(), color=color, alpha=0.5, label=label)
        ax.axvline(median, color=color, linestyle="--", linewidth=1.2)
    ax.set(xlabel=f"cushion of {layer}", ylabel="samples", xscale="log" if wide else "linear")
    if wide:
        log_ticks(ax.xaxis)
    legend_above(ax)
    return ax


def cushion_violins(
    measured: Summaries | Mapping[str, Summaries], *, ax: Axes | None = None
) -> Axes:
    """Cushions of every layer as violins over the samples, several nets side by side.

    A violin reaches from the smallest to the largest cushion; its bar is the median. The axis is
    logarithmic, because cushions within a net differ by factors.

    Args:
        measured: Layer or interlayer cushions, of one net or by name of the net; the layers of the
            first net are drawn, for the other nets those among them that they have.
        ax: Axes to draw into; new ones by default.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no net, or a result is of another kind.
    """
    measured = _nets(measured)
    ax, layers = open_axes(ax), next(iter(measured.values())).rows
    width = 0.8 / len(measured)
    for number, (net, found) in enumerate(measured.items()):
        color = SERIES[number % len(SERIES)]
        shift = (number - (len(measured) - 1) / 2) * width
        drawn = [(k, _finite_row(net, found, name)) for k, name in enumerate(layers)
                 if name in found.rows]  # fmt: skip
        # In logarithms, so that the density belongs to the axis.
        values = [np.log10(row[row > 0]) for _, row in drawn]
        places = [k + shift for k, _ in drawn]
        parts = ax.violinplot(values, places, widths=width, showextrema=False, showmedians=True)
        for body in parts["bodies"]:  # type: ignore[attr-defined]
            body.set(facecolor=color, alpha=0.6)
        parts["cmedians"].set_color(color)
        ax.plot([], [], color=color, linewidth=6, alpha=0.6, label=f"{net}, |S| = {found.samples}")
    ax.set_xticks(range(len(layers)), layers, rotation=90)
    ax.set(xlabel="layer", ylabel="cushion, logarithmic")
    ax.grid(axis="y", alpha=0.3)
    ticks = round_numbers(*ax.get_ylim())
    ax.set_yticks(np.log10(ticks), [f"{tick:.3g}" for tick in ticks])
    legend_above(ax)
    return ax


def _nets(measured: Summaries | Mapping[str, Summaries]) -> Mapping[str, Summaries]:
    """Cushions by name of the net."""
    nets = measured if isinstance(measured, Mapping) else {"cushions": measured}
    if not nets:
        raise ValueError("measured: got no net, needs cushions by name of the net")
    for found in nets.values():
        if not isinstance(found, Summaries):
            refuse("measured", found, "Cushions", "InterlayerCushions")
    return nets


def _finite_row(net: str, found: Summaries, layer: str) -> np.ndarray:
    """The finite cushions of one layer."""
    if layer not in found.rows:
        raise ValueError(f"layer: {net} has no {layer!r}, it has {', '.join(found.rows)}")
    values = found.values[found.rows.index(layer)].numpy()
    values = values[np.isfinite(values)]
    if len(values) == 0:
        raise ValueError(f"layer: {net} has no finite cushion in {layer!r}")
    return values
