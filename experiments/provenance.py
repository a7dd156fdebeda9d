"""Provenance of a record: code, machine and versions."""

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.digest import ROOT


def clocks() -> np.ndarray:
    """Seconds of the clock and of the processor; on a busy machine the latter tell the cost."""
    return np.array([time.perf_counter(), time.process_time()])


def run_information(device: str, seconds: float, processor: float | None = None) -> dict[str, Any]:
    """Code, machine and versions of a run, and its seconds by both clocks."""
    commit, dirty = commit_of_code()
    return {
        "commit": commit,
        "dirty": dirty,
        "device": device,
        "hardware": _hardware(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "seconds": round(seconds, 3),
        "processor_seconds": None if processor is None else round(processor, 3),
    }


def commit_of_code() -> tuple[str | None, bool | None]:
    """Commit of the code, and whether the working tree differs from it; None where unknown.

    Without git, ``RESID_THEORY_COMMIT`` gives the commit, followed by "-dirty" if modified.
    """
    head = _git("rev-parse", "HEAD")
    if head is None:
        given = os.environ.get("RESID_THEORY_COMMIT")
        return (given.removesuffix("-dirty"), given.endswith("-dirty")) if given else (None, None)
    # Files that a run writes do not change the code.
    code = ["resid_theory", "experiments", ":!experiments/records", ":!experiments/RESULTS.md"]
    return head, bool(_git("status", "--porcelain", "--", *code))


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _hardware(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        lines = []
    told = {name.strip(): text.strip() for name, _, text in (x.partition(":") for x in lines)}
    if "model name" not in told:
        return platform.processor() or platform.machine()
    # Virtual machines give generations that round otherwise one name, such as AMD EPYC.
    numbers = [told[x] for x in ("cpu family", "model", "stepping") if x in told]
    return ", ".join(filter(None, [told["model name"], ".".join(numbers)]))
