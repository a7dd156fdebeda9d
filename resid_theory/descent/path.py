"""Result of a descent: one row for every start and learning rate."""

from dataclasses import dataclass

import torch
from torch import Tensor

from resid_theory.runtime.result import Columns, Result


@dataclass(frozen=True, kw_only=True, eq=False)
class Descent(Result):
    """Full-batch gradient descent of many nets; ``rows`` stands for the leading axes.

    Attributes:
        epochs: Recorded epochs, (t,), int64; epoch e is after e steps, 0 is the start.
        loss: At these epochs, (t, *rows), float64; inf from the epoch on at which a row diverged.
        gradient_norm: Euclidean norm over all weights, (t, *rows); nan likewise.
        weight_norms: Frobenius norm of every layer, (t, *rows, layers), input to output; likewise.
        learning_rate: Learning rate of each row, (*rows).
        diverged_at: Epoch at which a row's loss passed the limit or was not a number, (*rows),
            int64; -1 where it never did.
        weights: Weights at the end, (*rows, blocks, n, d, d); those of a diverged row are from the
            epoch at which it diverged, and need not be finite.
        kept: Epochs whose weights were kept, (c,), int64.
        kept_weights: Weights at these epochs, (c, *rows, blocks, n, d, d); nan from a row's
            divergence on.
    """

    epochs: Tensor
    loss: Tensor
    gradient_norm: Tensor
    weight_norms: Tensor
    learning_rate: Tensor
    diverged_at: Tensor
    weights: Tensor
    kept: Tensor
    kept_weights: Tensor

    headline = "gradient descent, {0.epochs.shape[0]} recorded epochs"

    def table(self) -> Columns:
        """One row for each recorded epoch and net; ``row`` counts the nets through all axes."""
        rows, times = self.learning_rate.numel(), len(self.epochs)
        return {
            "epoch": self.epochs.repeat_interleave(rows),
            "row": torch.arange(rows).repeat(times),
            "learning_rate": self.learning_rate.flatten().repeat(times),
            "loss": self.loss.flatten(),
            "gradient_norm": self.gradient_norm.flatten(),
            "mean_weight_norm": self.mean_weight_norm.flatten(),
        }

    def shown(self) -> Columns:
        """First and last loss of each net."""
        ends = self.diverged_at.flatten().tolist()
        return {
            "row": range(len(ends)),
            "learning_rate": self.learning_rate.flatten(),
            "first_loss": self.loss[0].flatten(),
            "last_loss": self.final_loss.flatten(),
            "diverged_at": [None if epoch < 0 else epoch for epoch in ends],
        }

    @property
    def final_loss(self) -> Tensor:
        """Loss after the last step, (*rows); inf where the row diverged."""
        return self.loss[-1]

    @property
    def diverged(self) -> Tensor:
        """Rows that diverged, (*rows), bool."""
        return self.diverged_at >= 0

    @property
    def mean_weight_norm(self) -> Tensor:
        """Mean over layers of the Frobenius norm, (t, *rows)."""
        return self.weight_norms.mean(-1)

    def reached(self, level: float) -> Tensor:
        """Recorded epoch at which the loss is first at most ``level``.

        Args:
            level: A value of the loss.

        Returns:
            (*rows), int64; -1 where no recorded loss is.
        """
        below = self.loss <= level
        first = self.epochs.to(below.device)[below.to(torch.int8).argmax(0)]
        return torch.where(below.any(0), first, -1)
