"""Records and parts computed once more: a random sample within a budget of time."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from experiments.claim import Arrays, Claim
from experiments.confirmation import KIND, loss_gap
from experiments.manifest import record_files
from experiments.parts import Execution, Part, Store, Stored, float32_by_default, requests_of
from experiments.provenance import run_information
from experiments.records import Record, load, measure
from resid_theory.runtime import store

# Largest relative gap of arrays that another machine computed, where no training amplifies it.
BOUND = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """Something that was computed and can be computed again.

    Attributes:
        name: What to call it.
        seconds: How long it took.
        compare: Computes it again; gives what is wrong and what to say if nothing is.
    """

    name: str
    seconds: float
    compare: Callable[[], tuple[str, str]]


def items(claims: Mapping[str, Claim], folder: Path) -> list[Item]:
    """Records under a folder that can be computed here, and the committed parts of their claims."""
    found, parts = [], {}
    for path in record_files(folder):
        content = store.read_json(path)
        claim, scale = claims[content["claim"]], content["scale"]
        if content["run"]["device"] != "cpu" or claim.missing(scale):
            continue
        if "parts" in content["run"] or not claim.takes("each"):  # else its time is not known
            found.append(_record_item(claim, load(claim, scale, folder=folder)))
        parts |= {request.part.key: request.part for request in requests_of(claim, scale)}
    return found + [each for part in parts.values() if (each := _part_item(part)) is not None]


def recompute(every: list[Item], *, minutes: float, seed: int) -> Iterator[tuple[Item, str, str]]:
    """Compute a random sample again; gives each item with what is wrong, or what to say.

    An item is drawn only while the time that it took is left of the budget.
    """
    order = sorted(every, key=lambda item: item.name)
    random.Random(seed).shuffle(order)
    started = time.perf_counter()
    for item in order:
        if time.perf_counter() - started + item.seconds <= 60 * minutes:
            yield item, *item.compare()


def _record_item(claim: Claim, then: Record) -> Item:
    def compare() -> tuple[str, str]:
        with TemporaryDirectory() as nothing, _threads(then.run):
            each = Stored(Store(None, Path(nothing)), Execution())
            now = measure(claim, then.scale, each=each if claim.takes("each") else None)
        differing = differences(then.arrays, now.arrays)
        if not differing:
            return "", "equal to the last bit"
        if same_machine(then.run, now.run):
            return f"not equal to the last bit on a machine of the same kind: {differing}", ""
        then_, now_ = ({c.criterion: c.outcome for c in r.criteria} for r in (then, now))
        wrong = [name for name in {**then_, **now_} if then_.get(name) != now_.get(name)]
        if wrong:
            return f"comes out otherwise on another machine: {'; '.join(wrong)}", ""
        return "", f"every criterion comes out alike on another machine; {differing}"

    return Item(name=f"{claim.id} ({then.scale})", seconds=then.run["seconds"], compare=compare)


def _part_item(part: Part) -> Item | None:
    done = Store(None).find(part)
    if done is None or done.record["device"] != "cpu":
        return None

    def compare() -> tuple[str, str]:
        how = {n: done.record.get(n) for n in ("precision", "channels_last", "compile")}
        execution = Execution(**how)
        with _threads(done.record), float32_by_default():
            now = {
                name: np.asarray(array)
                for name, array in part.compute(execution).items()
                if name in done.arrays
            }
        differing = differences(done.arrays, now)
        if not differing:
            return "", "equal to the last bit"
        if same_machine(done.record, {**run_information("cpu", 0.0), **how}):
            return f"not equal to the last bit on a machine of the same kind: {differing}", ""
        if "first_losses" in now:  # a training
            pair = (now["first_losses"].tolist(), done.arrays["first_losses"].tolist())
            wrong = loss_gap(*pair, str(how["precision"])) if pair[1] else ""
        else:
            wrong = differences(done.arrays, now, bound=BOUND)
        return wrong, f"within bounds on another machine; {differing}"

    return Item(name=f"part {part.cell}", seconds=done.record["seconds"], compare=compare)


def differences(then: Arrays, now: Arrays, *, bound: float = 0.0) -> str:
    """Names of arrays that differ by more than a bound of their largest entry, with the gap."""
    found = [] if set(then) == set(now) else [f"arrays were {sorted(then)}, are {sorted(now)}"]
    for name in sorted(set(then) & set(now)):
        old, new = np.asarray(then[name]), np.asarray(now[name])
        if old.shape != new.shape or old.dtype != new.dtype:
            found.append(f"{name} was {old.shape} {old.dtype}, is {new.shape} {new.dtype}")
        elif not np.array_equal(old, new, equal_nan=old.dtype.kind in "fc"):
            gap = _gap(old, new)
            if not gap <= bound:
                found.append(f"{name} by {gap:.1e}")
    return ", ".join(found)


def _gap(old: np.ndarray, new: np.ndarray) -> float:
    """Largest difference, relative to the largest entry; inf where an entry is not finite."""
    if old.dtype.kind not in "fciu":
        return math.inf
    with np.errstate(invalid="ignore"):
        away = np.where((old == new) | ((old != old) & (new != new)), 0.0, np.abs(new - old))
    size = np.abs(old[np.isfinite(old)]).max(initial=0.0)
    return float(np.nan_to_num(away, nan=math.inf).max(initial=0.0) / (size or 1.0))


def same_machine(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """True if two runs of equal code must agree to the last bit."""
    return all(then.get(name) == now.get(name) for name in (*KIND, "numpy"))


@contextmanager
def _threads(run: Mapping[str, Any]) -> Iterator[None]:
    """Compute with as many threads as a run had."""
    before = torch.get_num_threads()
    torch.set_num_threads(run["threads"])
    try:
        yield
    finally:
        torch.set_num_threads(before)
