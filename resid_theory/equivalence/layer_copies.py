"""Layers built anew with given weights, and why some cannot be."""

from torch import Tensor, nn
from torch.nn.utils import parametrize

from resid_theory.identity import id_rule, layer_identity, mark

__all__ = ["LINEAR_MAPS", "effective", "folded", "rebuilt"]

LINEAR_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

BatchNorm = nn.modules.batchnorm._BatchNorm


def effective(layer: nn.Module, name: str) -> Tensor:
    """A layer's effective weight, without a graph.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d``, ``2d``, ``3d``, with or without an identity inside.
        name: The layer's name, for messages.

    Returns:
        A copy of W.

    Raises:
        ValueError: If the layer is a subclass, or has other parametrizations.
    """
    kind = parametrize.type_before_parametrizations(layer)
    if kind not in LINEAR_MAPS:
        raise ValueError(
            f"net: layer {name!r} is a {kind.__name__}; needs nn.Linear or nn.Conv1d, 2d, 3d "
            "itself, because a subclass may compute something else"
        )
    if parametrize.is_parametrized(layer) and layer_identity(layer) is None:
        raise ValueError(
            f"net: layer {name!r} has parametrizations other than one identity on its weight; "
            "remove them first with torch.nn.utils.parametrize.remove_parametrizations"
        )
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().clone()


def rebuilt(
    layer: nn.Module, weight: Tensor, bias: Tensor | None, *, groups: int | None = None
) -> nn.Module:
    """A new ordinary layer like another, with these weights; nothing is drawn.

    ``parametrize.remove_parametrizations`` on a copy would break the original, whose class the copy
    shares.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d``, ``2d``, ``3d``.
        weight: Of the new layer; its channels may differ from the old.
        bias: Of the new layer, or None.
        groups: Of the new layer, the old one's by default.

    Returns:
        The layer, in the mode of the old one, trainable if the old one was.
    """
    kind = parametrize.type_before_parametrizations(layer)
    outputs, inputs = weight.shape[:2]
    if kind is nn.Linear:
        new: nn.Module = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    else:
        same = {k: getattr(layer, k) for k in ("stride", "padding", "dilation", "padding_mode")}
        groups = getattr(layer, "groups", 1) if groups is None else groups
        new = kind(
            inputs * groups, outputs, tuple(weight.shape[2:]), **same, groups=groups,
            bias=bias is not None, device="meta",
        )  # fmt: skip
    trainable = any(p.requires_grad for p in layer.parameters())
    new.weight = nn.Parameter(weight.detach().clone(), requires_grad=trainable)
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().clone(), requires_grad=trainable)
    rule = id_rule(layer)
    if rule is not None:
        mark(new, rule)
    return new.train(layer.training)


def folded(layer: nn.Module, name: str, norm: BatchNorm, norm_name: str) -> nn.Module:
    r"""A layer and the BatchNorm behind it, as one layer.

    .. math:: W' = \mathrm{diag}(s) \hat W, \quad b' = \beta + s (b - \mu), \quad
        s = \gamma / \sqrt{v + \epsilon}

    Args:
        layer: The layer, with or without an identity inside.
        name: Its name, for messages.
        norm: BatchNorm in eval mode.
        norm_name: Its name, for messages.

    Returns:
        A new layer with bias; the arithmetic is in float64, the result in the layer's dtype.

    Raises:
        ValueError: If the BatchNorm uses batch statistics, or as for :func:`effective`.

    Source:
        Zagoruyko & Komodakis, arXiv:1706.00388v2, section 2.
    """
    if norm.training or norm.running_mean is None or norm.running_var is None:
        advice = "call net.eval() first" if norm.running_mean is not None else "it keeps no others"
        raise ValueError(f"net: {norm_name!r} uses the statistics of each batch; {advice}")
    weight = effective(layer, name)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double()
    if isinstance(layer.bias, Tensor):
        shift = shift + layer.bias.detach().double()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    bias = shift * scale
    if norm.bias is not None:
        bias = bias + norm.bias.detach().double()
    rows = scale.view(-1, *[1] * (weight.dim() - 1))
    new = rebuilt(layer, (rows * weight.double()).to(weight), bias.to(weight))
    return new
