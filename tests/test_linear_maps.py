"""Maps found by operation: names, and values against one sample at a time in plain torch."""

import math
import random
import re

import pytest
import torch
import torch.nn.functional as F
from oracles import noise
from tolerances import assert_same
from torch import nn
from torch.nn.utils import parametrizations, prune

import resid_theory as rt
from resid_theory.data import Data
from resid_theory.stability.layer_inputs import ROUTED, RowOrder, looks_at
from resid_theory.stability.linear_uses import READERS
from resid_theory.stability.map_observer import MapObserver
from resid_theory.stability.weight_tracker import _part

TOKENS, FEATURES = 5, 4


class Used(nn.Module):
    """A parameter, and what is done with it."""

    def __init__(self, shape, function):
        super().__init__()
        # Not at the start of its memory, as parameters in one buffer.
        self.w = nn.Parameter(noise(shape[0] + 1, *shape[1:], seed=1)[1:])
        self.function = function

    def forward(self, x):
        return self.function(x, self.w)


def rows(x):
    return x.flatten(0, 1)


def per_sample(x, experts):
    return experts.sum(0).view(len(x), -1)


def standardized(w):
    return (w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True)


def one_by_one(x, function):
    return torch.stack([torch.stack([function(token) for token in one]) for one in x])


class Same(torch.autograd.Function):
    """Gives back what it is given, as another tensor of the same numbers."""

    @staticmethod
    def forward(context, x):
        return x


def filled(x):
    z = torch.zeros(x.shape)
    z[:] = x
    return z


def met(x, w):
    made = 2 * w
    made.mul(x.mean())
    made[x[:, 0, 0].long() % 3]
    return F.linear(x, made)


def chosen(x):
    """A mask in whose making samples have a part."""
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask |= x.isfinite().all()
    return mask


def circular(x, w):
    return F.conv1d(F.pad(x, (2, 2), mode="circular"), w, stride=2)


def twice_padded(x, w):
    """The zero that stands on the right belongs to the convolution alone."""
    return F.conv1d(F.pad(x, (1, 0), mode="circular"), w, padding="same")


def whole(matrix):
    """One map x -> x Mᵀ under the parameter's own name, where M is made from w."""
    return {"w": lambda x, w: (matrix(w), x, x @ matrix(w).T)}


# Shape of w, what is done with a batch, and by name: weight, input and output for one sample.
OPERATIONS = {
    "linear": ((3, 4), F.linear, whole(lambda w: w)),
    "linear by a vector": ((4,), F.linear, {"w": lambda x, w: (w, x, x @ w)}),
    "matmul": ((4, 3), lambda x, w: x @ w, whole(lambda w: w.T)),
    "matmul by keywords": ((4, 3), lambda x, w: torch.matmul(other=w, input=x),
                           whole(lambda w: w.T)),
    "from the left": ((3, 5), lambda x, w: w @ x, {"w": lambda x, w: (w, x, w @ x)}),
    "vector": ((4,), lambda x, w: x @ w, {"w": lambda x, w: (w, x, x @ w)}),
    "mm": ((4, 3), lambda x, w: torch.mm(rows(x), w).view(len(x), -1), whole(lambda w: w.T)),
    "addmm": ((4, 3), lambda x, w: torch.addmm(w[0], rows(x), w).view(len(x), -1),
              whole(lambda w: w.T)),
    "scaled addmm": ((4, 3), lambda x, w: torch.addmm(w[0], rows(x), w, beta=3, alpha=2)
                     .view(len(x), -1), whole(lambda w: w.T)),
    "matmul of torch.linalg": ((4, 3), torch.linalg.matmul, whole(lambda w: w.T)),
    "matmul from the right": ((4, 3), lambda x, w: w.__rmatmul__(x), whole(lambda w: w.T)),
    "matmul into a tensor": (
        (4, 3), lambda x, w: torch.matmul(x, w, out=torch.empty(*x.shape[:2], 3)),
        whole(lambda w: w.T)),
    "mm into a tensor, twice": (
        (4, 4), lambda x, w: torch.mm(torch.mm(rows(x), w, out=torch.empty(rows(x).shape)), w)
        .view_as(x),
        {f"w#{n}": lambda x, w, n=n: (w, x @ w if n > 1 else x, x @ w @ w if n > 1 else x @ w)
         for n in (1, 2)}),
    "mm of the operators": ((4, 3), lambda x, w: torch.ops.aten.mm.out(
        rows(x), w, out=torch.empty(rows(x).shape[0], 3)).view(len(x), -1), whole(lambda w: w.T)),
    "addmm in place": ((4, 3), lambda x, w: torch.ones(len(rows(x)), 3).addmm_(rows(x), w, beta=2)
                       .view(len(x), -1), whole(lambda w: w.T)),
    "baddbmm in place": ((2, 4, 3), lambda x, w: per_sample(
        x, torch.zeros(2, len(rows(x)), 3).baddbmm_(rows(x).expand(2, -1, -1), w)),
        {f"w[{e}]": lambda x, w, e=e: (w[e], x, x @ w[e]) for e in range(2)}),
    "addmm to a matrix": ((4, 4), lambda x, w: torch.addmm(rows(x), rows(x), w).view_as(x),
                          whole(lambda w: w.T)),
    "one matrix in bmm": ((4, 3), lambda x, w: torch.bmm(x, w.expand(len(x), -1, -1)),
                          whole(lambda w: w.T)),
    "experts in bmm": (
        (2, 3, 4), lambda x, w: per_sample(x, torch.bmm(rows(x).expand(2, -1, -1), w.mT)),
        {f"w[{e}]": lambda x, w, e=e: (w[e], x, x @ w[e].T) for e in range(2)},
    ),
    "experts in baddbmm": (
        (2, 4, 3),
        lambda x, w: per_sample(x, torch.baddbmm(w[:, :1], rows(x).expand(2, -1, -1), w)),
        {f"w[{e}]": lambda x, w, e=e: (w[e], x, x @ w[e]) for e in range(2)},
    ),
    "experts in matmul": (
        (2, 4, 3), lambda x, w: (x[:, None] @ w).sum(1),
        {f"w[{e}]": lambda x, w, e=e: (w[e], x, x @ w[e]) for e in range(2)},
    ),
    "heads in einsum": ((2, 4, 3), lambda x, w: torch.einsum("btd, hdk -> bhtk", x, w),
                        {"w": lambda x, w: (w, x, torch.stack([x @ w[0], x @ w[1]]))}),
    "experts in einsum": (
        (2, 3, 4), lambda x, w: torch.einsum("...ed,ekd->...ek", torch.stack([x, x], 2), w),
        {f"w[{e}]": lambda x, w, e=e: (w[e], x, x @ w[e].T) for e in range(2)},
    ),
    "experts of heads in einsum": (
        (2, 2, 4, 3), lambda x, w: torch.einsum("bted,ehdk->btehk", torch.stack([x, x], 2), w),
        {f"w[{e}]": lambda x, w, e=e: (w[e], x, torch.einsum("td,hdk->thk", x, w[e]))
         for e in range(2)},
    ),
    "implicit einsum": ((4, 3), lambda x, w: torch.einsum("btd,dk", x, w), whole(lambda w: w.T)),
    "einsum of one feature": (
        (3, 4), lambda x, w: torch.einsum("btd,kd->btk", x[..., :1], w),
        {"w": lambda x, w: (w, x[:, :1].expand(-1, 4), x[:, :1] * w.sum(1))}),
    "einsum of a list": ((3, 4), lambda x, w: torch.einsum("btd, kd -> btk", [x, w]),
                         whole(lambda w: w)),
    "einsum by numbers": ((3, 4), lambda x, w: torch.einsum(x, [0, 1, 2], w, [3, 2], [0, 1, 3]),
                          whole(lambda w: w)),
    "a batch of one matrix": ((1, 4, 3), lambda x, w: x @ w, {"w": lambda x, w: (w, x, x @ w[0])}),
    "tokens and features": ((5, 4, 3), lambda x, w: torch.tensordot(x, w),
                            {"w": lambda x, w: (w, x, torch.einsum("td,tdk->k", x, w))}),
    "inner": ((3, 4), torch.inner, whole(lambda w: w)),
    "conv1d": ((3, 5, 3), lambda x, w: F.conv1d(x, w, padding=1),
               {"w": lambda x, w: (w, x, F.conv1d(x[None], w, padding=1)[0])}),
    "conv1d, same": ((3, 5, 2), lambda x, w: F.conv1d(x, w, padding="same"),
                     {"w": lambda x, w: (w, x, F.conv1d(F.pad(x[None], (0, 1)), w)[0])}),
    "conv1d, one by one": ((3, 5, 3), lambda x, w: torch.stack([F.conv1d(one, w) for one in x]),
                           {"w": lambda x, w: (w, x, F.conv1d(x[None], w)[0])}),
    "padded by hand": ((3, 5, 3), circular, {"w": lambda x, w: (w, x, circular(x[None], w)[0])}),
    "padded by hand and by the convolution": (
        (3, 5, 2), twice_padded,
        {"w": lambda x, w: (w, F.pad(x[None], (1, 0), mode="circular"), twice_padded(x[None], w))}),
    "index": ((2, 3, 4), lambda x, w: F.linear(x, w[1]),
              {"w[1]": lambda x, w: (w[1], x, x @ w[1].T)}),
    "slice": ((6, 8), lambda x, w: F.linear(x, w[2:4, 4:]),
              {"w[2:4, 4:8]": lambda x, w: (w[2:4, 4:], x, x @ w[2:4, 4:].T)}),
    "chunks": ((8, 4), lambda x, w: F.linear(x, w.chunk(2)[0]) - F.linear(x, w.chunk(2)[1]),
               {"w[0:4]": lambda x, w: (w[:4], x, x @ w[:4].T),
                "w[4:8]": lambda x, w: (w[4:], x, x @ w[4:].T)}),
    "unbound": ((2, 3, 4), lambda x, w: sum(F.linear(x, one) for one in w),
                {f"w[{e}]": lambda x, w, e=e: (w[e], x, x @ w[e].T) for e in range(2)}),
    "rows by a list": (
        (6, 4), lambda x, w: F.linear(x, w[[3, 0]]) - F.linear(x, w[[1, 1]]),
        {f"w[pick {n}]": lambda x, w, ids=ids: (w[ids], x, x @ w[ids].T)
         for n, ids in ((1, [3, 0]), (2, [1, 1]))}),
    "columns by a tensor": (
        (3, 6), lambda x, w: F.linear(x, torch.index_select(w, 1, torch.tensor([5, 0, 0, 2]))),
        {"w[pick 1]": lambda x, w: (w[:, [5, 0, 0, 2]], x, x @ w[:, [5, 0, 0, 2]].T)}),
    "entries along an axis": (
        (4, 3), lambda x, w: x @ w.take_along_dim(w.argsort(0), 0),
        {"w[pick 1]": lambda x, w: (w.sort(0).values, x, x @ w.sort(0).values)}),
    "behind a function of its own": ((3, 4), lambda x, w: F.linear(x, Same.apply(w)),
                                     whole(lambda w: w)),
    "rows behind a function of its own": (
        (6, 4), lambda x, w: F.linear(x, Same.apply(w[2:4])) - F.linear(x, Same.apply(w[4:])),
        {"w[2:4]": lambda x, w: (w[2:4], x, x @ w[2:4].T),
         "w[4:6]": lambda x, w: (w[4:], x, x @ w[4:].T)}),
    "made, expanded and taken": ((3, 4), lambda x, w: F.linear(x, (2 * w).expand(2, -1, -1)[1]),
                                 whole(lambda w: w)),
    "made, expanded and taken in part": (
        (3, 4), lambda x, w: F.linear(x, (2 * w).expand(2, -1, -1)[1, :2]),
        {"w[:, 0:2]": lambda x, w: (w[:2], x, x @ w[:2].T)}),
    "every other row": ((6, 4), lambda x, w: F.linear(x, w[1::2]),
                        {"w[4::]": lambda x, w: (w[1::2], x, x @ w[1::2].T)}),
    "the middle index": ((2, 3, 4), lambda x, w: F.linear(x, w[:, 1]),
                         {"w[:, 1]": lambda x, w: (w[:, 1], x, x @ w[:, 1].T)}),
    "mv": ((3, 4), lambda x, w: one_by_one(x, lambda t: torch.mv(w, t)),
           {f"w#{n + 1}": lambda x, w, n=n: (w, x[n], w @ x[n]) for n in range(5)}),
    "addmv": ((3, 4), lambda x, w: one_by_one(x, lambda t: torch.addmv(w[:, 0], w, t)),
              {f"w#{n + 1}": lambda x, w, n=n: (w, x[n], w @ x[n]) for n in range(5)}),
    "dot": ((4,), lambda x, w: one_by_one(x, lambda t: torch.dot(t, w)),
            {f"w#{n + 1}": lambda x, w, n=n: (w, x[n], w @ x[n]) for n in range(5)}),
    "tensordot by lists": ((3, 4), lambda x, w: torch.tensordot(x, w, ([2], [1])),
                           whole(lambda w: w)),
    "tensordot by a tensor": (
        (5, 3, 4), lambda x, w: torch.tensordot(x, w, torch.tensor([[2, 1], [2, 0]])),
        {"w": lambda x, w: (w, x, torch.einsum("td,tkd->k", x, w))}),
    "implicit einsum of more axes": ((4, 3), lambda x, w: torch.einsum("...d,dk", x, w),
                                     whole(lambda w: w.T)),
    "reshaped": ((12,), lambda x, w: F.linear(x, w.view(3, 4)), whole(lambda w: w.view(3, 4))),
    "standardized": ((3, 4), lambda x, w: F.linear(x, standardized(w)), whole(standardized)),
    "rows scaled by a part": (
        (3, 5), lambda x, w: F.linear(x, w[:, :1] * w[:, 1:]),
        {"w[:, 1:5]": lambda x, w: (w[:, :1] * w[:, 1:], x, x @ (w[:, :1] * w[:, 1:]).T)}),
    "masked": ((3, 4), lambda x, w: F.linear(x, w * torch.ones(3, 4).tril()), whole(torch.tril)),
    "in another precision": ((3, 4), lambda x, w: F.linear(x, w.double()), whole(lambda w: w)),
    "put together": ((3, 3), lambda x, w: F.linear(x, torch.cat([w, w[:, :1]], 1)),
                     whole(lambda w: torch.cat([w, w[:, :1]], 1))),
    "twice": ((4, 4), lambda x, w: F.linear(torch.tanh(F.linear(x, w)), w), {
        "w#1": lambda x, w: (w, x, x @ w.T),
        "w#2": lambda x, w: (w, torch.tanh(x @ w.T), torch.tanh(x @ w.T) @ w.T),
    }),
    "one row both ways": ((1, 4), lambda x, w: torch.tanh(F.linear(x, w)) @ w, {
        "w#1": lambda x, w: (w, x, x @ w.T),
        "w#2": lambda x, w: (w, torch.tanh(x @ w.T), torch.tanh(x @ w.T) @ w),
    }),
    "both ways": ((2, 4), lambda x, w: torch.tanh(F.linear(x, w)) @ w, {
        "w": lambda x, w: (w, x, x @ w.T),
        "w.mT": lambda x, w: (w, torch.tanh(x @ w.T), torch.tanh(x @ w.T) @ w),
    }),
    "beside a tensor that samples fill": (
        (4, 3), lambda x, w: (lambda made: filled(x) @ made)(2 * w), whole(lambda w: w.T)),
    "behind a tensor that samples are added to": (
        (4, 3), lambda x, w: torch.zeros(x.shape).add_(x) @ w, whole(lambda w: w.T)),
    "made, and met by samples": ((3, 4), met, whole(lambda w: w)),
    "sample by sample": ((3, 4), lambda x, w: torch.stack([F.linear(one, w) for one in x]),
                         whole(lambda w: w)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # a copy by torch
@pytest.mark.parametrize("shape, function, expected", OPERATIONS.values(), ids=OPERATIONS)
def test_an_operation_is_a_map(shape, function, expected, left_alone):
    net, x = Used(shape, function), noise(7, TOKENS, FEATURES)
    with left_alone(net):
        found = rt.layer_cushions(net, x, batch=4)
    assert found.layers == tuple(expected) and not found.not_covered
    for row, parts in zip(found.values, expected.values(), strict=True):
        for value, sample in zip(row, x, strict=True):
            weight, below, above = parts(sample, net.w.detach())
            exact = above.norm() / (weight.norm() * below.norm())
            torch.testing.assert_close(value, exact, rtol=1e-12, atol=0)


def test_the_output_of_a_scaled_operation_counts_as_it_is_where_the_bias_does():
    net, x = Used(*OPERATIONS["scaled addmm"][:2]), noise(7, TOKENS, FEATURES)
    found = rt.layer_cushions(net, x, include_bias=True).values[0]
    w = net.w.detach()
    above = (3 * w[0] + 2 * x @ w).flatten(1).norm(dim=1)
    torch.testing.assert_close(found, above / w.norm() / x.flatten(1).norm(dim=1))


@pytest.mark.parametrize("held", ["buffer", "attribute", "list"])
def test_no_sample_has_a_part_in_what_the_net_holds(held):
    mask, x = torch.ones(3, 4).tril(), noise(5, FEATURES)
    net = Used((3, 4), lambda x, w: F.linear(x, w * (net.mask[0] if held == "list" else net.mask)))
    if held == "buffer":
        net.register_buffer("mask", mask)
    else:
        net.mask = [mask] if held == "list" else mask
    found, weight = rt.layer_cushions(net, x), net.w.detach() * mask
    exact = (x @ weight.T).norm(dim=1) / weight.norm() / x.norm(dim=1)
    torch.testing.assert_close(found.values, exact[None], rtol=1e-12, atol=0)


def test_a_part_is_called_by_the_indices_that_make_it():
    """Of a matrix or an array in any order of axes: a box, or entries with steps between them."""
    for seed in range(60):
        draw = random.Random(seed)
        sizes = [draw.randint(1, 4) for _ in range(draw.randint(1, 4))]
        axes = draw.sample(range(len(sizes)), len(sizes))
        whole = noise(3 + math.prod(sizes))[3:].view(sizes).permute(axes)
        index, names, steps = [], [], False
        for size in whole.shape:
            first = draw.randrange(size)
            end, step = draw.randint(first + 1, size), draw.choice([1, 1, 2])
            index.append(first if draw.random() < 0.3 else slice(first, end, step))
            taken = len(range(size)[first:end:step]) if isinstance(index[-1], slice) else 1
            steps |= taken > 1 and step > 1
            box = f"{first}:{first + taken}"
            names.append(str(first) if taken == 1 else ":" if taken == size else box)
        part = whole[tuple(index)]
        while names[1:] and names[-1] == ":":
            names.pop()
        expected = f"[{', '.join(names)}]" if part.numel() < whole.numel() else ""
        if steps:
            expected = f"[{part.storage_offset() - whole.storage_offset()}::]"
        turned = part.permute(draw.sample(range(part.dim()), part.dim()))
        assert _part(whole, turned) == expected, seed


def random_sum(draw):
    """An equation of two operands with axes of length 1 or expanded; whether it has maps."""
    size = {a: draw.randint(1, 3) for a in "abcde"}
    of_w, of_x = ("".join(draw.sample("abcde", draw.randint(1, 4))) for _ in range(2))
    shared, every = set(of_w) & set(of_x), sorted({*of_w, *of_x})
    summed = {a for a in every if draw.random() < (0.5 if a in shared else 0.05)}
    ones = {a: draw.choice([of_w, of_x, ""]) for a in shared}
    w, x = (torch.randn([1 if ones.get(a) == of else size[a] for a in of]) for of in (of_w, of_x))
    w = w.expand([size[a] for a in of_w]) if draw.random() < 0.3 else w
    result = "".join(draw.sample([*(set(every) - summed)], len(every) - len(summed)))
    is_map = bool(summed) and summed <= shared
    is_map &= all(w.shape[of_w.index(a)] >= x.shape[of_x.index(a)] for a in summed & shared)
    return "einsum", (f"{of_w},{of_x}->{result}", w, x), 0, is_map


def random_product(draw):
    """Of any number of axes, which stand for those of the other operand where they are 1."""
    sides, batch = [draw.randint(1, 3) for _ in range(3)], [draw.randint(1, 3) for _ in range(2)]
    shapes = []
    for inner, both in ((1, sides[:2]), (0, sides[1:])):
        axes = draw.randint(1, 4)
        first = [draw.choice([1, n]) for n in batch[4 - max(axes, 2) :]]
        shapes.append(first + (both if axes > 1 else [both[inner]]))
    return "matmul", tuple(map(torch.randn, shapes)), draw.randint(0, 1), True


@pytest.mark.parametrize("make", [random_sum, random_product])
@pytest.mark.parametrize("seed", range(5))
def test_maps_make_up_the_whole_of_a_random_product(seed, make, float64):
    torch.manual_seed(seed)
    draw = random.Random(seed)
    for _ in range(40):
        name, given, at, is_map = make(draw)
        exact = getattr(torch, name)(*given)
        found = exact.clone()
        pieces = READERS[name](*given).pieces(at, found)
        assert bool(pieces) == is_map, given
        if is_map:
            found.zero_()
            for piece in pieces:
                piece.place.copy_(F.linear(piece.input, piece.weight).view_as(piece.place))
            torch.testing.assert_close(found, exact, rtol=1e-13, atol=1e-13)


PUT = "is in a weight that is put together from several parameters"


@pytest.mark.parametrize("shape, function, reason", [
    ((4,), lambda x, w: x * w, "scales each channel"),
    ((4, 4), lambda x, w: F.linear(x, w * chosen(x)), "scales each channel"),
    ((4,), lambda x, w: x + w, "is added, as"),
    ((9, 4), lambda x, w: x + F.embedding(x.argmax(-1), w), "an embedding: rows"),
    ((2, 4, 3), lambda x, w: torch.einsum("btd,btdk->btk", x, w[x[..., 0].long().abs() % 2]),
     "which of its entries"),
    ((4, 4), lambda x, w: F.linear(x, w[[int(x[0].abs().argmax()) % 4, 1, 2, 3]]), PUT),
    ((1, 5, 4), lambda x, w: torch.cat([w.expand(len(x), -1, -1), x], 1), "is joined"),
    ((1,), lambda x, w: torch.einsum("bti,->bti", x, w[0]), PUT),
    ((4, 4), lambda x, w: torch.einsum("bti,ii->bti", x, w), PUT),
    ((4, 4), lambda x, w: torch.einsum("bti,jj->bti", x, w), PUT),
    ((4, 4), lambda x, w: x + torch.einsum("bti,ii->bt", x, w)[..., None], PUT),
    ((3, 4), lambda x, w: x + torch.einsum("bti,ji->bt", x, w)[..., None], PUT),
    ((4, 3), lambda x, w: x + 0 * torch.einsum("bti,ij->jb", x, w).sum(), PUT),
    ((4, 4), lambda x, w: x + torch.einsum("bti,ij,btj->bt", x, w, x)[..., None], PUT),
    ((4,), lambda x, w: torch.einsum("bti,j->btj", x, w), PUT),
    ((4, 1), lambda x, w: torch.einsum("bti,ji->btj", x, w), PUT),
    ((1, 4, 4), torch.tensordot, PUT),
    ((4, 4), lambda x, w: torch.linalg.multi_dot([rows(x), w]).view_as(x), "meets the samples in "
     "'linalg_multi_dot', none of the maps here"),
    ((4, 4), lambda x, w: torch.vmap(lambda one: one @ w)(x), PUT),
    ((4, 4), lambda x, w: torch.matmul(x, w.expand(2, 1, 4, 4)).sum(0), PUT),
    ((3, 4), lambda x, w: x + F.linear(x[:0], w).sum(), "no sample has a row"),
    ((4, 4), lambda x, w: F.linear(x, torch.ones(4, 4).tril() @ w), PUT),
    ((4, 4), lambda x, w: F.linear(x, F.embedding(torch.tensor([1, 0, 3, 2]), w)), PUT),
])  # fmt: skip
def test_other_uses_are_no_maps(shape, function, reason):
    class Net(Used):
        def __init__(self):
            super().__init__(shape, function)
            self.head = nn.Linear(x.shape[-1] if shape != (2, 4, 3) else 3, 2)

        def forward(self, x):
            return self.head(super().forward(x))

    x = noise(6, TOKENS, FEATURES)
    found = rt.layer_cushions(Net(), x)
    assert found.layers == ("head",) and list(found.not_covered) == ["w"]
    assert found.not_covered["w"].startswith(reason)


def gram(x, w):
    return F.linear((x[:, 0] @ x[:, 0].T)[..., None].expand(-1, -1, 4), w)


def tangled(x, w):
    """Rows a0 b0 c0 c1 b1 a1 of samples a, b, c."""
    return F.linear(torch.cat([x[:, 0], x[:, 1].flip(0)]), w)


@pytest.mark.parametrize("shape, function, reason", [
    ((3, 4), gram, r"no axis of samples: \(2, 2, 4\) for two samples and \(3, 3, 4\) for three"),
    ((3, 4), lambda x, w: F.linear(torch.cat([x[:, 0], x[:1, 0]]), w), r"no axis of .*\(3, 4\)"),
    ((3, 4), lambda x, w: F.linear(torch.cat([x[:, 0], x[2:, 0]]), w), "depend on the other sam"),
    ((4, 1), lambda x, w: F.linear(x[:, 0].T, w.expand(-1, len(x))), "along axis 1, which the la"),
    ((3, 4, 1), lambda x, w: F.conv1d(x[:, 0].T[None], w), "along axis 2, which the layer mixes"),
], ids=["two axes", "one row more", "rows of a third", "features", "places"])  # fmt: skip
def test_inputs_without_an_axis_of_samples_are_listed(shape, function, reason):
    net = Used(shape, lambda x, w: x + 0 * function(x, w).sum())
    net.head, forward = nn.Linear(4, 2), net.forward
    net.forward = lambda x: net.head(forward(x))
    found = rt.layer_cushions(net, noise(6, TOKENS, 4))
    assert found.layers == ("head",) and list(found.not_covered) == ["w"]
    assert re.search(reason, found.not_covered["w"])


def test_three_samples_from_all_over_a_batch_are_looked_at():
    net, seen = Used((3, 4), lambda x, w: seen.append(x[:, 0].tolist()) or F.linear(x, w)), []
    rt.layer_cushions(net, torch.arange(7.0)[:, None].expand(7, 4))
    assert seen == [[0, 2], [2, 4, 0], [*range(7)]]


def by_first(x):
    return x[:, 0, 0].argsort()


def put_back(x):
    z = torch.zeros_like(x)
    z[by_first(x)] = x[by_first(x)]
    return z


# What a layer reads of (m, 3, 4), and its axes of one sample that it keeps; whether samples choose.
READ = {
    "a slice": (lambda x: x[:, 1], 1, False),
    "tokens by a tensor": (lambda x: x[:, torch.tensor([0, 2])], [0, 2], False),
    "tokens by select": (lambda x: x.index_select(1, torch.tensor([0, 2])), [0, 2], False),
    "rows by a tensor": (lambda x: x[torch.arange(len(x))], [0, 1, 2], False),
    "rows by a list": (lambda x: x[list(range(len(x)))], [0, 1, 2], False),
    "rows put back": (put_back, [0, 1, 2], False),
    "rows copied back": (
        lambda x: torch.zeros_like(x).index_copy(0, by_first(x), x[by_first(x)]), [0, 1, 2], False),
    "sorted rows": (lambda x: x[by_first(x)], [0, 1, 2], True),
    "sorted rows by select": (lambda x: x.index_select(0, by_first(x)), [0, 1, 2], True),
    "sorted rows by keywords": (
        lambda x: torch.index_select(input=x, dim=0, index=by_first(x)), [0, 1, 2], True),
    "rows by a mask": (lambda x: x[x[:, 0, 0] > -9], [0, 1, 2], True),
    "entries by a mask": (lambda x: x.masked_select(x > -9).view_as(x), [0, 1, 2], True),
    "sorted rows of one token": (lambda x: x[by_first(x), 1], 1, True),
    "behind sorted rows": (lambda x: 2 * x[by_first(x)], [0, 1, 2], True),
    "sorted rows beside others": (lambda x: x[by_first(x)] + 0 * x.mean(), [0, 1, 2], True),
    "rows by a list of numbers": (lambda x: x[by_first(x).tolist()], [0, 1, 2], True),
    "rows by a new tensor": (lambda x: x[torch.tensor(by_first(x).tolist())], [0, 1, 2], True),
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_samples_run_alone_only_where_they_choose_the_rows(kind):
    read, tokens, chosen = READ[kind]
    calls = []

    def function(x, w):
        calls.append(len(x))
        return F.linear(read(x), w)

    net, x = Used((3, 4), function), noise(7, 3, 4)
    found, w = rt.layer_cushions(net, x, batch=4), net.w.detach()
    z = x[:, tokens].flatten(1)
    exact = (x[:, tokens] @ w.T).flatten(1).norm(dim=1) / w.norm() / z.norm(dim=1)
    torch.testing.assert_close(found.values[0], exact, rtol=1e-12, atol=0)
    assert calls == ([2, 3, 4, 1, 1, 1, 1, 3, 1, 1, 1] if chosen else [2, 3, 4, 3])


@pytest.mark.parametrize("tokens", [2, 3])
def test_tokens_of_all_samples_one_after_another(tokens):
    """Rows a0 b0 c0 a1 b1 c1 of samples a, b, c; two and three of them show it."""
    calls = []

    def token_major(x, w):
        calls.append(len(x))
        return F.linear(x.transpose(0, 1).flatten(0, 1), w).unflatten(0, (tokens, -1)).sum(0)

    net, x = Used((3, 4), token_major), noise(7, tokens, 4)
    found, w = rt.layer_cushions(net, x, batch=4), net.w.detach()
    exact = (x @ w.T).flatten(1).norm(dim=1) / w.norm() / x.flatten(1).norm(dim=1)
    torch.testing.assert_close(found.values[0], exact, rtol=1e-12, atol=0)
    assert found.layers == ("w",) and calls == [2, 3, 4, 3]


@pytest.mark.parametrize("places", [None, [3, 0, 2]], ids=str)
@pytest.mark.parametrize("sample_major", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_rows_of_samples_along_any_axis(axis, sample_major, places):
    """By the index of every entry: four samples, three rows of each, two other sizes."""
    sizes = [2, 5, 3]
    sizes.insert(axis, 12)
    x, order = noise(*sizes), RowOrder(axis=axis, sample_major=sample_major, each=3)
    found = order.rows(x, 4, None if places is None else torch.tensor(places))
    expected = []
    for sample in range(4) if places is None else places:
        steps = range(3 * sample, 3 * sample + 3) if sample_major else range(sample, 12, 4)
        expected.append(torch.cat([x.select(axis, step).flatten() for step in steps]))
    assert_same(found, torch.stack(expected))
    assert_same(RowOrder(axis=None).rows(x, 4, None if places is None else torch.tensor(places)),
                x.reshape(1, -1).repeat(len(expected), 1))  # fmt: skip


class Placed(nn.Module):
    """Maps whose inputs have the samples in different places, or in none."""

    def __init__(self):
        super().__init__()
        for name in ("plain", "shared", "second", "third", "major", "minor", "coupled", "more",
                     "twice", "both", "constant", "none", "often"):  # fmt: skip
            self.register_module(name, nn.Linear(4, 4, bias=False))
        self.space, self.image = (nn.Conv1d(3, 2, 2, bias=False) for _ in range(2))
        self.plane, self.column = nn.Conv2d(3, 2, 1, bias=False), nn.Parameter(noise(2, 1))
        self.table = nn.Parameter(noise(2, 4, seed=3))

    def forward(self, x):
        turned, first = x.transpose(0, 1), x[:, 0]
        extra = torch.cat([first, first[:2]])
        self.plain(x)
        self.shared(self.table)
        self.second(turned)
        self.third(turned[None])
        self.major(x.flatten(0, 1))
        self.minor(turned.flatten(0, 1))
        self.coupled(x - x.mean(0))
        self.more(torch.cat([x.flatten(0, 1), first[:1]]))
        self.twice(x), self.twice(extra)
        self.both(extra), self.both(torch.cat([x.flatten(0, 1), first[:1]]))
        self.constant(x.mean((0, 1)) * len(x))
        self.none(x[:0])
        self.often(x)
        if len(x) > 2:
            self.often(x)
        self.space(x.permute(2, 1, 0))
        self.image(x[0])
        self.plane(x.permute(2, 1, 0)[..., None])
        F.linear(x.flatten(1).T, self.column.expand(2, len(x)))
        return self.plain(first)


def test_a_look_tells_all_that_two_runs_show():
    """Position of the samples, reason for none, and three samples' inputs, of every map."""
    net, x = Placed(), noise(7, 3, 4)
    parts = Data.of(x, like=net, targets=False).chunks(7)
    with pytest.warns(UserWarning, match="the input of 'coupled' and 0 more layers for one"):
        ((_, look),) = looks_at(net, MapObserver(net), parts)
    assert look.layouts == {
        ("plain", 1): RowOrder(axis=0),
        ("plain", 2): RowOrder(axis=0),
        ("shared", 1): RowOrder(axis=None),
        ("second", 1): RowOrder(axis=1),
        ("third", 1): RowOrder(axis=2),
        ("major", 1): RowOrder(axis=0, each=3),
        ("minor", 1): RowOrder(axis=0, sample_major=False, each=3),
        ("coupled", 1): RowOrder(axis=0),
    }
    assert look.apart == {
        "twice": ROUTED, "none": ROUTED, "often": "the number of its calls depends on the samples",
    }  # fmt: skip
    numbers = "(7, 4) for two samples and (10, 4) for three"
    assert look.reasons == {
        "more": f"its input has no axis of samples: {numbers}",
        "both": f"its input has no axis of samples: {numbers}",
        "constant": "its input has the shape (4,) for any number of samples, and other values",
        "space": "its input has the samples along axis 2, which the layer mixes: (4, 3, 2) for two "
                 "samples and (4, 3, 3) for three",
        "plane": "its input has the samples along axis 2, which the layer mixes: (4, 3, 2, 1) for "
                 "two samples and (4, 3, 3, 1) for three",
        "column": "its input has the samples along axis 1, which the layer mixes: (12, 2) for two "
                  "samples and (12, 3) for three",
        "image": "its input has the shape (3, 4) for any number of samples, and other values",
    }  # fmt: skip
    places = [0, 2, 4]
    assert look.places.tolist() == places
    entries = x[places].flatten(1)
    expected = dict.fromkeys(look.layouts.keys() - {("coupled", 1)}, entries)
    expected["plain", 2] = x[places, 0]
    expected["shared", 1] = net.table.detach().reshape(1, -1).expand(3, -1)
    assert_same({key: x for key, x in look.inputs.items() if key in look.layouts}, expected)


def test_noise_leaves_out_a_layer_whose_second_input_has_other_rows():
    net = nn.Module()
    net.first, net.second, x = nn.Linear(4, 4), nn.Linear(4, 4), noise(5, 4)

    def forward(x):
        net.second(torch.cat([x, x[:2]]))
        return net.first(x) + net.second(x)

    net.forward = forward
    assert rt.stability.weight_noise(net, x, draws=1).places == ("first",)
    net.forward = lambda x: (net.second(x), forward(x))[1]
    assert rt.stability.weight_noise(net, x, draws=1).places == ("first",)


@pytest.mark.parametrize("batch", [2, 5])
def test_rows_in_an_order_of_their_own_are_taken_sample_by_sample(batch):
    net, x = Used((3, 4), tangled), noise(5, 2, 4)
    found, w = rt.layer_cushions(net, x, batch=batch), net.w.detach()
    exact = (x @ w.T).flatten(1).norm(dim=1) / w.norm() / x.flatten(1).norm(dim=1)
    torch.testing.assert_close(found.values[0], exact, rtol=1e-12, atol=0)


class Turning(nn.Module):
    """Uses its layer twice, then on other rows, or more often, in some batches."""

    def __init__(self, change):
        super().__init__()
        self.first, self.second, self.change = nn.Linear(4, 4), nn.Linear(4, 4), change

    def forward(self, x):
        x = self.first(x)
        return self.second(self.change(torch.tanh(self.second(x))))


def test_samples_in_another_order_in_a_second_use_are_seen():
    net, x = Turning(lambda z: z.flip(0) if len(z) > 3 else z), noise(6, 4)
    found = rt.layer_cushions(net, x)
    net.change = lambda z: z
    torch.testing.assert_close(found.values, rt.layer_cushions(net, x).values)
    assert found.layers == ("first", "second#1", "second#2")


@pytest.mark.parametrize(("change", "reason"), [
    (lambda net, z: torch.cat([z, z[:1]]), "the rows of its input are not those of the samples"),
    (lambda net, z: net.second(z), "the number of its calls depends on the samples"),
])  # fmt: skip
def test_what_a_later_batch_shows_is_heard(change, reason):
    net = Turning(lambda z: change(net, z) if len(z) == 1 else z)
    found = rt.layer_cushions(net, noise(5, 4), batch=4)
    assert found.layers == ("first",) and reason in found.not_covered["second"]


def test_a_net_that_takes_no_single_sample_is_told_apart():
    def routed(x, w):
        if len(x) < 2:
            raise RuntimeError("needs two samples")
        return F.linear(x[x[:, 0].argsort()], w)

    net = nn.Sequential(nn.Linear(4, 4), Used((3, 4), routed))
    found = rt.layer_cushions(net, noise(5, 4))
    assert found.layers == ("0",)
    assert re.search("those routed to experts; one sample alone: .* two samples$",
                     found.not_covered["1.w"])  # fmt: skip


def test_picked_rows_of_a_weight_with_an_identity_have_no_identity():
    class Picking(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = rt.identity.with_identity(nn.Linear(4, 4), "residual")
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(F.linear(x, self.inner.weight[[0, 0, 1, 2]]))

    found = rt.layer_cushions(Picking(), noise(3, 4))
    assert found.layers == ("head",) and "without its identity" in str(found.not_covered)


class Keeping(nn.Module):
    """Makes its weight in the first call in eval mode, as layers with merged low-rank parts do."""

    def __init__(self):
        super().__init__()
        self.w, self.ready = nn.Parameter(noise(4, 3)), False

    def forward(self, x):
        if not self.ready and not self.training:
            self.made, self.ready = self.w.T.contiguous(), True
        return F.linear(x, self.w.T if self.training else self.made)


def test_a_weight_that_is_kept_from_the_first_call_is_seen_in_every_call(left_alone):
    net, x = Keeping().train(), noise(6, 4)
    with left_alone(net):
        found = rt.layer_cushions(net, x, batch=3)
    assert found.layers == ("w",) and not hasattr(net, "made") and not net.ready
    exact = (x @ net.w).norm(dim=1) / net.w.norm() / x.norm(dim=1)
    torch.testing.assert_close(found.values[0], exact.detach(), rtol=1e-12, atol=0)


class Tied(nn.Module):
    """An embedding that is the decoder, too, by function or by a layer that shares it."""

    def __init__(self, *, layer):
        super().__init__()
        self.embed, self.inner = nn.Embedding(9, 4), nn.Linear(4, 4)
        if layer:
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.inner(self.embed(ids))
        return self.head(x) if hasattr(self, "head") else F.linear(x, self.embed.weight)


@pytest.mark.parametrize("layer", [False, True], ids=["function", "layer"])
def test_a_tied_decoder(layer):
    net, ids = Tied(layer=layer), torch.arange(15).view(5, 3) % 9
    found = rt.layer_cushions(net, ids)
    assert found.layers == ("inner", "head" if layer else "embed.weight")
    assert not found.not_covered
    z = net.inner(net.embed(ids)).detach()
    weight = net.embed.weight.detach()
    exact = (z @ weight.T).flatten(1).norm(dim=1) / weight.norm() / z.flatten(1).norm(dim=1)
    torch.testing.assert_close(found.values[1], exact, rtol=1e-12, atol=0)


def test_layers_that_share_a_weight_keep_their_names_and_places():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    net.append(net[1])
    assert rt.layer_cushions(net, noise(3, 4)).layers == ("0", "1#1", "2", "1#2")


def test_rows_of_absorbed_nets_follow_the_forward_pass():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.up, self.down, self.stem = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + self.down(F.relu(self.up(x))))

    layers = "stem", "up", "down", "head"
    for net in (Net(), rt.absorb(Net())):
        assert rt.layer_cushions(net, noise(3, 4)).layers == layers
        assert rt.stability.weight_noise(net, noise(3, 4), levels=[0.1], draws=1).places == layers


def test_an_order_that_depends_on_the_samples():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.last, self.first = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            x = self.stem(x)
            one, other = (self.first, self.last)[:: 1 if len(x) > 2 else -1]
            return one(x) + other(x)

    assert rt.layer_cushions(Net(), noise(5, 4), batch=3).layers == ("stem", "last", "first")


@pytest.mark.parametrize("normed", [
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    pytest.param(torch.nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore")),
    torch.nn.utils.spectral_norm,
    lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
], ids=["weight", "spectral", "weight, old", "spectral, old", "pruned"])  # fmt: skip
def test_weights_that_are_computed(normed):
    layer, x = normed(nn.Linear(4, 3)).eval(), noise(5, 4)
    found = rt.layer_cushions(nn.Sequential(layer), x)
    assert found.layers == ("0",) and not found.not_covered
    layer(x)
    weight = layer.weight.detach()
    exact = (x @ weight.T).norm(dim=1) / weight.norm() / x.norm(dim=1)
    torch.testing.assert_close(found.values[0], exact, rtol=1e-12, atol=0)


class Routed(nn.Module):
    """Experts in one tensor; each takes the tokens that are routed to it."""

    def __init__(self, form=""):
        super().__init__()
        self.form = form
        self.gate = nn.Linear(6, 3, bias=False)
        self.up = nn.Parameter(torch.randn(3, 6, 6) / 6**0.5)

    def forward(self, x):
        flat = x.flatten(0, 1)
        score, pick = self.gate(flat).softmax(-1).max(-1)
        out = torch.zeros_like(flat)
        for e in range(3):
            chosen = torch.where(pick == e)[0]
            if self.form == "list":
                chosen = chosen.tolist()
            if len(chosen):  # an expert without tokens does not run
                rows = flat[chosen]
                if self.form == "keywords":
                    rows = torch.index_select(input=flat, dim=0, index=chosen)
                part = F.linear(rows, self.up[e]) * score[chosen, None]
                out.index_add_(0, torch.as_tensor(chosen), part)
        return out.view_as(x)


@pytest.mark.parametrize("form", ["tensor", "list", "keywords"])
@pytest.mark.parametrize("seed", range(4))
def test_routed_rows_belong_to_their_samples(seed, form):
    torch.manual_seed(seed)
    net, x = Routed(form), noise(9, 3, 6, seed=seed)
    found = rt.layer_cushions(net, x, batch=5)
    assert found.layers == ("gate", "up[0]", "up[1]", "up[2]") and not found.not_covered
    for e in range(3):
        for value, sample in zip(found.values[1 + e], x, strict=True):
            z = sample[net.gate(sample).argmax(-1) == e]
            exact = (z @ net.up[e].T).norm() / net.up[e].norm() / z.norm()
            torch.testing.assert_close(value, exact.detach(), equal_nan=True, rtol=1e-12, atol=0)


def test_experts_whose_rows_depend_on_other_samples_are_listed():
    class Limited(Routed):
        def forward(self, x):  # an expert takes four tokens of a batch
            flat = x.flatten(0, 1)
            chosen = torch.where(self.gate(flat).argmax(-1) == 0)[0][:4]
            out = torch.zeros_like(flat).index_add(0, chosen, F.linear(flat[chosen], self.up[0]))
            return out.view_as(x)

    torch.manual_seed(0)
    found = rt.layer_cushions(Limited(), noise(9, 3, 6))
    assert found.layers == ("gate",)
    assert "depend on the other samples" in found.not_covered["up[0]"]


def test_words_and_masks_in_a_mapping():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.layer = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, ids, mask):
            x = self.words(ids)
            return self.layer(x[mask.bool()])  # only words that are none of the padding

    net, ids = Net(), torch.arange(20).view(4, 5) % 9
    mask = torch.tensor([[1] * n + [0] * (5 - n) for n in (5, 2, 3, 2)])
    found = rt.layer_cushions(net, {"ids": ids, "mask": mask})
    for value, sample, length in zip(found.values[0], ids, (5, 2, 3, 2), strict=True):
        z = net.words(sample[:length])
        exact = (z @ net.layer.weight.T).norm() / net.layer.weight.norm() / z.norm()
        torch.testing.assert_close(value, exact.detach(), rtol=1e-12, atol=0)


def test_the_identity_is_removed_from_whole_weights_only():
    layer = rt.identity.with_identity(nn.Linear(4, 4), "residual")
    net = nn.Module()
    net.layer, x = layer, noise(3, 4)
    net.forward = lambda x: layer(x) @ layer.weight  # and the other way round
    found = rt.layer_cushions(net, x)
    assert found.layers == ("layer", "layer.weight.mT")
    ratio = (found.identity_removed / found.effective).flatten()
    original = layer.parametrizations.weight.original
    torch.testing.assert_close(ratio, (layer.weight.norm() / original.norm()).detach().expand(6))
    net.forward = lambda x: F.linear(x, layer.weight[:2]) + F.linear(x, net.head)
    net.head = nn.Parameter(noise(2, 4))
    found = rt.layer_cushions(net, x)
    assert found.layers == ("head",) and "in part" in found.not_covered["layer.weight"]


@pytest.mark.parametrize(
    ("name", "exact"), [("linear", True), ("addmm", True), ("scaled addmm", False),
                        ("addmm to a matrix", False), ("conv1d", True)],
)  # fmt: skip
def test_a_product_with_a_factor_or_another_sum_is_not_exact(name, exact):
    """The output of such a use is computed again where the bias is left out."""
    net, x, uses = Used(*OPERATIONS[name][:2]), noise(7, TOKENS, FEATURES), []
    with MapObserver(net).watching(uses.append):
        net(x)
    assert [use.exact for use in uses] == [exact]


@pytest.mark.parametrize("norm", ["kernel", "operator"])
def test_images_without_an_axis_of_samples_count_as_batches_of_one(norm):
    x = noise(7, TOKENS, FEATURES)
    nets = (
        Used((3, 5, 3), lambda x, w: F.conv1d(x, w, w[:, 0, 0])),
        Used((3, 5, 3), lambda x, w: torch.stack([F.conv1d(z, w, w[:, 0, 0]) for z in x])),
    )
    one, other = (rt.layer_cushions(net, x, norm=norm).values for net in nets)
    torch.testing.assert_close(other, one, rtol=1e-12, atol=0)


def test_noise_goes_into_convolutions_by_function():
    """Of settings by default: the law of the patches, and the output of a net of other weights."""
    net, x = Used((3, 5, 2), lambda x, w: F.conv1d(x, w).flatten(1)), noise(4, TOKENS, FEATURES)
    found = rt.stability.weight_noise(net, x, levels=[0.1], draws=1, generator=3)
    clean, below = net(x).detach(), net(x).detach().norm(dim=1)
    law = 0.1 * (3 * x.unfold(2, 2, 1).square().sum((1, 2, 3))).sqrt() / below
    torch.testing.assert_close(found.predicted[0, 0], law, rtol=1e-12, atol=0)
    with torch.no_grad():
        net.w += 0.1 * noise(3, 5, 2, seed=3)
    error = ((net(x) - clean).norm(dim=1) / below).detach()
    torch.testing.assert_close(found.at_output[0, 0], error, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.measured, found.at_output, rtol=1e-10, atol=0)


def test_a_weight_named_as_that_of_attention_is_one_map():
    net = nn.Module()
    net.in_proj_weight, x = nn.Parameter(noise(3, 4)), noise(5, 4, seed=1)
    net.forward = lambda x: F.linear(x, net.in_proj_weight)
    assert rt.layer_cushions(net, x).layers == ("in_proj_weight",)


def test_a_shared_layer_is_wanted_by_any_of_its_names():
    layer, x = nn.Linear(4, 4), noise(5, 4)
    net = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(4, 2))
    assert rt.layer_cushions(net, x, layers=["2"]).layers == ("0#1", "0#2")
    assert rt.stability.weight_noise(net, x, layers=["2"], draws=1).places == ("0",)


def test_noise_goes_into_any_map():
    net, x = Used((2, 4, 3), lambda x, w: torch.bmm(x.flatten(0, 1).expand(2, -1, -1), w)[1]
                  .view(len(x), -1)), noise(3, TOKENS, FEATURES)  # fmt: skip
    found = rt.stability.weight_noise(net, x, layers=["w[1]"], levels=[0.1], draws=1, generator=3)
    clean = net(x).detach()
    change = 0.1 * noise(3, 4, seed=3)
    with torch.no_grad():
        net.w[1] += change.T
    error = ((net(x) - clean).norm(dim=1) / clean.norm(dim=1)).detach()
    torch.testing.assert_close(found.at_output[0, 0], error, rtol=1e-10, atol=0)
