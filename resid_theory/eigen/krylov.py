"""A block Krylov space in the complement of locked vectors, and its Rayleigh-Ritz values."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from resid_theory.eigen.certificate import Certificate
from resid_theory.eigen.operator_log import RecordedOperator
from resid_theory.eigen.orthogonalization import (
    dots,
    orthonormal,
    project_out,
    random_orthonormal,
    slices,
)

_ASYMMETRY = {torch.float64: 1e-4, torch.float32: 1e-2}  # relative; above, A is not symmetric
_SURE = 10  # rounding that shows in few coefficients is taken to be this many times as large


def product_rounding(
    operator: RecordedOperator, scale: float, asymmetry: float = 0.0, count: int = 0
) -> float:
    """Length of the rounding error of a product with a unit vector, for a matrix of some norm."""
    # Sums of P rounded terms, as they usually add up. A false alarm would end a space early, a miss
    # merely continues it with a vector that is as good as a random one. Whatever the dtype says,
    # products are no more exact than the asymmetry of the coefficients of ``count`` of them along
    # the vectors that they were made with.
    usual = torch.finfo(operator.dtype).eps * (10 + min(operator.size, 10_000) ** 0.5) * scale
    # Errors of length ν that spread over all P directions have coefficients of ν / √P.
    shown = asymmetry * (2 * operator.size / max(1, count * (count - 1))) ** 0.5
    return max(usual, _SURE * shown)


def coefficient_noise(operator: RecordedOperator, rounding: float) -> float:
    """Rounding of a product along one fixed vector: it spreads over all P of them."""
    return 10 * rounding / operator.size**0.5


def check_symmetric(operator: RecordedOperator, asymmetry: float, scale: float) -> None:
    """Refuse an operator of norm ``scale`` whose coefficients are too far from symmetric."""
    if not asymmetry <= _ASYMMETRY[operator.dtype] * scale + operator.error.frobenius:
        raise ValueError(
            f"A: is not symmetric: <u, A v> and <v, A u> differ by {asymmetry * operator.unit:.2g},"
            f" A has norm {scale * operator.unit:.2g}; a product that changes from call to call "
            "(shuffled data, dropout, TF32) is the usual cause; needs a symmetric operator (trace "
            "and frobenius_norm take any)"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Locked:
    """Orthonormal vectors U set aside, with A U = U diag(values) + D."""

    vectors: Tensor  # U, (P, l)
    values: Tensor  # (l,), float64, on the CPU
    errors: Tensor  # D, (P, l), orthogonal to U
    noise: float = 0.0  # norm of the error of D: rounding, and what restarts dropped

    @classmethod
    def none(cls, operator: RecordedOperator) -> "Locked":
        """No vector."""
        empty = operator.no_vectors
        return cls(vectors=empty, values=torch.empty(0), errors=empty)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ritz:
    """Rayleigh-Ritz on the locked vectors U and the Krylov vectors V together."""

    values: Tensor  # ascending, (l + m,), float64
    weights: Tensor  # Ritz vectors as columns of coefficients on [U, V], (l + m, l + m)
    gram: Tensor  # upper bound on the Gram matrix of the part of A U outside [U, V], (l, l)
    outside: Tensor  # part of A V outside [U, V]: coefficients on orthonormal vectors, (., m)
    # Part of every residual that is rounding, the operator's own error, or dropped by restarts.
    noise: float
    # Positions whose residuals E were computed, and Eᵀ E; None while a space grows.
    measured: tuple[Tensor, Tensor] | None = None

    def residual_gram(self, order: Tensor) -> Tensor:
        """Eᵀ E, (n, n), for the residuals E of Ritz vectors at n positions; without ``noise``."""
        if self.measured is not None:
            positions, gram = self.measured
            at = (order[:, None] == positions).int().argmax(1)
            return gram[at][:, at]
        chosen = self.weights[:, order]
        locked, krylov = chosen[: len(self.gram)], self.outside @ chosen[len(self.gram) :]
        own = krylov.T @ krylov
        if not len(self.gram):
            return own
        # An upper bound, as a quadratic form: the two parts need not be orthogonal, and |a + b|^2
        # is at most 2 |a|^2 + 2 |b|^2.
        return 2 * (own + locked.T @ self.gram @ locked)

    @cached_property
    def residuals(self) -> Tensor:
        """Norm of A u - θ u for each Ritz vector u, (l + m,)."""
        count = len(self.gram)
        locked, krylov = self.weights[:count], self.outside @ self.weights[count:]
        squares = (locked * (self.gram @ locked)).sum(0).clamp_min(0)
        norms = squares.sqrt() + krylov.norm(dim=0)
        if self.measured is not None:
            norms[self.measured[0]] = self.measured[1].diagonal().sqrt()
        return norms + self.noise


class Krylov:
    """A block Krylov space, grown by one block of products at a time, with thick restarts.

    The columns are [U, V, Q]: locked, multiplied, waiting to be multiplied. Every product is made
    orthogonal to all of them, twice, and all its coefficients are kept, in float64. So A V =
    [U, V, Q] H holds to rounding whatever happened before, and a residual needs no further product.
    If the operator is not symmetric, or noisy, the coefficients show it and the residuals include
    it.

    It starts from ``width`` random vectors; ``capacity`` limits the columns of V and Q together.
    """

    def __init__(
        self,
        operator: RecordedOperator,
        locked: Locked,
        *,
        width: int,
        capacity: int,
        generator: torch.Generator,
    ) -> None:
        self.operator, self.locked = operator, locked
        self.offset = locked.vectors.shape[1]
        total = min(self.offset + capacity, operator.size)
        self._columns = locked.vectors.new_empty(total, operator.size).T  # a vector is contiguous
        self._columns[:, : self.offset] = locked.vectors
        self._matrix = torch.zeros(total, total, dtype=torch.float64)
        start = random_orthonormal(width, locked.vectors, generator)
        self.width = self.waiting = start.shape[1]
        self.multiplied = 0
        self._columns[:, self.offset : self.offset + self.waiting] = start
        self.scale = float(locked.values.abs().max()) if self.offset else 0.0
        self.steps, self.restarts, self._dropped = 0, 0, locked.noise
        self.asymmetry = 0.0  # of Vᵀ A V, Frobenius norm: rounding, if A is symmetric
        self._gram = dots(locked.errors, locked.errors).cpu()

    @property
    def block(self) -> Tensor:
        """Q, the vectors that wait to be multiplied, (P, w)."""
        begin = self.offset + self.multiplied
        return self._columns[:, begin : begin + self.waiting]

    @property
    def multiplied_vectors(self) -> Tensor:
        """V, (P, m)."""
        return self._columns[:, self.offset : self.offset + self.multiplied]

    @property
    def is_full(self) -> bool:
        """True if the next block of products may exceed the capacity."""
        filled = self.offset + self.multiplied + 2 * self.waiting
        room = self._columns.shape[1]
        return filled > room and room < self.operator.size

    @property
    def is_invariant(self) -> bool:
        """True if the operator maps the space into itself and the locked vectors."""
        return self.waiting == 0

    def extend(self, product: Tensor) -> None:
        """Take the product A Q of the waiting block, which is overwritten, as the next block."""
        begin = self.offset + self.multiplied
        end = begin + self.waiting
        basis = self._columns[:, :end]
        first = project_out(product, basis, roughly=True)
        coefficients = (first + project_out(product, basis)).cpu()
        norms = (coefficients.square().sum(0) + product.double().square().sum(0).cpu()).sqrt()
        self.scale = max(self.scale, float(norms.max()))
        self._matrix[:end, begin:end] = coefficients
        self.multiplied, self.waiting = end - self.offset, 0
        self.steps += 1
        self._note_asymmetry()
        fresh, links = orthonormal(product, self.round_off)
        count = min(fresh.shape[1], self._columns.shape[1] - end)
        if count == 0:
            return
        # What the two passes left is small beside the product, not beside a small remainder.
        project_out(fresh, basis)
        fresh, turn = orthonormal(fresh, 0.0)
        self._columns[:, end : end + count] = fresh[:, :count]
        self._matrix[end : end + count, begin:end] = (turn @ links)[:count].cpu()
        self.waiting = count

    def restart(self, keep: Tensor) -> None:
        """Replace V by its Ritz vectors at some ascending positions; the waiting block stays."""
        old = slice(self.offset, self.offset + self.multiplied)
        full = self._matrix[old, old]
        chosen = torch.linalg.eigh(full + full.T).eigenvectors[:, keep]
        kept = chosen.T @ full @ chosen
        lost = full @ chosen - chosen @ kept
        self._dropped = (self._dropped**2 + float(lost.square().sum())) ** 0.5
        count = len(keep)
        tail = slice(old.stop, old.stop + self.waiting)
        new = slice(self.offset, self.offset + count)
        new_tail = slice(new.stop, new.stop + self.waiting)
        small = chosen.to(self._columns)
        for rows in slices(len(self._columns)):  # so that no second copy of the vectors is held
            self._columns[rows, new] = self._columns[rows, old] @ small
        self._columns[:, new_tail] = self._columns[:, tail]
        matrix = torch.zeros_like(self._matrix)
        matrix[: self.offset, new] = self._matrix[: self.offset, old] @ chosen
        matrix[new, new], matrix[new_tail, new] = kept, self._matrix[tail, old] @ chosen
        self._matrix, self.multiplied = matrix, count
        self.restarts += 1
        self._note_asymmetry()

    def _note_asymmetry(self) -> None:
        own = self._own
        self.asymmetry = float(torch.linalg.vector_norm(own - own.T)) / 2

    @property
    def _own(self) -> Tensor:
        """Vᵀ A V as it was computed, (m, m)."""
        own = slice(self.offset, self.offset + self.multiplied)
        return self._matrix[own, own]

    @property
    def links(self) -> Tensor:
        """Coefficients of A V on the waiting block Q, (w, m)."""
        start = self.offset + self.multiplied
        return self._matrix[start : start + self.waiting, self.offset : start]

    @property
    def symmetric(self) -> Tensor:
        """Symmetric part of Vᵀ A V, (m, m): of the operator compressed to the complement of U."""
        return (self._own + self._own.T) / 2

    def certificate(self) -> Certificate:
        """Certificate for the complement of U; invalid after a restart."""
        noise = coefficient_noise(self.operator, self.round_off)
        return Certificate(
            dimension=self.operator.size - self.offset,
            draws=self.width,
            ladder=torch.cat([self.symmetric, self.links]),
            noise=max(noise, torch.finfo(torch.float64).tiny),
        )

    @property
    def round_off(self) -> float:
        """Largest contribution of rounding to a residual, in units of the eigenvalues."""
        return product_rounding(self.operator, self.scale, self.asymmetry, self.multiplied)

    def ritz(self) -> Ritz:
        """Rayleigh-Ritz values, coefficients and residuals on [U, V]."""
        symmetric, count = self.symmetric, self.offset
        coupling = self._matrix[:count, count : count + self.multiplied]
        joint = torch.cat(
            [
                torch.cat([torch.diag(self.locked.values), coupling], 1),
                torch.cat([coupling.T, symmetric], 1),
            ]
        )
        values, weights = torch.linalg.eigh(joint)
        gram = self._gram - coupling @ coupling.T
        # The difference may have lost this much to rounding.
        lost = (count + self.multiplied) * torch.finfo(torch.float64).eps * self._gram.trace()
        gram.diagonal().add_(lost)
        return Ritz(
            values=values,
            weights=weights,
            gram=gram,
            outside=torch.cat([self.links, self._own - symmetric]),
            noise=max(self.round_off, self.operator.error.spectral) + self._dropped,
        )

    def lock(self, ritz: Ritz, positions: Tensor) -> Locked:
        """Set aside the Ritz vectors at some positions, with their errors."""
        vectors = torch.empty_like(self._columns[:, : len(positions)])
        errors = torch.empty_like(vectors)
        for rows in slices(len(vectors)):
            vectors[rows], errors[rows] = self._vectors(ritz, positions, rows)
        noise = self.round_off + self._dropped
        values = ritz.values[positions]
        return Locked(vectors=vectors, values=values, errors=errors, noise=noise)

    def measure(self, ritz: Ritz, positions: Tensor) -> Ritz:
        """The same with the residuals at some positions computed instead of bounded."""
        total = torch.zeros(len(positions), len(positions), dtype=torch.float64)
        for rows in slices(self.operator.size):
            errors = self._vectors(ritz, positions, rows)[1]
            total += (errors.T @ errors).cpu()
        return replace(ritz, measured=(positions, total))

    def _vectors(self, ritz: Ritz, positions: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Some rows of Ritz vectors u and of A u - θ u, float64."""
        end = self.offset + self.multiplied
        weights = ritz.weights[:, positions]
        image = torch.zeros(end + self.waiting, len(positions), dtype=torch.float64)
        image[: self.offset] = self.locked.values[:, None] * weights[: self.offset]
        image += self._matrix[: len(image), self.offset : end] @ weights[self.offset :]
        image[:end] -= weights * ritz.values[positions]
        held, device = self._columns[rows, : len(image)].double(), self._columns.device
        errors = held @ image.to(device)
        errors += self.locked.errors[rows].double() @ weights[: self.offset].to(device)
        return held[:, :end] @ weights.to(device), errors
