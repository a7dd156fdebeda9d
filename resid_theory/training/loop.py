"""The loop: epochs of shuffled batches, measurements, and a checkpoint that a kill cannot hurt."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resid_theory.data import Crops, augment, draw_crops
from resid_theory.runtime.preserve import deterministic, preserved
from resid_theory.runtime.resources import is_out_of_memory
from resid_theory.training.checkpoint import check_same, digest, pack, unpack
from resid_theory.training.device_dataset import DeviceDataset
from resid_theory.training.divergence import Watch, fitting_batch
from resid_theory.training.parallel import Parallel
from resid_theory.training.recipe import Recipe
from resid_theory.training.run import Progress, Run, RunSettings
from resid_theory.training.saved_nets import architecture_of, save_checkpoint
from resid_theory.training.step import Batch, Separate, Stacked, optimizer_of, stack

__all__ = ["Session"]


class Session:
    """A training under way: everything that the next step depends on.

    Args:
        nets: On the device, in the recipe's precision.
        data: To train on, on the device.
        test: To measure on, or None.
        recipe: How to train.
        seeds: One for each net.
        settings: Everything else.
    """

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
        self.data, self.test, self.process_group = data, test, settings.process_group
        # The first process writes for all.
        self.folder = settings.folder if self.process_group.rank == 0 else None
        self.initial = digest(t for net in nets for t in net.state_dict().values())
        self.architectures = [architecture_of(net) for net in nets] if settings.folder else []
        for net in nets:
            net.train()
        self.group, self.unstacked = self._stack(nets)
        self.optimizer = optimizer_of(self.group, recipe)
        self.correction = self._correct()
        self.parallel = Parallel(self.process_group, self.group, seeds[0])
        self.watch = Watch(self.group, settings.device)
        zeros = torch.zeros(len(nets), dtype=torch.float64, device=settings.device)
        self.sums = {"loss": zeros, "wrong": zeros.clone()}
        self.steps = math.ceil(len(data) / recipe.batch)  # in an epoch
        self.total = self.steps * recipe.epochs
        self.step, self.seconds, self.saved, self.saved_step = 0, 0.0, -math.inf, -1
        self.metrics: list[dict[str, Any]] = []
        self.environments: list[dict[str, Any]] = []

    def _stack(self, nets: Sequence[nn.Module]) -> tuple[Separate | Stacked, str | None]:
        recipe, settings = self.recipe, self.settings
        if len(nets) == 1 or settings.stacked is False:
            return Separate(nets, recipe, settings.device), None
        if settings.correction is not None:
            reason = "a correction of the decay works on the tensors of each net"
        elif settings.stacked is None and settings.device.type == "cpu":
            # Grouped convolutions cost more than twice as much as turns there.
            reason = "on a CPU turns are faster; stacked=True stacks nevertheless"
        else:
            return stack(nets, self.data.batch(slice(2)), recipe, settings.device)
        return Separate(nets, recipe, settings.device), reason

    def _correct(self) -> str | None:
        """Hook the correction in; its name is part of what the checkpoint says."""
        correction = self.settings.correction
        if correction is None:
            return None
        for net in self.group.nets:
            correction(self.optimizer, net)
        return getattr(correction, "__qualname__", type(correction).__qualname__)

    def run(self, known: Mapping[str, Any] | None) -> Run:
        """Train to the end.

        Args:
            known: What the folder's checkpoint must agree with; None for a first start elsewhere.

        Returns:
            The result.
        """
        self.started = time.perf_counter()
        with _surroundings(self.settings.device, self.seeds[0], self.recipe.precision == "tf32"):
            self._begin(known)
            with self._bar() as tick:
                while self.step < self.total:
                    self._epoch(tick)
            self._end()
        return Run(
            nets=tuple(self.group.nets),
            recipe=self.recipe,
            seeds=self.seeds,
            metrics=self.metrics,
            seconds=self._elapsed(),
            unstacked=self.unstacked,
            out=self.settings.folder.path if self.settings.folder else None,
        )

    @contextmanager
    def _bar(self) -> Generator[Callable[[], object], None, None]:
        if not self.settings.progress or self.process_group.rank > 0:
            yield lambda: None
            return
        with tqdm(total=self.total, initial=self.step, unit="step", mininterval=0.5) as bar:
            yield bar.update

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.started

    def _begin(self, known: Mapping[str, Any] | None) -> None:
        wanted = {**self.about(), **(known or {})}
        if self.process_group.count > 1:
            self.process_group.check_equal(wanted, self.settings.device)
        found = self.process_group.from_first(lambda: self._open(wanted), self.settings.device)
        if found is None:
            self._note_environment()
            self._measure(0)
            self._save()  # a folder that cannot be written to shows before the first step
            return
        tensors, about, self.metrics = found
        unpack(tensors, self.group, self.optimizer, self.sums)
        self.step, self.seconds, self.initial = about["step"], about["seconds"], about["initial"]
        self.environments, self.saved_step = about["environments"], self.step
        self._note_environment()
        self.saved = time.perf_counter()

    def _open(
        self, wanted: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any], list[dict[str, Any]]] | None:
        """The folder's checkpoint and metrics; None for a first start."""
        if self.folder is None:
            return None
        found = self.folder.load()
        if found is None:
            self.folder.start()
            return None
        check_same(self.folder, found[1], wanted)
        return *found, self.folder.rewind(found[1])

    def _note_environment(self) -> None:
        device, threads = self.settings.device.type, torch.get_num_threads()
        now = {"torch": torch.__version__, "device": device, "threads": threads}
        if now not in self.environments:
            self.environments.append(now)

    def about(self) -> dict[str, Any]:
        """What tells this training from another.

        Returns:
            What the last bit of every weight depends on, in JSON's types.
        """
        return {
            "recipe": json.loads(json.dumps(asdict(self.recipe))),
            "seeds": list(self.seeds),
            "data": self.data.digest,
            "test": self.test.digest if self.test else None,
            "initial": self.initial,
            "correction": self.correction,
            "stacked": isinstance(self.group, Stacked),
            "ranks": self.process_group.count,
        }

    def _epoch(self, tick: Callable[[], object]) -> None:
        epoch, first = divmod(self.step, self.steps)
        plans = {seed: self._plan(seed, epoch) for seed in dict.fromkeys(self.seeds)}
        for position in range(first, self.steps):
            self._advance(plans, position)
            tick()
            if self.step % self.steps == 0:
                self._measure(epoch + 1)
            elif self.settings.every and self.step % self.settings.every == 0:
                self._measure(None)
            # After the measurement: a checkpoint between the two would lose its lines.
            if time.perf_counter() - self.saved >= self.settings.save_seconds:
                self._save()

    def _plan(self, seed: int, epoch: int) -> tuple[Tensor, Crops | None]:
        """Order and crops of an epoch: a function of its number, so a resume draws them again."""
        mixed = hashlib.sha256(f"{seed} {epoch}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(mixed, "big") >> 1)
        order = torch.randperm(len(self.data), generator=generator).to(self.settings.device)
        if self.recipe.augmentation == "none":
            return order, None
        crops = draw_crops(len(self.data), pad=self.recipe.pad, generator=generator)
        return order, crops.to(self.settings.device)

    def _batch(self, plan: tuple[Tensor, Crops | None], rows: slice) -> Batch:
        order, crops = plan
        if crops is None:
            return self.data.batch(order[rows])
        recipe, cut = self.recipe, crops[rows]
        return self.data.batch(
            order[rows], lambda p: augment(p, cut, pad=recipe.pad, padding=recipe.padding)
        )

    def _advance(self, plans: Mapping[int, tuple[Tensor, Crops | None]], position: int) -> None:
        """One step of gradient descent."""
        start = position * self.recipe.batch
        stop = min(start + self.recipe.batch, len(self.data))
        rows, share = self.parallel.part(start, stop)
        batches = [self._batch(plan, rows) for plan in plans.values()]
        if len(batches) > 1:  # one for each net, also where some share a seed
            by_seed = dict(zip(plans, batches, strict=True))
            batches = [by_seed[seed] for seed in self.seeds]
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        self.parallel.begin(self.step)
        losses, wrong = self.parallel.join(*self._gradients(batches), share)
        self.watch.look(self.step + 1, losses, batches)
        self.optimizer.step()
        self.sums["loss"] += losses.double() * (stop - start)
        self.sums["wrong"] += wrong
        self.step += 1

    def _gradients(self, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        try:
            return self.group.gradients(batches)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            lack = str(error).splitlines()[0]
        # Out here the traceback, which holds the step's tensors, is gone.
        raise MemoryError(self._too_large(batches, lack))

    def _too_large(self, batches: list[Batch], lack: str) -> str:
        given = len(batches[0][0])

        def step(size: int) -> object:
            self.optimizer.zero_grad(set_to_none=True)
            if self.settings.device.type == "cuda":
                torch.cuda.empty_cache()
            return self.group.gradients([_head(batch, size) for batch in batches])

        fits = fitting_batch(step, given)
        advice = f"a batch of {fits} fits" if fits else "not even a batch of 1 fits"
        return f"batch: a step with {given} samples ran out of memory ({lack}); {advice}"

    def _measure(self, epoch: int | None) -> None:
        """Write a line for each net: at the end of an epoch a full one, else of callbacks only."""
        self.watch.settle()
        self.group.write_back()
        penalties = [] if epoch is None else self._penalties()
        for i, net in enumerate(self.group.nets):
            line: dict[str, Any] = {"step": self.step, "net": i}
            if epoch is not None:
                line = {"epoch": epoch, **line, **self._sums_of(i), "penalty": penalties[i]}
                line.update(self._test_of(net))
            moment = Progress(step=self.step, epoch=self.step // self.steps, net=i)
            for callback in self.settings.callbacks:
                with preserved(net):
                    line.update(callback(net, moment) or {})
            self._write(line)
        if epoch is not None:
            for total in self.sums.values():
                total.zero_()

    def _sums_of(self, net: int) -> dict[str, Any]:
        if self.step == 0:
            return {}
        means = {name: float(total[net]) / len(self.data) for name, total in self.sums.items()}
        shown = {"lr": self.recipe.rate(self.step - 1, self.steps), "loss": means["loss"]}
        return {**shown, "error": means["wrong"]} if self.data.labelled else shown

    def _penalties(self) -> list[float]:
        """½λ‖θ‖² of each net, as the optimizer decays it."""
        totals = [0.0] * len(self.group.nets)
        decay = {id(p): g["weight_decay"] for g in self.optimizer.param_groups for p in g["params"]}
        for name, parameter in self.group.parameters.items():
            for part, view in self.group.split(name, parameter.detach()).items():
                square = float(view.double().square().sum())
                totals[int(part.partition(".")[0])] += 0.5 * decay[id(parameter)] * square
        return totals

    def _test_of(self, net: nn.Module) -> dict[str, Any]:
        if self.test is None:
            return {}
        size = 4 * self.recipe.batch  # no graph is kept
        totals = torch.zeros(2, dtype=torch.float64)
        with preserved(net), torch.no_grad():
            for start in range(
                self.process_group.rank * size, len(self.test), self.process_group.count * size
            ):
                batch = self.test.batch(slice(start, start + size))
                mean, errors = self.group.score(net, batch)
                totals[0] += float(mean) * len(batch[0])
                totals[1] += float(errors)
        loss, wrong = self.process_group.add(totals.to(self.settings.device)).tolist()
        shown = {"test_loss": loss / len(self.test)}
        return {**shown, "test_error": wrong / len(self.test)} if self.test.labelled else shown

    def _write(self, line: dict[str, Any]) -> None:
        # JSON has no NaN; None is what a reader can ask for.
        line = {k: None if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in ((k, _plain(v)) for k, v in line.items())}  # fmt: skip
        self.metrics.append(line)
        if self.folder is not None:
            self.folder.append(line)

    def _save(self) -> None:
        if self.folder is None:
            return
        self.watch.settle()  # a state that is not finite is never saved
        about = {
            "kind": "training",
            "step": self.step,
            **self.about(),
            "architectures": self.architectures,
            "seconds": self._elapsed(),
            "environments": self.environments,
        }
        self.folder.save(pack(self.group, self.optimizer, self.sums), about)
        self.saved, self.saved_step = time.perf_counter(), self.step

    def _end(self) -> None:
        self.watch.settle()
        self.group.write_back()
        if self.folder is None:
            return
        if self.saved_step != self.step:
            self._save()
        several = len(self.group.nets) > 1
        for i, net in enumerate(self.group.nets):
            last = [line for line in self.metrics if line["net"] == i and "epoch" in line][-1]
            path = self.folder.path / (f"net.{i}.json" if several else "net.json")
            about = {"recipe": asdict(self.recipe), "seed": self.seeds[i], "last": last}
            save_checkpoint(path, net, about=about)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _head(batch: Batch, size: int) -> Batch:
    x, target, labels = batch
    return x[:size], target[:size], None if labels is None else labels[:size]


@contextmanager
def _surroundings(device: torch.device, seed: int, tf32: bool) -> Generator[None, None, None]:
    """Seeded, with gradients, with kernels that repeat; everything as it was afterwards."""
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        deterministic(tf32=tf32),
    ):
        # Not torch.manual_seed, which also seeds GPUs that have no part in this.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
