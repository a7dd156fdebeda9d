"""Diagonals of operators: by columns, or estimated with error bars."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from resid_theory._check import as_generator, check_int
from resid_theory.eigen.estimate import student
from resid_theory.eigen.products import MatrixProducts, check_square, unit_vectors
from resid_theory.runtime.result import Result

_BLOCK = 64  # vectors multiplied together


@dataclass(frozen=True, kw_only=True, eq=False)
class Diagonal(Result):
    """The diagonal of a matrix.

    Attributes:
        values: (P,), float64.
        standard_errors: Of the values, (P,); zeros where they are exact.
        half_widths: Of the 95 % interval of each value, taken for itself, with the error of the
            products; inf for fewer than six signs.
        is_exact: Whether the values come from the columns themselves.
        products: Products with one vector.
    """

    values: Tensor
    standard_errors: Tensor
    half_widths: Tensor
    is_exact: bool
    products: int

    tabulated = {"value": "values", "value_error": "standard_errors", "half_width": "half_widths"}

    def __str__(self) -> str:
        """The title alone."""
        return self.title

    @property
    def title(self) -> str:
        """Range and error of the entries."""
        half = float(self.half_widths.median())
        how = "exact" if self.is_exact and half == 0 else f"± {half:.2g} (median)"
        low, high = float(self.values.min()), float(self.values.max())
        return f"{len(self.values)} entries from {low:.4g} to {high:.4g}, {how}"


def diagonal(A: MatrixProducts, *, budget: int, generator: torch.Generator | int) -> Diagonal:
    """The diagonal of a square operator, by columns or estimated."""
    size = check_square(A)
    generator = as_generator(generator)
    count = min(check_int("budget", budget, 2), size)
    exact = count == size
    first = second = torch.zeros(())
    for start in range(0, count, _BLOCK):
        several = min(_BLOCK, count - start)
        if exact:
            vectors = unit_vectors(A, start, start + several)
        else:
            signs = torch.randint(2, (size, several), generator=generator, device=generator.device)
            vectors = (2.0 * signs - 1.0).to(A.device, torch.float64)
        samples = vectors * (A @ vectors)
        first = first + samples.sum(1)
        second = second + (samples**2).sum(1)
    mean, error = first, torch.zeros_like(first)
    half = error
    if not exact:
        mean, factor = first / count, _factor(count)
        error = ((second / count - mean**2).clamp_min(0) / (count - 1)).sqrt()
        half = torch.full_like(error, math.inf) if math.isinf(factor) else error * factor
    return Diagonal(
        values=mean,
        standard_errors=error,
        half_widths=half + (0.0 if A.error is None else A.error.spectral),
        is_exact=exact,
        products=count,
    )


def _factor(count: int) -> float:
    """Half-width in standard errors that holds 95 % of normal samples, and of signs."""
    from scipy.special import bdtrc  # half a second of import that few calls need

    # With one large entry in the row, samples are that times a sign: their mean takes few values.
    most = next(k for k in itertools.count() if bdtrc(k, count, 0.5) <= 0.025)
    mean = 2 * most / count - 1
    if mean == 1:  # all agree too often, whatever the truth
        return math.inf
    signs = mean * ((count - 1) / (1 - mean**2)) ** 0.5
    return max(student(count - 1), signs * (1 + 1e-6))
