"""The command line: every verb says what the library says, and errors are one line."""

import contextlib
import io
import json
import os
import pathlib
import runpy
import sys
import time
from types import SimpleNamespace

import interrupted
import numpy as np
import pytest
import torch
import typer
from matplotlib.colors import to_rgb
from verbs import content, drawn, error, labels, printed, table

import resid_theory as rt
from resid_theory import cli
from resid_theory.cli import output, shortcut_commands, verbs


@pytest.fixture(scope="module")
def digits():
    return rt.load_whitened("digits", 10)


def run(capsys, *words):
    """Exit code, standard output and standard error of a verb."""
    code = cli.main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def same(found, expected):
    """Equality of numbers through JSON, where inf and nan are strings."""
    assert {name: float(found[name]) for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-12, abs=0, nan_ok=True
    )


# -- demo ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One demo: its folder, numbers, figures, what it prints, and its seconds."""
    out, said = tmp_path_factory.mktemp("demo"), io.StringIO()
    for name in ("demo.json", "demo.png"):
        (out / name).touch()  # replaced without a word
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setenv("COLUMNS", "400")
        png, figures, started = rt.plots.png, [], time.perf_counter()
        patch.setattr(rt.plots, "png", lambda figure: figures.append(figure) or png(figure))
        assert cli.main(["demo", "--blocks", "1,2", "--out", str(out)]) == 0
        seconds = time.perf_counter() - started
    return out, json.loads((out / "demo.json").read_text()), figures, said.getvalue(), seconds


def test_demo_predicts_what_it_measures_at_zero(demo):
    for run in demo[1]["nets"]["2-shortcut, at zero"] + demo[1]["nets"]["orthogonal, plain"]:
        assert run["distance"] < 1e-12


def test_demo_shows_a_condition_number_that_depth_leaves_alone(demo):
    near_zero = demo[1]["nets"]["2-shortcut, near zero"]
    assert [run["layers"] for run in near_zero] == [2, 4]
    first, second = (run["measured"]["condition_number"] for run in near_zero)
    assert first == pytest.approx(second, rel=0.01)  # moved by the weights, which are not zero
    assert second < near_zero[1]["a_priori_bound"] * 1.01


def test_demo_has_no_prediction_for_xavier_and_saves_a_figure(demo):
    assert demo[1]["nets"]["Xavier, plain"][0]["predicted"] is None
    assert (demo[1]["data"], demo[1]["components"]) == ("digits", 10)
    assert (demo[0] / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_demo_prints_where_its_files_are(demo, digits):
    folder, _, figures, out, seconds = demo
    panels = figures[0].axes[:6]
    assert [panel.get_subplotspec().get_geometry() for panel in panels] == [
        (2, 3, place, place) for place in range(6)
    ]
    nets = "2-shortcut, near zero", "orthogonal, plain"
    for panel, quantity in ((panels[0], "10th percentile"), (panels[3], "λ| (loss / weight²)")):
        assert labels(panel) == [*nets, "Xavier, plain"] and quantity in panel.get_ylabel()
        lines = [line.get_marker() == "None" for line in panel.lines]  # what is predicted
        assert lines == [False, True, False, True, False]  # in the order of the labels
    for net, levels, matrix in zip(nets, panels[1:3], panels[4:], strict=True):
        assert levels.get_title() == f"{net}, 4 layers"
        assert labels(levels)[0] == "measured, P = 400" and len(labels(levels)) == 2
        assert matrix.get_title() == f"Hessian: {net}, 4 layers"
        assert matrix.images[0].get_extent() == [0, 400, 400, 0]
        assert sorted(line.get_ydata()[0] for line in matrix.lines[::2]) == [0, 200, 400]
    said = demo[1]["nets"]
    for panel, key in ((panels[0], "condition_number_10"), (panels[3], "max_magnitude")):
        expected = [
            [float(one[kind][key]) for one in said[net]]
            for net in (*nets, "Xavier, plain")
            for kind in ("measured", "predicted")
            if said[net][0][kind]
        ]
        assert [line.get_ydata().tolist() for line in panel.lines] == expected
        assert all(line.get_xdata().tolist() == [2, 4] for line in panel.lines)
    starts = {"2-shortcut, at zero": "zero", nets[0]: "near_zero", nets[1]: "orthogonal",
              "Xavier, plain": "xavier"}  # fmt: skip
    assert list(said) == list(starts)
    for name, init in starts.items():
        net = rt.ShortcutNet(10, 1, 2, shortcut="plain" not in name)
        rt.initialize(net, init, generator=0)
        same(said[name][0]["measured"], rt.hessian_spectrum(net, "square", digits).summary())
    keys = ("max_magnitude", "magnitude_percentile_10", "condition_number",
            "condition_number_10", "index")  # fmt: skip
    expected = ["Exact Hessians of linear nets on whitened digits, predicted and measured"]
    for net, found in said.items():
        bound = found[0]["a_priori_bound"]
        known = "" if bound is None else f"; a-priori bound on max/min: {bound:.3f}"
        rows = [["layers", "P", "", "max |λ|", "10th pct", "max/min", "max/10th", "index",
                 "distance"]]  # fmt: skip
        for one in found:
            cells = {k: [f"{float(one[k][key]):.4g}" for key in keys]
                     for k in ("predicted", "measured") if one[k]}  # fmt: skip
            if one["predicted"]:
                rows.append(["", "", "predicted", *cells["predicted"], ""])
            far = "" if one["distance"] is None else f"{one['distance']:.1e}"
            size = str(one["layers"]), str(one["layers"] * 100)
            rows.append([*size, "measured", *cells["measured"], far])
        expected += ["", net + known, *table(rows, left=(2,))]
    expected += ["", "λ in units of loss / weight²; distance: between the two spectra, over the "
                 "largest |λ|."]  # fmt: skip
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[: len(expected)] == expected
    files, _, told = "".join(lines[len(expected) :]).rpartition(" in ")
    assert files.split(" and ") == [str(folder / "demo.json"), f"{folder / 'demo.png'} written"]
    assert 0 < float(told.removesuffix(" s.")) < seconds + 0.1


def test_demo_prints_its_file(capsys, tmp_path, monkeypatch):
    drawn(monkeypatch)
    printed_json = content(capsys, "demo", "--blocks", "1", "--out", str(tmp_path))
    assert printed_json == json.loads((tmp_path / "demo.json").read_text())


def test_small_problems_use_one_thread_and_leave_the_number_as_it_was():
    torch.set_num_threads(2)
    for size, threads in ((0, 1), (2000, 1), (2001, 2), (10**6, 2)):
        with cli.shortcut_commands.threads_for(size):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


# -- spectrum --------------------------------------------------------------------------------------


def test_spectrum_measures_as_the_library_does(capsys, digits):
    found = content(capsys, "spectrum", "--blocks", "2", "--seeds", "3,")
    net = rt.ShortcutNet(10, 2, 2)
    rt.initialize(net, "near_zero", generator=torch.Generator().manual_seed(3))
    measured = rt.hessian_spectrum(net, "square", digits)
    predicted = rt.theory.zero_point(digits, blocks=2, shortcut_depth=2)
    same(found["runs"][0]["measured"], measured.summary())
    same(found["runs"][0]["predicted"], predicted.spectrum.summary())
    assert found["runs"][0]["a_priori_bound"] == predicted.a_priori_bound
    assert found["mean"]["distance"] == pytest.approx(measured.distance(predicted.spectrum))


@pytest.mark.parametrize("mid", [None, "tanh"])
def test_spectrum_says_what_it_costs(capsys, digits, mid):
    found = content(capsys, "spectrum", "--blocks", "2", *(["--mid", mid] if mid else []))["cost"]
    cost = rt.curvature.hessian_cost(rt.ShortcutNet(10, 2, 2, mid=mid), "square", digits)
    assert (found["method"], found["parameters"]) == (cost.method, cost.parameters)
    # LAPACK's copy and workspace beside the Hessian of 400 parameters.
    assert found["bytes"] == max(cost.bytes, 3 * 8 * 400**2)
    assert (cost.bytes < 3 * 8 * 400**2) == (mid is None)


def test_spectrum_averages_over_seeds(capsys):
    found = content(capsys, "spectrum", "--blocks", "1", "--init", "xavier", "--seeds", "2")
    one, two = (run["measured"]["largest"] for run in found["runs"])
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    assert found["mean"]["largest"] == pytest.approx((one + two) / 2)
    assert found["standard_deviation"]["largest"] == pytest.approx(abs(one - two) / 2**0.5)
    predicted = content(capsys, "spectrum", "--blocks", "1", "--init", "orthogonal", "--plain",
                        "--seeds", "2")  # fmt: skip
    one, two = (run["predicted"]["largest"] for run in predicted["runs"])
    assert predicted["predicted_mean"]["largest"] == pytest.approx((one + two) / 2) and one != two


def test_a_spread_is_that_of_several_finite_values(capsys):
    words = ["spectrum", "--blocks", "1", "--init", "zero", "--shortcut-depth", "3"]
    spread = content(capsys, *words, "--seeds", "2")["standard_deviation"]
    assert (spread["condition_number"], spread["largest"]) == (None, 0.0)
    found = content(capsys, *words, "--seeds", f"{2**63 - 1},")
    assert set(found["standard_deviation"].values()) == {None}
    assert found["runs"][0]["seed"] == 2**63 - 1


@pytest.mark.parametrize(
    ("options", "distance"),
    [
        ("--init zero", 1e-12),
        ("--init zero --shortcut-depth 1", 1e-12),
        ("--init zero --loss cross_entropy --hidden 4 --bias --mid tanh", 1e-12),
        ("--init orthogonal --plain", 1e-12),
        ("--init orthogonal --plain --loss cross_entropy", 1e-12),
        ("--scale 1e-7 --pre relu --mid relu --post relu", 1e-5),  # in proportion to the scale
    ],
    ids=str,
)
def test_spectrum_agrees_with_the_prediction(capsys, options, distance):
    found = content(capsys, "spectrum", "--blocks", "2", *options.split())
    assert found["runs"][0]["distance"] < distance


@pytest.mark.parametrize(
    "options", ["--init xavier", "--plain", "--init orthogonal --plain --mid tanh"], ids=str
)
def test_spectrum_says_where_theory_is_silent(capsys, options):
    found = content(capsys, "spectrum", "--blocks", "1", *options.split())
    assert found["predicted_mean"] is None
    assert found["note"].startswith("No prediction: theory covers")


def test_spectrum_goes_on_without_a_prediction(capsys):
    found = content(capsys, "spectrum", "--blocks", "1", "--mid", "softplus")
    assert "shifted_softplus" in found["note"]


def test_spectrum_writes_numbers_and_a_figure(capsys, tmp_path, monkeypatch):
    words = ["spectrum", "--blocks", "1", "--seeds", "5,3,4", "--out", str(tmp_path / "new")]
    figures = drawn(monkeypatch)
    code, out, _ = run(capsys, *words)
    (ax,) = figures[0].axes
    assert figures[0].get_size_inches().tolist() == [6.4, 4.8]
    said = labels(ax)
    assert said[:2] == ["other seeds, P = 200", "measured, seed 5, P = 200"] and len(said) == 3
    assert len(ax.patches) == 4  # three measured and a predicted one
    colors = [to_rgb(patch.get_edgecolor()) for patch in ax.patches]
    assert [r == g == b > 0.5 for r, g, b in colors] == [True, True, False, False]  # grey
    assert code == 0
    assert out.startswith("P = 200, method closed_form")
    written = json.loads((tmp_path / "new" / "spectrum.json").read_text())
    assert written["setup"]["blocks"] == 1
    assert (tmp_path / "new" / "spectrum.png").read_bytes().startswith(b"\x89PNG")


def cell(value):
    """A number of JSON as a table shows it."""
    if value is None or isinstance(value, int):
        return "" if value is None else f"{value:,}"
    return f"{float(value):.4g}"


@pytest.mark.parametrize(
    "verb",
    ["spectrum --blocks 1 --seeds 1", "spectrum --blocks 1 --seeds 2", "zero-point --blocks 3"],
)
def test_what_is_printed_is_what_json_says(capsys, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "200")
    figures = drawn(monkeypatch)
    found, said = content(capsys, *verb.split()), printed(capsys, *verb.split())
    assert not figures  # nobody asked for them
    symbols = ("M: gradient of the loss by the output times the input of a block, mean over "
               "samples; c: product of the activations' slopes at zero; s_1: largest singular "
               "value.")  # fmt: skip
    words = shortcut_commands.WORDS
    if "mean" in found:
        parts = [found[part] for part in ("mean", "standard_deviation", "predicted_mean")]
        rows = [["", "measured", "± sd", "predicted"]]
        rows += [[words[key], *(cell(part.get(key)) for part in parts)]
                 for key in words if key in found["mean"]]  # fmt: skip
        rows.append([words["a_priori_bound"], "", "", cell(found["runs"][0]["a_priori_bound"])])
        size = found["cost"]["bytes"] / 2**20
        expected = [f"P = 200, method closed_form, {size:.1f} MiB", *table(rows), found["note"],
                    symbols]  # fmt: skip
    else:
        rows = [[words[key], cell(found[key])] for key in words if found.get(key) is not None]
        expected = [f"{found['verdict']}: {found['reason']}", symbols, "P = 600, by closed form",
                    *table(rows)]  # fmt: skip
    assert [line.rstrip() for line in said.splitlines()] == expected and len(rows) > 8


def test_a_long_run_says_how_long(capsys, monkeypatch):
    monkeypatch.setattr("resid_theory.runtime.resources.matmul_rate", lambda device: 1e5)
    said = printed(capsys, "spectrum", "--blocks", 1, "--seeds", 2)  # 2.5 * 200³ / 1e5 s each
    assert said.splitlines()[0].endswith(" MiB, about 7 min")


NOTES = {
    "--init zero": "Predicted: the Hessian at zero weights; strict saddle: the smallest ",
    "--init zero --mid relu": "Predicted: the Hessian at zero weights; ",
    "--mid relu": "Predicted: the Hessian in the limit along the drawn weights; ",
    "--post relu": "Predicted: the Hessian in the limit along the drawn weights; ",
    "--mid tanh --pre relu": "Predicted: the Hessian at zero weights; ",
    "--init orthogonal --plain": "Predicted: the 1-shortcut net at zero, followed by the product "
    "of the layers; exact.",
    "--init orthogonal --plain --hidden 10": "Predicted: the 1-shortcut net at zero, followed",
    "--init orthogonal --plain --hidden 3": "No prediction: theory covers zero and near_zero",
    "--init orthogonal": "No prediction: theory covers zero and near_zero",
    "--init zero --plain": "No prediction: theory covers zero and near_zero",
}


@pytest.mark.parametrize("options", NOTES)
def test_a_prediction_says_what_it_rests_on(capsys, options):
    """Under torch's own default dtype, too, which a program has."""
    torch.set_default_dtype(torch.float32)
    found = content(capsys, "spectrum", "--blocks", "2", *options.split())
    assert found["note"].startswith(NOTES[options])
    silent = found["note"].startswith("No")
    assert (found["predicted_mean"] is None) == (found["runs"][0]["distance"] is None) == silent


# -- zero-point ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "blocks"), [(1, 2), (2, 100_000), (3, 100_000)])
def test_zero_point_is_exact_at_any_depth(capsys, digits, depth, blocks):
    found = content(capsys, "zero-point", "--blocks", blocks, "--shortcut-depth", depth)
    point = rt.theory.zero_point(digits, blocks=blocks, shortcut_depth=depth)
    same(found, point.spectrum.summary())
    assert (found["verdict"], found["order"]) == (point.verdict, point.order)
    assert (found["method"] == "dense solver") == (depth == 1)


def test_zero_point_of_one_layer_gives_limits_when_large(capsys, digits):
    found = content(capsys, "zero-point", "--blocks", "100000", "--shortcut-depth", "1")
    point = rt.theory.zero_point(digits, blocks=100_000, shortcut_depth=1)
    assert found["growth_rate"] == pytest.approx(point.growth_rate)
    assert found["max_magnitude"] == pytest.approx(1e5 * point.growth_rate)
    ratio = found["max_magnitude"] / found["bulk_percentile_10"]
    assert found["condition_number_10"] == pytest.approx(ratio)


def test_zero_point_counts_when_asked(capsys, monkeypatch):
    monkeypatch.setattr("resid_theory.theory.zero_weights.prediction._DENSE_EXACT", 0)
    monkeypatch.setattr(rt.theory.BlockToeplitz, "summary", lambda self: {"parameters": self.size})
    monkeypatch.setattr(rt.theory.BlockToeplitz, "max_magnitude", 7.0)
    found = content(capsys, "zero-point", "--shortcut-depth", "1", "--exact")
    assert (found["method"], found["max_magnitude"]) == ("inertia counts", 7.0)
    times = iter((1.0, 4.0))
    monkeypatch.setattr("resid_theory.runtime.resources.clock", lambda device: next(times))
    torch.set_default_dtype(torch.float32)
    asked = []
    monkeypatch.setattr(rt.theory.BlockToeplitz, "counts_below", lambda H, t: asked.append(t))
    said = printed(capsys, "zero-point", "--shortcut-depth", "1", "--exact").splitlines()
    assert [(t.tolist(), t.dtype) for t in asked] == [([0.0], torch.float64)]
    assert said[0] == "P = 400, 3 s a count of eigenvalues; about 500 counts, 25.0 min."


def test_counting_where_nothing_is_counted_is_told(capsys):
    usual, exact = (content(capsys, "zero-point", *more) for more in ([], ["--exact"]))
    told = ". --exact has no effect: these eigenvalues are not counted."
    assert exact.pop("reason") == usual.pop("reason") + told and exact == usual


def test_a_summary_takes_about_as_many_counts_as_are_told(monkeypatch, generator):
    monkeypatch.setattr("resid_theory.theory.zero_weights.counted_spectrum._DENSE", 0)
    count, made = rt.theory.BlockToeplitz.counts_below, []
    monkeypatch.setattr(
        rt.theory.BlockToeplitz, "counts_below", lambda H, t: made.append(len(t)) or count(H, t)
    )
    diagonal, lower = torch.randn(2, 50, 50, generator=generator)
    rt.theory.BlockToeplitz(diagonal=diagonal + diagonal.T, lower=lower, blocks=2).summary()
    assert sum(made) == pytest.approx(shortcut_commands._COUNTS, rel=0.2)


def test_zero_point_of_a_file_of_ones_own(capsys, tmp_path, generator):
    x = torch.randn(60, 2, 4, generator=generator)
    labels = x.flatten(1)[:, :3].argmax(1)
    np.savez(tmp_path / "own.npz", x=x.numpy(), y=labels.numpy())
    words = ["zero-point", "--data", str(tmp_path / "own.npz"), "--components", "3"]
    found = content(capsys, *words)
    whitened, _ = rt.data.whiten(x.flatten(1), 3)
    point = rt.theory.zero_point((whitened, labels), blocks=4, shortcut_depth=2)
    assert found["singular_values"] == point.singular_values
    assert found["escape_time"] == point.escape_time
    for wrong, own in ((x[0, 0], labels[:4]), (x[:4], labels), (x[:0], labels[:0])):
        np.savez(tmp_path / "own.npz", x=wrong.numpy(), y=own.numpy())
        said = error(capsys, *words)
        assert f"own.npz has x of shape {tuple(wrong.shape)} and y of shape" in said
    np.savez(tmp_path / "own.npz", images=x.numpy())
    assert "has arrays ['images'], needs x and y" in error(capsys, *words)


def test_zero_point_without_curvature_is_valid_json(capsys):
    found = content(capsys, "zero-point", "--shortcut-depth", "3")
    assert found["condition_number"] == "nan"
    assert found["nullity"] == found["parameters"]


def test_zero_point_writes_and_prints(capsys, tmp_path):
    folder = tmp_path / "new" / "folder"
    code, out, _ = run(capsys, "zero-point", "--out", str(folder))
    assert code == 0
    assert out.startswith("strict saddle")
    assert sorted(path.name for path in folder.iterdir()) == ["zero_point.json", "zero_point.png"]


def test_files_are_replaced_when_asked_for(capsys, tmp_path):
    (tmp_path / "zero_point.json").touch()
    run(capsys, "zero-point", "--out", str(tmp_path), "--overwrite")
    assert json.loads((tmp_path / "zero_point.json").read_text())["verdict"] == "strict saddle"


@pytest.mark.parametrize(("depth", "said"), [(1, True), (2, False)])
def test_an_activation_without_effect_is_told(capsys, depth, said):
    words = ["--mid", "tanh", "--shortcut-depth", depth, "--blocks", 1]
    note = content(capsys, "spectrum", *words)["note"]
    reason = content(capsys, "zero-point", *words)["reason"]
    assert ["--mid tanh has no effect" in text for text in (note, reason)] == [said, said]


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("spectrum --init xavir", "--init: unknown name 'xavir'; did you mean 'xavier'?"),
        ("spectrum --mid rleu", "--mid: unknown name 'rleu'; did you mean 'relu'?"),
        ("spectrum --loss squar", "--loss: unknown name 'squar'; did you mean 'square'?"),
        ("spectrum --loss model", "--loss: unknown name 'model'; choose from"),
        ("spectrum --data mnits", "--data: unknown name 'mnits'; did you mean 'mnist'?"),
        ("spectrum --blocks 0", "--blocks: got 0, needs at least 1"),
        ("spectrum --blocks x", "Invalid value for '--blocks'"),
        ("spectrum --shortcut-depth 0", "--shortcut-depth: got 0"),
        ("spectrum --shortcut-depth 1 --hidden 3", "--hidden: got 3"),
        ("spectrum --scale -1", "--scale: got -1.0"),
        ("spectrum --components 8", "--components: got 8, needs 10"),
        ("spectrum --seeds none", "--seeds: got 'none'"),
        ("spectrum --seeds 0", "--seeds: got 0"),
        ("spectrum --seeds=3,-1", "--seeds: got -1, needs at least 0"),
        ("spectrum --seeds 9223372036854775808,", "needs numbers below 2^63"),
        ("spectrum --seeds 1,99999999999999999999", "--seeds: got 99999999999999999999"),
        ("spectrum --bloks 3", "No such option: --bloks"),
        ("zero-point --mid softplus", "--mid: the activation is 0.693147 at zero"),
        ("demo --blocks 2,x", "--blocks: got '2,x'"),
        ("spectrum --seeds 1,2,1", "--seeds: got '1,2,1', needs every number once"),
        ("spectrum --model a:b", "No such option: --model"),
        ("demo --out {file}", "--out: {file} cannot be a folder: File exists"),
        ("spectrum --blocks 1 --out {file}/below", "--out: {file}/below cannot be a folder"),
        ("zero-point --out {written}", "zero_point.json: there already; needs --overwrite"),
        ("nothing", "No such command 'nothing'"),
    ],
    ids=str,
)
def test_errors_are_one_line_that_names_the_argument(capsys, tmp_path, words, says):
    places = {"file": tmp_path / "file", "written": tmp_path}
    for name in ("file", "zero_point.json"):
        (tmp_path / name).touch()
    assert says.format(**places) in error(capsys, *words.format(**places).split())
    assert (tmp_path / "zero_point.json").read_bytes() == b""


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "MemoryError"),
        (FileNotFoundError("no such\nfile"), 2, "no such file"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_goes_wrong_inside_a_verb(capsys, monkeypatch, fault, code, says):
    def fail(*_, **__):
        raise fault

    monkeypatch.setattr(rt.theory, "zero_point", fail)
    assert run(capsys, "zero-point")[::2] == (code, f"resid-theory: {says}\n")


@pytest.mark.parametrize("raised", [KeyboardInterrupt, typer.Abort, SystemExit])
def test_an_interrupt_that_typer_lets_through(capsys, monkeypatch, raised):
    def interrupted(words, **settings):
        assert settings == {"prog_name": "resid-theory", "standalone_mode": False}
        raise raised(*words)

    monkeypatch.setattr(typer.main, "get_command", lambda _: SimpleNamespace(main=interrupted))
    if raised is SystemExit:  # nobody's but the program's
        with pytest.raises(SystemExit, match="^a word$"):
            cli.main(["a word"])
    else:
        assert run(capsys, "a word") == (130, "", "resid-theory: interrupted\n")


def test_faults_of_the_program_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(rt.theory, "zero_point", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["zero-point"])


def test_too_large_a_net_is_refused_before_the_work(capsys):
    code, out, err = run(capsys, "spectrum", "--blocks", "40", "--hidden", "1000")
    assert code == 2
    assert out.startswith("P = 800,000")
    assert "GiB" in err


def test_the_version_is_the_librarys(capsys, monkeypatch):
    assert run(capsys, "--version") == (0, f"resid_theory {rt.__version__}\n", "")
    monkeypatch.setattr(sys, "argv", ["program", "--version"])
    assert (cli.main(), capsys.readouterr().out) == (0, f"resid_theory {rt.__version__}\n")


@pytest.mark.parametrize("words", ["--version", "zero-point --json"], ids=["at once", "at the end"])
def test_a_reader_who_has_left_ends_it_quietly(capsys, monkeypatch, words):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # typer wraps both
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert cli.main(words.split()) == 0  # and what is flushed from now on goes nowhere
    assert capsys.readouterr().err == ""


def test_without_a_verb_the_help_is_printed(capsys):
    said = printed(capsys)
    assert "Usage: resid-theory [" in said and "checkpoints" in said and "completion" not in said
    assert "completion" not in printed(capsys, "zero-point", "--help")
    assert "MODULE:CALLABLE" in printed(capsys, "cushions", "--help")


def test_what_stood_behind_an_option_is_told(capsys):
    for words in ("spectrum --blocks two", "spectrum --blocks=two"):
        assert error(capsys, *words.split()).endswith(" (got 'two')\n")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [("--help", 0, ("demo", "spectrum", "zero-point")),
     ("", 0, ("Usage", "checkpoints")),
     ("zero-point", 0, ("largest |lambda|", "lr x steps")),
     ("demo --seed 3", 2, ("resid-theory: No such option: --seed",))],
    ids=["help", "nothing", "ascii", "error"],
)  # fmt: skip
@pytest.mark.usefixtures("server")
def test_a_process_of_its_own(tmp_path, words, code, says):
    process = interrupted.server().Process(target=_program, args=(words.split(), tmp_path))
    process.start()
    process.join()
    out, err = ((tmp_path / name).read_text("ascii") for name in ("out", "err"))
    assert process.exitcode == code and "Traceback" not in err
    said, nothing = (err, out) if code else (out, err)
    assert nothing == "" and all(part in said for part in says)


def _program(words, folder):
    """What `python -m` does with the program, its streams in ASCII."""
    for name in [name for name in sys.modules if name.startswith("resid_theory")]:
        del sys.modules[name]
    sys.stdout, sys.stderr = (open(folder / name, "w", encoding="ascii") for name in ("out", "err"))
    sys.argv = ["resid-theory", *words]
    runpy.run_module("resid_theory.cli", run_name="__main__")


def test_integers_are_written_in_full_and_others_with_four_digits():
    assert [output.number(value) for value in (1234567, 1234567.0, None)] == [
        "1,234,567", "1.235e+06", "",
    ]  # fmt: skip


def test_streams_that_lack_a_character_spell_it():
    ascii_only, unicode = (io.TextIOWrapper(io.BytesIO(), encoding=e) for e in ("ascii", "utf-8"))
    output.spell_out(ascii_only, unicode)
    for stream in (ascii_only, unicode):
        stream.write("λ Ω ≤ é 中 ok")
        stream.flush()
    assert ascii_only.buffer.getvalue() == b"lambda omega <= e ? ok"
    assert unicode.buffer.getvalue().decode() == "λ Ω ≤ é 中 ok"
    with pytest.raises(UnicodeDecodeError):  # only for what is written
        b"\xff".decode("ascii", "spelled")


def test_spelled_columns_stay_in_line(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    output.spell_out(stream)
    monkeypatch.setattr(sys, "stdout", stream)
    output.say_table("<>", [("", "± sd"), ("|λ|", "1"), ("trace", "10")])
    stream.flush()
    assert stream.buffer.getvalue() == b"          +- sd\n|lambda|      1\ntrace        10\n"


@pytest.mark.parametrize("columns", [None, "22", "21"])
def test_words_at_the_end_of_a_row_follow_the_width(capsys, monkeypatch, columns):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    output.say_table("<><", [("", "epochs", "of"), ("net", "15", "two words"), ("x", "7", "")])
    rows = ["     epochs  of", "net      15  two words", "x         7"]
    if columns == "21":
        rows[1:2] = ["net      15", "    two words"]
    assert capsys.readouterr().out.splitlines() == rows
    monkeypatch.setenv("COLUMNS", "6")  # numbers stay in their row
    for rows in ([], [["net", "15"]]):
        output.say_table("<>", rows)
        assert capsys.readouterr().out == "net  15\n" * len(rows)


@pytest.mark.parametrize(("columns", "lines"), [(None, 1), ("40", 3)])
def test_a_file_has_lines_of_a_hundred_columns(capsys, monkeypatch, columns, lines):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    output.say("word " * 19)
    assert capsys.readouterr().out.count("\n") == lines
    for rest, count in (("e", 1), ("ef", 2)):  # 100 and 101 characters
        output.say("abc " * 24 + f"abc{rest}")
        assert columns or capsys.readouterr().out.count("\n") == count


def test_text_is_printed_as_it_is(capsys, monkeypatch):
    output.say("[red]3[/red] in a [b]")  # a path may be called so
    assert capsys.readouterr().out == "[red]3[/red] in a [b]\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    output.say("3 [b]")
    assert capsys.readouterr().out == "3 [b]\n"


@pytest.mark.parametrize(
    ("count", "as_json", "terminal", "shown"),
    [(2, False, True, True), (1, False, True, False), (2, True, True, False),
     (2, False, False, False)],
    ids=["several", "one", "json", "file"],
)  # fmt: skip
def test_progress_shows_on_a_terminal(capsys, monkeypatch, count, as_json, terminal, shown):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert list(output.bar(range(count), as_json, "cells")) == list(range(count))
    err = capsys.readouterr().err
    assert ("cells" in err) == shown and "\n" not in err  # the bar is wiped out in the end


def test_a_file_that_cannot_be_written_is_told_before_the_work(tmp_path):
    with pytest.raises(ValueError, match="^--out: .* (cannot be written: |no folder /proc)"):
        output.check_new("--out", pathlib.Path("/proc/a"), overwrite=True)  # root has the right
    with pytest.raises(ValueError, match=f"^--out: {tmp_path}: there already; needs another name"):
        output.check_new("--out", tmp_path, overwrite=True)


def counted(data, count: int = 3, *, share: float | None = None, word: str = "a"):
    """Count.

    Args:
        data: No word expresses them.
        count: Number of `things`,
            see :func:`~rt.all`.
        share: In [0, 1].
        word: A word.

    Returns:
        Nothing.
    """


def other(count: int = 4, *, word: str = "a"):
    """Count otherwise.

    Args:
        count: Another number.
        word: A word.
    """


def helps(sources, **settings):
    found = verbs.options_of(sources, **settings)
    assert all(option.default is None for option in found)
    return {option.name: option.annotation.__metadata__[0].help for option in found}


def test_options_have_the_words_and_the_defaults_of_the_library():
    count, word = "Number of things, see rt.all. Default: 3.", "A word. Default: a."
    assert helps({"": counted}) == {"count": count, "share": "In [0, 1].", "word": word}
    both = f"one: {count} two: Another number. Default: 4."
    assert helps({"one": counted, "two": other}, leave=["share"]) == {"count": both, "word": word}
    assert helps({"": counted, "two": other})["count"] == count  # the verb's own comes alone
    given = {"count": None, "word": "b", "share": 0.5}
    assert verbs.with_defaults(given, counted) == {"count": 3, "word": "b", "share": 0.5}
