"""Curvature matrices of one batch as autograd graphs, and the table of all such matrices.

A graph is built once and differentiated once more for every matrix-vector product: reverse over
reverse. A new matrix is a subclass of :class:`MatvecGraph` and an entry of ``MATRICES``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from resid_theory.curvature.double_backward import CheapDoubleBackward
from resid_theory.losses import Loss, check_scalar

__all__ = ["MATRICES", "MatvecGraph", "record_graph"]

Index = Sequence[int]


class MatvecGraph(ABC):
    """A symmetric matrix of one batch; its rows and columns are grouped by parameter.

    Args:
        output: The net's output on the batch; the net itself where the loss takes (net, batch).
        target: The batch's target; the batch itself where the loss takes (net, batch).
        loss: A function of these two, a mean over the batch.
        parameters: Tensors that rows and columns stand for.
        seed: Seed of a random matrix.
        first: Position of the batch's first sample in the data. A random matrix seeds its draws
            for each sample by its position, so that they do not depend on the chunk size.

    Attributes:
        title: The matrix's name in reports.
        needs_output: Whether the net's output is needed, which a loss of (net, batch) hides.
        needs_samples: Whether the gradient of every single sample is needed.
        value: The batch's mean loss, float64.
        gradient: Its gradient, a tensor for each parameter, without a graph.
        saved: Bytes that the graph holds, where they were counted.
    """

    title: ClassVar[str]
    needs_output: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = False

    def __init__(
        self,
        output: Any,
        target: Any,
        loss: Loss,
        parameters: Sequence[Tensor],
        seed: int = 0,
        first: int = 0,
    ) -> None:
        self.parameters, self.seed, self.first, self.saved = parameters, seed, first, 0
        value, self.gradient = self._record(output, target, loss)
        self.value = value.detach().double()

    @abstractmethod
    def _record(self, output: Any, target: Any, loss: Loss) -> tuple[Tensor, Sequence[Tensor]]:
        """Keep what :meth:`pull` differentiates; return the loss and its gradient."""

    @abstractmethod
    def pull(
        self, vectors: Sequence[Tensor], rows: Index, columns: Index, batched: bool
    ) -> Sequence[Tensor]:
        """Multiply by a tensor for each column parameter, or by several along a leading axis."""

    def product(self, vectors: Tensor, rows: Index, columns: Index, together: int) -> Tensor:
        """Some rows of the matrix times vectors on some columns.

        Args:
            vectors: (b, size of the columns), any floating dtype.
            rows: Numbers of parameters.
            columns: Numbers of parameters.
            together: Number of vectors that one backward pass takes.

        Returns:
            (b, size of the rows), in the parameters' dtype.
        """
        shapes = [self.parameters[k].shape for k in columns]
        products = []
        for group in vectors.to(self.parameters[0].dtype).split(together):
            count = len(group)
            parts = group.split([shape.numel() for shape in shapes], dim=1)
            blocks = [part.reshape(count, *s) for part, s in zip(parts, shapes, strict=True)]
            pulled: Sequence[Tensor] | None = None
            if count > 1:
                try:
                    pulled = self.pull(blocks, rows, columns, True)
                except RuntimeError:
                    pass  # an operation without a batching rule: one at a time gives the same
            if pulled is None:
                each = []
                for i in range(count):
                    each.append(self.pull([b[i] for b in blocks], rows, columns, False))
                pulled = [torch.stack(several) for several in zip(*each, strict=True)]
            # A parameter that the gradient does not reach has zeros without the group's axis.
            flat = [
                part.expand(count, *self.parameters[k].shape).reshape(count, -1)
                for part, k in zip(pulled, rows, strict=True)
            ]
            products.append(torch.cat(flat, dim=1))
        return torch.cat(products)

    def value_and_gradient(self) -> Tensor:
        """The loss and its gradient in one vector, (1 + P,), float64."""
        gradient = torch.cat([part.reshape(-1) for part in self.gradient])
        return torch.cat([self.value.view(1), gradient.double()])


class HessianGraph(MatvecGraph):
    """The Hessian, from the gradient with its graph."""

    title = "Hessian"
    needs_output = False

    def _record(self, output: Any, target: Any, loss: Loss) -> tuple[Tensor, Sequence[Tensor]]:
        value = check_scalar(loss(output, target))
        self._graph = _gradient_with_graph(value, self.parameters)
        return value, [part.detach() for part in self._graph]

    def pull(
        self, vectors: Sequence[Tensor], rows: Index, columns: Index, batched: bool
    ) -> Sequence[Tensor]:
        """Differentiate the gradient along the vectors."""
        outputs = [self._graph[k] for k in columns]
        return _pull_back(outputs, [self.parameters[k] for k in rows], vectors, batched)


class GaussNewtonGraph(MatvecGraph):
    """J^T C J, with J the outputs' derivative and C the loss's Hessian at the outputs."""

    title = "generalized Gauss-Newton matrix"

    def _record(self, output: Any, target: Any, loss: Loss) -> tuple[Tensor, Sequence[Tensor]]:
        self._output, self._point = output, output.detach().requires_grad_()
        value = check_scalar(loss(self._point, target))
        (self._slope,) = _gradient_with_graph(value, [self._point])
        # J^T u is linear in u: differentiated by u it gives J v, without forward mode.
        gradient = _pull_back([output], self.parameters, [self._slope.detach()], False)
        self._probe = torch.zeros_like(self._point).requires_grad_()
        self._transposed = _gradient_with_graph(output, self.parameters, self._probe)
        return value, gradient

    def pull(
        self, vectors: Sequence[Tensor], rows: Index, columns: Index, batched: bool
    ) -> Sequence[Tensor]:
        """Push the vectors forward to the outputs, multiply by C, pull them back."""
        used = [self._transposed[k] for k in columns]
        (moves,) = _pull_back(used, [self._probe], vectors, batched)
        moves = moves.expand(len(vectors[0]), *self._output.shape) if batched else moves
        curved = self._curve(moves, batched)
        return _pull_back([self._output], [self.parameters[k] for k in rows], [curved], batched)

    def _curve(self, moves: Tensor, batched: bool) -> Tensor:
        """C times displacements of the outputs."""
        (curved,) = _pull_back([self._slope], [self._point], [moves], batched)
        return curved.expand_as(moves)


class FisherGraph(GaussNewtonGraph):
    """Mean of g g^T over the samples' gradients g = J^T r, where each output has its own sample."""

    title = "empirical Fisher matrix"
    needs_samples = True

    def _curve(self, moves: Tensor, batched: bool) -> Tensor:
        slope = self._slope.detach()
        axes = list(range(1, slope.dim()))  # a scalar output has none
        products = slope * moves
        if axes:
            products = products.sum([axis + batched for axis in axes], keepdim=True)
        return len(slope) * slope * products  # both slopes are 1/m of a sample's own


MATRICES: dict[str, type[MatvecGraph]] = {
    "hessian": HessianGraph,
    "gauss_newton": GaussNewtonGraph,
    "fisher": FisherGraph,
}


def _gradient_with_graph(
    value: Tensor, at: Sequence[Tensor], along: Tensor | None = None
) -> Sequence[Tensor]:
    return torch.autograd.grad(
        value, at, along, create_graph=True, allow_unused=True, materialize_grads=True
    )


def _pull_back(
    outputs: Sequence[Tensor], at: Sequence[Tensor], vectors: Sequence[Tensor], batched: bool
) -> Sequence[Tensor]:
    """Vectors times the Jacobian of a retained graph; constants have a derivative of zero."""
    moving, along = [], []
    for output, vector in zip(outputs, vectors, strict=True):
        if output.requires_grad:
            moving.append(output)
            along.append(vector)
    if not moving:
        return [torch.zeros_like(tensor) for tensor in at]
    return torch.autograd.grad(
        moving,
        at,
        grad_outputs=along,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
        is_grads_batched=batched,
    )


def record_graph(build: Callable[[], MatvecGraph], *, weigh: bool = False) -> MatvecGraph:
    """Build a graph that is cheap to differentiate twice; count its bytes if asked to."""
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> tuple[Tensor, int]:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor, tensor._version

    def give(noted: tuple[Tensor, int]) -> Tensor:
        tensor, version = noted
        if tensor._version != version:  # torch's own check is off where hooks are on
            raise ValueError("net: overwrites in place a value that its gradient needs")
        return tensor

    with (
        torch.enable_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        CheapDoubleBackward(),
        torch.autograd.graph.saved_tensors_hooks(note, give) if weigh else nullcontext(),
    ):
        graph = build()
    graph.saved = sum(held.values())
    return graph
