"""The exact Hessian as a matrix, by the cheapest route that the model allows."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resid_theory._check import check_choice
from resid_theory.curvature.columns import PANEL, columns_of
from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.curvature.first_look import check_batches
from resid_theory.curvature.layer_pairs import (
    NotPaired,
    layer_sizes,
    pairs_hessian,
    samples_together,
)
from resid_theory.curvature.operator import CurvatureOperator, operator_of
from resid_theory.data.moments import Moments
from resid_theory.eigen.matrix_error import MatrixError
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.losses import LossLike, NoWeighting
from resid_theory.networks.shortcut import ShortcutNet
from resid_theory.runtime.net_entry import check_net
from resid_theory.runtime.preserve import preserved
from resid_theory.runtime.resources import allowed_bytes, clock, matmul_rate, readable_bytes
from resid_theory.runtime.result import Result
from resid_theory.theory.linear.hessian_assembly import linear_hessian

METHODS = ("auto", "closed_form", "layer_pairs", "columns")
# Bytes per second of writing new memory, for estimates only.
_BANDWIDTH = {"cpu": 2e9, "cuda": 5e11}


@dataclass(frozen=True, kw_only=True)
class HessianCost(Result):
    """Memory and time of a dense Hessian, known before the work starts.

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

    @property
    def title(self) -> str:
        """All in one line."""
        return (
            f"{self.method}: P = {self.parameters}, {readable_bytes(self.bytes)}, "
            f"about {self.seconds:.2g} s"
        )


def hessian(
    net: nn.Module,
    loss: LossLike,
    data: Any,
    *,
    method: str = "auto",
    batchnorm: str = "eval",
    weight_decay: float = 0.0,
    memory_limit: int | None = None,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Tensor:
    """Exact Hessian of the loss over a data set.

    Linear nets with the square loss use the closed form from the data's moments, nets whose weights
    are all applied to one vector of each sample products of layer pairs, everything else columns of
    Hessian-vector products on a retained graph. The model is measured in eval mode and left as it
    was.

    Args:
        net: Any module. Parameters with ``requires_grad=False`` are held fixed and have no rows.
        loss: ``"square"`` (half the squared error, summed over outputs, mean over samples),
            ``"cross_entropy"``, a loss of ``torch.nn``, a callable (output, target), or
            ``rt.Loss(function, of="batch")`` for a loss of (net, batch).
        data: A pair (x, y), an object with ``.x`` and ``.y``, images, a loader, or anything else
            that `rt.Data.of` takes; read once. Batches count by what the loss divides by.
        method: One of ``METHODS``; ``auto`` takes the first that applies.
        batchnorm: ``"eval"`` uses running statistics, ``"batch"`` each batch's own.
        weight_decay: λ of a penalty λ/2 |θ|², which adds λ to the diagonal.
        memory_limit: Bytes that may be used; by default what the machine has free.
        folder: Folder in which ``"columns"`` records its columns, half as many bytes as the matrix
            has. A killed call, made again, continues from there. None for no record.
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
    with _planned(net, loss, data, method, batchnorm, weight_decay=weight_decay) as plan:
        return plan.matrix(memory_limit=memory_limit, folder=folder, progress=progress)[0]


def hessian_spectrum(
    net: nn.Module,
    loss: LossLike,
    data: Any,
    *,
    method: str = "auto",
    batchnorm: str = "eval",
    weight_decay: float = 0.0,
    memory_limit: int | None = None,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Spectrum:
    """All eigenvalues of the exact Hessian.

    Args:
        net: As :func:`hessian` takes it, like all that follows.
        loss: A name, a loss of ``torch.nn``, a callable, or ``rt.Loss``.
        data: A pair (x, y), an object with ``.x`` and ``.y``, images, or a loader.
        method: One of ``METHODS``.
        batchnorm: ``"eval"`` or ``"batch"``.
        weight_decay: λ of a penalty λ/2 |θ|².
        memory_limit: Bytes that may be used.
        folder: Folder from which a killed call continues.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The spectrum, by LAPACK, which overwrites the matrix where a copy does not fit: each
        eigenvalue is exact to its ``zero_threshold``, about P times float64's epsilon times the
        largest |λ|; more for a net in a lower precision that cannot be copied to float64.

    Raises:
        ValueError: If data do not fit the net, a name is unknown, or the method does not apply.
        MemoryError: If the matrix does not fit.
    """
    with _planned(net, loss, data, method, batchnorm, weight_decay=weight_decay) as plan:
        matrix, error = plan.matrix(memory_limit=memory_limit, folder=folder, progress=progress)
    return Spectrum.of(_eigenvalues(matrix, memory_limit), error=error.spectral)


def hessian_cost(
    net: nn.Module, loss: LossLike, data: Any, *, method: str = "auto", batchnorm: str = "eval"
) -> HessianCost:
    """Memory and time that :func:`hessian` would take, without the work.

    Args:
        net: As :func:`hessian` takes it, like all that follows.
        loss: A name, a loss of ``torch.nn``, a callable, or ``rt.Loss``.
        data: The data; an iterator that can be read only once is used up.
        method: One of ``METHODS``.
        batchnorm: ``"eval"`` or ``"batch"``.

    Returns:
        Method, parameters, bytes and estimated seconds (within a factor of a few).

    Raises:
        ValueError: If data do not fit the net, a name is unknown, or the method does not apply.
    """
    with _planned(net, loss, data, method, batchnorm) as plan:
        return plan.cost()


@contextmanager
def _planned(
    net: nn.Module, loss: LossLike, data: Any, method: str, batchnorm: str, **options: Any
) -> "Iterator[HessianPlan]":
    """Choose the route for a net that is measured inside."""
    net = check_net(net, finite=False)
    with preserved(net, batchnorm=batchnorm):
        # Inside, because a loader draws from the global RNG even when it does not shuffle.
        risk = EmpiricalRisk(net, loss, data, batchnorm=batchnorm, **options)
        yield HessianPlan.of(risk, method=method)


@dataclass(frozen=True, kw_only=True, eq=False)
class HessianPlan:
    """A route to the Hessian of a risk with respect to all parameters; its data have been read."""

    risk: EmpiricalRisk  # its data are held in memory
    linear: Any  # what `linear_hessian` takes of the net; None unless its Hessian is that
    layers: list[tuple[int, int]]  # outputs and inputs; empty unless they give the Hessian
    method: str

    @classmethod
    def of(cls, risk: EmpiricalRisk, *, method: str = "auto") -> "HessianPlan":
        """Read the data once and choose the route; the net is in the mode to be measured in."""
        check_choice("method", method, METHODS)
        risk = copy.copy(risk)
        risk.data = risk.data.held()
        check_batches(risk, risk.first_pass())
        net, loss, linear, layers = risk.net, risk.loss, None, list[tuple[int, int]]()
        batches = list(risk.data)
        if loss.identity and all(b.is_pair and b.sample_weight is None for b in batches):
            inputs = [batch.ends().inputs for batch in batches]
            if all(isinstance(x, Tensor) and x.dim() == 2 for x in inputs):
                linear = _linear(net)
        if linear is None and method == "closed_form":
            raise ValueError(
                "method: 'closed_form' needs a linear net without biases, all parameters "
                "trainable, and the square loss on matrices; got "
                f"{type(net).__name__} and loss {loss.name!r}"
            )
        if linear is None and method == "auto" or method == "layer_pairs":
            layers = layer_sizes(risk, batches[0])
        if not layers and method == "layer_pairs":
            raise ValueError(
                "method: 'layer_pairs' needs trainable weights and biases that are applied to one "
                "vector of each sample, and a loss that is a weighted mean or a sum over samples "
                f"and sees outputs only; got {type(net).__name__} and {loss.name!r}: use 'columns'"
            )
        if method == "auto":
            method = "layer_pairs" if layers else "columns" if linear is None else "closed_form"
        return cls(risk=risk, linear=linear, layers=layers, method=method)

    @property
    def size(self) -> int:
        """Number of trainable parameters P."""
        return sum(p.numel() for p in self.risk.parameters)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(batch.size for batch in self.risk.data)

    @property
    def bytes(self) -> int:
        """Memory at the peak, the result included, without graphs that are rebuilt if need be."""
        matrix = 8 * self.size**2
        if self.method == "columns":  # a panel as unit vectors, as products, in several copies
            return matrix + 8 * 8 * PANEL * self.size
        if self.method == "closed_form":
            net = self.linear
            weights = net.layers() if isinstance(net, ShortcutNet) else net
            return matrix + 8 * sum(len(weight) for weight in weights) ** 2
        most, responses = samples_together(self.layers)
        held = responses * min(most, max(batch.size for batch in self.risk.data))
        largest = 8 * max(rows * columns for rows, columns in self.layers) ** 2
        return matrix + max(matrix, held + largest)  # mirrored in the end, by a copy

    def cost(self) -> HessianCost:
        """Memory, and time within a factor of a few."""
        device, size, needed = self.risk.device, self.size, self.bytes
        seconds = 8 * size**2 / _BANDWIDTH.get(device.type, _BANDWIDTH["cpu"])
        if self.method == "layer_pairs":
            seconds += 4 * self.samples * size**2 / matmul_rate(device)
        elif self.method == "columns":
            risk, first = copy.copy(self.risk), next(iter(self.risk.data))
            risk.data = risk.data.only(first)
            start = clock(device)
            operator = replace(self, risk=risk)._operator()
            built = clock(device)
            panel = min(PANEL, size)
            operator @ torch.eye(size, panel)
            once, product = built - start, clock(device) - built
            seconds += (once + product * size / panel) * self.samples / first.size
            needed += operator.graph_bytes(self.samples)
        return HessianCost(method=self.method, parameters=size, bytes=needed, seconds=seconds)

    def matrix(
        self,
        *,
        memory_limit: int | None,
        folder: str | Path | None = None,
        progress: bool,
    ) -> tuple[Tensor, MatrixError]:
        """The Hessian, (P, P), float64, and its error beyond the rounding of float64."""
        risk, error = self.risk, MatrixError()
        allowed = allowed_bytes(memory_limit, risk.device)
        if folder is not None and self.method != "columns":
            raise ValueError(
                f"folder: got one, but {self.method!r} takes no products; needs method='columns'"
            )
        self._refuse_if_above(allowed)
        if self.method == "columns":
            # Graphs may take what the matrix leaves, or half of what is free beside it.
            operator = self._operator((allowed - self.bytes) // (1 + (memory_limit is None)))
            result, gap = columns_of(operator, folder=folder, progress=progress)
            error = (operator.error or error).at_least(gap)
            probe = result
        else:
            if self.method == "closed_form":
                result = linear_hessian(self.linear, Moments.of(risk.data))
                # Reading it back would cost as much as making it; the diagonal shows an overflow.
                probe = result.diagonal()
            else:
                title = {"desc": "Hessian", "unit": "sample"}
                chunk, _ = samples_together(self.layers)
                try:
                    with tqdm(total=self.samples, disable=not progress, **title) as bar:
                        result = pairs_hessian(self._wide(), chunk, report=bar.update)
                except (NoWeighting, NotPaired) as reason:  # unlike samples, or a part beside pairs
                    if isinstance(reason, NoWeighting):
                        risk.keep_whole(str(reason))
                    columns = replace(self, method="columns")
                    return columns.matrix(memory_limit=memory_limit, progress=progress)
                probe = result
            result.diagonal().add_(risk.weight_decay)
        if not bool(torch.isfinite(probe.sum())):
            raise ValueError(
                "net: its Hessian is not finite on these data; check weights and activations"
            )
        return result, error

    def _refuse_if_above(self, available: int) -> None:
        if self.bytes > available:
            raise MemoryError(
                f"hessian: P = {self.size} parameters need {readable_bytes(self.bytes)}, "
                f"{readable_bytes(available)} are available; use a narrower or shallower net, "
                "fewer trainable parameters (requires_grad_(False)), or at zero weights the "
                "prediction rt.theory.zero_point, which needs no matrix"
            )

    def _wide(self) -> EmpiricalRisk:
        """The risk in float64, if net and loss can be copied and run there."""
        try:
            wide = self.risk.widened()
            if wide is not self.risk:
                check_batches(wide, wide.first_pass())
        except Exception:  # then an operator says how exact its products are
            return self.risk
        return wide

    def _operator(self, memory_limit: int | None = None) -> CurvatureOperator:
        """Products in float64, if possible."""
        return operator_of(self._wide(), memory_limit=memory_limit)


def _linear(net: nn.Module) -> Any:
    """A linear net, or its matrices; None of one that is not linear in its inputs."""
    modules = [m for _, m in net.named_modules(remove_duplicate=False)]
    plain = all(p.requires_grad for p in net.parameters()) and not any(
        m._forward_hooks or m._forward_pre_hooks for m in modules
    )
    if type(net) is ShortcutNet:
        return net if net.is_linear and plain else None
    layers = [m for m in modules if isinstance(m, nn.Linear)]
    known = (nn.Sequential, nn.Linear, nn.Identity, nn.Dropout)
    alone = len({id(m.weight) for m in layers}) == len(layers) > 0
    if plain and alone and all(type(m) in known for m in modules):
        if all(m.bias is None for m in layers):
            return [m.weight for m in layers]
    return None


def _eigenvalues(matrix: Tensor, limit: int | None) -> Tensor:
    """Eigenvalues of a symmetric matrix, which is overwritten where memory for a copy is short."""
    needed = 9 * matrix.numel()  # a copy and buffers, measured
    free = allowed_bytes(limit, matrix.device) - 8 * matrix.numel() * (limit is not None)
    if needed <= free or matrix.device.type != "cpu":
        return torch.linalg.eigvalsh(matrix)
    from scipy.linalg import eigvalsh  # half as fast as torch's, which copies

    values = eigvalsh(matrix.numpy().T, overwrite_a=True, check_finite=False)
    return torch.from_numpy(values)
