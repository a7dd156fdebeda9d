"""Inputs and targets of a regression in memory, with their second moments."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import as_tensor, check_finite, check_int
from resid_theory.data.batch import join
from resid_theory.data.data import Data
from resid_theory.data.moments import Moments


@dataclass(frozen=True, eq=False)
class Regression:
    """Inputs and targets of a regression, or of a classification with one-hot targets.

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
            if not isinstance(given := getattr(self, name), Tensor):
                raise ValueError(
                    f"{name}: got {type(given).__name__}, needs a tensor; arrays and loaders: "
                    "gather(data)"
                )
            if given.dim() != 2 or given.numel() == 0 or not given.is_floating_point():
                raise ValueError(
                    f"{name}: got shape {tuple(given.shape)} and dtype {given.dtype}, needs a "
                    "non-empty floating-point matrix (samples, features); of class labels, rows by "
                    "rt.data.one_hot"
                )
            check_finite(name, given)
        if len(self.x) != len(self.y):
            raise ValueError(
                f"y: got {len(self.y)} samples for {len(self.x)} in x, needs the same number"
            )

    def __repr__(self) -> str:
        """The shapes."""
        return f"Regression(x {tuple(self.x.shape)}, y {tuple(self.y.shape)}, {self.x.dtype})"

    @property
    def count(self) -> int:
        """Number of samples m."""
        return len(self.x)

    @cached_property
    def moments(self) -> Moments:
        """Second moments, in float64."""
        return Moments.of(self)

    def to(self, *args: Any, **kwargs: Any) -> "Regression":
        """Move or cast both tensors, with the arguments of ``torch.Tensor.to``.

        Args:
            *args: Device or dtype.
            **kwargs: Device or dtype by name.

        Returns:
            A new object.
        """
        return Regression(self.x.to(*args, **kwargs), self.y.to(*args, **kwargs))


def gather(data: Any) -> Regression:
    """Collect all samples of ``data`` in one object, in float64.

    Args:
        data: A pair (x, y) of tensors or arrays, an object with ``.x`` and ``.y``, or a loader of
            such pairs, with x (m, d) and y (m, k).

    Returns:
        The samples in the order given.

    Raises:
        ValueError: If the batches do not join to two matrices of finite numbers.
    """
    if isinstance(data, Regression) and data.x.dtype == data.y.dtype == torch.float64:
        return data
    x, y = join(list(Data.of(data).unweighted())).pair
    for name, side in (("x", x), ("y", y)):
        if not isinstance(side, Tensor):
            raise ValueError(f"{name}: got {type(side).__name__}, needs a tensor")
    if y.dim() == 1 and not y.is_floating_point():
        raise ValueError(
            f"y: got class labels of shape {tuple(y.shape)}, needs one-hot targets (m, k): "
            "use resid_theory.data.one_hot(labels, classes)"
        )
    return Regression(x.to(torch.float64), y.to(torch.float64))


def one_hot(labels: Any, classes: int) -> Tensor:
    """Class labels as rows of the identity matrix.

    Args:
        labels: Whole numbers in [0, classes), (m,); integers or floats without a fraction.
        classes: Number of classes, at least 1.

    Returns:
        Zeros and ones, (m, classes), float64, on the labels' device.

    Raises:
        ValueError: If the labels are not a vector, or one is not a whole number in range.

    Example:
        >>> one_hot([2, 0], 3).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    labels = as_tensor("labels", labels)
    check_int("classes", classes)
    if labels.dim() != 1:
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)} and dtype {labels.dtype}, needs a vector of "
            "class numbers (m,)"
        )
    index = labels.to(torch.float64)
    wrong = ((index != index.floor()) | (index < 0) | (index >= classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"labels: label {labels[first].item()} at position {first} is not a whole number in "
            f"[0, {classes}) ({len(wrong)} of {len(labels)} are not)"
        )
    return torch.eye(classes, dtype=torch.float64, device=labels.device)[index.long()]
