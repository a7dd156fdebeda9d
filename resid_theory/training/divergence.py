"""Numbers in a training that are not finite."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory.data.net_arguments import call_net
from resid_theory.nested import tensors_of
from resid_theory.training.step import NetGroup, StepBatch

_FIRST = 50  # steps whose losses are kept


class DivergenceError(ArithmeticError):
    """NaN or infinity in a training.

    Attributes:
        step: The first step with such a loss or, on a CPU, gradient; or the step after which such a
            weight was found. The first of all steps is 1.
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
    """Losses of the steps, kept on the device, and whether they and the weights are finite.

    Attributes:
        first: Losses of the first steps, (nets, steps), on the device.
    """

    def __init__(self, group: NetGroup, steps: int, device: torch.device) -> None:
        self._group, self._seen = group, 0
        self._epoch = torch.zeros(len(group.nets), steps, dtype=torch.float64, device=device)
        self.first = self._epoch[:, :0]

    def resume(self, step: int, first: Tensor | None) -> None:
        """Go on after a step; ``first`` is absent in checkpoints of the first versions."""
        self._seen = step
        self.first = self.first if first is None else first.to(self._epoch.device)

    def note(self, place: slice | Tensor, losses: Tensor) -> None:
        """Keep the losses of the step at a place in its epoch."""
        self._epoch[:, place] = losses.double()[:, None]

    @torch.no_grad()
    def settle(self, step: int, batches: Sequence[StepBatch] = ()) -> None:
        """Check the losses up to a step, and the weights; a GPU is waited for."""
        # Batches are those of the last step, before its weights move: then its gradients are
        # checked, too, and its layers tell where a number that is not finite comes from.
        if not step:
            return
        begin = self._seen % self._epoch.shape[1]
        losses = self._epoch[:, begin : begin + step - self._seen]
        # An infinite weight may be hidden from every loss, by tanh or ReLU, and a bad gradient is
        # not yet in its weight.
        parameters = [(n, p) for n, p in self._group.parameters.items() if p.numel()]
        watched: list[tuple[str, str, Tensor]] = [("parameter", n, p) for n, p in parameters]
        watched += [
            ("gradient of", n, p.grad) for n, p in parameters if batches and p.grad is not None
        ]
        norms = torch.stack(torch._foreach_norm([tensor for *_, tensor in watched], float("inf")))
        if bool(torch.isfinite(norms).all() & torch.isfinite(losses).all()):
            if self.first.shape[1] == self._seen:
                self.first = torch.cat([self.first, losses], 1)[:, :_FIRST]
            self._seen = step
            return
        bad = (~torch.isfinite(losses)).T.nonzero().tolist()  # by step, then by net
        if bad:
            at, net = bad[0]
            raise DivergenceError(self._seen + at + 1, net, self._cause(net, batches))
        kind, name, _ = watched[torch.isfinite(norms).tolist().index(False)]
        number, _, name = name.partition(".")
        raise DivergenceError(step, int(number), f"the {kind} {name!r}")

    def _cause(self, net: int, batches: Sequence[StepBatch]) -> str:
        if not batches:  # the weights have moved since
            return "the loss"
        return _first_bad(self._group.nets[net], batches[net][0])


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
                hooks.enter_context(module.register_forward_hook(partial(note, name)))
        call_net(net, x)
    return f"the output of layer {bad[0]!r}" if bad else "the loss"
