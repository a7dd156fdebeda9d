"""Exact Hessians: routes, costs and refusals, whatever the module, the loss and the loader."""

import re
import tracemalloc

import oracles
import pytest
import torch
import torch.nn.functional as F
from tolerances import HESSIAN, assert_same, relative_error
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import resid_theory as rt
from experiments.crossings.complete import complete_hessian
from resid_theory.curvature import CurvatureBlock, columns, dense, layer_pairs
from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.curvature.matvec_graphs import HessianGraph
from resid_theory.curvature.rounding import NOT_SYMMETRIC
from resid_theory.runtime import resources

M, D, K = 7, 3, 2


def fill(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
    return net


def mlp(*, bias=True, act=nn.Tanh):
    return fill(nn.Sequential(nn.Linear(D, 4, bias=bias), act(), nn.Linear(4, K, bias=bias)))


@pytest.fixture
def data(generator):
    return torch.randn(M, D, generator=generator), torch.randn(M, K, generator=generator)


def exact(net, data, loss=oracles.square_loss):
    trainable = [p for p in net.parameters() if p.requires_grad]
    return oracles.hessian_by_nested_gradients(loss(net(data[0].clone()), data[1]), trainable)


# -- losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["layer_pairs", "columns"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_class_labels(method, dtype, data):
    labels = torch.arange(M) % K
    probabilities = F.one_hot(labels, K).to(torch.float64)
    measured = rt.hessian(mlp(), "cross_entropy", (data[0], labels.to(dtype)), method=method)
    expected = exact(mlp(), (data[0], probabilities), oracles.cross_entropy)
    assert relative_error(measured, expected) <= HESSIAN


@pytest.mark.parametrize("method", ["layer_pairs", "columns"])
@pytest.mark.parametrize(
    "loss", [nn.SmoothL1Loss(), nn.SoftMarginLoss(), lambda o, t: (o * t).sum(1).exp().mean()]
)
def test_any_loss_that_is_a_mean(method, loss, data):
    data = data[0], data[1].sign()
    measured = rt.hessian(mlp(), loss, [(data[0][:2], data[1][:2]), (data[0][2:], data[1][2:])],
                          method=method)  # fmt: skip
    assert relative_error(measured, exact(mlp(), data, loss)) <= HESSIAN


@pytest.mark.parametrize("method", ["auto", "layer_pairs", "columns"])
@pytest.mark.parametrize("batches", [1, 2])
def test_a_sum_over_samples_stays_a_sum(method, batches, data):
    parts = list(zip(data[0].chunk(batches), data[1].chunk(batches), strict=True))
    loss = nn.MSELoss(reduction="sum")
    measured = rt.hessian(mlp(), loss, parts, method=method)
    assert relative_error(measured, exact(mlp(), data, loss)) <= HESSIAN


LOSSES = {
    "per-sample": (nn.MSELoss(reduction="none"), r"^loss: returned shape \(\d, 2\), needs a sc"),
    "number": (lambda o, t: 1.0, "^loss: returned <class 'float'>, needs a scalar tensor"),
    "detached": (lambda o, t: F.mse_loss(o.detach(), t), "^loss: its value carries no gradient"),
    "name": ("squre", "^loss: unknown name 'squre'; did you mean 'square'"),
    "none": (None, "^loss: got NoneType, needs a name, a function or a loss of torch.nn"),
}


@pytest.mark.parametrize("method", ["layer_pairs", "columns"])
@pytest.mark.parametrize("kind", LOSSES)
def test_not_a_loss(kind, method, data):
    loss, message = LOSSES[kind]
    with pytest.raises(ValueError, match=message):
        rt.hessian(mlp(), loss, data, method=method)


@pytest.mark.parametrize("method", ["layer_pairs", "columns"])
def test_a_loss_linear_in_every_parameter_has_no_curvature(method, data, monkeypatch):
    if method == "layer_pairs":
        monkeypatch.setattr(dense, "columns_of", None)  # no second route
    net = fill(nn.Linear(D, K))
    measured = rt.hessian(net, lambda o, t: (o * t).sum(1).mean(), data, method=method)
    assert torch.equal(measured, torch.zeros(8, 8))


# -- data ------------------------------------------------------------------------------------------

SPLITS = {"whole": [7], "ragged": [3, 3, 1], "singles": [1] * 7, "unequal": [1, 6]}


@pytest.mark.parametrize("method", ["closed_form", "layer_pairs", "columns"])
@pytest.mark.parametrize("split", SPLITS)
def test_batches_are_weighted_by_their_size(split, method, data):
    net = mlp(bias=False, act=nn.Identity)
    x, y = (part.split(SPLITS[split]) for part in data)
    once = zip(x, y, strict=True)  # an iterator that can be read only once
    measured = rt.hessian(net, "square", once, method=method)
    assert relative_error(measured, exact(net, data)) <= HESSIAN


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_leaves_the_randomness_alone(shuffle, data):
    net = mlp()
    loader = DataLoader(TensorDataset(*data), batch_size=3, shuffle=shuffle)
    before = torch.get_rng_state()
    measured = rt.hessian(net, "square", loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert relative_error(measured, exact(net, data)) <= HESSIAN


DATA = {
    "empty": (lambda x, y: [], "^data: got no batch"),
    "integers": (
        lambda x, y: (x.long(), y), r"^data x: the net does not take samples of shape \(3,\) and dt"
    ),
    "width": (lambda x, y: (x[:, :2], y), r"^data x: the net does not .* of shape \(2,\)"),
    "late-width": (
        lambda x, y: [(x, y), (x[:, :2], y)], r"^data x: the net does not .* of shape \(2,\)"
    ),
    "targets": (lambda x, y: (x, y[:, :1]), r"^data y: got shape \(7, 1\) for outputs of sh"),
    "late-targets": (
        lambda x, y: [(x, y), (x, y[:, :1])], r"^data y: got shape \(7, 1\) for outputs of sh"
    ),
    "vector": (lambda x, y: (x, y[:, 0]), r"^data y: got shape \(7,\) for outputs of shape \(7, 2"),
    "nan": (lambda x, y: (x * torch.nan, y), r"^data x: entry \(0, 0\) is nan"),
}  # fmt: skip


@pytest.mark.parametrize("method", ["layer_pairs", "columns"])
@pytest.mark.parametrize("kind", DATA)
def test_data_that_do_not_fit(kind, method, data):
    given, message = DATA[kind]
    with pytest.raises(ValueError, match=message):
        rt.hessian(mlp(), "square", given(*data), method=method)


@pytest.mark.gpu
def test_data_follow_the_net_to_its_device(data, device):
    found = rt.hessian(mlp().to(device), "square", data)
    assert found.device.type == device.type
    assert relative_error(found.cpu(), rt.hessian(mlp(), "square", data)) <= HESSIAN


@pytest.mark.parametrize(("low", "high"), [(0, 2), (-1, 1)])
def test_labels_out_of_range(low, high, data):
    labels = torch.tensor([0, 1, low, high, 0, 1, 0])
    message = f"^data y: got class labels from {low} to {high} for 2 outputs"
    with pytest.raises(ValueError, match=message):
        rt.hessian(mlp(), "cross_entropy", (data[0], labels))


# -- modules ---------------------------------------------------------------------------------------


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)
        self.body = nn.Linear(D, K)

    def forward(self, x):
        return torch.tanh(self.body(x))


class Headed(nn.Module):
    """A linear layer with any function behind it."""

    def __init__(self, head, outputs=K):
        super().__init__()
        self.body, self.head = nn.Linear(D, outputs), head

    def forward(self, x):
        return self.head(self.body(x))


def test_one_output_a_sample_without_an_axis(data):
    net, given = fill(Headed(lambda z: torch.sin(z).squeeze(-1), 1)), (data[0], data[1][:, 0])
    assert relative_error(rt.hessian(net, "square", given), exact(net, given)) <= HESSIAN


def test_outputs_of_any_structure_with_a_loss_that_knows_them(data):
    net = fill(Headed(lambda z: (z, torch.tanh(z))))

    def product(output, target):
        return (output[0] * output[1] * target).sum(1).mean()

    assert relative_error(rt.hessian(net, product, data), exact(net, data, product)) <= HESSIAN
    with pytest.raises(ValueError, match="^net: gives <class 'tuple'> for 2 samples; .*'square'"):
        rt.hessian(net, "square", data)


class Matrices(nn.Module):
    """Matrices on the right and on the left of what they multiply."""

    def __init__(self, scalar=False):
        super().__init__()
        self.right, self.left = (nn.Parameter(torch.empty(n, 4)) for n in (D, K))
        self.shift = nn.Parameter(torch.empty(1) if scalar else torch.empty(K, 1))

    def forward(self, x):
        hidden = torch.tanh(x @ self.right + 0.5)
        return torch.addmm(self.shift, self.left[torch.tensor([1, 0])], hidden.T).T


class Squared(nn.Module):
    def forward(self, weight):
        return weight.square()


def no_sequence(kind):
    """A net that is no sequence of layers."""
    if kind == "custom":
        return fill(Unused())
    if kind == "normed":
        return fill(nn.Sequential(nn.Linear(D, K), nn.LayerNorm(K)))
    if kind == "repeated":
        layer = nn.Linear(D, D)
        return fill(nn.Sequential(layer, nn.Tanh(), layer))
    if kind == "tied":
        net = nn.Sequential(nn.Linear(D, D, bias=False), nn.Tanh(), nn.Linear(D, D, bias=False))
        net[2].weight = net[0].weight
        return fill(net)
    if kind == "branched":
        return fill(Branched())
    if kind in ("matrices", "one shift"):
        return fill(Matrices(scalar=kind == "one shift"))
    net = mlp()
    if kind == "hooked":
        net[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    elif kind == "frozen":
        net[0].bias.requires_grad_(False)
    elif kind == "weight outside":
        outside = torch.ones(K, K).triu().requires_grad_()
        net.register_forward_hook(lambda module, inputs, output: output @ outside)
    elif kind == "penalized":
        net.register_forward_hook(lambda module, inputs, output: output * module[0].bias.norm())
    else:
        nn.utils.parametrize.register_parametrization(net[0], "weight", Squared())
    return net


class Branched(nn.Module):
    """Layers side by side, a part of a weight, a product of outputs."""

    def __init__(self):
        super().__init__()
        self.wide, self.gate = nn.Linear(D, 2 * K), nn.Linear(D, K)

    def forward(self, x):
        upper, lower = self.wide.weight.chunk(2)
        z = x @ upper.T + self.wide.bias[:K] * torch.sigmoid(self.gate(x))
        return z + torch.tanh(torch.addmm(self.wide.bias[K:], x, lower.T))


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("tied", "layer_pairs"), ("repeated", "layer_pairs"), ("hooked", "layer_pairs"),
        ("frozen", "layer_pairs"), ("branched", "columns"), ("normed", "columns"),
        ("parametrized", "columns"), ("custom", "columns"), ("one shift", "columns"),
        ("matrices", "layer_pairs"), ("weight outside", "layer_pairs"),
    ],
)  # fmt: skip
def test_nets_that_are_no_sequence(kind, method, generator, monkeypatch):
    if method == "layer_pairs":
        monkeypatch.setattr(dense, "columns_of", None)  # no second route
    net = no_sequence(kind)
    x = torch.randn(M, D, generator=generator)
    y = torch.randn(M, net(x).shape[1], generator=generator)
    assert rt.curvature.hessian_cost(net, "square", (x, y)).method == method
    assert relative_error(rt.hessian(net, "square", (x, y)), exact(net, (x, y))) <= HESSIAN
    if method == "columns":
        with pytest.raises(ValueError, match="^method: 'layer_pairs' needs .*: use 'columns'"):
            rt.hessian(net, "square", (x, y), method="layer_pairs")


class SideBySide(nn.Module):
    """Two layers that know nothing of each other's outputs, and one behind both."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(D, 4), nn.Linear(D, 4, bias=False)
        self.last = nn.Linear(4, K)

    def forward(self, x):
        return self.last(torch.tanh(self.left(x)) + self.right(x) ** 2)


def test_entries_that_follow_one_another_are_a_span():
    rows = torch.arange(3, 9).view(2, 3)
    for places, span in ((rows, slice(3, 9)), (rows[:1, :1], slice(3, 4)), (rows.T, None),
                         (rows[:, :2], None), (rows.flip(1), None)):  # fmt: skip
        found = layer_pairs._Places(places)
        assert (found.span, found.shape) == (span, places.shape)
        assert_same(found.flat, places.flatten())


@pytest.mark.parametrize("loss", ["square", "linear"])
@pytest.mark.parametrize("make", [mlp, lambda: fill(SideBySide())], ids=["mlp", "side-by-side"])
def test_pairs_of_layers_without_a_derivative_are_left_out(make, loss, data, monkeypatch):
    monkeypatch.setattr(dense, "columns_of", None)  # no second route
    if loss == "linear":  # whose gradient at the outputs is constant

        def loss(output, target):
            return (output * target).sum(1).mean()

    measured = rt.hessian(make(), loss, data, method="layer_pairs")
    function = oracles.square_loss if loss == "square" else loss
    assert relative_error(measured, exact(make(), data, function)) <= HESSIAN
    assert not measured.requires_grad


@pytest.mark.parametrize(("sizes", "together", "entries"), [
    ([(3, 5), (2, 4)], 2048, 3 * 5 * (3 + 5) / 2 + 25),
    ([(100, 2000)], 15, 3 * 100 * 2100 / 2 + 2000**2),
    ([(1, 1), (4000, 3000)], 1, 3 * 4001 * 7000 / 2 + 4000 * 3000),
    ([(9000, 9000)], 1, 3 * 9000 * 18000 / 2 + 9000**2),
])  # fmt: skip
def test_samples_whose_responses_fit_in_half_a_gibibyte(sizes, together, entries):
    assert layer_pairs.samples_together(sizes) == (together, 8 * entries)


def test_pairs_of_layers_that_do_not_fit_do_not_try_columns(data, monkeypatch):
    def greedy(*_given):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(layer_pairs, "_accumulate", greedy)
    with pytest.raises(torch.OutOfMemoryError):
        rt.hessian(mlp(), "square", data)


def test_a_parameter_that_is_used_beside_its_layer_takes_columns(data):
    net = no_sequence("penalized")
    assert rt.curvature.hessian_cost(net, "square", data).method == "layer_pairs"
    assert relative_error(rt.hessian(net, "square", data), exact(net, data)) <= HESSIAN


@pytest.mark.parametrize(("part", "paired"), [(0.9, True), (1.1, False)])
def test_pairs_of_layers_leave_out_what_is_round_off(part, paired, data):
    """A bias beside its layer, whose curvature is a part of 1e-8 of the product's usual length."""
    net, v = mlp(), torch.randn(26, generator=torch.Generator().manual_seed(0))
    bias, size = net[0].bias, 0.0
    net.register_forward_hook(lambda module, inputs, output: output + size * bias.square().sum())

    def loss(output, target):
        return (output * target).sum(1).mean()

    matrix = exact(net, data, loss)
    usual = float(matrix.norm() * v.norm()) / 26**0.5
    own = 2 * abs(float(data[1].sum(1).mean())) * float(v[12:16].norm())
    size = part * 1e-8 * usual / own
    risk = EmpiricalRisk(net, loss, data)
    list(risk.first_pass())
    if paired:
        found = layer_pairs.pairs_hessian(risk, M, report=lambda samples: None)
        assert relative_error(found, matrix) <= HESSIAN
    else:
        with pytest.raises(layer_pairs.NotPaired):
            layer_pairs.pairs_hessian(risk, M, report=lambda samples: None)


CHAINS = {
    "mlp": mlp,
    "linear": lambda: fill(nn.Linear(D, K)),
    "nested": lambda: nn.Sequential(mlp()[:2], nn.Sequential(mlp()[2:], nn.Identity())),
    "in-place": lambda: mlp(act=lambda: nn.ELU(inplace=True)),
    "in-place-first": lambda: nn.Sequential(nn.ELU(inplace=True), mlp()),
    "in-place-last": lambda: nn.Sequential(mlp(), nn.SiLU(inplace=True)),
    "composed": lambda: mlp(act=lambda: nn.Sequential(nn.Tanh(), nn.Softplus())),
    "dropout": lambda: mlp(act=lambda: nn.Dropout(0.5)),
    "shared-act": lambda: nn.Sequential(act := nn.Tanh(), fill(nn.Linear(D, K)), act),
    "activations-first": lambda: nn.Sequential(nn.Tanh(), fill(nn.Linear(D, K))),
}


@pytest.mark.parametrize("kind", CHAINS)
def test_chains_are_recognized_and_data_are_left_alone(kind, data):
    net = CHAINS[kind]()
    net.train()
    before = [part.clone() for part in data]
    measured = [rt.hessian(net, "square", data, method=m) for m in ("layer_pairs", "columns")]
    assert all(torch.equal(part, copy) for part, copy in zip(data, before, strict=True))
    assert net.training
    expected = exact(net.eval(), data)
    assert relative_error(measured[0], expected) <= HESSIAN
    assert relative_error(measured[1], expected) <= HESSIAN


@pytest.mark.parametrize(
    ("inputs", "outputs", "method"),
    [
        ((1, D), (1, K), "layer_pairs"),
        ((4, D), (4, K), "columns"),
        ((1, D), (K,), "layer_pairs"),
        ((D, 1), (K,), "layer_pairs"),
    ],
    ids=str,
)
def test_samples_that_are_no_vectors(inputs, outputs, method, generator):
    net = mlp() if len(outputs) > 1 else nn.Sequential(nn.Flatten(), mlp())
    x = torch.randn(M, *inputs, generator=generator)
    y = torch.randn(M, *outputs, generator=generator)
    assert rt.curvature.hessian_cost(net, "square", (x, y)).method == method
    assert relative_error(rt.hessian(net, "square", (x, y)), exact(net, (x, y))) <= HESSIAN


@pytest.mark.parametrize("method", ["layer_pairs", "columns"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no-grad", "infer"])
def test_gradient_mode_of_the_caller_does_not_matter(method, mode, data):
    net = mlp()
    expected = rt.hessian(net, "square", data, method=method)
    with mode():
        measured = rt.hessian(net, "square", data, method=method)
    assert torch.equal(measured, expected)


# what float32 gradients leave of a product of two layers, relative to the largest entry
@pytest.mark.parametrize(("method", "tolerance"), [("layer_pairs", 1e-12), ("columns", 1e-5)])
def test_float32_nets(method, tolerance, data):
    net, given = mlp().float(), tuple(part.float() for part in data)
    measured = rt.hessian(net, "square", given, method=method)
    assert measured.dtype == torch.float64
    assert net[0].weight.dtype == torch.float32
    double = mlp().float().double(), tuple(part.double() for part in given)
    assert relative_error(measured, exact(*double)) <= tolerance


@pytest.mark.parametrize("method", ["layer_pairs", "columns"])
def test_float32_nets_and_a_loss_whose_weights_are_measured(method, data):
    labels, weights = torch.tensor([0, 1, 1, 1, 0, 0, 1]), torch.tensor([1.0, 5.0])

    def loss(output, target):
        return F.cross_entropy(output, target, weights.to(output))

    net, x = mlp().float(), data[0].float()
    parts = [(x[:2], labels[:2]), (x[2:], labels[2:])]
    measured = rt.hessian(net, loss, parts, method=method)
    expected = exact(mlp().float().double(), (x.double(), labels), loss)
    assert relative_error(measured, expected) <= HESSIAN


@pytest.mark.parametrize("kind", ["mlp", "linear", "custom"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_nets_that_are_not_finite(kind, value, data):
    net = {"mlp": mlp, "custom": lambda: fill(Unused())}.get(kind, lambda: mlp(act=nn.Identity))()
    with torch.no_grad():
        next(net.parameters())[0, 0] = value
    with pytest.raises(ValueError, match=rf"^net .*: entry \(0, 0\) is {value}"):
        rt.hessian(net, "square", data)


@pytest.mark.parametrize("method", ["closed_form", "layer_pairs", "columns"])
def test_a_hessian_that_overflows(method, data):
    net = mlp(bias=False, act=nn.Identity)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1e200)
    with pytest.raises(ValueError, match="^net: its .* not finite on these data"):
        rt.hessian(net, "square", data, method=method)


def overwriting(z):
    """Changes a value that its gradient needs: torch refuses to train it."""
    z = torch.tanh(z)
    doubled = 2 * z
    z.add_(1.0)
    return z + doubled


def test_a_net_that_cannot_be_trained_is_refused(data):
    with pytest.raises(ValueError, match="^net: overwrites in place a value that its gradient"):
        rt.hessian(Headed(overwriting), "square", data)


class Backwards(torch.autograd.Function):
    """The identity, with a gradient that is none of any function."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.clone()

    @staticmethod
    def backward(ctx, grad):
        (z,) = ctx.saved_tensors
        return grad * z.roll(1, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_second_derivatives_of_no_function_are_refused(dtype, data):
    given = tuple(part.to(dtype) for part in data)
    with pytest.raises(ValueError, match="^net: its second derivatives are not symmetric"):
        rt.hessian(fill(Headed(Backwards.apply)).to(dtype), "square", given)


def test_low_precision_is_told_from_wrong_derivatives(data):
    given = tuple(part.float() for part in data)

    def coarse(z):
        return Backwards.apply(z) if z.dtype == torch.float32 else z

    with pytest.raises(ValueError, match="not symmetric .* but in float64 they are"):
        rt.curvature_operator(fill(Headed(coarse)).float(), "square", given)


def test_wrong_derivatives_of_a_net_that_has_no_copy_in_float64(data):
    given = tuple(part.float() for part in data)

    def single(z):
        if z.dtype != torch.float32:
            raise TypeError("takes float32 only")
        return Backwards.apply(z)

    with pytest.raises(ValueError, match="not symmetric .*, as those of a twice differentiable"):
        rt.curvature_operator(fill(Headed(single)).float(), "square", given)


def test_outputs_without_a_doubt_are_named_among_the_causes():
    """Derivatives of a loss of 1e-30 are differences of numbers near one, and mostly round-off."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)), torch.randn(20, 3)
    with torch.no_grad():
        net[2].weight.mul_(1e4)
    with pytest.raises(ValueError, match="not symmetric .* outputs so certain, with a loss near"):
        rt.curvature_operator(net, "cross_entropy", (x, net(x).argmax(1)))


def test_a_bias_that_a_softmax_takes_away_has_zeros_within_error_bars():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.queries, self.keys, self.head = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return self.head((self.queries(x) @ self.keys(x).mT).softmax(-1) @ x).mean(1)

    torch.manual_seed(0)
    net, data = Attention().requires_grad_(False), (torch.randn(8, 5, 4), torch.arange(8) % 4)
    net.keys.bias.requires_grad_(True)
    report = rt.spectrum(net, "cross_entropy", data, k=1, method="matrix-free")
    assert "a softmax takes away" in str(report)
    for number in (*report.largest, *report.smallest, report.trace):
        assert -1e-13 < number.low <= 0 <= number.high < 1e-13
    assert rt.hessian(net, "cross_entropy", data, method="columns").abs().max() < 1e-15
    error = rt.curvature_operator(net, "cross_entropy", data).error
    # Four bias entries, each of them off by the round-off of a loss near log 4.
    assert error.trace == 4 * error.spectral == 2 * error.frobenius > 2.0**-52


# -- methods, memory, chunks -----------------------------------------------------------------------

REFUSED = {
    "function": (lambda: torch.tanh, "square", "auto", "^net: got builtin_function_or_method, nee"),
    "frozen": (
        lambda: nn.Linear(D, K).requires_grad_(False), "square", "auto",
        "^net: has no trainable parameters, needs at least one requires_grad=True$",
    ),
    "empty": (nn.Tanh, "square", "auto", "^net: has no trainable parameters"),
    "typo": (mlp, "square", "colums", "^method: unknown name 'colums'; did you mean 'columns'"),
    "not-linear": (mlp, "square", "closed_form", "^method: 'closed_form' needs a linear net"),
    "not-square": (
        lambda: mlp(bias=False, act=nn.Identity), F.mse_loss, "closed_form",
        "^method: 'closed_form' .*the square loss",
    ),
    "affine": (lambda: mlp(act=nn.Identity), "square", "closed_form", "without biases"),
}  # fmt: skip


def hooked(net, register):
    getattr(net, register)(lambda *_: None)
    return net


def frozen(net):
    return net.requires_grad_(False)


def tied():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    return net


BARE = nn.Linear(2, 3, bias=False)
LINEAR = {
    "one": (lambda: BARE, ["weight"]),
    "nested": (
        lambda: nn.Sequential(
            nn.Identity(), nn.Sequential(BARE, nn.Dropout()), nn.Linear(3, 4, bias=False)
        ),
        ["1.0.weight", "2.weight"],
    ),
    "no layer": (lambda: nn.Sequential(nn.Identity()), None),
    "bias first": (lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4, bias=False)), None),
    "bias last": (lambda: nn.Sequential(BARE, nn.Linear(3, 4)), None),
    "frozen last": (lambda: nn.Sequential(BARE, frozen(nn.Linear(3, 4, False))), None),
    "curved": (lambda: nn.Sequential(BARE, nn.Tanh()), None),
    "called twice": (lambda: nn.Sequential(layer := nn.Linear(2, 2, bias=False), layer), None),
    "tied": (tied, None),
    "hook": (lambda: nn.Sequential(hooked(nn.Linear(2, 3, False), "register_forward_hook")), None),
    "hook before": (
        lambda: hooked(nn.Sequential(nn.Linear(2, 3, False)), "register_forward_pre_hook"), None,
    ),
    "of a kind of its own": (lambda: type("Own", (nn.Linear,), {})(2, 3, bias=False), None),
    "frozen shortcuts": (
        lambda: frozen(rt.ShortcutNet(2, blocks=1, shortcut_depth=1)), None,
    ),
    "curved shortcuts": (
        lambda: rt.ShortcutNet(2, blocks=1, shortcut_depth=1, mid="relu", pre="relu"), None,
    ),
    "hook of shortcuts": (
        lambda: hooked(rt.ShortcutNet(2, blocks=1, shortcut_depth=1), "register_forward_hook"),
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_which_nets_have_a_closed_form(name):
    make, names = LINEAR[name]
    net = make()
    found = dense._linear(net)
    if names is None:
        assert found is None
    else:
        assert [id(w) for w in found] == [id(net.get_parameter(name)) for name in names]


def test_linear_shortcut_nets_have_a_closed_form():
    net = rt.ShortcutNet(2, blocks=1, shortcut_depth=1)
    assert dense._linear(net) is net


@pytest.mark.parametrize("function", [rt.hessian, rt.hessian_spectrum, rt.curvature.hessian_cost])
@pytest.mark.parametrize("kind", REFUSED)
def test_nets_that_are_none_and_methods_that_do_not_apply(kind, function, data):
    make, loss, method, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        function(make(), loss, data, method=method)


def test_an_unknown_batchnorm_policy(data):
    with pytest.raises(ValueError, match="^batchnorm: unknown name 'train'"):
        rt.hessian(mlp(), "square", data, batchnorm="train")


@pytest.mark.parametrize("function", [rt.hessian, rt.hessian_spectrum])
@pytest.mark.parametrize("method", ["layer_pairs", "columns"])
def test_too_much_memory_is_refused_before_the_work(function, method, data):
    net = mlp()
    with pytest.raises(MemoryError) as caught:
        function(net, "square", data, method=method, memory_limit=1000)
    message = str(caught.value)
    assert re.match(
        r"hessian: P = 26 parameters need [\d.]+ [MG]iB, 0.0 MiB are available", message
    )
    assert "requires_grad_(False)" in message
    assert "rt.theory.zero_point" in message


def test_the_machine_sets_the_limit(data, monkeypatch):
    monkeypatch.setattr(resources, "available_bytes", lambda device: 0)
    with pytest.raises(MemoryError, match="P = 26"):
        rt.hessian(mlp(), "square", data)
    rt.hessian(mlp(), "square", data, memory_limit=1 << 40)


# Seconds beside those of writing P x P entries, where a matmul makes 1,000 operations in a second,
# building the graph of three samples of all takes 1 second and its product with five columns 2.
# Bytes beside the matrix: of as many entries as pairs of a closed form's 4 and 2 rows have; of the
# copy that mirrors the matrix, or if that is more of a block of 16 x 16 and 848 for each of four
# samples; and of eight copies of five columns, and graphs.
COSTS = {
    "closed_form": (
        lambda: mlp(bias=False, act=nn.Identity), lambda size: 0.0, lambda size: 8 * 6**2),
    "layer_pairs": (
        mlp, lambda size: 4 * M * size**2 / 1000, lambda size: 8 * 16**2 + 4 * 848),
    "columns": (
        lambda: fill(Unused()), lambda size: (1 + 2 * size / 5) * M / 3,
        lambda size: 64 * 5 * size),
}  # fmt: skip


@pytest.mark.parametrize("method", COSTS)
def test_costs(method, data, device, monkeypatch):
    make, seconds, beside = COSTS[method]
    net = make().to(device)
    monkeypatch.setattr(dense, "PANEL", 5)
    monkeypatch.setattr(dense, "matmul_rate", lambda device: 1000.0)
    times = iter((5.0, 6.0, 8.0))
    monkeypatch.setattr(dense, "clock", lambda device: next(times))
    parts = [tuple(t[rows] for t in data) for rows in (slice(3), slice(3, None))]
    operator_of, tried = dense.operator_of, []

    def recorded(risk, **options):
        tried.append([batch.size for batch in risk.data])
        return operator_of(risk, **options)

    with monkeypatch.context() as patch:
        patch.setattr(dense, "operator_of", recorded)
        cost = rt.curvature.hessian_cost(net, "square", parts)
    assert tried == ([[3]] if method == "columns" else [])
    size = sum(p.numel() for p in net.parameters())
    assert (cost.method, cost.parameters) == (method, size)
    graphs = rt.curvature_operator(net, "square", parts[0]).graph_bytes(M)
    assert cost.bytes == 8 * size**2 + beside(size) + (graphs if method == "columns" else 0)
    written = 8 * size**2 / {"cpu": 2e9, "cuda": 5e11}[device.type]
    assert cost.seconds == pytest.approx(written + seconds(size), rel=1e-12)
    assert str(cost).startswith(f"{method}: P = {size}, ")
    # what it says it needs is what it is granted
    rt.hessian(net, "square", parts, memory_limit=cost.bytes)
    least = 8 * size**2 if method == "columns" else cost.bytes  # graphs may be rebuilt
    with pytest.raises(MemoryError):
        rt.hessian(net, "square", parts, memory_limit=least - 1)


@pytest.mark.parametrize("panel", [1, 5, 256])
def test_columns_do_not_depend_on_panels(panel, data, monkeypatch):
    net = mlp()
    monkeypatch.setattr(columns, "PANEL", panel)  # groups of parameters, too
    measured = rt.hessian(net, "square", data, method="columns")
    assert torch.equal(measured, measured.mT)
    assert relative_error(measured, exact(net, data)) <= HESSIAN


@pytest.mark.parametrize("known", ["0.weight", "0.bias", "2.bias"])
def test_columns_of_a_known_block_are_left_out(known, data, monkeypatch):
    monkeypatch.setattr(columns, "PANEL", 5)
    operator, whole = rt.curvature_operator(mlp(), "square", data), exact(mlp(), data)
    sizes = [parameter.numel() for parameter in operator.risk.parameters]
    places = dict(zip(operator.names, torch.arange(len(whole)).split(sizes), strict=True))
    last = places.pop(known)
    others = torch.cat(list(places.values()))
    found = columns.lower_columns(operator, known=known)[torch.cat([others, last])]
    expected = whole[torch.cat([others, last])][:, others]
    assert relative_error(found.tril(), expected.tril()) <= HESSIAN


def test_columns_go_on_after_a_kill(data, tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "PANEL", 5)
    net = mlp()
    whole = rt.hessian(net, "square", data, method="columns", folder=tmp_path)
    recorded = sorted(tmp_path.rglob("product_*.json"))
    assert torch.equal(whole, rt.hessian(net, "square", data, method="columns"))
    for path in recorded[1:3]:
        path.unlink()
    made = []
    product = CurvatureBlock._product
    monkeypatch.setattr(
        CurvatureBlock, "_product", lambda A, v: made.append(v.shape[1]) or product(A, v)
    )
    again = rt.hessian(net, "square", data, method="columns", folder=tmp_path)
    # The first product of each group is compared with a new one, and three see the whole.
    groups = len(list(tmp_path.iterdir()))
    assert torch.equal(again, whole) and len(made) == groups + 2 + 1
    with torch.no_grad():
        next(net.parameters()).mul_(2)
    with pytest.raises(ValueError, match="recorded with another operator"):
        rt.hessian(net, "square", data, method="columns", folder=tmp_path)
    with pytest.raises(ValueError, match="^folder: got one, but 'layer_pairs'"):
        rt.hessian(net, "square", data, folder=tmp_path)
    other = tmp_path / "spectrum"
    found = rt.hessian_spectrum(net, "square", data, method="columns", folder=other)
    exact = torch.linalg.eigvalsh(rt.hessian(net, "square", data))
    assert relative_error(found.eigenvalues, exact) <= HESSIAN and list(other.iterdir())


@pytest.mark.parametrize(("panel", "power"), [(1, 0), (256, 0), (256, 60), (1, -60)])
def test_the_norm_of_what_is_not_symmetric(panel, power, data, monkeypatch):
    """In one panel all of it, mirrored; else what three products see beside what was mirrored."""
    monkeypatch.setattr(columns, "PANEL", panel)
    net, skewed = mlp(), torch.zeros(26, 26, dtype=torch.float64)
    skewed[0, 25], skewed[3, 1] = 1e-5, -2e-5
    scale, product = 2.0**power, CurvatureBlock._product
    monkeypatch.setattr(CurvatureBlock, "_product", lambda A, v: scale * (
        product(A, v) + (skewed @ v if A.shape == (26, 26) else 0)))  # fmt: skip
    matrix, norm = columns.columns_of(rt.curvature_operator(net, "square", data))
    expected, drawn = exact(mlp(), data), torch.Generator().manual_seed(0)
    if panel == 256:
        expected = expected + (skewed + skewed.mT) / 2
        apart = float((skewed - skewed.mT).norm())
    else:
        apart = float((skewed @ torch.randn(26, 3, generator=drawn)).norm()) / 3**0.5
    assert relative_error(matrix / scale, expected) <= HESSIAN
    assert norm / scale == pytest.approx(apart, rel=1e-7)  # round-off of 1e-16 in 1e-5


@pytest.mark.parametrize("panel", [1, 256])
def test_how_far_a_matrix_is_from_symmetric_is_told(panel, data, monkeypatch):
    monkeypatch.setattr(columns, "PANEL", panel)
    operator, whole = rt.curvature_operator(mlp(), "square", data), exact(mlp(), data)
    skewed = torch.zeros(26, 26, dtype=torch.float64)
    skewed[0, 25] = 0.1
    product, drawn = CurvatureBlock._product, torch.Generator().manual_seed(0)
    monkeypatch.setattr(CurvatureBlock, "_product", lambda A, v: product(A, v) + (
        skewed @ v if A.shape == (26, 26) else 0))  # fmt: skip
    gap = 0.1
    if panel == 1:  # of the largest entry, as large as the products are wrong
        v = torch.randn(26, 3, generator=drawn)
        gap = whole.abs().max() * (skewed @ v).norm() / ((whole + skewed) @ v).norm()
    with pytest.raises(ValueError) as caught:
        columns.columns_of(operator)
    assert str(caught.value) == (
        f"net: its second derivatives are not symmetric (by {gap:.2g}), {NOT_SYMMETRIC}"
    )


def test_the_first_product_tells_how_far_derivatives_are_from_symmetric(data):
    net = fill(Headed(Backwards.apply))
    matrix, v = exact(net, data), torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    forms = v @ matrix @ v.mT
    gap = float((forms - forms.mT).abs().max())
    with pytest.raises(ValueError) as caught:
        rt.curvature_operator(net, "square", data)
    assert str(caught.value) == (
        f"net: its second derivatives are not symmetric (by {gap:.2g} on vectors of length "
        f"{float(v[0].norm()):.2g}), {NOT_SYMMETRIC}"
    )


@pytest.mark.parametrize("limited", [True, False])
def test_a_matrix_is_overwritten_where_a_copy_and_buffers_do_not_fit(limited, monkeypatch):
    """A copy takes 8 bytes an entry, buffers one."""
    whole = torch.randn(6, 6)
    whole, beside = whole + whole.mT, 8 * 36 if limited else 0
    for free, kept in ((9 * 36, True), (9 * 36 - 1, False)):
        monkeypatch.setattr(resources, "available_bytes", lambda device, free=free: free)
        matrix = whole.clone()
        found = dense._eigenvalues(matrix, beside + free if limited else None)
        assert relative_error(found, torch.linalg.eigvalsh(whole)) <= HESSIAN
        assert torch.equal(matrix, whole) == kept


def test_eigenvalues_in_the_matrix_itself_take_no_byte_for_each_entry():
    matrix = torch.eye(600)
    tracemalloc.start()
    try:
        dense._eigenvalues(matrix, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 600**2  # of LAPACK's workspace 26 numbers of each row


@pytest.mark.parametrize("limited", [True, False])
def test_graphs_may_take_what_the_matrix_leaves(limited, data, monkeypatch):
    """Of what the caller allows all, of what is free one half."""
    make, given = dense.operator_of, []

    def operator_of(risk, *, memory_limit):
        given.append(memory_limit)
        return make(risk, memory_limit=memory_limit)

    monkeypatch.setattr(dense, "operator_of", operator_of)
    limit, needed = 1 << 30, 8 * 26**2 + 64 * columns.PANEL * 26
    monkeypatch.setattr(resources, "available_bytes", lambda device: limit)
    rt.hessian(mlp(), "square", data, method="columns", memory_limit=limit if limited else None)
    assert given == [(limit - needed) // (1 if limited else 2)]


@pytest.mark.parametrize("call", [rt.hessian, rt.hessian_spectrum])
@pytest.mark.parametrize("progress", [True, False])
def test_bars_count_columns_or_samples(call, progress, data, bars, monkeypatch):
    made = bars(columns, dense)
    monkeypatch.setattr(columns, "PANEL", 5)
    monkeypatch.setattr(dense, "samples_together", lambda sizes: (4, 1))
    for method in ("columns", "layer_pairs"):
        call(mlp(), "square", data, method=method, progress=progress)
    shown = {"disable": not progress, "desc": "Hessian"}
    assert [bar.options for bar in made] == [
        {"total": 26, "unit": "column", "done": made[0].done, **shown},
        {"total": M, "unit": "sample", "done": [4, 3], **shown},
    ]
    assert sum(made[0].done) == 26 and max(made[0].done) == 5


def test_eigenvalues_in_the_matrix_itself(data):
    expected = torch.linalg.eigvalsh(exact(mlp(), data))
    whole = rt.hessian_spectrum(mlp(), "square", data)
    cost = rt.curvature.hessian_cost(mlp(), "square", data)
    short = rt.hessian_spectrum(mlp(), "square", data, memory_limit=cost.bytes)
    in_place = dense._eigenvalues(rt.hessian(mlp(), "square", data), 0)
    for found in (whole.eigenvalues, short.eigenvalues, in_place):
        assert relative_error(found, expected) <= HESSIAN


@pytest.mark.parametrize("workspace", [1, 2000, 1 << 28])
@pytest.mark.parametrize("kind", ["mlp", "shortcut"])
def test_layer_pairs_do_not_depend_on_chunks(workspace, kind, data, monkeypatch):
    net = mlp()
    if kind == "shortcut":
        net = nn_shortcut()
        data = data[0], data[0].flip(0)
    monkeypatch.setattr(layer_pairs, "_WORKSPACE", workspace)
    measured = rt.hessian(net, "square", data, method="layer_pairs")
    assert relative_error(measured, exact(net, data)) <= HESSIAN


def nn_shortcut():
    return fill(rt.ShortcutNet(D, 2, 2, mid="tanh", post="silu", hidden=4, bias=True))


def test_operations_without_a_batching_rule_go_one_by_one(data, monkeypatch):
    net = mlp()
    pull = HessianGraph.pull

    def unbatched(self, vectors, rows, columns, batched):
        if batched:
            raise RuntimeError("no batching rule")
        return pull(self, vectors, rows, columns, batched)

    monkeypatch.setattr(HessianGraph, "pull", unbatched)
    measured = rt.hessian(net, "square", data, method="columns")
    assert relative_error(measured, exact(net, data)) <= HESSIAN


@pytest.mark.parametrize("method", ["closed_form", "layer_pairs", "columns"])
def test_hessians_are_symmetric_to_the_bit(method, data):
    measured = rt.hessian(mlp(bias=False, act=nn.Identity), "square", data, method=method)
    # the closed form writes both halves on their own
    tolerance = 1e-14 if method == "closed_form" else 0.0
    assert relative_error(measured, measured.T) <= tolerance


def convolutional(activation):
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), activation, nn.Conv2d(3, 2, 3), activation, nn.Flatten(),
        nn.Linear(8, 40), activation, nn.Linear(40, 3),
    )  # fmt: skip
    x = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return fill(net.double()), (x, torch.tensor([0, 2, 1, 0, 2]))


def test_a_complete_spectrum_takes_no_columns_of_the_largest_weight(tmp_path):
    net, data = convolutional(nn.ReLU())
    truth = torch.linalg.eigvalsh(exact(net, data, F.cross_entropy))
    for _ in range(2):  # the second call reads the recorded products
        matrix, names = complete_hessian(net, data, tmp_path)
        # 276 other weights twice, 5 samples, 3 classes; the largest weight has 320 entries.
        assert len(matrix) == len(names) == 2 * 276 + 15 == len(truth) - 29
        found = torch.cat([torch.linalg.eigvalsh(matrix), torch.zeros(29)]).sort()[0]
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-14 * float(truth.norm()))
    with pytest.raises(ValueError, match=r"net: not piecewise linear in 5.weight"):
        complete_hessian(*convolutional(nn.Tanh()))
