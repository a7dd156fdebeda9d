"""A look at the outputs and the loss of a few samples, before the work."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory.data import Batch
from resid_theory.losses import (
    KnownWeighting,
    Loss,
    NoWeighting,
    SampleAxes,
    Weighting,
    check_scalar,
)
from resid_theory.nested import map_tensors, tensors_of
from resid_theory.runtime.resources import is_out_of_memory

__all__ = ["Findings", "check_output", "check_target", "first_look", "net_output"]

_EXAMPLES = 16  # samples on which it is found out how a loss averages
_ALONE = 2e-6  # relative change of an output, above which samples know each other: 16 float32 steps


@dataclass(kw_only=True, eq=False)
class Findings:
    """What a look has shown.

    Attributes:
        axes: Where samples are in the outputs; None where they are nowhere.
        weighting: How the loss averages.
        whole: Reason for which batches are not split, and several are refused; empty else.
        read_beside: Tensors with gradients that the loss depends on beside the output.
    """

    weighting: Weighting
    axes: SampleAxes | None = None
    whole: str = ""
    read_beside: Sequence[Tensor] = field(default_factory=list)


def first_look(
    run: Callable[[Batch], Any], loss: Loss, batches: Sequence[Batch], *, shares: bool, alone: bool
) -> Findings:
    """Run a net on a few samples, of one batch or of two whose first has one sample."""
    # shares: samples share statistics, as they were asked to; alone: the net is known to be one
    # that treats every sample alone.
    more = batches[0].spread(3 if loss.is_known else _EXAMPLES)
    if more.size == 1 and len(batches) > 1:
        more = more.joined(batches[1].spread(_EXAMPLES)) or more
    if more.size <= 2:  # samples twice tell at least where the samples are
        more = more.joined(more) or more
    # The other way round, so that each of both has other samples before and behind it.
    few = more.ends()
    output = run(few)
    check_output(loss, output, few.size)
    check_target(loss, output, batches[0])
    check_scalar(_value(loss, output, few.target))
    fixed = map_tensors(output, torch.Tensor.detach)
    found = Findings(
        weighting=KnownWeighting(loss), read_beside=list(_leaves(loss(fixed, few.target)))
    )
    if alone and loss.is_known:
        found.axes = SampleAxes.first(output, few.size)
        return found
    try:
        large = run(more)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or more.size <= 3:
            raise
        more = more.spread(3)
        few = more.ends()
        output, large = run(few), run(more)
    found.axes = SampleAxes.between(output, large, (few.size, more.size))
    if not (alone or shares):
        found.whole = _coupling(run, found.axes, few, output, large)
    if not loss.is_known:
        found.weighting = Weighting(loss, found.axes)
        try:
            found.weighting.learn(large, more.target, more.size)
        except NoWeighting as error:
            found.whole = found.whole or str(error)
    return found


def net_output(
    net: nn.Module, batch: Batch, memory_format: torch.memory_format, *, shares: bool
) -> Any:
    """The net's output on a batch; a ValueError if it does not take the batch."""
    try:
        return batch.call(net, memory_format)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        if shares and batch.size == 1:
            raise ValueError(
                "data: a batch has one sample, of which batchnorm='batch' takes no statistics; "
                "use drop_last=True, another batch size, or batchnorm='eval'"
            ) from error
        shapes = [f"{tuple(t.shape[1:])} and dtype {t.dtype}" for t in tensors_of(batch.pair[0])]
        raise ValueError(
            f"data x: the net does not take samples of shape {', '.join(shapes)}: {error}"
        ) from error


def check_output(loss: Loss, output: Any, samples: int) -> None:
    """Refuse outputs that the loss does not take."""
    one = isinstance(output, Tensor) and output.dim() > 0 and len(output) == samples
    if loss.targets != "any" and not one:
        given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output)
        raise ValueError(
            f"net: gives {given} for {samples} samples; the loss {loss.name!r} needs a tensor with "
            "one output for each sample along its first axis"
        )
    if not any(tensor.is_floating_point() for tensor in tensors_of(output)):
        raise ValueError(f"net: gives {type(output).__name__} without floating-point tensors")


def check_target(loss: Loss, output: Any, batch: Batch) -> None:
    """Refuse targets of a batch that do not fit the outputs of some samples of this shape."""
    if loss.targets != "any":
        one = output[:1]
        loss.check_target(one.expand(batch.size, *one.shape[1:]), batch.target)


def _value(loss: Loss, output: Any, target: Any) -> Any:
    """The loss of some samples; its errors name it."""
    try:
        return loss(output, target)
    except (RuntimeError, IndexError, TypeError, ValueError, KeyError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"loss: {loss.name!r} fails on the net's output, {type(output).__name__}, and targets: "
            f'{error}; a loss of (net, batch) is marked by rt.Loss(loss, of="batch")'
        ) from error


def _coupling(
    run: Callable[[Batch], Any], axes: SampleAxes | None, few: Batch, output: Any, large: Any
) -> str:
    """The reason to keep batches whole, if the outputs of samples depend on others."""
    if axes is None:
        return "net: no axis of its outputs grows with the samples alone"
    sides = [[t.detach() for t in axes.spread(given)] for given in (output, large)]
    if max(map(_moved, *sides), default=0.0) <= 1.0:
        return ""
    again = [t.detach().flip(0) for t in axes.spread(run(few))]
    if max(map(_moved, sides[0], again)) > 1.0:
        raise ValueError(
            "net: the same samples have other outputs at every call, so it draws random numbers in "
            "eval mode (F.dropout without training=self.training does); measure a net without them"
        )
    return (
        "net: its samples know each other, outputs depend on the other samples of a batch "
        "(BatchNorm without running statistics and centring do that)"
    )


def _moved(few: Tensor, more: Tensor) -> float:
    """Change of outputs of the first and the last sample, in units of what is let through."""
    if not few.is_floating_point() or not few.numel():
        return 0.0
    one, other = few[[-1, 0]], more[[0, -1]]
    tolerance = max(_ALONE, torch.finfo(few.dtype).eps ** 0.5)
    scale = max(float(one.abs().max()), float(other.abs().max()))
    gap = float((one - other).abs().max())
    return gap / (tolerance * scale) if gap and scale < float("inf") else 0.0  # NaN is told later


def _leaves(value: Tensor) -> Iterator[Tensor]:
    """The tensors with gradients from which a value was computed."""
    seen, stack = set[Any](), [value.grad_fn]
    while stack:
        function = stack.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if hasattr(function, "variable"):
            yield function.variable
        stack += [following for following, _ in function.next_functions]
