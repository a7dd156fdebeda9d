"""Laws for every shape, dtype, scale and spectrum; hypothesis tries the same examples each time."""

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import EPS, round_off
from torch import nn
from torch.nn import functional as F

import resid_theory as rt
from resid_theory.eigen import Spectrum
from resid_theory.identity import with_identity

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
