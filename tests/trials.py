"""A pytest plugin that counts trials of the library's promises and writes docs/reliability.md.

Every run of a test marked ``reliability(fault, promise)`` is one trial, and a failure is a promise
broken. A test with an argument ``trial`` is repeated: ``quick`` times by default, ``full`` times
under ``--trials full``; without ``quick`` it runs in full runs only. A full run updates its rows
of docs/reliability.json, and the page is written from all rows, each with the commit tested.
"""

import os
import platform
import random
import time
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
RESULTS = PAGE.with_suffix(".json")


class Plugin:
    """The hooks; one row for each fault."""

    def __init__(self, full):
        self.full, self.rows = full, {}

    def pytest_generate_tests(self, metafunc):
        mark = metafunc.definition.get_closest_marker("reliability")
        if mark and "trial" in metafunc.fixturenames:
            count = mark.kwargs["full"] if self.full else mark.kwargs.get("quick", 1)
            metafunc.parametrize("trial", range(count))

    def pytest_collection_modifyitems(self, config, items):
        if self.full:
            return
        marks = [item.get_closest_marker("reliability") for item in items]
        long = [m is not None and "full" in m.kwargs and "quick" not in m.kwargs for m in marks]
        config.hook.pytest_deselected(items=[i for i, s in zip(items, long, strict=True) if s])
        items[:] = [item for item, skipped in zip(items, long, strict=True) if not skipped]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        mark = item.get_closest_marker("reliability")
        if mark and (report.failed or (report.when == "call" and report.passed)):
            fault, promise = mark.args
            if fault not in self.rows:  # git is asked once
                self.rows[fault] = new_row(promise)
            row = self.rows[fault]
            counts = dict(item.user_properties)
            row["trials"] += counts.pop("trials", 1) if report.when == "call" else 0
            if report.failed:
                row["broken"].append(f"{item.name}: {call.excinfo.exconly().splitlines()[0]}")
            for name, count in counts.items():
                row["counts"].setdefault(name, []).append(count)
        return report

    def pytest_sessionfinish(self):
        if not self.full or not self.rows:
            return
        from resid_theory.runtime import store

        for row in self.rows.values():
            row["note"] = "; ".join(
                f"{sum(counts)} {name}, more than one in {sum(n > 1 for n in counts)} trials"
                for name, counts in row.pop("counts").items()
            )
        rows = {**(store.read_json(RESULTS) if RESULTS.exists() else {}), **self.rows}
        store.write_json(RESULTS, rows)
        store.write_bytes(PAGE, page(rows).encode())


def new_row(promise):
    """No trials yet, and where and when they are made."""
    # Here, as every start of pytest comes by this file: claims import half of SciPy.
    import torch

    from experiments.provenance import commit_of_code

    commit, changed = commit_of_code()
    python = f"Python {platform.python_version()}, torch {torch.__version__}"
    return {
        "promise": promise,
        "trials": 0,
        "broken": [],
        "counts": {},
        "commit": f"{(commit or 'unknown')[:7]}{' with changes' if changed else ''}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "where": f"{platform.machine()}, {python}",
    }


def page(rows):
    """The table as Markdown."""
    lines = [
        "# Reliability",
        "",
        "Written by `python -m pytest -m reliability --trials full`; not to be edited. Each row is",
        "a fault, the promise that must hold nevertheless, how often it was tried, how often the",
        "promise was broken, and the commit tested. `make test` repeats a part of the trials.",
        "",
        "| fault | promise | trials | broken | commit |",
        "|---|---|---|---|---|",
    ]
    for fault, row in rows.items():
        numbers = f"{row['trials']:,} | {len(row['broken'])}"
        commit = f"{row['commit']} ({row['date']})"
        lines.append(f"| {fault} | {row['promise']} | {numbers} | {commit} |")
    notes = [f"- {fault}: {row['note']}." for fault, row in rows.items() if row["note"]]
    broken = [f"- {fault}: {wrong}" for fault, row in rows.items() for wrong in row["broken"]]
    lines += ["", *notes] if notes else []
    lines += ["", "Broken:", "", *broken] if broken else []
    trials, where = sum(row["trials"] for row in rows.values()), {r["where"] for r in rows.values()}
    lines += ["", f"{trials:,} trials; {'; '.join(sorted(where))}."]
    return "\n".join(lines) + "\n"


@pytest.fixture
def draw(trial):
    """Random numbers of one trial."""
    return random.Random(trial)


def complaint(call):
    """The error of a call in words."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def assert_refused(call, *, says=(), kinds=(ValueError, OSError), length=500):
    """A call is refused in one short sentence that says all it should."""
    with pytest.raises(kinds) as caught:
        call()
    text = str(caught.value)
    missing = [word for word in says if word not in text]
    assert not missing, f"does not say {missing}: {text}"
    assert "\n" not in text and len(text) <= length, f"is no single short sentence: {text!r}"


class Payload:
    """Pickles as a call: whoever unpickles it runs it."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def flipped(content, draw):
    """Bytes with one random bit flipped."""
    bit = draw.randrange(8 * len(content))
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
