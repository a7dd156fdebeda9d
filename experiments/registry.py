"""The registry of all claims by id; a new paper adds one name here."""

from collections.abc import Iterable, Sequence

from experiments import crossings, demystifying_resnet, diracnets, noise_stability
from experiments.claim import Claim
from experiments.records import Record
from experiments.verdicts import verdict
from resid_theory._check import check_choice


def join(*papers: Iterable[Claim]) -> dict[str, Claim]:
    """Collect the claims of all papers by id, in the order given."""
    claims: dict[str, Claim] = {}
    for claim in (claim for paper in papers for claim in paper):
        if claim.id in claims:
            raise ValueError(f"id: {claim.id!r} is given to two claims, needs a unique id for each")
        claims[claim.id] = claim
    return claims


CLAIMS = join(
    demystifying_resnet.CLAIMS, noise_stability.CLAIMS, diracnets.CLAIMS, crossings.CLAIMS
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
        check_choice(
            "claim", name, [*claims, *sorted({claim_id.split("/")[0] for claim_id in claims})]
        )
    return found


def unlisted(*records: Record) -> list[str]:
    """Criteria that fail in these records although the verdict of the claim is not a failure."""
    return [
        f"{record.claim}: {criterion.criterion}"
        for record in records
        for criterion in record.criteria
        if criterion.holds is False
        and verdict(CLAIMS[record.claim]).word not in ("refuted", "fails so far", "not run")
    ]
