"""Claims on wirings of residual streams: at zero weights, at their papers' starts, at width.

Those on training curves and on accuracy of these papers are left out: they need their data sets and
days of a GPU. Theorems whose constants stand only in the texts are judged by their orders.
"""

from experiments.every_layout import (
    depth_scaling,
    identity_matters,
    random_jacobians,
    starting_points,
    stream_mixing,
)

CLAIMS = [
    *stream_mixing.CLAIMS,
    *starting_points.CLAIMS,
    *identity_matters.CLAIMS,
    *depth_scaling.CLAIMS,
    *random_jacobians.CLAIMS,
]
