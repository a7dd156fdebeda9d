"""Checks of arguments that several calls take."""

from torch import Tensor, nn

from resid_theory._check import check_positive
from resid_theory.curvature.parameter_selection import trainable_by_name

__all__ = ["NOT_SYMMETRIC", "check_decay", "trainable"]

NOT_SYMMETRIC = (
    "so they cannot come from a twice differentiable loss; the usual causes are a gradient written "
    "by hand and an operation that torch differentiates correctly only once"
)


def check_decay(given: float) -> float:
    """Refuse a weight decay that is no number of at least 0."""
    return 0.0 if given == 0 else check_positive("weight_decay", given)


def trainable(net: nn.Module) -> list[Tensor]:
    """The parameters that require a gradient, at least one, in the net's order."""
    return list(trainable_by_name(net).values())
