"""Tolerances by name, each with where it comes from."""

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps


def assert_same(found, expected) -> None:
    """Equal entries, shapes and dtypes of tensors, or of dicts of tensors with equal keys."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def relative_error(measured: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest entry of the exact answer."""
    assert measured.shape == exact.shape, (measured.shape, exact.shape)
    scale = float(exact.detach().abs().max())
    difference = float((measured - exact).detach().abs().max())
    return difference / scale if scale else difference


def round_off(operations: int) -> float:
    """A sum of ``operations`` rounded terms: its worst case, relative to the sum of magnitudes."""
    return 4 * operations * EPS


HESSIAN = 1e-12
"""What exact Hessians promise, relative to the largest entry: 1e3 roundings, none amplified."""
