"""Graphs of one batch that curvature is drawn from, product by product.

A graph is built once and differentiated once more for every product: reverse over reverse.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from resid_theory.curvature.double_backward import CheapDoubleBackward
from resid_theory.losses import Loss, check_scalar

__all__ = [
    "FisherGraph",
    "GaussNewtonGraph",
    "MatvecGraph",
    "HessianGraph",
    "flat_gradient",
    "recorded",
]

Index = Sequence[int]


class MatvecGraph(ABC):
    """A symmetric matrix of one batch, rows and columns in groups that are parameters.

    Attributes:
        parameters: What rows and columns stand for.
        value: The batch's mean loss, float64.
        gradient: Its gradient, one tensor a parameter, without a graph.
        saved: Bytes that the graph holds.
    """

    parameters: Sequence[Tensor]
    value: Tensor
    gradient: Sequence[Tensor]
    saved: int

    @abstractmethod
    def pull(
        self, vectors: Sequence[Tensor], rows: Index, columns: Index, batched: bool
    ) -> Sequence[Tensor]:
        """Rows of the matrix times vectors that live on columns.

        Args:
            vectors: One a column parameter: its shape, with a leading axis (b,) if batched.
            rows: Numbers of parameters.
            columns: Numbers of parameters.
            batched: Whether all b are differentiated together.

        Returns:
            One tensor a row parameter; of a constant, possibly without the leading axis.
        """

    def product(self, vectors: Tensor, *, rows: Index, columns: Index, step: int) -> Tensor:
        """Rows of the matrix times several vectors that live on columns.

        Args:
            vectors: (b, size of the columns), any floating dtype.
            rows: Numbers of parameters.
            columns: Numbers of parameters.
            step: How many are differentiated together.

        Returns:
            (b, size of the rows), in the parameters' dtype.
        """
        groups = vectors.to(self.parameters[0].dtype).split(step)
        return torch.cat([self._group(group, rows, columns) for group in groups])

    def _group(self, vectors: Tensor, rows: Index, columns: Index) -> Tensor:
        shapes = [self.parameters[k].shape for k in columns]
        parts = vectors.split([shape.numel() for shape in shapes], dim=1)
        count = len(vectors)
        blocks = [part.reshape(count, *s) for part, s in zip(parts, shapes, strict=True)]
        pulled = self._together(blocks, rows, columns) if count > 1 else None
        if pulled is None:
            each = [self.pull([b[i] for b in blocks], rows, columns, False) for i in range(count)]
            pulled = [torch.stack(several) for several in zip(*each, strict=True)]
        # A parameter that the gradient does not reach has zeros without the group's axis.
        flat = [
            part.expand(count, *self.parameters[k].shape).reshape(count, -1)
            for part, k in zip(pulled, rows, strict=True)
        ]
        return torch.cat(flat, dim=1)

    def _together(
        self, blocks: Sequence[Tensor], rows: Index, columns: Index
    ) -> Sequence[Tensor] | None:
        try:
            return self.pull(blocks, rows, columns, True)
        except RuntimeError:
            return None  # an operation without a batching rule: one at a time gives the same


class HessianGraph(MatvecGraph):
    """Of the loss: the gradient with its graph.

    Args:
        value: The batch's mean loss.
        parameters: To differentiate by.
    """

    def __init__(self, value: Tensor, parameters: Sequence[Tensor]) -> None:
        self.parameters, self.value, self.saved = parameters, value.detach().double(), 0
        self._graph = _gradient(check_scalar(value), parameters, keep=True)
        self.gradient = [part.detach() for part in self._graph]

    def pull(
        self, vectors: Sequence[Tensor], rows: Index, columns: Index, batched: bool
    ) -> Sequence[Tensor]:
        """As in :meth:`MatvecGraph.pull`.

        Args:
            vectors: As there.
            rows: As there.
            columns: As there.
            batched: As there.

        Returns:
            As there.
        """
        return _pulled(
            [self._graph[k] for k in columns], [self.parameters[k] for k in rows], vectors, batched
        )


class _Outer(MatvecGraph):
    """J^T C J, with J the outputs' derivative and C a matrix on the outputs of the batch."""

    def __init__(
        self, output: Tensor, target: Tensor, loss: Loss, parameters: Sequence[Tensor]
    ) -> None:
        self.parameters, self.saved = parameters, 0
        self._output = output
        self._point = output.detach().requires_grad_()
        value = check_scalar(loss(self._point, target))
        (self._slope,) = _gradient(value, [self._point], keep=True)
        self.value = value.detach().double()
        self.gradient = _pulled([output], parameters, [self._slope.detach()], False)
        # J^T u is linear in u: differentiated by u it gives J v, without forward mode.
        self._probe = torch.zeros_like(self._point).requires_grad_()
        self._transposed = torch.autograd.grad(
            output, parameters, self._probe, create_graph=True, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip

    @abstractmethod
    def _curve(self, moves: Tensor, batched: bool) -> Tensor:
        """C times moves of the outputs."""

    def pull(
        self, vectors: Sequence[Tensor], rows: Index, columns: Index, batched: bool
    ) -> Sequence[Tensor]:
        """As in :meth:`MatvecGraph.pull`.

        Args:
            vectors: As there.
            rows: As there.
            columns: As there.
            batched: As there.

        Returns:
            As there.
        """
        used = [self._transposed[k] for k in columns]
        (moves,) = _pulled(used, [self._probe], vectors, batched)
        shape = self._output.shape
        moves = moves.expand(len(vectors[0]), *shape) if batched else moves
        curved = self._curve(moves, batched)
        return _pulled([self._output], [self.parameters[k] for k in rows], [curved], batched)


class GaussNewtonGraph(_Outer):
    """J^T H J, with H the loss's Hessian at the outputs."""

    def _curve(self, moves: Tensor, batched: bool) -> Tensor:
        (curved,) = _pulled([self._slope], [self._point], [moves], batched)
        return curved.expand_as(moves)


class FisherGraph(_Outer):
    """Mean of g g^T over the samples' gradients g = J^T r, where each output has its own sample."""

    def _curve(self, moves: Tensor, batched: bool) -> Tensor:
        count, slope = len(self._output), self._slope.detach()
        axes = list(range(1, slope.dim()))  # a scalar output has none
        products = slope * moves
        if axes:
            products = products.sum([axis + batched for axis in axes], keepdim=True)
        return count * slope * products  # both slopes are 1/m of a sample's own


def _gradient(value: Tensor, at: Sequence[Tensor], *, keep: bool) -> Sequence[Tensor]:
    return torch.autograd.grad(
        value, at, create_graph=keep, allow_unused=True, materialize_grads=True
    )


def _pulled(
    outputs: Sequence[Tensor], at: Sequence[Tensor], vectors: Sequence[Tensor], batched: bool
) -> Sequence[Tensor]:
    """Vectors back through a retained graph; what is constant has a derivative of zero."""
    moving = [k for k, output in enumerate(outputs) if output.requires_grad]
    if not moving:
        return [torch.zeros_like(tensor) for tensor in at]
    return torch.autograd.grad(
        [outputs[k] for k in moving],
        at,
        grad_outputs=[vectors[k] for k in moving],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
        is_grads_batched=batched,
    )


def flat_gradient(graph: MatvecGraph) -> Tensor:
    """The gradient of a graph's batch.

    Args:
        graph: Any.

    Returns:
        (P,), in the parameters' dtype.
    """
    return torch.cat([part.reshape(-1) for part in graph.gradient])


def recorded(build: Callable[[], MatvecGraph], *, weigh: bool = False) -> MatvecGraph:
    """Build a graph so that it can be differentiated twice, and fast.

    Args:
        build: Runs the net and makes the graph.
        weigh: Whether to count the bytes that the graph holds.

    Returns:
        The graph, with ``saved`` filled in if weighed.

    Raises:
        ValueError: If the net overwrites in place a value that its gradient needs.
    """
    with (
        torch.enable_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        CheapDoubleBackward(),
    ):
        return _weighed(build) if weigh else build()


def _weighed(build: Callable[[], MatvecGraph]) -> MatvecGraph:
    held: dict[int, int] = {}

    def weigh(tensor: Tensor) -> tuple[Tensor, int]:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor, tensor._version

    def give(packed: tuple[Tensor, int]) -> Tensor:
        tensor, version = packed
        if tensor._version != version:  # torch's own check is off where hooks are on
            raise ValueError("net: overwrites in place a value that its gradient needs")
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(weigh, give):
        graph = build()
    graph.saved = sum(held.values())
    return graph
