"""New layers with given weights, and BatchNorm and parametrizations folded into convolutions."""

import copy
from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.nn.utils import parametrize

from resid_theory.identity import id_rule, layer_identity, mark
from resid_theory.networks import Block

__all__ = ["LINEAR_MAPS", "effective", "fold", "fold_part", "rebuilt", "recorded_conversion"]

LINEAR_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

BatchNorm = nn.modules.batchnorm._BatchNorm


def fold(net: nn.Module) -> nn.Module:
    """Fold identities, norms and BatchNorm into the kernels: a chain of convolutions and ReLUs.

    Every BatchNorm directly behind a convolution or ``nn.Linear`` becomes part of it, and every
    Dirac or residual weight an ordinary one. Layers keep their names; BatchNorms are no longer in
    the sequence. Blocks with a shortcut are folded inside and remain blocks.

    Args:
        net: A net in eval mode: ``nn.Sequential``, nested or with :class:`networks.Block`, of
            any layers.

    Returns:
        A new net; the original is not changed. Its record of how it was built
        (``net.architecture``) gets ``"then": ["fold"]``, so that checkpoints of folded nets load.

    Raises:
        ValueError: If a BatchNorm is in train mode or keeps no statistics, if one is not directly
            behind a linear layer (as in pre-activation nets), or a weight has another
            parametrization.

    Source:
        Zagoruyko & Komodakis, arXiv:1706.00388v2, section 2.

    Example:
        >>> net = rt.diracnet(10).eval()
        >>> sorted({type(layer).__name__ for layer in fold(net)})
        ['AdaptiveAvgPool2d', 'Conv2d', 'Flatten', 'Linear', 'MaxPool2d', 'ReLU']
    """
    if not isinstance(net, nn.Module):
        raise ValueError(f"net: got {type(net).__name__}, needs an nn.Module")
    return recorded_conversion(net, fold_part(copy.deepcopy(net), ""), "fold")


def recorded_conversion(net: nn.Module, new: nn.Module, name: str) -> nn.Module:
    """The new net, whose record says that it is the conversion of this name of the other."""
    record = getattr(net, "architecture", None)
    if isinstance(record, Mapping):
        then = [*record.get("then", ()), name]
        new.architecture = {**record, "then": then}  # type: ignore[assignment]
    return new


def fold_part(module: nn.Module, name: str) -> nn.Module:
    """Fold a module, which must be a copy: a Block in it is changed in place."""
    if isinstance(module, BatchNorm):
        raise ValueError(
            f"net: {name!r} is a BatchNorm without a layer in front, needs a convolution"
        )
    if isinstance(module, LINEAR_MAPS):
        if not parametrize.is_parametrized(module):
            return module
        return rebuilt(module, effective(module, name), module.bias)
    if type(module) is nn.Sequential:
        new = nn.Sequential()
        for key, part in _pairs(module, f"{name}." if name else ""):
            new.add_module(key, part)
        return new.train(module.training)
    if isinstance(module, Block):
        for key, part in module.named_children():
            setattr(module, key, fold_part(part, f"{name}.{key}"))
        return module
    for inner, part in module.named_modules():
        if isinstance(part, BatchNorm) or parametrize.is_parametrized(part):
            raise ValueError(
                f"net: {name or 'it'!r} is a {type(module).__name__} with {inner!r} inside; the "
                "order of its layers is unknown, needs nn.Sequential or networks.Block"
            )
    return module


def _pairs(net: nn.Sequential, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Fold the parts of a sequence, each layer together with the BatchNorm behind it."""
    # Not named_children(), which omits the second use of a module.
    parts = [(name, part) for name, part in net._modules.items() if part is not None]
    position = 0
    while position < len(parts):
        name, part = parts[position]
        position += 1
        follower = parts[position][1] if position < len(parts) else None
        if isinstance(part, LINEAR_MAPS) and isinstance(follower, BatchNorm):
            yield name, _folded(part, prefix + name, follower, prefix + parts[position][0])
            position += 1
        elif isinstance(follower, BatchNorm):
            raise ValueError(
                f"net: {prefix + parts[position][0]!r} follows {prefix + name!r}, a "
                f"{type(part).__name__}; only a BatchNorm directly behind a convolution or "
                "nn.Linear folds"
            )
        else:
            yield name, fold_part(part, prefix + name)


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


def _folded(layer: nn.Module, name: str, norm: BatchNorm, norm_name: str) -> nn.Module:
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
