"""Inner products summed in float64, whatever the dtype of the vectors, and orthonormal blocks."""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["dots", "draw", "orthonormal", "project_out", "rotate", "slices"]

_ROWS = 1 << 16  # of a long vector, converted to float64 at a time


def slices(size: int) -> Iterator[slice]:
    """Rows of a long vector, so many at a time that a copy in float64 is small."""
    return (slice(start, start + _ROWS) for start in range(0, size, _ROWS))


def dots(left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ right, (a, b), float64, on the vectors' device.

    Args:
        left: (P, a).
        right: (P, b).

    Returns:
        The inner products; float32 vectors are summed in float64.
    """
    if left.dtype == torch.float64:
        return left.T @ right
    total = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64, device=left.device)
    for rows in slices(len(left)):
        total += left[rows].double().T @ right[rows].double()
    return total


def project_out(vectors: Tensor, basis: Tensor, *, roughly: bool = False) -> Tensor:
    """Take the components along an orthonormal basis out of vectors, in place, once.

    Args:
        vectors: (P, b), changed.
        basis: (P, m).
        roughly: Whether to sum in the vectors' own precision, six times as fast for float32: for a
            pass that another follows, which takes out what this one's rounding has left.

    Returns:
        The components that were there, (m, b), float64.
    """
    coefficients = (basis.T @ vectors).double() if roughly else dots(basis, vectors)
    vectors.sub_(basis @ coefficients.to(basis.dtype))
    return coefficients


def rotate(vectors: Tensor, matrix: Tensor) -> Tensor:
    """Vectors times a small matrix, in slices of rows, so that no second copy is held.

    Args:
        vectors: (P, m); its first columns are overwritten.
        matrix: (m, p), p at most m.

    Returns:
        The first p columns, now the product.
    """
    small = matrix.to(vectors)
    for rows in slices(len(vectors)):
        vectors[rows, : matrix.shape[1]] = vectors[rows] @ small
    return vectors[:, : matrix.shape[1]]


def orthonormal(block: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of a block's columns, directions up to a threshold left out.

    Args:
        block: (P, b).
        threshold: Singular values up to this count as zero.

    Returns:
        The basis (P, r) and the coefficients (r, b), float64: their product is the block.
    """
    if block.shape[1] == 1:  # the usual case, and Householder's way is slow on one long column
        norm = dots(block, block).sqrt()
        if float(norm) <= threshold:
            return block[:, :0], norm[:0]
        return block / norm.to(block), norm
    q, r = torch.linalg.qr(block)
    left, singular, right = torch.linalg.svd(r.double())
    rank = int((singular > threshold).sum())
    return q[:, : len(left)] @ left[:, :rank].to(q), singular[:rank, None] * right[:rank]


def draw(size: int, count: int, basis: Tensor, generator: torch.Generator) -> Tensor:
    """Random orthonormal vectors in the complement of a basis, uniformly distributed there.

    Args:
        size: P.
        count: How many; fewer come back where the complement has fewer dimensions.
        basis: (P, m), orthonormal; gives dtype and device.
        generator: Of the draws, on any device; they are normal and made in float64.

    Returns:
        (P, at most ``count``).
    """
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
