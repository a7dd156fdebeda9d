"""Initial weights of layers, drawn from an explicit generator."""

import math

import torch
from torch import nn

from resid_theory._check import as_generator, check_choice, check_within
from resid_theory.identity.identity_kernel import checked_layer
from resid_theory.identity.layer_weight import layer_identity, trained_weight
from resid_theory.identity.parametrizations import DiracWeight
from resid_theory.initializations import draw_initial, initializations_for


@torch.no_grad()
def initialize_layer(
    layer: nn.Module, init: str, *, generator: torch.Generator | int = 0, std: float = 1.0
) -> nn.Module:
    """Draw what a layer trains, in place: V, or the weight of a plain layer; the bias becomes zero.

    Entries are normal. ``kaiming`` (KWI): variance 2 / fan_in. ``hardt_ma`` (HMWI): standard
    deviation 1 / (taps * c_out), which is small, for weights beside an identity. ``normal``:
    ``std``, whatever the shape. In a Dirac layer a becomes 1 and b 0.1.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d``, ``2d``, ``3d``.
        init: A ``"kernel"`` row of ``resid_theory.initializations``; fan-in and taps are those of
            the effective weight.
        generator: A generator or a seed.
        std: Standard deviation of ``normal``; 1 is the DiracNets paper's. A Dirac weight depends on
            the direction of V only, but a step turns V the less, the longer it is.

    Returns:
        The same layer.

    Raises:
        ValueError: If the layer is of another type, the name is unknown, ``std`` is negative or not
            finite, or the generator is neither.

    Source:
        He et al., arXiv:1502.01852 (fan-in); Yu & Tomasi, arXiv:1905.10944, eqs. (3) and (4), in
        the reading that Table 4 supports; Zagoruyko & Komodakis, arXiv:1706.00388v2, section 2
        (``normal``, a and b).
    """
    check_choice("init", init, initializations_for("kernel"))
    std = check_within("std", std, 0, math.inf, "[)")
    target, inside = trained_weight(checked_layer(layer)), layer_identity(layer)
    source = as_generator(generator)
    # V may be a part of the weight, but the deviation is that of the whole.
    whole = target.shape if inside is None else inside.identity.shape
    target.copy_(draw_initial(init, target.shape, source, factor=std, weight_shape=whole))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    if isinstance(inside, DiracWeight):
        inside.a.fill_(1.0)
        if inside.b is not None:
            inside.b.fill_(0.1)
    return layer
