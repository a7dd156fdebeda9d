"""The loss that a model computes itself, as those of transformers do from labels."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory.losses.formulas import IGNORED
from resid_theory.losses.loss import LOSSES, Loss
from resid_theory.nested import rows_of

_STEPS = 1e-5  # relative difference that float32 may make, which such losses are computed in


class OwnLoss(Loss):
    """The loss in a model's output, where labels are among its inputs.

    It counts a batch by its labels, by those that a causal model predicts, or by its samples,
    whichever makes the loss of two samples out of their single ones. Floating-point labels have one
    shape for all samples, of which labels and samples count alike.
    """

    def __init__(self) -> None:
        super().__init__(own_loss, of="batch", name="model")

    def weighed(self, net: nn.Module, batch: Any) -> Loss:
        """Find out what a model's loss divides by.

        Args:
            net: The model.
            batch: A batch of the data, where the net is.

        Returns:
            A loss with weights, or one that takes a single batch only.

        Raises:
            ValueError: If the batch has no labels, or the model no loss.
        """
        own_loss(net, batch)
        made = Loss(own_loss, of="batch", name=self.name)
        try:
            made.weights = _weights(net, batch)
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            made.whole = f"loss: the model's own loss fails on single samples ({error})"
        if made.weights is None:
            made.whole = made.whole or (
                "loss: the model's own loss is no mean over samples or labels of their single "
                "losses, as with a term that balances experts"
            )
        return made


def own_loss(net: nn.Module, batch: Any) -> Tensor:
    """The loss that a model computes on a batch with labels, the entry ``loss`` of its output."""
    if not isinstance(batch, Mapping) or "labels" not in batch:
        given = list(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(
            f"data: got a batch {given}; the loss 'model' needs a mapping with 'labels' among them"
        )
    output = net(**batch)
    value = output.get("loss") if isinstance(output, Mapping) else None
    if not isinstance(value, Tensor):
        raise ValueError(
            f"net: gives {type(output).__name__} without 'loss' on a batch with labels, which the "
            "loss 'model' reads; take a loss of (output, target)"
        )
    return value


def _weights(net: nn.Module, batch: Any) -> Any:
    """A count of samples that makes the loss of two out of their single losses; None if none."""
    labels, rows = batch["labels"], torch.tensor([0, -1])
    tokens = labels.dim() > 1 and not labels.is_floating_point()
    if tokens:
        rows = (labels != IGNORED).sum(1).argsort(descending=True)[[0, min(1, len(labels) - 1)]]
    pair = rows_of(batch, rows, len(labels))
    if tokens:  # fewer labels in the second one, and the first place counted: no two counts agree
        labels = pair["labels"][:1].repeat(2, 1)  # the second one may have none of its own
        labels[:, 0] = labels.amax(1)
        order = (labels != IGNORED).cumsum(1)
        labels[1, order[1] > (order[1, -1] + 1) // 2] = IGNORED
        pair = {**pair, "labels": labels}
    parts = [rows_of(pair, slice(i, i + 1), 2) for i in (0, 1)]
    with torch.no_grad():
        whole, *own = (float(own_loss(net, part)) for part in (pair, *parts))
    candidates: list[Any] = [_labels, _next_labels, _samples]
    if batch["labels"].is_floating_point():  # of one shape, which labels and samples count alike
        candidates = [partial(_alike, batch["labels"].shape[1:])]
    for count in candidates:
        counts = [float(count(part)) for part in parts]
        shares = [n * value for n, value in zip(counts, own, strict=True) if n]  # not a number at 0
        if shares and abs(whole - sum(shares) / sum(counts)) <= _STEPS * abs(whole):
            return count
    return None


def _labels(batch: Any) -> Tensor:
    labels: Tensor = batch["labels"]
    return (labels != IGNORED).sum()


def _next_labels(batch: Any) -> Tensor:
    labels: Tensor = batch["labels"]
    return (labels[:, 1:] != IGNORED).sum() if labels.dim() == 2 else torch.tensor(0)


def _samples(batch: Any) -> Tensor:
    return torch.tensor(len(batch["labels"]))


def _alike(shape: torch.Size, batch: Any) -> Tensor:
    """The number of samples, whose labels have the shape that they had before."""
    if (given := batch["labels"].shape[1:]) != shape:
        raise ValueError(
            f"loss: batches have floating-point labels of shapes {tuple(shape)} and {tuple(given)} "
            "for a sample, and the model's own loss does not show whether it divides by labels or "
            'samples; pad them to one shape, or pass rt.Loss(..., of="batch", weights=...)'
        )
    return _samples(batch)


LOSSES["model"] = OwnLoss()
