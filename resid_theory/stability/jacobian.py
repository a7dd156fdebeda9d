r"""Jacobians of a map between layers, sample by sample: products, and the Frobenius norm.

For random signs v, :math:`E\|Jv\|^2 = \|J\|_F^2` with variance
:math:`2(\|A\|_F^2 - \sum_i A_{ii}^2)`, :math:`A = J^T J` (Hutchinson, Communications in Statistics
18, 1059 (1989)). This is the side ``"in"``; on the side ``"out"``, products u J, it is
:math:`A = J J^T`. The side of smaller variance is found by a pilot on a few samples.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor, nn

from resid_theory.stability.norms import row_norms

Function = Callable[[Tensor], Tensor]
"""A map of a batch, sample by sample: any number of rows, each row of the result from its own."""

_PILOT = 8  # samples, and probes of each


@contextmanager
def differentiable() -> Iterator[None]:
    """Use the plain formula of attention inside: the fused ones lack derivatives."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def each_sample_a_batch(net: nn.Module) -> Iterator[None]:
    """Normalize every sample by its own statistics in BatchNorm, without a change of the net."""

    def own_statistics(module: nn.Module, args: tuple[Tensor, ...], _: Tensor) -> Tensor:
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        x = args[0]
        if x[0, 0].numel() < 2:
            raise ValueError(
                "batchnorm: 'batch' takes the statistics of one sample, which has one value per "
                f"channel in a layer with inputs of shape {tuple(x.shape)}; use 'eval'"
            )
        return F.instance_norm(x, weight=module.weight, bias=module.bias, eps=module.eps)

    with ExitStack() as hooks:
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                hooks.enter_context(module.register_forward_hook(own_statistics))
        yield


def jacobian_product(function: Function, z: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """The value at z and the Jacobian of every sample times its own vector."""
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
        (grad,) = torch.autograd.grad(value, leaf, cotangent, create_graph=True)
        (product,) = torch.autograd.grad(grad, cotangent, tangent)
    return value, product


def _recorded(function: Function, z: Tensor) -> tuple[Tensor, Tensor]:
    leaf = z.detach().requires_grad_()
    return function(leaf.clone()) + leaf[:0].sum(), leaf  # also of a map that ignores z


def squared_norm(
    function: Function, z: Tensor, *, probes: int | None, side: str, generator: torch.Generator,
    rows: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Squared Frobenius norms, exact for ``probes=None``, and their standard errors, (b,) each."""
    squares = _squares(function, z, side, probes, generator, rows)
    if probes is None:
        exact = squares.sum(0)
        return exact, 0 * exact
    return squares.mean(0), squares.std(0) / probes**0.5


def better_side(function: Function, z: Tensor, *, generator: torch.Generator, rows: int) -> str:
    """The side on which signs have the smaller variance, from a pilot that is thrown away."""
    spread = {}
    for side in ("in", "out"):
        squares = _squares(function, z[:_PILOT], side, _PILOT, generator, rows)
        relative = squares.var(0) / squares.mean(0).square()
        spread[side] = float(relative.nanmean())
    return "in" if spread["in"] < spread["out"] else "out"


def _squares(function: Function, z: Tensor, *how: Any) -> Tensor:
    """Squared norms of the products, (vectors, b)."""
    return torch.cat([row_norms(some.flatten(0, 1)).view(some.shape[:2]).square().cpu()
                      for some in products(function, z, *how)])  # fmt: skip


def products(
    function: Function, z: Tensor, side: str, probes: int | None, generator: torch.Generator,
    rows: int,
) -> Iterator[Tensor]:  # fmt: skip
    """Products with unit vectors or with so many sign vectors, some at once, (some, b, entries)."""
    size = z[0].numel()
    if side == "out":
        with torch.no_grad():
            size = function(z[:1].clone())[0].numel()
    count = size if probes is None else probes
    at_once = min(count, max(1, rows // len(z)))  # copies of the batch, each with its own vectors
    many = z.repeat(at_once, *[1] * (z.dim() - 1))
    if side == "out":
        with torch.enable_grad():
            value, leaf = _recorded(function, many)  # one graph for all vectors
    for start in range(0, count, at_once):
        copies = min(at_once, count - start)
        vectors = z.new_zeros(at_once, len(z), size)
        if probes is None:
            for copy in range(copies):
                vectors[copy, :, start + copy] = 1
        else:
            shape = copies, len(z), size
            signs = torch.randint(2, shape, generator=generator, device=generator.device)
            vectors[:copies] = (2 * signs - 1).to(vectors)
        if side == "in":
            product = jacobian_product(function, many, vectors.view_as(many))[1]
        else:
            (product,) = torch.autograd.grad(value, leaf, vectors.view_as(value), retain_graph=True)
        yield product.reshape(at_once, len(z), -1)[:copies]
