"""The graph of a loss: products of weights with data, and the ways around them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

_PRODUCTS = {
    "AddmmBackward0": ("_saved_mat1", "_saved_mat2", 1),
    "BaddbmmBackward0": ("_saved_batch1", "_saved_batch2", 1),
    "BmmBackward0": ("_saved_self", "_saved_mat2", 0),
    "MmBackward0": ("_saved_self", "_saved_mat2", 0),
}
"""Factors of products as autograd saves them, and the place of the first among the inputs."""
_CONVOLUTIONS = ("ConvolutionBackward0", "_ConvolutionBackward")
_LOOKUPS = ("EmbeddingBackward0", "IndexBackward0", "IndexSelectBackward0", "GatherBackward0")
_LEAF = "torch::autograd::AccumulateGrad"
_VIEWS = (
    "Alias", "AsStrided", "Clone", "Expand", "Permute", "ReshapeAlias", "Select", "Slice", "Split",
    "SplitWithSizes", "Squeeze", "T", "ToCopy", "Transpose", "Unbind", "UnsafeSplit", "UnsafeView",
    "Unsqueeze", "View",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightUse:
    """A product of a weight with data.

    Attributes:
        node: Its node.
        name: Name of the parameter that holds the weight.
        parameter: That parameter; None if the weight is made from several.
        weight: The weight, (K, N), or (parts, K, N), with its graph.
        input: What it multiplies, (parts, T, K), with its graph.
        turned: Whether the product is (N, T).
        bias: Name of the parameter that is added; empty if none is.
        added: The node whose result is added; None if none is.
    """

    node: Any
    name: str
    parameter: Tensor | None
    weight: Tensor
    input: Tensor
    turned: bool
    bias: str
    added: Any

    @cached_property
    def entries(self) -> Tensor | None:
        """Places in the parameter of the weight's entries; None if it changes them."""
        if self.parameter is None:
            return None
        numbers = torch.arange(1, self.weight.numel() + 1).view(self.weight.shape).to(self.weight)
        (found,) = torch.autograd.grad(self.weight, self.parameter, numbers, retain_graph=True)
        values, places = found.flatten().sort()
        used = values != 0
        if not torch.equal(values[used], numbers.flatten()):
            return None
        return places[used].view(self.weight.shape)

    @cached_property
    def bias_entries(self) -> Tensor | None:
        """Places in its parameter of each output's bias, (parts, N); None if some have none."""
        parts, _, width = self.rows_shape
        bias = _through_views(self.added).variable
        shape, *others = (made.shape for made in self.added._input_metadata)
        numbers = torch.arange(1, torch.Size(shape).numel() + 1).to(bias)
        if others or len(numbers) not in (width, parts * width):
            return None
        added = GradientEdge(self.added, 0)
        (found,) = torch.autograd.grad([added], [bias], [numbers.view(shape)], retain_graph=True)
        values, places = found.flatten().sort()
        if not torch.equal(values[values != 0], numbers):
            return None
        return places[values != 0].view(-1, width).expand(parts, width)

    @cached_property
    def part(self) -> int | None:
        """A number for these places; None without."""
        places = self.entries
        return None if places is None else hash(places.cpu().numpy().tobytes())

    def meets(self, other: "WeightUse") -> bool:
        """True if both use some entries of one parameter."""
        assert self.entries is not None and other.entries is not None
        return self.name == other.name and bool(torch.isin(self.entries, other.entries).any())

    @property
    def key(self) -> tuple[str, int | None]:
        """The parameter and its part."""
        return self.name, self.part

    @property
    def output(self) -> GradientEdge:
        """The place behind the product."""
        return GradientEdge(self.node, 0)

    @property
    def units(self) -> int:
        """Numbers at the output for each token, of all parts."""
        parts, _, width = self.rows_shape
        return parts * width

    @property
    def rows_shape(self) -> tuple[int, int, int]:
        """Parts, tokens and outputs of each."""
        parts, tokens, _ = self.input.shape
        return parts, tokens, self.weight.shape[-1]

    def rows(self, output: Tensor) -> Tensor:
        """A tensor of the shape of the product as (parts, T, N); axes in front are left."""
        (made,) = self.node._input_metadata
        flat = output.mT if self.turned else output
        return flat.reshape(*output.shape[: -len(made.shape)], *self.rows_shape)

    def placed(self, rows: Tensor) -> Tensor:
        """The reverse of :meth:`rows`."""
        (made,) = self.node._input_metadata
        shape: tuple[int, ...] = (*rows.shape[:-3], *made.shape)
        *front, down, across = shape
        if not self.turned:
            return rows.reshape(*front, down, across)
        return rows.reshape(*front, across, down).mT


class LossGraph:
    """Nodes of autograd between a loss and the data.

    Attributes:
        uses: Products of weights with data, in the order in which they were computed. A vector
            of weights is none: it only scales.
        convolved: Parameters in convolutions.
    """

    def __init__(self, loss: Tensor, net: nn.Module, inputs: Iterable[Tensor]) -> None:
        given = list(inputs)
        self._parameters = {id(p): (name, p) for name, p in net.named_parameters()}
        self._root = loss.grad_fn
        # In the order of computation; what a node takes comes before it.
        self._nodes = sorted(_all_nodes(self._root), key=lambda n: (not _is_leaf(n), _number(n)))
        self._readers: dict[Any, list[Any]] = defaultdict(list)
        for node in self._nodes:
            for earlier in _inputs_of(node):
                self._readers[earlier].append(node)
        self._sources = self._find_sources(given)
        self._with_data: set[Any] = set()
        for node in self._nodes:
            if node in self._sources or not self._with_data.isdisjoint(_inputs_of(node)):
                self._with_data.add(node)
        self._maps: dict[Any, str] = {}  # the parameter in each product with data
        self.uses = [use for node in self._nodes for use in self._looked_at(node)]
        self.convolved = {self._maps[n] for n in self._maps if n.name() in _CONVOLUTIONS}

    def _find_sources(self, inputs: list[Tensor]) -> set[Any]:
        """Nodes where data enter: an input; else a table that it, or anything else, indexes."""
        floating = {id(x) for x in inputs if x.is_floating_point()}
        found = {n for n in self._nodes if _is_leaf(n) and id(n.variable) in floating}
        if found:
            return found
        constant = {n for n in self._nodes if n.name() in _CONVOLUTIONS or n.name() in _PRODUCTS
                    if None in (side for side, _ in _factors(n))}  # fmt: skip
        fixed, tables = set[Any](), []  # made from parameters alone
        for node in self._nodes:
            own = set(_inputs_of(node))
            if _is_leaf(node) or own and own <= fixed:
                if node.name() in _LOOKUPS:
                    tables.append(node)
                elif node not in constant:
                    fixed.add(node)
        words = [x.flatten() for x in inputs if not x.is_floating_point()]

        def is_word(node: Any) -> bool:
            index = getattr(node, "_saved_indices", None)
            return isinstance(index, Tensor) and any(
                x.numel() == index.numel() and bool((x == index.flatten()).all()) for x in words
            )

        return set(filter(is_word, tables)) or {*tables, *constant}

    def _looked_at(self, node: Any) -> Iterator[WeightUse]:
        """The use of a weight in a node, if there is one."""
        name = node.name()
        if name not in _PRODUCTS and name not in _CONVOLUTIONS:
            return
        sides = [side for side, _ in _factors(node)]
        weights = [at for at, side in enumerate(sides)
                   if side is not None and side not in self._with_data]  # fmt: skip
        if len(weights) != 1:
            return
        (at,) = weights
        leaves = [n for n in _all_nodes(sides[at]) if _is_leaf(n)]
        known = [self._parameters[id(n.variable)] for n in leaves
                 if id(n.variable) in self._parameters]  # fmt: skip
        if not known:
            return
        (parameter_name, parameter), *others = known
        if name not in _PRODUCTS:
            self._maps[node] = parameter_name
            return
        first, second, _ = _PRODUCTS[name]
        factors = [getattr(node, first), getattr(node, second)]
        weight, x = factors[at], factors[1 - at]
        if weight is None:  # autograd saves none beside a constant
            self._maps[node] = parameter_name
            return
        if at == 0:
            weight, x = weight.mT, x.mT
        if weight.dim() == 3 and weight.stride(0) == 0:
            weight = weight[0]  # all parts have the same
        if 1 in weight.shape[-2:] and (parameter.dim() == 1 or weight.numel() < parameter.numel()):
            return  # a vector, such as the shares in which a branch reads several streams
        self._maps[node] = parameter_name
        added = self._added(node)
        yield WeightUse(
            node=node, name=parameter_name, weight=weight,
            parameter=None if others else parameter,
            input=x if weight.dim() == 3 else x.reshape(1, -1, x.shape[-1]), turned=at == 0,
            bias=self._parameters[id(_through_views(added).variable)][0] if added else "",
            added=added,
        )  # fmt: skip

    def _added(self, node: Any) -> Any:
        """The node of a parameter, or of a view, that is added to a product; None without."""
        _, _, place = _PRODUCTS[node.name()]
        added = node.next_functions[0][0] if place else None
        while added is None:
            readers = self._readers[node]
            if len(readers) != 1:
                return None
            last, (node,) = node, readers
            if node.name() == "AddBackward0":
                added = next((side for side in _inputs_of(node) if side is not last), None)
            elif not _is_view(node):
                return None
        leaf = _through_views(added)
        return added if leaf is not None and id(leaf.variable) in self._parameters else None

    def branch_names(self) -> list[str]:
        """Parameters all of whose products the data can go around, past fewer products."""
        cost = {node: int(node in self._maps) for node in self._nodes}
        to_data: dict[Any, float] = {}
        to_loss: dict[Any, float] = {}
        for node in self._nodes:
            before = min((to_data[n] for n in _inputs_of(node)), default=float("inf"))
            to_data[node] = cost[node] + (node not in self._sources and before)
        for node in reversed(self._nodes):  # of which the last one alone has no readers
            to_loss[node] = min((to_loss[n] + cost[n] for n in self._readers[node]), default=0.0)
        least = to_data[self._root]
        near = {self._maps[n] for n in self._maps if to_data[n] + to_loss[n] <= least}
        return list(dict.fromkeys(name for name in self._maps.values() if name not in near))

    def without(self, names: Iterable[str]) -> "BranchGraph":
        """The stream that is left without some weights, and the branches that they make."""
        return BranchGraph(self, set(names))


class BranchGraph:
    """Parts of a loss's graph beside the stream.

    Attributes:
        stream: Nodes that data pass without meeting one of the parameters.
        numbers: Number of the branch, from 0 in the order of the net, of each node beside it.
        ends: Nodes whose results join the stream, by branch.
    """

    def __init__(self, graph: LossGraph, names: set[str]) -> None:
        self._graph = graph
        cut = {node for node, name in graph._maps.items() if name in names}
        reached: set[Any] = set()
        for node in graph._nodes:
            from_data = node in graph._sources or not reached.isdisjoint(_inputs_of(node))
            if from_data and node not in cut:
                reached.add(node)
        self.stream: set[Any] = set()
        for node in reversed(graph._nodes):
            on = node is graph._root or not self.stream.isdisjoint(graph._readers[node])
            if on and node in reached:
                self.stream.add(node)
        beside: list[Any] = []  # made from the stream
        known = set(self.stream)
        for node in graph._nodes:
            if node not in known and not known.isdisjoint(_inputs_of(node)):
                known.add(node)
                beside.append(node)
        label: dict[Any, Any] = {}

        def first(node: Any) -> Any:
            root = node
            while label.setdefault(root, root) is not root:
                root = label[root]
            label[node] = root  # so that ways stay short
            return root

        for node in beside:
            first(node)
            for earlier in _inputs_of(node):
                if earlier in label:
                    label[first(earlier)] = first(node)
        order = list(dict.fromkeys(first(node) for node in beside))
        places = {root: place for place, root in enumerate(order)}
        self.numbers = {node: places[first(node)] for node in beside}
        self.ends: dict[int, list[Any]] = defaultdict(list)
        for node in beside:
            if not self.stream.isdisjoint(graph._readers[node]):
                self.ends[self.numbers[node]].append(node)

    def inside(self, *nodes: Any, stop: Iterable[Any] = ()) -> list[Any]:
        """Nodes from which others are made, down to the stream or to a stop."""
        ends = {*self.stream, *stop}
        return _all_nodes(*nodes, stop=ends.__contains__)

    def parameters(self, number: int, *, behind: Iterable[Any] = ()) -> list[str]:
        """Names of a branch's own parameters, or of those behind some of its nodes."""
        leaves = filter(_is_leaf, self.inside(*self.ends[number], stop=behind))
        found = (self._graph._parameters.get(id(leaf.variable)) for leaf in leaves)
        shared = {name for node, name in self._graph._maps.items() if node in self.stream}
        return [pair[0] for pair in found if pair and pair[0] not in shared]


def _inputs_of(node: Any) -> Iterator[Any]:
    return (earlier for earlier, _ in node.next_functions if earlier is not None)


def _factors(node: Any) -> tuple[tuple[Any, int], ...]:
    """Nodes of both factors of a product."""
    name = node.name()
    place = _PRODUCTS[name][2] if name in _PRODUCTS else 0
    return tuple(node.next_functions[place : place + 2])


def _is_leaf(node: Any) -> bool:
    return bool(node.name() == _LEAF)


def _is_view(node: Any) -> bool:
    return node.name().partition("Backward")[0] in _VIEWS


def _number(node: Any) -> int:
    return int(node._sequence_nr())


def _all_nodes(*roots: Any, stop: Callable[[Any], bool] = lambda _: False) -> list[Any]:
    found, stack = dict[Any, None](), [root for root in roots if root is not None]
    while stack:
        node = stack.pop()
        if node not in found and not stop(node):
            found[node] = None
            stack.extend(_inputs_of(node))
    return list(found)


def _through_views(node: Any) -> Any:
    """The leaf that a node only shows another way; None if it computes something."""
    while not _is_leaf(node):
        if not _is_view(node):
            return None
        (node,) = _inputs_of(node)
    return node
