"""Manifest of a folder of records: no result goes missing, and none is edited."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.digest import ROOT
from experiments.records import MANIFEST, results
from resid_theory.runtime import store

CHANGES = ROOT / "experiments" / "changes.json"
Entry = Mapping[str, Any]


def changes() -> list[dict[str, Any]]:
    """Changes of criteria, settings and records that the records themselves do not tell.

    Those of results before there was a manifest, and records that were removed.
    """
    found: list[dict[str, Any]] = json.loads(CHANGES.read_text(encoding="utf-8"))
    return found


def name_of(path: Path, folder: Path) -> str:
    """``"<claim>.<scale>"`` of a record."""
    return path.relative_to(folder).with_suffix("").as_posix()


def record_files(folder: Path) -> list[Path]:
    """JSON files of the records under a folder."""
    return sorted(path for path in folder.rglob("*.json") if path != folder / MANIFEST)


def read_record(path: Path) -> dict[str, Any]:
    """Content of the JSON file of a record; empty if it is not valid JSON, which is a fault."""
    try:
        return store.read_json(path)
    except ValueError:
        return {}


def manifest_faults(folder: Path) -> dict[Path, str]:
    """Records of the manifest that are missing or that no longer hold a result of theirs."""
    path, found = folder / MANIFEST, {}
    if not path.is_file():
        return {path: "is missing; git has it, or 'python -m experiments report' writes a new one"}
    removed = {f"{each['claim']}.{each['scale']}" for each in changes() if each["after"] is None}
    for name, entry in store.read_json(path).items():
        record = folder / name
        if not record.is_file() and name_of(record, folder) not in removed:
            found[record] = "is missing: no record is ever deleted; git has it"
        elif record.is_file():
            every = results(read_record(record))
            same = _digest(every[: entry["results"]]) == entry["sha256"]
            if not same or (len(every) == entry["results"] and _arrays(every) != entry["arrays"]):
                found[record] = "is not what the manifest lists: it was edited after it was made"
    return found


def unlisted_records(folder: Path) -> dict[Path, str]:
    """Records with results that the manifest does not list yet."""
    listed = store.read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    return {
        folder / name: "is not in the manifest; 'python -m experiments report' adds it"
        for name, entry in _entries(folder).items()
        if listed.get(name, {}).get("results", 0) < entry["results"]
    }


def write_manifest(folder: Path) -> None:
    """List all results; a ValueError where one that is listed has gone."""
    faults = manifest_faults(folder) if (folder / MANIFEST).is_file() else {}
    if faults:
        raise ValueError("; ".join(f"{path} {fault}" for path, fault in faults.items()))
    store.write_json(folder / MANIFEST, _entries(folder))


def _entries(folder: Path) -> dict[str, Entry]:
    found = {}
    for path in record_files(folder):
        every = results(read_record(path))
        found[path.relative_to(folder).as_posix()] = {
            "results": len(every),
            "sha256": _digest(every),
            "arrays": _arrays(every),
        }
    return found


def _digest(every: Sequence[Mapping[str, Any]]) -> str:
    """Digest of results without their arrays, of which only the last ones are there."""
    kept = [{name: value for name, value in each.items() if name != "arrays"} for each in every]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _arrays(every: Sequence[Mapping[str, Any]]) -> str | None:
    return (every[-1]["arrays"] or {}).get("sha256")
