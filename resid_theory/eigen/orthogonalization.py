"""Inner products summed in float64, whatever the dtype of the vectors, and orthonormal blocks."""

from collections.abc import Iterator

import torch
from torch import Tensor

_ROWS = 1 << 16  # of a long vector, converted to float64 at a time


def slices(size: int) -> Iterator[slice]:
    """Rows of a long vector, in slices whose float64 copy is small."""
    return (slice(start, start + _ROWS) for start in range(0, size, _ROWS))


def dots(left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ right of (P, a) and (P, b) vectors, summed in float64, on the vectors' device."""
    if left.dtype == torch.float64 or len(left) <= _ROWS:
        return left.double().T @ right.double()
    total = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64, device=left.device)
    for rows in slices(len(left)):
        total += left[rows].double().T @ right[rows].double()
    return total


def project_out(vectors: Tensor, basis: Tensor, *, roughly: bool = False) -> Tensor:
    """Remove the components (m, b) along an orthonormal basis in place, once; they are returned."""
    # With ``roughly``, sums are in the vectors' own precision, six times as fast for float32: for a
    # first of two passes, since the second removes what the rounding of the first has left.
    coefficients = basis.T @ vectors if roughly else dots(basis, vectors)
    vectors.sub_(basis @ coefficients.to(basis.dtype))
    return coefficients


def orthonormal(block: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """An orthonormal basis (P, r) of a block's columns, and the coefficients of these (r, b)."""
    # Directions whose singular value is at most the threshold are left out.
    if block.shape[1] == 1:  # the usual case; Householder's method is slow on one long column
        norm = dots(block, block).sqrt()
        if float(norm) <= threshold:
            return block[:, :0], norm[:0]
        return block / norm.to(block), norm
    q, r = torch.linalg.qr(block)
    left, singular, right = torch.linalg.svd(r.double())
    rank = int((singular > threshold).sum())
    return q[:, : len(left)] @ left[:, :rank].to(q), singular[:rank, None] * right[:rank]


def random_orthonormal(count: int, basis: Tensor, generator: torch.Generator) -> Tensor:
    """Random orthonormal vectors, uniform in the complement of a basis; fewer where it is small."""
    size = len(basis)
    count = min(count, size - basis.shape[1])
    drawn = torch.randn(
        size, count, generator=generator, dtype=torch.float64, device=generator.device
    )
    block = drawn.to(basis)
    for _ in range(2):  # again after normalizing: in a small complement little is left at first
        project_out(block, basis)
        project_out(block, basis)
        block, _ = torch.linalg.qr(block)
    return block
