"""Data that a claim needs and that nobody can ship or download for its user."""

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Need"]


@dataclass(frozen=True, kw_only=True)
class Need:
    """Images in one folder a class, under a folder that an environment variable names.

    Attributes:
        what: The data, in words.
        variable: The environment variable.
        parts: Subfolders that must be there, each with one folder a class.
    """

    what: str
    variable: str
    parts: tuple[str, ...]

    def folder(self) -> Path:
        """Where the data lie; a FileNotFoundError says what is missing."""
        if self.missing():
            raise FileNotFoundError(self.missing())
        return Path(os.environ[self.variable])

    def missing(self) -> str:
        """Why the data cannot be read here; empty if they can."""
        given = os.environ.get(self.variable)
        wanted = f"needs {self.what}: ${self.variable}/{{{','.join(self.parts)}}}/<class>/<image>"
        if not given:
            return f"{wanted}; ${self.variable} is not set"
        absent = [part for part in self.parts if not (Path(given) / part).is_dir()]
        return f"{wanted}; {given} has no {' and no '.join(absent)}" if absent else ""
