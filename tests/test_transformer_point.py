"""The zero point of transformers: numbers against nets, and nets against dense Hessians."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from oracles import hessian_by_nested_gradients, jacobian, noise
from small_transformers import LanguageModel, RMSNorm
from tolerances import HESSIAN
from torch import nn

import resid_theory as rt
from resid_theory.curvature import zero_point_of_net
from resid_theory.theory import Branch, transformer_zero_point

CASES = {
    "causal": {},
    "full": {"causal": False, "mlp": "tanh", "layers": 1},
    "groups of heads": {"heads": 4, "kv_heads": 2, "width": 8, "layers": 1},
    "one key head": {"heads": 4, "kv_heads": 1, "layers": 1},
    "fused projection": {"fused": True, "heads": 4, "kv_heads": 2, "layers": 1},
    "gated": {"mlp": "gated", "bias": True, "layers": 1},
    "RMSNorm": {"norm": RMSNorm},
    "biases": {"bias": True},
    "parallel": {"order": "parallel"},
    "post-LN": {"order": "post"},
    "tied": {"tied": True},
    "biases of scores": {"alibi": True, "heads": 4, "kv_heads": 2, "layers": 1},
    "layer scale": {"scale": True},
    "output biases": {"bias": True, "out_bias": True},
    "output biases, post-LN": {"order": "post", "out_bias": True},
    "output biases, layer scale": {"scale": True, "out_bias": True},
}
IDS, WORDS = (torch.randint(7, (6, 5), generator=torch.Generator().manual_seed(n)) for n in (0, 1))


def loss(output, target):
    return F.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=6)


def model(**options):
    torch.manual_seed(0)
    return LanguageModel(**options)


def dense(net, names, value):
    """Rows of the Hessian of a net with branches at zero, and where the named parameters are."""
    with torch.no_grad():
        for parameter in net.branch_weights().values():
            parameter.zero_()
    own = dict(net.named_parameters())
    grads = torch.autograd.grad(value(net), list(own.values()), create_graph=True)
    rows = [g.flatten() for name, g in zip(own, grads, strict=True) if name in names]
    inside = [torch.full((p.numel(),), name in names) for name, p in own.items()]
    return jacobian(torch.cat(rows), list(own.values())), torch.cat(inside)


def off(spectrum, matrix):
    exact = torch.linalg.eigvalsh(matrix)
    return float((spectrum.eigenvalues - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_a_net_has_the_predicted_hessian(case, left_alone):
    net, ids, words = model(**CASES[case]), IDS[:3], WORDS[:3]
    with left_alone(net):
        point = zero_point_of_net(net, loss, (ids, words))
    matrix, inside = dense(net, point.parameters, lambda net: loss(net(ids), words))
    assert set(net.branch_weights()) <= set(point.parameters)
    assert off(point.spectrum, matrix[:, inside]) <= HESSIAN
    if "output" not in case:  # embeddings and read-out do not mix with branches
        assert not matrix[:, ~inside].any()
        assert point.verdict == "strict saddle"
        assert point.spectrum.count_below(0.0) * 2 == point.spectrum.rank
        assert point.condition_number == point.spectrum.nonzero_condition_number
        assert point.reason == "paired weights have eigenvalues of both signs"
    else:
        assert point.verdict == "not stationary"
        assert point.reason == "biases that branches add to the stream have a gradient"


def by_hand(net, options):
    """Branches from gradients and inputs that hooks find in a net at zero."""
    seen, made = {}, []
    for name, module in net.named_modules():
        if name.rpartition(".")[2] in ("attention", "mlp"):
            module.register_forward_hook(
                lambda _, given, output, name=name: seen.update({name: (given[0], output)})
            )
    for parameter in net.branch_weights().values():
        parameter.data.zero_()
    value = loss(net(IDS), WORDS)
    heads, bias = options.get("heads", 2), options.get("bias", False)
    for name, (z, output) in seen.items():
        (g,) = torch.autograd.grad(value, output, retain_graph=True)
        if name.endswith("mlp"):
            gated = options.get("mlp") == "gated"
            made.append(Branch.mlp(g, z, hidden=5, slope=0.5, gated=gated, bias=bias, name=name))
            continue
        weights = None
        if "alibi" in options:
            places = torch.arange(5)
            far = -torch.linspace(0.2, 1.0, heads)[:, None, None] * (places[:, None] - places).abs()
            weights = far.masked_fill(places[:, None] < places, -math.inf).softmax(-1)
        made.append(Branch.attention(
            g, z, heads=heads, kv_heads=options.get("kv_heads"), causal=weights is None,
            attended=weights, bias=bias, name=name,
        ))  # fmt: skip
    return transformer_zero_point(made)


def test_biases_that_act_alike_are_taken_once(monkeypatch):
    module = sys.modules["resid_theory.curvature.zero_point_of_net"]
    monkeypatch.setattr(module, "_WHOLE", 0)
    zero_point_of_net(model(**CASES["output biases"]), loss, (IDS, WORDS))
    with pytest.raises(ValueError, match="^net: branches add 24 biases .* in different ways"):
        zero_point_of_net(model(**CASES["output biases, layer scale"]), loss, (IDS, WORDS))


class Biases:
    """A Hessian of biases of some sizes."""

    def __init__(self, matrix, sizes):
        self.matrix = matrix
        self.risk = SimpleNamespace(parameters=[torch.zeros(size) for size in sizes])

    def __matmul__(self, vectors):
        return self.matrix @ vectors

    def dense(self):
        return self.matrix


M = torch.tensor([[2.0, 0.0, -0.5], [0.0, -3.0, 1.0], [-0.5, 1.0, 0.0]]).double()
APART = {  # where the biases act in different ways, and by how much
    "nowhere": ((0, 0), 0.0, True), "round-off in the first rows": ((0, 1), 2.5e-9, True),
    "the first rows": ((1, 4), 3.3e-9, False), "less in them": ((1, 4), -3.3e-9, False),
    "round-off in the last rows": ((4, 4), 1e-10, True), "less there": ((4, 4), -1e-7, False),
    "the last rows": ((4, 4), 1e-7, False),
}  # fmt: skip


@pytest.mark.parametrize("factor", [1.0, -1.0, 2.0**30, 2.0**-30])
@pytest.mark.parametrize("name", APART)
def test_biases_are_taken_once_where_they_act_alike(name, factor, monkeypatch):
    (row, column), gap, alike = APART[name]
    matrix = torch.kron(torch.ones(2, 2), M).double()
    matrix[row, column] += gap
    matrix[column, row] = matrix[row, column]
    matrix *= factor
    module = sys.modules["resid_theory.curvature.zero_point_of_net"]
    found, count = module._shift_hessian(Biases(matrix, (3, 3)))
    assert torch.equal(found, matrix[:3, :3] if alike else matrix) and count == 1 + alike
    found, count = module._shift_hessian(Biases(matrix, (2, 4)))
    assert torch.equal(found, matrix) and count == 1
    monkeypatch.setattr(module, "_WHOLE", 6)
    assert torch.equal(module._shift_hessian(Biases(matrix, (2, 4)))[0], matrix)
    monkeypatch.setattr(module, "_WHOLE", 5)
    with pytest.raises(ValueError) as caught:
        module._shift_hessian(Biases(matrix, (2, 4)))
    assert str(caught.value) == (
        "net: branches add 6 biases to a stream on which they act in different ways; their Hessian "
        "is taken as a whole, up to 5"
    )
    found, count = module._shift_hessian(Biases(0 * matrix, (3, 3)))
    assert not found.any() and found.shape == (3, 3) and count == 2


INPUTS = {  # of three uses, of which the first two read: at zero, and beside it
    "equal": ([[1.0, 0.0], [2.0], [3.0]], [[1.0, 0.0], [2.0], [3.0]], True),
    "the first differs": ([[1.0, 0.0], [2.0], [3.0]], [[2.0, 0.0], [2.0], [3.0]], False),
    "the second differs": ([[1.0, 0.0], [2.0], [3.0]], [[1.0, 0.0], [1.0], [3.0]], False),
    "zero moves": ([[0.0, 0.0], [2.0], [3.0]], [[0.0, 1.0], [2.0], [3.0]], True),
    "what writes moves": ([[1.0, 0.0], [2.0], [3.0]], [[1.0, 0.0], [2.0], [4.0]], True),
    "fewer": ([[1.0, 0.0], [2.0], [3.0]], [[1.0, 0.0]], False),
    "more": ([[1.0, 0.0], [2.0], [3.0]], [[1.0, 0.0], [2.0], [3.0], [4.0]], False),
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_what_readers_multiply_on_both_sides_of_zero(name):
    zero, side = (
        SimpleNamespace(uses=[SimpleNamespace(input=torch.tensor(x)) for x in xs], readers=[0, 1])
        for xs in INPUTS[name][:2]
    )
    module = sys.modules["resid_theory.curvature.zero_point_of_net"]
    assert module._reads_alike(side, zero) is INPUTS[name][2]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("moved", "gap", "kink"), [
    (1, 0.99e-3, False), (1, 1.01e-3, True), (3, 0.99e-3, False), (3, 1.01e-3, True),
])  # fmt: skip
def test_a_kink_changes_a_response_by_a_thousandth(moved, gap, kink, sign):
    """On average over both sides, in any entry; a response that is none at zero counts from it."""
    seen = []
    at = {1: noise(1, 4, 2, seed=1)}
    mean = {1: at[1].clone(), 3: torch.zeros(1, 4, 2)}
    mean[moved][0, 2, 1] += sign * gap

    def graph(response):
        uses = [SimpleNamespace(rows_shape=(1, 4, width), input=torch.zeros(()).float())
                for width in (2, 0, 3)]  # fmt: skip
        return SimpleNamespace(
            uses=uses, readers=[2, 0], push=lambda moves: seen.append(moves) or response
        )

    module = sys.modules["resid_theory.curvature.zero_point_of_net"]
    measurement = module._Measurement.__new__(module._Measurement)
    measurement._first = "first"
    sides = [graph({n: v + 0.1 * way for n, v in mean.items()}) for way in (1, -1)]
    measurement._both_sides = lambda batch: sides * (batch == "first")
    assert measurement._has_kink(graph(at)) is kink
    assert len(seen) == 3 and all(moves is seen[0] for moves in seen)
    assert {n: (v.shape, v.dtype) for n, v in seen[0].items()} == {
        2: ((1, 4, 3), torch.float32), 0: ((1, 4, 2), torch.float32)
    }  # fmt: skip
    assert seen[0][2].flatten()[:8].ne(seen[0][0].flatten()).all()


@pytest.mark.parametrize("case", ["causal", "groups of heads", "gated", "biases of scores"])
def test_numbers_give_the_spectrum_of_the_net(case):
    net, options = model(**CASES[case]), CASES[case]
    point = by_hand(net, options)
    matrix, inside = dense(net, net.branch_weights(), lambda net: loss(net(IDS), WORDS))
    assert off(point.spectrum, matrix[:, inside]) <= HESSIAN
    flat = [b.flat for b in point.branches if b.flat]
    assert all(set(kinds) <= {"query, key", "gate, up, down"} for kinds in flat)


def coupled(g, z, weights, bias):
    """Sum over sequences and tokens of g times what is attended to, (out, in)."""
    total = torch.zeros(g.shape[2], z.shape[2] + bias)
    for sequence in range(len(g)):
        for token in range(g.shape[1]):
            mean = sum(share * torch.cat([z[sequence, at], torch.ones(bias)])
                       for at, share in enumerate(weights[sequence][token]))  # fmt: skip
            total += torch.outer(g[sequence, token], mean)
    return total


ATTENDED = {
    "all": ((), {}), "causal": ((), {"causal": True}), "one": ((5, 5), {}),
    "heads": ((4, 5, 5), {}), "sequences": ((2, 4, 5, 5), {}),
}  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", ATTENDED)
def test_couplings_of_attention_by_loops(case, bias):
    g, z, (shape, options) = torch.randn(2, 5, 7), torch.randn(2, 5, 3), ATTENDED[case]
    given = torch.rand(shape).softmax(-1) if shape else torch.ones(5, 5)
    options = {**options, "attended": given} if shape else options
    each = (given.tril() if case == "causal" else given).expand(2, 4, 5, 5)
    each = each / each.sum(-1, keepdim=True)
    found = Branch.attention(g, z, heads=4, kv_heads=2, head_width=6, bias=bias, **options)
    heads = [coupled(g, z, each[:, head], int(bias)) for head in range(4)]
    alike = len(shape) < 3
    exact = [torch.cat(heads[:2]), torch.cat(heads[2:])][: 1 if alike else 2]
    assert (found.name, found.kind) == ("attention", "value, output")
    assert found.units == ((12,) if alike else (6, 6))
    assert found.flat == {"query, key": (4 + 2) * 6 * (3 + bias)}
    torch.testing.assert_close(list(found.correlations), exact, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("bias", [False, True])
def test_couplings_of_an_mlp_by_loops(bias):
    g, z = torch.randn(2, 5, 7), torch.randn(2, 5, 3)
    plain, gated = (
        Branch.mlp(g, z, hidden=4, slope=-0.3, gated=gated, bias=bias) for gated in (False, True)
    )
    exact = -0.3 * coupled(g, z, torch.eye(5).expand(2, 5, 5), int(bias))
    torch.testing.assert_close(plain.correlations, (exact,), rtol=1e-12, atol=1e-14)
    assert (plain.name, plain.kind, plain.units, plain.flat) == ("mlp", "up, down", (4,), {})
    assert (gated.kind, gated.correlations, gated.units) == ("gate, up, down", (), ())
    assert gated.flat == {"gate, up, down": 4 * (2 * (3 + bias) + 7)} and gated.spectrum is None


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_heads_may_have_any_width(kv_heads):
    g, z = torch.randn(2, 5, 4), torch.randn(2, 5, 3)
    values = [torch.zeros(6, 3, requires_grad=True) for _ in range(kv_heads)]
    outputs = [torch.zeros(4, 6, requires_grad=True) for _ in range(2)]
    seen = torch.ones(5, 5).tril() / torch.arange(1.0, 6)[:, None] @ z
    total = sum(
        (g * (seen @ values[head * kv_heads // 2].mT @ outputs[head].mT)).sum() for head in (0, 1)
    )
    matrix = hessian_by_nested_gradients(total, [*values, *outputs])
    branch = Branch.attention(g, z, heads=2, kv_heads=kv_heads, head_width=6, causal=True)
    assert off(branch.spectrum, matrix) <= HESSIAN


def test_a_kink_has_the_mean_of_the_hessians_on_both_sides():
    net = model(mlp="relu", layers=1)
    point = zero_point_of_net(net, loss, (IDS, WORDS))
    assert any("kink" in note for note in point.notes)
    total, step = 0.0, 1e-9
    draws = {name: torch.randn(p.shape, generator=torch.Generator().manual_seed(2))
             for name, p in net.branch_weights().items()}  # fmt: skip
    for sign in (1, -1):
        for name, p in net.branch_weights().items():
            p.data = sign * step * draws[name]
        own = [p for name, p in net.named_parameters() if name in point.parameters]
        total = total + hessian_by_nested_gradients(loss(net(IDS), WORDS), own) / 2
    assert off(point.spectrum, total) <= 100 * step


def test_a_kink_does_not_hide_that_few_samples_make_a_coupling_singular():
    """Of full attention B is a sum over samples: of rank two for two, whatever the MLP's kink."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
    net = nn.Sequential(nn.Embedding(7, 8), layer, nn.Linear(8, 7))
    point = zero_point_of_net(net, loss, (IDS[:2], WORDS[:2]))
    (attention,) = [b for b in point.branches if b.kind.endswith("self_attn.out_proj")]
    assert attention.spectrum.rank == 2 * 2 * sum(attention.units)
    assert attention.spectrum.nonzero_condition_number < 1e6


class Rare(nn.Module):
    """Einsum, weights on the left, experts, several streams, and weights that two layers share."""

    def __init__(self):
        super().__init__()
        weight = lambda *shape: nn.Parameter(torch.randn(*shape))  # noqa: E731
        self.words, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)
        self.q, self.k, self.v, self.o = (weight(2, 4, 3) for _ in range(4))
        self.mix_up, self.mix_down, self.shift = weight(6, 5), weight(5, 6), weight(6, 1)
        self.read, self.mix, self.write = weight(2, 3), weight(2, 3, 3), weight(2, 3)
        self.experts_up, self.experts_down = weight(3, 4, 5), weight(3, 5, 4)

    def branch_weights(self):
        known = dict(self.named_parameters())
        return {
            n: p for n, p in known.items() if n not in ("read", "mix", "write") and "." not in n
        }

    def forward(self, ids):
        streams = self.words(ids)[..., None, :].expand(-1, -1, 3, -1)
        for read, mix, write in zip(self.read, self.mix, self.write, strict=True):
            x = torch.einsum("n,btnd->btd", read, streams)
            q, k, v = (torch.einsum("btd,hdk->bhtk", x, w) for w in (self.q, self.k, self.v))
            found = (q @ k.mT).softmax(-1) @ v
            y = torch.einsum("bhtk,hdk->btd", found, self.o)
            y = y + self.mix_down @ torch.tanh(self.mix_up @ x + self.shift)
            flat = x.reshape(1, -1, 4).expand(3, -1, -1)
            hidden = torch.sin(torch.bmm(flat, self.experts_up))
            y = y + torch.bmm(hidden, self.experts_down).mean(0).view_as(x)
            streams = torch.einsum("mn,btnd->btmd", mix, streams)
            streams = streams + torch.einsum("n,btd->btnd", write, y)
        return self.head(streams.mean(-2))


def test_any_form_of_matrices_on_any_streams():
    torch.manual_seed(0)
    net = Rare()
    point = zero_point_of_net(net, loss, (IDS, WORDS))
    matrix, inside = dense(net, point.parameters, lambda net: loss(net(IDS), WORDS))
    assert off(point.spectrum, matrix[:, inside]) <= HESSIAN
    # Both layers have all weights, which stand in the first one: u pairs of units with a coupling
    # of rank r have 2 u r eigenvalues that are not zero; shares of streams, q and k have none.
    table = point.table()
    rows = zip(*(table[name] for name in ("branch", "weights", "entries", "nonzero")), strict=True)
    assert list(rows) == [
        ("net", "v, o", 2 * 2 * 4 * 3, 2 * 6 * 4), ("net", "read, write", 2 * 2 * 3, 0),
        ("net", "k, q", 2 * 2 * 4 * 3, 0), ("net", "mix_up, mix_down", 2 * 6 * 5 + 6, 2 * 6 * 5),
        ("net", "experts_up, experts_down", 2 * 3 * 4 * 5, 2 * 15 * 4),
    ]  # fmt: skip


def test_layers_of_torch_batches_and_float32():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 5, 0.3, "gelu", batch_first=True, norm_first=True)
    net = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2)).float()
    x, y = torch.randn(7, 5, 3), torch.randn(7, 5, 2)
    point = zero_point_of_net(net, "square", [(x[:3], y[:3]), (x[3:], y[3:])])
    wide = net.double().eval()
    inside = [p for name, p in wide.named_parameters() if name in point.parameters]
    with torch.no_grad():
        for name, p in wide[1].named_parameters():
            if "norm" not in name:
                p.zero_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        value = 0.5 * (wide(x) - y).square().sum() / 7
        exact = hessian_by_nested_gradients(value, inside)
    assert off(point.spectrum, exact) <= 1e-6  # the data are in float32


class Branched(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch, self.head = branch, nn.Linear(3, 3)

    def forward(self, x):
        return self.head(x + self.branch(x))


def chain(*layers):
    return Branched(nn.Sequential(*layers))


class Idle(nn.Module):
    """Two layers beside one whose output goes nowhere and one whose input is zero."""

    def __init__(self):
        super().__init__()
        self.pair = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        self.unread, self.unfed = (nn.Linear(3, 3, bias=False) for _ in range(2))

    def forward(self, x):
        return self.pair(x) + 0 * self.unread(x) + self.unfed(0 * x)


class Shared(nn.Module):
    """A pair of layers beside the stream, and a matrix that both have."""

    def __init__(self, where, *, bias):
        super().__init__()
        self.matrix, self.where = nn.Linear(3, 3, bias=False), where
        self.pair = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3, bias=bias))

    def forward(self, x):
        if self.where == "behind":
            return self.matrix(x) + self.matrix(self.pair(x))
        if self.where == "in front":
            return self.matrix(x) + self.pair(self.matrix(x.tanh()))
        return self.matrix(x) + self.pair[1:](self.matrix(x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("where", ["in front", "behind"])
def test_a_matrix_beside_a_branch_may_be_that_of_the_stream(where, bias):
    torch.manual_seed(0)
    net, (x, y) = Shared(where, bias=bias), torch.randn(2, 7, 3)
    point = zero_point_of_net(net, "square", (x, y))
    own = {name: p for name, p in net.named_parameters() if name.startswith("pair")}
    assert point.parameters == point.zeroed == tuple(own)
    with torch.no_grad():
        for p in own.values():
            p.zero_()
    loss = 0.5 * (net(x) - y).square().sum() / 7
    assert off(point.spectrum, hessian_by_nested_gradients(loss, list(own.values()))) <= HESSIAN


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        lambda: (nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3, bias=False), nn.LayerNorm(3, eps=0.1)),
        lambda: (nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)),
        lambda: (Idle(),),
    ],
    ids=["biases of middle layers", "bias of a norm behind", "train mode", "idle"],
)
def test_branches_of_layers_of_torch(layers):
    torch.manual_seed(0)
    net, (x, y) = chain(*layers()), torch.randn(2, 7, 3)
    net.head.weight.data[:, 1] = 0  # of which the loss has no gradient
    state = torch.get_rng_state()
    point = zero_point_of_net(net, "square", (x, y))
    assert torch.equal(state, torch.get_rng_state())
    net.eval()
    with torch.no_grad():
        for name in point.zeroed:
            net.get_parameter(name).zero_()
    inside = [p for name, p in net.named_parameters() if name in point.parameters]
    exact = hessian_by_nested_gradients(0.5 * (net(x) - y).square().sum() / 7, inside)
    assert off(point.spectrum, exact) <= HESSIAN


class Sides(nn.Module):
    """Matrices on the right and on the left of batches of vectors, with biases beside them."""

    def __init__(self):
        super().__init__()
        sizes = ((5, 3), (3, 5), (5, 1), (3, 4), (4, 3), (6, 3), (3, 6), (6, 1))
        names = ("up", "down", "shift", "one", "other", "first", "last", "offset")
        for name, size in zip(names, sizes, strict=True):
            self.register_parameter(name, nn.Parameter(torch.randn(size)))

    def forward(self, x):
        up, down, one, other = (
            w.expand(len(x), -1, -1) for w in (self.up, self.down, self.one, self.other)
        )
        y = torch.bmm(down, torch.tanh(torch.baddbmm(self.shift, up, x.mT))).mT
        y = y + torch.bmm(torch.sin(torch.bmm(x, one) + 0.0), other)
        hidden = torch.tanh(torch.addmm(self.offset, self.first, x.flatten(0, 1).T))
        return y + (self.last @ hidden).T.view_as(x)


def test_matrices_on_either_side_of_batches():
    torch.manual_seed(0)
    net, (x, y) = Branched(Sides()), torch.randn(2, 2, 4, 3)
    point = zero_point_of_net(net, "square", (x, y))
    with torch.no_grad():
        for p in net.branch.parameters():
            p.zero_()
    inside = list(net.branch.parameters())
    exact = hessian_by_nested_gradients(0.5 * (net(x) - y).square().sum() / 2, inside)
    assert off(point.spectrum, exact) <= HESSIAN
    assert {"up, down", "one, other", "first, last"} <= set(point.table()["weights"])


class Entered(nn.Module):
    """A model whose words are not those of its table, and whose outputs are in another order."""

    def __init__(self, model, way):
        super().__init__()
        self.model, self.way = model, way

    def forward(self, ids):
        words = self.model.words
        if self.way == "shifted":
            x = words((ids + 1) % 7)
        else:
            x = F.one_hot((ids + 1) % 7, 7).double() @ words.weight
        for block in self.model.blocks:
            x = block(x + self.model.places.weight)
        return self.model.head(self.model.norm(x))[:, torch.arange(4, -1, -1)]


@pytest.mark.parametrize("way", ["shifted", "one-hot"])
def test_words_may_enter_in_any_way(way):
    net = Entered(model(layers=1, causal=False), way)
    one = zero_point_of_net(net, loss, (IDS, WORDS))
    other = zero_point_of_net(net.model, loss, ((IDS + 1) % 7, WORDS.flip(1)))
    torch.testing.assert_close(
        one.spectrum.eigenvalues, other.spectrum.eigenvalues, rtol=1e-10, atol=1e-14
    )


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.one(x) * self.other(x)


class BehindItself(nn.Linear):
    def forward(self, x):
        return torch.tanh(super().forward(x)) @ self.weight


def shared_bias():
    net = chain(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    net.branch[0].bias = net.head.bias
    return net


class Places(nn.Linear):
    def forward(self, x):
        return x + super().forward(torch.eye(3))[0]


class Shifted(nn.Module):
    """Four tokens of each sample, and what is added to the four hidden units of each."""

    def __init__(self, *shape):
        super().__init__()
        self.up, self.down, self.shift = (
            nn.Parameter(torch.randn(size)) for size in ((3, 4), (4, 3), shape)
        )

    def forward(self, x):
        tokens = x[:, None] * torch.arange(1.0, 5.0)[:, None]
        return (torch.tanh(tokens @ self.up + self.shift) @ self.down).sum(1)


@pytest.mark.parametrize(
    ("net", "options", "words"),
    [
        (lambda: Branched(Shifted()), {}, "not one number for each hidden unit"),
        (lambda: Branched(Shifted(4, 1)), {}, "has curvature at zero weights"),
        (lambda: Branched(Shifted(4, 4)), {}, "not one number for each hidden unit"),
        (lambda: Branched(Bilinear()), {}, "has curvature at zero weights"),
        (
            lambda: chain(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 3)),
            {},
            "'branch.1.bias' has curvature",
        ),
        (lambda: Branched(BehindItself(3, 4)), {}, "reads the stream and writes it"),
        (lambda: chain(nn.Linear(3, 3), Places(3, 3), nn.Linear(3, 3)), {}, "in no product"),
        (lambda: chain(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 3)), {}, "branch.2.weight.* φ"),
        (lambda: chain(nn.Tanh(), nn.Linear(3, 3)), {}, "branch.1.weight' alone is a branch"),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), {}, "has no branch"),
        (
            lambda: chain(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)),
            {"branches": "head.weight"},
            "no way leads from the data to the loss without 'head.weight'",
        ),
        (
            lambda: chain(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)),
            {"branches": "branch.0.bias"},
            "'branch.0.bias' is in no product of a weight with data",
        ),
        (
            lambda: chain(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 3)),
            {},
            "is computed from its parameter",
        ),
        (
            lambda: chain(nn.Linear(3, 4), nn.Linear(4, 3), nn.LayerNorm(3, eps=0.0)),
            {},
            "a norm behind a branch needs eps above zero",
        ),
        (
            lambda: chain(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 1), nn.Conv1d(2, 1, 1),
                          nn.Flatten()),
            {},
            "is in a convolution",
        ),
        (
            lambda: chain(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 3, padding="same"),
                          nn.Conv1d(2, 1, 1), nn.Flatten()),
            {},
            "'branch.1.weight' of a branch is in a convolution",
        ),
        (lambda: Shared("inside", bias=True), {},
         "'matrix.weight' in the branch of 'pair.2.weight' is not zero, because the stream has it"),
        (shared_bias, {}, "'branch.0.bias' is a weight of a branch and of the stream, too"),
    ],
)  # fmt: skip
def test_what_is_refused(net, options, words):
    data = torch.randn(5, 3), torch.randn(5, 3)
    with pytest.raises(ValueError, match=words):
        zero_point_of_net(net(), "square", data, **options)


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(3, 4),
            nn.Linear(3, 4),
            nn.Linear(4, 3, bias=False),
        )

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


def test_gated_branches_alone_are_flat_and_have_no_kink():
    data = torch.randn(5, 3), torch.randn(5, 3)
    point = zero_point_of_net(Branched(Gate()), "square", data)
    assert (point.verdict, point.spectrum.size, point.spectrum.rank) == ("degenerate", 44, 0)
    assert not point.notes


class Beside(Gate):
    """A gate with biases and a norm, and a pair of layers behind it."""

    def __init__(self):
        super().__init__()
        self.norm, self.down = nn.LayerNorm(3), nn.Linear(4, 3)
        self.pair = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))

    def forward(self, x):
        x = x + super().forward(self.norm(x))
        return x + self.pair(x)


def encoder():
    return nn.TransformerEncoderLayer(4, 2, 5, 0.0, batch_first=True, norm_first=True)


# Branch, weights, entries and how many eigenvalues are not zero: of u pairs of units in front of
# k outputs 2 u k, of a stream with biases k; the rest of what attention and norms have is flat.
ROWS = {
    "gate": (Beside, (7, 3), 3, [
        ("0", "down, up, up.bias, gate, gate.bias", 12 + 16 + 16, 0),
        ("0", "norm.bias, norm", 6, 0),
        ("0.pair", "0, 2", 24 + 18, 2 * 6 * 3), ("all", "output biases", 2 * 3, 3)]),
    "encoder": (encoder, (7, 5, 4), 2, [
        ("0", "self_attn.in_proj_weight, self_attn.out_proj", 20 + 16, 2 * 4 * 2),
        ("0", "self_attn.in_proj_bias, the rest", 8, 0),
        ("0", "self_attn.in_proj_weight, the rest", 32, 0), ("0", "norm1.bias, norm1", 8, 0),
        ("0", "linear1, linear2", 25 + 20, 2 * 5 * 2), ("0", "norm2.bias, norm2", 8, 0),
        ("all", "output biases", 2 * 4, 2)]),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rows_name_all_parameters_of_branches(name):
    torch.manual_seed(0)
    make, shape, outputs, rows = ROWS[name]
    net = nn.Sequential(make(), nn.Linear(shape[-1], outputs))
    point = zero_point_of_net(
        net, "square", (torch.randn(shape), torch.randn(*shape[:-1], outputs))
    )
    table = point.table()
    columns = "branch", "weights", "entries", "nonzero"
    assert list(zip(*(table[column] for column in columns), strict=True)) == rows
    for row, smallest, largest in zip(rows, table["smallest"], table["largest"], strict=True):
        assert largest > 0 if row[3] else largest == smallest == 0
        if row[0] != "all":
            assert smallest == pytest.approx(-largest, rel=1e-12)
    inside = [n for n, _ in net.named_parameters() if n.startswith("0.")]
    assert sorted(point.parameters) == sorted(inside)
    assert point.zeroed == tuple(n for n in point.parameters if "norm" not in n)
    assert point.count == 2 and point.spectrum.size == sum(row[2] for row in rows)


class Kinked(Gate):
    """A pair, and a gate whose response is zero but for the step across the kink."""

    def __init__(self):
        super().__init__()
        self.pair = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))

    def forward(self, x):
        return self.pair(x) + self.down(F.relu(self.gate(x)) * self.up(x))


def test_what_a_kink_leaves_of_a_response_of_zero_pairs_nothing():
    point = zero_point_of_net(Branched(Kinked()), "square", torch.randn(2, 5, 3).unbind())
    assert (point.verdict, point.spectrum.size, point.spectrum.rank) == ("strict saddle", 72, 24)


class Routed(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(3, 2)
        self.up, self.down = (nn.ModuleList(nn.Linear(3, 3) for _ in "ab") for _ in "ab")

    def forward(self, x):
        chosen = self.router(x).softmax(-1)
        total = x
        for number, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            own = (chosen.argmax(-1) == number).nonzero().flatten()
            if len(own):
                hidden = torch.tanh(up(x[own]))
                total = total.index_add(0, own, chosen[own, number, None] * down(hidden))
        return total


def test_a_router_stays_as_it_is_or_is_refused():
    torch.manual_seed(0)
    net, data = Routed(), (torch.randn(8, 3), torch.randn(8, 3))
    with pytest.raises(ValueError, match="decide which weights a token meets"):
        zero_point_of_net(net, "square", data)
    point = zero_point_of_net(net, "square", data, branches=["up.*.weight", "down.*.weight"])
    assert set(point.table()["weights"]) >= {"up.0, down.0", "up.1, down.1"}


def test_a_reader_that_a_graph_lacks_tells_of_a_router():
    net = Routed()
    net.router.weight.data = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    net.router.bias.data.zero_()
    x = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match="decide which weights a token meets"):
        zero_point_of_net(net, "square", (x, torch.zeros(2, 3)))


def test_batches_of_a_sum_may_miss_some_experts():
    torch.manual_seed(0)
    net, x, y = Routed(), torch.randn(9, 3), torch.randn(9, 3)
    order = net.router(x).argmax(-1).argsort()
    batches = [(x[rows], y[rows]) for rows in order.split([7, 2])][::-1]
    assert not net.router(batches[0][0]).argmax(-1).unique().numel() > 1
    loss, names = nn.MSELoss(reduction="sum"), ["up.*.weight", "down.*.weight"]
    with pytest.raises(ValueError, match="^branches: 'up.0.weight' is in no product"):
        zero_point_of_net(net, loss, batches, branches=names)
    point = zero_point_of_net(net, loss, batches[::-1], branches=names)
    with torch.no_grad():
        for name in point.zeroed:
            net.get_parameter(name).zero_()
    inside = [p for name, p in net.named_parameters() if name in point.parameters]
    assert off(point.spectrum, hessian_by_nested_gradients(loss(net(x), y), inside)) <= HESSIAN


class Some(nn.Module):
    """A branch of some of the samples."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.head = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        own = (x[:, 0] > 0).nonzero().flatten()
        if len(own):
            x = x.index_add(0, own, self.down(torch.tanh(self.up(x[own]))))
        return self.head(x)


def test_batches_may_miss_all_branches():
    torch.manual_seed(0)
    net, x, y = Some(), torch.randn(9, 3), torch.randn(9, 3)
    x[-3:, 0] = -1.0
    one = zero_point_of_net(net, "square", (x, y))
    other = zero_point_of_net(net, "square", [(x[:6], y[:6]), (x[6:], y[6:])])
    torch.testing.assert_close(other.spectrum.eigenvalues, one.spectrum.eigenvalues)


class Mixed(nn.Module):
    """Units with slopes of their own, by sample, or of which one has a small part in another."""

    def __init__(self, activation, slopes, vary=0.0, part=0.0):
        super().__init__()
        self.up, self.down = nn.Linear(3, 5, bias=False), nn.Linear(5, 3, bias=False)
        self.activation, self.mix = activation, torch.eye(5)
        self.slopes, self.vary = torch.tensor(slopes), vary * torch.arange(5.0)
        self.mix[2, 0] = part

    def forward(self, x):
        slopes = self.slopes + self.vary * x[:, :1].square()
        return self.down(self.activation(self.up(x)) * slopes @ self.mix)


@pytest.mark.parametrize(("part", "vary"), [(1.0, 0.0), (1.0, 1.0), (1e-4, 1.0)])
@pytest.mark.parametrize("activation", [torch.tanh, torch.relu])
def test_a_column_that_reads_several_units_is_refused(activation, part, vary):
    torch.manual_seed(0)
    net, data = Branched(Mixed(activation, [1.0] * 5, vary, part)), torch.randn(2, 7, 3)
    with pytest.raises(ValueError, match="^net: a column of 'branch.down.weight' reads several"):
        zero_point_of_net(net, "square", tuple(data))


def test_a_small_part_of_another_unit_is_refused():
    torch.manual_seed(0)
    net, data = Branched(Mixed(torch.tanh, [1.0] * 5, part=1e-4)), torch.randn(2, 7, 3)
    with pytest.raises(ValueError, match="^net: a column of 'branch.down.weight' reads several"):
        zero_point_of_net(net, "square", tuple(data))


@pytest.mark.parametrize("power", [-40, 40])
@pytest.mark.parametrize("activation", [torch.tanh, torch.relu])
def test_scaled_data_scale_the_prediction(activation, power):
    torch.manual_seed(0)
    net = Branched(Mixed(activation, [0.1, 0.3 / 3, 0.2, 0.2, 0.1]))
    net.head.bias.data.zero_()
    x, y = torch.randn(2, 7, 3)
    one, other = (
        zero_point_of_net(net, "square", (scale * x, scale * y)) for scale in (1.0, 2.0**power)
    )
    scaled = one.spectrum.eigenvalues * 4.0**power
    torch.testing.assert_close(other.spectrum.eigenvalues, scaled, rtol=1e-12, atol=0)
    for point in (one, other):
        (branch,) = point.branches
        assert sorted(branch.units) == [2, 3]


class Normed(nn.Module):
    """Branches behind norms, which multiply them by 15, 100, 1 and 30 at zero."""

    def __init__(self):
        super().__init__()
        norms = [nn.RMSNorm(3, gain**-2.0, False) for gain in (15, 100, 30)]
        norms.insert(2, nn.Identity())
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False), norm)
            for norm in norms
        )

    def forward(self, x):
        return sum((branch(x) for branch in self.branches), x)


def test_norms_behind_branches_are_told():
    point = zero_point_of_net(Normed(), "square", (torch.randn(5, 3), torch.randn(5, 3)))
    assert point.notes == (
        "a norm behind a branch multiplies what 2 weights write by up to 100 at zero: the Hessian "
        "holds only while they write far less than 0.01",
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda g: Branch.attention(g, g[:1], heads=2), "inputs: got shapes"),
        (lambda g: Branch.attention(g, g, heads=3), "head_width: is missing"),
        (lambda g: Branch.attention(g, g, heads=4, kv_heads=3), "kv_heads: got 3"),
        (lambda g: Branch.attention(g, g, heads=2, attended=torch.eye(4)), "attended: got shape"),
        (
            lambda g: Branch.attention(g, g, heads=2, attended=torch.ones(3, 5, 5)),
            "attended: got shape .*needs 2 heads",
        ),
        (
            lambda g: Branch.attention(g, g, heads=2, attended=torch.eye(5), causal=True),
            "causal: is told",
        ),
        (lambda g: Branch.mlp(g, g, hidden=0), "hidden: got 0"),
        (lambda g: Branch.mlp(g, g, hidden=2, slope=math.nan), "slope"),
        (lambda g: transformer_zero_point([]), "branches: got none"),
        (
            lambda g: transformer_zero_point([Branch.mlp(g, g, hidden=1)], biases=2),
            "shift: got none with 2 biases",
        ),
        (
            lambda g: transformer_zero_point([Branch.mlp(g, g, hidden=1)], shift=g[0], biases=2),
            "shift: got shape",
        ),
    ],
)
def test_wrong_numbers(make, words):
    with pytest.raises(ValueError, match=words):
        make(torch.ones(2, 5, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_of_any_precision_have_the_rank_of_what_a_norm_leaves(dtype):
    g, z = torch.randn(2, 20, 5, 8, dtype=dtype)
    z = F.layer_norm(z, (8,))  # without a mean, so that each hidden unit has a change without force
    branches = [Branch.attention(g, z, heads=2, causal=True), Branch.mlp(g, z, hidden=3)]
    assert transformer_zero_point(branches).spectrum.rank == 2 * 7 * (8 + 3)


def test_biases_of_all_branches_shift_the_stream_alike():
    g, z = torch.randn(2, 5, 4)
    skew = torch.randn(3, 3)
    M = torch.diag(torch.tensor([2.0, -1.0, 0.0])) + skew - skew.mT
    branches = [Branch.mlp(g, z, hidden=3, name="one"), Branch.mlp(g, z, hidden=2, gated=True)]
    branches.append(
        Branch.attention(g[None], z[None], heads=2, head_width=3, causal=True, name="two")
    )
    still, moving = (
        transformer_zero_point(branches, shift=M, biases=2, gradient=size) for size in (0, 0.5)
    )
    assert (still.verdict, moving.verdict) == ("strict saddle", "not stationary")
    exact = torch.tensor([-2.0, 0, 0, 0, 0, 4])
    assert (still.shifts.eigenvalues - exact).abs().max() <= HESSIAN and still.shifts.nullity == 4
    parts = [branches[0].spectrum, None, branches[2].spectrum, None, still.shifts]
    sizes = [parts[0].size, 2 * 3 * 4, parts[2].size, (2 + 2) * 3 * 4, 6]
    table = still.table()
    assert table["branch"] == ["one", "mlp", "two", "two", "all"]
    assert table["weights"] == ["up, down", "gate, up, down", "value, output", "query, key",
                                "output biases"]  # fmt: skip
    assert (table["entries"], table["nonzero"]) == (sizes, [6 * 4, 0, 6 * 4 * 2, 0, 2])
    for name in ("smallest", "largest"):
        assert table[name] == [getattr(part, name) if part else 0.0 for part in parts]
    conditions = [part.nonzero_condition_number if part else math.nan for part in parts]
    assert table["condition_number"] == pytest.approx(conditions, nan_ok=True)
    assert still.spectrum.size == sum(sizes) and still.count == 3
    every = torch.cat([part.eigenvalues for part in parts if part])
    zeros = torch.zeros(sum(sizes) - len(every))
    assert (still.spectrum.eigenvalues - torch.cat([every, zeros]).sort()[0]).abs().max() <= HESSIAN
    assert still.index == int((still.spectrum.eigenvalues < 0).sum()) / sum(sizes)


def test_a_flat_point_is_degenerate():
    g = torch.ones(2, 5, 4)
    point = transformer_zero_point([Branch.mlp(g, g, hidden=3, gated=True)])
    assert (point.verdict, point.index, point.spectrum.rank) == ("degenerate", 0.0, 0)
    assert "no gradient" in point.reason and rt.Spectrum.of([0.0] * 36).size == point.spectrum.size


def test_a_loss_of_net_and_batch_has_the_same_point():
    own = rt.Loss(
        lambda net, batch: loss(net(batch["ids"]), batch["words"]), of="batch",
        weights=lambda batch: (batch["words"] != 6).sum(),
    )  # fmt: skip
    batches = [
        {"ids": ids, "words": words}
        for ids, words in zip(IDS.split([2, 4]), WORDS.split([2, 4]), strict=True)
    ]
    one, other = (
        zero_point_of_net(model(layers=1), function, data).spectrum.eigenvalues
        for function, data in ((loss, (IDS, WORDS)), (own, batches))
    )
    torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-14)


def test_large_inputs_make_no_kink():
    torch.manual_seed(0)
    net, (x, y) = (
        chain(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)),
        torch.randn(2, 5, 3),
    )
    for inputs in (1e8 * x, -1e13 * x.abs()):
        assert not zero_point_of_net(net, "square", (inputs, y)).notes


class Gained(nn.Module):
    """x + D (gains · relu(U x)) with a linear layer behind it."""

    def __init__(self, gains):
        super().__init__()
        self.up, self.down = nn.Linear(3, len(gains)), nn.Linear(len(gains), 3)
        self.head = nn.Linear(3, 3)
        self.register_buffer("gains", gains)

    def forward(self, x):
        return self.head(x + self.down(self.gains * torch.relu(self.up(x))))


def test_a_unit_with_a_small_gain_counts():
    ranks = []
    for least in (1.0, 0.005):  # of 64 units: a threshold by their sum would take it for none
        gains = torch.ones(64)
        gains[5] = least
        data = noise(50, 3, seed=1), noise(50, 3, seed=2)
        point = zero_point_of_net(
            Gained(gains), "square", data, branches=["up.weight", "down.weight"]
        )
        ranks.append(point.spectrum.rank)
    assert ranks[0] == ranks[1]
