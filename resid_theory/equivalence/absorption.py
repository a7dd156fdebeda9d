"""Nets without their shortcuts, and the list of a net's shortcuts."""

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import fx, nn

from resid_theory.equivalence.affine_layer import AffineLayer
from resid_theory.equivalence.block_verdicts import Verdict, judged, shifts
from resid_theory.equivalence.conversion import (
    Converter,
    check_no_hooks,
    check_two_axes,
    in_modes_of,
)
from resid_theory.equivalence.net_graph import NetGraph
from resid_theory.equivalence.shortcut_paths import paths_in
from resid_theory.equivalence.tracing import parts_of
from resid_theory.networks import Block
from resid_theory.runtime.net_entry import check_net, is_sequential
from resid_theory.runtime.net_state import copied
from resid_theory.runtime.result import Columns, Result


@dataclass(frozen=True, kw_only=True, eq=False)
class Shortcuts(Result):
    """Shortcuts of a net.

    Attributes:
        modules: Where the sum is, or the layer whose weight has the identity.
        enters: Form of the shortcut: ``"in the weight"``, ``"identity"``, ``"scaled"``,
            ``"normalized"`` (an affine or a proper norm on it), ``"subsampled"``, ``"projection"``,
            ``"mixed"`` (by a matrix over streams), ``"gated"``, ``"concatenated"`` (kept in
            channels of its own), or ``"parallel"`` (branches of one layer each).
        layers: Layers with weights that it goes around.
        around: Their names.
        answers: ``"folds"`` (the branches are one layer), ``"same width"``,
            ``"wider"``, ``"never"`` (a theorem forbids it) or ``"open"``.
        how: The construction, the theorem, or what is not known.
        extra: Further hidden units or channels, None where there is no construction.
        distance_low: Lower bound of min over S of the Frobenius norm of P + κ V[:, S] W[S, :], by
            the box relaxation; None where there are no two matrices.
        distance_high: Upper bound, by rounding and local search.
        gap: Difference of the block with and without its shortcut, relative; None if not measured.
        untraced: Reasons by module for those whose ``forward`` could not be traced.
    """

    modules: tuple[str, ...]
    enters: tuple[str, ...]
    layers: tuple[int, ...]
    around: tuple[str, ...]
    answers: tuple[str, ...]
    how: tuple[str, ...]
    extra: tuple[int | None, ...]
    distance_low: tuple[float | None, ...]
    distance_high: tuple[float | None, ...]
    gap: tuple[float | None, ...]
    untraced: Mapping[str, str]

    tabulated = {
        "module": "modules", "enters": "enters", "layers": "layers", "answer": "answers",
        "extra": "extra", "distance_low": "distance_low", "distance_high": "distance_high",
        "gap": "gap", "how": "how",
    }  # fmt: skip

    @property
    def title(self) -> str:
        """Numbers of shortcuts by answer."""
        counts = [f"{self.answers.count(word)} {word}" for word in dict.fromkeys(self.answers)]
        if not counts:
            return "no shortcuts" + " in what can be traced" * bool(self.untraced)
        several = "s" * (len(self.modules) > 1)
        return f"{len(self.modules)} shortcut{several}: {', '.join(counts)}"

    def shown(self) -> Columns:
        """The columns, with both bounds of the distance in one."""
        columns = dict(self.table())
        bounds = zip(columns.pop("distance_low"), columns.pop("distance_high"), strict=True)
        distances = ["" if high is None else f"{low:.3g} to {high:.3g}" for low, high in bounds]
        how = columns.pop("how")
        return {**columns, **({"distance": distances} if any(distances) else {}), "how": how}

    def remarks(self) -> Sequence[str]:
        """Modules that could not be traced, by reason."""
        return [f"{name or 'the net itself'}: {why}." for name, why in self.untraced.items()]


def shortcuts(
    net: nn.Module, sample: Any = None, *, blocks: Iterable[str] | None = None
) -> Shortcuts:
    """List every shortcut of a net, and whether it can enter the weights.

    A shortcut is a path from a node of the net's graph to a sum whose other terms go through layers
    with weights, or an identity inside a weight. The net is read in eval mode. BatchNorm1d behind
    a linear layer is taken as on (batch, channels); where it is folded, other inputs are refused.

    Args:
        net: Any module that ``torch.fx`` can trace, or ``torch.export`` with a sample. Of another
            one the largest modules inside that can be traced are read, and the rest is listed.
        sample: A tensor, or the arguments of a call, for ``torch.export`` where ``torch.fx`` fails.
        blocks: Names of modules to read instead of the whole net.

    Returns:
        One row for each shortcut, from input to output.

    Raises:
        ValueError: If the net is no module with finite parameters, or a block's name is unknown.

    Source:
        Two layers at the same width: arXiv:2604.23705. Channels that carry the stream: Meng et al.,
        "RMNet", arXiv:2111.00687. Parallel branches: Ding et al., "RepVGG", arXiv:2101.03697. All
        three as summarized; the texts were not read. The widths of signed streams and the theorems
        on bounded and flat branches are derived here.

    Example:
        >>> net = nn.Sequential(rt.networks.Block(nn.Linear(3, 3)), nn.ReLU())
        >>> shortcuts(net).answers
        ('folds',)
    """
    graphs, untraced = parts_of(copied(check_net(net)).eval(), sample, blocks, leaves=True)
    rows: dict[str, dict[str, Any]] = {}
    for path in (path for graph in graphs.values() for path in paths_in(graph)):
        verdict = judged(path)
        name = next(name for name in _numbered(path.label) if name not in rows)
        rows[name] = {
            "modules": name, "enters": path.form, "layers": len(path.around),
            "around": ", ".join(path.graph.label(node) for node in path.around),
            "answers": verdict.answer, "how": verdict.how, "extra": verdict.extra,
            "distance_low": verdict.low, "distance_high": verdict.high, "gap": verdict.gap(),
        }  # fmt: skip
    columns = {field.name: tuple(row[field.name] for row in rows.values())
               for field in fields(Shortcuts) if field.name != "untraced"}  # fmt: skip
    return Shortcuts(**columns, untraced=untraced)


def absorb(net: nn.Module, sample: Any = None, *, blocks: Iterable[str] | None = None) -> nn.Module:
    """Move the shortcuts of a net into its weights, wherever a construction is known.

    Parallel branches without functions between them become one layer. A shortcut around two layers
    enters at the same width where flipped, dead or parallel units make room, otherwise hidden units
    or channels carry it. BatchNorm in eval mode is folded on the way. :func:`conversion` says what
    became of every shortcut; :func:`check_equivalence` compares the two nets.

    Args:
        net: A net, in eval mode if it has BatchNorm or dropout in its branches.
        sample: As for :func:`shortcuts`.
        blocks: Names of modules to convert, instead of the whole net.

    Returns:
        A new net; the given one is not changed. Where shortcuts were removed, an ``nn.Sequential``
        that is now a chain of modules remains one, nested as before, unless it runs a part at
        several places; any other module becomes a ``torch.fx.GraphModule``. Layers that are not
        converted keep their names. What a forward decides by ``training`` stays as it is now, so
        that functions for dropout stay off.

    Raises:
        ValueError: As :func:`shortcuts`, and if a module with shortcuts has hooks, or a function
            for dropout in train mode.

    Source:
        As :func:`shortcuts`.

    Example:
        >>> net = nn.Sequential(rt.networks.Block(nn.Linear(3, 3)), nn.ReLU())
        >>> rt.check_equivalence(net, absorb(net), torch.ones(2, 3)).outputs < 1e-6
        True
    """
    converter = Converter(net, "absorb")
    new = converter.net
    graphs, refused = parts_of(new, sample, blocks)
    converter.left.update(refused)
    for name, graph in graphs.items():
        old, kept = new.get_submodule(name), {*graph.module.state_dict()}
        if not _absorb_all(graph, converter.converted, converter.left):
            continue
        check_no_hooks(old, name)
        active = (graph.word(node) for node, kind in graph.kinds.items() if kind == "other")
        if old.training and any("dropout" in word for word in active):
            raise ValueError("net: a function for dropout would stay in train mode; "
                             "call net.eval() first")  # fmt: skip
        for key in sorted(old.state_dict().keys() - kept):
            where = f"{name}.{key}" if name else key
            converter.left[where] = "not in the new net: the forward does not read it by this name"
        graph.module.recompile()
        made = in_modes_of(old, _in_turn(graph.module, old))
        if name:
            new.set_submodule(name, made)
        else:
            new = made
    return converter.finished(new, "rt.shortcuts(net) lists the reasons")


def _absorb_all(
    graph: NetGraph, converted: dict[str, tuple[str, str]], left: dict[str, str]
) -> bool:
    """Absorb what can be absorbed, inner shortcuts first; whether anything was."""
    tried: set[tuple[str, str]] = set()
    before = len(converted)
    while path := next((path for path in paths_in(graph)
                        if (path.total.name, path.source.name) not in tried), None):  # fmt: skip
        tried.add((path.total.name, path.source.name))
        verdict = judged(path)
        name = next(n for n in _numbered(path.label) if n not in converted and n not in left)
        if not verdict.layers:
            left[name] = verdict.how
            continue
        count = len(path.around)
        was = f"{path.form} around {count} layer{'s' * (count > 1)}"
        converted[name] = was, f"{verdict.answer}: {verdict.how}"
        _rewrite(graph, verdict)
    return len(converted) > before


def _numbered(name: str) -> Iterable[str]:
    yield name
    yield from (f"{name} ({count})" for count in itertools.count(2))


def _rewrite(graph: NetGraph, verdict: Verdict) -> None:
    """Put new layers in the place of a sum's shortcut and of the branch that takes it."""
    path, net = verdict.path, graph.module
    made: dict[fx.Node, str | None] = {}
    with net.graph.inserting_before(path.total):
        new = {path.source: path.source}
        for layer, (start, end) in zip(verdict.layers, verdict.pieces, strict=True):
            taken = {str(node.target) for node in net.graph.nodes}
            name = next(n for n in map("absorbed_{}".format, itertools.count()) if n not in taken)
            net.add_submodule(name, torch_layer(graph, layer, start, end))
            new[end] = net.graph.call_module(name, (_copied(graph, start, new),))
            names = (str(node.target) for node in graph.between(start, end)
                     if node.op == "call_module" and graph.holds_layer(node))  # fmt: skip
            made[new[end]] = next(names, None)  # the name of the first layer in whose place it is
        x = new[end]
        for other in path.others:
            if other is not verdict.term:
                x = net.graph.call_function(operator.add, (x, other))
    x.meta = dict(path.total.meta)
    path.total.replace_all_uses_with(x)
    net.graph.eliminate_dead_code()
    net.delete_all_unused_submodules()
    for node, old in made.items():  # the names of layers that are gone
        taken = {f"{other.target}." for other in net.graph.nodes}
        if old is not None and not any(name.startswith(f"{old}.") for name in taken):
            made_layer = graph.layer(node)
            net.delete_submodule(str(node.target))  # else both names stay
            net.add_submodule(old, made_layer)
            node.target = old
    net.delete_all_unused_submodules()
    graph.refresh()


def _in_turn(module: fx.GraphModule, old: nn.Module) -> nn.Module:
    """A chain of modules in the place of an ``nn.Sequential`` or a block as ``nn.Sequential``."""
    new = place = nn.Sequential()
    used = set()
    for before, node in itertools.pairwise(module.graph.nodes):
        if node.args != (before,) or node.kwargs or node.op not in ("call_module", "output"):
            return module
        if node.op == "output":
            break
        *names, key = str(node.target).split(".")
        if node.target not in used:  # else beside the layer before it
            place = new
            for name in names:
                if name not in place._modules:
                    place.add_module(name, nn.Sequential())
                elif name != [*place._modules][-1]:
                    return module  # others ran since then
                place = place.get_submodule(name)  # type: ignore[assignment]
        used.add(node.target)
        key = next(name for name in _numbered(key) if name not in place._modules)
        place.add_module(key, module.get_submodule(str(node.target)))
    return new if is_sequential(old) or isinstance(old, Block) else module


def torch_layer(graph: NetGraph, layer: AffineLayer, first: fx.Node, last: fx.Node) -> nn.Module:
    """A layer with the dtype of those in whose place it is, frozen if they all are."""
    between = graph.between(first, last)
    parts = [graph.layer(node) for node in between if node.op == "call_module"]
    old = [p for part in parts for p in part.parameters()]
    new = layer.module([*old, *graph.floats, torch.ones(())][0])
    own = any(graph.kinds[node] == "affine" and shifts(graph, node) for node in between)
    if not (own or layer.bias.is_meta or layer.bias.any()):  # nor was there one to train
        new.register_parameter("bias", None)
    normed = any(graph.word(node) in ("BatchNorm1d", "batch_norm") for node in between)
    if isinstance(new, nn.Linear) and (
        normed or any(check_two_axes in part._forward_pre_hooks.values() for part in parts)
    ):
        new.register_forward_pre_hook(check_two_axes)
    return new.requires_grad_(not old or any(p.requires_grad for p in old))


def _copied(graph: NetGraph, node: fx.Node, new: dict[fx.Node, fx.Node]) -> fx.Node:
    """A copy of a node and of those above it that reads new nodes in the place of old ones."""
    if node not in new and any(graph.is_above(old, node) for old in new):
        for part in node.all_input_nodes:
            _copied(graph, part, new)
        new[node] = graph.module.graph.node_copy(node, lambda part: new.get(part, part))
    return new.get(node, node)
