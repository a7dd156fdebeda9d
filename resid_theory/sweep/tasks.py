"""The tasks of sweeps, by name."""

from collections.abc import Mapping

from resid_theory.sweep.shortcuts import Hessian
from resid_theory.sweep.task import Outcome, Task
from resid_theory.sweep.trunks import Curvature, Cushions, Training

__all__ = ["TASKS", "Outcome", "Task"]

# A new task is a row here.
TASKS: Mapping[str, type[Task]] = {
    "hessian": Hessian,
    "curvature": Curvature,
    "training": Training,
    "cushions": Cushions,
}
