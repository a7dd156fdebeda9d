"""Measured differences of two nets: outputs, gradients, steps of training."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import check_int
from resid_theory.data import Batch, Data
from resid_theory.data.batch import Place
from resid_theory.data.net_arguments import call_net
from resid_theory.identity import AddIdentity, IdDecay, shifted
from resid_theory.losses import Loss, LossLike
from resid_theory.nested import map_tensors, tensors_of
from resid_theory.runtime.net_entry import as_written, check_net
from resid_theory.runtime.net_state import copied

__all__ = ["Gap", "OptimizerFactory", "check_equivalence"]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True, eq=False)
class Gap:
    """Measured differences between two nets; all relative, 0 for the same net.

    Attributes:
        outputs: Largest difference of outputs over the largest output of the first net.
        input_gradient: Largest difference of the loss's gradients at the inputs over the largest of
            the first net's; 0 where inputs are integers.
        gradients: The same for the gradient of each parameter, the largest of all; None when the
            parameters do not correspond one to one, as in a folded net.
        steps: Largest difference of effective weights over the largest weight of the first net,
            after each step of training, (steps,), float64.
        notes: What was done to the data on the way into the nets.
    """

    outputs: float
    input_gradient: float
    gradients: float | None
    steps: Tensor
    notes: tuple[str, ...] = ()

    @property
    def largest(self) -> float:
        """The largest of all these differences."""
        return max(self.outputs, self.input_gradient, self.gradients or 0.0, *self.steps.tolist())


@torch.inference_mode(False)
@torch.enable_grad()
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

    Both are copied and measured in their current mode. Parameters correspond when their layers have
    the same names and shapes; V is compared after adding I. Outputs may be tensors, or tuples,
    mappings or objects of tensors, all of which are compared.

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
        ValueError: If the outputs' shapes differ, ``steps`` is given without ``optimizer``, or
            training cannot be compared because the parameters do not correspond.

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
    outputs, inputs = _Difference(), _Difference()
    kept: list[tuple[Batch, Batch]] = []
    totals: tuple[dict[str, Tensor], ...] = {}, {}
    for batch in samples:
        parts = batch, replace(batch, place=Place.of(nets[1]))
        a, b = (_measure(net, part, scored) for net, part in zip(nets, parts, strict=True))
        if [t.shape for t in a.outputs] != [t.shape for t in b.outputs]:
            raise ValueError(
                f"net_b: gives outputs of shape {_shapes(b.outputs)}, needs those of net_a, "
                f"{_shapes(a.outputs)}"
            )
        outputs.add(a.outputs, b.outputs)
        inputs.add(a.inputs, b.inputs)
        for total, each in zip(totals, (a, b), strict=True):
            for name, gradient in each.parameters.items():
                total[name] = total.get(name, 0) + batch.size * gradient
        if len(kept) < steps:
            kept.append(parts)
    drift: list[float] = []
    if steps and optimizer is not None:
        drift = _train(nets, kept, scored, steps, optimizer, correct)
    return Gap(
        outputs=outputs.relative,
        input_gradient=inputs.relative,
        gradients=max(_relative(totals[0][n], totals[1][n]) for n in totals[0]) if same else None,
        steps=torch.tensor(drift, dtype=torch.float64),
        notes=tuple(samples.notes),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Response:
    """Outputs of a net on a batch, and the gradients of the loss there."""

    outputs: list[Tensor]
    inputs: list[Tensor]
    parameters: dict[str, Tensor]


def _measure(net: nn.Module, batch: Batch, loss: Loss) -> _Response:
    x = map_tensors(
        batch.inputs, lambda t: t.detach().clone().requires_grad_(t.is_floating_point())
    )
    leaves, named = [t for t in tensors_of(x) if t.requires_grad], _trainable(net)
    # Cloned: a net that starts in place cannot write into a leaf.
    with as_written(net):
        output = call_net(net, map_tensors(x, lambda tensor: tensor.clone()))
    value = _value(loss, output, batch.target)
    gradients = torch.autograd.grad(
        value, [*leaves, *named.values()], allow_unused=True, materialize_grads=True
    )
    return _Response(
        outputs=[tensor.detach() for tensor in tensors_of(output)],
        inputs=list(gradients[: len(leaves)]),
        parameters=dict(zip(named, gradients[len(leaves) :], strict=True)),
    )


def _value(loss: Loss, output: Any, target: Any) -> Tensor:
    """The loss; without targets that of zeros, summed over the output's tensors."""
    parts = [part for part in tensors_of(output) if part.is_floating_point()]
    if not parts:
        raise ValueError(f"net_a: gives {type(output).__name__}, needs tensors of floating point")
    if target is None:
        return torch.stack([loss(part, torch.zeros_like(part)) for part in parts]).sum()
    if loss.targets != "any" and not isinstance(output, Tensor):
        raise ValueError(
            f"net_a: gives {type(output).__name__}; the loss {loss.name!r} needs a tensor: leave "
            "the targets out, or pass a callable (output, target)"
        )
    loss.check_target(output, target)
    return loss(output, target)


def _trainable(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in _parameters(net).items() if p.requires_grad}


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)


def _parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by their names in the plain net."""
    wrapped = [name for name, module in net.named_modules() if isinstance(module, AddIdentity)]
    named = {}
    for name, parameter in net.named_parameters():
        for prefix in wrapped:
            inner = f"{prefix}.layer." if prefix else "layer."
            if name.startswith(inner):
                name = inner.removesuffix("layer.") + name.removeprefix(inner)
        named[name.replace("parametrizations.weight.original", "weight")] = parameter
    return named


@dataclass
class _Difference:
    """Largest difference of tensors of two nets, and largest number of the first net."""

    largest: float = 0.0
    scale: float = 0.0

    def add(self, a: Iterable[Tensor], b: Iterable[Tensor]) -> None:
        """Add tensors."""
        for one, other in zip(a, b, strict=True):
            if one.numel():
                gap = float((one.double() - other.to(one.device).double()).abs().max())
                # max() would pass over a NaN.
                self.largest = max(self.largest, gap if math.isfinite(gap) else math.inf)
                self.scale = max(self.scale, float(one.double().abs().max()))

    @property
    def relative(self) -> float:
        """Difference over scale."""
        if self.largest in (0.0, math.inf):
            return self.largest
        return self.largest / self.scale if self.scale else math.inf


def _relative(a: Tensor, b: Tensor) -> float:
    found = _Difference()
    found.add([a], [b])
    return found.relative


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
    if correct:
        for net, each in zip(nets, optimizers, strict=True):
            IdDecay(each, net)
    drift = []
    for step in range(steps):
        for net, each, batch in zip(nets, optimizers, batches[step % len(batches)], strict=True):
            each.zero_grad()
            _value(loss, batch.call(net), batch.target).backward()
            each.step()
        weights = []
        for net in nets:  # effective ones: V with the identity added
            masks: dict[Tensor, Tensor] = dict(shifted(net))
            named = _parameters(net).items()
            weights.append({name: p.detach() + masks.get(p, 0) for name, p in named})
        # By name: the two nets may list them in another order.
        drift.append(_relative(*(torch.cat([w[n].flatten() for n in weights[0]]) for w in weights)))
    return drift
