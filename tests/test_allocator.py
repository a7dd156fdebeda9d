"""Freed memory that the next large object takes, counted by the pages that the kernel clears."""

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from resid_theory.runtime.allocator import keep_freed_memory

FAULTS = """
import resource
from resid_theory.runtime.allocator import keep_freed_memory
keep_freed_memory()
for turn in range(20):
    if turn == 10:  # by then each has its place
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    first = b"x" * 20_000_000  # torch, too, asks the C library
    second = first + first
    del first, second
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS]
    return int(subprocess.check_output(command, env={**kept, **environment}, text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_unless_the_environment_has_a_setting_of_its_own():
    pages = 10 * 40_000_000 / os.sysconf("SC_PAGE_SIZE")
    assert faults() < 0.01 * pages
    assert faults(MALLOC_MMAP_THRESHOLD_="100000", MALLOC_TRIM_THRESHOLD_="100000") > 0.5 * pages


@pytest.mark.parametrize(
    ("setting", "library", "asked"),
    [
        (None, "glibc", [(-4, 0), (-1, 2**31 - 1)]),  # no mmap, no trimming
        ("OMP_NUM_THREADS", "glibc", [(-4, 0), (-1, 2**31 - 1)]),
        ("MALLOC_ARENA_MAX", "glibc", []),
        ("GLIBC_TUNABLES", "glibc", []),
        (None, "another", []),
    ],
)
def test_glibc_alone_is_asked_and_only_without_a_setting(monkeypatch, setting, library, asked):
    calls = []
    found = SimpleNamespace(mallopt=lambda *given: calls.append(given))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: found if library == "glibc" else object())
    monkeypatch.setattr(os, "environ", {setting: "1"} if setting else {})
    keep_freed_memory()
    assert calls == asked
