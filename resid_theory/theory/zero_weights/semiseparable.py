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
from resid_theory.theory.zero_weights.counted_spectrum import (
    RESOLUTION,
    CountedSpectrum,
    inverted,
    solved,
)
from resid_theory.theory.zero_weights.streams import Streams
from resid_theory.theory.zero_weights.zero_point_statistics import check_dense

_BASIS = 30  # vectors of a Krylov space: the ends of these spectra are far apart


def dense_spectrum(alpha: Tensor, beta: Tensor, own: Tensor, pairing: Tensor) -> Spectrum:
    """Eigenvalues of α αᵀ ⊗ Q + β ⊗ K + (β ⊗ K)ᵀ."""
    check_dense(len(alpha) * len(own))
    crossed = torch.kron(beta, pairing)
    whole = torch.kron(torch.outer(alpha, alpha), own) + crossed + crossed.mT
    return solved(whole)


@dataclass(frozen=True, kw_only=True, eq=False)
class Semiseparable(CountedSpectrum, Result):
    """Symmetric matrix of blocks that read one another through streams.

    Attributes:
        read: What a block reads of the streams, times what the output reads of it, (K, n).
        mix: Mixing of the streams, (K, n, n).
        write: What a block writes, times its share of the input, (K, n).
        alpha: Product of both shares, (K,).
        own: Q, (b, b).
        pairing: Block of a pair of layers, (b, b).
    """

    read: Tensor
    mix: Tensor
    write: Tensor
    alpha: Tensor
    own: Tensor
    pairing: Tensor

    headline = "Hessian of one-layer blocks on streams, P = {0.size}"
    tabulated = {
        "blocks": lambda matrix: [len(matrix.alpha)],
        "largest": lambda matrix: [matrix.largest],
        "smallest": lambda matrix: [matrix.smallest],
    }

    @property
    def block_size(self) -> int:
        """Rows of a pivot."""
        return len(self.own)

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.alpha) * self.block_size

    def counts_below(self, points: Tensor) -> Tensor:
        """Numbers of eigenvalues below points (t,), in one pass over the blocks."""
        reads, alpha = self.read.numpy(), self.alpha.numpy()
        count, n = reads.shape
        # A last stream for the sum of all earlier blocks.
        mixing = np.zeros((count, n + 1, n + 1))
        mixing[:, :n, :n], mixing[:, n, n] = self.mix.numpy(), 1.0
        writes = np.concatenate([self.write.numpy(), alpha[:, None]], axis=1)
        own, pairing, unit = self._scaled
        size = self.block_size
        states = size * (n + 1)  # ordered (row, stream): contractions over streams are one product
        at = points.numpy() / unit
        shift = at[:, None, None] * np.eye(size)
        p, found = np.zeros((len(points), states, states)), np.zeros(len(points), dtype=np.int64)
        c = np.empty((size, size, n + 1))
        links = np.linalg.norm(reads, axis=1) * np.linalg.norm(self.write.numpy(), axis=1)
        sizes = alpha**2 * np.linalg.norm(own, 2) + links * np.linalg.norm(pairing, 2)
        scales = sizes[:, None] + np.abs(at)
        for m in range(count - 1, -1, -1):
            t, b = mixing[m], writes[m]
            right = (p.reshape(-1, n + 1) @ t).reshape(p.shape)  # P T
            left = right.swapaxes(-1, -2).reshape(-1, n + 1)  # (P T)ᵀ
            bpt = (left @ b).reshape(-1, states, size).swapaxes(-1, -2)
            bpb = b @ (p.reshape(-1, n + 1) @ b).reshape(-1, size, n + 1, size)
            c[..., :n], c[..., n] = pairing[..., None] * reads[m], alpha[m] * own
            y = c.reshape(size, states) + bpt
            r = alpha[m] ** 2 * own - shift + bpb
            axes, inverse, negative = inverted(r, scales[m])
            found += negative
            z = y.swapaxes(-1, -2) @ axes
            p = (left @ t).reshape(p.shape) - (z * inverse) @ z.swapaxes(-1, -2)
            p = 0.5 * (p + p.swapaxes(-1, -2))  # or what round-off makes asymmetric may grow
        return torch.from_numpy(found)

    def matvec(self, vectors: np.ndarray) -> np.ndarray:
        """Product with (K, b), by a pass in either direction."""
        mixing, writes, reads = self.mix.numpy(), self.write.numpy(), self.read.numpy()
        alpha, (own, pairing, unit) = self.alpha.numpy(), self._scaled
        state = _passed(mixing, writes[:, :, None] * vectors[:, None])
        added = (reads[:, :, None] * vectors[:, None])[::-1]
        back = _passed(mixing[::-1].swapaxes(-1, -2), added)[::-1]
        return unit * (
            np.outer(alpha, own @ (alpha @ vectors))
            + np.einsum("kn,knf->kf", reads, state) @ pairing.T
            + np.einsum("kn,knf->kf", writes, back) @ pairing
        )

    @cached_property
    def _scaled(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Q and K of order one, as squares of theirs may not be floats, and what they are over."""
        own, pairing = self.own.numpy(), self.pairing.numpy()
        top = max(np.abs(own).max(), np.abs(pairing).max())
        unit = math.ldexp(0.5, math.frexp(top)[1]) if top else 1.0  # a power of two: exact
        return own / unit, pairing / unit, unit

    @property
    def radius(self) -> float:
        """A bound of all |eigenvalues|: those of Lanczos, with a margin."""
        return 2 * max(map(abs, self._ritz_values))

    @cached_property
    def _ritz_values(self) -> tuple[float, float]:
        """Both ends of the spectrum by Lanczos, whose values are inside the ends."""
        from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

        size, shape = self.size, (-1, self.block_size)
        start = np.random.default_rng(0).standard_normal(size)
        with np.errstate(over="ignore", invalid="ignore"):
            seen = self.matvec(start.reshape(shape))
        if not (seen.any() and np.isfinite(seen).all()):
            raise ValueError(
                "layout, data: the eigenvalues are all zero or out of the range of floats; needs "
                "gains and moments nearer to one"
            )
        product = LinearOperator(
            (size, size), matvec=lambda v: self.matvec(v.reshape(shape)).reshape(-1), dtype=float
        )
        try:
            values = eigsh(
                product, k=2, which="BE", ncv=min(_BASIS, size), tol=1e-10, v0=start,
                return_eigenvectors=False,
            )  # fmt: skip
        except ArpackError as error:
            raise RuntimeError(
                f"layout: Lanczos did not find both ends of the {size} eigenvalues ({error}); "
                "take fewer blocks, whose spectrum a dense solver gives"
            ) from error
        return float(values.min()), float(values.max())

    @cached_property
    def _counted(self) -> tuple[tuple[float, float], dict[float, int]]:
        """Both ends, beyond which a count finds nothing; and the count below zero, of that pass."""
        low, high = self._ritz_values
        top = max(abs(low), abs(high))
        points = [low - 1e-7 * top, high + 1e-7 * top, -RESOLUTION * top]
        counts = self.counts_below(torch.tensor(points, dtype=torch.float64)).tolist()
        if counts[0] > 0 or counts[1] < self.size:
            low, high = self.eigenvalue(0), self.eigenvalue(self.size - 1)
        return (low, high), dict(zip(points, counts, strict=True))

    def _end(self, rank: int) -> float:
        return self._counted[0][rank > 0]

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
        return dense_spectrum(self.alpha, beta, self.own, self.pairing)


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
