"""Faults and age of the records under a folder."""

from collections.abc import Mapping
from pathlib import Path

from experiments.claim import Claim
from experiments.digest import ROOT, code_digest
from experiments.history import commit_faults, has_failed, order, rewritten
from experiments.manifest import manifest_faults, name_of, record_files
from experiments.records import faults, load
from experiments.repository import Repository
from resid_theory.runtime import store

Claims = Mapping[str, Claim]
TODAY, OLDER, UNKNOWN = "today's code", "older code", "unknown code"


def all_faults(claims: Claims, folder: Path, root: Path = ROOT) -> dict[Path, list[str]]:
    """Faults of records: by themselves, against the manifest, and against git in ``root``."""
    found = {path: record_faults(claims, folder, path) for path in record_files(folder)}
    for arrays in sorted(folder.rglob("*.npz")):
        if not arrays.with_suffix(".json").exists():
            found[arrays] = ["has no .json beside it"]
    others = [manifest_faults(folder)]
    if folder.resolve().is_relative_to(root.resolve()):
        with Repository(root) as repository:
            others.append(rewritten(repository, folder))
            for path, wrong in found.items():
                if path.suffix == ".json" and not wrong:
                    content = store.read_json(path)
                    wrong += commit_faults(repository, claims[content["claim"]], content)
    for each in others:
        for path, fault in each.items():
            found.setdefault(path, []).append(fault)
    return {path: wrong for path, wrong in found.items() if wrong}


def record_faults(claims: Claims, folder: Path, path: Path) -> list[str]:
    """Faults of one record by itself: of its claim, settings, arrays and criteria."""
    claim_id, _, scale = name_of(path, folder).rpartition(".")
    if claim_id not in claims:
        return [f"no claim is named {claim_id!r}"]
    try:
        return faults(claims[claim_id], load(claim_id, scale, folder=folder))
    except ValueError as error:
        return [str(error)]


def is_valid(claim: Claim, scale: str, folder: Path) -> bool:
    """True if there is a record without faults of its own."""
    try:
        return not faults(claim, load(claim, scale, folder=folder))
    except (FileNotFoundError, ValueError):
        return False


def ages(claims: Claims, folder: Path) -> dict[Path, str]:
    """Whether the code that computed each valid record is that of today."""
    found = {}
    for path in record_files(folder):
        content = store.read_json(path)
        run, today = content["run"], code_digest(claims[content["claim"]].compute)
        code = run.get("code")
        found[path] = UNKNOWN if None in (code, today) else TODAY if code == today else OLDER
        if found[path] == TODAY and OLDER in {group["age"] for group in run.get("parts", ())}:
            found[path] = OLDER
    return found


def notes(claims: Claims, folder: Path, root: Path = ROOT) -> dict[Path, str]:
    """How old criterion and code of each valid record are, in words."""
    found = ages(claims, folder)
    with Repository(root) as repository:
        for path in found:
            content = store.read_json(path)
            when = order(repository, claims[content["claim"]], content)
            failed = "; a former run with other settings failed" if has_failed(content) else ""
            found[path] = f"{when}{failed}; computed by {found[path]}"
    return found
