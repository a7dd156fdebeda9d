"""Data that a claim needs but that can be neither shipped nor downloaded automatically."""

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Need"]


@dataclass(frozen=True, kw_only=True)
class Need:
    """Images in one folder per class, under a folder named by an environment variable.

    Attributes:
        what: Description of the data.
        variable: The environment variable.
        parts: Subfolders that must exist, each with one folder per class.
    """

    what: str
    variable: str
    parts: tuple[str, ...]

    def folder(self) -> Path:
        """Folder of the data; raises FileNotFoundError with what is missing."""
        if self.missing():
            raise FileNotFoundError(self.missing())
        return Path(os.environ[self.variable])

    def missing(self) -> str:
        """Reason why the data cannot be read here; empty if they can."""
        given = os.environ.get(self.variable)
        wanted = f"needs {self.what}: ${self.variable}/{{{','.join(self.parts)}}}/<class>/<image>"
        if not given:
            return f"{wanted}; ${self.variable} is not set"
        absent = [part for part in self.parts if not (Path(given) / part).is_dir()]
        return f"{wanted}; {given} has no {' and no '.join(absent)}" if absent else ""
