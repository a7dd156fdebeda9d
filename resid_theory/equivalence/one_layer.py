"""One layer that computes what a piece of a net computes.

An affine map that commutes with shifts is a convolution with its impulse response, so only the
windows of its parts have to be known: parallel branches, BatchNorm, pooling, scales and identities
become one kernel. A map that treats borders otherwise is not one; a comparison there shows it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from resid_theory.equivalence.affine_layer import (
    AffineLayer,
    Window,
    behind,
    grouped,
    identity_layer,
    sum_of_layers,
)
from resid_theory.equivalence.conversion import bias_of, effective
from resid_theory.equivalence.net_graph import WINDOWED, NetGraph, NotOneLayer
from resid_theory.identity import AddIdentity, identity_of

_GEOMETRY = ("stride", "padding", "dilation", "groups")
_EXACT = 1e-9
"""Gap in float64, relative, above which two maps are not the same."""


@torch.no_grad()
def layer_between(
    graph: NetGraph, first: fx.Node, last: fx.Node, like: AffineLayer | None = None
) -> AffineLayer:
    """The layer that computes a node, an affine function of another, from that one."""
    piece = _Piece(graph, first, last, like)
    more, rests, failed = 0, 1, 0
    source = torch.Generator().manual_seed(0)
    while more < rests:  # strides leave different rests of a size, matrices read tokens, too
        try:
            layer = piece.layer(last)
            if layer.weight.is_meta:  # which has no values to compare
                return layer
            rests = max(layer.stride, default=2)
            steps = zip(layer.weight.shape[2:], layer.dilation, layer.stride, strict=True)
            side = [size * wide + 2 * step + more for size, wide, step in steps]
            sizes = (layer.inputs, *side) if side else (*[1] * more, layer.inputs)
            x = torch.randn(3, *sizes, generator=source, dtype=torch.float64)
            x = x.to(layer.weight.device)
            found, exact = layer(x), graph.run(last, {first: x})
        except NotOneLayer:
            raise
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            failed += 1
            if failed == rests:
                words = str(error).partition("\n")[0]
                raise NotOneLayer(f"its parts do not run alone: {words}") from error
        else:
            if found.shape != exact.shape:
                size = tuple(exact.shape[2:])
                raise NotOneLayer(f"no padding of one convolution gives its size {size}")
            if float((found - exact).abs().max()) > _EXACT * float(exact.abs().max()):
                raise NotOneLayer(
                    "it treats borders unlike a convolution, as a bias in front of a padding"
                    if side else "its function depends on sizes"
                )  # fmt: skip
        more += 1
    return grouped(layer, piece.groups)


class _Piece:
    """Layers of the nodes between two nodes."""

    def __init__(
        self, graph: NetGraph, first: fx.Node, last: fx.Node, like: AffineLayer | None
    ) -> None:
        self.graph, self.first = graph, first
        self.groups: set[int] = set()
        inside, waiting = {last}, [last]
        while waiting:
            node = waiting.pop()
            if node is not first:
                waiting += [part for part in graph.inputs(node) if part not in inside]
                inside.update(waiting)
        self.own = {node: own for node in inside - {first} if (own := self._own(node)) is not None}
        readers = [own for node, own in self.own.items() if self._reads(node)]
        readers += [*filter(None, map(self._channelwise, inside - {first}))]
        self.like = like or next(iter(readers), None)
        if self.like is None:
            raise NotOneLayer("nothing says its number of channels")
        self._known: dict[fx.Node, AffineLayer] = {first: identity_layer(self.like)}

    def _reads(self, node: fx.Node) -> bool:
        """True if only nodes that keep channels lie between the first node and this one."""
        while node is not self.first:
            (node,) = self.graph.inputs(node)
            if node is not self.first and (node in self.own or self.graph.kinds[node] == "sum"):
                return False
        return True

    def _channelwise(self, node: fx.Node) -> AffineLayer | None:
        """A layer with the channels of a BatchNorm that reads the first node."""
        word = self.graph.word(node)
        if not word.lower().startswith("batch") or not self._reads(node):
            return None
        if word == "batch_norm":
            kinds = self.graph.kinds
            fixed = (part for part in node.all_input_nodes if kinds[part] == "constant")
            mean = self.graph.run(next(fixed))
        else:
            mean = self.graph.layer(node).get_buffer("running_mean")
        return AffineLayer(weight=mean[None], bias=mean, stride=self._stride(node))

    def _stride(self, node: fx.Node) -> tuple[int, ...]:
        """That of the nearest layer before or behind a node, where nothing reshapes between."""
        near = [node]
        for each in near:
            if (own := self._own(each)) is not None:
                return own.stride
            beside = [*self.graph.inputs(each), *each.users]
            near += [n for n in beside if n not in near and self.graph.kinds[n] != "other"]
        return ()

    def layer(self, node: fx.Node) -> AffineLayer:
        """The layer from the first node to this one."""
        if node not in self._known:
            self._known[node] = self._made(node)
        return self._known[node]

    def _made(self, node: fx.Node) -> AffineLayer:
        inner = [self.layer(part) for part in self.graph.inputs(node)]
        word = self.graph.word(node)
        if self.graph.kinds[node] == "sum":
            return sum_of_layers(inner)
        (below,) = inner
        if self.graph.kinds[node] == "same":
            return below
        if node in self.own:
            if below is self._known[self.first]:
                return self.own[node]
            return behind(below, self.own[node], self.own[node])
        if word.startswith(WINDOWED):
            axes = len(below.stride)
            return behind(below, self._operation(node), _geometry(self.graph, node, axes))
        return self._scaled(node, below)

    def _operation(self, node: fx.Node) -> Callable[[Tensor], Tensor]:
        (before,) = self.graph.inputs(node)
        return lambda x: self.graph.run(node, {before: x})

    def _scaled(self, node: fx.Node, inner: AffineLayer) -> AffineLayer:
        """A layer behind which every channel is scaled and shifted."""
        operation, rows = self._operation(node), (-1, *[1] * (inner.weight.dim() - 1))
        at = [operation(inner.bias.new_full((1, len(inner.bias), *rows[2:]), value))
              for value in (0.0, 1.0)]  # fmt: skip
        if at[0].numel() != len(inner.bias):
            raise NotOneLayer(f"{self.graph.word(node)} is not one map for all positions")
        scale = (at[1] - at[0]).flatten()
        weight = inner.weight * scale.view(rows)
        return replace(inner, weight=weight, bias=inner.bias * scale + at[0].flatten())

    def _own(self, node: fx.Node) -> AffineLayer | None:
        """The layer that an operation with weights is."""
        graph, word = self.graph, self.graph.word(node)
        if graph.kinds[node] != "affine":
            return None
        weight: Any
        mode = "zeros"
        if word == "AddIdentity" or word.startswith(("Linear", "Conv")):
            module = graph.layer(node)
            layer = getattr(module, "layer", module)
            weight = effective(layer, str(node.target)).double()
            if isinstance(module, AddIdentity):
                weight = weight + identity_of(layer, module.rule)
            bias = bias_of(layer)
            geometry = {name: getattr(layer, name, None) for name in _GEOMETRY}
            mode = str(getattr(layer, "padding_mode", mode))
        elif word in ("linear", "conv1d", "conv2d", "conv3d", "matmul", "mm"):
            names = ("weight", "bias", *_GEOMETRY)
            given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
            value: dict[str, Any] = {
                name: graph.run(part) if isinstance(part, fx.Node) else part
                for name, part in given.items() if name != "input"
            }  # fmt: skip
            (weight,) = (value[w] for w in ("weight", "other", "mat2") if w in value)
            bias = value.get("bias")
            if weight.dim() < 2:
                return None
            weight = weight.mT if word in ("matmul", "mm") else weight
            geometry = {name: value.get(name) for name in _GEOMETRY}
        else:
            return None
        axes = weight.dim() - 2
        side = tuple(weight.shape[2:])
        stride = _each(geometry["stride"] or 1, axes)
        dilation = _each(geometry["dilation"] or 1, axes)
        padding = geometry["padding"] or 0
        if isinstance(padding, str):
            whole = [d * (k - 1) for d, k in zip(dilation, side, strict=True)]
            if padding == "same" and any(each % 2 for each in whole):
                raise NotOneLayer("its padding is not symmetric")
            padding = tuple(each // 2 for each in whole) if padding == "same" else 0
        groups = geometry["groups"] or 1
        self.groups.add(groups)
        weight = weight.double()
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
        return AffineLayer(weight=weight, bias=bias, stride=stride, padding=_each(padding, axes),
                           dilation=dilation, groups=groups, padding_mode=mode)  # fmt: skip


def _each(value: Any, axes: int) -> tuple[int, ...]:
    parts = (value,) if isinstance(value, int) else tuple(value)
    return parts * axes if len(parts) == 1 else parts


def _geometry(graph: NetGraph, node: fx.Node, axes: int) -> Window:
    """The window of an operation without weights."""
    word, ones = graph.word(node), (1,) * axes
    side, stride, padding = ones, ones, (0,) * axes
    if word == "getitem":
        index: Any = node.args[1]
        steps = [part.step or 1 for part in index]
        stride = tuple([*steps[2:], *ones][:axes])
    elif word == "IdentityShortcut":
        stride = _each(graph.layer(node).stride, axes)
    elif word == "pad":
        first = graph.option(node, 1, "pad")[::2]  # along each axis from the last one, as behind it
        if graph.option(node, 2, "mode", "constant") != "constant" or graph.option(
            node, 3, "value"
        ):
            raise NotOneLayer("its padding is not by zeros")
        padding = tuple(reversed([*first, *padding][:axes]))
    else:
        source = vars(graph.layer(node)) if node.op == "call_module" else {}
        names = ("kernel_size", "stride", "padding")
        found = [source[name] if source else graph.option(node, n, name)
                 for n, name in enumerate(names, 1)]  # fmt: skip
        side = _each(found[0], axes)
        stride, padding = _each(found[1] or side, axes), _each(found[2] or 0, axes)
    return Window.of(side, stride, padding, ones)
