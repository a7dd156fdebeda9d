r"""Weights with which the losses of parts make that of the whole.

The loss of a data set is :math:`\sum_b w_b \ell_b / \sum_b w_b`, where :math:`w_b` is what the loss
divides by on part b: samples, valid labels, summed class weights, tokens; the loss of a sum is
:math:`\sum_b \ell_b`. Where no formula is known the weights are measured, on outputs alone. Append
a sample s to part b: the derivative of the loss at the output of s is
:math:`w_s / (w_b + w_s)` times that of s alone, whatever the weights are, and 1 for a sum. Value
and direction show whether there are such weights at all. A sum may have a part that is there once,
such as weight decay; the loss of the whole has it once, too.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from resid_theory.losses.loss import Loss
from resid_theory.losses.part import Part, Sample
from resid_theory.losses.sample_axes import SampleAxes
from resid_theory.nested import map_tensors

_CHOICE = 8  # samples of which the one with the largest gradient is appended
_PIECE = 1 << 26  # bytes of outputs measured together, of which copies are made


class NoWeighting(ValueError):
    """The loss of a whole is no weighted mean or sum of the losses of its parts."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"loss: needs a mean, a weighted mean or a sum over samples; this one compares samples "
            f"with each other, mixes a mean and a sum, or is a function of a mean: {detail}"
        )


class Coupled(NoWeighting):
    """Outputs of samples depend on the others of a batch."""

    def __init__(self, reason: str) -> None:
        ValueError.__init__(self, reason)


class Weighting:
    """Measured weights of the parts of a data set.

    Args:
        loss: A loss of (output, target).
        axes: Where samples are in the net's outputs; None if they are nowhere.

    Attributes:
        sums: Whether the loss is a sum, whose parts all count as one.
        counts: Whether all weights so far were numbers of samples.
        once: What a sum has once, however many samples it has: weight decay.
        reads_shared: Whether the loss reads an output that all samples share.
    """

    reads_shared = False

    def __init__(self, loss: Loss, axes: SampleAxes | None) -> None:
        self._loss, self._axes, self.sums, self.counts = loss, axes, False, True
        self.once = 0.0
        self._one: Sample | None = None  # the sample that is appended
        self._guessed = False
        self._last: Part

    def learn(self, output: Any, target: Any, samples: int) -> None:
        """Find out on a few unlike samples whether the loss is a mean or a sum.

        Args:
            output: The net's output on them, with its graph.
            target: Their targets.
            samples: Their number.

        Raises:
            NoWeighting: If it is neither.
        """
        if self._axes is None or not self._axes.spread(output):
            raise NoWeighting("no axis of the outputs grows with the samples alone")
        self._learn(Part.of(self._loss, self._axes, output, target, samples))
        if self._reads_shared(output, target):
            self._check_shared(output, target, samples)
            self.reads_shared = True

    def _check_shared(self, output: Any, target: Any, samples: int) -> None:
        """Refuse sums, and weights that move with an output that all samples share."""
        assert self._axes is not None
        apart = map_tensors(
            output, lambda t: 1.1 * t.detach() + 0.1 if t.is_floating_point() else t
        )
        apart = self._axes.gather(self._axes.spread(output), apart)
        other, shares = Weighting(self._loss, self._axes), []
        other._learn(Part.of(self._loss, self._axes, apart, target, samples))
        for weighting, given in ((self, output), (other, apart)):
            weights = weighting.of_samples(given, target, samples)
            shares.append(weights / weights.sum())
        known = self._one is not None and other._one is not None
        own, others = shares
        same = torch.allclose(own, others, rtol=1e-5, atol=0)
        if self.sums or other.sums or not (known and same):
            raise NoWeighting("it reads an output that all samples share, not as a mean does")

    def _learn(self, part: Part) -> None:
        """Choose a sample and compare the part with its halves, if any sample has a gradient."""
        self._choose(part)
        if self._one is None:
            return
        if self._guessed:
            raise NoWeighting("some parts have no gradient at all, others have one")
        everything = part.append(self._one)
        self.sums = everything.is_sum
        self.once = everything.once if self.sums else 0.0
        self._last = part
        total, order, half = self._weight(part), part.order(), part.samples // 2
        sorted_halves, mixed = [order[:half], order[half:]], [order[::2], order[1::2]]
        for halves in (sorted_halves, mixed) if half else ():
            weights = [self._weight(part.some(rows)) for rows in halves]
            apart = abs(sum(weights) - (2.0 if self.sums else total))
            if not apart <= part.tolerance * max(*weights, total):
                raise NoWeighting(f"parts weigh {sum(weights):.6g}, both together {total:.6g}")

    def of_part(self, output: Any, target: Any, samples: int) -> float:
        """The weight of a part of the data; 1 for a sum.

        Args:
            output: The net's output on the part.
            target: Its targets.
            samples: Its number of samples.

        Returns:
            A multiple of the weight of one fixed sample, at least 0.

        Raises:
            NoWeighting: If the loss with another sample shows that there are no weights.
        """
        assert self._axes is not None
        size = sum(8 * leaf[:1].numel() for leaf in self._axes.spread(output))
        step = max(1, _PIECE // size)
        weights = []
        for start in range(0, samples, step):
            rows = slice(start, start + step)
            part = Part.of(self._loss, self._axes, output, target, samples, rows)
            if self._one is None:
                self._learn(part)
            if self._one is not None:
                weights.append(self._weight(part))
            elif math.isnan(part.value()) and part.is_finite:  # all labels are ignored
                weights.append(0.0)
            else:  # without a gradient any weights do
                self._guessed = True
                weights.append(float(part.samples))
        return 1.0 if self.sums else sum(weights)

    def of_samples(self, output: Any, target: Any, samples: int) -> Tensor:
        """The weights of single samples; ones for a sum.

        Args:
            output: The net's output on them.
            target: Their targets.
            samples: Their number.

        Returns:
            (samples,), float64, on the CPU.
        """
        one = self._one
        if one is None or self.sums:
            return torch.ones(samples, dtype=torch.float64)
        assert self._axes is not None
        part = Part.of(self._loss, self._axes, output, target, samples)
        try:
            ratios = part.ratios(one)
        except (RuntimeError, ValueError):  # a loss that looks at values: one by one
            rows = torch.arange(samples).split(1)
            each = [self._weight(part.some(row)) for row in rows]
            return torch.tensor(each, dtype=torch.float64)
        return self._rounded(1 / ratios - 1, part.counts(one), part.round_off)

    def repeated(self) -> Tensor | None:
        """The part that every sum has once, with its graph; None if there is none."""
        if not self.sums or self._one is None:
            return None
        once = self._last.once(self._one)
        return once if once.requires_grad or self.once else None

    def _reads_shared(self, output: Any, target: Any) -> bool:
        """True if the loss moves with an output that all samples share and the net computes."""
        assert self._axes is not None
        shared = [leaf for leaf in self._axes.shared(output) if leaf.requires_grad]
        if not shared:
            return False
        with torch.enable_grad():
            value = self._loss(output, target)
            parts = torch.autograd.grad(value, shared, allow_unused=True)
        return any(part is not None for part in parts)

    def _choose(self, part: Part) -> None:
        """Choose the sample that is appended: its loss is finite and has a gradient."""
        few = torch.arange(_CHOICE) * part.samples // _CHOICE
        try:
            found = [one for row in few.unique().tolist() if (one := part.sample(row)) is not None]
            every = (part.sample(row) for row in range(part.samples))
            one = max(found, key=lambda one: float(one.gradient.norm()), default=None)
            self._one = one or next((one for one in every if one is not None), None)
        except (RuntimeError, ValueError, IndexError) as error:
            raise NoWeighting(f"it does not take a single sample ({error})") from error
        if self._one is None and part.moves():
            raise NoWeighting("single samples have no gradient, all together have one")

    def _weight(self, part: Part) -> float:
        assert self._one is not None
        found = part.append(self._one)
        scale = part.tolerance * (abs(found.value) + abs(found.part) + abs(found.own))
        same = found.is_sum and abs(found.once - self.once) <= scale
        if not (same if self.sums else found.is_mean):
            raise NoWeighting(
                f"{found.value:.6g} on {part.samples} samples and one more, {found.part:.6g} on "
                f"these, {found.own:.6g} on that one"
            )
        if self.sums:
            return 1.0
        counts = [count.sum(0, keepdim=True) for count in part.counts(self._one)]
        weight = torch.tensor([1 / found.ratio - 1], dtype=torch.float64)
        return float(self._rounded(weight, counts, part.round_off)[0])

    def _rounded(self, weights: Tensor, counts: Sequence[Tensor], round_off: float) -> Tensor:
        """Weights without round-off, where they are counts."""
        weights = torch.where(weights <= round_off, 0.0, weights)
        for count in counts:
            weights = torch.where((weights - count).abs() <= round_off * count, count, weights)
        self.counts = self.counts and torch.equal(weights, counts[0])
        return weights


class KnownWeighting(Weighting):
    """Weights by a formula that the loss brings along; without one, numbers of samples."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss, None)
        self.sums = loss.sums

    def learn(self, output: Any, target: Any, samples: int) -> None:
        """Nothing is to be found out."""

    def of_part(self, output: Any, target: Any, samples: int) -> float:
        """The sum of the samples' weights; 1 for a sum."""
        weights = self.of_samples(output, target, samples)
        return 1.0 if self.sums else float(weights.sum())

    def of_samples(self, output: Any, target: Any, samples: int) -> Tensor:
        """The samples' weights."""
        if self._loss.weights is None:
            return torch.ones(samples, dtype=torch.float64)
        # Of a sum, too: it refuses targets without any.
        found: Tensor = self._loss.weights(target).detach().double().cpu()
        return torch.ones_like(found) if self.sums else found


def weighting_of(loss: Loss, output: Tensor, target: Tensor) -> Weighting:
    """The weights of a loss, known or learnt on outputs that have samples along their first axis.

    Args:
        loss: A loss of (output, target).
        output: Outputs, (m, ...).
        target: Their targets.

    Returns:
        The weights.

    Raises:
        NoWeighting: If the loss is neither a weighted mean nor a sum over samples.
    """
    if loss.is_known:
        return KnownWeighting(loss)
    weighting = Weighting(loss, SampleAxes.first(output, len(output)))
    weighting.learn(output, target, len(output))
    return weighting


def single_losses(
    loss: Loss, axes: SampleAxes, output: Any, target: Any, samples: int, rows: Any = slice(None)
) -> Tensor:
    """Losses of all samples or of some rows, one by one where ``torch.vmap`` does not take them."""
    places = SampleAxes.first(target, samples)
    leaves, aims = ([t[rows] for t in s] for s in (axes.spread(output), places.spread(target)))

    def single(outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
        one = axes.gather([leaf[None] for leaf in outputs], output)
        return loss(one, places.gather([leaf[None] for leaf in targets], target))

    try:
        return torch.vmap(single)(leaves, aims)
    except (RuntimeError, ValueError):  # a loss that looks at values
        each = range(len(leaves[0]))
        return torch.stack([single([o[i] for o in leaves], [t[i] for t in aims]) for i in each])


def reweighted(loss: Loss, axes: SampleAxes, weights: Tensor, *, sums: bool) -> Loss:
    """The loss of samples that count with weights of their own, by their single losses.

    Args:
        loss: A loss of (output, target).
        axes: Where samples are in the outputs.
        weights: (samples,), at least 0, as what each counts in the mean, or in the sum.
        sums: Whether the loss is a sum.

    Returns:
        A loss of these samples, the weighted mean or sum of their own losses.
    """
    counted = weights.nonzero()[:, 0]  # the others may have no loss at all: ignored labels

    def value(output: Any, target: Any) -> Tensor:
        if not len(counted):  # nothing, with a gradient of zeros
            real = [leaf for leaf in axes.spread(output) if leaf.is_floating_point()]
            return torch.stack([leaf[counted].sum() for leaf in real]).sum()
        own = single_losses(loss, axes, output, target, len(weights), counted)
        factors = weights[counted].to(own)
        total = (factors * own).sum()
        return total if sums else total / factors.sum()

    return Loss(value, likelihood=loss.likelihood)
