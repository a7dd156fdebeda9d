"""Two nets side by side: effect sizes from their definitions, intervals that cover."""

import math

import numpy as np
import pytest
import torch
from oracles import noise
from scipy import stats

import resid_theory as rt
from resid_theory.stability import Cushions, compare
from resid_theory.stability.compare import holm


def cushions(values, layers=("one", "two"), **settings):
    values = torch.as_tensor(values, dtype=torch.float64)
    known = {
        "weight": "effective", "norm": "kernel", "include_bias": False, "batchnorm": "eval",
        "not_covered": {},
    } | settings  # fmt: skip
    return Cushions(layers=layers, identity_removed=values, effective=values, **known)


def test_effect_sizes_from_their_definitions():
    x, y = noise(2, 30, seed=0), noise(2, 20, seed=1) + torch.tensor([[0.0], [5.0]])
    found = rt.compare_cushions(cushions(x), cushions(y))
    for row in range(2):
        signs = (x[row][:, None] - y[row][None]).sign()
        assert found.cliffs_delta[row].item() == pytest.approx(signs.mean().item(), abs=1e-15)
        expected = torch.quantile(x[row], 0.5) - torch.quantile(y[row], 0.5)
        assert found.difference[row].item() == pytest.approx(expected.item(), rel=1e-12)
    assert found.units.tolist() == [[30, 20]] * 2 and found.unit == "sample"
    assert found.p_values[1] < 1e-6 < found.p_values[0]
    assert found.layers_where_a_is_larger == int((found.difference > 0).sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_resamples_are_those_of_scipy_from_one_seed(seed):
    """A stream for all layers, from a number below 2³¹ of the generator."""
    x, y = noise(2, 9, seed=0), noise(2, 7, seed=1)
    found = rt.compare_cushions(
        cushions(x), cushions(y), confidence=0.8, resamples=40,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    drawn = torch.randint(2**31, (), generator=torch.Generator().manual_seed(seed)).item()
    source = np.random.default_rng(drawn)
    for row in range(2):
        medians = [
            np.median(x[row].numpy()[source.integers(0, 9, (40, 9))], axis=1),
            np.median(y[row].numpy()[source.integers(0, 7, (40, 7))], axis=1),
        ]
        ends = np.quantile(medians[0] - medians[1], [0.1, 0.9])
        assert found.intervals[row].tolist() == pytest.approx(ends.tolist(), rel=1e-12)


@pytest.mark.parametrize(("limit", "batch"), [(None, 2**22 // 7), (20, 2), (3, 1)], ids=str)
def test_resamples_are_held_in_parts(limit, batch, monkeypatch):
    """Four million numbers of the larger side at a time, which are no fewer than one resample."""
    seen, bootstrap = [], stats.bootstrap

    def kept(*given, **more):
        seen.append(more["batch"])
        return bootstrap(*given, **more)

    monkeypatch.setattr(stats, "bootstrap", kept)
    if limit is not None:
        monkeypatch.setattr(compare, "_AT_ONCE", limit)
    rt.compare_cushions(cushions(noise(2, 5)), cushions(noise(2, 7)), resamples=5)
    assert seen == [batch, batch]


@pytest.mark.parametrize(("n", "m"), [(60, 80), (2, 2), (60, 3), (5, 5)], ids=str)
def test_interval_of_the_median_difference_covers_it(n, m):
    """Of 200 pairs of draws, 95 % intervals cover the true difference about 95 % of the time."""
    pairs = 200
    x, y = noise(pairs, n, seed=0), noise(pairs, m, seed=1) - 1.0
    names = tuple(str(number) for number in range(pairs))
    found = rt.compare_cushions(cushions(x, names), cushions(y, names), resamples=500)
    low, high = found.intervals.unbind(1)
    covered = float(((low <= 1.0) & (1.0 <= high)).double().mean())
    # The percentile interval of a median is a little conservative; chance is 1.5 % here.
    assert 0.95 - 4 * math.sqrt(0.05 * 0.95 / pairs) < covered <= 1
    assert bool(low.isfinite().all()) == (min(n, m) >= 5)


@pytest.fixture(scope="module")
def drawn_once():
    """scipy's bootstrap, which draws but once from the same samples, whatever the confidence."""
    known, bootstrap = {}, stats.bootstrap

    def reused(samples, *given, **more):
        key = samples[0].tobytes()
        if key in known:
            more |= {"n_resamples": 0, "bootstrap_result": known[key]}
        known[key] = bootstrap(samples, *given, **more)
        return known[key]

    return reused


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_intervals_are_as_wide_as_their_confidence(confidence, drawn_once, monkeypatch):
    """Medians of n normal numbers vary by π / 2n; the bootstrap's own spread is averaged out."""
    monkeypatch.setattr(stats, "bootstrap", drawn_once)
    layers, n, m = 60, 200, 300
    names = tuple(str(number) for number in range(layers))
    x, y = cushions(noise(layers, n, seed=0), names), cushions(noise(layers, m, seed=1), names)
    found = rt.compare_cushions(x, y, confidence=confidence, resamples=600)
    low, high = found.intervals.unbind(1)
    expected = 2 * stats.norm.ppf((1 + confidence) / 2) * math.sqrt(math.pi / 2 * (1 / n + 1 / m))
    # 90 and 95 % are 19 % apart, 95 and 99 % are 31 %.
    assert float((high - low).mean()) == pytest.approx(expected, rel=0.08)
    assert found.confidence == confidence


def test_columns_of_the_table_are_what_they_are_called():
    found = rt.compare_cushions(cushions(noise(2, 30, seed=0)), cushions(noise(2, 20, seed=1)))
    pairs = {"median": found.medians, "units": found.units}
    expected = {f"{name}_{side}": both[:, n] for name, both in pairs.items()
                for n, side in enumerate("ab")}  # fmt: skip
    expected |= {
        "difference": found.medians[:, 0] - found.medians[:, 1],
        "difference_low": found.intervals[:, 0], "difference_high": found.intervals[:, 1],
        "cliffs_delta": found.cliffs_delta, "p": found.p_values, "p_holm": found.adjusted_p_values,
    }  # fmt: skip
    table = found.frame()
    assert table["layer"].tolist() == ["one", "two"] and len(table.columns) == 1 + len(expected)
    for name, column in expected.items():
        assert table[name].tolist() == column.tolist(), name
    assert (found.intervals[:, 0] < found.intervals[:, 1]).all()


@pytest.mark.parametrize(
    "settings",
    [{"confidence": 0.0}, {"confidence": 1.0}, {"confidence": -0.5}, {"resamples": 1}],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings):
    a = cushions(noise(2, 9, seed=0))
    with pytest.raises(ValueError, match=f"^{next(iter(settings))}: got"):
        rt.compare_cushions(a, a, **settings)


def test_samples_that_agree_have_an_interval_without_width():
    one, other = cushions(torch.full((2, 9), 3.0)), cushions(torch.full((2, 7), 1.0))
    found = rt.compare_cushions(one, other)
    assert found.intervals.tolist() == [[2.0, 2.0]] * 2 and found.cliffs_delta.tolist() == [1, 1]


def test_equal_nets_do_not_differ():
    same = cushions(noise(2, 40, seed=0))
    found = rt.compare_cushions(same, same)
    assert not found.difference.any() and not found.cliffs_delta.any()
    assert found.layers_where_a_is_larger == 0
    low, high = found.intervals.unbind(1)
    assert (low <= 0).all() and (high >= 0).all() and (found.adjusted_p_values == 1).all()


def test_holm_rejects_what_the_step_down_procedure_rejects():
    p = torch.rand(15, generator=torch.Generator().manual_seed(0)) ** 3
    adjusted = holm(p)
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for step, index in enumerate(p.argsort().tolist()):
            if p[index] > level / (len(p) - step):
                break
            rejected.add(index)
        assert rejected == set((adjusted <= level).nonzero().flatten().tolist())


def test_seeds_are_units_with_the_median_of_their_samples():
    nets = [cushions(noise(2, 51, seed=seed) + seed) for seed in range(5)]
    others = [cushions(noise(2, 33, seed=10 + seed) + seed + 0.5) for seed in range(4)]
    found = rt.compare_cushions(nets, others)
    assert found.unit == "seed" and found.units.tolist() == [[5, 4]] * 2
    x, y = (torch.stack([net.values.median(1).values for net in side]) for side in (nets, others))
    assert found.medians[0].tolist() == pytest.approx(
        [torch.quantile(side[:, 0], 0.5).item() for side in (x, y)], rel=1e-12
    )
    expected = stats.mannwhitneyu(x[:, 1].numpy(), y[:, 1].numpy()).pvalue
    assert found.p_values[1].item() == pytest.approx(expected, rel=1e-12)
    # Far more samples than seeds: taking them for units would feign certainty.
    assert float(found.p_values.min()) >= 2 / math.comb(9, 4) - 1e-12


def test_samples_without_a_value_are_left_out():
    x, y = noise(2, 10, seed=0), noise(2, 12, seed=1)
    gap = torch.cat([x, torch.full((2, 3), torch.nan)], 1)
    gap[1, 3] = torch.nan
    found = rt.compare_cushions(cushions(gap), cushions(y))
    assert found.units.tolist() == [[10, 12], [9, 12]]
    one, two = stats.mannwhitneyu(x[0], y[0]), stats.mannwhitneyu(gap[1, gap[1] == gap[1]], y[1])
    assert found.p_values.tolist() == pytest.approx([one.pvalue, two.pvalue], rel=1e-12)


@pytest.mark.parametrize("known", [0, 1, 2], ids=str)
def test_a_layer_without_values_in_the_seeds_of_one_side_is_named(known):
    """The other layers are compared as they would be without it."""
    nets = [noise(2, 7, seed=seed) for seed in range(4)]
    for net in nets[known:]:
        net[1] = torch.nan
    others = [cushions(noise(2, 7, seed=10 + seed)) for seed in range(3)]
    found = rt.compare_cushions([cushions(net) for net in nets], others)
    sides = nets, [other.values for other in others]
    x, y = ([torch.quantile(values[0], 0.5) for values in side] for side in sides)
    expected = stats.mannwhitneyu(torch.stack(x), torch.stack(y)).pvalue
    assert found.p_values[0].item() == pytest.approx(expected, rel=1e-12)
    if known == 2:
        assert found.units.tolist() == [[4, 3], [2, 3]] and not found.not_compared
    else:
        assert found.not_compared == {"two": f"has a value in {known} seeds of a, needs two"}
        assert f"Not compared: two: has a value in {known} seeds" in str(found)


def test_layers_that_one_side_lacks_are_named():
    a, b = cushions(noise(2, 9, seed=0)), cushions(noise(2, 9, seed=1), ("two", "three"))
    found = rt.compare_cushions(a, b)
    assert found.layers == ("two",)
    assert found.not_compared == {"one": "only in a", "three": "only in b"}
    assert "Not compared: three: only in b" in str(found)
    found = rt.compare_cushions([a, b], [a, a])
    assert found.not_compared == {"one": "not in every net of a", "three": "not in every net of a"}


def test_equal_seeds_give_equal_intervals():
    a, b = cushions(noise(2, 40, seed=0)), cushions(noise(2, 40, seed=1))
    one, two, other = (rt.compare_cushions(a, b, generator=s).intervals for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_plain_and_residual_nets_differ_by_the_convention():
    """The identity removed, every residual layer's cushion is larger; effective ones are alike."""
    x = noise(40, 3, 16, 16)
    plain, residual = (
        rt.layer_cushions(rt.simplified_net(20, identity=kind), x) for kind in ("plain", "residual")
    )
    removed = rt.compare_cushions(residual, plain)
    assert removed.layers_where_a_is_larger >= 18
    assert (removed.cliffs_delta[1:-1] == 1).all()
    effective = rt.compare_cushions(residual.under("effective"), plain.under("effective"))
    assert float(effective.difference[1:-1].abs().max()) < 0.1
    assert list(removed.frame()["layer"]) == list(plain.layers)


@pytest.mark.parametrize(
    ("b", "message"),
    [
        (lambda a: cushions(a.values, norm="operator"), "b: measured with norm kernel and op"),
        (lambda a: a.under("identity_removed"), "b: measured with weight"),
        (lambda a: [a, a], "b: a and b must both be"),
        (lambda a: [a], "b: got list of 1, needs the cushions of one net"),
        (lambda a: [a, 3], "b: got list of 2, needs the cushions of one net"),
        (lambda a: 3, "b: got int of 0, needs the cushions of one net"),
        (lambda a: cushions(a.values, ("x", "y")), "b: no layer can be compared .*only in a"),
        (lambda a: cushions(a.values[:, :1]), "b: no layer .*one.*has a value in 1 samples of b"),
    ],
    ids=["norm", "convention", "mixed", "one", "beside", "number", "names", "one sample"],
)
def test_refusals(b, message):
    a = cushions(noise(2, 5, seed=0))
    with pytest.raises(ValueError, match=f"^{message}"):
        rt.compare_cushions(a, b(a))
