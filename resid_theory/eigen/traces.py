r"""Trace and Frobenius norm from random products, behind a Krylov space where that pays.

A few random orthonormal vectors come first. The products y of random unit vectors show how much of
the operator is in few eigenvalues: the mean of cos²(y_i, y_j) is that of λ⁴ over P times the square
of that of λ². If this share is small, further random vectors are best (Hutchinson's estimator, on
the sphere). If it is large, Lanczos goes on from the strongest combination of the y. Each step adds
a vector whose image is known, so that the trace on this space V is exact. What is left of the y
beside V shows |A|² and the share of few eigenvalues there. Their product is what a new start from
the y is expected to remove of |A|² per step: Lanczos starts anew where its own steps remove less,
and ends where neither removes one part in so many as there are products left. These probe the
complement of V.

Given V, the mean of these probes is the truth, so that its error is uncorrelated with that of the
first vectors as probes of A itself: the two are weighted by their inverse variances, so that the
first vectors are not lost where Lanczos removed little.

A unit vector z, uniform on the sphere of N dimensions, has the variance of zᵀ A z

    2 / (N + 2) (|A|² / N - (tr A / N)²),    |A|² = N E |A z|²,

so that the lengths of the products give the error bar, far more exactly than the spread of the few
zᵀ A z would; n orthonormal vectors have (N - n) / (N - 1) / n of it. As squares of
normal numbers do, |A z|² varies by 2 Σ λ⁴ / N², which the Gram matrix of the products shows: over
the square of the mean it gives the degrees of freedom of Student's distribution. For the interval
of |A|² itself, see :func:`~resid_theory.eigen.estimate.squares_mean`.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from resid_theory._check import as_generator, check_int
from resid_theory.eigen.estimate import Cumulants, Estimate, root, sphere_mean, squares_mean
from resid_theory.eigen.krylov import product_rounding
from resid_theory.eigen.operator_log import Operator, RecordedOperator
from resid_theory.eigen.orthogonalization import dots, project_out, random_orthonormal

_NOISE = 1e-2  # relative; an asymmetry up to this is taken for rounding
# Chosen on the eleven spectra that benchmarks/hessian_spectra.py sets aside for it.
_PILOT = 12  # one product in so many is a random vector to begin with, and two or three more
_FEWEST = 4  # probes of the complement are at least so many, and one in so many products
_PAYS = 0.7  # share in few eigenvalues times the products left, above which Lanczos goes on


def trace(
    A: Operator,
    *,
    budget: int = 60,
    generator: torch.Generator | int = 0,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Estimate:
    """Trace of a square operator from random products, with an error bar.

    The first products show whether few eigenvalues carry most of the Frobenius norm. If so, a
    Krylov space takes these up, on which the trace is exact, and random vectors probe the rest;
    else all products are those of random vectors. These are orthonormal and uniform on the sphere:
    their length carries no information, so that a fixed length lowers the variance.

    Args:
        A: (P, P): a tensor, or anything with ``@``, a shape, a dtype and a device; if it is not
            symmetric, the interval may be too wide.
        budget: Largest number of products with one vector, at least 6. From P on, P products give
            the trace without a random error.
        generator: For the random vectors: a generator, or the seed of a new one.
        folder: Where to record the products, so that a killed call, made again, continues.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The trace, in units of the eigenvalues. Its standard error is that of random vectors on a
        sphere, from the lengths of the products; the interval is Student's, widened by the rounding
        of the products.

    Raises:
        ValueError: If A is not a square operator or the budget is too small.

    Source:
        Girard 1989 and Hutchinson 1990 for the probes; Meyer, Musco, Musco & Woodruff 2021,
        "Hutch++: Optimal stochastic trace estimation", for an exact part; Chen & Hallman 2023,
        "Krylov-aware stochastic trace estimation", arXiv:2205.01736, for the Krylov space.

    Example:
        >>> A = torch.diag(torch.arange(1.0, 101.0))
        >>> rt.trace(A).covers(5050.0)
        True
    """
    with RecordedOperator(
        A, folder=folder, progress=progress, label="trace", expected=budget
    ) as operator:
        return _estimates(operator, budget, generator, power=1)[0].scaled(operator.unit)


def frobenius_norm(
    A: Operator,
    *,
    budget: int = 60,
    generator: torch.Generator | int = 0,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Estimate:
    """Frobenius norm of an operator, by the method of :func:`trace`.

    The samples |A z|² of random unit vectors vary with λ⁴ where those of the trace vary with λ², so
    that the Krylov space pays earlier and ends later.

    Args:
        A: (P, P), symmetric or not, or a block (rows, P): a tensor, or anything with ``@``, a
            shape, a dtype and a device.
        budget: Largest number of products with one vector, at least 6; below 10 the interval may
            hold the norm for 17 of 20 seeds only. From P on, P products give the norm without a
            random error.
        generator: For the random vectors: a generator, or the seed of a new one.
        folder: Where to record the products, so that a killed call, made again, continues.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The norm, in units of the entries; the ends of its interval are roots of those of the
        square, widened by the rounding of the products.

    Raises:
        ValueError: If A is not an operator or the budget is too small.

    Example:
        >>> A = torch.diag(torch.arange(1.0, 101.0))
        >>> rt.frobenius_norm(A, generator=1).covers(A.norm().item())  # as 19 of 20 seeds do
        True
    """
    with RecordedOperator(
        A,
        folder=folder,
        progress=progress,
        label="Frobenius norm",
        expected=budget,
        square=False,
    ) as operator:
        return _estimates(operator, budget, generator, power=2)[1].scaled(operator.unit)


class _Drawn:
    """Orthonormal vectors with their images: a space V first, then random ones behind it."""

    def __init__(self, operator: RecordedOperator, most: int) -> None:
        self.operator, self.count = operator, 0
        self.known = 0  # number of vectors of V
        self.pilots = 0  # the first ones of these that are random
        self._vectors = operator.no_vectors.new_empty(most, operator.size).T
        self._images = operator.no_vectors.new_empty(most, operator.rows).T

    @property
    def vectors(self) -> Tensor:
        """[V, Z], (P, m)."""
        return self._vectors[:, : self.count]

    @property
    def images(self) -> Tensor:
        """A [V, Z], (rows, m)."""
        return self._images[:, : self.count]

    def add(self, vectors: Tensor) -> Tensor:
        """Take in orthonormal vectors, and return their images."""
        new = slice(self.count, self.count + vectors.shape[1])
        self._vectors[:, new], self._images[:, new] = vectors, self.operator @ vectors
        self.count = new.stop
        return self._images[:, new]

    def add_random(self, count: int, generator: torch.Generator) -> None:
        """Take in vectors that are uniform in the complement of those before."""
        self.add(random_orthonormal(count, self.vectors, generator))


def _draw(
    operator: RecordedOperator, budget: int, generator: torch.Generator, power: int
) -> _Drawn:
    """Make the products, for samples that vary with λ² (``power`` 1) or λ⁴ (2)."""
    size = operator.size
    drawn = _Drawn(operator, min(budget, size))
    if budget >= size:
        # Not unit vectors, whose products may be exact where others are rounded.
        drawn.add_random(size, generator)
        drawn.known = size
        return drawn
    while drawn.count < budget and not drawn.known:
        left = budget - drawn.count
        drawn.add_random(min(int(2.5 + budget / _PILOT), left), generator)
        left = budget - drawn.count
        share = _concentration(dots(drawn.images, drawn.images).cpu())
        if operator.rows == size and share ** (1 / power) * left > _PAYS * power:
            _extend(drawn, budget, power)
    if drawn.count < budget:
        drawn.add_random(budget - drawn.count, generator)
    return drawn


def _extend(drawn: _Drawn, budget: int, power: int) -> None:
    """Go on by Lanczos from images of random vectors, as long as this lowers the error."""
    removed: list[float] = []
    drawn.pilots, vector = drawn.count, None
    rest = drawn.images.clone()
    rounding = product_rounding(drawn.operator, float(_squares(rest).max().sqrt()))
    project_out(rest, drawn.vectors)
    while (left := budget - drawn.count) > max(_FEWEST, budget // _FEWEST):
        gram = dots(rest, rest).cpu()
        many = len(gram) > 1
        remaining = float(gram.trace()) * drawn.operator.size / max(1, len(gram))
        share = _concentration(gram) if many else 0.0
        # Two steps show what Lanczos removes; a new start from images y is expected to remove
        # |A y|² / |y|², after a pause or where vectors have the same image.
        anew, gain = share * remaining, sum(removed[-2:]) / 2
        if len(removed) > 1:
            if left * max(anew, gain) ** power < remaining**power * share ** (power - 1):
                break
            vector = None if gain < anew else vector
        if vector is None:
            if not len(gram):
                break
            strongest = torch.linalg.eigh(gram).eigenvectors[:, -1:].to(rest)
            vector, rest, removed = rest @ strongest, rest @ _complement(strongest), []
        project_out(vector, drawn.vectors)
        norm = float(dots(vector, vector).sqrt())
        if norm <= rounding:
            vector, removed = None, []
            continue
        vector = vector / norm
        image = drawn.add(vector)
        own = float(dots(vector, image))
        project_out(rest, vector)
        vector = image.clone()
        project_out(vector, drawn.vectors)
        removed.append(own**2 + 2 * float(dots(vector, vector)))
    drawn.known = drawn.count


def _complement(direction: Tensor) -> Tensor:
    """Orthonormal columns beside one of n entries, (n, n - 1): a reflection, in which all mix."""
    first = torch.zeros_like(direction)
    first[0] = -1.0 if direction[0] > 0 else 1.0
    mirror = (direction - first) / (direction - first).norm()
    return (torch.eye(len(direction)).to(direction) - 2 * mirror * mirror.T)[:, 1:]


def _concentration(gram: Tensor) -> float:
    """Mean cos² of the angles between the images of random vectors, from their Gram matrix."""
    lengths = gram.diagonal()
    pairs = float(lengths.sum() ** 2 - lengths.square().sum())
    between = (gram - torch.diag(lengths)).square().sum()  # no difference, which may be below 0
    return float(between) / pairs if pairs > 0 else 1.0


def _estimates(
    operator: RecordedOperator, budget: int, generator: torch.Generator | int, *, power: int
) -> tuple[Estimate, Estimate]:
    """Trace, of no meaning for a block that is not square, and Frobenius norm, in its units."""
    drawn = _draw(operator, check_int("budget", budget, 6), as_generator(generator), power)
    square, known = operator.rows == operator.size, drawn.known
    lengths = _squares(drawn.images)
    inside = lengths[:known].sum().item()
    within = dots(drawn.vectors, drawn.images).cpu() if square else torch.zeros(1, 1)
    own = within.diagonal()
    total, norm = Estimate.exact(own[:known].sum().item()), root(Estimate.exact(inside))
    if known < operator.size:
        dimension, count = operator.size - known, drawn.count - known
        # Orthonormal vectors count for more than independent ones.
        several = count * (dimension - 1) / (dimension - count)
        gram = dots(drawn.images, drawn.images).cpu()
        squares = squares_mean(
            Cumulants.of_gram(gram[known:, known:]), count=several, scale=dimension, offset=inside
        )
        if square:
            form = own[known:].mean().item()
            aside = _apart(drawn, form)[known:].mean().item()
            rest = drawn.images[:, known:]  # not needed any more, so that they may change
            project_out(rest, drawn.vectors[:, :known])
            total = sphere_mean(
                form,
                _apart(drawn, form)[known:].mean().item(),
                Cumulants.of_gram(dots(rest, rest).cpu()),
                count=several,
                dimension=dimension,
                offset=total.value,
            )
        if drawn.pilots:
            # The first vectors are probes of A itself. The mean of the later estimates is the truth
            # whatever came before them, so that the errors are uncorrelated.
            first, mean = drawn.pilots, total.value / operator.size
            inside = _apart(drawn, mean)[:known].sum().item()
            spread = (inside + dimension * (aside + (form - mean) ** 2)) / operator.size
            total = total.joined(
                operator.size * own[:first].mean().item(),
                operator.size * math.sqrt(2 / (operator.size + 2) * spread / first),
            )
            fourth = float(gram[:known, :known].square().sum())
            squares = squares.joined(
                operator.size * lengths[:first].mean().item(),
                math.sqrt((2 * fourth + count * squares.standard_error**2) / first),
            )
        norm = root(squares)
    asymmetry = float((within - within.T).norm()) / 2
    asymmetry *= asymmetry <= _NOISE * float(within.norm())  # else no sign of rounding
    # Errors of single products are independent: their squares add up, as those of the columns do.
    rounding = product_rounding(operator, norm.value, asymmetry, drawn.count)
    return (
        total.widened(rounding + operator.error.trace),
        norm.widened(rounding + operator.error.frobenius),
    )


def _apart(drawn: _Drawn, mean: float) -> Tensor:
    """Squared lengths of A z less ``mean`` z, one by one, which takes the least memory."""
    pairs = zip(drawn.images.mT, drawn.vectors.mT, strict=True)
    return torch.cat([_squares((image - mean * z)[:, None]) for image, z in pairs])


def _squares(vectors: Tensor) -> Tensor:
    """Squared length of each column, float64."""
    return vectors.double().square().sum(0).cpu()
