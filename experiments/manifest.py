"""Manifest of a folder of records: what claims said, and each result and part, edited by nobody."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.claim import Claim
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


def manifest_faults(claims: Mapping[str, Claim], folder: Path) -> dict[Path, str]:
    """What the manifest lists and is missing, or is not what it was when it was listed.

    Records may go on with further results; parts, and nets that ship, stay as they are.
    """
    path, found = folder / MANIFEST, {}
    if not path.is_file():
        return {path: "is missing; git has it, or 'python -m experiments report' writes a new one"}
    listed = _read(path)
    removed = {f"{each['claim']}.{each['scale']}" for each in changes() if each["after"] is None}
    for name, entry in listed["records"].items():
        record = folder / name
        if not record.is_file() and name_of(record, folder) not in removed:
            found[record] = "is missing: no record is ever deleted; git has it"
        elif record.is_file():
            every = results(read_record(record))
            same = _digest(every[: entry["results"]]) == entry["sha256"]
            if not same or (len(every) == entry["results"] and _arrays(every) != entry["arrays"]):
                found[record] = "is not what the manifest lists: it was edited after it was made"
    for claim_id in listed["claims"]:
        if claim_id not in claims and claim_id not in {name.rpartition(".")[0] for name in removed}:
            found[folder / claim_id] = "is no claim any more: none is ever dropped without a word"
    today = _parts(folder)
    for name, sha256 in listed["parts"].items():
        part = folder.parent / name
        if today.get(name) != sha256:
            found[part] = "is not what the manifest lists: " + (
                "it was edited after it was made" if part.is_file() else "it is missing; git has it"
            )
    for name in today:
        try:
            store.read_checkpoint(folder.parent / name)
        except (OSError, ValueError) as error:
            found[folder.parent / name] = str(error)
    return found


def unlisted(claims: Mapping[str, Claim], folder: Path) -> dict[Path, str]:
    """Results, parts and words of claims that the manifest does not list yet."""
    listed = _read(folder / MANIFEST)
    adds = "'python -m experiments report' adds it"
    found = {
        folder / name: f"is not in the manifest; {adds}"
        for name, entry in _entries(folder).items()
        if listed["records"].get(name, {}).get("results", 0) < entry["results"]
    }
    for name in _parts(folder):
        if name not in listed["parts"]:
            found[folder.parent / name] = f"is not in the manifest; {adds}"
    for claim in claims.values():
        said, words = listed["claims"].get(claim.id, []), _words(claim)
        then = said[-1] if said else {}
        changed = [f"{n} was {w!r}, is {words[n]!r}" for n, w in then.items() if w != words[n]]
        if not said or changed:
            told = "; ".join(changed) or "is not in the manifest"
            found[folder / claim.id] = f"{told}; {adds}, changes to HISTORY.md"
    return found


def wordings(folder: Path) -> dict[str, list[dict[str, str]]]:
    """All that the manifest lists of what claims said, by id, today's words last."""
    found: dict[str, list[dict[str, str]]] = _read(folder / MANIFEST)["claims"]
    return found


def write_manifest(claims: Mapping[str, Claim], folder: Path) -> None:
    """List all results, parts and words; a ValueError where one that is listed has gone."""
    faults = manifest_faults(claims, folder) if (folder / MANIFEST).is_file() else {}
    if faults:
        raise ValueError("; ".join(f"{path} {fault}" for path, fault in faults.items()))
    said = wordings(folder)
    for claim in claims.values():
        if _words(claim) not in said.setdefault(claim.id, [])[-1:]:
            said[claim.id].append(_words(claim))
    content = {"claims": said, "parts": _parts(folder), "records": _entries(folder)}
    store.write_json(folder / MANIFEST, content)


def continues(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """True if a manifest lists the parts and the words that a former one does, or more."""
    return old.get("parts", {}).items() <= new.get("parts", {}).items() and all(
        new.get("claims", {}).get(claim, [])[: len(said)] == said
        for claim, said in old.get("claims", {}).items()
    )


def _read(path: Path) -> dict[str, Any]:
    """Content of a manifest; empty without one."""
    empty: dict[str, Any] = {"claims": {}, "parts": {}, "records": {}}
    return empty | store.read_json(path) if path.is_file() else empty


def _words(claim: Claim) -> dict[str, str]:
    return {name: getattr(claim, name) for name in ("kind", "source", "says")}


def _parts(folder: Path) -> dict[str, str]:
    """Digests of the finished parts and of the nets that ship, by path beside a folder.

    Their JSON holds the digests of their tensors.
    """
    places = [folder.parent / name for name in ("finished", "checkpoints")]
    paths = sorted(path for place in places for path in place.rglob("*.json"))
    return {
        path.relative_to(folder.parent).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.name != "confirmed.json"
    }


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
