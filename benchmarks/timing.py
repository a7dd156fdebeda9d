"""Times as medians of interleaved runs, so that a ratio survives a noisy machine; reports."""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def rounds(
    tasks: Mapping[str, Callable[[], Any]],
    repeats: int,
    clock: Callable[[], float] = time.process_time,
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What each task gave and its seconds in every round; in a round the tasks take turns."""
    results: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(repeats):
        for name, task in tasks.items():
            start = clock()
            results[name] = task()
            seconds[name].append(clock() - start)
    return results, seconds


def medians(
    tasks: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each task; the tasks take turns, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for round_number in range(repeats + 1):
        for name, task in tasks.items():
            start = clock()
            result = task()
            elapsed = clock() - start
            del result  # its memory must be fresh for the next one
            if round_number:
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def line(what: str, value: str, goal: str) -> None:
    """One row of a report."""
    print(f"{what:<64} {value:>16}   {goal}", flush=True)


def run_parts(parts: Mapping[str, Callable[[], None]], doc: str | None) -> None:
    """Print the parts of a report that the command line names, or all of them."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all by default")
    names = parser.parse_args().parts or list(parts)
    unknown = sorted(set(names) - set(parts))
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}; choose from {', '.join(parts)}")
    for name in names:
        parts[name]()
