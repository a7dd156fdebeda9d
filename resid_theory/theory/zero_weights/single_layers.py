"""Blocks of the Hessian of blocks of one layer, and the spectra of the matrices they make."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from resid_theory.eigen.spectral_statistics import SpectralStatistics
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.theory.zero_weights.architecture import Architecture
from resid_theory.theory.zero_weights.counted_spectrum import is_small, solved
from resid_theory.theory.zero_weights.relu_limits import is_direction, own_derivatives
from resid_theory.theory.zero_weights.semiseparable import Semiseparable, dense_spectrum
from resid_theory.theory.zero_weights.streams import exponential
from resid_theory.theory.zero_weights.toeplitz import BlockToeplitz
from resid_theory.theory.zero_weights.zero_point_statistics import LossAtZero, check_dense


def one_layer_spectrum(
    net: Architecture, local: LossAtZero, gains: Tensor, kink: Any
) -> SpectralStatistics:
    """Eigenvalues of the Hessian; by the derivatives of one layer where all are alike."""
    layout, directed = net.layout, is_direction(kink)
    eye = torch.eye(local.width).to(local.inputs)
    alike = not directed and (layout.is_shortcut or not net.bend(kink))
    share = net.shared_share if alike else None
    if share is None:
        sights = [*net.sights(local.inputs, local.gradients), layout.passed_back(eye)]
    else:
        sights = [[share * local.inputs], [local.features], [local.gradients], [eye]]
    if directed:
        slopes, seconds = own_derivatives(local, net, kink)
    else:
        slopes = [g.new_full((1, g.shape[1]), net.post.slope) for g in sights[2]]
        seconds = [torch.full_like(s, net.bend(kink)) for s in slopes]
    layers = []
    for k, (reads, sees, g, acts) in enumerate(zip(*sights, strict=True)):
        curved = seconds[k] * g
        if kink == "mean":  # a unit's mask meets itself: its square's mean, not its mean's square
            spread = 0.5 * (net.post.left**2 + net.post.right**2) - net.post.slope**2
            curved = curved + spread * local.curvatures.diagonal(dim1=1, dim2=2)
        inner, acts = net.slopes(reads, k), acts * slopes[k][:, None]
        layers.append(_SingleLayer(sees, inner, acts, slopes[k] * g, slopes[k], curved))
    if share is None:
        return solved(_dense(net, local, layers))
    one = layers[0]
    own = _pair(local, one, one)
    if net.is_featured:
        crossed = _chain(one, one, torch.eye(one.inner.shape[-1]).to(own))
    else:  # M is exactly zero where it is round-off
        crossed = net.slope**2 * torch.einsum("ad,bc->abcd", local.correlation, eye)
    if layout.is_shortcut:
        diagonal, lower = _by_columns(own + _alone(local, one, own)), _by_columns(own + crossed)
        return BlockToeplitz(blocks=net.blocks, diagonal=diagonal, lower=lower)
    return _of_numbers(net, gains, _by_columns(own).cpu(), _by_columns(crossed).cpu())


class _SingleLayer(NamedTuple):
    """Derivatives of what a layer reads and writes."""

    sees: Tensor  # what the matrix multiplies, (m, q)
    inner: Tensor  # derivatives of it in what the layer reads, (m, q, width)
    acts: Tensor  # derivatives of the output in what the matrix writes, (m or 1, d, out)
    passed: Tensor  # gradients there, (m, out)
    outer: Tensor  # slopes between matrix and output, (m or 1, out)
    curved: Tensor  # gradients times second derivatives between them, (m, out)


# The later layer writes a and multiplies b, the earlier one writes c and multiplies d.


def _pair(local: LossAtZero, later: _SingleLayer, earlier: _SingleLayer) -> Tensor:
    """Curvature of the output in two layers."""
    outputs = later.acts.mT @ local.curvatures @ earlier.acts
    return _mean(_products(local, later, earlier), outputs).permute(2, 0, 3, 1)


def _products(local: LossAtZero, later: _SingleLayer, earlier: _SingleLayer) -> Tensor:
    seen = later.sees if local.weights is None else local.weights @ later.sees
    return seen.unsqueeze(2) * earlier.sees.unsqueeze(1)


def _chain(later: _SingleLayer, earlier: _SingleLayer, link: Tensor) -> Tensor:
    """The way of a layer through a later one."""
    through = later.inner @ link * earlier.outer.unsqueeze(1)
    first = later.passed.unsqueeze(2) * earlier.sees.unsqueeze(1)
    return _mean(first, through).permute(0, 2, 3, 1)


def _alone(local: LossAtZero, layer: _SingleLayer, like: Tensor) -> Tensor:
    """Terms that a matrix shares with itself alone."""
    extra = torch.zeros_like(like)
    extra.diagonal(dim1=0, dim2=2).add_(_mean(_products(local, layer, layer), layer.curved))
    return extra


def _dense(net: Architecture, local: LossAtZero, layers: list[_SingleLayer]) -> Tensor:
    sizes = [layer.sees.shape[1] * layer.passed.shape[1] for layer in layers]
    check_dense(sum(sizes))
    if net.layout.maps is not None:
        links = [row[1:] for row in net.layout.maps[0]]
    else:
        eye = torch.eye(local.width).to(local.inputs)
        rows, _ = net.layout.coefficients()
        links = [[c * eye if c else None for c in row[1:]] for row in rows]
    matrix = local.inputs.new_zeros(sum(sizes), sum(sizes))
    places = [place.split(sizes, 1) for place in matrix.split(sizes, 0)]
    for k, later in enumerate(layers):
        for j, earlier in enumerate(layers[:k]):
            block, link = _pair(local, later, earlier), links[k][j]
            if link is not None:
                block = block + _chain(later, earlier, link.to(block))
            places[k][j].copy_(block.reshape(sizes[k], sizes[j]))
            places[j][k].copy_(places[k][j].mT)
        block = _pair(local, later, later)
        places[k][k].copy_((block + _alone(local, later, block)).reshape(sizes[k], sizes[k]))
    return matrix


def _of_numbers(
    net: Architecture, alpha: Tensor, own: Tensor, pairing: Tensor
) -> SpectralStatistics:
    """H = α αᵀ ⊗ Q + β ⊗ K + (β ⊗ K)ᵀ, β_ml = q_m A_ml p_l."""
    layout = net.layout
    assert layout.reads is not None and layout.writes is not None
    p, q = exponential(layout.reads), exponential(layout.writes)
    p = torch.ones_like(p) if net.is_featured else p
    size = len(alpha) * len(own)
    if not bool(own.any() or pairing.any()):
        return Spectrum.of([0.0], [size])
    if layout.streams is not None and not is_small(size) and bool(alpha.any()):
        if not bool(p.isfinite().all() and q.isfinite().all()):
            raise ValueError(
                "layout: what blocks read of the input or what the output reads of blocks is out "
                "of the range of floats; blocks of one layer need both in it"
            )
        return Semiseparable(
            read=q[:, None] * layout.streams.read, mix=layout.streams.mix,
            write=p[:, None] * layout.streams.write, alpha=alpha, own=own, pairing=pairing,
        )  # fmt: skip
    beta = torch.zeros(len(alpha), len(alpha), dtype=torch.float64)
    beta[:, :-1] = q[:, None] * layout.coefficients()[0][:, 1:] * p[:-1]
    return dense_spectrum(alpha, beta, own, pairing)


def _mean(left: Tensor, right: Tensor) -> Tensor:
    """Mean over samples of all products of an entry of one and an entry of the other."""
    total = left.flatten(1).mT @ right.flatten(1) / len(left)
    return total.view(*left.shape[1:], *right.shape[1:])


def _by_columns(entries: Tensor) -> Tensor:
    """(out, in, out, in) as a matrix in the paper's order: row (in, out), column (in, out)."""
    a, b, c, d = entries.shape
    # torch.kron refuses the strides that one input leaves.
    return entries.permute(1, 0, 3, 2).reshape(b * a, d * c).contiguous()
