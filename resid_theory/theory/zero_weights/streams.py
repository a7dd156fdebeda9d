r"""Parallel streams :math:`C_k = H_k C_{k-1} + w_k F_k(r_k^T C_{k-1})` that blocks read and write.

One stream without mixing is a residual net, one that is forgotten a plain net. Products of many
numbers are carried as logarithms of magnitudes and numbers of minus signs, (..., 2).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def logarithm(numbers: Tensor) -> Tensor:
    """Logarithms of magnitudes, -inf for zeros, and numbers of minus signs, (..., 2)."""
    return torch.stack([numbers.abs().log(), (numbers < 0).to(numbers)], -1)


def exponential(logs: Tensor) -> Tensor:
    """The numbers of logarithms and signs."""
    return logs[..., 0].exp() * (1 - 2 * (logs[..., 1] % 2))


@dataclass(frozen=True, kw_only=True, eq=False)
class Streams:
    """Coefficients of n streams.

    Attributes:
        read: r, (K, n).
        mix: H, (K, n, n).
        write: w, (K, n).
        begin: Share of the input in each stream, (n,).
        end: What the output reads of each stream, (n,).
    """

    read: Tensor
    mix: Tensor
    write: Tensor
    begin: Tensor
    end: Tensor

    @classmethod
    def single(cls, read: Tensor, mix: Tensor, write: Tensor, end: float = 1.0) -> "Streams":
        """One stream; all arguments but the last are (K,)."""
        begin, last = (torch.tensor([share], dtype=torch.float64) for share in (1.0, end))
        return cls(
            read=read[:, None], mix=mix[:, None, None], write=write[:, None], begin=begin, end=last
        )

    @property
    def is_shortcut(self) -> bool:
        """True for one stream of coefficients that are all one."""
        every = (self.read, self.mix, self.write, self.begin, self.end)
        return self.read.shape[1] == 1 and all(bool((part == 1).all()) for part in every)

    def shares(self) -> tuple[Tensor, Tensor, float]:
        """Logarithms of the input's shares p in blocks, and of theirs q in the output; and a_0."""
        forth, passed = _carried(self.mix, self.begin)
        back, left = (part.flip(0) for part in _carried(self.mix.flip(0).mT, self.end))
        p = logarithm((self.read * forth[:-1]).sum(1)) + passed[:-1]
        q = logarithm((self.write * back[1:]).sum(1)) + left[1:]
        return p, q, exponential(logarithm(self.end @ forth[-1]) + passed[-1]).item()

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """A, (K, K), and a, (K + 1,)."""
        count, n = self.read.shape
        streams = torch.zeros(n, count + 1, dtype=torch.float64)
        streams[:, 0] = self.begin
        rows = torch.zeros(count, count, dtype=torch.float64)
        for k in range(count):
            rows[k] = (self.read[k] @ streams)[:count]
            streams = self.mix[k] @ streams
            streams[:, k + 1] += self.write[k]
        return rows, self.end @ streams


def _carried(mix: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """A vector in front of each mixing and behind the last: directions, and logarithms of sizes."""
    count, n = mix.shape[:2]
    if n == 1:
        factors = logarithm(mix[:, 0, 0])
        return start.expand(count + 1, 1), torch.cat([factors.new_zeros(1, 2), factors.cumsum(0)])
    directions, powers = np.empty((count + 1, n)), np.empty(count + 1)
    vector, power = start.numpy(), 0
    for k, mixing in enumerate([*mix.numpy(), np.eye(n)]):
        _, twos = math.frexp(max(map(abs, vector.tolist())))  # a power of two leaves no rounding
        vector, power = np.ldexp(vector, -twos), power + twos
        directions[k], powers[k] = vector, power
        vector = mixing @ vector
    logs = powers * math.log(2)
    return torch.from_numpy(directions), torch.from_numpy(np.stack([logs, 0 * logs], 1))
