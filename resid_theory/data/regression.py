"""A data set in memory: inputs, targets and the moments that a linear net sees of them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import check_finite
from resid_theory.data.batching import batches
from resid_theory.data.moments import Moments

__all__ = ["Regression", "gather"]


@dataclass(frozen=True, eq=False)
class Regression:
    """Inputs and targets of a regression or of a classification with one-hot targets.

    Attributes:
        x: Inputs, (m, d), floating point.
        y: Targets, (m, k), floating point.

    Raises:
        ValueError: If a tensor is not a finite floating-point matrix or the counts differ.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        for name in ("x", "y"):
            _check_matrix(name, getattr(self, name))
        if len(self.x) != len(self.y):
            raise ValueError(
                f"y: got {len(self.y)} samples for {len(self.x)} in x, needs the same number"
            )

    @property
    def count(self) -> int:
        """Number of samples m."""
        return len(self.x)

    @cached_property
    def moments(self) -> Moments:
        """Second moments, in float64."""
        return Moments.of(self)

    def to(self, *args: Any, **kwargs: Any) -> "Regression":
        """Both tensors moved or cast, with the arguments of ``torch.Tensor.to``.

        Args:
            *args: Device or dtype.
            **kwargs: The same by name.

        Returns:
            A new object.
        """
        return Regression(self.x.to(*args, **kwargs), self.y.to(*args, **kwargs))


def _check_matrix(name: str, given: Any) -> None:
    if not isinstance(given, Tensor):
        raise ValueError(
            f"{name}: got {type(given).__name__}, needs a tensor; arrays and loaders: gather(data)"
        )
    if given.dim() != 2 or given.numel() == 0 or not given.is_floating_point():
        raise ValueError(
            f"{name}: got shape {tuple(given.shape)} and dtype {given.dtype}, "
            "needs a non-empty floating-point matrix (samples, features)"
        )
    check_finite(name, given)


def gather(data: Any) -> Regression:
    """All samples of ``data`` in one object, in float64.

    Args:
        data: Whatever :func:`resid_theory.data.batching.batches` accepts, with x (m, d) and
            y (m, k).

    Returns:
        The samples in the order given.

    Raises:
        ValueError: If the batches do not join to two matrices of finite numbers.
    """
    if isinstance(data, Regression) and data.x.dtype == data.y.dtype == torch.float64:
        return data
    parts = list(batches(data))
    shapes = {(part_x.shape[1:], part_y.shape[1:]) for part_x, part_y in parts}
    if len(shapes) > 1:
        widths = ", ".join(f"{tuple(a)} and {tuple(b)}" for a, b in sorted(shapes))
        raise ValueError(f"data: samples of different shapes in x and y: {widths}; needs one shape")
    x, y = (torch.cat([part[side] for part in parts]) for side in (0, 1))
    if y.dim() == 1 and not y.is_floating_point():
        raise ValueError(
            f"y: got class labels of shape {tuple(y.shape)}, needs one-hot targets (m, k): "
            "use resid_theory.data.one_hot(labels, classes)"
        )
    return Regression(x.to(torch.float64), y.to(torch.float64))
