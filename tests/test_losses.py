"""Losses: definitions, derivatives at the output, weights of samples, targets that do not fit."""

import itertools
from contextlib import nullcontext

import oracles
import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_same, relative_error
from torch import nn

import resid_theory as rt
from resid_theory.losses import (
    LOSSES,
    KnownWeighting,
    Loss,
    NoWeighting,
    SampleAxes,
    Weighting,
    reweighted,
    weighting as weighting_module,
    weighting_of,
)
from resid_theory.losses.formulas import class_axis, names_class
from resid_theory.losses.part import Part, Sample
from resid_theory.nested import tensors_of

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


@pytest.mark.parametrize("loss", ["square", huber])
def test_output_derivatives_have_the_outputs_precision(loss, generator):
    output, target = outputs(generator).float(), outputs(generator).float()
    assert {found.dtype for found in Loss.of(loss).derivatives(output, target)} == {torch.float32}


KNOWN = {  # name, repr, targets, whether it is a sum, known, the identity, blind to a constant
    "square": ("square", "Loss(square)", "values", False, True, True, False),
    "cross_entropy": ("cross_entropy", "Loss(cross_entropy)", "labels", False, True, False, True),
    "model": ("model", "Loss(model, of='batch')", "any", False, False, False, False),
    huber: ("huber", "Loss(huber)", "any", False, False, False, False),
    Loss(huber, sums=True): ("huber", "Loss(huber)", "any", True, True, False, False),
    Loss(huber, name="mine", of="batch", weights=len): (
        "mine", "Loss(mine, of='batch')", "any", False, True, False, False),
    nn.MSELoss(): ("MSELoss", "Loss(MSELoss)", "shape", False, True, False, False),
    nn.L1Loss(reduction="sum"): ("L1Loss", "Loss(L1Loss)", "shape", True, True, False, False),
    F.huber_loss: ("huber_loss", "Loss(huber_loss)", "shape", False, True, False, False),
    F.nll_loss: ("nll_loss", "Loss(nll_loss)", "any", False, True, False, False),
    nn.NLLLoss(reduction="sum"): ("NLLLoss", "Loss(NLLLoss)", "any", True, True, False, False),
    nn.MultiMarginLoss(): (
        "MultiMarginLoss", "Loss(MultiMarginLoss)", "any", False, False, False, False),
}  # fmt: skip


@pytest.mark.parametrize("given", KNOWN, ids=lambda given: repr(Loss.of(given)))
def test_what_is_known_about_a_loss(given):
    loss = Loss.of(given)
    assert Loss.of(loss) is loss and loss.takes_batches == ("of=" in repr(loss))
    assert KNOWN[given] == (loss.name, repr(loss), loss.targets, loss.sums, loss.is_known,
                            loss.identity, loss.null_direction)  # fmt: skip


ELEMENTWISE = [
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss,
    nn.SoftMarginLoss, nn.PoissonNLLLoss,
]  # fmt: skip


@pytest.mark.parametrize("kind", ELEMENTWISE)
@pytest.mark.parametrize("shape", [(5,), (5, 2, 3)], ids=str)
def test_means_over_elements_divide_by_their_number(kind, shape):
    output, target = torch.linspace(0.1, 0.9, torch.Size(shape).numel()).view(1, *shape).repeat(
        2, *[1] * len(shape))  # fmt: skip
    loss, total = Loss.of(kind()), Loss.of(kind(reduction="sum"))
    assert (loss.targets, loss.sums, total.sums) == ("shape", False, True)
    assert loss.weights(target).tolist() == [output[0].numel()] * 5
    value = float(loss(output, target)) * float(loss.weights(target).sum())
    assert float(total(output, target)) == pytest.approx(value, rel=1e-14)
    with pytest.raises(ValueError, match=r"^data y: got shape \(1,.* needs equal shapes$"):
        loss.check_target(output, target[:1])


def test_the_axis_of_classes_is_the_one_that_labels_lack():
    shapes = [s for d in range(5) for s in itertools.product((2, 3), repeat=d)]
    for shape, labels in itertools.product(shapes, shapes):
        axes = [len(shape) - 1, 1] if len(shape) == 3 else [1, len(shape) - 1]
        fits = [a for a in axes if len(shape) > 1
                and labels in (shape, shape[:a] + shape[a + 1 :])]  # fmt: skip
        axis = class_axis(torch.zeros(shape), torch.zeros(labels))
        assert axis == (fits[0] if fits else None), (shape, labels)


def unequal(shape, name):
    return f"got shape {shape} for outputs of shape (5, 3); the loss {name!r} needs equal shapes"


def outside(low, high):
    return (
        f"got class labels from {low} to {high} for 3 outputs, needs labels in 0..2, or -100 for "
        "samples that do not count"
    )


UNFIT = {
    "square-shape": ("square", torch.zeros(5, 2), unequal((5, 2), "square")),
    "square-broadcast": ("square", torch.zeros(5), unequal((5,), "square")),
    "square-labels": ("square", LABELS, unequal((5,), "square")
                      + "; of class labels, rows by rt.data.one_hot or loss='cross_entropy'"),
    "mse-broadcast": (nn.MSELoss(), torch.zeros(5, 1), unequal((5, 1), "MSELoss")),
    "square-integers": ("square", torch.zeros(5, 3, dtype=torch.int64),
                        "got dtype torch.int64, the square loss needs floating point"),
    "float-labels": ("cross_entropy", torch.zeros(5), unequal((5,), "cross_entropy")
                     + " or class indices (m,) of an integer dtype"),
    "label-high": ("cross_entropy", torch.tensor([0, 1, 2, 3, 0]), outside(0, 3)),
    "label-low": ("cross_entropy", torch.tensor([0, 1, 2, -1, 0]), outside(-1, 2)),
    "label-uint8": ("cross_entropy", torch.tensor([1, 255, 2, 2, 1], dtype=torch.uint8),
                    outside(1, 255)),
    "one-hot-integers": ("cross_entropy", one_hot(LABELS).long(),
                         "got labels of shape (5, 3), needs (m,) for (5, 3)"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_targets_that_do_not_fit(case):
    loss, target, message = UNFIT[case]
    for function in (Loss.check_target, Loss.derivatives):
        with pytest.raises(ValueError) as caught:
            function(Loss.of(loss), torch.zeros(5, 3), target)
        assert str(caught.value) == f"data y: {message}"


def test_labels_from_the_first_class_to_the_last():
    """Of one class or more, where all count, some or none."""
    loss = Loss.of("cross_entropy")
    for classes, labels in ((1, [0, 0]), (1, [-100, -100]), (3, [2, -100]), (3, [0, 0])):
        loss.check_target(torch.zeros(2, classes), torch.tensor(labels))
    with pytest.raises(ValueError, match="^data y: got class labels from 0 to 1 for 1 outputs, ne"):
        loss.check_target(torch.zeros(2, 1), torch.tensor([0, 1]))


@pytest.mark.parametrize(("shape", "needs"), [
    ((5,), "those of (5,) without one axis"), ((2, 3, 4), "those of (2, 3, 4) without one axis"),
    ((5, 3), "(m,) for (5, 3)"),
], ids=str)  # fmt: skip
def test_labels_of_no_shape_that_outputs_leave(shape, needs):
    with pytest.raises(ValueError) as caught:
        Loss.of("cross_entropy").check_target(torch.zeros(shape), torch.zeros(5, 3, 1).long())
    assert str(caught.value) == f"data y: got labels of shape (5, 3, 1), needs {needs}"


def test_a_softmax_over_the_samples_is_refused():
    shares, needs = torch.full((5,), 0.2), r"^data y: got {} of shape \(5,\), needs {}$"
    alone = needs.format("labels", r"those of \(5,\) without one axis")
    with pytest.raises(ValueError, match=alone):
        Loss.of("cross_entropy").check_target(shares, shares)
    with pytest.raises(ValueError, match=needs.format("probabilities", r"\(m, k, ...\)")):
        Loss.of(nn.CrossEntropyLoss()).weights(shares)


def _train(net, loss, data):
    rt.train(
        net,
        data,
        rt.Recipe(epochs=1, batch=2, augmentation="none", loss=loss),
        seed=0,
        progress=False,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("measure", [
    lambda net, loss, data: rt.curvature_operator(net, loss, data, chunk=2),
    lambda net, loss, data: rt.evaluate(net, data, loss=loss),
    _train,
], ids=["curvature_operator", "evaluate", "train"])  # fmt: skip
def test_no_measurement_takes_a_softmax_over_the_samples(measure, reduction):
    """Its sum over the samples is another number for every way to cut them into batches."""
    net, loss = (
        nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)),
        nn.CrossEntropyLoss(reduction=reduction),
    )
    with pytest.raises(
        ValueError, match=r"^data y: got probabilities of shape \(\d,\), needs \(m,"
    ):
        measure(net, loss, (torch.rand(4, 2), torch.full((4,), 0.25)))


def test_labels_become_what_the_loss_takes(generator):
    """Of one output or more, for any number of targets; and those that are no labels stay."""
    square, entropy, own = Loss.of("square"), Loss.of("cross_entropy"), Loss(huber)
    labels = torch.tensor([[0, 2], [1, 1], [2, 0]], dtype=torch.int32)
    rows, wide = one_hot(labels.long()), torch.zeros(1, 2, CLASSES).float()
    for loss in (square, Loss.of(nn.MSELoss())):
        found, kept = loss.targets_of(wide, labels)
        assert_same([found, kept], [rows.float(), labels.long()])
        found, kept = loss.targets_of(wide.movedim(2, 1), labels)
        assert_same([found, kept], [rows.movedim(2, 1).float(), labels.long()])
        with pytest.raises(ValueError, match="^data y: got class .* -100 to 2 .* in 0..2$"):
            loss.targets_of(wide, labels.where(labels > 0, -100))
    for loss in (entropy, own):
        found, kept = loss.targets_of(wide, labels)
        assert found is kept and found.dtype == torch.int64 and torch.equal(found, labels.long())
    pixels = torch.tensor([[[0, 2], [1, 1]]])
    found, _ = square.targets_of(torch.zeros(1, CLASSES, 2, 2), pixels)
    assert_same(found, one_hot(pixels).permute(0, 3, 1, 2))
    padded = labels.where(labels > 0, -100)
    assert_same(entropy.targets_of(wide, padded), (padded.long(), padded.long()))
    for loss in (square, entropy, own):
        found, kept = loss.targets_of(wide, rows)
        assert found is rows and kept is None


def test_class_weights_move_with_a_loss():
    weight = torch.tensor([0.5, 2.0, 1.0])
    given = Loss.of(nn.CrossEntropyLoss(weight))
    found = given.to(torch.device("cpu"), torch.float32)
    assert found is not given and given.function.weight is weight
    assert_same(found.function.weight, weight.float())
    assert (found.name, found.weights) == (given.name, given.weights)
    square = Loss.of("square")
    assert square.to(torch.device("cpu"), torch.float32) is square


@pytest.mark.parametrize(
    "given",
    ["square", "cross_entropy", nn.MSELoss(), F.nll_loss],
    ids=lambda loss: Loss.of(loss).name,
)
def test_losses_of_one_tensor_read_logits(given):
    z, rest = torch.zeros(2), {"a": 1}
    loss = Loss.of(given)
    assert loss.reads({"logits": z, **rest}) is z and loss.reads(z) is z
    for output in (rest, {"logits": 3}, (z, z)):
        assert loss.reads(output) is output
    for own in (Loss(huber), Loss.of(huber)):
        assert own.reads(output := {"logits": z}) is output


NOT_SCALARS = {
    "per-sample": (lambda o, t: (o - t).square().sum(1), r"returned shape \(5,\), needs a scalar"),
    "number": (lambda o, t: 1.0, "returned <class 'float'>, needs a scalar"),
    "detached": (lambda o, t: (o - t).square().detach().sum(1).mean(), "carries no gradient"),
}


@pytest.mark.parametrize("case", NOT_SCALARS)
def test_values_that_are_no_losses(case, generator):
    loss, message = NOT_SCALARS[case]
    with pytest.raises(ValueError, match=f"^loss: .*{message}"):
        Loss.of(loss).derivatives(outputs(generator), outputs(generator))


def test_what_is_no_loss_and_no_tensor(generator):
    with pytest.raises(ValueError, match="^function: got 3, needs a callable"):
        Loss(3)
    square, z = Loss.of("square"), outputs(generator)
    with pytest.raises(ValueError, match="^data y: got list, needs a tensor"):
        square.check_target(z, [1.0])
    with pytest.raises(ValueError, match="^data y: got list, needs a tensor"):
        square.targets_of(z, [1.0])
    with pytest.raises(ValueError, match="^data y: got shape .* for outputs of shape"):
        square.targets_of(torch.ones(()), z)
    with pytest.raises(ValueError, match="^net: gives tuple, the loss 'square' needs a tensor"):
        square.targets_of((z,), z)
    own, target = Loss(huber), {"any": z}
    for output in ((z,), z):
        found, labels = own.targets_of(output, target)
        assert found is target and labels is None


def test_an_unknown_loss_is_met_with_the_nearest():
    with pytest.raises(ValueError, match="^loss: unknown name 'squared'; did you mean 'square'"):
        Loss.of("squared")
    with pytest.raises(ValueError, match="^loss: unknown name 'mse'; choose from 'square'"):
        Loss.of("mse")  # 'model' is the nearest name, and another loss


DENSE = {  # shapes of logits and labels, and the axis of the classes
    "tokens": ((4, 5, 3), (4, 5), 2),
    "tokens, as many as classes": ((4, 3, 3), (4, 3), 2),
    "channels": ((4, 3, 5), (4, 5), 1),
    "pixels": ((4, 3, 5, 2), (4, 5, 2), 1),
    "pixels, classes last": ((4, 5, 2, 3), (4, 5, 2), 3),
}


@pytest.mark.parametrize("case", DENSE)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
def test_dense_cross_entropy(case, soft, generator):
    shape, places, axis = DENSE[case]
    if soft and axis != (2 if len(shape) == 3 else 1):
        pytest.skip("probabilities have the axis that comes first")
    output = torch.randn(shape, generator=generator)
    labels = torch.randint(CLASSES, places, generator=generator)
    rows = torch.randn(shape, generator=generator).softmax(axis)
    target = rows if soft else labels
    rows = rows.movedim(axis, -1).flatten(0, -2) if soft else one_hot(labels.flatten())
    expected = oracles.cross_entropy(output.movedim(axis, -1).flatten(0, -2), rows)
    loss = Loss.of("cross_entropy")
    loss.check_target(output, target)
    torch.testing.assert_close(loss(output, target), expected, rtol=1e-14, atol=0)
    assert loss.weights(target).tolist() == [labels[0].numel()] * 4
    assert KnownWeighting(loss).of_part(output, target, 4) == labels.numel()
    if axis == 1:  # where torch has them
        assert Loss.of(nn.CrossEntropyLoss()).weights(target).tolist() == [labels[0].numel()] * 4


# -- weights ---------------------------------------------------------------------------------------

FACTORS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
PADDED = torch.tensor([0, -100, 1, 1, 0, 2, -100, 2])


def normalized(output, target):
    """Errors weighted by a column of the targets."""
    values, weights = target[:, :-1], target[:, -1]
    return weights @ (output - values).square().sum(1) / weights.sum()


def weighing(generator):
    """A loss, its targets, the weights of the samples (None: a sum)."""
    size = len(PADDED)
    labels, values = PADDED.clamp(0), torch.randn(size, CLASSES + 1, generator=generator).abs()
    valid, ones = (PADDED != -100).double(), torch.ones(size)
    return {
        "mean": (lambda o, t: F.cross_entropy(o, t), labels, ones),
        "elements": (lambda o, t: (o - t).cosh().log().mean(), values[:, :-1], ones),
        "labels": (lambda o, t: F.cross_entropy(o, t), PADDED, valid),
        "classes": (lambda o, t: F.cross_entropy(o, t, FACTORS.to(o)), labels, FACTORS[labels]),
        "both": (
            lambda o, t: F.cross_entropy(o, t, FACTORS.to(o), label_smoothing=0.1),
            PADDED,
            valid * FACTORS[labels],
        ),
        "float": (
            lambda o, t: F.cross_entropy(o.float(), t, FACTORS.float()),
            labels,
            FACTORS[labels],
        ),
        "column": (normalized, values, values[:, -1]),
        "sum": (lambda o, t: (o - t).abs().pow(3).sum(), values[:, :-1], None),
        "CrossEntropyLoss": (nn.CrossEntropyLoss(FACTORS), PADDED, valid * FACTORS[labels]),
        "CrossEntropyLoss(sum)": (nn.CrossEntropyLoss(reduction="sum"), PADDED, None),
        "NLLLoss": (nn.NLLLoss(FACTORS, ignore_index=1), labels, FACTORS[labels] * (labels != 1)),
        "MSELoss": (nn.MSELoss(), values[:, :-1], ones * CLASSES),
        "smooth_l1_loss": (F.smooth_l1_loss, values[:, :-1], ones * CLASSES),
        "cross_entropy": ("cross_entropy", PADDED, valid),
    }


WEIGHING = list(weighing(torch.Generator().manual_seed(0)))


def parts_of(order, sizes=(3, 1, 4)):
    return order.split(sizes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", WEIGHING)
def test_weights_are_what_the_loss_divides_by(case, dtype, generator):
    given, target, expected = weighing(generator)[case]
    output = torch.randn(len(PADDED), CLASSES, generator=generator).log_softmax(1).to(dtype)
    target = target.to(dtype) if target.is_floating_point() else target
    weighting = weighting_of(Loss.of(given), output, target)
    assert weighting.sums == (expected is None)
    exact = torch.ones(len(output)) if expected is None else expected
    # A mean over class weights is computed in the outputs' precision.
    tolerance = 1e-12 if dtype == torch.float64 and case != "float" else 1e-5
    each = weighting.of_samples(output, target, len(output))
    if not Loss.of(given).is_known:
        assert weighting.counts == (case in ("mean", "elements", "sum"))
    unit = each.max() / exact.max()
    assert relative_error(each / unit, exact) <= tolerance
    for order in (torch.arange(8), PADDED.argsort(stable=True)):
        for rows in parts_of(order):
            found = weighting.of_part(output[rows], target[rows], len(rows))
            part = 1.0 if expected is None else float(unit * exact[rows].sum())
            assert abs(found - part) <= tolerance * max(1.0, part)


def by_value(output, target):
    """A loss that vmap does not take."""
    return (
        F.cross_entropy(output, target, FACTORS) if output.detach().sum().item() else output.sum()
    )


@pytest.mark.parametrize("case", ["mean", "sum", "classes", "MSELoss", "column", "by value"])
def test_weights_do_not_depend_on_the_default_dtype(case, generator):
    given, target, _ = weighing(generator)["mean" if case == "by value" else case]
    if case == "by value":
        given = by_value
    output = torch.randn(len(PADDED), CLASSES, generator=generator).log_softmax(1)
    found = []
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        weighting = weighting_of(Loss.of(given), output, target)
        found.append(weighting.of_samples(output, target, len(output)))
        found.append(KnownWeighting(Loss(huber)).of_samples(output, target, len(output)))
    assert_same(found[:2], found[2:])


def test_a_loss_that_takes_single_precision_only(generator):
    output, labels = outputs(generator).float(), LABELS
    weighting = weighting_of(
        Loss(lambda o, t: F.cross_entropy(o, t, FACTORS.float())), output, labels
    )
    each = weighting.of_samples(output, labels, SAMPLES)
    # a few hundred roundings of single precision
    assert relative_error(each / each[0] * FACTORS[labels[0]], FACTORS[labels]) <= 1e-5


def test_weights_of_single_precision_are_measured_in_double(generator):
    target = torch.rand(8, CLASSES + 1, generator=generator).float()
    output, exact = torch.randn(8, CLASSES, generator=generator).float(), target[:, -1].double()
    weighting = weighting_of(Loss(normalized), output, target)
    each = weighting.of_samples(output, target, 8)
    assert relative_error(each / each[0] * exact[0], exact) <= 1e-12
    parts = [weighting.of_part(output[rows], target[rows], 4) for rows in (slice(4), slice(4, 8))]
    sums = exact.view(2, 4).sum(1) * each[0] / exact[0]
    assert relative_error(torch.tensor(parts), sums) <= 1e-12


@pytest.mark.parametrize("case", WEIGHING)
def test_weighted_parts_make_the_whole(case, generator):
    given, target, _ = weighing(generator)[case]
    loss, output = Loss.of(given), torch.randn(8, CLASSES, generator=generator).log_softmax(1)
    weighting = weighting_of(loss, output, target)
    values, weights = [], []
    for rows in parts_of(PADDED.argsort(stable=True, descending=True)):
        weight = weighting.of_part(output[rows], target[rows], len(rows))
        if weight:
            weights.append(weight)
            values.append(weight * float(loss(output[rows], target[rows])))
    whole = sum(values) / (1.0 if weighting.sums else sum(weights))
    exact = pytest.approx(float(loss(output, target)), rel=1e-6 if case == "float" else 1e-12)
    assert whole == exact


@pytest.mark.parametrize("logit", [30.0, 300.0, 3000.0])
def test_weights_at_a_minimum(logit, generator):
    """Where all samples are fitted, gradients of the loss have lost most of their digits."""
    labels = torch.arange(12) // 4  # neighbours are of one class
    output = logit * F.one_hot(labels, CLASSES) + torch.randn(12, CLASSES, generator=generator)
    weighting = weighting_of(Loss(lambda o, t: F.cross_entropy(o, t, FACTORS)), output, labels)
    weights = weighting.of_samples(output, labels, 12)
    assert relative_error(weights / weights[0] * FACTORS[0], FACTORS[labels]) <= 1e-12
    part = weighting.of_part(output[:6], labels[:6], 6)
    assert part == pytest.approx(float(weights[:6].sum()), rel=1e-12)


def test_weights_are_rounded_to_counts_by_their_size():
    """Of each pair the first is near a count, relative to it, and the other one is not."""
    weighting = Weighting(Loss(huber), None)
    labels = torch.tensor([9.0, 9.0, 0.1, 0.1, 7.0, 7.0, 7.0, 7.0])
    near = [1000 - 0.9, 1000 + 1.1, 0.1 + 0.9e-4, 0.1 - 1.1e-4, 7 + 6.5e-3, 7 - 7.5e-3, 9e-4, -2.0]
    counts = [torch.full((8,), 1000.0), labels]
    found = weighting._rounded(torch.tensor(near), counts, 1e-3)
    assert found.tolist() == [1000.0, near[1], 0.1, near[3], 7.0, near[5], 0.0, 0.0]
    assert not weighting.counts


def test_weights_that_are_nearly_counts_are_not_rounded(generator):
    factors = torch.tensor([1.0, 1 + 1e-9, 1.0], dtype=torch.float64)
    weighting = weighting_of(
        Loss(lambda o, t: F.cross_entropy(o, t, factors)), outputs(generator), LABELS
    )
    weights = weighting.of_samples(outputs(generator), LABELS, SAMPLES)
    assert relative_error(weights / weights[0] - 1, factors[LABELS] - 1) <= 1e-5


def test_labels_that_are_all_ignored_at_first(generator):
    output, labels = outputs(generator), torch.full((SAMPLES,), -100)
    weighting = weighting_of(Loss(lambda o, t: F.cross_entropy(o, t)), output, labels)
    assert weighting.of_part(output, labels, SAMPLES) == 0.0
    assert weighting.of_part(output, LABELS, SAMPLES) == SAMPLES
    labels = torch.where(LABELS == 0, -100, LABELS)
    assert weighting.of_part(output, labels, SAMPLES) == SAMPLES - 2


def contrast(output, target):
    return -(output @ output.T).log_softmax(1).diagonal().mean()


COUPLED = {
    "of the mean": lambda o, t: o.mean(0).square().sum(),
    "root of a mean": lambda o, t: F.mse_loss(o, t).sqrt(),
    "mean and sum": lambda o, t: F.mse_loss(o, t) + 0.1 * F.mse_loss(o, t, reduction="sum"),
    "centred": lambda o, t: (o - o.mean(0) - t).square().mean(),
    "contrastive": contrast,
    "largest": lambda o, t: (o - t).square().sum(1).max(),
    "neighbours": lambda o, t: (o[1:] - o[:-1]).square().mean() + (o - t).square().mean(),
}


@pytest.mark.parametrize("case", COUPLED)
def test_losses_without_weights_are_told(case, generator):
    with pytest.raises(ValueError, match="^loss: needs a mean, a weighted mean or a sum"):
        weighting_of(Loss(COUPLED[case]), outputs(generator), outputs(generator))


LAYOUTS = {
    "samples first": lambda z: z,
    "time first": lambda z: z.transpose(0, 1),
    "flat": lambda z: z.flatten(0, 1),
    "flat, time first": lambda z: z.transpose(0, 1).flatten(0, 1),
    "dict": lambda z: {"logits": z, "last": z[:, -1], "scale": torch.ones(3), "name": "z"},
    "tuple": lambda z: (z.transpose(1, 2), None),
    "mask": lambda z: (z[..., 0].T.flatten() > 0, z.long().flatten(0, 1), z.movedim(0, 2)),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_samples_are_found_in_outputs_of_any_layout(case, generator):
    z = torch.randn(5, 4, CLASSES, generator=generator)
    layout = LAYOUTS[case]
    axes = SampleAxes.between(layout(z[[4, 0]]), layout(z), (2, 5))
    assert axes is not None and axes.is_first == (case in ("samples first", "tuple"))
    rows = torch.tensor([3, 0])
    some = axes.gather([leaf[rows] for leaf in axes.spread(layout(z))], layout(z))
    expected = layout(z[rows])
    if case in ("dict", "tuple", "mask"):
        assert type(some) is type(expected)
        some, expected = (list(tensors_of(given)) for given in (some, expected))
    assert_same(some, expected)


def fitted(output, target):
    """A hinge, flat where outputs are large."""
    return (1 - output * target).clamp(min=0).mean()


def test_parts_without_a_gradient_count_by_samples(generator):
    target, far = torch.ones(SAMPLES, CLASSES), torch.full((SAMPLES, CLASSES), 100.0)
    weighting = weighting_of(Loss(fitted), far, target)
    assert weighting.of_part(far[:3], target[:3], 3) == 3.0
    with pytest.raises(NoWeighting, match="some parts have no gradient at all, others have one"):
        weighting.of_part(outputs(generator), target, SAMPLES)


def some(output, target):
    """A constant where no target counts."""
    valid = target >= 0
    return output[valid].square().mean() if valid.any() else torch.zeros(())


def test_values_without_a_gradient_weigh_nothing(generator):
    output, target = outputs(generator), torch.tensor([-1, 0, -1, 0, 0])
    weighting = weighting_of(Loss(some), output, target)
    found = [weighting.of_part(output[rows], target[rows], 2) for rows in ([0, 2], [0, 1], [3, 4])]
    assert found == pytest.approx([0.0, 1.0, 2.0], abs=1e-10)


def test_weights_where_every_loss_is_zero():
    output, target = torch.zeros(SAMPLES, CLASSES), torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0])
    weighting = weighting_of(Loss(lambda o, t: t @ o.sum(1) / t.sum()), output, target)
    found = [weighting.of_part(output[rows], target[rows], 2) for rows in ([0, 2], [0, 1], [3, 4])]
    assert found == pytest.approx([0.0, 1.0, 2.0], abs=1e-10)


def test_a_part_that_hides_the_sample_behind_it_is_told(generator):
    def whole(output, target):
        return output.square().mean() if (target >= 0).all() else torch.zeros(())

    output, target = outputs(generator), torch.tensor([0, 1, 2, -1, 0])
    weighting = weighting_of(Loss(whole), output[:3], target[:3])
    with pytest.raises(NoWeighting) as caught:
        weighting.of_part(output, target, SAMPLES)
    own = weighting._one.outputs[0].square().mean()
    assert str(caught.value) == told(
        f"0 on 5 samples and one more, 0 on these, {own:.6g} on that one"
    )


def told(detail):
    return (
        "loss: needs a mean, a weighted mean or a sum over samples; this one compares samples with "
        f"each other, mixes a mean and a sum, or is a function of a mean: {detail}"
    )


@pytest.mark.parametrize(("sizes", "detail"), [
    ({2: 4.0}, "parts weigh 7, both together 5"), ({5: 5.1}, "parts weigh 5, both together 5.1"),
    ({5: 5 + 1e-9}, ""), ({3: float("nan")}, "parts weigh nan, both together 5"),
])  # fmt: skip
def test_parts_that_weigh_more_apart_than_together_are_told(sizes, detail, generator, monkeypatch):
    weighed = []

    def weight(self, part):
        weighed.append(part.samples)
        return sizes.get(part.samples, float(part.samples))

    monkeypatch.setattr(Weighting, "_weight", weight)
    output, target, mean = outputs(generator), outputs(generator), Loss(lambda o, t: o.mean())
    if not detail:
        weighting_of(mean, output, target)
        assert weighed == [5, 2, 3, 3, 2]  # sorted halves, and mixed ones
        return
    with pytest.raises(NoWeighting) as caught:
        weighting_of(mean, output, target)
    assert str(caught.value) == told(detail) and weighed == [5, 2, 3]


def test_a_linear_loss_that_weights_of_its_own_multiply(generator):
    scale = torch.randn(CLASSES, generator=generator).requires_grad_()
    loss = Loss(lambda o, t: (o * scale).sum() / len(o) + 0 * t.sum())
    g, curvature = loss.derivatives(outputs(generator), outputs(generator))
    torch.testing.assert_close(g, scale.detach().expand(SAMPLES, CLASSES), rtol=1e-14, atol=0)
    assert not curvature.any() and curvature.shape == (SAMPLES, CLASSES, CLASSES)


def test_weights_of_many_samples_take_few_calls(generator):
    calls = []

    def counted(output, target):
        calls.append(len(output))
        return F.cross_entropy(output, target, FACTORS)

    output, labels = torch.randn(64, CLASSES, generator=generator), torch.arange(64) % CLASSES
    weighting, calls[:] = weighting_of(Loss(counted), output, labels), []
    weights = weighting.of_samples(output, labels, 64)
    assert relative_error(weights / weights[0] * FACTORS[0], FACTORS[labels]) <= 1e-12
    assert len(calls) <= 2


def pieces(given, target, generator):
    """A part of five samples and a sixth one, as a loss is given them."""
    output = torch.randn(6, CLASSES, generator=generator)
    part, other = (
        Part.of(Loss(given), SampleAxes.first(output[rows], len(output[rows])), output[rows],
                target[rows], len(output[rows]))
        for rows in (slice(5), slice(5, None))
    )  # fmt: skip
    return output, part, other.sample(0)


def offset(output, target):
    return (output - target).square().sum() + 0.7


def of_class(output, target):
    """Not a number where no label counts."""
    return F.cross_entropy(output, target, FACTORS)


# A loss, its targets, the weights of five samples and of the sixth, and what a sum has once.
VALUES_OF_SIX = torch.linspace(-1, 1, 18).double().view(6, 3)
LABELS_OF_SIX = torch.tensor([0, 2, -100, 1, 0, 2])
APPENDED = {
    "mean": (lambda o, t: (o - t).square().mean(), VALUES_OF_SIX, 5.0, 1.0, None),
    "classes": (of_class, LABELS_OF_SIX, float(FACTORS[[0, 2, 1, 0]].sum()), 3.0, None),
    "slopes below zero": (lambda o, t: F.nll_loss(o, t, FACTORS), LABELS_OF_SIX,
                          float(FACTORS[[0, 2, 1, 0]].sum()), 3.0, None),
    "none": (of_class, LABELS_OF_SIX.where(torch.arange(6) == 5, -100), 0.0, 3.0, None),
    "sum": (lambda o, t: (o - t).square().sum(), VALUES_OF_SIX, None, None, 0.0),
    "sum and a number": (offset, VALUES_OF_SIX, None, None, 0.7),
    "root": (lambda o, t: 0.1 * o.sum() / len(o) ** 0.5, VALUES_OF_SIX, None, None, None),
    "turned": (lambda o, t: (o.sum(0) - t.sum(0)).square().sum(), VALUES_OF_SIX, None, None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", APPENDED)
def test_a_sample_behind_a_part(name, generator):
    loss, target, weight, own, once = APPENDED[name]
    _, part, one = pieces(loss, target, generator)
    found = part.append(one)
    point = one.outputs[0].clone().requires_grad_()
    value = loss(torch.cat([part.outputs[0], point]), target)
    alone = loss(point, target[5:])
    slopes = [torch.autograd.grad(v, point)[0] for v in (value, alone)]
    ratio = float((slopes[0] * slopes[1]).sum() / slopes[1].square().sum())
    assert found.value == pytest.approx(value.item(), rel=1e-14)
    assert found.own == one.own == pytest.approx(alone.item(), rel=1e-14)
    assert found.ratio == pytest.approx(ratio, rel=1e-12)
    of_part = float(loss(part.outputs[0], target[:5]))
    assert found.part == pytest.approx(of_part, rel=1e-14, nan_ok=True)
    left = once if once is not None else of_part + found.own - found.value
    assert found.once == pytest.approx(left, rel=1e-12, nan_ok=True)
    assert (found.is_mean, found.is_sum) == (weight is not None, once is not None)
    if weight is not None:
        assert found.ratio == pytest.approx(own / (weight + own), rel=1e-12)
    assert torch.equal(one.gradient, slopes[1].flatten())


@pytest.mark.parametrize(("number", "factor", "kept"), [
    (0.7, 0.0, True), (0.0, 0.0, False), (0.0, 1.0, True), (-0.7, 2.0, True),
])  # fmt: skip
def test_what_a_sum_has_once_is_kept_with_its_graph(number, factor, kept, generator):
    """A number, or one that weights move, though it is zero now."""
    weight, target = torch.zeros(()).requires_grad_(factor != 0), outputs(generator)
    loss = Loss(lambda o, t: (o - t).square().sum() + number + (factor * weight).sin())
    weighting = Weighting(loss, SampleAxes.first(target, SAMPLES))
    assert weighting.repeated() is None  # nothing is known yet
    weighting.learn(outputs(generator), target, SAMPLES)
    once = weighting.repeated()
    assert weighting.sums and weighting.once == pytest.approx(number, abs=1e-12)
    assert (once is not None) == kept
    if kept:
        assert once.item() == pytest.approx(number, abs=1e-12)
    if factor:
        assert float(torch.autograd.grad(once, weight)[0]) == pytest.approx(factor, rel=1e-12)


WAYS = {  # of a sample 1, 4 before a sample 2, -3
    "towards the next": (lambda o: o[..., 0].exp().sum(), [1.3, 1.9]),
    "towards zero": (lambda o: o.abs().rsqrt().sum(), [0.1, 0.4]),
    "a little further": (lambda o: o[..., 1].exp().sum(), [1.1, 4.1]),
}


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_a_sample_is_moved_to_where_its_gradient_is_largest(way, row):
    """Of its tensors those of floating point, in a ring of three samples."""
    loss, expected = WAYS[way]
    z = torch.tensor([[1.0, 4.0], [2.0, -3.0], [5.0, 5.0]]).roll(row, 0)
    part = Part(lambda o, t: loss(o[0]), [z, torch.arange(7, 10)], [torch.arange(3)])
    one, point = part.sample(row), torch.tensor([expected]).requires_grad_()
    torch.testing.assert_close(one.outputs[0], point.detach(), rtol=1e-15, atol=0)
    assert one.outputs[1].tolist() == [7 + row] and one.targets[0].tolist() == [row]
    gradient = torch.autograd.grad(value := loss(point), point)[0]
    torch.testing.assert_close(one.gradient, gradient[0], rtol=1e-14, atol=0)
    assert one.own == pytest.approx(value.item(), rel=1e-14)


def test_a_part_that_counts_nothing_fits_a_mean_and_a_sum(generator):
    _, part, one = pieces(some, torch.tensor([-1, -1, -1, -1, -1, 0]), generator)
    found = part.append(one)
    assert (found.ratio, found.part, found.once) == (pytest.approx(1.0), 0.0, 0.0)
    assert found.value == found.own and found.is_mean and found.is_sum


@pytest.mark.parametrize("loss", [of_class, lambda o, t: F.nll_loss(o, t, FACTORS)],
                         ids=["logits", "slopes below zero"])  # fmt: skip
def test_ratios_are_those_of_samples_as_parts_of_their_own(loss, generator):
    output, part, one = pieces(loss, LABELS_OF_SIX.clamp(0), generator)
    each = [part.some(torch.tensor([row])).append(one).ratio for row in range(5)]
    torch.testing.assert_close(part.ratios(one), torch.tensor(each), rtol=1e-12, atol=0)
    assert_same(part.outputs, [output[:5]])
    assert part.samples == 5 and part.order().tolist() == [0, 2, 4, 3, 1]


def test_counts_are_samples_or_labels(generator):
    labels = torch.tensor([[0, -100], [1, 2], [-100] * 2, [0, 0], [1, 1], [2, -100]])
    z, target = torch.randn(6, 2, CLASSES, generator=generator), (labels, labels.double().abs())
    for one, units in ((labels[5:], [[1.0] * 5, [1.0, 2.0, 0.0, 2.0, 2.0]]),
                       (labels[1:2], [[1.0] * 5, [0.5, 1.0, 0.0, 1.0, 1.0]]),
                       (labels[2:3], [[1.0] * 5])):  # fmt: skip
        part = Part(lambda o, t: o[0].sum(), [z[:5]], [leaf[:5] for leaf in target])
        sample = Sample([z[5:]], [one, one.double().abs()], 1.0, torch.ones(6))
        assert [count.tolist() for count in part.counts(sample)] == units


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_thresholds_follow_the_lowest_precision(dtype, generator):
    z = torch.randn(4, 2, generator=generator)
    part = Part(lambda o, t: o[0].sum(), [torch.arange(4), z.to(dtype), z], [])
    eps = torch.finfo(dtype).eps
    assert (part.tolerance, part.round_off) == (eps**0.5, 1024 * eps)
    assert part.is_finite
    z[3, 1] = float("inf")  # of the last leaf, and of the other one where it is the same tensor
    assert not part.is_finite and part.some(torch.tensor([2, 0])).is_finite


@pytest.mark.parametrize(("piece", "sizes"), [(1, [1] * 7), (3 * 32, [3, 3, 1]), (1 << 26, [7])])
def test_large_outputs_are_weighed_in_pieces(piece, sizes, generator, monkeypatch):
    """Of 32 bytes for each sample: three numbers, and another one in a second tensor."""
    monkeypatch.setattr(weighting_module, "_PIECE", piece)
    calls = []

    def counted(output, target):
        calls.append(len(target))
        return F.cross_entropy(output[0] + output[1].sum(1), target, FACTORS)

    z = torch.randn(7, 3, generator=generator), torch.randn(7, 1, 1, generator=generator)
    labels, axes = torch.arange(7) % 3, SampleAxes.first(z, 7)
    weighting = Weighting(Loss(counted), axes)
    weighting.learn(z, labels, 7)
    one, calls[:] = weighting.of_part((z[0][:1], z[1][:1]), labels[:1], 1) / FACTORS[0], []
    assert weighting.of_part(z, labels, 7) == pytest.approx(float(one * FACTORS[labels].sum()))
    # Of each piece: whether float64 works, with the sample behind it, alone.
    assert calls == [n + more for n in sizes for more in (0, 1, 0)]


def test_labels_that_name_a_class_of_flat_outputs():
    labels = torch.tensor([[0, 2, 5], [-100, 1, 3]])
    found = names_class(torch.zeros(6, CLASSES), labels)
    assert found.tolist() == [[True, True, False], [False, True, False]]
    last = names_class(torch.zeros(2, 3, 4), torch.tensor([[0, 3, 4], [-1, 2, 1]]))
    assert last.tolist() == [[True, True, False], [False, True, True]]


def test_outputs_that_all_samples_share(generator):
    scale, z, target = torch.ones(CLASSES), outputs(generator), outputs(generator)
    unread = torch.ones(2, requires_grad=True)
    reads = Loss(lambda o, t: (o[0] * o[1] - t).square().mean())
    leaves = Loss(lambda o, t: (o[0] - t).square().mean())
    axes = SampleAxes.first((z, scale), SAMPLES)
    one = SampleAxes.first((z[:1], scale[0]), 1)
    assert one == SampleAxes(((0, 1), None), (False, False))
    Weighting(reads, axes).learn((z, scale), target, SAMPLES)  # a constant
    scale.requires_grad_(), z.requires_grad_()
    Weighting(leaves, axes).learn((z, scale), target, SAMPLES)
    axes = SampleAxes.first((z, scale, unread), SAMPLES)
    weighs = Loss(lambda o, t: (o[0] - t).square().mul(u := t.abs() ** o[1]).sum() / u.sum())
    adds = Loss(lambda o, t: (o[0] - t).square().mean() + len(t) * (o[1] - 1).sum())  # of nothing
    for loss, fits in ((reads, True), (weighs, False), (adds, False)):
        refused = pytest.raises(NoWeighting, match="share|samples and one more")
        with torch.no_grad(), nullcontext() if fits else refused:
            weighting = Weighting(loss, axes)
            weighting.learn((z, scale, unread), target, SAMPLES)
            assert weighting.reads_shared


def test_losses_that_are_flat_at_one_sample(generator):
    def spread(output, target):  # the other outputs have no gradient at all
        return output[:, 0].var(unbiased=False)

    with pytest.raises(NoWeighting, match="single samples have no gradient, all together have one"):
        weighting_of(Loss(spread), outputs(generator), outputs(generator))


def test_losses_that_do_not_take_one_sample(generator):
    def pairs(output, target):
        if len(output) % 2:
            raise ValueError("needs pairs")
        return (output - target).square().mean()

    with pytest.raises(NoWeighting, match=r"does not take a single sample \(needs pairs\)"):
        weighting_of(Loss(pairs), outputs(generator)[:4], outputs(generator)[:4])


def test_outputs_without_an_axis_of_samples_have_none():
    assert SampleAxes.between(torch.ones(2), torch.ones(5, 1), (2, 5)) is None
    assert SampleAxes.between((torch.ones(2),), (torch.ones(5), torch.ones(5)), (2, 5)) is None
    assert SampleAxes.between(torch.ones(2, 2), torch.ones(5, 5), (2, 5)) is None
    assert SampleAxes.between(torch.ones(3), torch.ones(4), (2, 5)) is None
    alike, same = (torch.ones(4, 3), torch.ones(10, 3)), torch.ones(3)
    found = SampleAxes.between(*((each, same) for each in alike), (2, 5))
    assert found == SampleAxes(((0, 2), None), (False, False))
    more = torch.tensor([0.0, 2, 5, 0, 7, 8])  # three samples of two entries, the first one last
    for few, count in ((torch.tensor([0.0, 1, 0, 2]), 2), (torch.tensor([0.0, 2]), 1)):
        assert SampleAxes.between(few, more, (count, 3)) == SampleAxes(((0, 2),), (False,))
    with pytest.raises(ValueError, match="no axis of the outputs"):
        Weighting(Loss(lambda o, t: o), None).learn(torch.ones(()), LABELS, 5)


@pytest.mark.parametrize("case", ["mean", "labels", "classes", "sum", "by value"])
def test_sample_weights_count_like_copies(case, generator):
    given, target, _ = weighing(generator)["mean" if case == "by value" else case]
    given = by_value if case == "by value" else given
    loss, output = Loss.of(given), outputs(generator)[torch.arange(8) % 5]
    copies = torch.tensor([1, 2, 0, 3, 1, 1, 2, 1])
    weighting = weighting_of(loss, output, target)
    each = weighting.of_samples(output, target, 8) * copies
    counted = reweighted(loss, SampleAxes.first(output, 8), each, sums=weighting.sums)
    exact = loss(output.repeat_interleave(copies, 0), target.repeat_interleave(copies, 0))
    torch.testing.assert_close(counted(output, target), exact, rtol=1e-13, atol=0)
