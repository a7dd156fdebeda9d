r"""Singular values of deep residual Jacobians at large width.

:math:`J = \prod_l (I + \sqrt{c/L}\, G_l)` with independent normal entries of variance 1/width: as
the width and then the depth grow, the squared singular values have a limit that depends on the
variance c of all branches together and on nothing else.
"""

import cmath
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from resid_theory._check import check_int, check_positive
from resid_theory.activations import Activation, activation as named_activation, derivatives
from resid_theory.runtime.result import Result

_GRID = 2001  # points of the density, dense at both edges
_NEWTON = 50
_LARGEST = 350  # e^(2c) (1 + 2c), the second moment, is a float
_NODES = 200  # of the Gaussian mean


@dataclass(frozen=True, kw_only=True, eq=False)
class Isometry(Result):
    r"""The limit of a residual Jacobian's singular values.

    Attributes:
        variance: c, the sum over blocks of the variance that a branch adds to a unit signal.
        singular_values: s, (points,), ascending from edge to edge.
        density: Of the singular values at these points, (points,).

    Source:
        Tarnowski, Warchoł, Jastrzębski, Tabor & Nowak, "Dynamical isometry is achieved in residual
        networks in a universal way for any activation function", arXiv:1809.08848.
    """

    variance: float
    singular_values: Tensor
    density: Tensor

    headline = (
        "singular values {0.edges[0]:.4g} to {0.edges[1]:.4g} at branch variance {0.variance:.4g}"
    )
    tabulated = {"singular_value": "singular_values", "density": "density"}

    @property
    def edges(self) -> tuple[float, float]:
        """Smallest and largest singular value; their product is one."""
        return _edges(self.variance)

    def moment(self, order: int) -> float:
        """Mean of the squared singular values (order 1), or of their squares (2)."""
        if order not in (1, 2):
            raise ValueError(f"order: got {order!r}, needs 1 or 2")
        c = self.variance
        return math.exp(c) if order == 1 else (1 + 2 * c) * math.exp(2 * c)

    def cdf(self, values: Tensor) -> Tensor:
        """Share of singular values up to given ones, any number of them."""
        s, given = self.singular_values, values.detach().double().cpu()
        share = nn.functional.pad(torch.cumulative_trapezoid(self.density, s), (1, 0))
        return torch.as_tensor(np.interp(given.numpy(), s.numpy(), (share / share[-1]).numpy()))


def isometry(variance: float) -> Isometry:
    r"""Distribution of the singular values of a wide and deep residual net's Jacobian.

    Args:
        variance: c, the variances of all branches together: of R linear branches of n matrices
            with normal entries of variance :math:`\epsilon^2 / d`, :math:`c = R \epsilon^{2n}`;
            with activations :func:`effective_variance`.

    Returns:
        The distribution.

    Raises:
        ValueError: If the variance is not above zero, or above 350, where squares leave the floats.

    Source:
        Tarnowski et al., arXiv:1809.08848, section 4: with M(λ) the generating function of the
        moments, :math:`\ln(1 + M) - \ln M + c(1 + 2M) = \ln \lambda`.

    Example:
        >>> found = isometry(0.25)
        >>> [round(edge, 3) for edge in found.edges], round(found.moment(1), 3)
        ([0.486, 2.058], 1.284)
    """
    c = _checked(variance)
    top = 2 * math.log(_edges(c)[1])
    start = (math.sqrt(1 + 2 / c) - 1) / 2
    # ln λ from the upper edge down; the density is symmetric around zero but for a factor.
    angles = torch.linspace(0, math.pi, _GRID, dtype=torch.float64)
    places = (top * torch.cos(angles)).tolist()
    heights, m = [0.0], start - 1j
    for place in places[1:-1]:
        for _ in range(_NEWTON):
            wrong = cmath.log(1 + m) - cmath.log(m) + c * (1 + 2 * m) - place
            step = wrong / (1 / (1 + m) - 1 / m + 2 * c)
            m -= step
            if abs(step) <= 1e-14 * abs(m):
                break
        heights.append(-m.imag / math.pi)  # of ln λ
    heights.append(0.0)
    values = torch.tensor(places, dtype=torch.float64).mul(0.5).exp().flip(0)
    density = torch.tensor(heights, dtype=torch.float64).flip(0) * 2 / values
    return Isometry(variance=c, singular_values=values, density=density)


def effective_variance(
    activation: str | Activation, *, variance: float, layers: int, weight_variance: float = 1.0,
    signal: float = 1.0,
) -> float:  # fmt: skip
    r"""Branch variance c of a residual net with activations, for `isometry`.

    Branches :math:`\sqrt{c/L}\, \phi(W u)` or :math:`W_2 \phi(W_1 u)` in a stream of mean square q:
    :math:`q_{l+1} = q_l + \tfrac{c}{L} E\, \phi(z)^2` and :math:`c_{eff} = \tfrac1L \sum_l c\,
    \sigma_w^2 E\, \phi'(z)^2` with z normal of variance :math:`\sigma_w^2 q_l`.

    Args:
        activation: φ, a name or an elementwise callable.
        variance: c, layers times the variance of the branch's last factor (of :math:`W_2`, times
            the width).
        layers: Number of layers L.
        weight_variance: :math:`\sigma_w^2`, the variance of W times the width.
        signal: Mean square q_0 of an entry of the input.

    Returns:
        The variance in which the limit's singular values differ from those of linear branches.

    Raises:
        ValueError: If a number is not positive or the name is unknown.

    Source:
        Tarnowski et al., arXiv:1809.08848, section 3. A ReLU in front of no second matrix has one
        singular value outside the limit.

    Example:
        >>> f"{effective_variance('tanh', variance=1.0, layers=300):.2f}"
        '0.43'
    """
    c, q = check_positive("variance", variance), check_positive("signal", signal)
    count, scale = check_int("layers", layers), check_positive("weight_variance", weight_variance)
    function = named_activation("activation", activation)
    # An even number of nodes: none is at a kink.
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    z, mass = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    total = 0.0
    for _ in range(count):
        at = math.sqrt(scale * q) * z
        slope, _ = derivatives(function, at)
        total += c * scale * float((mass * slope.square()).sum()) / count
        value = at if function is None else function(at)
        q += c / count * float((mass * value.square()).sum())
    return total


def isometry_edges(blocks: int, shortcut_depth: int, *, scale: float) -> tuple[float, float]:
    r"""Smallest and largest singular value of an n-shortcut linear net's Jacobian near zero.

    Args:
        blocks: Number of blocks R.
        shortcut_depth: Matrices n in a block.
        scale: Factor ε of ``near_zero`` on Xavier weights.

    Returns:
        Lower and upper edge at great width and depth, of `isometry` at
        :math:`c = R \epsilon^{2n}`; :math:`1 \pm \sqrt{2c}` to first order.

    Raises:
        ValueError: If a count is below 1 or the scale is not positive.

    Example:
        >>> low, high = isometry_edges(50, 2, scale=0.1)
        >>> f"{low:.3f} {high:.3f}"
        '0.905 1.105'
    """
    n = check_int("shortcut_depth", shortcut_depth)
    return _edges(_checked(check_int("blocks", blocks) * check_positive("scale", scale) ** (2 * n)))


def _checked(variance: float) -> float:
    c = check_positive("variance", variance)
    if c > _LARGEST:
        raise ValueError(
            f"variance: got {c:g}, whose singular values are beyond the squares that floats hold; "
            f"needs at most {_LARGEST}"
        )
    return c


def _edges(c: float) -> tuple[float, float]:
    q = math.sqrt(1 + 2 / c)
    # (q + 1) / (q - 1), without the difference.
    top = math.sqrt((q + 1) ** 2 * c / 2) * math.exp(c * q / 2)
    return 1 / top, top
