"""Rules that hold for every file: nothing read is run, headlines are plain, names occur once."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections import Counter
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import resid_theory

ROOT = Path(__file__).resolve().parents[1]


def sources(*folders):
    """Syntax trees by path relative to the checkout."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {str(p.relative_to(ROOT)): ast.parse(p.read_text(encoding="utf-8")) for p in paths}


@pytest.fixture(scope="module")
def library():
    """The trees of the library: many objects, gone when this file is done."""
    return sources("resid_theory")


# Dangerous calls ----------------------------------------------------------------------------------


def dangers(tree):
    """Calls that run what they are given, in words."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, line = ast.unparse(node.func), node.lineno
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        last = name.rpartition(".")[2]
        if name in ("eval", "exec", "compile", "os.system", "os.popen"):
            yield f"{line}: {name}"
        if last in ("load", "loads", "Unpickler") and "pickle" in name.partition(".")[0].lower():
            yield f"{line}: {name}"
        if name == "torch.load" and words.get("weights_only") != "True":
            yield f"{line}: torch.load without weights_only=True"
        if name == "np.load" and words.get("allow_pickle") != "False":
            yield f"{line}: np.load without allow_pickle=False"
        if last in ("extractall", "extract") and words.get("filter") != "'data'":
            yield f"{line}: {last} without filter='data'"
        if words.get("shell") == "True":
            yield f"{line}: shell=True"


def test_no_source_runs_what_it_reads(library):
    trees = {**library, **sources("experiments", "benchmarks", "docs")}
    for name in ("bootstrap.py", "conftest.py"):
        trees[name] = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    assert not [f"{path}:{danger}" for path, tree in trees.items() for danger in dangers(tree)]


def test_each_danger_is_seen():
    code = """pickle.load(f)
cPickle.loads(b)
torch.load(p)
torch.load(p, weights_only=False)
np.load(p)
np.load(p, allow_pickle=True)
archive.extractall()
tarfile.open(p).extractall(q, filter='fully_trusted')
eval(x)
exec(x)
subprocess.run(c, shell=True)
os.system(c)"""
    lines = [int(danger.partition(":")[0]) for danger in dangers(ast.parse(code))]
    assert sorted(lines) == list(range(1, 13))
    safe = "net.eval()\ntorch.load(p, weights_only=True)\nre.compile(x)\na.extract(filter='data')"
    assert not list(dangers(ast.parse(safe)))


# Language and names -------------------------------------------------------------------------------

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def test_headlines_are_noun_phrases_or_imperatives(library):
    headlines = [
        f"{path}: {docstring.splitlines()[0]}"
        for path, tree in library.items()
        for node in ast.walk(tree)
        if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node))
    ]
    riddle = re.compile(r"[^:]*: (What|Which|Where|Whether|How)\b")
    assert headlines and not [line for line in headlines if riddle.match(line)]


def test_no_name_occurs_twice(library):
    files = Counter(Path(path).stem for path in library if not Path(path).stem.startswith("__"))
    classes = Counter(
        node.name
        for tree in library.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert not [name for name, count in (files + classes).items() if count > 1]


def public():
    """Functions and classes that the rooms name in ``__all__``, but for the command line."""
    names = ["resid_theory"]
    for _, name, is_room in pkgutil.walk_packages(resid_theory.__path__, "resid_theory."):
        if is_room and not name.endswith(".cli"):
            names.append(name)
    modules = [importlib.import_module(name) for name in names]
    found = {}
    for module in modules:
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                found[f"{value.__module__}.{name}"] = value
    return found


def missing(value):
    """Parts that the docstring of a function or of a result with fields lacks."""
    if inspect.isclass(value) and not is_dataclass(value):
        return
    text, signature = inspect.getdoc(value) or "", inspect.signature(value)
    for name, parameter in signature.parameters.items():
        named = re.search(rf"^ +\**{name}\b.*:", text, re.MULTILINE)
        if not named and parameter.kind != parameter.VAR_KEYWORD:  # of a class: its fields
            yield name
    if not signature.parameters or inspect.isclass(value):
        return
    returns = str(signature.return_annotation)
    if returns not in ("None", "NoReturn") and not re.search(r"^(Returns|Yields):", text, re.M):
        yield "Returns"
    if re.search(r"\braise |\bcheck_", inspect.getsource(value)) and "Raises:" not in text:
        yield "Raises"


def test_public_docstrings_are_complete():
    checked = {name: list(missing(value)) for name, value in public().items()}
    assert len(checked) > 100
    assert not {name: parts for name, parts in checked.items() if parts}
