"""Inputs of linear maps during a forward pass, with the axis along which the samples lie."""

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resid_theory.data import Batch
from resid_theory.nested import tensors_of
from resid_theory.runtime.preserve import evaluated
from resid_theory.stability.linear_uses import LinearUse
from resid_theory.stability.map_observer import MapObserver
from resid_theory.stability.norms import row_norms

ROUTED = "the rows of its input are not those of the samples in turn, as those routed to experts"
"""Reason why a layer has no layout."""
_UNCLEAR = "cannot tell which sample each row of its input belongs to"
_ORDER = [1, 2, 0]  # of three samples: what they share does not know which of them comes first
_PLACES = [2, 0, 1]  # of each of them in it
_STEP = 2e-6  # 16 roundings in float32, which other sizes of a batch make otherwise


@dataclass(frozen=True, kw_only=True)
class RowOrder:
    """Position of the samples in a layer's input.

    Attributes:
        axis: Axis whose length is proportional to the number of samples; None for an input that all
            samples share.
        sample_major: Whether the rows of one sample are neighbours along that axis, as after
            ``x.flatten(0, 1)`` of (batch, tokens, features).
        each: Length of that axis for one sample.
    """

    axis: int | None
    sample_major: bool = True
    each: int = 1

    def rows(self, x: Tensor, samples: int, places: Tensor | None = None) -> Tensor:
        """All entries of each sample, or of some, of an input or output, (samples, entries)."""
        if self.axis is None:
            return x.reshape(1, -1).expand(samples if places is None else len(places), -1)
        sizes = (samples, -1) if self.sample_major else (-1, samples)
        x = x.movedim(self.axis, 0).unflatten(0, sizes)
        if not self.sample_major:
            x = x.transpose(0, 1)
        if places is not None:
            x = x[places.to(x.device)]
        return x.reshape(len(x), -1)

    def norms(self, x: Tensor, samples: int) -> Tensor:
        """Euclidean norms of the samples of an input or output, (samples,), float64."""
        return row_norms(self.rows(x, samples))


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerLook:
    """Uses of weights, as runs on a few samples show them.

    Attributes:
        layouts: Position of the samples in the input of every use.
        apart: Reasons, by name, of maps whose inputs show the samples only if they run one by one.
        reasons: Reasons, by name, of the other maps without a layout.
        places: Numbers of the samples that were looked at.
        inputs: Their inputs of every use, (samples, entries), unless samples depend on others.
    """

    layouts: dict[tuple[str, int], RowOrder]
    apart: dict[str, str]
    reasons: dict[str, str]
    places: Tensor
    inputs: dict[tuple[str, int], Tensor]

    def fits(self, key: tuple[str, int], x: Tensor, samples: int) -> bool:
        """True if an input has as many rows for each sample as those looked at."""
        layout = self.layouts[key]
        return layout.axis is None or x.shape[layout.axis] == layout.each * samples

    def agrees(self, key: tuple[str, int], x: Tensor, samples: int) -> bool:
        """True if the input of the batch looked at has the samples in their places."""
        few = self.inputs.get(key)
        return few is None or _same(few, self.layouts[key].rows(x, samples, self.places))


def looks_at(
    net: nn.Module, observer: MapObserver, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, LayerLook]]:
    """Batches, each with a look at its layers; a new one where samples have a new shape."""
    look, known = None, None
    for batch in batches:
        shapes = [tensor.shape[1:] for tensor in tensors_of(batch.inputs)]
        if look is None or shapes != known:
            with evaluated(net), torch.no_grad():  # whatever the statistics of BatchNorm
                look, known = _look(net, observer, batch), shapes
        yield batch, look


def _look(net: nn.Module, observer: MapObserver, batch: Batch) -> LayerLook:
    """Find the samples in the input of every use, by runs on a few of them."""
    places = torch.arange(3) * batch.size // 3
    few = [batch.rows(places[:2]), batch.rows(places[_ORDER])]
    runs: list[dict[tuple[str, int], Tensor]] = []
    axes: dict[tuple[str, int], int] = {}  # of the inputs of convolutions
    apart: dict[str, str] = {}

    def keep(use: LinearUse) -> None:
        runs[-1][use.key] = use.input.detach().clone()
        axes[use.key] = use.kernel.dim() if use.geometry else 0
        if use.routed:
            apart[use.name] = ROUTED

    for some in few:
        runs.append({})
        with observer.watching(keep):
            some.try_call(net)
    found: dict[tuple[str, int], RowOrder] = {}
    seen: dict[tuple[str, int], Tensor] = {}
    reasons: dict[str, str] = {}
    for name in observer.ordered(name for run in runs for name, _ in run):
        keys = [key for key in runs[0] if key[0] == name]
        if any(set(keys) != {key for key in run if key[0] == name} for run in runs):
            apart.setdefault(name, "the number of its calls depends on the samples")
        if name in apart:
            continue
        for key in keys:
            two, three = (run[key] for run in runs)
            layout = _layout(two, three, axes[key])
            if isinstance(layout, str):
                (apart if layout in (ROUTED, _UNCLEAR) else reasons)[name] = layout
                continue
            found[key] = layout
            rows = layout.rows(three, 3)[_PLACES]
            if _same(layout.rows(two, 2), rows[:2]):
                seen[key] = rows
    apart = {name: why for name, why in apart.items() if name not in reasons}
    found = {key: one for key, one in found.items() if key[0] not in apart | reasons}
    coupled = [key[0] for key in found if key not in seen]
    if coupled:
        warnings.warn(
            f"the input of {coupled[0]!r} and {len(coupled) - 1} more layers for one sample "
            "depends on the other samples of its batch: BatchNorm without running statistics, "
            "noise, or a net that expects the samples along another axis than the first",
            stacklevel=4,
        )
    return LayerLook(layouts=found, apart=apart, reasons=reasons, places=places, inputs=seen)


def _layout(two: Tensor, three: Tensor, axes: int) -> RowOrder | str:
    """Order of the rows of a use from its inputs for two samples and for three."""
    shapes = f"{tuple(two.shape)} for two samples and {tuple(three.shape)} for three"
    if two.numel() == 0:
        return ROUTED
    grown = [a for a in range(two.dim()) if two.shape[a] != three.shape[a]]
    if not grown:
        if two.dim() >= axes and _same(two, three):  # not one image
            return RowOrder(axis=None)
        shape = tuple(two.shape)
        return f"its input has the shape {shape} for any number of samples, and other values"
    axis = grown[0]
    each = two.shape[axis] // 2
    if len(grown) > 1 or two.shape[axis] != 2 * each:
        return f"its input has no axis of samples: {shapes}"
    if three.shape[axis] != 3 * each:
        return ROUTED
    if axis and (axes or axis == two.dim() - 1):
        return f"its input has the samples along axis {axis}, which the layer mixes: {shapes}"
    ways = [RowOrder(axis=axis, sample_major=major, each=each) for major in (True, False)]
    if each == 1:
        return ways[0]
    gaps = [_gap(way.rows(two, 2), way.rows(three, 3)[_PLACES[:2]]) for way in ways]
    if not min(gaps) > 1:
        return ways[gaps.index(min(gaps))]
    return _UNCLEAR


def _same(one: Tensor, other: Tensor) -> bool:
    """True for equal numbers, up to rounding; nan is not a difference."""
    return not _gap(one, other) > 1


def round_off(dtype: torch.dtype) -> float:
    """Largest relative difference that other sizes of a batch make, also by a step in float32."""
    return max(torch.finfo(dtype).eps ** 0.5, _STEP)


def _gap(one: Tensor, other: Tensor) -> float:
    """Largest difference in units of what rounding may make."""
    scale = round_off(one.dtype) * float(one.abs().max())
    gap = float((one - other).abs().max())
    return gap / scale if scale > 0 else (math.inf if gap > 0 else 0.0)
