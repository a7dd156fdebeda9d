"""Every use of a parameter as a linear map, seen while a net runs, and reasons for other uses."""

import itertools
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode

from resid_theory._check import check_names
from resid_theory.identity import (
    AddIdentity,
    identity_removed,
    layer_identity,
    parametrizations_of,
)
from resid_theory.identity.layer_weight import check_identities
from resid_theory.runtime.net_state import NetAttributes
from resid_theory.stability.linear_uses import READERS, Geometry, LinearUse, Operation, Piece
from resid_theory.stability.weight_tracker import Label, WeightTracker, has_no_values

Key = tuple[str, int]
"""The name of a map and the number of a use."""

UseReport = Callable[[LinearUse], None]
"""Takes a use of a weight as soon as it has happened."""

_SCALES = "scales each channel or entry by itself, or is scaled by a sample; has no matrix"
_ADDED = "is added, as a bias or a table of positions is"
_REASONS = {
    "input": "is itself the input of a map",
    **dict.fromkeys(("__getitem__", "index_select", "gather"),
                    "which of its entries are used depends on the sample"),
    **dict.fromkeys(("embedding", "embedding_bag"),
                    "an embedding: rows of the table are looked up, no linear map of an input"),
    **dict.fromkeys(("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "prelu",
                     "mul", "mul_", "div", "__mul__", "__rmul__", "__imul__"), _SCALES),
    **dict.fromkeys(("add", "add_", "sub", "sub_", "rsub", "__add__", "__radd__", "__iadd__",
                     "__rsub__"), _ADDED),
    **dict.fromkeys(("cat", "stack", "concat"), "is joined with the inputs, as a class token is"),
    **dict.fromkeys((f"conv_transpose{n}d" for n in (1, 2, 3)),
                    "transposed convolution; the maps here are products and Conv1d, 2d, 3d"),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell",
                     "rnn_tanh_cell", "rnn_relu_cell"), "its matrices act inside a recurrence"),
    **dict.fromkeys(READERS, "is in a weight that is put together from several parameters, looked "
                    "up in an embedding or picked by numbers read from samples, or used in a form "
                    "without rows: torch.vmap, an einsum of three, copies of it side by side"),
    "part": "is used in part, without its identity having parts",
    "mixed": "its identity is mixed with other entries by the parametrization that follows it",
    "bilinear": "bilinear in two inputs",
}  # fmt: skip
_SUMS = ("add", "add_", "__add__", "__radd__", "__iadd__")
_UNSEEN = (
    "no function of torch was seen to apply it to an input: the forward pass leaves it out, or "
    "runs it scripted, compiled or in an autograd.Function, or keeps its product of an earlier call"
)
# The function of nn.MultiheadAttention, which hands itself over whole, step by step.
_ATTENTION = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda _: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)


class MapObserver(TorchFunctionMode):
    """Watcher of a net's calls of torch's functions.

    An operand counts as a weight if it is a parameter, a part or a view of one, or made from one
    entry by entry: by a parametrization or a standardization. Names are those of modules where a
    layer's whole weight is used, ``experts.up[0]`` for parts, ``a.weight[pick 1]`` for entries that
    are picked by index, and ``a.weight.mT`` for a weight that is used the other way round, too.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        check_identities(net)
        self._root, self._modules = net, dict(net.named_modules())
        self._around = {f"{name}.layer".lstrip("."): name for name, module in self._modules.items()
                        if isinstance(module, AddIdentity)}  # fmt: skip
        self._attributes = NetAttributes(net)
        self._tracker = WeightTracker(self._modules)
        self._names: dict[tuple[Label, Label], tuple[nn.Module | None, str, str]] = {}
        self._order: dict[Label, int] = {}
        self._turned: dict[Label, bool] = {}
        for label in itertools.chain(*self._tracker.owners.values()):
            self._order.setdefault(label, len(self._order))
            if isinstance(self._modules.get(label.module), nn.Linear):
                self._turned[label] = False
        self._places: dict[str, tuple[int, int]] = {}
        self._before: dict[Key, set[Key]] = {}  # the uses that came directly before
        self._covers: dict[str, frozenset[Label]] = {}
        self._biases: set[Label] = set()
        self._product: tuple[str, list[weakref.ref[Tensor]]] | None = None  # the latest
        self.added: set[str] = set()  # maps to whose output a forward adds their input

    @contextmanager
    def watching(self, report: UseReport) -> Iterator[None]:
        """Report every use of a weight in one forward pass."""
        self._attributes.put_back()  # what an earlier pass kept shows nothing of its making
        self._report = report
        self._counts: dict[str, int] = defaultdict(int)
        self._latest: set[Key] = set()
        self._padded: tuple[Any, ...] = ()
        self._product = None
        self._callers: dict[Label, Label] = {}
        self._tracker.start()
        with ExitStack() as hooks:
            for labels in self._tracker.owners.values():
                for label in labels if len(labels) > 1 else ():  # which of them calls
                    hooks.enter_context(self._modules[label.module].register_forward_pre_hook(
                        lambda *_, first=labels[0], own=label: self._callers.update({first: own})
                    ))  # fmt: skip
            for name, module in self._modules.items():
                if isinstance(module, ParametrizationList):
                    hooks.enter_context(module.register_forward_hook(
                        lambda *call, name=name: self._take(call[-1], Label.of(f"{name}.original"))
                    ))  # fmt: skip
            with self:
                yield

    def _take(self, made: Tensor, label: Label) -> None:
        """Take what a parametrization made for the weight, which it may hold column by column."""
        self._tracker.keep(made, frozenset([label]), label)
        self._turned[label] = made.dim() == 2 and _is_turned(made)

    def first_names(self, layers: str | Sequence[str] | None) -> list[str] | None:
        """Names of maps that a caller wants; of a module with several names the first one."""
        if layers is None:
            return None
        firsts = {module: name for name, module in self._modules.items()}
        every = dict(self._root.named_modules(remove_duplicate=False))
        return [
            firsts[every[name]] if name in every else name for name in check_names("layers", layers)
        ]

    def in_order(self) -> list[Key]:
        """Uses in the order of the forward pass; of two that no pass had both, that of the net."""
        found, rest = dict[Key, None](), sorted(self._before, key=self._place)
        while rest:  # of an order that depends on the samples, the net's first comes first
            ready = (key for key in rest if self._before[key] <= found.keys())
            found[next(ready, rest[0])] = None
            rest = [key for key in rest if key not in found]
        return list(found)

    def _place(self, key: Key) -> tuple[Any, ...]:
        return self._places[key[0]], key

    def ordered(self, names: Iterable[str]) -> list[str]:
        """Names of maps in the order of their first uses."""
        wanted = set(names)
        return [name for name in dict.fromkeys(n for n, _ in self.in_order()) if name in wanted]

    def beside(self, name: str) -> str:
        """Other uses of a map's weight, which are none of the map; empty if there are none."""
        own = self._covers[name]
        others = sorted({f for label in own for f in self._tracker.met[label]})
        turned = (n for n in self._covers if n != name and ".mT" in n + name)
        return ", ".join([*others, *(n for n in turned if self._covers[n] & own)])

    def missing(self) -> dict[str, str]:
        """Reasons, by module or parameter, for all that no map seen so far uses."""
        covered, tracker = self._biases.union(*self._covers.values()), self._tracker
        reasons: dict[str, dict[str, str]] = defaultdict(dict)
        for label in (labels[0] for labels in tracker.owners.values()):
            if label not in covered:
                known = {_REASONS.get(f, f"meets the samples in {f!r}, none of the maps here")
                         for f in tracker.met[label]}  # fmt: skip
                reasons[label.module][label.name] = "; ".join(sorted(known)) or _UNSEEN
        found: dict[str, str] = {}
        for module, each in reasons.items():
            kind = type(self._modules.get(module)).__module__
            partly = any(label.module == module for label in covered)
            if kind.startswith("torch.nn") and not partly and len(set(each.values())) == 1:
                each = {module: next(iter(each.values()))}
            found |= each
        return found

    # -- what torch calls --------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one function and read it."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "").partition(".")[0]
        if name == "multi_head_attention_forward":
            with self:
                return _ATTENTION(*args, **kwargs)
        if name in _SUMS and self._product:
            layer, ends = self._product
            if all(any(end() is part for part in args) for end in ends):
                self.added.add(layer)
        result = func(*args, **kwargs)
        self._tracker.follow_rows(name, (*args, *kwargs.values()), result)
        if name not in READERS or not self._is_map(name, args, kwargs, result):
            if name == "pad":
                self._padded = weakref.ref(result), args, kwargs
            self._tracker.follow(name, args, kwargs, result)
        self._tracker.follow_writes(name, args, kwargs, result)
        return result

    def _is_map(self, name: str, args: Any, kwargs: dict[str, Any], result: Tensor) -> bool:
        """Report the maps in a call; False if there are none."""
        try:
            operation = READERS[name](*args, **{k: v for k, v in kwargs.items() if k != "out"})
        except TypeError:  # a form that the reader does not know
            return False
        if operation is None or any(map(has_no_values, operation.operands)):
            return False
        tracker, at = self._tracker, operation.weight_at
        labels = [tracker.label(tensor) for tensor in operation.operands]
        if at is None:
            at = int(labels[0] is None)
            if all(map(tracker.constant, operation.operands)):  # part of making a weight
                return False
        label, weight = labels[at], operation.operands[at]
        pieces = operation.pieces(at, result) if label else []
        if label is None or not pieces:
            return False
        for origin in tracker.origins(operation.operands[1 - at]):
            tracker.met[origin].add("input")
        if operation.bias is not None:
            self._biases |= tracker.origins(operation.bias)
        bias, lone = operation.bias, len(pieces) == 1
        if bias is not None and not (lone and bias.shape == (len(pieces[0].weight),)):
            operation, bias = operation._replace(scaled=True), None
        rows, module, before = [slice(None)], self._modules.get(label.module), self._latest
        if isinstance(module, nn.MultiheadAttention):
            size, lone = module.embed_dim, False  # its projections may share a matrix
            rows = [slice(n, n + size) for n in range(0, len(pieces[0].weight), size)]
        for piece, some in itertools.product(pieces, rows):
            if len(rows) > 1:
                part = piece.weight[some]
                piece = piece._replace(part=part, weight=part, place=piece.place[..., some])
            named = label if lone else tracker.label_of_part(label, weight, piece.part)
            added = None if bias is None else bias[some]
            self._report_one(piece, operation, named, tracker.origins(weight), added)
        self._product = None
        if len(pieces) == len(rows) == 1 and self._latest is not before:
            ((layer, _),) = self._latest
            if not isinstance(self._modules.get(layer), AddIdentity):
                ends = result, operation.operands[1 - at]
                self._product = layer, [weakref.ref(end) for end in ends]
        return True

    def _report_one(
        self, piece: Piece, operation: Operation, label: Label, origins: frozenset[Label],
        bias: Tensor | None,
    ) -> None:  # fmt: skip
        whole = label._replace(part="")
        caller = self._callers.get(whole, whole)
        if (label, caller) not in self._names:
            self._names[label, caller] = self._named(label, caller)
        owner, name, lost = self._names[label, caller]
        if lost:
            self._tracker.met[whole].add(lost)
            return
        x, geometry = piece.input, operation.geometry
        turned = geometry is None and _is_turned(piece.weight)
        if self._turned.setdefault(label, turned) != turned:
            owner, name = None if isinstance(owner, AddIdentity) else owner, f"{label.name}.mT"
        if geometry is not None and self._padded and self._padded[0]() is x:
            x, geometry = _unpadded(x, geometry, *self._padded[1:])
        self._counts[name] += 1
        self._covers[name] = self._covers.get(name, frozenset()) | origins
        self._places.setdefault(name, (self._order[caller], int(piece.part.storage_offset())))
        key = name, self._counts[name]
        self._before.setdefault(key, set()).update(self._latest)
        self._latest = {key}
        self._report(LinearUse(
            name=name, number=self._counts[name], input=x, kernel=piece.weight,
            place=piece.place, bias=bias, owner=owner, geometry=geometry,
            routed=self._tracker.is_routed(operation.operands[0])
            or self._tracker.is_routed(operation.operands[1]),
            exact=not (operation.scaled or piece.weight.is_complex()),
        ))  # fmt: skip

    def _named(self, label: Label, caller: Label) -> tuple[nn.Module | None, str, str]:
        """The module with an identity whose weight this is, the map's name, why it is no map."""
        label = label if label.part else caller
        module = self._modules.get(label.module, self._root)
        if isinstance(module, nn.MultiheadAttention):
            size = module.embed_dim
            rows = {f"[{n * size}:{n * size + size}]": role for n, role in enumerate("qkv")}
            role = rows.get(label.part, label.tensor[0])
            return None, f"{label.module}.{role}_proj".lstrip("."), ""
        if label.part or label.tensor != "weight" or isinstance(module, nn.Embedding):
            return None, label.name, "part" if label.part and layer_identity(module) else ""
        if label.module in self._around or layer_identity(module):
            name = self._around.get(label.module, label.module)
            return self._modules.get(name, module), name, _mixed(module)
        return None, label.module, ""


def _mixed(layer: nn.Module) -> str:
    """Why the identity of a layer cannot be removed; empty if it can."""
    try:
        if len(parametrizations_of(layer)) > 1:
            identity_removed(layer)
    except ValueError:
        return "mixed"
    return ""


def _is_turned(weight: Tensor) -> bool:
    """True for a matrix whose columns, not rows, lie in a row in memory."""
    return min(weight.shape) > 1 and weight.stride(0) < weight.stride(1)


def _unpadded(x: Tensor, geometry: Geometry, args: Any, kwargs: Any) -> tuple[Tensor, Geometry]:
    """A convolution of what was padded in a way of its own, seen as one that pads."""
    given = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | kwargs
    pads, axes = list(given["pad"]), len(geometry.stride)
    if given.get("mode", "constant") == "constant" or any(a or b for a, b in geometry.padding):
        return x, geometry
    pairs = [(pads[2 * n], pads[2 * n + 1]) for n in reversed(range(axes))]
    return given["input"], replace(geometry, padding=tuple(pairs), mode=given["mode"])
