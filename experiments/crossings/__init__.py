"""Where the papers cross: the analyses of one applied to the nets of another, as claims."""

from experiments.crossings import curvature, dirac, linear, noise

CLAIMS = [*curvature.CLAIMS, *linear.CLAIMS, *dirac.CLAIMS, *noise.CLAIMS]
