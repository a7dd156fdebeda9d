"""Verbs on trained nets and on a user's own model: they say what the library measures."""

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from verbs import asked, content, drawn, error, labels, printed, table

import resid_theory as rt
from resid_theory import cli, training
from resid_theory.cli import net_commands, sources

SMALL = "--data digits --samples 6 --size 8".split()
OWN = [*SMALL, "--channels", "1", "--model"]
SOURCE = """
import torch
from torch import nn

net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def build():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 10)
    )

def number():
    return 3

def broken():
    raise KeyError("no\\nkey")
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A residual net and a plain one, too small to be good at anything."""
    folder, paths = tmp_path_factory.mktemp("nets"), []
    for identity in ("residual", "plain"):
        paths.append(folder / f"{identity}.json")
        rt.save_checkpoint(paths[-1], rt.simplified_net(5, identity=identity, generator=0))
    return paths


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a user's file, current while the test runs."""
    (tmp_path / "own_net.py").write_text(SOURCE)
    (tmp_path / "wanting.py").write_text("import a_library_that_is_not_there\n")
    (tmp_path / "nameless.py").write_text("raise ModuleNotFoundError('no name')\n")
    (tmp_path / "own_net.json").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield tmp_path
    for name in ("own_net", "wanting", "nameless"):
        sys.modules.pop(name, None)


def digits(channels=3):
    return rt.load_images("digits", samples=6, size=8, channels=channels)


# -- curvature -------------------------------------------------------------------------------------


def test_curvature_of_a_checkpoint_is_the_librarys(capsys, checkpoints):
    found = content(
        capsys,
        "curvature",
        f"--checkpoint={checkpoints[0]}",
        *SMALL,
        "--k",
        1,
        "--matrix",
        "empirical_fisher",
    )
    generator = torch.Generator().manual_seed(0)
    net = rt.load_checkpoint(checkpoints[0])
    operator = rt.curvature_operator(net, "cross_entropy", digits(), matrix="empirical_fisher")
    report = rt.spectrum(operator, k=1, generator=generator)
    plain = ("method", "reason", "matrix", "parameters", "products", "index_threshold",
             "percentile")  # fmt: skip
    expected = {name: getattr(report, name) for name in plain} | {
        "largest": [asdict(report.largest[0])], "smallest": [asdict(report.smallest[0])],
        "trace": asdict(report.trace), "frobenius_norm": asdict(report.frobenius_norm),
        "index": None, "condition_number": None, "density": None, "notes": list(report.notes),
        "net": str(checkpoints[0]), "data": "digits", "split": "train", "samples": 6, "size": 8,
        "channels": 3, "device": "cpu", "seed": 0, "state_dict": None, "k": 1,
        "loss": "cross_entropy",
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_a_killed_curvature_goes_on_from_its_folder(capsys, own):
    words = ["curvature", *OWN, "own_net:net", "--k", 1, "--probes", 2, "--method", "matrix-free"]
    once = content(capsys, *words, "--folder", "kept")
    for path in sorted(Path("kept").glob("product_*.json"))[2:]:
        path.unlink()  # as far as a killed run came
    assert content(capsys, *words, "--folder", "kept") == once == content(capsys, *words)
    assert cli.main([str(word) for word in [*words, "--seed", 1, "--folder", "kept"]]) == 2
    assert "--folder: kept/product_000000.json belongs to another run" in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["cross_entropy", "square"])
def test_curvature_of_ones_own_model_is_exact(capsys, own, loss):
    found = content(capsys, "curvature", *OWN, "own_net:build", "--seed", 3, "--loss", loss)
    torch.manual_seed(3)
    scope = {}
    exec(SOURCE, scope)
    x, y = digits(1).inputs(digits(1).pixels, torch.get_default_dtype()), digits(1).labels
    if loss == "square":
        y = torch.eye(10)[y]
    measured = rt.hessian_spectrum(scope["build"](), loss, (x, y))
    assert found["method"] == "dense"
    assert found["largest"][0]["value"] == pytest.approx(measured.largest, rel=1e-5)
    assert found["trace"]["value"] == pytest.approx(measured.trace, rel=1e-5)


def test_a_net_that_is_there_already_is_taken_and_the_rng_is_left(capsys, own):
    before = torch.get_rng_state()
    assert content(capsys, "curvature", *OWN, "own_net:net")["parameters"] == 650
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("wrt", "unit"), [("parameters", "weight"), ("inputs", "input"), ("0", "output of 0")]
)
def test_units_are_those_of_what_is_moved(capsys, own, monkeypatch, wrt, unit):
    figures = drawn(monkeypatch)
    words = "own_net:build", "--wrt", wrt, "--samples", 2, "--plot", "a.png"
    said = printed(capsys, "curvature", *OWN, *words)
    assert f"in units of loss / {unit}²." in said
    assert [ax.get_xlabel() for ax in figures[0].axes] == [f"eigenvalue (loss / {unit}²)"] * 2


def test_curvature_prints_and_draws(capsys, own, monkeypatch):
    figures = drawn(monkeypatch)
    said = printed(capsys, "curvature", *OWN, "own_net:build", "--plot", "a.png", "--out", "b")
    assert "own_net:build on digits" in said and "largest 1" in said and "condition number" in said
    assert [ax.get_xscale() for ax in figures[0].axes] == ["linear", "symlog"]
    assert figures[0].get_size_inches().tolist() == [12.8, 3.9]
    assert "a.png" in said and "curvature.png" in said and "curvature.json" in said
    assert (own / "a.png").read_bytes() == (own / "b" / "curvature.png").read_bytes()
    assert json.loads((own / "b" / "curvature.json").read_text())["net"] == "own_net:build"


@pytest.mark.parametrize(("more", "products"), [([], 4), (["--density"], 8)], ids=["", "density"])
def test_products_are_counted_before_a_matrix_free_run(capsys, own, more, products):
    words = ["curvature", *OWN, "own_net:build", "--k", 1, "--probes", 2, "--steps", 3, *more]
    free = [*words, "--method", "matrix-free"]
    said = printed(capsys, *free)
    assert said.startswith("P = 210, ") and f" at least {products} products, " in said
    assert printed(capsys, *words).startswith("own_net:build on digits\n")  # a small dense one
    found = content(capsys, *free)
    assert found["method"] == "matrix-free" and bool(found["density"]) == bool(more)


@pytest.mark.parametrize(("more", "told"), [(4350, False), (4351, True)])
def test_products_are_counted_beyond_5000_parameters(capsys, own, monkeypatch, more, told):
    asked(monkeypatch, "spectrum")
    text = f"\nnet.more = nn.Parameter(torch.ones({more}))\n"
    (own / "own_net.py").write_text(SOURCE.replace("\ndef build", f"{text}\ndef build"))
    assert cli.main(["curvature", *OWN, "own_net:net"]) == 2
    said = capsys.readouterr().out
    assert said.startswith("P = 5,001, ") if told else said == ""


def test_a_plot_asks_for_the_density(capsys, checkpoints, tmp_path, monkeypatch):
    asked = []

    def measure(*_, k: int = 5, probes: int = 10, steps: int = 100, density, **__):
        asked.append(density)
        raise ValueError("k: enough")

    monkeypatch.setattr(rt, "spectrum", measure)
    for more in ([], ["--plot", tmp_path / "a.png"]):
        words = ["curvature", "--checkpoint", checkpoints[0], *SMALL, *more, "--json"]
        assert error(capsys, *words) == "resid-theory: --k: enough\n"
    assert asked == [False, True]


# -- cushions --------------------------------------------------------------------------------------


def test_cushions_of_checkpoints_are_the_librarys(capsys, checkpoints):
    nets = [word for path in checkpoints for word in ("--checkpoint", path)]
    said = content(capsys, "cushions", *nets, *SMALL)
    found, settings = said["nets"], [said[word] for word in ("norm", "weight", "batchnorm")]
    assert settings == ["kernel", "identity_removed", "eval"]  # also what was not asked for
    assert list(found) == [str(path) for path in checkpoints]
    measured = rt.layer_cushions(rt.load_checkpoint(checkpoints[0]), digits())
    for row, layer in enumerate(measured.rows):
        one = found[str(checkpoints[0])]["layers"][layer]
        assert one["effective"]["median"] == float(measured.under("effective").median[row])
        assert one["identity_removed"]["minimum"] == float(measured.minimum[row])
    assert found[str(checkpoints[0])]["not_covered"] == dict(measured.not_covered)


def test_interlayer_cushions_of_blocks(capsys, checkpoints):
    words = ["cushions", "--checkpoint", checkpoints[0], *SMALL, "--seed", 1, "--blocks"]
    said = content(capsys, *words, "conv1,relu2", "--kappa", "total", "--batch", 40)
    found = said["nets"][str(checkpoints[0])]["layers"]
    assert [said[word] for word in ("kappa", "probes", "batch")] == ["total", 30, 40]
    assert "norm" not in said
    net = rt.load_checkpoint(checkpoints[0])
    options = {"blocks": ["conv1", "relu2"], "kappa": "total", "batch": 40}
    measured = rt.stability.block_cushions(net, digits(), **options, generator=1)
    assert [found[name]["median"] for name in measured.rows] == measured.median.tolist()


def test_cushions_of_ones_own_model_print_and_draw(capsys, own, monkeypatch):
    figures = drawn(monkeypatch)
    words = [*OWN, "own_net:build", "--norm", "operator", "--plot", "a.png", "--out", "b"]
    said = printed(capsys, "cushions", *words)
    assert "own_net:build on digits: layer cushions of 6 samples: operator norm" in said
    assert labels(figures[0].axes[0]) == ["own_net:build, |S| = 6"]
    assert figures[0].get_size_inches().tolist() == [6.4, 4.8]
    assert (own / "a.png").read_bytes() == (own / "b" / "cushions.png").read_bytes()
    assert list(json.loads((own / "b" / "cushions.json").read_text())["nets"]["own_net:build"][
        "layers"]) == ["0", "3"]  # fmt: skip


def test_figures_of_many_cushions_are_wide(capsys, checkpoints, tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    nets = []
    for seed in range(4):
        path = tmp_path / f"{seed}.json"
        rt.save_checkpoint(path, rt.simplified_net(8 if seed == 3 else 5, generator=seed))
        nets += ["--checkpoint", path]
    printed(capsys, "cushions", *nets, *SMALL, "--samples", 2, "--out", tmp_path)
    assert figures[0].get_size_inches().tolist() == [0.25 * 8 * 4, 4.8]  # layers of the deepest


def test_layers_and_weights_of_ones_own_model(capsys, own):
    scope = {}
    exec(SOURCE, scope)
    net = scope["build"]()
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, "own.pt")
    words = [*OWN, "own_net:build", "--state-dict", "own.pt", "--layers", "3"]
    (found,) = content(capsys, "cushions", *words)["nets"].values()
    measured = rt.layer_cushions(net, digits(1), layers=["3"])
    assert list(found["layers"]) == ["3"]
    assert found["layers"]["3"]["effective"]["median"] == float(measured.under("effective").median)


# -- what the library is asked ---------------------------------------------------------------------

OWN_NET = {"samples": 6, "size": 8, "channels": 1}
ASKED = [
    ("evaluate --checkpoint {net} --data digits --samples 2",
     {"load_images": {"split": "test", "samples": 2}, "evaluate": {"progress": True}}),
    ("evaluate --checkpoint {net} {small} --split train --top 2,1 --batch 3 --json",
     {"load_images": {"samples": 6, "size": 8, "progress": False},
      "evaluate": {"top": [2, 1], "batch": 3}}),
    ("evaluate {own} --json",
     {"load_images": {**OWN_NET, "split": "test", "progress": False}, "evaluate": {}}),
    ("curvature --checkpoint {net} --data digits",
     {"load_images": {"samples": 500},
      "curvature_operator": {"loss": "cross_entropy"}}),
    ("curvature {own} --split test --loss square --seed 3 --matrix gauss_newton --chunk 2"
     " --batchnorm batch --wrt 0 --k 2 --probes 3 --steps 4 --tolerance 0.5"
     " --method matrix-free --json",
     {"load_images": {**OWN_NET, "split": "test", "progress": False},
      "curvature_operator": {"loss": "square", "generator": 3, "matrix": "gauss_newton", "chunk": 2,
                             "batchnorm": "batch", "wrt": "0"},
      "spectrum": {"k": 2, "probes": 3, "steps": 4, "tolerance": 0.5,
                   "method": "matrix-free", "generator": 3}}),
    ("curvature {own} --density", {"spectrum": {"progress": True, "density": True}}),
    ("cushions --checkpoint {net} --data digits",
     {"load_images": {"samples": 500}, "layer_cushions": {"progress": True}}),
    ("cushions {own} --split test --layers 0,3 --norm operator --weight effective --batch 7"
     " --batchnorm batch --include-bias --json",
     {"load_images": {**OWN_NET, "split": "test", "progress": False},
      "layer_cushions": {"layers": ["0", "3"], "norm": "operator", "weight": "effective",
                         "batch": 7, "batchnorm": "batch", "include_bias": True}}),
    ("cushions --checkpoint {net} {small} --blocks all",
     {"stability.block_cushions": {"progress": True}}),
    ("cushions --checkpoint {net} {small} --blocks a,b --seed 3 --kappa total --method exact"
     " --probes 4 --batch 7 --batchnorm batch --json",
     {"stability.block_cushions": {"blocks": ["a", "b"], "generator": 3, "kappa": "total",
                                   "method": "exact", "probes": 4, "batch": 7,
                                   "batchnorm": "batch"}}),
    ("train --net simplified --depth 5 --data digits",
     {"load_images": {"split": "test"},
      "train": {"recipe": training.NOISE_STABILITY, "seed": 0,
                "out": Path("resid_theory_runs/simplified.depth-5.digits.seed-0")}}),
    ("train --net full --depth 8 {small} --seed 3 --epochs 20 --lr 0.2 --loss square --device cpu"
     " --save-seconds 7 --out there --json",
     {"load_images": {"split": "test", "size": 8, "progress": False},
      "train": {"recipe": training.NOISE_STABILITY_BN.scaled(20).change(lr=0.2, loss="square"),
                "seed": 3, "device": "cpu", "save_seconds": 7.0, "out": Path("there"),
                "progress": False}}),
    ("sweep a.toml --out there", {"run_sweep": {"grid": Path("a.toml"), "out": Path("there")}}),
    ("sweep grid.toml --out there --executor ray --workers 3 --shard 1/2 --retries 5 --device cuda"
     " --gpus 0.5 --json",
     {"run_sweep": {"grid": Path("grid.toml"), "out": Path("there"), "executor": "ray",
                    "workers": 3, "shard": "1/2", "retries": 5, "device": "cuda", "gpus": 0.5,
                    "progress": False}}),
    ("spectrum --blocks 1",
     {"data.load_whitened": {"name": "digits"},
      "hessian_spectrum": {"loss": "square", "progress": True}}),
    ("spectrum --blocks 1 --init zero --loss cross_entropy --json",
     {"data.load_whitened": {"name": "digits", "progress": False},
      "hessian_spectrum": {"loss": "cross_entropy"}}),
    ("zero-point", {"theory.zero_point": {"blocks": 4, "shortcut_depth": 2}}),
    ("zero-point --blocks 7 --shortcut-depth 1 --exact --mid tanh --pre relu --post tanh --bias"
     " --hidden 10 --loss cross_entropy",
     {"theory.zero_point": {"blocks": 7, "shortcut_depth": 1, "mid": "tanh", "pre": "relu",
                            "post": "tanh", "bias": True, "hidden": 10, "exact": True,
                            "loss": "cross_entropy"}}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), ASKED, ids=[words for words, _ in ASKED])
def test_verbs_ask_the_library_for_what_they_are_told(
    capsys, checkpoints, own, monkeypatch, words, expected
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    calls = asked(monkeypatch, *expected)
    given = {
        "net": checkpoints[0],
        "small": " ".join(SMALL),
        "own": " ".join([*OWN, "own_net:net"]),
    }
    assert cli.main(words.format(**given).split()) == 2
    assert capsys.readouterr().err.endswith("resid-theory: that is enough\n")
    assert dict(calls) == {name.rpartition(".")[2]: told for name, told in expected.items()}


# -- what ships ------------------------------------------------------------------------------------


def test_checkpoints_are_listed_with_their_errors(capsys, monkeypatch):
    found = content(capsys, "checkpoints")
    assert found["simplified_residual_20"]["about"]["test_error"] == 0.2338
    assert all(rt.training.build_net(each["architecture"]) for each in found.values())
    monkeypatch.setenv("COLUMNS", "400")
    said = printed(capsys, "checkpoints")
    assert "23.4 %" in said and "paper_scale/simplified_plain_20" in said
    assert said.count("%") == len(found)  # nets as `train` leaves them, too
    rows = [["name", "data", "epochs", "test error", "test loss", "net"]]
    for name, each in found.items():
        net, about = each["architecture"], each["about"]
        given = [f"{k}={v}" for k, v in net["arguments"].items() if k != "generator"]
        settings, last = about.get("settings", about), about.get("last", about)
        rows.append([
            name, settings.get("data", ""), str(rt.Recipe(**settings["recipe"]).epochs),
            f"{100 * last['test_error']:.1f} %", f"{last['test_loss']:.4g}",
            f"{net['builder']}({', '.join(given)})",
        ])  # fmt: skip
    said = printed(capsys, "checkpoints").splitlines()
    assert [line.rstrip() for line in said] == list(table(rows, left=(0, 1, 5)))


def test_a_set_of_less_than_500_images_is_measured_whole(capsys, checkpoints):
    words = "--data", "digits", "--size", 8, "--split", "test", "--layers", "fc"
    found = content(capsys, "cushions", "--checkpoint", checkpoints[0], *words)
    assert found["samples"] == 360


def test_a_warning_is_one_line(capsys):
    assert cli.main(["--version"]) == 0
    line = warnings.formatwarning(UserWarning("beware"), UserWarning, "app.py", 3, line="call()")
    assert line == "resid-theory: beware\n"


def test_images_of_a_set_are_those_to_test_on_of_side_32():
    found, expected = sources.images("digits", samples=3), rt.load_images("digits", "test", size=32)
    assert torch.equal(found.pixels, expected.pixels[:3]) and found.pixels.shape[1:] == (3, 32, 32)


# -- images ----------------------------------------------------------------------------------------


def test_images_of_a_folder_are_drawn(tmp_path):
    pil = pytest.importorskip("PIL.Image", reason="needs Pillow")
    for label in "ab":
        (tmp_path / label).mkdir()
        for shade in range(20):
            pil.new("L", (4, 4), shade).save(tmp_path / label / f"{shade:02}.png")
    some = sources.images(str(tmp_path), samples=12, size=4, seed=0)
    again, others = (
        sources.images(str(tmp_path), samples=12, size=4, seed=seed) for seed in (0, 1)
    )
    assert len(some) == 12 and set(some.labels.tolist()) == {0, 1}
    places = list(zip(some.labels.tolist(), some.pixels[:, 0, 0, 0].tolist(), strict=True))
    assert places == sorted(places)  # as the files are named
    assert sources.images(str(tmp_path)).pixels.shape == (40, 3, 224, 224)
    with pytest.raises(ValueError, match="samples: got 41"):
        sources.images(str(tmp_path), samples=41, size=4)
    assert torch.equal(some.pixels, again.pixels) and not torch.equal(some.pixels, others.pixels)


@pytest.mark.parametrize(
    ("about", "other"),
    [({}, None), ({"data": "digits"}, None), ({"settings": {"data": "mnist"}}, "mnist")],
)
def test_evaluate_tells_what_else_a_net_was_trained_on(capsys, tmp_path, about, other):
    net = rt.simplified_net(5, identity="residual", generator=0)
    path, again = tmp_path / "a.json", tmp_path / "b.json"
    rt.save_checkpoint(path, net, about=about)
    printed(capsys, "fold", "--checkpoint", path, "--out", again)
    for name in (path, again):
        said = printed(capsys, "evaluate", "--checkpoint", name, *SMALL)
        told = f"\n{name} was trained on {other}, not on digits.\n"
        assert told in said if other else "trained" not in said


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("curvature --checkpoint nowhere --data digits", "--checkpoint: no checkpoint 'nowhere'"),
        ("curvature --checkpoint {net} --data digits --blocks 3", "No such option: --blocks"),
        ("curvature --checkpoint {net}", "Missing option '--data'"),
        ("curvature --data digits", "--checkpoint, --model: got neither, needs one of them"),
        ("curvature --data digits --checkpoint {net} --model a:b", "--model: got both"),
        ("curvature --checkpoint {net} {small} --state-dict a.pt", "--state-dict: got weights"),
        (
            "curvature {small} --model own_net:net --state-dict a.pt",
            "no checkpoint 'a.pt': there is no such file\n",
        ),
        (
            "curvature {small} --model torch.nn:Linear",
            "missing 2 required positional arguments: 'in_features' and 'out_features'\n",
        ),
        (
            "curvature {small} --model own_net:net --state-dict own_net.json",
            "--state-dict: own_net.json: the manifest is damaged",
        ),
        ("cushions --checkpoint {net} {small} --layers a,b", "--layers: "),
        (
            "cushions --checkpoint {net} {small} --layers a --blocks all",
            "--layers: got it together",
        ),
        ("cushions --checkpoint {net} {small} --plot new/a.png", "there is no folder new"),
        ("cushions --checkpoint {net} --data cifr10", "--data: unknown name 'cifr10'"),
        ("cushions --checkpoint {net} --data pictures", "'a folder with one folder per class'"),
        ("evaluate --checkpoint {net} --data digits --shorter 9", "--shorter: got it with --data"),
        ("evaluate --checkpoint {net} --data digits --constants imagenet", "--constants: got it"),
        ("sweep nowhere.toml --out a", "resid-theory: grid: there is no file nowhere.toml"),
        ("cushions --checkpoint {net} --data digits --samples 9999", "--samples: got 9999"),
        ("cushions --checkpoint {net} {small} --channels 1", "--data: the net does not take"),
        ("cushions --checkpoint {net} {small} --norm kernl", "--norm: unknown name 'kernl'"),
        ("cushions --checkpoint {net} {small} --blocks blok1", "--blocks: unknown name 'blok1'"),
        ("cushions --checkpoint {net} {small} --blocks all --norm kernel", "--norm: got 'kernel'"),
        ("cushions --checkpoint {net} {small} --kappa total", "--kappa: got 'total' for cushions"),
        ("cushions --checkpoint {net} {small} --plot a.jpg", "--plot: got 'a.jpg', needs a name"),
        ("curvature --checkpoint {net} {small} --device cud", "--device: got 'cud'"),
        ("curvature --checkpoint {net} {small} --k 0", "--k: got 0, needs at least 1"),
        ("curvature --checkpoint {net} {small} --matrix hesian", "--matrix: unknown name"),
        ("curvature --checkpoint {net} {small} --loss squar", "--loss: unknown name 'squar'"),
        ("curvature {small} --model own_net", "--model: got 'own_net', needs module:callable"),
        (
            "curvature {small} --model no_such:net",
            "--model: got 'no_such:net', no module 'no_such'",
        ),
        ("curvature {small} --model own_net:bild", "unknown name 'bild'; did you mean 'build'?"),
        ("curvature {small} --model own_net:number", "own_net:number returns int, needs a torch"),
        ("curvature {small} --model own_net:broken", "KeyError: 'no\\nkey' (own_net.py, line 16)"),
        ("curvature {small} --model wanting:net", "raised ModuleNotFoundError: No module named"),
        ("curvature {small} --model nameless:net", "raised ModuleNotFoundError: no name (nameless"),
        (
            "curvature {small} --model own_net:_net",
            "--model: in own_net: unknown name '_net'; did "
            "you mean 'net'? choose from 'net', 'build', 'number', 'broken'\n",
        ),
        ("fold --checkpoint {net} --out own_net.json", "there already; needs --overwrite"),
        ("fold --checkpoint {net} --out a.pt7", "--checkpoint: got Sequential, which is no Dirac"),
        ("curvature --checkpoint {net} {small} --folder own_net.py", "--folder: own_net.py cannot"),
    ],
    ids=lambda value: value if "--" in value and "{" in value else None,
)
def test_errors_are_one_line_that_names_the_option(capsys, checkpoints, own, words, says):
    given = words.format(net=checkpoints[0], small=" ".join(SMALL)).split()
    assert says in error(capsys, *given)


class Operator(list):
    """Keeps what it is multiplied by."""

    shape, dtype = (7, 9), torch.float32

    def __matmul__(self, vector):
        self.append((vector.shape, vector.dtype, vector.device.type))


def test_an_estimate_is_the_time_of_the_second_product(monkeypatch, cuda):
    times, operator = iter((0.0, 9.0, 10.0, 13.0)), Operator()
    operator.device = cuda
    monkeypatch.setattr("resid_theory.runtime.resources.clock", lambda device: next(times))
    monkeypatch.setattr("resid_theory.runtime.resources.peak_bytes", lambda device: 3 << 30)
    said = net_commands._estimate(operator, k=5, probes=2, steps=15)
    assert said == "P = 7, 3 s a product, 3.0 GiB used; at least 40 products, 2.0 min."
    assert operator == [((7, 1), torch.float32, "cuda")] * 2


def test_the_current_directory_is_searched_first_and_named_once(own, monkeypatch):
    (own / "elsewhere").mkdir()
    (own / "elsewhere" / "own_net.py").write_text("net = None")
    monkeypatch.setattr(sys, "path", [str(own / "elsewhere"), *sys.path])
    for _ in range(2):
        assert isinstance(sources.model_net("own_net:net", 0), torch.nn.Module)
    assert sources.search_here() == str(own) and sys.path.count(str(own)) == 1


def test_help_says_that_code_is_run(capsys):
    said = " ".join(printed(capsys, "curvature", "--help").split())
    assert "runs the code" in said.replace("│ │ ", "")
    assert "operator:" not in said  # of two functions with an option, the verb's own describes it
