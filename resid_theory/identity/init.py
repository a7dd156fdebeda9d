"""Initial weights of layers, drawn from an explicit generator."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resid_theory._check import as_generator, check_choice
from resid_theory.identity.identity_kernel import checked_layer
from resid_theory.identity.parametrizations import DiracWeight, layer_identity, trained_weight
from resid_theory.initializations import draw_initial, initializations_for

__all__ = ["draw_kernel", "initialize_layer"]


def draw_kernel(
    init: str,
    shape: Sequence[int],
    *,
    generator: torch.Generator | int = 0,
    std: float = 1.0,
    weight_shape: Sequence[int] | None = None,
) -> Tensor:
    r"""Draw the initial weight of a layer.

    ``kaiming`` (KWI): variance 2 / fan_in. ``hardt_ma`` (HMWI): standard deviation
    1 / (taps * c_out), which is small, for weights beside an identity. ``normal``: ``std``,
    whatever the shape. Entries are normal.

    Args:
        init: A ``"kernel"`` row of ``resid_theory.initializations``.
        shape: (out, in, *kernel).
        generator: A generator or a seed; its device is where the numbers are drawn.
        std: Standard deviation of ``normal``; 1 is the DiracNets paper's, where only the direction
            counts.
        weight_shape: Shape (out, in, *kernel) that decides the deviation, where the drawn tensor is
            only a part of the weight.

    Returns:
        float64, on the generator's device.

    Raises:
        ValueError: If the name is unknown or ``std`` is negative or not finite.

    Source:
        He et al., arXiv:1502.01852 (fan-in); Yu & Tomasi, arXiv:1905.10944, eqs. (3) and (4), in
        the reading that Table 4 supports; Zagoruyko & Komodakis, arXiv:1706.00388v2, section 2.
    """
    check_choice("init", init, initializations_for("kernel"))
    if not (isinstance(std, (int, float)) and 0 <= std < math.inf):
        raise ValueError(f"std: got {std!r}, needs a finite number of at least 0")
    source = as_generator(generator)
    return draw_initial(init, shape, source, factor=std, weight_shape=weight_shape)


@torch.no_grad()
def initialize_layer(
    layer: nn.Module, init: str, *, generator: torch.Generator | int = 0, std: float = 1.0
) -> nn.Module:
    """Draw what a layer trains, in place: V, or the weight of a plain layer; the bias becomes zero.

    In a Dirac layer a becomes 1 and b 0.1.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d``, ``2d``, ``3d``.
        init: As for :func:`draw_kernel`; fan-in is that of the effective weight.
        generator: A generator or a seed.
        std: Standard deviation of ``normal``.

    Returns:
        The same layer.

    Raises:
        ValueError: If the layer is another one, the name is unknown or ``std`` is negative.

    Source:
        :func:`draw_kernel`; a and b: Zagoruyko & Komodakis, arXiv:1706.00388v2, section 2.
    """
    weight, target = checked_layer(layer).weight, trained_weight(layer)
    target.copy_(
        draw_kernel(init, target.shape, generator=generator, std=std, weight_shape=weight.shape)
    )
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    inside = layer_identity(layer)
    if isinstance(inside, DiracWeight):
        inside.a.fill_(1.0)
        if inside.b is not None:
            inside.b.fill_(0.1)
    return layer
