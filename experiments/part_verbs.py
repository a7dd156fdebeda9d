"""The verbs of parts: python -m experiments parts list | run | pack | merge."""

import argparse
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from experiments.archives import merge, pack
from experiments.claim import SCALES
from experiments.parts import PARTS, Execution, Request, StoppedError, Store, requests_of
from experiments.provenance import ROOT
from experiments.registry import select
from resid_theory._check import check_int

Wanted = Mapping[str, list[Request]]


def wanted_parts(claims: Sequence[str], scales: Iterable[str]) -> Wanted:
    """Requests of claims by the key of the part; claims by ids or prefixes, scales by name."""
    found: dict[str, list[Request]] = {}
    for claim in select(claims):
        for scale in scales:
            if scale in claim.settings:
                for request in requests_of(claim, scale):
                    found.setdefault(request.part.key, []).append(request)
    return found


class Ending:
    """Whether to stop: after some minutes, or at SIGINT or SIGTERM; use as ``stop``."""

    def __init__(self, minutes: float | None) -> None:
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.asked = False

    def __call__(self, _: int = 0) -> bool:
        return self.asked or (self.deadline is not None and time.monotonic() >= self.deadline)

    def listen(self) -> None:
        """Take signals as requests to stop; a second one ends the process as usual."""

        def ask(number: int, _: object) -> None:
            self.asked = True
            signal.signal(number, signal.SIG_DFL)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, ask)


def run_part(request: Request, own: Store, execution: Execution) -> bool:
    """Compute a part unless it is there; False if it failed. A stopped one can be resumed."""
    if own.find(request.part, weights=request.weights) is not None:
        return True
    try:
        own.compute(request.part, execution)
    except StoppedError as stopped:
        print(stopped, flush=True)
    except Exception as error:
        own.fail(request.part, error)
        traceback.print_exc()
        return False
    return True


def _list(options: argparse.Namespace) -> int:
    own = Store(options.parts)
    for key, requests in wanted_parts(options.claims, options.scale or SCALES[1:]).items():
        part, claims = requests[0].part, dict.fromkeys(f"{r.claim} ({r.scale})" for r in requests)
        done = own.find(part)
        where = "open" if done is None else f"done on {done.record.get('hardware')}"
        print(f"{key[:12]} {where:32} {part.cell}\n    {', '.join(claims)}")
    return 0


def _run(options: argparse.Namespace) -> int:
    own, ending = Store(options.parts), Ending(options.minutes)
    ending.listen()
    wanted = wanted_parts(options.claims, [options.scale])
    # With weights if one of the claims asks for them.
    chosen = [max(requests, key=lambda request: request.weights) for requests in wanted.values()]
    if options.key:
        chosen = [request for request in chosen if request.part.key.startswith(options.key)]
    missing = [r for r in chosen if own.find(r.part, weights=r.weights) is None]
    print(f"{len(chosen)} parts, {len(chosen) - len(missing)} of them done", flush=True)
    if check_int("workers", options.workers) == 1:
        execution = Execution(device=options.device, stop=ending)
        failed = 0
        for number, request in enumerate(missing):
            if ending():
                print(f"{len(missing) - number} parts not begun")
                break
            print(f"{request.part.key[:12]} {request.part.cell}", flush=True)
            failed += not run_part(request, own, execution)
    else:
        failed = _in_processes(missing, options, ending)
    return int(failed > 0)


def command_of(request: Request, options: argparse.Namespace, ending: Ending) -> list[str]:
    """The command that computes one part in a process of its own."""
    words = [sys.executable, "-m", "experiments", "parts", "--parts", str(options.parts), "run"]
    words += [request.claim, "--scale", request.scale, "--key", request.part.key]
    words += ["--device", options.device]
    if ending.deadline is not None:
        words += ["--minutes", str(max(ending.deadline - time.monotonic(), 0) / 60)]
    return words


def _in_processes(missing: Sequence[Request], options: argparse.Namespace, ending: Ending) -> int:
    """Run each part in a process of its own, some at a time; the number of those that failed."""
    waiting, failed = list(missing), 0
    running: dict[Request, subprocess.Popen[bytes]] = {}
    while running or (waiting and not ending()):
        while waiting and len(running) < options.workers and not ending():
            request = waiting.pop(0)
            running[request] = subprocess.Popen(command_of(request, options, ending), cwd=ROOT)
        time.sleep(0.05)
        for request, process in list(running.items()):
            if ending.asked:
                process.terminate()  # it saves; one that has ended takes no signal
            if process.poll() is not None:
                del running[request]
                failed += process.returncode != 0
                how = "failed" if process.returncode else "ended"
                print(f"{request.part.key[:12]} {how}; {len(waiting)} wait", flush=True)
    return failed


def _pack(options: argparse.Namespace) -> int:
    wanted = wanted_parts(options.claims, options.scale or SCALES)
    done = pack([r for requests in wanted.values() for r in requests], options.target,
                Store(options.parts))  # fmt: skip
    print(f"packed {len(done)} parts into {options.target}")
    return 0


def _merge(options: argparse.Namespace) -> int:
    for source in options.sources:
        found = merge(source, Store(options.parts), replace=options.replace)
        print(f"{source}: {len(found.new)} new parts, {len(found.known)} known")
    return 0


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb ``parts`` with its own verbs."""
    parser = verbs.add_parser("parts", help="list, run, pack and merge the parts of claims")
    parser.add_argument("--parts", type=Path, default=PARTS, help="folder of the parts")
    inner = parser.add_subparsers(required=True, metavar="verb")

    def verb(
        name: str, words: str, call: Callable[[argparse.Namespace], int]
    ) -> argparse.ArgumentParser:
        made = inner.add_parser(name, help=words)
        made.set_defaults(call=call)
        return made

    def claims(made: argparse.ArgumentParser) -> None:
        made.add_argument("claims", nargs="*", help="ids or prefixes of ids; default: all")

    made = verb("list", "list the parts of claims", _list)
    claims(made)
    made.add_argument("--scale", choices=SCALES, action="append")
    made = verb("run", "compute missing parts", _run)
    claims(made)
    made.add_argument("--scale", choices=SCALES, default="single")
    made.add_argument("--key", help="only the part of this key, or of keys that begin so")
    made.add_argument("--workers", type=int, default=1, help="number of processes at a time")
    made.add_argument("--device", default="cpu")
    made.add_argument("--minutes", type=float, help="stop and save after this many minutes")
    made = verb("pack", "copy finished parts into a folder or archive", _pack)
    made.add_argument("target", type=Path)
    claims(made)
    made.add_argument("--scale", choices=SCALES, action="append")
    made = verb("merge", "add the parts of folders or archives", _merge)
    made.add_argument("sources", type=Path, nargs="+")
    made.add_argument("--replace", action="store_true", help="also where another result is there")
