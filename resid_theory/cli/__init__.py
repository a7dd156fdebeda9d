"""The command line: thin verbs over library calls, and errors of one line."""

from resid_theory.cli.app import main

__all__ = ["main"]
