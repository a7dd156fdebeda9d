"""What git shows of records: the order of criterion and run, and that no result was changed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.claim import Claim
from experiments.digest import code_digest
from experiments.manifest import changes, continues, name_of, read_record, record_files
from experiments.records import MANIFEST, judging, results
from experiments.repository import Repository
from resid_theory.runtime import store

BEFORE = "criterion and settings fixed before the run"
AFTER_OTHERS = f"{BEFORE}, after runs of other settings by other criteria"
REPEATED = "criterion changed after an earlier run of these settings"
YOUNGER = "criterion younger than the run"
UNCOMMITTED = "run from uncommitted code"
UNKNOWN = "order of criterion and run unknown"
Content = Mapping[str, Any]


def order(repository: Repository, claim: Claim, content: Content) -> str:
    """Whether the criterion was there before the run, as far as git shows it.

    It was if the code of ``judge`` and of the tests, without the library, is at the commit of the
    run what it is today, and if no earlier run of these settings was judged by another one with
    another result. Settings are part of the code that a run from committed files uses. Former runs
    of other settings by other criteria are told, as the change may have come after their results.
    """
    run = content["run"]
    if not repository.is_whole or run["commit"] not in repository.commits:
        return UNKNOWN
    if run["dirty"]:
        return UNCOMMITTED
    today, then = (judging_code(repository, claim, at) for at in (None, run["commit"]))
    if today is None or today != then:
        return YOUNGER
    others = [
        earlier
        for earlier in content.get("earlier", [])
        if _is_other(repository, claim, earlier, content)
    ]
    if any(_computed(earlier) == _computed(content) for earlier in others):
        return REPEATED
    return AFTER_OTHERS if any(_texts(e) != _texts(content) for e in others) else BEFORE


def _is_other(repository: Repository, claim: Claim, earlier: Content, content: Content) -> bool:
    """True if an earlier result was judged otherwise: by other words, or by other code."""
    if _texts(earlier) != _texts(content):
        return True
    if _outcomes(earlier) == _outcomes(content):
        return False
    # Outcomes under equal words differ by the arrays or by the judge.
    commit = (earlier.get("judged") or {}).get("commit") or earlier["run"]["commit"]
    if commit not in repository.commits:
        return True
    return judging_code(repository, claim, commit) != judging_code(repository, claim, None)


def has_failed(content: Content) -> bool:
    """True if a run with other settings had a criterion that fails, and the last has none."""
    others = [e for e in content.get("earlier", []) if _computed(e) != _computed(content)]
    return False not in _outcomes(content) and any(False in _outcomes(e) for e in others)


def _outcomes(result: Content) -> list[bool | None]:
    return [each["holds"] for each in result["criteria"]]


def _computed(result: Content) -> dict[str, Any]:
    return {name: value for name, value in result["settings"].items() if name != "scaled"}


def _texts(result: Content) -> list[tuple[str, str]]:
    return [(each["criterion"], each["expected"]) for each in result["criteria"]]


def judging_code(repository: Repository, claim: Claim, commit: str | None) -> str | None:
    """Digest of what judged a claim at a commit, today's without one; None if it is not there."""
    return _digest(repository, commit, judging(claim), own=True)


def _digest(
    repository: Repository, commit: str | None, call: Any, *, own: bool = False
) -> str | None:
    try:
        if commit is None:
            return code_digest(call, own=own)
        return repository.sources(commit).digest(call, own=own)
    except (ValueError, SyntaxError):
        return None


def commit_faults(repository: Repository, claim: Claim, content: Content) -> list[str]:
    """Differences between what a record says of its commits and git."""
    if not repository.is_whole:
        return []
    run, judged = content["run"], content.get("judged") or {}
    wrong = [
        f"commit {commit} is none of this history"
        for commit in dict.fromkeys((run["commit"], judged.get("commit")))
        if commit is not None and commit not in repository.commits
    ]
    if not wrong and run.get("code") and run["commit"] and not run["dirty"]:
        then = _digest(repository, run["commit"], claim.compute)
        if then != run["code"]:
            wrong.append(f"the code that it ran through is not that of its commit {run['commit']}")
    if not wrong and judged.get("code") and judged["commit"] and judged.get("dirty") is False:
        if judging_code(repository, claim, judged["commit"]) != judged["code"]:
            wrong.append(f"the code that judged it is not that of its commit {judged['commit']}")
    return wrong


def rewritten(repository: Repository, folder: Path) -> dict[Path, str]:
    """Records that git knows otherwise: missing ones, and those that lost a result of theirs.

    Results are compared from the commit on that added the manifest. A record may be missing if
    ``changes`` tells of it as its last commit does.
    """
    if not repository.is_whole:
        return {}
    folder = folder.resolve()
    found, here, gone = {}, set(record_files(folder)), set()
    guarded = repository.since(folder / MANIFEST)
    for change in repository.changes(folder):
        path = repository.root / change.path
        if path == folder / MANIFEST and change.commit in guarded and change.after:
            new, *old = (json.loads(repository.text(b)) for b in (change.after, *change.before))
            if old and not any(continues(new, before) for before in old):
                found[path] = f"lost an entry in commit {change.commit[:12]}"
        if path.suffix != ".json" or path.name == MANIFEST:
            continue
        if path not in here and path not in gone:  # the latest change comes first
            gone.add(path)
            last = json.loads(repository.text(change.after or change.before[0]))
            if not _is_told(name_of(path, folder), last):
                found[path] = f"is missing: git has it, before or in commit {change.commit[:12]}"
        if change.commit in guarded and change.before and change.after:
            new = json.loads(repository.text(change.after))
            if not any(_continues(new, json.loads(repository.text(b))) for b in change.before):
                found[path] = f"lost a result in commit {change.commit[:12]}"
    for path, blob in repository.committed(folder).items():
        known = path == folder / MANIFEST and path.is_file()
        if known and not continues(store.read_json(path), json.loads(repository.text(blob))):
            found[path] = "lost an entry of the committed one"
        if path in here and not _continues(read_record(path), json.loads(repository.text(blob))):
            found[path] = "is not what is committed: it was edited after it was made"
    return found


def _continues(new: Content, old: Content) -> bool:
    """True if a record is another one, followed by later results or none."""
    if (new.get("claim"), new.get("scale")) != (old.get("claim"), old.get("scale")):
        return False
    then, now = results(old), results(new)
    return len(now) >= len(then) and all(
        {"settings", "criteria", "run"} <= set(kept)
        and all(was.get(key) == kept[key] for key in kept)
        for was, kept in zip(then, now, strict=False)
    )


def _is_told(name: str, last: Content) -> bool:
    """True if ``changes`` tells of a record that was removed, with its last criteria."""
    criteria = last.get("criteria") or [{**v, "holds": v["passed"]} for v in last["verdicts"]]
    return any(
        each["after"] is None
        and f"{each['claim']}.{each['scale']}" == name
        and all(any(told.items() <= was.items() for told in each["before"]) for was in criteria)
        for each in changes()
    )
