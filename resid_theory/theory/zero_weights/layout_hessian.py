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

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from resid_theory.eigen.spectral_statistics import SpectralStatistics
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.theory.zero_weights.architecture import Architecture
from resid_theory.theory.zero_weights.layout import Layout
from resid_theory.theory.zero_weights.semiseparable import Semiseparable
from resid_theory.theory.zero_weights.zero_point_statistics import (
    FromMoments,
    FromSamples,
    both_signs,
    check_dense,
    flushed,
    pair_spectrum,
    resolution_of,
)

__all__ = ["Branches"]

_DENSE = 3000  # parameters whose eigenvalues take seconds


@dataclass(frozen=True, kw_only=True, eq=False)
class Branches:
    """First derivatives of a loss in what the blocks of a net write, at zero weights.

    Attributes:
        net: The architecture.
        local: Statistics at the output.
        shared: M, where all blocks have a multiple of one matrix as their B.
        gains: These multiples, (K,); ones where there is no M.
        own: B of every block otherwise.
    """

    net: Architecture
    local: FromMoments | FromSamples
    shared: Tensor | None
    gains: Tensor
    own: list[Tensor] | None = None

    @classmethod
    def of(cls, local: FromMoments | FromSamples, net: Architecture) -> "Branches":
        """Find out whether blocks share a matrix, and what they have."""
        layout, ones = net.layout, torch.ones(net.blocks, dtype=torch.float64)
        if net.shared_share is not None and layout.writes is not None:
            gains = layout.writes.value() if net.is_featured else layout.products
            matrix = local.correlation
            if net.norm.at == "write":
                matrix = net.norm.slope_at_zero(len(matrix), 0).mT @ matrix
            return cls(net=net, local=local, shared=matrix, gains=gains)
        if isinstance(local, FromMoments):
            g = local.correlation
            acts = passed_back(layout, torch.eye(len(g)).to(g))
            sees = arriving(layout, torch.eye(g.shape[1]).to(g))
            own = [n.mT @ g @ p for n, p in zip(acts, sees, strict=True)]
            return cls(net=net, local=local, shared=None, gains=ones, own=own)
        own = []
        _, sees, passed = sights(local, net)
        for z, g in zip(sees, passed, strict=True):
            scale = (g.norm() * z.norm()).item() / len(z)
            own.append(flushed(g.mT @ z / len(z), scale))
        return cls(net=net, local=local, shared=None, gains=ones, own=own)

    @property
    def leading(self) -> Tensor:
        """M, or the largest B."""
        if self.own is None:
            assert self.shared is not None
            return self.shared
        return max(self.own, key=lambda b: float(torch.linalg.matrix_norm(b, 2)))

    def statistics(self, hidden: int) -> SpectralStatistics:
        """Eigenvalues of the Hessian."""
        net, n = self.net, self.net.n
        if n == 1:
            return self._of_single_layers()
        shapes = [m.shape for m in self.own] if self.own is not None else [self.leading.shape]
        repeat = 1 if self.own is not None else net.blocks
        inner = [hidden * (sum(shape) + (n - 2) * hidden) for shape in shapes]
        parameters = repeat * sum(inner)
        if n > 2:
            found = Spectrum.of([0.0], [parameters])
        elif self.own is None:
            found = pair_spectrum([self.leading], [hidden], parameters, net.slope * self.gains)
        else:
            scaled = [net.slope * m for m in self.own]
            found = pair_spectrum(scaled, [hidden] * len(scaled), parameters)
        return _joined(found, self._of_last_biases()) if net.last_bias else found

    def _of_last_biases(self) -> Spectrum:
        """Eigenvalues of the blocks of the last biases, which shift the output."""
        layout, curvature = self.net.layout, self.local.mean_curvature
        if layout.writes is not None:
            scale = float((self.net.post.slope * layout.writes.value()).square().sum())
            values = torch.linalg.eigvalsh(curvature).cpu()
            size = self.net.blocks * len(values)
            levels = torch.cat([scale * values, values.new_zeros(1)])
            ones = torch.ones(len(values) + 1).long()
            ones[-1] = size - len(values)
            return Spectrum.of(levels, ones, resolution=resolution_of(curvature))
        wide = torch.cat(passed_back(layout, self.net.post.slope * torch.eye(len(curvature))
                                     .to(curvature)), dim=1)  # fmt: skip
        return Spectrum.of(torch.linalg.eigvalsh(wide.mT @ curvature @ wide))

    def _of_single_layers(self) -> SpectralStatistics:
        net, local, layout = self.net, self.local, self.net.layout
        if self.own is None and not net.is_featured and not net.bend("line"):
            return _of_numbers(local, layout, net.slope)
        if isinstance(local, FromMoments):
            return Spectrum.of(torch.linalg.eigvalsh(_dense_of_moments(local, net)))
        return Spectrum.of(torch.linalg.eigvalsh(_dense_of_samples(local, net)))


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


def sights(
    local: FromSamples, net: Architecture
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Inputs of each block, what its first matrix sees, and gradients at what it writes."""
    layout, norm = net.layout, net.norm
    if norm.at == "stream":
        stream = norm.along(local.inputs, layout)
        arrived, passed = stream[:-1], norm.back(stream, local.gradients, layout)
    else:
        arrived, passed = arriving(layout, local.inputs), passed_back(layout, local.gradients)
    if norm.at == "write":
        passed = [one @ norm.slope_at_zero(one.shape[1], k) for k, one in enumerate(passed)]
    return arrived, [net.seen(one, block).detach() for block, one in enumerate(arrived)], passed


def arriving(layout: Layout, x: Tensor) -> list[Tensor]:
    """Parts of inputs (m, q) that blocks read; of the unit matrix, the transposes of P_k."""
    if layout.reads is not None:
        return [p * x for p in layout.reads.value().tolist()]
    assert layout.maps is not None and layout.widths is not None
    inner = (width for width, _ in layout.widths[1:])
    firsts = [row[0] for row in layout.maps[0]]
    return [_mapped(m, x, width) for m, width in zip(firsts, inner, strict=True)]


def passed_back(layout: Layout, g: Tensor) -> list[Tensor]:
    """Gradients at what blocks write from those at the output; of the unit matrix, N_k."""
    if layout.writes is not None:
        return [q * g for q in layout.writes.value().tolist()]
    assert layout.maps is not None and layout.widths is not None
    wide = (width for _, width in layout.widths[1:])
    backs = [None if m is None else m.mT for m in layout.maps[1][1:]]
    return [_mapped(m, g, width) for m, width in zip(backs, wide, strict=True)]


def _mapped(matrix: Tensor | None, rows: Tensor, width: int) -> Tensor:
    return rows.new_zeros(len(rows), width) if matrix is None else rows @ matrix.to(rows).mT


# -- blocks of one layer ---------------------------------------------------------------------------


def _of_numbers(
    local: FromMoments | FromSamples, layout: Layout, slope: float
) -> SpectralStatistics:
    """Coefficients are numbers: H = α αᵀ ⊗ Q + β ⊗ K + (β ⊗ K)ᵀ, K(E) = G Eᵀ."""
    g, width = local.correlation.cpu(), local.width
    size = layout.blocks * width**2
    second = local.pair_moment(g.new_ones(width, width).to(local.correlation)).cpu()
    # (s, q', p, q): rows of the later matrix by (output s, input q'), of the other by (p, q).
    flat = second.reshape(width**2, width**2)
    # K(E) = G E^T: entry (i, j) of the later matrix meets (j, q) of the earlier one with G[i, q].
    pairing = torch.einsum("iq,jp->ijpq", g, torch.eye(width, dtype=g.dtype))
    pairing = pairing.reshape(width**2, width**2)
    isotropic = flat[0, 0] * torch.eye(width**2, dtype=g.dtype)
    is_scalar = bool(
        (flat - isotropic).abs().max() <= 1e-12 * flat.abs().max()
        and (g - g.mT).abs().max() <= 1e-12 * g.abs().max()
    )
    if layout.streams is not None and size > _DENSE and bool(layout.products.any()):
        parts = _parts(flat[0, 0], torch.linalg.eigvalsh(g)) if is_scalar else None
        own, paired, idle = parts or (flat[None], pairing[None], torch.zeros(1).long())
        return _counted(layout, slope, own, paired, idle)
    reads, out = layout.coefficients()
    alpha = slope * layout.products
    beta = torch.zeros_like(reads)
    beta[:, :-1] = slope**2 * out[1:, None] * reads[:, 1:] * reads[:-1, 0]
    if not bool(alpha.any()):
        # A block that is read is not written: β pairs some blocks with others.
        sigma = torch.linalg.svdvals(beta)[: layout.blocks // 2]
        levels = torch.outer(sigma, torch.linalg.svdvals(g)).flatten()
        copies = torch.full((len(levels),), width)
        return both_signs(levels, copies, size, resolution_of(beta) + resolution_of(g))
    if size > _DENSE and is_scalar:
        return _of_entries(alpha, beta, float(flat[0, 0]), torch.linalg.eigvalsh(g))
    check_dense(size)
    hessian = torch.kron(torch.outer(alpha, alpha), flat)
    crossed = torch.kron(beta, pairing)
    return Spectrum.of(torch.linalg.eigvalsh(hessian + crossed + crossed.mT))


def _parts(sigma: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Isotropic inputs and a symmetric G: entries (i, j) meet (j, i) alone, two rows at a time."""
    d = len(g)
    i, j = torch.tril_indices(d, d, -1)
    own = sigma * torch.eye(2).to(g).repeat(d + len(i), 1, 1)
    paired, idle = torch.zeros_like(own), torch.zeros(len(own), dtype=torch.int64)
    paired[:d, 0, 0], own[:d, 1, 1], idle[:d] = g, 0.0, 1  # an entry (i, i) is one row
    paired[d:, 0, 1], paired[d:, 1, 0] = g[i], g[j]
    return own, paired, idle


def _counted(
    layout: Layout, slope: float, own: Tensor, pairing: Tensor, idle: Tensor
) -> Semiseparable:
    streams = layout.streams
    assert streams is not None and layout.reads is not None and layout.writes is not None
    p, q = layout.reads.value(), layout.writes.value()
    if not bool(p.isfinite().all() and q.isfinite().all()):
        raise ValueError(
            "layout: what blocks read of the input or what the output reads of blocks is out of "
            "the range of floats; blocks of one layer need both in it"
        )
    return Semiseparable(
        read=slope * q[:, None] * streams.read, mix=streams.mix,
        write=slope * p[:, None] * streams.write,
        alpha=slope * layout.products, own=own, pairing=pairing, idle=idle,
    )  # fmt: skip


def _of_entries(alpha: Tensor, beta: Tensor, sigma: float, g: Tensor) -> Spectrum:
    """For isotropic inputs and a symmetric G, in whose axes entries (i, j) meet (j, i) alone."""
    own = sigma * torch.outer(alpha, alpha)
    values = [torch.linalg.eigvalsh(own + g_i * (beta + beta.mT)) for g_i in g]
    for i in range(len(g)):
        for j in range(i):
            across = g[i] * beta + g[j] * beta.mT
            upper = torch.cat([own, across], dim=1)
            lower = torch.cat([across.mT, own], dim=1)
            values.append(torch.linalg.eigvalsh(torch.cat([upper, lower])))
    return Spectrum.of(torch.cat(values))


def _assembled(
    net: Architecture,
    shapes: list[tuple[int, int]],
    pairs: Callable[[int, int], Tensor],
    crossed: Callable[[int, int, Tensor], Tensor],
) -> Tensor:
    """The matrix from its blocks (out of k, in of k, out of l, in of l), l <= k."""
    sizes = [out * inner for out, inner in shapes]
    check_dense(sum(sizes))
    if net.layout.maps is not None:
        links = [row[1:] for row in net.layout.maps[0]]
    else:
        eye = torch.eye(shapes[0][0], dtype=torch.float64)  # all blocks are as wide
        table = net.layout.coefficients()[0]
        links = [[c * eye if c else None for c in row[1 : k + 1]] for k, row in enumerate(table)]
    rows = []
    for k in range(net.blocks):
        row = []
        for j in range(k + 1):
            block, link = pairs(k, j), links[k][j] if j < k else None
            if link is not None:
                full = crossed(k, j, link.to(block))
                block[:, : full.shape[1]] += full  # a bias reads no block
            row.append(block.reshape(sizes[k], sizes[j]))
        rows.append(torch.cat([*row, row[0].new_zeros(sizes[k], sum(sizes[k + 1 :]))], dim=1))
    lower = torch.cat(rows)
    return lower.tril() + lower.tril(-1).mT


def _dense_of_moments(local: FromMoments, net: Architecture) -> Tensor:
    """Coefficients are matrices, and blocks see linear functions of the input."""
    g, square = local.correlation, net.slope**2
    acts = passed_back(net.layout, torch.eye(len(g)).to(g))
    sees = [p.mT for p in arriving(net.layout, torch.eye(g.shape[1]).to(g))]
    shapes = [(n.shape[1], len(p)) for n, p in zip(acts, sees, strict=True)]

    def pairs(k: int, j: int) -> Tensor:
        outputs = acts[k].mT @ local.gram @ acts[j]
        return square * torch.einsum("ac,bd->abcd", outputs, sees[k] @ local.sxx @ sees[j].mT)

    def crossed(k: int, j: int, link: Tensor) -> Tensor:
        first = acts[k].mT @ local.correlation @ sees[j].mT
        return square * torch.einsum("ad,bc->abcd", first, link)

    return _assembled(net, shapes, pairs, crossed)


def _dense_of_samples(local: FromSamples, net: Architecture) -> Tensor:
    arrived, sees, passed = sights(local, net)
    shapes = [(g.shape[1], z.shape[1]) for z, g in zip(sees, passed, strict=True)]
    m = len(local.inputs)
    slopes = [net.slopes(u, k) for k, u in enumerate(arrived)]
    acts = passed_back(net.layout, torch.eye(local.width).to(local.inputs))
    square, bend = net.slope**2, net.bend("line")

    def pairs(k: int, j: int) -> Tensor:
        outputs = acts[k].mT @ local.curvatures @ acts[j]
        block = square * torch.einsum("mac,mb,md->abcd", outputs, sees[k], sees[j]) / m
        if k == j and bend:
            curved = bend * torch.einsum("ma,mb,md->abd", passed[k], sees[k], sees[k]) / m
            block.diagonal(dim1=0, dim2=2).add_(curved.permute(1, 2, 0))
        return block

    def crossed(k: int, j: int, link: Tensor) -> Tensor:
        return square * torch.einsum(
            "ma,mbe,ec,md->abcd", passed[k], slopes[k], link, sees[j]
        ) / m  # fmt: skip

    return _assembled(net, shapes, pairs, crossed)
