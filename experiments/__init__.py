"""What each paper claims, and what was measured: claims, records, and the table made from them."""

from experiments.claim import Claim, Record, Verdict, live, load, measure, picture, record, standing
from experiments.registry import CLAIMS, unlisted

__all__ = [
    "CLAIMS",
    "Claim",
    "Record",
    "Verdict",
    "live",
    "load",
    "measure",
    "picture",
    "record",
    "standing",
    "unlisted",
]
