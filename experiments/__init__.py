"""The claims of the papers, the records of their measurements, and the tables made from them."""

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
