"""Conversions between nets that compute the same function, and measured differences of two nets."""

from resid_theory.equivalence.conversion import Conversion, NothingConverted, conversion
from resid_theory.equivalence.equivalence_check import Gap, check_equivalence
from resid_theory.equivalence.folding import fold
from resid_theory.equivalence.mapping import to_plain, to_residual

__all__ = [
    "Conversion",
    "Gap",
    "NothingConverted",
    "check_equivalence",
    "conversion",
    "fold",
    "to_plain",
    "to_residual",
]
