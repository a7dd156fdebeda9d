"""Shortcuts of a graph: paths to a sum around the layers of its other terms."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from resid_theory.equivalence.net_graph import RESHAPED, WINDOWED, NetGraph, NotOneLayer
from resid_theory.equivalence.units import UnitKind
from resid_theory.identity import AddIdentity, layer_identity

Piece = tuple[fx.Node, fx.Node]


@dataclass(frozen=True, kw_only=True, eq=False)
class ShortcutPath:
    """A shortcut: from a node to a sum, around what the other terms of the sum compute."""

    graph: NetGraph
    total: fx.Node  # the sum
    source: fx.Node  # where the shortcut begins
    terms: tuple[fx.Node, ...]  # affine, normalized or gated functions of the source alone
    others: tuple[fx.Node, ...]  # the other terms; none if all are affine
    form: str  # as `Shortcuts.enters`
    around: tuple[fx.Node, ...]  # layers with weights that it goes around

    @property
    def label(self) -> str:
        """The module in whose forward the sum is."""
        return self.graph.label(self.total)

    def chain(self, other: fx.Node) -> tuple[list[Piece], list[Piece]]:
        """Affine pieces and elementwise functions that a term applies in turn."""
        graph, cuts, node = self.graph, [other], other
        while node is not self.source:
            entry = graph.affine_entry(node, self.source)
            if entry is None:
                raise NotOneLayer("its branch has several paths")
            cuts.append(entry)
            if entry is self.source:
                break
            below = graph.elementwise_entry(entry, self.source)
            if below is None or below is entry or not graph.is_above(self.source, below):
                word = graph.word(entry)
                if word.startswith(("Batch", "Drop")):
                    words = "is in train mode; call net.eval() first"
                    if not graph.layer(entry).training:
                        words = "uses the statistics of each batch, and has no others"
                    raise NotOneLayer(f"{graph.label(entry)} {words}")
                raise NotOneLayer(f"{graph.label(entry)} ({word}) is no elementwise function")
            cuts.append(below)
            node = below
            if below is self.source:
                cuts.append(below)
        cuts.reverse()
        pieces = [*zip(cuts[::2], cuts[1::2], strict=True)]
        return pieces, [*zip(cuts[1:-1:2], cuts[2::2], strict=True)]


def unit_of(graph: NetGraph, first: fx.Node, last: fx.Node) -> UnitKind | None:
    """Properties of an elementwise piece; None where it does not run on numbers alone."""
    try:
        return UnitKind.of(lambda t: graph.run(last, {first: t}))
    except (RuntimeError, TypeError, ValueError):
        return None


def paths_in(graph: NetGraph) -> Iterator[ShortcutPath]:
    """The shortcuts of a graph, from input to output; around one layer before around several."""
    for total in graph.bit:
        path = functools.partial(ShortcutPath, graph=graph, total=total)
        if form := _identity_inside(graph, total):
            (source,) = graph.inputs(total)
            yield path(source=source, terms=(total,), others=(), form=form, around=(total,))
        joined = graph.word(total) in _JOINTS and len(total.users) > 0  # of a sum none is left
        inner = [graph.kinds[user] for user in total.users] == ["sum"]  # a term of a longer sum
        if not joined and (inner or graph.kinds[total] != "sum"):
            continue
        terms = graph.inputs(total) if joined else _terms(graph, total)
        fork = graph.fork[total]
        if fork is not None and graph.affine_entry(total, fork) is fork:
            if layers := _layers(graph, fork, [total]):
                forms = [walk[1] for term in terms if (walk := _walk(graph, term, [fork]))]
                form = min(forms, key=_FORMS.index, default="parallel")
                form = "parallel" if form in ("projection", "subsampled") else form
                yield path(source=fork, terms=tuple(terms), others=(), form=form, around=layers)
            continue
        found: dict[fx.Node, list[tuple[fx.Node, str]]] = {}
        for term in terms:
            walked = _walk(graph, term, [other for other in terms if other is not term])
            if walked is not None:
                found.setdefault(walked[0], []).append((term, walked[1]))
        if joined:  # whatever passes is kept for itself: one shortcut, from where the first begins
            kept = [pair for some in found.values() for pair in some if pair[1] in _FORMS[:3]]
            found = {next(iter(found)): kept} if kept else {}
        for source, some in found.items():
            own = tuple(term for term, _ in some)
            if not _layers(graph, source, [term for term in terms if term not in own]):
                # The plainest is the shortcut around the rest.
                plain = min((form for _, form in some), key=_FORMS.index)
                some = [(term, form) for term, form in some if form == plain]
                own = tuple(term for term, _ in some)
            others = tuple(term for term in terms if term not in own)
            form = "concatenated" if joined else max((f for _, f in some), key=_FORMS.index)
            if layers := _layers(graph, source, others):
                yield path(source=source, terms=own, others=others, form=form, around=layers)


def _identity_inside(graph: NetGraph, node: fx.Node) -> str:
    """The form of an identity beside or inside the weight of one layer, empty without one."""
    if graph.kinds[node] != "affine" or not graph.holds_layer(node):
        return ""
    if node.op == "call_module":
        layer = graph.layer(node)
        if isinstance(layer, AddIdentity):
            return "identity"
        return "in the weight" if layer_identity(layer) is not None else ""
    weight = graph.option(node, 1, "weight")
    if not isinstance(weight, fx.Node) or graph.word(weight) != "add":
        return ""
    parts = [graph.run(part) for part in weight.all_input_nodes]
    return "in the weight" if any(map(_is_diagonal, parts)) else ""


def _is_diagonal(kernel: Tensor) -> bool:
    """True for a kernel with entries where an identity has them, and no others."""
    if kernel.dim() < 2 or not kernel.any() or kernel.shape[0] < 2:
        return False
    at = kernel.nonzero()
    aligned = bool((at[:, 0] % kernel.shape[1] == at[:, 1]).all())
    return aligned and bool((at[:, 2:] == at[0, 2:]).all())


_JOINTS = ("cat", "concat", "concatenate", "stack", "hstack", "vstack")
_FORMS = (
    "identity", "scaled", "normalized", "subsampled", "mixed", "projection", "gated", "parallel",
)  # fmt: skip


def _terms(graph: NetGraph, node: fx.Node, top: bool = True) -> list[fx.Node]:
    """Terms of a sum and of the sums that only it reads."""
    if graph.kinds[node] != "sum" or not top and len(node.users) > 1:
        return [node]
    return [term for part in graph.inputs(node) for term in _terms(graph, part, False)]


def _layers(graph: NetGraph, source: fx.Node, ends: Sequence[fx.Node]) -> tuple[fx.Node, ...]:
    inside = {node for end in ends for node in graph.between(source, end)}
    return tuple(node for node in graph.bit if node in inside and graph.holds_layer(node))


def _walk(graph: NetGraph, term: fx.Node, others: list[fx.Node]) -> tuple[fx.Node, str] | None:
    """Back from a term to the first node above another term, and what lies between them."""
    node, form = term, "identity"
    while True:
        if any(graph.is_above(node, other) for other in others):
            return node, form
        kind, word, parts = graph.kinds[node], graph.word(node), graph.inputs(node)
        if kind == "product":
            walks = [_walk(graph, part, others) for part in parts]
            bare = [walk for walk in walks if walk and walk[1] in _FORMS[:3]]
            if not bare:
                return None
            # The stream, not the gate that is made of it.
            return min(walk[0] for walk in bare), "gated"
        if kind == "sum" or len(parts) != 1:
            return None
        if kind == "affine" and graph.holds_layer(node):
            own = "projection"
        elif kind == "affine" and not word.startswith(("BatchNorm", "batch_norm")):
            own = "subsampled" if word.startswith(WINDOWED) else "scaled"
        elif kind == "norm" or word.startswith(("Batch", "batch_norm")):  # in train mode, too
            own = "normalized"
        elif kind == "same" or word in RESHAPED:
            own = "identity"
        elif word in ("einsum", "matmul", "bmm"):  # by a matrix over streams or tokens
            own = "mixed"
        else:
            return None
        form = max(form, own, key=_FORMS.index)
        (node,) = parts
