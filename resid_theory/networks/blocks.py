"""What the trunks are made of: layers without a draw, blocks, depths, first weights."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import ParamSpec

import torch
from torch import Tensor, nn

from resid_theory._check import as_generator, check_choice, check_int
from resid_theory.identity import identity_map, initialize_layer

__all__ = [
    "BN_INITS",
    "Block",
    "IdentityShortcut",
    "conv",
    "draw_net",
    "head",
    "layers_of",
    "norm",
    "recorded",
    "sequence",
    "units",
]

BN_INITS = ("ones", "uniform")
_Arguments = ParamSpec("_Arguments")


def recorded(build: Callable[_Arguments, nn.Sequential]) -> Callable[_Arguments, nn.Sequential]:
    """A builder whose nets carry the call that built them, which their checkpoints keep.

    Args:
        build: A public function of the library that returns a net.

    Returns:
        The same function; its nets have ``net.architecture``, with every argument but a
        ``torch.Generator``, which has no JSON form and decides nothing but the first weights.
    """
    signature = inspect.signature(build)

    @functools.wraps(build)
    def builder(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> nn.Sequential:
        net = build(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
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
        """The shortcut of x.

        Args:
            x: (batch, c_in, height, width).

        Returns:
            (batch, channels, height / stride, width / stride), rounded up.
        """
        return identity_map(x, self.channels, stride=self.stride, rule=self.rule)

    def extra_repr(self) -> str:
        """The shortcut's settings, for ``repr``."""
        return f"{self.channels}, stride={self.stride}, rule={self.rule!r}"


class Block(nn.Module):
    """after(branch(before(x)) + shortcut(before(x))): all that lies under one shortcut.

    Args:
        branch: The layers under the shortcut.
        shortcut: The identity, an :class:`IdentityShortcut` or a projection.
        before: What branch and shortcut share, the first activation of a projecting block.
        after: What follows the sum.
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
        """The block's output.

        Args:
            x: (batch, c_in, height, width).

        Returns:
            (batch, c_out, height / stride, width / stride).
        """
        x = self.before(x)
        out = self.after(self.branch(x) + self.shortcut(x))
        assert isinstance(out, Tensor)
        return out


def conv(
    inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, bias: bool = False
) -> nn.Conv2d:
    """A convolution of odd kernel with 'same' padding, all zero: nothing is drawn here."""
    layer: nn.Conv2d = nn.utils.skip_init(
        nn.Conv2d, inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=bias,
        device=torch.get_default_device(),
    )  # fmt: skip
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm with torch's eps 1e-5 and momentum 0.1, weight 1 and bias 0."""
    return nn.BatchNorm2d(channels)


def head(features: int, classes: int) -> list[tuple[str, nn.Module]]:
    """Global average pool and classifier, named."""
    linear = nn.utils.skip_init(
        nn.Linear, features, check_int("classes", classes), device=torch.get_default_device()
    )
    return [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("fc", linear)]


def sequence(parts: Iterable[tuple[str, nn.Module]]) -> nn.Sequential:
    """An ``nn.Sequential`` of named layers; ``net[i:j]`` keeps the names."""
    net = nn.Sequential()
    for name, module in parts:
        net.add_module(name, module)
    return net


def units(depth: int, per: int, extra: int, *, smallest: int = 1) -> int:
    """The n of a depth per * n + extra.

    Args:
        depth: Weight layers.
        per: Layers that one more n adds.
        extra: Layers that every net has.
        smallest: The least n.

    Returns:
        n.

    Raises:
        ValueError: If no n fits; the message names the nearest two depths that do.
    """
    n, rest = divmod(check_int("depth", depth) - extra, per)
    if rest == 0 and n >= smallest:
        return n
    below = max(n, smallest)
    near = [per * m + extra for m in (below, below + 1)]
    raise ValueError(
        f"depth: got {depth}, needs {per}n + {extra} with n >= {smallest}; "
        f"the nearest are {near[0]} and {near[1]}"
    )


def layers_of(stages: dict[int, Sequence[int]], depth: int) -> Sequence[int]:
    """Layers of each stage of a net that exists in a few depths only; ValueError for others."""
    if depth not in stages:
        known = " and ".join(map(str, stages))
        raise ValueError(f"depth: got {depth}, needs one of those that ImageNet nets have: {known}")
    return stages[depth]


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
    """Draw all of a net's weights, layer by layer from input to output.

    Args:
        net: The net; convolutions have bias 0 after it, ``nn.Linear`` torch's own uniform law.
        init: Initialization of the convolutions, see :func:`draw_kernel`.
        generator: A generator or a seed.
        identity_init: Initialization of those with an identity inside; ``init`` if None.
        std: Of a ``"normal"`` draw.
        bn_init: ``"ones"``, torch's BatchNorm weight, or ``"uniform"``, drawn from U(0, 1).

    Returns:
        The same net.

    Raises:
        ValueError: If a name is unknown, or the generator is neither.
    """
    check_choice("bn_init", bn_init, BN_INITS)
    source = as_generator(generator)
    if any(p.is_meta for p in net.parameters()):
        return net  # shapes only, as under torch.device("meta"): nowhere to put a draw
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
