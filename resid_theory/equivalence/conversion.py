"""Records of conversions, new layers with given weights, and ties between weights that remain."""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from resid_theory.identity import (
    AddIdentity,
    current_weight,
    id_rule,
    mark,
    parametrizations_of,
)
from resid_theory.identity.layer_weight import check_identities
from resid_theory.networks import Block, IdentityShortcut
from resid_theory.runtime.net_entry import check_net
from resid_theory.runtime.net_state import copied
from resid_theory.runtime.result import Columns, Result

LINEAR_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_IN_ORDER = (nn.Sequential, nn.ModuleList, nn.ModuleDict, Block, AddIdentity, IdentityShortcut)


class NothingConverted(UserWarning):
    """Warning of a conversion that found nothing to convert and returned a copy."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Conversion(Result):
    """Record of what a conversion did to the modules of a net.

    Attributes:
        call: ``"to_plain"``, ``"to_residual"`` or ``"fold"``.
        converted: What each module was and became, by its name in the given net.
        left: Reasons, by name, for linear layers that are as they were and, of ``to_plain``, for
            modules with layers and a forward of their own, which may add their input.
    """

    call: str
    converted: Mapping[str, tuple[str, str]]
    left: Mapping[str, str]

    @property
    def title(self) -> str:
        """Numbers of modules that were converted and left."""
        return f"{self.call}: {len(self.converted)} converted, {len(self.left)} left"

    def table(self) -> Columns:
        """One row for each module that was converted."""
        was, became = zip(*self.converted.values(), strict=True) if self.converted else ((), ())
        return {"module": list(self.converted), "was": was, "became": became}

    def shown(self) -> Columns:
        """One row for each kind of module."""
        kinds = Counter(self.converted.values())
        was, became = zip(*kinds, strict=True) if kinds else ((), ())
        return {"modules": list(kinds.values()), "was": was, "became": became}


def conversion(net: nn.Module) -> Conversion:
    """The record of the conversion that made a net: what was converted, and what not.

    Args:
        net: A net from ``to_plain``, ``to_residual``, ``fold`` or ``absorb``, or a copy of one.

    Returns:
        That of the last conversion.

    Raises:
        ValueError: If the net comes from none of them, or from a file, which keeps no such record.

    Example:
        >>> conversion(rt.to_plain(rt.simplified_net(8, identity="residual")))
        to_plain: 6 converted, 2 left
          modules  6
          was      Conv2d with ResidualWeight
          became   Conv2d
        Left: conv0, fc: carries no identity.
    """
    record = net.__dict__.get("_conversion") if isinstance(net, nn.Module) else None
    if not isinstance(record, Conversion):
        raise ValueError(
            f"net: got {type(net).__name__} without a record, needs what to_plain, to_residual, "
            "fold or absorb returned"
        )
    return record


def described(module: nn.Module) -> str:
    """A module's class, with what carries its identity."""
    if isinstance(module, AddIdentity):
        return f"AddIdentity of {described(module.layer)}"
    kind = parametrize.type_before_parametrizations(module).__name__
    parts = parametrizations_of(module)
    return f"{kind} with {', '.join(type(part).__name__ for part in parts)}" if parts else kind


class Converter:
    """One conversion of a copy of a net, and its record."""

    unties = False  # whether weights that shared parameters may become different ones

    def __init__(self, net: nn.Module, call: str) -> None:
        net = check_net(net, finite=False, meta=True)
        check_identities(net)
        self.call, self.given, self.net = call, net, copied(net)
        self.converted: dict[str, tuple[str, str]] = {}
        self.left: dict[str, str] = {}
        self.moved = 0.0  # largest change of a weight by rounding
        self._made: list[tuple[str, str, set[nn.Parameter], nn.Parameter]] = []

    def finished(self, new: nn.Module, sought: str) -> nn.Module:
        """The new net with its record; a warning where nothing was converted."""
        remaining = set(new.parameters())
        for name, _, sources, _ in self._made:
            if sources & remaining:
                self._untie(name, "a module that is not converted")
        new.__dict__["_conversion"] = Conversion(
            call=self.call, converted=self.converted, left=self.left
        )
        if not self.converted:
            warnings.warn(
                f"{self.call}: nothing was converted, the net is a copy: {sought}",
                NothingConverted, stacklevel=3,
            )  # fmt: skip
        elif isinstance(record := getattr(self.given, "architecture", None), Mapping):
            if self.call not in ("to_residual", "absorb"):
                then = [*record.get("then", ()), self.call]
                new.architecture = {**record, "then": then}  # type: ignore[assignment]
        return new

    def leave(self, new: nn.Module, plain: str, *, additions: bool = False) -> None:
        """List the modules of the new net that stand as they were."""
        inside = tuple(f"{name}." for name in self.converted if name)
        for name, module in new.named_modules():
            if name in self.left or name in self.converted or "" in self.converted:
                continue
            if name.startswith(inside) or ".parametrizations" in f".{name}":
                continue
            kind = parametrize.type_before_parametrizations(module)
            from_torch = kind.__module__.startswith("torch.nn")
            if isinstance(module, LINEAR_MAPS):
                parts = ", ".join(type(part).__name__ for part in parametrizations_of(module))
                self.left[name] = f"{plain}; its weight is made by {parts}" if parts else plain
            elif additions and not isinstance(module, _IN_ORDER):
                if module._modules or module._parameters and not from_torch:
                    self.left[name] = f"a {kind.__name__}, in whose forward additions are not seen"

    def rebuilt(
        self, layer: nn.Module, name: str, weight: Tensor, bias: Tensor | None,
        sources: Sequence[nn.Parameter] = (),
    ) -> nn.Module:  # fmt: skip
        """A layer of the same class with another weight and bias; all else is kept."""
        # Not remove_parametrizations on a copy: it would break the original, whose class is the
        # same; not the constructor: a subclass may have one of its own.
        kind: Any = parametrize.type_before_parametrizations(layer)
        new: nn.Module = kind.__new__(kind)
        new.__dict__.update(
            {k: v.copy() if isinstance(v, dict) else v for k, v in layer.__dict__.items()}
        )
        new._modules.pop("parametrizations", None)
        held = {n: p for n, p in new._parameters.items() if n not in ("weight", "bias")}
        trained = list(_sources(layer, "weight"))
        new._parameters = {"weight": self._tied(name, "weight", weight, [*trained, *sources])}
        if bias is not None and not isinstance(bias, nn.Parameter):
            own = list(_sources(layer, "bias")) or trained
            bias = self._tied(name, "bias", bias, [*own, *sources])
        new._parameters["bias"] = bias
        new._parameters |= held
        outputs, inputs = weight.shape[0], weight.shape[1] * getattr(layer, "groups", 1)
        words = ("out_features", "in_features", "out_channels", "in_channels")
        for word, size in zip(words, (outputs, inputs) * 2, strict=True):
            if word in new.__dict__:
                new.__dict__[word] = size
        rule = id_rule(layer)
        return new if rule is None else mark(new, rule)

    def _tied(
        self, name: str, kind: str, value: Tensor, sources: Sequence[nn.Parameter]
    ) -> nn.Parameter:
        own = {*sources}
        akin = [made for made in self._made if made[1] == kind and own & made[2]]
        for _, _, _, parameter in akin:
            if same(parameter, value):
                return parameter
        if akin:
            self._untie(name, f"layer {akin[0][0]!r}")
        trainable = any(p.requires_grad for p in own)
        new = nn.Parameter(value, requires_grad=trainable)
        self._made.append((name, kind, own, new))
        return new

    def _untie(self, name: str, other: str) -> None:
        if not self.unties:
            raise ValueError(
                f"net: layer {name!r} shares a parameter with {other}, but what it makes of it is "
                "another weight; needs weights of their own"
            )
        old, new = self.converted[name]
        words = f", no longer tied to {other}"  # once for weight and bias
        self.converted[name] = old, new.removesuffix(words) + words


def _sources(layer: nn.Module, tensor: str) -> Iterable[nn.Parameter]:
    """Parameters that a layer's tensor is or is made from."""
    if parametrize.is_parametrized(layer, tensor):
        yield from layer.get_submodule(f"parametrizations.{tensor}").parameters()
    elif (own := layer._parameters.get(tensor)) is not None:
        yield own


def bias_of(layer: nn.Module) -> Tensor | None:
    """A layer's bias."""
    bias = layer.bias
    assert bias is None or isinstance(bias, Tensor)
    return bias


def check_two_axes(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
    """Refuse inputs along whose last axis BatchNorm1d, now in a linear layer, did not run."""
    if given[0].dim() != 2:
        raise ValueError(
            f"x: got {given[0].dim()} axes, needs (batch, channels): BatchNorm1d, which is in this "
            "linear layer now, would have normalized the second axis"
        )


def check_no_hooks(module: nn.Module, name: str) -> None:
    """Raise a ValueError for hooks, which would see other values in the new net, or be lost."""
    for inner, part in module.named_modules():
        inside = "parametrizations" in inner.split(".")  # those compute the weight
        hooks = {*part._forward_hooks.values(), *part._forward_pre_hooks.values()}
        if not inside and hooks - {check_two_axes}:
            where = ".".join(filter(None, (name, inner)))
            raise ValueError(
                f"net: {where!r} has hooks, which would not see the values that they see now; "
                "remove them first"
            )


def in_modes_of(old: nn.Module, new: nn.Module) -> nn.Module:
    """A new module whose parts keep their modes; those that the old one lacks have its own."""
    modes = {part: part.training for part in old.modules()}
    for part in new.modules():
        part.training = modes.get(part, old.training)
    return new


def same(one: Tensor, other: Tensor) -> bool:
    """True for equal tensors, and for two of one shape on the device meta, which has no values."""
    return one.shape == other.shape and (one.is_meta or torch.equal(one, other))


def effective(layer: nn.Module, name: str) -> Tensor:
    """A copy of a layer's effective weight; ValueError where it is not one and the same."""
    if not parametrize.is_parametrized(layer, "weight") and "weight" not in layer._parameters:
        raise ValueError(
            f"net: the weight of layer {name!r} is made by hooks, needs a parameter: remove them "
            "with torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove"
        )
    try:
        weight, again = (current_weight(layer).detach().clone() for _ in range(2))
    except ValueError as error:
        raise ValueError(f"net: layer {name!r}: {error}") from error
    if not same(weight, again):
        raise ValueError(
            f"net: the weight of layer {name!r} changes whenever it is read, as that of a spectral "
            "norm in train mode, or is not finite; call net.eval() first"
        )
    return weight
