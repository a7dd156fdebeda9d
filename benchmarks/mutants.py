"""Share of random faults of the library that its tests notice.

    python -m benchmarks.mutants --count 60 --seed 1   # draw that many faults, show the survivors
    python -m benchmarks.mutants --only eigen/         # of these modules

A mutant differs from the library in one operator, constant, condition, argument or call. All that
there are stand in a row by module, and one is drawn from each of ``--count`` equal stretches. Then
the tests run that name its function, or a function that names it, and so on, the nearest ones;
``--fast`` runs two cases of each. Survivors are to be read: some compute the same.
"""

import argparse
import ast
import difflib
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import fast  # noqa: E402

PAIRS = "Lt LtE, Gt GtE, Eq NotEq, Is IsNot, In NotIn, Add Sub, Mult Div, And Or".split(", ")
SWAPS = {getattr(ast, a): getattr(ast, b) for p in PAIRS for a, b in (p.split(), p.split()[::-1])}
TWINS = {"min": "max", "any": "all", "sum": "mean", "amin": "amax", "floor": "ceil"}
TWINS |= {other: name for name, other in TWINS.items()}
DROPPED = "abs sqrt square clone detach double conj clamp clamp_min clamp_max sort flip".split()
SKIPPED = "annotation returns decorator_list bases exc __repr__ __str__ headline".split()


def edited(node: Any, **fields: Any) -> Any:
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """The faults of one node."""
    match node:
        case ast.Compare(ops=[first, *rest]) if type(first) in SWAPS:
            yield edited(node, ops=[SWAPS[type(first)](), *rest])
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp() if type(node.op) in SWAPS:
            yield edited(node, op=SWAPS[type(node.op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool() | int() | float() as value):
            others = {bool: [not value], int: [value + 1, value - 1], float: [2 * value, value / 2]}
            yield from map(ast.Constant, others[type(value)])
        case ast.If(body=[*_, ast.Raise()]):
            yield edited(node, test=ast.Constant(False))
        case ast.If() | ast.IfExp():
            yield edited(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Call():
            function = node.func
            name = getattr(function, "attr", getattr(function, "id", ""))
            if name in TWINS:
                field = {"attr": TWINS[name]} if hasattr(function, "attr") else {"id": TWINS[name]}
                yield edited(node, func=edited(function, **field))
            if name in DROPPED and isinstance(function, ast.Attribute):
                yield function.value
            if len(node.args) > 1 and not isinstance(node.args[0], ast.Starred):
                yield edited(node, args=[node.args[1], node.args[0], *node.args[2:]])
            for keyword in node.keywords:
                yield edited(node, keywords=[k for k in node.keywords if k is not keyword])


def mutants(node: ast.AST, inside: str = "") -> Iterator[str]:
    """Change a syntax tree into each of its mutants and back; give the function of the change."""
    for field, value in ast.iter_fields(node):
        several = value if isinstance(value, list) else [value]
        for index, child in enumerate(several if field not in SKIPPED else []):
            if not isinstance(child, ast.AST) or getattr(child, "name", "") in SKIPPED:
                continue
            for variant in variants(child):
                several[index] = variant
                setattr(node, field, value if several is value else variant)
                yield inside
                several[index] = child
                setattr(node, field, value)
            named = isinstance(child, ast.FunctionDef | ast.ClassDef)
            yield from mutants(child, f"{inside}.{child.name}".strip(".") if named else inside)


def sample(count: int, seed: int, only: str) -> Iterator[tuple[str, str, str, list[str]]]:
    """Module, function, text and changed lines of the mutants that are drawn."""
    draw, paths = random.Random(seed), sorted((ROOT / "resid_theory").rglob("*.py"))
    texts = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in paths}
    trees = {m: ast.parse(text) for m, text in texts.items() if only in m and "__init__" not in m}
    total = sum(sum(1 for _ in mutants(tree)) for tree in trees.values())
    chosen = {int((i + draw.random()) * total / count) for i in range(count)}
    number = 0
    for module, tree in trees.items():
        before = ast.unparse(tree).splitlines()
        for function in mutants(tree):
            if number in chosen:
                text = ast.unparse(ast.fix_missing_locations(tree))
                lines = difflib.unified_diff(before, text.splitlines(), n=0, lineterm="")
                yield module, function, text, list(lines)[3:]
            number += 1


def mentioned(node: ast.AST) -> set[str]:
    """Names in a piece of code, of functions, attributes and arguments, and its texts."""
    parts = list(ast.walk(node))
    found = {getattr(part, f, None) for part in parts for f in ("id", "attr", "arg", "name")}
    return found | {part.value for part in parts if isinstance(part, ast.Constant)}


def functions(tree: ast.AST) -> Iterator[tuple[str, set[str]]]:
    """Functions, classes, methods and constants of a module with what they mention."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for name, names in functions(node):
                yield node.name if name.startswith("__") else name, names
        targets = getattr(node, "targets", [node])
        for name in {getattr(t, "name", getattr(t, "id", None)) for t in targets} - {None}:
            yield name, mentioned(node)


class Reach:
    """Which tests to run against a fault in a function."""

    def __init__(self) -> None:
        trees = [ast.parse(p.read_text()) for p in sorted((ROOT / "resid_theory").rglob("*.py"))]
        self.library = [each for tree in trees for each in functions(tree)]
        # A name that many functions mention says nothing.
        counts = Counter(name for _, names in self.library for name in names)
        self.common = {name for name, count in counts.items() if count > 40}
        self.tests: dict[str, set[str]] = {}
        for path in sorted((ROOT / "tests").glob("test_*.py")):
            if fast.is_left_out(path):
                continue
            own = list(functions(ast.parse(path.read_text())))
            for name, names in own:
                for _ in range(3):  # fixtures, tables and helpers of the file
                    names = names.union(*(more for other, more in own if other in names))
                if name.startswith("test_"):
                    self.tests[f"{path.relative_to(ROOT)}::{name}"] = names

    def near(self, function: str, module: str, most: int) -> list[str]:
        """Tests by the number of steps from what they name to the function."""
        at = [part for part in function.split(".")[:2] if part and not part.startswith("__")]
        at, words = at or [Path(module).stem], set(re.split("[/_.]", module)) - {"py"}
        front, known, chosen = {at[-1]} - self.common or {at[0]}, set(at), []
        for _ in range(5):
            level = [t for t, names in self.tests.items() if front & names and t not in chosen]
            chosen += sorted(level, key=lambda t: -len(words & {*re.split("::|_|/", t)}))
            wanted = front - self.common
            front = {name for name, names in self.library if wanted & names} - known
            known |= front
        return [module, *chosen[:most]]


def verdict(folder: Path, module: str, text: str, tests: list[str], seconds: float) -> str:
    """What becomes of a mutant in a copy of the repository."""
    before = (folder / module).read_bytes()
    (folder / module).write_text(text, encoding="utf-8")
    call = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    options = {"cwd": folder, "capture_output": True, "text": True, "timeout": seconds}
    try:
        done = subprocess.run(call, env={**os.environ, "PYTHONPATH": str(folder)}, **options)
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        (folder / module).write_bytes(before)
    lines = (done.stdout + done.stderr).splitlines()
    if done.returncode not in (1, 2):  # 1: a test failed, 2: a file could not be read
        return f"survives {lines[-1]}" if done.returncode == 0 else f"not run: {lines[-1]}"
    return f"caught: {next((w for w in lines if w[:6] in ('FAILED', 'ERROR ')), lines[-1:])}"[:110]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", type=int, default=40, help="test functions against a mutant")
    parser.add_argument("--seconds", type=float, default=300, help="for the tests of a mutant")
    parser.add_argument("--fast", action="store_true", help="two cases of each of the fast tests")
    parser.add_argument("--only", default="", help="part of the path of a module")
    given = parser.parse_args()
    reach, told = Reach(), []
    with tempfile.TemporaryDirectory() as name:
        packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", name], input=packed.stdout, check=True)
        plain, most = "tests/test_check.py", given.seconds  # without a fault, tests pass
        assert verdict(Path(name), plain, (ROOT / plain).read_text(), [plain], most)[0] == "s"
        for module, function, text, lines in sample(given.count, given.seed, given.only):
            tests = reach.near(function, module, given.tests) + ["--fast"] * given.fast
            told.append(verdict(Path(name), module, text, tests, most))
            print(f"{module}:{function}: {told[-1]}", flush=True)
            if told[-1][0] != "c":
                print(*(f"    {line}" for line in lines), sep="\n", flush=True)
    count, caught = len(told), sum(word[0] == "c" for word in told)
    ends = binomtest(caught, count).proportion_ci(method="wilson")
    print(f"{caught} of {count} caught, 95 % interval {ends.low:.1%} to {ends.high:.1%}")


if __name__ == "__main__":
    main()
