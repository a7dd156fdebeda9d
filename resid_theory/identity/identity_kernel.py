"""ID entries and the kernel of the identity."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resid_theory._check import check_choice

RULES = ("repeat", "truncate")

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def id_entries(
    shape: Sequence[int],
    *,
    rule: str = "repeat",
    padding: int | str | Sequence[int] = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> tuple[Tensor, ...]:
    """Positions of the ones in an identity kernel.

    ``weight[id_entries(weight.shape)]`` are the ID entries. The tap is padding / dilation, which
    makes the convolution with these entries alone the map ``x[..., ::stride]``, for any stride,
    cropped or padded to the layer's output. With groups, the identity stays inside each group.

    Args:
        shape: Of the weight, (out, in / groups, *kernel); a matrix has no kernel axes.
        rule: ``"repeat"``: output o reads input o mod c_in, so every output has one entry.
            ``"truncate"``: the first min(c_in, c_out) outputs have one, as ``nn.init.dirac_``.
        padding: Of the convolution, for all axes or each, or torch's ``"same"`` and ``"valid"``.
        dilation: Of the convolution, for all axes or each.
        groups: Of the convolution.

    Returns:
        One index, (entries,), int64, for each axis of the weight.

    Raises:
        ValueError: If the rule is unknown, the kernel has an even side, the padding puts the tap
            off the grid, or the channels do not divide.

    Source:
        Yu & Tomasi, arXiv:1905.10944, section 3 (square kernels) and Appendix D.3 (``"repeat"``);
        Zagoruyko & Komodakis, arXiv:1706.00388v2, eq. (2) and its code (``"truncate"``).

    Example:
        >>> [index.tolist() for index in id_entries((4, 2, 3))]
        [[0, 1, 2, 3], [0, 1, 0, 1], [1, 1, 1, 1]]
    """
    check_choice("rule", rule, RULES)
    if len(shape) < 2:
        raise ValueError(f"shape: got {tuple(shape)}, needs (out, in, *kernel)")
    outputs, inputs = _channels(shape, rule, groups)
    taps = [
        torch.full_like(outputs, _tap(side, pad, step))
        for side, pad, step in zip(
            shape[2:],
            per_axis("padding", padding, len(shape) - 2),
            per_axis("dilation", dilation, len(shape) - 2),
            strict=True,
        )
    ]
    return outputs, inputs, *taps


def _channels(shape: Sequence[int], rule: str, groups: int) -> tuple[Tensor, Tensor]:
    rows, columns = shape[0] // groups, shape[1]
    if shape[0] % groups:
        raise ValueError(f"groups: got {groups}, which does not divide {shape[0]} outputs")
    if rule == "repeat" and rows % columns:
        each = f" in each of {groups} groups" if groups > 1 else ""
        raise ValueError(
            f"shape: got {rows} outputs for {columns} inputs{each}; rule='repeat' needs outputs "
            "that are a multiple of the inputs, rule='truncate' takes any"
        )
    kept = rows if rule == "repeat" else min(rows, columns)
    outputs = [group * rows + local for group in range(groups) for local in range(kept)]
    inputs = [o % rows % columns for o in outputs]
    # On the CPU whatever the default device: "meta" has no positions.
    return torch.tensor(outputs, device="cpu"), torch.tensor(inputs, device="cpu")


def per_axis(argument: str, given: Any, axes: int) -> list[Any]:
    """One value for each axis, from one for all or a sequence; ValueError if the count differs."""
    if isinstance(given, (int, str)):
        return [given] * axes
    if len(given) != axes:
        raise ValueError(f"{argument}: got {tuple(given)}, needs a number for each of {axes} axes")
    return list(given)


def _tap(side: int, padding: int | str, dilation: int) -> int:
    """The kernel's tap over the output's own position, along one axis."""
    if side % 2 == 0:
        raise ValueError(
            f"shape: got a kernel side of {side}, which has no centre; the identity needs odd sides"
        )
    if isinstance(padding, str):
        return side // 2 if check_choice("padding", padding, ("same", "valid")) == "same" else 0
    tap, off_grid = divmod(padding, dilation)
    if off_grid or not 0 <= tap < side:
        raise ValueError(
            f"padding: got {padding} for a kernel side of {side} with dilation {dilation}, which "
            "has no tap at the output's own position; the identity needs a multiple of the "
            f"dilation below {side * dilation}, as padding={side // 2 * dilation}"
        )
    return tap


def identity_kernel(
    shape: Sequence[int],
    *,
    rule: str = "repeat",
    padding: int | str | Sequence[int] = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The kernel I whose convolution is the identity shortcut.

    Args:
        shape: Of the weight, (out, in / groups, *kernel).
        rule: ``"repeat"`` or ``"truncate"``, see :func:`id_entries`.
        padding: Of the convolution.
        dilation: Of the convolution.
        groups: Of the convolution.
        dtype: Of the result; torch's default if None.
        device: Of the result.

    Returns:
        Zeros and ones of that shape.

    Raises:
        ValueError: If there is no such kernel, see :func:`id_entries`.

    Example:
        >>> identity_kernel((3, 3)).trace().item()
        3.0
    """
    entries = id_entries(shape, rule=rule, padding=padding, dilation=dilation, groups=groups)
    kernel = torch.zeros(*shape, dtype=dtype, device="cpu")
    kernel[entries] = 1
    return kernel.to(device or torch.get_default_device())


def identity_of(layer: nn.Module, rule: str = "repeat") -> Tensor:
    """The identity kernel of a layer, from its own padding, dilation and groups.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d``, ``2d``, ``3d``, of any stride.
        rule: ``"repeat"`` or ``"truncate"``, see :func:`id_entries`.

    Returns:
        Zeros and ones; shape, dtype and device of the layer's weight.

    Raises:
        ValueError: If the layer is of another type or has no identity kernel.
    """
    weight = checked_layer(layer).weight
    geometry = {}
    if not isinstance(layer, nn.Linear):
        geometry = {key: getattr(layer, key) for key in ("padding", "dilation", "groups")}
    return identity_kernel(
        weight.shape, rule=rule, dtype=weight.dtype, device=weight.device, **geometry
    )


def checked_layer(layer: nn.Module) -> Layer:
    """Return a layer that may have an identity; ValueError for other and for lazy layers."""
    if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise ValueError(
            f"layer: got {type(layer).__name__}, needs nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d"
        )
    if isinstance(layer._parameters.get("weight"), nn.parameter.UninitializedParameter):
        raise ValueError("layer: got a lazy layer without a shape; call it once first")
    return layer


def identity_map(
    x: Tensor, channels: int, *, stride: int | Sequence[int] = 1, rule: str = "repeat"
) -> Tensor:
    """The identity shortcut Id(x), without a kernel: subsample, then repeat or truncate channels.

    Args:
        x: (batch, c_in, *spatial).
        channels: Output channels c_out.
        stride: Keeps every stride-th position, along all axes or each.
        rule: ``"repeat"``: the channels again and again; ``"truncate"``: zeros beyond c_in, or the
            first c_out channels (He et al.'s option A).

    Returns:
        (batch, channels, *spatial / stride, rounded up).

    Raises:
        ValueError: If the rule is unknown or the channels do not divide.

    Source:
        Yu & Tomasi, arXiv:1905.10944, Appendix D.3; He et al., arXiv:1512.03385, section 3.3.

    Example:
        >>> identity_map(torch.tensor([[[1.0, 2.0, 3.0]]]), 2, stride=2).tolist()
        [[[1.0, 3.0], [1.0, 3.0]]]
    """
    check_choice("rule", rule, RULES)
    steps = [slice(None, None, step) for step in per_axis("stride", stride, x.dim() - 2)]
    x = x[(slice(None), slice(None), *steps)]
    inputs = x.shape[1]
    if rule == "truncate":  # a negative padding cuts
        return F.pad(x, (0, 0) * (x.dim() - 2) + (0, channels - inputs))
    if channels % inputs:
        raise ValueError(
            f"channels: got {channels} for {inputs} inputs; rule='repeat' needs a multiple"
        )
    return x if channels == inputs else torch.cat([x] * (channels // inputs), dim=1)


def mark(layer: nn.Module, rule: str) -> nn.Module:
    """Record on a layer the rule of its identity, which copies and slices keep.

    Args:
        layer: Any module.
        rule: A name of :data:`RULES`.

    Returns:
        The same layer.

    Raises:
        ValueError: If the rule is unknown.
    """
    layer.__dict__["id_rule"] = check_choice("rule", rule, RULES)
    return layer
