r"""The Hessian at zero weights of blocks that are wired by a layout.

Let :math:`P_k = A_{k0}, N_k = a_k, N_0 = a_0` and :math:`M_{kl} = A_{kl}` be the coefficients of a
:class:`Layout`, numbers or matrices, g and H the loss's derivatives at the output :math:`N_0 x` and
:math:`z_k` what the first matrix of block k sees there: :math:`P_k x` or a function of it, with
slope :math:`J_k`. For blocks of one layer the output is :math:`N_0 x + \sum_k N_k W_k z_k +
\sum_{l<m} N_m W_m J_m M_{ml} W_l z_l + O(W^3)`, so that

.. math:: \partial_k L = E\, N_k^T g z_k^T, \qquad
    H_{lm} = E\, N_l^T H N_m \otimes z_l z_m^T + E\, (N_m^T g) \otimes (J_m M_{ml}) \otimes z_l.

In a block of two layers the first only reads and the second only writes, so that the first term
vanishes and the second pairs the two: with :math:`B_k = E\, N_k^T g z_k^T` the eigenvalues are
:math:`\pm c s_i(B_k)`, each as often as a block is wide inside. Coefficients that are numbers give
:math:`B_k = p_k q_k G`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resid_theory.eigen.spectral_statistics import SpectralStatistics
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.theory.zero_weights.architecture import Architecture
from resid_theory.theory.zero_weights.relu_limits import own_correlations
from resid_theory.theory.zero_weights.single_layers import OneLayerBlocks
from resid_theory.theory.zero_weights.zero_point_statistics import (
    LossAtZero,
    flushed,
    pair_spectrum,
    resolution_of,
)

__all__ = ["Branches"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Branches:
    """First derivatives of a loss in what the blocks of a net write, at zero weights.

    Attributes:
        net: The architecture.
        local: Derivatives at the output.
        shared: M, where all blocks have a multiple of one matrix as their B.
        gains: These multiples, (K,); ones where there is no M.
        path: Weight matrices on the shortest way from what a block sees to the output.
        own: B of every block otherwise; along given weights with n = 2 of every hidden unit, too,
            (K, h, d, q).
    """

    net: Architecture
    local: LossAtZero
    shared: Tensor | None
    gains: Tensor
    path: float
    own: Tensor | list[Tensor] | None = None

    @classmethod
    def of(cls, local: LossAtZero, net: Architecture, along: Any = None) -> "Branches":
        """Find out whether blocks share a matrix, and what they have."""
        layout, ones = net.layout, torch.ones(net.blocks, dtype=torch.float64)
        if net.shared_share is not None and layout.writes is not None:
            gains = layout.writes.value() if net.is_featured else layout.products
            matrix = local.correlation
            if net.norm.at == "write":
                matrix = net.norm.slope_at_zero(len(matrix), 0).mT @ matrix
            own = None if along is None or net.n != 2 else own_correlations(local, net, along)
            every = torch.full_like(gains, bool(local.features.any())).bool()
            path = layout.path(every if net.is_featured else None)
            return cls(net=net, local=local, shared=matrix, gains=gains, path=path, own=own)
        each = []
        _, sees, passed = net.sights(local.inputs, local.gradients)
        path = layout.path(torch.tensor([bool(z.any()) for z in sees]))
        for z, g in zip(sees, passed, strict=True):
            scale = (g.norm() * z.norm()).item() / len(z)
            each.append(flushed(g.mT @ z / len(z), scale))
        return cls(net=net, local=local, shared=None, gains=ones, path=path, own=each)

    @property
    def leading(self) -> Tensor:
        """M, or the largest B."""
        if self.shared is not None:
            return self.shared
        assert self.own is not None
        return max(self.own, key=lambda b: float(torch.linalg.matrix_norm(b, 2)))

    def statistics(self, hidden: int, kink: Any) -> SpectralStatistics:
        """Eigenvalues of the Hessian."""
        net, n = self.net, self.net.n
        matrices = self.own if self.shared is None else [self.shared]
        assert matrices is not None
        shapes = [m.shape for m in matrices]
        sizes = [d * q if n == 1 else hidden * (d + q + (n - 2) * hidden) for d, q in shapes]
        parameters = sum(sizes) * (1 if self.shared is None else net.blocks)
        if self.path > 2:
            found = Spectrum.of([0.0], [parameters])
        elif n == 1:
            return OneLayerBlocks.of(net, self.local, self.gains, kink).statistics()
        elif self.own is None:
            found = pair_spectrum([self.leading], [hidden], parameters, net.slope * self.gains)
        elif isinstance(self.own, Tensor):
            each = list(self.own.flatten(0, 1))
            found = pair_spectrum(each, [1] * len(each), parameters)
        else:
            scaled = [net.slope * m for m in self.own]
            found = pair_spectrum(scaled, [hidden] * len(scaled), parameters)
        return _joined(found, self._of_last_biases()) if net.last_bias else found

    def _of_last_biases(self) -> Spectrum:
        """Eigenvalues of the blocks of the last biases, which shift the output."""
        layout, curvature = self.net.layout, self.local.curvatures.mean(0)
        eye = torch.eye(len(curvature)).to(curvature)
        if layout.writes is not None:
            total, size = layout.writes.value().square().sum() * eye, self.net.blocks * len(eye)
        else:
            acts = layout.passed_back(eye)
            wide = torch.cat(acts, dim=1)
            total, size = wide @ wide.mT, wide.shape[1]
        # Those of N^T H N for N = (N_1 ... N_K) are those of R^T H R with R R^T = N N^T, and zeros.
        values, axes = torch.linalg.eigh(self.net.post.slope**2 * total)
        root = axes * values.clamp_min(0.0).sqrt()
        levels = torch.linalg.eigvalsh(root.mT @ curvature @ root).cpu()
        levels = levels[levels.abs().argsort(descending=True)][:size]
        ones = torch.ones(len(levels) + 1).long()
        ones[-1] = size - len(levels)
        kept = slice(None if size > len(levels) else -1)
        return Spectrum.of(
            torch.cat([levels, levels.new_zeros(1)])[kept], ones[kept],
            resolution=resolution_of(curvature),
        )  # fmt: skip


def _joined(one: Spectrum, other: Spectrum) -> Spectrum:
    top = max(one.max_magnitude, other.max_magnitude)
    levels = torch.cat([
        torch.where(s.levels.abs() <= s.zero_threshold, 0.0, s.levels) for s in (one, other)
    ])  # fmt: skip
    seen = levels[levels != 0].abs()
    share = float(seen.min()) / top / 2 if len(seen) else 0.0
    return Spectrum.of(
        levels, torch.cat([one.multiplicities, other.multiplicities]), resolution=share
    ).distinct(0.0)
