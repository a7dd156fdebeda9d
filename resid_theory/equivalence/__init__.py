"""Conversions between nets that compute the same function, and measured differences of two nets."""

from resid_theory.equivalence.absorption import Shortcuts, absorb, shortcuts
from resid_theory.equivalence.conversion import Conversion, NothingConverted, conversion
from resid_theory.equivalence.equivalence_check import Gap, check_equivalence
from resid_theory.equivalence.folding import fold
from resid_theory.equivalence.mapping import to_plain, to_residual

__all__ = [
    "Conversion",
    "Gap",
    "NothingConverted",
    "Shortcuts",
    "absorb",
    "check_equivalence",
    "conversion",
    "fold",
    "shortcuts",
    "to_plain",
    "to_residual",
]
