"""Sweep task on n-shortcut nets: the exact Hessian at initial weights."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from resid_theory.curvature import hessian_spectrum
from resid_theory.data.regression import Regression
from resid_theory.runtime.store import digest
from resid_theory.sweep.setup import Setup
from resid_theory.sweep.task import Outcome, Task


@dataclass(frozen=True, kw_only=True)
class HessianTask(Task, Setup):
    """All eigenvalues of the Hessian of an n-shortcut net at its initial weights."""

    def check(self) -> None:
        """Raise a ValueError if the settings cannot be run."""
        Task.check(self)
        Setup.check(self)

    def content(self) -> dict[str, Any]:
        """With the sha256 of the user's own data: other data of the same name are another cell."""
        content = super().content()
        if self.data.endswith(".npz"):
            path = Path(self.data)
            if not path.is_file():
                raise ValueError(f"data: there is no file {path}")
            content["data_sha256"] = digest(path)
        return content

    def run(self, folder: Path, device: str) -> Outcome:
        """All eigenvalues and their statistics."""
        data = _loaded(self.data, self.components, self.content().get("data_sha256"))
        found = hessian_spectrum(self.net(self.seed), self.loss, data)
        numbers = {"max_magnitude": found.max_magnitude, **found.summary()}
        return Outcome(numbers=numbers, arrays={"eigenvalues": found.eigenvalues})


@lru_cache(maxsize=2)
def _loaded(data: str, components: int, _: str | None) -> Regression:
    """The data, loaded once for all cells while the file stays the same."""
    return Setup(data=data, components=components).load(progress=False)
