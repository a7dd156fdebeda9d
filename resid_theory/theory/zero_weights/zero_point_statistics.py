"""Statistics of the data and the loss that determine the Hessian at zero weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resid_theory.data.moments import Moments
from resid_theory.data.regression import gather
from resid_theory.data.sample_look import naming_loss
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.losses import Loss, weighting_of
from resid_theory.theory.zero_weights.architecture import Architecture

_ZERO = 1e-12  # M this small against |g||s| is round-off of the sums behind it
_DENSE_LIMIT = 1 << 33  # bytes of a dense Hessian built on request


def check_dense(size: int) -> None:
    """Refuse a dense matrix above 8 GiB."""
    if 8 * size * size > _DENSE_LIMIT:
        raise ValueError(
            f"hessian: {size} parameters make a dense matrix of {8 * size**2 / 2**30:.1f} GiB, "
            "the limit is 8 GiB; statistics (condition numbers, percentiles, index) need no matrix"
        )


def resolution_of(matrices: Tensor, eps: float | None = None) -> float:
    """Smallest singular value of (..., d, q) that an SVD tells from zero, over the largest."""
    return 4 * max(matrices.shape[-2:]) * (eps or torch.finfo(matrices.dtype).eps)


def pair_spectrum(
    matrices: Sequence[Tensor], copies: Sequence[int], parameters: int, weights: Any = None,
    eps: float | None = None,
) -> Spectrum:  # fmt: skip
    """Eigenvalues ±s_i(B_k) of pairs of layers, as often as each is wide inside, and zeros."""
    # ``weights`` are factors of one common matrix.
    # What an SVD cannot tell from zero in its own matrix is zero, however far matrices are apart:
    # a symmetry of the loss must not look like curvature.
    found = [torch.linalg.svdvals(m).cpu() for m in matrices]
    resolutions = [resolution_of(m, eps) for m in matrices]
    found = [v.masked_fill(v <= r * v.max(), 0.0) for v, r in zip(found, resolutions, strict=True)]
    each = torch.tensor([len(values) for values in found])
    levels, number = torch.cat(found), torch.tensor(copies).repeat_interleave(each)
    if weights is not None:
        sizes, counts = weights.abs().unique(return_counts=True)
        levels, number = torch.outer(sizes, levels).flatten(), torch.outer(counts, number).flatten()
    seen = levels[levels > 0]
    zeros = number.new_tensor([parameters - 2 * int(number.sum())])
    return Spectrum.of(
        torch.cat([levels, -levels, levels.new_zeros(1)]),
        torch.cat([number, number, zeros]),
        resolution=max(resolutions) * (float(seen.min() / seen.max()) if len(seen) else 1.0),
    ).distinct(0.0)


def padded(levels: Tensor, size: int, resolution: float) -> Spectrum:
    """A spectrum of so many eigenvalues, of which the others are zero."""
    counts = torch.tensor([1] * len(levels) + [size - len(levels)])
    return Spectrum.of(torch.cat([levels, levels.new_zeros(1)]), counts, resolution=resolution)


def merged(parts: Sequence[Spectrum]) -> Spectrum:
    """The spectrum of diagonal blocks; what is zero in its own block is exactly zero."""
    levels = [s.levels.masked_fill(s.levels.abs() <= s.zero_threshold, 0.0) for s in parts]
    counts = torch.cat([s.multiplicities for s in parts])
    return Spectrum.of(torch.cat(levels), counts, resolution=0.0).distinct(0.0)


def flushed(correlation: Tensor, scale: float) -> Tensor:
    """M, exactly zero where all of it is round-off of sums of so many units, or in some axes."""
    if correlation.abs().max().item() <= _ZERO * scale:
        return torch.zeros_like(correlation)
    if correlation.dim() == 2:
        # What larger terms have left in the null space of M would count as curvature.
        sizes = torch.linalg.svdvals(correlation)
        resolved, known = (sizes / resolution_of(correlation) > top for top in (sizes[0], scale))
        if bool((resolved & ~known).any()):
            left, sizes, right = torch.linalg.svd(correlation, full_matrices=False)
            return (left * sizes * known) @ right
    return correlation


@dataclass(frozen=True, kw_only=True, eq=False)
class LossAtZero:
    """Derivatives of the loss in the output at zero weights, for m samples."""

    inputs: Tensor  # x behind the input map, (m, q)
    features: Tensor  # s, (m, q), with a column of ones for a bias
    gradients: Tensor  # g, (m, d)
    curvatures: Tensor  # H, (m, d, d)
    correlation: Tensor
    weights: Tensor | None = None  # of H in pairs of samples, (m, m); None for equal single ones
    a_priori_bound: float = math.inf
    mapped: float = 1.0  # size of H's factors over that of H, where an output map cancels

    @classmethod
    def of_moments(cls, moments: Moments, net: Architecture) -> "LossAtZero":
        """The square loss of linear features: unit vectors as samples, Sxx as their weights."""
        width = net.check_maps(len(moments.sxx), len(moments.syy))
        sxx, back = moments.sxx, moments.syx
        if net.input_map is not None:
            sxx, back = net.input_map @ sxx @ net.input_map.mT, back @ net.input_map.mT
        gram = torch.eye(width).to(sxx)
        if net.output_map is not None:
            gram, back = net.output_map.mT @ net.output_map, net.output_map.mT @ back
        forth = gram @ net.direct(sxx).mT
        top = torch.stack([forth, back]).abs().max().clamp_min(1e-300)  # squares may overflow
        scale = top * ((forth / top).norm() + (back / top).norm())
        correlation = flushed(forth - back, scale.item())
        bound = math.inf
        if net.input_map is None and net.output_map is None and moments.is_whitened:
            # The joint second moment of (x, y) is positive semidefinite, so
            # |Syx| <= sqrt(|Sxx| |Syy|).
            reach = math.sqrt(torch.linalg.matrix_norm(moments.syy, 2).item())
            bound = (1 + reach) / (1 - reach) if reach < 1.0 else math.inf
        axes = math.sqrt(len(sxx)) * torch.eye(len(sxx)).to(sxx)
        return cls(
            inputs=axes, features=axes, gradients=axes @ correlation.mT, correlation=correlation,
            curvatures=gram.expand(len(sxx), width, width), weights=sxx, a_priori_bound=bound,
        )  # fmt: skip

    @classmethod
    def of_samples(
        cls, data: Any, net: Architecture, loss: Loss, labels: Tensor | None = None
    ) -> "LossAtZero":
        """Any loss and any features."""
        samples = gather(data)
        x, y = samples.x.detach(), samples.y.detach()
        net.check_maps(x.shape[1], y.shape[1])
        x = x if net.input_map is None else x @ net.input_map.mT
        output = net.direct(x)
        output = output if net.output_map is None else output @ net.output_map.mT
        y = y if labels is None else labels.to(y.device)
        loss.check_target(output, y)
        with naming_loss(loss):
            loss(output, y)
        weighting_of(loss, output, y)  # refuses losses that compare samples
        g, curvatures = loss.derivatives(output, y)
        mapped, size = 1.0, g.norm()
        if net.output_map is not None:
            size = size * net.output_map.norm()
            factors = curvatures.mean(0).norm() * net.output_map.norm() ** 2
            g = g @ net.output_map
            curvatures = net.output_map.mT @ curvatures @ net.output_map
            mapped = max(mapped, (factors / curvatures.mean(0).norm().clamp_min(1e-300)).item())
        share = net.shared_share
        features = x if share is None else net.seen(share * x, 0).detach()
        scale = (size * features.norm()).item() / len(x)
        correlation = g.mT @ features / len(x)
        if loss.null_direction and net.output_map is None:
            # Softmax ignores a shift of all outputs, so M's columns sum to zero; make that exact.
            correlation = correlation - correlation.mean(0)
        return cls(
            inputs=x,
            features=features,
            gradients=g,
            curvatures=curvatures,
            correlation=flushed(correlation, scale),
            mapped=mapped,
        )

    @property
    def width(self) -> int:
        """Width d of the network."""
        return self.gradients.shape[1]
