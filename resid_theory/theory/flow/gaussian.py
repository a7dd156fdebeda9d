r"""Probability that one centred normal number exceeds another in magnitude.

For X and Y of standard deviations sx and sy it depends on the ratio sx / sy alone.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import as_tensor, check_choice, check_positive, check_within

EXPONENTS = {"slope": 4 / math.pi, "least_squares": 1.2066, "minimax": 1.2127}
"""b of eq. (15): equal slopes at ratio 1; least squares over ln ratio; smallest largest gap."""
_SMALLEST_RATIO = 0.01  # below it the logistic is off by a factor of 1.7 and more

_STEP = 0.125  # of ln v; the error of the trapezoidal rule is about exp(-2π · (π/4) / step) = 7e-18
_LOWEST, _HIGHEST = -42.0, 2.5  # v from 6e-19, below double precision, to 12, past the normal tail


def exceedance(ratio: Any, *, correlation: float = 0.0) -> Tensor:
    r"""Pr(\|X\| > \|Y\|) of two centred normal numbers, in closed form.

    Independent: :math:`c(\rho) = \tfrac{2}{\pi} \arctan \rho`, hence c(1/ρ) = 1 - c(ρ). Correlated:
    :math:`\tfrac1\pi \operatorname{atan2}(2 \rho \sqrt{1 - r^2}, 1 - \rho^2)`.

    Args:
        ratio: ρ = sx / sy, any shape, 0 to infinity.
        correlation: r of X and Y, in [-1, 1].

    Returns:
        Probabilities, shape of ``ratio``, float64.

    Raises:
        ValueError: If a ratio is negative or not a number, or the correlation out of range.

    Source:
        Yu & Tomasi, arXiv:1905.10944, eq. (14), an integral there; the closed forms are ours.

    Example:
        >>> exceedance([0.0, 1.0, torch.inf]).tolist()
        [0.0, 0.5, 1.0]
    """
    rho = _ratio(ratio)
    correlation = check_within("correlation", correlation, -1, 1)
    # The smaller of ρ and 1/ρ: atan2 does not take infinity, and large squares overflow.
    low = torch.minimum(rho, 1 / rho)
    height = 2 * low * math.sqrt((1 - correlation) * (1 + correlation))
    chance = torch.atan2(height, (1 - low) * (1 + low)) / math.pi
    return torch.where(rho <= 1, chance, 1 - chance)


def exceedance_integral(ratio: Any) -> Tensor:
    r""":func:`exceedance` of independent numbers by quadrature of the paper's integral.

    :math:`4 \int_0^\infty \Phi(u)\, g(u; \rho)\, du - 1`, g the density of N(0, ρ²), by the
    trapezoidal rule in ln v, which converges exponentially for every ρ.

    Args:
        ratio: ρ = sx / sy, any shape, 0 or more, finite.

    Returns:
        Probabilities, shape of ``ratio``, float64; exact to round-off.

    Raises:
        ValueError: If a ratio is negative, infinite or not a number.

    Source:
        Yu & Tomasi, arXiv:1905.10944, eq. (14).
    """
    rho = _ratio(ratio)
    if bool(torch.isinf(rho).any()):
        raise ValueError("ratio: got infinity, needs finite numbers; exceedance takes infinity")
    scaled = rho[..., None] / math.sqrt(2)
    return half_normal_mean(lambda v: torch.erf(scaled * v), device=rho.device)


def logistic(ratio: Any, exponent: str | float = "minimax") -> Tensor:
    r"""The paper's approximation of :func:`exceedance`: a logistic function of ln ρ.

    :math:`1 / (1 + \rho^{-b})`. The largest gap is 0.0063 for ``"minimax"``, 0.0071 for
    ``"least_squares"`` and 0.0130 for ``"slope"``. Small ratios are refused: the tail goes as ρ to
    the power b, the exact one as ρ.

    Args:
        ratio: ρ = sx / sy, any shape, 0.01 or more.
        exponent: b, a name in ``EXPONENTS`` or a number; the paper's own value is lost.

    Returns:
        Probabilities, shape of ``ratio``, float64.

    Raises:
        ValueError: If a ratio is below 0.01 or not a number, or the exponent is no known name and
            no number above zero.

    Source:
        Yu & Tomasi, arXiv:1905.10944, eq. (15).

    Example:
        >>> gap = logistic([0.5]) - exceedance([0.5])
        >>> round(gap.item(), 4)
        0.0062
    """
    rho = _ratio(ratio)
    if rho.numel() and float(rho.min()) < _SMALLEST_RATIO:
        raise ValueError(
            f"ratio: got {float(rho.min()):g}, needs at least {_SMALLEST_RATIO}: the tail of the "
            "logistic has the wrong exponent; use exceedance, which is exact"
        )
    if isinstance(exponent, str):
        exponent = EXPONENTS[check_choice("exponent", exponent, list(EXPONENTS))]
    return torch.sigmoid(check_positive("exponent", exponent) * rho.log())


def half_normal_mean(function: Callable[[Tensor], Tensor], *, device: Any = "cpu") -> Tensor:
    """E f(|z|) of a standard normal z, by the trapezoidal rule in ln |z|."""
    # The function maps (q,) to (..., q), is bounded, and analytic near the positive axis.
    grid = torch.arange(_LOWEST, _HIGHEST, _STEP, dtype=torch.float64, device=device)
    nodes = grid.exp()
    weights = math.sqrt(2 / math.pi) * _STEP * nodes * (-0.5 * nodes.square()).exp()
    return function(nodes) @ weights


def _ratio(given: Any) -> Tensor:
    rho = as_tensor("ratio", given).to(torch.float64)
    wrong = ~(rho >= 0)
    if bool(wrong.any()):
        raise ValueError(f"ratio: got {rho[wrong][0].item()}, needs numbers of at least 0")
    return rho
