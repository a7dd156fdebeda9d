"""Measured differences of two nets: outputs, gradients, steps of training."""

import enum
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resid_theory._check import check_callable, check_int
from resid_theory.data import Batch, Data
from resid_theory.data.batch import Place
from resid_theory.data.net_arguments import call_net, naming_inputs
from resid_theory.identity import (
    AddIdentity,
    IdDecay,
    ResidualWeight,
    parametrizations_of,
    shifted,
)
from resid_theory.losses import Loss, LossLike
from resid_theory.nested import leaves_of, map_tensors, tensors_of
from resid_theory.runtime.net_entry import as_written, check_net
from resid_theory.runtime.net_state import copied
from resid_theory.runtime.preserve import deterministic, seed_devices
from resid_theory.runtime.result import Columns, Result

_VALUES = (str, bytes, enum.Enum, type, torch.dtype, torch.device)

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


ROUNDINGS = 1e3
"""Roundings of the largest number that a sum which cancels may keep: some in every layer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gap(Result):
    """Measured differences between two nets; all relative, 0 for the same net.

    A difference counts in units of the largest number in the same tensor of the first net. One
    within :data:`ROUNDINGS` roundings of the largest number in all tensors of its kind counts in
    units of that one: it is what a sum that cancels leaves, as the gradient of a bias in front of
    BatchNorm.

    Attributes:
        outputs: Largest difference of outputs.
        input_gradient: Largest difference of the loss's gradients at the inputs; 0 where inputs
            are integers.
        gradients: The same for the gradients of parameters; None when the parameters do not
            correspond one to one, as in a folded net.
        steps: Largest difference of trained weights, effective ones, over the largest of the first
            net's, after each step of training, (steps,), float64.
        by_output: ``outputs`` of each leaf of the output, by its name: ``logits``, ``past[0]``, or
            ``""`` if the output is a tensor. Infinite where leaves other than numbers differ.
        by_parameter: ``gradients`` of each parameter, by its name in the plain net.
        notes: What was done to the data on the way into the nets, and leaves that have no value to
            compare.
    """

    outputs: float
    input_gradient: float
    gradients: float | None
    steps: Tensor
    by_output: Mapping[str, float] = field(default_factory=dict)
    by_parameter: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    headline = "differences of two nets, relative, at most {0.largest:.4g}"

    def table(self) -> Columns:
        """One row for each output, parameter and step of training, and one for the inputs."""
        rows = [
            *(("outputs", name, gap) for name, gap in self.by_output.items()),
            ("input gradient", "", self.input_gradient),
            *(("gradients", name, gap) for name, gap in self.by_parameter.items()),
            *(("weights", f"step {n}", gap) for n, gap in enumerate(self.steps.tolist(), 1)),
        ]
        quantities, places, differences = zip(*rows, strict=True)
        return {"quantity": quantities, "at": places, "difference": differences}

    def shown(self) -> Columns:
        """The largest difference of each quantity."""
        rows = sorted(zip(*self.table().values(), strict=True), key=lambda row: row[2])
        worst = {quantity: (place, gap) for quantity, place, gap in rows}
        kinds = [kind for kind in ("outputs", "input gradient", "gradients", "weights")
                 if kind in worst]  # fmt: skip
        return {
            "quantity": kinds,
            "largest": [worst[kind][1] for kind in kinds],
            "at": [worst[kind][0] for kind in kinds],
        }

    @property
    def largest(self) -> float:
        """The largest of all these differences."""
        return max(self.outputs, self.input_gradient, self.gradients or 0.0, *self.steps.tolist())


@torch.inference_mode(False)
@torch.enable_grad()
@deterministic()
def check_equivalence(
    net_a: nn.Module,
    net_b: nn.Module,
    data: Any,
    *,
    loss: LossLike = "square",
    steps: int = 0,
    optimizer: OptimizerFactory | None = None,
    correct: bool = True,
) -> Gap:
    """Measure the differences of two nets in outputs, gradients and training.

    Both are copied and measured in their current mode, with the same random numbers. Parameters
    correspond when their layers have the same names and shapes; V is compared after adding I, and
    what goes into another parametrization only with its like. Outputs may be tensors or nests of
    tuples, lists, mappings and objects, as those of transformers: tensors and numbers of any dtype
    are compared by their differences, None, names and the like by equality.

    Args:
        net_a: The first net.
        net_b: The second net.
        data: Inputs, or pairs (x, y) of inputs and targets, in any form that ``layer_cushions``
            takes; read once. ReLUs that switch amplify round-off; use float64 to distinguish it
            from real differences.
        loss: A name or a callable ``(output, target) -> scalar``. Without targets these are zeros.
        steps: Steps of training, each on one batch, from the first one again behind the last.
        optimizer: Makes an optimizer from parameters, such as
            ``lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=1e-4)``. Needed for ``steps`` > 0.
        correct: Whether weight decay of residual layers is corrected by :class:`identity.IdDecay`;
            otherwise the nets drift apart.

    Returns:
        The differences. The nets are not changed.

    Raises:
        ValueError: If the outputs' names or shapes differ or none can be compared, ``steps`` is
            given without ``optimizer``, or training cannot be compared because parameters do not
            correspond, by names and values, or no output has a gradient.

    Source:
        Yu & Tomasi, arXiv:1905.10944, section 3.1 and Appendix B.

    Example:
        >>> net = rt.simplified_net(20, identity="residual").double()
        >>> x = torch.ones(1, 3, 32, 32, dtype=torch.float64)
        >>> check_equivalence(net, rt.to_plain(net), x).largest < 1e-12
        True
    """
    steps, scored = check_int("steps", steps, minimum=0), Loss.of(loss)
    if steps and optimizer is None:
        raise ValueError("optimizer: got None with steps > 0, needs a function of the parameters")
    if optimizer is not None:
        check_callable("optimizer", optimizer, "a function of the parameters that makes one")
    net_a = copied(check_net(net_a, "net_a", finite=False))
    nets = net_a, copied(check_net(net_b, "net_b", finite=False))
    shapes = [{(n, tuple(p.shape)) for n, p in _trainable(net).items()} for net in nets]
    same = bool(shapes[0]) and shapes[0] == shapes[1]
    if steps and not same:
        odd = min(shapes[0] ^ shapes[1])
        raise ValueError(
            f"steps: got {steps}, but the nets' parameters do not correspond: {odd[0]!r} of shape "
            f"{odd[1]} is in one only; needs steps=0"
        )
    samples = Data.of(data, like=nets[0], targets=None)
    outputs, inputs, gradients = _Differences(), _Differences(), _Differences()
    kept: list[tuple[Batch, Batch]] = []
    totals: tuple[dict[str, Tensor], ...] = {}, {}
    for batch in samples:
        parts = batch, replace(batch, place=Place.of(nets[1]))
        named = zip(nets, parts, ("net_a", "net_b"), strict=True)
        a, b = (_measure(net, part, scored, argument) for net, part, argument in named)
        for name in a[0].keys() | b[0].keys():
            kinds = [_kind(each[0][name]) if name in each[0] else "nothing" for each in (a, b)]
            if kinds[0] != kinds[1]:
                raise ValueError(
                    f"net_b: gives {kinds[1]} as output{f' {name!r}' if name else ''}, needs "
                    f"{kinds[0]} as net_a does"
                )
        outputs.add(a[0], b[0])
        inputs.add(a[1], b[1])
        for total, each in zip(totals, (a, b), strict=True):
            for name, gradient in each[2].items():
                total[name] = total.get(name, 0) + batch.size * gradient.to_dense()
        if len(kept) < steps:
            kept.append(parts)
    if not outputs.largest:
        kind = ", ".join(_kind(leaf) for leaf in a[0].values()) or "nothing"
        raise ValueError(f"net_a: gives {kind}, needs an output that can be compared, as tensors")
    if same:
        gradients.add(*totals)
    by_output, by_parameter = outputs.relative(), gradients.relative()
    drift: list[float] = []
    if steps and optimizer is not None:
        if max(*by_output.values(), *by_parameter.values()) <= ROUNDINGS * outputs.eps:
            _check_start(steps, nets, gradients)
        drift = _train(nets, kept, scored, steps, optimizer, correct)
    found = Gap(
        outputs=max(by_output.values()),
        input_gradient=max(inputs.relative().values(), default=0.0),
        gradients=max(by_parameter.values()) if same else None,
        steps=torch.tensor(drift, dtype=torch.float64),
        by_output=by_output,
        by_parameter=by_parameter,
        notes=(*samples.notes, *(f"output {name!r} is not compared" for name in outputs.opaque)),
    )
    return replace(found, notes=(*found.notes, *_notes_of_precision(found, nets)))


def _notes_of_precision(found: Gap, nets: tuple[nn.Module, nn.Module]) -> Iterator[str]:
    """A sentence where round-off of outputs can have made a difference of gradients."""
    dtypes = {p.dtype for net in nets for p in net.parameters() if p.is_floating_point()}
    lowest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float64)
    bound = ROUNDINGS * torch.finfo(lowest).eps
    if lowest != torch.float64 and found.outputs <= bound < found.largest:
        yield (
            f"outputs agree within round-off of {lowest}, which may switch ReLUs and so change "
            "gradients; nets in float64 (.double()) tell that from a difference"
        )


def _measure(
    net: nn.Module, batch: Batch, loss: Loss, argument: str
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Leaves of the output on a batch, and gradients of the loss at inputs and parameters."""
    x = map_tensors(batch.inputs, lambda t: t.clone().requires_grad_(t.is_floating_point()))
    leaves = {f"{n}": t for n, t in enumerate(tensors_of(x)) if t.requires_grad}
    named = _trainable(net)
    # Cloned: a net that starts in place cannot write into a leaf.
    with as_written(net), _same_draws(net, 0), naming_inputs(batch.inputs, argument):
        output = call_net(net, map_tensors(x, lambda tensor: tensor.clone()))
    value, wanted = _value(loss, output, batch.target), [*leaves.values(), *named.values()]
    gradients: Sequence[Tensor] = [torch.zeros_like(tensor) for tensor in wanted]
    if value is not None and value.requires_grad:
        gradients = torch.autograd.grad(value, wanted, materialize_grads=True)
    outputs = {name: leaf.detach() if isinstance(leaf, Tensor) else leaf
               for name, leaf in leaves_of(output)}  # fmt: skip
    inputs = dict(zip(leaves, gradients, strict=False))
    return outputs, inputs, dict(zip(named, gradients[len(leaves) :], strict=True))


@contextmanager
def _same_draws(net: nn.Module, seed: int) -> Iterator[None]:
    """Let two nets draw the same random numbers, as for dropout in train mode."""
    devices = {p.device for p in net.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=devices):
        seed_devices(seed, devices)
        yield


def _value(loss: Loss, output: Any, target: Any) -> Tensor | None:
    """The loss; without targets that of zeros, summed over all with a gradient, None without."""
    if target is None:
        found = [leaf for _, leaf in leaves_of(output) if isinstance(leaf, Tensor)]
        real = [torch.view_as_real(part) if part.is_complex() else part for part in found]
        parts = [torch.atleast_1d(part) for part in real if part.requires_grad]
        each = [loss(part, torch.zeros_like(part)).double() for part in parts]
        return torch.stack(each).sum() if each else None
    if loss.targets != "any" and not isinstance(output, Tensor):
        raise ValueError(
            f"net_a: gives {type(output).__name__}; the loss {loss.name!r} needs a tensor: leave "
            "the targets out, or pass a callable (output, target)"
        )
    loss.check_target(output, target)
    return loss(output, target)


def _kind(leaf: Any) -> str:
    if _is_numbers(leaf):
        return f"a tensor of shape {tuple(torch.as_tensor(leaf).shape)}"
    return type(leaf).__name__


def _is_numbers(leaf: Any) -> bool:
    if isinstance(leaf, (np.ndarray, np.generic)):
        return leaf.dtype.kind in "biufc"
    return isinstance(leaf, (Tensor, bool, int, float, complex))


def _trainable(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in _parameters(net).items() if p.requires_grad}


def _parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by their names in the plain net, if they have the same gradients there."""
    swaps = {}
    for name, module in net.named_modules():
        inside = f"{name}." if name else ""
        if isinstance(module, AddIdentity):
            swaps[f"{inside}layer."] = inside
        elif [*map(type, parametrizations_of(module))] == [ResidualWeight]:
            swaps[f"{inside}parametrizations.weight.original"] = f"{inside}weight"
    named = {}
    for name, parameter in net.named_parameters():
        for old, new in reversed(swaps.items()):  # inner ones first
            if name.startswith(old):
                name = new + name.removeprefix(old)
        named[name] = parameter
    return named


class _Differences:
    """Largest differences of named leaves of two nets, and largest numbers of the first net's."""

    def __init__(self) -> None:
        self.largest: dict[str, float] = {}
        self.scales: dict[str, float] = {}
        self.opaque: dict[str, None] = {}
        self.eps = 0.0

    def add(self, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
        """Add leaves of equal names."""
        for name, leaf in a.items():
            gap = scale = 0.0
            if _is_numbers(leaf):
                one, other = torch.as_tensor(leaf), torch.as_tensor(b[name])
                if one.numel():
                    gap, scale = self._compared(one, other)
            elif leaf is None or isinstance(leaf, _VALUES):
                gap = gap if leaf == b[name] else math.inf
            else:
                self.opaque[name] = None
                continue
            self.largest[name] = max(gap, self.largest.get(name, gap))
            self.scales[name] = max(scale, self.scales.get(name, scale))

    def _compared(self, one: Tensor, other: Tensor) -> tuple[float, float]:
        for tensor in (one, other):
            if tensor.is_floating_point() or tensor.is_complex():
                self.eps = max(self.eps, torch.finfo(tensor.dtype).eps)
        wide = torch.complex128 if one.is_complex() or other.is_complex() else torch.float64
        one, other = (t.to_dense().to(one.device, wide) for t in (one, other))
        apart = torch.where(one == other, 0, one - other)  # equal infinities do not differ
        gap = float(apart.abs().max())
        finite = torch.where(one.isfinite(), one, 0)
        # max() would pass over a NaN.
        return gap if math.isfinite(gap) else math.inf, float(finite.abs().max())

    def relative(self) -> dict[str, float]:
        """Difference over scale, by name."""
        top = max(self.scales.values(), default=0.0)
        found = {}
        for name, gap in self.largest.items():
            scale = top if gap <= ROUNDINGS * self.eps * top else self.scales[name]
            found[name] = gap if gap in (0.0, math.inf) else gap / scale if scale else math.inf
        return found


def _train(
    nets: tuple[nn.Module, nn.Module],
    batches: Sequence[tuple[Batch, Batch]],
    loss: Loss,
    steps: int,
    optimizer: OptimizerFactory,
    correct: bool,
) -> list[float]:
    """Difference of the effective weights after each step."""
    optimizers = [optimizer(_parameters(net).values()) for net in nets]
    for net, each in zip(nets, optimizers, strict=True):
        if correct and any(shifted(net)):
            IdDecay(each, net)
    drift = []
    for step in range(steps):
        for net, each, batch in zip(nets, optimizers, batches[step % len(batches)], strict=True):
            each.zero_grad()
            with _same_draws(net, step):
                value = _value(loss, batch.call(net), batch.target)
            if value is None:
                raise ValueError(f"steps: got {steps}, but no output has a gradient; needs steps=0")
            value.backward()
            each.step()
        apart, weights = _Differences(), map(_effective, nets)
        apart.add(*({"": torch.cat([p.flatten() for p in w.values()])} for w in weights))
        drift.append(apart.relative()[""])
    return drift


def _effective(net: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters, V + I for V, sorted: two nets may list them in another order."""
    masks: dict[Tensor, Tensor] = dict(shifted(net))
    return {name: p.detach() + masks.get(p, 0) for name, p in sorted(_trainable(net).items())}


def _check_start(steps: int, nets: Sequence[nn.Module], gradients: _Differences) -> None:
    """Raise if weights that are trained alike start apart, in nets of equal outputs."""
    start, least = _Differences(), ROUNDINGS * gradients.eps * max(gradients.scales.values())
    start.add(*map(_effective, nets))
    for name, gap in start.relative().items():
        if gap > ROUNDINGS * start.eps and gradients.scales[name] > least:
            raise ValueError(
                f"steps: got {steps}, but {name!r} starts {gap:.2g} apart; an identity that a net "
                "adds in forward needs to be in a weight: rt.to_residual(rt.absorb(net))"
            )
