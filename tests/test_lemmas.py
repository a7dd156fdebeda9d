"""Lemmas 3 and 4 of "Demystifying ResNet" as laws, by differentiating small nets entry by entry."""

import itertools

import pytest
import torch
from oracles import hessian_by_nested_gradients, shortcut_net, square_loss

import resid_theory as rt


def loss_of(point, x, y, n, mid=torch.expm1, post=torch.expm1):
    """Loss of a residual net from its vector of weights; all derivatives of expm1 are one."""
    width = x.shape[1]
    layers = list(point.view(-1, width, width))
    output = shortcut_net(layers, None, x, n=n, shortcut=True, pre=lambda z: z, mid=mid, post=post)
    return square_loss(output, y)


def derivatives(x, y, n, blocks, orders):
    size = blocks * n * x.shape[1] ** 2
    point = torch.zeros(size, requires_grad=True)
    found = [loss_of(point, x, y, n)]
    for _ in range(orders):
        rows = [
            torch.autograd.grad(entry, point, create_graph=True, materialize_grads=True)[0]
            if entry.requires_grad
            else torch.zeros(size)
            for entry in found[-1].flatten()
        ]
        found.append(torch.stack(rows).view(*found[-1].shape, size))
    return [derivative.detach() for derivative in found[1:]]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_lemma_3_a_partial_at_zero_needs_a_whole_unit(n, generator):
    """Width 1, two units: a variable is a layer, so a multi-index is a tuple of layers."""
    x, y = torch.randn(2, 4, 1, generator=generator)
    for order, derivative in enumerate(derivatives(x, y, n, 2, 3), start=1):
        held = 0
        for where in itertools.product(range(2 * n), repeat=order):
            units = ({*range(n)}, {*range(n, 2 * n)})
            whole = any(unit <= set(where) for unit in units)
            held += whole and derivative[where] != 0.0
            assert whole or derivative[where] == 0.0, where
        assert bool(held) == (order >= n)


@pytest.mark.parametrize("n", [1, 2])
def test_lemma_4_second_derivatives_depend_on_the_order_of_units_alone(n, generator):
    width, blocks = 2, 4
    x, y = torch.randn(2, 5, width, generator=generator)
    point = torch.zeros(blocks * n * width**2, requires_grad=True)
    hessian = hessian_by_nested_gradients(loss_of(point, x, y, n), [point])
    tiles = hessian.view(blocks, n * width**2, blocks, n * width**2).transpose(1, 2)
    pairs = list(itertools.combinations(range(blocks), 2))
    for earlier, later in pairs:
        torch.testing.assert_close(tiles[later, earlier], tiles[1, 0], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(tiles[earlier, later], tiles[1, 0].T, rtol=1e-12, atol=1e-14)
    for unit in range(blocks):
        torch.testing.assert_close(tiles[unit, unit], tiles[0, 0], rtol=1e-12, atol=1e-14)
    point_at_zero = rt.theory.zero_point(
        (x, y), blocks=blocks, shortcut_depth=n, mid=torch.expm1, post=torch.expm1
    )
    assert point_at_zero.spectrum.distance(rt.Spectrum.of(torch.linalg.eigvalsh(hessian))) < 1e-10
