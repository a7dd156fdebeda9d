"""Digest of the code that a callable runs through, from the sources alone: nothing is imported.

A definition is the statements at the top level of a module that give a name its value. A callable
runs through its own definition, those of the names in it, and so on, inside the source root. Names
are followed through imports, re-exports and the stubs of packages that import lazily; methods are
counted with their class. Docstrings, comments, layout, annotations of functions, names of files and
the order of definitions do not matter.

A module used as a value (``getattr(networks, name)``) counts with all its names. Code that is
chosen by a string alone (``importlib.import_module``) is not seen.
"""

import ast
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from operator import itemgetter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

_EFFECTS, _ALL = "<effects>", "<all>"  # what a module does when imported; every name of a module
_Functions = (ast.FunctionDef, ast.AsyncFunctionDef)
_Name = tuple[str, str]  # of a module, and of a definition in it
_Import = tuple[str, str | None]  # a module, and a name in it
Reader = Callable[[str], str | None]  # from a path below the root to the text of that file
# Modules that all papers share, but for the tests of criteria.
_SHARED = re.compile(r"resid_theory(\..+)?|experiments(\.(?!(criteria|evidence)$)\w+)?")


class _Statement:
    """A statement, looked into when it is first needed."""

    def __init__(self, tree: ast.stmt, text: str, module: str, package: bool) -> None:
        self._tree, self._text, self._module, self._package = tree, text, module, package

    @cached_property
    def contents(self) -> tuple[str, set[tuple[str, ...]], dict[str, _Import]]:
        """Its code as JSON, the names that it uses, and those that it imports."""
        read = "import" in self._text  # few have any
        imports = _imports(self._tree, self._module, self._package) if read else {}
        chains: set[tuple[str, ...]] = set()
        text = _canonical(self._tree, chains)
        del self._tree  # of all commits they are millions of objects
        return text, chains, imports


@dataclass
class _Definition:
    """Statements that give a name its value, and the names that they use."""

    statements: list[_Statement] = field(default_factory=list)

    @cached_property
    def digest(self) -> str:
        return _sha256(f"[{', '.join(each.contents[0] for each in self.statements)}]")

    @cached_property
    def chains(self) -> set[tuple[str, ...]]:
        return {chain for each in self.statements for chain in each.contents[1]}

    @cached_property
    def imports(self) -> dict[str, _Import]:
        return {n: origin for each in self.statements for n, origin in each.contents[2].items()}


_NOTHING = _Definition()
_Row = tuple[_Statement | dict[str, _Import], set[str], set[str]]


@dataclass(frozen=True)
class _Folder:
    """Reader of the files under a folder."""

    root: Path

    def __call__(self, path: str) -> str | None:
        file = self.root / path
        return file.read_text(encoding="utf-8") if file.is_file() else None


class Sources:
    """The Python sources under a root; each file is read once, when it is first needed.

    Args:
        root: A folder, or a function that gives the text of a file below the root by its path,
            None if there is no such file.
    """

    def __init__(self, root: str | Path | Reader = ROOT) -> None:
        self.root = root if callable(root) else _Folder(Path(root))
        self._modules: dict[str, dict[str, _Definition] | None] = {}
        self._imports: dict[str, dict[str, _Import]] = {}
        self._digests: dict[tuple[_Name, bool], str] = {}
        self._chains: dict[_Name, dict[tuple[str, ...], list[_Name]]] = {}
        self._rows: dict[tuple[_Name, bool], tuple[list[Any], str, set[_Name]]] = {}

    def digest(self, call: Callable[..., Any] | str, *, own: bool = False) -> str:
        """Digest of the code that a function, class, partial or ``"module:name"`` runs through.

        With ``own``, the library and the modules that all papers share count by their names only,
        but for the tests of criteria.
        Raises a ValueError for a callable that no module under the root defines by name.
        """
        if isinstance(call, partial):
            inner = partial(self.digest, own=own)
            given = json.dumps([call.args, call.keywords], sort_keys=True, default=inner)
            return _hash([inner(call.func), given])
        if not isinstance(call, str):
            call = f"{getattr(call, '__module__', '')}:{getattr(call, '__qualname__', '')}"
        module, _, name = call.partition(":")
        name = name.partition(".")[0]  # a method counts with its class, a closure with its maker
        if name not in (self._read(module) or {}):
            raise ValueError(
                f"call: got {call!r}, needs a name that a module in {self.root!r} defines"
            )
        key = ((module, name), own)
        if key not in self._digests:
            self._digests[key] = self._closure(*key)
        return self._digests[key]

    def _closure(self, start: _Name, own: bool) -> str:
        reached, todo = {start}, [start]
        while todo:
            found = self._row(todo.pop(), own)[2] - reached
            reached |= found
            todo += found
        rows = sorted((self._row(here, own) for here in reached), key=itemgetter(0))
        return _sha256(f"[{', '.join(text for _, text, _ in rows)}]")

    def _row(self, here: _Name, own: bool) -> tuple[list[Any], str, set[_Name]]:
        """A definition as a list and as JSON, and the definitions that it runs through."""
        if (here, own) not in self._rows:
            if here not in self._chains:
                self._chains[here] = dict(self._links(here))
            links = self._chains[here]
            if own:
                links = {chain: _unshared(names) for chain, names in links.items()}
            # Beside each name stands the text it means, so that exchanging two constants is a
            # change.
            meant = (
                [*chain, *sorted(self._definition(n).digest if n[1] else n[0] for n in names)]
                for chain, names in links.items()
            )
            row = [self._definition(here).digest, *sorted(meant)]
            through = {name for names in links.values() for name in names if name[1]}
            self._rows[here, own] = row, json.dumps(row), through
        return self._rows[here, own]

    def _definition(self, name: _Name) -> _Definition:
        return (self._read(name[0]) or {}).get(name[1], _NOTHING)

    def _links(self, here: _Name) -> Iterator[tuple[tuple[str, ...], list[_Name]]]:
        """The definitions behind each chain of names in a definition; (path, "") outside."""
        module, name = here
        if name == _ALL:
            for each in {*(self._read(module) or {}), *self._imports[module]} - {_EFFECTS}:
                yield (each,), self._follow(module, (each,))
            return
        if name != _EFFECTS:
            yield (_EFFECTS,), [(module, _EFFECTS)]
        definition = self._definition(here)
        known = {*(self._read(module) or {}), *self._imports[module]}
        for chain in definition.chains:
            if chain[0] in definition.imports:  # an import inside a function
                yield chain, self._imported(definition.imports[chain[0]], chain[1:])
            elif chain[0] in known:
                yield chain, self._follow(module, chain)

    def _imported(self, given: _Import, chain: Sequence[str]) -> list[_Name]:
        """Definitions behind an imported name and its attributes."""
        module, name = given
        chain = [*([] if name is None else [name]), *chain]
        if self._read(module) is None:
            return [(".".join([module, *chain]), "")]
        return self._follow(module, chain)

    def _follow(self, module: str, chain: Sequence[str]) -> list[_Name]:
        """Definitions behind names looked up in a module; attributes of a value end the search."""
        if not chain:
            return [(module, _ALL)]
        first, *rest = chain
        if first in (self._read(module) or {}):
            return [(module, first)]
        given = self._imports[module].get(first)
        if given is not None and given != (module, first):
            return self._imported(given, rest)
        if self._read(f"{module}.{first}") is not None:
            return self._follow(f"{module}.{first}", rest)
        return [] if first.startswith("__") else [(module, _ALL)]

    def _read(self, module: str) -> dict[str, _Definition] | None:
        """Definitions of a module by name; None if it is not under the root."""
        if module not in self._modules:
            self._modules[module], self._imports[module] = None, {}
            path = module.replace(".", "/")
            init = self.root(f"{path}/__init__.py") if module else None
            text = init if init is not None or not module else self.root(f"{path}.py")
            if text is not None:
                stub = self.root(f"{path}/__init__.pyi") if init is not None else None
                found, imports = _parsed(text, module, init is not None)
                named = _parsed(stub, module, True)[1] if stub is not None else {}
                self._modules[module], self._imports[module] = found, {**named, **imports}
        return self._modules[module]


@cache
def _parsed(
    text: str, module: str, package: bool
) -> tuple[dict[str, _Definition], dict[str, _Import]]:
    """Definitions and imports at the top level of a module; shared by all that read that text."""
    found, imports = {_EFFECTS: _Definition()}, dict[str, _Import]()
    try:  # parts that are Python each are Python together; most are the same in other commits
        rows = [row for part in text.split("\n\n\n") for row in _rows(part, module, package)]
    except SyntaxError:
        rows = _rows(text, module, package)
    for seen, bound, changed in rows:
        if isinstance(seen, dict):
            imports |= seen
        else:
            for name in bound | (changed & found.keys()) or {_EFFECTS}:
                found.setdefault(name, _Definition()).statements.append(seen)
    return found, imports


@cache
def _rows(text: str, module: str, package: bool) -> list[_Row]:
    """Statements, or what they import, with the names that they make and those they may change."""
    lines, rows = text.split("\n"), list[_Row]()
    for tree in ast.parse(text).body:
        if isinstance(tree, (ast.Import, ast.ImportFrom)):
            rows.append((_imports(tree, module, package), set(), set()))
        elif not _is_idle(tree):
            own = "\n".join(lines[tree.lineno - 1 : tree.end_lineno])
            rows.append((_Statement(tree, own, module, package), *_bound(tree)))
    return rows


def _unshared(names: list[_Name]) -> list[_Name]:
    return [name for name in names if not (name[1] and _SHARED.fullmatch(name[0]))]


_TODAY = Sources()


def code_digest(call: Callable[..., Any] | str, *, own: bool = False) -> str | None:
    """``Sources.digest`` in this repository; None for a callable that has no name there."""
    try:
        return _TODAY.digest(call, own=own)
    except ValueError:
        return None


# Reading statements ------------------------------------------------------------------------------


def _is_idle(statement: ast.stmt) -> bool:
    """True for docstrings and for blocks that only type checkers or the command line run."""
    if isinstance(statement, ast.Expr):
        return _is_constant(statement)
    words = ast.unparse(statement.test) if isinstance(statement, ast.If) else ""
    return words.endswith("TYPE_CHECKING") or words == "__name__ == '__main__'"


def _bound(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """Names that a statement makes, and those whose value it changes by a method or an index."""
    if isinstance(statement, (*_Functions, ast.ClassDef)):
        return {statement.name}, set()
    names = {
        node.id if isinstance(node, ast.Name) else node.name
        for node in ast.walk(statement)
        if (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
        or isinstance(node, (*_Functions, ast.ClassDef))
    }
    changed = statement.value if isinstance(statement, ast.Expr) else statement
    targets = getattr(changed, "targets", [getattr(changed, "func", None)])
    bases: set[str] = set()
    for target in targets:
        while isinstance(target, (ast.Attribute, ast.Subscript)):
            target = target.value
        if isinstance(target, ast.Name):
            bases.add(target.id)
    return names, bases


def _imports(tree: ast.AST, module: str, package: bool) -> dict[str, _Import]:
    """Origin of every name that is imported, at any depth."""
    found: dict[str, _Import] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                found[alias.asname or first] = (alias.name if alias.asname else first, None)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".") if package else module.split(".")[:-1]
            base = parents[: len(parents) - node.level + 1] if node.level else []
            for alias in node.names:
                if alias.name == "*":
                    raise ValueError(f"{module}: has import *, needs the names one by one")
                origin = ".".join([*base, *filter(None, [node.module])])
                found[alias.asname or alias.name] = (origin, alias.name)
    return found


_quoted = json.JSONEncoder().encode
_Imports = (ast.Import, ast.ImportFrom)
_BLOCKS = (*_Functions, ast.ClassDef, ast.If, ast.With, ast.For, ast.While, ast.Try)
_IDLE = {"ctx", "kind", "type_comment", "returns"}  # fields


def _canonical(
    node: ast.AST, chains: set[tuple[str, ...]], inside: bool = False, names: tuple[str, ...] = ()
) -> str:
    """A tree as nested lists in JSON, equal in all versions of Python.

    What does not compute is left out: docstrings, imports, annotations inside functions. ``chains``
    gets every name that is read, with the attributes that follow it, those of ``node`` being
    ``names``.
    """
    after: tuple[str, ...] = ()
    if isinstance(node, ast.Attribute):
        after = (node.attr, *names)
    elif isinstance(node, ast.Name) and (names or isinstance(node.ctx, ast.Load)):
        chains.add((node.id, *names))
    inside = inside or isinstance(node, _Functions)
    text = [f'"{type(node).__name__}"']
    for name in node._fields:
        if name in _IDLE or (inside and name == "annotation"):
            continue
        value = getattr(node, name, None)
        if value is None:
            continue
        if isinstance(value, ast.AST):
            found = _canonical(value, chains, inside, after)
        elif isinstance(value, list):
            rows = [
                _canonical(each, chains, inside)
                if isinstance(each, ast.AST)
                else _quoted(repr(each))
                for each in value
                if not (isinstance(each, _Imports) or _is_constant(each))
            ]
            if not rows and name == "body" and isinstance(node, _BLOCKS):
                rows = ['["Pass"]']
            if not rows:
                continue
            found = f"[{', '.join(rows)}]"
        else:
            found = _quoted(repr(value))
        text.append(f'["{name}", {found}]')
    return f"[{', '.join(text)}]"


def _is_constant(node: Any) -> bool:
    """True for a statement that is a constant, as docstrings are."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _hash(content: Any) -> str:
    return _sha256(json.dumps(content))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
