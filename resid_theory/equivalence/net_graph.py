"""A net as one graph of operations, in which a shortcut is a path from a node to a sum.

Listing shortcuts and moving them into weights ask the same four things of a graph: where values
part and meet again (dominators), which pieces are affine, which are elementwise, and what a piece
computes (its nodes, run in float64).
"""

import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from resid_theory.runtime.net_state import copied

_AFFINE = {
    "Linear", "Conv1d", "Conv2d", "Conv3d", "AvgPool1d", "AvgPool2d", "AvgPool3d", "AddIdentity",
    "IdentityShortcut", "linear", "conv1d", "conv2d", "conv3d", "matmul", "mm", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "neg", "mul", "div", "truediv", "add", "sub", "rsub", "batch_norm",
    "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "pad",
}  # fmt: skip
LAYERS = {"Linear", "Conv1d", "Conv2d", "Conv3d", "linear", "conv1d", "conv2d", "conv3d", "matmul",
          "mm", "addmm", "AddIdentity", "MultiheadAttention", "Bilinear", "LSTM", "GRU", "RNN",
          "LSTMCell", "GRUCell", "RNNCell",
          *(f"{name}{n}d" for name in ("ConvTranspose", "conv_transpose") for n in (1, 2, 3)),
          }  # fmt: skip
_CASTS = {"to", "float", "double", "half", "bfloat16", "type_as", "_to_copy"}
RESHAPED = {"view", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "flatten", "expand",
            "getitem", "detach"}  # fmt: skip
WINDOWED = ("AvgPool", "avg_pool", "getitem", "pad", "IdentityShortcut")
SAME = {"Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "dropout",
         "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "contiguous",
         "clone", "alias", *_CASTS}  # fmt: skip
_SHAPES = {"shape", "size", "dim", "ndim", "device", "dtype", "len", "sym_size", "numel",
           "new_zeros", "zeros_like", "ones_like", "empty_like", "_guards_fn"}  # fmt: skip
_ELEMENTWISE = {
    "relu", "gelu", "silu", "leakyrelu", "tanh", "sigmoid", "elu", "selu", "celu", "softplus",
    "mish", "hardswish", "hardtanh", "relu6", "hardsigmoid", "softsign", "square", "pow", "erf",
    "sin", "cos", "exp", "abs", "clamp", "clampmin", "logsigmoid", "tanhshrink", "hardshrink",
    "softshrink", "threshold", "atan", "prelu",
}  # fmt: skip
_BOUNDED = {"tanh", "sigmoid", "hardtanh", "relu6", "hardsigmoid", "softsign", "sin", "cos", "erf",
            "atan", "softmax"}  # fmt: skip
_POLES = {"log", "log2", "log10", "log1p", "logit", "atanh", "arctanh", "erfinv", "tan",
          "reciprocal", "rsqrt", "div", "truediv"}  # fmt: skip
_ALIASES = {"multiply": "mul", "divide": "div", "true_divide": "div", "linalg_vector_norm": "norm",
            "linalg_norm": "norm", "linalg_matmul": "matmul"}  # fmt: skip
_KEPT = {"unsqueeze", "expand", *_CASTS}
_POWERS = {"rsqrt": -0.5, "sqrt": 0.5, "square": 2} | dict.fromkeys(
    ("norm", "mean", "sum", "add", *_KEPT), 1
)  # by which functions in a norm grow
_NORMS = {"layernorm", "groupnorm", "rmsnorm", "normalize", "instancenorm", "instancenorm1d",
          "instancenorm2d", "instancenorm3d", "nativelayernorm"}  # fmt: skip


class NotOneLayer(ValueError):
    """A piece of a graph that no single layer computes; its text says why."""


class NetGraph:
    """The graph of a module, without operations in place, and with differences as sums.

    ``kinds`` of its nodes: ``"input"``, ``"constant"``, ``"same"``, ``"affine"``,
    ``"elementwise"``, ``"sum"``, ``"product"``, ``"norm"`` or ``"other"``.
    """

    def __init__(self, module: fx.GraphModule, name: str = "") -> None:
        self.module, self.name = module, name
        self.refresh()

    def refresh(self) -> None:
        """Read the graph again after it was changed."""
        self._exact: dict[str, Any] = {}
        self._constants: dict[fx.Node, Any] = {}
        self._fixed: set[fx.Node] = set()  # the same at every call, sizes are not
        self.kinds: dict[fx.Node, str] = {}
        self.above: dict[fx.Node, int] = {}
        self.fork: dict[fx.Node, fx.Node | None] = {}
        self.bit = {node: 1 << n for n, node in enumerate(self.module.graph.nodes)}
        for node in self.bit:
            self.kinds[node] = self._kind(node)
            parts = self.inputs(node)
            if node.op != "placeholder" and self._fixed.issuperset(node.all_input_nodes):
                self._fixed.add(node)
            self.above[node] = self.bit[node]
            for part in parts:
                self.above[node] |= self.above[part]
            meet: set[fx.Node | None] = {*parts} or {None}
            while len(meet) > 1:
                latest = max(filter(None, meet))  # no fork of the others
                meet = meet - {latest} | {self.fork[latest]}
            (self.fork[node],) = meet

    @property
    def floats(self) -> list[Tensor]:
        """Floating-point parameters and buffers, which hold what functions are given, too."""
        held = itertools.chain(self.module.parameters(), self.module.buffers())
        return [tensor for tensor in held if tensor.is_floating_point()]

    @property
    def eps(self) -> float:
        """Relative rounding of the net's numbers."""
        return max(torch.finfo(tensor.dtype).eps for tensor in self.floats or [torch.ones(())])

    def inputs(self, node: fx.Node) -> list[fx.Node]:
        """The inputs of a node whose values come from the net's inputs."""
        return [part for part in node.all_input_nodes if self.kinds[part] != "constant"]

    def is_above(self, node: fx.Node, other: fx.Node) -> bool:
        """True if a value goes into another, or is it."""
        return bool(self.above[other] & self.bit[node])

    def between(self, first: fx.Node, last: fx.Node) -> list[fx.Node]:
        """Nodes behind the first on the way to the last, the last one included."""
        return [
            node
            for node in self.bit
            if node is not first and self.is_above(first, node) and self.is_above(node, last)
        ]

    def word(self, node: fx.Node) -> str:
        """A node's operation: the class of a layer of torch, or the name of a function."""
        if node.op == "call_module":
            kind = parametrize.type_before_parametrizations(self.layer(node))
            known = kind.__module__.startswith(("torch.nn", "resid_theory"))
            return kind.__name__ if known or node.target == "_guards_fn" else "other"
        if isinstance(node.target, torch._ops.OpOverload):
            word = str(node.target._schema.name).partition("::")[2]
        else:
            target = node.target
            word = target if isinstance(target, str) else getattr(target, "__name__", "")
        word = str(node.args[1]) if word == "getattr" else word.rstrip("_")
        return _ALIASES.get(word, word)

    def option(self, node: fx.Node, place: int, name: str, default: Any = None) -> Any:
        """An argument of a function by place or name."""
        return node.kwargs.get(name, node.args[place] if len(node.args) > place else default)

    def layer(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        assert isinstance(node.target, str)
        return self.module.get_submodule(node.target)

    def label(self, node: fx.Node) -> str:
        """A node's place in the net, for people."""
        own = ["", *self.owners(node)][-1]
        if node.op in ("call_module", "placeholder"):
            own = ".".join(filter(None, (self.name, str(node.target))))
        return own or self.name or node.name

    def owners(self, node: fx.Node) -> list[str]:
        """Names of the modules inside the graph's own in whose forward a node is."""
        stack = (node.meta.get("nn_module_stack") or {}).values()
        return [".".join(filter(None, (self.name, str(name)))) for name, _ in stack if name]

    def _kind(self, node: fx.Node) -> str:
        if node.op == "placeholder":
            return "input"
        parts = self.inputs(node)
        if not parts:
            return "constant"
        word = self.word(node)
        small = _plain(word)
        if word in _SHAPES:
            return "constant"
        if node.op == "output":
            return "other"
        called = self.layer(node) if node.op == "call_module" else None
        means = getattr(called, "running_mean", ...)  # None: of each batch
        in_training = self.option(node, 5 if word == "batch_norm" else 2, "training")
        if called is not None:
            in_training = called.training or means is None
        divides = word in ("mul", "div", "truediv") and self._is_rms(node, parts)
        if divides or small in _NORMS and not isinstance(means, Tensor):
            return "norm"
        if word in ("add", "mul") and len(parts) == 2:
            return "sum" if word == "add" else "product"
        if len(parts) > 1:
            return "other"
        if word in _CASTS and any(
            isinstance(kind, torch.dtype) and not kind.is_floating_point
            for kind in (*node.args, *node.kwargs.values())
        ):
            return "other"
        if word in SAME:
            return "other" if in_training and "ropout" in word else "same"
        if word in ("mul", "div", "truediv") and node.args[:2] == (*parts, *parts):
            return "elementwise"
        if word in _AFFINE:
            if in_training and word.startswith(("Batch", "batch")):
                return "other"
            (part,) = parts
            first = part in (*node.args[:1], node.kwargs.get("input"))
            turned = word in ("matmul", "mm", "div", "truediv", "linear") and not first
            return "other" if turned else "affine"
        if word == "getitem":  # every axis is kept, from its first entry on
            index: Any = node.args[1] if isinstance(node.args[1], tuple) else ()
            if len(index) > 2 and all(
                isinstance(part, slice) and part.start in (None, 0) and part.stop is None
                for part in index
            ):
                return "affine"
        if small in _ELEMENTWISE:
            return "elementwise"
        return "other"

    def _is_rms(self, node: fx.Node, parts: list[fx.Node]) -> bool:
        """True for u / sqrt(mean(u²) + eps) and u / ‖u‖, written out: what does not grow with u."""
        divides = self.word(node) != "mul"
        for whole, factor in (parts, parts[::-1]) if len(parts) == 2 else ():
            if divides and node.args[0] is not whole:
                continue
            power, is_even = 1.0, False
            while factor is not whole and len(self.inputs(factor)) == 1:
                word = self.word(factor)
                own = self.option(factor, 1, "exponent") if word == "pow" else _POWERS.get(word, 0)
                power *= own if isinstance(own, (int, float)) else 0
                if word not in _KEPT:  # the first one of `whole` forgets its sign
                    is_even = word == "norm" or own == 2
                (factor,) = self.inputs(factor)
            if factor is whole and is_even and power == (1 if divides else -1):
                return True
        return False

    def is_bounded(self, node: fx.Node) -> bool:
        """True where the values of a node lie in a bounded set, whatever its input."""
        return self.kinds[node] == "norm" or _plain(self.word(node)) in _BOUNDED

    def has_pole(self, node: fx.Node) -> bool:
        """True for a function that may be unbounded on a bounded set, outside a norm."""
        if (word := self.word(node)) == "pow":
            power = self.option(node, 1, "exponent")
            return not isinstance(power, (int, float)) or power < 0
        in_norm = "norm" in (self.kinds[node], *{self.kinds[user] for user in node.users})
        return word in _POLES and self.kinds[node] != "affine" and not in_norm

    def holds_layer(self, node: fx.Node) -> bool:
        """True for a linear map with weights, and for a layer of attention or recurrence."""
        word = self.word(node)
        fixed = word in ("einsum", "bmm") and not self._fixed.isdisjoint(node.all_input_nodes)
        return fixed or word in LAYERS

    # Pieces ------------------------------------------------------------------------------------

    def affine_entry(self, last: fx.Node, first: fx.Node) -> fx.Node | None:
        """The one node, not before ``first``, of which another is an affine function, or None."""
        ends = self._ends(last, first, lambda n: self.kinds[n] in ("affine", "same", "sum"))
        return ends.pop() if len(ends) == 1 else None

    def elementwise_entry(self, last: fx.Node, first: fx.Node) -> fx.Node | None:
        """The one node of which another is the same function in every entry, None if none is."""
        node: fx.Node | None = last
        while node is not None and node is not first:
            if self.kinds[node] == "elementwise":
                (node,) = self.inputs(node)
            elif self.kinds[node] == "product":
                ends = self.elementwise_ends(node, first)
                node = ends.pop() if len(ends) == 1 else None
            else:
                break
        return node

    def elementwise_ends(self, last: fx.Node, first: fx.Node) -> set[fx.Node]:
        """The nodes of which another is an elementwise function."""

        def inside(node: fx.Node) -> bool:
            kind, word = self.kinds[node], self.word(node)
            if kind == "affine" and word in ("mul", "div", "truediv", "add", "sub", "neg"):
                fixed = [part for part in node.all_input_nodes if self.kinds[part] == "constant"]
                return all(torch.as_tensor(self.run(part)).numel() == 1 for part in fixed)
            return kind in ("elementwise", "product", "sum", "same")

        return self._ends(last, first, inside)

    def _ends(
        self, last: fx.Node, first: fx.Node, inside: Callable[[fx.Node], bool]
    ) -> set[fx.Node]:
        ends: set[fx.Node] = set()
        seen, waiting = {last}, [last]
        while waiting:
            node = waiting.pop()
            if node is first or not inside(node) or not self.is_above(first, node):
                ends.add(node)
                continue
            waiting += [part for part in self.inputs(node) if part not in seen]
            seen.update(waiting)
        return ends

    # Values ------------------------------------------------------------------------------------

    def run(self, last: fx.Node, given: Mapping[fx.Node, Any] | None = None) -> Any:
        """The value of a node in float64, from those of nodes before it, or of a constant one."""
        values = {**self._constants, **(given or {})}
        needed, waiting = {last}, [last]
        while waiting:
            node = waiting.pop()
            fresh = [part for part in node.all_input_nodes if part not in needed]
            fresh = [] if node in values else fresh
            needed.update(fresh)
            waiting += fresh
        for node in self.bit:
            if node not in needed or node in values:
                continue
            if node.op == "placeholder":
                raise NotOneLayer(f"its sizes depend on the input {node.target!r}")
            values[node] = self._computed(node, values)
            if node in self._fixed:
                self._constants[node] = values[node]
        return values[last]

    def _computed(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        args = fx.map_arg(node.args, values.__getitem__)
        options = fx.map_arg(node.kwargs, values.__getitem__)
        if node.op in ("get_attr", "call_module"):
            name = str(node.target)
            if name not in self._exact:
                own = operator.attrgetter(name)(self.module)
                if isinstance(own, Tensor):
                    own = own.detach().double() if own.is_floating_point() else own
                self._exact[name] = copied(own).double() if isinstance(own, nn.Module) else own
            found = self._exact[name]
            return found if node.op == "get_attr" else found(*args, **options)
        if self.word(node) in _CASTS:
            return args[0]
        called: Any = node.target
        if node.op == "call_method":
            called = operator.attrgetter(called)(args[0])
            args = args[1:]
        return called(*args, **options)


def _plain(word: str) -> str:
    """One word for a function and the module of its name."""
    return word.lower().replace("_", "")
