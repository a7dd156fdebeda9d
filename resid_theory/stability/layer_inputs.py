"""Calls of linear maps during a forward pass, with the axis along which the samples lie."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from resid_theory.data import Batch
from resid_theory.nested import tensors_of
from resid_theory.runtime.preserve import preserved
from resid_theory.stability.linear_maps import LinearMap

__all__ = ["ROUTED", "Call", "CallReport", "LayerLook", "Layout", "call_hooks", "looks_at"]

ROUTED = "the rows of its input are not those of the samples in turn, as those routed to experts"
"""Reason why a layer has no layout."""
_SINGLES = 8  # single samples that are looked at
_STEP = (
    2e-6  # relative change by 16 float32 roundings, which other sizes of a batch round otherwise
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a linear map, numbered from 1 within a forward pass."""

    linear: LinearMap
    number: int

    @property
    def key(self) -> tuple[str, int]:
        """Name of the map and number of the call."""
        return self.linear.name, self.number


CallReport = Callable[[Call, Tensor, Tensor | None], None]
"""Takes a call, its input, and its output with bias (None where it has not been computed)."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Position of the samples in a layer's input.

    Attributes:
        axis: Axis whose length is proportional to the number of samples; None for an input that all
            samples share.
        sample_major: Whether the rows of one sample are neighbours along that axis, as after
            ``x.flatten(0, 1)`` of (batch, tokens, features).
        each: Length of that axis for one sample.
    """

    axis: int | None = 0
    sample_major: bool = True
    each: int = 1

    def rows(self, x: Tensor, samples: int) -> Tensor:
        """All entries of each sample of an input or output as one row, (samples, entries)."""
        if self.axis is None:
            return x.reshape(1, -1).expand(samples, -1)
        if self.axis:
            x = x.movedim(self.axis, 0)
        if not self.sample_major:
            x = x.unflatten(0, (-1, samples)).transpose(0, 1)
        return x.reshape(samples, -1)


@contextmanager
def call_hooks(maps: Sequence[LinearMap], report: CallReport) -> Iterator[None]:
    """Report every call of the maps in one forward pass."""
    seen: set[tuple[str, int]] = set()
    by_module: dict[nn.Module, list[LinearMap]] = {}
    for linear in maps:
        by_module.setdefault(linear.module, []).append(linear)
    inside: set[nn.Module] = set()

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if module in inside:  # the call that finds out the input of out_proj
            return
        inside.add(module)
        try:
            for linear in by_module[module]:
                number = 1
                while (linear.name, number) in seen:
                    number += 1
                call = Call(linear=linear, number=number)
                seen.add(call.key)
                report(call, *_operands(linear, module, args, kwargs, output))
        finally:
            inside.discard(module)

    # First among the hooks: what works in place behind the layer must not overwrite the output.
    handles = [
        module.register_forward_hook(hook, prepend=True, with_kwargs=True) for module in by_module
    ]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused path of attention calls no hook
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()


def _operands(
    linear: LinearMap, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> tuple[Tensor, Tensor | None]:
    """Input and output of one map in a call of its module."""
    if not linear.role:
        return args[0] if args else next(iter(kwargs.values())), output
    if linear.role != "out_proj":
        position = ("q_proj", "k_proj", "v_proj").index(linear.role)
        if position < len(args):
            return args[position], None
        return kwargs[("query", "key", "value")[position]], None
    # The input of the last projection is what attention returns when that projection is I.
    assert isinstance(module, nn.MultiheadAttention)
    weight = module.out_proj.weight
    identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    names = [n for n, _ in module.named_parameters() if n.startswith("out_proj.")]
    swapped = {"out_proj.weight": identity} | {
        name: torch.zeros_like(module.get_parameter(name)) for name in names if "bias" in name
    }
    return functional_call(module, swapped, args, kwargs)[0], output[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerLook:
    """Calls of layers, as runs on a few samples show them.

    Attributes:
        layouts: Position of the samples in the input of every call.
        reasons: Reasons, by layer, of those without a layout.
        places: Numbers of the single samples that were looked at.
        singles: Their inputs of every call, (samples, entries), unless samples depend on others.
    """

    layouts: dict[tuple[str, int], Layout]
    reasons: dict[str, str]
    places: Tensor
    singles: dict[tuple[str, int], Tensor]

    def fits(self, key: tuple[str, int], x: Tensor, samples: int) -> bool:
        """True if an input has as many rows for each sample as those looked at."""
        layout = self.layouts[key]
        return layout.axis is None or x.shape[layout.axis] == layout.each * samples

    def agrees(self, key: tuple[str, int], rows: Tensor) -> bool:
        """True if the rows of the batch looked at have the single samples in their places."""
        alone = self.singles.get(key)
        return alone is None or _same(alone, rows[self.places.to(rows.device)])


def looks_at(
    net: nn.Module, maps: Sequence[LinearMap], batches: Iterable[Batch]
) -> Iterator[tuple[Batch, LayerLook]]:
    """Batches, each with a look at its layers; a new one where samples have a new shape."""
    look, known = None, None
    for batch in batches:
        shapes = [tensor.shape[1:] for tensor in tensors_of(batch.inputs)]
        if look is None or shapes != known:
            with preserved(net), torch.no_grad():  # in eval mode whatever the statistics
                look, known = _look(net, maps, batch), shapes
        yield batch, look


def _look(net: nn.Module, maps: Sequence[LinearMap], batch: Batch) -> LayerLook:
    """Find the samples in the input of every call, by runs on a few of them."""
    count = min(_SINGLES, batch.size)
    places = torch.arange(count) * batch.size // count
    # Each single sample twice: some nets take no batch of one.
    few = [batch.cycled(2), batch.cycled(3), *(batch.rows(place.repeat(2)) for place in places)]
    runs = []
    for some in few:
        inputs: dict[tuple[str, int], Tensor] = {}
        with call_hooks(maps, lambda call, x, _: inputs.update({call.key: x.clone()})):  # noqa: B023
            some.try_call(net)
        runs.append(inputs)
    found: dict[tuple[str, int], Layout] = {}
    reasons: dict[str, str] = {}
    singles: dict[tuple[str, int], Tensor] = {}
    for linear in maps:
        keys = [key for key in runs[0] if key[0] == linear.name]
        if any(set(keys) != {key for key in run if key[0] == linear.name} for run in runs[1:]):
            reasons[linear.name] = "the number of its calls depends on the samples"
        elif not keys:
            reasons[linear.name] = (
                "was not called; a function such as F.linear may use its weight, where no hook "
                "fires, or the forward pass leaves it out"
            )
        for key in keys if linear.name not in reasons else ():
            two, three, *others = (run[key] for run in runs)
            layout = _layout(two, three, others, linear)
            if isinstance(layout, str):
                reasons[linear.name] = layout
                continue
            found[key] = layout
            alone = torch.stack([layout.rows(x, 2)[0] for x in others])
            both, more = layout.rows(two, 2), layout.rows(three, 3)
            if _same(both, more[:2]) and _same(alone[:1], more[:1]):
                singles[key] = alone
    found = {key: layout for key, layout in found.items() if key[0] not in reasons}
    coupled = [key[0] for key in found if key not in singles]
    if coupled:
        warnings.warn(
            f"the input of {coupled[0]!r} and {len(coupled) - 1} more layers for one sample "
            "depends on the other samples of its batch: BatchNorm without running statistics, "
            "noise, or a net that expects the samples along another axis than the first",
            stacklevel=4,
        )
    return LayerLook(layouts=found, reasons=reasons, places=places, singles=singles)


def _layout(
    two: Tensor, three: Tensor, others: Sequence[Tensor], linear: LinearMap
) -> Layout | str:
    """Layout of a call from its inputs for two samples, three, and single ones twice each."""
    shapes = f"{tuple(two.shape)} for two samples and {tuple(three.shape)} for three"
    if two.numel() == 0 or any(x.shape != two.shape for x in others):
        return ROUTED
    grown = [a for a in range(two.dim()) if two.shape[a] != three.shape[a]]
    if not grown:
        shared, single = Layout(axis=None), two.dim() < linear.weight.dim() > 2  # one image
        alike = not single and all(_same(two[None], x[None]) for x in (three, *others))
        odd = f"its input has the shape {tuple(two.shape)} for any number of samples"
        return shared if alike else f"{odd}, and other values"
    axis = grown[0]
    each = two.shape[axis] // 2
    if len(grown) > 1 or two.shape[axis] != 2 * each:
        return f"its input has no axis of samples: {shapes}"
    if three.shape[axis] != 3 * each:
        return ROUTED
    if axis and (linear.is_convolution or axis == two.dim() - 1):
        return f"its input has the samples along axis {axis}, which the layer mixes: {shapes}"
    ways = [Layout(axis=axis, sample_major=major, each=each) for major in (True, False)]
    if each == 1:
        return ways[0]
    gaps = [_gap(way.rows(two, 2), way.rows(three, 3)[:2]) for way in ways]
    if not min(gaps) > 1:
        return ways[gaps.index(min(gaps))]
    return f"cannot tell which sample each row of its input belongs to: {shapes}"


def _same(one: Tensor, other: Tensor) -> bool:
    """True for equal numbers, up to rounding; nan is not a difference."""
    return not _gap(one, other) > 1


def _gap(one: Tensor, other: Tensor) -> float:
    """Largest difference in units of what rounding may make, also that of a step in float32."""
    scale = max(torch.finfo(one.dtype).eps ** 0.5, _STEP) * float(one.abs().max())
    gap = float((one - other).abs().max())
    return gap / scale if scale > 0 else (math.inf if gap > 0 else 0.0)
