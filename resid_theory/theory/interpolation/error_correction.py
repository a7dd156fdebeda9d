r"""Units with three rows, which translate the moving column and so keep rounding errors small.

A unit with one row maps z to z + ReLU(w (u · z) + b) m: an error of the moving column along u turns
into an error along the step m. On a curved path past neighbours at the angle psi such errors grow
like :math:`e^{s \sqrt{1 / \mathrm{gap} - 1}}` with the length s of the path and a gap of about
psi²/2; among many neighbours, rounding errors grow by a dozen orders of magnitude and more.

Two further rows of the same unit, the braces, along :math:`u + k v` and :math:`u - l v` with v
orthogonal to u, enter with negative weights such that the three slopes sum to zero. The sum is a
translation of the column, whatever its error. It does not vanish: the gap is a concave function of
the direction, so the weighted mean of the gaps along the braces is below the gap along u. The tilts
k and l are so large that a tenth of the gap is left along each brace; squared norms then grow by a
factor of about 2.2.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from resid_theory.theory.interpolation.schedule import Schedule
from resid_theory.theory.interpolation.single_move import Steps

BRACE_COST = 2.5
"""Largest factor by which braces may multiply squared norms."""
_LEFT = 0.1  # share of the gap that remains along a brace
_FAR = 4.0  # more than points of the sphere are apart along a brace, whose length is at most √2
_ENTRIES = 1 << 22  # of the offsets held at a time


def with_braces(schedule: Schedule, steps: Steps, budget: float) -> Steps:
    """The same moves, with braces where the squared norm stays within ``budget``."""
    size, parts = max(1, _ENTRIES // schedule.starts.numel()), []
    for fields in zip(*(part.split(size) for part in vars(steps).values()), strict=True):
        part = Steps(*fields)
        parts.append(_braces(part, schedule.offsets(part), budget))
    names = ("directions", "highest", "shares")
    added = zip(names, map(torch.cat, zip(*parts, strict=True)), strict=True)
    return replace(
        steps, **{name: torch.cat([getattr(steps, name), part], 1) for name, part in added}
    )


def _braces(steps: Steps, offsets: Tensor, budget: float) -> tuple[Tensor, Tensor, Tensor]:
    """Braces, their highest products and their shares, which are zero above the budget."""
    looking, absent = steps.directions[:, 0], offsets.isnan().any(2)
    offsets = offsets.nan_to_num()
    heights = (offsets @ looking.unsqueeze(2)).squeeze(2).masked_fill(absent, math.inf)
    nearest = offsets.norm(dim=2).masked_fill(absent, math.inf).argmin(1)
    toward = -offsets[torch.arange(len(offsets)), nearest]
    cost = torch.full_like(steps.ratios, math.inf)
    braces, shares = looking.unsqueeze(1), looking.new_zeros(())
    for tilt in (toward, steps.ends - steps.starts):
        pair, back, price = _tilted(tilt, looking, offsets, heights, steps.gaps)
        better = (price < cost) & (price * steps.ratios <= budget)
        cost = torch.where(better, price, cost)
        braces = torch.where(better[:, None, None], pair, braces)
        shares = torch.where(better[:, None], back, shares)
    # Of no other column any number: then there are no braces.
    open_gaps = (offsets @ braces.mT).masked_fill(absent.unsqueeze(2), _FAR).amin(1)
    return braces, (braces * steps.starts.unsqueeze(1)).sum(2) - open_gaps, -shares


def _tilted(
    tilt: Tensor, looking: Tensor, offsets: Tensor, heights: Tensor, gaps: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Two braces in the plane of u and a tilt, their shares, and their factor in squared norms."""
    tilt = tilt - (tilt * looking).sum(1, keepdim=True) * looking
    tilt = tilt / tilt.norm(dim=1, keepdim=True)
    slopes = (offsets @ tilt.unsqueeze(2)).squeeze(2)
    ahead, behind = _reach(heights, slopes, gaps), _reach(heights, -slopes, gaps)
    pair = torch.stack([looking + ahead * tilt, looking - behind * tilt], 1)
    back = torch.cat([behind, ahead], 1) / (ahead + behind)
    kept = torch.stack([(heights + ahead * slopes).amin(1), (heights - behind * slopes).amin(1)], 1)
    left = gaps.squeeze(1) - (back * kept).sum(1)
    price = gaps.squeeze(1) / left * (1 + (back * pair.norm(dim=2)).sum(1))
    return pair, back, torch.where(left > 0, price, math.inf)


def _reach(heights: Tensor, slopes: Tensor, gaps: Tensor) -> Tensor:
    """Largest tilt that leaves a tenth of the gap, at most the length of u."""
    limits = torch.where(slopes < 0, (heights - _LEFT * gaps) / -slopes, math.inf)
    return limits.amin(1, keepdim=True).clamp_max(1.0)
