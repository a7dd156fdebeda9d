"""Sweeps: finished cells are kept through kills, and wrong grids are refused before any work."""

import hashlib
import importlib.util
import inspect
import itertools
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import interrupted
import numpy as np
import pytest
import sweep_cells
import torch
from sweep_cells import Trial
from tolerances import assert_same
from verbs import content, error, printed

import resid_theory as rt
from resid_theory import cli, sweep
from resid_theory.data import one_hot, whiten
from resid_theory.runtime import store
from resid_theory.sweep import Task, config, driver, image_tasks, processes, ray_executor, registry
from resid_theory.sweep.image_tasks import CurvatureTask, CushionsTask, TrainingTask
from resid_theory.sweep.results import Cell, Results
from resid_theory.sweep.setup import Setup
from resid_theory.sweep.worker import Options, Report, attempt

pytestmark = pytest.mark.usefixtures("server")
ROOT = Path(__file__).resolve().parents[1]
GRID = {"task": "hessian", "blocks": [1, 2], "shortcut_depth": [1, 2], "seed": [0, 1, 2, 3, 4]}
FORKS = "forkserver" in multiprocessing.get_all_start_methods()
needs_kill = pytest.mark.skipif(not FORKS, reason="there is no SIGKILL here")


@pytest.fixture
def trial(monkeypatch, tmp_path):
    """A grid of trials; ``starts`` counts how often each was begun."""
    monkeypatch.setitem(registry.TASKS, "trial", Trial)
    (tmp_path / "logs").mkdir()
    return {"task": "trial", "folder": str(tmp_path / "logs")}


def starts(grid):
    folder = grid["folder"]
    return {int(f[:-4]): os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder)}


def run(grid, out, executor="serial", **keywords):
    if executor == "process" and FORKS:
        interrupted.server()
    return rt.run_sweep(grid, out, executor=executor, **{"progress": False, **keywords})


# -- cells -----------------------------------------------------------------------------------------


def test_the_grid_is_the_product_of_its_axes():
    cells = sweep.grid_of(GRID)
    found = {(c.settings.blocks, c.settings.shortcut_depth, c.settings.seed) for c in cells}
    assert len(cells) == len({cell.key for cell in cells}) == len(found) == 20


def test_tables_are_several_grids_and_equal_cells_are_one(tmp_path):
    file = tmp_path / "grid.toml"
    file.write_text(
        'task = "hessian"\nseed = [0, 1]\n[[grid]]\nblocks = [1, 2]\n[[grid]]\nblocks = 2\n'
        'init = ["near_zero", "xavier"]\n'
    )
    found = [(c.settings.blocks, c.settings.init, c.settings.seed) for c in sweep.grid_of(file)]
    # Of the second table the two near_zero cells are in the first.
    assert sorted(found) == [(b, "near_zero", s) for b in (1, 2) for s in (0, 1)] + [
        (2, "xavier", 0), (2, "xavier", 1)]  # fmt: skip


def test_too_many_cells_are_refused_before_any_is_made(monkeypatch):
    grid = {"task": "hessian", "seed": list(range(1001)), "blocks": list(range(1, 1001))}
    with monkeypatch.context() as patch:
        patch.setattr("resid_theory.sweep.grid._MOST", 20)
        assert len(sweep.grid_of(GRID)) == 20
    with pytest.raises(ValueError, match="^grid: got 1,001,000 cells, needs at most 1,000,000$"):
        sweep.grid_of(grid)


def key(**changes):
    return Cell.of({"task": "hessian", **changes}).key


def test_the_key_depends_on_all_that_the_result_does(monkeypatch):
    usual = key()
    assert key(blocks=4, scale=0.01) == usual  # the defaults
    assert key(scale=1) == key(scale=1.0) != usual
    assert len({usual, key(seed=1), key(init="zero"), key(plain=True)}) == 4
    monkeypatch.setattr(config, "SCHEMA", config.SCHEMA + 1)
    assert key() != usual


ON_IMAGES = {"net": "simplified", "data": "digits", "size": 32, "channels": 3}
MEASURED = {**ON_IMAGES, "samples": 500, "batchnorm": "eval"}
USUAL = {
    "hessian": {"data": "digits", "components": 10, "blocks": 4, "shortcut_depth": 2,
                "plain": False, "bias": False, "init": "near_zero", "scale": 0.01,
                "loss": "square"},
    "curvature": {**MEASURED, "loss": "cross_entropy", "matrix": "hessian", "k": 1,
                  "density": False, "tolerance": 0.001},
    "cushions": {**MEASURED, "norm": "kernel", "weight": "identity_removed"},
    "training": ON_IMAGES,
}  # fmt: skip


@pytest.mark.parametrize("task", USUAL)
def test_the_key_is_the_hash_of_all_settings(task):
    """Also of those at their defaults, so that another default is another cell."""
    cell = Cell.of({"task": task})
    assert cell.config == {"task": task, "seed": 0, **USUAL[task]} and str(cell) == task
    text = json.dumps({"schema": 1, **cell.config}, sort_keys=True)
    assert cell.key == hashlib.sha256(text.encode()).hexdigest()[:32]


def built(depth, size: int, rate: float | None = None, name: str = "x", parts: tuple = (),
          both: int | str = 0, flag: bool = True):  # fmt: skip
    """What builds something from settings."""


def test_arguments_of_a_call_become_fields_that_are_none():
    assert config.arguments_of(built) == {
        "size": (int, None), "rate": (float, None), "name": (str, "x"), "flag": (bool, True),
    }  # fmt: skip

    @config.with_arguments_of(built, leave=("flag",))
    class Settings(config.Config):
        rate: float = 0.5

    assert {field.name: field.default for field in fields(Settings)} == {
        "rate": 0.5, "size": None, "name": None,
    }  # fmt: skip
    assert Settings(rate=1, size=2).content() == {"rate": 1.0, "size": 2}
    with pytest.raises(TypeError, match="positional"):
        Settings(1)
    with pytest.raises(ValueError, match="^size: got 2.5, needs a whole number$"):
        Settings(size=2.5)
    assert config.arguments_of(Settings)["size"] == (int, None)


def test_the_key_of_a_checkpoint_is_that_of_its_weights(tmp_path):
    keys = []
    for seed in (0, 1):
        rt.save_checkpoint(tmp_path / "net.json", rt.simplified_net(5, generator=seed))
        values = {"task": "cushions", "checkpoint": str(tmp_path / "net.json")}
        keys.append(Cell.of(values).key)
    assert keys[0] != keys[1]


WRONG = {
    'task = "hesian"': "task: unknown name 'hesian'; did you mean 'hessian'?",
    "seed = 1": "task: is missing, needs one of hessian, curvature, training, cushions or mod",
    'task = "nowhere:Norm"': "task: 'nowhere:Norm' cannot be imported: ModuleNotFoundError",
    'task = "json:dumps"': "task: got 'json:dumps', needs a subclass of resid_theory.sweep.Task",
    'task = "hessian"\ndata = "nowhere.npz"': "data: there is no file nowhere.npz",
    'task = "hessian"\nblock = 2': "key: unknown name 'block'; did you mean 'blocks'?",
    'task = "hessian"\nblocks = [1, "two"]': "blocks: got 'two', needs a whole number",
    'task = "hessian"\nblocks = 0': "blocks: got 0, needs at least 1",
    'task = "hessian"\nseed = [[1, 2]]': "seed: got [1, 2], needs a whole number",
    'task = "hessian"\nseed = []': "seed: got [], needs at least one value",
    'task = "hessian"\nseed = -1': "seed: got -1, needs at least 0",
    'task = "hessian"\nscale = nan': "Out of range float values are not JSON compliant",
    'task = "hessian"\nplain = 1': "plain: got 1, needs true or false",
    'task = "hessian"\ninit = "xavir"': "init: unknown name 'xavir'; did you mean 'xavier'?",
    'task = "hessian"\ncomponents = 5': "components: got 5, needs 10",
    'task = "hessian"\ngrid = 3': "grid: got 3, needs tables that begin with [[grid]]",
    'task = "training"\nnet = "full"\nwidth = 2': "width: got 2, which 'full' does not have",
    'task = "training"\nlr = [0.1, 0]': "lr: got 0.0, needs a finite number above 0",
    'task = "cushions"\ncheckpoint = "nowhere"': "checkpoint: name: no checkpoint 'nowhere'",
    'task = "curvature"\nmatrix = "fischer"': "matrix: unknown name 'fischer'",
    'task = "hessian"\nblocks = [1,': "not valid TOML",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_file_is_one_clear_error(capsys, tmp_path, text):
    file = tmp_path / "grid.toml"
    file.write_text(text)
    said = error(capsys, "sweep", file, "--out", tmp_path / "out")
    assert said.startswith("resid-theory: grid.toml: ") and WRONG[text] in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"executor": "proces"}, "executor: unknown name 'proces'"),
        ({"workers": 0}, "workers: got 0"),
        ({"retries": -1}, "retries: got -1"),
        ({"shard": "4/4"}, "shard: got '4/4', needs i/n"),
        ({"shard": "half"}, "shard: got 'half'"),
        ({"gpus": -0.5}, "gpus: got -0.5, needs"),
        ({"device": "cud"}, "device: got 'cud', which torch cannot use"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_wrong_arguments(tmp_path, keywords, says):
    with pytest.raises(ValueError, match=says):
        run(GRID, tmp_path / "out", **keywords)


# -- tasks -----------------------------------------------------------------------------------------


def test_hessians_are_the_librarys(tmp_path):
    report = run({"task": "hessian", "blocks": 1, "init": ["near_zero", "zero"]}, tmp_path)
    table = rt.sweep.load_results(tmp_path, arrays=True).set_index("init")
    net = rt.initialize(
        rt.ShortcutNet(10, 1, 2), "near_zero", generator=torch.Generator().manual_seed(0)
    )
    spectrum = rt.hessian_spectrum(net, "square", rt.load_whitened("digits"))
    assert report.done == 2
    run({"task": "hessian", "shortcut_depth": 3, "init": "zero", "blocks": 1}, tmp_path / "deep")
    infinite = rt.sweep.load_results(tmp_path / "deep").condition_number.iloc[0]
    assert isinstance(infinite, float) and not math.isfinite(infinite)
    numbers = {"max_magnitude": spectrum.max_magnitude, **spectrum.summary()}
    assert {name: table[name]["near_zero"] for name in numbers} == numbers
    assert torch.equal(torch.from_numpy(table.eigenvalues["near_zero"]), spectrum.eigenvalues)


def test_ones_own_data_are_part_of_the_key(tmp_path):
    file, keys = tmp_path / "own.npz", []
    grid = {"task": "hessian", "data": str(file), "components": 3, "blocks": 1, "init": "zero"}
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).numpy()
    for classes in (3, 2):
        np.savez(file, x=x, y=np.arange(40) % classes)
        keys.append(Cell.of(grid).key)
    assert keys[0] != keys[1]
    with pytest.raises(
        ValueError, match=f"components: got 3, needs 2: .*{file.name} has 2 targets"
    ):
        Cell.of(grid).settings.run(tmp_path, "cpu")
    labels = torch.arange(40) % 3
    for inputs in (x, x**3):  # the second time from a file that has changed
        np.savez(file, x=inputs, y=labels)
        run(grid, tmp_path / "out")
        own = rt.Regression(whiten(torch.tensor(inputs), 3)[0], one_hot(labels, 3))
        point = rt.theory.zero_point(own, blocks=1, shortcut_depth=2)
        found = rt.sweep.load_results(tmp_path / "out").condition_number[Cell.of(grid).key]
        assert found == pytest.approx(point.condition_number)
    targets = np.linspace(-1, 1, 120, dtype=np.float32).reshape(40, 3)
    np.savez(file, x=x, y=targets)
    assert_same(
        Setup(data=str(file), components=3).load(progress=False).y, torch.tensor(targets).double()
    )


OWN = """
from dataclasses import dataclass
from resid_theory.sweep import Outcome, Task

@dataclass(frozen=True, kw_only=True)
class Power(Task):
    base: int
    exponent: int = 2

    def run(self, folder, device):
        return Outcome(numbers={"power": self.base**self.exponent}, arrays={})
"""


def test_a_task_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("powers_of_mine.py").write_text(OWN)
    Path("grid.toml").write_text('task = "powers_of_mine:Power"\nbase = [2, 3]\nexponent = [2, 3]')
    Path("less.toml").write_text('task = "powers_of_mine:Power"')
    printed(capsys, "sweep", "grid.toml", "--out", "out", "--executor", "serial")
    assert sorted(rt.sweep.load_results("out").power) == [4, 8, 9, 27]
    said = error(capsys, "sweep", "less.toml", "--out", "out")
    assert "less.toml: base: is missing, Power needs it" in said
    assert str(Cell.of({"task": "powers_of_mine:Power", "base": 2})).endswith("Power base=2")


def test_a_task_without_a_run_and_data_that_are_not_there(tmp_path):
    with pytest.raises(NotImplementedError):
        Task().run(tmp_path, "cpu")
    with pytest.raises(ValueError, match="^data: there is no file nowhere.npz; needs one with arr"):
        Setup(data="nowhere.npz").load(progress=False)


SMALL = {"depth": 5, "size": 8, "samples": 32}


def test_a_training_stretches_the_papers_schedule():
    papers = rt.training.presets.KINDS["simplified"].recipe
    assert TrainingTask(lr=0.5).recipe() == papers.change(lr=0.5)
    assert TrainingTask(lr=0.5, epochs=40).recipe() == papers.scaled(40).change(lr=0.5)


def test_curvature_cushions_and_trainings(tmp_path):
    grids = [
        {"task": "curvature", "k": 1, "matrix": "empirical_fisher", "tolerance": 0.1},
        {"task": "cushions", "identity": ["plain", "residual"]},
        {"task": "training", "epochs": 2, "batch": 16, "lr": [0.01, 0.02]},
    ]
    torch.set_default_dtype(torch.float32)  # a user's
    for grid in grids:
        report = run({**SMALL, **grid}, tmp_path)
        assert not report.failed and report.done == report.cells
    table = rt.sweep.load_results(tmp_path)
    assert table.task.value_counts().to_dict() == {"training": 2, "cushions": 2, "curvature": 1}
    trained = table[table.task == "training"]
    assert trained.epoch.tolist() == [2, 2]
    assert trained.test_error.between(0, 1).all() and trained.test_loss.nunique() == 2
    cell = trained.index[0]
    net = rt.load_checkpoint(tmp_path / "cells" / cell / "training")
    assert rt.evaluate(net, rt.load_images("digits", "test", size=8)).error() == pytest.approx(
        trained.test_error[cell]
    )
    whole = rt.sweep.load_results(tmp_path, arrays=True).loc[cell]
    assert [len(whole[name]) for name in ("loss", "test_error")] == [2, 3]
    assert whole.test_error[-1] == trained.test_error[cell] and whole.loss[-1] == trained.loss[cell]
    plain = rt.simplified_net(5, generator=0)
    found = rt.layer_cushions(plain, rt.load_images("digits", samples=32, size=8))
    measured = table[(table.task == "cushions") & (table.identity == "plain")]
    # The images are cast to the net's type; the drawn weights have the default one.
    assert measured.mean_median.iloc[0] == pytest.approx(float(found.median.mean()))


def test_a_gpu_measures_the_same(tmp_path, cuda):
    task = CushionsTask(**SMALL, seed=1)
    there, here = (task.run(tmp_path, device) for device in (cuda.type, "cpu"))
    assert there.numbers == pytest.approx(here.numbers, rel=1e-3)


ON = {"net": "full", "depth": 8, "size": 8, "channels": 1, "samples": 5, "seed": 3}
"""Settings of which none is a default; nothing runs this net, which would need three channels."""


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def told(request, monkeypatch):
    """Has a function give a result and note what it is asked for; under both default dtypes."""
    torch.set_default_dtype(request.param)

    def replaced(name, result, seen):
        def call(*given, **settings):
            seen.append((given, settings))
            return result

        monkeypatch.setattr(image_tasks, name, call)

    return replaced


def full_net(seed):
    return rt.networks.full_net(8, generator=seed).state_dict()


def test_a_cell_of_curvature_asks_for_its_settings_and_keeps_all_numbers(tmp_path, told):
    assert (
        CurvatureTask().tolerance == inspect.signature(rt.spectrum).parameters["tolerance"].default
    )
    made, asked, number = [], [], itertools.count(1.0)

    def estimate():
        return SimpleNamespace(value=next(number), low=next(number), high=next(number))

    report = SimpleNamespace(
        method="a method", parameters=7, products=9, largest=(estimate(), estimate()),
        smallest=(estimate(), estimate()), trace=estimate(), frobenius_norm=estimate(), index=None,
        condition_number=estimate(),
    )  # fmt: skip
    told("curvature_operator", "operator", made)
    told("spectrum", report, asked)
    settings = {"matrix": "fisher", "batchnorm": "batch"}
    search = {"k": 2, "density": True, "tolerance": 0.5}
    task = CurvatureTask(**ON, **settings, **search, loss="square")
    for kept in (False, True):  # products of a cell that was killed
        if kept:
            (tmp_path / "products").mkdir()
        found = task.run(tmp_path, "cpu")
        assert not list(tmp_path.iterdir())
    (net, loss, data), also = made[0]
    images = rt.load_images("digits", samples=5, size=8, channels=1)
    assert (loss, also, net.training) == ("square", settings, False)
    assert_same(dict(net.state_dict()), dict(full_net(3)))
    assert_same(data.labels, torch.eye(10, dtype=torch.float32)[images.labels])
    assert_same(data.pixels, images.pixels)
    (given, also) = asked[0]
    assert given == ("operator",) and also.pop("generator").initial_seed() == 3
    assert also == {**search, "folder": tmp_path / "products"}
    assert found.numbers == {
        "method": "a method", "parameters": 7, "products": 9,
        "largest": 1.0, "largest_low": 2.0, "largest_high": 3.0,
        "smallest": 7.0, "smallest_low": 8.0, "smallest_high": 9.0,
        "trace": 13.0, "trace_low": 14.0, "trace_high": 15.0,
        "frobenius_norm": 16.0, "frobenius_norm_low": 17.0, "frobenius_norm_high": 18.0,
        "condition_number": 19.0, "condition_number_low": 20.0, "condition_number_high": 21.0,
    }  # fmt: skip
    arrays = {"largest_values": [1.0, 4.0], "smallest_values": [7.0, 10.0]}
    expected = {name: torch.tensor(v, dtype=torch.float64) for name, v in arrays.items()}
    assert_same(found.arrays, expected)


def test_a_cell_of_cushions_asks_for_its_settings_and_keeps_all_numbers(tmp_path, told):
    seen, median = [], torch.tensor([3.0, 1.0, 5.0], dtype=torch.float32)
    minimum = torch.tensor([0.5, 0.25, 0.75], dtype=torch.float32)
    told("layer_cushions", SimpleNamespace(rows="abc", median=median, minimum=minimum), seen)
    settings = {"norm": "operator", "weight": "effective", "batchnorm": "batch"}
    found = CushionsTask(**ON, **settings).run(tmp_path, "cpu")
    ((net, data), also) = seen[0]
    assert also == settings and len(data) == 5 and not net.training
    assert_same(dict(net.state_dict()), dict(full_net(3)))
    assert found.numbers == {"layers": 3, "mean_median": 3.0, "least_median": 1.0, "minimum": 0.25}
    assert_same(found.arrays, {"median": median.double(), "minimum": minimum.double()})


def test_a_cell_of_training_asks_for_its_settings_and_keeps_all_numbers(tmp_path, told):
    lines = {
        "epoch": [0, 1, 2], "loss": [2.0, None], "error": [0.5, 0.25], "penalty": [4.0, 3.0, 2.5],
        "test_loss": [9.0, 8.0, 7.0], "test_error": [0.9, 0.8, 0.7],
    }  # fmt: skip
    seen = []
    told("train", SimpleNamespace(column=lines.__getitem__), seen)
    task = TrainingTask(**ON, lr=0.5, epochs=20, loss="square", nesterov=True)
    found = task.run(tmp_path, "cpu")
    ((net, data, recipe), also) = seen[0]
    papers = rt.training.NOISE_STABILITY_BN.scaled(20)
    assert recipe == papers.change(lr=0.5, loss="square", nesterov=True)
    assert_same(dict(net.state_dict()), dict(full_net(3)))
    assert (len(data), len(also.pop("test"))) == (5, 360)
    assert also == {"seed": 3, "device": "cpu", "out": tmp_path / "training", "progress": False}
    assert found.numbers == {name: values[-1] for name, values in lines.items()}
    del lines["epoch"]
    lines["loss"] = [2.0, math.nan]
    for name, values in lines.items():
        expected = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(found.arrays[name], expected, rtol=0, atol=0, equal_nan=True)
    assert found.arrays.keys() == lines.keys()


# -- running ---------------------------------------------------------------------------------------


def test_only_what_is_missing_runs(trial, tmp_path, capsys):
    run({**trial, "seed": [0, 1]}, tmp_path / "out")
    assert capsys.readouterr().err == ""
    report = run({**trial, "seed": [0, 1, 2]}, tmp_path / "out", progress=True)
    said = capsys.readouterr().err
    assert " 2/3 " in said and " 3/3 " in said and "cell" in said and "failed" not in said
    assert (report.cells, report.found, report.done) == (3, 2, 1)
    assert starts(trial) == {0: 1, 1: 1, 2: 1}
    table = rt.sweep.load_results(tmp_path / "out")  # a number named after a setting
    assert table.kills.tolist() == table.result_kills.tolist() == [0, 0, 0]
    assert table.index.tolist() == sorted(table.index) and table.index.name == "key"


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "manifest", "swapped"])
def test_a_damaged_result_is_run_again(trial, tmp_path, damage):
    grid = {"task": "hessian", "blocks": 1, "seed": [0, 1]}
    run(grid, tmp_path)
    (first, other) = (tmp_path / "cells" / cell.key for cell in sweep.grid_of(grid))
    (tensors,) = first.glob("result.*.safetensors")
    content = tensors.read_bytes()
    if damage == "flip":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        tensors.write_bytes(content[:-8])
    elif damage == "gone":
        tensors.unlink()
    elif damage == "manifest":
        manifest = first / "result.json"
        manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    else:  # a whole result, of another cell
        for file in other.iterdir():
            (first / file.name).write_bytes(file.read_bytes())
    told = "is the result of another cell" if damage == "swapped" else "run the sweep again"
    with pytest.warns(UserWarning, match=told) as warned:
        assert len(rt.sweep.load_results(tmp_path)) == 1
    assert [warning.filename for warning in warned] == [__file__]
    report = run(grid, tmp_path)
    assert (report.found, report.done) == (1, 1)
    assert rt.sweep.load_results(tmp_path).seed.tolist().count(0) == 1


def test_other_checkpoints_are_no_results(trial, tmp_path):
    cell, results = Cell.of(trial), Results(tmp_path)
    for about in ["a list"], {"kind": "cell", "key": cell.key}, {"kind": "net", "schema": 1}:
        store.write_checkpoint(results.place(cell.key) / "result.json", {}, about)
        assert not results.is_done(cell)
        with pytest.warns(UserWarning, match="is the result of another cell"):
            assert len(rt.sweep.load_results(tmp_path)) == 0


def test_a_cell_that_is_done_does_not_run_again(trial, tmp_path, monkeypatch):
    cell, results = Cell.of({**trial, "seconds": 0.02}), Results(tmp_path)
    with monkeypatch.context() as patch:  # no result waits for the disk, but an error does
        patch.delattr(os, "fsync")
        first, again = (attempt(cell, results, "cpu") for _ in range(2))
    assert (first.ran, first.error) == (True, None) and first.seconds >= 0.02
    assert (again.ran, again.error, again.seconds) == (False, None, 0.0)
    assert rt.sweep.load_results(tmp_path).seconds.tolist() == [first.seconds]
    failed = attempt(Cell.of({**trial, "seconds": 0.02, "fails": True}), results, "cpu")
    assert failed.ran and failed.seconds >= 0.02 and starts(trial) == {0: 2}


@pytest.mark.parametrize(("cpus", "workers"), [(7, 7), (None, 1)])
def test_without_words_all_cpus_work(trial, tmp_path, monkeypatch, cpus, workers):
    seen = []
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    monkeypatch.setitem(
        driver.EXECUTORS, "process", lambda cells, results, options: seen.append(options) or ()
    )
    report = rt.run_sweep(trial, tmp_path, progress=False)
    assert seen == [Options(workers=workers, retries=3, device="cpu", gpus=0.0)]
    assert (report.cells, report.found, report.done, report.work) == (1, 0, 0, 0.0)


def test_shards_partition_the_grid(tmp_path):
    reports = [run(GRID, tmp_path, shard=f"{i}/3") for i in range(3)]
    assert [report.done for report in reports] == [7, 7, 6]
    assert run(GRID, tmp_path).found == len(rt.sweep.load_results(tmp_path)) == 20


def test_a_failing_cell_is_listed_and_stops_nothing(trial, tmp_path, capsys):
    grid = {**trial, "grid": [{"seed": [0, 1]}, {"seed": 2, "fails": True}, {"seed": 3}]}
    heard, started = [], time.perf_counter()
    report = run(grid, tmp_path / "out", on_report=heard.append, progress=True)
    assert report.work == sum(one.seconds for one in heard) > 0
    assert report.work <= report.seconds <= time.perf_counter() - started
    said = capsys.readouterr().err
    assert "4/4" in said and "failed=1" in said
    (key,) = report.failed
    assert report.done == 3 and report.failed[key] == "ArithmeticError: seed 2 does not converge"
    words = f"trial seed=2 folder={trial['folder']!r} fails=True"
    assert report.frame().to_dict("records") == [
        {"key": key, "cell": words, "error": report.failed[key]}
    ]
    assert report.title == "3 of 4 cells done, 0 of them before" and words in str(report)
    noted = json.loads((tmp_path / "out" / "failed" / f"{key}.json").read_text())
    assert "ArithmeticError" in noted["trace"] and noted["config"]["seed"] == 2
    assert list(run(grid, tmp_path / "out").failed) == [key]  # tried again
    assert sorted(rt.sweep.load_results(tmp_path / "out").seed) == [0, 1, 3]
    cell, results = Cell.of({**trial, "seed": 7}), Results(tmp_path / "out")
    results.fail(cell, "for want of memory")
    run({**trial, "seed": 7}, tmp_path / "out")  # succeeds, and is no longer noted
    assert [path.stem for path in (tmp_path / "out" / "failed").iterdir()] == [key]


def test_two_drivers_of_the_same_cells_and_a_folder_without_results(trial, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no results of a sweep"):
        rt.sweep.load_results(tmp_path)
    lock = store.locked(tmp_path / ".lock.all")
    with lock, pytest.raises(ValueError, match="another driver runs"):
        run(trial, tmp_path)


# -- processes -------------------------------------------------------------------------------------


@needs_kill
def test_killed_workers_lose_nothing(trial, tmp_path):
    """20 cells, 4 of which kill their own worker, while others are killed from outside."""
    grid = {
        **trial,
        "seconds": 0.05,
        "grid": [{"seed": list(range(16))}, {"seed": [16, 17, 18, 19], "kills": 1}],
    }
    ended, heard = threading.Event(), []
    killer = threading.Thread(target=_kill_workers, args=(ended, 3))
    killer.start()
    try:
        report = run(
            grid, tmp_path / "out", "process", workers=2, retries=20, on_report=heard.append
        )
    finally:
        ended.set()
        killer.join()
    assert not report.failed and report.done == 20
    assert len({r.cell.key for r in heard}) == len(heard) == 20
    assert len(rt.sweep.load_results(tmp_path / "out")) == 20
    # 16 cells once, 4 twice, and once more for each of the three that a kill met.
    assert 24 <= sum(starts(trial).values()) <= 27


def _kill_workers(ended, count):
    while count and not ended.wait(0.15):
        for process in multiprocessing.active_children()[:1]:
            os.kill(process.pid, signal.SIGKILL)
            count -= 1


@needs_kill
def test_a_cell_that_always_kills_is_listed(trial, tmp_path):
    grid = {**trial, "grid": [{"seed": [0, 1]}, {"seed": 2, "kills": 100}]}
    report = run(grid, tmp_path / "out", "process", workers=1, retries=1)
    (error,) = report.failed.values()
    assert error.startswith("its worker was lost 2 times (signal SIGKILL)")
    assert report.done == 2 and starts(trial)[2] == 2


@needs_kill
def test_a_killed_driver_goes_on(trial, tmp_path):
    """Its workers end with it, and what was done is not done again."""
    grid = {**trial, "seconds": 0.1, "seed": list(range(12))}
    process = interrupted.server().Process(target=_drive, args=(grid, str(tmp_path / "out")))
    process.start()
    while len(list((tmp_path / "out" / "cells").glob("*/result.json"))) < 3:
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    time.sleep(0.3)  # longer than a cell: a worker that lived on would have left its result
    done = len(list((tmp_path / "out" / "cells").glob("*/result.json")))
    begun = sum(starts(trial).values())
    report = run(grid, tmp_path / "out")
    assert (report.found, report.done) == (done, 12 - done) and 3 <= done < 12
    # Of two workers, each had one cell in hand.
    assert begun <= done + 2 and sum(starts(trial).values()) == begun + 12 - done


def _drive(grid, out):
    registry.TASKS["trial"] = Trial
    run(grid, out, "process", workers=2)


@needs_kill
def test_workers_that_do_not_start_are_an_error(trial, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_serve", partial(_exit, tmp_path / "starts"))
    with pytest.raises(RuntimeError, match="workers end before their first cell .exit code 3"):
        run({**trial, "seed": [0, 1]}, tmp_path, "process", workers=1)
    assert (tmp_path / "starts").read_text() == "xxxx"  # one at a time, four times


def test_workers_killed_while_they_start_are_started_again(trial, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_serve", partial(_killed_young, tmp_path / "starts"))
    found = run({**trial, "seed": [0]}, tmp_path / "out", "process", workers=1)
    assert found.done == 1 and len((tmp_path / "starts").read_text()) == 6


def _killed_young(starts, *arguments):
    """Six starts, of which the first five are killed."""
    with starts.open("a") as file:
        file.write("x")
    if starts.stat().st_size < 6:
        os.kill(os.getpid(), signal.SIGKILL)
    _SERVE(*arguments)


_SERVE = processes._serve


def _exit(starts, *_):
    with starts.open("a") as file:
        file.write("x")
    os._exit(3)


class Context:
    """Processes that are noted and not started."""

    def __init__(self):
        self.asked = []

    Pipe = staticmethod(multiprocessing.Pipe)

    def Process(self, target, args, daemon):  # noqa: N802
        self.asked.append((args[2:], daemon))
        return SimpleNamespace(start=lambda: None, join=lambda: None, exitcode=None)


def test_workers_take_gpus_in_turn_and_share_the_threads(trial, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    context, options = Context(), Options(workers=3, retries=0, device="cuda", gpus=0.0)
    for number in range(3):
        worker = processes._Worker(context, number, Results(tmp_path), options)
    processes._Worker(context, 0, Results(tmp_path), replace(options, workers=9, device="cuda:5"))
    assert context.asked == [
        (("cuda:0", 2), True), (("cuda:1", 2), True), (("cuda:0", 2), True), (("cuda:5", 1), True),
    ]  # fmt: skip
    worker.give(Cell.of(trial))  # its process is not there: the pipe tells it
    with pytest.raises(EOFError):
        worker.pipe.recv()
    assert len(worker.cells) == 1 and worker.end() == "exit code 0"


@pytest.mark.parametrize(
    ("code", "how"),
    [(None, "exit code 0"), (3, "exit code 3"), (-1, "signal SIGHUP"), (-9, "signal SIGKILL")],
)
def test_an_end_is_told_by_code_or_signal(tmp_path, code, how):
    context, options = Context(), Options(workers=1, retries=0, device="cpu", gpus=0.0)
    worker = processes._Worker(context, 0, Results(tmp_path), options)
    worker.process.exitcode = code
    assert worker.end() == how and worker.pipe.closed


@pytest.mark.parametrize(
    ("message", "cells", "left", "given"),
    [
        (processes._READY, "", "abcd", "a"),
        (processes._READY, "", "", ""),
        (0.05, "x", "abcd", "ab"),  # of a short cell
        (0.05, "xy", "abcd", "ya"),
        (0.0999, "x", "abcd", "ab"),
        (0.05, "x", "ab", "a"),  # as many as there are workers
        (0.1, "x", "abcd", "a"),
    ],
)
def test_workers_of_short_cells_have_the_next_one_in_hand(message, cells, left, given):
    pool, worker = pool_of(None, cells)
    pool.waiting, pool.failed_starts, worker.ready = deque(left), 3, False
    said = message if isinstance(message, str) else SimpleNamespace(seconds=message)
    worker.pipe, worker.give = SimpleNamespace(recv=lambda: said), worker.cells.append
    assert pool._hear(worker) is (None if said == processes._READY else said)
    assert "".join(worker.cells) == given and (worker.ready, pool.failed_starts) == (True, 0)


def pool_of(results, cells, retries=1, how="exit code 1"):
    """A pool of one worker that has ended, with cells in hand."""
    pool = object.__new__(processes._Pool)
    pool.results, pool.options = results, Options(workers=1, retries=retries, device="", gpus=0)
    pool.waiting, pool.losses, pool.failed_starts = deque("z"), Counter(), 0
    worker = SimpleNamespace(number=4, ready=True, cells=deque(cells), end=lambda: how)
    pool.workers, pool._worker = ["other", worker], lambda number: f"new {number}"
    return pool, worker


def test_cells_of_a_worker_that_ends_run_again_unless_they_are_done(trial, tmp_path):
    cells, results = sweep.grid_of({**trial, "seed": [0, 1, 2]}), Results(tmp_path)
    pool, worker = pool_of(results, cells)
    assert pool._replace(worker) is None and pool.workers == ["other", "new 4"]
    assert list(pool.waiting) == [cells[2], cells[1], "z", cells[0]]
    pool, worker = pool_of(results, cells[:1], retries=0)
    assert pool._replace(worker).error.startswith("its worker was lost 1 times (exit code 1);")
    attempt(cells[0], results, "cpu")  # it was killed before it could report
    pool, worker = pool_of(results, cells[:1], retries=0)
    report = pool._replace(worker)
    assert (report.cell, report.error, report.ran, report.seconds) == (cells[0], None, True, 0.0)
    pool, worker = pool_of(results, [])
    assert pool._replace(worker) is None and list(pool.waiting) == ["z"]


def test_a_pool_ends_with_its_last_cell(trial, tmp_path):
    cells = sweep.grid_of({**trial, "seed": [0, 1]})
    pool, worker = pool_of(Results(tmp_path), "")
    pool.waiting, pool.left, worker.give = deque(cells), 2, worker.cells.append
    worker.pipe, other = multiprocessing.Pipe()
    pool.workers = [worker]
    for message in (processes._READY, *(attempt(cell, pool.results, "cpu") for cell in cells)):
        other.send(message)
    other.close()
    assert [report.cell for report in pool.run()] == cells


@pytest.mark.parametrize(("how", "most"), [("exit code 1", 3), ("signal SIGKILL", 50)])
def test_so_many_workers_may_end_before_their_first_cell(tmp_path, how, most):
    pool, worker = pool_of(Results(tmp_path), [], how=how)
    worker.ready = False
    for _ in range(most):
        pool.workers[1] = worker
        assert pool._replace(worker) is None
    pool.workers[1] = worker
    with pytest.raises(RuntimeError, match=f"^workers end before their first cell .{how}.; a scri"):
        pool._replace(worker)


def test_a_worker_that_does_not_end_is_killed():
    said = []
    for stuck in (True, False):
        process = SimpleNamespace(
            join=lambda *seconds: said.append(seconds), is_alive=lambda stuck=stuck: stuck,
            kill=lambda: said.append("kill"),
        )  # fmt: skip
        worker = SimpleNamespace(process=process, pipe=SimpleNamespace(close=lambda: None))
        processes._Pool.end(SimpleNamespace(workers=[worker]))
    assert said == [(1.0,), "kill", (), (1.0,)]


def test_a_worker_runs_cells_as_they_come_and_ends_with_its_driver(trial, monkeypatch, tmp_path):
    (ours, theirs), ended, asked = multiprocessing.Pipe(), threading.Event(), []
    start, begun = threading.Thread, []
    monkeypatch.setattr(threading, "Thread", lambda **how: begun.append(how) or start(**how))
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    monkeypatch.setattr(signal, "signal", lambda *given: asked.append(given))
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    given = theirs, Results(tmp_path), "cpu", 3
    threading.Thread(target=processes._serve, args=given, daemon=True).start()
    assert ours.recv() == processes._READY
    for seed in (5, 6):
        ours.send(Cell.of({**trial, "seed": seed}))
    assert [ours.recv().cell.settings.seed for _ in range(2)] == [5, 6]
    ours.close()
    assert ended.wait(10) and asked == [(signal.SIGINT, signal.SIG_IGN), 3]
    assert [how.get("daemon") for how in begun] == [True, True]  # its end is the worker's


# -- ray -------------------------------------------------------------------------------------------


def test_without_ray_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not there
    (tmp_path / "grid.toml").write_text('task = "hessian"\n')
    words = ["sweep", tmp_path / "grid.toml", "--out", tmp_path, "--executor", "ray"]
    assert "--executor: 'ray' needs the package ray" in error(capsys, *words)


class OneByOne:
    """As much of Ray as the executor asks for, in this process.

    A task with seed 30 is lost, and one with seed 31 when it is done.
    """

    class Lost(Exception):
        pass

    exceptions = SimpleNamespace(RayError=Lost)

    def __init__(self):
        self.sizes, self.running, self.asked = [], [], []

    def is_initialized(self):
        return "connected" in self.asked

    def init(self, **given):
        self.asked.append(given)

    def shutdown(self):
        self.asked.append("shutdown")

    def remote(self, **given):
        self.asked.append(given)
        return lambda call: SimpleNamespace(remote=lambda *given: partial(call, *given))

    def put(self, value):
        return value

    def cluster_resources(self):
        return {"CPU": 3.0}

    def wait(self, references):
        self.running.append(len(references))
        return references[:1], references[1:]

    def get(self, reference):
        cells = reference.args[0]
        self.sizes.append(len(cells))
        if any(cell.settings.seed == 30 for cell in cells):
            raise self.Lost
        reports = reference()
        if any(cell.settings.seed == 31 for cell in cells):
            raise self.Lost
        return reports


def test_short_cells_share_a_task_of_ray_and_a_lost_one_costs_none_of_them(trial, tmp_path):
    cells = sweep.grid_of({**trial, "seed": list(range(60))})
    ray, options = OneByOne(), Options(workers=1, retries=2, device="cpu", gpus=0.5)
    reports = list(ray_executor._reports(ray, cells, Results(tmp_path), options))
    assert len({report.cell.key for report in reports}) == len(reports) == 60
    (failed,) = (report for report in reports if report.error is not None)
    assert failed.cell.settings.seed == 30
    assert failed.error.startswith("its worker was lost 3 times (Lost)")
    assert starts(trial) == {seed: 1 for seed in range(60) if seed != 30}
    assert max(ray.sizes) > 1 and len(ray.sizes) < 60 and max(ray.running) == 6
    assert ray.asked == [{"num_cpus": 1, "num_gpus": 0.5, "max_retries": 2}]


class Timed(OneByOne):
    """Ray whose cells all take as long as it says."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def get(self, reference):
        cells = reference.args[0]
        self.sizes.append(len(cells))
        return [Report(cell=cell, error=None, ran=True, seconds=self.seconds) for cell in cells]


@pytest.mark.parametrize(
    ("seconds", "most", "count"),
    [(0.1, 5, 130), (0.0, 64, 1000), (0.3, 1, 20)],  # half a second of work, 64 cells at most
)
def test_a_task_of_ray_is_half_a_second_of_work(trial, tmp_path, seconds, most, count):
    cells, ray = sweep.grid_of({**trial, "seed": list(range(count))}), Timed(seconds)
    options = Options(workers=1, retries=2, device="cpu", gpus=0.0)
    assert len(list(ray_executor._reports(ray, cells, Results(tmp_path), options))) == count
    expected, left = [1] * 6, count - 6  # two for each of three workers; nothing is known yet
    while left:  # a quarter of what each worker has left
        size = max(1, min(left // (4 * 3), most))
        expected.append(size)
        left -= size
    assert ray.sizes == expected


@pytest.mark.parametrize(
    ("address", "connected"), [("", False), ("10.0.0.1:6379", False), ("", True)]
)
def test_ray_is_started_here_where_no_cluster_is_named(
    trial, tmp_path, monkeypatch, address, connected
):
    ray, options = OneByOne(), Options(workers=3, retries=2, device="cpu", gpus=0.0)
    ray.asked += ["connected"] * connected
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(os, "environ", {"RAY_ADDRESS": address} if address else {})
    assert not list(ray_executor.run_in_ray([], Results(tmp_path), options))
    cells = sweep.grid_of({**trial, "seed": [0, 1]})
    assert len(list(ray_executor.run_in_ray(cells, Results(tmp_path), options))) == 2
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    here = {"address": "local", "num_cpus": 3, "include_dashboard": False,
            "_node_ip_address": "127.0.0.1"}  # fmt: skip
    begun = ["connected"] if connected else [{**quiet, **({} if address else here)}]
    assert [ray.asked[0], *ray.asked[2:]] == begun + ["shutdown"] * (not connected)
    run({**trial, "seed": 2}, tmp_path, "ray", device="cuda:7")  # of the workers' machines
    told = {"RAY_USAGE_STATS_ENABLED": "0"}
    named = {"RAY_ADDRESS": address} if address else {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    assert os.environ == {**told, **named}


def test_ray_survives_killed_workers_and_a_lost_node(trial, tmp_path):
    if not importlib.util.find_spec("ray"):
        pytest.skip("ray is not installed")
    # Not pytest's: the paths of sockets may not be long.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        done = interrupted.server().Process(target=_lose_a_node, args=(trial, tmp_path, folder))
        done.start()
        done.join(300)
        done.kill()  # does nothing to one that has ended
    assert done.exitcode == 0, (tmp_path / "log").read_text()
    assert starts(trial) == {1: 2, 2: 1, 3: 1, 4: 1}
    assert (tmp_path / "down").exists()


def _lose_a_node(trial, out, folder):
    log = os.open(out / "log", os.O_CREAT | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.update(
        PYTHONPATH=os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),  # of Ray's workers
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # 127.0.0.1 stays what it is
        RAY_USAGE_STATS_ENABLED="0",
        RAY_memory_monitor_refresh_ms="0",  # other programs may fill the memory
        RAY_worker_niceness="0",  # by default 15: they would wait for every other program
        RAY_TMPDIR=folder,
    )
    sweep_cells.lose_a_node(trial, str(out))


# -- the verb --------------------------------------------------------------------------------------


def test_the_verb_runs_and_lists(tmp_path, capsys):
    (tmp_path / "grid.toml").write_text('task = "hessian"\nblocks = 1\nseed = [0, 1, 2]\n')
    words = ["sweep", tmp_path / "grid.toml", "--executor", "serial"]
    assert printed(capsys, *words, "--dry-run") == "3 cells.\n"
    assert "--out: is missing, needs the folder of the results" in error(capsys, *words)
    words += ["--out", tmp_path / "out"]
    said = printed(capsys, *words, "--shard", "0/2")
    assert "2 of 2 cells done, 0 of them before" in said
    found = content(capsys, *words)
    assert (found["cells"], found["found"], found["done"], found["failed"]) == (3, 2, 1, [])
    assert "--shard: got '2/2'" in error(capsys, *words, "--shard", "2/2")


def test_the_verb_exits_with_1_if_a_cell_failed(trial, tmp_path, capsys):
    (tmp_path / "grid.toml").write_text('task = "trial"\nfails = true\n'
                                        f'folder = "{trial["folder"]}"\n')  # fmt: skip
    words = ["sweep", str(tmp_path / "grid.toml"), "--out", str(tmp_path), "--executor", "serial"]
    assert cli.main(words) == 1
    said = "ArithmeticError: seed 0 does not converge"
    printed = capsys.readouterr().out
    assert said in printed and printed.endswith(f"\nResults in {tmp_path}.\n")
    assert cli.main([*words, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert 0 < found.pop("work") <= found.pop("seconds")
    cell = Cell.of({**trial, "fails": True})
    assert found == {
        "folder": str(tmp_path), "cells": 1, "found": 0, "done": 0,
        "failed": [{"key": cell.key, "error": said, "config": dict(cell.config)}],
    }  # fmt: skip
