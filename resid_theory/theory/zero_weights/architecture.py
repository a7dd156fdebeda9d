"""The architecture of a net at zero weights, looked up and checked."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import as_tensor, check_finite
from resid_theory.activations import Activation, AtZero, activation, at_zero, derivatives
from resid_theory.theory.zero_weights.layout import Layout
from resid_theory.theory.zero_weights.row_maps import RowMaps, row_jacobian
from resid_theory.theory.zero_weights.streams import exponential

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, kw_only=True, eq=False)
class Architecture:
    """The architecture and the fixed maps in front of and behind it, looked up and checked."""

    layout: Layout
    bias: bool
    last_bias: bool
    pre: Activation | None
    mid: AtZero
    post: AtZero
    input_map: Tensor | None
    output_map: Tensor | None
    norm: RowMaps

    @classmethod
    def of(
        cls, layout: Layout, biases: tuple[bool, bool], activations: dict[str, Any],
        maps: dict[str, Any], norm: RowMaps,
    ) -> "Architecture":  # fmt: skip
        """Look up the activations, check their values at zero, and read the maps in float64."""
        fixed = {
            name: None if m is None else check_finite(name, as_tensor(name, m).detach().double())
            for name, m in maps.items()
        }
        found = {name: activation(name, given) for name, given in activations.items()}
        net = cls(
            layout=layout, bias=biases[0], last_bias=biases[1], pre=found["pre"],
            mid=at_zero(found["mid"]), post=at_zero(found["post"]), norm=norm, **fixed,
        )  # fmt: skip
        for name in ("mid", "post") if net.n > 1 else ("post",):
            at: AtZero = getattr(net, name)
            if math.isnan(at.slope):
                raise ValueError(
                    f"{name}: the activation has no finite slope at zero, needs one on either side "
                    "(Assumption 3)"
                )
            if not abs(at.value) <= 4 * _EPS:  # round-off of a function of order one
                raise ValueError(
                    f"{name}: the activation is {at.value:.6g} at zero, needs 0 there (Assumption "
                    "3); subtract the value, e.g. 'shifted_softplus' for 'softplus'"
                )
        return net

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.layout.blocks

    @property
    def n(self) -> int:
        """Weight matrices in a block."""
        return self.layout.branch

    @property
    def is_featured(self) -> bool:
        """True if blocks see other than linear functions of the input."""
        return self.pre is not None or self.bias or self.norm.at in ("branch", "stream")

    @property
    def shared_share(self) -> float | None:
        """Share p of the input where all blocks see the same f(p x); None if they do not."""
        reads = self.layout.reads
        if reads is None or self.norm.at == "stream" or len(self.norm.maps) > 1:
            return None
        if not self.is_featured:
            return 1.0
        low, high = exponential(reads).aminmax()
        return low.item() if bool(low == high) else None

    def check_parts(self, has_kink_rule: bool, one_stream: bool) -> None:
        """Refuse what the formulas do not hold for."""
        if has_kink_rule and not one_stream:
            raise ValueError("kink: other rules than 'line' need blocks, without layout and norm")
        if self.n == 1 and self.last_bias:
            raise ValueError("last_bias: a block of one layer has one bias, needs bias=True")
        if self.n == 1 and self.norm.at in ("stream", "write"):
            raise ValueError(
                f"norm_at: got {self.norm.at!r}, for blocks of one layer needs 'branch'"
            )
        if self.last_bias and (self.norm.at in ("stream", "write") or self.post.second != 0):
            raise ValueError(
                "last_bias: needs norm_at='branch' and a post without curvature at zero; behind "
                "others a shift of the stream has no closed form"
            )

    def seen(self, arrived: Tensor, block: int) -> Tensor:
        """Features that the first matrix of a block multiplies, (m, q), with ones for a bias."""
        z = self.norm(arrived, block) if self.norm.at == "branch" else arrived
        z = check_finite("pre(x)", z if self.pre is None else self.pre(z))
        return torch.cat([z, torch.ones_like(z[:, :1])], dim=1) if self.bias else z

    def slopes(self, arrived: Tensor, block: int) -> Tensor:
        """Derivatives of what a block sees in what arrives there, (m, q, width)."""
        if self.norm.at == "branch":
            without = replace(self, bias=False)
            inner = row_jacobian(partial(without.seen, block=block), arrived)
        else:
            inner = torch.diag_embed(derivatives(self.pre, arrived)[0])
        return nn.functional.pad(inner, (0, 0, 0, int(self.bias)))  # ones do not move

    def sights(
        self, x: Tensor, gradients: Tensor
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Inputs of each block, what its first matrix sees, and gradients at what it writes."""
        layout, norm = self.layout, self.norm
        if norm.at == "stream":
            stream = norm.along(x, layout)
            arrived, passed = stream[:-1], norm.back(stream, gradients, layout)
        else:
            arrived, passed = layout.arriving(x), layout.passed_back(gradients)
        if norm.at == "write":
            passed = [g @ norm.slope_at_zero(g, k) for k, g in enumerate(passed)]
        return arrived, [self.seen(u, k).detach() for k, u in enumerate(arrived)], passed

    def direct(self, x: Tensor) -> Tensor:
        """The network's output at zero weights, in front of the output map."""
        if self.norm.at == "stream":
            return self.norm.along(x, self.layout)[-1]
        share = self.layout.direct
        return x @ share.to(x).mT if isinstance(share, Tensor) else share * x

    @property
    def slope(self) -> float:
        """c_n, the product of the slopes at zero along a block."""
        return self.mid.slope ** (self.n - 1) * self.post.slope

    def notes(self, rule: Any) -> tuple[str, ...]:
        """A note on activations without a slope at zero, unless a net gives the sides."""
        inside = (self.mid, self.post) if self.n > 1 else (self.post,)
        sided = not isinstance(rule, str) and self.n < 3
        if sided or not any(at.has_kink for at in inside):
            return ()
        return (
            "an activation has a kink at zero, where no Hessian exists (autograd takes one side): "
            "its slope is the mean of both sides; kink=net takes the sides of a net's weights, "
            "for up to two layers in a block",
        )

    def bend(self, rule: str) -> float:
        """Second derivative of ``post`` at zero, for n = 1 that of the diagonal."""
        if self.n > 1:
            return 0.0
        left, right = self.post.second_left, self.post.second_right
        if rule == "mean":  # every sample falls on either side equally often
            return 0.5 * (left + right)
        if math.isnan(self.post.second):
            raise ValueError(
                f"post: its second derivative jumps at zero from {left:.6g} to {right:.6g}; for "
                "shortcut_depth=1 it is needed there: use kink='mean' or a net"
            )
        return self.post.second

    def widths(self, inputs: int) -> tuple[int, int]:
        """Widths of the network's output and behind the output map; check that maps fit."""
        if self.input_map is not None:
            inputs = _rows("input_map", self.input_map, inputs)
        width = inputs
        if self.layout.widths is not None:
            needed, width = self.layout.widths[0]
            if inputs != needed:
                raise ValueError(f"data x: has {inputs} inputs, the layout reads {needed}")
        last = self.output_map
        return width, width if last is None else _rows("output_map", last, width)

    def check_maps(self, inputs: int, targets: int) -> int:
        """Width of the network's output, after a check that data and maps fit together."""
        width, outputs = self.widths(inputs)
        if outputs != targets:
            raise ValueError(
                f"data y: has {targets} targets, the net has {outputs} outputs; needs equal "
                "numbers (components = classes), or an output_map"
            )
        return width


def _rows(name: str, given: Tensor, columns: int) -> int:
    if given.dim() != 2 or given.shape[1] != columns:
        raise ValueError(f"{name}: got shape {tuple(given.shape)}, needs (rows, {columns})")
    return given.shape[0]
