"""Feed-forward and shortcut nets as a chain of linear layers and elementwise activations."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resid_theory.activations import Activation
from resid_theory.networks.shortcut import ShortcutNet
from resid_theory.theory.linear.linear_nets import Unit

__all__ = ["LayerChain", "LayerUnit", "chain_of"]

_ELEMENTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
    nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.ReLU6, nn.Tanhshrink,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerUnit(Unit):
    """A unit of a linear net with biases and activations; its shortcut is the identity, or None.

    Attributes:
        biases: One for each layer, None where there is none.
        before: Activation in front of each layer, None for the identity.
        after: Activation behind the last layer.
    """

    biases: Sequence[Tensor | None]
    before: Sequence[Activation | None]
    after: Activation | None


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerChain:
    """A net as a chain of units.

    Attributes:
        units: From input to output.
        order: Position, in torch's parameter vector, of every entry of all matrices (W | b), layer
            by layer and row by row; None when that is the order already.
    """

    units: list[LayerUnit]
    order: Tensor | None

    @property
    def is_linear(self) -> bool:
        """True if no layer has an activation or a bias."""
        return all(
            unit.after is None and not any(unit.before) and all(b is None for b in unit.biases)
            for unit in self.units
        )

    @property
    def layers(self) -> list[Tensor]:
        """All weight matrices, from input to output."""
        return [weight for unit in self.units for weight in unit.weights]

    @property
    def augmented_sizes(self) -> list[int]:
        """Number of parameters of each layer, bias included."""
        return [
            weight.numel() + (0 if bias is None else len(weight))
            for unit in self.units
            for weight, bias in zip(unit.weights, unit.biases, strict=True)
        ]


def chain_of(net: nn.Module) -> LayerChain | None:
    """A net in eval mode as a chain with weights in float64, or None when it is not one."""
    # Chains are ShortcutNet, nn.Linear and nn.Sequential (nested too) of linear layers and
    # elementwise activations, all parameters trainable, none shared, no hooks.
    modules = list(net.modules())
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    if hooked or not all(p.requires_grad for p in net.parameters()):
        return None
    every = [p for _, p in net.named_parameters(remove_duplicate=False)]
    if len({id(p) for p in every}) != len(every):  # one tensor in two layers
        return None
    if type(net) is ShortcutNet:
        return _shortcut_chain(net)
    flat = _flatten(net)
    return None if flat is None else _sequential_chain(flat)


def _flatten(net: nn.Module) -> list[nn.Module] | None:
    if type(net) is nn.Sequential:
        parts = [_flatten(child) for child in net]
        return None if any(p is None for p in parts) else [m for p in parts for m in p or []]
    known = (nn.Linear, nn.Identity, nn.Flatten, nn.Dropout, *_ELEMENTWISE)
    return [net] if type(net) in known else None


def _exact(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.float64)


def _shortcut_chain(net: ShortcutNet) -> LayerChain:
    layers, n = [_exact(w) for w in net.layers()], net.shortcut_depth
    biases: list[Tensor | None] = [None] * net.blocks
    if net.bias is not None:
        biases = list(_exact(net.bias))
    units = [
        LayerUnit(
            weights=tuple(layers[r * n : r * n + n]),
            shortcut=torch.eye(net.width).to(layers[0]) if net.shortcut else None,
            biases=[biases[r], *[None] * (n - 1)],
            before=[net.pre, *[net.mid] * (n - 1)],
            after=net.post,
        )
        for r in range(net.blocks)
    ]
    order = None
    if net.bias is not None:
        order = torch.cat([grid.reshape(-1) for grid in net.positions()])
    return LayerChain(units=units, order=order)


def _sequential_chain(modules: list[nn.Module]) -> LayerChain | None:
    linears = [m for m in modules if isinstance(m, nn.Linear)]
    first = next((i for i, m in enumerate(modules) if isinstance(m, nn.Linear)), None)
    flattens = [i for i, m in enumerate(modules) if isinstance(m, nn.Flatten)]
    if first is None or len(set(linears)) != len(linears) or any(i > first for i in flattens):
        return None
    if any(modules[i].start_dim != 1 or modules[i].end_dim != -1 for i in flattens):
        return None
    gaps: list[list[nn.Module]] = [[]]
    for module in modules:
        if isinstance(module, nn.Linear):
            gaps.append([])
        elif isinstance(module, _ELEMENTWISE):
            gaps[-1].append(module)
    acts = [_composed(gap) for gap in gaps]
    weights = [_exact(m.weight) for m in linears]
    biases = [None if m.bias is None else _exact(m.bias) for m in linears]
    try:
        unit = LayerUnit(weights=tuple(weights), biases=biases, before=acts[:-1], after=acts[-1])
    except ValueError:  # widths that do not chain: the net itself says so when it runs
        return None
    if all(b is None for b in biases):
        return LayerChain(units=[unit], order=None)
    pieces, position = [], 0
    for weight, bias in zip(weights, biases, strict=True):
        grid = position + torch.arange(weight.numel()).view(weight.shape)
        position += weight.numel()
        if bias is not None:
            column = position + torch.arange(len(bias)).unsqueeze(1)
            grid = torch.cat([grid, column], dim=1)
            position += len(bias)
        pieces.append(grid.reshape(-1))
    return LayerChain(units=[unit], order=torch.cat(pieces))


def _composed(modules: list[nn.Module]) -> Activation | None:
    """Activations one after the other as one function that overwrites nothing."""
    if not modules:
        return None
    steps = [copy.copy(module) for module in modules]
    for step in steps:
        if hasattr(step, "inplace"):
            step.inplace = False  # type: ignore[assignment]  # would overwrite the value that its derivative is taken at

    def composed(z: Tensor) -> Tensor:
        for step in steps:
            z = step(z)
        return z

    return composed
