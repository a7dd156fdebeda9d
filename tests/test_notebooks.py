"""Notebooks are shop windows: they import, draw and assert; each runs from top to bottom."""

import ast
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import forked_kernels
import interrupted
import lazy_loader
import pytest

pytestmark = pytest.mark.skipif(
    not (find_spec("nbformat") and find_spec("nbclient")), reason="needs nbclient"
)
# Late: they take seconds, and each process of pytest-xdist collects all tests. After find_spec,
# which would load them.
nbformat, nbclient = lazy_loader.load("nbformat"), lazy_loader.load("nbclient")


ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

LINES, BYTES = 8, 1_000_000
HOUSE = {"experiments", "resid_theory"}
MACHINERY = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.For,
             ast.AsyncFor, ast.While)  # fmt: skip
SECONDS = 600  # for one cell


def broken_rules(path):
    """What a notebook does that a shop window does not, in words."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    free = path.name.startswith("04_")  # shows a user's own code
    wrong = [] if path.stat().st_size < BYTES else [f"has {BYTES} bytes or more"]
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        wrong.append(f"saved execution counts are {counts}")
    for number, cell in enumerate(cells, start=1):
        wrong += [f"cell {number}: {fault}" for fault in faults_of(cell, free)]
    if not cells or not any(isinstance(node, ast.Assert) for node in ast.walk(parsed(cells[-1]))):
        wrong.append("the last cell asserts nothing")
    return wrong


def faults_of(cell, free):
    lines = cell.source.strip().splitlines()
    if len(lines) > LINES:
        yield f"{len(lines)} lines"
    if any(output.output_type == "error" for output in cell.outputs):
        yield "a saved error"
    for node in ast.walk(parsed(cell)):
        if isinstance(node, MACHINERY) and not free:
            yield f"{type(node).__name__} in line {node.lineno}"
        for name in imported(node) - HOUSE - ({"torch"} if free else set()):
            yield f"imports {name}"


def parsed(cell):
    """The syntax tree of a cell; a line that begins with % is IPython's, not Python's."""
    lines = cell.source.splitlines()
    return ast.parse("\n".join("pass" if line.startswith("%") else line for line in lines))


def imported(node):
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {(node.module or ".").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()


def execute(path, folder, kernel):
    """Run a copy, its saved outputs cleared, in a kernel that starts in the repository."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources=resources
    )
    client.create_kernel_manager().kernel_spec.argv = kernel
    try:
        client.execute()
    finally:
        nbformat.write(notebook, folder / path.name)  # for a look at what failed


@pytest.fixture(scope="module")
def kernel(live_folder, server):
    """The command of a kernel, with the checkout's packages and this session's quick records."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RESID_THEORY_LIVE", str(live_folder))
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else the debugger warns
        path = f"{folder}/socket"
        process = interrupted.server().Process(target=forked_kernels.serve, args=(path,))
        process.start()
        while not os.path.exists(path):
            assert process.is_alive()
            time.sleep(0.01)
        yield [sys.executable, "-P", forked_kernels.__file__, path, "-f", "{connection_file}"]
        process.kill()
        process.join()


# The notebooks -----------------------------------------------------------------------------------


@every_notebook
def test_notebook_is_a_shop_window(path):
    assert not broken_rules(path)


@every_notebook
def test_notebook_runs(path, tmp_path, kernel):
    execute(path, tmp_path, kernel)


# The rules themselves, on toy notebooks ----------------------------------------------------------


def toy(folder, *sources, name="01_toy.ipynb", counts=None):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    for cell, count in zip(cells, counts or range(1, len(cells) + 1), strict=True):
        cell.execution_count = count
    path = folder / name
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


BROKEN = """def f(): pass
class A: pass
g = lambda: 1
for i in []: pass
while False: pass
import torch
from torch import nn
import numpy as np
import experiments, matplotlib.pyplot"""
FAULTS = [
    "9 lines", "FunctionDef in line 1", "ClassDef in line 2", "For in line 4", "While in line 5",
    "imports torch", "imports torch", "imports numpy", "imports matplotlib", "Lambda in line 3",
]  # fmt: skip
GOOD = ("%matplotlib inline\nimport resid_theory as rt\nfrom experiments import CLAIMS", "assert 1")


def test_each_rule_can_be_broken(tmp_path):
    assert not broken_rules(toy(tmp_path, *GOOD))
    assert broken_rules(toy(tmp_path, BROKEN, *GOOD)) == [f"cell 1: {fault}" for fault in FAULTS]
    own = "import torch\ndef f(): pass\nclass A: pass\nfor i in []: pass"  # of a user is free
    assert not broken_rules(toy(tmp_path, own, *GOOD, name="04_your_own_model.ipynb"))


@pytest.mark.parametrize("counts", [[2, 1], [1, 3], [None, None], [1, 1]], ids=str)
def test_saved_counts_must_run_from_one(tmp_path, counts):
    assert "saved execution counts" in broken_rules(toy(tmp_path, *GOOD, counts=counts))[0]


def test_assertion_errors_and_size_are_looked_at(tmp_path):
    assert broken_rules(toy(tmp_path, *GOOD, "1")) == ["the last cell asserts nothing"]
    path = toy(tmp_path, "#" + "x" * BYTES, *GOOD)
    assert broken_rules(path) == [f"has {BYTES} bytes or more"]
    path = toy(tmp_path, *GOOD)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].outputs = [nbformat.v4.new_output("error", ename="E", evalue="v")]
    nbformat.write(notebook, path)
    assert broken_rules(path) == ["cell 1: a saved error"]


def test_execution_starts_in_the_repository_and_reports_errors(tmp_path, kernel):
    (tmp_path / "out").mkdir()
    path = toy(tmp_path, "import os, resid_theory", "print(os.getcwd())", "assert 0, 'wrong'")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="wrong"):
        execute(path, tmp_path / "out", kernel)
    done = nbformat.read(tmp_path / "out" / path.name, as_version=4)
    assert done.cells[1].outputs[0].text.strip() == str(ROOT)
    assert nbformat.read(path, as_version=4).cells[1].outputs == []  # the original is untouched
