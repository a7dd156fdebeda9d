"""Set up .venv for `make demo`, `make test` and `make docs`; at once when nothing changed.

Standard library only, and in words that even Python 2.7 can parse: a Python that is too old
gets a sentence, not a SyntaxError. What can go wrong at a first set-up ends in one sentence.

Three files in .venv, all named .setup-*:
    .setup-lock        held while a set-up runs, by pip too, should pip outlive this script
    .setup-unfinished  there from before the first change until the last one succeeded
    .setup-stamp       what was set up: the installation tables, the interpreter, the place
"""

from __future__ import print_function

import hashlib
import json
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
OLDEST = (3, 11)
# What pip and urllib3 say when nothing answers; looked for only after pip failed.
NO_NETWORK = (
    "connection broken by",
    "Failed to connect",
    "Failed to establish a new connection",
    "name resolution",
    "Network is unreachable",
    "Read timed out",
)


class SetUpError(Exception):
    """What happened and what to do, in one sentence."""


def main(arguments):
    """Set up .venv (--docs: for the pages, too), or look at this interpreter only (--no-venv)."""
    try:
        demand_python()
        if "--no-venv" in arguments:
            demand_modules(for_tests="--tests" in arguments, for_docs="--docs" in arguments)
        else:
            set_up(for_docs="--docs" in arguments)
    except SetUpError as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Set-up was interrupted; the next make starts it again.", file=sys.stderr)
        return 130
    except EnvironmentError as problem:
        print(
            "Set-up could not write .venv ({}): make room or mend the permissions, then run make "
            "again.".format(problem),
            file=sys.stderr,
        )
        return 1
    return 0


def demand_python():
    """Turn away a Python that is too old."""
    if tuple(sys.version_info[:2]) < OLDEST:
        raise SetUpError(
            "resid_theory needs Python 3.11 or newer and {} is {}.{}: name a newer one, as in "
            "`make demo PYTHON=python3.11`.".format(sys.executable, *sys.version_info[:2])
        )


def demand_modules(for_tests, for_docs=False):
    """Turn away an interpreter that lacks a dependency; nothing is imported to find out."""
    from importlib.util import find_spec

    needed = [name.split(".")[0] for name in settings()["imports"]] + ["pytest"] * for_tests
    needed += settings()["docs"]["imports"] if for_docs else []
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise SetUpError(
            "NOVENV=1 uses {} as it is, and it cannot import {}: install what is missing there, or "
            "leave out NOVENV=1 so that make sets up .venv.".format(
                sys.executable, ", ".join(missing)
            )
        )


def set_up(for_docs=False):
    """Bring .venv in line with pyproject.toml and constraints.txt."""
    wanted = fingerprint()
    if for_docs:
        wanted["docs"] = True
    if is_current(wanted):
        return
    demand_venv()
    if not os.path.isdir(in_venv()):
        os.mkdir(in_venv())
    with open(in_venv(".setup-lock"), "a") as lock:
        take(lock)
        if not is_current(wanted):  # or another set-up has just ended
            build(wanted, lock)


def build(wanted, lock):
    """Install in place if .venv is sound, from nothing if it is not, and stamp it at the end."""
    unfinished = in_venv(".setup-unfinished")
    fresh = not is_sound(wanted)
    open(unfinished, "a").close()
    if fresh:
        create(lock)
    install(wanted, lock)
    problem = import_problem(wanted)
    if problem and not fresh:  # packages were damaged before we came, where pip does not look
        create(lock)
        install(wanted, lock)
        problem = import_problem(wanted)
    if problem:
        raise failure("what it installed does not import", problem)
    os.remove(unfinished)
    write_stamp(wanted)


def demand_venv():
    """Turn away a Python without venv; Debian ships ensurepip apart, and venv needs it."""
    from importlib.util import find_spec

    if not (find_spec("venv") and find_spec("ensurepip")):
        raise SetUpError(
            "{} cannot make virtual environments: `apt install python3-venv` (on Debian or "
            "Ubuntu), name another Python, as in `make demo PYTHON=python3.11`, or use this one as "
            "it is with NOVENV=1.".format(sys.executable)
        )


def create(lock):
    """Make .venv anew; the .setup-* files stay, so that a kill in here leaves its mark."""
    stamp = in_venv(".setup-stamp")
    if os.path.exists(stamp):
        os.remove(stamp)
    for name in os.listdir(in_venv()):
        path = in_venv(name)
        if name.startswith(".setup-"):
            continue
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.remove(path)
    print("Making .venv with {}.".format(sys.executable), flush=True)
    # The base interpreter: ours may be the one in .venv that was just removed.
    base = getattr(sys, "_base_executable", None) or sys.executable
    status, output = follow([base, "-m", "venv", in_venv()], lock)
    if status:
        raise failure("venv ended with status {}".format(status), output)


def install(wanted, lock):
    """One pip call; it touches nothing before it says `Installing collected packages`."""
    print("Installing the dependencies: minutes the first time, and only then.", flush=True)
    target = settings()["docs"]["install"] if "docs" in wanted else settings()["install"]
    command = [python(), "-m", "pip", "install", "--progress-bar", "off"]
    if os.path.exists(os.path.join(ROOT, "constraints.txt")):
        command += ["-c", "constraints.txt"]
    status, output = follow(command + ["-e", target], lock)
    if not status:
        return
    untouched = status > 0 and "Installing collected packages" not in output
    if untouched:
        os.remove(in_venv(".setup-unfinished"))
    if untouched and any(sign in output for sign in NO_NETWORK):
        raise SetUpError(
            "pip could not reach a package index: connect to the network, or point PIP_INDEX_URL "
            "at a mirror, and run make again, or use the current interpreter with NOVENV=1."
        )
    raise failure("pip ended with status {}".format(status), output)


def import_problem(wanted):
    """Import every dependency as a user would, away from the checkout; the error, or nothing.

    The project itself is only looked for: a mistake in its code is no fault of .venv.
    """
    code = (
        "import importlib, importlib.util as util\n"
        "for name in {!r}: importlib.import_module(name)\n"
        "assert util.find_spec({!r}), 'the project itself was not found'"
    ).format(
        settings()["imports"]
        + settings()["tools"]
        + (settings()["docs"]["imports"] if "docs" in wanted else []),
        tables()["project"]["name"].replace("-", "_"),
    )
    status, output = follow([python(), "-I", "-c", code])
    if status:
        return output or "status {}".format(status)
    return ""


def follow(command, lock=None):
    """Run a command from the root; its status and output. Its slow steps are announced.

    The lock goes along, so that a pip that outlives a killed set-up still holds it.
    """
    environment = dict(os.environ, PIP_USER="0", PYTHONUNBUFFERED="1")
    for name in ("PYTHONHOME", "PYTHONPATH", "PIP_TARGET", "PIP_PREFIX"):
        environment.pop(name, None)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[lock.fileno()] if lock else [],
        encoding="utf-8",
        errors="replace",
    )
    lines = []
    with process:
        for line in process.stdout:
            lines.append(line)
            if line.lstrip().startswith("Downloading") and " MB)" in line:
                print("  " + line.strip(), flush=True)
            elif line.startswith("Installing collected packages"):
                print("  Unpacking them.", flush=True)
    return process.returncode, "".join(lines)


def failure(what, output):
    """The last lines of an output on stderr, and the error to raise after them."""
    print("\n".join(output.rstrip().splitlines()[-15:]), file=sys.stderr)
    return SetUpError(
        "Set-up of .venv failed, {}: see the lines above; `rm -rf .venv` starts over, and NOVENV=1 "
        "uses the current interpreter instead.".format(what)
    )


def is_current(wanted):
    """Whether .venv is finished and is what the checkout asks for."""
    stamp = read_stamp()
    if "docs" not in wanted:
        stamp.pop("docs", None)  # more than is asked for does no harm
    return (
        not os.path.exists(in_venv(".setup-unfinished"))
        and stamp == wanted
        and os.path.exists(python())  # not, if the interpreter behind the link went away
    )


def is_sound(wanted):
    """Whether pip can install in place: never cut short, not moved, our Python, and pip runs."""
    if os.path.exists(in_venv(".setup-unfinished")) or not os.path.exists(python()):
        return False
    if read_stamp().get("place", wanted["place"]) != wanted["place"]:
        return False  # its scripts begin with the path of another checkout
    code = "import pip._internal.cli.main, sys; print(sys.implementation.cache_tag)"
    status, output = follow([python(), "-I", "-c", code])
    return status == 0 and output.strip() == wanted["python"]


def fingerprint():
    """What decides the contents of .venv. Settings of ruff, mypy and pytest do not."""
    kept = {name: tables().get(name) for name in ("build-system", "project")}
    digest = hashlib.sha256(json.dumps([kept, settings()], sort_keys=True).encode())
    constraints = os.path.join(ROOT, "constraints.txt")
    if os.path.exists(constraints):
        with open(constraints, "rb") as file:
            digest.update(file.read())
    return {
        "digest": digest.hexdigest(),
        "place": os.path.realpath(ROOT),
        "python": sys.implementation.cache_tag,
    }


def tables():
    """The tables of pyproject.toml."""
    import tomllib  # not there before Python 3.11

    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        return tomllib.load(file)


def settings():
    """The table [tool.bootstrap]: install, imports, tools."""
    return tables()["tool"]["bootstrap"]


def read_stamp():
    """What .venv was last set up for; empty if unknown."""
    try:
        with open(in_venv(".setup-stamp")) as file:
            stamp = json.load(file)
    except (EnvironmentError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(wanted):
    """Write the stamp in one step, so that a kill leaves the old one or the new one."""
    with open(in_venv(".setup-stamp.new"), "w") as file:
        json.dump(wanted, file)
    os.replace(in_venv(".setup-stamp.new"), in_venv(".setup-stamp"))


def take(lock):
    """Lock the file, waiting for its holder; the lock ends with the processes that hold it."""
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another set-up of .venv is running: waiting for it.", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def python():
    """The interpreter in .venv."""
    return in_venv("bin", "python")


def in_venv(*names):
    """A path in .venv."""
    return os.path.join(ROOT, ".venv", *names)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
