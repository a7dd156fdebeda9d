"""Blocks of the Hessian of blocks of one layer, and the spectra of the matrices they make."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resid_theory.eigen.spectral_statistics import SpectralStatistics
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.theory.zero_weights.architecture import Architecture
from resid_theory.theory.zero_weights.relu_limits import is_direction, own_derivatives
from resid_theory.theory.zero_weights.semiseparable import Semiseparable, spectrum_of_parts
from resid_theory.theory.zero_weights.toeplitz import BlockToeplitz
from resid_theory.theory.zero_weights.zero_point_statistics import LossAtZero, check_dense

__all__ = ["OneLayerBlocks"]

_DENSE = 3000  # parameters whose eigenvalues take seconds


@dataclass(frozen=True, kw_only=True, eq=False)
class OneLayerBlocks:
    """Derivatives of what single layers read and write; of one layer where all are alike.

    Attributes:
        net: The architecture.
        local: Derivatives at the output.
        gains: Factors of equal layers, (K,); None where they differ.
        sees: What the matrices multiply, (m, q) each.
        inner: Derivatives of it in what the layers read, (m, q, width) each.
        acts: Derivatives of the output in what the matrices write, (m or 1, d, out) each.
        passed: Gradients there, (m, out) each.
        outer: Slopes between matrix and output, (m or 1, out) each.
        curved: For the diagonal: first derivatives times second ones of ``post``, (m, out) each.
        mask: Variance of the slopes of a unit, where a kink is averaged over directions.
    """

    net: Architecture
    local: LossAtZero
    gains: Tensor | None
    sees: list[Tensor]
    inner: list[Tensor]
    acts: list[Tensor]
    passed: list[Tensor]
    outer: list[Tensor]
    curved: list[Tensor] | None
    mask: float

    @classmethod
    def of(cls, net: Architecture, local: LossAtZero, gains: Tensor, kink: Any) -> "OneLayerBlocks":
        """Gather the derivatives, of one layer where all see the same and act alike."""
        eye, x = torch.eye(local.width).to(local.inputs), local.inputs
        directed, share = is_direction(kink), net.shared_share
        bend = 0.0 if directed else net.bend(kink)
        alike = not directed and (not bend or net.layout.is_shortcut) and share is not None
        if alike and share is not None:
            arrived, sees, passed, acts = [share * x], [local.features], [local.gradients], [eye]
        else:
            arrived, sees, passed = net.sights(x, local.gradients)
            acts = net.layout.passed_back(eye)
        if directed:
            slopes, seconds = own_derivatives(local, net, kink)
        else:
            slopes = [g.new_full((1, g.shape[1]), net.post.slope) for g in passed]
            seconds = [torch.full_like(s, bend) for s in slopes]
        post = net.post
        spread = 0.5 * (post.left**2 + post.right**2) - post.slope**2
        bent = any(bool(s.any()) for s in seconds)
        return cls(
            net=net, local=local, gains=gains if alike else None, sees=sees,
            inner=[net.slopes(u, k) for k, u in enumerate(arrived)],
            acts=[n * s[:, None] for n, s in zip(acts, slopes, strict=True)],
            passed=[s * g for s, g in zip(slopes, passed, strict=True)], outer=slopes,
            curved=[s * g for s, g in zip(seconds, passed, strict=True)] if bent else None,
            mask=spread if kink == "mean" else 0.0,
        )  # fmt: skip

    def statistics(self) -> SpectralStatistics:
        """Eigenvalues of the Hessian."""
        net, layout = self.net, self.net.layout
        if self.gains is None:
            return Spectrum.of(torch.linalg.eigvalsh(self._dense()))
        own = self._pair(0, 0)
        if net.is_featured:
            crossed = self._chain(0, 0, torch.eye(self.inner[0].shape[-1]).to(own))
        else:  # M is exactly zero where it is round-off
            width = torch.eye(self.local.width).to(own)
            crossed = net.slope**2 * torch.einsum("ad,bc->abcd", self.local.correlation, width)
        if layout.is_shortcut:
            diagonal = by_columns(own + self._alone(0, own))
            lower = by_columns(own + crossed)
            return BlockToeplitz(blocks=net.blocks, diagonal=diagonal, lower=lower)
        return self._of_numbers(by_columns(own).cpu(), by_columns(crossed).cpu())

    # The later layer writes a and multiplies b, the earlier one writes c and multiplies d.

    def _pair(self, k: int, j: int) -> Tensor:
        """Curvature of the output in two layers."""
        outputs = self.acts[k].mT @ self.local.curvatures @ self.acts[j]
        return _mean(self._products(k, j), outputs).permute(2, 0, 3, 1)

    def _products(self, k: int, j: int) -> Tensor:
        weights, seen = self.local.weights, self.sees[k]
        seen = seen if weights is None else weights @ seen
        return seen.unsqueeze(2) * self.sees[j].unsqueeze(1)

    def _chain(self, k: int, j: int, link: Tensor) -> Tensor:
        """The way of a layer through a later one."""
        through = self.inner[k] @ link * self.outer[j].unsqueeze(1)
        first = self.passed[k].unsqueeze(2) * self.sees[j].unsqueeze(1)
        return _mean(first, through).permute(0, 2, 3, 1)

    def _alone(self, k: int, like: Tensor) -> Tensor:
        """Terms that a matrix shares with itself alone."""
        extra, seen = torch.zeros_like(like), self._products(k, k)
        if self.curved is not None:
            extra.diagonal(dim1=0, dim2=2).add_(_mean(seen, self.curved[k]))
        if self.mask:  # a unit's mask meets itself: its square's mean, not its mean's square
            own = self.local.curvatures.diagonal(dim1=1, dim2=2)
            extra.diagonal(dim1=0, dim2=2).add_(self.mask * _mean(seen, own))
        return extra

    def _dense(self) -> Tensor:
        layout, count = self.net.layout, self.net.blocks
        sizes = [z.shape[1] * g.shape[1] for z, g in zip(self.sees, self.passed, strict=True)]
        check_dense(sum(sizes))
        if layout.maps is not None:
            links = [row[1:] for row in layout.maps[0]]
        else:
            eye = torch.eye(self.inner[0].shape[-1], dtype=torch.float64)  # all are as wide
            links = [[c * eye if c else None for c in row[1:]] for row in layout.coefficients()[0]]
        matrix = self.local.inputs.new_zeros(sum(sizes), sum(sizes))
        places = [place.split(sizes, 1) for place in matrix.split(sizes, 0)]
        for k in range(count):
            for j in range(k):
                block, link = self._pair(k, j), links[k][j]
                if link is not None:
                    block = block + self._chain(k, j, link.to(block))
                places[k][j].copy_(block.reshape(sizes[k], sizes[j]))
                places[j][k].copy_(places[k][j].mT)
            block = self._pair(k, k)
            places[k][k].copy_((block + self._alone(k, block)).reshape(sizes[k], sizes[k]))
        return matrix

    def _of_numbers(self, own: Tensor, crossed: Tensor) -> SpectralStatistics:
        """H = α αᵀ ⊗ Q + β ⊗ K + (β ⊗ K)ᵀ, β_ml = q_m A_ml p_l."""
        layout, g, alpha = self.net.layout, self.local.correlation.cpu(), self.gains
        assert alpha is not None and layout.reads is not None and layout.writes is not None
        p, q = layout.reads.value(), layout.writes.value()
        p = torch.ones_like(p) if self.net.is_featured else p
        sigma = own[0, 0] * torch.eye(len(own)).to(own)
        parts = own[None], crossed[None], torch.zeros(1).long()
        if (
            not self.net.is_featured
            and (own - sigma).abs().max() <= 1e-12 * own.abs().max()
            and (g - g.mT).abs().max() <= 1e-12 * g.abs().max()
        ):
            slope = self.net.slope**2
            parts = _entries(own[0, 0], slope * torch.linalg.eigvalsh(g))
        size = layout.blocks * len(own)
        if layout.streams is not None and size > _DENSE and bool(alpha.any()):
            if not bool(p.isfinite().all() and q.isfinite().all()):
                raise ValueError(
                    "layout: what blocks read of the input or what the output reads of blocks is "
                    "out of the range of floats; blocks of one layer need both in it"
                )
            return Semiseparable(
                read=q[:, None] * layout.streams.read, mix=layout.streams.mix,
                write=p[:, None] * layout.streams.write, alpha=alpha,
                own=parts[0], pairing=parts[1], idle=parts[2],
            )  # fmt: skip
        beta = torch.zeros(len(alpha), len(alpha), dtype=torch.float64)
        beta[:, :-1] = q[:, None] * layout.coefficients()[0][:, 1:] * p[:-1]
        return spectrum_of_parts(alpha, beta, *parts)


def _mean(left: Tensor, right: Tensor) -> Tensor:
    """Mean over samples of all products of an entry of one and an entry of the other."""
    total = left.flatten(1).mT @ right.flatten(1) / len(left)
    return total.view(*left.shape[1:], *right.shape[1:])


def by_columns(entries: Tensor) -> Tensor:
    """(out, in, out, in) as a matrix in the paper's order: row (in, out), column (in, out)."""
    a, b, c, d = entries.shape
    return entries.permute(1, 0, 3, 2).reshape(b * a, d * c)


def _entries(sigma: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Isotropic inputs and a symmetric G: entries (i, j) meet (j, i) alone, two rows at a time."""
    d = len(g)
    i, j = torch.tril_indices(d, d, -1)
    own = sigma * torch.eye(2).to(g).repeat(d + len(i), 1, 1)
    paired, idle = torch.zeros_like(own), torch.zeros(len(own), dtype=torch.int64)
    paired[:d, 0, 0], own[:d, 1, 1], idle[:d] = g, 0.0, 1  # an entry (i, i) is one row
    paired[d:, 0, 1], paired[d:, 1, 0] = g[i], g[j]
    return own, paired, idle
