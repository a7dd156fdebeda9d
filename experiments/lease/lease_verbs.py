"""The verbs of a rented machine: python -m experiments lease prepare | run | collect."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.lease import time_table
from experiments.lease.collect import collect, told
from experiments.lease.on_machine import Lease, device_tests
from experiments.lease.part_processes import Machine
from experiments.lease.prepare import FILES, Plan, described_request, tree_bytes, write
from experiments.lease.volumes import Limits
from experiments.part_verbs import wanted_parts
from experiments.parts import PARTS, Request, Store
from experiments.provenance import ROOT
from experiments.trainings import Training
from resid_theory.runtime import store

SCALES = ("single", "paper")
_MIB = 1 << 20


def open_requests(data: Sequence[str], parts: Path) -> list[Request]:
    """Trainings of claims that are not finished, the most wanted first."""
    done, found = Store(parts), {}
    for key, requests in wanted_parts([], SCALES).items():
        part, weights = requests[0].part, any(request.weights for request in requests)
        if isinstance(part, Training) and part.data in data and part.samples is None:
            if done.find(part, weights=weights) is None:
                found[key] = requests
    order = time_table.in_order(found, SCALES)
    return [max(found[part.key], key=lambda request: request.weights) for part in order]


def _prepare(options: argparse.Namespace) -> int:
    tree = tree_bytes() if options.tree_mib is None else int(options.tree_mib * _MIB)
    plan = Plan(
        folder=options.folder,
        requests=open_requests(options.data, options.parts),
        parts=options.parts,
        travel_bytes=int(options.travel_mib * _MIB) - tree,
        limits=Limits(
            files=options.files,
            file_bytes=int(options.file_mib * _MIB),
            total_bytes=int(options.total_mib * _MIB),
        ),
        seconds=60 * options.minutes,
        data=options.data,
        kept=options.folder.parent / "packed",
    )
    print(write(plan))
    lines = (options.folder / "time_table.txt").read_text(encoding="utf-8").splitlines()
    print(*lines[:20], *(["  ..."] if len(lines) > 21 else []), lines[-1], sep="\n")
    return 0


def _run(options: argparse.Namespace) -> int:
    content = store.read_json(max(options.home.glob("[0-9]*/lease.json")))
    lease = Lease(
        home=options.home,
        out=options.out,
        until=options.until,
        requests=[described_request(part) for part in content["parts"]],
        folders=content["folders"],
        limits=Limits(**content["limits"]),
        machine=Machine(
            parts=options.home / "parts", device=options.device, rehearsal=options.rehearse
        ),
        tests=device_tests() if options.device == "cuda" else (),
    )
    lease.run()
    return 0


def _collect(options: argparse.Namespace) -> int:
    """Merge, tell, and record the claims that ask for what is new, as far as their parts are."""
    found = collect(options.folder, options.parts)
    print(told(found.calls))
    print(f"{len(found.finished)} new parts, {len(found.unfinished)} to be resumed", flush=True)
    verbs = [sys.executable, "-m", "experiments"]
    for scale in SCALES:
        wanted = wanted_parts([], [scale])
        claims = sorted({r.claim for key in found.finished for r in wanted.get(key, ())})
        words = ["run", *claims, "--scale", scale, "--only-ready", "--parts", str(options.parts)]
        if claims and subprocess.run([*verbs, *words], cwd=ROOT).returncode:
            return 1
    return subprocess.run([*verbs, "report"], cwd=ROOT).returncode


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb ``lease`` with its own verbs."""
    inner = verbs.add_parser(
        "lease", help="compute parts on a machine that is rented by the minute"
    ).add_subparsers(required=True, metavar="verb")
    verb = inner.add_parser("prepare", help="write the folders to copy there, and the commands")
    verb.add_argument("--folder", type=Path, default=ROOT / "out" / "lease")
    verb.add_argument("--parts", type=Path, default=PARTS, help="folder of the parts")
    verb.add_argument("--data", nargs="+", choices=list(FILES), default=["cifar10"])
    verb.add_argument("--minutes", type=float, default=9.8, help="duration of the last call")
    verb.add_argument("--travel-mib", type=float, default=64, help="what travels in one call")
    verb.add_argument(
        "--tree-mib", type=float, help="part of it that the work tree takes; default: measured"
    )
    verb.add_argument("--files", type=int, default=8, help="number of files that come back")
    verb.add_argument("--file-mib", type=float, default=16, help="size of each")
    verb.add_argument("--total-mib", type=float, default=64, help="size of all")
    verb.set_defaults(call=_prepare)
    verb = inner.add_parser("run", help="there: check, test, train in order, and pack")
    verb.add_argument("home", type=Path, help="folder into which the numbered folders were copied")
    verb.add_argument("--out", type=Path, required=True, help="folder whose files come back")
    verb.add_argument("--until", type=float, required=True, help="end, in seconds since the epoch")
    verb.add_argument("--device", default="cuda")
    verb.add_argument("--rehearse", action="store_true", help="few steps in checks, no compiling")
    verb.set_defaults(call=_run)
    verb = inner.add_parser("collect", help="merge what came back, judge and record claims")
    verb.add_argument("folder", type=Path, help="with the files that came back, of all calls")
    verb.add_argument("--parts", type=Path, default=PARTS, help="folder of the parts")
    verb.set_defaults(call=_collect)
