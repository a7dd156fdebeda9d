"""Layer cushions: the share of a layer's weight that acts on the input of each sample."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resid_theory._check import check_choice, check_int, check_net
from resid_theory.data import Batch, Data
from resid_theory.runtime.preserve import preserved
from resid_theory.runtime.resources import on_device
from resid_theory.stability.layer_inputs import (
    ROUTED,
    Call,
    LayerLook,
    Layout,
    call_hooks,
    looks_at,
)
from resid_theory.stability.linear_maps import LinearMap, linear_maps, selected
from resid_theory.stability.norms import NORMS, row_norms
from resid_theory.stability.sample_statistics import Summaries

__all__ = ["NORMS", "WEIGHTS", "Cushions", "layer_cushions"]

WEIGHTS = ("identity_removed", "effective")
Key = tuple[str, int]
_CALLS = "the number of its calls depends on the samples"
_CANCELLATION = 100.0  # squares that large, nearly equal, cost two digits of their difference


@dataclass(frozen=True, kw_only=True, eq=False)
class Cushions(Summaries):
    r"""Layer cushions of samples, with either weight in the denominator.

    Attributes:
        layers: Names of the layers; a layer that is called several times has a row for each call,
            ``name#1``, ``name#2``.
        identity_removed: :math:`\|\hat A \phi\| / (\|R\| \|\phi\|)` with R the weight less its
            identity, (layers, samples), float64, on the CPU; nan where the input is zero. Equal to
            ``effective`` where there is no identity.
        effective: The same divided by :math:`\|\hat A\|`.
        weight: The weight in the denominator of ``values`` and of all statistics, one of
            ``WEIGHTS``.
        norm: The norm in the denominator, one of ``NORMS``.
        include_bias: Whether the numerator contains the bias.
        batchnorm: ``"eval"`` or ``"batch"``, the statistics that BatchNorm used.
        zero_inputs: Number of samples whose input is zero, by layer, (layers,), int64.
        not_covered: Reasons, by name, of modules with parameters that have no row.
        notes: What was done to the data on the way into the net.
    """

    layers: tuple[str, ...]
    identity_removed: Tensor
    effective: Tensor
    weight: str
    norm: str
    include_bias: bool
    batchnorm: str
    zero_inputs: Tensor
    not_covered: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("weight", self.weight, WEIGHTS)

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows."""
        return self.layers

    @property
    def values(self) -> Tensor:
        """Cushions with the chosen weight in the denominator, (layers, samples)."""
        return self.identity_removed if self.weight == "identity_removed" else self.effective

    def under(self, weight: str) -> "Cushions":
        """The same measurement with another weight in the denominator.

        Args:
            weight: One of ``WEIGHTS``.

        Returns:
            A new result that shares memory with this one.

        Raises:
            ValueError: If the name is unknown.
        """
        return replace(self, weight=weight)

    def __str__(self) -> str:
        """A table of statistics, with the other weight's median and what is not covered."""
        other = WEIGHTS[self.weight == WEIGHTS[0]]
        medians = [f"{value:.4g}" for value in self.under(other).median.tolist()]
        title = (
            f"layer cushions of {self.samples} samples: {self.norm} norm, {self.weight}, "
            f"BatchNorm {self.batchnorm}" + (", with bias" if self.include_bias else "")
        )
        names: dict[str, list[str]] = defaultdict(list)
        for name, reason in self.not_covered.items():
            names[reason].append(name or "the net itself")
        missing = [f"not covered: {', '.join(some)}: {why}" for why, some in names.items()]
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([self._table(title, {f"median ({other})": medians}), *missing, *notes])


def layer_cushions(
    net: nn.Module,
    data: Any,
    *,
    layers: Sequence[str] | None = None,
    norm: str = "kernel",
    weight: str = "identity_removed",
    include_bias: bool = False,
    batchnorm: str = "eval",
    batch: int = 256,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Cushions:
    r"""Layer cushions of every linear layer and sample, in one forward pass.

    .. math:: \mu_i(x) = \frac{\|A_i \phi(x_{i-1})\|_2}{\|A_i\|_F \|\phi(x_{i-1})\|_2}

    The numerator is the layer's output without its bias, the identity included. Samples are the
    axis of a layer's input whose length follows the batch; tokens and positions are part of a
    sample, and an input that follows no sample, such as a table of positions, belongs to each of
    them. Every call of ``nn.Linear``, ``nn.Conv1d``, ``2d``, ``3d`` and of the four projections
    of ``nn.MultiheadAttention`` is measured; every other module with parameters is listed in
    ``not_covered`` with the reason.

    Args:
        net: Any module; it is measured in eval mode and left as it was.
        data: Inputs (m, ...), of a net of several a tuple or a mapping of them; a pair (x, y) of
            inputs and targets, ``rt.Images``, a ``Dataset``; or a loader or iterator of batches of
            these, which is read once. Floating-point inputs are cast to the net's dtype.
        layers: Names of the layers to measure; all of them if None.
        norm: Norm of the weight in the denominator, a name in ``NORMS``. ``"kernel"``: Frobenius
            norm of the array of weights. ``"operator"``: Frobenius norm of the dense linear map,
            which counts a weight once for every place where it is used: positions of a convolution,
            tokens of ``nn.Linear``; exact for every padding mode.
        weight: Weight in the denominator of ``values``: ``"identity_removed"`` as in the paper's
            Figure 3, or ``"effective"``. The result has both.
        include_bias: Whether the numerator contains the bias.
        batchnorm: ``"eval"`` uses running statistics, ``"batch"`` each batch's own.
        batch: Samples in one forward pass; a loader's batches stay as they are.
        device: Device to measure on; another device than the net's takes a copy of the net there.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The cushions.

    Raises:
        ValueError: If data do not fit the net, a name is unknown, a layer's input is not finite, or
            nothing in the net can be measured.

    Source:
        Arora, Ge, Neyshabur & Zhang, arXiv:1802.05296, Definition 4; Yu & Tomasi, arXiv:1905.10944,
        section 5 and Figure 3 ("with 1 removed from the ID entries").

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
        >>> _ = torch.nn.init.eye_(net[0].weight)
        >>> rt.layer_cushions(net, torch.randn(3, 4)).values.tolist()
        [[0.5, 0.5, 0.5]]
    """
    check_choice("norm", norm, list(NORMS))
    check_choice("weight", weight, WEIGHTS)
    check_int("batch", batch)
    net = on_device(check_net(net), device)
    maps, others = linear_maps(net)
    wanted = selected(maps, layers)
    samples = Data.of(data, like=net, targets=False)
    with preserved(net, batchnorm=batchnorm), torch.no_grad():
        meter = _Meter(net=net, maps=wanted, norm=norm, include_bias=include_bias)
        with tqdm(total=samples.count(batch), disable=not progress, desc="cushions") as bar:
            for part, look in looks_at(net, wanted, samples.chunks(batch)):
                meter.measure(part, look, compare=batchnorm == "eval")
                bar.update()
    names, gains, norms = meter.result(others)
    return Cushions(
        layers=names,
        identity_removed=gains / norms[:, 0],
        effective=gains / norms[:, 1],
        weight=weight,
        norm=norm,
        include_bias=include_bias,
        batchnorm=batchnorm,
        zero_inputs=gains.isnan().sum(1),
        not_covered=others | meter.irregular,
        notes=tuple(samples.notes),
    )


@dataclass
class _Meter:
    """Gains ‖Aφ‖ / ‖φ‖ and norms of the weights of every call, batch after batch."""

    net: nn.Module
    maps: Sequence[LinearMap]
    norm: str
    include_bias: bool
    look: LayerLook | None = None
    compares: bool = False
    samples: int = 0
    measured: int = 0
    gains: dict[Key, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    norms: dict[Key, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    known: dict[Any, Tensor] = field(default_factory=dict)
    irregular: dict[str, str] = field(default_factory=dict)

    def measure(self, batch: Batch, look: LayerLook, *, compare: bool) -> None:
        """Run the net on a batch; compare the samples that were looked at in it."""
        self.compares, self.look = compare and look is not self.look, look
        self.irregular |= look.reasons
        self.samples = batch.size
        self.measured += batch.size
        with call_hooks(self._regular(), self.take):
            batch.call(self.net)
        for name, number in look.layouts:
            if sum(map(len, self.gains[name, number])) != self.measured:
                self.irregular.setdefault(name, _CALLS)

    def _regular(self) -> list[LinearMap]:
        return [linear for linear in self.maps if linear.name not in self.irregular]

    def take(self, call: Call, x: Tensor, output: Tensor | None) -> None:
        """Measure one call."""
        look, linear = self.look, call.linear
        assert look is not None
        layout = look.layouts.get(call.key)
        if layout is None:
            self.irregular[linear.name] = _CALLS
            return
        if not look.fits(call.key, x, self.samples):
            self.irregular[linear.name] = ROUTED
            return
        inputs = layout.rows(x, self.samples)
        if self.compares and not look.agrees(call.key, inputs):
            self.irregular[linear.name] = ROUTED
            return
        below = row_norms(inputs)
        if not bool(below.isfinite().all()):
            raise ValueError(f"net: the input of layer {linear.name!r} is not finite on these data")
        above = self._output_norms(linear, layout, x, output, below)
        self.gains[call.key].append(torch.where(below > 0, above / below, torch.nan).cpu())
        size = tuple(x.shape[2:]) if linear.is_convolution else ()
        # Places where the map is applied: one image of a convolution, all tokens of a sample.
        places = inputs.shape[1] // (x[0].numel() if linear.is_convolution else x.shape[-1])
        if (linear.name, size, places) not in self.known:
            both = [linear.removed.double().cpu(), linear.weight.double().cpu()]
            self.known[linear.name, size, places] = torch.stack(
                [NORMS[self.norm](linear.layer, weight, size, places) for weight in both]
            )
        pair = self.known[linear.name, size, places]
        self.norms[call.key].append(pair[:, None].expand(2, self.samples))

    def _output_norms(
        self, linear: LinearMap, layout: Layout, x: Tensor, output: Tensor | None, below: Tensor
    ) -> Tensor:
        """Norm of each sample's output, with or without the bias."""
        bias = linear.bias
        if output is None:
            output = linear.apply(x)
            if bias is not None and self.include_bias:
                output = output + bias
            return row_norms(layout.rows(output, self.samples))
        if bias is None or self.include_bias:
            return row_norms(layout.rows(output, self.samples))
        # ‖y - b‖² from sums that read y once: no copy of it, no second convolution.
        seen = output.flatten(2).sum(2) @ bias if linear.is_convolution else output @ bias
        rows = layout.rows(output, self.samples)
        full = row_norms(rows).square()
        offset = rows.shape[1] / len(bias) * bias.double().square().sum()
        square = full + offset - 2 * layout.rows(seen, self.samples).double().sum(1)
        # Where the bias is most of the output, the difference has lost the digits that count.
        if bool((~(square * _CANCELLATION > full + offset) & (below > 0)).any()):
            return row_norms(layout.rows(linear.apply(x), self.samples))
        return square.clamp(min=0).sqrt()

    def result(self, others: Mapping[str, str]) -> tuple[tuple[str, ...], Tensor, Tensor]:
        """Names of the rows, gains (rows, samples), norms (rows, 2, samples)."""
        assert self.look is not None
        keys = [key for linear in self._regular() for key in self.look.layouts
                if key[0] == linear.name]  # fmt: skip
        if not keys:
            reasons = "; ".join(f"{k}: {v}" for k, v in {**others, **self.irregular}.items())
            raise ValueError(
                f"net: {type(self.net).__name__} has no linear layer to measure; "
                + (reasons or "none at all")
            )
        calls = {name: sum(key[0] == name for key in keys) for name, _ in keys}
        return (
            tuple(f"{name}#{number}" if calls[name] > 1 else name for name, number in keys),
            torch.stack([torch.cat(self.gains[key]) for key in keys]),
            torch.stack([torch.cat(self.norms[key], dim=1) for key in keys]),
        )
