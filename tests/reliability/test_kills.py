"""Processes killed at random moments, several times each, leave what undisturbed ones leave."""

import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from interrupted import Interrupted, left_by_training, training

import resid_theory as rt
from resid_theory import sweep
from resid_theory.runtime import store

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL here"),
    pytest.mark.usefixtures("server"),
]
KILLS = "kills met the call"


@pytest.fixture(scope="module", params=[1, 2], ids=["one", "two"])
def interrupted_training(request):
    return Interrupted(partial(training, nets=request.param), left_by_training)


@pytest.mark.reliability(
    "kill -9 of a training at a random moment, up to four times, then continued",
    "weights, optimizer, metrics and files bit-identical to an undisturbed training",
    quick=2,
    full=25,
)
def test_training(interrupted_training, trial, draw, record_property):
    record_property(KILLS, interrupted_training.trial(draw))


def estimate(folder):
    """Eigenpairs whose products are kept; the last act writes the result."""
    folder = Path(folder)
    (folder / ".lock").touch()
    generator = torch.Generator().manual_seed(0)
    net = rt.simplified_net(8, generator=generator).eval()
    x, y = torch.randn(64, 3, 16, 16, generator=generator), torch.arange(64) % 10
    operator = rt.curvature_operator(net, "cross_entropy", (x, y), accumulate="float32")
    pairs = rt.eigenpairs(operator, 5, which="both", folder=folder / "products")
    store.write_arrays(folder / "result.npz", {"vectors": pairs.vectors.numpy()})


@pytest.fixture(scope="module")
def interrupted_estimate():
    return Interrupted(estimate, lambda folder: store.digest(folder / "result.npz"))


@pytest.mark.reliability(
    "kill -9 of eigenpairs(folder=...), up to four times, then called again",
    "eigenvectors bit-identical to an undisturbed call",
    full=50,
)
def test_eigenpairs(interrupted_estimate, trial, draw, record_property):
    record_property(KILLS, interrupted_estimate.trial(draw))


def run_sweep(folder):
    """A sweep of 12 cells in one process."""
    (Path(folder) / ".lock").touch()
    grid = {"task": "hessian", "blocks": [1, 2, 3], "init": ["near_zero", "xavier"], "seed": [0, 1]}
    rt.run_sweep(grid, Path(folder) / "sweep", executor="serial", progress=False)


def left_by_sweep(folder):
    """Numbers of every cell, but for the seconds."""
    table = sweep.load_results(folder / "sweep", arrays=True).drop(columns="seconds")
    eigenvalues = [values.tobytes() for values in table.pop("eigenvalues")]
    return table.to_json(), eigenvalues


@pytest.fixture(scope="module")
def interrupted_sweep():
    return Interrupted(run_sweep, left_by_sweep)


@pytest.mark.reliability(
    "kill -9 of a whole sweep of 12 cells, up to four times, then called again",
    "eigenvalues and table bit-identical to an undisturbed sweep",
    full=50,
)
def test_sweep(interrupted_sweep, trial, draw, record_property):
    record_property(KILLS, interrupted_sweep.trial(draw))


def kill_workers(ended, killed, seconds):
    """Kill a worker every so many seconds."""
    draw = random.Random(0)
    while not ended.wait(seconds):
        if workers := multiprocessing.active_children():
            killed.append(draw.choice(workers).pid)
            os.kill(killed[-1], signal.SIGKILL)


@pytest.mark.reliability(
    "kill -9 of a worker of a sweep, over and over",
    "every cell done once, its result verifies",
    full=1,
)
def test_workers(trial, tmp_path, record_property):
    """Killed as often as a worker needs to start and to end a cell.

    Killed more often, a cell may use up its retries, and is reported as failed.
    """
    grid = {"task": "hessian", "blocks": 8, "mid": "tanh"}  # about a second each
    options = {"workers": 2, "progress": False}
    begun = time.perf_counter()
    rt.run_sweep({**grid, "seed": [0, 1]}, tmp_path / "undisturbed", **options)
    seconds = time.perf_counter() - begun
    grid["seed"] = list(range(200))
    ended, killed, heard = threading.Event(), [], Counter()
    killer = threading.Thread(target=kill_workers, args=(ended, killed, seconds))
    killer.start()
    try:
        report = rt.run_sweep(
            grid,
            tmp_path / "out",
            retries=20,
            on_report=lambda r: heard.update([r.cell.key]),
            **options,
        )
    finally:
        ended.set()
        killer.join()
    record_property("trials", 200)
    record_property("workers killed", len(killed))
    keys = {cell.key for cell in sweep.grid_of(grid)}
    assert not report.failed and heard == Counter(keys)
    assert keys == set(sweep.load_results(tmp_path / "out").index)
