r"""Symmetric block Toeplitz matrices with one diagonal and one lower block, at any depth.

.. math:: H_{rr} = B, \qquad H_{rr'} = A \ (r > r'), \qquad H_{rr'} = A^T \ (r < r')

This is the Hessian of a 1-shortcut net at zero weights. Its symbol is not summable (a pole at angle
zero), so Toeplitz theory for summable symbols does not apply, and that pole is exactly why the
largest eigenvalue grows in proportion to depth. Three facts replace it, each checked against dense
matrices:

* first differences :math:`\Delta H \Delta^T` are block tridiagonal with equal blocks inside, so
  Sylvester's law of inertia counts the eigenvalues below any number in O(log R) eliminations;
* :math:`\lambda_{max} / R \to \kappa`, where with :math:`A_s, A_a` the symmetric and antisymmetric
  parts of A and :math:`P = 2 |A_a|`, :math:`\kappa` solves
  :math:`\lambda_{min}[\tfrac P2 \cot \tfrac{P}{2\kappa} - A_s] = 0`;
* the other eigenvalues are distributed as those of :math:`B - A_s + i \cot(\theta / 2) A_a`, with
  :math:`\theta` uniform on the circle.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from resid_theory._check import check_finite, check_int
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.runtime.result import Result
from resid_theory.theory.zero_weights.counted_spectrum import CountedSpectrum, inverted, solved

_EPS = torch.finfo(torch.float64).eps
_ANGLES = 256  # midpoint rule on half the circle for the bulk: percentiles good to about 1e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockToeplitz(CountedSpectrum, Result):
    """Symmetric block Toeplitz matrix of one diagonal and one lower block: the Hessian for n = 1.

    Attributes:
        diagonal: B, (b, b), symmetric, float64.
        lower: A, (b, b), float64.
        blocks: Number of diagonal blocks R.

    Raises:
        ValueError: If shapes or dtypes do not fit, an entry is not finite or B is not symmetric.

    Source:
        Li et al., arXiv:1611.01186, equations (10), (27)-(32); the three facts are derived here.
    """

    diagonal: Tensor
    lower: Tensor
    blocks: int

    def __post_init__(self) -> None:
        check_int("blocks", self.blocks)
        shapes = tuple(self.diagonal.shape), tuple(self.lower.shape)
        if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][0] != shapes[0][1]:
            raise ValueError(
                f"diagonal, lower: got shapes {shapes[0]} and {shapes[1]}, needs (b, b)"
            )
        for name in ("diagonal", "lower"):
            if getattr(self, name).dtype != torch.float64:
                raise ValueError(f"{name}: got {getattr(self, name).dtype}, needs torch.float64")
            check_finite(name, getattr(self, name))
        gap = (self.diagonal - self.diagonal.mT).abs().max().item()
        # The round-off of the sums behind it is less.
        if gap > 1e-10 * self.diagonal.abs().max().item():
            raise ValueError(f"diagonal: differs from its transpose by {gap:.2g}, needs symmetry")

    headline = "block Toeplitz matrix, P = {0.size}, blocks of {0.block_size}"
    tabulated = {
        "blocks": lambda matrix: [matrix.blocks],
        "growth_rate": lambda matrix: [matrix.growth_rate],
        "negative_growth_rate": lambda matrix: [matrix.negative_growth_rate],
    }

    @property
    def block_size(self) -> int:
        """Size b of a block."""
        return len(self.diagonal)

    @property
    def size(self) -> int:
        """Number of rows, blocks times block size."""
        return self.blocks * self.block_size

    def dense(self) -> Tensor:
        """The matrix itself, (R b, R b), float64."""
        place = torch.arange(self.blocks).to(self.lower.device)
        later = (place.unsqueeze(1) - place).sign() + 1
        tiles = torch.stack([self.lower.mT, self.diagonal, self.lower])[later]
        return tiles.transpose(1, 2).reshape(self.size, self.size)

    @cached_property
    def spectrum(self) -> Spectrum:
        """All eigenvalues by a dense solver; O((R b)³)."""
        return solved(self.dense())

    def counts_below(self, points: Tensor) -> Tensor:
        """Numbers of eigenvalues below points (t,), in O(log R) small eigenproblems per point."""
        # First differences turn H - λ into a block tridiagonal matrix of the same inertia, whose
        # inner blocks are all equal. Eliminating every second block leaves such a matrix of half
        # the size, and all eliminated pivots are equal too: one of them is counted for all.
        # NumPy, because its batched solver does not start threads for matrices this small.
        a, at = self.lower.cpu().numpy(), points.detach().cpu().numpy()[:, None, None]
        first = self.diagonal.cpu().numpy() - at * np.eye(self.block_size)
        last = inner = 2 * first - (a + a.T)
        side, left = a - first, self.blocks
        scale = np.linalg.norm(side, 2, axis=(1, 2))
        counts = np.zeros(len(at), dtype=np.int64)
        while left > 1:
            down = side.swapaxes(-1, -2)
            if left % 2 == 0:  # the last block goes, too
                axes, inverse, negative = inverted(last, scale)
                counts += negative
                back = down @ axes
                last = inner - (back * inverse) @ back.swapaxes(-1, -2)
            if left > 2:
                axes, inverse, negative = inverted(inner, scale)
                counts += (left - 1) // 2 * negative
            forth, back = side @ axes, down @ axes
            above = (forth * inverse) @ forth.swapaxes(-1, -2)
            below = (back * inverse) @ back.swapaxes(-1, -2)
            first, inner, last = (
                0.5 * (part + part.swapaxes(-1, -2))
                for part in (first - below, inner - above - below, last - above)
            )
            side = (forth * inverse) @ back.swapaxes(-1, -2)  # but for a sign, which is squared
            left = (left + 1) // 2
        return torch.from_numpy(counts + (np.linalg.eigvalsh(first) < 0).sum(1))

    @property
    def radius(self) -> float:
        """A bound of all |eigenvalues|: block rows, summed."""
        own = torch.linalg.matrix_norm(self.diagonal, 2).item()
        return own + (self.blocks - 1) * torch.linalg.matrix_norm(self.lower, 2).item()

    @cached_property
    def growth_rate(self) -> float:
        r"""Limit of :math:`\lambda_{max} / R` as the depth R grows; 0 if it does not grow."""
        return _growth(self.lower)

    @cached_property
    def negative_growth_rate(self) -> float:
        r"""Limit of :math:`-\lambda_{min} / R` as the depth R grows; 0 if it does not grow."""
        return _growth(-self.lower)

    @cached_property
    def _bulk(self) -> np.ndarray:
        """|eigenvalues| of the limiting bulk on a midpoint grid of angles, (angles, b)."""
        symmetric = 0.5 * (self.lower + self.lower.mT)
        antisymmetric = 0.5 * (self.lower - self.lower.mT).cpu().numpy()
        # θ and 2π - θ give complex conjugates, hence equal eigenvalues: half the circle is enough.
        angles = (np.arange(_ANGLES) + 0.5) * (math.pi / _ANGLES)
        at = (1j / np.tan(angles / 2))[:, None, None] * antisymmetric
        return np.abs(np.linalg.eigvalsh((self.diagonal - symmetric).cpu().numpy() + at))

    def bulk_percentile(self, percent: float) -> float:
        """Percentile of |λ| in the limit of infinite depth."""
        return float(np.percentile(self._bulk, percent))

    def predicted_condition_number(self, percent: float = 10.0) -> float:
        r"""Asymptotic max|λ| / percentile, :math:`\max(\kappa, \kappa_-) R / b`, to O(1/R)."""
        rate = max(self.growth_rate, self.negative_growth_rate)
        bulk = self.bulk_percentile(percent)
        if bulk == 0.0:
            return math.inf if rate else math.nan
        return rate * self.blocks / bulk


def _growth(lower: Tensor) -> float:
    """The rate κ of the module's docstring for a lower block A; 0 if nothing grows."""
    from scipy.optimize import brentq

    a = lower.cpu().numpy()  # NumPy again: dozens of small eigenproblems, one after the other
    symmetric = 0.5 * (a + a.T)
    # P = |A - A^T|: with Z = A - A^T skew, P² = Z^T Z, and functions of P² commute with Z.
    _, turns, rows = np.linalg.svd(a - a.T)
    core = rows @ symmetric @ rows.T
    scale = float(np.linalg.norm(a, 2))
    turns = np.where(turns <= len(turns) * _EPS * scale, 0.0, turns)
    if turns.max() == 0.0:
        return max(0.0, float(np.linalg.eigvalsh(symmetric)[-1]))

    def least(k: float) -> float:
        angle = turns / (2 * k)
        # (p/2) cot(p/2k) -> k as p -> 0
        values = np.where(angle == 0, k, (turns / 2) / np.tan(np.maximum(angle, 1e-300)))
        return float(np.linalg.eigvalsh(np.diag(values) - core)[0])

    # Increasing in k above the last pole, from -inf to k - A_s: its least eigenvalue has exactly
    # one zero.
    low = float(turns.max()) / (2 * math.pi) * (1 + 1e-12)
    if least(low) >= 0.0:  # the zero is closer to the pole than that
        return low
    high = 2 * scale + low
    return float(brentq(least, low, high, xtol=1e-300, maxiter=500))
