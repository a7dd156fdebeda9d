"""All claims by id; a new paper is one more name here."""

from collections.abc import Iterable, Sequence

from experiments.claim import Claim, Record, standing
from resid_theory._check import choose

__all__ = ["CLAIMS", "join", "select", "unlisted"]


def join(*papers: Iterable[Claim]) -> dict[str, Claim]:
    """The claims of all papers by id, in the order given."""
    claims: dict[str, Claim] = {}
    for claim in (claim for paper in papers for claim in paper):
        if claim.id in claims:
            raise ValueError(f"id: {claim.id!r} is given to two claims, needs one name each")
        claims[claim.id] = claim
    return claims


CLAIMS = join()


def select(wanted: Sequence[str], claims: dict[str, Claim] | None = None) -> list[Claim]:
    """The claims whose ids begin with one of the names wanted; all of them if none is."""
    claims = CLAIMS if claims is None else claims
    papers = {name.split("/")[0] for name in claims}
    for name in wanted:
        if not any(claim_id.startswith(name) for claim_id in claims):
            choose("claim", name, [*claims, *sorted(papers)])
    return [c for c in claims.values() if not wanted or c.id.startswith(tuple(wanted))]


def unlisted(*records: Record) -> list[str]:
    """Criteria that fail in these records though their claim is not listed as not reproduced."""
    return [
        f"{record.claim}: {verdict.criterion}"
        for record in records
        for verdict in record.verdicts
        if not verdict.passed and standing(CLAIMS[record.claim]).word != "not reproduced"
    ]
