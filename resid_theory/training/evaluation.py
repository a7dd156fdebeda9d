"""Evaluation of a net on a data set: loss and top-k errors of single crops."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import check_int
from resid_theory.data import Batch, Data
from resid_theory.data.sample_look import (
    EXAMPLES,
    check_numbers,
    coupling,
    examples,
    naming_loss,
    runs_whole,
)
from resid_theory.losses import (
    KnownWeighting,
    Loss,
    LossLike,
    NoWeighting,
    SampleAxes,
    Weighting,
    check_scalar,
    reweighted,
)
from resid_theory.losses.formulas import IGNORED, class_axis, names_class
from resid_theory.nested import map_tensors, moved, tensors_of
from resid_theory.runtime.net_entry import check_net
from resid_theory.runtime.preserve import preserved
from resid_theory.runtime.result import Columns, Result

_ALIKE = "in errors each label counts once: weights of samples are in the loss alone"
_DRAWS = "the net draws random numbers in eval mode: these are those of one draw, batch by batch"
_WHOLE = (
    ", so the losses of batches do not make that of all samples; pass all in one batch (x, y), "
    "with batch= of their number"
)
_USUAL = (1, 5)  # values of k, of which those are measured that there are classes for


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation(Result):
    """Loss and errors of a net on a data set.

    Attributes:
        samples: Number of samples.
        labels: Number of class labels that count: samples, or all their tokens; 0 if targets are no
            classes.
        loss: The loss of the data, such as cross-entropy in nats, mean over labels.
        wrong: For each k, the number of labels that are not among the k largest outputs; weights
            of samples are in the loss alone.
        notes: What was done to the data on the way into the net.
    """

    samples: int
    labels: int
    loss: float
    wrong: Mapping[int, int]
    notes: tuple[str, ...] = ()

    headline = "evaluation on {0.samples} samples"

    def table(self) -> Columns:
        """One row: the loss, and the top-k errors with Wilson's 95 % intervals over samples."""
        columns: dict[str, list[Any]] = {
            "samples": [self.samples], "labels": [self.labels], "loss": [self.loss],
        }  # fmt: skip
        for k, wrong in self.wrong.items():
            name = f"top_{k}_error"
            columns[name] = [self.error(k)]
            if self.labels == self.samples:  # tokens of one sample are not independent
                from scipy.stats import binomtest  # half a second of import

                interval = binomtest(wrong, self.labels).proportion_ci(method="wilson")
                columns[f"{name}_low"], columns[f"{name}_high"] = [interval.low], [interval.high]
        return columns

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
        return self.wrong[k] / self.labels


def evaluate(
    net: nn.Module,
    data: Any,
    *,
    loss: LossLike = "cross_entropy",
    top: Sequence[int] | None = None,
    batch: int = 256,
    progress: bool = False,
) -> Evaluation:
    """Loss and top-k errors of a net, in eval mode, each sample taken once as it is.

    Of equal outputs the earlier class counts as the larger, as in ``argmax``; a NaN never counts as
    right.

    Args:
        net: Any module; it is not changed, and stays on its device.
        data: :class:`Images`, or inputs and targets in any form that :func:`train` takes, read
            once. Targets are class labels, of samples or of places of the output such as tokens, or
            what else the loss takes; the label -100 counts for nothing.
        loss: A name, a loss of ``torch.nn`` or a function ``(output, target) -> scalar``: a mean, a
            weighted mean or a sum over samples. Labels become one-hot rows where it needs values.
        top: Values of k, each at most the number of classes; None for 1 and, from 5 classes on, 5.
        batch: Number of samples at a time, of data in memory; the last digits of the loss may
            depend on it. A net or a loss that compares samples needs all of them in one batch.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The loss, and the errors where targets are classes.

    Raises:
        ValueError: If targets or ``top`` do not fit the net's outputs, or net or loss compare
            samples of several batches.

    Example:
        >>> x, y = torch.tensor([[3.0, 2.0, 1.0]] * 3), torch.tensor([0, 1, 2])
        >>> evaluate(torch.nn.Identity(), (x, y), top=(1, 2)).wrong
        {1: 2, 2: 1}
    """
    net = check_net(net, finite=False)
    size, scored, samples = check_int("batch", batch), Loss.of(loss), Data.of(data, like=net)
    if scored.takes_batches:
        raise ValueError("loss: got one of (net, batch), needs one of (output, target)")
    if isinstance(top, int):
        raise ValueError(f"top: got {top}, needs a list of whole numbers, such as [{top}]")
    wanted = None if top is None else sorted({check_int("top", k) for k in top})
    with preserved(net):
        parts = samples.chunks(size, "evaluation" if progress else None)
        begun = list(islice(parts, 2))
        totals = _Totals(scored, wanted, begun, net)
        for part in chain(begun, parts):
            with torch.no_grad():
                output = scored.reads(part.try_call(net))
                if part.size > 2 and not totals.alone:  # or those of some samples among many
                    totals.check(totals.axes, scored.reads(part.ends().try_call(net)), output)
                totals.add(part, output)
    return totals.result(tuple(samples.notes))


class _Totals:
    """Sums over the batches, of a loss that is known from a few samples of the first one."""

    def __init__(
        self, loss: Loss, top: list[int] | None, batches: Sequence[Batch], net: nn.Module
    ) -> None:
        few, more = examples(batches, EXAMPLES)
        self.alone = [batch.sample_weight for batch in batches] == [None]
        try:
            small = loss.reads(few.try_call(net))
        except ValueError:
            if not (self.alone and runs_whole(partial(batches[0].call, net))):
                raise
            few = more = batches[0]  # as the nodes of a graph
            small = loss.reads(few.try_call(net))
        output = loss.reads(more.try_call(net))
        self._loss = loss.to(check_numbers(output, whole=self.alone).device, torch.float64)
        axes = None
        if few is not more:
            axes = SampleAxes.between(small, output, (few.size, more.size))
        self._draws = bool(coupling(axes, small, output)) and any(
            map(moved, tensors_of(output), tensors_of(loss.reads(more.try_call(net))))
        )
        self._weighting: Weighting = KnownWeighting(loss)
        self.check(axes, small, output)
        self.axes = axes or SampleAxes.first(output, more.size)
        target, labels = self._targets(output, more.target)
        _value(self._loss, output, target)
        if not (loss.is_known or self.alone):
            self._weighting = Weighting(loss, axes)
            try:
                self._weighting.learn(output, target, more.size)
            except NoWeighting as error:
                raise ValueError(f"{error}{_WHOLE}") from error
            self.check(axes, small, output)
        self._wrong: dict[int, int] = {}
        if labels is not None:
            axis = class_axis(output, labels)
            assert axis is not None
            classes = output.shape[axis]
            ranks = [k for k in _USUAL if k <= classes] if top is None else top
            if ranks and ranks[-1] > classes:
                raise ValueError(f"top: got {ranks[-1]} for {classes} classes")
            self._wrong = dict.fromkeys(ranks, 0)
        elif top:
            raise ValueError(
                f"data y: got targets that are no class numbers of the net's outputs, which top="
                f"{top} needs"
            )
        self._samples = self._labels = 0
        self.notes = (_DRAWS,) * self._draws
        self._value = self._weight = 0.0

    def check(self, axes: SampleAxes | None, few: Any, more: Any) -> None:
        """Refuse outputs that depend on the other samples of one of several batches."""
        whole = coupling(axes, few, more, shared=self._weighting.reads_shared)
        if whole and not (self.alone or self._draws):
            raise ValueError(f"{whole}{_WHOLE}")

    def add(self, batch: Batch, output: Any) -> None:
        """Add a batch."""
        target, labels = self._targets(output, batch.target)
        loss, weight = self._loss, self._weighting.of_part(output, target, batch.size)
        if batch.sample_weight is not None:
            if self._wrong:
                self.notes = (_DRAWS,) * self._draws + (_ALIKE,)
            each = self._weighting.of_samples(output, target, batch.size)
            each = each * batch.sample_weight.cpu()
            loss = reweighted(loss, self.axes, each, sums=self._weighting.sums)
            weight = 1.0 if self._weighting.sums else float(each.sum())
        if weight > 0:  # labels that do not count have no loss
            self._value += weight * _value(loss, output, target)
            self._value -= self._weighting.once if self._samples else 0.0
        self._weight += weight
        self._samples += batch.size
        if labels is not None:
            counted = names_class(output, labels)
            self._labels += int(counted.sum())
            rank = _ranks(output, labels)[counted]
            for k in self._wrong:
                self._wrong[k] += int((rank >= k).sum())

    def _targets(self, output: Any, target: Any) -> tuple[Any, Tensor | None]:
        """Targets as the loss takes them, and class labels, of outputs with samples first."""
        if self._loss.targets == "any" and not self.axes.is_first:
            return target, None
        return self._loss.targets_of(output, target)

    def result(self, notes: tuple[str, ...]) -> Evaluation:
        """The means."""
        if self._weight == 0:
            raise ValueError(f"data y: no target counts, such as where all labels are {IGNORED}")
        return Evaluation(
            samples=self._samples,
            labels=self._labels,
            loss=self._value if self._weighting.sums else self._value / self._weight,
            wrong=self._wrong,
            notes=notes + self.notes,
        )


def _value(loss: Loss, output: Any, target: Any) -> float:
    """The loss in float64, or as it is if a function does not take that."""
    wide = map_tensors(output, lambda t: t.double() if t.is_floating_point() else t)
    with naming_loss(loss):
        try:
            value = loss(wide, target)
        except RuntimeError:
            value = loss(output, target)
    return float(check_scalar(value, gradient=False).detach())


def _ranks(output: Tensor, labels: Tensor) -> Tensor:
    """Number of classes that come before each label's own, shaped like the labels."""
    axis = class_axis(output, labels)
    assert axis is not None
    logits = output.movedim(axis, -1)
    index = labels.clamp(0, logits.shape[-1] - 1)[..., None]
    own = logits.gather(-1, index)
    earlier = torch.arange(logits.shape[-1], device=logits.device) < index
    # Not >, which is false for NaN.
    return (~(logits <= own) | ((logits == own) & earlier)).sum(-1)
