"""Nets in other forms that compute the same, and how far from the same two nets are."""

from resid_theory.equivalence.equivalence_check import Gap, check_equivalence
from resid_theory.equivalence.folding import fold
from resid_theory.equivalence.mapping import to_plain, to_residual

__all__ = ["Gap", "check_equivalence", "fold", "to_plain", "to_residual"]
