"""Checks of arguments that several calls take."""

from torch import Tensor, nn

from resid_theory._check import check_positive
from resid_theory.curvature.parameter_selection import trainable_by_name

__all__ = ["NOT_SYMMETRIC", "check_decay", "check_net", "trainable"]

NOT_SYMMETRIC = (
    "so they cannot come from a twice differentiable loss; the usual causes are a gradient written "
    "by hand and an operation that torch differentiates correctly only once"
)


def check_net(net: nn.Module) -> None:
    """Refuse anything but a ``torch.nn.Module`` whose parameters have shapes."""
    if not isinstance(net, nn.Module):
        raise ValueError(f"net: got {type(net).__name__}, needs a torch.nn.Module")
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            layer = name.rpartition(".")[0]
            raise ValueError(f"net: layer {layer!r} has no shape yet; call the net once before")


def check_decay(given: float) -> float:
    """Refuse a weight decay that is no number of at least 0."""
    return 0.0 if given == 0 else check_positive("weight_decay", given)


def trainable(net: nn.Module) -> list[Tensor]:
    """The parameters that require a gradient, at least one, in the net's order."""
    return list(trainable_by_name(net).values())
