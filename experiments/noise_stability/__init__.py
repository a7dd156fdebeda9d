"""Yu & Tomasi, "Identity Connections in Residual Nets Improve Noise Stability"
(arXiv:1905.10944), as claims.
"""

from experiments.noise_stability import (
    architecture,
    cushions,
    dominant,
    equality,
    flow_speed,
    flows,
    gaussian,
    training,
    weights,
)

CLAIMS = [
    *architecture.CLAIMS,
    *training.CLAIMS,
    *equality.CLAIMS,
    *weights.CLAIMS,
    *cushions.CLAIMS,
    *flows.CLAIMS,
    *flow_speed.CLAIMS,
    *gaussian.CLAIMS,
    *dominant.CLAIMS,
]
