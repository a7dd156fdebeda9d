"""Criteria of claims: exact ones, and tests of samples over seeds with their power.

A test is decided in both directions: its criterion *holds* if the hypothesis that it is just not
true is rejected, *fails* if the hypothesis that it is just true is rejected, and is *undecided*
otherwise. The tests of one claim are a family, corrected by Holm's method: in each direction, the
probability of one wrong decision or more is at most 5 %. An interval ends at the two one-sided
95 % bounds, so that a test alone in its family holds exactly where its interval does.

Sources: Holm 1979; Schuirmann's two one-sided tests of equivalence; those of ``evidence``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from experiments.evidence import (
    ALPHA,
    LEVEL,
    Test,
    at_least,
    mean_interval,
    median_interval,
    short,
    t_tail,
)


@dataclass(frozen=True)
class Criterion:
    """One criterion of a claim, with the expected and the measured value.

    Attributes:
        criterion: The compared quantity, in words or a formula.
        expected: The threshold and its origin; a number is converted to text.
        measured: The measured number, with spread and count where there are several; likewise.
        holds: True, False, or None if the sample decides neither.
        test: The evidence; None for a criterion that is exact.
    """

    criterion: str
    expected: str
    measured: str
    holds: bool | None
    test: Test | None = None

    def __post_init__(self) -> None:
        # Text, because a criterion is compared with the stored one and JSON has no infinity.
        for name in ("expected", "measured"):
            object.__setattr__(self, name, _text(getattr(self, name)))
        object.__setattr__(self, "holds", None if self.holds is None else bool(self.holds))
        if isinstance(self.test, dict):  # as read from JSON
            object.__setattr__(self, "test", Test(**self.test))

    @property
    def outcome(self) -> str:
        """``"holds"``, ``"fails"`` or ``"undecided"``."""
        return {True: "holds", False: "fails", None: "undecided"}[self.holds]


def _text(value: object) -> str:
    return f"{float(value):.6g}" if isinstance(value, (float, np.floating)) else str(value)


# Tests -------------------------------------------------------------------------------------------


def above(
    criterion: str,
    sample: ArrayLike,
    threshold: float = 0.0,
    *,
    source: str,
    of: str = "mean",
    shown: str = "",
) -> Criterion:
    """Test that the mean (Student's t) or median (sign test) of a sample exceeds a threshold.

    Args:
        criterion: The compared quantity with its unit.
        sample: One number for each seed, (n,); in a comparison, the difference of the nets of one
            seed. Student's t takes the numbers as about normal.
        threshold: What the mean or median must exceed.
        source: Where the threshold comes from: the paper's sentence, number or figure.
        of: ``"mean"`` or ``"median"``.
        shown: Text that follows the measured value.

    Raises ValueError for an empty sample and for values that are not finite.
    """
    return _one_sided(criterion, sample, threshold, 1, source, of, shown)


def below(
    criterion: str,
    sample: ArrayLike,
    threshold: float = 0.0,
    *,
    source: str,
    of: str = "mean",
    shown: str = "",
) -> Criterion:
    """Test that the mean or median lies below a threshold; see ``above``."""
    return _one_sided(criterion, sample, threshold, -1, source, of, shown)


def near(
    criterion: str,
    sample: ArrayLike,
    target: float = 0.0,
    *,
    margin: float,
    source: str,
    shown: str = "",
) -> Criterion:
    """Test that the mean lies within a margin of a target: equivalence, by two one-sided tests.

    It fails if the mean is shown to lie outside. For the arguments see ``above``.
    """
    if not margin > 0:
        raise ValueError(f"margin: got {margin}, needs a positive number")
    values = _values(sample)
    away = values - target
    inside = max(t_tail(away + margin), t_tail(margin - away))
    # Twice, because a narrow margin may be left on either side.
    outside = min(1.0, 2 * min(t_tail(away - margin), t_tail(-margin - away)))
    expected = f"mean within {margin:g} of {target:g}"
    ends = mean_interval(values)
    test = _test("t", "within", values, values.mean(), ends, target, inside, outside, margin)
    return _criterion(criterion, f"{expected} ({source})", test, shown)


def rate(
    criterion: str,
    count: int,
    n: int,
    *,
    least: float | None = None,
    most: float | None = None,
    source: str,
    shown: str = "",
) -> Criterion:
    """Test that a rate exceeds ``least``, or is below ``most``, by ``count`` of ``n`` trials."""
    if (least is None) == (most is None):
        raise ValueError(f"least, most: got {least} and {most}, needs one of the two")
    if not 0 <= count <= n or n < 1:
        raise ValueError(f"count: got {count} of {n}, needs 0 to n, of one trial or more")
    up = least is not None
    threshold = float(least if least is not None else most or 0)
    if not (0 <= threshold < 1 if up else 0 < threshold <= 1):
        raise ValueError(f"{'least' if up else 'most'}: got {threshold}, needs a rate to be beaten")
    more, fewer = at_least(count, n, threshold), at_least(n - count, n, 1 - threshold)
    p_holds, p_fails = (more, fewer) if up else (fewer, more)
    ends = stats.binomtest(count, n).proportion_ci(LEVEL)
    test = _test(
        "rate",
        "above" if up else "below",
        np.arange(n) < count,
        count / n,
        (ends.low, ends.high),
        threshold,
        p_holds,
        p_fails,
    )
    return _criterion(criterion, f"rate {'>' if up else '<'} {threshold:g} ({source})", test, shown)


def all_above(
    criterion: str,
    means: ArrayLike,
    errors: ArrayLike,
    n: int,
    threshold: float = 0.0,
    *,
    source: str,
    shown: str = "",
) -> Criterion:
    """Test that every one of some means exceeds a threshold.

    It holds if each is shown to, by a t test of its own, and fails if one is shown not to, among as
    many tests (Bonferroni). The estimate is the mean with the least evidence.

    Args:
        criterion: The compared quantity with its unit.
        means: Means of n draws each.
        errors: Their standard errors; 0 for a mean that is exact.
        n: Number of draws behind each.
        threshold: What all means must exceed.
        source: Where the threshold comes from.
        shown: Text that follows the measured value.
    """
    values, error = _values(means), _values(errors)
    away = values - threshold
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(away == 0, 0.0, away / error)
    worst = int(score.argmin())
    half = float(stats.t.isf(ALPHA, n - 1) * error[worst])
    test = Test(
        kind="t",
        side="above",
        n=n,
        estimate=short(values[worst]),
        spread=short(error[worst] * math.sqrt(n)),
        low=short(values[worst] - half),
        high=short(values[worst] + half),
        target=float(threshold),
        margin=0.0,
        p_holds=short(stats.t.sf(score[worst], n - 1)),
        p_fails=short(min(1.0, len(values) * stats.t.cdf(score[worst], n - 1))),
    )
    told = f"least of {len(values)}" + (f"; {shown}" if shown else "")
    return _criterion(criterion, f"every mean > {threshold:g} ({source})", test, told)


def _one_sided(
    criterion: str,
    sample: ArrayLike,
    threshold: float,
    sign: int,
    source: str,
    of: str,
    shown: str,
) -> Criterion:
    values = _values(sample)
    away = sign * (values - threshold)
    if of == "mean":
        kind, estimate, ends = "t", values.mean(), mean_interval(values)
        p_holds, p_fails = t_tail(away), t_tail(-away)
    elif of == "median":
        kind, estimate, ends = "sign", np.median(values), median_interval(values)
        # A tie counts against either side: with many, the median is the threshold itself.
        on_side = [int((away > 0).sum()), int((away < 0).sum())]
        p_holds, p_fails = (at_least(count, len(values), 0.5) for count in on_side)
    else:
        raise ValueError(f"of: got {of!r}, needs 'mean' or 'median'")
    expected = f"{of} {'>' if sign > 0 else '<'} {threshold:g} ({source})"
    side = "above" if sign > 0 else "below"
    test = _test(kind, side, values, estimate, ends, threshold, p_holds, p_fails)
    if kind == "sign":
        test = replace(test, spread=short(max(on_side) / len(values)))
    return _criterion(criterion, expected, test, shown)


def _values(sample: ArrayLike) -> np.ndarray:
    values = np.asarray(sample, dtype=float).ravel()
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"sample: got {values}, needs one finite number or more")
    return values


def _test(
    kind: str,
    side: str,
    values: np.ndarray,
    estimate: float,
    ends: tuple[float, float],
    target: float,
    p_holds: float,
    p_fails: float,
    margin: float = 0.0,
) -> Test:
    return Test(
        kind=kind,
        side=side,
        n=len(values),
        estimate=short(estimate),
        spread=short(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        low=short(ends[0]) if math.isfinite(ends[0]) else None,
        high=short(ends[1]) if math.isfinite(ends[1]) else None,
        target=float(target),
        margin=float(margin),
        p_holds=short(p_holds),
        p_fails=short(p_fails),
    )


def _criterion(criterion: str, expected: str, test: Test, shown: str) -> Criterion:
    ends = [f"{end:.4g}" if end is not None else "unbounded" for end in (test.low, test.high)]
    bounded = f"{100 * LEVEL:.0f} % interval {ends[0]} to {ends[1]}"
    interval = "no interval" if test.low is test.high is None else bounded
    measured = f"{test.estimate:.4g}, {interval}, n = {test.n}"
    return Criterion(criterion, expected, f"{measured}; {shown}" if shown else measured, None, test)


# A family ----------------------------------------------------------------------------------------


def decided(criteria: Sequence[Criterion]) -> tuple[Criterion, ...]:
    """Decide the tests among the criteria of one claim, with power; others stay as they are."""
    tests = [each.test for each in criteria if each.test is not None]
    for_it = iter(_rejected([test.p_holds for test in tests]))
    against = iter(_rejected([test.p_fails for test in tests]))
    found = []
    for each in criteria:
        if each.test is not None:
            holds = {(True, False): True, (False, True): False}.get((next(for_it), next(against)))
            strictest = ALPHA / len(tests)  # that Holm's method may ask for
            test = each.test.with_power(strictest, decided=holds is not None)
            each = replace(each, holds=holds, test=test)
        found.append(each)
    return tuple(found)


def _rejected(p: Sequence[float]) -> list[bool]:
    """Holm's method: from the smallest p value on, until one exceeds ALPHA over those left."""
    order, rejected = sorted(range(len(p)), key=p.__getitem__), [False] * len(p)
    for done, index in enumerate(order):
        if p[index] > ALPHA / (len(p) - done):
            break
        rejected[index] = True
    return rejected
