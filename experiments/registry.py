"""The registry of all claims by id; a new paper adds one name here."""

import difflib
from collections.abc import Iterable, Sequence

from experiments import (
    crossings,
    demystifying_resnet,
    diracnets,
    every_layout,
    noise_stability,
)
from experiments.claim import Claim
from experiments.records import Record, judged, load, record_path


def join(*papers: Iterable[Claim]) -> dict[str, Claim]:
    """Collect the claims of all papers by id, in the order given."""
    claims: dict[str, Claim] = {}
    for claim in (claim for paper in papers for claim in paper):
        if claim.id in claims:
            raise ValueError(f"id: {claim.id!r} is given to two claims, needs a unique id for each")
        claims[claim.id] = claim
    return claims


CLAIMS = join(
    demystifying_resnet.CLAIMS,
    noise_stability.CLAIMS,
    diracnets.CLAIMS,
    crossings.CLAIMS,
    every_layout.CLAIMS,
)


def select(wanted: Sequence[str], claims: dict[str, Claim] | None = None) -> list[Claim]:
    """Select claims by ids or prefixes of ids; all of them if none is given."""
    claims = CLAIMS if claims is None else claims
    chosen = {claim_id for name in wanted for claim_id in _matches(name, claims)}
    return [claim for claim in claims.values() if not wanted or claim.id in chosen]


def _matches(name: str, claims: dict[str, Claim]) -> list[str]:
    if name in claims:  # figure_1 is not figure_10
        return [name]
    found = [claim_id for claim_id in claims if claim_id.startswith(name)]
    if not found:
        near = [claim_id for claim_id in claims if name in claim_id]
        near = near or difflib.get_close_matches(name, claims)
        hint = f"did you mean {' or '.join(map(repr, near[:3]))}? " if near else ""
        every = "'python -m experiments list' names all"  # a hundred would hide what is meant
        raise ValueError(f"claims: unknown name {name!r}; {hint}{every}")
    return found


def deviations(*records: Record) -> list[str]:
    """Criteria that these arrays do not meet today as the committed record of their scale does."""
    found = []
    for record in records:
        claim = CLAIMS[record.claim]
        if record_path(claim.id, record.scale).exists():
            then = {c.criterion: c.outcome for c in load(claim, record.scale).criteria}
            now = {c.criterion: c.outcome for c in judged(claim, record.arrays)}
            found += [
                f"{claim.id}: {name}: was {then.get(name, 'absent')}, is {now.get(name, 'absent')}"
                for name in {**then, **now}
                if then.get(name) != now.get(name)
            ]
        elif record.scale != "quick":
            found.append(f"{claim.id}: has no {record.scale} record")
    return found
