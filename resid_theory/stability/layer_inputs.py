"""Calls of linear maps during a forward pass, with the axis along which the samples lie."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from resid_theory.stability.linear_maps import LinearMap
from resid_theory.stability.net_inputs import three

__all__ = ["Call", "Layout", "Report", "layouts", "listening"]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a linear map: the map and the how-manieth call it is in a forward pass."""

    linear: LinearMap
    number: int

    @property
    def key(self) -> tuple[str, int]:
        """What names the call."""
        return self.linear.name, self.number


Report = Callable[[Call, Tensor, Tensor | None], None]
"""Takes a call, its input and its output with bias (None where nobody has computed it)."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the samples lie in a layer's input.

    Attributes:
        axis: The axis whose length follows the batch.
        sample_major: Where that axis holds several rows a sample, whether a sample's rows are
            neighbours, as after ``x.flatten(0, 1)`` of (batch, tokens, features).
    """

    axis: int = 0
    sample_major: bool = True

    def rows(self, x: Tensor, samples: int) -> Tensor:
        """All entries of each sample as one row.

        Args:
            x: An input or output of the layer.
            samples: Number of samples b.

        Returns:
            (b, entries).
        """
        if self.axis:
            x = x.movedim(self.axis, 0)
        if not self.sample_major:
            x = x.unflatten(0, (-1, samples)).transpose(0, 1)
        return x.reshape(samples, -1)


@contextmanager
def listening(maps: Sequence[LinearMap], report: Report) -> Iterator[dict[tuple[str, int], Call]]:
    """Report every call of the maps' modules; nothing is changed or kept.

    Attention runs without its fused path inside, because that one calls no hook.

    Args:
        maps: The linear maps.
        report: Called at once, before anything that works in place can overwrite the output.

    Yields:
        The calls so far; clear it before every forward pass.
    """
    seen: dict[tuple[str, int], Call] = {}
    roles: dict[nn.Module, list[LinearMap]] = {}
    for linear in maps:
        roles.setdefault(linear.module, []).append(linear)
    handles = [
        module.register_forward_hook(
            _hook(module, group, seen, report), prepend=True, with_kwargs=True
        )
        for module, group in roles.items()
    ]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield seen
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()


def _hook(
    module: nn.Module,
    group: list[LinearMap],
    seen: dict[tuple[str, int], Call],
    report: Report,
) -> Callable[..., None]:
    inside = False

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal inside
        if inside:  # the call that finds out the input of out_proj
            return
        inside = True
        try:
            for linear in group:
                number = 1
                while (linear.name, number) in seen:
                    number += 1
                call = Call(linear=linear, number=number)
                seen[call.key] = call
                report(call, *_operands(linear, module, args, kwargs, output))
        finally:
            inside = False

    return hook


def _operands(
    linear: LinearMap, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> tuple[Tensor, Tensor | None]:
    """Input and output of one map in a call of its module."""
    if not linear.role:
        x = args[0] if args else next(iter(kwargs.values()))
        return x, output
    if linear.role == "out_proj":
        return _attended(module, args, kwargs), output[0]
    position = ("q_proj", "k_proj", "v_proj").index(linear.role)
    if position < len(args):
        return args[position], None
    return kwargs[("query", "key", "value")[position]], None


def _attended(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What attention hands to its last projection: its output when that one is the identity."""
    assert isinstance(module, nn.MultiheadAttention)
    weight = module.out_proj.weight
    identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    names = [n for n, _ in module.named_parameters() if n.startswith("out_proj.")]
    swapped = {"out_proj.weight": identity} | {
        name: torch.zeros_like(module.get_parameter(name)) for name in names if "bias" in name
    }
    attended = functional_call(module, swapped, args, kwargs)[0]
    assert isinstance(attended, Tensor)
    return attended


def layouts(
    net: nn.Module, maps: Sequence[LinearMap], x: Tensor
) -> tuple[dict[tuple[str, int], Layout], dict[str, str]]:
    """Find the sample axis of every call, by a run on two samples and one on three.

    Args:
        net: The net, in eval mode.
        maps: Its linear maps.
        x: A few inputs.

    Returns:
        Layouts by call, and for maps without one the reason.
    """
    runs = []
    for count in (2, 3):
        inputs: dict[tuple[str, int], Tensor] = {}
        with listening(maps, lambda call, x, _: inputs.update({call.key: x.clone()})):  # noqa: B023
            net(three(x)[:count])
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
        elif set(keys) != {key for key in runs[1] if key[0] == linear.name}:
            reasons[linear.name] = "is called more or less often, depending on the samples"
        else:
            for key in keys:
                layout = _layout(runs[0][key], runs[1][key], linear.is_convolution)
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
            "noise, or a net that wants the samples along another axis than the first",
            stacklevel=3,
        )
    return {key: layout for key, layout in found.items() if key[0] not in reasons}, reasons


def _layout(two: Tensor, three: Tensor, is_convolution: bool) -> Layout | str:
    shapes = f"{tuple(two.shape)} for two samples and {tuple(three.shape)} for three"
    grown = [a for a in range(two.dim()) if two.shape[a] != three.shape[a]]
    if not grown:
        return f"its input has the shape {tuple(two.shape)} for any number of samples"
    axis = grown[0]
    if len(grown) > 1 or 3 * two.shape[axis] != 2 * three.shape[axis]:
        return f"its input has no axis of samples: {shapes}"
    if axis and (is_convolution or axis == two.dim() - 1):
        return f"its input has the samples along axis {axis}, which the layer mixes: {shapes}"
    by_sample, by_row = (Layout(axis=axis, sample_major=major) for major in (True, False))
    if two.shape[axis] == 2 or _same_samples(by_sample, two, three):
        return by_sample
    if _same_samples(by_row, two, three):
        return by_row
    return f"its input has rows of which nobody knows the sample: {shapes}"


def _same_samples(layout: Layout, two: Tensor, three: Tensor) -> bool:
    """Whether the first two samples are the same in both runs, up to rounding."""
    short, long = layout.rows(two, 2), layout.rows(three, 3)[:2]
    tolerance = torch.finfo(short.dtype).eps ** 0.5 * float(short.abs().max())
    return not float((short - long).abs().max()) > tolerance  # nan is not a difference
