"""The initializations of weights. A new one is a row here, for nets, layers and closed forms."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Shape = Sequence[int]
_Layer = TypeVar("_Layer", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Initialization:
    """Distribution of an initial weight, either by ``deviation`` or by ``function``."""

    # "matrix", the weights of ShortcutNet; "kernel", those of nn.Linear and convolutions.
    applies_to: tuple[str, ...]
    # Standard deviation of independent normal entries, from the weight's shape (out, in, *kernel).
    deviation: Callable[[Shape], float] | None = None
    # Draws a weight of a given shape (..., out, in) in float64 on the generator's device.
    function: Callable[[Shape, torch.Generator], Tensor] | None = None
    scaled: bool = False  # whether the caller's factor, scale or std, multiplies the deviation
    # Mean of |W z|² / |z|² for a square matrix W and a factor of 1; None if it depends on the size.
    gain: float | None = None
    orthogonal: bool = False  # whether all singular values are 1


def _xavier(shape: Shape) -> float:
    return math.sqrt(2 / (shape[0] + shape[1]))


def _haar(shape: Shape, generator: torch.Generator) -> Tensor:
    normal = torch.randn(*shape, generator=generator, dtype=torch.float64, device=generator.device)
    wide = shape[-2] < shape[-1]
    q, r = torch.linalg.qr(normal.mT if wide else normal)
    # QR leaves the signs of R's diagonal to the library; only with fixed signs is Q Haar.
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return q.mT if wide else q


def _zero(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.zeros(*shape, device=generator.device)


INITIALIZATIONS: dict[str, Initialization] = {
    "xavier": Initialization(applies_to=("matrix",), deviation=_xavier, gain=1.0),
    "orthogonal": Initialization(
        applies_to=("matrix",), function=_haar, gain=1.0, orthogonal=True
    ),
    "kaiming": Initialization(
        applies_to=("matrix", "kernel"), gain=2.0,
        deviation=lambda shape: math.sqrt(2 / math.prod(shape[1:])),
    ),
    "zero": Initialization(applies_to=("matrix",), function=_zero, gain=0.0),
    "near_zero": Initialization(
        applies_to=("matrix",), deviation=_xavier, scaled=True, gain=1.0
    ),
    "hardt_ma": Initialization(
        applies_to=("kernel",), deviation=lambda shape: 1 / (math.prod(shape[2:]) * shape[0])
    ),
    "normal": Initialization(applies_to=("kernel",), deviation=lambda shape: 1.0, scaled=True),
}  # fmt: skip


def initializations_for(weight: str, *, scaled: bool = True) -> list[str]:
    """Names of the initializations of ``"matrix"`` or ``"kernel"``; not of those with a factor."""
    rows = INITIALIZATIONS.items()
    return [name for name, row in rows if weight in row.applies_to and (scaled or not row.scaled)]


def draw_initial(
    init: str,
    shape: Shape,
    generator: torch.Generator,
    *,
    factor: float,
    weight_shape: Shape,
) -> Tensor:
    """Draw a tensor in float64; the deviation is that of ``weight_shape``."""
    row = INITIALIZATIONS[init]
    if row.function is not None:
        return row.function(shape, generator)
    assert row.deviation is not None
    deviation = row.deviation(weight_shape)
    normal = torch.randn(*shape, generator=generator, dtype=torch.float64, device=generator.device)
    return normal.mul_(factor * deviation if row.scaled else deviation)


def undrawn(kind: type[_Layer], *sizes: Any, **options: Any) -> _Layer:
    """Make a layer of torch with weights as memory has them; nothing is drawn."""
    # ``nn.utils.skip_init`` makes it on the meta device first, for which torch imports sympy.
    layer: _Layer = _without_reset(kind)(*sizes, **options)  # type: ignore[arg-type]
    layer.__class__ = kind
    return layer


@functools.cache
def _without_reset(kind: type[nn.Module]) -> Any:
    return type(kind.__name__, (kind,), {"reset_parameters": lambda _: None})
