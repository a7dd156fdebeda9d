"""Folding of BatchNorm and parametrizations into convolutions."""

import copy
from collections.abc import Iterator, Mapping

from torch import nn
from torch.nn.utils import parametrize

from resid_theory.equivalence.layer_copies import LINEAR_MAPS, BatchNorm, effective, folded, rebuilt
from resid_theory.networks import Block

__all__ = ["fold", "fold_part"]


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
    new = fold_part(copy.deepcopy(net), "")
    record = getattr(net, "architecture", None)
    if isinstance(record, Mapping):
        then = [*record.get("then", ()), "fold"]
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
            yield name, folded(part, prefix + name, follower, prefix + parts[position][0])
            position += 1
        elif isinstance(follower, BatchNorm):
            raise ValueError(
                f"net: {prefix + parts[position][0]!r} follows {prefix + name!r}, a "
                f"{type(part).__name__}; only a BatchNorm directly behind a convolution or "
                "nn.Linear folds"
            )
        else:
            yield name, fold_part(part, prefix + name)
