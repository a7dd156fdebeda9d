"""Data-parallel training: processes share every batch and sum their gradients once a step."""

import torch
from torch import Tensor

from resid_theory.runtime.preserve import seed_devices
from resid_theory.runtime.process_group import ProcessGroup
from resid_theory.training.epochs import seed_from
from resid_theory.training.step import NetGroup


class Parallel:
    """Data-parallel steps; with one process, nothing is changed and nothing exchanged.

    Each process computes loss and gradient of its part of the batch. One sum over the processes,
    weighted by the parts' sizes, gives all of them the mean over the whole batch, ragged ones
    included. torch's DistributedDataParallel is not used: it weighs parts of unequal size alike,
    and changes the order of its sums after the first step, which a resume could not repeat; what it
    gains by reducing while it computes is little for nets of this size.

    BatchNorm normalizes each part by the part's own statistics, as in DistributedDataParallel; the
    change of the running statistics is averaged over the processes in every step.

    Random numbers of the nets, as for dropout, differ between processes and steps.

    Attributes:
        alone: Whether there is one process.
    """

    def __init__(self, process_group: ProcessGroup, group: NetGroup, seed: int) -> None:
        self._process_group, self._group, self._seed = process_group, group, seed
        self.alone = process_group.count == 1
        self._before: list[Tensor] = []

    def part(self, start: int, stop: int) -> tuple[slice, float]:
        """Rows of start:stop that this process takes, and their share of the batch in [0, 1]."""
        rows = slice(start + self._process_group.rank, stop, self._process_group.count)
        # Fewer rows than processes: some take the first row with share 0, so that all have the
        # same tensors to sum.
        count = len(range(start, stop)[self._process_group.rank :: self._process_group.count])
        return (rows, count / (stop - start)) if count else (slice(start, start + 1), 0.0)

    def begin(self, step: int) -> None:
        """Seed this step and note what its forward pass will change."""
        if self.alone:
            return
        # A function of step and rank: a resume draws the same, with nothing to save for each rank.
        own = seed_from(self._seed, step, self._process_group.rank)
        seed_devices(own, {p.device for p in self._group.parameters.values()})
        self._before = [buffer.clone() for buffer in self._group.buffers()]

    @torch.no_grad()
    def join(self, losses: Tensor, wrong: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Make gradients, running statistics, losses and errors those of the whole batch."""
        if self.alone:
            return losses, wrong
        gradients = [p.grad for p in self._group.parameters.values() if p.grad is not None]
        buffers = self._group.buffers()
        changes = [now - old for now, old in zip(buffers, self._before, strict=True)]
        flat = torch.cat([t.reshape(-1).to(gradients[0].dtype) for t in (*gradients, *changes)])
        self._process_group.add(flat.mul_(share))
        pieces = flat.split([t.numel() for t in (*gradients, *changes)])
        for gradient, piece in zip(gradients, pieces, strict=False):
            gradient.copy_(piece.view_as(gradient))
        moved = pieces[len(gradients) :]
        for buffer, old, piece in zip(buffers, self._before, moved, strict=True):
            change = piece.view_as(old)
            whole = change if old.is_floating_point() else change.round().to(old.dtype)
            buffer.copy_(old + whole)
        # A row taken with share 0 counts with the process whose row it is.
        seen = torch.stack([losses * share, wrong.double() * (share > 0)])
        mean, errors = self._process_group.add(seen)
        return mean.to(losses.dtype), errors
