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

from resid_theory._check import positive, whole
from resid_theory.spectra import Spectrum

__all__ = ["by_depth", "figure", "folded_filters", "hessian_pattern", "png", "spectrum"]

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


def _largest(values: np.ndarray, step: int) -> np.ndarray:
    """A matrix in tiles of ``step`` rows and columns: of each the entry largest in magnitude."""
    if step == 1:
        return values
    padded = np.pad(values, [(0, -side % step) for side in values.shape])
    rows, columns = (side // step for side in padded.shape)
    tiles = padded.reshape(rows, step, columns, step).swapaxes(1, 2).reshape(rows, columns, -1)
    largest = np.abs(tiles).argmax(2, keepdims=True)
    return np.take_along_axis(tiles, largest, 2).squeeze(2)
