"""Parts of a sweep by themselves: settings, tables of results, pools, shards, caches."""

import json
import math
import multiprocessing
import os
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import resid_theory as rt
from resid_theory import sweep
from resid_theory.runtime import store
from resid_theory.sweep import (
    Outcome,
    Task,
    config,
    driver,
    hessian_task,
    image_tasks,
    processes,
    registry,
)
from resid_theory.sweep.results import Cell, Results
from resid_theory.sweep.setup import Setup, own_data
from resid_theory.sweep.worker import Options, Report, attempt, lost

OPTIONS = Options(workers=2, retries=1, device="cpu", gpus=0.0)


@dataclass(frozen=True, kw_only=True)
class Measured(Task):
    """A task whose outcome is given by its settings."""

    share: float = 0.5
    words: str | None = None

    def run(self, folder, device):
        if self.words:
            raise ArithmeticError(self.words)
        numbers = {"seed": -1, "ratio": math.inf, "none": None, "name": device, "count": 3}
        return Outcome(numbers=numbers, arrays={"values": torch.arange(3.0)})


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(registry.TASKS, "measured", Measured)


# -- settings --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Settings(config.Config):
    count: int
    share: float = 0.5
    flag: bool = False
    name: str = "a"
    most: int | None = None
    either: int | str = 0


def test_settings_have_the_types_of_their_fields():
    found = Settings(count=2, share=1, flag=True, name="b", most=3, either="c")
    assert found.content() == {
        "count": 2, "share": 1.0, "flag": True, "name": "b", "most": 3, "either": "c",
    }  # fmt: skip
    assert type(found.share) is float and "most" not in Settings(count=1).content()
    assert Settings.of({"count": 4}) == Settings(count=4)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"count": True}, "count: got True, needs a whole number"),
        ({"count": 1.0}, "count: got 1.0, needs a whole number"),
        ({"count": None}, "count: got None, needs a whole number"),
        ({"share": "1"}, "share: got '1', needs a number"),
        ({"share": True}, "share: got True, needs a number"),
        ({"flag": 1}, "flag: got 1, needs true or false"),
        ({"name": 1}, "name: got 1, needs a string"),
        ({"most": "x"}, "most: got 'x', needs a whole number"),
        ({"either": 0.5}, "either: got 0.5, needs a whole number or a string"),
    ],
)
def test_values_of_another_type_are_refused(values, says):
    with pytest.raises(ValueError) as caught:
        Settings(**{"count": 1, **values})
    assert str(caught.value) == says


def test_a_value_that_is_needed_and_a_name_that_is_none():
    with pytest.raises(ValueError, match="^count: is missing, Settings needs it$"):
        Settings.of({"share": 0.1})
    with pytest.raises(ValueError, match="^key: unknown name 'shar'; did you mean 'share'?"):
        Settings.of({"count": 1, "shar": 0.1})


WRONG = {
    "curvature": {
        "size": (0, "size: got 0, needs at least 1"),
        "channels": (0, "channels: got 0, needs at least 1"),
        "samples": (0, "samples: got 0, needs at least 1"),
        "seed": (-1, "seed: got -1, needs at least 0"),
        "k": (0, "k: got 0, needs at least 1"),
        "data": ("digts", "data: unknown name 'digts'; did you mean 'digits'?"),
        "net": ("ful", "net: unknown name 'ful'; did you mean 'full'?"),
        "depth": (4, "depth: got 4"),
        "batchnorm": ("bach", "batchnorm: unknown name 'bach'; did you mean 'batch'?"),
        "loss": ("squar", "loss: unknown name 'squar'; did you mean 'square'?"),
        "matrix": ("hesian", "matrix: unknown name 'hesian'; did you mean 'hessian'?"),
    },
    "cushions": {
        "norm": ("kernl", "norm: unknown name 'kernl'; did you mean 'kernel'?"),
        "weight": ("effectiv", "weight: unknown name 'effectiv'; did you mean 'effective'?"),
        "size": (0, "size: got 0"),
        "batchnorm": ("bach", "batchnorm: unknown name 'bach'"),
    },
    "training": {
        "epochs": (0, "epochs: got 0"),
        "batch": (0, "batch: got 0"),
        "momentum": (2.0, "momentum: got 2.0"),
        "loss": ("squar", "loss: unknown name 'squar'"),
        "seed": (-1, "seed: got -1"),
    },
    "hessian": {
        "seed": (-1, "seed: got -1"),
        "loss": ("squar", "loss: unknown name 'squar'"),
        "data": ("digts", "data: unknown name 'digts'"),
    },
}  # fmt: skip


@pytest.mark.parametrize(("task", "name"), [(t, name) for t in WRONG for name in WRONG[t]])
def test_settings_are_refused_before_any_work(task, name):
    value, says = WRONG[task][name]
    with pytest.raises(ValueError) as caught:
        sweep.grid_of({"task": task, name: value})
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"task = [1,", "a.toml: not valid TOML: "),
        (b"\xff", "a.toml: not valid TOML: 'utf-8' codec"),
        (b'task = "hessian"\ngrid = [1]', "a.toml: grid: got [1], needs tables that begin with "
         "[[grid]]"),
        (b'task = "hessian"\nseed = [1, 1]', "a.toml: seed: got [1, 1], needs every value once"),
        (b'task = ["hessian", "hesian"]', "a.toml: task: unknown name 'hesian'"),
    ],
)  # fmt: skip
def test_files_of_other_forms_are_refused(tmp_path, content, says):
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        sweep.grid_of(tmp_path / "a.toml")
    assert str(caught.value).startswith(says)


def test_a_file_in_the_home_folder_and_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.toml").write_text('task = ["measured", "hessian"]\nseed = [3, 4]')
    cells = sweep.grid_of("~/a.toml")
    assert [(cell.task, cell.settings.seed) for cell in cells] == [
        ("measured", 3), ("measured", 4), ("hessian", 3), ("hessian", 4),
    ]  # fmt: skip
    with pytest.raises(FileNotFoundError, match=f"^grid: there is no file {tmp_path}$"):
        sweep.grid_of(tmp_path)


def test_settings_of_a_grid_stand_above_and_in_it():
    grids = [{"seed": [1, 2]}, {"share": 0.25}, {"seed": 9, "share": [0.5, 0.75]}]
    cells = sweep.grid_of({"task": "measured", "seed": 7, "grid": grids})
    assert [(cell.settings.seed, cell.settings.share) for cell in cells] == [
        (1, 0.5), (2, 0.5), (7, 0.25), (9, 0.5), (9, 0.75),
    ]  # fmt: skip


# -- data and nets, made once ----------------------------------------------------------------------


def test_four_image_sets_are_kept_and_no_more(monkeypatch):
    made = []
    monkeypatch.setattr(
        image_tasks, "load_images", lambda *given, **how: made.append((given, how)) or torch.ones(1)
    )
    image_tasks._loaded.cache_clear()
    for _ in range(2):
        for size in (8, 9):
            task = image_tasks.TrainingTask(samples=5, size=size, channels=1)
            task.images(), task.images("test")
    task = image_tasks.TrainingTask(samples=5, size=7, channels=1)
    for some in (task, image_tasks.TrainingTask(samples=5, size=8, channels=1)):
        some.images()
    image_tasks._loaded.cache_clear()
    assert made.pop() == made[0] and made.pop()[1]["size"] == 7
    how = {"channels": 1, "progress": False}
    assert made == [
        (("digits", split), {**how, "samples": samples, "size": size})
        for size in (8, 9)
        for split, samples in (("train", 5), ("test", None))
    ]


def test_a_net_is_built_once_to_check_cells_that_differ_in_other_things(monkeypatch):
    made, net_of = [], image_tasks.net_of

    def noted(*given, **how):
        made.append(how["seed"])
        return net_of(*given, **how)

    monkeypatch.setattr(image_tasks, "net_of", noted)
    image_tasks._built.cache_clear()
    sweep.grid_of({"task": "training", "depth": 5, "lr": [0.1, 0.2, 0.3], "seed": [0, 1]})
    image_tasks._built.cache_clear()
    assert made == [0]


def test_two_data_sets_of_ones_own_are_kept_and_no_more(monkeypatch):
    made = []
    monkeypatch.setattr(
        Setup, "load", lambda setup, progress: made.append((setup.data, setup.components, progress))
    )
    hessian_task._loaded.cache_clear()
    for _ in range(2):
        for sha256 in ("a", "b"):
            hessian_task._loaded("own.npz", 7, sha256)
    assert made == [("own.npz", 7, False)] * 2
    for sha256 in ("c", "a"):
        hessian_task._loaded("own.npz", 7, sha256)
    hessian_task._loaded.cache_clear()
    assert len(made) == 4


def test_files_of_ones_own_data_that_are_none_are_told(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=f"^data: {tmp_path}/a.npz: not an archive of"):
        own_data(str(tmp_path / "a.npz"), 2)
    np.savez(tmp_path / "a.npz", x=np.ones(3), z=np.ones(3))
    with pytest.raises(ValueError) as caught:
        own_data(str(tmp_path / "a.npz"), 2)
    assert str(caught.value) == f"data: {tmp_path}/a.npz has arrays ['x', 'z'], needs x and y"


# -- results ---------------------------------------------------------------------------------------


def test_a_table_has_settings_numbers_seconds_and_arrays(tmp_path):
    cell, results = Cell.of({"task": "measured", "seed": 5, "share": 1}), Results(tmp_path)
    report = attempt(cell, results, "cpu")
    assert (report.cell, report.error, report.ran) == (cell, None, True)
    plain, full = (sweep.load_results(tmp_path, arrays=arrays) for arrays in (False, True))
    row = {
        "task": "measured", "seed": 5, "share": 1.0, "result_seed": -1, "ratio": math.inf,
        "none": None, "name": "cpu", "count": 3, "seconds": report.seconds,
    }  # fmt: skip
    assert plain.to_dict("index") == {cell.key: row} and list(plain) == list(row)
    assert full.pop("values").iloc[0].tolist() == [0.0, 1.0, 2.0]
    assert full.to_dict("index") == {cell.key: row}
    assert {cell} == {Cell.of({"task": "measured", "seed": 5, "share": 1.0})}
    about = results.read(cell)[1]
    assert {name: about[name] for name in ("kind", "schema", "key", "config", "torch")} == {
        "kind": "cell", "schema": 1, "key": cell.key, "torch": torch.__version__,
        "config": {"task": "measured", "seed": 5, "share": 1.0},
    }  # fmt: skip


def test_an_error_is_kept_with_its_trace_and_told_in_a_line(tmp_path, monkeypatch):
    cell, results = Cell.of({"task": "measured", "words": "no\n  more"}), Results(tmp_path)
    report = attempt(cell, results, "cpu")
    assert report.error == "ArithmeticError: no more"
    path = tmp_path / "failed" / f"{cell.key}.json"
    found = json.loads(path.read_text())
    assert found.pop("trace").endswith("ArithmeticError: no\n  more\n")
    config = {"task": "measured", "seed": 0, "share": 0.5, "words": "no\n  more"}
    assert found == {"key": cell.key, "config": config, "error": report.error}
    said = lost(cell, results, 4, "signal SIGKILL")
    words = "its worker was lost 4 times (signal SIGKILL); the usual cause is lack of memory"
    assert (said.cell, said.error, said.ran, said.seconds) == (cell, words, True, 0.0)
    assert json.loads(path.read_text()) == {
        "key": cell.key, "config": config, "error": words, "trace": "",
    }  # fmt: skip
    done = Cell.of({"task": "measured"})
    attempt(done, results, "cpu")  # and then its worker was lost
    assert lost(done, results, 4, "") == Report(cell=done, error=None, ran=True, seconds=0.0)

    def full(*_, **__):
        raise OSError(28, "no space")

    monkeypatch.setattr(store, "write_json", full)
    results.fail(cell, "for want of memory")  # where there is no room for that, either
    monkeypatch.setattr(store, "write_checkpoint", full)
    assert attempt(Cell.of({"task": "measured", "seed": 1}), results, "cpu").error == (
        "OSError: [Errno 28] no space"
    )


# -- drivers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shard", "held"), [(None, ".lock.all"), ("1/3", ".lock.1-of-3"), ("0/1", ".lock.0-of-1")]
)
def test_a_shard_has_a_driver_of_its_own(tmp_path, monkeypatch, shard, held):
    pytest.importorskip("fcntl", reason="there are no locks here")
    given = []

    def noted(cells, results, options):
        given.extend(cell.settings.seed for cell in cells)
        return ()

    monkeypatch.setitem(driver.EXECUTORS, "serial", noted)
    grid = {"task": "measured", "seed": [0, 1, 2, 3, 4]}
    run = {"executor": "serial", "shard": shard, "retries": 0, "progress": False}
    with store.locked(tmp_path / ".lock.2-of-3"):
        rt.run_sweep(grid, tmp_path, **run)
    with store.locked(tmp_path / held), pytest.raises(ValueError) as caught:
        rt.run_sweep(grid, tmp_path, **run)
    assert str(caught.value) == f"out: another driver runs the same cells in {tmp_path}"
    assert given == ([1, 4] if shard == "1/3" else [0, 1, 2, 3, 4])


@pytest.mark.parametrize("shard", ["3/3", "-1/3", "1/3x", "x1/3", "1", "1/", 3])
def test_other_words_are_no_shards(tmp_path, shard):
    with pytest.raises(ValueError) as caught:
        rt.run_sweep({"task": "measured"}, tmp_path, executor="serial", shard=shard)
    assert str(caught.value) == (
        f"shard: got {shard!r}, needs i/n with i from 0 to n - 1, such as 0/4"
    )


@pytest.mark.parametrize(("workers", "started"), [(5, 3), (3, 3), (2, 2)])
@pytest.mark.parametrize("kind", ["forkserver", "spawn"])
def test_a_pool_starts_as_many_workers_as_it_has_cells_for(tmp_path, monkeypatch, kind, workers,
                                                           started):  # fmt: skip
    asked, context = [], SimpleNamespace(set_forkserver_preload=lambda names: asked.append(names))
    methods = ["fork", "spawn"] + ["forkserver"] * (kind == "forkserver")
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: methods)
    monkeypatch.setattr(multiprocessing, "get_context", lambda name: asked.append(name) or context)
    monkeypatch.setattr(processes, "_Worker", lambda *given: given)
    grids = [{"task": "hessian", "seed": [0, 1]}, {"task": "training", "depth": 5}]
    cells = [cell for grid in grids for cell in sweep.grid_of(grid)]
    results, options = Results(tmp_path), Options(workers=workers, retries=1, device="", gpus=0)
    pool = processes._Pool(cells, results, options)
    named = ["resid_theory.sweep.registry", "torch._dynamo"]
    assert asked == [kind] + [named] * (kind == "forkserver")
    assert pool.workers == [(context, number, results, options) for number in range(started)]
    assert (list(pool.waiting), pool.left, pool.failed_starts) == (cells, 3, 0)


def test_a_pool_that_nobody_reads_any_more_ends_its_workers(monkeypatch):
    said = []
    monkeypatch.setattr(
        processes, "_Pool",
        lambda *given: SimpleNamespace(run=lambda: iter(given), end=lambda: said.append("end")),
    )  # fmt: skip
    reports = processes.run_in_processes("cells", "results", OPTIONS)
    assert next(reports) == "cells" and not said
    reports.close()
    assert said == ["end"]


def test_a_worker_ends_in_the_middle_of_a_cell_when_its_driver_is_gone(monkeypatch):
    for error in (EOFError, OSError):
        told = []

        def recv(error=error, told=told):
            if told:
                raise error
            told.append("asked")
            return "a cell"

        cells = SimpleNamespace(put=told.append)
        monkeypatch.setattr(os, "_exit", told.append)
        processes._listen(SimpleNamespace(recv=recv), cells)
        assert told == ["asked", "a cell", 0]


@pytest.mark.parametrize(("blocks", "tried"), [(0, 0), (1, 1), (7, 1)])
def test_settings_are_tried_on_a_net_of_one_block(monkeypatch, blocks, tried):
    made, net = [], Setup.net
    monkeypatch.setattr(
        Setup, "net", lambda setup, seed: made.append((setup.blocks, seed)) or net(setup, seed)
    )
    if blocks:
        Setup(blocks=blocks).check()
    else:
        with pytest.raises(ValueError, match="^blocks: got 0, needs at least 1$"):
            Setup(blocks=blocks).check()
    assert made == [(tried, 0)]
