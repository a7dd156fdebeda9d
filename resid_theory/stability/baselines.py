"""Measures of capacity that cushions are held against: norms of the weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor, nn

from resid_theory._check import as_generator, check_int, check_positive
from resid_theory.networks.blocks import IdentityShortcut
from resid_theory.runtime.preserve import preserved
from resid_theory.stability.layer_inputs import layouts, listening
from resid_theory.stability.linear_maps import LinearMap, linear_maps
from resid_theory.stability.net_inputs import checked_net
from resid_theory.stability.norms import operator_frobenius, row_norms

__all__ = ["LayerNorms", "layer_norms", "path_norm", "spectral_norm"]

_DENSE = 64  # a layer with fewer inputs or outputs is taken as a matrix


def spectral_norm(
    linear: nn.Module, size: Sequence[int], *, generator: torch.Generator | int = 0
) -> float:
    """Largest singular value of a layer as a linear map, without its bias.

    By Lanczos on products with the layer and with its exact transpose, which is the gradient; the
    largest singular value of the kernel reshaped to a matrix is another number.

    Args:
        linear: ``nn.Linear``, ``nn.Conv1d``, ``2d``, ``3d`` or an ``AddIdentity`` around one.
        size: Shape of one input, without the batch.
        generator: Source of the starting vector, or a seed.

    Returns:
        The norm, to about 1e-10 relative.

    Raises:
        ValueError: If the module is another one.

    Source:
        Sedghi, Gupta & Long, arXiv:1805.10408, on the difference to the reshaped kernel.

    Example:
        >>> layer = torch.nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular")
        >>> _ = torch.nn.init.ones_(layer.weight)
        >>> round(spectral_norm(layer, (1, 8)), 6)
        3.0
    """
    maps, _ = linear_maps(linear)
    if len(maps) != 1 or maps[0].module is not linear:
        raise ValueError(f"linear: got {type(linear).__name__}, needs one linear layer")
    return _spectral(maps[0], tuple(size), as_generator(generator))


def _spectral(linear: LinearMap, size: tuple[int, ...], source: torch.Generator) -> float:
    weight = linear.weight.double()
    entries = math.prod(size)

    def forward(vectors: Tensor) -> Tensor:
        x = vectors.view(-1, *size).to(weight)
        return linear.apply(x, weight).reshape(len(x), -1)

    outputs = forward(torch.zeros(1, entries)).shape[1]
    if min(entries, outputs) <= _DENSE and entries * outputs <= 1 << 22:
        matrix = forward(torch.eye(entries, dtype=torch.float64))
        return float(torch.linalg.matrix_norm(matrix, 2))

    def transposed(vector: Tensor) -> Tensor:
        x = torch.zeros(1, entries, dtype=weight.dtype, device=weight.device, requires_grad=True)
        with torch.enable_grad():
            value = forward(x)
        return torch.autograd.grad(value, x, vector.view_as(value).to(weight))[0]

    def product(function: Any) -> Any:
        def multiply(vector: Any) -> Any:
            row = torch.from_numpy(np.ascontiguousarray(vector)).view(1, -1)
            return function(row).cpu().numpy().ravel()

        return multiply

    operator = LinearOperator(
        (outputs, entries), matvec=product(forward), rmatvec=product(transposed), dtype=np.float64
    )
    start = torch.randn(min(outputs, entries), generator=source, dtype=torch.float64).numpy()
    return float(svds(operator, k=1, v0=start, tol=1e-10, return_singular_vectors=False)[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerNorms:
    r"""Norms of each layer's effective weight, as a linear map on the inputs it had.

    Attributes:
        layers: Names of the layers; a layer called several times counts once, at its first call.
        frobenius: :math:`\|A\|_F` of the dense map, (layers,), float64.
        spectral: :math:`\|A\|_2`, (layers,).
        kernel: Frobenius norm of the array of weights, (layers,).
        distance: Frobenius norm of the weights less their initial ones, (layers,); nan without.
        distance_21: Sum over outputs of the norm of that difference, :math:`\|(A - A_0)^T\|_{2,1}`
            of the array, (layers,); nan without.
        width: Largest number of entries of a layer's input or output, h.
        not_covered: Reasons, by name, of modules with parameters that have no row.
    """

    layers: tuple[str, ...]
    frobenius: Tensor
    spectral: Tensor
    kernel: Tensor
    distance: Tensor
    distance_21: Tensor
    width: int
    not_covered: dict[str, str]

    @property
    def stable_rank(self) -> Tensor:
        """Squared Frobenius over squared spectral norm, (layers,), between 1 and the rank."""
        return (self.frobenius / self.spectral).square()

    @property
    def log_spectral_product(self) -> float:
        """Logarithm of the product of all spectral norms, which itself overflows in deep nets."""
        return float(self.spectral.log().sum())

    def log_bartlett(self, margin: float) -> float:
        r"""Logarithm of Bartlett's spectral complexity over the margin.

        .. math:: \frac{1}{\gamma} \prod_i \|A_i\|_2
            \Big(\sum_i (\|A_i - A_i^0\|_{2,1} / \|A_i\|_2)^{2/3}\Big)^{3/2}

        Args:
            margin: γ, in units of the output, above 0.

        Returns:
            Natural logarithm; nan without initial weights.

        Raises:
            ValueError: If the margin is not above 0.

        Source:
            Bartlett, Foster & Telgarsky, arXiv:1706.08498, eq. (1.2).
        """
        ratios = (self.distance_21 / self.spectral) ** (2 / 3)
        total = self.log_spectral_product + 1.5 * math.log(float(ratios.sum()))
        return total - math.log(check_positive("margin", margin))

    def log_neyshabur(self, margin: float, samples: int) -> float:
        r"""Logarithm of the PAC-Bayes spectral bound, without its additive terms.

        .. math:: \sqrt{\frac{d^2 h \ln(d h) \prod_i \|A_i\|_2^2 \sum_i \|A_i\|_F^2 / \|A_i\|_2^2}
            {\gamma^2 m}}

        Args:
            margin: γ, in units of the output, above 0.
            samples: m, size of the training set.

        Returns:
            Natural logarithm.

        Raises:
            ValueError: If the margin is not above 0 or m is below 1.

        Source:
            Neyshabur, Bhojanapalli & Srebro, arXiv:1707.09564, Theorem 1.
        """
        depth = len(self.layers)
        size = depth**2 * self.width * math.log(max(2, depth * self.width))
        inside = math.log(size) + 2 * self.log_spectral_product
        inside += math.log(float(self.stable_rank.sum())) - math.log(check_int("samples", samples))
        return inside / 2 - math.log(check_positive("margin", margin))

    def __str__(self) -> str:
        """A table of the norms."""
        lines = [f"{'layer':<24} {'spectral':>10} {'Frobenius':>10} {'stable rank':>12}"]
        for name, a, b, c in zip(
            self.layers, self.spectral.tolist(), self.frobenius.tolist(),
            self.stable_rank.tolist(), strict=True,
        ):  # fmt: skip
            lines.append(f"{name:<24} {a:>10.4g} {b:>10.4g} {c:>12.4g}")
        return "\n".join(lines)


def layer_norms(
    net: nn.Module,
    x: Tensor,
    *,
    initial: nn.Module | None = None,
    generator: torch.Generator | int = 0,
) -> LayerNorms:
    """Spectral and Frobenius norms of every linear layer, and the distance from its start.

    Args:
        net: Any module; it is left as it was.
        x: One input or more, (b, ...), which show the sizes that layers work on.
        initial: The same net before training, for the distances.
        generator: Source of Lanczos's starting vectors, or a seed.

    Returns:
        The norms; what is no linear layer is listed with the reason.

    Raises:
        ValueError: If the net has no linear layer, or ``initial`` has others.
    """
    checked_net(net)
    source = as_generator(generator)
    maps, others = linear_maps(net)
    sizes: dict[str, tuple[int, ...]] = {}
    with preserved(net), torch.no_grad():
        found, reasons = layouts(net, maps, x)
        with listening(maps, lambda call, z, _: _note(sizes, call.linear, z)):
            net(x[:1].clone())
        maps = [linear for linear in maps if (linear.name, 1) in found]
        if not maps:
            raise ValueError(f"net: {type(net).__name__} has no linear layer that is called")
        distances = [_distance(linear, initial) for linear in maps]
        rows = [
            (
                float(operator_frobenius(linear.layer, linear.weight, sizes[linear.name][1:]))
                if linear.is_convolution
                else float(row_norms(linear.weight.reshape(1, -1))),
                _spectral(linear, sizes[linear.name], source),
                float(row_norms(linear.weight.reshape(1, -1))),
                *distance,
            )
            for linear, distance in zip(maps, distances, strict=True)
        ]
    columns = torch.tensor(rows, dtype=torch.float64).T
    widths = [math.prod(sizes[linear.name]) for linear in maps]
    return LayerNorms(
        layers=tuple(linear.name for linear in maps),
        frobenius=columns[0],
        spectral=columns[1],
        kernel=columns[2],
        distance=columns[3],
        distance_21=columns[4],
        width=max(widths + [len(linear.weight) for linear in maps]),
        not_covered={**others, **reasons},
    )


def _note(sizes: dict[str, tuple[int, ...]], linear: LinearMap, z: Tensor) -> None:
    shape = tuple(z.shape[1:]) if linear.is_convolution else (z.shape[-1],)
    sizes.setdefault(linear.name, shape)


def _distance(linear: LinearMap, initial: nn.Module | None) -> tuple[float, float]:
    if initial is None:
        return math.nan, math.nan
    before = {other.name: other for other in linear_maps(initial)[0]}.get(linear.name)
    if before is None or before.weight.shape != linear.weight.shape:
        raise ValueError(f"initial: has no layer {linear.name!r} of shape {linear.weight.shape}")
    change = (linear.weight - before.weight.to(linear.weight)).flatten(1)
    rows = row_norms(change)
    return float(rows.norm()), float(rows.sum())


_PASSING = (
    nn.Identity, nn.ReLU, nn.Flatten, nn.Unflatten, nn.Dropout, nn.MaxPool1d, nn.MaxPool2d,
    nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, IdentityShortcut,
)  # fmt: skip


def path_norm(net: nn.Module, size: Sequence[int]) -> float:
    r"""The l2 path norm: root of the sum over all paths of the product of squared weights.

    One forward pass of an input of ones through the net with squared weights:
    :math:`\sqrt{\sum_k f_{w^2}(1)_k}`. A layer's weight is the effective one, its bias a path from
    a constant; BatchNorm counts with its running statistics, as the layer into which it folds; what
    has no parameters (pooling, shortcuts) stays as it is.

    Args:
        net: A net of linear layers, BatchNorm, ReLU and pooling.
        size: Shape of one input, without the batch.

    Returns:
        The norm, inf where it overflows.

    Raises:
        ValueError: If a module is another one, such as a smooth activation.

    Source:
        Neyshabur, Tomioka & Srebro, arXiv:1503.00036, section 3.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU())
        >>> _ = torch.nn.init.constant_(net[0].weight, 3.0)
        >>> path_norm(net, (2,))
        6.0
    """
    maps, others = linear_maps(checked_net(net))
    squared: dict[nn.Module, Any] = {m.module: _squared_layer(m) for m in maps if not m.role}
    inside = {child for m in maps for child in m.module.modules()} - set(squared)
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            squared[module] = _squared_norm(module)
        elif module in squared or module in inside or isinstance(module, _PASSING):
            continue
        elif name in others or not any(True for _ in module.children()):
            raise ValueError(
                f"net: {name!r} is a {type(module).__name__}; a path norm needs linear layers, "
                "BatchNorm with running statistics, ReLU and pooling only"
            )
    handles = [module.register_forward_hook(hook) for module, hook in squared.items()]
    like = next(net.parameters(), torch.empty(0))
    try:
        with preserved(net), torch.no_grad():
            output = net(torch.ones(1, *size, dtype=like.dtype, device=like.device))
    finally:
        for handle in handles:
            handle.remove()
    return float(output.double().sum().sqrt())


def _squared_layer(linear: LinearMap) -> Any:
    weight, bias = linear.weight.square(), linear.bias

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        paths = linear.apply(args[0], weight)
        if bias is None:
            return paths
        shape = (-1,) + (1,) * len(paths.shape[2:]) if linear.is_convolution else (-1,)
        return paths + bias.square().view(shape)

    return hook


def _squared_norm(norm: nn.modules.batchnorm._BatchNorm) -> Any:
    assert norm.running_var is not None and norm.running_mean is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias.detach()

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (args[0].dim() - 2)
        return args[0] * scale.square().view(shape) + shift.square().view(shape)

    return hook
