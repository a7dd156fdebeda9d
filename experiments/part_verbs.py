"""The verbs of parts: python -m experiments parts list | run | pack | merge | confirm | ship."""

import argparse
import math
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from experiments.adoption import adopt, is_training
from experiments.archives import merge, pack
from experiments.claim import SCALES
from experiments.confirmation import confirm
from experiments.lease import time_table
from experiments.lease.part_processes import Machine, PartQueue, prepare_processes
from experiments.parts import PARTS, BusyError, Execution, Request, StoppedError, Store, requests_of
from experiments.registry import select
from experiments.shipped import NETS, ship
from experiments.trainings import FULL_EPOCHS, Training
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
    """Whether to stop: after some minutes, or at a signal inside its context; use as ``stop``."""

    def __init__(self, minutes: float | None) -> None:
        self.until = math.inf if minutes is None else time.time() + 60 * minutes
        self.asked = False

    def __call__(self, _: int = 0) -> bool:
        return self.asked or time.time() >= self.until

    def __enter__(self) -> "Ending":
        def ask(number: int, _: object) -> None:
            self.asked = True
            signal.signal(number, signal.SIG_DFL)  # a second one ends the process

        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, ask) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _list(options: argparse.Namespace) -> int:
    own = Store(options.parts)
    for key, requests in wanted_parts(options.claims, options.scale or SCALES[1:]).items():
        part, claims = requests[0].part, dict.fromkeys(f"{r.claim} ({r.scale})" for r in requests)
        done, where = own.find(part), "open"
        if done is not None:
            where = f"done on {done.record.get('hardware')}, {done.age(part)}"
        cost = ""
        if isinstance(part, Training):
            [row] = time_table.time_table([part])
            cost = f", {row.seconds:.0f} s on an H100 (counted)"
        print(f"{key[:12]} {where}: {time_table.label(part)}{cost}\n    {', '.join(claims)}")
    return 0


def _run(options: argparse.Namespace) -> int:
    own = Store(options.parts)
    wanted = wanted_parts(options.claims, [options.scale])
    # With weights if one of the claims asks for them.
    chosen = [max(requests, key=lambda request: request.weights) for requests in wanted.values()]
    if options.key:
        chosen = [request for request in chosen if request.part.key.startswith(options.key)]
    for claim in select([request.claim for request in chosen]) if chosen else ():
        if lacking := claim.missing(options.scale):
            print(f"{claim.id} ({options.scale}): skipped, {lacking}")
            chosen = [request for request in chosen if request.claim != claim.id]
    missing = [r for r in chosen if own.find(r.part, weights=r.weights) is None]
    print(f"{len(chosen)} parts, {len(chosen) - len(missing)} of them done", flush=True)
    run = _here if check_int("workers", options.workers) == 1 else _in_processes
    with Ending(options.minutes) as ending:
        return int(not run(missing, options, own, ending))


def _here(
    missing: Sequence[Request], options: argparse.Namespace, own: Store, ending: Ending
) -> bool:
    """Compute parts in this process; False if one fails, which does not stop the others."""
    execution, whole = Execution(device=options.device, stop=ending), True
    for number, request in enumerate(missing):
        if ending():
            print(f"{len(missing) - number} parts not begun")
            break
        print(f"{request.part.key[:12]} {request.part.cell}", flush=True)
        try:
            own.compute(request.part, execution)
        except (BusyError, StoppedError) as reason:
            print(reason, flush=True)
        except Exception as error:
            own.fail(request.part, error)
            traceback.print_exc()
            whole = False
    return whole


def _in_processes(
    missing: Sequence[Request], options: argparse.Namespace, own: Store, ending: Ending
) -> bool:
    """Compute each part in a process of its own, some at a time; False if one fails."""
    options.parts.mkdir(parents=True, exist_ok=True)
    prepare_processes()
    queue = PartQueue(
        requests=missing,
        machine=Machine(parts=options.parts, device=options.device),
        until=ending.until,
        slots=options.workers,
        seconds=lambda request: 0.0,
        how=lambda request: {},
        plain={},
        stopped=ending,
    )
    queue.run()
    return not any(attempt.outcome == "failed" for attempt in queue.attempts)


def _pack(options: argparse.Namespace) -> int:
    wanted = wanted_parts(options.claims, options.scale or SCALES)
    asked = [request for requests in wanted.values() for request in requests]
    if options.bare:
        asked = [replace(request, weights=False) for request in asked]
    done = pack(asked, options.target, Store(options.parts))
    print(f"packed {len(done.keys)} parts into {options.target}")
    if done.without_weights:
        print(f"without the weights that a claim asks for: {', '.join(done.without_weights)}")
    return 0


def _merge(options: argparse.Namespace) -> int:
    own = Store(options.parts)
    for source in options.sources:
        if is_training(source):
            told = {n: v for n in ("commit", "hardware") if (v := getattr(options, n)) is not None}
            part = adopt(source, _trainings(), own, told)
            print(f"{source}: is {part.key[:12]} {part.cell}")
        else:
            found = merge(source, own, replace=options.replace)
            print(f"{source}: {len(found.new)} new parts, {len(found.known)} known")
    return 0


def _trainings() -> list[Training]:
    """Every training that a claim asks for."""
    parts = [requests[0].part for requests in wanted_parts([], SCALES).values()]
    return [part for part in parts if isinstance(part, Training)]


def _confirm(options: argparse.Namespace) -> int:
    """Confirm finished trainings of older code whose keys begin so."""
    own, wrong = Store(options.parts), 0
    for part in _trainings():
        done = own.find(part) if part.key.startswith(options.key) else None
        if done is None or done.age(part) != "older code":
            continue
        found = confirm(part, own, options.device)
        words = found.gap or ("equal to the last bit" if found.exact else "within bounds")
        print(f"{part.key[:12]} {part.cell}: {found.steps} steps, {words}", flush=True)
        wrong += bool(found.gap)
    return int(wrong > 0)


def _ship(options: argparse.Namespace) -> int:
    print(ship(options.name, options.epochs, Store(options.parts)))
    return 0


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb ``parts`` with its own verbs."""
    parser = verbs.add_parser("parts", help="compute, carry and confirm the parts of claims")
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
    made.add_argument("--bare", action="store_true", help="without weights")
    made = verb("merge", "add the parts of folders, archives or trainings by rt.train", _merge)
    made.add_argument("sources", type=Path, nargs="+")
    made.add_argument("--replace", action="store_true", help="also where another result is there")
    made.add_argument("--commit", help="of the code, which a folder of rt.train does not tell")
    made.add_argument("--hardware", help="likewise")
    made = verb("confirm", "replay the first steps of trainings by older code", _confirm)
    made.add_argument("key", help="key of a part, or its beginning")
    made.add_argument("--device", default="cpu")
    made = verb("ship", "keep a trained net with its name in experiments/checkpoints", _ship)
    made.add_argument("name", choices=list(NETS))
    made.add_argument("--epochs", type=int, default=FULL_EPOCHS)
