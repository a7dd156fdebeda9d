"""Matrices and convolutions as values: their windows, sums and compositions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory.equivalence.net_graph import NotOneLayer
from resid_theory.initializations import undrawn


@dataclass(frozen=True, kw_only=True, eq=False)
class AffineLayer:
    """A matrix or a convolution with its bias, float64."""

    weight: Tensor  # (out, in / groups, *kernel)
    bias: Tensor  # (out,)
    stride: tuple[int, ...] = ()  # along each axis; empty for a matrix on the last axis
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"

    @property
    def inputs(self) -> int:
        """Channels that it reads."""
        return self.weight.shape[1] * self.groups

    @property
    def dense(self) -> "AffineLayer":
        """The same without groups."""
        if self.groups == 1:
            return self
        rows = len(self.weight) // self.groups
        whole = self.weight.new_zeros(len(self.weight), self.inputs, *self.weight.shape[2:])
        for group in range(self.groups):
            part = slice(group * rows, group * rows + rows)
            columns = self.weight.shape[1]
            whole[part, group * columns : (group + 1) * columns] = self.weight[part]
        return replace(self, weight=whole, groups=1)

    @property
    def is_matrix(self) -> bool:
        """True for a matrix, and for a convolution with one tap, stride 1 and no padding."""
        return {*self.weight.shape[2:], *self.stride} <= {1} and not any(self.padding)

    @property
    def window(self) -> "Window":
        """Positions that it reads."""
        return Window.of(self.weight.shape[2:], self.stride, self.padding, self.dilation)

    @property
    def undilated(self) -> "AffineLayer":
        """The same with the holes of its kernel filled with zeros."""
        steps = zip(self.weight.shape[2:], self.dilation, strict=True)
        weight = self.weight.new_zeros(*self.weight.shape[:2], *((k - 1) * d + 1 for k, d in steps))
        holes = [slice(None, None, d) for d in self.dilation]
        weight[(slice(None), slice(None), *holes)] = self.weight
        return replace(self, weight=weight, dilation=(1,) * len(holes))

    def tap(self, matrix: Tensor) -> Tensor:
        """A matrix (out, in) at the tap over an output's own position."""
        kernel = matrix.new_zeros(*matrix.shape, *self.weight.shape[2:])
        taps: list[Any] = [slice(None), slice(None)]
        for side, pad, step in zip(self.weight.shape[2:], self.padding, self.dilation, strict=True):
            tap, rest = divmod(pad, step)
            if rest or tap >= side:
                raise NotOneLayer("its convolution has no tap at the output's own position")
            taps.append(tap)
        kernel[tuple(taps)] = matrix
        return kernel

    def module(self, like: Tensor) -> nn.Module:
        """The layer of torch, with dtype and device of another tensor."""
        options: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        kind, sides = nn.Linear, []
        if self.stride:
            kind, sides = getattr(nn, f"Conv{len(self.stride)}d"), [tuple(self.weight.shape[2:])]
            options |= {"stride": self.stride, "padding": self.padding, "groups": self.groups,
                        "dilation": self.dilation, "padding_mode": self.padding_mode}  # fmt: skip
        layer: nn.Module = undrawn(kind, self.inputs, len(self.weight), *sides, **options)
        with torch.no_grad():
            layer.get_parameter("weight").copy_(self.weight)
            layer.get_parameter("bias").copy_(self.bias)
        return layer

    def __call__(self, x: Tensor) -> Tensor:
        """Map (batch, in, *spatial), or (..., in) for a matrix."""
        if not self.stride:
            return nn.functional.linear(x, self.weight, self.bias)
        padding = self.padding
        if self.padding_mode != "zeros":
            room = [pad for pad in reversed(padding) for _ in range(2)]
            x, padding = nn.functional.pad(x, room, self.padding_mode), (0,) * len(padding)
        geometry = self.stride, padding, self.dilation, self.groups
        convolve: Callable[..., Tensor] = getattr(nn.functional, f"conv{len(self.stride)}d")
        return convolve(x, self.weight, self.bias, *geometry)


def identity_layer(like: AffineLayer) -> AffineLayer:
    """The identity on what another layer reads."""
    axes = len(like.stride)
    eye = torch.eye(like.inputs, dtype=torch.float64, device=like.weight.device)
    return AffineLayer(
        weight=eye.view(*eye.shape, *[1] * axes), bias=eye.new_zeros(len(eye)), stride=(1,) * axes,
        padding=(0,) * axes, dilation=(1,) * axes,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Window:
    """Positions o * stride + low … o * stride + high that output o reads, along each axis."""

    stride: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]

    @classmethod
    def of(
        cls, side: Sequence[int], stride: Sequence[int], padding: Sequence[int],
        dilation: Sequence[int],
    ) -> "Window":  # fmt: skip
        """From the words of a convolution."""
        high = tuple((k - 1) * d - p for k, d, p in zip(side, dilation, padding, strict=True))
        return cls(stride=tuple(stride), low=tuple(-p for p in padding), high=high)

    def then(self, later: "Window") -> "Window":
        """The window of another one behind it."""
        steps = self.stride
        low, high = (
            tuple(o + s * e for o, s, e in zip(own, steps, edge, strict=True))
            for own, edge in ((self.low, later.low), (self.high, later.high))
        )
        stride = tuple(s * t for s, t in zip(steps, later.stride, strict=True))
        return Window(stride=stride, low=low, high=high)

    def layer(self, weight: Tensor, bias: Tensor) -> AffineLayer:
        """A convolution with this window."""
        axes = len(self.stride)
        return AffineLayer(weight=weight, bias=bias, stride=self.stride, dilation=(1,) * axes,
                           padding=tuple(-low for low in self.low))  # fmt: skip


def behind(
    inner: AffineLayer, operation: Callable[[Tensor], Tensor], own: AffineLayer | Window
) -> AffineLayer:
    """An operation behind a layer."""
    if isinstance(own, AffineLayer):
        if len(own.stride) != len(inner.stride):
            raise NotOneLayer("a matrix and a convolution follow each other")
        if own.is_matrix:
            inner, matrix = inner.dense, own.dense.weight.flatten(1)
            weight = torch.einsum("om,mi...->oi...", matrix, inner.weight)
            return replace(inner, weight=weight, bias=matrix @ inner.bias + own.bias)
        own = own.window
    window = inner.window.then(own)
    if any(low > 0 for low in window.low):
        raise NotOneLayer("it crops its input")
    at: list[Any] = [-(low // s) for low, s in zip(window.low, window.stride, strict=True)]
    ends = [s * o + high for s, o, high in zip(window.stride, at, window.high, strict=True)]
    x = inner.bias.new_zeros(1, inner.inputs, *[end + 1 for end in ends])
    bias = operation(inner(x))[(0, slice(None), *at)]
    many = x.expand(len(bias), *x.shape[1:]).requires_grad_()  # a row of the kernel of each
    with torch.enable_grad():
        out = operation(inner(many))[(slice(None), slice(None), *at)]
        (rows,) = torch.autograd.grad(out.diagonal().sum(), many)
    edges = zip(window.stride, at, window.low, strict=True)
    sides = [slice(s * o + low, None) for s, o, low in edges]
    kernel = rows[(slice(None), slice(None), *sides)].contiguous()
    return window.layer(kernel, bias)


def sum_of_layers(layers: Sequence[AffineLayer]) -> AffineLayer:
    """The sum of layers that read the same."""
    if len({(layer.stride, len(layer.bias)) for layer in layers}) > 1:
        raise NotOneLayer("its branches have different strides or channels")
    modes = {layer.padding_mode for layer in layers if any(layer.padding)} or {"zeros"}
    if len(modes) > 1:
        raise NotOneLayer(f"its branches have paddings by {' and by '.join(sorted(modes))}")
    shapes = {(layer.weight.shape[2:], layer.padding, layer.dilation) for layer in layers}
    if len(shapes) > 1:
        layers = [layer.dense.undilated for layer in layers]
    elif len({layer.groups for layer in layers}) > 1:
        layers = [layer.dense for layer in layers]
    bias = torch.stack([layer.bias for layer in layers]).sum(0)
    windows = [layer.window for layer in layers]
    low = tuple(map(min, zip(*(window.low for window in windows), strict=True)))
    high = tuple(map(max, zip(*(window.high for window in windows), strict=True)))
    if all((window.low, window.high) == (low, high) for window in windows):
        weight = torch.stack([layer.weight for layer in layers]).sum(0)
        return replace(layers[0], weight=weight, bias=bias, padding_mode=modes.pop())
    kernels = []
    for layer, window in zip(layers, windows, strict=True):
        edges = zip(window.low, low, high, window.high, strict=True)
        room = [n for a, start, end, b in reversed([*edges]) for n in (a - start, end - b)]
        kernels.append(nn.functional.pad(layer.weight, room))
    whole = Window(stride=layers[0].stride, low=low, high=high)
    summed = whole.layer(torch.stack(kernels).sum(0), bias)
    return replace(summed, padding_mode=modes.pop())


def grouped(layer: AffineLayer, groups: set[int]) -> AffineLayer:
    """The same with as many groups as the zeros of its weight allow."""
    for count in sorted(groups, reverse=True):
        if layer.groups != 1 or layer.inputs % count or len(layer.bias) % count:
            continue
        rows, columns = len(layer.bias) // count, layer.inputs // count
        parts = layer.weight.unflatten(0, (count, rows)).unflatten(2, (count, columns))
        own = torch.stack([parts[n, :, n] for n in range(count)])
        if torch.equal(own.count_nonzero(), layer.weight.count_nonzero()):
            return replace(layer, weight=own.flatten(0, 1), groups=count)
    return layer
