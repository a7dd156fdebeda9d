"""The exact Hessian as a matrix, by the cheapest route that the model allows."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resid_theory._check import choose, finite
from resid_theory.curvature.chain import Chain, chain_hessian, chain_of
from resid_theory.losses import Loss, check_mean, check_scalar, check_target, loss_function
from resid_theory.moments import Moments
from resid_theory.spectra import Spectrum
from resid_theory.state import untouched
from resid_theory.stream import batches
from resid_theory.theory.linear import Unit, linear_hessian

__all__ = ["METHODS", "HessianCost", "hessian", "hessian_cost", "hessian_spectrum"]

METHODS = ("auto", "closed_form", "layer_pairs", "columns")
_WORKSPACE = 1 << 28  # bytes of activations that a group of columns may hold
_MOST_COLUMNS = 64  # differentiated together; more gains nothing once the processor is busy
_BANDWIDTH = 2e9  # bytes per second of writing new memory, for estimates only

Batches = list[tuple[Tensor, Tensor]]


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
            f"{self.method}: P = {self.parameters}, {_size(self.bytes)}, about {self.seconds:.2g} s"
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
        data: A pair (x, y), an object with ``.x`` and ``.y``, or a loader; ragged batches are
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
    _check_net(net)
    with untouched(net, batchnorm=batchnorm):
        # Inside, because a loader draws from the global RNG even when it does not shuffle.
        plan = _plan(net, loss, data, method)
        _refuse_if_too_large(plan.bytes, plan.size, memory_limit)
        _check_batches(net, loss, plan.batches)
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
    _check_net(net)
    size = sum(p.numel() for p in _parameters(net))
    _refuse_if_too_large(3 * 8 * size * size, size, memory_limit)  # LAPACK works on a copy
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
    _check_net(net)
    with untouched(net, batchnorm=batchnorm):
        plan = _plan(net, loss, data, method)
        _check_batches(net, loss, plan.batches)
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
    choose("method", method, METHODS)
    loss_function(loss)  # an unknown name is refused before anything else happens
    parts = list(batches(data))
    _check_inputs(net, parts)
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


def _closed_plan(chain: Chain, parts: Batches) -> _Plan:
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


def _pairs_plan(chain: Chain, loss: str | Loss, parts: Batches) -> _Plan:
    size, samples = sum(chain.augmented_sizes), sum(len(x) for x, _ in parts)
    copies = 1 if chain.order is None else 3  # rows and columns are reordered at the end
    return _Plan(
        method="layer_pairs",
        size=size,
        bytes=copies * 8 * size**2 + 2 * _WORKSPACE,
        batches=parts,
        run=lambda progress: _layer_pairs(chain, loss, parts, progress),
        seconds=lambda: 4 * samples * size**2 / _matmul_rate() + 8 * size**2 / _BANDWIDTH,
    )


def _columns_plan(net: nn.Module, loss: str | Loss, parts: Batches) -> _Plan:
    size = sum(p.numel() for p in _parameters(net))
    return _Plan(
        method="columns",
        size=size,
        bytes=2 * 8 * size**2 + 2 * _WORKSPACE,
        batches=parts,
        run=lambda progress: _columns(net, loss, parts, progress),
        seconds=lambda: _column_seconds(net, loss, parts) + 2 * 8 * size**2 / _BANDWIDTH,
    )


def _parameters(net: nn.Module) -> list[Tensor]:
    parameters: list[Tensor] = [p for p in net.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("net: has no trainable parameters, needs at least one requires_grad=True")
    return parameters


def _check_net(net: nn.Module) -> None:
    if not isinstance(net, nn.Module):
        raise ValueError(f"net: got {type(net).__name__}, needs a torch.nn.Module")


def _are_rows(net: nn.Module, parts: Batches) -> bool:
    """Whether every sample reaches the first layer as one vector."""
    flattened = any(isinstance(module, nn.Flatten) for module in net.modules())
    return all(x.dim() == 2 or (x.dim() > 2 and flattened) for x, _ in parts)


def _are_matrices(parts: Batches) -> bool:
    return all(x.dim() == 2 and y.dim() == 2 and y.is_floating_point() for x, y in parts)


def _check_inputs(net: nn.Module, parts: Batches) -> None:
    for key, weight in net.named_parameters():
        finite(f"net {key}", weight)
    parameter = _parameters(net)[0]
    for x, y in parts:
        for name, value in (("x", x), ("y", y)):
            if value.is_floating_point() and value.dtype != parameter.dtype:
                raise ValueError(
                    f"data {name}: has dtype {value.dtype}, the net {parameter.dtype}; needs one "
                    f"dtype, e.g. {name}.to({parameter.dtype}) or net.to({value.dtype})"
                )
            if value.device != parameter.device:
                raise ValueError(
                    f"data {name}: is on {value.device}, the net on {parameter.device}; needs one "
                    f"device, e.g. {name}.to({str(parameter.device)!r})"
                )


def _check_batches(net: nn.Module, loss: str | Loss, parts: Batches) -> None:
    """Run two samples of every shape, and hold the loss against what comes out."""
    outputs: dict[Any, Any] = {}
    with torch.no_grad():
        for x, y in parts:
            key = (x.shape[1:], x.dtype)
            if key not in outputs:
                outputs[key] = _output(net, loss, x[:2], y[:2])
            if not callable(loss):
                one = outputs[key][:1]
                check_target(loss, one.expand(len(y), *one.shape[1:]), y)


def _output(net: nn.Module, loss: str | Loss, x: Tensor, y: Tensor) -> Any:
    try:
        output = net(x.clone())  # cloned: a net that starts in place would overwrite the data
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(
            f"data x: the net does not take samples of shape {tuple(x.shape[1:])} and dtype "
            f"{x.dtype}: {error}"
        ) from error
    if callable(loss):
        if isinstance(output, Tensor) and len(output) == len(x):
            check_mean(loss, output, y)
    elif not isinstance(output, Tensor) or output.dim() == 0 or len(output) != len(x):
        given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else repr(type(output))
        raise ValueError(
            f"net: gives {given} for {len(x)} samples; the loss {loss!r} needs a tensor with one "
            "output a sample along its first axis"
        )
    return output


# -- memory ----------------------------------------------------------------------------------------


def _refuse_if_too_large(needed: int, size: int, limit: int | None) -> None:
    available = _available_bytes() if limit is None else limit
    if needed > available:
        raise MemoryError(
            f"hessian: P = {size} parameters need {_size(needed)}, {_size(available)} are "
            "available; use a narrower or shallower net, fewer trainable parameters "
            "(requires_grad_(False)), or at zero weights the prediction rt.theory.zero_point, "
            "which needs no matrix"
        )


def _available_bytes() -> int:
    """Free memory of the machine, or of the container where that is less."""
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        free.append(1024 * int(lines["MemAvailable"].split()[0]))
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            most = file.read().strip()
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as file:
            free.append(int(most) - int(file.read()) if most != "max" else free[0])
    except (OSError, KeyError, ValueError):
        pass  # not Linux, or no such limit: the smallest of what is known decides
    return max(0, min(free))


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 28 else f"{count / 2**20:.1f} MiB"


# -- time ------------------------------------------------------------------------------------------


@cache
def _matmul_rate() -> float:
    """Floating-point operations per second of a float64 matrix product, measured once."""
    a = torch.ones(400, 400, dtype=torch.float64)
    a @ a
    start = time.perf_counter()
    for _ in range(5):
        a @ a
    return 5 * 2 * 400**3 / (time.perf_counter() - start)


def _column_seconds(net: nn.Module, loss: str | Loss, parts: Batches) -> float:
    """Time of all columns, from one group on the first batch."""
    x, y = parts[0]
    start = time.perf_counter()
    columns = _Columns.of(net, loss, x, y)
    ready = time.perf_counter()
    columns.rows(0)
    once, group = ready - start, time.perf_counter() - ready
    groups = -(-columns.size // columns.step)
    samples = sum(len(x) for x, _ in parts)
    return (once + group * groups) * samples / len(x)


# -- the three routes ------------------------------------------------------------------------------


def _units(chain: Chain) -> list[Unit]:
    return [
        Unit(
            tuple(unit.weights),
            torch.eye(unit.weights[0].shape[1]).to(unit.weights[0]) if unit.shortcut else None,
        )
        for unit in chain.units
    ]


def _layer_pairs(chain: Chain, loss: str | Loss, parts: Batches, progress: bool) -> Tensor:
    total = sum(len(x) for x, _ in parts)
    with tqdm(total=total, disable=not progress, desc="Hessian", unit="sample") as bar:
        return chain_hessian(chain, loss, parts, report=bar.update)


def _columns(net: nn.Module, loss: str | Loss, parts: Batches, progress: bool) -> Tensor:
    size = sum(p.numel() for p in _parameters(net))
    device = _parameters(net)[0].device
    total = torch.zeros(size, size, dtype=torch.float64, device=device)
    samples = sum(len(x) for x, _ in parts)
    with tqdm(total=size * len(parts), disable=not progress, desc="Hessian", unit="column") as bar:
        for x, y in parts:
            columns = _Columns.of(net, loss, x, y)
            for start in range(0, size, columns.step):
                rows = columns.rows(start)
                total[start : start + len(rows)] += (len(x) / samples) * rows
                bar.update(len(rows))
    _check_symmetric(total, torch.finfo(_parameters(net)[0].dtype).eps)
    return 0.5 * (total + total.mT)


def _check_symmetric(total: Tensor, eps: float) -> None:
    low, high = torch.aminmax(total)
    gap = (total - total.mT).max().item()
    # Round-off stays far below the fourth root of the precision, a wrong derivative far above.
    if gap > eps**0.25 * max(-low.item(), high.item()):
        raise ValueError(
            f"net: its second derivatives are not symmetric (by {gap:.2g}), so they are those of "
            "no function; the usual causes are a gradient written by hand and an operation that "
            "torch differentiates only once right (torch.nn.utils weight_norm is one)"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Columns:
    """The gradient of one batch's loss with its graph, to draw columns from in groups."""

    parameters: list[Tensor]
    gradient: Tensor
    step: int

    @classmethod
    def of(cls, net: nn.Module, loss: str | Loss, x: Tensor, y: Tensor) -> "_Columns":
        saved = 0

        def weigh(tensor: Tensor) -> tuple[Tensor, int]:
            nonlocal saved
            saved += tensor.numel() * tensor.element_size()
            return tensor, tensor._version

        def give(packed: tuple[Tensor, int]) -> Tensor:
            tensor, version = packed
            if tensor._version != version:  # torch's own check is off where hooks are on
                raise ValueError("net: overwrites in place a value that its gradient needs")
            return tensor

        parameters = _parameters(net)
        with (
            torch.enable_grad(),
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
            torch.autograd.graph.saved_tensors_hooks(weigh, give),
        ):
            value = check_scalar(loss_function(loss)(net(x.clone()), y))
            grads = torch.autograd.grad(
                value, parameters, create_graph=True, allow_unused=True, materialize_grads=True
            )
            gradient = torch.cat([grad.reshape(-1) for grad in grads])
        step = max(1, min(_MOST_COLUMNS, _WORKSPACE // max(1, saved)))
        return cls(parameters=parameters, gradient=gradient, step=step)

    @property
    def size(self) -> int:
        return len(self.gradient)

    def rows(self, start: int) -> Tensor:
        """Rows of the Hessian from ``start`` on, at most ``step``, float64."""
        count = min(self.step, self.size - start)
        if not self.gradient.requires_grad:  # the loss is linear in every parameter
            return torch.zeros(count, self.size, dtype=torch.float64, device=self.gradient.device)
        units = torch.zeros(
            count, self.size, dtype=self.gradient.dtype, device=self.gradient.device
        )
        units[torch.arange(count), start + torch.arange(count)] = 1.0
        parts = self._backward(units) if count > 1 else None
        if parts is None:
            parts = [torch.stack(p) for p in zip(*map(self._single, units), strict=True)]
        # A parameter that the gradient does not reach has zeros without the group's axis.
        flat = [
            part.expand(count, *parameter.shape).reshape(count, -1)
            for part, parameter in zip(parts, self.parameters, strict=True)
        ]
        return torch.cat(flat, dim=1).to(torch.float64)

    def _backward(self, units: Tensor) -> list[Tensor] | None:
        try:
            return list(
                torch.autograd.grad(
                    self.gradient,
                    self.parameters,
                    grad_outputs=units,
                    is_grads_batched=True,
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
            )
        except RuntimeError:
            return None  # an operation without a batching rule: one column at a time gives the same

    def _single(self, unit: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            self.gradient,
            self.parameters,
            grad_outputs=unit,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
