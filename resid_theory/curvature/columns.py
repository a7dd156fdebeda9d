"""Hessians of any module, columns at a time on a retained graph of the gradient."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resid_theory.curvature.input_checks import trainable
from resid_theory.curvature.matvec_graphs import HessianGraph, MatvecGraph, recorded
from resid_theory.losses import Loss, loss_function

__all__ = ["Columns", "column_hessian", "column_seconds"]

_WORKSPACE = 1 << 28  # bytes of activations that a group of columns may hold
_MOST_COLUMNS = 64  # differentiated together; more gains nothing once the processor is busy

Batches = list[tuple[Tensor, Tensor]]


def column_seconds(net: nn.Module, loss: str | Loss, parts: Batches) -> float:
    """Time of all columns, from one group on the first batch."""
    x, y = parts[0]
    start = time.perf_counter()
    columns = Columns.of(net, loss, x, y)
    ready = time.perf_counter()
    columns.rows(0)
    once, group = ready - start, time.perf_counter() - ready
    groups = -(-columns.size // columns.step)
    samples = sum(len(x) for x, _ in parts)
    return (once + group * groups) * samples / len(x)


def column_hessian(net: nn.Module, loss: str | Loss, parts: Batches, progress: bool) -> Tensor:
    """Exact Hessian of the mean loss of any module.

    Args:
        net: The module, in the mode that it is to be measured in.
        loss: As in ``losses.loss_function``.
        parts: Batches (x, y); ragged ones are weighted by their size.
        progress: Whether to show a progress bar on standard error.

    Returns:
        (P, P), float64, in the order of ``parameters_to_vector``.

    Raises:
        ValueError: If the second derivatives found are not symmetric, hence wrong.
    """
    size = sum(p.numel() for p in trainable(net))
    device = trainable(net)[0].device
    total = torch.zeros(size, size, dtype=torch.float64, device=device)
    samples = sum(len(x) for x, _ in parts)
    with tqdm(total=size * len(parts), disable=not progress, desc="Hessian", unit="column") as bar:
        for x, y in parts:
            columns = Columns.of(net, loss, x, y)
            for start in range(0, size, columns.step):
                rows = columns.rows(start)
                total[start : start + len(rows)] += (len(x) / samples) * rows
                bar.update(len(rows))
    _check_symmetric(total, torch.finfo(trainable(net)[0].dtype).eps)
    return 0.5 * (total + total.mT)


def _check_symmetric(total: Tensor, eps: float) -> None:
    low, high = torch.aminmax(total)
    gap = (total - total.mT).max().item()
    # Round-off stays far below the fourth root of the precision, a wrong derivative far above.
    if gap > eps**0.25 * max(-low.item(), high.item()):
        raise ValueError(
            f"net: its second derivatives are not symmetric (by {gap:.2g}), so they are those of "
            "no function; the usual causes are a gradient written by hand and an operation that "
            "torch differentiates only once right (torch.nn.utils weight_norm is one)"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns:
    """The gradient of one batch's loss with its graph, to draw columns from in groups."""

    graph: MatvecGraph
    size: int
    step: int

    @classmethod
    def of(cls, net: nn.Module, loss: str | Loss, x: Tensor, y: Tensor) -> "Columns":
        """Differentiate once, and choose the group by what the graph holds in memory."""
        parameters = trainable(net)
        function = loss_function(loss)
        graph = recorded(lambda: HessianGraph(function(net(x.clone()), y), parameters), weigh=True)
        step = max(1, min(_MOST_COLUMNS, _WORKSPACE // max(1, graph.saved)))
        return cls(graph=graph, size=sum(p.numel() for p in parameters), step=step)

    def rows(self, start: int) -> Tensor:
        """Rows of the Hessian from ``start`` on, at most ``step``, float64."""
        count = min(self.step, self.size - start)
        example = self.graph.parameters[0]
        units = torch.zeros(count, self.size, dtype=example.dtype, device=example.device)
        units[torch.arange(count), start + torch.arange(count)] = 1.0
        every = range(len(self.graph.parameters))
        found = self.graph.product(units, rows=every, columns=every, step=self.step)
        return found.to(torch.float64)
