"""The command line: every verb says what the library says, and errors are one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from verbs import content, error

import resid_theory as rt
from resid_theory import cli
from resid_theory.cli import output

ROOT = Path(__file__).resolve().parents[1]


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
    out = tmp_path_factory.mktemp("demo")
    assert cli.main(["demo", "--blocks", "1,2", "--out", str(out)]) == 0
    return out, json.loads((out / "demo.json").read_text())


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
    assert (demo[0] / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_demo_prints_where_its_files_are(capsys, tmp_path):
    code, out, _ = run(capsys, "demo", "--blocks", "1", "--out", str(tmp_path))
    assert code == 0
    assert "demo.png" in out.replace("\n", "")
    assert "predicted" in out and "measured" in out


def test_small_problems_use_one_thread_and_leave_the_number_as_it_was():
    torch.set_num_threads(2)
    with cli.shortcut_commands.threads_for(0):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with cli.shortcut_commands.threads_for(10**6):
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


def test_spectrum_says_what_it_costs(capsys, digits):
    found = content(capsys, "spectrum", "--blocks", "2", "--mid", "tanh")["cost"]
    cost = rt.curvature.hessian_cost(rt.ShortcutNet(10, 2, 2, mid="tanh"), "square", digits)
    assert (found["method"], found["parameters"]) == (cost.method, cost.parameters)
    assert found["bytes"] >= cost.bytes


def test_spectrum_averages_over_seeds(capsys):
    found = content(capsys, "spectrum", "--blocks", "1", "--init", "xavier", "--seeds", "2")
    one, two = (run["measured"]["largest"] for run in found["runs"])
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    assert found["mean"]["largest"] == pytest.approx((one + two) / 2)
    assert found["standard_deviation"]["largest"] == pytest.approx(abs(one - two) / 2**0.5)


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


def test_spectrum_writes_numbers_and_a_figure(capsys, tmp_path):
    words = ["spectrum", "--blocks", "1", "--seeds", "2", "--out", str(tmp_path / "new")]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert out.startswith("P = 200, method closed_form")
    written = json.loads((tmp_path / "new" / "spectrum.json").read_text())
    assert written["setup"]["blocks"] == 1
    assert (tmp_path / "new" / "spectrum.png").read_bytes().startswith(b"\x89PNG")


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
    np.savez(tmp_path / "own.npz", images=x.numpy())
    assert "has arrays ['images'], needs x and y" in error(capsys, *words)


def test_zero_point_without_curvature_is_valid_json(capsys):
    found = content(capsys, "zero-point", "--shortcut-depth", "3")
    assert found["condition_number"] == "nan"
    assert found["nullity"] == found["parameters"]


def test_zero_point_writes_and_prints(capsys, tmp_path):
    code, out, _ = run(capsys, "zero-point", "--out", str(tmp_path))
    assert code == 0
    assert out.startswith("strict saddle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zero_point.json", "zero_point.png"]


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
        ("spectrum --data mnits", "--data: unknown name 'mnits'; did you mean 'mnist'?"),
        ("spectrum --blocks 0", "--blocks: got 0, needs at least 1"),
        ("spectrum --blocks x", "Invalid value for '--blocks'"),
        ("spectrum --shortcut-depth 0", "--shortcut-depth: got 0"),
        ("spectrum --shortcut-depth 1 --hidden 3", "--hidden: got 3"),
        ("spectrum --scale -1", "--scale: got -1.0"),
        ("spectrum --components 8", "--components: got 8, needs 10"),
        ("spectrum --seeds none", "--seeds: got 'none'"),
        ("spectrum --seeds 0", "--seeds: got 0"),
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


def test_faults_of_the_program_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(rt.theory, "zero_point", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["zero-point"])


def test_too_large_a_net_is_refused_before_the_work(capsys):
    code, out, err = run(capsys, "spectrum", "--blocks", "20000")
    assert code == 2
    assert out.startswith("P = 4,000,000")
    assert "GiB" in err


def test_the_version_is_the_librarys(capsys):
    assert run(capsys, "--version") == (0, f"resid_theory {rt.__version__}\n", "")


def test_what_stood_behind_an_option_is_told(capsys):
    for words in ("spectrum --blocks two", "spectrum --blocks=two"):
        assert error(capsys, *words.split()).endswith(" (got 'two')\n")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [("--help", 0, ("demo", "spectrum", "zero-point")),
     ("", 0, ("Usage", "checkpoints")),
     ("zero-point", 0, ("largest |lambda|", "lr x steps")),
     ("spectrum --init xavir", 2, ("resid-theory: --init: ",))],
    ids=["help", "nothing", "ascii", "error"],
)  # fmt: skip
def test_a_process_of_its_own(words, code, says):
    done = subprocess.run(
        [sys.executable, "-m", "resid_theory.cli", *words.split()],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == code and "Traceback" not in done.stderr
    said, nothing = (done.stderr, done.stdout) if code else (done.stdout, done.stderr)
    assert nothing == "" and all(part in said for part in says)


def test_integers_are_written_in_full_and_others_with_four_digits():
    assert [output.number(value) for value in (1234567, 1234567.0, None)] == [
        "1,234,567", "1.235e+06", "",
    ]  # fmt: skip
