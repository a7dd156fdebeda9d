r"""Hessians of one-layer blocks on n streams, which need no matrix.

What block m reads of the blocks before it passes through n streams, so the blocks of the Hessian
below its diagonal are :math:`C_m T_{m-1} \cdots T_{l+1} B_l` with states of n + 1 entries for each
entry of a weight. With :math:`P_{K+1} = 0` and, from the last block to the first,

.. math:: R = \alpha_m^2 Q - \lambda + B^T P B, \quad Y = C + B^T P T, \quad
    P \leftarrow T^T P T - Y^T R^{-1} Y,

the stationary value of the quadratic form over the later weights, the pivots R have as many
negative eigenvalues as there are eigenvalues below λ (Sylvester).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from resid_theory.eigen.spectrum import Spectrum
from resid_theory.runtime.result import Result
from resid_theory.theory.zero_weights.counted_spectrum import RESOLUTION, CountedSpectrum
from resid_theory.theory.zero_weights.cyclic_reduction import inverse

__all__ = ["Semiseparable"]

_EPS = float(np.finfo(np.float64).eps)
_STEPS = 300  # of Lanczos; the ends of these spectra are far apart
_SETTLED = 1e-10  # relative change in five steps, far above the error that is left


@dataclass(frozen=True, kw_only=True, eq=False)
class Semiseparable(CountedSpectrum, Result):
    """Symmetric matrix of blocks that read one another through streams, in r independent parts.

    Attributes:
        read: What a block reads of the streams, times what the output reads of it, (K, n).
        mix: Mixing of the streams, (K, n, n).
        write: What a block writes, times its share of the input, (K, n).
        alpha: Product of both shares, (K,).
        own: Q, (r, b, b).
        pairing: Block of a pair of layers, (r, b, b).
        idle: Rows of a part that are zero for all blocks, counted out, (r,).

    Source:
        Derived here.
    """

    read: Tensor
    mix: Tensor
    write: Tensor
    alpha: Tensor
    own: Tensor
    pairing: Tensor
    idle: Tensor

    headline = "Hessian of one-layer blocks on streams, P = {0.size}"
    tabulated = {
        "blocks": lambda matrix: [len(matrix.alpha)],
        "largest": lambda matrix: [matrix.largest],
        "smallest": lambda matrix: [matrix.smallest],
    }

    @property
    def block_size(self) -> int:
        """Rows of a pivot, all parts together."""
        return self.own.shape[0] * self.own.shape[1]

    @property
    def size(self) -> int:
        """Number of rows, idle ones not counted."""
        return len(self.alpha) * (self.block_size - int(self.idle.sum()))

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, ...]:
        """T, B and the rows of C with a last stream for the sum of all earlier blocks."""
        count, n = self.read.shape
        t = np.zeros((count, n + 1, n + 1))
        t[:, :n, :n], t[:, n, n] = self.mix.numpy(), 1.0
        b = np.concatenate([self.write.numpy(), self.alpha.numpy()[:, None]], axis=1)
        return t, b, self.read.numpy(), self.alpha.numpy()

    def counts_below(self, points: Tensor) -> Tensor:
        """Number of eigenvalues below each point, in one pass over the blocks.

        Args:
            points: (t,), float64. A point within 1.5e-8 of the largest |λ| of an eigenvalue may
                count either way.

        Returns:
            (t,), int64.
        """
        mixing, writes, reads, alpha = self._arrays
        count, n = reads.shape
        own, pairing = self.own.numpy()[None], self.pairing.numpy()[None]
        size, parts = own.shape[-1], own.shape[1]
        states = size * (n + 1)  # ordered (row, stream): contractions over streams are one product
        eye = np.eye(size)
        shift = points.numpy()[:, None, None, None] * eye
        shape = (len(points), parts)
        p, found = np.zeros((*shape, states, states)), np.zeros(shape, dtype=np.int64)
        for m in range(count - 1, -1, -1):
            t, b = mixing[m], writes[m]
            right = (p.reshape(-1, n + 1) @ t).reshape(p.shape)  # P T
            left = right.swapaxes(-1, -2).reshape(*shape, states, size, n + 1)  # (P T)ᵀ
            bpt = (left @ b).swapaxes(-1, -2)
            bpb = (p.reshape(*shape, states, size, n + 1) @ b).reshape(*shape, size, n + 1, size)
            bpb = np.einsum("j,tpijk->tpik", b, bpb)
            c = np.empty((1, parts, size, size, n + 1))
            c[..., :n] = pairing[..., None] * reads[m]
            c[..., n] = alpha[m] * own
            y = c.reshape(1, parts, size, states) + bpt
            r = alpha[m] ** 2 * own - shift + bpb
            gone, negative = inverse(0.5 * (r + r.swapaxes(-1, -2)))
            found += negative
            p = (left.reshape(-1, n + 1) @ t).reshape(p.shape) - y.swapaxes(-1, -2) @ (gone @ y)
            p = 0.5 * (p + p.swapaxes(-1, -2))
        # An idle row is -λ in every block.
        spare = np.multiply.outer(points.numpy() > 0, self.idle.numpy()) * count
        return torch.from_numpy((found - spare).sum(1))

    def matvec(self, vectors: np.ndarray) -> np.ndarray:
        """Product with (K, r, b), by a pass in either direction."""
        mixing, writes, reads, alpha = self._arrays
        n = reads.shape[1]
        own, pairing = self.own.numpy(), self.pairing.numpy()
        total = np.tensordot(alpha, vectors, 1)
        y = alpha[:, None, None] * np.einsum("rij,rj->ri", own, total)
        flat = vectors.reshape(len(alpha), -1)
        state = _passed(mixing[:, :n, :n], writes[:, :n, None] * flat[:, None])
        seen = np.einsum("kn,knf->kf", reads, state).reshape(vectors.shape)
        back = _passed(
            mixing[::-1, :n, :n].swapaxes(-1, -2), (reads[:, :, None] * flat[:, None])[::-1]
        )[::-1]
        later = np.einsum("kn,knf->kf", writes[:, :n], back).reshape(vectors.shape)
        y += np.einsum("rij,krj->kri", pairing, seen) + np.einsum("rji,krj->kri", pairing, later)
        return y

    @property
    def radius(self) -> float:
        """A bound of all |eigenvalues|: those of Lanczos, with a margin."""
        return 2 * max(abs(end) for end in self._ends)

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """Both ends of the spectrum by Lanczos without a stored basis: copies do no harm there."""
        generator = np.random.default_rng(0)
        shape = (len(self.alpha), *self.own.shape[:2])
        v, before, beta = generator.standard_normal(shape), np.zeros(shape), 0.0
        v /= np.linalg.norm(v)
        diagonal: list[float] = []
        beside: list[float] = []
        ends = (0.0, 0.0)
        for step in range(_STEPS):
            w = self.matvec(v) - beta * before
            diagonal.append(float(np.vdot(w, v)))
            w -= diagonal[-1] * v
            beta = float(np.linalg.norm(w))
            if step % 5 == 4 or beta == 0.0:
                inner = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
                values = np.linalg.eigvalsh(inner)
                new = (float(values[0]), float(values[-1]))
                top = max(map(abs, new))
                moved = max(abs(new[0] - ends[0]), abs(new[1] - ends[1]))
                if beta <= _EPS * top or moved <= _SETTLED * top:
                    return new
                ends = new
            beside.append(beta)
            before, v = v, w / beta
        return ends

    @cached_property
    def _checked(self) -> tuple[tuple[float, float], dict[float, int]]:
        """The same, confirmed by counts: none is outside, one at least inside the margin.

        The same pass counts around zero.
        """
        low, high = self._ends
        top = max(abs(low), abs(high))
        margin, zero = 1e-7 * top, RESOLUTION * top
        points = [low - margin, low + margin, high - margin, high + margin, -zero,
                  math.nextafter(zero, math.inf)]  # fmt: skip
        counts = self.counts_below(torch.tensor(points, dtype=torch.float64)).tolist()
        if not (counts[0] == 0 < counts[1] and counts[2] < self.size == counts[3]):
            low, high = self.eigenvalue(0), self.eigenvalue(self.size - 1)
        return (low, high), dict(zip(points, counts, strict=True))

    def count_below(self, threshold: float) -> int:
        """Number of eigenvalues below a threshold."""
        known = {} if self._small else self._checked[1]
        return known[threshold] if threshold in known else super().count_below(threshold)

    def count_within(self, threshold: float) -> int:
        """Number of eigenvalues with |λ| up to a threshold."""
        if self._small:
            return super().count_within(threshold)
        return self.count_below(math.nextafter(threshold, math.inf)) - self.count_below(-threshold)

    @cached_property
    def largest(self) -> float:
        """Largest eigenvalue."""
        return self._small.largest if self._small else self._checked[0][1]

    @cached_property
    def smallest(self) -> float:
        """Smallest eigenvalue (signed)."""
        return self._small.smallest if self._small else self._checked[0][0]

    @cached_property
    def spectrum(self) -> Spectrum:
        """All eigenvalues by a dense solver."""
        shape = (len(self.alpha), *self.own.shape[:2])
        kept = torch.ones(shape, dtype=torch.bool)
        for part, idle in enumerate(self.idle.tolist()):
            kept[:, part, shape[2] - idle :] = False
        places = kept.flatten().nonzero()[:, 0].tolist()
        unit = np.zeros(int(np.prod(shape)))
        columns = []
        for place in places:
            unit[place] = 1.0
            columns.append(self.matvec(unit.reshape(shape)).reshape(-1)[places])
            unit[place] = 0.0
        matrix = torch.from_numpy(np.stack(columns))
        return Spectrum.of(torch.linalg.eigvalsh(0.5 * (matrix + matrix.mT)))


def _passed(mixing: np.ndarray, added: np.ndarray) -> np.ndarray:
    """States in front of each block, of s ← H s + added; chunks of blocks side by side."""
    count, n, width = added.shape
    length = max(1, round(count**0.5))
    chunks = -(-count // length)
    pad = chunks * length - count
    eye = np.broadcast_to(np.eye(n), (pad, n, n))
    h = np.concatenate([mixing, eye]).reshape(chunks, length, n, n)
    x = np.concatenate([added, np.zeros((pad, n, width))]).reshape(chunks, length, n, width)
    whole, last = np.broadcast_to(np.eye(n), (chunks, n, n)), np.zeros((chunks, n, width))
    for k in range(length):
        whole, last = h[:, k] @ whole, h[:, k] @ last + x[:, k]
    first = np.zeros((chunks, n, width))
    for chunk in range(chunks - 1):
        first[chunk + 1] = whole[chunk] @ first[chunk] + last[chunk]
    states = np.empty_like(x)
    for k in range(length):
        states[:, k] = first
        first = h[:, k] @ first + x[:, k]
    return states.reshape(-1, n, width)[:count]
