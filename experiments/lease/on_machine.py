"""What is done on the machine: unpack, check, test, train in order, and pack whatever happens."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from experiments.lease import fast_paths, time_table
from experiments.lease.carried import install, sealed, steps_done
from experiments.lease.packed_images import unpack_images
from experiments.lease.part_processes import Machine, PartQueue, as_json, prepare_processes
from experiments.lease.volumes import Limits, read_volumes, write_volumes
from experiments.parts import Request, Store
from experiments.provenance import ROOT
from experiments.trainings import PRECISIONS
from resid_theory.runtime import store

CHECK, TESTS, GAIN, SAVE, PACK = 45.0, 45.0, 25.0, 8.0, 12.0  # seconds at most
LEAST = 15.0  # seconds that must be left to begin a check
PACKED = ".packed"  # ends the names of packed batches of images


@dataclass(kw_only=True)
class Lease:
    """One call on the machine; a later one goes on where it ended.

    Attributes:
        home: Folder on the machine: the folders that arrived, code, data, parts, results of checks.
        out: Folder whose files come back.
        until: Moment at which everything is packed, in seconds since the epoch.
        requests: Open parts, the most wanted first.
        folders: Number of folders that must arrive before parts are computed.
        limits: What comes back.
        machine: Where parts are computed.
        tests: Command that tests the code on the device; empty for none.
    """

    home: Path
    out: Path
    until: float
    requests: Sequence[Request]
    folders: int
    limits: Limits
    machine: Machine
    tests: Sequence[str] = ()
    asked: bool = False
    started: float = field(default_factory=time.time)
    stages: dict[str, float] = field(default_factory=dict)
    choices: dict[str, fast_paths.Choice] = field(default_factory=dict)
    queue: PartQueue | None = None

    def run(self) -> None:
        """Do what is next until the time is over, a signal comes or nothing is left."""
        signals = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, self._ask) for number in signals]
        self.machine.parts.mkdir(parents=True, exist_ok=True)
        prepare_processes()
        try:
            self._timed("unpack", self.unpack)
            self._timed("check", self.check)
            if self.tests and not (self.home / "tests.log").exists():
                self._timed("tests", self.test)
            self._timed("side by side", self.try_together)
            if all((self.home / str(i + 1)).is_dir() for i in range(self.folders)):
                self._timed("parts", self.train)
        finally:
            self.pack()
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self.asked = True

    def _left(self) -> float:
        return self.until - PACK - time.time()

    def _timed(self, stage: str, call: Callable[[], None]) -> None:
        if self.asked or self._left() <= 0:
            return
        began = time.time()
        try:
            call()
        except Exception:  # the parts are computed nevertheless, the plain way
            traceback.print_exc()
        finally:
            self.stages[stage] = time.time() - began
            print(f"-------- {stage}: {self.stages[stage]:.1f} s, {self._left():.0f} s left",
                  flush=True)  # fmt: skip

    # Stages --------------------------------------------------------------------------------------

    def unpack(self) -> None:
        """Put the data and the unfinished parts that arrived where they are looked for."""
        batches = {}
        for folder in sorted(self.home.glob("[0-9]*")):
            for source in sorted((folder / "data").rglob("*")) if folder.is_dir() else ():
                target = self.home / source.relative_to(folder)
                if target.suffix == PACKED:
                    target = target.with_suffix("")
                if source.is_file() and not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    batches[target] = source
            with suppress(ValueError):
                for members in read_volumes(folder):
                    install(members, self.machine.parts)
        if batches:
            with ProcessPoolExecutor(min(len(batches), os.cpu_count() or 1)) as pool:
                list(pool.map(_unpack, batches.values(), batches.keys()))

    def check(self) -> None:
        """Compare the fast paths of each kind of net with the plain one, once."""
        trainings = [request.part for request in self.requests]
        longest: dict[str, int] = {}
        for training in trainings:
            kind = time_table.kind_of(training)
            longest[kind] = max(time_table.steps(training), longest.get(kind, 0))
        folder = self.home / "trials"
        known = {trial.kind for trial in fast_paths.read_trials(folder)}
        new = [training for training in trainings if time_table.kind_of(training) not in known]
        if new and self._left() > LEAST:
            end = time.time() + min(CHECK, self._left())
            over = lambda: self.asked or time.time() > end  # noqa: E731
            fast_paths.try_all(new, self.machine, folder, over)
        self.choices = fast_paths.choose(fast_paths.read_trials(folder), longest)
        for kind in longest:
            choice = self.choices.get(kind)
            print(*(choice.words if choice else [f"{kind}: nothing measured"]), sep="\n")
            print(f"{kind}: chosen {dict(choice.how if choice else fast_paths.PLAIN)}", flush=True)

    def test(self) -> None:
        """Run the tests that choose a device, in parallel, for a limited time."""
        words = list(self.tests)
        if find_spec("xdist"):
            words += ["-p", "xdist.plugin", "-n", str(min(12, os.cpu_count() or 1))]
        # Other plugins of the machine would warn, and warnings are errors.
        settings = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        with open(self.home / "tests.log", "w") as log:
            process = subprocess.Popen(
                words, cwd=ROOT, env=settings, stdout=log, stderr=log, start_new_session=True
            )
            end = time.time() + min(TESTS, self._left())
            while process.poll() is None and time.time() < end and not self.asked:
                time.sleep(0.1)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                log.write("\nstopped: time is over\n")
        print(*(self.home / "tests.log").read_text().splitlines()[-3:], sep="\n", flush=True)

    def try_together(self) -> None:
        """Measure, once, what the first two parts gain from running side by side."""
        file, pair = self.home / "together.json", self._open()[:2]
        if file.exists() or len(pair) < 2 or self._left() < LEAST:
            return
        given = [(r.part, self._how(r), self._milliseconds(r)) for r in pair]
        end = time.time() + min(GAIN, self._left())
        store.write_json(file, {"gain": fast_paths.gain_together(given, self.machine, end)})

    def train(self) -> None:
        """Compute the open parts, the most wanted first."""
        file = self.home / "together.json"
        gain = store.read_json(file)["gain"] if file.exists() else None
        print(f"two parts side by side do the work of {gain or 'unknown'}", flush=True)
        gain = time_table.TOGETHER if gain is None else gain
        slots = 2 if gain > 1.05 else 1

        def seconds(request: Request) -> float:
            steps = time_table.steps(request.part)
            left = steps - steps_done(self.machine.parts / "cells" / request.part.key)
            alone = time_table.duration(left, self._milliseconds(request))
            return alone * slots / gain if slots > 1 else alone

        self.queue = PartQueue(
            requests=self._open(),
            machine=self.machine,
            until=self.until - PACK,
            slots=slots,
            seconds=seconds,
            how=self._how,
            plain=fast_paths.PLAIN,
            stopped=lambda: self.asked,
            patience=SAVE,
            each=self.pack,
        )
        self.queue.run()

    def _open(self) -> list[Request]:
        done = Store(self.machine.parts)
        return [r for r in self.requests if done.find(r.part, weights=r.weights) is None]

    def _how(self, request: Request) -> Mapping[str, Any]:
        """The chosen path of the kind of net; in float32, layout included, where a recipe asks."""
        choice = self.choices.get(time_table.kind_of(request.part))
        how = choice.how if choice else fast_paths.PLAIN
        finest = request.part.recipe.precision
        if PRECISIONS.index(how["precision"]) < PRECISIONS.index(finest):
            how = {**fast_paths.PLAIN, "precision": finest, "compile": how["compile"]}
        return how

    def _milliseconds(self, request: Request) -> float:
        """Duration of a step alone: by the model, and by the net of its kind that was tried."""
        kind, ratio = time_table.kind_of(request.part), 1.0
        choice = self.choices.get(kind)
        if choice is not None and not math.isnan(choice.milliseconds):
            tried = next(r.part for r in self.requests if time_table.kind_of(r.part) == kind)
            ratio = choice.milliseconds / time_table.milliseconds(tried)
        return time_table.milliseconds(request.part, ratio)

    # Packing -------------------------------------------------------------------------------------

    def pack(self) -> None:
        """Replace what comes back: finished parts, logs, then weights and checkpoints in order."""
        about = {
            "stages": {**self.stages, "all": time.time() - self.started},
            "attempts": as_json(self.queue.attempts) if self.queue else [],
            "device": _device(self.machine.device),
        }
        groups: dict[str, dict[str, bytes]] = {
            "lease": {f"calls/{self.started:.0f}.json": json.dumps(about, indent=1).encode()}
        }
        for path in [*self.home.glob("*.log"), *self.home.glob("trials/*.jsonl")]:
            groups[path.name] = {f"checks/{path.name}": path.read_bytes()}
        for path in self.machine.parts.glob("*.log"):
            groups[path.name] = {f"logs/{path.name}": path.read_bytes()[-50_000:]}
        places = [self.machine.parts / "cells" / r.part.key for r in self.requests]
        open_places = [place for place in places if not (place / "result.json").exists()]
        for name, of in (("result", places), ("weights", places),
                         ("training/checkpoint", open_places)):  # fmt: skip
            for place in of:
                if files := sealed(place, name):
                    groups[f"{name} of {place.name}"] = files
        try:
            left = write_volumes(groups, self.out, self.limits)
        except OSError as error:  # the parts go on, and the next time may be better
            print(f"not packed: {error}", flush=True)
        else:
            print(*(f"does not fit in what comes back: {name}" for name in left), sep="\n",
                  end="\n" if left else "", flush=True)  # fmt: skip


def _unpack(source: Path, target: Path) -> None:
    content = source.read_bytes()
    store.write_bytes(target, unpack_images(content) if source.suffix == PACKED else content)


def _device(device: str) -> str:
    try:
        return torch.cuda.get_device_name() if device == "cuda" else device
    except (RuntimeError, AssertionError) as error:
        return f"{device}: {error}"


def device_tests() -> list[str]:
    """Command that runs the tests that choose a device."""
    words = ["-m", "pytest", "-q", "--device", "cuda", "--only-device", "--maxfail", "20", "tests"]
    return [sys.executable, *words]
