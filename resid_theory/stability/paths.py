"""Sub-activation paths: the channel of each layer that identities connect with a final feature."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resid_theory._check import check_choice
from resid_theory.identity import (
    AddIdentity,
    id_entries,
    id_rule,
    layer_identity,
    parametrizations_of,
    weight_and_rest,
)
from resid_theory.identity.identity_kernel import RULES
from resid_theory.networks import Block, IdentityShortcut
from resid_theory.runtime.net_entry import is_sequential, layered_net
from resid_theory.runtime.result import Columns, Result

# Each channel of the output comes from the same channel of the input alone.
_CHANNELWISE = (
    nn.ReLU, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten,
    nn.Identity,
)  # fmt: skip


class _Ends(Exception):
    """Ends the paths at a module; the text gives the reason."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelPaths(Result):
    """The sub-activation paths (SAPs) of a net of K final features; path k ends in feature k.

    Attributes:
        names: Layers with paths whose flow is mixed further up, from input to output.
        ends: ``net[: ends[i]]`` is the map from the net's input to layer i's activation.
        top: ``net[:top]`` gives the final features, (batch, K).
        channels: Channel of every path in each layer, (K,), int64; -1 where the path has ended.
        unmeasured: Layers without a path, with the reason.
    """

    names: tuple[str, ...]
    ends: tuple[int, ...]
    top: int
    channels: tuple[Tensor, ...]
    unmeasured: Mapping[str, str]

    headline = "paths through layers"

    def table(self) -> Columns:
        """One row for each layer and path: its channel there, -1 where it has ended."""
        paths = len(self.channels[0])
        return {
            "layer": [name for name in self.names for _ in range(paths)],
            "path": torch.arange(paths).repeat(len(self.names)),
            "channel": torch.cat(self.channels),
        }

    def shown(self) -> Columns:
        """Number of paths in each layer."""
        return {"layer": self.names, "paths": [int((c >= 0).sum()) for c in self.channels]}


def subactivation_paths(net: nn.Module, *, rule: str | None = None) -> ChannelPaths:
    """Follow each final feature down the identity of every layer, as far as there is one.

    Layers are the outputs of ReLUs and of blocks. Layers from which only channel-wise operations
    lead to the features are left out: nothing is mixed there, and their flow is dominant by
    definition.

    Args:
        net: A net of this library: an ``nn.Sequential`` whose convolutions are marked with the rule
            of their identity or lie in blocks, and which ends in average pool, flatten, linear.
        rule: Identity assumed in convolutions whose design has none, such as those of plain blocks:
            ``"repeat"`` or ``"truncate"``. None: paths end there.

    Returns:
        The paths.

    Raises:
        ValueError: If the net has another form, or no layer with a path, with the reason.

    Source:
        Yu & Tomasi, arXiv:1905.10944, Appendix D.1, for the simplified nets. Differs from the
        paper: other nets, for which it defines no paths, get those of their own identity.

    Example:
        >>> paths = subactivation_paths(rt.simplified_net(8, identity="residual"))
        >>> paths.names[0], paths.channels[0].tolist()[14:18]
        ('relu0', [14, 15, 0, 1])
    """
    if rule is not None:
        check_choice("rule", rule, RULES)
    net = layered_net(net)
    top, features = final_features(net)
    assert isinstance(net, nn.Sequential)
    modules = list(zip(net._modules, net, strict=True))
    points = [i for i in range(top) if isinstance(modules[i][1], (nn.ReLU, Block, nn.Sequential))]
    at = torch.arange(features, device="cpu")
    mixed, reason = False, None
    found: list[tuple[str, int, Tensor]] = []
    unmeasured: dict[str, str] = {}
    for i in reversed(range(min(points, default=0), top)):
        name, module = modules[i]
        if i in points and mixed:
            if reason is None:
                found.append((name, i + 1, at))
            else:
                unmeasured[name] = reason
        if reason is None:
            try:
                at, mixed = _below(module, at, rule), mixed or not isinstance(module, _CHANNELWISE)
            except _Ends as end:
                reason, mixed = f"the paths end above it, at {name}: {end}", True
    if not found:
        raise ValueError(f"net: no layer has a sub-activation path; {reason or 'nothing is mixed'}")
    names, ends, channels = zip(*reversed(found), strict=True)
    return ChannelPaths(names=names, ends=ends, top=top, channels=channels, unmeasured=unmeasured)


def final_features(net: nn.Module) -> tuple[int, int]:
    """Number of modules that lead to the final features, the pooled channels, and of features."""
    modules = list(net) if is_sequential(net) else []
    kinds = (nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear)
    if sum(map(isinstance, modules[-3:], kinds)) < 3:
        raise ValueError(
            f"net: got {type(net).__name__}, needs an nn.Sequential that ends in "
            "AdaptiveAvgPool2d(1), Flatten, Linear, as the nets of this library do, so that every "
            "final feature is the average of one channel"
        )
    pool, _, linear = modules[-3:]
    if pool.output_size not in (1, (1, 1)):
        raise ValueError(f"net: pools to {pool.output_size}, needs one feature for each channel")
    assert isinstance(linear, nn.Linear)
    return len(modules) - 1, linear.in_features


def _below(module: nn.Module, at: Tensor, rule: str | None) -> Tensor:
    """Channels of the paths in a module's input, from those in its output."""
    if isinstance(module, _CHANNELWISE):
        return at
    if isinstance(module, AddIdentity):
        return _through(module.layer, at, module.rule)
    if isinstance(module, nn.Conv2d):
        own = id_rule(module) or rule
        if own is None:
            raise _Ends(
                "a convolution whose design has no identity; rule='repeat' or 'truncate' follows "
                "the identity that it could have; of rt.absorb(net), measure the net before it"
            )
        return _through(module, at, own)
    if isinstance(module, Block):
        at, shortcut = _below(module.after, at, rule), module.shortcut
        if isinstance(shortcut, IdentityShortcut):
            first = next(m for m in module.branch.modules() if isinstance(m, nn.Conv2d))
            shape = (shortcut.channels, first.in_channels)
            at = _followed(id_entries(shape, rule=shortcut.rule), shape[0], at)
        elif not isinstance(shortcut, nn.Identity):
            raise _Ends("its shortcut is a projection, which mixes all channels")
        return _below(module.before, at, rule)
    if is_sequential(module):
        for inner in reversed(module):
            at = _below(inner, at, rule)
        return at
    hint = "; if it adds an identity to one layer, measure rt.to_residual(rt.absorb(net))"
    inside = hint * any(True for _ in module.children())
    raise _Ends(f"{type(module).__name__} is not a layer whose channels can be followed{inside}")


def _through(layer: nn.Module, at: Tensor, rule: str) -> Tensor:
    assert isinstance(layer, nn.Conv2d)
    entries = id_entries(
        layer.weight.shape,
        rule=rule,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )
    # It may be pruned or mixed; alone it is there, even where W - R is rounded to zero.
    if len(parametrizations_of(layer)) > 1 and layer_identity(layer):
        try:
            weight, rest = weight_and_rest(layer)
        except ValueError as error:
            raise _Ends(str(error)) from error
        kept = (weight - rest)[entries] != 0
        entries = tuple(index[kept.cpu()] for index in entries)
    return _followed(entries, layer.out_channels, at)


def _followed(entries: tuple[Tensor, ...], outputs: int, at: Tensor) -> Tensor:
    # One entry more, the last: index -1 reads it and stays -1, for paths that have ended.
    below = torch.full((outputs + 1,), -1, device="cpu")
    below[entries[0]] = entries[1]
    return below[at]
