"""Statistics of the data and the loss that determine the Hessian at zero weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resid_theory.activations import Activation, derivatives
from resid_theory.data.moments import Moments
from resid_theory.data.regression import gather
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.losses import Loss, weighting_of
from resid_theory.theory.zero_weights.architecture import Architecture

__all__ = [
    "FromMoments",
    "FromSamples",
    "add_chain",
    "both_signs",
    "by_columns",
    "check_dense",
    "flushed",
    "pair_spectrum",
    "resolution_of",
]

_EPS = torch.finfo(torch.float64).eps
_ZERO = 1e-12  # M this small against |g||s| is round-off of the sums behind it
_DENSE_LIMIT = 1 << 33  # bytes of a dense Hessian built on request


def check_dense(size: int) -> None:
    """Refuse a dense matrix above 8 GiB."""
    if 8 * size * size > _DENSE_LIMIT:
        raise ValueError(
            f"hessian: {size} parameters make a dense matrix of {8 * size**2 / 2**30:.1f} GiB, "
            "the limit is 8 GiB; statistics (condition numbers, percentiles, index) need no matrix"
        )


def resolution_of(matrices: Tensor) -> float:
    """Smallest singular value of (..., d, q) that an SVD tells from zero, over the largest."""
    return 4 * max(matrices.shape[-2:]) * torch.finfo(matrices.dtype).eps


def both_signs(values: Tensor, copies: Tensor, parameters: int, resolution: float) -> Spectrum:
    """The spectrum of plus and minus each value, as often as it says, and zeros for the rest."""
    # Values that an SVD cannot tell from zero are set to zero: a symmetry of the loss must not
    # look like curvature.
    top = float(values.max()) if len(values) else 0.0
    values = torch.where(values <= resolution * top, 0.0, values)
    zeros = parameters - 2 * int(copies.sum())
    return Spectrum.of(
        torch.cat([values, -values, values.new_zeros(1)]),
        torch.cat([copies, copies, copies.new_tensor([zeros])]),
        resolution=resolution,
    ).distinct(0.0)


def pair_spectrum(
    matrices: Sequence[Tensor], copies: Sequence[int], parameters: int, weights: Any = None
) -> Spectrum:
    r"""Eigenvalues of pairs of layers with a loss of :math:`\sum_k \langle B_k, W_2 W_1 \rangle`.

    They are :math:`\pm s_i(B_k)`, each as often as pair k is wide inside, and zeros for the rest.

    Args:
        matrices: B, one for each pair, of any shapes; one matrix for all if ``weights`` are given.
        copies: Width inside each pair.
        parameters: Number of all eigenvalues.
        weights: (K,), factors of a common B.

    Returns:
        The spectrum.
    """
    if weights is not None:
        sizes, counts = weights.abs().unique(return_counts=True)
        values, resolution = torch.linalg.svdvals(matrices[0]).cpu(), resolution_of(matrices[0])
        levels = torch.outer(sizes, _told_from_zero(values, resolution)).flatten()
        number = (copies[0] * counts).repeat_interleave(len(values))
        small = resolution * float(sizes.min() / sizes.max()) if sizes.max() else resolution
        return both_signs(levels, number, parameters, small)
    # Zeros of one matrix stay zeros, however far matrices are apart.
    found = [_told_from_zero(torch.linalg.svdvals(m).cpu(), resolution_of(m)) for m in matrices]
    levels = torch.cat(found)
    number = torch.tensor(copies).repeat_interleave(torch.tensor([len(part) for part in found]))
    seen = levels[levels > 0]
    resolution = max(resolution_of(m) for m in matrices)
    small = resolution * float(seen.min() / seen.max()) if len(seen) else resolution
    return both_signs(levels, number, parameters, small)


def _told_from_zero(values: Tensor, resolution: float) -> Tensor:
    return torch.where(values <= resolution * values.max(), 0.0, values)


def flushed(correlation: Tensor, scale: float) -> Tensor:
    """M, exactly zero where all of it is round-off."""
    if correlation.abs().max().item() <= _ZERO * scale:
        return torch.zeros_like(correlation)
    return correlation


@dataclass(frozen=True, kw_only=True, eq=False)
class FromMoments:
    """Statistics for the square loss and linear features, from second moments alone."""

    gram: Tensor  # V^T V, the Hessian of the loss with respect to the network's output
    sxx: Tensor
    correlation: Tensor
    a_priori_bound: float

    @classmethod
    def of(cls, moments: Moments, net: Architecture) -> "FromMoments":
        """Carry the moments through the maps."""
        width = net.check_maps(len(moments.sxx), len(moments.syy))
        sxx, back = moments.sxx, moments.syx
        if net.input_map is not None:
            sxx, back = net.input_map @ sxx @ net.input_map.mT, back @ net.input_map.mT
        gram = torch.eye(width, dtype=sxx.dtype, device=sxx.device)
        if net.output_map is not None:
            gram, back = net.output_map.mT @ net.output_map, net.output_map.mT @ back
        forth = gram @ net.direct(sxx).mT
        bound = math.inf
        if net.input_map is None and net.output_map is None and moments.is_whitened:
            # The joint second moment of (x, y) is positive semidefinite, so
            # |Syx| <= sqrt(|Sxx| |Syy|).
            reach = math.sqrt(torch.linalg.matrix_norm(moments.syy, 2).item())
            bound = (1 + reach) / (1 - reach) if reach < 1.0 else math.inf
        return cls(
            gram=gram,
            sxx=sxx,
            correlation=flushed(forth - back, (forth.norm() + back.norm()).item()),
            a_priori_bound=bound,
        )

    @property
    def width(self) -> int:
        """Width d of the network."""
        return len(self.gram)

    @property
    def mean_curvature(self) -> Tensor:
        """Mean of H, (d, d)."""
        return self.gram

    def pair_moment(self, factor: Tensor) -> Tensor:
        """Mean of s[q'] s[q] factor[s, p] H[s, p], (s, q', p, q)."""
        return torch.einsum("jq,ip->ijpq", self.sxx, factor * self.gram)

    def gradient_moment(self) -> Tensor:
        """Mean of s[q'] s[q] g[s], a third moment, which second moments do not determine."""
        raise AssertionError("only a curved post needs it, and that takes samples")

    def chain_moment(self) -> Tensor:
        """Mean of g[s] s_pre'(x[q']) s[q], (s, q', q); without sigma_pre it is M for every q'."""
        return self.correlation.unsqueeze(1).expand(-1, self.width, -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class FromSamples:
    """Statistics for any loss and any features, from all samples."""

    inputs: Tensor  # x behind the input map, (m, q)
    features: Tensor  # s, (m, q), with a column of ones for a bias
    pre: Activation | None
    gradients: Tensor  # g, (m, d)
    curvatures: Tensor  # H, (m, d, d)
    correlation: Tensor
    a_priori_bound: float = math.inf

    @classmethod
    def of(cls, data: Any, net: Architecture, loss: Loss) -> "FromSamples":
        """Evaluate the loss and its derivatives at the outputs of the zero point."""
        samples = gather(data)
        x = samples.x if net.input_map is None else samples.x @ net.input_map.mT
        net.check_maps(samples.x.shape[1], samples.y.shape[1])
        output = net.direct(x)
        output = output if net.output_map is None else output @ net.output_map.mT
        weighting_of(loss, output, samples.y)  # refuses losses that compare samples
        g, curvatures = loss.derivatives(output, samples.y)
        if net.output_map is not None:
            g = g @ net.output_map
            curvatures = net.output_map.mT @ curvatures @ net.output_map
        share = net.shared_share
        features = x if share is None else net.seen(share * x, 0).detach()
        scale = (g.norm() * features.norm()).item() / len(x)
        correlation = g.mT @ features / len(x)
        if loss.null_direction and net.output_map is None:
            # Softmax ignores a shift of all outputs, so M's columns sum to zero; make that exact.
            correlation = correlation - correlation.mean(0)
        return cls(
            inputs=x,
            features=features,
            pre=net.pre,
            gradients=g,
            curvatures=curvatures,
            correlation=flushed(correlation, scale),
        )

    @property
    def width(self) -> int:
        """Width d of the network."""
        return self.gradients.shape[1]

    @property
    def mean_curvature(self) -> Tensor:
        """Mean of H, (d, d)."""
        return self.curvatures.mean(0)

    def pair_moment(self, factor: Tensor) -> Tensor:
        """Mean of s[q'] s[q] factor[s, p] H[s, p], (s, q', p, q)."""
        s = self.features
        products = (s.unsqueeze(2) * s.unsqueeze(1)).flatten(1)
        total = (products.mT @ self.curvatures.flatten(1)) / len(s)
        q, d = s.shape[1], self.width
        return factor[:, None, :, None] * total.view(q, q, d, d).permute(2, 0, 3, 1)

    def gradient_moment(self) -> Tensor:
        """Mean of s[q'] s[q] g[s], (s, q', q)."""
        s = self.features
        products = (s.unsqueeze(2) * s.unsqueeze(1)).flatten(1)
        total = self.gradients.mT @ products / len(s)
        return total.view(self.width, s.shape[1], s.shape[1])

    def chain_moment(self, earlier: Tensor | float = 1.0) -> Tensor:
        """Mean of g[s] s_pre'(x[q']) earlier[q'] s[q], (s, q', q); a bias column has no q'."""
        slopes, _ = derivatives(self.pre, self.inputs)
        products = (self.gradients.unsqueeze(2) * (slopes * earlier).unsqueeze(1)).flatten(1)
        total = products.mT @ self.features / len(slopes)
        return total.view(self.width, slopes.shape[1], self.features.shape[1])


def add_chain(lower: Tensor, chain: Tensor) -> None:
    """Add chain[s, q', q] where the earlier block's output p is the later one's input q'."""
    width = chain.shape[1]  # a bias column of q' has no output behind it
    lower[:, :width].diagonal(dim1=1, dim2=2).add_(chain.permute(0, 2, 1))


def by_columns(entries: Tensor) -> Tensor:
    """(s, q', p, q) as a matrix in the paper's order: row (q', s), column (q, p)."""
    s, j, p, q = entries.shape
    return entries.permute(1, 0, 3, 2).reshape(j * s, q * p)
