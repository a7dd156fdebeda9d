"""Curvature matrices of one batch as autograd graphs.

A graph is built once and differentiated once more for every matrix-vector product: reverse over
reverse. A new matrix is a subclass of :class:`MatvecGraph` and an entry of ``MATRICES``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from resid_theory.curvature.double_backward import CheapDoubleBackward
from resid_theory.losses import Loss, SampleAxes, check_scalar
from resid_theory.nested import map_tensors, tensors_of

Index = Sequence[int]
_UNSEEN = 1 << 20  # bytes of a sample's graph where torch.func inside hides them
_NEAR = 20  # powers of two beyond which vectors are scaled


class MatvecGraph(ABC):
    """A symmetric matrix of one batch; its rows and columns are grouped by parameter.

    Args:
        output: The net's output on the batch; the net itself where the loss takes (net, batch).
        target: The batch's target; the batch itself where the loss takes (net, batch).
        loss: A function of these two.
        parameters: Tensors that rows and columns stand for.
        seed: Seed of a random matrix.
        draws: Number of targets that it draws for each prediction.
        first: Position of the batch's first sample in the data. A random matrix seeds its draws
            for each sample by its position, so that they do not depend on the chunk size.
        axes: Where samples are in the output, where single ones are needed.
        shares: Factors (samples,) with which the samples' own losses add up to the batch's.

    Attributes:
        title: The matrix's name in reports.
        needs_output: Whether the net's output is needed, which a loss of (net, batch) hides.
        needs_samples: Whether the gradient of every single sample is needed.
        needs_likelihood: Whether targets are drawn from the model.
        is_random: Whether the matrix depends on the seed.
        value: The batch's loss, float64.
        gradient: Its gradient, a tensor for each parameter, without a graph.
        weight: The batch's weight in the loss of all data.
        reached: Whether a gradient reaches each parameter, be it zero.
        given: Loss, or loss and outputs, with their graphs; kept where bytes are counted.
        saved: Bytes that the graph holds, where they were counted.
    """

    title: ClassVar[str]
    needs_output: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = False
    needs_likelihood: ClassVar[bool] = False
    is_random: ClassVar[bool] = False
    weight: float
    saved: int

    def __init__(
        self,
        output: Any,
        target: Any,
        loss: Loss,
        parameters: Sequence[Tensor],
        *,
        seed: int,
        draws: int,
        first: int,
        axes: SampleAxes | None,
        shares: Tensor | None,
    ) -> None:
        self.parameters, self.seed, self.draws, self.first = parameters, seed, draws, first
        self.axes, self.shares = axes, shares
        self.reached: list[bool] = []
        self.given: Sequence[Tensor] = []
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

    @property
    @abstractmethod
    def first_derivatives(self) -> Sequence[Tensor]:
        """First derivatives, which :meth:`pull` differentiates once more."""

    def product(self, vectors: Tensor) -> Tensor:
        """The matrix times vectors (b, P) in float64, one by one."""
        total, every = torch.zeros_like(vectors), range(len(self.parameters))
        self.add_product(total, 1.0, 1, vectors=vectors, rows=every, columns=every)
        return total

    def add_product(
        self, total: Tensor, weight: float, together: int, *, vectors: Tensor, rows: Index,
        columns: Index,
    ) -> None:  # fmt: skip
        """Add the product times a weight to ``total`` (b, size of the rows)."""
        across, down = ([self.parameters[k] for k in side] for side in (columns, rows))
        pairs = zip(vectors.split(together), total.split(together), strict=True)
        for given, place in pairs:
            count = len(given)
            group, scales = _near_one(given.contiguous())
            flat = group.split([p.numel() for p in across], dim=1)
            # Copies begin where complex views of them may begin.
            blocks = [v.reshape(count, *p.shape).to(p.dtype, copy=True)
                      for v, p in zip(flat, across, strict=True)]  # fmt: skip
            parts = place.split([p.numel() for p in down], dim=1)
            into = [v.view(count, *p.shape) for v, p in zip(parts, down, strict=True)]
            several: Sequence[Tensor] | None = None
            if count > 1 and len(set(scales)) == 1:
                try:
                    several = self.pull(blocks, rows, columns, True)
                except RuntimeError:
                    pass  # an operation without a batching rule: one at a time gives the same
            if several is not None:
                (scale,) = set(scales)
                # What the gradient does not reach has zeros without the group's axis.
                for part, pulled in zip(into, several, strict=True):
                    part.add_(pulled, alpha=weight * scale)
                continue
            for i, scale in enumerate(scales):
                single = self.pull([b[i] for b in blocks], rows, columns, False)
                for part, pulled in zip(into, single, strict=True):
                    part[i].add_(pulled, alpha=weight * scale)

    def add_value_and_gradient(self, total: Tensor, weight: float) -> None:
        """Add the loss and its gradient times a weight to ``total`` (1 + P,)."""
        total[0] += weight * self.value
        total[1:].add_(torch.cat([part.reshape(-1) for part in self.gradient]), alpha=weight)


class LossItself(MatvecGraph):
    """The loss with its graph; it multiplies nothing."""

    title = "loss"
    needs_output = False
    first_derivatives: Sequence[Tensor] = ()

    def _record(self, output: Any, target: Any, loss: Loss) -> tuple[Tensor, Sequence[Tensor]]:
        self.loss = check_scalar(loss(output, target))
        return self.loss, []

    def pull(self, *_args: Any) -> Sequence[Tensor]:
        """Refuse."""
        raise NotImplementedError


class HessianGraph(MatvecGraph):
    """The Hessian, from the gradient with its graph."""

    title = "Hessian"
    needs_output = False

    @property
    def first_derivatives(self) -> Sequence[Tensor]:
        """The gradient."""
        return self._graph

    def _record(self, output: Any, target: Any, loss: Loss) -> tuple[Tensor, Sequence[Tensor]]:
        value = check_scalar(loss(output, target))
        self.given = [value]
        self._graph, self.reached = _gradient_with_graph(value, self.parameters)
        return value, [part.detach() for part in self._graph]

    def pull(
        self, vectors: Sequence[Tensor], rows: Index, columns: Index, batched: bool
    ) -> Sequence[Tensor]:
        """Differentiate the gradient along the vectors."""
        outputs = [self._graph[k] for k in columns]
        return _pull_back(outputs, [self.parameters[k] for k in rows], vectors, batched)


class GaussNewtonGraph(MatvecGraph):
    """J^T C J, with J the outputs' derivative and C the loss's Hessian at the outputs.

    A part of the loss that reads parameters beside the outputs keeps its whole Hessian.
    """

    title = "generalized Gauss-Newton matrix"

    @property
    def first_derivatives(self) -> Sequence[Tensor]:
        """The gradient in the outputs, and the outputs' derivative times any slopes."""
        return [*self._slopes, *self._transposed, *self._direct]

    def _record(self, output: Any, target: Any, loss: Loss) -> tuple[Tensor, Sequence[Tensor]]:
        self._outputs = [t for t in tensors_of(output) if t.is_floating_point()]
        if any(t.is_complex() and t.requires_grad for t in tensors_of(output)):
            raise ValueError(
                f"net: gives complex numbers, of which there is no {self.title}; give "
                "torch.view_as_real of them"
            )
        self._points = [t.detach().requires_grad_() for t in self._outputs]
        points = iter(self._points)
        fixed = map_tensors(output, lambda t: next(points) if t.is_floating_point() else t)
        value = check_scalar(loss(fixed, target))
        self.given = [value, *self._outputs]
        self._slopes, _ = _gradient_with_graph(value, self._points)
        # J^T u is linear in u: differentiated by u it gives J v, without forward mode.
        slopes = [slope.detach() for slope in self._slopes]  # outputs may be parameters
        gradient = _pull_back(self._outputs, self.parameters, slopes, False)
        self._probes = [torch.zeros_like(point).requires_grad_() for point in self._points]
        self._transposed, through = _gradient_with_graph(
            self._outputs, self.parameters, self._probes
        )
        self._direct, beside = _gradient_with_graph(value, self.parameters)
        self.reached = [a or b for a, b in zip(through, beside, strict=True)]
        gradient = [a + b.detach() for a, b in zip(gradient, self._direct, strict=True)]
        return value, gradient

    def pull(
        self, vectors: Sequence[Tensor], rows: Index, columns: Index, batched: bool
    ) -> Sequence[Tensor]:
        """Push the vectors forward to the outputs, multiply by C, pull them back."""
        used = [self._transposed[k] for k in columns]
        pushed = _pull_back(used, self._probes, vectors, batched)
        lead = (len(vectors[0]),) if batched else ()
        moves = [m.expand((*lead, *p.shape)) for m, p in zip(pushed, self._points, strict=True)]
        at = [self.parameters[k] for k in rows]
        curved = _pull_back(self._outputs, at, self._curve(moves, batched), batched)
        direct = [self._direct[k] for k in columns]
        if not any(part.requires_grad for part in direct):
            return curved
        beside = _pull_back(direct, at, vectors, batched)
        return list(map(torch.add, curved, beside))

    def _curve(self, moves: Sequence[Tensor], batched: bool) -> Sequence[Tensor]:
        """C times displacements of the outputs."""
        curved = _pull_back(self._slopes, self._points, moves, batched)
        return [c.expand_as(move) for c, move in zip(curved, moves, strict=True)]


def _near_one(vectors: Tensor) -> tuple[Tensor, list[float]]:
    """Vectors over powers of two that keep them in float32's range without rounding, and these."""
    low, high = vectors.amin(1), vectors.amax(1)  # aminmax takes ten times as long along an axis
    scales = []
    for largest in torch.maximum(-low, high).tolist():  # one transfer: each waits for a GPU
        power = math.frexp(largest)[1] - 1
        scales.append(2.0**power if abs(power) > _NEAR else 1.0)
    if set(scales) == {1.0}:
        return vectors, scales
    wide = vectors.double()
    return wide / wide.new_tensor(scales).unsqueeze(1), scales


def _gradient_with_graph(
    value: Tensor | Sequence[Tensor], at: Sequence[Tensor], along: Sequence[Tensor] | None = None
) -> tuple[Sequence[Tensor], list[bool]]:
    """Gradient of a value, or of several along tensors, and where there is one; zeros elsewhere."""
    if along is not None:
        pairs = [(v, a) for v, a in zip(value, along, strict=True) if v.requires_grad]
        if not pairs:
            return [torch.zeros_like(tensor) for tensor in at], [False] * len(at)
        value, along = zip(*pairs, strict=True)
    parts = torch.autograd.grad(value, at, along, create_graph=True, allow_unused=True)
    filled = [
        torch.zeros_like(tensor) if part is None else part
        for tensor, part in zip(at, parts, strict=True)
    ]
    return filled, [part is not None for part in parts]


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
        materialize_grads=True,
        is_grads_batched=batched,
    )


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Run a net inside with functions that are cheap to differentiate twice."""
    math = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with torch.enable_grad(), math, CheapDoubleBackward():
        yield


def record_graph(build: Callable[[], MatvecGraph], *, weigh: int) -> MatvecGraph:
    """Build a graph that is cheap to differentiate twice; count the bytes of some samples' one."""
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> tuple[Tensor, int]:
        try:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
        except RuntimeError:  # a tensor of torch.func, or a sparse one, which has no samples
            held[id(tensor)] = tensor.nbytes if tensor.layout == torch.strided else 0
        return tensor, tensor._version

    def give(noted: tuple[Tensor, int]) -> Tensor:
        tensor, version = noted
        if tensor._version != version:  # torch's own check is off where hooks are on
            raise ValueError("net: overwrites in place a value that its gradient needs")
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, give) if weigh else nullcontext()
    with twice_differentiable():
        try:
            with hooks:
                graph = build()
        except (RuntimeError, ValueError) as error:
            if not weigh or "saved tensor hooks" not in str(error):
                raise
            graph, held = build(), {0: weigh * _UNSEEN}
    graph.saved = sum(held.values())
    graph.given = graph.given if weigh else []
    return graph
