"""One call for the spectrum of a model: dense or by products, and the same answer."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import resid_theory as rt
from resid_theory.curvature import spectrum_of_net


@pytest.fixture
def problem(generator):
    """A net that is not linear, and data: P = 27."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Flatten())
    x, y = torch.randn(12, 3, generator=generator), torch.randn(12, 2, generator=generator)
    return net, (x, y)


def test_small_models_are_dense_and_exact(problem):
    net, data = problem
    report = rt.spectrum(net, "square", data, k=3)
    exact = rt.hessian_spectrum(net, "square", data)
    assert report.method == "dense" and "P is at most 1000" in str(report)
    assert (report.samples, report.parameters, report.percentile) == (12, 26, 10.0)
    assert report.spectrum.distance(exact) < 1e-13
    hessian, pairs = rt.hessian(net, "square", data), report.pairs
    assert float((hessian @ pairs.vectors - pairs.vectors * pairs.values).norm()) < 1e-12
    assert len(pairs) == 6 and float(pairs.residuals.max()) < 1e-12


@pytest.mark.parametrize("k", [2, 10, 15])
def test_pairs_of_a_dense_matrix_are_known(k, problem):
    net, data = problem
    report = rt.spectrum(net, "square", data, k=k)
    pairs, every = report.pairs, report.spectrum.eigenvalues.flip(0)
    ends = every if 2 * k >= 26 else torch.cat([every[:k], every[-k:]])
    assert torch.equal(pairs.values, ends) and pairs.limits == (float(every[-1]), float(every[0]))
    bound = report.spectrum.zero_threshold
    assert (pairs.bounds == bound).all() and pairs.round_off == bound
    assert ((bound < pairs.residuals) & (pairs.residuals < 1e-12)).all()
    assert (pairs.multiplicities == 1).all() and pairs.converged.all() and not pairs.at_least.any()
    assert pairs.converged.dtype == pairs.at_least.dtype == torch.bool
    assert (pairs.which, pairs.products, pairs.missed_probability) == ("both", 0, 0.0)


def test_all_options_go_to_the_estimates(problem, tmp_path):
    (net, data), options = problem, {"density": True, "percentile": 20.0, "tolerance": 1e-2,
                                     "missed": 1e-2, "probes": 6, "steps": 9}  # fmt: skip
    report = rt.spectrum(
        net, "square", data, k=2, method="matrix-free", folder=tmp_path, generator=3, **options
    )
    exact = rt.eigen.spectral_estimates(
        rt.curvature_operator(net, "square", data), 2, generator=3, matrix="hessian", samples=12,
        reason="asked for", **options,
    )  # fmt: skip
    assert str(report) == str(exact) and torch.equal(report.pairs.vectors, exact.pairs.vectors)
    assert list(tmp_path.iterdir())
    for name in options:
        rest = {key: value for key, value in options.items() if key != name}
        other = rt.spectrum(net, "square", data, k=2, method="matrix-free", generator=3, **rest)
        assert str(other) != str(report)


def test_both_methods_agree(problem):
    net, data = problem
    dense = rt.spectrum(net, "square", data, k=2, method="dense")
    free = rt.spectrum(net, "square", data, k=2, method="matrix-free", density=True, tolerance=1e-8)
    assert free.method == "matrix-free" and free.reason == "asked for" and free.products
    both = zip(free.largest + free.smallest, dense.largest + dense.smallest, strict=True)
    for mine, theirs in both:
        assert abs(mine.value - theirs.value) <= mine.high - mine.value + 1e-13
    assert free.trace.covers(dense.trace.value)
    assert free.frobenius_norm.covers(dense.frobenius_norm.value)
    assert free.index.covers(dense.index.value)


@pytest.mark.parametrize(
    ("keywords", "method"),
    [
        ({"matrix": "empirical_fisher"}, "dense"),
        ({"parameters": "0.*"}, "dense"),
        ({"memory_limit": 4 * 8 * 26**2}, "dense"),
        ({"memory_limit": 4 * 8 * 26**2 - 1}, "matrix-free"),
        ({"memory_limit": 4 * 8 * 16**2, "parameters": "0.*"}, "dense"),
    ],
    ids=["empirical_fisher", "subset", "memory", "no memory", "subset, memory"],
)
def test_an_operator_brings_its_own_options(problem, keywords, method):
    net, data = problem
    operator = rt.curvature_operator(net, "square", data, chunk=5, **keywords)
    report = rt.spectrum(operator, k=2, tolerance=1e-8)
    assert (report.method, report.matrix) == (method, operator.matrix)
    assert (report.parameters, report.samples) == (operator.shape[0], 12)
    exact = torch.linalg.eigvalsh(operator.dense())
    assert abs(report.largest[0].value - float(exact[-1])) <= 1e-7 * float(exact[-1])


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_bounds_hold_the_precision_in_which_products_are_added(problem, precision):
    net, data = problem
    options = {"matrix": "gauss_newton", "accumulate": precision}
    A = rt.curvature_operator(net, "square", data, **options)
    report, eps = rt.spectrum(A, k=2), torch.finfo(getattr(torch, precision)).eps
    rounding = eps * float(A.dense().norm())
    assert report.method == "dense" and (report.pairs.bounds >= rounding).all()
    assert (report.pairs.bounds <= 100 * rounding).all()  # LAPACK's are 26 of float64


@pytest.mark.parametrize("method", ["dense", "matrix-free"])
def test_a_generator_draws_the_targets_and_a_bar_is_shown_if_asked(method, problem, capsys):
    net, data = problem
    options = {"k": 2, "method": method, "tolerance": 1e-8, "generator": 3}
    found = rt.spectrum(net, "square", data, matrix="fisher_mc", **options).largest
    A = rt.curvature_operator(net, "square", data, matrix="fisher_mc", generator=3)
    exact = torch.linalg.eigvalsh(A.dense()).flip(0)[:2].tolist()
    assert [end.value for end in found] == pytest.approx(exact, rel=1e-7)
    layered = nn.Sequential(net, nn.LayerNorm(2))  # whose Hessian is computed by columns
    for progress in (False, True):
        rt.spectrum(layered, "square", data, progress=progress, **options)
        shown = capsys.readouterr()
        assert shown.out == "" and bool(shown.err) == progress


def test_a_whole_hessian_takes_the_routes_of_its_net(problem, monkeypatch):
    net, data = problem
    report = rt.spectrum(rt.curvature_operator(net, "square", data), k=2)
    assert torch.equal(
        report.spectrum.eigenvalues, rt.spectrum(net, "square", data, k=2).spectrum.eigenvalues
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda net, data: rt.spectrum(net), "^loss: is missing; call spectrum"),
        (
            lambda net, data: rt.spectrum(rt.curvature_operator(net, "square", data), "square"),
            "^loss, data, matrix, weight_decay: got an operator together with these",
        ),
        (
            lambda net, data: rt.spectrum(net, "square", data, method="exact"),
            "^method: unknown name 'exact'",
        ),
    ],
    ids=["no loss", "two losses", "method"],
)
def test_refusals(problem, given, message):
    with pytest.raises(ValueError, match=message):
        given(*problem)


@pytest.mark.parametrize("more", [
    {"loss": "square"}, {"data": [1]}, {"matrix": "hessian"}, {"weight_decay": 0.1}
], ids=lambda more: next(iter(more)))  # fmt: skip
def test_an_operator_has_all_that_belongs_to_it(problem, more):
    operator = rt.curvature_operator(problem[0], "square", problem[1])
    with pytest.raises(ValueError, match="^loss, data, matrix, weight_decay: got an operator toge"):
        rt.spectrum(operator, **more)


def test_changed_parameters_are_noticed(problem):
    net, data = problem
    operator = rt.curvature_operator(net, "square", data)
    with torch.no_grad():
        net[0].bias.add_(1.0)
    with pytest.raises(ValueError, match="^net: changed after"):
        rt.spectrum(operator)


class CountingLoader:
    """Counts how often it is read."""

    def __init__(self, *batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


# One run checks the data, one looks for samples that know each other, one for pairs of layers, and
# one makes their graph; without them, two measure graphs in two sizes, one makes that to keep,
# and one runs the ends of that alone.
@pytest.mark.parametrize(
    ("middle", "call", "runs"),
    [
        (nn.Tanh, rt.spectrum, 4),
        (nn.Tanh, rt.hessian_spectrum, 4),
        (lambda: nn.LayerNorm(12), rt.spectrum, 7),
        (lambda: nn.LayerNorm(12), rt.hessian_spectrum, 7),
    ],
    ids=["layer pairs", "layer pairs, all", "matrix-free", "columns, all"],
)
def test_data_are_read_once(generator, monkeypatch, middle, call, runs):
    monkeypatch.setattr(spectrum_of_net, "_SMALL", 200)
    net = nn.Sequential(nn.Linear(10, 12), middle(), nn.Linear(12, 9))  # 200 < P <= 5,000
    x, y = torch.randn(12, 10, generator=generator), torch.randn(12, 9, generator=generator)
    loader, forward, seen = CountingLoader((x, y)), nn.Sequential.forward, []

    def counted(self, given):
        seen.append(given)
        return forward(self, given)

    monkeypatch.setattr(nn.Sequential, "forward", counted)
    call(net, "square", loader)
    assert (loader.passes, len(seen)) == (1, runs)


@pytest.mark.parametrize(
    ("middle", "medium", "method", "reason"),
    [
        (nn.Tanh, 5000, "dense", "by layer_pairs"),
        (lambda: nn.LayerNorm(4), 5000, "matrix-free", "cheaper than all eigenvalues"),
        (nn.Tanh, 25, "matrix-free", "cheaper than all eigenvalues"),
        (nn.Tanh, 26, "dense", "by layer_pairs"),
    ],
    ids=["cheap", "columns", "large", "just small enough"],
)
def test_beyond_small_models_the_cost_decides(problem, middle, medium, method, reason, monkeypatch):
    net = nn.Sequential(nn.Linear(3, 4), middle(), nn.Linear(4, 2))
    monkeypatch.setattr(spectrum_of_net, "_SMALL", 10)
    monkeypatch.setattr(spectrum_of_net, "_MEDIUM", medium)
    report = rt.spectrum(net, "square", problem[1], k=2)
    assert report.method == method and reason in str(report)


class Stubborn(nn.Sequential):
    def forward(self, x):
        return super().forward(x.float())


@pytest.mark.parametrize("small", [10, 1000])
def test_bounds_of_dense_matrices_hold_the_error_of_the_net(small, problem, monkeypatch):
    """Of a net in float32 without a copy in float64, by LAPACK or some pairs by Lanczos."""
    net, (x, y) = problem
    monkeypatch.setattr(spectrum_of_net, "_SMALL", small)
    A = rt.curvature_operator(Stubborn(*net).float(), "square", (x.float(), y.float()))
    report = rt.spectrum(A, k=2, method="dense")
    bound, pairs = A.error.spectral, report.pairs
    assert bound > 1e-7 * report.largest[0].value
    for found in (pairs.bounds, pairs.residuals):
        assert bound <= float(found.min()) <= float(found.max()) <= 1.1 * bound
    assert bound <= pairs.round_off <= 1.1 * bound and pairs.products == 0
    for end in (*report.largest, *report.smallest):
        assert end.high - end.value >= bound / 2 and end.value - end.low >= bound / 2


def test_float32_nets_have_float32_bounds(problem):
    net, (x, y) = problem
    net = net.float()
    report = rt.spectrum(net, "square", (x.float(), y.float()), k=2, method="matrix-free")
    assert report.pairs.round_off > 1e-7 * report.largest[0].value


def test_the_net_and_the_random_state_are_left_alone(problem, left_alone):
    net, (x, y) = problem
    net.train()
    loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)
    with left_alone(net):
        rt.spectrum(net, "square", loader, k=2)


@pytest.mark.parametrize("method", ["auto", "matrix-free"])
def test_images_are_data_too(generator, method):
    pixels = torch.randint(256, (6, 1, 2, 2), generator=generator, dtype=torch.uint8)
    images = rt.Images(pixels=pixels, labels=torch.tensor([0, 1, 2, 0, 1, 2]))
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    exact = rt.hessian_spectrum(
        net, "cross_entropy", (images.inputs(pixels, torch.float64), images.labels)
    )
    report = rt.spectrum(net, "cross_entropy", images, k=1, method=method, tolerance=1e-8)
    assert abs(report.largest[0].value - exact.largest) < 1e-7 * exact.largest
