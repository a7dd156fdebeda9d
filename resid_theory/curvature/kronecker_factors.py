r"""Kronecker-factored Fisher matrices (K-FAC) of linear and convolutional layers.

A layer :math:`z_r = W a_r + b` at R places r of a sample (tokens, pixels) has the gradient
:math:`\sum_r g_r a_r^T`. Its block of a Fisher matrix is approximated by :math:`G \otimes A`: the
second moment of the gradients g at its outputs, and that of its inputs a with a one for the bias.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import as_generator, check_choice, check_int
from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.curvature.fisher_graphs import MATRICES, SampledGraph
from resid_theory.curvature.kronecker_operator import KroneckerBlock, KroneckerOperator
from resid_theory.data import Batch
from resid_theory.eigen.products import probe_vectors
from resid_theory.losses import LossLike

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SHARING = ("expand", "reduce")
_EQUAL = 1e-8  # relative difference of gradients that are equal but for round-off


@dataclass(kw_only=True, eq=False)
class _FactoredLayer:
    """A layer that is covered, its sums, and what the last pass of the net left in it."""

    module: Any
    names: list[str]
    columns: list[int]
    calls: list[tuple[Tensor, Tensor]]
    A: Tensor = torch.zeros(())
    G: Tensor = torch.zeros(())

    @property
    def output(self) -> Tensor:
        """The output of the one call, with its graph."""
        ((_, output),) = self.calls
        return output

    def inputs(self) -> Tensor:
        """Inputs at every place, (samples, places, in + 1), of the parameters with rows."""
        module, ((given, _),) = self.module, self.calls
        places = given
        if not isinstance(module, nn.Linear):
            # A convolution with unit kernels cuts the patches out, padded as the layer pads.
            size = module.weight.numel() // len(module.weight)
            kernels = torch.eye(size).to(given).view(size, *module.weight.shape[1:])
            places = module._conv_forward(given, kernels, None).flatten(2).mT
        flat = places.reshape(len(given), -1, places.shape[-1])
        ones = torch.ones_like(flat[..., :1])
        parts = [ones if _is_bias(name) else flat for name in self.names]
        return torch.cat(parts, dim=2)

    def at_places(self, gradient: Tensor) -> Tensor:
        """Gradients at the outputs, (samples, places, out)."""
        if not isinstance(self.module, nn.Linear):
            gradient = gradient.flatten(2).mT
        return gradient.reshape(len(gradient), -1, gradient.shape[-1])


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"


@contextmanager
def _watched(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Inputs and outputs of layers in the pass inside."""
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}

    def watch(name: str, _: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        given = next(iter((*args, *kwargs.values())))
        calls[name].append((given.detach(), output))
        return output.clone()  # what follows may overwrite its input

    with ExitStack() as hooks:
        for name, module in modules.items():
            hook = partial(watch, name)
            hooks.enter_context(module.register_forward_hook(hook, with_kwargs=True))
        yield calls


def _cover(risk: EmpiricalRisk, batch: Batch) -> tuple[list[_FactoredLayer], dict[str, str]]:
    """Layers that have factors, and the reason for which a parameter is in none."""
    names = dict(zip(map(id, risk.parameters), risk.names, strict=True))
    modules: dict[str, nn.Module] = {
        name: module for name, module in risk.net.named_modules() if isinstance(module, _LAYERS)
    }
    reasons = {}
    for module in risk.net.modules():
        kind = type(module).__name__
        for parameter in module.parameters():  # the module that holds it comes last
            if id(parameter) in names:
                reasons[names[id(parameter)]] = f"{kind} is no linear or convolutional layer"
    seen = {}
    for count in (2, 3):
        with _watched(modules) as calls:
            graph = risk.graph(batch.cycled(count), 0, count)
            seen[count] = calls
    layers = []
    for name, module in modules.items():
        own = [p for p in module.parameters() if id(p) in names]
        if not own:
            continue
        layer = _FactoredLayer(
            module=module, calls=seen[3][name], names=[names[id(p)] for p in own],
            columns=[p.numel() // len(p) for p in own],
        )  # fmt: skip
        counts = [len(given) for calls in seen.values() for given, _ in calls[name]]
        why = _reason(layer, own, graph, counts)
        reasons |= dict.fromkeys(layer.names, why)
        if not why:
            layers.append(layer)
    return layers, {name: why for name, why in reasons.items() if why}


def _reason(
    layer: _FactoredLayer, own: Sequence[Tensor], graph: Any, samples: Sequence[int]
) -> str:
    """Reason for which a layer has no factors; empty if it has."""
    module, weight = layer.module, layer.module.weight
    if len(layer.calls) != 1:
        times = f"called {len(layer.calls)} times" if layer.calls else "not called"
        return f"its layer is {times} in a pass of the net, needs one call"
    if getattr(module, "groups", 1) > 1:
        return f"its convolution has {module.groups} groups"
    if list(samples) != [2, 3]:
        return "its layer's input has no axis of samples in front"
    for parameter, name in zip(own, layer.names, strict=True):
        made = module.bias if _is_bias(name) else weight
        if made.shape != parameter.shape or not _is_shift(made, parameter):
            return "its layer's weight is not a parameter plus a constant (parametrized)"
    # A parameter that is used beside its layer has more gradient than the layer's map gives it.
    probe = [probe_vectors(*t.shape).to(t) for t in graph.outputs]
    z, *found = torch.autograd.grad(
        graph.outputs, [layer.output, *own], probe, retain_graph=True, materialize_grads=True
    )
    joined = torch.einsum("mro,mri->oi", layer.at_places(z), layer.inputs())
    for part, right in zip(joined.split(layer.columns, dim=1), found, strict=True):
        gap = (part.reshape(right.shape) - right).norm()
        if gap > _EQUAL * right.norm():
            return "it is used beside its layer"
    return ""


def _is_shift(made: Tensor, parameter: Tensor) -> bool:
    """True if a weight moves as the parameter does."""
    if made is parameter:
        return True
    if not made.requires_grad:
        return False
    v = probe_vectors(*made.shape).to(made)
    (found,) = torch.autograd.grad(made, parameter, v, materialize_grads=True)
    return torch.equal(found, v)


def kfac(
    net: nn.Module,
    loss: LossLike,
    data: Any,
    *,
    matrix: str = "fisher",
    weight_sharing: str = "expand",
    parameters: Any = None,
    chunk: int = 64,
    generator: torch.Generator | int = 0,
    draws: int = 1,
) -> KroneckerOperator:
    """Approximate a Fisher matrix by a Kronecker product for each linear or convolutional layer.

    It equals the diagonal blocks where the gradients at a layer's outputs are the same for all
    samples, as in linear nets under the square loss, and for a single sample; with weight sharing,
    where each place has outputs of its own (``"expand"``) or all are averaged (``"reduce"``).

    Args:
        net: Any module, measured in eval mode and left as it was.
        loss: As `curvature_operator` takes it.
        data: As `curvature_operator` takes them; samples count by their weights in the loss.
        matrix: ``"fisher"``, which takes a backward pass for every class (output) of every
            prediction of a sample; ``"fisher_mc"``, one for every draw; or
            ``"empirical_fisher"``.
        weight_sharing: Of layers that a sample meets at several places, such as tokens or pixels:
            ``"expand"`` takes second moments at each place, ``"reduce"`` those of the inputs' mean
            and the gradients' sum over places. Inputs at places count by the weights of the labels
            there, if a layer has as many places as its sample has labels and the loss is one by
            name or of torch; else all places of a sample count alike.
        parameters: None for all that are trainable; names, patterns or parameters.
        chunk: Most samples that are differentiated together.
        generator: A seed, or a generator whose seed is taken, for ``"fisher_mc"``.
        draws: Targets that it draws for each prediction.

    Returns:
        The operator, with rows for the parameters that are covered. It lists the others, with the
        reason: no linear or convolutional layer, a layer that runs several times, groups, a weight
        that a parametrization makes out of its parameter other than by adding to it.

    Raises:
        ValueError: If no parameter is covered, or net, loss and data do not fit one another.

    Source:
        Martens & Grosse 2015, arXiv:1503.05671; Grosse & Martens 2016, arXiv:1602.01407, for
        convolutions; Eschenhagen et al. 2023, arXiv:2311.00636, for weight sharing; Bernacchia,
        Lengyel & Hennequin 2018 for linear nets, where it is exact.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)).double()
        >>> x, y = torch.eye(2).double(), torch.zeros(2, 1).double()
        >>> found = rt.curvature.kfac(net, "square", (x, y))
        >>> exact = rt.curvature_operator(net, "square", (x, y), matrix="fisher")
        >>> gap = found.block("0.*").dense() - exact.block("0.*").dense()
        >>> bool(gap.abs().max() < 1e-12), found.eigenvalues.size
        (True, 9)
    """
    kinds = [name for name, kind in MATRICES.items() if issubclass(kind, SampledGraph)]
    check_choice("matrix", matrix, kinds)
    check_choice("weight_sharing", weight_sharing, _SHARING)
    check_int("chunk", chunk)
    risk = EmpiricalRisk(
        net, loss, data, matrix=matrix, parameters=parameters,
        seed=as_generator(generator).initial_seed(), draws=check_int("draws", draws),
    )  # fmt: skip
    known = dict(zip(risk.names, risk.parameters, strict=True))
    own = risk.net
    try:
        risk = risk.widened()
    except Exception as error:
        with risk.measuring():
            next(risk.first_pass())  # an error of the net's own precision, if there is one
        raise ValueError(
            f"net: K-FAC needs it in float64, to which it cannot be copied ({error})"
        ) from error
    total, reduce = 0.0, weight_sharing == "reduce"
    with risk.measuring():
        batches = risk.first_pass()
        first = next(batches)
        layers, not_covered = _cover(risk, first)
        if not layers:
            reasons = "; ".join(f"{name}: {why}" for name, why in not_covered.items())
            raise ValueError(f"net: K-FAC covers no parameter of it: {reasons}")
        modules = {str(place): layer.module for place, layer in enumerate(layers)}
        for batch in chain([first], batches):
            for start in range(0, batch.size, chunk):
                with _watched(modules) as calls:
                    graph = risk.graph(batch, start, chunk)
                if graph.weight:
                    for layer, found in zip(layers, calls.values(), strict=True):
                        layer.calls = found
                    target = batch.part(start, chunk).target
                    total += _add(layers, graph, _label_shares(risk, graph, target), reduce)
    blocks = [
        KroneckerBlock(
            names=tuple(layer.names), columns=tuple(layer.columns), A=layer.A / total,
            G=layer.G / (1.0 if risk.sums else total),
        )
        for layer in layers
    ]  # fmt: skip
    return KroneckerOperator(blocks, known, own, title=risk.title, not_covered=not_covered)


def _label_shares(risk: EmpiricalRisk, graph: Any, target: Any) -> Tensor:
    """Weights of the labels in the loss, (samples, labels); of samples where labels have none."""
    shares = graph.weight * graph.shares.to(graph.value).unsqueeze(1)
    labels = risk.loss.label_weights(target)
    if labels is None:
        return shares
    labels = labels.to(shares)
    if not risk.sums:  # where a mean's shares are those of all labels of a sample
        labels = torch.where(shares > 0, labels / labels.sum(1, keepdim=True), 0.0)
    return shares * labels


def _add(layers: Sequence[_FactoredLayer], graph: Any, shares: Tensor, reduce: bool) -> float:
    """Add the moments of a chunk; return the sum of its labels' weights."""
    for layer in layers:
        a, of_sample = layer.inputs(), shares.sum(1, keepdim=True)
        each = of_sample.expand(a.shape[:2]) / a.shape[1]
        places = shares if shares.shape == each.shape else each
        if reduce:
            mean = torch.where(of_sample > 0, places / of_sample, 0.0)
            a, places = torch.einsum("mr,mri->mi", mean, a).unsqueeze(1), of_sample
        layer.A = layer.A + torch.einsum("mr,mri,mrj->ij", places, a, a)
    at = [layer.output for layer in layers]
    for root in graph.roots():
        gradients = torch.autograd.grad(
            graph.outputs, at, root, retain_graph=True, materialize_grads=True
        )
        for layer, gradient in zip(layers, gradients, strict=True):
            g = layer.at_places(gradient)
            g = g.sum(1) if reduce else g.flatten(0, 1)
            layer.G = layer.G + graph.weight * (g.mT @ g)
    return float(shares.sum())
