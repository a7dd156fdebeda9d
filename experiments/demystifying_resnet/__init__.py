"""Li, Jiao, Han & Weissman, "Demystifying ResNet" (arXiv:1611.01186), as claims."""

from experiments.demystifying_resnet import (
    conditioning,
    curvature,
    deep,
    escape,
    final_losses,
    interpolation,
    layouts,
    lemmas,
    norms,
    preactivation,
    schematics,
    shortcut_depths,
    stability,
    transformers,
    zero_point,
)

CLAIMS = [
    *zero_point.CLAIMS,
    *conditioning.CLAIMS,
    *preactivation.CLAIMS,
    *norms.CLAIMS,
    *final_losses.CLAIMS,
    *shortcut_depths.CLAIMS,
    *stability.CLAIMS,
    *curvature.CLAIMS,
    *deep.CLAIMS,
    *escape.CLAIMS,
    *lemmas.CLAIMS,
    *interpolation.CLAIMS,
    *layouts.CLAIMS,
    *transformers.CLAIMS,
    *schematics.CLAIMS,
]
