"""Labels among the inputs of a model, as in batches for models of transformers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory.data.net_arguments import arguments_of, takes
from resid_theory.losses import IGNORED, Loss
from resid_theory.nested import map_tensors, rows_of
from resid_theory.runtime.preserve import preserved

_FEW = 2  # samples on which it is found out where labels belong
_ALIKE = 1e-3  # relative difference of slopes; losses of float64 logits may be computed in float32


def next_labels(labels: Tensor) -> Tensor:
    """Labels (samples, tokens) of tokens at the places of the logits that predict them."""
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], 1)


def labels_are_next(net: nn.Module, x: Mapping[str, Any], labels: Tensor) -> bool:
    """Ask a model whether it compares labels of tokens with the logits one place before."""
    # Causal models do. It is seen on the model's own loss: its slope in the logits is that of
    # cross-entropy with labels where they are, or with those of the next token.
    if labels.dim() != 2 or labels.is_floating_point() or not takes(net, **{**x, "labels": labels}):
        return False
    rows = (labels != IGNORED).sum(1).topk(min(_FEW, len(labels))).indices
    few = map_tensors(rows_of({**x, "labels": labels}, rows, len(labels)), torch.clone)
    labels = few["labels"]
    with preserved(net):
        args, kwargs = arguments_of(net, few)
        output = net(*args, **kwargs)
        named = output if isinstance(output, Mapping) else {}
        own, logits = named.get("loss"), named.get("logits")
        if own is None or logits is None or logits.shape[:-1] != labels.shape:
            return False
        found, step = _slope(own, logits), max(_ALIKE, 4 * torch.finfo(logits.dtype).eps)
        gaps = []
        for moved in (labels, next_labels(labels)):
            point = logits.detach().requires_grad_(found.shape == logits.shape)
            known = _slope(Loss.of("cross_entropy")(point, moved), point)
            gaps.append(float((found - known).norm()) - step * float(known.norm()))
        if min(gaps) <= 0:
            return gaps[1] < gaps[0]
    raise ValueError(
        "data: the model's own loss is the cross-entropy of its logits neither with the labels nor "
        "with those of the next token, so it is unknown which belong together; pass pairs (inputs, "
        "labels), whose labels are taken where they are, or the loss 'model', its own"
    )


def _slope(value: Tensor, at: Tensor) -> Tensor:
    """Gradient of a loss; the loss itself, a number, where nothing in the net is trainable."""
    if not (value.requires_grad and at.requires_grad):
        return value
    (slope,) = torch.autograd.grad(value, at, materialize_grads=True)
    return slope
