r"""Signal propagation at initialization: growth of outputs and singular values of Jacobians.

Entries are normal and independent, of variance v: 1/d for Xavier on square matrices, 2/d for
Kaiming (MSRA), the square of the scale over d for near-zero.
"""

import math

import torch
from torch import Tensor

from resid_theory._check import check_choice, check_int, check_positive
from resid_theory.initializations import INITIALIZATIONS

_GAINS = [name for name, row in INITIALIZATIONS.items() if row.gain is not None]


def _gain(init: str, scale: float) -> float:
    """Mean of |Wz|² / |z|² for a square W."""
    row = INITIALIZATIONS[check_choice("init", init, _GAINS)]
    assert row.gain is not None
    return row.gain * check_positive("scale", scale) ** 2 if row.scaled else row.gain


def output_growth(
    init: str, shortcut_depth: int, *, shortcut: bool = True, mid: str | None = None,
    scale: float = 0.01,
) -> float:  # fmt: skip
    r"""Factor by which a block multiplies the mean squared norm of its input, at initialization.

    :math:`1 + g^n h^{n-1}` with a shortcut and :math:`g^n h^{n-1}` without, where g = d v is the
    gain of a matrix and h = 1/2 for a ReLU in mid positions, 1 without.

    Args:
        init: Initialization of the square matrices, one with a gain in the table of
            ``resid_theory.initializations``.
        shortcut_depth: Matrices n in a block.
        shortcut: Whether the identity is added.
        mid: ``"relu"`` between matrices, or None.
        scale: Scale of ``near_zero``.

    Returns:
        A number of at least 0; mean over the initialization, exact at any width.

    Raises:
        ValueError: If a name is unknown, the count is below 1 or the scale is not positive.

    Source:
        Li et al., arXiv:1611.01186, section 4.1; the factor is derived here.

    Example:
        >>> output_growth("kaiming", 2), output_growth("kaiming", 2, mid="relu")
        (5.0, 3.0)
        >>> output_growth("near_zero", 2, scale=0.1) ** 100 < 1.02
        True
    """
    n = check_int("shortcut_depth", shortcut_depth)
    if mid is not None:
        check_choice("mid", mid, ["relu"])
    branch = _gain(init, scale) ** n * (0.5 if mid else 1.0) ** (n - 1)
    return branch + 1.0 if shortcut else branch


def lyapunov_exponents(width: int, *, init: str = "xavier", scale: float = 0.01) -> Tensor:
    r"""Growth per layer of the singular values of a plain linear net, in nats.

    :math:`\ell_i = \tfrac12 (\log(2 v) + \psi(\tfrac{d - i + 1}{2}))`: after N layers the i-th
    singular value of the Jacobian is about :math:`e^{N \ell_i}`. Zero for orthogonal weights.

    Args:
        width: Width d.
        init: ``"xavier"``, ``"kaiming"``, ``"near_zero"`` or ``"orthogonal"``.
        scale: Scale of ``near_zero``.

    Returns:
        (d,), float64, descending.

    Raises:
        ValueError: If the width is below 1 or the initialization is none of these.

    Source:
        Newman, "The distribution of Lyapunov exponents", Commun. Math. Phys. 103, 1986.

    Example:
        >>> exponents = lyapunov_exponents(10)
        >>> f"{exponents[0] - exponents[-1]:.3f}"  # nats a layer, for Xavier at width 10
        '1.735'
    """
    d = check_int("width", width)
    # A gain of 0 has no logarithm; the formula is that of normal entries.
    known = [name for name in _GAINS if INITIALIZATIONS[name].gain]
    if INITIALIZATIONS[check_choice("init", init, known)].orthogonal:
        return torch.zeros(d, dtype=torch.float64)
    freedom = torch.arange(d, 0, -1, dtype=torch.float64)
    return 0.5 * (math.log(2 * _gain(init, scale) / d) + torch.special.digamma(freedom / 2))
