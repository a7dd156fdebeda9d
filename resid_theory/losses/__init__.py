"""Losses: by name, as a function, or as a module of torch.nn."""

from resid_theory.losses.formulas import IGNORED
from resid_theory.losses.likelihood import Bernoulli, Categorical, Gaussian
from resid_theory.losses.loss import LOSSES, Loss, LossLike, check_scalar
from resid_theory.losses.own_loss import OwnLoss
from resid_theory.losses.sample_axes import SampleAxes
from resid_theory.losses.weighting import (
    Coupled,
    KnownWeighting,
    NoWeighting,
    Weighting,
    reweighted,
    weighting_of,
)

__all__ = [
    "IGNORED",
    "LOSSES",
    "Bernoulli",
    "Categorical",
    "Coupled",
    "Gaussian",
    "KnownWeighting",
    "Loss",
    "LossLike",
    "NoWeighting",
    "OwnLoss",
    "SampleAxes",
    "Weighting",
    "check_scalar",
    "reweighted",
    "weighting_of",
]
