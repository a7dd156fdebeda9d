"""Layer cushions: the share of a layer's weight that acts on the input of each sample."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import check_choice, check_int
from resid_theory.data import Batch, Data
from resid_theory.runtime.net_entry import layered_net
from resid_theory.runtime.preserve import preserved
from resid_theory.runtime.result import Columns
from resid_theory.stability.layer_inputs import ROUTED, LayerLook, RowOrder, looks_at, round_off
from resid_theory.stability.linear_uses import LinearUse
from resid_theory.stability.map_observer import Key, MapObserver
from resid_theory.stability.norms import NORMS, row_norms
from resid_theory.stability.sample_statistics import Summaries

WEIGHTS = ("identity_removed", "effective")
_CALLS = "the number of its calls depends on the samples"
_CANCELLATION = 100.0  # squares that large, nearly equal, cost two digits of their difference


@dataclass(frozen=True, kw_only=True, eq=False)
class Cushions(Summaries):
    r"""Layer cushions of samples, with either weight in the denominator.

    Attributes:
        layers: Names of the maps, in the order of the forward pass: the module whose weight it is,
            or a parameter and the part of it that is used, ``experts.up[0]``, or
            ``a.weight[pick 1]`` if entries are picked by index; with ``.mT`` if it is used the
            other way round, too.
            What is used several times has a row for each use, ``name#1``, ``name#2``.
        identity_removed: :math:`\|\hat A \phi\| / (\|R\| \|\phi\|)` with R the weight less its
            identity, (layers, samples), float64, on the CPU; nan where the input is zero, or where
            a router sends the sample elsewhere. Equal to ``effective`` where there is no identity.
        effective: The same divided by :math:`\|\hat A\|`.
        weight: The weight in the denominator of ``values`` and of all statistics, one of
            ``WEIGHTS``.
        norm: The norm in the denominator, one of ``NORMS``.
        include_bias: Whether the numerator contains the bias.
        batchnorm: ``"eval"`` or ``"batch"``, the statistics that BatchNorm used.
        not_covered: Reasons, by name, of modules and parameters that have no row.
        notes: What was done to the data on the way into the net.
    """

    layers: tuple[str, ...]
    identity_removed: Tensor
    effective: Tensor
    weight: str
    norm: str
    include_bias: bool
    batchnorm: str
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
        """The same measurement with another of ``WEIGHTS`` in the denominator."""
        return replace(self, weight=weight)

    headline = (
        "layer cushions of {0.samples} samples: {0.norm} norm, {0.weight}, BatchNorm "
        "{0.batchnorm}, include_bias={0.include_bias}"
    )

    def table(self) -> Columns:
        """One row for each layer; last, the median with the other weight in the denominator."""
        other = WEIGHTS[self.weight == WEIGHTS[0]]
        return {**super().table(), f"median_{other}": self.under(other).median}


def layer_cushions(
    net: nn.Module,
    data: Any,
    *,
    layers: Sequence[str] | None = None,
    norm: str = "kernel",
    weight: str = "identity_removed",
    include_bias: bool = False,
    batchnorm: str = "eval",
    batch: int = 128,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Cushions:
    r"""Layer cushions of every linear map and sample, in one forward pass.

    .. math:: \mu_i(x) = \frac{\|A_i \phi(x_{i-1})\|_2}{\|A_i\|_F \|\phi(x_{i-1})\|_2}

    The numerator is the map's output without its bias, the identity included. A map is every use
    of a parameter in a product (``linear``, ``matmul``, ``bmm``, ``addmm``, ``einsum``, ...) or a
    convolution, by a layer or by a function: of the whole parameter, of a part or a view of it, or
    of a weight that is made from it, by a parametrization for example. All other parameters are
    listed in ``not_covered`` with the reason.

    Samples are the axis of an input whose length follows the batch; tokens and positions are part
    of a sample, those of padding, too: they change its values (batches of one length have none).
    An input that follows no sample, such as a table of positions, belongs to each
    of them. Where samples choose the rows, as those routed to experts, they run one at a time: a
    sample without a row has no value there.

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
        batch: Samples in one forward pass (more are no faster: their activations leave the cache);
            a loader's batches stay as they are.
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
    net = layered_net(net, device)
    samples = Data.of(data, like=net, targets=False)
    observer = MapObserver(net)
    meter = _Meter(net=net, observer=observer, layers=observer.first_names(layers), norm=norm,
                   include_bias=include_bias, independent=batchnorm == "eval")  # fmt: skip
    with preserved(net, batchnorm=batchnorm), torch.no_grad():
        parts = samples.chunks(batch, "cushions" if progress else None)
        for part, look in looks_at(net, meter.observer, parts):
            meter.measure(part, look)
    names, values, missing = meter.result()
    gains, notes = values[:, 0], tuple(samples.notes)
    if added := ", ".join(name for name in names if name in observer.added):
        notes += (
            f"a forward adds to the output of {added} its input, an identity that is not in the "
            "weight and so in no row; in rt.to_residual(rt.absorb(net)) it is",
        )
    return Cushions(
        layers=names,
        identity_removed=gains / values[:, 1],
        effective=gains / values[:, 2],
        weight=weight,
        norm=norm,
        include_bias=include_bias,
        batchnorm=batchnorm,
        not_covered=missing,
        notes=notes,
    )


@dataclass
class _Meter:
    """Gains ‖Aφ‖ / ‖φ‖ and norms of the weights of every use, batch after batch."""

    net: nn.Module
    observer: MapObserver
    layers: Sequence[str] | None
    norm: str
    include_bias: bool
    independent: bool  # whether a sample alone is what it is in a batch
    look: LayerLook | None = None
    compares: bool = field(init=False)
    samples: int = field(init=False)
    measured: int = 0  # samples of earlier batches
    rows: dict[Key, list[tuple[int, Tensor]]] = field(default_factory=lambda: defaultdict(list))
    inputs: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    known: dict[Any, Tensor] = field(default_factory=dict)
    apart: dict[str, str] = field(default_factory=dict)
    irregular: dict[str, str] = field(default_factory=dict)

    def measure(self, batch: Batch, look: LayerLook) -> None:
        """Run the net on a batch; compare the samples that were looked at in it."""
        names = self._wanted(look)
        self.compares, self.look = self.independent and look is not self.look, look
        self.irregular |= {name: why for name, why in look.reasons.items() if name in names}
        for name in names & look.apart.keys():
            self._set_apart(name, look.apart[name])
        self.samples = batch.size
        self.inputs.clear()
        with self.observer.watching(self.take):
            batch.call(self.net)
        for key in look.layouts:
            count = sum(part.shape[1] for _, part in self.rows.get(key, ()))
            if key[0] in names and count != self.measured + batch.size:
                self._set_apart(key[0], _CALLS)
        if self.apart:
            self._measure_apart(batch)
        self.measured += batch.size

    def _wanted(self, look: LayerLook) -> set[str]:
        """Names of the maps to measure; a ValueError for one in ``layers`` that no map has."""
        names = {name for name, _ in look.layouts} | look.apart.keys() | look.reasons.keys()
        if self.layers is None:
            return names
        missing = self.observer.missing()
        for name in self.layers:
            if name in missing:
                raise ValueError(f"layers: {name!r} has no row: {missing[name]}")
            if name not in names:
                check_choice("layers", name, self.observer.ordered(names))
        return names & set(self.layers)

    def _set_apart(self, name: str, why: str) -> None:
        """Measure a map one sample at a time from the first batch on, or not at all."""
        if name in self.apart or name in self.irregular:
            return
        late = self.measured and any(key[0] == name for key in self.rows)
        (self.irregular if late or not self.independent else self.apart)[name] = why

    @torch.no_grad()  # which a net that differentiates in its forward is not under
    def take(self, use: LinearUse) -> None:
        """Measure one use in a batch."""
        look, name, x = self.look, use.name, use.input
        assert look is not None
        if name in self.irregular or self.layers is not None and name not in self.layers:
            return
        whole = None
        if name not in self.apart:
            layout = look.layouts.get(use.key)
            if layout is not None and look.fits(use.key, x, self.samples):
                if not self.compares or look.agrees(use.key, x, self.samples):
                    whole = layout.norms(x, self.samples)
                    self.rows[use.key].append((self.measured, self._measured(use, layout, whole)))
            if whole is None:
                self._set_apart(name, _CALLS if layout is None else ROUTED)
        whole = row_norms(x.reshape(1, -1)) if whole is None else whole
        self.inputs[name].append(float(torch.linalg.vector_norm(whole)))

    def _measure_apart(self, batch: Batch) -> None:
        """Measure maps whose rows in a batch do not tell the sample, one sample at a time."""
        inputs: dict[str, list[float]] = defaultdict(list)
        dtypes: dict[str, torch.dtype] = defaultdict(torch.get_default_dtype)

        @torch.no_grad()
        def take(use: LinearUse) -> None:
            if use.name not in self.apart or use.input.numel() == 0:
                return
            if use.geometry and use.input.dim() < use.kernel.dim():  # an image without its batch
                use = replace(use, input=use.input[None], place=use.place[None])
            below = row_norms(use.input.reshape(1, -1))
            inputs[use.name].append(float(below))
            dtypes[use.name] = use.input.dtype
            values = self._measured(use, RowOrder(axis=None), below)
            self.rows[use.key].append((self.measured + number, values))

        self.samples = 1
        try:
            for number in range(batch.size):
                with self.observer.watching(take):
                    batch.rows(torch.tensor([number])).try_call(self.net)
        except ValueError as error:
            self.irregular |= {
                k: f"{why}; one sample alone: {error}" for k, why in self.apart.items()
            }
        for name, why in self.apart.items():
            together, alone = (math.hypot(*of[name]) for of in (self.inputs, inputs))
            if abs(together - alone) > round_off(dtypes[name]) * together:
                self.irregular.setdefault(name, f"{why}, and depend on the other samples")

    def _measured(self, use: LinearUse, layout: RowOrder, below: Tensor) -> Tensor:
        """Gains, and norms with the identity removed and of the effective weight, (3, samples)."""
        x = use.input
        if not bool(below.isfinite().all()):
            raise ValueError(f"net: the input of layer {use.name!r} is not finite on these data")
        above = self._output_norms(use, layout, below)
        size = tuple(x.shape[2:]) if use.geometry else ()
        # Places where the map is applied: one image of a convolution, all tokens of a sample.
        inputs = x.numel() // (1 if layout.axis is None else self.samples)
        places = inputs // (x[0].numel() if use.geometry else x.shape[-1])
        known = (use.key, use.kernel.shape, size, places)
        if known not in self.known:
            norm, weights = NORMS[self.norm], [use.removed, use.weight]
            wide = torch.complex128 if use.kernel.is_complex() else torch.float64
            found = [norm(w.to("cpu", wide), use.geometry, size, places)
                     for w in weights[: 1 + bool(use.owner)]]  # fmt: skip
            self.known[known] = torch.stack([found[0], found[-1]])
        norms = self.known[known]
        gains = torch.where(below > 0, above / below, torch.nan).cpu()
        return torch.cat([gains[None], norms[:, None].expand(2, self.samples)])

    def _output_norms(self, use: LinearUse, layout: RowOrder, below: Tensor) -> Tensor:
        """Norm of each sample's output, with or without the bias."""
        bias, output = use.bias, use.output
        if not self.include_bias and not use.exact:
            output = use.apply(use.input, use.weight)
        elif bias is not None and not self.include_bias:
            # ‖y - b‖² from y·b: no copy of y, no second convolution.
            seen = output.flatten(2).sum(2) @ bias if use.geometry else output @ bias
            full = layout.norms(output, self.samples).square()
            entries = output.numel() // (1 if layout.axis is None else self.samples)
            offset = entries / len(bias) * bias.double().square().sum()
            square = full + offset - 2 * layout.rows(seen, self.samples).double().sum(1)
            # Where the bias is most of the output, the difference has lost the digits that count.
            if bool(((square * _CANCELLATION > full + offset) | (below == 0)).all()):
                return square.sqrt()
            output = use.apply(use.input, use.weight)
        return layout.norms(output, self.samples)

    def result(self) -> tuple[tuple[str, ...], Tensor, dict[str, str]]:
        """Names of the rows; gains and norms, (rows, 3, samples); reasons for all without a row."""
        known = {name for name, _ in self.rows} - self.irregular.keys()
        idle = dict.fromkeys(self.apart.keys() - known, "no sample has a row in its input")
        missing = self.observer.missing() | idle | self.irregular
        keys = [key for key in self.observer.in_order() if key in self.rows and key[0] in known]
        if not keys:
            reasons = "; ".join(f"{k or 'it'}: {v}" for k, v in missing.items())
            raise ValueError(
                f"net: {type(self.net).__name__} has no linear layer to measure"
                + (f"; {reasons}" if reasons else "")
            )
        calls = {name: sum(key[0] == name for key in keys) for name, _ in keys}
        values = torch.full((len(keys), 3, self.measured), torch.nan, dtype=torch.float64)
        for row, key in zip(values, keys, strict=True):
            for start, part in self.rows[key]:
                row[:, start : start + part.shape[1]] = part
        names = tuple(f"{name}#{number}" if calls[name] > 1 else name for name, number in keys)
        return names, values, missing
