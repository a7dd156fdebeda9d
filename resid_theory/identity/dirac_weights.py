"""Weights of all Dirac layers of a net, those of one shape by the same operations."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resid_theory.identity.layer_weight import parametrizations_of
from resid_theory.identity.parametrizations import DiracWeight


class DiracWeights:
    """Dirac layers of a net in groups of one shape.

    The weight of one layer takes some 25 small operations a step, forward and backward, which cost
    a GPU more to launch than to compute. A group of layers takes as many in all.

    Args:
        net: Any module.
    """

    def __init__(self, net: nn.Module) -> None:
        groups: dict[object, list[tuple[DiracWeight, Tensor]]] = defaultdict(list)
        for layer in net.modules():
            inside = next(iter(parametrizations_of(layer)), None)
            if isinstance(inside, DiracWeight):
                original = layer.get_parameter("parametrizations.weight.original")
                ones = tuple(inside.identity.flatten().nonzero().flatten().tolist())
                kind = original.shape, original.stride(), original.dtype, inside.b is None, ones
                groups[kind].append((inside, original))
        self._groups = list(groups.values())

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Compute the weights at once; inside, every layer takes its own from there."""
        try:
            for group in self._groups:
                for (inside, _), weight in zip(group, _weights(group), strict=True):
                    inside.ready = weight
            yield
        finally:
            for inside, _ in (each for group in self._groups for each in group):
                inside.ready = None


def _weights(group: Sequence[tuple[DiracWeight, Tensor]]) -> Sequence[Tensor]:
    """The formula of :class:`DiracWeight`, with an axis of layers in front."""
    (first, like), scales = group[0], tuple(one.b for one, _ in group if one.b is not None)
    # Kernels keep their order in memory: another one would be copied by every convolution.
    last = not like.is_contiguous() and like.movedim(1, -1).is_contiguous()
    identity, *originals = (
        t.movedim(1, -1) if last else t for t in (first.identity, *(v for _, v in group))
    )
    rest = torch.stack([v.flatten(1) for v in originals])
    if scales:
        rest = torch.stack(scales)[..., None] * F.normalize(rest, dim=2)
    a = torch.stack(tuple(inside.a for inside, _ in group))[..., None]
    weights = (a * identity.flatten(1) + rest).view(-1, *identity.shape)
    return (weights.movedim(-1, 2) if last else weights).unbind()
