r"""Move of one column by one small unit (the paper's "Lemma 1").

A unit :math:`z \mapsto z + W_2 \mathrm{ReLU}(W_1 z + b)` whose only nonzero row is along u acts on
the half space beyond a threshold. With nothing but :math:`a_i` there, by

.. math:: \mathrm{gap} = u \cdot a_i - \max_{j \ne i} u \cdot a_j > 0,

it moves :math:`a_i` to any :math:`a'` and leaves the other columns as they are, with weights of
norm :math:`\sqrt{\|a' - a_i\| / \mathrm{gap}}`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def move_column(
    columns: Tensor, index: int, target: Tensor, *, direction: str = "column"
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Smallest unit that moves one column, seen along a direction, and leaves all others.

    Args:
        columns: Points, (m, d).
        index: Number of the column to move.
        target: Its new place, (d,).
        direction: ``"column"``: along the column itself, the paper's choice on the sphere;
            ``"margin"``: along the largest gap, for columns outside the convex hull of the others.

    Returns:
        ``(W1, b, W2)``, (d, d), (d,), (d, d), with equal Frobenius norms of W1 and W2; one row and
        one column of them are not zero.

    Raises:
        ValueError: If the gap is not positive, so that no such unit exists along the direction.

    Source:
        Li, Jiao, Han & Weissman, "Demystifying ResNet", arXiv:1611.01186, Lemma 1, equations
        (11)-(14); constants re-derived.

    Example:
        >>> a = torch.eye(3, dtype=torch.float64)
        >>> w1, b, w2 = rt.theory.move_column(a, 0, torch.tensor([1.0, 0.5, 0.0]).double())
        >>> (a + (a @ w1.mT + b).relu() @ w2.mT).round(decimals=12).tolist()
        [[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
        >>> round(float(w1.norm() ** 2), 12)  # the step's length over the gap, 1
        0.5
    """
    columns, target = columns.to(torch.float64), target.to(torch.float64)
    others = torch.cat([columns[:index], columns[index + 1 :]])
    column = columns[index]
    looking = widest_margin(column, others) if direction == "margin" else column / column.norm()
    highest = (others @ looking).max() if len(others) else -column.norm()
    one = (torch.tensor(index), column, target, looking, highest)
    step = Steps.along(*(part.unsqueeze(0) for part in one))
    if not float(step.gaps) > 0:
        raise ValueError(
            f"direction: along {direction!r} column {index} does not stand out (gap "
            f"{float(step.gaps):.3g}), needs a gap above 0; 'margin' finds one where it exists"
        )
    ((first, second),), (bias,) = step.units(clearance=0.0)
    return first, bias, second


def widest_margin(point: Tensor, others: Tensor) -> Tensor:
    """Direction in which a point stands out most from others.

    Args:
        point: (d,).
        others: (k, d).

    Returns:
        Unit vector, (d,), from the nearest point of the others' convex hull to ``point``; without
        others, or inside the hull, the point's own direction.

    Source:
        Lawson & Hanson 1974, chapter 23: the solution of min |P w|² + (sum w - 1)², w >= 0, is
        proportional to the hull's weights.
    """
    from scipy.optimize import nnls  # a third of a second to import

    if len(others):
        offsets = (others - point).detach().cpu()
        sides = (offsets / offsets.norm()).nan_to_num().numpy().T
        system = np.vstack([sides, np.ones(len(others))])
        weights, _ = nnls(system, np.eye(len(system))[-1])
        away = -torch.from_numpy(sides @ weights)
        size = float(away.norm())
        if size > 64 * torch.finfo(torch.float64).eps:
            return (away / size).to(point)
    return point / point.norm()


@dataclass(frozen=True, eq=False)
class Steps:
    """Moves of single columns, one unit each, in the order of the units.

    Attributes:
        rows: Number of the column that each moves, (n,).
        starts: (n, d).
        ends: (n, d).
        directions: Of the rows of a unit, (n, r, d): first a unit vector u along which the column
            stands out, then braces, which are no unit vectors.
        highest: Largest product of each direction with another column, (n, r).
        shares: Share of the slope along u that each row has, (n, r); braces take some back.
    """

    rows: Tensor
    starts: Tensor
    ends: Tensor
    directions: Tensor
    highest: Tensor
    shares: Tensor

    @classmethod
    def along(
        cls, rows: Tensor, starts: Tensor, ends: Tensor, looking: Tensor, highest: Tensor
    ) -> "Steps":
        """Units of one row each, along unit vectors, (n, d)."""
        highest = highest.unsqueeze(1)
        return cls(rows, starts, ends, looking.unsqueeze(1), highest, torch.ones_like(highest))

    @property
    def gaps(self) -> Tensor:
        """Distances by which the columns stand out, (n, r)."""
        return (self.directions * self.starts.unsqueeze(1)).sum(2) - self.highest

    @property
    def ratios(self) -> Tensor:
        """Length of each step over its gap along u, (n,): the squared norms without braces."""
        return (self.ends - self.starts).norm(dim=1) / self.gaps[:, 0]

    def units(self, *, clearance: float) -> tuple[Tensor, Tensor]:
        """Matrices (n, 2, d, d) and biases (n, d); others stay below by a share of each gap."""
        (count, used, width), gaps, sizes = self.directions.shape, self.gaps, self.shares.abs()
        moves = self.ends - self.starts
        strength = 1 / ((1 - clearance) * (self.shares * gaps).sum(1, keepdim=True))
        # Row and column of a ReLU share its strength so that both matrices have one norm.
        length, size = self.directions.norm(dim=2), moves.norm(dim=1, keepdim=True)
        scale = (sizes * strength * size / length).sqrt()
        out = (sizes * strength * length / size.clamp_min(1e-300)).sqrt() * self.shares.sign()
        weights, bias = moves.new_zeros(count, 2, width, width), moves.new_zeros(count, width)
        weights[:, 0, :used] = scale.unsqueeze(2) * self.directions
        weights[:, 1, :, :used] = moves.unsqueeze(2) * out.unsqueeze(1)
        bias[:, :used] = -scale * (self.highest + clearance * gaps)
        return weights, bias
