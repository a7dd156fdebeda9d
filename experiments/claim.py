"""A claim as data: a sentence of a paper or of our own, how it is computed, judged and drawn."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from experiments.criteria import Criterion
from experiments.external_data import Need
from resid_theory._check import check_choice

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALES = ("quick", "short", "single", "paper")
KINDS = ("paper", "extension", "law")
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of a paper, of an extension of it, or of our own.

    Attributes:
        id: ``"<paper>/<claim>"``, lower case with underscores.
        source: Authors, version read, theorem, equation or figure.
        says: The assertion, in one sentence.
        kind: ``"paper"`` for what the paper says; ``"extension"`` for its sentence where the paper
            did not test it (another loss, another data set); ``"law"`` for a sentence of our own.
        settings: Keyword arguments of ``compute`` by scale: ``"quick"`` (CPU, at most 4 s: a test
            of the code, without a verdict), ``"short"`` (CPU, at most 1 h), ``"single"`` (the
            paper's recipe with one seed and the fewest depths that carry the sentence),
            ``"paper"``. The reserved key ``"scaled"`` describes how far a scale falls short of the
            paper; it is not passed to ``compute``.
        compute: Computes named arrays from settings; pure, with seeds in the settings. A parameter
            ``device`` receives the device of the run; with a parameter ``each``, its parts can be
            cells of a sweep.
        judge: Computes criteria from the arrays; those of samples are decided together.
        draw: Draws the arrays in an empty figure; computes nothing.
        needs: Data without which a scale is skipped, by scale.
    """

    id: str
    source: str
    says: str
    settings: Mapping[str, Mapping[str, object]]
    compute: Callable[..., Arrays]
    judge: Callable[[Arrays], Sequence[Criterion]]
    draw: Callable[["Figure", Arrays], None]
    kind: str = "paper"
    needs: Mapping[str, Need] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+/[a-z0-9_]+", self.id):
            raise ValueError(f"id: got {self.id!r}, needs '<paper>/<claim>' in lower case")
        if not self.settings:
            raise ValueError(f"settings: {self.id} has none, needs a scale among {SCALES}")
        check_choice("kind", self.kind, KINDS)
        for scale in (*self.settings, *self.needs):
            check_choice("scale", scale, SCALES if scale in self.settings else list(self.settings))

    def takes(self, argument: str) -> bool:
        """True if ``compute`` has a parameter of this name that is no setting."""
        known = argument in inspect.signature(self.compute).parameters
        return known and not any(argument in given for given in self.settings.values())

    def missing(self, scale: str) -> str:
        """Reason why a scale cannot be run here; empty if it can."""
        return self.needs[scale].missing() if scale in self.needs else ""
