"""The zero point: verdicts and their reasons, bounds, structure, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from tolerances import EPS, HESSIAN, relative_error, round_off

import resid_theory as rt
from resid_theory.theory import Layout, zero_point
from resid_theory.theory.zero_weights import counted_spectrum, prediction
from resid_theory.theory.zero_weights.zero_point_statistics import (
    check_dense,
    pair_spectrum,
    resolution_of,
)

D = 3


def eye_moments(syx, d=D):
    eye = torch.eye(d)
    return rt.Moments(sxx=eye, syx=syx, syy=4 * eye, count=9)


def samples(generator, d=D, k=None, count=12):
    y = torch.randn(count, k or d, generator=generator)
    return torch.randn(count, d, generator=generator), torch.softmax(y, 1)


def whiten(x):
    """Mean zero and second moment one, by the eigenvectors."""
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    return x @ vectors / values.sqrt()


# -- verdicts --------------------------------------------------------------------------------------

FLAT, BOTH = {"mid": torch.square}, "vanish, the one of order {} takes both signs"
OPTIMAL = "M = 0: no gradient correlates with the features, the identity is optimal already"
UNPASSED = "c_n = 0: an activation is flat at zero, so no block passes a first-order change"
SMALLEST = "the smallest eigenvalue is -|c| s_1(M) < 0"
VERDICTS = {
    "n1": (1, 0.5, {}, "not stationary", "the gradient is c M in every block", 0),
    "n2": (2, 0.5, {}, "strict saddle", SMALLEST, 1),
    "n3": (3, 0.5, {}, "degenerate saddle", f"derivatives up to order 2 {BOTH.format(3)}", 2),
    "n4": (4, 0.5, {}, "degenerate saddle", f"derivatives up to order 3 {BOTH.format(4)}", 3),
    "n1-optimal": (1, 1.0, {}, "degenerate", OPTIMAL, 1),
    "n2-optimal": (2, 1.0, {}, "degenerate", OPTIMAL, 2),
    "n3-optimal": (3, 1.0, {}, "degenerate", OPTIMAL, 3),
    "n1-flat": (1, 0.5, {"post": lambda z: z**3}, "degenerate", UNPASSED, 1),
    "n2-flat": (2, 0.5, FLAT, "degenerate", UNPASSED, 2),
    "n3-flat": (3, 0.5, FLAT, "degenerate", UNPASSED, 3),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_verdicts(case):
    n, share, options, verdict, reason, order = VERDICTS[case]
    point = zero_point(eye_moments(share * torch.eye(D)), blocks=2, shortcut_depth=n, **options)
    assert (point.verdict, point.reason, point.order) == (verdict, reason, order)


@pytest.mark.parametrize("layout", [Layout.shortcut(2, branch=1), Layout([[1.0]], [1.0, 1.0])])
@pytest.mark.parametrize("linear", [0.0, 1.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_layer_falls_by_the_curvature_of_its_activation(layout, linear, sign):
    # Inputs of mean zero and second moment one: M = 0 of gradients g that are all the same. The
    # Hessian is 10 g, and with a slope of one it is one more in every pair of blocks.
    x = math.sqrt(D) * torch.cat([torch.eye(D), -torch.eye(D)])
    options = {"layout": layout, "post": lambda z: linear * z + 5 * z**2}
    point = zero_point((x, x - sign), **options)
    verdict, reason = (
        ("degenerate", OPTIMAL if linear else UNPASSED) if sign > 0 else
        ("strict saddle", "no block has a gradient, but the Hessian has negative eigenvalues")
    )  # fmt: skip
    assert (point.verdict, point.reason, point.order) == (verdict, reason, 1)
    own, ones = torch.eye(layout.blocks), torch.ones(layout.blocks, layout.blocks)
    matrix = torch.kron(10 * sign * own + linear * ones, torch.eye(D * D))
    assert point.spectrum.distance(rt.Spectrum.of(torch.linalg.eigvalsh(matrix))) <= HESSIAN


REPORTS = {
    # Hessian of two weights [[2, 3], [3, 2]]: 5 and -1, whose 10th percentile is 1.4; growth 3
    1: ([[2.0]], [[1.0]], """\
Zero weights, shortcut, 2 blocks of 1 layers: not stationary
  reason                    the gradient is c M in every block
  singular values           1
  slope                     1
  parameters                2
  method                    dense solver
  growth rate               3
  max magnitude             5
  condition number 10       3.571
  condition number          5
  condition number nonzero  5
  index                     0.5
  learning rate scale       0.2"""),
    # M of 0.8 and 0.2; |Syy| of 0.25 bounds the condition number by 1.5 / 0.5
    2: ([[1.0, 0.0], [0.0, 1.0]], [[0.2, 0.0], [0.0, 0.8]], """\
Zero weights, shortcut, 2 blocks of 2 layers: strict saddle
  reason                    the smallest eigenvalue is -|c| s_1(M) < 0
  singular values           0.8 0.2
  slope                     1
  parameters                16
  method                    closed form
  max magnitude             0.8
  condition number 10       4
  condition number          4
  a priori bound            3
  condition number nonzero  4
  index                     0.5
  learning rate scale       1.25
  escape from               0.01
  escape to                 0.1
  escape time               2.878
  escape steps              3.322"""),
    3: ([[2.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], """\
Zero weights, shortcut, 2 blocks of 3 layers: degenerate saddle
  reason                    derivatives up to order 2 vanish, the one of order 3 takes both signs
  singular values           1 1
  slope                     1
  parameters                24
  method                    closed form
  max magnitude             0
  condition number 10       nan
  condition number          nan
  condition number nonzero  nan
  index                     0
  learning rate scale       inf
  escape from               0.01
  escape to                 0.1
  escape time               90
  escape steps              inf"""),
}  # fmt: skip


@pytest.mark.parametrize("n", REPORTS)
def test_a_report_by_hand(n):
    sxx, syx, text = REPORTS[n]
    moments = rt.Moments(sxx=torch.tensor(sxx), syx=torch.tensor(syx),
                         syy=0.25 * torch.eye(len(sxx)), count=9)  # fmt: skip
    assert str(zero_point(moments, blocks=2, shortcut_depth=n)) == text


NUMBERS = ["max_magnitude", "parameters", "largest", "smallest", "min_magnitude",
           "magnitude_percentile_10", "condition_number", "condition_number_10",
           "condition_number_nonzero", "index", "rank", "nullity", "zero_threshold"]  # fmt: skip
ESCAPE = ["escape_from", "escape_to", "escape_time", "escape_steps"]
SUMMARIES = {
    "closed form": ({"blocks": 2, "shortcut_depth": 2}, [*ESCAPE, *NUMBERS]),
    "listed": ({"blocks": 2, "shortcut_depth": 1}, ["growth_rate", *NUMBERS]),
    "limits": ({"blocks": 4000, "shortcut_depth": 1},
               ["growth_rate", "parameters", "max_magnitude", "bulk_percentile_10",
                "condition_number_10"]),
    "streams": ({"layout": Layout.scaled(4000, skip=0.999, branch=1)},
                ["parameters", "largest", "smallest", "index"]),
}  # fmt: skip


@pytest.mark.parametrize("case", SUMMARIES)
def test_numbers_of_a_summary(case):
    options, names = SUMMARIES[case]
    moments = rt.Moments(sxx=torch.ones(1, 1), syx=torch.zeros(1, 1), syy=torch.ones(1, 1), count=9)
    found = zero_point(moments, **options).summary()
    every = ["method", "wiring", "blocks", "shortcut_depth", "hidden", "verdict", "reason", "order",
             "slope", "a_priori_bound", "learning_rate_scale", "singular_values"]  # fmt: skip
    assert list(found) == [*every, *names]
    assert found["a_priori_bound"] is None and found["blocks"] == options.get("blocks", 4000)


def test_an_optimal_identity_from_samples_is_exact(generator):
    # round-off of the sums must not look like a gradient
    x = torch.randn(1000, 5, generator=generator)
    turn = rt.networks.draw_weights("orthogonal", (5, 5), generator=generator)
    targets = x @ turn @ turn.T
    assert not torch.equal(targets, x)
    point = zero_point((x, targets), blocks=3, shortcut_depth=2)
    assert not point.correlation.any()
    assert point.spectrum.levels.tolist() == [0.0]
    assert math.isnan(point.condition_number)


@pytest.mark.parametrize(("delta", "is_zero"), [(1.9e-12, True), (2.1e-12, False)])
def test_what_is_zero_to_1e_12_of_its_terms_is_zero(delta, is_zero):
    one, options = torch.ones(1, 1), {"blocks": 2, "shortcut_depth": 2}
    moments = rt.Moments(sxx=one, syx=(1 - delta) * one, syy=one, count=1)  # M of 1 and 1 - delta
    x, y = torch.ones(2, 1), torch.tensor([[-delta], [2.0]])  # g = 1 + delta and -1
    layout = Layout([[one]], [one, one], branch=2)
    points = [
        zero_point(moments, **options), zero_point((x, y), pre=lambda z: z, **options),
        zero_point((x, y), pre=lambda z: z, layout=layout),
    ]  # fmt: skip
    assert [not point.correlation.any() for point in points] == [is_zero] * 3
    shift = zero_point((x, y), last_bias=True, **options).shift
    assert shift.tolist() == ([0.0] if is_zero else pytest.approx([delta / 2], rel=1e-3))


SINGULAR = {
    "rank": ({}, {"deficient": True}, "M has rank 2"),
    "softmax": ({"loss": "cross_entropy"}, {}, "the loss ignores a shift of all outputs"),
    "bias": ({"bias": True}, {}, "M is 3 x 4"),
    "both": (
        {"bias": True, "loss": "cross_entropy"}, {},
        "the loss ignores a shift of all outputs and M is 3 x 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SINGULAR)
def test_reasons_for_a_singular_hessian(case, generator):
    options, data, reason = SINGULAR[case]
    x, y = samples(generator)
    if "deficient" in data:
        y = torch.stack([x[:, 1], 0.5 * x[:, 1], x[:, 2]], 1)  # the last target is its input
    point = zero_point((x, y), blocks=2, shortcut_depth=2, **options)
    assert point.verdict == "strict saddle"
    assert math.isinf(point.condition_number)
    assert math.isfinite(point.nonzero_condition_number)
    says = f"{SMALLEST}; the Hessian is singular because {reason}: compare nonzero eigenvalues"
    assert point.reason == says


# -- spectra ---------------------------------------------------------------------------------------

NULL = {
    # loss, bias: null directions of one block of hidden width h with d outputs, d (+ 1) inputs
    "square": ("square", False, lambda h: 0),
    "cross_entropy": ("cross_entropy", False, lambda h: 2 * h),
    "bias": ("square", True, lambda h: h),
    "cross_entropy-bias": ("cross_entropy", True, lambda h: 3 * h),
}


@pytest.mark.parametrize("hidden", [None, 2, 7])
@pytest.mark.parametrize("case", NULL)
def test_null_directions_are_counted_exactly(case, hidden, generator):
    loss, bias, null = NULL[case]
    data, h = samples(generator), hidden or D
    for blocks in (1, 5, 1000):
        point = zero_point(
            data, blocks=blocks, shortcut_depth=2, loss=loss, bias=bias, hidden=hidden
        )
        assert point.spectrum.nullity == blocks * null(h), blocks
        assert point.size == blocks * h * (2 * D + bias), blocks
        for name in ("condition_number", "nonzero_condition_number"):
            assert getattr(point, name) == getattr(point.spectrum, name), blocks
        for percent in ((), (70.0,)):
            found = point.percentile_condition_number(*percent)
            same = point.spectrum.percentile_condition_number(*(percent or (10.0,)))
            assert found == same, blocks
        assert int((point.spectrum.levels == 0).sum()) == (null(h) > 0), blocks
        assert point.index == pytest.approx((1 - blocks * null(h) / point.size) / 2), blocks


@pytest.mark.parametrize("hidden", [None, 2, 7])
def test_eigenvalues_are_singular_values_with_both_signs(hidden, generator):
    x, y = samples(generator)
    point = zero_point((x, y), blocks=4, shortcut_depth=2, mid="silu", hidden=hidden)
    values = torch.linalg.svdvals((x - y).T @ x / len(x))
    copies = 4 * (hidden or D)
    exact = rt.Spectrum.of(0.5 * torch.cat([values, -values]), [copies] * 2 * D)
    assert point.spectrum.distance(exact) <= round_off(20)
    assert torch.equal(point.spectrum.multiplicities, exact.multiplicities)
    assert point.condition_number == pytest.approx((values[0] / values[-1]).item())


def commutation(a, b):
    """K with K vec(V) = vec(V^T) for V (a, b), columns first."""
    k = torch.zeros(a * b, a * b)
    for i in range(a):
        for j in range(b):
            k[i * b + j, j * a + i] = 1.0
    return k


@pytest.mark.parametrize("hidden", [1, 2, 5])
@pytest.mark.parametrize("bias", [False, True])
def test_matrix_a_by_the_formula(hidden, bias, generator):
    # equation (8): c (M^T kron I_h) K_{d,h}
    point = zero_point(
        samples(generator), blocks=2, shortcut_depth=2, post="silu", hidden=hidden, bias=bias
    )
    product = torch.kron(point.correlation.T.contiguous(), torch.eye(hidden))
    exact = 0.5 * product @ commutation(D, hidden)
    assert relative_error(point.matrix_a, exact) <= round_off(4)


def test_matrix_a_of_one_layer_is_the_lower_block_and_of_three_does_not_exist(generator):
    point = zero_point(samples(generator), blocks=2, shortcut_depth=1)
    assert torch.equal(point.matrix_a, point.hessian()[D * D :, : D * D])
    with pytest.raises(ValueError, match="^matrix_a: exists for n = 1 and n = 2"):
        _ = zero_point(samples(generator), blocks=2, shortcut_depth=3).matrix_a


def test_a_dense_matrix_may_have_eight_gibibytes():
    check_dense(1 << 15)
    with pytest.raises(
        ValueError, match="^hessian: 32769 parameters make a dense matrix of 8.0 Gi"
    ):
        check_dense((1 << 15) + 1)


def test_small_pairs_beside_large_ones_are_no_zeros():
    found = pair_spectrum([torch.eye(2), 1e-20 * torch.eye(2)], [1, 1], 9)
    assert found.levels.tolist() == [-1.0, -1e-20, 0.0, 1e-20, 1.0]
    assert found.multiplicities.tolist() == [2, 2, 1, 2, 2]
    assert found.nonzero_condition_number == pytest.approx(1e20)


def test_zeros_of_pairs_are_told_from_the_smallest_of_the_others():
    pairs = [torch.diag(torch.tensor([4.0, 0.0, 0.5])), torch.ones(1, 1)]
    found = pair_spectrum(pairs, [1, 41], 101)  # 13 + 2 zeros
    assert found.levels.tolist() == [-4, -1, -0.5, 0, 0.5, 1, 4]
    assert found.multiplicities.tolist() == [1, 41, 1, 15, 1, 41, 1]
    assert found.zero_threshold == 12 * EPS * 0.5  # what an SVD of 3 x 3 leaves of the smallest
    # A percentile between the last zero and the first of the others, but for the round-off in
    # 14 / 100 * 100, is zero.
    assert found.percentile_condition_number(14) == math.inf
    assert found.percentile_condition_number(15) == 8.0
    nothing = pair_spectrum([torch.zeros(2, 2)], [3], 12)
    assert (nothing.levels.tolist(), nothing.multiplicities.tolist()) == ([0.0], [12])


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float64, EPS), (torch.float32, 2**-23)])
def test_the_resolution_is_that_of_the_longer_side(dtype, eps):
    for shape in (3, 7), (7, 3), (9, 3, 7):
        assert resolution_of(torch.zeros(shape, dtype=dtype)) == 28 * eps


@pytest.mark.parametrize(
    ("blocks", "exact", "method"),
    [(2, False, "dense solver"), (3, False, "limits of"), (2, True, "dense"), (3, True, "dense"),
     (4, True, "inertia counts")],
)  # fmt: skip
def test_large_nets_of_one_layer_answer_by_limits_or_counts(
    blocks, exact, method, generator, monkeypatch
):
    monkeypatch.setattr(counted_spectrum, "_DENSE", 18)
    monkeypatch.setattr(prediction, "_DENSE_EXACT", 27)
    point = zero_point(samples(generator), blocks=blocks, shortcut_depth=1, exact=exact)
    found, statistics, values = point.summary(), point.statistics, point.spectrum
    assert found["method"].startswith(method) and point.is_listed == method.startswith("dense")
    assert found["growth_rate"] == max(statistics.growth_rate, statistics.negative_growth_rate)
    if method == "limits of":
        assert found["max_magnitude"] == found["growth_rate"] * blocks
        assert found["bulk_percentile_10"] == statistics.bulk_percentile(10)
        assert found["condition_number_10"] == statistics.predicted_condition_number(10)
        assert found["parameters"] == 9 * blocks and "condition_number" not in found
    else:
        assert found["condition_number"] == pytest.approx(values.condition_number, rel=1e-6)
        assert found["max_magnitude"] == pytest.approx(values.max_magnitude)


@pytest.mark.parametrize(
    ("blocks", "exact", "method"),
    [(3000, False, "dense solver"), (3001, False, "limits of"), (8000, True, "dense solver"),
     (8001, True, "inertia counts")],
)  # fmt: skip
def test_methods_of_nets_of_one_layer(blocks, exact, method):
    one = torch.ones(1, 1)
    data = rt.Moments(sxx=one, syx=0.5 * one, syy=one, count=9)
    point = zero_point(data, blocks=blocks, shortcut_depth=1, exact=exact)
    streams = zero_point(data, layout=Layout.scaled(3001, skip=0.999, branch=1))
    found, size, counted = point.method, point.size, streams.method  # a point is slow to print
    assert (found[: len(method)], size, counted) == (method, blocks, "inertia counts")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_gradients_of_all_blocks(n, generator):
    x, y = samples(generator)
    point = zero_point((x, y), blocks=2, shortcut_depth=n, mid="silu", post="gelu")
    m = (x - y).T @ x / len(x)
    exact = 0.5 * m.expand(2, D, D) if n == 1 else torch.zeros(2, D, D)
    assert relative_error(point.gradient, exact) <= round_off(10)


@pytest.mark.parametrize("n", [2, 3])
def test_a_hundred_thousand_blocks(n, generator):
    data = rt.Moments.of(samples(generator, d=10, count=50))
    deep = zero_point(data, blocks=100_000, shortcut_depth=n)
    summary = deep.summary()
    assert deep.size == summary["parameters"] == 100_000 * n * 100
    assert len(deep.spectrum.levels) <= 20  # the multiplicities hold the depth
    shallow = zero_point(data, blocks=1, shortcut_depth=n)
    same = pytest.approx(shallow.condition_number, nan_ok=True)
    assert deep.condition_number == same
    with pytest.raises(ValueError, match="^hessian: .* parameters make a dense matrix of .* GiB"):
        deep.hessian()


@pytest.mark.parametrize("targets", ["one-hot", "general"])
@pytest.mark.parametrize("seed", range(2))
def test_the_a_priori_bound_holds(targets, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 4, generator=generator)
    labels = x.argmax(1) if seed % 2 else torch.randint(0, 4, (60,), generator=generator)
    y = F.one_hot(labels, 4).to(x)
    if targets == "general":
        y = x @ torch.randn(4, 4, generator=generator) + torch.randn(60, 4, generator=generator)
        y = 0.9 * y / torch.linalg.matrix_norm(y, 2) * math.sqrt(60)
    point = zero_point((whiten(x), y), blocks=3, shortcut_depth=2)
    largest = torch.linalg.eigvalsh(y.T @ y / 60)[-1].item()
    expected = (1 + math.sqrt(largest)) / (1 - math.sqrt(largest))
    assert point.a_priori_bound == pytest.approx(expected)
    assert 1.0 <= point.condition_number <= point.a_priori_bound
    if targets == "one-hot":
        share = labels.bincount().max().item() / 60
        assert largest == pytest.approx(share)


UNBOUNDED = {
    "not-whitened": (2.0, 0.5, 2),
    "large-targets": (1.0, 1.0, 2),
    "one-layer": (1.0, 0.5, 1),
    "three-layers": (1.0, 0.5, 3),
}


@pytest.mark.parametrize("case", UNBOUNDED)
def test_no_bound_where_it_does_not_apply(case):
    inputs, targets, n = UNBOUNDED[case]
    eye = torch.eye(2)
    data = rt.Moments(sxx=inputs * eye, syx=0.1 * eye, syy=targets * eye, count=5)
    assert math.isinf(zero_point(data, blocks=2, shortcut_depth=n).a_priori_bound)


@pytest.mark.parametrize(
    "options",
    [{"layout": Layout.scaled(2, skip=0.5)}, {"input_map": torch.eye(2)},
     {"output_map": torch.eye(2)}],
    ids=["scaled", "input map", "output map"],
)  # fmt: skip
def test_other_nets_of_two_layers_have_no_bound(options):
    eye = torch.eye(2)
    data = rt.Moments(sxx=eye, syx=0.1 * eye, syy=0.5 * eye, count=5)
    counts = {} if "layout" in options else {"blocks": 2, "shortcut_depth": 2}
    assert math.isfinite(zero_point(data, blocks=2, shortcut_depth=2).a_priori_bound)
    assert math.isinf(zero_point(data, **counts, **options).a_priori_bound)


def test_a_map_behind_softmax_sees_shifts(generator):
    x, y = samples(generator, k=4)
    options = {"blocks": 2, "shortcut_depth": 2, "loss": "cross_entropy"}
    V = torch.randn(4, D, generator=generator)
    mapped = zero_point((x, y), output_map=V, **options)
    g = (x @ V.T).softmax(1) - y
    assert not mapped.null_direction and zero_point((x, y[:, :3] / 3), **options).null_direction
    assert relative_error(mapped.correlation, (g @ V).T @ x / len(x)) <= round_off(20)


def test_a_block_of_one_layer_may_be_told_its_width(generator):
    data = samples(generator)
    one, other = (zero_point(data, blocks=2, shortcut_depth=1, hidden=h) for h in (None, D))
    assert torch.equal(one.hessian(), other.hessian()) and other.hidden == D


# -- the report ------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["square", "cross_entropy"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_summary_holds_the_numbers_of_the_zero_point(n, loss, generator):
    x = torch.randn(80, 4, generator=generator)
    labels = x.argmax(1)
    options = {"blocks": 3, "shortcut_depth": n, "loss": loss, "pre": "tanh"}
    point = zero_point((x, labels), **options)
    parts = [(x[some], labels[some]) for some in (slice(7), slice(7, 50), slice(50, 80))]
    for data in (iter(parts), [(x, F.one_hot(labels, 4)) for x, labels in parts]):
        found = zero_point(data, **options).correlation
        assert relative_error(found, point.correlation) < 1e-14
    assert torch.equal(point.correlation, zero_point((x, F.one_hot(labels)), **options).correlation)
    if loss == "cross_entropy":  # the last class is one, though no sample has it
        few = labels.clamp(max=2)
        pair = [zero_point((x, y), **options).correlation for y in (few, F.one_hot(few, 4))]
        assert torch.equal(*pair)
    found = point.summary()
    for name in ("blocks", "shortcut_depth", "hidden", "verdict", "reason", "order", "slope"):
        assert found[name] == getattr(point, name)
    assert found["index"] == point.spectrum.index
    assert found["learning_rate_scale"] == point.learning_rate_scale
    assert ("escape_time" in found) == (n > 1) and ("growth_rate" in found) == (n == 1)
    values = found.pop("singular_values")
    assert values == pytest.approx(torch.linalg.svdvals(point.correlation).tolist())
    assert repr(point.table()) == repr({name: [value] for name, value in found.items()})  # nan
    shown = {name: list(column) for name, column in point.shown().items()}
    assert shown.pop("singular_values") == [" ".join(f"{value:.4g}" for value in values)]
    assert repr(shown) == repr({name: [found[name]] for name in shown}) and len(shown) > 5
    assert shown["reason"] == [point.reason] and None not in shown.values()
    if n > 1:
        assert found["escape_time"] == rt.theory.escape_time(point, start=0.01, stop=0.1)
    expected = {1: 0.0, 2: math.log(10) / math.log(2)}.get(n, math.inf)
    assert point.escape_steps == pytest.approx(expected)


@pytest.mark.parametrize(
    ("d", "words"),
    [(12, "12 11 10 9 8 7 6 5 4 3 2 1"), (14, "14 13 12 11 10 9 ... 6 5 4 3 2 1")],
    ids=["all", "ends"],
)
def test_of_many_singular_values_both_ends_are_shown(d, words):
    sxx = torch.diag(torch.arange(1.0, d + 1))
    data = rt.Moments(sxx=sxx, syx=0 * sxx, syy=sxx, count=9)  # M is Sxx
    assert zero_point(data, blocks=2, shortcut_depth=2).shown()["singular_values"] == [words]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("kink", ["line", "mean", "net"])
def test_the_default_dtype_does_not_matter(n, kink, generator):
    data = samples(generator)
    options = {"blocks": 2, "shortcut_depth": n, "mid": "leaky_relu", "post": "leaky_relu"}
    net = rt.ShortcutNet(D, 2, n, mid="leaky_relu", post="leaky_relu")
    rt.initialize(net, "xavier", generator=generator)
    options["kink"] = net if kink == "net" else kink
    expected = zero_point(data, **options).spectrum.levels
    torch.set_default_dtype(torch.float32)
    assert torch.equal(zero_point(data, **options).spectrum.levels, expected)


def test_float32_data_are_read_in_float64(generator):
    x, y = (part.to(torch.float32) for part in samples(generator))
    one = zero_point((x, y), blocks=2, shortcut_depth=2, pre="tanh")
    other = zero_point((x.double(), y.double()), blocks=2, shortcut_depth=2, pre="tanh")
    assert torch.equal(one.correlation, other.correlation)


# -- the leading jet -------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [None, 5])
def test_leading_jet_by_its_formula(hidden, generator):
    point = zero_point(samples(generator), blocks=2, shortcut_depth=2, mid="silu", hidden=hidden)
    net = rt.ShortcutNet(D, 2, 2, hidden=hidden)
    rt.initialize(net, "xavier", generator=generator)
    w = net.layers()
    exact = 0.5 * sum((point.correlation * (w[2 * r + 1] @ w[2 * r])).sum() for r in range(2))
    assert relative_error(point.leading_jet(w), exact.detach()) <= round_off(20)
    if hidden is None:
        assert torch.equal(point.leading_jet(net.weights), point.leading_jet(w))


@pytest.mark.parametrize(("blocks", "bias", "message"), [
    (3, False, "^weights: got 6 matrices, needs 4"),
    (2, True, "^weights: the jet of a net with a bias needs"),
])  # fmt: skip
def test_a_jet_that_does_not_fit(blocks, bias, message, generator):
    point = zero_point(samples(generator), blocks=2, shortcut_depth=2, bias=bias)
    with pytest.raises(ValueError, match=message):
        point.leading_jet(rt.ShortcutNet(D, blocks, 2).layers())


# -- refusals --------------------------------------------------------------------------------------

X, Y = torch.ones(4, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
NET = rt.ShortcutNet(3, 1, 2, mid="relu")
REFUSED = {
    "blocks": ({"blocks": 0}, "^blocks: got 0, needs at least 1"),
    "depth": ({"shortcut_depth": 0}, "^shortcut_depth: got 0, needs at least 1"),
    "fraction": ({"blocks": 1.5}, "^blocks: got 1.5, needs a whole number"),
    "hidden": ({"hidden": 0}, "^hidden: got 0, needs at least 1"),
    "no-inside": ({"hidden": 5, "shortcut_depth": 1}, "^hidden: got 5 with shortcut_depth=1"),
    "loss": ({"loss": "squared", "pre": "relu"}, "^loss: unknown name 'squared'; .*'square'"),
    "pre": ({"pre": "rleu"}, "^pre: unknown name 'rleu'; did you mean 'relu'"),
    "not-zero": ({"mid": "sigmoid"}, "^mid: the activation is 0.5 at zero, needs 0"),
    "nan-at-zero": (
        {"mid": lambda z: torch.where(z == 0, torch.nan, z)}, "^mid: the activation is nan at zero",
    ),
    "below-zero": ({"mid": lambda z: z - 0.5}, "^mid: the activation is -0.5 at zero, needs 0"),
    "not-quite-zero": ({"post": lambda z: z + 1e-15}, "^post: the activation is 1e-15 at zero"),
    "softplus": ({"post": "softplus"}, "^post: .* 'shifted_softplus' for 'softplus'"),
    "no-slope": ({"post": torch.sqrt}, "^post: the activation has no finite slope at zero"),
    "jump": ({"shortcut_depth": 1, "post": "elu"}, "^post: its second derivative jumps .* 1 to 0"),
    "kink": ({"kink": "lines"}, "^kink: unknown name 'lines'; did you mean 'line'"),
    "kink-type": ({"kink": 3}, "^kink: got int, needs 'line', 'mean' or a net"),
    "kink-net": ({"kink": NET, "blocks": 2}, r"^kink: the net has .* \(1, 2, 3, 3, False\), needs"),
    "widths": ({"data": (X, Y[:, :2])}, "^data y: has 2 targets, the net has 3 outputs"),
    "counts": ({"data": (X, Y[:3])}, r"^data: x has shape \(4, 3\) and y \(3, 3\)"),
    "nan": ({"data": (X * math.nan, Y)}, r"^data x: entry \(0, 0\) is nan"),
    "complex": ({"data": (X + 1j, Y)}, "^data x: .*needs real numbers"),
    "labels": ({"data": (X, torch.zeros(4).long())}, "^data y: has 1 targets, the net has 3"),
    "negative-labels": ({"data": (X, torch.tensor([0, 1, 2, -1]))}, "^data y: got -1"),
    "two-inputs": ({"data": ((X, X), Y)}, "^data: x has shape tuple and y .4, 3.; moments need"),
    "two-inputs-bent": ({"data": ((X, X), Y), "pre": "tanh"}, "^x: got tuple, needs a tensor"),
    "moments": (
        {"data": rt.Moments.of((X, Y)), "loss": "cross_entropy"}, "^data: got Moments, .*samples",
    ),
    "coupled-loss": (
        {"loss": lambda o, t: (o - t).mean(0).square().sum()}, "^loss: needs a mean, a weighted",
    ),
    "input-map": ({"input_map": torch.eye(2)}, r"^input_map: got shape \(2, 2\), .*\(rows, 3\)"),
    "output-map": ({"output_map": torch.eye(2)}, r"^output_map: got shape \(2, 2\), needs"),
    "map-nan": ({"input_map": torch.eye(3) / 0}, "^input_map: entry .* is"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    changes, message = REFUSED[case]
    options = {"data": (X, Y), "blocks": 1, "shortcut_depth": 2, **changes}
    with pytest.raises(ValueError, match=message):
        zero_point(options.pop("data"), **options)


def test_values_at_zero_of_round_off_and_of_no_layer_do_not_matter(generator):
    data = samples(generator)
    for changes in {"post": lambda z: z + 4 * EPS}, {"mid": "sigmoid"}, {"mid": torch.sqrt}:
        found = zero_point(data, blocks=2, shortcut_depth=1, **changes)
        assert found.slope == 1.0 and found.verdict == "not stationary"


@pytest.mark.parametrize(
    ("n", "acts", "said"),
    [(2, {"mid": "relu"}, 1), (1, {"post": "relu"}, 1), (1, {"mid": "relu"}, 0),
     (2, {"mid": "tanh", "pre": "relu"}, 0)],
)  # fmt: skip
def test_a_slope_that_does_not_exist_is_said(n, acts, said, generator):
    point = zero_point(samples(generator), blocks=2, shortcut_depth=n, **acts)
    assert ["kink" in line for line in point.remarks()] == [True] * said


def test_names_are_compared_before_data_are_read():
    def never():
        raise AssertionError("data were read")
        yield

    with pytest.raises(ValueError, match="^mid: unknown name"):
        zero_point(never(), blocks=1, shortcut_depth=2, mid="rleu")


def test_a_direction_and_its_opposite_add_up_to_m(generator):
    data = samples(generator)
    net = rt.initialize(rt.ShortcutNet(D, 2, 2, mid="relu"), "xavier", generator=generator)
    points = []
    for _ in range(2):
        points.append(zero_point(data, blocks=2, shortcut_depth=2, mid="relu", kink=net))
        with torch.no_grad():
            net.weights.neg_()
    assert not points[0].notes
    total = points[0].blocks_of_m + points[1].blocks_of_m
    assert total.shape == (2, D, D, D)
    assert relative_error(total, points[0].correlation.expand_as(total)) <= HESSIAN
    with pytest.raises(ValueError, match="^matrix_a: .* when all blocks are equal"):
        points[0].hessian()


def test_a_unit_that_passes_nothing_leaves_the_others(generator):
    x, y = samples(generator)
    net = rt.ShortcutNet(D, 1, 2, mid="relu")
    rt.initialize(net, "near_zero", generator=generator)
    net.weights.data[0, 0, 0] = -1.0  # below zero for all inputs
    point = zero_point((x.abs(), y), blocks=1, shortcut_depth=2, mid="relu", kink=net)
    assert point.blocks_of_m.flatten(2).any(2).sum() == D - 1 and point.verdict == "strict saddle"
    assert point.order == 1 and point.escape_time > 0


def test_sides_of_three_layers_are_not_taken_and_a_note_says_so(generator):
    net, data = rt.ShortcutNet(D, 1, 3, mid="relu"), samples(generator)
    for kink in (net, "line"):
        (note,) = zero_point(data, blocks=1, shortcut_depth=3, mid="relu", kink=kink).notes
        assert "mean of both sides" in note and "up to two layers" in note


@pytest.mark.parametrize(
    "acts",
    [{"post": "relu"}, {"post": torch.abs}, {"mid": "relu"},
     {"mid": torch.abs, "post": "leaky_relu"}],
    ids=["relu-1", "abs-1", "relu-2", "abs-2"],
)  # fmt: skip
def test_first_terms_along_a_nets_weights_are_those_of_its_sides(acts, generator):
    n, (x, y) = 1 + ("mid" in acts), samples(generator)
    net = rt.ShortcutNet(D, 2, n, **acts)
    rt.initialize(net, "near_zero", generator=generator, scale=1e-5)
    point = zero_point((x, y), blocks=2, shortcut_depth=n, kink=net, **acts)
    assert point.notes == ()
    g, change = x - y, net(x) - x  # to first order the loss moves by the mean of g^T change
    moved = (g * change).sum(1).mean()
    (gradient,) = torch.autograd.grad(moved, net.weights)
    # The next order is smaller by the size of the weights.
    assert point.leading_jet(net.layers()).item() == pytest.approx(moved.item(), rel=1e-3)
    if n == 1:
        assert relative_error(point.gradient, gradient[:, 0]) <= 1e-3
        assert point.verdict == "not stationary"
    else:
        assert point.verdict == "strict saddle"
        time = rt.theory.escape_time(point, start=1.0, stop=math.e)
        assert time * point.spectrum.max_magnitude == pytest.approx(1, rel=1e-12)
        with pytest.raises(ValueError, match="^point: is a limit along"):
            rt.theory.escape_start(point, 1.0)


def test_labels_weigh_as_the_loss_weighs_them(generator):
    """torch divides by the weights of labels, but by the number of rows of probabilities."""
    x, labels = torch.randn(30, D, generator=generator), torch.arange(30) % (D - 1)
    for options in {"weight": torch.linspace(0.5, 3.0, D)}, {"ignore_index": 0}:
        loss, net = torch.nn.CrossEntropyLoss(**options), rt.ShortcutNet(D, 1, 2)
        found = zero_point((x, labels), blocks=1, shortcut_depth=2, loss=loss).hessian()

        def value(w, net=net, loss=loss):
            return loss(torch.func.functional_call(net, {"weights": w.view(1, 2, D, D)}, x), labels)

        exact = torch.autograd.functional.hessian(value, torch.zeros(2 * D * D))
        order = net.definition5_order()
        assert relative_error(found, exact[order][:, order]) <= HESSIAN
    with pytest.raises(ValueError, match="^loss: .* does not take the net's outputs"):
        zero_point((x, labels), blocks=1, shortcut_depth=2, loss=lambda o, y: (o - y).mean())


def test_what_cancels_leaves_no_eigenvalues(generator):
    plane = torch.randn(2, 4, generator=generator)
    x, noise = torch.randn(2, 30, 2, generator=generator) @ plane
    point = zero_point((x, x + 1e-4 * noise), blocks=3, shortcut_depth=2)  # M of rank 2 by theorem
    assert point.spectrum.rank == 3 * 4 * 2 * 2 and point.condition_number == math.inf
    sizes = torch.linalg.svdvals(1e-4 * noise.mT @ x / 30)
    # The difference of two moments keeps eps / 1e-4 of M.
    assert point.nonzero_condition_number == pytest.approx(float(sizes[0] / sizes[1]), rel=1e-9)
    wide = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.001, 2.0, 3.0, 4.0]])  # ignores a shift of both
    point = zero_point((x, torch.eye(2)[:1].expand(30, 2)), blocks=1, shortcut_depth=2, hidden=1,
                       loss="cross_entropy", output_map=wide, last_bias=True)  # fmt: skip
    assert point.spectrum.rank == 1 + 2  # of biases, where the map differs, and of one pair


@pytest.mark.parametrize("blocks", [1, 100_000])
def test_depth_does_not_make_a_small_singular_value_zero(blocks):
    # P times epsilon would: 4e-9 at 100,000 blocks of width 10.
    scales = torch.linspace(1.0, 1e-9, 10)
    moments = rt.Moments(
        sxx=torch.eye(10), syx=torch.eye(10) - torch.diag(scales), syy=torch.eye(10), count=1
    )
    point = rt.theory.zero_point(moments, blocks=blocks, shortcut_depth=2)
    # 1 - (1 - 1e-9) keeps nine digits of 1e-9
    assert point.condition_number == pytest.approx(1e9, rel=1e-6)
    assert point.statistics.nullity == 0
