"""The samples of a net's outputs: along which axes they are, and whether they know each other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from resid_theory.data.batch import Batch
from resid_theory.losses import Loss, NoWeighting, SampleAxes
from resid_theory.nested import moved, tensors_of
from resid_theory.runtime.resources import is_out_of_memory

EXAMPLES = 16  # samples on which net and loss are tried, and how the loss averages is learnt


def examples(batches: Sequence[Batch], count: int) -> tuple[Batch, Batch]:
    """A few samples and more of them, whose outputs show where samples are."""
    # The last sample of the few is the first one of the others, and the first the last, so that
    # each has other samples before and behind it.
    more = batches[0].spread(count)
    if more.size == 1 and len(batches) > 1:
        more = more.joined(batches[1].spread(count)) or more
    if more.size <= 2:  # not both twice: that has the mean and the variance of both once
        more = more.joined(more.part(0, 1)) or more
    return (more.ends() if more.size > 2 else more.part(0, 1)), more


def runs_whole(run: Callable[[], Any]) -> bool:
    """True if a net runs on a whole batch, where it did not on a few samples of it."""
    with suppress(Exception), torch.no_grad():
        run()
        return True
    return False


def coupling(axes: SampleAxes | None, few: Any, more: Any, *, shared: bool = False) -> str:
    """Reason for which batches cannot be split or put together; empty if they can."""
    if axes is None:
        return "net: no axis of its outputs grows with the samples alone"
    if shared and any(map(moved, axes.shared(few), axes.shared(more))):
        return (
            "net: gives all samples of a batch an output that depends on them, which the loss reads"
        )
    pairs = zip(axes.spread(few), axes.spread(more), strict=True)
    ends = [(a[[-1, 0]].detach(), b[[0, -1]].detach()) for a, b in pairs]
    # A net may leave out what is padding in all of a batch: few samples may have less of it.
    rooms = [tuple(map(slice, map(min, a.shape, b.shape))) for a, b in ends]
    if not any(moved(a[room], b[room]) for (a, b), room in zip(ends, rooms, strict=True)):
        return ""
    return (
        "net: its samples know each other, outputs depend on the other samples of a batch "
        "(BatchNorm without running statistics and centring do that)"
    )


def check_numbers(output: Any, *, whole: bool = False) -> Tensor:
    """The first floating-point tensor of an output, whole or in parts; a ValueError without one."""
    if not whole and (found := _distribution(output)):
        raise ValueError(
            f"net: gives {type(found).__name__}, a distribution, which cannot be split into "
            "samples; give its parameters, and make it in the loss"
        )
    floating = [tensor for tensor in tensors_of(output) if tensor.is_floating_point()]
    for tensor in floating:
        if tensor.numel():
            return tensor
    shapes = ", ".join(f"of shape {tuple(tensor.shape)}" for tensor in floating)
    raise ValueError(
        f"net: gives {type(output).__name__} {shapes or 'without floating-point tensors'}, "
        "needs at least one floating-point number"
    )


def _distribution(output: Any) -> Distribution | None:
    """The first distribution of torch in a nest of outputs."""
    if isinstance(output, Distribution):
        return output
    nest = isinstance(output, (tuple, list, Mapping))
    parts = output.values() if isinstance(output, Mapping) else output if nest else ()
    return next(filter(None, map(_distribution, parts)), None)


@contextmanager
def naming_loss(loss: Loss, advice: str = "") -> Iterator[None]:
    """Make errors of a loss a ValueError that names it."""
    try:
        yield
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        if is_out_of_memory(error) or isinstance(error, NoWeighting):
            raise
        raise ValueError(
            f"loss: {loss.name} does not take the net's outputs and these targets: {error}{advice}"
        ) from error
