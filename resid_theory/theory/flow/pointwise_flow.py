r"""Dominant gradient flow in a case with closed forms: 1x1 kernels and random ReLU masks.

The net has n channels and L layers. The flow from layer L down to layer l is
:math:`G_l = \prod_{i=l+1}^{L} (W_i^\top D_i)\, S`; channel j is dominant where
:math:`|G_{jj}| > |\sum_{k \neq j} G_{jk}|`. Results are given by the number of layers above,
m = L - l = 0, 1, ..., L, so that one product gives all layers.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import as_generator, check_int, check_positive, check_within
from resid_theory.theory.flow.gaussian import exceedance, half_normal_mean

_WORKSPACE = 1 << 26  # bytes of the product matrices of nets that are simulated together


@dataclass(frozen=True, kw_only=True)
class TrivialFlow:
    r"""Share of dominant channels, f_l = Pr(\|G_jj\| > \|Σ_{k≠j} G_jk\|), by four routes.

    Residual: W = I + Δ with Δ of independent N(0, σ²) entries; plain: W of such entries. S is
    diagonal, N(0, σ_s²); a mask leaves each channel open with probability p.

    Attributes:
        channels: n, at least 2.
        layers: L, at least 1.
        deviation: σ, above zero.
        open_share: p, in [0, 1].
        signal: σ_s, above zero; no result depends on it.
        identity: False for the plain net.
        persistent: Whether all layers have the same mask, which is nearly so for most units of
            trained residual nets; independent masks are the paper's assumption and the worst case.

    Raises:
        ValueError: If a number is out of range.

    Source:
        Yu & Tomasi, arXiv:1905.10944, Appendix D.4.1, eqs. (6) to (12). The recursion is ours.

    Example:
        >>> net = TrivialFlow(channels=64, layers=6, deviation=0.01, open_share=0.97)
        >>> (net.approximation()[6] - net.refined()[6]).abs() < 0.02
        tensor(True)
    """

    channels: int
    layers: int
    deviation: float
    open_share: float
    signal: float = 1.0
    identity: bool = True
    persistent: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", check_int("channels", self.channels, 2))
        object.__setattr__(self, "layers", check_int("layers", self.layers))
        for name in ("deviation", "signal"):
            object.__setattr__(self, name, check_positive(name, getattr(self, name)))
        check_within("open_share", self.open_share, 0, 1)

    def simulate(self, *, draws: int, generator: torch.Generator | int = 0) -> Tensor:
        """Shares of dominant channels in random nets with m layers above, (draws, L + 1).

        Args:
            draws: Number of random nets.
            generator: Generator or seed; the nets are multiplied out on its device.

        Returns:
            Float64 in [0, 1]; the entries of a row belong to one net and are not independent.
        """
        n, source = self.channels, as_generator(generator)
        total, step = check_int("draws", draws), max(1, _WORKSPACE // (8 * n**2))
        like: dict[str, Any] = dict(generator=source, dtype=torch.float64, device=source.device)
        parts = []
        for done in range(0, total, step):
            count = min(step, total - done)
            flow = torch.diag_embed(self.signal * torch.randn(count, n, **like))
            shares = [_dominant_share(flow)]
            for layer in range(self.layers):
                if layer == 0 or not self.persistent:
                    opened = torch.rand(count, n, 1, **like) < self.open_share
                passed = opened.to(torch.float64) * flow
                # W transposed has the distribution of W.
                flow = self.deviation * torch.randn(count, n, n, **like) @ passed
                if self.identity:
                    flow += passed
                shares.append(_dominant_share(flow))
            parts.append(torch.stack(shares, dim=1))
        return torch.cat(parts)

    def approximation(self) -> Tensor:
        r"""The paper's closed form, f with m layers above, (L + 1,); 1 at m = 0.

        Residual: :math:`p^m c(\sigma_X / \sigma_Y)`, with :math:`\sigma_X^2 = 1 + m \sigma^2` and
        :math:`\sigma_Y^2 = (n-1) \sigma^2 \sum_{t=1}^m p^t` in units of σ_s²: first order in Δ, and
        good to 0.03 where n ≥ 64, n m σ² < 0.1 and p > 0.4. Plain: p c(1 / √(p (n - 1))), which
        takes the channel's own flow as normal though it is a product of two normal numbers. Masks
        are independent whatever ``persistent`` says.

        Returns:
            Float64 in [0, 1].

        Source:
            Yu & Tomasi, arXiv:1905.10944, eqs. (9), (11), (12) and (14), with the exact c.
        """
        n, p = self.channels, self.open_share
        above = torch.arange(self.layers + 1, dtype=torch.float64)
        if not self.identity:
            width = torch.tensor(p * (n - 1), dtype=torch.float64).sqrt()
            return _at_zero((p * exceedance(1 / width)).expand(self.layers + 1))
        variance = self.deviation**2
        sums = [sum(p**t for t in range(1, m + 1)) for m in range(self.layers + 1)]
        reached = torch.tensor(sums, dtype=torch.float64)
        own, others = 1 + above * variance, (n - 1) * variance * reached
        return p**above * _chance(own, others)

    def refined(self) -> Tensor:
        r"""A closed form from exact second moments of the product, to all orders in Δ, (L + 1,).

        Residual: a is the mean square of an entry of :math:`\prod W_i^\top D_i` on the diagonal and
        b off it; they start at 1 and 0, and each layer makes them
        :math:`q (a + \sigma^2 t)` and :math:`p (b + \sigma^2 t)`, t = a + (n - 1) b, where q is 1
        given that channel j is open in all layers, and p on average. The two cases are weighed by
        p^m and 1 - p^m. Persistent masks: the sum over the number of open channels. Plain:
        :math:`p\, E_z\, c(|z| / \sqrt{p (n - 1)})`, exact for many channels.

        Returns:
            Float64 in [0, 1]. For residual nets within 0.02 of the simulation for n = 64, σ = 0.01,
            p = 0.97 and up to 20 layers, also where one of the three is changed within n ≥ 4,
            σ ≤ 0.1, p ≥ 0.1; with few channels and p to the power m well below 1 it can fail by
            0.2.
        """
        n, p = self.channels, self.open_share
        above = torch.arange(self.layers + 1, dtype=torch.float64)
        if not self.identity:
            width = torch.tensor(p * (n - 1), dtype=torch.float64).sqrt()
            share = p * half_normal_mean(lambda z: exceedance(z / width))
            return _at_zero(share.expand(self.layers + 1))
        if self.persistent:  # open channels are a net of their own; a shut one has no own flow
            count = torch.arange(n, dtype=torch.float64)  # open channels beside j
            own, others = self._moments(count + 1, 1.0, 1.0)
            chance = _chance(own, count[:, None] * others)
            # Binomial probabilities of 0 to n - 1 open channels.
            ways = math.lgamma(n) - torch.lgamma(count + 1) - torch.lgamma(n - 1 - count + 1)
            chances = torch.tensor([p, 1 - p], dtype=torch.float64)
            logs = torch.xlogy(count, chances[0]) + torch.xlogy(n - 1 - count, chances[1])
            return _at_zero(p * ((ways + logs).exp() @ chance))
        whole = torch.tensor(n, dtype=torch.float64)
        own_open, others_open = self._moments(whole, 1.0, p)
        own, others = self._moments(whole, p, p)
        always = p**above
        open_flow = always * _chance(own_open, (n - 1) * others_open)
        # Of the nets whose channel j is shut somewhere only those have an own flow in which it is
        # open in the last layer, a share of all of p - p^m.
        share = p - always
        shut = _chance(
            (1 - always) * (own - always * own_open),
            share * (n - 1) * (others - always * others_open),
        )
        return _at_zero(open_flow + share * shut)

    def _moments(self, channels: Tensor, own_open: float, others_open: float) -> Tensor:
        """Mean squares on and off the diagonal for m = 0..L: (2, *channels, L + 1)."""
        own = torch.ones_like(channels)
        others = torch.zeros_like(own)
        rows = [torch.stack([own, others])]
        for _ in range(self.layers):
            spread = self.deviation**2 * (own + (channels - 1) * others)
            own, others = own_open * (own + spread), others_open * (others + spread)
            rows.append(torch.stack([own, others]))
        return torch.stack(rows, dim=-1)


def _dominant_share(flow: Tensor) -> Tensor:
    own = flow.diagonal(dim1=1, dim2=2)
    others = (flow - torch.diag_embed(own)).sum(2)
    # x against 0 is dominant, 0 against 0 is not.
    return (own.abs() > others.abs()).to(torch.float64).mean(1)


def _chance(own: Tensor, others: Tensor) -> Tensor:
    """Exceedance from two mean squares; certain where the other is zero, never where both are."""
    ratio = (own / others).sqrt()
    return exceedance(torch.where(own > 0, ratio, torch.zeros_like(ratio)))


def _at_zero(shares: Tensor) -> Tensor:
    """The same with exactly 1 at m = 0, where nothing is mixed."""
    return torch.cat([torch.ones_like(shares[:1]), shares[1:]])
