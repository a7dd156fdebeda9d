"""Share of random faults of the library that its tests notice.

    python -m benchmarks.mutants --count 60 --seed 1   # draw that many faults, show the survivors
    python -m benchmarks.mutants --only eigen/ --list  # show them only

A mutant differs from the library in one operator, constant, condition, argument or call. All that
there are stand in a row by module, and one is drawn from each of ``--count`` equal stretches. Then
those of the fast tests run that name its function, or a function that names it, and so on, the
nearest ones. Survivors are to be read: some compute the same.
"""

import argparse
import ast
import difflib
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import fast  # noqa: E402

NEAR = 5  # steps from one function to the next
COMMON = 40  # a name that more functions mention says nothing
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
TWINS = {"min": "max", "any": "all", "sum": "mean", "amin": "amax", "floor": "ceil"}
TWINS |= {other: name for name, other in TWINS.items()}
DROPPED = "abs sqrt square clone detach double conj clamp clamp_min clamp_max sort flip".split()
SKIPPED = "annotation returns decorator_list bases exc __repr__ __str__ headline".split()


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """The faults of one node."""

    def edited(node: Any, **fields: Any) -> Any:
        made = copy(node)
        made.__dict__.update(fields)
        return made

    match node:
        case ast.Compare(ops=[first, *rest]) if type(first) in SWAPS:
            yield edited(node, ops=[SWAPS[type(first)](), *rest])
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp() if type(node.op) in SWAPS:
            yield edited(node, op=SWAPS[type(node.op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.Constant(value=float(value)):
            yield from (ast.Constant(2 * value), ast.Constant(value / 2))
        case ast.If(body=[*_, ast.Raise()]):
            yield edited(node, test=ast.Constant(False))
        case ast.If() | ast.IfExp():
            yield edited(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Attribute(attr="mT" | "T"):
            yield node.value
        case ast.Call():
            function = node.func
            name = getattr(function, "attr", getattr(function, "id", ""))
            if name in TWINS:
                field = "attr" if isinstance(function, ast.Attribute) else "id"
                yield edited(node, func=edited(function, **{field: TWINS[name]}))
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
            name = inside
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                local = "<locals>." * isinstance(node, ast.FunctionDef)
                name = f"{inside}.{local}{child.name}".removeprefix(".")
            yield from mutants(child, name)


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
    """Names in a piece of code, of functions, attributes, arguments and texts of one word."""
    found = set()
    for part in ast.walk(node):
        for field in ("id", "attr", "arg", "name"):
            found.add(getattr(part, field, None))
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.add(part.value)
    return found - {None, getattr(node, "name", None)}


def functions(tree: ast.AST) -> Iterator[tuple[str, set[str]]]:
    """The functions and methods of a module with what they mention; a class by its own methods."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for name, names in functions(node):
                yield node.name if name.startswith("__") else name, names
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign):
            for name in [node.name] if hasattr(node, "name") else mentioned(targets(node)):
                yield name, mentioned(node)


def targets(node: Any) -> ast.AST:
    return ast.Tuple(node.targets) if isinstance(node, ast.Assign) else node.target


class Reach:
    """Which tests to run against a fault in a function."""

    def __init__(self, most: int) -> None:
        self.most = most
        trees = [ast.parse(p.read_text()) for p in sorted((ROOT / "resid_theory").rglob("*.py"))]
        self.library = [each for tree in trees for each in functions(tree)]
        counts = Counter(name for _, names in self.library for name in names)
        self.common = {name for name, count in counts.items() if count > COMMON}
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

    def near(self, function: str, module: str) -> list[str]:
        """Tests by the number of steps from what they name to the function."""
        parts = [part for part in function.split(".") if part not in ("", "<locals>")]
        at = [part for part in parts[:2] if not part.startswith("__")] or [Path(module).stem]
        front, known, chosen = {at[-1]}, set(at), []
        for _ in range(NEAR):
            level = [t for t, names in self.tests.items() if front & names and t not in chosen]
            # Of equally near ones first those that name more of the way.
            chosen += sorted(level, key=lambda t: -len(self.tests[t] & (known | front)))
            wanted = front - self.common
            front = {name for name, names in self.library if wanted & names} - known
            known |= front
        return [module, *chosen[: self.most]]


def verdict(folder: Path, module: str, text: str, tests: list[str], limit: float) -> str:
    """What becomes of a mutant in a copy of the repository."""
    before = (folder / module).read_bytes()
    (folder / module).write_text(text, encoding="utf-8")
    options = ["-x", "-q", "-p", "no:cacheprovider", "--fast"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests], cwd=folder, timeout=limit,
            env={**os.environ, "PYTHONPATH": str(folder)}, capture_output=True, text=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "out of time"
    finally:
        (folder / module).write_bytes(before)
    lines = (done.stdout + done.stderr).splitlines()
    if done.returncode == 0:
        return f"survives {lines[-1]}"
    return f"caught: {next((w for w in lines if w[:6] in ('FAILED', 'ERROR ')), lines[-1:])}"[:110]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", type=int, default=40, help="test functions against a mutant")
    parser.add_argument("--seconds", type=float, default=300, help="for the tests of a mutant")
    parser.add_argument("--only", default="", help="part of the path of a module")
    parser.add_argument("--list", action="store_true", help="run nothing")
    given = parser.parse_args()
    reach, told = Reach(given.tests), []
    with tempfile.TemporaryDirectory() as name:
        packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", name], input=packed.stdout, check=True)
        plain = "tests/test_check.py"  # without a fault, tests pass
        if not given.list:
            text = (ROOT / plain).read_text(encoding="utf-8")
            assert verdict(Path(name), plain, text, [plain], 300)[0] == "s"
        for module, function, text, lines in sample(given.count, given.seed, given.only):
            tests = reach.near(function, module)
            told.append(f"{len(tests)} tests" if given.list else verdict(
                Path(name), module, text, tests, given.seconds))  # fmt: skip
            print(f"{module}:{function}: {told[-1]}", flush=True)
            if told[-1][0] != "c":
                print(*(f"    {line}" for line in lines), sep="\n", flush=True)
    count, caught = len(told), sum(word[0] == "c" for word in told)
    share, z = caught / count, 1.96 / count**0.5  # Wilson's interval
    half = z * (share * (1 - share) + z**2 / 4) ** 0.5
    low, high = ((share + z**2 / 2 + sign * half) / (1 + z**2) for sign in (-1, 1))
    print(f"{caught} of {count} caught, 95 % interval {low:.1%} to {high:.1%}")


if __name__ == "__main__":
    main()
