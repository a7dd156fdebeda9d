"""Contents of HISTORY.md: changes of criteria and settings, with the results before and after."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.claim import SCALES, Claim
from experiments.criteria import Criterion
from experiments.records import markdown_row, record_path, results
from experiments.verdicts import verdict
from resid_theory.runtime import store

HEAD = """# History

Written by `python -m experiments report`; not to be edited. Changes of criteria, settings and
records after a result was known, each with the results before and after it. Only criteria that
differ are shown. Results come from the records, which keep them; those from before there was a
[manifest](records/manifest.json) come from git, as [changes.json](changes.json) lists them."""

NOT_REPRODUCED = (  # by the page of results at df81815
    *(f"demystifying_resnet/figure_{name}" for name in (
        "4_cross_entropy", "4_tanh", "6_digits", "6_mnist", "7", "7_digits", "9",
    )),
    "noise_stability/figure_9", "noise_stability/section_5", "noise_stability/table_5",
    "diracnets/first_scale", "diracnets/section_3_4",
)  # fmt: skip


def history_page(
    claims: Mapping[str, Claim],
    folder: Path,
    changes: Sequence[Mapping[str, Any]],
    wordings: Mapping[str, Sequence[Mapping[str, str]]],
) -> str:
    """Contents of HISTORY.md, by claim; ``wordings`` are those of the manifest."""
    told = {each["claim"] for each in changes} | set(wordings)
    parts = [HEAD, *_former(claims, folder)]
    for claim in [*claims, *sorted(told - set(claims))]:
        found = [_told(each) for each in changes if each["claim"] == claim]
        found += _reworded(wordings.get(claim, ()))
        for scale in SCALES:
            path = record_path(claim, scale, folder)
            if path.exists():
                found += _kept(scale, results(store.read_json(path)))
        if found:
            parts += [f"## {claim}", *found]
    return "\n\n".join(parts) + "\n"


def _former(claims: Mapping[str, Claim], folder: Path) -> list[str]:
    """What decides now each of the claims that were once "not reproduced"."""
    rows = []
    for claim in (claims[name] for name in NOT_REPRODUCED if name in claims):
        stands = verdict(claim, folder=folder)
        criteria = stands.record.criteria if stands.record else ()
        wanted = next((w for w in (False, None) if w in [c.holds for c in criteria]), True)
        decisive = [c for c in criteria if c.holds is wanted]
        shown = "; ".join(f"{c.criterion}: {c.measured.split(';')[0]}" for c in decisive)
        outcome = decisive[0].outcome if decisive else "nothing"
        count = f"{len(decisive)} of {len(criteria)} criteria: {outcome}"
        at = f", {stands.record.scale} scale" if stands.record else ""
        rows.append(markdown_row(claim.id, f"{claim.kind}: {stands.word}{at}", f"{count}. {shown}"))
    head = ["| claim | verdict now | what decides |", "|---|---|---|"]
    about = f'The {len(rows)} claims that were "not reproduced" at df81815 (2026-11-21).'
    title = "## What once was not reproduced"
    return [title, about, "\n".join(head + rows)] if rows else []


def _reworded(said: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Changes of what a claim says, of its source and of its kind."""
    for before, after in zip(said, said[1:], strict=False):
        changed = [
            f"{name} from {before[name]!r} to {after[name]!r}"
            for name in after
            if before.get(name) != after[name]
        ]
        yield f"**Words**: {'; '.join(changed)}."


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
