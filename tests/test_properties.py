"""Laws for every shape, dtype, scale and spectrum; hypothesis tries the same examples each time."""

from types import SimpleNamespace

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tolerances import EPS, assert_same, round_off
from torch import nn
from torch.nn import functional as F

import resid_theory as rt
from resid_theory import stability
from resid_theory.data import augment, draw_crops
from resid_theory.data.image_folders import _channel_statistics
from resid_theory.eigen import Spectrum
from resid_theory.identity import with_identity
from resid_theory.stability.norms import row_norms

law = settings(derandomize=True, deadline=None, max_examples=40)
EXPONENTS = {torch.float64: 290, torch.float32: 30}  # of ten; squares are out of range
SHAPES = {
    "different": lambda v: v,
    "equal": lambda v: np.full_like(v, v[0]),
    "rank one": lambda v: np.append(v[:1], 0 * v[1:]),
    "zero": lambda v: 0 * v,
    "clusters": lambda v: np.round(v) + 1e-9 * v,
    "signs": np.sign,
}


@st.composite
def spectra(draw):
    """Eigenvalues in float64, a dtype that holds them, and the diagonal operator."""
    count, generator = draw(st.integers(1, 14)), np.random.default_rng(draw(st.integers(0, 2**16)))
    values = SHAPES[draw(st.sampled_from(list(SHAPES)))](generator.uniform(-1, 1, count))
    dtype = draw(st.sampled_from(list(EXPONENTS)))
    scale = 10.0 ** draw(st.integers(-EXPONENTS[dtype], EXPONENTS[dtype]))
    matrix = torch.diag(torch.tensor(values * scale).to(dtype))
    return matrix.diag().double().numpy(), dtype, matrix


def norm_of(values):
    """Euclidean norm, whose squares neither overflow nor vanish."""
    return np.linalg.norm(values / (abs(values).max() or 1)) * abs(values).max()


@law
@given(spectra(), st.integers(1, 6), st.sampled_from(["largest", "smallest", "magnitude"]))
def test_eigenpairs_are_those_of_the_diagonal(spectrum, k, which):
    values, dtype, matrix = spectrum
    found = rt.eigenpairs(matrix, k, which=which)
    measure = {"largest": np.negative, "smallest": np.positive, "magnitude": lambda v: -abs(v)}
    wanted = np.sort(measure[which](values))[:k]  # by magnitude λ and -λ have no order
    assert found.values.shape == wanted.shape and found.vectors.dtype == dtype
    assert (abs(measure[which](found.values.numpy()) - wanted) <= found.bounds.numpy()).all()
    assert bool(found.converged.all()) and bool((found.bounds <= 1e-3 * abs(values).max()).all())
    gram, unit = (found.vectors.T @ found.vectors).double(), torch.eye(len(wanted)).double()
    assert (gram - unit).abs().max() <= 100 * len(values) * torch.finfo(dtype).eps
    errors = matrix.double() @ found.vectors.double() - found.vectors.double() * found.values
    assert bool((errors.abs().max(0).values <= found.residuals + found.round_off).all())


@law
@given(spectra(), st.integers(6, 20), st.sampled_from([rt.trace, rt.frobenius_norm]))
def test_traces_and_norms(spectrum, budget, measure):
    values, dtype, matrix = spectrum
    wanted = values.sum() if measure is rt.trace else norm_of(values)
    found = measure(matrix, budget=budget)
    assert found.low <= found.value <= found.high and found.standard_error >= 0
    if budget >= len(values):  # as many products as columns
        assert found.standard_error == 0 and found.covers(float(wanted))
        most = 100 * len(values) * torch.finfo(dtype).eps * abs(values).sum()
        assert abs(found.value - wanted) <= most


@law
@given(spectra(), st.integers(1, 3))
def test_densities_have_their_mass_at_eigenvalues(spectrum, probes):
    values, _, matrix = spectrum
    found = rt.spectral_density(matrix, probes=probes, steps=30)
    assert (found.size, found.probes) == (len(values), probes) and bool(found.complete.all())
    torch.testing.assert_close(found.weights.sum(1), torch.ones(probes), rtol=0, atol=1e-12)
    far = (found.nodes.unsqueeze(-1) - torch.tensor(values)).abs().amin(-1)[found.weights > 0]
    assert bool((far <= max(found.round_off, 1e-8 * abs(values).max())).all())


@law
@given(spectra(), st.data(), st.floats(0, 100))
def test_statistics_are_those_of_the_repeated_eigenvalues(spectrum, data, percent):
    values = spectrum[0]
    counts = [data.draw(st.integers(1, 4)) for _ in values]
    found, every = Spectrum.of(values, counts), np.sort(np.repeat(values, counts))
    most, error = abs(every).max(), round_off(len(every))
    assert found.size == len(every) and (found.eigenvalues.numpy() == every).all()
    assert found.largest == every[-1] and found.smallest == every[0]
    wanted = np.percentile(abs(every), percent)
    assert abs(found.magnitude_percentile(percent) - wanted) <= 8 * EPS * most
    assert found.index == (every < -1e-10 * most).mean()
    assert found.rank == (abs(every) > len(every) * EPS * most).sum()
    assert abs(found.trace - every.sum()) <= error * abs(every).sum()
    assert found.frobenius_norm == pytest.approx(norm_of(every), rel=error)
    assert found.distance(found) == 0 == found.wasserstein_distance(Spectrum.of(every))


@st.composite
def layers(draw):
    """A layer with random weights, an input for it, the rule of its identity and the kernel."""
    rule, inputs = draw(st.sampled_from(["repeat", "truncate"])), draw(st.integers(1, 4))
    outputs = inputs * draw(st.integers(1, 3)) if rule == "repeat" else draw(st.integers(1, 6))
    dtype, axes = draw(st.sampled_from(list(EXPONENTS))), draw(st.integers(0, 2))
    side, bias = draw(st.sampled_from([1, 3, 5])), draw(st.booleans())
    torch.manual_seed(draw(st.integers(0, 2**16)))
    options = {"kernel_size": side, "padding": side // 2} if axes else {}
    kind = (nn.Linear, nn.Conv1d, nn.Conv2d)[axes]
    layer = kind(inputs, outputs, bias=bias, **options).to(dtype)
    x, shape = torch.randn(2, inputs, *[6] * axes, dtype=dtype), layer.weight.shape
    kernel = oracles.identity_kernel_by_loops(shape, rule=rule, taps=[n // 2 for n in shape[2:]])
    return layer, x, rule, kernel.to(dtype)


def assert_near(found, wanted, filters):
    """Equal but for round-off: a sum over a filter, with the identity added and removed."""
    scale = float(wanted.detach().abs().max()) + 1
    most = 50 * filters[0].numel() * torch.finfo(found.dtype).eps * scale
    torch.testing.assert_close(found, wanted, rtol=0, atol=most)


@law
@given(layers(), st.booleans())
def test_folded_dirac_layers(drawn, normalize):
    layer, x, rule, kernel = drawn
    with_identity(layer, "dirac", rule=rule, normalize=normalize)
    v, inside = layer.parametrizations.weight.original, layer.parametrizations.weight[0]
    rows = (-1, *[1] * (v.dim() - 1))
    with torch.no_grad():
        for parameter in inside.parameters():
            parameter.uniform_(-2, 2)
    rest = inside.b.view(rows) * F.normalize(v.flatten(1)).view_as(v) if normalize else v
    folded = rt.fold(nn.Sequential(layer))
    assert_near(folded[0].weight, inside.a.view(rows) * kernel + rest, v)
    assert_near(folded(x), layer(x), v)


@law
@given(layers())
def test_plain_and_residual_layers_map_onto_each_other(drawn):
    layer, x, rule, kernel = drawn
    residual = rt.to_residual(nn.Sequential(layer), ["0"], rule=rule)
    v = residual[0].parametrizations.weight.original
    assert_near(v, layer.weight - kernel, v)
    assert_near(residual(x), layer(x), v)
    assert_near(rt.to_plain(residual)[0].weight, layer.weight, v)


# -- whatever the default dtype is -----------------------------------------------------------------

POINTS = F.normalize(torch.arange(1.0, 13, dtype=torch.float64).view(3, 4).cos())
PAIR = POINTS, F.normalize(POINTS.roll(1, 0) + 0.3 * POINTS.square())


def counted():
    """Eigenvalues of too many rows for a dense solver."""
    lower = POINTS[:, :3].contiguous()
    matrix = rt.theory.BlockToeplitz(diagonal=lower @ lower.mT, lower=lower, blocks=1001)
    # 3004 times a tenth of the matrix of ones; the nearest single-precision number is below it.
    tenth = torch.full((1, 1), 0.1, dtype=torch.float64)
    ones, top = rt.theory.BlockToeplitz(diagonal=tenth, lower=tenth, blocks=3004), 300.4 + 6e-6
    found = [matrix.eigenvalue(5), matrix.magnitude(9)]
    found += [ones.count_below(top), ones.count_within(top)]
    return torch.tensor(found, dtype=torch.float64)


def charted():
    """The great arc and the path of a chart."""
    chart = rt.theory.interpolate(*PAIR, units=20).chart(0)
    return torch.cat([chart.arc, chart.path])


def filled(*layers):
    """A net in float64, whatever the default is and whatever was drawn before."""
    net = nn.Sequential(*layers).double()
    draws = torch.Generator().manual_seed(0)
    for p in net.parameters():
        drawn = torch.randn(p.shape, generator=draws, dtype=torch.float64)
        p.data.copy_(drawn / p[0].numel() ** 0.5 if p.dim() > 1 else drawn.abs())
    return net


def chain():
    return filled(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


MAPS = POINTS.new_tensor(range(5 * 16)).view(5, 1, 4, 4).sin(), torch.arange(5) % 3


BYTES = torch.arange(5 * 16).view(5, 1, 4, 4).mul(37).remainder(256).byte()


def here(tensor):
    """On the CPU, where a pretended GPU is none."""
    return tensor


def placed(there):
    """The net and its samples on a device."""
    maps = tuple(map(there, MAPS))
    return chain().to(maps[0].device), maps


def cushions(there=here, **options):
    return rt.layer_cushions(*placed(there), **options)


def trained():
    recipe = rt.Recipe(epochs=2, batch=2, lr=0.1, precision="float64", augmentation="none")
    run = rt.train(chain(), MAPS, recipe, seed=0, device="cpu", progress=False, test=MAPS)
    numbers = [line[name] for line in run.metrics for name in ("penalty", "test_loss")]
    weights = [p.detach().flatten() for p in run.net.parameters()]
    return torch.cat([*weights, *run.first_losses, POINTS.new_tensor(numbers)])


def noisy(there=here):
    """The curves of both kinds of noise."""
    found = [stability.activation_noise(*placed(there), probes=3, draws=2),
             stability.weight_noise(*placed(there), relative=True, draws=2)]  # fmt: skip
    parts = [part for curves in found for part in
             (curves.levels, curves.measured, curves.predicted, curves.at_output)]  # fmt: skip
    return torch.cat([part.flatten() for part in parts])


def between(there=here, **options):
    found = rt.interlayer_cushions(*placed(there), start=1, **options)
    return torch.cat([found.values[..., None], found.standard_errors[..., None],
                      found.intervals(0.9)], 2)  # fmt: skip


def bounded(there=here):
    found = stability.compression_bound(*placed(there), margin=2.0, probes=3)
    return torch.stack([found.layer_cushions, found.interlayer, found.spread, found.overlap])


def flowing(there=here):
    found = rt.dominant_flows(*placed(there), rule="repeat")
    shares = [found.all_shares.flatten(1), found.off_path, found.gradients]
    return torch.cat([*shares, stability.feature_gradients(*placed(there))], 1)


def curved(**options):
    A = rt.curvature_operator(chain(), "cross_entropy", MAPS, **options)
    v = torch.arange(A.shape[0], dtype=torch.float64).cos()
    return torch.cat([A @ v, A.gradient, v.new_tensor([A.loss, A.quadratic(v[:, None])])])


def single():
    """A net in single precision, and what that costs."""
    A = rt.curvature_operator(chain().float(), "cross_entropy", MAPS, weight_decay=0.3)
    error = A.error
    numbers = [A.loss, error.spectral, error.frobenius, error.trace]
    return torch.cat([A @ A.gradient, A.gradient.new_tensor(numbers)])


def called_back():
    callback = rt.curvature_callback("cross_entropy", MAPS, dense=0, k=2, steps=3, index=True)
    return POINTS.new_tensor(list(callback(chain(), SimpleNamespace(step=5)).values()))


def branching():
    layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True, norm_first=True)
    net, x = filled(layer, nn.Linear(4, 3)), POINTS.view(1, 3, 4)
    return rt.curvature.zero_point_of_net(net, "square", (x, x[..., :3])).spectrum.eigenvalues


def weighed(loss):
    labels, output = torch.tensor([0, 2, -100]), PAIR[0]
    found = rt.losses.weighting_of(rt.Loss(loss), output, labels)
    return found.of_samples(output, labels, 3)


class Routed(nn.Module):
    """Experts in one tensor take the samples that are routed to them."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(POINTS.new_tensor(range(96)).view(2, 3, 16).cos())

    def forward(self, x):
        x = x.flatten(1)
        pick, out = (x.sum(1) > 0).long(), x.new_zeros(len(x), 3)
        for number, expert in enumerate(self.experts):
            rows = (pick == number).nonzero()[:, 0]
            out = out.index_add(0, rows, x[rows] @ expert.T)
        return out


# Of what tests/test_devices.py leaves.
IN_FLOAT64 = {
    "cushions, experts": lambda: rt.layer_cushions(Routed(), MAPS, batch=3).values.nan_to_num(),
    "norms of rows": lambda: row_norms(POINTS * POINTS.new_tensor([[1.0], [1e-200], [1e200]])),
    "colors": lambda: POINTS.new_tensor(_channel_statistics(BYTES)),
    "digits": lambda: rt.load_whitened("digits", 3, samples=20).x,
    "cushions, operator": lambda: cushions(norm="operator", include_bias=True).values,
    "cushions, statistics": lambda: torch.stack([
        cushions().quantile(0.3), *cushions().quantile_interval(0.3, 0.5).T]),
    "evaluation": lambda: POINTS.new_tensor(rt.evaluate(chain(), MAPS, batch=2).loss),
    "training": trained,
    "penalized": lambda: curved(weight_decay=0.3, engine="rebuilt", chunk=2),
    "curvature in float32": single,
    "callback": called_back,
    "branches": branching,
    "weights of samples": lambda: weighed(lambda z, y: F.cross_entropy(z, y)),
    "weights of samples, by value": lambda: weighed(
        lambda z, y: F.cross_entropy(z, y) if z.detach().sum().item() else z.sum()),
    "counted": counted,
    "flat": lambda: rt.theory.zero_point(PAIR, blocks=2, shortcut_depth=3).hessian(),
    "matrix": lambda: rt.theory.zero_point(PAIR, blocks=2, shortcut_depth=2).matrix_a,
    "isometry": lambda: rt.theory.isometry(0.5).density,
    "isometry, values": lambda: rt.theory.isometry(0.5).singular_values,
    "lyapunov": lambda: rt.theory.lyapunov_exponents(5),
    "lyapunov, orthogonal": lambda: rt.theory.lyapunov_exponents(5, init="orthogonal"),
    "interpolation": lambda: rt.theory.interpolate(*PAIR, units=20).net.weights.detach(),
    "interpolation, equal steps": lambda: rt.theory.interpolate(
        *PAIR, units=20, allocation="uniform").positions,
    "interpolation, perturbed": lambda: rt.theory.interpolate(
        *PAIR, units=20, mode="perturbed").targets,
    "interpolation, chart": charted,
    "wiring, shortcuts": lambda: rt.networks.layout_of(rt.ShortcutNet(3, 2, 2))[0],
    "wiring, plain": lambda: rt.networks.layout_of(rt.ShortcutNet(3, 2, 2, shortcut=False))[1],
    "draws, normal": lambda: rt.networks.draw_weights("xavier", (3, 3)),
    "draws, orthogonal": lambda: rt.networks.draw_weights("orthogonal", (3, 3)),
    "draws, zero": lambda: rt.networks.draw_weights("zero", (3, 3)),
    "draws, uniform": lambda: rt.diracnet(10, bn_init="uniform").fc.weight.detach().float(),
    "moments": lambda: rt.Moments.of(tuple(part.float() for part in PAIR)).sxx,
    "whitened": lambda: rt.data.whiten(POINTS.float(), 2)[0],
    "one-hot": lambda: rt.data.one_hot([2, 0], 3),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_FLOAT64)
def test_the_default_dtype_and_the_callers_random_state_change_no_number(name):
    torch.manual_seed(0)
    expected = IN_FLOAT64[name]()
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(1)
    assert_same(IN_FLOAT64[name](), expected)


# -- wherever the numbers are ----------------------------------------------------------------------


def huber(output, target):
    return F.huber_loss(output, target, reduction="none").sum(1).mean()


def descended(there):
    """Losses of a row that goes down and of one that diverges, by samples."""
    net, start = rt.ShortcutNet(4, 2, 2, mid="tanh"), torch.linspace(-1, 1, 64).view(2, 2, 4, 4)
    rates = torch.tensor([0.1, 1e6])
    return rt.gradient_descent(
        net, "square", tuple(map(there, PAIR)), weights=there(0.1 * start), learning_rate=rates,
        epochs=3,
    ).loss.nan_to_num()  # fmt: skip


def from_zero(there, **options):
    """Eigenvalues at zero weights, from samples or moments where they are."""
    return rt.theory.zero_point(tuple(map(there, PAIR)), blocks=3, **options)


def moved(there):
    """Images, crops, samples and moments that move to a device by themselves."""
    device = there(POINTS).device
    images = rt.Images(pixels=BYTES, labels=torch.arange(5), mean=(0.4,), std=(0.3,))
    crops = draw_crops(5, pad=2, generator=torch.Generator().manual_seed(0))
    cut = [augment(there(BYTES), crops.to(device), pad=2, padding=how).double().flatten()
           for how in ("zeros", "reflect")]  # fmt: skip
    parts = [images.to(device).inputs(images.to(device).pixels, torch.float64)]
    parts += [rt.Regression(*PAIR).to(device).y, rt.Regression(*PAIR).moments.to(device).syx]
    net = chain().to(device)
    return torch.cat([*cut, *(part.flatten() for part in parts), net(parts[0]).flatten(),
                      there(rt.layer_cushions(net, images).values).flatten()])  # fmt: skip


SHARES = POINTS @ POINTS.mT  # (3, 3)


def wired(there):
    """Coefficients and products of shares in layouts that are given as tensors."""
    layouts = [
        rt.theory.Layout(there(SHARES.tril()), there(POINTS[0])),
        rt.theory.Layout.dense(there(SHARES.tril())),
        rt.theory.Layout.scaled(3, skip=there(POINTS[0, :3]), scale=there(POINTS[1, :3])),
        rt.theory.Layout.hyper_connections(
            there(POINTS[:, :2]), there(SHARES[:, :2, None] * POINTS[:, None, :2]),
            there(POINTS[:, 2:]), start=there(POINTS[0, 1:3]), readout=there(POINTS[2, :2]),
        ),
    ]  # fmt: skip
    return torch.cat([
        part for one in layouts
        for part in (one.products, one.coefficients()[0].flatten(), POINTS.new_tensor([one.direct]))
    ])  # fmt: skip


def attending(there, **options):
    branch = rt.theory.Branch.attention(
        there(SHARES.view(1, 3, 3)), there(POINTS.view(1, 3, 4)), heads=3, bias=True, **options
    )
    return torch.cat([each.flatten() for each in branch.correlations])


def bent(there):
    """Eigenvalues at zero along the weights of a net."""
    torch.manual_seed(0)
    net = rt.ShortcutNet(4, 3, 1, post="leaky_relu", bias=True)
    for parameter in net.parameters():
        parameter.data = there(parameter.detach().normal_())
    return from_zero(
        there, shortcut_depth=1, post="leaky_relu", bias=True, kink=net
    ).spectrum.levels


def chained(function):
    """What a function of linear nets finds of rectangular layers under and beside a shortcut."""

    def found(there, *given):
        parts = POINTS[:2], POINTS[:, :2], SHARES
        first, second, last = (there(part.contiguous()) for part in parts)
        units = [rt.theory.Unit((first, second), there(POINTS)), rt.theory.Unit((last,))]
        data = there(PAIR[0]), there(PAIR[1][:, :3].contiguous())
        return function(units, data, *(there(part).detach() for part in given))

    return found


ON_A_GPU = {
    "moved": moved,
    "cushions, operator": lambda there: cushions(there, norm="operator").effective,
    "noise": noisy,
    "interlayer, exact": lambda there: between(there, method="exact"),
    "interlayer, probes": lambda there: between(there, method="probes", probes=3),
    "smoothness": lambda there: stability.interlayer_smoothness(*placed(there), draws=2).ratios,
    "contraction": lambda there: torch.tensor(
        [*stability.activation_contraction(*placed(there)).values()]),
    "bound": bounded,
    "flows": flowing,
    "layouts": wired,
    "layout of maps": lambda there: rt.theory.zero_point(
        (there(PAIR[0]), there(PAIR[1][:, :3].contiguous())),
        layout=rt.theory.Layout([[there(POINTS[:2])]], [there(POINTS), there(SHARES[:, 1:])], 2),
    ).spectrum.levels,
    "zero, maps": lambda there: rt.theory.zero_point(
        (there(PAIR[0]), there(PAIR[1][:, :2].contiguous())), blocks=2, shortcut_depth=2,
        input_map=there(POINTS), output_map=there(SHARES[:2]),
    ).spectrum.levels,
    "zero, direction": bent,
    "attention": attending,
    "attention, weights": lambda there: attending(there, attended=there(SHARES.softmax(1))),
    "mlp": lambda there: rt.theory.Branch.mlp(
        there(POINTS), there(SHARES), hidden=2, slope=0.3, bias=True).correlations[0],
    "biases": lambda there: rt.theory.transformer_zero_point(
        [rt.theory.Branch.mlp(there(SHARES), there(SHARES), hidden=1)],
        shift=there(SHARES), biases=2).shifts.levels,
    "interpolation": lambda there: rt.theory.interpolate(*map(there, PAIR), units=9).positions,
    "interpolation, merged": lambda there: rt.theory.interpolate(
        *map(there, PAIR), units=24, mode="merge").targets,
    "least norm": lambda there: POINTS.new_tensor(
        rt.theory.least_norm(*map(there, PAIR), units=9)),
    "linear, loss": chained(rt.theory.linear_loss),
    "linear, gradient": chained(rt.theory.linear_gradient),
    "linear, Hessian": chained(rt.theory.linear_hessian),
    "linear, product": lambda there: chained(rt.theory.linear_hvp)(
        there, torch.arange(2 * 23, dtype=torch.float64).view(2, 23)),
    "one-hot": lambda there: rt.data.one_hot(there(torch.tensor([2, 0])), 3),
    "moments": lambda there: rt.Moments.of(tuple(map(there, PAIR))).syx,
    "whitened": lambda there: rt.data.whiten(there(POINTS), 2)[0],
    "is whitened": lambda there: torch.tensor(
        rt.Moments.of((there(torch.eye(3)), there(torch.eye(3)))).is_whitened),
    "exceedance": lambda there: rt.theory.exceedance_integral(there(POINTS.abs())),
    "square": lambda there: rt.Loss.of("square").derivatives(*map(there, PAIR))[1],
    "huber": lambda there: rt.Loss.of(huber).derivatives(*map(there, PAIR))[1],
    "descent": descended,
    "zero": lambda there: from_zero(there, shortcut_depth=2).spectrum.levels,
    "zero, one layer": lambda there: from_zero(there, shortcut_depth=1).hessian(),
    "zero, bent": lambda there: from_zero(
        there, shortcut_depth=1, pre="tanh", bias=True).spectrum.levels,
    "zero, biases": lambda there: from_zero(
        there, shortcut_depth=2, last_bias=True, norm=F.normalize).spectrum.levels,
    "zero, matrix": lambda there: from_zero(there, shortcut_depth=2, pre="tanh").matrix_a,
    "zero, jet": lambda there: from_zero(there, shortcut_depth=2, loss=huber).leading_jet(
        there(torch.ones(3, 2, 4, 4, dtype=torch.float64))),
    "zero, escape": lambda there: rt.theory.escape_start(
        from_zero(there, shortcut_depth=2), 0.1)[0].abs(),
}  # fmt: skip


@pytest.mark.parametrize("name", ON_A_GPU)
def test_a_gpu_finds_the_same(name, cuda):
    exact = ON_A_GPU[name](lambda tensor: tensor)
    found = ON_A_GPU[name](lambda tensor: tensor.to(cuda))
    torch.testing.assert_close(found.cpu(), exact, rtol=1e-10, atol=1e-12)


READ = "zero layout linear interpolation attention biases mlp moments least".split()


@pytest.mark.parametrize("name", [name for name in ON_A_GPU if name.startswith(tuple(READ))])
def test_numbers_in_single_precision_are_read_as_they_are_and_without_their_graph(name):
    exact = ON_A_GPU[name](lambda tensor: tensor.float().double())
    found = ON_A_GPU[name](lambda tensor: tensor.float().requires_grad_())
    # LAPACK rounds by where memory begins, too; single precision would move eight digits.
    bound = 16 * EPS * float(exact.abs().max())
    torch.testing.assert_close(found, exact, rtol=0, atol=bound)
    assert not found.requires_grad
