"""Share of random faults of the library that its tests notice.

    python -m benchmarks.mutants --count 60 --seed 1   # draw that many faults, show the survivors
    python -m benchmarks.mutants --only eigen/         # of these modules

A mutant differs from the library in one operator, constant, condition, argument or call. All that
there are stand in a row by module, and one is drawn from each of ``--count`` equal stretches. Then
the tests run that name its function, or a function that names it, and so on, the nearest ones.
The tests are collected once; a fork of the process puts the mutant's code into the functions that
stand there, so a mutant costs no more than its tests, of which ``--seen`` remembers which functions
they run. Survivors are to be read: some compute the same. Of an unfinished one tests are left.
"""

import argparse
import ast
import cProfile
import difflib
import gc
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from importlib.abc import InspectLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest
from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import fast  # noqa: E402

# Tests of sources, pages and records, which start processes: no fault of the library is theirs.
APART = {
    "test_benchmarks", "test_bootstrap", "test_claims", "test_differential", "test_digest",
    "test_docs", "test_fake_cuda", "test_figures", "test_history", "test_imports", "test_lease",
    "test_notebooks", "test_parts", "test_readme", "test_rules", "test_trainings", "test_trials",
}  # fmt: skip
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
            around = [value + 1, value - 1], [2 * value or 1.0, value / 2 or -1.0]
            others = {bool: [not value], int: around[0], float: around[1]}
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


def sample(count: int, seed: int, only: str) -> Iterator[tuple[str, str, str, str, list[str]]]:
    """Module, function, text before and after, changed lines of the mutants that are drawn."""
    draw, paths = random.Random(seed), sorted((ROOT / "resid_theory").rglob("*.py"))
    texts = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in paths}
    trees = {m: ast.parse(text) for m, text in texts.items() if only in m and "__init__" not in m}
    total = sum(sum(1 for _ in mutants(tree)) for tree in trees.values())
    chosen = {int((i + draw.random()) * total / count) for i in range(count)}
    number = 0
    for module, tree in trees.items():
        before = ast.unparse(tree)
        for function in mutants(tree):
            if number in chosen:
                text = ast.unparse(ast.fix_missing_locations(tree))
                both = before.splitlines(), text.splitlines()
                lines = difflib.unified_diff(*both, n=0, lineterm="")
                yield module, function, before, text, list(lines)[3:]
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
            if path.stem in APART:
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
        return chosen[:most]


def digest(code: CodeType) -> tuple[Any, ...]:
    """What a piece of code does, wherever it stands."""
    consts = [digest(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return code.co_code, consts, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars


def inside(value: Any) -> Iterator[FunctionType]:
    """The functions below properties, decorators and caches."""
    parts = (getattr(value, n, None) for n in ("__func__", "fget", "func", "__wrapped__"))
    for part in (value, *parts):
        if isinstance(part, FunctionType):
            yield part
            if part is not value:
                yield from inside(part)
    if hasattr(value, "cache_clear"):
        value.cache_clear()


def namespace(module: str, text: str) -> dict[str, Any]:
    """What a module with another text would hold, beside the one that was imported."""
    real = sys.modules[module]
    new = module_from_spec(real.__spec__)
    FunctionType(InspectLoader.source_to_code(text, real.__file__), vars(new))()
    return vars(new)


def transplant(holder: Any, plain: Any, mutant: Any) -> int:
    """Give a module or a class the mutant's functions and constants; the number of changes."""
    changes, old = 0, dict(vars(holder))
    for name in old.keys() & plain.keys() & mutant.keys():
        now, before, after = old[name], plain[name], mutant[name]
        if isinstance(now, type):
            if now.__module__ == before.__module__ and "<" not in now.__qualname__:
                if now.__qualname__.rpartition(".")[0] in ("", getattr(holder, "__qualname__", "")):
                    changes += transplant(now, dict(vars(before)), dict(vars(after)))
            continue
        for one, two, three in zip(inside(now), inside(before), inside(after), strict=True):
            if digest(two.__code__) != digest(three.__code__):
                one.__code__, changes = three.__code__, changes + 1
            for default in ("__defaults__", "__kwdefaults__"):
                values = getattr(two, default), getattr(three, default)
                if repr(values[0]) != repr(values[1]) and " at 0x" not in repr(values):
                    setattr(one, default, values[1])
                    changes += 1
        plainly = (bool, int, float, str, tuple, list, dict, set, frozenset, type(None))
        if isinstance(before, plainly) and not name.startswith("__") and before != after:
            for user in [m for m in sys.modules.values() if isinstance(m, ModuleType)]:
                if vars(user).get(name) is now:
                    setattr(user, name, after)
            setattr(holder, name, after)
            changes += 1
    return changes


def places(profile: cProfile.Profile) -> list[str]:
    """Functions of the library that ran."""
    codes = {entry.code for entry in profile.getstats()}
    ran = [c for c in codes if getattr(c, "co_filename", "").startswith(f"{ROOT}/resid_theory")]
    pairs = [(Path(code.co_filename).relative_to(ROOT), code.co_qualname) for code in ran]
    return [f"{file}:{name.replace('.<locals>', '')}" for file, name in pairs]


class Runner:
    """Runs mutants where pytest would run the tests that it has collected."""

    def __init__(self, given: argparse.Namespace, out: Any) -> None:
        self.given, self.out, self.failed = given, out, ""
        self.near, self.told, self.plain = Reach(), [], {}
        # Of each test: functions it was seen in, seconds and number of its cases that ran.
        self.seen: dict[str, list[Any]] = {}
        if given.seen and given.seen.exists():
            self.seen = json.loads(given.seen.read_text())

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed = self.failed or (report.nodeid if report.failed else "")

    def pytest_runtestloop(self, session: Any) -> bool:
        session.config.pluginmanager.unregister(name="terminalreporter")
        gc.freeze()  # forks share what stands
        self.items: dict[str, list[Any]] = {}
        for item in session.items:
            self.items.setdefault(item.nodeid.partition("[")[0], []).append(item)
        given = self.given
        drawn = list(sample(given.count, given.seed, given.only))
        random.Random(given.seed).shuffle(drawn)  # so that what is there when it is killed is fair
        for module, function, before, text, lines in drawn[given.skip :]:
            word = self.verdict(module, function, before, text)
            self.told.append(word)
            print(f"{module}:{function}: {word}", file=self.out)
            if not word.startswith("caught"):
                print(*(f"    {line}" for line in lines), sep="\n", file=self.out)
            self.out.flush()
            if given.seen:
                given.seen.write_text(json.dumps(self.seen))
        return True

    def chosen(self, module: str, function: str) -> list[Any]:
        """Tests seen in the function, short ones first, and near ones of which that is unknown."""
        place, fits, unknown = f"{module}:{function}", [], []
        names = [name for name in self.items if name.startswith(module + "::")]
        names += self.near.near(function, module, self.given.tests)
        for name in dict.fromkeys([*names, *self.seen]):
            functions, seconds, runs = self.seen.get(name, [[], 0, 0])
            items = self.items.get(name, [])
            if any(f == place or f.startswith(place + ".") for f in functions):
                fits.append((seconds / runs, items))
            elif runs < min(len(items), fast.CASES) and name in names:
                file, _, test = name.rpartition("::")
                slow = test in fast.TESTS or Path(file).stem in fast.FILES
                unknown.append((slow, items))
        ranked = sorted(fits, key=lambda each: each[0]) + sorted(unknown, key=lambda each: each[0])
        first = [item for _, items in ranked for item in items[: fast.CASES]]
        return first + [item for _, items in ranked for item in items[fast.CASES :]]

    def verdict(self, module: str, function: str, before: str, text: str) -> str:
        dotted, left = module[:-3].replace("/", "."), []
        while True:
            items = [item for item in self.chosen(module, function) if item.nodeid not in left]
            change = partial(self.change, dotted, before, text)
            word, number, node = self.fork(change, items, self.given.seconds)
            if word not in ("failed", "hangs"):
                return f"{word} {number} of {len(items)} tests"
            if node.partition("[")[0] in self.seen:  # it passed with another fault
                self.plain.setdefault(node, "survives")
            if node not in self.plain:  # does it pass without the fault?
                alone = [item for item in items if item.nodeid == node]
                self.plain[node] = self.fork(lambda: 1, alone, self.given.seconds / 4)[0]
            if self.plain[node] == "survives":
                return f"caught: {'' if word == 'failed' else 'hangs in '}{node}"
            left.append(node)

    def change(self, dotted: str, before: str, text: str) -> int:
        plain = namespace(dotted, before)
        try:
            mutant = namespace(dotted, text)
        except Exception:
            return -1  # cannot be imported
        return transplant(sys.modules[dotted], plain, mutant)

    def fork(self, change: Any, items: list[Any], seconds: float) -> tuple[str, int, str]:
        """What becomes of the tests in a process of their own."""
        with tempfile.NamedTemporaryFile() as file:
            if not (child := os.fork()):
                os.setsid()
                self.tests(change, items, seconds, file.name)
            until = time.time() + 40 * seconds  # asleep, or on a busy machine
            while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.time() < until:
                time.sleep(0.02)
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            if not ended[0]:
                os.waitpid(child, 0)
            lines = [json.loads(line) for line in Path(file.name).read_text().splitlines()]
        for _, _, name, *ran in lines:
            if ran:
                functions, seconds, runs = self.seen.get(name, [[], 0, 0])
                both = sorted({*functions, *ran[0]})
                self.seen[name] = [both, seconds + ran[1], runs + 1]
        return tuple(lines[-1][:3])

    def tests(self, change: Any, items: list[Any], seconds: float, file: str) -> None:
        """Run them in this process, tell after each what there is to tell, and end it."""
        start = time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (int(start + 2 * seconds) + 1,) * 2)

        def tell(*words: Any) -> None:
            with open(file, "a") as out:
                out.write(json.dumps(words) + "\n")

        try:
            tell("not run: not transplanted", 0, "")
            changes = change()
            if changes < 0:
                tell("caught: cannot be imported", 0, "")
            for number, item in enumerate(items if changes > 0 else []):
                tell("hangs", number, item.nodeid)
                before = time.process_time()
                after = items[number + 1] if number + 1 < len(items) else None
                with cProfile.Profile(subcalls=False, builtins=False) as profile:
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                if self.failed:
                    tell("failed", number, self.failed)
                    break
                name = item.nodeid.partition("[")[0]
                tell("", number, name, places(profile), time.process_time() - before)
                if time.process_time() - start > seconds:
                    tell("unfinished after", number + 1, "")
                    break
            else:
                if changes > 0:
                    tell("survives", len(items), "")
        except BaseException as error:
            tell(f"not run: {error!r}"[:200], 0, "")
        finally:
            os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", type=int, default=40, help="test functions against a mutant")
    parser.add_argument("--seconds", type=float, default=20, help="of CPU for a mutant")
    parser.add_argument("--skip", type=int, default=0, help="of them, because they ran before")
    parser.add_argument("--seen", type=Path, help="file that keeps which test runs what")
    parser.add_argument("--only", default="", help="part of the path of a module")
    given = parser.parse_args()
    os.chdir(ROOT)
    runner = Runner(given, os.fdopen(os.dup(1), "w"))
    files = [str(p) for p in sorted((ROOT / "tests").glob("test_*.py")) if p.stem not in APART]
    pytest.main(["-qpno:cacheprovider", "-pno:faulthandler", "resid_theory", *files], [runner])
    told = [word for word in runner.told if not word.startswith("not run")]
    count, caught = len(told), sum(word.startswith("caught") for word in told)
    ends = binomtest(caught, count).proportion_ci(method="wilson")
    print(f"{caught} of {count} caught, 95 % interval {ends.low:.1%} to {ends.high:.1%}")


if __name__ == "__main__":
    main()
