r"""The one-to-one mapping between plain and residual nets.

:math:`\theta_p = \tau(\theta_r) = \theta_r + e`, where e is 1 at the ID entries and 0 elsewhere:
the outputs agree everywhere, hence so do all gradients.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import nn

from resid_theory._check import check_choice, check_names
from resid_theory.equivalence.absorption import torch_layer
from resid_theory.equivalence.block_verdicts import carriers, is_nonnegative, widened
from resid_theory.equivalence.conversion import (
    LINEAR_MAPS,
    Converter,
    bias_of,
    check_no_hooks,
    described,
    effective,
    in_modes_of,
    same,
)
from resid_theory.equivalence.net_graph import NotOneLayer
from resid_theory.equivalence.one_layer import layer_between
from resid_theory.equivalence.shortcut_paths import Piece, paths_in
from resid_theory.equivalence.tracing import parts_of
from resid_theory.identity import (
    RULES,
    AddIdentity,
    DiracWeight,
    DominantWeight,
    id_rule,
    identity_of,
    layer_identity,
    trained_weight,
    with_identity,
)
from resid_theory.networks import Block
from resid_theory.runtime.net_state import copied


def to_plain(net: nn.Module) -> nn.Module:
    """Convert to the plain net that computes the same: identities become part of the weights.

    Residual, dominant and Dirac weights, with other parametrizations before or after them, and
    :class:`identity.AddIdentity` become ordinary layers of the same class. A
    :class:`networks.Block` of linear layers and ReLUs becomes layers and ReLUs that carry the
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
        ValueError: If a block has no plain net (an input that may be negative, different strides,
            a sum of branches), a BatchNorm in a block is in train mode, the weight beside an
            identity changes whenever it is read, weights that share a parameter differ, or a block
            has hooks or a forward of its own.

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
        "AddIdentity and no networks.Block; additions in a module's forward: rt.absorb"
    )  # fmt: skip


class _Plain(Converter):
    """One conversion: the new modules by the old ones, and graphs that show signs of inputs."""

    def __init__(self, net: nn.Module, call: str) -> None:
        super().__init__(net, call)
        self._known: dict[nn.Module, nn.Module] = {}
        has_block = any(isinstance(part, Block) for part in self.net.modules())
        self._graphs = parts_of(copied(self.net))[0].values() if has_block else ()

    def convert(self, module: nn.Module, name: str) -> nn.Module:
        """The plain module in a module's place; one that is used twice remains one."""
        if module not in self._known:
            old, new = described(module), self._new(module, name)
            if new is not module:
                self.converted[name] = old, described(new)
            self._known[module] = new
        return self._known[module]

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
            try:
                return self._without_shortcut(module, name)
            except NotOneLayer as reason:
                raise ValueError(f"net: block {name!r} has no plain net: {reason}") from reason
        for key, child in list(module._modules.items()):
            if child is not None:
                module._modules[key] = self.convert(child, f"{name}.{key}" if name else key)
        return module

    def _without_shortcut(self, block: Block, name: str) -> nn.Module:
        """Layers that carry a block's input beside its branch and add it in the last one."""
        graphs, refused = parts_of(copied(block), blocks=[""])
        found = [path for graph in graphs.values() for path in paths_in(graph)
                 if not graph.owners(path.total)]  # fmt: skip
        if not found:
            raise NotOneLayer(refused.get("", "it has no layer under its shortcut"))
        path, graph, functions = found[0], found[0].graph, list[Piece]()
        if any("branch" in graph.owners(node) for node in graph.bit
               if graph.is_above(node, path.source)):  # fmt: skip
            raise NotOneLayer("its branch writes into what the shortcut reads")
        pieces = [(path.source, path.total)]
        if path.others:
            other, *more = path.others
            if more:
                raise NotOneLayer("its branch is a sum; needs one chain of layers, or rt.absorb")
            pieces, functions = path.chain(other)
            positive = self._is_nonnegative(name)
            layers, join, units = carriers(path, pieces, functions, positive)
            if not positive or not all(unit.keeps_positive for unit in units):
                raise NotOneLayer(
                    "it has an input that may be negative, or functions that change what is >= 0; "
                    "needs a ReLU in front of the block and ReLUs inside, or rt.absorb"
                )
            layers = widened(layers, join, units, True)
        else:
            layers = [layer_between(graph, *pieces[0])]
        new = nn.Sequential()
        if not isinstance(block.before, nn.Identity):
            new.add_module("before", block.before)
        for n, (layer, piece) in enumerate(zip(layers, pieces, strict=True), 1):
            ends = [piece[1], *(path.terms if n == len(pieces) else ())]
            read = {node.target for end in ends for node in graph.between(piece[0], end)
                    if node.op == "call_module"}  # fmt: skip
            parts = [block.get_submodule(str(target)) for target in sorted(map(str, read))]
            sources = [p for part in parts for p in part.parameters()]
            made = torch_layer(graph, layer, *piece)
            weight, bias = made.get_parameter("weight").detach(), bias_of(made)
            bias = None if bias is None else bias.detach()
            conv = self.rebuilt(made, name, weight, bias, sources)
            new.add_module(f"conv{n}", conv)
            if n < len(pieces):
                between = graph.between(*functions[n - 1])
                if len(between) != 1 or between[0].op != "call_module":
                    raise NotOneLayer("its functions are more than one module between two layers")
                new.add_module(f"relu{n}", block.get_submodule(str(between[0].target)))
        if not isinstance(block.after, nn.Identity):
            new.add_module("after", block.after)
        return in_modes_of(block, new)

    def _is_nonnegative(self, name: str) -> bool:
        """True if a graph shows that whatever goes into a block is >= 0."""
        for graph in self._graphs:
            inside = {node for node in graph.bit if name in graph.owners(node)}
            if inside:
                given = {part for node in inside for part in graph.inputs(node)} - inside
                return bool(given) and all(is_nonnegative(graph, part) for part in given)
        return False


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
            this toolkit, otherwise all linear layers that can have an identity but the first and
            last in the order of ``net.modules()``.
        rule: ``"repeat"`` or ``"truncate"``; by default the layers' own, otherwise ``"repeat"``.
        explicit: True for Id(x) added to the layer's output instead of I to its weight.

    Returns:
        A new net; the original is not changed. Layers used twice and tied weights remain so. A
        warning says how far weights of 16 bits moved, as W - I is rounded.

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
            words = str(error).removeprefix("net: ")
            converter.left[name] = words.removeprefix(f"layer {name!r} ")
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
    if converter.moved:
        warnings.warn(
            f"to_residual: W - I is rounded to 16 bits, so that weights moved by up to "
            f"{converter.moved:.2g}; convert net.float() for the same function", stacklevel=2,
        )  # fmt: skip
    converter.leave(new, "is not under a shortcut" if chosen else "is the first or last layer")
    return converter.finished(new, "the chosen layers are residual already, or cannot be")


def _chosen(modules: dict[str, nn.Module], layers: Sequence[str] | None) -> tuple[list[str], bool]:
    """Names of the layers under a shortcut, and whether anybody or any builder named them."""
    maps = [name for name, m in modules.items() if isinstance(m, (AddIdentity, *LINEAR_MAPS))]
    inner = {f"{name}.layer" for name in maps if isinstance(modules[name], AddIdentity)}
    maps = [name for name in maps if name not in inner]
    if layers is not None:
        names = [check_choice("layers", name, maps) for name in check_names("layers", layers)]
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
    own = modules[name]._parameters.get("weight")
    for other, module in modules.items():
        shares = own is not None and any(p is own for p in module._parameters.values())
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
        given = 0 if own is None else own
        weight = held if keeps else held - identity + given
        if held.element_size() < 4 and not (keeps or held.is_meta):
            gap = weight.double() + identity - held - given
            converter.moved = max(converter.moved, float(gap.abs().max()))
    new = converter.rebuilt(plain, name, weight, bias_of(plain))
    if explicit:
        return in_modes_of(layer, AddIdentity(new, rule))
    v = new.get_parameter("weight")
    value = v.clone()
    with_identity(new, "residual", rule=rule)
    with torch.no_grad():  # torch keeps the parameter and any tie; its value may have been rounded
        v.copy_(value)
    return new
