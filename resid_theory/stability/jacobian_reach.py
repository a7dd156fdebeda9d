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
from resid_theory.stability.jacobian import jacobian_product, products
from resid_theory.stability.norms import row_norms

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


def chain_of_layers(net: nn.Module) -> ModuleChain:
    """A sequential net as a chain; a ValueError if a linear layer lies inside another module."""
    if not is_sequential(net):
        raise ValueError(
            f"net: got {type(net).__name__}, needs an nn.Sequential of layers; rt.absorb keeps one "
            "whose blocks call modules only (nn.ReLU(), not F.relu)"
        )
    modules = _flat(net, "")
    layers = []
    for position, (name, module) in enumerate(modules):
        whole = module.layer if isinstance(module, AddIdentity) else module
        inside = [part for part in module.modules() if isinstance(part, _LAYERS)]
        if inside and inside != [whole]:
            raise ValueError(
                f"net: {name} is a {type(module).__name__} with layers of its own, which may have "
                "a path around them; needs a chain of layers, such as simplified_net or what "
                "rt.absorb(net) makes"
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


class OnwardMap:
    """The map from a module's input z in a chain to the joined outputs of several later modules."""

    def __init__(self, chain: ModuleChain, z: Tensor, start: int, places: Sequence[int]) -> None:
        self.z, self._modules = z, chain.modules[start : places[-1] + 1]
        self._kept = [place - start for place in places]
        with torch.no_grad():
            self._shapes = [part.shape[1:] for part in self._outputs(z[:1].clone())]
        self._sizes = [shape.numel() for shape in self._shapes]

    def _outputs(self, x: Tensor) -> list[Tensor]:
        found = []
        for number, module in enumerate(self._modules):
            x = module(x)
            if number in self._kept:
                found.append(x.clone())  # the next module may work in place
        return found

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs for some input, flattened, (b, entries)."""
        return torch.cat([part.flatten(1) for part in self._outputs(x)], dim=1)

    def norms(self, joined: Tensor) -> Tensor:
        """Norms of each place's part of joined outputs, (places, b), float64, on the CPU."""
        return torch.stack([row_norms(part).cpu() for part in joined.split(self._sizes, 1)])

    def noise(self, source: torch.Generator) -> Tensor:
        """Normal noise of the norm of each sample's z, in root mean square."""
        scale = row_norms(self.z.reshape(len(self.z), -1)) / self.z[0].numel() ** 0.5
        return scale.to(self.z).view(-1, *[1] * (self.z.dim() - 1)) * normal_like(self.z, source)

    def jacobian_norms(self, probes: int, generator: torch.Generator) -> OnwardNorms:
        """Norms of the Jacobians, those of Frobenius by random signs."""
        z, shapes = self.z, self._shapes
        value, product = jacobian_product(self, z, z)
        squares = [torch.zeros(len(z), shape[1:].numel(), dtype=torch.float64)
                   for shape in shapes]  # fmt: skip
        for pushed in products(self, z, "in", probes, generator, _ROWS):
            for total, part, shape in zip(
                squares, pushed.split(self._sizes, 2), shapes, strict=True
            ):
                by_place = part.double().square().unflatten(2, (shape[0], -1))
                total += by_place.sum((0, 2)).cpu() / probes
        sums = [total.sum(1) for total in squares]
        shares = [(total.amax(1) * total.shape[1] / whole).sqrt()
                  for total, whole in zip(squares, sums, strict=True)]  # fmt: skip
        return OnwardNorms(
            products=self.norms(product),
            inputs=row_norms(z.reshape(len(z), -1)).cpu(),
            outputs=self.norms(value),
            frobenius=torch.stack([total.sqrt() for total in sums]),
            spread=torch.stack(shares),
        )


def normal_like(x: Tensor, source: torch.Generator) -> Tensor:
    """Standard normal numbers of x's shape, drawn in float64 where the generator is."""
    drawn = torch.randn(x.shape, generator=source, dtype=torch.float64, device=source.device)
    return drawn.to(x)
