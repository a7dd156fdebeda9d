"""Theory against measurement, and measurement against nested gradients."""

import oracles
import pytest
import torch
import torch.nn.functional as F
from all_pairs import all_pairs
from tolerances import HESSIAN, relative_error
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

import resid_theory as rt
from resid_theory.activations import ACTIVATIONS
from resid_theory.curvature import dense
from resid_theory.theory import Unit, linear_gradient, linear_hessian, linear_hvp, linear_loss

LOSSES = {"square": oracles.square_loss, "cross_entropy": oracles.cross_entropy}

# pre, mid, post: each kind of activation in each position at least once
ACTS = {
    "linear": (None, None, None),
    "mid-relu": (None, "relu", None),
    "mid-tanh": (None, "tanh", None),
    "all-tanh": ("tanh", "tanh", "tanh"),
    "pre-softplus": ("softplus", "silu", None),
    "post-gelu": (None, "elu", "gelu"),
    "post-relu": ("sigmoid", "leaky_relu", "relu"),
}
SHAPES = {
    "square": {},
    "hidden": {"hidden": 4},
    "narrow": {"hidden": 2},
    "bias": {"bias": True},
    "plain": {"shortcut": False},
    "plain-hidden-bias": {"shortcut": False, "hidden": 4, "bias": True},
}


NETS = [
    pytest.param(n, acts, shape, loss, id=f"n{n}-{acts}-{shape}-{loss}")
    for n, acts, shape, loss in all_pairs(
        (1, 2, 3, 4),
        ACTS,
        SHAPES,
        LOSSES,
        unless=lambda n, acts, shape, loss: n == 1 and "hidden" in SHAPES[shape],
    )
]


def identity(z):
    return z


def probabilities(count, classes, generator):
    return torch.softmax(torch.randn(count, classes, generator=generator), dim=1)


def make(n, acts, shape, generator, width=3, blocks=2):
    pre, mid, post = ACTS[acts]
    net = rt.ShortcutNet(width, blocks, n, pre=pre, mid=mid, post=post, **SHAPES[shape])
    rt.initialize(net, "xavier", generator=generator)
    if net.bias is not None:
        with torch.no_grad():
            net.bias.copy_(torch.randn(net.bias.shape, generator=generator))
    x = torch.randn(7, width, generator=generator)
    return net, x, probabilities(7, width, generator)


def oracle_output(net, x):
    acts = {
        name: next((f for f in ACTIVATIONS.values() if f is getattr(net, name)), identity)
        for name in ("pre", "mid", "post")
    }
    return oracles.shortcut_net(
        net.layers(), net.bias, x, n=net.shortcut_depth, shortcut=net.shortcut, **acts
    )


@pytest.mark.parametrize(("n", "acts", "shape", "loss"), NETS)
def test_every_route_equals_nested_gradients(n, acts, shape, loss, generator, device, monkeypatch):
    # Otherwise columns would take the place of pairs of layers that are wrong.
    monkeypatch.setattr(dense, "NotPaired", dense.NoWeighting)
    net, x, y = make(n, acts, shape, generator)
    torch.testing.assert_close(net(x), oracle_output(net, x), rtol=1e-13, atol=1e-13)
    exact = oracles.hessian_by_nested_gradients(
        LOSSES[loss](oracle_output(net, x), y), list(net.parameters())
    )
    ragged = [(x[:2].to(device), y[:2].to(device)), (x[2:].to(device), y[2:].to(device))]
    closed = ["auto"] if acts == "linear" else []  # which else takes pairs of layers
    for method in ("layer_pairs", "columns", *closed):
        measured = rt.hessian(net.to(device), loss, ragged, method=method)
        assert relative_error(measured.cpu(), exact) <= HESSIAN, method


def rectangular(generator):
    sizes = [(5, 4), (4, 5), (4, 4), (6, 4), (4, 6), (2, 4)]
    w = [torch.randn(*size, generator=generator, requires_grad=True) for size in sizes]
    s = torch.randn(4, 4, generator=generator)
    units = [Unit((w[0], w[1]), s), Unit((w[2],)), Unit((w[3], w[4]), 0.3 * s), Unit((w[5],))]
    return units, w


def rectangular_output(w, s, x):
    z = x @ (w[1] @ w[0] + s).T @ w[2].T
    return z @ (w[4] @ w[3] + 0.3 * s).T @ w[5].T


@pytest.mark.parametrize("seed", range(3))
def test_rectangular_linear_nets_with_fixed_shortcuts(seed):
    generator = torch.Generator().manual_seed(seed)
    units, w = rectangular(generator)
    x, y = torch.randn(9, 4, generator=generator), torch.randn(9, 2, generator=generator)
    loss = oracles.square_loss(rectangular_output(w, units[0].shortcut, x), y)
    exact = oracles.hessian_by_nested_gradients(loss, w)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, w, retain_graph=True)])
    torch.testing.assert_close(linear_loss(units, (x, y)), loss.detach(), rtol=1e-13, atol=0)
    assert relative_error(linear_gradient(units, (x, y)), gradient) <= 1e-13
    assert relative_error(linear_hessian(units, (x, y)), exact) <= HESSIAN
    vectors = torch.randn(3, len(exact), generator=generator)
    assert relative_error(linear_hvp(units, (x, y), vectors), vectors @ exact) <= HESSIAN


@pytest.mark.parametrize("depth", range(1, 9))
@pytest.mark.parametrize("loss", LOSSES)
def test_plain_sequential_nets(depth, loss, generator):
    widths = torch.randint(1, 6, (depth + 1,), generator=generator).tolist()
    acts = [nn.Tanh(), nn.ReLU(inplace=True), nn.Identity(), nn.GELU(), nn.Softplus()]
    modules = []
    for k, (columns, rows) in enumerate(zip(widths, widths[1:], strict=False)):
        modules += [nn.Linear(columns, rows, bias=k % 3 != 1), acts[k % len(acts)]]
    net = nn.Sequential(nn.Flatten(), *modules[:-1])
    for p in net.parameters():
        nn.init.normal_(p, generator=generator)
    x = torch.randn(6, 1, widths[0], generator=generator)
    y = probabilities(6, widths[-1], generator)
    loss_value = LOSSES[loss](net(x), y)
    exact = oracles.hessian_by_nested_gradients(loss_value, list(net.parameters()))
    for method in ("layer_pairs", "columns"):
        assert relative_error(rt.hessian(net, loss, (x, y), method=method), exact) <= HESSIAN


class Odd(nn.Module):
    """A net that is no chain: convolution, BatchNorm, attention, reuse, a frozen layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm1d(3)
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
        self.mix = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)
        self.head.bias.requires_grad_(False)

    def forward(self, x):
        z = torch.tanh(self.norm(self.conv(x))).mT
        z = z + self.attention(z, z, z, need_weights=False)[0]
        return self.head(torch.relu(self.mix(self.mix(z))).mean(1))


@pytest.mark.parametrize("batchnorm", ["eval", "batch"])
def test_columns_take_any_module_and_leave_it_alone(batchnorm, generator, left_alone):
    torch.manual_seed(0)
    net = Odd()
    net.train()
    net.norm.eval()  # a mixed state, which must come back mixed
    net.conv.weight.grad = torch.ones_like(net.conv.weight)
    x, y = torch.randn(6, 2, 4, generator=generator), torch.randn(6, 2, generator=generator)
    with left_alone(net):
        measured = rt.hessian(net, "square", (x, y), batchnorm=batchnorm)
    net.eval()
    net.norm.train(batchnorm == "batch")
    trainable = [p for p in net.parameters() if p.requires_grad]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        exact = oracles.hessian_by_nested_gradients(oracles.square_loss(net(x), y), trainable)
    assert relative_error(measured, exact) <= HESSIAN


# -- the zero point --------------------------------------------------------------------------------

# post with a kink has no Hessian at zero: its limits have tests of their own below
SMOOTH = {
    "linear": (None, None, None),
    "tanh": ("tanh", "tanh", "tanh"),
    "gelu-silu": ("relu", "gelu", "silu"),
    "softplus": ("softplus", "shifted_softplus", "shifted_softplus"),
    "sigmoid-pre": ("sigmoid", "sin", "sin"),
}
ZERO_SHAPES = {
    "square": {},
    "hidden": {"hidden": 5},
    "narrow": {"hidden": 2},
    "bias": {"bias": True},
    "hidden-bias": {"hidden": 5, "bias": True},
}
ZEROS = [
    pytest.param(n, blocks, acts, shape, loss, id=f"n{n}-R{blocks}-{acts}-{shape}-{loss}")
    for n, blocks, acts, shape, loss in all_pairs(
        (1, 2, 3),
        (1, 3),
        SMOOTH,
        ZERO_SHAPES,
        LOSSES,
        unless=lambda n, blocks, acts, shape, loss: n == 1 and "hidden" in ZERO_SHAPES[shape],
    )
]


@pytest.mark.parametrize(("n", "blocks", "acts", "shape", "loss"), ZEROS)
def test_zero_point_equals_the_measured_hessian(n, blocks, acts, shape, loss, generator):
    pre, mid, post = SMOOTH[acts]
    options = {"pre": pre, "mid": mid, "post": post, **ZERO_SHAPES[shape]}
    net = rt.ShortcutNet(4, blocks, n, **options)
    x = torch.randn(9, 4, generator=generator)
    y = probabilities(9, 4, generator)
    value = LOSSES[loss](net(x), y)
    exact = oracles.hessian_by_nested_gradients(value, list(net.parameters()))
    predicted = rt.theory.zero_point((x, y), blocks=blocks, shortcut_depth=n, loss=loss, **options)
    if not ZERO_SHAPES[shape]:  # one tensor of square matrices
        (gradient,) = torch.autograd.grad(value, net.weights)
        scale = float(predicted.correlation.abs().max())
        assert float((gradient[:, 0] - predicted.gradient).abs().max()) <= 1e-14 * scale
    order = net.definition5_order()
    assert relative_error(predicted.hessian(), exact[order][:, order]) <= HESSIAN
    measured = rt.hessian_spectrum(net, loss, (x, y))
    assert predicted.spectrum.size == measured.size == len(exact)
    assert predicted.spectrum.distance(measured) <= HESSIAN


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_fixed_maps_around_the_network(n, loss, generator):
    x, y = torch.randn(9, 3, generator=generator), probabilities(9, 2, generator)
    inner, outer = torch.randn(4, 3, generator=generator), torch.randn(2, 4, generator=generator)
    inside = rt.ShortcutNet(4, 2, n, mid="tanh", post="silu")
    net = nn.Sequential(nn.Linear(3, 4, bias=False), inside, nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(inner)
        net[2].weight.copy_(outer)
    net[0].requires_grad_(False)
    net[2].requires_grad_(False)
    predicted = rt.theory.zero_point(
        (x, y), blocks=2, shortcut_depth=n, loss=loss, mid="tanh", post="silu",
        input_map=inner, output_map=outer,
    )  # fmt: skip
    order = inside.definition5_order()
    measured = rt.hessian(net, loss, (x, y))[order][:, order]
    assert relative_error(predicted.hessian(), measured) <= HESSIAN


@pytest.mark.parametrize("n", [1, 2])
def test_moments_suffice_for_the_square_loss(n, generator):
    x, y = torch.randn(9, 3, generator=generator), torch.randn(9, 3, generator=generator)
    options = {"blocks": 3, "shortcut_depth": n}
    from_moments = rt.theory.zero_point(rt.Moments.of((x, y)), **options)
    # a callable is not recognized as the square loss, so the samples are used
    from_samples = rt.theory.zero_point((x, y), loss=oracles.square_loss, **options)
    assert from_moments.spectrum.distance(from_samples.spectrum) <= HESSIAN


@pytest.mark.parametrize(("position", "hidden"), [("mid", 5), ("post", None), ("both", 3)])
@pytest.mark.parametrize("loss", LOSSES)
def test_relu_along_a_direction_two_layers(position, hidden, loss, generator):
    # At eps times given weights the a.e. Hessian differs from its limit by O(eps²) for n = 2.
    acts = {name: "relu" for name in ("mid", "post") if position in (name, "both")}
    net = rt.ShortcutNet(4, 3, 2, hidden=hidden, **acts)
    rt.initialize(net, "xavier", generator=generator)
    x, y = torch.randn(9, 4, generator=generator), probabilities(9, 4, generator)
    predicted = rt.theory.zero_point(
        (x, y), blocks=3, shortcut_depth=2, loss=loss, hidden=hidden, kink=net, **acts
    )
    eps = 1e-7
    with torch.no_grad():
        for w in net.parameters():
            w.mul_(eps)
    measured = rt.hessian_spectrum(net, loss, (x, y))
    # 1e-12 covers eps² = 1e-14 with its constant, and round-off
    assert predicted.spectrum.distance(measured) <= HESSIAN


BENT = {"relu": "relu", "silu": "silu", "elu": "elu", "selu": F.selu, "square": torch.square,
        "split": lambda z: torch.where(z > 0, 2 * z, -0.5 * z),
        "curved": lambda z: torch.where(z > 0, z + z**2, z - 3 * z**2)}  # fmt: skip


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("post", BENT)
@pytest.mark.parametrize("loss", LOSSES)
def test_activations_along_a_direction_one_layer(post, bias, loss, generator):
    net = rt.ShortcutNet(3, 3, 1, post=BENT[post], bias=bias)
    rt.initialize(net, "xavier", generator=generator)
    x, y = torch.randn(9, 3, generator=generator), probabilities(9, 3, generator)
    predicted = rt.theory.zero_point(
        (x, y), blocks=3, shortcut_depth=1, loss=loss, post=BENT[post], bias=bias, kink=net
    )
    eps = 1e-9
    with torch.no_grad():
        net.weights.mul_(eps)
    exact = oracles.hessian_by_nested_gradients(LOSSES[loss](net(x), y), list(net.parameters()))
    # for n = 1 the outputs move by O(eps), and so does the Hessian
    measured = rt.Spectrum.of(torch.linalg.eigvalsh(exact))
    assert predicted.spectrum.distance(measured) <= 100 * eps


@pytest.mark.parametrize(
    ("post", "loss"),
    [
        ("relu", "square"),
        ("split", "cross_entropy"),
        ("elu", "square"),
        ("selu", "square"),
        ("curved", "square"),
    ],
)
def test_mean_over_directions_is_the_mean(post, loss):
    # The mean over M draws has standard error s/sqrt(M) entry by entry; four of them, two-sided.
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(5, 2, generator=generator), probabilities(5, 2, generator)
    options = {"blocks": 2, "shortcut_depth": 1, "loss": loss, "post": BENT[post]}
    predicted = rt.theory.zero_point((x, y), kink="mean", **options).hessian()
    net, weights = rt.ShortcutNet(2, 2, 1, post=BENT[post]), []
    for _ in range(400):
        rt.initialize(net, "xavier", generator=generator)
        weights.append(1e-9 * net.weights.detach().reshape(-1))

    def value(flat):
        return LOSSES[loss](functional_call(net, {"weights": flat.view_as(net.weights)}, (x,)), y)

    order = net.definition5_order()
    draws = vmap(jacrev(grad(value)))(torch.stack(weights))[:, order][:, :, order]
    error = (draws.mean(0) - predicted).abs()
    allowed = 4 * draws.std(0) / len(draws) ** 0.5 + 1e-7
    assert bool((error <= allowed).all())
    if post in ("relu", "split"):  # the others have no line: their second derivative jumps
        line = rt.theory.zero_point((x, y), kink="line", **options).hessian()
        assert not bool(((draws.mean(0) - line).abs() <= allowed).all())


@pytest.mark.parametrize("n", [2, 3, 4])
def test_leading_jet(n, generator):
    # The remainder is of order n + 1: a tenth of the weights, a tenth of the relative error.
    x, y = torch.randn(9, 3, generator=generator), torch.randn(9, 3, generator=generator)
    net = rt.initialize(
        rt.ShortcutNet(3, 2, n, pre="sigmoid", mid="silu"), "xavier", generator=generator
    )
    point = rt.theory.zero_point((x, y), blocks=2, shortcut_depth=n, pre="sigmoid", mid="silu")
    direction = net.weights.detach().clone()
    at_zero = oracles.square_loss(x, y)
    errors = []
    for scale in (1e-2, 1e-3) if n == 2 else (1e-1, 1e-2):
        with torch.no_grad():
            net.weights.copy_(scale * direction)
            change = oracles.square_loss(net(x), y) - at_zero
        jet = point.leading_jet(net.layers())
        errors.append(float((change - jet).abs() / jet.abs()))
    assert errors[0] < 1.0
    assert errors[1] < 0.2 * errors[0]
    assert point.order == n - 1


# -- two nets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["square", "cross_entropy"])
@pytest.mark.parametrize("depth", [1, 2, 5, 9])
def test_orthogonal_plain_nets_are_one_shortcut_nets_at_zero(depth, loss, generator):
    y = torch.softmax(torch.randn(20, 4, generator=generator), 1)
    data = rt.Regression(torch.randn(20, 4, generator=generator), y)
    net = rt.ShortcutNet(4, depth, 1, shortcut=False)
    rt.initialize(net, "orthogonal", generator=generator)
    product = net(torch.eye(4)).detach().mT
    predicted = rt.theory.zero_point(
        data, loss=loss, blocks=depth, shortcut_depth=1, output_map=product
    )
    assert predicted.spectrum.distance(rt.hessian_spectrum(net, loss, data)) <= HESSIAN


def test_vmap_over_leading_axes(generator):
    net = rt.ShortcutNet(3, 2, 2, mid="tanh")
    stack = rt.networks.draw_weights("xavier", (5, 2, 2, 3, 3), generator=generator)
    x = torch.randn(7, 3, generator=generator)
    call = torch.func.functional_call
    mapped = torch.func.vmap(lambda w: call(net, {"weights": w}, (x,)))(stack)
    broadcast = call(net, {"weights": stack}, (x,))
    one_by_one = torch.stack([call(net, {"weights": w}, (x,)) for w in stack])
    torch.testing.assert_close(mapped, one_by_one, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(broadcast, one_by_one, rtol=1e-13, atol=1e-13)
