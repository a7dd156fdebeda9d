"""The loss to second order at zero branches, compared with a product of its Hessian."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from resid_theory.curvature.hidden_units import HiddenUnits, Key, Sides
from resid_theory.curvature.loss_graph import WeightUse

__all__ = ["ROUND_OFF", "SIDES", "PredictedLoss", "compare_product"]

ROUND_OFF = 1e-8  # relative difference of products that are equal but for round-off
SIDES = 1e-3  # that of means over both sides of a kink
_FLOOR = 1e-12  # of inputs times gradients: a product of a Hessian of zero


class PredictedLoss:
    """Half the quadratic form of a predicted Hessian.

    Args:
        uses: A use of each weight.
        units: Couplings of hidden units.
        total: Sum of the batches' weights.
        shifts: Names of the parameters that move the stream.
        shift: Their Hessian: of one of them, if each moves all as the others do, or of all.
    """

    def __init__(
        self, uses: Mapping[Key, WeightUse], units: HiddenUnits, total: float,
        shifts: Sequence[str], shift: Tensor | None,
    ) -> None:  # fmt: skip
        self.uses, self._units, self.total = uses, units, total
        self._shifts, self._shift = shifts, shift
        self.biases = {uses[group.reader].bias for group in units.groups} - {""}

    def __call__(self, moves: Mapping[str, Tensor]) -> Tensor:
        """The form, at moves of parameters by name; biases of hidden units do not move."""

        def weight(key: Key) -> Tensor:
            use = self.uses[key]
            assert use.entries is not None
            found = moves[use.name].flatten()[use.entries.cpu()]
            return found if found.dim() == 3 else found[None]

        value = sum((move.sum() for move in moves.values()), torch.zeros(())) * 0.0
        for group in self._units.groups:
            rows = weight(group.reader).mT.flatten(0, 1)[group.units]
            for (writer, columns), block in zip(group.slots, group.blocks, strict=True):
                out = weight(writer).flatten(0, 1)[columns]
                value = value + ((out @ block)[:, : rows.shape[1]] * rows).sum() / self.total
        if self._shift is not None:
            parts = [moves[name].flatten() for name in self._shifts]
            alike = len(self._shift) == len(parts[0])
            moved = torch.stack(parts).sum(0) if alike else torch.cat(parts)
            value = value + moved @ self._shift @ moved / 2
        return value


def compare_product(
    batches: Callable[[], Iterable[Sides]], own: Mapping[str, Tensor], predicted: PredictedLoss,
    *, bound: float,
) -> None:  # fmt: skip
    """Multiply a random vector by the Hessian in some parameters and by the predicted one."""
    draws = torch.Generator().manual_seed(3)
    vector = {
        name: torch.zeros(p.shape, dtype=torch.float64) if name in predicted.biases
        else torch.randn(p.shape, generator=draws, dtype=torch.float64)
        for name, p in own.items()
    }  # fmt: skip
    found = {name: torch.zeros_like(v) for name, v in vector.items()}
    scale = 0.0
    for sides in batches():
        for side in sides:
            share = side.weight / predicted.total / len(sides)
            at: list[Any] = [*own.values(), *(use.output for use in side.uses)]
            slopes = torch.autograd.grad(
                side.loss, at, create_graph=True, allow_unused=True, materialize_grads=True
            )
            z = max(float(use.input.detach().abs().max()) for use in side.uses)
            g = max(float(slope.detach().abs().sum()) for slope in slopes)
            scale += share * z * g
            pairs = zip(slopes, vector.values(), strict=False)  # of the parameters alone
            along = torch.stack([(slope * v.to(slope)).sum() for slope, v in pairs]).sum()
            if not along.requires_grad:
                continue
            products = torch.autograd.grad(
                along, list(own.values()), retain_graph=True, allow_unused=True,
                materialize_grads=True,
            )  # fmt: skip
            for into, product in zip(found.values(), products, strict=True):
                into.add_(product.cpu(), alpha=share)
    moves = {name: v.requires_grad_() for name, v in vector.items()}
    expected = torch.autograd.grad(predicted(moves), list(moves.values()))
    gaps = {
        name: float((found[name] - value).abs().max())
        for name, value in zip(moves, expected, strict=True)
        if name not in predicted.biases
    }
    top = max(float(product.abs().max()) for product in found.values())
    worst = max(gaps, key=lambda name: gaps[name])
    if not gaps[worst] <= bound * top + _FLOOR * scale:
        raise ValueError(
            f"net: {worst!r} has curvature at zero weights that is neither that of a first layer "
            "with a last one nor that of a bias on the stream; not covered are products of two "
            "layers without a third, parameters of zero in front of a last layer, gated biases"
        )
