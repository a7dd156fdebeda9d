"""Losses: their definitions, their derivatives at the output, and targets that do not fit."""

import oracles
import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_same, relative_error
from torch import nn

from resid_theory.losses import LOSSES, Loss

SAMPLES, CLASSES = 5, 3


def outputs(generator):
    return torch.randn(SAMPLES, CLASSES, generator=generator)


def one_hot(labels):
    return F.one_hot(labels, CLASSES).to(torch.float64)


LABELS = torch.tensor([0, 2, 1, 1, 0])


def huber(output, target):
    return F.huber_loss(output, target, reduction="none").sum(1).mean()


def exponential(output, target):
    return (output * target).sum(1).exp().mean()


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3), (5, 2, 4)], ids=str)
def test_square_by_its_definition(shape, generator):
    output, target = torch.randn(2, *shape, generator=generator)
    expected = oracles.square_loss(output, target)
    torch.testing.assert_close(LOSSES["square"](output, target), expected, rtol=1e-14, atol=0)
    k = output[0].numel()
    torch.testing.assert_close(F.mse_loss(output, target) * k / 2, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "dtype", [None, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str
)
def test_cross_entropy_by_its_definition(dtype, generator):
    output, target = outputs(generator), torch.softmax(outputs(generator), 1)
    rows = one_hot(LABELS) if dtype else target  # labels are one-hot rows
    target = LABELS.to(dtype) if dtype else target
    LOSSES["cross_entropy"].check_target(output, target)
    expected = oracles.cross_entropy(output, rows)
    found = LOSSES["cross_entropy"](output, target)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


CASES = {
    "square": ("square", lambda y: y),
    "cross_entropy": ("cross_entropy", lambda y: torch.softmax(y, 1)),
    "labels": ("cross_entropy", lambda y: LABELS),
    "huber": (huber, lambda y: y),
    "exponential": (exponential, lambda y: y),
    "linear": (lambda output, target: (output * target).sum(1).mean(), lambda y: y),
}


@pytest.mark.parametrize("case", CASES)
def test_output_derivatives_against_nested_gradients(case, generator):
    loss, target_of = CASES[case]
    output, target = outputs(generator), target_of(outputs(generator))
    g, curvature = Loss.of(loss).derivatives(output, target)
    point = output.clone().requires_grad_()
    # the mean over samples couples none of them: m times it has the samples' own derivatives
    total = SAMPLES * Loss.of(loss)(point, target)
    gradient = torch.autograd.grad(total, point, create_graph=True)[0]
    exact = oracles.hessian_by_nested_gradients(total, [point])
    exact = exact.view(SAMPLES, CLASSES, SAMPLES, CLASSES)
    assert relative_error(g, gradient.detach()) <= 1e-14
    for_each = exact.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    assert relative_error(curvature, for_each) <= 1e-14
    assert not g.requires_grad and not curvature.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no-grad", "infer"])
def test_output_derivatives_outside_gradient_mode(mode, generator):
    output, target = outputs(generator), one_hot(LABELS)
    expected = Loss.of(huber).derivatives(output, target)
    with mode():
        assert_same(Loss.of(huber).derivatives(output, target), expected)


UNFIT = {
    "square-shape": ("square", torch.zeros(5, 2), r"\(5, 2\) for outputs of shape \(5, 3\)"),
    "square-broadcast": ("square", torch.zeros(5), r"got shape \(5,\) for outputs"),
    "square-integers": ("square", torch.zeros(5, 3, dtype=torch.int64), "needs floating point"),
    "float-labels": ("cross_entropy", torch.zeros(5), "or class indices .* of an integer dtype"),
    "label-high": ("cross_entropy", torch.tensor([0, 1, 2, 3, 0]), "from 0 to 3 .* needs .* 0..2"),
    "label-low": ("cross_entropy", torch.tensor([0, 1, 2, -1, 0]), "labels from -1 to 2"),
    "label-ignored": ("cross_entropy", torch.full((5,), -100), "labels from -100 to -100"),
    "label-uint8": ("cross_entropy", torch.full((5,), 255, dtype=torch.uint8), "from 255 to 255"),
    "one-hot-integers": ("cross_entropy", one_hot(LABELS).long(), r"got labels of shape \(5, 3\)"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_targets_that_do_not_fit(case):
    loss, target, message = UNFIT[case]
    for function in (Loss.check_target, Loss.derivatives):
        with pytest.raises(ValueError, match=f"^data y: .*{message}"):
            function(Loss.of(loss), torch.zeros(5, 3), target)


NOT_MEANS = {
    "sum": (lambda o, t: (o - t).square().sum(), "needs a mean over samples"),
    "coupled": (lambda o, t: o.mean(0).square().sum(), "needs a mean over samples"),
    "per-sample": (lambda o, t: (o - t).square().sum(1), r"returned shape \(5,\), needs a scalar"),
    "number": (lambda o, t: 1.0, "returned <class 'float'>, needs a scalar"),
    "detached": (lambda o, t: (o - t).square().detach().sum(1).mean(), "carries no gradient"),
}


@pytest.mark.parametrize("case", NOT_MEANS)
def test_losses_that_are_not_means(case, generator):
    loss, message = NOT_MEANS[case]
    with pytest.raises(ValueError, match=f"^loss: .*{message}"):
        Loss.of(loss).derivatives(outputs(generator), outputs(generator))


@pytest.mark.parametrize("loss", [nn.MSELoss(), F.mse_loss, F.cross_entropy, huber])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_means_are_let_through(loss, dtype, generator):
    output, target = outputs(generator).to(dtype), one_hot(LABELS).to(dtype)
    Loss.of(loss).check_mean(output, target)
    Loss(lambda o, t: 9 * loss(o, t)).check_mean(output[:1], target[:1])  # one sample tells nothing


def test_an_unknown_loss_is_met_with_the_nearest():
    with pytest.raises(ValueError, match="^loss: unknown name 'squared'; did you mean 'square'"):
        Loss.of("squared")
