"""What the verbs print and write: tables, strict JSON, figures; nothing heavy is imported here."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Json", "folder", "number", "print_json", "say", "shows_progress", "strict", "write"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def say(what: Any, style: str | None = None) -> None:
    """Print text or a table for people.

    Args:
        what: Anything that rich prints.
        style: Of rich, e.g. ``bold``.
    """
    from rich.console import Console

    # A file has no width; 100 columns keep a table's row on one line.
    width = None if sys.stdout.isatty() else 100
    Console(highlight=False, markup=False, width=width).print(what, style=style)


def shows_progress(as_json: bool) -> bool:
    """Whether somebody watches who wants a progress bar.

    Args:
        as_json: Whether the caller is a program.

    Returns:
        True on a terminal.
    """
    return sys.stderr.isatty() and not as_json


def number(value: float | None) -> str:
    """A number in four digits, whole numbers in all of theirs.

    Args:
        value: The number, or None.

    Returns:
        Its text; empty for None.
    """
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def print_json(content: Any) -> None:
    """Print an object as strict JSON.

    Args:
        content: As :func:`strict` takes it.
    """
    print(json.dumps(strict(content), indent=2, ensure_ascii=False, allow_nan=False))


def strict(content: Any) -> Any:
    """JSON has no inf and nan: as strings, which ``float`` reads back.

    Args:
        content: Dicts, lists, tuples, strings, numbers, booleans and None.

    Returns:
        The same with finite numbers only.
    """
    if isinstance(content, Mapping):
        return {key: strict(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [strict(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return str(content)
    return content


def folder(path: Path) -> None:
    """Make the folder before the work: a mistyped one should not cost the result.

    Args:
        path: The folder.
    """
    path.mkdir(parents=True, exist_ok=True)


def write(out: Path, name: str, content: Any, drawing: "Figure | None") -> str:
    """Write numbers and figure.

    Args:
        out: The folder.
        name: Of both files, without ending.
        content: The numbers.
        drawing: The figure, if there is one.

    Returns:
        The files' names for people.
    """
    from resid_theory import plots
    from resid_theory.runtime import store

    paths = [out / f"{name}.json"]
    store.write_json(paths[0], strict(content))
    if drawing is not None:
        paths.append(out / f"{name}.png")
        store.write_bytes(paths[1], plots.png(drawing))
    return " and ".join(map(str, paths))
