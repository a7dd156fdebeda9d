"""Trained nets in the file formats of others, read without running anything in them."""

from resid_theory.exchange.authors import load_dirac_file, save_dirac_file

__all__ = ["load_dirac_file", "save_dirac_file"]
