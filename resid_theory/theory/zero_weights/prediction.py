"""The predicted Hessian at zero weights and all that follows from it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resid_theory.eigen.spectral_statistics import SpectralStatistics
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.runtime.result import Columns, Result
from resid_theory.theory.zero_weights.counted_spectrum import CountedSpectrum, is_small
from resid_theory.theory.zero_weights.escape import escape_steps, escape_time
from resid_theory.theory.zero_weights.semiseparable import Semiseparable
from resid_theory.theory.zero_weights.toeplitz import BlockToeplitz
from resid_theory.theory.zero_weights.zero_point_statistics import check_dense, resolution_of

_DENSE_EXACT = 8000  # where exact numbers are asked for, counting takes longer than this
_ESCAPE = {"start": 0.01, "stop": 0.1}  # sizes of the weights in the summary
_SHOWN = 12  # singular values in print
_TOLD = (
    "slope", "parameters", "method", "growth_rate", "max_magnitude", "condition_number_10",
    "condition_number", "a_priori_bound", "condition_number_nonzero", "index",
    "learning_rate_scale", "escape_from", "escape_to", "escape_time", "escape_steps",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class ZeroPoint(Result):
    """The Hessian at zero weights, predicted, and all that follows from it.

    ``print`` shows numbers of ``summary()``, :func:`resid_theory.plots.zero_point` draws it.

    Attributes:
        wiring: Name of the layout.
        blocks: Number of blocks R.
        shortcut_depth: Weight matrices n in a block.
        path: Weight matrices on the shortest way from what a block sees to the output; inf without.
        hidden: Width h inside a block.
        correlation: M, (d, q), with a bias (d, q + 1): its last column is the mean of g. Exactly
            zero where it is zero to 1e-12 of the mean |g| |s|; the largest where there are several;
            where no block reaches from the input to the output, of the ends of the shortest ways.
        gains: Factor of M in each block, (R,): p_k q_k of the layout.
        slope: c_n, dimensionless.
        statistics: A ``Spectrum`` with multiplicities; for n = 1 with shortcuts a
            ``BlockToeplitz``, of great layouts of streams a ``Semiseparable``.
        a_priori_bound: For n = 2, whitened inputs and the square loss: an upper bound of the
            condition number from the second moment of the targets alone, (1 + √p) / (1 - √p) with p
            its largest eigenvalue (one-hot targets: the largest class prior); else inf.
        null_direction: Whether the loss ignores a shift of all outputs (softmax), which makes M
            singular for all data.
        blocks_of_m: For a limit along given weights: M of every hidden unit with the slopes of its
            own sides, (R, h, d, q), of n = 1 of every block, (R, d, q); where blocks have no common
            M, a list of those of all; otherwise None.
        shift: With last biases, the mean of g, zero where none of them moves the output; otherwise
            None.
        exact: For n = 1 at great depth: whether the summary counts eigenvalues, which is slow,
            or uses the limits of great depth.
        notes: What stands for a slope at zero that does not exist.

    Source:
        Li, Jiao, Han & Weissman, "Demystifying ResNet", arXiv:1611.01186, Theorem 2, equations (8),
        (10), (23)-(32). Differs from the paper: "condition number" is max/min in the theorem and
        max/10th percentile in the experiments, both are here; for n = 1 it grows in proportion to
        depth, not exponentially; with a bias or cross-entropy the Hessian is singular.
    """

    wiring: str
    blocks: int
    shortcut_depth: int
    path: float
    hidden: int
    correlation: Tensor
    gains: Tensor
    slope: float
    statistics: SpectralStatistics
    a_priori_bound: float
    null_direction: bool
    blocks_of_m: Tensor | list[Tensor] | None
    shift: Tensor | None
    exact: bool
    notes: tuple[str, ...] = ()

    @property
    def gain(self) -> float:
        """Largest factor of M in a block."""
        return float(self.gains.abs().max())

    @property
    def order(self) -> float:
        """Orders of derivatives that vanish, at least: n - 1 with shortcuts, inf where all do.

        One more where M or c_n is zero.
        """
        if self.shift is not None and bool(self.shift.any()):
            return 0
        # With M = 0 the leading jet is gone; for n = 1 the Hessian need not be.
        return self.path - 1 + self._is_flat

    @property
    def verdict(self) -> str:
        """Kind of the critical point; ``reason`` says why.

        ``not stationary``, ``strict saddle`` (a direction of negative curvature), ``degenerate
        saddle`` (the Hessian vanishes, a higher derivative changes sign) or ``degenerate`` (the
        leading derivative vanishes too, and no eigenvalue is negative).
        """
        if self.order == 0:
            return "not stationary"
        if self._is_flat or self.order == math.inf:
            return "strict saddle" if self.index > 0 else "degenerate"
        return "strict saddle" if self.order == 1 else "degenerate saddle"

    @property
    def _is_flat(self) -> bool:
        """True where the leading derivative vanishes."""
        if isinstance(self.blocks_of_m, Tensor):
            return not bool(self.blocks_of_m.any())
        return self.slope == 0.0 or not bool(self.correlation.any())

    @property
    def _is_stuck(self) -> bool:
        """True where there is something to escape from."""
        return self.shortcut_depth > 1 and self.order > 0

    @property
    def reason(self) -> str:
        """Explanation of the verdict in one sentence."""
        n = self.order + 1
        if self.order == 0 and self.shift is not None:
            return "the last biases have a gradient, the mean of g"
        if self._is_flat and self.index > 0:
            return "no block has a gradient, but the Hessian has negative eigenvalues"
        if self._is_flat and self.slope == 0.0:
            return "c_n = 0: an activation is flat at zero, so no block passes a first-order change"
        if self._is_flat and n < math.inf:
            why = "no gradient correlates with the features"
            return f"M = 0: {why}, the identity is optimal already"
        if n == math.inf:
            return "no way leads from the input through weights to the output"
        if n == 1:
            return "the gradient is c M in every block"
        if n >= 3:
            return f"derivatives up to order {n - 1} vanish, the one of order {n} takes both signs"
        if self.shortcut_depth == 1 or isinstance(self.blocks_of_m, list):
            return "half of the nonzero eigenvalues are negative"
        rows, columns = self.correlation.shape
        # The resolution of the spectrum's zeros.
        rank = int(torch.linalg.matrix_rank(self.correlation, rtol=resolution_of(self.correlation)))
        causes = []
        if self.null_direction:
            causes.append("the loss ignores a shift of all outputs")
        if rows != columns:
            causes.append(f"M is {rows} x {columns}")
        if rank < min(rows, columns) - int(self.null_direction):
            causes.append(f"M has rank {rank}")
        lead, why = "the smallest eigenvalue is -|c| s_1(M) < 0", " and ".join(causes)
        singular = f"; the Hessian is singular because {why}: compare nonzero eigenvalues"
        return lead + singular if causes else lead

    @property
    def singular_values(self) -> list[float]:
        """Singular values of M, descending."""
        return [float(value) for value in torch.linalg.svdvals(self.correlation)]

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return self.statistics.size

    @property
    def spectrum(self) -> Spectrum:
        """All eigenvalues; for n = 1 by a dense solver, whose matrix may take 8 GiB."""
        if isinstance(self.statistics, CountedSpectrum):
            check_dense(self.size)
            return self.statistics.spectrum
        assert isinstance(self.statistics, Spectrum)
        return self.statistics

    @property
    def method(self) -> str:
        """Method by which the summary finds the numbers of the spectrum."""
        if isinstance(self.statistics, Semiseparable):
            return "inertia counts"
        if not isinstance(self.statistics, BlockToeplitz):
            return "closed form" if self.shortcut_depth > 1 else "dense solver"
        if self.size <= _DENSE_EXACT if self.exact else is_small(self.size):
            return "dense solver"
        if self.exact:
            return "inertia counts"
        return "limits of great depth, relative error O(1 / blocks); exact numbers take counts"

    @property
    def is_listed(self) -> bool:
        """True if the summary rests on all eigenvalues; false for n = 1 and large P."""
        return self.method in ("closed form", "dense solver")

    @property
    def condition_number(self) -> float:
        """max|λ| / min|λ|; inf when singular."""
        return self.statistics.condition_number

    @property
    def nonzero_condition_number(self) -> float:
        """max|λ| / smallest nonzero |λ|."""
        return self.statistics.nonzero_condition_number

    def percentile_condition_number(self, percent: float = 10.0) -> float:
        """max|λ| over a percentile of |λ|, given in [0, 100]."""
        return self.statistics.percentile_condition_number(percent)

    @property
    def index(self) -> float:
        """Share of negative eigenvalues, in [0, 1]: below ``-statistics.zero_threshold``."""
        found = self.statistics
        return found.count_below(-found.zero_threshold) / found.size

    @property
    def growth_rate(self) -> float:
        """Limit of the largest |λ| over the number of blocks: κ for n = 1, 0 for n >= 2."""
        if not isinstance(self.statistics, BlockToeplitz):
            return 0.0
        return max(self.statistics.growth_rate, self.statistics.negative_growth_rate)

    @property
    def learning_rate_scale(self) -> float:
        r"""Learning rate set by the curvature at zero, 1 / max|λ|, in units of weight² / loss.

        :math:`1 / (|c_2| s_1)` at any depth for n = 2, :math:`1 / (\kappa R)` in the limit of great
        depth for n = 1, inf for n >= 3. The best learning rate shares its dependence on depth
        (arXiv:1611.01186, Figure 7, right), but is larger: the largest eigenvalue soon falls.
        """
        is_limit = isinstance(self.statistics, BlockToeplitz) and not (self.is_listed or self.exact)
        top = self.growth_rate * self.blocks if is_limit else self.statistics.max_magnitude
        return 1.0 / top if top else math.inf

    @property
    def escape_time(self) -> float:
        """Learning rate times steps from weights of 0.01 to 0.1; 0 where zero is not stationary."""
        return escape_time(self, **_ESCAPE) if self._is_stuck else 0.0

    @property
    def escape_steps(self) -> float:
        """Steps from weights of 0.01 to 0.1 at ``learning_rate_scale``; inf where that is inf."""
        rate = self.learning_rate_scale
        if not self._is_stuck:
            return 0.0
        return math.inf if math.isinf(rate) else escape_steps(self, **_ESCAPE, learning_rate=rate)

    @property
    def gradient(self) -> Tensor | list[Tensor]:
        """Gradient of each block's first matrix, (R, d, q), or a list: c M for n = 1, else zero."""
        scale = self.slope if self.shortcut_depth == 1 else 0.0
        if isinstance(self.blocks_of_m, Tensor) and self.shortcut_depth == 1:
            return self.blocks_of_m
        if isinstance(self.blocks_of_m, list):
            return [scale * matrix for matrix in self.blocks_of_m]
        return (scale * self.gains).to(self.correlation).view(-1, 1, 1) * self.correlation

    @property
    def matrix_a(self) -> Tensor:
        """The block A of equation (8) for n = 2, of equation (10) for n = 1, if all are equal."""
        if isinstance(self.statistics, BlockToeplitz):
            return self.statistics.lower
        if self.shortcut_depth != 2 or self.blocks_of_m is not None or self.shift is not None:
            raise ValueError("matrix_a: exists for n = 1 and n = 2, when all blocks are equal")
        # C (M^T kron I_h) K_{d,h}: rows vec W1, columns vec W2, both by columns.
        scaled, h = self.slope * self.correlation, self.hidden
        entries = torch.einsum("pt,sq->qpts", torch.eye(h).to(scaled), scaled)
        return entries.reshape(scaled.shape[1] * h, h * scaled.shape[0])

    def hessian(self) -> Tensor:
        """The whole matrix, (P, P), in the paper's order; ``net.definition5_order()`` gives it."""
        check_dense(self.size)
        if isinstance(self.statistics, BlockToeplitz):
            return self.statistics.dense()
        if self.shortcut_depth > 2:
            return self.correlation.new_zeros(self.size, self.size)
        a = self.matrix_a
        first = len(a)
        block = a.new_zeros(sum(a.shape), sum(a.shape))
        block[:first, first:] = a
        block[first:, :first] = a.mT
        return torch.kron(torch.diag(self.gains.to(a)), block)

    def leading_jet(self, weights: Any) -> Tensor:
        r"""Leading change of the loss near zero, where each block has a way of its own.

        :math:`c_n \sum_r \langle p_r q_r M, W^{r,n} \cdots W^{r,1} \rangle`, up to order n + 1 in
        the weights for n >= 2, up to order 2 for n = 1; of a limit along a net's weights, of
        weights with the same sides.

        Args:
            weights: All matrices, block by block, input to output: a net's ``layers()``, or a
                tensor (blocks, n, d, d).

        Returns:
            A float64 scalar.

        Raises:
            ValueError: If the number of matrices is not blocks times n, or the net has a bias.
        """
        layers = list(weights.flatten(0, 1)) if isinstance(weights, Tensor) else list(weights)
        n = self.shortcut_depth
        if len(layers) != self.blocks * n:
            raise ValueError(f"weights: got {len(layers)} matrices, needs {self.blocks * n}")
        m = self.correlation
        if m.shape[1] != layers[0].shape[1] and not isinstance(self.blocks_of_m, list):
            raise ValueError("weights: the jet of a net with a bias needs the bias as a column")
        total = m.new_zeros(())
        for block, gain in enumerate(self.gains.tolist()):
            product, *later = (w.detach().double() for w in layers[block * n : (block + 1) * n])
            own = gain * m if self.blocks_of_m is None else self.blocks_of_m[block]
            if own.dim() == 3:  # unit by unit
                product = later.pop().mT[:, :, None] * product[:, None]
            for weight in later:
                product = weight @ product
            total = total + (own * product).sum()
        return total if isinstance(self.blocks_of_m, Tensor) else self.slope * total

    def summary(self) -> dict[str, Any]:
        """All numbers by name.

        Returns:
            Strings, numbers (also inf and nan), None for no bound, and a list of singular values.
        """
        names = (
            "method", "wiring", "blocks", "shortcut_depth", "hidden", "verdict", "reason", "order",
            "slope", "a_priori_bound", "learning_rate_scale", "singular_values",
        )  # fmt: skip
        numbers: dict[str, Any] = {name: getattr(self, name) for name in names}
        if math.isinf(self.a_priori_bound):
            numbers["a_priori_bound"] = None
        if self._is_stuck:
            numbers |= {
                "escape_from": _ESCAPE["start"],
                "escape_to": _ESCAPE["stop"],
                "escape_time": self.escape_time,
                "escape_steps": self.escape_steps,
            }
        found = self.statistics
        if isinstance(found, Semiseparable):  # percentiles take one search after another
            ends = {"largest": found.largest, "smallest": found.smallest, "index": self.index}
            return numbers | {"parameters": self.size, **ends}
        if isinstance(found, BlockToeplitz):
            numbers["growth_rate"] = self.growth_rate
            if not (self.is_listed or self.exact):
                return numbers | {
                    "parameters": self.size,
                    "max_magnitude": self.growth_rate * self.blocks,
                    "bulk_percentile_10": found.bulk_percentile(10),
                    "condition_number_10": found.predicted_condition_number(10),
                }
            found = self.spectrum if self.is_listed else found
        return numbers | {"max_magnitude": found.max_magnitude, **found.summary()}

    headline = (
        "Zero weights, {0.wiring}, {0.blocks:,} blocks of {0.shortcut_depth} layers: {0.verdict}"
    )

    def table(self) -> Columns:
        """One row of the summary, but for the list of singular values."""
        content = self.summary()
        return {name: [value] for name, value in content.items() if name != "singular_values"}

    def shown(self) -> Columns:
        """The numbers of the summary that tell most, with the reason for the verdict."""
        found = self.summary()
        words = [f"{value:.4g}" for value in found["singular_values"]]
        if len(words) > _SHOWN:
            words[_SHOWN // 2 : -_SHOWN // 2] = ["..."]
        named = {name: [found[name]] for name in _TOLD if found.get(name) is not None}
        return {"reason": [self.reason], "singular_values": [" ".join(words)], **named}
