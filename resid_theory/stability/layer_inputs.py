"""Inputs of linear maps during a forward pass, with the axis along which the samples lie."""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resid_theory.data import Batch
from resid_theory.nested import tensors_of
from resid_theory.runtime.preserve import preserved
from resid_theory.stability.linear_uses import LinearUse
from resid_theory.stability.map_observer import MapObserver

__all__ = ["ROUTED", "LayerLook", "Layout", "looks_at", "same"]

ROUTED = "the rows of its input are not those of the samples in turn, as those routed to experts"
"""Reason why a layer has no layout."""
_UNCLEAR = "cannot tell which sample each row of its input belongs to"
_SINGLES = 4  # single samples that are looked at
_STEP = (
    2e-6  # relative change by 16 float32 roundings, which other sizes of a batch round otherwise
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Position of the samples in a layer's input.

    Attributes:
        axis: Axis whose length is proportional to the number of samples; None for an input that all
            samples share.
        sample_major: Whether the rows of one sample are neighbours along that axis, as after
            ``x.flatten(0, 1)`` of (batch, tokens, features).
        each: Length of that axis for one sample.
    """

    axis: int | None = 0
    sample_major: bool = True
    each: int = 1

    def rows(self, x: Tensor, samples: int) -> Tensor:
        """All entries of each sample of an input or output as one row, (samples, entries)."""
        if self.axis is None:
            return x.reshape(1, -1).expand(samples, -1)
        if self.axis:
            x = x.movedim(self.axis, 0)
        if not self.sample_major:
            x = x.unflatten(0, (-1, samples)).transpose(0, 1)
        return x.reshape(samples, -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerLook:
    """Uses of weights, as runs on a few samples show them.

    Attributes:
        layouts: Position of the samples in the input of every use.
        apart: Reasons, by name, of maps whose inputs show the samples only if they run one by one.
        reasons: Reasons, by name, of the other maps without a layout.
        places: Numbers of the single samples that were looked at.
        singles: Their inputs of every use, (samples, entries), unless samples depend on others.
    """

    layouts: dict[tuple[str, int], Layout]
    apart: dict[str, str]
    reasons: dict[str, str]
    places: Tensor
    singles: dict[tuple[str, int], Tensor]

    def fits(self, key: tuple[str, int], x: Tensor, samples: int) -> bool:
        """True if an input has as many rows for each sample as those looked at."""
        layout = self.layouts[key]
        return layout.axis is None or x.shape[layout.axis] == layout.each * samples

    def agrees(self, key: tuple[str, int], rows: Tensor) -> bool:
        """True if the rows of the batch looked at have the single samples in their places."""
        alone = self.singles.get(key)
        return alone is None or same(alone, rows[self.places.to(rows.device)])


def looks_at(
    net: nn.Module, observer: MapObserver, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, LayerLook]]:
    """Batches, each with a look at its layers; a new one where samples have a new shape."""
    look, known = None, None
    for batch in batches:
        shapes = [tensor.shape[1:] for tensor in tensors_of(batch.inputs)]
        if look is None or shapes != known:
            with preserved(net), torch.no_grad():  # in eval mode whatever the statistics
                look, known = _look(net, observer, batch), shapes
        yield batch, look


def _look(net: nn.Module, observer: MapObserver, batch: Batch) -> LayerLook:
    """Find the samples in the input of every use, by runs on a few of them."""
    count = min(_SINGLES, batch.size)
    places = torch.arange(count) * batch.size // count
    # Each single sample twice: some nets take no batch of one.
    few = [batch.cycled(2), batch.cycled(3), *(batch.rows(place.repeat(2)) for place in places)]
    runs: list[dict[tuple[str, int], Tensor]] = []
    axes: dict[tuple[str, int], int] = {}  # of the inputs of convolutions
    apart: dict[str, str] = {}

    def keep(use: LinearUse) -> None:
        runs[-1][use.key] = use.input.clone()
        axes[use.key] = use.kernel.dim() if use.geometry else 0
        if use.routed:
            apart[use.name] = ROUTED

    for some in few:
        runs.append({})
        with observer.watching(keep):
            some.try_call(net)
    found: dict[tuple[str, int], Layout] = {}
    singles: dict[tuple[str, int], Tensor] = {}
    reasons: dict[str, str] = {}
    for name in observer.ordered(name for run in runs for name, _ in run):
        keys = [key for key in runs[0] if key[0] == name]
        if any(set(keys) != {key for key in run if key[0] == name} for run in runs):
            apart.setdefault(name, "the number of its calls depends on the samples")
        if name in apart:
            continue
        for key in keys:
            two, three, *others = (run[key] for run in runs)
            layout = _layout(two, three, others, axes[key])
            if isinstance(layout, str):
                (apart if layout in (ROUTED, _UNCLEAR) else reasons)[name] = layout
                continue
            found[key] = layout
            alone = torch.stack([layout.rows(x, 2)[0] for x in others])
            both, more = layout.rows(two, 2), layout.rows(three, 3)
            if same(both, more[:2]) and same(alone[:1], more[:1]):
                singles[key] = alone
    apart = {name: why for name, why in apart.items() if name not in reasons}
    found = {key: one for key, one in found.items() if key[0] not in apart | reasons}
    coupled = [key[0] for key in found if key not in singles]
    if coupled:
        warnings.warn(
            f"the input of {coupled[0]!r} and {len(coupled) - 1} more layers for one sample "
            "depends on the other samples of its batch: BatchNorm without running statistics, "
            "noise, or a net that expects the samples along another axis than the first",
            stacklevel=4,
        )
    return LayerLook(layouts=found, apart=apart, reasons=reasons, places=places, singles=singles)


def _layout(two: Tensor, three: Tensor, others: Sequence[Tensor], axes: int) -> Layout | str:
    """Layout of a use from its inputs for two samples, three, and single ones twice each."""
    shapes = f"{tuple(two.shape)} for two samples and {tuple(three.shape)} for three"
    if two.numel() == 0 or any(x.shape != two.shape for x in others):
        return ROUTED
    grown = [a for a in range(two.dim()) if two.shape[a] != three.shape[a]]
    if not grown:
        shared = Layout(axis=None)
        single = two.dim() < axes  # one image
        alike = not single and all(same(two[None], x[None]) for x in (three, *others))
        odd = f"its input has the shape {tuple(two.shape)} for any number of samples"
        return shared if alike else f"{odd}, and other values"
    axis = grown[0]
    each = two.shape[axis] // 2
    if len(grown) > 1 or two.shape[axis] != 2 * each:
        return f"its input has no axis of samples: {shapes}"
    if three.shape[axis] != 3 * each:
        return ROUTED
    if axis and (axes or axis == two.dim() - 1):
        return f"its input has the samples along axis {axis}, which the layer mixes: {shapes}"
    ways = [Layout(axis=axis, sample_major=major, each=each) for major in (True, False)]
    if each == 1:
        return ways[0]
    gaps = [_gap(way.rows(two, 2), way.rows(three, 3)[:2]) for way in ways]
    if not min(gaps) > 1:
        return ways[gaps.index(min(gaps))]
    return _UNCLEAR


def same(one: Tensor, other: Tensor) -> bool:
    """True for equal numbers, up to rounding; nan is not a difference."""
    return not _gap(one, other) > 1


def _gap(one: Tensor, other: Tensor) -> float:
    """Largest difference in units of what rounding may make, also that of a step in float32."""
    scale = max(torch.finfo(one.dtype).eps ** 0.5, _STEP) * float(one.abs().max())
    gap = float((one - other).abs().max())
    return gap / scale if scale > 0 else (math.inf if gap > 0 else 0.0)
