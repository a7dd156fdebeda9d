r"""The Hessian at zero weights of transformers, and of any net whose branches join a stream.

To second order in its weights, a branch of two layers adds to the loss the sum over tokens of
:math:`g^T F(z)`: z is what the branch reads, behind its norm, and g the gradient at what it writes,
both of the net whose branches are zero. Of attention, whose scores are zero, :math:`F = W_O W_V
\bar z` with :math:`\bar z` the mean of z over the attended tokens; of an MLP :math:`F = \phi'(0)
W_2 W_1 z`. With :math:`B = \sum g \bar z^T` the eigenvalues are :math:`\pm s_i(B)`, each once for
every hidden unit. Queries and keys enter the scores alone, and are flat; so is a gated MLP whose
gate is zero at zero, since it is of third order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import as_tensor, check_finite, check_int
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.runtime.result import Columns, Result
from resid_theory.runtime.storable import Storable
from resid_theory.theory.zero_weights.zero_point_statistics import (
    merged,
    padded,
    pair_spectrum,
    resolution_of,
)

_EPS = 16 * torch.finfo(torch.float64).eps  # of what went backward through norms


@dataclass(frozen=True, kw_only=True, eq=False)
class Branch(Storable):
    r"""Couplings of the hidden units of one branch at zero weights.

    Attributes:
        name: Of the branch.
        kind: Kinds of its weights that are paired, ``"value, output"`` or ``"up, down"``.
        correlations: :math:`B = \sum g \bar z^T` of each group of hidden units, (rows, columns).
            The rows of heads that share keys and values stand below one another.
        units: Number of hidden units in each group.
        flat: Numbers of weights whose rows of the Hessian are zero, by kind.
        eps: Relative accuracy of the numbers; None for that of gradients in float64.
    """

    name: str
    kind: str
    correlations: tuple[Tensor, ...]
    units: tuple[int, ...]
    flat: dict[str, int]
    eps: float | None = None

    @classmethod
    def attention(
        cls, gradient: Any, inputs: Any, *, heads: int, kv_heads: int | None = None,
        head_width: int | None = None, attended: Any = None, causal: bool = False,
        bias: bool = False, name: str = "attention",
    ) -> "Branch":  # fmt: skip
        r"""Attention with queries, keys, values and outputs at zero.

        Args:
            gradient: g, of the loss at the branch's output, (..., tokens, d).
            inputs: z, (..., tokens, q), of equal leading axes.
            heads: Heads H of the queries.
            kv_heads: Heads of keys and values, which divide H; H by default.
            head_width: Width of a head, d / H by default.
            attended: Weights of attention where scores have biases, (tokens, tokens) or
                (..., heads, tokens, tokens), rows that add up to one.
            causal: Whether a token attends only to those up to it; without ``attended``.
            bias: Whether queries, keys and values have biases, which are zero, too.
            name: Of the branch.

        Returns:
            The branch.

        Raises:
            ValueError: If shapes or counts do not fit.
        """
        g, z, eps = _pair(gradient, inputs)
        tokens, d = g.shape[-2:]
        count = check_int("heads", heads)
        groups = count if kv_heads is None else check_int("kv_heads", kv_heads)
        if count % groups:
            raise ValueError(f"kv_heads: got {groups}, needs a divisor of heads = {count}")
        if head_width is None and d % count:
            raise ValueError(f"head_width: is missing, and {count} heads do not divide {d}")
        width = d // count if head_width is None else check_int("head_width", head_width)
        if attended is None:
            weights = torch.ones(tokens, tokens, dtype=torch.float64)
            weights = weights.tril() if causal else weights
            weights = (weights / weights.sum(-1, keepdim=True)).to(g)
        elif causal:
            raise ValueError("causal: is told by the weights in attended, got both")
        else:
            weights = check_finite("attended", as_tensor("attended", attended)).detach().to(g)
        z = _with_one(z, bias)
        share = count // groups
        if weights.dim() == 2:
            correlations: tuple[Tensor, ...] = (_outer(g, _seen(weights, z)).repeat(share, 1),)
            units: tuple[int, ...] = (groups * width,)
        elif weights.shape[-3] == count:
            each = [_outer(g, _seen(weights[..., h, :, :], z)) for h in range(count)]
            correlations = torch.cat(each).split(share * d)
            units = (width,) * groups
        else:
            raise ValueError(
                f"attended: got shape {tuple(weights.shape)}, needs {count} heads in front of the "
                "tokens"
            )
        return cls(
            name=name, kind="value, output", correlations=correlations, units=units,
            flat={"query, key": (count + groups) * width * z.shape[-1]}, eps=eps,
        )  # fmt: skip

    @classmethod
    def mlp(
        cls, gradient: Any, inputs: Any, *, hidden: int, slope: float = 1.0, gated: bool = False,
        bias: bool = False, name: str = "mlp",
    ) -> "Branch":  # fmt: skip
        r"""An MLP :math:`W_2 \phi(W_1 z)` or :math:`W_2 (\phi(W_g z) W_1 z)`.

        Args:
            gradient: g, of the loss at the branch's output, (..., d).
            inputs: z, (..., q), of equal leading axes.
            hidden: Hidden units h.
            slope: φ'(0); at a kink the mean of both sides.
            gated: Whether there is a gate, whose activation is zero at zero.
            bias: Whether the first matrix has a bias, which is zero, too, and the gate another.
            name: Of the branch.

        Returns:
            The branch.

        Raises:
            ValueError: If shapes or counts do not fit.
        """
        g, z, eps = _pair(gradient, inputs)
        h = check_int("hidden", hidden)
        factor = torch.tensor(float(slope), dtype=torch.float64)
        B = check_finite("slope", factor) * _outer(g, _with_one(z, bias))
        if gated:
            flat = {"gate, up, down": h * (2 * B.shape[1] + B.shape[0])}
            return cls(name=name, kind="gate, up, down", correlations=(), units=(), flat=flat)
        return cls(name=name, kind="up, down", correlations=(B,), units=(h,), flat={}, eps=eps)

    @property
    def spectrum(self) -> Spectrum | None:
        """Eigenvalues of the weights that are paired; None where there are none."""
        if not self.units:
            return None
        pairs = zip(self.correlations, self.units, strict=True)
        size = sum(units * sum(B.shape) for B, units in pairs)
        return pair_spectrum(self.correlations, self.units, size, eps=self.eps or _EPS)


@dataclass(frozen=True, kw_only=True, eq=False)
class TransformerPoint(Result):
    """The Hessian at zero weights of the branches of a net, predicted, by branch and kind.

    Attributes:
        branches: In the order of the net.
        shifts: Eigenvalues of the rows of biases that branches add to the stream; None without.
        gradient: Euclidean norm of the gradient in these biases.
        parameters: Names of the parameters with rows; empty for numbers without a net.
        zeroed: Those that are zero; the others are norms, gates and the like.
        notes: What should be known about the numbers.

    Source:
        Derived here; with MLPs alone it is Theorem 2 of Li et al., arXiv:1611.01186.
    """

    branches: tuple[Branch, ...]
    shifts: Spectrum | None = None
    gradient: float = 0.0
    parameters: tuple[str, ...] = ()
    zeroed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def spectrum(self) -> Spectrum:
        """All eigenvalues."""
        flat = [size for branch in self.branches for size in branch.flat.values()]
        zeros = [Spectrum.of([0.0], [sum(flat)])] if flat else []
        return merged([*filter(None, [*self._parts, self.shifts]), *zeros])

    @cached_property
    def _parts(self) -> list[Spectrum | None]:
        return [branch.spectrum for branch in self.branches]

    @property
    def condition_number(self) -> float:
        """max|λ| / smallest nonzero |λ|."""
        return self.spectrum.nonzero_condition_number

    @property
    def index(self) -> float:
        """Share of negative eigenvalues, in [0, 1]."""
        return self.spectrum.count_below(0.0) / self.spectrum.size

    @property
    def verdict(self) -> str:
        """Kind of the critical point, as of :class:`ZeroPoint`."""
        if self.gradient > 0:
            return "not stationary"
        return "strict saddle" if self.spectrum.smallest < 0 else "degenerate"

    @property
    def reason(self) -> str:
        """Explanation of the verdict in one sentence."""
        if self.gradient > 0:
            return "biases that branches add to the stream have a gradient"
        if self.spectrum.smallest < 0:
            return "paired weights have eigenvalues of both signs"
        return "no gradient at a branch correlates with what it reads, to second order"

    headline = "zero weights, {0.spectrum.size:,} in {0.count} branches: {0.verdict}, {0.reason}"

    @property
    def count(self) -> int:
        """Number of branches."""
        return len(self.branches)

    def table(self) -> Columns:
        """A row for each branch and kind of weights."""
        rows: list[tuple[str, str, int, Spectrum | None]] = []
        for branch, part in zip(self.branches, self._parts, strict=True):
            rows += [(branch.name, branch.kind, part.size, part)] if part else []
            rows += [(branch.name, kind, size, None) for kind, size in branch.flat.items()]
        if self.shifts is not None:
            rows.append(("all", "output biases", self.shifts.size, self.shifts))
        found = [part for *_, part in rows]
        return {
            "branch": [name for name, *_ in rows],
            "weights": [kind for _, kind, *_ in rows],
            "entries": [size for _, _, size, _ in rows],
            "nonzero": [part.size - part.count_within(0.0) if part else 0 for part in found],
            "smallest": [part.smallest if part else 0.0 for part in found],
            "largest": [part.largest if part else 0.0 for part in found],
            "condition_number": [part.nonzero_condition_number if part else math.nan
                                 for part in found],
        }  # fmt: skip


def transformer_zero_point(
    branches: Sequence[Branch], *, shift: Any = None, biases: int = 0, gradient: float = 0.0
) -> TransformerPoint:
    r"""Predict the Hessian of a transformer with branches of zero weights, and its biases at zero.

    Args:
        branches: Their gradients, inputs and counts.
        shift: Hessian of the loss in a shift of all tokens of the stream, (d, d); every bias that a
            branch adds to the stream is such a shift. Where they differ (norms on the stream), that
            in all of them together, with ``biases=1``.
        biases: Number of branches with such a bias.
        gradient: Norm of the gradient in these biases.

    Returns:
        The prediction: of biases :math:`n \lambda_i(M)` once each, and zeros.

    Raises:
        ValueError: If there is no branch, or ``shift`` and ``biases`` do not fit.

    Source:
        Derived here.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> g, z = torch.randn(2, 5, 8, 4, generator=generator)
        >>> point = transformer_zero_point([
        ...     Branch.attention(g, z, heads=2, causal=True),
        ...     Branch.mlp(g, z, hidden=16, slope=0.5),
        ... ])
        >>> point.verdict, point.spectrum.rank  # 2 * 4 * (4 + 16)
        ('strict saddle', 160)
    """
    if not branches:
        raise ValueError("branches: got none, needs at least one")
    count, shifts = check_int("biases", biases, 0), None
    if (shift is None) != (count == 0):
        raise ValueError(f"shift: got {'none' if shift is None else 'one'} with {count} biases")
    if shift is not None:
        M = check_finite("shift", as_tensor("shift", shift)).double().cpu()
        if M.dim() != 2 or M.shape[0] != M.shape[1]:
            raise ValueError(f"shift: got shape {tuple(M.shape)}, needs (d, d)")
        values = count * torch.linalg.eigvalsh((M + M.mT) / 2)
        shifts = merged([padded(values, count * len(M), resolution_of(M, _EPS))])
    return TransformerPoint(branches=tuple(branches), shifts=shifts, gradient=float(gradient))


def _pair(gradient: Any, inputs: Any) -> tuple[Tensor, Tensor, float]:
    given = (
        check_finite(name, as_tensor(name, one)).detach()
        for name, one in (("gradient", gradient), ("inputs", inputs))
    )
    pair = [one if one.is_floating_point() else one.double() for one in given]
    eps = max(_EPS, *(torch.finfo(one.dtype).eps for one in pair))
    g, z = (one.double() for one in pair)
    if g.dim() < 2 or g.shape[:-1] != z.shape[:-1]:
        raise ValueError(
            f"inputs: got shapes {tuple(g.shape)} of gradient and {tuple(z.shape)} of inputs, "
            "needs equal axes in front of the last"
        )
    return g, z, eps


def _with_one(z: Tensor, bias: bool) -> Tensor:
    return torch.cat([z, torch.ones_like(z[..., :1])], dim=-1) if bias else z


def _seen(weights: Tensor, z: Tensor) -> Tensor:
    """Means over attended tokens."""
    if weights.shape[-2:] != (z.shape[-2],) * 2:
        raise ValueError(
            f"attended: got shape {tuple(weights.shape)}, needs (..., tokens, tokens) with "
            f"{z.shape[-2]} tokens"
        )
    return weights @ z


def _outer(g: Tensor, z: Tensor) -> Tensor:
    return g.flatten(0, -2).mT @ z.flatten(0, -2)
