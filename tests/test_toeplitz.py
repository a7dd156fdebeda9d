"""Block Toeplitz matrices: counts, extremes and limits against the dense matrix."""

import math
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from tolerances import EPS, round_off

import resid_theory as rt
from resid_theory.theory import zero_point
from resid_theory.theory.zero_weights import counted_spectrum
from resid_theory.theory.zero_weights.toeplitz import BlockToeplitz

SIZES = [(1, 1), (1, 6), (2, 2), (3, 5), (4, 8), (4, 33)]
LOWER = {
    "general": lambda a: a,
    "symmetric": lambda a: 0.5 * (a + a.T),
    "antisymmetric": lambda a: 0.5 * (a - a.T),
    "zero": torch.zeros_like,
    "identity": lambda a: torch.eye(len(a)),
}
COUNTED = 1.5e-8
"""Of the largest |λ|: the square root of epsilon, which small pivots leave of the precision."""

TURN = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)


def make(size, blocks, kind="general", seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator)
    lower = LOWER[kind](torch.randn(size, size, generator=generator))
    return BlockToeplitz(diagonal=root @ root.T / size, lower=lower, blocks=blocks)


def eigenvalues(matrix):
    return torch.linalg.eigvalsh(
        oracles.block_toeplitz(matrix.diagonal, matrix.lower, matrix.blocks)
    )


cases = pytest.mark.parametrize("kind", LOWER)
sizes = pytest.mark.parametrize(("size", "blocks"), SIZES)


@cases
@sizes
def test_dense(size, blocks, kind):
    matrix = make(size, blocks, kind)
    exact = oracles.block_toeplitz(matrix.diagonal, matrix.lower, blocks)
    assert torch.equal(matrix.dense(), exact)


@cases
@sizes
def test_counts_between_eigenvalues(size, blocks, kind):
    matrix = make(size, blocks, kind)
    values = eigenvalues(matrix)
    scale = values.abs().max()
    apart = values.diff() > 2 * COUNTED * scale
    points = torch.cat(
        [values[:1] - scale, 0.5 * (values[1:] + values[:-1])[apart], values[-1:] + scale]
    )
    exact = (values < points[:, None]).sum(1)
    assert torch.equal(matrix.counts_below(points), exact)


@pytest.mark.parametrize(("size", "blocks"), [(2, 128), (4, 65)])
def test_counts_where_pivots_are_singular(size, blocks):
    matrix = make(size, blocks)
    values = eigenvalues(matrix)
    # Differences of block rows have 2 (B - λ) - (A + Aᵀ) on the diagonal.
    inner = torch.linalg.eigvalsh(matrix.diagonal - 0.5 * (matrix.lower + matrix.lower.mT))
    points = torch.cat([inner, inner - 1e-14, inner + 1e-10])
    error = COUNTED * values.abs().max()
    counts = matrix.counts_below(points)
    low, high = ((values < points[:, None] + off).sum(1) for off in (-error, error))
    assert bool(((low <= counts) & (counts <= high)).all())


TINY = EPS**0.5 / 16
# Eigenvalues, the scale that they are small against, and what is inverted.
PIVOTS = {
    "zero": ([0.0, 1.0], 0.0, [8 * EPS, 1.0]),
    "all zero": ([0.0, 0.0], 0.0, [1e-300, 1e-300]),
    "round-off": ([-7.9 * EPS, 1.0], 0.0, [8 * EPS, 1.0]),
    "more": ([-8.1 * EPS, 1.0], 0.0, [-8.1 * EPS, 1.0]),
    "below zero": ([-1.0, 1e-15], 0.0, [-1.0, 8 * EPS]),
    "of very different sizes": ([-1e-2, 1e12], 0.0, [-1e-2, 1e12]),
    "small against others": ([-0.99 * TINY, -TINY], 2.0, [2 * TINY, 2 * TINY]),
    "not small": ([-1.01 * TINY, 3.0], 1.0, [-1.01 * TINY, 3.0]),
    "negative": ([-2.0, -3.0], 1.0, [-2.0, -3.0]),
}


def test_inverses_of_pivots_and_their_counts():
    given, scales, exact = (np.array(part) for part in zip(*PIVOTS.values(), strict=True))
    matrices = np.eye(2) * given[:, None]
    vectors, inverse, negative = counted_spectrum.inverted(matrices, scales)
    assert negative.tolist() == (exact < 0).sum(1).tolist()
    found = vectors / inverse @ vectors.swapaxes(1, 2)
    np.testing.assert_allclose(found, np.eye(2) * exact[:, None], rtol=4 * EPS, atol=0)


class Counting(BlockToeplitz):
    """Keeps the points of each pass of counts."""

    def counts_below(self, points):
        vars(self).setdefault("passes", []).append(points)
        return super().counts_below(points)


@pytest.mark.parametrize(("size", "together"), [(1, 32), (11, 32), (12, 28), (65, 1)])
def test_points_are_counted_together_as_far_as_blocks_are_small(size, together):
    matrix = Counting(**{name: getattr(make(size, 3), name) for name in ("diagonal", "lower")},
                      blocks=3)  # fmt: skip
    values = eigenvalues(matrix)
    error = COUNTED * values.abs().max().item()
    assert matrix.eigenvalue(1) == pytest.approx(values[1].item(), abs=error)
    assert {len(points) for points in matrix.passes} == {together}
    # Each pass divides the interval: from twice the bound of all eigenvalues to 4 EPS of it.
    assert len(matrix.passes) - math.ceil(51 / math.log2(together + 1)) in (0, 1)  # round-off


def test_an_end_is_searched_for_when_it_is_asked_for_and_once(monkeypatch):
    monkeypatch.setattr(counted_spectrum, "_DENSE", 0)
    matrix = Counting(diagonal=2 * torch.eye(1), lower=torch.eye(1), blocks=3)  # 1, 1, 4
    asked = []
    for name, exact in (("largest", 4), ("largest", 4), ("smallest", 1), ("smallest", 1)):
        assert getattr(matrix, name) == pytest.approx(exact, abs=COUNTED * 4)
        asked.append(len(matrix.passes))
    assert asked[0] == asked[1] < asked[2] == asked[3]


@pytest.mark.parametrize(("blocks", "found"), [(3000, 1), (3001, 3001)])
def test_beyond_three_thousand_rows_eigenvalues_are_counted(blocks, found, monkeypatch):
    monkeypatch.setattr(BlockToeplitz, "spectrum", rt.Spectrum.of([7.0]))  # of the dense solver
    assert make(1, blocks).count_below(1e9) == found


def test_counts_that_cross_by_round_off_find_nothing_between(monkeypatch):
    monkeypatch.setattr(counted_spectrum, "_DENSE", 0)
    matrix = make(2, 3)
    monkeypatch.setattr(BlockToeplitz, "counts_below", lambda self, points: torch.tensor([2, 3]))
    assert matrix.count_within(0.5) == 0
    monkeypatch.setattr(BlockToeplitz, "counts_below", lambda self, points: torch.tensor([5, 3]))
    assert matrix.count_within(0.5) == 2


@cases
@sizes
def test_eigenvalues_by_counts(size, blocks, kind, monkeypatch):
    monkeypatch.setattr(counted_spectrum, "_DENSE", 0)
    matrix = make(size, blocks, kind)
    values = eigenvalues(matrix)
    magnitudes = values.abs().sort().values
    most, scale = len(values) - 1, magnitudes[-1]
    for find, exact, ranks in (
        (matrix.eigenvalue, values, {1, len(values) // 10, most}),
        (matrix.magnitude, magnitudes, {0, len(values) // 2, most}),
    ):
        for rank in ranks & set(range(len(values))):
            assert abs(find(rank) - exact[rank]) <= COUNTED * scale, (find.__name__, rank)


@pytest.mark.parametrize("kind", ["general", "identity"])
@pytest.mark.parametrize("blocks", [1, 2, 9, 30])
def test_statistics_by_counts_equal_those_of_the_dense_matrix(blocks, kind, monkeypatch):
    dense = make(3, blocks, kind).summary()
    monkeypatch.setattr(counted_spectrum, "_DENSE", 0)
    counted = make(3, blocks, kind).summary()
    whole = ["parameters", "rank", "nullity", "index"]
    assert {k: counted[k] for k in whole} == {k: dense[k] for k in whole}
    rest = {k: dense[k] for k in dense if k not in [*whole, "zero_threshold"]}
    # relative to the largest: 30 blocks make a condition number of some hundreds
    assert {k: counted[k] for k in rest} == pytest.approx(rest, rel=1e-7, nan_ok=True)


def test_null_spaces_are_counted_whole():
    # cross-entropy: the diagonal block has rank 3 x 4 of 16, and H has 200 + 3 exact zeros
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator)
    y = torch.softmax(torch.randn(30, 4, generator=generator), 1)
    point = zero_point((x, y), blocks=200, shortcut_depth=1, loss="cross_entropy")
    assert point.size > counted_spectrum._DENSE
    assert point.statistics.nullity == 203
    assert math.isinf(point.condition_number)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["general", "symmetric", "identity"])
def test_growth_rate_is_reached_like_one_over_depth(kind, seed):
    errors = []
    for blocks in (64, 128):
        matrix = make(3, blocks, kind, seed)
        values = eigenvalues(matrix)
        rates = torch.tensor([matrix.growth_rate, matrix.negative_growth_rate])
        extremes = torch.stack([values[-1], -values[0]]) / blocks
        # a rate of zero belongs to an extreme that stays bounded
        errors.append((extremes - rates).abs().max().item() / rates.max().item())
    assert errors[0] <= 3 / 64 * 3
    # twice the depth, half the error, to its next order
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.15)


def test_growth_of_a_symmetric_block_is_its_largest_eigenvalue():
    matrix = make(4, 10, "symmetric")
    values = torch.linalg.eigvalsh(matrix.lower)
    assert matrix.growth_rate == pytest.approx(values[-1].item(), rel=round_off(10))
    assert matrix.negative_growth_rate == pytest.approx(-values[0].item(), rel=round_off(10))


@pytest.mark.parametrize("scale", [2.0**-80, 2.0**80], ids=["small", "large"])
@pytest.mark.parametrize("kind", ["general", "antisymmetric"])
def test_growth_has_the_scale_of_the_block(kind, scale):
    one = make(3, 5, kind)
    other = replace(one, diagonal=scale * one.diagonal, lower=scale * one.lower)
    for name in ("growth_rate", "negative_growth_rate"):
        rate = getattr(one, name)
        assert rate > 0 and getattr(other, name) / scale == pytest.approx(rate, rel=round_off(10))


@pytest.mark.parametrize("skew", [10.0**-k for k in (2, 5, 8, 12, 16)], ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_growth_of_nearly_symmetric_blocks(skew, sign):
    # A = ±I + skew J: eigenfunctions exp(J t) leave skew / 2π of growth on the other side
    matrix = BlockToeplitz(diagonal=torch.eye(2), lower=sign * torch.eye(2) + skew * TURN, blocks=5)
    rates = (matrix.growth_rate, matrix.negative_growth_rate)[:: int(sign)]
    assert rates[0] == pytest.approx(1.0, rel=skew**2 + 1e-14)
    assert 0.0 <= rates[1] <= skew


@pytest.mark.parametrize("percent", [10, 50, 90])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("blocks", [32, 128])
def test_bulk_percentiles_are_reached(percent, seed, blocks):
    matrix = make(3, blocks, seed=seed)
    exact = matrix.spectrum.magnitude_percentile(percent)
    # a few of the R eigenvalues of a branch leave the bulk or move to the next angle
    assert matrix.bulk_percentile(percent) == pytest.approx(exact, rel=5 / blocks)


@pytest.mark.parametrize("percent", [10, 50, 90])
def test_the_bulk_of_a_turn_in_closed_form(percent):
    # B = 0 and A = 3 J leave 3 |cot(θ / 2)| with θ uniform on the circle.
    matrix = BlockToeplitz(diagonal=torch.zeros(2, 2), lower=3 * TURN, blocks=5)
    exact = 3 * math.tan(math.pi / 2 * percent / 100)
    assert matrix.bulk_percentile(percent) == pytest.approx(exact, rel=1e-3)
    rate = 3 / (math.pi / 2)  # where cot(3 / κ) is zero
    assert (matrix.growth_rate, matrix.negative_growth_rate) == pytest.approx((rate, rate))
    assert matrix.predicted_condition_number(percent) == pytest.approx(5 * rate / exact, rel=1e-3)


def test_the_predicted_condition_number_grows_in_proportion():
    predicted = make(3, 128).predicted_condition_number()
    assert make(3, 1280).predicted_condition_number() == pytest.approx(10 * predicted)
    exact = make(3, 128).percentile_condition_number()
    assert predicted == pytest.approx(exact, rel=0.1)


def test_degenerate_predictions():
    # M = 0: A = B, rank b, every other eigenvalue is zero
    equal = BlockToeplitz(diagonal=torch.eye(3), lower=torch.eye(3), blocks=4)
    assert equal.rank == 3
    assert equal.growth_rate == 1.0
    assert math.isinf(equal.predicted_condition_number())
    nothing = BlockToeplitz(diagonal=torch.zeros(2, 2), lower=torch.zeros(2, 2), blocks=4)
    assert math.isnan(nothing.predicted_condition_number())
    assert (nothing.growth_rate, nothing.index, nothing.rank) == (0.0, 0.0, 0)


@pytest.mark.parametrize("mu", [-0.7, 0.3, 0.9])
@pytest.mark.parametrize("d", [2, 3])
def test_scaled_identity_in_closed_form(d, mu):
    # Sxx = I, M = mu I: four levels with known multiplicities (section 3 of the derivation)
    eye, blocks = torch.eye(d), 5
    data = rt.Moments(sxx=eye, syx=(1 - mu) * eye, syy=eye, count=3)
    spectrum = zero_point(data, blocks=blocks, shortcut_depth=1).spectrum
    up, down = d * (d + 1) // 2, d * (d - 1) // 2
    levels = [-mu, mu, blocks * (1 + mu) - mu, blocks * (1 - mu) + mu]
    exact = rt.Spectrum.of(levels, [up * (blocks - 1), down * (blocks - 1), up, down])
    assert spectrum.distance(exact) <= round_off(50)
    assert spectrum.index == exact.index


def test_depth_one_thousand_in_seconds():
    matrix = make(9, 1000)
    largest, index = matrix.largest, matrix.index
    tenth = matrix.magnitude_percentile(10)
    assert largest / 1000 == pytest.approx(matrix.growth_rate, rel=0.02)
    assert tenth == pytest.approx(matrix.bulk_percentile(10), rel=0.02)
    assert index == pytest.approx(make(9, 100).index, abs=0.02)


EYE = torch.eye(2, dtype=torch.float64)
REFUSED = {
    "blocks": ({"blocks": 0}, "^blocks: got 0, needs at least 1"),
    "sizes": ({"lower": torch.eye(3, dtype=torch.float64)}, r"^diagonal, lower: got shapes \(2, 2"),
    "vector": ({"diagonal": EYE[0], "lower": EYE[0]}, "^diagonal, lower: got shapes"),
    "dtype": ({"lower": EYE.float()}, "^lower: got torch.float32, needs torch.float64"),
    "nan": ({"lower": EYE * math.nan}, r"^lower: entry \(0, 0\) is nan"),
    "asymmetric": ({"diagonal": EYE + 1.1e-10 * EYE.roll(1, 0).triu()}, "^diagonal: differs from"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_not_block_toeplitz(kind):
    changes, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        BlockToeplitz(**{"diagonal": EYE, "lower": EYE, "blocks": 3, **changes})


def test_round_off_is_no_asymmetry():
    BlockToeplitz(diagonal=EYE + 0.9e-10 * EYE.roll(1, 0).triu(), lower=EYE, blocks=3)
    BlockToeplitz(diagonal=-1 - EYE, lower=EYE, blocks=3)


def test_round_off_of_few_rows_is_no_rank():
    """A sum over samples errs by some units of round-off, more than two rows times one."""
    diagonal = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 16 * EPS]])
    matrix = BlockToeplitz(diagonal=diagonal, lower=0 * diagonal, blocks=1)
    assert matrix.spectrum.rank == 1 and matrix.condition_number == math.inf
