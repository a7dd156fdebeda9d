"""Records and parts computed once more: a random sample within a budget of time."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.confirmation import STEPS, replay
from experiments.criteria import Criterion
from experiments.lease.time_table import steps
from experiments.manifest import record_files
from experiments.parts import (
    Execution,
    Finished,
    Part,
    Request,
    Store,
    float32_by_default,
    requests_of,
)
from experiments.records import Record, load, measure
from experiments.trainings import Fit, Training
from resid_theory.runtime import store
from resid_theory.runtime.preserve import deterministic

# Largest gap of arrays, relative to their largest entry and to 1. Bits depend on the processor, on
# libraries and on each one's threads (MKL_NUM_THREADS, OMP_NUM_THREADS). Where training amplifies
# round-off beyond it, all criteria must come out alike and the intervals of every test must have a
# number in common, or, without intervals, its estimates agree to a tenth.
BOUND = 1e-6
ESTIMATE_BOUND = 0.1
LOSS_BOUND = 1e-3  # relative, of the loss that a net has on another machine
CLOCK = "seconds"  # an array of this name holds times


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """Something that was computed.

    Attributes:
        name: What to call it.
        seconds: How long it takes to compute it again.
        compare: Computes it again; gives what is wrong and what to say if nothing is.
        reason: Why it cannot be computed again here; empty if it can.
    """

    name: str
    seconds: float
    compare: Callable[[], tuple[str, str]]
    reason: str = ""


def items(claims: Mapping[str, Claim], folder: Path) -> list[Item]:
    """Records under a folder, and the committed parts of their claims.

    A record is computed from its committed parts. Of a part that is a training its first steps are
    taken again, or, if it kept no losses of them, the loss of the net that ships.
    """
    found, parts = [], {}
    for path in record_files(folder):
        content = store.read_json(path)
        claim, scale = claims[content["claim"]], content["scale"]
        wanted = {request.part.key: request for request in requests_of(claim, scale)}
        found.append(_record_item(claim, load(claim, scale, folder=folder), wanted))
    for claim in claims.values():
        for scale in claim.settings:
            parts |= {request.part.key: request.part for request in requests_of(claim, scale)}
    committed = ((part, Store(None).find(part)) for part in parts.values())
    return found + [part_item(part, done) for part, done in committed if done is not None]


def recompute(
    every: Sequence[Item], *, minutes: float, seed: int
) -> Iterator[tuple[Item, str, str]]:
    """Compute a random sample again; gives each item with what is wrong, or what to say.

    An item is drawn only while the time that it took is left of the budget.
    """
    order = sorted((item for item in every if not item.reason), key=lambda item: item.name)
    random.Random(seed).shuffle(order)
    started = time.perf_counter()
    for item in order:
        if time.perf_counter() - started + item.seconds <= 60 * minutes:
            yield item, *item.compare()


def _record_item(claim: Claim, then: Record, wanted: Mapping[str, Request]) -> Item:
    found = [Store(None).find(each.part, weights=each.weights) for each in wanted.values()]
    done = [each for each in found if each is not None]
    seconds, reason = then.run["seconds"], claim.missing(then.scale)
    if "parts" in then.run:
        seconds -= sum(each.record["seconds"] for each in done)
    elif len(done) < len(found):
        reason = reason or "how long its parts take is not known"
    if then.run["device"] != "cpu" and not found:
        reason = reason or f"it was computed on {then.run['device']}"

    def compare() -> tuple[str, str]:
        with _threads(then.run):
            now = measure(claim, then.scale)
        differing = differences(then.arrays, now.arrays)
        if not differing:
            return "", "equal to the last bit"
        beyond = differences(then.arrays, now.arrays, bound=BOUND)
        if not beyond:
            return "", f"within {BOUND:g}; {differing}"
        if not any(criterion.test for criterion in now.criteria):
            return f"differs by more than {BOUND:g}: {beyond}", ""
        then_, now_ = ({c.criterion: c for c in r.criteria} for r in (then, now))
        wrong = [name for name in {**then_, **now_} if _moved(then_.get(name), now_.get(name))]
        if wrong:
            return f"comes out otherwise: {'; '.join(wrong)}", ""
        return "", f"all outcomes and intervals agree; {differing}"

    name = f"{claim.id} ({then.scale})"
    return Item(name=name, seconds=max(seconds, 0.0), compare=compare, reason=reason)


def _moved(then: Criterion | None, now: Criterion | None) -> bool:
    """True if a criterion comes out otherwise, or if its estimates are too far apart."""
    if then is None or now is None or then.outcome != now.outcome:
        return True
    tests = [each.test for each in (then, now) if each.test is not None]
    low = max((test.low for test in tests if test.low is not None), default=-math.inf)
    high = min((test.high for test in tests if test.high is not None), default=math.inf)
    if len(tests) == 2 and math.isinf(low) and math.isinf(high):
        one, other = (test.estimate for test in tests)
        return abs(one - other) > ESTIMATE_BOUND * max(abs(one), abs(other))
    return low > high


def part_item(part: Part, done: Finished) -> Item:
    """A finished part that can be checked; see ``items``."""
    name, seconds = f"part {part.cell}", done.record["seconds"]
    if not isinstance(part, Training):
        reason = "" if done.record["device"] == "cpu" else f"computed on {done.record['device']}"
        compare = partial(_computed_again, part, done)
        return Item(name=name, seconds=seconds, compare=compare, reason=reason)
    if len(done.arrays["first_losses"]):
        seconds *= STEPS / max(steps(part), STEPS)
        return Item(name=name, seconds=seconds, compare=partial(_replayed, part, done))
    whole = Store(None).find(part, weights=True)
    reason = "" if whole else "it kept no first losses, and its net does not ship"
    return Item(name=name, seconds=60.0, compare=partial(evaluated, part, whole), reason=reason)


def _replayed(part: Training, done: Finished) -> tuple[str, str]:
    found = replay(part, done)
    return found.gap, f"first {found.steps} losses " + ("equal" if found.exact else "within bounds")


def evaluated(part: Training, done: Finished) -> tuple[str, str]:
    """Evaluate a net that ships: what is wrong with its part's loss, or what to say."""
    fit = Fit(training=part, arrays=done.arrays)
    with deterministic(), float32_by_default():
        now = rt.evaluate(fit.net, part.images("test"), top=(1,), batch=500).loss
    gap = abs(now - fit.number("test_loss")) / now
    return (
        "" if gap <= LOSS_BOUND else f"the net that ships has a test loss of {now}",
        f"test loss of the net that ships within {gap:.0e}; its training is not done again",
    )


def _computed_again(part: Part, done: Finished) -> tuple[str, str]:
    with _threads(done.record), float32_by_default():
        now = {name: np.asarray(array) for name, array in part.compute(Execution()).items()}
    differing = differences(done.arrays, now)
    if not differing:
        return "", "equal to the last bit"
    wrong = differences(done.arrays, now, bound=BOUND)
    return wrong, f"within {BOUND:g}; {differing}"


def differences(then: Arrays, now: Arrays, *, bound: float = 0.0) -> str:
    """Names of arrays that differ by more than a bound, see ``BOUND``, with the relative gap."""
    found = [] if set(then) == set(now) else [f"arrays were {sorted(then)}, are {sorted(now)}"]
    for name in sorted(set(then) & set(now)):
        old, new = np.asarray(then[name]), np.asarray(now[name])
        if old.shape != new.shape or old.dtype != new.dtype:
            found.append(f"{name} was {old.shape} {old.dtype}, is {new.shape} {new.dtype}")
        elif name != CLOCK and not np.array_equal(old, new, equal_nan=old.dtype.kind in "fc"):
            gap, size = _gap(old, new)
            if not gap <= bound * max(size, 1.0):
                found.append(f"{name} by {gap / (size or 1.0):.1e}")
    return ", ".join(found)


def _gap(old: np.ndarray, new: np.ndarray) -> tuple[float, float]:
    """Largest difference, inf where an entry is not finite, and the largest entry."""
    if old.dtype.kind not in "fciu":
        return math.inf, 1.0
    with np.errstate(invalid="ignore"):
        away = np.where((old == new) | ((old != old) & (new != new)), 0.0, np.abs(new - old))
    size = np.abs(old[np.isfinite(old)]).max(initial=0.0)
    return float(np.nan_to_num(away, nan=math.inf).max(initial=0.0)), float(size)


@contextmanager
def _threads(run: Mapping[str, Any]) -> Iterator[None]:
    """Compute with as many threads as a run had."""
    before = torch.get_num_threads()
    torch.set_num_threads(run["threads"])
    try:
        yield
    finally:
        torch.set_num_threads(before)
