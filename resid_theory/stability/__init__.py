"""Noise stability of nets: how much of the gradient flows along the identity's paths."""

from resid_theory.stability.dominance import MODES, STATISTICS
from resid_theory.stability.flows import Flows, dominant_flows, feature_gradients
from resid_theory.stability.paths import Paths, subactivation_paths

__all__ = [
    "MODES",
    "STATISTICS",
    "Flows",
    "Paths",
    "dominant_flows",
    "feature_gradients",
    "subactivation_paths",
]
