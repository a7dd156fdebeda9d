r"""Wirings of layers by fixed coefficients, from plain nets to hyper-connections.

Block k of K reads :math:`u_k = \sum_{j<k} A_{kj} v_j` and writes :math:`v_k = F_k(u_k)`, with
:math:`v_0 = x`; the output is :math:`\sum_j a_j v_j`. At zero weights only three things of this
matter: what a block reads of the input, :math:`p_k = A_{k0}`, what the output reads of a block,
:math:`q_k = a_k`, and :math:`a_0`; for blocks of one layer also how they read each other.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import check_int
from resid_theory.networks.wiring import fixed, has_maps, map_table, number_table
from resid_theory.theory.zero_weights.streams import Streams, exponential, logarithm

_MOST = 4096  # blocks whose table of coefficients is held
_RANGE = 600  # logarithm of what floats hold, with room for squares of data


class Layout:
    """A wiring of blocks by fixed coefficients.

    Coefficients are numbers, or matrices where layers are rectangular, or where projections, gains
    of channels or fixed embeddings and read-outs are in the way.

    Args:
        A: (K, K): row k - 1 holds what block k reads of the input and of the blocks before it; zero
            above the diagonal. Of matrices, rows of (in, out of the source); a vector is a
            diagonal, None no link.
        a: (K + 1,): what the output reads of the input and of each block.
        branch: Weight matrices n in a block.
        name: For reports.

    Attributes:
        reads: p, (K, 2): logarithms of magnitudes, and numbers of minus signs; None of matrices.
        writes: q, likewise.
        direct: a_0, a number or a matrix.
        streams: The streams behind the coefficients, if that is how they are known.
        maps: Matrices (rows, read-out), if coefficients are matrices.
        widths: Then the widths (in, out) of the net and of each block.

    Raises:
        ValueError: If shapes differ, a coefficient is not finite, or a block reads itself or a
            later one.

    Example:
        >>> Layout.shortcut(3).products.tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(self, A: Any, a: Any, branch: int = 1, name: str = "layout") -> None:
        self.branch, self.name = check_int("branch", branch), name
        self.streams: Streams | None = None
        self.maps, self.widths = None, None
        self.reads: Tensor | None = None
        self.writes: Tensor | None = None
        self.direct: float | Tensor
        if has_maps(a):
            self.maps, self.widths = map_table(A, a)
            first = self.maps[1][0]
            self.direct = torch.zeros(*self.widths[0][::-1]).double() if first is None else first
            self.blocks = len(self.maps[0])
            return
        self._table = number_table(A, a)
        self.blocks = len(self._table[0])
        self.reads, self.writes = logarithm(self._table[0][:, 0]), logarithm(self._table[1][1:])
        self.direct = self._table[1][0].item()

    @classmethod
    def _of(cls, streams: Streams, branch: int, name: str) -> "Layout":
        made = cls.__new__(cls)
        made.branch, made.name = check_int("branch", branch), name
        made.blocks, made.streams, made.maps, made.widths = len(streams.read), streams, None, None
        made.reads, made.writes, made.direct = streams.shares()
        return made

    @property
    def _gains(self) -> Tensor:
        if self.reads is None or self.writes is None:
            raise ValueError("layout: has matrices as coefficients, p_k q_k needs numbers")
        return self.reads + self.writes

    @property
    def products(self) -> Tensor:
        """p_k q_k: the input's share in a block times the block's in the output, (K,)."""
        return exponential(self._gains)

    @property
    def log_gain(self) -> Tensor:
        """Natural logarithm of their magnitudes, (K,), -inf for none."""
        return self._gains[:, 0]

    @property
    def spread(self) -> float:
        """Largest over smallest |p_k q_k|: for two layers a factor of the condition number."""
        low, high = self.log_gain.aminmax()
        return math.inf if low == -math.inf else float((high - low).exp())

    def check_range(self) -> None:
        """Raise a ValueError if eigenvalues at zero weights are out of the range of floats."""
        if self.maps is not None:
            return
        gains = self.log_gain
        known = gains[gains > -math.inf] if self.branch <= 2 else gains[:0]
        assert isinstance(self.direct, float)
        output = math.log(max(1.0, abs(self.direct)))  # gradients at the output grow with it
        beyond = (known < -_RANGE) | (known + output > _RANGE)
        if not math.isfinite(self.direct) or bool(beyond.any()):
            ends = known.aminmax() if len(known) else ()
            sizes = " to ".join(f"e^{float(log):.0f}" for log in ends)
            raise ValueError(
                f"layout: a_0 is {self.direct:.3g} and the p_k q_k are {sizes or 'of no account'}; "
                f"eigenvalues that floats hold need e^-{_RANGE} to e^{_RANGE}"
            )

    def path(
        self, seeing: Tensor | None = None, moved: Callable[[int], bool] = lambda block: True
    ) -> tuple[float, list[tuple[int, int]]]:
        """Count the matrices on the shortest way to the output from what sees an input.

        Args:
            seeing: Blocks that see an input, (K,); by default those that read it.
            moved: Whether what a block sees depends on what arrives there.

        Returns:
            The count, inf for no way, and the first and last blocks of ways through several.
        """
        if self.reads is not None and self.writes is not None:
            reached = self.reads[:, 0] > -math.inf if seeing is None else seeing
            if bool((reached & (self.writes[:, 0] > -math.inf)).any()):
                return self.branch, []
            links, out = (part != 0 for part in self.coefficients())
        else:
            assert self.maps is not None
            every = torch.zeros(self.blocks + 1, self.blocks + 1, dtype=torch.bool)
            for row, maps in zip(every, [*self.maps[0], self.maps[1]], strict=True):
                row[: len(maps)] = torch.tensor([m is not None and bool(m.any()) for m in maps])
            links, out = every[:-1, :-1], every[-1]
            reached = links[:, 0] if seeing is None else seeing
        if not bool((reached & out[1:]).any()):
            links = links & torch.tensor([moved(k) for k in range(self.blocks)])[:, None]
        edges, firsts, steps = links[:, 1:].float(), reached.nonzero()[:, 0], 1
        ways = torch.eye(self.blocks, dtype=torch.bool)[firsts]
        unseen = ~ways
        while bool(ways.any()):
            if bool((ways & out[1:]).any()):
                ends = (ways & out[1:]).nonzero().tolist() if steps > 1 else []
                return steps * self.branch, [(int(firsts[way]), last) for way, last in ends]
            on = ways[:, :-1].any(0).nonzero()[:, 0]  # few, as a rule: one in a chain
            ways = (ways[:, on].float() @ edges[:, on].mT > 0) & unseen
            unseen &= ~ways
            steps += 1
        return math.inf, []  # no way through: the loss does not depend on the weights

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """A, (K, K), and a, (K + 1,), as the class takes them, of up to 4096 blocks."""
        if self.maps is not None:
            raise ValueError("layout: has matrices as coefficients, they are in maps")
        if self.blocks > _MOST:
            raise ValueError(f"layout: {self.blocks} blocks have no table, needs at most {_MOST}")
        return self._table if self.streams is None else self.streams.coefficients()

    @property
    def is_shortcut(self) -> bool:
        """True for one stream of coefficients that are all one."""
        return self.streams is not None and self.streams.is_shortcut

    def arriving(self, x: Tensor) -> list[Tensor]:
        """Parts of inputs (m, q) that blocks read."""
        if self.reads is not None:
            return [p * x for p in exponential(self.reads).tolist()]
        assert self.maps is not None and self.widths is not None
        firsts = zip((row[0] for row in self.maps[0]), self.widths[1:], strict=True)
        return [_mapped(m, x, width) for m, (width, _) in firsts]

    def passed_back(self, g: Tensor) -> list[Tensor]:
        """Gradients at what blocks write from those at the output; of the unit matrix, N_k."""
        if self.writes is not None:
            return [q * g for q in exponential(self.writes).tolist()]
        assert self.maps is not None and self.widths is not None
        backs = zip(self.maps[1][1:], self.widths[1:], strict=True)
        return [_mapped(None if m is None else m.mT, g, width) for m, (_, width) in backs]

    def __repr__(self) -> str:
        """One line."""
        return f"Layout({self.name!r}, blocks={self.blocks}, branch={self.branch})"

    # -- wirings --

    @classmethod
    def plain(cls, blocks: int, *, branch: int = 1) -> "Layout":
        """A chain of blocks without shortcuts."""
        return cls.scaled(blocks, skip=0.0, branch=branch, name="plain")

    @classmethod
    def shortcut(cls, blocks: int, *, branch: int = 2) -> "Layout":
        """An identity around each block (Li et al., arXiv:1611.01186, Definition 2)."""
        return cls.scaled(blocks, branch=branch, name="shortcut")

    @classmethod
    def scaled(
        cls,
        blocks: int, *, skip: float | Sequence[float] = 1.0, scale: float | Sequence[float] = 1.0,
        branch: int = 2, name: str = "scaled",
    ) -> "Layout":  # fmt: skip
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

        Source:
            De & Smith, arXiv:2002.10444; Bachlechner et al., arXiv:2003.04887; Hayou et al.,
            arXiv:2010.12859; Yang et al., arXiv:2310.02244; Dey et al., arXiv:2505.01618.
        """
        count = check_int("blocks", blocks)
        mix, write = (_numbers(*given, count) for given in (("skip", skip), ("scale", scale)))
        return cls._of(Streams.single(torch.ones_like(mix), mix, write), branch, name)

    @classmethod
    def dense(cls, weights: Any, *, branch: int = 2, name: str = "dense") -> "Layout":
        r"""Dense mixing after each block, as in DenseFormer.

        With :math:`x_0 = v_0, y_0 = w_{00} v_0` the blocks keep their own shortcut,
        :math:`x_k = y_{k-1} + F_k(y_{k-1})`, and :math:`y_k = \sum_{j \le k} w_{kj} x_j`.

        Args:
            weights: w, (K + 1, K + 1), lower triangular.
            branch: Weight matrices in a block.
            name: For reports.

        Returns:
            The wiring.

        Raises:
            ValueError: If the weights are not lower triangular.

        Source:
            Pagliardini et al., "DenseFormer", arXiv:2402.02622.
        """
        mix = fixed("weights", weights)
        if mix.dim() != 2 or mix.shape[0] != mix.shape[1] or len(mix) < 2:
            raise ValueError(f"weights: got shape {tuple(mix.shape)}, needs (K + 1, K + 1)")
        if bool(mix.triu(1).any()):
            raise ValueError("weights: reads later blocks, needs zeros above the diagonal")
        count = len(mix) - 1
        rows = torch.eye(count + 1, dtype=torch.float64)  # x_k in terms of v_j
        mixed = [mix[0, 0] * rows[0]]
        for k in range(1, count + 1):
            rows[k] += mixed[-1]
            mixed.append(mix[k, : k + 1] @ rows[: k + 1])
        return cls(torch.stack(mixed[:-1])[:, :count], mixed[-1], branch, name)

    @classmethod
    def averaged(cls, blocks: int, *, branch: int = 2) -> "Layout":
        """Attention residuals with zero queries (arXiv:2603.15031): means of all before."""
        count = check_int("blocks", blocks)
        shares = 1 / torch.arange(1, count + 1, dtype=torch.float64)
        ones = torch.ones_like(shares)
        made = Streams.single(shares, ones, ones, end=1 / (count + 1))
        return cls._of(made, branch, "averaged")

    @classmethod
    def hyper_connections(
        cls,
        read: Any, mix: Any, write: Any, *, start: Any = None, readout: str | Any = "mean",
        branch: int = 2, name: str = "hyper-connections",
    ) -> "Layout":  # fmt: skip
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
        r, h, w = fixed("read", read), fixed("mix", mix), fixed("write", write)
        if r.dim() != 2 or h.shape != (*r.shape, r.shape[1]) or w.shape != r.shape or not r.numel():
            raise ValueError(
                f"mix: got shapes {tuple(r.shape)}, {tuple(h.shape)} and {tuple(w.shape)} of read, "
                "mix and write; needs (K, n), (K, n, n) and (K, n), with K and n of at least 1"
            )
        n = r.shape[1]
        begin = torch.ones(n).double() if start is None else _numbers("start", start, n, one=False)
        if isinstance(readout, str):
            if readout not in ("mean", "sum"):
                raise ValueError(f"readout: got {readout!r}, needs 'mean', 'sum' or (n,) numbers")
            end = torch.full((n,), 1.0 / n if readout == "mean" else 1.0, dtype=torch.float64)
        else:
            end = _numbers("readout", readout, n, one=False)
        return cls._of(Streams(read=r, mix=h, write=w, begin=begin, end=end), branch, name)


def _mapped(matrix: Tensor | None, rows: Tensor, width: int) -> Tensor:
    return rows.new_zeros(len(rows), width) if matrix is None else rows @ matrix.to(rows).mT


def _numbers(argument: str, given: Any, count: int, *, one: bool = True) -> Tensor:
    numbers = fixed(argument, given)
    if numbers.shape != (count,) and not (one and numbers.dim() == 0):
        needed = f"one or ({count},)" if one else f"({count},)"
        raise ValueError(f"{argument}: got shape {tuple(numbers.shape)}, needs {needed}")
    return numbers.expand(count)
