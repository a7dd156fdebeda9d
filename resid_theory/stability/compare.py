"""Comparison of the cushions of two nets, layer by layer, with intervals and effect sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from resid_theory._check import as_generator, check_int
from resid_theory.stability.sample_statistics import Summaries

if TYPE_CHECKING:
    import pandas

__all__ = ["Comparison", "compare_cushions", "holm"]

_AT_ONCE = 1 << 22  # numbers held in one step of the bootstrap


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Differences between the cushions of two sides, by layer.

    Attributes:
        layers: Names of the layers that both sides have.
        unit: ``"sample"`` or ``"seed"``: the unit resampled in the bootstrap. Samples support
            statements about these two nets only, seeds about two ways of training.
        units: Number of units of a and of b.
        medians: Medians of a and of b, (layers, 2), float64; over seeds, medians of the nets' own
            medians.
        intervals: Ends of the bootstrap interval of the difference of medians, (layers, 2).
        confidence: Confidence of the intervals, in (0, 1).
        cliffs_delta: Pr(a > b) - Pr(a < b) for one unit of each, (layers,), in [-1, 1].
        p_values: P-values of the two-sided Mann-Whitney test, (layers,).
        only_in_a: Layers that b does not have.
        only_in_b: Layers that a does not have.
    """

    layers: tuple[str, ...]
    unit: str
    units: tuple[int, int]
    medians: Tensor
    intervals: Tensor
    confidence: float
    cliffs_delta: Tensor
    p_values: Tensor
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]

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

    def frame(self) -> "pandas.DataFrame":
        """The comparison as a table.

        Returns:
            One row for each layer: medians, their difference with its interval, Cliff's delta,
            p-value and adjusted p-value.
        """
        import pandas

        columns = {
            "median_a": self.medians[:, 0].tolist(),
            "median_b": self.medians[:, 1].tolist(),
            "difference": self.difference.tolist(),
            "low": self.intervals[:, 0].tolist(),
            "high": self.intervals[:, 1].tolist(),
            "cliffs_delta": self.cliffs_delta.tolist(),
            "p": self.p_values.tolist(),
            "p_holm": self.adjusted_p_values.tolist(),
        }
        return pandas.DataFrame(columns, index=pandas.Index(self.layers, name="layer"))

    def __str__(self) -> str:
        """The table, headed by the number of layers in which a is larger."""
        kind = f"{self.unit}s" if max(self.units) > 1 else self.unit
        lines = [
            f"a - b over {self.units[0]} and {self.units[1]} {kind}, "
            f"{100 * self.confidence:g} % intervals; a is larger in "
            f"{self.layers_where_a_is_larger} of {len(self.layers)} layers",
            self.frame().to_string(float_format=lambda value: f"{value:.4g}"),
        ]
        for side, names in (("a", self.only_in_a), ("b", self.only_in_b)):
            if names:
                lines.append(f"only in {side}: {', '.join(names)}")
        return "\n".join(lines)


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
        b: The same kind, measured with the same norm and weight.
        confidence: Confidence of the bootstrap intervals (percentile method, both sides
            resampled), in (0, 1).
        resamples: Number of bootstrap resamples.
        generator: Source of the resamples, or a seed.

    Returns:
        The comparison; samples without a value are left out.

    Raises:
        ValueError: If the two sides were measured differently or have no layer in common, or a list
            has fewer than two nets.

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
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence}, needs a number in (0, 1)")
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
    names = [name for name in sides[0] if name in sides[1]]
    if not names:
        raise ValueError(f"b: has layers {list(sides[1])}, none of which a has: {list(sides[0])}")
    seed = int(torch.randint(2**31, (), generator=as_generator(generator)))
    rng = np.random.default_rng(seed)
    rows = [_compared(sides[0][name], sides[1][name], confidence, resamples, rng) for name in names]
    medians, intervals, deltas, p_values = zip(*rows, strict=True)
    first = names[0]
    return Comparison(
        layers=tuple(names),
        unit=unit,
        units=(len(sides[0][first]), len(sides[1][first])),
        medians=torch.tensor(medians, dtype=torch.float64),
        intervals=torch.tensor(intervals, dtype=torch.float64),
        confidence=confidence,
        cliffs_delta=torch.tensor(deltas, dtype=torch.float64),
        p_values=torch.tensor(p_values, dtype=torch.float64),
        only_in_a=tuple(name for name in sides[0] if name not in sides[1]),
        only_in_b=tuple(name for name in sides[1] if name not in sides[0]),
    )


def holm(p_values: Tensor) -> Tensor:
    """P-values adjusted by Holm's method, in the same order; reject those below the level."""
    order = p_values.argsort()
    factors = torch.arange(len(p_values), 0, -1, device=p_values.device)
    stepped = (p_values[order] * factors).cummax(0).values.clamp(max=1)
    return torch.empty_like(stepped).scatter_(0, order, stepped)


def _units(argument: str, given: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Numbers to compare, by layer: a net's samples, or the medians of several nets."""
    if isinstance(given, Summaries):
        known = {
            name: row[~row.isnan()].numpy()
            for name, row in zip(given.rows, given.values, strict=True)
        }
        return {name: row for name, row in known.items() if len(row)}
    nets = list(given) if isinstance(given, (list, tuple)) else []
    if len(nets) < 2 or not all(isinstance(net, Summaries) for net in nets):
        raise ValueError(
            f"{argument}: got {type(given).__name__} of {len(nets)}, needs the cushions of one "
            "net, or a list of the cushions of two nets or more"
        )
    names = [name for name in nets[0].rows if all(name in net.rows for net in nets)]
    medians = {
        name: np.array([float(net.median[net.rows.index(name)]) for net in nets]) for name in names
    }
    return {name: values[~np.isnan(values)] for name, values in medians.items()}


def _compared(
    x: np.ndarray[Any, Any],
    y: np.ndarray[Any, Any],
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
) -> tuple[tuple[float, float], tuple[float, float], float, float]:
    """Medians, the interval of their difference, Cliff's delta, p-value."""
    bootstrap = stats.bootstrap(
        (x, y),
        lambda a, b, axis=-1: np.median(a, axis) - np.median(b, axis),
        n_resamples=resamples,
        batch=max(1, _AT_ONCE // max(len(x), len(y))),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        random_state=rng,
    ).confidence_interval
    test = stats.mannwhitneyu(x, y, alternative="two-sided")
    delta = 2 * test.statistic / (len(x) * len(y)) - 1
    medians = float(np.median(x)), float(np.median(y))
    return medians, (float(bootstrap.low), float(bootstrap.high)), float(delta), float(test.pvalue)
