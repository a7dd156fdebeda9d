"""Comparison of the cushions of two nets, layer by layer, with intervals and effect sizes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resid_theory._check import as_generator, check_int, check_within
from resid_theory.runtime.result import Result
from resid_theory.stability.sample_statistics import Summaries

_AT_ONCE = 1 << 22  # numbers held in one step of the bootstrap


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison(Result):
    """Differences between the cushions of two sides, by layer.

    Attributes:
        layers: Names of the layers that are compared.
        unit: ``"sample"`` or ``"seed"``: the unit resampled in the bootstrap. Samples support
            statements about these two nets only, seeds about two ways of training.
        units: Number of units of a and of b that have a value, (layers, 2), int64.
        medians: Medians of a and of b, (layers, 2), float64; over seeds, medians of the nets' own
            medians.
        intervals: Ends of the bootstrap interval of the difference of medians, (layers, 2).
        confidence: Confidence of the intervals, in (0, 1).
        cliffs_delta: Pr(a > b) - Pr(a < b) for one unit of each, (layers,), in [-1, 1].
        p_values: P-values of the two-sided Mann-Whitney test, (layers,).
        not_compared: Reasons, by name, of the layers that are not.
    """

    layers: tuple[str, ...]
    unit: str
    units: Tensor
    medians: Tensor
    intervals: Tensor
    confidence: float
    cliffs_delta: Tensor
    p_values: Tensor
    not_compared: Mapping[str, str]

    @property
    def difference(self) -> Tensor:
        """Median of a less median of b, (layers,)."""
        return self.medians[:, 0] - self.medians[:, 1]

    @property
    def adjusted_p_values(self) -> Tensor:
        """P-values adjusted for the number of layers by Holm's method, (layers,)."""
        return holm(self.p_values)

    @property
    def layers_where_a_is_larger(self) -> int:
        """Layers in which the median of a is above that of b."""
        return int((self.difference > 0).sum())

    headline = (
        "a - b over {0.unit}s, intervals at confidence {0.confidence:.4g}; a is larger in "
        "{0.layers_where_a_is_larger} of {0.units.shape[0]} layers"
    )
    tabulated = {
        "layer": "layers",
        "units_a": lambda found: found.units[:, 0],
        "units_b": lambda found: found.units[:, 1],
        "median_a": lambda found: found.medians[:, 0],
        "median_b": lambda found: found.medians[:, 1],
        "difference": "difference",
        "difference_low": lambda found: found.intervals[:, 0],
        "difference_high": lambda found: found.intervals[:, 1],
        "cliffs_delta": "cliffs_delta",
        "p": "p_values",
        "p_holm": "adjusted_p_values",
    }


def compare_cushions(
    a: Summaries | Sequence[Summaries],
    b: Summaries | Sequence[Summaries],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    generator: torch.Generator | int = 0,
) -> Comparison:
    """Compare the cushions of two nets, or of two groups of nets from several seeds.

    With one net on each side, its samples are the units. With a list on each side, the nets are the
    units, each represented by its median over the samples, because the samples of one net do not
    tell how another training would have ended.

    Args:
        a: Result of :func:`layer_cushions` or :func:`interlayer_cushions`, or a list of results.
        b: The same kind, measured with the same norm and weight. Layers are paired by names, which
            ``dataclasses.replace(a, layers=b.layers)`` gives those of another net.
        confidence: Confidence of the bootstrap intervals (percentile method, both sides
            resampled), in (0, 1). They are infinite where a side has too few units: the range of n
            misses their median in a share 2^(1-n), which may be twice the error that is allowed; at
            95 % intervals need five units.
        resamples: Number of bootstrap resamples.
        generator: Source of the resamples, or a seed.

    Returns:
        The comparison. Samples without a value are left out, as are nets none of whose samples has
        one; a layer with fewer than two units on a side is in ``not_compared``.

    Raises:
        ValueError: If the two sides were measured differently or no layer can be compared, or a
            list has fewer than two nets.

    Source:
        Cliff, Psychological Bulletin 114, 494 (1993); Mann & Whitney, Ann. Math. Statist. 18, 50
        (1947); Holm, Scand. J. Statist. 6, 65 (1979); Efron & Tibshirani, "An Introduction to the
        Bootstrap", ch. 13.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> a = rt.layer_cushions(net, torch.eye(4))
        >>> rt.compare_cushions(a, a).cliffs_delta.tolist()
        [0.0]
    """
    confidence = check_within("confidence", confidence, 0, 1, "()")
    check_int("resamples", resamples, minimum=2)
    sides = [_units("a", a), _units("b", b)]
    unit = "sample" if isinstance(a, Summaries) else "seed"
    if isinstance(a, Summaries) != isinstance(b, Summaries):
        raise ValueError("b: a and b must both be one net's cushions, or both lists of them")
    nets: list[Any] = [a, b] if isinstance(a, Summaries) else [*a, *b]  # type: ignore[misc]
    for key in ("norm", "weight", "include_bias", "kappa", "batchnorm"):
        kinds = sorted({str(getattr(net, key, None)) for net in nets})
        if len(kinds) > 1:
            raise ValueError(f"b: measured with {key} {' and '.join(kinds)}; needs one {key}")
    reasons = {name: _why_not(name, sides, unit) for name in dict.fromkeys([*sides[0], *sides[1]])}
    odd = {name: reason for name, reason in reasons.items() if reason}
    names = [name for name in sides[0] if name not in odd]
    if not names:
        raise ValueError(
            f"b: no layer can be compared with one of a: {odd}; layers are paired by names, as "
            "dataclasses.replace(a, layers=b.layers) gives them"
        )
    source = as_generator(generator)
    seed = int(torch.randint(2**31, (), generator=source, device=source.device))
    rng = np.random.default_rng(seed)
    rows = [_compared(sides[0][name], sides[1][name], confidence, resamples, rng) for name in names]
    medians, intervals, deltas, p_values = zip(*rows, strict=True)
    return Comparison(
        layers=tuple(names),
        unit=unit,
        units=torch.tensor([[len(side[name]) for side in sides] for name in names]),
        medians=torch.tensor(medians, dtype=torch.float64),
        intervals=torch.tensor(intervals, dtype=torch.float64),
        confidence=confidence,
        cliffs_delta=torch.tensor(deltas, dtype=torch.float64),
        p_values=torch.tensor(p_values, dtype=torch.float64),
        not_compared=odd,
    )


def holm(p_values: Tensor) -> Tensor:
    """P-values adjusted by Holm's method, in the same order; reject those below the level."""
    order = p_values.argsort()
    factors = torch.arange(len(p_values), 0, -1)
    return (p_values[order] * factors).cummax(0).values.clamp(max=1)[order.argsort()]


def _units(argument: str, given: Any) -> dict[str, Any]:
    """Arrays by layer: a net's samples, or medians of nets; None for a layer that some lack."""
    if isinstance(given, Summaries):
        rows = zip(given.rows, given.values, strict=True)
        return {name: row[~row.isnan()].numpy() for name, row in rows}
    nets = list(given) if isinstance(given, (list, tuple)) else []
    if len(nets) < 2 or not all(isinstance(net, Summaries) for net in nets):
        raise ValueError(
            f"{argument}: got {type(given).__name__} of {len(nets)}, needs the cushions of one "
            "net, or a list of the cushions of two nets or more"
        )
    found: dict[str, list[float]] = {}
    for net in nets:
        for name, median in zip(net.rows, net.median.tolist(), strict=True):
            found.setdefault(name, []).append(median)
    medians = {name: np.array(row) for name, row in found.items()}
    return {
        name: row[~np.isnan(row)] if len(row) == len(nets) else None
        for name, row in medians.items()
    }


def _why_not(name: str, sides: Sequence[Mapping[str, Any]], unit: str) -> str | None:
    """Reason why a layer cannot be compared, if there is one."""
    for side, other, units in zip("ab", "ba", sides, strict=True):
        if name not in units:
            return f"only in {other}"
        if units[name] is None:
            return f"not in every net of {side}"
        if len(units[name]) < 2:
            return f"has a value in {len(units[name])} {unit}s of {side}, needs two"
    return None


def _compared(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], confidence: float, resamples: int,
    rng: np.random.Generator,
) -> tuple[tuple[float, float], tuple[float, float], float, float]:  # fmt: skip
    """Medians, the interval of their difference, Cliff's delta, p-value."""
    from scipy import stats  # half a second of import

    ends = -math.inf, math.inf
    if 2.0 ** (1 - min(len(x), len(y))) <= 2 * (1 - confidence):
        ends = stats.bootstrap(
            (x, y),
            lambda a, b, axis: np.median(a, axis) - np.median(b, axis),
            n_resamples=resamples,
            batch=max(1, _AT_ONCE // max(len(x), len(y))),
            confidence_level=confidence,
            method="percentile",
            random_state=rng,
        ).confidence_interval
    test = stats.mannwhitneyu(x, y)
    delta = 2 * test.statistic / (len(x) * len(y)) - 1
    medians = float(np.median(x)), float(np.median(y))
    return medians, (float(ends[0]), float(ends[1])), float(delta), float(test.pvalue)
