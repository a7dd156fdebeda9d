"""Parts of a layer's weight: its identity, the rest, and what the optimizer sees of it."""

import contextlib

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from resid_theory.identity.identity_kernel import RULES, checked_layer, identity_of
from resid_theory.identity.parametrizations import ResidualWeight
from resid_theory.runtime.preserve import evaluated


def layer_identity(layer: nn.Module) -> ResidualWeight | None:
    """The identity inside the weight of a layer, wherever it stands among its parametrizations.

    Args:
        layer: Any module.

    Returns:
        The parametrization, or None where the weight has no identity.

    Raises:
        ValueError: If the weight has two.
    """
    found = [part for part in parametrizations_of(layer) if isinstance(part, ResidualWeight)]
    if len(found) > 1:
        raise ValueError(
            f"layer: got a weight with {' and '.join(type(part).__name__ for part in found)}, "
            "needs one identity"
        )
    return found[0] if found else None


def check_identities(net: nn.Module) -> None:
    """Refuse a net with two identities in a weight, by the name of its module."""
    for name, module in net.named_modules():
        try:
            layer_identity(module)
        except ValueError as error:
            raise ValueError(f"net: layer {name!r}{str(error).removeprefix('layer')}") from error


def parametrizations_of(layer: nn.Module) -> list[nn.Module]:
    """The parametrizations of a layer's weight, from what is trained to the weight.

    Args:
        layer: Any module.

    Returns:
        Modules; none for an ordinary weight.
    """
    if not parametrize.is_parametrized(layer, "weight"):
        return []
    return list(layer.get_submodule("parametrizations.weight").children())


def id_rule(layer: nn.Module) -> str | None:
    """The rule of a layer's identity: the one that :func:`mark` recorded, or that of its weight.

    Args:
        layer: Any module.

    Returns:
        A name of :data:`RULES`; None where the net's design has no identity.
    """
    rule: str | None = layer.__dict__.get("id_rule")
    inside = None if rule else layer_identity(layer)
    if inside is None or inside.identity.is_meta:
        return rule
    for rule in RULES:
        with contextlib.suppress(ValueError):  # this rule has no kernel of that shape
            if torch.equal(identity_of(layer, rule), inside.identity):
                return rule
    return None


def identity_removed(layer: nn.Module) -> Tensor:
    """R := W - a I, a layer's weight with the identity removed.

    Where other parametrizations follow the identity, R and a I are what they make of both. They may
    scale filters and set entries to zero, as spectral and weight norm and pruning do. All are read
    as they are in eval mode.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d``, ``2d``, ``3d``, with or without an identity inside.

    Returns:
        Shape of the weight; W itself for a plain layer.

    Raises:
        ValueError: If the layer is of another type, or what follows the identity in its weight
            mixes entries, as an orthogonal map does.

    Source:
        Yu & Tomasi, arXiv:1905.10944, Figure 3: "with 1 removed from the ID entries".
    """
    return weight_and_rest(layer)[1]


@torch.no_grad()
def weight_and_rest(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """A layer's weight W as it is in eval mode and, of the same reading, W - a I.

    Args:
        layer: As for :func:`identity_removed`.

    Returns:
        W and R.

    Raises:
        ValueError: As :func:`identity_removed`.
    """
    inside, parts = layer_identity(checked_layer(layer)), parametrizations_of(layer)
    if inside is None:
        return current_weight(layer), current_weight(layer)
    seen: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        hook = inside.register_forward_hook(lambda _, given, made: seen.extend((*given, made)))
        stack.enter_context(hook)
        for part in parts:  # reading a spectral norm in train mode changes it
            stack.enter_context(evaluated(part))
        weight = current_weight(layer)
    removed = inside.branch(seen[0])
    return weight, removed if inside is parts[-1] else removed * _factors(parts, seen[1], weight)


def current_weight(layer: nn.Module) -> Tensor:
    """The weight of a layer, computed by its parametrizations in their mode.

    Args:
        layer: A module with a weight.

    Returns:
        The weight.

    Raises:
        ValueError: If they cannot be computed in their order.
    """
    try:
        weight = layer.weight
    except TypeError as error:
        raise ValueError(
            f"layer: its weight, made by {_named(parametrizations_of(layer))}, cannot be computed: "
            f"{error}; weight norm and orthogonal maps of torch must be the first parametrization"
        ) from error
    assert isinstance(weight, Tensor)
    return weight


def _factors(parts: list[nn.Module], inner: Tensor, weight: Tensor) -> Tensor:
    """Factors of entries in the parametrizations after the identity: one a filter, or zero."""
    rows, made = inner.flatten(1), weight.flatten(1)
    largest = torch.where(made == 0, 0, rows.abs()).argmax(1, keepdim=True)
    pivot = rows.gather(1, largest)
    scale = made.gather(1, largest) / torch.where(pivot == 0, 1, pivot)
    factors = torch.where((made == 0) & (rows != 0), 0, scale)
    # Norm, division and product round a few times each, in every parametrization that follows.
    bound = 32 * torch.finfo(made.dtype).eps * made.abs()
    if not bool(((factors * rows - made).abs() <= bound).all()):
        raise ValueError(
            f"layer: its weight is made by {_named(parts)}; what follows the identity mixes "
            "entries, needs parametrizations that scale filters or set entries to zero"
        )
    return factors.view_as(weight)


def trained_weight(layer: nn.Module, name: str = "") -> nn.Parameter:
    """The tensor that the optimizer sees: V, or the weight of a plain layer.

    Args:
        layer: A layer whose weight is a parameter, or an identity and a parameter.
        name: Its name in a net, for errors.

    Returns:
        The parameter.

    Raises:
        ValueError: If anything else has a part in the weight: the ID entries of what is trained
            are then not those of the weight.
    """
    parts = parametrizations_of(layer)
    holder, tensor = layer, "weight"
    if len(parts) == 1 and isinstance(parts[0], ResidualWeight):
        holder, tensor = layer.get_submodule("parametrizations.weight"), "original"
    parameter = holder._parameters.get(tensor)
    if parameter is None:
        given = ["hooks"] if holder is not layer or not parts else []
        made = ", then ".join([*given, _named(parts)] if parts else given)
        where = f"net: the weight of layer {name!r}" if name else "layer: its weight"
        raise ValueError(
            f"{where} is made by {made}; needs a parameter, or an identity and nothing else: "
            "to_plain makes one of it, parametrizations that follow the weight can be added later"
        )
    return parameter


def _named(parts: list[nn.Module]) -> str:
    return ", then ".join(type(part).__name__ for part in parts)
