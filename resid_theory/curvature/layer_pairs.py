r"""Hessians of feed-forward and shortcut nets from products of layer pairs.

For a sample let :math:`a_k` be the input of layer k, :math:`z_k = W_k a_k`, :math:`\delta_k` the
gradient at z_k and :math:`Q_{k'k}` the second derivative of the loss with respect to perturbations
of :math:`z_{k'}` and :math:`z_k`. Entry (i, j) of layer k' against (p, q) of an earlier layer k is
the mean of

.. math:: a_{k'}[j]\, Q_{k'k}[i, p]\, a_k[q]
    + \delta_{k'}[i]\, \frac{\partial a_{k'}[j]}{\partial z_k[p]}\, a_k[q]

over samples: two matrix products over the samples for each pair of layers, instead of one
Hessian-vector product for each weight.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from resid_theory.activations import Activation, derivatives
from resid_theory.curvature.chain import LayerChain
from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.data import Batch

__all__ = ["chain_hessian", "samples_together"]

_WORKSPACE = 1 << 28  # bytes of responses held at a time


@dataclass(kw_only=True, eq=False)
class _Layer:
    """A layer after the forward pass. Arrays hold the samples along the last axis.

    ``move`` is the response of the layer's input, before its activation, to a perturbation of the
    output of every earlier layer: (earlier outputs, in, m).
    """

    weight: Tensor
    input: Tensor  # after the activation, with a row of ones for a bias
    slope: Tensor | None  # of the activation in front, None for the identity
    bend: Tensor | None  # its second derivative, None where zero
    move: Tensor

    @property
    def response(self) -> Tensor:
        """Response of the input after its activation."""
        return self.move if self.slope is None else self.slope * self.move

    @property
    def size(self) -> int:
        """Number of parameters, bias included."""
        return len(self.weight) * len(self.input)


@dataclass(kw_only=True, eq=False)
class _Block:
    """The layers of one unit, and the activation behind the last of them."""

    layers: list[_Layer] = field(default_factory=list)
    slope: Tensor | None = None
    bend: Tensor | None = None
    move: Tensor | None = None  # response of the last layer's output, kept if the bend needs it
    shortcut: bool = False


def _act(function: Activation | None, z: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Value, slope and second derivative; None stands for a slope of one and a bend of zero."""
    if function is None:
        return z, None, None
    first, second = derivatives(function, z)
    with torch.no_grad():
        value = function(z)
    return value, first, second if bool(second.any()) else None


def _forward(chain: LayerChain, x: Tensor) -> tuple[list[_Block], Tensor, Tensor]:
    """All blocks after the forward pass, the output (d, m), its response (all outputs, d, m)."""
    blocks = []
    stream, move = x, x.new_zeros(0, *x.shape)
    for unit in chain.units:
        block = _Block(shortcut=unit.shortcut is not None)
        z, dz = stream, move
        for weight, bias, function in zip(unit.weights, unit.biases, unit.before, strict=True):
            value, slope, bend = _act(function, z)
            z = weight @ value
            if bias is not None:
                z = z + bias.unsqueeze(-1)
                value = torch.cat([value, torch.ones_like(value[:1])])
            layer = _Layer(weight=weight, input=value, slope=slope, bend=bend, move=dz)
            block.layers.append(layer)
            # The response of the layer's output: through its weight, and to its own perturbation.
            passed = torch.matmul(weight, layer.response)
            own = torch.eye(len(weight), dtype=passed.dtype, device=passed.device)
            dz = torch.cat([passed, own.unsqueeze(-1).expand(-1, -1, x.shape[-1])])
        value, block.slope, block.bend = _act(unit.after, z)
        block.move = None if block.bend is None else dz
        out = dz if block.slope is None else block.slope * dz
        if block.shortcut:
            value = value + stream
            out[: len(move)] += move
        stream, move = value, out
        blocks.append(block)
    return blocks, stream, move


def _bent(
    change: Tensor, slope: Tensor | None, bend: Tensor | None, grad: Tensor, move: Tensor | None
) -> Tensor:
    """Response of the gradient in front of an activation, from that behind it."""
    change = change if slope is None else slope * change
    return change if bend is None or move is None else change.addcmul(bend * grad, move)


def _backward(
    blocks: list[_Block], grad: Tensor, change: Tensor
) -> Iterator[tuple[_Layer, Tensor, Tensor]]:
    """Every layer from the last on, with its delta (p, m) and Q (outputs so far, p, m)."""
    for block in reversed(blocks):
        delta = grad if block.slope is None else block.slope * grad
        moved = _bent(change, block.slope, block.bend, grad, block.move)
        for layer in reversed(block.layers):
            yield layer, delta, moved
            earlier = len(layer.move)
            behind = layer.weight.mT @ delta
            moved = torch.matmul(layer.weight.mT, moved[:earlier])
            moved = _bent(moved, layer.slope, layer.bend, behind, layer.move)
            delta = behind if layer.slope is None else layer.slope * behind
        if block.shortcut:
            earlier = len(block.layers[0].move)
            delta, moved = delta + grad, moved + change[:earlier]
        grad, change = delta, moved


def _accumulate(hessian: Tensor, chain: LayerChain, risk: EmpiricalRisk, part: Batch) -> float:
    """Add a chunk's weighted sum over samples to the lower block triangle; return its weight."""
    x, target = part.pair
    blocks, output, response = _forward(chain, x.flatten(1).to(torch.float64).mT.contiguous())
    loss, weight, _ = risk.weigh(part, output.mT)
    if not weight:  # ignored labels
        return weight
    target = target.to(torch.float64) if target.is_floating_point() else target
    g, curvature = loss.derivatives(output.mT, target)
    # These are m times the derivatives of the chunk's loss; a mean has them once for each weight.
    factor = weight / part.size
    g, curvature = factor * g, curvature if loss.identity else factor * curvature
    if not loss.identity:  # whose curvature is the identity
        response = torch.einsum("mij,kjm->kim", curvature, response)
    ends = torch.tensor(chain.augmented_sizes).cumsum(0).tolist()
    layers = [layer for block in blocks for layer in block.layers]
    outputs = torch.tensor([len(layer.weight) for layer in layers]).cumsum(0).tolist()
    for later, (layer, delta, q) in zip(
        range(len(layers) - 1, -1, -1), _backward(blocks, g.mT.contiguous(), response), strict=True
    ):
        rows = slice(ends[later] - layer.size, ends[later])
        moves = layer.response
        for earlier, other in enumerate(layers[: later + 1]):
            columns = slice(ends[earlier] - other.size, ends[earlier])
            span = slice(outputs[earlier] - len(other.weight), outputs[earlier])
            # The sum over samples of a_{k'}[j] Q[i, p] a_k[q], (i, j, p, q).
            products = q[span].flatten(0, 1) @ _outer(layer.input, other.input).mT
            shape = (len(other.weight), len(layer.weight), len(layer.input), len(other.input))
            block = products.view(shape).permute(1, 2, 0, 3).contiguous()
            if earlier < later:
                # That of delta[i] (da_{k'}[j]/dz_k[p]) a_k[q]; a bias's input does not move.
                reach = moves[span].flatten(0, 1) @ _outer(delta, other.input).mT
                inputs = moves.shape[1]
                shape = (len(other.weight), inputs, len(layer.weight), len(other.input))
                block[:, :inputs] += reach.view(shape).permute(2, 1, 0, 3)
            hessian[rows, columns] += block.view(layer.size, other.size)
    return weight


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """a[i] b[j] for every sample, (i j, m)."""
    return (a.unsqueeze(1) * b).flatten(0, 1)


def samples_together(chain: LayerChain) -> tuple[int, int]:
    """Return how many samples' responses fit in the workspace, and the bytes of one's."""
    outputs = entries = 0
    for weight in chain.layers:
        entries += outputs * weight.shape[1]
        outputs += len(weight)
    entries += 4 * outputs * max(max(w.shape) for w in chain.layers)
    return max(1, min(2048, _WORKSPACE // (8 * entries))), 8 * entries


def chain_hessian(
    chain: LayerChain,
    risk: EmpiricalRisk,
    *,
    report: Callable[[int], Any] = lambda samples: None,
) -> Tensor:
    """Exact Hessian of the loss of a chain; ``report`` gets the samples done after each chunk."""
    sizes = chain.augmented_sizes
    hessian = chain.layers[0].new_zeros(sum(sizes), sum(sizes))
    chunk, _ = samples_together(chain)
    total = 0.0
    for batch in risk.data:
        for start in range(0, batch.size, chunk):
            part = batch.part(start, chunk)
            total += _accumulate(hessian, chain, risk, part)
            report(part.size)
    start = 0
    for size in sizes:  # the lower block triangle is copied to the upper one, layer by layer
        rows = hessian[start : start + size]
        own = rows[:, start : start + size]
        own.copy_(0.5 * (own + own.mT))
        hessian[:start, start : start + size] = rows[:, :start].mT
        start += size
    hessian /= 1.0 if risk.sums else total
    if chain.order is None:
        return hessian
    place = torch.empty_like(chain.order)
    place[chain.order] = torch.arange(len(place))
    return hessian[place][:, place]
