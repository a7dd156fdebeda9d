r"""Hessians of nets whose weights multiply one vector of each sample, from pairs of layers.

For a sample let :math:`a_k` be what the weight of layer k multiplies, :math:`z_k = W_k a_k`,
:math:`\delta_k` the gradient at z_k, and :math:`Q_{k'k} = \partial \delta_{k'} / \partial z_k`.
Entry (i, j) of layer k' against entry (p, q) of an earlier layer k is the sum over samples of

.. math:: a_{k'}[j]\, Q_{k'k}[i, p]\, a_k[q]
    + \delta_{k'}[i]\, \frac{\partial a_{k'}[j]}{\partial z_k[p]}\, a_k[q].

So there is a backward pass for each output and input of a layer, and two matrix products over the
samples for each pair of layers, instead of one Hessian-vector product for each weight.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.curvature.forward_checks import check_twice
from resid_theory.curvature.loss_graph import LossGraph, WeightUse
from resid_theory.curvature.matvec_graphs import LossItself
from resid_theory.curvature.zero_pass import loss_graph
from resid_theory.data import Batch
from resid_theory.eigen.products import probe_vectors
from resid_theory.runtime.resources import is_out_of_memory

_WORKSPACE = 1 << 29  # bytes of responses held at a time
_EQUAL = 1e-8  # relative difference of products that are equal but for round-off


class NotPaired(Exception):
    """The Hessian has parts that pairs of layers do not."""


class _Places:
    """Places of a weight or a bias, (N, K), in the vector of all parameters."""

    def __init__(self, places: Tensor) -> None:
        self.shape, self.flat = places.shape, places.flatten()
        first = int(self.flat[0])
        span = torch.arange(first, first + len(self.flat)).to(self.flat)
        self.span = slice(first, first + len(span)) if torch.equal(self.flat, span) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Layer:
    use: WeightUse
    input: Tensor  # with a column of ones for a bias, (m, K)
    places: list[_Places]  # of weight and bias


def _layers(risk: EmpiricalRisk, graph: LossGraph, samples: int) -> list[_Layer]:
    """The products of weights in a graph; none if they leave out a parameter."""
    sizes = [p.numel() for p in risk.parameters]
    starts = dict(zip(risk.names, accumulate(sizes, initial=0), strict=False))
    known, layers = dict(zip(risk.names, risk.parameters, strict=True)), []
    for use in graph.uses:
        if use.rows_shape[:2] != (1, samples) or use.entries is None:
            return []
        (x,), places = use.input.detach(), [_Places(starts[use.name] + use.entries.mT)]
        if use.bias in known:
            if (own := use.bias_entries) is None:
                return []
            x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
            places.append(_Places(starts[use.bias] + own.mT))
        layers.append(_Layer(use=use, input=x, places=places))
    every = [place.flat for layer in layers for place in layer.places]
    return layers if every and len(torch.cat(every).unique()) == sum(sizes) else []


def layer_sizes(risk: EmpiricalRisk, batch: Batch) -> list[tuple[int, int]]:
    """Outputs and inputs (K) of every layer; none where a parameter is in no pair of layers."""
    if not risk.splits or risk.reads_parameters or risk.found.weighting.reads_shared:
        return []
    risk, few = copy.copy(risk), batch.part(0, 3)
    risk.take_graphs(LossItself)
    *_, graph = loss_graph(risk, few)
    layers = _layers(risk, graph, few.size)
    return [(layer.use.rows_shape[2], layer.input.shape[1]) for layer in layers]


def samples_together(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return how many samples' responses fit in the workspace, and the bytes of one's."""
    outputs = sum(rows for rows, _ in sizes)
    rows, columns = (max(side) for side in zip(*sizes, strict=True))
    entries = 3 * outputs * (rows + columns) // 2 + max(columns * columns, rows * columns)
    return max(1, min(2048, _WORKSPACE // (8 * entries))), 8 * entries


def _units(rows: Tensor) -> Tensor:
    """Unit vectors for rows (m, N), the same for all samples, (N, 1, m, N)."""
    samples, size = rows.shape
    return torch.eye(size).to(rows)[:, None, None].expand(size, 1, samples, size)


def _slopes(made: Tensor, along: Tensor, at: Sequence[_Layer]) -> Iterator[tuple[_Layer, Tensor]]:
    """Derivatives along vectors at outputs of layers, (vectors, m, outputs), where not zero."""
    if made.requires_grad and at:
        found = torch.autograd.grad(
            [made], [layer.use.output for layer in at], [along], retain_graph=True,
            allow_unused=True, is_grads_batched=True,
        )  # fmt: skip
        for layer, slopes in zip(at, found, strict=True):
            if slopes is not None:
                yield layer, layer.use.rows(slopes).squeeze(1)


def _products(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """Sum over samples of left[a, m, p] right[m, b] x[m, q], (a, p, b, q)."""
    outer = (right[:, :, None] * x[:, None]).flatten(1)
    found = left.mT.flatten(0, 1) @ outer
    return found.view(left.shape[0], left.shape[2], right.shape[1], x.shape[1])


def _add(hessian: Tensor, rows: _Layer, columns: _Layer, block: Tensor) -> None:
    """Add a block, (outputs, inputs, outputs, inputs), where its parameters are."""
    factor = 1 if rows is columns else 2  # half of it is mirrored in the end
    widths = [[place.shape[1] for place in layer.places] for layer in (rows, columns)]
    # What a bias is multiplied by stands still: a block may end before it.
    whole = block.shape[1] == sum(widths[0])
    parts = block.split(widths[0] if whole else widths[0][:1], 1)
    for there, some in zip(rows.places, parts, strict=False):
        for here, part in zip(columns.places, some.split(widths[1], 3), strict=True):
            if there.span and here.span:
                view = hessian[there.span, here.span].unflatten(1, here.shape)
                view.unflatten(0, there.shape).add_(part, alpha=factor)
            else:
                part = factor * part.reshape(len(there.flat), len(here.flat))
                hessian[there.flat[:, None], here.flat] += part


def _accumulate(
    hessian: Tensor, risk: EmpiricalRisk, part: Batch, tried: Tensor
) -> tuple[float, Tensor]:
    """Add a chunk's weighted Hessian; return its weight, and its product with a vector."""
    loss, weight, graph = loss_graph(risk, part)
    if not weight:  # ignored labels
        return weight, torch.zeros_like(tried)
    layers = _layers(risk, graph, part.size)
    if not layers:
        raise NotPaired
    at: list[Any] = [*(layer.use.output for layer in layers), *risk.parameters]
    found = torch.autograd.grad(weight * loss, at, create_graph=True, materialize_grads=True)
    with check_twice([loss], found):
        for number, (layer, delta) in enumerate(zip(layers, found, strict=False)):
            use, (a,) = layer.use, layer.use.input
            (slope,) = use.rows(delta.detach())
            # Q is symmetric: from a gradient back to later layers is half the way to earlier ones.
            for later, q in _slopes(delta, use.placed(_units(slope)), layers[number:]):
                block = _products(q, later.input, layer.input)
                _add(hessian, later, layer, block.permute(1, 2, 0, 3))
            for earlier, moves in _slopes(use.input, _units(a), layers[:number]):
                block = _products(moves, slope, earlier.input)
                _add(hessian, layer, earlier, block.permute(2, 0, 1, 3))
        moved = torch.cat([g.flatten() for g in found[len(layers) :]]) @ tried
        product = torch.autograd.grad(moved, risk.parameters, materialize_grads=True)
        return weight, torch.cat([g.flatten() for g in product])


def pairs_hessian(risk: EmpiricalRisk, chunk: int, *, report: Callable[[int], Any]) -> Tensor:
    """Exact Hessian of a risk in float64; ``report`` gets the samples done after each chunk."""
    size = sum(p.numel() for p in risk.parameters)
    risk = copy.copy(risk)
    risk.take_graphs(LossItself)
    hessian = torch.zeros(size, size, dtype=torch.float64, device=risk.device)
    tried, total = probe_vectors(size).to(risk.device), 0.0
    expected = torch.zeros_like(tried)
    for batch in risk.data:
        for start in range(0, batch.size, chunk):
            part = batch.part(start, chunk)
            try:
                weight, product = _accumulate(hessian, risk, part, tried)
            except RuntimeError as error:  # no batching rule, or a value that was overwritten
                if is_out_of_memory(error):
                    raise
                raise NotPaired from error
            total, expected = total + weight, expected + product
            report(part.size)
    hessian.add_(hessian.mT.clone()).div_(2)
    gap = (hessian @ tried - expected).norm()
    if gap > _EQUAL * hessian.norm() * (tried.norm() / size**0.5):
        raise NotPaired
    return hessian.div_(1.0 if risk.sums else total)
