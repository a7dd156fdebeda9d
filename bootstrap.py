"""Set up .venv for `make demo`, `make test` and `make docs`; at once when nothing changed.

Standard library only, and Python 3.6 can parse it: an old Python gets a sentence, no SyntaxError.
A stamp in .venv says what was installed. It is empty while pip runs: a set-up that was killed
starts over from nothing, because pip does not see its own half-written packages.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.realpath(__file__))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, ".setup-stamp")
EXTRAS = {"--tests": ["dev", "sweep"], "--docs": ["dev", "docs"]}


def main(arguments):
    """Set up .venv, with what tests or pages need, or look at this interpreter (--no-venv)."""
    if sys.version_info[:2] < (3, 11):
        sys.exit(
            "resid_theory needs Python 3.11 or newer and {} is {}.{}: name a newer one, as in "
            "`make demo PYTHON=python3.11`.".format(sys.executable, *sys.version_info[:2])
        )
    try:
        if "--no-venv" in arguments:
            demand_packages(arguments)
        else:
            set_up({extra for name in arguments for extra in EXTRAS[name]})
    except KeyboardInterrupt:
        sys.exit("Set-up was interrupted; the next make starts it again.")
    except OSError as problem:
        sys.exit(f"Set-up could not write .venv ({problem}): make room or mend the permissions.")


def demand_packages(arguments):
    """Turn away an interpreter that lacks a package; nothing is imported to find out."""
    from importlib.metadata import PackageNotFoundError, version

    needed = project()["dependencies"] + ["pytest"] * ("--tests" in arguments)
    needed += project()["optional-dependencies"]["docs"] if "--docs" in arguments else []
    missing = []
    for name in (re.match(r"[\w.-]+", requirement).group() for requirement in needed):
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        sys.exit(
            f"NOVENV=1 uses {sys.executable} as it is, and it lacks {', '.join(missing)}: install "
            "what is missing there, or leave out NOVENV=1 so that make sets up .venv."
        )


def set_up(extras):
    """Bring .venv in line with pyproject.toml and constraints.txt, one set-up at a time."""
    with open(os.path.join(ROOT, "constraints.txt")) as file:
        content = json.dumps([project(), file.read()], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    wanted = {"place": ROOT, "python": sys.implementation.cache_tag, "digest": digest}
    if is_current(wanted, extras):
        return
    with open(os.path.join(ROOT, "bootstrap.py"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another set-up of .venv is running: waiting for it.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_current(wanted, extras):
            install(wanted, extras, lock)


def install(wanted, extras, lock):
    """Install in place if .venv is finished, of this Python and not moved; else from nothing."""
    before = read_stamp()
    if not os.path.exists(PYTHON) or any(before.get(k) != wanted[k] for k in ("place", "python")):
        print(f"Making .venv with {sys.executable}.", flush=True)
        before = {}
        if os.path.exists(VENV):
            shutil.rmtree(VENV)
        # The base interpreter: ours may be the one in .venv that was just removed.
        run([getattr(sys, "_base_executable", sys.executable), "-m", "venv", VENV], lock)
        # The pip that Python brings along takes up to twice as long for the rest.
        run([PYTHON, "-m", "pip", "install", "--quiet", "--upgrade", "pip"], lock)
    write_stamp({})
    extras = sorted(extras.union(before.get("extras", ())))  # what is there may stay
    print("Installing the dependencies: minutes the first time, and only then.", flush=True)
    # Python compiles what it imports, a fifth of all modules.
    command = [PYTHON, "-m", "pip", "install", "--quiet", "--no-compile"]
    command += ["-c", "constraints.txt", "-e"]
    try:
        run([*command, f".[{','.join(extras)}]" if extras else "."], lock)
    except SystemExit:
        write_stamp(before)  # pip has put back what it changed
        raise
    write_stamp(dict(wanted, extras=extras))


def run(command, lock):
    """Run a command in the root, where it shows its messages, whatever a user's settings."""
    apart = ("PYTHONHOME", "PYTHONPATH", "PIP_PREFIX", "PIP_TARGET", "PIP_USER")
    environment = {name: value for name, value in os.environ.items() if name not in apart}
    # The lock goes along: a pip that outlives a killed set-up still holds it.
    done = subprocess.run(command, cwd=ROOT, env=environment, pass_fds=[lock.fileno()])
    if done.returncode:
        sys.exit(
            f"Set-up of .venv failed: {command[2]} ended with status {done.returncode}, see above. "
            "Without a network, point PIP_INDEX_URL at a mirror, or use the current interpreter "
            "with NOVENV=1; `rm -rf .venv` starts over."
        )


def is_current(wanted, extras):
    """Whether .venv holds what the checkout asks for, and the interpreter behind it is there."""
    stamp = read_stamp()
    there = extras.issubset(stamp.pop("extras", ()))
    return there and stamp == wanted and os.path.exists(PYTHON)


def project():
    """The table [project] of pyproject.toml: settings of ruff, mypy and pytest install nothing."""
    import tomllib  # not there before Python 3.11

    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        return tomllib.load(file)["project"]


def read_stamp():
    """What .venv was last set up for; empty if unknown."""
    try:
        with open(STAMP) as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def write_stamp(stamp):
    """Say what .venv is set up for."""
    with open(STAMP, "w") as file:
        json.dump(stamp, file)


if __name__ == "__main__":
    main(sys.argv[1:])
