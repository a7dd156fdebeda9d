"""Coverage: every sentence of a paper with a number or a comparison, and what judges it.

The sentences are data, ``coverage.toml`` in each paper's folder; its first lines explain the keys.
"""

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from experiments.claim import SCALES, Claim
from experiments.criteria import Criterion
from experiments.records import RECORDS, markdown_row, record_path
from experiments.verdicts import NOT_RUN
from resid_theory._check import check_choice
from resid_theory.runtime import store

FOLDER = Path(__file__).resolve().parent
WAYS = ("by", "set", "forbidden", "open")  # exactly one in each node
# Outcomes of what is judged, the one that tells most of a sentence first.
FAILS, UNDECIDED, BELOW, HOLDS = "fails", "undecided", "holds so far", "holds"
JUDGED = (FAILS, UNDECIDED, NOT_RUN, BELOW, HOLDS)
WORDS = {"set": "settings", "forbidden": "forbidden", "open": "uncovered"}


@dataclass(frozen=True, kw_only=True)
class Node:
    """One sentence of a paper with a number or a comparison.

    Attributes:
        at: Its place in the paper.
        says: The sentence in our words.
        way: A name in ``WAYS``: judged by criteria, followed by a claim's settings, forbidden by
            data or scale, or open.
        told: Criteria with their outcomes, claim, missing data or scale, or the reason.
        outcome: A name in ``JUDGED`` if criteria judge it, else in ``WORDS``.
        claims: Ids of the claims that it names.
        recalled: True if the sentence is known from memory of the paper only.
    """

    at: str
    says: str
    way: str
    told: str
    outcome: str
    claims: tuple[str, ...]
    recalled: bool


def papers(claims: Mapping[str, Claim]) -> dict[str, dict[str, Any]]:
    """Contents of the ``coverage.toml`` of every paper that has claims, by its folder."""
    names = dict.fromkeys(claim_id.partition("/")[0] for claim_id in claims)
    paths = {name: FOLDER / name / "coverage.toml" for name in names}
    return {n: tomllib.loads(p.read_text("utf-8")) for n, p in paths.items() if p.exists()}


def nodes(
    paper: str, content: Mapping[str, Any], claims: Mapping[str, Claim], folder: Path = RECORDS
) -> list[Node]:
    """Nodes of one paper, with outcomes from the records.

    Raises ValueError for a node that is not of the form, and for a claim or criterion that does not
    exist.
    """
    found = [_node(paper, entry, claims, folder) for entry in content["nodes"]]
    twice = [key for key, n in Counter((each.at, each.says) for each in found).items() if n > 1]
    if twice:
        raise ValueError(f"{paper}/coverage.toml: {twice[0]} occurs twice, needs one node for each")
    return found


def unnamed(paper: str, found: Iterable[Node], claims: Mapping[str, Claim]) -> list[str]:
    """Claims of the paper that no node names."""
    named = {claim for node in found for claim in node.claims}
    own = [c.id for c in claims.values() if c.kind == "paper" and c.id.startswith(f"{paper}/")]
    return [claim_id for claim_id in own if claim_id not in named]


def _node(paper: str, entry: Mapping[str, Any], claims: Mapping[str, Claim], folder: Path) -> Node:
    where = f"{paper}/coverage.toml, {entry.get('at')}: {entry.get('says')!r}"
    ways = [way for way in WAYS if way in entry]
    if not {"at", "says"} <= entry.keys() <= {"at", "says", "recalled", *WAYS} or len(ways) != 1:
        raise ValueError(f"{where}: got {sorted(entry)}, needs at, says and one of {WAYS}")
    way, given = ways[0], entry[ways[0]]
    told, named, outcome = given, [], WORDS.get(way, "")
    if way in ("by", "set"):
        pairs = [each.partition(": ") for each in ([given] if isinstance(given, str) else given)]
        # A claim of the paper by its name, one of another folder by its id.
        known = {claim_id.removeprefix(f"{paper}/"): claim_id for claim_id in claims}
        named = [known[check_choice(f"{where}: claim", name, list(known))] for name, _, _ in pairs]
        told = "; ".join(named)
    if way == "by":
        judged = [
            _judged(where, claims[claim_id], beginning, folder)
            for claim_id, (_, _, beginning) in zip(named, pairs, strict=True)
        ]
        told = "; ".join(each for each, _ in judged)
        outcome = min((word for _, word in judged), key=JUDGED.index)
    return Node(
        at=entry["at"], says=entry["says"], way=way, told=told, outcome=outcome,
        claims=tuple(named), recalled=entry.get("recalled", False),
    )  # fmt: skip


def _judged(where: str, claim: Claim, beginning: str, folder: Path) -> tuple[str, str]:
    """A claim and the outcome of its criteria that begin so, in words and in one of ``JUDGED``."""
    recorded = _criteria(claim.id, tuple(claim.settings), folder)
    if not recorded:
        return f"{claim.id}: {NOT_RUN}", NOT_RUN
    scale, hits = next(
        ((s, hits) for s, of in recorded.items() if (hits := _beginning(of, beginning))), ("", [])
    )
    if not beginning or not hits:
        some = next(iter(recorded.values()))
        raise ValueError(
            f"{where}: no criterion of {claim.id} begins with {beginning!r}; it has "
            f"{'; '.join(each.criterion for each in some)}"
        )
    outcomes = {each.outcome for each in hits}
    word = next(word for word in (FAILS, UNDECIDED, HOLDS) if word in outcomes)
    told = f"{claim.id}, {scale}: {hits[0].criterion}: {word}"
    return told, BELOW if word == HOLDS and scale != SCALES[-1] else word


def _beginning(criteria: Iterable[Criterion], beginning: str) -> list[Criterion]:
    return [each for each in criteria if each.criterion.startswith(beginning)]


@cache
def _criteria(claim_id: str, scales: tuple[str, ...], folder: Path) -> dict[str, list[Criterion]]:
    """Criteria of the records of a claim, the largest scale first; arrays are not read."""
    paths = {scale: record_path(claim_id, scale, folder) for scale in reversed(SCALES)}
    return {
        scale: [Criterion(**each) for each in store.read_json(path)["criteria"]]
        for scale, path in paths.items()
        if scale in scales and path.exists()
    }


# Pages -------------------------------------------------------------------------------------------


def coverage_table(by_paper: Mapping[str, list[Node]]) -> str:
    """Number of nodes by their outcomes, by paper."""
    shown = [*reversed(JUDGED), *WORDS.values()]
    head = ["| | " + " | ".join(shown) + " | all |", "|---" * (len(shown) + 2) + "|"]
    rows = []
    for paper, found in by_paper.items():
        counted = Counter(node.outcome for node in found)
        rows.append(markdown_row(paper, *(str(counted[x]) for x in shown), str(len(found))))
    return "\n".join(head + rows)


def coverage_page(claims: Mapping[str, Claim], folder: Path = RECORDS) -> str:
    """Contents of COVERAGE.md: the table, and every node with what judges it."""
    contents = papers(claims)
    by_paper = {paper: nodes(paper, of, claims, folder) for paper, of in contents.items()}
    parts = [
        "# Coverage",
        "Written by `python -m experiments report`; not to be edited. Every sentence of the papers "
        "with a number or a comparison, in our words, and what judges it. Of several criteria "
        "that furthest from holding counts. *So far*: below the paper's scale; *settings*: a "
        "claim follows the sentence; *forbidden*: data or scale forbid a judgement. (r) marks what "
        "is known from memory of the paper only.",
        coverage_table(by_paper),
    ]
    for paper, found in by_paper.items():
        rows = [
            markdown_row(
                node.at + (" (r)" if node.recalled else ""),
                node.says,
                node.told if node.way == "by" else f"{WORDS[node.way]}: {node.told}",
            )
            for node in found
        ]
        table = ["| place | sentence | judged by |", "|---|---|---|", *rows]
        parts += [f"## {contents[paper]['paper']}", contents[paper]["read"].strip()]
        parts.append("\n".join(table))
    return "\n\n".join(parts) + "\n"
