"""Layers, blocks, depths and initial weights that the convolutional networks share."""

import functools
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import ParamSpec

import torch
from torch import Tensor, nn

from resid_theory._check import as_generator, check_choice, check_int
from resid_theory.identity import identity_map, initialize_layer
from resid_theory.initializations import initializations_for, undrawn

Parts = list[tuple[str, nn.Module]]
_Arguments = ParamSpec("_Arguments")


def recorded(build: Callable[_Arguments, nn.Sequential]) -> Callable[_Arguments, nn.Sequential]:
    """Decorate a public builder: its nets carry their call as ``net.architecture``, as JSON can."""
    signature = inspect.signature(build)

    @functools.wraps(build)
    def builder(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> nn.Sequential:
        net = build(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        # A torch.Generator has no JSON form and decides nothing but the initial weights.
        arguments = {
            name: value
            for name, value in given.arguments.items()
            if not isinstance(value, torch.Generator)
        }
        record = {"builder": build.__name__, "arguments": arguments}
        net.architecture = record  # type: ignore[assignment]
        return net

    return builder


class IdentityShortcut(nn.Module):
    """Id(x) of a block that changes channels or resolution, as a layer without parameters.

    Args:
        channels: Output channels.
        stride: Keeps every stride-th position.
        rule: ``"repeat"`` ('dup') or ``"truncate"`` (zero-padded channels, option A).

    Source:
        He et al., arXiv:1512.03385, section 3.3, option A; Yu & Tomasi, arXiv:1905.10944, D.3.
    """

    def __init__(self, channels: int, stride: int, rule: str) -> None:
        super().__init__()
        self.channels, self.stride, self.rule = channels, stride, rule

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, c_in, h, w) to (batch, channels, h / stride, w / stride), rounded up."""
        return identity_map(x, self.channels, stride=self.stride, rule=self.rule)

    def extra_repr(self) -> str:
        """The shortcut's settings, for ``repr``."""
        return f"{self.channels}, stride={self.stride}, rule={self.rule!r}"


class Block(nn.Module):
    """after(branch(before(x)) + shortcut(before(x))): all layers under one shortcut.

    Args:
        branch: The layers under the shortcut.
        shortcut: The identity by default, an :class:`IdentityShortcut` or a projection.
        before: Layers in front of both, the first activation of a block with a projection.
        after: Layers behind the sum.
    """

    def __init__(
        self,
        branch: nn.Module,
        shortcut: nn.Module | None = None,
        *,
        before: nn.Module | None = None,
        after: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.before = before or nn.Identity()
        self.branch = branch
        self.shortcut = shortcut or nn.Identity()
        self.after = after or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, c_in, h, w) to (batch, c_out, h / stride, w / stride)."""
        x = self.before(x)
        out = self.after(self.branch(x) + self.shortcut(x))
        assert isinstance(out, Tensor)
        return out


def conv(
    inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, bias: bool = False
) -> nn.Conv2d:
    """A convolution of odd kernel with 'same' padding, all zero: nothing is drawn here."""
    layer = undrawn(
        nn.Conv2d, inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=bias
    )
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def head(features: int, classes: int) -> Parts:
    """Global average pool and classifier."""
    linear = undrawn(nn.Linear, features, check_int("classes", classes))
    return [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("fc", linear)]


def sequence(parts: Iterable[tuple[str, nn.Module]]) -> nn.Sequential:
    """An ``nn.Sequential`` of named layers; ``net[i:j]`` keeps the names."""
    return nn.Sequential(OrderedDict(parts))


def depth_to_n(depth: int, per: int, extra: int) -> int:
    """The n of a depth per * n + extra; ValueError with the nearest depths if there is none."""
    n, rest = divmod(check_int("depth", depth) - extra, per)
    if rest == 0 and n >= 1:
        return n
    near = [per * m + extra for m in (max(n, 1), max(n, 1) + 1)]
    raise ValueError(
        f"depth: got {depth}, needs {per}n + {extra} with n >= 1; "
        f"the nearest are {near[0]} and {near[1]}"
    )


def imagenet_blocks(depth: int) -> tuple[int, ...]:
    """Blocks of two layers in each group of an ImageNet net; ValueError for other depths."""
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
    if depth not in blocks:
        raise ValueError(f"depth: got {depth}, needs 18 or 34, the depths of the ImageNet nets")
    return blocks[depth]


@torch.no_grad()
def draw_net(
    net: nn.Sequential,
    init: str,
    generator: torch.Generator | int,
    *,
    identity_init: str | None = None,
    std: float = 1.0,
    bn_init: str = "ones",
) -> nn.Sequential:
    """Draw all weights, from input to output; ``identity_init`` where an identity is inside."""
    check_choice("init", identity_init or init, initializations_for("kernel"))
    check_choice("bn_init", bn_init, ("ones", "uniform"))
    source = as_generator(generator)
    if any(p.is_meta for p in net.parameters()):
        return net  # shapes only, as under torch.device("meta"): there is nothing to draw into
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            has_identity = nn.utils.parametrize.is_parametrized(module, "weight")
            chosen = identity_init if identity_init and has_identity else init
            initialize_layer(module, chosen, generator=source, std=std)
        elif isinstance(module, nn.Linear):
            _uniform(module.weight, 1 / math.sqrt(module.in_features), source)
            _uniform(module.bias, 1 / math.sqrt(module.in_features), source)
        elif isinstance(module, nn.BatchNorm2d) and bn_init == "uniform":
            _uniform(module.weight, 0.5, source)
            module.weight.add_(0.5)
    return net


def _uniform(tensor: Tensor, bound: float, source: torch.Generator) -> None:
    drawn = torch.rand(tensor.shape, generator=source, dtype=torch.float64, device=source.device)
    tensor.copy_(bound * (2 * drawn - 1))
