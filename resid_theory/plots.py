"""Drawings of results: the only matplotlib in the library. Nothing is computed here but bins.

Every function draws into ``ax`` and returns it; without one it opens a figure by pyplot, so that a
notebook shows it. :func:`figure` and :func:`png` need no display and leave no window behind.
"""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor, nn

from resid_theory._check import choose, positive, whole
from resid_theory.curvature.report import SpectrumReport
from resid_theory.densities import Density
from resid_theory.spectra import Spectrum
from resid_theory.stability.summaries import Summaries
from resid_theory.theory import ZeroPointReport
from resid_theory.theory.sphere import PathChart

__all__ = [
    "by_depth",
    "cushion_histogram",
    "cushion_violins",
    "figure",
    "flow_curve",
    "folded_filters",
    "hessian_pattern",
    "interpolation_path",
    "png",
    "spectral_density",
    "spectrum",
    "zero_point",
]

# Okabe and Ito's palette, told apart by colour-blind readers; Wong, Nature Methods 8, 441 (2011).
_MEASURED, _PREDICTED = "#56B4E9", "#D55E00"
_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_UNIT = "loss / weight²"
_PIXELS = 300  # of a drawn matrix along one side: what half a page shows without losing entries
_LABELLED = 12  # levels; the multiplicities of more would cover the curve


def figure(rows: int = 1, columns: int = 1, *, panel: tuple[float, float] = (4.8, 3.9)) -> Figure:
    """An empty figure with a grid of axes, for files: it belongs to no window.

    Args:
        rows: Panels from top to bottom.
        columns: Panels from left to right.
        panel: Width and height of one panel, inches.

    Returns:
        The figure; ``figure.axes`` are its panels, row by row.
    """
    size = (panel[0] * whole("columns", columns), panel[1] * whole("rows", rows))
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


def spectrum(
    measured: Spectrum,
    *,
    predicted: Spectrum | None = None,
    label: str = "measured",
    color: str = _MEASURED,
    ax: Axes | None = None,
) -> Axes:
    """Eigenvalues in ascending order over their rank, a level of multiplicity k being k ranks wide.

    The rank is a share of P, so that nets of different size compare. The axis of eigenvalues is
    symmetric-logarithmic when half of those that are not zero are below 1 % of the largest.

    Args:
        measured: Drawn as a broad line.
        predicted: Drawn as a thin line on top, its multiplicities in the legend, and beside the
            levels where these are few.
        label: Name of ``measured`` in the legend.
        color: Colour of ``measured``.
        ax: Axes to draw into; new ones by default.

    Returns:
        The axes.
    """
    ax = _axes(ax)
    _stairs(ax, measured, color=color, linewidth=4, label=f"{label}, P = {measured.size}")
    if predicted is not None:
        _stairs(ax, predicted, color=_PREDICTED, linewidth=1.2, label=_counted(predicted))
        _label_levels(ax, predicted)
    ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(xlim=(0, 1), xlabel="rank, as a share of P", ylabel=f"eigenvalue ({_UNIT})")
    _scale(ax, measured)
    _headroom(ax, 0.1 * len(ax.get_legend_handles_labels()[1]))
    ax.legend(loc="upper left", frameon=False)
    return ax


def hessian_pattern(
    matrix: Tensor | np.ndarray,
    *,
    block: int | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Signed heat map of a Hessian, with lines around its diagonal blocks.

    A matrix with more rows than pixels is binned: a pixel shows its entry of largest magnitude, so
    that a sparse pattern survives.

    Args:
        matrix: (P, P), in units of loss per weight².
        block: Rows of a diagonal block, e.g. the parameters under one shortcut; lines are drawn
            around each. None for no lines.
        ax: Axes to draw into; new ones by default.
        title: Title of the axes.

    Returns:
        The axes; the colour bar is beside them.

    Raises:
        ValueError: If the matrix is not square.

    Source:
        Li et al., arXiv:1611.01186, Figure 11 (there a schematic).
    """
    matrix = matrix.detach().cpu().numpy() if isinstance(matrix, Tensor) else np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix: got shape {tuple(matrix.shape)}, needs a square matrix (P, P)")
    ax, size = _axes(ax), len(matrix)
    values = _binned(matrix)
    top = float(np.abs(values).max()) or 1.0
    image = ax.imshow(
        values,
        cmap="RdBu_r",
        norm=Normalize(-top, top),
        extent=(0, size, size, 0),
        interpolation="nearest",
    )
    for edge in range(0, size + 1, whole("block", block)) if block else ():
        ax.axhline(edge, color="0.4", linewidth=0.6)
        ax.axvline(edge, color="0.4", linewidth=0.6)
    ax.set(xlabel="parameter", ylabel="parameter", title=title or "")
    ax.figure.colorbar(image, ax=ax, shrink=0.85, label=f"second derivative ({_UNIT})")
    return ax


def by_depth(
    layers: Sequence[int],
    measured: Mapping[str, Sequence[float]],
    *,
    predicted: Mapping[str, Sequence[float]] | None = None,
    ylabel: str,
    ax: Axes | None = None,
) -> Axes:
    """One number of several nets against depth, both axes logarithmic.

    Args:
        layers: Weight layers of the nets, the same for all curves.
        measured: Values above zero by net, drawn as markers; others are left out.
        predicted: Values by net, drawn as lines in the colour of the net's markers.
        ylabel: What the number is, with its unit.
        ax: Axes to draw into; new ones by default.

    Returns:
        The axes.
    """
    ax, lines = _axes(ax), predicted or {}
    for number, (net, values) in enumerate(measured.items()):
        color, marker = _SERIES[number % len(_SERIES)], _MARKERS[number % len(_MARKERS)]
        ax.plot(layers, _drawable(values), marker, color=color, markersize=7, label=net)
        ax.plot(layers, _drawable(lines.get(net, [math.nan] * len(layers))), color=color)
    ax.set(xscale="log", yscale="log", xlabel="weight layers", ylabel=ylabel)
    ax.set_xticks(list(layers), [str(count) for count in layers])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    _headroom(ax, 0.1 * (len(measured) + 1))
    title = "markers measured, lines predicted" if lines else None
    ax.legend(loc="upper left", frameon=False, title=title, alignment="left")
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
    """Shares of dominant flows over layers, or over another quantity that is varied.

    Args:
        positions: Of all curves, along the horizontal axis.
        shares: Shares in [0, 1] by net, drawn as markers.
        errors: Standard errors by net, drawn as bars of one each way.
        predicted: Shares by net, drawn as lines in the colour of the net's markers; without it
            lines join the markers.
        xlabel: What the positions are, with their unit.
        ax: Axes to draw into; new ones by default.

    Returns:
        The axes.

    Source:
        Yu & Tomasi, arXiv:1905.10944, Figures 11 and 12.
    """
    ax, lines = _axes(ax), predicted or {}
    for number, (net, values) in enumerate(shares.items()):
        color, marker = _SERIES[number % len(_SERIES)], _MARKERS[number % len(_MARKERS)]
        bars = (errors or {}).get(net)
        style = marker if net in lines else marker + "-"
        ax.errorbar(positions, values, bars, fmt=style, color=color, mfc="none", label=net)
        if net in lines:
            ax.plot(positions, lines[net], color=color)
    ax.set(xlabel=xlabel, ylabel="share of dominant flows", ylim=(-0.03, 1.03))
    title = "markers measured, lines predicted" if lines else None
    ax.legend(frameon=False, fontsize="small", title=title, alignment="left")
    return ax


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

    Source:
        Li et al., arXiv:1611.01186, Figure 10 (there a schematic).
    """
    ax = _axes(ax)
    for number, (longitude, latitude) in enumerate(np.asarray(chart.circles).swapaxes(1, 2)):
        label = "kept clear of other columns" if number == 0 else None
        ax.fill(longitude, latitude, color="0.85", linewidth=0, label=label)
    arc, path, steps = (np.asarray(curve) for curve in (chart.arc, chart.path, chart.steps))
    ax.plot(*arc.T, "--", color="0.5", linewidth=1, label="great arc")
    ax.plot(*path.T, color=_SERIES[0], label="path")
    label = f"{len(steps) - 1} units"
    ax.plot(*steps.T, "o", color=_PREDICTED, markersize=3, label=label)
    ax.set(xlabel="along the great arc (radians)", ylabel="away from it (radians)")
    ax.set_title(title or "")
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(loc="best", frameon=False, fontsize="small")
    return ax


def spectral_density(
    estimate: SpectrumReport | Density,
    *,
    exact: Spectrum | None = None,
    scale: str = "linear",
    width: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Density of the eigenvalues, with two standard errors around it and the extremes marked.

    Args:
        estimate: A report or a density; a dense report is drawn as its histogram.
        exact: All eigenvalues, where they are known, drawn as a histogram behind; those of a dense
            report by default.
        scale: ``linear`` or ``symlog``: of the eigenvalues. The density is per unit of eigenvalue
            on both.
        width: Standard deviation of the kernel, in units of the eigenvalues; what the quadrature
            resolves by default.
        ax: Axes to draw into; new ones by default.

    Returns:
        The axes; the density is on a logarithmic axis.

    Raises:
        ValueError: If the report holds neither eigenvalues nor a density, or a name is unknown.
    """
    choose("scale", scale, ("linear", "symlog"))
    density, known, marks = _parts(estimate)
    exact = known if exact is None else exact
    if density is None and exact is None:
        raise ValueError(
            "estimate: this report has no density and no eigenvalues; ask for it by density=True"
        )
    ax = _axes(ax)
    low, high, near = _extent(density, exact)
    places = _places(low, high, near, scale)
    if exact is not None:
        _histogram(ax, exact, places)
    if density is not None:
        _band(ax, density, places, width)
    for mark in marks:
        ax.axvline(mark, ymax=0.06, color=_PREDICTED, linewidth=1.5)
    if scale == "symlog":
        ax.set_xscale("symlog", linthresh=near)
    ax.set(yscale="log", xlabel=f"eigenvalue ({_UNIT})", ylabel="density (1 / eigenvalue)")
    size = density.size if density is not None else exact.size if exact is not None else 0
    bottom = 0.1 / (size * (high - low or abs(high) or 1.0))
    ax.set_ylim(bottom, 10 * ax.get_ylim()[1])  # room for the legend
    ax.legend(loc="upper right", frameon=False, title=f"P = {size}")
    return ax


def _parts(
    estimate: SpectrumReport | Density,
) -> tuple[Density | None, Spectrum | None, list[float]]:
    """Density, eigenvalues and extremes of what was given."""
    if isinstance(estimate, Density):
        return estimate, None, estimate.known.tolist()
    if not isinstance(estimate, SpectrumReport):
        kind = type(estimate).__name__
        raise ValueError(f"estimate: got {kind}, needs a SpectrumReport or a Density")
    extremes = [end.value for end in (*estimate.largest, *estimate.smallest)]
    return estimate.density, estimate.spectrum, extremes


def _extent(density: Density | None, exact: Spectrum | None) -> tuple[float, float, float]:
    """Ends of what is drawn, and the |λ| below which a symlog axis is linear."""
    ends = [e for e in (density, exact) if e is not None]
    low, high = min(e.smallest for e in ends), max(e.largest for e in ends)
    top = max(abs(low), abs(high)) or 1.0
    near = density.resolution if density is not None else 0.0
    return low, high, 10 ** math.floor(math.log10(max(near, 1e-4 * top)))


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
    bins = (torch.searchsorted(edges, exact.levels) - 1).clamp(0, len(counts) - 1)
    counts.index_add_(0, bins, exact.multiplicities.double())
    heights = counts / exact.size / edges.diff()
    ax.stairs(heights.numpy(), edges.numpy(), fill=True, color=_MEASURED, label="exact")


def _band(ax: Axes, density: Density, places: Tensor, width: float | None) -> None:
    curve = density.smoothed(places, width=width)
    values, errors = curve.values.numpy(), curve.standard_errors.numpy()
    label = f"{density.probes} probes, kernel {curve.width:.2g}"
    ax.plot(places.numpy(), values, color="black", linewidth=1.2, label=label)
    lower = np.maximum(values - 2 * errors, 0)
    ax.fill_between(places.numpy(), lower, values + 2 * errors, color="black", alpha=0.25)


def cushion_histogram(
    measured: Mapping[str, Summaries],
    layer: str,
    *,
    bins: int = 40,
    ax: Axes | None = None,
) -> Axes:
    """Histograms of one layer's cushions over the samples, of several nets in the same bins.

    The axis of cushions is logarithmic when the largest is above 20 times the smallest. A dashed
    line marks each net's median; the legend has it, and the number of samples.

    Args:
        measured: Layer or interlayer cushions, by name of the net.
        layer: Name of a row that all of them have.
        bins: How many, over the range of all nets together.
        ax: Axes to draw into; new ones by default.

    Returns:
        The axes.

    Raises:
        ValueError: If a net has no such layer, or no finite cushion in it.

    Source:
        Yu & Tomasi, arXiv:1905.10944, Figure 3.
    """
    ax = _axes(ax)
    rows = {net: _finite_row(net, found, layer) for net, found in measured.items()}
    low, high = (min(map(np.min, rows.values())), max(map(np.max, rows.values())))
    wide = 0 < 20 * low < high
    edges = np.geomspace(low, high, bins + 1) if wide else np.linspace(low, high, bins + 1)
    if low == high:
        edges = np.array([0.5, 1.5]) * low if low else np.array([-0.5, 0.5])
    for number, (net, values) in enumerate(rows.items()):
        color, median = _SERIES[number % len(_SERIES)], float(np.median(values))
        label = f"{net}, median {median:.3g}, |S| = {len(values)}"
        ax.hist(values, edges.tolist(), color=color, alpha=0.5, label=label)
        ax.axvline(median, color=color, linestyle="--", linewidth=1.2)
    ax.set(xlabel=f"cushion of {layer}", ylabel="samples", xscale="log" if wide else "linear")
    _headroom(ax, 0.1 * (len(rows) + 1))
    ax.legend(loc="upper left", frameon=False)
    return ax


def cushion_violins(measured: Mapping[str, Summaries], *, ax: Axes | None = None) -> Axes:
    """Cushions of every layer as violins over the samples, several nets side by side.

    A violin reaches from the smallest to the largest cushion, its bar is the median. The axis is
    logarithmic, for cushions of one net differ by factors.

    Args:
        measured: Layer or interlayer cushions, by name of the net; the layers of the first are
            drawn, and of the others where they have them.
        ax: Axes to draw into; new ones by default.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no net.
    """
    if not measured:
        raise ValueError("measured: got no net, needs cushions by name of the net")
    ax, layers = _axes(ax), next(iter(measured.values())).rows
    width = 0.8 / len(measured)
    for number, (net, found) in enumerate(measured.items()):
        color = _SERIES[number % len(_SERIES)]
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
    ax.yaxis.set_major_formatter(lambda value, _: f"{10**value:.3g}")
    ax.set_xticks(range(len(layers)), layers, rotation=90)
    ax.set(xlabel="layer", ylabel="cushion, logarithmic")
    ax.grid(axis="y", alpha=0.3)
    _headroom(ax, 0.1 * len(measured))
    ax.legend(loc="upper left", frameon=False)
    return ax


def _finite_row(net: str, found: Summaries, layer: str) -> np.ndarray:
    """One layer's cushions that are numbers."""
    if layer not in found.rows:
        raise ValueError(f"layer: {net} has no {layer!r}, it has {', '.join(found.rows)}")
    values = found.values[found.rows.index(layer)].numpy()
    values = values[np.isfinite(values)]
    if len(values) == 0:
        raise ValueError(f"layer: {net} has no finite cushion in {layer!r}")
    return values


def zero_point(report: ZeroPointReport, *, drawing: Figure | None = None) -> Figure:
    """A report of the zero point: singular values of M beside the predicted eigenvalues.

    Args:
        report: The report. Where its eigenvalues are not listed (n = 1 at great depth), only the
            singular values are drawn.
        drawing: Empty figure to fill; a new one by default, for files.

    Returns:
        The figure.
    """
    levels = report.spectrum
    panels = 1 if levels is None else 2
    drawing = figure(1, panels) if drawing is None else drawing
    axes = drawing.axes or list(np.atleast_1d(drawing.subplots(1, panels)))
    values = report.singular_values
    axes[0].bar(range(1, len(values) + 1), values, color=_MEASURED)
    axes[0].set(xlabel="rank", ylabel="singular value of M", title=report.point.verdict)
    if levels is not None:
        spectrum(levels, label="predicted", color=_PREDICTED, ax=axes[1])
        _label_levels(axes[1], levels)
    return drawing


def folded_filters(
    layer: nn.Module | Tensor,
    *,
    limit: float | None = None,
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """A kernel as the matrices w[:, :, i, j] between channels, one for each tap, side by side.

    They stand where their taps are in the kernel, so an identity in the weight shows as a diagonal
    in the middle one. Kernels with more channels than pixels are binned: a pixel shows its entry of
    largest magnitude, so that the diagonal survives.

    Args:
        layer: A module with a weight (out, in, height, width), such as a layer of ``rt.fold(net)``
            or one with an identity inside, of which the effective weight is drawn; or the weight.
        limit: Magnitude at which the colours end; the largest weight's by default. A smaller one
            shows the weights beside a strong identity.
        ax: Axes to draw into; new ones by default.
        title: Title of the axes.

    Returns:
        The axes; the colour bar is beside them.

    Raises:
        ValueError: If there is no weight of four axes, or the limit is not above 0.

    Source:
        Zagoruyko & Komodakis, arXiv:1706.00388v2, section 2: folded, the net is a chain of
        convolution and ReLU; drawn as in the authors' notebook.
    """
    weight = layer if isinstance(layer, Tensor) else getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 4:
        got = tuple(weight.shape) if isinstance(weight, Tensor) else type(layer).__name__
        raise ValueError(f"layer: got {got}, needs a weight (out, in, height, width)")
    values = weight.detach().cpu().numpy()
    outputs, inputs, height, width = values.shape
    step = -(-max(outputs * height, inputs * width) // (2 * _PIXELS))
    planes = [[_largest(values[:, :, i, j], step) for j in range(width)] for i in range(height)]
    largest = float(np.abs(values).max()) or 1.0
    ax, top = _axes(ax), largest if limit is None else positive("limit", limit)
    image = ax.imshow(
        np.block(planes),
        cmap="RdBu_r",
        norm=Normalize(-top, top),
        extent=(0, width, height, 0),
        interpolation="nearest",
        aspect=outputs / inputs,
    )
    for edge in range(1, height):
        ax.axhline(edge, color="0.4", linewidth=0.6)
    for edge in range(1, width):
        ax.axvline(edge, color="0.4", linewidth=0.6)
    ax.set_xticks([j + 0.5 for j in range(width)], [str(j) for j in range(width)])
    ax.set_yticks([i + 0.5 for i in range(height)], [str(i) for i in range(height)])
    ax.set(
        xlabel=f"column of the tap; in each, {inputs} inputs",
        ylabel=f"row of the tap; in each, {outputs} outputs",
        title=title or "",
    )
    ax.figure.colorbar(
        image, ax=ax, shrink=0.85, label="weight", extend="both" if largest > top else "neither"
    )
    return ax


def _largest(values: np.ndarray, step: int) -> np.ndarray:
    """A matrix in tiles of ``step`` rows and columns: of each the entry largest in magnitude."""
    if step == 1:
        return values
    padded = np.pad(values, [(0, -side % step) for side in values.shape])
    rows, columns = (side // step for side in padded.shape)
    tiles = padded.reshape(rows, step, columns, step).swapaxes(1, 2).reshape(rows, columns, -1)
    largest = np.abs(tiles).argmax(2, keepdims=True)
    return np.take_along_axis(tiles, largest, 2).squeeze(2)


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    # Only here: pyplot chooses a backend for the whole process when it is imported.
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


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
    counts = predicted.multiplicities
    if len(counts) > _LABELLED or int(counts.max()) == 1:
        return
    ends = counts.cumsum(0)
    for level, count, end in zip(
        predicted.levels.tolist(), counts.tolist(), ends.tolist(), strict=True
    ):
        middle = (end - count / 2) / predicted.size
        ax.annotate(f"× {count}", (middle, level), (0, 3), textcoords="offset points", ha="center")


def _scale(ax: Axes, spectrum: Spectrum) -> None:
    """A symmetric-logarithmic axis where a linear one would show a flat line and two spikes."""
    top = spectrum.max_magnitude
    if spectrum.rank and spectrum.magnitude(spectrum.size - 1 - spectrum.rank // 2) < 0.01 * top:
        smallest = max(spectrum.magnitude_percentile(10), 1e-8 * top)
        ax.set_yscale("symlog", linthresh=10 ** math.floor(math.log10(smallest)))


def _headroom(ax: Axes, share: float) -> None:
    """Room for the legend above all data, whatever the scale of the axis."""
    ax.autoscale(axis="y")  # anew: another curve may have been drawn, and given room, before
    transform = ax.yaxis.get_transform()
    low, high = transform.transform(np.array(ax.get_ylim()))
    (top,) = transform.inverted().transform(np.array([high + share * (high - low)]))
    ax.set_ylim(top=top)


def _drawable(values: Sequence[float]) -> list[float]:
    """Numbers with a place on a logarithmic axis; a gap for the others."""
    return [value if 0 < value < math.inf else math.nan for value in values]


def _binned(values: np.ndarray) -> np.ndarray:
    """A square matrix in at most ``_PIXELS`` rows and columns."""
    return _largest(values, -(-len(values) // _PIXELS))
