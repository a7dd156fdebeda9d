"""Verdicts on shortcuts: whether one can enter the weights, at what width, or what forbids it."""

import functools
import itertools
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from resid_theory.equivalence.affine_layer import AffineLayer, Window, sum_of_layers
from resid_theory.equivalence.net_graph import RESHAPED, NetGraph, NotOneLayer
from resid_theory.equivalence.one_layer import layer_between
from resid_theory.equivalence.shortcut_paths import Piece, ShortcutPath, unit_of
from resid_theory.equivalence.units import TwoLayers, UnitKind

BOUNDED = "behind {0} a branch of any width is bounded, and the shortcut is not"
CONCATENATED = "it is no sum: the stream keeps channels of its own, and no construction is tried"
FOLDS = "branches without a function between them are one layer"
FLAT = "without biases a branch with {0} has slope 0 at 0, at any width, and the shortcut has not"


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """Answer for one shortcut."""

    path: ShortcutPath
    answer: str  # "folds", "same width", "wider", "never" or "open"
    how: str  # the construction, the theorem that forbids it, or what is not known
    extra: int | None = None  # further hidden units or channels
    low: float | None = None  # bounds of the distance to absorbability at the same width
    high: float | None = None
    term: fx.Node | None = None  # of the sum, into which it goes
    layers: Sequence[AffineLayer] = ()  # new ones, one for each piece
    pieces: Sequence[Piece] = ()  # in whose place the layers go
    positive: bool = False  # the stream is >= 0

    @torch.no_grad()
    def gap(self) -> float | None:
        """Difference of the old and the new sum on noise, relative; None without new layers."""
        if not self.layers:
            return None
        graph, path = self.path.graph, self.path
        first = self.layers[0]
        # A position in the middle, whose windows end inside, and borders.
        window = functools.reduce(Window.then, (layer.window for layer in self.layers))
        sides = [high - low + 1 for low, high in zip(window.low, window.high, strict=True)]
        source = torch.Generator().manual_seed(0)
        terms = path.terms if self.term is None else (*path.terms, self.term)
        for more in itertools.product(*map(range, window.stride)):
            shape = [side + rest for side, rest in zip(sides, more, strict=True)]
            x = torch.randn(3, first.inputs, *shape, generator=source, dtype=torch.float64)
            x = (x.abs() if self.positive else x).to(first.weight.device)
            with suppress(RuntimeError):  # with strides the terms have one size for some rests only
                exact = torch.stack([graph.run(term, {path.source: x}) for term in terms]).sum(0)
                break
        else:
            return None
        values = {path.source: x}
        for layer, (start, end) in zip(self.layers, self.pieces, strict=True):
            values[end] = layer(graph.run(start, values))
        scale = float(exact.abs().max())
        return float((values[self.pieces[-1][1]] - exact).abs().max()) / (scale or 1.0)


def judged(path: ShortcutPath) -> Verdict:
    """Decide whether a shortcut can enter the weights around it."""
    if path.form == "concatenated":
        return Verdict(path=path, answer="open", how=CONCATENATED)
    reasons = []
    positive = is_nonnegative(path.graph, path.source)
    for other in path.others or (None,):
        try:
            return _folded(path) if other is None else _carried(path, other, positive)
        except ValueError as reason:  # also of a weight that is made by hooks
            reasons.append(str(reason))
    theorem = _theorem(path) if path.others else None
    if theorem is not None:
        return Verdict(path=path, answer="never", how=theorem)
    between = {node for other in path.others for node in path.graph.between(path.source, other)}
    if any(path.graph.kinds[node] == "sum" for node in between):
        reasons.append("it goes around other shortcuts, which must enter first")
    return Verdict(path=path, answer="open", how="; ".join(dict.fromkeys(reasons)))


def _folded(path: ShortcutPath) -> Verdict:
    layer = layer_between(path.graph, path.source, path.total)
    how = FOLDS
    if path.form == "in the weight":
        how = "a weight that holds the identity is one layer"
    pieces = [(path.source, path.total)]
    return Verdict(path=path, answer="folds", extra=0, layers=[layer], pieces=pieces, how=how)


def _carried(path: ShortcutPath, other: fx.Node, positive: bool) -> Verdict:
    """The verdict where a term of the sum can carry the shortcut."""
    try:
        pieces, functions = path.chain(other)
    except NotOneLayer:
        if (verdict := _in_gate(path, other)) is None:
            raise
        return verdict
    layers, join, units = carriers(path, pieces, functions, positive)
    options: dict[str, Any] = {"path": path, "term": other, "pieces": pieces, "positive": positive}
    if not units:
        layer = sum_of_layers([*layers, join])
        return Verdict(**options, answer="folds", extra=0, layers=[layer], how=FOLDS)
    if len(units) == 1 and all(layer.is_matrix for layer in (*layers, join)):
        return _two_layers(layers, join, units[0], options)
    keeps = positive and all(unit.keeps_positive for unit in units)
    if not keeps and any(unit.kappa is None for unit in units):
        raise NotOneLayer("its function carries a line with offsets that borders would change")
    extra, signs = (join.inputs, ">= 0") if keeps else (2 * join.inputs, "both signs")
    return Verdict(
        **options, answer="wider", extra=extra, layers=widened(layers, join, units, keeps),
        how=f"{extra} channels carry the stream, {signs}, through {len(units)} function"
        + "s" * (len(units) > 1),
    )  # fmt: skip


def carriers(
    path: ShortcutPath, pieces: Sequence[Piece], functions: Sequence[Piece], positive: bool
) -> tuple[list[AffineLayer], AffineLayer, list[UnitKind]]:
    """Read a branch whose functions can carry a shortcut."""
    graph = path.graph
    if any(graph.affine_entry(term, path.source) is not path.source for term in path.terms):
        raise NotOneLayer(f"the shortcut itself is {path.form}")
    for (first, last), words in (
        (pieces[0], "no layer in front of the function reads the stream: u + V φ(u)"),
        (pieces[-1], "no layer behind the function writes to the stream: u + φ(V u)"),
    ):
        if first is last:
            raise NotOneLayer(words)
    units = []
    for first, last in functions:
        if (unit := unit_of(graph, first, last)) is None:
            raise NotOneLayer("its function differs from channel to channel")
        units.append(unit)
    keeps = positive and all(unit.keeps_positive for unit in units)
    offset = any(shifts(graph, node) for node in graph.between(*pieces[0]))
    squares = len(units) == 1 and units[0].squares and offset
    if not keeps and not squares and any(unit.kappa is None for unit in units):
        raise NotOneLayer(
            "its function has no φ(t) - φ(-t) = κ t, and no other construction is known"
        )
    layers = [layer_between(graph, *piece) for piece in pieces]
    if len({len(layer.stride) for layer in layers}) > 1:
        raise NotOneLayer("a matrix and a convolution follow each other")
    terms = [layer_between(graph, path.source, term, layers[0]) for term in path.terms]
    return layers, sum_of_layers(terms), units


def _in_gate(path: ShortcutPath, other: fx.Node) -> Verdict | None:
    """The verdict for V (φ(W x + b) * U x): a gate that is constant and not 0 lets a line pass."""
    graph, source = path.graph, path.source
    product = graph.affine_entry(other, source)
    if product is None or graph.kinds[product] != "product":
        return None
    ends = sorted(graph.elementwise_ends(product, source))
    if len(ends) != 2 or any(graph.affine_entry(end, source) is not source for end in ends):
        return None
    for gate, up in (ends, ends[::-1]):
        # Of all sizes, as a clamp is a line near 0, a threshold far from it.
        t = torch.logspace(-12, 12, 49, dtype=torch.float64, device="cpu")
        t = torch.cat([t, -t])
        at = float(any(shifts(graph, node) for node in graph.between(source, gate)))
        values = graph.run(product, {gate: torch.full_like(t, at), up: t})
        factor = values[0] / t[0]
        if factor and torch.allclose(values, factor * t, atol=0):
            break
    else:
        return None
    pieces = [(source, gate), (source, up), (product, other)]
    *first, last = (layer_between(graph, *piece).dense for piece in pieces)
    join = sum_of_layers([layer_between(graph, source, each, first[0]) for each in path.terms])
    join = join.dense
    if not all(layer.is_matrix for layer in (*first, last, join)):
        return None
    P = join.weight.flatten(1)
    kept = P.norm(dim=0) > 0
    eye, extra = torch.eye(P.shape[1]).to(P)[kept], int(kept.sum())

    tail = [1] * len(join.stride)
    new = [
        replace(layer, weight=torch.cat([layer.weight, row.view(*row.shape, *tail)]),
                bias=torch.cat([layer.bias, layer.bias.new_full((extra,), value)]))
        for layer, row, value in zip(first, (0 * eye, eye), (at, 0.0), strict=True)
    ]  # fmt: skip
    columns = (P[:, kept] / factor.to(P)).view(len(P), extra, *tail)
    weight = torch.cat([last.weight, columns], dim=1)
    return Verdict(
        path=path, answer="wider", extra=extra, term=other, pieces=pieces,
        layers=[*new, replace(last, weight=weight, bias=last.bias + join.bias)],
        how=f"{extra} units with a constant gate carry the shortcut",
    )  # fmt: skip


def _two_layers(
    layers: list[AffineLayer], join: AffineLayer, unit: UnitKind, options: dict[str, Any]
) -> Verdict:
    up, down = (layer.dense for layer in layers)
    W, V, P = (layer.weight.flatten(1).cpu() for layer in (up, down, join.dense))
    b, c = up.bias.cpu(), (down.bias + join.bias).cpu()
    block = TwoLayers(
        up=W, bias=b, down=V, offset=c, shortcut=P, unit=unit,
        rounding=options["path"].graph.eps, positive=options["positive"],
    )  # fmt: skip
    new, distance = block.without_shortcut()
    low, high = (None, None) if distance is None else (distance.low, distance.high)
    extra = len(new.up) - len(block.up)
    how = f"{extra} hidden units carry the shortcut"
    if extra <= 0:
        how = "flipped units leave no shortcut: κ V[:, S] W[S, :] = -P"
        if high is None or high > block.tolerance:
            how = "dead or parallel units make room for those that carry the shortcut"
    elif distance is not None and not distance.decided:
        how += "; whether flips alone do is not decided"
    made = [
        replace(old, weight=matrix.view(*matrix.shape, *old.weight.shape[2:]).to(old.bias),
                bias=bias.to(old.bias))
        for old, matrix, bias in ((up, new.up, new.bias), (down, new.down, new.offset))
    ]  # fmt: skip
    return Verdict(
        **options, answer="wider" if extra > 0 else "same width", extra=max(extra, 0), how=how,
        layers=made, low=low, high=high,
    )  # fmt: skip


def widened(
    layers: Sequence[AffineLayer], join: AffineLayer, units: Sequence[UnitKind], keeps: bool
) -> list[AffineLayer]:
    """Carry a stream in channels beside a branch and add it in the last layer."""
    strides = [layer.stride for layer in layers]
    inner, whole = (
        tuple(map(math.prod, zip(*some, strict=True))) for some in (strides[:-1], strides)
    )
    if whole != join.stride:
        raise NotOneLayer(f"the shortcut has stride {join.stride}, its branch {whole}")
    one_tap = {*join.weight.shape[2:]} <= {1} and not any(join.padding)
    if not one_tap and max(inner) > 1:
        raise NotOneLayer("the shortcut has a kernel of several taps, its branch an inner stride")

    # By how many positions each layer makes its input smaller, at stride 1.
    less = [[a + b for a, b in zip(w.low, w.high, strict=True)] for w in (e.window for e in layers)]
    inside = [*itertools.chain(*less[:-1])]
    if not one_tap and any(inside) or max(inside, default=0) > 0 > min(itertools.chain(*less)):
        raise NotOneLayer("its branch moves borders that the shortcut reads")

    eye = torch.eye(join.inputs).to(join.weight)
    coded = eye if keeps else torch.cat([eye, -eye])
    new: list[AffineLayer] = []
    before = eye
    for layer, unit in zip(layers[:-1], units, strict=True):
        # What the last function left of the stream is read by `before`, and coded again.
        new.append(_beside(layer, coded @ before, first=not new))
        if not keeps:
            assert unit.kappa is not None
            before = torch.cat([eye, -eye], dim=1) / unit.kappa
    last = layers[-1].dense
    kernel = torch.einsum("oi...,ic->oc...", join.dense.weight, before)
    carry = replace(join.dense, weight=kernel)
    if one_tap:
        carry = replace(last, weight=last.tap(kernel.flatten(1)), bias=join.bias)
    rooms = [last.weight.shape[1], carry.weight.shape[1]]
    apart = [replace(part, weight=_padded(part.weight, before=start, behind=end))
             for part, start, end in ((last, 0, rooms[1]), (carry, rooms[0], 0))]  # fmt: skip
    return [*new, sum_of_layers(apart)]


def _beside(layer: AffineLayer, mix: Tensor, *, first: bool) -> AffineLayer:
    """A layer with a matrix beside it, which reads the same or what comes behind it."""
    rows = len(mix)
    bias = torch.cat([layer.bias, layer.bias.new_zeros(rows)])
    eye = torch.eye(rows).to(mix)
    if not first and layer.groups == layer.inputs == len(layer.bias) and torch.equal(mix, eye):
        kernel = layer.tap(mix.new_ones(rows, 1))
        weight = torch.cat([layer.weight, kernel])
        return replace(layer, weight=weight, bias=bias, groups=layer.groups + rows)
    layer, kernel = layer.dense, layer.tap(mix)
    above = layer.weight
    if not first:
        above = _padded(above, before=0, behind=rows)
        kernel = _padded(kernel, before=layer.inputs, behind=0)
    return replace(layer, weight=torch.cat([above, kernel]), bias=bias)


def _padded(weight: Tensor, *, before: int, behind: int) -> Tensor:
    """A kernel with zeros for further inputs."""
    zeros = [weight.new_zeros(len(weight), count, *weight.shape[2:]) for count in (before, behind)]
    return torch.cat([zeros[0], weight, zeros[1]], dim=1)


def is_nonnegative(graph: NetGraph, node: fx.Node) -> bool:
    """True if the operations above a node show that its values are >= 0."""
    parts, word = graph.inputs(node), graph.word(node).lower()
    if graph.kinds[node] == "elementwise":
        (part,) = parts
        unit = unit_of(graph, part, node)
        return unit is not None and unit.nonnegative
    keeps = word in RESHAPED or "pool" in word or word.startswith("dropout")
    if keeps or graph.kinds[node] in ("same", "sum"):
        return bool(parts) and all(is_nonnegative(graph, part) for part in parts)
    return False


def _theorem(path: ShortcutPath) -> str | None:
    """The theorem by which no branch of this kind is the shortcut, None without one."""
    graph = path.graph
    nodes = {node for other in path.others for node in graph.between(path.source, other)}
    if path.form == "gated" or any(
        graph.kinds[node] == "norm"
        for term in path.terms for node in graph.between(path.source, term)
    ):  # fmt: skip
        return None  # the shortcut itself may be bounded
    bounded = {node for node in nodes if graph.is_bounded(node)}
    poles = [node for node in nodes if graph.has_pole(node)]
    bounded -= {low for low in bounded for node in poles if graph.is_above(low, node)}
    limits = {node for node in graph.bit if graph.is_bounded(node)}
    inputs = graph.module.graph.find_nodes(op="placeholder")
    free = any(_reaches(graph, start, path.source, limits) for start in inputs)
    if free and all(not _reaches(graph, path.source, other, bounded) for other in path.others):
        node = min(bounded)
        return BOUNDED.format(f"{graph.label(node)} ({graph.word(node)})")
    flat = set()
    for node in nodes:
        kind, parts = graph.kinds[node], graph.inputs(node)
        if kind == "elementwise":
            (part,) = parts
            unit = unit_of(graph, part, node)
            if unit is None or not unit.zero:
                return None
            flat |= {node} if unit.flat else set()
        elif kind == "product":
            flat |= {node} if all(graph.is_above(path.source, part) for part in parts) else set()
        elif kind == "affine" and shifts(graph, node) or kind not in ("affine", "same", "sum"):
            return None
    if all(not _reaches(graph, path.source, other, flat) for other in path.others):
        node = min(flat)
        return FLAT.format(f"{graph.label(node)} ({graph.word(node)})")
    return None


def _reaches(graph: NetGraph, source: fx.Node, end: fx.Node, blocked: set[fx.Node]) -> bool:
    seen, waiting = {end}, [end]
    while waiting:
        node = waiting.pop()
        if node is source:
            return True
        if node in blocked or not graph.is_above(source, node):
            continue
        waiting += [part for part in graph.inputs(node) if part not in seen]
        seen.update(waiting)
    return False


def shifts(graph: NetGraph, node: fx.Node) -> bool:
    """True if an affine operation has, or may be trained to have, an offset."""
    word = graph.word(node)
    if word.startswith(("BatchNorm", "batch_norm")) or word in ("add", "sub", "rsub"):
        return True
    if node.op == "call_module":
        layer = graph.layer(node)
        return getattr(getattr(layer, "layer", layer), "bias", None) is not None
    if word in ("linear", "conv1d", "conv2d", "conv3d"):
        return graph.option(node, 2, "bias") is not None
    return False
