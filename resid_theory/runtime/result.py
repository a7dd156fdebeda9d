"""Results of public calls: shown in a few lines, put into a table, written to JSON and to files."""

import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor

from resid_theory.runtime import store
from resid_theory.runtime.storable import Storable, decoded, encoded, inline, read_inline

if TYPE_CHECKING:
    from pandas import DataFrame

FORMAT = 1
"""Version of the form of files and JSON; raised when earlier versions would misread new ones."""
_ROWS = 10  # of a table in ``repr`` and in notebooks; ``print`` shows ten times as many
_REMARK = 300  # characters

Columns = Mapping[str, Sequence[Any] | Tensor]


class Result(Storable):
    """Result of a public call, a frozen dataclass.

    A subclass gives its headline, and its columns where one row of its numbers is not the table
    that is wanted. Saved are its fields; what they may hold says ``resid_theory.runtime.storable``.

    Attributes:
        headline: The title, as a format string of the result, ``{0.samples} samples``.
        tabulated: Columns of the table by name: an attribute of the result or a function of it.
    """

    headline: ClassVar[str] = ""
    tabulated: ClassVar[Mapping[str, str | Callable[[Any], Any]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # In the class itself, or ``dataclass`` would write one that shows all tensors.
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    @property
    def title(self) -> str:
        """The result in one line."""
        return self.headline.format(self) or type(self).__name__

    def table(self) -> Columns:
        """Columns of the table: the tabulated ones, or a row of the fields that are no tensors."""
        if self.tabulated:
            of = {name: attrgetter(part) if isinstance(part, str) else part
                  for name, part in self.tabulated.items()}  # fmt: skip
            return {name: part(self) for name, part in of.items()}
        assert is_dataclass(self)
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = (int, float, str, type(None))
        return {name: [value] for name, value in content.items() if isinstance(value, plain)}

    def shown(self) -> Columns:
        """The columns as they are shown: an interval or an error stands beside its number."""
        columns = dict(self.table())
        for name in list(columns):
            for ends, form in ((("low", "high"), "{} [{}, {}]"), (("error",), "{} ± {}")):
                if all(f"{name}_{end}" in columns for end in ends):
                    parts = [columns[name], *(columns.pop(f"{name}_{end}") for end in ends)]
                    rows = zip(*map(_listed, parts), strict=True)
                    columns[name] = [form.format(*map(_cell, row)) for row in rows]
        return columns

    def remarks(self) -> Sequence[str]:
        """Lines below the table: what is missing, by reason, and notes."""
        lines = []
        for kind in ("not_covered", "not_compared", "unmeasured", "left"):
            names: dict[str, list[str]] = {}
            for name, reason in getattr(self, kind, {}).items():
                names.setdefault(reason, []).append(name or "the net itself")
            words = kind.replace("_", " ").capitalize()
            lines += [f"{words}: {', '.join(some)}: {why}." for why, some in names.items()]
        return [*lines, *(f"Note: {note}." for note in getattr(self, "notes", ()))]

    def frame(self) -> "DataFrame":
        """The numbers as a pandas table.

        Returns:
            A new table; ``table`` says what a row is. The index only counts.
        """
        from pandas import DataFrame

        return DataFrame({name: _listed(column) for name, column in self.table().items()})

    def to_json(self) -> str:
        """All fields as strict JSON, in the form that ``resid_theory.runtime.storable`` states.

        Returns:
            The text, which :meth:`from_json` reads without loss.

        Raises:
            ValueError: If a field holds what cannot be saved, such as a function.
        """
        content = {"format": FORMAT, "result": encoded(self, type(self).__name__, inline)}
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The result that :meth:`to_json` wrote.

        Args:
            text: The JSON.

        Returns:
            A result with equal fields, but for those in ``unsaved``; tensors are on the CPU.

        Raises:
            ValueError: If it is not the JSON of such a result, or in a later format.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ValueError(f"text: not valid JSON ({error})") from error
        found = _read("text", content, read_inline)
        if not isinstance(found, cls):
            raise ValueError(f"text: holds a {type(found).__name__}, needs a {cls.__name__}")
        return found

    def save(self, path: str | Path) -> Path:
        """Write all fields so that :func:`load_result` gives them back.

        Args:
            path: The manifest, ``<name>.json``, which replaces an earlier one; the tensors go
                beside it.

        Returns:
            The file of the tensors.

        Raises:
            ValueError: If a field holds what cannot be saved, such as a function.
            OSError: If it cannot be written; an earlier file is then intact.
        """
        tensors: dict[str, Tensor] = {}

        def beside(tensor: Tensor) -> dict[str, str]:
            tensors[str(len(tensors))] = tensor
            return {"tensor": str(len(tensors) - 1)}

        content = {"format": FORMAT, "result": encoded(self, type(self).__name__, beside)}
        return store.write_checkpoint(path, tensors, {"kind": "result", **content})

    def __str__(self) -> str:
        """Title, table and remarks."""
        return self._text(10 * _ROWS)

    def __repr__(self) -> str:
        """The same with few rows."""
        return self._text(_ROWS)

    def _text(self, limit: int) -> str:
        rows = list(self._rows(limit))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([self.title, *lines, *self._remarks()])

    def _repr_html_(self) -> str:
        lines = [
            "".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self._rows(_ROWS)
        ]
        table = "".join(f"<tr>{line}</tr>" for line in lines)
        remarks = "".join(f"<p>{html.escape(remark)}</p>" for remark in self._remarks())
        return f"<p><b>{html.escape(self.title)}</b></p><table>{table}</table>{remarks}"

    def _remarks(self) -> list[str]:
        return [shorten(remark, _REMARK, placeholder=" …") for remark in self.remarks()]

    def _rows(self, limit: int) -> Iterator[list[str]]:
        """Header and rows in words: a single row stands upright, of many the middle is left out."""
        columns = {name.replace("_", " "): column for name, column in self.shown().items()}
        count = len(next(iter(columns.values()), ()))
        if count < 2:
            yield from ([name, _cell(column[0])] for name, column in columns.items() if count)
            return
        yield list(columns)
        half = limit // 2 if count > limit + 1 else count
        for row in (*range(half), *range(max(half, count - half), count)):
            if row == count - half > half:
                yield [f"… {count - 2 * half} more", *[""] * (len(columns) - 1)]
            yield [_cell(column[row]) for column in columns.values()]


def load_result(path: str | Path) -> Result:
    """Load a result that its method ``save`` wrote.

    Args:
        path: The manifest, with or without ``.json``.

    Returns:
        A result of the same class with equal fields, bit by bit, but for those in its ``unsaved``;
        tensors are on the CPU.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If a file is damaged, or holds no result, one of an unknown kind or one in a
            later format.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = rt.Spectrum.of([-2.0, 1.0, 4.0]).save(f"{folder}/spectrum.json")
        ...     rt.load_result(f"{folder}/spectrum").condition_number
        4.0
    """
    path = store.path_of(path, "path")
    path = path if path.suffix == ".json" else path.with_name(f"{path.name}.json")
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {path}")
    tensors, content = store.read_checkpoint(path)
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind != "result":
        hint = "; load_checkpoint reads it" if kind == "net" else ""
        raise ValueError(f"{path}: holds no result but {kind or 'something else'}{hint}")
    return _read(str(path), content, lambda node: tensors[node["tensor"]])


def _read(where: str, content: Any, tensor: Any) -> Result:
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(version, int) or "result" not in content:
        raise ValueError(f"{where}: holds no result of resid_theory")
    if version > FORMAT:
        raise ValueError(
            f"{where}: is in format {version}, this version of resid_theory reads formats up to "
            f"{FORMAT}; read it with a later version"
        )
    try:
        found = decoded(content["result"], where, tensor)
    except (AttributeError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as e:
        if str(e).startswith(f"{where}: "):
            raise
        raise ValueError(f"{where}: holds no result that can be read ({e})") from e
    if not isinstance(found, Result):
        raise ValueError(f"{where}: holds no result of resid_theory")
    return found


def _listed(column: Sequence[Any] | Tensor) -> list[Any]:
    return column.tolist() if isinstance(column, Tensor) else list(column)


def _cell(value: Any) -> str:
    """A number in four digits, other values in words."""
    value = value.item() if isinstance(value, Tensor) else value
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
