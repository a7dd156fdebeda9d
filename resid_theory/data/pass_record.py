"""Checksums of the samples of one pass over a data set, to tell whether they come again."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from resid_theory.data.batch import Batch
from resid_theory.nested import tensors_of


@dataclass(eq=False)
class PassRecord:
    """The sizes of the batches of one pass, and a checksum of every sample, in order."""

    sizes: list[int] = field(default_factory=list)
    marks: list[Tensor] = field(default_factory=list)

    def add(self, batch: Batch) -> None:
        """Append a batch."""
        self.sizes.append(batch.size)
        parts = [
            part
            for part in tensors_of([batch.content, batch.sample_weight])
            if part.dim() and part.numel()
        ]
        rows = [_marks(part) for part in parts if len(part) == batch.size]
        others = [_marks(part).sum() for part in parts if len(part) != batch.size]
        # Unlike factors, so that exchanging x and y does not go unseen.
        mark = torch.zeros(batch.size, dtype=torch.int64)
        for number, part in enumerate(rows + others):
            mark += (2 * number + 1) * part
        self.marks.append(mark)

    def difference(self, other: "PassRecord") -> str:
        """``none``; ``order`` for the same samples in another order or batches; or ``samples``."""
        mine, theirs = torch.cat(self.marks), torch.cat(other.marks)
        if self.sizes == other.sizes and torch.equal(mine, theirs):
            return "none"
        same = torch.equal(mine.sort().values, theirs.sort().values)
        return "order" if same else "samples"


def _marks(part: Tensor) -> Tensor:
    """A checksum of every row: its bit patterns times fixed odd numbers, modulo 2^64."""
    part = torch.view_as_real(part) if part.is_complex() else part
    rows = part.cpu().reshape(len(part), -1)
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = rows.contiguous().view(kind[rows.element_size()]).to(torch.int64)
    # Steele, Lea & Flood's golden gamma: its multiples are spread over all 64 bits.
    odd = (torch.arange(bits.shape[1]) * -7046029254386353131) | 1
    return (bits * odd).sum(1)
