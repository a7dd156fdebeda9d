"""The prediction for zero weights: what it holds and what is read off it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resid_theory.eigen.spectral_statistics import SpectralStatistics
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.theory.zero_weights.toeplitz import BlockToeplitz

__all__ = ["ZeroPoint", "check_dense", "resolution_of"]

_DENSE_LIMIT = 1 << 33  # bytes of a dense Hessian built on request


@dataclass(frozen=True, kw_only=True, eq=False)
class ZeroPoint:
    """The Hessian at zero weights, predicted.

    Attributes:
        blocks: Number of blocks R.
        shortcut_depth: Weight matrices n under one shortcut.
        hidden: Width h inside a block.
        correlation: M, (d, q), or (d, q + 1) with a bias: its last column is the mean of g. Exactly
            zero where it is zero to 1e-12 of the mean |g| |s|.
        slope: c_n, dimensionless.
        readings: What the eigenvalues are read off: a ``Spectrum`` with multiplicities for n >= 2,
            a ``BlockToeplitz`` for n = 1 (a ``Spectrum`` in the limit along given weights).
        a_priori_bound: For n = 2, whitened inputs and the square loss: an upper bound of the
            condition number from the second moment of the targets alone, (1 + √p) / (1 - √p) with p
            its largest eigenvalue (one-hot targets: the largest class prior); inf where it does not
            apply.
        null_direction: Whether the loss ignores a shift of all outputs (softmax), which makes M
            singular whatever the data are.
        blocks_of_m: For a limit along given weights: every hidden unit's own M, (R, h, d, q);
            otherwise None.

    Source:
        Li, Jiao, Han & Weissman, "Demystifying ResNet", arXiv:1611.01186, Theorem 2, equations (8),
        (10), (23)-(32). Differs from the paper: "condition number" is max/min in the theorem and
        max/10th percentile in the experiments, both are here; for n = 1 it grows in proportion to
        depth, not exponentially; with a bias or cross-entropy the Hessian is singular.
    """

    blocks: int
    shortcut_depth: int
    hidden: int
    correlation: Tensor
    slope: float
    readings: SpectralStatistics
    a_priori_bound: float
    null_direction: bool
    blocks_of_m: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return self.readings.size

    @property
    def spectrum(self) -> Spectrum:
        """All eigenvalues; for n = 1 by a dense solver.

        Raises:
            ValueError: If n = 1 and the dense matrix is above 8 GiB; ``readings`` needs no matrix.
        """
        if isinstance(self.readings, BlockToeplitz):
            check_dense(self.size)
            return self.readings.spectrum
        assert isinstance(self.readings, Spectrum)
        return self.readings

    @property
    def condition_number(self) -> float:
        """max|λ| / min|λ|; inf when singular."""
        return self.readings.condition_number

    @property
    def nonzero_condition_number(self) -> float:
        """max|λ| / smallest nonzero |λ|."""
        return self.readings.nonzero_condition_number

    def percentile_condition_number(self, percent: float = 10.0) -> float:
        """max|λ| over a percentile of |λ|.

        Args:
            percent: In [0, 100].

        Returns:
            The ratio.
        """
        return self.readings.percentile_condition_number(percent)

    @property
    def index(self) -> float:
        """Share of negative eigenvalues, in [0, 1]."""
        return self.readings.index

    @property
    def growth_rate(self) -> float:
        """Limit of the largest |λ| over the number of blocks: κ for n = 1, 0 for n >= 2."""
        if not isinstance(self.readings, BlockToeplitz):
            return 0.0
        return max(self.readings.growth_rate, self.readings.negative_growth_rate)

    @property
    def order(self) -> int:
        """How many orders of derivatives vanish (at least): 0 when not stationary, else n - 1."""
        if self.slope == 0.0 or not bool(self.correlation.any()):
            # The leading jet is gone; for n = 1 the gradient is zero but the Hessian need not be.
            return 1 if self.shortcut_depth == 1 else self.shortcut_depth
        return self.shortcut_depth - 1

    @property
    def verdict(self) -> str:
        """What kind of point zero is.

        ``not stationary``, ``strict saddle`` (a direction of negative curvature), ``degenerate
        saddle`` (the Hessian vanishes, a higher derivative changes sign) or ``degenerate`` (the
        leading derivative vanishes too). ``reason`` says why.
        """
        if self.slope == 0.0 or not bool(self.correlation.any()):
            return "degenerate"
        kinds = {1: "not stationary", 2: "strict saddle"}
        return kinds.get(self.shortcut_depth, "degenerate saddle")

    @property
    def reason(self) -> str:
        """The verdict explained in a sentence."""
        n = self.shortcut_depth
        if self.slope == 0.0:
            return "c_n = 0: an activation is flat at zero, so no block passes a first-order change"
        if not bool(self.correlation.any()):
            return (
                "M = 0: no gradient correlates with the features, the identity is optimal already"
            )
        if n == 1:
            return "the gradient is c M in every block"
        if n >= 3:
            return f"derivatives up to order {n - 1} vanish, the one of order {n} takes both signs"
        return "the smallest eigenvalue is -|c| s_1(M) < 0" + self._singularity()

    def _singularity(self) -> str:
        rank, (rows, columns) = self._rank, self.correlation.shape
        causes = []
        if self.null_direction:
            causes.append("the loss ignores a shift of all outputs")
        if rows != columns:
            causes.append(f"M is {rows} x {columns}")
        if rank < min(rows, columns) - int(self.null_direction):
            causes.append(f"M has rank {rank}")
        if not causes:
            return ""
        return (
            f"; the Hessian is singular because {' and '.join(causes)}: compare nonzero eigenvalues"
        )

    @property
    def _rank(self) -> int:
        resolution = resolution_of(self.correlation)  # the one that the spectrum's zeros rest on
        return int(torch.linalg.matrix_rank(self.correlation, rtol=resolution))

    @property
    def gradient(self) -> Tensor:
        """Gradient of one block's first matrix, (d, q): c M for n = 1, zero for n >= 2."""
        if self.shortcut_depth == 1:
            return self.slope * self.correlation
        return torch.zeros_like(self.correlation)

    @property
    def matrix_a(self) -> Tensor:
        """The block A of equation (8) for n = 2, of equation (10) for n = 1.

        Raises:
            ValueError: If n >= 3, or the limit is taken along weights: its blocks all differ.
        """
        if isinstance(self.readings, BlockToeplitz):
            return self.readings.lower
        if self.shortcut_depth != 2 or self.blocks_of_m is not None:
            raise ValueError("matrix_a: exists for n = 1 and n = 2, when all blocks are equal")
        return _matrix_a(self.slope * self.correlation, self.hidden)

    def hessian(self) -> Tensor:
        """The whole matrix, (P, P), float64, in the paper's order (Definition 5).

        ``net.definition5_order()`` brings a measured Hessian into the same order.

        Returns:
            A new tensor.

        Raises:
            ValueError: If it is above 8 GiB, or the limit is taken along weights.
        """
        check_dense(self.size)
        if isinstance(self.readings, BlockToeplitz):
            return self.readings.dense()
        if self.shortcut_depth > 2:
            return torch.zeros(self.size, self.size, dtype=torch.float64)
        a = self.matrix_a
        first = len(a)
        block = a.new_zeros(sum(a.shape), sum(a.shape))
        block[:first, first:] = a
        block[first:, :first] = a.mT
        return torch.kron(torch.eye(self.blocks, dtype=a.dtype, device=a.device), block)

    def leading_jet(self, weights: Any) -> Tensor:
        r"""Leading change of the loss near zero.

        :math:`c_n \sum_r \langle M, W^{r,n} \cdots W^{r,1} \rangle`.

        Its error is of order n + 1 in the weights for n >= 2, of order 2 for n = 1.

        Args:
            weights: All matrices, block by block, input to output: a net's ``layers()``, or a
                tensor (blocks, n, d, d).

        Returns:
            A float64 scalar, in units of the loss.

        Raises:
            ValueError: If the number of matrices is not blocks times n, or the net has a bias.
        """
        layers = list(weights.flatten(0, 1)) if isinstance(weights, Tensor) else list(weights)
        n = self.shortcut_depth
        if len(layers) != self.blocks * n:
            raise ValueError(f"weights: got {len(layers)} matrices, needs {self.blocks * n}")
        if self.correlation.shape[1] != layers[0].shape[1]:
            raise ValueError("weights: the jet of a net with a bias needs the bias as a column")
        total = self.correlation.new_zeros(())
        for start in range(0, len(layers), n):
            product = layers[start].detach().to(torch.float64)
            for weight in layers[start + 1 : start + n]:
                product = weight.detach().to(torch.float64) @ product
            total = total + (self.correlation * product).sum()
        return self.slope * total

    def summary(self) -> dict[str, Any]:
        """The prediction's numbers by name."""
        numbers: dict[str, Any] = {
            "blocks": self.blocks,
            "shortcut_depth": self.shortcut_depth,
            "verdict": self.verdict,
            "reason": self.reason,
            "order": self.order,
            "slope": self.slope,
            "a_priori_bound": self.a_priori_bound,
            **self.readings.summary(),
        }
        if isinstance(self.readings, BlockToeplitz):
            numbers["growth_rate"] = self.growth_rate
            numbers["bulk_percentile_10"] = self.readings.bulk_percentile(10)
        return numbers


def check_dense(size: int) -> None:
    """Refuse a dense matrix that is too large.

    Args:
        size: Rows.

    Raises:
        ValueError: If it is above 8 GiB.
    """
    if 8 * size * size > _DENSE_LIMIT:
        raise ValueError(
            f"hessian: {size} parameters make a dense matrix of {8 * size**2 / 2**30:.1f} GiB, "
            "the limit is 8 GiB; readings (condition numbers, percentiles, index) need no matrix"
        )


def resolution_of(matrices: Tensor) -> float:
    """What an SVD tells from zero.

    Args:
        matrices: (..., d, q).

    Returns:
        A share of the largest singular value.
    """
    return 4 * max(matrices.shape[-2:]) * torch.finfo(matrices.dtype).eps


def _matrix_a(scaled: Tensor, hidden: int) -> Tensor:
    """C (M^T kron I_h) K_{d,h}: rows vec W1, columns vec W2, both by columns."""
    width, inputs = scaled.shape
    eye = torch.eye(hidden, dtype=scaled.dtype, device=scaled.device)
    entries = torch.einsum("pt,sq->qpts", eye, scaled)
    return entries.reshape(inputs * hidden, hidden * width)
