"""Rules for all sources: they import from lower floors only, run nothing they read, speak plainly.

Checked without importing, but for attributes of modules.
"""

import ast
import importlib
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import interrupted
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Rooms, bottom up; those on one floor do not import one another. A room is a folder or a module of
# resid_theory/, and so is a folder of theory/. "resid_theory" is the public face, and "theory" the
# face of its rooms. A new file in a room needs no entry.
FLOORS = [
    ["_check", "nested"],
    ["activations", "initializations", "losses", "runtime", "theory.flow"],
    ["identity"],
    ["data", "eigen", "networks"],
    ["equivalence", "stability", "theory.interpolation", "theory.linear", "theory.zero_weights"],
    ["curvature", "exchange", "theory", "training"],
    ["descent", "plots", "sweep"],
    ["resid_theory"],
    ["cli"],
    ["experiments"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# What holds beyond the order of floors: predictions know no measurement, the eigensolver no net.
ALLOWED = {"eigen": {"_check", "runtime"}}
FORBIDDEN = {"theory": {"curvature", "descent", "stability", "training"}}


def room(name):
    """The room of a dotted module name; None if it belongs to another library."""
    top, *rest = name.split(".")
    if top != "resid_theory":
        return "experiments" if top == "experiments" else None
    inner = ".".join(rest[:2])
    return inner if inner in FLOOR else (rest or [top])[0]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def imports(nodes, name, is_package=False):
    """Every module that an import names, at any depth, also those for type checkers only."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = name.split(".") if is_package else name.split(".")[:-1]
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:  # `from package import module` names the module
                inner = f"{base}.{alias.name}"
                yield inner if room(inner) and is_module(inner) else base


def walked(text):
    """All nodes of a syntax tree."""
    return list(ast.walk(ast.parse(text)))


def parsed(path):
    return walked(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trees():
    """Syntax trees of all sources by path: many objects, gone when this file is done."""
    folders = ("resid_theory", "experiments", "benchmarks", "docs")
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {path: parsed(path) for path in paths}


@pytest.fixture(scope="module")
def library(trees):
    folder = ROOT / "resid_theory"
    return {path: nodes for path, nodes in trees.items() if path.is_relative_to(folder)}


@pytest.fixture(scope="module")
def house(trees):
    """Library and experiments: each module with the modules of ours that it imports."""
    found = {}
    for path, nodes in trees.items():
        if room(name := module_name(path)):
            named = imports(nodes, name, path.name == "__init__.py")
            found[name] = {other for other in named if room(other) and other != name}
    return found


def wrong_floor(name, other):
    """What is wrong with an import from another room, in words; None if nothing is."""
    mine, theirs = room(name), room(other)
    if mine == theirs:
        return None
    for each in (mine, theirs):
        if each not in FLOOR:
            return f"{each} is on no floor: list it in FLOORS of tests/test_imports.py"
    if FLOOR[theirs] >= FLOOR[mine]:
        return f"{name} imports {other}, which is not on a lower floor"
    if theirs not in ALLOWED.get(mine, FLOOR) or theirs in FORBIDDEN.get(mine.split(".")[0], ()):
        return f"{name} imports {other}, and {mine} must not know {theirs}"
    return None


def cycle(graph):
    """Modules that import one another in a ring; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_rooms_import_from_lower_floors_only(house):
    wrong = [wrong_floor(name, other) for name, found in house.items() for other in found]
    assert not [words for words in wrong if words]


def test_inside_a_room_no_imports_go_round(house):
    rooms = defaultdict(dict)
    for name, found in house.items():
        rooms[room(name)][name] = {other for other in found if room(other) == room(name)}
    assert len(rooms) == len(FLOOR)
    assert not [ring for ring in map(cycle, rooms.values()) if ring]


def loaded(code, *names):
    """Which of the named modules a fresh interpreter has after running the code."""
    code += f"\nimport sys; print([name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def import_anew(name, late):
    """Import in a process that has torch and NumPy; what it was forked with is forgotten."""
    kept = {*sys.stdlib_module_names, "numpy", "safetensors", "torch"}
    for module in [module for module in sys.modules if module.partition(".")[0] not in kept]:
        del sys.modules[module]
    importlib.import_module(name)
    assert late.isdisjoint(sys.modules)


@pytest.mark.usefixtures("server")
def test_what_is_slow_to_import_is_imported_late():
    late = {"matplotlib", "sklearn", "pandas", "seaborn", "scipy"}
    child = interrupted.server().Process(target=import_anew, args=("resid_theory.sweep", late))
    child.start()
    child.join()
    assert child.exitcode == 0
    code = (
        "import sys\nsys.argv = ['resid-theory', '--help']\nfrom resid_theory.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code"
    )
    assert loaded(code, "torch", "numpy", "matplotlib") == "[]"


def test_notebooks_import_the_library_and_helpers_of_tests_do_not():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                lines = [line for line in cell["source"] if line[:1] not in "%!"]
                for name in imports(walked("".join(lines)), path.stem):
                    own = path.stem == "04_your_own_model" and name == "torch"
                    assert room(name) or own, f"{path.name} imports {name}"
    for helper in ("oracles", "tolerances"):
        nodes = parsed(ROOT / "tests" / f"{helper}.py")
        assert not [name for name in imports(nodes, helper) if room(name)], helper


# The checks themselves ----------------------------------------------------------------------------


def test_every_form_of_import_is_read():
    text = "import a.b\nfrom . import dense\nfrom ..theory.linear import x\nfrom .. import y"
    found = list(imports(walked(text), "resid_theory.curvature.operator"))
    assert found == [
        "a.b",
        "resid_theory.curvature.dense",
        "resid_theory.theory.linear",
        "resid_theory",
    ]
    assert [room(name) for name in found] == [None, "curvature", "theory.linear", "resid_theory"]


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        ("resid_theory.data.moments", "resid_theory.training.loop", "not on a lower floor"),
        ("resid_theory.data.moments", "resid_theory.eigen", "not on a lower floor"),
        ("resid_theory.curvature.dense", "resid_theory", "not on a lower floor"),
        ("resid_theory.theory.linear", "resid_theory.theory.flow.gaussian", None),
        ("resid_theory.theory", "resid_theory.stability", "must not know"),
        ("resid_theory.eigen.lanczos", "resid_theory.losses", "must not know"),
        ("resid_theory.cli.app", "resid_theory.attic", "attic is on no floor"),
        ("resid_theory.cli.app", "resid_theory.cli.demo", None),
        ("experiments.claim", "resid_theory.cli", None),
    ],
)
def test_a_wrong_floor_is_seen(name, other, words):
    found = wrong_floor(name, other)
    assert found is None if words is None else words in found


def test_a_ring_is_seen():
    assert set(cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
    assert cycle({"a": {"b"}, "b": {"c"}, "d": {"a", "c"}}) == []


# Attributes of modules ---------------------------------------------------------------------------


def modules_named(nodes):
    """Modules of the house by the names that a file gives them."""
    found = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and room(node.module or ""):
            for alias in node.names:
                if is_module(f"{node.module}.{alias.name}"):
                    found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            found |= {a.asname: a.name for a in node.names if a.asname and room(a.name)}
    return found


def missing_attributes(nodes):
    """What a file reads from modules of the house and they do not have."""
    named = modules_named(nodes)
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = named.get(node.value.id)
            if module and not hasattr(importlib.import_module(module), node.attr):
                yield f"line {node.lineno}: {module}.{node.attr}"


def test_modules_have_what_is_read_from_them(trees):
    wrong = {str(path): list(missing_attributes(nodes)) for path, nodes in trees.items()}
    assert not {name: lines for name, lines in wrong.items() if lines}


def test_an_attribute_that_a_module_lacks_is_found():
    code = "from experiments.lease import time_table\ntime_table.seconds(1), time_table.steps(1)"
    assert [*missing_attributes(walked(code))] == ["line 2: experiments.lease.time_table.seconds"]


# Dangerous calls ----------------------------------------------------------------------------------


CALLS = {"compile", "eval", "exec", "extract", "extractall", "load", "loads", "popen", "system"}
CALLS |= {"Unpickler"}
WORDS = {"allow_pickle", "filter", "shell", "weights_only"}


def dangers(nodes):
    """Calls that run what they are given, in words."""
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        last, line = getattr(node.func, "attr", getattr(node.func, "id", "")), node.lineno
        name = ast.unparse(node.func) if last in CALLS else ""  # which takes long
        words = {w.arg: ast.unparse(w.value) for w in node.keywords if w.arg in WORDS}
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


def test_no_source_runs_what_it_reads(trees):
    others = {name: parsed(ROOT / name) for name in ("bootstrap.py", "conftest.py")}
    assert not [
        f"{path}:{danger}"
        for path, nodes in {**trees, **others}.items()
        for danger in dangers(nodes)
    ]


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
    lines = [int(danger.partition(":")[0]) for danger in dangers(walked(code))]
    assert sorted(lines) == list(range(1, 13))
    safe = "net.eval()\ntorch.load(p, weights_only=True)\nre.compile(x)\na.extract(filter='data')"
    assert not list(dangers(walked(safe)))


# Language and names -------------------------------------------------------------------------------

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def test_headlines_are_noun_phrases_or_imperatives(library):
    headlines = [
        f"{path}: {docstring.splitlines()[0]}"
        for path, nodes in library.items()
        for node in nodes
        if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node))
    ]
    riddle = re.compile(r"[^:]*: (What|Which|Where|Whether|How)\b")
    assert headlines and not [line for line in headlines if riddle.match(line)]


def test_no_name_occurs_twice(library):
    files = Counter(path.stem for path in library if not path.stem.startswith("__"))
    classes = Counter(
        node.name for nodes in library.values() for node in nodes if isinstance(node, ast.ClassDef)
    )
    assert not [name for name, count in (files + classes).items() if count > 1]


def test_files_of_the_authors_and_losses_of_users_load_no_compiler(tmp_path):
    """Arithmetic on the device meta, ``to_empty`` and ``torch.func`` make torch import it."""
    code = (
        "import resid_theory as rt, torch\nnet, path = rt.diracnet(10).eval(), {!r}\n"
        "for given in (net, rt.fold(net)):\n"
        "    rt.save_dirac_file(path, given)\n    rt.load_dirac_file(path)\n"
        "import sys\nassert 'sympy' not in sys.modules\n"
        "pair = torch.ones(2, 2), torch.tensor([[1.0], [2.0]])\n"
        "loss = lambda y, t: (t * y.square()).sum() / t.sum()\n"
        "rt.spectrum(torch.nn.Linear(2, 1), loss, pair, matrix='empirical_fisher')"
    ).format(str(tmp_path / "model.pt7"))
    assert loaded(code, "torch._dynamo") == "[]"
