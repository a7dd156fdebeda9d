"""Noise stability of nets: how much of the gradient flows along the identity's paths."""

from resid_theory.stability.flows import MODES, STATISTICS, Flows, dominant_flows
from resid_theory.stability.paths import Paths, subactivation_paths

__all__ = ["MODES", "STATISTICS", "Flows", "Paths", "dominant_flows", "subactivation_paths"]
