"""Statistics of dominance: ratios of a path's own flow to the flow that arrives from others."""

from dataclasses import dataclass

import torch
from torch import Tensor

MODES = ("sap", "first", "sub")
STATISTICS = ("mean", "ratio_of_means", "median")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sums:
    """Sums from which the ratios of one layer follow.

    No sum contains a term that is subtracted later, so zeros are exact.

    Attributes:
        channels: Channel of each path, (K,); -1 where the path has ended.
        own: Flow of each path into its own channel, (K, batch, M).
        rest: Flow into each channel from features whose path is elsewhere, (batch, C, M).
        mass: Sums of absolute flow, in total and off the paths, (2, batch), float64.
    """

    channels: Tensor
    own: Tensor
    rest: Tensor
    mass: Tensor

    @classmethod
    def zero(cls, activation: Tensor, channels: Tensor) -> "Sums":
        """Sums of zero for a layer's activation, (batch, C, *spatial)."""
        flat = activation.flatten(2)
        return cls(
            channels=channels,
            own=flat.new_zeros(len(channels), len(flat), flat.shape[2]),
            rest=torch.zeros_like(flat),
            mass=flat.new_zeros(2, len(flat), dtype=torch.float64),
        )

    def add(self, flow: Tensor, chosen: Tensor) -> None:
        """Add the flows from the chosen features, (chosen, batch, C, M); flow keeps its values."""
        alive = (self.channels[chosen] >= 0).nonzero().squeeze(1)
        places = alive, slice(None), self.channels[chosen][alive]
        self.own[chosen[alive]] = own = flow[places]
        # Taken out for the sums and put back: a difference of sums would not be exactly zero.
        flow[places] = 0
        off = torch.linalg.vector_norm(flow, 1, (0, 2, 3), dtype=torch.float64)
        self.mass[1] += off
        self.mass[0] += off + torch.linalg.vector_norm(own, 1, (0, 2), dtype=torch.float64)
        self.rest.add_(flow.sum(0))
        flow[places] = own

    def off_path(self) -> Tensor:
        """Share of the absolute flow off the paths, (batch,), in [0, 1]; 0 where nothing flows."""
        return torch.where(self.mass[0] > 0, self.mass[1] / self.mass[0], 0.0)

    def shares(self) -> Tensor:
        """Shares of dominant paths by every mode and statistic, (batch, 3, 3), in [0, 1]."""
        alive = (self.channels >= 0).nonzero().squeeze(1)
        at, own = self.channels[alive], self.own[alive]
        rest = self.rest.movedim(1, 0)
        same = at[:, None] == at
        # Features that share the channel are among the others of each path.
        sharing = same.fill_diagonal_(False).to(own.dtype)
        among = torch.einsum("kp,pbm->kbm", sharing, own)
        by_path = _dominant(own.abs(), (rest[at] + among).abs())
        member = torch.arange(len(rest), device=at.device)[:, None] == at
        together = torch.einsum("cp,pbm->cbm", member.to(own.dtype), own)
        by_channel = _dominant(together.abs(), rest.abs())
        first = by_path[alive < len(rest)]
        return torch.stack([part.mean(0) for part in (by_path, first, by_channel)], dim=1)


def _dominant(own: Tensor, others: Tensor) -> Tensor:
    """Dominance of the own flow by each statistic, (paths, batch, 3), 0 or 1."""
    ratio = torch.where(own > 0, own / others, 0.0).mean(2)  # 0 / 0 is 0, x / 0 is infinity
    found = [ratio > 1, own.mean(2) > others.mean(2), (own > others).double().mean(2) > 0.5]
    return torch.stack(found, dim=2).to(torch.float64)
