"""BatchNorm, identities and other parametrizations, folded into the weights of linear layers."""

from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from resid_theory.equivalence.conversion import (
    LINEAR_MAPS,
    Converter,
    bias_of,
    check_no_hooks,
    check_two_axes,
    described,
    effective,
)
from resid_theory.networks import Block

_OWN = (
    "rt.absorb(net) makes one of a layer of your own that adds an identity; of others, make the "
    "weight by torch.nn.utils.parametrize"
)
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
    folding = _Folding(net, "fold")
    new = folding.part(folding.net, "")
    folding.leave(new, "has an ordinary weight and no BatchNorm behind it")
    return folding.finished(
        new, "no BatchNorm is behind a linear layer in nn.Sequential, and no weight is parametrized"
    )


class _Folding(Converter):
    """One conversion that folds."""

    unties = True

    def __init__(self, net: nn.Module, call: str) -> None:
        super().__init__(net, call)
        self._folded: dict[tuple[nn.Module, nn.Module | None], nn.Module] = {}

    def part(self, module: nn.Module, name: str) -> nn.Module:
        """The folded module in a module's place; sequences and blocks are changed in place."""
        if isinstance(module, BatchNorm):
            raise ValueError(
                f"net: {name!r} is a BatchNorm without a convolution or nn.Linear directly in "
                f"front; only one behind them folds ({_OWN})"
            )
        if isinstance(module, LINEAR_MAPS):
            return self._layer(module, name)
        in_order = type(module) is nn.Sequential
        inside = [key for key, part in module.named_modules() if isinstance(part, BatchNorm)]
        if inside and not in_order and not isinstance(module, Block):
            graph = "; fold first: rt.absorb(rt.fold(net))" * isinstance(module, fx.GraphModule)
            raise ValueError(
                f"net: {repr(name) if name else 'it'} is a {type(module).__name__} with "
                f"{inside[0]!r} inside; "
                f"the order of its layers is unknown, needs nn.Sequential or networks.Block{graph}"
            )
        # Not named_children(), which omits the second use of a module.
        parts = [(key, part) for key, part in module._modules.items() if part is not None]
        for (key, part), (behind, norm) in zip(parts, [*parts[1:], ("", None)], strict=False):
            where = f"{name}.{key}" if name else key
            if in_order and isinstance(part, LINEAR_MAPS) and isinstance(norm, BatchNorm):
                new = self._layer(part, where, norm, f"{name}.{behind}" if name else behind)
                module._modules[key] = new
                del module._modules[behind]
            elif key in module._modules:
                module._modules[key] = self.part(part, where)
        return module

    def _layer(
        self, layer: nn.Module, name: str, norm: BatchNorm | None = None, norm_name: str = ""
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
                new = self.rebuilt(layer, name, weight, bias, [*norm.parameters()])
                if isinstance(layer, nn.Linear):
                    new.register_forward_pre_hook(check_two_axes)
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
            f"which has a forward of its own, needs that of nn.{base.__name__} "
            f"({_OWN})"
        )
    weight = effective(layer, name)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double()
    if (bias := bias_of(layer)) is not None:
        shift = shift + bias.double()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = shift * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    rows = scale.view(-1, *[1] * (weight.dim() - 1))
    return (rows * weight.double()).to(weight), bias.to(weight)
