"""Outputs and targets of a part of the data, sample by sample, and one more sample behind them."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resid_theory.losses.formulas import IGNORED
from resid_theory.losses.loss import Loss
from resid_theory.losses.sample_axes import SampleAxes
from resid_theory.nested import map_tensors


class Sample(NamedTuple):
    """A sample that is appended to parts.

    Attributes:
        outputs: Its outputs, (1, ...) each.
        targets: Its targets, (1, ...) each.
        own: Its loss alone.
        gradient: The gradient of that in its floating-point outputs, in one vector.
    """

    outputs: list[Tensor]
    targets: list[Tensor]
    own: float
    gradient: Tensor


class Appended(NamedTuple):
    """The loss of a part with a sample appended.

    Attributes:
        ratio: The appended sample's gradient over that of the sample alone.
        value: The loss.
        part: The loss of the part alone.
        own: The loss of the sample alone.
        once: What both losses have and the loss together has once, if it is a sum.
        is_mean: Whether it is a weighted mean of both.
        is_sum: Whether it is their sum, but for a number.
    """

    ratio: float
    value: float
    part: float
    own: float
    once: float
    is_mean: bool
    is_sum: bool


class Part:
    """Samples of which the loss is known, together with any others.

    Attributes:
        outputs: Tensors of the net's output, (samples, ...) each, without gradients.
        targets: Those of the targets.
    """

    def __init__(
        self,
        call: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
        outputs: Sequence[Tensor],
        targets: Sequence[Tensor],
        eps: float = 0.0,  # of a loss in a lower precision than the outputs
    ) -> None:
        self._call, self.outputs, self.targets = call, list(outputs), list(targets)
        dtypes = [leaf.dtype for leaf in outputs if leaf.is_floating_point()]
        self._eps = max(eps, *(torch.finfo(dtype).eps for dtype in dtypes))

    @classmethod
    def of(
        cls,
        loss: Loss,
        axes: SampleAxes,
        output: Any,
        target: Any,
        samples: int,
        rows: slice = slice(None),
    ) -> "Part":
        """Take some rows of outputs and targets apart; in float64, if the loss takes that."""
        places = SampleAxes.first(target, samples)

        def call(
            outputs: Sequence[Tensor], targets: Sequence[Tensor], like: Any = output
        ) -> Tensor:
            return loss(axes.gather(outputs, like), places.gather(targets, target))

        given = [
            [leaf.detach()[rows] for leaf in side]
            for side in (axes.spread(output), places.spread(target))
        ]
        wide = [[_in_double(leaf) for leaf in side] for side in given]
        shared = set(map(id, axes.shared(output)))
        like = map_tensors(output, lambda leaf: _in_double(leaf) if id(leaf) in shared else leaf)
        in_double = partial(call, like=like)
        try:
            with torch.no_grad():
                eps = torch.finfo(in_double(*wide).dtype).eps
        except (RuntimeError, TypeError, ValueError):  # class weights in float32, for example
            return cls(call, given[0], given[1])
        return cls(in_double, wide[0], wide[1], eps)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.outputs[0])

    @property
    def tolerance(self) -> float:
        """A relative difference far above round-off, far below what another average makes."""
        return self._eps**0.5

    @property
    def round_off(self) -> float:
        """Relative error that measured weights may have."""
        return 1024 * self._eps

    @property
    def is_finite(self) -> bool:
        """True if all outputs are finite."""
        return all(bool(torch.isfinite(leaf).all()) for leaf in self.outputs)

    def value(self) -> float:
        """The loss of the part."""
        with torch.no_grad():
            return float(self._call(self.outputs, self.targets))

    def moves(self) -> bool:
        """True if the loss has a gradient at the outputs that is not zero."""
        gradient = self._with_gradient(self.outputs, self.targets)[1]
        return bool(((gradient != 0) & gradient.isfinite()).any())

    def some(self, rows: Tensor) -> "Part":
        """Some of the samples."""
        outputs, targets = ([t[rows] for t in side] for side in (self.outputs, self.targets))
        return Part(self._call, outputs, targets, self._eps)

    def order(self) -> Tensor:
        """The samples sorted by the first number of their targets."""
        leaf = (self.targets or self.outputs)[0]
        return leaf.reshape(len(leaf), -1)[:, 0].argsort().cpu()

    def sample(self, number: int) -> Sample | None:
        """A sample with the output that has the largest gradient; None if none has a finite one."""
        rows, other = slice(number, number + 1), (number + 1) % self.samples
        targets = [leaf[rows] for leaf in self.targets]
        ways: list[Callable[[Tensor], Tensor]] = [
            # Inside of what the loss takes, but not where it is fitted or saturated: there the
            # gradient has lost its digits.
            lambda leaf: torch.lerp(leaf[rows], leaf[other : other + 1], 0.3),
            lambda leaf: 0.1 * leaf[rows],
            lambda leaf: leaf[rows] + 0.1,
        ]
        found = []
        for way in ways:
            outputs = [way(o) if o.is_floating_point() else o[rows] for o in self.outputs]
            own, gradient = self._with_gradient(outputs, targets)
            if math.isfinite(own) and bool(torch.isfinite(gradient).all()) and gradient.any():
                found.append(Sample(outputs, targets, own, gradient))
        return max(found, key=lambda one: float(one.gradient.norm()), default=None)

    def append(self, one: Sample) -> Appended:
        """Compare the loss with one more sample with those of the part and of the sample."""
        pairs = [*zip(self.outputs, one.outputs, strict=True)]
        pairs += zip(self.targets, one.targets, strict=True)
        for leaf, more in pairs:
            if leaf.shape[1:] != more.shape[1:]:
                raise ValueError(
                    f"loss: batches have samples of shapes {tuple(more.shape[1:])} and "
                    f"{tuple(leaf.shape[1:])} in outputs or targets, and how a function averages "
                    "over such batches cannot be measured; pad them to one shape, or pass a name "
                    "or a loss of torch.nn"
                )
        value, gradient = self._with_gradient(one.outputs, one.targets, behind=True)
        part, own, largest = self.value(), one.own, one.gradient.abs().max()
        gradient, alone = gradient / largest, one.gradient / largest  # squares do not underflow
        ratio = float(gradient @ alone / (alone @ alone))
        apart = float((gradient - ratio * alone).norm() / alone.norm())
        scale = self.tolerance * (abs(value) + abs(own) + (0 if math.isnan(part) else abs(part)))
        weightless = ratio >= 1 - self.tolerance and abs(value - own) <= scale  # the part
        mean = 0 < ratio < 1 and abs(value - (1 - ratio) * part - ratio * own) <= scale
        once = part + own - value
        once = 0.0 if abs(once) <= scale else once
        total = abs(ratio - 1) <= self.tolerance and math.isfinite(once)
        along = apart <= self.tolerance * abs(ratio)
        is_mean, is_sum = along and (weightless or mean), along and total
        return Appended(ratio, value, part, own, once, is_mean, is_sum)

    def once(self, one: Sample) -> Tensor:
        """The part that a sum has once, however many samples it has; with its graph."""
        targets = one.targets
        twice = self._call(_joined(one.outputs, one.outputs), _joined(targets, targets))
        return 2 * self._call(one.outputs, targets) - twice

    def ratios(self, one: Sample) -> Tensor:
        """The ratio of ``append`` for every sample of the part as a part of its own, (samples,)."""

        def value(outputs: list[Tensor], targets: list[Tensor], moving: list[Tensor]) -> Tensor:
            before = [leaf[None] for leaf in outputs], [leaf[None] for leaf in targets]
            return self._call(_joined(before[0], moving), _joined(before[1], one.targets))

        # A copy for each sample, not torch.func.grad, which imports torch's compiler: a second.
        copies = [leaf.expand(self.samples, *leaf.shape).clone() for leaf in one.outputs]
        at = [copy.requires_grad_() for copy in copies if copy.is_floating_point()]
        with torch.enable_grad():
            values = torch.vmap(value)(self.outputs, self.targets, copies)
            parts = torch.autograd.grad(values.sum(), at, materialize_grads=True)
        largest = one.gradient.abs().max()
        alone = one.gradient / largest
        flat = torch.cat([part.flatten(1).double() for part in parts], dim=1) / largest
        return (flat @ alone / alone.square().sum()).cpu()

    def counts(self, one: Sample) -> list[Tensor]:
        """Weights that a loss may have of the samples, in units of that of one: 1, or labels."""
        counts = [torch.ones(self.samples, dtype=torch.float64)]
        for leaf, alone in zip(self.targets, one.targets, strict=True):
            valid = int((alone.long() != IGNORED).sum())
            if not leaf.is_floating_point() and valid:
                each = (leaf.long() != IGNORED).reshape(self.samples, -1).sum(1)
                counts.append(each.double().cpu() / valid)
        return counts

    def _with_gradient(
        self, outputs: Sequence[Tensor], targets: Sequence[Tensor], behind: bool = False
    ) -> tuple[float, Tensor]:
        """Loss and gradient of samples alone, or behind those of the part."""
        moving = [leaf.clone().requires_grad_(leaf.is_floating_point()) for leaf in outputs]
        with torch.enable_grad():
            if behind:
                value = self._call(_joined(self.outputs, moving), _joined(self.targets, targets))
            else:
                value = self._call(moving, targets)
            at = [leaf for leaf in moving if leaf.requires_grad]
            if not value.requires_grad:
                return float(value), torch.zeros_like(_flat(at))
            parts = torch.autograd.grad(value, at, materialize_grads=True)
        return float(value.detach()), _flat(parts)


def _in_double(leaf: Tensor) -> Tensor:
    if leaf.is_complex():
        return leaf.to(torch.complex128)
    return leaf.double() if leaf.is_floating_point() else leaf


def _joined(leaves: Sequence[Tensor], more: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat([leaf, other.to(leaf)]) for leaf, other in zip(leaves, more, strict=True)]


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1).double() for part in parts])
