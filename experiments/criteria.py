"""Criteria of claims: exact ones, and tests of samples over seeds with their power.

A test is decided in both directions: its criterion *holds* if the hypothesis that it is just not
true is rejected, *fails* if the hypothesis that it is just true is rejected, and is *undecided*
otherwise. The tests of one claim are a family, corrected by Holm's method.

Sources: Student's t, the sign test and the exact binomial test with the interval of Clopper and
Pearson, Schuirmann's two one-sided tests of equivalence; power of t by its noncentral distribution.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

ALPHA = 0.05  # error of the first kind of a family, in each direction
POWER = 0.8
MOST = 10_000  # no larger sample is named


@dataclass(frozen=True, kw_only=True)
class Test:
    """Evidence of a sample for and against a criterion.

    Attributes:
        kind: ``"t"``, ``"sign"`` or ``"rate"``.
        side: ``"above"``, ``"below"`` or ``"within"``.
        n: Size of the sample: seeds, pairs of nets of one seed, trials.
        estimate: Mean, median or rate.
        spread: Standard deviation of the sample; of a sign test, the share on the wanted side.
        low: Lower end of the two-sided 95 % interval of the estimate; None if there is none.
        high: Upper end; likewise.
        target: What the estimate is compared with.
        margin: How far it may be from the target; 0 unless the side is ``"within"``.
        p_holds: Probability of such evidence for the criterion if it is just not true.
        p_fails: Probability of such evidence against it if it is just true.
        seen: Smallest distance from the threshold that n samples see with power 0.8 after the
            correction; the smallest margin, of an equivalence between equals. None if they see
            none, or if the spread is unknown.
        decides: Size of a sample that would decide with power 0.8 at this estimate and spread;
            None if it is decided, or would take more than 10,000.
    """

    __test__ = False  # not for pytest

    kind: str
    side: str
    n: int
    estimate: float
    spread: float
    low: float | None
    high: float | None
    target: float
    margin: float
    p_holds: float
    p_fails: float
    seen: float | None = None
    decides: int | None = None


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
    inside = max(_t_tail(away + margin), _t_tail(margin - away))
    outside = min(_t_tail(away - margin), _t_tail(-margin - away))
    expected = f"mean within {margin:g} of {target:g}"
    ends = _mean_interval(values)
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
    threshold = least if least is not None else float(most or 0)
    up, down = _binomial_tails(count, n, threshold)
    p_holds, p_fails = (up, down) if least is not None else (down, up)
    expected = f"rate {'>' if least is not None else '<'} {threshold:g} ({source})"
    ends = stats.binomtest(count, n).proportion_ci()
    trials = np.arange(n) < count
    side = "above" if least is not None else "below"
    ends = (ends.low, ends.high)
    test = _test("rate", side, trials, count / n, ends, threshold, p_holds, p_fails)
    return _criterion(criterion, expected, test, shown)


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
        kind, estimate, ends = "t", values.mean(), _mean_interval(values)
        p_holds, p_fails = _t_tail(away), _t_tail(-away)
    elif of == "median":
        kind, estimate, ends = "sign", np.median(values), _median_interval(values)
        p_holds, p_fails = _binomial_tails(int((away > 0).sum()), int((away != 0).sum()), 0.5)
    else:
        raise ValueError(f"of: got {of!r}, needs 'mean' or 'median'")
    expected = f"{of} {'>' if sign > 0 else '<'} {threshold:g} ({source})"
    side = "above" if sign > 0 else "below"
    test = _test(kind, side, values, estimate, ends, threshold, p_holds, p_fails)
    if kind == "sign":
        test = replace(test, spread=_short((away > 0).mean()))
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
        estimate=_short(estimate),
        spread=_short(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        low=_short(ends[0]) if math.isfinite(ends[0]) else None,
        high=_short(ends[1]) if math.isfinite(ends[1]) else None,
        target=float(target),
        margin=float(margin),
        p_holds=_short(p_holds),
        p_fails=_short(p_fails),
    )


def _short(value: float) -> float:
    """Four digits, so that another version of a library changes no record."""
    return float(f"{value:.4g}")


def _criterion(criterion: str, expected: str, test: Test, shown: str) -> Criterion:
    ends = [f"{end:.4g}" if end is not None else "unbounded" for end in (test.low, test.high)]
    measured = f"{test.estimate:.4g}, 95 % interval {ends[0]} to {ends[1]}, n = {test.n}"
    return Criterion(criterion, expected, f"{measured}; {shown}" if shown else measured, None, test)


# Distributions -----------------------------------------------------------------------------------


def _t_tail(away: np.ndarray) -> float:
    """P value of the hypothesis that the mean is not above zero; 1 for a sample of one."""
    n = len(away)
    if n < 2:
        return 1.0
    mean, error = float(away.mean()), float(away.std(ddof=1)) / math.sqrt(n)
    if error == 0.0:  # all seeds equal: nothing is left to chance
        return 0.0 if mean > 0 else 1.0
    return float(stats.t.sf(mean / error, n - 1))


def _mean_interval(values: np.ndarray) -> tuple[float, float]:
    n = len(values)
    if n < 2:
        return -math.inf, math.inf
    half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return float(values.mean()) - half, float(values.mean()) + half


def _binomial_tails(count: int, n: int, p: float) -> tuple[float, float]:
    """Probabilities of at least, and of at most, so many of n trials at rate p."""
    return float(stats.binom.sf(count - 1, n, p)), float(stats.binom.cdf(count, n, p))


def _median_interval(values: np.ndarray) -> tuple[float, float]:
    """Order statistics that hold the median with 95 %; infinite ends where n is below 6."""
    ordered, n = np.sort(values), len(values)
    cut = int(stats.binom.ppf(0.025, n, 0.5))  # P(fewer than `cut` below the median) <= 2.5 %
    return (float(ordered[cut - 1]), float(ordered[n - cut])) if cut else (-math.inf, math.inf)


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
            each = replace(each, holds=holds, test=_with_power(each.test, len(tests), holds))
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


def _with_power(test: Test, family: int, holds: bool | None) -> Test:
    """State what the test could see, at the strictest level of its family."""
    alpha = ALPHA / family
    seen = _seen(test, alpha)
    decides = _decides(test, alpha) if holds is None else None
    return replace(test, seen=None if seen is None else _short(seen), decides=decides)


def _seen(test: Test, alpha: float) -> float | None:
    if test.kind == "t":
        # Between equals, both ends of a margin must be seen: each with half of the other error.
        power = POWER if test.side != "within" else (1 + POWER) / 2
        return _bisect(lambda d: _t_power(test.n, d, alpha) >= power, 1e6, test.spread)
    base = 0.5 if test.kind == "sign" else test.target
    sign = -1 if test.kind == "rate" and test.side == "below" else 1
    most = 1 - base if sign > 0 else base
    return _bisect(lambda d: _rate_power(test.n, base, base + sign * d, alpha) >= POWER, most)


def _decides(test: Test, alpha: float) -> int | None:
    if test.kind == "t":
        away = test.estimate - test.target
        distance = abs(abs(away) - test.margin if test.side == "within" else away)
        if not test.spread:
            return None
        return _fewest(lambda n: _t_power(n, distance / test.spread, alpha) >= POWER)
    base, found = (0.5, test.spread) if test.kind == "sign" else (test.target, test.estimate)
    return _fewest(lambda n: _rate_power(n, base, found, alpha) >= POWER)


def _t_power(n: int, effect: float, alpha: float) -> float:
    """Power of the one-sided t test at an effect in standard deviations."""
    if n < 2:
        return 0.0
    bound = stats.t.isf(alpha, n - 1)
    power = float(stats.nct.sf(bound, n - 1, math.sqrt(n) * effect))
    return power if math.isfinite(power) else 1.0  # overflow at enormous effects


def _rate_power(n: int, base: float, rate: float, alpha: float) -> float:
    """Power of the exact one-sided binomial test of ``base`` where the rate is another."""
    if rate < base:
        base, rate = 1 - base, 1 - rate
    count = int(stats.binom.isf(alpha, n, base)) + 1
    return float(stats.binom.sf(count - 1, n, rate))


def _bisect(enough: Callable[[float], bool], most: float, unit: float = 1.0) -> float | None:
    """Smallest number up to ``most`` that is enough, in a unit; None if none is."""
    if not unit or not enough(most):
        return None
    low, high = 0.0, most
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return unit * high


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """Smallest n up to ``MOST`` that is enough, to the rounding of exact tests."""
    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
