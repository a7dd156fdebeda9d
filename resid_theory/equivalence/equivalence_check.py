"""Measured differences of two nets: outputs, gradients, steps of training."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resid_theory._check import as_tensor, check_int
from resid_theory.identity import AddIdentity, IdDecay, shifted
from resid_theory.losses import Loss, LossLike

__all__ = ["Gap", "OptimizerFactory", "check_equivalence"]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True, eq=False)
class Gap:
    """Measured differences between two nets; all relative, 0 for the same net.

    Attributes:
        outputs: Largest difference of outputs over the largest output of the first net.
        input_gradient: Largest difference of the loss's gradients at the input over the largest of
            the first net's.
        gradients: The same for the gradient of each parameter, the largest of all; None when the
            parameters do not correspond one to one, as in a folded net.
        steps: Largest difference of effective weights over the largest weight of the first net,
            after each step of training, (steps,), float64.
    """

    outputs: float
    input_gradient: float
    gradients: float | None
    steps: Tensor

    @property
    def largest(self) -> float:
        """The largest of all these differences."""
        return max(self.outputs, self.input_gradient, self.gradients or 0.0, *self.steps.tolist())


@torch.inference_mode(False)
@torch.enable_grad()
def check_equivalence(
    net_a: nn.Module,
    net_b: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    loss: LossLike = "square",
    steps: int = 0,
    optimizer: OptimizerFactory | None = None,
    correct: bool = True,
) -> Gap:
    """Measure the differences of two nets in outputs, gradients and training.

    Both are copied and measured in their current mode. Parameters correspond when their layers have
    the same names and shapes; V is compared after adding I.

    Args:
        net_a: The first net.
        net_b: The second net.
        x: Inputs, (batch, ...), of the nets' dtype and device. ReLUs that switch amplify round-off;
            use float64 to distinguish it from real differences.
        y: Targets of the loss; zeros of the output's shape if None.
        loss: A name or a callable ``(output, target) -> scalar mean``.
        steps: Steps of training on (x, y), all on the same batch.
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
    x, steps = as_tensor("x", x), check_int("steps", steps, minimum=0)
    if steps and optimizer is None:
        raise ValueError("optimizer: got None with steps > 0, needs a function of the parameters")
    nets = copy.deepcopy(net_a), copy.deepcopy(net_b)
    target, scored = y, Loss.of(loss)
    measured: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []
    for net in nets:
        at = x.detach().clone().requires_grad_(x.is_floating_point())
        output = net(at)
        if measured and output.shape != measured[0][0].shape:
            raise ValueError(
                f"net_b: gives outputs of shape {tuple(output.shape)}, needs those of net_a, "
                f"{tuple(measured[0][0].shape)}"
            )
        target = torch.zeros_like(output) if target is None else target
        scored.check_target(output, target)
        measured.append((output.detach(), *_gradients(net, at, scored(output, target))))
    (out_a, in_a, grads_a), (out_b, in_b, grads_b) = measured
    shapes_a, shapes_b = (
        {(name, tuple(grad.shape)) for name, grad in grads.items()} for grads in (grads_a, grads_b)
    )
    same = bool(grads_a) and shapes_a == shapes_b
    if steps and not same:
        odd = min(shapes_a ^ shapes_b)
        raise ValueError(
            f"steps: got {steps}, but the nets' parameters do not correspond: {odd[0]!r} of shape "
            f"{odd[1]} is in one only; needs steps=0"
        )
    drift: list[float] = []
    if steps and optimizer is not None:
        assert target is not None
        drift = _train(nets, (x, target), scored, steps, optimizer, correct)
    return Gap(
        outputs=_relative(out_a, out_b),
        input_gradient=_relative(in_a, in_b),
        gradients=max(_relative(grads_a[n], grads_b[n]) for n in grads_a) if same else None,
        steps=torch.tensor(drift, dtype=torch.float64),
    )


def _gradients(net: nn.Module, x: Tensor, value: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    named = {name: p for name, p in _parameters(net).items() if p.requires_grad}
    inputs = ([x] if x.requires_grad else []) + list(named.values())
    grads = torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)
    at_input = grads[0] if x.requires_grad else x.new_zeros(1)
    return at_input, dict(zip(named, grads[-len(named) :], strict=True)) if named else {}


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


def _relative(a: Tensor, b: Tensor) -> float:
    difference, scale = float((a - b).abs().max()), float(a.abs().max())
    if not math.isfinite(difference):  # max() would pass over a NaN
        return math.inf
    if difference == 0.0:
        return 0.0
    return difference / scale if scale else math.inf


def _train(
    nets: tuple[nn.Module, nn.Module],
    batch: tuple[Tensor, Tensor],
    loss: Loss,
    steps: int,
    optimizer: OptimizerFactory,
    correct: bool,
) -> list[float]:
    """Difference of the effective weights after each step."""
    x, y = batch
    optimizers = [optimizer(_parameters(net).values()) for net in nets]
    if correct:
        for net, each in zip(nets, optimizers, strict=True):
            IdDecay(each, net)
    drift = []
    for _ in range(steps):
        for net, each in zip(nets, optimizers, strict=True):
            each.zero_grad()
            loss(net(x), y).backward()
            each.step()
        weights = []
        for net in nets:  # effective ones: V with the identity added
            masks: dict[Tensor, Tensor] = dict(shifted(net))
            named = _parameters(net).items()
            weights.append({name: p.detach() + masks.get(p, 0) for name, p in named})
        # By name: the two nets may list them in another order.
        drift.append(_relative(*(torch.cat([w[n].flatten() for n in weights[0]]) for w in weights)))
    return drift
