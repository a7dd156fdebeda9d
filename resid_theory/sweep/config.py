"""Frozen settings: typed fields that refuse what does not fit, and a key that is their hash."""

import difflib
import json
from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import Any, Self, get_args, get_type_hints

from resid_theory.runtime.store import digest

__all__ = ["SCHEMA", "Config", "key_of"]

SCHEMA = 1
"""Raised when a task computes something else from equal settings: its cells are then new ones."""
_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    NoneType: "none",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What one cell of a sweep depends on.

    Raises:
        ValueError: If a value is not of its field's type; names field, given and needed.
    """

    def __post_init__(self) -> None:
        for name, kinds in _kinds(type(self)).items():
            object.__setattr__(self, name, _typed(name, getattr(self, name), kinds))

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Settings from values by name.

        Args:
            values: As a TOML file gives them; fields that are left out have their defaults.

        Returns:
            The settings.

        Raises:
            ValueError: If a name is no field (names the nearest), one without a default is missing,
                or a value is of another type.
        """
        known = [field.name for field in fields(cls)]
        for name, value in values.items():
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise ValueError(
                    f"{name}: unknown key (given {value!r}); {hint}needs one of {', '.join(known)}"
                )
        for field in fields(cls):
            if field.default is MISSING and field.name not in values:
                raise ValueError(f"{field.name}: is missing, {cls.__name__} needs it")
        return cls(**values)

    def check(self) -> None:
        """Refuse what cannot be run, before anything runs.

        Raises:
            ValueError: Names the field, what was given and what is needed.
        """

    def content(self) -> dict[str, Any]:
        """All fields by name, JSON-ready.

        Returns:
            What the key is the hash of, but for schema and task.
        """
        return {field.name: getattr(self, field.name) for field in fields(self)}


def key_of(task: str, settings: Config) -> tuple[str, dict[str, Any]]:
    """The name of a cell: the hash of all that its result depends on.

    Args:
        task: Name of the task.
        settings: Of the cell.

    Returns:
        32 hexadecimal digits, and the canonical configuration.
    """
    config = {"task": task, **settings.content()}
    canonical = json.dumps({"schema": SCHEMA, **config}, sort_keys=True, allow_nan=False)
    return digest(canonical.encode())[:32], config


def _kinds(cls: type) -> dict[str, tuple[type, ...]]:
    hints = get_type_hints(cls)
    return {f.name: get_args(hints[f.name]) or (hints[f.name],) for f in fields(cls)}


def _typed(name: str, value: Any, kinds: tuple[type, ...]) -> Any:
    if type(value) in kinds:
        return value
    # 1 and 1.0 are one setting, so they have one key.
    if type(value) is int and float in kinds:
        return float(value)
    needs = " or ".join(_WORDS[kind] for kind in kinds if kind is not NoneType)
    raise ValueError(f"{name}: got {value!r}, needs {needs}")
