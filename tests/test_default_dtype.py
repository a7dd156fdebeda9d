"""Float64 in, float64 out: the default dtype of torch is that of a caller's new tensors alone."""

import copy
import itertools

import pytest
import torch
from oracles import noise
from torch import nn

import resid_theory as rt
from resid_theory import stability, theory
from resid_theory.curvature.fisher_graphs import MATRICES
from resid_theory.data.image_folders import _channel_statistics
from resid_theory.nested import tensors_of
from resid_theory.stability.norms import row_norms

X, Y = noise(7, 3, 4, 4, seed=1).double(), torch.arange(7) % 3


class Routed(nn.Module):
    """Experts in one tensor take the samples that are routed to them; layers have biases."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(48, 2), nn.Parameter(noise(2, 3, 48, seed=2))

    def forward(self, x):
        x = x.flatten(1)
        pick, out = self.gate(x).argmax(1), x.new_zeros(len(x), 3)
        for number, expert in enumerate(self.experts):
            rows = (pick == number).nonzero()[:, 0]
            out = out.index_add(0, rows, x[rows] @ expert.T)
        return out


def chain():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1, stride=2, padding_mode="circular"), nn.Softplus(),
        nn.Conv2d(3, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3),
    )  # fmt: skip


def residual():
    return rt.simplified_net(8, identity="residual").double()


def moments():
    one, other = (rt.Moments.of((X.flatten(1)[part], X.flatten(2)[part, 0, :3]))
                  for part in (slice(3), slice(3, 7)))  # fmt: skip
    return one, other, one + other


def fitted():
    x, whitening = rt.data.whiten(X.flatten(1), 4)
    return x, whitening, whitening.apply(X.flatten(1)[:2].float())


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def at_zero(**options):
    """All that a prediction gives on request."""
    inner = (X.flatten(1)[:, :3], X.flatten(2)[:, 1, :3])
    point = theory.zero_point(inner, blocks=2, **options)
    n = point.shortcut_depth
    shapes = [(point.hidden if k < n - 1 else 3, point.hidden if k else 3) for k in range(n)] * 2
    weights = [drawn(*shape, seed=k) for k, shape in enumerate(shapes)]
    given = [point.hessian(), point.gradient, point.leading_jet(weights), point.spectrum]
    if n > 1:
        given += theory.escape_start(point, 0.1)
    return [*given, point.matrix_a] if n < 3 else given


LINEAR = (X.flatten(1)[:, :4], X.flatten(1)[:, 4:7])


def layers(*sizes, act=nn.Tanh):
    torch.manual_seed(4)
    parts = [(nn.Linear(a, b), act()) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(nn.Flatten(), *itertools.chain(*parts))


class Branches(nn.Module):
    """A stream with two branches, and a read-out."""

    def __init__(self, act):
        super().__init__()
        self.branches = nn.ModuleList([layers(4, 5, 4, act=nn.Identity) for _ in range(2)])
        self.act, self.head = act, nn.Linear(4, 3)

    def forward(self, x):
        for branch in self.branches:
            x = x + branch[3](self.act(branch[1](x)))
        return self.head(x)


ROWS = X[:, 0, 0]


def operators(net, loss="cross_entropy", data=(ROWS, Y), matrices=MATRICES, **options):
    """Loss, gradient and products of matrices."""
    found = []
    for matrix in matrices:
        A = rt.curvature_operator(net, loss, data, matrix=matrix, chunk=3, **options)
        value = torch.tensor(A.loss, dtype=torch.float64)
        found += [value, A.gradient, A @ drawn(A.shape[0], 2), A @ drawn(A.shape[0]).float()]
    return found


def own_mean(output, target):
    """A mean of weighted samples, of which no formula is known."""
    each = nn.functional.cross_entropy(output, target, reduction="none")
    return (each * (1 + target)).sum() / (1 + target).sum()


def along(net):
    A = rt.curvature_operator(net, "cross_entropy", (ROWS, Y), weight_decay=0.1)
    lines = rt.curvature.filter_directions(A, 2)
    return [lines, *tensors_of(rt.curvature.loss_along(A, lines, drawn(2)))]


def factors(net):
    found = [rt.curvature.kfac(net, "cross_entropy", (X, Y), matrix=matrix, weight_sharing=way)
             for matrix, way in (("fisher", "expand"), ("fisher_mc", "reduce"))]  # fmt: skip
    return [[k @ drawn(k.shape[0]), k.eigenvalues, k.diagonal(),
             k.solve(drawn(k.shape[0]), damping=0.1)] for k in found]  # fmt: skip


def units():
    """Two units of other than square matrices, the second with a shortcut."""
    narrow = drawn(2, 3, seed=2), drawn(3, 2, seed=3)
    return [theory.Unit((drawn(5, 4), drawn(3, 5, seed=1))), theory.Unit(narrow, drawn(3, 3))]


def flows(*, persistent):
    flow = theory.TrivialFlow(
        channels=4, layers=3, deviation=0.3, open_share=0.7, persistent=persistent
    )
    return [flow.simulate(draws=3), flow.approximation(), flow.refined()]


NETS = {
    "layers": lambda: layers(4, 2, 3),
    "linear": lambda: nn.Sequential(nn.Linear(4, 3, bias=False)),
    "smooth": lambda: Branches(torch.tanh),
    "kinked": lambda: Branches(torch.relu),
    "chain": chain,
    "routed": Routed,
    "residual": residual,
}
OF_NETS = {
    "layer cushions": ("chain", lambda net: rt.layer_cushions(net, X, batch=3)),
    "by the operator": ("chain", lambda net: rt.layer_cushions(net, X, norm="operator")),
    "with the identity": ("residual", lambda net: rt.layer_cushions(net, X, norm="operator")),
    "of experts": ("routed", lambda net: rt.layer_cushions(net, X, batch=3)),
    "interlayer": ("chain", lambda net: rt.interlayer_cushions(
        net, X, start=1, stop=5, method="exact", batch=9)),
    "by probes": ("chain", lambda net: rt.interlayer_cushions(
        net, X, start=0, stop=3, method="probes", probes=3, batch=3)),
    "own statistics": ("residual", lambda net: rt.interlayer_cushions(
        net, X, start=1, stop=5, probes=2, batchnorm="batch")),
    "activation noise": ("chain", lambda net: stability.activation_noise(
        net, X, levels=[0.1, 0.3], draws=2, probes=2, batch=3)),
    "weight noise": ("chain", lambda net: stability.weight_noise(
        net, X, levels=[0.1, 0.3], draws=2, relative=True, batch=3)),
    "contraction": ("chain", lambda net: stability.activation_contraction(net, X, batch=3)),
    "smoothness": ("chain", lambda net: stability.interlayer_smoothness(net, X, draws=2, batch=3)),
    "bound": ("chain", lambda net: stability.compression_bound(net, X, margin=1.0, batch=3)),
    "flows": ("residual", lambda net: rt.dominant_flows(net, (X, Y))),
    "gradients": ("residual", lambda net: stability.feature_gradients(net, (X, Y), batch=3)),
    "comparison": ("chain", lambda net: rt.compare_cushions(
        rt.layer_cushions(net, X[:3]), rt.layer_cushions(net, X[3:]), resamples=9)),
}  # fmt: skip
SQUARES = ROWS, X[:, 1, 0, :3]
OF_CURVATURE = {
    "columns": ("layers", lambda net: rt.hessian(
        net, "cross_entropy", (ROWS, Y), method="columns")),
    "layer pairs": ("layers", lambda net: rt.hessian(net, "square", SQUARES)),
    "closed form": ("linear", lambda net: rt.hessian(net, "square", SQUARES)),
    "operators": ("layers", operators),
    "of squares": ("layers", lambda net: operators(net, "square", SQUARES)),
    "of own loss": ("layers", lambda net: operators(
        net, own_mean, matrices=["hessian", "empirical_fisher"])),
    "weighted": ("layers", lambda net: operators(
        net, own_mean, rt.Data.of((ROWS, Y), sample_weight=[0.1, 1, 2, 3, 4, 5, 6]),
        matrices=["hessian"])),
    "in float32": ("chain", lambda net: operators(
        copy.deepcopy(net).float(), data=(X.float(), Y), matrices=["hessian", "fisher"])),
    "inputs": ("layers", lambda net: operators(net, wrt="inputs", matrices=["hessian"])),
    "activations": ("layers", lambda net: operators(net, wrt="1", matrices=["hessian"])),
    "along lines": ("layers", along),
    "factors": ("chain", factors),
    "blocks": ("layers", lambda net: rt.curvature.layer_table(
        rt.curvature_operator(net, "cross_entropy", (ROWS, Y)), probes=4)),
    "mini-batches": ("layers", lambda net: rt.curvature.batch_spectra(
        net, "cross_entropy", (ROWS, Y), batch=4)),
    "spectrum": ("layers", lambda net: rt.spectrum(net, "cross_entropy", (ROWS, Y))),
    "by products": ("layers", lambda net: rt.spectrum(
        net, "cross_entropy", (ROWS, Y), method="matrix-free", density=True, probes=2, steps=9)),
    "smooth branches": ("smooth", lambda net: rt.curvature.zero_point_of_net(
        net, "cross_entropy", (ROWS, Y))),
    "kinked branches": ("kinked", lambda net: rt.curvature.zero_point_of_net(
        net, "cross_entropy", (ROWS, Y))),
}  # fmt: skip
OF_NUMBERS = {
    "norms of rows": lambda: row_norms(
        torch.tensor([[0.0, 0], [3e-200, 4e-200], [1, 2]], dtype=torch.float64)),
    "moments": moments,
    "moments of floats": lambda: rt.Moments.of((X.flatten(1).float(), X[:, 0, 0].float())),
    "moments as given": lambda: rt.Moments(
        sxx=torch.eye(2).float(), syx=[[1, 2]], syy=[[3]], count=2),
    "whitening": fitted,
    "of floats": lambda: rt.data.whiten(X.flatten(1).float(), 4),
    "digits": lambda: rt.load_whitened("digits", 3, samples=20),
    "classes": lambda: rt.data.one_hot([2, 0, 1], 3),
    "a regression": lambda: rt.data.gather((X.flatten(1).float(), X[:, 0, 0])),
    "weights": lambda: rt.Data.of((X, Y), sample_weight=[0.1, 1, 2, 3, 4, 5, 6]).whole(),
    "colors": lambda: torch.tensor(
        _channel_statistics(X.flatten(0, 1)[:, None].abs().to(torch.uint8)), dtype=torch.float64),
    "crops": lambda: rt.data.draw_crops(9, generator=torch.Generator().manual_seed(1)),
}  # fmt: skip


OF_THEORY = {
    "at zero, n = 1": lambda: at_zero(shortcut_depth=1),
    "at zero, n = 2": lambda: at_zero(shortcut_depth=2, hidden=4),
    "at zero, n = 3": lambda: at_zero(shortcut_depth=3, hidden=2),
    "linear loss": lambda: theory.linear_loss(units(), LINEAR),
    "linear gradient": lambda: theory.linear_gradient(units(), LINEAR),
    "linear Hessian": lambda: theory.linear_hessian(units(), LINEAR),
    "linear product": lambda: theory.linear_hvp(units(), LINEAR, drawn(2, 47)),
    "independent masks": lambda: flows(persistent=False),
    "one mask": lambda: flows(persistent=True),
    "exceedance": lambda: [theory.exceedance([0.1, 3]), theory.exceedance_integral([0.1, 3]),
                           theory.logistic([0.1, 3])],
    "isometry": lambda: theory.isometry(0.3),
    "exponents": lambda: [
        theory.lyapunov_exponents(4, init=init) for init in ("xavier", "orthogonal")],
    "arc": lambda: theory.great_arc(*nn.functional.normalize(drawn(2, 4))),
}  # fmt: skip


def numbers(found):
    """All tensors of a result, and its table."""
    table = found.table() if hasattr(found, "table") else {}
    columns = [column if isinstance(column, torch.Tensor) else list(column)
               for column in table.values()]  # fmt: skip
    return [*tensors_of(found), *columns, found if isinstance(found, dict) else None]


def in_either(call):
    found = []
    for seed, dtype in enumerate((torch.float64, torch.float32)):
        torch.set_default_dtype(dtype)  # put back behind each test
        torch.manual_seed(seed)  # nor does a number depend on the caller's random state
        found.append(numbers(call()))
    assert found[0] and len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True)
            assert not other.requires_grad
        else:
            assert other == one


@pytest.mark.parametrize("name", OF_NETS)
def test_measurements_do_not_depend_on_the_default_dtype(name):
    kind, measure = OF_NETS[name]
    net = NETS[kind]()
    in_either(lambda: measure(net))


@pytest.mark.parametrize("name", OF_CURVATURE)
def test_curvature_does_not_depend_on_the_default_dtype(name):
    kind, measure = OF_CURVATURE[name]
    net = NETS[kind]()
    in_either(lambda: measure(net))


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_numbers_of_data_do_not_depend_on_the_default_dtype(name):
    in_either(OF_NUMBERS[name])


@pytest.mark.parametrize("name", OF_THEORY)
def test_predictions_do_not_depend_on_the_default_dtype(name):
    in_either(OF_THEORY[name])
