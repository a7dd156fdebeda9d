"""Failures of a training: numbers that are not finite, and lack of memory."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory.data.net_arguments import call_net
from resid_theory.nested import tensors_of
from resid_theory.runtime.resources import is_out_of_memory
from resid_theory.training.step import NetGroup, StepBatch

__all__ = ["DivergenceError", "Watch", "fitting_batch"]


class DivergenceError(ArithmeticError):
    """NaN or infinity in a training.

    Attributes:
        step: The first step with such a number; the first of all steps is 1.
        net: Number of the net.
        tensor: The first tensor with such a number.
    """

    def __init__(self, step: int, net: int, tensor: str) -> None:
        super().__init__(
            f"step {step}, net {net}: {tensor} is not finite; the usual cause is a learning rate "
            "too large for this net: lower lr, or raise warmup"
        )
        self.step, self.net, self.tensor = step, net, tensor


class Watch:
    """Checks losses, gradients and weights of every step, on a GPU every 50 steps.

    Each check waits for the queue of a GPU to empty.
    """

    def __init__(self, group: NetGroup, device: torch.device) -> None:
        self._group, self._interval = group, 50 if device.type == "cuda" else 1
        self._pending: list[tuple[int, Tensor]] = []

    def look(self, step: int, losses: Tensor, batches: Sequence[StepBatch]) -> None:
        """Note a step after its backward pass, before the weights move."""
        gradients = [p.grad for p in self._group.parameters.values() if p.grad is not None]
        # Weights too: tanh and ReLU hide an infinite one from the loss and from every gradient.
        watched = gradients + [p.detach() for p in self._group.parameters.values()]
        norms = torch._foreach_norm(watched, float("inf"))
        self._pending.append((step, torch.cat([losses.to(norms[0].dtype), torch.stack(norms)])))
        if len(self._pending) >= self._interval:
            self.settle(batches)

    def settle(self, batches: Sequence[StepBatch] = ()) -> None:
        """Check the steps noted so far; with batches the last one, which can be repeated."""
        pending, self._pending = self._pending, []
        if not pending or bool(torch.isfinite(torch.stack([t for _, t in pending]).sum())):
            return
        for step, record in pending:
            if not bool(torch.isfinite(record).all()):
                raise self._error(step, record, batches if step == pending[-1][0] else ())

    def _error(self, step: int, record: Tensor, batches: Sequence[StepBatch]) -> DivergenceError:
        losses, norms = record.split([len(self._group.nets), len(record) - len(self._group.nets)])
        if _finite(losses):
            return self._bad_tensor(step, norms)
        net = int((~torch.isfinite(losses)).nonzero()[0, 0])
        if not batches:  # a GPU has gone on since
            return DivergenceError(step, net, "the loss")
        self._group.write_back()
        x = batches[net if len(batches) > 1 else 0][0]
        return DivergenceError(step, net, _first_bad(self._group.nets[net], x))

    def _bad_tensor(self, step: int, norms: Tensor) -> DivergenceError:
        parameters = self._group.parameters
        trained = [n for n, p in parameters.items() if p.grad is not None]
        # A bad weight spoils its gradient or not, a bad gradient not yet its weight.
        bad = ~torch.isfinite(norms)
        is_weight = bool(bad[len(trained) :].any())
        names = list(parameters) if is_weight else trained
        first = names[int(bad[len(trained) if is_weight else 0 :].nonzero()[0, 0])]
        tensor = parameters[first].detach() if is_weight else parameters[first].grad
        parts = {} if tensor is None else self._group.split(first, tensor)
        # On a GPU the tensor is by now that of a later step: every net's may be finite again.
        name = next((n for n, part in parts.items() if not _finite(part)), next(iter(parts)))
        net, _, part = name.partition(".")
        kind = "parameter" if is_weight else "gradient of"
        return DivergenceError(step, int(net), f"the {kind} {part!r}")


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


@torch.no_grad()
def _first_bad(net: nn.Module, x: Any) -> str:
    """The first tensor that is not finite, of input, weights, outputs of layers, and the loss."""
    if not all(map(_finite, tensors_of(x))):
        return "the input"
    for name, parameter in net.named_parameters():
        if not _finite(parameter):
            return f"the parameter {name!r}"
    bad: list[str] = []

    def note(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not _finite(output):
            bad.append(name)

    with ExitStack() as hooks:
        for name, module in net.named_modules():
            if not list(module.children()):
                hooks.callback(module.register_forward_hook(partial(note, name)).remove)
        call_net(net, x)
    return f"the output of layer {bad[0]!r}" if bad else "the loss"


def fitting_batch(step: Callable[[int], object], batch: int) -> int:
    """The largest of batch/2, batch/4, ... for which a step has enough memory; 0 if none."""
    while batch > 1:
        batch //= 2
        try:
            step(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            continue
        return batch
    return 0
