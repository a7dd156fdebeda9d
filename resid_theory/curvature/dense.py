"""The exact Hessian as a matrix, by the cheapest route that the model allows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resid_theory._check import check_choice
from resid_theory.curvature.chain import LayerChain, chain_of
from resid_theory.curvature.columns import Batches, column_hessian, column_seconds
from resid_theory.curvature.input_checks import (
    check_batches,
    check_inputs,
    check_net,
    pixels_as_inputs,
    trainable,
)
from resid_theory.curvature.layer_pairs import chain_hessian
from resid_theory.data.batching import batches
from resid_theory.data.moments import Moments
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.losses import Loss, loss_function
from resid_theory.runtime.preserve import preserved
from resid_theory.runtime.resources import available_bytes, matmul_rate, readable_bytes
from resid_theory.theory.linear.hessian_assembly import linear_hessian
from resid_theory.theory.linear.linear_nets import Unit

__all__ = ["METHODS", "HessianCost", "hessian", "hessian_cost", "hessian_spectrum"]

METHODS = ("auto", "closed_form", "layer_pairs", "columns")
_WORKSPACE = 1 << 28  # bytes that a route holds beside the matrix
_BANDWIDTH = 2e9  # bytes per second of writing new memory, for estimates only


@dataclass(frozen=True, kw_only=True)
class HessianCost:
    """What a dense Hessian takes, known before the work starts.

    Attributes:
        method: ``closed_form``, ``layer_pairs`` or ``columns``.
        parameters: Number of trainable parameters P.
        bytes: Memory at the peak, the (P, P) result included.
        seconds: Estimated time on this machine, from its measured rate of matrix products.
    """

    method: str
    parameters: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.method}: P = {self.parameters}, {readable_bytes(self.bytes)}, "
            f"about {self.seconds:.2g} s"
        )


def hessian(
    net: nn.Module,
    loss: str | Loss,
    data: Any,
    *,
    method: str = "auto",
    batchnorm: str = "eval",
    memory_limit: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Exact Hessian of the mean loss over a data set.

    Linear nets with the square loss use the closed form from the data's moments, feed-forward and
    shortcut nets products of layer pairs, everything else columns of Hessian-vector products on a
    retained graph. The model is measured in eval mode and left as it was.

    Args:
        net: Any module. Parameters with ``requires_grad=False`` are held fixed and have no rows.
        loss: ``"square"`` (half the squared error, summed over outputs, mean over samples),
            ``"cross_entropy"``, or a callable (output, target) -> mean over samples.
        data: A pair (x, y), an object with ``.x`` and ``.y``, images, or a loader; batches are
            weighted by their size.
        method: One of ``METHODS``; ``auto`` takes the first that applies.
        batchnorm: ``"eval"`` uses running statistics, ``"batch"`` each batch's own.
        memory_limit: Bytes that may be used; by default what the machine has free.
        progress: Whether to show a progress bar on standard error.

    Returns:
        (P, P), float64, on the net's device, in the order of
        ``torch.nn.utils.parameters_to_vector``.

    Raises:
        ValueError: If data do not fit the net, a name is unknown, or the method does not apply.
        MemoryError: If it does not fit, with the bytes, P and the alternative.

    Source:
        Bishop 1992, "Exact calculation of the Hessian matrix for the multilayer perceptron", is the
        ancestor of ``layer_pairs``; the forms used here are derived in the modules they live in.

    Example:
        >>> net = rt.ShortcutNet(2, blocks=1, shortcut_depth=1)
        >>> data = torch.eye(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
        >>> rt.hessian(net, "square", data).diagonal().tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    check_net(net)
    with preserved(net, batchnorm=batchnorm):
        # Inside, because a loader draws from the global RNG even when it does not shuffle.
        plan = _plan(net, loss, pixels_as_inputs(data, net), method)
        _refuse_if_too_large(plan.bytes, net, memory_limit)
        check_batches(net, loss, plan.batches)
        result = plan.run(progress)
    # Reading a closed form back would cost as much as making it; its diagonal shows an overflow.
    probe = result.diagonal() if plan.method == "closed_form" else result
    if not bool(torch.isfinite(probe.sum())):
        raise ValueError(
            "net: its Hessian is not finite on these data; check weights and activations"
        )
    return result


def hessian_spectrum(
    net: nn.Module,
    loss: str | Loss,
    data: Any,
    *,
    method: str = "auto",
    batchnorm: str = "eval",
    memory_limit: int | None = None,
    progress: bool = False,
) -> Spectrum:
    """All eigenvalues of the exact Hessian.

    Args:
        net: As in :func:`hessian`.
        loss: As in :func:`hessian`.
        data: As in :func:`hessian`.
        method: As in :func:`hessian`.
        batchnorm: As in :func:`hessian`.
        memory_limit: As in :func:`hessian`.
        progress: As in :func:`hessian`.

    Returns:
        The spectrum, by ``torch.linalg.eigvalsh``: each eigenvalue is exact to about P times
        float64's epsilon times the largest |λ|.

    Raises:
        ValueError: As for :func:`hessian`.
        MemoryError: As for :func:`hessian`.
    """
    check_net(net)
    size = sum(p.numel() for p in trainable(net))
    _refuse_if_too_large(3 * 8 * size * size, net, memory_limit)  # LAPACK works on a copy
    matrix = hessian(
        net,
        loss,
        data,
        method=method,
        batchnorm=batchnorm,
        memory_limit=memory_limit,
        progress=progress,
    )
    return Spectrum.of(torch.linalg.eigvalsh(matrix))


def hessian_cost(
    net: nn.Module,
    loss: str | Loss,
    data: Any,
    *,
    method: str = "auto",
    batchnorm: str = "eval",
) -> HessianCost:
    """What :func:`hessian` would take, without the work.

    Args:
        net: As in :func:`hessian`.
        loss: As in :func:`hessian`.
        data: As in :func:`hessian`; an iterator that can be read only once is used up.
        method: As in :func:`hessian`.
        batchnorm: As in :func:`hessian`.

    Returns:
        Method, parameters, bytes and estimated seconds (within a factor of a few).

    Raises:
        ValueError: As for :func:`hessian`.
    """
    check_net(net)
    with preserved(net, batchnorm=batchnorm):
        plan = _plan(net, loss, pixels_as_inputs(data, net), method)
        check_batches(net, loss, plan.batches)
        seconds = plan.seconds()
    return HessianCost(method=plan.method, parameters=plan.size, bytes=plan.bytes, seconds=seconds)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """A route chosen, its memory known."""

    method: str
    size: int
    bytes: int
    batches: Batches
    run: Callable[[bool], Tensor]
    seconds: Callable[[], float]


def _plan(net: nn.Module, loss: str | Loss, data: Any, method: str) -> _Plan:
    check_choice("method", method, METHODS)
    loss_function(loss)  # an unknown name is refused before anything else happens
    device = trainable(net)[0].device
    parts = [(x.to(device), y.to(device)) for x, y in batches(data)]
    check_inputs(net, parts)
    chain = chain_of(net) if _are_rows(net, parts) else None
    is_closed = chain is not None and chain.is_linear and loss == "square" and _are_matrices(parts)
    if chain is not None and is_closed and method in ("auto", "closed_form"):
        return _closed_plan(chain, parts)
    if method == "closed_form":
        raise ValueError(
            "method: 'closed_form' needs a linear net without biases, all parameters trainable, "
            f"and the square loss on matrices; got {type(net).__name__} and loss {loss!r}"
        )
    if chain is not None and method in ("auto", "layer_pairs"):
        return _pairs_plan(chain, loss, parts)
    if method == "layer_pairs":
        raise ValueError(
            "method: 'layer_pairs' needs a ShortcutNet or a Sequential of Linear and elementwise "
            "activations on samples that are vectors, all parameters trainable, none shared; got "
            f"{type(net).__name__}: use 'columns'"
        )
    return _columns_plan(net, loss, parts)


def _closed_plan(chain: LayerChain, parts: Batches) -> _Plan:
    size = sum(chain.augmented_sizes)
    outputs = sum(len(weight) for weight in chain.layers)
    return _Plan(
        method="closed_form",
        size=size,
        bytes=8 * size**2 + 8 * outputs**2,
        batches=parts,
        run=lambda progress: linear_hessian(_units(chain), Moments.of(parts)),
        seconds=lambda: 8 * size**2 / _BANDWIDTH,
    )


def _pairs_plan(chain: LayerChain, loss: str | Loss, parts: Batches) -> _Plan:
    size, samples = sum(chain.augmented_sizes), sum(len(x) for x, _ in parts)
    device = parts[0][0].device
    copies = 1 if chain.order is None else 3  # rows and columns are reordered at the end
    return _Plan(
        method="layer_pairs",
        size=size,
        bytes=copies * 8 * size**2 + 2 * _WORKSPACE,
        batches=parts,
        run=lambda progress: _layer_pairs(chain, loss, parts, progress),
        seconds=lambda: 4 * samples * size**2 / matmul_rate(device) + 8 * size**2 / _BANDWIDTH,
    )


def _columns_plan(net: nn.Module, loss: str | Loss, parts: Batches) -> _Plan:
    size = sum(p.numel() for p in trainable(net))
    return _Plan(
        method="columns",
        size=size,
        bytes=2 * 8 * size**2 + 2 * _WORKSPACE,
        batches=parts,
        run=lambda progress: column_hessian(net, loss, parts, progress),
        seconds=lambda: column_seconds(net, loss, parts) + 2 * 8 * size**2 / _BANDWIDTH,
    )


def _are_rows(net: nn.Module, parts: Batches) -> bool:
    """Whether every sample reaches the first layer as one vector."""
    flattened = any(isinstance(module, nn.Flatten) for module in net.modules())
    return all(x.dim() == 2 or (x.dim() > 2 and flattened) for x, _ in parts)


def _are_matrices(parts: Batches) -> bool:
    return all(x.dim() == 2 and y.dim() == 2 and y.is_floating_point() for x, y in parts)


def _refuse_if_too_large(needed: int, net: nn.Module, limit: int | None) -> None:
    weights = trainable(net)
    available = available_bytes(weights[0].device) if limit is None else limit
    if needed > available:
        size = sum(weight.numel() for weight in weights)
        raise MemoryError(
            f"hessian: P = {size} parameters need {readable_bytes(needed)}, "
            f"{readable_bytes(available)} are available; use a narrower or shallower net, fewer "
            "trainable parameters "
            "(requires_grad_(False)), or at zero weights the prediction rt.theory.zero_point, "
            "which needs no matrix"
        )


# -- the three routes ------------------------------------------------------------------------------


def _units(chain: LayerChain) -> list[Unit]:
    return [
        Unit(
            tuple(unit.weights),
            torch.eye(unit.weights[0].shape[1]).to(unit.weights[0]) if unit.shortcut else None,
        )
        for unit in chain.units
    ]


def _layer_pairs(chain: LayerChain, loss: str | Loss, parts: Batches, progress: bool) -> Tensor:
    total = sum(len(x) for x, _ in parts)
    with tqdm(total=total, disable=not progress, desc="Hessian", unit="sample") as bar:
        return chain_hessian(chain, loss, parts, report=bar.update)
