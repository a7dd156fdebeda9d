"""Spectrum reports: shared runs, the exact path, tables and figures."""

import math

import numpy as np
import pytest
import torch
from test_estimates import LEVELS, expected
from test_lanczos import Wrapped, rotated

import resid_theory as rt
from resid_theory import plots
from resid_theory.eigen.estimate import Estimate
from resid_theory.eigen.matrix_error import MatrixError
from resid_theory.eigen.spectrum_report import _index

EXACT = rt.Spectrum.of(LEVELS)
TRUTHS = {
    "trace": EXACT.trace,
    "frobenius_norm": EXACT.frobenius_norm,
    "index": EXACT.index,
    "condition_number": EXACT.percentile_condition_number(10),
}


@pytest.fixture(scope="module")
def reports():
    """Reports of one case for 24 seeds; with 60 steps all would be exact."""
    matrix = torch.diag(LEVELS)
    return [
        rt.eigen.spectral_estimates(matrix, 2, steps=10, probes=8, generator=seed)
        for seed in range(24)
    ]


@pytest.mark.parametrize("name", TRUTHS)
def test_intervals_have_their_coverage(name, reports):
    hits = sum(getattr(report, name).covers(TRUTHS[name]) for report in reports)
    assert hits >= expected(len(reports))[0]


def test_where_probes_span_the_space_a_condition_number_is_bounded_from_above():
    levels = LEVELS[1::2]
    truth = rt.Spectrum.of(levels).percentile_condition_number(10)
    for seed in range(3):
        report = rt.eigen.spectral_estimates(torch.diag(levels), 2, probes=8, generator=seed)
        assert report.condition_number.covers(truth) and report.condition_number.high < 2 * truth


def test_extremes_are_within_their_bounds(reports):
    exact = LEVELS.sort().values
    for report in reports:
        ends = (*report.smallest, *report.largest)
        for end, truth in zip(ends, exact[[0, 1, -1, -2]], strict=True):
            assert abs(end.value - truth) <= end.high - end.value + 1e-13
    inside = [r.density.wasserstein_distance(EXACT) <= r.density.wasserstein_error for r in reports]
    assert sum(inside) >= expected(len(reports))[0]


def test_products_are_counted_once(generator):
    class Counted(Wrapped):
        columns = 0

        def __matmul__(self, vectors):
            self.columns += vectors.shape[1]
            return super().__matmul__(vectors)

    operator = Counted(rotated(LEVELS, generator))
    report = rt.eigen.spectral_estimates(operator, 2, probes=4, steps=10)
    assert report.products == operator.columns == report.pairs.products + 4 * 10


def test_without_density_one_product_a_probe(generator):
    report = rt.eigen.spectral_estimates(rotated(LEVELS, generator), 2, probes=6, density=False)
    assert report.products == report.pairs.products + 6
    assert report.density is report.index is report.condition_number is None
    assert report.trace.covers(EXACT.trace)
    assert "index" not in str(report)


def test_probes_raise_the_certainty_of_the_extremes(generator):
    matrix = rotated(LEVELS, generator)
    alone = rt.eigenpairs(matrix, 2, which="both")
    shared = rt.eigen.spectral_estimates(matrix, 2, steps=30)
    assert shared.pairs.missed_probability < alone.missed_probability


def test_a_singular_operator_has_no_finite_condition_number(generator):
    levels = torch.cat([torch.zeros(300), torch.randn(60, generator=generator)])
    report = rt.eigen.spectral_estimates(rotated(levels, generator), 2, steps=40)
    condition = report.condition_number
    assert math.isinf(condition.value) and math.isinf(condition.high)
    assert condition.low > 1 - 1e-9  # max over max: nothing is known of a percentile in a spike
    below = (levels < -report.index_threshold).double().mean().item()
    assert report.index.covers(below)


def test_a_space_that_spans_everything_is_exact(generator):
    report = rt.eigen.spectral_estimates(rotated(LEVELS[:6], generator), 3)
    assert report.method == "dense" and report.products >= 6
    assert report.trace.value == pytest.approx(LEVELS[:6].sum().item())


@pytest.mark.parametrize("matrix", [torch.zeros(50, 50), torch.eye(50)], ids=["zero", "identity"])
def test_degenerate_operators(matrix):
    report = rt.eigen.spectral_estimates(matrix.double(), 2)
    top = matrix[0, 0].item()
    assert [end.value for end in report.largest] == pytest.approx([top, top])
    assert report.trace.value == pytest.approx(50 * top)
    assert report.index.value == 0.0


def test_a_killed_report_continues_bit_for_bit(generator, tmp_path):
    matrix = rotated(LEVELS, generator)
    whole = rt.eigen.spectral_estimates(matrix, 2, probes=3, steps=8)
    for _ in range(2):
        dying = Wrapped(matrix, 5)
        with pytest.raises(KeyboardInterrupt):
            rt.eigen.spectral_estimates(dying, 2, probes=3, steps=8, folder=tmp_path)
    resumed = rt.eigen.spectral_estimates(matrix, 2, probes=3, steps=8, folder=tmp_path)
    assert str(whole) == str(resumed) and whole.trace == resumed.trace
    assert torch.equal(whole.density.nodes, resumed.density.nodes)


def test_scaling_scales_the_report(generator):
    matrix = rotated(LEVELS, generator)
    plain = rt.eigen.spectral_estimates(matrix, 2, probes=3, steps=10)
    scaled = rt.eigen.spectral_estimates(2.0**-40 * matrix, 2, probes=3, steps=10)
    assert scaled.trace.value == pytest.approx(2.0**-40 * plain.trace.value, rel=1e-12)
    assert scaled.index == plain.index
    assert scaled.condition_number.value == pytest.approx(plain.condition_number.value, rel=1e-12)


# -- the exact path --------------------------------------------------------------------------------


def test_a_known_spectrum_makes_an_exact_report():
    report = rt.eigen.SpectrumReport.of(EXACT, 3, samples=7)
    assert [end.value for end in report.largest] == [9.0, 7.0, 5.0]
    assert report.smallest[0].value == -6.0
    for name, truth in TRUTHS.items():
        assert getattr(report, name).value == truth
        assert getattr(report, name).standard_error == 0.0
    assert "7 samples" in str(report) and "dense" in str(report)
    pairs = rt.eigenpairs(torch.diag(LEVELS), 2, which="both", tolerance=1e-12)
    assert (pairs.largest.value, pairs.smallest.value) == pytest.approx((9.0, -6.0))
    report = rt.eigen.SpectrumReport.of(rt.Spectrum.of([-1.0, 4.0], [10**12, 2]), 3)
    assert [end.value for end in report.largest] == [4.0, 4.0, -1.0]  # levels are repeated


# -- shown -----------------------------------------------------------------------------------------


@pytest.fixture
def report(generator):
    matrix = rotated(LEVELS, generator)
    return rt.eigen.spectral_estimates(matrix, 2, probes=4, steps=20, matrix="hessian")


def test_a_report_prints_every_number_with_its_error(report):
    text = str(report)
    assert text.startswith(f"hessian, P = 60: matrix-free, {report.products} products")
    for name, number in report.numbers.items():
        assert name in text and str(number) in text
    assert f"<td>trace</td><td>{report.trace}</td>" in report._repr_html_()


def test_a_report_is_a_data_frame(report):
    frame = report.frame().set_index("quantity")
    assert frame.loc["trace", "value"] == report.trace.value
    assert frame.loc["largest 1", "high"] == report.largest[0].high
    assert set(frame["method"]) == {"matrix-free"} and len(frame) == len(report.numbers)


@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_densities_are_drawn_over_the_exact_eigenvalues(report, scale):
    ax = plots.figure().axes[0]
    plots.spectral_density(report, exact=EXACT, scale=scale, width=0.5, ax=ax)
    exact = next(area for area in ax.collections if area.get_label() == "exact")
    top = max(y for _, y in exact.get_paths()[0].vertices)
    levels = EXACT.levels.repeat_interleave(EXACT.multiplicities)
    kernel = torch.distributions.Normal(levels, 0.5)  # the estimate's, so that both compare
    grid = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    wanted = kernel.log_prob(grid[:, None]).exp().mean(1).max().item()
    assert top == pytest.approx(wanted, rel=0.01)  # places are 0.03 apart
    assert ax.get_xscale() == scale
    (line,) = (one for one in ax.lines if len(one.get_xdata()) > 2)
    assert (line.get_ydata() >= 0).all()
    both = report.density, EXACT
    low, high = min(each.smallest for each in both), max(each.largest for each in both)
    slack = 0.05 * (high - low)
    assert line.get_xdata()[[0, -1]] == pytest.approx([low - slack, high + slack])
    curve = report.density.smoothed(torch.from_numpy(line.get_xdata()), width=0.5)
    (band,) = (area for area in ax.collections if area.get_label() != "exact")
    ends = curve.values - 2 * curve.standard_errors, curve.values + 2 * curve.standard_errors
    heights = np.array([y for _, y in band.get_paths()[0].vertices])
    for end in ends:
        assert np.isin(end.clamp(min=0).numpy(), heights).all()
    assert plots.png(ax.figure)


@pytest.mark.parametrize("error", [0.0, 0.5])
def test_what_counts_as_negative_is_beyond_rounding_and_the_error(error):
    spectrum = rt.Spectrum.of([-0.1, -1e-11, 4.0], error=error)
    report = rt.eigen.SpectrumReport.of(spectrum, k=1)
    assert report.index_threshold == max(4e-10, spectrum.zero_threshold)
    assert report.index.value == (0 if error else 1 / 3)


def test_a_dense_report_is_drawn_as_its_histogram():
    ax = plots.figure().axes[0]
    plots.spectral_density(rt.eigen.SpectrumReport.of(EXACT), ax=ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["exact"]


def test_refusals(generator):
    report = rt.eigen.spectral_estimates(rotated(LEVELS, generator), 2, density=False)
    with pytest.raises(ValueError, match="ask for it by density=True"):
        plots.spectral_density(report)
    with pytest.raises(ValueError, match="^measured: this report lists no eigenvalues"):
        plots.spectrum(report)
    with pytest.raises(ValueError, match="estimate: got Estimate, needs S"):
        plots.spectral_density(report.trace)
    with pytest.raises(ValueError, match="scale: unknown name"):
        plots.spectral_density(report, scale="log")
    with pytest.raises(ValueError, match="percentile: got 101"):
        rt.eigen.spectral_estimates(torch.eye(3), percentile=101)
    with pytest.raises(ValueError, match="probes: got 0"):  # of which this matrix needs none
        rt.eigen.spectral_estimates(torch.eye(3), probes=0)


def test_zeros_that_are_left_by_the_extremes_do_not_count_as_negative(generator):
    levels = torch.tensor([5.0, 4.0, -3.0, -2.0] + [0.0] * 13)
    basis = torch.linalg.qr(torch.randn(17, 17, generator=generator))[0]
    for seed in range(5):
        report = rt.eigen.spectral_estimates((basis * levels) @ basis.T, 2, generator=seed)
        assert report.index.covers(2 / 17) and report.index_threshold < 1e-10


@pytest.mark.parametrize("negative", [0, 1, 2, 3])
def test_few_negative_eigenvalues_are_counted(negative):
    levels = torch.cat([torch.linspace(0, 1, 200), -1.0 - torch.arange(negative)])
    report = rt.eigen.spectral_estimates(torch.diag(levels), 2, steps=10)
    counted = (report.index.low, report.index.high) == (report.index.value,) * 2
    assert counted == (negative < 2) and report.index.covers(negative / len(levels))
    assert 0 < report.index_threshold < 0.5


def test_an_eigenvalue_near_the_threshold_may_count():
    seen = rt.spectral_density(torch.diag(torch.linspace(0, 1, 200)), steps=10)
    ends = [Estimate.exact(-seen.resolution, bound) for bound in (0.0, 0.01, 2.0)]
    found = [_index([Estimate.exact(-1.0), end, Estimate.exact(0.0)], seen) for end in ends]
    share = 1 / 200
    assert [(e.value, e.low, e.high) for e in found] == [
        (share, share, share), (share, share, 2 * share), (share, share, 2 * share),
    ]  # fmt: skip


@pytest.mark.parametrize("given", [{}, {"k": 2, "percentile": 25, "matrix": "m", "samples": 9,
                                        "reason": "r"}], ids=["plain", "all"])  # fmt: skip
def test_every_number_of_an_exact_report(given):
    spectrum = rt.Spectrum.of([-3.0, -0.1, -0.4, 4.0], error=0.25)
    error = MatrixError(spectral=0.25, frobenius=0.125, trace=0.0625)
    report = rt.eigen.SpectrumReport.of(spectrum, error=error, **given)
    solver = 4 * 2.0**-52 * 4  # of a dense solver; in the trace and the norm of four as of two
    bound, k = 0.25 + solver, given.get("k", 4)
    about = {
        "method": "dense", "reason": given.get("reason", "all eigenvalues are known"),
        "matrix": given.get("matrix", "hessian"), "parameters": 4, "samples": given.get("samples"),
        "percentile": given.get("percentile", 10), "spectrum": spectrum, "density": None,
        "pairs": None, "products": 0, "notes": (), "index_threshold": pytest.approx(bound),
    }  # fmt: skip
    assert {name: getattr(report, name) for name in about} == about
    rank = {10: 0.1 + 0.3 * 0.3, 25: 0.1 + 0.75 * 0.3}[report.percentile]  # of 0.1, 0.4, 3 and 4
    known = rank > bound
    norm = (16 + 9 + 0.16 + 0.01) ** 0.5
    condition = [4 / rank if known else math.inf, (4 - bound) / (rank + bound),
                 (4 + bound) / (rank - bound) if known else math.inf]  # fmt: skip
    numbers = {
        f"largest {i}": [x, x - bound, x + bound] for i, x in enumerate([4, -0.1, -0.4, -3][:k], 1)
    } | {
        f"smallest {i}": [x, x - bound, x + bound] for i, x in enumerate([-3, -0.4, -0.1, 4][:k], 1)
    } | {
        "trace": [0.5, 0.5 - 0.0625 - 2 * solver, 0.5 + 0.0625 + 2 * solver],
        "Frobenius norm": [norm, norm - 0.125 - 2 * solver, norm + 0.125 + 2 * solver],
        # Below -0.25; at least -3 is, and at most all that are negative.
        "index, share below -0.25": [0.5, 0.25, 0.75],
        f"condition number, percentile {report.percentile:g}": condition,
    }  # fmt: skip
    frame = report.frame()
    assert frame["quantity"].tolist() == list(numbers)
    found = frame[["value", "low", "high"]].to_numpy()
    np.testing.assert_allclose(found, list(numbers.values()), rtol=1e-12)
    assert not frame["standard_error"].any()
    for name in ("method", "matrix", "parameters"):
        assert set(frame[name]) == {about[name]}
    title = "m, P = 4, 9 samples: dense (r)" if given else (
        "hessian, P = 4: dense (all eigenvalues are known)")  # fmt: skip
    assert report.title == title and str(report).startswith(title)
    pairs = rt.eigenpairs(torch.diag(torch.tensor([-3.0, 4.0, 1.0])), 1)
    report = rt.eigen.SpectrumReport.of(spectrum, pairs=pairs)
    assert report.pairs is pairs and report.products == pairs.products > 0
    assert report.title.startswith(f"hessian, P = 4: dense, {pairs.products} products (")
    assert report.trace.high == pytest.approx(0.5 + 2 * bound)  # an error without a pattern


def test_an_estimated_report_has_what_was_asked_for(generator):
    A = rotated(LEVELS, generator)
    given = {"percentile": 25, "matrix": "m", "samples": 9, "reason": "r", "probes": 3,
             "missed": 1e-6, "tolerance": 1e-9}  # fmt: skip
    report = rt.eigen.spectral_estimates(A, 2, steps=7, generator=4, **given)
    assert (report.method, report.reason, report.matrix) == ("matrix-free", "r", "m")
    assert (report.parameters, report.samples, report.percentile) == (60, 9, 25)
    pairs, density = report.pairs, report.density
    assert report.products == pairs.products + 21 == density.products
    assert density.probes == 3 and density.nodes.shape[1] <= 7
    assert pairs.accepted_miss == 1e-6 and bool((pairs.bounds <= 1.1e-9 * pairs.values.abs()).all())
    assert report.largest == pairs.estimates(1)[:2] and len(report.smallest) == 2
    assert report.smallest == pairs.estimates(-1)[:2]
    assert report.index == density.negative_share and report.spectrum is None
    assert report.index_threshold == density.resolution > 0
    top = float(pairs.values.abs().max())
    bottom = [density.quantile(place / 60, magnitude=True).value for place in (15, 16)]
    bottom = bottom[0] + 0.75 * (bottom[1] - bottom[0])  # 59 gaps, of which a quarter are 14.75
    ratio = top / bottom if bottom > density.resolution else math.inf
    assert report.condition_number.value == pytest.approx(ratio, rel=1e-9)
    assert report.title == f"m, P = 60, 9 samples: matrix-free, {report.products} products (r)"
    shorter = rt.eigen.spectral_estimates(A, 2, density=False, generator=4, **given)
    assert shorter.products == shorter.pairs.products + 3
    assert (shorter.index_threshold, shorter.density) == (0.0, None)


@pytest.mark.parametrize("unit", [1.0, 2.0**-200], ids=["1", "tiny"])
def test_a_space_that_spans_everything_has_the_errors_of_the_operator(unit, generator):
    levels = unit * LEVELS[[0, 20, 30, 56, 57, 59]]
    operator = Wrapped(rotated(levels, generator))
    operator.error = MatrixError(spectral=0.25 * unit, frobenius=0.5 * unit, trace=0.75 * unit)
    given = {"percentile": 25, "matrix": "m", "samples": 9, "tolerance": 1e-9}
    report = rt.eigen.spectral_estimates(operator, 3, **given)
    assert (report.method, report.reason) == ("dense", "the Lanczos vectors span everything")
    assert (report.matrix, report.samples, report.percentile) == ("m", 9, 25)
    assert report.products == report.pairs.products and len(report.largest) == 3
    torch.testing.assert_close(report.spectrum.levels, levels.sort().values, rtol=1e-12, atol=0.0)
    noise = report.pairs.round_off
    assert noise == pytest.approx(0.25 * unit, rel=1e-9)
    for number, own in ((report.trace, 0.75), (report.frobenius_norm, 0.5)):
        for half in (number.high - number.value, number.value - number.low):
            assert half == pytest.approx(own * unit + 6**0.5 * noise, rel=1e-9)
    assert report.largest[0].high - report.largest[0].value == pytest.approx(noise, rel=1e-9)


@pytest.mark.parametrize("top", [0.0, 0.5])
def test_a_condition_number_of_small_eigenvalues_has_its_bounds(top):
    report = rt.eigen.SpectrumReport.of(rt.Spectrum.of([-0.5 * top, top]), percentile=0)
    found, bound = report.condition_number, 2 * 2.0**-52 * top
    if not top:
        assert math.isnan(found.value) and math.isnan(found.high)
    else:
        assert (found.value, found.low) == (2.0, (top - bound) / (0.5 * top + bound))
        assert found.high == (top + bound) / (0.5 * top - bound) > 2


def test_extremes_are_counted_with_their_residuals():
    A = torch.diag(torch.cat([torch.linspace(-1, 1, 300), torch.tensor([3.0, 2.0, -2.0, -3.0])]))
    report = rt.eigen.spectral_estimates(A, 2, probes=2, steps=3, tolerance=1e-2)
    pairs, density = report.pairs, report.density
    lengths = (A @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    torch.testing.assert_close(density.known_residuals[:4], lengths, rtol=1e-6, atol=1e-12)
    assert float(lengths.max()) > 1e-6 and torch.equal(density.known[:4], pairs.values)
