"""Networks whose blocks read and write a residual stream by fixed coefficients."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import check_choice, check_int
from resid_theory.activations import Activation, activation
from resid_theory.networks.shortcut import ShortcutNet
from resid_theory.networks.wiring import (
    NORM_PLACES,
    has_maps,
    map_table,
    number_table,
    single_stream,
)
from resid_theory.runtime.net_entry import inner_net


class LayoutNet(nn.Module):
    r"""Blocks of n matrices, wired by coefficients.

    Block k reads :math:`u_k = \sum_{j<k} A_{kj} v_j` and writes :math:`v_k = \sigma_{post}(W^{k,n}
    \sigma_{mid}(\dots W^{k,1} \sigma_{pre}(\nu_k(u_k))))`, with :math:`v_0 = x`; the output is
    :math:`\sum_j a_j v_j`. Weights start at zero.

    Args:
        width: Width d of the input; without matrices among the coefficients, of all blocks.
        A: (K, K): row k - 1 holds what block k reads of the input and of the blocks before it; of
            matrices, rows of (in, out of the source), of vectors as diagonals, or of None.
        a: (K + 1,): what the output reads of the input and of each block.
        branch: Weight matrices n in a block.
        pre: Activation in front of a block: a name, an elementwise callable or None.
        mid: Activation between the matrices of a block.
        post: Activation behind the last matrix.
        norm: Normalization ν as a function of the width, like ``torch.nn.LayerNorm``.
        norm_at: ``"branch"``; ``"stream"``, of the sum behind each block, as in post-LN, for the
            coefficients of one stream; or ``"write"``, of what a block adds.
        bias: Whether the first matrix of a block has a bias.
        last_bias: Whether the last one has.
        hidden: Width inside a block; ``width`` by default.
        dtype: Of the parameters; theory is done in float64.

    Attributes:
        weights: Matrices (out, in), block by block, input to output.
        biases: Of first matrices; empty without.
        last_biases: Of last matrices; empty without.
        norms: One for each block; empty without.

    Raises:
        ValueError: If a count is below 1, a shape is wrong, a coefficient is not finite, a block
            reads itself or a later one, or a name is unknown.

    Example:
        >>> net = LayoutNet(2, A=[[1.0, 0.0], [1.0, 1.0]], a=[1.0, 1.0, 1.0], branch=2)
        >>> net(torch.ones(1, 2, dtype=torch.float64)).tolist()
        [[1.0, 1.0]]
    """

    def __init__(
        self,
        width: int,
        A: Any,
        a: Any,
        *,
        branch: int,
        pre: str | Activation | None = None,
        mid: str | Activation | None = None,
        post: str | Activation | None = None,
        norm: Callable[[int], nn.Module] | None = None,
        norm_at: str = "branch",
        bias: bool = False,
        last_bias: bool = False,
        hidden: int | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.width, self.branch = check_int("width", width), check_int("branch", branch)
        self.hidden = self.width if hidden is None else check_int("hidden", hidden)
        self.norm_at = check_choice("norm_at", norm_at, NORM_PLACES)
        self._has_maps = has_maps(a)
        rows: Sequence[Any]
        out: Sequence[Any]
        self._streams = None
        if self._has_maps:
            (rows, out), widths = map_table(A, a)
            if norm is not None and norm_at == "stream":
                raise ValueError("norm_at: a normalized stream needs numbers as coefficients")
            if widths[0][0] != self.width:
                raise ValueError(f"width: got {width}, the maps read {widths[0][0]} inputs")
        else:
            reads, last = number_table(A, a)
            if norm is not None and norm_at == "stream":
                self._streams = [part.tolist() for part in single_stream(reads, last)]
            rows, out = list(reads), list(last)
            widths = [(self.width, self.width)] * (len(rows) + 1)
        if self.branch == 1 and self.hidden != self.width:
            raise ValueError(f"hidden: got {hidden} with branch=1, needs branch >= 2")
        self.outputs, self.blocks = widths[0][1], len(rows)
        place = torch.get_default_device()
        for k, row in enumerate((*rows, out)):
            for j, entry in enumerate(row[: k + 1]):
                held = None if entry is None else entry.to(place, dtype)
                self.register_buffer(f"map_{k}_{j}", held)
        self.pre, self.mid = activation("pre", pre), activation("mid", mid)
        self.post = activation("post", post)
        shapes, firsts, lasts, norms = [], [], [], []
        for inner, wide in widths[1:]:
            sizes = [inner, *[self.hidden] * (self.branch - 1), wide]
            shapes += list(zip(sizes[1:], sizes, strict=False))
            firsts.append(sizes[1])
            lasts.append(wide)
            norms.append(wide if norm_at == "write" else inner)
        self.weights = nn.ParameterList(torch.zeros(shape, dtype=dtype) for shape in shapes)
        self.biases = nn.ParameterList(torch.zeros(s, dtype=dtype) for s in firsts if bias)
        self.last_biases = nn.ParameterList(torch.zeros(s, dtype=dtype) for s in lasts if last_bias)
        self.norms = nn.ModuleList(norm(size).to(dtype) for size in norms if norm is not None)

    def coefficients(self) -> tuple[Any, Any]:
        """A and a as the class takes them, in float64."""
        rows = [
            [self.get_buffer(f"map_{k}_{j}") for j in range(k + 1)] for k in range(self.blocks + 1)
        ]
        held = [[None if entry is None else entry.double().cpu() for entry in row] for row in rows]
        if self._has_maps:
            return held[:-1], held[-1]
        table = torch.zeros(self.blocks + 1, self.blocks + 1, dtype=torch.float64)
        for k, row in enumerate(held):
            table[k, : k + 1] = torch.stack(row)
        return table[:-1, :-1], table[-1]

    def _read(self, row: int, written: list[Tensor]) -> Tensor:
        total = None
        for j, v in enumerate(written):
            entry = self.get_buffer(f"map_{row}_{j}")
            if entry is not None:
                part = v @ entry.mT if entry.dim() else entry * v
                total = part if total is None else total + part
        assert total is not None
        return total

    def _branch(self, k: int, z: Tensor) -> Tensor:
        if self.norms and self.norm_at == "branch":
            z = self.norms[k](z)
        z = z if self.pre is None else self.pre(z)
        for layer in range(self.branch):
            z, last = z @ self.weights[k * self.branch + layer].mT, layer == self.branch - 1
            z = z + self.biases[k] if self.biases and layer == 0 else z
            z = z + self.last_biases[k] if self.last_biases and last else z
            act = self.post if last else self.mid
            z = z if act is None else act(z)
        return self.norms[k](z) if self.norms and self.norm_at == "write" else z

    def forward(self, x: Tensor) -> Tensor:
        """The output for samples (m, width)."""
        if self._streams is not None:
            for k, (skip, scale) in enumerate(zip(*self._streams, strict=True)):
                x = self.norms[k](skip * x + scale * self._branch(k, x))
            return x
        written = [x]
        for k in range(self.blocks):
            written.append(self._branch(k, self._read(k, written)))
        return self._read(self.blocks, written)


def layout_of(net: nn.Module) -> tuple[Any, Any, int]:
    """The wiring of a net, as ``theory.Layout`` takes it; weights are not looked at.

    Args:
        net: A :class:`LayoutNet` or a :class:`ShortcutNet`.

    Returns:
        A, (K, K), a, (K + 1,), of numbers or of matrices, and the number of matrices in a block.

    Raises:
        ValueError: If the net is none of these.

    Example:
        >>> A, a, branch = layout_of(ShortcutNet(3, blocks=2, shortcut_depth=2))
        >>> A.tolist(), a.tolist(), branch
        ([[1.0, 0.0], [1.0, 1.0]], [1.0, 1.0, 1.0], 2)
    """
    net = inner_net(net)
    if isinstance(net, LayoutNet):
        return *net.coefficients(), net.branch
    if not isinstance(net, ShortcutNet):
        raise ValueError(f"net: got {type(net).__name__}, needs a LayoutNet or a ShortcutNet")
    count = net.blocks
    if net.shortcut:
        ones = torch.ones(count + 1, dtype=torch.float64)
        return ones.new_ones(count, count).tril(), ones, net.shortcut_depth
    eye = torch.eye(count, dtype=torch.float64)
    return eye, nn.functional.pad(eye[-1], (1, 0)), net.shortcut_depth
