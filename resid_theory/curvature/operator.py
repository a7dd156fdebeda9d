"""Hessian, generalized Gauss-Newton and empirical Fisher as linear operators, at any size."""

from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from tqdm import tqdm

from resid_theory._check import as_generator, as_tensor, check_choice, check_int
from resid_theory.curvature.accumulation import ENGINES, BatchSum
from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.curvature.matvec_graphs import MatvecGraph
from resid_theory.curvature.parameter_selection import select_parameters
from resid_theory.eigen.operator_log import MatrixError
from resid_theory.losses import LossLike
from resid_theory.runtime.process_group import ProcessGroup
from resid_theory.runtime.resources import readable_bytes

__all__ = ["CurvatureBlock", "CurvatureOperator", "curvature_operator"]

_PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
_ARRAYS = {torch.float64: np.dtype(np.float64), torch.float32: np.dtype(np.float32)}
_DENSE_STEP = 256  # columns of a dense matrix computed at a time


class CurvatureBlock:
    """Rows and columns of a symmetric curvature matrix, as a linear operator.

    Made by :meth:`CurvatureOperator.block`; ``A @ V`` costs no more than the parts of the net
    between its rows and columns.

    Attributes:
        error: Difference of the whole matrix from that of the same weights in float64, measured on
            a few samples when the operator is made; None for a net in float64.
    """

    def __init__(
        self,
        sums: BatchSum,
        process_group: ProcessGroup,
        rows: Sequence[int],
        columns: Sequence[int],
        weight: float,
        dtype: torch.dtype,
        error: MatrixError | None,
    ) -> None:
        self._sums, self._process_group, self.error = sums, process_group, error
        self._rows, self._columns, self._weight, self._dtype = rows, columns, weight, dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        sizes = [parameter.numel() for parameter in self._sums.risk.parameters]
        return sum(sizes[k] for k in self._rows), sum(sizes[k] for k in self._columns)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of results: the precision in which chunks are added up."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """The device of the net and of the results."""
        return self._sums.risk.device

    def __matmul__(self, vectors: Any) -> Tensor:
        """The matrix times one vector or several.

        Args:
            vectors: (columns,) or (columns, b), any real dtype; moved to the operator's device.

        Returns:
            (rows,) or (rows, b), of the operator's dtype.

        Raises:
            ValueError: If the shape does not fit, or net or data changed meanwhile.
        """
        given = as_tensor("V", vectors).detach()
        if given.dim() not in (1, 2) or len(given) != self.shape[1]:
            raise ValueError(
                f"V: got shape {tuple(given.shape)} for an operator of shape {self.shape}; needs "
                f"({self.shape[1]},) or ({self.shape[1]}, b)"
            )
        columns = given.to(self.device, torch.float64)
        columns = columns.unsqueeze(1) if columns.dim() == 1 else columns
        # Products are linear: a power of two keeps vectors in float32's range without rounding.
        size = columns.abs().amax(0) if len(columns) else columns.new_ones(columns.shape[1])
        scale = torch.where(size > 0, torch.exp2(torch.floor(torch.log2(size))), 1.0)
        scaled = (columns / scale).mT
        total = torch.zeros(len(scaled), self.shape[0], dtype=self._dtype, device=self.device)
        if len(scaled):
            product = partial(
                MatvecGraph.product, vectors=scaled, rows=self._rows, columns=self._columns
            )
            self._sums.add_up(product, total)
        local = total.mT.double() * scale
        result = self._process_group.add_product(local, columns) / self._weight
        self._add_decay(result, columns)
        return result.to(self._dtype).view(self.shape[0], *given.shape[1:])

    def _add_decay(self, result: Tensor, vectors: Tensor) -> None:
        """Add the weight decay times the vectors, where rows and columns are the same parameter."""
        sizes = [parameter.numel() for parameter in self._sums.risk.parameters]
        places, start = {}, 0
        for k in self._columns:
            places[k], start = slice(start, start + sizes[k]), start + sizes[k]
        start = 0
        for k in self._rows if self._sums.risk.weight_decay else ():
            if k in places:
                decay = self._sums.risk.weight_decay
                result[start : start + sizes[k]].add_(vectors[places[k]], alpha=decay)
            start += sizes[k]

    def to_scipy(self) -> LinearOperator:
        """For ``scipy.sparse.linalg``, whose arrays are on the CPU.

        Returns:
            A LinearOperator with ``matmat`` for blocks of vectors, and the transpose.
        """
        mirror = CurvatureBlock(
            self._sums, self._process_group, self._columns, self._rows, self._weight, self._dtype,
            self.error,
        )  # fmt: skip

        def product(block: CurvatureBlock) -> Callable[[Any], Any]:
            return lambda vectors: (block @ np.asarray(vectors)).cpu().numpy()

        return LinearOperator(
            self.shape, dtype=_ARRAYS[self._dtype], matvec=product(self), matmat=product(self),
            rmatvec=product(mirror), rmatmat=product(mirror),
        )  # fmt: skip

    def dense(self, *, progress: bool = False) -> Tensor:
        """The matrix itself, for a small operator only.

        Args:
            progress: Whether to show a progress bar on standard error.

        Returns:
            ``shape``, of the operator's dtype, from products with unit vectors.
        """
        rows, columns = self.shape
        matrix = torch.empty(rows, columns, dtype=self._dtype, device=self.device)
        title = self._sums.risk.title
        with tqdm(total=columns, disable=not progress, desc=title, unit="column") as bar:
            for start in range(0, columns, _DENSE_STEP):
                count = min(_DENSE_STEP, columns - start)
                units = torch.zeros(columns, count, dtype=self._dtype, device=self.device)
                units[start + torch.arange(count), torch.arange(count)] = 1.0
                matrix[:, start : start + count] = self @ units
                bar.update(count)
        return matrix


class CurvatureOperator(CurvatureBlock):
    """A symmetric curvature matrix of a mean loss as a linear operator; see `curvature_operator`.

    Attributes:
        risk: Net, loss, data and matrix.
        loss: The loss, a float from a float64 sum over chunks.
        gradient: Its gradient, (P,), float64.
        samples: Number of samples, in all processes together.
    """

    def __init__(self, sums: BatchSum, process_group: ProcessGroup, dtype: torch.dtype) -> None:
        risk, total, error = sums.risk, sums.total, None
        counts = process_group.add(total.new_tensor([sums.samples, sums.weight])).tolist()
        weight, every = 1.0 if risk.sums else counts[1], range(len(risk.parameters))
        if sums.error is not None:  # those of the processes add up as their matrices do
            parts = total.new_tensor(astuple(sums.error)) * sums.weight
            spectral, frobenius, trace = (process_group.add(parts) / (weight or 1.0)).tolist()
            error = MatrixError(spectral=spectral, frobenius=frobenius, trace=trace)
        if weight == 0.0:
            raise ValueError("data y: no label counts, so the loss is 0 / 0; needs at least one")
        super().__init__(sums, process_group, every, every, weight, dtype, error)
        mean = process_group.add(total) / weight
        if not bool(torch.isfinite(mean).all()):
            raise ValueError(
                "net: its loss or gradient is not finite on these data; check weights, activations "
                "and targets"
            )
        point = torch.cat([p.detach().reshape(-1).double() for p in risk.parameters])
        decay = risk.weight_decay
        self.risk, self.samples = risk, int(counts[0])
        self.loss = float(mean[0]) + decay / 2 * float(point @ point)
        self.gradient = mean[1:].add_(point, alpha=decay)

    @property
    def matrix(self) -> str:
        """The name of the matrix, such as ``hessian``."""
        return self.risk.matrix

    @property
    def names(self) -> list[str]:
        """Names of the parameters that rows and columns stand for, in order."""
        return list(self.risk.names)

    @property
    def engine(self) -> str:
        """``retained`` if graphs are kept between products, ``rebuilt`` if made for each."""
        return self._sums.engine

    @property
    def chunk(self) -> int | None:
        """Most samples of a graph; None for whole batches."""
        return self._sums.chunk if self.risk.splits else None

    @property
    def memory_limit(self) -> int | None:
        """Bytes that may be used, None where the caller set no limit."""
        return self._sums.limit

    @property
    def processes(self) -> int:
        """Number of processes that share the data."""
        return self._process_group.count

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the matrix and its data."""
        return (*self.risk.data.notes, *self.risk.notes)

    def check_unchanged(self) -> None:
        """Raise a ValueError if the net changed since the operator was made."""
        self._sums.check_unchanged()

    def block(self, rows: Any, columns: Any = None) -> CurvatureBlock:
        """A diagonal block, or the block of some rows and some columns.

        Args:
            rows: Names, patterns or parameters among the operator's own, as ``parameters`` of
                `curvature_operator`.
            columns: The same; None takes the rows.

        Returns:
            The operator of that block, in the order of ``names`` whatever the order given.

        Raises:
            ValueError: If a name chooses nothing.
        """
        known = dict(zip(self.risk.names, self.risk.parameters, strict=True))
        place = {name: number for number, name in enumerate(known)}
        lower = [place[name] for name in select_parameters("rows", rows, known)]
        across = lower
        if columns is not None:
            across = [place[name] for name in select_parameters("columns", columns, known)]
        return CurvatureBlock(
            self._sums, self._process_group, lower, across, self._weight, self._dtype, self.error
        )

    def describe(self) -> str:
        """A few lines on the operator, its engine, and the cost of a product."""
        sums, risk = self._sums, self.risk
        held = readable_bytes(sums.sample_bytes * sums.samples)
        average = "sum" if risk.sums else "mean"
        lines = [
            f"{risk.title}, P = {self.shape[0]}, {average} over {self.samples} samples"
            + (f" on {self.processes} ranks" if self.processes > 1 else ""),
            f"BatchNorm: {risk.batchnorm}; products in {risk.parameters[0].dtype}, added in "
            f"{self._dtype}; chunks of {self.chunk or 'whole batches'}",
            f"engine: {self.engine}; retained graphs: {held}, about "
            f"{sums.retained_seconds:.2g} s a product; rebuilt: {sums.rebuilt_seconds:.2g} s",
        ]
        if risk.data.shuffled:
            lines.append("the loader shuffles between passes: products agree to round-off")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    __str__ = describe

    def __repr__(self) -> str:
        """One line."""
        return f"CurvatureOperator({self.matrix!r}, shape={self.shape}, engine={self.engine!r})"


def curvature_operator(
    net: nn.Module,
    loss: LossLike,
    data: Any,
    *,
    matrix: str = "hessian",
    parameters: Any = None,
    batchnorm: str = "eval",
    weight_decay: float = 0.0,
    chunk: int | None = None,
    accumulate: str = "float64",
    engine: str = "auto",
    memory_limit: int | None = None,
    process_group: Any = None,
    generator: torch.Generator | int = 0,
    progress: bool = False,
) -> CurvatureOperator:
    r"""Curvature of the mean loss over a data set as a linear operator, without the matrix.

    A matrix-vector product is one backward pass through the graph of the gradient (Hessian), or
    :math:`J^T C J v` through the graph of the outputs (the others). Graphs are kept between
    products while they fit in memory. The model is measured in eval mode and left as it was.

    Args:
        net: Any module, of one floating dtype, in which products are computed.
        loss: ``"square"`` (half the squared error, summed over outputs, mean over samples),
            ``"cross_entropy"``, a callable (output, target) -> mean over samples, or, where there
            is no (x, y), a callable whose parameters are named ``(net, batch)`` and which gives the
            batch's mean.
        data: A pair (x, y), an object with ``.x`` and ``.y``, images, a loader or a list of pairs;
            batches of any kind for a loss of (net, batch). A batch counts by its number of
            samples, for such a loss the length of its first tensor; it is moved to the net's
            device. Data are read again for every product on rebuilt graphs: other samples are then
            refused; another order is refused where samples of a batch depend on one another
            (``batchnorm="batch"``, a loss of (net, batch)), and gives a warning elsewhere.
        matrix: ``"hessian"``; ``"gauss_newton"``, with C the loss's Hessian at the outputs; or
            ``"fisher"``, the mean of g g^T over the samples' gradients g (empirical: true targets).
        parameters: None for all that are trainable; a name, a shell-style pattern
            (``"conv*.weight"``), a parameter, or several of these. The others are held fixed.
        batchnorm: ``"eval"`` uses running statistics, ``"batch"`` each batch's own.
        weight_decay: λ of a penalty λ/2 |θ|² over the parameters chosen, which adds λ to the
            diagonal of every matrix, and its own parts to loss and gradient.
        chunk: Most samples of a batch that are differentiated together; None chooses by the memory
            a sample's graph takes. Batches with ``batchnorm="batch"`` or a loss of (net, batch) are
            never split.
        accumulate: Precision in which chunks are added, ``"float64"`` or ``"float32"``, and dtype
            of the results.
        engine: ``"retained"`` keeps graphs, ``"rebuilt"`` makes them for every product; ``"auto"``
            keeps them while they fit.
        memory_limit: Bytes for graphs; by default half of what is free.
        process_group: None for this process alone. Under an initialized ``torch.distributed``:
            ``"world"`` or a process group, each of whose processes holds the net and its own shard
            of the data; all call the operator together, with the same vectors. With
            ``batchnorm="batch"`` statistics are those of each process's own batches.
        generator: A seed, or a generator whose seed is taken, for matrices that are themselves
            random; the three above are not.
        progress: Whether products show a progress bar on standard error.

    Returns:
        The operator of shape (P, P), in the order of ``torch.nn.utils.parameters_to_vector`` of the
        parameters chosen.

    Raises:
        ValueError: If a name is unknown, data, net and loss do not fit one another, data can be
            read only once or change between passes, second derivatives are not symmetric, or ranks
            hold different weights.
        MemoryError: If ``"retained"`` was asked for and does not fit.

    Source:
        Pearlmutter 1994, "Fast exact multiplication by the Hessian"; Schraudolph 2002, "Fast
        curvature matrix-vector products for second-order gradient descent", for J^T C J v.

    Example:
        >>> net = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
        >>> hessian = curvature_operator(net, "square", (x, torch.zeros_like(x[:, :1])))
        >>> (hessian @ torch.ones(2, dtype=torch.float64)).tolist()
        [0.5, 2.0]
    """
    check_choice("engine", engine, ENGINES)
    dtype = _PRECISIONS[check_choice("accumulate", accumulate, list(_PRECISIONS))]
    source = as_generator(generator)
    group = ProcessGroup(process_group)
    failure: Exception | None = None
    try:
        seed = source.initial_seed()
        risk = EmpiricalRisk(
            net,
            loss,
            data,
            matrix=matrix,
            parameters=parameters,
            batchnorm=batchnorm,
            weight_decay=weight_decay,
            seed=seed,
        )
        risk.data.check_rewindable("every product")
        sums = BatchSum(
            risk,
            chunk=chunk if chunk is None else check_int("chunk", chunk),
            engine=engine,
            limit=memory_limit,
            progress=progress,
        )
        size = len(sums.total) - 1
        if group.count > 1 and not risk.compares:
            raise ValueError(
                "loss: its weights are measured in units of a sample, which are not those of other "
                "processes; pass a name, a loss of torch.nn, or rt.Loss(loss, weights=...)"
            )
    except Exception as error:
        if group.count == 1:
            raise
        failure = error
    group.together(failure, next(iter(net.parameters())).device)
    group.check_same(list(net.parameters()), f"{matrix} {size} {sums.engine} {risk.names}")
    return CurvatureOperator(sums, group, dtype)


def operator_of(risk: EmpiricalRisk, *, memory_limit: int | None = None) -> CurvatureOperator:
    """The operator of a risk whose first samples may have been looked at, with default options."""
    sums = BatchSum(risk, chunk=None, engine="auto", limit=memory_limit, progress=False)
    return CurvatureOperator(sums, ProcessGroup(), torch.float64)
