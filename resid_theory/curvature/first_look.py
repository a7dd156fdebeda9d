"""A look at the outputs and the loss of a few samples, before the work."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory.curvature.forward_checks import (
    WatchCuts,
    check_repeatable,
    leaves_of,
    own_functions,
    unwritten_statistics,
)
from resid_theory.data import Batch
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
    NoWeighting,
    SampleAxes,
    Weighting,
    check_scalar,
)
from resid_theory.nested import map_tensors, tensors_of


@dataclass(kw_only=True, eq=False)
class Findings:
    """Results of a first look.

    Attributes:
        axes: Where samples are in the outputs; None where they are nowhere.
        weighting: How the loss averages.
        whole: Reason for which batches are not split, and several are refused; empty else.
        read_beside: Tensors with gradients that the loss depends on beside the output.
        kinds: Shapes and dtypes of a sample's inputs.
        output: Output of a few samples of these kinds.
    """

    weighting: Weighting
    axes: SampleAxes | None = None
    whole: str = ""
    read_beside: Sequence[Tensor] = field(default_factory=list)
    kinds: Sequence[Any] = ()
    output: Any = None


def first_look(
    net: nn.Module,
    loss: Loss,
    batches: Sequence[Batch],
    *,
    run: Callable[[Batch], Any],
    note: Callable[[str], None],
    mixes: bool,  # whether samples are known to know each other
    watch: WatchCuts,
) -> Findings:
    """Run a net on a few samples of one batch, or of two whose first has one sample."""
    few, more = examples(batches, 3 if loss.is_known else EXAMPLES)
    with unwritten_statistics(net):
        try:
            output = run(few)
        except ValueError:
            few = more = batches[0]
            if not runs_whole(partial(run, few)):
                raise
            output = run(few)
    check_output(loss, output, few.size)
    check_target(loss, output, batches[0])
    with watch:
        value = loss_value(loss, output, few.target)
    check_scalar(value)
    watch.seen = watch.seen or bool(own_functions(value))
    fixed = map_tensors(output, torch.Tensor.detach)
    found = Findings(
        weighting=KnownWeighting(loss),
        read_beside=list(leaves_of(loss(fixed, few.target))),
        kinds=input_kinds(few),
        output=fixed,
    )

    def settled(large: Any) -> bool:
        # Equal outputs of two calls that have samples in common repeat themselves.
        axes = SampleAxes.between(output, large, (few.size, more.size))
        return not mixes and not coupling(axes, output, large)

    def run_more() -> Any:
        return check_repeatable("net", net, partial(run, more), note, settled=settled)

    try:
        large = run_more()
    except (RuntimeError, MemoryError):  # a lack of memory; other errors have words of their own
        less = more.spread(3)
        if less.size == more.size:
            raise
        more, few = less, less.ends()
        output = run(few)
        large = run_more()
    found.axes = SampleAxes.between(output, large, (few.size, more.size))
    if few is more:
        found.whole = "net: takes the samples of a batch only all together, as the nodes of a graph"
    elif not mixes:
        found.whole = coupling(found.axes, output, large)
    if not loss.is_known:
        check_repeatable("loss", net, lambda: loss_value(loss, large, more.target), note)
        found.weighting = Weighting(loss, found.axes)
        try:
            found.weighting.learn(large, more.target, more.size)
        except NoWeighting as error:
            found.whole = found.whole or str(error)
        if found.weighting.reads_shared and not found.whole:
            found.whole = coupling(found.axes, output, large, shared=True)
    return found


def input_kinds(batch: Batch) -> list[tuple[torch.Size, torch.dtype]]:
    """Shapes and dtypes of the inputs of one sample."""
    return [(t.shape[1:], t.dtype) for t in tensors_of(batch.ends().inputs)]


def check_output(loss: Loss, output: Any, samples: int) -> None:
    """Refuse outputs that the loss does not take."""
    one = isinstance(output, Tensor) and output.dim() > 0 and len(output) == samples
    if loss.targets != "any" and not one:
        given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output)
        raise ValueError(
            f"net: gives {given} for {samples} samples; the loss {loss.name!r} needs a tensor with "
            "one output for each sample along its first axis, alone or as 'logits' in a mapping"
        )
    check_numbers(output)


def check_target(loss: Loss, output: Any, batch: Batch) -> None:
    """Refuse targets of a batch that do not fit the outputs of some samples of its kind."""
    if loss.targets != "any":
        one = output[:1]
        loss.check_target(one.expand(batch.size, *one.shape[1:]), batch.target)


def check_batches(risk: Any, batches: Iterable[Batch]) -> None:
    """Refuse batches that net and loss do not take; samples of each kind run once."""
    for batch in batches:
        if not batch.is_pair:
            continue
        found = risk.found  # that of the first batch, before it came
        if (kinds := input_kinds(batch)) != found.kinds:
            few = batch.ends()
            found.kinds, found.output = kinds, risk.run(few)
            check_output(risk.loss, found.output, few.size)
        check_target(risk.loss, found.output, batch)


def check_counts(loss: Loss, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches, with a warning if a loss of (net, batch) does not tell what they count."""
    known: list[int] = []
    told = not loss.takes_batches or loss.weights is not None or loss.sums
    for batch in batches:
        lengths = [len(tensor) for tensor in tensors_of(batch.content) if tensor.dim()]
        known = known or lengths
        pairs = zip(lengths, known, strict=False)
        if not told and any(now * known[0] != then * lengths[0] for now, then in pairs):
            told = True
            warnings.warn(
                "data: batches count by the lengths of their first tensors, and those of others "
                "grow otherwise; rt.Loss(loss, of='batch', weights=) says what a batch counts",
                stacklevel=2,
            )
        yield batch


def loss_value(loss: Loss, output: Any, target: Any) -> Tensor:
    """The loss of some samples; its errors name it."""
    with naming_loss(loss, '; a loss of (net, batch) is marked by rt.Loss(loss, of="batch")'):
        return loss(output, target)
