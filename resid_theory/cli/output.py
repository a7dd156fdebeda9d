"""Output of the verbs: tables, strict JSON and files; nothing heavy is imported at the top."""

import codecs
import io
import json
import math
import os
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the numbers (JSON) and the figure.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace files of this name that are there.")
]

_SPELLED = {
    "±": "+-", "×": "x", "·": "*", "−": "-", "–": "-", "…": "...", "≤": "<=", "≥": ">=", "‖": "||",
    "→": "->", "↔": "<->", "√": "sqrt", "∞": "inf", "²": "^2", "³": "^3", "⁻": "^-", "’": "'",
    "≈": "~", "∂": "d", "Σ": "sum",
}  # fmt: skip


# -- text ------------------------------------------------------------------------------------------


def spell_out(*streams: Any) -> None:
    """Let streams that cannot encode a character print words for it, as in ``lambda``."""
    codecs.register_error("spelled", _spelled)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and "utf" not in stream.encoding.lower():
            stream.reconfigure(errors="spelled")


def run_until_unread(call: Callable[[], int]) -> int:
    """The exit code of a call, or 0 if nobody reads on, as behind ``| head``."""
    try:
        code = call()
        sys.stdout.flush()  # not at exit, where its error cannot be caught
    except BrokenPipeError:  # flushing at exit would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    unknown = error.object[error.start : error.end]
    return "".join(_SPELLED.get(each) or _name(each) for each in unknown), error.end


def _name(character: str) -> str:
    """A Greek letter's name, a letter without its accent, or a question mark."""
    name = unicodedata.name(character, "")
    if name.startswith("GREEK "):
        return name.rpartition(" ")[2].lower().replace("lamda", "lambda")
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or "?"


def say(what: Any) -> None:
    """Print text for people, in lines of the terminal's width."""
    from rich.console import Console

    # A file has no width.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100
    Console(highlight=False, markup=False, width=width).print(what)


def say_table(align: str, rows: Iterable[Sequence[str]]) -> None:
    """Print rows, each column to the left (<) or right (>); a narrow terminal cuts no word.

    Words at the end of a row for which it has no room stand below the row.
    """
    # Spelled before they are measured: "lambda" takes more room than its letter.
    encoding = sys.stdout.encoding or "utf-8"
    cells = [[cell.encode(encoding, "spelled").decode(encoding) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    seen = sys.stdout.isatty() or "COLUMNS" in os.environ  # a file has no width
    room = shutil.get_terminal_size().columns if seen else math.inf
    for row in cells:
        sides = zip(row, align, widths, strict=True)
        *columns, last = (f"{cell:{side}{width}}" for cell, side, width in sides)
        line = "  ".join([*columns, last]).rstrip()
        if align[-1] == "<" and len(line) > room:
            line = f"{'  '.join(columns).rstrip()}\n    {row[-1]}"
        print(line)


def emit(content: Any, words: str, as_json: bool) -> None:
    """Print the numbers as JSON, or the words as they are: rich would wrap wide tables."""
    finish(content, as_json, lambda: print(words))


def finish(
    content: Any, as_json: bool, show: Callable[[], object], written: str | None = None
) -> None:
    """Print the numbers as JSON, or show them to people and say what was written."""
    if as_json:
        print_json(content)
        return
    show()
    if written:
        say(written)


def print_json(content: Any) -> None:
    """Print an object as strict JSON."""
    print(json.dumps(strict(content), indent=2))


def strict(content: Any) -> Any:
    """The object with paths, and with inf and nan, which JSON lacks, as strings."""
    if isinstance(content, Mapping):
        return {key: strict(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [strict(value) for value in content]
    if isinstance(content, Path) or isinstance(content, float) and not math.isfinite(content):
        return str(content)
    return content


def number(value: float | None) -> str:
    """Text of a number: four digits, integers in full; empty for None."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def whole_numbers(argument: str, text: str, minimum: int) -> list[int]:
    """Different integers from a text such as ``2,4,8``, each at least ``minimum``."""
    from resid_theory._check import check_int

    try:
        found = [int(part) for part in text.rstrip(",").split(",")]
    except ValueError:
        raise ValueError(f"{argument}: got {text!r}, needs whole numbers such as 2,4,8") from None
    if len(set(found)) < len(found):
        raise ValueError(f"{argument}: got {text!r}, needs every number once")
    return [check_int(argument, value, minimum) for value in found]


def shows_progress(as_json: bool) -> bool:
    """True where a progress bar is shown: on a terminal, unless a program reads the output."""
    return sys.stderr.isatty() and not as_json


def bar(items: Sequence[Any], as_json: bool, unit: str) -> Iterable[Any]:
    """The items, with a progress bar where somebody can see it."""
    from tqdm import tqdm

    hidden = len(items) == 1 or not shows_progress(as_json)
    return tqdm(items, unit=unit, leave=False, disable=hidden)


# -- files -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Files:
    """Files for numbers and figure: ``out/name.json``, ``out/name.png``, and ``plot``."""

    name: str
    out: Path | None = None
    plot: Path | None = None

    @classmethod
    def of(cls, name: str, out: Path | None, plot: Path | None, *, overwrite: bool) -> "Files":
        """The files; an error before the work if they cannot be written, or are there already."""
        files = cls(name, out, plot)
        if plot is not None and plot.suffix != ".png":
            raise ValueError(f"--plot: got {str(plot)!r}, needs a name ending in .png")
        if out is not None:
            from resid_theory.runtime import store

            store.make_folder("--out", out)
        if plot is not None:
            check_new("--plot", plot, overwrite=overwrite)
        for path in (*files._numbers(), *files._figures()):
            check_new("--out", path, overwrite=overwrite)
        return files

    def _numbers(self) -> list[Path]:
        return [] if self.out is None else [self.out / f"{self.name}.json"]

    def _figures(self) -> list[Path]:
        beside = None if self.out is None else self.out / f"{self.name}.png"
        return [path for path in (beside, self.plot) if path is not None]

    def save(self, content: Any, draw: "Callable[[], Figure] | None") -> str:
        """Write numbers and figure, where asked for; returns the files' names in a sentence."""
        from resid_theory.runtime import store

        written, figures = self._numbers(), self._figures()
        for path in written:
            store.write_json(path, strict(content))
        if draw is not None and figures:
            from resid_theory import plots

            picture = plots.png(draw())  # once: drawing settles the layout, which moves a little
            for path in figures:
                store.write_bytes(path, picture)
            written += figures
        return f"{' and '.join(map(str, written))} written." if written else ""


def check_new(option: str, path: Path, *, overwrite: bool) -> None:
    """Raise a ValueError if a file cannot be written, or is there and is not to be replaced."""
    if not path.parent.is_dir():
        raise ValueError(f"{option}: got {str(path)!r}, but there is no folder {path.parent}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):  # rights alone do not show it, as in /proc
            there, replaceable = path.exists(), not path.is_dir()
    except OSError as error:
        raise ValueError(f"{option}: {path} cannot be written: {error.strerror}") from error
    if there and not (overwrite and replaceable):
        needed = "--overwrite to replace it, or " * replaceable + "another name"
        raise ValueError(f"{option}: {path}: there already; needs {needed}")
