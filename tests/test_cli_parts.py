"""Parts of the command line: words of errors, numbers, files and folders, to the letter."""

import functools
import json
import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from verbs import drawn, error

import resid_theory as rt
from resid_theory import cli
from resid_theory.cli import (
    app,
    fold_commands,
    net_commands,
    output,
    sources,
    train_commands,
    verbs,
)

# -- words -----------------------------------------------------------------------------------------


def test_every_character_that_ascii_lacks_has_a_word():
    output.spell_out()
    said = "±×·−–…≤≥‖→↔√∞²³⁻’≈∂ΣλΛé".encode("ascii", "spelled").decode()
    assert said == "+-x*--...<=>=||-><->sqrtinf^2^3^-'~dsumlambdalambdae"


@pytest.mark.parametrize(
    ("message", "becomes"),
    [
        ("net: no", "--model: no"),
        ("net weight: no", "--model: no"),
        ("net", "net"),
        ("nets: no", "nets: no"),
        ("data x: no: more", "--data: no: more"),
        ("data x of it: no", "--data x: no"),
    ],
)
def test_an_argument_becomes_an_option(message, becomes):
    options = {"net": "--model", "data": "--data", "data x of it": "--data x"}
    for kind in (ValueError, FileNotFoundError):
        with pytest.raises(kind) as caught, sources.renamed(**options):
            raise kind(message)
        assert str(caught.value) == becomes and type(caught.value) is kind
    with pytest.raises(KeyError), sources.renamed(net="--model"):
        raise KeyError("net: no")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["zero-point"], "--shortcut-depth: no"),
        (["curvature"], "shortcut_depth: no"),
    ],
)
def test_a_message_names_the_option_of_its_verb(words, says):
    assert app._named("shortcut_depth: no", words) == says
    assert app._named("blocks x: no", ["zero-point"]) == "--blocks x: no"
    assert app._named("No blocks: no", ["zero-point"]) == "No blocks: no"


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["spectrum", "--blocks", "two"], " (got 'two')"),
        (["spectrum", "--blocks=two=3", "--bias"], " (got 'two=3')"),
        (["spectrum", "--blocks"], " (got '')"),
        (["spectrum", "--bloks", "two"], ""),
    ],
)
def test_the_value_behind_an_option_is_given(words, given):
    fault = typer.BadParameter("no", param=SimpleNamespace(opts=["--blocks"]))
    assert app._given(fault, words) == given
    assert app._given(app._UsageError("no"), words) == ""


def test_numbers_in_a_text():
    assert output.whole_numbers("blocks", "2,4, 8,", 2) == [2, 4, 8]
    for text, says in {
        "2,x": "blocks: got '2,x', needs whole numbers such as 2,4,8",
        "": "blocks: got '', needs whole numbers such as 2,4,8",
        "2,4,2": "blocks: got '2,4,2', needs every number once",
        "2,1": "blocks: got 1, needs at least 2",
    }.items():
        with pytest.raises(ValueError) as caught:
            output.whole_numbers("blocks", text, 2)
        assert str(caught.value) == says


def test_json_is_strict(capsys):
    content = {"a": Path("x/y"), "b": (1, math.inf, [math.nan, {"c": -math.inf}]), "d": 0.5}
    expected = {"a": "x/y", "b": [1, "inf", ["nan", {"c": "-inf"}]], "d": 0.5}
    output.emit(content, "words", True)
    assert capsys.readouterr().out == json.dumps(expected, indent=2) + "\n"
    output.emit(content, "words  and [more]", False)
    assert capsys.readouterr().out == "words  and [more]\n"


# -- files -----------------------------------------------------------------------------------------


def test_files_are_named_in_a_sentence(tmp_path, monkeypatch):
    drawn(monkeypatch)
    both = output.Files.of("a", tmp_path / "new" / "b", tmp_path / "c.png", overwrite=False)
    named = [
        tmp_path / "new" / "b" / "a.json",
        tmp_path / "new" / "b" / "a.png",
        tmp_path / "c.png",
    ]
    assert both.save({"x": math.inf}, None) == f"{named[0]} written."
    assert json.loads(named[0].read_text()) == {"x": "inf"}
    assert not named[1].exists()
    said = output.Files("a", tmp_path / "new" / "b", tmp_path / "c.png").save({}, lambda: "figure")
    assert said == f"{named[0]} and {named[1]} and {named[2]} written."
    assert {path.read_bytes() for path in named[1:]} == {b"\x89PNG"}
    nothing = output.Files.of("a", None, None, overwrite=False)
    assert nothing.save({}, pytest.fail) == ""
    for out, plot, says in (
        (tmp_path / "new" / "b", None, f"--out: {named[0]}: there already; needs --overwrite to "
         "replace it, or another name"),
        (None, named[2], f"--plot: {named[2]}: there already; needs --overwrite to replace it, or "
         "another name"),
        (None, tmp_path / "a.jpg", f"--plot: got '{tmp_path}/a.jpg', needs a name ending in .png"),
        (None, tmp_path / "no" / "a.png", f"--plot: got '{tmp_path}/no/a.png', but there is no "
         f"folder {tmp_path}/no"),
        (named[0], None, f"--out: {named[0]} cannot be a folder: File exists"),
    ):  # fmt: skip
        with pytest.raises(ValueError) as caught:
            output.Files.of("a", out, plot, overwrite=False)
        assert str(caught.value) == says
    output.Files.of("a", tmp_path / "new" / "b", named[2], overwrite=True)


# -- nets and images -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "function"),
    [("curvature", "curvature_operator"), ("cushions", "layer_cushions"),
     ("cushions --blocks all", "stability.block_cushions"), ("evaluate", "evaluate")],
)  # fmt: skip
@pytest.mark.parametrize("option", ["--model", "--checkpoint"])
def test_errors_about_the_net_name_its_option(capsys, monkeypatch, words, function, option):
    monkeypatch.setattr(sources, "checkpoint_net", lambda name: torch.nn.Flatten())
    monkeypatch.setattr(sources, "model_net", lambda *given: torch.nn.Flatten())
    room, _, name = function.rpartition(".")
    owner = getattr(rt, room) if room else rt

    @functools.wraps(getattr(owner, name))
    def refuses(*given, **settings):
        raise ValueError("net: it has no parameters")

    monkeypatch.setattr(owner, name, refuses)
    monkeypatch.setattr(net_commands, "_with_targets", lambda net, found, loss: found)
    given = [*words.split(), option, "own:net", "--data", "digits", "--samples", "2"]
    assert error(capsys, *given) == f"resid-theory: {option}: it has no parameters\n"


def test_images_that_a_net_does_not_take_are_told_in_their_shape():
    found = rt.load_images("digits", samples=4, size=8, channels=1)
    net = torch.nn.Conv2d(3, 2, 3)
    with pytest.raises(ValueError) as caught:
        sources.run_once(net, found)
    assert str(caught.value).startswith(
        "--data: the net does not take images of 1 x 8 x 8 (see --channels, --size): "
    )
    seen = []
    one = torch.nn.Conv2d(1, 2, 3).float()
    one.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    result = sources.run_once(one, found)
    assert result.shape == (2, 2, 6, 6) and not result.requires_grad
    assert seen[0].dtype == torch.float32 and torch.equal(
        seen[0], found.inputs(found.pixels[:2], torch.float32)
    )
    assert sources.run_once(torch.nn.Flatten(), found).dtype == torch.get_default_dtype()


def test_images_of_a_folder_have_the_side_and_constants_that_are_asked_for(tmp_path, monkeypatch):
    found = rt.load_images("digits", samples=10, size=8)
    asked = []
    monkeypatch.setattr(
        rt, "load_image_folder", lambda *given, **how: asked.append((given, how)) or found
    )
    for how, size, shorter in (
        ({}, 224, 256), ({"size": 70}, 70, 80), ({"size": 70, "shorter": 71}, 70, 71),
    ):  # fmt: skip
        assert sources.images(str(tmp_path), **how) is found
        assert asked.pop() == ((str(tmp_path),), {"size": size, "shorter": shorter})
    imagenet = sources.images(str(tmp_path), constants="imagenet", samples=4, seed=3)
    generator = torch.Generator().manual_seed(3)
    rows = sorted(torch.randperm(10, generator=generator)[:4].tolist())
    assert imagenet.mean == (0.485, 0.456, 0.406) and imagenet.std == (0.229, 0.224, 0.225)
    assert torch.equal(imagenet.pixels, found.pixels[rows])
    assert torch.equal(imagenet.labels, found.labels[rows])


def test_a_report_is_written_with_all_of_its_numbers():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
    ).double()
    data = torch.randn(9, 3).double(), torch.arange(9) % 2
    for method, how in (("matrix-free", {"density": True, "probes": 2}), ("dense", {})):
        report = rt.spectrum(net, "cross_entropy", data, k=2, method=method, steps=6, **how)
        found, density = net_commands._report_content(report), report.density
        assert found.pop("density") == (density and {
            "nodes": density.nodes.tolist(), "weights": density.weights.tolist(),
            "known": density.known.tolist(),
        })  # fmt: skip
        ends = {
            name: [asdict(e) for e in getattr(report, name)] for name in ("largest", "smallest")
        }
        single = ("trace", "frobenius_norm", "index", "condition_number")
        plain = ("method", "reason", "matrix", "parameters", "products", "index_threshold",
                 "percentile")  # fmt: skip
        estimates = {name: getattr(report, name) for name in single}
        assert found == {
            **ends, **{name: e and asdict(e) for name, e in estimates.items()},
            **{name: getattr(report, name) for name in plain}, "notes": list(report.notes),
        }  # fmt: skip
        assert method == "dense" or density is not None


@pytest.mark.parametrize(
    ("about", "name"),
    [
        ({}, None), ({"data": "digits"}, "digits"), ({"settings": {"data": "mnist"}}, "mnist"),
        ({"settings": {}, "data": "digits"}, None), ({"settings": 3}, None), ({"data": 3}, None),
    ],
)  # fmt: skip
def test_what_a_net_was_trained_on(tmp_path, about, name):
    rt.save_checkpoint(tmp_path / "a.json", torch.nn.Linear(2, 2), about=about)
    assert fold_commands._trained_on(str(tmp_path / "a")) == name
    for end in (".pt", ".pt7", ".pth"):
        assert fold_commands._trained_on(f"nowhere{end}") is None


# -- trainings -------------------------------------------------------------------------------------


def test_the_name_of_a_folder_tells_trainings_apart():
    name = train_commands._name
    assert name("full", {}, "digits", None, 0) == "full.digits.seed-0"
    given = {"depth": 8, "identity": "dirac"}
    assert name("full", given, "/a/pictures", 5, 3) == (
        "full.depth-8.identity-dirac.pictures-5.seed-3"
    )


def test_a_training_is_told_with_its_last_numbers(tmp_path):
    net = rt.simplified_net(5, generator=0)
    metrics = [
        {"epoch": 1, "step": 4, "net": 0, "loss": 9.0},
        {"epoch": 2, "step": 8, "net": 0, "loss": 0.5, "error": 0.25, "penalty": 3.0},
    ]
    run = rt.training.Run(
        nets=(net,), recipe=rt.Recipe(epochs=2), seeds=(7,), metrics=metrics,
        first_losses=torch.zeros(1, 0), notes=(), finished=True, seconds=1.5, out=tmp_path,
    )  # fmt: skip
    assert train_commands._content(run, "digits", 32, None) == {
        "architecture": net.architecture, "parameters": sum(p.numel() for p in net.parameters()),
        "data": "digits", "samples": 32, "test_samples": None, "recipe": run.recipe.content(),
        "seed": 7, "device": "cpu", "epoch": 2, "step": 8, "loss": 0.5, "error": 0.25,
        "test_loss": None, "test_error": None, "seconds": 1.5,
        "checkpoint": f"{tmp_path}/net.json", "metrics": f"{tmp_path}/metrics.jsonl",
    }  # fmt: skip


def test_a_folder_to_test_on_needs_one_to_train_on(tmp_path):
    for data, test in ((str(tmp_path), "digits"), ("digits", str(tmp_path))):
        with pytest.raises(ValueError) as caught:
            train_commands._images(data, test, None, None, 0, False)
        assert str(caught.value) == (
            f"--test: got {test!r} with --data {data!r}, needs two folders of images; a named set "
            "has a test split of its own"
        )


# -- options ---------------------------------------------------------------------------------------


def test_texts_of_options_are_joined():
    assert verbs._joined({"": "a", "b": "c"}) == "a"
    assert verbs._joined({"x": "a", "y": "a"}) == "a"
    assert verbs._joined({"x": "a", "y": "b"}) == "x: a y: b"


def test_a_function_without_descriptions_has_none():
    def bare():
        """A headline."""

    assert verbs._described(bare) == {} and verbs._described(lambda: None) == {}


def test_options_of_a_verb_are_those_that_it_takes():
    names = verbs.option_names("sweep")
    assert names == ["out", "executor", "workers", "shard", "retries", "device", "gpus", "dry_run",
                     "as_json"]  # fmt: skip
    assert cli.main(["sweep", "--help"]) == 0


def test_options_of_measurements_are_not_those_of_the_verb():
    spectra = [option.name for option in net_commands.curvature_options()]
    assert "missed" in spectra and not {"progress", "density", "loss"}.intersection(spectra)
    cushions = [option.name for option in net_commands.cushion_options()]
    assert "kappa" in cushions and "progress" not in cushions
