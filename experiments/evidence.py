"""Evidence of a sample: p values, intervals, and the power of its test.

Sources: Student's t, the sign test and the exact binomial test with the interval of Clopper and
Pearson; power of t by its noncentral distribution.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

ALPHA = 0.05  # error of the first kind of a family, in each direction
LEVEL = 1 - 2 * ALPHA  # of intervals
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
        spread: Standard deviation of the sample; of a sign test, the share of the sample on the
            side of the threshold that has more of it.
        low: Lower end of the two-sided 90 % interval of the estimate; None if there is none.
        high: Upper end; likewise.
        target: What the estimate is compared with.
        margin: How far it may be from the target; 0 unless the side is ``"within"``.
        p_holds: Probability of such evidence for the criterion if it is just not true.
        p_fails: Probability of such evidence against it if it is just true.
        seen: Smallest distance from the threshold that n samples see with power 0.8 after the
            correction; the smallest margin, of an equivalence between equals. None if they see
            none, or if their spread is zero.
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

    def with_power(self, alpha: float, *, decided: bool) -> "Test":
        """State what the test sees at a level and, unless decided, the sample that would decide."""
        seen = _seen(self, alpha)
        return replace(
            self,
            seen=None if seen is None else short(seen),
            decides=None if decided else _decides(self, alpha),
        )


# Distributions -----------------------------------------------------------------------------------


def short(value: float) -> float:
    """Round to four digits, so that another version of a library changes no record."""
    return float(f"{value:.4g}")


def t_tail(away: np.ndarray) -> float:
    """P value of the hypothesis that the mean is not above zero; 1 for a sample of one."""
    n = len(away)
    if n < 2:
        return 1.0
    if np.ptp(away) == 0:  # no spread is measured: what the signs alone say
        return 0.5**n if away[0] > 0 else 1.0
    return float(stats.t.sf(away.mean() / away.std(ddof=1) * math.sqrt(n), n - 1))


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Two one-sided bounds by Student's t; infinite where no spread is measured."""
    n = len(values)
    if n < 2 or np.ptp(values) == 0:
        return -math.inf, math.inf
    half = float(stats.t.isf(ALPHA, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return float(values.mean()) - half, float(values.mean()) + half


def at_least(count: int, n: int, rate: float) -> float:
    """Probability of so many of n trials or more."""
    return float(stats.binom.sf(count - 1, n, rate))


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """Order statistics that hold the median; infinite ends where n is below 5."""
    ordered, n = np.sort(values), len(values)
    cut = int(stats.binom.ppf(ALPHA, n, 0.5))  # P(fewer than `cut` below the median) < 5 %
    return (float(ordered[cut - 1]), float(ordered[n - cut])) if cut else (-math.inf, math.inf)


# Power -------------------------------------------------------------------------------------------


def _seen(test: Test, alpha: float) -> float | None:
    n = test.n
    if test.kind == "t":
        # Between equals both ends of a margin must be seen: each misses half of what may be missed.
        power = POWER if test.side != "within" else (1 + POWER) / 2
        return _bisect(lambda d: _t_power(n, d, alpha) >= power, 1e6, test.spread)
    base = 0.5 if test.kind == "sign" else test.target
    sign = -1 if test.kind == "rate" and test.side == "below" else 1
    most = 1 - base if sign > 0 else base
    return _bisect(lambda d: _rate_power(n, base, base + sign * d, alpha) >= POWER, most)


def _decides(test: Test, alpha: float) -> int | None:
    if test.kind == "t":
        away = abs(test.estimate - test.target)
        if not test.spread:
            return None
        near, far = abs(away - test.margin) / test.spread, (away + test.margin) / test.spread
        if test.side != "within":
            return _fewest(lambda n: _t_power(n, near, alpha) >= POWER)
        if away > test.margin:
            return _fewest(lambda n: _t_power(n, near, alpha / 2) >= POWER)
        return _fewest(lambda n: _t_power(n, near, alpha) + _t_power(n, far, alpha) >= 1 + POWER)
    base, found = (0.5, test.spread) if test.kind == "sign" else (test.target, test.estimate)
    if test.kind == "sign" and found <= base:
        return None
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
        if high == MOST:
            return None
        low, high = high, min(2 * high, MOST)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
