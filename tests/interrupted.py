"""Trainings and other calls in processes that are killed at random moments and started again."""

import gc
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
from itertools import pairwise
from multiprocessing import forkserver, util
from pathlib import Path

import pytest
import torch
from torch import nn

import resid_theory as rt
from resid_theory.runtime import store
from resid_theory.training.checkpoint import Folder

RECIPE = rt.Recipe(
    epochs=6, batch=32, lr=0.05, milestones=(2,), pad=1, precision="float64", nesterov=True
)


def net(seed):
    """Weights, running statistics and a layer that draws random numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(6 * 64, 10),
        )


def data(samples=150):
    """Bytes that look like images; the last batch of an epoch is smaller."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (samples, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return x, torch.randint(10, (samples,), generator=generator)


def training(folder, nets=1, epochs=6):
    """A training with a checkpoint after each of its steps, five an epoch."""
    several = [net(seed) for seed in range(nets)]
    rt.train(
        several if nets > 1 else several[0],
        data(),
        RECIPE.change(epochs=epochs),
        seed=list(range(nets)) if nets > 1 else 0,
        device="cpu",
        out=folder,
        test=data(50),
        callbacks=[lambda module, moment: {"norm": float(module[0].weight.detach().norm())}],
        every=7,
        save_seconds=0.0,
        progress=False,
    )


def read(folder):
    """Read every file of a finished training; give the checkpoint."""
    tensors, about = Folder(folder).load()
    Folder(folder).rewind(about)
    rt.load_checkpoint(folder, net=net(0))
    return tensors, about


def left_by_training(folder):
    """All that a training leaves, except how many seconds it took."""
    tensors, about = Folder(folder).load()
    about.pop("seconds")
    files = sorted(path for path in Path(folder).iterdir() if path.suffix != ".lock")
    content = {p.name: store.digest(p) for p in files if p.name != "checkpoint.json"}
    return {"about": about, "tensors": sorted(tensors), **content}


def server():
    """Processes that have imported what is slow to import, so that a kill meets the call."""
    # torch.optim imports torch._dynamo when it is first used.
    for name in ("torch._dynamo", "pandas"):
        importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(util, "spawnv_passfds", forked)
        forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


def forked(path, words, files, spawned=util.spawnv_passfds):
    """Start a server of processes as a fork, which need not import again what is there."""
    if "forkserver" not in words[-1] or torch.cuda.is_available():  # which lives through no fork
        return spawned(path, words, files)
    if pid := os.fork():
        return pid
    try:
        gc.freeze()  # a child that collects would copy all memory
        for low, high in pairwise(sorted([2, *files, 2**16])):
            os.closerange(low + 1, high)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # pytest's are closed
        warnings.resetwarnings()
        for number in signal.valid_signals() - {signal.SIGINT}:  # as in a program that begins
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        forkserver._forkserver.__init__()  # its lock is held here
        exec(words[-1])
    finally:
        os._exit(0)


class Interrupted:
    """Calls ``target(folder)`` in processes; ``left(folder)`` is what must not depend on kills.

    A folder gets a file named ``.lock`` when the work begins: moments are counted from then on.
    """

    def __init__(self, target, left):
        self.target, self.left, self.context = target, left, server()
        self.exact, self.seconds = self.once()

    def once(self):
        """What an undisturbed call leaves, and its seconds."""
        with tempfile.TemporaryDirectory() as name:
            seconds, _ = self.run(Path(name), None)
            return self.left(Path(name)), seconds

    def run(self, folder, seconds):
        """Call, and kill so many seconds after the beginning; seconds, and whether it met it."""
        process = self.context.Process(target=self.target, args=(str(folder),))
        lock, before = folder / ".lock", time.time()
        process.start()
        while process.is_alive() and not (lock.exists() and lock.stat().st_mtime > before):
            time.sleep(0.001)
        begun = time.time()
        process.join(seconds)
        alive = process.is_alive()
        process.kill()
        process.join()
        assert alive or process.exitcode == 0, process.exitcode
        return time.time() - begun, alive

    def trial(self, draw):
        """Kill up to four times, finish, compare; the number of kills that met the call."""
        kills = 0
        while not kills:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                moments = [draw.uniform(0, self.seconds / 2) for _ in range(draw.randint(1, 4))]
                kills = sum(self.run(folder, moment)[1] for moment in moments)
                self.run(folder, None)
                assert self.left(folder) == self.exact
        return kills
