r"""Units that translate a column instead of shearing its neighbourhood.

A unit of one row reads an error of the moving column along u and turns it into an error along the
path. On a curved path between neighbours at angle psi such errors grow like
:math:`e^{s \sqrt{1 / \mathrm{gap} - 1}}`, the gap being about psi²/2: in a crowd, rounding grows by
a dozen orders of magnitude and more. Two more rows, the braces u + k v and u - l v, weighted so
that all slopes cancel, leave a pure translation: the gap is a concave function of u, so that
theirs, tilted until hardly any is left, do not cancel it. They cost a factor of about 2.2 in
squared norms.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from resid_theory.theory.interpolation.schedule import Itinerary
from resid_theory.theory.interpolation.single_move import Steps

__all__ = ["BRACING", "with_braces"]

BRACING = 2.5
"""Factor in the squared norms that braces may cost."""
_LEFT = 0.1  # of the gap, along a brace
_ENTRIES = 1 << 22  # of the offsets held at a time


def with_braces(itinerary: Itinerary, steps: Steps, budget: float) -> Steps:
    """The same moves, braced where it is affordable.

    Args:
        itinerary: Whose steps they are.
        steps: Moves without braces.
        budget: Largest squared norm allowed; steps that would exceed it stay as they are.

    Returns:
        The moves with braces.

    Source:
        Derived here.
    """
    size = max(1, _ENTRIES // itinerary.starts.numel())
    parts = [_braces(part, itinerary.offsets(part), budget) for part in _split(steps, size)]
    braces, braced, shares = (torch.cat(part) for part in zip(*parts, strict=True))
    return replace(steps, braces=braces, braced=braced, shares=shares)


def _split(steps: Steps, size: int) -> list[Steps]:
    names = ("rows", "starts", "ends", "directions", "highest")
    parts = zip(*(getattr(steps, name).split(size) for name in names), strict=True)
    return [Steps(**dict(zip(names, part, strict=True))) for part in parts]


def _braces(steps: Steps, offsets: Tensor, budget: float) -> tuple[Tensor, Tensor, Tensor]:
    """Braces, their highest products and their shares; shares of zero where not affordable."""
    looking, absent = steps.directions, offsets.isnan().any(2)
    offsets = offsets.nan_to_num(nan=0.0)
    heights = (offsets @ looking.unsqueeze(2)).squeeze(2).masked_fill(absent, math.inf)
    nearest = offsets.norm(dim=2).masked_fill(absent, math.inf).argmin(1)
    toward = -offsets[torch.arange(len(offsets)), nearest]
    cost = torch.full_like(steps.gaps, math.inf)
    braces, shares = looking.unsqueeze(1).repeat(1, 2, 1), looking.new_zeros(len(looking), 2)
    for tilt in (toward, steps.ends - steps.starts):
        pair, back, price = _tilted(tilt, looking, offsets, heights, steps.gaps.unsqueeze(1))
        better = (price < cost) & (price * steps.ratios <= budget)
        cost = torch.where(better, price, cost)
        braces = torch.where(better[:, None, None], pair, braces)
        shares = torch.where(better[:, None], back, shares)
    open_gaps = (offsets @ braces.mT).masked_fill(absent.unsqueeze(2), math.inf).amin(1)
    # Without another column anything beyond the antipode is in the way.
    open_gaps = open_gaps.minimum((braces * steps.starts.unsqueeze(1)).sum(2) + braces.norm(dim=2))
    return braces, (braces * steps.starts.unsqueeze(1)).sum(2) - open_gaps, shares


def _tilted(
    tilt: Tensor, looking: Tensor, offsets: Tensor, heights: Tensor, gaps: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Two braces in the plane of u and a tilt, their shares, and what they cost."""
    tilt = tilt - (tilt * looking).sum(1, keepdim=True) * looking
    tilt = tilt / tilt.norm(dim=1, keepdim=True)
    slopes = (offsets @ tilt.unsqueeze(2)).squeeze(2)
    ahead, behind = _reach(heights, slopes, gaps), _reach(heights, -slopes, gaps)
    pair = torch.stack([looking + ahead * tilt, looking - behind * tilt], 1)
    back = torch.cat([behind, ahead], 1) / (ahead + behind)
    kept = torch.stack([(heights + ahead * slopes).amin(1), (heights - behind * slopes).amin(1)], 1)
    left = gaps.squeeze(1) - (back * kept).sum(1)
    price = gaps.squeeze(1) / left * (1 + (back * pair.norm(dim=2)).sum(1))
    usable = (left > 0) & price.isfinite() & pair.isfinite().flatten(1).all(1)
    return pair, back, price.masked_fill(~usable, math.inf)


def _reach(heights: Tensor, slopes: Tensor, gaps: Tensor) -> Tensor:
    """How far to tilt until a tenth of the gap is left; at most as far as u is long."""
    limits = torch.where(slopes < 0, (heights - _LEFT * gaps) / -slopes, math.inf)
    return limits.amin(1, keepdim=True).clamp_max(1.0)
