"""Evaluation of a net on a data set: loss and top-k errors of single crops."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from resid_theory._check import check_int
from resid_theory.data import Images
from resid_theory.losses import LOSSES, check_outputs
from resid_theory.runtime.preserve import preserved

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Loss and errors of a net on labelled samples.

    Attributes:
        samples: Number of samples.
        loss: Cross-entropy in nats, mean over samples.
        wrong: For each k, the number of samples whose label is not among the k largest outputs.
    """

    samples: int
    loss: float
    wrong: Mapping[int, int]

    def error(self, k: int = 1) -> float:
        """The top-k error.

        Args:
            k: A value of ``top`` in :func:`evaluate`.

        Returns:
            Share in [0, 1].

        Raises:
            ValueError: If this k was not measured.
        """
        if k not in self.wrong:
            raise ValueError(f"k: got {k}, was measured for {sorted(self.wrong)}")
        return self.wrong[k] / self.samples


def evaluate(
    net: nn.Module, data: Any, *, top: Sequence[int] = (1, 5), batch: int = 256
) -> Evaluation:
    """Loss and top-k errors of a net, in eval mode, each image taken once as it is.

    Of equal outputs the earlier class counts as the larger, as in ``argmax``; a NaN never counts as
    right.

    Args:
        net: A module with outputs (batch, classes); it is not changed, and stays on its device.
        data: :class:`Images`, an object with ``.x`` and ``.y``, or (x, y); class numbers (m,).
        top: Values of k, each at most the number of classes.
        batch: Number of images at a time; the last digits of the loss may depend on it.

    Returns:
        Counts and the mean loss.

    Raises:
        ValueError: If labels or ``top`` do not fit the net's outputs, or the data have no labels.

    Example:
        >>> x, y = torch.tensor([[3.0, 2.0, 1.0]] * 3), torch.tensor([0, 1, 2])
        >>> evaluate(torch.nn.Identity(), (x, y), top=(1, 2)).wrong
        {1: 2, 2: 1}
    """
    images, size = Images.of(data), check_int("batch", batch)
    ranks = sorted({check_int("top", k) for k in top})
    if images.labels.is_floating_point():
        raise ValueError("data y: got targets of floating point, needs class numbers (m,)")
    like = next(net.parameters(), images.pixels)
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    wrong, loss = dict.fromkeys(ranks, 0), 0.0
    with preserved(net), torch.no_grad():
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            pixels, labels = (t[rows].to(like.device) for t in (images.pixels, images.labels))
            logits = check_outputs(net(images.inputs(pixels, dtype)), len(labels))
            LOSSES["cross_entropy"].check_target(logits, labels)
            if ranks and ranks[-1] > logits.shape[1]:
                raise ValueError(f"top: got {ranks[-1]} for {logits.shape[1]} classes")
            loss += float(LOSSES["cross_entropy"](logits.double(), labels)) * len(labels)
            # The rank of a label is the number of classes that come before it.
            own = logits.gather(1, labels[:, None])
            earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
            # Not >, which is false for NaN.
            rank = (~(logits <= own) | ((logits == own) & earlier)).sum(1)
            for k in ranks:
                wrong[k] += int((rank >= k).sum())
    return Evaluation(samples=len(images), loss=loss / len(images), wrong=wrong)
