"""The tasks of sweeps by name, and tasks of the user by location."""

import importlib
from collections.abc import Mapping

from resid_theory._check import check_choice
from resid_theory.sweep.hessian_task import HessianTask
from resid_theory.sweep.image_tasks import CurvatureTask, CushionsTask, TrainingTask
from resid_theory.sweep.task import Task

# A new task is a row here.
TASKS: Mapping[str, type[Task]] = {
    "hessian": HessianTask,
    "curvature": CurvatureTask,
    "training": TrainingTask,
    "cushions": CushionsTask,
}


def task_of(name: str) -> type[Task]:
    """The class of a task in ``TASKS``, or of ``module:Class``; the module is imported."""
    module, colon, attribute = str(name).partition(":")
    if not colon:
        return TASKS[check_choice("task", name, list(TASKS))]
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever somebody's module raises
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"task: {name!r} cannot be imported: {why}") from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ValueError(f"task: got {name!r}, needs a subclass of resid_theory.sweep.Task")
    return found
