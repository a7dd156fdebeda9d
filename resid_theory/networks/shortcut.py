"""n-shortcut networks, linear and nonlinear, and their initial weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import as_generator, check_choice, check_int, check_positive
from resid_theory.activations import Activation, activation
from resid_theory.initializations import INITIALIZATIONS, draw_initial, initializations_for


class ShortcutNet(nn.Module):
    r"""A stack of blocks of n weight matrices, each block under one identity shortcut.

    Block r computes, with no activation on the shortcut path,

    .. math:: z_r = z_{r-1} + \sigma_{post}(W^{r,n} \sigma_{mid}(\dots \sigma_{mid}(W^{r,1}
        \sigma_{pre}(z_{r-1}) + b^r)))

    and the output is the last z. Weights start at zero, the paper's zero initial point;
    :func:`initialize` draws others. Samples and any leading axes broadcast: ``weights`` with
    leading axes (..., blocks, n, d, d), through ``torch.func.functional_call``, is a batch of nets,
    with or without ``vmap``.

    Args:
        width: Width d of input, blocks and output.
        blocks: Number of blocks R, at least 1.
        shortcut_depth: Weight matrices n under one shortcut, at least 1.
        shortcut: False for the plain net: the same layers without the identity.
        pre: Activation before the first matrix of a block: a name, an elementwise callable or None.
        mid: Activation between two matrices of a block.
        post: Activation after the last matrix of a block.
        hidden: Width inside a block; ``width`` by default. Needs ``shortcut_depth`` >= 2.
        bias: Whether the first matrix of a block has a bias, as in the paper's equation (3).
        dtype: Of the parameters; theory is done in float64.
        device: Of the parameters.

    Attributes:
        weights: (blocks, n, d, d), one parameter, when all matrices are square; otherwise a
            ``ParameterList`` of blocks * n matrices (out, in), block by block, input to output.
        bias: (blocks, hidden), or None.
        architecture: The call that built the net, which its checkpoint keeps; absent where an
            activation is a callable.

    Raises:
        ValueError: If a count is below 1, a name is unknown, ``hidden`` does not apply or the dtype
            is not floating point.

    Source:
        Li, Jiao, Han & Weissman, "Demystifying ResNet", arXiv:1611.01186, Definitions 1 and 2.

    Example:
        >>> net = ShortcutNet(3, blocks=4, shortcut_depth=2)
        >>> net(torch.ones(5, 3, dtype=torch.float64)).sum().item()
        15.0
    """

    weights: nn.Parameter | nn.ParameterList
    bias: nn.Parameter | None

    def __init__(
        self,
        width: int,
        blocks: int,
        shortcut_depth: int,
        *,
        shortcut: bool = True,
        pre: str | Activation | None = None,
        mid: str | Activation | None = None,
        post: str | Activation | None = None,
        hidden: int | None = None,
        bias: bool = False,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.width = check_int("width", width)
        self.blocks = check_int("blocks", blocks)
        self.shortcut_depth = check_int("shortcut_depth", shortcut_depth)
        self.hidden = self.width if hidden is None else check_int("hidden", hidden)
        if self.shortcut_depth == 1 and self.hidden != self.width:
            raise ValueError(
                f"hidden: got {hidden} with shortcut_depth=1; one matrix has no hidden width, "
                "needs shortcut_depth >= 2"
            )
        self.shortcut = bool(shortcut)
        if not any(callable(given) for given in (pre, mid, post)):  # a function has no JSON form
            arguments = {
                "width": width, "blocks": blocks, "shortcut_depth": shortcut_depth,
                "pre": pre, "mid": mid, "post": post,
                "shortcut": self.shortcut, "hidden": hidden, "bias": bool(bias),
            }  # fmt: skip
            self.architecture: dict[str, Any] = {"builder": "ShortcutNet", "arguments": arguments}
        self.pre = activation("pre", pre)
        self.mid = activation("mid", mid)
        self.post = activation("post", post)
        if not dtype.is_floating_point:
            raise ValueError(f"dtype: got {dtype}, needs a floating-point dtype")
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        if self.hidden == self.width:
            shape = (self.blocks, self.shortcut_depth, self.width, self.width)
            self.weights = nn.Parameter(torch.zeros(shape, **factory))
        else:
            self.weights = nn.ParameterList(
                torch.zeros(shape, **factory) for shape in self.shapes * self.blocks
            )
        self.bias = nn.Parameter(torch.zeros(blocks, self.hidden, **factory)) if bias else None

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Shapes (out, in) of one block's matrices, input to output."""
        widths = [self.width] + [self.hidden] * (self.shortcut_depth - 1) + [self.width]
        return [(rows, columns) for columns, rows in zip(widths, widths[1:], strict=False)]

    @property
    def depth(self) -> int:
        """Number of weight layers, blocks times shortcut depth."""
        return self.blocks * self.shortcut_depth

    @property
    def is_linear(self) -> bool:
        """True if no activation is set; a bias keeps a net affine, not linear."""
        return self.pre is None and self.mid is None and self.post is None and self.bias is None

    def layers(self) -> list[Tensor]:
        """All weight matrices, block by block, input to output; views into ``weights``."""
        if isinstance(self.weights, Tensor):
            return [w for block in self.weights.unbind(-4) for w in block.unbind(-3)]
        return list(self.weights)

    def definition5_order(self) -> Tensor:
        """Permutation from the parameter vector to the paper's order.

        ``hessian[order][:, order]`` is in the order of Definition 5: block, layer, column, row; a
        bias is the last column of its matrix.

        Returns:
            (P,), int64.

        Source:
            Li et al., arXiv:1611.01186, Definition 5.
        """
        return torch.cat([grid.mT.reshape(-1) for grid in self.positions()])

    def positions(self) -> list[Tensor]:
        """Positions of each matrix in the parameter vector.

        Returns:
            An int64 grid per layer, (out, in), with a column for the bias where there is one, in
            the order of :meth:`layers`.
        """
        starts, position = {}, 0
        for parameter in self.parameters():
            starts[parameter] = position
            position += parameter.numel()
        if isinstance(self.weights, Tensor):
            whole_grid = torch.arange(self.weights.numel()).view(self.weights.shape)
            grids = list((starts[self.weights] + whole_grid).flatten(0, 1))
        else:
            grids = [starts[w] + torch.arange(w.numel()).view(w.shape) for w in self.weights]
        if self.bias is not None:
            columns = (starts[self.bias] + torch.arange(self.bias.numel())).view(self.blocks, -1, 1)
            for block, column in enumerate(columns):
                first = block * self.shortcut_depth
                grids[first] = torch.cat([grids[first], column], dim=1)
        return grids

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., samples, width) to the same shape; ValueError for another width."""
        if x.shape[-1] != self.width:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, needs a last axis of the net's width {self.width}"
            )
        layers, n = self.layers(), self.shortcut_depth
        for block in range(self.blocks):
            z = x if self.pre is None else self.pre(x)
            for position, weight in enumerate(layers[block * n : block * n + n]):
                if position and self.mid is not None:
                    z = self.mid(z)
                z = z @ weight.mT
                if position == 0 and self.bias is not None:
                    z = z + self.bias[..., block, :].unsqueeze(-2)
            z = z if self.post is None else self.post(z)
            x = x + z if self.shortcut else z
        return x

    def extra_repr(self) -> str:
        """The net's structure, for ``repr``."""
        parts = [str(self.width), f"blocks={self.blocks}", f"shortcut_depth={self.shortcut_depth}"]
        for name in ("pre", "mid", "post"):
            if (function := getattr(self, name)) is not None:
                parts.append(f"{name}={getattr(function, '__name__', repr(function))}")
        parts += [] if self.shortcut else ["shortcut=False"]
        parts += [f"hidden={self.hidden}"] if self.hidden != self.width else []
        return ", ".join(parts + (["bias=True"] if self.bias is not None else []))


def draw_weights(
    init: str,
    shape: Sequence[int],
    *,
    generator: torch.Generator | int = 0,
    scale: float = 0.01,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    r"""Draw initial weight matrices, any number at once.

    ``xavier``: entries of variance 2 / (fan_in + fan_out). ``kaiming``: 2 / fan_in. ``orthogonal``:
    uniform (Haar) on the orthogonal matrices; orthonormal rows or columns when rectangular.
    ``near_zero``: ``scale`` times ``xavier``. ``zero``: zero. Other entries are normal.

    Args:
        init: A ``"matrix"`` row of ``resid_theory.initializations``.
        shape: (..., out, in).
        generator: A generator or a seed; its device is where the numbers are drawn.
        scale: Factor of ``near_zero``. Default from the paper's Appendix B as recalled ("a small
            constant"); its value is a choice of this toolkit.
        dtype: Of the result; numbers are drawn in float64.

    Returns:
        (..., out, in), on the generator's device.

    Raises:
        ValueError: If the name is unknown, the shape has fewer than two axes, the scale is not
            positive or the generator is neither.

    Source:
        Li et al., arXiv:1611.01186, Appendix B. Haar by QR with the signs of R's diagonal: Mezzadri
        2007, "How to generate random matrices from the classical compact groups".
    """
    check_choice("init", init, initializations_for("matrix"))
    if len(shape) < 2:
        raise ValueError(f"shape: got {tuple(shape)}, needs (..., out, in)")
    factor = check_positive("scale", scale) if INITIALIZATIONS[init].scaled else 1.0
    source = as_generator(generator)
    return draw_initial(init, shape, source, factor=factor, weight_shape=shape[-2:]).to(dtype)


def initialize(
    net: ShortcutNet, init: str, *, generator: torch.Generator | int = 0, scale: float = 0.01
) -> ShortcutNet:
    """Draw a net's weights in place; biases become zero.

    Args:
        net: The net.
        init: ``"xavier"``, ``"orthogonal"``, ``"kaiming"``, ``"zero"`` or ``"near_zero"``;
            :func:`networks.draw_weights` has their definitions.
        generator: A generator or a seed.
        scale: Factor of ``near_zero``.

    Returns:
        The same net.

    Raises:
        ValueError: If the net is not a ``ShortcutNet``, the name is unknown, the scale is not
            positive or the generator is neither.

    Source:
        Li et al., arXiv:1611.01186, Appendix B.
    """
    if not isinstance(net, ShortcutNet):
        raise ValueError(f"net: got {type(net).__name__}, needs a ShortcutNet")
    source = as_generator(generator)
    with torch.no_grad():
        targets = [net.weights] if isinstance(net.weights, Tensor) else list(net.weights)
        for weight in targets:
            weight.copy_(draw_weights(init, weight.shape, generator=source, scale=scale))
        if net.bias is not None:
            net.bias.zero_()
    return net
