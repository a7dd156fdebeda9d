"""Stochastic Lanczos quadrature: independent Lanczos runs, a block of probes at a time."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from resid_theory._check import as_generator, check_int
from resid_theory.eigen.certificate import Certificate
from resid_theory.eigen.density import Density
from resid_theory.eigen.estimates import Eigenpairs
from resid_theory.eigen.krylov import rank_threshold
from resid_theory.eigen.operator_log import Operator, RecordedOperator
from resid_theory.eigen.orthogonalization import dots, draw, project_out
from resid_theory.runtime.resources import available_bytes, readable_bytes

__all__ = ["Quadrature", "distribution", "quadrature", "spectral_density"]

_MEMORY = 1 << 30  # bytes of Lanczos vectors for probes that run side by side


@dataclass(frozen=True, kw_only=True, eq=False)
class Quadrature:
    """What independent Lanczos runs in the complement of known eigenvectors U gave.

    Attributes:
        nodes: As in :class:`Density`.
        weights: As in :class:`Density`.
        diagonals: As in :class:`Density`.
        links: As in :class:`Density`.
        complete: As in :class:`Density`.
        first: zᵀ A z for each unit probe z, (probes,).
        squares: |A z|² for each unit probe, (probes,), the part along U included.
        scale: Largest |A v| that occurred, for vectors of length one.
    """

    nodes: Tensor
    weights: Tensor
    diagonals: Tensor
    links: Tensor
    complete: Tensor
    first: Tensor
    squares: Tensor
    scale: float

    def certificates(self, dimension: int, noise: float) -> list[Certificate]:
        """What each run tells about the ends of the spectrum in the complement.

        Args:
            dimension: Of the complement.
            noise: As in :class:`Certificate`.

        Returns:
            One a probe; the probes are independent.
        """
        runs = zip(self.diagonals, self.links, self.weights, self.complete, strict=True)
        return [
            Certificate(
                dimension=dimension,
                draws=1,
                ladder=_ladder(diagonal, links, int((weights > 0).sum()), bool(complete)),
                noise=noise,
            )
            for diagonal, links, weights, complete in runs
        ]


def _ladder(diagonal: Tensor, links: Tensor, steps: int, complete: bool) -> Tensor:
    """The tridiagonal matrix of a run, above its last link."""
    ladder = torch.zeros(steps + 1, steps, dtype=torch.float64)
    ladder.diagonal().copy_(diagonal[:steps])
    ladder.diagonal(-1).copy_(links[:steps])
    ladder.diagonal(1).copy_(links[: steps - 1])
    return ladder[:steps] if complete else ladder


def spectral_density(
    A: Operator,
    *,
    probes: int = 10,
    steps: int = 100,
    deflate: Eigenpairs | None = None,
    generator: torch.Generator | int = 0,
    precision: torch.dtype | None = None,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Density:
    """Distribution of the eigenvalues of a symmetric operator, with error bars over the probes.

    Stochastic Lanczos quadrature with two Gram-Schmidt passes, so that no eigenvalue is counted by
    a ghost. Probes run side by side as one block product, as many as 1 GiB of vectors allows.

    Args:
        A: As in :func:`eigenpairs`.
        probes: Independent random vectors; two at least for an error bar.
        steps: Lanczos steps a probe.
        deflate: Eigenpairs that are known, e.g. the outliers: they are counted exactly and the
            probes stay in their complement.
        generator: For the probes: a generator, or the seed of a new one.
        precision: As in :func:`eigenpairs`.
        folder: As in :func:`eigenpairs`.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The distribution.

    Raises:
        ValueError: If A is no symmetric operator or a count is below 1.
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
        A, folder=folder, progress=progress, label=label, expected=total, precision=precision
    ) as products:
        vectors, values, error = _known(products, deflate)
        found = quadrature(products, vectors, probes=probes, steps=steps, generator=generator)
        return distribution(products, found, values, error)


def _known(products: RecordedOperator, pairs: Eigenpairs | None) -> tuple[Tensor, Tensor, float]:
    """Vectors and values to deflate, with their error; all of a space leave nothing to probe."""
    if pairs is None or len(pairs) == products.size:
        empty = torch.empty(products.size, 0, dtype=products.dtype, device=products.device)
        return empty, torch.empty(0, dtype=torch.float64), 0.0
    if pairs.vectors.shape[0] != products.size:
        raise ValueError(
            f"deflate: has vectors of {pairs.vectors.shape[0]} entries, A has {products.size}"
        )
    # The nuclear norm is at most the sum of the columns' norms.
    error = 2 * pairs.residuals.sum().item() / products.size
    return pairs.vectors.to(products.device, products.dtype), pairs.values, error


def distribution(
    products: RecordedOperator, found: Quadrature, known: Tensor, error: float
) -> Density:
    """The density that a quadrature and known eigenvalues make up.

    Args:
        products: The operator.
        found: The quadrature in the complement.
        known: (l,), eigenvalues.
        error: Of these, as the attribute of the density.

    Returns:
        The density.
    """
    # Where only zeros are left beside the known ones, all that probes see is these ones' rounding.
    scale = max([found.scale, *known.abs().tolist()])
    return Density(
        size=products.size,
        nodes=found.nodes,
        weights=found.weights,
        diagonals=found.diagonals,
        links=found.links,
        complete=found.complete,
        known=known,
        known_error=error,
        round_off=products.size**0.5 * rank_threshold(products.precision, products.size) * scale,
        products=products.count,
    )


def quadrature(
    products: RecordedOperator,
    vectors: Tensor,
    *,
    probes: int,
    steps: int,
    generator: torch.Generator,
) -> Quadrature:
    """Run Lanczos from independent random vectors in the complement of given ones.

    Args:
        products: The operator; its count goes on.
        vectors: U, (P, l), orthonormal, l < P.
        probes: How many runs.
        steps: Steps of each, fewer where its space becomes invariant.
        generator: Of the starts.

    Returns:
        Nodes and weights.

    Raises:
        MemoryError: If the vectors of a single run do not fit.
    """
    steps = min(steps, products.size - vectors.shape[1])
    one = products.size * (steps + 1) * torch.finfo(products.dtype).bits // 8
    if products.device.type == "cpu" and one > available_bytes():
        raise MemoryError(
            f"steps: {steps} vectors of {products.size} entries need {readable_bytes(one)}, "
            f"{readable_bytes(available_bytes())} are available; ask for fewer steps"
        )
    at_once = max(1, min(probes, _MEMORY // one))
    runs: list[_ProbeRun] = []
    for begin in range(0, probes, at_once):
        count = min(at_once, probes - begin)
        fresh = [_ProbeRun(products, vectors, steps, generator) for _ in range(count)]
        _advance(products, fresh, vectors, steps)
        runs += fresh
    return _collect(runs, steps)


class _ProbeRun:
    """One Lanczos recurrence; its vectors are let go when it ends."""

    def __init__(
        self, products: RecordedOperator, vectors: Tensor, steps: int, generator: torch.Generator
    ) -> None:
        size = products.size
        self.basis: Tensor | None = vectors.new_empty(steps + 1, size).T
        self.basis[:, :1] = draw(size, 1, vectors, generator)
        self.diagonal: list[float] = []
        self.links: list[float] = []
        self.square, self.complete, self.scale = 0.0, False, 0.0

    def take(self, product: Tensor, vectors: Tensor, threshold: float) -> None:
        """One step: orthogonalize the product against everything, twice."""
        assert self.basis is not None
        count = len(self.diagonal) + 1
        norm = float(dots(product, product).sqrt())
        self.scale = max(self.scale, norm)
        if count == 1:
            self.square = norm**2
        own, last = self.basis[:, :count], 0.0
        for roughly in (True, False):
            project_out(product, vectors, roughly=roughly)
            last += float(project_out(product, own, roughly=roughly)[-1])
        link = float(dots(product, product).sqrt())
        self.diagonal.append(last)
        self.links.append(link)
        self.complete = link <= threshold * self.scale
        if not self.complete:
            self.basis[:, count : count + 1] = product / link

    def rule(self) -> tuple[Tensor, Tensor]:
        """Nodes and weights of the Gauss quadrature."""
        off = torch.tensor(self.links[:-1], dtype=torch.float64)
        diagonal = torch.tensor(self.diagonal, dtype=torch.float64)
        matrix = torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1)
        nodes, vectors = torch.linalg.eigh(matrix)
        return nodes, vectors[0].square()


def _advance(
    products: RecordedOperator, runs: list[_ProbeRun], vectors: Tensor, steps: int
) -> None:
    threshold = rank_threshold(products.precision, products.size)
    active = list(runs)
    for step in range(steps):
        current = [run.basis[:, step] for run in active if run.basis is not None]
        block = products @ torch.stack(current, 1)
        for number, run in enumerate(active):
            run.take(block[:, number : number + 1].clone(), vectors, threshold)
        active = [run for run in active if not run.complete]
        if not active:
            break
    for run in runs:
        run.basis = None
        # As many steps as there are dimensions: nothing is left outside.
        run.complete |= len(run.diagonal) + vectors.shape[1] == products.size


def _collect(runs: list[_ProbeRun], steps: int) -> Quadrature:
    most = max(len(run.diagonal) for run in runs)
    nodes = torch.zeros(len(runs), most, dtype=torch.float64)
    weights, diagonals, links = (torch.zeros_like(nodes) for _ in range(3))
    for number, run in enumerate(runs):
        places, shares = run.rule()
        nodes[number] = places[-1]  # the rest has no weight
        nodes[number, : len(places)] = places
        diagonals[number, : len(places)] = torch.tensor(run.diagonal, dtype=torch.float64)
        links[number, : len(places)] = torch.tensor(run.links, dtype=torch.float64)
        weights[number, : len(places)] = shares / shares.sum()
    return Quadrature(
        nodes=nodes,
        weights=weights,
        diagonals=diagonals,
        links=links,
        complete=torch.tensor([run.complete for run in runs]),
        first=torch.tensor([run.diagonal[0] for run in runs], dtype=torch.float64),
        squares=torch.tensor([run.square for run in runs], dtype=torch.float64),
        scale=max(run.scale for run in runs),
    )
