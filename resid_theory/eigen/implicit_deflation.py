"""Known weights of the eigenvalues that Lanczos runs have resolved: implicit deflation.

A probe weights an eigenvalue by the square of one random number. Where runs have resolved one, its
weight is known without it: 1/P. Whether it is a single one no single run can tell, but n runs can:
their n Ritz vectors span as many dimensions as it has copies, if these are fewer than n. Such a
value leaves the measures of all runs, which are those of runs in the complement of its eigenspace.

Source:
    Bhattacharjee, Jayaram, Musco, Musco & Ray 2024, "Improved spectral density estimation via
    explicit and implicit deflation", arXiv:2410.21690, for single eigenvalues.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from resid_theory.eigen.gauss_rules import RESOLVED, jacobi_matrix, nearest

_GHOST = 1e-20  # weight of the copies of an eigenvalue that rounding brings into a long run


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeMeasure:
    """The measure of one probe as its run shows it; all in units of the operator's ``unit``."""

    diagonal: Tensor  # (m,), of the Jacobi matrix
    links: Tensor  # (m,), its off-diagonal; the last one leads out of the Krylov space
    sketch: Tensor  # products of the run's vectors with a few random ones, (s, m)
    noise: float  # largest shift of an eigenvalue by rounding

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor]:
        return torch.linalg.eigh(jacobi_matrix(self.diagonal, self.links))

    @property
    def nodes(self) -> Tensor:
        """Nodes of the Gauss rule, ascending, (m,)."""
        return self._parts[0]

    @property
    def weights(self) -> Tensor:
        """Their weights, which add up to one."""
        return torch.nn.functional.normalize(self._parts[1][0].square(), p=1, dim=0)

    @cached_property
    def residuals(self) -> Tensor:
        """Residual of each Ritz vector, (m,)."""
        return self.links[-1] * self._parts[1][-1].abs() + self.noise

    @cached_property
    def sharpness(self) -> Tensor:
        """Residual relative to the distance to the next node: an error of the direction, (m,)."""
        return self.residuals / nearest(self.nodes)

    def vector(self, place: int) -> Tensor:
        """Direction of the sketch of a Ritz vector, (s,)."""
        found = self.sketch @ self._parts[1][:, place]
        return found / found.norm()

    def without(self, places: list[int]) -> "ProbeMeasure":
        """The measure without some nodes, with mass one again."""
        if not places:
            return self
        keep = [place for place in range(len(self.nodes)) if place not in places]
        nodes, start = self.nodes[keep], self._parts[1][0, keep].abs()
        # Lanczos on the nodes themselves, with as many Gram-Schmidt passes as it needs.
        basis, diagonal, links = [start / start.norm()], [], []
        while True:
            own = torch.stack(basis, 1)
            vector = nodes * basis[-1]
            diagonal.append(float(vector @ basis[-1]))
            for _ in range(2):
                vector = vector - own @ (own.T @ vector)
            link = float(vector.norm())
            if len(basis) == len(nodes) or link <= self.noise:
                break
            links.append(link)
            basis.append(vector / link)
        out = self.links[-1] * (self._parts[1][-1, keep] @ torch.stack(basis, 1)).norm()
        sketch = self.sketch @ self._parts[1][:, keep] @ torch.stack(basis, 1)
        return ProbeMeasure(
            diagonal=torch.tensor(diagonal, dtype=torch.float64),
            links=torch.tensor([*links, float(out)], dtype=torch.float64),
            sketch=sketch,
            noise=self.noise,
        )


def without_resolved(
    measures: list[ProbeMeasure],
) -> tuple[list[ProbeMeasure], list[float], list[float]]:
    """Take out what all have resolved; the rest, and value and residual of each known copy."""
    measures = [m.without((m.weights < _GHOST).nonzero().flatten().tolist()) for m in measures]
    values, residuals = list[float](), list[float]()
    taken: list[list[int]] = [[] for _ in measures]
    least = min(len(measure.nodes) for measure in measures)
    for place in range(len(measures[0].nodes)):
        same = _same(measures, place)
        if not same or len(taken[0]) + 1 == least:  # something must carry the rest
            continue
        pairs = list(zip(measures, same, strict=True))
        vectors = torch.stack([m.vector(i) for m, i in pairs])
        blur = max(float(m.sharpness[i]) for m, i in pairs)
        spans = torch.linalg.svdvals(vectors) > len(measures) ** 0.5 * max(1e-6, 4 * blur)
        copies = int(spans.sum())
        if copies == len(measures):  # or more
            continue
        values += [sum(float(m.nodes[i]) for m, i in pairs) / len(pairs)] * copies
        residuals += [max(float(m.residuals[i]) for m, i in pairs)] * copies
        for list_of_run, i in zip(taken, same, strict=True):
            list_of_run.append(i)
    rest = [m.without(places) for m, places in zip(measures, taken, strict=True)]
    return rest, values, residuals


def _same(measures: list[ProbeMeasure], place: int) -> list[int]:
    """Place of a node of the first measure in each, or nothing where it is not resolved in all."""
    value, reach = float(measures[0].nodes[place]), float(measures[0].residuals[place])
    found = []
    for measure in measures:
        nearest = int((measure.nodes - value).abs().argmin())
        apart = abs(float(measure.nodes[nearest]) - value)
        if float(measure.sharpness[nearest]) > RESOLVED:
            return []
        if apart > reach + float(measure.residuals[nearest]):
            return []
        found.append(nearest)
    return found
