"""Gradient descent of many nets in one stacked computation."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import as_tensor, check_finite, check_int, check_positive
from resid_theory.descent.objective import Objective, objective_of
from resid_theory.descent.path import Descent
from resid_theory.losses import Loss, LossLike
from resid_theory.networks.shortcut import ShortcutNet

_DIVERGED = 1e3  # times the loss at the start, beyond which a row has diverged


def gradient_descent(
    net: ShortcutNet,
    loss: LossLike,
    data: Any,
    *,
    weights: Tensor,
    learning_rate: Any,
    epochs: int,
    record_every: int = 1,
    keep: Iterable[int] = (),
    limit: float | None = None,
) -> Descent:
    r"""Full-batch gradient descent from many starts and at many learning rates at once.

    Linear nets with the square loss need only the moments of the data: a step costs three products
    of small matrices per layer, whatever the number of samples. Other nets run on all samples,
    stacked. A row that diverges is frozen and marked; the other rows are the same as without it.

    Args:
        net: The architecture, without bias and with equal widths; its own weights are not changed.
        loss: ``"square"``, ``"cross_entropy"``, or a callable (output, target) -> mean over
            samples that works under ``torch.vmap``.
        data: x (m, d) and y (m, d): a pair, a ``Regression``, a loader; ``Moments`` suffice for
            linear nets with the square loss.
        weights: Starts, (..., blocks, n, d, d), as
            :func:`~resid_theory.networks.draw_weights` gives them.
            Their leading axes broadcast with those of ``learning_rate`` to the rows. Their dtype
            and device are those of the computation.
        learning_rate: A number or an array; e.g. (rates, 1) against weights of (seeds, blocks, n,
            d, d) makes rates x seeds rows.
        epochs: Number of steps.
        record_every: Epochs between two records; the start and the end are always recorded.
        keep: Epochs whose weights are kept.
        limit: Loss above which a row counts as diverged; by default 1000 times its first loss.

    Returns:
        Loss, gradient norm and weight norms along the descent, and the weights.

    Raises:
        ValueError: If the net has a bias or unequal widths, shapes do not fit or broadcast, a rate
            or a limit is not positive, or an epoch to keep is out of range.

    Source:
        Li et al., arXiv:1611.01186, Appendix B (gradient descent, an epoch is one full-batch step).

    Example:
        >>> data, net = rt.load_whitened("digits"), rt.ShortcutNet(10, 3, 2)
        >>> start = rt.networks.draw_weights(
        ...     "near_zero", (5, 3, 2, 10, 10), generator=torch.Generator().manual_seed(0)
        ... )
        >>> path = gradient_descent(
        ...     net, "square", data, weights=start, learning_rate=[[0.3], [1e3]], epochs=200
        ... )
        >>> path.final_loss.shape, path.diverged.any(1).tolist()  # 2 rates x 5 seeds
        (torch.Size([2, 5]), [False, True])
        >>> bool((path.final_loss[0] < rt.theory.linear_optimum(data) + 0.01).all())
        True
    """
    starts, rates = _rows(net, weights, learning_rate)
    shape = starts.shape[:-4]
    objective = objective_of(net, Loss.of(loss), data, starts)
    count = check_int("epochs", epochs, 0)
    # (..., blocks, n, d, d) as (layers, rows, d, d), a copy
    rows = starts.reshape(-1, net.blocks * net.shortcut_depth, *starts.shape[-2:])
    run = _DescentRun(
        torch.stack(rows.unbind(1)),
        rates.reshape(-1),
        None if limit is None else check_positive("limit", limit),
    )
    records = {*range(0, count, check_int("record_every", record_every)), count}
    kept = sorted({check_int("keep", epoch, 0) for epoch in keep})
    if kept and kept[-1] > count:
        raise ValueError(f"keep: got epoch {kept[-1]}, needs epochs up to {count}")
    run.descend(objective, count, records, set(kept))
    return run.result(shape, (net.blocks, net.shortcut_depth), sorted(records), kept)


def _rows(net: ShortcutNet, weights: Any, learning_rate: Any) -> tuple[Tensor, Tensor]:
    """Starts and rates of all rows, broadcast against one another."""
    if not isinstance(net, ShortcutNet):
        raise ValueError(f"net: got {type(net).__name__}, needs a ShortcutNet")
    if net.bias is not None or net.hidden != net.width:
        raise ValueError(
            f"net: {net} has a bias or unequal widths; stacked descent needs one tensor of square "
            "matrices (resid_theory.train takes any net)"
        )
    starts = check_finite("weights", as_tensor("weights", weights)).detach()
    needed = (net.blocks, net.shortcut_depth, net.width, net.width)
    if starts.shape[-4:] != needed or not starts.is_floating_point():
        raise ValueError(
            f"weights: got shape {tuple(starts.shape)} and dtype {starts.dtype}, needs "
            f"(..., {', '.join(map(str, needed))}), floating point"
        )
    rates = check_finite("learning_rate", as_tensor("learning_rate", learning_rate))
    rates = rates.detach().to(starts, copy=True)
    if not bool((rates > 0).all()):
        raise ValueError(f"learning_rate: got {rates.min().item():.6g}, needs numbers above 0")
    try:
        # Not torch.broadcast_shapes, whose first call imports SymPy.
        shape = torch.broadcast_tensors(rates, starts[..., 0, 0, 0, 0])[0].shape
    except RuntimeError:
        raise ValueError(
            f"learning_rate: shape {tuple(rates.shape)} does not broadcast with the leading axes "
            f"{tuple(starts.shape[:-4])} of weights"
        ) from None
    if 0 in shape:
        raise ValueError(
            f"weights, learning_rate: got shapes {tuple(starts.shape)} and {tuple(rates.shape)}, "
            "which make no row; needs at least one"
        )
    return starts.expand(*shape, *needed), rates.expand(shape)


def _unstacked(weights: Tensor, shape: Sequence[int], blocks: tuple[int, int]) -> Tensor:
    """(layers, rows, d, d) as (*rows, blocks, n, d, d)."""
    return weights.transpose(0, 1).reshape(*shape, *blocks, *weights.shape[-2:])


class _DescentRun:
    """The rows that have not diverged, and the records of all rows."""

    def __init__(self, weights: Tensor, rates: Tensor, limit: float | None) -> None:
        self.weights, self.rates, self.limit = weights, rates, limit
        self.all_weights, self.all_rates = torch.empty_like(weights), rates
        rows = weights.shape[1]
        self.active = torch.arange(rows, device=weights.device)
        self.diverged_at = torch.full((rows,), -1, device=weights.device)
        self.limits: Tensor  # known from the first losses on
        self.loss: list[Tensor] = []
        self.gradient_norm: list[Tensor] = []
        self.weight_norms: list[Tensor] = []
        self.kept: list[Tensor] = []

    def descend(self, objective: Objective, epochs: int, records: set[int], keep: set[int]) -> None:
        for epoch in range(epochs + 1):
            loss, gradient = objective(self.weights)
            if epoch == 0:
                limit = self.limit
                self.limits = (
                    _DIVERGED * loss.abs() if limit is None else torch.full_like(loss, limit)
                )
            loss, gradient = self._without_diverged(loss, gradient, epoch)
            if epoch in records:
                self._record(loss, gradient)
            if epoch in keep:
                self.kept.append(self._of_all_rows(self.weights, math.nan, rows_at=1))
            if epoch < epochs:
                self.weights.addcmul_(gradient, self.rates.view(-1, 1, 1), value=-1.0)
        self.all_weights[:, self.active] = self.weights

    def _without_diverged(
        self, loss: Tensor, gradient: Tensor, epoch: int
    ) -> tuple[Tensor, Tensor]:
        going = loss <= self.limits  # false for nan
        if bool(going.all()):
            return loss, gradient
        stopped = self.active[~going]
        self.diverged_at[stopped] = epoch
        self.all_weights[:, stopped] = self.weights[:, ~going]
        self.active, self.limits, self.rates = (
            rows[going] for rows in (self.active, self.limits, self.rates)
        )
        self.weights = self.weights[:, going]
        return loss[going], gradient[:, going]

    def _record(self, loss: Tensor, gradient: Tensor) -> None:
        self.loss.append(self._of_all_rows(loss, math.inf))
        norms = gradient.square().sum((0, 2, 3)).sqrt()
        self.gradient_norm.append(self._of_all_rows(norms, math.nan))
        layers = torch.linalg.matrix_norm(self.weights).mT
        self.weight_norms.append(self._of_all_rows(layers, math.nan))

    def _of_all_rows(self, values: Tensor, filler: float, rows_at: int = 0) -> Tensor:
        """Values of the active rows, filled up to all rows."""
        shape = list(values.shape)
        shape[rows_at] = len(self.diverged_at)
        full = values.new_full(shape, filler)
        return full.index_copy_(rows_at, self.active, values)

    def result(
        self,
        shape: Sequence[int],
        blocks: tuple[int, int],
        records: Sequence[int],
        kept: Sequence[int],
    ) -> Descent:
        layers = len(self.all_weights)
        kept_weights = [_unstacked(weights, shape, blocks) for weights in self.kept]
        final = _unstacked(self.all_weights, shape, blocks)
        return Descent(
            epochs=torch.tensor(records),
            loss=torch.stack(self.loss).view(-1, *shape).double(),
            gradient_norm=torch.stack(self.gradient_norm).view(-1, *shape).double(),
            weight_norms=torch.stack(self.weight_norms).view(-1, *shape, layers).double(),
            learning_rate=self.all_rates.reshape(tuple(shape)),
            diverged_at=self.diverged_at.view(tuple(shape)),
            weights=final,
            kept=torch.tensor(kept, dtype=torch.int64),
            kept_weights=torch.stack(kept_weights) if kept else final.new_empty(0, *final.shape),
        )
