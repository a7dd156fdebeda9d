r"""The one-to-one mapping between plain and residual nets.

:math:`\theta_p = \tau(\theta_r) = \theta_r + e`, where e is 1 at the ID entries and 0 elsewhere:
the outputs agree everywhere, hence so do all gradients.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resid_theory._check import check_choice
from resid_theory.equivalence.conversion import (
    LINEAR_MAPS,
    Converter,
    bias_of,
    check_no_hooks,
    described,
    effective,
    same,
)
from resid_theory.equivalence.folding import Folding
from resid_theory.identity import (
    RULES,
    AddIdentity,
    DiracWeight,
    DominantWeight,
    id_rule,
    identity_kernel,
    identity_of,
    layer_identity,
    trained_weight,
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

    Residual, dominant and Dirac weights, with other parametrizations before or after them, and
    :class:`identity.AddIdentity` become ordinary layers of the same class. A
    :class:`networks.Block` of convolutions and ReLUs becomes convolutions and ReLUs that carry the
    block's input in extra channels: inner width C_mid + C for a block of two. This needs an
    input >= 0, hence a ReLU in front, and BatchNorm in eval mode, which is folded.

    Additions in the ``forward`` of other modules are not seen and remain. :func:`conversion` says
    what was converted and what not.

    Args:
        net: Any module.

    Returns:
        A new net; the original is not changed. ``nn.Sequential`` keep their length. Its record of
        how it was built (``net.architecture``) gets ``"then": ["to_plain"]``, as in ``fold``.
        Layers used twice and tied weights remain so.

    Raises:
        ValueError: If a block has no plain net (a pre-activation block, an input that may be
            negative, different strides), a BatchNorm in a block is in train mode, the weight beside
            an identity changes whenever it is read, weights that share a parameter differ, or a
            block has hooks or a forward of its own.

    Source:
        Yu & Tomasi, arXiv:1905.10944, section 3; blocks of several convolutions are derived here.

    Example:
        >>> net = rt.simplified_net(20, identity="residual")
        >>> plain = to_plain(net)
        >>> torch.equal(plain.conv1.weight, net.conv1.weight)
        True
    """
    plain = _Plain(net, "to_plain")
    new = plain.convert(plain.net, "")
    plain.leave(new, "carries no identity", additions=True)
    return plain.finished(
        new, "no weight has a ResidualWeight, DominantWeight or DiracWeight, and there is no "
        "AddIdentity and no networks.Block; additions in a module's forward are not seen"
    )  # fmt: skip


class _Plain(Folding):
    """One conversion: the new modules by the old ones, and whether the current signal is >= 0."""

    def __init__(self, net: nn.Module, call: str) -> None:
        super().__init__(net, call)
        self.nonnegative = False
        self._known: dict[nn.Module, tuple[nn.Module, bool, bool, bool]] = {}

    def convert(self, module: nn.Module, name: str) -> nn.Module:
        """The plain module in a module's place; one that is used twice remains one."""
        before = self.nonnegative
        if module in self._known:
            new, needed, after, has_block = self._known[module]
            if has_block and needed and not before:
                raise ValueError(
                    f"net: {name!r} is used twice, only once behind a ReLU; its blocks need a ReLU "
                    "in front both times"
                )
            self.nonnegative = after and (before or not needed)
            return new
        has_block = any(isinstance(part, Block) for part in module.modules())
        old = described(module)
        new = self._new(module, name)
        if new is not module:
            self.converted[name] = old, described(new)
        if type(module) is nn.ReLU:
            self.nonnegative = True
        elif isinstance(module, Block):
            self.nonnegative = type(module.after) is nn.ReLU
        else:
            self.nonnegative &= type(module) in (nn.Sequential, *_KEEP_SIGN)
        self._known[module] = new, before, self.nonnegative, has_block
        return new

    def _new(self, module: nn.Module, name: str) -> nn.Module:
        for base in (AddIdentity, Block):
            if isinstance(module, base):
                check_no_hooks(module, name)
                if type(module).forward is not base.forward or "forward" in vars(module):
                    raise ValueError(
                        f"net: {name!r} is a {type(module).__name__} with a forward of its own, "
                        f"needs that of {base.__name__}"
                    )
        if isinstance(module, AddIdentity):
            layer = module.layer
            weight = effective(layer, f"{name}.layer".lstrip("."))
            weight += identity_of(layer, module.rule)
            return self.rebuilt(layer, name, weight, bias_of(layer))
        if isinstance(module, LINEAR_MAPS):
            if layer_identity(module) is None:
                return module
            return self.rebuilt(module, name, effective(module, name), bias_of(module))
        if isinstance(module, Block):
            new = _widened(module, name, self)
            inside = [key for key in self.converted if key.startswith(f"{name}." if name else "")]
            for key in inside:  # folded on the way
                del self.converted[key]
            return new
        for key, child in list(module._modules.items()):
            # Only a Sequential is known to call its children in order.
            self.nonnegative &= type(module) is nn.Sequential
            if child is not None and key != "parametrizations":
                module._modules[key] = self.convert(child, f"{name}.{key}" if name else key)
        return module


def _widened(block: Block, name: str, plain: _Plain) -> nn.Module:
    """Convolutions that carry the block's input beside the branch and add it in the last one."""
    convs = _branch(block, name, plain)
    if not (plain.nonnegative or len(convs) == 1):
        raise ValueError(
            f"net: block {name!r} has {len(convs)} convolutions and an input that may be negative, "
            "which the ReLU inside would set to 0; needs a ReLU in front of the block"
        )
    join, offset = _shortcut(block, name, convs, plain)
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
        new.add_module(f"conv{position + 1}", plain.rebuilt(conv, name, weight, bias))
        if not last:
            new.add_module(f"relu{position + 1}", nn.ReLU())
    if not isinstance(block.after, nn.Identity):
        new.add_module("after", block.after)
    return new.train(block.training)


def _branch(block: Block, name: str, plain: _Plain) -> list[nn.Conv2d]:
    """The convolutions of a block of convolutions with ReLUs between them, BatchNorm folded."""
    parts = _parts(plain.part(block.branch, f"{name}.branch".lstrip(".")))
    convs, between = parts[::2], parts[1::2]
    fits = len(parts) % 2 == 1 and all(type(part) is nn.ReLU for part in between)
    if not fits or not isinstance(block.before, nn.Identity):
        kinds = ", ".join(type(part).__name__ for part in [block.before, *parts])
        raise ValueError(
            f"net: block {name!r} computes {kinds} beside its shortcut; only convolutions with "
            "ReLUs between them have a plain net, a pre-activation block has none"
        )
    for conv in convs:
        # Exactly this class: one with a forward of its own may not add what is put beside it.
        if type(conv) is not nn.Conv2d or conv.groups != 1:
            raise ValueError(f"net: block {name!r} needs nn.Conv2d without groups, got {conv}")
    return [conv for conv in convs if isinstance(conv, nn.Conv2d)]


def _shortcut(
    block: Block, name: str, convs: list[nn.Conv2d], plain: _Plain
) -> tuple[Tensor, Tensor]:
    """A block's shortcut as a matrix (out, in) and an offset (out,)."""
    shortcut, like = block.shortcut, convs[-1].weight
    outputs, inputs = len(like), convs[0].in_channels
    offset = like.new_zeros(outputs)
    if isinstance(shortcut, (nn.Identity, IdentityShortcut)):
        rule = getattr(shortcut, "rule", "repeat")
        matrix = identity_kernel((outputs, inputs), rule=rule, dtype=like.dtype, device=like.device)
        stride: tuple[int, ...] = (getattr(shortcut, "stride", 1),) * 2
    else:
        parts = _parts(plain.part(shortcut, f"{name}.shortcut".lstrip(".")))
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

    :func:`conversion` says what was converted and what not.

    Args:
        net: Any module of plain layers; residual layers keep their V.
        layers: Names of the layers under a shortcut. By default those marked by the builders of
            this toolkit, otherwise all linear layers but the first and last that can have an
            identity.
        rule: ``"repeat"`` or ``"truncate"``; by default the layers' own, otherwise ``"repeat"``.
        explicit: True for Id(x) added to the layer's output instead of I to its weight.

    Returns:
        A new net; the original is not changed. Layers used twice and tied weights remain so.

    Raises:
        ValueError: If a name is unknown; if a named or marked layer has no identity kernel, is a
            Dirac or a dominant layer, has another parametrization or shares its weight with a layer
            that is not converted; or if there is no layer to convert.

    Source:
        Yu & Tomasi, arXiv:1905.10944, eq. (1).

    Example:
        >>> net = rt.simplified_net(20)
        >>> x = torch.ones(1, 3, 32, 32)
        >>> bool((to_residual(net)(x) - net(x)).abs().max() < 1e-5)
        True
    """
    if rule is not None:
        check_choice("rule", rule, RULES)
    converter = Converter(net, "to_residual")
    new = converter.net
    modules = dict(new.named_modules())
    names, chosen = _chosen(modules, layers)
    for name in names:
        old = modules[name]
        try:
            _check_ties(modules, names, name)
            made = _residual(converter, old, name, rule, explicit)
        except ValueError as error:
            if chosen:
                raise
            converter.left[name] = str(error).removeprefix(f"net: layer {name!r} ")
            continue
        if made is old:
            converter.left[name] = "is residual already"
            continue
        converter.converted[name] = described(old), described(made)
        if old is new:
            new = made
        for module in list(new.modules()):  # everywhere: a layer used twice remains one layer
            for key, child in module._modules.items():
                if child is old:
                    module._modules[key] = made
    converter.leave(new, "is not under a shortcut" if chosen else "is the first or last layer")
    return converter.finished(new, "the chosen layers are residual already, or cannot be")


def _chosen(modules: dict[str, nn.Module], layers: Sequence[str] | None) -> tuple[list[str], bool]:
    """Names of the layers under a shortcut, and whether anybody or any builder named them."""
    maps = [name for name, m in modules.items() if isinstance(m, (AddIdentity, *LINEAR_MAPS))]
    inner = {f"{name}.layer" for name in maps if isinstance(modules[name], AddIdentity)}
    maps = [name for name in maps if name not in inner]
    if layers is not None:
        names = [check_choice("layers", name, maps) for name in layers]
        chosen = True
    else:
        marked = [m for m in maps if isinstance(modules[m], AddIdentity) or id_rule(modules[m])]
        names, chosen = marked or maps[1:-1], bool(marked)
    if not names:
        raise ValueError(
            "layers: got none, and the net has no layer between its first and last; needs names of "
            "nn.Linear or convolutions"
        )
    return names, chosen


def _check_ties(modules: dict[str, nn.Module], names: Sequence[str], name: str) -> None:
    """Raise a ValueError if a layer that is not converted has the weight of one that is."""
    own = [modules[name]._parameters.get("weight")]
    for other, module in modules.items():
        shares = any(p is not None and p is own[0] for p in module._parameters.values())
        if shares and module is not modules[name] and other not in names:
            raise ValueError(
                f"net: layers {name!r} and {other!r} share a parameter, which cannot hold both "
                "W and W - I; needs both among the layers, or weights of their own"
            )


def _residual(
    converter: Converter, layer: nn.Module, name: str, rule: str | None, explicit: bool
) -> nn.Module:
    """The residual layer that computes the same; the given one if it is that already."""
    beside = isinstance(layer, AddIdentity)
    plain = layer.layer if isinstance(layer, AddIdentity) else layer
    inside = layer_identity(plain)
    if isinstance(inside, (DiracWeight, DominantWeight)) or beside and inside is not None:
        kind = "its identity twice" if beside else f"a {type(inside).__name__}"
        raise ValueError(
            f"net: layer {name!r} has {kind}, so that its parameters are not those of a residual "
            "layer; convert the net with to_plain first"
        )
    rule = rule or id_rule(plain) or "repeat"
    held = trained_weight(plain, name)
    try:
        identity = identity_of(plain, rule)
    except ValueError as reason:
        raise ValueError(f"net: layer {name!r} has no identity kernel; {reason}") from reason
    own = None if inside is None else inside.identity
    if isinstance(layer, AddIdentity):
        own = identity_of(plain, layer.rule)
    keeps = own is not None and same(own, identity)
    if keeps and beside == explicit:
        return layer
    with torch.no_grad():
        weight = held if keeps else held - identity + (0 if own is None else own)
    new = converter.rebuilt(plain, name, weight, bias_of(plain))
    if explicit:
        return AddIdentity(new, rule)
    v = new.get_parameter("weight")
    value = v.detach().clone()
    with_identity(new, "residual", rule=rule)
    with torch.no_grad():  # torch keeps the parameter and any tie; its value may have been rounded
        v.copy_(value)
    return new
