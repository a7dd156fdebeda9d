"""Elementwise activations by name, and their derivatives at zero."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from resid_theory._check import check_choice

Activation = Callable[[Tensor], Tensor]


def _shifted_softplus(z: Tensor) -> Tensor:
    # softplus(0) = log 2 would move the zero point; the shift puts it back.
    return F.softplus(z) - math.log(2)


ACTIVATIONS: dict[str, Activation] = {
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "silu": F.silu,
    "gelu": F.gelu,
    "softplus": F.softplus,
    "shifted_softplus": _shifted_softplus,
    "sigmoid": torch.sigmoid,
}


def activation(argument: str, given: str | Activation | None) -> Activation | None:
    """Return a key of ``ACTIVATIONS`` as its callable; check a callable; None is no activation."""
    if given is None or given == "identity":
        return None
    if not callable(given):
        return ACTIVATIONS[check_choice(argument, given, [*ACTIVATIONS, "identity"])]
    if isinstance(given, torch.nn.Module) and any(True for _ in given.parameters()):
        raise ValueError(
            f"{argument}: {given} has parameters, which a block cannot hold; needs an activation "
            "without parameters"
        )
    probe = torch.arange(-2.0, 4.0, dtype=torch.float64).view(2, 3)
    point = probe.clone()
    try:
        value = given(point)
        one_by_one = torch.stack([given(entry) for entry in probe.clone().reshape(-1, 1, 1)])
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{argument}: the callable fails on a float64 tensor of shape (2, 3): {error}"
        ) from error
    shape = tuple(getattr(value, "shape", ()))
    if shape != (2, 3):
        raise ValueError(
            f"{argument}: the callable turns shape (2, 3) into {shape}, needs an elementwise one"
        )
    if not torch.equal(point, probe):
        raise ValueError(
            f"{argument}: the callable overwrites its input, needs one that returns a new tensor "
            "(inplace=False)"
        )
    # Up to round-off: a vectorized kernel may differ from the scalar one in the last bit.
    if not torch.allclose(value.reshape(-1), one_by_one.reshape(-1), 1e-9, 1e-12, equal_nan=True):
        raise ValueError(
            f"{argument}: an entry of the callable's result depends on other entries (as softmax "
            "does), or is random; needs an elementwise function"
        )
    return given


@dataclass(frozen=True, kw_only=True)
class AtZero:
    """One-sided behaviour of an activation at zero; the two sides agree when it is smooth there."""

    value: float  # s(0)
    left: float  # s'(0-)
    right: float  # s'(0+)
    second_left: float  # s''(0-)
    second_right: float  # s''(0+)

    @property
    def has_kink(self) -> bool:
        """True if the two slopes differ by more than round-off."""
        return abs(self.left - self.right) > 1e-12 * max(abs(self.left), abs(self.right))

    @property
    def slope(self) -> float:
        """s'(0); at a kink the slope of the least-squares line on [-e, e], (left + right) / 2."""
        return 0.5 * (self.left + self.right)

    @property
    def second(self) -> float:
        """s''(0); at a kink 0, the curvature of that line; nan where the two sides differ."""
        if self.has_kink:
            return 0.0
        scale = max(abs(self.second_left), 1.0)
        if abs(self.second_left - self.second_right) > 1e-9 * scale:
            return float("nan")
        return 0.5 * (self.second_left + self.second_right)


def at_zero(function: Activation | None) -> AtZero:
    """Value and one-sided derivatives of an activation at zero.

    Args:
        function: An elementwise callable, or ``None`` for the identity.

    Returns:
        Numbers in float64; nan for a slope that has no limit at zero.

    Source:
        Li et al., arXiv:1611.01186, Assumption 3 (derivatives at 0) and its remark on ReLU.

    Example:
        >>> at_zero(torch.relu).slope
        0.5
    """
    if function is None:
        return AtZero(value=0.0, left=1.0, right=1.0, second_left=0.0, second_right=0.0)
    # Derivatives next to zero, not at it: autograd's value at a kink is a convention. In float64,
    # 1e-150 is close enough to 0 to give the limit.
    points = torch.tensor([-1e-150, 1e-150, -1e-100, 1e-100], dtype=torch.float64)
    first, second = derivatives(function, points)
    value = function(torch.zeros(1, dtype=torch.float64)).item()
    # The slope of z² is 1e-150 there, which means zero; that of a root is 1e75, but 1e50 at the
    # second pair of points: it has no limit.
    flat = first.abs() < 1e-60
    settled = torch.isclose(first[:2], first[2:], rtol=1e-9, atol=0.0) | flat[:2]
    left, right = first[:2].masked_fill(flat[:2], 0.0).masked_fill(~settled, torch.nan).tolist()
    return AtZero(
        value=value,
        left=left,
        right=right,
        second_left=second[0].item(),
        second_right=second[1].item(),
    )


def derivatives(function: Activation | None, z: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative at points z; None is the identity."""
    if function is None:
        return torch.ones_like(z), torch.zeros_like(z)
    with torch.inference_mode(False), torch.enable_grad():
        point = z.clone().requires_grad_()
        first = _derivative(function(point), point, create_graph=True)
        second = _derivative(first, point, create_graph=False)
    return first.detach(), second


def _derivative(value: Tensor, point: Tensor, *, create_graph: bool) -> Tensor:
    if not value.requires_grad:  # a constant slope
        return torch.zeros_like(point)
    (grad,) = torch.autograd.grad(
        value.sum(), point, create_graph=create_graph, materialize_grads=True
    )
    return grad
