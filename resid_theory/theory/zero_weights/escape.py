r"""Escape of gradient descent from the zero point, in closed form.

Near zero only the leading jet of the loss acts, :math:`c_n \sum_r \langle M, W^{r,n} \cdots W^{r,1}
\rangle`, so blocks do not see one another. With s_1 the largest singular value of M:

* a balanced rank-one start of size w on the top singular pair remains one, and
  :math:`\dot w = |c_n| s_1 w^{n-1}`: exponential for n = 2, a plateau of length
  :math:`w^{2-n} / ((n-2) |c_n| s_1)` for n >= 3;
* for n = 2 any small start obeys a linear equation: in each singular pair parts grow and fall by
  powers of :math:`1 \pm \eta c s_i` for gradient descent with steps :math:`\eta`.

Derived here from arXiv:1611.01186, Theorem 2. Times are those of gradient flow: learning rate times
number of steps. Functions take a :class:`ZeroPoint <resid_theory.theory.ZeroPoint>` with n >= 2, as
zero is not stationary for n = 1, and neither is it with last biases that have a gradient.
"""

import math
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import check_positive


def escape_time(point: Any, *, start: float, stop: float) -> float:
    r"""Time of gradient flow from weights of size ``start`` to size ``stop``.

    :math:`\log(\delta / w) / (|c_2| s_1)` for n = 2, :math:`(w^{2-n} - \delta^{2-n}) / ((n-2) |c_n|
    s_1)` for n >= 3. The size is the Frobenius norm of each matrix of a balanced rank-one start,
    :func:`escape_start`; for n = 2 a random start differs by the logarithm of its overlap with it.

    Args:
        point: The zero point.
        start: Size w at the start.
        stop: Size δ at the end; the jet dominates while δ to the power n is far below s_1.

    Returns:
        Learning rate times steps; inf where the leading jet vanishes.

    Raises:
        ValueError: If zero is not stationary (as for n = 1), a size is not positive or ``stop`` is
            below ``start``.

    Example:
        >>> eye = torch.eye(3, dtype=torch.float64)
        >>> data = rt.Moments(sxx=2 * eye, syx=eye, syy=eye, count=9)  # M = I
        >>> points = [rt.theory.zero_point(data, blocks=9, shortcut_depth=n) for n in (2, 3, 4)]
        >>> times = [escape_time(point, start=1e-3, stop=0.1) for point in points]
        >>> print(" ".join(f"{time:.4g}" for time in times))  # the deeper, the flatter
        4.605 990 5e+05
    """
    first, last = check_positive("start", start), check_positive("stop", stop)
    if last < first:
        raise ValueError(f"stop: got {stop}, needs at least start = {start}")
    n, speed = point.shortcut_depth, _speed(point)
    if speed == 0.0:
        return math.inf
    if n == 2:
        return math.log(last / first) / speed
    return (first ** (2 - n) - last ** (2 - n)) / ((n - 2) * speed)


def escape_steps(point: Any, *, start: float, stop: float, learning_rate: float) -> float:
    r"""Steps of gradient descent from weights of size ``start`` to size ``stop``.

    For n = 2 exact in the linear regime, :math:`\log(\delta / w) / \log(1 + \eta |c_2| s_1)`; for
    n >= 3 the time of gradient flow over the learning rate, the limit of small steps.

    Args:
        point: The zero point.
        start: Size at the start, the Frobenius norm of each matrix.
        stop: Size at the end.
        learning_rate: Step size η.

    Returns:
        A number of steps, not rounded.

    Raises:
        ValueError: If zero is not stationary (as for n = 1), a number is not positive or ``stop``
            is below ``start``.
    """
    rate = check_positive("learning_rate", learning_rate)
    time = escape_time(point, start=start, stop=stop)
    if point.shortcut_depth > 2 or math.isinf(time):
        return time / rate
    return time * _speed(point) / math.log1p(rate * _speed(point))


def escape_start(point: Any, size: float) -> list[Tensor]:
    r"""Balanced rank-one weights of one block along which the loss falls fastest from zero.

    :math:`W_1 = w a v^T`, inner matrices :math:`w a a^T`, :math:`W_n = -w\, sign(c_n)\, u a^T`,
    with (u, v) the top singular pair of M and a the first unit vector inside the block.

    Args:
        point: The zero point; with a bias, the last column of the first matrix is the bias.
        size: Frobenius norm w of each matrix.

    Returns:
        n matrices (out, in), float64, input to output.

    Raises:
        ValueError: If zero is not stationary (as for n = 1), the size is not positive, or the point
            is a limit along a net's weights.
    """
    _speed(point)  # refuses what is not stationary
    w = check_positive("size", size)
    if isinstance(point.blocks_of_m, Tensor):
        raise ValueError(
            "point: is a limit along a net's weights, whose sides of kinks this start would leave; "
            "needs kink='line'"
        )
    left, _, right = torch.linalg.svd(point.correlation)
    inside = torch.eye(point.hidden, dtype=left.dtype, device=left.device)[0]
    first, middle = torch.outer(inside, right[0]), torch.outer(inside, inside)
    last = -math.copysign(1.0, point.slope) * torch.outer(left[:, 0], inside)
    return [w * first, *(w * middle for _ in range(point.shortcut_depth - 2)), w * last]


def _speed(point: Any) -> float:
    """|c_n| s_1, the rate of the escape."""
    if point.shortcut_depth == 1:
        raise ValueError("point: has n = 1, where zero is not stationary: nothing to escape from")
    if point.order == 0:
        raise ValueError(f"point: is not stationary, {point.reason}: nothing to escape from")
    if isinstance(point.blocks_of_m, Tensor):  # while units keep the sides of a net's weights
        return torch.linalg.matrix_norm(point.blocks_of_m, 2).max().item()
    return abs(point.slope) * point.gain * torch.linalg.matrix_norm(point.correlation, 2).item()
