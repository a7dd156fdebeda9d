"""Noise stability: cushions, injected noise, dominant gradient flows, comparison of two nets."""

from resid_theory.stability.bound import CompressionBound, compression_bound
from resid_theory.stability.compare import Comparison, compare_cushions
from resid_theory.stability.cushions import Cushions, layer_cushions
from resid_theory.stability.flow_statistics import MODES, STATISTICS
from resid_theory.stability.flows import Flows, dominant_flows, feature_gradients
from resid_theory.stability.interlayer import (
    InterlayerCushions,
    block_cushions,
    interlayer_cushions,
)
from resid_theory.stability.noise import NoiseCurves, activation_noise, weight_noise
from resid_theory.stability.paths import ChannelPaths, subactivation_paths
from resid_theory.stability.smoothness import (
    Smoothness,
    activation_contraction,
    interlayer_smoothness,
)

__all__ = [
    "MODES",
    "STATISTICS",
    "Comparison",
    "CompressionBound",
    "Cushions",
    "Flows",
    "InterlayerCushions",
    "NoiseCurves",
    "ChannelPaths",
    "Smoothness",
    "activation_contraction",
    "activation_noise",
    "block_cushions",
    "compare_cushions",
    "compression_bound",
    "dominant_flows",
    "feature_gradients",
    "interlayer_cushions",
    "interlayer_smoothness",
    "layer_cushions",
    "subactivation_paths",
    "weight_noise",
]
