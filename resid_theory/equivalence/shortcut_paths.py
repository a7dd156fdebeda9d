"""Shortcuts of a graph: paths to a sum around the layers of its other terms."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from resid_theory.equivalence.net_graph import NetGraph
from resid_theory.equivalence.units import UnitKind
from resid_theory.identity import AddIdentity, layer_identity

__all__ = ["Chain", "ShortcutPath", "paths_in"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ShortcutPath:
    """A shortcut: from a node to a sum, around what the other terms of the sum compute.

    Attributes:
        graph: The graph.
        total: The sum.
        source: Where the shortcut begins.
        terms: Terms of the sum that are affine, normalized or gated functions of the source alone.
        others: The other terms; none if all are affine.
        form: ``"in the weight"``, ``"identity"``, ``"scaled"``, ``"normalized"``, ``"gated"``,
            ``"mixed"``, ``"projection"``, ``"subsampled"`` or ``"parallel"``.
        around: The layers with weights that it goes around, the branch's inner sums and norms.
    """

    graph: NetGraph
    total: fx.Node
    source: fx.Node
    terms: tuple[fx.Node, ...]
    others: tuple[fx.Node, ...]
    form: str
    around: tuple[fx.Node, ...]

    @property
    def label(self) -> str:
        """The module in whose forward the sum is."""
        return self.graph.label(self.total)

    @property
    def sums_inside(self) -> bool:
        """True if it goes around other sums with weights below them."""
        return any(self.graph.kinds[node] == "sum" for other in self.others
                   for node in self.graph.between(self.source, other))  # fmt: skip

    def chain(self, other: fx.Node) -> "Chain":
        """The layers and functions that a term applies one after the other."""
        graph, cuts, node, words = self.graph, [other], other, ""
        while node is not self.source:
            entry = graph.affine_entry(node, self.source)
            if entry is None:
                words = "its branch has several paths"
                break
            cuts.append(entry)
            if entry is self.source:
                break
            below = graph.elementwise_entry(entry, self.source)
            if below is None or below is entry or not graph.is_above(self.source, below):
                words = f"{graph.label(entry)} ({graph.word(entry)}) is no elementwise function"
                if graph.word(entry).startswith(("Batch", "Drop")):
                    words = f"{graph.label(entry)} is in train mode; call net.eval() first"
                break
            cuts.append(below)
            node = below
            if below is self.source:
                cuts.append(below)
        return Chain(graph=graph, cuts=tuple(reversed(cuts)), reason=words)


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """Affine pieces and elementwise functions in turn.

    Attributes:
        graph: The graph.
        cuts: Nodes from the source to the term; between them lie in turn an affine piece and a
            function, an affine piece first and last, which may be empty.
        reason: Why the branch is no such chain, otherwise empty.
    """

    graph: NetGraph
    cuts: tuple[fx.Node, ...]
    reason: str = ""

    @property
    def pieces(self) -> list[tuple[fx.Node, fx.Node]]:
        """First and last nodes of the affine pieces."""
        return [*zip(self.cuts[::2], self.cuts[1::2], strict=True)]

    @property
    def functions(self) -> list[tuple[fx.Node, fx.Node]]:
        """Nodes that functions read and give."""
        return [*zip(self.cuts[1:-1:2], self.cuts[2::2], strict=True)]

    def units(self) -> list[UnitKind | None]:
        """Properties of the functions, None of one with other slopes in every channel."""
        return [unit_of(self.graph, first, last) for first, last in self.functions]


def unit_of(graph: NetGraph, first: fx.Node, last: fx.Node) -> UnitKind | None:
    """Properties of an elementwise piece; None where it does not run on numbers alone."""
    try:
        return UnitKind.of(lambda t: graph.run(last, {first: t}))
    except (RuntimeError, TypeError, ValueError):
        return None


def paths_in(graph: NetGraph) -> Iterator[ShortcutPath]:
    """The shortcuts of a graph, from input to output; around one layer before around several."""
    for total in graph.bit:
        if form := _identity_inside(graph, total):
            yield ShortcutPath(
                graph=graph, total=total, source=graph.inputs(total)[0], terms=(total,), others=(),
                form=form, around=(total,),
            )  # fmt: skip
        if graph.kinds[total] != "sum":
            continue
        readers = list(total.users)
        if len(readers) == 1 and graph.kinds[readers[0]] == "sum":
            continue  # one term of a longer sum
        terms = _terms(graph, total)
        fork = graph.fork[total]
        if fork is not None and graph.affine_entry(total, fork) is fork:
            layers = _layers(graph, fork, [total])
            if layers:
                forms = [_walk(graph, term, [fork]) for term in terms]
                plain = min((f[1] for f in forms if f), key=_FORMS.index, default="parallel")
                form = "parallel" if plain in ("projection", "subsampled") else plain
                yield ShortcutPath(
                    graph=graph, total=total, source=fork, terms=tuple(terms), others=(), form=form,
                    around=tuple(layers),
                )  # fmt: skip
            continue
        found: dict[fx.Node, list[tuple[fx.Node, str]]] = {}
        for term in terms:
            walked = _walk(graph, term, [other for other in terms if other is not term])
            if walked is not None:
                found.setdefault(walked[0], []).append((term, walked[1]))
        for source, some in found.items():
            if len(some) == len(terms):  # the plainest is the shortcut around the rest
                plain = min((form for _, form in some), key=_FORMS.index)
                some = [(term, form) for term, form in some if form == plain]
            own = tuple(term for term, _ in some)
            others = tuple(term for term in terms if term not in own)
            layers = _layers(graph, source, others)
            if not others or not layers:
                continue
            form = max((form for _, form in some), key=_FORMS.index)
            yield ShortcutPath(
                graph=graph, total=total, source=source, terms=own, others=others, form=form,
                around=tuple(layers),
            )  # fmt: skip


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
    parts = [graph.constant(part) for part in weight.all_input_nodes]
    return "in the weight" if any(map(_is_diagonal, parts)) else ""


def _is_diagonal(kernel: Tensor) -> bool:
    """True for a kernel with entries where an identity has them, and no others."""
    if kernel.dim() < 2 or not kernel.any() or kernel.shape[0] < 2:
        return False
    at = kernel.nonzero()
    aligned = bool((at[:, 0] % kernel.shape[1] == at[:, 1]).all())
    return aligned and len(at[:, 2:].unique(dim=0)) == 1


_FORMS = (
    "identity", "scaled", "normalized", "subsampled", "mixed", "projection", "gated", "parallel",
)  # fmt: skip
_SHAPED = {"view", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "flatten", "expand",
           "getitem", "detach"}  # fmt: skip


def _terms(graph: NetGraph, node: fx.Node, top: bool = True) -> list[fx.Node]:
    """Terms of a sum and of the sums that only it reads."""
    if graph.kinds[node] != "sum" or not top and len(node.users) > 1:
        return [node]
    return [term for part in graph.inputs(node) for term in _terms(graph, part, False)]


def _layers(graph: NetGraph, source: fx.Node, ends: Sequence[fx.Node]) -> list[fx.Node]:
    inside = {node for end in ends for node in graph.between(source, end)}
    return [node for node in graph.bit if node in inside and graph.holds_layer(node)]


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
            return min(
                (walk[0] for walk in bare), key=lambda n: graph.above[n].bit_count()
            ), "gated"
        if kind == "sum" or len(parts) != 1:
            return None
        if kind == "affine":
            own = _of_affine(graph, node, word)
        elif kind == "norm" or word.startswith("Batch"):  # one in train mode, too
            own = "normalized"
        elif kind == "same" or word in _SHAPED:
            own = "identity"
        elif word in ("einsum", "matmul", "bmm"):  # by a matrix over streams or tokens
            own = "mixed"
        else:
            return None
        form = max(form, own, key=_FORMS.index)
        node = parts[0]


def _of_affine(graph: NetGraph, node: fx.Node, word: str) -> str:
    if graph.holds_layer(node):
        return "projection"
    if word.startswith(("BatchNorm", "batch_norm")):
        return "normalized"
    is_pool = word.startswith(("AvgPool", "avg_pool", "getitem", "pad", "IdentityShortcut"))
    return "subsampled" if is_pool else "scaled"
