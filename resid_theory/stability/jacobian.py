"""Jacobians of a map between layers, sample by sample: products, and the Frobenius norm."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from resid_theory.stability.norms import row_norms

__all__ = ["Function", "SquaredNorm", "differentiable", "each_sample_a_batch", "jacobian_product",
           "squared_norm"]  # fmt: skip

Function = Callable[[Tensor], Tensor]
"""A map of a batch, sample by sample: any number of rows, each row of the result from its own."""

_PILOT_SAMPLES = 8
_PILOT_PROBES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class SquaredNorm:
    """Squared Frobenius norms of the Jacobians of a batch.

    Attributes:
        mean: (b,), float64, on the CPU.
        standard_error: Of the mean over probes, (b,); zero where it is exact.
        probes: Number of probes; 0 where it is exact.
        side: ``"in"`` (Jacobian times vectors) or ``"out"`` (vectors times Jacobian).
    """

    mean: Tensor
    standard_error: Tensor
    probes: int
    side: str


@contextmanager
def differentiable() -> Iterator[None]:
    """Attention by its plain formula inside: the fused ones lack derivatives."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def each_sample_a_batch(net: nn.Module) -> Iterator[None]:
    """BatchNorm inside normalizes every sample by its own statistics; the net is not written to."""
    handles = [
        module.register_forward_hook(_own_statistics)
        for module in net.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _own_statistics(module: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> Tensor:
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    x = args[0]
    if x.dim() < 3 or x[0, 0].numel() < 2:
        raise ValueError(
            "batchnorm: 'batch' takes the statistics of one sample, which has one value a channel "
            f"in a layer with inputs of shape {tuple(x.shape)}; use 'eval'"
        )
    axes = tuple(range(2, x.dim()))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    out = (x - mean) * (variance + module.eps).rsqrt()
    shape = (1, -1) + (1,) * len(axes)
    if module.weight is not None:
        out = out * module.weight.view(shape) + module.bias.view(shape)
    return out


def jacobian_product(function: Function, z: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """The value at z and the Jacobian of every sample times its own vector.

    Args:
        function: The map.
        z: (b, ...).
        tangent: Shape of z.

    Returns:
        f(z) and J v, both (b, ...).
    """
    _load_forward_rules()
    try:
        with torch.no_grad(), forward_ad.dual_level():
            # Cloned: a map that starts in place would overwrite both.
            dual = forward_ad.make_dual(z.clone(), tangent.clone())
            pair = forward_ad.unpack_dual(function(dual))
            value, product = pair.primal, pair.tangent
            return value, torch.zeros_like(value) if product is None else product
    except NotImplementedError:  # an operation without a forward derivative: two backward ones
        return _by_two_gradients(function, z, tangent)


@cache
def _load_forward_rules() -> None:
    """Make torch read its rules once; it scripts them, by its own deprecated function."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.ones(1))


def _by_two_gradients(function: Function, z: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        value, leaf = _recorded(function, z)
        cotangent = torch.zeros_like(value, requires_grad=True)
        (grad,) = torch.autograd.grad(
            value, leaf, cotangent, create_graph=True, allow_unused=True, materialize_grads=True
        )
        (product,) = torch.autograd.grad(
            grad, cotangent, tangent, allow_unused=True, materialize_grads=True
        )
    return value.detach(), product


def _recorded(function: Function, z: Tensor) -> tuple[Tensor, Tensor]:
    leaf = z.detach().clone().requires_grad_()
    value = function(leaf.clone())
    # A map without z in it, as a constant, has no graph: give it one.
    return (value if value.requires_grad else value + 0 * leaf.sum()), leaf


def squared_norm(
    function: Function,
    z: Tensor,
    *,
    probes: int | None,
    generator: torch.Generator,
    rows: int,
    side: str | None = None,
) -> SquaredNorm:
    r"""Squared Frobenius norm of every sample's Jacobian, exact or from random signs.

    For signs v, :math:`E\|Jv\|^2 = \|J\|_F^2` with variance
    :math:`2(\|A\|_F^2 - \sum_i A_{ii}^2)`, :math:`A = J^T J`; on the other side A = J Jᵀ. The
    better side is found by a pilot on a few samples.

    Args:
        function: The map.
        z: Where, (b, ...).
        probes: How many signs, at least 2; None for the exact norm.
        generator: Source of the signs, on the CPU.
        rows: Rows that the map is run on at once, about.
        side: ``"in"``, ``"out"``, or None to choose: the shorter one for the exact norm, the one of
            smaller variance for probes.

    Returns:
        The squared norms.

    Source:
        Hutchinson, Communications in Statistics 18, 1059 (1989).
    """
    if probes is None:
        side = side or ("out" if _sizes(function, z)[1] <= _sizes(function, z)[0] else "in")
        exact = _squares(function, z, side, None, generator, rows).sum(0)
        return SquaredNorm(mean=exact, standard_error=0 * exact, probes=0, side=side)
    side = side or better_side(function, z, generator=generator, rows=rows)
    squares = _squares(function, z, side, probes, generator, rows)
    error = squares.std(0) / probes**0.5
    return SquaredNorm(mean=squares.mean(0), standard_error=error, probes=probes, side=side)


def better_side(function: Function, z: Tensor, *, generator: torch.Generator, rows: int) -> str:
    """The side on which signs have the smaller variance, from a pilot that is thrown away.

    Args:
        function: The map.
        z: Where, (b, ...); the first few samples are used.
        generator: Source of the signs.
        rows: As in :func:`squared_norm`.

    Returns:
        ``"in"`` or ``"out"``.
    """
    spread = {}
    for side in ("in", "out"):
        few = z[:_PILOT_SAMPLES]
        squares = _squares(function, few, side, _PILOT_PROBES, generator, rows)
        relative = squares.var(0) / squares.mean(0).square()
        spread[side] = float(relative.nan_to_num(0.0).mean())
    return "in" if spread["in"] < spread["out"] else "out"


def _sizes(function: Function, z: Tensor) -> tuple[int, int]:
    with torch.no_grad():
        return z[0].numel(), function(z[:1].clone())[0].numel()


def _squares(
    function: Function,
    z: Tensor,
    side: str,
    probes: int | None,
    generator: torch.Generator,
    rows: int,
) -> Tensor:
    """Squared norms of products, (vectors, b): unit vectors, or so many vectors of signs."""
    at_once = max(1, rows // len(z))  # copies of the batch, each with vectors of its own
    push = _pushing(function, z, at_once, side)
    size = _sizes(function, z)[side == "out"]
    count = size if probes is None else probes
    found = []
    for start in range(0, count, at_once):
        copies = min(at_once, count - start)
        if probes is None:
            vectors = torch.zeros(at_once, len(z), size, dtype=z.dtype, device=z.device)
            for copy in range(copies):
                vectors[copy, :, start + copy] = 1
        else:
            signs = torch.randint(2, (copies, len(z), size), generator=generator, dtype=torch.int8)
            vectors = torch.zeros(at_once, len(z), size, dtype=z.dtype, device=z.device)
            vectors[:copies] = (2 * signs - 1).to(vectors)
        products = push(vectors.flatten(0, 1)).reshape(at_once * len(z), -1)
        norms = row_norms(products).view(at_once, len(z))
        found.append(norms[:copies].square().cpu())
    return torch.cat(found)


def _pushing(function: Function, z: Tensor, copies: int, side: str) -> Function:
    """Products of every copy's Jacobian with its own vector; a graph is recorded once."""
    many = z.repeat(copies, *[1] * (z.dim() - 1))
    if side == "in":
        return lambda vectors: jacobian_product(function, many, vectors.view_as(many))[1]
    with torch.enable_grad():
        value, leaf = _recorded(function, many)

    def pull(vectors: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(
            value, leaf, vectors.view_as(value), retain_graph=True,
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        return grad

    return pull
