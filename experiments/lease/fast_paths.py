"""Faster ways of computing a step, each compared with the plain one before it is used."""

import fcntl
import json
import math
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import torch

import resid_theory as rt
from experiments.confirmation import loss_gap
from experiments.lease import time_table
from experiments.lease.part_processes import Machine, context
from experiments.trainings import Training
from resid_theory.training.run import Run, Stop
from resid_theory.training.step_graphs import NOT_REPLAYED

PLAIN = {"precision": "float32", "channels_last": False, "compile": "none"}
WARM, TIMED = 20, 30  # steps of a trial before the clock starts, and those that it times
BESIDE = 4.0  # seconds for which two trainings are watched side by side
SHORT = 0.1  # share of these in a rehearsal


@dataclass(frozen=True, kw_only=True)
class Trial:
    """First steps of one kind of net on one path.

    Attributes:
        kind: Row of ``time_table.STEPS``.
        path: Name of the path.
        how: Changes of the recipe.
        losses: First losses; empty if it failed.
        milliseconds: Duration of a step.
        start: Seconds until the first step was done.
        error: Why it failed.
    """

    kind: str
    path: str
    how: Mapping[str, Any]
    losses: Sequence[float] = ()
    milliseconds: float = math.nan
    start: float = math.nan
    error: str = ""


def fault(trial: Trial, plain: Trial) -> str:
    """Why a path must not be used; empty if its losses are those of the plain one."""
    if trial.error:
        return trial.error
    return loss_gap(trial.losses, plain.losses, trial.how["precision"])


def trials(training: Training, machine: Machine, lock: Path) -> Iterable[Trial]:
    """Try the plain path and those that the recipe's precision allows."""
    coarse = training.recipe.precision
    plain = _trial(training, "plain", PLAIN, machine, lock)
    yield plain
    good = [plain]
    layouts = {"channels_last": {**PLAIN, "precision": coarse, "channels_last": True}}
    if coarse != "float32":
        layouts = {coarse: {**PLAIN, "precision": coarse}, **layouts}
    for path, how in layouts.items():
        trial = _trial(training, path, how, machine, lock)
        good += [] if fault(trial, plain) else [trial]
        yield trial
    best = min(good, key=lambda trial: trial.milliseconds)
    yield _trial(training, "graph", {**best.how, "compile": "graph"}, machine, lock)


def _trial(
    training: Training,
    path: str,
    how: Mapping[str, Any],
    machine: Machine,
    lock: Path,
) -> Trial:
    about: dict[str, Any] = {"kind": time_table.kind_of(training), "path": path, "how": dict(how)}
    warm, timed = (round((SHORT if machine.rehearsal else 1) * n) for n in (WARM, TIMED))
    moments = {0: time.perf_counter()}
    with open(lock, "w") as file:

        def stop(step: int) -> bool:
            if step in (1, warm, warm + timed):
                if step == warm:
                    fcntl.flock(file, fcntl.LOCK_EX)  # the machine for itself while it is timed
                _wait_for(machine.device)
                moments[step] = time.perf_counter()
            return step >= warm + timed

        try:
            run = _train(training, how, machine, stop)
        except Exception as error:  # whatever a machine raises: the path is not used
            traceback.print_exc()
            return Trial(**about, error=" ".join(f"{type(error).__name__}: {error}".split())[:300])
    for note in run.notes:
        if note.startswith(NOT_REPLAYED):
            return Trial(**about, error=note)
    return Trial(
        **about,
        losses=run.first_losses[0].tolist(),
        milliseconds=1e3 * (moments[warm + timed] - moments[warm]) / timed,
        start=moments[1] - moments[0],
    )


def _train(training: Training, how: Mapping[str, Any], machine: Machine, stop: Stop) -> Run:
    # Long enough that ``stop`` ends it, however fast the machine.
    recipe = training.recipe.change(epochs=max(training.recipe.epochs, 1_000_000), **how)
    return rt.train(
        training.start(),
        _images(training, (WARM + TIMED) * recipe.batch),
        recipe,
        seed=training.seed,
        device=machine.device,
        stop=stop,
        progress=False,
    )


def _wait_for(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _images(training: Training, count: int) -> rt.Images:
    """Random images, because the official ones may not have arrived yet."""
    source = torch.Generator().manual_seed(0)
    shape = (count, 3, training.size, training.size)
    return rt.Images(
        pixels=torch.randint(256, shape, generator=source, dtype=torch.uint8),
        labels=torch.randint(10, (count,), generator=source),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )


def _try(training: Training, machine: Machine, results: Path, lock: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with machine.inside(), open(results, "a") as file:
        for trial in trials(training, machine, lock):
            file.write(json.dumps(asdict(trial)) + "\n")
            file.flush()
    os._exit(0)


def try_all(
    trainings: Sequence[Training], machine: Machine, folder: Path, over: Callable[[], bool]
) -> None:
    """Try the paths of the first training of each kind, in a process each, until time is over."""
    firsts = {time_table.kind_of(t): t for t in reversed(trainings)}
    folder.mkdir(parents=True, exist_ok=True)
    processes = []
    for kind, training in reversed(firsts.items()):
        given = (training, machine, folder / f"{kind}.jsonl", folder / "lock")
        processes.append(context().Process(target=_try, args=given, daemon=True))
        processes[-1].start()
    while any(process.is_alive() for process in processes) and not over():
        time.sleep(0.05)
    for process in processes:
        process.kill()


def read_trials(folder: Path) -> list[Trial]:
    """The trials that were done in time."""
    lines = [
        line
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines(True)
    ]
    return [Trial(**json.loads(line)) for line in lines if line.endswith("\n")]


def gain_together(
    pair: Sequence[tuple[Training, Mapping[str, Any], float]], machine: Machine, until: float
) -> float | None:
    """Work of two trainings side by side over that of one; None if it was not measured in time.

    Each comes with its changes of the recipe and its milliseconds a step alone.
    """
    made = context()
    barrier, found = made.Barrier(len(pair)), made.Queue()
    processes = [
        made.Process(
            target=_beside, args=(training, how, alone, machine, barrier, found), daemon=True
        )
        for training, how, alone in pair
    ]
    for process in processes:
        process.start()
    works: list[float] = []
    while len(works) < len(pair) and time.time() < until and not any(p.exitcode for p in processes):
        with suppress(Empty):
            works.append(found.get(timeout=0.05))
    for process in processes:
        process.kill()
    return sum(works) if len(works) == len(pair) else None


def _beside(
    training: Training,
    how: Mapping[str, Any],
    alone: float,
    machine: Machine,
    barrier: Any,
    found: Any,
) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    began = math.inf

    def stop(step: int) -> bool:
        nonlocal began
        if step == WARM:
            _wait_for(machine.device)
            barrier.wait()
            began = time.perf_counter()
        if time.perf_counter() - began < BESIDE * (SHORT if machine.rehearsal else 1):
            return False
        _wait_for(machine.device)
        found.put((step - WARM) * alone / 1e3 / (time.perf_counter() - began))
        return True

    with machine.inside():
        _train(training, how, machine, stop)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Path of a kind of net, its milliseconds a step, and what was said about the others."""

    how: Mapping[str, Any]
    milliseconds: float
    words: Sequence[str]


def choose(tried: Sequence[Trial], longest: Mapping[str, int]) -> dict[str, Choice]:
    """The fastest path without fault, by kind; ``longest`` gives the steps of a training."""
    chosen = {}
    for kind in dict.fromkeys(trial.kind for trial in tried):
        mine = [trial for trial in tried if trial.kind == kind]
        plain = mine[0]
        words, good = [], []
        for trial in mine:
            wrong = fault(trial, plain) if not plain.error else plain.error
            words.append(
                f"{kind}, {trial.path}: {trial.milliseconds:.2f} ms a step, first after "
                f"{trial.start:.1f} s" + (f": NOT USED, {wrong}" if wrong else "")
            )
            good += [] if wrong else [trial]
        best = min(
            good,
            key=lambda trial: trial.start + longest[kind] * trial.milliseconds / 1e3,
            default=plain,
        )
        chosen[kind] = Choice(how=best.how, milliseconds=best.milliseconds, words=words)
    return chosen
