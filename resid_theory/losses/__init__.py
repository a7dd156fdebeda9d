"""Losses: by name, as a function, or as a module of torch.nn."""

from resid_theory.losses.loss import LOSSES, Loss, LossLike, check_outputs, check_scalar

__all__ = ["LOSSES", "Loss", "LossLike", "check_outputs", "check_scalar"]
