"""First weights, drawn from an explicit generator."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resid_theory._check import check_choice
from resid_theory.identity.identity_kernel import checked_layer
from resid_theory.identity.parametrizations import DiracWeight, layer_identity, trained_weight

__all__ = ["DRAWS", "draw_kernel", "initialize_layer"]

DRAWS = ("kaiming", "hardt_ma", "normal")


def draw_kernel(
    kind: str, shape: Sequence[int], *, generator: torch.Generator, std: float = 1.0
) -> Tensor:
    r"""A first weight of normal entries.

    ``kaiming`` (KWI): variance 2 / fan_in. ``hardt_ma`` (HMWI): standard deviation
    1 / (taps * c_out), which is small, for weights beside an identity. ``normal``: ``std``,
    whatever the shape.

    Args:
        kind: One of ``DRAWS``.
        shape: (out, in, *kernel).
        generator: Source of randomness; its device is where the numbers are drawn.
        std: Standard deviation of ``normal``; 1 is DiracNets' draw, of which only the direction
            counts.

    Returns:
        float64, on the generator's device.

    Raises:
        ValueError: If the kind is unknown or ``std`` is negative or not finite.

    Source:
        He et al., arXiv:1502.01852 (fan-in); Yu & Tomasi, arXiv:1905.10944, eqs. (3) and (4), in
        the reading that Table 4 supports; Zagoruyko & Komodakis, arXiv:1706.00388v2, section 2.
    """
    check_choice("kind", kind, DRAWS)
    if not (isinstance(std, (int, float)) and 0 <= std < math.inf):
        raise ValueError(f"std: got {std!r}, needs a finite number of at least 0")
    normal = torch.randn(*shape, generator=generator, dtype=torch.float64, device=generator.device)
    return _deviation(kind, shape, std) * normal


def _deviation(kind: str, shape: Sequence[int], std: float) -> float:
    if kind == "kaiming":
        return math.sqrt(2 / math.prod(shape[1:]))
    return 1 / (math.prod(shape[2:]) * shape[0]) if kind == "hardt_ma" else float(std)


@torch.no_grad()
def initialize_layer(
    layer: nn.Module, kind: str, *, generator: torch.Generator, std: float = 1.0
) -> nn.Module:
    """Draw what a layer trains, in place: V, or the weight of a plain layer; the bias becomes zero.

    In a Dirac layer a becomes 1 and b 0.1.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d``, ``2d``, ``3d``.
        kind: One of ``DRAWS``, see :func:`draw_kernel`; fan-in is that of the effective weight.
        generator: Source of randomness.
        std: Of ``normal``.

    Returns:
        The same layer.

    Raises:
        ValueError: If the layer is another one, or as for :func:`draw_kernel`.

    Source:
        As for :func:`draw_kernel`; a and b: Zagoruyko & Komodakis, arXiv:1706.00388v2, section 2.
    """
    weight, target = checked_layer(layer).weight, trained_weight(layer)
    deviation = _deviation(check_choice("kind", kind, DRAWS), weight.shape, std)
    target.copy_(draw_kernel("normal", target.shape, generator=generator, std=deviation))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    inside = layer_identity(layer)
    if isinstance(inside, DiracWeight):
        inside.a.fill_(1.0)
        if inside.b is not None:
            inside.b.fill_(0.1)
    return layer
