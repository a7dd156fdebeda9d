"""Claims on wirings of residual streams: at zero weights, at their papers' starts, at width."""

from experiments.every_layout import (
    depth_scaling,
    random_jacobians,
    starting_points,
    stream_mixing,
)

CLAIMS = [
    *stream_mixing.CLAIMS,
    *starting_points.CLAIMS,
    *depth_scaling.CLAIMS,
    *random_jacobians.CLAIMS,
]
