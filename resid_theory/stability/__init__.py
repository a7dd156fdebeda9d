"""Noise stability: cushions, injected noise, what bounds are made of, two nets side by side."""

from resid_theory.stability.cushions import Cushions, layer_cushions
from resid_theory.stability.interlayer import (
    InterlayerCushions,
    block_cushions,
    interlayer_cushions,
)

__all__ = [
    "Cushions",
    "InterlayerCushions",
    "block_cushions",
    "interlayer_cushions",
    "layer_cushions",
]
