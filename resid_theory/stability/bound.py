"""What the compression bound of Arora et al. is made of. Constants and logarithms are left out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resid_theory._check import as_generator, check_positive
from resid_theory.runtime.preserve import preserved
from resid_theory.stability.jacobian import differentiable
from resid_theory.stability.jacobian_reach import ModuleChain, chain_of_layers, onward_norms
from resid_theory.stability.linear_maps import CONVOLUTIONS, LinearMap
from resid_theory.stability.net_inputs import checked_net, input_batches, placed
from resid_theory.stability.norms import row_norms
from resid_theory.stability.smoothness import activation_contraction

__all__ = ["CompressionBound", "compression_bound"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CompressionBound:
    r"""The quantities of the compression bound, and the effective number of parameters.

    Attributes:
        layers: Names of the linear layers.
        layer_cushions: :math:`\mu_i`, smallest over the samples, (layers,), float64.
        interlayer: :math:`\mu_{i \to}`, smallest over samples and later layers, (layers,).
        spread: :math:`\beta`, largest share of one position in a Jacobian, (layers,); 1 for
            vectors.
        overlap: ⌈kernel side / stride⌉, (layers,); 1 for ``nn.Linear``.
        contraction: c, the largest over the activations.
        output_norm: Largest norm of the net's output.
        margin: γ, in units of the output.
        samples: Number of samples, |S|.
    """

    layers: tuple[str, ...]
    layer_cushions: Tensor
    interlayer: Tensor
    spread: Tensor
    overlap: Tensor
    contraction: float
    output_norm: float
    margin: float
    samples: int

    @property
    def terms(self) -> Tensor:
        """What each layer adds to the sum, (layers,)."""
        cushions = (self.layer_cushions * self.interlayer).square()
        return (self.spread * self.overlap).square() / cushions

    @property
    def effective_parameters(self) -> float:
        r"""The bound's capacity, without constants and logarithms.

        .. math:: c^2 d^2 \max_x \|f(x)\|^2 \sum_i \frac{\beta_i^2 \lceil \kappa_i / s_i \rceil^2}
            {\mu_i^2 \mu_{i \to}^2} \Big/ \gamma^2

        Not a certified bound: the bound's square root of this over m has logarithms and constants
        before it, and needs an interlayer smoothness of at least 3d.

        Source:
            Arora et al., arXiv:1802.05296, Theorems 4.1 and 5.1.
        """
        depth = len(self.layers)
        scale = self.contraction * depth * self.output_norm / self.margin
        return float(scale**2 * self.terms.sum())


def compression_bound(
    net: nn.Module,
    data: Any,
    *,
    margin: float,
    probes: int = 10,
    generator: torch.Generator | int = 0,
    batch: int = 64,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> CompressionBound:
    """Measure what the compression bound of a chain of layers is made of.

    Interlayer cushions of all pairs of layers take one forward product for each layer and probe.

    Args:
        net: An ``nn.Sequential`` whose layers are one chain, Linear or convolutions.
        data: As in :func:`layer_cushions`.
        margin: γ, in units of the output, above 0.
        probes: Random signs for each layer.
        generator: Source of the signs, on the CPU, or a seed.
        batch: Samples taken at once.
        device: As in :func:`layer_cushions`.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The quantities, with layer cushions by the ``"kernel"`` norm of effective weights and
        interlayer cushions by kappa ``"spatial"``.

    Raises:
        ValueError: If the net is no chain, has no activation module, or the margin is not above 0.

    Source:
        Arora et al., arXiv:1802.05296, Definitions 4 to 8 and Theorems 4.1 and 5.1.
    """
    margin, source = check_positive("margin", margin), as_generator(generator)
    contraction = max(activation_contraction(net, data, batch=batch, device=device).values())
    net = placed(checked_net(net), device)
    chain = chain_of_layers(net)
    maps = [LinearMap(name=chain.names[p], module=chain.modules[p]) for p in chain.layers]
    cushions = torch.full((len(maps),), torch.inf, dtype=torch.float64)
    onward, spread, output_norm, samples = cushions.clone(), torch.ones_like(cushions), 0.0, 0
    with preserved(net), differentiable(), torch.no_grad():
        for x in tqdm(input_batches(data, batch, net), disable=not progress, desc="bound"):
            samples += len(x)
            for number, position in enumerate(chain.layers):
                z = chain.run(x.clone(), 0, position)
                below = row_norms(z.reshape(len(z), -1))
                above = row_norms(maps[number].apply(z).reshape(len(z), -1))
                size = row_norms(maps[number].weight.reshape(1, -1))
                cushions[number] = min(float(cushions[number]), _least(above / below / size))
                found, share = _onward(chain, number, z, probes, source)
                onward[number] = min(float(onward[number]), found)
                spread[number] = max(float(spread[number]), share)
            output = chain.run(x.clone(), 0, len(chain.modules))
            output_norm = max(output_norm, float(row_norms(output.reshape(len(x), -1)).max()))
    return CompressionBound(
        layers=tuple(linear.name for linear in maps),
        layer_cushions=cushions,
        interlayer=onward,
        spread=spread,
        overlap=torch.tensor([_overlap(linear) for linear in maps], dtype=torch.float64),
        contraction=contraction,
        output_norm=output_norm,
        margin=margin,
        samples=samples,
    )


def _least(values: Tensor) -> float:
    return float(values.nan_to_num(torch.inf).min())


def _onward(
    chain: ModuleChain, number: int, z: Tensor, probes: int, source: torch.Generator
) -> tuple[float, float]:
    """Smallest interlayer cushion from a layer's output to all later ones, and the spread."""
    position, later = chain.layers[number], list(chain.layers[number + 1 :])
    z = chain.modules[position](z.clone())
    kappa = z.shape[2:].numel() ** 0.5
    itself = kappa / z[0].numel() ** 0.5  # J = I from a layer to itself
    if not later:
        return itself, 1.0
    norms = onward_norms(chain, z, position + 1, later, probes=probes, generator=source)
    cushions = kappa * norms.products / norms.frobenius / norms.inputs
    return min(itself, _least(cushions)), float(norms.spread.nan_to_num(1.0).max())


def _overlap(linear: LinearMap) -> int:
    layer = linear.layer
    if not isinstance(layer, CONVOLUTIONS):
        return 1
    sides = zip(layer.kernel_size, layer.stride, strict=True)
    return max(-(-side // stride) for side, stride in sides)
