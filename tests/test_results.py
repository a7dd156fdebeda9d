"""Results: every public one is shown in a few lines, tabled, and read back from JSON and files."""

import dataclasses
import importlib
import inspect
import json
import math
import pkgutil
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import resid_theory as rt
from resid_theory import eigen, stability, theory
from resid_theory.curvature import filter_directions, layer_table, loss_along
from resid_theory.plots import result_plots
from resid_theory.plots.result_plots import PICTURES
from resid_theory.runtime import store
from resid_theory.runtime.result import FORMAT, Result
from resid_theory.runtime.storable import _fits
from resid_theory.sweep import Outcome, SweepReport

# What goes into a call, or is a model that is asked: data, settings and nets in closed form.
GIVEN = {"Batch", "Branch", "Cell", "Crops", "Images", "Layout", "Moments", "Progress", "Recipe",
         "Regression", "SampleAxes", "Task", "TrivialFlow", "Unit", "Whitening"}  # fmt: skip


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def chain(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    return net, (drawn(12, 4), drawn(12, 3, seed=1))


def trained(stop=None):
    recipe = rt.Recipe(
        loss="square", epochs=3, batch=4, lr=0.1, milestones=(), augmentation="none",
        precision="float64",
    )  # fmt: skip
    net, data = chain(seed=1)
    return rt.train(net, data, recipe, seed=0, device="cpu", progress=False, stop=stop)


def descended():
    net, data = rt.ShortcutNet(4, 2, 2), (drawn(12, 4), drawn(12, 4, seed=1))
    start = rt.networks.draw_weights("near_zero", (3, 2, 2, 4, 4), generator=0)
    rates = torch.tensor([0.01, 0.1, 1e3])
    return net, data, rt.gradient_descent(
        net, "square", data, weights=start, learning_rate=rates, epochs=6, keep=[0, 6]
    )  # fmt: skip


def semiseparable():
    layout = theory.Layout.scaled(3001, skip=0.9, branch=1)
    point = theory.zero_point((drawn(12, 1), drawn(12, 1, seed=1)), layout=layout)
    return point.statistics


def zero_point(depth=2):
    moments = rt.Moments.of((drawn(12, 4), drawn(12, 4, seed=1)))
    return theory.zero_point(moments, blocks=3, shortcut_depth=depth)


def interpolated():
    x, y = (nn.functional.normalize(drawn(4, 4, seed=seed)) for seed in (0, 1))
    return theory.interpolate(x, y, units=60)


def density():
    A = torch.diag(torch.cat([torch.linspace(-1, 1, 60), torch.tensor([9.0, 7.0])]).double())
    return eigen.spectral_density(A, probes=3, steps=12, generator=0)


def cushions(seed=0):
    net, (x, _) = chain(seed)
    return rt.layer_cushions(net, x)


def operator():
    net, data = chain()
    return rt.curvature_operator(net, "square", data)


def report(**options):
    net, data = chain()
    return rt.spectrum(net, "square", data, k=2, **options)


MADE = {
    "Arc": lambda: theory.great_arc(torch.eye(3)[0].double(), torch.eye(3)[1].double()),
    "BatchSpectra": lambda: rt.curvature.batch_spectra(
        chain()[0], "square", chain()[1], batch=5
    ),
    "BlockToeplitz": lambda: zero_point(1).statistics,
    "Semiseparable": semiseparable,
    "ChannelPaths": lambda: stability.subactivation_paths(
        rt.simplified_net(8, identity="residual")
    ),
    "Comparison": lambda: rt.compare_cushions(cushions(), cushions(1), resamples=20),
    "CompressionBound": lambda: stability.compression_bound(*chain(), margin=0.5),
    "Curve": lambda: density().smoothed(),
    "Conversion": lambda: rt.conversion(rt.to_plain(rt.simplified_net(8, identity="residual"))),
    "Cushions": cushions,
    "Density": density,
    "Descent": lambda: descended()[2],
    "Diagonal": lambda: operator().diagonal(budget=8),
    "Isometry": lambda: theory.isometry(0.5),
    "LayerTable": lambda: layer_table(operator(), probes=4),
    "LossAlong": lambda: loss_along(
        operator(), filter_directions(operator(), 2), torch.tensor([-1.0, 0.0, 1.0])
    ),
    "Eigenpairs": lambda: rt.eigenpairs(torch.diag(torch.arange(20.0).double()), k=2),
    "Estimate": lambda: eigen.Estimate(value=1.0, standard_error=math.inf, low=0.5, high=math.inf),
    "Evaluation": lambda: rt.evaluate(chain()[0], (drawn(8, 4), torch.arange(8) % 3)),
    "Flows": lambda: rt.dominant_flows(
        rt.simplified_net(8, identity="residual"),
        (torch.rand(2, 3, 32, 32), torch.tensor([1, 2])),
    ),
    "Gap": lambda: rt.check_equivalence(chain()[0], chain(1)[0], chain()[1][0]),
    "HessianCost": lambda: rt.curvature.hessian_cost(chain()[0], "square", chain()[1]),
    "HessianTrajectory": lambda: rt.descent.hessian_trajectory(
        descended()[0], "square", descended()[1], descended()[2], row=(0,)
    ),
    "InterlayerCushions": lambda: rt.interlayer_cushions(*chain(), start=0, method="probes"),
    "Interpolation": interpolated,
    "MatrixError": lambda: eigen.matrix_error.MatrixError(spectral=1e-9),
    "NoiseCurves": lambda: stability.activation_noise(chain()[0], chain()[1][0], draws=2),
    "Outcome": lambda: Outcome(numbers={"loss": math.nan}, arrays={"x": drawn(2)}),
    "PathChart": lambda: interpolated().chart(0),
    "Run": trained,
    "Shortcuts": lambda: rt.shortcuts(rt.full_net(8)),
    "Smoothness": lambda: stability.interlayer_smoothness(*chain(), draws=3),
    "Solution": lambda: operator().solve(drawn(51), damping=2.0),
    "TransformerPoint": lambda: theory.transformer_zero_point(
        [theory.Branch.attention(drawn(2, 5, 4), drawn(2, 5, 4, seed=1), heads=2)]
    ),
    "Spectrum": lambda: rt.hessian_spectrum(chain()[0], "square", chain()[1]),
    "SpectrumReport": lambda: report(method="matrix-free", steps=8, probes=3),
    "SweepReport": lambda: SweepReport(
        folder=Path("out"), cells=2, found=0, done=1, failed={"k": "ValueError: no"},
        failed_configs={"k": {"task": "hessian", "blocks": 2}}, seconds=1.5, work=1.0,
    ),
    "ZeroPoint": zero_point,
}  # fmt: skip


# -- all of them -----------------------------------------------------------------------------------


def handed_back():
    """Dataclasses of the library that a public function, method or attribute names as its value."""
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(rt.__path__, "resid_theory.")
        if ".cli" not in module.name
    ]
    known = {n: v for m in modules for n, v in vars(m).items()
             if inspect.isclass(v) and dataclasses.is_dataclass(v)}  # fmt: skip
    public = {name: getattr(m, name) for m in modules for name in getattr(m, "__all__", ())
              if hasattr(m, "__path__") and not inspect.ismodule(getattr(m, name))}  # fmt: skip
    members = [
        getattr(member, "fget", None) or getattr(member, "__func__", member)
        for value in public.values()
        if inspect.isclass(value)
        for name, member in vars(value).items()
        if not name.startswith("_")
    ]
    values = [getattr(f, "__annotations__", {}).get("return") for f in (*public.values(), *members)]
    words = set(re.findall(r"\w+", " ".join(map(str, values)))) | set(public)
    return {name: known[name] for name in words & set(known)}


def test_what_public_calls_hand_back_is_a_result_with_an_example_here():
    found = handed_back()
    assert {name for name in found if not issubclass(found[name], Result)} <= GIVEN
    assert {name for name in found if issubclass(found[name], Result)} == set(MADE)


@cache
def made(kind):
    return MADE[kind]()


def same(a, b):
    """Equal to the last bit, and of the same classes."""
    assert type(a) is type(b)
    if isinstance(a, Tensor):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.detach().numpy().tobytes() == b.detach().numpy().tobytes()
    elif isinstance(a, nn.Module):
        same(dict(a.state_dict()), dict(b.state_dict()))
    elif dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            if field.name not in getattr(a, "unsaved", {}):
                same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        same(list(a.values()), list(b.values()))
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            same(left, right)
    else:
        assert repr(a) == repr(b)


@pytest.mark.parametrize("kind", MADE)
def test_a_result_is_shown_tabled_and_read_back(kind, tmp_path):
    found = made(kind)
    assert type(found).__name__ == kind
    for shown in (repr(found), found._repr_html_()):
        assert "tensor" not in shown and len(shown) < 3000
    assert len(repr(found).splitlines()) <= 16 and "<td>" in found._repr_html_()
    frame = found.frame()
    assert len(frame) > 0 and list(frame.index) == list(range(len(frame)))
    text = found.to_json()
    json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    same(type(found).from_json(text), found)
    found.save(tmp_path / "found.json")
    back = rt.load_result(tmp_path / "found")
    same(back, found)
    assert repr(back) == repr(found)


def _descent(rates):
    net, data, _ = descended()
    start = torch.zeros(2, 2, 2, 4, 4, dtype=torch.float64)
    return rt.gradient_descent(
        net, "square", data, weights=start, learning_rate=rates, epochs=1
    ).learning_rate


HALVES = torch.tensor([0.5, 1.0], dtype=torch.float64)
SPHERE = torch.eye(4, dtype=torch.float64)
GIVEN_TENSORS = {  # a tensor that a call is given, and the one in what it hands back
    "levels of noise": (HALVES, lambda t: stability.weight_noise(*chain(), levels=t).levels),
    "learning rates": (HALVES, _descent),
    "distances": (HALVES, lambda t: loss_along(
        operator(), filter_directions(operator(), 1), t).distances),
    "grid of a density": (HALVES, lambda t: density().smoothed(t).grid),
    "grid of shares": (HALVES, lambda t: density().cumulative(t).grid),
    "inputs": (SPHERE, lambda t: theory.interpolate(t, SPHERE, units=60).x),
    "targets": (SPHERE, lambda t: theory.interpolate(SPHERE, t, units=60).y),
    "moments": (SPHERE, lambda t: rt.Moments(sxx=t, syx=SPHERE, syy=SPHERE, count=9).sxx),
    "eigenvalues": (HALVES, lambda t: rt.Spectrum.of(t).levels),
    "multiplicities": (HALVES.ceil().long(), lambda t: rt.Spectrum.of(HALVES, t).multiplicities),
}  # fmt: skip


@pytest.mark.parametrize("name", GIVEN_TENSORS)
def test_later_changes_of_what_was_given_do_not_reach_a_result(name):
    given, call = GIVEN_TENSORS[name]
    own = given.clone()
    found = call(own)
    before = found.clone()
    own.zero_()
    assert torch.equal(found, before) and bool(found.any())


def test_long_tables_show_their_ends():
    lines = repr(eigen.Spectrum.of(range(1, 10**6))).splitlines()
    assert [line.split()[0] for line in lines[2:]] == [*"12345", "…", *["1e+06"] * 5]
    assert lines[7].strip() == "… 999989 more"
    for count, more in ((10, False), (11, False), (12, True)):
        text = repr(eigen.Spectrum.of(range(1, count + 1)))
        assert ("… 2 more" in text) == ("…" in text) == more


def test_intervals_and_errors_stand_beside_their_numbers():
    (row,) = [line for line in repr(made("Cushions")).splitlines() if line.startswith("  2 ")]
    found = made("Cushions").frame().set_index("layer").loc["2"]
    assert f"{found['median']:.4g} [{found['median_low']:.4g}, {found['median_high']:.4g}]" in row
    assert f"{found['median_effective']:.4g}" in row


def test_remarks_join_the_names_of_each_reason():
    found = SimpleNamespace(
        not_covered={"a": "why", "b": "else", "c": "why"}, left={"": "it rests"}, notes=("a word",)
    )
    assert Result.remarks(found) == [
        "Not covered: a, c: why.", "Not covered: b: else.", "Left: the net itself: it rests.",
        "Note: a word.",
    ]  # fmt: skip
    assert Result.remarks(SimpleNamespace()) == []


def ends(estimates):
    """Columns of some estimates: values, and the ends of their intervals."""
    return {part: [getattr(e, part) for e in estimates] for part in ("value", "low", "high")}


def of_batches(found):
    values, low, high = ends(found.largest).values()
    yield "batch", [1, 2, 3]
    yield "samples", [5, 5, 2]
    yield from zip(("largest", "largest_low", "largest_high"), (values, low, high), strict=True)


def of_paths(found):
    yield "layer", [name for name in found.names for _ in range(64)]
    yield "path", [*range(64)] * len(found.names)
    yield "channel", [channel for row in found.channels for channel in row.tolist()]


def of_density(found):
    (probes, nodes), known = found.nodes.shape, found.known.tolist()
    share = (62 - len(known)) / 62 / probes
    yield "probe", [p for p in range(probes) for _ in range(nodes)] + [-1] * len(known)
    yield "eigenvalue", [*found.nodes.flatten().tolist(), *known]
    yield "share", [*(share * found.weights.flatten()).tolist(), *[1 / 62] * len(known)]


def of_layers(found):
    yield "parameter", ["0.weight", "0.bias", "2.weight", "2.bias"]
    columns = ("trace", found.traces), ("largest", found.largest), ("norm", found.norms)
    for name, estimates in (*columns, ("coupling", found.couplings)):
        for part, values in ends(estimates).items():
            yield name if part == "value" else f"{name}_{part}", values


def of_lines(found):
    places, lines = [-1.0, 0.0, 1.0], range(2)
    yield "direction", [0] * 3 + [1] * 3
    yield "distance", places * 2
    yield "loss", [found.losses[k, i].item() for k in lines for i in range(3)]
    slopes, bends = found.slopes.tolist(), found.curvatures.tolist()
    yield "quadratic", [found.loss + slopes[k] * t + bends[k] * t * t / 2
                        for k in lines for t in places]  # fmt: skip


def of_flows(found):
    samples = found.shares.numpy()
    yield "layer", [*found.layers]
    yield "share", samples.mean(0).tolist()
    yield "share_error", (samples.std(0, ddof=1) / len(samples) ** 0.5).tolist()
    yield "off_path", found.off_path.numpy().mean(0).tolist()


def of_bound(found):
    yield "layer", [*found.layers]
    columns = [part.tolist() for part in
               (found.layer_cushions, found.interlayer, found.spread, found.overlap)]  # fmt: skip
    names = "layer_cushion", "interlayer_cushion", "spread", "overlap"
    yield from zip(names, columns, strict=True)
    rows = zip(*columns, strict=True)
    yield "term", [(beta * ends / (mu * between)) ** 2 for mu, between, beta, ends in rows]


def of_noise(found):
    levels, places, _ = found.measured.shape
    yield "level", [level for level in found.levels.tolist() for _ in range(places)]
    yield "place", [*found.places] * levels
    for name, values, percent in (
        ("measured", found.measured, 50), ("measured_q25", found.measured, 25),
        ("measured_q75", found.measured, 75), ("predicted", found.predicted, 50),
        ("at_output", found.at_output, 50),
    ):  # fmt: skip
        yield name, np.percentile(values.numpy(), percent, axis=2).flatten().tolist()


def of_smoothness(found):
    yield "draw", [draw for draw in range(3) for _ in range(12)]
    yield "sample", [*range(12)] * 3
    yield "ratio", found.ratios.flatten().tolist()


TABLES = {
    "BatchSpectra": of_batches, "ChannelPaths": of_paths, "CompressionBound": of_bound,
    "Density": of_density, "Flows": of_flows, "LayerTable": of_layers, "LossAlong": of_lines,
    "NoiseCurves": of_noise, "Smoothness": of_smoothness,
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_columns_of_a_table_are_what_they_are_called(kind):
    frame, expected = made(kind).frame(), dict(TABLES[kind](made(kind)))
    assert list(frame) == list(expected)
    for name, values in expected.items():
        words = any(isinstance(value, str) for value in values)
        assert frame[name].tolist() == (values if words else pytest.approx(values, rel=1e-12)), name


def test_json_keeps_letters_as_they_are():
    assert '"λ": 1.5' in Outcome(numbers={"λ": 1.5}, arrays={}).to_json()


def test_long_tables_are_shown_in_summary():
    density, paths, smooth = made("Density"), made("ChannelPaths"), made("Smoothness")
    rows = {line.strip().split("  ")[0]: line for line in repr(density).splitlines()}
    for level in (0.01, 0.1, 0.5, 0.9, 0.99):
        assert rows[f"quantile {level:g}"].endswith(str(density.quantile(level)))
    assert rows["share of negative ones"].endswith(str(density.negative_share))
    alive = [sum(channel >= 0 for channel in row.tolist()) for row in paths.channels]
    shown = [line.split()[-2:] for line in repr(paths).splitlines()]
    assert all([name, str(n)] in shown for name, n in zip(paths.names, alive, strict=True))
    assert all(f"{smooth.rho(delta):.4g}" in repr(smooth) for delta in (0.01, 0.05, 0.5))


# -- files -----------------------------------------------------------------------------------------


def test_a_loaded_run_has_no_nets_and_says_so(tmp_path):
    made("Run").save(tmp_path / "run.json")
    with pytest.raises(ValueError, match="net: a loaded run has no nets; load_checkpoint"):
        _ = rt.load_result(tmp_path / "run").net


def test_a_function_is_not_saved(tmp_path):
    run = dataclasses.replace(made("Run"), recipe=made("Run").recipe.change(loss=nn.L1Loss()))
    with pytest.raises(ValueError, match=r"Run\.recipe\.loss: got a L1Loss, which cannot be saved"):
        run.save(tmp_path / "run.json")
    assert not list(tmp_path.iterdir())


def edited(**changes):
    content = json.loads(made("Estimate").to_json())
    return {"kind": "result", **content, **changes}


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"kind": "net"}, "holds no result but net; load_checkpoint reads it"),
        (["a list"], "holds no result but something else"),
        (edited(format=FORMAT + 1), f"in format {FORMAT + 1}, this version .* up to {FORMAT}"),
        (edited(result={"kind": "eigen.Guess", "fields": {}}), "'eigen.Guess', which this version"),
        (edited(result={"kind": "os.system", "fields": {}}), "'os.system', which this version"),
        (edited(result={"kind": "eigen.Estimate", "fields": {"value": 1.0}}),
         r"fields of its eigen.Estimate differ from ours in \['high', 'low', 'standard_error'\]"),
        (edited(result={"tensor": "9"}), "no result that can be read"),
        (edited(result=3), "holds no result of resid_theory"),
        (edited(result={"odd": 1}), r"unknown form, \['odd'\]"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, about, message):
    store.write_checkpoint(tmp_path / "other.json", {}, about)
    with pytest.raises(ValueError, match=message):
        rt.load_result(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("levels", "many", "^text: eigen.Spectrum has a str as 'levels'$"),
        ("levels", None, "^text: eigen.Spectrum has a NoneType as 'levels'$"),
        ("resolution", "small", "^text: eigen.Spectrum has a str as 'resolution'$"),
        ("levels", {"tensor": ["x"], "dtype": "float64", "shape": [1]},
         "^text: holds no result that can be read .could not convert string to float: 'x'"),
        ("levels", {"tensor": [1.0], "dtype": "float64", "shape": [2]},
         "^text: holds no result that can be read .shape"),
    ],
)  # fmt: skip
def test_edited_json_is_refused_in_one_sentence(field, value, message):
    content = json.loads(made("Spectrum").to_json())
    content["result"]["fields"][field] = value
    with pytest.raises(ValueError, match=message):
        eigen.Spectrum.from_json(json.dumps(content))


def test_the_room_of_a_result_is_looked_up(monkeypatch):
    text, rooms = made("Spectrum").to_json(), []

    class Lazy:
        def __getattr__(self, name):
            rooms.append(name)

    monkeypatch.setitem(sys.modules, "resid_theory", Lazy())
    eigen.Spectrum.from_json(text)
    assert rooms == ["eigen"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "^text: not valid JSON"), ("[1]", "^text: holds no result of resid_theory$"),
     ('{"format": 1}', "^text: holds no result of"), ('{"result": 3}', "^text: holds no result of"),
     ('{"format": "1", "result": 3}', "^text: holds no result of resid_theory$")],
)  # fmt: skip
def test_other_texts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        eigen.Spectrum.from_json(text)


def test_json_of_another_result_is_refused():
    with pytest.raises(ValueError, match="text: holds a Estimate, needs a Spectrum"):
        eigen.Spectrum.from_json(made("Estimate").to_json())


# -- pictures --------------------------------------------------------------------------------------

DRAWN = sorted({name for names in PICTURES.values() for name in names})
WITHOUT = {"Arc", "BlockToeplitz", "ChannelPaths", "Conversion", "Diagonal", "Eigenpairs",
           "Estimate", "Evaluation", "Gap", "HessianCost", "Interpolation", "MatrixError",
           "Outcome", "Semiseparable", "Shortcuts", "Smoothness", "Solution", "SweepReport",
           "TransformerPoint"}  # fmt: skip


def draw(name, found, ax):
    if name == "zero_point":
        return rt.plots.zero_point(found)
    more = {"layer": "2" if hasattr(found, "layers") else "0:"} if "histogram" in name else {}
    return getattr(rt.plots, name)(found, ax=ax, **more)


@pytest.fixture(scope="module")
def empty():
    """Axes in which nothing is drawn."""
    return rt.plots.figure().axes[0]


@pytest.mark.parametrize("kind", MADE)
def test_plots_take_what_they_draw_and_name_it_otherwise(kind, empty):
    assert (kind in PICTURES) != (kind in WITHOUT)
    found = report(method="dense") if kind == "SpectrumReport" else made(kind)
    for name in DRAWN:
        if name in PICTURES.get(kind, ()):
            drawing = draw(name, found, rt.plots.figure().axes[0])
            drawing.figure.set_layout_engine("none")  # half of the time of what is drawn
            drawing.figure.draw_without_rendering()
            panels = drawing.axes if isinstance(drawing, Figure) else [drawing]
            assert all(ax.get_xlabel() and ax.get_ylabel() for ax in panels)
        else:
            taken = [other for other, names in PICTURES.items() if name in names]
            with pytest.raises(ValueError, match=f"got {kind}, needs ") as caught:
                draw(name, found, empty)
            words, others = str(caught.value), PICTURES.get(kind, ())
            assert all(other in words for other in (*taken, *others))


def test_a_curve_has_the_numbers_and_bars_of_its_column():
    flows = made("Flows")
    ax = rt.plots.curve(flows, ax=rt.plots.figure().axes[0])
    assert ax.lines[0].get_ydata().tolist() == flows.mean.tolist()
    ends = torch.tensor(np.array(ax.collections[0].get_segments()))[:, :, 1]
    torch.testing.assert_close(ends[:, 1] - ends[:, 0], 2 * flows.standard_error)
    with pytest.raises(ValueError, match="column: unknown name 'shares'; did you mean 'share'"):
        rt.plots.curve(flows, "shares")


@pytest.mark.parametrize("kind", result_plots.AXES)
def test_curves_are_the_columns_of_the_table(kind):
    found, axis = made(kind), result_plots.AXES[kind]
    ax, frame = rt.plots.curve(found, ax=rt.plots.figure().axes[0]), found.frame()
    parts = [part for _, part in frame.groupby(axis.of, sort=False)] if axis.of else [frame]
    drawn = [bars.lines for bars in ax.containers]
    for (line, _, bars), part in zip(drawn, parts, strict=True):
        assert list(line.get_xdata()) == part[axis.x].tolist()
        assert part[axis.x].dtype.kind not in "if" or part[axis.x].is_monotonic_increasing
        heights = np.asarray(line.get_ydata(), float)  # None where there is none
        np.testing.assert_array_equal(heights, part[axis.y].to_numpy(float))
        assert (line.get_marker() in ("", "None")) == (len(part) > 50)
        assert (line.get_linestyle() == "None") == bool(axis.law)
        for low, high in (("low", "high"), ("q25", "q75")):
            if f"{axis.y}_{low}" in part:
                ends = np.array([segment[:, 1] for segment in bars[0].get_segments()])
                wanted = part[[f"{axis.y}_{low}", f"{axis.y}_{high}"]].to_numpy()
                np.testing.assert_allclose(ends, wanted, rtol=1e-12, atol=1e-12)
    laws = [line for line in ax.lines if not any(line is one for one, *_ in drawn)]
    assert len(laws) == (len(parts) if axis.law else 0)
    for line, part in zip(laws, parts, strict=False):
        np.testing.assert_array_equal(line.get_ydata(), part[axis.law].to_numpy())
    assert ax.get_xlabel().split(" (")[0] == axis.x.replace("_", " ")
    assert ax.get_ylabel() == (axis.label or axis.y.replace("_", " "))
    assert ax.get_yscale() == axis.scale
    assert (ax.get_xscale() == "log") == (axis.x == "level")
    if axis.law:
        assert ax.get_legend().get_title().get_text() == "markers measured, lines predicted"


def test_epochs_are_marked_by_whole_numbers():
    ax = rt.plots.curve(made("Run"), ax=rt.plots.figure().axes[0])
    ax.set_xlim(0.9, 3.1)
    assert ax.get_xticks().tolist() == [0, 1, 2, 3, 4]


def test_units_of_an_interpolation_are_counted_by_the_sample_that_they_move():
    found = interpolated()
    counts = found.frame()["units"].tolist()
    assert counts == [found.movers.tolist().count(k) for k in range(4)] and sum(counts) > 4


def test_values_of_a_mapping_have_its_type():
    assert _fits({"a": 1.0}, Mapping[str, float]) and not _fits({"a": "one"}, Mapping[str, float])
