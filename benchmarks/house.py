"""Figures of a source tree: its rooms, names, layers of calls and passes over data.

    python benchmarks/house.py [--tree PATH]     # by default of this one

Sources are read, not imported; what is measured runs in a process of its own, with the tree on its
path and public calls only, so that trees whose modules have other names can be compared.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

HERE = Path(__file__).resolve()
ABOVE = ("experiments", "benchmarks")
RIDDLE = re.compile(r"(What|Which|Where|Whether|How)\b")


def sources(tree, *folders):
    return sorted(path for folder in folders for path in (tree / folder).rglob("*.py"))


def count_lines(paths):
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


# Rooms --------------------------------------------------------------------------------------------


def room_of(tree, name):
    """A folder or module of the library, or a folder of theory/; None for another library.

    The experiments are one room above the library, and the benchmarks another one.
    """
    top, *rest = name.split(".")
    if top != "resid_theory":
        return top if top in ABOVE else None
    inside = len(rest) > 1 and rest[0] == "theory" and (tree / top / "theory" / rest[1]).is_dir()
    return ".".join(rest[: 2 if inside else 1]) or top


def imported(tree, name, path):
    """Modules that a file imports, at any depth; `from package import module` names the module."""
    parents = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = tree.joinpath(*base.split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                yield f"{base}.{alias.name}" if is_module else base


def rooms(tree):
    """Files of each room, and the rooms that each room imports; a stub belongs to its module."""
    files, arrows = defaultdict(list), defaultdict(set)
    stub = tree / "resid_theory" / "__init__.pyi"
    for path in sources(tree, "resid_theory", *ABOVE) + [stub] * stub.exists():
        parts = path.relative_to(tree).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        room = room_of(tree, name)
        if path.suffix == ".py":
            files[room].append(path)
        arrows[room] |= {room_of(tree, other) for other in imported(tree, name, path)}
    return files, {room: arrows[room] - {room, None} for room in files}


def floors(arrows):
    """Rooms on the longest chain of imports; rooms in a ring are left out."""
    height = {}
    while ready := {r for r in arrows if r not in height and arrows[r] <= set(height)}:
        height |= {room: 1 + max((height[o] for o in arrows[room]), default=0) for room in ready}
    return max(height.values())


# Names --------------------------------------------------------------------------------------------


def twice(names):
    """Names that occur more than once, with how often."""
    return [f"{name} ({n})" for name, n in sorted(Counter(names).items()) if n > 1]


def uses(tree):
    """How often each name is read in a syntax tree."""
    return Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


def private_functions(trees):
    """Underscored functions of modules: all, and those that one place alone calls."""
    borrowed = Counter(
        alias.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    )
    found, once = 0, 0
    for tree in trees:
        everywhere = uses(tree)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and re.match(r"_(?!_)", node.name):
                found += 1
                calls = everywhere[node.name] - uses(node)[node.name] + borrowed[node.name]
                once += calls == 1
    return found, once


def headlines(trees):
    """First lines of all docstrings."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, kinds))
    return [text.splitlines()[0] for node in nodes if (text := ast.get_docstring(node))]


def show(what, value, listed=()):
    print(f"{what:<62} {value}", *([f"\n    {', '.join(listed)}"] if listed else []), flush=True)


def report(tree):
    files, arrows = rooms(tree)
    library = sources(tree, "resid_theory")
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in library]
    lines = count_lines(library)
    for room in sorted(files):
        show(f"  lines of {room}", f"{count_lines(files[room]):6} in {len(files[room])} files")
    show("lines of the library", lines)
    show("lines of tests and benchmarks", count_lines(sources(tree, "tests", "benchmarks")))
    show("lines of experiments", count_lines(sources(tree, "experiments")))
    show("files of the library", len(library))
    show("rooms of the library", len(files.keys() - set(ABOVE)))
    show("floors, experiments on top: longest chain of imports", floors(arrows))
    show("arrows, of experiments and benchmarks too", sum(map(len, arrows.values())))
    stems = twice(p.stem for p in library if p.stem not in ("__init__", "__main__"))
    show("file names that occur twice", len(stems), stems)
    nodes = (node for each in trees for node in ast.walk(each))
    classes = twice(node.name for node in nodes if isinstance(node, ast.ClassDef))
    show("class names that occur twice", len(classes), classes)
    found, once = private_functions(trees)
    show("private functions of modules, per 1,000 lines", f"{found}, {1e3 * found / lines:.1f}")
    show("of these called once, per 1,000 lines", f"{once}, {1e3 * once / lines:.1f}")
    heads = headlines(trees)
    riddles = sum(bool(RIDDLE.match(head)) for head in heads)
    show("headlines that begin with What/Which/Where/Whether/How", f"{riddles} of {len(heads)}")
    for what, value in walked(tree).items():
        show(what, *(value if isinstance(value, list) else [value]))


# Measured in a process of its own ----------------------------------------------------------------


def walked(tree):
    """What ``walk`` finds with the tree's library."""
    command = [sys.executable, "-P", str(HERE), "--walk", "--tree", str(tree)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True)
    done.check_returncode()
    return json.loads(done.stdout.splitlines()[-1])


def mlp(*widths, samples):
    """A small classifier and its data, float64."""
    import torch

    class Counted(torch.nn.Sequential):
        forwards = 0

        def forward(self, x):
            type(self).forwards += 1
            return super().forward(x)

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    layers = [
        layer
        for i, o in zip(widths, widths[1:], strict=False)
        for layer in (torch.nn.Linear(i, o), torch.nn.Tanh())
    ]
    x, y = torch.randn(samples, widths[0]), torch.randint(widths[-1], (samples,))
    return Counted(*layers[:-1]), x, y


def deepest(tree, call):
    """The longest stack of the tree's frames under an operator's @, and the files of the call."""
    inside, stack, longest, files = 0, [], [], set()
    root = str(tree / "resid_theory")

    def profile(frame, event, _):
        nonlocal inside, longest
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(root):
            return
        step = 1 if event == "call" else -1
        inside += step * (code.co_name == "__matmul__")
        if event == "return":
            stack.pop()
            return
        stack.append(code.co_name)
        files.add(code.co_filename)
        if inside and len(stack) > len(longest):
            longest = list(stack)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return longest, len(files)


class Batches:
    """Batches that can be read again, and count how often they are."""

    def __init__(self, x, y):
        self.batches, self.passes = list(zip(x.split(40), y.split(40), strict=True)), 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def walk(tree):
    """Layers of calls and passes over data, as what is shown."""
    import resid_theory as rt

    assert Path(rt.__file__).is_relative_to(tree), rt.__file__
    shown = {"public names at the top level": len(rt.__all__)}
    net, x, y = mlp(20, 150, 20, samples=60)  # 6,170 parameters: by products alone
    rt.spectrum(net, "cross_entropy", (x, y))  # imports are done
    longest, files = deepest(tree, lambda: rt.spectrum(net, "cross_entropy", (x, y)))
    shown["deepest own frames of a product in rt.spectrum"] = [len(longest), longest]
    shown["files of the library that rt.spectrum runs through"] = files
    for name in ("spectrum", "hessian_spectrum"):
        net, x, y = mlp(20, 50, 20, samples=120)  # 2,070 parameters: a dense Hessian
        data = Batches(x, y)
        getattr(rt, name)(net, "cross_entropy", data)
        shown[f"passes over 3 batches, and forward calls, of rt.{name}"] = (
            f"{data.passes}, {type(net).forwards}"
        )
    return shown


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, default=HERE.parents[1], help="by default this one")
    parser.add_argument("--walk", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    tree = given.tree.resolve()
    if given.walk:
        print(json.dumps(walk(tree)))
    else:
        report(tree)


if __name__ == "__main__":
    main()
