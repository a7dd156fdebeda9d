"""Order statistics of per-sample measurements."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import check_within
from resid_theory.runtime.result import Columns, Result


class Summaries(Result, ABC):
    """Rows of numbers, one for each sample, and their statistics.

    The smallest value falls as samples are added, so the number of samples stands beside every
    statistic. A sample without a value (nan) is left out and counted.
    """

    @property
    @abstractmethod
    def rows(self) -> tuple[str, ...]:
        """Names of the rows."""

    @property
    @abstractmethod
    def values(self) -> Tensor:
        """(rows, samples), float64, on the CPU; nan where a sample has no value."""

    @property
    def samples(self) -> int:
        """Number of samples, |S|."""
        return self.values.shape[1]

    @property
    def undefined(self) -> Tensor:
        """Number of samples without a value, (rows,), int64."""
        return self.values.isnan().sum(1)

    @property
    def minimum(self) -> Tensor:
        """Smallest value over the samples, (rows,); nan where no sample has one."""
        return self.quantile(0.0)

    @property
    def median(self) -> Tensor:
        """Median over the samples, (rows,)."""
        return self.quantile(0.5)

    def quantile(self, level: float) -> Tensor:
        """A quantile over the samples, interpolated between order statistics, (rows,)."""
        level = check_within("level", level, 0, 1)
        found = torch.full((len(self.rows),), torch.nan, dtype=torch.float64)
        for number, row in enumerate(self.values):
            known = row[~row.isnan()].sort().values
            if len(known) == 0:
                continue
            position = level * (len(known) - 1)
            low = int(position)
            found[number] = known[low]
            if position > low and known[low] != known[low + 1]:  # inf - inf is no number
                found[number] += (position - low) * (known[low + 1] - known[low])
        return found

    def quantile_interval(self, level: float, confidence: float = 0.95) -> Tensor:
        """Distribution-free confidence interval of a quantile, between two order statistics.

        Args:
            level: In (0, 1).
            confidence: Probability of covering the quantile, at least; in (0, 1).

        Returns:
            (rows, 2); 0 or inf where too few samples lie on that side.

        Raises:
            ValueError: If a probability is outside (0, 1).

        Source:
            Conover, "Practical Nonparametric Statistics", section 3.2, as in
            ``scipy.stats.quantile_test``.
        """
        from scipy import stats  # half a second of import

        for name, given in (("level", level), ("confidence", confidence)):
            check_within(name, given, 0, 1, "()")
        ends = torch.full((len(self.rows), 2), torch.nan, dtype=torch.float64)
        for row, end in zip(self.values, ends, strict=True):
            known = row[~row.isnan()]
            if len(known):
                test = stats.quantile_test(known.numpy(), p=level)
                interval = test.confidence_interval(confidence)
                end[0] = 0.0 if interval.low != interval.low else interval.low
                end[1] = torch.inf if interval.high != interval.high else interval.high
        return ends

    def table(self) -> Columns:
        """One row for each layer: statistics over the samples, with the ends of 95 % intervals."""
        columns: dict[str, Sequence[Any] | Tensor] = {
            "layer": self.rows,
            "samples": [self.samples] * len(self.rows),
            "undefined": self.undefined,
            "minimum": self.minimum,
        }
        for level, name in ((0.01, "q01"), (0.05, "q05"), (0.5, "median")):
            columns[name] = self.quantile(level)
            columns[f"{name}_low"], columns[f"{name}_high"] = self.quantile_interval(level).T
        return columns | {"maximum": self.quantile(1.0)}

    def shown(self) -> Columns:
        """The statistics, of which the title has the number of samples."""
        columns = super().shown()
        hidden = ["samples"] if bool(self.undefined.any()) else ["samples", "undefined"]
        return {name: column for name, column in columns.items() if name not in hidden}
