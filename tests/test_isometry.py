"""Singular values of deep residual Jacobians at large width, against random matrices."""

import math

import pytest
import torch

from resid_theory import theory


@pytest.mark.parametrize("c", [0.25, 1.0, 2.0])
def test_density_is_that_of_a_wide_and_deep_net(c, generator):
    width, depth = 200, 200
    jacobian = torch.eye(width, dtype=torch.float64)
    for _ in range(depth):
        drawn = torch.randn(width, width, generator=generator, dtype=torch.float64)
        jacobian = jacobian + (c / depth / width) ** 0.5 * drawn @ jacobian
    values = torch.linalg.svdvals(jacobian).flip(0)
    found = theory.isometry(c)
    places = torch.arange(1, width + 1) / width
    assert float((found.cdf(values) - places).abs().max()) <= 0.02
    # A wrong variance is seen.
    assert float((theory.isometry(1.3 * c).cdf(values) - places).abs().max()) > 0.02


@pytest.mark.parametrize("c", [1e-4, 0.01, 0.5, 3.0])
def test_mass_moments_and_edges(c):
    found = theory.isometry(c)
    s, density = found.singular_values, found.density
    assert bool((density >= 0).all())
    for power, exact in ((0, 1.0), (2, found.moment(1)), (4, found.moment(2))):
        assert torch.trapezoid(density * s**power, s).item() == pytest.approx(exact, rel=1e-5)
    low, high = found.edges
    assert s[0].item() == pytest.approx(low) and s[-1].item() == pytest.approx(high)
    assert low * high == pytest.approx(1) and 0 < low < 1
    q = math.sqrt(1 + 2 / c)
    assert high == pytest.approx(math.sqrt((q + 1) / (q - 1)) * math.exp(c * q / 2), rel=1e-9)
    for k in (0, 1, 700, 1999):
        masses = [torch.trapezoid(density[: n + 1], s[: n + 1]).item() for n in (k, k + 1, 2000)]
        part = found.cdf(torch.stack([s[k], 0.75 * s[k] + 0.25 * s[k + 1]]))
        below, above = masses[0] / masses[2], masses[1] / masses[2]
        assert part.tolist() == pytest.approx([below, 0.75 * below + 0.25 * above], abs=1e-12)
    outside = torch.tensor([0.0, low / 2, low, high, 2 * high], dtype=torch.float64)
    assert found.cdf(outside).tolist() == pytest.approx([0, 0, 0, 1, 1])
    narrow = torch.tensor([1.0], dtype=torch.bfloat16, requires_grad=True)  # not NumPy's
    assert found.cdf(narrow) == found.cdf(torch.ones(1, dtype=torch.float64))


def simulated(branch, width, depth, generator):
    """Squared singular values of a random residual net's Jacobian at a normal input."""
    h = torch.randn(width, generator=generator, dtype=torch.float64)
    jacobian = torch.eye(width, dtype=torch.float64)
    for _ in range(depth):
        w = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
        value, slope = branch(w @ h)
        h, jacobian = (
            h + value / depth**0.5,
            jacobian + slope[:, None] * (w @ jacobian) / depth**0.5,
        )
    return torch.linalg.svdvals(jacobian).square()


@pytest.mark.parametrize("seed", range(2))
def test_activations_change_the_variance(seed):
    generator = torch.Generator().manual_seed(seed)
    values = simulated(lambda z: (z.tanh(), 1 - z.tanh().square()), 150, 150, generator)
    found = theory.effective_variance("tanh", variance=1.0, layers=150)
    # The first moment is e^c; at this width it fluctuates by a few percent.
    assert math.log(values.mean()) == pytest.approx(found, abs=0.05)
    assert theory.effective_variance("identity", variance=0.7, layers=9) == pytest.approx(0.7)
    he = theory.effective_variance("relu", variance=2.0, layers=9)
    assert he == pytest.approx(1.0)  # half of the slopes are one


@pytest.mark.parametrize("signal", [0.3, 2.0])
def test_weights_and_signal_scale_what_an_activation_sees(signal):
    z = torch.linspace(-10, 10, 4001, dtype=torch.float64)  # a sum over this is a normal mean
    mass = (-z.square() / 2).exp() / (-z.square() / 2).exp().sum()
    c, scale, q, expected = 0.8, 1.5, signal, 0.0
    for _ in range(2):
        value = ((scale * q) ** 0.5 * z).tanh()
        expected += c * scale * float((mass * (1 - value.square()).square()).sum()) / 2
        q += c / 2 * float((mass * value.square()).sum())
    given = dict(variance=c, layers=2, weight_variance=scale, signal=signal)
    assert theory.effective_variance("tanh", **given) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("variance", [351.0, 1e3])
def test_variances_beyond_the_range_of_floats_are_refused(variance):
    with pytest.raises(ValueError, match="^variance: got .* beyond the squares"):
        theory.isometry(variance)
    assert math.isfinite(theory.isometry(350.0).moment(2))


def test_edges_of_blocks():
    for blocks, n, scale in ((100, 1, 0.05), (100, 1, 0.1), (200, 1, 0.1), (50, 2, 0.1)):
        c = blocks * scale ** (2 * n)
        assert theory.isometry_edges(blocks, n, scale=scale) == theory.isometry(c).edges
    low, high = theory.isometry_edges(50, 2, scale=0.01)
    assert high - 1 == pytest.approx(math.sqrt(2 * 50 * 1e-8), rel=1e-3)  # the first order
    for wrong in (0.0, -1.0, math.inf, "c"):
        with pytest.raises(ValueError, match="^variance: got"):
            theory.isometry(wrong)
    with pytest.raises(ValueError, match="^order: got 3"):
        theory.isometry(1.0).moment(3)
