"""Calls of linear maps during a forward pass, with the axis along which the samples lie."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from resid_theory.data import Batch
from resid_theory.stability.linear_maps import LinearMap

__all__ = ["Call", "CallReport", "Layout", "call_hooks", "layouts"]


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
    """

    axis: int | None = 0
    sample_major: bool = True

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
def call_hooks(maps: Sequence[LinearMap], report: CallReport) -> Iterator[set[tuple[str, int]]]:
    """Report every call of the maps; yield the keys seen so far, to be cleared before each pass."""
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
        yield seen
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


def layouts(
    net: nn.Module, maps: Sequence[LinearMap], batch: Batch
) -> tuple[dict[tuple[str, int], Layout], dict[str, str]]:
    """Sample axis of every call, found by runs on two and three samples; reasons for the others."""
    runs = []
    for count, start in ((2, 0), (3, 0), (2, 1)):
        inputs: dict[tuple[str, int], Tensor] = {}
        with call_hooks(maps, lambda call, x, _: inputs.update({call.key: x.clone()})):  # noqa: B023
            batch.cycled(count, start).try_call(net)
        runs.append(inputs)
    found: dict[tuple[str, int], Layout] = {}
    reasons: dict[str, str] = {}
    coupled: list[str] = []
    for linear in maps:
        keys = [key for key in runs[0] if key[0] == linear.name]
        if not keys:
            reasons[linear.name] = (
                "was not called; a function such as F.linear may use its weight, where no hook "
                "fires, or the forward pass leaves it out"
            )
        elif any(set(keys) != {key for key in run if key[0] == linear.name} for run in runs[1:]):
            reasons[linear.name] = "the number of its calls depends on the samples"
        else:
            for key in keys:
                layout = _layout([run[key] for run in runs], linear)
                if isinstance(layout, Layout):
                    found[key] = layout
                    if not _same_samples(layout, runs[0][key], runs[1][key]):
                        coupled.append(linear.name)
                else:
                    reasons[linear.name] = layout
    if coupled:
        warnings.warn(
            f"the input of {coupled[0]!r} and {len(coupled) - 1} more layers for one sample "
            "depends on the other samples of its batch: BatchNorm without running statistics, "
            "noise, or a net that expects the samples along another axis than the first",
            stacklevel=3,
        )
    return {key: layout for key, layout in found.items() if key[0] not in reasons}, reasons


def _layout(runs: Sequence[Tensor], linear: LinearMap) -> Layout | str:
    """Layout of a call from its inputs in the runs, or the reason why it has none."""
    two, three, others = runs
    shapes = f"{tuple(two.shape)} for two samples and {tuple(three.shape)} for three"
    grown = [a for a in range(two.dim()) if two.shape[a] != three.shape[a]]
    if not grown:
        shared, single = Layout(axis=None), two.dim() < linear.weight.dim() > 2  # one image
        alike = not single and all(_same_samples(shared, two, run) for run in (three, others))
        odd = f"its input has the shape {tuple(two.shape)} for any number of samples"
        return shared if alike else f"{odd}, and other values"
    axis = grown[0]
    if len(grown) > 1 or 3 * two.shape[axis] != 2 * three.shape[axis]:
        return f"its input has no axis of samples: {shapes}"
    if axis and (linear.is_convolution or axis == two.dim() - 1):
        return f"its input has the samples along axis {axis}, which the layer mixes: {shapes}"
    by_sample, by_row = (Layout(axis=axis, sample_major=major) for major in (True, False))
    if two.shape[axis] == 2 or _same_samples(by_sample, two, three):
        return by_sample
    if _same_samples(by_row, two, three):
        return by_row
    return f"cannot tell which sample each row of its input belongs to: {shapes}"


def _same_samples(layout: Layout, two: Tensor, three: Tensor) -> bool:
    """True if the first two samples are the same in both runs, up to rounding."""
    short, long = layout.rows(two, 2), layout.rows(three, 3)[:2]
    tolerance = torch.finfo(short.dtype).eps ** 0.5 * float(short.abs().max())
    return not float((short - long).abs().max()) > tolerance  # nan is not a difference
