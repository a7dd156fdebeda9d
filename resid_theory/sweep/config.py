"""Frozen settings with typed fields, and the key of a cell, which is their hash."""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType
from typing import Any, Self, TypeVar, dataclass_transform, get_args, get_type_hints

from resid_theory._check import check_choice
from resid_theory.runtime.store import digest

T = TypeVar("T", bound=type)

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
    """Settings on which the result of one cell of a sweep depends, each of its field's type."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            kinds = get_args(hints[field.name]) or (hints[field.name],)
            value = _typed(field.name, getattr(self, field.name), kinds)
            object.__setattr__(self, field.name, value)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Settings from the values of a TOML file; omitted fields have their defaults."""
        known = [field.name for field in fields(cls)]
        for name in values:
            check_choice("key", name, known)
        for field in fields(cls):
            if field.default is MISSING and field.name not in values:
                raise ValueError(f"{field.name}: is missing, {cls.__name__} needs it")
        return cls(**values)

    def check(self) -> None:
        """Raise a ValueError before anything runs if the settings do not fit one another."""

    def content(self) -> dict[str, Any]:
        """Fields by name, JSON-ready; without those that are None, so that new ones keep a key."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def key_of(task: str, settings: Config) -> tuple[str, dict[str, Any]]:
    """Name of a cell, a hash of all that its result depends on, and its configuration."""
    config = {"task": task, **settings.content()}
    return content_key(config), config


def content_key(config: Mapping[str, Any]) -> str:
    """Name of the cell of a configuration."""
    canonical = json.dumps({"schema": SCHEMA, **config}, sort_keys=True, allow_nan=False)
    return digest(canonical.encode())[:32]


def arguments_of(source: Callable[..., Any]) -> dict[str, tuple[type, Any]]:
    """Type and default of each argument or field that is an int, float, bool or str, by name."""
    if is_dataclass(source):
        defaults = {field.name: field.default for field in fields(source)}
    else:
        defaults = {n: p.default for n, p in inspect.signature(source).parameters.items()}
    hints, found = get_type_hints(source), {}
    for name, default in defaults.items():
        hint = hints.get(name)
        kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
        if len(kinds) == 1 and kinds[0] in (int, float, bool, str):
            unknown = default in (MISSING, inspect.Parameter.empty)
            found[name] = kinds[0], None if unknown else default
    return found


@dataclass_transform(frozen_default=True, kw_only_default=True)
def with_arguments_of(*sources: Callable[..., Any], leave: Iterable[str] = ()) -> Callable[[T], T]:
    """Make a class a frozen dataclass with a further field, None, for each argument of sources."""

    def extended(cls: Any) -> Any:
        for source in sources:
            for name, (kind, _) in arguments_of(source).items():
                if name not in leave and not hasattr(cls, name):
                    cls.__annotations__[name] = kind | None
                    setattr(cls, name, None)
        return dataclass(frozen=True, kw_only=True)(cls)

    return extended


def _typed(name: str, value: Any, kinds: tuple[type, ...]) -> Any:
    if type(value) in kinds:
        return value
    # 1 and 1.0 are one setting, so they have one key.
    if type(value) is int and float in kinds:
        return float(value)
    needs = " or ".join(_WORDS[kind] for kind in kinds if kind is not NoneType)
    raise ValueError(f"{name}: got {value!r}, needs {needs}")
