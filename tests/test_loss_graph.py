"""The graph of a loss: its products of weights with data, and ways around them path by path."""

import random

import pytest
import torch
import torch.nn.functional as F
from oracles import noise
from tolerances import HESSIAN, assert_same, relative_error
from torch import nn

from resid_theory.curvature.loss_graph import LossGraph


def graph_of(loss, inputs, **parameters):
    net = nn.Module()
    for name, parameter in parameters.items():
        net.register_parameter(name, parameter)
    return LossGraph(loss, net, inputs)


def weight(*shape, seed=1):
    return nn.Parameter(noise(*shape, seed=seed))


# Product, shapes of input, weight and bias, and the weight's entries as (inputs, outputs).
ADDED = {
    "linear": (F.linear, (5, 3), (4, 3), (4,), lambda n: n.T),
    "tokens": (F.linear, (2, 5, 3), (4, 3), (4,), lambda n: n.T),
    "one output": (F.linear, (5, 3), (1, 3), (1,), lambda n: n.T),
    "behind a view": (lambda x, w, b: (x @ w).view(1, 5, 4) + b, (5, 3), (3, 4), (4,), None),
    "in front": (lambda x, w, b: b + x @ w, (5, 3), (3, 4), (4,), None),
    "seen another way": (lambda x, w, b: x @ w + b.T[0], (5, 3), (3, 4), (4, 1), None),
    "one of two rows": (lambda x, w, b: x @ w + b[1], (5, 3), (3, 4), (2, 4), None),
    "left": (lambda x, w, b: torch.addmm(b, w, x), (3, 5), (4, 3), (4, 1), lambda n: n.T),
    "parts with biases": (lambda x, w, b: torch.baddbmm(b, x, w), (2, 5, 3), (2, 3, 4), (2, 1, 4),
                          None),
    "parts on the left": (lambda x, w, b: torch.baddbmm(b, w, x), (2, 3, 5), (2, 4, 3), (4, 1),
                          lambda n: n.mT),
    "parts with biases on the left": (lambda x, w, b: torch.baddbmm(b, w, x), (2, 3, 5), (2, 4, 3),
                                      (2, 4, 1), lambda n: n.mT),
}  # fmt: skip
BARE = {
    "matrix": (lambda x, w: x @ w, (5, 3), (3, 4), None),
    "one input": (lambda x, w: x @ w, (5, 1), (1, 4), None),
    "left": (lambda x, w: w @ x, (3, 5), (4, 3), lambda n: n.T),
    "parts": (torch.bmm, (2, 5, 3), (2, 3, 4), None),
    "one part": (torch.bmm, (1, 5, 3), (1, 3, 4), None),
    "one of two parts": (lambda x, w: torch.bmm(x, w[1:]), (1, 5, 3), (2, 3, 4), lambda n: n[1:]),
    "parts of one output": (torch.bmm, (2, 5, 3), (2, 3, 1), None),
    "all alike": (lambda x, w: torch.bmm(x, w.expand(2, 3, 4)), (2, 5, 3), (3, 4), None),
    "all alike on the left": (lambda x, w: torch.bmm(w.expand(2, 4, 3), x), (2, 3, 5), (4, 3),
                              lambda n: n.T),
    "some rows": (lambda x, w: x @ w[1:4], (5, 3), (6, 4), lambda n: n[1:4]),
    "rows in another order": (lambda x, w: x @ w[[2, 0, 1]], (5, 3), (3, 4),
                              lambda n: n[[2, 0, 1]]),
    "constant behind": (lambda x, w: x @ w + 1.0, (5, 3), (3, 4), None),
    "tensor behind": (lambda x, w: x @ w + torch.ones(4), (5, 3), (3, 4), None),
}  # fmt: skip


def check_use(use, w, made, order):
    """Compare a use with the product that it stands for, whose bias is taken off."""
    entries = torch.arange(w.numel()).view(w.shape)
    assert_same(use.entries, order(entries) if order else entries)
    assert (use.name, use.parameter is w, use.key) == ("w", True, ("w", use.part))
    assert_same(use.weight, w.flatten()[use.entries])
    rows = use.rows(made)
    assert use.rows_shape == rows.shape and use.units == len(rows) * rows.shape[2]
    assert relative_error(use.input @ use.weight, rows) <= HESSIAN
    assert use.meets(use)
    for front in ((), (6,), (2, 3)):
        z = noise(*front, *made.shape, seed=3)
        several = use.rows(z)
        assert_same(several.flatten(0, -4)[-1] if front else several,
                    use.rows(z.flatten(0, -made.dim() - 1)[-1] if front else z))  # fmt: skip
        assert_same(use.placed(several), z)


@pytest.mark.parametrize("name", BARE)
def test_a_product_without_a_bias(name):
    function, given, shape, order = BARE[name]
    x, w = noise(*given).requires_grad_(), weight(*shape)
    made = function(x, w)
    (use,) = graph_of(made.square().sum(), [x], w=w).uses
    assert (use.bias, use.added) == ("", None)
    product = made - 1.0 if "behind" in name else made
    check_use(use, w, product, order)
    made.sum().backward()  # nothing of the graph is gone


@pytest.mark.parametrize("name", ADDED)
def test_a_product_with_a_bias(name):
    function, given, shape, beside, order = ADDED[name]
    x, w, b = noise(*given).requires_grad_(), weight(*shape), weight(*beside, seed=2)
    made = function(x, w, b)
    (use,) = graph_of(made.square().sum(), [x], w=w, b=b).uses
    assert use.bias == "b"
    bias = b.flatten()[use.bias_entries]
    (metadata,) = use.node._input_metadata
    added = use.placed(bias[:, None].expand(use.rows_shape))
    product = made.reshape(metadata.shape) - added.reshape(metadata.shape)
    check_use(use, w, product, order)
    made.sum().backward()


APART = {
    "computed": lambda x, w, b: x @ w + b.exp(),
    "to what is read twice": lambda x, w, b: (z := x @ w) + b + z,
    "behind a function": lambda x, w, b: torch.tanh(x @ w) + b,
    "times": lambda x, w, b: (x @ w) * b,
}


@pytest.mark.parametrize("name", APART)
def test_what_is_no_bias(name):
    x, w, b = noise(5, 3).requires_grad_(), weight(3, 4), weight(4, seed=2)
    (use,) = graph_of(APART[name](x, w, b).square().sum(), [x], w=w, b=b).uses
    assert (use.bias, use.added) == ("", None)


@pytest.mark.parametrize("function", [
    lambda x, w, b: x @ w + b.expand(5, 4), lambda x, w, b: x @ w + b[0],
    lambda x, w, b: x @ w + b.unbind()[0], lambda x, w, b: x @ w + b[:1].expand(4),
], ids=["number of each entry", "one number for all", "one of several", "copies"])  # fmt: skip
def test_a_bias_that_is_not_one_number_of_each_output(function):
    x, w, b = noise(5, 3).requires_grad_(), weight(3, 4), weight(4, seed=2)
    (use,) = graph_of(function(x, w, b).square().sum(), [x], w=w, b=b).uses
    assert use.bias == "b" and use.bias_entries is None


SHARES = {  # products with vectors, which are no layers
    "vector": (lambda x, w: x @ w, (3,)), "column": (lambda x, w: x @ w[:, None], (3,)),
    "row": (lambda x, w: x[:, :1] @ w[None], (3,)),
    "column of more": (lambda x, w: x @ w[:, 1:2], (3, 2)),
    "row of more": (lambda x, w: x[:, :1] @ w[1:2], (3, 4)),
    "parts of more": (lambda x, w: torch.bmm(x[None], w[1:2, :, 1:2]), (2, 3, 4)),
}  # fmt: skip


def test_weights_beside_one_another_and_products_of_weights():
    x, (one, other, last) = noise(5, 3).requires_grad_(), (weight(3, 3, seed=n) for n in range(3))
    made = torch.tanh(x @ (one + other)) @ (one @ last) + x @ (2 * last)
    uses = graph_of(made.sum(), [x], one=one, other=other, last=last).uses
    assert [use.parameter is last for use in uses] == [False, False, True]
    assert {uses[0].name, uses[1].name} <= {"one", "other", "last"} and uses[2].name == "last"
    assert [(use.entries, use.part) for use in uses] == [(None, None)] * 3


def test_uses_meet_where_entries_are_in_both():
    x, w, v = noise(5, 3).requires_grad_(), weight(7, 3), weight(4, 3, seed=2)
    made = torch.cat([F.linear(x, part) for part in (w[:3], w[2:5], w[5:], v)], 1)
    uses = graph_of(made.square().sum(), [x], w=w, v=v).uses
    assert [[one.meets(other) for other in uses] for one in uses] == [
        [True, True, False, False], [True, True, False, False], [False, False, True, False],
        [False, False, False, True],
    ]  # fmt: skip
    assert len({use.key for use in uses}) == 4
    again = graph_of(F.linear(x, w[:3]).sum(), [x], w=w).uses[0]
    assert again.key == uses[0].key


CONVOLUTIONS = {
    "with a bias": lambda x, w, b: F.conv1d(x, w, b),
    "without": lambda x, w, b: F.conv1d(x, w) + b[:, None],
    "padded": lambda x, w, b: F.conv1d(x, w, b, padding="same"),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_no_uses(name):
    x, w, b = noise(2, 3, 6).requires_grad_(), weight(4, 3, 3), weight(4, seed=2)
    graph = graph_of(CONVOLUTIONS[name](x, w, b).square().sum(), [x], w=w, b=b)
    assert (graph.uses, graph.convolved) == ([], {"w"})


@pytest.mark.parametrize("name", SHARES)
def test_vectors_only_scale(name):
    function, shape = SHARES[name]
    x, w = noise(5, 3).requires_grad_(), weight(*shape)
    graph = graph_of(function(x, w).square().sum(), [x], w=w)
    assert (graph.uses, graph.branch_names()) == ([], [])


IDS = torch.tensor([[0, 1, 5, 3, 6]])
ENTRIES = {  # what a net makes of words, and where they enter
    "table": (lambda ids, w, v: F.embedding(ids, w), "w"),
    "indexed": (lambda ids, w, v: w[ids], "w"),
    "gathered": (lambda ids, w, v: w.gather(0, ids.T.expand(5, 3)), "w"),
    "selected": (lambda ids, w, v: w.index_select(0, ids[0]), "w"),
    "a view of a table": (lambda ids, w, v: w.T[:, ids[0]].T, "w"),
    "places beside": (lambda ids, w, v: F.embedding(ids, w) + F.embedding(torch.arange(5), v), "w"),
    "places in batches": (
        lambda ids, w, v: F.embedding(ids, w) + F.embedding(torch.arange(5)[None], v), "w"),
    "few places": (lambda ids, w, v: F.embedding(ids, w) + F.embedding(torch.tensor([0]), v), "w"),
    "two tables": (lambda ids, w, v: F.embedding(ids, w) + F.embedding(ids, v), "wv"),
    "other words": (lambda ids, w, v: F.embedding((ids + 1) % 7, w) + v[:5], "w"),
    "other words, and places": (
        lambda ids, w, v: F.embedding((ids + 1) % 7, w) + F.embedding(torch.arange(5), v), "wv"),
    "one-hot": (lambda ids, w, v: F.one_hot(ids, 7).double() @ w + v[:5], "w"),
    "one-hot, convolved": (
        lambda ids, w, v: F.conv1d(F.one_hot(ids, 7).double().mT, w.T[..., None]), "w"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENTRIES)
def test_words_enter_at_their_table(name):
    function, tables = ENTRIES[name]
    net = nn.ParameterDict({"w": noise(7, 3), "v": noise(7, 3, seed=1)})
    made = function(IDS, net["w"], net["v"])
    graph = LossGraph(made.square().sum(), net, [IDS])

    def leaves(node):
        if hasattr(node, "variable"):
            return {id(node.variable)}
        return set().union(*(leaves(n) for n, _ in node.next_functions if n is not None))

    assert all(not hasattr(node, "variable") for node in graph._sources)
    found = [leaf for node in graph._sources for leaf in leaves(node)]
    assert sorted(found) == sorted(id(net[table]) for table in tables)


def test_numbers_enter_themselves_beside_words():
    net = nn.ParameterDict({"w": noise(7, 3), "v": noise(3, 3)})
    x = noise(1, 5, 3).requires_grad_()
    made = F.embedding(IDS, net["w"]) + x @ net["v"]
    graph = LossGraph(made.square().sum(), net, [IDS, x])
    assert [node.variable is x for node in graph._sources] == [True]
    assert [use.name for use in graph.uses] == ["v"]


# Random graphs ------------------------------------------------------------------------------------


def random_steps(seed):
    """Products, sums and functions of earlier results; the last one is the sum of those unread."""
    draws = random.Random(seed)
    steps = [("data",)]
    for number in range(1, draws.randint(4, 11)):
        kind = draws.choice(["product", "product", "sum", "sum", "tanh"])
        one, other = (draws.randrange(max(0, number - 3), number) for _ in "ab")
        if kind == "product":
            steps.append((kind, one, draws.randrange(5)))
        else:
            steps.append((kind, one, other) if kind == "sum" else (kind, one))
    unread = [n for n in range(len(steps)) if not any(n in read(step) for step in steps)]
    while len(unread) > 1:
        one, other, *unread = unread
        unread.append(len(steps))
        steps.append(("sum", one, other))
    return steps


def read(step):
    return step[1:] if step[0] == "sum" else step[1:2]


def computed(steps):
    net, made = nn.ParameterDict({str(n): noise(3, 3, seed=n) for n in range(5)}), []
    for kind, *given in steps:
        if kind == "data":
            made.append(noise(4, 3).requires_grad_())
        elif kind == "product":
            made.append(made[given[0]] @ net[str(given[1])])
        else:
            made.append(made[given[0]] + made[given[1]] if kind == "sum" else made[given[0]].tanh())
    return LossGraph(made[-1].sum(), net, made[:1]), made


def paths(steps, end):
    """Lists of the steps on all ways from the data to one."""
    if end == 0:
        return [[0]]
    return [[*path, end] for before in read(steps[end]) for path in paths(steps, before)]


def branches_by_paths(steps):
    ways = [[n for n in path if steps[n][0] == "product"] for path in paths(steps, len(steps) - 1)]
    least = min(map(len, ways))
    products = sorted({n for way in ways for n in way})
    near = {steps[n][2] for way in ways if len(way) == least for n in way}
    return list(dict.fromkeys(str(steps[n][2]) for n in products if steps[n][2] not in near))


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_have_the_branches_of_their_paths(seed):
    steps = random_steps(seed)
    graph, made = computed(steps)
    nodes = dict(zip([graph._sources.copy().pop()] + [z.grad_fn for z in made[1:]],
                     range(len(steps)), strict=True))  # fmt: skip
    products = [n for n, step in enumerate(steps) if step[0] == "product"]
    assert [nodes[use.node] for use in graph.uses] == products
    names = branches_by_paths(steps)
    assert graph.branch_names() == names
    for cut in (names, ["0"], ["1", "2", "3"]):
        found = graph.without(cut)
        is_cut = [step[0] == "product" and str(step[2]) in cut for step in steps]
        stream = {n for path in paths(steps, len(steps) - 1) for n in path
                  if not any(is_cut[k] for k in path)}  # fmt: skip
        assert {nodes[node] for node in found.stream if node in nodes} == stream
        if not stream:
            continue
        beside = [n for n in range(len(steps)) if n not in stream]
        groups = []
        for n in beside:  # those that touch, the first ones first
            touching = [g for g in groups if g & set(read(steps[n]))]
            joined = {n}.union(*touching)
            groups = [g for g in groups if g not in touching] + [joined]
        groups.sort(key=min)
        numbers = {n: number for number, group in enumerate(groups) for n in group}
        assert {nodes[node]: number for node, number in found.numbers.items()} == numbers
        readers = [
            {n for n, step in enumerate(steps) if k in read(step)} for k in range(len(steps))
        ]
        ends = {number: [n for n in sorted(group) if readers[n] & stream]
                for number, group in enumerate(groups)}  # fmt: skip
        assert {k: [nodes[node] for node in ways] for k, ways in found.ends.items()} == ends
        for number, group in enumerate(groups):
            own, shared = ({str(steps[n][2]) for n in some if steps[n][0] == "product"}
                           for some in (group, stream))  # fmt: skip
            names = own - shared
            assert sorted(found.parameters(number)) == sorted(names)
            last = [node for node, n in nodes.items() if n in ends[number]]
            assert found.parameters(number, behind=last) == []
