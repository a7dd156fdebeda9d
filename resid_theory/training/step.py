"""Forward and backward pass of one training step, of one net or of several in turn."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory.data.net_arguments import arguments_of
from resid_theory.identity import DiracWeights
from resid_theory.losses import Loss, SampleAxes
from resid_theory.losses.formulas import class_axis, names_class
from resid_theory.losses.weighting import single_losses
from resid_theory.nested import map_tensors
from resid_theory.runtime.net_state import changeable_buffers
from resid_theory.training.recipe import Recipe

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.float32,
}

StepBatch = tuple[Any, Any, Tensor | None, Tensor | None]
"""Inputs and targets of b samples, tensors or nests of them; class labels, and weights of the
samples (b,), if they have any."""


def errors_of(output: Tensor, labels: Tensor) -> Tensor:
    """Number of labels that count and are not the class of the largest output."""
    axis = class_axis(output, labels)
    assert axis is not None
    return ((output.argmax(axis) != labels) & names_class(output, labels)).sum()


class NetGroup:
    """Nets that are trained together and take turns in every step; one net is the usual case.

    Attributes:
        nets: The modules.
        loss: The recipe's loss, on the device.
        parameters: The tensors that the optimizer updates, by the net's number and their name.
    """

    def __init__(self, nets: Sequence[nn.Module], recipe: Recipe, device: torch.device) -> None:
        self.nets = list(nets)
        self._dtype = DTYPES[recipe.precision]
        self.loss = Loss.of(recipe.loss).to(device, self._dtype)
        self._half, self._device = recipe.precision == "bf16", device.type
        self.parameters = {
            f"{i}.{name}": parameter
            for i, net in enumerate(nets)
            for name, parameter in net.named_parameters()
            if parameter.requires_grad
        }
        self._weights = [DiracWeights(net) for net in nets]
        layers = (layer for net in nets for layer in net.modules())
        self._sparse = [layer for layer in layers if getattr(layer, "sparse", False) is True]

    def output(self, net: nn.Module, x: Any) -> Any:
        """The part of a net's output that the loss reads."""
        args, kwargs = arguments_of(net, x)
        if not self._half:
            return self.loss.reads(net(*args, **kwargs))
        # A CUDA graph must cast weights anew in each replay.
        with torch.autocast(self._device, torch.bfloat16, cache_enabled=False):
            output = self.loss.reads(net(*args, **kwargs))
        return map_tensors(output, lambda t: t.to(self._dtype) if t.is_floating_point() else t)

    def value(self, output: Any, target: Any, weights: Tensor | None) -> Tensor:
        """The loss; with weights of the samples the weighted mean of their own losses."""
        if weights is None:
            return self.loss(output, target)
        axes = SampleAxes.first(output, len(weights))
        own = single_losses(self.loss, axes, output, target, len(weights))
        # A sample that does not count may have no loss, as where its label is ignored.
        own = torch.where(weights > 0, own, 0.0)
        return (own * weights.to(own)).sum() / weights.sum()

    def gradients(self, batches: Sequence[StepBatch]) -> tuple[Tensor, Tensor]:
        """Write all gradients, from a batch for each net; losses, errors (nets,)."""
        losses, wrong, streams = [], [], self._branches()
        for i, net in enumerate(self.nets):
            x, target, labels, weights = batches[i]
            beside = torch.cuda.stream(streams[i]) if streams else nullcontext()
            with beside, self._weights[i].ready():
                output = self.output(net, x)
                loss = self.value(output, target, weights)
                loss.backward()
                for parameter in chain.from_iterable(layer.parameters() for layer in self._sparse):
                    if parameter.grad is not None:  # sparse ones take no momentum, nor decay
                        parameter.grad = parameter.grad.to_dense()
                losses.append(loss.detach())
                if labels is None:
                    wrong.append(torch.zeros_like(loss))
                else:
                    wrong.append(errors_of(output, labels))
        for stream in streams:
            torch.cuda.current_stream().wait_stream(stream)
        return torch.stack(losses), torch.stack(wrong)

    def _branches(self) -> list[torch.cuda.Stream]:
        """A stream for each of several nets while a CUDA graph is recorded, else none."""
        alone = len(self.nets) == 1 or self._device != "cuda"
        if alone or not torch.cuda.is_current_stream_capturing():
            return []
        streams = [torch.cuda.Stream() for _ in self.nets]
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream())
        return streams

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers that change, not copies, by the net's number and their name."""
        return {
            f"{i}.{name}": tensor
            for i, net in enumerate(self.nets)
            for name, tensor in {**dict(net.named_parameters()), **changeable_buffers(net)}.items()
        }

    def buffers(self) -> list[Tensor]:
        """Tensors that a forward pass may change, such as running statistics."""
        return [buffer for net in self.nets for buffer in changeable_buffers(net).values()]


def optimizer_of(group: NetGroup, recipe: Recipe) -> torch.optim.Optimizer:
    """Stochastic gradient descent with the recipe's decay groups; see :func:`set_rate`."""
    least = 2 if recipe.decay == "multi_axis" else 0
    parts: Mapping[bool, list[Tensor]] = {True: [], False: []}
    for parameter in group.parameters.values():
        parts[parameter.dim() >= least].append(parameter)
    groups = [
        {"params": part, "weight_decay": recipe.weight_decay if decays else 0.0}
        for decays, part in parts.items()
        if part
    ]
    # One operation for all tensors, which reads the rate, in float32, from the device.
    fused = all(p.is_cuda and p.dtype == torch.float32 for p in group.parameters.values())
    device = next(iter(group.parameters.values())).device
    rate = torch.tensor(recipe.lr, dtype=torch.float32, device=device) if fused else recipe.lr
    return torch.optim.SGD(
        groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused or None
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next steps."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
