"""Statistics of eigenvalues, against numpy and scipy on the list written out in full."""

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from tolerances import EPS, assert_same, round_off

from resid_theory.eigen.spectrum import Spectrum

# eigenvalues and multiplicities, in any order
CASES = {
    "one": ([3.0], [1]),
    "negative": ([-3.0], [4]),
    "mixed": ([-2.0, 0.5, 4.0, -0.25], [3, 1, 2, 5]),
    "signs": ([1.5, -1.5, 0.3, -0.3], [4, 4, 4, 4]),
    "zeros": ([0.0, 2.0, -1.0], [6, 3, 2]),
    "nothing": ([0.0], [5]),
    "tiny": ([1e-20, -3e-20, 2e-20], [2, 3, 4]),
    # d = 10 levels of one size: the 10th percentile is between the smallest and the next
    "tenths": ([0.1 * k for k in range(1, 11)], [10] * 10),
}


@pytest.fixture(params=CASES)
def both(request):
    levels, counts = CASES[request.param]
    return Spectrum.of(levels, counts), np.sort(np.repeat(levels, counts))


def near(value):
    return pytest.approx(value, rel=round_off(4), abs=0, nan_ok=True)


def test_percentiles(both):
    spectrum, expanded = both
    for percent in (0, 0.1, 5, 10, 33.3, 50, 90, 99.9, 100):
        expected = np.percentile(np.abs(expanded), percent)
        assert spectrum.magnitude_percentile(percent) == near(expected), percent


def test_sizes_and_extremes(both):
    spectrum, expanded = both
    assert spectrum.size == len(expanded)
    assert torch.equal(spectrum.eigenvalues, torch.from_numpy(expanded))
    assert (spectrum.largest, spectrum.smallest) == (expanded.max(), expanded.min())
    assert spectrum.max_magnitude == np.abs(expanded).max()
    assert spectrum.min_magnitude == np.abs(expanded).min()
    assert spectrum.trace == near(expanded.sum())
    assert spectrum.frobenius_norm == near(np.linalg.norm(expanded))


def test_every_rank(both):
    spectrum, expanded = both
    magnitudes = np.sort(np.abs(expanded))
    assert [spectrum.magnitude(rank) for rank in range(len(expanded))] == list(magnitudes)


def test_counts(both):
    spectrum, expanded = both
    points = [*expanded, 0.0, -10.0, 10.0]
    assert [spectrum.count_below(p) for p in points] == [int((expanded < p).sum()) for p in points]
    within = [int((np.abs(expanded) <= abs(p)).sum()) for p in points]
    assert [spectrum.count_within(abs(p)) for p in points] == within
    assert spectrum.index == near((expanded < 0).mean())


def test_condition_numbers_and_rank(both):
    spectrum, expanded = both
    matrix = np.diag(expanded)
    assert spectrum.rank == np.linalg.matrix_rank(matrix)
    assert spectrum.nullity == len(expanded) - spectrum.rank
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitudes = np.abs(expanded)
        assert spectrum.condition_number == near(magnitudes.max() / magnitudes.min())
        tenth = np.percentile(magnitudes, 10)
        assert spectrum.percentile_condition_number() == near(magnitudes.max() / tenth)
        nonzero = magnitudes[magnitudes > 0]
        expected = magnitudes.max() / nonzero.min() if len(nonzero) else math.nan
    assert spectrum.nonzero_condition_number == near(expected)


@pytest.mark.parametrize(("factor", "singular"), [(0.9, True), (1.0, True), (1.1, False)])
def test_the_rank_threshold(factor, singular):
    # numpy's: the larger size times epsilon times the largest, and not above it counts as zero
    spectrum = Spectrum.of([factor * 5 * EPS, 1.0], [2, 3])
    assert spectrum.zero_threshold == 5 * EPS
    assert (spectrum.rank == 3) is singular
    assert math.isinf(spectrum.condition_number) is singular


@pytest.mark.parametrize(
    ("value", "index"), [(-1.1e-10, 0.5), (-0.9e-10, 0.0), (0.0, 0.0), (1.0, 0.0)]
)
def test_the_index_leaves_round_off_out(value, index):
    assert Spectrum.of([value, 1.0]).index == index


def test_distinct_levels():
    given = Spectrum.of([1.0, 1.0 + 1e-12, 3.0, -2.0, 3.0], [1, 3, 2, 1, 5])
    merged = given.distinct()
    assert merged.multiplicities.tolist() == [1, 4, 7]
    # the mean of a cluster, weighted by multiplicity
    assert merged.levels.tolist() == [-2.0, near(1.0 + 0.75e-12), 3.0]
    assert given.distinct(1e-14).multiplicities.tolist() == [1, 1, 3, 7]
    assert merged.size == given.size


@pytest.mark.parametrize("scale", [1e-30, 1e300])
def test_distinct_at_any_scale(scale):
    merged = Spectrum.of([scale, scale, 0.1 * scale], [10**9, 3, 1], resolution=0.3).distinct(0.0)
    assert merged.resolution == 0.3  # and what counts as zero does, still
    assert merged.levels.tolist() == [0.1 * scale, scale]
    assert merged.multiplicities.tolist() == [1, 10**9 + 3]


PAIRS = {
    "one-to-one": (([1.0, 2.0, -3.0], None), ([1.5, 2.5, -1.0], None)),
    "runs": (([1.0, 2.0], [5, 2]), ([0.0, 1.0, 4.0], [1, 3, 3])),
    "equal": (([1.0, 2.0], [5, 2]), ([1.0, 1.0, 2.0], [2, 3, 2])),
    "nothing": (([0.0], [3]), ([0.0, 0.0], [1, 2])),
}


@pytest.mark.parametrize("case", PAIRS)
def test_distances(case):
    a, b = (Spectrum.of(*given) for given in PAIRS[case])
    one, other = a.eigenvalues.numpy(), b.eigenvalues.numpy()
    scale = max(np.abs(one).max(), np.abs(other).max()) or 1.0
    assert a.distance(b) == b.distance(a) == near(np.abs(one - other).max() / scale)
    transport = scipy.stats.wasserstein_distance(one, other)
    assert a.wasserstein_distance(b) == b.wasserstein_distance(a) == near(transport)


@pytest.mark.parametrize("name", ["distance", "wasserstein_distance"])
def test_distances_need_equal_sizes(name):
    with pytest.raises(ValueError, match="^other: has 3 eigenvalues, this spectrum 2; needs equal"):
        getattr(Spectrum.of([1.0, 2.0]), name)(Spectrum.of([1.0, 2.0, 3.0]))


def test_a_billion_eigenvalues_cost_no_more_than_two():
    spectrum = Spectrum.of([-1.0, 2.0, 4.0], [10**9, 10**9, 10**9])
    summary = spectrum.summary()  # a written list would need 24 GB
    assert summary["parameters"] == 3 * 10**9
    assert (summary["condition_number"], summary["index"]) == (4.0, 1 / 3)
    assert spectrum.magnitude_percentile(50) == 2.0
    assert spectrum.distance(Spectrum.of([-1.0, 3.0], [10**9, 2 * 10**9])) == 0.25
    with pytest.raises(ValueError, match="^eigenvalues: 3000000000 of them need 22.4 GiB; use lev"):
        _ = spectrum.eigenvalues


def test_a_gibibyte_of_eigenvalues_is_written_out(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", lambda levels, counts: counts)
    assert Spectrum.of([1.0], [2**27]).eigenvalues.tolist() == [2**27]
    with pytest.raises(
        ValueError, match="^eigenvalues: 134217729 of them need 1.0 GiB; use levels"
    ):
        _ = Spectrum.of([1.0], [2**27 + 1]).eigenvalues


def test_summary_has_every_statistic_ready_for_json(both):
    spectrum, expanded = both
    sizes, summary = np.sort(np.abs(expanded)), spectrum.summary()
    top, zero = sizes[-1], len(sizes) * EPS * sizes[-1]

    def over(size):
        return math.nan if top == 0 else math.inf if size <= zero else top / size

    tenth, rank = np.percentile(sizes, 10), int((sizes > zero).sum())
    wanted = {
        "parameters": len(sizes), "largest": expanded[-1], "smallest": expanded[0],
        "min_magnitude": sizes[0], "magnitude_percentile_10": tenth,
        "condition_number": over(sizes[0]), "condition_number_10": over(tenth),
        "condition_number_nonzero": over(sizes[len(sizes) - rank]) if rank else math.nan,
        "index": (expanded < 0).mean(), "rank": rank, "nullity": len(sizes) - rank,
        "zero_threshold": zero,
    }  # fmt: skip
    assert summary == {name: near(value) for name, value in wanted.items()}
    assert {type(value) for value in summary.values()} <= {int, float}
    assert json.loads(json.dumps(summary)).keys() == summary.keys()


def test_the_error_of_a_matrix_is_added_to_that_of_a_solver():
    spectrum = Spectrum.of([-1.0, 4.0], [2, 3], error=0.25)
    assert spectrum.zero_threshold == near(0.25 + 5 * EPS * 4)
    assert spectrum.resolution == near(spectrum.zero_threshold / 4)
    assert Spectrum.of([0.0], error=0.25).resolution is Spectrum.of([1.0]).resolution is None
    lines = [line.split() for line in str(spectrum).splitlines()]
    assert " ".join(lines[0]) == (
        "Spectrum, P = 5: λ in [-1, 4], rank 5, condition number 4, share below zero 0.4"
    )
    assert lines[1:] == [["eigenvalue", "multiplicity"], ["-1", "2"], ["4", "3"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_any_real_dtype_becomes_float64(dtype):
    levels = Spectrum.of(torch.tensor([2, 1, 5], dtype=dtype), [3, 1, 0]).levels
    assert_same(levels, torch.tensor([1.0, 2.0], dtype=torch.float64))  # zero times: dropped


@pytest.mark.parametrize("percent", [-1, 100.1, math.nan])
def test_percent_out_of_range(percent):
    with pytest.raises(ValueError, match=r"^percent: got .*, needs a number in \[0, 100\]"):
        Spectrum.of([1.0]).magnitude_percentile(percent)


REFUSED = {
    "nan": (([1.0, math.nan], None), "^levels: entry .* is nan"),
    "inf": (([1.0, math.inf], None), "^levels: entry .* is inf"),
    "complex": (([1.0 + 1j], None), "^eigenvalues: .*needs real numbers"),
    "none": (([], None), "^eigenvalues: got 0 of them, needs at least one"),
    "all-dropped": (([1.0], [0]), "^eigenvalues: got 0 of them, needs at least one"),
    "matrix": (([[1.0]], None), r"^levels: got shape \(1, 1\)"),
    "lengths": (([1.0, 2.0], [1]), r"^levels: got shape \(2,\) with .* of shape \(1,\)"),
    "negative": (([1.0, 2.0], [1, -1]), "^multiplicities: got -1, needs"),
    "fraction": (([1.0, 2.0], [1, 1.5]), r"^multiplicities: got \[1.0, 1.5\], needs whole numbers"),
    "text": (("ab", None), "^eigenvalues: got str"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_not_a_spectrum(kind):
    given, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        Spectrum.of(*given)


def test_levels_given_directly_must_ascend():
    with pytest.raises(ValueError, match="^levels: not in ascending order; Spectrum.of takes any"):
        Spectrum(levels=torch.tensor([2.0, 1.0]), multiplicities=torch.tensor([1, 1]))
