"""Hessian, generalized Gauss-Newton and Fisher matrices as linear operators, at any size."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resid_theory._check import as_generator, check_choice, check_int
from resid_theory.curvature.accumulation import ENGINES, BatchSum
from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.curvature.parameter_selection import select_parameters
from resid_theory.curvature.varied_net import vary_activations
from resid_theory.eigen.linear_operator import LinearOperator
from resid_theory.eigen.matrix_error import MatrixError
from resid_theory.eigen.products import NUMPY_DTYPES
from resid_theory.losses import LossLike
from resid_theory.runtime.net_entry import inner_net
from resid_theory.runtime.process_group import ProcessGroup
from resid_theory.runtime.resources import allowed_bytes, readable_bytes

_PRECISIONS = {"float64": torch.float64, "float32": torch.float32}


class CurvatureBlock(LinearOperator):
    """Rows and columns of a symmetric curvature matrix, as a linear operator.

    Made by :meth:`CurvatureOperator.block`; ``A @ V`` costs no more than the parts of the net
    between its rows and columns.
    """

    def __init__(
        self,
        sums: BatchSum,
        process_group: ProcessGroup,
        rows: Sequence[int],
        columns: Sequence[int],
        weight: float,
        dtype: torch.dtype,
        whole: "CurvatureBlock | None" = None,
    ) -> None:
        self._sums, self._process_group, self._whole = sums, process_group, whole
        self._rows, self._columns, self._weight, risk = rows, columns, weight, sums.risk
        across, down = (
            {risk.names[k]: risk.parameters[k].shape for k in side} for side in (rows, columns)
        )
        height, width = (sum(s.numel() for s in side.values()) for side in (across, down))
        super().__init__((height, width), dtype, risk.device, row_shapes=across, column_shapes=down)
        if list(rows) == list(columns) and risk.is_semidefinite:
            self.lowest = risk.weight_decay

    @property
    def T(self) -> "CurvatureBlock":
        """The block on the other side of the diagonal."""
        return self._part(self._columns, self._rows)

    def _part(self, rows: Sequence[int], columns: Sequence[int]) -> "CurvatureBlock":
        return CurvatureBlock(
            self._sums, self._process_group, rows, columns, self._weight, self.dtype,
            self._whole or self,
        )  # fmt: skip

    @cached_property
    def error(self) -> MatrixError | None:  # type: ignore[override]
        """Difference of the whole matrix from that of the same weights in float64.

        Measured on a few samples when it is first asked for; None for a net in float64.
        """
        if self._whole is not None:
            return self._whole.error
        error, group = self._sums.error(), self._process_group
        if error is None:
            return None
        # Those of the processes add up as their matrices do.
        own = asdict(error)
        parts = torch.tensor([*own.values()], dtype=torch.float64).to(self.device)
        mean = group.add(parts * self._sums.weight) / self._weight
        return MatrixError(**dict(zip(own, mean.tolist(), strict=True)))

    def block(self, rows: Any, columns: Any = None) -> "CurvatureBlock":
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
        across = self._chosen("rows", rows, self._rows)
        down = across
        if columns is not None or list(self._rows) != list(self._columns):
            down = self._chosen("columns", rows if columns is None else columns, self._columns)
        return self._part(across, down)

    def _chosen(self, argument: str, given: Any, among: Sequence[int]) -> list[int]:
        risk = self._sums.risk
        place = {risk.names[k]: k for k in among}
        known = {name: risk.parameters[k] for name, k in place.items()}
        return [place[name] for name in select_parameters(argument, given, known, risk.net)]

    def _product(self, columns: Tensor) -> Tensor:
        count = columns.shape[1]
        with torch.inference_mode(False):  # whose tensors no graph made outside of it takes
            # NumPy asks for huge pages: filling a large array for the first time is most of its
            # cost.
            zeros = np.zeros((count, self.shape[0]), NUMPY_DTYPES[self.dtype])
            total = torch.from_numpy(zeros).to(self.device)
            if columns.numel():
                self._sums.add_products(
                    total, vectors=columns.mT, rows=self._rows, columns=self._columns
                )
            result = self._process_group.add_product(total.mT, columns).div_(self._weight)
            if decay := self._sums.risk.weight_decay:
                given = self._by_number(columns, self._columns)
                for k, part in self._by_number(result, self._rows).items():
                    if k in given:
                        part.add_(given[k], alpha=decay)
        return result

    def _by_number(self, vectors: Tensor, numbers: Sequence[int]) -> dict[int, Tensor]:
        sizes = [self._sums.risk.parameters[k].numel() for k in numbers]
        return dict(zip(numbers, vectors.split(sizes), strict=True))


class CurvatureOperator(CurvatureBlock):
    """A symmetric curvature matrix of a mean loss as a linear operator; see `curvature_operator`.

    Attributes:
        risk: Net, loss, data and matrix.
        matrix: The name of the matrix, such as ``hessian``.
        names: Names of the parameters that rows and columns stand for, in order.
        memory_limit: Bytes that may be used, None where the caller set no limit.
        processes: Number of processes that share the data.
        loss: The loss, a float from a float64 sum over chunks.
        gradient: Its gradient, (P,), float64.
        samples: Number of samples, in all processes together.
    """

    def __init__(self, sums: BatchSum, process_group: ProcessGroup, dtype: torch.dtype) -> None:
        risk, total = sums.risk, sums.total
        counts = process_group.add(total.new_tensor([sums.samples, sums.weight]))
        samples, weight = counts.tolist()
        weight, every = 1.0 if risk.sums else weight, range(len(risk.parameters))
        if not weight:
            raise ValueError(
                "loss: is not a number on these data: no label counts, or the loss is not finite"
            )
        super().__init__(sums, process_group, every, every, weight, dtype)
        if process_group.count > 1:
            _ = self.error  # while all are here
        mean = process_group.add(total) / weight
        if not bool(torch.isfinite(mean).all()):
            raise ValueError(
                "net: its loss or gradient is not finite on these data; check weights, activations "
                "and targets"
            )
        point, decay = risk.point, risk.weight_decay
        self.risk, self.samples = risk, int(samples)
        self.matrix, self.names = risk.matrix, list(risk.names)
        self.memory_limit, self.processes = sums.limit, process_group.count
        self.loss = float(mean[0]) + decay / 2 * float(point @ point)
        self.gradient = mean[1:].add_(point, alpha=decay)

    @property
    def engine(self) -> str:
        """``retained`` if graphs are kept between products, ``rebuilt`` if made for each."""
        return self._sums.engine

    @property
    def chunk(self) -> int | None:
        """Most samples of a graph; None for whole batches."""
        return self._sums.chunk if self.risk.splits else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the matrix and its data."""
        return (*self.risk.data.notes, *self.risk.notes)

    def graph_bytes(self, samples: int) -> int:
        """Bytes of graphs of so many samples that are kept, and of those that a product takes."""
        return self._sums.graph_bytes(samples)

    def check_unchanged(self) -> None:
        """Raise a ValueError if the net changed since the operator was made."""
        self._sums.check_unchanged()

    def describe(self) -> str:
        """A few lines on the operator and its engine."""
        sums, risk = self._sums, self.risk
        held = readable_bytes(sums.sample_bytes * sums.samples)
        average = "sum" if risk.sums else "mean"
        lines = [
            f"{risk.title}, P = {self.shape[0]}, {average} over {self.samples} samples"
            + (f" on {self.processes} ranks" if self.processes > 1 else ""),
            f"BatchNorm: {risk.batchnorm}; products in {risk.parameters[0].dtype}, added in "
            f"{self.dtype}; chunks of {self.chunk or 'whole batches'}",
            f"engine: {self.engine}; retained graphs: {held}",
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
    wrt: str = "parameters",
    batchnorm: str = "eval",
    weight_decay: float = 0.0,
    chunk: int | None = None,
    accumulate: str = "float64",
    engine: str = "auto",
    memory_limit: int | None = None,
    process_group: Any = None,
    generator: torch.Generator | int = 0,
    draws: int = 1,
    progress: bool = False,
) -> CurvatureOperator:
    r"""Curvature of the loss over a data set as a linear operator, without the matrix.

    A matrix-vector product is one backward pass through the graph of the gradient (Hessian), or
    :math:`J^T C J v` through the graph of the outputs (the others). Graphs are kept between
    products while they fit in memory. The model is measured in eval mode and left as it was.

    The loss of the data set is that of all samples together, however they are batched:
    :math:`\sum_b w_b \ell_b / \sum_b w_b`, where :math:`w_b` is what the loss divides by on batch
    b (samples, valid labels, class weights, tokens, the caller's weights), or
    :math:`\sum_b \ell_b` of a sum. A loss or a net that compares samples has no such weights; all
    samples are then one batch, or the call is refused.

    Args:
        net: Any module; products are computed in its precision.
        loss: ``"square"`` (half the squared error, summed over outputs, mean over samples),
            ``"cross_entropy"``, a loss of ``torch.nn``, or a callable (output, target), whose
            weights are measured; or ``rt.Loss(function, of="batch")`` for a loss of (net, batch).
        data: A pair (x, y), an object with ``.x`` and ``.y``, images, a loader or a list of pairs,
            or anything else that `rt.Data.of` takes; batches of any kind for a loss of
            (net, batch). Data are read once, and again for every product on rebuilt graphs: other
            samples are then refused; another order is refused where samples of a batch depend on
            one another (``batchnorm="batch"``, a loss of (net, batch)), and gives a warning
            elsewhere.
        matrix: ``"hessian"``; ``"gauss_newton"``, with C the loss's Hessian at the outputs;
            ``"fisher"``, the mean of :math:`g g^T` over the predictions (samples, tokens) and over
            the targets that the model gives them, g the gradient of a prediction's loss: equal to
            Gauss-Newton where outputs are logits or means; ``"fisher_mc"``, the same with some
            drawn targets instead of all; or ``"empirical_fisher"``, with the targets of the data:
            :math:`\sum_i w_i g_i g_i^T / \sum_i w_i` with :math:`g_i` the gradient of sample i's
            own loss and :math:`w_i` its weight in the loss; of a sum, :math:`\sum_i g_i g_i^T`.
        parameters: None for all that are trainable; a name, a shell-style pattern
            (``"conv*.weight"``), a parameter, or several of these. The others are held fixed.
        wrt: ``"parameters"``; ``"inputs"`` for the curvature in the inputs of all samples together,
            (samples · inputs) rows and columns; or the name of a module, for that in its outputs.
            The samples are then held in memory at once.
        batchnorm: ``"eval"`` uses running statistics, ``"batch"`` each batch's own.
        weight_decay: λ of a penalty λ/2 |θ|² over the parameters chosen, which adds λ to the
            diagonal of every matrix, and its own parts to loss and gradient.
        chunk: Most samples of a batch that are differentiated together; by default as many as the
            memory of their graphs allows. Batches whose samples depend on one another are never
            split.
        accumulate: Precision in which chunks are added, ``"float64"`` or ``"float32"``, and dtype
            of the results.
        engine: ``"retained"`` keeps graphs, ``"rebuilt"`` makes them for every product; ``"auto"``
            keeps them while they fit.
        memory_limit: Bytes for graphs; by default half of what is free.
        process_group: None for this process alone. Under an initialized ``torch.distributed``:
            ``"world"`` or a process group, each of whose processes holds the net and its own shard
            of the data; all call the operator together, with the same vectors. With
            ``batchnorm="batch"`` statistics are those of each process's own batches.
        generator: A seed, or a generator whose seed is taken, for ``"fisher_mc"``, which draws for
            each sample by its place in the data (of each process), whatever the batches.
        draws: Targets that ``"fisher_mc"`` draws for each prediction.
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
    allowed_bytes(memory_limit)
    dtype = _PRECISIONS[check_choice("accumulate", accumulate, list(_PRECISIONS))]
    source = as_generator(generator)
    group = ProcessGroup(process_group)
    failure: Exception | None = None
    try:
        seed = source.initial_seed() + (group.rank << 64)
        if wrt != "parameters":
            if parameters is not None or weight_decay:
                raise ValueError(
                    f"wrt: got {wrt!r} together with parameters or weight_decay, needs 'parameters'"
                )
            net, data = vary_activations(inner_net(net), data, wrt)
            parameters = "inputs" if wrt == "inputs" else "activations"
        risk = EmpiricalRisk(
            net,
            loss,
            data,
            matrix=matrix,
            parameters=parameters,
            batchnorm=batchnorm,
            weight_decay=weight_decay,
            seed=seed,
            draws=check_int("draws", draws),
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
                "loss: its weights are measured in units of a sample, which other processes do not "
                "have, or it is a sum with a part that each would count; pass a name, a loss "
                "of torch.nn, or rt.Loss(loss, weights=...), and weight_decay="
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
