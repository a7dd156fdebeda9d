"""Slow, obvious reference implementations; nothing of the library is imported here."""

import torch
from torch import Tensor


def hessian_by_nested_gradients(loss, parameters):
    """Hessian of a scalar, one gradient of a gradient for every parameter."""
    grads = torch.autograd.grad(
        loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True
    )
    gradient = torch.cat([g.reshape(-1) for g in grads])
    rows = []
    for entry in gradient:
        if entry.requires_grad:
            parts = torch.autograd.grad(
                entry, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        else:
            parts = [torch.zeros_like(p) for p in parameters]
        rows.append(torch.cat([p.reshape(-1) for p in parts]))
    return torch.stack(rows)


def shortcut_net(layers, biases, x, *, n, shortcut, pre, mid, post):
    """Definition 2 of "Demystifying ResNet", one matrix at a time; samples are columns inside."""
    z = x.T
    for block in range(len(layers) // n):
        branch = pre(z)
        for position in range(n):
            branch = layers[block * n + position] @ branch
            if position == 0 and biases is not None:
                branch = branch + biases[block][:, None]
            if position < n - 1:
                branch = mid(branch)
        branch = post(branch)
        z = z + branch if shortcut else branch
    return z.T


def square_loss(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared error, summed over outputs, mean over samples."""
    total = 0.0
    for one, other in zip(output, target, strict=True):
        total = total + 0.5 * ((one - other) ** 2).sum()
    return total / len(output)


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy from its definition; targets are probabilities."""
    total = 0.0
    for logits, probabilities in zip(output, target, strict=True):
        total = total - (probabilities * (logits - torch.logsumexp(logits, 0))).sum()
    return total / len(output)


def block_toeplitz(diagonal: Tensor, lower: Tensor, blocks: int) -> Tensor:
    """The matrix of equation (10), block by block."""
    rows = []
    for r in range(blocks):
        row = []
        for c in range(blocks):
            row.append(diagonal if r == c else lower if r > c else lower.T)
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows)
