"""Set-up for real, without network: a project of one module, its build backend a file beside it."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import venv
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
[tool.bootstrap]
install = "."
imports = ["json"]
tools = []
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
        needs = tomllib.load(open("pyproject.toml", "rb"))["project"].get("dependencies", [])
        lines = ["Metadata-Version: 2.1", "Name: tiny", "Version: 0"]
        lines += ["Requires-Dist: " + name for name in needs]
        wheel.writestr(info + "METADATA", "\\n".join(lines) + "\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return "tiny-0-py3-none-any.whl"
build_wheel = build_editable
"""


@pytest.fixture
def project(tmp_path):
    """A checkout small enough to set up in seconds."""
    shutil.copy(ROOT / "bootstrap.py", tmp_path)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "backend.py").write_text(BACKEND)
    (tmp_path / "tiny.py").write_text("")
    return tmp_path


def offline():
    """Environment in which no index answers: port 9 of this machine is closed."""
    environment = {name: value for name, value in os.environ.items() if name[:4] != "PIP_"}
    dead = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull}
    return environment | dead | {"PIP_RETRIES": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def bootstrap(project, *options, before=""):
    """Run bootstrap.py in the project, after a line of code that changes its world."""
    code = f"import runpy, sys; sys.argv[0] = 'bootstrap.py'; {before}\n"
    code += "runpy.run_path('bootstrap.py', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, *options],
        cwd=project,
        env=offline(),
        capture_output=True,
        text=True,
    )


def is_ready(project):
    """Whether the environment finds the project, from elsewhere, and is stamped."""
    command = [project / ".venv/bin/python", "-I", "-c", "import tiny, pip"]
    return (
        subprocess.run(command, cwd="/", capture_output=True).returncode == 0
        and (project / ".venv/.setup-stamp").exists()
        and not (project / ".venv/.setup-unfinished").exists()
    )


def assert_one_sentence(done, *words):
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1 and done.stderr.endswith(".\n"), done.stderr
    for word in words:
        assert word in done.stderr


def test_an_old_python_gets_a_sentence(project):
    done = bootstrap(project, before="sys.version_info = (3, 9, 18)")
    assert_one_sentence(done, "3.11 or newer", "is 3.9", "`make demo PYTHON=python3.11`")


def test_old_pythons_can_parse_the_script():
    tree = ast.parse((ROOT / "bootstrap.py").read_text(), feature_version=(3, 4))
    too_new = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.Nonlocal)
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, too_new)]
    raises = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    assert not [node.lineno for node in raises if node.cause]


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_without_venv_gets_a_sentence(project, module):
    done = bootstrap(project, before=f"sys.modules['{module}'] = None")
    assert_one_sentence(done, "apt install python3-venv", "NOVENV=1")


def test_no_venv_names_what_is_missing(project):
    text = PROJECT.replace('"json"', '"json", "no_such_a.part", "no_such_b"')
    (project / "pyproject.toml").write_text(text)
    done = bootstrap(project, "--no-venv")
    assert_one_sentence(done, "cannot import no_such_a, no_such_b:", "leave out NOVENV=1")
    assert not (project / ".venv").exists()


def test_no_venv_demands_pytest_for_tests_only(project):
    without = "sys.modules['pytest'] = None"
    assert bootstrap(project, "--no-venv", before=without).returncode == 0
    done = bootstrap(project, "--no-venv", "--tests", before=without)
    assert_one_sentence(done, "cannot import pytest:")


def test_no_venv_demands_sphinx_for_docs_only(project):
    docs = '[tool.bootstrap.docs]\ninstall = "."\nimports = ["no_such_sphinx"]\n'
    (project / "pyproject.toml").write_text(PROJECT + docs)
    assert bootstrap(project, "--no-venv", "--tests").returncode == 0
    assert_one_sentence(bootstrap(project, "--no-venv", "--docs"), "cannot import no_such_sphinx:")


def environment_with_our_pip(project):
    """A sound .venv in no time: without pip, then a link to the pip of this interpreter."""
    venv.create(project / ".venv", symlinks=True)
    site = next((project / ".venv").glob("lib/python*/site-packages"))
    for path in Path(pip.__file__).parents[1].glob("pip*"):
        (site / path.name).symlink_to(path)


def test_a_killed_set_up_is_mended_and_then_kept(project):
    environment_with_our_pip(project)
    dawdle = project / "dawdle"
    dawdle.touch()
    first = subprocess.Popen([sys.executable, "bootstrap.py"], cwd=project, env=offline())
    while dawdle.exists():
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()  # pip lives on, and must not write into what comes next
    first.wait()
    done = bootstrap(project)
    assert (done.returncode, done.stderr) == (0, "")
    assert "waiting" in done.stdout and "Making .venv" in done.stdout
    assert is_ready(project)

    stamp = (project / ".venv/.setup-stamp").stat().st_mtime_ns
    again = bootstrap(project)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert (project / ".venv/.setup-stamp").stat().st_mtime_ns == stamp


def test_no_network_gets_a_sentence_and_changes_nothing(project):
    environment_with_our_pip(project)
    assert bootstrap(project).returncode == 0
    changed = PROJECT.replace('version = "0"', 'version = "0"\ndependencies = ["no-such"]')
    (project / "pyproject.toml").write_text(changed)
    assert_one_sentence(bootstrap(project), "could not reach a package index", "NOVENV=1")
    (project / "pyproject.toml").write_text(PROJECT)
    assert bootstrap(project).stdout == ""
    assert is_ready(project)


@pytest.fixture
def script(project):
    """bootstrap.py of the project as a module, with a finished environment that is not run."""
    spec = importlib.util.spec_from_file_location("bootstrap", project / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (project / ".venv/bin").mkdir(parents=True)
    (project / ".venv/bin/python").symlink_to(sys.executable)
    module.write_stamp(module.fingerprint())
    return module


def test_settings_of_a_linter_do_not_ask_for_a_set_up(script, project):
    (project / "pyproject.toml").write_text(PROJECT + "[tool.ruff]\nline-length = 100\n")
    assert script.is_current(script.fingerprint())


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("pyproject.toml", PROJECT.replace('version = "0"', 'version = "1"')),
        ("constraints.txt", "tiny==0\n"),
        (".venv/.setup-unfinished", ""),
        (".venv/.setup-stamp", '{"half'),
    ],
)
def test_what_asks_for_a_set_up(script, project, file, text):
    assert script.is_current(script.fingerprint())
    (project / file).write_text(text)
    assert not script.is_current(script.fingerprint())


def test_pages_ask_for_more_and_tests_keep_it(script):
    wanted = script.fingerprint()
    with_pages = dict(wanted, docs=True)
    assert not script.is_current(with_pages)
    script.write_stamp(with_pages)
    assert script.is_current(with_pages) and script.is_current(wanted)


def test_a_moved_environment_is_not_sound(script, project):
    stamp = json.loads((project / ".venv/.setup-stamp").read_text())
    assert stamp["place"] == str(project)
    (project / ".venv/.setup-stamp").write_text(json.dumps(stamp | {"place": "/elsewhere"}))
    assert not script.is_current(script.fingerprint())
    assert not script.is_sound(script.fingerprint())


def test_an_environment_without_pip_is_not_sound(script, project):
    shutil.rmtree(project / ".venv")
    venv.create(project / ".venv", symlinks=True)
    assert not script.is_sound(script.fingerprint())
    environment_with_our_pip(project)
    assert script.is_sound(script.fingerprint())


def test_a_vanished_interpreter_is_seen(script, project):
    (project / ".venv/bin/python").unlink()
    (project / ".venv/bin/python").symlink_to("/no/such/python")
    assert not script.is_current(script.fingerprint())


def test_other_failures_show_the_end_of_the_output(script, capsys):
    problem = script.failure("pip ended with status 1", "\n".join(map(str, range(100))))
    assert capsys.readouterr().err.splitlines() == [str(number) for number in range(85, 100)]
    assert "pip ended with status 1" in str(problem) and "rm -rf .venv" in str(problem)


def test_a_disk_that_refuses_gets_a_sentence(project):
    (project / ".venv").write_text("a file where the folder should go")
    assert_one_sentence(bootstrap(project), "could not write .venv", "run make again")
