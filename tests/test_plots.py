"""Figures show the given numbers."""

import contextlib
import io
import math

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import same_color, to_rgb
from matplotlib.figure import Figure
from PIL import Image

import resid_theory as rt
from resid_theory import plots
from resid_theory.plots import canvas, matrices
from resid_theory.stability.sample_statistics import Summaries

matplotlib.use("agg")


@pytest.fixture
def ax():
    return plots.figure().axes[0]


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


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


def test_the_line_of_zero_is_where_eigenvalues_are_zero(ax):
    plots.spectrum(rt.Spectrum.of([-1.0, 2.0]), ax=ax)
    assert [0, 0] in [list(line.get_ydata()) for line in ax.lines]


def test_predicted_levels_name_their_multiplicity(ax):
    predicted = rt.Spectrum.of([-1.0, 1.0], [2, 2])
    plots.spectrum(rt.Spectrum.of([-1.1, -0.9, 1.0, 1.0]), predicted=predicted, ax=ax)
    assert labels(ax) == ["measured, P = 4", "predicted, 2 levels × 2"]
    assert [text.get_text() for text in ax.texts] == ["× 2", "× 2"]
    assert [text.xy for text in ax.texts] == [(0.25, -1.0), (0.75, 1.0)]  # in the middle of each
    assert ax.get_xlim() == (0, 1) and ax.get_xlabel() == "rank, as a share of P"


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


def test_pattern_draws_the_matrix_with_blocks(ax):
    matrix = torch.diag(torch.tensor([1.0, -3.0, 2.0, 0.0]))
    plots.hessian_pattern(matrix, block=2, ax=ax, title="H")
    image = ax.images[0]
    np.testing.assert_array_equal(image.get_array(), matrix.numpy())
    assert (image.norm.vmin, image.norm.vmax) == (-3.0, 3.0)
    assert image.get_interpolation() == "nearest"
    assert image.get_extent() == [0, 4, 4, 0]  # from the upper left corner
    assert [line.get_ydata()[0] for line in ax.lines[::2]] == [0, 2, 4]
    assert [line.get_xdata()[0] for line in ax.lines[1::2]] == [0, 2, 4]
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("H", "parameter", "parameter")
    assert image.colorbar.ax.get_ylabel() == "second derivative (loss / weight²)"


def test_a_pattern_of_zeros_is_white(ax):
    plots.hessian_pattern(torch.zeros(2, 2), ax=ax)
    (image,) = ax.images
    assert same_color(image.cmap(image.norm(0.0)), image.cmap(0.5)) and image.norm.vmax > 0


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


def test_filters_show_each_tap_in_its_place(ax):
    weight = torch.randn(2, 3, 3, 1)
    plots.folded_filters(weight, ax=ax, title="conv1")
    drawn = np.asarray(ax.images[0].get_array())
    assert drawn.shape == (6, 3)
    for row in range(3):
        np.testing.assert_array_equal(drawn[2 * row : 2 * row + 2], weight[:, :, row, 0].numpy())
    assert ax.get_title() == "conv1"
    assert ax.images[0].norm.vmax == float(weight.abs().max())
    assert ax.images[0].get_extent() == [0, 1, 3, 0] and ax.get_aspect() == 2 / 3
    assert [line.get_ydata()[0] for line in ax.lines] == [1, 2]  # between the taps
    assert ax.get_xlabel() == "column of the tap; in each, 3 inputs"
    assert ax.get_ylabel() == "row of the tap; in each, 2 outputs"
    for axis, count in ((ax.xaxis, 1), (ax.yaxis, 3)):
        assert axis.get_ticklocs().tolist() == [k + 0.5 for k in range(count)]
        assert [text.get_text() for text in axis.get_ticklabels()] == list(map(str, range(count)))
    assert ax.images[0].colorbar.extend == "neither"


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


def test_curves_by_depth():
    ax = Figure().subplots()  # of another cycle of colours
    measured = {"a": [0.1, math.inf, 0.0, -0.5], "b": [2.0, 3.0, 4.0, 5.0]}
    predicted = {"b": [2.5, 3.5, 4.5, 5.5]}
    plots.by_depth([2, 4, 6, 8], measured, predicted=predicted, ylabel="number", ax=ax)
    markers, absent, loose, line = ax.lines
    np.testing.assert_array_equal(markers.get_ydata(), [0.1, math.nan, math.nan, math.nan])
    assert np.isnan(absent.get_ydata()).all()
    assert loose.get_ydata().tolist() == measured["b"] and loose.get_linestyle() == "None"
    assert line.get_ydata().tolist() == predicted["b"] and line.get_color() == loose.get_color()
    assert markers.get_color() != loose.get_color()
    assert all(list(line.get_xdata()) == [2, 4, 6, 8] for line in ax.lines)
    assert labels(ax) == ["a", "b"]
    assert ax.get_legend().get_title().get_text() == "markers measured, lines predicted"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("weight layers", "number")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["2", "4", "6", "8"]
    assert not ax.get_xticks(minor=True).size
    with pytest.raises(ValueError, match="measured: got 1 values of 'a' for 2 layers"):
        plots.by_depth([2, 4], {"a": [1.0]}, ylabel="number", ax=ax)
    with pytest.raises(ValueError, match="predicted: got 3 values of 'b' for 4 layers"):
        short = {"b": [1.0, 2.0, 3.0]}
        plots.by_depth([2, 4, 6, 8], measured, predicted=short, ylabel="number", ax=ax)


@pytest.mark.parametrize(
    "draw",
    [lambda x, nets, ax: plots.by_depth(x, nets, ylabel="y", ax=ax), plots.flow_curve],
    ids=["by_depth", "flow_curve"],
)
def test_a_legend_without_predictions_speaks_of_none(ax, draw):
    draw([1, 2], {"a": [0.1, 0.9]}, ax=ax)
    assert labels(ax) == ["a"] and ax.get_legend().get_title().get_text() == ""


def test_flow_curves_have_bars_and_lines(ax):
    shares = {"a": [0.1, 0.9], "b": [0.2, 0.3]}
    bars, lines = {"a": [0.01, 0.02]}, {"b": [0.25, 0.35]}
    plots.flow_curve([0, 1], shares, errors=bars, predicted=lines, xlabel="layer", ax=ax)
    joined, loose, line = ax.lines
    assert joined.get_ydata().tolist() == [0.1, 0.9] and joined.get_linestyle() == "-"
    assert loose.get_ydata().tolist() == [0.2, 0.3] and loose.get_linestyle() == "None"
    assert line.get_ydata().tolist() == [0.25, 0.35] and line.get_color() == loose.get_color()
    spans = ax.collections[0].get_segments()
    np.testing.assert_allclose([span[:, 1] for span in spans], [[0.09, 0.11], [0.88, 0.92]])
    assert labels(ax) == ["a", "b"]
    assert ax.get_legend().get_title().get_text() == "markers measured, lines predicted"
    assert ax.get_ylim()[0] <= 0 and ax.get_ylim()[1] >= 1
    assert all(curve.get_xdata().tolist() == [0, 1] for curve in ax.lines)
    assert joined.get_color() != loose.get_color()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer", "share of dominant flows")


@pytest.mark.parametrize(("n", "panels"), [(1, 1), (2, 2), (3, 2)], ids=["n=1", "n=2", "n=3"])
def test_zero_point_draws_what_is_listed(n, panels):
    eye = torch.eye(2)
    data = rt.Moments(sxx=2 * eye, syx=torch.diag(torch.tensor([0.5, 1.0])), syy=eye, count=5)
    point = rt.theory.zero_point(data, blocks=1000, shortcut_depth=n)
    drawing = plots.zero_point(point)
    assert len(drawing.axes) == panels
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
    assert (heights * np.diff(edges)).sum() == pytest.approx(1)
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

    assert drawn().startswith(b"\x89PNG")
    assert drawn() == drawn()


def test_panels_are_as_large_as_asked_for_and_a_png_has_few_bytes():
    drawing, plain = plots.figure(2, 3, panel=(2.0, 1.0)), io.BytesIO()
    spans = [(ax.get_subplotspec().rowspan[0], ax.get_subplotspec().colspan[0])
             for ax in drawing.axes]  # fmt: skip
    assert spans == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    file = plots.png(drawing, dpi=50)
    assert Image.open(io.BytesIO(file)).size == (300, 100)
    drawing.savefig(plain, format="png", dpi=50)
    assert len(file) < 0.6 * len(plain.getvalue())
    with pytest.raises(ValueError, match="^rows: got 0"):
        plots.figure(0, 1)
    with pytest.raises(ValueError, match="^columns: got 0"):
        plots.figure(1, 0)


def test_svg_tells_only_the_drawing():
    def drawn():
        figure = plots.figure()
        plots.spectrum(rt.Spectrum.of([-1.0, 1.0]), ax=figure.axes[0])
        return plots.svg(figure)

    assert drawn() == drawn() and b"<dc:date>" not in drawn() and b">measured, P = 2<" in drawn()


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
        if rows:
            tops = {round(text.get_window_extent().y1) for text in ax.get_legend().get_texts()}
            assert len(tops) == rows


@pytest.mark.parametrize("entries", [[], ["a"], ["a name of a curve " * 20]])
def test_any_axes_have_a_legend_above(entries):
    ax = Figure().add_axes((0.1, 0.1, 0.8, 0.8))  # of no grid
    for entry in entries:
        ax.plot([0, 1], label=entry)
    with contextlib.nullcontext() if entries else pytest.warns(UserWarning, match="No artists"):
        canvas.legend_above(ax)
    assert labels(ax) == entries


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
    ("x", "y", "whole"),
    [([0, 1, 2], [0.0, 0.4], True), ([0.0, 0.5, 2.0], [0.0, 1.1], False)],
    ids=["counts", "numbers"],
)
def test_ticks_of_counts_are_whole_and_axes_have_three(ax, x, y, whole):
    ax.plot(x, np.linspace(*y, len(x)))
    plots.finish(ax.figure)
    ax.figure.set_size_inches(1.6, 1.6)  # where there is hardly room for ticks
    for axis in (ax.xaxis, ax.yaxis):
        low, high = axis.get_view_interval()
        ticks = [tick for tick in axis.get_majorticklocs() if low <= tick <= high]
        assert len(ticks) >= (2 if whole and axis is ax.xaxis else 3)
        assert not (whole and axis is ax.xaxis) or all(tick == round(tick) for tick in ticks)


@pytest.mark.parametrize(("high", "powers"), [(100.0, True), (99.0, False)])
def test_three_powers_of_ten_are_ticks_enough(ax, high, powers):
    ax.plot([1.0, high])
    ax.set(yscale="log", ylim=(1.0, high))
    plots.finish(ax.figure)
    ticks = [tick for tick in ax.get_yticks() if 1 <= tick <= high]
    assert (ticks == [1, 10, 100]) == powers and len(ticks) >= 3


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


class Rows(Summaries):
    """Given numbers as cushions."""

    def __init__(self, **rows):
        self.names, self.numbers = tuple(rows), torch.tensor(list(rows.values()))

    rows = property(lambda self: self.names)
    values = property(lambda self: self.numbers)


def test_histograms_share_their_bins_and_name_their_medians(ax):
    nets = {"a": Rows(x=[1.0, 2.0, 3.0, math.nan]), "b": Rows(x=[2.0, 4.0, 5.0, 6.0])}
    plots.cushion_histogram(nets, "x", bins=5, ax=ax)
    assert labels(ax) == ["a, median 2, |S| = 3", "b, median 4.5, |S| = 4"]
    heights = [patch.get_height() for patch in ax.patches]
    assert len(heights) == 10 and sum(heights[:5]) == 3 and sum(heights[5:]) == 4
    assert ax.get_xscale() == "linear"
    assert [line.get_xdata()[0] for line in ax.lines] == [2.0, 4.5]
    assert {line.get_linestyle() for line in ax.lines} == {"--"}
    assert [patch.get_x() for patch in ax.patches] == pytest.approx([1, 2, 3, 4, 5] * 2)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("cushion of x", "samples")


@pytest.mark.parametrize(
    "values", [[1.0, 100.0], [1.0, 20.0], [1.0, 20.1], [1.0, 1.0], [0.0, 0.0], [0.0, 9.0]], ids=str
)
def test_histograms_of_any_range(ax, values):
    plots.cushion_histogram({"a": Rows(x=values)}, "x", ax=ax)
    wide = values[1] > 20 * values[0] > 0
    assert ax.get_xscale() == ("log" if wide else "linear")
    assert sum(patch.get_height() for patch in ax.patches) == 2
    widths = [patch.get_width() for patch in ax.patches]
    if values[0] == values[1]:  # the only bin is around them
        assert (ax.patches[0].get_x(), widths) == (values[0] / 2 or -0.5, [1.0])
    assert wide or widths == pytest.approx([widths[0]] * len(widths))
    assert not wide or widths[1] / widths[0] == pytest.approx((values[1] / values[0]) ** (1 / 40))


def test_violins_stand_side_by_side_for_the_layers_that_both_have(ax):
    nets = {"a": Rows(x=[1.0, 2.0, 9.0], y=[3.0, 5.0, 6.0]),
            "b": Rows(y=[3.0, 4.0, 7.0], z=[1.0, 2.0, 3.0])}  # fmt: skip
    plots.cushion_violins(nets, ax=ax)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["x", "y"]
    assert labels(ax) == ["a, |S| = 3", "b, |S| = 3"]
    assert len(ax.collections) == 5  # three bodies, and the medians of each net
    lines = [part for part in ax.collections if isinstance(part, LineCollection)]
    medians = [[(ends[:, 0].mean(), *set(ends[:, 1])) for ends in part.get_segments()]
               for part in lines]  # fmt: skip
    expected = [[(-0.2, np.log10(2)), (0.8, np.log10(5))], [(1.2, np.log10(4))]]
    for found, places in zip(medians, expected, strict=True):
        np.testing.assert_allclose(found, places)
    assert ax.get_xlabel() == "layer" and "logarithmic" in ax.get_ylabel()
    assert not same_color(*(line.get_edgecolor()[0] for line in lines))


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
    assert same_color(area.get_facecolor()[0], canvas.SERIES[2])  # resolved when it is drawn


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
    ("entries", "beside"),
    [
        (["a", "b"], True),
        (["a", "of a label with 21 c."], False),
        (["of a label with 21 c."] * 20, True),
    ],
    ids=["short", "long", "many"],
)
def test_the_legend_of_one_panel_stands_beside_it_where_it_is_narrow(entries, beside):
    drawing = plots.figure()
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
    [(1, "a " * 15, 1), (1, "a " * 16, 2), (2, "a " * 30, 1), (2, "a " * 31, 2)],
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
        ax.legend()
    plots.finish(drawing)
    assert [labels(ax) for ax in drawing.axes] == [["left"] * 2, ["right"] * 2]
    kept = drawing.axes[0].get_legend().legend_handles  # two curves of one name are still two
    assert not drawing.legends and not same_color(*(line.get_color() for line in kept))
