"""Nodes and weights of Gauss and Gauss-Radau rules, from the Jacobi matrix of a Lanczos run."""

import torch
from torch import Tensor

RESOLVED = 0.05  # residual of a node, relative to the distance to the next, up to which it is apart


def jacobi_matrix(diagonal: Tensor, links: Tensor) -> Tensor:
    """The tridiagonal matrix of a Lanczos run, without its last link."""
    return torch.diag(diagonal) + torch.diag(links[:-1], 1) + torch.diag(links[:-1], -1)


def nearest(nodes: Tensor) -> Tensor:
    """Distance of each of some ascending nodes to the next one, (..., m)."""
    ends = torch.full_like(nodes[..., :1], torch.inf)
    gaps = nodes.diff(dim=-1)
    return torch.minimum(torch.cat([ends, gaps], -1), torch.cat([gaps, ends], -1))


def radau_rule(diagonal: Tensor, links: Tensor, place: float) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the quadrature with one more node, at a given place."""
    unit = max(diagonal.abs().max().item(), links.abs().max().item(), abs(place)) or 1.0
    # Without it, squares overflow: a node near the place moves the last diagonal entry far away.
    diagonal, links, place = diagonal / unit, links / unit, place / unit
    matrix = jacobi_matrix(diagonal, links)
    nodes, vectors = torch.linalg.eigh(matrix)
    distances = nodes - place
    if bool((distances == 0).any()):
        return nodes * unit, vectors[0].square()
    # The place is an eigenvalue of the extended matrix if this is its last diagonal entry.
    last = place + links[-1] * (vectors[-1].square() * (links[-1] / distances)).sum()
    extended = torch.zeros(len(nodes) + 1, len(nodes) + 1, dtype=torch.float64)
    extended[:-1, :-1], extended[-1, -1] = matrix, last
    extended[-1, -2] = extended[-2, -1] = links[-1]
    nodes, vectors = torch.linalg.eigh(extended)
    return nodes * unit, vectors[0].square()
