"""The claims of the papers, the records of their measurements, and the tables made from them."""

from experiments.claim import Claim
from experiments.criteria import Criterion, above, all_above, below, near, rate
from experiments.records import Record, live, load, measure, picture, record
from experiments.registry import CLAIMS, deviations
from experiments.verdicts import Verdict, verdict

__all__ = [
    "CLAIMS",
    "Claim",
    "Criterion",
    "Record",
    "Verdict",
    "above",
    "all_above",
    "below",
    "deviations",
    "live",
    "load",
    "measure",
    "near",
    "picture",
    "rate",
    "record",
    "verdict",
]
