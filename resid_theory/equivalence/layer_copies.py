"""New layers with given weights, and the BatchNorm behind a layer folded into it."""

from torch import Tensor, nn
from torch.nn.utils import parametrize

from resid_theory.identity import id_rule, layer_identity, mark

__all__ = ["LINEAR_MAPS", "effective", "folded", "rebuilt"]

LINEAR_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

BatchNorm = nn.modules.batchnorm._BatchNorm


def effective(layer: nn.Module, name: str) -> Tensor:
    """A copy of a layer's effective weight; ValueError for subclasses, other parametrizations."""
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


def rebuilt(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A new ordinary layer like another, with these weights; the channels may differ."""
    # Not remove_parametrizations on a copy: it would break the original, whose class is the same.
    kind = parametrize.type_before_parametrizations(layer)
    outputs, inputs = weight.shape[:2]
    if kind is nn.Linear:
        new: nn.Module = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    else:
        same = {k: getattr(layer, k) for k in ("stride", "padding", "dilation", "padding_mode")}
        groups = getattr(layer, "groups", 1)
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
    """W' = diag(s) W and b' = beta + s (b - mu) with s = gamma / sqrt(v + eps), in float64."""
    if norm.training or norm.running_mean is None or norm.running_var is None:
        advice = "call net.eval() first" if norm.running_mean is not None else "it has no others"
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
    return rebuilt(layer, (rows * weight.double()).to(weight), bias.to(weight))
