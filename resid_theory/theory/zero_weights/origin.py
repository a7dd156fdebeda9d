r"""The Hessian of n-shortcut networks at zero weights, in closed form ("Theorem 2").

At zero weights every block passes its input through, so the output is x itself. Write
:math:`g_\mu` and :math:`H_\mu` for the gradient and Hessian of a sample's loss there,
:math:`s_\mu = \sigma_{pre}(x_\mu)`, and

.. math:: M = \tfrac1m \sum_\mu g_\mu s_\mu^T \quad (\text{square loss, no } \sigma_{pre}:\; M =
S_{xx} - S_{yx}),
    \qquad c_n = \sigma_{mid}'(0)^{n-1} \sigma_{post}'(0).

* n >= 3: all derivatives up to order n - 1 vanish; the loss moves by
  :math:`c_n \sum_r \langle M, W^{r,n} \cdots W^{r,1} \rangle`.
* n = 2: every block contributes the eigenvalues :math:`\pm |c_2| s_i(M)`, each as often as the
  block is wide inside. Neither depth nor width nor activation changes their ratio.
* n = 1: block Toeplitz, not stationary; the largest eigenvalue grows in proportion to depth.

In the paper's order of parameters (Definition 5) the blocks are those of equations (8) and (10).
"""

import math
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import check_int
from resid_theory.activations import Activation
from resid_theory.data.moments import Moments
from resid_theory.eigen.spectral_statistics import SpectralStatistics
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.losses import Loss
from resid_theory.theory.zero_weights.prediction import ZeroPoint, check_dense, resolution_of
from resid_theory.theory.zero_weights.relu_limits import (
    check_direction,
    directed_hessian,
    is_direction,
    own_correlations,
)
from resid_theory.theory.zero_weights.toeplitz import BlockToeplitz
from resid_theory.theory.zero_weights.zero_point_statistics import (
    Architecture,
    FromMoments,
    FromSamples,
    Maps,
    add_chain,
    by_columns,
)

__all__ = ["zero_point"]


def zero_point(
    data: Any,
    *,
    blocks: int,
    shortcut_depth: int,
    loss: str | Loss = "square",
    pre: str | Activation | None = None,
    mid: str | Activation | None = None,
    post: str | Activation | None = None,
    hidden: int | None = None,
    bias: bool = False,
    input_map: Any = None,
    output_map: Any = None,
    kink: Any = "line",
) -> ZeroPoint:
    r"""Hessian of an n-shortcut net at zero weights, predicted without differentiating a net.

    Cost and memory do not depend on ``blocks`` for n >= 2; for n = 1 they do only when an exact
    eigenvalue is asked for.

    Args:
        data: x (m, d) and y: a pair, a ``Regression``, a loader; ``Moments`` suffice for the square
            loss without ``pre`` and ``bias``.
        blocks: Number of blocks R, at least 1.
        shortcut_depth: Weight matrices n under one shortcut, at least 1.
        loss: ``"square"``, ``"cross_entropy"``, or a callable (output, target) -> mean over
            samples.
        pre: Activation before a block's first matrix; only its values (n = 1: also its slopes) at
            the data enter.
        mid: Activation between matrices; must vanish at zero.
        post: Activation after a block's last matrix; must vanish at zero.
        hidden: Width h inside a block, ``d`` by default.
        bias: Whether the first matrix of a block has a bias (equation (3)).
        input_map: Fixed map U in front of the trunk, (trunk width, d), None for the identity.
        output_map: Fixed map V behind it, (outputs, trunk width), None for the identity.
        kink: What stands for the derivatives of an activation with a kink at zero (ReLU):
            ``"line"``, the least-squares line on [-e, e], slope (left + right) / 2 and no
            curvature; ``"mean"``, the mean over symmetric random directions of the a.e. Hessian's
            limit (differs from ``line`` only for n = 1 with ``post``); or a net, whose weights give
            the direction along which zero is approached.

    Returns:
        The prediction.

    Raises:
        ValueError: If data, counts, names or widths do not fit, an activation does not vanish at
            zero, or its derivative is needed and does not exist.

    Source:
        Li et al., arXiv:1611.01186, Theorem 2 and Assumption 3. Bias, hidden width, cross-entropy,
        fixed maps and the limits at kinks are derived here.

    Example:
        >>> data = rt.Moments(sxx=2 * torch.eye(3), syx=torch.eye(3), syy=torch.eye(3), count=9)
        >>> zero_point(data, blocks=100_000, shortcut_depth=2).condition_number
        1.0
    """
    net = Architecture.of(blocks, shortcut_depth, bias, pre, mid, post)
    directed = is_direction(kink)
    maps = Maps.of(input_map, output_map)
    bend = 0.0 if directed else net.bend(kink)
    if loss == "square" and net.pre is None and not (net.bias or bend or directed):
        local: FromMoments | FromSamples = FromMoments.of(Moments.of(data), maps)
    elif isinstance(data, Moments):
        raise ValueError(
            "data: got Moments, which suffice for the square loss without pre, bias, a direction "
            "or (for n = 1) a curved post; needs the samples (x, y) here"
        )
    else:
        local = FromSamples.of(data, net, loss, maps)
    h = local.width if hidden is None else check_int("hidden", hidden)
    if net.n == 1 and h != local.width:
        raise ValueError(f"hidden: got {hidden} with shortcut_depth=1, needs shortcut_depth >= 2")
    own = None
    if directed:
        assert isinstance(local, FromSamples)
        check_direction(kink, net, h, local.width)
        own = own_correlations(local, net, kink) if net.n == 2 else None
    return ZeroPoint(
        blocks=net.blocks,
        shortcut_depth=net.n,
        hidden=h,
        correlation=local.correlation,
        slope=net.slope,
        readings=_readings(local, net, h, kink, own),
        a_priori_bound=local.a_priori_bound if net.n == 2 else math.inf,
        null_direction=loss == "cross_entropy" and maps.output is None,
        blocks_of_m=own,
    )


def _readings(
    local: FromMoments | FromSamples, net: Architecture, hidden: int, kink: Any, own: Tensor | None
) -> SpectralStatistics:
    width, inputs = local.correlation.shape
    if net.n >= 3:
        size = hidden * inputs + (net.n - 2) * hidden**2 + width * hidden
        return Spectrum.of([0.0], [net.blocks * size])
    if net.n == 2:
        blocks_of_m = local.correlation if own is None else own
        copies = net.blocks * hidden if own is None else 1
        factor = abs(net.slope) if own is None else 1.0
        return _paired(factor * blocks_of_m, copies, net.blocks * hidden * (width + inputs))
    if is_direction(kink):
        assert isinstance(local, FromSamples)
        check_dense(net.blocks * width * inputs)
        return Spectrum.of(torch.linalg.eigvalsh(directed_hessian(local, net, kink)))
    return BlockToeplitz(blocks=net.blocks, **_toeplitz_blocks(local, net, kink))


def _paired(matrices: Tensor, copies: int, size: int) -> Spectrum:
    """Both signs of all singular values, each ``copies`` times, and zeros up to ``size``."""
    values = torch.linalg.svdvals(matrices).reshape(-1)
    # What an SVD cannot tell from zero is zero: a symmetry of the loss must not look like
    # curvature.
    resolution = resolution_of(matrices)
    values = torch.where(values <= resolution * values.max(), 0.0, values)
    counts = torch.full(values.shape, copies, dtype=torch.int64)
    zeros = size - 2 * int(counts.sum())
    levels = torch.cat([values, -values, values.new_zeros(1)])
    counts = torch.cat([counts, counts, torch.tensor([zeros])])
    return Spectrum.of(levels, counts, resolution=resolution).distinct(0.0)


def _toeplitz_blocks(
    local: FromMoments | FromSamples, net: Architecture, kink: str
) -> dict[str, Tensor]:
    a, width = net.post.slope, local.width
    like = local.correlation
    squared = torch.full((width, width), a * a, dtype=like.dtype, device=like.device)
    within = squared.clone()
    if kink == "mean":  # the mask of a unit meets itself: its square's mean, not its mean's square
        within.fill_diagonal_(0.5 * (net.post.left**2 + net.post.right**2))
    diagonal, lower = local.pair_moment(within), local.pair_moment(squared)
    bend = net.bend(kink)
    if bend:
        curved = bend * local.gradient_moment()
        diagonal.diagonal(dim1=0, dim2=2).add_(curved.permute(1, 2, 0))
    chain = a * a * local.chain_moment()
    add_chain(lower, chain)
    return {"diagonal": by_columns(diagonal), "lower": by_columns(lower)}
