r"""Parallel streams :math:`C_k = H_k C_{k-1} + w_k F_k(r_k^T C_{k-1})` that blocks read and write.

One stream without mixing is a residual net, one that is forgotten a plain net.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from resid_theory.theory.zero_weights.logarithms import Logarithms, carried

__all__ = ["Streams"]


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
        one = torch.ones(1, dtype=torch.float64)
        return cls(
            read=read[:, None], mix=mix[:, None, None], write=write[:, None], begin=one,
            end=end * one,
        )  # fmt: skip

    @property
    def is_shortcut(self) -> bool:
        """True for one stream of coefficients that are all one."""
        every = (self.read, self.mix, self.write, self.begin, self.end)
        return self.read.shape[1] == 1 and all(bool((part == 1).all()) for part in every)

    def shares(self) -> tuple[Logarithms, Logarithms, float]:
        """Shares p of the input in blocks, q of blocks in the output, and a_0 of both."""
        if self.read.shape[1] == 1:
            mix = Logarithms.of(self.mix[:, 0, 0])
            first, last = Logarithms.of(self.begin), Logarithms.of(self.end)
            p = Logarithms.of(self.read[:, 0]) * mix.before() * first
            q = Logarithms.of(self.write[:, 0]) * mix.after() * last
            whole = mix.before() * mix * first * last
            return p, q, whole.value()[-1].item()
        mixings = self.mix.numpy()
        forward, last = carried(mixings, self.begin.numpy())
        backward, _ = carried(mixings[::-1].transpose(0, 2, 1), self.end.numpy())
        p = Logarithms.of((self.read * forward.sign).sum(1)).times(forward.log)
        q = Logarithms.of((self.write * backward.sign.flip(0)).sum(1)).times(backward.log.flip(0))
        direct = Logarithms.of(self.end @ last.sign).times(last.log).value()
        return p, q, float(direct)

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
