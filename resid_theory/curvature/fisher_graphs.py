"""Fisher matrices as autograd graphs, and the table of all curvature matrices."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resid_theory.curvature.matvec_graphs import (
    GaussNewtonGraph,
    HessianGraph,
    Index,
    MatvecGraph,
)
from resid_theory.losses import Loss, check_scalar


class SampledGraph(GaussNewtonGraph):
    """J^T C J with a C of each sample, a sum of outer products."""

    needs_samples = True

    @property
    def first_derivatives(self) -> Sequence[Tensor]:
        """The outputs' derivative times any slopes."""
        return self._transposed

    @property
    def outputs(self) -> Sequence[Tensor]:
        """The net's outputs, with their graphs."""
        return self._outputs

    @abstractmethod
    def roots(self) -> Iterator[Sequence[Tensor]]:
        """Tensors like the outputs; over all of them each sample's outer products add up to C."""


class EmpiricalFisherGraph(SampledGraph):
    """Weighted mean of g g^T over the samples, g the gradient of each sample's own loss."""

    title = "empirical Fisher matrix"

    def _record(self, output: Any, target: Any, loss: Loss) -> tuple[Tensor, Sequence[Tensor]]:
        assert self.axes is not None
        recorded = super()._record(output, target, loss)
        self._places = self.axes.floating(output)
        # A slope is the sample's share of the loss times the slope of its own loss.
        self._each = self._places.spread([slope.detach() for slope in self._slopes])
        return recorded

    def _curve(self, moves: Sequence[Tensor], batched: bool) -> Sequence[Tensor]:
        assert self.shares is not None
        shares = self.shares.to(self._each[0])
        inverse = torch.where(shares > 0, 1 / shares, 0.0)

        def along(move: Sequence[Tensor]) -> list[Tensor]:
            pairs = zip(self._each, self._places.spread(move), strict=True)
            products = sum((s * m).reshape(len(s), -1).sum(1) for s, m in pairs) * inverse
            return self._scaled(products)

        return torch.vmap(along)(list(moves)) if batched else along(moves)

    def roots(self) -> Iterator[Sequence[Tensor]]:
        """The slopes of the samples' own losses, at once."""
        assert self.shares is not None
        root = torch.where(self.shares > 0, self.shares.rsqrt(), 0.0)
        yield self._scaled(root.to(self._each[0]))

    def _scaled(self, factors: Tensor) -> list[Tensor]:
        """The slopes times a factor for each sample; zeros where no sample is."""
        scaled = [s * factors.view(-1, *[1] * (s.dim() - 1)) for s in self._each]
        made: list[Tensor] = self._places.gather(
            scaled, [torch.zeros_like(s) for s in self._slopes]
        )
        return made


class EmpiricalFisherOfOneGraph(EmpiricalFisherGraph):
    """The same of one sample, from its gradient alone: nothing is differentiated twice."""

    def _record(self, output: Any, target: Any, loss: Loss) -> tuple[Tensor, Sequence[Tensor]]:
        value = check_scalar(loss(output, target))
        parts = torch.autograd.grad(value, self.parameters, allow_unused=True)
        self.reached = [part is not None for part in parts]
        self._own = [
            torch.zeros_like(p) if part is None else part
            for p, part in zip(self.parameters, parts, strict=True)
        ]
        return value, self._own

    @property
    def first_derivatives(self) -> Sequence[Tensor]:
        """Nothing."""
        return []

    def pull(
        self, vectors: Sequence[Tensor], rows: Index, columns: Index, batched: bool
    ) -> Sequence[Tensor]:
        """Multiply by the gradient's outer product with itself."""
        assert self.shares is not None
        lead = (len(vectors[0]),) if batched else ()
        own = [self._own[k] for k in columns]
        pairs = zip(own, vectors, strict=True)
        inner = torch.stack([(g * v).reshape(*lead, -1).sum(-1) for g, v in pairs]).sum(0)
        inner = inner / (float(self.shares.sum()) or 1.0)  # in a sum, a sample may weigh nothing
        return [self._own[k] * inner.view(*lead, *[1] * self._own[k].dim()) for k in rows]


class FisherGraph(SampledGraph):
    """J^T C J, C the second moment of the loss's slope at the outputs, of targets of the model."""

    title = "Fisher matrix of the model's own targets"
    needs_likelihood = True

    def _record(self, output: Any, target: Any, loss: Loss) -> tuple[Tensor, Sequence[Tensor]]:
        recorded = super()._record(output, target, loss)
        if len(self._points) != 1:
            raise ValueError(f"net: gives {len(self._points)} tensors, a Fisher matrix needs one")
        assert loss.likelihood is not None and self.shares is not None
        (point,) = (point.detach() for point in self._points)
        self._predictions = loss.likelihood(point, target)
        shares = self.shares.to(point).view(-1, *[1] * (point.dim() - 1))
        self._weights = shares * self._predictions.weights
        if self._predictions.natural and not self.first:
            self._check_likelihood(point)
        return recorded

    def _check_likelihood(self, point: Tensor) -> None:
        """Refuse what is no likelihood of the loss, by second derivatives in the outputs."""
        move = torch.arange(1.0, 1 + point.numel()).cos().view_as(point).to(point)
        own, exact = FisherGraph._curve(self, [move], False), super()._curve([move], False)
        scale, eps = (self._weights * move).abs().max(), torch.finfo(point.dtype).eps
        gap, most = (own[0] - exact[0]).abs().max(), exact[0].abs().max()
        if gap > eps**0.5 * most + 64 * eps * scale:
            kind = type(self._predictions).__name__
            raise ValueError(
                f"likelihood: {kind} has other second derivatives in the outputs than the loss (by "
                f"{float(gap / most):.2g} of the largest); needs one with its total=, precision=, "
                f"axis= or ignored= by functools.partial({kind}, ...)"
            )

    def _curve(self, moves: Sequence[Tensor], batched: bool) -> Sequence[Tensor]:
        return [self._weights * self._predictions.curve(move) for move in moves]

    def roots(self) -> Iterator[Sequence[Tensor]]:
        """One prediction of each sample at a time, for they share layers."""
        axis, shape = self._predictions.axis, self._predictions.shape
        for root in self._predictions.roots():
            root = self._weights.sqrt() * root
            for place in torch.eye(shape[1:].numel()).to(root):
                chosen = place.view(shape[1:]).expand(shape)
                yield [root * (chosen if axis is None else chosen.unsqueeze(axis))]


class MonteCarloFisherGraph(FisherGraph):
    """The same with the mean over some drawn targets in place of the expectation."""

    title = "Monte-Carlo Fisher matrix of the model's own targets"
    is_random = True

    def _record(self, output: Any, target: Any, loss: Loss) -> tuple[Tensor, Sequence[Tensor]]:
        recorded = super()._record(output, target, loss)
        shape = (self.draws, *self._predictions.shape[1:])
        # A counter for each sample, so that its numbers depend on its position alone.
        ranks = [
            np.random.Generator(np.random.Philox(key=self.seed, counter=place << 64)).random(shape)
            for place in range(self.first, self.first + self._predictions.shape[0])
        ]
        each = torch.from_numpy(np.stack(ranks, axis=1).clip(2.0**-54)).to(output.device)
        self._drawn = torch.stack([self._predictions.drawn(some) for some in each])
        return recorded

    def _curve(self, moves: Sequence[Tensor], batched: bool) -> Sequence[Tensor]:
        (move,) = moves
        total = sum(self._predictions.along(slope, move) for slope in self._drawn)
        return [self._weights / self.draws * total]

    def roots(self) -> Iterator[Sequence[Tensor]]:
        """A draw of all predictions at a time: products of two have no mean."""
        for slope in self._drawn:
            yield [(self._weights / self.draws).sqrt() * slope]


MATRICES: dict[str, type[MatvecGraph]] = {
    "hessian": HessianGraph,
    "gauss_newton": GaussNewtonGraph,
    "fisher": FisherGraph,
    "fisher_mc": MonteCarloFisherGraph,
    "empirical_fisher": EmpiricalFisherGraph,
}
