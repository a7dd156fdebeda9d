"""Matrices as signed heat maps: Hessians, and the taps of a kernel."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.image import AxesImage
from torch import Tensor, nn

from resid_theory._check import check_int, check_positive
from resid_theory.plots.canvas import UNIT, open_axes

_PIXELS = 300  # of a drawn matrix along one side: what half a page shows without losing entries


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
    ax, size = open_axes(ax), len(matrix)
    values = _largest(matrix, -(-size // _PIXELS))
    image = _heat_map(ax, values, float(np.abs(values).max()), (size, size))
    for edge in range(0, size + 1, check_int("block", block)) if block else ():
        ax.axhline(edge, color="0.4", linewidth=0.6)
        ax.axvline(edge, color="0.4", linewidth=0.6)
    ax.set(xlabel="parameter", ylabel="parameter", title=title)
    ax.figure.colorbar(image, shrink=0.85, label=f"second derivative ({UNIT})")
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
    largest = float(np.abs(values).max())
    ax, top = open_axes(ax), largest if limit is None else check_positive("limit", limit)
    image = _heat_map(ax, np.block(planes), top, (height, width), outputs / inputs)
    for edge in range(1, height):
        ax.axhline(edge, color="0.4", linewidth=0.6)
    for edge in range(1, width):
        ax.axvline(edge, color="0.4", linewidth=0.6)
    ax.set_xticks([j + 0.5 for j in range(width)], [str(j) for j in range(width)])
    ax.set_yticks([i + 0.5 for i in range(height)], [str(i) for i in range(height)])
    ax.set(
        xlabel=f"column of the tap; in each, {inputs} inputs",
        ylabel=f"row of the tap; in each, {outputs} outputs",
        title=title,
    )
    ax.figure.colorbar(
        image, shrink=0.85, label="weight", extend="both" if largest > top else "neither"
    )
    return ax


def _heat_map(
    ax: Axes, values: np.ndarray, top: float, sides: tuple[int, int], aspect: float = 1.0
) -> AxesImage:
    """A signed matrix in white at zero, on axes of two lengths from the upper left corner."""
    top = top or 1.0
    return ax.imshow(
        values,
        cmap="RdBu_r",
        norm=Normalize(-top, top),
        extent=(0, sides[1], sides[0], 0),
        interpolation="nearest",
        aspect=aspect,
    )


def _largest(values: np.ndarray, step: int) -> np.ndarray:
    """A matrix in tiles of ``step`` rows and columns: of each the entry largest in magnitude."""
    padded = np.pad(values, [(0, -side % step) for side in values.shape])
    rows, columns = (side // step for side in padded.shape)
    tiles = padded.reshape(rows, step, columns, step).swapaxes(1, 2).reshape(rows, columns, -1)
    largest = np.abs(tiles).argmax(2, keepdims=True)
    return np.take_along_axis(tiles, largest, 2).squeeze(2)
