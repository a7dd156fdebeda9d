"""Training of one net or of several at once, which resumes exactly after it is killed."""

from resid_theory.training.api import resume, train
from resid_theory.training.divergence import DivergenceError
from resid_theory.training.evaluation import Evaluation, evaluate
from resid_theory.training.recipe import (
    DIRACNETS,
    DIRACNETS_IMAGENET,
    NOISE_STABILITY,
    NOISE_STABILITY_BN,
    Recipe,
)
from resid_theory.training.run import Progress, Run
from resid_theory.training.saved_nets import (
    build_net,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)

__all__ = [
    "DIRACNETS",
    "DIRACNETS_IMAGENET",
    "NOISE_STABILITY",
    "NOISE_STABILITY_BN",
    "DivergenceError",
    "Evaluation",
    "Progress",
    "Recipe",
    "Run",
    "build_net",
    "evaluate",
    "list_checkpoints",
    "load_checkpoint",
    "resume",
    "save_checkpoint",
    "train",
]
