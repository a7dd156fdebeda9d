"""Faults and age of the records under a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.claim import Claim
from experiments.digest import ROOT, code_digest
from experiments.history import commit_faults, has_failed, judging_code, order, rewritten
from experiments.manifest import manifest_faults, name_of, record_files
from experiments.parts import Store, requests_of
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
    others = [manifest_faults(claims, folder)]
    if folder.resolve().is_relative_to(root.resolve()):
        with Repository(root) as repository:
            others.append(rewritten(repository, folder))
            for path, wrong in found.items():
                if path.suffix == ".json" and not wrong:
                    content = store.read_json(path)
                    claim = claims[content["claim"]]
                    wrong += commit_faults(repository, claim, content) + unfounded(claim, content)
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


def unfounded(claim: Claim, content: Mapping[str, Any]) -> list[str]:
    """Faults of a record of another device than a CPU whose parts are not all committed.

    Its parts can be checked, see ``recompute``, and its arrays follow from them.
    """
    run = content["run"]
    devices = {run["device"], *(group["device"] for group in run.get("parts", ()))} - {"cpu"}
    if not devices:
        return []
    wanted = requests_of(claim, content["scale"])
    missing = sum(Store(None).find(request.part) is None for request in wanted)
    if wanted and not missing:
        return []
    told = f"{missing} of its {len(wanted)} parts are not committed" if wanted else "has no parts"
    return [f"was computed on {', '.join(sorted(devices))} and {told}, so that nobody can check it"]


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


def judging_ages(claims: Claims, folder: Path, root: Path = ROOT) -> dict[Path, str]:
    """Whether the code that judged each valid record, its tests included, is that of today."""
    found = {}
    with Repository(root) as repository:
        for path in record_files(folder):
            content = store.read_json(path)
            claim, judged = claims[content["claim"]], content.get("judged") or {}
            today, then = judging_code(repository, claim, None), None
            if "dirty" in judged:  # older records hold the digest of the judge alone
                then = judged.get("code")
            if then is None and judged.get("commit") in repository.commits:
                then = judging_code(repository, claim, judged["commit"])
            found[path] = UNKNOWN if None in (then, today) else TODAY if then == today else OLDER
    return found


def notes(claims: Claims, folder: Path, root: Path = ROOT) -> dict[Path, str]:
    """How old criterion and code of each valid record are, in words."""
    found, judged = ages(claims, folder), judging_ages(claims, folder, root)
    with Repository(root) as repository:
        for path in found:
            content = store.read_json(path)
            when = order(repository, claims[content["claim"]], content)
            failed = "; a former run with other settings failed" if has_failed(content) else ""
            old = f", judged by {judged[path]}" if judged[path] == OLDER else ""
            found[path] = f"{when}{failed}; computed by {found[path]}{old}"
    return found
