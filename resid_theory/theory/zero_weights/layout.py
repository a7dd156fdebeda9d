r"""Wirings of layers by fixed coefficients, from plain nets to hyper-connections.

Block k of K reads :math:`u_k = \sum_{j<k} A_{kj} v_j` and writes :math:`v_k = F_k(u_k)`, with
:math:`v_0 = x`; the output is :math:`\sum_j a_j v_j`. At zero weights only three things of this
matter: what a block reads of the input, :math:`p_k = A_{k0}`, what the output reads of a block,
:math:`q_k = a_k`, and :math:`a_0`; for blocks of one layer also how they read each other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import as_tensor, check_finite, check_int
from resid_theory.theory.zero_weights import layout_tables
from resid_theory.theory.zero_weights.logarithms import Logarithms, carried

__all__ = ["Layout"]

_MOST = 4096  # blocks whose table of coefficients is held
_RANGE = 600  # logarithm of what floats hold, with room for squares of data


@dataclass(frozen=True, eq=False, repr=False)
class Layout:
    """A wiring of blocks by fixed coefficients.

    Args:
        A: (K, K): row k - 1 holds what block k reads of the input and of the blocks before it, so
            that A[k - 1, 0] is the input's share; zero above the diagonal.
        a: (K + 1,): what the output reads of the input and of each block.
        branch: Weight matrices n in a block.
        name: For reports.

    Attributes:
        log_gain: Natural logarithm of the magnitude of each p_k q_k, (K,); -inf for none.
        sign: Its sign, (K,).
        direct: a_0.

    Raises:
        ValueError: If shapes differ, a coefficient is not finite, or a block reads itself or a
            later one.

    Source:
        The formulas are derived here; the constructors name the papers of their wirings.

    Example:
        >>> Layout.shortcut(3).products.tolist()
        [1.0, 1.0, 1.0]
    """

    log_gain: Tensor
    sign: Tensor
    direct: float
    branch: int
    name: str
    table: Callable[[], tuple[Tensor, Tensor]]

    def __init__(self, A: Any, a: Any, branch: int = 1, name: str = "layout") -> None:
        reads = check_finite("A", as_tensor("A", A)).detach().double().cpu()
        out = check_finite("a", as_tensor("a", a)).detach().double().cpu()
        if reads.dim() != 2 or reads.shape[0] != reads.shape[1] or not len(reads):
            raise ValueError(f"A: got shape {tuple(reads.shape)}, needs (blocks, blocks)")
        if out.shape != (len(reads) + 1,):
            raise ValueError(f"a: got shape {tuple(out.shape)}, needs ({len(reads) + 1},)")
        if bool(reads.triu(1).any()):
            row, column = reads.triu(1).nonzero()[0].tolist()
            raise ValueError(
                f"A: block {row + 1} reads block {column}, which is not before it; needs zeros "
                "above the diagonal"
            )
        self._set(Logarithms.of(reads[:, 0]) * Logarithms.of(out[1:]), out[0].item(), branch, name)
        object.__setattr__(self, "table", partial(layout_tables.given, reads, out))

    def _set(self, gains: "Logarithms", direct: float, branch: int, name: str) -> None:
        object.__setattr__(self, "log_gain", gains.log)
        object.__setattr__(self, "sign", gains.sign)
        object.__setattr__(self, "direct", direct)
        object.__setattr__(self, "branch", check_int("branch", branch))
        object.__setattr__(self, "name", name)

    @classmethod
    def _of(
        cls, gains: "Logarithms", direct: float, branch: int, name: str,
        table: Callable[[], tuple[Tensor, Tensor]],
    ) -> "Layout":  # fmt: skip
        made = cls.__new__(cls)
        made._set(gains, direct, branch, name)
        object.__setattr__(made, "table", table)
        return made

    @property
    def blocks(self) -> int:
        """Number of blocks K."""
        return len(self.sign)

    @property
    def layers(self) -> int:
        """Number of weight matrices, K n."""
        return self.blocks * self.branch

    @property
    def products(self) -> Tensor:
        """p_k q_k: the input's share in a block times the block's in the output, (K,)."""
        return self.sign * self.log_gain.exp()

    @property
    def spread(self) -> float:
        """Largest over smallest magnitude of the products, inf where one is zero.

        For blocks of two layers it is the factor by which the wiring changes the condition number.
        """
        if not bool(self.sign.all()):
            return math.inf
        return float((self.log_gain.max() - self.log_gain.min()).exp())

    def check_range(self) -> None:
        """Raise a ValueError if eigenvalues at zero weights are out of the range of floats."""
        known = self.log_gain[self.sign != 0] if self.branch <= 2 else self.log_gain[:0]
        if not math.isfinite(self.direct) or bool((known.abs() > _RANGE).any()):
            sizes = (
                " to ".join(f"e^{float(log):.0f}" for log in known.aminmax()) if len(known) else ""
            )
            raise ValueError(
                f"layout: a_0 is {self.direct:.3g} and the p_k q_k are {sizes or 'of no account'}; "
                f"eigenvalues that floats hold need e^-{_RANGE} to e^{_RANGE}"
            )

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """The table of coefficients.

        Returns:
            A, (K, K), and a, (K + 1,), as the class takes them.

        Raises:
            ValueError: If there are more than 4096 blocks.
        """
        if self.blocks > _MOST:
            raise ValueError(f"layout: {self.blocks} blocks have no table, needs at most {_MOST}")
        return self.table()

    def layer_coefficients(self) -> tuple[Tensor, Tensor]:
        """The same by layers: inside a block each layer reads the one before it.

        Returns:
            A, (L, L), and a, (L + 1,), of L = K n layers.

        Raises:
            ValueError: If there are more than 4096 blocks.
        """
        reads, out = self.coefficients()
        n, size = self.branch, self.layers
        ends = torch.tensor([0, *range(n, size + 1, n)])
        wide = torch.zeros(size, size + 1, dtype=torch.float64)
        first = torch.arange(0, size, n)
        wide[first[:, None], ends[:-1]] = reads
        inner = torch.tensor([layer for layer in range(size) if layer % n])
        wide[inner, inner] = 1.0
        total = torch.zeros(size + 1, dtype=torch.float64)
        total[ends] = out
        return wide[:, :size], total

    def __repr__(self) -> str:
        """One line."""
        return f"Layout({self.name!r}, blocks={self.blocks}, branch={self.branch})"

    # -- wirings --

    @classmethod
    def plain(cls, blocks: int, *, branch: int = 1) -> "Layout":
        """A chain without shortcuts.

        Args:
            blocks: Number of blocks.
            branch: Weight matrices in a block.

        Returns:
            The wiring.
        """
        count = check_int("blocks", blocks)
        gains = torch.zeros(count, dtype=torch.float64)
        gains[0] = float(count == 1)  # alone it is read and written

        return cls._of(
            Logarithms.of(gains), 0.0, branch, "plain", partial(layout_tables.chain, count)
        )

    @classmethod
    def shortcut(cls, blocks: int, *, branch: int = 2) -> "Layout":
        """An identity shortcut around each block ("Demystifying ResNet", Definition 2).

        Args:
            blocks: Number of blocks.
            branch: Weight matrices n under a shortcut.

        Returns:
            The wiring.

        Source:
            Li et al., arXiv:1611.01186.
        """
        return cls.scaled(blocks, branch=branch, name="shortcut")

    @classmethod
    def scaled(
        cls,
        blocks: int,
        *,
        skip: float | Sequence[float] = 1.0,
        scale: float | Sequence[float] = 1.0,
        branch: int = 2,
        name: str = "scaled",
    ) -> "Layout":
        r"""A scaled stream, :math:`h \leftarrow \lambda_k h + \alpha_k F_k(h)`.

        SkipInit and ReZero at a given α, Stable-ResNet, depth-μP and CompleteP multipliers.

        Args:
            blocks: Number of blocks.
            skip: λ, one number or one for each block.
            scale: α, one number or one for each block.
            branch: Weight matrices in a block.
            name: For reports.

        Returns:
            The wiring.

        Raises:
            ValueError: If there is not one number for each block, or one is not finite.

        Source:
            De & Smith, arXiv:2002.10444; Bachlechner et al., arXiv:2003.04887; Hayou et al.,
            arXiv:2010.12859; Yang et al., arXiv:2310.02244; Dey et al., arXiv:2505.01618.
        """
        count = check_int("blocks", blocks)
        along = Logarithms.of(_each("skip", skip, count))
        write = _each("scale", scale, count)
        before, after = along.before(), along.after()

        table = partial(layout_tables.scaled_stream, _each("skip", skip, count), write)
        direct = (along.before() * along).value()[-1].item()
        return cls._of(before * after * Logarithms.of(write), direct, branch, name, table)

    @classmethod
    def dense(cls, weights: Any, *, branch: int = 2, name: str = "dense") -> "Layout":
        r"""Dense mixing after each block, as in DenseFormer.

        With :math:`x_0 = y_0 = w_{00} v_0` the blocks keep their own shortcut,
        :math:`x_k = y_{k-1} + F_k(y_{k-1})`, and :math:`y_k = \sum_{j \le k} w_{kj} x_j`.

        Args:
            weights: w, (K + 1, K + 1), lower triangular.
            branch: Weight matrices in a block.
            name: For reports.

        Returns:
            The wiring.

        Raises:
            ValueError: If the weights have another shape, are not finite or not lower triangular.

        Source:
            Pagliardini et al., "DenseFormer", arXiv:2402.02622.
        """
        mix = check_finite("weights", as_tensor("weights", weights)).detach().double().cpu()
        if mix.dim() != 2 or mix.shape[0] != mix.shape[1] or len(mix) < 2:
            raise ValueError(f"weights: got shape {tuple(mix.shape)}, needs (K + 1, K + 1)")
        if bool(mix.triu(1).any()):
            raise ValueError("weights: reads later blocks, needs zeros above the diagonal")
        count = len(mix) - 1
        rows = torch.zeros(count + 1, count + 1, dtype=torch.float64)  # x_k in terms of v_j
        rows[0, 0] = 1.0
        mixed = mix[0, 0] * rows[0]
        reads = torch.zeros(count, count, dtype=torch.float64)
        for k in range(1, count + 1):
            reads[k - 1] = mixed[:count]
            rows[k] = mixed
            rows[k, k] += 1.0
            mixed = mix[k, : k + 1] @ rows[: k + 1]
        return cls(reads, mixed, branch, name)

    @classmethod
    def averaged(cls, blocks: int, *, branch: int = 2) -> "Layout":
        """Attention over depth with zero queries: every block reads the mean of all before it.

        Args:
            blocks: Number of blocks.
            branch: Weight matrices in a block.

        Returns:
            The wiring, that of attention residuals where the pseudo-queries are zero.

        Source:
            "Attention residuals", arXiv:2603.15031.
        """
        count = check_int("blocks", blocks)
        shares = 1 / torch.arange(1, count + 1, dtype=torch.float64)

        gains = Logarithms.of(shares) * Logarithms.of(torch.full_like(shares, 1 / (count + 1)))
        return cls._of(
            gains, 1 / (count + 1), branch, "averaged", partial(layout_tables.averages, shares)
        )

    @classmethod
    def hyper_connections(
        cls,
        read: Any,
        mix: Any,
        write: Any,
        *,
        start: Any = None,
        readout: str | Any = "mean",
        branch: int = 2,
        name: str = "hyper-connections",
    ) -> "Layout":
        r"""Streams :math:`C_k = H_k C_{k-1} + w_k F_k(r_k^T C_{k-1})` of n copies of the signal.

        Args:
            read: r, (K, n).
            mix: H, (K, n, n).
            write: w, (K, n).
            start: Share of the input in each stream, (n,), ones by default.
            readout: ``"mean"`` or ``"sum"`` of the streams, or (n,).
            branch: Weight matrices in a block.
            name: For reports.

        Returns:
            The wiring; products of many mixings are carried as logarithms.

        Raises:
            ValueError: If shapes differ or a number is not finite.

        Source:
            Zhu et al., "Hyper-connections", arXiv:2409.19606; "mHC", arXiv:2512.24880.
        """
        r, h, w = (
            check_finite(name, as_tensor(name, given)).detach().double().cpu()
            for name, given in (("read", read), ("mix", mix), ("write", write))
        )
        if r.dim() != 2 or h.shape != (*r.shape, r.shape[1]) or w.shape != r.shape or not len(r):
            raise ValueError(
                f"mix: got shapes {tuple(r.shape)}, {tuple(h.shape)} and {tuple(w.shape)} of read, "
                "mix and write; needs (K, n), (K, n, n) and (K, n)"
            )
        count, n = r.shape
        begin = torch.ones(n, dtype=torch.float64) if start is None else _streams("start", start, n)
        if isinstance(readout, str):
            if readout not in ("mean", "sum"):
                raise ValueError(f"readout: got {readout!r}, needs 'mean', 'sum' or (n,) numbers")
            end = torch.full((n,), 1.0 / n if readout == "mean" else 1.0, dtype=torch.float64)
        else:
            end = _streams("readout", readout, n)
        mixings = h.numpy()
        forward, last = carried(mixings, begin.numpy())
        backward, _ = carried(mixings[::-1].transpose(0, 2, 1), end.numpy())
        reads = Logarithms.of((r * forward.sign).sum(1)).times(forward.log)
        writes = Logarithms.of((w * backward.sign.flip(0)).sum(1)).times(backward.log.flip(0))
        direct = float((Logarithms.of(end @ last.sign).times(last.log)).value())

        table = partial(layout_tables.streams, r, h, w, begin, end)
        return cls._of(reads * writes, direct, branch, name, table)


def _each(argument: str, given: Any, count: int) -> Tensor:
    numbers = check_finite(argument, as_tensor(argument, given)).detach().double().cpu()
    if numbers.shape not in ((), (count,)):
        raise ValueError(f"{argument}: got shape {tuple(numbers.shape)}, needs one or ({count},)")
    return numbers.expand(count).clone()


def _streams(argument: str, given: Any, count: int) -> Tensor:
    numbers = check_finite(argument, as_tensor(argument, given)).detach().double().cpu()
    if numbers.shape != (count,):
        raise ValueError(f"{argument}: got shape {tuple(numbers.shape)}, needs ({count},)")
    return numbers
