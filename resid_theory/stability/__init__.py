"""Noise stability: cushions, injected noise, dominant gradient flows, two nets side by side."""

from resid_theory.stability.baselines import (
    LayerNorms,
    layer_norms,
    path_norm,
    spectral_norm,
)
from resid_theory.stability.bound import (
    CompressionBound,
    compression_bound,
    margin_loss,
    matrix_project,
)
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
from resid_theory.stability.sharpness import pac_bayes_sharpness
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
    "LayerNorms",
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
    "layer_norms",
    "margin_loss",
    "matrix_project",
    "pac_bayes_sharpness",
    "path_norm",
    "spectral_norm",
    "subactivation_paths",
    "weight_noise",
]
