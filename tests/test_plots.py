"""Figures show the given numbers."""

import contextlib
import io
import math
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas
import pytest
import seaborn
import torch
from matplotlib.colors import same_color, to_hex, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from PIL import Image

import resid_theory as rt
from resid_theory import plots
from resid_theory.plots import canvas, density_plots, matrices, result_plots
from resid_theory.stability.sample_statistics import Summaries

matplotlib.use("agg")


@pytest.fixture
def ax():
    return plots.figure().axes[0]


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


class Rows(Summaries):
    """Given numbers as cushions."""

    def __init__(self, **rows):
        self.names, self.numbers = tuple(rows), torch.tensor(list(rows.values()))

    rows = property(lambda self: self.names)
    values = property(lambda self: self.numbers)


def told(numbers):
    """Numbers in five digits; of many their count and ends."""
    flat = (np.round(np.ravel(np.asarray(numbers, float)), 12) + 0.0).tolist()
    if len(flat) > 16:
        return f"{len(flat)} from {flat[0]:.5g} to {flat[-1]:.5g}"
    return " ".join(f"{number:.5g}" for number in flat)


def paint(colors):
    each = (to_hex(color, keep_alpha=True) for color in np.reshape(colors, (-1, 4)))
    return "/".join(dict.fromkeys(color.removesuffix("ff") for color in each))


def line_look(line):
    yield told(line.get_xdata(orig=False))
    yield told(line.get_ydata())
    yield paint(to_rgba(line.get_color(), line.get_alpha())) + f" {line.get_linestyle()}"
    if line.get_marker() not in ("", "None"):
        inside = "open" if line.get_markerfacecolor() == "none" else "full"
        yield f"{inside} {line.get_marker()} of {line.get_markersize():g}"


def image_look(image):
    yield told(image.get_array())
    yield f"{image.get_array().shape} to {told(image.get_extent())} {image.get_interpolation()}"
    yield f"{image.get_cmap().name} {told([image.norm.vmin, image.norm.vmax])}"
    bar = image.colorbar
    height = bar.ax.get_position().height / image.axes.get_position().height
    yield f"{bar.ax.get_ylabel()}, {told(height)} high, extends {bar.extend}"


def area_look(area):
    """Where filled areas begin and end, along each axis."""
    points = np.concatenate([path.vertices for path in area.get_paths()])
    yield told([points.min(0), points.max(0)])


LOOKS = {
    "Line2D": line_look,
    "AxesImage": image_look,
    "FillBetweenPolyCollection": area_look,
    "LineCollection": lambda lines: [told(np.concatenate(lines.get_segments()))],
    "StepPatch": lambda stairs: [*map(told, stairs.get_data()[:2]), str(stairs.get_data()[2])],
    "Rectangle": lambda bar: [told([*bar.get_xy(), bar.get_width(), bar.get_height()])],
    "Polygon": lambda area: [told(area.get_xy())],
    "Annotation": lambda note: [note.get_text(), told(note.xy), told(note.xyann), note.anncoords,
                                note.get_horizontalalignment()],
}  # fmt: skip


def look(ax):
    """All that is seen in axes: texts, ends, ticks and grid, then each artist and the legend."""
    said = [f"{ax.get_title()!r}, aspect {ax.get_aspect()}"]
    for axis in (ax.xaxis, ax.yaxis):
        scale = axis.get_scale()
        if scale == "symlog":
            scale += f" beyond {axis.get_transform().linthresh:g}"
        words = [repr(axis.get_label_text()), scale, told(axis.get_view_interval())]
        if isinstance(axis.get_major_locator(), FixedLocator):
            names = " ".join(label.get_text() for label in axis.get_ticklabels())
            words += [f"{told(axis.get_ticklocs())} as {names}"]
        tick = axis.get_major_ticks(1)[0]
        words += [f"turned by {tick.label1.get_rotation():g}"] * (tick.label1.get_rotation() > 0)
        words += [f"grid {tick.gridline.get_alpha()}"] * tick.gridline.get_visible()
        said.append(", ".join(words))
    for artist in (*ax.lines, *ax.patches, *ax.collections, *ax.images, *ax.texts):
        kind, label = type(artist).__name__, str(artist.get_label() or "_")
        words = [kind if label.startswith("_") else f"{kind} {label!r}", *LOOKS[kind](artist)]
        if kind not in ("Line2D", "AxesImage", "Annotation"):
            face = paint(artist.get_facecolor()) if artist.get_fill() else "nothing"
            words += [f"{face} in {paint(artist.get_edgecolor())}"]
        if hasattr(artist, "get_linewidth"):
            words += [f"width {told(np.unique(artist.get_linewidth()))}"]
        said.append(" | ".join([*words, f"{artist.get_zorder():g}"]))
    if legend := ax.get_legend():
        labels = "; ".join(text.get_text() for text in legend.get_texts())
        said.append(f"legend {labels!r} below {legend.get_title().get_text()!r}")
    return said


def stub(kind, **columns):
    """A result of a kind with a table."""
    return type(kind, (), {"frame": lambda self: pandas.DataFrame(columns)})()


def spread(**more):
    """Two probes of five eigenvalues, and three known ones."""
    given = {
        "nodes": [[-1, 3], [0, 5]], "weights": [[0.25, 0.75], [0.5, 0.5]], "known": [7, -2, -2],
        "diagonals": [[0, 0]] * 2, "links": [[0, 0]] * 2, "known_residuals": [0, 0, 0],
    }  # fmt: skip
    arrays = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in given.items()}
    return rt.eigen.Density(
        size=8, complete=torch.ones(2, dtype=torch.bool), known_error=0.0, round_off=0.0,
        products=4, **arrays,
    )  # fmt: skip


PATH = SimpleNamespace(
    arc=[[0, 0], [1, 0]], path=[[0, 0], [0.5, 0.25], [1, 0]], steps=[[0, 0], [0.6, 0.2], [1, 0]],
    circles=[[[0.1, 0.2], [0.3, 0.4], [0.5, 0.1]], [[0.6, 0.2], [0.7, 0.4], [0.8, 0.1]]],
)  # fmt: skip
NOISE = {"level": [0.1, 1, 0.1, 1], "measured": [0.5, 1, 2, 4], "place": ["out", "out", "a", "a"],
         "measured_low": [0.25, 0.5, 1, 3], "measured_high": [1, 2, 3, 8],
         "predicted": [0.5, 1, 1.5, 3]}  # fmt: skip
FIGURES = {
    "by depth": lambda ax: plots.by_depth(
        [2, 4, 6, 8], {"a": [0.1, math.inf, 0.0, -0.5], "b": [2.0, 3.0, 4.0, 5.0]},
        predicted={"b": [2.5, 3.5, 4.5, 5.5]}, ylabel="number", ax=ax,
    ),
    "flows": lambda ax: plots.flow_curve(
        [0, 2], {"a": [0.1, 0.9], "b": [0.2, 0.3]}, errors={"a": [0.01, 0.02]},
        predicted={"b": [0.25, 0.35]}, ax=ax,
    ),
    "spectrum": lambda ax: plots.spectrum(
        rt.Spectrum.of([-1e-4, 1e-5, 2.0], [1, 3, 2]),
        predicted=rt.Spectrum.of([-1.0, 2.0], [2, 3]), ax=ax,
    ),
    "spectrum of its own": lambda ax: plots.spectrum(
        rt.Spectrum.of([-1.0, 2.0]), label="mine", color="#332288", unit="u", ax=ax
    ),
    "pattern": lambda ax: plots.hessian_pattern(
        torch.tensor([[1.0, -3.0], [2.0, 0.0]]), block=1, title="H", ax=ax
    ),
    "filters": lambda ax: plots.folded_filters(
        torch.arange(12.0).view(1, 2, 3, 2), limit=7, title="w", ax=ax
    ),
    "filters in full": lambda ax: plots.folded_filters(torch.ones(2, 1, 1, 1), ax=ax),
    "path": lambda ax: plots.interpolation_path(PATH, title="p", ax=ax),
    "histogram": lambda ax: plots.cushion_histogram(
        {"a": Rows(x=[1.0, 2.0, 3.0, math.nan]), "b": Rows(x=[2.0, 4.0, 5.0, 6.0])}, "x",
        bins=2, ax=ax,
    ),
    "wide histogram": lambda ax: plots.cushion_histogram(
        Rows(x=[1.0, 2.0, 400.0]), "x", bins=2, ax=ax
    ),
    "violins": lambda ax: plots.cushion_violins(
        {"a": Rows(x=[0.0, 1.0, 2.0, 9.0], y=[3.0, 5.0, 6.0, math.nan]),
         "b": Rows(y=[3.0, 4.0, 7.0], z=[1.0, 2.0, 3.0])}, ax=ax,
    ),
    "density": lambda ax: plots.spectral_density(
        spread(), exact=rt.Spectrum.of([-2.0, 1, 7], [3, 4, 1]), width=0.5, ax=ax
    ),
    "density over powers": lambda ax: plots.spectral_density(
        spread(), scale="symlog", unit="u", ax=ax
    ),
    "curve in a band": lambda ax: plots.curve(
        stub("Flows", layer=["x", "y"], share=[0.25, 0.5], share_error=[0.125, 0.25]), ax=ax
    ),
    "curve beside a law": lambda ax: plots.curve(stub("NoiseCurves", **NOISE), ax=ax),
    "another column": lambda ax: plots.curve(stub("NoiseCurves", **NOISE), "measured_low", ax=ax),
    "long curve": lambda ax: plots.curve(
        stub("Curve", eigenvalue=range(51), value=range(51)), ax=ax
    ),
    "curve of epochs": lambda ax: plots.curve(
        stub("Run", epoch=range(50), loss=range(1, 51), net=[0] * 50), ax=ax
    ),
    "quartiles": lambda ax: plots.curve(
        stub("LayerTable", parameter=["a", "b"], norm=[3, 2], norm_q25=[2, 1.5],
             norm_q75=[5, 2.25]), ax=ax,
    ),
    "singular values": lambda ax: plots.zero_point(
        rt.theory.zero_point(
            rt.Moments(sxx=2 * torch.eye(2), syx=torch.diag(torch.tensor([0.5, 1.0])),
                       syy=torch.eye(2), count=5),
            blocks=1000, shortcut_depth=1,
        ), drawing=ax.figure,
    ).axes[0],
}  # fmt: skip
SEEN = """
## by depth
'', aspect auto
'weight layers', log, 1.8661 8.5742, 2 4 6 8 as 2 4 6 8, grid 0.3
'number', log, 0.081843 6.7202, 0.1 0.2 0.5 1 2 5 as 0.1 0.2 0.5 1 2 5, grid 0.3
Line2D 'a' | 2 4 6 8 | 0.1 nan nan nan | #0173b2 None | full o of 7 | width 1.5 | 2
Line2D 'b' | 2 4 6 8 | 2 3 4 5 | #de8f05 None | full s of 7 | width 1.5 | 2
Line2D | 2 4 6 8 | 2.5 3.5 4.5 5.5 | #de8f05 - | width 1.5 | 2
legend 'a; b' below 'markers measured, lines predicted'
## flows
'', aspect auto
'layer', linear, -0.1 2.1
'share of dominant flows', linear, -0.03 1.03
Line2D | 0 2 | 0.1 0.9 | #0173b2 - | open o of 6 | width 1.5 | 2.1
Line2D | 0 2 | 0.2 0.3 | #de8f05 None | open s of 6 | width 1.5 | 2.1
Line2D | 0 2 | 0.25 0.35 | #de8f05 - | width 1.5 | 2
LineCollection | 0 0.09 0 0.11 2 0.88 2 0.92 | nothing in #0173b2 | width 1.5 | 2
legend 'a; b' below 'markers measured, lines predicted'
## spectrum
'', aspect auto
'rank, as a share of P', linear, 0 1
'eigenvalue (loss / weight²)', symlog beyond 1e-05, -1.15 2.15
Line2D | 0 1 | 0 0 | #999999 - | width 0.8 | 0
StepPatch 'measured, P = 6' | -0.0001 1e-05 2 | 0 0.16667 0.66667 1 | None | nothing in #56b4e9 |
  width 4 | 1
StepPatch 'predicted, 2 levels × 2 to 3' | -1 2 | 0 0.4 1 | None | nothing in #d55e00 | width 1.2
  | 1
Annotation | × 2 | 0.2 -1 | 0 3 | offset points | center | 3
Annotation | × 3 | 0.7 2 | 0 3 | offset points | center | 3
legend 'measured, P = 6; predicted, 2 levels × 2 to 3' below ''
## spectrum of its own
'', aspect auto
'rank, as a share of P', linear, 0 1
'eigenvalue (u)', linear, -1.15 2.15
Line2D | 0 1 | 0 0 | #999999 - | width 0.8 | 0
StepPatch 'mine, P = 2' | -1 2 | 0 0.5 1 | None | nothing in #332288 | width 4 | 1
legend 'mine, P = 2' below ''
## pattern
'H', aspect 1.0
'parameter', linear, 0 2
'parameter', linear, 2 0
Line2D | 0 1 | 0 0 | #666666 - | width 0.6 | 2
Line2D | 0 0 | 0 1 | #666666 - | width 0.6 | 2
Line2D | 0 1 | 1 1 | #666666 - | width 0.6 | 2
Line2D | 1 1 | 0 1 | #666666 - | width 0.6 | 2
Line2D | 0 1 | 2 2 | #666666 - | width 0.6 | 2
Line2D | 2 2 | 0 1 | #666666 - | width 0.6 | 2
AxesImage | 1 -3 2 0 | (2, 2) to 0 2 2 0 nearest | RdBu_r -3 3 | second derivative (loss /
  weight²), 0.85771 high, extends neither | 0
## filters
'w', aspect 0.5
'column of the tap; in each, 2 inputs', linear, 0 2, 0.5 1.5 as 0 1
'row of the tap; in each, 1 outputs', linear, 3 0, 0.5 1.5 2.5 as 0 1 2
Line2D | 0 1 | 1 1 | #666666 - | width 0.6 | 2
Line2D | 0 1 | 2 2 | #666666 - | width 0.6 | 2
Line2D | 1 1 | 0 1 | #666666 - | width 0.6 | 2
AxesImage | 0 6 1 7 2 8 3 9 4 10 5 11 | (3, 4) to 0 2 3 0 nearest | RdBu_r -7 7 | weight, 1.1436
  high, extends both | 0
## filters in full
'', aspect 2.0
'column of the tap; in each, 1 inputs', linear, 0 1, 0.5 as 0
'row of the tap; in each, 2 outputs', linear, 1 0, 0.5 as 0
AxesImage | 1 1 | (2, 1) to 0 1 1 0 nearest | RdBu_r -1 1 | weight, 0.85 high, extends neither | 0
## path
'p', aspect 1.0
'along the great arc (radians)', linear, -0.05 1.05
'away from it (radians)', linear, -0.02 0.42
Line2D 'great arc' | 0 1 | 0 0 | #808080 -- | width 1 | 2
Line2D 'path' | 0 0.5 1 | 0 0.25 0 | #0173b2 - | width 1.5 | 2
Line2D '2 units' | 0 0.6 1 | 0 0.2 0 | #d55e00 None | full o of 3 | width 1.5 | 2
Polygon 'kept clear of other columns' | 0.1 0.2 0.3 0.4 0.5 0.1 0.1 0.2 | #d9d9d9 in #d9d9d9 |
  width 0 | 1
Polygon | 0.6 0.2 0.7 0.4 0.8 0.1 0.6 0.2 | #d9d9d9 in #d9d9d9 | width 0 | 1
legend 'kept clear of other columns; great arc; path; 2 units' below ''
## histogram
'', aspect auto
'cushion of x', linear, 0.75 6.25
'samples', linear, 0 3.15
Line2D | 2 2 | 0 1 | #0173b2 -- | width 1.2 | 2
Line2D | 4.5 4.5 | 0 1 | #de8f05 -- | width 1.2 | 2
Rectangle 'a, median 2, |S| = 3' | 1 0 2.5 3 | #0173b280 in #00000000 | width 1 | 1
Rectangle | 3.5 0 2.5 0 | #0173b280 in #00000000 | width 1 | 1
Rectangle 'b, median 4.5, |S| = 4' | 1 0 2.5 1 | #de8f0580 in #00000000 | width 1 | 1
Rectangle | 3.5 0 2.5 3 | #de8f0580 in #00000000 | width 1 | 1
legend 'a, median 2, |S| = 3; b, median 4.5, |S| = 4' below ''
## wide histogram
'', aspect auto
'cushion of x', log, 0.74113 539.71
'samples', linear, 0 2.1
Line2D | 2 2 | 0 1 | #0173b2 -- | width 1.2 | 2
Rectangle 'cushions, median 2, |S| = 3' | 1 0 19 2 | #0173b280 in #00000000 | width 1 | 1
Rectangle | 20 0 380 1 | #0173b280 in #00000000 | width 1 | 1
legend 'cushions, median 2, |S| = 3' below ''
## violins
'', aspect auto
'layer', linear, -0.49 1.49, 0 1 as x y, turned by 90
'cushion, logarithmic', linear, -0.047712 1.002, 0 0.30103 0.69897 1 as 1 2 5 10, grid 0.3
Line2D 'a, |S| = 4' |  |  | #0173b299 - | width 6 | 2
Line2D 'b, |S| = 3' |  |  | #de8f0599 - | width 6 | 2
FillBetweenPolyCollection | -0.4 0 0 0.95424 | #0173b299 in  | width 1 | 1
FillBetweenPolyCollection | 0.6 0.47712 1 0.77815 | #0173b299 in  | width 1 | 1
LineCollection | -0.3 0.30103 -0.1 0.30103 0.7 0.69897 0.9 0.69897 | nothing in #0173b2 | width
  1.5 | 2
FillBetweenPolyCollection | 1 0.47712 1.4 0.8451 | #de8f0599 in  | width 1 | 1
LineCollection | 1.1 0.60206 1.3 0.60206 | nothing in #de8f05 | width 1.5 | 2
legend 'a, |S| = 4; b, |S| = 3' below ''
## density
'', aspect auto
'eigenvalue (loss / weight²)', linear, -2.945 7.945
'density (1 / eigenvalue)', log, 0.0013889 1.4038
Line2D '2 probes, kernel 0.5' | 501 from -2.45 to 7.45 | 501 from 0.13397 to 0.066522 | #000000 -
  | width 1.2 | 2
Line2D | 7 7 | 0 0.06 | #d55e00 - | width 1.5 | 2
Line2D | -2 -2 | 0 0.06 | #d55e00 - | width 1.5 | 2
Line2D | -2 -2 | 0 0.06 | #d55e00 - | width 1.5 | 2
FillBetweenPolyCollection | -2.45 0 7.45 0.56094 | #00000040 in #00000040 | width 1 | 1
FillBetweenPolyCollection 'exact' | -2.45 0 7.45 0.39892 | #56b4e9 in #56b4e9 | width 0 | 1
legend '2 probes, kernel 0.5; exact' below 'P = 8'
## density over powers
'', aspect auto
'eigenvalue (u)', symlog beyond 0.0001, -2.945 7.945
'density (1 / eigenvalue)', log, 0.0013889 0.077482
Line2D '2 probes, kernel 4.5' | 501 from -2.45 to 7.45 | 501 from 0.055292 to 0.042863 | #000000
  - | width 1.2 | 2
Line2D | 7 7 | 0 0.06 | #d55e00 - | width 1.5 | 2
Line2D | -2 -2 | 0 0.06 | #d55e00 - | width 1.5 | 2
Line2D | -2 -2 | 0 0.06 | #d55e00 - | width 1.5 | 2
FillBetweenPolyCollection | -2.45 0.0398 7.45 0.075062 | #00000040 in #00000040 | width 1 | 1
legend '2 probes, kernel 4.5' below 'P = 8'
## curve in a band
'', aspect auto
'layer', linear, -0.05 1.05, turned by 90, grid 0.3
'share of dominant flows', linear, 0.09375 0.78125, grid 0.3
Line2D | 0 1 | 0.25 0.5 | #0173b2 - | open o of 6 | width 1.5 | 2.1
LineCollection | 0 0.125 0 0.375 1 0.25 1 0.75 | nothing in #0173b2 | width 1.5 | 2
## curve beside a law
'', aspect auto
'level', log, 0.089125 1.122, grid 0.3
'relative error', log, 0.21022 9.5137, grid 0.3
Line2D | 0.1 1 | 0.5 1 | #0173b2 None | open o of 6 | width 1.5 | 2.1
Line2D | 0.1 1 | 0.5 1 | #0173b2 - | width 1.5 | 2
Line2D | 0.1 1 | 2 4 | #de8f05 None | open s of 6 | width 1.5 | 2.1
Line2D | 0.1 1 | 1.5 3 | #de8f05 - | width 1.5 | 2
LineCollection | 0.1 0.25 0.1 1 1 0.5 1 2 | nothing in #0173b2 | width 1.5 | 2
LineCollection | 0.1 1 0.1 3 1 3 1 8 | nothing in #de8f05 | width 1.5 | 2
legend 'place out; place a' below 'markers measured, lines predicted'
## another column
'', aspect auto
'level', log, 0.089125 1.122, grid 0.3
'measured low', linear, 0.1125 3.1375, grid 0.3
Line2D | 0.1 1 | 0.25 0.5 | #0173b2 - | open o of 6 | width 1.5 | 2.1
Line2D | 0.1 1 | 1 3 | #de8f05 - | open s of 6 | width 1.5 | 2.1
legend 'place out; place a' below ''
## long curve
'', aspect auto
'eigenvalue (loss / weight²)', linear, -2.5 52.5, grid 0.3
'value', linear, -2.5 52.5, grid 0.3
Line2D | 51 from 0 to 50 | 51 from 0 to 50 | #0173b2 - | width 1.5 | 2.1
## curve of epochs
'', aspect auto
'epoch', linear, -2.45 51.45, grid 0.3
'loss', linear, -1.45 52.45, grid 0.3
Line2D | 50 from 0 to 49 | 50 from 1 to 50 | #0173b2 - | open o of 6 | width 1.5 | 2.1
legend 'net 0' below ''
## quartiles
'', aspect auto
'parameter', linear, -0.05 1.05, turned by 90, grid 0.3
'Frobenius norm of the block', log, 1.4124 5.3102, grid 0.3
Line2D | 0 1 | 3 2 | #0173b2 - | open o of 6 | width 1.5 | 2.1
LineCollection | 0 2 0 5 1 1.5 1 2.25 | nothing in #0173b2 | width 1.5 | 2
## singular values
'not stationary', aspect auto
'rank', linear, 0.51 2.49
'singular value of M', linear, 0 1.575
Rectangle | 0.6 0 0.8 1.5 | #56b4e9 in #00000000 | width 1 | 1
Rectangle | 1.6 0 0.8 1 | #56b4e9 in #00000000 | width 1 | 1
"""


@pytest.mark.parametrize("kind", FIGURES)
def test_the_whole_look_of_a_figure(ax, kind):
    ax.set_prop_cycle(color=["#123456"])  # the colours are those of the plots, not of the axes
    seen = dict(text.split("\n", 1) for text in SEEN.replace("\n  ", " ").split("\n## ")[1:])
    assert [line.rstrip() for line in look(FIGURES[kind](ax))] == seen[kind].splitlines()


@pytest.mark.parametrize(("scale", "width"), [("linear", None), ("symlog", 0.5)])
def test_a_density_is_in_its_band_over_the_exact_one(ax, scale, width):
    exact = rt.Spectrum.of([-2.0, 1.0, 7.0], [3, 4, 1])
    plots.spectral_density(spread(), exact=exact, scale=scale, width=width, ax=ax)
    x, y = ax.lines[0].get_data()
    # Even on the axis, from a twentieth of the range below to as much above.
    on_axis = np.arcsinh(x / 2e-4) if scale == "symlog" else x  # linear below 1e-4
    np.testing.assert_allclose(np.diff(on_axis), (on_axis[-1] - on_axis[0]) / 500)
    assert x[[0, -1]] == pytest.approx([-2.45, 7.45], rel=1e-12)

    def density(places, weights):
        apart = (x - np.array(places)[:, None]) / (width or 4.5)  # the range over two nodes
        return weights @ np.exp(-(apart**2) / 2) / (math.sqrt(2 * math.pi) * (width or 4.5))

    probes = [
        density([*nodes, 7, -2, -2], np.array([5 / 8 * a, 5 / 8 * b, 1 / 8, 1 / 8, 1 / 8]))
        for nodes, a, b in (((-1, 3), 0.25, 0.75), ((0, 5), 0.5, 0.5))
    ]
    middle, error = sum(probes) / 2, abs(probes[0] - probes[1]) / 2  # of two the sample is that
    np.testing.assert_allclose(y, middle, rtol=1e-12)
    ends = (np.maximum(middle - 2 * error, 0), middle + 2 * error), (density(
        [-2, 1, 7], np.array([3, 4, 1]) / 8), 0 * x)  # fmt: skip
    for area, (first, second) in zip(ax.collections, ends, strict=True):
        points = area.get_paths()[0].vertices
        np.testing.assert_allclose(points[1:502], np.stack([x, first], 1), rtol=1e-12, atol=1e-300)
        np.testing.assert_allclose(points[503:1004], np.stack([x, second], 1)[::-1], rtol=1e-12)


def test_the_style_is_seaborns_for_papers_with_settings_of_its_own():
    own = {
        "axes.prop_cycle": matplotlib.cycler(color=canvas.SERIES), "axes.spines.right": False,
        "axes.spines.top": False, "font.sans-serif": ["DejaVu Sans"], "legend.frameon": False,
        "lines.markersize": 5, "patch.edgecolor": "black", "patch.force_edgecolor": False,
        "savefig.dpi": 150, "svg.fonttype": "none",
    }  # fmt: skip
    paper = seaborn.plotting_context("paper", 1.1)
    assert plots.style() == {**seaborn.axes_style("ticks"), **paper, **own}
    assert canvas.SERIES == (
        "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494",
        "#332288", "#56b4e9",
    )  # fmt: skip
    assert (canvas.MEASURED, canvas.PREDICTED) == ("#56b4e9", "#d55e00")


@pytest.mark.parametrize(("panels", "entries"), [(1, 4), (2, 4), (2, 1)])
def test_a_legend_has_as_many_columns_as_fit(panels, entries):
    # Eleven letters an inch, of which a handle takes seven, beside an axis of 0.7 inches.
    for letters in (4, 5, 16, 17, 40, 41)[: 3 * entries]:
        ax = plots.figure(1, panels, panel=(5.0, 2.0)).axes[-1]
        for _ in range(entries):
            ax.plot([0, 1], label=letters * "a")
        canvas.legend_above(ax, title="title")
        legend = ax.get_legend()
        fit = int(11 * 4.3 / (letters + 7))
        assert legend._ncols == min(max(fit, 1), entries)
        assert (legend.get_alignment(), legend.borderaxespad) == ("left", 0)
        assert not legend.get_frame_on() and legend.get_title().get_text() == "title"


def test_colours_of_series_differ_and_are_seen_on_white():
    colours = np.array([to_rgb(colour) for colour in canvas.SERIES])
    assert len(np.unique(colours, axis=0)) == len(canvas.MARKERS) == 10
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]  # ITU-R BT.709
    assert (1.05 / (luminance + 0.05)).min() > 1.5  # contrast; pale yellow has 1.3
    assert canvas.MEASURED != canvas.PREDICTED


def test_a_level_is_as_wide_as_its_multiplicity(ax):
    for unit in (1, 10**12):
        plots.spectrum(rt.Spectrum.of([-1.0, 2.0], [unit, 3 * unit]), ax=ax)
        values, edges, _ = ax.patches[-1].get_data()
        assert values.tolist() == [-1.0, 2.0]
        assert edges.tolist() == [0.0, 0.25, 1.0]


@pytest.mark.parametrize(
    ("counts", "said", "beside"),
    [([3], "1 level × 3", 1), ([1, 3], "2 levels × 1 to 3", 2), ([2] * 12, "12 levels × 2", 12),
     ([2] * 13, "13 levels × 2", 0)],
    ids=["one", "unequal", "few", "many"],
)  # fmt: skip
def test_multiplicities_are_told_and_beside_few_levels(ax, counts, said, beside):
    levels = rt.Spectrum.of(range(1, len(counts) + 1), counts)
    plots.spectrum(levels, predicted=levels, ax=ax)
    assert labels(ax)[1] == f"predicted, {said}" and len(ax.texts) == beside


def test_a_prediction_alone_is_not_called_measured(ax):
    identity, zero = torch.eye(2), torch.zeros(2, 2)
    moments = rt.Moments(sxx=identity, syx=zero, syy=identity, count=5)
    point = rt.theory.zero_point(moments, blocks=1, shortcut_depth=2)
    plots.spectrum(point, ax=ax)
    assert labels(ax) == ["predicted, P = 8"]


def test_predicted_levels_that_occur_once_have_no_multiplicity(ax):
    simple = rt.Spectrum.of([-1.0, 1.0])
    plots.spectrum(simple, predicted=simple, ax=ax)
    assert labels(ax)[1] == "predicted" and not ax.texts


@pytest.mark.parametrize(("given", "unit"), [({}, "loss / weight²"), ({"unit": "a"}, "a")], ids=str)
def test_axes_of_eigenvalues_have_the_unit(given, unit):
    found, label = rt.Spectrum.of([-1.0, 1.0]), f"eigenvalue ({unit})"
    assert plots.spectrum(found, **given).get_ylabel() == label
    assert plots.spectral_density(found, **given).get_xlabel() == label


@pytest.mark.parametrize(
    ("levels", "scale"),
    [
        ([-1.0, 0.5, 1.0], "linear"),
        ([-1e-6, 1e-7, 1e-5, 1.0], "symlog"),
        ([0.0, 0.0], "linear"),
        ([1e-4, 2e-4, 3e-4, 0.8, 0.9, 1.0], "symlog"),
        ([1e-4, 2e-4, 0.7, 0.8, 0.9, 1.0], "linear"),
        ([0.0099, 0.0099, 1.0], "symlog"),
        ([0.0101, 0.0101, 1.0], "linear"),
        ([0.0, 0.0, 1e-4, 1e-4, 1.0], "symlog"),
    ],
    ids=["even", "spread", "zero", "half", "third", "below a hundredth", "above", "zeros"],
)
def test_axis_of_eigenvalues(ax, levels, scale):
    plots.spectrum(rt.Spectrum.of(levels), ax=ax)
    assert ax.get_yscale() == scale
    if scale == "symlog":
        small = max(np.percentile(np.abs(levels), 10), 1e-8)
        linear = ax.yaxis.get_transform().linthresh
        assert linear <= small < 10 * linear and math.log10(linear) == round(math.log10(linear))


@pytest.mark.parametrize("levels", [[-1.0, 1.0], [-1e-6, 1e-7, 1e-5, 1.0]], ids=["even", "spread"])
def test_the_legend_stands_above_the_data(levels):
    figure = plots.figure()
    (ax,) = figure.axes
    for label in ("one", "two", "three"):
        plots.spectrum(rt.Spectrum.of(levels), label=label, ax=ax)
    figure.draw_without_rendering()
    top = ax.transData.transform((0, max(levels)))[1]
    assert ax.get_legend().get_window_extent().y0 > top


@pytest.mark.parametrize(
    "draw", [plots.hessian_pattern, lambda w, ax: plots.folded_filters(w[None, None], ax=ax)]
)
def test_a_pattern_of_zeros_is_white(ax, draw):
    draw(torch.zeros(2, 2), ax=ax)
    (image,) = ax.images
    assert same_color(image.cmap(image.norm(0.0)), image.cmap(0.5)) and image.norm.vmax == 1
    assert image.colorbar.extend == "neither"


def test_pattern_of_a_large_matrix_keeps_single_entries(ax):
    matrix = torch.full((1501, 1501), 0.1)
    matrix[1500, 3] = -2.0
    plots.hessian_pattern(matrix, ax=ax)
    assert not ax.lines  # no blocks
    values = np.asarray(ax.images[0].get_array())
    assert len(values) <= matrices._PIXELS
    assert values.min() == -2.0
    assert np.argwhere(values == -2.0).tolist() == [[250, 0]]


@pytest.mark.parametrize(
    ("draw", "given", "message"),
    [
        (plots.hessian_pattern, torch.zeros(2, 3), "matrix: got shape"),
        (plots.hessian_pattern, torch.zeros(4), "matrix: got shape"),
        (plots.folded_filters, torch.zeros(3, 3), "layer: got"),
        (plots.folded_filters, torch.nn.ReLU(), "layer: got"),
    ],
)
def test_what_is_no_matrix_or_kernel_is_refused(draw, given, message, ax):
    with pytest.raises(ValueError, match=message):
        draw(given, ax=ax)
    with pytest.raises(ValueError, match=r"; rt\.plots\.curve draws Flows$"):
        plots.spectrum(stub("Flows"), ax=ax)


def test_colours_of_filters_end_where_they_are_told(ax):
    plots.folded_filters(torch.randn(2, 2, 3, 3), limit=0.1, ax=ax)
    assert (ax.images[0].norm.vmin, ax.images[0].norm.vmax) == (-0.1, 0.1)
    assert ax.images[0].colorbar.extend == "both"
    assert [line.get_xdata()[0] for line in ax.lines[2:]] == [1, 2]
    with pytest.raises(ValueError, match="limit: got 0"):
        plots.folded_filters(torch.randn(2, 2, 3, 3), limit=0, ax=ax)


def test_the_longer_side_of_a_kernel_is_binned(ax):
    plots.folded_filters(torch.ones(700, 2, 2, 1), ax=ax)
    assert np.asarray(ax.images[0].get_array()).shape == (2 * 234, 1)  # 1400 rows in 600 pixels
    plots.folded_filters(torch.ones(2, 700, 1, 2), ax=ax)
    assert np.asarray(ax.images[1].get_array()).shape == (1, 2 * 234)


@pytest.mark.parametrize("channels", [16, 400], ids=["entries", "binned"])
def test_the_identity_is_the_diagonal_of_the_middle_tap(ax, channels):
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    torch.nn.init.dirac_(layer.weight)
    plots.folded_filters(layer, ax=ax)
    drawn = np.asarray(ax.images[0].get_array())
    side = len(drawn) // 3
    assert side == {16: 16, 400: 200}[channels]  # 1200 rows in 600 pixels
    expected = np.zeros((3 * side, 3 * side))
    expected[side : 2 * side, side : 2 * side] = np.eye(side)
    np.testing.assert_array_equal(drawn, expected)


def test_every_curve_by_depth_needs_a_value_for_each():
    for argument, count in (("measured", 1), ("predicted", 3)):
        given = {"measured": {"b": [1.0, 2.0]}, argument: {"b": [1.0] * count}}
        with pytest.raises(ValueError) as refused:
            plots.by_depth([2, 4], given.pop("measured"), **given, ylabel="number")
        assert str(refused.value) == (
            f"{argument}: got {count} values of 'b' for 2 places, needs one for each"
        )


@pytest.mark.parametrize(
    "draw",
    [lambda x, nets, **more: plots.by_depth(x, nets, ylabel="y", **more), plots.flow_curve],
    ids=["by_depth", "flow_curve"],
)
def test_curves_that_would_not_be_drawn_are_refused(draw):
    with pytest.raises(ValueError, match="^predicted: unknown name 'b'; .*choose from 'a'"):
        draw([1, 2], {"a": [1, 2]}, predicted={"b": [1, 2]})
    with pytest.raises(ValueError, match="got list, needs values by name of the net"):
        draw([1, 2], [1, 2])


@pytest.mark.parametrize(
    "draw",
    [lambda x, nets, ax: plots.by_depth(x, nets, ylabel="y", ax=ax), plots.flow_curve],
    ids=["by_depth", "flow_curve"],
)
def test_a_legend_without_predictions_speaks_of_none(ax, draw):
    draw([1, 2], {"a": [0.1, 0.9]}, ax=ax)
    assert labels(ax) == ["a"] and ax.get_legend().get_title().get_text() == ""


@pytest.mark.parametrize(("n", "panels"), [(1, 1), (2, 2), (3, 2)], ids=["n=1", "n=2", "n=3"])
def test_zero_point_draws_what_is_listed(n, panels):
    eye = torch.eye(2)
    data = rt.Moments(sxx=2 * eye, syx=torch.diag(torch.tensor([0.5, 1.0])), syy=eye, count=5)
    point = rt.theory.zero_point(data, blocks=1000, shortcut_depth=n)
    drawing = plots.zero_point(point)
    assert len(drawing.axes) == panels
    assert drawing.get_size_inches().tolist() == [4.8 * panels, 3.9]  # side by side
    heights = [bar.get_height() for bar in drawing.axes[0].patches]
    np.testing.assert_allclose(heights, point.singular_values)
    assert [bar.get_x() + bar.get_width() / 2 for bar in drawing.axes[0].patches] == [1, 2]
    assert drawing.axes[0].get_title() == point.verdict
    for ax in drawing.axes[1:]:
        assert labels(ax) == [f"predicted, P = {point.size}"]
        assert sum(int(text.get_text()[2:]) for text in ax.texts) == point.size


@pytest.mark.parametrize("scale", ["linear", "symlog"])
@pytest.mark.parametrize(
    ("levels", "width"),
    [([-1.0, 0.5, 2.0], 3), ([-2.0, -2.0], 2), ([0.0, 0.0], 1), ([3.0, 3 + 2**-50], 3),
     ([1e-20, 4e-20], 3e-20)],
    ids=str,
)  # fmt: skip
def test_a_histogram_of_eigenvalues_has_area_one(ax, levels, width, scale):
    found = rt.Spectrum.of(torch.tensor(levels))
    torch.set_default_dtype(torch.float32)
    plots.spectral_density(found, scale=scale, ax=ax)
    heights, edges, _ = ax.patches[-1].get_data()
    assert same_color(ax.patches[-1].get_facecolor(), canvas.MEASURED)
    assert len(heights) == 100 and (heights * np.diff(edges)).sum() == pytest.approx(1)
    for level in levels:
        (place,) = np.nonzero((edges[:-1] < level) & (level <= edges[1:]))[0]
        assert heights[place] * (edges[place + 1] - edges[place]) >= 0.99 / len(levels)
    assert (ax.get_xscale(), ax.get_yscale()) == (scale, "log")
    slack = 0.05 * width if len(set(levels)) > 1 and levels[0] != 3 else width
    ends = min(levels) - slack, max(levels) + slack
    assert edges[[0, -1]] == pytest.approx(ends, rel=1e-12, abs=0)
    if scale == "symlog":  # linear below a tenth of a thousandth, rounded down to a power of ten
        near = 1e-24 if width < 1 else 1e-4
        assert ax.xaxis.get_transform().linthresh == pytest.approx(near, abs=0)
    assert ax.get_ylim()[0] < heights[heights > 0].min()
    assert ax.get_ylim()[0] == pytest.approx(0.1 / (len(levels) * width))
    assert [line.get_xdata()[0] for line in ax.lines] == [max(levels), min(levels)]
    assert ax.get_legend().get_title().get_text() == f"P = {len(levels)}"
    assert ax.get_xlabel() == "eigenvalue (loss / weight²)"


def test_png_tells_only_the_drawing():
    def drawn():
        figure = plots.figure()
        plots.spectrum(rt.Spectrum.of([-1.0, 1.0]), ax=figure.axes[0])
        return plots.png(figure, dpi=50)

    file = drawn()
    assert file.startswith(b"\x89PNG") and file == drawn()


def test_panels_are_as_large_as_asked_for_and_a_png_has_few_bytes():
    drawing, plain = plots.figure(2, 3, panel=(2.0, 1.0)), io.BytesIO()
    spans = [(ax.get_subplotspec().rowspan[0], ax.get_subplotspec().colspan[0])
             for ax in drawing.axes]  # fmt: skip
    assert spans == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert plots.figure().get_size_inches().tolist() == [4.8, 3.9]
    assert Image.open(io.BytesIO(plots.png(drawing))).size == (900, 300)
    file, smallest = plots.png(drawing, dpi=50), io.BytesIO()
    image = Image.open(io.BytesIO(file))
    assert image.size == (300, 100) and image.mode == "P"
    image.save(smallest, format="png", optimize=True)
    assert file == smallest.getvalue()
    drawing.savefig(plain, format="png", dpi=50)
    assert len(file) < 0.6 * len(plain.getvalue())
    with pytest.raises(ValueError, match="^rows: got 0"):
        plots.figure(0, 1)
    with pytest.raises(ValueError, match="^columns: got 0"):
        plots.figure(1, 0)


def test_a_png_keeps_the_colours_of_thin_lines_beside_many_others():
    colours = matplotlib.colormaps["hsv"](np.linspace(0, 1, 10, False))
    drawing = plots.figure(1, 2)
    lines, image = drawing.axes
    for height, colour in enumerate(colours):
        lines.plot([0, 1], [height, height], color=colour, linewidth=0.5)
    image.imshow(np.random.default_rng(0).random((60, 60)))
    drawn = np.asarray(Image.open(io.BytesIO(plots.png(drawing))).convert("RGB"))
    apart = np.abs(drawn[..., None, :] / 255 - colours[:, :3]).max(-1).min((0, 1))
    assert apart.max() <= 1 / 255


def test_svg_tells_only_the_drawing():
    def drawn():
        figure = plots.figure()
        plots.spectrum(rt.Spectrum.of([-1.0, 1.0]), ax=figure.axes[0])
        return plots.svg(figure)

    file = drawn()
    assert file == drawn() and b"<dc:date>" not in file and b">measured, P = 2<" in file


@pytest.mark.parametrize("panels", [1, 2])
@pytest.mark.parametrize(
    ("entries", "rows"),
    [(["a"] * 3, 1), (["a net with a long name"] * 9, None)],
    ids=["short", "long"],
)
def test_legends_stand_above_their_panel_and_leave_room_for_a_title(panels, entries, rows):
    drawing = plots.figure(1, panels)
    for ax in drawing.axes:
        for entry in entries:
            ax.plot([0, 1], label=entry)
        ax.set_title("title")
        canvas.legend_above(ax)
    drawing.draw_without_rendering()
    for number, ax in enumerate(drawing.axes, start=1):
        legend, title = ax.get_legend().get_window_extent(), ax.title.get_window_extent()
        assert title.y1 <= legend.y0 <= title.y1 + 2 * title.height
        assert legend.x1 <= number / panels * drawing.bbox.width
        assert legend.y1 <= drawing.bbox.height
        assert legend.x0 == pytest.approx(ax.bbox.x0)
        assert legend.y0 - ax.bbox.y1 == pytest.approx(18 / 72 * drawing.dpi)  # points
        if rows:
            tops = {round(text.get_window_extent().y1) for text in ax.get_legend().get_texts()}
            assert len(tops) == rows


@pytest.mark.parametrize("entries", [[], ["a"], ["a label"] * 4, ["a name of a curve " * 20]])
def test_any_axes_have_a_legend_above(entries):
    ax = Figure().add_axes((0.1, 0.1, 0.8, 0.8))  # of no grid
    for entry in entries:
        ax.plot([0, 1], label=entry)
    with contextlib.nullcontext() if entries else pytest.warns(UserWarning, match="No artists"):
        canvas.legend_above(ax)
    assert labels(ax) == entries and ax.get_legend()._ncols == max(1, len(entries))


def test_equal_legends_of_two_panels_become_one_below_which_nothing_is_hidden():
    drawing = plots.figure(1, 2)
    for ax in drawing.axes:
        for entry in "aaa":
            ax.plot([0, 1], label=entry)
        ax.legend(title="of what")
    plots.finish(drawing)
    drawing.draw_without_rendering()
    (legend,) = drawing.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a"] * 3
    assert legend.get_title().get_text() == "of what"
    assert not any(ax.get_legend() for ax in drawing.axes)
    assert all(ax.bbox.y1 <= legend.get_window_extent().y0 for ax in drawing.axes)
    assert len({round(text.get_window_extent().y1) for text in legend.get_texts()}) == 1


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([3, 4, 5, 6, 7], [0.0, 0.4], [[4, 6], [0, 0.2, 0.4]]),
        ([0.0, 0.5, 2.0], [0.0, 1.1], [[0, 1, 2], [0, 0.5, 1]]),
    ],
    ids=["counts", "numbers"],
)
def test_ticks_of_counts_are_whole_and_axes_have_three(ax, x, y, expected):
    ax.plot(x, np.linspace(*y, len(x)))
    plots.finish(ax.figure)
    ax.figure.set_size_inches(1.6, 1.6)  # where there is hardly room for ticks
    for axis, wanted in zip((ax.xaxis, ax.yaxis), expected, strict=True):
        low, high = axis.get_view_interval()
        ticks = [tick for tick in axis.get_majorticklocs() if low <= tick <= high]
        assert ticks == pytest.approx(wanted)


@pytest.mark.parametrize(("high", "powers"), [(1000.0, True), (990.0, False)])
def test_three_powers_of_ten_are_ticks_enough(ax, high, powers):
    ax.plot([10.0, high])
    ax.set(yscale="log", ylim=(10.0, high))
    plots.finish(ax.figure)
    ticks = [tick for tick in ax.get_yticks() if 10 <= tick <= high]
    assert (ticks == [10, 100, 1000]) == powers and len(ticks) >= 3
    assert isinstance(ax.yaxis.get_major_locator(), FixedLocator) != powers


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((1, 100), [1, 10, 100]),
        ((0.5, 10), [0.5, 1, 2, 5, 10]),
        ((1.2, 8), [1.5, 2, 3, 5, 7]),
        ((19.9, 31), [20, 22, 24, 26, 28, 30]),
        ((19.9, 32.6), [20, 25, 30]),
        ((21.1, 26.3), [22, 23, 24, 25, 26]),
        ((2.05, 3.3), [2.2, 2.4, 2.6, 2.8, 3, 3.2]),
    ],
    ids=str,
)
def test_ticks_are_the_coarsest_round_numbers_of_which_there_are_three(ends, expected):
    assert canvas.round_numbers(*map(math.log10, ends)) == pytest.approx(expected)


def test_names_along_an_axis_of_a_finished_figure_stay(ax):
    plots.curve(stub("Flows", layer=["first", "second"], share=[0.25, 0.5]), ax=ax)
    plots.finish(ax.figure)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["first", "second"]


def test_chosen_ticks_of_a_finished_figure_stay(ax):
    ax.plot([1.0, 8.0], [1.0, 8.0])
    ax.set(xscale="log")
    ax.set_xticks([2, 4], ["two", "four"])
    plots.finish(ax.figure)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["two", "four"]


def test_without_axes_a_new_figure_opens():
    from matplotlib import pyplot

    ax = plots.spectrum(rt.Spectrum.of([1.0]))
    assert ax.figure is pyplot.gcf()
    assert type(ax.figure.get_layout_engine()).__name__ == "ConstrainedLayoutEngine"
    assert not ax.spines["top"].get_visible()
    pyplot.close(ax.figure)


@pytest.mark.parametrize(
    "values", [[0.01, 1.0], [1.0, 20.0], [1.0, 20.1], [4.0, 4.0], [0.0, 0.0], [0.0, 9.0]], ids=str
)
def test_histograms_of_any_range(ax, values):
    plots.cushion_histogram({"a": Rows(x=values)}, "x", ax=ax)
    wide = values[1] > 20 * values[0] > 0
    assert ax.get_xscale() == ("log" if wide else "linear")
    assert sum(patch.get_height() for patch in ax.patches) == 2
    widths = [patch.get_width() for patch in ax.patches]
    if values[0] == values[1]:  # the only bin is around them
        assert (ax.patches[0].get_x(), widths) == (values[0] / 2 or -0.5, [values[0] or 1.0])
    assert wide or widths == pytest.approx([widths[0]] * len(widths))
    assert not wide or widths[1] / widths[0] == pytest.approx((values[1] / values[0]) ** (1 / 40))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.01, 10.0], ["0.01", "0.1", "1", "10"]),
        ([0.15, 1.2], ["0.2", "0.5", "1"]),
        ([0.31, 0.69], ["0.3", "0.5", "0.7"]),
        ([0.301, 0.309], ["0.302", "0.304", "0.306", "0.308"]),
    ],
    ids=["powers", "factors", "digits", "linear"],
)
def test_ticks_of_violins_are_round_numbers(ax, values, expected):
    plots.cushion_violins({"a": Rows(x=values)}, ax=ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == expected


def test_cushions_that_are_not_there_are_refused(ax):
    with pytest.raises(ValueError, match="^layer: a has no 'y', it has x"):
        plots.cushion_histogram({"a": Rows(x=[1.0])}, "y", ax=ax)
    with pytest.raises(ValueError, match="^layer: a has no finite cushion in 'x'"):
        plots.cushion_histogram({"a": Rows(x=[math.nan])}, "x", ax=ax)
    with pytest.raises(ValueError, match="^measured: got no net"):
        plots.cushion_violins({}, ax=ax)


def test_a_finished_figure_is_fit_to_print():
    with matplotlib.rc_context(plots.style()):
        drawing = plots.figure()
        (ax,) = drawing.axes
        ax.plot([1.9, 2.3], [0.02, 0.9], "C1", label="curve")
        area = ax.fill_between([1.9, 2.3], 0.02, 0.9, color="C2")
        ax.set(xscale="log", yscale="log")
        ax.legend()
        plots.finish(drawing)
    assert ax.get_legend() is None and len(drawing.legends) == 1  # beside the curve
    for axis in (ax.xaxis, ax.yaxis):
        low, high = axis.get_view_interval()
        seen = [place for place in axis.get_majorticklocs() if low <= place <= high]
        assert len(seen) >= 3
        assert not any(label.get_text() for label in axis.get_minorticklabels())
    assert same_color(ax.lines[0].get_color(), canvas.SERIES[1])  # outside the context, too
    assert b">curve</text>" in plots.svg(drawing)
    for colors in (area.get_facecolor(), area.get_edgecolor()):  # resolved when it is drawn
        assert same_color(colors[0], canvas.SERIES[2])


def test_a_finished_figure_keeps_the_colours_of_numbers(ax):
    with matplotlib.rc_context(plots.style()):
        points = ax.scatter([0, 1, 2], [0, 1, 2], c=[0.0, 1.0, 2.0])
        plots.finish(ax.figure)
    ax.figure.draw_without_rendering()
    expected = points.cmap(points.norm([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(points.get_facecolor(), expected)
    np.testing.assert_allclose(points.get_edgecolor(), expected)


def test_a_finished_figure_keeps_transparent_colours():
    drawing = plots.figure()
    (line,) = drawing.axes[0].plot([0, 1], color=(0.0, 0.0, 1.0, 0.4))
    plots.finish(drawing)
    assert same_color(line.get_color(), (0.0, 0.0, 1.0, 0.4))


@pytest.mark.parametrize(
    ("entries", "beside", "width"),
    [
        (["a", "b"], True, 4.8),
        (["a", "of a label of 20 ch."], True, 4.8),
        (["a", "of a label with 21 c."], False, 4.8),
        (["of a label with 21 c."] * 3, False, 4.8),
        (["of a label with 21 c."] * 4, True, 4.8),
        (["of 18 letters each"] * 4, True, 4.8),
        (["of a label with 21 c."] * 9, False, 9.6),  # in three columns
        (["of a label with 21 c."] * 10, True, 9.6),
    ],
    ids=["short", "nearly long", "long", "few", "many", "narrow", "rows", "more rows"],
)
def test_the_legend_of_one_panel_stands_beside_it_where_it_is_narrow(entries, beside, width):
    drawing = plots.figure(panel=(width, 3.9))
    (ax,) = drawing.axes
    for entry in entries:
        ax.plot([0, 1], label=entry)
    ax.legend()
    plots.finish(drawing)
    drawing.draw_without_rendering()
    (legend,) = drawing.legends
    place = legend.get_window_extent()
    assert place.x0 >= ax.bbox.x1 if beside else place.y0 >= ax.bbox.y1


@pytest.mark.parametrize(
    ("panels", "title", "lines"),
    [(1, "a " * 14 + "aa", 1), (1, "a " * 16, 2), (2, "a " * 29 + "aa", 1), (2, "a " * 31, 2)],
)
def test_titles_of_legends_are_as_wide_as_there_is_room(panels, title, lines):
    drawing = plots.figure(1, panels)
    for ax in drawing.axes:
        ax.plot([0, 1], label="b")
        ax.legend(title=title.strip())
    plots.finish(drawing)
    (legend,) = drawing.legends
    assert len(legend.get_title().get_text().splitlines()) == lines


def test_a_legend_of_chosen_curves_keeps_them(ax):
    _, line = ax.plot([0, 1], label="a")[0], ax.plot([1, 0], color="red", label="b")[0]
    ax.legend([line], ["chosen"])
    plots.finish(ax.figure)
    (legend,) = ax.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["chosen"]
    assert same_color(legend.legend_handles[0].get_color(), "red")


def test_legends_that_differ_stay_above_their_own_panel():
    drawing = plots.figure(1, 2)
    for ax, label in zip(drawing.axes, ("left", "right"), strict=True):
        for color in ("red", "blue"):
            ax.plot([0, 1], color=color, label=label)
        ax.legend(title=f"of {label}")
    plots.finish(drawing)
    assert [labels(ax) for ax in drawing.axes] == [["left"] * 2, ["right"] * 2]
    titles = [ax.get_legend().get_title().get_text() for ax in drawing.axes]
    assert titles == ["of left", "of right"]
    kept = drawing.axes[0].get_legend().legend_handles  # two curves of one name are still two
    assert not drawing.legends and not same_color(*(line.get_color() for line in kept))


@pytest.mark.parametrize(("kind", "axis"), result_plots.AXES.items())
def test_each_kind_of_result_has_its_axes(ax, kind, axis):
    columns = {name: [1.0, 2.0] for name in (axis.x, axis.y, axis.of, axis.law) if name}
    plots.curve(stub(kind, **columns), ax=ax)
    wanted = (
        "log" if kind in ("CompressionBound", "Descent", "LayerTable", "NoiseCurves") else "linear"
    )
    assert ax.get_yscale() == wanted and ax.get_ylabel() == (axis.label or axis.y.replace("_", " "))


@pytest.mark.parametrize("nets", [10, 11])
def test_a_legend_has_no_more_curves_than_there_are_colours(ax, nets):
    rows = {"epoch": [0, 1] * nets, "loss": [1.0, 2.0] * nets}
    plots.curve(stub("Run", **rows, net=[k for k in range(nets) for _ in range(2)]), ax=ax)
    assert len(ax.lines) == nets and (ax.get_legend() is not None) == (nets == 10)
    colours = [line.get_color() for line in ax.lines]
    assert colours == [*canvas.SERIES, canvas.SERIES[0]][:nets]


@pytest.mark.parametrize(
    ("levels", "ends", "near"),
    [
        ([1.0, 1 + 0.9e-9], (1 + 0.9e-9, 1 + 0.9e-9), 1e-4),  # equal but for round-off
        ([1.0, 1 + 1.1e-9], (1.0, 1 + 1.1e-9), 1e-4),
        ([-5.0, 2.0], (-5.0, 2.0), 1e-4),  # of 5e-4, rounded down
        ([-0.5, 20.0], (-0.5, 20.0), 1e-3),
        ([0.0], (0.0, 0.0), 1e-4),
    ],
)
def test_ends_of_a_density_and_where_its_axis_is_linear(levels, ends, near):
    low, high, linear = density_plots._extent(None, rt.Spectrum.of(levels))
    assert ((low, high), linear) == (ends, pytest.approx(near))
    low, high, linear = density_plots._extent(spread(), rt.Spectrum.of(levels))
    assert (low, high) == (min(levels[0], -2), max(levels[-1], 7))
    coarse = SimpleNamespace(smallest=-9.0, largest=3.0, resolution=0.03)
    assert density_plots._extent(coarse, None) == (-9.0, 3.0, pytest.approx(0.01))


@pytest.mark.parametrize(
    ("levels", "linear"),
    [([0.0, 0.0, 6e-4, 6e-4, 6.0], 1e-8), ([0.0] * 3 + [3e-7, 3e-7, 3.0], 1e-8),
     ([4e-3] * 3 + [6.0], 1e-3), ([1e-4] * 10 + [2e-3] + [3e-2] * 89 + [9.0], 1e-3)],
)  # fmt: skip
def test_an_axis_of_eigenvalues_is_linear_below_a_tenth_of_them(ax, levels, linear):
    plots.spectrum(rt.Spectrum.of(levels), ax=ax)
    assert ax.yaxis.get_transform().linthresh == pytest.approx(linear)


def test_axes_without_curves_count_nothing(ax):
    ax.scatter([0.0, 1.3, 2.6], [1.0, 2.0, 3.0])
    plots.finish(ax.figure)
    assert any(tick != round(tick) for tick in ax.get_xticks())


def test_arrays_are_drawn_as_tensors_are(ax):
    matrix = np.array([[1.0, -2.0], [0.5, 0.0]])
    plots.hessian_pattern(matrix, ax=ax)
    plots.hessian_pattern(torch.from_numpy(matrix).requires_grad_(), ax=ax)
    first, second = (np.asarray(image.get_array()) for image in ax.images)
    assert (first == matrix).all() and (second == matrix).all() and ax.get_title() == ""
    with pytest.raises(ValueError, match="^block: got -1, needs at least 1"):
        plots.hessian_pattern(matrix, block=-1, ax=ax)
