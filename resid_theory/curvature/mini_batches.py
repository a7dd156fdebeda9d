"""Largest eigenvalues of the curvature of mini-batches, beside that of all data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import as_generator, check_int, check_within
from resid_theory.curvature.operator import curvature_operator
from resid_theory.data import Batch, Data
from resid_theory.eigen.estimate import Estimate
from resid_theory.eigen.lanczos import eigenpairs
from resid_theory.losses import Loss, LossLike
from resid_theory.runtime.net_entry import inner_net
from resid_theory.runtime.result import Columns, Result


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchSpectra(Result):
    """Largest eigenvalues of a curvature matrix over mini-batches.

    Attributes:
        matrix: The matrix.
        sizes: Samples of each mini-batch.
        largest: Largest eigenvalue of each, with its bound.
        whole: That of all data.
        products: Products with one vector, each over a mini-batch or over all data.
    """

    matrix: str
    sizes: tuple[int, ...]
    largest: tuple[Estimate, ...]
    whole: Estimate
    products: int

    headline = (
        "Largest eigenvalue of the {0.matrix}: median of {0.count} mini-batches "
        "{0.median:.4g}, 10 % to 90 % of them {0.low:.4g} to {0.high:.4g}; all data {0.whole}"
    )

    @property
    def values(self) -> Tensor:
        """The mini-batches' largest eigenvalues, float64, in order."""
        return torch.tensor([found.value for found in self.largest], dtype=torch.float64)

    def quantile(self, q: float) -> float:
        """A quantile of them, each mini-batch counted once, linear between values.

        Args:
            q: Its share, in [0, 1].

        Returns:
            A number, in units of loss per weight².

        Raises:
            ValueError: If q is out of range.
        """
        return float(self.values.quantile(check_within("q", q, 0, 1)))

    @property
    def count(self) -> int:
        """Number of mini-batches."""
        return len(self.sizes)

    @property
    def median(self) -> float:
        """The quantile 0.5."""
        return self.quantile(0.5)

    @property
    def low(self) -> float:
        """The quantile 0.1."""
        return self.quantile(0.1)

    @property
    def high(self) -> float:
        """The quantile 0.9."""
        return self.quantile(0.9)

    def table(self) -> Columns:
        """A row for each mini-batch, numbers with the ends of their intervals."""
        return {
            "batch": range(1, self.count + 1),
            "samples": self.sizes,
            "largest": self.values,
            "largest_low": [found.low for found in self.largest],
            "largest_high": [found.high for found in self.largest],
        }


def batch_spectra(
    net: nn.Module,
    loss: LossLike,
    data: Any,
    *,
    batch: int | None = None,
    matrix: str = "hessian",
    parameters: Any = None,
    batchnorm: str = "eval",
    tolerance: float = 1e-3,
    generator: torch.Generator | int = 0,
) -> BatchSpectra:
    r"""Measure the largest eigenvalue on every mini-batch, and on all data.

    The largest eigenvalue is convex in the matrix: where the loss is a mean, that of all data is at
    most the mean over mini-batches, weighted as the loss weighs them.

    Args:
        net: Any module, measured in eval mode and left as it was.
        loss: As `curvature_operator` takes it.
        data: As `curvature_operator` takes them.
        batch: Samples of a mini-batch, without replacement, in a random order; the last one has
            what is left. None takes the batches in which the data come.
        matrix: One that `curvature_operator` knows.
        parameters: As of `curvature_operator`.
        batchnorm: As of `curvature_operator`: with ``"batch"`` each mini-batch has its statistics.
        tolerance: As of `eigenpairs`.
        generator: For the order, for the starts of `eigenpairs`, and for a random matrix: a
            generator, or the seed of a new one.

    Returns:
        The eigenvalues, with their quantiles.

    Raises:
        ValueError: If there are fewer than two mini-batches, or net, loss and data do not fit.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> found = rt.curvature.batch_spectra(net, "square", (x, x), batch=1)
        >>> sorted(found.values.round(decimals=4).tolist()), round(found.whole.value, 4)
        ([1.0, 4.0, 9.0], 4.6667)
    """
    source, pairs = as_generator(generator), not Loss.of(loss).takes_batches
    every = Data.of(data, like=inner_net(net), pairs=pairs)
    every.check_rewindable("the measurement of all of them")
    if batch is not None:
        check_int("batch", batch)
        if not pairs:
            raise ValueError(
                "batch: got a size with a loss of (net, batch), whose batches are not split; "
                "leave it out, and pass the batches"
            )

    def parts() -> Iterator[Batch]:
        if batch is None:
            yield from every
            return
        together = every.whole()
        order = torch.randperm(together.size, generator=source, device=source.device).cpu()
        yield from (together.rows(rows) for rows in order.split(batch))

    def largest(some: Any, number: int) -> tuple[Estimate, int, str]:
        operator = curvature_operator(
            net, loss, some, matrix=matrix, parameters=parameters, batchnorm=batchnorm,
            generator=source.initial_seed() + number,
        )  # fmt: skip
        found = eigenpairs(operator, 1, tolerance=tolerance, generator=source)
        return found.largest, found.products, operator.risk.title

    sizes, each = [], []
    for number, part in enumerate(parts(), 1):
        sizes.append(part.size)
        each.append(largest(every.only(part), number))
    if len(sizes) < 2:
        raise ValueError(
            f"batch: got {batch}, which leaves the data in one batch of {sizes[0]} samples; needs "
            "fewer in each, or a loader"
        )
    whole, products, title = largest(every, 0)
    return BatchSpectra(
        matrix=title, sizes=tuple(sizes), whole=whole,
        largest=tuple(found for found, *_ in each), products=products + sum(n for _, n, _ in each),
    )  # fmt: skip
