"""Claims that apply the analyses of one paper to the nets of another."""

from experiments.crossings import absorption, complete, curvature, dirac, linear, noise, precision

CLAIMS = [
    *curvature.CLAIMS, *complete.CLAIMS, *linear.CLAIMS, *dirac.CLAIMS, *noise.CLAIMS,
    *absorption.CLAIMS, *precision.CLAIMS,
]  # fmt: skip
