"""BatchNorm, identities and other parametrizations, folded into the weights of linear layers."""

from torch import Tensor, nn
from torch.nn.utils import parametrize

from resid_theory.equivalence.conversion import (
    LINEAR_MAPS,
    Converter,
    bias_of,
    check_no_hooks,
    described,
    effective,
)
from resid_theory.networks import Block

__all__ = ["Folding", "fold"]

BatchNorm = nn.modules.batchnorm._BatchNorm


def fold(net: nn.Module) -> nn.Module:
    """Fold identities, norms and BatchNorm into the kernels: a chain of convolutions and ReLUs.

    Every BatchNorm directly behind a convolution or ``nn.Linear`` becomes part of it, and every
    parametrized weight, Dirac, residual or another, an ordinary one. Layers keep their names;
    BatchNorms are no longer in the sequence. Blocks with a shortcut are folded inside and remain
    blocks. :func:`conversion` says what was folded and what not.

    Args:
        net: A net in eval mode: ``nn.Sequential``, nested or with :class:`networks.Block`, of
            any layers. In other modules weights are folded, BatchNorm is refused.

    Returns:
        A new net; the original is not changed. Its record of how it was built
        (``net.architecture``) gets ``"then": ["fold"]``, so that checkpoints of folded nets load.
        A layer used twice remains one, unless the BatchNorms behind it differ.

    Raises:
        ValueError: If a BatchNorm is in train mode or keeps no statistics, if one is not directly
            behind a linear layer (as in pre-activation nets) or that has a forward of its own or
            hooks, or a weight is made by hooks or changes whenever it is read.

    Source:
        Zagoruyko & Komodakis, arXiv:1706.00388v2, section 2.

    Example:
        >>> net = rt.diracnet(10).eval()
        >>> sorted({type(layer).__name__ for layer in fold(net)})
        ['AdaptiveAvgPool2d', 'Conv2d', 'Flatten', 'Linear', 'MaxPool2d', 'ReLU']
    """
    folding = Folding(net, "fold")
    folding.unties = True
    new = folding.part(folding.net, "")
    folding.leave(new, "has an ordinary weight and no BatchNorm behind it")
    return folding.finished(
        new, "no BatchNorm is behind a linear layer in nn.Sequential, and no weight is parametrized"
    )


class Folding(Converter):
    """One conversion that folds; see :class:`Converter`."""

    def __init__(self, net: nn.Module, call: str) -> None:
        super().__init__(net, call)
        self._folded: dict[tuple[nn.Module, nn.Module | None], nn.Module] = {}

    def part(self, module: nn.Module, name: str) -> nn.Module:
        """A folded module of the copy; sequences and blocks are changed in place.

        Args:
            module: The module.
            name: Its name in the net.

        Returns:
            The module that takes its place.

        Raises:
            ValueError: As :func:`fold`.
        """
        if isinstance(module, BatchNorm):
            raise ValueError(
                f"net: {name!r} is a BatchNorm without a layer in front, needs a convolution"
            )
        if isinstance(module, LINEAR_MAPS):
            return self._layer(module, name, None, "")
        prefix = f"{name}." if name else ""
        if type(module) is nn.Sequential:
            self._sequence(module, prefix)
            return module
        inside = [key for key, part in module.named_modules() if isinstance(part, BatchNorm)]
        if inside and not isinstance(module, Block):
            raise ValueError(
                f"net: {name or 'it'!r} is a {type(module).__name__} with {inside[0]!r} inside; "
                "the order of its layers is unknown, needs nn.Sequential or networks.Block"
            )
        for key, child in list(module._modules.items()):
            if child is not None:
                module._modules[key] = self.part(child, prefix + key)
        return module

    def _sequence(self, net: nn.Sequential, prefix: str) -> None:
        """Fold the parts of a sequence, each layer together with the BatchNorm behind it."""
        # Not named_children(), which omits the second use of a module.
        parts = [(name, part) for name, part in net._modules.items() if part is not None]
        position = 0
        while position < len(parts):
            name, part = parts[position]
            position += 1
            behind, follower = parts[position] if position < len(parts) else ("", None)
            if not isinstance(follower, BatchNorm):
                net._modules[name] = self.part(part, prefix + name)
                continue
            if not isinstance(part, LINEAR_MAPS):
                raise ValueError(
                    f"net: {prefix + behind!r} follows {prefix + name!r}, a "
                    f"{type(part).__name__}; only a BatchNorm directly behind a convolution or "
                    "nn.Linear folds"
                )
            net._modules[name] = self._layer(part, prefix + name, follower, prefix + behind)
            del net._modules[behind]
            position += 1

    def _layer(
        self, layer: nn.Module, name: str, norm: BatchNorm | None, norm_name: str
    ) -> nn.Module:
        if norm is None and not parametrize.is_parametrized(layer, "weight"):
            return layer
        if (layer, norm) not in self._folded:
            words = described(layer) + (f", {type(norm).__name__}" if norm is not None else "")
            kind = parametrize.type_before_parametrizations(layer).__name__
            self.converted[name] = words, kind
            if norm is None:
                new = self.rebuilt(layer, name, effective(layer, name), bias_of(layer))
            else:
                weight, bias = _with_norm(layer, name, norm, norm_name)
                check_no_hooks(layer, name)
                check_no_hooks(norm, norm_name)
                new = self.rebuilt(layer, name, weight, bias, norm.parameters())
            self._folded[layer, norm] = new
        return self._folded[layer, norm]


def _with_norm(
    layer: nn.Module, name: str, norm: BatchNorm, norm_name: str
) -> tuple[Tensor, Tensor]:
    """W' = diag(s) W and b' = beta + s (b - mu) with s = gamma / sqrt(v + eps), in float64."""
    if norm.training or norm.running_mean is None or norm.running_var is None:
        advice = "call net.eval() first" if norm.running_mean is not None else "it has no others"
        raise ValueError(f"net: {norm_name!r} uses the statistics of each batch; {advice}")
    kind = parametrize.type_before_parametrizations(layer)
    base = next(each for each in LINEAR_MAPS if isinstance(layer, each))
    own = [word for word in ("forward", "_conv_forward")
           if getattr(kind, word, None) is not getattr(base, word, None)]  # fmt: skip
    if own or "forward" in layer.__dict__:
        raise ValueError(
            f"net: layer {name!r} in front of the BatchNorm {norm_name!r} is a {kind.__name__}, "
            f"which has a forward of its own, needs that of nn.{base.__name__}"
        )
    weight = effective(layer, name)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double()
    bias = bias_of(layer)
    if bias is not None:
        shift = shift + bias.detach().double()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    bias = shift * scale
    if norm.bias is not None:
        bias = bias + norm.bias.detach().double()
    rows = scale.view(-1, *[1] * (weight.dim() - 1))
    return (rows * weight.double()).to(weight), bias.to(weight)
