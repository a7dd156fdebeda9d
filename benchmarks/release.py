"""Build sdist and wheel, and use the wheel in empty environments: what a user gets from an index.

    python -m benchmarks.release [python3.11 python3.12 ...] [--out dist]

Each interpreter gets a virtual environment of its own, into which pip installs the wheel with its
dependencies, under this checkout's constraints. There, in an empty folder, the README's first two
examples run, and the demo.
"""

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WANTED = ("README.md", "LICENSE", "pyproject.toml", "docs/index.md", "tests/conftest.py")  # sdist
EXAMPLES = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def build(out: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it; neither holds what it should not."""
    with tempfile.TemporaryDirectory() as folder:
        python = _environment(Path(folder), sys.executable)
        _run(python, "-m", "pip", "install", "-q", "build")
        _run(python, "-m", "build", "--outdir", str(out), str(ROOT))
    sdist, wheel = (max(out.glob(f"*{end}"), key=lambda p: p.stat().st_mtime)
                    for end in (".tar.gz", ".whl"))  # fmt: skip
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    lacking = set(WANTED) - held
    with zipfile.ZipFile(wheel) as archive:
        strangers = [n for n in archive.namelist() if not n.startswith("resid_theory")]
    if lacking or strangers:
        raise SystemExit(f"sdist lacks {sorted(lacking)}, wheel holds {strangers}")
    return sdist, wheel


def use(wheel: Path, interpreter: str) -> str:
    """Install the wheel for an interpreter and run the README there; versions of what was used."""
    with tempfile.TemporaryDirectory() as folder:
        python = _environment(Path(folder) / "venv", interpreter)
        _run(python, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel))
        empty = Path(folder) / "empty"
        empty.mkdir()
        examples = EXAMPLES.findall((ROOT / "README.md").read_text(encoding="utf-8"))
        _run(python, "-c", "".join(examples[:2]), cwd=empty)
        _run(str(Path(python).with_name("resid-theory")), "demo", "--out", "drawn", cwd=empty)
        if not list((empty / "drawn").glob("*.png")):
            raise SystemExit("the demo drew nothing")
        return _run(python, "-c", "import sys, torch, numpy, scipy; print('Python', sys.version"
                    ".split()[0], 'torch', torch.__version__, 'numpy', numpy.__version__, "
                    "'scipy', scipy.__version__)")  # fmt: skip


def _environment(folder: Path, interpreter: str) -> str:
    _run(interpreter, "-m", "venv", str(folder))
    return str(folder / "bin" / "python")


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip()


def main() -> None:
    """Build, then use with each interpreter."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("interpreters", nargs="*", default=[sys.executable])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    given = parser.parse_args()
    for file in (files := build(given.out)):
        print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB")
    for interpreter in given.interpreters:
        print(use(files[1], interpreter), flush=True)


if __name__ == "__main__":
    main()
