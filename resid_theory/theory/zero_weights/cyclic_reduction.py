"""Block cyclic reduction: the inertia of block tridiagonal matrices in O(log blocks) steps."""

from dataclasses import dataclass, replace

import numpy as np

__all__ = ["Tridiagonal", "inverse"]

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tridiagonal:
    """Symmetric block tridiagonal matrices, equal blocks inside, t of them at once.

    Attributes:
        first: First diagonal blocks, (t, b, b).
        inner: All diagonal blocks between the first and the last, (t, b, b).
        last: Last diagonal blocks, (t, b, b).
        side: Blocks below the diagonal, (t, b, b).
    """

    first: np.ndarray
    inner: np.ndarray
    last: np.ndarray
    side: np.ndarray

    def halved(self, blocks: int) -> tuple["Tridiagonal", np.ndarray]:
        """Eliminate blocks 1, 3, 5, ... of at least 2; count their negative pivots, (t,)."""
        if blocks == 2:
            gone, negative = inverse(self.last)
            return replace(self, first=_symmetric(self.first - _down(self.side, gone))), negative
        gone, negative = inverse(self.inner)
        above = self.side @ gone @ self.side.swapaxes(-1, -2)
        below = _down(self.side, gone)
        if blocks % 2:
            total, last = (blocks - 1) // 2 * negative, self.last - above
        else:
            end, of_end = inverse(self.last)
            total = (blocks // 2 - 1) * negative + of_end
            last = self.inner - above - _down(self.side, end)
        rest = Tridiagonal(
            first=_symmetric(self.first - below),
            inner=_symmetric(self.inner - above - below),
            last=_symmetric(last),
            side=-self.side @ gone @ self.side,
        )
        return rest, total


def _down(side: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    return side.swapaxes(-1, -2) @ inverse @ side


def _symmetric(matrices: np.ndarray) -> np.ndarray:
    return 0.5 * (matrices + matrices.swapaxes(-1, -2))


def inverse(pivots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverses and numbers of negative eigenvalues."""
    if pivots.shape[-1] == 2:
        return _small_inverse(pivots)
    values = np.linalg.eigvalsh(pivots)
    # A pivot that is zero to round-off may be moved by as much: the count is then that of a point
    # at this distance.
    tiny = _EPS * np.abs(values).max(-1) + 1e-300
    moved = np.where(np.abs(values).min(-1) < tiny, tiny, 0.0)[..., None]
    safe = pivots + moved[..., None] * np.eye(pivots.shape[-1])
    return np.linalg.inv(safe), (values + moved < 0).sum(-1)


def _small_inverse(pivots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of two rows, without a solver."""
    a, b, c = pivots[..., 0, 0], pivots[..., 0, 1], pivots[..., 1, 1]
    size = np.abs(a) + np.abs(b) + np.abs(c) + 1e-150
    det = a * c - b * b
    tiny = _EPS * size**2
    det = np.where(np.abs(det) < tiny, np.copysign(tiny, det), det)
    made = np.empty_like(pivots)
    made[..., 0, 0], made[..., 1, 1] = c / det, a / det
    made[..., 0, 1] = made[..., 1, 0] = -b / det
    return made, np.where(det < 0, 1, np.where(a + c < 0, 2, 0))
