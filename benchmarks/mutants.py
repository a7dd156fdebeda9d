"""Share of random faults of the library that its tests notice.

    python -m benchmarks.mutants --count 60 --seed 1   # draw that many faults, show the survivors
    python -m benchmarks.mutants --only eigen/         # of these modules

A mutant differs from the library in one operator, constant, condition, argument or call. All that
there are stand in a row by module, and one is drawn from each of ``--count`` equal stretches. The
tests are collected once; a fork of the process puts the mutant's code into the functions that stand
there and runs each test that runs its lines, short and narrow ones first. Which lines a test runs
is measured once, in a quarter of an hour, and kept in ``--lines``. Survivors are to be read: some
compute the same. Of an unfinished one tests are left. Needs ``coverage``.
"""

import argparse
import ast
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
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.abc import InspectLoader
from importlib.util import module_from_spec
from multiprocessing import get_context
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import pytest
from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[1]

# Tests of sources, pages and records, which start processes: no fault of the library is theirs.
APART = {
    "test_benchmarks", "test_bootstrap", "test_claims", "test_differential", "test_digest",
    "test_docs", "test_fake_cuda", "test_figures", "test_history", "test_imports", "test_kills",
    "test_lease", "test_notebooks", "test_parts", "test_readme", "test_rules", "test_trainings",
    "test_trials",
}  # fmt: skip
PAIRS = "Lt LtE, Gt GtE, Eq NotEq, Is IsNot, In NotIn, Add Sub, Mult Div, And Or".split(", ")
SWAPS = {getattr(ast, a): getattr(ast, b) for p in PAIRS for a, b in (p.split(), p.split()[::-1])}
TWINS = {"min": "max", "any": "all", "sum": "mean", "amin": "amax", "floor": "ceil"}
TWINS |= {other: name for name, other in TWINS.items()}
DROPPED = "abs sqrt square clone detach double conj clamp clamp_min clamp_max sort flip".split()
SYMMETRIC = {"min", "max", "minimum", "maximum", "equal", "gcd"}
# ``strict`` of ``zip`` checks the code, which no test can see.
SKIPPED = {*"annotation returns decorator_list bases exc __repr__ __str__ headline strict".split()}


LONGEST = 1000  # lines of a module
ASLEEP = 180  # seconds without a word from a test, also on a busy machine
Places = list[range | str]


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
            first, second, *rest = [*node.args, None, None]
            if second and not isinstance(first, ast.Starred) and name not in SYMMETRIC:
                yield edited(node, args=[second, first, *rest[:-2]])
            for keyword in node.keywords:
                if keyword.arg in SKIPPED:
                    continue
                yield edited(node, keywords=[k for k in node.keywords if k is not keyword])


def mutants(node: ast.AST, around: tuple[ast.stmt, ...] = ()) -> Iterator[Places]:
    """Change a syntax tree into each of its mutants and back; give the lines of the change."""
    for field, value in ast.iter_fields(node):
        several = value if isinstance(value, list) else [value]
        for index, child in enumerate(several if field not in SKIPPED else []):
            names = {getattr(child, each, "") for each in ("name", "arg")}
            if not isinstance(child, ast.AST) or names & SKIPPED:
                continue
            inside = (child, *around) if isinstance(child, ast.stmt) else around
            for variant in variants(child):
                if ast.dump(variant) == ast.dump(child):
                    continue  # equal arguments, swapped
                several[index] = variant
                setattr(node, field, value if several is value else variant)
                yield stretches(child, inside)
                several[index] = child
                setattr(node, field, value)
            yield from mutants(child, inside)


def stretches(node: Any, around: tuple[ast.stmt, ...]) -> Places:
    """Lines of what a node is part of: statement, function, class, module; those with a word."""
    compound = hasattr(around[0], "body") or hasattr(around[0], "cases")
    parts: list[Any] = [getattr(node, "test", node) if compound else around[0]]
    above = [part for part in around if isinstance(part, ast.FunctionDef | ast.ClassDef)]
    lines = [range(part.lineno, part.end_lineno + 1) for part in parts + above]
    if not any(isinstance(part, ast.FunctionDef) for part in above if part is not around[0]):
        # A constant, or a default.
        target = getattr(around[0], "target", getattr(around[0], "targets", [None])[0])
        return [getattr(target, "id", ""), *lines, range(LONGEST)]
    return [*lines, range(LONGEST)]


class Mutant(NamedTuple):
    module: str
    places: Places
    before: str
    text: str

    @property
    def line(self) -> int:
        return next(place.start for place in self.places if isinstance(place, range))

    def __str__(self) -> str:
        """The lines that it changes."""
        both = self.before.splitlines(), self.text.splitlines()
        changes = list(difflib.unified_diff(*both, n=0, lineterm=""))[3:]
        return "\n".join(f"    {line}" for line in changes)


def sample(count: int, seed: int, only: str) -> Iterator[Mutant]:
    draw, paths = random.Random(seed), sorted((ROOT / "resid_theory").rglob("*.py"))
    texts = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in paths}
    trees = {m: ast.parse(text) for m, text in texts.items() if only in m and "__init__" not in m}
    total = sum(sum(1 for _ in mutants(tree)) for tree in trees.values())
    chosen = {int((i + draw.random()) * total / count) for i in range(count)}
    number = 0
    for module, tree in trees.items():
        before = ast.unparse(tree)
        for places in mutants(tree):
            if number in chosen:
                text = ast.unparse(ast.fix_missing_locations(tree))
                yield Mutant(module, places, before, text)
            number += 1


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
                if now.__qualname__.rpartition(".")[0] == getattr(holder, "__qualname__", ""):
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


def bits(lines: Any) -> int:
    return sum(1 << line for line in set(lines))


class Runner:
    """Runs mutants where pytest would run the tests that it has collected."""

    def __init__(self, given: argparse.Namespace, out: Any) -> None:
        self.given, self.out, self.failed = given, out, ""
        self.told: list[str] = []
        self.cover: Any = None  # what measures lines now
        # Of each test its seconds, and its lines in each module as bits.
        self.ran: dict[str, tuple[float, dict[str, int]]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed = self.failed or (report.nodeid if report.failed else "")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        if self.cover:  # fixtures stay for the cases that follow
            self.cover.switch_context("set up")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: Any) -> None:
        if self.cover:
            self.cover.switch_context(item.nodeid)

    def pytest_runtestloop(self, session: Any) -> bool:
        session.config.pluginmanager.unregister(name="terminalreporter")
        gc.freeze()  # forks share what stands
        self.items = {item.nodeid: item for item in session.items}
        given = self.given
        paths = (ROOT / "resid_theory").rglob("*.py")
        self.texts = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in paths}
        drawn = list(sample(given.count, given.seed, given.only))
        random.Random(given.seed).shuffle(drawn)  # so that what is there when it is killed is fair
        with ProcessPoolExecutor(given.jobs, get_context("fork")) as pool:
            self.measure(pool)
        rank = {
            name: seconds * sum(lines.bit_count() for lines in ran.values())
            for name, (seconds, ran) in self.ran.items()
        }
        self.ranked = sorted(self.items.keys() & rank.keys(), key=lambda name: rank[name])
        self.signatures = [name for name in self.items if "test_defaults" in name]
        with ProcessPoolExecutor(given.jobs, get_context("fork")) as pool:
            drawn = drawn[given.skip :]
            for mutant, word in zip(drawn, pool.map(verdict, drawn), strict=True):
                self.told.append(word)
                print(f"{mutant.module}:{mutant.line}: {word}", file=self.out)
                if not word.startswith("caught"):
                    print(mutant, file=self.out)
                self.out.flush()
        return True

    def measure(self, pool: Any) -> None:
        """Read which lines each test runs, or run those of which it is unknown."""
        if self.given.lines.exists():
            known = json.loads(self.given.lines.read_text())
            self.ran = {
                name: (seconds, {module: int(lines, 16) for module, lines in ran.items()})
                for name, (seconds, ran) in known.items()
            }
        groups: dict[str, list[str]] = {}
        for name in self.items.keys() - self.ran.keys():
            groups.setdefault(name.partition("[")[0], []).append(name)
        for ran in pool.map(lines_of, groups.values()):
            self.ran |= ran
        texts = {
            name: (seconds, {module: hex(lines) for module, lines in ran.items()})
            for name, (seconds, ran) in self.ran.items()
        }
        self.given.lines.write_text(json.dumps(texts))

    def lines_of(self, names: list[str]) -> dict[str, tuple[float, dict[str, int]]]:
        """What each case of a test runs, together in a process where nothing ran before."""
        import coverage

        def start() -> int:
            self.cover = coverage.Coverage(
                data_file=None, source=[str(ROOT / "resid_theory")], config_file=False
            )
            self.cover.start()
            return 1

        told = self.fork(start, sorted(names, key=list(self.items).index), 300)
        seconds = {name: spent for word, _, name, spent in told if word == "passed"}
        ran: dict[str, dict[str, int]] = {name: {} for name in seconds}
        for word, _, module, contexts in told:
            if word == "lines":
                before = bits(contexts.get("set up", []))
                for name in ran:
                    ran[name][module] = before | bits(contexts.get(name, []))
        return {name: (seconds[name], ran[name]) for name in ran}

    def chosen(self, mutant: Mutant) -> list[str]:
        """Tests that run a mutant's lines; if none does, its function, its class or its module."""
        for place in mutant.places:
            masks = {mutant.module: place} if isinstance(place, range) else self.lines_with(place)
            wanted = [(module, bits(lines)) for module, lines in masks.items()]
            fits = [
                name for name in self.ranked
                if any(self.ran[name][1].get(module, 0) & mask for module, mask in wanted)
            ]  # fmt: skip
            if fits:
                return fits
        return []

    def lines_with(self, word: str) -> dict[str, Any]:
        """In all modules."""
        found = {}
        for module, text in self.texts.items() if word else ():
            lines = enumerate(text.splitlines(), 1)
            found[module] = [n for n, line in lines if re.search(rf"\b{word}\b", line)]
        return found

    def verdict(self, mutant: Mutant) -> str:
        names, change = self.chosen(mutant), partial(self.change, mutant)
        if isinstance(mutant.places[0], str):  # perhaps a default, which tests of signatures read
            names = self.signatures + names
        while True:
            word, number, node, _ = self.fork(change, names, self.given.seconds)[-1]
            if word not in ("failed", "hangs"):
                return f"{word} {number} of {len(names)} tests"
            # What fails without the fault, too, behind the same tests, has not caught it.
            if self.fork(lambda: 1, names[: number + 1], 600)[-1][0] == "survives":
                return f"caught: {'' if word == 'failed' else 'hangs in '}{node}"
            names.remove(node)

    def change(self, mutant: Mutant) -> int:
        dotted = mutant.module[:-3].replace("/", ".")
        plain = namespace(dotted, mutant.before)
        try:
            changed = namespace(dotted, mutant.text)
        except Exception:
            return -1  # cannot be imported
        return transplant(sys.modules[dotted], plain, changed)

    def fork(self, change: Any, names: list[str], seconds: float) -> list[tuple[Any, ...]]:
        """What becomes of the tests in a process of their own."""
        with tempfile.NamedTemporaryFile() as file:
            if not (child := os.fork()):
                os.setsid()
                self.tests(change, [self.items[name] for name in names], seconds, file.name)
            while not (ended := os.waitpid(child, os.WNOHANG))[0]:
                time.sleep(0.02)
                if time.time() - os.stat(file.name).st_mtime > ASLEEP:
                    break
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            if not ended[0]:
                os.waitpid(child, 0)
            return [json.loads(line) for line in Path(file.name).read_text().splitlines()]

    def tests(self, change: Any, items: list[Any], seconds: float, file: str) -> None:
        """Run them in this process, tell after each what there is to tell, and end it."""
        start = time.process_time()

        def tell(*words: Any) -> None:
            with open(file, "a") as out:
                out.write(json.dumps(words) + "\n")

        try:
            tell("not run: not transplanted", 0, "", 0)
            changes = change()
            if changes < 0:
                tell("caught: cannot be imported", 0, "", 0)
            for number, item in enumerate(items if changes > 0 else []):
                tell("hangs", number, item.nodeid, 0)
                # By the clock, so that tests that start other processes come late.
                begun, self.failed = time.perf_counter(), ""
                longest = time.process_time() + (
                    10 + 10 * self.ran[item.nodeid][0] if item.nodeid in self.ran else seconds
                )
                resource.setrlimit(resource.RLIMIT_CPU, (int(longest) + 1, -1))
                after = items[number + 1] if number + 1 < len(items) else None
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                if self.failed and not self.cover:
                    tell("failed", number, self.failed, 0)
                    break
                spent = time.perf_counter() - begun
                tell("failed" if self.failed else "passed", number, item.nodeid, spent)
                if time.process_time() - start > seconds:
                    tell("unfinished after", number + 1, "", 0)
                    break
            else:
                if changes > 0:
                    tell("survives", len(items), "", 0)
            if self.cover:
                self.cover.stop()
                data = self.cover.get_data()
                for path in data.measured_files():
                    contexts: dict[str, list[int]] = {}
                    for line, several in data.contexts_by_lineno(path).items():
                        for context in several:
                            contexts.setdefault(context, []).append(line)
                    tell("lines", 0, str(Path(path).relative_to(ROOT)), contexts)
        except BaseException as error:
            tell(f"not run: {error!r}"[:200], 0, "", 0)
        finally:
            os._exit(0)


def verdict(mutant: Mutant) -> str:
    return RUNNER.verdict(mutant)


def lines_of(names: list[str]) -> dict[str, tuple[float, dict[str, int]]]:
    return RUNNER.lines_of(names)


def main() -> None:
    global RUNNER
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="of CPU for a mutant")
    parser.add_argument("--skip", type=int, default=0, help="of them, because they ran before")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--lines", type=Path, default=Path("out/lines.json"), help="of each test")
    parser.add_argument("--only", default="", help="part of the path of a module")
    given = parser.parse_args()
    os.chdir(ROOT)
    given.lines.parent.mkdir(parents=True, exist_ok=True)
    RUNNER = Runner(given, os.fdopen(os.dup(1), "w"))
    files = [str(p) for p in sorted((ROOT / "tests").rglob("test_*.py")) if p.stem not in APART]
    pytest.main(["-qpno:cacheprovider", "-pno:faulthandler", "resid_theory", *files], [RUNNER])
    told = [word for word in RUNNER.told if not word.startswith("not run")]
    count, caught = len(told), sum(word.startswith("caught") for word in told)
    ends = binomtest(caught, count).proportion_ci(method="wilson")
    print(f"{caught} of {count} caught, 95 % interval {ends.low:.1%} to {ends.high:.1%}")


if __name__ == "__main__":
    main()
