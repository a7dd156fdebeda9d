"""Criteria of samples: p values against scipy, errors and power against simulation, both ways."""

from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from experiments.criteria import Criterion, above, all_above, below, decided, near, rate

SAMPLE = np.array([0.3, 1.2, -0.4, 0.9, 0.8, 1.1, 0.2])


def decide(*criteria):
    found = decided(criteria)
    return found[0] if len(found) == 1 else found


def four_errors(probability, draws):
    return 4 * (probability * (1 - probability) / draws) ** 0.5


# p values and intervals --------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [-0.2, 0.55, 1.5])
def test_means_are_tested_by_students_t(threshold):
    up, down = (make("c", SAMPLE, threshold, source="s").test for make in (above, below))
    greater = stats.ttest_1samp(SAMPLE, threshold, alternative="greater")
    less = stats.ttest_1samp(SAMPLE, threshold, alternative="less")
    assert up.p_holds == down.p_fails == pytest.approx(greater.pvalue, rel=1e-3)
    assert up.p_fails == down.p_holds == pytest.approx(less.pvalue, rel=1e-3)
    ends = greater.confidence_interval(0.95).low, less.confidence_interval(0.95).high
    assert (up.low, up.high) == pytest.approx(ends, rel=1e-3)
    assert (up.estimate, up.spread) == pytest.approx((SAMPLE.mean(), SAMPLE.std(ddof=1)), rel=1e-3)


def test_medians_are_tested_by_signs_and_a_tie_counts_for_neither():
    found = above("c", [1.0, 2.0, 3.0, 0.0, 0.0, -1.0], of="median", source="s").test
    assert found.p_holds == pytest.approx(stats.binom.sf(2, 6, 0.5), rel=1e-3)
    assert found.p_fails == pytest.approx(stats.binom.sf(0, 6, 0.5), rel=1e-3)
    assert (found.estimate, found.low, found.high) == (0.5, -1.0, 3.0)
    assert decide(above("c", [0.0] * 90 + [1.0] * 10, of="median", source="s")).holds is None


@pytest.mark.parametrize("count", [0, 3, 9, 20])
def test_rates_are_tested_exactly(count):
    up = rate("c", count, 20, least=0.3, source="s").test
    down = rate("c", count, 20, most=0.3, source="s").test
    greater, less = (stats.binomtest(count, 20, 0.3, a).pvalue for a in ("greater", "less"))
    assert up.p_holds == down.p_fails == pytest.approx(greater, rel=1e-3)
    assert up.p_fails == down.p_holds == pytest.approx(less, rel=1e-3)
    ends = stats.binomtest(count, 20).proportion_ci(0.90)
    assert (up.low, up.high) == pytest.approx(tuple(ends), rel=1e-3)


def test_all_of_some_means_are_judged_by_the_least_evident():
    one = all_above("c", SAMPLE.mean(), SAMPLE.std(ddof=1) / 7**0.5, 7, 0.1, source="s").test
    alone = above("c", SAMPLE, 0.1, source="s").test
    assert one.p_holds == alone.p_holds and one.p_fails == alone.p_fails
    assert (one.low, one.high, one.spread) == (alone.low, alone.high, alone.spread)
    for means, holds in (([0.5, 0.3], True), ([0.5, 0.1], None), ([0.5, -0.3], False)):
        assert decide(all_above("c", means, 0.1 * np.ones(2), 20, source="s")).holds is holds
    assert decide(all_above("c", [0.1, 0.5], [0.0, 0.1], 20, source="s")).holds is True  # exact
    assert decide(all_above("c", [0.0, 0.5], [0.0, 0.1], 20, source="s")).holds is None


def test_equivalence_is_the_worse_of_two_tests():
    found = near("c", SAMPLE, 0.5, margin=0.6, source="s").test
    ends = [
        stats.ttest_1samp(SAMPLE, 0.5 - 0.6, alternative="greater").pvalue,
        stats.ttest_1samp(SAMPLE, 0.5 + 0.6, alternative="less").pvalue,
    ]
    assert found.p_holds == pytest.approx(max(ends), rel=1e-3)


# Errors of the first kind ------------------------------------------------------------------------

NULLS = {
    "above": lambda rng: above("c", rng.normal(2, 3, 5), 2.0, source="s"),
    "below": lambda rng: below("c", rng.normal(2, 3, 2), 2.0, source="s"),
    "median": lambda rng: above("c", rng.exponential(1, 8), np.log(2), of="median", source="s"),
    "edge": lambda rng: near("c", rng.normal(1, 0.5, 6), margin=1.0, source="s"),
    "narrow": lambda rng: near("c", rng.normal(0.01, 1, 6), margin=0.01, source="s"),
}


@pytest.mark.parametrize("name", NULLS)
def test_what_is_just_not_true_holds_in_5_percent_and_what_is_just_true_fails_in_5(name):
    rng = np.random.default_rng(0)
    tests = [NULLS[name](rng).test for _ in range(400)]
    for p in ([test.p_holds for test in tests], [test.p_fails for test in tests]):
        assert np.mean(np.array(p) <= 0.05) <= 0.05 + four_errors(0.05, 400)


def test_rates_err_in_5_percent():
    tests = [rate("c", count, 12, least=0.4, source="s").test for count in range(13)]
    for p in ([test.p_holds for test in tests], [test.p_fails for test in tests]):
        assert stats.binom.pmf(np.flatnonzero(np.array(p) <= 0.05), 12, 0.4).sum() <= 0.05


@pytest.mark.parametrize("sample", [[3.0], [3.0] * 2, [3.0] * 4], ids=len)
@pytest.mark.parametrize("of", ["mean", "median"])
def test_few_equal_numbers_decide_nothing(sample, of):
    for criterion in (above("c", sample, source="s", of=of), below("c", sample, source="s", of=of)):
        assert decide(criterion).outcome == "undecided"
    assert decide(near("c", sample, 3.0, margin=1.0, source="s")).outcome == "undecided"
    assert decide(above("c", [3.0] * 5, source="s", of=of)).outcome == "holds"  # .5^5 < 5 %
    assert decide(below("c", [3.0] * 5, source="s", of=of)).outcome == "fails"


def test_families_are_corrected_by_holms_method():
    samples = [above("c", np.array([0, 1, -1, 0.5]) + gap, source="s") for gap in (2, 1.3, 0.6)]
    p = [each.test.p_holds for each in samples]
    assert p[0] < 0.05 / 3 < p[1] < 0.05 / 2 < 0.05 < p[2], p
    assert [each.holds for each in decide(*samples)] == [True, True, None]
    assert [each.holds for each in decide(*samples, samples[1])] == [True] + [None] * 3
    exact = Criterion("exact", 1, 1, True)
    assert [each.holds for each in decide(exact, *samples)] == [True, True, True, None]


# Power -------------------------------------------------------------------------------------------


def power(sample, threshold, alternative, margin=0.0):
    """Share of samples, (draws, n), whose t tests reject; of two tests, with a margin."""
    edges = [("greater", threshold - margin), ("less", threshold + margin)]
    if not margin:
        edges = [(alternative, threshold)]
    p = [stats.ttest_1samp(sample, edge, axis=1, alternative=a).pvalue for a, edge in edges]
    return np.mean(np.max(p, axis=0) <= 0.05)


@pytest.mark.parametrize("n", [3, 9])
def test_the_smallest_effect_that_is_seen_is_seen_with_power_80_percent(n):
    rng, enough = np.random.default_rng(1), pytest.approx(0.8, abs=four_errors(0.8, 10_000))
    given = rng.normal(0, 2, n)
    one = decide(below("c", given, 7.0, source="s")).test
    drawn = rng.normal(0, one.spread, (10_000, n))
    assert power(7.0 - one.seen + drawn, 7.0, "less") == enough
    both = decide(near("c", given, 7.0, margin=1.0, source="s")).test
    assert power(7.0 + drawn, 7.0, "", margin=both.seen) >= 0.8 - four_errors(0.8, 10_000)
    assert power(7.0 + drawn, 7.0, "", margin=0.9 * both.seen) < 0.8
    # Of twenty signs, 15 are needed.
    sign = decide(above("c", [1.0, -1.0] * 10, of="median", source="s")).test
    assert stats.binom.sf(14, 20, 0.5 + sign.seen) == pytest.approx(0.8, abs=1e-3)


DECIDES = {
    "holds": (above, 0.3, {}, "greater"),
    "fails": (below, 0.3, {}, "greater"),
    "inside": (near, 0.1, {"margin": 0.5}, ""),
    "middle": (near, 0.0, {"margin": 0.4}, ""),
    "outside": (near, 0.5, {"margin": 0.2}, "greater"),
}


@pytest.mark.parametrize("name", DECIDES)
def test_the_sample_that_would_decide_decides_with_power_80_percent(name):
    make, mean, options, alternative = DECIDES[name]
    found = decide(make("c", np.array([-1.2, -0.5, 0, 0.5, 1.2]) + mean, source="s", **options))
    assert found.outcome == "undecided"
    rng, test = np.random.default_rng(2), found.test
    for n, enough in ((test.decides, True), (int(0.85 * test.decides), False)):
        drawn = rng.normal(mean, test.spread, (4000, n))
        if name == "outside":
            p = stats.ttest_1samp(drawn, 0.2, axis=1, alternative="greater").pvalue
            reached = np.mean(2 * p <= 0.05)
        else:
            reached = power(drawn, 0.0, alternative, **options)
        assert (reached >= 0.8 - four_errors(0.8, 4000)) == enough, (n, reached)


def test_rates_say_what_they_see_and_what_would_decide():
    test = decide(rate("c", 4, 10, least=0.2, source="s")).test
    for n, rate_then in ((10, 0.2 + test.seen), (test.decides, 0.4)):
        least = stats.binom.isf(0.05, n, 0.2)  # more than so many reject
        assert stats.binom.sf(least, n, rate_then) >= 0.8 - 1e-3
    assert decide(rate("c", 10, 10, most=0.5, source="s")).outcome == "fails"
    assert decide(rate("c", 3, 10, most=0.9, source="s")).outcome == "holds"


def test_no_power_is_none():
    assert decide(above("c", [1.0, -1.0, 2.0], of="median", source="s")).test.seen is None
    assert decide(above("c", [1e-9, -1.0, 1.0], source="s")).test.decides is None


# Words and refusals ------------------------------------------------------------------------------


def test_a_criterion_says_all_and_comes_back_from_json():
    found = decide(near("gap (points)", SAMPLE, 0.5, margin=1, source="Table 1", shown="7 nets"))
    assert found.expected == "mean within 1 of 0.5 (Table 1)"
    assert found.measured == "0.5857, 90 % interval 0.1629 to 1.009, n = 7; 7 nets"
    assert Criterion(**asdict(found)) == found
    assert "no interval, n = 1" in above("c", [1.0], source="s").measured


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: above("c", [], source="s"), "sample: got"),
        (lambda: above("c", [1.0, np.nan], source="s"), "sample: got"),
        (lambda: above("c", [1.0], source="s", of="mode"), "of: got 'mode'"),
        (lambda: near("c", [1.0], margin=0.0, source="s"), "margin: got 0"),
        (lambda: rate("c", 1, 2, source="s"), "least, most"),
        (lambda: rate("c", 1, 2, least=0.1, most=0.9, source="s"), "least, most"),
        (lambda: rate("c", 3, 2, least=0.1, source="s"), "count: got 3"),
        (lambda: rate("c", 2, 2, least=1.0, source="s"), "least: got 1"),
        (lambda: rate("c", 2, 2, most=0.0, source="s"), "most: got 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
