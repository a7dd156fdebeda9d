"""What a record came from: code, machine, versions."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["ROOT", "run_information", "commit_of_code"]

ROOT = Path(__file__).resolve().parents[1]


def run_information(device: str, seconds: float) -> dict[str, Any]:
    """Code, machine and versions that a record came from, and how long it took."""
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
    }


def commit_of_code() -> tuple[str | None, bool | None]:
    """The commit, and whether the code that computes differs from it; None where unknown.

    ``RESID_THEORY_COMMIT`` (a hash, with "-dirty" behind it if so) speaks for copies without git.
    """
    head = _git("rev-parse", "HEAD")
    if head is None:
        given = os.environ.get("RESID_THEORY_COMMIT")
        return (given.removesuffix("-dirty"), given.endswith("-dirty")) if given else (None, None)
    # What a run itself writes does not make the code that ran another one.
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
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
