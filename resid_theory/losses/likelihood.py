r"""Distributions of targets whose negative log-likelihood a loss is.

The loss of a sample is :math:`\sum_t u_t \ell_t` over predictions t, each of a target of its own (a
label, or a number of a regression), with :math:`\ell_t = -\log p(y_t | z_t)` of its outputs z_t. Of
targets drawn from the model the slopes :math:`s_t = \partial \ell_t / \partial z_t` have the second
moment :math:`C_t = \sum_y p(y | z_t)\, s_t s_t^T`.

Source:
    Martens 2020, "New insights and perspectives on the natural gradient method", arXiv:1412.1193,
    Sections 5 and 9.2; Kunstner, Balles & Hennig 2019, arXiv:1905.12558, for the empirical one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resid_theory.losses.formulas import IGNORED, class_axis


class Predictions(ABC):
    """Predictions that a net's outputs make, each of its own target.

    Args:
        output: The net's output, (m, ...), without a graph.
        target: Its targets; which of them count is read off them, nothing else.
        total: Whether the loss of a sample is the sum over its predictions, not their mean.

    Attributes:
        shape: (m, ...), a place for each prediction.
        weights: Their weights u in the loss of their sample, broadcastable to the output.
    """

    axis: int | None = None  # of the classes, from the end
    natural = False  # whether C is the second derivative of the loss, whatever the targets are

    def __init__(self, output: Tensor, target: Tensor, *, total: bool = False) -> None:
        self.output, self.shape = output, output.shape
        self.weights = torch.ones_like(output)
        if not total:
            self.weights /= output[:1].numel()

    @abstractmethod
    def curve(self, move: Tensor) -> Tensor:
        """C times a move of the outputs, (..., m, ...)."""

    @abstractmethod
    def drawn(self, ranks: Tensor) -> Tensor:
        """Slopes at targets drawn by ranks in (0, 1), ``shape``; of the output's shape."""

    @abstractmethod
    def roots(self) -> Iterator[Tensor]:
        """Tensors of the output's shape, whose outer products in each prediction add up to C."""

    def along(self, slope: Tensor, move: Tensor) -> Tensor:
        """The outer product of each prediction's slope with itself, times a move."""
        inner = slope * move
        return slope * (inner if self.axis is None else inner.sum(self.axis, keepdim=True))


Likelihood = Callable[[Tensor, Tensor], Predictions]
"""``(output, target) -> Predictions``."""


class Gaussian(Predictions):
    """Numbers with a variance, around the outputs: ``precision / 2`` times the squared error."""

    natural = True

    def __init__(
        self, output: Tensor, target: Tensor, *, precision: float = 1.0, total: bool = False
    ) -> None:
        super().__init__(output, target, total=total)
        self._precision = precision

    def curve(self, move: Tensor) -> Tensor:
        """The precision times a move."""
        return self._precision * move

    def drawn(self, ranks: Tensor) -> Tensor:
        """Normal numbers."""
        return (self._precision**0.5 * torch.special.ndtri(ranks)).to(self.output.dtype)

    def roots(self) -> Iterator[Tensor]:
        """The same everywhere."""
        yield torch.full_like(self.output, self._precision**0.5)


class Bernoulli(Predictions):
    """Yes or no, by logits."""

    natural = True

    def __init__(self, output: Tensor, target: Tensor, *, total: bool = False) -> None:
        super().__init__(output, target, total=total)
        self._p = output.sigmoid()

    def curve(self, move: Tensor) -> Tensor:
        """P (1 - p) times a move."""
        return self._p * (1 - self._p) * move

    def drawn(self, ranks: Tensor) -> Tensor:
        """P - y."""
        return self._p - (ranks < self._p).to(self._p)

    def roots(self) -> Iterator[Tensor]:
        """The root of the variance."""
        yield (self._p * (1 - self._p)).sqrt()


class Categorical(Predictions):
    """Labels, by logits or by logarithms of probabilities; the label ``ignored`` counts nothing."""

    def __init__(
        self,
        output: Tensor,
        target: Tensor,
        *,
        logits: bool = True,
        ignored: int = IGNORED,
        axis: int | None = 1,
        total: bool = False,
    ) -> None:
        super().__init__(output, target, total=True)
        axis = class_axis(output, target) if axis is None else axis % output.dim()
        fits = (output.shape, () if axis is None else output.select(axis, 0).shape)
        if axis is None or target.shape not in fits:
            raise ValueError(
                f"likelihood: targets {tuple(target.shape)} are no labels of outputs "
                f"{tuple(output.shape)} with classes along axis={axis} of rt.losses.Categorical"
            )
        self.axis, self._logits, self.natural = axis - output.dim(), logits, logits
        self._p = output.softmax(axis) if logits else output.exp()
        counts = torch.ones_like(self._p.select(axis, 0))
        self.shape = counts.shape
        if not target.is_floating_point():
            counts = (target.long() != ignored).to(counts)
        if not total:
            flat = counts.reshape(len(counts), -1).sum(1).clamp_min(1)
            counts = counts / flat.view(-1, *[1] * (counts.dim() - 1))
        self.weights = counts.unsqueeze(axis)

    def curve(self, move: Tensor) -> Tensor:
        """The covariance of a label's unit vector, or its second moment, times a move."""
        moved = self._p * move
        assert self.axis is not None
        return moved - self._p * moved.sum(self.axis, keepdim=True) if self._logits else moved

    def _slope(self, label: Tensor) -> Tensor:
        assert self.axis is not None
        one = torch.zeros_like(self._p).scatter_(self.axis, label.unsqueeze(self.axis), 1.0)
        return (self._p if self._logits else 0.0) - one

    def drawn(self, ranks: Tensor) -> Tensor:
        """The slope at a label drawn for each prediction."""
        assert self.axis is not None
        below = self._p.double().cumsum(self.axis) <= ranks.unsqueeze(self.axis)
        last = self._p.shape[self.axis] - 1  # the sum of all may round below one
        return self._slope(below.sum(self.axis).clamp_max(last))

    def roots(self) -> Iterator[Tensor]:
        """The slope at each class, times the root of its probability."""
        assert self.axis is not None
        for label in range(self._p.shape[self.axis]):
            share = self._p.select(self.axis, label).sqrt().unsqueeze(self.axis)
            yield share * self._slope(torch.full(self.shape, label, device=self._p.device))


def likelihood_of(function: Any) -> Likelihood | None:
    """That of a loss of torch without class weights and smoothing; None for any other."""
    total = getattr(function, "reduction", "mean") == "sum"
    reshaped = ("weight", "pos_weight")
    if any(isinstance(getattr(function, name, None), Tensor) for name in reshaped):
        return None
    if getattr(function, "label_smoothing", 0.0):
        return None
    ignored = getattr(function, "ignore_index", IGNORED)
    if type(function) is nn.MSELoss or function is F.mse_loss:
        return partial(Gaussian, precision=2.0, total=total)
    if type(function) is nn.BCEWithLogitsLoss or function is F.binary_cross_entropy_with_logits:
        return partial(Bernoulli, total=total)
    if type(function) is nn.CrossEntropyLoss or function is F.cross_entropy:
        return partial(Categorical, ignored=ignored, total=total)
    if type(function) is nn.NLLLoss or function is F.nll_loss:
        return partial(Categorical, logits=False, ignored=ignored, total=total)
    return None
