"""Forward and backward pass of one training step: of one net, of nets in turn, or of a stack."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from resid_theory._check import first_difference
from resid_theory.data.net_arguments import arguments_of
from resid_theory.identity import DiracWeights
from resid_theory.losses import Loss
from resid_theory.losses.formulas import class_axis, names_class
from resid_theory.nested import map_tensors, tensors_of
from resid_theory.runtime.net_state import changeable_buffers
from resid_theory.runtime.preserve import preserved
from resid_theory.training.recipe import Recipe

__all__ = [
    "DTYPES",
    "STACKED_POOL",
    "NetGroup",
    "Separate",
    "Stacked",
    "StepBatch",
    "errors_of",
    "optimizer_of",
    "set_rate",
    "stack",
]

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.float32,
}

STACKED_POOL = "There is a performance drop .* aten::as_strided_"
"""A warning to ignore: with channels last, vmap goes from net to net to set the strides of the
output of AdaptiveAvgPool2d, which costs nothing."""

StepBatch = tuple[Any, Any, Tensor | None, Tensor | None]
"""Inputs and targets of b samples, tensors or nests of them; class labels, and weights of the
samples (b,), if they have any."""


def errors_of(output: Tensor, labels: Tensor) -> Tensor:
    """Number of labels that count and are not the class of the largest output."""
    axis = class_axis(output, labels)
    assert axis is not None
    return ((output.detach().argmax(axis) != labels) & names_class(output, labels)).sum()


class NetGroup:
    """Nets that are trained together; the base of :class:`Separate` and :class:`Stacked`.

    Attributes:
        nets: The modules; up to date after ``write_back``.
        loss: The recipe's loss, on the device.
        parameters: The tensors that the optimizer updates, by name.
        axes_added: Number of axes in front of each parameter's own.
    """

    axes_added = 0
    parameters: dict[str, Tensor]

    def __init__(self, nets: Sequence[nn.Module], recipe: Recipe, device: torch.device) -> None:
        self.nets = list(nets)
        self._dtype = DTYPES[recipe.precision]
        self.loss = Loss.of(recipe.loss).to(device, self._dtype)
        self._half, self._device = recipe.precision == "bf16", device.type

    def output(self, net: Any, x: Any) -> Any:
        """The part of the output that the loss reads, of a net or of a function like it."""
        args, kwargs = arguments_of(self.nets[0], x)
        if not self._half:
            return self.loss.reads(net(*args, **kwargs))
        # A CUDA graph must cast weights anew in each replay.
        with torch.autocast(self._device, torch.bfloat16, cache_enabled=False):
            output = self.loss.reads(net(*args, **kwargs))
        return map_tensors(output, lambda t: t.to(self._dtype) if t.is_floating_point() else t)

    def score(self, net: Any, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Loss and number of errors of one net on one batch."""
        x, target, labels, weights = batch
        output = self.output(net, x)
        loss = self.value(output, target, weights)
        if labels is None:
            return loss, torch.zeros_like(loss)
        return loss, errors_of(output, labels)

    def value(self, output: Any, target: Any, weights: Tensor | None) -> Tensor:
        """The loss; with weights of the samples the weighted mean of their own losses."""
        if weights is None:
            return self.loss(output, target)

        def single(one: Any, its: Any) -> Tensor:
            alone = (map_tensors(part, lambda tensor: tensor[None]) for part in (one, its))
            return self.loss(*alone)

        try:
            own = torch.vmap(single)(output, target)
        except (RuntimeError, ValueError):  # a loss that looks at values: one by one
            every = range(len(weights))
            parts = [[map_tensors(s, lambda t: t[i]) for s in (output, target)] for i in every]  # noqa: B023
            own = torch.stack([single(*part) for part in parts])
        # A sample that does not count may have no loss, as where its label is ignored.
        own = torch.where(weights > 0, own, 0.0)
        return (own * weights.to(own)).sum() / weights.sum()

    def gradients(self, batches: Sequence[StepBatch]) -> tuple[Tensor, Tensor]:
        """Write all gradients, from a batch for each net or one for all; losses, errors (nets,)."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers that change, not copies, by the net's number and their name."""
        raise NotImplementedError

    def buffers(self) -> list[Tensor]:
        """Tensors that a forward pass may change, such as running statistics."""
        raise NotImplementedError

    def split(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Views of a tensor shaped like a parameter, by the net's number and its name there."""
        raise NotImplementedError

    def write_back(self) -> None:
        """Bring the modules up to date."""


class Separate(NetGroup):
    """Nets that take turns in every step; one net is the usual case."""

    def __init__(self, nets: Sequence[nn.Module], recipe: Recipe, device: torch.device) -> None:
        super().__init__(nets, recipe, device)
        self.parameters = {
            f"{i}.{name}": parameter
            for i, net in enumerate(nets)
            for name, parameter in net.named_parameters()
            if parameter.requires_grad
        }
        self._weights = [DiracWeights(net) for net in nets]

    def gradients(self, batches: Sequence[StepBatch]) -> tuple[Tensor, Tensor]:
        """Run the nets one after the other; in a CUDA graph beside each other."""
        losses, wrong, streams = [], [], self._branches()
        for i, net in enumerate(self.nets):
            beside = torch.cuda.stream(streams[i]) if streams else nullcontext()
            with beside, self._weights[i].ready():
                loss, errors = self.score(net, batches[i if len(batches) > 1 else 0])
                loss.backward()
            losses.append(loss.detach())
            wrong.append(errors)
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
        """Parameters and buffers of all nets."""
        return {
            f"{i}.{name}": tensor
            for i, net in enumerate(self.nets)
            for name, tensor in _changeable(net).items()
        }

    def buffers(self) -> list[Tensor]:
        """Buffers of all nets."""
        return [buffer for net in self.nets for buffer in changeable_buffers(net).values()]

    def split(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """The tensor itself, which belongs to one net."""
        return {name: tensor}


class Stacked(NetGroup):
    """Nets of one architecture whose tensors are stacked, so that each layer is one operation."""

    axes_added = 1

    def __init__(self, nets: Sequence[nn.Module], recipe: Recipe, device: torch.device) -> None:
        super().__init__(nets, recipe, device)
        # The call takes a module that shares nothing with the stacks: here the first net, whose
        # constant buffers serve all.
        self._all, buffers = stack_module_state(self.nets)
        self._buffers = {name: buffers[name] for name in changeable_buffers(self.nets[0])}
        self.parameters = {k: p for k, p in self._all.items() if p.requires_grad}
        self._like: Any = None  # a batch, whose structure tells what its tensors are
        self._call: Any = vmap(self._one, in_dims=(0, 0, 0), randomness="different")
        self._shared: Any = vmap(self._one, in_dims=(0, 0, None), randomness="different")

    def _one(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], leaves: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        parts = iter(leaves)
        batch = map_tensors(self._like, lambda _: next(parts))

        def net(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.nets[0], (parameters, buffers), args, kwargs)

        return self.score(net, batch)

    def gradients(self, batches: Sequence[StepBatch]) -> tuple[Tensor, Tensor]:
        """Run all nets at once; running statistics move in their stacks."""
        self._like = batches[0]
        leaves = [list(tensors_of(batch)) for batch in batches]
        if len(batches) == 1:
            losses, wrong = self._shared(self._all, self._buffers, leaves[0])
        else:
            stacked = [torch.stack(parts) for parts in zip(*leaves, strict=True)]
            losses, wrong = self._call(self._all, self._buffers, stacked)
        losses.sum().backward()  # no net's loss depends on another's weights
        return losses.detach(), wrong

    def tensors(self) -> dict[str, Tensor]:
        """Views of the stacks."""
        named = {**self._all, **self._buffers}
        return {
            f"{i}.{name}": stacked.detach()[i]
            for i in range(len(self.nets))
            for name, stacked in named.items()
        }

    def buffers(self) -> list[Tensor]:
        """The stacks of the buffers that change."""
        return list(self._buffers.values())

    def split(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """One view for each net."""
        return {f"{i}.{name}": part for i, part in enumerate(tensor)}

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the stacks into the modules."""
        named = self.tensors()
        for i, net in enumerate(self.nets):
            for name, own in _changeable(net).items():
                own.copy_(named[f"{i}.{name}"])


def _changeable(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **changeable_buffers(net)}


def stack(
    nets: Sequence[nn.Module], batch: StepBatch, recipe: Recipe, device: torch.device
) -> tuple[NetGroup, str | None]:
    """Stack nets if a trial shows that it is the same training; else also the reason why not."""
    reason = _why_not(nets, batch, recipe, device)
    return (Separate if reason else Stacked)(nets, recipe, device), reason


def _why_not(
    nets: Sequence[nn.Module], batch: StepBatch, recipe: Recipe, device: torch.device
) -> str | None:
    for i, net in enumerate(nets[1:], start=1):
        fault = first_difference(_changeable(nets[0]), _changeable(net))
        if fault:
            return f"net {i} differs from net 0: {fault}"
        if repr(net) != repr(nets[0]):
            return f"net {i} differs from net 0 in its layers, though not in its tensors"
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            # vmap warns where it takes the nets in turn itself, operation by operation.
            warnings.filterwarnings("error", "There is a performance drop")
            warnings.filterwarnings("ignore", STACKED_POOL)
            trial = Stacked(nets, recipe, device)
            other = _other_output(trial, batch[0])
            trial.gradients([batch])
    except (RuntimeError, ValueError, TypeError, NotImplementedError, Warning) as error:
        return f"{type(error).__name__} in a stacked step: {str(error).strip().splitlines()[0]}"
    return other


@torch.no_grad()
def _other_output(trial: Stacked, x: Any) -> str | None:
    """Compare outputs: modules may differ in what neither names, shapes nor repr show."""
    named = trial.tensors()
    for i, net in enumerate(trial.nets):
        mine = {name: named[f"{i}.{name}"] for name in _changeable(net)}
        with preserved(net), preserved(trial.nets[0]), torch.no_grad():
            args, kwargs = arguments_of(trial.nets[0], x)
            outputs = net(*args, **kwargs), functional_call(trial.nets[0], mine, args, kwargs)
        # Equal operations in equal order: on a CPU any difference is one of architecture. On a GPU
        # a slice of stacked weights may begin where another kernel is the faster one.
        for own, as_first in zip(*map(tensors_of, outputs), strict=True):
            gap, scale = float((own - as_first).abs().max()), float(own.abs().max())
            exact = own.device.type == "cpu" or not own.is_floating_point()
            loose = 0.0 if exact else torch.finfo(own.dtype).eps ** 0.5
            if gap > loose * scale:  # false for NaN
                return f"net {i} computes something else than net 0 with the same weights"
    return None


def optimizer_of(group: NetGroup, recipe: Recipe) -> torch.optim.Optimizer:
    """Stochastic gradient descent with the recipe's decay groups; see :func:`set_rate`."""
    least = 2 if recipe.decay == "multi_axis" else 0
    parts: Mapping[bool, list[Tensor]] = {True: [], False: []}
    for parameter in group.parameters.values():
        parts[parameter.dim() - group.axes_added >= least].append(parameter)
    groups = [
        {"params": part, "weight_decay": recipe.weight_decay if decays else 0.0}
        for decays, part in parts.items()
        if part
    ]
    # One operation for all tensors, which reads the rate, in float32, from the device.
    sparse = any(getattr(m, "sparse", False) for net in group.nets for m in net.modules())
    fused = not sparse and all(
        p.is_cuda and p.dtype == torch.float32 for p in group.parameters.values()
    )
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
