"""Grids of frozen configurations, run cell by cell; what is done is not done again."""

from resid_theory.sweep.driver import SweepReport, run_sweep
from resid_theory.sweep.grid import grid_of
from resid_theory.sweep.registry import TASKS
from resid_theory.sweep.results import load_results
from resid_theory.sweep.task import Outcome, Task

__all__ = ["TASKS", "Outcome", "SweepReport", "Task", "grid_of", "load_results", "run_sweep"]
