"""Folders that travel to a machine: code, data and unfinished parts, with the commands to run."""

import gzip
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.lease import time_table
from experiments.lease.carried import sealed
from experiments.lease.on_machine import PACKED
from experiments.lease.packed_images import pack_images, unpack_images
from experiments.lease.volumes import Limits, write_volumes
from experiments.parts import Request
from experiments.provenance import ROOT, commit_of_code
from experiments.trainings import Training
from resid_theory._check import check_choice
from resid_theory.data.download import search_folders
from resid_theory.runtime import store
from resid_theory.training import Recipe

# Files of a data set, by the folder below its data folder in which they are looked for.
FILES: Mapping[str, Sequence[str]] = {
    "digits": (),  # scikit-learn has them
    "cifar10": [f"cifar-10-batches-bin/{name}.bin" for name in (
        "data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5",
        "test_batch",
    )],
    "mnist": [f"mnist/{kind}-{what}.gz" for kind in ("train", "t10k")
              for what in ("images-idx3-ubyte", "labels-idx1-ubyte")],
}  # fmt: skip
# What is needed there; records and shipped nets are not, and are most of the bytes.
CODE = ["resid_theory", "experiments", "tests", "conftest.py", "pyproject.toml",
        ":!experiments/records", ":!experiments/checkpoints"]  # fmt: skip
MOST = 100  # parts that travel as settings; far more than a machine can do in its time
CALL = """# bash call.sh SECONDS [options of lease run]: the call with this folder, {number} of {count}.
set -eu
until=$(($(date +%s) + ${{1:?SECONDS}} - 10)); shift; here=$(cd "$(dirname "$0")" && pwd)
home=${{LEASE:-/tmp/resid_theory_lease}}; OUT=${{OUT:-$home/out}}
for k in {earlier}; do
  [ -d "$home/$k" ] || {{ echo "folder $k is not on this machine: begin with call 1"; exit 9; }}
done
mkdir -p "$home" "$OUT"
[ -d "$home/{number}" ] || {{ cp -r "$here" "$home/.new" && mv "$home/.new" "$home/{number}"; }}
[ -d "$home/code" ] || {{ mkdir "$home/.code"; tar -xzf "$here/code.tgz" -C "$home/.code"; mv "$home/.code" "$home/code"; }}
cd "$home/code"
export PYTHONPATH=$PWD RESID_THEORY_COMMIT={commit} RESID_THEORY_DATA=$home/data
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=2
exec "${{PYTHON:-python3}}" -m experiments lease run "$home" --out "$OUT" --until "$until" "$@"
"""  # noqa: E501


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is prepared.

    Attributes:
        folder: Where the numbered folders and the commands are written.
        requests: Open parts, the most wanted first.
        parts: Folder of the parts, whose unfinished ones travel.
        travel_bytes: Bytes of a folder that travel in one call.
        limits: What comes back.
        seconds: Duration of the last call, in which parts are computed.
        data: Names of data sets.
        kept: Folder that keeps packed batches for the next time.
    """

    folder: Path
    requests: Sequence[Request]
    parts: Path
    travel_bytes: int
    limits: Limits
    seconds: float
    data: Sequence[str]
    kept: Path


def tree_bytes(root: Path = ROOT) -> int:
    """Bytes of the files of a work tree that git does not ignore."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(words, cwd=root, capture_output=True, check=True).stdout.split(b"\0")
    paths = [root / name.decode() for name in names if name]
    return sum(path.stat().st_size for path in paths if path.is_file())


def write(plan: Plan) -> str:
    """Write the folders, the commands and the time table; the commands, as text."""
    commit, dirty = commit_of_code()
    if commit is None or dirty:
        raise ValueError(
            "commit: the work tree has changes or no git; commit first, so that the parts can name "
            "the code that computed them"
        )
    code = _code(commit)
    for name in plan.data:
        check_choice("data", name, list(FILES))
    files = {
        f"data/{name}{PACKED if name.endswith('.bin') else ''}": _packed(name, plan.kept)
        for data in plan.data
        for name in FILES[data]
    }
    room = plan.travel_bytes - len(code) - (256 << 10)  # scripts and lists beside it
    folders = distributed(files, room)
    shutil.rmtree(plan.folder, ignore_errors=True)
    for number, names in enumerate(folders, 1):
        place = plan.folder / str(number)
        for name in names:
            store.write_bytes(place / name, files[name])
        store.write_bytes(place / "code.tgz", code)
        free = room - sum(len(files[name]) for name in names)
        _unfinished(plan, place, free, number, len(folders))
        described = [description(request) for request in plan.requests[:MOST]]
        content = {"folders": len(folders), "parts": described, "limits": vars(plan.limits)}
        store.write_json(place / "lease.json", content)
        words = CALL.format(
            number=number,
            count=len(folders),
            commit=commit,
            earlier=" ".join(map(str, range(1, number))),
        )
        store.write_bytes(place / "call.sh", words.encode())
    table = time_table.printed(
        time_table.time_table([request.part for request in plan.requests]), plan.seconds
    )
    store.write_bytes(plan.folder / "time_table.txt", (table + "\n").encode())
    commands = _commands(plan, len(folders))
    store.write_bytes(plan.folder / "commands.txt", commands.encode())
    return commands


def description(request: Request) -> dict[str, Any]:
    """A request as a file holds it, so that the machine need not ask every claim."""
    return {**vars(request), "part": asdict(request.part)}


def described_request(content: Mapping[str, Any]) -> Request:
    """The request of a description."""
    settings = dict(content["part"])
    return Request(
        **{**content, "part": Training(**{**settings, "recipe": Recipe(**settings["recipe"])})}
    )


def _code(commit: str) -> bytes:
    words = ["git", "archive", "--format=tar", commit, "--", *CODE]
    tar = subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout
    return gzip.compress(tar, mtime=0)


def _packed(name: str, kept: Path) -> bytes:
    """Bytes of an official file, packed if it is a batch of CIFAR-10."""
    data_set = "mnist" if name.startswith("mnist/") else "cifar10"
    places = [folder / name.removeprefix("mnist/") for folder in search_folders(data_set)]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{name}: is in none of {[str(place) for place in places]}")
    content = path.read_bytes()
    if path.suffix != ".bin":
        return content
    packed = kept / f"{store.digest(content)[:16]}{PACKED}"
    with suppress(FileNotFoundError, ValueError):
        if unpack_images(packed.read_bytes()) == content:
            return packed.read_bytes()
    store.write_bytes(packed, pack_images(content))
    return packed.read_bytes()


def distributed(files: Mapping[str, bytes], room: int) -> list[list[str]]:
    """Names by folder, in order, so that each folder has room for its files."""
    folders: list[list[str]] = [[]]
    free = room
    for name, data in files.items():
        if len(data) > room:
            raise ValueError(
                f"travel: {name} has {len(data)} bytes, more than the {room} of a call"
            )
        if len(data) > free:
            folders.append([])
            free = room
        folders[-1].append(name)
        free -= len(data)
    return folders


def _unfinished(plan: Plan, place: Path, free: int, number: int, count: int) -> None:
    """Add checkpoints of unfinished parts to the last folder, as far as there is room."""
    groups = {}
    for request in plan.requests if number == count else ():
        files = sealed(plan.parts / "cells" / request.part.key, "training/checkpoint")
        if files:
            groups[request.part.key] = files
    if groups:
        limits = Limits(files=2, file_bytes=max(1, free), total_bytes=max(1, free))
        write_volumes(groups, place, limits)


def _commands(plan: Plan, count: int) -> str:
    lines = [
        "Make these calls one after the other without a pause: an idle machine goes back.",
        "Each ends by itself and brings back files named volume-*; keep them all below one folder.",
        "A call on a machine that lacks an earlier folder ends at once, with status 9.",
    ]
    for number in range(1, count + 1):
        place = plan.folder / str(number)
        shown = place.relative_to(ROOT) if place.is_relative_to(ROOT) else place
        size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        limit = plan.seconds if number == count else 120 if number == 1 else 60
        lines += [
            "",
            f"call {number} of {count}, at most {limit:.0f} s; copies {shown} "
            f"({size / 2**20:.1f} MiB)",
            f"    bash {shown}/call.sh {limit:.0f}",
        ]
    lines += [
        "",
        "As long as time is left, the last call again: it goes on. Then, here:",
        "    python -m experiments lease collect FOLDER",
        "",
    ]
    return "\n".join(lines)
