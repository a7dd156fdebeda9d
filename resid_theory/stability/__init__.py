"""Noise stability: cushions, injected noise, what bounds are made of, two nets side by side."""

from resid_theory.stability.cushions import Cushions, layer_cushions

__all__ = [
    "Cushions",
    "layer_cushions",
]
