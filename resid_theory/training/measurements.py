"""Metrics of a training: sums over the epoch, evaluations, and what callbacks return."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory.runtime.net_state import NetState
from resid_theory.runtime.preserve import preserved
from resid_theory.training.checkpoint import Folder
from resid_theory.training.device_dataset import DeviceDataset
from resid_theory.training.epochs import Epochs
from resid_theory.training.run import Progress, RunSettings
from resid_theory.training.step import NetGroup, errors_of


class Measurements:
    """The lines of metrics of a training, and the sums that the next ones are made of.

    Attributes:
        lines: One dict for each net at each time of measurement.
        sums: Loss times samples, and errors, of each net since the last full line, (nets,).
    """

    def __init__(
        self,
        group: NetGroup,
        optimizer: torch.optim.Optimizer,
        epochs: Epochs,
        test: DeviceDataset | None,
        settings: RunSettings,
        folder: Folder | None,
    ) -> None:
        self._group, self._optimizer, self._epochs, self._test = group, optimizer, epochs, test
        self._settings, self._folder = settings, folder
        zeros = torch.zeros(len(group.nets), dtype=torch.float64, device=settings.device)
        self.sums = {"loss": zeros, "wrong": zeros.clone()}
        self.lines: list[dict[str, Any]] = []

    def add(self, losses: Tensor, wrong: Tensor, weights: Sequence[float | Tensor]) -> None:
        """Add losses and errors of one step."""
        tensors = [weight for weight in weights if isinstance(weight, Tensor)]
        self.sums["loss"] += losses.double() * (torch.stack(tensors) if tensors else weights[0])
        self.sums["wrong"] += wrong

    def measure(self, step: int, epoch: int | None) -> None:
        """Write a line for each net: a full one at the end of an epoch, else of callbacks only."""
        penalties = [] if epoch is None else self._penalties()
        for i, net in enumerate(self._group.nets):
            line: dict[str, Any] = {"step": step, "net": i}
            if epoch is not None:
                line = {"epoch": epoch, **line}
                if step > 0:
                    line.update(self._means(step, i))
                line["penalty"] = penalties[i]
                if self._test is not None:
                    line.update(self._evaluation(net, self._test))
            moment = Progress(step=step, epoch=step // self._epochs.steps, net=i)
            for callback in self._settings.callbacks:
                state, layers = NetState(net), str(net)
                with preserved(net, state=state):
                    found = callback(net, moment)
                if (change := state.change()) or str(net) != layers:
                    raise ValueError(
                        f"callbacks: {callback!r} changed the net ({change or 'its layers'}), "
                        "needs one that leaves its layers as they are"
                    )
                if not isinstance(found, Mapping | None):
                    raise ValueError(
                        f"callbacks: got {type(found).__name__} from {callback!r}, needs a mapping "
                        "of numbers, or None"
                    )
                line.update(found or {})
            line = {k: v.item() if hasattr(v, "item") else v for k, v in line.items()}
            for name, value in line.items():
                if isinstance(value, float) and not math.isfinite(value):
                    line[name] = None  # JSON has no NaN; None is what a reader can ask for
            self.lines.append(line)
            if self._folder is not None:
                self._folder.append(line)
        if epoch is not None:
            for total in self.sums.values():
                total.zero_()

    def _means(self, step: int, net: int) -> dict[str, float]:
        """Means over the epoch, and the rate of its last step."""
        data, recipe = self._epochs.data, self._epochs.recipe
        loss, wrong = (float(self.sums[name][net]) for name in ("loss", "wrong"))
        shown = {"lr": recipe.rate(step - 1, self._epochs.steps), "loss": loss / data.total}
        return {**shown, "error": wrong / data.labels} if data.labels else shown

    @torch.no_grad()
    def _penalties(self) -> list[float]:
        """½λ‖θ‖² of each net, as the optimizer decays it."""
        groups = self._optimizer.param_groups
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        parameters, totals = self._group.parameters, [0.0] * len(self._group.nets)
        real = (torch.view_as_real(p) if p.is_complex() else p for p in parameters.values())
        squares = torch.stack([p.double().square().sum() for p in real]).tolist()
        for (name, parameter), square in zip(parameters.items(), squares, strict=True):
            totals[int(name.partition(".")[0])] += 0.5 * decay[id(parameter)] * square
        return totals

    def _evaluation(self, net: nn.Module, test: DeviceDataset) -> dict[str, float]:
        """Loss and error on the test data, shared among the processes, in one transfer."""
        size = 4 * self._epochs.recipe.batch  # no graph is kept
        process_group = self._settings.process_group
        totals = torch.zeros(3, dtype=torch.float64, device=self._settings.device)
        assert test.weighting is not None
        with preserved(net), torch.no_grad():
            for start in range(process_group.rank * size, len(test), process_group.count * size):
                rows = slice(start, start + size)
                x, target, labels, weights = test.batch(rows)
                output, weight = self._group.output(net, x), test.weight(rows)
                value = self._group.value(output, target, weights)
                if isinstance(weight, Tensor):  # labels that do not count have no loss
                    value = torch.where(weight > 0, value, 0.0)
                totals[0] += weight * value.double()
                totals[1] += weight
                if labels is not None:
                    totals[2] += errors_of(output, labels)
        loss, weight, wrong = process_group.add(totals).tolist()
        shown = {"test_loss": loss if test.weighting.sums else loss / weight}
        return {**shown, "test_error": wrong / test.labels} if test.labels else shown
