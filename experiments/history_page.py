"""Contents of HISTORY.md: changes of criteria and settings, with the results before and after."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.claim import SCALES, Claim
from experiments.criteria import Criterion
from experiments.records import markdown_row, record_path, results
from resid_theory.runtime import store

HEAD = """# History

Written by `python -m experiments report`; not to be edited. Changes of criteria, settings and
records after a result was known, each with the results before and after it. Only criteria that
differ are shown. Results come from the records, which keep them; those from before there was a
[manifest](records/manifest.json) come from git, as [changes.json](changes.json) lists them."""


def history_page(
    claims: Mapping[str, Claim], folder: Path, changes: Sequence[Mapping[str, Any]]
) -> str:
    """Contents of HISTORY.md, in the order of the claims."""
    told = {each["claim"] for each in changes} - set(claims)
    parts = [HEAD]
    for claim in [*claims, *sorted(told)]:
        found = [_told(each) for each in changes if each["claim"] == claim]
        for scale in SCALES:
            path = record_path(claim, scale, folder)
            if path.exists():
                found += _kept(scale, results(store.read_json(path)))
        if found:
            parts += [f"## {claim}", *found]
    return "\n\n".join(parts) + "\n"


def _told(change: Mapping[str, Any]) -> str:
    head = f"**{change['scale']} scale, {change['date']}, {change['commit'][:12]}**"
    return _difference(
        f"{head}: {change['what']}.", change["settings"], change["before"], change["after"] or []
    )


def _kept(scale: str, every: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Differences between the results of one record, from each to the next."""
    for before, after in zip(every, every[1:], strict=False):
        old, new = before["settings"], after["settings"]
        settings = {k: [old.get(k), new.get(k)] for k in {**old, **new} if old.get(k) != new.get(k)}
        then, now = ([Criterion(**each) for each in r["criteria"]] for r in (before, after))
        known = {_key(each) for each in then} & {_key(each) for each in now}
        gone, come = ([c for c in cs if _key(c) not in known] for cs in (then, now))
        if settings or gone or come:
            again = "run again" if before["run"] != after["run"] else "judged again"
            commit = ((after.get("judged") or {}).get("commit") or "unknown commit")[:12]
            yield _difference(
                f"**{scale} scale, {commit}**: {again}.",
                settings,
                [vars(each) for each in gone],
                [vars(each) for each in come],
            )


def _key(criterion: Criterion) -> tuple[str, str, str]:
    return criterion.criterion, criterion.expected, criterion.outcome


def _difference(
    head: str,
    settings: Mapping[str, Sequence[Any]],
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
) -> str:
    lines = [head]
    if settings:
        pairs = (f"{name} from {old!r} to {new!r}" for name, (old, new) in settings.items())
        lines += ["", f"Settings: {'; '.join(pairs)}."]
    if before or after:
        lines += ["", "| criterion | expected | before | after |", "|---|---|---|---|"]
    then, now = (
        {(c["criterion"], c["expected"]): _result(c) for c in cs} for cs in (before, after)
    )
    lines += [
        markdown_row(*key, then.get(key, "not judged"), now.get(key, "not judged"))
        for key in {**then, **now}
    ]
    return "\n".join(lines)


def _result(criterion: Mapping[str, Any]) -> str:
    word = {True: "holds", False: "**fails**", None: "**undecided**"}[criterion["holds"]]
    return f"{word}: {criterion['measured']}"
