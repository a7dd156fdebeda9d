"""Quantities of the compression bound of Arora et al., without constants and logarithms."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import as_generator, check_int, check_positive
from resid_theory.data import Data
from resid_theory.runtime.net_entry import layered_net
from resid_theory.runtime.preserve import preserved
from resid_theory.runtime.result import Result
from resid_theory.stability.jacobian import differentiable
from resid_theory.stability.jacobian_reach import OnwardMap, chain_of_layers
from resid_theory.stability.linear_uses import LinearUse
from resid_theory.stability.map_observer import MapObserver
from resid_theory.stability.norms import row_norms
from resid_theory.stability.smoothness import activations_of, contractions


@dataclass(frozen=True, kw_only=True, eq=False)
class CompressionBound(Result):
    r"""Quantities of the compression bound, and the effective number of parameters.

    Attributes:
        layers: Names of the linear layers.
        layer_cushions: :math:`\mu_i`, smallest over the samples, (layers,), float64.
        interlayer: :math:`\mu_{i \to}`, smallest over samples and later layers, (layers,).
        spread: :math:`\beta`, largest √(positions) times a position's share of a Jacobian's norm,
            (layers,); 1 for vectors. Of positions and samples it takes the largest estimate, which
            lies above the truth: 1.3 with 10 probes where all shares are equal, 1.1 with 100.
        overlap: ⌈kernel side / stride⌉, (layers,); 1 for ``nn.Linear``.
        contraction: c, the largest activation contraction.
        output_norm: Largest norm of the net's output over the samples.
        margin: γ, in units of the output.
        samples: Number of samples, |S|.
        notes: What was done to the data on the way into the net.
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
    notes: tuple[str, ...] = ()

    headline = (
        "compression bound, {0.samples} samples: {0.effective_parameters:.4g} effective parameters "
        "(contraction {0.contraction:.4g}, largest output {0.output_norm:.4g}, margin "
        "{0.margin:.4g})"
    )
    tabulated = {
        "layer": "layers",
        "layer_cushion": "layer_cushions",
        "interlayer_cushion": "interlayer",
        "spread": "spread",
        "overlap": "overlap",
        "term": "terms",
    }

    @property
    def terms(self) -> Tensor:
        """Contribution of each layer to the sum, (layers,)."""
        cushions = (self.layer_cushions * self.interlayer).square()
        return (self.spread * self.overlap).square() / cushions

    @property
    def effective_parameters(self) -> float:
        r"""The bound's capacity, without constants and logarithms.

        .. math:: c^2 d^2 \max_x \|f(x)\|^2 \sum_i \frac{\beta_i^2 \lceil \kappa_i / s_i \rceil^2}
            {\mu_i^2 \mu_{i \to}^2} \Big/ \gamma^2

        Not a certified bound: in the theorem the square root of this over m is multiplied by
        constants and logarithms, and an interlayer smoothness of at least 3d is assumed.

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
    """Measure the quantities of the compression bound of a chain of layers.

    Interlayer cushions of all pairs of layers take one Jacobian product for each layer and probe.

    Args:
        net: An ``nn.Sequential`` whose layers are one chain, Linear or convolutions.
        data: Inputs, with or without targets, in any form that :func:`layer_cushions` takes.
        margin: γ, in units of the output, above 0.
        probes: Number of sign vectors for each layer; few make ``spread`` too large.
        generator: Source of the signs, on the CPU, or a seed.
        batch: Samples in one forward pass.
        device: Device to measure on; another device than the net's takes a copy of the net there.
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
    check_int("batch", batch)
    net = layered_net(net, device)
    activations = activations_of(net)
    chain = chain_of_layers(net)
    observer, uses = MapObserver(net), list[LinearUse]()
    contraction, output_norm, samples = 0.0, 0.0, 0
    found_data = Data.of(data, like=net, targets=False)
    with preserved(net), differentiable(), torch.no_grad():
        cushions = torch.full((len(chain.layers),), torch.inf, dtype=torch.float64)
        overlap, onward = torch.ones_like(cushions), cushions.clone()
        spread = overlap.clone()
        for part in found_data.chunks(batch, "bound" if progress else None):
            samples += part.size
            for i, position in enumerate(chain.layers):
                z = chain.input_of(position, part)
                uses.clear()
                with observer.watching(uses.append):
                    output = chain.modules[position](z)
                if len(uses) != 1:
                    raise ValueError(f"net: {chain.names[position]} is not one linear map")
                weight = uses[0].weight
                steps = uses[0].geometry.stride if uses[0].geometry else ()
                sides = zip(weight.shape[2:], steps, strict=True)
                overlap[i] = max((-(-side // step) for side, step in sides), default=1)
                below = row_norms(z.reshape(len(z), -1))
                above = row_norms(uses[0].apply(z, weight).reshape(len(z), -1))
                size = row_norms(weight.reshape(1, -1))
                found = (above / below / size).nan_to_num(torch.inf)
                cushions[i] = min(float(cushions[i]), float(found.min()))
                kappa = output.shape[2:].numel() ** 0.5
                itself = kappa / output[0].numel() ** 0.5  # J = I from a layer to itself
                onward[i] = min(float(onward[i]), itself)
                if later := chain.layers[i + 1 :]:
                    behind = OnwardMap(chain, output, position + 1, later)
                    norms = behind.jacobian_norms(probes, source)
                    found = kappa * norms.products / norms.frobenius / norms.inputs
                    least = float(found.nan_to_num(torch.inf).min())
                    onward[i] = min(float(onward[i]), least)
                    spread[i] = max(float(spread[i]), float(norms.spread.nan_to_num(1.0).max()))
            with contractions(activations) as largest:
                output = chain.input_of(len(chain.modules), part)
            contraction = max(contraction, *largest.values())
            output_norm = max(output_norm, float(row_norms(output.reshape(part.size, -1)).max()))
    return CompressionBound(
        layers=tuple(chain.names[position] for position in chain.layers),
        layer_cushions=cushions,
        interlayer=onward,
        spread=spread,
        overlap=overlap,
        contraction=contraction,
        output_norm=output_norm,
        margin=margin,
        samples=samples,
        notes=tuple(found_data.notes),
    )
