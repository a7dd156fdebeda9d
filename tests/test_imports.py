"""The floors of the house: a module imports only from lower floors. Checked without importing."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Bottom up. Rooms on one floor do not import one another. "resid_theory" is the public face.
FLOORS = [
    ["_check", "readings"],
    [
        "activations",
        "estimates",
        "losses",
        "machine",
        "ranks",
        "spectra",
        "state",
        "store",
        "stream",
    ],
    ["densities", "moments"],
    ["samples"],
    ["data", "identity", "theory"],
    ["cifar", "networks", "shortcut"],
    ["equivalence", "images", "setups"],
    ["curvature", "exchange", "stability", "training"],
    ["descent"],
    ["plots", "sweep"],
    ["resid_theory"],
    ["comparison"],
    ["cli"],
    ["experiments"],
]
# The same, inside a room; the room's own __init__.py is above all of it.
INSIDE = {
    "cli": [
        ["output", "sources"],
        ["dirac", "nets", "shortcuts", "sweeps", "trainings"],
        ["demo"],
        ["app"],
        ["__main__"],
    ],
    "theory": [
        ["gaussian", "initial", "linear", "local", "reduction", "separation", "sphere", "stacked"],
        ["assembly", "columns", "flow", "kinks", "toeplitz"],
        ["itineraries", "point"],
        ["origin"],
        ["bracing", "escape", "planning"],
        ["interpolation", "report"],
    ],
    "curvature": [
        [
            "certificate",
            "chain",
            "inputs",
            "orthogonal",
            "recorded",
            "selection",
            "twice",
        ],
        ["graphs", "krylov", "pairs", "passes"],
        ["columns", "ends", "problem"],
        ["dense", "products", "quadrature", "sought", "traces"],
        ["lanczos", "operator"],
        ["report"],
        ["measured"],
        ["along"],
    ],
    "descent": [["path", "problems"], ["along", "steps"]],
    "identity": [["entries"], ["weights"], ["decay", "draws"]],
    "networks": [["parts"], ["dirac", "full", "preactivation", "simplified"]],
    "equivalence": [["layers"], ["folding", "gap"], ["mapping"]],
    "stability": [
        ["dominance", "inputs", "layers", "paths", "summaries"],
        ["calls", "compare", "flows", "norms"],
        ["baselines", "cushions", "jacobian", "sharpness"],
        ["onward", "segments"],
        ["interlayer", "noise", "smoothness"],
        ["bound"],
    ],
    "exchange": [["layouts", "opening"], ["authors"]],
    "training": [
        ["evaluation", "nets", "recipe"],
        ["kinds", "steps"],
        ["faults", "parallel", "snapshot"],
        ["results", "samples"],
        ["loop"],
        ["calls"],
    ],
    "sweep": [
        ["settings"],
        ["task"],
        ["shortcuts", "trunks"],
        ["tasks"],
        ["results"],
        ["grid", "work"],
        ["processes", "rays"],
        ["running"],
    ],
    "images": [["augmentation", "stored"], ["folders", "named"]],
    "plots": [
        ["canvas"],
        ["curves", "cushions", "densities", "matrices", "spectra", "sphere"],
    ],
    "experiments": [
        ["circumstances", "needs", "parts"],
        ["claim"],
        ["trainings"],
        ["trained"],
        ["demystifying_resnet.nets", "diracnets.nets", "noise_stability.nets"],
        [
            *(
                f"demystifying_resnet.{name}"
                for name in (
                    "conditioning",
                    "curvature",
                    "deep",
                    "escape",
                    "final_losses",
                    "interpolation",
                    "lemmas",
                    "norms",
                    "trunks",
                    "zero_point",
                )
            ),
            *(
                f"noise_stability.{name}"
                for name in (
                    "cushions",
                    "dominant",
                    "equality",
                    "flows",
                    "gaussian",
                    "training",
                    "weights",
                )
            ),
            *(
                f"diracnets.{name}"
                for name in ("depth", "fold", "imagenet", "scales", "start", "tables")
            ),
            "crossings.curvature",
        ],
        [
            "crossings.dirac",
            "crossings.linear",
            "demystifying_resnet.schematics",
            "demystifying_resnet.shortcut_depths",
        ],
        ["crossings", "demystifying_resnet", "diracnets", "noise_stability"],
        ["registry"],
        ["__main__"],
    ],
}


def place(name):
    """The room and the part of a dotted module name, or None for another library."""
    top, *rest = name.split(".")
    if top == "resid_theory":
        return (rest[0] if rest else "resid_theory", ".".join(rest[1:]))
    return ("experiments", ".".join(rest)) if top == "experiments" else None


def floor(floors, name, table):
    """The floor that lists a name."""
    for number, names in enumerate(floors):
        if name in names:
            return number
    pytest.fail(f"{name!r} is on no floor: list it in {table} of tests/test_imports.py")


def height(room, part):
    """Floors of a room and of a part in it."""
    inside = INSIDE.get(room, [])
    return floor(FLOORS, room, "FLOORS"), (
        floor(inside, part, f"INSIDE[{room!r}]") if part else len(inside)
    )


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def imports(tree, name, is_package=False):
    """Every module that an import names, at any depth, also those for type checkers only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = name.split(".") if is_package else name.split(".")[:-1]
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:  # `from package import module` names the module
                inner = f"{base}.{alias.name}"
                yield inner if place(inner) and is_module(inner) else base


def sources():
    folders = (ROOT / "resid_theory", ROOT / "experiments")
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_from_lower_floors(path):
    name = module_name(path)
    room, part = place(name)
    mine = height(room, part)
    for imported in imports(ast.parse(path.read_text()), name, path.name == "__init__.py"):
        other = place(imported)
        if other is None or (other == (room, part)):
            continue
        theirs = height(*other)
        lower = theirs[1] < mine[1] if other[0] == room else theirs[0] < mine[0]
        assert lower, f"{name} imports {imported}, which is not on a lower floor"


def test_an_upward_import_is_seen():
    """The check itself: it reads every form of import."""
    text = "import a.b\nfrom . import spectra\nfrom ..theory.origin import x\nfrom .. import y"
    found = list(imports(ast.parse(text), "resid_theory.curvature.dense"))
    assert found == [
        "a.b",
        "resid_theory.curvature",
        "resid_theory.theory.zero_weights.origin",
        "resid_theory",
    ]
    assert height("curvature", "dense") > height("theory", "origin") > height("moments", "")


def cells(path):
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            yield ast.parse("".join(line for line in cell["source"] if line[:1] not in "%!"))


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_import_experiments_and_the_library_only(path):
    for tree in cells(path):
        for name in imports(tree, path.stem):
            assert place(name) or (path.stem == "04_your_own_model" and name == "torch"), name


@pytest.mark.parametrize("name", ["oracles", "close"])
def test_helpers_of_tests_do_not_import_the_library(name):
    path = ROOT / "tests" / f"{name}.py"
    if not path.exists():
        pytest.skip(f"tests/{name}.py is not written yet")
    assert not [found for found in imports(ast.parse(path.read_text()), name) if place(found)]


def loaded(code, *names):
    """Which of the named modules a fresh interpreter has after running the code."""
    code += f"\nimport sys; print([name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_import_of_the_library_is_light():
    assert loaded("import resid_theory", "matplotlib", "sklearn", "pandas", "seaborn") == "[]"


def test_help_does_not_import_torch():
    if not (ROOT / "resid_theory" / "cli").exists():
        pytest.skip("resid_theory/cli is not written yet")
    code = (
        "import sys\nsys.argv = ['resid-theory', '--help']\nfrom resid_theory.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code"
    )
    assert loaded(code, "torch", "numpy", "matplotlib") == "[]"
