"""What came back from a machine: verified, merged into the parts, and told."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.archives import merge
from experiments.lease.carried import install
from experiments.lease.volumes import read_volumes
from experiments.parts import Store
from resid_theory.runtime import store


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Keys of the parts that are new, of those that can be resumed, and the calls in order."""

    finished: Sequence[str]
    unfinished: Sequence[str]
    calls: Sequence[Mapping[str, Any]]


def collect(folder: Path, parts: Path) -> Collected:
    """Merge every complete set of volumes below a folder into the parts."""
    finished, unfinished, calls = [], [], {}
    results = Store(parts)
    for members in read_volumes(folder):
        with tempfile.TemporaryDirectory() as scratch:
            for name, data in members.items():
                words = name.split("/")  # parts/cells/KEY/FILE
                result = words[:2] == ["parts", "cells"] and len(words) == 4
                # What was finished here meanwhile stays.
                if result and not (parts / "cells" / words[2] / "result.json").exists():
                    path = Path(scratch, *words[1:])
                    path.parent.mkdir(parents=True, exist_ok=True)
                    store.write_bytes(path, data)
                if words[0] == "calls":
                    calls[name] = json.loads(data)
            if any(Path(scratch).glob("cells/*/result.json")):
                finished += merge(Path(scratch), results).new
        unfinished += install(members, parts)
    done = {path.parent.name for path in parts.glob("cells/*/result.json")}
    return Collected(
        finished=sorted(set(finished)),
        unfinished=sorted(set(unfinished) - done),
        calls=[calls[name] for name in sorted(calls)],
    )


def told(calls: Sequence[Mapping[str, Any]]) -> str:
    """Table of the parts, counted and measured, and where the time went."""
    lines = [f"{'outcome':9} {'counted':>8} {'measured':>9} {'steps':>13} {'ms a step':>10}  part"]
    for call in calls:
        for attempt in call["attempts"]:
            done = attempt["ended"] - attempt["begun"]
            each = f"{1e3 * attempt['seconds'] / done:.2f}" if done > 0 else "-"
            lines.append(
                f"{attempt['outcome']:9} {attempt['counted']:8.0f} {attempt['seconds']:9.0f} "
                f"{attempt['begun']:6}-{attempt['ended']:6} {each:>10}  {attempt['label']}"
            )
    for number, call in enumerate(calls, 1):
        spent = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in call["stages"].items())
        lines.append(f"call {number} on {call['device']}: {spent}")
    return "\n".join(lines)
