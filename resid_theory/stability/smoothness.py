"""Two conditions of the compression bound: activation contraction and interlayer smoothness."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import as_generator, check_int, check_positive, check_within
from resid_theory.data import Data
from resid_theory.runtime.net_entry import layered_net
from resid_theory.runtime.preserve import preserved
from resid_theory.runtime.result import Columns, Result
from resid_theory.stability.jacobian import differentiable, jacobian_product
from resid_theory.stability.jacobian_reach import OnwardMap, chain_of_layers
from resid_theory.stability.norms import row_norms


def activation_contraction(
    net: nn.Module,
    data: Any,
    *,
    batch: int = 256,
    device: torch.device | str | None = None,
) -> dict[str, float]:
    r"""Activation contraction: the largest factor by which each activation shrinks a norm.

    .. math:: c_i = \max_x \|x_i\| / \|\phi(x_i)\|

    Args:
        net: Any module; its activations are the modules of ``torch.nn.modules.activation`` that
            have one input and no matrix.
        data: Inputs, with or without targets, in any form that :func:`layer_cushions` takes.
        batch: Samples in one forward pass.
        device: Device to measure on; another device than the net's takes a copy of the net there.

    Returns:
        c by the activation's name, at least 1 for ReLU; inf where an output is zero and its input
        is not. The bound uses the largest one. A module called several times has its largest.

    Raises:
        ValueError: If the net has no such module, or the data do not fit it.

    Source:
        Arora et al., arXiv:1802.05296, Definition 6.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.ReLU())
        >>> activation_contraction(net, torch.tensor([[3.0, -4.0]]))["0"]
        1.6666666666666667
    """
    check_int("batch", batch)
    net = layered_net(net, device)
    with preserved(net), torch.no_grad(), contractions(activations_of(net)) as largest:
        for part in Data.of(data, like=net, targets=False).chunks(batch):
            part.try_call(net)
    return largest


def activations_of(net: nn.Module) -> dict[str, nn.Module]:
    """The activation modules of a net by name, at least one."""
    found = {
        name: module
        for name, module in net.named_modules()
        if type(module).__module__ == "torch.nn.modules.activation"
        and not isinstance(module, (nn.MultiheadAttention, nn.GLU))
    }
    if not found:
        raise ValueError("net: has no activation module; functions such as F.relu are not seen")
    return found


@contextmanager
def contractions(activations: Mapping[str, nn.Module]) -> Iterator[dict[str, float]]:
    """Watch calls of activations; yield their largest contractions so far, by name."""
    before: dict[str, Tensor] = {}
    largest = dict.fromkeys(activations, 0.0)

    def enter(name: str, x: Tensor) -> None:
        before[name] = row_norms(x.reshape(len(x), -1))  # now: the module may work in place

    def leave(name: str, y: Tensor) -> None:
        ratio = before[name] / row_norms(y.reshape(len(y), -1))
        known = ratio[~ratio.isnan()]
        if len(known):
            largest[name] = max(largest[name], float(known.max()))

    with ExitStack() as hooks:
        for name, module in activations.items():
            for handle in (
                module.register_forward_pre_hook(lambda _, a, n=name: enter(n, a[0])),
                module.register_forward_hook(lambda _, a, y, n=name: leave(n, y)),
            ):
                hooks.enter_context(handle)
        yield largest


@dataclass(frozen=True, kw_only=True, eq=False)
class Smoothness(Result):
    r"""Interlayer smoothness: the accuracy with which Jacobians predict the effect of noise.

    Attributes:
        ratios: :math:`\|\eta\| \|x_j\| / (\|x_i\| \cdot deviation)` for every draw and sample,
            (draws, samples), float64; the deviation is that of the output from its linearization.
            inf where there is none.
    """

    ratios: Tensor

    headline = (
        "interlayer smoothness of {0.ratios.shape[1]} samples, {0.ratios.shape[0]} draws each"
    )

    def table(self) -> Columns:
        """One row for each draw and sample."""
        draws, samples = torch.ones_like(self.ratios).nonzero().T
        return {"draw": draws, "sample": samples, "ratio": self.ratios.flatten()}

    def shown(self) -> Columns:
        """A ρ that a share of at least 1 - δ of the draws reaches, for three δ."""
        deltas = (0.01, 0.05, 0.5)
        return {"δ": deltas, "ρ": [self.rho(delta) for delta in deltas]}

    def rho(self, delta: float = 0.05) -> float:
        """A ρ that a share of at least 1 - δ of all draws reaches.

        Args:
            delta: In (0, 1).

        Returns:
            The order statistic just below the δ-quantile of the ratios.

        Raises:
            ValueError: If ``delta`` is outside (0, 1).

        Source:
            Arora et al., arXiv:1802.05296, Definition 7.
        """
        delta = check_within("delta", delta, 0, 1, "()")
        ordered = self.ratios.flatten().sort().values
        return float(ordered[int(delta * (len(ordered) - 1))])


def interlayer_smoothness(
    net: nn.Module,
    data: Any,
    *,
    start: int = 0,
    epsilon: float = 0.1,
    draws: int = 10,
    generator: torch.Generator | int = 0,
    batch: int = 64,
    device: torch.device | str | None = None,
) -> Smoothness:
    """Interlayer smoothness from one layer on, at the worst of all later linear layers.

    The noise is normal, :math:`N(0, (ε‖z‖)² I / n)`, the usual substitute for the bound's own
    noise, which comes from compressing the layers before.

    Args:
        net: An ``nn.Sequential`` whose layers are one chain.
        data: Inputs, with or without targets, in any form that :func:`layer_cushions` takes.
        start: Position of the module at whose input the noise is added, counted in the net with
            nested ``nn.Sequential`` taken apart.
        epsilon: Norm of the noise over that of the input, in root mean square.
        draws: Number of noise vectors for each sample.
        generator: Source of the noise, on the CPU, or a seed.
        batch: Samples in one forward pass.
        device: Device to measure on; another device than the net's takes a copy of the net there.

    Returns:
        The smallest ratio over the layers, for each draw and sample.

    Raises:
        ValueError: If the net is no chain, there is no linear layer from ``start`` on, or ε is not
            above 0.

    Source:
        Arora et al., arXiv:1802.05296, Definition 7; with biases the linearization is x_j + J η.
    """
    net, source = layered_net(net, device), as_generator(generator)
    check_int("batch", batch)
    check_positive("epsilon", epsilon)
    chain = chain_of_layers(net)
    places = chain.layers_from(start)
    check_int("draws", draws)
    found = []
    with preserved(net), differentiable(), torch.no_grad():
        for part in Data.of(data, like=net, targets=False).chunks(batch):
            z = chain.input_of(start, part)
            onward, norm = OnwardMap(chain, z, start, places), row_norms(z.reshape(len(z), -1))
            ratios = []
            for _ in range(draws):
                noise = epsilon * onward.noise(source)
                value, linear = jacobian_product(onward, z, noise)
                deviation = onward.norms(onward(z + noise) - value - linear)
                relative = (row_norms(noise.reshape(len(z), -1)) / norm).cpu()
                ratios.append((relative * onward.norms(value) / deviation).amin(0))
            found.append(torch.stack(ratios))
    return Smoothness(ratios=torch.cat(found, 1))
