"""Output of the verbs: tables, strict JSON and figures; nothing heavy is imported at the top."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Json", "Out", "bar", "emit", "number", "print_json", "say", "shows_progress", "strict",
    "whole_numbers", "write",
]  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the numbers (JSON) and the figure.")]


def say(what: Any, style: str | None = None) -> None:
    """Print text or a table for people."""
    from rich.console import Console

    # A file has no width; 100 columns keep a table's row on one line.
    width = None if sys.stdout.isatty() else 100
    Console(highlight=False, markup=False, width=width).print(what, style=style)


def emit(content: Any, words: str, as_json: bool) -> None:
    """Print the numbers as JSON, or the words as they are: rich would wrap wide tables."""
    print_json(content) if as_json else print(words)


def print_json(content: Any) -> None:
    """Print an object as strict JSON."""
    print(json.dumps(strict(content), indent=2, ensure_ascii=False, allow_nan=False))


def strict(content: Any) -> Any:
    """The object with inf and nan, which JSON lacks, as strings that ``float`` reads back."""
    if isinstance(content, Mapping):
        return {key: strict(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [strict(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return str(content)
    return content


def number(value: float | None) -> str:
    """Text of a number: four digits, integers in full; empty for None."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def whole_numbers(argument: str, text: str, minimum: int) -> list[int]:
    """Integers from a text such as ``2,4,8``, each at least ``minimum``."""
    from resid_theory._check import check_int

    try:
        found = [int(part) for part in text.rstrip(",").split(",")]
    except ValueError:
        raise ValueError(f"{argument}: got {text!r}, needs whole numbers such as 2,4,8") from None
    return [check_int(argument, value, minimum) for value in found]


def shows_progress(as_json: bool) -> bool:
    """True where a progress bar is shown: on a terminal, unless a program reads the output."""
    return sys.stderr.isatty() and not as_json


def bar(items: Sequence[Any], as_json: bool, unit: str) -> Iterable[Any]:
    """The items, with a progress bar where somebody can see it."""
    from tqdm import tqdm

    hidden = len(items) == 1 or not shows_progress(as_json)
    return tqdm(items, unit=unit, leave=False, disable=hidden)


def write(out: Path, name: str, content: Any, drawing: "Figure | None") -> str:
    """Write numbers and figure to ``out/name.json`` and ``.png``; returns the files' names."""
    from resid_theory import plots
    from resid_theory.runtime import store

    paths = [out / f"{name}.json"]
    store.write_json(paths[0], strict(content))
    if drawing is not None:
        paths.append(out / f"{name}.png")
        store.write_bytes(paths[1], plots.png(drawing))
    return " and ".join(map(str, paths))
