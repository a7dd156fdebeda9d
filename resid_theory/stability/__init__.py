"""Noise stability: cushions, injected noise, what bounds are made of, two nets side by side."""

from resid_theory.stability.compare import Comparison, compare_cushions
from resid_theory.stability.cushions import Cushions, layer_cushions
from resid_theory.stability.interlayer import (
    InterlayerCushions,
    block_cushions,
    interlayer_cushions,
)

__all__ = [
    "Comparison",
    "Cushions",
    "InterlayerCushions",
    "block_cushions",
    "compare_cushions",
    "interlayer_cushions",
    "layer_cushions",
]
