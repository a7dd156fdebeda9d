"""Figures of notebooks as small files: ``%load_ext experiments.notebook_figures``."""

from functools import partial
from typing import Any

from matplotlib.figure import Figure

from resid_theory import plots

DPI = 130  # the longest notebook stays below a megabyte


def load_ipython_extension(shell: Any) -> None:
    """Let a notebook show figures as :func:`resid_theory.plots.png` writes them."""
    shell.run_line_magic("matplotlib", "inline")  # first: it sets a formatter of its own
    shell.display_formatter.formatters["image/png"].for_type(Figure, partial(plots.png, dpi=DPI))
