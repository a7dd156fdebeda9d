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

from typing import Any

import torch
from torch import Tensor

from resid_theory.eigen.spectral_statistics import SpectralStatistics
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.theory.zero_weights.architecture import Architecture
from resid_theory.theory.zero_weights.relu_limits import is_direction, own_correlations
from resid_theory.theory.zero_weights.single_layers import one_layer_spectrum
from resid_theory.theory.zero_weights.streams import exponential
from resid_theory.theory.zero_weights.zero_point_statistics import (
    LossAtZero,
    flushed,
    merged,
    padded,
    pair_spectrum,
    resolution_of,
)


def hessian_at_zero(net: Architecture, local: LossAtZero, hidden: int, kink: Any) -> dict[str, Any]:
    """Fields of a ``ZeroPoint`` that tell of the Hessian and of the B of its blocks."""
    layout, n = net.layout, net.n
    gains = torch.ones(net.blocks, dtype=torch.float64)
    own: Any = None
    shared = net.shared_share is not None
    if shared and layout.writes is not None:
        gains = exponential(layout.writes) if net.is_featured else layout.products
        leading = local.correlation
        if net.norm.at == "write":
            leading = net.norm.slope_at_zero(leading.mT, 0).mT @ leading
        if n <= 2 and is_direction(kink):
            own = own_correlations(local, net, kink)
        every = torch.full_like(gains, bool(local.features.any())).bool()
        path, _ = layout.path(every if net.is_featured else None)
    else:
        arrived, sees, passed = net.sights(local.inputs, local.gradients)
        path, ends = layout.path(
            torch.tensor([bool(z.any()) for z in sees]),
            lambda block: bool(net.slopes(arrived[block], block).any()),
        )
        own = [_correlation(g, z) for z, g in zip(sees, passed, strict=True)]
        # What the last block of a way passes back meets what the first one sees.
        acting = [_correlation(passed[last], sees[first]) for first, last in ends] or own
        gains = gains * (not ends)
        leading = max(acting, key=lambda b: float(torch.linalg.matrix_norm(b, 2)))
    shapes = [leading.shape] if shared else [b.shape for b in own]
    sizes = [d * q if n == 1 else hidden * (d + q + (n - 2) * hidden) for d, q in shapes]
    parameters = sum(sizes) * (net.blocks if shared else 1)
    found: SpectralStatistics
    if path > 2:
        found = Spectrum.of([0.0], [parameters])
    elif n == 1:
        found = one_layer_spectrum(net, local, gains, kink)
    elif own is None:
        found = pair_spectrum([leading], [hidden], parameters, net.slope * gains)
    elif shared:  # of single units, which have their own slopes
        units = list(own.flatten(0, 1))
        found = pair_spectrum(units, [1] * len(units), parameters)
    else:
        found = pair_spectrum([net.slope * b for b in own], [hidden] * len(own), parameters)
    if net.last_bias:
        assert isinstance(found, Spectrum)
        found = merged([found, _of_last_biases(net, local)])
    return dict(path=path, correlation=leading, gains=gains, blocks_of_m=own, statistics=found)


def _correlation(gradients: Tensor, seen: Tensor) -> Tensor:
    scale = (gradients.norm() * seen.norm()).item() / len(seen)
    return flushed(gradients.mT @ seen / len(seen), scale)


def _of_last_biases(net: Architecture, local: LossAtZero) -> Spectrum:
    """Eigenvalues of the blocks of the last biases, which shift the output."""
    layout, curvature = net.layout, local.curvatures.mean(0)
    eye = torch.eye(len(curvature)).to(curvature)
    if layout.writes is not None:
        total, size = exponential(layout.writes).square().sum() * eye, net.blocks * len(eye)
    else:
        wide = torch.cat(layout.passed_back(eye), dim=1)
        total, size = wide @ wide.mT, wide.shape[1]
    # Those of N^T H N for N = (N_1 ... N_K) are those of R^T H R with R R^T = N N^T, and zeros.
    values, axes = torch.linalg.eigh(net.post.slope**2 * total)
    root = axes * values.clamp_min(0.0).sqrt()
    levels = torch.linalg.eigvalsh(root.mT @ curvature @ root).cpu()
    levels = levels[levels.abs().argsort(descending=True)][:size]
    return padded(levels, size, local.mapped * resolution_of(curvature))
