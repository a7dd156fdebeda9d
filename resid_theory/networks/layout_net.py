"""Networks whose blocks read and write a residual stream by fixed coefficients."""

from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import as_tensor, check_finite, check_int
from resid_theory.activations import Activation, activation
from resid_theory.networks.shortcut import ShortcutNet
from resid_theory.runtime.net_entry import inner_net

__all__ = ["LayoutNet", "layout_of"]


class LayoutNet(nn.Module):
    r"""Blocks of n matrices, wired by coefficients.

    Block k reads :math:`u_k = \sum_{j<k} A_{kj} v_j` and writes
    :math:`v_k = \sigma_{post}(W^{k,n} \sigma_{mid}(\dots W^{k,1} u_k))`, with :math:`v_0 = x`; the
    output is :math:`\sum_j a_j v_j`. Weights start at zero.

    Args:
        width: Width d of input, blocks and output.
        A: (K, K): row k - 1 holds what block k reads of the input and of the blocks before it.
        a: (K + 1,): what the output reads of the input and of each block.
        branch: Weight matrices n in a block.
        mid: Activation between the matrices of a block: a name, an elementwise callable or None.
        post: Activation behind the last matrix.
        hidden: Width inside a block; ``width`` by default.
        dtype: Of the parameters; theory is done in float64.

    Attributes:
        reads: A, a buffer.
        writes: a, a buffer.
        weights: Matrices (out, in), block by block, input to output.

    Raises:
        ValueError: If a count is below 1, a shape is wrong, a coefficient is not finite, a block
            reads itself or a later one, or a name is unknown.

    Example:
        >>> net = LayoutNet(2, A=[[1.0, 0.0], [1.0, 1.0]], a=[1.0, 1.0, 1.0], branch=2)
        >>> net(torch.ones(1, 2, dtype=torch.float64)).tolist()
        [[1.0, 1.0]]
    """

    reads: Tensor
    writes: Tensor

    def __init__(
        self,
        width: int,
        A: Any,
        a: Any,
        *,
        branch: int = 2,
        mid: str | Activation | None = None,
        post: str | Activation | None = None,
        hidden: int | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.width, self.branch = check_int("width", width), check_int("branch", branch)
        self.hidden = self.width if hidden is None else check_int("hidden", hidden)
        reads = check_finite("A", as_tensor("A", A)).detach().to(dtype)
        writes = check_finite("a", as_tensor("a", a)).detach().to(dtype)
        if reads.dim() != 2 or reads.shape[0] != reads.shape[1] or bool(reads.triu(1).any()):
            raise ValueError(
                f"A: got shape {tuple(reads.shape)}, needs (blocks, blocks), zero above the "
                "diagonal: a block reads only what is before it"
            )
        if writes.shape != (len(reads) + 1,):
            raise ValueError(f"a: got shape {tuple(writes.shape)}, needs ({len(reads) + 1},)")
        if self.branch == 1 and self.hidden != self.width:
            raise ValueError(f"hidden: got {hidden} with branch=1, needs branch >= 2")
        self.register_buffer("reads", reads)
        self.register_buffer("writes", writes)
        self.mid, self.post = activation("mid", mid), activation("post", post)
        widths = [self.width, *[self.hidden] * (self.branch - 1), self.width]
        shapes = list(zip(widths[1:], widths, strict=False)) * len(reads)
        self.weights = nn.ParameterList(torch.zeros(shape, dtype=dtype) for shape in shapes)

    @property
    def blocks(self) -> int:
        """Number of blocks K."""
        return len(self.reads)

    def forward(self, x: Tensor) -> Tensor:
        """The output for samples (m, width)."""
        written = [x]
        for k, row in enumerate(self.reads):
            z = sum((c * v for c, v in zip(row, written, strict=False)), torch.zeros_like(x))
            for layer in range(self.branch):
                z = z @ self.weights[k * self.branch + layer].mT
                act = self.post if layer == self.branch - 1 else self.mid
                z = z if act is None else act(z)
            written.append(z)
        out = zip(self.writes, written, strict=True)
        return sum((c * v for c, v in out), torch.zeros_like(x))


def layout_of(net: nn.Module) -> tuple[Tensor, Tensor, int]:
    """The wiring of a net, as ``theory.Layout`` takes it.

    Args:
        net: A :class:`LayoutNet` or a :class:`ShortcutNet`.

    Returns:
        A, (K, K), a, (K + 1,), and the matrices in a block.

    Raises:
        ValueError: If the net is none of these.

    Example:
        >>> A, a, branch = layout_of(ShortcutNet(3, blocks=2, shortcut_depth=2))
        >>> A.tolist(), a.tolist(), branch
        ([[1.0, 0.0], [1.0, 1.0]], [1.0, 1.0, 1.0], 2)
    """
    net = inner_net(net) if isinstance(net, nn.Module) else net
    if isinstance(net, LayoutNet):
        return net.reads.double().cpu(), net.writes.double().cpu(), net.branch
    if not isinstance(net, ShortcutNet):
        raise ValueError(f"net: got {type(net).__name__}, needs a LayoutNet or a ShortcutNet")
    count = net.blocks
    if net.shortcut:
        ones = torch.ones(count + 1, count + 1, dtype=torch.float64).tril()
        return ones[:count, :count], ones[-1], net.shortcut_depth
    eye = torch.eye(count + 1, dtype=torch.float64)
    return eye[:count, :count], eye[-1], net.shortcut_depth
