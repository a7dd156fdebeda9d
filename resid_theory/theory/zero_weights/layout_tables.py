"""Tables of coefficients of layouts: what each block and the output read."""

import torch
from torch import Tensor

__all__ = ["averages", "chain", "given", "scaled_stream", "streams"]


def given(reads: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Return a table as it is."""
    return reads, out


def chain(count: int) -> tuple[Tensor, Tensor]:
    """Each block reads the one before it, the output the last."""
    eye = torch.eye(count + 1, dtype=torch.float64)
    return eye[:count, :count], eye[count]


def scaled_stream(skip: Tensor, write: Tensor) -> tuple[Tensor, Tensor]:
    """A stream that is multiplied at each block."""
    count = len(skip)
    reads = torch.zeros(count, count, dtype=torch.float64)
    reads[0, 0] = 1.0
    for k in range(1, count):
        reads[k] = skip[k - 1] * reads[k - 1]
        reads[k, k] = write[k - 1]
    return reads, torch.cat([skip[-1] * reads[-1], write[-1:]])


def averages(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Means over all before."""
    count = len(shares)
    ones = torch.ones(count, count, dtype=torch.float64).tril()
    out = torch.full((count + 1,), 1 / (count + 1), dtype=torch.float64)
    return shares[:, None] * ones, out


def streams(
    read: Tensor, mix: Tensor, write: Tensor, begin: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """Several streams that are mixed."""
    count, n = read.shape
    streams = torch.zeros(n, count + 1, dtype=torch.float64)
    streams[:, 0] = begin
    rows = torch.zeros(count, count, dtype=torch.float64)
    for k in range(count):
        rows[k] = (read[k] @ streams)[:count]
        streams = mix[k] @ streams
        streams[:, k + 1] += write[k]
    return rows, end @ streams
