"""Graphs of nets, by ``torch.fx`` or ``torch.export``, without operations in place."""

import functools
import inspect
import io
import logging
import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from resid_theory._check import check_choice, check_names
from resid_theory.equivalence.net_graph import RESHAPED, SAME, NetGraph
from resid_theory.identity import AddIdentity
from resid_theory.nested import tensors_of
from resid_theory.networks import Block, IdentityShortcut

_VIEWS = SAME - {"clone", "_to_copy"} | RESHAPED | {
    "Flatten", "Unflatten", "view_as", "unflatten", "swapaxes", "movedim", "t", "T", "mT", "data",
    "chunk", "split", "unbind", "narrow", "select", "slice", "diagonal", "expand_as",
}  # fmt: skip


class _TracedBlock(Block):
    """A block whose forward asserts nothing about its values, which are proxies."""

    def forward(self, x: Tensor) -> Tensor:
        """Map as a block does."""
        x = self.before(x)
        out: Tensor = self.after(self.branch(x) + self.shortcut(x))
        return out


class _TracedEncoder(nn.TransformerEncoder):
    """An encoder without its fast path, which asks proxies for sizes."""

    def forward(self, src: Tensor, mask: Any = None, src_key_padding_mask: Any = None,
                is_causal: bool | None = None) -> Tensor:  # fmt: skip
        """Map as an encoder does."""
        for layer in self.layers:
            src = layer(src, mask, src_key_padding_mask, bool(is_causal))
        return src if self.norm is None else self.norm(src)


_TRACED = {Block: _TracedBlock, nn.TransformerEncoder: _TracedEncoder}


class _Tracer(fx.Tracer):
    """Calls of torch's layers are nodes; what is built of them is looked into."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """True for layers of torch, parametrized ones, and identities beside a layer."""
        if isinstance(module, (AddIdentity, IdentityShortcut)):
            return True
        composed = any(True for _ in module.children()) and not parametrize.is_parametrized(module)
        looked_into = composed and not isinstance(module, nn.MultiheadAttention)
        return not looked_into and super().is_leaf_module(module, name)


def parts_of(
    net: nn.Module, sample: Any = None, blocks: Iterable[str] | None = None, *, leaves: bool = False
) -> tuple[dict[str, NetGraph], dict[str, str]]:
    """Graphs of a net, or of the largest modules that can be traced; leaves: outputs as tensors."""
    if isinstance(net, torch.jit.ScriptModule):
        raise ValueError("net: got a ScriptModule, needs the module that it was made of")
    graphs: dict[str, NetGraph] = {}
    refused: dict[str, str] = {}
    known = dict(net.named_modules(remove_duplicate=False))
    names = [""]
    if blocks is not None:
        given = check_names("blocks", blocks if isinstance(blocks, str) else list(blocks))
        names = [check_choice("blocks", name, [*known]) for name in given]
    waiting = [(name, known[name]) for name in names]
    while waiting:
        name, module = waiting.pop(0)
        inside = [(f"{name}.{key}" if name else key, child)
                  for key, child in module.named_children()]  # fmt: skip
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            waiting = [*inside, *waiting]
            continue
        try:
            module = traced(module, None if name else sample, leaves)
            _without_in_place(module, inner=bool(name))
            graphs[name] = NetGraph(module, name)
        except Exception as error:  # whatever the user's forward raises
            words = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            if sample is None and not name:
                words += "; with a sample torch.export is tried, too"
            refused[name] = f"cannot be traced: {words}"
            waiting = [*inside, *waiting] if blocks is None else waiting
    return graphs, refused


def traced(net: nn.Module, sample: Any = None, leaves: bool = False) -> fx.GraphModule:
    """The graph, by ``torch.fx`` or, with a sample, ``torch.export``."""
    parameters = inspect.signature(net.forward).parameters.values()
    args = sample if isinstance(sample, tuple) else () if sample is None else (sample,)
    defaults = {p.name: p.default for n, p in enumerate(parameters)
                if n >= len(args) and p.default is not p.empty}  # fmt: skip
    kinds = {module: type(module) for module in net.modules() if type(module) in _TRACED}
    for module, kind in kinds.items():
        module.__class__ = _TRACED[kind]
    fast = torch.backends.mha.get_fastpath_enabled()  # it asks sizes of proxies
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        tracer = _Tracer()
        graph = tracer.trace(net, concrete_args=defaults)
        for node in graph.find_nodes(op="placeholder"):
            if (name := node.target.rpartition("_")[0]) in defaults:  # fx renames what is given
                node.target = name
        return fx.GraphModule(tracer.root, graph)
    except Exception:
        if sample is None:
            raise
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, kind in kinds.items():
            module.__class__ = kind
    own = net.forward
    if leaves:
        net.forward = functools.wraps(own)(lambda *args: tuple(tensors_of(own(*args))))
    free = tuple({0: torch.export.Dim.AUTO} if isinstance(a, Tensor) else None for a in args)
    with torch.no_grad(), _silent():
        try:
            program = torch.export.export(net, args, dynamic_shapes=free)
        except Exception:
            program = torch.export.export(net, args)
        module = program.module()
    assert isinstance(module, fx.GraphModule)
    for mode in ("train", "eval"):  # these refuse
        vars(module).pop(mode, None)
    return module


@contextmanager
def _silent() -> Iterator[None]:
    """Keep torch from logging and printing what its exceptions say, too."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _writes(module: fx.GraphModule, node: fx.Node) -> bool:
    """True for an operation that writes into its first argument."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    called = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    aten = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    method = called is None and name.endswith("_") and not name.endswith("__")
    return bool(getattr(called, "inplace", False) or node.kwargs.get("inplace") or method or aten)


def _check_no_view_is_written(module: fx.GraphModule, inner: bool) -> None:
    """Refuse a write that other names of the same memory, or a caller, may see."""
    of: dict[fx.Node, fx.Node] = {}  # the value in whose memory a node may lie
    order = {node: n for n, node in enumerate(module.graph.nodes)}
    for node in order:
        kind = module.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        word = kind if isinstance(kind, str) else getattr(kind, "__name__", type(kind).__name__)
        word = str(node.args[1]) if word == "getattr" else word
        writes = _writes(module, node)
        views = word.partition(".")[0].rstrip("_") in _VIEWS and node.all_input_nodes
        of[node] = of[node.all_input_nodes[0]] if writes or views else node
        named = node.op == "call_function" and word.endswith("_") and not node.args
        if named or node.kwargs.get("out") is not None:
            raise ValueError(f"{node.name} writes in place into memory that it is given by name")
        if not writes:
            continue
        given = node.args[0]
        others = (other for other in of if of[other] is of[node] and other not in (given, node))
        seen = next((other.name for other in others if not _writes(module, other)
                     and any(order[user] > order[node] for user in other.users)), None)  # fmt: skip
        if seen or inner and of[node].op == "placeholder":
            whose = f"{seen} shares" if seen else "the module's caller sees"
            raise ValueError(f"{node.name} writes in place into memory that {whose}")


def _stacked(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node sums along the axis along which they were stacked, none otherwise."""
    given, values = node.args[0], dict(zip(("dim", "keepdim"), node.args[1:], strict=False))
    options = {"dim": node.kwargs.get("axis"), **values, **node.kwargs}
    name = given.target if isinstance(given, fx.Node) else ""
    if getattr(name, "__name__", "").partition(".")[0] != "stack" or options.get("keepdim"):
        return []
    assert isinstance(given, fx.Node)
    axis = given.kwargs.get("dim", given.args[1] if len(given.args) > 1 else 0)
    given_parts: Any = given.args[0]
    return [*given_parts] if options["dim"] in (axis, [axis], (axis,)) else []


def _without_in_place(module: fx.GraphModule, *, inner: bool) -> None:
    """Let what comes behind an operation in place read its result; write a - b as a + (-b).

    The graph alone is read: whoever calls the module compiles it first.
    """
    graph = module.graph
    _check_no_view_is_written(module, inner)
    order = {node: n for n, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if not _writes(module, node):
            continue
        called = module.get_submodule(node.target) if node.op == "call_module" else None
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if called is not None:
            called.inplace = False  # type: ignore[assignment]
        elif node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}
        elif node.op == "call_method":
            node.target = name.rstrip("_")
        elif isinstance(node.target, torch._ops.OpOverload):
            word, _, kind = name.partition(".")
            node.target = getattr(getattr(torch.ops.aten, word.rstrip("_")), kind)
        else:
            node.target = getattr(torch, name.rstrip("_"), None) or getattr(F, name.rstrip("_"))
        for user in list(node.args[0].users):
            if order[user] > order[node]:
                user.replace_input_with(node.args[0], node)
    for node in list(graph.nodes):
        word = getattr(node.target, "__name__", node.target)
        word = str(word).partition(".")[0]
        tensors = [arg for arg in node.args if isinstance(arg, fx.Node)]
        rest = [arg for arg in node.args if arg not in tensors]
        if word == "add" and len(tensors) == 1 and rest == [0]:
            node.replace_all_uses_with(tensors[0])
            graph.erase_node(node)
            continue
        alpha = node.kwargs.get("alpha", 1)
        a, b, *_ = *tensors, node, node
        plain = word in ("add", "sub", "subtract", "rsub") and len(tensors) == 2
        call = graph.call_function
        with graph.inserting_before(node):
            if plain and (word != "add" or alpha != 1):
                a, b = (b, a) if word == "rsub" else (a, b)
                parts = [a, call(operator.mul, (b, alpha if word == "add" else -alpha))]
            elif word == "lerp" and len(node.args) == 3:
                kept = call(operator.sub, (1, node.args[2]))
                parts = [call(operator.mul, (a, kept)), call(operator.mul, (b, node.args[2]))]
            elif word in ("sum", "mean") and (stacked := _stacked(node)):
                parts = stacked
                if word == "mean":
                    parts = [call(operator.mul, (part, 1 / len(stacked))) for part in stacked]
            elif word == "addcmul" and len(tensors) == 3:
                product = call(operator.mul, (b, tensors[2]))
                parts = [a, call(operator.mul, (product, node.kwargs.get("value", 1)))]
            else:
                continue
            sums = parts[:1]
            for part in parts[1:]:
                sums.append(call(operator.add, (sums[-1], part)))
        for part in (*parts, *sums):
            part.meta = part.meta or dict(node.meta)
        node.replace_all_uses_with(sums[-1])
        graph.erase_node(node)
