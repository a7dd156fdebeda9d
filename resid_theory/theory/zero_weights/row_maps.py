"""Normalizations of samples one by one, in front of a branch, behind it, or along the stream."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import check_choice, check_finite
from resid_theory.networks.wiring import NORM_PLACES, single_stream
from resid_theory.theory.zero_weights.layout import Layout


@dataclass(frozen=True, kw_only=True, eq=False)
class RowMaps:
    """Normalizations of a net, one for all blocks or one each.

    Attributes:
        maps: Callables (m, width) -> (m, width); empty for none.
        at: ``"branch"``, ``"stream"`` or ``"write"``; empty for none.
    """

    maps: tuple[Callable[[Tensor], Tensor], ...]
    at: str

    @classmethod
    def of(cls, given: Any, at: str, blocks: int) -> "RowMaps":
        """Check the number of normalizations and where they are."""
        check_choice("norm_at", at, NORM_PLACES)
        if given is None:
            return cls(maps=(), at="")
        if not callable(given) and not isinstance(given, Iterable) or isinstance(given, str):
            raise ValueError(f"norm: got {given!r}, needs a callable, or one for each block")
        maps = (given,) if callable(given) else tuple(given)
        for one in maps:
            if isinstance(one, type):
                raise ValueError(f"norm: got the class {one.__name__}, needs a map of rows")
        if len(maps) not in (1, blocks) or not all(callable(one) for one in maps):
            raise ValueError(f"norm: got {len(maps)}, needs one callable, or one for each block")
        if any(isinstance(one, nn.Module) and one.training and _mixes(one) for one in maps):
            raise ValueError("norm: normalizes over samples in training mode, needs net.eval()")
        doubled = (
            deepcopy(m).double().requires_grad_(False) if isinstance(m, nn.Module) else m
            for m in maps
        )
        return cls(maps=tuple(doubled), at=at)

    def __call__(self, rows: Tensor, block: int) -> Tensor:
        """Normalize the rows that arrive at a block; refuse what makes rows depend on others."""
        norm = self.maps[min(block, len(self.maps) - 1)]
        try:
            made = norm(rows)
        except Exception as error:
            raise ValueError(
                f"norm: fails on rows of shape {tuple(rows.shape)} in block {block + 1}: {error}"
            ) from error
        shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        if shape != tuple(rows.shape):
            raise ValueError(f"norm: turns shape {tuple(rows.shape)} into {shape}, needs the same")
        if not torch.allclose(norm(rows[:1]), check_finite("norm(x)", made)[:1], 1e-9, 1e-12):
            raise ValueError("norm: a sample's result depends on other samples, needs its own only")
        return made

    def along(self, x: Tensor, layout: Layout) -> list[Tensor]:
        """The normalized stream in front of each block and behind the last, at zero weights."""
        skip, _ = single_stream(*layout.coefficients())
        stream = [x]
        for block, share in enumerate(skip.tolist()):
            stream.append(self(share * stream[-1], block))
        return stream

    def back(self, stream: list[Tensor], gradients: Tensor, layout: Layout) -> list[Tensor]:
        """Gradients at the outputs of blocks that write a normalized stream."""
        skip, scale = (part.tolist() for part in single_stream(*layout.coefficients()))
        found = []
        for block in reversed(range(layout.blocks)):
            norm = partial(self, block=block)
            gradients = pulled_back(norm, skip[block] * stream[block], gradients)
            found.append(scale[block] * gradients)
            gradients = skip[block] * gradients
        return found[::-1]

    def slope_at_zero(self, rows: Tensor, block: int) -> Tensor:
        """Derivative at zero of a normalization of what a block writes, such rows (m, width)."""
        zero = torch.zeros_like(rows[:1])
        if bool(self(zero, block).abs().max() > 1e-12):
            raise ValueError(
                "norm: is not 0 at zero, needs norm_at='write' without a bias of its own"
            )
        slope = row_jacobian(partial(self, block=block), zero).squeeze(0)
        return check_finite("norm (its slope at zero)", slope)


def pulled_back(function: Callable[[Tensor], Tensor], rows: Tensor, gradients: Tensor) -> Tensor:
    """Gradients at rows from gradients at a function of each."""
    with torch.inference_mode(False), torch.enable_grad():
        point = rows.detach().clone().requires_grad_()
        value = function(point)
        if not value.requires_grad:
            return torch.zeros_like(rows)
        return torch.autograd.grad(value, point, gradients)[0]


def row_jacobian(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Derivatives of every row's result in the row itself, (m, out, in)."""
    m, d = rows.shape
    units = torch.eye(d, dtype=rows.dtype, device=rows.device)[:, None].expand(d, m, d)
    return torch.stack([pulled_back(function, rows, unit) for unit in units], dim=1)


def _mixes(module: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
