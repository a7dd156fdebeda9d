"""Calls of ``eigen`` under another default dtype: every number as before, to the bit."""

import pytest
import torch
from test_estimates import LEVELS
from test_lanczos import rotated
from tolerances import assert_same

import resid_theory as rt
from resid_theory.eigen.products import probe_vectors

COPIES = torch.tensor([4.0] * 4 + [-3.0] * 2 + [0.5] * 30)  # two levels that are found, one not


def density(**given):
    return rt.spectral_density(torch.diag(COPIES), probes=3, generator=1, **given)


CALLS = {
    "eigenpairs": lambda A: rt.eigenpairs(torch.diag(COPIES), 3, which="both"),
    "eigenpairs, more": lambda A: rt.eigenpairs(A, 4, which="magnitude", tolerance=1e-9),
    "eigenpairs, restarted": lambda A: rt.eigenpairs(A, 1, capacity=21, block=1, tolerance=1e-10),
    "eigenpairs, single": lambda A: rt.eigenpairs(A.float(), 3),
    "trace": lambda A: rt.trace(A, budget=30),
    "trace, all": lambda A: rt.trace(A, budget=60),
    "norm": lambda A: rt.frobenius_norm(A, budget=30),
    "norm, single": lambda A: rt.frobenius_norm(A.float(), budget=30),
    "norm, rows": lambda A: rt.frobenius_norm(A[:20], budget=30),
    "density": lambda A: rt.spectral_density(A, probes=3, steps=9),
    "density, invariant": lambda A: density(),
    "density, single": lambda A: rt.spectral_density(A.float(), probes=2, steps=9),
    "density, deflated": lambda A: density(deflate=rt.eigenpairs(torch.diag(COPIES), 2)),
    "cumulative": lambda A: rt.spectral_density(A, probes=3, steps=9).cumulative([-1, 0.5]),
    "smoothed": lambda A: rt.spectral_density(A, probes=3, steps=9).smoothed(),
    "smoothed, one": lambda A: rt.spectral_density(A, probes=1, steps=9).smoothed([-1, 0.5]),
    "share": lambda A: rt.spectral_density(A, probes=3, steps=9).share_below(0.25),
    "quantile": lambda A: rt.spectral_density(A, probes=3, steps=9).quantile(0.25, magnitude=True),
    "report": lambda A: rt.eigen.spectral_estimates(A, 2, probes=3, steps=9),
    "report, all": lambda A: rt.eigen.spectral_estimates(A[:7, :7], 2),
    "report, copies": lambda A: rt.eigen.spectral_estimates(torch.diag(COPIES), 2, probes=3),
    "solution": lambda A: rt.eigen.as_operator(A).solve(A[0], damping=9.0),
    "diagonal": lambda A: rt.eigen.as_operator(A).diagonal(),
    "diagonal, signs": lambda A: rt.eigen.as_operator(A).diagonal(budget=20),
    "distinct": lambda A: rt.Spectrum.of(COPIES, torch.arange(36)).distinct(),
}


@pytest.mark.parametrize("kind", CALLS)
def test_no_number_depends_on_the_default_dtype(kind, generator):
    A = rotated(LEVELS, generator)
    wide = CALLS[kind](A).to_json()
    torch.set_default_dtype(torch.float32)
    assert CALLS[kind](A).to_json() == wide


def test_probes_are_the_same_numbers_in_every_call():
    wanted = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.set_default_dtype(torch.float32)
    assert_same(probe_vectors(2, 3), wanted)


def test_operators_multiply_alike_under_any_default_dtype(generator):
    A = rotated(LEVELS, generator)
    made = [rt.eigen.as_operator(A).shift(0.3), A @ A, rt.eigen.as_operator(A[:9]), A]
    wide = [(made[0] + made[1]).dense(), made[2].dense(), made[0].quadratic(A[:, :2])]
    spectrum = rt.Spectrum.of(COPIES)
    far = spectrum.wasserstein_distance(rt.Spectrum.of(LEVELS[:36]))
    distance = rt.spectral_density(A, probes=2, steps=5).wasserstein_distance(
        rt.Spectrum.of(LEVELS)
    )
    torch.set_default_dtype(torch.float32)
    again = [(made[0] + made[1]).dense(), made[2].dense(), made[0].quadratic(A[:, :2])]
    assert all(torch.equal(one, other) for one, other in zip(wide, again, strict=True))
    assert spectrum.wasserstein_distance(rt.Spectrum.of(LEVELS[:36])) == far
    found = rt.spectral_density(A, probes=2, steps=5)
    assert found.wasserstein_distance(rt.Spectrum.of(LEVELS)) == distance
