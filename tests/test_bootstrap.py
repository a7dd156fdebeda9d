"""Set-up for real, without network: a project of one module, its build backend a file beside it."""

import ast
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pip
import pytest

ROOT = Path(__file__).resolve().parents[1]

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "tiny"
version = "0"
dependencies = []
[project.optional-dependencies]
dev = []
notebooks = []
sweep = []
docs = ["no-such-sphinx>=1"]
"""

# The whole of an editable install: a wheel with one .pth file. It can be told to dawdle.
BACKEND = """
import os, time, tomllib, zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    if os.path.exists("dawdle"):
        os.remove("dawdle")
        time.sleep(1)
    with zipfile.ZipFile(os.path.join(folder, "tiny-0-py3-none-any.whl"), "w") as wheel:
        info = "tiny-0.dist-info/"
        wheel.writestr("tiny.pth", os.getcwd())
        needs = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]
        lines = ["Metadata-Version: 2.1", "Name: tiny", "Version: 0"]
        lines += ["Provides-Extra: " + name for name in ("dev", "notebooks", "sweep")]
        lines += ["Requires-Dist: " + name for name in needs]
        wheel.writestr(info + "METADATA", "\\n".join(lines) + "\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return "tiny-0-py3-none-any.whl"
build_wheel = build_editable
"""
# Found before the standard library's by `python -m venv`: the pip of this interpreter, linked in no
# time. `make test` itself has made a .venv with the one that Python brings along.
VENV = f"""
import importlib, sys
from pathlib import Path
sys.path.pop(0)
importlib.import_module("venv").create(sys.argv[1], symlinks=True)
site = next(Path(sys.argv[1]).glob("lib/python*/site-packages"))
for path in Path({str(Path(pip.__file__).parents[1])!r}).glob("pip*"):
    (site / path.name).symlink_to(path)
"""
# No command runs: each one fails at once.
FAILING = "import subprocess, types; "
FAILING += "subprocess.run = lambda *_, **__: types.SimpleNamespace(returncode=3)"


@pytest.fixture
def project(tmp_path):
    """A checkout small enough to set up in seconds."""
    return checkout(tmp_path)


def checkout(folder):
    shutil.copy(ROOT / "bootstrap.py", folder)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "constraints.txt").touch()
    (folder / "backend.py").write_text(BACKEND)
    (folder / "venv.py").write_text(VENV)
    (folder / "tiny.py").touch()
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The same, set up."""
    project = checkout(tmp_path_factory.mktemp("set_up", numbered=False))
    subprocess.run([sys.executable, "-m", "venv", ".venv"], cwd=project, check=True)
    stamp = f'{{"place": "{project}", "python": "{sys.implementation.cache_tag}"}}'
    (project / ".venv/.setup-stamp").write_text(stamp)
    assert bootstrap(project).returncode == 0
    return project.rename(project.with_name("finished"))


@pytest.fixture
def ready(finished):
    """A copy, where it was set up: elsewhere it would be one that was moved."""
    project = finished.with_name("set_up")
    shutil.copytree(finished, project, symlinks=True)
    yield project
    shutil.rmtree(project, ignore_errors=True)


def offline():
    """Environment in which pip has no index to look into."""
    environment = {name: value for name, value in os.environ.items() if name[:4] != "PIP_"}
    return environment | {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}


def bootstrap(project, *options, before=""):
    """Run bootstrap.py in the project, after a line of code that changes its world."""
    code = f"import runpy, sys; sys.argv[0] = 'bootstrap.py'; {before}\n"
    code += "runpy.run_path('bootstrap.py', run_name='__main__')"
    command = [sys.executable, "-c", code, *options]
    return subprocess.run(command, cwd=project, env=offline(), capture_output=True, text=True)


def is_at_once(project, *options):
    done = bootstrap(project, *options)
    return (done.returncode, done.stdout, done.stderr) == (0, "", "")


def is_ready(project):
    """Whether the environment finds the project, from elsewhere."""
    command = [project / ".venv/bin/python", "-I", "-c", "import tiny, pip"]
    return subprocess.run(command, cwd="/", capture_output=True).returncode == 0


def assert_ends_with_a_sentence(done, *words):
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and done.stderr.endswith(".\n"), done.stderr
    for word in words:
        assert word in done.stderr


def test_an_old_python_gets_a_sentence(project):
    done = bootstrap(project, before="sys.version_info = (3, 9, 18)")
    assert_ends_with_a_sentence(done, "3.11 or newer", "is 3.9", "`make demo PYTHON=python3.11`")
    ast.parse((ROOT / "bootstrap.py").read_text(), feature_version=(3, 6))


@pytest.mark.parametrize(
    ("options", "missing"),
    [([], "no-such-torch"), (["--tests"], "no-such-torch"), (["--docs"], "no-such-sphinx")],
)
def test_no_venv_names_what_is_missing(project, options, missing):
    text = PROJECT.replace("dependencies = []", 'dependencies = ["no-such-torch>=2.6"]')
    (project / "pyproject.toml").write_text(text)
    done = bootstrap(project, "--no-venv", *options)
    assert_ends_with_a_sentence(done, "it lacks no-such-torch", missing, "leave out NOVENV=1")
    (project / "pyproject.toml").write_text(PROJECT)
    assert is_at_once(project, "--no-venv", "--tests")
    assert not (project / ".venv").exists()


def test_a_killed_set_up_is_done_anew_and_then_kept(ready):
    dawdle = ready / "dawdle"
    dawdle.touch()
    first = subprocess.Popen([sys.executable, "bootstrap.py", "--tests"], cwd=ready, env=offline())
    while dawdle.exists():
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()  # pip lives on, and must not write into what comes next
    first.wait()
    done = bootstrap(ready)
    assert (done.returncode, done.stderr) == (0, "")
    assert "waiting" in done.stdout and "Making .venv" in done.stdout
    assert is_ready(ready) and is_at_once(ready)


def test_without_network_a_sentence_and_nothing_changes(ready):
    changed = PROJECT.replace("dependencies = []", 'dependencies = ["no-such"]', 1)
    (ready / "pyproject.toml").write_text(changed)
    assert_ends_with_a_sentence(bootstrap(ready), "PIP_INDEX_URL", "NOVENV=1", "rm -rf .venv")
    (ready / "pyproject.toml").write_text(PROJECT)
    assert is_at_once(ready) and is_ready(ready)


def test_the_demo_needs_less_than_the_tests_and_they_keep_each_other(ready):
    assert is_at_once(ready) and not is_at_once(ready, "--tests")
    assert is_at_once(ready, "--tests") and is_at_once(ready)


@pytest.mark.parametrize(
    ("file", "text", "kept"),
    [
        ("pyproject.toml", PROJECT + "[tool.ruff]\nline-length = 100\n", True),
        ("pyproject.toml", PROJECT.replace('version = "0"', 'version = "1"'), False),
        ("constraints.txt", "tiny==0\n", False),
    ],
)
def test_what_asks_for_a_set_up(ready, file, text, kept):
    (ready / file).write_text(text)
    if kept:
        assert is_at_once(ready)
        return
    done = bootstrap(ready, before=FAILING)
    assert "Installing" in done.stdout and "Making .venv" not in done.stdout
    assert_ends_with_a_sentence(done, "pip ended with status 3")


@pytest.mark.parametrize("change", ["moved", "no interpreter", "half a stamp"])
def test_a_moved_or_broken_environment_is_made_anew(ready, tmp_path, change):
    if change == "moved":
        ready = ready.rename(tmp_path / "elsewhere")
    elif change == "half a stamp":  # of a set-up that was killed as it wrote it
        stamp = ready / ".venv/.setup-stamp"
        stamp.write_text(stamp.read_text()[:-1])
    else:
        (ready / ".venv/bin/python").unlink()
        (ready / ".venv/bin/python").symlink_to("/no/such/python")
    done = bootstrap(ready, before=FAILING)
    assert "Making .venv" in done.stdout and not (ready / ".venv").exists()
    assert_ends_with_a_sentence(done, "venv ended with status 3", "`rm -rf .venv` starts over")


def test_the_citation_names_the_version():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {table['project']['version']}" in lines


def test_a_disk_that_refuses_gets_a_sentence(project):
    before = "import subprocess; subprocess.run = lambda *_, **__: open('/no/such/place')"
    assert_ends_with_a_sentence(bootstrap(project, before=before), "could not write .venv")
