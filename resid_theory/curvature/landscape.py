"""The loss along directions in the space of weights, and random directions of the filters' size."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from resid_theory._check import as_generator, as_tensor, check_finite, check_int
from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.curvature.forward_checks import displaced
from resid_theory.curvature.matvec_graphs import LossItself
from resid_theory.curvature.operator import CurvatureOperator
from resid_theory.curvature.varied_net import VariedNet
from resid_theory.runtime.result import Columns, Result


@dataclass(frozen=True, kw_only=True, eq=False)
class LossAlong(Result):
    """The loss of a net on straight lines through its weights.

    Attributes:
        loss: At the weights themselves.
        distances: (s,), in lengths of the directions.
        losses: (directions, s), of all data; infinite or NaN where the net leaves its range.
        slopes: Derivative at the weights along each direction.
        curvatures: Second derivative along each direction, of the operator's matrix.
    """

    loss: float
    distances: Tensor
    losses: Tensor
    slopes: Tensor
    curvatures: Tensor

    headline = "loss along {0.losses.shape[0]} directions"

    @property
    def quadratic(self) -> Tensor:
        """The second-order expansion of the losses, (directions, s)."""
        t = self.distances
        return self.loss + self.slopes[:, None] * t + self.curvatures[:, None] * t**2 / 2

    def table(self) -> Columns:
        """A row for each direction and distance."""
        count, steps = self.losses.shape
        return {
            "direction": torch.arange(count).repeat_interleave(steps),
            "distance": self.distances.repeat(count),
            "loss": self.losses.flatten(),
            "quadratic": self.quadratic.flatten(),
        }


def loss_along(A: CurvatureOperator, directions: Tensor, distances: Tensor) -> LossAlong:
    r"""Evaluate the loss at :math:`\theta + t v`, beside its second-order expansion.

    Args:
        A: An operator, which knows net, loss and data; its Hessian for the true second order.
        directions: v, (P,) or (P, b), such as eigenvectors or `filter_directions`.
        distances: t, (s,).

    Returns:
        The losses; the net is left as it was.

    Raises:
        ValueError: If shapes do not fit, or net or data changed since the operator was made.

    Source:
        Li et al. 2018, "Visualizing the loss landscape of neural nets", for the filters' size.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        >>> data = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        >>> A = rt.curvature_operator(net, "square", data)
        >>> found = rt.curvature.loss_along(A, torch.ones(1), torch.tensor([-1.0, 0.0, 1.0]))
        >>> bool((found.losses - found.quadratic).abs().max() < 1e-12)
        True
    """
    _check_operator(A)
    A.check_unchanged()
    size, risk = A.shape[0], copy.copy(A.risk)
    risk.take_graphs(LossItself)
    given = check_finite("directions", as_tensor("directions", directions)).detach()
    given = given.to(A.device, torch.float64)
    steps = check_finite("distances", as_tensor("distances", distances))
    steps = steps.detach().to("cpu", torch.float64, copy=True)
    if given.dim() not in (1, 2) or len(given) != size or given.numel() == 0:
        raise ValueError(
            f"directions: got shape {tuple(given.shape)}, needs ({size},) or ({size}, b)"
        )
    if steps.dim() != 1 or len(steps) == 0:
        raise ValueError(f"distances: got shape {tuple(steps.shape)}, needs (s,), at least one")
    lines = given.reshape(size, -1)
    sizes = [p.numel() for p in risk.parameters]
    with risk.measuring():
        losses = torch.empty(lines.shape[1], len(steps), dtype=torch.float64)
        for row, line in enumerate(lines.mT):
            pairs = zip(risk.parameters, line.split(sizes), strict=True)
            parts = [part.view(p.shape) for p, part in pairs]
            for column, t in enumerate(steps.tolist()):
                with displaced(risk.parameters, [t * part for part in parts]):
                    losses[row, column] = _loss(risk, A.chunk)
    return LossAlong(
        loss=A.loss,
        distances=steps,
        losses=losses,
        slopes=(A.gradient @ lines).cpu(),
        curvatures=A.quadratic(lines).cpu(),
    )


def _check_operator(A: CurvatureOperator) -> None:
    if not isinstance(A, CurvatureOperator):
        raise ValueError(f"A: got {type(A).__name__}, needs what curvature_operator returns")


def _loss(risk: EmpiricalRisk, chunk: int | None) -> float:
    """The loss of all data at the weights that the net has now."""
    total = weight = 0.0
    for batch in risk.data:
        step = chunk or batch.size
        for start in range(0, batch.size, step):
            graph = risk.graph(batch, start, step)
            total += graph.weight * float(graph.value) if graph.weight else 0.0
            weight += graph.weight
    penalty = risk.weight_decay / 2 * float(risk.point @ risk.point)
    return total / (1.0 if risk.sums else weight) + penalty


def filter_directions(
    A: CurvatureOperator, count: int = 1, *, generator: torch.Generator | int = 0
) -> Tensor:
    """Random directions in which every filter has the length of that of the weights.

    A filter is a row of a weight along its first axis. Parameters with one axis, biases and
    normalizations, stay where they are.

    Args:
        A: An operator, which knows the weights.
        count: Number of directions.
        generator: A generator, or the seed of a new one.

    Returns:
        (P, count), float64.

    Raises:
        ValueError: If no parameter has two axes, or ``count`` is no whole number.

    Source:
        Li et al. 2018, "Visualizing the loss landscape of neural nets", section 4.
    """
    _check_operator(A)
    source, check = as_generator(generator), check_int("count", count)
    if isinstance(A.risk.net, VariedNet):
        raise ValueError("A: stands for inputs or activations, which have no filters")
    if all(p.dim() < 2 for p in A.risk.parameters):
        raise ValueError("A: none of its parameters has filters, needs one with two axes or more")
    parts = []
    for p in A.risk.parameters:
        drawn = torch.randn(
            check, *p.shape, generator=source, dtype=torch.float64, device=source.device
        ).to(p.device)
        if p.dim() < 2:
            parts.append(torch.zeros_like(drawn).view(check, -1))
            continue
        rows = drawn.flatten(2)
        lengths = p.detach().double().flatten(1).norm(dim=1)[:, None]
        parts.append((rows / rows.norm(dim=2, keepdim=True) * lengths).flatten(1))
    return torch.cat(parts, dim=1).mT
