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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

_EFFECTS, _ALL = "<effects>", "<all>"  # what a module does when imported; every name of a module
_Functions = (ast.FunctionDef, ast.AsyncFunctionDef)
_Name = tuple[str, str]  # of a module, and of a definition in it
_Import = tuple[str, str | None]  # a module, and a name in it


@dataclass
class _Definition:
    """Statements that give a name its value, and the names that they use."""

    code: list[Any] = field(default_factory=list)
    chains: set[tuple[str, ...]] = field(default_factory=set)
    imports: dict[str, _Import] = field(default_factory=dict)

    def add(self, statement: ast.stmt, module: str, package: bool) -> None:
        self.imports |= _imports(statement, module, package)
        plain = _Plain().visit(statement)
        self.code.append(_canonical(plain))
        self.chains |= set(_chains(plain))


class Sources:
    """The Python sources under a root; each file is read once, when it is first needed."""

    def __init__(self, root: str | Path = ROOT) -> None:
        self.root = Path(root)
        self._modules: dict[str, dict[str, _Definition] | None] = {}
        self._imports: dict[str, dict[str, _Import]] = {}
        self._digests: dict[_Name, str] = {}

    def digest(self, call: Callable[..., Any] | str) -> str:
        """Digest of the code that a function, class, partial or ``"module:name"`` runs through.

        Raises a ValueError for a callable that no module under the root defines by name.
        """
        if isinstance(call, partial):
            given = json.dumps([call.args, call.keywords], sort_keys=True, default=self.digest)
            return _hash([self.digest(call.func), given])
        if not isinstance(call, str):
            call = f"{getattr(call, '__module__', '')}:{getattr(call, '__qualname__', '')}"
        module, _, name = call.partition(":")
        name = name.partition(".")[0]  # a method counts with its class, a closure with its maker
        if name not in (self._read(module) or {}):
            raise ValueError(
                f"call: got {call!r}, needs a name that a module in {self.root} defines"
            )
        if (module, name) not in self._digests:
            self._digests[module, name] = self._closure((module, name))
        return self._digests[module, name]

    def _closure(self, start: _Name) -> str:
        texts: dict[_Name, str] = {}
        links: dict[_Name, dict[tuple[str, ...], list[_Name]]] = {}
        todo = [start]
        while todo:
            here = todo.pop()
            if here not in texts:
                texts[here] = _hash(self._definition(here).code)
                links[here] = dict(self._links(here))
                todo += [name for names in links[here].values() for name in names if name[1]]
        # Beside each name stands the text it means, so that exchanging two constants is a change.
        return _hash(
            sorted(
                [
                    text,
                    *sorted(
                        [*chain, *sorted(texts.get(name, name[0]) for name in names)]
                        for chain, names in links[here].items()
                    ),
                ]
                for here, text in texts.items()
            )
        )

    def _definition(self, name: _Name) -> _Definition:
        return (self._read(name[0]) or {}).get(name[1], _Definition())

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
        for chain in definition.chains:
            if chain[0] in definition.imports:  # an import inside a function
                yield chain, self._imported(definition.imports[chain[0]], chain[1:])
            elif chain[0] in (self._read(module) or {}) or chain[0] in self._imports[module]:
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
            path = self.root.joinpath(*module.split("."))
            package = (path / "__init__.py").is_file()
            file = path / "__init__.py" if package else path.with_suffix(".py")
            self._modules[module], self._imports[module] = None, {}
            if module and file.is_file():
                if package and (stub := file.with_suffix(".pyi")).is_file():
                    for statement in ast.parse(stub.read_text(encoding="utf-8")).body:
                        self._imports[module] |= _imports(statement, module, package)
                self._modules[module] = self._parse(file, module, package)
        return self._modules[module]

    def _parse(self, file: Path, module: str, package: bool) -> dict[str, _Definition]:
        found = {_EFFECTS: _Definition()}
        for statement in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                self._imports[module] |= _imports(statement, module, package)
            elif not _is_idle(statement):
                for name in _bound(statement, found) or {_EFFECTS}:
                    found.setdefault(name, _Definition()).add(statement, module, package)
        return found


_TODAY = Sources()


def code_digest(call: Callable[..., Any] | str) -> str | None:
    """``Sources.digest`` in this repository; None for a callable that has no name there."""
    try:
        return _TODAY.digest(call)
    except ValueError:
        return None


# Reading statements ------------------------------------------------------------------------------


def _is_idle(statement: ast.stmt) -> bool:
    """True for docstrings and for blocks that only type checkers or the command line run."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    words = ast.unparse(statement.test) if isinstance(statement, ast.If) else ""
    return words.endswith("TYPE_CHECKING") or words == "__name__ == '__main__'"


def _bound(statement: ast.stmt, found: dict[str, _Definition]) -> set[str]:
    """Names whose value a statement makes or, by a method or an index, changes."""
    if isinstance(statement, (*_Functions, ast.ClassDef)):
        return {statement.name}
    names = {
        node.id if isinstance(node, ast.Name) else node.name
        for node in ast.walk(statement)
        if (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
        or isinstance(node, (*_Functions, ast.ClassDef))
    }
    changed = statement.value if isinstance(statement, ast.Expr) else statement
    targets = getattr(changed, "targets", [getattr(changed, "func", None)])
    for target in targets:
        while isinstance(target, (ast.Attribute, ast.Subscript)):
            target = target.value
        if isinstance(target, ast.Name) and target.id in found:
            names.add(target.id)
    return names


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


def _chains(tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """Every name that is read, with the attributes that follow it."""
    names: list[str] = []
    node: ast.AST = tree
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Load) or names:
            yield (node.id, *names)
        return
    for child in ast.iter_child_nodes(node):
        yield from _chains(child)


class _Plain(ast.NodeTransformer):
    """Removes what does not compute: docstrings, imports, annotations inside functions."""

    def _body(self, node: Any) -> Any:
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node

    def _function(self, node: Any) -> Any:
        every = ast.walk(node)
        for each in [each for each in every if isinstance(each, (ast.arg, ast.AnnAssign))]:
            each.annotation = None  # type: ignore[assignment]
        node.returns = None
        return self._body(node)

    visit_FunctionDef = visit_AsyncFunctionDef = _function
    visit_ClassDef = visit_If = visit_With = visit_For = visit_While = visit_Try = _body

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Import(self, node: ast.AST) -> None:
        return None

    visit_ImportFrom = visit_Import


def _canonical(node: Any) -> Any:
    """A tree as nested lists, equal in all versions of Python."""
    if isinstance(node, list):
        return [_canonical(each) for each in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
    kept = [[n, _canonical(v)] for n, v in fields if n not in ("ctx", "kind", "type_comment")]
    return [type(node).__name__, *kept]


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
