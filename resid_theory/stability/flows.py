r"""Dominant gradient flows: the gradient along a path against that from all other features.

:math:`G_l[j,k] = g_k\, \partial a_L[k] / \partial a_l[j]` is the flow into channel j of layer l
from final feature k, where g is the gradient of the loss in the features a_L; the sum over k is the
gradient in a_l. Path k is dominant in layer l where its own flow exceeds the sum of the others.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resid_theory._check import check_choice, check_int
from resid_theory.data import Batch, Data
from resid_theory.losses import Loss, LossLike, check_scalar, weighting_of
from resid_theory.runtime.net_entry import check_differentiable, layered_net
from resid_theory.runtime.preserve import preserved
from resid_theory.runtime.result import Result
from resid_theory.stability.flow_statistics import MODES, STATISTICS, Sums
from resid_theory.stability.paths import ChannelPaths, final_features, subactivation_paths

_WORKSPACE = 1 << 28  # bytes that the flows of one layer may take


@dataclass(frozen=True, kw_only=True, eq=False)
class Flows(Result):
    """Shares of dominant paths in the layers of a net, sample by sample.

    Attributes:
        layers: Names of the layers, from input to output.
        all_shares: f_l of each sample by each mode and statistic, (samples, layers, 3, 3), float64,
            in [0, 1]; in the order of ``MODES`` and ``STATISTICS``.
        off_path: Share of the absolute flow into each layer that arrives in channels off its own
            path, (samples, layers), float64, in [0, 1]; exactly 0 in dominant-path nets.
        gradients: g, gradient of each sample's own loss in the final features, (samples, K), in
            units of loss per feature.
        mode: Mode of ``shares``, one of ``MODES``.
        statistic: Statistic of ``shares``, one of ``STATISTICS``.
        unmeasured: Layers without a path, with the reason.
        notes: What was done to the data on the way into the net.
    """

    layers: tuple[str, ...]
    all_shares: Tensor
    off_path: Tensor
    gradients: Tensor
    mode: str
    statistic: str
    unmeasured: Mapping[str, str]
    notes: tuple[str, ...] = ()

    headline = (
        "shares of dominant flows, mean over {0.off_path.shape[0]} samples: mode {0.mode}, "
        "statistic {0.statistic}"
    )
    tabulated = {
        "layer": "layers",
        "share": "mean",
        "share_error": "standard_error",
        "off_path": lambda found: found.off_path.mean(0),
    }

    def under(self, *, mode: str, statistic: str) -> "Flows":
        """The same flows, counted by another of ``MODES`` and ``STATISTICS``."""
        check_choice("mode", mode, MODES)
        check_choice("statistic", statistic, STATISTICS)
        return replace(self, mode=mode, statistic=statistic)

    @property
    def shares(self) -> Tensor:
        """f_l of each sample, (samples, layers), in [0, 1]."""
        return self.all_shares[:, :, MODES.index(self.mode), STATISTICS.index(self.statistic)]

    @property
    def mean(self) -> Tensor:
        """f_l, mean over the samples, (layers,), in [0, 1]."""
        return self.shares.mean(0)

    @property
    def standard_error(self) -> Tensor:
        """Standard error of the mean over samples, not over nets, (layers,); NaN for one sample."""
        return self.shares.std(0) / len(self.shares) ** 0.5


def dominant_flows(
    net: nn.Module,
    data: Any,
    *,
    loss: LossLike = "cross_entropy",
    mode: str = "sap",
    statistic: str = "mean",
    rule: str | None = None,
    batch: int | None = None,
    progress: bool = False,
) -> Flows:
    r"""The share f_l of dominant paths in each layer of a net.

    Path k is dominant in layer l, for one sample, if r > 1, where r compares its own flow into its
    channel j with the flow from all other features, position m by position:
    ``"mean"``, the paper's, is
    :math:`\frac{1}{M} \sum_m |G[j,k][m]| \,/\, |\sum_{k' \neq k} G[j,k'][m]|` with 0/0 = 0 and
    x/0 infinite; ``"ratio_of_means"`` divides the means of numerator and denominator; ``"median"``
    asks for more than half of the positions. f_l is the share of dominant ones among: all paths
    (``"sap"``); those of the first C_l features (``"first"``); or the C_l channels, all their own
    paths together against the rest (``"sub"``).

    Beware of the mean: the ratio of two centred normal numbers is Cauchy, and f_l by ``"mean"``
    grows with the size M of the map. Compare nets, or layers of equal maps.

    BatchNorm uses its running statistics, so samples do not mix. The net stays as it was. The cost
    is one backward pass down to the first layer for each final feature: with 64 of them about 50
    times that of one training step on the same samples.

    Args:
        net: A net of this library, see :func:`subactivation_paths`, in any precision.
        data: Images, pairs (x, y) of inputs and targets, a ``Dataset``, or a loader or iterator,
            which is read once; floating-point numbers are cast to the net's dtype.
        loss: ``"cross_entropy"``, ``"square"``, or a callable (output, target) that returns a mean
            over samples.
        mode: ``"sap"``, ``"first"`` or ``"sub"``. The paper does not say how it counts: its flat
            curves for plain nets fit ``"sap"`` and ``"first"``.
        statistic: ``"mean"``, ``"ratio_of_means"`` or ``"median"``.
        rule: Identity assumed in convolutions whose design has none: ``"repeat"``, ``"truncate"``,
            or None, at which paths end there.
        batch: Samples in one pass; by default as many as memory allows.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The shares by the given mode and statistic, with those of all others.

    Raises:
        ValueError: If a name is unknown, the net has no paths (with the reason), or data and loss
            do not fit it.

    Source:
        Yu & Tomasi, arXiv:1905.10944, Appendix D, inequality (5) and eq. (13).

    Example:
        >>> net = rt.simplified_net(5, identity="dominant")
        >>> flows = dominant_flows(net, rt.load_images("digits", samples=2, size=8))
        >>> flows.layers, flows.off_path.max().item()
        (('relu0', 'relu1', 'relu2'), 0.0)
    """
    scored = Loss.of(loss)
    check_choice("mode", mode, MODES)
    check_choice("statistic", statistic, STATISTICS)
    step = None if batch is None else check_int("batch", batch)
    net = check_differentiable(layered_net(net))
    paths = subactivation_paths(net, rule=rule)
    assert isinstance(net, nn.Sequential)
    samples = Data.of(data, like=net).unweighted()
    parts = []
    with preserved(net), tqdm(disable=not progress, desc="flows", unit="sample") as bar:
        for some in samples:
            start, size = 0, step
            while start < some.size:
                part = some.part(start, size or 1)
                ladder = _ladder(net, part, paths)
                if size is None:
                    # One sample has shown how large the flows are.
                    size = max(1, _at_once(ladder) // ladder[-1][1].shape[1])
                    continue
                target = part.target
                gradients = _gradients(net[paths.top :], ladder[-1][1], target, scored)
                parts.append((*_read(ladder, gradients, paths), gradients))
                bar.update(len(target))
                start += size
    all_shares, off_path, gradients = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return Flows(
        layers=paths.names,
        all_shares=all_shares,
        off_path=off_path,
        gradients=gradients,
        mode=mode,
        statistic=statistic,
        unmeasured=paths.unmeasured,
        notes=tuple(samples.notes),
    )


def feature_gradients(
    net: nn.Module, data: Any, *, loss: LossLike = "cross_entropy", batch: int = 256
) -> Tensor:
    r"""Gradient g of each sample's own loss in the net's final features a_L.

    Args:
        net: A net of this library, see :func:`subactivation_paths`.
        data: Images, (x, y), or any other form that :func:`dominant_flows` takes.
        loss: ``"cross_entropy"``, ``"square"``, or a callable (output, target) that returns a mean
            over samples.
        batch: Samples in one pass.

    Returns:
        (samples, K), in units of loss per feature.

    Raises:
        ValueError: If the net has no final features that are pooled channels, or data and loss do
            not fit it.

    Source:
        Yu & Tomasi, arXiv:1905.10944, Figure 10.
    """
    net = check_differentiable(layered_net(net))
    top, _ = final_features(net)
    assert isinstance(net, nn.Sequential)
    step, scored = check_int("batch", batch), Loss.of(loss)
    parts = []
    with preserved(net):
        for part in Data.of(data, like=net).unweighted().chunks(step):
            with torch.no_grad():
                features = part.try_call(net[:top])
            parts.append(_gradients(net[top:], features, part.target, scored))
    return torch.cat(parts)


def _gradients(head: nn.Module, features: Tensor, target: Tensor, loss: Loss) -> Tensor:
    """Gradient of each sample's own loss, not of the mean, in the final features."""
    output = head(features.requires_grad_())
    target, _ = loss.targets_of(output, target)
    weighting = weighting_of(loss, output, target)
    shares = weighting.of_samples(output, target, len(target)).to(features)
    if not weighting.sums:
        shares = shares / shares.sum()
    (slopes,) = torch.autograd.grad(check_scalar(loss(output, target)), features)
    return torch.where(shares[:, None] > 0, slopes / shares[:, None], 0.0)


Ladder = list[tuple[Tensor, Tensor]]
"""The activation of each layer, and that of the next one, computed from it."""


def _ladder(net: nn.Sequential, batch: Batch, paths: ChannelPaths) -> Ladder:
    with torch.no_grad():
        below = batch.try_call(net[: paths.ends[0]])
    found = []
    for start, end in zip(paths.ends, (*paths.ends[1:], paths.top), strict=True):
        leaf = below.requires_grad_()
        below = net[start:end](leaf.clone())  # whose first module may work in place
        found.append((leaf, below))
    return found


def _at_once(ladder: Ladder) -> int:
    """Number of flows, each of one sample and feature, for which there is memory."""
    samples = len(ladder[0][0])
    largest = max(a.numel() * a.element_size() for a, _ in ladder)
    return _WORKSPACE * samples // (6 * largest)


def _flows(ladder: Ladder, gradients: Tensor, chosen: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Flows from chosen features into every layer, from the top, (features, batch, C, M)."""
    flow = gradients.new_zeros(len(chosen), *gradients.shape)
    flow[torch.arange(len(chosen)).to(chosen), :, chosen] = gradients[:, chosen].mT
    for layer, (below, above) in reversed(list(enumerate(ladder))):
        (flow,) = torch.autograd.grad(above, below, flow, retain_graph=True, is_grads_batched=True)
        yield layer, flow.flatten(3)


def _read(ladder: Ladder, gradients: Tensor, paths: ChannelPaths) -> tuple[Tensor, Tensor]:
    """Shares by every mode and statistic, and shares off the paths, sample by sample."""
    features = torch.arange(gradients.shape[1], device=gradients.device)
    group = max(1, _at_once(ladder) // len(gradients))
    sums = [
        Sums.zero(activation, channels.to(gradients.device))
        for (activation, _), channels in zip(ladder, paths.channels, strict=True)
    ]
    for chosen in features.split(group):
        for layer, flow in _flows(ladder, gradients, chosen):
            sums[layer].add(flow, chosen)
    shares = torch.stack([total.shares() for total in sums], dim=1)
    return shares, torch.stack([total.off_path() for total in sums], dim=1)
