r"""Distances between the points of an interpolation, and the bounds of its norms that follow."""

import math
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import as_tensor, check_finite, check_int, check_positive

CLEARANCE = 1e-3
"""Share of each gap by which resting columns stay below the threshold, so that rounding does not
move them; norms grow by 1 / sqrt(1 - clearance)."""

Nearest = tuple[float, str]
"""A distance, at most 2, and the two points in words."""


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances of all pairs of rows, without the cancellation of a matrix product."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def nearest(x: Tensor, y: Tensor, *, merging: bool = False) -> Nearest:
    """The nearest two points that columns moved in order must keep apart."""
    # Inputs from inputs, targets from targets, and an input from the targets of the samples before
    # it: only these can meet. Assumption 2 of the paper asks it of all pairs, and so does merging,
    # but for equal targets.
    count, own = len(x), _distances(y, y)
    later = torch.ones(count, count, dtype=torch.bool).triu(1)
    found = [(2.0, "antipodes")]
    for first, second, apart, kept in (
        ("x", "x", _distances(x, x), later),
        ("y", "y", own, later & (own > 0) if merging else later),
        ("y", "x", _distances(y, x), later | merging),
    ):
        flat = apart.masked_fill(~kept, math.inf).flatten()
        index = int(flat.argmin())
        where = f"{first}[{index // count}] and {second}[{index % count}]"
        found.append((float(flat[index]), where))
    return min(found, key=lambda pair: pair[0])


def least_norm(x: Tensor, y: Tensor, *, units: int, tolerance: float = 0.0) -> float:
    r"""Lower bound of the largest norm of any net of these units, for "Theorem 1".

    With all norms at most w < 1 a unit changes a distance by a factor between 1 - w² and 1 + w², so
    for every pair :math:`(1 - w^2)^L \le \|y_i - y_j\| / \|x_i - x_j\| \le (1 + w^2)^L`.

    Args:
        x: Inputs, (m, d).
        y: Targets, (m, d).
        units: Number of units L.
        tolerance: Distance up to which a target counts as met.

    Returns:
        The bound; 1 where two inputs have one target, 0 for a single sample, inf where two equal
        inputs have targets further apart than the tolerance allows.

    Raises:
        ValueError: If the shapes differ or a number is out of range.

    Source:
        Derived here: the rate of arXiv:1611.01186, Theorem 1, is the best possible.

    Example:
        >>> x = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
        >>> rt.theory.least_norm(x, torch.tensor([[0.0, 0, 1], [0, 0, 1]]), units=10**6)
        1.0
    """
    check_int("units", units)
    x, y = (as_tensor(n, v).detach().to("cpu", torch.float64) for n, v in (("x", x), ("y", y)))
    if x.shape != y.shape or x.dim() != 2:
        raise ValueError(f"x, y: got shapes {tuple(x.shape)} and {tuple(y.shape)}, needs (m, d)")
    if tolerance:
        check_positive("tolerance", tolerance)
    first, second = torch.triu_indices(len(x), len(x), 1).unbind()
    before = (check_finite("x", x)[first] - x[second]).norm(dim=1)
    after = (check_finite("y", y)[first] - y[second]).norm(dim=1)
    if not len(before):
        return 0.0
    # A quotient of 0 over 0 imposes nothing.
    stretched = (after - 2 * tolerance) / before
    longest = stretched.nan_to_num(posinf=math.inf).max()
    shortest = ((after + 2 * tolerance) / before).nan_to_num(nan=math.inf).min()
    # expm1 and log: the quotients' L-th roots are near 1.
    growth = math.expm1(math.log(max(float(longest), 1.0)) / units)
    log = math.log(float(shortest)) if float(shortest) else -math.inf
    return math.sqrt(max(growth, -math.expm1(log / units)))


def perturbed(
    x: Tensor, y: Tensor, *, noise: float, draws: int, generator: torch.Generator
) -> Tensor:
    """Targets moved apart by normal vectors of length about ``noise``: the best of some draws."""
    # "Add small noise" is from arXiv:1611.01186, Section 3, after Hardt & Ma 2016.
    size = noise / math.sqrt(y.shape[1])
    like: dict[str, Any] = dict(dtype=torch.float64, device=generator.device)
    noises = (torch.randn(y.shape, generator=generator, **like).cpu() for _ in range(draws))
    drawn = ((moved := y + size * z) / moved.norm(dim=1, keepdim=True) for z in noises)
    return max(drawn, key=lambda moved: nearest(x, moved)[0])
