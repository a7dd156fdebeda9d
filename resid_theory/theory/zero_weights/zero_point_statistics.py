"""Statistics of the data and the loss that determine the Hessian at zero weights."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import as_tensor, check_finite, check_int
from resid_theory.activations import Activation, AtZero, activation, at_zero, derivatives
from resid_theory.data.moments import Moments
from resid_theory.data.regression import gather
from resid_theory.eigen.spectrum import Spectrum
from resid_theory.losses import Loss, weighting_of

__all__ = [
    "Architecture",
    "FromMoments",
    "FromSamples",
    "add_chain",
    "both_signs",
    "by_columns",
    "check_dense",
    "resolution_of",
]

_EPS = torch.finfo(torch.float64).eps
_ZERO = 1e-12  # M this small against |g||s| is round-off of the sums behind it
_DENSE_LIMIT = 1 << 33  # bytes of a dense Hessian built on request


def check_dense(size: int) -> None:
    """Refuse a dense matrix above 8 GiB."""
    if 8 * size * size > _DENSE_LIMIT:
        raise ValueError(
            f"hessian: {size} parameters make a dense matrix of {8 * size**2 / 2**30:.1f} GiB, "
            "the limit is 8 GiB; statistics (condition numbers, percentiles, index) need no matrix"
        )


def resolution_of(matrices: Tensor) -> float:
    """Smallest singular value of (..., d, q) that an SVD tells from zero, over the largest."""
    return 4 * max(matrices.shape[-2:]) * torch.finfo(matrices.dtype).eps


def both_signs(values: Tensor, copies: Tensor, parameters: int, resolution: float) -> Spectrum:
    """The spectrum of plus and minus each value, as often as it says, and zeros for the rest."""
    # Values that an SVD cannot tell from zero are set to zero: a symmetry of the loss must not
    # look like curvature.
    top = float(values.max()) if len(values) else 0.0
    values = torch.where(values <= resolution * top, 0.0, values)
    zeros = parameters - 2 * int(copies.sum())
    return Spectrum.of(
        torch.cat([values, -values, values.new_zeros(1)]),
        torch.cat([copies, copies, copies.new_tensor([zeros])]),
        resolution=resolution,
    ).distinct(0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Architecture:
    """The architecture and the fixed maps in front of and behind it, looked up and checked."""

    blocks: int
    n: int
    bias: bool
    pre: Activation | None
    mid: AtZero
    post: AtZero
    input_map: Tensor | None
    output_map: Tensor | None
    direct: float = 1.0  # share of the input in the output

    @classmethod
    def of(
        cls, blocks: Any, n: Any, bias: bool, pre: Any, mid: Any, post: Any, maps: dict[str, Any]
    ) -> "Architecture":
        """Look up the activations, check their values at zero, and read the maps in float64."""
        fixed = {
            name: None if m is None else check_finite(name, as_tensor(name, m).detach().double())
            for name, m in maps.items()
        }
        net = cls(
            blocks=check_int("blocks", blocks),
            n=check_int("shortcut_depth", n),
            bias=bool(bias),
            pre=activation("pre", pre),
            mid=at_zero(activation("mid", mid)),
            post=at_zero(activation("post", post)),
            input_map=fixed["input_map"],
            output_map=fixed["output_map"],
        )
        for name in ("mid", "post") if net.n > 1 else ("post",):
            at: AtZero = getattr(net, name)
            if math.isnan(at.slope):
                raise ValueError(
                    f"{name}: the activation has no finite slope at zero, needs one on either side "
                    "(Assumption 3)"
                )
            if not abs(at.value) <= 4 * _EPS:  # round-off of a function of order one
                raise ValueError(
                    f"{name}: the activation is {at.value:.6g} at zero, needs 0 there (Assumption "
                    "3); subtract the value, e.g. 'shifted_softplus' for 'softplus'"
                )
        return net

    @property
    def slope(self) -> float:
        """c_n, the product of the slopes at zero along a block."""
        return self.mid.slope ** (self.n - 1) * self.post.slope

    def bend(self, rule: str) -> float:
        """Second derivative of ``post`` at zero; for n = 1 it multiplies the mean of g s s^T."""
        if self.n > 1:
            return 0.0
        left, right = self.post.second_left, self.post.second_right
        if rule == "mean":  # every sample falls on either side equally often
            return 0.5 * (left + right)
        if math.isnan(self.post.second):
            raise ValueError(
                f"post: its second derivative jumps at zero from {left:.6g} to {right:.6g}; for "
                "shortcut_depth=1 it is needed there: use kink='mean' or a net"
            )
        return self.post.second

    def check_maps(self, inputs: int, targets: int) -> int:
        """Width of the network, after a check that data and maps fit together."""
        width = outputs = inputs
        if self.input_map is not None:
            width = outputs = _rows("input_map", self.input_map, inputs)
        if self.output_map is not None:
            outputs = _rows("output_map", self.output_map, width)
        if outputs != targets:
            raise ValueError(
                f"data y: has {targets} targets, the net has {outputs} outputs; needs equal "
                "numbers (components = classes), or an output_map"
            )
        return width


def _rows(name: str, given: Tensor, columns: int) -> int:
    if given.dim() != 2 or given.shape[1] != columns:
        raise ValueError(f"{name}: got shape {tuple(given.shape)}, needs (rows, {columns})")
    return given.shape[0]


def _flush(correlation: Tensor, scale: float) -> Tensor:
    """M, exactly zero where all of it is round-off."""
    if correlation.abs().max().item() <= _ZERO * scale:
        return torch.zeros_like(correlation)
    return correlation


@dataclass(frozen=True, kw_only=True, eq=False)
class FromMoments:
    """Statistics for the square loss and linear features, from second moments alone."""

    gram: Tensor  # V^T V, the Hessian of the loss with respect to the network's output
    sxx: Tensor
    correlation: Tensor
    a_priori_bound: float

    @classmethod
    def of(cls, moments: Moments, net: Architecture) -> "FromMoments":
        """Carry the moments through the maps."""
        width = net.check_maps(len(moments.sxx), len(moments.syy))
        sxx, back = moments.sxx, moments.syx
        if net.input_map is not None:
            sxx, back = net.input_map @ sxx @ net.input_map.mT, back @ net.input_map.mT
        gram = torch.eye(width, dtype=sxx.dtype, device=sxx.device)
        if net.output_map is not None:
            gram, back = net.output_map.mT @ net.output_map, net.output_map.mT @ back
        forth = net.direct * gram @ sxx
        bound = math.inf
        if net.input_map is None and net.output_map is None and moments.is_whitened:
            # The joint second moment of (x, y) is positive semidefinite, so
            # |Syx| <= sqrt(|Sxx| |Syy|).
            reach = math.sqrt(torch.linalg.matrix_norm(moments.syy, 2).item())
            bound = (1 + reach) / (1 - reach) if reach < 1.0 else math.inf
        return cls(
            gram=gram,
            sxx=sxx,
            correlation=_flush(forth - back, (forth.norm() + back.norm()).item()),
            a_priori_bound=bound,
        )

    @property
    def width(self) -> int:
        """Width d of the network."""
        return len(self.gram)

    def pair_moment(self, factor: Tensor) -> Tensor:
        """Mean of s[q'] s[q] factor[s, p] H[s, p], (s, q', p, q)."""
        return torch.einsum("jq,ip->ijpq", self.sxx, factor * self.gram)

    def gradient_moment(self) -> Tensor:
        """Mean of s[q'] s[q] g[s], a third moment, which second moments do not determine."""
        raise AssertionError("only a curved post needs it, and that takes samples")

    def chain_moment(self) -> Tensor:
        """Mean of g[s] s_pre'(x[q']) s[q], (s, q', q); without sigma_pre it is M for every q'."""
        return self.correlation.unsqueeze(1).expand(-1, self.width, -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class FromSamples:
    """Statistics for any loss and any features, from all samples."""

    inputs: Tensor  # x behind the input map, (m, q)
    features: Tensor  # s, (m, q), with a column of ones for a bias
    pre: Activation | None
    gradients: Tensor  # g, (m, d)
    curvatures: Tensor  # H, (m, d, d)
    correlation: Tensor
    a_priori_bound: float = math.inf

    @classmethod
    def of(cls, data: Any, net: Architecture, loss: Loss) -> "FromSamples":
        """Evaluate the loss and its derivatives at the outputs of the zero point."""
        samples = gather(data)
        x = samples.x if net.input_map is None else samples.x @ net.input_map.mT
        net.check_maps(samples.x.shape[1], samples.y.shape[1])
        output = net.direct * (x if net.output_map is None else x @ net.output_map.mT)
        weighting_of(loss, output, samples.y)  # refuses losses that compare samples
        g, curvatures = loss.derivatives(output, samples.y)
        if net.output_map is not None:
            g = g @ net.output_map
            curvatures = net.output_map.mT @ curvatures @ net.output_map
        features = check_finite("pre(x)", x if net.pre is None else net.pre(x))
        if net.bias:
            features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
        scale = (g.norm() * features.norm()).item() / len(x)
        correlation = g.mT @ features / len(x)
        if loss.null_direction and net.output_map is None:
            # Softmax ignores a shift of all outputs, so M's columns sum to zero; make that exact.
            correlation = correlation - correlation.mean(0)
        return cls(
            inputs=x,
            features=features,
            pre=net.pre,
            gradients=g,
            curvatures=curvatures,
            correlation=_flush(correlation, scale),
        )

    @property
    def width(self) -> int:
        """Width d of the network."""
        return self.gradients.shape[1]

    def pair_moment(self, factor: Tensor) -> Tensor:
        """Mean of s[q'] s[q] factor[s, p] H[s, p], (s, q', p, q)."""
        s = self.features
        products = (s.unsqueeze(2) * s.unsqueeze(1)).flatten(1)
        total = (products.mT @ self.curvatures.flatten(1)) / len(s)
        q, d = s.shape[1], self.width
        return factor[:, None, :, None] * total.view(q, q, d, d).permute(2, 0, 3, 1)

    def gradient_moment(self) -> Tensor:
        """Mean of s[q'] s[q] g[s], (s, q', q)."""
        s = self.features
        products = (s.unsqueeze(2) * s.unsqueeze(1)).flatten(1)
        total = self.gradients.mT @ products / len(s)
        return total.view(self.width, s.shape[1], s.shape[1])

    def chain_moment(self, earlier: Tensor | float = 1.0) -> Tensor:
        """Mean of g[s] s_pre'(x[q']) earlier[q'] s[q], (s, q', q); a bias column has no q'."""
        slopes, _ = derivatives(self.pre, self.inputs)
        products = (self.gradients.unsqueeze(2) * (slopes * earlier).unsqueeze(1)).flatten(1)
        total = products.mT @ self.features / len(slopes)
        return total.view(self.width, slopes.shape[1], self.features.shape[1])


def add_chain(lower: Tensor, chain: Tensor) -> None:
    """Add chain[s, q', q] where the earlier block's output p is the later one's input q'."""
    width = chain.shape[1]  # a bias column of q' has no output behind it
    lower[:, :width].diagonal(dim1=1, dim2=2).add_(chain.permute(0, 2, 1))


def by_columns(entries: Tensor) -> Tensor:
    """(s, q', p, q) as a matrix in the paper's order: row (q', s), column (q, p)."""
    s, j, p, q = entries.shape
    return entries.permute(1, 0, 3, 2).reshape(j * s, q * p)
