"""The report of a zero point: every number against the room that computes it, in print and JSON."""

import json
import math

import pytest
import torch

import resid_theory as rt
from resid_theory.theory import ZeroPointReport, zero_point_report


@pytest.fixture
def samples(generator):
    x = torch.randn(80, 4, generator=generator)
    return x, x[:, :4].argmax(1)


@pytest.mark.parametrize("loss", ["square", "cross_entropy"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_numbers_are_those_of_the_zero_point(samples, n, loss):
    x, labels = samples
    report = zero_point_report(x, labels, loss=loss, activations={"pre": "tanh"}, n=n, blocks=3)
    targets = rt.data.one_hot(labels, 4)
    point = rt.theory.zero_point((x, targets), blocks=3, shortcut_depth=n, loss=loss, pre="tanh")
    assert report.spectrum.distance(point.spectrum) == 0.0
    found = report.summary()
    for name in ("verdict", "reason", "order", "slope"):
        assert found[name] == getattr(point, name)
    assert found["index"] == point.spectrum.index
    scale = rt.theory.learning_rate_scale(point)
    assert found["learning_rate_scale"] == scale
    if n > 1:
        assert found["escape_time"] == rt.theory.escape_time(point, start=0.01, stop=0.1)
    assert ("escape_time" in found) == (n > 1)
    assert report.escape_steps == pytest.approx(
        {1: 0.0, 2: math.log(10) / math.log(2)}.get(n, math.inf)
    )


def test_json_reads_back_with_levels_and_multiplicities(samples):
    report = zero_point_report(*samples, n=2, blocks=5, widths=7, activations="relu")
    back = json.loads(report.json())
    assert back["slope"] == 0.5 and back["hidden"] == 7
    spectrum = rt.Spectrum.of(back["levels"], back["multiplicities"])
    assert spectrum.distance(report.point.spectrum) == 0.0
    assert sum(back["multiplicities"]) == 5 * 7 * 8
    flat = json.loads(zero_point_report(*samples, n=3).json())
    assert float(flat["learning_rate_scale"]) == math.inf


def test_a_deep_net_of_one_layer_answers_by_its_limits(samples):
    report = zero_point_report(*samples, n=1, blocks=10_000)
    assert report.spectrum is None
    found = report.summary()
    assert found["max_magnitude"] == pytest.approx(1e4 * report.point.growth_rate)
    assert report.escape_time == 0.0
    assert "tends to" in str(report)
    counted = ZeroPointReport(point=report.point, exact=True)
    assert counted.method == "inertia counts"


def test_print_says_the_verdict_the_levels_and_the_bound(generator):
    x, _ = rt.data.whiten(torch.randn(90, 6, generator=generator), 3)
    y = torch.arange(90) % 3
    text = str(zero_point_report(x, y, blocks=4))
    assert "strict saddle" in text and "a-priori bound" in text and "x 12" in text
    assert "singular because" in str(zero_point_report(x, y, blocks=4, loss="cross_entropy"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(activations={"middle": "relu"}), "activations: unknown name 'middle'"),
        (dict(n=0), "shortcut_depth: got 0"),
        (dict(start=0.5), "stop: got 0.1, needs at least start"),
        (dict(y=torch.tensor([-1] * 80)), "y: got -1"),
        (dict(x=torch.ones(80, 3)), "has 4 targets, the net has 3 outputs"),
    ],
    ids=["activations", "n", "start", "labels", "widths"],
)
def test_wrong_input_is_named(samples, change, message):
    given = dict(x=samples[0], y=samples[1])
    with pytest.raises(ValueError, match=message):
        zero_point_report(**{**given, **change})
