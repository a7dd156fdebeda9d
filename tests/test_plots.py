"""Figures show the given numbers."""

import math

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import same_color
from matplotlib.figure import Figure

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


def test_predicted_levels_that_occur_once_have_no_multiplicity(ax):
    simple = rt.Spectrum.of([-1.0, 1.0])
    plots.spectrum(simple, predicted=simple, ax=ax)
    assert labels(ax)[1] == "predicted" and not ax.texts
    assert "loss / weight²" in ax.get_ylabel()


@pytest.mark.parametrize(
    ("levels", "scale"),
    [
        ([-1.0, 0.5, 1.0], "linear"),
        ([-1e-6, 1e-7, 1e-5, 1.0], "symlog"),
        ([0.0, 0.0], "linear"),
        ([1e-4, 2e-4, 3e-4, 0.8, 0.9, 1.0], "symlog"),
        ([1e-4, 2e-4, 0.7, 0.8, 0.9, 1.0], "linear"),
    ],
    ids=["even", "spread", "zero", "half", "third"],
)
def test_axis_of_eigenvalues(ax, levels, scale):
    plots.spectrum(rt.Spectrum.of(levels), ax=ax)
    assert ax.get_yscale() == scale


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
    assert [line.get_ydata()[0] for line in ax.lines[::2]] == [0, 2, 4]
    assert ax.get_title() == "H"


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


def test_colours_of_filters_end_where_they_are_told(ax):
    plots.folded_filters(torch.randn(2, 2, 3, 3), limit=0.1, ax=ax)
    assert (ax.images[0].norm.vmin, ax.images[0].norm.vmax) == (-0.1, 0.1)
    with pytest.raises(ValueError, match="limit: got 0"):
        plots.folded_filters(torch.randn(2, 2, 3, 3), limit=0, ax=ax)


@pytest.mark.parametrize("channels", [16, 400], ids=["entries", "binned"])
def test_the_identity_is_the_diagonal_of_the_middle_tap(ax, channels):
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    torch.nn.init.dirac_(layer.weight)
    plots.folded_filters(layer, ax=ax)
    drawn = np.asarray(ax.images[0].get_array())
    side = len(drawn) // 3
    assert len(drawn) <= 2 * matrices._PIXELS
    expected = np.zeros((3 * side, 3 * side))
    expected[side : 2 * side, side : 2 * side] = np.eye(side)
    np.testing.assert_array_equal(drawn, expected)


def test_curves_by_depth():
    ax = Figure().subplots()  # of another cycle of colours
    measured = {"a": [1.0, math.inf], "b": [2.0, 3.0]}
    plots.by_depth([2, 4], measured, predicted={"b": [2.5, 3.5]}, ylabel="number", ax=ax)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1.0, math.nan])
    assert ax.lines[3].get_ydata().tolist() == [2.5, 3.5]
    assert ax.lines[2].get_color() == ax.lines[3].get_color()
    assert labels(ax) == ["a", "b"]
    assert ax.get_ylabel() == "number"


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


@pytest.mark.parametrize(("n", "panels"), [(1, 1), (2, 2), (3, 2)], ids=["n=1", "n=2", "n=3"])
def test_zero_point_draws_what_is_listed(n, panels):
    eye = torch.eye(2)
    data = rt.Moments(sxx=2 * eye, syx=torch.diag(torch.tensor([0.5, 1.0])), syy=eye, count=5)
    point = rt.theory.zero_point(data, blocks=1000, shortcut_depth=n)
    drawing = plots.zero_point(point)
    assert len(drawing.axes) == panels
    heights = [bar.get_height() for bar in drawing.axes[0].patches]
    np.testing.assert_allclose(heights, point.singular_values)


def test_png_tells_only_the_drawing():
    def drawn():
        figure = plots.figure()
        plots.spectrum(rt.Spectrum.of([-1.0, 1.0]), ax=figure.axes[0])
        return plots.png(figure, dpi=50)

    assert drawn().startswith(b"\x89PNG")
    assert drawn() == drawn()


def test_without_axes_a_new_figure_opens():
    from matplotlib import pyplot

    ax = plots.spectrum(rt.Spectrum.of([1.0]))
    assert ax.figure is pyplot.gcf()
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


@pytest.mark.parametrize("values", [[1.0, 100.0], [1.0, 1.0], [0.0, 0.0]], ids=str)
def test_histograms_of_any_range(ax, values):
    plots.cushion_histogram({"a": Rows(x=values)}, "x", ax=ax)
    assert ax.get_xscale() == ("log" if values[1] == 100 else "linear")
    assert sum(patch.get_height() for patch in ax.patches) == 2


def test_violins_stand_side_by_side_for_the_layers_that_both_have(ax):
    nets = {"a": Rows(x=[1.0, 2.0], y=[3.0, 5.0]), "b": Rows(y=[3.0, 4.0], z=[1.0, 2.0])}
    plots.cushion_violins(nets, ax=ax)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["x", "y"]
    assert labels(ax) == ["a, |S| = 2", "b, |S| = 2"]
    assert len(ax.collections) == 5  # three bodies, and the medians of each net


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


def test_a_finished_figure_keeps_transparent_colours():
    drawing = plots.figure()
    (line,) = drawing.axes[0].plot([0, 1], color=(0.0, 0.0, 1.0, 0.4))
    plots.finish(drawing)
    assert same_color(line.get_color(), (0.0, 0.0, 1.0, 0.4))


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
