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
    in_modes_of,
)
from resid_theory.equivalence.tracing import traced
from resid_theory.networks import Block

_OWN = (
    "rt.absorb(net) makes one of a layer of your own that adds an identity; of others, make the "
    "weight by torch.nn.utils.parametrize"
)
BatchNorm = nn.modules.batchnorm._BatchNorm
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNorm)


def fold(net: nn.Module) -> nn.Module:
    """Fold identities, norms and BatchNorm into the kernels: a chain of convolutions and ReLUs.

    Every BatchNorm directly behind a convolution or ``nn.Linear`` becomes part of it, and every
    parametrized weight, Dirac, residual or another, an ordinary one. Layers keep their names;
    BatchNorms are no longer in the sequence. Blocks with a shortcut are folded inside and remain
    blocks, modules with a forward of their own remain of their class, with ``nn.Identity`` where
    BatchNorms were. :func:`conversion` says what was folded and what not.

    Args:
        net: A net in eval mode, such as a ResNet. A forward of its own is read by ``torch.fx``, as
            it runs in this mode with the defaults of its arguments.

    Returns:
        A new net; the original is not changed. Its record of how it was built
        (``net.architecture``) gets ``"then": ["fold"]``, so that checkpoints of folded nets load.
        A layer used twice remains one, unless the BatchNorms behind it differ.

    Raises:
        ValueError: If a BatchNorm is in train mode or keeps no statistics, if one is not directly
            behind a linear layer (as in pre-activation nets), if either has a forward of its own or
            hooks, if a module with BatchNorm cannot be traced, or a weight is made by hooks or
            changes whenever it is read.

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
        new, "no BatchNorm is directly behind a linear layer, and no weight is parametrized"
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
            if name in self.left:
                return module
            raise ValueError(
                f"net: {name!r} is a BatchNorm without a convolution or nn.Linear directly in "
                f"front whose output it alone reads; no other one folds ({_OWN})"
            )
        if isinstance(module, LINEAR_MAPS):
            return self._layer(module, name)
        in_order = type(module) is nn.Sequential
        if not in_order and not isinstance(module, Block):
            self._own_forward(module, name)
        # Not named_children(), which omits the second use of a module.
        parts = [(key, part) for key, part in module._modules.items() if part is not None]
        for (key, part), (behind, norm) in zip(parts, [*parts[1:], ("", None)], strict=False):
            where, after = (f"{name}.{word}".lstrip(".") for word in (key, behind))
            ours = in_order and isinstance(part, LINEAR_MAPS) and after not in self.left
            if ours and isinstance(norm, BatchNorm):
                new = self._layer(part, where, norm, after)
                module._modules[key] = new
                del module._modules[behind]
            elif key in module._modules:
                module._modules[key] = self.part(part, where)
        return module

    def _own_forward(self, module: nn.Module, name: str) -> None:
        """Fold each BatchNorm in a module by its graph; an identity takes its place."""
        names = {part: f"{name}.{key}".strip(".") for key, part in module.named_modules()}
        norms = [part for part in names if isinstance(part, BatchNorm)]
        if all(names[norm] in self.left for norm in norms):
            return
        try:
            graph = traced(module)
        except Exception as error:  # whatever the user's forward raises
            words = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise ValueError(
                f"net: {repr(name) if name else 'it'} is a {type(module).__name__} with "
                f"{names[norms[0]]!r} inside and a forward that torch.fx cannot trace: {words}; "
                "needs one that it can, or modules inside that are folded one by one"
            ) from error
        calls: dict[nn.Module, list[fx.Node]] = {}
        read = set[nn.Module]()  # whose tensors a forward takes
        for node in graph.graph.nodes:
            if node.op == "call_module":
                calls.setdefault(graph.get_submodule(node.target), []).append(node)
            elif node.op == "get_attr":
                read.add(graph.get_submodule(node.target.rpartition(".")[0]))
        for norm in norms:
            if norm not in calls:
                self.left[names[norm]] = "is not called in this mode"
                continue
            fronts = [node.all_input_nodes[0] for node in calls[norm]]
            layer = next((part for part, nodes in calls.items() if nodes == fronts), None)
            alone = all(len(front.users) == 1 for front in fronts)
            if not isinstance(layer, LINEAR_MAPS) or not alone or read & {norm, *layer.modules()}:
                self.part(norm, names[norm])  # refuses it
            assert layer is not None
            new = self._layer(layer, names[layer], norm, names[norm])
            places = {layer: new, norm: in_modes_of(norm, nn.Identity())}
            for part in names:
                part._modules.update({key: places[old] for key, old in part._modules.items()
                                      if old in places})  # fmt: skip

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
    for part, place, bases in ((norm, norm_name, _NORMS), (layer, name, LINEAR_MAPS)):
        kind = parametrize.type_before_parametrizations(part)
        base = next(each for each in bases if isinstance(part, each))
        own = [word for word in ("forward", "_conv_forward")
               if getattr(kind, word, None) is not getattr(base, word, None)]  # fmt: skip
        if own or "forward" in part.__dict__:
            raise ValueError(
                f"net: {place!r}, to be folded, is a {kind.__name__}, which has a forward of its "
                f"own, needs that of nn.{base.__name__} ({_OWN})"
            )
    if norm.training or norm.running_mean is None or norm.running_var is None:
        advice = "call net.eval() first" if norm.running_mean is not None else "it has no others"
        raise ValueError(f"net: {norm_name!r} uses the statistics of each batch; {advice}")
    weight = effective(layer, name)
    if weight.is_meta:  # for arithmetic there torch imports its compiler, for seconds
        return weight, weight.new_empty(len(weight))
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
