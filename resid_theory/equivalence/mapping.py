r"""The one-to-one mapping between plain and residual nets.

:math:`\theta_p = \tau(\theta_r) = \theta_r + e`, where e is 1 at the ID entries and 0 elsewhere:
the outputs agree everywhere, hence so do all gradients.
"""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resid_theory._check import check_choice
from resid_theory.equivalence.folding import (
    LINEAR_MAPS,
    effective,
    fold_part,
    rebuilt,
    recorded_conversion,
)
from resid_theory.identity import (
    AddIdentity,
    DiracWeight,
    DominantWeight,
    id_rule,
    identity_kernel,
    identity_of,
    layer_identity,
    with_identity,
)
from resid_theory.networks import Block, IdentityShortcut

__all__ = ["to_plain", "to_residual"]

_KEEP_SIGN = (
    nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip


def to_plain(net: nn.Module) -> nn.Module:
    """Convert to the plain net that computes the same: identities become part of the weights.

    Residual, dominant and Dirac weights and :class:`identity.AddIdentity` become ordinary layers of
    the same shape. A :class:`networks.Block` of convolutions and ReLUs becomes convolutions and
    ReLUs that carry the block's input in extra channels: inner width C_mid + C for a block of two.
    This needs an input >= 0, hence a ReLU in front, and BatchNorm in eval mode, which is folded.

    Args:
        net: Any module; shortcuts in other forms are not recognized and remain.

    Returns:
        A new net; the original is not changed. ``nn.Sequential`` keep their length. Its record of
        how it was built (``net.architecture``) gets ``"then": ["to_plain"]``, as in ``fold``.

    Raises:
        ValueError: If a block has no plain net (a pre-activation block, an input that may be
            negative, different strides), a BatchNorm in a block is in train mode, or a weight has
            another parametrization.

    Source:
        Yu & Tomasi, arXiv:1905.10944, section 3; blocks of several convolutions are derived here.

    Example:
        >>> net = rt.simplified_net(20, identity="residual")
        >>> plain = to_plain(net)
        >>> torch.equal(plain.conv1.weight, net.conv1.weight)
        True
    """
    if not isinstance(net, nn.Module):
        raise ValueError(f"net: got {type(net).__name__}, needs an nn.Module")
    return recorded_conversion(net, _Plain().convert(copy.deepcopy(net), ""), "to_plain")


class _Plain:
    """One conversion: the new modules by the old ones, and whether the current signal is >= 0."""

    def __init__(self) -> None:
        self.made: dict[nn.Module, nn.Module] = {}
        self.nonnegative = False

    def convert(self, module: nn.Module, name: str) -> nn.Module:
        # A layer used twice remains one layer; a block depends on what is in front of it.
        if module in self.made and not isinstance(module, Block):
            new = self.made[module]
        else:
            new = self.made[module] = self._new(module, name)
        if isinstance(module, nn.ReLU):
            self.nonnegative = True
        elif isinstance(module, Block):
            self.nonnegative = isinstance(module.after, nn.ReLU)
        else:
            self.nonnegative &= type(module) is nn.Sequential or isinstance(module, _KEEP_SIGN)
        return new

    def _new(self, module: nn.Module, name: str) -> nn.Module:
        if isinstance(module, AddIdentity):
            layer = module.layer
            weight = effective(layer, name) + identity_of(layer, module.rule)
            return rebuilt(layer, weight, layer._parameters.get("bias"))
        if isinstance(module, LINEAR_MAPS):
            weight = effective(module, name)
            return rebuilt(module, weight, module.bias) if layer_identity(module) else module
        if isinstance(module, Block):
            return _widened(module, name, self.nonnegative)
        for key, child in list(module._modules.items()):
            # Only a Sequential is known to call its children in order.
            self.nonnegative &= type(module) is nn.Sequential
            if child is not None:
                module._modules[key] = self.convert(child, f"{name}.{key}" if name else key)
        return module


def _widened(block: Block, name: str, nonnegative: bool) -> nn.Module:
    """Convolutions that carry the block's input beside the branch and add it in the last one."""
    convs = _branch(block, name)
    if not (nonnegative or len(convs) == 1):
        raise ValueError(
            f"net: block {name!r} has {len(convs)} convolutions and an input that may be negative, "
            "which the ReLU inside would set to 0; needs a ReLU in front of the block"
        )
    join, offset = _shortcut(block, name, convs)
    new = nn.Sequential()
    for position, conv in enumerate(convs):
        first, last = position == 0, position == len(convs) - 1
        weight, bias = effective(conv, name), _bias(conv)
        inputs = weight.shape[1] if first else join.shape[1]
        if last:
            placed = _at_tap(conv, join)
            weight = weight + placed if first else torch.cat([weight, placed], dim=1)
            bias = bias + offset
        else:
            # More outputs, which copy the block's input.
            carry = _at_tap(conv, torch.eye(inputs, dtype=weight.dtype, device=weight.device))
            if not first:
                above = weight.new_zeros(len(weight), *carry.shape[1:])
                below = carry.new_zeros(inputs, *weight.shape[1:])
                weight, carry = torch.cat([weight, above], dim=1), torch.cat([below, carry], dim=1)
            weight = torch.cat([weight, carry])
            bias = torch.cat([bias, bias.new_zeros(inputs)])
        new.add_module(f"conv{position + 1}", rebuilt(conv, weight, bias))
        if not last:
            new.add_module(f"relu{position + 1}", nn.ReLU())
    if not isinstance(block.after, nn.Identity):
        new.add_module("after", block.after)
    return new.train(block.training)


def _branch(block: Block, name: str) -> list[nn.Conv2d]:
    """The convolutions of a block of convolutions with ReLUs between them, BatchNorm folded."""
    parts = _parts(fold_part(block.branch, f"{name}.branch"))
    convs, between = parts[::2], parts[1::2]
    fits = len(parts) % 2 == 1 and all(isinstance(part, nn.ReLU) for part in between)
    if not fits or not isinstance(block.before, nn.Identity):
        kinds = ", ".join(type(part).__name__ for part in [block.before, *parts])
        raise ValueError(
            f"net: block {name!r} computes {kinds} beside its shortcut; only convolutions with "
            "ReLUs between them have a plain net, a pre-activation block has none"
        )
    for conv in convs:
        if not isinstance(conv, nn.Conv2d) or conv.groups != 1:
            raise ValueError(f"net: block {name!r} needs nn.Conv2d without groups, got {conv}")
    return [conv for conv in convs if isinstance(conv, nn.Conv2d)]


def _shortcut(block: Block, name: str, convs: list[nn.Conv2d]) -> tuple[Tensor, Tensor]:
    """A block's shortcut as a matrix (out, in) and an offset (out,)."""
    shortcut, like = block.shortcut, convs[-1].weight
    outputs, inputs = len(like), convs[0].in_channels
    offset = like.new_zeros(outputs)
    if isinstance(shortcut, (nn.Identity, IdentityShortcut)):
        rule = getattr(shortcut, "rule", "repeat")
        matrix = identity_kernel((outputs, inputs), rule=rule, dtype=like.dtype, device=like.device)
        stride: tuple[int, ...] = (getattr(shortcut, "stride", 1),) * 2
    else:
        parts = _parts(fold_part(shortcut, f"{name}.shortcut"))
        only = parts[0]
        if len(parts) != 1 or not isinstance(only, nn.Conv2d) or only.kernel_size != (1, 1):
            raise ValueError(f"net: block {name!r} has a shortcut that is no 1x1 convolution")
        matrix, offset, stride = only.weight.detach().flatten(1), _bias(only), only.stride
    strides = tuple(math.prod(conv.stride[axis] for conv in convs) for axis in (0, 1))
    if strides != stride:
        raise ValueError(
            f"net: block {name!r} has stride {stride} on the shortcut and {strides} on the branch, "
            "needs the same"
        )
    return matrix, offset


def _parts(module: nn.Module) -> list[nn.Module]:
    # Not children(), which omits the second use of a module.
    return list(module) if isinstance(module, nn.Sequential) else [module]


def _bias(conv: nn.Conv2d) -> Tensor:
    none = conv.weight.new_zeros(conv.out_channels)
    return none if conv.bias is None else conv.bias.detach()


def _at_tap(conv: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix (out, in) at the identity's tap of a convolution's kernel."""
    assert isinstance(conv, nn.Conv2d)
    tap = identity_kernel(
        (1, 1, *conv.kernel_size), padding=conv.padding, dilation=conv.dilation,
        dtype=matrix.dtype, device=matrix.device,
    )  # fmt: skip
    return matrix[:, :, None, None] * tap


def to_residual(
    net: nn.Module,
    layers: Sequence[str] | None = None,
    *,
    rule: str | None = None,
    explicit: bool = False,
) -> nn.Module:
    """Convert to the residual net that computes the same: V = W - I in the chosen layers.

    Args:
        net: Any module of plain layers; residual layers keep their V.
        layers: Names of the layers under a shortcut. By default those marked by the builders of
            this toolkit, otherwise all linear layers but the first and last.
        rule: ``"repeat"`` or ``"truncate"``; by default the layers' own, otherwise ``"repeat"``.
        explicit: True for Id(x) added to the layer's output instead of I to its weight.

    Returns:
        A new net; the original is not changed.

    Raises:
        ValueError: If a name is unknown, a layer has no identity kernel, is a Dirac or a dominant
            layer or shares its weight with another one, or there is no layer to convert.

    Source:
        Yu & Tomasi, arXiv:1905.10944, eq. (1).

    Example:
        >>> net = rt.simplified_net(20)
        >>> x = torch.ones(1, 3, 32, 32)
        >>> bool((to_residual(net)(x) - net(x)).abs().max() < 1e-5)
        True
    """
    if not isinstance(net, nn.Module):
        raise ValueError(f"net: got {type(net).__name__}, needs an nn.Module")
    new = copy.deepcopy(net)
    modules = dict(new.named_modules())
    for name in _chosen(modules, layers):
        made = _residual(modules[name], name, rule, explicit)
        if modules[name] is new:
            return made
        for module in list(new.modules()):  # everywhere: a layer used twice remains one layer
            for key, child in module._modules.items():
                if child is modules[name]:
                    module._modules[key] = made
    return new


def _chosen(modules: dict[str, nn.Module], layers: Sequence[str] | None) -> list[str]:
    maps = [name for name, m in modules.items() if isinstance(m, (AddIdentity, *LINEAR_MAPS))]
    inner = {f"{name}.layer" for name in maps if isinstance(modules[name], AddIdentity)}
    maps = [name for name in maps if name not in inner]
    if layers is not None:
        names = [check_choice("layers", name, maps) for name in layers]
    else:
        marked = [m for m in maps if isinstance(modules[m], AddIdentity) or id_rule(modules[m])]
        names = marked or maps[1:-1]
    if not names:
        raise ValueError(
            "layers: got none, and the net has no layer between its first and last; needs names of "
            "nn.Linear or convolutions"
        )
    holders: dict[nn.Parameter, str] = {}
    for name, module in modules.items():
        for parameter in module._parameters.values():
            if parameter is None:
                continue
            other = holders.setdefault(parameter, name)
            if other != name and {other, name} & set(names):
                raise ValueError(
                    f"net: layers {other!r} and {name!r} share a parameter, which cannot hold both "
                    "W and W - I; needs weights of their own"
                )
    return names


def _residual(layer: nn.Module, name: str, rule: str | None, explicit: bool) -> nn.Module:
    inside = layer_identity(layer)
    if isinstance(inside, (DiracWeight, DominantWeight)):
        raise ValueError(
            f"net: layer {name!r} has a {type(inside).__name__}, whose parameters are not those of "
            "a residual layer; convert the net with to_plain first"
        )
    plain = layer.layer if isinstance(layer, AddIdentity) else layer
    rule = rule or id_rule(plain) or "repeat"
    weight, bias = effective(plain, name), plain.bias
    assert bias is None or isinstance(bias, Tensor)
    try:
        identity = identity_of(plain, rule)
    except ValueError as reason:
        raise ValueError(f"net: layer {name!r} has no identity kernel; {reason}") from reason
    if inside is not None:
        weight = layer.get_parameter("parametrizations.weight.original")
    elif plain is layer:
        weight -= identity
    new = rebuilt(plain, weight, bias)
    if explicit:
        return AddIdentity(new, rule)
    with_identity(new, "residual", rule=rule)
    with torch.no_grad():  # the old V: I added and subtracted again may round
        new.get_parameter("parametrizations.weight.original").copy_(weight)
    return new
