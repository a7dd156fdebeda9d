"""The training loop: epochs of shuffled batches, measurements and checkpoints."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resid_theory.nested import rows_of, tensors_of
from resid_theory.runtime.preserve import deterministic, seed_devices
from resid_theory.runtime.resources import is_out_of_memory
from resid_theory.training.checkpoint import Writer, check_same, digest, pack, unpack
from resid_theory.training.device_dataset import DeviceDataset
from resid_theory.training.divergence import Watch
from resid_theory.training.epochs import Epoch, Epochs
from resid_theory.training.measurements import Measurements
from resid_theory.training.parallel import Parallel
from resid_theory.training.recipe import GRAPH, Recipe
from resid_theory.training.run import Run, RunSettings
from resid_theory.training.saved_nets import architecture_of, write_net
from resid_theory.training.step import NetGroup, StepBatch, optimizer_of, set_rate
from resid_theory.training.step_graphs import NOT_REPLAYED, StepGraphs


class Session:
    """A training in progress, of nets that are on the device in the recipe's precision."""

    def __init__(
        self,
        nets: Sequence[nn.Module],
        data: DeviceDataset,
        test: DeviceDataset | None,
        recipe: Recipe,
        seeds: tuple[int, ...],
        settings: RunSettings,
    ) -> None:
        self.recipe, self.seeds, self.settings = recipe, seeds, settings
        initial = digest(t for net in nets for t in net.state_dict().values())
        self.architectures = [architecture_of(net) for net in nets] if settings.folder else []
        for net in nets:
            net.train()
        self.group = NetGroup(nets, recipe, settings.device)
        self.optimizer = optimizer_of(self.group, recipe)
        correction, name = settings.correction, None
        if correction is not None:
            name = getattr(correction, "__qualname__", type(correction).__qualname__)
            for net in self.group.nets:
                correction(self.optimizer, net)
        # What the last bit of every weight depends on, in JSON's types: it tells one training from
        # another. "ranks" is the number of processes.
        self.identity: dict[str, Any] = {
            "recipe": json.loads(json.dumps(recipe.content())),
            "seeds": list(seeds),
            "data": data.digest,
            "test": test.digest if test else None,
            "initial": initial,
            "correction": name,
            "ranks": settings.process_group.count,
        }
        # The first process writes for all.
        self.folder = settings.folder if settings.process_group.rank == 0 else None
        self.writer = Writer(self.folder, settings.device) if self.folder else None
        self.epochs = Epochs(data, recipe, settings.device)
        self.measurements = Measurements(
            self.group, self.optimizer, self.epochs, test, settings, self.folder
        )
        self.parallel = Parallel(settings.process_group, self.group, seeds[0])
        self.watch = Watch(self.group, self.epochs.steps, settings.device)
        self.plans: dict[int, Epoch] = {}  # the present epoch, by seed
        self.graphs: StepGraphs | None = None
        if recipe.compile == GRAPH and self.parallel.alone and settings.device.type == "cuda":
            self.graphs = StepGraphs(
                self.group, self.optimizer, self.measurements.sums, self._descend_at
            )
        self.step, self.seconds = 0, 0.0
        self.save_seconds = settings.save_seconds
        self.environments: list[dict[str, Any]] = []

    def run(self, known: Mapping[str, Any]) -> Run:
        """Train to the end; ``known`` replaces what a checkpoint is compared with."""
        self.started = time.perf_counter()
        total = self.epochs.steps * self.recipe.epochs
        with ExitStack() as stack:
            if self.writer is not None:
                stack.callback(self.writer.finish)
            stack.enter_context(_surroundings(self.settings.device, self.seeds[0], self.recipe))
            self._begin(known)
            hidden = not self.settings.progress or bool(self.settings.process_group.rank)
            with tqdm(total=total, initial=self.step, unit="step", disable=hidden) as bar:
                while self.step < total and self._epoch(bar.update):
                    pass
            self._end(self.step == total)
        return Run(
            nets=tuple(self.group.nets),
            recipe=self.recipe,
            seeds=self.seeds,
            metrics=self.measurements.lines,
            first_losses=self.watch.first.cpu(),
            notes=self._notes(),
            finished=self.step == total,
            seconds=self._elapsed(),
            out=self.settings.folder.path if self.settings.folder else None,
        )

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.started

    def _begin(self, known: Mapping[str, Any]) -> None:
        """Resume from the folder's checkpoint, or make the first one."""
        process_group, device = self.settings.process_group, self.settings.device
        wanted = {**self.identity, **known}
        process_group.check_equal(wanted, device)

        def opened() -> tuple[dict[str, Tensor], dict[str, Any], list[dict[str, Any]]] | None:
            if self.folder is None:
                return None
            saved = self.folder.load()
            if saved is None:
                self.folder.metrics.write_bytes(b"")
                return None
            check_same(self.folder, saved[1], wanted)
            return *saved, self.folder.rewind(saved[1])

        found = process_group.from_first(opened, device)
        if found is not None:
            tensors, about, self.measurements.lines = found
            unpack(tensors, self.group, self.optimizer, self.measurements.sums)
            self.step, self.seconds = about["step"], about["seconds"]
            self.watch.resume(self.step, tensors.get("first_losses"))
            self.saved_step = self.step
            self.identity["initial"] = about["initial"]
            self.environments = about["environments"]
        threads = torch.get_num_threads()
        now = {"torch": torch.__version__, "device": device.type, "threads": threads}
        if now not in self.environments:
            self.environments.append(now)
        self.saved = time.perf_counter()
        if found is None:
            self._measure(0)
            self._save()  # a folder that cannot be written to shows before the first step

    def _epoch(self, tick: Callable[[], object]) -> bool:
        """Take the remaining steps of an epoch; False if the training is to stop."""
        steps = self.epochs.steps
        number, first = divmod(self.step, steps)
        for seed in dict.fromkeys(self.seeds):
            drawn = self.epochs.draw(seed, number)
            if seed in self.plans:
                self.plans[seed].become(drawn)
            else:
                self.plans[seed] = drawn
        for position in range(first, steps):
            if self._stops():
                return False
            self._advance(position)
            tick()
            if self.step % steps == 0:
                self._measure(number + 1)
            elif self.settings.every and self.step % self.settings.every == 0:
                self._measure(None)
            # After the measurement: a checkpoint between the two would lose its lines.
            if time.perf_counter() - self.saved >= self.save_seconds:
                self._save()
        return True

    def _stops(self) -> bool:
        """Ask whether to stop before the next step; one of several processes stops all."""
        if self.settings.stop is None:
            return False
        answer = bool(self.settings.stop(self.step))
        if self.settings.process_group.count == 1:
            return answer
        answers = torch.tensor([float(answer)]).to(self.settings.device)
        return bool(self.settings.process_group.add(answers) > 0)

    def _advance(self, position: int) -> None:
        """One step of gradient descent."""
        batch, size = self.recipe.batch, len(self.epochs.data)
        start = position * batch
        stop = min(start + batch, size)
        set_rate(self.optimizer, self.recipe.rate(self.step, self.epochs.steps))
        last = size // batch - 1 if stop - start == batch else position
        if self.graphs is None or not self.graphs.replay(position, stop - start, last):
            rows, share = self.parallel.part(start, stop)
            self.parallel.begin(self.step)
            self._descend(slice(position, position + 1), rows, share, slice(start, stop))
        self.step += 1

    def _descend_at(self, place: Tensor, samples: int) -> Tensor:
        """The step at a place, (1,), that only the device knows."""
        places = torch.arange(samples, device=place.device)
        rows = place * self.recipe.batch + places
        return self._descend(place, rows, 1.0, rows)

    def _descend(
        self, place: slice | Tensor, rows: slice | Tensor, share: float, all_rows: slice | Tensor
    ) -> Tensor:
        """Operations of a step on the device, of this process's share of the rows; the losses."""
        by_seed = {seed: plan.batch(rows) for seed, plan in self.plans.items()}
        batches = [by_seed[seed] for seed in self.seeds]
        self.optimizer.zero_grad()
        losses, wrong = self.parallel.join(*self._gradients(batches), share)
        self.watch.note(place, losses)
        if self.settings.device.type == "cpu":  # elsewhere it would wait for the device
            self.watch.settle(self.step + 1, batches)
        self.optimizer.step()
        weights = {seed: plan.weight(all_rows) for seed, plan in self.plans.items()}
        self.measurements.add(losses, wrong, [weights[seed] for seed in self.seeds])
        return losses

    def _notes(self) -> tuple[str, ...]:
        fault = None if self.graphs is None else self.graphs.fault
        told = () if fault is None else (f"{NOT_REPLAYED}: {fault}",)
        return self.epochs.data.notes + told

    def _gradients(self, batches: list[StepBatch]) -> tuple[Tensor, Tensor]:
        """Loss and gradient; where memory is short, halve the batch until it fits, and say so."""
        given = fits = len(next(tensors_of(batches)))
        lack = ""
        while fits:
            some = [rows_of(b, slice(fits), given) for b in batches] if lack else batches
            try:
                found = self.group.gradients(some)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                lack = lack or (str(error) or type(error).__name__).splitlines()[0]
            else:
                if not lack:
                    return found
                break
            # Out here the traceback, which holds the step's tensors, is gone.
            self.optimizer.zero_grad()
            if self.settings.device.type == "cuda":
                torch.cuda.empty_cache()
            fits //= 2
        advice = f"a batch of {fits} fits" if fits else "not even a batch of 1 fits"
        raise MemoryError(
            f"batch: a step with {given} samples ran out of memory ({lack}); {advice}"
        )

    def _measure(self, epoch: int | None) -> None:
        self.watch.settle(self.step)
        self.measurements.measure(self.step, epoch)

    def _save(self) -> None:
        if self.writer is None:
            return
        self.watch.settle(self.step)  # a state that is not finite is never saved
        begun = time.perf_counter()
        about = {
            "kind": "training",
            "step": self.step,
            **self.identity,
            "architectures": self.architectures,
            "seconds": self._elapsed(),
            "environments": self.environments,
        }
        tensors = pack(self.group, self.optimizer, self.measurements.sums)
        tensors["first_losses"] = self.watch.first
        self.writer.write(tensors, about)
        self.saved, self.saved_step = time.perf_counter(), self.step
        if self.settings.save_seconds > 0:
            self.save_seconds = max(self.settings.save_seconds, 20 * (self.saved - begun))

    def _end(self, finished: bool) -> None:
        """Save the last state and, of a finished training, each net by itself."""
        self.watch.settle(self.step)
        if self.folder is None:
            return
        if self.saved_step != self.step:
            self._save()
        if not finished:
            return
        several, lines = len(self.group.nets) > 1, self.measurements.lines
        for i, net in enumerate(self.group.nets):
            last = [line for line in lines if line["net"] == i and "epoch" in line][-1]
            path = self.folder.path / (f"net.{i}.json" if several else "net.json")
            about = {"recipe": self.recipe.content(), "seed": self.seeds[i], "last": last}
            write_net(path, net, self.architectures[i], about)


@contextmanager
def _surroundings(device: torch.device, seed: int, recipe: Recipe) -> Iterator[None]:
    """Seeded, with gradients, with kernels that repeat; everything is put back afterwards."""
    tf32, rounds = recipe.precision == "tf32", recipe.precision in ("tf32", "bf16")
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.enable_grad(),
        deterministic(tf32=tf32, fastest=rounds and recipe.compile == GRAPH),
    ):
        seed_devices(seed, devices)
        yield
