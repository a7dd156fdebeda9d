"""Linear maps inside any module: their places and weights, and reasons for what is no such map."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from resid_theory._check import check_choice
from resid_theory.identity import AddIdentity, identity_of, identity_removed, layer_identity

__all__ = ["CONVOLUTIONS", "LinearMap", "linear_maps", "selected"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_REASONS: list[tuple[Any, str]] = [
    ((nn.Embedding, nn.EmbeddingBag), "looks up rows of a table; its input is no vector"),
    ((nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU),
     "scales each channel or entry by itself; has no matrix"),
    (nn.modules.conv._ConvTransposeNd,
     "transposed convolution; the maps here are Linear and Conv1d, 2d, 3d"),
    ((nn.RNNBase, nn.RNNCellBase), "its matrices act inside a recurrence, where no hook fires"),
    (nn.Bilinear, "bilinear in two inputs"),
    ((nn.modules.lazy.LazyModuleMixin,), "has no shape yet; call the net once before"),
    ((nn.Linear, *CONVOLUTIONS),
     "a subclass of a linear layer with a forward of its own, which may compute something else"),
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearMap:
    """One linear map of a net.

    Attributes:
        name: Name of the module; for a projection of attention with its own name appended.
        module: Module whose calls are those of the map: the layer, the ``AddIdentity`` around it,
            or the attention.
        role: Name of the projection of an ``nn.MultiheadAttention``; ``""`` for other maps.
    """

    name: str
    module: nn.Module
    role: str = ""

    @property
    def layer(self) -> nn.Module:
        """The module that holds the weight."""
        return self.module.layer if isinstance(self.module, AddIdentity) else self.module

    @property
    def is_convolution(self) -> bool:
        """True if the map is a convolution."""
        return isinstance(self.layer, CONVOLUTIONS)

    @property
    def weight(self) -> Tensor:
        """The effective weight, the identity included, (out, in / groups, *kernel)."""
        if self.role:
            return self._projection()[0]
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        if isinstance(self.module, AddIdentity):
            return weight.detach() + identity_of(self.layer, self.module.rule)
        return weight.detach()

    @property
    def removed(self) -> Tensor:
        """The weight with the identity removed, R; the weight itself where there is none."""
        if isinstance(self.module, AddIdentity) or layer_identity(self.layer) is not None:
            return identity_removed(self.layer).detach()
        return self.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias, (out,), or None."""
        bias = self._projection()[1] if self.role else self.layer.bias
        return bias.detach() if isinstance(bias, Tensor) else None

    def apply(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """The map without its bias, optionally with another weight of the same shape."""
        weight = self.weight if weight is None else weight
        if isinstance(self.layer, CONVOLUTIONS):
            return self.layer._conv_forward(x, weight, None)
        return F.linear(x, weight)

    def _projection(self) -> tuple[Tensor, Any]:
        """Weight and bias of one of the four projections of an attention."""
        attention = self.module
        assert isinstance(attention, nn.MultiheadAttention)
        if self.role == "out_proj":
            return attention.out_proj.weight.detach(), attention.out_proj.bias
        index = _PROJECTIONS.index(self.role)
        bias = None if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)[index]
        if attention.in_proj_weight is None:
            return getattr(attention, f"{self.role}_weight").detach(), bias
        return attention.in_proj_weight.detach().chunk(3)[index], bias


def linear_maps(net: nn.Module) -> tuple[list[LinearMap], dict[str, str]]:
    """All linear maps of a net, and reasons why every other module with parameters is none."""
    maps: list[LinearMap] = []
    others: dict[str, str] = {}
    for name, module in _visited(net, "", set()):
        if isinstance(module, nn.MultiheadAttention):
            maps += [LinearMap(name=f"{name}.{role}".lstrip("."), module=module, role=role)
                     for role in _PROJECTIONS]  # fmt: skip
            if module.bias_k is not None:
                others[name] = "bias_k and bias_v are vectors among keys and values, no matrix"
        elif _is_map(module):
            maps.append(LinearMap(name=name, module=module))
        elif own := [key for key, p in module._parameters.items() if p is not None]:
            unknown = (
                f"{type(module).__name__} applies parameters of its own ({', '.join(own)}), not by "
                "a linear layer"
            )
            known = (reason for kinds, reason in _REASONS if isinstance(module, kinds))
            others[name] = next(known, unknown)
    return maps, others


def selected(maps: Sequence[LinearMap], layers: Sequence[str] | None) -> list[LinearMap]:
    """The maps with the given names, in the order of the net; all of them for None."""
    if layers is None:
        return list(maps)
    if isinstance(layers, str):
        layers = [layers]
    for name in layers:
        check_choice("layers", name, [linear.name for linear in maps])
    return [linear for linear in maps if linear.name in layers]


def _visited(module: nn.Module, name: str, seen: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, parents first, without the modules inside a map."""
    if module in seen:
        return
    seen.add(module)
    yield name, module
    if _is_map(module) or isinstance(module, nn.MultiheadAttention):
        seen.update(module.modules())
        return
    for key, child in module.named_children():
        yield from _visited(child, f"{name}.{key}" if name else key, seen)


def _is_map(module: nn.Module) -> bool:
    if isinstance(module, AddIdentity):
        return _is_map(module.layer)
    kind = parametrize.type_before_parametrizations(module)
    lazy = isinstance(module._parameters.get("weight"), nn.parameter.UninitializedParameter)
    return not lazy and (
        (issubclass(kind, nn.Linear) and kind.forward is nn.Linear.forward)
        or any(
            issubclass(kind, conv)
            and kind.forward is conv.forward
            and kind._conv_forward is conv._conv_forward
            for conv in CONVOLUTIONS
        )
    )
