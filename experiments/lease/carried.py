"""Files of parts as they travel: taken while a process may write them, put elsewhere."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from resid_theory.runtime import store


def sealed(place: Path, name: str) -> dict[str, bytes]:
    """Manifest, tensors and metrics that belong together, though a process may be writing them."""
    manifest = place / f"{name}.json"
    for _ in range(20):
        try:
            content = manifest.read_bytes()
            file = manifest.with_name(json.loads(content)["manifest"]["file"])
            files = {manifest.name: content, file.name: file.read_bytes()}
            metrics = manifest.with_name("metrics.jsonl")
            if metrics.exists():
                files[metrics.name] = metrics.read_bytes()
            folder = manifest.parent.relative_to(place.parent.parent)
            if manifest.read_bytes() == content:
                return {f"parts/{folder}/{n}": data for n, data in files.items()}
        except (OSError, ValueError, KeyError):
            if not manifest.exists():
                return {}
        time.sleep(0.1)
    return {}


def install(members: Mapping[str, bytes], parts: Path) -> list[str]:
    """Put the files of unfinished parts into a store, unless it is as far; their keys."""
    taken: dict[str, dict[str, bytes]] = {}
    for name, data in members.items():
        words = name.split("/")  # parts/cells/KEY/training/FILE
        if words[:2] == ["parts", "cells"] and words[3:4] == ["training"]:
            taken.setdefault(words[2], {})[words[4]] = data
    new = []
    for key, files in taken.items():
        place = parts / "cells" / key
        step = json.loads(files["checkpoint.json"])["manifest"]["about"]["step"]
        if (place / "result.json").exists() or steps_done(place) >= step:
            continue
        (place / "training").mkdir(parents=True, exist_ok=True)
        # The manifest last: it decides which checkpoint there is.
        for name in sorted(files, key=lambda name: name == "checkpoint.json"):
            store.write_bytes(place / "training" / name, files[name])
        new.append(key)
    return new


def steps_done(place: Path) -> int:
    """Steps of the checkpoint of an unfinished part; 0 without one."""
    try:
        content = store.read_json(place / "training" / "checkpoint.json")
        return int(content["manifest"]["about"]["step"])
    except (OSError, ValueError, KeyError):
        return 0
