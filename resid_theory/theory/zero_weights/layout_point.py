r"""The Hessian at zero weights of blocks that are wired by a layout.

Let :math:`p_k, q_k, a_0, A` be the coefficients of a :class:`Layout`, :math:`\alpha_k = p_k q_k`,
:math:`\beta_{ml} = q_m A_{ml} p_l` for l < m, G the mean of :math:`g x^T` with g the loss's
gradient at the output :math:`a_0 x`, and Q the mean of :math:`H \otimes x x^T`. The output is
:math:`a_0 x + \sum_k \alpha_k W_k x + \sum_{l<m} \beta_{ml} W_m W_l x + O(W^3)`, so that for blocks
of one layer

.. math:: \partial_k L = \alpha_k G, \qquad
    H = \alpha \alpha^T \otimes Q + \beta \otimes K + (\beta \otimes K)^T, \quad K(E) = G E^T.

In a block of two layers the first only reads and the second only writes: :math:`\alpha = 0`, and
:math:`\beta` pairs the two. A vanishing :math:`\alpha` leaves the eigenvalues
:math:`\pm \sigma_i(\beta) s_j(G)`, each as often as a block is wide inside.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from resid_theory.eigen.spectrum import Spectrum
from resid_theory.runtime.result import Columns, Result
from resid_theory.theory.zero_weights.layout import Layout
from resid_theory.theory.zero_weights.zero_point_statistics import (
    FromMoments,
    FromSamples,
    both_signs,
    check_dense,
    resolution_of,
)

__all__ = ["LayoutPoint", "layout_point"]

_DENSE = 3000  # parameters whose eigenvalues take seconds


@dataclass(frozen=True, kw_only=True, eq=False)
class LayoutPoint(Result):
    """The Hessian at zero weights of a layout, predicted.

    Attributes:
        wiring: Name of the layout.
        branch: Weight matrices n in a block.
        hidden: Width inside a block.
        products: p_k q_k, (K,).
        direct: a_0.
        correlation: G, (d, q), the mean of g x^T.
        slope: Product of the activations' slopes at zero along a block.
        order: Orders of derivatives in the weights that vanish, at least; inf where all do.
        spectrum: All eigenvalues.

    Source:
        Derived here; for one wiring it is Theorem 2 of Li et al., arXiv:1611.01186.
    """

    wiring: str
    branch: int
    hidden: int
    products: Tensor
    direct: float
    correlation: Tensor
    slope: float
    order: float
    spectrum: Spectrum

    @property
    def blocks(self) -> int:
        """Number of blocks K."""
        return len(self.products)

    @property
    def verdict(self) -> str:
        """Kind of the critical point, as of :class:`ZeroPoint`."""
        if self.order < 1:
            return "not stationary"
        flat = self.slope == 0 or not bool(self.correlation.any()) or self.order == math.inf
        return "degenerate" if flat else "strict saddle" if self.order == 1 else "degenerate saddle"

    @property
    def reason(self) -> str:
        """Explanation of the verdict in one sentence."""
        if not bool(self.correlation.any()):
            return "G = 0: no gradient correlates with the inputs"
        if self.slope == 0:
            return "an activation is flat at zero, so no block passes a first-order change"
        if self.order == math.inf:
            return "no way leads from the input through weights to the output"
        if self.order == 0:
            return "the gradient is p_k q_k G in block k"
        if self.order == 1:
            return "the eigenvalues are products of singular values with both signs"
        return f"the shortest way through weights from input to output has {self.order + 1} layers"

    @property
    def gradient(self) -> Tensor:
        """Gradient of each block's first matrix, (K, d, q)."""
        scale = self.slope * self.products if self.branch == 1 else torch.zeros(self.blocks)
        return scale.to(self.correlation).view(-1, 1, 1) * self.correlation

    @property
    def condition_number(self) -> float:
        """max|λ| / smallest nonzero |λ|."""
        return self.spectrum.nonzero_condition_number

    @property
    def index(self) -> float:
        """Share of negative eigenvalues, in [0, 1]: all below ``-spectrum.zero_threshold``."""
        found = self.spectrum
        return found.count_below(-found.zero_threshold) / found.size

    headline = "zero weights, {0.blocks:,} blocks of {0.branch}, {0.wiring}: {0.verdict}"

    def table(self) -> Columns:
        """One row."""
        names = ("wiring", "blocks", "branch", "hidden", "direct", "verdict", "condition_number",
                 "index")  # fmt: skip
        row = {name: [getattr(self, name)] for name in names}
        return row | {"largest": [self.spectrum.max_magnitude], "reason": [self.reason]}


def layout_point(
    local: FromMoments | FromSamples, layout: Layout, *, hidden: int, slope: float
) -> LayoutPoint:
    """Predict the Hessian of a layout from the statistics of data and loss at its output.

    Args:
        local: Statistics at the output a_0 x.
        layout: The wiring.
        hidden: Width inside a block of two layers or more.
        slope: Product of the activations' slopes at zero along a block.

    Returns:
        The prediction.

    Raises:
        ValueError: If blocks of one layer need a dense matrix above 8 GiB.
    """
    order, statistics = _order(layout), None
    if layout.branch == 1:
        statistics = _of_single_layers(local, layout, slope)
    else:
        products = slope * layout.products if layout.branch == 2 else torch.zeros(layout.blocks)
        statistics = _of_pairs(local.correlation, products, layout, hidden)
    return LayoutPoint(
        wiring=layout.name,
        branch=layout.branch,
        hidden=hidden,
        products=layout.products,
        direct=layout.direct,
        correlation=local.correlation,
        slope=slope,
        order=order,
        spectrum=statistics,
    )


def _order(layout: Layout) -> float:
    """Weight matrices on the shortest way from input to output, less one."""
    if bool(layout.sign.any()):
        return layout.branch - 1
    reads, out = layout.coefficients()
    edges = reads[:, 1:] != 0
    reached, steps = reads[:, 0] != 0, 1
    while bool(reached.any()) and steps <= layout.blocks:
        if bool((reached & (out[1:] != 0)).any()):
            return steps * layout.branch - 1
        reached = (edges & reached[:-1]).any(1)
        steps += 1
    return math.inf  # no way through: the loss does not depend on the weights


def _of_pairs(g: Tensor, products: Tensor, layout: Layout, hidden: int) -> Spectrum:
    """Both signs of all products of singular values, and zeros for the rest."""
    values = torch.linalg.svdvals(g).cpu()
    sizes, counts = products.abs().unique(return_counts=True)
    copies = hidden * counts.repeat_interleave(len(values))
    width, inputs = g.shape
    parameters = layout.blocks * hidden * (width + inputs + (layout.branch - 2) * hidden)
    levels, resolution = torch.outer(sizes, values).flatten(), resolution_of(g)
    # Zeros of G stay zeros, however far the products are apart.
    levels[(values <= resolution * values.max()).repeat(len(sizes))] = 0.0
    small = resolution * float(sizes.min() / sizes.max()) if sizes.max() else resolution
    return both_signs(levels, copies, parameters, small)


def _of_single_layers(local: FromMoments | FromSamples, layout: Layout, slope: float) -> Spectrum:
    reads, out = layout.coefficients()
    g, width = local.correlation.cpu(), local.width
    alpha = slope * layout.products
    beta = torch.zeros_like(reads)
    beta[:, :-1] = slope**2 * out[1:, None] * reads[:, 1:] * reads[:-1, 0]
    if not bool(alpha.any()):
        # A block that is read is not written: β pairs some blocks with others.
        sigma = torch.linalg.svdvals(beta)[: layout.blocks // 2]
        levels = torch.outer(sigma, torch.linalg.svdvals(g)).flatten()
        copies = torch.full((len(levels),), width)
        size = layout.blocks * width**2
        return both_signs(levels, copies, size, resolution_of(beta) + resolution_of(g))
    second = local.pair_moment(g.new_ones(width, width).to(local.correlation)).cpu()
    # (s, q', p, q): rows of the later matrix by (output s, input q'), of the other by (p, q).
    size = layout.blocks * width**2
    isotropic = second[0, 0, 0, 0] * torch.eye(width**2, dtype=g.dtype)
    flat = second.reshape(width**2, width**2)
    if (
        size > _DENSE
        and float((flat - isotropic).abs().max()) <= 1e-12 * float(flat.abs().max())
        and float((g - g.mT).abs().max()) <= 1e-12 * float(g.abs().max())
    ):
        return _of_entries(alpha, beta, float(second[0, 0, 0, 0]), torch.linalg.eigvalsh(g))
    check_dense(size)
    hessian = torch.kron(torch.outer(alpha, alpha), flat)
    # K(E) = G E^T: entry (i, j) of the later matrix meets (j, q) of the earlier one with G[i, q].
    pairing = torch.einsum("iq,jp->ijpq", g, torch.eye(width, dtype=g.dtype))
    crossed = torch.kron(beta, pairing.reshape(width**2, width**2))
    return Spectrum.of(torch.linalg.eigvalsh(hessian + crossed + crossed.mT))


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
