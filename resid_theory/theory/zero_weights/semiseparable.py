r"""Hessians of one-layer blocks on n streams, which need no matrix.

What block m reads of the blocks before it passes through n streams, so the blocks of the Hessian
below its diagonal are :math:`C_m T_{m-1} \cdots T_{l+1} B_l` with states of n + 1 entries for each
entry of a weight. With :math:`P_{K+1} = 0` and, from the last block to the first,

.. math:: R = \alpha_m^2 Q - \lambda + B^T P B, \quad Y = C + B^T P T, \quad
    P \leftarrow T^T P T - Y^T R^{-1} Y,

the stationary value of the quadratic form over the later weights, the pivots R have as many
negative eigenvalues as there are eigenvalues below λ (Sylvester).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from resid_theory.eigen.spectrum import Spectrum
from resid_theory.runtime.result import Result
from resid_theory.theory.zero_weights.counted_spectrum import RESOLUTION, CountedSpectrum
from resid_theory.theory.zero_weights.cyclic_reduction import inverse
from resid_theory.theory.zero_weights.streams import Streams
from resid_theory.theory.zero_weights.zero_point_statistics import check_dense

__all__ = ["Semiseparable", "spectrum_of_parts"]

_SYMMETRIC = 8  # blocks after which round-off is made symmetric
_BASIS = 30  # vectors of a Krylov space: the ends of these spectra are far apart


def spectrum_of_parts(
    alpha: Tensor, beta: Tensor, own: Tensor, pairing: Tensor, idle: Tensor
) -> Spectrum:
    """Eigenvalues of α αᵀ ⊗ Q + β ⊗ K + (β ⊗ K)ᵀ for pairs of Q and K whose last rows may idle."""
    square, values = torch.outer(alpha, alpha), []
    for one, two, rest in zip(own, pairing, idle.tolist(), strict=True):
        rows = slice(len(one) - rest)
        check_dense(len(alpha) * (len(one) - rest))
        crossed = torch.kron(beta, two[rows, rows].contiguous())
        whole = torch.kron(square, one[rows, rows].contiguous()) + crossed + crossed.mT
        values.append(torch.linalg.eigvalsh(whole))
    return Spectrum.of(torch.cat(values))


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

    def counts_below(self, points: Tensor) -> Tensor:
        """Numbers of eigenvalues below points (t,), in one pass over the blocks."""
        reads, alpha = self.read.numpy(), self.alpha.numpy()
        count, n = reads.shape
        # A last stream for the sum of all earlier blocks.
        mixing = np.zeros((count, n + 1, n + 1))
        mixing[:, :n, :n], mixing[:, n, n] = self.mix.numpy(), 1.0
        writes = np.concatenate([self.write.numpy(), alpha[:, None]], axis=1)
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
            left = right.swapaxes(-1, -2).reshape(-1, n + 1)  # (P T)ᵀ
            bpt = (left @ b).reshape(*shape, states, size).swapaxes(-1, -2)
            bpb = b @ (p.reshape(-1, n + 1) @ b).reshape(*shape, size, n + 1, size)
            c = np.empty((1, parts, size, size, n + 1))
            c[..., :n] = pairing[..., None] * reads[m]
            c[..., n] = alpha[m] * own
            y = c.reshape(1, parts, size, states) + bpt
            r = alpha[m] ** 2 * own - shift + bpb
            gone, negative = inverse(0.5 * (r + r.swapaxes(-1, -2)))
            found += negative
            p = (left @ t).reshape(p.shape) - y.swapaxes(-1, -2) @ (gone @ y)
            if m % _SYMMETRIC == 0:
                p = 0.5 * (p + p.swapaxes(-1, -2))
        # An idle row is -λ in every block.
        spare = np.multiply.outer(points.numpy() > 0, self.idle.numpy()) * count
        return torch.from_numpy((found - spare).sum(1))

    def matvec(self, vectors: np.ndarray) -> np.ndarray:
        """Product with (K, r, b), by a pass in either direction."""
        mixing, writes, reads = self.mix.numpy(), self.write.numpy(), self.read.numpy()
        alpha = self.alpha.numpy()
        own, pairing = self.own.numpy(), self.pairing.numpy()
        total = np.tensordot(alpha, vectors, 1)
        y = alpha[:, None, None] * np.einsum("rij,rj->ri", own, total)
        flat = vectors.reshape(len(alpha), -1)
        state = _passed(mixing, writes[:, :, None] * flat[:, None])
        seen = np.einsum("kn,knf->kf", reads, state).reshape(vectors.shape)
        added = (reads[:, :, None] * flat[:, None])[::-1]
        back = _passed(mixing[::-1].swapaxes(-1, -2), added)[::-1]
        later = np.einsum("kn,knf->kf", writes, back).reshape(vectors.shape)
        y += np.einsum("rij,krj->kri", pairing, seen) + np.einsum("rji,krj->kri", pairing, later)
        return y

    @property
    def radius(self) -> float:
        """A bound of all |eigenvalues|: those of Lanczos, with a margin."""
        return 2 * max(map(abs, self._ritz_values))

    @cached_property
    def _ritz_values(self) -> tuple[float, float]:
        """Both ends of the spectrum by Lanczos, whose values are inside the ends."""
        from scipy.sparse.linalg import LinearOperator, eigsh

        shape = (len(self.alpha), *self.own.shape[:2])
        size = int(np.prod(shape))
        product = LinearOperator(
            (size, size), matvec=lambda v: self.matvec(v.reshape(shape)).reshape(-1), dtype=float
        )
        values = eigsh(
            product, k=2, which="BE", ncv=min(_BASIS, size), tol=1e-10,
            v0=np.random.default_rng(0).standard_normal(size), return_eigenvectors=False,
        )  # fmt: skip
        return float(values.min()), float(values.max())

    @cached_property
    def _counted(self) -> tuple[tuple[float, float], dict[float, int]]:
        """Both ends, beyond which a count finds nothing; and the count below zero, of that pass."""
        low, high = self._ritz_values
        top = max(abs(low), abs(high))
        points = [low - 1e-7 * top, high + 1e-7 * top, -RESOLUTION * top]
        counts = self.counts_below(torch.tensor(points, dtype=torch.float64)).tolist()
        if counts[0] > 0 or counts[1] < self.size:
            low, high = super()._extremes
        return (low, high), dict(zip(points, counts, strict=True))

    @property
    def _extremes(self) -> tuple[float, float]:
        return self._counted[0]

    def count_below(self, threshold: float) -> int:
        """Number of eigenvalues below a threshold."""
        known = {} if self._small else self._counted[1]
        return known[threshold] if threshold in known else super().count_below(threshold)

    @cached_property
    def spectrum(self) -> Spectrum:
        """All eigenvalues by a dense solver."""
        none = torch.zeros_like(self.read[0])
        streams = Streams(read=self.read, mix=self.mix, write=self.write, begin=none, end=none)
        beta = torch.zeros(len(self.alpha), len(self.alpha), dtype=torch.float64)
        beta[:, :-1] = streams.coefficients()[0][:, 1:]
        return spectrum_of_parts(self.alpha, beta, self.own, self.pairing, self.idle)


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
