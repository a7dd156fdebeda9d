"""n-shortcut nets: shapes, parameter orders, the laws of their initial weights, and copies."""

import copy
import math
import pickle
import re
from pathlib import Path

import oracles
import pytest
import scipy.stats
import torch
from tolerances import assert_same, round_off
from torch import nn

import resid_theory as rt
from resid_theory.initializations import initializations_for

OPTIONS = {
    "square": {},
    "wide": {"hidden": 5},
    "narrow": {"hidden": 2},
    "bias": {"bias": True},
    "wide-bias": {"hidden": 5, "bias": True},
    "plain": {"shortcut": False},
    "activations": {"pre": "relu", "mid": "tanh", "post": "sin"},
    "modules": {"mid": nn.Tanh()},
}


def filled(options, generator, n=3, dtype=torch.float64):
    net = rt.ShortcutNet(3, 2, n, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net


def vector(net):
    return nn.utils.parameters_to_vector(net.parameters()).detach()


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_one_parameter_for_all_square_matrices(n, bias):
    net = rt.ShortcutNet(3, 5, n, bias=bias)
    assert net.weights.shape == (5, n, 3, 3)
    assert [name for name, _ in net.named_parameters()] == ["weights"] + ["bias"] * bias
    assert net.depth == len(net.layers()) == 5 * n
    assert net.shapes == [(3, 3)] * n


def test_the_page_names_the_initializations_that_there_are():
    page = (Path(__file__).parent.parent / "docs/topics/shortcut.md").read_text()
    (sentence,) = re.findall(r"^Initializations: (.*)\.$", page, flags=re.MULTILINE)
    assert re.findall(r'"(\w+)"', sentence) == [
        "xavier", "orthogonal", "kaiming", "zero", "near_zero",
    ] == initializations_for("matrix")  # fmt: skip


def test_the_record_holds_every_argument():
    given = {
        "width": 3, "blocks": 2, "shortcut_depth": 3, "pre": "relu", "mid": "tanh", "post": "sin",
        "shortcut": False, "hidden": 4, "bias": True,
    }  # fmt: skip
    assert rt.ShortcutNet(**given).architecture == {"builder": "ShortcutNet", "arguments": given}
    plain = dict.fromkeys(("pre", "mid", "post", "hidden")) | {"shortcut": True, "bias": False}
    plain |= {"width": 3, "blocks": 2, "shortcut_depth": 1}
    assert rt.ShortcutNet(3, 2, 1).architecture == {"builder": "ShortcutNet", "arguments": plain}
    for name in ("pre", "mid", "post"):
        assert not hasattr(rt.ShortcutNet(3, 2, 2, **{name: torch.sin}), "architecture")


@pytest.mark.parametrize("hidden", [None, 4])
def test_all_parameters_are_where_they_are_wanted(hidden):
    options = {"hidden": hidden, "bias": True}
    net = rt.ShortcutNet(3, 2, 2, device="meta", dtype=torch.float32, **options)
    assert {(p.device.type, p.dtype) for p in net.parameters()} == {("meta", torch.float32)}
    with torch.device("meta"):
        assert all(p.is_meta for p in rt.ShortcutNet(3, 2, 2, **options).parameters())


def test_rectangular_matrices():
    net = rt.ShortcutNet(3, 2, 3, hidden=5)
    assert net.shapes == [(5, 3), (5, 5), (3, 5)]
    assert [tuple(w.shape) for w in net.layers()] == net.shapes * 2


def test_layers_are_views():
    net = rt.ShortcutNet(3, 2, 2)
    torch.nn.init.constant_(net.layers()[2], 7.0)
    assert net.weights[1, 0].eq(7.0).all() and net.weights[0].eq(0.0).all()


@pytest.mark.parametrize("kind", OPTIONS)
def test_zero_weights_are_the_identity_or_nothing(kind, generator):
    net = rt.ShortcutNet(3, 4, 2, **OPTIONS[kind])
    x = torch.randn(6, 3, generator=generator)
    assert torch.equal(net(x), x if net.shortcut else torch.zeros_like(x))


@pytest.mark.parametrize("axes", [(), (1,), (4,), (2, 4)], ids=str)
def test_any_leading_axes_of_samples(axes, generator):
    net = filled({"mid": "tanh", "bias": True}, generator)
    x = torch.randn(*axes, 6, 3, generator=generator)
    one_by_one = torch.stack([net(part) for part in x.reshape(-1, 6, 3)]).view_as(x)
    torch.testing.assert_close(net(x), one_by_one, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "order"),
    [
        # One block, two layers of 2 x 2: rows of (W1, W2) in torch, columns in the paper.
        ({}, [0, 2, 1, 3, 4, 6, 5, 7]),
        # torch: W1 = [0 1; 2 3], W2 = [4 5; 6 7], b = [8 9]; the paper's first matrix is (W1 | b)
        ({"bias": True}, [0, 2, 1, 3, 8, 9, 4, 6, 5, 7]),
        # torch lists the bias before matrices in a list: b = [0], W1 = [1 2], W2 = [3; 4]
        ({"bias": True, "hidden": 1}, [1, 2, 0, 3, 4]),
    ],
    ids=["square", "bias", "rectangular"],
)
def test_definition5_order_by_hand(options, order):
    assert rt.ShortcutNet(2, 1, 2, **options).definition5_order().tolist() == order


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_positions_point_at_every_entry_once(kind, n, generator):
    options = {key: v for key, v in OPTIONS[kind].items() if not (n == 1 and key == "hidden")}
    net = filled(options, generator, n=n)
    values, grids = vector(net), net.positions()
    expected = net.layers()
    if net.bias is not None:
        columns = net.bias.unsqueeze(-1)
        expected[::n] = [torch.cat(pair, 1) for pair in zip(expected[::n], columns, strict=True)]
    for grid, matrix in zip(grids, expected, strict=True):
        assert torch.equal(values[grid], matrix)
    order = net.definition5_order()
    assert torch.equal(order.sort().values, torch.arange(len(values)))
    paper = torch.cat([matrix.T.reshape(-1) for matrix in expected])
    assert torch.equal(values[order], paper)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_copies(how, kind, generator):
    net = filled(OPTIONS[kind], generator)
    if how == "state_dict":
        other = rt.ShortcutNet(3, 2, 3, **OPTIONS[kind])
        other.load_state_dict(net.state_dict())
    else:
        other = copy.deepcopy(net) if how == "deepcopy" else pickle.loads(pickle.dumps(net))
    x = torch.randn(4, 3, generator=generator)
    assert_same(other(x), net(x))
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    assert not torch.equal(vector(other), vector(net))


@pytest.mark.parametrize("kind", OPTIONS)
def test_float32_nets(kind, generator):
    net = filled(OPTIONS[kind], generator, dtype=torch.float32)
    x = torch.randn(4, 3, generator=generator)
    output = net(x.to(torch.float32))
    assert output.dtype == torch.float32
    exact = copy.deepcopy(net).double()(x.to(torch.float32).double())
    # 6 layers of sums of at most 6 products, each relative to sums of magnitudes that grow by
    # a factor of some ten a block
    assert (output - exact).abs().max() <= 1e-4 * exact.abs().max()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("act", [None, "tanh"])
def test_linear_means_neither_activation_nor_bias(bias, act):
    assert rt.ShortcutNet(2, 1, 2, mid=act, bias=bias).is_linear is (act is None and not bias)


def test_repr_says_what_differs_from_the_plain_case():
    assert repr(rt.ShortcutNet(3, 2, 1)) == "ShortcutNet(3, blocks=2, shortcut_depth=1)"
    text = repr(rt.ShortcutNet(3, 2, 2, mid="relu", shortcut=False, hidden=4, bias=True))
    assert "3, blocks=2, shortcut_depth=2, mid=relu, shortcut=False, hidden=4, bias=True" in text


# -- initial weights -------------------------------------------------------------------------------

DRAWS = 4000
VARIANCE = {"xavier": 2 / 12, "kaiming": 2 / 7, "near_zero": 0.01**2 * 2 / 12}


@pytest.mark.parametrize("kind", VARIANCE)
def test_entries_are_normal_with_the_stated_variance(kind, generator):
    w = rt.networks.draw_weights(kind, (DRAWS, 5, 7), generator=generator)
    count, sigma = w.numel(), math.sqrt(VARIANCE[kind])
    # four standard errors: of a mean sigma/sqrt(N), of a variance sigma² sqrt(2/N)
    assert abs(w.mean().item()) <= 4 * sigma / math.sqrt(count)
    assert abs(w.var().item() - sigma**2) <= 4 * sigma**2 * math.sqrt(2 / count)
    assert scipy.stats.kstest(w.flatten().numpy() / sigma, "norm").pvalue > 1e-4


@pytest.mark.parametrize("shape", [(5, 5), (3, 5), (5, 3), (1, 1)], ids=str)
def test_orthonormal_rows_or_columns(shape, generator):
    w = rt.networks.draw_weights("orthogonal", (20, *shape), generator=generator)
    gram = w @ w.mT if shape[0] <= shape[1] else w.mT @ w
    assert (gram - torch.eye(min(shape))).abs().max() <= round_off(20)


@pytest.mark.parametrize("size", [2, 3])
def test_orthogonal_matrices_are_haar(size, generator):
    # Haar: E tr(Q)^2 = 1 for every size, E tr(Q) = 0, and half of the determinants are -1.
    # Without the signs, QR gives E tr(Q) < 0.
    w = rt.networks.draw_weights("orthogonal", (DRAWS, size, size), generator=generator)
    traces = w.diagonal(dim1=1, dim2=2).sum(1)
    squares = traces.square()
    error = DRAWS**-0.5
    assert abs(traces.mean()) <= 4 * traces.std() * error
    assert abs(squares.mean() - 1) <= 4 * squares.std() * error
    assert abs(torch.linalg.det(w).sign().mean()) <= 4 * error
    # one entry of a uniform point on the sphere: its square is Beta(1/2, (d - 1)/2)
    law = scipy.stats.beta(0.5, (size - 1) / 2)
    assert scipy.stats.kstest(w[:, 0, 0].square().numpy(), law.cdf).pvalue > 1e-4


@pytest.mark.parametrize("init", initializations_for("matrix"))
@pytest.mark.parametrize("options", ["square", "wide-bias"])
def test_a_seed_gives_the_same_net(init, options):
    nets = [filled(OPTIONS[options], torch.Generator().manual_seed(k)) for k in range(2)]
    before = torch.get_rng_state()
    for net in nets:
        result = rt.initialize(net, init, generator=torch.Generator().manual_seed(5))
        assert result is net
        assert net.bias is None or not net.bias.any()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(vector(nets[0]), vector(nets[1]))
    rt.initialize(nets[1], init, generator=6)
    assert torch.equal(vector(nets[0]), vector(nets[1])) is (init == "zero")


@pytest.mark.parametrize("init", initializations_for("matrix"))
def test_float32_weights_are_float64_draws_rounded(init):
    one, other = (
        rt.networks.draw_weights(init, (4, 3), generator=1, dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    assert torch.equal(one, other.to(torch.float32))


def test_near_zero_scales_xavier():
    small, large = (
        rt.networks.draw_weights(init, (3, 3), generator=1, scale=1e-3)
        for init in ("near_zero", "xavier")
    )
    torch.testing.assert_close(small, 1e-3 * large, rtol=round_off(3), atol=0)


def test_output_equals_definition_2(generator):
    net = filled(
        {"hidden": 5, "bias": True, "pre": "sin", "mid": "tanh", "post": "silu"}, generator
    )
    x = torch.randn(6, 3, generator=generator)
    expected = oracles.shortcut_net(
        net.layers(), net.bias, x, n=3, shortcut=True,
        pre=torch.sin, mid=torch.tanh, post=lambda z: z / (1 + (-z).exp()),
    )  # fmt: skip
    torch.testing.assert_close(net(x), expected, rtol=1e-13, atol=1e-13)


NET, DRAW = rt.ShortcutNet, rt.networks.draw_weights
REFUSED = [
    (lambda: NET(3, 0, 1), "blocks: got 0, needs at least 1"),
    (lambda: NET(3, 1, -1), "shortcut_depth: got -1, needs at least 1"),
    (lambda: NET(2.5, 1, 1), "width: got 2.5, needs a whole number"),
    (lambda: NET(3, 1, 2, hidden=0), "hidden: got 0"),
    (lambda: NET(3, 1, 1, hidden=4), "hidden: got 4 with shortcut_depth=1"),
    (lambda: NET(3, 1, 1, mid="rleu"), "mid: unknown name 'rleu'; did you mean 'relu'"),
    (lambda: NET(3, 1, 1, dtype=torch.int64), "dtype: got torch.int64, needs a floating"),
    (lambda: NET(3, 1, 2, mid=nn.PReLU()), "mid: PReLU.* has parameters"),
    (lambda: NET(3, 1, 1)(torch.zeros(4, 2)), r"x: got shape \(4, 2\), .*the net's width 3"),
    (lambda: DRAW("xaver", (2, 2)), "init: unknown name 'xaver'; did you mean 'xavier'"),
    (lambda: DRAW("xavier", (3,)), r"shape: got \(3,\), needs \(..., out, in\)"),
    (lambda: DRAW("xavier", (2, 2), generator="0"), "generator: got '0', needs a torch.Generator"),
    (lambda: DRAW("near_zero", (2, 2), scale=-1.0), "scale: got -1.0, needs a finite number above"),
    (lambda: rt.initialize(nn.Linear(2, 2), "xavier"), "net: got Linear, needs a ShortcutNet"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[row[1] for row in REFUSED])
def test_refusals(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
