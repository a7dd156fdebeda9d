"""Stochastic Lanczos quadrature: independent Lanczos runs, a block of probes at a time."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from resid_theory._check import as_generator, check_int
from resid_theory.eigen.certificate import Certificate
from resid_theory.eigen.density import Density
from resid_theory.eigen.eigenpair_result import Eigenpairs
from resid_theory.eigen.gauss_rules import jacobi_matrix
from resid_theory.eigen.implicit_deflation import ProbeMeasure, without_resolved
from resid_theory.eigen.krylov import check_symmetric, coefficient_noise, product_rounding
from resid_theory.eigen.operator_log import Operator, RecordedOperator
from resid_theory.eigen.orthogonalization import dots, project_out, random_orthonormal
from resid_theory.runtime.resources import available_bytes, readable_bytes

__all__ = ["Quadrature", "lanczos_quadrature", "spectral_density"]

_MEMORY = 1 << 30  # bytes of Lanczos vectors for probes that run side by side
_SKETCH = 8  # random vectors beside one for each probe, by which dimensions are counted


@dataclass(frozen=True, kw_only=True, eq=False)
class Quadrature:
    """Results of independent Lanczos runs in the complement of known eigenvectors U."""

    density: Density  # the quadratures of all runs, with the known eigenvalues
    # The rest is in units of the operator's ``unit``.
    first: Tensor  # zᵀ A z for each unit probe z, (probes,)
    squares: Tensor  # |A z|² for each unit probe, (probes,), including the part along U
    # Sum of λ⁴ over the square of that of λ², beside U; of a single step, by the spread of squares.
    share: float
    rounding: float  # length of the rounding error of a product with a unit vector
    certificates: list[Certificate]  # one for each probe, of the operator on the complement


def spectral_density(
    A: Operator,
    *,
    probes: int = 10,
    steps: int = 100,
    deflate: Eigenpairs | None = None,
    generator: torch.Generator | int = 0,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Density:
    """Distribution of the eigenvalues of a symmetric operator, with error bars over the probes.

    Stochastic Lanczos quadrature with two Gram-Schmidt passes, so that no eigenvalue is counted
    twice by a ghost copy. Probes run side by side as one block, as many as fit into 1 GiB.

    Args:
        A: (P, P), symmetric: a tensor, or anything with ``A @ vectors`` for (P, b) vectors, a
            shape, a dtype and a device.
        probes: Number of independent random vectors; at least two for an error bar.
        steps: Number of Lanczos steps per probe.
        deflate: Known eigenpairs, e.g. the outliers: they are counted exactly, and the probes stay
            in their complement.
        generator: For the probes: a generator, or the seed of a new one.
        folder: Folder in which to record the products, so that a killed call, made again, continues
            from there. None for no record.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The distribution.

    Raises:
        ValueError: If A is not a symmetric operator or a count is below 1.
        MemoryError: If the vectors of a single probe do not fit.

    Example:
        >>> A = torch.diag(torch.tensor([-1.0] * 30 + [2.0] * 70))
        >>> found = rt.spectral_density(A, probes=20)
        >>> found.negative_share.covers(0.3)
        True
    """
    generator = as_generator(generator)
    total = check_int("probes", probes) * check_int("steps", steps)
    label = "Lanczos quadrature"
    with RecordedOperator(
        A, folder=folder, progress=progress, label=label, expected=total
    ) as operator:
        vectors = operator.no_vectors
        values = residuals = torch.empty(0, dtype=torch.float64)
        # All vectors of a space would leave nothing to probe.
        if deflate is not None and len(deflate) != operator.size:
            if deflate.vectors.shape[0] != operator.size:
                raise ValueError(
                    f"deflate: has vectors of {deflate.vectors.shape[0]} entries, A has "
                    f"{operator.size}"
                )
            vectors = deflate.vectors.to(operator.device, operator.dtype)
            values, residuals = deflate.values, deflate.residuals
        return lanczos_quadrature(
            operator, vectors, values, residuals, probes=probes, steps=steps, generator=generator
        ).density


def lanczos_quadrature(
    operator: RecordedOperator,
    vectors: Tensor,
    known: Tensor,
    residuals: Tensor,
    *,
    probes: int,
    steps: int,
    generator: torch.Generator,
) -> Quadrature:
    """Run Lanczos from random vectors in the complement of known eigenvectors, (P, l), l < P."""
    # Their values and residuals are in units of the eigenvalues, as the density is.
    steps = min(steps, operator.size - vectors.shape[1])
    one = operator.size * (steps + 1) * torch.finfo(operator.dtype).bits // 8
    if operator.device.type == "cpu" and one > available_bytes():
        raise MemoryError(
            f"steps: {steps} vectors of {operator.size} entries need {readable_bytes(one)}, "
            f"{readable_bytes(available_bytes())} are available; ask for fewer steps"
        )
    at_once = max(1, min(probes, _MEMORY // one))
    # Spans of vectors are told by their products with a few random ones, of a stream of its own.
    own = torch.Generator().manual_seed(0)
    sketch = torch.randn(operator.size, probes + _SKETCH, generator=own).to(vectors)
    runs: list[_ProbeRun] = []
    for begin in range(0, probes, at_once):
        count = min(at_once, probes - begin)
        fresh = [_ProbeRun(vectors, steps, generator) for _ in range(count)]
        active = fresh
        for step in range(steps):
            block = operator @ torch.stack([run.basis[:, step] for run in active], 1)
            for number, run in enumerate(active):
                product = block[:, number : number + 1].clone()
                run.advance(product, vectors, operator)
            active = [run for run in active if not run.complete]
            if not active:
                break
        for run in fresh:
            run.sketch = dots(sketch, run.basis[:, : len(run.diagonal)]).cpu()
            del run.basis  # the vectors are large, and no longer needed
            # As many steps as there are dimensions: nothing is left outside.
            run.complete |= len(run.diagonal) + vectors.shape[1] == operator.size
        runs += fresh
    # Where only zeros are left beside the known ones, the probes see nothing but their rounding.
    largest = max([*(run.scale for run in runs), *(known.abs() / operator.unit).tolist()])
    check_symmetric(operator, max(run.asymmetry for run in runs), largest)
    rounding = max(run.rounding(operator, largest) for run in runs)
    shift = operator.size**0.5 * rounding  # of an eigenvalue, at most
    measures, values, spread = without_resolved([run.measure(shift) for run in runs])
    known = torch.cat([known, operator.unit * torch.tensor(values, dtype=torch.float64)])
    own_residuals = operator.unit * torch.tensor(spread, dtype=torch.float64)
    residuals = torch.cat([residuals, own_residuals])
    nodes, weights, diagonals, links = _padded(measures)
    # The nuclear norm is at most the sum of the columns' norms, or sqrt(P) Frobenius norms.
    known_error = 2 * residuals.sum().item() / operator.size + operator.unit * (
        rounding + operator.error.frobenius / operator.size**0.5
    )
    density = Density(
        size=operator.size,
        nodes=nodes * operator.unit,
        weights=weights,
        diagonals=diagonals * operator.unit,
        links=links * operator.unit,
        complete=torch.tensor([run.complete for run in runs]),
        known=known,
        known_residuals=residuals,
        known_error=known_error,
        round_off=max(shift, operator.error.spectral) * operator.unit,
        products=operator.count,
    )
    noise = max(coefficient_noise(operator, rounding), torch.finfo(torch.float64).tiny)
    dimension = operator.size - vectors.shape[1]
    return Quadrature(
        density=density,
        first=torch.tensor([run.diagonal[0] for run in runs], dtype=torch.float64),
        squares=torch.tensor([run.square for run in runs], dtype=torch.float64),
        share=_share(runs, dimension),
        rounding=rounding,
        certificates=[
            Certificate(dimension=dimension, draws=1, ladder=run.ladder, noise=noise)
            for run in runs
        ],
    )


class _ProbeRun:
    """One Lanczos recurrence from a random unit vector in the complement of U."""

    def __init__(self, vectors: Tensor, steps: int, generator: torch.Generator) -> None:
        self.basis = vectors.new_empty(steps + 1, len(vectors)).T
        self.basis[:, :1] = random_orthonormal(1, vectors, generator)
        self.diagonal: list[float] = []
        self.links: list[float] = []
        self.square, self.complete, self.scale, self.asymmetry = 0.0, False, 0.0, 0.0
        self.sketch = torch.empty(0, dtype=torch.float64)

    def advance(self, product: Tensor, vectors: Tensor, operator: RecordedOperator) -> None:
        """One step: orthogonalize the product against U and the basis, twice."""
        count = len(self.diagonal) + 1
        norm = float(dots(product, product).sqrt())
        self.scale = max(self.scale, norm)
        if count == 1:
            self.square = norm**2
        own = self.basis[:, :count]
        coefficients = torch.zeros(count, dtype=torch.float64)
        for roughly in (True, False):
            project_out(product, vectors, roughly=roughly)
            coefficients += project_out(product, own, roughly=roughly)[:, 0].cpu()
        link = float(dots(product, product).sqrt())
        *others, last = coefficients.tolist()
        if others:  # of a symmetric operator, the last link and zeros
            others[-1] -= self.links[-1]
            self.asymmetry = math.hypot(self.asymmetry, math.hypot(*others) / 2**0.5)
        self.diagonal.append(last)
        self.links.append(link)
        self.complete = link <= self.rounding(operator, self.scale)
        if not self.complete:
            self.basis[:, count : count + 1] = product / link

    def rounding(self, operator: RecordedOperator, scale: float) -> float:
        """Length of the rounding error of a product with a unit vector."""
        return product_rounding(operator, scale, self.asymmetry, len(self.diagonal))

    def measure(self, noise: float) -> ProbeMeasure:
        """The measure of the probe, as far as the run shows it."""
        links = [*self.links[:-1], 0.0 if self.complete else self.links[-1]]
        return ProbeMeasure(
            diagonal=torch.tensor(self.diagonal, dtype=torch.float64),
            links=torch.tensor(links, dtype=torch.float64),
            sketch=self.sketch,
            noise=noise,
        )

    @property
    def ladder(self) -> Tensor:
        """The Jacobi matrix above its last link, which is left out where the space is invariant."""
        steps = len(self.diagonal)
        matrix = torch.zeros(steps + 1, steps, dtype=torch.float64)
        matrix[:-1] = jacobi_matrix(
            torch.tensor(self.diagonal, dtype=torch.float64),
            torch.tensor(self.links, dtype=torch.float64),
        )
        matrix[-1, -1] = self.links[-1]
        return matrix[:-1] if self.complete else matrix


def _share(runs: list[_ProbeRun], dimension: int) -> float:
    """Share of few eigenvalues in the sum of all λ²."""
    squares = torch.tensor([run.square for run in runs], dtype=torch.float64)
    mean = squares.mean().item()
    if mean == 0 or len(runs) < 2 and len(runs[0].diagonal) < 2:
        return 1.0
    if all(run.complete or len(run.diagonal) > 1 for run in runs):
        ladders = [run.ladder for run in runs]
        firsts = [ladder[: ladder.shape[1], 0] for ladder in ladders]
        fourth = [(a @ b).square().sum() for a, b in zip(ladders, firsts, strict=True)]
        second = [b.square().sum() for b in firsts]
        mean = float(torch.stack(second).mean())
        return float(torch.stack(fourth).mean()) / (dimension * mean**2) if mean else 1.0
    return squares.var().item() / mean**2 / 2


def _padded(measures: list[ProbeMeasure]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nodes, weights, diagonals and links of all measures, padded to one length."""
    most = max(len(measure.nodes) for measure in measures)
    nodes = torch.zeros(len(measures), most, dtype=torch.float64)
    weights, diagonals, links = (torch.zeros_like(nodes) for _ in range(3))
    for number, measure in enumerate(measures):
        count = len(measure.nodes)
        nodes[number] = measure.nodes[-1]  # the rest has no weight
        nodes[number, :count], weights[number, :count] = measure.nodes, measure.weights
        diagonals[number, :count], links[number, :count] = measure.diagonal, measure.links
    return nodes, weights, diagonals, links
