"""Moments: their definition, streaming, addition, and moments that cannot be any."""

import pytest
import torch
from tolerances import relative_error, round_off

from resid_theory.data import moments
from resid_theory.data.moments import Moments

SAMPLES = 11


@pytest.fixture
def samples(generator):
    return tuple(torch.randn(SAMPLES, width, generator=generator) for width in (4, 2))


def one_by_one(x, y):
    """The definition, sample by sample."""
    sums = [0.0, 0.0, 0.0]
    for a, b in zip(x, y, strict=True):
        parts = (torch.outer(a, a), torch.outer(b, a), torch.outer(b, b))
        sums = [total + part for total, part in zip(sums, parts, strict=True)]
    return [total / len(x) for total in sums]


def largest_error(given, exact):
    parts = zip((given.sxx, given.syx, given.syy), exact, strict=True)
    return max(relative_error(part, other) for part, other in parts)


SPLITS = {"whole": [11], "ragged": [4, 4, 3], "singles": [1] * 11}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("rows", [1, 3, 1 << 16])
def test_moments_by_their_definition(split, rows, samples, monkeypatch):
    monkeypatch.setattr(moments, "_ROWS", rows)
    x, y = samples
    parts = zip(x.split(SPLITS[split]), y.split(SPLITS[split]), strict=True)
    given = Moments.of(parts)
    assert given.count == SAMPLES
    assert largest_error(given, one_by_one(x, y)) <= round_off(SAMPLES)


def test_float32_data_are_summed_in_float64(samples):
    x, y = (part.to(torch.float32) for part in samples)
    given = Moments.of((x, y))
    assert given.sxx.dtype == torch.float64
    assert largest_error(given, one_by_one(x.double(), y.double())) <= round_off(SAMPLES)


def test_moments_are_not_centred():
    given = Moments.of((torch.full((3, 1), 5.0), torch.full((3, 1), 2.0)))
    assert (given.sxx.item(), given.syx.item(), given.syy.item()) == (25.0, 10.0, 4.0)


def test_addition_joins_the_samples(samples):
    x, y = samples
    joined = Moments.of((x[:3], y[:3])) + Moments.of((x[3:], y[3:]))
    assert joined.count == SAMPLES
    assert largest_error(joined, one_by_one(x, y)) <= round_off(SAMPLES)


def test_moments_of_moments_are_themselves(samples):
    given = Moments.of(samples)
    assert Moments.of(given) is given
    assert given.to("cpu") is given


@pytest.mark.parametrize(("gap", "whitened"), [(0.9e-8, True), (1.1e-8, False), (-1.1e-8, False)])
@pytest.mark.parametrize("beside", [0, 1], ids=["variance", "covariance"])
def test_whitened(gap, whitened, beside):
    eye = torch.eye(3)
    sxx = eye + gap * (eye.roll(beside, 0) + eye.roll(-beside, 0)) / (2 - beside)
    assert Moments(sxx=sxx, syx=eye, syy=eye, count=1).is_whitened is whitened


@pytest.mark.parametrize("scale", [1e-20, 1.0, -1.0])
@pytest.mark.parametrize("name", ["sxx", "syy"])
def test_symmetry_is_that_of_round_off(name, scale):
    eye, upper = torch.eye(3), torch.ones(3, 3).triu(1)
    usual = {"sxx": eye, "syx": eye, "syy": eye, "count": 4}
    Moments(**usual | {name: scale * (eye + 0.9e-10 * upper)})
    with pytest.raises(ValueError, match=f"{name}: differs from its transpose by .*, needs symm"):
        Moments(**usual | {name: scale * (eye + 1.1e-10 * upper)})


@pytest.mark.parametrize(
    "convert",
    [torch.Tensor.float, torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.requires_grad_],
)
def test_every_moment_becomes_a_float64_tensor(convert):
    eye = torch.eye(2)
    given = Moments(sxx=convert(eye), syx=convert(2 * eye), syy=convert(eye), count=3)
    parts = given.sxx, given.syx, given.syy
    assert {(part.dtype, part.requires_grad) for part in parts} == {(torch.float64, False)}
    assert torch.equal(given.syx, 2 * torch.eye(2, dtype=torch.float64))


def test_widths_that_do_not_add(samples):
    x, y = samples
    with pytest.raises(ValueError, match=r"^moments: cannot add widths .*\(2, 4\) and \(2, 3\)"):
        Moments.of((x, y)) + Moments.of((x[:, :3], y))


def test_data_without_moments():
    with pytest.raises(ValueError, match=r"y \(1,\); moments need matrices .*one-hot"):
        Moments.of((torch.ones(1, 4), torch.ones(1)))
    with pytest.raises(ValueError, match=r"x has shape \(1, 2, 2\)"):
        Moments.of((torch.ones(1, 2, 2), torch.ones(1, 2)))


@pytest.mark.parametrize(("x", "y"), [(3, 2), (4, 1)])
def test_widths_that_change(x, y, samples):
    with pytest.raises(ValueError, match=f"a batch has widths {x} and {y}, .* before it 4 and 2"):
        Moments.of([samples, (torch.ones(1, x), torch.ones(1, y))])


IMPOSSIBLE = {
    "sxx-shape": ({"sxx": torch.eye(2)}, r"\(2, 2\), \(2, 3\), \(2, 2\)\], needs \(d, d\)"),
    "syx-transposed": ({"syx": torch.ones(3, 2)}, "needs .d, d., .k, d."),
    "vector": ({"syx": torch.ones(3)}, "needs .d, d., .k, d."),
    "scalar": ({"syx": torch.tensor(1.0)}, "needs .d, d., .k, d."),
    "three-axes": ({"syx": torch.ones(2, 3, 1)}, "needs .d, d., .k, d."),
    "empty": ({"count": 0}, "count: got 0, needs at least 1"),
    "half": ({"count": 2.5}, "count: got 2.5, needs a whole number"),
    "nan": ({"syy": torch.eye(2) / 0}, r"syy: entry \(0, 0\) is inf"),
    "complex": ({"syx": torch.ones(2, 3) * 1j}, "syx: .*needs real numbers"),
    "text": ({"sxx": "eye"}, "sxx: got str, needs a tensor"),
}


@pytest.mark.parametrize("kind", IMPOSSIBLE)
def test_impossible_moments(kind):
    changes, message = IMPOSSIBLE[kind]
    usual = {"sxx": torch.eye(3), "syx": torch.ones(2, 3), "syy": torch.eye(2), "count": 4}
    with pytest.raises(ValueError, match=message):
        Moments(**usual | changes)


def test_overflow_is_refused():
    with pytest.raises(ValueError, match="^sxx: entry .* is inf"):
        Moments.of((torch.full((2, 1), 1e200), torch.ones(2, 1)))
