"""Chains of layers, and Jacobians from one layer to all later ones: one product serves them all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from resid_theory._check import check_int
from resid_theory.data import Batch
from resid_theory.identity import AddIdentity
from resid_theory.runtime.net_entry import inner_net, is_sequential
from resid_theory.stability.jacobian import jacobian_product
from resid_theory.stability.norms import row_norms

__all__ = ["ModuleChain", "OnwardNorms", "chain_of_layers", "onward_norms"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ROWS = 256  # rows in one Jacobian product


@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleChain:
    """A net as a chain of modules, one after another.

    Attributes:
        modules: The modules in the order of the computation; nested ``nn.Sequential`` are flat.
        names: Names of the modules in the net.
        layers: Positions of the modules that are linear layers.
    """

    modules: tuple[nn.Module, ...]
    names: tuple[str, ...]
    layers: tuple[int, ...]

    def layers_from(self, start: int) -> list[int]:
        """Positions of the linear layers from ``start`` on; a ValueError if there is none."""
        check_int("start", start, 0)
        found = [position for position in self.layers if position >= start]
        if not found:
            last = self.layers[-1]
            raise ValueError(f"start: got {start}, the last linear layer is number {last}")
        return found

    def input_of(self, position: int, batch: Batch) -> Tensor:
        """Input of the module at a position; behind the last one, the net's output."""
        z: Any = batch.try_call(nn.Sequential(*self.modules[:position]))
        if not isinstance(z, Tensor) or not z.is_floating_point():
            kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(
                f"data x: the input of module {position} of the chain is {kind}, needs a tensor of "
                "floating point"
            )
        return z

    def outputs(self, z: Tensor, start: int, places: Sequence[int]) -> list[Tensor]:
        """Outputs of the modules at several places, from the input z of module ``start``."""
        found = []
        for position in range(start, places[-1] + 1):
            z = self.modules[position](z)
            if position in places:
                found.append(z.clone())  # the next module may work in place
        return found

    def joined_outputs(self, z: Tensor, start: int, places: Sequence[int]) -> Tensor:
        """The same outputs, flattened and joined, (b, entries)."""
        return torch.cat([part.flatten(1) for part in self.outputs(z, start, places)], dim=1)

    @torch.no_grad()
    def shapes(self, z: Tensor, start: int, places: Sequence[int]) -> list[torch.Size]:
        """Shapes of one sample's outputs at several places."""
        return [part.shape[1:] for part in self.outputs(z[:1].clone(), start, places)]


def chain_of_layers(net: nn.Module) -> ModuleChain:
    """A sequential net as a chain; a ValueError if a linear layer lies inside another module."""
    if not is_sequential(net):
        raise ValueError(f"net: got {type(net).__name__}, needs an nn.Sequential of layers")
    modules = _flat(net, "")
    layers = []
    for position, (name, module) in enumerate(modules):
        whole = module.layer if isinstance(module, AddIdentity) else module
        inside = [part for part in module.modules() if isinstance(part, _LAYERS)]
        if inside and inside != [whole]:
            raise ValueError(
                f"net: {name} is a {type(module).__name__} with layers of its own, which may have "
                "a path around them; needs a chain of layers, such as simplified_net"
            )
        if inside:
            layers.append(position)
    if not layers:
        raise ValueError("net: has no linear layer, needs at least one")
    names, chain = zip(*modules, strict=True)
    return ModuleChain(modules=chain, names=names, layers=tuple(layers))


def _flat(net: nn.Sequential, prefix: str) -> list[tuple[str, nn.Module]]:
    found: list[tuple[str, nn.Module]] = []
    for name, module in zip(net._modules, map(inner_net, net), strict=True):  # also twice the same
        if is_sequential(module):
            found += _flat(module, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", module))
    return found


class OnwardNorms(NamedTuple):
    """Norms of the Jacobians from one layer to several later places, for a batch.

    Attributes:
        products: Norms of J z, (places, b), float64, on the CPU.
        inputs: Norms of z, (b,).
        outputs: Norms of the outputs, (places, b).
        frobenius: Norms of J by probes, (places, b).
        spread: Largest √(positions) times a position's share of ``frobenius``, (places, b): 1 where
            all positions have the same share.
    """

    products: Tensor
    inputs: Tensor
    outputs: Tensor
    frobenius: Tensor
    spread: Tensor


def onward_norms(
    chain: ModuleChain,
    z: Tensor,
    start: int,
    places: Sequence[int],
    *,
    probes: int,
    generator: torch.Generator,
) -> OnwardNorms:
    """Norms of the Jacobians from the input z of module ``start`` to the outputs of later ones."""

    def function(x: Tensor) -> Tensor:
        return chain.joined_outputs(x, start, places)

    def norms(joined: Tensor) -> Tensor:
        return torch.stack([row_norms(part).cpu() for part in joined.split(sizes, 1)])

    value, product = jacobian_product(function, z, z)
    shapes = chain.shapes(z, start, places)
    sizes = [shape.numel() for shape in shapes]
    squares = [torch.zeros(len(z), shape[1:].numel() or 1, dtype=torch.float64) for shape in shapes]
    at_once = min(probes, max(1, _ROWS // len(z)))  # copies of the batch, each with its signs
    for first in range(0, probes, at_once):
        many = z.repeat(min(at_once, probes - first), *[1] * (z.dim() - 1))
        signs = torch.randint(2, many.shape, generator=generator, dtype=torch.int8)
        _, pushed = jacobian_product(function, many, (2 * signs - 1).to(z))
        for total, part, shape in zip(squares, pushed.split(sizes, 1), shapes, strict=True):
            by_place = part.double().square().view(-1, len(z), shape[0], total.shape[1])
            total += by_place.sum((0, 2)).cpu() / probes
    sums = [total.sum(1) for total in squares]
    shares = [
        (total.amax(1) * total.shape[1] / whole).sqrt()
        for total, whole in zip(squares, sums, strict=True)
    ]
    return OnwardNorms(
        products=norms(product),
        inputs=row_norms(z.reshape(len(z), -1)).cpu(),
        outputs=norms(value),
        frobenius=torch.stack([total.sqrt() for total in sums]),
        spread=torch.stack(shares),
    )
