"""Hessian, generalized Gauss-Newton and empirical Fisher as linear operators, at any size."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from resid_theory._check import as_tensor, check_choice, check_int
from resid_theory.curvature.accumulation import ENGINES, BatchSum
from resid_theory.curvature.empirical_risk import MATRICES, Problem
from resid_theory.curvature.matvec_graphs import MatvecGraph, flat_gradient
from resid_theory.curvature.parameter_selection import chosen
from resid_theory.data.reiterable import Passes
from resid_theory.losses import Loss
from resid_theory.runtime.process_group import ProcessGroup
from resid_theory.runtime.resources import readable_bytes

__all__ = ["CurvatureBlock", "CurvatureOperator", "curvature_operator"]

_PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
_ARRAYS = {torch.float64: np.dtype(np.float64), torch.float32: np.dtype(np.float32)}
_NAMES = {
    "hessian": "Hessian",
    "gauss_newton": "generalized Gauss-Newton matrix",
    "fisher": "empirical Fisher matrix",
}
_DENSE_STEP = 256  # columns of a dense matrix drawn at a time


class CurvatureBlock:
    """Rows and columns of a symmetric curvature matrix, as a linear operator.

    Made by :meth:`CurvatureOperator.block`; ``A @ V`` costs no more than the parts of the net
    between its rows and columns.

    Args:
        engine: What draws products.
        process_group: The processes that share the data.
        problem: Net, loss and matrix.
        rows: Numbers of parameters.
        columns: Numbers of parameters.
        samples: Over all ranks.
        dtype: Of sums and results.
    """

    def __init__(
        self,
        engine: BatchSum,
        process_group: ProcessGroup,
        problem: Problem,
        rows: Sequence[int],
        columns: Sequence[int],
        samples: int,
        dtype: torch.dtype,
    ) -> None:
        self._engine, self._process_group, self._problem = engine, process_group, problem
        self._rows, self._columns, self._samples, self._dtype = rows, columns, samples, dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        sizes = [parameter.numel() for parameter in self._problem.parameters]
        return sum(sizes[k] for k in self._rows), sum(sizes[k] for k in self._columns)

    @property
    def dtype(self) -> torch.dtype:
        """Of results: the precision in which chunks are added up."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where the net and the results are."""
        return self._problem.parameters[0].device

    def __matmul__(self, vectors: Any) -> Tensor:
        """The matrix times one vector or several.

        Args:
            vectors: (columns,) or (columns, b), any real dtype; moved to the operator's device.

        Returns:
            (rows,) or (rows, b), of the operator's dtype.

        Raises:
            ValueError: If the shape does not fit, or parameters or data changed meanwhile.
        """
        given = as_tensor("V", vectors).detach()
        if given.dim() not in (1, 2) or len(given) != self.shape[1]:
            raise ValueError(
                f"V: got shape {tuple(given.shape)} for an operator of shape {self.shape}; needs "
                f"({self.shape[1]},) or ({self.shape[1]}, b)"
            )
        columns = given.to(self.device, torch.float64)
        columns = columns.unsqueeze(1) if columns.dim() == 1 else columns
        result = self._process_group.add_product(self._local(columns), columns) / self._samples
        return result.to(self._dtype).view(self.shape[0], *given.shape[1:])

    def _local(self, columns: Tensor) -> Tensor:
        """Sum over this process's samples, (rows, b)."""
        # Products are linear: a power of two keeps vectors in float32's range without rounding.
        size = columns.abs().amax(0) if len(columns) else columns.new_ones(columns.shape[1])
        scale = torch.where(size > 0, torch.exp2(torch.floor(torch.log2(size))), 1.0)
        vectors = (columns / scale).mT
        total = torch.zeros(len(vectors), self.shape[0], dtype=self._dtype, device=self.device)
        if len(vectors):
            self._engine.add_up(self._product(vectors), total)
        return total.mT.double() * scale

    def _product(self, vectors: Tensor) -> Callable[[MatvecGraph, int], Tensor]:
        return lambda graph, count: graph.product(
            vectors, rows=self._rows, columns=self._columns, step=self._engine.step(count)
        )

    def to_scipy(self) -> LinearOperator:
        """For ``scipy.sparse.linalg``, whose arrays are on the CPU.

        Returns:
            A LinearOperator with ``matmat`` for blocks of vectors, and the transpose.
        """
        mirror = CurvatureBlock(
            self._engine, self._process_group, self._problem, self._columns, self._rows,
            self._samples, self._dtype,
        )  # fmt: skip

        def product(block: CurvatureBlock) -> Callable[[Any], Any]:
            return lambda vectors: (block @ np.asarray(vectors)).cpu().numpy()

        return LinearOperator(
            self.shape, dtype=_ARRAYS[self._dtype], matvec=product(self), matmat=product(self),
            rmatvec=product(mirror), rmatmat=product(mirror),
        )  # fmt: skip

    def dense(self) -> Tensor:
        """The matrix itself, column by column.

        Returns:
            ``shape``, of the operator's dtype; for a small operator only.
        """
        rows, columns = self.shape
        matrix = torch.empty(rows, columns, dtype=self._dtype, device=self.device)
        for start in range(0, columns, _DENSE_STEP):
            count = min(_DENSE_STEP, columns - start)
            units = torch.zeros(columns, count, dtype=self._dtype, device=self.device)
            units[start + torch.arange(count), torch.arange(count)] = 1.0
            matrix[:, start : start + count] = self @ units
        return matrix


class CurvatureOperator(CurvatureBlock):
    """A symmetric curvature matrix of a mean loss as a linear operator; see `curvature_operator`.

    Args:
        engine: What draws products.
        process_group: The processes that share the data.
        problem: Net, loss and matrix.
        samples: Over all ranks.
        dtype: Of sums and results.

    Attributes:
        loss: The mean loss, a float from a float64 sum over chunks.
        gradient: Its gradient, (P,), float64.
    """

    def __init__(
        self,
        engine: BatchSum,
        process_group: ProcessGroup,
        problem: Problem,
        samples: int,
        dtype: torch.dtype,
    ) -> None:
        every = range(len(problem.parameters))
        super().__init__(engine, process_group, problem, every, every, samples, dtype)
        total = torch.zeros(1 + self.shape[0], dtype=torch.float64, device=self.device)
        engine.add_up(lambda graph, count: _value_and_gradient(graph), total)
        self._value_and_gradient = total

    def join(self) -> None:
        """Add up samples, loss and gradient of all ranks, each of which has to call.

        Raises:
            ValueError: If they are not finite.
        """
        count = torch.tensor([float(self._samples)], dtype=torch.float64, device=self.device)
        self._samples = int(self._process_group.add(count).item())
        total = self._process_group.add(self._value_and_gradient) / self._samples
        if not bool(torch.isfinite(total).all()):
            raise ValueError(
                "net: its loss or gradient is not finite on these data; check weights, activations "
                "and targets"
            )
        self.loss, self.gradient = float(total[0]), total[1:]

    @property
    def matrix(self) -> str:
        """``hessian``, ``gauss_newton`` or ``fisher``."""
        return self._problem.matrix

    @property
    def names(self) -> list[str]:
        """Of the parameters that rows and columns stand for, in order."""
        return list(self._problem.names)

    @property
    def samples(self) -> int:
        """That the mean is over, on all ranks together."""
        return self._samples

    @property
    def engine(self) -> str:
        """``retained`` if graphs are kept between products, ``rebuilt`` if made for each."""
        return self._engine.engine

    @property
    def chunk(self) -> int | None:
        """Most samples of a graph; None for whole batches."""
        return self._engine.chunk if self._problem.splits else None

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
        known = dict(zip(self._problem.names, self._problem.parameters, strict=True))
        place = {name: number for number, name in enumerate(known)}
        lower = [place[name] for name in chosen("rows", rows, known)]
        across = lower if columns is None else [place[n] for n in chosen("columns", columns, known)]
        return CurvatureBlock(
            self._engine,
            self._process_group,
            self._problem,
            lower,
            across,
            self._samples,
            self._dtype,
        )

    def describe(self) -> str:
        """What the operator is and how it works, for people.

        Returns:
            A few lines.
        """
        engine, problem = self._engine, self._problem
        held = readable_bytes(engine.sample_bytes * engine.samples)
        lines = [
            f"{_NAMES[problem.matrix]}, P = {self.shape[0]}, mean over {self._samples} samples"
            + (f" on {self._process_group.count} ranks" if self._process_group.count > 1 else ""),
            f"BatchNorm: {problem.batchnorm}; products in {problem.parameters[0].dtype}, added in "
            f"{self._dtype}; chunks of {self.chunk or 'whole batches'}",
            f"engine: {self.engine}; retained graphs: {held}, about "
            f"{engine.retained_seconds:.2g} s a product; rebuilt: {engine.rebuilt_seconds:.2g} s",
        ]
        if engine.shuffled:
            lines.append("the loader shuffles between passes: products agree to round-off")
        return "\n".join(lines)

    def __str__(self) -> str:
        """As :meth:`describe`."""
        return self.describe()

    def __repr__(self) -> str:
        """One line."""
        return f"CurvatureOperator({self.matrix!r}, shape={self.shape}, engine={self.engine!r})"


def _value_and_gradient(graph: MatvecGraph) -> Tensor:
    return torch.cat([graph.value.view(1), flat_gradient(graph).double()])


def curvature_operator(
    net: nn.Module,
    loss: str | Loss,
    data: Any,
    *,
    matrix: str = "hessian",
    parameters: Any = None,
    batchnorm: str = "eval",
    chunk: int | None = None,
    accumulate: str = "float64",
    engine: str = "auto",
    memory_limit: int | None = None,
    process_group: Any = None,
    progress: bool = False,
) -> CurvatureOperator:
    r"""Curvature of the mean loss over a data set as a linear operator, without the matrix.

    A product is one backward pass through the graph of the gradient (Hessian), or
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
            device. Data are read again for every product on rebuilt graphs: what gives other
            samples then is refused; another order is refused where samples of a batch depend on one
            another (``batchnorm="batch"``, a loss of (net, batch)) and warned of elsewhere.
        matrix: ``"hessian"``; ``"gauss_newton"``, with C the loss's Hessian at the outputs;
            ``"fisher"``, the mean of g g^T over the samples' gradients g (empirical: true targets).
        parameters: None for all that are trainable; a name, a shell-style pattern
            (``"conv*.weight"``), a parameter, or several of these. The others are held fixed.
        batchnorm: ``"eval"`` uses running statistics, ``"batch"`` each batch's own.
        chunk: Most samples of a batch that are differentiated together; None chooses by the memory
            a sample's graph takes. Batches with ``batchnorm="batch"`` or a loss of (net, batch) are
            never split.
        accumulate: Precision in which chunks are added, ``"float64"`` or ``"float32"``, and dtype
            of the results.
        engine: ``"retained"`` keeps graphs, ``"rebuilt"`` makes them for every product; ``"auto"``
            keeps them while they fit.
        memory_limit: Bytes for graphs; by default half of what is free.
        process_group: None for this process alone. Under an initialized ``torch.distributed``:
            ``"world"`` or a process group, each of whose processes holds the net
            and its own shard of the data; all call the operator together, with the same vectors.
            With ``batchnorm="batch"`` statistics are those of each process's own batches.
        progress: Whether products show a bar on standard error.

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
    check_choice("matrix", matrix, MATRICES)
    check_choice("batchnorm", batchnorm, ("eval", "batch"))
    check_choice("engine", engine, ENGINES)
    dtype = _PRECISIONS[check_choice("accumulate", accumulate, list(_PRECISIONS))]
    group = ProcessGroup(process_group)
    made: CurvatureOperator | None = None
    failure: Exception | None = None
    try:
        problem = Problem(net, loss, matrix, parameters, batchnorm)
        passes = Passes(data, closure=problem.closure, ordered=not problem.splits)
        if chunk is not None and not problem.splits:
            raise ValueError(
                f"chunk: got {chunk}, but batches cannot be split with batchnorm='batch' or a loss "
                "of (net, batch); leave it out, and make the data's own batches smaller"
            )
        drawn = BatchSum(
            problem,
            passes,
            chunk=None if chunk is None else check_int("chunk", chunk),
            engine=engine,
            limit=memory_limit,
            progress=progress,
        )
        made = CurvatureOperator(drawn, group, problem, drawn.samples, dtype)
    except Exception as error:
        if group.count == 1:
            raise
        failure = error
    return _joined(made, failure, group, net)


def _joined(
    made: CurvatureOperator | None, failure: Exception | None, group: ProcessGroup, net: nn.Module
) -> CurvatureOperator:
    """The operator once all ranks have theirs."""
    device = next(iter(net.parameters())).device
    group.together(failure, device)
    assert made is not None
    group.check_same([p for p in net.parameters()], f"{made!r} {made.names}")
    made.join()
    return made
